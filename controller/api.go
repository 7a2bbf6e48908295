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
		{"PUT", "/v1/vms/{name}/owner", `{"owner"}`, "200 vm, 404", "say whose it is", c.putOwner},
		{"GET", "/v1/vms/{name}/addresses", "", "200 addresses, 404", "assigned EIDs, and what the agents have seen", c.getAddresses},
		{"PUT", "/v1/vms/{name}/definition?hypervisor=", "domain XML", "200 vm, 409 no driver, 502", "define it at its hypervisor, or at another", c.putDefinition},
		{"POST", "/v1/vms/{name}/{action}?hypervisor=", "", "200 vm, 409, 502", "start, stop, kill, hibernate, resume or pause it", c.controlVM},
		{"POST", "/v1/preflight", "migration request", "200 preflight, 404, 409", "whether a migration could go well; changes nothing", c.postPreflight},
		{"POST", "/v1/migrations", "migration request", "202 migration, 403 policy, 404, 409 no driver, being moved", "migrate a VM", c.postMigration},
		{"GET", "/v1/migrations?vm=&phase=&drain=&limit=", "", "200 [migration], newest first", "list migrations (phase=open: not ended; limit: default 100, 0 = all)", c.listMigrations},
		{"GET", "/v1/migrations/{id}?wait=&after=", "", "200 migration, 404", "show one; wait=DURATION waits until its seq is above after, or it has ended", c.getMigration},
		{"POST", "/v1/migrations/{id}/cancel?wait=", "", "200 migration, 409 too late", "end it; the VM stays (wait: default 10s)", c.cancelMigration},
		{"POST", "/v1/migrations/{id}/postcopy", "", "200 migration, 409", "switch over now, memory follows", c.postCopyMigration},
		{"POST", "/v1/migrations/{id}/detach", "", "200 migration", "say that nobody watches it any more", c.detachMigration},
		{"POST", "/v1/hypervisors/{name}/drain", `migration request without vm, and "plan_only"`, "202 drain; plan_only: 200 [planned move]", "take every VM away, and place none there", c.postDrain},
		{"GET", "/v1/hypervisors/{name}/drain", "", "200 drain, 404", "how far that has come", c.getDrain},
		{"POST", "/v1/hypervisors/{name}/undrain", "", "200 hypervisor, 404", "use it again; what is queued is cancelled", c.postUndrain},
		{"POST", "/v1/announcements", `{"vm" or "uuid" or "macs","to"}`, "201 or 200 announced, 404, 409", "somebody else is about to migrate a VM: prepare", c.postAnnouncement},
		{"GET", "/v1/services?vm=", "", "200 [service]", "list service addresses, and how far each has come", c.listServices},
		{"POST", "/v1/services", `{"services":[{"outside","vm","inside"}],"dry_run","partial"}`, "200 results", "add many: all or, if one is refused and not partial, none", c.postServices},
		{"GET", "/v1/services/{outside}?wait=", "", "200 service, 404", "show one (203.0.113.0-28 is 203.0.113.0/28); wait=DURATION waits until every Map-Server has confirmed it", c.getService},
		{"PUT", "/v1/services/{outside}?wait=", `{"vm"} or {"inside"}`, "201 or 200 service, 404, 409 taken", "give a VM a service address", c.putService},
		{"DELETE", "/v1/services/{outside}?wait=&force=", "", "202 service, 204, 404", "take it away; 204 when every Map-Server has forgotten it (force=true: also one that is not known here)", c.dropService},
		{"POST", "/v1/services/{outside}/move?wait=", `{"vm"} or {"inside"}`, "200 service, 404, 409 taken", "give it to another VM, or EID", c.moveService},
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
		limit := int64(maxBody)
		if req.URL.Path == "/v1/services" {
			limit = maxServices
		}
		req.Body = http.MaxBytesReader(w, req.Body, limit)
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
	fmt.Fprintln(tw, `site        {"name","description","owners":[],"lend":{"cpus","memory","owners":[],"vms":[],"from_sites":[]},"shared_storage":[]}`)
	fmt.Fprintln(tw, `hypervisor  {"name","site","rloc","xtr_id","site_id","agent","token","locators":[{"rloc","priority","weight"}],"driver","driver_peer","migrate_uri","cpus","memory"}`)
	fmt.Fprintln(tw, `vm          {"name","hypervisor","macs":[],"eids":[],"interface","owner","uuid","cpus","memory"}`)
	fmt.Fprintln(tw, `service     {"outside","inside","vm","kind","state","version","created","changed","problem","map_servers":[{"server","confirmed","version","at","error"}]}`)
	fmt.Fprintln(tw, `migration request  {"vm","to" or "site","mode","copy_storage","disks":[],"bandwidth","max_downtime","auto_converge","compress","parallel","timeout","on_slow"}`)
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
		return fail(http.StatusRequestEntityTooLarge, "body: more than %d bytes", tooBig.Limit)
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

// randomHex is n random bytes in hexadecimal.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
