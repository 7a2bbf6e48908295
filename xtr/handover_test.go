package xtr

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

var testTiming = timing{settle: 30 * time.Second, prepare: 10 * time.Minute, grace: 10 * time.Second}

// armedSource and incomingTarget are handovers as a prepare leaves them, at the epoch.
func armedSource() *handover {
	h := &handover{Handover: Handover{ID: "m1", VM: "web", Role: Source, State: Armed, EIDs: []lisp.EID{testEID}, Version: 4,
		PeerRLOC: netip.MustParseAddr("100.64.2.2"), Times: Times{Prepared: epoch}}, Prepared: true, Copying: true, Hold: 7, Heard: epoch,
		PeerXTRID: lisp.XTRID{15: 9}, To: loc("100.64.2.2"), timing: testTiming, baseAt: epoch.Add(time.Hour)}
	return h
}

func incomingTarget() *handover {
	h := armedSource()
	h.Role, h.State, h.baseAt = Target, Incoming, time.Time{}
	return h
}

// step is one event and what it must lead to.
type step struct {
	at    time.Duration // since the epoch
	do    func(h *handover, now time.Time) []op
	ops   []op
	state State
}

func stopAt(h *handover, now time.Time) []op   { return h.stop(now, now, "stop") }
func tickAt(h *handover, now time.Time) []op   { return h.tick(now) }
func resumeAt(h *handover, now time.Time) []op { return h.resume(now, now, true) }
func frameAt(h *handover, now time.Time) []op {
	return h.seen(evidence{at: now, why: "frame"}, now, true)
}
func commitAt(h *handover, now time.Time) []op { return h.commit(now, true) }
func flushedAt(h *handover, now time.Time) []op {
	return h.flushed(HoldStats{Held: 3, Passed: 2, Dropped: map[string]uint64{"x": 1, "y": 0}}, now)
}
func replayedAt(h *handover, now time.Time) []op { return h.replayed(5, now) }
func abortAt(h *handover, now time.Time) []op {
	ops, _ := h.abort(now, "abort")
	return ops
}
func claimedAt(v lisp.Version) func(*handover, time.Time) []op {
	return func(h *handover, now time.Time) []op { return h.claimed(v, now) }
}
func elsewhereAt(v lisp.Version, id byte, rloc string) func(*handover, time.Time) []op {
	return func(h *handover, now time.Time) []op {
		m := others(testEID, v, id)
		m.Locators = loc(rloc)
		return h.elsewhere(m, m.Locators, now)
	}
}

const ms = time.Millisecond

