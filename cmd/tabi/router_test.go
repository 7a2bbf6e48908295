package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet"
)

// TestRouterNeverWithoutRoute: while the next hops of a prefix change, and one at least stays, every packet finds a route.
func TestRouterNeverWithoutRoute(t *testing.T) {
	ns, err := testnet.NewNamespace("tabi-router-test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(ns.Close(), testnet.RemoveNamespace(ns.Name())); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct{ prefix, on, dst, a, b, c string }{
		{"198.51.100.0/24", "192.0.2.1/24", "198.51.100.7", "192.0.2.2", "192.0.2.3", "192.0.2.4"},
		{"2001:db8:e1d::/48", "2001:db8:1::1/64", "2001:db8:e1d::7", "2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::4"},
	} {
		t.Run(c.prefix, func(t *testing.T) {
			err := ns.Do(func() error { return changeHops(t, c.prefix, c.on, c.dst, c.a, c.b, c.c) })
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// changeHops is run in the namespace.
func changeHops(t *testing.T, prefix, on, dst string, names ...string) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}
	addr, err := netlink.ParseAddr(on)
	if err != nil {
		return err
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := errors.Join(netlink.LinkAdd(link), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	defer func() { _ = netlink.LinkDel(link) }()
	to := netip.MustParseAddr(dst)
	family, target := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 9, Addr: [4]byte(to.AsSlice())})
	if to.Is6() {
		family, target = unix.AF_INET6, &unix.SockaddrInet6{Port: 9, Addr: [16]byte(to.AsSlice())}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var hops []netip.Addr
	for _, n := range names {
		hops = append(hops, netip.MustParseAddr(n))
	}
	k := &kernelRoutes{log: slog.New(slog.DiscardHandler), hops: map[netip.Prefix][]netip.Addr{}}
	p := netip.MustParsePrefix(prefix)
	k.install(p, hops[:1])

	quit := make(chan struct{})
	var wg sync.WaitGroup
	sent, without := 0, 0
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			sent++
			if err := unix.Sendto(fd, []byte("x"), 0, target); errors.Is(err, unix.ENETUNREACH) {
				without++
			}
		}
	})
	steps := [][]netip.Addr{hops[:2], hops, {hops[0], hops[2]}, hops[2:], {hops[1], hops[2]}, hops[1:2], hops[:2], hops[:1]}
	for range 50 {
		for _, s := range steps {
			k.install(p, s)
			if got, err := nextHops(p); err != nil || !slices.Equal(got, s) {
				t.Errorf("next hops %v, %v, want %v", got, err, s)
			}
		}
	}
	close(quit)
	wg.Wait()
	if without > 0 || sent < 1000 {
		t.Errorf("%d packets of %d found no route", without, sent)
	}
	k.install(p, nil)
	if got, err := nextHops(p); err != nil || len(got) > 0 {
		t.Errorf("next hops %v, %v are left", got, err)
	}
	return nil
}

// nextHops are the next hops of a prefix in the kernel, sorted.
func nextHops(p netip.Prefix) (out []netip.Addr, err error) {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteListFiltered(family, bgpRoute(p), netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
	for _, r := range routes {
		for _, m := range append(r.MultiPath, &netlink.NexthopInfo{Gw: r.Gw}) {
			if a, ok := netip.AddrFromSlice(m.Gw); ok {
				out = append(out, a.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, err
}
