package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/token"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// Map646 is what `tabi map646 translate` translates by. It is no daemon's file: a D-ETR hears its services
// from the mapping system.
type Map646 struct {
	Translator map646.Config
	Services   []fib.Service
	MTU4, MTU6 int // the largest packet of each family in bytes that passes; 0 = any
}

type rawMap646 struct {
	Role         scalar[string]         `yaml:"role" doc:"what this file is: the translations of an offline run" req:"1"`
	Pool         scalar[netip.Prefix]   `yaml:"pool" doc:"prefix that the rest of IPv4 is embedded in (RFC 6052), of length 32, 40, 48, 56, 64 or 96" min:"1" ex:"2001:db8:64::/96"`
	Services     []rawMap646Service     `yaml:"services" doc:"service addresses, and the EIDs behind them" min:"1"`
	Aggregates   []scalar[netip.Prefix] `yaml:"aggregates" doc:"EID prefixes of the cloud: an IPv6 source gets its service address only in packets that leave them" ex:"2001:db8:e1d::/48"`
	Explicit     []rawMap646Rule        `yaml:"explicit" doc:"explicit address mappings (RFC 7757) beside the services"`
	Translatable []scalar[netip.Prefix] `yaml:"translatable" doc:"IPv4 addresses of hosts whose own IPv6 address is one of the pool" ex:"192.0.2.32/27"`
	Embed        scalar[string]         `yaml:"embed" doc:"IPv4 addresses that the pool embeds: rfc (RFC 6052: only global ones in 64:ff9b::/96), global, or any" def:"rfc"`
	Hairpin      scalar[string]         `yaml:"hairpin" doc:"how VMs reach one another's IPv4 service addresses (RFC 7757): intrinsic, simple or off" def:"intrinsic"`
	ICMPSource   scalar[hostPrefix]     `yaml:"icmp_source" doc:"IPv4 address or prefix that ICMP errors of IPv6 routers come from (RFC 6791); without it they are dropped" ex:"192.0.2.254"`
	ICMPFrom     rawMap646Sources       `yaml:"icmp_from" doc:"sources of the translator's own ICMP errors; without it there are none"`
	MTU          rawMap646MTU           `yaml:"mtu" doc:"the largest packets that pass, in bytes, for what the translator makes"`
	LowestMTU6   scalar[int]            `yaml:"lowest_ipv6_mtu" doc:"IPv4 packets without DF that would become larger are fragmented (RFC 7915 section 4.1)" def:"1280"`
	ZeroUDP      scalar[string]         `yaml:"udp_without_checksum" doc:"IPv4 UDP without a checksum: compute it, drop, or forward fragments as they are" def:"compute"`
}

type rawMap646Service struct {
	Outside scalar[hostPrefix] `yaml:"outside" doc:"what clients use: an address or a prefix" req:"1" ex:"198.51.100.10"`
	Inside  scalar[hostPrefix] `yaml:"inside" doc:"the EID, or as many of them" req:"1" ex:"2001:db8:e1d::a"`
}

type rawMap646Rule struct {
	IPv4   scalar[hostPrefix] `yaml:"ipv4" doc:"IPv4 address or prefix" req:"1" ex:"192.0.2.0/28"`
	IPv6   scalar[hostPrefix] `yaml:"ipv6" doc:"IPv6 address or prefix" req:"1" ex:"2001:db8:1::/124"`
	Remote scalar[bool]       `yaml:"remote" doc:"the IPv6 addresses stand for hosts of the IPv4 world" def:"false"`
}

type rawMap646Sources struct {
	IPv4 scalar[netip.Addr] `yaml:"ipv4" doc:"of ICMP errors to IPv4 senders" ex:"192.0.2.1"`
	IPv6 scalar[netip.Addr] `yaml:"ipv6" doc:"of ICMP errors to IPv6 senders" ex:"2001:db8:e1d::1"`
}

type rawMap646MTU struct {
	IPv4 scalar[int] `yaml:"ipv4" doc:"of IPv4 packets; 0 = any" def:"0"`
	IPv6 scalar[int] `yaml:"ipv6" doc:"of IPv6 packets; 0 = any" def:"0"`
}

// hostPrefix is a prefix that may be written as an address.
type hostPrefix struct{ netip.Prefix }

func (h *hostPrefix) UnmarshalText(b []byte) error {
	text := string(b)
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is neither an address nor a prefix", text)
		}
		h.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%q is neither an address nor a prefix", text)
	}
	if p != p.Masked() {
		return fmt.Errorf("%q has bits set beyond its length: want %v", text, p.Masked())
	}
	h.Prefix = p
	return nil
}

