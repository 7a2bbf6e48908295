package slowpath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// flushed runs a flush and returns a function that tells its result, or fails when it is not over.
func flushed(t *testing.T, start func(uint32, func(HoldStats)), hold uint32) func() HoldStats {
	t.Helper()
	done := make(chan HoldStats, 2)
	start(hold, func(st HoldStats) { done <- st })
	return func() HoldStats {
		t.Helper()
		synctest.Wait()
		select {
		case st := <-done:
			if len(done) > 0 {
				t.Fatal("done was called twice")
			}
			return st
		default:
			t.Fatal("the flush is not over")
			return HoldStats{}
		}
	}
}

func names(prefix string, from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(prefix, i))
	}
	return out
}

func TestFlushInOrderThenLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		send := func(what string) { k.arrive(0, 9, fib.UpTransit, nil, udp(t, "192.0.2.1", "192.0.2.2", what)) }
		k.set(9, true)
		for _, n := range names("held", 0, 1000) {
			send(n)
		}
		synctest.Wait()
		if w := k.take(); len(w) != 0 {
			t.Fatalf("%d packets left the hold", len(w))
		}
		k.set(9, false)
		for _, n := range names("live", 0, 5) {
			send(n) // still diverted: the hold is not empty
		}
		result := flushed(t, s.Flush, 9)
		st := result()
		send("after")
		got := k.take()
		want := append(append(names("held", 0, 1000), names("live", 0, 5)...), "after")
		if d := cmp.Diff(want, allSay(got)); d != "" {
			t.Fatal(d)
		}
		for _, w := range got[:1005] {
			if w.Down != (fib.Down{Do: fib.DownForward, Flags: fib.DownReinjected | fib.DownTransit, Hold: 9}) {
				t.Fatalf("metadata %+v", w.Down)
			}
		}
		if st.Held+st.Passed != 1005 || st.Replayed != 0 || len(st.Dropped) != 0 {
			t.Fatalf("stats %+v", st)
		}
		if h := k.counters(9); h.diverted != 1005 || h.reinjected != 1005 || h.dropped != 0 {
			t.Fatalf("counters %+v", h)
		}
	})
}

func TestFlushOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		if st := flushed(t, s.Flush, 4)(); st.Held != 0 || len(st.Dropped) != 0 {
			t.Fatalf("%+v", st)
		}
		time.Sleep(time.Minute)
		rows, err := s.Shows()["holds"](t.Context())
		if err != nil || len(rows.([]ShowHold)) != 0 {
			t.Fatalf("%v %v", rows, err)
		}
	})
}

// Packets that the kernel diverted and that never came up must not keep it diverting for ever.
func TestFlushGivesUpOnLostPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.set(9, true)
		for i := range 10 {
			k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", fmt.Sprint(i)))
		}
		k.mu.Lock()
		k.hold(9).diverted += 3 // lost in lisp0's queue
		k.hold(9).holding = false
		k.mu.Unlock()
		synctest.Wait()
		begin := time.Now()
		over := make(chan HoldStats, 1)
		s.Flush(9, func(st HoldStats) { over <- st })
		// Live packets go on being diverted: progress, but not of what is missing.
		for range 50 {
			time.Sleep(3 * time.Millisecond)
			k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "live"))
			synctest.Wait()
		}
		select {
		case <-over:
			t.Fatal("gave up too early")
		default:
		}
		st := <-over
		if took := time.Since(begin); took < 200*time.Millisecond || took > 220*time.Millisecond {
			t.Fatalf("took %v", took)
		}
		if d := cmp.Diff(HoldStats{Held: 10, Passed: 50, Bytes: st.Bytes, Dropped: map[string]uint64{"drop_hold_lost": 3}}, st); d != "" {
			t.Fatal(d)
		}
		if h := k.counters(9); h.diverted != h.reinjected+h.dropped || h.dropped != 3 {
			t.Fatalf("counters %+v", h)
		}
		// One that comes after all leaves too, and the counters agree again.
		k.feed(0, fib.Up{Reason: fib.UpHold, Hold: 9}, nil, udp(t, "192.0.2.1", "192.0.2.2", "late"))
		time.Sleep(200 * time.Millisecond)
		if got := allSay(k.take()); got[len(got)-1] != "late" {
			t.Fatalf("late packet did not leave: %v", got[len(got)-1])
		}
		if h := k.counters(9); h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters after the late one %+v", h)
		}
	})
}

