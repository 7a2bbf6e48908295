package gateway

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// poke makes the namespace's kernel resolve an address.
func (n *namespace) poke(a netip.Addr) {
	n.t.Helper()
	n.do(func() error {
		zone := ""
		if a.IsLinkLocalUnicast() && a.Is6() {
			zone = "eth0"
		}
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: a.AsSlice(), Port: 9, Zone: zone})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
}

// ping sends one echo request and waits for the answer.
func (n *namespace) ping(a netip.Addr, size int) (took time.Duration) {
	n.t.Helper()
	n.do(func() error {
		network, typ, proto := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), protoICMP
		dst := &net.IPAddr{IP: a.AsSlice()}
		if a.Is6() {
			network, typ, proto = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, protoICMP6
			if a.IsLinkLocalUnicast() {
				dst.Zone = "eth0"
			}
		}
		c, err := icmp.ListenPacket(network, "")
		if err != nil {
			return err
		}
		defer c.Close()
		m := icmp.Message{Type: typ, Body: &icmp.Echo{ID: 77, Seq: 1, Data: bytes.Repeat([]byte{0xa5}, size)}}
		b, err := m.Marshal(nil)
		if err != nil {
			return err
		}
		begin := time.Now()
		if _, err := c.WriteTo(b, dst); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		buf := make([]byte, 2000)
		for {
			k, from, err := c.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("ping %v: %w", a, err)
			}
			r, err := icmp.ParseMessage(proto, buf[:k])
			if err != nil {
				return err
			}
			if e, ok := r.Body.(*icmp.Echo); ok && (r.Type == ipv4.ICMPTypeEchoReply || r.Type == ipv6.ICMPTypeEchoReply) {
				if ip, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP); ip.Unmap() != a || e.ID != 77 || len(e.Data) != size {
					return fmt.Errorf("answer from %v: %+v", from, e)
				}
				took = time.Since(begin)
				return nil
			}
		}
	})
	return took
}

// resolved checks that a guest has the gateway's MAC for an address.
func (n *namespace) resolved(a netip.Addr) {
	n.t.Helper()
	eventually(n.t, func() error {
		e := n.neighbor(a)
		if e.HardwareAddr.String() != gatewayMAC.String() || e.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY) == 0 {
			return fmt.Errorf("neighbor %v: %v state %#x", a, e.HardwareAddr, e.State)
		}
		return nil
	})
}

