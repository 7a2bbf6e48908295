package detr

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/testnet/simnet"
)

// wire is everything that went over one wire, in one direction or both.
type wire struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(b)
}

// holds lists which of the secrets went over the wire.
func (w *wire) holds(secrets map[string][]byte) (found []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range secrets {
		if bytes.Contains(w.b.Bytes(), s) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// tap passes TCP connections that come to at on to to, and writes down what the caller sends.
func tap(t *testing.T, at, to netip.AddrPort, w io.Writer) {
	t.Helper()
	l, err := net.Listen("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: at.Addr().AsSlice()}}
			out, err := d.Dial("tcp4", to.String())
			if err != nil {
				in.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(io.MultiWriter(out, w), in); out.Close(); in.Close() })
			wg.Go(func() { _, _ = io.Copy(in, out); out.Close(); in.Close() })
		}
	})
}

func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestNothingLeaves runs a whole D-ETR: a Map-Server's BGP session with host mappings in, and outward an
// upstream router, an external Map-Server and Map-Resolver, and outsiders who ask all sorts of questions. It
// then looks for host mappings (their EIDs, and the hypervisors' RLOCs) in every byte that went out.
func TestNothingLeaves(t *testing.T) {
	secrets := make(map[string][]byte)
	host := func(e string, v lisp.Version, rlocs ...string) lisp.Mapping {
		m := mapping(e, v, rlocs...)
		secrets[e] = m.EID.Prefix.Addr().AsSlice()
		for _, r := range rlocs {
			secrets[r] = addr(r).AsSlice()
		}
		return m
	}
	ms := []lisp.Mapping{
		host("198.51.100.10/32", 1, "100.64.1.2"), host("2001:db8:e1d:1::10/128", 1, "100.64.1.2"),
		host("198.51.100.20/32", 1, "100.64.2.2", "2001:db8:100:2::2"),
	}
	// The service prefixes may be known, a service may not.
	services := []lisp.Mapping{told("192.0.2.131/32", "2001:db8:e1d:1::10/128", 1), told("2001:db8:5e::83/128", "2001:db8:e1d:1::10/128", 1)}
	for _, m := range services {
		secrets[m.EID.String()] = m.EID.Prefix.Addr().AsSlice()
	}
	moved := []lisp.Mapping{
		host("198.51.100.10/32", 2, "2001:db8:100:3::2"), host("2001:db8:e1d:1::10/128", 2, "2001:db8:100:3::2"),
		host("198.51.100.30/32", 1, "100.64.4.2"),
	}

	// BGP: Map-Server .11 -> tap .12 -> feed .21; upstream .21 -> tap .31 -> router .41.
	quiet := slog.New(slog.DiscardHandler)
	port := freePort(t)
	speaker := func(self string, as uint32, passive bool, peer string, peerAS uint32) bgp.Config {
		return bgp.Config{
			LocalAS: as, RouterID: addr(self), Listen: []netip.Addr{addr(self)}, Port: port, HoldTime: 9 * time.Second,
			Peers: []bgp.Peer{{Addr: addr(peer), AS: peerAS, Port: uint16(port), LocalAddr: addr(self), Passive: passive}},
		}
	}
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(addr(a), uint16(port)) }
	var inside, upstream wire
	tap(t, at("127.0.0.12"), at("127.0.0.21"), &inside)
	tap(t, at("127.0.0.31"), at("127.0.0.41"), &upstream)

	pusher, err := bgp.NewPusher(speaker("127.0.0.11", 64512, false, "127.0.0.12", 64512), quiet)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config()
	cfg.External, cfg.ExternalResolvers = []Server{external}, []netip.Addr{addr(mr1)}
	cfg.Services = Services{
		Prefixes: []netip.Prefix{prefix("192.0.2.128/26"), prefix("2001:db8:5e::/48")}, Pool: prefix("2001:db8:64::/96"), MapServers: []Server{internal1},
	}
	public := []netip.Prefix{cfg.Aggregates[0].Prefix, cfg.Aggregates[1].Prefix, cfg.Services.Prefixes[0], cfg.Services.Prefixes[1]}
	upCfg := speaker("127.0.0.21", 64512, false, "127.0.0.31", 64500)
	upCfg.Port = bgp.NoListener
	up, err := bgp.NewUpstream(bgp.UpstreamConfig{
		Config: upCfg, Aggregates: public,
		NextHops: []netip.Addr{addr("100.65.5.2"), addr("2001:db8:165:5::2")},
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	routes := make(map[netip.Prefix]bool)
	router, err := bgp.NewRouter(bgp.RouterConfig{Config: speaker("127.0.0.41", 64500, true, "127.0.0.31", 64512)},
		func(p netip.Prefix, hops []netip.Addr) {
			mu.Lock()
			defer mu.Unlock()
			routes[p] = len(hops) > 0
		}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	announced := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(routes) == len(public) && !slices.ContainsFunc(public, func(p netip.Prefix) bool { return !routes[p] })
	}

	// LISP: everybody but the D-ETR is outside.
	network := simnet.New(1)
	listen := func(a string) net.PacketConn {
		c, err := network.Listen(netip.AddrPortFrom(addr(a), lisp.ControlPort))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var lispOut wire
	var out []lisp.Message
	network.Watch(func(d simnet.Datagram) {
		if d.From.Addr() != addr("100.64.5.2") && d.From.Addr() != addr("2001:db8:100:5::2") {
			return
		}
		lispOut.Write(d.Payload)
		m, err := lisp.Decode(bytes.Clone(d.Payload))
		if err != nil {
			t.Errorf("we sent %x: %v", d.Payload, err)
			return
		}
		if ecm, ok := m.(*lisp.ECM); ok {
			if m, err = ecm.Message(); err != nil {
				t.Error(err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		out = append(out, m)
	})
	count := func(typ lisp.Type) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range out {
			if m.Type() == typ {
				n++
			}
		}
		return n
	}
	ep := control.New(quiet, listen("100.64.5.2"), listen("2001:db8:100:5::2"))
	d, err := New(cfg, ep, newPlane(), &waiting{}, up, quiet)
	if err != nil {
		t.Fatal(err)
	}
	feed, err := bgp.NewFeed(bgp.FeedConfig{Config: speaker("127.0.0.21", 64512, true, "127.0.0.12", 64512), Linger: 50 * time.Millisecond}, d, quiet)
	if err != nil {
		t.Fatal(err)
	}

	background(t, router.Run)
	background(t, up.Run)
	stop := background(t, d.Run)
	background(t, feed.Run)
	background(t, pusher.Run)
	d.DataPlaneUp(true)
	apply := func(delta lisp.Delta) {
		t.Helper()
		if err := pusher.Apply(context.Background(), delta); err != nil {
			t.Fatal(err)
		}
	}
	apply(lisp.Delta{Full: true, Put: slices.Concat(ms, services)})
	eventually(t, "the D-ETR has the host mappings", func() bool { return len(d.mappingRows()) == len(ms) })
	eventually(t, "the D-ETR has the services", func() bool { n, _ := d.anchor.translated(); return n == len(services) })
	eventually(t, "upstream has the aggregates", announced)

	// Moves, a new VM, one that is gone; the aggregates go and come.
	apply(lisp.Delta{Put: moved, Del: []lisp.EID{ms[2].EID}})
	eventually(t, "the D-ETR has the moves", func() bool {
		rows := d.mappingRows()
		return len(rows) == 3 && rows[0].Version == 2 && rows[1].EID == moved[2].EID
	})
	d.DataPlaneUp(false)
	eventually(t, "upstream has nothing", func() bool { return !announced() })
	d.DataPlaneUp(true)
	eventually(t, "upstream has the aggregates again", announced)

	// Questions.
	itr, itr6 := listen("192.0.2.9"), listen("2001:db8:9::9")
	ask := func(m *lisp.MapRequest, ecm bool) {
		t.Helper()
		b, err := lisp.Append(nil, m)
		if err == nil && ecm {
			b, err = lisp.Append(nil, &lisp.ECM{
				Source: netip.MustParseAddrPort("192.0.2.9:4342"), Dest: netip.AddrPortFrom(m.Records[0].EID.Prefix.Addr(), 4342), Inner: b,
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		from, to := itr, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.64.5.2:4342"))
		if m.Nonce%2 == 1 {
			from, to = itr6, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("[2001:db8:100:5::2]:4342"))
		}
		if _, err := from.WriteTo(b, to); err != nil {
			t.Fatal(err)
		}
	}
	questions := []string{
		"198.51.100.10/32", "198.51.100.20/32", "198.51.100.30/32", "2001:db8:e1d:1::10/128", "198.51.100.0/24", "2001:db8:e1d::/48",
		"198.51.100.8/30", "2001:db8:e1d:1::/64", "198.51.0.0/16", "0.0.0.0/0", "::/0", "203.0.113.10/32", "[7]198.51.100.10/32",
		"192.0.2.130/32", "192.0.2.128/26", "2001:db8:5e::82/128", "2001:db8:64::cb00:710a/128", "2001:db8:64::/96",
	}
	nonce, expect := uint64(0), count(lisp.TypeMapReply)
	for _, q := range questions {
		for _, kind := range []lisp.MapRequest{{}, {Probe: true}, {SMRInvoked: true}, {PITR: true}, {HasXTRID: true, XTRID: lisp.XTRID{9}}, {SMR: true}} {
			for _, ecm := range []bool{false, true} {
				nonce++
				m := kind
				m.Nonce, m.SourceEID, m.ITRRLOCs = nonce, eid("203.0.113.10/32"), []netip.Addr{addr("192.0.2.9"), addr("2001:db8:9::9")}
				m.Records = []lisp.RequestRecord{{EID: eid(q), Notify: kind.HasXTRID}}
				ask(&m, ecm)
				foreign := q == "203.0.113.10/32" || q[0] == '['
				if !m.SMR && !(m.Probe && (ecm || foreign)) {
					expect++
				}
			}
		}
	}
	eventually(t, "all questions are answered", func() bool { return count(lisp.TypeMapReply) == expect })
	// Packets of VMs to the outside, and to EIDs of ours that nobody has.
	d.Miss(0, addr("198.51.100.10"), addr("203.0.113.10"))
	d.Miss(0, addr("2001:db8:e1d:1::10"), addr("2001:db8:f0f0:1::10"))
	d.Miss(0, addr("198.51.100.10"), addr("198.51.100.20"))
	eventually(t, "the Map-Resolver is asked", func() bool { return count(lisp.TypeMapRequest) >= 2 })
	eventually(t, "the Map-Server is told", func() bool { return count(lisp.TypeMapRegister) >= 1 })
	registers := count(lisp.TypeMapRegister)
	stop()
	eventually(t, "the end is told", func() bool { return count(lisp.TypeMapRegister) > registers && !announced() })

	// The search finds what is there: everything is on the wire inside, and the aggregates are outside.
	if got := inside.holds(secrets); len(got) != len(secrets) {
		t.Fatalf("inside only %v of %d went by: the search is no good", got, len(secrets))
	}
	known := map[string][]byte{"aggregate": {24, 198, 51, 100}, "IPv6 aggregate": {48, 0x20, 0x01, 0x0d, 0xb8, 0x0e, 0x1d},
		"service prefix": {26, 192, 0, 2, 128}, "IPv6 service prefix": {48, 0x20, 0x01, 0x0d, 0xb8, 0x00, 0x5e}}
	if got := upstream.holds(known); len(got) != len(known) {
		t.Fatalf("upstream only %v went by: the search is no good", got)
	}
	if got := lispOut.holds(map[string][]byte{"aggregate": {198, 51, 100, 0}, "anchor": {100, 64, 6, 2}}); len(got) != 2 {
		t.Fatalf("to other LISP networks only %v went by: the search is no good", got)
	}
	if got := upstream.holds(secrets); len(got) > 0 {
		t.Errorf("upstream BGP says %v", got)
	}
	// What an outsider named itself comes back in a negative answer about another instance; nothing else may.
	delete(secrets, "198.51.100.10/32")
	if got := lispOut.holds(secrets); len(got) > 0 {
		t.Errorf("LISP messages to the outside say %v", got)
	}
	allowed := func(l lisp.Locator) bool {
		return slices.ContainsFunc(cfg.Anchors, func(a lisp.Locator) bool { return a.RLOC == l.RLOC })
	}
	pool := lisp.MakeEID(0, cfg.Services.Pool)
	for _, m := range out {
		var recs []lisp.Mapping
		inHouse := false // for the cloud's own Map-Servers and xTRs, who may know of the pool
		switch m := m.(type) {
		case *lisp.MapReply:
			recs, inHouse = m.Records, m.Probe
		case *lisp.MapRegister:
			recs, inHouse = m.Records, m.UseTTL
		case *lisp.MapRequest:
			if m.SMR {
				for _, r := range m.Records {
					recs = append(recs, aggregate(&d.cfg, r.EID, false, netip.Addr{}, true))
				}
				inHouse = true
				break
			}
			for _, r := range m.Records {
				if _, own := d.cfg.own(r.EID); own || m.SourceEID.IsValid() || m.Reply != nil {
					t.Errorf("we ask for %v with source EID %v", r.EID, m.SourceEID)
				}
			}
		default:
			t.Errorf("we sent a %T", m)
		}
		for _, r := range recs {
			foreign := r.EID == eid("203.0.113.10/32") || r.EID == eid("[7]198.51.100.10/32") || !inHouse && pool.Contains(r.EID)
			if foreign != r.Negative() || !foreign && !slices.Contains(d.cfg.outward, r.EID) && !(inHouse && r.EID == pool) {
				t.Errorf("we say %+v", r)
			}
			for _, l := range r.Locators {
				if !allowed(l) {
					t.Errorf("we say %v is at %v", r.EID, l.RLOC)
				}
			}
		}
	}
}

// freePort is a TCP port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
