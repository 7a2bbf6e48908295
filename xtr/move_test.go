package xtr

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// prepare tells both agents of a move, as the controller does: the target first.
func (l *lab) prepare(id string, vm *labVM, from, to *labHost, v lisp.Version) {
	l.t.Helper()
	l.prepareTarget(id, vm, from, to, v)
	rec := from.must("PUT", "/v1/handovers/"+id, HandoverSpec{Role: Source, VM: vm.name, MACs: []string{vm.mac}, EIDs: vm.eids,
		Version: v, PeerRLOC: to.rloc, PeerXTRID: to.id(), Interface: "tap-" + vm.name})
	if rec.Version.Newer(v) { // the source knows better
		l.prepareTarget(id, vm, from, to, rec.Version)
	}
}

func (l *lab) prepareTarget(id string, vm *labVM, from, to *labHost, v lisp.Version) {
	l.t.Helper()
	to.must("PUT", "/v1/handovers/"+id, HandoverSpec{Role: Target, VM: vm.name, MACs: []string{vm.mac}, EIDs: vm.eids,
		Version: v, PeerRLOC: from.rloc, PeerXTRID: from.id(), Interface: "tap-" + vm.name})
}

// migrate does what a hypervisor does: the interface at the target, the stop, the event a moment later, the
// blackout, the resume, its event.
func (l *lab) migrate(vm *labVM, from, to *labHost, blackout time.Duration) {
	if to.plane.hasTap("tap-" + vm.name) { // from when it was here before: a new VM process has a new one
		to.plane.removeTap("tap-" + vm.name)
	}
	to.plane.addTap("tap-" + vm.name)
	time.Sleep(20 * time.Millisecond)
	vm.pause()
	time.Sleep(700 * time.Microsecond)
	from.event(vm.name, EventStop)
	time.Sleep(blackout)
	vm.resume(to)
	to.event(vm.name, EventResume)
	vm.announce()
}

func (l *lab) expectAt(e lisp.EID, h *labHost, v lisp.Version) {
	l.t.Helper()
	at, got := l.anchor.at(e)
	if at != h.rloc || v != 0 && got != v {
		l.t.Errorf("%v is at %v with version %d, want host %s at %v with %d", e, at, got, h.name, h.rloc, v)
	}
}

// expectAgreement checks that the Map-Servers hold one mapping and that h alone registers.
func (l *lab) expectAgreement(e lisp.EID, at *labHost) {
	l.t.Helper()
	for _, h := range l.hosts {
		if h.cancel == nil {
			continue
		}
		holds, err := call(l.ctx, h.x, false, func(time.Time) (bool, error) { return h.x.reg.holds(e), nil })
		if err != nil {
			l.t.Fatal(err)
		}
		if holds != (h == at) {
			l.t.Errorf("host %s registers %v: %v", h.name, e, holds)
		}
	}
}

