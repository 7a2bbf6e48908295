package config

import (
	"net/netip"
	"slices"

	"github.com/goccy/go-yaml/token"

	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/detr/route"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/map646"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// DETR is the configuration of a representative ETR.
type DETR struct {
	Common
	Underlay    []string
	Upstream    []string
	UnderlayMTU int
	Anchor      detr.Config
	Kernel      kernel.Config
	SlowPath    slowpath.Config
	Feed        bgp.FeedConfig
	Announce    *bgp.UpstreamConfig // nil: nobody upstream
	Translator  *map646.Config      // nil: there are no services
	Routes      *route.Config       // nil: no routes for routing daemons
	Metrics     netip.AddrPort      // where Prometheus reads; not valid: nowhere but at the admin socket
}

type rawDETR struct {
	RawCommon    `yaml:",inline"`
	XTRID        scalar[lisp.XTRID]     `yaml:"xtr_id" doc:"identifies this D-ETR: 32 hexadecimal digits, unique" req:"1" ex:"000000000000000000000000000000d1"`
	SiteID       scalar[uint64]         `yaml:"site_id" doc:"number of the site" def:"0"`
	RLOCs        []rawLocator           `yaml:"rlocs" doc:"own addresses that packets are encapsulated to" req:"1"`
	Underlay     []scalar[string]       `yaml:"underlay" doc:"interfaces that reach the cloud's sites" req:"1" ex:"eth0"`
	Upstream     []scalar[string]       `yaml:"upstream" doc:"interfaces that reach the Internet" req:"1" ex:"up0"`
	UnderlayMTU  scalar[int]            `yaml:"underlay_mtu" doc:"largest packet that passes between the sites, in bytes" def:"1500"`
	Aggregates   []scalar[lisp.EID]     `yaml:"aggregates" doc:"the cloud's EID prefixes: the only thing that anybody outside hears of" req:"1" ex:"198.51.100.0/24 2001:db8:e1d::/48"`
	Anchors      []rawLocator           `yaml:"anchors" doc:"RLOCs of all D-ETRs, as outsiders are told (default: rlocs)"`
	AllowedRLOCs []scalar[netip.Prefix] `yaml:"allowed_rlocs" doc:"RLOCs of the own cloud" req:"1" ex:"192.0.2.0/24 2001:db8:100::/48"`
	BGP          rawDETRBGP             `yaml:"bgp" doc:"the feed of host mappings, and the upstreams" req:"1"`
	External     rawExternal            `yaml:"external" doc:"the mapping system of other LISP networks"`
	Services     rawServices            `yaml:"services" doc:"service addresses, which map646 translates to EIDs; without prefixes there are none"`
	Metrics      rawMetrics             `yaml:"metrics" doc:"counters for Prometheus"`
	Decap        scalar[string]         `yaml:"decap" doc:"where packets are decapsulated: xdp (native), tc, or auto by the driver" def:"auto"`
	PinDir       scalar[string]         `yaml:"pin_dir" doc:"a BPF file system is mounted here: what the kernel runs stays when the daemon ends" def:"/run/tabi/detr.bpf"`
	Mappings     scalar[int]            `yaml:"mappings" doc:"capacity of the kernel's mapping table" def:"1048576"`
}

type rawDETRBGP struct {
	AS         scalar[uint32]       `yaml:"as" doc:"autonomous system of the cloud" def:"64512"`
	RouterID   scalar[netip.Addr]   `yaml:"router_id" doc:"an IPv4 address, unique (default: the first IPv4 RLOC)" ex:"192.0.2.1"`
	Hold       scalar[uint16]       `yaml:"hold_time" doc:"hold time in seconds" def:"90"`
	MapServers []rawBGPPeer         `yaml:"map_servers" doc:"Map-Servers, or route reflectors in front of them" req:"1"`
	Upstreams  []rawBGPPeer         `yaml:"upstreams" doc:"routers that the aggregates are announced to, and nothing else"`
	NextHops   []scalar[netip.Addr] `yaml:"next_hops" doc:"next hops of the announcement, at most one of each family (default: the addresses of the upstream interfaces)" ex:"198.18.0.2 2001:db8:65::2"`
}

type rawExternal struct {
	MapServers   []rawServer          `yaml:"map_servers" doc:"where the aggregates are registered"`
	MapResolvers []scalar[netip.Addr] `yaml:"map_resolvers" doc:"who is asked for destinations outside (default: those Map-Servers)" ex:"203.0.113.53"`
}

type rawServices struct {
	Prefixes   []scalar[netip.Prefix] `yaml:"prefixes" doc:"what service addresses are taken from, each inside an aggregate or outside of all; the outside hears of them as of aggregates" ex:"203.0.113.0/26 2001:db8:5e::/48"`
	Pool       scalar[netip.Prefix]   `yaml:"pool" doc:"IPv6 prefix, one for the cloud, under which VMs see IPv4 (RFC 6052): of 32, 40, 48, 56, 64 or 96 bits, where no VM has an address; needed for IPv4" ex:"2001:db8:64::/96"`
	MapServers []rawServer            `yaml:"map_servers" doc:"the cloud's own Map-Servers, all of them: from them xTRs learn where prefixes and pool are"`
	ICMPSource scalar[hostPrefix]     `yaml:"icmp_source" doc:"IPv4 address or prefix that ICMP errors of IPv6 routers come from (RFC 6791) (default: that of this D-ETR)" ex:"203.0.113.62"`
	Routes     rawKernelRoutes        `yaml:"kernel_routes" doc:"aggregates and service prefixes in the kernel's routing table, for OSPF and OSPFv3 daemons to redistribute"`
}

type rawKernelRoutes struct {
	Enabled  scalar[bool]   `yaml:"enabled" doc:"put them in, while this D-ETR serves" def:"if any other key of kernel_routes is set"`
	Device   scalar[string] `yaml:"device" doc:"name of the TUN device that they lead to; it vanishes with the process, and they with it" def:"tabi-routes"`
	Table    scalar[uint32] `yaml:"table" doc:"routing table" def:"254"`
	Metric   scalar[uint32] `yaml:"metric" doc:"metric, in the main table higher than that of any route by which packets go" def:"8192"`
	Protocol scalar[uint8]  `yaml:"protocol" doc:"origin of the routes, as ip route shows it and filters tell them by" def:"76"`
}

type rawMetrics struct {
	Listen scalar[netip.AddrPort] `yaml:"listen" doc:"address and port of an HTTP server that has /metrics and nothing else (default: the admin socket only)" ex:"192.0.2.1:4382"`
}

func (r *rawDETR) build(p *problems) any {
	c := &DETR{Common: r.common(p), Underlay: values(r.Underlay), Upstream: values(r.Upstream), UnderlayMTU: r.UnderlayMTU.or(1500)}
	require(p, r.XTRID, "xtr_id", r.Role.tok)
	for key, n := range map[string]int{"rlocs": len(r.RLOCs), "underlay": len(r.Underlay), "upstream": len(r.Upstream),
		"allowed_rlocs": len(r.AllowedRLOCs), "bgp.map_servers": len(r.BGP.MapServers)} {
		if n == 0 {
			p.at(r.Role.tok, "%s is required: at least one", key)
		}
	}
	mtu := innerMTU(p, r.UnderlayMTU)
	rlocs := locators(p, r.RLOCs, "rlocs")
	aggregates := eids(p, r.Aggregates, "aggregates", r.Role.tok)
	c.Anchor = detr.Config{Name: c.Name, XTRID: r.XTRID.V, SiteID: lisp.SiteID(r.SiteID.V), RLOCs: rlocs, Aggregates: aggregates,
		Anchors: locators(p, r.Anchors, "anchors"), ExternalResolvers: values(r.External.MapResolvers), CloudRLOCs: values(r.AllowedRLOCs), StateDir: c.StateDir, MTU: mtu}
	if len(c.Anchor.Anchors) == 0 {
		c.Anchor.Anchors = rlocs
	}
	for _, s := range servers(p, r.External.MapServers, "external.map_servers") {
		c.Anchor.External = append(c.Anchor.External, detr.Server(s))
		if len(r.External.MapResolvers) == 0 {
			c.Anchor.ExternalResolvers = append(c.Anchor.ExternalResolvers, s.Addr)
		}
	}
	c.Kernel = kernel.Config{PinDir: r.PinDir.or("/run/tabi/detr.bpf"), Self: addresses(rlocs), AllowedRLOCs: values(r.AllowedRLOCs),
		Own: aggregates, Anchor: true, MTU: mtu, Decap: decap(p, r.Decap), Capacity: r.Mappings.or(1 << 20)}
	c.SlowPath = slowpath.Config{MTU: mtu}
	c.Metrics = r.Metrics.Listen.V
	r.services(p, c)
	r.kernelRoutes(p, c)
	for _, l := range rlocs {
		if from := &c.SlowPath.GatewayAddr4; l.RLOC.Is4() && !from.IsValid() {
			*from = l.RLOC
		}
		if from := &c.SlowPath.GatewayAddr6; l.RLOC.Is6() && !from.IsValid() {
			*from = l.RLOC
		}
	}
	as := r.BGP.AS.or(64512)
	id := routerID(p, r.BGP.RouterID, addresses(rlocs))
	c.Feed = bgp.FeedConfig{Config: bgp.Config{LocalAS: as, RouterID: id, Listen: addresses(rlocs), HoldTime: holdTime(p, r.BGP.Hold),
		Peers: peers(p, r.BGP.MapServers, as)}}
	for _, q := range c.Anchor.Services.Prefixes {
		c.Feed.Home = append(c.Feed.Home, lisp.MakeEID(0, q))
	}
	if len(r.BGP.Upstreams) > 0 {
		c.Announce = &bgp.UpstreamConfig{Config: bgp.Config{LocalAS: as, RouterID: id, Port: bgp.NoListener, HoldTime: holdTime(p, r.BGP.Hold),
			Peers: peers(p, r.BGP.Upstreams, as)}, NextHops: values(r.BGP.NextHops)}
		c.Announce.Aggregates = outward(c)
	}
	if c.Translator != nil {
		t := c.Translator
		t.Addr4, t.Addr6 = c.SlowPath.GatewayAddr4, c.SlowPath.GatewayAddr6
		t.LowestMTU6 = mtu // as the kernel has it
	}
	return c
}

// outward are the prefixes of instance 0 that anybody outside hears of.
func outward(c *DETR) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range c.Anchor.Aggregates {
		if a.IID == 0 {
			out = append(out, a.Prefix)
		}
	}
	return append(out, c.Anchor.Services.Prefixes...)
}

