package mapserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/mapserver"
	"github.com/tabi-lisp/tabi/mapserver/boltstore"
)

var (
	key           = lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "secret"}
	controllerKey = lisp.Key{ID: 2, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "of the controller"}
)

// loopback is an address of this process alone: Map-Notifies go to port 4342 always.
func loopback(n int) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(1 + pid>>8%250), byte(pid), byte(n)})
}

// sink tells when it was told of a version.
type sink struct {
	mu   sync.Mutex
	full int
	has  map[lisp.EID]lisp.Mapping
	told chan lisp.Version
}

func (s *sink) Apply(_ context.Context, d lisp.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Full {
		s.full++
		s.has = map[lisp.EID]lisp.Mapping{}
	}
	for _, m := range d.Put {
		s.has[m.EID] = m
		select {
		case s.told <- m.Version:
		default:
		}
	}
	for _, e := range d.Del {
		delete(s.has, e)
	}
	return nil
}

// serve runs a Map-Server with real sockets and a real file.
func serve(t testing.TB, path string, s lisp.Sink) (stop func()) {
	t.Helper()
	conns, err := control.Listen(context.Background(), netip.AddrPortFrom(loopback(1), lisp.ControlPort))
	if err != nil {
		t.Fatal(err)
	}
	store, err := boltstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	srv, err := mapserver.New(mapserver.Config{FlapMoves: 1 << 30, Sites: []mapserver.Site{{Name: "cloud", Keys: []lisp.Key{key},
		ControllerKeys: []lisp.Key{controllerKey}, AcceptMoreSpecifics: true, Prefixes: []lisp.EID{
			lisp.MakeEID(0, netip.MustParsePrefix("10.0.0.0/8")), lisp.MakeEID(0, netip.MustParsePrefix("2001:db8:e1d::/48"))}}}},
		control.New(log, conns...), store, map[string]lisp.Sink{"test": s}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- srv.Run(ctx) }()
	return func() {
		cancel()
		if err := errors.Join(<-ran, store.Close()); err != nil {
			t.Error(err)
		}
	}
}

// xtr is an xTR's socket.
type xtr struct {
	t     testing.TB
	id    lisp.XTRID
	addr  netip.Addr
	conn  net.PacketConn
	nonce uint64
	buf   [2048]byte
}

func newXTR(t testing.TB, n int) *xtr {
	t.Helper()
	x := &xtr{t: t, id: lisp.XTRID{15: byte(n)}, addr: loopback(n)}
	conns, err := control.Listen(context.Background(), netip.AddrPortFrom(x.addr, lisp.ControlPort))
	if err != nil {
		t.Fatal(err)
	}
	x.conn = conns[0]
	t.Cleanup(func() { x.conn.Close() })
	return x
}

func (x *xtr) send(b []byte, err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
	if _, err := x.conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(1), lisp.ControlPort))); err != nil {
		x.t.Fatal(err)
	}
}

func (x *xtr) register(version lisp.Version, eids ...lisp.EID) {
	x.t.Helper()
	x.nonce++
	m := &lisp.MapRegister{ProxyReply: true, WantMapNotify: true, HasXTRID: true, XTRID: x.id, Nonce: x.nonce}
	for _, e := range eids {
		m.Records = append(m.Records, lisp.Mapping{EID: e, TTL: 1440, Version: version,
			Locators: []lisp.Locator{{RLOC: x.addr, Priority: 1, Weight: 100, Reachable: true}}})
	}
	x.send(lisp.AppendSigned(nil, m, key))
}

func (x *xtr) receive() lisp.Message {
	x.t.Helper()
	if err := x.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		x.t.Fatal(err)
	}
	n, _, err := x.conn.ReadFrom(x.buf[:])
	if err != nil {
		x.t.Fatal(err)
	}
	m, err := lisp.Decode(x.buf[:n])
	if err != nil {
		x.t.Fatal(err)
	}
	return m
}

