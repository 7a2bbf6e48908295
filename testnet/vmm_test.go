package testnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	vmMAC, _  = net.ParseMAC("52:54:00:00:00:10")
	gwMAC, _  = net.ParseMAC("02:00:5e:00:01:01")
	vm4       = netip.MustParseAddr("198.51.100.10")
	vm6       = netip.MustParseAddr("2001:db8:e1d:1::10")
	client4   = netip.MustParseAddr("192.0.2.10")
	client6   = netip.MustParseAddr("2001:db8:c::10")
	zero4     = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	zero6     = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	linkLocal = netip.MustParseAddr("fe80::1")
)

// lab is a client and two hypervisors around a router, with plain routing: who moves the VM moves its route.
type lab struct {
	client, router, guest *Host
	hv                    [2]*Host
	vm                    *VM
}

func newLab(t *testing.T) *lab {
	t.Helper()
	r := startRun(t)
	l := &lab{client: startHost(t, r, "client"), router: startHost(t, r, "router"), guest: startHost(t, r, "web"),
		hv: [2]*Host{startHost(t, r, "hv0"), startHost(t, r, "hv1")}}
	for _, h := range []*Host{l.router, l.hv[0], l.hv[1]} {
		must(t, h.ns.Sysctl("net/ipv4/ip_forward", "1"))
		must(t, h.ns.Sysctl("net/ipv6/conf/all/forwarding", "1"))
	}
	must(t, Connect(End{NS: l.client.ns, Name: "eth0", Addrs: addrs("192.0.2.10/24", "2001:db8:c::10/64")},
		End{NS: l.router.ns, Name: "client", Addrs: addrs("192.0.2.1/24", "2001:db8:c::1/64")}))
	must(t, l.client.ns.AddRoute(zero4, netip.MustParseAddr("192.0.2.1"), ""))
	must(t, l.client.ns.AddRoute(zero6, netip.MustParseAddr("2001:db8:c::1"), ""))
	for i, h := range l.hv {
		must(t, Connect(End{NS: h.ns, Name: "eth0", Addrs: addrs(fmt.Sprintf("100.64.%d.2/24", i), fmt.Sprintf("2001:db8:100:%d::2/64", i))},
			End{NS: l.router.ns, Name: h.Name, Addrs: addrs(fmt.Sprintf("100.64.%d.1/24", i), fmt.Sprintf("2001:db8:100:%d::1/64", i))}))
		must(t, h.ns.AddRoute(zero4, netip.MustParseAddr(fmt.Sprintf("100.64.%d.1", i)), ""))
		must(t, h.ns.AddRoute(zero6, netip.MustParseAddr(fmt.Sprintf("2001:db8:100:%d::1", i)), ""))
	}
	vm, err := NewVM(l.guest.ns, VMConfig{Name: "web", MAC: vmMAC, Addrs: addrs("198.51.100.10/24", "2001:db8:e1d:1::10/64"),
		Gateway4: netip.MustParseAddr("198.51.100.1"), Gateway6: linkLocal})
	must(t, err)
	l.vm = vm
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		if vm.Lost() != 0 {
			t.Errorf("the VMM lost %d frames", vm.Lost())
		}
	})
	return l
}

// open opens the VM's tap on a hypervisor and makes it the VM's gateway there.
func (l *lab) open(t *testing.T, i int) {
	t.Helper()
	must(t, l.vm.Open(l.hv[i].ns))
	must(t, l.hv[i].ns.Do(func() error {
		link, err := netlink.LinkByName(l.vm.Tap)
		if err != nil {
			return err
		}
		must(t, netlink.LinkSetHardwareAddr(link, gwMAC))
		for _, a := range addrs("198.51.100.1/24", "2001:db8:e1d:1::1/64", "fe80::1/64") {
			must(t, addAddr(link, a))
		}
		for _, a := range []netip.Addr{vm4, vm6} {
			must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: vmMAC, State: netlink.NUD_PERMANENT}))
		}
		return nil
	}))
}

