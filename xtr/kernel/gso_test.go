package kernel

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// site is an xTR with a guest: a namespace of its own behind a veth.
type site struct {
	*space
	d     *DataPlane
	guest *space
	rloc  pair
	eid   pair
	vmIf  int
}

func newSite(t testing.TB, rloc, eid pair, anchor bool, opts ...option) *site {
	t.Helper()
	s := &site{space: newSpace(t), guest: newSpace(t), rloc: rloc, eid: eid}
	veth(s.space, "vm0", s.guest, "eth0")
	s.must(s.nl.LinkSetHardwareAddr(s.link("vm0"), gatewayMAC))
	s.guest.must(s.guest.nl.LinkSetHardwareAddr(s.guest.link("eth0"), vmMAC))
	s.guest.addr("eth0", eid.v4.String()+"/24")
	s.guest.addr("eth0", eid.v6.String()+"/64")
	for _, p := range []pair{vmEID, farEID} { // the gateway answers for what is on the link but elsewhere
		s.guest.neigh("eth0", p.v4.String(), gatewayMAC)
		s.guest.neigh("eth0", p.v6.String(), gatewayMAC)
	}
	s.guest.must(s.guest.nl.LinkSetMTU(s.guest.link("eth0"), 1444))
	s.vmIf = s.index("vm0")
	cfg := Config{
		PinDir: bpffs(t), Self: []netip.Addr{rloc.v4, rloc.v6}, AllowedRLOCs: cloud, Own: own, Decap: "tc", Anchor: anchor,
	}
	for _, o := range opts {
		o(&cfg, nil)
	}
	var err error
	s.do(func() {
		if s.d, err = Open(cfg, slog.New(slog.NewTextHandler(testWriter{t}, nil))); err == nil {
			_, err = s.d.AttachVM(s.vmIf, Port{})
		}
	})
	s.must(err)
	t.Cleanup(func() { s.d.Close() })
	return s
}

// join makes an underlay link of two sites.
func join(a *site, nameA string, b *site, nameB string) {
	a.t.Helper()
	veth(a.space, nameA, b.space, nameB)
	for _, e := range []struct {
		s, other *site
		name     string
		peer     string
	}{{a, b, nameA, nameB}, {b, a, nameB, nameA}} {
		e.s.addr(e.name, e.s.rloc.v4.String()+"/32")
		e.s.addr(e.name, e.s.rloc.v6.String()+"/128")
		e.s.route(e.other.rloc.v4.String()+"/32", "", e.name)
		e.s.route(e.other.rloc.v6.String()+"/128", "", e.name)
		mac := e.other.link(e.peer).Attrs().HardwareAddr
		e.s.neigh(e.name, e.other.rloc.v4.String(), mac)
		e.s.neigh(e.name, e.other.rloc.v6.String(), mac)
		var err error
		e.s.do(func() { err = e.s.d.AttachUnderlay(e.s.index(e.name)) })
		e.s.must(err)
	}
}

func (s *site) set(routes ...fib.Route) {
	s.t.Helper()
	s.must(s.d.Set(s.t.Context(), routes...))
}

func (s *site) home(a netip.Addr) fib.Route {
	return fib.Route{EID: host(a), Do: fib.Deliver, If: s.vmIf, MAC: vmMAC}
}

// transfer sends n random bytes over TCP from the guest of a to that of b and compares what comes.
func transfer(t testing.TB, a, b *site, v6 bool, n int) time.Duration {
	t.Helper()
	var l net.Listener
	var err error
	b.guest.do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(b.eid.of(v6), 0).String()) })
	b.must(err)
	defer l.Close()
	var c net.Conn
	dialed := make(chan struct{})
	go a.guest.do(func() {
		defer close(dialed)
		c, err = net.DialTimeout("tcp", l.Addr().String(), 3*time.Second)
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(3 * time.Second))
	s, errAccept := l.Accept()
	<-dialed
	if err != nil || errAccept != nil {
		t.Fatalf("dial: %v, accept: %v", err, errAccept)
	}
	defer c.Close()
	defer s.Close()
	start := time.Now()
	sum := sha256.New()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		r := rand.NewChaCha8([32]byte{1})
		io.Copy(io.MultiWriter(c, sum), io.LimitReader(r, int64(n)))
		c.(*net.TCPConn).CloseWrite()
	}()
	s.SetReadDeadline(time.Now().Add(20 * time.Second))
	got := sha256.New()
	m, err := io.Copy(got, s)
	if err != nil || m != int64(n) {
		t.Fatalf("got %d of %d bytes: %v", m, n, err)
	}
	<-sent
	if string(got.Sum(nil)) != string(sum.Sum(nil)) {
		t.Fatal("the bytes that came are not those that were sent")
	}
	return time.Since(start)
}

