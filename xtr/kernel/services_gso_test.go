package kernel

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// front is a client on the Internet, a D-ETR that translates, and an xTR with a VM that has only IPv6.
type front struct {
	client *space
	x, b   *site
}

func newFront(t testing.TB, decap string) *front {
	t.Helper()
	f := &front{client: newSpace(t)}
	f.x = newSite(t, addrs("100.64.5.2", "2001:db8:100:5::2"), addrs("198.51.100.99", "2001:db8:e1d:1::99"), true,
		withDecap(decap), func(c *Config, _ *Port) { c.Pool = labPool })
	f.b = newSite(t, farRLOC, farEID, false, withDecap(decap))
	join(f.b, "u0", f.x, "u1")
	veth(f.x.space, "up0", f.client, "eth0")
	f.x.addr("up0", "192.0.2.1/24")
	f.x.addr("up0", "2001:db8:c::1/64")
	f.client.addr("eth0", outEID.v4.String()+"/24")
	f.client.addr("eth0", outEID.v6.String()+"/64")
	f.client.route("0.0.0.0/0", "192.0.2.1", "eth0")
	f.client.route("::/0", "2001:db8:c::1", "eth0")
	f.x.sysctl("ipv4/conf/all/forwarding", "1")
	f.x.sysctl("ipv6/conf/all/forwarding", "1")
	var err error
	f.x.do(func() { err = f.x.d.AttachUpstream(f.x.index("up0")) })
	f.x.must(err)
	f.b.guest.route("::/0", "", "eth0")
	for _, a := range []netip.Addr{map646.Embed(labPool, outEID.v4), outEID.v6} {
		f.b.guest.neigh("eth0", a.String(), gatewayMAC)
	}
	f.x.must(f.x.d.SetServices(t.Context(), labServices()...))
	return f
}

// over makes routes with outer headers of a family.
func (f *front) over(outer6 bool) {
	pool, out := to(lisp.MakeEID(0, labPool), f.x.rloc.of(outer6)), to(host(outEID.v6), f.x.rloc.of(outer6))
	f.b.set(f.b.home(farEID.v6), pool, out)
	vm := to(host(farEID.v6), f.b.rloc.of(outer6))
	vm.Transit = true
	f.x.set(vm, fib.Route{EID: mustEID("192.0.2.0/24"), Do: fib.Native}, fib.Route{EID: mustEID("2001:db8:c::/64"), Do: fib.Native})
}

// pump sends n random bytes over TCP, to the listener or from it, and compares what comes.
func (f *front) pump(t testing.TB, dial netip.Addr, n int, toClient bool) {
	t.Helper()
	var l net.Listener
	var c net.Conn
	var err error
	f.b.guest.do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(farEID.v6, 0).String()) })
	f.b.must(err)
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	dialed := make(chan struct{})
	go f.client.do(func() {
		defer close(dialed)
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(dial, port).String(), 3*time.Second)
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(3 * time.Second))
	s, errAccept := l.Accept()
	<-dialed
	if err != nil || errAccept != nil {
		t.Fatalf("dial: %v, accept: %v; drops %v, ups %v", err, errAccept, f.x.d.Drops(), f.x.d.Ups())
	}
	defer c.Close()
	defer s.Close()
	from, to := c, s
	if toClient {
		from, to = s, c
	}
	sum, got := sha256.New(), sha256.New()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.Copy(io.MultiWriter(from, sum), io.LimitReader(rand.NewChaCha8([32]byte{1}), int64(n)))
		from.(*net.TCPConn).CloseWrite()
	}()
	to.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, err := io.Copy(got, to)
	if err != nil || m != int64(n) {
		t.Fatalf("got %d of %d bytes: %v; drops %v, ups %v", m, n, err, f.x.d.Drops(), f.x.d.Ups())
	}
	<-sent
	if string(got.Sum(nil)) != string(sum.Sum(nil)) {
		t.Fatal("the bytes that came are not those that were sent")
	}
}

