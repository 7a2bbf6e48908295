package xtr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Errors that callers tell apart. The API answers 400, 404 and 409 to them.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
)

// restoreGrace is how many times the grace of a vanished interface those from before a restart get to be found.
const restoreGrace = 3

func (x *XTR) portUp(p *port, now time.Time) {
	if old := x.loc.portUp(p); old != nil && old.index != p.index {
		x.unbind(old, now)
	}
	var eids []lisp.EID
	for _, le := range x.loc.sorted() {
		if le.index == p.index || le.index == 0 && le.Interface == p.name {
			le.bind(p)
			eids = append(eids, le.EID)
		}
	}
	for _, h := range slices.Clone(x.open) {
		if slices.Contains(x.portsOf(h), p) {
			x.exec(h, h.portUp(), now)
		}
	}
	x.program(now, eids...)
	for _, e := range eids {
		x.syncLocal(e)
	}
	for _, v := range x.loc.sortedVMs() {
		if !v.runs.IsZero() && (v.Interface == p.name || x.loc.macAt(v.MACs, p) != "") {
			at := v.runs
			v.runs = time.Time{}
			x.runs(v.Name, evidence{at: at, strong: true, why: "the VM runs here"}, now)
		}
	}
	for _, s := range x.early.take(p.index, now) {
		x.frame(s, now)
	}
	x.saver.mark(now)
}

func (x *XTR) portDown(index int, now time.Time) {
	_ = x.early.take(index, now)
	p := x.loc.ports[index]
	if p == nil {
		return
	}
	// A handover must look for its interface before it is forgotten which that was.
	var hit []*handover
	for _, h := range x.open {
		if slices.Contains(x.portsOf(h), p) {
			hit = append(hit, h)
		}
	}
	x.loc.portGone(p)
	x.unbind(p, now)
	for _, h := range hit {
		if len(x.portsOf(h)) == 0 { // a VM may lose one of several
			x.exec(h, h.portDown(now), now)
		}
	}
	x.sp.Forget(p.number)
}

// unbind notes that the interface of EIDs has gone. Their VM may have stopped, or be on the move.
func (x *XTR) unbind(p *port, now time.Time) {
	for _, le := range x.loc.sorted() {
		if le.index == p.index {
			le.index, le.gone = 0, now
			x.syncLocal(le.EID)
		}
	}
}

// goneAt is when a VM whose interface has gone counts as stopped; zero: not at all. While a handover lasts that
// is its business.
func (x *XTR) goneAt(le *localEID) time.Time {
	if h := x.active[le.EID]; le.gone.IsZero() || h != nil && h.State != Running {
		return time.Time{}
	}
	grace := x.cfg.PortGrace
	if le.restored {
		grace *= restoreGrace
	}
	return le.gone.Add(grace)
}

// tickLocals forgets VMs whose interface has been gone for long. What is from before a restart and was never
// found again is not deregistered: it may run elsewhere, and what we know of it is old.
func (x *XTR) tickLocals(now time.Time) {
	for _, le := range x.loc.sorted() {
		if t := x.goneAt(le); t.IsZero() || t.After(now) {
			continue
		}
		if h := x.active[le.EID]; h != nil {
			h.Times.Settled = now
			h.to(Settled, "the VM was stopped: its interface is gone")
			x.exec(h, []op{opDiscard, opEnd}, now)
		}
		if le.restored {
			x.reg.release(le.EID)
			x.log.Info("an EID of before the restart is not here any more", "eid", le.EID.String(), "vm", le.VM)
		} else {
			x.reg.withdraw(le.EID, now)
			x.log.Info("the interface of an EID is gone: deregistering", "eid", le.EID.String(), "vm", le.VM)
		}
		x.notLocal(le.EID)
		x.program(now, le.EID)
		x.saver.mark(now)
	}
}

func (x *XTR) notLocal(e lisp.EID) {
	delete(x.loc.eids, e)
	delete(x.asking, e)
	x.syncLocal(e)
}

