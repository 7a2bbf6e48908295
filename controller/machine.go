package controller

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// The life of one move, as a pure function: step takes a Move, what happened and the time, and returns
// the Move after it, what is to be done, and when to come back at the latest. The caller makes the
// Move durable before it does anything. Actions are idempotent: after a restart, evRestart has step
// ask again for whatever was not acknowledged. hear.go draws conclusions from what the agents say,
// push.go registers with the Map-Servers.

// event is something that happened to a move.
type event interface{ isEvent() }

type (
	// evTick: time passed.
	evTick struct{}
	// evRestart: the controller has just started; nothing is under way.
	evRestart struct{}
	// evLookup answers actLookup: what the mapping system holds. An EID that nobody answered for is absent.
	evLookup struct{ found map[lisp.EID]lookedUp }
	// evCall answers actCall.
	evCall struct {
		role    Role
		verb    Verb
		started time.Time
		version lisp.Version // that the agent was told as the current one
		rec     *AgentRecord // nil if the answer had none
		err     error
	}
	// evReport: an agent listed its records at started; rec is nil if this move was not among them.
	evReport struct {
		role    Role
		started time.Time
		rec     *AgentRecord
	}
	// evNotify: a Map-Server answered a Map-Register of ours.
	evNotify struct {
		server   netip.Addr
		eid      lisp.EID
		version  lisp.Version
		holder   lisp.XTRID // zero if it was not said
		locators []lisp.Locator
	}
	// evCommit: somebody who knows says that the VM runs on the target.
	evCommit struct{ why string }
	// evAbort: somebody asks to undo.
	evAbort struct{ why string }
	// evSuperseded: the VM runs elsewhere already, by a later move.
	evSuperseded struct{ by string }
)

func (evTick) isEvent()       {}
func (evRestart) isEvent()    {}
func (evLookup) isEvent()     {}
func (evCall) isEvent()       {}
func (evReport) isEvent()     {}
func (evNotify) isEvent()     {}
func (evCommit) isEvent()     {}
func (evAbort) isEvent()      {}
func (evSuperseded) isEvent() {}

// action is something to do for a move. Each but actRegister is answered by exactly one event.
type action interface{ isAction() }

type (
	actLookup struct{ eids []lisp.EID }
	actCall   struct {
		role Role
		verb Verb
	}
	actRegister struct {
		server  netip.Addr
		eid     lisp.EID
		version lisp.Version
	}
)

func (actLookup) isAction()   {}
func (actCall) isAction()     {}
func (actRegister) isAction() {}

// env is what step knows besides the move.
type env struct {
	timing  Timing
	servers []netip.Addr
}

func (e env) step(old Move, ev event, now time.Time) (m Move, acts []action, next time.Time) {
	m = old.clone()
	s := stepper{env: e, m: &m, now: now}
	if m.Observed {
		s.observe(ev)
	} else {
		s.apply(ev)
		s.advance()
	}
	m.merge()
	if !m.Open {
		s.next = time.Time{}
	}
	return m, s.acts, s.next
}

// stepper is one call of step.
type stepper struct {
	env
	m    *Move
	now  time.Time
	acts []action
	next time.Time
}

func (s *stepper) do(a action) { s.acts = append(s.acts, a) }

// wake makes the caller come back at t at the latest.
func (s *stepper) wake(t time.Time) {
	if s.next.IsZero() || t.Before(s.next) {
		s.next = t
	}
}

// due reports whether t has come, and else wakes then.
func (s *stepper) due(t time.Time) bool {
	if t.After(s.now) {
		s.wake(t)
		return false
	}
	return true
}

func (s *stepper) enter(st State, why string) {
	m := s.m
	m.State, m.Since, m.Why = st, s.now, why
	for _, sd := range []*Side{&m.Src, &m.Tgt} {
		sd.fails, sd.retryAt, sd.looked, sd.since = 0, time.Time{}, false, time.Time{}
	}
	switch st {
	case Prepared:
		m.Times.Prepared = s.now
	case Running:
		m.Times.Committed = s.now
		m.Error = ""
	case Settled:
		m.Times.Settled = s.now
	case Aborted:
		m.Times.Aborted = s.now
	}
}

// advance does what the state asks for, until there is nothing to do but wait.
func (s *stepper) advance() {
	for {
		before := s.m.State
		switch s.m.State {
		case Preparing:
			s.preparing()
		case Prepared:
			s.prepared()
		case Running, Pushed:
			s.running()
		case Aborting:
			s.aborting()
		case Aborted, Superseded:
			s.lastCounts()
		}
		if s.m.State == before {
			return
		}
	}
}

// call asks for a call to an agent unless one is under way or it is too early.
func (s *stepper) call(r Role, v Verb) {
	sd := s.m.side(r)
	if sd.busy || !s.due(sd.retryAt) {
		return
	}
	sd.busy = true
	if v == VerbPrepare {
		sd.Asked = true
	}
	s.do(actCall{r, v})
}