// TestServiceSuperPackets: TCP to a service address and back crosses the D-ETR in packets of many segments; also where
// the cards behind it make segments and checksums of them.
func TestServiceSuperPackets(t *testing.T) {
	for _, decap := range []string{"tc", "xdp"} {
		f := newFront(t, decap)
		for _, cards := range both {
			if cards {
				f.x.offload("u1", false, ethtoolTSO, ethtoolGSO, ethtoolTxCsum)
				f.x.offload("up0", false, ethtoolTSO, ethtoolGSO, ethtoolTxCsum)
				f.client.offload("eth0", true, ethtoolGRO)
				if decap == "xdp" {
					f.b.offload("u0", false, ethtoolTSO, ethtoolGSO, ethtoolTxCsum)
					f.x.offload("u1", true, ethtoolGRO)
					f.b.offload("u0", true, ethtoolGRO)
				}
			}
			for _, outer6 := range both {
				f.over(outer6)
				for _, dial := range []netip.Addr{service4, service6} {
					for _, toClient := range both {
						t.Run(fmt.Sprintf("%s, cards %v, %s, to the client %v", decap, cards, name(dial.Is6(), outer6), toClient), func(t *testing.T) {
							in, out := f.x.link("up0").Attrs().Statistics, f.x.link("u1").Attrs().Statistics
							const n = 6 << 20
							f.pump(t, dial, n, toClient)
							in2, out2 := f.x.link("up0").Attrs().Statistics, f.x.link("u1").Attrs().Statistics
							cameIn := (in2.RxBytes - in.RxBytes) / (in2.RxPackets - in.RxPackets)
							wentOut := (out2.TxBytes - out.TxBytes) / (out2.TxPackets - out.TxPackets)
							if toClient {
								cameIn = (out2.RxBytes - out.RxBytes) / (out2.RxPackets - out.RxPackets)
								wentOut = (in2.TxBytes - in.TxBytes) / (in2.TxPackets - in.TxPackets)
							}
							t.Logf("packets of %d bytes came, of %d left", cameIn, wentOut)
							if decap == "xdp" && toClient {
								return // before XDP there are no super-packets, on a veth
							}
							if cameIn < 5000 {
								t.Errorf("packets of %d bytes came: not super-packets", cameIn)
							}
							if segments := cards || decap == "xdp"; segments != (wentOut < 1600) {
								t.Errorf("packets of %d bytes left", wentOut)
							}
						})
					}
				}
			}
		}
		if n := f.x.d.Ups()["translate"]; n != 0 {
			t.Errorf("%d packets went up", n)
		}
	}
}

// TestServiceDatagramSuperPackets: datagrams that are sent with UDP segmentation offload come as what they are, through a
// translation in either direction.
func TestServiceDatagramSuperPackets(t *testing.T) {
	f := newFront(t, "tc")
	stop := make(chan struct{})
	defer close(stop)
	go echoSegments(f.b.d, stop)
	go echoSegments(f.x.d, stop)
	f.over(false)
	for _, dial := range []netip.Addr{service4, service6} {
		var in, out *net.UDPConn
		var err error
		f.b.guest.do(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(farEID.v6, 0))) })
		f.b.must(err)
		port := netip.MustParseAddrPort(in.LocalAddr().String()).Port()
		f.client.do(func() { out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dial, port))) })
		f.client.must(err)
		data := make([]byte, 20*1000+500)
		for i := range data {
			data[i] = byte(i / 1000)
		}
		segment := func(c *net.UDPConn) {
			raw, err := c.SyscallConn()
			f.x.must(err)
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) })
			f.x.must(err)
		}
		segment(out)
		segment(in)
		receive := func(c *net.UDPConn) (from netip.AddrPort) {
			t.Helper()
			for i := range 21 {
				want := min(1000, len(data)-i*1000)
				p := make([]byte, 2000)
				c.SetReadDeadline(time.Now().Add(soon))
				n, peer, err := c.ReadFromUDPAddrPort(p)
				if err != nil || n != want || p[0] != byte(i) || p[n-1] != byte(i) {
					t.Fatalf("datagram %d: %d bytes of %d, %v; want %d of %d; drops %v, ups %v", i, n, p[0], err, want, i, f.x.d.Drops(), f.x.d.Ups())
				}
				from = peer
			}
			return from
		}
		before := f.x.link("u1").Attrs().Statistics.TxPackets
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		client := receive(in)
		if n := f.x.link("u1").Attrs().Statistics.TxPackets - before; n > 3 {
			t.Errorf("left the D-ETR in %d packets", n)
		}
		if want := map[bool]netip.Addr{false: map646.Embed(labPool, outEID.v4), true: outEID.v6}[dial.Is6()]; client.Addr() != want {
			t.Errorf("came from %v, want %v", client, want)
		}
		if _, err := in.WriteToUDPAddrPort(data, client); err != nil {
			t.Fatal(err)
		}
		if from := receive(out); from.Addr() != dial {
			t.Errorf("the answer came from %v, want %v", from, dial)
		}
		in.Close()
		out.Close()
	}
}

