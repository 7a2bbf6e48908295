package xtr

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet/simnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// show reads one table of a host.
func table[T any](h *labHost, name string) []T {
	h.l.t.Helper()
	v, err := h.x.Shows()[name](h.l.ctx)
	if err != nil {
		h.l.t.Fatal(err)
	}
	return v.([]T)
}

// stranger is a host of somebody else, which speaks LISP.
type stranger struct {
	l    *lab
	conn *simnet.Conn
	mu   sync.Mutex
	got  []lisp.Message
}

func (l *lab) stranger(a string) *stranger {
	conn, err := l.net.Listen(netip.AddrPortFrom(netip.MustParseAddr(a), lisp.ControlPort))
	if err != nil {
		l.t.Fatal(err)
	}
	s := &stranger{l: l, conn: conn}
	l.wg.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			m, err := lisp.Decode(b[:n])
			if err != nil {
				l.t.Errorf("stranger: %v", err)
				continue
			}
			s.mu.Lock()
			s.got = append(s.got, m)
			s.mu.Unlock()
		}
	})
	return s
}

func (s *stranger) close() { _ = s.conn.Close() }

func (s *stranger) send(to netip.Addr, m lisp.Message) {
	s.l.t.Helper()
	b, err := lisp.Append(nil, m)
	if err != nil {
		s.l.t.Fatal(err)
	}
	s.sendRaw(to, b)
}

func (s *stranger) sendRaw(to netip.Addr, b []byte) {
	s.l.t.Helper()
	if _, err := s.conn.WriteTo(b, netAddr(to)); err != nil {
		s.l.t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
}

// last is the last message that came; nil if there is none.
func (s *stranger) last() lisp.Message {
	if all := s.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// all are the messages that came.
func (s *stranger) all() []lisp.Message {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func TestVMsOfOneHostTalk(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		web, peer := l.newVM("web", 10), l.newVM("peer", 20)
		web.boot(a)
		peer.boot(a)
		a.plane.send(packet{eid: peer.eids[0], seq: 1})
		if got := peer.has(peer.eids[0]); !slices.Equal(got, []int{1}) {
			t.Errorf("the peer has read %v", got)
		}
		if i, ok := a.x.Local(peer.eids[0].Prefix.Addr()); !ok || i != a.plane.tapIndex("tap-peer") {
			t.Errorf("Local: %d, %v", i, ok)
		}
		if _, ok := a.x.Local(netip.MustParseAddr("198.51.100.77")); ok {
			t.Error("Local knows an address that is not there")
		}
	})
}

func TestMissIsResolvedOnceAndFollows(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
		vm := l.newVM("web", 10)
		vm.boot(b)
		for i := range 5 {
			a.plane.send(packet{eid: vm.eids[0], seq: i})
		}
		time.Sleep(10 * time.Millisecond)
		if got := vm.has(vm.eids[0]); !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
			t.Fatalf("the VM has read %v", got)
		}
		rows := table[ShowMapCache](a, "map-cache")
		if len(rows) != 1 || rows[0].EID != vm.eids[0] || rows[0].Version != 1 || rows[0].Locators != "100.64.2.2/1/100" ||
			!strings.HasPrefix(rows[0].Via, "map-notify") || rows[0].XTRID != b.id().String() {
			t.Errorf("map-cache: %+v", rows)
		}
		// It moves, and A is told by both Map-Servers.
		l.prepare("m1", vm, b, c, 1)
		l.migrate(vm, b, c, 10*time.Millisecond)
		time.Sleep(3 * time.Millisecond)
		if r, _ := a.plane.route(vm.eids[0]); len(r.Locators) != 1 || r.Locators[0].RLOC != c.rloc {
			t.Errorf("the route is %+v", r)
		}
	})
}

