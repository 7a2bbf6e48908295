package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/lisp"
)

func newRouterCommand() *cobra.Command {
	return daemonCommand("router", "Run a small BGP router that installs what it hears: the demonstration's Internet", runRouter,
		func(c *config.Router) config.Common { return c.Common })
}

func runRouter(ctx context.Context, c *config.Router, d *daemon) error {
	routes := &kernelRoutes{log: d.log, hops: map[netip.Prefix][]netip.Addr{}}
	r, err := bgp.NewRouter(bgp.RouterConfig{Config: c.BGP}, routes.install, d.log)
	if err != nil {
		return err
	}
	d.part("bgp", r.Run)
	d.serve(routerShows{r}, nil)
	return d.run(ctx)
}

// kernelRoutes keeps the kernel's routes as BGP says; several next hops share the load. One goroutine may use it.
type kernelRoutes struct {
	log  *slog.Logger
	hops map[netip.Prefix][]netip.Addr // IPv6 only
}

// install makes next hops those of a prefix; none removes it. A prefix that keeps one next hop is never without a route.
func (k *kernelRoutes) install(p netip.Prefix, hops []netip.Addr) {
	var err error
	switch {
	case p.Addr().Is6():
		err = k.install6(p, hops)
	case len(hops) == 0:
		err = netlink.RouteDel(bgpRoute(p))
	default:
		err = netlink.RouteReplace(bgpRoute(p, hops...))
	}
	if err != nil && !errors.Is(err, unix.ESRCH) { // it is gone, as it should be
		k.log.Warn("route not installed", "prefix", p, "hops", hops, "err", err)
	}
}

// install6 adds and takes away one next hop after the other: an IPv6 route of several that is replaced keeps those that
// are gone, and one that is deleted first is missing meanwhile.
func (k *kernelRoutes) install6(p netip.Prefix, hops []netip.Addr) error {
	had, known := k.hops[p]
	var errs []error
	if !known {
		if err := netlink.RouteDel(bgpRoute(p)); err != nil && !errors.Is(err, unix.ESRCH) { // of the router before us
			errs = append(errs, err)
		}
	}
	for _, h := range hops {
		if !slices.Contains(had, h) {
			errs = append(errs, netlink.RouteAppend(bgpRoute(p, h)))
		}
	}
	for _, h := range had {
		if !slices.Contains(hops, h) {
			errs = append(errs, netlink.RouteDel(bgpRoute(p, h)))
		}
	}
	k.hops[p] = hops
	return errors.Join(errs...)
}

func bgpRoute(p netip.Prefix, hops ...netip.Addr) *netlink.Route {
	r := &netlink.Route{Protocol: unix.RTPROT_BGP, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if len(hops) == 1 {
		r.Gw = hops[0].AsSlice()
		return r
	}
	for _, h := range hops {
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: h.AsSlice()})
	}
	return r
}

type routerShows struct{ r *bgp.Router }

func (s routerShows) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"bgp": func(ctx context.Context) (any, error) { return s.r.Status(ctx) },
	}
}

// Explain has nothing to say: a router of the Internet knows no EIDs, and that is the point.
func (routerShows) Explain(context.Context, lisp.EID) ([]lisp.Finding, error) { return nil, nil }
