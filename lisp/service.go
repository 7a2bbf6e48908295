package lisp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// A service binds a service address (or a prefix of them) that clients use, which is the EID of its
// mapping, to the EID that map646 translates it to, which is the mapping's Inside. It has no locators:
// who asks where to send what is for a service address is told of the D-ETRs, for they registered a
// prefix that covers it. The controller counts its versions, and it belongs to no xTR.
//
// On the wire it is a record with one locator of priority 255, so that nobody sends there who does not
// know services, whose address is a key/value address pair (RFC 8060 section 5.5): the key is the
// record's own address, the value is that of Inside.

// NewService is the mapping that binds outside to inside, with a version that the controller has
// counted. It is not checked: see [CheckService].
func NewService(outside, inside netip.Prefix, v Version) Mapping {
	return Mapping{EID: MakeEID(0, outside), TTL: TTLLocal, Version: v, Action: ActDrop, Inside: inside.Masked()}
}

// IsService reports whether m binds a service address to an EID.
func (m Mapping) IsService() bool { return m.Inside.IsValid() }

// noHosts are addresses that no host is reached at from elsewhere.
var noHosts = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// CheckService says what is wrong with a service of outside and inside, nil if nothing is: both are masked
// prefixes of instance 0 with equally many host bits, inside is IPv6, all their addresses are ones that
// hosts can have, and they do not overlap.
func CheckService(outside EID, inside netip.Prefix) error {
	switch {
	case !outside.IsValid() || outside != MakeEID(outside.IID, outside.Prefix):
		return fmt.Errorf("service address %v is no masked prefix", outside)
	case outside.IID != 0:
		return fmt.Errorf("service address %v: services are of instance 0", outside)
	case !inside.IsValid() || inside != inside.Masked():
		return fmt.Errorf("service address %v: EID %v is no masked prefix", outside, inside)
	case !inside.Addr().Is6() || inside.Addr().Is4In6():
		return fmt.Errorf("service address %v: EID %v is not IPv6", outside, inside)
	case hostBits(outside.Prefix) != hostBits(inside):
		return fmt.Errorf("service address %v and EID %v have %d and %d host bits, which must be equally many",
			outside, inside, hostBits(outside.Prefix), hostBits(inside))
	case outside.Prefix.Overlaps(inside):
		return fmt.Errorf("service address %v and EID %v overlap", outside, inside)
	}
	for _, p := range []netip.Prefix{outside.Prefix, inside} {
		for _, no := range noHosts {
			if p.Overlaps(no) {
				return fmt.Errorf("service address %v, EID %v: no host is reached at addresses of %v", outside, inside, no)
			}
		}
	}
	return nil
}

// ServiceInside is the prefix around addr with as many host bits as outside, if these two make a service.
// It is for whoever reads a service from a format that says the length once.
func ServiceInside(outside EID, addr netip.Addr) (netip.Prefix, error) {
	if !outside.IsValid() || !addr.Is6() {
		return netip.Prefix{}, errors.New("a service needs a service address and an IPv6 EID")
	}
	inside := netip.PrefixFrom(addr, addr.BitLen()-hostBits(outside.Prefix))
	return inside, CheckService(outside, inside)
}

// hostBits is how many bits of an address p leaves open.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// LCAFKeyValue is the LCAF type of a key/value address pair (RFC 8060 section 5.5). A locator that still has
// an address of this type after decoding is no service.
const LCAFKeyValue = 15

// inside reads what a record of e, whose only locator is l, says as a service. ok is false if it is none:
// l is not a key/value pair, or one that means something else.
func inside(e EID, l Locator) (p netip.Prefix, ok bool) {
	if l.LCAF.LCAFType() != LCAFKeyValue || l.Priority != UnusablePriority {
		return netip.Prefix{}, false
	}
	body := reader{b: []byte(l.LCAF[lcafHeaderLen:])}
	key := body.ip(body.u16())
	value := body.ip(body.u16())
	if body.err != nil || body.left() != 0 || key.Unmap() != e.Prefix.Addr() {
		return netip.Prefix{}, false
	}
	p, err := ServiceInside(e, value)
	return p, err == nil
}

// insideLocator is what [inside] reads.
func insideLocator(e EID, inside netip.Prefix) Locator {
	b := binary.BigEndian.AppendUint16(nil, afiLCAF)
	b = append(b, 0, 0, LCAFKeyValue, 0)
	key := e.Prefix.Addr()
	b = binary.BigEndian.AppendUint16(b, uint16(2+key.BitLen()/8+2+inside.Addr().BitLen()/8))
	return Locator{Priority: UnusablePriority, MPriority: UnusablePriority,
		LCAF: RawLCAF(appendAddr(appendAddr(b, key), inside.Addr()))}
}
