package config

import (
	"net/netip"

	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/kernel"
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
		Anchors: locators(p, r.Anchors, "anchors"), ExternalResolvers: values(r.External.MapResolvers), StateDir: c.StateDir, MTU: mtu}
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
	if len(r.BGP.Upstreams) > 0 {
		c.Announce = &bgp.UpstreamConfig{Config: bgp.Config{LocalAS: as, RouterID: id, Port: bgp.NoListener, HoldTime: holdTime(p, r.BGP.Hold),
			Peers: peers(p, r.BGP.Upstreams, as)}, NextHops: values(r.BGP.NextHops)}
		for _, a := range aggregates {
			c.Announce.Aggregates = append(c.Announce.Aggregates, a.Prefix)
		}
	}
	return c
}