func TestNotLISP(t *testing.T) {
	for _, petr := range []bool{true, false} {
		inLab(t, func(l *lab) {
			a := l.hosts[0]
			a.stop()
			a.tune = func(c *Config) {
				c.MTU = 1400
				if petr {
					c.PETRs = []lisp.Locator{{RLOC: anchorRLOC, Priority: 1, Weight: 50}}
				}
			}
			a.start()
			internet := mustEID("192.0.2.10")
			a.plane.send(packet{eid: internet})
			time.Sleep(10 * time.Millisecond)
			rows := table[ShowMapCache](a, "map-cache")
			if len(rows) != 1 || rows[0].Action != "natively-forward" {
				t.Fatalf("map-cache: %+v", rows)
			}
			r, _ := a.plane.route(rows[0].EID)
			if petr && (r.Do != fib.Encap || r.Locators[0].RLOC != anchorRLOC || r.MTU != 1400) || !petr && r.Do != fib.Native {
				t.Errorf("the route is %+v", r)
			}
		})
	}
}

func TestRouteOfAnAction(t *testing.T) {
	x := &XTR{cfg: Config{RLOCs: loc("100.64.1.2")}}
	for a, want := range map[lisp.Action]fib.Do{
		lisp.ActNone: fib.Native, lisp.ActNativelyForward: fib.Native, lisp.ActSendMapRequest: fib.Miss,
		lisp.ActDrop: fib.Drop, lisp.ActDropPolicyDenied: fib.Drop, lisp.ActDropAuthFailure: fib.Drop,
	} {
		if r := x.remote(lisp.Mapping{EID: farEID, Action: a}); r.Do != want {
			t.Errorf("%v: %v, want %v", a, r.Do, want)
		}
	}
	// Never to ourselves, and never to what must not be used.
	m := lisp.Mapping{EID: farEID, Locators: []lisp.Locator{loc("100.64.1.2")[0], loc("192.0.2.1")[0]}}
	m.Locators[1].Priority = lisp.UnusablePriority
	if r := x.remote(m); r.Do != fib.Drop {
		t.Errorf("the route is %+v", r)
	}
}

func TestLearns(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		a.plane.addTap("tap0")
		see := func(mac byte, addr string, at time.Duration) {
			s := Sighting{If: a.plane.tapIndex("tap0"), MAC: []byte{2, 0, 0, 0, 0, mac}, Kind: "arp", At: time.Now().Add(at)}
			if addr != "" {
				s.Addr = netip.MustParseAddr(addr)
			}
			a.x.Sighting(s)
			time.Sleep(10 * time.Millisecond)
		}
		see(1, "198.51.100.10", 0)
		see(1, "2001:db8:e1d:1::10", 0)
		see(2, "198.51.100.11", 0)
		see(2, "10.1.2.3", 0)   // not the cloud's
		see(2, "fe80::1234", 0) // nor this
		see(2, "", 0)           // a reverse ARP of somebody unknown
		rows := table[ShowLocal](a, "local")
		if len(rows) != 3 || !rows[0].Learned || rows[0].MAC != "02:00:00:00:00:01" || rows[0].State != "here" {
			t.Errorf("local: %+v", rows)
		}
		l.expectAt(mustEID("198.51.100.10"), a, 1)
		l.expectAt(mustEID("2001:db8:e1d:1::10"), a, 1)
		l.expectAt(mustEID("198.51.100.11"), a, 1)
		for i := range 40 {
			see(3, netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}).String(), 0)
		}
		if rows := table[ShowLocal](a, "local"); len(rows) != 16 {
			t.Errorf("%d EIDs were learned at one interface", len(rows))
		}
		// What the controller knows of a VM binds: nobody else may have its addresses, and it may have no others.
		a.must("PUT", "/v1/vms/web", VMSpec{MACs: []string{"02-00-00-00-00-09"}, EIDs: []lisp.EID{mustEID("198.51.100.9")}})
		see(2, "198.51.100.9", 0)
		see(9, "198.51.100.8", 0) // its frame says that it runs here, not that it may have this address
		rows = table[ShowLocal](a, "local")
		i := slices.IndexFunc(rows, func(r ShowLocal) bool { return r.EID == mustEID("198.51.100.9") })
		if i < 0 || rows[i].VM != "web" || rows[i].Learned || rows[i].MAC != "02:00:00:00:00:09" {
			t.Errorf("local: %+v", rows)
		}
		if slices.ContainsFunc(rows, func(r ShowLocal) bool { return r.EID == mustEID("198.51.100.8") }) {
			t.Error("a VM has taken an address that it may not have")
		}
		if n := a.counter("spoofed-source"); n != 2 {
			t.Errorf("%d spoofed sources are counted", n)
		}
		// An EID that changes its MAC address.
		see(7, "198.51.100.11", 0)
		if r, _ := a.plane.route(mustEID("198.51.100.11")); r.MAC.String() != "02:00:00:00:00:07" {
			t.Errorf("the route is %+v", r)
		}
	})
}