// frame takes a frame of a VM.
func (x *XTR) frame(s Sighting, now time.Time) {
	p, mac := x.loc.ports[s.If], macText(s.MAC)
	if p == nil || mac == "" {
		if mac == "" || !x.early.keep(s, now) {
			x.count("sightings-nowhere")
		}
		return
	}
	if s.At.IsZero() {
		s.At = now
	}
	x.loc.sawMAC(mac, s.If, s.At)
	ev := evidence{at: s.At, why: "a frame of the VM: " + s.Kind}
	addr, inside := x.cfg.eidOf(s.Addr)
	if inside {
		ev.eid = addr
	}

	var eids []lisp.EID
	name := ""
	if v := x.loc.byMAC[mac]; v != nil {
		if !x.loc.rightNIC(mac, v.Interface, p) {
			x.count("spoofed-mac")
			return
		}
		name, eids = v.Name, slices.Clone(v.EIDs)
	}
	for _, h := range x.open {
		switch {
		case !slices.Contains(h.MACs, mac) && !(len(h.MACs) == 0 && inside && slices.Contains(h.EIDs, addr)):
		case !x.loc.rightNIC(mac, h.Interface, p):
			x.count("spoofed-mac")
			return
		default:
			name = h.VM
			for _, e := range h.EIDs {
				if !slices.Contains(eids, e) {
					eids = append(eids, e)
				}
			}
		}
	}
	if len(eids) > 0 && (x.loc.vms[name] == nil || len(x.loc.vms[name].EIDs) > 0) {
		if inside && !slices.Contains(eids, addr) {
			x.count("spoofed-source")
		}
		x.appear(eids, name, p, mac, ev, now)
		return
	}
	if len(eids) > 0 { // nobody has said which EIDs the VM has: these are what it was seen to have
		x.appear(eids, name, p, mac, ev, now)
		if slices.Contains(eids, addr) {
			return
		}
	}
	if !inside {
		return
	}
	if reason := x.mayLearn(addr, p); reason != "" {
		x.count(reason)
		return
	}
	x.appear([]lisp.EID{addr}, name, p, mac, ev, now)
}

// mayLearn says why an EID that was seen at p, of a VM that nobody announced, is not believed; "" if it is.
func (x *XTR) mayLearn(e lisp.EID, p *port) (reason string) {
	switch {
	case x.loc.owner[e] != nil || x.active[e] != nil && len(x.active[e].MACs) > 0:
		return "spoofed-source" // it is another VM's
	case x.cfg.KnownOnly:
		return "unknown-source"
	case x.loc.eids[e] == nil && x.loc.learned(p.index) >= x.cfg.MaxLearned:
		return "learned-limit"
	}
	return ""
}

// appear: there is evidence that a VM with these EIDs runs at p. mac is empty if no frame was seen.
func (x *XTR) appear(eids []lisp.EID, name string, p *port, mac string, ev evidence, now time.Time) {
	var done []*handover
	var news []arrival
	for _, e := range eids {
		h := x.active[e]
		q, m := x.place(e, name, h, p, mac, ev)
		if h == nil {
			if a, ok := x.appearEID(e, name, q, m, ev, now); ok {
				news = append(news, a)
			}
			continue
		}
		if le := x.loc.eids[e]; le != nil && x.rebind(le, q, m, ev) && slices.Contains(done, h) {
			x.program(now, e)
		}
		if slices.Contains(done, h) {
			continue
		}
		done = append(done, h)
		if h.State == Redirecting && !ev.strong && !x.reg.mayClaim(e, ev.at, false, now) {
			x.count("claims-refused")
			continue
		}
		h.seenIf = p.index
		x.exec(h, h.seen(ev, now, true), now)
		if h.State == Running || h.State == TakingBack {
			x.noteGuests(name, guestRunning, ev.at)
		}
	}
	if len(news) == 0 {
		return
	}
	x.noteGuests(name, guestRunning, ev.at)
	// Nobody was prepared for this, so that nothing here holds packets: who is told sends them at once.
	var claimed []lisp.EID
	for _, a := range news {
		claimed = append(claimed, a.le.EID)
	}
	x.program(now, claimed...)
	x.register(now)
	for _, a := range news {
		x.syncLocal(a.le.EID)
		if a.from.IsValid() {
			x.arrived(a.le, a.from, a.version, now)
		}
	}
	x.saver.mark(now)
}