// The guest is a Linux kernel that knows nothing of us: it finds its gateway and its neighbors.
func TestGuestKernel(t *testing.T) {
	h := newHypervisor(t, testConfig())
	guest := newNamespace(t)
	index := h.addVeth("vm0", guest)
	if e := h.event(); e != (PortEvent{Name: "vm0", If: index, Up: true}) {
		t.Fatalf("%+v", e)
	}
	h.locals.set(guest4, index)
	h.locals.set(guest6, index)
	guest.up("eth0", "198.51.100.10/24", "2001:db8:e1d:1::10/64")
	defer func() {
		if t.Failed() {
			t.Log(h.Counters())
		}
	}()

	// Duplicate address detection finds nobody, though the gateway answers for all addresses.
	eventually(t, func() (err error) {
		guest.do(func() error {
			l, _ := netlink.LinkByName("eth0")
			addrs, e := netlink.AddrList(l, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.Flags&unix.IFA_F_DADFAILED != 0 {
					t.Fatalf("address %v is taken", a.IPNet)
				}
				if a.Flags&unix.IFA_F_TENTATIVE != 0 {
					err = fmt.Errorf("%v is tentative", a.IPNet)
				}
			}
			return e
		})
		return err
	})
	h.saw("dad", guestMAC, guest6)

	for _, a := range []netip.Addr{router4, peer4, routerLL, peer6} {
		guest.poke(a)
		guest.resolved(a)
	}
	h.saw("arp", guestMAC, guest4)
	h.saw("ns", guestMAC, guest6)

	for _, a := range []netip.Addr{router4, routerLL} {
		t.Logf("ping %v: %v", a, guest.ping(a, 56))
		guest.ping(a, 1300)
	}

	// What the Router Advertisement said.
	eventually(t, func() (err error) {
		guest.do(func() error {
			b, e := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/mtu")
			if got := strings.TrimSpace(string(b)); got != "1444" {
				err = fmt.Errorf("MTU %s", got)
			}
			routes, e2 := netlink.RouteList(nil, netlink.FAMILY_V6)
			found := false
			for _, r := range routes {
				if r.Gw.Equal(routerLL.AsSlice()) && (r.Dst == nil || r.Dst.String() == "::/0") && r.Protocol == unix.RTPROT_RA {
					found = true
				}
			}
			if !found {
				err = fmt.Errorf("no default route by RA in %v", routes)
			}
			l, _ := netlink.LinkByName("eth0")
			addrs, e3 := netlink.AddrList(l, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.IP.IsGlobalUnicast() && !a.IP.Equal(guest6.AsSlice()) {
					t.Fatalf("the guest made itself the address %v", a.IPNet)
				}
			}
			return firstError(e, e2, e3)
		})
		return err
	})

	// What the interface looks like from our side.
	h.do(func() error {
		l, err := netlink.LinkByName("vm0")
		if err != nil {
			return err
		}
		if l.Attrs().HardwareAddr.String() != gatewayMAC.String() {
			return fmt.Errorf("MAC %v", l.Attrs().HardwareAddr)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err == nil && len(addrs) != 0 {
			err = fmt.Errorf("addresses %v", addrs)
		}
		return err
	})
	if c := h.Counters(); c["setup_errors"] != 0 || c["send_errors"] != 0 || c["read_errors"] != 0 || c["bad_checksum"] != 0 {
		t.Fatal(c)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// A guest must not take the gateway's own address.
func TestGuestCannotTakeTheGatewaysAddress(t *testing.T) {
	h := newHypervisor(t, testConfig())
	guest := newNamespace(t)
	h.addVeth("vm0", guest)
	h.event()
	guest.up("eth0", "fe80::1/64", "198.51.100.10/24")
	eventually(t, func() (err error) {
		guest.do(func() error {
			l, _ := netlink.LinkByName("eth0")
			addrs, e := netlink.AddrList(l, netlink.FAMILY_V6)
			err = fmt.Errorf("not refused: %v", addrs)
			for _, a := range addrs {
				if a.IP.Equal(routerLL.AsSlice()) && a.Flags&unix.IFA_F_DADFAILED != 0 {
					err = nil
				}
			}
			return e
		})
		return err
	})
}

// The kernel of the hypervisor keeps quiet on the interface, for addresses of its own, too.
func TestKernelDoesNotAnswer(t *testing.T) {
	h := newHypervisor(t, testConfig())
	guest := newNamespace(t)
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		h.sysctl(s, "1") // as a hypervisor has it
	}
	h.sysctl("ipv4/conf/default/proxy_arp", "1")
	h.sysctl("ipv6/conf/default/proxy_ndp", "1")
	h.up("lo", "198.51.100.77/32", "2001:db8:e1d:1::77/128")
	own4, own6 := netip.MustParseAddr("198.51.100.77"), netip.MustParseAddr("2001:db8:e1d:1::77")
	index := h.addVeth("vm0", guest)
	h.event()
	for _, a := range []netip.Addr{own4, own6} {
		h.locals.set(a, index) // so the gateway does not answer
	}
	guest.sysctl("ipv6/conf/eth0/accept_dad", "0")
	guest.up("eth0", "198.51.100.10/24", "2001:db8:e1d:1::10/64")
	guest.poke(peer4)
	guest.resolved(peer4)
	guest.poke(peer6)
	guest.resolved(peer6)
	guest.poke(own4)
	guest.poke(own6)
	h.count("quiet_own_address", 4) // two of each: the guest asks again
	for _, a := range []netip.Addr{own4, own6} {
		if e := guest.neighbor(a); len(e.HardwareAddr) != 0 {
			t.Errorf("%v was answered: %v", a, e.HardwareAddr)
		}
	}
}

// Wherever a guest comes from, it believes the right gateway at once.
func TestAnnouncementsCorrectTheGuest(t *testing.T) {
	h := newHypervisor(t, testConfig())
	guest := newNamespace(t)
	index := h.addVeth("vm0", guest)
	h.event()
	guest.sysctl("ipv6/conf/eth0/accept_dad", "0")
	guest.up("eth0", "198.51.100.10/24", "2001:db8:e1d:1::10/64")
	wrong := net.HardwareAddr{2, 0, 0, 0, 0xba, 0xd0}
	spoil := func() {
		h.settled("announced") // what the new interface brought about corrects, too
		guest.do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, a := range []netip.Addr{router4, routerLL} {
				err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: wrong, State: netlink.NUD_REACHABLE})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if e := guest.neighbor(router4); e.HardwareAddr.String() != wrong.String() {
			t.Fatalf("not spoiled: %v", e)
		}
	}
	for name, correct := range map[string]func(){
		"asked for": func() { h.Announce(index) },
		"RARP":      func() { guest.inject(rarpFrame(guestMAC)) },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			correct()
			guest.resolved(router4)
			guest.resolved(routerLL)
		})
	}
	h.saw("rarp", guestMAC, netip.Addr{})
	t.Run("carrier", func(t *testing.T) {
		guest.do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				err = netlink.LinkSetDown(l)
			}
			return err
		})
		time.Sleep(200 * time.Millisecond) // of what the kernel tells about this
		before := h.Counters()["announced"]
		guest.up("eth0")
		h.count("announced", before+2)
	})
}

// inject sends a frame out of eth0.
func (n *namespace) inject(frame []byte) {
	n.t.Helper()
	n.do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
	})
}

func rarpFrame(m net.HardwareAddr) []byte {
	b := ether(broadcastMAC, mac(m), etherRARP, arpLen)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 3)
	b = append(append(b, m...), 0, 0, 0, 0)
	return append(append(b, m...), 0, 0, 0, 0)
}
