package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the interfaces of a stretched Ethernet, and its number.
const (
	labBridge = "br0"
	labVXLAN  = "vxlan0"
	labVNI    = 100
	vxlanPort = 4789 // RFC 7348
)

// vxlanNetwork is a bridge at each end, joined by VXLAN.
type vxlanNetwork struct {
	cloud *Cloud
	learn bool // from what arrives, and flood what is not known; else somebody writes the tables
}

// start makes the bridges.
func (n *vxlanNetwork) start(context.Context) error {
	for _, end := range labEnds {
		h := n.cloud.hosts[end]
		if err := h.ns.Do(func() error { return n.bridge(end) }); err != nil {
			return fmt.Errorf("%s: %w", end, err)
		}
	}
	return nil
}

// bridge makes one end, in the calling thread's namespace. Without STP, which is the default, a port forwards at once.
func (n *vxlanNetwork) bridge(end string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = labBridge, 1500
	snooping := false // no querier here: with snooping, multicast would not reach the other ends
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	attrs = netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = labVXLAN, 1500, queueLen
	under, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	vx := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: labVNI, Port: vxlanPort, Learning: n.learn,
		VtepDevIndex: under.Attrs().Index, SrcAddr: labAddr(end).AsSlice()}
	if err := netlink.LinkAdd(vx); err != nil {
		return fmt.Errorf("vxlan: %w", err)
	}
	if err := netlink.LinkSetMaster(vx, br); err != nil {
		return fmt.Errorf("vxlan: %w", err)
	}
	if n.learn {
		for _, other := range labEnds {
			if other == end {
				continue
			}
			// The all-zeros entry lists who gets what is flooded.
			err := netlink.NeighAppend(&netlink.Neigh{LinkIndex: vx.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
				Flags: netlink.NTF_SELF, IP: labAddr(other).AsSlice(), HardwareAddr: make(net.HardwareAddr, 6)})
			if err != nil {
				return fmt.Errorf("vxlan: flood to %s: %w", other, err)
			}
		}
	} else if err := errors.Join(netlink.LinkSetLearning(vx, false), netlink.LinkSetBrNeighSuppress(vx, true)); err != nil {
		return fmt.Errorf("vxlan: %w", err)
	}
	return errors.Join(linkUp(labVXLAN)(), linkUp(labBridge)())
}

// plug makes an interface a port of the bridge.
func (n *vxlanNetwork) plug(h *Host, dev string) error {
	err := h.ns.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName(labBridge)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(l, br), netlink.LinkSetUp(l))
	})
	if err != nil {
		return fmt.Errorf("testnet: plug %s/%s: %w", h.Name, dev, err)
	}
	return nil
}

// prepare does nothing: nobody asks.
func (n *vxlanNetwork) prepare(context.Context, string, string) error { return nil }

func (n *vxlanNetwork) committed(context.Context, string) error { return nil }
