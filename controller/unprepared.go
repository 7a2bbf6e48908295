package controller

import (
	"time"
)

// A move that nobody announced (DESIGN: "a handover without prepare works too, from run on") is carried
// out by the agents alone. The controller finds it among their records, and writes it down.

// attachWithin is how far apart two agents may have begun the same move by their clocks.
const attachWithin = 5 * time.Minute

// unprepared takes a record of h's agent that belongs to no move that we know.
func (c *Controller) unprepared(h Hypervisor, r *AgentRecord, now time.Time) {
	name := r.VM
	if _, ok := c.inv.vms[name]; !ok {
		for _, e := range r.EIDs {
			if o, _ := c.inv.covering(e); o != "" {
				name = o
			}
		}
	}
	v, ok := c.inv.vms[name]
	switch {
	case !ok:
	case r.Role == Target && r.runs() && r.Times.Run.After(v.Placed):
		if !c.arrived(h, v, r, now) {
			c.observed(h, v, r, now)
		}
	case r.Role == Source:
		c.attach(h, v, r, now)
	}
}

// arrived finds a prepared move that the record is the end of: the target's agent has forgotten it, and saw the
// VM all the same.
func (c *Controller) arrived(h Hypervisor, v VM, r *AgentRecord, now time.Time) bool {
	for _, e := range c.byVM[v.Name] {
		if e.m.To != h.Name || e.m.State != Preparing && e.m.State != Prepared {
			continue
		}
		rec := *r
		rec.VM = v.Name
		e.m.Tgt.AgentID, e.m.Tgt.Told, e.m.Tgt.ToldAt = r.ID, VerbCommit, now
		c.alias[alias{h.Name, r.ID}] = e.m.ID
		c.rewatch = true
		c.event(e.m.ID, evReport{role: Target, started: now, rec: &rec}, now)
		return true
	}
	return false
}

// observed writes down that a VM came to run on h.
func (c *Controller) observed(h Hypervisor, v VM, r *AgentRecord, now time.Time) {
	if v.Hypervisor == h.Name {
		// It is known to be there, or came back before anybody looked. What is older is past.
		v.Placed = r.Times.Run
		c.setVM(v)
		return
	}
	from, ok := c.hypervisorAt(r.PeerRLOC)
	if !ok || from.Name == h.Name {
		from = c.inv.hvs[v.Hypervisor]
	}
	rec := *r
	rec.VM = v.Name
	c.seq++
	e := &entry{m: Move{
		Record: Record{
			ID: c.freeID(r.ID), VM: v.Name, EIDs: v.EIDs, From: from.Name, FromSite: from.Site, To: h.Name, ToSite: h.Site,
			State: Running, Version: r.Version, Why: "not announced: the agents carried it out", Target: &rec,
		},
		Seq: c.seq, MACs: v.MACs, Interface: v.Interface, Observed: true, Open: true, Since: now,
		Src: from.side(), Tgt: h.side(),
	}}
	e.m.Tgt.AgentID = r.ID
	c.insert(e)
	c.log.Info("found a move that nobody announced", "move", e.m.ID, "vm", v.Name, "from", from.Name, "to", h.Name)
	c.counters.add("moves not announced", 1)
	v.Hypervisor, v.Placed = h.Name, r.Times.Run
	if r.Version.Newer(v.Version) {
		v.Version = r.Version
	}
	c.setVM(v)
	c.supersede(e, now)
	c.event(e.m.ID, evReport{role: Target, started: now, rec: &rec}, now)
}

// attach finds the unannounced move that a source's record is the other half of.
func (c *Controller) attach(h Hypervisor, v VM, r *AgentRecord, now time.Time) {
	for _, e := range c.byVM[v.Name] {
		m := &e.m
		if !m.Observed || !m.Open || m.Src.Hypervisor != h.Name || m.Src.AgentID != "" || m.Target == nil {
			continue
		}
		at := r.Times.Redirecting
		if at.IsZero() {
			at = r.Times.Paused
		}
		if d := m.Target.Times.Run.Sub(at); d < -attachWithin || d > attachWithin {
			continue
		}
		rec := *r
		rec.VM = v.Name
		m.Src.AgentID = r.ID
		c.alias[alias{h.Name, r.ID}] = m.ID
		c.rewatch = true
		c.event(m.ID, evReport{role: Source, started: now, rec: &rec}, now)
		return
	}
}

// freeID makes an agent's name for a move ours.
func (c *Controller) freeID(id string) string {
	for c.moves[id] != nil || !idForm.MatchString(id) {
		id = "unprepared-" + randomHex(6)
	}
	return id
}

// observe is step for a move that the agents carry out alone.
func (s *stepper) observe(ev event) {
	m := s.m
	switch ev := ev.(type) {
	case evSuperseded:
		if !m.State.Ended() {
			s.enter(Superseded, "the VM moved on: "+ev.by)
		}
	case evRestart:
		m.Since = s.now
	case evReport:
		if ev.rec == nil {
			m.side(ev.role).Gone = m.record(ev.role) != nil
			break
		}
		rec := ev.rec
		if ev.role == Source {
			m.Source = rec
		} else {
			m.Target = rec
		}
		if rec.Version.Newer(m.Version) {
			m.Version = rec.Version
		}
	}
	t := m.Target
	switch {
	case m.State == Running && t != nil && !t.Times.Aborted.IsZero():
		s.enter(Aborted, t.Why)
	case m.State == Running && t != nil && !t.Times.Claimed.IsZero():
		s.enter(Pushed, m.Why)
		m.Times.Pushed = t.Times.Claimed
	}
	over := s.due(m.Since.Add(s.timing.Settle))
	// The source may be dead, or may not have noticed anything.
	last := (s.finished(Target) || over) && (s.finished(Source) || s.due(m.Since.Add(s.timing.Forget)))
	if !last {
		return
	}
	if !m.State.Ended() {
		s.enter(Settled, m.Why)
	}
	m.Open = false
}
