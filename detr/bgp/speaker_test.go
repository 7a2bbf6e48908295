package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func eid(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// loc is a usable locator; prio and weight 1, 100.
func loc(rloc string) lisp.Locator {
	return lisp.Locator{RLOC: addr(rloc), Priority: 1, Weight: 100, Reachable: true}
}

func mapping(e string, version lisp.Version, xtr byte, locs ...lisp.Locator) lisp.Mapping {
	return lisp.Mapping{
		EID: eid(e), TTL: 1440, Version: version, Authoritative: true, Locators: locs, XTRID: lisp.XTRID{15: xtr},
	}
}

// recorder is a Sink that keeps the resulting table and every Delta.
type recorder struct {
	mu     sync.Mutex
	table  map[lisp.EID]lisp.Mapping
	deltas []lisp.Delta
	at     map[lisp.EID]time.Time
	notify chan struct{}
}

func newRecorder() *recorder {
	return &recorder{
		table: make(map[lisp.EID]lisp.Mapping), at: make(map[lisp.EID]time.Time), notify: make(chan struct{}, 1),
	}
}

func (r *recorder) Apply(_ context.Context, d lisp.Delta) error {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.Full {
		clear(r.table)
	}
	for _, m := range d.Put {
		r.table[m.EID] = m
		r.at[m.EID] = now
	}
	for _, e := range d.Del {
		delete(r.table, e)
	}
	r.deltas = append(r.deltas, d)
	poke(r.notify)
	return nil
}

func (r *recorder) get(e lisp.EID) (lisp.Mapping, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.table[e]
	return m, ok
}

func (r *recorder) fulls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, d := range r.deltas {
		if d.Full {
			n++
		}
	}
	return n
}

func (r *recorder) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.table)
}

// eventually fails the test if ok does not hold within d.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); ; {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", d, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// freePort is a TCP port that nobody listens on at any loopback address.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A cloud is some Map-Servers 127.0.0.11, .12, ... and D-ETRs 127.0.0.21, .22, ..., all of AS 64512.
type cloud struct {
	t    *testing.T
	port int
}

func newCloud(t *testing.T) *cloud { return &cloud{t: t, port: freePort(t)} }

func msAddr(i int) netip.Addr   { return netip.AddrFrom4([4]byte{127, 0, 0, byte(10 + i)}) }
func detrAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, byte(20 + i)}) }

