package xtr

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// talk makes the VM send a frame every 100 ms, as VMs do.
func (vm *labVM) talk() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
			vm.mu.Lock()
			h := vm.host
			vm.mu.Unlock()
			if h != nil {
				vm.frame("arp", vm.eids[0].Prefix.Addr())
			}
		}
	}()
	return func() { close(quit); <-done }
}

func TestRestartInMidMove(t *testing.T) {
	const (
		beforeStop    = iota // killed and back before anything happens
		deadAtStop           // dead while the VM stops
		afterRedirect        // killed when it has just begun to redirect
		afterFlush           // killed when it redirects and nothing is held
		deadAtRun            // dead while the VM begins to run
		afterRun             // killed when the VM has just begun to run
	)
	for _, tc := range []struct {
		name   string
		target bool // it is the target's agent that is killed
		when   int
		most   int // packets that may be lost: 4 a millisecond while nobody could act
	}{
		{"source before the stop", false, beforeStop, 0},
		{"source dead at the stop", false, deadAtStop, 4 * 410},
		{"source after the redirect", false, afterRedirect, 4 * 110},
		{"source after the flush", false, afterFlush, 0},
		{"target before the stop", true, beforeStop, 0},
		{"target dead at the stop", true, deadAtStop, 4 * 310},
		{"target dead at the run", true, deadAtRun, 4 * 410},
		{"target after the run", true, afterRun, 4 * 350},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				h := a
				if tc.target {
					h = b
				}
				vm := l.newVM("web", 10)
				vm.boot(a)
				defer vm.talk()()
				f := l.flow(vm.eids[0])
				time.Sleep(20 * time.Millisecond)
				l.prepare("m1", vm, a, b, 1)
				b.plane.addTap("tap-web")
				time.Sleep(20 * time.Millisecond)

				dead := func(d time.Duration) {
					h.kill()
					time.AfterFunc(d, h.start)
				}
				event := func(host *labHost, event string) {
					if host.plane.engine() != nil {
						host.event("web", event)
					}
				}
				if tc.when == beforeStop {
					dead(100 * time.Millisecond)
					time.Sleep(200 * time.Millisecond)
				}
				if tc.when == deadAtStop {
					dead(300 * time.Millisecond)
				}
				vm.pause()
				time.Sleep(500 * time.Microsecond)
				event(a, EventStop)
				switch tc.when {
				case afterRedirect:
					time.Sleep(1300 * time.Microsecond)
					dead(100 * time.Millisecond)
				case afterFlush:
					time.Sleep(50 * time.Millisecond)
					dead(100 * time.Millisecond)
				case deadAtRun:
					time.Sleep(100 * time.Millisecond)
					dead(300 * time.Millisecond)
				}
				time.Sleep(100 * time.Millisecond)
				vm.resume(b)
				event(b, EventResume)
				if tc.when == afterRun {
					time.Sleep(300 * time.Microsecond)
					dead(100 * time.Millisecond)
				}
				time.Sleep(8 * time.Second)
				f.end()
				lost := f.check(vm, true)
				if lost > tc.most {
					t.Errorf("%d packets are lost, at most %d may be", lost, tc.most)
				}
				t.Logf("%d of %d packets are lost", lost, f.sent)
				l.expectAt(vm.eids[0], b, 2)
				l.expectAt(vm.eids[1], b, 2)
				l.expectAgreement(vm.eids[0], b)
				f = l.flow(vm.eids[1])
				time.Sleep(100 * time.Millisecond)
				f.end()
				f.check(vm, false)
				a.plane.removeTap("tap-web")
				time.Sleep(time.Minute)
				src, dst := a.record("m1"), b.record("m1")
				if src.State != Settled || dst.State != Settled {
					t.Errorf("records:\n%+v\n%+v", src, dst)
				}
				l.expectAt(vm.eids[0], b, 2)
				if r, ok := a.plane.route(vm.eids[0]); ok && (r.Transit || r.Do != fib.Encap) {
					t.Errorf("the source's route is %+v", r)
				}
			})
		})
	}
}

func TestRestartChangesNothing(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		other := l.newVM("peer", 20)
		other.boot(l.hosts[1])
		a.plane.send(packet{eid: other.eids[0], seq: 0})
		time.Sleep(100 * time.Millisecond)
		want := a.plane.Routes()
		f := l.flow(vm.eids[0])
		time.Sleep(100 * time.Millisecond)
		for range 3 {
			sets := len(a.plane.sets)
			a.kill()
			time.Sleep(time.Second)
			a.start()
			time.Sleep(2 * time.Second)
			if got := a.plane.sets[sets:]; len(got) != 0 {
				t.Errorf("routes were set: %+v", got)
			}
			if got := a.plane.Routes(); len(got) != len(want) {
				t.Errorf("routes are %v, were %v", got, want)
			}
			f.end()
			f.check(vm, false)
			vm.forget()
			f = l.flow(vm.eids[0])
			l.expectAt(vm.eids[0], a, 1)
			l.expectAgreement(vm.eids[0], a)
		}
		f.end()
		time.Sleep(5 * time.Minute)
		l.expectAt(vm.eids[0], a, 1)
	})
}

