package lisp

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// UnusablePriority is the priority of a locator that must not be used (RFC 9300 section 5, RFC 9301
// section 5.4).
const UnusablePriority = 255

// Locator is one RLOC of a mapping with its attributes (RFC 9301 section 5.4). It is comparable.
type Locator struct {
	RLOC      netip.Addr `json:"rloc"`
	Priority  uint8      `json:"priority"`             // lower is preferred; 255 = do not use
	Weight    uint8      `json:"weight"`               // share among equals, 0..100 by custom
	MPriority uint8      `json:"m_priority,omitempty"` // multicast priority (RFC 6831); 255 = do not use
	MWeight   uint8      `json:"m_weight,omitempty"`
	Local     bool       `json:"local,omitempty"`  // L bit: one of the sender's own RLOCs
	Probed    bool       `json:"probed,omitempty"` // p bit: this RLOC answers a probe
	Reachable bool       `json:"reachable"`

	// LCAF is the RLOC's address as received when it is an LCAF that this package does not
	// interpret (RFC 8060), AFI included; RLOC is then invalid and the locator is unusable.
	LCAF RawLCAF `json:"lcaf,omitempty"`
}

// Usable reports whether packets may be sent to l.
func (l Locator) Usable() bool {
	return l.RLOC.IsValid() && l.Priority != UnusablePriority && l.Reachable
}

// CompareLocators orders as RFC 9301 section 5.5 requires: ascending address, IPv4 before IPv6; after
// them what is no IP address (RFC 8060 section 3: ascending AFI).
func CompareLocators(a, b Locator) int {
	return cmp.Or(cmp.Compare(family(a.RLOC), family(b.RLOC)), a.RLOC.Compare(b.RLOC), cmp.Compare(a.LCAF, b.LCAF))
}

// family is a's place in the order of address families: IPv4, IPv6, none.
func family(a netip.Addr) int {
	switch {
	case a.Is4():
		return 0
	case a.Is6():
		return 1
	}
	return 2
}

// XTRID identifies one xTR (RFC 9301 section 5.6). The zero value means "none given".
type XTRID [16]byte

// SiteID groups xTRs (RFC 9301 section 5.6).
type SiteID uint64

// Compare orders xTR-IDs as big-endian numbers.
func (x XTRID) Compare(o XTRID) int {
	for i := range x {
		if c := cmp.Compare(x[i], o[i]); c != 0 {
			return c
		}
	}
	return 0
}

// IsZero reports whether no xTR-ID was given.
func (x XTRID) IsZero() bool { return x == XTRID{} }

// String is 32 hexadecimal digits.
func (x XTRID) String() string { return hex.EncodeToString(x[:]) }

// MarshalText is [XTRID.String].
func (x XTRID) MarshalText() ([]byte, error) { return []byte(x.String()), nil }

// UnmarshalText reads 32 hexadecimal digits.
func (x *XTRID) UnmarshalText(b []byte) error {
	var v XTRID
	if len(b) != 2*len(v) {
		return fmt.Errorf("xTR-ID %q: want 32 hexadecimal digits", b)
	}
	if _, err := hex.Decode(v[:], b); err != nil {
		return fmt.Errorf("xTR-ID %q: want 32 hexadecimal digits", b)
	}
	*x = v
	return nil
}
