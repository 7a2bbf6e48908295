package lisp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Bits of the first word of an ECM (RFC 9301 section 5.8).
const (
	ecmBitS = 0x08000000
	ecmBitD = 0x04000000
)

// ecmADLISPSEC is the AD type of LISP-SEC (RFC 9303 section 8.1).
const ecmADLISPSEC = 1

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	udpHeaderLen  = 8
	protoUDP      = 17
	innerTTL      = 64

	ipv4FlagDF       = 0x4000
	ipv4FragmentMask = 0x3fff // MF and the offset
)

// Message decodes the inner control message. An ECM inside an ECM is refused.
func (e *ECM) Message() (Message, error) {
	m, err := Decode(e.Inner)
	if err != nil {
		return nil, err
	}
	if m.Type() == TypeECM {
		return nil, fmt.Errorf("lisp: decode ecm: %w: an ECM in an ECM", ErrMalformed)
	}
	return m, nil
}

// append builds the inner headers. When Source and Dest are of different families, which happens when
// an xTR that has only IPv6 RLOCs asks for an IPv4 EID, or the reverse, the inner header is IPv6 with
// the IPv4 address mapped into it: nothing routes by it.
func (e *ECM) append(b []byte) ([]byte, error) {
	src, dst := e.Source.Addr().Unmap(), e.Dest.Addr().Unmap()
	if !src.IsValid() || !dst.IsValid() {
		return nil, fmt.Errorf("%w: inner addresses %v, %v", ErrUnencodable, src, dst)
	}
	// "Port number 4341 MUST NOT be assigned to either port" (RFC 9301 section 5.8).
	if e.Source.Port() == DataPort || e.Dest.Port() == DataPort {
		return nil, fmt.Errorf("%w: inner port %d", ErrUnencodable, DataPort)
	}
	udpLen := udpHeaderLen + len(e.Inner)
	if udpLen > 1<<16-1-ipv4HeaderLen {
		return nil, fmt.Errorf("%w: inner message of %d bytes", ErrUnencodable, len(e.Inner))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(TypeECM)<<28|bit(e.Security, ecmBitS)|bit(e.DDT, ecmBitD))
	if e.Security {
		b = append(b, e.AuthData...)
	}
	if src.Is4() && dst.Is4() {
		start := len(b)
		b = append(b, 4<<4|ipv4HeaderLen/4, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ipv4HeaderLen+udpLen))
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, ipv4FlagDF)
		b = append(b, innerTTL, protoUDP, 0, 0)
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[start+10:], checksum(0, b[start:]))
	} else {
		s, d := src.As16(), dst.As16()
		b = binary.BigEndian.AppendUint32(b, 6<<28)
		b = binary.BigEndian.AppendUint16(b, uint16(udpLen))
		b = append(b, protoUDP, innerTTL)
		b = append(b, s[:]...)
		b = append(b, d[:]...)
	}
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, e.Source.Port())
	b = binary.BigEndian.AppendUint16(b, e.Dest.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen))
	b = binary.BigEndian.AppendUint16(b, 0)
	b = append(b, e.Inner...)
	sum := checksum(pseudoSum(src, dst, udpLen), b[start:])
	if sum == 0 {
		sum = 0xffff // "The checksum field MUST be non-zero" (RFC 9301 section 5.8); RFC 768.
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b, nil
}

func decodeECM(r *reader) *ECM {
	w := r.u32()
	e := ECM{Security: w&ecmBitS != 0, DDT: w&ecmBitD != 0}
	if e.Security {
		e.AuthData = bytes.Clone(r.ecmAuthData())
	}
	src, dst, seg := r.innerIP()
	u := reader{b: seg, err: r.err}
	sport, dport, length, sum := u.u16(), u.u16(), int(u.u16()), u.u16()
	switch {
	case u.err != nil:
		r.fail(u.err)
	case length < udpHeaderLen || length > len(seg):
		r.fail(fmt.Errorf("%w: inner UDP length %d", ErrMalformed, length))
	case sport == DataPort || dport == DataPort:
		r.fail(fmt.Errorf("%w: inner port %d", ErrMalformed, DataPort))
	// Peers exist that leave the inner checksum out over IPv4, though they must not.
	case sum == 0 && !src.Is4():
		r.fail(fmt.Errorf("%w: no inner UDP checksum", ErrMalformed))
	case sum != 0 && checksum(pseudoSum(src, dst, length), seg[:length]) != 0:
		r.fail(fmt.Errorf("%w: inner UDP checksum", ErrMalformed))
	}
	if r.err != nil {
		return nil
	}
	e.Source = netip.AddrPortFrom(src.Unmap(), sport)
	e.Dest = netip.AddrPortFrom(dst.Unmap(), dport)
	e.Inner = bytes.Clone(seg[udpHeaderLen:length])
	return &e
}

