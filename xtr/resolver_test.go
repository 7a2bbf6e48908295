package xtr

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

var (
	ms1     = netip.MustParseAddr("100.64.7.2")
	ms2     = netip.MustParseAddr("100.64.8.2")
	mr      = netip.MustParseAddr("100.64.9.2")
	peerEID = mustEID("198.51.100.20")
	farEID  = mustEID("203.0.113.10")
	vmAddr  = netip.MustParseAddr("198.51.100.10")
)

// testResolver asks two Map-Servers for EIDs of the cloud, and ms1 or mr for others.
func testResolver() *resolver {
	var n uint64
	next := func() uint64 { n++; return n }
	return newResolver(resolverConfig{
		id: testID, site: 3, rlocs: []netip.Addr{netip.MustParseAddr("100.64.1.2")},
		servers: []netip.Addr{ms1, ms2}, resolvers: []netip.Addr{ms1, mr},
		own: func(e lisp.EID) bool {
			return slices.ContainsFunc(labPrefixes, func(p lisp.EID) bool { return p.Contains(e) })
		},
		nonce: func(time.Time) uint64 { return next() }, random: func() uint64 { return 1<<40 + next() },
		used: func(lisp.EID) bool { return true }, limit: 100,
	})
}

// asked runs the resolver at now, and lists whom it asked for what: "who eid" with "+" for a subscription.
func asked(r *resolver, now time.Time) (string, resolverOut) {
	r.tick(now)
	o := r.take()
	s := ""
	for _, q := range o.sends {
		mark := ""
		if q.msg.Records[0].Notify {
			mark = "+"
		}
		s += fmt.Sprintf("%v %v%s;", q.to, q.msg.Records[0].EID, mark)
	}
	return s, o
}

func positive(e lisp.EID, v lisp.Version, rloc string) lisp.Mapping {
	return lisp.Mapping{EID: e, TTL: 1440, Version: v, Locators: loc(rloc), XTRID: lisp.XTRID{15: 9}}
}

func negative(prefix string, ttl lisp.TTL) lisp.Mapping {
	return lisp.Mapping{EID: mustEID(prefix), TTL: ttl, Action: lisp.ActNativelyForward}
}

func TestSubscribesWithAllMapServers(t *testing.T) {
	r, now := testResolver(), epoch
	if !r.want(peerEID, vmAddr, whyMiss, false, now) {
		t.Fatal("it does not want to ask")
	}
	s, o := asked(r, now)
	if want := "100.64.7.2 198.51.100.20/32+;100.64.8.2 198.51.100.20/32+;"; s != want {
		t.Fatalf("asked %q, want %q", s, want)
	}
	m := o.sends[0].msg
	if !m.HasXTRID || m.XTRID != testID || m.SiteID != 3 || m.SourceEID != lisp.HostEID(0, vmAddr) || len(m.ITRRLOCs) != 1 ||
		m.Nonce >= o.sends[1].msg.Nonce {
		t.Errorf("the Map-Request is %+v", m)
	}
	if !r.subscribed(m.Nonce, []lisp.Mapping{positive(peerEID, 4, "100.64.2.2")}, now.Add(time.Millisecond)) {
		t.Fatal("the answer is not taken")
	}
	o2 := r.take()
	if d := cmp.Diff([]lisp.EID{peerEID}, o2.changed, byValue...); d != "" {
		t.Errorf("changed: %s", d)
	}
	if d := cmp.Diff([]lisp.EID{peerEID}, o2.release, byValue...); d != "" {
		t.Errorf("released: %s", d)
	}
	// The second answer has a newer mapping.
	r.subscribed(o.sends[1].msg.Nonce, []lisp.Mapping{positive(peerEID, 5, "100.64.3.2")}, now.Add(2*time.Millisecond))
	if c, _ := r.cache.Get(peerEID); c.Mapping.Version != 5 {
		t.Errorf("the map-cache has %+v", c.Mapping)
	}
	if len(r.queries) != 0 {
		t.Error("the question is still open")
	}
	if s, _ := asked(r, now.Add(time.Minute)); s != "" {
		t.Errorf("it asks %q", s)
	}
}

