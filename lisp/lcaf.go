package lisp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// Address family identifiers (IANA address family numbers; RFC 8060 section 3 for the LCAF).
const (
	afiNone = 0
	afiIPv4 = 1
	afiIPv6 = 2
	afiLCAF = 16387
)

// lcafInstanceID is the LCAF type that puts an address into an instance (RFC 8060 section 4.1).
const lcafInstanceID = 2

// lcafHeaderLen is the length of an LCAF up to its body (RFC 8060 section 3).
const lcafHeaderLen = 8

// RawLCAF is an address in LISP canonical address format (RFC 8060) as it travels, from its AFI on. As
// text it is hexadecimal.
type RawLCAF string

// LCAFType is the type of the address (RFC 8060 section 3); 0, the null body, also if there is none.
func (l RawLCAF) LCAFType() uint8 {
	if len(l) < lcafHeaderLen {
		return 0
	}
	return l[4]
}

// MarshalText is the hexadecimal form.
func (l RawLCAF) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, []byte(l)), nil }

// UnmarshalText reads what [RawLCAF.MarshalText] writes.
func (l *RawLCAF) UnmarshalText(b []byte) error {
	v, err := hex.DecodeString(string(b))
	if err != nil {
		return fmt.Errorf("LCAF %q: %w", b, err)
	}
	*l = RawLCAF(v)
	return nil
}

// valid reports whether l is one whole LCAF address that may be written into a message.
func (l RawLCAF) valid() bool {
	return len(l) >= lcafHeaderLen && l[:2] == "\x40\x03" && int(l[6])<<8|int(l[7]) == len(l)-lcafHeaderLen
}

// address is an address in a message, one of: nothing (AFI 0), an IP address with its instance-ID, or
// an LCAF that this package does not interpret. addr may be an IPv4-mapped IPv6 address.
type address struct {
	iid  uint32
	addr netip.Addr
	lcaf RawLCAF // set for every LCAF, also the one of an instance-ID
}

// address reads an AFI and what follows it.
//
// "LISP control plane messages that include an unrecognized AFI MUST be dropped" (RFC 9301 section 5.1):
// its length is unknown. An LCAF of an unrecognized type tells its length, and is kept.
func (r *reader) address() address {
	start := r.off
	switch afi := r.u16(); afi {
	case afiNone, afiIPv4, afiIPv6:
		return address{addr: r.ip(afi)}
	case afiLCAF:
	default:
		r.fail(fmt.Errorf("%w %d", ErrUnknownAFI, afi))
		return address{}
	}
	r.bytes(2) // Rsvd1, Flags
	typ := r.u8()
	r.u8() // IID mask-len: of an instance-ID range (AFI 0), which is no EID
	body := reader{b: r.bytes(int(r.u16())), err: r.err}
	if r.err != nil {
		return address{}
	}
	a := address{lcaf: RawLCAF(r.b[start:r.off])}
	if typ != lcafInstanceID {
		return a
	}
	iid, afi := body.u32(), body.u16()
	switch afi {
	case afiNone, afiLCAF: // an instance-ID range, or an LCAF in an LCAF
		return a
	case afiIPv4, afiIPv6:
	default:
		r.fail(fmt.Errorf("%w %d in an instance-ID LCAF", ErrUnknownAFI, afi))
		return address{}
	}
	addr := body.ip(afi)
	if body.err != nil || body.left() != 0 {
		r.fail(fmt.Errorf("%w: length of an instance-ID LCAF", ErrMalformed))
		return address{}
	}
	if iid > MaxInstanceID { // does not fit the data header: nobody could send to it
		return a
	}
	a.iid, a.addr = iid, addr
	return a
}

func (r *reader) ip(afi uint16) netip.Addr {
	switch afi {
	case afiIPv4:
		if p := r.bytes(4); p != nil {
			return netip.AddrFrom4([4]byte(p))
		}
	case afiIPv6:
		if p := r.bytes(16); p != nil {
			return netip.AddrFrom16([16]byte(p))
		}
	}
	return netip.Addr{}
}

// eid makes an EID of an address and a mask length. ok is false for an address that is no IP address in
// an instance: the record that it belongs to is left out.
func (r *reader) eid(mask uint8) (e EID, ok bool) {
	a := r.address()
	if r.err != nil || !a.addr.IsValid() {
		return EID{}, false
	}
	if int(mask) > a.addr.BitLen() {
		r.fail(fmt.Errorf("%w: EID mask length %d", ErrMalformed, mask))
		return EID{}, false
	}
	return MakeEID(a.iid, netip.PrefixFrom(a.addr, int(mask))), true
}

// appendAddr writes AFI and address; an invalid one as AFI 0.
func appendAddr(b []byte, a netip.Addr) []byte {
	a = a.Unmap()
	switch {
	case a.Is4():
		p := a.As4()
		return append(binary.BigEndian.AppendUint16(b, afiIPv4), p[:]...)
	case a.Is6():
		p := a.As16()
		return append(binary.BigEndian.AppendUint16(b, afiIPv6), p[:]...)
	}
	return binary.BigEndian.AppendUint16(b, afiNone)
}

// appendEID writes AFI and address of a prefix, inside an instance-ID LCAF unless the instance-ID is 0.
// The mask length stands elsewhere.
func appendEID(b []byte, e EID) ([]byte, error) {
	if !e.IsValid() {
		return nil, fmt.Errorf("%w: EID %v", ErrUnencodable, e)
	}
	a := MakeEID(e.IID, e.Prefix).Prefix.Addr()
	if e.IID == 0 {
		return appendAddr(b, a), nil
	}
	b = binary.BigEndian.AppendUint16(b, afiLCAF)
	b = append(b, 0, 0, lcafInstanceID, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+2+a.BitLen()/8))
	b = binary.BigEndian.AppendUint32(b, e.IID)
	return appendAddr(b, a), nil
}
