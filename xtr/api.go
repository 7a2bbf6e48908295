package xtr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 1 << 20

// VMSpec is what the controller knows of a VM: the body of PUT /v1/vms/{vm}.
type VMSpec struct {
	Interface string     `json:"interface"` // empty: not known
	MACs      []string   `json:"macs"`
	EIDs      []lisp.EID `json:"eids"`
}

// HandoverSpec prepares a handover: the body of PUT /v1/handovers/{id}.
type HandoverSpec struct {
	Role      Role         `json:"role"`
	VM        string       `json:"vm"`
	Interface string       `json:"interface,omitempty"` // empty: not known (yet)
	MACs      []string     `json:"macs"`
	EIDs      []lisp.EID   `json:"eids"`
	PeerRLOC  netip.Addr   `json:"peer_rloc"`
	PeerXTRID lisp.XTRID   `json:"peer_xtr_id"`
	Version   lisp.Version `json:"version"` // of the mapping as it is; 0: not known
}

// Handler serves the agent's API:
//
//	GET    /v1/node                     what this xTR is: its EID prefixes, interfaces, MTU
//	GET    /v1/local                    EIDs that live here, as they were seen
//	GET    /v1/vms
//	PUT    /v1/vms/{vm}                 what the controller knows of a VM
//	DELETE /v1/vms/{vm}
//	GET    /v1/guests                   what the hypervisors say of VMs
//	GET    /v1/handovers                with ?vm=NAME those of one VM
//	GET    /v1/handovers/{id}
//	PUT    /v1/handovers/{id}           prepare
//	POST   /v1/handovers/{id}/commit    the VM runs at the target
//	POST   /v1/handovers/{id}/abort     the VM stays at the source
//	POST   /v1/events                   what a hypervisor tells of a VM
//	POST   /v1/announcements            a VM is about to arrive here, from wherever it is
//
// All of it is idempotent. Bodies are JSON; an error is {"error": "..."} with status 400, 404 or 409.
func (x *XTR) Handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, "GET /v1/node", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, x.nodeInfo)
	})
	handle(mux, "GET /v1/local", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(now time.Time) (any, error) { return x.showLocal(now), nil })
	})
	handle(mux, "GET /v1/vms", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(time.Time) (any, error) { return x.listVMs(), nil })
	})
	handle(mux, "PUT /v1/vms/{vm}", func(ctx context.Context, r *http.Request, s VMSpec) (any, error) {
		return call(ctx, x, false, func(now time.Time) (any, error) { return nil, x.putVM(r.PathValue("vm"), s, now) })
	})
	handle(mux, "DELETE /v1/vms/{vm}", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(now time.Time) (any, error) { return nil, x.deleteVM(r.PathValue("vm"), now) })
	})
	handle(mux, "GET /v1/handovers", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(time.Time) (any, error) { return x.records(r.URL.Query().Get("vm")), nil })
	})
	handle(mux, "GET /v1/handovers/{id}", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(time.Time) (any, error) { return x.record(r.PathValue("id")) })
	})
	handle(mux, "PUT /v1/handovers/{id}", func(ctx context.Context, r *http.Request, s HandoverSpec) (any, error) {
		return saved(ctx, x, func(now time.Time) (Handover, error) { return x.prepare(r.PathValue("id"), s, now) })
	})
	handle(mux, "POST /v1/handovers/{id}/commit", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, true, func(now time.Time) (any, error) { return x.commit(r.PathValue("id"), now) })
	})
	handle(mux, "POST /v1/handovers/{id}/abort", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, true, func(now time.Time) (any, error) { return x.abort(r.PathValue("id"), now) })
	})
	handle(mux, "POST /v1/events", func(ctx context.Context, r *http.Request, ev VMEvent) (any, error) {
		return nil, x.VMEvent(ctx, ev)
	})
	handle(mux, "GET /v1/guests", func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return call(ctx, x, false, func(now time.Time) (any, error) { return x.showGuests(now), nil })
	})
	handle(mux, "POST /v1/announcements", func(ctx context.Context, r *http.Request, a Announcement) (any, error) {
		return saved(ctx, x, func(now time.Time) (Handover, error) { return x.announce(a, now) })
	})
	return mux
}

