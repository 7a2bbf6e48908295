package controller

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// The life of one move, as a pure function: step takes a Move, what happened and the time, and returns
// the Move after it, what is to be done, and when to come back at the latest. The caller makes the
// Move durable before it does anything. Actions are idempotent: after a restart, evRestart has step
// ask again for whatever was not acknowledged.

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

// lookedUp is what the mapping system holds for an EID.
type lookedUp struct {
	version  lisp.Version
	locators []lisp.Locator // none: nothing is registered
}

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

// pushKey names one registration: an EID at a Map-Server.
type pushKey struct {
	server netip.Addr
	eid    lisp.EID
}

// push is how far one registration has come.
type push struct {
	done   bool // confirmed, or refused for good
	tries  int
	nextAt time.Time
}

// maxReclaims bounds how often the controller contests a claim of the source for a VM that it was told
// has left it. The target contests by itself, with evidence, as long as it has it.
const maxReclaims = 3

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

func hasRLOC(ls []lisp.Locator, a netip.Addr) bool {
	return slices.ContainsFunc(ls, func(l lisp.Locator) bool { return l.RLOC == a })
}

// version makes v the version of e; whoever confirmed an older one is told again.
func (s *stepper) version(e lisp.EID, v lisp.Version) {
	m := s.m
	m.Versions[e] = v
	if v.Newer(m.Version) {
		m.Version = v
	}
	for k, p := range m.push {
		if k.eid == e {
			p.done, p.tries, p.nextAt = false, 0, time.Time{}
			m.push[k] = p
		}
	}
	for srv, eids := range m.Confirmed {
		m.Confirmed[srv] = without(eids, e)
	}
}

func without(eids []lisp.EID, e lisp.EID) []lisp.EID {
	return slices.DeleteFunc(slices.Clone(eids), func(f lisp.EID) bool { return f == e })
}

// accept: the mapping system holds e at the target with version v.
func (s *stepper) accept(e lisp.EID, v lisp.Version) {
	if v.Newer(s.m.Versions[e]) {
		s.version(e, v)
	}
}

// notified: DESIGN: the sender takes the highest version that it was told and registers again with it
// everywhere.
func (s *stepper) notified(ev evNotify) {
	m := s.m
	if m.State != Running && m.State != Pushed || !slices.Contains(m.EIDs, ev.eid) || !slices.Contains(s.servers, ev.server) {
		return
	}
	ours := ev.holder == m.Tgt.XTRID || ev.holder.IsZero() && hasRLOC(ev.locators, m.Tgt.RLOC)
	if !ours {
		if v := m.Versions[ev.eid]; v.Newer(ev.version) {
			return // an answer to something older
		}
		theirs := ev.holder == m.Src.XTRID || ev.holder.IsZero() && hasRLOC(ev.locators, m.Src.RLOC)
		if theirs && m.Reclaims < maxReclaims {
			// It registered while we were not looking, or took the VM back. What its agent sees decides.
			if ev.version.Newer(m.contest) {
				m.contest = ev.version
			}
			m.Src.looked = false
			return
		}
		s.result(ev.server, func(r *ServerResult) {
			r.Error = fmt.Sprintf("refused: xTR %s holds %s with version %d", ev.holder, ev.eid, ev.version)
		})
		k := pushKey{ev.server, ev.eid}
		p := m.push[k]
		p.done = true
		m.push[k] = p
		return
	}
	s.accept(ev.eid, ev.version)
	if ev.version != m.Versions[ev.eid] {
		return // older than what we registered since: that one is answered, too
	}
	k := pushKey{ev.server, ev.eid}
	p := m.push[k]
	p.done = true
	if m.push == nil {
		m.push = map[pushKey]push{}
	}
	m.push[k] = p
	if m.Confirmed == nil {
		m.Confirmed = map[netip.Addr][]lisp.EID{}
	}
	if !slices.Contains(m.Confirmed[ev.server], ev.eid) {
		m.Confirmed[ev.server] = append(slices.Clone(m.Confirmed[ev.server]), ev.eid)
	}
	s.result(ev.server, func(r *ServerResult) {
		r.Error = ""
		if ev.version.Newer(r.Version) {
			r.Version = ev.version
		}
		if r.Accepted.IsZero() && len(m.Confirmed[ev.server]) == len(m.EIDs) {
			r.Accepted = s.now
		}
	})
}

func (s *stepper) refused(e lisp.EID, v lisp.Version, who string) {
	s.m.Error = fmt.Sprintf("%s holds %s with version %d", who, e, v)
	for _, srv := range s.servers {
		if s.m.push == nil {
			s.m.push = map[pushKey]push{}
		}
		s.m.push[pushKey{srv, e}] = push{done: true}
	}
}

func (s *stepper) result(srv netip.Addr, change func(*ServerResult)) {
	m := s.m
	for i := range m.MapServers {
		if m.MapServers[i].Server == srv {
			change(&m.MapServers[i])
			return
		}
	}
	r := ServerResult{Server: srv}
	change(&r)
	m.MapServers = append(m.MapServers, r)
	slices.SortFunc(m.MapServers, func(a, b ServerResult) int { return a.Server.Compare(b.Server) })
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
	if s.due(m.Since.Add(s.timing.Prepared)) {
		m.Error = "the VM did not move in " + s.timing.Prepared.String()
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

// contested: the source registered a version that is not older than ours. Its own record tells whether
// it took the VM back; if it does not, or nobody answers there, the VM is at the target, and we claim
// again, one higher.
func (s *stepper) contested() {
	m := s.m
	if !m.Src.looked {
		s.call(Source, verbLook)
		return
	}
	v := m.contest.Next()
	m.contest = 0
	m.Reclaims++
	for _, e := range m.EIDs {
		s.version(e, v)
	}
}

func (s *stepper) finished(r Role) bool { return s.m.record(r).final() || s.m.side(r).Gone }

// register sends what has not been confirmed and is due.
func (s *stepper) register() {
	m := s.m
	if m.push == nil {
		m.push = map[pushKey]push{}
		for srv, eids := range m.Confirmed {
			for _, e := range eids {
				m.push[pushKey{srv, e}] = push{done: true}
			}
		}
	}
	for _, srv := range s.servers {
		for _, e := range m.EIDs {
			k := pushKey{srv, e}
			p := m.push[k]
			if p.done || m.Versions[e] == 0 && !m.LookedUp || !s.due(p.nextAt) {
				continue
			}
			d := s.timing.Register << min(p.tries, 16)
			if d <= 0 || d > maxRegisterBackoff {
				d = maxRegisterBackoff
			}
			p.tries++
			p.nextAt = s.now.Add(d)
			s.wake(p.nextAt)
			m.push[k] = p
			s.do(actRegister{srv, e, m.Versions[e]})
		}
	}
}

// confirmed: some Map-Server holds every EID; all of them do, or have refused for good.
func (s *stepper) confirmed() (some, all bool) {
	m := s.m
	all = true
	for _, srv := range s.servers {
		if len(m.Confirmed[srv]) == len(m.EIDs) {
			some = true
			continue
		}
		for _, e := range m.EIDs {
			all = all && m.push[pushKey{srv, e}].done
		}
	}
	return some || len(s.servers) == 0, all
}

// held: the mapping system knows: by a Map-Notify to us, or by one to the target.
func (s *stepper) held() bool {
	some, _ := s.confirmed()
	return some && len(s.servers) > 0 || s.m.Target != nil && !s.m.Target.Times.Claimed.IsZero()
}

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
