package xtr

import (
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// prepare tells both agents of a move, as the controller does: the target first.
func (l *lab) prepare(id string, vm *labVM, from, to *labHost, v lisp.Version) {
	l.t.Helper()
	spec := HandoverSpec{VM: vm.name, MACs: []string{vm.mac}, EIDs: vm.eids, Version: v}
	s := spec
	s.Role, s.PeerRLOC, s.PeerXTRID, s.Interface = Target, from.rloc, from.id(), "tap-"+vm.name
	to.must("PUT", "/v1/handovers/"+id, s)
	s = spec
	s.Role, s.PeerRLOC, s.PeerXTRID, s.Interface = Source, to.rloc, to.id(), "tap-"+vm.name
	from.must("PUT", "/v1/handovers/"+id, s)
}

// migrate does what a hypervisor does: the interface at the target, the stop, the event a moment later, the
// blackout, the resume, its event.
func (l *lab) migrate(vm *labVM, from, to *labHost, blackout time.Duration) {
	if _, ok := to.plane.taps["tap-"+vm.name]; !ok {
		to.plane.addTap("tap-" + vm.name)
	}
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
