package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// chain is client - ITR - core - ETR - server in five namespaces, with one way of getting from the ITR to
// the ETR. Inner packets are up to 1500 bytes, the underlay carries 1600, so that every tunnel fits.
type chain struct {
	way                         string // "plain", "vxlan" or "tabi"
	client, itr, core, etr, srv *testnet.Namespace
	planes                      []*kernel.DataPlane
}

const underlayMTU = 1600

var (
	clientAddr, clientGW = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.1")
	serverAddr, serverGW = netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("10.2.0.1")
	itrRLOC, itrNext     = netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("10.3.0.1")
	etrRLOC, etrNext     = netip.MustParseAddr("10.4.0.2"), netip.MustParseAddr("10.4.0.1")
	clientMAC, serverMAC = net.HardwareAddr{2, 0, 0, 0, 1, 2}, net.HardwareAddr{2, 0, 0, 0, 2, 2}
)

func net24(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 24) }

// newChain builds one. wire turns off segmentation after the encapsulation and GRO on at the receiver.
func newChain(ctx context.Context, way string, wire bool, dir string, log *slog.Logger) (*chain, error) {
	c := &chain{way: way}
	if err := c.build(ctx, wire, dir, log); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: %s: %w", way, err), c.close())
	}
	return c, nil
}

func (c *chain) build(ctx context.Context, wire bool, dir string, log *slog.Logger) error {
	for name, p := range map[string]**testnet.Namespace{"cl": &c.client, "itr": &c.itr, "core": &c.core, "etr": &c.etr, "srv": &c.srv} {
		ns, err := testnet.NewNamespace(fmt.Sprintf("tabi-bench-%d-%s-%s", os.Getpid(), c.way, name))
		if err != nil {
			return err
		}
		*p = ns
	}
	links := []struct{ a, b testnet.End }{
		{end(c.client, "eth0", clientAddr, clientMAC, 1500), end(c.itr, "vm0", clientGW, nil, 1500)},
		{end(c.itr, "eth0", itrRLOC, nil, underlayMTU), end(c.core, "itr", itrNext, nil, underlayMTU)},
		{end(c.core, "etr", etrNext, nil, underlayMTU), end(c.etr, "eth0", etrRLOC, nil, underlayMTU)},
		{end(c.etr, "vm0", serverGW, nil, 1500), end(c.srv, "eth0", serverAddr, serverMAC, 1500)},
	}
	for _, l := range links {
		if err := errors.Join(testnet.Connect(l.a, l.b), noQueue(l.a), noQueue(l.b)); err != nil {
			return err
		}
	}
	for _, ns := range []*testnet.Namespace{c.itr, c.core, c.etr} {
		if err := ns.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	err := errors.Join(
		c.client.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), clientGW, "eth0"),
		c.srv.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), serverGW, "eth0"),
		c.itr.AddRoute(net24(etrRLOC).Masked(), itrNext, "eth0"),
		c.etr.AddRoute(net24(itrRLOC).Masked(), etrNext, "eth0"))
	if err != nil {
		return err
	}
	if wire {
		if err := c.wire(); err != nil {
			return err
		}
	}
	switch c.way {
	case "plain":
		return errors.Join(
			c.itr.AddRoute(net24(serverAddr).Masked(), itrNext, "eth0"),
			c.core.AddRoute(net24(serverAddr).Masked(), etrRLOC, "etr"),
			c.core.AddRoute(net24(clientAddr).Masked(), itrRLOC, "itr"),
			c.etr.AddRoute(net24(clientAddr).Masked(), etrNext, "eth0"))
	case "vxlan":
		return errors.Join(
			vxlan(c.itr, itrRLOC, etrRLOC, "10.9.0.1/24", net24(serverAddr).Masked(), "10.9.0.2"),
			vxlan(c.etr, etrRLOC, itrRLOC, "10.9.0.2/24", net24(clientAddr).Masked(), "10.9.0.1"))
	}
	return errors.Join(
		c.tabi(ctx, c.itr, filepath.Join(dir, "itr"), itrRLOC, etrRLOC, clientAddr, serverAddr, clientMAC, log),
		c.tabi(ctx, c.etr, filepath.Join(dir, "etr"), etrRLOC, itrRLOC, serverAddr, clientAddr, serverMAC, log))
}

func end(ns *testnet.Namespace, name string, a netip.Addr, mac net.HardwareAddr, mtu int) testnet.End {
	return testnet.End{NS: ns, Name: name, Addrs: []netip.Prefix{net24(a)}, MAC: mac, MTU: mtu}
}

