package main

import (
	"bytes"
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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/map646"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// A client - a router - a D-ETR - an xTR - a VM, in five namespaces: data planes and slow paths, and no control plane.

const (
	labClient4, labClient6 = "203.0.113.2", "2001:db8:f::2"
	labRouter4             = "192.0.2.1" // towards the D-ETR
	labGateway4            = "192.0.2.2" // of the D-ETR
	labGateway6            = "2001:db8:100::2"
	labVM                  = "2001:db8:e1d::a"
	labVMGateway           = "2001:db8:e1d::1"
	labService4            = "198.51.100.10"
	labService6            = "2001:db8:5e::a"
	labICMPSource          = "198.51.100.254"
	labDETR, labXTR        = "100.64.1.2", "100.64.1.3"
	labMTU                 = 1444
)

var (
	labPool   = netip.MustParsePrefix("2001:db8:64::/96")
	labVMMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	labGWMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	labClient = netip.MustParseAddr("2001:db8:64::cb00:7102") // as the VM sees it
)

type translationLab struct {
	t                             *testing.T
	client, router, detr, xtr, vm *testnet.Namespace
	anchor, host                  *kernel.DataPlane
	anchorSlow, hostSlow          *slowpath.SlowPath
	vmIf                          int
}

func newTranslationLab(t *testing.T) *translationLab {
	l := &translationLab{t: t}
	for name, p := range map[string]**testnet.Namespace{"cl": &l.client, "rt": &l.router, "de": &l.detr, "xt": &l.xtr, "vm": &l.vm} {
		ns, err := testnet.NewNamespace(fmt.Sprintf("tabi-646-%d-%s", os.Getpid(), name))
		l.must(err)
		*p = ns
		t.Cleanup(func() { l.must(errors.Join(ns.Close(), testnet.RemoveNamespace(ns.Name()))) })
	}
	for _, e := range [][2]testnet.End{
		{l.end(l.client, "eth0", nil, labClient4+"/24", labClient6+"/64"), l.end(l.router, "in", nil, "203.0.113.1/24", "2001:db8:f::1/64")},
		{l.end(l.router, "out", nil, labRouter4+"/24", "2001:db8:65::1/64"), l.end(l.detr, "up0", nil, labGateway4+"/24", "2001:db8:65::2/64")},
		{l.end(l.detr, "u0", nil, labDETR+"/24", labGateway6+"/64"), l.end(l.xtr, "u0", nil, labXTR+"/24", "2001:db8:100::3/64")},
		{l.end(l.xtr, "vm0", labGWMAC, labVMGateway+"/64"), l.end(l.vm, "eth0", labVMMAC, labVM+"/64")},
	} {
		if e[1].NS == l.vm {
			e[1].MTU = labMTU // as the VM's gateway says in its Router Advertisements
		}
		l.must(testnet.Connect(e[0], e[1]))
	}
	any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	at := netip.MustParseAddr
	for _, ns := range []*testnet.Namespace{l.router, l.detr, l.xtr} {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			l.must(ns.Sysctl(key, "1"))
		}
		l.must(ns.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
	}
	l.must(errors.Join(
		l.client.AddRoute(any4, at("203.0.113.1"), "eth0"), l.client.AddRoute(any6, at("2001:db8:f::1"), "eth0"),
		l.router.AddRoute(any4, at(labGateway4), "out"), l.router.AddRoute(any6, at("2001:db8:65::2"), "out"),
		l.detr.AddRoute(any4, at(labRouter4), "up0"), l.detr.AddRoute(any6, at("2001:db8:65::1"), "up0"),
		l.vm.AddRoute(any6, at(labVMGateway), "eth0")))
	l.openAnchor()
	l.openHost()
	return l
}

func (l *translationLab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *translationLab) end(ns *testnet.Namespace, name string, mac net.HardwareAddr, addrs ...string) testnet.End {
	e := testnet.End{NS: ns, Name: name, MAC: mac}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
	}
	return e
}