// services reads what map646 is for, and says what is wrong where it stands.
func (r *rawDETR) services(p *problems, c *DETR) {
	s := &c.Anchor.Services
	for _, one := range r.Services.Prefixes {
		if err := detr.CheckServicePrefix(one.V, c.Anchor.Aggregates); err != nil {
			p.at(one.tok, "%v", err)
			continue
		}
		if i := slices.IndexFunc(s.Prefixes, one.V.Overlaps); i >= 0 {
			p.at(one.tok, "service prefixes %v and %v overlap", s.Prefixes[i], one.V)
		}
		for _, l := range c.Anchor.RLOCs {
			if one.V.Contains(l.RLOC) {
				p.at(one.tok, "service prefix %v contains our own RLOC %v", one.V, l.RLOC)
			}
		}
		s.Prefixes = append(s.Prefixes, one.V)
	}
	if r.Services.Pool.Set {
		if err := detr.CheckPool(r.Services.Pool.V, c.Anchor.Aggregates, s.Prefixes); err != nil {
			p.at(r.Services.Pool.tok, "%v", err)
		}
		for _, l := range c.Anchor.RLOCs {
			if r.Services.Pool.V.Contains(l.RLOC) {
				p.at(r.Services.Pool.tok, "pool %v contains our own RLOC %v", r.Services.Pool.V, l.RLOC)
			}
		}
		s.Pool = r.Services.Pool.V
	}
	for _, one := range r.Services.Prefixes {
		if one.V.Addr().Is4() && !r.Services.Pool.Set {
			p.at(one.tok, "service prefix %v: IPv4 needs services.pool", one.V)
			break
		}
	}
	for _, m := range servers(p, r.Services.MapServers, "services.map_servers") {
		s.MapServers = append(s.MapServers, detr.Server(m))
	}
	at := r.Services.Pool.tok
	for _, one := range r.Services.Prefixes {
		at = one.tok
		break
	}
	if at != nil && len(r.Services.MapServers) == 0 {
		p.at(at, "services.map_servers is required: at least one")
	}
	if r.Services.ICMPSource.Set && !r.Services.ICMPSource.V.Addr().Is4() {
		p.at(r.Services.ICMPSource.tok, "icmp_source %v is not IPv4", r.Services.ICMPSource.V)
	}
	if !s.Enabled() {
		if tok := r.Services.ICMPSource.tok; tok != nil {
			p.at(tok, "services.icmp_source without services.prefixes")
		}
		if len(r.Services.MapServers) > 0 {
			p.at(r.Services.MapServers[0].Address.tok, "services.map_servers without services.prefixes")
		}
		return
	}
	c.Translator = &map646.Config{Pool: s.Pool, ICMPSource: r.Services.ICMPSource.V.Prefix}
	for _, a := range c.Anchor.Aggregates {
		if a.IID == 0 {
			c.Translator.Own = append(c.Translator.Own, a.Prefix)
		}
	}
	for _, one := range s.Prefixes {
		c.Kernel.Own = append(slices.Clip(c.Kernel.Own), lisp.MakeEID(0, one))
	}
	if s.Pool.IsValid() {
		// Addresses of the pool are made here: whoever comes with one, or wants to go there, from outside is lying.
		c.Kernel.Own = append(slices.Clip(c.Kernel.Own), lisp.MakeEID(0, s.Pool))
	}
}