// The VM left while the agent was dead: its refresh is refused, and it gives up.
func TestRestartAfterTheVMHasLeft(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		b.must("PUT", "/v1/vms/web", vm.spec())
		a.kill()
		vm.pause()
		b.plane.addTap("tap-web")
		vm.resume(b)
		vm.announce()
		time.Sleep(30 * time.Second)
		l.expectAt(vm.eids[0], b, 2)
		a.start()
		time.Sleep(10 * time.Millisecond)
		l.expectAt(vm.eids[0], b, 2)
		l.expectAgreement(vm.eids[0], b)
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Encap || !r.Transit || r.Locators[0].RLOC != b.rloc {
			t.Errorf("the old host's route is %+v", r)
		}
	})
}

// The host was restarted, too: no interface comes back. Nothing is deregistered, the mapping expires.
func TestRestartWithoutInterfaces(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		a.kill()
		a.plane.mu.Lock()
		clear(a.plane.taps)
		clear(a.plane.routes)
		a.plane.mu.Unlock()
		a.start()
		time.Sleep(40 * time.Second)
		rows, err := call(l.ctx, a.x, false, func(now time.Time) ([]ShowLocal, error) { return a.x.showLocal(now), nil })
		if err != nil || len(rows) != 0 {
			t.Errorf("local EIDs: %+v, %v", rows, err)
		}
		l.expectAt(vm.eids[0], a, 1)
		l.expectAgreement(vm.eids[0], nil)
	})
}

// A claim that had no number yet is no claim any more after a restart: the agent asks.
func TestRestartBeforeTheFirstNumber(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		inLab(t, func(l *lab) {
			a, b := l.hosts[0], l.hosts[1]
			l.net.Partition(nil, []netip.Addr{a.rloc})
			vm := l.newVM("web", 10)
			vm.boot(a)
			time.Sleep(time.Second)
			a.kill()
			l.net.Heal()
			want := a
			if elsewhere {
				vm.pause()
				vm.boot(b)
				want = b
			}
			a.start()
			time.Sleep(3 * time.Second)
			l.expectAt(vm.eids[0], want, 1)
			l.expectAgreement(vm.eids[0], want)
		})
	}
}

func TestBrokenStateIsPutAside(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{stateFile, cacheFile} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{\"nonces\": 12"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile+".tmp-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSaver(dir, discard())
	st, err := s.load()
	if err != nil || st.Nonces != 0 {
		t.Fatalf("load: %+v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile+".bad")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile+".tmp-1")); err == nil {
		t.Error("what an interrupted write has left is still there")
	}
}

func TestStateRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := newSaver(dir, discard())
	h := handover{Handover: Handover{ID: "m1", VM: "web", Role: Target, State: Incoming, EIDs: []lisp.EID{testEID},
		PeerRLOC: netip.MustParseAddr("2001:db8:100:3::2"), Version: 5, Dropped: map[string]uint64{"x": 1}, Why: "w"},
		MACs: []string{"52:54:00:00:00:10"}, Interface: "tap0", Prepared: true, Hold: 7, Flushing: true,
		To: loc("100.64.1.2"), Heard: epoch, Moved: epoch}
	h.Times.Prepared = epoch
	want := savedState{Format: stateFormat, Nonces: 9, LastHold: 3,
		VMs:       []vm{{Name: "web", MACs: []string{"52:54:00:00:00:10"}, EIDs: []lisp.EID{testEID}}},
		Local:     []savedLocal{{localEID: localEID{EID: testEID6, VM: "web", MAC: "m", Interface: "i", Since: epoch, Seen: epoch}, Registered: true, Version: 4}},
		Handovers: []handover{h},
		cache:     []cacheEntry{{Mapping: others(testEID, 3, 9), Expires: epoch, Installed: epoch, Via: "v"}}, caching: true}
	done := make(chan struct{})
	go func() { s.run(); close(done) }()
	s.put(&want, epoch)
	s.close()
	<-done
	got, err := newSaver(dir, discard()).load()
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]any{
		"state": {want, *got}, "map-cache": {want.cache, got.cache},
	} {
		a, err := json.Marshal(pair[0])
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if string(a) != string(b) {
			t.Errorf("%s:\n%s\nbecame\n%s", what, a, b)
		}
	}
	if got.Handovers[0].Hold != 7 || !got.Handovers[0].Flushing || got.Local[0].Version != 4 || got.cache[0].Mapping.Version != 3 {
		t.Errorf("it became %+v", got)
	}
}