// route points the router at a hypervisor.
func (l *lab) route(t *testing.T, i int) {
	t.Helper()
	must(t, l.router.ns.AddRoute(netip.PrefixFrom(vm4, 32), netip.MustParseAddr(fmt.Sprintf("100.64.%d.2", i)), ""))
	must(t, l.router.ns.AddRoute(netip.PrefixFrom(vm6, 128), netip.MustParseAddr(fmt.Sprintf("2001:db8:100:%d::2", i)), ""))
}

// read is how many packets the VMM has read from its tap on a hypervisor, and dropped is how many it overflowed by.
func (l *lab) read(t *testing.T, i int) (read, dropped uint64) {
	t.Helper()
	must(t, l.hv[i].ns.Do(func() error {
		link, err := netlink.LinkByName(l.vm.Tap)
		if err == nil {
			read, dropped = link.Attrs().Statistics.TxPackets, link.Attrs().Statistics.TxDropped
		}
		return err
	}))
	return read, dropped
}

func (l *lab) flows(t *testing.T, rate int) *Flows {
	t.Helper()
	f := new(Flows)
	f.AddUDP(UDPFlow{Name: "udp4-internet-to-vm", Reverse: "udp4-vm-to-internet", A: l.client.ns, B: l.guest.ns, AddrA: client4, AddrB: vm4, Port: 7000, Rate: rate})
	f.AddUDP(UDPFlow{Name: "udp6-internet-to-vm", Reverse: "udp6-vm-to-internet", A: l.client.ns, B: l.guest.ns, AddrA: client6, AddrB: vm6, Port: 7000, Rate: rate})
	f.AddPing(PingFlow{Name: "ping4", From: l.client.ns, Src: client4, Dst: vm4, Rate: 50})
	f.AddPing(PingFlow{Name: "ping6", From: l.client.ns, Src: client6, Dst: vm6, Rate: 50})
	f.AddTCP(TCPFlow{Name: "tcp6-internet-to-vm", Reverse: "tcp6-vm-to-internet", Client: l.client.ns, Server: l.guest.ns, Addr: vm6, Port: 7001, BitRate: 5e6, Seed: 1})
	t.Cleanup(func() { must(t, f.Close()) })
	return f
}

func wantNothingLost(t *testing.T, reports []FlowReport) {
	t.Helper()
	for _, r := range reports {
		if !r.OK() || r.SendErrors > 0 {
			t.Errorf("%+v", r)
		}
	}
}