func TestOnlyKnownVMs(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		a.stop()
		a.tune = func(c *Config) { c.KnownOnly = true }
		a.start()
		vm := l.newVM("web", 10)
		a.plane.addTap("tap-web")
		vm.resume(a)
		vm.announce()
		time.Sleep(10 * time.Millisecond)
		if rows := table[ShowLocal](a, "local"); len(rows) != 0 {
			t.Fatalf("local: %+v", rows)
		}
		// It was seen a moment ago: to be told of it is enough.
		a.must("PUT", "/v1/vms/web", vm.spec())
		time.Sleep(10 * time.Millisecond)
		l.expectAt(vm.eids[0], a, 1)
	})
}

func TestWrongInterface(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		a.plane.addTap("tap-web")
		a.plane.addTap("tap-evil")
		a.must("PUT", "/v1/vms/web", vm.spec())
		a.x.DataPlaneEvent(fib.Event{Kind: fib.EventUnknownSource, At: time.Now(), EID: vm.eids[0],
			If: a.plane.tapIndex("tap-evil"), MAC: hardwareAddr(vm.mac)})
		time.Sleep(10 * time.Millisecond)
		if rows := table[ShowLocal](a, "local"); len(rows) != 0 || a.counter("spoofed-mac") != 1 {
			t.Errorf("local: %+v", rows)
		}
		a.x.DataPlaneEvent(fib.Event{Kind: fib.EventUnknownSource, At: time.Now(), EID: vm.eids[0],
			If: a.plane.tapIndex("tap-web"), MAC: hardwareAddr(vm.mac)})
		time.Sleep(10 * time.Millisecond)
		if rows := table[ShowLocal](a, "local"); len(rows) != 2 {
			t.Errorf("local: %+v", rows)
		}
	})
}

func TestVMStopped(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		// The interface goes and comes: a reboot of the VM process.
		a.plane.removeTap("tap-web")
		time.Sleep(5 * time.Second)
		a.plane.addTap("tap-web")
		time.Sleep(20 * time.Second)
		l.expectAt(vm.eids[0], a, 1)
		if r, _ := a.plane.route(vm.eids[0]); r.If != a.plane.tapIndex("tap-web") {
			t.Errorf("the route is %+v", r)
		}
		a.plane.removeTap("tap-web")
		time.Sleep(9 * time.Second)
		l.expectAgreement(vm.eids[0], a)
		time.Sleep(2 * time.Second)
		l.expectAgreement(vm.eids[0], nil)
		if rows := table[ShowRegistration](a, "registrations"); len(rows) != 0 {
			t.Errorf("registrations: %+v", rows)
		}
		if _, ok := a.plane.route(vm.eids[0]); ok {
			t.Error("the route is still there")
		}
		// Both Map-Servers know that it is gone; it starts on another host, which has to beat what they remember.
		b := l.hosts[1]
		vm.boot(b)
		time.Sleep(200 * time.Millisecond)
		l.expectAt(vm.eids[0], b, 2)
		l.expectAgreement(vm.eids[0], b)
	})
}

// The VM was started elsewhere when its host had died; the late refresh of the old host changes nothing.
func TestHostComesBackFromTheDead(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.net.Partition(nil, []netip.Addr{a.rloc})
		time.Sleep(30 * time.Second)
		vm.boot(b)
		time.Sleep(time.Second)
		l.expectAt(vm.eids[0], b, 2)
		l.net.Heal()
		f := l.flow(vm.eids[0])
		for range 65 {
			time.Sleep(time.Second)
			l.expectAt(vm.eids[0], b, 2)
		}
		f.end()
		f.check(vm, false)
		l.expectAgreement(vm.eids[0], b)
	})
}