func TestHandoverSteps(t *testing.T) {
	unprepared := func() *handover {
		h := armedSource()
		h.State, h.Prepared, h.Copying, h.To, h.PeerRLOC, h.PeerXTRID = Paused, false, false, nil, netip.Addr{}, lisp.XTRID{}
		h.Times = Times{Paused: epoch}
		return h
	}
	for _, tc := range []struct {
		name  string
		begin func() *handover
		steps []step
	}{
		{"a source to its end", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{10 * ms, stopAt, nil, Paused},
			{10*ms + ms/2, tickAt, nil, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
			{12 * ms, tickAt, nil, Paused},
			{13 * ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{15 * ms, flushedAt, []op{opRoutes}, Redirecting},
			{99 * ms, elsewhereAt(5, 9, "100.64.2.2"), nil, Redirecting},
			{time.Second, elsewhereAt(6, 8, "100.64.3.2"), []op{opRoutes}, Redirecting},
			{29 * time.Second, tickAt, nil, Redirecting},
			{31 * time.Second, tickAt, []op{opRelease, opForget, opRoutes, opNoCopies, opEnd}, Settled},
			{32 * time.Second, resumeAt, nil, Settled},
			{32 * time.Second, commitAt, nil, Settled},
			{32 * time.Second, abortAt, nil, Settled},
		}},
		{"a source that nobody tells that it runs", armedSource, []step{
			{0, stopAt, []op{opRoutes}, Paused},
			{ms, tickAt, []op{opReplay}, Paused},
			{ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{2 * ms, flushedAt, []op{opRoutes}, Redirecting},
			{9 * time.Minute, tickAt, nil, Redirecting},
			{11 * time.Minute, tickAt, []op{opRelease, opForget, opRoutes, opNoCopies, opEnd}, Settled},
		}},
		{"somebody goes on sending", armedSource, []step{
			{0, stopAt, []op{opRoutes}, Paused},
			{ms, tickAt, []op{opReplay}, Paused},
			{ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{2 * ms, commitAt, nil, Redirecting},
			{28 * time.Second, func(h *handover, now time.Time) []op { h.sentHere(now); return nil }, nil, Redirecting},
			{37 * time.Second, tickAt, nil, Redirecting},
			{39 * time.Second, tickAt, []op{opRelease, opForget, opRoutes, opNoCopies, opDiscard, opEnd}, Settled},
		}},
		{"it never ends sending", armedSource, []step{
			{0, stopAt, []op{opRoutes}, Paused},
			{ms, tickAt, []op{opReplay}, Paused},
			{ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{2 * ms, commitAt, nil, Redirecting},
			{9 * time.Minute, func(h *handover, now time.Time) []op { h.sentHere(now.Add(time.Hour)); return nil }, nil, Redirecting},
			{10*time.Minute + 2*ms, tickAt, []op{opRelease, opForget, opRoutes, opNoCopies, opDiscard, opEnd}, Settled},
		}},
		{"a source that was told by the mapping system only", armedSource, []step{
			{10 * ms, elsewhereAt(5, 9, "100.64.2.2"), []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
		}},
		{"a source that was told by the controller only", armedSource, []step{
			{10 * ms, commitAt, []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
		}},
		{"a source resumes before anything was sent on", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{10*ms + ms/2, resumeAt, []op{opRoutes, opNoCopies, opFlush}, TakingBack},
			{11 * ms, resumeAt, nil, TakingBack},
			{12 * ms, flushedAt, []op{opRoutes, opEnd}, Aborted},
		}},
		{"a source resumes while it waits for the replay", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
			{12 * ms, resumeAt, []op{opRoutes}, TakingBack},
			{13 * ms, replayedAt, []op{opNoCopies, opGiveBack}, TakingBack},
			{14 * ms, flushedAt, []op{opRoutes, opEnd}, Aborted},
		}},
		{"a source resumes while it flushes", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
			{12 * ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{13 * ms, resumeAt, []op{opLocal, opRoutes, opClaim, opGiveBack}, TakingBack},
			{14 * ms, flushedAt, []op{opRoutes, opEnd}, Aborted},
		}},
		{"a source is aborted when nothing is held any more", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
			{12 * ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{13 * ms, flushedAt, []op{opRoutes}, Redirecting},
			{14 * ms, frameAt, nil, Redirecting}, // it may have waited in a queue
			{15 * ms, abortAt, []op{opLocal, opRoutes, opClaim, opEnd}, Aborted},
			{16 * ms, abortAt, nil, Aborted},
		}},
		{"a source that goes on without a word", armedSource, []step{
			{10 * ms, stopAt, []op{opRoutes}, Paused},
			{11 * ms, tickAt, []op{opReplay}, Paused},
			{12 * ms, replayedAt, []op{opRoutes, opFlush}, Redirecting},
			{13 * ms, flushedAt, []op{opRoutes}, Redirecting},
			{300 * ms, frameAt, []op{opLocal, opRoutes, opClaim, opEnd}, Aborted},
		}},
		{"an armed source is aborted", armedSource, []step{
			{10 * ms, frameAt, nil, Armed},
			{10 * ms, abortAt, []op{opRoutes, opNoCopies, opEnd}, Aborted},
		}},
		{"an armed source hears nothing", armedSource, []step{
			{9 * time.Minute, tickAt, nil, Armed},
			{10 * time.Minute, tickAt, []op{opRoutes, opNoCopies, opEnd}, Aborted},
		}},
		{"an armed source loses its interface", armedSource, []step{
			{10 * ms, func(h *handover, now time.Time) []op { return h.portDown(now) }, []op{opRoutes, opNoCopies}, Paused},
			{11 * ms, tickAt, []op{opRoutes, opFlush}, Redirecting},
		}},
		{"unprepared: told where it went", unprepared, []step{
			{20 * ms, tickAt, nil, Paused},
			{50 * ms, elsewhereAt(5, 9, "100.64.2.2"), []op{opRoutes, opFlush}, Redirecting},
		}},
		{"unprepared: it stays paused", unprepared, []step{
			{9 * time.Minute, tickAt, nil, Paused},
			{10 * time.Minute, tickAt, []op{opRoutes, opNoCopies, opFlush}, TakingBack},
		}},
		{"unprepared: it was stopped for good", unprepared, []step{
			{ms, func(h *handover, now time.Time) []op { return h.portDown(now) }, nil, Paused},
			{9 * time.Second, tickAt, nil, Paused},
			{10*time.Second + ms, tickAt, []op{opWithdraw, opForget, opRoutes, opDiscard, opEnd}, Settled},
		}},
		{"a target to its end", incomingTarget, []step{
			{-10 * ms, frameAt, nil, Incoming}, // of an earlier life
			{100 * ms, frameAt, []op{opLocal, opClaim, opRoutes, opFlush}, Running},
			{100 * ms, resumeAt, nil, Running},
			{101 * ms, claimedAt(5), nil, Running},
			{102 * ms, claimedAt(5), nil, Running},
			{105 * ms, flushedAt, []op{opRoutes, opEnd}, Settled},
			{106 * ms, commitAt, nil, Settled},
		}},
		{"a target whose Map-Server is slow", incomingTarget, []step{
			{100 * ms, commitAt, []op{opLocal, opClaim, opRoutes, opFlush}, Running},
			{105 * ms, flushedAt, []op{opRoutes}, Running},
			{time.Hour, tickAt, nil, Running},
			{time.Hour, claimedAt(5), []op{opEnd}, Settled},
		}},
		{"a target runs before its interface is known", incomingTarget, []step{
			{100 * ms, func(h *handover, now time.Time) []op { return h.commit(now, false) }, []op{opLocal, opClaim, opRoutes}, Running},
			{101 * ms, claimedAt(5), nil, Running},
			{150 * ms, func(h *handover, now time.Time) []op { return h.portUp() }, []op{opRoutes, opFlush}, Running},
			{160 * ms, flushedAt, []op{opRoutes, opEnd}, Settled},
		}},
		{"a target is aborted", incomingTarget, []step{
			{100 * ms, abortAt, []op{opRoutes, opGiveBack}, GivingBack},
			{110 * ms, flushedAt, []op{opRoutes}, GivingBack},
			{30 * time.Second, tickAt, nil, GivingBack},
			{31 * time.Second, tickAt, []op{opRelease, opForget, opRoutes, opDiscard, opEnd}, Aborted},
		}},
		{"a target is aborted, and the VM comes after all", incomingTarget, []step{
			{100 * ms, abortAt, []op{opRoutes, opGiveBack}, GivingBack},
			{110 * ms, frameAt, []op{opLocal, opClaim, opRoutes}, Running},
			{115 * ms, flushedAt, []op{opRoutes}, Running},
		}},
		{"a target is aborted when the VM runs", incomingTarget, []step{
			{100 * ms, commitAt, []op{opLocal, opClaim, opRoutes, opFlush}, Running},
			{110 * ms, abortAt, nil, Running},
		}},
		{"a target hears nothing", incomingTarget, []step{
			{10 * time.Minute, tickAt, []op{opRelease, opForget, opRoutes, opDiscard, opEnd}, Aborted},
		}},
		{"a target hears that the source claims what it had", incomingTarget, []step{
			{10 * ms, elsewhereAt(5, 9, "100.64.2.2"), nil, Incoming},
		}},
		{"a target hears that the source took the VM back", incomingTarget, []step{
			{10 * ms, elsewhereAt(6, 9, "100.64.2.2"), []op{opRoutes, opGiveBack}, GivingBack},
		}},
		{"a target hears that the VM runs at a third host", incomingTarget, []step{
			{10 * ms, elsewhereAt(4, 8, "100.64.3.2"), nil, Incoming}, // old news
			{10 * ms, elsewhereAt(5, 8, "100.64.3.2"), []op{opRoutes, opFlush}, GivingBack},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := tc.begin()
			for i, s := range tc.steps {
				ops := s.do(h, epoch.Add(s.at))
				if d := cmp.Diff(s.ops, ops); d != "" || h.State != s.state {
					t.Fatalf("step %d: state %s, want %s; ops (-want +got):\n%s", i, h.State, s.state, d)
				}
			}
		})
	}
}

func TestHandoverRoutes(t *testing.T) {
	to := loc("100.64.2.2")
	for _, tc := range []struct {
		role     Role
		state    State
		flushing bool
		want     fib.Route
	}{
		{Source, Armed, false, fib.Route{Do: fib.Deliver, Copy: true}},
		{Source, Armed, true, fib.Route{Do: fib.Deliver, Copy: true, Hold: 7}},
		{Source, Paused, false, fib.Route{Do: fib.Hold, Hold: 7, Watch: true}},
		{Source, Paused, true, fib.Route{Do: fib.Deliver, Copy: true, Hold: 7}},
		{Source, Redirecting, true, fib.Route{Do: fib.Encap, Locators: to, Transit: true, Moved: true, Watch: true, Hold: 7}},
		{Source, Redirecting, false, fib.Route{Do: fib.Encap, Locators: to, Transit: true, Moved: true, Watch: true}},
		{Source, TakingBack, true, fib.Route{Do: fib.Deliver, Hold: 7}},
		{Target, Incoming, false, fib.Route{Do: fib.Hold, Hold: 7, Watch: true, Locators: to}},
		{Target, Running, true, fib.Route{Do: fib.Deliver, Hold: 7}},
		{Target, Running, false, fib.Route{Do: fib.Deliver}},
		{Target, GivingBack, true, fib.Route{Do: fib.Encap, Locators: to, Transit: true, Hold: 7}},
		{Target, GivingBack, false, fib.Route{Do: fib.Encap, Locators: to, Transit: true}},
	} {
		h := armedSource()
		h.Role, h.State, h.Flushing = tc.role, tc.state, tc.flushing
		tc.want.EID = testEID
		r, ok := h.route(testEID)
		if !ok || !sameRoute(r, tc.want) {
			t.Errorf("%s, flushing %v: %+v, want %+v", tc.state, tc.flushing, r, tc.want)
		}
	}
	for _, s := range []State{Settled, Aborted, Superseded} {
		h := armedSource()
		h.State = s
		if _, ok := h.route(testEID); ok {
			t.Errorf("%s has a route", s)
		}
	}
}

func TestTakesOver(t *testing.T) {
	now := epoch.Add(time.Second)
	fresh := func(r Role) *handover {
		h := armedSource()
		h.ID, h.Role, h.Hold, h.State = "m2", r, 0, Armed
		if r == Target {
			h.State = Incoming
		}
		return h
	}
	t.Run("what is flushed stays where it is", func(t *testing.T) {
		old, h := armedSource(), fresh(Target)
		old.State, old.Flushing = Redirecting, true
		h.takesOver(old, now)
		if old.State != Superseded || h.Hold != 7 || !h.Flushing {
			t.Fatalf("%+v", h)
		}
		if r, _ := h.route(testEID); r.Do != fib.Encap || r.Hold != 7 || !r.Transit {
			t.Errorf("the route is %+v", r)
		}
		third := fresh(Target)
		third.ID = "m3"
		h.giveBack(now, "superseded")
		third.takesOver(h, now)
		if third.under != old {
			t.Error("it has lost whose packets are flushed")
		}
		if d := cmp.Diff([]op{opNewHold, opRoutes}, third.flushed(HoldStats{Held: 4, Passed: 1}, now)); d != "" {
			t.Errorf("ops: %s", d)
		}
		if old.Redirected != 5 || third.Held != 0 {
			t.Errorf("the packets are not the old one's: %+v, %+v", old.Handover, third.Handover)
		}
	})
	t.Run("what is held goes along", func(t *testing.T) {
		old, h := armedSource(), fresh(Source)
		old.State, old.Times.Paused, old.To = Paused, epoch, nil
		h.takesOver(old, now)
		if h.State != Paused || h.Hold != 7 || h.Times.Paused != epoch {
			t.Fatalf("%+v", h)
		}
		if d := cmp.Diff([]op{opReplay}, h.tick(now)); d != "" {
			t.Errorf("ops: %s", d)
		}
	})
	t.Run("stopped while it is still flushed", func(t *testing.T) {
		old, h := incomingTarget(), fresh(Source)
		old.State, old.Flushing = Running, true
		h.takesOver(old, now)
		if ops := h.stop(now, now, "stop"); ops != nil || h.State != Paused {
			t.Fatalf("%v %s", ops, h.State)
		}
		if r, _ := h.route(testEID); r.Do != fib.Deliver || !r.Copy || r.Hold != 7 {
			t.Errorf("the route is %+v", r)
		}
		if d := cmp.Diff([]op{opNewHold, opRoutes}, h.flushed(HoldStats{}, now)); d != "" {
			t.Errorf("ops: %s", d)
		}
		h.Hold = 8
		if d := cmp.Diff([]op{opReplay}, h.tick(now.Add(ms))); d != "" {
			t.Errorf("ops: %s", d)
		}
	})
}

func TestVersionThatTakesBack(t *testing.T) {
	for _, tc := range []struct {
		told bool
		want lisp.Version // that is known when it claims: the claim is the next one
	}{{false, 5}, {true, 6}} {
		h := armedSource()
		h.State, h.Times.Redirecting, h.Told = Redirecting, epoch, tc.told
		if tc.told {
			h.Version = 6
		}
		h.resume(epoch.Add(time.Second), epoch.Add(time.Second), true)
		if h.Version != tc.want || !h.announced {
			t.Errorf("told %v: version %d, want %d", tc.told, h.Version, tc.want)
		}
	}
}

// Whatever happens in whatever order, a handover comes to an end when nothing happens any more, each flush that
// it asked for is counted once, and what it says of packets makes sense.
func TestHandoverAnyOrder(t *testing.T) {
	for seed := range uint64(5000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		h := armedSource()
		if rng.IntN(2) == 0 {
			h = incomingTarget()
		}
		now := epoch
		replaying, flushing := false, false
		run := func(ops []op) {
			for _, o := range ops {
				switch o {
				case opReplay:
					if replaying {
						t.Fatalf("seed %d: two replays at once", seed)
					}
					replaying = true
				case opFlush:
					if flushing {
						t.Fatalf("seed %d: two flushes at once", seed)
					}
					flushing = true
				case opGiveBack: // may follow a flush
					flushing = true
				case opDiscard:
					flushing = false
				}
			}
			if slices.Contains(ops, opEnd) != h.State.ended() && len(ops) > 0 {
				t.Fatalf("seed %d: ops %v in state %s", seed, ops, h.State)
			}
			if !h.State.ended() && h.Flushing != flushing {
				t.Fatalf("seed %d: state %s: Flushing is %v after %v", seed, h.State, h.Flushing, ops)
			}
			r, ok := h.route(testEID)
			switch {
			case ok == h.State.ended():
				t.Fatalf("seed %d: state %s: route %v", seed, h.State, ok)
			case ok && r.Do == fib.Encap && len(r.Locators) == 0, ok && r.Do == fib.Hold && r.Hold == 0:
				t.Fatalf("seed %d: state %s: route %+v", seed, h.State, r)
			}
		}
		events := []func(*handover, time.Time) []op{stopAt, resumeAt, frameAt, commitAt, abortAt, tickAt, tickAt, tickAt,
			claimedAt(5), elsewhereAt(5, 9, "100.64.2.2"), elsewhereAt(7, 8, "100.64.3.2"),
			func(h *handover, now time.Time) []op { return h.portDown(now) },
			func(h *handover, _ time.Time) []op { return h.portUp() },
			func(h *handover, now time.Time) []op { h.sentHere(now); return nil }}
		for range 20 {
			if h.State.ended() {
				break
			}
			now = now.Add(time.Duration(rng.Int64N(int64(3 * ms))))
			switch {
			case replaying && rng.IntN(3) == 0:
				replaying = false
				run(h.replayed(1, now))
			case flushing && !replaying && rng.IntN(3) == 0:
				flushing = false
				run(h.flushed(HoldStats{Held: 1}, now))
			default:
				run(events[rng.IntN(len(events))](h, now))
			}
		}
		for i := 0; !h.State.ended(); i++ {
			switch t2 := h.next(); {
			case i > 50:
				t.Fatalf("seed %d: it does not end: %+v", seed, h)
			case replaying:
				replaying = false
				run(h.replayed(1, now))
			case flushing:
				flushing = false
				run(h.flushed(HoldStats{Held: 1}, now))
			case !t2.IsZero():
				if t2.After(now) {
					now = t2
				}
				run(h.tick(now))
			case h.State == Running && h.Times.Flushed.IsZero():
				run(h.portUp())
			case h.State == Running:
				run(h.claimed(9, now))
			default:
				t.Fatalf("seed %d: it waits for nothing: %+v", seed, h)
			}
		}
		if h.Times.Settled.IsZero() == h.Times.Aborted.IsZero() {
			t.Fatalf("seed %d: %s: settled %v and aborted %v", seed, h.State, h.Times.Settled, h.Times.Aborted)
		}
	}
}
