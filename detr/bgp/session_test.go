package bgp

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/sinktest"
)

// TestPusherIsASink runs the conformance test over what GoBGP would tell a peer.
func TestPusherIsASink(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Subject {
		p := must(NewPusher(Config{LocalAS: 64512, RouterID: addr("192.0.2.1"), Port: NoListener}, quiet()))(t)
		t.Cleanup(func() {
			if err := p.s.stop(); err != nil {
				t.Error(err)
			}
		})
		return sinktest.Subject{
			Sink:     p,
			Services: true,
			Content:  func(t *testing.T) []lisp.Mapping { return announcedBy(t, p.s.srv) },
			Keep: func(m lisp.Mapping) lisp.Mapping {
				for i := range m.Locators {
					m.Locators[i].MPriority = 0 // multicast does not travel
				}
				return m
			},
		}
	})
}

// announcedBy decodes the table that a GoBGP server announces.
func announcedBy(t *testing.T, srv *server.BgpServer) (ms []lisp.Mapping) {
	t.Helper()
	for _, f := range AllFamilies() {
		err := srv.ListPath(context.Background(), &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: f.api()},
			func(d *api.Destination) {
				var e lisp.EID
				var ps []path
				for _, a := range d.Paths {
					var err error
					if e, err = eidOf(a); err != nil {
						t.Error(err)
					}
					p, err := pathOf(64512, a)
					if err != nil {
						t.Error(err)
					}
					ps = append(ps, p)
				}
				if len(ps) != max(1, ps[0].set.count()) {
					t.Errorf("%v: %d paths of a set of %d", e, len(ps), ps[0].set.count())
				}
				ms = append(ms, join(e, ps))
			})
		if err != nil {
			t.Fatal(err)
		}
	}
	return ms
}

func (c *cloud) feed(i int, servers ...netip.Addr) (*Feed, *recorder) {
	c.t.Helper()
	got := newRecorder()
	cfg := FeedConfig{Config: c.config(detrAddr(i), false, servers...), Linger: 100 * time.Millisecond, SyncWait: 3 * time.Second}
	f := must(NewFeed(cfg, got, quiet()))(c.t)
	return f, got
}

func full(ms ...lisp.Mapping) lisp.Delta { return lisp.Delta{Full: true, Put: ms} }
func put(ms ...lisp.Mapping) lisp.Delta  { return lisp.Delta{Put: ms} }

func apply(t *testing.T, s lisp.Sink, d lisp.Delta) {
	t.Helper()
	if err := s.Apply(context.Background(), d); err != nil {
		t.Fatal(err)
	}
}

// stays fails the test if ok ceases to hold within d.
func stays(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if !ok() {
			t.Fatalf("no longer: %s", what)
		}
	}
}

func (r *recorder) believes(m lisp.Mapping) func() bool {
	return func() bool {
		have, ok := r.get(m.EID)
		return ok && have.Equal(m)
	}
}

// TestTwoMapServersDisagree: two D-ETRs hear two Map-Servers that contradict each other, and agree.
func TestTwoMapServersDisagree(t *testing.T) {
	c := newCloud(t)
	one := must(NewPusher(c.config(msAddr(1), true, detrAddr(1), detrAddr(2)), quiet()))(t)
	two := must(NewPusher(c.config(msAddr(2), true, detrAddr(1), detrAddr(2)), quiet()))(t)
	f1, got1 := c.feed(1, msAddr(1), msAddr(2))
	f2, got2 := c.feed(2, msAddr(2), msAddr(1))
	for _, r := range []func(context.Context) error{one.Run, two.Run, f1.Run, f2.Run} {
		run(t, r)
	}
	both := func(m lisp.Mapping) func() bool {
		return func() bool { return got1.believes(m)() && got2.believes(m)() }
	}
	old, newer := at(4, 1, "100.64.1.2"), at(5, 2, "100.64.2.2")
	apply(t, one, full(old))
	apply(t, two, full(newer))
	eventually(t, 10*time.Second, "both D-ETRs are in sync", func() bool { return got1.fulls() == 1 && got2.fulls() == 1 })
	eventually(t, 10*time.Second, "the newer version is believed", both(newer))

	refresh := old
	refresh.TTL = 60
	apply(t, one, put(refresh))
	stays(t, 200*time.Millisecond, "a late refresh changes nothing", both(newer))

	tie := at(5, 1, "100.64.1.2")
	apply(t, one, put(tie))
	eventually(t, 10*time.Second, "at equal versions the lower xTR-ID is believed", both(tie))

	apply(t, two, put(at(6, 3, "2001:db8:100:3::2")))
	eventually(t, 10*time.Second, "the next version", both(at(6, 3, "2001:db8:100:3::2")))

	apply(t, two, lisp.Delta{Del: []lisp.EID{web}})
	eventually(t, 10*time.Second, "what the other Map-Server says is left", both(tie))
	apply(t, one, lisp.Delta{Del: []lisp.EID{web}})
	eventually(t, 10*time.Second, "nothing is left", func() bool { return got1.len() == 0 && got2.len() == 0 })
}

