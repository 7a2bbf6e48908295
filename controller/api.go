package controller

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Error is an error of the API: what the caller is told, and with which HTTP status.
type Error struct {
	Status int     `json:"-"`
	Text   string  `json:"error"`
	Move   *Record `json:"move,omitempty"` // the move that it is about, as it is now
}

func (e *Error) Error() string { return e.Text }

func fail(status int, format string, args ...any) *Error {
	return &Error{Status: status, Text: fmt.Sprintf(format, args...)}
}

// route is one row of the API.
type route struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Body   string `json:"body,omitempty"`
	Answer string `json:"answer"`
	What   string `json:"what"`

	serve func(r *http.Request) (status int, v any, err error)
}

const (
	// maxBody bounds a request's body, in bytes.
	maxBody = 1 << 20
	// maxWait bounds ?wait=.
	maxWait = 5 * time.Minute
	// defaultLimit is how many moves GET /v1/moves lists.
	defaultLimit = 100
)

// Handler serves the API; see the package's documentation.
func (c *Controller) Handler() http.Handler { return c.handler }

func (c *Controller) routes() []route {
	return []route{
		{"GET", "/v1", "", "200 this table (JSON with Accept: application/json)", "what the API has", nil},
		{"GET", "/v1/sites", "", "200 [site]", "list sites", c.listSites},
		{"GET", "/v1/sites/{name}", "", "200 site, 404", "show one", c.getSite},
		{"PUT", "/v1/sites/{name}", "site", "201 or 200 site", "make or replace one", c.putSite},
		{"DELETE", "/v1/sites/{name}", "", "204, 404, 409 has hypervisors", "remove one", c.deleteSite},
		{"GET", "/v1/hypervisors", "", "200 [hypervisor]", "list hypervisors, with the state of their agents", c.listHypervisors},
		{"GET", "/v1/hypervisors/{name}", "", "200 hypervisor, 404", "show one", c.getHypervisor},
		{"PUT", "/v1/hypervisors/{name}", "hypervisor", "201 or 200 hypervisor, 409", "make or replace one; without a token the old one is kept", c.putHypervisor},
		{"DELETE", "/v1/hypervisors/{name}", "", "204, 404, 409 has VMs or moves", "remove one", c.deleteHypervisor},
		{"GET", "/v1/vms", "", "200 [vm]", "list VMs", c.listVMs},
		{"GET", "/v1/vms/{name}", "", "200 vm, 404", "show one", c.getVM},
		{"PUT", "/v1/vms/{name}", "vm", "201 or 200 vm, 409", "make or replace one; without a hypervisor it stays where it is", c.putVM},
		{"DELETE", "/v1/vms/{name}", "", "204, 404, 409 is being moved", "remove one", c.deleteVM},
		{"GET", "/v1/moves?vm=&state=&limit=", "", "200 [move], newest first", "list moves (limit: default 100, 0 = all)", c.listMoves},
		{"GET", "/v1/moves/{id}?wait=", "", "200 move, 404", "show one; wait=DURATION waits until it has ended", c.getMove},
		{"PUT", "/v1/moves/{id}?wait=", `{"vm","to"}`, "201 or 200 move, 409, 502 an agent failed", "prepare a move; waits until it is prepared (wait: default 30s)", c.putMove},
		{"POST", "/v1/moves/{id}/commit?wait=", "", "200 move, 409", "the VM runs on the target; wait=DURATION waits until it is pushed", c.commitMove},
		{"POST", "/v1/moves/{id}/abort?wait=", "", "200 move, 409 it runs on the target", "undo; waits until it is undone (wait: default 30s)", c.abortMove},
	}
}

