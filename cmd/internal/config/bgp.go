package config

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/detr/bgp"
)

const defaultHold = 90 * time.Second

type rawBGPPeer struct {
	Address  scalar[netip.Addr] `yaml:"address" doc:"address of the peer" req:"1" ex:"192.0.2.7"`
	AS       scalar[uint32]     `yaml:"as" doc:"its autonomous system" def:"our own"`
	Passive  scalar[bool]       `yaml:"passive" doc:"wait for it to connect" def:"false"`
	Password scalar[string]     `yaml:"password" doc:"TCP MD5 password (RFC 2385)"`
	Multihop scalar[uint8]      `yaml:"multihop" doc:"eBGP: how many hops away it may be" def:"0"`
}

func peers(p *problems, in []rawBGPPeer, as uint32) []bgp.Peer {
	var out []bgp.Peer
	for _, r := range in {
		require(p, r.Address, "peer: address", r.AS.tok)
		out = append(out, bgp.Peer{Addr: r.Address.V.Unmap(), AS: r.AS.or(as), Password: r.Password.V, Passive: r.Passive.V, Multihop: r.Multihop.V})
	}
	return out
}

// routerID is the configured one, or the first IPv4 address of addrs.
func routerID(p *problems, s scalar[netip.Addr], addrs []netip.Addr) netip.Addr {
	if s.Set {
		if !s.V.Is4() {
			p.at(s.tok, "router_id %s is not an IPv4 address", s.V)
		}
		return s.V
	}
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
	}
	p.at(s.tok, "bgp: router_id is required where there is no IPv4 address to take")
	return netip.Addr{}
}

// holdTime is in seconds; BGP allows none below 3 (RFC 4271 section 4.2).
func holdTime(p *problems, s scalar[uint16]) time.Duration {
	if s.Set && s.V < 3 {
		p.at(s.tok, "hold_time %d is less than 3 seconds", s.V)
	}
	return time.Duration(s.or(uint16(defaultHold/time.Second))) * time.Second
}
