package mapserver

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

var subKey = lisp.Key{ID: 8, Algorithm: lisp.AlgHMACSHA256_128, Secret: "subscribers"}

func withSubscribers() Config {
	c := cloud()
	c.Subscribers = []Subscriber{
		{XTRID: lisp.XTRID{15: 50}, RLOCs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Key: propKey},
		{RLOCs: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("2001:db8:100::/40")}, Key: subKey},
	}
	return c
}

// subscribe sends a subscription of xTR 4.
func (r *rig) subscribe(nonce uint64, set func(*lisp.MapRequest), eids ...string) {
	r.t.Helper()
	r.ask(func(m *lisp.MapRequest) {
		m.Nonce, m.HasXTRID, m.XTRID, m.SiteID = nonce, true, lisp.XTRID{15: 4}, 3
		for i := range m.Records {
			m.Records[i].Notify = true
		}
		if set != nil {
			set(m)
		}
	}, eids...)
	r.commit()
}

func nonces(ss []send) []uint64 {
	var out []uint64
	for _, s := range ss {
		out = append(out, s.msg.(*lisp.MapNotify).Nonce)
	}
	return out
}

func TestASubscriberIsTold(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.subscribe(7000, nil, web)
	r.want("confirmed instead of answered, when it is durable", r.late, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	r.want("nothing else", append(r.early, r.bulk...))
	if s := r.late[0]; s.key.ID != subKey.ID || nonces(r.late)[0] != 7000 {
		t.Errorf("key %d, nonce %d", s.key.ID, nonces(r.late)[0])
	}
	r.ack(itr, r.late[0], &subKey)
	r.count("ack/accepted", 1)

	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.want("published", r.bulk, itr+":4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if n := nonces(r.bulk)[0]; n != 7001 {
		t.Errorf("nonce %d, want 7001", n)
	}
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.want("a refresh is no news", r.bulk)
	r.register(xtr{id: 2, addr: hv2, version: 2, ttl: withdrawn}, web)
	r.want("withdrawn", r.bulk, itr+":4342 Map-Notify "+web+" v2 ttl 0 of 2")
	if n := nonces(r.bulk)[0]; n != 7002 {
		t.Errorf("nonce %d, want 7002", n)
	}
	// The latest replaces what was not acknowledged.
	if len(r.c.pending) != 2 { // this one, and the Map-Notify to hv1
		t.Errorf("%d Map-Notifies wait", len(r.c.pending))
	}
	// It comes again, if the EID comes back soon enough.
	r.wait(10 * time.Second)
	r.register(xtr{id: 3, addr: hv3}, web)
	r.want("back", r.bulk, itr+":4342 Map-Notify "+web+" v3 ttl 10 "+hv3+" of 3")
	if len(r.c.subs) != 1 || !r.c.subs[SubscriptionKey{mustEID(web), lisp.XTRID{15: 4}}].Expires.IsZero() {
		t.Errorf("subscriptions %+v", r.c.subscriberRows(r.now))
	}
}

func TestAChoiceOfOursIsPublishedWhenItIsDurable(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.subscribe(1, nil, web)
	r.handle(r.message(xtr{id: 2, addr: hv2}, web))
	r.want("not yet", r.bulk)
	r.commit()
	r.want("now", r.bulk, itr+":4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
}

func TestReplayedSubscriptions(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.subscribe(100, nil, web)
	for _, n := range []uint64{100, 99, 0} {
		r.subscribe(n, nil, web)
		r.want("silently dropped", slices.Concat(r.early, r.late, r.bulk))
	}
	r.count("subscribe/refused/nonce-not-greater", 3)
	// Publications that got lost do not lock the xTR out: it goes on from what it knows. But ours go on
	// from the highest.
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.register(xtr{id: 2, addr: hv2, version: 3}, web)
	r.subscribe(101, nil, web)
	if n := nonces(r.late); len(n) != 1 || n[0] != 101 {
		t.Fatalf("confirmed with %v", n)
	}
	r.register(xtr{id: 2, addr: hv2, version: 4}, web)
	if n := nonces(r.bulk); len(n) != 1 || n[0] != 103 {
		t.Errorf("published with %v, want 103", n)
	}
	r.subscribe(math.MaxUint64-1, nil, web)
	r.want("no room for publications", r.early, itr+":61000 Map-Reply "+web+" v4 ttl 10 100.64.2.2")
}

func TestMoreSpecificsArePublished(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, "198.51.100.0/24", "198.51.100.20/32")
	r.subscribe(500, nil, "198.51.100.99")
	r.want("confirmed: the mapping that covers it", r.late, itr+":4342 Map-Notify 198.51.100.0/24 v1 ttl 10 100.64.1.2 of 1")
	r.want("filled out", r.bulk, itr+":4342 Map-Notify 198.51.100.20/32 v1 ttl 10 100.64.1.2 of 1")
	r.register(xtr{id: 2, addr: hv2, version: 1}, web)
	r.want("a new one inside", r.bulk, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.2.2 of 2")
	r.register(xtr{id: 2, addr: hv2, version: 1}, "2001:db8:e1d::/48")
	r.want("elsewhere", r.bulk)
	if n := r.c.subs[SubscriptionKey{mustEID("198.51.100.0/24"), lisp.XTRID{15: 4}}].sent; n != 502 {
		t.Errorf("nonce %d, want 502", n)
	}

	// Not this one any more.
	unsubscribe := func(m *lisp.MapRequest) { m.ITRRLOCs = []netip.Addr{{}} }
	r.subscribe(503, unsubscribe, web)
	r.want("confirmed to the source", r.early, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.2.2 of 2")
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.want("left out", r.bulk)
	r.register(xtr{id: 2, addr: hv2, version: 2}, "198.51.100.20/32")
	r.want("others go on", r.bulk, itr+":4342 Map-Notify 198.51.100.20/32 v2 ttl 10 100.64.2.2 of 2")
	r.subscribe(1, nil, web) // a subscription of its own
	r.register(xtr{id: 2, addr: hv2, version: 3}, web)
	r.want("told once, for the most specific", r.bulk, itr+":4342 Map-Notify "+web+" v3 ttl 10 100.64.2.2 of 2")
	if n := nonces(r.bulk)[0]; n != 2 {
		t.Errorf("nonce %d, want 2", n)
	}
}

func TestUnsubscribe(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.subscribe(10, nil, web)
	unsubscribe := func(m *lisp.MapRequest) { m.ITRRLOCs = []netip.Addr{{}} }
	r.subscribe(10, unsubscribe, web)
	r.want("a replay", r.early)
	r.subscribe(11, unsubscribe, web)
	r.want("confirmed", r.early, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	if n := nonces(r.early); n[0] != 11 {
		t.Errorf("nonce %d", n[0])
	}
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.want("not told", r.bulk)
	// The nonces are kept.
	r.subscribe(11, nil, web)
	r.want("a replay", slices.Concat(r.early, r.late))
	r.subscribe(12, unsubscribe, web)
	r.count("unsubscribe/unknown", 1)
	r.subscribe(12, nil, web)
	r.want("again", r.late, itr+":4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	r.wait(25 * time.Hour)
	r.subscribe(13, unsubscribe, web)
	r.wait(25 * time.Hour)
	if len(r.c.subs) != 0 || r.c.subsAt.Len() != 0 {
		t.Errorf("left: %+v", r.c.subscriberRows(r.now))
	}
}

func TestSubscriptionToAHole(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.subscribe(10, nil, web)
	r.want("confirmed: negative", r.late, itr+":4342 Map-Notify 198.51.100.0/24 v0 ttl 1 natively-forward of 0")
	r.ack(itr, r.late[0], &subKey)
	if rows := r.c.subscriberRows(r.now); len(rows) != 1 || rows[0].State != "temporary" || rows[0].Expires != "15m0s" {
		t.Errorf("rows %+v", rows)
	}
	r.wait(time.Minute)
	r.register(xtr{id: 1, addr: hv1, version: 1}, web)
	r.want("the hole is filled", r.bulk, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	if n := nonces(r.bulk)[0]; n != 11 {
		t.Errorf("nonce %d, want 11", n)
	}
	r.ack(itr, r.bulk[0], &subKey)
	for range 20 { // the temporary subscription ends, the one to what filled the hole does not
		r.wait(time.Minute)
		r.register(xtr{id: 1, addr: hv1, version: 1}, web)
	}
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.want("goes on", r.bulk, itr+":4342 Map-Notify "+web+" v2 ttl 10 100.64.2.2 of 2")
	if len(r.c.subs) != 1 {
		t.Errorf("left: %+v", r.c.subscriberRows(r.now))
	}

	// A hole in which nothing may be registered, filled by something wider.
	r.subscribe(20, nil, "[7]10.9.0.1")
	r.want("confirmed", r.late, itr+":4342 Map-Notify [7]10.0.0.0/8 v0 ttl 1 natively-forward of 0")
	r.register(xtr{id: 1, addr: hv1, version: 1}, "[7]10.128.0.0/9")
	r.want("inside", r.bulk, itr+":4342 Map-Notify [7]10.128.0.0/9 v1 ttl 10 100.64.1.2 of 1")
	r.subscribe(30, func(m *lisp.MapRequest) { m.XTRID = lisp.XTRID{15: 5} }, "[7]10.9.0.1")
	r.want("a narrower hole", r.late, itr+":4342 Map-Notify [7]10.0.0.0/9 v0 ttl 1 natively-forward of 0")
	r.register(xtr{id: 1, addr: hv1, version: 1}, "[7]10.0.0.0/8")
	if len(r.bulk) != 2 {
		t.Errorf("filled by something wider: %v", lines(r.bulk))
	}
}

func TestASilentSubscriberIsDropped(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.subscribe(10, func(m *lisp.MapRequest) {
		m.ITRRLOCs = []netip.Addr{netip.MustParseAddr(itr), netip.MustParseAddr("100.64.4.3")}
	}, web)
	r.ack(itr, r.late[0], &subKey)
	r.register(xtr{id: 2, addr: hv2, version: 2}, web)
	r.c.forget(r.c.pending[pendingKey{eid: mustEID(web), who: identity{xtr: lisp.XTRID{15: 1}}}])
	start := r.now
	var to []string
	for len(r.c.pending) > 0 {
		r.wait(r.c.deadline().Sub(r.now))
		for _, s := range append(r.bulk, r.early...) {
			to = append(to, fmt.Sprintf("%v %s %s", r.now.Sub(start), s.to[0].Addr(), line(s.msg)))
		}
	}
	publication := " Map-Notify " + web + " v2 ttl 10 100.64.2.2 of 2"
	want := []string{"3s 100.64.4.3" + publication, "6s 100.64.4.2" + publication, "9s 100.64.4.3" + publication,
		"15s 100.64.4.2" + publication, "27s 100.64.4.3" + publication, "51s 100.64.4.2" + publication,
		"1m39s 100.64.4.2 Map-Notify " + web + " v0 ttl 1 drop/auth-failure of 0"}
	if !slices.Equal(to, want) {
		t.Errorf("sent:\n%s\nwant:\n%s", strings.Join(to, "\n"), strings.Join(want, "\n"))
	}
	r.register(xtr{id: 1, addr: hv1, version: 3}, web)
	r.want("not told any more", r.bulk)
	r.count("subscribe/lost", 1)
}

func TestWhoMaySubscribe(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		prep func(*rig)
		set  func(*lisp.MapRequest)
		want string // the answer
		key  uint8  // of a Map-Notify
	}{
		{name: "by address", cfg: withSubscribers(), want: "Map-Notify", key: subKey.ID},
		{name: "from elsewhere: a plain answer", cfg: withSubscribers(),
			set:  func(m *lisp.MapRequest) { m.ITRRLOCs = []netip.Addr{netip.MustParseAddr("192.0.2.7")} },
			want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
		{name: "one of its RLOCs from elsewhere", cfg: withSubscribers(),
			set: func(m *lisp.MapRequest) {
				m.ITRRLOCs = []netip.Addr{netip.MustParseAddr(itr), netip.MustParseAddr("192.0.2.7")}
			},
			want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
		{name: "known by its ID", cfg: withSubscribers(),
			set: func(m *lisp.MapRequest) {
				m.XTRID = lisp.XTRID{15: 50}
				m.ITRRLOCs = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
			}, want: "Map-Notify", key: propKey.ID},
		{name: "known by its ID, from elsewhere: denied", cfg: withSubscribers(),
			set:  func(m *lisp.MapRequest) { m.XTRID = lisp.XTRID{15: 50} },
			want: "Map-Reply " + web + " v0 ttl 1 drop/policy-denied"},
		{name: "no xTR-ID", cfg: withSubscribers(), set: func(m *lisp.MapRequest) { m.HasXTRID = false },
			want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
		{name: "xTR-ID of zeros", cfg: withSubscribers(), set: func(m *lisp.MapRequest) { m.XTRID = lisp.XTRID{} },
			want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
		{name: "nobody configured", cfg: cloud(), want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
		{name: "nobody configured, but it registers here", cfg: cloud(),
			prep: func(r *rig) { r.register(xtr{id: 4, addr: itr}, "198.51.100.44/32") }, want: "Map-Notify", key: propKey.ID},
		{name: "nobody configured, and a controller registered for it", cfg: cloud(),
			prep: func(r *rig) {
				r.register(xtr{id: 4, addr: ctl, rlocs: []string{itr}, key: &ctlKey}, "198.51.100.44/32")
			},
			want: "Map-Reply " + web + " v1 ttl 10 100.64.1.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.cfg)
			r.register(xtr{id: 1, addr: hv1}, web)
			if c.prep != nil {
				c.prep(r)
			}
			r.subscribe(1, c.set, web)
			got := append(r.early, r.late...)
			if len(got) != 1 || !strings.HasPrefix(line(got[0].msg), c.want) {
				t.Fatalf("answered %v, want %s", lines(got), c.want)
			}
			if c.key != 0 && got[0].key.ID != c.key {
				t.Errorf("signed with key %d, want %d", got[0].key.ID, c.key)
			}
			if subscribed := len(r.c.subs) == 1; subscribed != (c.key != 0) {
				t.Errorf("subscribed: %v", subscribed)
			}
		})
	}
}

func TestNoSubscriptionWhereTheETRAnswers(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1, set: func(m *lisp.MapRegister) { m.ProxyReply = false }}, web)
	r.subscribe(1, nil, web)
	r.want("forwarded", r.early, "100.64.1.2:4342 ECM to 198.51.100.1:4342")
}

func TestLimitOfSubscriptions(t *testing.T) {
	cfg := withSubscribers()
	cfg.MaxSubscriptions = 1
	r := newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1}, web, "198.51.100.11/32")
	r.subscribe(1, nil, web)
	r.subscribe(1, nil, "198.51.100.11/32")
	r.want("a plain answer", r.early, itr+":61000 Map-Reply 198.51.100.11/32 v1 ttl 10 100.64.1.2")
	r.subscribe(2, nil, web)
	r.want("the one that is there can be renewed", r.late, itr+":4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
}

// TestPublicationsGoOnAfterARestart with nonces that were never used, however many there were.
func TestPublicationsGoOnAfterARestart(t *testing.T) {
	r := newRig(t, withSubscribers())
	r.register(xtr{id: 1, addr: hv1}, web)
	var last uint64
	r.subscribe(77, nil, web)
	for i := range 3000 {
		r.register(xtr{id: 2, addr: hv2, version: lisp.Version(2 + i)}, web)
		last = nonces(r.bulk)[0]
	}
	if len(r.subs) != 1 || last != 77+3000 {
		t.Fatalf("last nonce %d; %+v", last, r.subs)
	}
	r.restart()
	r.register(xtr{id: 1, addr: hv1, version: 3500}, web)
	if n := nonces(r.bulk); len(n) != 1 || n[0] <= last || n[0] > last+2*nonceBlock {
		t.Errorf("nonces %v after %d", n, last)
	}
	r.subscribe(77, nil, web)
	r.count("subscribe/refused/nonce-not-greater", 1)
}
