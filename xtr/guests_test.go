package xtr

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

const labSource = "libvirt"

// guest is the VM as its hypervisor lists it on h.
func (vm *labVM) guest(h *labHost) Guest {
	g := Guest{Name: vm.name, UUID: "uuid-of-" + vm.name, EIDs: vm.eids, Running: vm.host == h,
		Interfaces: []GuestInterface{{MAC: vm.mac}}}
	if h.plane.hasTap("tap-" + vm.name) {
		g.Interfaces[0].Device = "tap-" + vm.name
	}
	return g
}

// list has an agent hear what its hypervisor lists: these VMs.
func (h *labHost) list(gs ...Guest) {
	h.l.t.Helper()
	if err := h.x.Guests(h.l.ctx, labSource, time.Now(), gs); err != nil {
		h.l.t.Fatal(err)
	}
}

// says has an agent hear an event of its hypervisor.
func (h *labHost) says(vm *labVM, kind string) {
	h.l.t.Helper()
	if err := h.x.GuestEvent(h.l.ctx, labSource, vm.name, kind, time.Now()); err != nil {
		h.l.t.Fatal(err)
	}
}

// power starts the VM on h, of which nobody but the hypervisor knows.
func (vm *labVM) power(h *labHost) {
	h.plane.addTap("tap-" + vm.name)
	vm.resume(h)
	h.list(vm.guest(h))
	time.Sleep(10 * time.Millisecond)
}

// arrives makes a VM's process appear at h, waiting for what its source sends.
func (vm *labVM) arrives(h *labHost) {
	if h.plane.hasTap("tap-" + vm.name) {
		h.plane.removeTap("tap-" + vm.name)
	}
	h.plane.addTap("tap-" + vm.name)
	h.list(vm.guest(h))
}

// ordered counts the packets of a flow that were overtaken.
func (f *flow) ordered(vm *labVM) (overtaken int) {
	last := -1
	for _, s := range vm.has(f.eid) {
		if s < last {
			overtaken++
		}
		last = max(last, s)
	}
	return overtaken
}

