package xtr

import (
	"encoding/json"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func netAddr(a netip.Addr) net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, lisp.ControlPort))
}

func TestAPIErrors(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, l.hosts[1], 1)
		const target = `{"role":"target","vm":"x","eids":["198.51.100.66"],"peer_rloc":"100.64.2.2"}`
		for _, tc := range []struct {
			method, path, body string
			code               int
			says               string
		}{
			{"PUT", "/v1/vms/web", `{"eids":["203.0.113.1"]}`, 400, "not in the cloud's EID prefixes"},
			{"PUT", "/v1/vms/web", `{"eids":["198.51.100.0/25"]}`, 400, "no host address"},
			{"PUT", "/v1/vms/web", `{"macs":["nonsense"]}`, 400, "MAC address"},
			{"PUT", "/v1/vms/web", `{"colour":"red"}`, 400, "colour"},
			{"PUT", "/v1/vms/web", `{}{}`, 400, "more than one"},
			{"PUT", "/v1/vms/web", `{`, 400, "unexpected EOF"},
			{"PUT", "/v1/vms/web", strings.Repeat(" ", maxBody+1), 400, "too large"},
			{"PUT", "/v1/vms/other", `{"eids":["198.51.100.10"]}`, 409, `of VM \"web\"`},
			{"PUT", "/v1/vms/other", `{"macs":["52:54:00:00:00:10"]}`, 409, `of VM \"web\"`},
			{"DELETE", "/v1/vms/nobody", "", 404, "nobody"},
			{"GET", "/v1/handovers/nothing", "", 404, "nothing"},
			{"POST", "/v1/handovers/nothing/commit", "", 404, "nothing"},
			{"POST", "/v1/handovers/nothing/abort", "", 404, "nothing"},
			{"PUT", "/v1/handovers/m2", strings.Replace(target, "target", "spectator", 1), 400, "spectator"},
			{"PUT", "/v1/handovers/m2", strings.Replace(target, "198.51.100.66", "203.0.113.1", 1), 400, "prefixes"},
			{"PUT", "/v1/handovers/m2", `{"role":"target","vm":"x","peer_rloc":"100.64.2.2"}`, 400, "without EIDs"},
			{"PUT", "/v1/handovers/m2", strings.Replace(target, "100.64.2.2", "100.64.1.2", 1), 400, "peer_rloc"},
			{"PUT", "/v1/handovers/m2", strings.Replace(target, `"role"`, `"version":5000,"role"`, 1), 400, "5000"},
			{"PUT", "/v1/handovers/m2", strings.Replace(target, "target", "source", 1), 409, "is not here"},
			{"PUT", "/v1/handovers/m1", target, 409, "another one"},
			{"POST", "/v1/events", `{"vm":"web","event":"dance"}`, 400, "dance"},
			{"POST", "/v1/events", `{"vm":"nobody","event":"stop"}`, 404, "nobody"},
			{"POST", "/v1/events", `{"vm":"nobody","event":"migrating"}`, 404, "nobody"},
			{"POST", "/v1/announcements", `{"vm":"nobody"}`, 404, "nobody"},
			{"POST", "/v1/announcements", `{}`, 404, "which EIDs"},
			{"POST", "/v1/announcements", `{"vm":"x","macs":["nonsense"]}`, 400, "MAC address"},
			{"POST", "/v1/announcements", `{"vm":"x","eids":["203.0.113.1"]}`, 400, "prefixes"},
			{"POST", "/v1/announcements", `{"vm":"web"}`, 409, "runs here"},
			{"POST", "/v1/events", `{"vm":"web","event":"stop","at":"yesterday"}`, 400, "yesterday"},
		} {
			w := httptest.NewRecorder()
			a.x.Handler().ServeHTTP(w, httptest.NewRequestWithContext(l.ctx, tc.method, tc.path, strings.NewReader(tc.body)))
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.says) || !strings.HasPrefix(w.Body.String(), `{"error":`) {
				t.Errorf("%s %s %.80s: status %d, %s want %d, %s", tc.method, tc.path, tc.body, w.Code, w.Body, tc.code, tc.says)
			}
		}
		if r := a.record("m1"); r.State != Armed {
			t.Errorf("m1 is %s", r.State)
		}
	})
}