func (c *Controller) newHandler() http.Handler {
	table := c.routes()
	mux := http.NewServeMux()
	for _, r := range table {
		path, _, _ := strings.Cut(r.Path, "?")
		if r.serve == nil {
			mux.HandleFunc(r.Method+" "+path, func(w http.ResponseWriter, req *http.Request) { serveTable(w, req, table) })
			continue
		}
		mux.HandleFunc(r.Method+" "+path, func(w http.ResponseWriter, req *http.Request) {
			status, v, err := r.serve(req)
			if err != nil {
				writeError(w, err)
				return
			}
			writeJSON(w, status, v)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		var allowed []string
		for _, m := range []string{"GET", "PUT", "POST", "DELETE"} {
			probe := req.Clone(req.Context())
			probe.Method = m
			if _, pattern := mux.Handler(probe); pattern != "/" {
				allowed = append(allowed, m)
			}
		}
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			writeError(w, fail(http.StatusMethodNotAllowed, "%s %s: use %s", req.Method, req.URL.Path, strings.Join(allowed, ", ")))
			return
		}
		writeError(w, fail(http.StatusNotFound, "no such path: %s (GET /v1 lists them)", req.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if c.cfg.Token != "" {
			given, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
			if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(c.cfg.Token)) != 1 {
				c.counters.add("api requests refused: token", 1)
				w.Header().Set("WWW-Authenticate", `Bearer realm="tabi controller"`)
				writeError(w, fail(http.StatusUnauthorized, "the bearer token is missing or wrong"))
				return
			}
		}
		c.counters.add("api requests", 1)
		req.Body = http.MaxBytesReader(w, req.Body, maxBody)
		mux.ServeHTTP(w, req)
	})
}

func serveTable(w http.ResponseWriter, req *http.Request, table []route) {
	if strings.Contains(req.Header.Get("Accept"), "application/json") {
		writeJSON(w, http.StatusOK, table)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "METHOD\tPATH\tBODY\tANSWER\tWHAT")
	for _, r := range table {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", r.Method, r.Path, or(r.Body, "-"), r.Answer, r.What)
	}
	fmt.Fprintln(tw, "\nErrors are {\"error\": \"...\"}; those about a move also have \"move\". PUTs may be repeated.")
	fmt.Fprintln(tw, `site        {"name","description"}`)
	fmt.Fprintln(tw, `hypervisor  {"name","site","rloc","xtr_id","site_id","agent","token","locators":[{"rloc","priority","weight"}]}`)
	fmt.Fprintln(tw, `vm          {"name","hypervisor","macs":[],"eids":[],"interface"}`)
	_ = tw.Flush() // the caller has gone
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	if v == nil {
		w.WriteHeader(status)
		return
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the caller has gone
}

func writeError(w http.ResponseWriter, err error) {
	var e *Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e = fail(http.StatusServiceUnavailable, "%v", err)
	default:
		e = fail(http.StatusInternalServerError, "%v", err)
	}
	writeJSON(w, e.Status, e)
}

// body reads the JSON of a request, strictly.
func body(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); err == io.EOF {
			return nil
		}
		return fail(http.StatusBadRequest, "body: more than one JSON value")
	}
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return fail(http.StatusRequestEntityTooLarge, "body: more than %d bytes", maxBody)
	case errors.Is(err, io.EOF):
		return fail(http.StatusBadRequest, "body: empty; want a JSON object")
	}
	return fail(http.StatusBadRequest, "body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// waitOf reads ?wait=.
func waitOf(r *http.Request, def time.Duration) (time.Duration, error) {
	s := r.URL.Query().Get("wait")
	if s == "" {
		return def, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxWait {
		return 0, fail(http.StatusBadRequest, "wait=%q: want a duration such as 10s, at most %v", s, maxWait)
	}
	return d, nil
}

// named checks that the name in the body, if it is there, is the one in the path.
func named(what, path string, name *string) error {
	if *name == "" {
		*name = path
	}
	if *name != path {
		return fail(http.StatusBadRequest, "%s %q: the body has another name: %q", what, path, *name)
	}
	return nil
}

func sorted[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

// read answers a question from the owner's state.
func (c *Controller) read(r *http.Request, f func() (any, error)) (int, any, error) {
	v, err := c.ask(r.Context(), func(time.Time) (any, error) { return f() })
	return http.StatusOK, v, err
}

// put is the answer to a PUT: whether the thing is new, and the thing.
type put struct {
	created bool
	v       any
}

func (c *Controller) write(r *http.Request, f func(now time.Time) (any, error)) (int, any, error) {
	v, err := c.change(r.Context(), f)
	if err != nil {
		return 0, nil, err
	}
	p, ok := v.(put)
	switch {
	case !ok:
		return http.StatusNoContent, nil, nil
	case p.created:
		return http.StatusCreated, p.v, nil
	}
	return http.StatusOK, p.v, nil
}

func find[V any](what string, m map[string]V, name string) (V, error) {
	v, ok := m[name]
	if !ok {
		return v, fail(http.StatusNotFound, "no %s %q", what, name)
	}
	return v, nil
}

// Sites.

func (c *Controller) listSites(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return sorted(c.inv.sites), nil })
}

func (c *Controller) getSite(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return find("site", c.inv.sites, r.PathValue("name")) })
}

func (c *Controller) putSite(r *http.Request) (int, any, error) {
	var s Site
	if err := body(r, &s); err != nil {
		return 0, nil, err
	}
	if err := named("site", r.PathValue("name"), &s.Name); err != nil {
		return 0, nil, err
	}
	if err := s.validate(); err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(time.Time) (any, error) {
		old, ok := c.inv.sites[s.Name]
		if !ok || old != s {
			c.inv.sites[s.Name] = s
			c.dirty.putSite(s)
		}
		return put{!ok, s}, nil
	})
}

