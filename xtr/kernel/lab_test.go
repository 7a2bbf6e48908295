package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// space is a network namespace of a test. It has no name and ends with its last user.
type space struct {
	t  testing.TB
	ns netns.NsHandle
	nl *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t}
	onThread(func() {
		var err error
		if s.ns, err = netns.New(); err != nil {
			t.Errorf("network namespace (the tests need root): %v", err)
			return
		}
		if s.nl, err = netlink.NewHandle(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		s.nl.Close()
		s.ns.Close()
	})
	s.must(s.nl.LinkSetUp(s.link("lo")))
	return s
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// do runs f in the namespace.
func (s *space) do(f func()) {
	s.t.Helper()
	onThread(func() {
		if err := netns.Set(s.ns); err != nil {
			s.t.Error(err)
			return
		}
		f()
	})
}

func (s *space) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.nl.LinkByName(name)
	s.must(err)
	return l
}

func (s *space) index(name string) int { s.t.Helper(); return s.link(name).Attrs().Index }

func (s *space) sysctl(path, value string) {
	s.t.Helper()
	s.do(func() {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0); err != nil {
			s.t.Error(err)
		}
	})
}

// veth joins two namespaces.
func veth(a *space, nameA string, b *space, nameB string) {
	a.t.Helper()
	v := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: nameA, NumTxQueues: 1, NumRxQueues: 1, TxQLen: 1000},
		PeerName:  nameB, PeerNamespace: netlink.NsFd(int(b.ns)),
	}
	a.must(a.nl.LinkAdd(v))
	for _, s := range []struct {
		*space
		name string
	}{{a, nameA}, {b, nameB}} {
		s.quiet(s.name)
		s.must(s.nl.LinkSetUp(s.link(s.name)))
	}
}

// quiet keeps the stack from speaking on an interface by itself.
func (s *space) quiet(name string) {
	s.t.Helper()
	s.sysctl("ipv6/conf/"+name+"/addr_gen_mode", "1")
	s.sysctl("ipv6/conf/"+name+"/accept_ra", "0")
	s.sysctl("ipv6/conf/"+name+"/dad_transmits", "0")
}

func (s *space) addr(name, prefix string) {
	s.t.Helper()
	a, err := netlink.ParseAddr(prefix)
	s.must(err)
	a.Flags = unix.IFA_F_NODAD
	s.must(s.nl.AddrAdd(s.link(name), a))
}

func (s *space) neigh(name, ip string, mac net.HardwareAddr) {
	s.t.Helper()
	s.must(s.nl.NeighSet(&netlink.Neigh{
		LinkIndex: s.index(name), State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: mac,
	}))
}

func (s *space) route(prefix, via, dev string) {
	s.t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	s.must(err)
	r := &netlink.Route{Dst: dst, LinkIndex: s.index(dev)}
	if via != "" {
		r.Gw = net.ParseIP(via)
	}
	s.must(s.nl.RouteReplace(r))
}

const (
	ethtoolTxCsum = 0x17 // ETHTOOL_STXCSUM
	ethtoolTSO    = 0x1f // ETHTOOL_STSO
	ethtoolGSO    = 0x24 // ETHTOOL_SGSO
	ethtoolGRO    = 0x2c // ETHTOOL_SGRO
)

// offload switches offloads of an interface.
func (s *space) offload(name string, on bool, commands ...uint32) {
	s.t.Helper()
	s.do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			s.t.Error(err)
			return
		}
		defer unix.Close(fd)
		for _, c := range commands {
			value := [2]uint32{c, 0}
			if on {
				value[1] = 1
			}
			var req struct {
				name [16]byte
				data unsafe.Pointer
				_    [16]byte
			}
			copy(req.name[:], name)
			req.data = unsafe.Pointer(&value)
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 && (on || e != unix.EOPNOTSUPP) {
				s.t.Errorf("%s: ethtool %#x: %v", name, c, e)
			}
		}
	})
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// conn reads and writes frames: a TAP's other end, or a packet socket on an interface.
type conn struct {
	t    testing.TB
	f    *os.File
	vnet int // bytes of vnet header before each frame
}