func (l *translationLab) index(ns *testnet.Namespace, name string) (index int) {
	l.t.Helper()
	l.must(ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			index = link.Attrs().Index
		}
		return err
	}))
	return index
}

func labEID(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func labRoute(eid, rloc string) fib.Route {
	return fib.Route{EID: labEID(eid), Do: fib.Encap, Transit: true,
		Locators: []lisp.Locator{{RLOC: netip.MustParseAddr(rloc), Priority: 1, Weight: 100, Reachable: true}}}
}

// plane opens a data plane with its slow path.
func (l *translationLab) plane(ns *testnet.Namespace, k kernel.Config, s slowpath.Config) (*kernel.DataPlane, *slowpath.SlowPath) {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	k.PinDir = filepath.Join(l.t.TempDir(), "bpf")
	k.AllowedRLOCs = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")}
	k.MTU, s.MTU = labMTU, labMTU
	var d *kernel.DataPlane
	l.must(ns.Do(func() (err error) {
		d, err = kernel.Open(k, log)
		return err
	}))
	l.t.Cleanup(func() { l.must(ns.Do(d.Remove)) })
	p, err := slowpath.New(s, d.Queues(), d, log)
	l.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		l.must(<-ended)
	})
	l.must(ns.Do(func() error {
		link, err := netlink.LinkByName("u0")
		if err != nil {
			return err
		}
		return d.AttachUnderlay(link.Attrs().Index)
	}))
	return d, p
}

func (l *translationLab) openAnchor() {
	own := []netip.Prefix{netip.MustParsePrefix("2001:db8:e1d::/48")}
	services := []fib.Service{
		{Outside: netip.MustParsePrefix(labService4 + "/32"), Inside: netip.MustParsePrefix(labVM + "/128")},
		{Outside: netip.MustParsePrefix(labService6 + "/128"), Inside: netip.MustParsePrefix(labVM + "/128")},
	}
	t, err := map646.New(map646.Config{Pool: labPool, Own: own, ICMPSource: netip.MustParsePrefix(labICMPSource + "/32"),
		Addr4: netip.MustParseAddr(labGateway4), Addr6: netip.MustParseAddr(labGateway6), LowestMTU6: labMTU,
		Explicit: []map646.Rule{{V4: netip.MustParsePrefix(labGateway4 + "/32"), V6: netip.MustParsePrefix(labGateway6 + "/128")}}})
	l.must(err)
	l.must(t.SetServices(l.t.Context(), services...))
	l.anchor, l.anchorSlow = l.plane(l.detr, kernel.Config{Self: []netip.Addr{netip.MustParseAddr(labDETR)}, Anchor: true, Pool: labPool,
		Own: []lisp.EID{labEID("2001:db8:e1d::/48"), labEID("198.51.100.0/24"), labEID("2001:db8:5e::/48")}},
		slowpath.Config{Translator: t, GatewayAddr4: netip.MustParseAddr(labGateway4), GatewayAddr6: netip.MustParseAddr(labGateway6),
			Known: func(e lisp.EID) bool { return own[0].Contains(e.Prefix.Addr()) }})
	up := l.index(l.detr, "up0")
	l.must(l.detr.Do(func() error { return l.anchor.AttachUpstream(up) }))
	l.must(l.anchor.SetServices(l.t.Context(), services...))
	l.must(l.anchor.Set(l.t.Context(), labRoute(labVM, labXTR),
		fib.Route{EID: labEID("2001:db8:e1d::/48"), Do: fib.Drop}, fib.Route{EID: labEID("198.51.100.0/24"), Do: fib.Drop}, fib.Route{EID: labEID("2001:db8:5e::/48"), Do: fib.Drop},
		fib.Route{EID: labEID("0.0.0.0/0"), Do: fib.Native}, fib.Route{EID: labEID("::/0"), Do: fib.Native}))
}