// TestServiceHairpinSuperPackets: from one VM to the service address of another and back, super-packets keep their outer
// headers, whole.
func TestServiceHairpinSuperPackets(t *testing.T) {
	a := newSite(t, selfRLOC, vmEID, false)
	b := newSite(t, farRLOC, farEID, false)
	x := newSite(t, addrs("100.64.5.2", "2001:db8:100:5::2"), addrs("198.51.100.99", "2001:db8:e1d:1::99"), true,
		func(c *Config, _ *Port) { c.Pool = labPool })
	join(a, "u0", x, "u1")
	join(b, "u0", x, "u2")
	aService6 := netip.MustParseAddr("2001:db8:e1d:5e::66")
	x.must(x.d.SetServices(t.Context(), append(labServices(), service(aService6.String(), vmEID.v6.String()))...))
	pool4 := func(s string) netip.Addr { return map646.Embed(labPool, netip.MustParseAddr(s)) }
	for _, c := range []struct{ dial, seen netip.Addr }{
		{service6, aService6},
		{pool4(service4.String()), pool4("198.51.100.78")},
	} {
		for _, outer6 := range both {
			toA, toB := to(host(vmEID.v6), a.rloc.of(outer6)), to(host(farEID.v6), b.rloc.of(!outer6))
			toA.Transit, toB.Transit = true, true
			x.set(toA, toB)
			a.set(a.home(vmEID.v6), to(host(c.dial), x.rloc.of(outer6)))
			b.set(b.home(farEID.v6), to(host(c.seen), x.rloc.of(!outer6)))
			for _, g := range []*site{a, b} {
				g.guest.route("::/0", "", "eth0")
				g.guest.neigh("eth0", c.dial.String(), gatewayMAC)
				g.guest.neigh("eth0", c.seen.String(), gatewayMAC)
			}
			f := &front{client: a.guest, x: x, b: b}
			for _, back := range both {
				before := x.link("u2").Attrs().Statistics
				const n = 6 << 20
				f.pump(t, c.dial, n, back)
				after := x.link("u2").Attrs().Statistics
				size := (after.TxBytes - before.TxBytes) / (after.TxPackets - before.TxPackets)
				if back {
					size = (after.RxBytes - before.RxBytes) / (after.RxPackets - before.RxPackets)
				}
				if size < 5000 {
					t.Errorf("to %v, back %v: packets of %d bytes: not super-packets", c.dial, back, size)
				}
			}
		}
	}
	if n := x.d.Ups()["translate"]; n != 0 {
		t.Errorf("%d packets went up", n)
	}
}

// TestServiceBetweenTunnels: between an IPv4 EID and a service a super-packet's outer headers cannot stay, as what is
// inside changes family: Go's device makes segments of it, which pass.
func TestServiceBetweenTunnels(t *testing.T) {
	a := newSite(t, selfRLOC, vmEID, false)
	b := newSite(t, farRLOC, farEID, false)
	x := newSite(t, addrs("100.64.5.2", "2001:db8:100:5::2"), addrs("198.51.100.99", "2001:db8:e1d:1::99"), true,
		func(c *Config, _ *Port) { c.Pool = labPool })
	join(a, "u0", x, "u1")
	join(b, "u0", x, "u2")
	x.must(x.d.SetServices(t.Context(), service(service4.String(), farEID.v6.String())))
	stop := make(chan struct{})
	defer close(stop)
	go echoSegments(x.d, stop)
	back := map646.Embed(labPool, vmEID.v4)
	for _, outer6 := range both {
		toA, toB := to(host(vmEID.v4), a.rloc.of(outer6)), to(host(farEID.v6), b.rloc.of(!outer6))
		toA.Transit, toB.Transit = true, true
		x.set(toA, toB)
		a.set(a.home(vmEID.v4), to(host(service4), x.rloc.of(outer6)))
		b.set(b.home(farEID.v6), to(host(back), x.rloc.of(!outer6)))
		a.guest.neigh("eth0", service4.String(), gatewayMAC)
		b.guest.route("::/0", "", "eth0")
		b.guest.neigh("eth0", back.String(), gatewayMAC)
		f := &front{client: a.guest, x: x, b: b}
		for _, toClient := range both {
			f.pump(t, service4, 1<<20, toClient)
		}
	}
	if x.d.Ups()["segment"] == 0 {
		t.Error("no super-packet went up: has the kernel learned to carry them whole?")
	}
}