// A plain live migration of which nobody but the two hypervisors knows, and each only its own side: no controller, no
// hook, no prepare. The source's hypervisor says that it sends the VM away, and nothing is lost.
func TestMigrationWithoutHook(t *testing.T) {
	for _, tc := range []struct {
		name    string
		stopped bool // the hypervisor tells of the stop
		late    time.Duration
		resumed bool // the target's hypervisor tells of the run; else a reverse ARP does
		learned bool // nobody says which EIDs the VM has
	}{
		{"all is told", true, 700 * time.Microsecond, true, false},
		{"the stop is told late", true, 20 * time.Millisecond, true, false},
		{"the stop is not told", false, 0, true, false},
		{"the run is not told", true, 700 * time.Microsecond, false, false},
		{"EIDs are learned", true, 700 * time.Microsecond, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				vm := l.newVM("web", 10)
				eids := vm.eids
				if tc.learned {
					vm.eids = nil
				}
				vm.power(a)
				vm.eids = eids
				if tc.learned {
					vm.announce()
					time.Sleep(10 * time.Millisecond)
				}
				l.expectAt(eids[0], a, 1)
				l.expectAt(eids[1], a, 1)
				f4, f6 := l.flow(eids[0]), l.flow(eids[1])
				time.Sleep(50 * time.Millisecond)
				a.says(vm, EventMigrating)
				if r, _ := a.plane.route(eids[0]); r.Do != fib.Deliver || !r.Copy {
					t.Errorf("the source's route is %+v", r)
				}
				if tc.learned {
					vm.eids = nil
				}
				vm.arrives(b)
				vm.eids = eids
				time.Sleep(100 * time.Millisecond)
				// The target lets its first packets through as soon as it knows which EIDs are the VM's.
				if r, _ := b.plane.route(eids[0]); !tc.learned && (r.Do != fib.Hold || !r.Watch || r.If != b.plane.tapIndex("tap-web") ||
					len(r.Locators) != 1 || r.Locators[0].RLOC != a.rloc) {
					t.Errorf("the target's route is %+v", r)
				}
				a.says(vm, EventMigrating) // the next pass
				time.Sleep(100 * time.Millisecond)
				vm.pause()
				if tc.stopped {
					time.Sleep(tc.late)
					a.says(vm, EventStopped)
				}
				time.Sleep(80 * time.Millisecond)
				vm.resume(b)
				if tc.resumed {
					b.says(vm, EventResumed)
				}
				if tc.learned {
					vm.frame("gratuitous", eids[0].Prefix.Addr())
					time.Sleep(6 * time.Millisecond)
				}
				if !tc.resumed || tc.learned {
					vm.announce()
				}
				time.Sleep(200 * time.Millisecond)
				f4.end()
				f6.end()
				f4.check(vm, false)
				f6.check(vm, false)
				l.expectAt(eids[0], b, 2)
				l.expectAt(eids[1], b, 2)
				l.expectAgreement(eids[0], b)
				src := a.unprepared()
				if len(src) != 1 || src[0].State != Redirecting || src[0].Replayed == 0 || src[0].PeerRLOC != b.rloc {
					t.Fatalf("the source: %+v", table[ShowMove](a, "moves"))
					t.Errorf("the source's records: %+v", src)
				}
				// The source's hypervisor is done with it, and its interface goes.
				a.says(vm, EventGone)
				a.list()
				a.plane.removeTap("tap-web")
				time.Sleep(time.Minute)
				if s := a.unprepared(); s[0].State != Settled {
					t.Errorf("the source: %+v", s[0])
				}
				if rows := table[ShowGuest](a, "guests"); len(rows) != 0 {
					t.Errorf("guests at the source: %+v", rows)
				}
				rows := table[ShowGuest](b, "guests")
				if len(rows) != 1 || rows[0].State != "running" || rows[0].Interfaces != "tap-web/"+vm.mac ||
					rows[0].EIDs != eids[0].String()+" "+eids[1].String() || (rows[0].EIDsFrom == "learned") != tc.learned {
					t.Errorf("guests at the target: %+v", rows)
				}
				l.expectAgreement(eids[1], b)
			})
		})
	}
}

// The packets that were held, those that the VM had not read before them, and those that came after keep their order,
// but for those that went straight to the target while others still took the way over the source.
func TestMigrationWithoutHookKeepsOrder(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.power(a)
		f := l.flow(vm.eids[0])
		time.Sleep(50 * time.Millisecond)
		a.says(vm, EventMigrating)
		vm.arrives(b)
		vm.pause()
		time.Sleep(time.Millisecond)
		a.says(vm, EventStopped)
		time.Sleep(50 * time.Millisecond)
		vm.resume(b)
		b.says(vm, EventResumed)
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		held := a.unprepared()[0].Held
		var straight int // came straight before the last of those that were held
		got := vm.has(f.eid)
		for i, s := range got[:len(got)-1] {
			if s > got[i+1] {
				straight++
			}
		}
		if held < 190 || straight > 60 {
			t.Errorf("%d were held, order was broken %d times", held, straight)
		}
		// What was held is in order in itself: it came by one way.
		var replays []int
		for _, s := range got {
			if s >= 200 && s < 200+int(held)-10 {
				replays = append(replays, s)
			}
		}
		if !slices.IsSorted(replays) {
			t.Errorf("what was held came in the order %v", replays)
		}
	})
}

