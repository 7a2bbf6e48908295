package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/detr/route"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

func detrWith(t *testing.T, services string) (*DETR, error) {
	t.Helper()
	good, err := Example("detr")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("detr.yaml", []byte(good+services))
	if err != nil {
		return nil, err
	}
	return c.(*DETR), nil
}

func TestServices(t *testing.T) {
	prefix, eid := netip.MustParsePrefix, func(s string) lisp.EID { return lisp.MakeEID(0, netip.MustParsePrefix(s)) }
	c, err := detrWith(t, `
services:
  prefixes: [198.51.100.64/26, 203.0.113.0/26, "2001:db8:5e::/48"]
  pool: "2001:db8:64::/96"
  icmp_source: 203.0.113.62
  kernel_routes: {metric: 5000}
  map_servers:
    - {address: 192.0.2.53, key: {secret: s3cret}}
metrics: {listen: "192.0.2.1:4382"}
`)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, lisp.EID{}), cmpopts.EquateEmpty()}
	want := detr.Services{
		Prefixes: []netip.Prefix{prefix("198.51.100.64/26"), prefix("203.0.113.0/26"), prefix("2001:db8:5e::/48")},
		Pool:     prefix("2001:db8:64::/96"),
		MapServers: []detr.Server{{Addr: netip.MustParseAddr("192.0.2.53"),
			Key: lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "s3cret"}}},
	}
	if d := cmp.Diff(want, c.Anchor.Services, same); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
	translator := &map646.Config{
		Pool: want.Pool, Own: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:e1d::/48")},
		ICMPSource: prefix("203.0.113.62/32"), Addr4: netip.MustParseAddr("192.0.2.1"), LowestMTU6: 1444,
	}
	if d := cmp.Diff(translator, c.Translator, same); d != "" {
		t.Errorf("translator (-want +got):\n%s", d)
	}
	all := append([]netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:e1d::/48")}, want.Prefixes...)
	routes := &route.Config{Prefixes: all, Device: "tabi-routes", Table: 254, Metric: 5000, Protocol: 76}
	if d := cmp.Diff(routes, c.Routes, same); d != "" {
		t.Errorf("kernel routes (-want +got):\n%s", d)
	}
	own := []lisp.EID{eid("198.51.100.0/24"), eid("2001:db8:e1d::/48"), eid("198.51.100.64/26"), eid("203.0.113.0/26"), eid("2001:db8:5e::/48"), eid("2001:db8:64::/96")}
	if d := cmp.Diff(own, c.Kernel.Own, same); d != "" {
		t.Errorf("the kernel's own (-want +got):\n%s", d)
	}
	if d := cmp.Diff(own[:2], c.Anchor.Aggregates, same); d != "" {
		t.Errorf("aggregates (-want +got):\n%s", d)
	}
	if d := cmp.Diff(own[2:5], c.Feed.Home, same); d != "" {
		t.Errorf("what the feed takes services of before registrations (-want +got):\n%s", d)
	}
	if c.Metrics.String() != "192.0.2.1:4382" {
		t.Errorf("metrics at %v", c.Metrics)
	}

	if c, err = detrWith(t, ""); err != nil || c.Translator != nil || c.Routes != nil || c.Anchor.Services.Enabled() {
		t.Errorf("without services: %+v, %v", c, err)
	}
	if c, err = detrWith(t, "services: {kernel_routes: {enabled: true}}"); err != nil || c.Routes == nil || len(c.Routes.Prefixes) != 2 {
		t.Errorf("routes of the aggregates alone: %+v, %v", c, err)
	}
	if c, err = detrWith(t, "services: {kernel_routes: {enabled: false, table: 76}}"); err != nil || c.Routes != nil {
		t.Errorf("routes though they are off: %+v, %v", c, err)
	}
}