func TestOlderAnswerIsNotBelieved(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(peerEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	r.subscribed(o.sends[0].msg.Nonce, []lisp.Mapping{positive(peerEID, 5, "100.64.3.2")}, now)
	r.subscribed(o.sends[1].msg.Nonce, []lisp.Mapping{positive(peerEID, 4, "100.64.2.2")}, now)
	if c, _ := r.cache.Get(peerEID); c.Mapping.Version != 5 {
		t.Errorf("the map-cache has %+v", c.Mapping)
	}
}

func TestRepeatsAndGivesUp(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(farEID, vmAddr, whyMiss, false, now)
	var at []time.Duration
	var to []netip.Addr
	for {
		r.tick(now)
		o := r.take()
		for _, s := range o.sends {
			at, to = append(at, now.Sub(epoch)), append(to, s.to)
			if s.msg.HasXTRID || s.msg.Records[0].Notify || s.msg.Nonce < 1<<40 {
				t.Errorf("a request for what is not ours: %+v", s.msg)
			}
		}
		if len(o.reject) > 0 {
			break
		}
		now = r.next()
	}
	want := []time.Duration{0, 200 * ms, 600 * ms, 1600 * ms, 2600 * ms, 3600 * ms, 4600 * ms, 5600 * ms, 6600 * ms, 7600 * ms}
	if d := cmp.Diff(want, at); d != "" {
		t.Errorf("asked at (-want +got):\n%s", d)
	}
	if to[0] != ms1 || to[1] != mr || to[2] != ms1 {
		t.Errorf("asked %v", to)
	}
	if r.want(farEID, vmAddr, whyMiss, false, now.Add(29*time.Second)) {
		t.Error("it asks again at once")
	}
	now = r.next()
	r.tick(now)
	if now.Sub(epoch) != 38600*ms || !r.want(farEID, vmAddr, whyMiss, false, now) {
		t.Errorf("after %v it does not ask again", now.Sub(epoch))
	}
}

func TestMapServerThatKnowsNoSubscriptions(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(peerEID, vmAddr, whyMiss, false, now)
	got := ""
	for range 5 {
		s, _ := asked(r, now)
		got += s + "\n"
		now = r.next()
	}
	plus := "100.64.7.2 198.51.100.20/32+;100.64.8.2 198.51.100.20/32+;\n"
	plain := "100.64.7.2 198.51.100.20/32;100.64.8.2 198.51.100.20/32;\n"
	if want := plus + plus + plus + plain + plus; got != want {
		t.Errorf("asked\n%swant\n%s", got, want)
	}
}

func TestSubscriptionDenied(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(peerEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	denied := lisp.Mapping{EID: peerEID, TTL: 1, Action: lisp.ActDropPolicyDenied}
	if !r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{denied}, now) {
		t.Fatal("the answer is not taken")
	}
	if s, _ := asked(r, now); s != "100.64.7.2 198.51.100.20/32;100.64.8.2 198.51.100.20/32+;" {
		t.Errorf("asked %q", s)
	}
	if _, ok := r.cache.Get(peerEID); ok {
		t.Error("the denial is in the map-cache")
	}
}

func TestNonceOfAReply(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(farEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	m := positive(mustEID("203.0.113.0/24"), 0, "192.0.2.1")
	if r.reply(4711, []lisp.Mapping{m}, now) {
		t.Error("a reply that nobody asked for is taken")
	}
	if !r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now) {
		t.Error("the reply is not taken")
	}
	if r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now) {
		t.Error("the reply is taken twice")
	}
	if e, _, ok := r.cache.LookupEID(farEID); !ok || e != m.EID {
		t.Errorf("the map-cache has %v", e)
	}
}

func TestReplyThatSpeaksOfOthers(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(farEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{
		positive(mustEID("203.0.113.0/24"), 1, "192.0.2.1"),
		positive(mustEID("203.0.113.128/25"), 1, "192.0.2.2"), // a more-specific of the answer
		positive(mustEID("8.8.8.8"), 1, "192.0.2.66"),         // nobody asked for that
	}, now)
	if n := r.cache.Len(); n != 2 {
		t.Errorf("%d entries", n)
	}
	if _, ok := r.cache.Get(mustEID("8.8.8.8")); ok {
		t.Error("the map-cache is poisoned")
	}
}

