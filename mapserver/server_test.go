package mapserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/testnet/simnet"
)

// ram is a Store that can be slow, and fail.
type ram struct {
	mu     sync.Mutex
	state  State
	regs   map[lisp.EID]Registration
	nonces map[NonceKey]uint64
	subs   map[SubscriptionKey]Subscription
	saves  int
	slow   time.Duration
	fail   int
}

func (s *ram) Load() (State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.regs == nil {
		s.regs, s.nonces, s.subs = map[lisp.EID]Registration{}, map[NonceKey]uint64{}, map[SubscriptionKey]Subscription{}
	}
	return State{Registrations: slices.Collect(maps.Values(s.regs)), Nonces: maps.Clone(s.nonces),
		Subscriptions: slices.Collect(maps.Values(s.subs))}, nil
}

func (s *ram) Save(b Batch) error {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("disk full")
	}
	s.saves++
	apply(s.regs, b.Registrations)
	apply(s.subs, b.Subscriptions)
	maps.Copy(s.nonces, b.Nonces)
	return nil
}

func (s *ram) set(slow time.Duration, fail int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow, s.fail = slow, fail
}

func (s *ram) transactions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves
}

// lab is a Server on a network in memory, in virtual time.
type lab struct {
	t     *testing.T
	net   *simnet.Network
	store *ram
	sink  *memory
	s     *Server
	stop  func()
	nonce uint64
}

const ms1 = "100.64.7.2"

func newLab(t *testing.T, cfg Config, sinks map[string]lisp.Sink) *lab {
	l := &lab{t: t, net: simnet.New(1), store: &ram{}, sink: &memory{}}
	if sinks == nil {
		sinks = map[string]lisp.Sink{}
	}
	sinks["memory"] = l.sink
	l.start(cfg, sinks)
	return l
}

func (l *lab) start(cfg Config, sinks map[string]lisp.Sink) {
	l.t.Helper()
	conn, err := l.net.Listen(netip.MustParseAddrPort(ms1 + ":4342"))
	if err != nil {
		l.t.Fatal(err)
	}
	if l.s, err = New(cfg, control.New(quiet(), conn), l.store, sinks, quiet()); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.s.Run(ctx) }()
	l.stop = func() {
		cancel()
		if err := <-ran; err != nil {
			l.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

// peer is an xTR's socket.
type peer struct {
	l    *lab
	conn net.PacketConn
	id   byte
}

func (l *lab) peer(id byte, addr string) *peer {
	l.t.Helper()
	conn, err := l.net.Listen(netip.AddrPortFrom(netip.MustParseAddr(addr), 4342))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return &peer{l, conn, id}
}

func (p *peer) addr() netip.Addr { return p.conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr() }

func (p *peer) send(b []byte, err error) {
	p.l.t.Helper()
	if err != nil {
		p.l.t.Fatal(err)
	}
	if _, err := p.conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(ms1+":4342"))); err != nil {
		p.l.t.Fatal(err)
	}
}

func (p *peer) register(version lisp.Version, eids ...string) {
	p.l.t.Helper()
	p.l.nonce++
	m := &lisp.MapRegister{ProxyReply: true, WantMapNotify: true, HasXTRID: true, XTRID: lisp.XTRID{15: p.id}, Nonce: p.l.nonce}
	for _, e := range eids {
		m.Records = append(m.Records, lisp.Mapping{EID: mustEID(e), TTL: 10, Version: version, Locators: []lisp.Locator{loc(p.addr().String())}})
	}
	p.send(lisp.AppendSigned(nil, m, propKey))
}

// heard waits for a message, no longer than d.
func (p *peer) heard(d time.Duration) string {
	p.l.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		p.l.t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, _, err := p.conn.ReadFrom(buf)
	if err != nil {
		return "nothing"
	}
	m, err := lisp.Decode(buf[:n])
	if err != nil {
		p.l.t.Fatal(err)
	}
	if n2, ok := m.(*lisp.MapNotify); ok {
		if err := lisp.Verify(buf[:n], n2, propKey); err != nil {
			p.l.t.Errorf("%s: %v", line(m), err)
		}
	}
	return line(m)
}

func (p *peer) want(want string) {
	p.l.t.Helper()
	if got := p.heard(time.Second); got != want {
		p.l.t.Errorf("xTR %d heard %q, want %q", p.id, got, want)
	}
}

func TestServerTellsEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, cloud(), nil)
		a, b := l.peer(1, hv1), l.peer(2, hv2)
		a.register(0, web)
		a.want("Map-Notify " + web + " v1 ttl 10 100.64.1.2 of 1")
		b.register(2, web)
		b.want("Map-Notify " + web + " v2 ttl 10 100.64.2.2 of 2")
		a.want("Map-Notify " + web + " v2 ttl 10 100.64.2.2 of 2")
		synctest.Wait()
		if got := l.sink.sorted(); len(got) != 1 || got[0].Version != 2 {
			t.Errorf("the sink has %+v", got)
		}
		if d := l.sink.deltas; len(d) == 0 || !d[0].Full {
			t.Errorf("the sink's first Delta is %+v", d)
		}
		l.stop()
		// Stopped, and started again: it serves at once, and tells its sinks all.
		l.sink.deltas = nil
		l.start(cloud(), map[string]lisp.Sink{"memory": l.sink})
		if d := l.sink.deltas; len(d) != 1 || !d[0].Full || len(d[0].Put) != 1 || d[0].Put[0].Version != 2 {
			t.Errorf("after the restart the sink is told %+v", d)
		}
		a.register(1, web)
		a.want("Map-Notify " + web + " v2 ttl 10 100.64.2.2 of 2")
		l.stop()
	})
}

func TestNobodyIsAcknowledgedBeforeTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, cloud(), nil)
		l.store.set(50*time.Millisecond, 2)
		a, b := l.peer(1, hv1), l.peer(2, hv2)
		a.register(1, web)
		if got := a.heard(400 * time.Millisecond); got != "nothing" { // 50 + 100 wait + 50 + 200 wait + 50
			t.Errorf("heard %q while the disk failed", got)
		}
		if got := l.sink.sorted(); len(got) != 1 {
			t.Errorf("the sink waits for the disk: %+v", got)
		}
		a.want("Map-Notify " + web + " v1 ttl 10 100.64.1.2 of 1")
		// What comes while the disk is busy becomes one batch.
		saves := l.store.transactions()
		for i := range 50 {
			b.register(1, fmt.Sprintf("198.51.100.%d", 100+i))
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if n := l.store.transactions() - saves; n != 2 {
			t.Errorf("%d transactions for 50 Map-Registers, want 2", n)
		}
		for i := range 50 {
			b.want(fmt.Sprintf("Map-Notify 198.51.100.%d/32 v1 ttl 10 100.64.2.2 of 2", 100+i))
		}
		// A last one, while it is stopped.
		a.register(1, "198.51.100.200")
		synctest.Wait()
		a.register(1, "198.51.100.201")
		synctest.Wait()
		l.stop()
		if _, ok := l.store.regs[mustEID("198.51.100.201")]; !ok {
			t.Error("what was accepted before the stop is not stored")
		}
		a.want("Map-Notify 198.51.100.200/32 v1 ttl 10 100.64.1.2 of 1")
		a.want("Map-Notify 198.51.100.201/32 v1 ttl 10 100.64.1.2 of 1")
	})
}

func TestADiskThatNeverWorksPromisesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, cloud(), nil)
		l.store.set(0, 1<<30)
		a := l.peer(1, hv1)
		a.register(0, web)
		time.Sleep(time.Minute)
		if got := a.heard(time.Second); got != "nothing" {
			t.Errorf("heard %q", got)
		}
		l.stop()
		if got := a.heard(time.Second); got != "nothing" {
			t.Errorf("heard %q", got)
		}
	})
}

func TestASlowSinkDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &memory{slow: time.Hour}
		l := newLab(t, cloud(), map[string]lisp.Sink{"slow": slow})
		a := l.peer(1, hv1)
		start := time.Now()
		for v := range lisp.Version(100) {
			a.register(v+1, web)
			a.want(fmt.Sprintf("Map-Notify %s v%d ttl 10 100.64.1.2 of 1", web, v+1))
		}
		synctest.Wait()
		if got := l.sink.sorted(); len(got) != 1 || got[0].Version != 100 {
			t.Errorf("the other sink has %+v", got)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v", d)
		}
		l.stop()
	})
}

func TestPublicationsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := withSubscribers()
		cfg.NotifyRate = 1000
		l := newLab(t, cfg, nil)
		a := l.peer(1, hv1)
		a.register(1, web)
		a.want("Map-Notify " + web + " v1 ttl 10 100.64.1.2 of 1")
		sub := l.peer(4, itr)
		for i := range 500 {
			inner, err := lisp.Append(nil, &lisp.MapRequest{Nonce: 1, HasXTRID: true, XTRID: lisp.XTRID{1: byte(i >> 8), 2: byte(i), 15: 4},
				ITRRLOCs: []netip.Addr{sub.addr()}, Records: []lisp.RequestRecord{{EID: mustEID(web), Notify: true}}})
			if err != nil {
				t.Fatal(err)
			}
			sub.send(lisp.Append(nil, &lisp.ECM{Source: netip.AddrPortFrom(sub.addr(), 4342),
				Dest: netip.MustParseAddrPort("198.51.100.10:4342"), Inner: inner}))
			if got := sub.heardAny(time.Second); got != "Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1" {
				t.Fatalf("subscription %d: %s", i, got)
			}
		}
		start := time.Now()
		a.register(2, web)
		a.want("Map-Notify " + web + " v2 ttl 10 100.64.1.2 of 1")
		if d := time.Since(start); d != 0 {
			t.Errorf("the claimant waited %v", d)
		}
		n := 0
		for n < 500 {
			if got := sub.heardAny(4 * time.Second); got == "nothing" {
				break
			}
			n++
		}
		if d := time.Since(start); n != 500 || d < 400*time.Millisecond || d > 600*time.Millisecond {
			t.Errorf("%d publications in %v", n, d)
		}
		l.stop()
	})
}