// arrival is an EID that was claimed because its VM was seen here.
type arrival struct {
	le      *localEID
	from    netip.Addr // where it was before; not valid: nobody knows
	version lisp.Version
}

// place says where e of a VM is that was seen at p. A VM with several interfaces has each EID at the one from which
// a frame has named it; until then, where it was seen first.
func (x *XTR) place(e lisp.EID, name string, h *handover, p *port, mac string, ev evidence) (*port, string) {
	ms := x.macsOf(name, h)
	le := x.loc.eids[e]
	if mac == "" && le != nil && len(ms) > 0 && !slices.Contains(ms, le.MAC) {
		mac = x.loc.macAt(ms, p) // the interface that it was at is not the VM's any more
	}
	if len(ms) < 2 || e == ev.eid {
		return p, mac
	}
	if le != nil && le.Exact {
		if q := x.loc.portOfMAC(le.MAC); q != nil {
			return q, le.MAC
		}
	}
	if le != nil && x.loc.ports[le.index] != nil {
		return x.loc.ports[le.index], le.MAC
	}
	if mac == "" {
		mac = x.loc.macAt(ms, p)
	}
	return p, mac
}

// rebind notes that the VM of a local EID was seen at p.
func (x *XTR) rebind(le *localEID, p *port, mac string, ev evidence) (changed bool) {
	if ev.at.After(le.Seen) {
		le.Seen = ev.at
	}
	le.Exact = le.Exact && sameMAC(mac, le.MAC) || le.EID == ev.eid && mac != ""
	if le.index != p.index {
		le.bind(p)
		changed = true
	}
	if mac != "" && !sameMAC(mac, le.MAC) {
		le.MAC = mac
		changed = true
	}
	return changed
}

// appearEID: there is evidence that an EID lives at p, and no handover speaks of it. It reports whether it was
// claimed.
func (x *XTR) appearEID(e lisp.EID, name string, p *port, mac string, ev evidence, now time.Time) (arrival, bool) {
	le := x.loc.eids[e]
	if le != nil {
		if x.rebind(le, p, mac, ev) {
			x.program(now, e)
			x.syncLocal(e)
			x.saver.mark(now)
		}
		if x.reg.holds(e) {
			return arrival{}, false
		}
	}
	if !x.reg.mayClaim(e, ev.at, ev.strong, now) {
		x.count("claims-refused")
		x.warn(now, "an EID is claimed by another xTR, too: does its VM run twice?", "eid", e.String(), "if", p.name)
		return arrival{}, false
	}
	if le == nil {
		v := x.loc.vms[name]
		le = &localEID{EID: e, VM: name, MAC: mac, Since: ev.at, Seen: ev.at, Exact: e == ev.eid && mac != "",
			Learned: v == nil || !slices.Contains(v.EIDs, e)}
		if mac == "" && v != nil && len(v.MACs) > 0 {
			le.MAC = v.MACs[0]
		}
		le.bind(p)
		x.loc.eids[e] = le
	}
	a := arrival{le: le}
	if c, ok := x.res.cache.Get(e); ok && !c.Mapping.Negative() && !x.reg.ours(c.Mapping) {
		a.from = c.Mapping.Locators[0].RLOC
	}
	a.version = x.claim(e, 0, ev.strong, now)
	le.first = a.version == 0
	return a, true
}

