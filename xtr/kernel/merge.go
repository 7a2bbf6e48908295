package kernel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
)

// mergeDevice is the name of the device that lets the kernel merge segments. No packet passes it.
const mergeDevice = "lispgro0"

// Attributes of a VXLAN device that package netlink has no field for (linux/if_link.h).
const iflaVXLANGPE = 27

// mergeSegments makes the kernel merge TCP segments inside LISP packets, as it does for its own tunnels,
// before the programs see them. The header of LISP-GPE (RFC 9305) is that of VXLAN-GPE bit by bit, and
// what merges is the socket of a VXLAN device on the port: nothing is left to do but to have one. What
// the programs do not take is dropped there, as it would be without a socket.
func (d *DataPlane) mergeSegments() error {
	if l, err := d.nl.LinkByName(mergeDevice); err == nil {
		return d.nl.LinkSetUp(l)
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(mergeDevice)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, []byte{lisp.DataPort >> 8, lisp.DataPort & 0xff})
	data.AddRtAttr(nl.IFLA_VXLAN_FLOWBASED, nl.Uint8Attr(1))
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, nl.Uint8Attr(1))
	data.AddRtAttr(iflaVXLANGPE, nil)
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %s: %w", mergeDevice, err)
	}
	l, err := d.nl.LinkByName(mergeDevice)
	if err != nil {
		return fmt.Errorf("find %s: %w", mergeDevice, err)
	}
	return d.nl.LinkSetUp(l)
}

// mergeNoMore takes the device away.
func (d *DataPlane) mergeNoMore() error {
	l, err := d.nl.LinkByName(mergeDevice)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return err
	}
	return d.nl.LinkDel(l)
}
