package testnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// queueLen is the length in packets of the queue at every end of a link: a router of a WAN has one as well. The
// kernel's default for veth is none, and a receiver with a native XDP program then drops bursts of more than 256.
const queueLen = 10000

// End is one end of a link.
type End struct {
	NS    *Namespace
	Name  string         // interface name, at most 15 bytes
	Addrs []netip.Prefix // host addresses with the length of the link's prefix
	MAC   net.HardwareAddr
	MTU   int // bytes; 0 = 1500
}

// Connect joins two namespaces by a veth link and brings it up with its addresses.
func Connect(a, b End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.TxQLen = a.Name, mtuOf(a), a.MAC, queueLen
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerMTU, v.PeerHardwareAddr, v.PeerTxQLen = b.Name, uint32(mtuOf(b)), b.MAC, queueLen
	v.PeerNamespace = netlink.NsFd(b.NS.fd)
	if err := a.NS.Do(func() error { return netlink.LinkAdd(v) }); err != nil {
		return fmt.Errorf("testnet: link %s/%s - %s/%s: %w", a.NS.name, a.Name, b.NS.name, b.Name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.NS.Do(func() error { return configureEnd(e) }); err != nil {
			return fmt.Errorf("testnet: %s/%s: %w", e.NS.name, e.Name, err)
		}
	}
	return nil
}

func mtuOf(e End) int {
	if e.MTU == 0 {
		return 1500
	}
	return e.MTU
}

func configureEnd(e End) error {
	// Addresses must serve at once: duplicate address detection would hold them back for a second.
	if err := writeSysctl("net/ipv6/conf/"+e.Name+"/accept_dad", "0"); err != nil {
		return err
	}
	l, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	q := &netlink.GenericQdisc{QdiscType: "pfifo", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}}
	if err := netlink.QdiscReplace(q); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, p := range e.Addrs {
		if err := addAddr(l, p); err != nil {
			return err
		}
	}
	return nil
}

func addAddr(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

// AddAddr adds an address to an interface, without duplicate address detection.
func (n *Namespace) AddAddr(dev string, p netip.Prefix) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("testnet: %s/%s: %w", n.name, dev, err)
		}
		return addAddr(l, p)
	})
}

// AddRoute adds a route by way of gateway; dev may be "" when the gateway tells it, gateway may be invalid for a
// route that is on-link.
func (n *Namespace) AddRoute(dst netip.Prefix, gateway netip.Addr, dev string) error {
	err := n.Do(func() error {
		r := &netlink.Route{Dst: ipNet(dst)}
		if gateway.IsValid() {
			r.Gw = gateway.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		if dev != "" {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			r.LinkIndex = l.Attrs().Index
		}
		return netlink.RouteReplace(r)
	})
	if err != nil {
		return fmt.Errorf("testnet: %s: route %s: %w", n.name, dst, err)
	}
	return nil
}

// Sysctl writes a sysctl of the namespace, e.g. "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(key, value string) error {
	if err := n.Do(func() error { return writeSysctl(key, value) }); err != nil {
		return fmt.Errorf("testnet: %s: %w", n.name, err)
	}
	return nil
}

// writeSysctl writes below /proc/sys: what is below net/ is that of the calling thread's namespace.
func writeSysctl(key, value string) error {
	path := filepath.Join("/proc/sys", key)
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", strings.ReplaceAll(key, "/", "."), value, err)
	}
	return nil
}

func linkUp(name string) func() error {
	return func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