const (
	tapPlain   = 0                                                                                      // no vnet header
	tapOffload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | 0x20 | 0x40 // as a VMM has it
)

// tap makes a TAP as a VMM does.
func (s *space) tap(name string, mac string, offload int) *conn {
	s.t.Helper()
	c := &conn{t: s.t}
	s.do(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			s.t.Error(err)
			return
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			s.t.Error(err)
			return
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if offload != tapPlain {
			flags |= unix.IFF_VNET_HDR
			c.vnet = 10
		}
		req.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			s.t.Error(err)
			return
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload); err != nil {
			s.t.Error(err)
			return
		}
		c.f = os.NewFile(uintptr(fd), name)
	})
	if c.f == nil {
		s.t.FailNow()
	}
	s.t.Cleanup(func() { c.f.Close() })
	s.quiet(name)
	hw, err := net.ParseMAC(mac)
	s.must(err)
	s.must(s.nl.LinkSetHardwareAddr(s.link(name), hw))
	s.must(s.nl.LinkSetTxQLen(s.link(name), 20_000)) // the reader of a test may be kept waiting
	s.must(s.nl.LinkSetUp(s.link(name)))
	return c
}

// packet opens a packet socket on an interface.
func (s *space) packet(name string) *conn {
	s.t.Helper()
	c := &conn{t: s.t}
	index := s.index(name)
	s.do(func() {
		proto := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			s.t.Error(err)
			return
		}
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(proto), Ifindex: index}); err != nil {
			s.t.Error(err)
			return
		}
		c.f = os.NewFile(uintptr(fd), name)
	})
	if c.f == nil {
		s.t.FailNow()
	}
	s.t.Cleanup(func() { c.f.Close() })
	return c
}

// send writes a frame.
func (c *conn) send(frame []byte) {
	c.t.Helper()
	if _, err := c.f.Write(append(make([]byte, c.vnet), frame...)); err != nil {
		c.t.Fatal(err)
	}
}

// recv reads the next IP frame; it gives up after a time and returns nil.
func (c *conn) recv(patience time.Duration) []byte {
	c.t.Helper()
	_, f := c.recvVnet(patience)
	return f
}

func (c *conn) recvVnet(patience time.Duration) (vnet, frame []byte) {
	c.t.Helper()
	b := make([]byte, 70000)
	if err := c.f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	for {
		n, err := c.f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if n < c.vnet+14 {
			continue
		}
		frame := b[c.vnet:n]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case 0x0800:
		case 0x86dd:
			if frame[14+6] == 58 && frame[14+40] >= 130 && frame[14+40] <= 143 || frame[14+6] == 0 {
				continue // the stack's own Neighbor Discovery and MLD
			}
		default:
			continue
		}
		return b[:c.vnet], frame
	}
}

const soon = 2 * time.Second

// want reads the next IP frame, which must come.
func (c *conn) want() []byte {
	c.t.Helper()
	f := c.recv(soon)
	if f == nil {
		c.t.Fatalf("%s: no frame came", c.f.Name())
	}
	return f
}

// none says that no frame may come.
func (c *conn) none() {
	c.t.Helper()
	if f := c.recv(30 * time.Millisecond); f != nil {
		c.t.Fatalf("%s: a frame came:\n%s", c.f.Name(), show(f))
	}
}

func show(frame []byte) string {
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).String()
}

var (
	gatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	vmMAC      = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x10}
	peerMAC    = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x99} // the next hop of the underlay
)

// Addresses of the tests, in both families.
type pair struct{ v4, v6 netip.Addr }