// heardAny is heard, whoever signed.
func (p *peer) heardAny(d time.Duration) string {
	if err := p.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		p.l.t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, _, err := p.conn.ReadFrom(buf)
	if err != nil {
		return "nothing"
	}
	m, err := lisp.Decode(buf[:n])
	if err != nil {
		p.l.t.Fatal(err)
	}
	return line(m)
}

func TestTablesAndExplanations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, withSubscribers(), nil)
		a, b := l.peer(1, hv1), l.peer(2, hv2)
		a.register(5, web)
		a.want("Map-Notify " + web + " v5 ttl 10 100.64.1.2 of 1")
		b.register(4, web)
		b.want("Map-Notify " + web + " v5 ttl 10 100.64.1.2 of 1")
		a.register(1, "192.0.2.1")
		time.Sleep(30 * time.Second)

		shows := l.s.Shows()
		if got := slices.Sorted(maps.Keys(shows)); !slices.Equal(got, []string{"counters", "mappings", "registrations", "services", "subscribers"}) {
			t.Errorf("tables %v", got)
		}
		table := func(name string) any {
			rows, err := shows[name](t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return rows
		}
		mappings := []MappingRow{{EID: mustEID(web), Version: 5, RLOCs: "100.64.1.2 1/100", TTL: 10, XTRID: lisp.XTRID{15: 1}, Answered: "here"}}
		if diff := cmp.Diff(any(mappings), table("mappings"), compareMappings); diff != "" {
			t.Errorf("mappings (-want +got):\n%s", diff)
		}
		var got []string
		for _, r := range table("registrations").([]RegistrationRow) {
			got = append(got, fmt.Sprintf("%s %s %d v%d key %s flags %s expires %s refused %s", r.EID, r.State, r.XTRID[15],
				r.Version, r.Key, r.Flags, r.Expires, r.Refused))
		}
		want := []string{
			"192.0.2.1/32 refused 1 v1 key  flags  expires  refused no-site-for-eid (1 times)",
			web + " refused 2 v4 key  flags  expires  refused older-version (1 times)",
			web + " registered 1 v5 key 1 flags P expires 2m30s refused ",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("registrations (-want +got):\n%s", diff)
		}
		counters := map[string]uint64{}
		for _, r := range table("counters").([]CounterRow) {
			counters[r.Name] = r.Value
		}
		for name, n := range map[string]uint64{"register/accepted": 1, "register/refused/older-version": 1, "notify/answered": 1,
			"notify/refused": 1, "now/registered": 1, "control/received/map-register": 3, "store/batches": 2} {
			if counters[name] != n {
				t.Errorf("counter %s is %d, want %d", name, counters[name], n)
			}
		}

		for eid, want := range map[string][]string{
			web: {"sites 198.51.100.10/32 may be registered by site \"cloud\"",
				"registrations 198.51.100.10/32 -> 100.64.1.2 1/100, version 5",
				"registrations xTR 00000000000000000000000000000002 was refused 198.51.100.10/32 with version 4",
				"answers 198.51.100.10/32 -> 100.64.1.2 1/100, version 5"},
			"198.51.100.11": {"sites 198.51.100.11/32 may be registered by site \"cloud\"", "registrations not registered",
				"answers 198.51.100.11/32: natively-forward for 1 min"},
			"8.8.8.8": {"sites 8.8.8.8/32 may not be registered", "registrations not registered", "answers 0.0.0.0/1: natively-forward for 15 min"},
		} {
			fs, err := l.s.Explain(t.Context(), mustEID(eid))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range fs {
				got = append(got, f.Part+" "+f.Says)
				if f.Why == "" {
					t.Errorf("%s: says %q and not why", eid, f.Says)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("explanation of %s (-want +got):\n%s", eid, diff)
			}
		}
		l.stop()
		if _, err := shows["mappings"](t.Context()); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("after Run: %v", err)
		}
		if err := l.s.Run(t.Context()); err == nil {
			t.Error("Run can be called twice")
		}
	})
}

// lostEndpoint is an endpoint whose sockets break.
type lostEndpoint struct{ after time.Duration }

func (e lostEndpoint) Run(ctx context.Context, _ func(control.Packet)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(e.after):
		return errors.New("socket is gone")
	}
}
func (lostEndpoint) Send(netip.AddrPort, []byte) error { return errors.New("socket is gone") }
func (lostEndpoint) Counters() map[string]uint64       { return nil }

func TestALostEndpointEndsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(cloud(), lostEndpoint{time.Second}, &ram{}, nil, quiet())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "socket is gone") {
			t.Errorf("Run: %v", err)
		}
	})
}

// brokenStore cannot be read.
type brokenStore struct{ *ram }

func (brokenStore) Load() (State, error) { return State{}, errors.New("unreadable") }

func TestAStoreThatCannotBeRead(t *testing.T) {
	if _, err := New(cloud(), lostEndpoint{}, brokenStore{}, nil, quiet()); err == nil || !strings.Contains(err.Error(), "unreadable") {
		t.Errorf("New: %v", err)
	}
}