// The migration is cancelled: before the stop, or after it; the source goes on.
func TestCancelledMigrationWithoutHook(t *testing.T) {
	for _, after := range []bool{false, true} {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.power(a)
			f := l.flow(vm.eids[0])
			time.Sleep(50 * time.Millisecond)
			a.says(vm, EventMigrating)
			vm.arrives(b)
			time.Sleep(50 * time.Millisecond)
			if after {
				vm.pause()
				time.Sleep(2 * time.Millisecond)
				a.says(vm, EventStopped)
				time.Sleep(30 * time.Millisecond)
				if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Hold {
					t.Errorf("the source's route is %+v", r)
				}
				vm.resume(a)
			}
			a.says(vm, EventResumed)
			b.says(vm, EventGone)
			b.list()
			b.plane.removeTap("tap-web")
			time.Sleep(100 * time.Millisecond)
			f.end()
			f.check(vm, false)
			if n := f.ordered(vm); n != 0 {
				t.Errorf("%d packets were overtaken", n)
			}
			l.expectAt(vm.eids[0], a, 1)
			l.expectAgreement(vm.eids[0], a)
			if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver || r.Copy || r.Hold != 0 && r.Do == fib.Hold {
				t.Errorf("the route that is left: %+v", r)
			}
			if s := a.unprepared(); len(s) != 1 || s[0].State != Aborted {
				t.Errorf("the source's records: %+v", s)
			}
			// And the next attempt works.
			f = l.flow(vm.eids[0])
			vm.forget()
			time.Sleep(20 * time.Millisecond)
			a.says(vm, EventMigrating)
			vm.arrives(b)
			vm.pause()
			time.Sleep(2 * time.Millisecond)
			a.says(vm, EventStopped)
			time.Sleep(30 * time.Millisecond)
			vm.resume(b)
			b.says(vm, EventResumed)
			time.Sleep(50 * time.Millisecond)
			f.end()
			f.check(vm, false)
			l.expectAt(vm.eids[0], b, 2)
		})
	}
}

// A migration of which nothing more is heard does not keep copies for ever.
func TestMigrationThatNeverComes(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.power(a)
		a.says(vm, EventMigrating)
		time.Sleep(50 * time.Minute)
		a.says(vm, EventMigrating)
		time.Sleep(50 * time.Minute)
		if r, _ := a.plane.route(vm.eids[0]); !r.Copy {
			t.Errorf("it is disarmed although the next pass has begun: %+v", r)
		}
		time.Sleep(11 * time.Minute)
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver || r.Copy {
			t.Errorf("the route is %+v", r)
		}
		l.expectAt(vm.eids[0], a, 1)
	})
}

// Two VMs change places at the same moment.
func TestSwapWithoutHook(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		v, w := l.newVM("web", 10), l.newVM("db", 20)
		v.power(a)
		w.power(b)
		fv, fw := l.flow(v.eids[0]), l.flow(w.eids[1])
		time.Sleep(50 * time.Millisecond)
		a.says(v, EventMigrating)
		b.says(w, EventMigrating)
		for _, vm := range []*labVM{v, w} {
			to, from := b, a
			if vm == w {
				to, from = a, b
			}
			to.plane.addTap("tap-" + vm.name)
			to.list(v.guest(to), w.guest(to))
			from.list(v.guest(from), w.guest(from))
		}
		v.pause()
		w.pause()
		time.Sleep(time.Millisecond)
		a.says(v, EventStopped)
		b.says(w, EventStopped)
		time.Sleep(50 * time.Millisecond)
		v.resume(b)
		w.resume(a)
		b.says(v, EventResumed)
		a.says(w, EventResumed)
		time.Sleep(100 * time.Millisecond)
		fv.end()
		fw.end()
		fv.check(v, false)
		fw.check(w, false)
		for _, vm := range []*labVM{v, w} {
			at := b
			if vm == w {
				at = a
			}
			l.expectAt(vm.eids[0], at, 2)
			l.expectAt(vm.eids[1], at, 2)
			l.expectAgreement(vm.eids[0], at)
		}
	})
}

