package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// way646 is a way from an IPv4 client to an IPv6 server, or what is compared with it.
type way646 struct {
	kind     string // wayPlain4 and so on
	mappings int    // that the translator has; 0 = it is none
}

// Kinds of ways.
const (
	wayPlain4 = "plain4" // IPv4 is routed
	wayPlain6 = "plain6" // IPv6 is routed
	wayLISP6  = "lisp6"  // tabi, an IPv6 client: encapsulated and not translated
	wayTabi   = "tabi"
	wayTayga  = "tayga"
	wayMap646 = "map646" // the original
)

func (w way646) name() string {
	if w.mappings == 0 {
		return w.kind
	}
	return fmt.Sprintf("%s/%d", w.kind, w.mappings)
}

// chain646 is client - front - back - server in four namespaces. The front is the translator, or a router where there
// is none; the back is a router, or tabi's xTR, to which the front encapsulates.
type chain646 struct {
	way                      way646
	client, front, back, srv *testnet.Namespace
	planes                   []*kernel.DataPlane
	daemon                   *exec.Cmd
	pins                     string // of the front's data plane
}

// What the chains are made of. The underlay carries encapsulated packets of full size.
var (
	c646Client4, c646ClientGW4 = netip.MustParsePrefix("203.0.113.2/24"), netip.MustParsePrefix("203.0.113.1/24")
	c646Client6, c646ClientGW6 = netip.MustParsePrefix("2001:db8:1::2/64"), netip.MustParsePrefix("2001:db8:1::1/64")
	c646Server4, c646ServerGW4 = netip.MustParsePrefix("10.2.0.2/24"), netip.MustParsePrefix("10.2.0.1/24")
	c646Server6, c646ServerGW6 = netip.MustParsePrefix("2001:db8:e1d::2/64"), netip.MustParsePrefix("2001:db8:e1d::1/64")
	c646Front4, c646Back4      = netip.MustParsePrefix("10.3.0.1/24"), netip.MustParsePrefix("10.3.0.2/24")
	c646Front6, c646Back6      = netip.MustParsePrefix("2001:db8:3::1/64"), netip.MustParsePrefix("2001:db8:3::2/64")

	c646Service  = netip.MustParseAddr("10.16.0.1") // the service address of the server
	c646Services = netip.MustParsePrefix("10.16.0.0/12")
	c646Insides  = netip.MustParsePrefix("2001:db8:e1d::/48")
	c646Pool     = netip.MustParsePrefix("2001:db8:64::/96")
	c646OldPool  = netip.MustParsePrefix("64::/96") // the only form that the original knows
	default4     = netip.MustParsePrefix("0.0.0.0/0")
	default6     = netip.MustParsePrefix("::/0")
)

const c646Underlay = 1600 // bytes

// newChain646 builds one; tool is the original's binary.
func newChain646(ctx context.Context, w way646, dir, tool string, log *slog.Logger) (*chain646, error) {
	c := &chain646{way: w}
	if err := c.build(ctx, dir, tool, log); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: %s: %w", w.name(), err), c.close())
	}
	return c, nil
}

func (c *chain646) build(ctx context.Context, dir, tool string, log *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := c.links(); err != nil {
		return err
	}
	pool := c646Pool
	if c.way.kind == wayMap646 {
		pool = c646OldPool
	}
	err := errors.Join(
		c.client.AddRoute(default4, c646ClientGW4.Addr(), "eth0"), c.client.AddRoute(default6, c646ClientGW6.Addr(), "eth0"),
		c.srv.AddRoute(default4, c646ServerGW4.Addr(), "eth0"), c.srv.AddRoute(default6, c646ServerGW6.Addr(), "eth0"))
	if err != nil {
		return err
	}
	if c.way.kind == wayTabi || c.way.kind == wayLISP6 {
		c.pins = filepath.Join(dir, "front")
		return errors.Join(c.tabiFront(ctx, c.pins, log), c.tabiBack(ctx, filepath.Join(dir, "back"), log))
	}
	err = errors.Join(
		c.front.AddRoute(c646Server4.Masked(), c646Back4.Addr(), "eth0"), c.front.AddRoute(c646Server6.Masked(), c646Back6.Addr(), "eth0"),
		c.back.AddRoute(c646Client4.Masked(), c646Front4.Addr(), "eth0"), c.back.AddRoute(c646Client6.Masked(), c646Front6.Addr(), "eth0"),
		c.back.AddRoute(pool, c646Front6.Addr(), "eth0"))
	if err != nil {
		return err
	}
	switch c.way.kind {
	case wayTayga:
		return c.tayga(ctx, dir)
	case wayMap646:
		return c.original(ctx, dir, tool)
	}
	return nil
}