// saved is call for what has to be on disk when it is answered.
func saved(ctx context.Context, x *XTR, f func(now time.Time) (Handover, error)) (any, error) {
	var done <-chan struct{}
	h, err := call(ctx, x, true, func(now time.Time) (any, error) {
		h, err := f(now)
		done = x.saver.saved(now)
		return h, err
	})
	if err != nil {
		return nil, err
	}
	select {
	case <-done:
	case <-x.ended:
	case <-ctx.Done():
	}
	return h, nil
}

// handle serves one pattern: it decodes the body into B and encodes the answer. Nothing to answer is 204.
func handle[B any](mux *http.ServeMux, pattern string, f func(ctx context.Context, r *http.Request, body B) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var body B
		if err := decodeBody(w, r, &body); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		v, err := f(r.Context(), r, body)
		switch {
		case errors.Is(err, ErrInvalid):
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		case errors.Is(err, ErrNotFound):
			answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
		case errors.Is(err, ErrConflict):
			answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
		case err != nil:
			answer(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
		case v == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			answer(w, http.StatusOK, v)
		}
	})
}

// decodeBody reads the JSON of a request with a body; one that has none leaves v as it is.
func decodeBody(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return fmt.Errorf("xtr: read the request: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("xtr: request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("xtr: request: more than one JSON value")
	}
	return nil
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // the caller has gone, if this fails
}