// A VM that is shut down is deregistered after a while; started elsewhere it is there at once, also before that.
func TestOfflineMoveWithoutHook(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, time.Minute} {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.power(a)
			g := vm.guest(a)
			vm.pause()
			a.says(vm, EventStopped)
			a.says(vm, EventGone)
			g.Running, g.Off, g.Interfaces[0].Device = false, true, ""
			a.plane.removeTap("tap-web")
			a.list(g)
			time.Sleep(pause)
			if pause > 30*time.Second {
				if _, ok := a.plane.route(vm.eids[0]); ok {
					t.Error("the source still has a route")
				}
				l.expectAgreement(vm.eids[0], nil)
			}
			f := l.flow(vm.eids[0])
			time.Sleep(100 * time.Millisecond)
			b.plane.addTap("tap-web")
			vm.resume(b)
			b.list(vm.guest(b))
			at := int(f.upTo.Load())
			time.Sleep(5 * time.Millisecond)
			l.expectAt(vm.eids[0], b, 0)
			time.Sleep(100 * time.Millisecond)
			f.end()
			for s := at + 20; s < f.sent; s++ {
				if !slices.Contains(vm.has(f.eid), s) {
					t.Errorf("packet %d is lost, the VM ran at %d", s, at)
					break
				}
			}
			f.check(vm, true)
			time.Sleep(time.Minute)
			l.expectAt(vm.eids[1], b, 0)
			l.expectAgreement(vm.eids[0], b)
			// The VM that is defined still where it was is no reason to claim anything.
			a.list(g)
			a.list(g)
			time.Sleep(time.Second)
			l.expectAgreement(vm.eids[0], b)
		})
	}
}

// The connection to the hypervisor was lost for a while; the list that follows puts right what was missed.
func TestListAfterALostConnection(t *testing.T) {
	t.Run("a VM came", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a := l.hosts[0]
			vm := l.newVM("web", 10)
			a.list()
			a.plane.addTap("tap-web")
			vm.resume(a)
			a.list(vm.guest(a))
			time.Sleep(10 * time.Millisecond)
			l.expectAt(vm.eids[0], a, 1)
		})
	})
	t.Run("a VM came before its interface is served", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a := l.hosts[0]
			vm := l.newVM("web", 10)
			g := vm.guest(a)
			g.Running, g.Interfaces[0].Device = true, "tap-web"
			a.list(g)
			time.Sleep(time.Second)
			l.expectAgreement(vm.eids[0], nil)
			a.plane.addTap("tap-web")
			vm.resume(a)
			time.Sleep(10 * time.Millisecond)
			l.expectAt(vm.eids[0], a, 1)
			l.expectAt(vm.eids[1], a, 1)
		})
	})
	t.Run("a VM went", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.power(a)
			f := l.flow(vm.eids[0])
			time.Sleep(20 * time.Millisecond)
			vm.pause()
			time.Sleep(time.Second)
			a.list()
			time.Sleep(time.Second)
			vm.arrives(b)
			vm.resume(b)
			b.says(vm, EventResumed)
			time.Sleep(100 * time.Millisecond)
			f.end()
			f.check(vm, true)
			l.expectAt(vm.eids[0], b, 2)
			l.expectAgreement(vm.eids[0], b)
			if s := a.unprepared(); len(s) != 1 || s[0].Held < 3900 {
				t.Errorf("the source: %+v", s)
			}
		})
	})
	t.Run("a VM was paused", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a := l.hosts[0]
			vm := l.newVM("web", 10)
			vm.power(a)
			f := l.flow(vm.eids[0])
			time.Sleep(20 * time.Millisecond)
			vm.pause()
			time.Sleep(100 * time.Millisecond)
			a.list(vm.guest(a))
			if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Hold {
				t.Errorf("the route is %+v", r)
			}
			time.Sleep(time.Second)
			vm.resume(a)
			a.list(vm.guest(a))
			time.Sleep(100 * time.Millisecond)
			f.end()
			f.check(vm, false)
			l.expectAt(vm.eids[0], a, 1)
		})
	})
	t.Run("a VM stopped and ran, and both was missed", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.power(a)
			vm.arrives(b)
			vm.pause()
			vm.resume(b)
			b.says(vm, EventResumed) // a post-copy migration that fails at the end
			time.Sleep(100 * time.Millisecond)
			l.expectAt(vm.eids[0], b, 2)
			vm.pause()
			vm.resume(a)
			time.Sleep(time.Second)
			a.list(vm.guest(a))
			time.Sleep(10 * time.Millisecond)
			l.expectAt(vm.eids[0], a, 3)
			l.expectAgreement(vm.eids[0], a)
		})
	})
	t.Run("the list is older than what was heard since", func(t *testing.T) {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			vm := l.newVM("web", 10)
			vm.power(a)
			asked, old := time.Now(), vm.guest(a)
			time.Sleep(5 * time.Millisecond)
			f := l.flow(vm.eids[0])
			a.says(vm, EventMigrating)
			vm.arrives(b)
			time.Sleep(20 * time.Millisecond)
			vm.pause()
			a.says(vm, EventStopped)
			if err := a.x.Guests(l.ctx, labSource, asked, []Guest{old}); err != nil {
				t.Fatal(err)
			}
			if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Hold {
				t.Errorf("the route is %+v", r)
			}
			asked, old = time.Now(), vm.guest(b)
			time.Sleep(50 * time.Millisecond)
			vm.resume(b)
			b.says(vm, EventResumed)
			if err := b.x.Guests(l.ctx, labSource, asked, []Guest{old}); err != nil {
				t.Fatal(err)
			}
			if err := b.x.Guests(l.ctx, labSource, asked, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
			f.end()
			f.check(vm, false)
			l.expectAt(vm.eids[0], b, 2)
			l.expectAgreement(vm.eids[0], b)
		})
	})
}

