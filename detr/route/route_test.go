package route

import (
	"net/netip"
	"strings"
	"testing"
)

// TestRoutes: the routes come and go as told, never win against those that forward, and vanish when the process that
// holds them is killed.
func TestRoutes(t *testing.T) {
	ns := namespace(t, "one")
	routes := func() string {
		var out string
		for _, family := range []string{"-4", "-6"} {
			for line := range strings.Lines(run(t, "ip", "-n", ns, family, "route", "show", "proto", "76", "table", "all")) {
				f := strings.Fields(line)
				out += f[0] + " " + strings.Join(f[1:3], " ") + ";"
			}
		}
		return out
	}
	const there = "198.18.51.0/24 dev tabi-routes;2001:db8:5e::/48 dev tabi-routes;"
	run(t, "ip", "-n", ns, "link", "add", "lisp0", "type", "veth", "peer", "name", "peer0")
	run(t, "ip", "-n", ns, "link", "set", "peer0", "up")
	run(t, "ip", "-n", ns, "link", "set", "lisp0", "up")
	run(t, "ip", "-n", ns, "route", "add", "198.18.51.0/24", "dev", "lisp0", "proto", "kernel")
	run(t, "ip", "-n", ns, "-6", "route", "add", "2001:db8:5e::/48", "dev", "lisp0", "proto", "kernel")

	h := startHolder(t, ns)
	h.do("off")
	if got := routes(); got != "" {
		t.Errorf("at first: %s", got)
	}
	for range 2 {
		h.do("on")
	}
	if got := routes(); got != there {
		t.Errorf("on: %s", got)
	}
	for _, a := range []string{"198.18.51.81", "2001:db8:5e::81"} {
		if got := run(t, "ip", "-n", ns, "route", "get", a); !strings.Contains(got, "dev lisp0") {
			t.Errorf("%s: %s", a, got)
		}
	}
	run(t, "ip", "-n", ns, "route", "del", "198.18.51.0/24", "dev", "tabi-routes")
	h.do("on")
	if got := routes(); got != there {
		t.Errorf("repaired: %s", got)
	}
	run(t, "ip", "-n", ns, "route", "del", "198.18.51.0/24", "dev", "tabi-routes")
	for range 2 {
		h.do("off")
	}
	if got := routes(); got != "" {
		t.Errorf("off: %s", got)
	}
	h.do("on")
	h.kill()
	if got := routes(); got != "" || strings.Contains(run(t, "ip", "-n", ns, "link"), "tabi-routes") {
		t.Errorf("killed: %s", got)
	}

	h = startHolder(t, ns)
	h.do("on")
	h.do("close")
	if got := routes(); got != "" {
		t.Errorf("closed: %s", got)
	}
}

func TestConfig(t *testing.T) {
	for says, c := range map[string]Config{
		"not a masked prefix": {Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.51.1/24")}},
		"longer than 15":      {Device: "a-device-with-a-name"},
		"table -1":            {Table: -1},
		"metric 16777216":     {Metric: 1 << 24},
		"protocol 4":          {Protocol: 4},
		"protocol 256":        {Protocol: 256},
	} {
		if _, err := Open(c, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", c, err, says)
		}
	}
}