func (l *translationLab) openHost() {
	l.host, l.hostSlow = l.plane(l.xtr, kernel.Config{Self: []netip.Addr{netip.MustParseAddr(labXTR)}, Own: []lisp.EID{labEID("2001:db8:e1d::/48")}},
		slowpath.Config{GatewayAddr6: netip.MustParseAddr(labVMGateway)})
	l.vmIf = l.index(l.xtr, "vm0")
	l.must(l.xtr.Do(func() error {
		_, err := l.host.AttachVM(l.vmIf, kernel.Port{})
		return err
	}))
	l.must(l.host.Set(l.t.Context(), fib.Route{EID: labEID(labVM), Do: fib.Deliver, If: l.vmIf, MAC: labVMMAC}, labRoute("::/0", labDETR)))
}

// probe is an echo request.
type probe struct {
	to      string
	size    int    // bytes of data
	ttl     int    // 0 = the stack's
	df      bool   // IPv4: not to be fragmented; IPv6: not by the sender either
	options []byte // IPv4
}

// answer is what came back.
type answer struct {
	from      string
	typ, code byte
	mtu       int // of an error
	data      int // bytes of an echo
}

func (a answer) String() string {
	return fmt.Sprintf("type %d code %d from %s, MTU %d, %d bytes", a.typ, a.code, a.from, a.mtu, a.data)
}

// ping sends an echo request from a namespace and returns the first answer to it.
func (l *translationLab) ping(ns *testnet.Namespace, p probe) (answer, error) {
	to := netip.MustParseAddr(p.to)
	var c net.PacketConn
	err := ns.Do(func() (err error) {
		network := "ip4:icmp"
		if to.Is6() {
			network = "ip6:ipv6-icmp"
		}
		c, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if err := p.set(c.(*net.IPConn), to.Is6()); err != nil {
		return answer{}, err
	}
	request := make([]byte, 8+p.size)
	request[0] = 8
	if to.Is6() {
		request[0] = 128 // the stack computes the checksum
	}
	id := uint16(os.Getpid())
	seq := uint16(time.Now().UnixNano())
	binary.BigEndian.PutUint16(request[4:], id)
	binary.BigEndian.PutUint16(request[6:], seq)
	for i := range p.size {
		request[8+i] = byte(i*7 + i>>8)
	}
	if to.Is4() {
		var sum uint32
		for i := 0; i < len(request); i += 2 {
			w := uint32(request[i]) << 8
			if i+1 < len(request) {
				w |= uint32(request[i+1])
			}
			sum += w
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(request[2:], ^uint16(sum))
	}
	if _, err := c.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return answer{}, err
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 70000)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return answer{}, err
		}
		if a, ok := readAnswer(b[:n], from.String(), to, id, seq, request[8:]); ok {
			return a, nil
		}
	}
}