func (c *Controller) deleteSite(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("site", c.inv.sites, name); err != nil {
			return nil, err
		}
		for _, h := range sorted(c.inv.hvs) {
			if h.Site == name {
				return nil, fail(http.StatusConflict, "site %s has hypervisor %s", name, h.Name)
			}
		}
		delete(c.inv.sites, name)
		c.dirty.delSite(name)
		return nil, nil
	})
}

// Hypervisors.

// HypervisorStatus is a hypervisor as the API shows it: without its token, with the state of its agent.
type HypervisorStatus struct {
	Hypervisor
	AgentSeen  time.Time `json:"agent_seen,omitzero"`
	AgentError string    `json:"agent_error,omitempty"` // why it cannot be reached now
	VMsToTell  int       `json:"vms_to_tell"`           // VMs that the agent does not know of yet
	VMs        []string  `json:"vms"`                   // which run there
}

func (c *Controller) hvStatus(h Hypervisor) HypervisorStatus {
	st := c.status[h.Name]
	out := HypervisorStatus{Hypervisor: h, AgentSeen: st.seen, AgentError: st.err, VMs: c.inv.on(h.Name)}
	out.Token = ""
	if out.VMs == nil {
		out.VMs = []string{}
	}
	if p := c.peers[h.Name]; p != nil {
		var refused string
		if out.VMsToTell, refused = p.waiting(); refused != "" {
			out.AgentError = or(out.AgentError, "refuses "+refused)
		}
	}
	return out
}

func (c *Controller) listHypervisors(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		out := []HypervisorStatus{}
		for _, h := range sorted(c.inv.hvs) {
			out = append(out, c.hvStatus(h))
		}
		return out, nil
	})
}

func (c *Controller) getHypervisor(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		h, err := find("hypervisor", c.inv.hvs, r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return c.hvStatus(h), nil
	})
}

