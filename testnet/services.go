package testnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// VMs that have IPv6 only, and service addresses: in a cloud with Options.Services there is one at each of three sites.
const (
	hostTokyo    = "tokyo"
	hostHokuriku = "hokuriku"
	hostNara     = "nara"
)

// serviceHomes are where they run first.
var serviceHomes = map[string]string{hostTokyo: "nezu-hv1", hostHokuriku: "hokuriku-hv1", hostNara: "nara-hv1"}

// What service addresses are taken from, in each family, and the pool prefix: the rest of IPv4 as the VMs see it. None of
// them lies in an aggregate.
var (
	services4 = netip.MustParsePrefix("198.18.51.0/24")
	services6 = netip.MustParsePrefix("2001:db8:5e::/48")
	pool      = netip.MustParsePrefix("2001:db8:64::/96")
)

// services are the service addresses of the VMs.
var services = map[string]endpoint{
	hostTokyo:    {netip.MustParseAddr("198.18.51.81"), netip.MustParseAddr("2001:db8:5e::81")},
	hostHokuriku: {netip.MustParseAddr("198.18.51.82"), netip.MustParseAddr("2001:db8:5e::82")},
	hostNara:     {netip.MustParseAddr("198.18.51.83"), netip.MustParseAddr("2001:db8:5e::83")},
}

// inPool is an IPv4 address as VMs see it, with a pool prefix of 96 bits (RFC 6052).
func inPool(a netip.Addr) netip.Addr {
	b, v4 := pool.Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// homes are where the cloud's VMs run first.
func (c *Cloud) homes() map[string]string {
	all := maps.Clone(homes)
	if c.opts.Services {
		maps.Copy(all, serviceHomes)
	}
	return all
}

// serviceVMs are the VMs with service addresses, in order of their homes: Tokyo, Hokuriku, Nara.
func serviceVMs() []string { return []string{hostTokyo, hostHokuriku, hostNara} }

// addServices gives VMs their service addresses and waits until each is answered from the Internet.
func (c *Cloud) addServices(ctx context.Context) error {
	if !c.opts.Services {
		return nil
	}
	inet := c.hosts[hostInet].ns
	for _, s := range []string{"net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"} {
		if err := inet.Sysctl(s, "1"); err != nil { // connections, not hosts, are shared among the D-ETRs
			return err
		}
	}
	for _, vm := range serviceVMs() {
		for _, a := range services[vm].all() {
			if err := c.Controller(ctx, http.MethodPut, "/v1/services/"+a.String(), map[string]string{"vm": vm}, nil); err != nil {
				return err
			}
		}
	}
	return c.waitServices(ctx)
}

// waitServices waits until every D-ETR that runs has every service, and every service address answers.
func (c *Cloud) waitServices(ctx context.Context) error {
	for _, anchor := range c.anchors() {
		for {
			missing, err := c.missingServices(ctx, anchor)
			if err == nil && missing == "" {
				break
			}
			if e := sleep(ctx, 50*time.Millisecond); e != nil {
				return fmt.Errorf("testnet: %s has not the service %s: %w", anchor, missing, errors.Join(err, e))
			}
		}
	}
	for _, vm := range serviceVMs() {
		s := services[vm]
		_, err4 := Ping(ctx, c.hosts[hostClient4].ns, endpoints[hostClient4].v4, s.v4)
		_, err6 := Ping(ctx, c.hosts[hostClient6].ns, endpoints[hostClient6].v6, s.v6)
		if err := errors.Join(err4, err6); err != nil {
			return fmt.Errorf("testnet: service addresses of %s: %w", vm, err)
		}
	}
	return nil
}

// serviceRow is what we read of a row of a D-ETR's "services" table.
type serviceRow struct {
	Outside netip.Prefix `json:"outside"`
	Inside  netip.Prefix `json:"inside"`
	In      serviceCount `json:"in"`
	Out     serviceCount `json:"out"`
}

type serviceCount struct{ Packets, Bytes uint64 }

// missingServices names a service that a D-ETR has not, or not for its VM; "" = it has all.
func (c *Cloud) missingServices(ctx context.Context, anchor string) (string, error) {
	rows, err := c.serviceRows(ctx, anchor)
	if err != nil {
		return "all", err
	}
	for _, vm := range serviceVMs() {
		for _, a := range services[vm].all() {
			in := netip.PrefixFrom(endpoints[vm].v6, 128)
			if !slices.ContainsFunc(rows, func(r serviceRow) bool {
				return r.Outside == netip.PrefixFrom(a, a.BitLen()) && r.Inside == in
			}) {
				return a.String(), nil
			}
		}
	}
	return "", nil
}

// serviceRows asks a D-ETR for its services and what they count.
func (c *Cloud) serviceRows(ctx context.Context, anchor string) ([]serviceRow, error) {
	var rows []serviceRow
	return rows, c.hosts[anchor].Admin(ctx, http.MethodGet, "/v1/show/services", nil, &rows)
}