// TestMapServerGone runs side by side what takes long. GoBGP keeps options in global variables that it
// writes at start, so all servers of this process start first.
func TestMapServerGone(t *testing.T) {
	for _, c := range []struct {
		name    string
		servers int
		test    func(t *testing.T, c *cloud, f *Feed, got *recorder)
	}{
		{"killed and restarted", 1, func(t *testing.T, c *cloud, f *Feed, got *recorder) {
			mapServerRestarts(t, c, f, got, (*process).kill)
		}},
		{"terminated and restarted", 1, func(t *testing.T, c *cloud, f *Feed, got *recorder) {
			mapServerRestarts(t, c, f, got, (*process).terminate)
		}},
		{"for ever", 2, mapServerStaysAway},
		{"not loaded yet", 1, emptyMapServerSaysNothing},
	} {
		cl := newCloud(t)
		var servers []netip.Addr
		for i := range c.servers {
			servers = append(servers, msAddr(i+1))
		}
		f, got := cl.feed(1, servers...)
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			run(t, f.Run)
			c.test(t, cl, f, got)
		})
	}
}

// mapServerRestarts: a Map-Server dies, in the ways in which processes die, and comes back; its mappings
// stay at the D-ETR without a moment of absence, and what it no longer has when it is back goes.
func mapServerRestarts(t *testing.T, c *cloud, f *Feed, got *recorder, end func(*process)) {
	remains, goes := at(1, 1, "100.64.1.2"), mapping("2001:db8:e1d::9/128", 3, 2, loc("100.64.2.2"), loc("100.64.3.2"))
	front, left := service("203.0.113.10/32", "2001:db8:e1d::9/128", 4), service("2001:db8:5e::9/128", "2001:db8:e1d::9/128", 1)
	ms := startPusher(t, c.config(msAddr(1), true, detrAddr(1)))
	ms.apply(full(remains, goes, front, left))
	eventually(t, 10*time.Second, "in sync", func() bool { return got.fulls() == 1 && got.len() == 4 })
	if st := must(f.Status(context.Background()))(t); !st[0].Synced || st[0].Received != 5 {
		t.Fatalf("status %+v", st)
	}

	end(ms)
	eventually(t, 10*time.Second, "the paths are stale", func() bool { return f.State().Stale == 5 })
	all := func() bool {
		return got.believes(remains)() && got.believes(goes)() && got.believes(front)() && got.believes(left)()
	}
	stays(t, 500*time.Millisecond, "all mappings are there", all)

	ms = startPusher(t, c.config(msAddr(1), true, detrAddr(1)))
	stays(t, 500*time.Millisecond, "all mappings are there while it loads", all)
	ms.apply(full(remains, front))
	eventually(t, 15*time.Second, "what it no longer has is gone", func() bool {
		if !got.believes(remains)() || !got.believes(front)() {
			t.Fatal("the other mappings were lost")
		}
		_, ok := got.get(goes.EID)
		_, service := got.get(left.EID)
		return !ok && !service
	})
	eventually(t, 10*time.Second, "nothing is stale", func() bool { return f.State().Stale == 0 })
	moved := at(2, 2, "100.64.2.2")
	ms.apply(put(moved))
	eventually(t, 10*time.Second, "a move after the restart", got.believes(moved))
	if n := got.fulls(); n != 1 {
		t.Errorf("%d full Deltas, want 1", n)
	}
}

// mapServerStaysAway: when the restart time is over the mappings go, and those that another Map-Server has
// stay.
func mapServerStaysAway(t *testing.T, c *cloud, f *Feed, got *recorder) {
	cfg := c.config(msAddr(1), true, detrAddr(1))
	cfg.RestartTime = 2 * time.Second
	common, only := at(1, 1, "100.64.1.2"), mapping("2001:db8:e1d::9/128", 3, 2, loc("100.64.2.2"))
	one := startPusher(t, cfg)
	one.apply(full(common, only))
	two := startPusher(t, c.config(msAddr(2), true, detrAddr(1)))
	two.apply(full(common))
	eventually(t, 10*time.Second, "in sync", func() bool { return got.fulls() == 1 && got.len() == 2 })

	one.kill()
	died := time.Now()
	eventually(t, 10*time.Second, "the paths are stale", func() bool { return f.State().Stale == 2 })
	eventually(t, 10*time.Second, "only the other's mapping is left", func() bool { return got.len() == 1 })
	if d := time.Since(died); d < 1500*time.Millisecond {
		t.Errorf("the mappings went after %v, before the restart time of 2s was over", d)
	}
	if !got.believes(common)() {
		t.Error("the mapping that both had is gone")
	}
	if st := f.State(); st.Stale != 0 || st.Synced != 1 {
		t.Errorf("state %+v", st)
	}
}