// Whatever is wrong with services is said with the line and column where it stands.
func TestServicesRefused(t *testing.T) {
	const servers = "  map_servers: [{address: 192.0.2.53, key: {secret: x}}]\n"
	for services, want := range map[string]struct {
		line int // below "services:"
		says string
	}{
		"  prefixes: [203.0.113.0/26, 203.0.113.32/27]\n  pool: \"2001:db8:64::/96\"\n" + servers: {1, "service prefixes 203.0.113.0/26 and 203.0.113.32/27 overlap"},
		"  prefixes: [203.0.113.1/26]\n  pool: \"2001:db8:64::/96\"\n" + servers:                  {1, "bits set beyond"},
		"  prefixes: [203.0.113.0/33]\n":                                                                 {1, "203.0.113.0/33"},
		"  prefixes: [198.51.100.0/24]\n  pool: \"2001:db8:64::/96\"\n" + servers:                        {1, "covers the aggregate 198.51.100.0/24"},
		"  prefixes: [\"2001:db8::/32\"]\n" + servers:                                                    {1, "covers the aggregate 2001:db8:e1d::/48"},
		"  prefixes: [192.0.2.0/28]\n  pool: \"2001:db8:64::/96\"\n" + servers:                           {1, "contains our own RLOC 192.0.2.1"},
		"  prefixes: [203.0.113.0/26]\n" + servers:                                                       {1, "needs services.pool"},
		"  prefixes: [203.0.113.0/26]\n  pool: \"2001:db8:64::/96\"\n":                                   {1, "services.map_servers is required"},
		"  pool: \"2001:db8:64::/96\"\n":                                                                 {1, "services.map_servers is required"},
		"  prefixes: [203.0.113.0/26]\n  pool: \"2001:db8:64::/80\"\n" + servers:                         {2, "lengths [32 40 48 56 64 96]"},
		"  prefixes: [203.0.113.0/26]\n  pool: \"2001:db8:e1d:ff::/64\"\n" + servers:                     {2, "overlaps the aggregate 2001:db8:e1d::/48"},
		"  prefixes: [203.0.113.0/26, \"2001:db8:64::/48\"]\n  pool: \"2001:db8:64::/96\"\n" + servers:   {2, "overlaps the service prefix 2001:db8:64::/48"},
		"  prefixes: [203.0.113.0/26]\n  pool: \"2001:db8:64:0:100::/96\"\n" + servers:                   {2, "bits 64 to 71"},
		"  prefixes: [203.0.113.0/26]\n  pool: 192.0.2.0/24\n" + servers:                                 {2, "not an IPv6 prefix"},
		"  prefixes: [203.0.113.0/26]\n  pool: \"2001:db8:64::/96\"\n  map_servers: [{address: here}]\n": {3, "here"},
		"  icmp_source: \"2001:db8::1\"\n  prefixes: [\"2001:db8:5e::/48\"]\n" + servers:                 {1, "is not IPv4"},
		"  icmp_source: 192.0.2.254\n":                                                                   {1, "without services.prefixes"},
		servers:                                                                                          {1, "without services.prefixes"},
		"  kernel_routes: {table: 0}\n":                                                                  {1, "table may not be empty"},
		"  kernel_routes: {metric: 16777216}\n":                                                          {1, "metric 16777216"},
		"  kernel_routes: {protocol: 4}\n":                                                               {1, "protocol 4"},
		"  kernel_routes: {device: a-very-long-name-of-a-device}\n":                                      {1, "longer than 15 bytes"},
		"  pool_prefix: \"2001:db8:64::/96\"\n":                                                          {1, "unknown field"},
	} {
		good, err := Example("detr")
		if err != nil {
			t.Fatal(err)
		}
		line := strings.Count(good, "\n") + 1 + want.line
		_, err = detrWith(t, "services:\n"+services)
		if err == nil || !strings.Contains(err.Error(), want.says) || !strings.Contains(err.Error(), fmt.Sprintf("detr.yaml:%d:", line)) {
			t.Errorf("%s: %v\nwant line %d and %q", services, err, line, want.says)
		}
	}
}
