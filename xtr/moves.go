package xtr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// maxRecords is how many records of handovers are kept.
const maxRecords = 1000

// newHandover makes a handover, without an id for one that nobody prepared.
func (x *XTR) newHandover(rec Handover, now time.Time) *handover {
	if rec.ID == "" {
		name := rec.VM
		if name == "" {
			name = strings.NewReplacer("/", "-", ":", "-").Replace(rec.EIDs[0].String())
		}
		rec.ID = fmt.Sprintf("unprepared-%s-%s-%d", name, rec.Role, now.UnixMilli())
		for n := 2; x.handovers[rec.ID] != nil; n++ {
			rec.ID = fmt.Sprintf("unprepared-%s-%s-%d-%d", name, rec.Role, now.UnixMilli(), n)
		}
	}
	if rec.Dropped == nil {
		rec.Dropped = map[string]uint64{}
	}
	h := &handover{Handover: rec, Heard: now}
	h.timing = timing{settle: x.cfg.SettleTime, prepare: x.cfg.PrepareTimeout, grace: x.cfg.PortGrace}
	x.addHandover(h)
	x.saver.mark(now)
	return h
}

func (x *XTR) addHandover(h *handover) {
	x.handovers[h.ID] = h
	x.order = append(x.order, h)
	if !h.State.ended() {
		x.open = append(x.open, h)
	}
	for i := 0; i < len(x.order) && len(x.order) > maxRecords; {
		if old := x.order[i]; old.State.ended() {
			x.order = slices.Delete(x.order, i, i+1)
			delete(x.handovers, old.ID)
			continue
		}
		i++
	}
}

// begin makes a handover that takes over from those that are open for the same EIDs.
func (x *XTR) begin(rec Handover, macs []string, iface string, now time.Time) *handover {
	h := x.newHandover(rec, now)
	h.MACs, h.Interface = macs, iface
	var olds []*handover
	for _, e := range h.EIDs {
		if old := x.active[e]; old != nil && !slices.Contains(olds, old) {
			olds = append(olds, old)
		}
	}
	for _, old := range olds {
		if h.Hold != 0 && old.Hold != 0 { // two VMs have become one: only one hold can be taken over
			x.sp.Discard(old.Hold)
			old.Hold, old.Flushing = 0, false
		}
		if len(h.MACs) == 0 {
			h.MACs = old.MACs
		}
		if h.Interface == "" && h.Role == old.Role {
			h.Interface = old.Interface
		}
		if old.State == Incoming && h.Role == Target && !old.Announced {
			// The VM did not come then: what was held goes back, and what was replayed it has read itself.
			x.exec(old, old.giveBack(now, "it is to come by "+h.ID), now)
		}
		h.takesOver(old, now)
		if h.Hold != 0 && x.holds[h.Hold] == old {
			x.holds[h.Hold] = h
		}
		x.closed(old, now)
	}
	for _, e := range h.EIDs {
		x.active[e] = h
	}
	return h
}

// closed takes a handover that has ended out of what is active.
func (x *XTR) closed(h *handover, now time.Time) {
	h.Redirected, h.counting = x.redirected(h), false
	x.open = slices.DeleteFunc(x.open, func(o *handover) bool { return o == h })
	for _, e := range h.EIDs {
		if x.active[e] == h {
			delete(x.active, e)
		}
		x.syncLocal(e)
	}
	if h.Hold != 0 && x.holds[h.Hold] == h {
		delete(x.holds, h.Hold)
	}
	x.saver.mark(now)
}

// newHold takes the next hold queue that is free: not one that was used a moment ago.
func (x *XTR) newHold(h *handover) uint32 {
	if h.Hold != 0 && x.holds[h.Hold] == h {
		delete(x.holds, h.Hold)
	}
	for range fib.MaxHold {
		x.lastHold = x.lastHold%fib.MaxHold + 1
		if x.holds[x.lastHold] == nil {
			x.holds[x.lastHold] = h
			return x.lastHold
		}
	}
	x.count("no-hold-queue")
	return 0
}