func (r *rawMap646) build(p *problems) any {
	c := &Map646{MTU4: r.MTU.IPv4.or(0), MTU6: r.MTU.IPv6.or(0)}
	t := &c.Translator
	// try has the translator itself judge one key, so that what is wrong is said with the line it stands in.
	try := func(tok *token.Token, part map646.Config) {
		if _, err := map646.New(part); err != nil {
			p.at(tok, "%s", strings.TrimPrefix(err.Error(), "map646: "))
		}
	}
	t.Pool = r.Pool.V
	try(r.Pool.tok, map646.Config{Pool: t.Pool})
	for _, a := range r.Aggregates {
		t.Own = append(t.Own, a.V)
		try(a.tok, map646.Config{Own: []netip.Prefix{a.V}})
	}
	for _, a := range r.Translatable {
		t.Translatable = append(t.Translatable, a.V)
		if !r.Pool.Set {
			p.at(a.tok, "translatable: there is no pool")
			continue
		}
		try(a.tok, map646.Config{Pool: t.Pool, Translatable: []netip.Prefix{a.V}})
	}
	t.Embed = choice(p, r.Embed, "embed", "rfc", map[string]map646.EmbedPolicy{"rfc": map646.EmbedRFC, "global": map646.EmbedGlobal, "any": map646.EmbedAny})
	t.Hairpin = choice(p, r.Hairpin, "hairpin", "intrinsic", map[string]map646.Hairpin{"intrinsic": map646.HairpinIntrinsic, "simple": map646.HairpinSimple, "off": map646.HairpinOff})
	t.ZeroUDP = choice(p, r.ZeroUDP, "udp_without_checksum", "compute", map[string]map646.ZeroUDP{"compute": map646.ZeroUDPCompute, "drop": map646.ZeroUDPDrop, "forward": map646.ZeroUDPForward})
	t.ICMPSource = r.ICMPSource.V.Prefix
	try(r.ICMPSource.tok, map646.Config{ICMPSource: t.ICMPSource})
	t.Addr4, t.Addr6 = r.ICMPFrom.IPv4.V, r.ICMPFrom.IPv6.V
	try(r.ICMPFrom.IPv4.tok, map646.Config{Addr4: t.Addr4})
	try(r.ICMPFrom.IPv6.tok, map646.Config{Addr6: t.Addr6})
	t.LowestMTU6 = r.LowestMTU6.or(0)
	try(r.LowestMTU6.tok, map646.Config{LowestMTU6: t.LowestMTU6})
	for _, m := range []struct {
		scalar[int]
		least int
		why   string
	}{{r.MTU.IPv4, 68, "RFC 791"}, {r.MTU.IPv6, map646.MinMTU6, "RFC 8200 section 5"}} {
		if v := m.or(0); v != 0 && (v < m.least || v > 65535) {
			p.at(m.tok, "mtu %d: want %d (%s) to 65535, or 0", v, m.least, m.why)
		}
	}
	c.Services = r.services(p)
	t.Explicit = r.rules(p)
	return c
}

// services are one-to-one: none overlaps another of its family, outside or inside.
func (r *rawMap646) services(p *problems) []fib.Service {
	var out []fib.Service
	for _, one := range r.Services {
		require(p, one.Outside, "services.outside", one.Inside.tok)
		require(p, one.Inside, "services.inside", one.Outside.tok)
		s := fib.Service{Outside: one.Outside.V.Prefix, Inside: one.Inside.V.Prefix}
		if !one.Outside.Set || !one.Inside.Set {
			continue
		}
		if err := s.Valid(); err != nil {
			p.at(one.Outside.tok, "%s", err)
			continue
		}
		for _, o := range out {
			if o.Outside.Addr().Is4() != s.Outside.Addr().Is4() {
				continue
			}
			if o.Outside.Overlaps(s.Outside) {
				p.at(one.Outside.tok, "service %v: outside is in %v", s, o)
			} else if o.Inside.Overlaps(s.Inside) {
				p.at(one.Inside.tok, "service %v: inside is in %v", s, o)
			}
		}
		out = append(out, s)
	}
	return out
}

func (r *rawMap646) rules(p *problems) []map646.Rule {
	var out []map646.Rule
	for _, one := range r.Explicit {
		require(p, one.IPv4, "explicit.ipv4", one.IPv6.tok)
		require(p, one.IPv6, "explicit.ipv6", one.IPv4.tok)
		if !one.IPv4.Set || !one.IPv6.Set {
			continue
		}
		rule := map646.Rule{V4: one.IPv4.V.Prefix, V6: one.IPv6.V.Prefix, Remote: one.Remote.V}
		before := len(p.list)
		for _, o := range out {
			if o.V4 == rule.V4 {
				p.at(one.IPv4.tok, "%v is mapped twice", rule.V4)
			}
			if o.V6 == rule.V6 {
				p.at(one.IPv6.tok, "%v is mapped twice", rule.V6)
			}
		}
		if _, err := map646.New(map646.Config{Explicit: []map646.Rule{rule}}); err != nil {
			p.at(one.IPv4.tok, "%s", strings.TrimPrefix(err.Error(), "map646: "))
		}
		if len(p.list) == before {
			out = append(out, rule)
		}
	}
	return out
}

// choice reads one of a few words.
func choice[T any](p *problems, s scalar[string], key, def string, words map[string]T) T {
	v, ok := words[s.or(def)]
	if !ok {
		var all []string
		for w := range words {
			all = append(all, w)
		}
		p.at(s.tok, "%s %q: want one of %s", key, s.V, sortedList(all))
	}
	return v
}

func sortedList(words []string) string {
	slices.Sort(words)
	return strings.Join(words, ", ")
}
