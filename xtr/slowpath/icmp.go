package slowpath

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/checksum"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// ICMP types and codes that are sent or that must not be answered.
const (
	icmpUnreachable  = 3 // code 4: fragmentation needed
	icmpQuench       = 4
	icmpRedirect     = 5
	icmpTimeExceed   = 11
	icmpParameter    = 12
	icmpFragNeeded   = 4
	icmp6TooBig      = 2
	icmp6TimeExceed  = 3
	icmp6FirstInfo   = 128
	icmp6Redirect    = 137
	icmpHeaderLen    = 8
	icmp4MaxLen      = 576  // RFC 1812 section 4.3.2.3
	icmp6MaxLen      = 1280 // RFC 4443 section 3.2
	minMTU4          = 68   // RFC 791
	minMTU6          = 1280 // RFC 8200 section 5
	errorTTL         = 64
	errorTOS         = 0xc0 // RFC 1812 section 4.3.2.5: precedence 6
	limitedBroadcast = 0xffffffff
)

// icmpError is one of the errors that we send.
type icmpError struct {
	type4, code4 byte
	type6        byte // code 0
	mtu          int  // for too big
	sent         counter
}

func tooBigError(mtu int) icmpError {
	return icmpError{type4: icmpUnreachable, code4: icmpFragNeeded, type6: icmp6TooBig, mtu: mtu, sent: icmpTooBig}
}

var timeExceededError = icmpError{type4: icmpTimeExceed, type6: icmp6TimeExceed, sent: icmpTimeExceeded}

// serveTTL answers a packet whose TTL or hop limit is used up (RFC 1812 section 5.3.1, RFC 4443
// section 3.3).
func (s *SlowPath) serveTTL(f *frame, now time.Time) {
	p, ok := parsePacket(f.packet(), gsoType(f.vnet()) != gsoNone)
	if !ok {
		s.drop(f, badPacket)
		return
	}
	s.answerError(f, p, timeExceededError, now)
	s.drop(f, dropTTL)
}

// serveTooBig fragments or resizes what may be, and answers the rest with the MTU.
func (s *SlowPath) serveTooBig(f *frame, now time.Time) {
	super := gsoType(f.vnet()) != gsoNone
	p, ok := parsePacket(f.packet(), super)
	if !ok {
		s.drop(f, badPacket)
		return
	}
	mtu := int(f.up.Seq)
	if mtu == 0 {
		mtu = s.cfg.MTU
	}
	size := p.length
	if super {
		size = min(size, p.payload(f.packet())+gsoSize(f.vnet()))
	}
	switch {
	case size <= mtu:
		// It fits by what we were told: sent again, it would come up again.
		s.drop(f, dropTooBig)
	case p.dontFrag && p.v6 && mtu < minMTU6, p.dontFrag && mtu < minMTU4:
		// Nobody may be told to send less than the minimum (RFC 8201 section 4, RFC 1191 section 3).
		s.drop(f, dropTooBig)
	case p.dontFrag:
		s.answerError(f, p, tooBigError(mtu), now)
		s.drop(f, dropTooBig)
	case super:
		s.shrink(f, p, mtu)
	default:
		s.sendFragments(f, p, mtu)
	}
}

// answerError sends the error e about f, whose headers are p, to its sender. It does not free f.
func (s *SlowPath) answerError(f *frame, p packet, e icmpError, now time.Time) {
	from := s.cfg.GatewayAddr4
	if p.v6 {
		from = s.cfg.GatewayAddr6
	}
	switch {
	case !eligible(f.packet(), p):
		s.counts.inc(icmpIneligible)
	case !from.IsValid(), from.Is6() && from.IsLinkLocalUnicast() && f.up.Flags&fib.UpTransit != 0:
		// A link-local address means nothing to who is not on our link (RFC 4291 section 2.5.6).
		s.counts.inc(icmpNoSource)
	case !s.icmp.take(p.src, now):
		s.counts.inc(icmpLimited)
	case gsoType(f.vnet()) != gsoNone:
		// The sender's stack made one packet of many; what the path saw is the first of them.
		ok := s.segment(f, p, fib.Down{}, func(g *frame) bool {
			s.sendError(f, g.packet(), p, from, e)
			g.free()
			return false
		})
		if !ok {
			s.counts.inc(badOffload)
		}
	case !complete(f):
		s.counts.inc(badOffload)
	default:
		s.sendError(f, f.packet()[:p.length], p, from, e)
	}
}

