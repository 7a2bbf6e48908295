package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"

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
	r, err := bgp.NewRouter(bgp.RouterConfig{Config: c.BGP}, installRoute(d.log), d.log)
	if err != nil {
		return err
	}
	d.part("bgp", r.Run)
	d.serve(routerShows{r}, nil)
	return d.run(ctx)
}

// installRoute keeps the kernel's routes as BGP says; several next hops share the load.
func installRoute(log *slog.Logger) func(netip.Prefix, []netip.Addr) {
	return func(p netip.Prefix, hops []netip.Addr) {
		route := &netlink.Route{Protocol: unix.RTPROT_BGP, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if len(hops) == 0 {
			if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
				log.Warn("route not removed", "prefix", p, "err", err)
			}
			return
		}
		for _, h := range hops {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: h.AsSlice()})
		}
		if len(hops) == 1 {
			route.MultiPath, route.Gw = nil, hops[0].AsSlice()
		}
		// A replaced IPv6 multipath route keeps next hops that are gone, so it goes first.
		if p.Addr().Is6() {
			netlink.RouteDel(&netlink.Route{Protocol: unix.RTPROT_BGP, Dst: route.Dst})
		}
		if err := netlink.RouteReplace(route); err != nil {
			log.Warn("route not installed", "prefix", p, "hops", hops, "err", err)
		}
	}
}

type routerShows struct{ r *bgp.Router }

func (s routerShows) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"bgp": func(ctx context.Context) (any, error) { return s.r.Status(ctx) },
	}
}

// Explain has nothing to say: a router of the Internet knows no EIDs, and that is the point.
func (routerShows) Explain(context.Context, lisp.EID) ([]lisp.Finding, error) { return nil, nil }