// The VM runs here, and somebody else claims it without having it: it comes back.
func TestStolenEID(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		defer vm.talk()()
		b.plane.addTap("tap-x")
		b.x.Sighting(Sighting{If: b.plane.tapIndex("tap-x"), MAC: hardwareAddr("02:00:00:00:00:66"),
			Addr: vm.eids[0].Prefix.Addr(), Kind: "arp", At: time.Now()})
		time.Sleep(20 * time.Millisecond)
		l.expectAt(vm.eids[0], b, 2)
		time.Sleep(2 * time.Second)
		l.expectAt(vm.eids[0], a, 3)
		l.expectAgreement(vm.eids[0], a)
		time.Sleep(2 * time.Minute)
		l.expectAt(vm.eids[0], a, 3)
	})
}

func TestDataPlaneFails(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		a.plane.mu.Lock()
		a.plane.fail = errors.New("no memory")
		a.plane.mu.Unlock()
		vm := l.newVM("web", 10)
		vm.boot(a)
		time.Sleep(time.Second)
		if _, ok := a.plane.route(vm.eids[0]); ok {
			t.Fatal("there is a route")
		}
		fs, err := a.x.Explain(l.ctx, vm.eids[0])
		if err != nil || !slices.ContainsFunc(fs, func(f lisp.Finding) bool {
			return f.Part == "route" && strings.Contains(f.Why, "does not have it yet")
		}) {
			t.Errorf("explain: %+v, %v", fs, err)
		}
		a.plane.mu.Lock()
		a.plane.fail = nil
		a.plane.mu.Unlock()
		time.Sleep(5 * time.Second)
		if r, ok := a.plane.route(vm.eids[0]); !ok || r.Do != fib.Deliver {
			t.Errorf("the route is %+v", r)
		}
	})
}

func TestForgedMessages(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		s := l.stranger("192.0.2.66")
		defer s.close()
		stolen := lisp.Mapping{EID: vm.eids[0], TTL: 1440, Version: 99, Locators: loc("192.0.2.66"), XTRID: lisp.XTRID{1}}
		n := &lisp.MapNotify{Nonce: 1, Records: []lisp.Mapping{stolen}, HasXTRID: true, XTRID: lisp.XTRID{1}}
		b, err := lisp.AppendSigned(nil, n, lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "guessed"})
		if err != nil {
			t.Fatal(err)
		}
		s.sendRaw(a.rloc, b)
		s.send(a.rloc, &lisp.MapReply{Nonce: 1, Records: []lisp.Mapping{stolen}})
		s.send(a.rloc, &lisp.MapReply{Probe: true, Nonce: 1, Records: nil})
		s.send(a.rloc, &lisp.MapRegister{Nonce: 1, Records: []lisp.Mapping{stolen}})
		if a.counter("notify-auth") != 1 || a.counter("reply-nonce") != 1 || a.counter("probe-reply-unasked") != 1 ||
			a.counter("unexpected-message") != 1 {
			t.Errorf("counters: %+v", table[ShowCounter](a, "counters"))
		}
		if s.last() != nil {
			t.Errorf("it answered: %+v", s.last())
		}
		l.expectAgreement(vm.eids[0], a)
		if r, _ := a.plane.route(vm.eids[0]); r.Do != fib.Deliver {
			t.Errorf("the route is %+v", r)
		}
	})
}

