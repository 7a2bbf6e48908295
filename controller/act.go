package controller

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"
)

// do starts an action whose move is durable.
func (c *Controller) do(p pending, now time.Time) {
	e := c.moves[p.id]
	if e == nil {
		return
	}
	switch a := p.act.(type) {
	case actRegister:
		c.nonce = c.nextNonce(now)
		if err := c.wire.register(p.id, e.m.Tgt, a, c.nonce, now); err != nil {
			c.log.Warn("Map-Register not sent", "move", p.id, "server", a.server.String(), "err", err)
		}
	case actLookup:
		c.wg.Go(func() {
			found := c.wire.lookup(c.ctx, a.eids)
			c.post(func(now time.Time) { c.event(p.id, evLookup{found}, now) })
		})
	case actCall:
		sd, other := e.m.side(a.role), e.m.side(opposite(a.role))
		h, ok := c.inv.hvs[sd.Hypervisor]
		if !ok {
			h = Hypervisor{Name: sd.Hypervisor} // the call will fail, and say so
		}
		body := agentHandover{
			Role: a.role, VM: e.m.VM, Interface: e.m.Interface, MACs: e.m.MACs, EIDs: e.m.EIDs,
			PeerRLOC: other.RLOC, PeerXTRID: other.XTRID, Version: e.m.Known,
		}
		at := e.m.idAt(sd)
		if a.verb == VerbPrepare {
			at = p.id
		}
		c.wg.Go(func() { c.call(p.id, at, a, h, body) })
	}
}

func opposite(r Role) Role {
	if r == Source {
		return Target
	}
	return Source
}

// call makes one call to an agent, which knows the move as at, and hands the result to the owner.
func (c *Controller) call(id, at string, a actCall, h Hypervisor, body agentHandover) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timing.Call)
	defer cancel()
	ev := evCall{role: a.role, verb: a.verb, started: time.Now(), version: body.Version}
	switch a.verb {
	case VerbPrepare:
		ev.rec, ev.err = c.agents.Prepare(ctx, h, at, body)
	case verbLook:
		ev.rec, ev.err = c.agents.Handover(ctx, h, at)
	default:
		ev.rec, ev.err = c.agents.Tell(ctx, h, at, a.verb)
	}
	if c.ctx.Err() != nil {
		return // the controller ends: what became of the call will be asked after the restart
	}
	name := "agent calls: " + string(a.verb)
	if ev.err != nil {
		name += " failed"
		if ctx.Err() != nil {
			ev.err = fmt.Errorf("agent %s: no answer in %v", h.Name, c.cfg.Timing.Call)
		}
	}
	c.counters.add(name, 1)
	c.post(func(now time.Time) { c.event(id, ev, now) })
}

// look asks both agents of a move what they see, now. What they answer is taken before anything that is
// asked of the owner afterwards.
func (c *Controller) look(ctx context.Context, id string) {
	type agent struct {
		role Role
		h    Hypervisor
		id   string
	}
	v, err := c.ask(ctx, func(time.Time) (any, error) {
		var out []agent
		if e := c.moves[id]; e != nil {
			for _, r := range []Role{Target, Source} {
				sd := e.m.side(r)
				out = append(out, agent{r, c.inv.hvs[sd.Hypervisor], e.m.idAt(sd)})
			}
		}
		return out, nil
	})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range v.([]agent) {
		wg.Go(func() {
			started := time.Now()
			if rec, err := c.agents.Handover(ctx, a.h, a.id); err == nil && rec != nil {
				c.post(func(now time.Time) { c.event(id, evReport{role: a.role, started: started, rec: rec}, now) })
			}
		})
	}
	wg.Wait()
}

// startPeer begins to keep a hypervisor's agent up to date.
func (c *Controller) startPeer(h Hypervisor) {
	p := newPeer(h, c.agents, c.cfg.Timing,
		func(r poll) { c.post(func(now time.Time) { c.polled(r, now) }) },
		func(ok bool) {
			name := "agent calls: vm"
			if !ok {
				name += " failed"
			}
			c.counters.add(name, 1)
		})
	for _, v := range c.inv.vms {
		p.set(v.Name, agentVM{v.Interface, v.MACs, v.EIDs})
	}
	c.peers[h.Name] = p
	c.rewatch = true
	p.start(c.ctx, &c.wg)
}

func (c *Controller) stopPeer(name string) {
	if p := c.peers[name]; p != nil {
		p.cancel()
		delete(c.peers, name)
	}
	delete(c.status, name)
}

// setWatches says which handovers each agent is asked for often: those of moves that are open.
func (c *Controller) setWatches() {
	ids := map[string][]string{}
	for _, e := range c.openMoves() {
		for _, s := range []*Side{&e.m.Src, &e.m.Tgt} {
			ids[s.Hypervisor] = append(ids[s.Hypervisor], e.m.idAt(s))
		}
	}
	for name, p := range c.peers {
		p.watch(ids[name])
	}
}

// polled takes what an agent says of its handovers.
func (c *Controller) polled(p poll, now time.Time) {
	if cur, ok := c.inv.hvs[p.h.Name]; !ok || !cur.same(p.h) {
		return // it was asked where it is not any more
	}
	st := c.status[p.h.Name]
	if p.err != nil {
		c.counters.add("agent polls failed", 1)
		st.err = p.err.Error()
		c.status[p.h.Name] = st
		return
	}
	c.counters.add("agent polls", 1)
	c.status[p.h.Name] = agentStatus{seen: now}
	recs := map[string]*AgentRecord{} // by the agent's names
	for i := range p.recs {
		r := &p.recs[i]
		recs[r.ID] = r
		if c.alias[alias{p.h.Name, r.ID}] == "" && c.moves[r.ID] == nil {
			c.unprepared(p.h, r, now)
		}
	}
	for _, e := range c.openMoves() {
		for _, role := range []Role{Target, Source} {
			sd := e.m.side(role)
			if sd.Hypervisor != p.h.Name || p.only != nil && !slices.Contains(p.only, e.m.idAt(sd)) {
				continue
			}
			rec := recs[e.m.idAt(sd)]
			if rec != nil && sd.AgentID != "" {
				named := *rec
				named.VM = e.m.VM
				rec = &named
			}
			if rec != nil && reflect.DeepEqual(rec, e.m.record(role)) && !sd.Gone {
				continue
			}
			c.event(e.m.ID, evReport{role: role, started: p.started, rec: rec}, now)
		}
	}
}

// hypervisorAt finds the hypervisor with an RLOC.
func (c *Controller) hypervisorAt(rloc string) (Hypervisor, bool) {
	a, err := netip.ParseAddr(rloc)
	if err != nil {
		return Hypervisor{}, false
	}
	for _, name := range slices.Sorted(maps.Keys(c.inv.hvs)) {
		if h := c.inv.hvs[name]; h.RLOC == a {
			return h, true
		}
	}
	return Hypervisor{}, false
}
