package xtr

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// ShowMapCache is one row of "map-cache".
type ShowMapCache struct {
	EID      lisp.EID     `json:"eid"`
	Version  lisp.Version `json:"version"`
	Locators string       `json:"locators"` // address/priority/weight
	Action   string       `json:"action"`   // of an entry without locators
	XTRID    string       `json:"xtr_id"`   // who registered it, if that was said
	Left     string       `json:"left"`     // until it expires
	Via      string       `json:"via"`      // who told us
	Age      string       `json:"age"`
}

// ShowLocal is one row of "local".
type ShowLocal struct {
	EID       lisp.EID     `json:"eid"`
	VM        string       `json:"vm"`
	Interface string       `json:"interface"`
	MAC       string       `json:"mac"`
	State     string       `json:"state"` // of the handover it takes part in, or "here", "interface gone"
	Version   lisp.Version `json:"version"`
	Learned   bool         `json:"learned"` // seen, not announced by the controller
	Since     time.Time    `json:"since"`
	Seen      time.Time    `json:"seen"` // the last evidence
}

// ShowRegistration is one row of "registrations": an EID at a Map-Server.
type ShowRegistration struct {
	EID       lisp.EID     `json:"eid"`
	MapServer string       `json:"map_server"`
	Version   lisp.Version `json:"version"`   // that we register; 0: the Map-Server is to number it
	State     string       `json:"state"`     // to be sent, sent, registered
	Confirmed lisp.Version `json:"confirmed"` // that the Map-Server confirmed last
	Heard     time.Time    `json:"heard"`     // when
	Tries     int          `json:"tries"`     // messages since
}

// ShowMove is one row of "moves".
type ShowMove struct {
	ID          string       `json:"id"`
	VM          string       `json:"vm"`
	Role        Role         `json:"role"`
	State       State        `json:"state"`
	EIDs        string       `json:"eids"`
	Peer        string       `json:"peer"`
	Version     lisp.Version `json:"version"`
	Prepared    time.Time    `json:"prepared,omitzero"`
	Paused      time.Time    `json:"paused,omitzero"`
	Redirecting time.Time    `json:"redirecting,omitzero"`
	Run         time.Time    `json:"run,omitzero"`
	Claimed     time.Time    `json:"claimed,omitzero"`
	Flushed     time.Time    `json:"flushed,omitzero"`
	Settled     time.Time    `json:"settled,omitzero"`
	Aborted     time.Time    `json:"aborted,omitzero"`
	Held        uint64       `json:"held"`
	Redirected  uint64       `json:"redirected"`
	Replayed    uint64       `json:"replayed"`
	Dropped     uint64       `json:"dropped"`
	Why         string       `json:"why"`
}

// ShowCounter is one row of "counters".
type ShowCounter struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Shows are the tables that an operator may look at.
func (x *XTR) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"map-cache":     show(x, x.showMapCache),
		"local":         show(x, x.showLocal),
		"registrations": show(x, x.showRegistrations),
		"moves":         show(x, x.showMoves),
		"rlocs":         show(x, x.showRLOCs),
		"guests":        show(x, x.showGuests),
		"counters":      show(x, x.showCounters),
	}
}

func show[T any](x *XTR, f func(now time.Time) []T) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) {
		return call(ctx, x, false, func(now time.Time) (any, error) { return f(now), nil })
	}
}

func locatorText(ls []lisp.Locator) string {
	var out []string
	for _, l := range ls {
		a := l.RLOC.String()
		if !l.RLOC.IsValid() {
			a = "unknown"
		}
		out = append(out, fmt.Sprintf("%s/%d/%d", a, l.Priority, l.Weight))
	}
	return strings.Join(out, " ")
}