func TestNegativeOutside(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(mustEID("192.0.2.10"), vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{negative("192.0.0.0/10", 15)}, now)
	if e, c, ok := r.cache.LookupEID(mustEID("192.0.2.99")); !ok || e != mustEID("192.0.0.0/10") || c.Mapping.Action != lisp.ActNativelyForward {
		t.Errorf("the map-cache has %v %+v", e, c)
	}
	if o := r.take(); len(o.release) != 1 {
		t.Errorf("released: %v", o.release)
	}
	r.tick(epoch.Add(15 * time.Minute))
	if r.cache.Len() != 0 {
		t.Error("it has not expired")
	}
}

func TestNegativeInside(t *testing.T) {
	t.Run("all agree: the narrowest prefix", func(t *testing.T) {
		r, now := testResolver(), epoch
		r.want(peerEID, vmAddr, whyMiss, false, now)
		_, o := asked(r, now)
		r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{negative("198.51.100.16/28", 15)}, now)
		if r.cache.Len() != 0 {
			t.Error("the first one is believed alone")
		}
		r.reply(o.sends[1].msg.Nonce, []lisp.Mapping{negative("198.51.100.0/25", 15)}, now)
		if _, ok := r.cache.Get(mustEID("198.51.100.16/28")); !ok || r.cache.Len() != 1 {
			t.Errorf("the map-cache has %+v", r.entries())
		}
	})
	t.Run("one is silent: the EID alone, for a minute", func(t *testing.T) {
		r, now := testResolver(), epoch
		r.want(peerEID, vmAddr, whyMiss, false, now)
		_, o := asked(r, now)
		r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{negative("198.51.100.0/25", 15)}, now)
		now = r.next()
		r.tick(now)
		if c, ok := r.cache.Get(peerEID); !ok || c.Expires.Sub(now) != time.Minute || now.Sub(epoch) != queryQuick {
			t.Errorf("at %v the map-cache has %+v", now.Sub(epoch), r.entries())
		}
		if o := r.take(); len(o.release) != 1 {
			t.Errorf("released: %v", o.release)
		}
		// The other one has it after all.
		r.subscribed(o.sends[1].msg.Nonce, []lisp.Mapping{positive(peerEID, 3, "100.64.2.2")}, now.Add(time.Second))
		if c, _ := r.cache.Get(peerEID); c.Mapping.Negative() {
			t.Error("the mapping is not believed")
		}
	})
	t.Run("one has it", func(t *testing.T) {
		r, now := testResolver(), epoch
		r.want(peerEID, vmAddr, whyMiss, false, now)
		_, o := asked(r, now)
		r.subscribed(o.sends[0].msg.Nonce, []lisp.Mapping{positive(peerEID, 3, "100.64.2.2")}, now)
		r.reply(o.sends[1].msg.Nonce, []lisp.Mapping{negative("198.51.100.0/25", 15)}, now)
		if r.cache.Len() != 1 || len(r.queries) != 0 {
			t.Errorf("the map-cache has %+v", r.entries())
		}
	})
}

