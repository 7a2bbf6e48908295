package xtr

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

var (
	testEID  = lisp.HostEID(0, netip.MustParseAddr("198.51.100.10"))
	testEID6 = lisp.HostEID(0, netip.MustParseAddr("2001:db8:e1d:1::10"))
	testID   = lisp.XTRID{15: 5}
	epoch    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// byValue lets cmp compare values that == compares.
var byValue = []cmp.Option{
	cmp.Comparer(func(a, b lisp.EID) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func loc(s string) []lisp.Locator {
	return []lisp.Locator{{RLOC: netip.MustParseAddr(s), Priority: 1, Weight: 100, Reachable: true}}
}

// testRegistrar is the registrar of an xTR at 100.64.1.2 with two Map-Servers.
func testRegistrar() *registrar {
	var n uint64
	return newRegistrar(registrarConfig{
		id: testID, rlocs: loc("100.64.1.2"), servers: 2, interval: time.Minute, ttl: 1440,
		nonce: func(time.Time) uint64 { n++; return n },
	})
}

// said is what a Map-Register says to whom, in short.
type said struct {
	Server   int
	EIDs     []lisp.EID
	Versions []lisp.Version
	Delete   bool
}

func says(out []registerSend) []said {
	var all []said
	for _, s := range out {
		v := said{Server: s.server}
		for _, m := range s.msg.Records {
			v.EIDs, v.Versions = append(v.EIDs, m.EID), append(v.Versions, m.Version)
			v.Delete = v.Delete || m.TTL == lisp.TTLDelete
		}
		all = append(all, v)
	}
	return all
}

func expectSaid(t *testing.T, out []registerSend, want ...said) {
	t.Helper()
	if d := cmp.Diff(want, says(out), byValue...); d != "" {
		t.Fatalf("what was sent (-want +got):\n%s", d)
	}
}

// mine is our mapping as a Map-Server tells it, others another xTR's.
func mine(e lisp.EID, v lisp.Version) lisp.Mapping {
	return lisp.Mapping{EID: e, TTL: 1440, Version: v, Locators: loc("100.64.1.2"), XTRID: testID}
}

func others(e lisp.EID, v lisp.Version, id byte) lisp.Mapping {
	return lisp.Mapping{EID: e, TTL: 1440, Version: v, Locators: loc("100.64.2.2"), XTRID: lisp.XTRID{15: id}}
}

func TestClaimIsNumberedAndSaidEverywhere(t *testing.T) {
	r, now := testRegistrar(), epoch
	if v := r.claim(testEID, 0, false, now); v != 0 {
		t.Fatalf("a first claim has version %d, want 0", v)
	}
	out := r.tick(now)
	expectSaid(t, out,
		said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{0}},
		said{Server: 1, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{0}})
	if m := out[0].msg; !m.HasXTRID || !m.ProxyReply || !m.WantMapNotify || m.UseTTL || m.Merge || m.XTRID != testID {
		t.Errorf("the Map-Register is %+v", m)
	}
	// The first Map-Server knows nothing, the second had version 5 of somebody else.
	if o := r.answered(out[0].msg.Nonce, mine(testEID, 1), now); o.kind != regAccepted {
		t.Fatalf("outcome %v", o)
	}
	now = now.Add(time.Millisecond)
	if o := r.answered(out[1].msg.Nonce, mine(testEID, 6), now); o.kind != regAccepted || o.mapping.Version != 6 {
		t.Fatalf("outcome %v", o)
	}
	expectSaid(t, r.tick(now), said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{6}})
}

func TestClaimAgainWithTheHighestVersion(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 0, false, now)
	out := r.tick(now)
	r.answered(out[1].msg.Nonce, mine(testEID, 6), now)
	expectSaid(t, r.tick(now), said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{6}})
	// The late answer to what was said first changes nothing.
	if o := r.answered(out[0].msg.Nonce, mine(testEID, 1), now); o.kind != regNothing {
		t.Fatalf("outcome %v", o)
	}
	if got := r.known(testEID); got != 6 {
		t.Fatalf("version %d, want 6", got)
	}
}