func (x *XTR) showMapCache(now time.Time) []ShowMapCache {
	rows := []ShowMapCache{}
	for e, c := range x.res.cache.All() {
		row := ShowMapCache{EID: e, Version: c.Mapping.Version, Locators: locatorText(c.Mapping.Locators),
			Left: c.Expires.Sub(now).Round(time.Second).String(), Via: c.Via,
			Age: now.Sub(c.Installed).Round(time.Millisecond).String()}
		if c.Mapping.Negative() {
			row.Action = c.Mapping.Action.String()
		}
		if !c.Mapping.XTRID.IsZero() {
			row.XTRID = c.Mapping.XTRID.String()
		}
		rows = append(rows, row)
	}
	return rows
}

func (x *XTR) showLocal(time.Time) []ShowLocal {
	rows := []ShowLocal{}
	for _, le := range x.loc.sorted() {
		rows = append(rows, ShowLocal{EID: le.EID, VM: le.VM, Interface: le.Interface, MAC: le.MAC,
			State: x.localState(le), Version: x.reg.known(le.EID), Learned: le.Learned, Since: le.Since, Seen: le.Seen})
	}
	return rows
}

func (x *XTR) localState(le *localEID) string {
	if h := x.active[le.EID]; h != nil {
		return string(h.State)
	}
	if le.index == 0 {
		return "interface gone"
	}
	return "here"
}

func (x *XTR) showRegistrations(time.Time) []ShowRegistration {
	rows := []ShowRegistration{}
	for _, reg := range x.reg.all() {
		for i, p := range reg.peers {
			state := p.told.String()
			if reg.delete {
				state = "deregistering"
			}
			rows = append(rows, ShowRegistration{EID: reg.eid, MapServer: x.cfg.MapServers[i].Addr.String(),
				Version: reg.version, State: state, Confirmed: p.version, Heard: p.heard, Tries: p.tries})
		}
	}
	return rows
}

func (x *XTR) showMoves(time.Time) []ShowMove {
	rows := []ShowMove{}
	for _, h := range x.order {
		var eids []string
		for _, e := range h.EIDs {
			eids = append(eids, e.String())
		}
		row := ShowMove{ID: h.ID, VM: h.VM, Role: h.Role, State: h.State, EIDs: strings.Join(eids, " "),
			Version: h.Version, Prepared: h.Times.Prepared, Paused: h.Times.Paused, Redirecting: h.Times.Redirecting,
			Run: h.Times.Run, Claimed: h.Times.Claimed, Flushed: h.Times.Flushed, Settled: h.Times.Settled,
			Aborted: h.Times.Aborted, Held: h.Held, Redirected: x.redirected(h), Replayed: h.Replayed, Why: h.Why}
		if h.PeerRLOC.IsValid() {
			row.Peer = h.PeerRLOC.String()
		}
		for _, n := range h.Dropped {
			row.Dropped += n
		}
		rows = append(rows, row)
	}
	return rows
}

func (x *XTR) showCounters(time.Time) []ShowCounter {
	all := maps.Clone(x.counts)
	all["map-cache-entries"] = uint64(x.res.cache.Len())
	all["map-cache-evicted"] = x.res.full
	all["map-requests-open"] = uint64(len(x.res.queries))
	all["local-eids"] = uint64(len(x.loc.eids))
	all["routes"] = uint64(len(x.routes))
	all["routes-dirty"] = uint64(len(x.dirty))
	all["handovers-open"] = uint64(len(x.open))
	rows := []ShowCounter{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		rows = append(rows, ShowCounter{k, all[k]})
	}
	return rows
}

// Explain says what is believed of e, and why.
func (x *XTR) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	return call(ctx, x, false, func(now time.Time) ([]lisp.Finding, error) { return x.explain(e, now), nil })
}