// emptyMapServerSaysNothing: before its first full Delta a Pusher must not let anybody believe that there
// is nothing.
func emptyMapServerSaysNothing(t *testing.T, c *cloud, f *Feed, got *recorder) {
	ms := startPusher(t, c.config(msAddr(1), true, detrAddr(1)))
	ms.apply(put(at(1, 1, "100.64.1.2")))
	stays(t, 3*time.Second, "nothing is said", func() bool { return got.fulls() == 0 && f.State().Paths == 0 })
}

// TestFeedStartsAgain: a D-ETR that starts again hears of everything as soon as it asks, and is not turned away for the
// five seconds for which GoBGP leaves a peer alone that it has lost.
func TestFeedStartsAgain(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	ms := startPusher(t, c.config(msAddr(1), true, detrAddr(1)))
	m := at(1, 1, "100.64.1.2")
	ms.apply(full(m))
	for range 2 {
		f, got := c.feed(1, msAddr(1))
		stop := run(t, f.Run)
		eventually(t, 4500*time.Millisecond, "in sync", got.believes(m))
		stop()
	}
}

// TestRouteReflector: mappings of two Map-Servers through a route reflector, ADD-PATH and all.
func TestRouteReflector(t *testing.T) {
	c := newCloud(t)
	one := must(NewPusher(c.config(msAddr(1), true, detrAddr(9)), quiet()))(t)
	two := must(NewPusher(c.config(msAddr(2), true, detrAddr(9)), quiet()))(t)
	f, got := c.feed(1, detrAddr(9))
	// The reflector: a speaker that connects to the Map-Servers and waits for the D-ETR.
	rr := must(newSpeaker(role{name: "reflector", graceful: true, send: true, receive: true, families: AllFamilies()},
		c.config(detrAddr(9), false), quiet()))(t)
	t.Cleanup(func() {
		if err := rr.stop(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []netip.Addr{msAddr(1), msAddr(2), detrAddr(1)} {
		n := rr.peer(Peer{Addr: p, AS: 64512, Port: uint16(c.port), LocalAddr: detrAddr(9), Passive: p == detrAddr(1)})
		n.RouteReflector = &api.RouteReflector{RouteReflectorClient: true}
		if err := rr.srv.AddPeer(context.Background(), &api.AddPeerRequest{Peer: n}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []func(context.Context) error{one.Run, two.Run, f.Run} {
		run(t, r)
	}
	multi := mapping("2001:db8:e1d::9/128", 3, 2, loc("100.64.2.2"), loc("100.64.4.2"), loc("2001:db8:100:3::2"))
	inst := mapping("[7]198.51.100.10/32", 3, 2, loc("100.64.2.2"), loc("2001:db8:100:3::2"))
	front4, front6 := service("203.0.113.16/28", "2001:db8:e1d::100/124", 4), service("2001:db8:5e::/48", "2001:db8:e1d::/48", 2)
	apply(t, one, full(at(4, 1, "100.64.1.2"), multi, inst, front4, front6))
	apply(t, two, full(at(5, 2, "100.64.2.2"), multi, service("203.0.113.16/28", "2001:db8:e1d::200/124", 3)))
	for _, m := range []lisp.Mapping{at(5, 2, "100.64.2.2"), multi, inst, front4, front6} {
		eventually(t, 15*time.Second, "the newest of all, whole", got.believes(m))
	}
	// The reflector's own best path may well be the older one: we hear both.
	apply(t, one, put(at(6, 1, "100.64.1.2")))
	eventually(t, 10*time.Second, "a move at one", got.believes(at(6, 1, "100.64.1.2")))
	apply(t, two, put(at(7, 3, "100.64.3.2")))
	eventually(t, 10*time.Second, "a move at the other", got.believes(at(7, 3, "100.64.3.2")))
	fewer := mapping("2001:db8:e1d::9/128", 4, 2, loc("100.64.4.2"))
	apply(t, two, put(fewer))
	eventually(t, 10*time.Second, "fewer locators", got.believes(fewer))
	moved := service("203.0.113.16/28", "2001:db8:e1d::300/124", 5)
	apply(t, two, put(moved))
	eventually(t, 10*time.Second, "a service that follows its VM's EID", got.believes(moved))
	apply(t, two, lisp.Delta{Del: []lisp.EID{moved.EID}})
	apply(t, one, lisp.Delta{Del: []lisp.EID{moved.EID}})
	eventually(t, 10*time.Second, "a service that is withdrawn", func() bool { _, ok := got.get(moved.EID); return !ok })
}

// TestSecuredSessions: TCP MD5 with the right and the wrong password, and TTL security.
func TestSecuredSessions(t *testing.T) {
	c := newCloud(t)
	ms := c.config(msAddr(1), true, detrAddr(1), detrAddr(2), detrAddr(3))
	ms.Peers[0].Password, ms.Peers[1].Password, ms.Peers[2].TTLSecurity = "correct", "correct", 1
	p := must(NewPusher(ms, quiet()))(t)
	feed := func(i int, change func(*Peer)) *recorder {
		got := newRecorder()
		cfg := c.config(detrAddr(i), false, msAddr(1))
		change(&cfg.Peers[0])
		f := must(NewFeed(FeedConfig{Config: cfg}, got, quiet()))(t)
		run(t, f.Run)
		return got
	}
	run(t, p.Run)
	right := feed(1, func(p *Peer) { p.Password = "correct" })
	wrong := feed(2, func(p *Peer) { p.Password = "wrong" })
	near := feed(3, func(p *Peer) { p.TTLSecurity = 1 })
	apply(t, p, full(at(1, 1, "100.64.1.2")))
	eventually(t, 10*time.Second, "the right password", right.believes(at(1, 1, "100.64.1.2")))
	eventually(t, 10*time.Second, "TTL security", near.believes(at(1, 1, "100.64.1.2")))
	stays(t, 2*time.Second, "the wrong password hears nothing", func() bool { return wrong.len() == 0 })
}

// TestIPv6Session: everything over IPv6, with TCP MD5, and the feed the one that waits.
func TestIPv6Session(t *testing.T) {
	side := func(self, peer, id string, passive bool) Config {
		return Config{
			LocalAS: 4200000000, RouterID: addr(id), Listen: []netip.Addr{addr(self)}, HoldTime: 9 * time.Second,
			Peers: []Peer{{Addr: addr(peer), AS: 4200000000, LocalAddr: addr(self), Passive: passive, Password: "secret"}},
		}
	}
	p := must(NewPusher(side(msSix, detrSix, "192.0.2.1", false), quiet()))(t)
	got := newRecorder()
	f := must(NewFeed(FeedConfig{Config: side(detrSix, msSix, "192.0.2.2", true)}, got, quiet()))(t)
	run(t, p.Run)
	run(t, f.Run)
	ms := []lisp.Mapping{
		at(1, 1, "100.64.1.2"), mapping("2001:db8:e1d::9/128", 3, 2, loc("100.64.2.2"), loc("2001:db8:100:3::2")),
		mapping("[70000]198.51.100.10/32", 3, 2, loc("2001:db8:100:3::2")), // more than fits a route target of a 4-octet AS
		service("203.0.113.10/32", "2001:db8:e1d::9/128", 4), service("2001:db8:5e::9/128", "2001:db8:e1d::9/128", 1),
	}
	apply(t, p, full(ms...))
	for _, m := range ms {
		eventually(t, 10*time.Second, "the mapping", got.believes(m))
	}
}

// TestConfig: what a speaker refuses.
func TestConfig(t *testing.T) {
	good := func() Config {
		return Config{LocalAS: 1, RouterID: addr("192.0.2.1"), Port: NoListener,
			Peers: []Peer{{Addr: addr("192.0.2.2"), AS: 1}}}
	}
	for want, change := range map[string]func(*Config){
		"no local AS":                 func(c *Config) { c.LocalAS = 0 },
		"router ID ::1":               func(c *Config) { c.RouterID = addr("::1") },
		"hold time 1s is below":       func(c *Config) { c.HoldTime = time.Second },
		"restart time 1h8m16s":        func(c *Config) { c.RestartTime = 4096 * time.Second },
		"has no address":              func(c *Config) { c.Peers[0].Addr = netip.Addr{} },
		"peer 192.0.2.2 has no AS":    func(c *Config) { c.Peers[0].AS = 0 },
		"appears twice":               func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) },
		"exclude each other":          func(c *Config) { c.Peers[0].Multihop, c.Peers[0].TTLSecurity = 1, 1 },
		`unknown family "ipv5"`:       func(c *Config) { c.Peers[0].Families = []Family{"ipv5"} },
		"address already in use":      func(c *Config) { c.Port, c.Listen = takenPort(t), []netip.Addr{msAddr(1)} },
		"cannot assign requested add": func(c *Config) { c.Port, c.Listen = freePort(t), []netip.Addr{addr("192.0.2.77")} },
	} {
		c := good()
		change(&c)
		if _, err := NewPusher(c, quiet()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if d := cmp.Diff(AllFamilies(), []Family{"ipv4", "ipv6", "vpnv4", "vpnv6"}); d != "" {
		t.Error(d)
	}
}

// takenPort is a TCP port at msAddr(1) that somebody listens on until the test ends.
func takenPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", netip.AddrPortFrom(msAddr(1), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