func eid(i int) lisp.EID {
	return lisp.HostEID(0, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
}

func TestWarmRestartWithRealSocketsAndAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	s := &sink{told: make(chan lisp.Version, 1)}
	stop := serve(t, path, s)
	a, b := newXTR(t, 2), newXTR(t, 3)
	a.register(0, eid(1), eid(2))
	if m := a.receive().(*lisp.MapNotify); len(m.Records) != 2 || m.Records[0].Version != 1 || m.Nonce != a.nonce {
		t.Fatalf("answered %+v", m)
	}
	b.register(2, eid(1))
	if m := b.receive().(*lisp.MapNotify); m.Records[0].Version != 2 || m.XTRID != b.id {
		t.Fatalf("answered %+v", m)
	}
	if m := a.receive().(*lisp.MapNotify); m.Records[0].EID != eid(1) || m.Records[0].Version != 2 || m.XTRID != b.id {
		t.Fatalf("told %+v", m)
	}
	stop()

	s2 := &sink{told: make(chan lisp.Version, 1)}
	stop = serve(t, path, s2)
	inner, err := lisp.Append(nil, &lisp.MapRequest{Nonce: 9, ITRRLOCs: []netip.Addr{a.addr}, Records: []lisp.RequestRecord{{EID: eid(1)}}})
	if err != nil {
		t.Fatal(err)
	}
	a.send(lisp.Append(nil, &lisp.ECM{Source: netip.AddrPortFrom(a.addr, lisp.ControlPort),
		Dest: netip.AddrPortFrom(eid(1).Prefix.Addr(), lisp.ControlPort), Inner: inner}))
	for {
		// Before the restart nobody acknowledged to it that the EID is lost.
		if m, ok := a.receive().(*lisp.MapReply); ok {
			if m.Nonce != 9 || len(m.Records) != 1 || m.Records[0].Version != 2 || m.Records[0].Locators[0].RLOC != b.addr {
				t.Errorf("after the restart it answers %+v", m)
			}
			break
		}
	}
	// Nonces outlive it, too: a replay is nothing to it.
	replay := a.nonce
	a.nonce = 0
	a.register(5, eid(1))
	a.nonce = replay
	a.register(1, eid(1))
	if m := a.receive().(*lisp.MapNotify); m.Records[0].Version != 2 || m.XTRID != b.id {
		t.Errorf("answered %+v", m)
	}
	stop()
	s2.mu.Lock()
	defer s2.mu.Unlock()
	if s2.full != 1 || len(s2.has) != 2 || s2.has[eid(1)].Version != 2 {
		t.Errorf("the sink was told Full %d times and has %+v", s2.full, s2.has)
	}
}

