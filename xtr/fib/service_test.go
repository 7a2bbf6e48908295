package fib

import (
	"net/netip"
	"strings"
	"testing"
)

func TestService(t *testing.T) {
	for _, c := range []struct {
		out, in string
		kind    ServiceKind
		text    string
		err     string
	}{
		{"198.51.100.10/32", "2001:db8:e1d::a/128", ServiceIPv4, "198.51.100.10 <-> 2001:db8:e1d::a", ""},
		{"203.0.113.0/28", "2001:db8:e1d::c0/124", ServiceIPv4, "203.0.113.0/28 <-> 2001:db8:e1d::c0/124", ""},
		{"2001:db8:5e::a/128", "2001:db8:e1d::a/128", ServiceOneToOne, "2001:db8:5e::a <-> 2001:db8:e1d::a", ""},
		{"2001:db8:5e::/113", "2001:db8:e1d::/113", ServiceOneToOne, "2001:db8:5e::/113 <-> 2001:db8:e1d::/113", ""},
		{"2001:db8:5e::/112", "2001:db8:e1d::/112", ServiceNPTv6, "2001:db8:5e::/112 <-> 2001:db8:e1d::/112", ""},
		{"2001:db8:5e::/48", "fd01:203:405::/48", ServiceNPTv6, "2001:db8:5e::/48 <-> fd01:203:405::/48", ""},
		{"", "2001:db8:e1d::a/128", 0, "", "no outside prefix"},
		{"198.51.100.10/32", "", 0, "", "no inside prefix"},
		{"198.51.100.10/32", "198.51.100.11/32", 0, "", "not IPv6"},
		{"198.51.100.10/31", "2001:db8:e1d::/128", 0, "", "1 host bits outside and 0 inside"},
		{"198.51.100.10/24", "2001:db8:e1d::/120", 0, "", "want 198.51.100.0/24"},
		{"::ffff:198.51.100.10/128", "2001:db8:e1d::/128", 0, "", "IPv4-mapped"},
		{"224.0.0.1/32", "2001:db8:e1d::/128", 0, "", "no address of a host"},
		{"198.51.100.10/32", "fe80::1/128", 0, "", "no address of a host"},
		{"0.0.0.0/0", "2001:db8:e1d::/96", 0, "", "covers all"},
		{"2001:db8::/48", "2001:db8::/48", 0, "", "overlap"},
		{"2001:db8:5e::/64", "2001:db8:e1d::/48", 0, "", "host bits"},
	} {
		var s Service
		if c.out != "" {
			s.Outside = netip.MustParsePrefix(c.out)
		}
		if c.in != "" {
			s.Inside = netip.MustParsePrefix(c.in)
		}
		err := s.Valid()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q <-> %q: %v, want %q", c.out, c.in, err, c.err)
			}
			continue
		}
		if err != nil || s.Kind() != c.kind || s.String() != c.text {
			t.Errorf("%v: kind %v, %v; want %v, %q", s, s.Kind(), err, c.kind, c.text)
		}
	}
}