func (c *chain646) links() error {
	tag := strings.ReplaceAll(c.way.name(), "/", "-")
	for name, p := range map[string]**testnet.Namespace{"cl": &c.client, "front": &c.front, "back": &c.back, "srv": &c.srv} {
		ns, err := testnet.NewNamespace(fmt.Sprintf("tabi-bench-%d-%s-%s", os.Getpid(), tag, name))
		if err != nil {
			return err
		}
		*p = ns
	}
	both := func(ns *testnet.Namespace, dev string, mac net.HardwareAddr, mtu int, a4, a6 netip.Prefix) testnet.End {
		return testnet.End{NS: ns, Name: dev, Addrs: []netip.Prefix{a4, a6}, MAC: mac, MTU: mtu}
	}
	for _, l := range []struct{ a, b testnet.End }{
		{both(c.client, "eth0", clientMAC, 1500, c646Client4, c646Client6), both(c.front, "up0", nil, 1500, c646ClientGW4, c646ClientGW6)},
		{both(c.front, "eth0", nil, c646Underlay, c646Front4, c646Front6), both(c.back, "eth0", nil, c646Underlay, c646Back4, c646Back6)},
		{both(c.back, "vm0", nil, 1500, c646ServerGW4, c646ServerGW6), both(c.srv, "eth0", serverMAC, 1500, c646Server4, c646Server6)},
	} {
		if err := errors.Join(testnet.Connect(l.a, l.b), noQueue(l.a), noQueue(l.b)); err != nil {
			return err
		}
	}
	for _, ns := range []*testnet.Namespace{c.front, c.back} {
		err := errors.Join(ns.Sysctl("net/ipv4/ip_forward", "1"), ns.Sysctl("net/ipv6/conf/all/forwarding", "1"), ns.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
		if err != nil {
			return err
		}
	}
	return nil
}

// index is a device's in the namespace that the thread is in.
func index(dev string) (int, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", dev, err)
	}
	return l.Attrs().Index, nil
}

// locators is one RLOC.
func locators(a netip.Addr) []lisp.Locator {
	return []lisp.Locator{{RLOC: a, Priority: 1, Weight: 100, Reachable: true}}
}

// front646 is the data plane of the front.
func front646(dir string, mappings int) kernel.Config {
	return kernel.Config{PinDir: dir, Self: []netip.Addr{c646Front4.Addr()}, AllowedRLOCs: []netip.Prefix{c646Back4.Masked()}, Anchor: true,
		MTU: 1500, Pool: c646Pool, Capacity: 1<<16 + mappings,
		Own: []lisp.EID{lisp.MakeEID(0, c646Insides), lisp.MakeEID(0, c646Services), lisp.MakeEID(0, c646Pool)}}
}

// tabiFront makes a D-ETR of the front.
func (c *chain646) tabiFront(ctx context.Context, dir string, log *slog.Logger) error {
	return c.front.Do(func() error {
		dp, err := kernel.Open(front646(dir, c.way.mappings), log)
		if err != nil {
			return err
		}
		c.planes = append(c.planes, dp)
		up, err := index("up0")
		if err != nil {
			return err
		}
		under, err := index("eth0")
		if err != nil {
			return err
		}
		if err := errors.Join(dp.AttachUpstream(up), dp.AttachUnderlay(under)); err != nil {
			return err
		}
		err = dp.Set(ctx,
			fib.Route{EID: lisp.HostEID(0, c646Server6.Addr()), Do: fib.Encap, MTU: 1500, Locators: locators(c646Back4.Addr()), Transit: true},
			fib.Route{EID: lisp.MakeEID(0, c646Client4.Masked()), Do: fib.Native}, fib.Route{EID: lisp.MakeEID(0, c646Client6.Masked()), Do: fib.Native})
		if err != nil || c.way.mappings == 0 {
			return err
		}
		return dp.SetServices(ctx, services646(c.way.mappings)...)
	})
}

// tabiBack makes an xTR of the back.
func (c *chain646) tabiBack(ctx context.Context, dir string, log *slog.Logger) error {
	return c.back.Do(func() error {
		dp, err := kernel.Open(kernel.Config{PinDir: dir, Self: []netip.Addr{c646Back4.Addr()}, AllowedRLOCs: []netip.Prefix{c646Front4.Masked()},
			Own: []lisp.EID{lisp.MakeEID(0, c646Insides)}, MTU: 1500}, log)
		if err != nil {
			return err
		}
		c.planes = append(c.planes, dp)
		vm, err := index("vm0")
		if err != nil {
			return err
		}
		under, err := index("eth0")
		if err != nil {
			return err
		}
		if _, err := dp.AttachVM(vm, kernel.Port{}); err != nil {
			return err
		}
		if err := dp.AttachUnderlay(under); err != nil {
			return err
		}
		anchor := locators(c646Front4.Addr())
		return dp.Set(ctx,
			fib.Route{EID: lisp.HostEID(0, c646Server6.Addr()), Do: fib.Deliver, If: vm, MAC: serverMAC},
			fib.Route{EID: lisp.MakeEID(0, c646Pool), Do: fib.Encap, MTU: 1500, Locators: anchor},
			fib.Route{EID: lisp.MakeEID(0, c646Client6.Masked()), Do: fib.Encap, MTU: 1500, Locators: anchor})
	})
}