func TestAPIIsIdempotent(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		for range 2 {
			a.must("PUT", "/v1/vms/web", vm.spec())
			l.prepare("m1", vm, a, b, 1)
		}
		l.migrate(vm, a, b, 20*time.Millisecond)
		for range 2 {
			a.event("web", EventStop)
			b.event("web", EventResume)
			l.prepare("m1", vm, a, b, 1) // a late repetition
			a.must("POST", "/v1/handovers/m1/commit", nil)
			b.must("POST", "/v1/handovers/m1/commit", nil)
			time.Sleep(20 * time.Millisecond)
		}
		l.expectAt(vm.eids[0], b, 2)
		if r := a.record("m1"); r.State != Redirecting || r.Times.Run.IsZero() {
			t.Errorf("the source: %+v", r)
		}
		if r := b.record("m1"); r.State != Settled {
			t.Errorf("the target: %+v", r)
		}
		if n := len(table[ShowMove](a, "moves")) + len(table[ShowMove](b, "moves")); n != 2 {
			t.Errorf("%d records", n)
		}
	})
}

// What a hypervisor says late must not undo what it said after that.
func TestEventsOutOfOrder(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		before := time.Now()
		time.Sleep(time.Second)
		l.prepare("m1", vm, a, b, 1)
		l.migrate(vm, a, b, 20*time.Millisecond)
		time.Sleep(20 * time.Millisecond)
		a.must("POST", "/v1/events", VMEvent{VM: "web", Event: EventResume, At: before})
		b.must("POST", "/v1/events", VMEvent{VM: "web", Event: EventStop, At: before})
		time.Sleep(20 * time.Millisecond)
		l.expectAt(vm.eids[0], b, 2)
		if r := a.record("m1"); r.State != Redirecting {
			t.Errorf("the source: %+v", r)
		}
		l.expectAgreement(vm.eids[0], b)
	})
}

func TestVMsAPI(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		// It gets another address, and loses one.
		s := vm.spec()
		s.EIDs = []lisp.EID{vm.eids[0], mustEID("198.51.100.99")}
		a.must("PUT", "/v1/vms/web", s)
		time.Sleep(100 * time.Millisecond)
		rows := table[ShowLocal](a, "local")
		if len(rows) != 2 || rows[1].EID != mustEID("198.51.100.99") {
			t.Errorf("local: %+v", rows)
		}
		l.expectAt(mustEID("198.51.100.99"), a, 1)
		a.must("DELETE", "/v1/vms/web", nil)
		if rows := table[ShowLocal](a, "local"); len(rows) != 2 {
			t.Errorf("a VM that is not announced any more, but runs: %+v", rows)
		}
		w := httptest.NewRecorder()
		a.x.Handler().ServeHTTP(w, httptest.NewRequestWithContext(l.ctx, "GET", "/v1/vms", nil))
		if w.Body.String() != "[]\n" {
			t.Errorf("VMs: %s", w.Body)
		}
	})
}

// A hook announces a VM where it is about to arrive, and knows no more.
func TestAnnouncement(t *testing.T) {
	for _, tc := range []struct {
		name string
		body func(vm *labVM) Announcement
		told bool // the controller has told the target of the VM
	}{
		{"name", func(vm *labVM) Announcement { return Announcement{VM: vm.name} }, true},
		{"MAC address", func(vm *labVM) Announcement { return Announcement{MACs: []string{vm.mac}} }, true},
		{"all of it", func(vm *labVM) Announcement {
			return Announcement{VM: vm.name, UUID: "uuid-of-web", MACs: []string{vm.mac}, EIDs: vm.eids}
		}, false},
		{"EIDs", func(vm *labVM) Announcement { return Announcement{EIDs: vm.eids} }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				a, b := l.hosts[0], l.hosts[1]
				vm := l.newVM("web", 10)
				vm.power(a)
				f := l.flow(vm.eids[1])
				time.Sleep(20 * time.Millisecond)
				if tc.told {
					b.must("PUT", "/v1/vms/web", vm.spec())
				}
				rec := b.must("POST", "/v1/announcements", tc.body(vm))
				if rec.State != Incoming || rec.Role != Target || len(rec.EIDs) != 2 {
					t.Fatalf("%+v", rec)
				}
				if again := b.must("POST", "/v1/announcements", tc.body(vm)); again.ID != rec.ID {
					t.Errorf("announced twice, it is %s and %s", rec.ID, again.ID)
				}
				time.Sleep(20 * time.Millisecond)
				if rec = b.record(rec.ID); rec.PeerRLOC != a.rloc || rec.Version != 1 {
					t.Errorf("the mapping system has told where it is: %+v", rec)
				}
				if r, _ := b.plane.route(vm.eids[1]); r.Do != fib.Hold || !r.Watch || len(r.Locators) != 1 || r.Locators[0].RLOC != a.rloc {
					t.Errorf("the target's route is %+v", r)
				}
				if code, _ := a.api("POST", "/v1/announcements", Announcement{VM: "web"}); code != 409 {
					t.Errorf("announced where it runs: status %d", code)
				}
				a.says(vm, EventMigrating)
				b.plane.addTap("tap-web")
				vm.pause()
				a.says(vm, EventStopped)
				time.Sleep(50 * time.Millisecond)
				vm.resume(b)
				if tc.told {
					b.event("web", EventResumed)
				} else {
					vm.frame("gratuitous", vm.eids[0].Prefix.Addr())
				}
				time.Sleep(50 * time.Millisecond)
				f.end()
				f.check(vm, false)
				l.expectAt(vm.eids[0], b, 2)
				l.expectAt(vm.eids[1], b, 2)
				l.expectAgreement(vm.eids[0], b)
				if rec = b.record(rec.ID); rec.State != Settled {
					t.Errorf("the target: %+v", rec)
				}
			})
		})
	}
}