// exec does what a handover wants done, in order.
func (x *XTR) exec(h *handover, ops []op, now time.Time) {
	if len(ops) == 1 && ops[0] == opBase {
		x.base(h) // changes nothing that is kept
		return
	}
	if len(ops) == 0 {
		return
	}
	if h.State == Redirecting && !h.Flushing && !h.counting {
		h.counted, h.counting = x.packets(h.EIDs...)
	}
	if h.State == Paused || h.State == Redirecting {
		for _, e := range h.EIDs {
			x.reg.stopped(e)
		}
	}
	for _, o := range ops {
		switch o {
		case opRoutes:
			x.program(now, h.EIDs...)
			for _, e := range h.EIDs {
				x.syncLocal(e)
			}
		case opReplay:
			x.replay(h, now)
		case opBase:
			x.base(h)
		case opFlush:
			x.sp.Flush(h.Hold, x.whenFlushed(h.Hold))
		case opGiveBack:
			x.sp.GiveBack(h.Hold, x.whenFlushed(h.Hold))
		case opDiscard:
			if h.Hold != 0 {
				x.flushes[h.Hold] = 0
				x.sp.Discard(h.Hold)
			}
		case opNewHold:
			h.Hold = x.newHold(h)
		case opNoCopies:
			h.Copying = false
			for _, p := range x.portsOf(h) {
				x.sp.Forget(p.number)
			}
		case opLocal:
			x.hereNow(h, now)
		case opClaim:
			for _, e := range h.EIDs {
				x.claim(e, h.Version, h.announced, now)
			}
			x.register(now)
		case opRelease:
			for _, e := range h.EIDs {
				x.reg.release(e)
			}
		case opWithdraw:
			for _, e := range h.EIDs {
				x.reg.withdraw(e, now)
			}
			x.register(now)
		case opForget:
			for _, e := range h.EIDs {
				x.notLocal(e)
				if h.Role == Source && h.State == Settled && h.Told {
					x.follow(e, now)
				}
			}
		case opEnd:
			x.finished(h, now)
		}
	}
	x.saver.mark(now)
}

// finished closes a handover and sets the routes that hold without it.
func (x *XTR) finished(h *handover, now time.Time) {
	x.closed(h, now)
	if h.Role == Source && h.State == Aborted {
		for _, e := range h.EIDs {
			if x.loc.eids[e] != nil && !x.reg.holds(e) && x.reg.mayClaim(e, h.Times.Aborted, true, now) {
				x.claim(e, h.Version, h.announced, now)
			}
		}
		x.register(now)
	}
	x.program(now, h.EIDs...)
	x.log.Info("handover ended as "+string(h.State), "move", h.ID, "vm", h.VM, "for", string(h.Role), "reason", h.Why)
}

// follow subscribes to an EID that has left: packets may go there from here.
func (x *XTR) follow(e lisp.EID, now time.Time) {
	if _, ok := x.res.cache.Get(e); ok {
		x.res.want(e, netip.Addr{}, whyRefresh, false, now)
	}
}

// hereNow makes the EIDs of a handover local.
func (x *XTR) hereNow(h *handover, now time.Time) {
	ms := x.macsOf(h.VM, h)
	for _, e := range h.EIDs {
		p := x.portFor(h, e)
		le := x.loc.eids[e]
		if le == nil {
			le = &localEID{EID: e, VM: h.VM, Since: now, Learned: x.loc.owner[e] == nil && !h.Prepared}
			x.loc.eids[e] = le
		}
		le.VM, le.Seen = h.VM, now
		if len(ms) > 0 && !slices.ContainsFunc(ms, func(m string) bool { return sameMAC(m, le.MAC) }) {
			le.MAC, le.Exact = ms[0], false
		}
		if p != nil {
			if len(ms) > 1 && !le.Exact {
				if m := x.loc.macAt(ms, p); m != "" {
					le.MAC = m
				}
			}
			le.bind(p)
		} else if le.index == 0 && le.gone.IsZero() {
			le.gone, le.Interface = now, h.Interface
		}
	}
}

// replay asks for what the VM never read. It may take milliseconds: others must not wait for it.
func (x *XTR) replay(h *handover, now time.Time) {
	ports, hold, base := x.portsOf(h), h.Hold, h.droppedBy(h.Times.Paused)
	if len(ports) == 0 {
		x.exec(h, h.replayed(0, now), now)
		return
	}
	go func() {
		n := 0
		var errs []error
		for _, p := range ports {
			read, err := x.ports.Delivered(p.index)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			n += x.sp.Replay(hold, p.number, read+base[p.index])
		}
		x.in.rush(func(now time.Time) {
			h := x.holds[hold]
			if h == nil {
				return
			}
			if err := errors.Join(errs...); err != nil {
				x.count("replay-failed")
				x.log.Error("what the VM has not read is lost: its interface cannot be read", "vm", h.VM, "err", err)
			}
			x.exec(h, h.replayed(n, now), now)
		})
	}()
}