// claim claims e with a version above all that is known of it. If the newest that is known is ours already,
// because the controller has registered in our name, that one is it.
func (x *XTR) claim(e lisp.EID, known lisp.Version, announced bool, now time.Time) lisp.Version {
	delete(x.asking, e)
	known = newest(known, x.reg.known(e))
	if c, ok := x.res.cache.Get(e); ok && c.Mapping.Version.Newer(known) {
		known = c.Mapping.Version
		if x.reg.ours(c.Mapping) {
			return x.reg.claimAs(e, known, announced, now)
		}
	}
	return x.reg.claim(e, known, announced, now)
}

// arrived records that a VM has come here unannounced.
func (x *XTR) arrived(le *localEID, from netip.Addr, v lisp.Version, now time.Time) {
	for _, h := range x.order {
		if h.Role == Target && !h.Prepared && h.VM == le.VM && le.VM != "" && now.Sub(h.Times.Run) < unpreparedGroup {
			if !slices.Contains(h.EIDs, le.EID) {
				h.EIDs = append(h.EIDs, le.EID)
			}
			return
		}
	}
	h := x.newHandover(Handover{VM: le.VM, Role: Target, EIDs: []lisp.EID{le.EID}, PeerRLOC: from, Version: v}, now)
	h.to(Running, "unprepared: the VM was seen here")
	h.Times.Run = le.Seen
	h.Interface = le.Interface
	if x.reg.holds(le.EID) && !x.reg.regs[le.EID].claim {
		x.exec(h, h.claimed(x.reg.known(le.EID), now), now)
	}
}

// unpreparedGroup is how far apart the EIDs of a VM may be seen to move to count as one move.
const unpreparedGroup = 5 * time.Second

// miss: packets wait for e.
func (x *XTR) miss(e lisp.EID, src netip.Addr, now time.Time) {
	if x.active[e] != nil || x.loc.eids[e] != nil {
		x.program(now, e)
		x.sp.Release(e)
		return
	}
	if found, c, ok := x.res.cache.LookupEID(e); ok && x.remote(c.Mapping).Do != fib.Miss {
		x.program(now, found)
		x.sp.Release(e)
		return
	}
	if !x.res.want(e, src, whyMiss, false, now) {
		x.count("misses-refused")
		x.sp.Reject(e)
		return
	}
	x.res.tick(now)
	x.resolved(now)
}

// resolved does what the resolver wants done.
func (x *XTR) resolved(now time.Time) {
	o := x.res.take()
	for _, s := range o.sends {
		x.sendRequest(s)
	}
	if len(o.changed) > 0 {
		for _, e := range o.changed {
			x.locate(x.active[e], e, now)
		}
		x.program(now, o.changed...)
		for _, e := range o.changed {
			if _, ok := x.res.cache.Get(e); !ok {
				delete(x.used, e)
			}
		}
		x.saver.markCache(now)
	}
	for _, a := range o.answers {
		if x.asking[a.eid] {
			x.answeredOwn(a.eid, a.mapping, now)
		}
	}
	for _, e := range o.release {
		x.sp.Release(e)
	}
	for _, e := range o.reject {
		x.count("unanswered")
		x.sp.Reject(e)
	}
}

// answeredOwn takes what the mapping system says of an EID that lived here before a restart, and for which we
// had not been told a version yet.
func (x *XTR) answeredOwn(e lisp.EID, m lisp.Mapping, now time.Time) {
	delete(x.asking, e)
	switch {
	case m.Negative():
		x.claim(e, 0, true, now) // nobody has it
	case x.reg.ours(m):
		x.reg.adopt(e, m.Version, now)
	default:
		m.EID = e
		x.lost(m, now)
		return
	}
	x.register(now)
}