func TestPreparedMove(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.expectAt(vm.eids[0], a, 1)
		l.expectAt(vm.eids[1], a, 1)
		f4, f6 := l.flow(vm.eids[0]), l.flow(vm.eids[1])
		time.Sleep(100 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver || !r.Copy {
			t.Errorf("the armed source's route is %+v", r)
		}
		if r, _ := b.plane.route(vm.eids[0]); r.Do != fib.Hold || !r.Watch {
			t.Errorf("the target's route is %+v", r)
		}
		l.migrate(vm, a, b, 200*time.Millisecond)
		a.must("POST", "/v1/handovers/m1/commit", nil)
		b.must("POST", "/v1/handovers/m1/commit", nil)
		time.Sleep(100 * time.Millisecond)
		l.expectAt(vm.eids[0], b, 2)
		l.expectAt(vm.eids[1], b, 2)

		src, dst := a.record("m1"), b.record("m1")
		if src.State != Redirecting || src.Replayed == 0 || src.Held == 0 || src.Version != 2 {
			t.Errorf("the source's record: %+v", src)
		}
		if dst.State != Settled || dst.Held < 700 || dst.Version != 2 || len(dst.Dropped) != 0 {
			t.Errorf("the target's record: %+v", dst)
		}
		for name, d := range map[string]time.Duration{
			"stop to redirect":  src.Times.Redirecting.Sub(src.Times.Paused),
			"run to claim":      dst.Times.Claimed.Sub(dst.Times.Run),
			"run to the source": src.Times.Claimed.Sub(dst.Times.Run),
		} {
			if d <= 0 || d > 5*time.Millisecond {
				t.Errorf("%s took %v", name, d)
			}
		}
		f4.end()
		f6.end()
		f4.check(vm, false)
		f6.check(vm, false)
		time.Sleep(5 * time.Second)
		a.plane.removeTap("tap-web")
		time.Sleep(30 * time.Second)
		if s := a.record("m1"); s.State != Settled {
			t.Errorf("the source is %s: %s", s.State, s.Why)
		}
		if r, ok := a.plane.route(vm.eids[0]); !ok || r.Transit || r.Locators[0].RLOC != b.rloc {
			t.Errorf("the route that is left at the source: %+v, %v", r, ok)
		}
		l.expectAgreement(vm.eids[0], b)
		if n := a.counter("smr-sent"); n == 0 {
			t.Error("the source has sent no SMR")
		}
		time.Sleep(5 * time.Minute)
		l.expectAt(vm.eids[0], b, 2)
		l.expectAgreement(vm.eids[1], b)
	})
}

func TestStopIsQuick(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, b, 1)
		time.Sleep(time.Second)
		at := time.Now()
		vm.pause()
		a.event("web", EventStop)
		if took := a.plane.setAt(vm.eids[0], func(r fib.Route) bool { return r.Do == fib.Hold }); took.Sub(at) != 0 {
			t.Errorf("the route was Hold %v after the event", took.Sub(at))
		}
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Hold {
			t.Errorf("the event is answered, and the route is %+v", r)
		}
	})
}

func TestAbortedMove(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		time.Sleep(50 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		b.plane.addTap("tap-web")
		time.Sleep(20 * time.Millisecond)
		vm.pause()
		time.Sleep(700 * time.Microsecond)
		a.event("web", EventStop)
		time.Sleep(100 * time.Millisecond)
		// The migration fails: the source resumes, silently. The source is told first: as long as it sends
		// to the target, the target must keep what comes.
		vm.resume(a)
		a.event("web", EventResume)
		time.Sleep(2 * time.Millisecond)
		a.must("POST", "/v1/handovers/m1/abort", nil)
		b.must("POST", "/v1/handovers/m1/abort", nil)
		b.must("POST", "/v1/handovers/m1/abort", nil)
		time.Sleep(200 * time.Millisecond)
		f.end()
		f.check(vm, false)
		src, dst := a.record("m1"), b.record("m1")
		if src.State != Aborted || src.Times.Aborted.IsZero() || src.Replayed == 0 {
			t.Errorf("the source's record: %+v", src)
		}
		if dst.State != GivingBack || dst.Held == 0 || dst.Dropped["replay"] != src.Replayed {
			t.Errorf("the target's record: %+v", dst)
		}
		// It takes the EIDs back with a version that beats what the target may have claimed.
		l.expectAt(vm.eids[0], a, 3)
		time.Sleep(31 * time.Second)
		if dst := b.record("m1"); dst.State != Aborted {
			t.Errorf("the target is %s", dst.State)
		}
		if r, ok := b.plane.route(vm.eids[0]); !ok || r.Do != fib.Encap || r.Transit || r.Locators[0].RLOC != a.rloc {
			t.Errorf("the target's route is %+v", r)
		}
		l.expectAgreement(vm.eids[0], a)
		// And the next attempt works.
		f = l.flow(vm.eids[0])
		vm.forget()
		time.Sleep(20 * time.Millisecond)
		l.prepare("m2", vm, a, b, 3)
		l.migrate(vm, a, b, 50*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], b, 4)
	})
}

func TestAbortBeforeTheStop(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		l.prepare("m1", vm, a, b, 1)
		time.Sleep(20 * time.Millisecond)
		b.must("POST", "/v1/handovers/m1/abort", nil)
		a.must("POST", "/v1/handovers/m1/abort", nil)
		time.Sleep(20 * time.Millisecond)
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver || r.Copy {
			t.Errorf("the source's route is %+v", r)
		}
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], a, 1)
		if code, _ := a.api("POST", "/v1/handovers/m1/commit", nil); code != 409 {
			t.Errorf("commit after abort: status %d", code)
		}
	})
}