func (p probe) set(c *net.IPConn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		set := func(level, opt, v int) { errs = append(errs, unix.SetsockoptInt(int(fd), level, opt, v)) }
		switch {
		case v6:
			if p.ttl > 0 {
				set(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, p.ttl)
			}
			set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_WANT)
			if p.df {
				set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
				set(unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
			}
		default:
			if p.ttl > 0 {
				set(unix.IPPROTO_IP, unix.IP_TTL, p.ttl)
			}
			how := unix.IP_PMTUDISC_DONT
			if p.df {
				how = unix.IP_PMTUDISC_PROBE
			}
			set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
			if len(p.options) > 0 {
				errs = append(errs, unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, string(p.options)))
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

// readAnswer reads an ICMP message that answers the echo request with this identifier and number. An error must be about
// what was sent: to where it was sent.
func readAnswer(b []byte, from string, to netip.Addr, id, seq uint16, data []byte) (a answer, ok bool) {
	v6 := to.Is6()
	if len(b) < 8 {
		return a, false
	}
	a = answer{from: from, typ: b[0], code: b[1]}
	if v6 && b[0] == 129 || !v6 && b[0] == 0 {
		if binary.BigEndian.Uint16(b[4:]) != id || binary.BigEndian.Uint16(b[6:]) != seq {
			return a, false
		}
		a.data = len(b) - 8
		return a, bytes.Equal(b[8:], data)
	}
	inner := b[8:]
	at := 40
	if v6 {
		a.mtu = int(binary.BigEndian.Uint32(b[4:]))
		if len(inner) > 48 && inner[6] == 44 {
			at = 48
		}
	} else {
		a.mtu = int(binary.BigEndian.Uint16(b[6:]))
		if len(inner) > 0 {
			at = int(inner[0]&15) * 4
		}
	}
	if a.typ != 2 && a.typ != 3 || !v6 && a.code != 4 || v6 && a.typ == 3 {
		a.mtu = 0
	}
	if len(inner) < at+8 || binary.BigEndian.Uint16(inner[at+4:]) != id || binary.BigEndian.Uint16(inner[at+6:]) != seq {
		return a, false
	}
	dst := to.AsSlice()
	if at = 16; v6 {
		at = 24
	}
	return a, bytes.Equal(inner[at:at+len(dst)], dst)
}

// want pings, and fails unless the answer is as wanted.
func (l *translationLab) want(name string, ns *testnet.Namespace, p probe, want answer) {
	l.t.Helper()
	got, err := l.ping(ns, p)
	if err != nil {
		l.t.Errorf("%s: %v\nD-ETR: %v %v\nxTR: %v %v", name, err, l.anchor.Drops(), nonZero(l.anchorSlow.Counters()), l.host.Drops(), nonZero(l.hostSlow.Counters()))
		return
	}
	if got != want {
		l.t.Errorf("%s: %v, want %v", name, got, want)
	}
}

func nonZero(m map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for k, v := range m {
		if v > 0 {
			out[k] = v
		}
	}
	return out
}

// counted fails unless a counter of the D-ETR's slow path has grown by n since before.
func (l *translationLab) counted(before map[string]uint64, name string, n uint64) {
	l.t.Helper()
	if got := l.anchorSlow.Counters()[name] - before[name]; got != n {
		l.t.Errorf("%s: %d, want %d; all: %v", name, got, n, nonZero(l.anchorSlow.Counters()))
	}
}

func TestMap646ThroughADETR(t *testing.T) {
	l := newTranslationLab(t)
	const echo4, echo6 = 0, 129
	c := l.anchorSlow.Counters()

	l.want("a ping", l.client, probe{to: labService4, size: 56}, answer{from: labService4, typ: echo4, data: 56})
	l.want("a ping to the IPv6 service address", l.client, probe{to: labService6, size: 56}, answer{from: labService6, typ: echo6, data: 56})
	l.want("a ping from the VM", l.vm, probe{to: labClient.String(), size: 56}, answer{from: labClient.String(), typ: echo6, data: 56})
	l.counted(c, "up_translate", 0)

	// Fragmented ICMP is put together, both ways: six fragments come, and go on as fragments.
	l.want("a fragmented ping", l.client, probe{to: labService4, size: 4000}, answer{from: labService4, typ: echo4, data: 4000})
	l.want("a fragmented ping from the VM", l.vm, probe{to: labClient.String(), size: 4000}, answer{from: labClient.String(), typ: echo6, data: 4000})
	l.want("a fragmented ping to the IPv6 service address", l.client, probe{to: labService6, size: 4000}, answer{from: labGateway6, typ: 2, mtu: labMTU})
	l.want("a fragmented ping to the IPv6 service address, in smaller fragments", l.client, probe{to: labService6, size: 4000}, answer{from: labService6, typ: echo6, data: 4000})
	l.want("a ping of the largest size", l.client, probe{to: labService4, size: 65000}, answer{from: labService4, typ: echo4, data: 65000})

	// Options end at the translator (RFC 7915 section 4.1); an unexpired source route does not pass.
	record := []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	l.want("a ping with options", l.client, probe{to: labService4, size: 100, options: record}, answer{from: labService4, typ: echo4, data: 100})
	if got := l.anchorSlow.Counters()["drop_translate"]; got != 0 {
		t.Errorf("%d packets were not translated: %v", got, nonZero(l.anchorSlow.Counters()))
	}

	// What a router is asked for: each hop of the way, in the family of who asks.
	l.want("the client's first hop", l.client, probe{to: labService4, size: 56, ttl: 1}, answer{from: "203.0.113.1", typ: 11})
	l.want("the client's second hop", l.client, probe{to: labService4, size: 56, ttl: 2}, answer{from: labGateway4, typ: 11})
	l.want("the client's third hop, which has no IPv4 address", l.client, probe{to: labService4, size: 56, ttl: 3}, answer{from: labICMPSource, typ: 11})
	l.want("the client's third hop, by IPv6", l.client, probe{to: labService6, size: 56, ttl: 3}, answer{from: labVMGateway, typ: 3})
	l.want("the client's goal", l.client, probe{to: labService4, size: 56, ttl: 4}, answer{from: labService4, typ: echo4, data: 56})
	l.want("the VM's first hop", l.vm, probe{to: labClient.String(), size: 56, ttl: 1}, answer{from: labVMGateway, typ: 3})
	l.want("the VM's second hop", l.vm, probe{to: labClient.String(), size: 56, ttl: 2}, answer{from: labGateway6, typ: 3})
	l.want("the VM's third hop", l.vm, probe{to: labClient.String(), size: 56, ttl: 3}, answer{from: "2001:db8:64::c000:201", typ: 3})
	l.want("the VM's goal", l.vm, probe{to: labClient.String(), size: 56, ttl: 4}, answer{from: labClient.String(), typ: echo6, data: 56})

	// Path MTU: the tunnel's, for the client in the size of IPv4; with options, which Go translates, too.
	l.want("larger than the tunnel", l.client, probe{to: labService4, size: 1472, df: true}, answer{from: labGateway4, typ: 3, code: 4, mtu: labMTU - 20})
	l.want("as large as the tunnel", l.client, probe{to: labService4, size: labMTU - 48, df: true}, answer{from: labService4, typ: echo4, data: labMTU - 48})
	l.want("larger than the tunnel, with options", l.client, probe{to: labService4, size: 1450, df: true, options: record},
		answer{from: labGateway4, typ: 3, code: 4, mtu: labMTU - 20})
	l.want("larger than the tunnel, IPv6", l.client, probe{to: labService6, size: 1450, df: true}, answer{from: labGateway6, typ: 2, mtu: labMTU})

	// The way is narrower than is known before the packet is translated: it comes up again, and its sender is told.
	narrow := labRoute(labVM, labXTR)
	narrow.MTU = 1300
	l.must(l.anchor.Set(t.Context(), narrow))
	before := l.anchorSlow.Counters()
	l.want("larger than the route, with options", l.client, probe{to: labService4, size: 1300, df: true, options: record},
		answer{from: labGateway4, typ: 3, code: 4, mtu: 1280})
	l.counted(before, "up_too_big", 1)
	l.counted(before, "icmp_too_big", 1)
	l.must(l.anchor.Set(t.Context(), labRoute(labVM, labXTR)))

	// Behind the D-ETR's router the way is narrower: that router's error is the VM's.
	for _, e := range []struct {
		ns  *testnet.Namespace
		dev string
	}{{l.client, "eth0"}, {l.router, "in"}} {
		l.must(e.ns.Do(func() error {
			link, err := netlink.LinkByName(e.dev)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(link, 1350)
		}))
	}
	l.want("larger than behind the router", l.vm, probe{to: labClient.String(), size: labMTU - 48, df: true}, answer{from: "2001:db8:64::c000:201", typ: 2, mtu: 1370})
	l.want("as large as behind the router", l.vm, probe{to: labClient.String(), size: 1370 - 48, df: true}, answer{from: labClient.String(), typ: echo6, data: 1370 - 48})
	// And below what IPv6 may be told (RFC 7915 section 5.1): without DF such packets are fragmented on their way.
	l.want("a large ping from the VM", l.vm, probe{to: labClient.String(), size: 3000}, answer{from: labClient.String(), typ: echo6, data: 3000})

	l.zeroChecksum()
	l.transfers()
	t.Logf("D-ETR: %v", nonZero(l.anchorSlow.Counters()))
	for _, name := range []string{"drop_translate_loop", "drop_no_translator", "bad_packet", "bad_offload", "icmp_untranslated", "reassembly_overlap", "reassembly_malformed"} {
		if n := l.anchorSlow.Counters()[name]; n > 0 {
			t.Errorf("%s: %d", name, n)
		}
	}
	for name, n := range l.anchor.Drops() {
		if n > 0 && !strings.HasPrefix(name, "hand") {
			t.Logf("dropped in the D-ETR's kernel: %s: %d", name, n)
		}
	}
}

// zeroChecksum sends UDP without a checksum, which IPv6 does not have (RFC 7915 section 4.5), small and fragmented.
func (l *translationLab) zeroChecksum() {
	l.t.Helper()
	server := l.listenUDP(l.vm, "udp6", "["+labVM+"]:7000", nil)
	client := l.listenUDP(l.client, "udp4", labClient4+":7001", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	})
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(labService4 + ":7000"))
	b := make([]byte, 2000)
	for _, n := range []int{5, 1200} {
		if _, err := client.WriteTo(bytes.Repeat([]byte{'z'}, n), to); err != nil {
			l.t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
		got, from, err := server.ReadFrom(b)
		if err != nil || got != n || from.String() != "["+labClient.String()+"]:7001" {
			l.t.Errorf("UDP without a checksum: %d bytes from %v, %v", got, from, err)
			continue
		}
		if _, err := server.WriteTo(b[:got], from); err != nil {
			l.t.Fatal(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
		if got, from, err = client.ReadFrom(b); err != nil || got != n || from.String() != to.String() {
			l.t.Errorf("UDP back: %d bytes from %v, %v", got, from, err)
		}
	}
	if n := l.anchorSlow.Counters()["map646_udp_no_checksum"]; n != 0 {
		l.t.Errorf("%d datagrams without a checksum were dropped", n)
	}
}

func (l *translationLab) listenUDP(ns *testnet.Namespace, network, addr string, set func(fd int) error) (c net.PacketConn) {
	l.t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			if set != nil {
				failed = set(int(fd))
			}
		})
		return errors.Join(err, failed)
	}}
	l.must(ns.Do(func() (err error) {
		c, err = lc.ListenPacket(context.Background(), network, addr)
		return err
	}))
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