func TestRetransmission(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 4, true, now)
	var at []time.Duration
	for range 12 {
		out := r.tick(now)
		at = append(at, now.Sub(epoch))
		if len(out) != 2 || out[0].msg.Records[0].Version != 5 {
			t.Fatalf("at %v: %v", now.Sub(epoch), says(out))
		}
		now = r.next()
	}
	want := []time.Duration{0}
	for i, d := 0, 50*time.Millisecond; i < 11; i, d = i+1, min(2*d, time.Minute) {
		want = append(want, want[i]+d)
	}
	if d := cmp.Diff(want, at); d != "" {
		t.Errorf("when a claim was said (-want +got):\n%s", d)
	}
	seen := map[uint64]bool{}
	for n := range r.sent {
		if seen[n] {
			t.Errorf("nonce %d twice", n)
		}
		seen[n] = true
	}
}

func TestEachMapServerIsToldIndependently(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 4, true, now)
	out := r.tick(now)
	r.answered(out[0].msg.Nonce, mine(testEID, 5), now)
	now = now.Add(50 * time.Millisecond)
	out = r.tick(now)
	expectSaid(t, out, said{Server: 1, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{5}})
	r.answered(out[0].msg.Nonce, mine(testEID, 5), now)
	if n := r.next(); n != epoch.Add(time.Minute) {
		t.Fatalf("next at %v", n.Sub(epoch))
	}
	now = epoch.Add(time.Minute)
	// What would be due a moment later goes along.
	expectSaid(t, r.tick(now), said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{5}})
	if n := r.next(); n != epoch.Add(time.Minute+50*time.Millisecond) {
		t.Fatalf("next at %v", n.Sub(epoch))
	}
}

func TestManyEIDsShareMessages(t *testing.T) {
	r, now := testRegistrar(), epoch
	var eids []lisp.EID
	for i := range 200 {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		b := netip.MustParseAddr("2001:db8:e1d:1::").As16()
		b[15] = byte(i)
		eids = append(eids, lisp.HostEID(7, a), lisp.HostEID(7, netip.AddrFrom16(b)))
	}
	for _, e := range eids {
		r.adopt(e, 3, now)
	}
	out := r.tick(now)
	got := map[int]int{}
	for _, s := range out {
		b, err := lisp.AppendSigned(nil, s.msg, lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "s"})
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > bundleSize {
			t.Errorf("a Map-Register of %d bytes", len(b))
		}
		got[s.server] += len(s.msg.Records)
	}
	if len(out) > 2*30 || got[0] != 400 || got[1] != 400 {
		t.Errorf("%d messages with %v records", len(out), got)
	}
}

func TestRefusedByANewerMapping(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.adopt(testEID, 5, now)
	out := r.tick(now)
	if o := r.answered(out[0].msg.Nonce, others(testEID, 6, 9), now); o.kind != regLost || o.mapping.Version != 6 {
		t.Fatalf("outcome %v", o)
	}
	if r.holds(testEID) || !r.next().IsZero() {
		t.Fatal("it is still registered")
	}
	// A frame that may have waited in a queue is no evidence, nor is one of before.
	for _, d := range []time.Duration{-time.Second, 0, evidenceGuard} {
		if r.mayClaim(testEID, now.Add(d), false, now.Add(d)) {
			t.Errorf("evidence of %v after the loss is believed", d)
		}
	}
	if !r.mayClaim(testEID, now.Add(time.Millisecond), true, now) {
		t.Error("the hypervisor's word of after the loss is not believed")
	}
	now = now.Add(time.Second)
	if !r.mayClaim(testEID, now, false, now) {
		t.Fatal("a frame of a second later is not believed")
	}
	if v := r.claim(testEID, 0, false, now); v != 7 {
		t.Fatalf("it claims with version %d, want 7", v)
	}
}

func TestEqualVersions(t *testing.T) {
	for _, tc := range []struct {
		name string
		id   byte
		want regOutcomeKind
	}{{"the lower xTR-ID is theirs", 4, regLost}, {"the lower xTR-ID is ours", 6, regNothing}} {
		t.Run(tc.name, func(t *testing.T) {
			r, now := testRegistrar(), epoch
			r.adopt(testEID, 5, now)
			r.tick(now)
			if o := r.notified(others(testEID, 5, tc.id), now); o.kind != tc.want {
				t.Errorf("outcome %v, want %v", o.kind, tc.want)
			}
		})
	}
}