func TestAbortOfWhatHasHappened(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, b, 1)
		l.migrate(vm, a, b, 20*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		if code, _ := b.api("POST", "/v1/handovers/m1/abort", nil); code != 409 {
			t.Errorf("abort at a target where the VM runs: status %d", code)
		}
		l.expectAt(vm.eids[0], b, 2)
	})
}

func TestControllerDiesAfterPrepare(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		l.prepare("m1", vm, a, b, 1)
		l.migrate(vm, a, b, 100*time.Millisecond) // no commit ever comes
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], b, 2)
		time.Sleep(45 * time.Second)
		if s := a.record("m1"); s.State != Settled {
			t.Errorf("the source is %s: %s", s.State, s.Why)
		}
	})
}

// On a busy host the stop is told late. The interface has overflowed by then, and the source has looked at what it has
// dropped: that was not the VM's doing, and the copies go to the target.
func TestStopIsToldLate(t *testing.T) {
	for _, late := range []time.Duration{100 * time.Millisecond, 700 * time.Millisecond} {
		t.Run(late.String(), func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				vm := l.newVM("web", 10)
				vm.boot(a)
				a.plane.setRoom("tap-web", 200)
				f4, f6 := l.flow(vm.eids[0]), l.flow(vm.eids[1])
				time.Sleep(20 * time.Millisecond)
				l.prepare("m1", vm, a, b, 1)
				// A VM that is slow misses packets, too: those are its own loss, and say nothing of later ones.
				vm.pause()
				time.Sleep(100 * time.Millisecond)
				vm.resume(a)
				missed := a.plane.droppedAt("tap-web")
				time.Sleep(400 * time.Millisecond)
				b.plane.addTap("tap-web")
				vm.pause()
				at := time.Now()
				time.Sleep(late)
				a.must("POST", "/v1/events", VMEvent{VM: vm.name, Event: EventStop, At: at})
				time.Sleep(50 * time.Millisecond)
				vm.resume(b)
				b.event(vm.name, EventResume)
				vm.announce()
				time.Sleep(100 * time.Millisecond)
				f4.end()
				f6.end()
				if lost := f4.check(vm, true) + f6.check(vm, true); uint64(lost) != missed || missed == 0 {
					t.Errorf("%d packets are lost; the VM itself missed %d", lost, missed)
				}
			})
		})
	}
}

// The hypervisor tells nothing, neither stop nor resume: what the VM and the mapping system say must do. What the
// old interface swallows before the mapping moves is lost, no more.
func TestNobodyTellsOfTheStop(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		time.Sleep(20 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		b.plane.addTap("tap-web")
		vm.pause()
		time.Sleep(100 * time.Millisecond)
		vm.resume(b)
		vm.announce() // a reverse ARP is all that there is
		time.Sleep(100 * time.Millisecond)
		f.end()
		// It was armed: the copies of what the VM did not read are replayed, however late it is known.
		f.check(vm, false)
		l.expectAt(vm.eids[0], b, 2)
		if s := a.record("m1"); s.State != Redirecting || s.Replayed < 390 {
			t.Errorf("the source's record: %+v", s)
		}
	})
}