// A VM that runs twice, and that both hypervisors list again and again, does not make its EIDs wander.
func TestListsOfAVMThatRunsTwice(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.power(a)
		b.plane.addTap("tap-web")
		ga, gb := vm.guest(a), vm.guest(b)
		gb.Running = true
		last, changes := netip.Addr{}, 0
		for range 60 {
			a.list(ga)
			time.Sleep(5 * time.Second)
			b.list(gb)
			time.Sleep(5 * time.Second)
			if at, _ := l.anchor.at(vm.eids[0]); at != last {
				last, changes = at, changes+1
			}
		}
		if changes > 12 {
			t.Errorf("in ten minutes the EID moved %d times", changes)
		}
	})
}

// What the hypervisor has said survives the agent, and what it says then corrects it.
func TestGuestsSurviveARestart(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm, gone := l.newVM("web", 10), l.newVM("db", 20)
		gone.power(a)
		a.plane.addTap("tap-web")
		vm.resume(a)
		a.list(vm.guest(a), gone.guest(a))
		time.Sleep(time.Second)
		a.kill()
		gone.pause()
		a.plane.removeTap("tap-db")
		a.start()
		time.Sleep(100 * time.Millisecond)
		if rows := table[ShowGuest](a, "guests"); len(rows) != 2 || rows[0].State != "running" || rows[1].UUID != "uuid-of-web" {
			t.Errorf("guests: %+v", rows)
		}
		f := l.flow(vm.eids[0])
		a.list(vm.guest(a))
		time.Sleep(100 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAt(vm.eids[0], a, 1)
		l.expectAgreement(vm.eids[0], a)
		time.Sleep(time.Minute)
		l.expectAgreement(gone.eids[0], nil)
		// An event for a VM that is known from before the restart.
		a.says(vm, EventMigrating)
		time.Sleep(10 * time.Millisecond)
		a.kill()
		a.start()
		time.Sleep(100 * time.Millisecond)
		if r, _ := a.plane.route(vm.eids[0]); !r.Copy {
			t.Errorf("after the restart it is not armed any more: %+v", r)
		}
	})
}

