package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

func TestErrorSources(t *testing.T) {
	at := func(s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		return netip.MustParseAddr(s)
	}
	pool := netip.MustParsePrefix("2001:db8:64::/96")
	host := func(s string) netip.Prefix { return netip.PrefixFrom(at(s), at(s).BitLen()) }
	for name, tc := range map[string]struct {
		rloc4, rloc6 string
		upstream     []netip.Addr
		pool         netip.Prefix
		want         map646.Config
	}{
		"both": {"192.0.2.1", "2001:db8::1", []netip.Addr{at("198.18.0.2"), at("2001:db8:65::2")}, pool, map646.Config{
			Addr4: at("192.0.2.1"), Addr6: at("2001:db8::1"), Explicit: []map646.Rule{{V4: host("192.0.2.1"), V6: host("2001:db8::1")}}}},
		"IPv6 only, and an upstream of both": {"", "2001:db8::1", []netip.Addr{at("198.18.0.2"), at("2001:db8:65::2")}, pool, map646.Config{
			Addr4: at("198.18.0.2"), Addr6: at("2001:db8::1"), Explicit: []map646.Rule{{V4: host("198.18.0.2"), V6: host("2001:db8::1")}}}},
		"IPv4 only": {"192.0.2.1", "", []netip.Addr{at("198.18.0.2")}, pool, map646.Config{
			Addr4: at("192.0.2.1"), Addr6: at("2001:db8:64::c000:201"), Translatable: []netip.Prefix{host("192.0.2.1")}}},
		"IPv4 only, without a pool": {"192.0.2.1", "", nil, netip.Prefix{}, map646.Config{Addr4: at("192.0.2.1")}},
		"IPv6 only":                 {"", "2001:db8::1", nil, pool, map646.Config{Addr6: at("2001:db8::1")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &config.DETR{Translator: &map646.Config{Pool: tc.pool}}
			c.SlowPath.GatewayAddr4, c.SlowPath.GatewayAddr6 = at(tc.rloc4), at(tc.rloc6)
			errorSources(c, tc.upstream)
			tc.want.Pool = tc.pool
			if tc.want.Addr4.IsValid() {
				tc.want.ICMPSource = netip.PrefixFrom(tc.want.Addr4, 32)
			}
			if d := cmp.Diff(tc.want, *c.Translator, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if c.SlowPath.GatewayAddr4 != tc.want.Addr4 || c.SlowPath.GatewayAddr6 != tc.want.Addr6 {
				t.Errorf("slow path: %v, %v", c.SlowPath.GatewayAddr4, c.SlowPath.GatewayAddr6)
			}
			if _, err := map646.New(*c.Translator); err != nil {
				t.Error(err)
			}
		})
	}
	configured := &config.DETR{Translator: &map646.Config{ICMPSource: host("192.0.2.254")}}
	if errorSources(configured, []netip.Addr{at("198.18.0.2")}); configured.Translator.ICMPSource != host("192.0.2.254") {
		t.Errorf("%v instead of what is configured", configured.Translator.ICMPSource)
	}
	c := &config.DETR{}
	errorSources(c, []netip.Addr{at("198.18.0.2")})
	if c.Translator != nil || c.SlowPath.GatewayAddr4.IsValid() {
		t.Errorf("%+v", c)
	}
}