// config is the speaker at self, passive or not, with peers.
func (c *cloud) config(self netip.Addr, passive bool, peers ...netip.Addr) Config {
	cfg := Config{
		LocalAS: 64512, RouterID: self, Listen: []netip.Addr{self}, Port: c.port,
		HoldTime: 9 * time.Second, RestartTime: 30 * time.Second,
	}
	for _, p := range peers {
		cfg.Peers = append(cfg.Peers, Peer{
			Addr: p, AS: 64512, Port: uint16(c.port), LocalAddr: self, Passive: passive,
		})
	}
	return cfg
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestPusherToFeed(t *testing.T) {
	c := newCloud(t)
	p := must(NewPusher(c.config(msAddr(1), true, detrAddr(1)), quiet()))(t)
	got := newRecorder()
	f := must(NewFeed(FeedConfig{Config: c.config(detrAddr(1), false, msAddr(1)), Linger: 50 * time.Millisecond}, got, quiet()))(t)
	run(t, p.Run)
	run(t, f.Run)

	ctx := context.Background()
	ms := []lisp.Mapping{
		mapping("198.51.100.10/32", 1, 1, loc("100.64.1.2")),
		mapping("198.51.100.11/32", 7, 2, loc("2001:db8:100:3::2")),                          // RFC 8950
		mapping("2001:db8:e1d:1::10/128", 4095, 3, loc("100.64.1.2")),                        // mapped next hop
		mapping("2001:db8:e1d:1::11/128", 1, 4, loc("100.64.1.2"), loc("2001:db8:100:3::2")), // ADD-PATH
		mapping("[7]198.51.100.10/32", 2, 5, loc("100.64.4.2")),
		mapping("[7]198.51.100.11/32", 2, 5, loc("2001:db8:100:3::2")),
		mapping("[16777215]2001:db8:e1d:1::10/128", 3, 6, loc("100.64.4.2")),
		mapping("[9]2001:db8:e1d:1::10/128", 3, 6, loc("2001:db8:100:3::2"), loc("2001:db8:100:4::2")),
		{EID: eid("198.51.100.12/32"), TTL: 5, Version: 2, Action: lisp.ActDropPolicyDenied, SiteID: 1<<40 | 5},
		service("203.0.113.10/32", "2001:db8:e1d:1::10/128", 2),
		service("2001:db8:5e::/48", "2001:db8:e1d::/48", 4095),
	}
	if err := p.Apply(ctx, lisp.Delta{Full: true, Put: ms}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "all mappings are there", func() bool { return got.fulls() == 1 && got.len() == len(ms) })
	for _, want := range ms {
		m, _ := got.get(want.EID)
		if diff := cmp.Diff(want, m, cmp.Comparer(func(a, b lisp.EID) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%v: -pushed +fed\n%s", want.EID, diff)
		}
	}

	moved := mapping("198.51.100.10/32", 2, 9, loc("100.64.4.2"))
	if err := p.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{moved}, Del: []lisp.EID{ms[1].EID}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the move and the withdrawal are there", func() bool {
		m, _ := got.get(moved.EID)
		return m.Equal(moved) && got.len() == len(ms)-1
	})

	st, err := p.Status(ctx)
	if err != nil || len(st) != 1 || st[0].State != "established" || st[0].Advertised != uint64(len(ms)-1+2) ||
		st[0].Families != "ipv4 ipv6 vpnv4 vpnv6" {
		t.Errorf("pusher status %+v, %v", st, err)
	}
	st, err = f.Status(ctx)
	if err != nil || len(st) != 1 || !st[0].Synced || st[0].Received != uint64(len(ms)-1+2) {
		t.Errorf("feed status %+v, %v", st, err)
	}
}

// TestLatency measures from Apply at the Map-Server to Apply at the D-ETR's sink, one move at a time.
func TestLatency(t *testing.T) {
	c := newCloud(t)
	p := must(NewPusher(c.config(msAddr(1), true, detrAddr(1)), quiet()))(t)
	got := newRecorder()
	f := must(NewFeed(FeedConfig{Config: c.config(detrAddr(1), false, msAddr(1))}, got, quiet()))(t)
	run(t, p.Run)
	run(t, f.Run)
	ctx := context.Background()
	e := eid("198.51.100.10/32")
	if err := p.Apply(ctx, lisp.Delta{Full: true, Put: []lisp.Mapping{mapping(e.String(), 1, 1, loc("100.64.1.2"))}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "synced", func() bool { return got.fulls() == 1 })
	const n = 500
	var ds []time.Duration
	v := lisp.Version(1)
	for range n {
		v = v.Next()
		m := mapping(e.String(), v, byte(v), loc(fmt.Sprintf("100.64.%d.2", v%7+1)))
		select {
		case <-got.notify:
		default:
		}
		start := time.Now()
		if err := p.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{m}}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got.notify:
		case <-time.After(5 * time.Second):
			t.Fatal("an update is lost")
		}
		if have, _ := got.get(e); !have.Equal(m) {
			t.Fatalf("got %+v, want %+v", have, m)
		}
		got.mu.Lock()
		ds = append(ds, got.at[e].Sub(start))
		got.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	slices.Sort(ds)
	t.Logf("pusher -> feed, one update, race detector %v: median %v, p90 %v, p99 %v, max %v",
		raceDetector, ds[n/2], ds[n*9/10], ds[n*99/100], ds[n-1])
	if ds[n/2] > 20*time.Millisecond {
		t.Errorf("median latency %v: something batches", ds[n/2])
	}
}
