package detr

import (
	"net/netip"
	"strings"
	"testing"
)

func TestServicesConfig(t *testing.T) {
	for says, change := range map[string]func(*Services){
		"":                             func(*Services) {},
		"overlap":                      func(s *Services) { s.Prefixes = append(s.Prefixes, prefix("203.0.113.32/27")) },
		"covers the aggregate":         func(s *Services) { s.Prefixes[0] = prefix("198.51.0.0/16") },
		"bits set beyond":              func(s *Services) { s.Prefixes[0] = netip.PrefixFrom(addr("203.0.113.1"), 26) },
		"not valid":                    func(s *Services) { s.Prefixes[0] = netip.Prefix{} },
		"covers all":                   func(s *Services) { s.Prefixes[0] = prefix("0.0.0.0/0") },
		"need a pool":                  func(s *Services) { s.Pool = netip.Prefix{} },
		"lengths":                      func(s *Services) { s.Pool = prefix("2001:db8:64::/95") },
		"not an IPv6 prefix":           func(s *Services) { s.Pool = prefix("10.0.0.0/8") },
		"bits 64 to 71":                func(s *Services) { s.Pool = prefix("2001:db8:64:0:100::/96") },
		"overlaps the aggregate":       func(s *Services) { s.Pool = prefix("2001:db8:e1d:1::/96") },
		"overlaps the service prefix":  func(s *Services) { s.Pool = prefix("2001:db8:5e:1::/96") },
		"need Map-Servers":             func(s *Services) { s.MapServers = nil },
		"has no address":               func(s *Services) { s.MapServers[0].Addr = netip.Addr{} },
		"a service prefix or the pool": func(s *Services) { s.Prefixes[0] = prefix("100.64.5.0/26") },
	} {
		c := config()
		withServices(&c)
		change(&c.Services)
		if _, err := c.withDefaults(); (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	// A prefix of IPv6 alone needs no pool, and without services nothing is registered inside.
	c := config()
	c.Services = Services{Prefixes: []netip.Prefix{prefix("2001:db8:5e::/48")}, MapServers: []Server{internal1}}
	if _, err := c.withDefaults(); err != nil {
		t.Error(err)
	}
	if r := newRegistrar(ready(), ready().internal(), nil); len(r.servers) != 0 || r.believing() != 0 {
		t.Errorf("registers %+v", r)
	}
}