// Services outlive the process, and their controller: after the restart the sink has them at once, whole and in
// the order of versions, and xTRs are answered what the D-ETR registered.
func TestServicesAreThereAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ms.db")
	stop := serve(t, path, &sink{told: make(chan lisp.Version, 1)})
	c, d := newXTR(t, 2), newXTR(t, 3)
	prefix := lisp.MakeEID(0, netip.MustParsePrefix("10.9.0.0/16"))
	d.send(lisp.AppendSigned(nil, &lisp.MapRegister{ProxyReply: true, WantMapNotify: true, HasXTRID: true, XTRID: d.id, Nonce: 1, Merge: true,
		Records: []lisp.Mapping{{EID: prefix, TTL: 1440, Locators: []lisp.Locator{{RLOC: d.addr, Priority: 1, Weight: 100, Reachable: true}}}}}, key))
	d.receive()
	register := func(ms ...lisp.Mapping) lisp.Message {
		t.Helper()
		c.nonce++
		c.send(lisp.AppendSigned(nil, &lisp.MapRegister{WantMapNotify: true, Nonce: c.nonce, Records: ms}, controllerKey))
		return c.receive()
	}
	service := func(outside, inside string, v lisp.Version) lisp.Mapping {
		return lisp.NewService(netip.MustParsePrefix(outside), netip.MustParsePrefix(inside), v)
	}
	stays, moved := service("10.9.0.1/32", "2001:db8:e1d::1/128", 1), service("10.9.0.2/32", "2001:db8:e1d::2/128", 4)
	gone := service("10.9.0.3/32", "2001:db8:e1d::3/128", 7)
	if m, ok := register(stays, moved, gone).(*lisp.MapNotify); !ok || len(m.Records) != 3 || !m.Records[1].Equal(moved) {
		t.Fatalf("answered %+v", m)
	}
	moved.Inside, moved.Version, gone.TTL, gone.Version = netip.MustParsePrefix("2001:db8:e1d::9/128"), 5, lisp.TTLDelete, 8
	if m, ok := register(moved, gone).(*lisp.MapNotify); !ok || len(m.Records) != 2 || !m.Records[0].Equal(moved) || m.Records[1].TTL != 0 {
		t.Fatalf("answered %+v", m)
	}
	stop()

	s := &sink{told: make(chan lisp.Version, 1)}
	stop = serve(t, path, s)
	inner, err := lisp.Append(nil, &lisp.MapRequest{Nonce: 9, ITRRLOCs: []netip.Addr{d.addr}, Records: []lisp.RequestRecord{{EID: stays.EID}}})
	if err != nil {
		t.Fatal(err)
	}
	d.send(lisp.Append(nil, &lisp.ECM{Source: netip.AddrPortFrom(d.addr, lisp.ControlPort),
		Dest: netip.AddrPortFrom(stays.EID.Prefix.Addr(), lisp.ControlPort), Inner: inner}))
	if m, ok := d.receive().(*lisp.MapReply); !ok || len(m.Records) != 1 || m.Records[0].EID != prefix || m.Records[0].Locators[0].RLOC != d.addr {
		t.Errorf("an xTR is answered %+v", m)
	}
	old := gone
	old.TTL, old.Version = lisp.TTLLocal, 7
	if m, ok := register(old).(*lisp.MapNotify); !ok || m.Records[0].TTL != 0 || m.Records[0].Version != 8 {
		t.Errorf("an old version is answered %+v", m)
	}
	stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != 1 || len(s.has) != 3 || !s.has[stays.EID].Equal(stays) || !s.has[moved.EID].Equal(moved) || s.has[prefix].Negative() {
		t.Errorf("the sink was told Full %d times and has %+v", s.full, s.has)
	}
}

// BenchmarkRegister measures one move at a time into a table of 100,000: from the Map-Register that leaves
// to the sink that is told, and to the Map-Notify that comes back.
func BenchmarkRegister(b *testing.B) {
	s := &sink{told: make(chan lisp.Version, 1)}
	stop := serve(b, filepath.Join(b.TempDir(), "ms.db"), s)
	defer stop()
	x, y := newXTR(b, 2), newXTR(b, 3)
	start := time.Now()
	for i := 0; i < 100000; i += 50 {
		var batch []lisp.EID
		for j := range 50 {
			batch = append(batch, eid(i+j))
		}
		x.register(1, batch...)
		x.receive()
	}
	b.Logf("100,000 EIDs registered in %v", time.Since(start))
	var toSink, toNotify []time.Duration
	version := lisp.Version(1)
	i := 0
	for b.Loop() {
		version = version.Next()
		mover, other := y, x
		if i++; i%2 == 0 {
			mover, other = x, y
		}
		for len(s.told) > 0 {
			<-s.told
		}
		start := time.Now()
		mover.register(version, eid(99999))
		<-s.told
		toSink = append(toSink, time.Since(start))
		for {
			m, ok := mover.receive().(*lisp.MapNotify)
			if ok && m.Nonce == mover.nonce {
				break
			}
		}
		toNotify = append(toNotify, time.Since(start))
		if m, ok := other.receive().(*lisp.MapNotify); ok {
			other.send(lisp.AppendSigned(nil, m.Ack(), key))
		}
		time.Sleep(100 * time.Microsecond)
	}
	for name, ds := range map[string][]time.Duration{"sink": toSink, "notify": toNotify} {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), fmt.Sprintf("%s-p50-us", name))
		b.ReportMetric(float64(ds[len(ds)*99/100].Microseconds()), fmt.Sprintf("%s-p99-us", strings.ToLower(name)))
	}
}