func (x *XTR) dataPlaneEvent(ev fib.Event, now time.Time) {
	switch ev.Kind {
	case fib.EventSource, fib.EventUnknownSource:
		x.frame(Sighting{If: ev.If, MAC: ev.MAC, Addr: ev.EID.Prefix.Addr(), Kind: "packet", At: ev.At}, now)
	case fib.EventMoved, fib.EventNotLocal:
		if h := x.active[ev.EID]; h != nil {
			h.sentHere(now)
		}
		rloc, err := netip.ParseAddr(ev.RLOC)
		if err != nil || !x.cfg.own(ev.EID) || !x.cfg.mayKnow(rloc) || x.cfg.ownRLOC(rloc) {
			x.count("smr-not-for")
			return
		}
		if !x.smr.maySend(rloc.Unmap(), ev.EID, now) {
			x.count("smr-limited")
			return
		}
		x.count("smr-sent")
		x.send(netip.AddrPortFrom(rloc.Unmap(), lisp.ControlPort), solicit(ev.EID, x.rlocs(), randomNonce()))
	}
}

func (x *XTR) vmEvent(ev VMEvent, now time.Time) error {
	kind := ev.Event
	switch kind {
	case EventStop:
		kind = EventStopped
	case EventResume:
		kind = EventResumed
	case EventStopped, EventResumed, EventMigrating, EventGone:
	default:
		return fmt.Errorf("%w: event %q is none of %q, %q, %q, %q", ErrInvalid, ev.Event, EventStopped, EventResumed, EventMigrating, EventGone)
	}
	at := ev.At
	if at.IsZero() || at.After(now) {
		at = now
	}
	ref := ev.VM
	if m, err := macs([]string{ref}); err == nil {
		ref = m[0]
	}
	name, known := x.loc.find(ref)
	hs := x.handoversOf(name, ref)
	if !known && len(hs) == 0 {
		return fmt.Errorf("%w: nobody knows a VM %q here", ErrNotFound, ev.VM)
	}
	if v := x.loc.vms[name]; v != nil {
		if at.Before(v.told) {
			x.count("events-late")
			return nil
		}
		v.told = at
		if kind != EventMigrating {
			v.runs = time.Time{}
		}
	}
	switch kind {
	case EventStopped:
		x.noteGuests(name, guestStopped, at)
		x.stopped(hs, name, at, now)
	case EventResumed:
		x.noteGuests(name, guestRunning, at)
		x.resumed(hs, name, at, now)
	case EventMigrating:
		x.migrating(name, now)
	case EventGone:
		x.noteGuests(name, guestOff, at)
		x.gone(hs, name, at, now)
	}
	x.saver.mark(now)
	return nil
}

// handoversOf lists the open handovers of a VM, by its name, what else an event may call it by, or its MAC addresses.
func (x *XTR) handoversOf(name, ref string) (out []*handover) {
	ms := x.macsOf(name, nil)
	for _, h := range x.open {
		if name != "" && h.VM == name || ref != "" && (h.VM == ref || h.Interface == ref || slices.Contains(h.MACs, ref)) ||
			slices.ContainsFunc(h.MACs, func(m string) bool { return slices.Contains(ms, m) }) {
			out = append(out, h)
		}
	}
	return out
}

// migrating: the hypervisor sends a VM away, nobody knows where to. It still runs here.
func (x *XTR) migrating(name string, now time.Time) {
	var eids []lisp.EID
	var v lisp.Version
	for _, e := range x.loc.eidsOf(name) {
		switch h := x.active[e]; {
		case h == nil, h.Role == Target && h.State == Running:
			eids = append(eids, e)
			v = newest(v, x.reg.known(e))
		case h.Role == Source && h.State == Armed:
			h.Heard = now
		}
	}
	if len(eids) == 0 {
		return
	}
	h := x.begin(Handover{VM: name, Role: Source, EIDs: eids, Version: v}, nil, "", now)
	h.prepare = max(h.prepare, sentAway)
	x.exec(h, x.arm(h, "the hypervisor sends it away", now), now)
}

// sentAway is how long a source waits for the stop that nobody has prepared, at least: a pass over a large memory
// takes long, and nothing may be said meanwhile.
const sentAway = time.Hour

