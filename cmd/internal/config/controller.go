package config

import (
	"net/netip"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/detr/bgp"
)

// Controller is the configuration of the controller.
type Controller struct {
	Common
	API       API
	Addresses []netip.Addr // own addresses for control messages
	Core      controller.Config
}

type rawController struct {
	RawCommon  `yaml:",inline"`
	Listen     scalar[netip.AddrPort] `yaml:"listen" doc:"address and port of the HTTP API" req:"1" ex:"192.0.2.9:4381"`
	Token      scalar[string]         `yaml:"token" doc:"bearer token that callers must present" req:"1" ex:"change-me"`
	Addresses  []scalar[netip.Addr]   `yaml:"addresses" doc:"own addresses that Map-Registers are sent from" req:"1" ex:"192.0.2.9"`
	MapServers []rawServer            `yaml:"map_servers" doc:"all Map-Servers of the cloud, with the controller's own key" req:"1"`
}

// Router is the configuration of the demonstration's Internet router.
type Router struct {
	Common
	BGP bgp.Config
}

type rawRouter struct {
	RawCommon `yaml:",inline"`
	AS        scalar[uint32]       `yaml:"as" doc:"own autonomous system" req:"1" ex:"64500"`
	RouterID  scalar[netip.Addr]   `yaml:"router_id" doc:"an IPv4 address, unique" req:"1" ex:"192.0.2.254"`
	Listen    []scalar[netip.Addr] `yaml:"listen" doc:"own addresses (default: all)" ex:"192.0.2.254"`
	Peers     []rawBGPPeer         `yaml:"peers" doc:"who may announce routes to us" req:"1"`
}

func (r *rawController) build(p *problems) any {
	c := &Controller{Common: r.common(p), API: API{Listen: r.Listen.V, Token: r.Token.V}, Addresses: values(r.Addresses)}
	require(p, r.Listen, "listen", r.Role.tok)
	require(p, r.Token, "token", r.Role.tok)
	if len(r.Addresses) == 0 {
		p.at(r.Role.tok, "addresses is required: at least one")
	}
	if len(r.MapServers) == 0 {
		p.at(r.Role.tok, "map_servers is required: at least one")
	}
	c.Core = controller.Config{Name: c.Name, Addresses: c.Addresses, Token: r.Token.V}
	for _, s := range servers(p, r.MapServers, "map_servers") {
		c.Core.MapServers = append(c.Core.MapServers, controller.Server(s))
	}
	return c
}

func (r *rawRouter) build(p *problems) any {
	c := &Router{Common: r.common(p)}
	require(p, r.AS, "as", r.Role.tok)
	require(p, r.RouterID, "router_id", r.Role.tok)
	c.BGP = bgp.Config{LocalAS: r.AS.V, RouterID: r.RouterID.V, Listen: values(r.Listen), HoldTime: defaultHold,
		Peers: peers(p, r.Peers, r.AS.V)}
	if len(c.BGP.Peers) == 0 {
		p.at(r.Role.tok, "peers is required: at least one")
	}
	return c
}
