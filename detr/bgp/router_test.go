package bgp

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fib is what a Router was told to route.
type fib struct {
	mu     sync.Mutex
	routes map[netip.Prefix][]netip.Addr
}

func (f *fib) route(p netip.Prefix, hops []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(hops) == 0 {
		delete(f.routes, p)
	} else {
		f.routes[p] = hops
	}
}

// is reports whether p has exactly these next hops.
func (f *fib) is(p string, hops ...string) func() bool {
	var want []netip.Addr
	for _, h := range hops {
		want = append(want, addr(h))
	}
	return func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Equal(f.routes[netip.MustParsePrefix(p)], want)
	}
}

// TestRouter: two D-ETRs announce the same aggregates; the router uses both, then the one that is left.
func TestRouter(t *testing.T) {
	c := newCloud(t)
	internet := addr("127.0.0.41")
	upstream := func(i int, hop4, hop6 string) *Upstream {
		cfg := c.config(detrAddr(i), false, internet)
		cfg.Peers[0].AS = 64500
		return must(NewUpstream(UpstreamConfig{
			Config:     cfg,
			Aggregates: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:e1d::/48")},
			NextHops:   []netip.Addr{addr(hop4), addr(hop6)},
		}, quiet()))(t)
	}
	one, two := upstream(1, "100.65.5.2", "2001:db8:165:5::2"), upstream(2, "100.65.6.2", "2001:db8:165:6::2")
	cfg := c.config(internet, true, detrAddr(1), detrAddr(2))
	cfg.LocalAS = 64500
	f := &fib{routes: make(map[netip.Prefix][]netip.Addr)}
	r := must(NewRouter(RouterConfig{Config: cfg, Originate: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, f.route, quiet()))(t)
	run(t, r.Run)
	run(t, one.Run)
	stop := run(t, two.Run)

	serve := func(u *Upstream, on bool) {
		t.Helper()
		if err := u.Serve(context.Background(), on); err != nil {
			t.Fatal(err)
		}
	}
	serve(one, true)
	eventually(t, 10*time.Second, "one", f.is("198.51.100.0/24", "100.65.5.2"))
	serve(two, true)
	eventually(t, 10*time.Second, "both, IPv4", f.is("198.51.100.0/24", "100.65.5.2", "100.65.6.2"))
	eventually(t, 10*time.Second, "both, IPv6", f.is("2001:db8:e1d::/48", "2001:db8:165:5::2", "2001:db8:165:6::2"))
	serve(one, false)
	eventually(t, 10*time.Second, "two", f.is("198.51.100.0/24", "100.65.6.2"))
	eventually(t, 10*time.Second, "two", f.is("2001:db8:e1d::/48", "2001:db8:165:6::2"))
	serve(one, true)
	eventually(t, 10*time.Second, "both again", f.is("198.51.100.0/24", "100.65.5.2", "100.65.6.2"))
	stop() // no graceful restart here: routes of a lost peer go at once
	eventually(t, 10*time.Second, "one is left", f.is("198.51.100.0/24", "100.65.5.2"))

	var st []PeerStatus
	eventually(t, 10*time.Second, "the session is closed", func() bool {
		st = must(r.Status(context.Background()))(t)
		return len(st) == 2 && st[1].State != "established"
	})
	if st[0].State != "established" || st[0].Received != 2 || st[0].Advertised != 1 || st[0].Families != "ipv4 ipv6" || st[1].Advertised != 0 {
		t.Errorf("status %+v", st)
	}
	us := must(one.Status(context.Background()))(t)
	if len(us) != 1 || us[0].Advertised != 2 || us[0].Received != 1 {
		t.Errorf("upstream status %+v", us)
	}
}

func TestNextHops(t *testing.T) {
	a, b, c := routerPath{nextHop: addr("192.0.2.2"), length: 2}, routerPath{nextHop: addr("192.0.2.1"), length: 2},
		routerPath{nextHop: addr("192.0.2.3"), length: 1}
	for _, tt := range []struct {
		ps   []routerPath
		want []netip.Addr
	}{
		{nil, nil},
		{[]routerPath{a, b}, []netip.Addr{b.nextHop, a.nextHop}},
		{[]routerPath{a, a}, []netip.Addr{a.nextHop}},
		{[]routerPath{a, c, b}, []netip.Addr{c.nextHop}},
	} {
		if d := cmp.Diff(tt.want, nextHops(tt.ps), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" {
			t.Errorf("%v: %s", tt.ps, d)
		}
	}
}

func TestUpstreamFamilies(t *testing.T) {
	hop4, hop6 := addr("192.0.2.1"), addr("2001:db8::1")
	for _, c := range []struct {
		peer string
		hops []netip.Addr
		want []Family
	}{
		{"192.0.2.9", nil, []Family{IPv4}},
		{"2001:db8::9", nil, []Family{IPv6}},
		{"192.0.2.9", []netip.Addr{hop6}, []Family{IPv4, IPv6}},
		{"2001:db8::9", []netip.Addr{hop6}, []Family{IPv6}},
		{"2001:db8::9", []netip.Addr{hop4}, []Family{IPv4, IPv6}},
	} {
		cfg := UpstreamConfig{NextHops: c.hops}
		if d := cmp.Diff(c.want, cfg.families(addr(c.peer))); d != "" {
			t.Errorf("%s with %v: %s", c.peer, c.hops, d)
		}
	}
}