func (c *Controller) putHypervisor(r *http.Request) (int, any, error) {
	var in struct {
		HypervisorStatus         // so that what was read can be put back; its own fields are ignored
		Token            *string `json:"token"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	h := in.Hypervisor
	if err := named("hypervisor", r.PathValue("name"), &h.Name); err != nil {
		return 0, nil, err
	}
	h, err := h.normal()
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(time.Time) (any, error) {
		old, ok := c.inv.hvs[h.Name]
		h.Token = old.Token
		if in.Token != nil {
			h.Token = *in.Token
		}
		if ok && old.same(h) {
			return put{false, c.hvStatus(h)}, nil
		}
		if _, ok := c.inv.sites[h.Site]; !ok {
			return nil, fail(http.StatusConflict, "hypervisor %s: no site %q: put it first", h.Name, h.Site)
		}
		for _, o := range sorted(c.inv.hvs) {
			if o.Name != h.Name && (o.XTRID == h.XTRID || o.RLOC == h.RLOC) {
				return nil, fail(http.StatusConflict, "hypervisor %s: %s has the same xtr_id or rloc", h.Name, o.Name)
			}
		}
		if ok && !old.samePeer(h) {
			if m := c.takesPart(h.Name); m != nil {
				return nil, fail(http.StatusConflict, "hypervisor %s takes part in %s: how others know it cannot change now", h.Name, m.summary())
			}
		}
		c.inv.hvs[h.Name] = h
		c.dirty.putHV(h)
		c.stopPeer(h.Name)
		c.startPeer(h)
		return put{!ok, c.hvStatus(h)}, nil
	})
}

// takesPart returns a move that is not over and that a hypervisor takes part in.
func (c *Controller) takesPart(hv string) *Record {
	for _, e := range c.openMoves() {
		if !e.m.State.Ended() && (e.m.From == hv || e.m.To == hv) {
			return &e.m.Record
		}
	}
	return nil
}

func (c *Controller) deleteHypervisor(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("hypervisor", c.inv.hvs, name); err != nil {
			return nil, err
		}
		if vms := c.inv.on(name); len(vms) > 0 {
			return nil, fail(http.StatusConflict, "hypervisor %s has VMs: %s", name, strings.Join(vms, ", "))
		}
		if m := c.takesPart(name); m != nil {
			return nil, fail(http.StatusConflict, "hypervisor %s takes part in %s", name, m.summary())
		}
		delete(c.inv.hvs, name)
		c.dirty.delHV(name)
		c.stopPeer(name)
		return nil, nil
	})
}

// VMs.

func (c *Controller) listVMs(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return sorted(c.inv.vms), nil })
}

func (c *Controller) getVM(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return find("vm", c.inv.vms, r.PathValue("name")) })
}

// moving returns the VM's move that keeps it from being changed or moved again.
func (c *Controller) moving(vm string) *Record {
	for _, e := range c.byVM[vm] {
		if e.m.State.binding() {
			return &e.m.Record
		}
	}
	return nil
}

func (c *Controller) putVM(r *http.Request) (int, any, error) {
	var v VM
	if err := body(r, &v); err != nil {
		return 0, nil, err
	}
	if err := named("vm", r.PathValue("name"), &v.Name); err != nil {
		return 0, nil, err
	}
	v, err := v.normal()
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(now time.Time) (any, error) {
		old, ok := c.inv.vms[v.Name]
		if v.Hypervisor == "" {
			v.Hypervisor = old.Hypervisor
		}
		v.Version, v.Placed = old.Version, old.Placed
		if ok && old.same(v) {
			return put{false, old}, nil
		}
		if _, there := c.inv.hvs[v.Hypervisor]; v.Hypervisor != "" && !there {
			return nil, fail(http.StatusConflict, "vm %s: no hypervisor %q: put it first", v.Name, v.Hypervisor)
		}
		if o, what := c.inv.conflict(v); o != "" {
			return nil, fail(http.StatusConflict, "vm %s: vm %s has %s already", v.Name, o, what)
		}
		if m := c.moving(v.Name); m != nil {
			return nil, fail(http.StatusConflict, "vm %s cannot change now: %s", v.Name, m.summary())
		}
		if v.Hypervisor != old.Hypervisor {
			v.Placed = now
		}
		c.setVM(v)
		for _, p := range c.peers {
			p.set(v.Name, agentVM{v.Interface, v.MACs, v.EIDs})
		}
		return put{!ok, v}, nil
	})
}

func (c *Controller) deleteVM(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("vm", c.inv.vms, name); err != nil {
			return nil, err
		}
		if m := c.moving(name); m != nil {
			return nil, fail(http.StatusConflict, "vm %s cannot be removed now: %s", name, m.summary())
		}
		c.inv.delVM(name)
		c.dirty.delVM(name)
		for _, p := range c.peers {
			p.forget(name)
		}
		return nil, nil
	})
}

// Moves.

func (c *Controller) listMoves(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	vm, state, limit := q.Get("vm"), State(q.Get("state")), defaultLimit
	if state != "" && !slices.Contains(States, state) {
		return 0, nil, fail(http.StatusBadRequest, "state=%q: want one of %v", state, States)
	}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, nil, fail(http.StatusBadRequest, "limit=%q: want a number, 0 = all", s)
		}
		limit = n
	}
	return c.read(r, func() (any, error) { return c.recent(vm, state, limit), nil })
}

// recent lists moves, newest first. 0 = no limit.
func (c *Controller) recent(vm string, state State, limit int) []Record {
	out := []Record{}
	for _, e := range slices.Backward(c.order) {
		if vm != "" && e.m.VM != vm || state != "" && e.m.State != state {
			continue
		}
		if out = append(out, e.m.Record); len(out) == limit {
			break
		}
	}
	return out
}

func (c *Controller) getMove(r *http.Request) (int, any, error) {
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	rec, err := c.waitFor(r, wait, r.PathValue("id"), func(m Record) bool { return m.State.Ended() })
	return http.StatusOK, rec, err
}

func (c *Controller) waitFor(r *http.Request, wait time.Duration, id string, until func(Record) bool) (Record, error) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	return c.await(ctx, id, until)
}

// MoveRequest is the body of PUT /v1/moves/{id}.
type MoveRequest struct {
	VM string `json:"vm"`
	To string `json:"to"` // hypervisor
}

func (c *Controller) putMove(r *http.Request) (int, any, error) {
	id := r.PathValue("id")
	wait, err := waitOf(r, 30*time.Second)
	if err != nil {
		return 0, nil, err
	}
	var in MoveRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	begin := func(now time.Time) (any, error) { return c.prepare(id, in, now) }
	v, err := c.change(r.Context(), begin)
	var e *Error
	if errors.As(err, &e) && e.Move != nil && e.Move.State == Prepared {
		// The VM may run on the target of that move already, and we do not know yet.
		c.look(r.Context(), e.Move.ID)
		v, err = c.change(r.Context(), begin)
	}
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	if v.(put).created {
		status = http.StatusCreated
	}
	rec, err := c.waitFor(r, wait, id, func(m Record) bool { return m.State != Preparing && m.State != Aborting })
	if err != nil {
		return 0, nil, err
	}
	switch {
	case rec.State != Aborting && rec.State != Aborted:
		return status, rec, nil
	case v.(put).created:
		return 0, nil, &Error{http.StatusBadGateway, "move " + id + " was not prepared: " + or(rec.Error, rec.Why), &rec}
	}
	return 0, nil, &Error{http.StatusConflict, "move " + id + " is " + string(rec.State) + ": " + or(rec.Error, rec.Why) + "; take another id", &rec}
}

// prepare begins a move, or finds it begun.
func (c *Controller) prepare(id string, in MoveRequest, now time.Time) (any, error) {
	if !idForm.MatchString(id) {
		return nil, fail(http.StatusBadRequest, "move id %q: want 1 to 128 of A-Z a-z 0-9 . _ : -, a letter or digit first", id)
	}
	if e := c.moves[id]; e != nil {
		if e.m.VM != in.VM || e.m.To != in.To {
			return nil, fail(http.StatusConflict, "move %s is another one: of %s to %s", id, e.m.VM, e.m.To)
		}
		return put{false, nil}, nil
	}
	v, ok := c.inv.vms[in.VM]
	if !ok {
		return nil, fail(http.StatusNotFound, "no vm %q", in.VM)
	}
	to, ok := c.inv.hvs[in.To]
	if !ok {
		return nil, fail(http.StatusNotFound, "no hypervisor %q", in.To)
	}
	from, ok := c.inv.hvs[v.Hypervisor]
	if !ok {
		return nil, fail(http.StatusConflict, "nobody has said where vm %s runs: put its hypervisor first", v.Name)
	}
	if m := c.moving(v.Name); m != nil {
		rec := *m
		return nil, &Error{http.StatusConflict, fmt.Sprintf("vm %s is being moved already: %s; commit or abort that first", v.Name, m.summary()), &rec}
	}
	if from.Name == to.Name {
		return nil, fail(http.StatusConflict, "vm %s runs on %s already", v.Name, to.Name)
	}
	c.seq++
	e := &entry{m: Move{
		Record: Record{
			ID: id, VM: v.Name, EIDs: v.EIDs, From: from.Name, FromSite: from.Site, To: to.Name, ToSite: to.Site,
			State: Preparing, Times: Times{PrepareStarted: now}, Dropped: map[string]uint64{}, Why: "asked for",
		},
		Seq: c.seq, MACs: v.MACs, Interface: v.Interface, Open: true, Since: now, Known: c.versionOf(v),
		Src: from.side(), Tgt: to.side(),
	}}
	c.insert(e)
	c.counters.add("moves asked for", 1)
	c.log.Info("move", "move", id, "vm", v.Name, "from", from.Name, "to", to.Name, "state", string(Preparing))
	c.event(id, evTick{}, now)
	return put{true, nil}, nil
}

// steer applies a caller's wish to a move; ok says from which states on it is done or being done.
func (c *Controller) steer(r *http.Request, def time.Duration, ev event, done func(State) bool, until func(Record) bool, what string) (int, any, error) {
	id := r.PathValue("id")
	wait, err := waitOf(r, def)
	if err != nil {
		return 0, nil, err
	}
	_, err = c.change(r.Context(), func(now time.Time) (any, error) {
		e := c.moves[id]
		if e == nil {
			return nil, fail(http.StatusNotFound, "no move %q", id)
		}
		c.event(id, ev, now)
		if !done(e.m.State) {
			rec := e.m.Record
			return nil, &Error{http.StatusConflict, fmt.Sprintf("move %s cannot be %s: it is %s: %s", id, what, rec.State, or(rec.Error, rec.Why)), &rec}
		}
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	rec, err := c.waitFor(r, wait, id, until)
	if err != nil {
		return 0, nil, err
	}
	if !done(rec.State) {
		return 0, nil, &Error{http.StatusConflict, fmt.Sprintf("move %s was not %s: %s", id, what, or(rec.Error, rec.Why)), &rec}
	}
	return http.StatusOK, rec, nil
}

func (c *Controller) commitMove(r *http.Request) (int, any, error) {
	return c.steer(r, 0, evCommit{"committed by the API"}, State.arrived,
		func(m Record) bool { return m.State != Running }, "committed")
}

func (c *Controller) abortMove(r *http.Request) (int, any, error) {
	undone := func(s State) bool { return s == Aborting || s == Aborted }
	return c.steer(r, 30*time.Second, evAbort{"aborted by the API"}, undone,
		func(m Record) bool { return m.State != Aborting }, "aborted")
}

// randomHex is n random bytes in hexadecimal.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
