package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
)

// doorQueueLen is how many frames wait in lisp0 for Go at most.
const doorQueueLen = 10000

const (
	// routeProtocol marks the kernel routes that are ours; "L"; not among those that routing daemons have taken.
	routeProtocol = 76
	// doorProtocol marks those into lisp0 as the kernel's own. They are there whether anything is announced or not, and
	// longer than the process: a routing daemon that redistributes what others put into the kernel must not see them.
	// All pass over this protocol.
	doorProtocol = unix.RTPROT_KERNEL
)

// door is lisp0.
type door struct {
	index  int
	queues []*os.File
}

// openDoor opens lisp0 and makes it if there is none: a TAP that stays when nobody has it open.
func (d *DataPlane) openDoor() error {
	q, err := openTAP(d.cfg.LISP0)
	if err != nil {
		return err
	}
	d.door.queues = append(d.door.queues, q)
	link, err := d.nl.LinkByName(d.cfg.LISP0)
	if err != nil {
		return fmt.Errorf("%s: %w", d.cfg.LISP0, err)
	}
	d.door.index = link.Attrs().Index
	set := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %s: %w", d.cfg.LISP0, what, err)
		}
		return nil
	}
	// Setting the same again may bring packets to a stop for a moment: only what differs.
	a := link.Attrs()
	var errs []error
	if mac := d.doorMAC(); a.HardwareAddr.String() != mac.String() {
		errs = append(errs, set("MAC address", d.nl.LinkSetHardwareAddr(link, mac)))
	}
	if a.RawFlags&unix.IFF_NOARP == 0 {
		errs = append(errs, set("no ARP", d.nl.LinkSetARPOff(link)))
	}
	if a.TxQLen != doorQueueLen {
		errs = append(errs, set("queue length", d.nl.LinkSetTxQLen(link, doorQueueLen)))
	}
	if a.MTU != d.cfg.MTU {
		errs = append(errs, set("MTU", d.nl.LinkSetMTU(link, d.cfg.MTU)))
	}
	d.doorSysctls()
	if a.RawFlags&unix.IFF_UP == 0 {
		errs = append(errs, set("up", d.nl.LinkSetUp(link)))
	}
	errs = append(errs, d.doorRoutes())
	return errors.Join(errs...)
}

// doorMAC must not begin with the byte that marks metadata.
func (d *DataPlane) doorMAC() net.HardwareAddr {
	return net.HardwareAddr{0x02, 't', 'a', 'b', 'i', 0}
}

// openTAP opens one queue of the device with a vnet header, so that super-packets pass whole in both
// directions.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	fail := func(what string, err error) (*os.File, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %s: %w", name, what, err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fail("name", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fail("open", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fail("make persistent", err)
	}
	const tunFUSO4, tunFUSO6 = 0x20, 0x40
	offload := unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload|tunFUSO4|tunFUSO6); err != nil {
		return fail("offloads", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// doorSysctls makes the stack take what Go gives it through lisp0, from whatever source, and forward it;
// and keeps it from speaking there itself. What cannot be set is logged: packets for Go pass anyhow.
func (d *DataPlane) doorSysctls() {
	for _, s := range []struct{ path, value string }{
		{"ipv4/conf/%s/rp_filter", "0"},
		{"ipv4/conf/%s/accept_local", "1"},
		{"ipv4/conf/%s/forwarding", "1"},
		{"ipv6/conf/%s/forwarding", "1"},
		{"ipv6/conf/%s/accept_ra", "0"},
		{"ipv6/conf/%s/addr_gen_mode", "1"},
	} {
		path := filepath.Join("/proc/sys/net", fmt.Sprintf(s.path, d.cfg.LISP0))
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.log.Warn("setting not made", "path", path, "value", s.value, "error", err)
		}
	}
}

// doorRoutes routes our EIDs into lisp0, so that what the host's stack has for them (forwarded for a
// Stack port, or ICMP errors of its own) is encapsulated too.
func (d *DataPlane) doorRoutes() error {
	want := map[string]lisp.EID{}
	for _, e := range d.cfg.Own {
		if e.IID == 0 {
			want[e.Prefix.String()] = e
		}
	}
	have, err := d.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: d.door.index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("%s: routes: %w", d.cfg.LISP0, err)
	}
	var stale []netlink.Route
	for _, r := range have {
		if r.Dst == nil || r.Protocol != doorProtocol && r.Protocol != routeProtocol || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			continue
		}
		if _, ok := want[r.Dst.String()]; ok && r.Protocol == doorProtocol {
			delete(want, r.Dst.String())
			continue
		}
		stale = append(stale, r)
	}
	for _, e := range want {
		// The best metric there is: what a routing daemon has learned of our own EIDs does not lead there.
		r := &netlink.Route{LinkIndex: d.door.index, Dst: ipNet(e), Protocol: doorProtocol}
		if e.Prefix.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		} else {
			r.Priority = 1
		}
		if err := d.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("%s: route to %s: %w", d.cfg.LISP0, e, err)
		}
	}
	for _, r := range stale {
		if err := d.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s: remove the route to %s: %w", d.cfg.LISP0, r.Dst, err)
		}
	}
	return nil
}

func ipNet(e lisp.EID) *net.IPNet {
	a := e.Prefix.Addr()
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(e.Prefix.Bits(), a.BitLen())}
}

// removeDoor deletes lisp0, even when others have it open.
func (d *DataPlane) removeDoor() error {
	link, err := d.nl.LinkByName(d.cfg.LISP0)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.nl.LinkDel(link)
}
