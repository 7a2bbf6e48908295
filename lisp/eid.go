package lisp

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxInstanceID is the largest instance-ID: 24 bits travel in the data header (RFC 9300 section 5.1).
const MaxInstanceID = 1<<24 - 1

// EID is an Endpoint ID prefix within an instance (RFC 9300 section 3). It is comparable and may be
// a map key: the prefix is always masked and never an IPv4-mapped IPv6 address when it comes from
// [MakeEID], [ParseEID] or a decoder.
type EID struct {
	IID    uint32       // instance-ID, 0..MaxInstanceID; 0 is the default instance
	Prefix netip.Prefix // host EIDs are /32 or /128
}

// MakeEID masks and unmaps p.
func MakeEID(iid uint32, p netip.Prefix) EID {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return EID{IID: iid, Prefix: p.Masked()}
}

// HostEID is the /32 or /128 EID of one address.
func HostEID(iid uint32, a netip.Addr) EID {
	a = a.Unmap().WithZone("")
	return EID{IID: iid, Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// ParseEID reads "[iid]prefix" or "prefix" or a bare address, for example "[7]2001:db8::/48",
// "198.51.100.9". The instance-ID form is the one that [EID.String] prints.
func ParseEID(s string) (EID, error) {
	rest, iid := s, uint64(0)
	if strings.HasPrefix(s, "[") {
		id, after, ok := strings.Cut(s[1:], "]")
		if !ok {
			return EID{}, fmt.Errorf("EID %q: missing ]", s)
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil || n > MaxInstanceID {
			return EID{}, fmt.Errorf("EID %q: instance-ID %q is not in 0..%d", s, id, MaxInstanceID)
		}
		iid, rest = n, after
	}
	if !strings.Contains(rest, "/") {
		a, err := netip.ParseAddr(rest)
		if err != nil || a.Zone() != "" {
			return EID{}, fmt.Errorf("EID %q: not an address or prefix", s)
		}
		return HostEID(uint32(iid), a), nil
	}
	p, err := netip.ParsePrefix(rest)
	if err != nil {
		return EID{}, fmt.Errorf("EID %q: not an address or prefix", s)
	}
	if e := MakeEID(uint32(iid), p); e.Prefix.Addr() == p.Addr().Unmap() {
		return e, nil
	}
	return EID{}, fmt.Errorf("EID %q: has bits set beyond the prefix length", s)
}

// IsValid reports whether e holds a prefix and an instance-ID in range.
func (e EID) IsValid() bool { return e.Prefix.IsValid() && e.IID <= MaxInstanceID }

// IsHost reports whether e names a single address.
func (e EID) IsHost() bool { return e.Prefix.IsSingleIP() }

// Contains reports whether o is e or a more-specific of e, in the same instance.
func (e EID) Contains(o EID) bool {
	return e.IID == o.IID && e.Prefix.Bits() <= o.Prefix.Bits() && e.Prefix.Contains(o.Prefix.Addr())
}

// Compare orders by instance-ID, address, then prefix length.
func (e EID) Compare(o EID) int {
	return cmp.Or(cmp.Compare(e.IID, o.IID), e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()))
}

// String prints the form that [ParseEID] reads; the instance-ID only when it is not 0.
func (e EID) String() string {
	if e.IID == 0 {
		return e.Prefix.String()
	}
	return "[" + strconv.FormatUint(uint64(e.IID), 10) + "]" + e.Prefix.String()
}

// MarshalText is [EID.String], for JSON and configuration.
func (e EID) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText is [ParseEID].
func (e *EID) UnmarshalText(b []byte) error {
	v, err := ParseEID(string(b))
	if err == nil {
		*e = v
	}
	return err
}