// macs normalizes MAC addresses.
func macs(in []string) ([]string, error) {
	out := make([]string, 0, len(in))
	for _, s := range in {
		m, err := net.ParseMAC(s)
		if err != nil || len(m) != 6 {
			return nil, fmt.Errorf("%w: MAC address %q", ErrInvalid, s)
		}
		if t := m.String(); !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out, nil
}

// vmEIDs checks the EIDs of a VM.
func (x *XTR) vmEIDs(in []lisp.EID) ([]lisp.EID, error) {
	var out []lisp.EID
	for _, e := range in {
		switch {
		case !e.IsValid() || !e.IsHost():
			return nil, fmt.Errorf("%w: EID %v is no host address", ErrInvalid, e)
		case !x.cfg.own(e):
			return nil, fmt.Errorf("%w: EID %v is not in the cloud's EID prefixes", ErrInvalid, e)
		case !slices.Contains(out, e):
			out = append(out, e)
		}
	}
	slices.SortFunc(out, lisp.EID.Compare)
	return out, nil
}

// listVMs lists what the controller has told.
func (x *XTR) listVMs() []vm {
	out := []vm{}
	for _, name := range slices.Sorted(maps.Keys(x.loc.specs)) {
		out = append(out, *x.loc.specs[name])
	}
	return out
}

// recentFrame is how old the last frame of a MAC address may be to say that a VM that becomes known runs here.
const recentFrame = 5 * time.Minute

func (x *XTR) putVM(name string, s VMSpec, now time.Time) error {
	ms, err := macs(s.MACs)
	if err != nil {
		return err
	}
	eids, err := x.vmEIDs(s.EIDs)
	if err != nil {
		return err
	}
	// What only a hypervisor says gives way.
	for _, e := range eids {
		if o := x.loc.owner[e]; o != nil && o.Name != name && x.loc.specs[o.Name] != nil {
			return fmt.Errorf("%w: EID %v is of VM %q", ErrConflict, e, o.Name)
		}
	}
	for _, m := range ms {
		if o := x.loc.byMAC[m]; o != nil && o.Name != name && x.loc.specs[o.Name] != nil {
			return fmt.Errorf("%w: MAC address %s is of VM %q", ErrConflict, m, o.Name)
		}
	}
	x.loc.specs[name] = &vm{Name: name, Interface: s.Interface, MACs: ms, EIDs: eids}
	names := map[string]bool{name: true}
	for _, e := range eids {
		if o := x.loc.owner[e]; o != nil {
			names[o.Name] = true
		}
	}
	x.knowGuests(names, now)
	x.know(name, now) // once more: what it has taken from others is free now
	if v := x.loc.vms[name]; v != nil {
		x.knownNow(v, now)
	}
	x.saver.mark(now)
	return nil
}

// knownNow looks whether a VM that has become known was seen here already.
func (x *XTR) knownNow(v *vm, now time.Time) {
	var p *port
	var mac string
	ev := evidence{why: "the VM was seen here before it was announced"}
	for _, m := range v.MACs {
		if seen, ok := x.loc.macs[m]; ok && x.loc.ports[seen.index] != nil && now.Sub(seen.at) < recentFrame &&
			x.loc.rightNIC(m, v.Interface, x.loc.ports[seen.index]) {
			p, mac, ev.at = x.loc.ports[seen.index], m, seen.at
		}
	}
	if p == nil {
		for _, e := range v.EIDs { // a new EID of a VM that runs here
			if le := x.loc.eids[e]; le != nil && x.loc.ports[le.index] != nil && x.active[e] == nil {
				p, ev.at = x.loc.ports[le.index], le.Seen
			}
		}
	}
	if p == nil {
		return
	}
	var eids []lisp.EID
	for _, e := range v.EIDs {
		if x.active[e] == nil {
			eids = append(eids, e)
		}
	}
	x.appear(eids, v.Name, p, mac, ev, now)
}

func (x *XTR) deleteVM(name string, now time.Time) error {
	if x.loc.specs[name] == nil {
		return fmt.Errorf("%w: VM %q", ErrNotFound, name)
	}
	delete(x.loc.specs, name)
	x.loc.deleteVM(name)
	x.knowGuests(map[string]bool{name: true}, now)
	x.saver.mark(now)
	return nil
}

// records lists the handovers of a VM; of all VMs if it has no name.
func (x *XTR) records(vm string) []Handover {
	out := make([]Handover, 0, len(x.order))
	for _, h := range x.order {
		if vm != "" && h.VM != vm {
			continue
		}
		rec := h.snapshot()
		rec.Redirected = x.redirected(h)
		out = append(out, rec)
	}
	return out
}

func (x *XTR) record(id string) (Handover, error) {
	h := x.handovers[id]
	if h == nil {
		return Handover{}, fmt.Errorf("%w: handover %q", ErrNotFound, id)
	}
	rec := h.snapshot()
	rec.Redirected = x.redirected(h)
	return rec, nil
}

// prepare begins a handover, or renews one that waits.
func (x *XTR) prepare(id string, s HandoverSpec, now time.Time) (Handover, error) {
	ms, err := macs(s.MACs)
	if err != nil {
		return Handover{}, err
	}
	eids, err := x.vmEIDs(s.EIDs)
	if err != nil {
		return Handover{}, err
	}
	switch {
	case s.Role != Source && s.Role != Target:
		return Handover{}, fmt.Errorf("%w: role %q is neither %q nor %q", ErrInvalid, s.Role, Source, Target)
	case len(eids) == 0:
		return Handover{}, fmt.Errorf("%w: a handover without EIDs", ErrInvalid)
	case !s.PeerRLOC.IsValid() || x.cfg.ownRLOC(s.PeerRLOC.Unmap()):
		return Handover{}, fmt.Errorf("%w: peer_rloc %v is not another xTR's", ErrInvalid, s.PeerRLOC)
	case s.Version > lisp.VersionMask:
		return Handover{}, fmt.Errorf("%w: version %d", ErrInvalid, s.Version)
	}
	s.MACs, s.EIDs, s.PeerRLOC = ms, eids, s.PeerRLOC.Unmap()
	for _, e := range eids {
		s.Version = newest(s.Version, x.reg.known(e))
		if c, ok := x.res.cache.Get(e); ok {
			s.Version = newest(s.Version, c.Mapping.Version)
		}
	}
	if h := x.handovers[id]; h != nil {
		return x.renew(h, s, now)
	}
	if s.Role == Source {
		if err := x.mayLeave(s, now); err != nil {
			return Handover{}, err
		}
	}
	h := x.begin(Handover{ID: id, VM: s.VM, Role: s.Role, EIDs: eids, PeerRLOC: s.PeerRLOC, Version: s.Version},
		ms, s.Interface, now)
	h.PeerXTRID, h.Prepared, h.To = s.PeerXTRID, true, locatorsTo(s.PeerRLOC)
	h.Times.Prepared = now
	x.exec(h, x.prepared(h, now), now)
	return h.snapshot(), nil
}

// prepared makes h ready.
func (x *XTR) prepared(h *handover, now time.Time) []op {
	switch {
	case h.Role == Target:
		h.to(Incoming, "prepared")
		if h.Hold == 0 {
			h.Hold = x.newHold(h)
		}
		for _, e := range h.EIDs {
			// If the source takes the VM back and nobody tells us, the mapping system does.
			x.res.want(e, netip.Addr{}, whyPrepared, false, now)
		}
		return []op{opRoutes}
	case h.State == Paused:
		h.Why = "prepared when the VM had stopped"
		return []op{opRoutes}
	}
	return x.arm(h, "prepared", now)
}

// arm makes a source keep copies of what its VM is given.
func (x *XTR) arm(h *handover, why string, now time.Time) []op {
	h.to(Armed, why)
	if !h.Flushing {
		h.Hold = x.newHold(h)
	}
	h.baseAt, h.Copying = now, true
	return []op{opLocal, opRoutes, opBase}
}

// mayLeave: a VM that is to leave has to be here. If a handover says that it is only about to come, or has left,
// the controller knows better.
func (x *XTR) mayLeave(s HandoverSpec, now time.Time) error {
	var olds []*handover
	here := false
	for _, e := range s.EIDs {
		if h := x.active[e]; h != nil && !slices.Contains(olds, h) {
			olds = append(olds, h)
		}
		here = here || x.loc.eids[e] != nil
	}
	for _, h := range olds {
		if h.Interface == "" {
			h.Interface = s.Interface
		}
		p := x.portOf(h)
		if h.Role == Source && h.State != Redirecting {
			continue
		}
		x.exec(h, h.seen(evidence{at: now, strong: true, why: "the controller says that the VM runs here"}, now, p != nil), now)
		here = true
	}
	if here {
		return nil
	}
	p := x.loc.names[s.Interface]
	for _, m := range s.MACs {
		if p == nil {
			p = x.loc.ports[x.loc.macs[m].index]
		}
	}
	if p == nil {
		return fmt.Errorf("%w: VM %q is not here: neither its EIDs nor its interface %q are", ErrConflict, s.VM, s.Interface)
	}
	x.appear(s.EIDs, s.VM, p, "", evidence{at: now, strong: true, why: "the controller says that the VM runs here"}, now)
	for _, e := range s.EIDs {
		if le := x.loc.eids[e]; le != nil && le.MAC == "" && len(s.MACs) > 0 {
			le.MAC = s.MACs[0]
		}
	}
	return nil
}

// renew takes a second prepare of the same handover.
func (x *XTR) renew(h *handover, s HandoverSpec, now time.Time) (Handover, error) {
	if h.Role != s.Role || h.VM != s.VM || !slices.Equal(h.EIDs, s.EIDs) {
		return Handover{}, fmt.Errorf("%w: handover %q is another one: %s of VM %q with %v", ErrConflict, h.ID, h.Role, h.VM, h.EIDs)
	}
	if h.State != Armed && h.State != Incoming {
		return h.snapshot(), nil
	}
	h.Heard = now
	h.Version = newest(h.Version, s.Version)
	h.PeerRLOC, h.PeerXTRID, h.To = s.PeerRLOC, s.PeerXTRID, locatorsTo(s.PeerRLOC)
	if s.Interface != "" {
		h.Interface = s.Interface
	}
	if len(s.MACs) > 0 {
		h.MACs = s.MACs
	}
	x.exec(h, []op{opRoutes}, now)
	return h.snapshot(), nil
}

func (x *XTR) commit(id string, now time.Time) (Handover, error) {
	h := x.handovers[id]
	if h == nil {
		return Handover{}, fmt.Errorf("%w: handover %q", ErrNotFound, id)
	}
	if h.State == Aborted || h.State == TakingBack {
		return Handover{}, fmt.Errorf("%w: handover %q was aborted: %s", ErrConflict, id, h.Why)
	}
	x.exec(h, h.commit(now, x.portOf(h) != nil), now)
	return h.snapshot(), nil
}

func (x *XTR) abort(id string, now time.Time) (Handover, error) {
	h := x.handovers[id]
	if h == nil {
		return Handover{}, fmt.Errorf("%w: handover %q", ErrNotFound, id)
	}
	ops, ok := h.abort(now, "aborted")
	if !ok {
		return Handover{}, fmt.Errorf("%w: handover %q is %s: %s", ErrConflict, id, h.State, h.Why)
	}
	x.exec(h, ops, now)
	return h.snapshot(), nil
}

// newest is the newer of two versions.
func newest(a, b lisp.Version) lisp.Version {
	if b.Newer(a) {
		return b
	}
	return a
}