func TestOldAnswersChangeNothing(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.adopt(testEID, 5, now)
	old := r.tick(now)
	r.notified(others(testEID, 6, 9), now)
	now = now.Add(time.Second)
	r.claim(testEID, 0, false, now)
	r.tick(now)
	// The answer to the refresh of before arrives late: it is older than what we claim.
	if o := r.answered(old[0].msg.Nonce, others(testEID, 6, 9), now); o.kind != regNothing {
		t.Fatalf("outcome %v", o)
	}
	if !r.holds(testEID) {
		t.Fatal("the claim is gone")
	}
}

func TestAMapServerThatKeepsTheOlderOneEndsTheFight(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 6, false, now)
	out := r.tick(now)
	if o := r.answered(out[0].msg.Nonce, others(testEID, 6, 9), now); o.kind != regFrozen {
		t.Fatalf("outcome %v", o)
	}
	if r.mayClaim(testEID, now.Add(time.Minute), false, now.Add(time.Minute)) {
		t.Error("it goes on after a minute")
	}
	if !r.mayClaim(testEID, now.Add(time.Minute), true, now.Add(time.Minute)) {
		t.Error("what the hypervisor says is not believed")
	}
	if at := now.Add(claimWindow); !r.mayClaim(testEID, at, false, at) {
		t.Error("it has given up for ever")
	}
}

func TestTheSameVMTwice(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 0, false, now)
	v := lisp.Version(0)
	claims := 0
	for end := now.Add(24 * time.Hour); now.Before(end); now = now.Add(10 * time.Second) {
		out := r.tick(now)
		for _, s := range out {
			for _, m := range s.msg.Records {
				v = newest(v, max(m.Version, 1))
			}
		}
		if r.holds(testEID) {
			v = v.Next()
			r.notified(others(testEID, v, 9), now) // the other has evidence all the time, too
			for _, s := range out {
				r.answered(s.msg.Nonce, others(testEID, v, 9), now)
			}
		} else if r.mayClaim(testEID, now, false, now) {
			claims++
			r.claim(testEID, 0, false, now)
		}
	}
	// 5 at once, and again after 3, 6, 12, 24 and 48 minutes, then every hour.
	if claims < 10 || claims > 6*(5+24) {
		t.Errorf("%d claims in a day", claims)
	}
}

func TestVacant(t *testing.T) {
	gone := func(v lisp.Version) lisp.Mapping {
		return lisp.Mapping{EID: testEID, TTL: lisp.TTLDelete, Version: v, XTRID: lisp.XTRID{15: 9}}
	}
	t.Run("a claim beats the memory of a withdrawn mapping", func(t *testing.T) {
		r, now := testRegistrar(), epoch
		r.claim(testEID, 2, false, now)
		out := r.tick(now)
		r.answered(out[0].msg.Nonce, gone(7), now)
		expectSaid(t, r.tick(now),
			said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{8}},
			said{Server: 1, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{8}})
	})
	t.Run("a refresh of long ago does not", func(t *testing.T) {
		r, now := testRegistrar(), epoch
		r.adopt(testEID, 2, now)
		out := r.tick(now)
		if o := r.answered(out[0].msg.Nonce, gone(7), now); o.kind != regLost {
			t.Fatalf("outcome %v", o)
		}
		if v := r.claim(testEID, 0, false, now.Add(time.Second)); v != 8 {
			t.Errorf("with evidence it claims version %d, want 8", v)
		}
	})
	t.Run("our own has expired", func(t *testing.T) {
		r, now := testRegistrar(), epoch
		r.adopt(testEID, 2, now)
		for _, s := range r.tick(now) {
			r.answered(s.msg.Nonce, mine(testEID, 2), now)
		}
		m := gone(2)
		m.XTRID = testID
		r.notified(m, now)
		if out := r.tick(now); len(out) != 2 {
			t.Errorf("it does not register again: %v", says(out))
		}
	})
	t.Run("not taken, and no reason", func(t *testing.T) {
		r, now := testRegistrar(), epoch
		r.claim(testEID, 2, false, now)
		out := r.tick(now)
		r.answered(out[0].msg.Nonce, lisp.Mapping{EID: testEID, TTL: 1, Action: lisp.ActDropPolicyDenied}, now)
		if out := r.tick(now); len(out) != 0 {
			t.Errorf("it answers at once: %v", says(out))
		}
		if !r.next().After(now) {
			t.Error("it does not wait")
		}
	})
}

