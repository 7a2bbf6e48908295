package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// SwitchOff takes a node away as when its power goes: its daemon is killed, its links go down, and its kernel forgets
// what it ran. Who is at the other end of a link sees that go; nobody else is told anything.
func (c *Cloud) SwitchOff(name string) error {
	n, h := mustNode(name), c.hosts[name]
	err := errors.Join(c.linkDown(name), h.Kill(n.role), unmountBelow(h.dir))
	return errors.Join(err, os.RemoveAll(filepath.Join(h.dir, "bpf")))
}

// SwitchOn brings a node back that was switched off, and waits until its daemon is ready.
func (c *Cloud) SwitchOn(ctx context.Context, name string) error {
	if err := c.linkUp(name); err != nil {
		return err
	}
	return c.hosts[name].Start(ctx, mustNode(name).role)
}

// nodeLink is one of a node's links: its interface there and at the router, and the router's addresses.
type nodeLink struct {
	dev, far string
	gw4, gw6 netip.Addr
}

func (n node) links() []nodeLink {
	all := []nodeLink{{"eth0", n.name, gateway4(n.v4()), gateway6(n.v6())}}
	if n.role == "detr" {
		all = append(all, nodeLink{"up0", "up-" + n.name, gateway4(n.up4()), gateway6(n.up6())})
	}
	return all
}

// linkDown takes the links of a node down. Addresses stay, so that linkUp can bring them back.
func (c *Cloud) linkDown(name string) error {
	inet, ns := c.hosts[hostInet].ns, c.hosts[name].ns
	var errs []error
	for _, l := range mustNode(name).links() {
		errs = append(errs,
			inet.Sysctl("net/ipv6/conf/"+l.far+"/keep_addr_on_down", "1"),
			ns.Sysctl("net/ipv6/conf/"+l.dev+"/keep_addr_on_down", "1"),
			setLink(inet, l.far, netlink.LinkSetDown), setLink(ns, l.dev, netlink.LinkSetDown))
	}
	return errors.Join(errs...)
}

// linkUp brings a node's links back, with its routes.
func (c *Cloud) linkUp(name string) error {
	n := mustNode(name)
	inet, ns := c.hosts[hostInet].ns, c.hosts[name].ns
	var errs []error
	for _, l := range n.links() {
		errs = append(errs, setLink(inet, l.far, netlink.LinkSetUp), setLink(ns, l.dev, netlink.LinkSetUp))
	}
	return errors.Join(append(errs, n.addRoutes(ns))...)
}

// addRoutes gives a node its ways out: what is upstream of a D-ETR is not the cloud's own network.
func (n node) addRoutes(ns *Namespace) error {
	all := n.links()
	last := all[len(all)-1]
	err := errors.Join(ns.AddRoute(anywhere(last.gw4), last.gw4, ""), ns.AddRoute(anywhere(last.gw6), last.gw6, ""))
	if len(all) == 1 {
		return err
	}
	return errors.Join(err, ns.AddRoute(underlay4, all[0].gw4, ""), ns.AddRoute(underlay6, all[0].gw6, ""))
}

func setLink(n *Namespace, dev string, do func(netlink.Link) error) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("testnet: %s/%s: %w", n.name, dev, err)
		}
		return do(l)
	})
}
