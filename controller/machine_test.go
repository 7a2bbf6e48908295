package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

var (
	ms1 = netip.MustParseAddr("10.0.0.7")
	ms2 = netip.MustParseAddr("10.0.0.8")
	t0  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func testEnv(servers ...netip.Addr) env {
	return env{timing: Timing{}.withDefaults(), servers: servers}
}

func newMove(eids ...lisp.EID) Move {
	hv := func(n string) Side { return Side{Hypervisor: n, RLOC: rlocOf(n), XTRID: xtrOf(n)} }
	return Move{
		Record: Record{ID: "m1", VM: "web", EIDs: eids, From: "hv1", To: "hv2", State: Preparing, Times: Times{PrepareStarted: t0}},
		Open:   true, Since: t0, Src: hv("hv1"), Tgt: hv("hv2"),
	}
}

// one is a script of a move, told event by event.
type one struct {
	t    *testing.T
	env  env
	m    Move
	now  time.Time
	next time.Time
}

func script(t *testing.T, servers ...netip.Addr) *one {
	return &one{t: t, env: testEnv(servers...), m: newMove(webEIDs[0]), now: t0}
}

// on steps with ev and compares the actions and the state with what is wanted.
func (s *one) on(ev event, state State, want ...action) {
	s.t.Helper()
	before, err := json.Marshal(s.m)
	if err != nil {
		s.t.Fatal(err)
	}
	old := s.m
	m, acts, next := s.env.step(s.m, ev, s.now)
	if after, _ := json.Marshal(old); string(after) != string(before) {
		s.t.Errorf("step changed what it was given")
	}
	s.m, s.next = m, next
	if m.State != state {
		s.t.Errorf("%T: state %s (%s, %s), want %s", ev, m.State, m.Why, m.Error, state)
	}
	if d := cmp.Diff(want, acts, cmp.AllowUnexported(actCall{}, actLookup{}, actRegister{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		s.t.Errorf("%T: actions (-want +got):\n%s", ev, d)
	}
}

func (s *one) after(d time.Duration) { s.now = s.now.Add(d) }

func (s *one) rec(r Role, change func(*AgentRecord)) *AgentRecord {
	rec := &AgentRecord{ID: "m1", VM: "web", Role: r}
	if change != nil {
		change(rec)
	}
	return rec
}

func (s *one) prepared() {
	s.t.Helper()
	s.on(evTick{}, Preparing, actLookup{s.m.EIDs})
	s.on(evLookup{map[lisp.EID]lookedUp{webEIDs[0]: {version: 6}}}, Preparing, actCall{Target, VerbPrepare})
	s.on(evCall{role: Target, verb: VerbPrepare, version: 6, rec: s.rec(Target, nil)}, Preparing, actCall{Source, VerbPrepare})
	s.on(evCall{role: Source, verb: VerbPrepare, version: 6, rec: s.rec(Source, nil)}, Prepared)
}

func (s *one) notify(server netip.Addr, v lisp.Version, holder string) evNotify {
	return evNotify{server: server, eid: webEIDs[0], version: v, holder: xtrOf(holder)}
}

func TestStepCommit(t *testing.T) {
	s := script(t, ms1, ms2)
	s.prepared()
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actRegister{ms2, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
	s.on(evCommit{"api"}, Running)
	s.after(time.Second)
	s.on(evTick{}, Running, actRegister{ms1, webEIDs[0], 7}, actRegister{ms2, webEIDs[0], 7})
	s.on(s.notify(ms2, 7, "hv2"), Pushed)
	s.on(s.notify(ms2, 7, "hv2"), Pushed)
	s.after(2 * time.Second)
	s.on(evTick{}, Pushed, actRegister{ms1, webEIDs[0], 7})
	s.on(s.notify(ms1, 7, "hv2"), Pushed)
	s.after(time.Minute)
	s.on(evTick{}, Pushed)
	s.on(evCall{role: Target, verb: VerbCommit, rec: s.rec(Target, func(r *AgentRecord) { r.State = "settled" })}, Pushed)
	s.on(evCall{role: Source, verb: VerbCommit, rec: s.rec(Source, func(r *AgentRecord) { r.State = "settled" })}, Settled)
	if s.m.Open || !s.next.IsZero() {
		t.Errorf("open after the end: %+v", s.m)
	}
}

// The VM went elsewhere and nobody told the controller: its old host is not asked to let it go.
func TestStepSourceHasItNoMore(t *testing.T) {
	for name, c := range map[string]struct {
		known, version lisp.Version
		at             string
		elsewhere      bool
	}{
		"it is there":               {5, 6, "hv1", false},
		"it is at a third":          {5, 6, "hv3", true},
		"it is at the target":       {5, 6, "hv2", true},
		"the mapping system is old": {6, 6, "hv3", false},
		"the controller is new":     {0, 6, "hv3", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := script(t, ms1)
			s.m.Known = c.known
			s.on(evTick{}, Preparing, actLookup{s.m.EIDs})
			found := evLookup{map[lisp.EID]lookedUp{webEIDs[0]: {c.version, []lisp.Locator{{RLOC: rlocOf(c.at)}}}}}
			if c.elsewhere {
				s.on(found, Aborted)
			} else {
				s.on(found, Preparing, actCall{Target, VerbPrepare})
			}
		})
	}
}

// A version that only the source knew makes the target be told again.
func TestStepSourceKnowsBetter(t *testing.T) {
	s := script(t, ms1)
	s.on(evTick{}, Preparing, actLookup{s.m.EIDs})
	s.on(evLookup{}, Preparing, actCall{Target, VerbPrepare})
	s.on(evCall{role: Target, verb: VerbPrepare, rec: s.rec(Target, nil)}, Preparing, actCall{Source, VerbPrepare})
	s.on(evCall{role: Source, verb: VerbPrepare, rec: s.rec(Source, func(r *AgentRecord) { r.Version = 30 })}, Preparing, actCall{Target, VerbPrepare})
	s.on(evCall{role: Target, verb: VerbPrepare, version: 30}, Preparing, actCall{Source, VerbPrepare})
	s.on(evCall{role: Source, verb: VerbPrepare, version: 30}, Prepared)
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 31}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
}

func TestStepNewerVersionIsRegisteredEverywhere(t *testing.T) {
	s := script(t, ms1, ms2)
	s.prepared()
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actRegister{ms2, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
	s.on(s.notify(ms1, 7, "hv2"), Pushed)
	s.on(s.notify(ms2, 9, "hv2"), Pushed, actRegister{ms1, webEIDs[0], 9})
	s.on(s.notify(ms1, 7, "hv2"), Pushed) // late, of the first
	s.on(s.notify(ms1, 9, "hv2"), Pushed)
	if s.m.Version != 9 {
		t.Errorf("version %d", s.m.Version)
	}
}

func TestStepRefused(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
	s.on(s.notify(ms1, 12, "hv3"), Running)
	s.after(time.Minute)
	s.on(evTick{}, Running)
	if len(s.m.MapServers) != 1 || !strings.Contains(s.m.MapServers[0].Error, "version 12") {
		t.Errorf("%+v", s.m.MapServers)
	}
}

// The source's newer claim: if its agent took the VM back the move is undone, if not the claim is made
// again, and not for ever.
func TestStepContested(t *testing.T) {
	begin := func() *one {
		s := script(t, ms1)
		s.prepared()
		s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
		s.on(evCall{role: Target, verb: VerbCommit, err: errors.New("dead")}, Running)
		s.on(evCall{role: Source, verb: VerbCommit, rec: s.rec(Source, nil)}, Running)
		s.on(s.notify(ms1, 8, "hv1"), Running, actCall{Source, verbLook})
		return s
	}
	s := begin()
	s.on(evCall{role: Source, verb: verbLook, rec: s.rec(Source, func(r *AgentRecord) { r.Times.Aborted = s.now })}, Aborting, actCall{Target, verbLook})

	s = begin()
	s.on(evCall{role: Source, verb: verbLook, rec: s.rec(Source, nil)}, Running, actRegister{ms1, webEIDs[0], 9})
	s.on(s.notify(ms1, 8, "hv1"), Running) // late
	for v := lisp.Version(10); v <= 12; v += 2 {
		s.on(s.notify(ms1, v, "hv1"), Running, actCall{Source, verbLook})
		s.on(evCall{role: Source, verb: verbLook, err: errors.New("dead")}, Running, actRegister{ms1, webEIDs[0], v + 1})
	}
	s.after(time.Hour)
	s.on(s.notify(ms1, 14, "hv1"), Running, actCall{Target, VerbCommit})
	s.on(evCall{role: Target, verb: VerbCommit, err: errors.New("dead")}, Settled)
	if !strings.Contains(s.m.MapServers[0].Error, "version 14") {
		t.Errorf("%+v", s.m.MapServers)
	}
}

func TestStepAbortOrder(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evAbort{"api"}, Aborting, actCall{Target, verbLook})
	s.on(evCall{role: Target, verb: verbLook, rec: s.rec(Target, nil)}, Aborting, actCall{Source, VerbAbort})
	s.on(evCall{role: Source, verb: VerbAbort, err: errors.New("reset")}, Aborting)
	s.after(100 * time.Millisecond)
	s.on(evTick{}, Aborting, actCall{Source, VerbAbort})
	s.on(evCall{role: Source, verb: VerbAbort, rec: s.rec(Source, func(r *AgentRecord) { r.State, r.Times.Aborted = "aborted", s.now })}, Aborting, actCall{Target, VerbAbort})
	s.on(evCall{role: Target, verb: VerbAbort, rec: s.rec(Target, func(r *AgentRecord) { r.State, r.Times.Aborted = "giving-back", s.now })}, Aborted)
	if !s.m.Open {
		t.Error("closed before the target has given everything back")
	}
	s.on(evReport{role: Target, started: s.now.Add(1), rec: s.rec(Target, func(r *AgentRecord) { r.State, r.Held = "aborted", 5 })}, Aborted)
	if s.m.Open || s.m.Held != 5 {
		t.Errorf("%+v", s.m)
	}
}

func TestStepAbortTargetRefuses(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evAbort{"api"}, Aborting, actCall{Target, verbLook})
	s.on(evCall{role: Target, verb: verbLook, err: errors.New("timeout")}, Aborting, actCall{Source, VerbAbort})
	s.on(evCall{role: Source, verb: VerbAbort}, Aborting, actCall{Target, VerbAbort})
	s.on(evCall{role: Target, verb: VerbAbort, err: &StatusError{409, "it runs here"}}, Running,
		actRegister{ms1, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
}

// The mapping system told the source that the VM is at a third place: it must not claim it back.
func TestStepWentElsewhere(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evReport{role: Source, started: s.now, rec: s.rec(Source, func(r *AgentRecord) {
		r.Times.Claimed, r.PeerRLOC = s.now, "10.1.0.3"
	})}, Aborting, actCall{Target, verbLook})
	s.on(evCall{role: Target, verb: verbLook, rec: s.rec(Target, nil)}, Aborting, actCall{Target, VerbAbort})
	s.on(evCall{role: Target, verb: VerbAbort}, Aborted)
}

func TestStepSourceWasTold(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evReport{role: Source, started: s.now, rec: s.rec(Source, func(r *AgentRecord) {
		r.Times.Claimed, r.PeerRLOC = s.now, "10.1.0.2"
	})}, Running, actRegister{ms1, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
}

func TestStepCommitWhilePreparing(t *testing.T) {
	s := script(t, ms1)
	s.on(evTick{}, Preparing, actLookup{s.m.EIDs})
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 0}, actCall{Target, VerbPrepare}, actCall{Source, VerbPrepare})
	s.on(evLookup{map[lisp.EID]lookedUp{webEIDs[0]: {version: 6}}}, Running)
	s.on(evCall{role: Target, verb: VerbPrepare}, Running, actCall{Target, VerbCommit})
	s.on(evCall{role: Target, verb: VerbCommit, err: &StatusError{404, "no such"}}, Running)
	s.after(100 * time.Millisecond)
	s.on(evTick{}, Running, actCall{Target, VerbPrepare})
	s.on(s.notify(ms1, 7, "hv2"), Pushed)
}

func TestStepPreparedIsRepeatedAndEnds(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.after(time.Minute)
	s.on(evTick{}, Prepared, actCall{Target, VerbPrepare}, actCall{Source, VerbPrepare})
	s.on(evCall{role: Target, verb: VerbPrepare, version: 6}, Prepared)
	s.on(evCall{role: Source, verb: VerbPrepare, version: 6}, Prepared)
	s.after(time.Hour)
	s.on(evTick{}, Aborting, actCall{Target, VerbPrepare}, actCall{Source, VerbPrepare})
	s.on(evCall{role: Target, verb: VerbPrepare, version: 6}, Aborting, actCall{Target, verbLook})
}

func TestStepSuperseded(t *testing.T) {
	s := script(t, ms1)
	s.prepared()
	s.on(evSuperseded{"m2"}, Prepared) // not decided: another matter
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
	s.on(evSuperseded{"m2"}, Superseded)
	s.after(time.Hour)
	s.on(evTick{}, Superseded)
	if s.m.Open {
		t.Error("still open")
	}
	s.on(s.notify(ms1, 7, "hv2"), Superseded)
}

// After a restart everything that was not acknowledged is asked again, and a version that nobody knew is
// asked for before it is claimed with.
func TestStepRestart(t *testing.T) {
	s := script(t, ms1, ms2)
	s.prepared()
	s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 7}, actRegister{ms2, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})
	s.on(s.notify(ms1, 7, "hv2"), Pushed)
	s.m = reload(t, s.m)
	s.after(time.Hour)
	s.on(evRestart{}, Pushed, actRegister{ms2, webEIDs[0], 7}, actCall{Target, VerbCommit}, actCall{Source, VerbCommit})

	for _, c := range []struct {
		at      string
		version lisp.Version
		want    []action
	}{
		{"hv1", 8, []action{actRegister{ms1, webEIDs[0], 9}}},
		{"hv2", 8, []action{actRegister{ms1, webEIDs[0], 8}}},
		{"hv3", 8, nil},
	} {
		s = script(t, ms1)
		s.on(evCommit{"api"}, Running, actRegister{ms1, webEIDs[0], 0}, actCall{Target, VerbPrepare}, actCall{Source, VerbPrepare})
		s.m = reload(t, s.m)
		s.on(evRestart{}, Running, actLookup{s.m.EIDs}, actCall{Target, VerbPrepare}, actCall{Source, VerbPrepare})
		s.on(evLookup{map[lisp.EID]lookedUp{webEIDs[0]: {c.version, []lisp.Locator{{RLOC: rlocOf(c.at)}}}}}, Running, c.want...)
	}
}

