package controller

import (
	"testing"

	"github.com/tabi-lisp/tabi/lisp"
)

func TestServiceAddresses(t *testing.T) {
	for _, c := range []struct{ in, name, path, kind string }{
		{"198.51.100.10", "198.51.100.10", "198.51.100.10", "ipv4"},
		{"198.51.100.10/32", "198.51.100.10", "198.51.100.10", "ipv4"},
		{"203.0.113.0-28", "203.0.113.0/28", "203.0.113.0-28", "ipv4"},
		{"::ffff:198.51.100.10", "198.51.100.10", "198.51.100.10", "ipv4"},
		{"2001:DB8:5:0::10", "2001:db8:5::10", "2001:db8:5::10", "one-to-one"},
		{"2001:db8:5::-113", "2001:db8:5::/113", "2001:db8:5::-113", "one-to-one"},
		{"2001:db8:5::-112", "2001:db8:5::/112", "2001:db8:5::-112", "nptv6"},
		{"2001:db8:5::/48", "2001:db8:5::/48", "2001:db8:5::-48", "nptv6"},
	} {
		p, err := ParseServiceAddress(c.in)
		if err != nil || ServiceName(p) != c.name || ServicePath(p) != c.path || ServiceKind(p) != c.kind {
			t.Errorf("%s: %v %s %s %s", c.in, err, ServiceName(p), ServicePath(p), ServiceKind(p))
		}
	}
	for _, s := range []string{"", "web", "198.51.100.10-", "198.51.100.10/33", "198.51.100.10/0", "198.51.100.10/+8", "fe80::1%eth0", "198.51.100.0/24/24",
		"198.51.100.0-24-24", "198.51.100.1/24", "[7]198.51.100.1"} {
		if p, err := ParseServiceAddress(s); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}

func FuzzParseServiceAddress(f *testing.F) {
	for _, s := range []string{"198.51.100.10", "203.0.113.0-28", "2001:db8:5::/48", "::ffff:192.0.2.1/32", "fe80::1%1", "0.0.0.0/0", "1.2.3.4/-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseServiceAddress(s)
		if err != nil {
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Bits() == 0 || lisp.MakeEID(0, p).Prefix != p {
			t.Fatalf("%q is %v", s, p)
		}
		for _, again := range []string{ServiceName(p), ServicePath(p)} {
			if q, err := ParseServiceAddress(again); err != nil || q != p {
				t.Fatalf("%q, written as %q, is %v: %v", s, again, q, err)
			}
		}
	})
}