func (p pair) of(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

func addrs(a, b string) pair { return pair{netip.MustParseAddr(a), netip.MustParseAddr(b)} }

var (
	vmEID    = addrs("198.51.100.10", "2001:db8:e1d:1::10")
	farEID   = addrs("198.51.100.20", "2001:db8:e1d:1::20")
	outEID   = addrs("192.0.2.10", "2001:db8:c::10")
	selfRLOC = addrs("100.64.1.2", "2001:db8:100:1::2")
	farRLOC  = addrs("100.64.2.2", "2001:db8:100:2::2")
	outRLOC  = addrs("203.0.113.9", "2001:db8:f0f0::9")
	own      = []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8:e1d::/48")}
	cloud    = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("2001:db8:100::/40")}
)

func mustEID(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func host(a netip.Addr) lisp.EID { return lisp.HostEID(0, a) }

// lab is an xTR with one VM's TAP and one underlay interface, whose other end the test holds.
type lab struct {
	*space
	d     *DataPlane
	cfg   Config
	vm    *conn
	wire  *conn
	far   *space
	up    *conn // what Go gets through lisp0
	vmIf  int
	port  uint16
	under int
}

type option func(*Config, *Port)

func asAnchor(c *Config, _ *Port)     { c.Anchor = true }
func withDecap(how string) option     { return func(c *Config, _ *Port) { c.Decap = how } }
func withCapacity(n int) option       { return func(c *Config, _ *Port) { c.Capacity = n } }
func inInstance(iid uint32) option    { return func(_ *Config, p *Port) { p.IID = iid } }
func throughStack(_ *Config, p *Port) { p.Stack = true }
func bpffs(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() {
		if err := removePins(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newLab(t testing.TB, opts ...option) *lab {
	t.Helper()
	l := &lab{space: newSpace(t), far: newSpace(t)}
	veth(l.space, "u0", l.far, "u1")
	l.must(l.far.nl.LinkSetHardwareAddr(l.far.link("u1"), peerMAC))
	l.addr("u0", "100.64.1.2/24")
	l.addr("u0", "2001:db8:100:1::2/64")
	l.neigh("u0", "100.64.1.1", peerMAC)
	l.neigh("u0", "2001:db8:100:1::1", peerMAC)
	l.route("0.0.0.0/0", "100.64.1.1", "u0")
	l.route("::/0", "2001:db8:100:1::1", "u0")
	l.vm = l.tap("tap0", gatewayMAC.String(), tapOffload)
	l.wire = l.far.packet("u1")
	l.vmIf, l.under = l.index("tap0"), l.index("u0")
	port := Port{}
	l.cfg = Config{
		PinDir: bpffs(t), Self: []netip.Addr{selfRLOC.v4, selfRLOC.v6}, AllowedRLOCs: cloud, Own: own, Decap: "tc",
	}
	for _, o := range opts {
		o(&l.cfg, &port)
	}
	l.open()
	l.must(l.attach(port))
	return l
}

func (l *lab) open() {
	l.t.Helper()
	var err error
	l.do(func() { l.d, err = Open(l.cfg, slog.New(slog.NewTextHandler(testWriter{l.t}, nil))) })
	l.must(err)
	d := l.d
	l.t.Cleanup(func() { d.Close() })
	l.up = &conn{t: l.t, f: l.d.Queues()[0], vnet: 10}
}

func (l *lab) attach(port Port) (err error) {
	l.do(func() {
		if l.port, err = l.d.AttachVM(l.vmIf, port); err == nil {
			err = l.d.AttachUnderlay(l.under)
		}
	})
	return err
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

func (l *lab) set(routes ...fib.Route) {
	l.t.Helper()
	l.must(l.d.Set(context.Background(), routes...))
}

func (l *lab) del(eids ...lisp.EID) {
	l.t.Helper()
	l.must(l.d.Del(context.Background(), eids...))
}

// home is the route of an EID of the VM.
func (l *lab) home(a netip.Addr) fib.Route {
	return fib.Route{EID: host(a), Do: fib.Deliver, If: l.vmIf, MAC: vmMAC}
}

func to(e lisp.EID, rlocs ...netip.Addr) fib.Route {
	r := fib.Route{EID: e, Do: fib.Encap}
	for _, a := range rlocs {
		r.Locators = append(r.Locators, lisp.Locator{RLOC: a, Priority: 1, Weight: 100, Reachable: true})
	}
	return r
}

// bothHome sets the routes of the VM and of the far EID in both families.
func (l *lab) bothHome(v6outer bool) {
	l.t.Helper()
	l.set(l.home(vmEID.v4), l.home(vmEID.v6), to(host(farEID.v4), farRLOC.of(v6outer)), to(host(farEID.v6), farRLOC.of(v6outer)))
}

// drops waits for a drop counter, as what counts may still be at work.
func (l *lab) wantDrops(why string, n uint64) {
	l.t.Helper()
	var got uint64
	for range 200 {
		if got = l.d.Drops()[why]; got >= n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got != n {
		l.t.Fatalf("%d packets were dropped as %s, want %d; all: %v", got, why, n, l.d.Drops())
	}
}

// header is what the tests want of an IP header.
type header struct {
	src, dst netip.Addr
	ttl, tos uint8
}

// udp builds an Ethernet frame with a UDP packet.
func udp(srcMAC, dstMAC net.HardwareAddr, h header, sport, dport uint16, payload []byte) []byte {
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	return frame(srcMAC, dstMAC, h, layers.IPProtocolUDP, u, gopacket.Payload(payload))
}

type transport interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}

func frame(srcMAC, dstMAC net.HardwareAddr, h header, proto layers.IPProtocol, l4 transport, rest ...gopacket.SerializableLayer) []byte {
	ls := []gopacket.SerializableLayer{}
	eth := &layers.Ethernet{SrcMAC: srcMAC, DstMAC: dstMAC, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.NetworkLayer
	if h.ttl == 0 {
		h.ttl = 64
	}
	if h.src.Is4() {
		i := &layers.IPv4{
			Version: 4, TTL: h.ttl, TOS: h.tos, Protocol: proto, SrcIP: h.src.AsSlice(), DstIP: h.dst.AsSlice(), Flags: layers.IPv4DontFragment,
		}
		ip = i
		ls = append(ls, eth, i)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		i := &layers.IPv6{
			Version: 6, HopLimit: h.ttl, TrafficClass: h.tos, NextHeader: proto, SrcIP: h.src.AsSlice(), DstIP: h.dst.AsSlice(), FlowLabel: 0x12345,
		}
		ip = i
		ls = append(ls, eth, i)
	}
	if err := l4.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err)
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(append(ls, l4), rest...)...)
	if err != nil {
		panic(err)
	}
	f := append([]byte(nil), b.Bytes()...)
	// Without the padding of the wire.
	if h.src.Is4() {
		return f[:14+int(binary.BigEndian.Uint16(f[16:]))]
	}
	return f[:14+40+int(binary.BigEndian.Uint16(f[18:]))]
}

// lispFrame puts an inner packet (a frame without its Ethernet header) behind outer headers.
func lispFrame(h header, sport uint16, iid uint32, inner []byte) []byte {
	data := make([]byte, 8, 8+len(inner))
	if iid != 0 {
		data[0] = 0x08
		binary.BigEndian.PutUint32(data[4:], iid<<8)
	}
	f := udp(peerMAC, make(net.HardwareAddr, 6), h, sport, 4341, append(data, inner...))
	// Zero checksum.
	at := 14 + 20
	if h.src.Is6() {
		at = 14 + 40
	}
	f[at+6], f[at+7] = 0, 0
	return f
}

// sendWire gives a frame to the underlay interface.
func (l *lab) sendWire(f []byte) {
	l.t.Helper()
	copy(f, l.link("u0").Attrs().HardwareAddr)
	l.wire.send(f)
}

var _ io.Writer = testWriter{}

func name(v6inner, v6outer bool) string {
	f := map[bool]string{false: "IPv4", true: "IPv6"}
	return fmt.Sprintf("%s in %s", f[v6inner], f[v6outer])
}