// transfers moves some data by TCP in each direction, over the path whose MTU has just shrunk.
func (l *translationLab) transfers() {
	l.t.Helper()
	const total = 4 << 20
	for name, tc := range map[string]struct {
		server, client *testnet.Namespace
		listen, dial   string
	}{
		"to the service": {l.vm, l.client, "[" + labVM + "]:8000", labService4 + ":8000"},
		"from the VM":    {l.client, l.vm, labClient4 + ":8001", "[" + labClient.String() + "]:8001"},
	} {
		var ln net.Listener
		l.must(tc.server.Do(func() (err error) {
			ln, err = net.Listen("tcp", tc.listen)
			return err
		}))
		sent := make(chan error, 1)
		go func() {
			c, err := ln.Accept()
			if err == nil {
				_, err = c.Write(make([]byte, total))
				err = errors.Join(err, c.Close())
			}
			sent <- err
		}()
		var c net.Conn
		l.must(tc.client.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", tc.dial, 3*time.Second)
			return err
		}))
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		n, err := io.Copy(io.Discard, c)
		if err != nil || n != total {
			l.t.Errorf("TCP %s: %d bytes, %v; D-ETR: %v", name, n, err, nonZero(l.anchorSlow.Counters()))
		}
		_ = c.Close()
		_ = ln.Close()
		if err := <-sent; err != nil {
			l.t.Errorf("TCP %s: %v", name, err)
		}
	}
}