// reload is what becomes of a Move when the controller is restarted.
func reload(t testing.TB, m Move) Move {
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out Move
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestStepRandom plays moves with random faults: calls that fail or are lost on the way back, agents that
// forget, Map-Servers that lose datagrams, restarts of the controller at any moment, commits and aborts.
// What must hold: the source is not told before the target has accepted; nothing is registered before the
// VM runs on the target; the target gives up only after the source was asked to take back; the move ends;
// and when it ends, the Map-Servers that it reached hold the VM where it is.
func TestStepRandom(t *testing.T) {
	ends := map[State]int{}
	for seed := range uint64(2500) {
		w := &chaos{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), env: testEnv(ms1, ms2), now: t0,
			recs: map[Role]*AgentRecord{}, reg: map[netip.Addr]lisp.Mapping{}}
		w.play()
		ends[w.m.State]++
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, strings.Join(w.log, "\n"))
		}
	}
	if ends[Settled] < 400 || ends[Aborted] < 400 {
		t.Errorf("the moves end too much alike: %v", ends)
	}
}

// chaos is a world of one move in which everything that can go wrong does, until calm.
type chaos struct {
	t     *testing.T
	rnd   *rand.Rand
	env   env
	m     Move
	now   time.Time
	next  time.Time
	queue []todo // on their way
	recs  map[Role]*AgentRecord
	reg   map[netip.Addr]lisp.Mapping
	calm  bool
	run   bool // the VM runs on the target
	log   []string

	targetReady, sourceAsked bool
}