// base looks at what an armed source's interfaces have dropped.
func (x *XTR) base(h *handover) {
	ports := x.portsOf(h)
	if len(ports) == 0 {
		return
	}
	go func() {
		was, dropped := map[int]uint64{}, map[int]uint64{}
		for _, p := range ports {
			var err error
			if was[p.index], dropped[p.index], err = x.ports.PortStats(p.index); err != nil {
				return
			}
		}
		at := time.Now()
		for _, p := range ports {
			x.ports.Arm(p.index)
		}
		x.in.rush(func(time.Time) { h.looked(at, was, dropped) }) // not behind the stop that it was read before
	}()
}

// whenFlushed is called when hold is flushed.
func (x *XTR) whenFlushed(hold uint32) func(HoldStats) {
	x.flushSeq++
	seq := x.flushSeq
	x.flushes[hold] = seq
	return func(st HoldStats) {
		x.in.put(func(now time.Time) {
			h := x.holds[hold]
			if h == nil || x.flushes[hold] != seq || !h.Flushing {
				return
			}
			delete(x.flushes, hold)
			x.exec(h, h.flushed(st, now), now)
		})
	}
}

func (x *XTR) tickHandovers(now time.Time) {
	for _, h := range slices.Clone(x.open) {
		if t := h.next(); !t.IsZero() && !t.After(now) {
			x.exec(h, h.tick(now), now)
		}
	}
}

// lost: the mapping system says that an EID of ours lives elsewhere.
func (x *XTR) lost(m lisp.Mapping, now time.Time) {
	to := x.usable(m.Locators)
	x.res.learn(m, "map-notify", now)
	le, h := x.loc.eids[m.EID], x.active[m.EID]
	if h != nil && h.Role == Source && (h.State == Paused || h.State == Redirecting) && !h.Times.Paused.IsZero() {
		x.reg.concede(m, now)
	}
	x.log.Info("an EID lives elsewhere now", "eid", m.EID.String(), "n", uint16(m.Version), "peer", m.XTRID.String())
	switch {
	case h != nil && h.Role == Target && h.State == Running, h == nil && le != nil:
		x.left(m, to, h, now)
	case h != nil:
		x.exec(h, h.elsewhere(m, to, now), now)
	}
	x.resolved(now)
}

// left: an EID whose VM ran here, as we believed, lives elsewhere. Nobody told us of a stop: there is nothing to
// hold, but packets that still come are sent on.
func (x *XTR) left(m lisp.Mapping, to []lisp.Locator, old *handover, now time.Time) {
	if len(to) == 0 {
		return
	}
	name := ""
	if le := x.loc.eids[m.EID]; le != nil {
		name = le.VM
	}
	if old == nil {
		for _, h := range x.open {
			if h.VM == name && name != "" && h.Role == Source && !h.Prepared && h.State == Redirecting &&
				now.Sub(h.Times.Redirecting) < unpreparedGroup && slices.Equal(h.To, to) {
				h.EIDs = append(h.EIDs, m.EID)
				x.active[m.EID] = h
				x.exec(h, []op{opRoutes}, now)
				return
			}
		}
	}
	h := x.begin(Handover{VM: name, Role: Source, EIDs: []lisp.EID{m.EID}, PeerRLOC: to[0].RLOC, Version: m.Version}, nil, "", now)
	h.to(Redirecting, fmt.Sprintf("unprepared: the mapping system says that the VM runs at %v, version %d", to[0].RLOC, m.Version))
	h.To, h.Told = to, true
	h.Times.Redirecting, h.Times.Claimed = now, now
	x.exec(h, []op{opRoutes}, now)
}

// accepted: a Map-Server holds our mapping of an EID.
func (x *XTR) accepted(m lisp.Mapping, now time.Time) {
	x.saver.mark(now)
	if h := x.active[m.EID]; h != nil {
		if h.State == Running && !slices.ContainsFunc(h.EIDs, func(e lisp.EID) bool {
			reg := x.reg.regs[e]
			return reg != nil && reg.claim
		}) {
			x.exec(h, h.claimed(m.Version, now), now)
		} else if h.Role == Source && h.State == Armed && m.Version.Newer(h.Version) {
			h.Version = m.Version
		}
	} else {
		for _, h := range x.open { // an unprepared arrival, which says nothing of routes
			if slices.Contains(h.EIDs, m.EID) {
				x.exec(h, h.claimed(m.Version, now), now)
			}
		}
	}
	if le := x.loc.eids[m.EID]; le != nil && le.first {
		le.first = false
		if m.Version.Newer(1) && x.active[m.EID] == nil {
			x.arrived(le, netip.Addr{}, m.Version, now) // it was somebody's before
		}
	}
}