func TestUnpreparedMove(t *testing.T) {
	for _, told := range []bool{true, false} {
		name := "stop unknown"
		if told {
			name = "stop known"
		}
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				vm := l.newVM("web", 10)
				vm.boot(a)
				b.must("PUT", "/v1/vms/web", vm.spec())
				f := l.flow(vm.eids[0])
				time.Sleep(20 * time.Millisecond)
				b.plane.addTap("tap-web")
				vm.pause()
				if told {
					a.event("web", EventStop)
				}
				time.Sleep(100 * time.Millisecond)
				vm.resume(b)
				vm.announce()
				time.Sleep(100 * time.Millisecond)
				f.end()
				lost := f.check(vm, true)
				if told && lost > 4 || !told && lost > 450 {
					t.Errorf("%d packets are lost", lost)
				}
				l.expectAt(vm.eids[0], b, 2)
				l.expectAgreement(vm.eids[1], b)
				src, dst := a.unprepared(), b.unprepared()
				if len(src) != 1 || len(dst) != 1 {
					t.Fatalf("records: %+v and %+v", src, dst)
				}
				if s := src[0]; s.State != Redirecting || len(s.EIDs) != 2 || s.PeerRLOC != b.rloc || s.Version != 2 ||
					told == s.Times.Paused.IsZero() {
					t.Errorf("the source's record: %+v", s)
				}
				if s := dst[0]; s.State != Settled || len(s.EIDs) != 2 || s.Version != 2 || s.Times.Claimed.IsZero() {
					t.Errorf("the target's record: %+v", s)
				}
				time.Sleep(45 * time.Second)
				if s := a.unprepared()[0]; s.State != Settled {
					t.Errorf("the source is %s: %s", s.State, s.Why)
				}
			})
		})
	}
}

// A VM that an operator pauses and resumes goes nowhere.
func TestPauseAndResume(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		time.Sleep(20 * time.Millisecond)
		vm.pause()
		a.event("web", EventStop)
		a.event("web", EventStop)
		time.Sleep(3 * time.Second)
		vm.resume(a)
		a.event("web", EventResume)
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], a, 1)
		if r := a.unprepared(); len(r) != 1 || r[0].State != Aborted {
			t.Errorf("records: %+v", r)
		}
	})
}

// A -> B -> C -> A within a second: each agent becomes the source while what it did as a target is not settled.
func TestMoveOnAndOn(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f4, f6 := l.flow(vm.eids[0]), l.flow(vm.eids[1])
		time.Sleep(20 * time.Millisecond)
		begin := time.Now()
		way := []*labHost{a, b, c, a, b, a}
		for i := 1; i < len(way); i++ {
			from, to := way[i-1], way[i]
			id := "m" + string(rune('0'+i))
			l.prepare(id, vm, from, to, lisp.Version(i))
			l.migrate(vm, from, to, 50*time.Millisecond)
			from.must("POST", "/v1/handovers/"+id+"/commit", nil)
			to.must("POST", "/v1/handovers/"+id+"/commit", nil)
			if i == 3 && time.Since(begin) > time.Second {
				t.Errorf("three moves took %v", time.Since(begin))
			}
		}
		time.Sleep(200 * time.Millisecond)
		f4.end()
		f6.end()
		f4.check(vm, false)
		f6.check(vm, false)
		l.expectAt(vm.eids[0], a, 6)
		l.expectAt(vm.eids[1], a, 6)
		for _, id := range []string{"m1", "m2"} {
			if s := map[string]*labHost{"m1": a, "m2": b}[id].record(id); s.State != Superseded {
				t.Errorf("%s at its source is %s", id, s.State)
			}
		}
		time.Sleep(2 * time.Minute)
		for _, h := range l.hosts {
			l.expectAgreement(vm.eids[0], a)
			r, ok := h.plane.route(vm.eids[0])
			if h == a && (!ok || r.Do != fib.Deliver || r.Copy) || h != a && ok && r.Transit {
				t.Errorf("host %s: the route that is left: %+v", h.name, r)
			}
		}
	})
}

// The next move is prepared while the first packets of the last are still flushed, and the stop comes at once.
func TestMoveOnDuringTheFlush(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		time.Sleep(20 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		l.migrate(vm, a, b, 300*time.Millisecond) // 1200 packets: 24 ms to flush
		l.prepare("m2", vm, b, c, 2)
		if s := b.record("m1"); s.State != Superseded {
			t.Errorf("m1 at its target is %s", s.State)
		}
		c.plane.addTap("tap-web")
		vm.pause()
		b.event("web", EventStop)
		time.Sleep(100 * time.Millisecond)
		vm.resume(c)
		c.event("web", EventResume)
		time.Sleep(100 * time.Millisecond)
		l.prepare("m3", vm, c, a, 3)
		l.migrate(vm, c, a, 10*time.Millisecond)
		time.Sleep(200 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], a, 4)
		l.expectAgreement(vm.eids[0], a)
	})
}