// The controller and the hypervisor call the VM by different names: its MAC address says that it is one.
func TestGuestOfAnotherName(t *testing.T) {
	for _, first := range []string{"controller", "hypervisor"} {
		inLab(t, func(l *lab) {
			a := l.hosts[0]
			vm := l.newVM("web", 10)
			a.plane.addTap("tap-web")
			vm.resume(a)
			g := vm.guest(a)
			g.Name, g.EIDs = "instance-00000017", []lisp.EID{mustEID("198.51.100.77")} // the controller's word counts
			s := vm.spec()
			s.Interface = "" // the controller does not know what it is called there
			if first == "hypervisor" {
				a.list(g)
				time.Sleep(10 * time.Millisecond)
				l.expectAt(mustEID("198.51.100.77"), a, 1)
			}
			a.must("PUT", "/v1/vms/web", s)
			a.list(g)
			time.Sleep(10 * time.Millisecond)
			l.expectAt(vm.eids[0], a, 1)
			l.expectAt(vm.eids[1], a, 1)
			l.expectAgreement(mustEID("198.51.100.77"), nil)
			for _, name := range []string{"web", "instance-00000017", "uuid-of-web", "52:54:00:00:00:10", "52-54-00-00-00-10", "tap-web"} {
				if err := a.x.GuestEvent(l.ctx, labSource, name, EventStopped, time.Now()); err != nil {
					t.Error(err)
				}
				if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Hold {
					t.Errorf("%s stopped: the route is %+v", name, r)
				}
				if err := a.x.GuestEvent(l.ctx, labSource, name, EventResumed, time.Now()); err != nil {
					t.Error(err)
				}
				time.Sleep(10 * time.Millisecond)
				if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver {
					t.Errorf("%s resumed: the route is %+v", name, r)
				}
			}
			if err := a.x.GuestEvent(l.ctx, labSource, "nobody", EventGone, time.Now()); !errors.Is(err, ErrNotFound) {
				t.Errorf("an event of nobody: %v", err)
			}
			if err := a.x.GuestEvent(l.ctx, labSource, "web", "dance", time.Now()); !errors.Is(err, ErrInvalid) {
				t.Errorf("an event that is none: %v", err)
			}
			if rows := table[ShowGuest](a, "guests"); len(rows) != 1 || rows[0].VM != "web" || rows[0].EIDsFrom != "controller" {
				t.Errorf("guests: %+v", rows)
			}
			if rows := table[ShowLocal](a, "local"); len(rows) != 2 || rows[0].VM != "web" {
				t.Errorf("local: %+v", rows)
			}
			// The controller forgets it: the hypervisor's word is what is left.
			a.must("DELETE", "/v1/vms/web", nil)
			if rows := table[ShowGuest](a, "guests"); len(rows) != 1 || rows[0].VM != "instance-00000017" || rows[0].EIDsFrom != "metadata" {
				t.Errorf("guests: %+v", rows)
			}
		})
	}
}