// noQueue takes the queue of a testnet link away: the figures are those of forwarding, not of a queue.
func noQueue(e testnet.End) error {
	return e.NS.Do(func() error {
		l, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		return netlink.QdiscDel(&netlink.GenericQdisc{QdiscType: "pfifo", QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}})
	})
}

// wire makes the underlay like one of ordinary NICs: what leaves an xTR is cut to packets, and the
// receiver may merge them again.
func (c *chain) wire() error {
	off := map[string]bool{"tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-udp_tnl-segmentation": false,
		"tx-udp_tnl-csum-segmentation": false, "tx-udp-segmentation": false, "tx-generic-segmentation": false}
	for _, e := range []struct {
		ns  *testnet.Namespace
		dev string
		set map[string]bool
	}{
		{c.itr, "eth0", off}, {c.etr, "eth0", off}, {c.core, "itr", off}, {c.core, "etr", off},
		{c.itr, "eth0", map[string]bool{"rx-gro": true}}, {c.etr, "eth0", map[string]bool{"rx-gro": true}},
	} {
		if err := e.ns.Do(func() error { return features(e.dev, e.set) }); err != nil {
			return err
		}
	}
	return nil
}

func features(dev string, want map[string]bool) error {
	t, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer t.Close()
	if err := t.Change(dev, want); err != nil {
		return fmt.Errorf("ethtool: %s: %w", dev, err)
	}
	return nil
}

func vxlan(ns *testnet.Namespace, local, remote netip.Addr, own string, dst netip.Prefix, gw string) error {
	return ns.Do(func() error {
		under, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "vxlan0", 1500
		v := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 42, VtepDevIndex: under.Attrs().Index, SrcAddr: local.AsSlice(),
			Group: remote.AsSlice(), Port: 4789, Learning: false, UDPCSum: false}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("vxlan: %w", err)
		}
		addr, err := netlink.ParseAddr(own)
		if err != nil {
			return err
		}
		_, to, err := net.ParseCIDR(dst.String())
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(v, addr), netlink.LinkSetUp(v),
			netlink.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(gw)}))
	})
}

// tabi makes an xTR of ns: one local EID, one remote.
func (c *chain) tabi(ctx context.Context, ns *testnet.Namespace, dir string, self, peer, local, remote netip.Addr, mac net.HardwareAddr, log *slog.Logger) error {
	return ns.Do(func() error {
		vm, err := netlink.LinkByName("vm0")
		if err != nil {
			return err
		}
		under, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		dp, err := kernel.Open(kernel.Config{PinDir: dir, Self: []netip.Addr{self}, AllowedRLOCs: []netip.Prefix{netip.PrefixFrom(peer, 32)},
			Own: []lisp.EID{lisp.MakeEID(0, netip.MustParsePrefix("10.1.0.0/24")), lisp.MakeEID(0, netip.MustParsePrefix("10.2.0.0/24"))},
			MTU: 1500, Capacity: 1024}, log)
		if err != nil {
			return err
		}
		c.planes = append(c.planes, dp)
		if _, err := dp.AttachVM(vm.Attrs().Index, kernel.Port{}); err != nil {
			return err
		}
		if err := dp.AttachUnderlay(under.Attrs().Index); err != nil {
			return err
		}
		return dp.Set(ctx,
			fib.Route{EID: lisp.HostEID(0, local), Do: fib.Deliver, If: vm.Attrs().Index, MAC: mac},
			fib.Route{EID: lisp.HostEID(0, remote), Do: fib.Encap, MTU: 1500,
				Locators: []lisp.Locator{{RLOC: peer, Priority: 1, Weight: 100, Reachable: true}}})
	})
}

func (c *chain) pair() pair {
	return pair{client: c.client, server: c.srv, listen: serverAddr, dial: serverAddr}
}

// check sends one packet through, so that a chain that does not work is an error and not a figure.
func (c *chain) check() error {
	if _, _, err := c.pair().latency(0); err != nil {
		return fmt.Errorf("bench: %s: nothing passes: %w", c.way, err)
	}
	return nil
}

func (c *chain) close() error {
	var errs []error
	for _, dp := range c.planes {
		errs = append(errs, dp.Remove())
	}
	for _, ns := range []*testnet.Namespace{c.client, c.itr, c.core, c.etr, c.srv} {
		errs = append(errs, remove(ns))
	}
	return errors.Join(errs...)
}

// remove takes a namespace away; nil is none.
func remove(ns *testnet.Namespace) error {
	if ns == nil {
		return nil
	}
	return errors.Join(ns.Close(), testnet.RemoveNamespace(ns.Name()))
}