// resolvedPeer has the peer's mapping, version 4, from both Map-Servers. It returns the nonces of the subscriptions.
func resolvedPeer(t *testing.T, r *resolver, now time.Time) (n1, n2 uint64) {
	t.Helper()
	r.want(peerEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	for _, s := range o.sends {
		r.subscribed(s.msg.Nonce, []lisp.Mapping{positive(peerEID, 4, "100.64.2.2")}, now)
	}
	r.take()
	return o.sends[0].msg.Nonce, o.sends[1].msg.Nonce
}

func TestPublication(t *testing.T) {
	r, now := testResolver(), epoch
	n1, _ := resolvedPeer(t, r, now)
	version := func() lisp.Version {
		c, _ := r.cache.Get(peerEID)
		return c.Mapping.Version
	}
	if !r.published(ms1, n1+1, positive(peerEID, 5, "100.64.3.2"), now) || version() != 5 {
		t.Fatalf("version %d", version())
	}
	if o := r.take(); len(o.changed) != 1 {
		t.Errorf("changed: %v", o.changed)
	}
	r.published(ms1, n1+1, positive(peerEID, 4, "100.64.2.2"), now)  // a replay
	r.published(ms2, 1<<50, positive(peerEID, 4, "100.64.2.2"), now) // an older one from the other
	if version() != 5 {
		t.Errorf("version %d", version())
	}
	r.published(ms1, 1, positive(peerEID, 6, "100.64.2.2"), now) // a Map-Server that lost its nonces
	if version() != 6 {
		t.Errorf("version %d", version())
	}
	if r.published(ms1, 1<<50, positive(mustEID("198.51.100.77"), 1, "100.64.2.2"), now) || r.cache.Len() != 1 {
		t.Error("what nobody wanted to know is believed")
	}
}

func TestPublicationAnswersAQuestion(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(peerEID, vmAddr, whyMiss, false, now)
	r.tick(now)
	r.take()
	r.published(ms1, 99, positive(peerEID, 4, "100.64.2.2"), now)
	if o := r.take(); !slices.Contains(o.release, peerEID) {
		t.Errorf("released: %v", o.release)
	}
}

func TestWithdrawn(t *testing.T) {
	gone := lisp.Mapping{EID: peerEID, TTL: lisp.TTLDelete, Version: 4}
	t.Run("the other Map-Server has it still", func(t *testing.T) {
		r, now := testResolver(), epoch
		n1, _ := resolvedPeer(t, r, now)
		r.published(ms1, n1+1, gone, now)
		s, o := asked(r, now)
		if s == "" {
			t.Fatal("it does not ask")
		}
		r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{negative("198.51.100.20/32", 1)}, now)
		r.subscribed(o.sends[1].msg.Nonce, []lisp.Mapping{positive(peerEID, 4, "100.64.2.2")}, now)
		r.tick(now.Add(10 * time.Second))
		if c, ok := r.cache.Get(peerEID); !ok || c.Mapping.Negative() {
			t.Error("the mapping is gone")
		}
	})
	t.Run("nobody has it", func(t *testing.T) {
		r, now := testResolver(), epoch
		n1, _ := resolvedPeer(t, r, now)
		r.published(ms1, n1+1, gone, now)
		_, o := asked(r, now)
		for _, s := range o.sends {
			r.reply(s.msg.Nonce, []lisp.Mapping{negative("198.51.100.16/28", 1)}, now)
		}
		if _, c, ok := r.cache.LookupEID(peerEID); !ok || !c.Mapping.Negative() || r.cache.Len() != 1 {
			t.Errorf("the map-cache has %+v", r.entries())
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		r, now := testResolver(), epoch
		n1, _ := resolvedPeer(t, r, now)
		r.published(ms1, n1+1, gone, now)
		for now.Before(epoch.Add(3 * time.Second)) {
			r.tick(now)
			now = r.next()
		}
		if r.cache.Len() != 0 {
			t.Errorf("the map-cache has %+v", r.entries())
		}
	})
	t.Run("the subscription ended", func(t *testing.T) {
		r, now := testResolver(), epoch
		n1, _ := resolvedPeer(t, r, now)
		r.published(ms1, n1+1, lisp.Mapping{EID: peerEID, TTL: 1, Action: lisp.ActDropAuthFailure}, now)
		if s, _ := asked(r, now); s == "" {
			t.Error("it does not subscribe again")
		}
		if c, ok := r.cache.Get(peerEID); !ok || c.Mapping.Negative() {
			t.Error("the mapping is gone")
		}
	})
}

func TestRefreshBeforeItExpires(t *testing.T) {
	for _, used := range []bool{true, false} {
		r, now := testResolver(), epoch
		r.used = func(lisp.EID) bool { return used }
		r.want(farEID, vmAddr, whyMiss, false, now)
		_, o := asked(r, now)
		m := positive(mustEID("203.0.113.0/24"), 0, "192.0.2.1")
		m.TTL = 10
		r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now)
		now = r.next()
		if now.Sub(epoch) != 9*time.Minute {
			t.Fatalf("next at %v", now.Sub(epoch))
		}
		s, o := asked(r, now)
		if (s != "") != used {
			t.Fatalf("used %v: it asks %q", used, s)
		}
		if used {
			r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now)
		}
		r.tick(epoch.Add(10 * time.Minute))
		if (r.cache.Len() == 1) != used {
			t.Errorf("used %v: %d entries", used, r.cache.Len())
		}
	}
}

func TestTTLZeroInAReply(t *testing.T) {
	r, now := testResolver(), epoch
	r.want(farEID, vmAddr, whyMiss, false, now)
	_, o := asked(r, now)
	m := positive(mustEID("203.0.113.0/24"), 1, "192.0.2.1")
	r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now)
	r.want(farEID, vmAddr, whySMR, true, now)
	_, o = asked(r, now)
	if !o.sends[0].msg.SMRInvoked {
		t.Error("the Map-Request does not say that an SMR invoked it")
	}
	m.TTL = lisp.TTLDelete
	r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now)
	if r.cache.Len() != 0 {
		t.Error("the entry is still there")
	}
}