func TestWithdraw(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.adopt(testEID, 5, now)
	for _, s := range r.tick(now) {
		r.answered(s.msg.Nonce, mine(testEID, 5), now)
	}
	r.withdraw(testEID, now)
	out := r.tick(now)
	expectSaid(t, out,
		said{Server: 0, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{5}, Delete: true},
		said{Server: 1, EIDs: []lisp.EID{testEID}, Versions: []lisp.Version{5}, Delete: true})
	gone := mine(testEID, 5)
	gone.TTL, gone.Locators = lisp.TTLDelete, nil
	r.answered(out[0].msg.Nonce, gone, now)
	if r.regs[testEID] == nil {
		t.Fatal("the second Map-Server is forgotten")
	}
	// The second one has another's mapping: nothing of ours is left there either.
	r.answered(out[1].msg.Nonce, others(testEID, 6, 9), now)
	if r.regs[testEID] != nil {
		t.Fatal("the deregistration goes on")
	}
}

func TestWithdrawIsGivenUp(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.adopt(testEID, 5, now)
	r.withdraw(testEID, now)
	steps := 0
	for n := now; !n.IsZero(); n = r.next() {
		r.tick(n)
		if steps++; steps > 50 {
			t.Fatal("it never ends")
		}
	}
	if len(r.regs) != 0 {
		t.Error("it is still there")
	}
}

func TestControllerRegistersInOurName(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 0, true, now)
	r.tick(now)
	if o := r.notified(mine(testEID, 8), now); o.kind != regAccepted {
		t.Fatalf("outcome %v", o)
	}
	for _, s := range says(r.tick(now)) {
		if s.Versions[0] != 8 {
			t.Errorf("it says %v", s)
		}
	}
}

func TestLostBeforeItHadANumber(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.claim(testEID, 0, true, now)
	out := r.tick(now)
	if o := r.notified(others(testEID, 7, 9), now.Add(time.Millisecond)); o.kind != regNothing {
		t.Fatalf("outcome %v: that may be what our claim replaces", o)
	}
	if o := r.answered(out[0].msg.Nonce, mine(testEID, 6), now.Add(2*time.Millisecond)); o.kind != regLost || o.mapping.Version != 7 {
		t.Fatalf("outcome %v", o)
	}
}

func TestNonceSource(t *testing.T) {
	n := newNonceSource(0)
	a := n.next(epoch)
	if a < uint64(epoch.UnixNano()) {
		t.Errorf("nonce %d is before the clock", a)
	}
	if b := n.next(epoch.Add(-time.Hour)); b <= a {
		t.Errorf("the clock stepped back, and nonce %d followed %d", b, a)
	}
	ceiling, due := n.reserve()
	if !due || ceiling <= n.last {
		t.Fatalf("reserve: %d, %v", ceiling, due)
	}
	n.reserved = ceiling
	if _, due := n.reserve(); due {
		t.Error("it is due again at once")
	}
	if m := newNonceSource(ceiling); m.next(epoch.Add(-24*time.Hour)) <= ceiling {
		t.Error("a restart with the clock wrong uses a nonce again")
	}
}

func TestRegistrarForgets(t *testing.T) {
	r, now := testRegistrar(), epoch
	r.adopt(testEID, 5, now)
	r.tick(now)
	r.notified(others(testEID, 6, 9), now)
	r.adopt(testEID6, 1, now)
	for range 200 {
		now = now.Add(time.Minute)
		r.tick(now)
	}
	if len(r.history) != 0 {
		t.Errorf("history of %d EIDs", len(r.history))
	}
	if n := len(r.sent); n > 10 {
		t.Errorf("%d Map-Registers are remembered", n)
	}
	if !slices.Equal(r.all(), []*registration{r.regs[testEID6]}) {
		t.Error("registrations are wrong")
	}
}