// sendError builds the error about quote, which is what f is or begins with, and sends it.
func (s *SlowPath) sendError(f *frame, quote []byte, p packet, from netip.Addr, e icmpError) {
	d := s.toSender(f, p.src)
	var g *frame
	if p.v6 {
		quote = quote[:min(len(quote), icmp6MaxLen-40-icmpHeaderLen)]
		g = newPacketFrame(f.q, d, true, 40+icmpHeaderLen+len(quote))
		b := g.packet()
		header6(b, protoICMP6, errorTTL, from, p.src)
		m := b[40:]
		m[0], m[1], m[2], m[3] = e.type6, 0, 0, 0
		binary.BigEndian.PutUint32(m[4:], uint32(e.mtu))
		copy(m[icmpHeaderLen:], quote)
		binary.BigEndian.PutUint16(m[2:], checksum.Of(checksum.Pseudo(from, p.src, protoICMP6, len(m)), m))
	} else {
		quote = quote[:min(len(quote), icmp4MaxLen-20-icmpHeaderLen)]
		g = newPacketFrame(f.q, d, false, 20+icmpHeaderLen+len(quote))
		b := g.packet()
		s.ident++
		header4(b, protoICMP, errorTOS, errorTTL, s.ident, from, p.src)
		m := b[20:]
		m[0], m[1], m[2], m[3] = e.type4, e.code4, 0, 0
		binary.BigEndian.PutUint32(m[4:], uint32(e.mtu)) // RFC 1191 section 4: the low-order 16 bits
		copy(m[icmpHeaderLen:], quote)
		binary.BigEndian.PutUint16(m[2:], checksum.Of(0, m))
	}
	s.sendOwn(f, g, e.sent)
}

// toSender is what to ask for when a packet of ours goes to the sender of f.
func (s *SlowPath) toSender(f *frame, to netip.Addr) fib.Down {
	d := fib.Down{Do: fib.DownForward, IID: f.up.IID}
	if f.up.Flags&fib.UpTransit == 0 && f.up.Port == 0 && s.cfg.Known != nil && !s.cfg.Known(lisp.HostEID(f.up.IID, to)) {
		d.Do = fib.DownNative
	}
	return d
}

// eligible reports whether an ICMP error may be sent about a packet (RFC 1812 section 4.3.2.7,
// RFC 4443 section 2.4(e)).
func eligible(b []byte, p packet) bool {
	return !p.later && unicastHost(p.src) && !p.dst.IsMulticast() && !broadcast(p.dst) && !isICMPError(b[:p.length], p)
}

// unicastHost reports whether a names one host that can be answered.
func unicastHost(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240
	}
	return true
}

func broadcast(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	b := a.As4()
	return binary.BigEndian.Uint32(b[:]) == limitedBroadcast
}

// isICMPError reports whether the packet is an ICMP error or redirect, or too short to tell.
func isICMPError(b []byte, p packet) bool {
	switch {
	case !p.v6 && p.proto == protoICMP:
		if p.upper >= len(b) {
			return true
		}
		switch b[p.upper] {
		case icmpUnreachable, icmpQuench, icmpRedirect, icmpTimeExceed, icmpParameter:
			return true
		}
	case p.v6 && p.proto == protoICMP6:
		return p.upper >= len(b) || b[p.upper] < icmp6FirstInfo || b[p.upper] == icmp6Redirect
	}
	return false
}

// header4 writes the IPv4 header of a packet that fills b.
func header4(b []byte, proto, tos, ttl byte, ident uint16, src, dst netip.Addr) {
	h := b[:20]
	h[0], h[1] = 0x45, tos
	binary.BigEndian.PutUint16(h[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(h[4:], ident)
	h[6], h[7], h[8], h[9], h[10], h[11] = 0, 0, ttl, proto, 0, 0
	s4, d4 := src.As4(), dst.As4()
	copy(h[12:], s4[:])
	copy(h[16:], d4[:])
	sumHeader4(h)
}

// sumHeader4 sets the checksum of an IPv4 header.
func sumHeader4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], checksum.Of(0, h))
}

// header6 writes the IPv6 header of a packet that fills b.
func header6(b []byte, proto, hopLimit byte, src, dst netip.Addr) {
	h := b[:40]
	h[0], h[1], h[2], h[3] = 0x60, 0, 0, 0
	binary.BigEndian.PutUint16(h[4:], uint16(len(b)-40))
	h[6], h[7] = proto, hopLimit
	s16, d16 := src.As16(), dst.As16()
	copy(h[8:], s16[:])
	copy(h[24:], d16[:])
}
