package xtr

import (
	"bytes"
	"net"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// How long it takes until routes that the data plane did not take are tried again; doubled each time.
const (
	routeRetry    = 100 * time.Millisecond
	routeRetryMax = 10 * time.Second
)

// program tells the data plane what has changed of the routes for eids.
func (x *XTR) program(now time.Time, eids ...lisp.EID) {
	var set []fib.Route
	var del []lisp.EID
	for _, e := range eids {
		delete(x.dirty, e)
		r, what := x.desired(e)
		old, have := x.routes[e]
		switch what {
		case routeSet:
			if !have || !sameRoute(old, r) {
				set = append(set, r)
			}
		case routeNone:
			if have {
				del = append(del, e)
			}
		}
	}
	if len(set) > 0 && !x.set(now, set...) && len(set) > 1 {
		for _, r := range set { // one that is not taken must not keep the others out
			x.set(now, r)
		}
	}
	if len(del) > 0 {
		if err := x.dp.Del(x.ctx, del...); err != nil {
			x.failed(now, "delete routes", err)
			for _, e := range del {
				x.dirty[e] = true
			}
		} else {
			for _, e := range del {
				delete(x.routes, e)
			}
		}
	}
	if len(x.dirty) == 0 {
		x.retries = 0
	}
}

func (x *XTR) set(now time.Time, rs ...fib.Route) bool {
	err := x.dp.Set(x.ctx, rs...)
	if err != nil {
		x.failed(now, "set routes", err)
	}
	for _, r := range rs {
		x.probe.news = x.probe.news || len(r.Locators) > 1
		if err != nil {
			x.dirty[r.EID] = true
			x.routes[r.EID] = fib.Route{EID: r.EID} // nobody knows what it has
		} else {
			delete(x.dirty, r.EID)
			x.routes[r.EID] = r
		}
	}
	return err == nil
}

func (x *XTR) failed(now time.Time, what string, err error) {
	x.count("dataplane-errors")
	x.warn(now, "data plane: "+what, "err", err)
	if x.retry.IsZero() {
		x.retry = now.Add(min(routeRetry<<min(x.retries, 10), routeRetryMax))
		x.retries++
	}
}

// routeWhat says what desired has to say.
type routeWhat uint8

const (
	routeNone routeWhat = iota // there should be no route
	routeSet                   // there should be this one
	routeKeep                  // it cannot be said yet: what is there stays
)

// desired is the route that should be there for exactly e: what a handover says, else the VM that runs here,
// else the map-cache.
func (x *XTR) desired(e lisp.EID) (fib.Route, routeWhat) {
	le := x.loc.eids[e]
	if h := x.active[e]; h != nil {
		if r, ok := h.route(e); ok {
			return x.complete(r, h, le)
		}
	}
	if le != nil {
		if le.index == 0 {
			return fib.Route{}, routeKeep
		}
		return fib.Route{EID: e, Do: fib.Deliver, If: le.index, MAC: hardwareAddr(le.MAC)}, routeSet
	}
	if c, ok := x.res.cache.Get(e); ok {
		return x.remote(c.Mapping), routeSet
	}
	return fib.Route{}, routeNone
}

// complete fills in what only the engine knows of a handover's route.
func (x *XTR) complete(r fib.Route, h *handover, le *localEID) (fib.Route, routeWhat) {
	switch r.Do {
	case fib.Encap:
		r.MTU = uint16(x.cfg.MTU)
		if p := x.portFor(h, r.EID); p != nil && r.Watch {
			r.If = p.index
		} else {
			r.Watch = false // from any interface it would let others use the VM's address
		}
	case fib.Hold:
		if p := x.portFor(h, r.EID); p != nil {
			r.If = p.index
		}
		if len(r.Locators) > 0 {
			r.MTU = uint16(x.cfg.MTU)
		}
	case fib.Deliver:
		p := x.portFor(h, r.EID)
		if p == nil {
			if h.Role == Target && h.Hold != 0 && r.Hold == 0 && h.State == Running {
				return fib.Route{EID: r.EID, Do: fib.Hold, Hold: h.Hold, Watch: true}, routeSet
			}
			return fib.Route{}, routeKeep
		}
		r.If = p.index
		if le != nil && le.MAC != "" {
			r.MAC = hardwareAddr(le.MAC)
		} else if len(h.MACs) > 0 {
			r.MAC = hardwareAddr(h.MACs[0])
		}
	}
	return r, routeSet
}

// portFor is the interface at which e of a handover's VM is; nil if it is not there or not known. It matters which
// only for VMs that have several.
func (x *XTR) portFor(h *handover, e lisp.EID) *port {
	if le := x.loc.eids[e]; le != nil && len(x.macsOf(h.VM, h)) > 1 {
		if p := x.loc.portOfMAC(le.MAC); p != nil && le.Exact {
			return p
		}
		if p := x.loc.ports[le.index]; p != nil && (h.Role == Source || h.State == Running) {
			return p
		}
	}
	return x.portOf(h)
}

// portsOf lists the interfaces of a handover's VM that are there.
func (x *XTR) portsOf(h *handover) (out []*port) {
	for _, e := range h.EIDs {
		if p := x.portFor(h, e); p != nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// portOf is the interface of a handover's VM, one of them; nil if it is not there or not known.
func (x *XTR) portOf(h *handover) *port {
	for _, m := range x.macsOf(h.VM, h) { // the hypervisor knows what its interfaces are called
		if p := x.loc.names[x.loc.nics[m]]; p != nil {
			return p
		}
	}
	if p := x.loc.names[h.Interface]; p != nil && h.Interface != "" {
		return p
	}
	if p := x.loc.ports[h.seenIf]; p != nil {
		return p
	}
	if v := x.loc.vms[h.VM]; v != nil && v.Interface != "" && x.loc.names[v.Interface] != nil {
		return x.loc.names[v.Interface]
	}
	if h.Role == Source || h.State == Running {
		for _, e := range h.EIDs {
			if le := x.loc.eids[e]; le != nil && x.loc.ports[le.index] != nil {
				return x.loc.ports[le.index]
			}
		}
	}
	for _, m := range h.MACs {
		if p := x.loc.ports[x.loc.macs[m].index]; p != nil {
			return p
		}
	}
	return nil
}

// remote is the route for what the map-cache says (RFC 9301 section 5.4).
func (x *XTR) remote(m lisp.Mapping) fib.Route {
	r := fib.Route{EID: m.EID}
	if !m.Negative() {
		r.Do, r.Locators, r.MTU = fib.Encap, x.usable(m.Locators), uint16(x.cfg.MTU)
		if len(r.Locators) == 0 {
			r.Do, r.MTU = fib.Drop, 0
		}
		return r
	}
	switch m.Action {
	case lisp.ActSendMapRequest:
		r.Do = fib.Miss
	case lisp.ActDrop, lisp.ActDropPolicyDenied, lisp.ActDropAuthFailure:
		r.Do = fib.Drop
	default:
		if r.Locators = x.usable(x.cfg.PETRs); len(r.Locators) > 0 {
			r.Do, r.MTU = fib.Encap, uint16(x.cfg.MTU)
		} else {
			r.Do, r.Locators = fib.Native, nil
		}
	}
	return r
}

// usable are the locators that packets may be sent to: not our own, which would be sent for ever.
func (x *XTR) usable(ls []lisp.Locator) []lisp.Locator {
	var out []lisp.Locator
	for _, l := range ls {
		if l.Usable() && !x.cfg.ownRLOC(l.RLOC) {
			out = append(out, l)
		}
	}
	return out
}

// sameRoute compares everything.
func sameRoute(a, b fib.Route) bool {
	return a.EID == b.EID && a.Do == b.Do && slices.Equal(a.Locators, b.Locators) && a.MTU == b.MTU &&
		a.Transit == b.Transit && a.Moved == b.Moved && a.If == b.If &&
		bytes.Equal(a.MAC, b.MAC) && a.Copy == b.Copy && a.Watch == b.Watch && a.Hold == b.Hold
}

// packets is how many packets have taken the routes for exactly these EIDs, if the data plane knows.
func (x *XTR) packets(eids ...lisp.EID) (sum uint64, ok bool) {
	u, ok := x.dp.(usage)
	for _, e := range eids {
		if !ok {
			return 0, false
		}
		var n uint64
		n, ok = u.Packets(e)
		sum += n
	}
	return sum, ok
}

// redirected is how many packets a source has sent on, those that are not done with being held excepted.
func (x *XTR) redirected(h *handover) uint64 {
	if !h.counting {
		return h.Redirected
	}
	n, ok := x.packets(h.EIDs...)
	if !ok || n < h.counted {
		return h.Redirected
	}
	return h.Redirected + n - h.counted
}

// usedSince reports whether packets took the route for e since the last call.
func (x *XTR) usedSince(e lisp.EID) bool {
	n, ok := x.packets(e)
	if !ok {
		return false
	}
	before := x.used[e]
	x.used[e] = n
	return n != before
}

// syncLocal tells the gateway where the VM with the address of e runs.
func (x *XTR) syncLocal(e lisp.EID) {
	if e.IID != x.cfg.IID || !e.IsHost() {
		return
	}
	a := e.Prefix.Addr()
	le := x.loc.eids[e]
	here := le != nil && le.index != 0
	if h := x.active[e]; h != nil && (h.State == Incoming || h.State == Redirecting || h.State == GivingBack) {
		here = false
	}
	if here {
		x.local.Store(a, le.index)
	} else {
		x.local.Delete(a)
	}
}

func sameMAC(a, b string) bool {
	return a == b || bytes.Equal(hardwareAddr(a), hardwareAddr(b)) && hardwareAddr(a) != nil
}

// macText is m as it is kept in state; empty if it is none.
func macText(m net.HardwareAddr) string {
	if len(m) != 6 {
		return ""
	}
	return m.String()
}
