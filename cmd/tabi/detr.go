package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/detr/route"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/map646"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// The seams of the D-ETR: what the anchor asks for, and who gives it.
var (
	_ detr.Endpoint  = (*control.Endpoint)(nil)
	_ detr.DataPlane = (*kernel.DataPlane)(nil)
	_ detr.SlowPath  = (*slowpath.SlowPath)(nil)
	_ detr.Upstream  = (*bgp.Upstream)(nil)
	_ detr.Upstream  = (*route.Routes)(nil)
	_ lisp.Sink      = (*detr.DETR)(nil)

	_ detr.Translator     = (*kernel.DataPlane)(nil)
	_ detr.Translator     = (*map646.Translator)(nil)
	_ slowpath.Translator = (*map646.Translator)(nil)
)

func newDETRCommand() *cobra.Command {
	c := daemonCommand("detr", "Run a representative ETR: the anchor that the Internet sees", runDETR,
		func(c *config.DETR) config.Common { return c.Common })
	c.AddCommand(newDETRDrainCommand(), newDETRUndrainCommand(), newDETRStatusCommand())
	return c
}

func runDETR(ctx context.Context, c *config.DETR, d *daemon) error {
	if err := forwarding(); err != nil {
		return err
	}
	c.SlowPath.Known = func(e lisp.EID) bool {
		return slices.ContainsFunc(c.Kernel.Own, func(a lisp.EID) bool { return a.Contains(e) })
	}
	c.Kernel.Pool = c.Anchor.Services.Pool
	var inGo *map646.Translator
	if c.Translator != nil {
		upstream, err := globalAddresses(c.Upstream)
		if err != nil {
			return err
		}
		errorSources(c, upstream)
		if inGo, err = map646.New(*c.Translator); err != nil {
			return err
		}
		c.SlowPath.Translator = inGo
	}
	p, err := openPlane(ctx, c.Kernel, c.SlowPath, c.Underlay, d)
	if err != nil {
		return err
	}
	defer p.kernel.Close()
	if err := attach(c.Upstream, p.kernel.AttachUpstream); err != nil {
		return err
	}
	// The kernel goes first: it knows what was translated before a restart.
	translators := []detr.Translator{p.kernel}
	if inGo != nil {
		translators = append(translators, inGo)
	}
	var upstreams detr.Upstreams
	if c.Routes != nil {
		routes, err := route.Open(*c.Routes, d.log)
		if err != nil {
			return err
		}
		defer routes.Close()
		upstreams = append(upstreams, routes)
	}
	var announcer *bgp.Upstream
	if c.Announce != nil {
		// A session over IPv4 can then announce the IPv6 aggregates as well (RFC 4760).
		if len(c.Announce.NextHops) == 0 {
			if c.Announce.NextHops, err = globalAddresses(c.Upstream); err != nil {
				return err
			}
		}
		if announcer, err = bgp.NewUpstream(*c.Announce, d.log); err != nil {
			return err
		}
		upstreams = append(upstreams, announcer)
		d.part("upstream", announcer.Run)
	}
	x, err := detr.New(c.Anchor, p.control, p.kernel, p.slow, upstreams, d.log, translators...)
	if err != nil {
		return err
	}
	feed, err := bgp.NewFeed(c.Feed, x, d.log)
	if err != nil {
		return err
	}
	x.DataPlaneUp(true)
	d.part("feed", feed.Run)
	d.part("detr", x.Run)
	d.part("events", func(ctx context.Context) error {
		for {
			x.FeedAlive(feed.State().Alive())
			select {
			case <-ctx.Done():
				return nil
			case <-feed.Changed():
			case m := <-p.slow.Misses():
				x.Miss(m.IID, m.Src, m.Dst)
			case <-p.kernel.Events(): // an anchor acts on none of them, but they must not pile up
			}
		}
	})
	parts := append(p.counted(), counted{"feed", feed.Counters})
	statistics := newServiceStatistics(x, p.kernel.ServiceCounters, func() []family { return detrFamilies(ctx, x, p.kernel, parts) })
	if err := d.listen(ctx, c.Metrics, metricsOnly(statistics)); err != nil {
		return err
	}
	extra := http.NewServeMux()
	extra.Handle("GET /metrics", statistics)
	extra.Handle("/v1/drain", detrDrain(x))
	d.serve(withServices{withCounters{withBGP{explainedByFeed{x, feed}, func(ctx context.Context) ([]bgp.PeerStatus, error) {
		s, err := feed.Status(ctx)
		if err != nil || announcer == nil {
			return s, err
		}
		up, err := announcer.Status(ctx)
		return append(s, up...), err
	}}, parts}, statistics, func() []dropRow { return dropRows(p.kernel.DropCounts(), p.slow.Counters()) }, p.slow.Shows()["translations"]}, extra)
	return d.run(ctx)
}

// metricsOnly serves Prometheus over TCP.
func metricsOnly(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	return mux
}

// detrFamilies are the figures of a D-ETR for Prometheus, services aside.
func detrFamilies(ctx context.Context, x *detr.DETR, k *kernel.DataPlane, parts []counted) []family {
	out := append(dropFamilies(k.DropCounts()), counterFamily(slices.DeleteFunc(slices.Clone(parts), func(c counted) bool { return c.part == "kernel" })))
	s, err := x.Status(ctx)
	if err != nil {
		return out // it has ended
	}
	return append(out,
		gauge("tabi_detr_serving", "1 while the aggregates and the service prefixes are announced.", uint64(btoi(s.State == "serving"))),
		gauge("tabi_detr_drained", "1 while an operator has drained this D-ETR.", uint64(btoi(s.State == "drained"))),
		gauge("tabi_services", "Services that are translated.", uint64(s.Services)),
		gauge("tabi_services_ignored", "Services that are not translated here.", uint64(s.Ignored)))
}

// withServices adds the tables "services", "drops" and "translations".
type withServices struct {
	admin.Daemon
	statistics   *serviceStatistics
	drops        func() []dropRow
	translations func(context.Context) (any, error)
}

func (w withServices) Shows() map[string]func(context.Context) (any, error) {
	m := maps.Clone(w.Daemon.Shows())
	m["services"] = w.statistics.Table
	m["drops"] = func(context.Context) (any, error) { return w.drops(), nil }
	m["translations"] = w.translations
	return m
}

// forwarding lets the host route what leaves the tunnel for the Internet. The source of such a packet is
// an EID, to which the way back is lisp0: strict reverse-path filtering would drop it.
func forwarding() error {
	for key, value := range map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "0"} {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("forwarding: %w", err)
		}
	}
	return nil
}

// explainedByFeed adds what each Map-Server says of an EID to what the D-ETR believes.
type explainedByFeed struct {
	*detr.DETR
	feed *bgp.Feed
}

func (x explainedByFeed) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	own, err := x.DETR.Explain(ctx, e)
	if err != nil {
		return nil, err
	}
	heard, err := x.feed.Explain(ctx, e)
	return append(own, heard...), err
}