type todo struct {
	at time.Time
	f  func()
}

func (w *chaos) chance(p float64) bool { return !w.calm && w.rnd.Float64() < p }

func (w *chaos) later(f func()) {
	w.queue = append(w.queue, todo{w.now.Add(time.Duration(w.rnd.IntN(400)) * time.Millisecond), f})
}

func (w *chaos) step(ev event) {
	m, acts, next := w.env.step(w.m, ev, w.now)
	if r, ok := ev.(evReport); !ok || r.rec == nil || m.State != w.m.State || len(acts) > 0 {
		w.log = append(w.log, fmt.Sprintf("%v %T%+v -> %s %+v", w.now.Sub(t0), ev, ev, m.State, acts))
	}
	w.m, w.next = m, next
	for _, a := range acts {
		w.do(a)
	}
}

func (w *chaos) do(a action) {
	switch a := a.(type) {
	case actLookup:
		w.later(func() {
			found := map[lisp.EID]lookedUp{}
			if !w.chance(0.3) {
				found[webEIDs[0]] = lookedUp{w.reg[ms1].Version, w.reg[ms1].Locators}
			}
			w.step(evLookup{found})
		})
	case actCall:
		version := w.m.Known
		if a.verb == VerbPrepare && a.role == Source {
			if !w.targetReady && !w.m.State.arrived() {
				w.t.Errorf("the source is told before the target is ready")
			}
			w.sourceAsked = true
		}
		if a.verb == VerbAbort && a.role == Target && w.m.Src.Asked && w.m.Src.Told != VerbAbort && !w.m.Source.final() && !w.m.Src.Gone {
			w.t.Errorf("the target gives up before the source has taken back")
		}
		started := w.now
		w.later(func() {
			ev := evCall{role: a.role, verb: a.verb, started: started, version: version}
			if w.chance(0.2) { // lost on the way there
				ev.err = errors.New("reset")
			} else {
				ev.rec, ev.err = w.agent(a, version)
				if w.chance(0.2) { // lost on the way back
					ev.rec, ev.err = nil, errors.New("timeout")
				}
			}
			w.step(ev)
		})
	case actRegister:
		if !w.run && !w.m.State.arrived() {
			w.t.Errorf("registered before the VM runs on the target")
		}
		w.later(func() {
			if w.chance(0.4) {
				return
			}
			w.claim(a.server, a.version, "hv2")
			if w.chance(0.4) {
				return
			}
			r := w.reg[a.server]
			w.later(func() {
				w.step(evNotify{server: a.server, eid: a.eid, version: r.Version, holder: r.XTRID, locators: r.Locators})
			})
		})
	}
}