func sites(t testing.TB) (a, b *site) {
	a = newSite(t, selfRLOC, vmEID, false)
	b = newSite(t, farRLOC, farEID, false)
	join(a, "u0", b, "u0")
	for _, v6 := range both {
		a.set(a.home(a.eid.of(v6)))
		b.set(b.home(b.eid.of(v6)))
	}
	return a, b
}

// TestSuperPackets: TCP between two guests crosses both xTRs in packets of many segments.
func TestSuperPackets(t *testing.T) {
	a, b := sites(t)
	for _, outer6 := range both {
		for _, inner6 := range both {
			t.Run(name(inner6, outer6), func(t *testing.T) {
				a.set(to(host(b.eid.of(inner6)), b.rloc.of(outer6)))
				b.set(to(host(a.eid.of(inner6)), a.rloc.of(outer6)))
				before := a.link("u0").Attrs().Statistics
				const n = 32 << 20
				took := transfer(t, a, b, inner6, n)
				after := a.link("u0").Attrs().Statistics
				packets, bytes := after.TxPackets-before.TxPackets, after.TxBytes-before.TxBytes
				t.Logf("%v, %d packets of %d bytes", took, packets, bytes/packets)
				if bytes < n || bytes/packets < 8000 {
					t.Fatalf("%d bytes in %d packets crossed the underlay: not super-packets", bytes, packets)
				}
				if c, ok, err := a.d.RouteCounters(host(b.eid.of(inner6))); err != nil || !ok || c.Packets < n/1404 || c.Bytes < n {
					t.Fatalf("route counters: %+v %v %v, want the segments of %d bytes", c, ok, err, n)
				}
			})
		}
	}
}

// TestAnchorReencapsulates: super-packets pass a D-ETR whole, with whatever outer headers on both sides.
func TestAnchorReencapsulates(t *testing.T) {
	a := newSite(t, selfRLOC, vmEID, false)
	b := newSite(t, farRLOC, farEID, false)
	x := newSite(t, addrs("100.64.5.2", "2001:db8:100:5::2"), addrs("198.51.100.99", "2001:db8:e1d:1::99"), true)
	join(a, "u0", x, "u1")
	join(b, "u0", x, "u2")
	for _, in6 := range both {
		for _, out6 := range both {
			for _, inner6 := range both {
				t.Run(fmt.Sprintf("%s then %s", name(inner6, in6), name(inner6, out6)), func(t *testing.T) {
					a.set(a.home(a.eid.of(inner6)), to(host(b.eid.of(inner6)), x.rloc.of(in6)))
					b.set(b.home(b.eid.of(inner6)), to(host(a.eid.of(inner6)), x.rloc.of(out6)))
					toB, toA := to(host(b.eid.of(inner6)), b.rloc.of(out6)), to(host(a.eid.of(inner6)), a.rloc.of(in6))
					toA.Transit, toB.Transit = true, true
					x.set(toA, toB)
					before := x.link("u2").Attrs().Statistics
					const n = 16 << 20
					took := transfer(t, a, b, inner6, n)
					after := x.link("u2").Attrs().Statistics
					packets, bytes := after.TxPackets-before.TxPackets, after.TxBytes-before.TxBytes
					t.Logf("%v, %d packets of %d bytes", took, packets, bytes/packets)
					if bytes < n || bytes/packets < 8000 {
						t.Fatalf("%d bytes in %d packets left the D-ETR: not super-packets", bytes, packets)
					}
				})
			}
		}
	}
}