// A VM with two interfaces has each address at the one that it uses it at, on both hosts, and loses nothing at either.
func TestTwoInterfaces(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		const mac2 = "52:54:00:00:01:10"
		one, two := vm.eids[0], vm.eids[1]
		guest := func(h *labHost, running bool) Guest {
			g := Guest{Name: "web", UUID: "u", EIDs: vm.eids, Running: running, Interfaces: []GuestInterface{{MAC: vm.mac}, {MAC: mac2}}}
			for i, d := range []string{"tap-web", "tap-web2"} {
				if h.plane.hasTap(d) {
					g.Interfaces[i].Device = d
				}
			}
			return g
		}
		frame := func(h *labHost, tap, mac string, e lisp.EID) {
			m, err := net.ParseMAC(mac)
			if err != nil {
				t.Fatal(err)
			}
			s := Sighting{If: h.plane.tapIndex(tap), MAC: m, Kind: "arp", At: time.Now()}
			if e.IsValid() {
				s.Addr = e.Prefix.Addr()
			}
			h.x.Sighting(s)
		}
		read := func(h *labHost, v *labVM) {
			h.plane.readTap("tap-web", v)
			h.plane.readTap("tap-web2", v)
		}
		expect := func(h *labHost) {
			t.Helper()
			time.Sleep(10 * time.Millisecond)
			for e, want := range map[lisp.EID]struct{ tap, mac string }{one: {"tap-web", vm.mac}, two: {"tap-web2", mac2}} {
				r, _ := h.plane.route(e)
				if r.Do != fib.Deliver || r.If != h.plane.tapIndex(want.tap) || r.MAC.String() != want.mac {
					t.Errorf("host %s: the route for %v is %+v, want %v", h.name, e, r, want)
				}
			}
		}
		a.plane.addTap("tap-web")
		a.plane.addTap("tap-web2")
		read(a, vm)
		a.list(guest(a, true))
		frame(a, "tap-web2", mac2, two)
		frame(a, "tap-web", vm.mac, one)
		frame(a, "tap-web2", mac2, lisp.EID{})
		expect(a)
		f1, f2 := l.flow(one), l.flow(two)
		time.Sleep(50 * time.Millisecond)
		a.says(vm, EventMigrating)
		expect(a)
		b.plane.addTap("tap-web2") // in the other order
		b.plane.addTap("tap-web")
		b.list(guest(b, false))
		time.Sleep(50 * time.Millisecond)
		read(a, nil)
		time.Sleep(time.Millisecond)
		a.says(vm, EventStopped)
		time.Sleep(50 * time.Millisecond)
		read(b, vm)
		b.says(vm, EventResumed)
		frame(b, "tap-web", vm.mac, lisp.EID{})
		frame(b, "tap-web2", mac2, lisp.EID{})
		time.Sleep(30 * time.Millisecond)
		frame(b, "tap-web", vm.mac, one)
		frame(b, "tap-web2", mac2, two)
		expect(b)
		time.Sleep(50 * time.Millisecond)
		f1.end()
		f2.end()
		f1.check(vm, false)
		f2.check(vm, false)
		l.expectAgreement(one, b)
		l.expectAgreement(two, b)
		// One interface is unplugged: the other goes on, and both EIDs are the VM's still.
		g := guest(b, true)
		g.Interfaces = g.Interfaces[:1]
		b.plane.removeTap("tap-web2")
		b.list(g)
		time.Sleep(time.Minute)
		l.expectAgreement(one, b)
		l.expectAgreement(two, b)
		if r, _ := b.plane.route(two); r.If != b.plane.tapIndex("tap-web") || r.MAC.String() != vm.mac {
			t.Errorf("the route of the EID whose interface is gone: %+v", r)
		}
	})
}

// What a source says that makes no sense is left out, and the rest taken.
func TestGuestsThatMakeNoSense(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		a.plane.addTap("tap-web")
		vm.resume(a)
		g := vm.guest(a)
		g.EIDs = append([]lisp.EID{mustEID("203.0.113.1"), mustEID("198.51.100.0/25"), {}}, g.EIDs...)
		g.Interfaces = append(g.Interfaces, GuestInterface{MAC: "nonsense"})
		other := Guest{Name: "thief", UUID: "t", Running: true, EIDs: vm.eids, Interfaces: []GuestInterface{{MAC: "52:54:00:00:00:99"}}}
		a.list(g, Guest{}, g, other)
		time.Sleep(10 * time.Millisecond)
		l.expectAt(vm.eids[0], a, 1)
		if rows := table[ShowLocal](a, "local"); len(rows) != 2 || rows[0].VM != "web" {
			t.Errorf("local: %+v", rows)
		}
		for name, want := range map[string]uint64{"guests-refused": 2, "guest-macs-refused": 2, "guest-eids-refused": 8} {
			if n := a.counter(name); n != want {
				t.Errorf("%s: %d, want %d", name, n, want)
			}
		}
	})
}