func (w *chaos) claim(s netip.Addr, v lisp.Version, hv string) {
	n := lisp.Mapping{EID: webEIDs[0], Version: v, XTRID: xtrOf(hv), Locators: []lisp.Locator{{RLOC: rlocOf(hv)}}}
	old, ok := w.reg[s]
	switch {
	case v == 0 && ok && old.XTRID != n.XTRID:
		n.Version = old.Version.Next()
	case v == 0:
		n.Version = max(old.Version, 1)
	case ok && !n.Supersedes(old):
		return
	}
	w.reg[s] = n
}

// agent is what an agent does with a call.
func (w *chaos) agent(a actCall, version lisp.Version) (*AgentRecord, error) {
	if w.chance(0.02) {
		delete(w.recs, a.role) // it was restarted, and has forgotten
	}
	r := w.recs[a.role]
	if a.verb == VerbPrepare {
		if r == nil {
			r = &AgentRecord{ID: "m1", VM: "web", Role: a.role, State: "armed"}
			r.Times.Prepared = w.now
			w.recs[a.role] = r
		}
		r.Version = version
		if a.role == Target {
			w.targetReady = true
		}
	}
	if r == nil {
		return nil, &StatusError{404, "no such handover"}
	}
	switch {
	case a.verb == VerbCommit && a.role == Target:
		w.runs()
	case a.verb == VerbCommit && r.Times.Aborted.IsZero():
		r.Times.Redirecting, r.State = w.now, "redirecting"
	case a.verb == VerbAbort && a.role == Target && !r.Times.Run.IsZero():
		return nil, &StatusError{409, "the VM runs here"}
	case a.verb == VerbAbort && r.Times.Aborted.IsZero():
		r.Times.Aborted, r.State = w.now, "aborted"
		if a.role == Source && w.run {
			// It takes back what it does not have: nothing is claimed without evidence.
			r.State = "aborted"
		}
	}
	return w.look(a.role), nil
}

