package main

import (
	"net/netip"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// errorSources completes what a D-ETR sends ICMP errors from, where its RLOCs are of one family only: path MTU discovery
// of clients and VMs hangs on these errors. upstream are the addresses of the interfaces that reach the Internet. For the
// VMs there is always one when there is a pool: that under which they see the D-ETR's IPv4 address. Errors of the cloud's
// IPv6 routers, xTRs among them, come from the D-ETR's IPv4 address where no other is configured (RFC 6791).
func errorSources(c *config.DETR, upstream []netip.Addr) {
	s, t := &c.SlowPath, c.Translator
	if t == nil {
		return
	}
	for _, a := range upstream {
		if a.Is4() && !s.GatewayAddr4.IsValid() {
			s.GatewayAddr4 = a
		}
		if a.Is6() && !s.GatewayAddr6.IsValid() {
			s.GatewayAddr6 = a
		}
	}
	t.Explicit, t.Translatable = nil, nil
	switch {
	case !s.GatewayAddr4.IsValid():
	case s.GatewayAddr6.IsValid():
		// So that an error of ours about a packet that was translated comes from us in either family.
		t.Explicit = []map646.Rule{{V4: netip.PrefixFrom(s.GatewayAddr4, 32), V6: netip.PrefixFrom(s.GatewayAddr6, 128)}}
	case t.Pool.IsValid():
		s.GatewayAddr6 = map646.Embed(t.Pool, s.GatewayAddr4)
		t.Translatable = []netip.Prefix{netip.PrefixFrom(s.GatewayAddr4, 32)}
	}
	t.Addr4, t.Addr6 = s.GatewayAddr4, s.GatewayAddr6
	if !t.ICMPSource.IsValid() && t.Addr4.IsValid() {
		t.ICMPSource = netip.PrefixFrom(t.Addr4, 32)
	}
}