func (x *XTR) explain(e lisp.EID, now time.Time) []lisp.Finding {
	var out []lisp.Finding
	add := func(part, why, says string, args ...any) {
		out = append(out, lisp.Finding{Part: part, Says: fmt.Sprintf(says, args...), Why: why})
	}
	if le := x.loc.eids[e]; le != nil {
		why := "announced by the controller, and seen"
		if le.Learned {
			why = "seen at the interface"
		} else if x.loc.specs[le.VM] == nil {
			why = "in the metadata of the VM, and seen"
		}
		add("local", fmt.Sprintf("%s, last %v ago", why, now.Sub(le.Seen).Round(time.Millisecond)),
			"VM %q, MAC address %s, interface %s: %s", le.VM, le.MAC, le.Interface, x.localState(le))
	} else if v := x.loc.owner[e]; v != nil {
		why := "announced by the controller"
		if x.loc.specs[v.Name] == nil {
			why = "in the metadata of the VM"
		}
		add("local", why, "VM %q may run here, but has not been seen", v.Name)
	}
	if h := x.active[e]; h != nil {
		add("moves", h.Why, "handover %s as %s: %s, peer %v", h.ID, h.Role, h.State, h.PeerRLOC)
	}
	if reg := x.reg.regs[e]; reg != nil {
		for i, p := range reg.peers {
			why := "not confirmed"
			if !p.heard.IsZero() {
				why = fmt.Sprintf("confirmed %v ago with version %d", now.Sub(p.heard).Round(time.Millisecond), p.version)
			}
			add("registrations", why, "ours, version %d, at Map-Server %v: %v", reg.version, x.cfg.MapServers[i].Addr, p.told)
		}
	}
	if h := x.reg.history[e]; h != nil && !h.learned.IsZero() {
		why := fmt.Sprintf("a Map-Server told us %v ago", now.Sub(h.learned).Round(time.Millisecond))
		if now.Before(h.frozen) {
			why += fmt.Sprintf("; claimed to and fro too often: no claim for %v", h.frozen.Sub(now).Round(time.Second))
		}
		add("registrations", why, "xTR %v had it at %s, version %d", h.elsewhere.XTRID, locatorText(h.elsewhere.Locators), h.elsewhere.Version)
	}
	if found, c, ok := x.res.cache.LookupEID(e); ok {
		says := locatorText(c.Mapping.Locators)
		if c.Mapping.Negative() {
			says = c.Mapping.Action.String()
		}
		add("map-cache", fmt.Sprintf("%s, %v ago, for another %v", c.Via, now.Sub(c.Installed).Round(time.Millisecond),
			c.Expires.Sub(now).Round(time.Second)), "%v: %s, version %d", found, says, c.Mapping.Version)
	}
	if q := x.res.queries[e]; q != nil {
		add("map-cache", q.why, "asked for %d times in %v", q.tries, now.Sub(q.started).Round(time.Millisecond))
	}
	if r, what := x.desired(e); what == routeSet {
		why := "as the data plane has it"
		if have, ok := x.routes[e]; !ok || !sameRoute(have, r) {
			why = "the data plane does not have it yet"
		}
		add("route", why, "%s", routeText(r))
	}
	return out
}

func routeText(r fib.Route) string {
	var b strings.Builder
	switch r.Do {
	case fib.Encap:
		fmt.Fprintf(&b, "encapsulate to %s", locatorText(r.Locators))
	case fib.Deliver:
		fmt.Fprintf(&b, "deliver to %s at interface %d", r.MAC, r.If)
	case fib.Hold:
		fmt.Fprintf(&b, "hold in queue %d", r.Hold)
		if len(r.Locators) > 0 {
			fmt.Fprintf(&b, ", from here encapsulate to %s", locatorText(r.Locators))
		}
	case fib.Native:
		b.WriteString("the host's own routing")
	case fib.Drop:
		b.WriteString("drop")
	default:
		b.WriteString("ask the mapping system")
	}
	if r.Transit {
		b.WriteString(", also what comes encapsulated")
	}
	if r.Copy {
		b.WriteString(", keep copies")
	}
	if r.Do != fib.Hold && r.Hold != 0 {
		fmt.Fprintf(&b, ", after what is held in queue %d", r.Hold)
	}
	return b.String()
}