func TestAnswersAsETR(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		a.stop()
		a.tune = func(c *Config) { c.AllowedRLOCs = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")} }
		a.start()
		vm := l.newVM("web", 10)
		vm.boot(a)
		in, out := l.stranger("100.64.9.9"), l.stranger("192.0.2.66")
		defer in.close()
		defer out.close()
		ask := func(s *stranger, probe, ecm bool, itr string) {
			m := &lisp.MapRequest{Probe: probe, Nonce: 77, ITRRLOCs: []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr(itr)},
				Records: []lisp.RequestRecord{{EID: vm.eids[0]}, {EID: mustEID("198.51.100.77")}}}
			if !ecm {
				s.send(a.rloc, m)
				return
			}
			b, err := lisp.Append(nil, m)
			if err != nil {
				t.Fatal(err)
			}
			s.send(a.rloc, &lisp.ECM{Source: netip.AddrPortFrom(netip.MustParseAddr(itr), lisp.ControlPort),
				Dest: netip.AddrPortFrom(vm.eids[0].Prefix.Addr(), lisp.ControlPort), Inner: b})
		}
		ask(in, true, false, "100.64.9.9")
		r, ok := in.last().(*lisp.MapReply)
		if !ok || !r.Probe || r.Nonce != 77 || len(r.Records) != 1 || !r.Records[0].Authoritative || r.Records[0].Version != 1 ||
			!r.Records[0].Locators[0].Probed || r.Records[0].Locators[0].RLOC != a.rloc {
			t.Errorf("the answer to a probe: %+v", in.last())
		}
		ask(in, false, true, "100.64.9.9")
		if r, ok := in.last().(*lisp.MapReply); !ok || r.Probe || len(r.Records) != 1 || r.Records[0].Locators[0].Probed {
			t.Errorf("the answer to a forwarded Map-Request: %+v", in.last())
		}
		n := len(in.all())
		ask(in, true, true, "100.64.9.9")
		ask(out, true, false, "192.0.2.66")
		ask(out, false, true, "192.0.2.66")
		ask(in, false, true, "192.0.2.66")
		if got := in.all()[n:]; len(got) != 0 || out.last() != nil {
			t.Errorf("where a VM lives was told: %+v, %+v", got, out.last())
		}
		if a.counter("request-not-for") != 3 || a.counter("probe-in-ecm") != 1 {
			t.Errorf("counters: %+v", table[ShowCounter](a, "counters"))
		}
	})
}

func TestSolicitMapRequest(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(b)
		s := l.stranger("100.64.9.9")
		defer s.close()
		// Out: somebody sends packets for an EID that is not here.
		ev := fib.Event{Kind: fib.EventNotLocal, At: time.Now(), EID: vm.eids[0], RLOC: "100.64.9.9"}
		for range 5 {
			a.x.DataPlaneEvent(ev)
		}
		time.Sleep(5 * time.Millisecond)
		m, ok := s.last().(*lisp.MapRequest)
		if !ok || !m.SMR || !m.DontReply || len(s.all()) != 1 || m.Records[0].EID != vm.eids[0] || m.SourceEID != vm.eids[0] {
			t.Errorf("SMRs: %+v", s.all())
		}
		time.Sleep(3 * time.Second)
		a.x.DataPlaneEvent(ev)
		ev.EID = farEID // not the cloud's
		a.x.DataPlaneEvent(ev)
		time.Sleep(5 * time.Millisecond)
		if n := len(s.all()); n != 2 {
			t.Errorf("%d SMRs", n)
		}
		// In: only of what is in the map-cache, and not too often.
		var asked atomic.Int32
		l.net.Watch(func(d simnet.Datagram) {
			if m, err := lisp.Decode(d.Payload); err == nil && m.Type() == lisp.TypeECM && d.From.Addr() == a.rloc {
				asked.Add(1)
			}
		})
		smr := solicit(vm.eids[0], []netip.Addr{netip.MustParseAddr("100.64.9.9")}, 5)
		s.send(a.rloc, smr)
		if asked.Load() != 0 || a.counter("smr-uncached") != 1 {
			t.Errorf("it asked %d times", asked.Load())
		}
		a.plane.send(packet{eid: vm.eids[0]})
		time.Sleep(10 * time.Millisecond)
		asked.Store(0)
		s.send(a.rloc, smr)
		s.send(a.rloc, smr)
		if asked.Load() != 2 || a.counter("smr-taken") != 1 || a.counter("smr-limited") == 0 {
			t.Errorf("it asked %d times", asked.Load())
		}
		l.net.Watch(nil)
	})
}