// look is a copy of an agent's record.
func (w *chaos) look(role Role) *AgentRecord {
	r := w.recs[role]
	if r == nil {
		return nil
	}
	from := r.Times.Run
	if role == Source {
		from = r.Times.Redirecting
	}
	if !from.IsZero() && w.now.Sub(from) > settleTime && r.Times.Aborted.IsZero() {
		r.State, r.Times.Settled = "settled", w.now
	}
	c := *r
	return &c
}

// runs: the VM runs on the target.
func (w *chaos) runs() {
	w.run = true
	if r := w.recs[Target]; r != nil && r.Times.Run.IsZero() && r.Times.Aborted.IsZero() {
		r.Times.Run, r.State = w.now, "running"
	}
}

func (w *chaos) play() {
	first := lisp.Version(w.rnd.IntN(3) * 2000)
	if first != 0 {
		w.claim(ms1, first, "hv1")
		w.claim(ms2, first, "hv1")
	}
	w.m = newMove(webEIDs[0])
	w.step(evTick{})
	polls := w.now
	migrates := w.now.Add(time.Duration(w.rnd.IntN(20)) * time.Second)
	wish := []event{evCommit{"api"}, evAbort{"api"}, nil}[w.rnd.IntN(3)]
	wishAt := migrates.Add(time.Duration(w.rnd.IntN(4000)-1000) * time.Millisecond)
	var migrated bool
	end := t0.Add(3 * time.Hour)
	for w.m.Open && w.now.Before(end) {
		// The next thing that happens.
		at := end
		for _, x := range []time.Time{w.next, polls, migrates, wishAt} {
			if !x.IsZero() && x.After(w.now) && x.Before(at) {
				at = x
			}
		}
		i := -1
		for j, q := range w.queue {
			if q.at.Before(at) || q.at.Equal(at) {
				at, i = q.at, j
			}
		}
		w.now = at
		w.calm = w.now.Sub(t0) > 3*time.Minute
		if i >= 0 {
			f := w.queue[i].f
			w.queue = slices.Delete(w.queue, i, i+1)
			f()
		}
		if w.chance(0.02) {
			w.log = append(w.log, "restart")
			w.m, w.queue = reload(w.t, w.m), nil
			w.step(evRestart{})
		}
		if !migrated && !migrates.After(w.now) {
			migrated = true
			if _, abort := wish.(evAbort); !abort && w.targetReady && !(w.m.State == Aborting || w.m.State == Aborted) {
				w.runs()
			}
		}
		if wish != nil && !wishAt.After(w.now) {
			if _, commit := wish.(evCommit); commit && w.m.State.binding() && w.m.State != Aborting {
				w.runs()
			}
			w.step(wish)
			wish = nil
		}
		if !polls.After(w.now) {
			polls = w.now.Add(500 * time.Millisecond)
			for _, role := range []Role{Source, Target} {
				if rec := w.look(role); !w.chance(0.3) && (rec != nil || w.m.side(role).Told != "") {
					w.step(evReport{role: role, started: w.now, rec: rec})
				}
			}
		}
		if !w.next.IsZero() && !w.next.After(w.now) {
			w.step(evTick{})
		}
	}
	if w.m.Open {
		w.t.Errorf("the move does not end: %+v", w.m)
		return
	}
	where := "hv1"
	if w.m.State.arrived() {
		where = "hv2"
	}
	if w.run && w.recs[Target] != nil && !w.recs[Target].Times.Run.IsZero() && where != "hv2" {
		w.t.Errorf("the VM runs on the target, but the move is %s", w.m.State)
	}
	if r := w.recs[Target]; r != nil && r.State == "settled" {
		for _, s := range w.env.servers { // its xTR lives, and repeats its registration
			w.claim(s, w.m.Version, "hv2")
		}
	}
	for s, r := range w.reg {
		if r.XTRID != xtrOf(where) {
			w.t.Errorf("%v holds the VM at %v, but it is at %s: %+v", s, r.XTRID, where, w.m)
		}
	}
}