// What was announced and does not come, is to come elsewhere, or is prepared after all.
func TestAnnouncementOfWhatDoesNotCome(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
		vm := l.newVM("web", 10)
		vm.power(a)
		say := Announcement{VM: "web", MACs: []string{vm.mac}, EIDs: vm.eids}
		first := b.must("POST", "/v1/announcements", say)
		time.Sleep(11 * time.Minute)
		if r := b.record(first.ID); r.State != Aborted {
			t.Errorf("after eleven minutes: %+v", r)
		}
		second := b.must("POST", "/v1/announcements", say)
		time.Sleep(time.Second)
		b.must("POST", "/v1/handovers/"+second.ID+"/abort", nil)
		time.Sleep(31 * time.Second)
		if r := b.record(second.ID); r.State != Aborted {
			t.Errorf("aborted: %+v", r)
		}
		third := b.must("POST", "/v1/announcements", say)
		f := l.flow(vm.eids[0])
		time.Sleep(20 * time.Millisecond)
		l.prepare("m1", vm, a, c, 1)
		l.migrate(vm, a, c, 20*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		f.end()
		f.check(vm, false)
		time.Sleep(31 * time.Second)
		if r := b.record(third.ID); r.State != Aborted || r.Version != 2 {
			t.Errorf("it came elsewhere: %+v", r)
		}
		l.expectAgreement(vm.eids[0], c)
		fourth := b.must("POST", "/v1/announcements", say)
		l.prepare("m2", vm, c, b, 2)
		if r := b.record(fourth.ID); r.State != Superseded {
			t.Errorf("prepared after all: %+v", r)
		}
		vm.forget()
		f = l.flow(vm.eids[0])
		l.migrate(vm, c, b, 20*time.Millisecond)
		time.Sleep(50 * time.Millisecond)
		f.end()
		f.check(vm, false)
		l.expectAgreement(vm.eids[0], b)
		l.expectAt(vm.eids[1], b, 3)
	})
}

func TestHandoversOfOneVM(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		v, w := l.newVM("web", 10), l.newVM("db", 20)
		v.boot(a)
		w.boot(a)
		l.prepare("m1", v, a, b, 1)
		l.prepare("m2", w, a, b, 1)
		for query, want := range map[string]string{"": "m1 m2 ", "?vm=web": "m1 ", "?vm=db": "m2 ", "?vm=nobody": ""} {
			rec := httptest.NewRecorder()
			a.x.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(l.ctx, "GET", "/v1/handovers"+query, nil))
			var all []Handover
			if err := json.Unmarshal(rec.Body.Bytes(), &all); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, h := range all {
				got += h.ID + " "
			}
			if got != want {
				t.Errorf("%q: %q, want %q", query, got, want)
			}
		}
		a.list(v.guest(a))
		rec := httptest.NewRecorder()
		a.x.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(l.ctx, "GET", "/v1/guests", nil))
		if !strings.Contains(rec.Body.String(), `"uuid":"uuid-of-web"`) {
			t.Errorf("guests: %s", rec.Body)
		}
	})
}