// The controller registers in the target's name, and the target's agent was never told that the VM runs.
func TestControllerRegistersForTheTarget(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		l.prepare("m1", vm, a, b, 1)
		b.plane.addTap("tap-web")
		vm.pause()
		a.event("web", EventStop)
		time.Sleep(10 * time.Millisecond)
		vm.resume(b)
		ctl := l.stranger("100.64.10.2")
		defer ctl.close()
		for i, e := range vm.eids {
			reg := &lisp.MapRegister{Nonce: uint64(i + 1), WantMapNotify: true, ProxyReply: true, HasXTRID: true, XTRID: b.id(),
				Records: []lisp.Mapping{{EID: e, TTL: 1440, Version: 2, Authoritative: true, Locators: b.x.cfg.RLOCs}}}
			raw, err := lisp.AppendSigned(nil, reg, labController)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range l.servers {
				ctl.sendRaw(s.addr, raw)
			}
		}
		time.Sleep(100 * time.Millisecond)
		if r := b.record("m1"); r.State != Settled || r.Version != 2 {
			t.Errorf("the target's record: %+v", r)
		}
		l.expectAt(vm.eids[0], b, 2)
		l.expectAgreement(vm.eids[1], b)
		if r := a.record("m1"); r.State != Redirecting || r.Times.Claimed.IsZero() {
			t.Errorf("the source's record: %+v", r)
		}
		time.Sleep(3 * time.Minute)
		l.expectAt(vm.eids[0], b, 2)
	})
}

func TestExplainAndShows(t *testing.T) {
	inLab(t, func(l *lab) {
		a, b := l.hosts[0], l.hosts[1]
		vm := l.newVM("web", 10)
		vm.boot(a)
		b.plane.send(packet{eid: vm.eids[0]})
		time.Sleep(10 * time.Millisecond)
		l.prepare("m1", vm, a, b, 1)
		time.Sleep(10 * time.Millisecond)
		parts := func(h *labHost) (out []string) {
			fs, err := h.x.Explain(l.ctx, vm.eids[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fs {
				if f.Says == "" || f.Why == "" {
					t.Errorf("a finding without sense: %+v", f)
				}
				out = append(out, f.Part)
			}
			return out
		}
		if got, want := parts(a), []string{"local", "moves", "registrations", "registrations", "route"}; !slices.Equal(got, want) {
			t.Errorf("host A explains %v, want %v", got, want)
		}
		if got, want := parts(b), []string{"moves", "registrations", "map-cache", "route"}; !slices.Equal(got, want) {
			t.Errorf("host B explains %v, want %v", got, want)
		}
		if rows := table[ShowMove](a, "moves"); len(rows) != 1 || rows[0].ID != "m1" || rows[0].State != Armed || rows[0].Peer != "100.64.2.2" {
			t.Errorf("moves: %+v", rows)
		}
		rows := table[ShowRegistration](a, "registrations")
		if len(rows) != 4 || rows[0].State != "registered" || rows[0].Confirmed != 1 {
			t.Errorf("registrations: %+v", rows)
		}
	})
}

func TestEndedEngineAnswers(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		x := a.x
		a.stop()
		if err := x.VMEvent(l.ctx, VMEvent{VM: "web", Event: EventStop}); !errors.Is(err, errStopped) {
			t.Errorf("error %v", err)
		}
		x.PortUp("tap0", 1, 1)
		x.Miss(0, vmAddr, vmAddr)
	})
}

func TestConfig(t *testing.T) {
	good := Config{XTRID: testID, RLOCs: loc("100.64.1.2")}
	for name, change := range map[string]func(*Config){
		"no RLOC":           func(c *Config) { c.RLOCs = nil },
		"no xTR-ID":         func(c *Config) { c.XTRID = lisp.XTRID{} },
		"bad RLOC":          func(c *Config) { c.RLOCs = make([]lisp.Locator, 1) },
		"bad instance-ID":   func(c *Config) { c.IID = 1 << 24 },
		"bad EID prefix":    func(c *Config) { c.EIDPrefixes = make([]lisp.EID, 1) },
		"bad Map-Server":    func(c *Config) { c.MapServers = make([]Server, 1) },
		"bad state_dir":     func(c *Config) { c.StateDir = "/dev/null/x" },
		"nothing is wrong!": nil,
	} {
		c := good
		if change != nil {
			change(&c)
		}
		_, err := New(c, nil, nil, nil, nil, nil)
		if (err == nil) != (change == nil) {
			t.Errorf("%s: error %v", name, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "xtr: ") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
