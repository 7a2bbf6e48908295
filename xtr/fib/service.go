package fib

import (
	"fmt"
	"net/netip"
)

// Service is a service address, or a prefix of them: what clients use and what map646 translates to the
// EIDs behind it. The host bits of an address are the same on both sides, but for an NPTv6 checksum.
// Both prefixes are in instance 0.
type Service struct {
	Outside netip.Prefix `json:"outside"` // what clients use: IPv4 or IPv6
	Inside  netip.Prefix `json:"inside"`  // EIDs, always IPv6; as many host bits as Outside
}

// ServiceKind is how a Service is translated. It follows from the prefixes.
type ServiceKind uint8

const (
	// ServiceIPv4: IPv4 outside, an explicit address mapping (RFC 7757).
	ServiceIPv4 ServiceKind = iota + 1
	// ServiceOneToOne: IPv6 outside with fewer than 16 host bits. The prefix is replaced and checksums
	// above IP follow.
	ServiceOneToOne
	// ServiceNPTv6: IPv6 outside with 16 host bits or more. The prefix is replaced and a word of the host
	// bits makes up for it, so that no checksum changes (RFC 6296).
	ServiceNPTv6
)

// nptHostBits is from how many host bits on a word of them can make up for the prefix.
const nptHostBits = 16

// String is the kind's name.
func (k ServiceKind) String() string {
	switch k {
	case ServiceIPv4:
		return "ipv4"
	case ServiceOneToOne:
		return "one-to-one"
	case ServiceNPTv6:
		return "nptv6"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Kind says how a valid service is translated.
func (s Service) Kind() ServiceKind {
	switch {
	case s.Outside.Addr().Is4():
		return ServiceIPv4
	case s.HostBits() < nptHostBits:
		return ServiceOneToOne
	}
	return ServiceNPTv6
}

// HostBits is how many bits of an address a valid service keeps: 0 for a host.
func (s Service) HostBits() int { return s.Inside.Addr().BitLen() - s.Inside.Bits() }

// String is "OUTSIDE <-> INSIDE", hosts without their length.
func (s Service) String() string { return hostOrPrefix(s.Outside) + " <-> " + hostOrPrefix(s.Inside) }

func hostOrPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Valid says what is wrong with a service by itself: prefixes that are not masked, of the wrong family, of
// different sizes, of addresses that no host has, or one inside the other.
func (s Service) Valid() error {
	for _, side := range []struct {
		name string
		p    netip.Prefix
	}{{"outside", s.Outside}, {"inside", s.Inside}} {
		a := side.p.Addr()
		switch {
		case !side.p.IsValid():
			return fmt.Errorf("service: no %s prefix", side.name)
		case a.Is4In6():
			return fmt.Errorf("service: %s %v: an IPv4-mapped address", side.name, side.p)
		case side.p != side.p.Masked():
			return fmt.Errorf("service: %s %v: bits beyond the prefix, want %v", side.name, side.p, side.p.Masked())
		case side.p.Bits() == 0:
			return fmt.Errorf("service: %s %v: covers all addresses", side.name, side.p)
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return fmt.Errorf("service: %s %v: no address of a host", side.name, side.p)
		}
	}
	if !s.Inside.Addr().Is6() {
		return fmt.Errorf("service: inside %v: not IPv6", s.Inside)
	}
	if out := s.Outside.Addr().BitLen() - s.Outside.Bits(); out != s.HostBits() {
		return fmt.Errorf("service: %v has %d host bits outside and %d inside", s, out, s.HostBits())
	}
	if s.Outside.Overlaps(s.Inside) {
		return fmt.Errorf("service: %v: outside and inside overlap", s)
	}
	return nil
}

// ServiceCount is what the data plane translated for a service. Segments of super-packets count; bytes
// are those of the IP packets as they were outside.
type ServiceCount struct {
	Service Service `json:"service"`
	In      Count   `json:"in"`  // from clients: Outside was the destination
	Out     Count   `json:"out"` // to clients: Inside was the source
}

// Count is packets and bytes.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
