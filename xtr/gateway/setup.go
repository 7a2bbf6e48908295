package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// sysctls keep the kernel from speaking on a VM interface where the gateway speaks. IPv6 itself stays
// on: packets may cross the host's stack.
var sysctls = []struct{ family, name, value string }{
	{"ipv4", "arp_ignore", "8"}, // answer no ARP request for any address of the host
	{"ipv4", "proxy_arp", "0"},
	{"ipv4", "send_redirects", "0"}, // all on-link addresses are behind us: by the kernel's book, a detour
	{"ipv6", "addr_gen_mode", "1"},  // no link-local address: two interfaces with one MAC
	{"ipv6", "accept_ra", "0"},
	{"ipv6", "autoconf", "0"},
	{"ipv6", "proxy_ndp", "0"},
	{"ipv6", "accept_redirects", "0"},
}

// queueLen is the room, in packets, between us and a VM. What was held for a VM during its move arrives at
// once when it runs again; in a TAP's usual 1000 packets the rest would be lost.
const queueLen = 20000

// setUp makes an interface one of the gateway's. It does what can be done, and returns all of what
// could not.
func setUp(link netlink.Link, m mac) error {
	a := link.Attrs()
	var errs []error
	for _, s := range sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", s.family, "conf", a.Name, s.name), []byte(s.value), 0); err != nil {
			errs = append(errs, err)
		}
	}
	if !bytes.Equal(a.HardwareAddr, m[:]) {
		if err := netlink.LinkSetHardwareAddr(link, m[:]); err != nil {
			errs = append(errs, fmt.Errorf("set MAC address: %w", err))
		}
	}
	// Short queues are the kernel's default for TAPs; longer ones are somebody's wish.
	if a.TxQLen < queueLen {
		if err := netlink.LinkSetTxQLen(link, queueLen); err != nil {
			errs = append(errs, fmt.Errorf("set queue length: %w", err))
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		errs = append(errs, fmt.Errorf("set up: %w", err))
	}
	// One that the interface got before it was ours.
	addrs, err := addrList(link)
	if err != nil {
		errs = append(errs, fmt.Errorf("list addresses: %w", err))
	}
	for _, addr := range addrs {
		if addr.IP.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &addr); err != nil {
				errs = append(errs, fmt.Errorf("remove %v: %w", addr.IPNet, err))
			}
		}
	}
	return errors.Join(errs...)
}

// dumpTries bounds how often the kernel is asked again for a list that changed while it was read.
const dumpTries = 10

// addrList lists the IPv6 addresses of an interface. On a host that starts many VMs at once something changes all
// the time, and what the kernel says then may be incomplete.
func addrList(link netlink.Link) (addrs []netlink.Addr, err error) {
	for range dumpTries {
		addrs, err = netlink.AddrList(link, netlink.FAMILY_V6)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return addrs, err
}