func (s *stepper) ready(sd *Side) bool {
	return sd.Told == VerbPrepare && sd.Version == s.m.Known
}

// preparing: the target must be ready to hold packets before the source may send it any.
func (s *stepper) preparing() {
	m := s.m
	if !m.LookedUp {
		if !m.asking {
			m.asking = true
			s.do(actLookup{m.EIDs})
		}
	} else {
		switch {
		case !s.ready(&m.Tgt):
			s.call(Target, VerbPrepare)
		case !s.ready(&m.Src):
			s.call(Source, VerbPrepare)
		default:
			s.enter(Prepared, "both agents are ready")
			return
		}
	}
	if s.due(m.Since.Add(s.timing.Prepare)) {
		m.Error = "prepare timed out"
		for _, r := range []Role{Target, Source} {
			if sd := m.side(r); !s.ready(sd) {
				m.Error += fmt.Sprintf(": %s %s: %s", r, sd.Hypervisor, or(sd.Error, "no answer"))
				break
			}
		}
		s.enter(Aborting, "prepare timed out")
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (s *stepper) prepared() {
	m := s.m
	for _, r := range []Role{Target, Source} {
		// Said again now and then, so that an agent knows that somebody still waits, and learns anew what
		// it has forgotten.
		if sd := m.side(r); !s.ready(sd) || s.due(sd.ToldAt.Add(s.timing.Again)) {
			s.call(r, VerbPrepare)
		}
	}
	patience := s.timing.Prepared
	if m.Patience > 0 {
		patience = m.Patience
	}
	if !m.Driven && s.due(m.Since.Add(patience)) {
		m.Error = "the VM did not move in " + patience.String()
		s.enter(Aborting, "timeout")
	}
}

// running: the Map-Servers and the agents are told in parallel, and nobody waits for another.
func (s *stepper) running() {
	m := s.m
	if m.contest != 0 {
		s.contested()
	}
	if !m.LookedUp {
		if !m.asking {
			m.asking = true
			s.do(actLookup{m.EIDs})
		}
	}
	s.register()
	over := s.due(m.Since.Add(s.timing.Settle))
	if m.State == Running && s.held() {
		m.Times.Pushed = s.now
		why := m.Why
		s.enter(Pushed, why)
		return
	}
	for _, r := range []Role{Target, Source} {
		sd, rec := m.side(r), m.record(r)
		switch {
		case rec.final() || sd.Gone || sd.Told == VerbCommit:
		case sd.Told == "": // it was not prepared, or has forgotten
			s.call(r, VerbPrepare)
		default:
			s.call(r, VerbCommit)
		}
		if over && !s.finished(r) && !sd.busy {
			sd.Gone, sd.Error = true, or(sd.Error, "has not settled in "+s.timing.Settle.String())
		}
	}
	if !s.finished(Source) || !s.finished(Target) {
		return
	}
	// A Map-Server that is away hears of the VM by the target's next refresh, if the target lives.
	confirmed, all := s.confirmed()
	if all || over || confirmed && m.Target.final() {
		if m.State == Running {
			m.Error = or(m.Error, "no Map-Server has confirmed the new mapping")
		}
		m.Open = false
		s.enter(Settled, m.Why)
	}
}

func (s *stepper) finished(r Role) bool { return s.m.record(r).final() || s.m.side(r).Gone }

// aborting: the source takes the VM back first, so that the target has somewhere to give what it held.
func (s *stepper) aborting() {
	m := s.m
	// Has the VM started on the target meanwhile? Then there is nothing to go back to.
	if m.Tgt.Asked && !m.Tgt.looked {
		s.call(Target, verbLook)
		if m.Tgt.busy {
			return
		}
	}
	for _, r := range []Role{Source, Target} {
		sd := m.side(r)
		if !sd.Asked || sd.Told == VerbAbort || m.record(r).final() {
			continue
		}
		if sd.since.IsZero() {
			sd.since = s.now
		}
		// Whoever has never answered gets one attempt.
		hopeless := sd.Told == "" && sd.fails > 0
		if sd.busy || !hopeless && !s.due(sd.since.Add(s.timing.Abort)) {
			s.call(r, VerbAbort)
			return
		}
		// It undoes by itself when its own time is up.
		sd.Gone = true
		m.Error = or(m.Error, fmt.Sprintf("%s %s did not undo: %s", r, sd.Hypervisor, or(sd.Error, "no answer")))
	}
	s.enter(Aborted, m.Why)
}

// lastCounts keeps an ended move open until both agents have said their last counts.
func (s *stepper) lastCounts() {
	m := s.m
	if !m.Open {
		return
	}
	done := true
	for _, r := range []Role{Source, Target} {
		done = done && (!m.side(r).Asked || s.finished(r))
	}
	if done || s.due(m.Since.Add(s.timing.Forget)) {
		m.Open = false
	}
}
