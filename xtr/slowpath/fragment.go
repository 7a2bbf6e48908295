package slowpath

import (
	"encoding/binary"
)

const (
	moreFragments = 0x2000
	offsetMask    = 0x1fff
)

// sendFragments sends f, an IPv4 packet without DF, in fragments of at most mtu bytes, before they are
// encapsulated (RFC 9300 section 7.1), and frees it.
func (s *SlowPath) sendFragments(f *frame, p packet, mtu int) {
	if !complete(f) {
		s.drop(f, badOffload)
		return
	}
	b := f.packet()[:p.length]
	data := b[p.upper:]
	most := (mtu - p.upper) &^ 7
	if most < 8 {
		s.drop(f, dropTooBig)
		return
	}
	// Pieces of about equal size, as the RFC has it: a path that is a little narrower still takes them.
	pieces := (len(data) + most - 1) / most
	size := ((len(data)+pieces-1)/pieces + 7) &^ 7

	field := binary.BigEndian.Uint16(b[6:])
	var later [60]byte
	header := b[:p.upper]
	for off := 0; off < len(data); off += size {
		piece := data[off:min(off+size, len(data))]
		if off > 0 {
			header = later[:laterHeader(later[:], b[:p.upper])]
		}
		g := newPacketFrame(f.q, again(f), false, len(header)+len(piece))
		o := g.packet()
		copy(o, header)
		copy(o[len(header):], piece)
		binary.BigEndian.PutUint16(o[2:], uint16(len(o)))
		fragment := field&^offsetMask | (field&offsetMask + uint16(off/8))
		if off+size < len(data) {
			fragment |= moreFragments
		}
		binary.BigEndian.PutUint16(o[6:], fragment)
		sumHeader4(o[:len(header)])
		if s.write(g) {
			s.counts.inc(fragmentsSent)
		}
	}
	f.free()
}

// laterHeader writes the IPv4 header of the fragments after the first: of the options only those with
// the copied flag (RFC 791 section 3.1). It returns its length.
func laterHeader(out, h []byte) int {
	n := copy(out, h[:20])
	for opts := h[20:]; len(opts) > 0 && opts[0] != 0; {
		l := 1
		if opts[0] != 1 {
			if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
				break // malformed: what follows means nothing
			}
			l = int(opts[1])
			if opts[0]&0x80 != 0 {
				n += copy(out[n:], opts[:l])
			}
		}
		opts = opts[l:]
	}
	for n%4 != 0 {
		out[n] = 0
		n++
	}
	out[0] = 0x40 | byte(n/4)
	return n
}