func TestForeignSiteWithoutVersions(t *testing.T) {
	r, now := testResolver(), epoch
	for _, rloc := range []string{"192.0.2.1", "192.0.2.2"} {
		r.want(farEID, vmAddr, whySMR, true, now)
		_, o := asked(r, now)
		m := positive(mustEID("203.0.113.0/24"), 0, rloc)
		m.XTRID = lisp.XTRID{}
		r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{m}, now)
		if c, _ := r.cache.Get(m.EID); c.Mapping.Locators[0].RLOC.String() != rloc {
			t.Errorf("the map-cache has %+v", c.Mapping)
		}
	}
	// It withdraws a more-specific.
	r.want(farEID, vmAddr, whySMR, true, now)
	_, o := asked(r, now)
	r.reply(o.sends[0].msg.Nonce, []lisp.Mapping{positive(mustEID("203.0.112.0/23"), 0, "192.0.2.3")}, now)
	if e, _, _ := r.cache.LookupEID(farEID); e != mustEID("203.0.112.0/23") {
		t.Errorf("the map-cache has %v", e)
	}
}

func TestMapCacheIsBounded(t *testing.T) {
	r, now := testResolver(), epoch
	for i := range 300 {
		r.set(positive(lisp.HostEID(0, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})), 1, "192.0.2.1"), "test", now)
	}
	if n := r.cache.Len(); n != 100 || r.full != 200 {
		t.Errorf("%d entries, %d evicted", n, r.full)
	}
	for i := range 2 * maxQueries {
		r.want(lisp.HostEID(0, netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})), vmAddr, whyMiss, false, now)
	}
	if n := len(r.queries); n != maxQueries {
		t.Errorf("%d questions", n)
	}
}

// TestUnknownToTheMapServer: what a Map-Server said of the cloud before it knew us, without letting us subscribe, is not
// believed any longer than that: what is registered a moment later would be cut off for as long as the answer lives.
func TestUnknownToTheMapServer(t *testing.T) {
	r, now := testResolver(), epoch
	r.servers = []netip.Addr{ms1}
	nothing := []lisp.Mapping{negative("198.51.100.0/24", 1)}
	ask := func(at time.Time) uint64 {
		t.Helper()
		r.want(peerEID, vmAddr, whyMiss, false, at)
		s, o := asked(r, at)
		if want := "100.64.7.2 198.51.100.20/32+;"; s != want {
			t.Fatalf("asked %q, want %q", s, want)
		}
		return o.sends[0].msg.Nonce
	}
	r.reply(ask(now), nothing, now)
	if r.cache.Len() != 1 {
		t.Fatal("the answer is not taken")
	}
	nonce := ask(now.Add(time.Second)) // on its way while the registration is confirmed
	r.take()
	r.known(ms1, now.Add(2*time.Second))
	if o := r.take(); r.cache.Len() != 0 || len(o.changed) != 1 {
		t.Fatalf("%d entries are left, changed %v", r.cache.Len(), o.changed)
	}
	r.reply(nonce, nothing, now.Add(2*time.Second))
	if r.cache.Len() != 0 {
		t.Fatal("an answer from before is believed")
	}
	s, o := asked(r, now.Add(2*time.Second))
	if want := "100.64.7.2 198.51.100.20/32+;"; s != want {
		t.Fatalf("then asked %q, want %q", s, want)
	}
	r.subscribed(o.sends[0].msg.Nonce, []lisp.Mapping{positive(peerEID, 1, "100.64.2.2")}, now.Add(2*time.Second))
	if c, ok := r.cache.Get(peerEID); !ok || c.Mapping.Negative() {
		t.Fatal("the mapping is not taken")
	}

	// Once it knows us, a plain answer is one: not every Map-Server knows of subscriptions.
	r.known(ms1, now.Add(time.Minute))
	r.remove(peerEID)
	r.reply(ask(now.Add(time.Minute)), nothing, now.Add(time.Minute))
	r.known(ms1, now.Add(2*time.Minute))
	if r.cache.Len() != 1 {
		t.Error("a Map-Server that lets nobody subscribe is not believed")
	}
}