// ecmAuthData reads the authentication data of RFC 9303 section 6.1, of which only the lengths matter
// here. Another kind has no length, so that the message behind it cannot be found.
func (r *reader) ecmAuthData() []byte {
	start := r.off
	if typ := r.u8(); r.err == nil && typ != ecmADLISPSEC {
		r.fail(fmt.Errorf("%w: ECM authentication data of type %d", ErrMalformed, typ))
	}
	r.bytes(3) // Unassigned, Requested HMAC ID
	otk := int(r.u16())
	r.bytes(2 + otk) // Key ID, OTK Wrapping ID, One-Time-Key with its preamble
	eidAD := int(r.u16())
	if eidAD < 2 { // it counts itself
		r.fail(fmt.Errorf("%w: EID-AD length %d", ErrMalformed, eidAD))
	}
	r.bytes(eidAD - 2)
	if r.err != nil {
		return nil
	}
	return r.b[start:r.off]
}

// innerIP reads the inner IP header; the result is what it holds, a UDP datagram, maybe padded.
func (r *reader) innerIP() (src, dst netip.Addr, payload []byte) {
	if r.left() == 0 {
		r.fail(ErrTruncated)
		return
	}
	switch v := r.b[r.off] >> 4; v {
	case 4:
		start := r.off
		head := r.bytes(ipv4HeaderLen)
		if r.err != nil {
			return
		}
		headerLen, total := int(head[0]&0xf)*4, int(binary.BigEndian.Uint16(head[2:]))
		r.bytes(headerLen - ipv4HeaderLen) // options
		payload = r.bytes(total - headerLen)
		switch {
		case r.err != nil:
		case checksum(0, r.b[start:start+headerLen]) != 0:
			r.fail(fmt.Errorf("%w: inner IPv4 header checksum", ErrMalformed))
		case binary.BigEndian.Uint16(head[6:])&ipv4FragmentMask != 0:
			r.fail(fmt.Errorf("%w: the inner packet is a fragment", ErrMalformed))
		case head[9] != protoUDP:
			r.fail(fmt.Errorf("%w: inner protocol %d", ErrMalformed, head[9]))
		}
		return netip.AddrFrom4([4]byte(head[12:])), netip.AddrFrom4([4]byte(head[16:])), payload
	case 6:
		head := r.bytes(ipv6HeaderLen)
		if r.err != nil {
			return
		}
		payload = r.bytes(int(binary.BigEndian.Uint16(head[4:])))
		if head[6] != protoUDP {
			r.fail(fmt.Errorf("%w: inner protocol %d", ErrMalformed, head[6]))
		}
		return netip.AddrFrom16([16]byte(head[8:])), netip.AddrFrom16([16]byte(head[24:])), payload
	default:
		r.fail(fmt.Errorf("%w: inner IP version %d", ErrMalformed, v))
		return
	}
}

// pseudoSum is the sum over the pseudo-header of UDP (RFC 768, RFC 8200 section 8.1). IPv4-mapped
// addresses and the IPv4 addresses themselves differ in the sum only by 0xffff for each, which is zero.
func pseudoSum(src, dst netip.Addr, udpLen int) uint32 {
	s, d := src.As16(), dst.As16()
	return sum16(sum16(protoUDP+uint32(udpLen), s[:]), d[:])
}

// sum16 adds b to a one's complement sum that is not folded yet.
func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071) of b with what was summed before.
func checksum(sum uint32, b []byte) uint16 {
	for sum = sum16(sum, b); sum > 0xffff; {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