// The source is prepared to take the VM back while it is still sending on what it held.
func TestBackDuringTheFlush(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		time.Sleep(20 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		b.plane.addTap("tap-web")
		time.Sleep(10 * time.Millisecond)
		vm.pause()
		time.Sleep(20 * time.Millisecond) // the event is late: 80 packets are to be replayed
		a.event("web", EventStop)
		time.Sleep(2 * time.Millisecond)
		vm.resume(b)
		b.event("web", EventResume)
		l.prepare("m2", vm, b, a, 2)
		time.Sleep(10 * time.Millisecond)
		vm.pause()
		b.event("web", EventStop)
		time.Sleep(20 * time.Millisecond)
		a.plane.removeTap("tap-web")
		a.plane.addTap("tap-web")
		vm.resume(a)
		a.event("web", EventResume)
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], a, 3)
	})
}

func TestSecondTargetSupersedesTheFirst(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		l.prepare("m1", vm, a, b, 1)
		l.prepare("m2", vm, a, c, 1)
		l.migrate(vm, a, c, 50*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], c, 2)
		if s := a.record("m1"); s.State != Superseded {
			t.Errorf("m1 at the source is %s", s.State)
		}
	})
}

// The Map-Notifies get lost for a while: nobody loses packets, for A and B know of each other.
func TestLostMapNotifies(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		f := l.flow(vm.eids[0])
		l.prepare("m1", vm, a, b, 1)
		l.net.SetPath(simnetPath(0.7))
		l.migrate(vm, a, b, 50*time.Millisecond)
		time.Sleep(3 * time.Second)
		l.net.SetPath(simnetPath(0))
		f.end()
		f.check(vm, false)
		time.Sleep(time.Minute)
		l.expectAt(vm.eids[0], b, 2)
		l.expectAgreement(vm.eids[0], b)
	})
}

// One Map-Server is dead before and during the move; then the other one, too, until all is over.
func TestMapServersDead(t *testing.T) {
	for n := range 2 {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.boot(a)
			f := l.flow(vm.eids[0])
			l.net.Partition(nil, []netip.Addr{l.servers[n].addr})
			time.Sleep(time.Minute)
			f.end()
			f = l.flow(vm.eids[0])
			vm.forget()
			l.prepare("m1", vm, a, b, 1)
			l.migrate(vm, a, b, 100*time.Millisecond)
			time.Sleep(100 * time.Millisecond)
			f.end()
			f.check(vm, false)
			l.expectAt(vm.eids[0], b, 2)
			l.net.Partition(nil, []netip.Addr{l.servers[0].addr}, []netip.Addr{l.servers[1].addr})
			l.prepare("m2", vm, b, a, 2)
			l.migrate(vm, b, a, 100*time.Millisecond)
			time.Sleep(10 * time.Second)
			l.net.Heal()
			time.Sleep(61 * time.Second)
			l.expectAt(vm.eids[0], a, 3)
			l.expectAgreement(vm.eids[0], a)
		})
	}
}

func TestTimeouts(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, b, 1)
		time.Sleep(9 * time.Minute)
		l.prepare("m1", vm, a, b, 1) // it is said again: the time begins anew
		time.Sleep(9 * time.Minute)
		if s := a.record("m1"); s.State != Armed {
			t.Errorf("the source is %s", s.State)
		}
		time.Sleep(2 * time.Minute)
		src, dst := a.record("m1"), b.record("m1")
		if src.State != Aborted || dst.State != Aborted || src.Times.Aborted.IsZero() || dst.Times.Aborted.IsZero() {
			t.Errorf("records:\n%+v\n%+v", src, dst)
		}
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver || r.Copy {
			t.Errorf("the source's route is %+v", r)
		}
		// What it learned for the handover stays in the map-cache.
		if r, ok := b.plane.route(vm.eids[0]); !ok || r.Do != fib.Encap || r.Transit || r.Locators[0].RLOC != a.rloc {
			t.Errorf("the target's route is %+v", r)
		}
		l.expectAgreement(vm.eids[0], a)
	})
}