func (r *rawDETR) kernelRoutes(p *problems, c *DETR) {
	k := r.Services.Routes
	c.Routes = &route.Config{
		Prefixes: outward(c), Device: k.Device.or(route.DefaultDevice), Table: int(k.Table.or(route.DefaultTable)),
		Metric: int(k.Metric.or(route.DefaultMetric)), Protocol: int(k.Protocol.or(route.DefaultProtocol)),
	}
	for _, one := range []struct {
		tok   *token.Token
		check route.Config
	}{
		{k.Device.tok, route.Config{Device: c.Routes.Device}}, {k.Table.tok, route.Config{Table: c.Routes.Table}},
		{k.Metric.tok, route.Config{Metric: c.Routes.Metric}}, {k.Protocol.tok, route.Config{Protocol: c.Routes.Protocol}},
	} {
		if err := one.check.Check(); err != nil && one.tok != nil {
			p.at(one.tok, "kernel_routes: %v", err)
		}
	}
	for _, s := range []struct {
		tok  *token.Token
		zero bool
		key  string
	}{
		{k.Table.tok, k.Table.Set && k.Table.V == 0, "table"}, {k.Metric.tok, k.Metric.Set && k.Metric.V == 0, "metric"},
		{k.Protocol.tok, k.Protocol.Set && k.Protocol.V == 0, "protocol"}, {k.Device.tok, k.Device.Set && k.Device.V == "", "device"},
	} {
		if s.zero {
			p.at(s.tok, "kernel_routes: %s may not be empty", s.key)
		}
	}
	if !k.Enabled.or(k.Device.Set || k.Table.Set || k.Metric.Set || k.Protocol.Set) {
		c.Routes = nil
	}
}