// The source's host dies with its VM, which is started anew elsewhere: its first frame, or its hypervisor's word, is
// enough. When the dead host comes back it changes nothing.
func TestSourceHostDies(t *testing.T) {
	for _, word := range []string{"hypervisor", "frame"} {
		t.Run(word, func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				vm := l.newVM("web", 10)
				vm.power(a)
				g := vm.guest(a)
				f := l.flow(vm.eids[0])
				time.Sleep(time.Second)
				a.kill()
				vm.pause()
				l.net.Partition([]netip.Addr{a.rloc})
				time.Sleep(10 * time.Second)
				b.plane.addTap("tap-web")
				vm.resume(b)
				at := int(f.upTo.Load())
				if word == "hypervisor" {
					b.list(vm.guest(b))
				} else {
					vm.frame("arp", vm.eids[0].Prefix.Addr())
				}
				time.Sleep(10 * time.Millisecond)
				l.expectAt(vm.eids[0], b, 2)
				time.Sleep(time.Second)
				f.end()
				f.check(vm, true)
				for s := at + 40; s < f.sent; s++ {
					if !slices.Contains(vm.has(f.eid), s) {
						t.Errorf("packet %d is lost, the VM ran at %d", s, at)
						break
					}
				}
				// The dead one is back: with its old state, its interface or none, and a hypervisor that lists no VM.
				vm.forget()
				f = l.flow(vm.eids[0])
				l.net.Heal()
				a.start()
				time.Sleep(50 * time.Millisecond)
				g.Running, g.Off, g.Interfaces[0].Device = false, true, ""
				a.plane.removeTap("tap-web")
				a.list(g)
				for range 20 {
					time.Sleep(10 * time.Second)
					a.list(g)
					l.expectAt(vm.eids[0], b, 2)
				}
				f.end()
				f.check(vm, false)
				l.expectAgreement(vm.eids[0], b)
			})
		})
	}
}

// A migration takes long, and the target prepares for it from the beginning: the VMs there that speak with the one that
// is to come do so all the time.
func TestNeighboursOfTheTargetGoOn(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, b, 1)
		f := &flow{eid: vm.eids[0]}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for ; ; f.sent++ {
				f.upTo.Store(int64(f.sent))
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				b.plane.send(packet{eid: vm.eids[0], seq: f.sent})
			}
		}()
		time.Sleep(2 * time.Minute)
		if sent, n := int(f.upTo.Load()), len(vm.has(vm.eids[0])); n < sent-3 {
			t.Errorf("of %d packets the VM has got %d while it still runs at the source", sent, n)
		}
		l.migrate(vm, a, b, 50*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		close(stop)
		<-done
		time.Sleep(100 * time.Millisecond)
		f.check(vm, false)
		l.expectAt(vm.eids[0], b, 2)
	})
}

// A VM that is migrated to and fro by people who tell nobody is not taken for one that runs twice, as long as the
// hypervisors say when it stops. One that nobody says has stopped is.
func TestManyMigrationsWithoutHook(t *testing.T) {
	for _, told := range []bool{true, false} {
		inLabThatDamps(t, 5, func(l *lab) {
			vm := l.newVM("web", 10)
			vm.power(l.hosts[0])
			f := l.flow(vm.eids[0])
			for i := range 12 {
				from, to := l.hosts[i%3], l.hosts[(i+1)%3]
				if told {
					from.says(vm, EventMigrating)
				}
				vm.arrives(to)
				time.Sleep(10 * time.Millisecond)
				vm.pause()
				if told {
					from.says(vm, EventStopped)
				}
				time.Sleep(10 * time.Millisecond)
				vm.resume(to)
				if told {
					to.says(vm, EventResumed)
				} else {
					vm.announce()
				}
				time.Sleep(20 * time.Millisecond)
				from.says(vm, EventGone)
				from.list()
				from.plane.removeTap("tap-web")
				time.Sleep(time.Second)
			}
			f.end()
			if !told {
				if at, _ := l.anchor.at(vm.eids[0]); at == l.hosts[0].rloc {
					t.Error("twelve moves of which nobody told in as many seconds, and nobody has taken them for flapping")
				}
				return
			}
			f.check(vm, false)
			l.expectAt(vm.eids[0], l.hosts[0], 0)
			l.expectAgreement(vm.eids[1], l.hosts[0])
		})
	}
}
