package slowpath

import (
	"encoding/binary"

	"github.com/tabi-lisp/tabi/xtr/checksum"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// TCP flags that not all segments of a super-packet bear.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// serveSegment cuts a super-packet into packets and sends them, in order. What lisp0 has cut on the way
// up, because of offloads that it has not, goes back as it is: only a super-packet comes up for this
// reason, so it does not come again.
func (s *SlowPath) serveSegment(f *frame) {
	if gsoType(f.vnet()) == gsoNone {
		if s.reinject(f, again(f)) {
			s.counts.inc(segmentsSent)
		}
		return
	}
	p, ok := parsePacket(f.packet(), true)
	if !ok {
		s.drop(f, badPacket)
		return
	}
	ok = s.segment(f, p, again(f), func(g *frame) bool {
		if s.write(g) {
			s.counts.inc(segmentsSent)
		}
		return true
	})
	if !ok {
		s.drop(f, badOffload)
		return
	}
	f.free()
}

// shrink sends a super-packet without DF whose packets are larger than mtu, and frees it: TCP is cut
// into smaller segments by whoever cuts it, datagrams are fragmented.
func (s *SlowPath) shrink(f *frame, p packet, mtu int) {
	if gsoType(f.vnet()) == gsoTCP4 {
		size := mtu - p.payload(f.packet())
		if size < 8 {
			s.drop(f, dropTooBig)
			return
		}
		setGSOSize(f.vnet(), uint16(size))
		if s.reinject(f, again(f)) {
			s.counts.inc(resized)
		}
		return
	}
	ok := s.segment(f, p, again(f), func(g *frame) bool {
		q, ok := parsePacket(g.packet(), false)
		switch {
		case !ok:
			s.drop(g, badPacket)
		case q.length <= mtu:
			if s.write(g) {
				s.counts.inc(segmentsSent)
			}
		default:
			g.up = f.up
			s.sendFragments(g, q, mtu)
		}
		return true
	})
	if !ok {
		s.drop(f, badOffload)
		return
	}
	f.free()
}

// segment cuts the super-packet f, whose headers are p, into packets with right lengths, numbers,
// flags and checksums and hands them to emit, until that returns false. emit owns what it is handed;
// segment does not free f. It reports false when f is not such a super-packet.
func (s *SlowPath) segment(f *frame, p packet, d fib.Down, emit func(*frame) bool) bool {
	b := f.packet()[:p.length]
	size := gsoSize(f.vnet())
	switch gsoType(f.vnet()) {
	case gsoTCP4, gsoTCP6:
		if p.proto != protoTCP || p.v6 != (gsoType(f.vnet()) == gsoTCP6) || len(b) < p.upper+20 || b[p.upper+12]>>4 < 5 {
			return false
		}
	case gsoUDP:
		if p.proto != protoUDP || len(b) < p.upper+8 {
			return false
		}
	default:
		return false
	}
	head := p.payload(b)
	if size == 0 || head >= len(b) || p.fragment {
		return false
	}
	data := b[head:]
	for i, off := 0, 0; off < len(data); i, off = i+1, off+size {
		piece := data[off:min(off+size, len(data))]
		g := newPacketFrame(f.q, d, p.v6, head+len(piece))
		o := g.packet()
		copy(o, b[:head])
		copy(o[head:], piece)
		finishSegment(o, p, i, off, off+size >= len(data))
		if !emit(g) {
			break
		}
	}
	return true
}

// finishSegment sets what differs in the i-th packet o of a super-packet with headers p: off is where
// its data begins in the data of the whole.
func finishSegment(o []byte, p packet, i, off int, last bool) {
	if p.v6 {
		binary.BigEndian.PutUint16(o[4:], uint16(len(o)-40))
	} else {
		binary.BigEndian.PutUint16(o[2:], uint16(len(o)))
		binary.BigEndian.PutUint16(o[4:], binary.BigEndian.Uint16(o[4:])+uint16(i))
		sumHeader4(o[:p.upper])
	}
	u := o[p.upper:]
	at := 6
	if p.proto == protoTCP {
		at = 16
		binary.BigEndian.PutUint32(u[4:], binary.BigEndian.Uint32(u[4:])+uint32(off))
		if !last {
			u[13] &^= tcpFIN | tcpPSH
		}
		if i > 0 {
			u[13] &^= tcpCWR
		}
	} else {
		binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	}
	u[at], u[at+1] = 0, 0
	sum := checksum.Of(checksum.Pseudo(p.src, p.dst, p.proto, len(u)), u)
	if sum == 0 && p.proto == protoUDP {
		sum = 0xffff // RFC 768: an all-zero checksum means none
	}
	binary.BigEndian.PutUint16(u[at:], sum)
}