// A packet that another CPU diverted just before the counters agreed comes up after the flush.
func TestLatePacketAfterFlushPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{Linger: time.Second})
		flushed(t, s.Flush, 9)()
		k.set(9, true)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "late"))
		k.set(9, false)
		synctest.Wait()
		if d := cmp.Diff([]string{"late"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
		// Used again in that second for a hold that is one: Open says so.
		s.Open(9)
		k.set(9, true)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "waits"))
		time.Sleep(5 * time.Second)
		if w := k.take(); len(w) != 0 {
			t.Fatalf("left: %v", allSay(w))
		}
		k.set(9, false)
		if st := flushed(t, s.Flush, 9)(); st.Held != 1 {
			t.Fatalf("%+v", st)
		}
		// Long after, without Open.
		time.Sleep(2 * time.Second)
		k.take()
		k.set(9, true)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "waits"))
		time.Sleep(5 * time.Second)
		if w := k.take(); len(w) != 0 {
			t.Fatalf("left: %v", allSay(w))
		}
	})
}

func TestHoldIsBounded(t *testing.T) {
	const one = 256 + frameMemory
	for _, tc := range []struct {
		name string
		cfg  Config
		why  string
		left []string
	}{
		{"bytes", Config{MaxHoldBytes: 4 * one}, "drop_hold_bytes", names("", 6, 10)},
		{"bytes of all", Config{MaxHoldsBytes: 3 * one}, "drop_hold_bytes", names("", 7, 10)},
		{"time", Config{MaxHoldTime: 450 * time.Millisecond}, "drop_hold_time", names("", 6, 10)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel(t, 1)
				s := k.start(tc.cfg)
				k.set(9, true)
				for i := range 10 {
					k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", fmt.Sprint(i)))
					time.Sleep(100 * time.Millisecond)
				}
				k.set(9, false)
				st := flushed(t, s.Flush, 9)()
				got := allSay(k.take())
				if d := cmp.Diff(tc.left, got); d != "" {
					t.Fatal(d)
				}
				gone := uint64(10 - len(got))
				if st.Dropped[tc.why] != gone || s.Counters()[tc.why] != gone {
					t.Fatalf("%+v", st)
				}
				if h := k.counters(9); h.dropped != gone || h.diverted != h.reinjected+h.dropped {
					t.Fatalf("counters %+v", h)
				}
			})
		})
	}
}

func TestGiveBackLeavesReplaysOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.set(9, true)
		for i := range 6 {
			flags := fib.UpTransit
			if i%3 == 0 {
				flags |= fib.UpReplay
			}
			k.arrive(0, 9, flags, nil, udp(t, "192.0.2.1", "192.0.2.2", fmt.Sprint(i)))
		}
		k.set(9, false)
		st := flushed(t, s.GiveBack, 9)()
		if d := cmp.Diff([]string{"1", "2", "4", "5"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
		if st.Dropped["drop_replay_left_out"] != 2 {
			t.Fatalf("%+v", st)
		}
		if h := k.counters(9); h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters %+v", h)
		}
	})
}

func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		held := udp(t, "192.0.2.1", "192.0.2.2", "x")
		k.set(9, true)
		k.arrive(0, 9, 0, nil, held)
		synctest.Wait()
		k.set(9, false)
		s.Discard(9)
		synctest.Wait()
		if h := k.counters(9); h.resets != 1 || h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters %+v", h)
		}
		// One that was on its way up, which the reset has forgotten.
		k.feed(0, fib.Up{Reason: fib.UpHold, Hold: 9}, nil, held)
		time.Sleep(time.Minute)
		if h := k.counters(9); h.resets != 2 || h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters %+v", h)
		}
		if s.Counters()["drop_hold_discarded"] != 2 || len(k.take()) != 0 {
			t.Fatalf("%v", s.Counters())
		}
		// It can be used again, at once or later.
		for _, pause := range []time.Duration{0, time.Minute} {
			s.Discard(9)
			time.Sleep(pause)
			s.Open(9)
			k.set(9, true)
			synctest.Wait()
			k.arrive(0, 9, 0, nil, held)
			k.set(9, false)
			synctest.Wait()
			if st := flushed(t, s.Flush, 9)(); st.Held != 1 || len(k.take()) != 1 {
				t.Fatalf("after %v: %+v", pause, st)
			}
		}
	})
}