// services646 are n services; the first is the server's.
func services646(n int) []fib.Service {
	out := make([]fib.Service, n)
	in := c646Insides.Addr().As16()
	for i := range out {
		a4 := c646Service.As4()
		add(a4[:], i)
		a6 := in
		if i == 0 {
			a6 = c646Server6.Addr().As16()
		} else {
			a6[7] = 1 // another subnet
			add(a6[:], i)
		}
		out[i] = fib.Service{Outside: netip.PrefixFrom(netip.AddrFrom4(a4), 32), Inside: netip.PrefixFrom(netip.AddrFrom16(a6), 128)}
	}
	return out
}

// add adds n to a big-endian number.
func add(b []byte, n int) {
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i], n = byte(n), n>>8
	}
}

// mapLines writes the services as lines of a configuration file.
func mapLines(n int, keyword string) string {
	var b strings.Builder
	for _, s := range services646(n) {
		fmt.Fprintf(&b, "%s %s %s\n", keyword, s.Outside.Addr(), s.Inside.Addr())
	}
	return b.String()
}

// tayga starts Debian's user space translator.
func (c *chain646) tayga(ctx context.Context, dir string) error {
	conf := filepath.Join(dir, "tayga.conf")
	text := fmt.Sprintf("tun-device nat64\nipv4-addr 192.0.0.1\nipv6-addr 2001:db8:65::1\nprefix %s\ndata-dir %s\n", c646Pool, dir) + mapLines(c.way.mappings, "map")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	mk := exec.CommandContext(ctx, "tayga", "--config", conf, "--mktun")
	var said []byte
	if err := c.front.Do(func() (err error) { said, err = mk.CombinedOutput(); return err }); err != nil {
		return fmt.Errorf("tayga --mktun: %w: %s", err, said)
	}
	return errors.Join(c.tun("nat64", c646Pool), c.run(dir, "tayga", "--config", conf, "--nodetach"))
}

// tun brings a translator's device up and leads to it what is to be translated.
func (c *chain646) tun(dev string, pool netip.Prefix) error {
	return c.front.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
		for _, p := range []netip.Prefix{c646Services, pool} {
			to := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			if err := netlink.RouteReplace(&netlink.Route{Dst: to, LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("route %s to %s: %w", p, dev, err)
			}
		}
		return nil
	})
}

// original starts the map646 of 2010, which makes tun646 and a route for each mapping.
func (c *chain646) original(ctx context.Context, dir, tool string) error {
	conf := filepath.Join(dir, "map646.conf")
	text := fmt.Sprintf("mapping-prefix %s\n", c646OldPool.Addr()) + mapLines(c.way.mappings, "map-static")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	if err := c.run(dir, tool, "-c", conf); err != nil {
		return err
	}
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		if err = c.tun("tun646", c646OldPool); err == nil {
			return nil
		}
	}
	return err
}

// run starts a translator in the front.
func (c *chain646) run(dir, name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, "translator.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.daemon = exec.Command(name, args...)
	c.daemon.Stdout, c.daemon.Stderr = log, log
	if err := c.front.Do(c.daemon.Start); err != nil {
		c.daemon = nil
		return err
	}
	return nil
}

func (c *chain646) pair() pair {
	switch c.way.kind {
	case wayPlain4:
		return pair{client: c.client, server: c.srv, dial: c646Server4.Addr(), listen: c646Server4.Addr()}
	case wayPlain6, wayLISP6:
		return pair{client: c.client, server: c.srv, dial: c646Server6.Addr(), listen: c646Server6.Addr()}
	}
	return pair{client: c.client, server: c.srv, dial: c646Service, listen: c646Server6.Addr()}
}

// check waits until a packet passes, so that a chain that does not work is an error and not a figure: a translator
// needs a moment to read its table.
func (c *chain646) check(ctx context.Context) (err error) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; {
		if _, _, err = c.pair().latency(0); err == nil {
			return nil
		}
	}
	return fmt.Errorf("bench: %s: nothing passes: %w", c.way.name(), errors.Join(err, ctx.Err()))
}

func (c *chain646) close() error {
	var errs []error
	for _, dp := range c.planes {
		errs = append(errs, dp.Remove())
	}
	if c.daemon != nil {
		errs = append(errs, c.daemon.Process.Kill())
		_ = c.daemon.Wait() // it was killed
	}
	for _, ns := range []*testnet.Namespace{c.client, c.front, c.back, c.srv} {
		errs = append(errs, remove(ns))
	}
	return errors.Join(errs...)
}