// gone: the hypervisor does not have a VM any more.
func (x *XTR) gone(hs []*handover, name string, at, now time.Time) {
	for _, h := range hs {
		if h.Role == Target && h.State == Incoming && h.Announced {
			if ops, ok := h.abort(now, "the VM did not come: the hypervisor does not have it any more"); ok {
				x.exec(h, ops, now)
			}
		}
	}
	eids := x.loc.eidsOf(name)
	if len(eids) > 0 && !slices.ContainsFunc(eids, func(e lisp.EID) bool { return !x.loc.eids[e].restored }) {
		return // it has not been found again since a restart: that has its own time
	}
	x.stopped(hs, name, at, now)
	for _, h := range x.handoversOf(name, "") {
		if h.Role == Source && h.State == Paused && h.Left.IsZero() {
			h.Left = now
		}
	}
}

func (x *XTR) stopped(hs []*handover, name string, at, now time.Time) {
	for _, e := range x.loc.eidsOf(name) {
		if reg := x.reg.regs[e]; reg != nil && reg.version == 0 {
			// It has no number yet. Said again it would be a claim, and the evidence for that is gone.
			x.reg.release(e)
		}
	}
	for _, h := range hs {
		if h.State == Running && h.Role == Target {
			continue // it was paused where it had just come to: below
		}
		x.exec(h, h.stop(at, now, "the VM stopped"), now)
	}
	var eids []lisp.EID
	for _, e := range x.loc.eidsOf(name) {
		if h := x.active[e]; h == nil || h.Role == Target && h.State == Running {
			eids = append(eids, e)
		}
	}
	if len(eids) == 0 {
		return
	}
	h := x.begin(Handover{VM: name, Role: Source, EIDs: eids}, nil, "", now)
	h.Times.Paused = at
	h.to(Paused, "unprepared: the VM stopped")
	if !h.Flushing {
		h.Hold = x.newHold(h)
	}
	x.exec(h, []op{opRoutes}, now)
}

func (x *XTR) resumed(hs []*handover, name string, at, now time.Time) {
	for _, h := range hs {
		if h.State == Armed && !h.Prepared {
			if ops, ok := h.abort(now, "it was not sent away after all"); ok {
				x.exec(h, ops, now)
			}
			continue
		}
		x.exec(h, h.resume(at, now, x.portOf(h) != nil), now)
	}
	x.runs(name, evidence{at: at, strong: true, why: "the VM runs here"}, now)
}

// runs: the hypervisor says that a VM runs here. Its interfaces may not be there yet.
func (x *XTR) runs(name string, ev evidence, now time.Time) {
	v := x.loc.vms[name]
	if v == nil {
		return
	}
	var ports []*port
	at := map[*port][]lisp.EID{}
	for _, e := range v.EIDs {
		if x.active[e] != nil {
			continue
		}
		p := x.portOfVM(v, e)
		if p == nil {
			if ev.strong {
				v.runs = ev.at
			}
			continue
		}
		if at[p] == nil {
			ports = append(ports, p)
		}
		at[p] = append(at[p], e)
	}
	for _, p := range ports {
		x.appear(at[p], name, p, "", ev, now)
	}
}

// portOfVM is the interface of this host at which e of a VM is, or should be.
func (x *XTR) portOfVM(v *vm, e lisp.EID) *port {
	if le := x.loc.eids[e]; le != nil && len(v.MACs) > 1 && x.loc.ports[le.index] != nil {
		return x.loc.ports[le.index]
	}
	for _, m := range v.MACs {
		if p := x.loc.names[x.loc.nics[m]]; p != nil {
			return p
		}
	}
	if p := x.loc.names[v.Interface]; p != nil {
		return p
	}
	for _, m := range v.MACs {
		if p := x.loc.portOfMAC(m); p != nil {
			return p
		}
	}
	return nil
}