func TestHeldPacketsThatTheDeviceRefusesAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.set(9, true)
		for range 3 {
			k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "x"))
		}
		synctest.Wait()
		k.set(9, false)
		k.mu.Lock()
		k.fail = errors.New("down")
		k.mu.Unlock()
		st := flushed(t, s.Flush, 9)()
		if st.Dropped["drop_write"] != 3 || s.Counters()["drop_write"] != 3 {
			t.Fatalf("%+v %v", st, s.Counters()["drop_write"])
		}
		if h := k.counters(9); h.dropped != 3 {
			t.Fatalf("counters %+v", h)
		}
	})
}

func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.given[5] = 1<<32 - 4 // the numbers on the frames wrap
		first := k.given[5]
		for i := range 10 {
			k.give(5, udp(t, "192.0.2.1", "192.0.2.2", fmt.Sprint("copy", i)))
		}
		k.set(9, true)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "held"))
		synctest.Wait()
		if n := s.Replay(9, 5, first+7); n != 3 {
			t.Fatalf("replayed %d", n)
		}
		if n := s.Replay(9, 5, first+7); n != 0 {
			t.Fatalf("replayed %d again", n)
		}
		// With the route changed, a live packet queues behind the replays and not before them.
		k.set(9, false)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "live"))
		st := flushed(t, s.Flush, 9)()
		got := k.take()
		if d := cmp.Diff([]string{"copy7", "copy8", "copy9", "held", "live"}, allSay(got)); d != "" {
			t.Fatal(d)
		}
		for i, w := range got {
			if want := i < 3; (w.Flags&fib.DownReplay != 0) != want || w.Flags&fib.DownReinjected == 0 {
				t.Fatalf("packet %d: flags %b", i, w.Flags)
			}
		}
		if st.Replayed != 3 || st.Held+st.Passed != 2 {
			t.Fatalf("%+v", st)
		}
		if h := k.counters(9); h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters %+v", h)
		}
		s.Forget(5)
	})
}

// Live packets queue behind replays also when nothing was ever diverted.
func TestReplayAloneKeepsLivePacketsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "copy"))
		synctest.Wait()
		if n := s.Replay(9, 5, 0); n != 1 {
			t.Fatalf("replayed %d", n)
		}
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "live"))
		flushed(t, s.Flush, 9)()
		if d := cmp.Diff([]string{"copy", "live"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
	})
}

// A super-packet has one number where the VM reads it whole, and one for each segment where it does not.
func TestReplayOfSuperPackets(t *testing.T) {
	super, vnet := udp(t, "192.0.2.1", "192.0.2.2", "aabbccddee"), superHeader(gsoUDP, 20, 2)
	copyUp := func(seq uint32, flags fib.UpFlags) fib.Up {
		return fib.Up{Reason: fib.UpCopy, Port: 5, Seq: seq, Flags: flags}
	}
	one := func(what string) []byte { return udp(t, "192.0.2.1", "192.0.2.2", what) }
	for name, tc := range map[string]struct {
		feed  func(k *fakeKernel)
		given uint64
		read  uint64
		want  []string // that comes down
	}{
		"read whole": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, 0), vnet, super)
			k.feed(0, copyUp(2, 0), nil, one("x"))
		}, 2, 1, []string{"x"}},
		"unread whole": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, 0), nil, one("x"))
			k.feed(0, copyUp(2, 0), vnet, super)
		}, 2, 1, []string{"aabbccddee"}},
		"one packet in two frames": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, 0), nil, one("x"))
			k.feed(0, copyUp(2, 0), nil, one("y"))
			k.feed(0, copyUp(2, 0), nil, one("z"))
		}, 2, 1, []string{"y", "z"}},
		"split, none read": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, fib.UpSplit), vnet, super)
			k.feed(0, copyUp(6, 0), nil, one("x"))
		}, 6, 0, []string{"aabbccddee", "x"}},
		"split, two read": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, fib.UpSplit), vnet, super)
			k.feed(0, copyUp(6, 0), nil, one("x"))
		}, 6, 2, []string{"cc", "dd", "ee", "x"}},
		"split, all read": {func(k *fakeKernel) {
			k.feed(0, copyUp(1, fib.UpSplit), vnet, super)
			k.feed(0, copyUp(6, 0), nil, one("x"))
		}, 6, 5, []string{"x"}},
		"split, and came up as segments": {func(k *fakeKernel) {
			for _, b := range []string{"aa", "bb", "cc"} {
				k.feed(0, copyUp(7, fib.UpSplit), nil, one(b))
			}
			k.feed(0, copyUp(10, 0), nil, one("x"))
			for _, b := range []string{"dd", "ee"} {
				k.feed(0, copyUp(11, fib.UpSplit), nil, one(b))
			}
		}, 12, 8, []string{"cc", "x", "dd", "ee"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel(t, 1)
				s := k.start(Config{})
				tc.feed(k)
				k.mu.Lock()
				k.given[5] = tc.given
				k.mu.Unlock()
				synctest.Wait()
				if n := s.Replay(9, 5, tc.read); n != len(tc.want) {
					t.Fatalf("replayed %d frames", n)
				}
				if n := s.Counters()["replay_missing"]; n != 0 {
					t.Fatalf("%d missing", n)
				}
				flushed(t, s.Flush, 9)()
				got := k.take()
				if d := cmp.Diff(tc.want, allSay(got)); d != "" {
					t.Fatal(d)
				}
				for _, w := range got {
					if gsoType(w.vnet) == gsoNone {
						verifyChecksums(t, w.packet)
					}
				}
				if h := k.counters(9); h.diverted != h.reinjected+h.dropped {
					t.Fatalf("counters %+v", h)
				}
			})
		})
	}
}

func TestReplayWaitsForCopiesOnTheirWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "a"))
		synctest.Wait()
		k.mu.Lock()
		k.given[5] = 2
		k.mu.Unlock()
		go func() {
			time.Sleep(time.Millisecond)
			k.feed(0, fib.Up{Reason: fib.UpCopy, Port: 5, Seq: 2}, nil, udp(t, "192.0.2.1", "192.0.2.2", "b"))
		}()
		begin := time.Now()
		if n := s.Replay(9, 5, 0); n != 2 || time.Since(begin) != time.Millisecond {
			t.Fatalf("replayed %d after %v", n, time.Since(begin))
		}
		k.mu.Lock()
		k.given[5] = 3 // never comes
		k.mu.Unlock()
		begin = time.Now()
		if n := s.Replay(9, 5, 2); n != 0 || time.Since(begin) != replayTime {
			t.Fatalf("replayed %d after %v", n, time.Since(begin))
		}
		if n := s.Counters()["replay_missing"]; n != 1 {
			t.Fatalf("missing %d", n)
		}
	})
}

func TestCopiesAreBounded(t *testing.T) {
	const one = 256 + frameMemory
	for _, cfg := range []Config{{CopyPackets: 4}, {CopyBytes: 4*one + 1}} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t, 1)
			s := k.start(cfg)
			for i := range 10 {
				k.give(5, udp(t, "192.0.2.1", "192.0.2.2", fmt.Sprint(i)))
			}
			synctest.Wait()
			if n := s.Replay(9, 5, 0); n != 4 {
				t.Fatalf("replayed %d", n)
			}
			flushed(t, s.Flush, 9)()
			if d := cmp.Diff(names("", 6, 10), allSay(k.take())); d != "" {
				t.Fatal(d)
			}
			if n := s.Counters()["copies_evicted"]; n != 6 {
				t.Fatalf("evicted %d", n)
			}
		})
	}
}

func TestForgottenCopiesAreNotReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "x"))
		synctest.Wait()
		s.Forget(5)
		if n := s.Replay(9, 5, 0); n != 0 {
			t.Fatalf("replayed %d", n)
		}
	})
}

func TestStopTellsTheDoorAndFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s, err := New(Config{}, k.queues, k, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		k.set(9, true)
		k.arrive(0, 9, 0, nil, udp(t, "192.0.2.1", "192.0.2.2", "x"))
		k.mu.Lock()
		k.hold(10).diverted = 1 // lost: the flush waits
		k.mu.Unlock()
		done := make(chan HoldStats, 1)
		s.Flush(10, func(st HoldStats) { done <- st })
		miss(k, 0, "198.51.100.9", "x")
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		<-done
		if h := k.counters(9); h.dropped != 1 {
			t.Fatalf("%+v", h)
		}
		if n := s.Counters()["drop_stopped"]; n != 2 {
			t.Fatalf("dropped %d", n)
		}
		// Nothing blocks after the end.
		for range 200 {
			s.Release(eid("0.0.0.0/0"))
		}
		if n := s.Replay(1, 1, 0); n != 0 {
			t.Fatal(n)
		}
		if _, err := s.Shows()["holds"](t.Context()); err == nil {
			t.Fatal("no error after the end")
		}
	})
}

func TestQueueThatEndsEndsRun(t *testing.T) {
	k := newFakeKernel(t, 2)
	s, err := New(Config{}, k.queues, k, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	_ = k.queues[1].Close()
	if err := s.Run(t.Context()); err == nil {
		t.Fatal("no error")
	}
}

// The promise of a hold, under concurrent arrivals on several queues, in several rounds of holding and
// flushing: every packet of a flow is out once, in the order in which the kernel saw it.
func TestHoldKeepsOrderUnderConcurrentArrivals(t *testing.T) {
	const queues, flows, each = 2, 4, 3000
	k := newFakeKernel(t, queues)
	s := k.start(Config{FlushPatience: 5 * time.Second})
	for round := range 3 {
		s.Open(9)
		k.set(9, true)
		var senders sync.WaitGroup
		for flow := range flows {
			senders.Go(func() {
				r := rand.New(rand.NewPCG(uint64(round), uint64(flow)))
				for i := range each {
					b := udp(t, "192.0.2.1", "192.0.2.2", string(binary.BigEndian.AppendUint32([]byte{byte(flow)}, uint32(i))))
					k.arrive(flow%queues, 9, 0, nil, b)
					if r.IntN(50) == 0 {
						time.Sleep(time.Duration(r.IntN(200)) * time.Microsecond)
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		k.set(9, false)
		done := make(chan HoldStats, 1)
		s.Flush(9, func(st HoldStats) { done <- st })
		senders.Wait()
		st := <-done
		// What was diverted after the counters first agreed leaves while the hold lingers.
		deadline := time.Now().Add(5 * time.Second)
		for h := k.counters(9); h.diverted != h.reinjected+h.dropped; h = k.counters(9) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: counters %+v", round, h)
			}
			time.Sleep(time.Millisecond)
		}
		next := [flows]uint32{}
		got := k.take()
		for _, w := range got {
			p := []byte(says(w.packet))
			flow, i := int(p[0]), binary.BigEndian.Uint32(p[1:])
			if i != next[flow] {
				t.Fatalf("round %d flow %d: packet %d came when %d was due", round, flow, i, next[flow])
			}
			if w.queue != flow%queues {
				t.Fatalf("flow %d left by queue %d", flow, w.queue)
			}
			next[flow]++
		}
		for flow, n := range next {
			if n != each {
				t.Fatalf("round %d flow %d: %d of %d packets", round, flow, n, each)
			}
		}
		if len(st.Dropped) != 0 || st.Held == 0 {
			t.Fatalf("round %d: %+v", round, st)
		}
	}
}

// A packet that was given to the interface after its VM had stopped, and after the replay: it goes after the
// others, once, and nothing waits for it for ever. Later the port's copies are ordinary ones again.
func TestReplayOfLateCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "read"))
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "copy"))
		synctest.Wait()
		first := k.given[5] - 2
		if n := s.Replay(9, 5, first+1); n != 1 {
			t.Fatalf("replayed %d", n)
		}
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "late"))
		flushed(t, s.Flush, 9)()
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "later"))
		synctest.Wait()
		if d := cmp.Diff([]string{"copy", "late", "later"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
		time.Sleep(2 * leavingTime)
		k.give(5, udp(t, "192.0.2.1", "192.0.2.2", "of the next move"))
		synctest.Wait()
		if got := allSay(k.take()); len(got) != 0 {
			t.Fatalf("reinjected %v", got)
		}
		if n := s.Replay(10, 5, k.given[5]-1); n != 1 {
			t.Fatalf("replayed %d in the next move", n)
		}
		if h := k.counters(9); h.diverted != h.reinjected+h.dropped {
			t.Fatalf("counters %+v", h)
		}
	})
}