func (l *lab) pingBoth(t *testing.T) {
	t.Helper()
	for _, c := range [][2]netip.Addr{{client4, vm4}, {client6, vm6}} {
		if _, err := Ping(within(t, 5*time.Second), l.client.ns, c[0], c[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// A blackout without a move: what the tap queued is delivered, to the packet, and the gap is the blackout.
func TestPausedVMLosesNothing(t *testing.T) {
	l := newLab(t)
	l.open(t, 0)
	l.route(t, 0)
	if _, err := l.vm.Resume(l.hv[0].ns, true); err != nil {
		t.Fatal(err)
	}
	l.pingBoth(t)
	f := l.flows(t, 500)
	must(t, f.Start(t.Context()))
	var windows []Window
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		from := l.vm.Pause()
		read, _ := l.read(t, 0)
		time.Sleep(200 * time.Millisecond)
		if again, dropped := l.read(t, 0); again != read || dropped != 0 {
			t.Errorf("paused, and %d packets were read (%d dropped)", again-read, dropped)
		}
		if _, err := l.vm.Resume(l.hv[0].ns, false); err != nil {
			t.Fatal(err)
		}
		windows = append(windows, Window{from, time.Now()})
	}
	time.Sleep(300 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	reports := f.Report(windows)
	wantNothingLost(t, reports)
	for _, r := range reports {
		if r.MaxGapMS < 150 {
			t.Errorf("%s: a blackout of 200 ms is not seen: %v", r.Name, r.Gaps)
		}
		if len(r.Gaps) != 3 || r.GapMaxMS != slices.Max(r.Gaps) {
			t.Errorf("%s: gaps %v, longest %v", r.Name, r.Gaps, r.GapMaxMS)
		}
	}
}

// The VM moves between hypervisors joined by plain routing. The route moves first: what comes early waits in the
// new tap, what is late is read from the old one before the pause. So nothing may be lost.
func TestMoveByPlainRoutingLosesNothing(t *testing.T) {
	l := newLab(t)
	l.open(t, 0)
	l.route(t, 0)
	if _, err := l.vm.Resume(l.hv[0].ns, true); err != nil {
		t.Fatal(err)
	}
	l.pingBoth(t)
	f := l.flows(t, 500)
	must(t, f.Start(t.Context()))
	from := 0
	for range 3 {
		to := 1 - from
		time.Sleep(200 * time.Millisecond)
		l.open(t, to)
		l.route(t, to)
		time.Sleep(20 * time.Millisecond) // the last packets on the old way
		l.vm.Pause()
		if hv, ok := l.vm.Running(); ok {
			t.Errorf("paused, and runs on %s", hv.name)
		}
		time.Sleep(100 * time.Millisecond)
		resumed, err := l.vm.Resume(l.hv[to].ns, true)
		must(t, err)
		for deadline := time.Now().Add(5 * time.Second); l.vm.FirstPacket().IsZero() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if d := l.vm.FirstPacket().Sub(resumed); d < 0 || d > time.Second {
			t.Errorf("first packet %v after the VM ran", d)
		}
		if err := l.vm.Remove(l.hv[to].ns); err == nil {
			t.Error("removed the tap of a VM that runs")
		}
		must(t, l.vm.Remove(l.hv[from].ns))
		if l.vm.IsOpen(l.hv[from].ns) {
			t.Error("the old tap is still there")
		}
		from = to
	}
	time.Sleep(200 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	wantNothingLost(t, f.Report(nil))
}

// Control: a move as plain routing does it, pause first and route afterwards, loses what the old tap holds. A
// counter that saw nothing here would prove nothing elsewhere.
func TestFlowsSeeWhatAnUnpreparedMoveLoses(t *testing.T) {
	l := newLab(t)
	l.open(t, 0)
	l.route(t, 0)
	if _, err := l.vm.Resume(l.hv[0].ns, true); err != nil {
		t.Fatal(err)
	}
	l.pingBoth(t)
	f := l.flows(t, 500)
	must(t, f.Start(t.Context()))
	time.Sleep(200 * time.Millisecond)
	l.open(t, 1)
	l.vm.Pause()
	time.Sleep(100 * time.Millisecond)
	l.route(t, 1)
	_, err := l.vm.Resume(l.hv[1].ns, true)
	must(t, err)
	time.Sleep(300 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	for _, r := range f.Report([]Window{}) {
		switch {
		case strings.HasPrefix(r.Name, "udp") && strings.HasSuffix(r.Name, "to-vm"):
			if r.Lost < 20 || r.Lost > 120 { // 50 in 100 ms
				t.Errorf("%s: lost %d, want about 50", r.Name, r.Lost)
			}
			if len(r.Missing) != 1 || r.Missing[0][1]-r.Missing[0][0]+1 != r.Lost {
				t.Errorf("%s: missing %v", r.Name, r.Missing)
			}
		case strings.HasPrefix(r.Name, "tcp"):
			if r.Lost != 0 || r.Intact == nil || !*r.Intact {
				t.Errorf("TCP repairs this: %+v", r)
			}
		case strings.HasSuffix(r.Name, "vm-to-internet"):
			if r.Lost != 0 {
				t.Errorf("%s: the guest's own packets wait for it: lost %d", r.Name, r.Lost)
			}
		}
	}
}

func TestAnnouncements(t *testing.T) {
	l := newLab(t)
	l.open(t, 0)
	var frames [][]byte
	var at []time.Time
	var mu sync.Mutex
	sock := sniff(t, l.hv[0].ns, l.vm.Tap, func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		frames, at = append(frames, b), append(at, time.Now())
	})
	start, err := l.vm.Resume(l.hv[0].ns, true)
	must(t, err)
	time.Sleep(950 * time.Millisecond)
	must(t, sock())
	mu.Lock()
	defer mu.Unlock()
	var rarp []time.Duration
	arp, na := 0, 0
	for i, f := range frames {
		p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
		eth := p.LinkLayer().(*layers.Ethernet)
		if !bytes.Equal(eth.SrcMAC, vmMAC) {
			continue
		}
		if binary.BigEndian.Uint16(f[12:]) == 0x8035 {
			rarp = append(rarp, at[i].Sub(start).Round(time.Millisecond))
			want := append([]byte{0, 1, 8, 0, 6, 4, 0, 3}, vmMAC...)
			if !bytes.HasPrefix(f[14:], want) || eth.DstMAC.String() != "ff:ff:ff:ff:ff:ff" || len(f) != 60 {
				t.Errorf("RARP: % x", f)
			}
		}
		if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
			if netip.AddrFrom4([4]byte(a.SourceProtAddress)) == vm4 && bytes.Equal(a.SourceProtAddress, a.DstProtAddress) {
				arp++
			}
		}
		if n, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok && n.TargetAddress.Equal(vm6.AsSlice()) {
			na++
			icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			got := icmp.Checksum
			must(t, icmp.SetNetworkLayerForChecksum(p.NetworkLayer()))
			buf := gopacket.NewSerializeBuffer()
			must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.Payload)))
			if icmp.Checksum != got {
				t.Errorf("Neighbor Advertisement: checksum %04x, want %04x", got, icmp.Checksum)
			}
		}
	}
	if len(rarp) != len(announceAt) {
		t.Fatalf("RARPs at %v, want at %v", rarp, announceAt)
	}
	for i, d := range rarp {
		if off := d - announceAt[i]; off < -5*time.Millisecond || off > 60*time.Millisecond {
			t.Errorf("RARP %d at %v, want at %v", i, d, announceAt[i])
		}
	}
	if arp < 4 || na < 4 {
		t.Errorf("%d gratuitous ARPs, %d unsolicited Neighbor Advertisements, want 4 of each", arp, na)
	}
}

// TCP crosses the VMM as super-packets: both taps have their offloads on.
func TestTapsKeepSuperPackets(t *testing.T) {
	l := newLab(t)
	l.open(t, 0)
	l.route(t, 0)
	_, err := l.vm.Resume(l.hv[0].ns, false)
	must(t, err)
	l.pingBoth(t)
	var mu sync.Mutex
	longest := map[bool]int{}
	stop := sniff(t, l.hv[0].ns, l.vm.Tap, func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		fromVM := bytes.Equal(b[6:12], vmMAC)
		longest[fromVM] = max(longest[fromVM], len(b))
	})
	f := new(Flows)
	f.AddTCP(TCPFlow{Name: "tcp6-internet-to-vm", Reverse: "tcp6-vm-to-internet", Client: l.client.ns, Server: l.guest.ns, Addr: vm6, Port: 7001, BitRate: 60e6, Seed: 1})
	must(t, f.Start(t.Context()))
	time.Sleep(500 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	must(t, stop())
	wantNothingLost(t, f.Report(nil))
	mu.Lock()
	defer mu.Unlock()
	if longest[true] < 4000 || longest[false] < 4000 {
		t.Errorf("longest frames from and to the VM: %d, %d bytes: they were cut up", longest[true], longest[false])
	}
}

func TestVMErrors(t *testing.T) {
	l := newLab(t)
	if _, err := l.vm.Resume(l.hv[0].ns, true); err == nil {
		t.Error("resumed without a tap")
	}
	l.open(t, 0)
	if err := l.vm.Open(l.hv[0].ns); err == nil {
		t.Error("opened twice")
	}
	_, err := l.vm.Resume(l.hv[0].ns, false)
	must(t, err)
	if _, err := l.vm.Resume(l.hv[0].ns, false); err == nil {
		t.Error("resumed twice")
	}
	must(t, l.vm.Remove(l.hv[1].ns)) // not there: nothing to do
}

// sniff calls f for every frame on an interface, in both directions, until the returned function is called.
func sniff(t *testing.T, n *Namespace, dev string, f func([]byte)) (stop func() error) {
	t.Helper()
	s, err := openPacketSocket(n, dev)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.receive(func(b []byte, _ *unix.SockaddrLinklayer, _ int64) { f(bytes.Clone(b)) })
	}()
	return func() error {
		err := s.close()
		<-done
		return err
	}
}