// TestSegmentsOnTheWire: an ordinary network card makes segments of what was encapsulated, or encapsulated
// anew with other outer headers; and XDP takes the outer headers off before they are merged again.
func TestSegmentsOnTheWire(t *testing.T) {
	a := newSite(t, selfRLOC, vmEID, false)
	b := newSite(t, farRLOC, farEID, false)
	x := newSite(t, addrs("100.64.5.2", "2001:db8:100:5::2"), addrs("198.51.100.99", "2001:db8:e1d:1::99"), true)
	b.d.cfg.Decap = "xdp"
	join(a, "u0", x, "u1")
	join(b, "u0", x, "u2")
	// The card is the last interface before the wire; super-packets reach it.
	x.offload("u2", false, ethtoolTSO, ethtoolGSO, ethtoolTxCsum)
	b.offload("u0", false, ethtoolTSO, ethtoolGSO, ethtoolTxCsum)
	b.offload("u0", true, ethtoolGRO)
	for _, in6 := range both {
		for _, out6 := range both {
			for _, inner6 := range both {
				t.Run(fmt.Sprintf("%s then %s", name(inner6, in6), name(inner6, out6)), func(t *testing.T) {
					a.set(a.home(a.eid.of(inner6)), to(host(b.eid.of(inner6)), x.rloc.of(in6)))
					b.set(b.home(b.eid.of(inner6)), to(host(a.eid.of(inner6)), x.rloc.of(out6)))
					toB, toA := to(host(b.eid.of(inner6)), b.rloc.of(out6)), to(host(a.eid.of(inner6)), a.rloc.of(in6))
					toA.Transit, toB.Transit = true, true
					x.set(toA, toB)
					in, out := x.link("u1").Attrs().Statistics, x.link("u2").Attrs().Statistics
					guest := b.link("vm0").Attrs().Statistics
					const n = 8 << 20
					took := transfer(t, a, b, inner6, n)
					in2, out2 := x.link("u1").Attrs().Statistics, x.link("u2").Attrs().Statistics
					guest2 := b.link("vm0").Attrs().Statistics
					if size := (in2.RxBytes - in.RxBytes) / (in2.RxPackets - in.RxPackets); size < 8000 {
						t.Fatalf("packets of %d bytes reached the D-ETR: not super-packets", size)
					}
					size := (out2.TxBytes - out.TxBytes) / (out2.TxPackets - out.TxPackets)
					merged := (guest2.TxBytes - guest.TxBytes) / (guest2.TxPackets - guest.TxPackets)
					t.Logf("%v, packets of %d bytes on the wire, of %d at the guest", took, size, merged)
					if size < 1000 || size > 1514 {
						t.Fatalf("packets of %d bytes left the D-ETR: not single segments", size)
					}
					if merged < 3000 {
						t.Fatalf("packets of %d bytes reached the guest: segments were not merged", merged)
					}
				})
			}
		}
	}
}

// TestDatagramSuperPackets: what a guest sends with UDP segmentation offload comes as the datagrams that
// it is.
func TestDatagramSuperPackets(t *testing.T) {
	a, b := sites(t)
	stop := make(chan struct{})
	defer close(stop)
	go echoSegments(b.d, stop)
	for _, v6 := range both {
		a.set(to(host(b.eid.of(v6)), b.rloc.v4))
		b.set(to(host(a.eid.of(v6)), a.rloc.v4))
		var in, out *net.UDPConn
		var err error
		b.guest.do(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.eid.of(v6), 0))) })
		b.must(err)
		defer in.Close()
		a.guest.do(func() { out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr)) })
		a.must(err)
		defer out.Close()
		raw, err := out.SyscallConn()
		a.must(err)
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) })
		a.must(err)
		data := make([]byte, 20*1000+500)
		for i := range data {
			data[i] = byte(i / 1000)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		for i := range 21 {
			want := min(1000, len(data)-i*1000)
			p := make([]byte, 2000)
			in.SetReadDeadline(time.Now().Add(soon))
			n, err := in.Read(p)
			if err != nil || n != want || p[0] != byte(i) || p[n-1] != byte(i) {
				t.Fatalf("datagram %d: %d bytes of %d, %v; want %d of %d; drops at b: %v, ups %v", i, n, p[0], err, want, i, b.d.Drops(), b.d.Ups())
			}
		}
		if b.d.Ups()["segment"] == 0 {
			t.Error("the super-packet was not split by lisp0 at the decapsulating side: has the kernel learned to?")
		}
	}
}

// echoSegments is the part of the slow path that gives split super-packets back.
func echoSegments(d *DataPlane, stop chan struct{}) {
	q := d.Queues()[0]
	b := make([]byte, 70000)
	for {
		select {
		case <-stop:
			return
		default:
		}
		q.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := q.Read(b)
		if err != nil {
			continue
		}
		up, ok := fib.DecodeUp(b[10:n])
		if !ok || up.Reason != fib.UpSegment {
			continue
		}
		down := fib.Down{Do: fib.DownForward, IID: up.IID}
		if up.Flags&fib.UpTransit != 0 {
			down.Flags |= fib.DownTransit
		}
		down.Append(b[10:10])
		q.Write(b[:n])
	}
}
