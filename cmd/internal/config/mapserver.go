package config

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/mapserver"
)

// MapServer is the configuration of a Map-Server/Map-Resolver.
type MapServer struct {
	Common
	Listen []netip.Addr
	Server mapserver.Config
	BGP    *bgp.Config // nil: nobody is told by BGP
}

type rawMapServer struct {
	RawCommon  `yaml:",inline"`
	Listen     []scalar[netip.Addr]  `yaml:"listen" doc:"own addresses, UDP port 4342" req:"1" ex:"192.0.2.53 2001:db8:53::1"`
	Sites      []rawSite             `yaml:"sites" doc:"who may register what" req:"1"`
	ProxyReply scalar[bool]          `yaml:"proxy_reply" doc:"answer Map-Requests in the ETRs' place even when they do not ask for it (tabi's do)" def:"false"`
	Timeout    scalar[time.Duration] `yaml:"registration_timeout" doc:"lifetime of a registration that names none (RFC 9301 section 8.2)" def:"3m"`
	BGP        rawMapServerBGP       `yaml:"bgp" doc:"host mappings are pushed to the D-ETRs by BGP"`
}

type rawSite struct {
	Name         scalar[string]         `yaml:"name" doc:"for logs and tables" req:"1" ex:"nezu"`
	Keys         []rawKey               `yaml:"keys" doc:"secrets of the site, by key identifier" req:"1" example:"{id: 1, secret: change-me} | {id: 2, secret: change-me-controller, controller: true}"`
	Prefixes     []scalar[lisp.EID]     `yaml:"prefixes" doc:"EID prefixes of the site; the service prefixes and the pool, which the D-ETRs register, are among them" req:"1" ex:"198.51.100.0/24 2001:db8:e1d::/48"`
	MoreSpecific scalar[bool]           `yaml:"accept_more_specifics" doc:"also accept hosts and smaller prefixes inside them" def:"true"`
	AllowedRLOCs []scalar[netip.Prefix] `yaml:"allowed_rlocs" doc:"RLOCs that may be registered (default: any)" ex:"192.0.2.0/24"`
	AnyNonce     scalar[bool]           `yaml:"any_nonce" doc:"take Map-Registers whatever their nonce, for peers that send random ones; gives up the protection against replays" def:"false"`
}

type rawMapServerBGP struct {
	AS       scalar[uint32]     `yaml:"as" doc:"autonomous system of the cloud" def:"64512"`
	RouterID scalar[netip.Addr] `yaml:"router_id" doc:"an IPv4 address, unique (default: the first IPv4 listen address)" ex:"192.0.2.53"`
	Hold     scalar[uint16]     `yaml:"hold_time" doc:"hold time in seconds" def:"90"`
	Peers    []rawBGPPeer       `yaml:"peers" doc:"D-ETRs and route reflectors"`
}

func (r *rawMapServer) build(p *problems) any {
	c := &MapServer{Common: r.common(p), Listen: values(r.Listen)}
	if len(c.Listen) == 0 {
		p.at(r.Role.tok, "listen is required: at least one address")
	}
	if len(r.Sites) == 0 {
		p.at(r.Role.tok, "sites is required: at least one")
	}
	c.Server = mapserver.Config{Name: c.Name, ProxyReply: r.ProxyReply.V, RegistrationTimeout: r.Timeout.or(3 * time.Minute)}
	for _, s := range r.Sites {
		c.Server.Sites = append(c.Server.Sites, s.site(p))
	}
	if len(r.BGP.Peers) > 0 {
		as := r.BGP.AS.or(64512)
		c.BGP = &bgp.Config{LocalAS: as, RouterID: routerID(p, r.BGP.RouterID, c.Listen), Listen: c.Listen,
			HoldTime: holdTime(p, r.BGP.Hold), Peers: peers(p, r.BGP.Peers, as)}
	}
	return c
}

func (r rawSite) site(p *problems) mapserver.Site {
	require(p, r.Name, "sites: name", nil)
	s := mapserver.Site{Name: r.Name.V, Prefixes: eids(p, r.Prefixes, "prefixes", r.Name.tok),
		AcceptMoreSpecifics: r.MoreSpecific.or(true), RLOCs: values(r.AllowedRLOCs), AnyNonce: r.AnyNonce.V}
	if len(r.Keys) == 0 {
		p.at(r.Name.tok, "site %s: keys is required: at least one", s.Name)
	}
	for _, k := range r.Keys {
		if k.Controller.V {
			s.ControllerKeys = append(s.ControllerKeys, k.key(p, r.Name.tok))
		} else {
			s.Keys = append(s.Keys, k.key(p, r.Name.tok))
		}
	}
	return s
}
