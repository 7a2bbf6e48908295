package controller

import (
	"errors"
	"fmt"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// lookedUp is what the mapping system holds for an EID.
type lookedUp struct {
	version  lisp.Version
	locators []lisp.Locator // none: nothing is registered
}

func (s *stepper) apply(ev event) {
	m := s.m
	switch ev := ev.(type) {
	case evLookup:
		s.lookedUp(ev)
	case evCall:
		s.called(ev)
	case evReport:
		s.reported(ev)
	case evNotify:
		s.notified(ev)
	case evCommit:
		if m.State == Preparing || m.State == Prepared {
			s.run(ev.why)
		}
	case evAbort:
		if m.State == Preparing || m.State == Prepared {
			s.enter(Aborting, ev.why)
		}
	case evSuperseded:
		if m.State == Running || m.State == Pushed {
			s.enter(Superseded, "the VM moved on: "+ev.by)
		}
	case evRestart:
		m.Since = s.now // the waits begin anew: the agents may have waited for us
		// A claim without a number is worth what its evidence is, and that is old now: the Map-Servers
		// may have numbered a later one meanwhile.
		if m.State == Running || m.State == Pushed {
			for _, e := range m.EIDs {
				if m.Versions[e] == 0 {
					m.LookedUp = false
				}
			}
		}
	}
}

// run: the VM runs on the target.
func (s *stepper) run(why string) {
	m := s.m
	s.enter(Running, why)
	if m.Versions == nil {
		m.Versions = map[lisp.EID]lisp.Version{}
		for _, e := range m.EIDs {
			m.Versions[e] = m.Version
		}
	}
	// Without a version we claim with 0 and the Map-Server numbers it: no time for questions now.
	m.LookedUp = true
}

// lookedUp takes what the mapping system holds.
func (s *stepper) lookedUp(ev evLookup) {
	m := s.m
	m.asking = false
	if m.LookedUp {
		return
	}
	m.LookedUp = true
	for _, e := range m.EIDs {
		f, ok := ev.found[e]
		if !ok {
			continue
		}
		switch m.State {
		case Preparing:
			if m.Known != 0 && f.version.Newer(m.Known) && len(f.locators) > 0 && !hasRLOC(f.locators, m.Src.RLOC) {
				// It went there and nobody told us. Its old host, asked to let it go, would take it back first.
				m.Error = fmt.Sprintf("%s is not on %s any more: the mapping system has it at %s", e, m.Src.Hypervisor, f.locators[0].RLOC)
				s.enter(Aborting, "the VM is elsewhere")
				return
			}
			if f.version.Newer(m.Known) {
				m.Known = f.version
			}
		case Running, Pushed:
			if m.Versions[e] != 0 || f.version == 0 {
				continue
			}
			switch {
			case hasRLOC(f.locators, m.Tgt.RLOC):
				s.accept(e, f.version)
			case hasRLOC(f.locators, m.Src.RLOC) || len(f.locators) == 0:
				m.Versions[e] = f.version.Next()
			default:
				s.refused(e, f.version, "another xTR")
			}
		}
	}
	if m.State == Preparing {
		m.Version = claimed(m.Known)
	}
}

// claimed is the version of a claim by somebody who knows of v: one higher, or 0 for the Map-Server to
// number (DESIGN.md section 3).
func claimed(v lisp.Version) lisp.Version {
	if v == 0 {
		return 0
	}
	return v.Next()
}

func (s *stepper) called(ev evCall) {
	m, sd := s.m, s.m.side(ev.role)
	sd.busy = false
	s.see(ev.role, ev.rec)
	var st *StatusError
	switch {
	case ev.err == nil:
		sd.fails, sd.retryAt, sd.Error = 0, time.Time{}, ""
		sd.Gone = false
		switch ev.verb {
		case verbLook:
			sd.looked = true
		default:
			sd.Told, sd.ToldAt = ev.verb, s.now
		}
		if ev.verb == VerbPrepare {
			sd.Version = ev.version
			s.heard(ev.rec)
		}
		return
	case errors.As(ev.err, &st) && st.Code == 404:
		switch ev.verb {
		case VerbCommit: // it forgot the move, or never heard of it: prepare it, then commit
			sd.Told, sd.Error = "", ev.err.Error()
			s.backOff(sd)
			return
		case VerbAbort, verbLook:
			sd.looked = true
			if ev.verb == VerbAbort {
				sd.Told, sd.ToldAt, sd.Gone = VerbAbort, s.now, true
			}
			return
		}
	case errors.As(ev.err, &st) && st.final() && ev.verb == VerbAbort:
		if st.Code == 409 && ev.role == Target && m.State == Aborting && !m.Target.replaced() {
			s.run("the VM runs on the target after all: " + st.Text)
			return
		}
		sd.Told, sd.ToldAt = VerbAbort, s.now // there is nothing that it could undo
	case errors.As(ev.err, &st) && st.final() && m.State.arrived() && ev.verb != verbLook:
		// It knows better, or cannot take part: saying it again changes nothing.
		sd.Told, sd.ToldAt, sd.Error = VerbCommit, s.now, ev.err.Error()
		return
	}
	sd.Error = ev.err.Error()
	if ev.verb == verbLook {
		sd.looked = true // it cannot be asked: do without
		return
	}
	if m.State == Preparing && ev.verb == VerbPrepare && errors.As(ev.err, &st) && st.final() {
		m.Error = fmt.Sprintf("%s %s does not accept the move: %v", ev.role, sd.Hypervisor, ev.err)
		if sd.Told == "" {
			sd.Asked = false // it said no: nothing to undo there
		}
		s.enter(Aborting, "prepare was refused")
		return
	}
	s.backOff(sd)
}

// backOff sets when the next attempt at an agent is made.
func (s *stepper) backOff(sd *Side) {
	d := s.timing.Retry << min(sd.fails, 20)
	if d <= 0 || d > s.timing.RetryMax {
		d = s.timing.RetryMax
	}
	sd.fails++
	sd.retryAt = s.now.Add(d)
}

// heard takes the version that an agent knows from its answer to a prepare. If it is newer than what we
// told the other, that one is told again.
func (s *stepper) heard(rec *AgentRecord) {
	m := s.m
	if rec == nil || m.State != Preparing || !rec.Version.Newer(m.Known) {
		return
	}
	m.Known, m.Version = rec.Version, claimed(rec.Version)
}

func (s *stepper) reported(ev evReport) {
	m, sd := s.m, s.m.side(ev.role)
	if ev.rec != nil {
		sd.Gone = false
		s.see(ev.role, ev.rec)
		return
	}
	// The list may be older than what the agent was told.
	if sd.Told == "" || sd.busy || !ev.started.After(sd.ToldAt) {
		return
	}
	switch m.State {
	case Preparing, Prepared:
		sd.Told = "" // it restarted and forgot: tell it again
	case Running, Pushed, Superseded, Aborted:
		if sd.Told == VerbCommit || sd.Told == VerbAbort || m.State == Superseded {
			sd.Gone = true
		}
	}
}

// see takes what an agent knows of the move, and draws the conclusions.
func (s *stepper) see(r Role, rec *AgentRecord) {
	m := s.m
	if rec == nil || rec.VM != m.VM || rec.Role != r {
		return
	}
	if r == Source {
		m.Source = rec
	} else {
		m.Target = rec
	}
	undone := !rec.Times.Aborted.IsZero()
	switch m.State {
	case Preparing, Prepared:
		switch {
		case r == Target && rec.runs():
			s.run("the target's agent saw the VM run")
		case r == Source && rec.told() && rec.PeerRLOC == m.Tgt.RLOC.String():
			s.run("the mapping system told the source's agent that the VM runs on the target")
		case r == Source && rec.told():
			// It has nothing to take back, and must not claim what runs elsewhere.
			m.Error = fmt.Sprintf("the VM went elsewhere: %s", rec.Why)
			s.enter(Aborting, "the mapping system told the source's agent that the VM runs at "+rec.PeerRLOC)
			m.Src.Told = VerbAbort
		case undone && m.Times.Prepared.IsZero():
			m.Error = fmt.Sprintf("%s %s gave the move up: %s", r, m.side(r).Hypervisor, rec.Why)
			s.enter(Aborting, "prepare was given up by an agent")
		case undone && r == Source:
			s.enter(Aborting, "the VM goes on at the source: "+rec.Why)
		case undone:
			m.Error = fmt.Sprintf("target %s gave the move up: %s", m.Tgt.Hypervisor, rec.Why)
			s.enter(Aborting, "given up by the target's agent")
		}
	case Aborting:
		if r == Target && rec.runs() {
			s.run("the VM runs on the target after all")
		}
	case Running, Pushed:
		if r == Source && undone && (m.Target == nil || !m.Target.saw()) {
			s.enter(Aborting, "the VM goes on at the source: "+rec.Why)
			return
		}
		if r == Target && rec.Version != 0 && !rec.Times.Claimed.IsZero() {
			for _, e := range m.EIDs {
				if m.Versions[e] == 0 {
					s.version(e, rec.Version) // the Map-Server has numbered its claim
				}
			}
			if rec.Version.Newer(m.Version) {
				m.Version = rec.Version
			}
		}
	}
}
