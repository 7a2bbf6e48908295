package map646

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// ReassemblerConfig bounds a Reassembler. Zero fields take their default.
type ReassemblerConfig struct {
	// Bytes is what is held in all, what a fragment costs beside its data counted; default 4 MiB.
	Bytes int
	// SourceBytes is what is held for one source address; default 192 KiB, two of the largest packets and some.
	SourceBytes int
	// Time is how long a packet may take from its first fragment to its last; default 10 s (RFC 8200 section 4.5 allows
	// 60 s, RFC 791 begins with 15 s).
	Time time.Duration
}

const (
	reassemblyBytes  = 4 << 20
	reassemblySource = 192 << 10
	reassemblyTime   = 10 * time.Second
	packetCost       = 256 // bytes of memory that an incomplete packet takes beside its fragments
	fragmentCost     = 64  // and a fragment beside its data
)

// Whole is what a Reassembler gives for a packet.
type Whole struct {
	// Packet is the packet as if it had not been fragmented. In IPv6 a Fragment Header stays, as an atomic fragment,
	// which says that it may be fragmented again.
	Packet []byte
	// Largest is its largest fragment in bytes, for Options.Largest; 0 if it came whole.
	Largest int
}

// ReassemblerCounters are what a Reassembler counted since it was made.
type ReassemblerCounters struct {
	Fragments uint64 // taken
	Whole     uint64 // packets that were made whole
	Expired   uint64 // packets that were not complete in time
	Evicted   uint64 // packets that had to make room
	Overlap   uint64 // packets dropped because their fragments overlap (RFC 8200 section 4.5, RFC 5722)
	Malformed uint64 // fragments that cannot be part of a packet
}

// Reassembler makes fragmented ICMP and ICMPv6 packets whole, which alone cannot be translated in pieces: ICMPv6 has a
// checksum over a pseudo-header with the length of all, ICMP has not. It is owned by one goroutine. What it holds is
// bounded by bytes, in all and for one source, and by time.
type Reassembler struct {
	cfg      ReassemblerConfig
	partial  map[fragmentKey]*partial
	first    *partial // in the order in which they began, which is that in which they expire
	last     *partial
	sources  map[netip.Addr]*source
	bytes    int
	counters ReassemblerCounters
}

// fragmentKey is what the fragments of a packet have in common.
type fragmentKey struct {
	src, dst netip.Addr
	id       uint32
}

// source is what is held for a source address, in the order in which it began.
type source struct {
	bytes   int
	partial []*partial
}

// partial is a packet of which fragments are missing.
type partial struct {
	key fragmentKey

	before, after *partial // of all

	until   time.Time
	head    []byte // headers of the first fragment
	pieces  []piece
	have    int // bytes of data
	total   int // bytes of data in the whole, or -1 while the last fragment is missing
	largest int
	cost    int
}

type piece struct {
	offset int
	data   []byte
}

// NewReassembler makes an empty Reassembler.
func NewReassembler(cfg ReassemblerConfig) *Reassembler {
	if cfg.Bytes <= 0 {
		cfg.Bytes = reassemblyBytes
	}
	if cfg.SourceBytes <= 0 {
		cfg.SourceBytes = reassemblySource
	}
	if cfg.Time <= 0 {
		cfg.Time = reassemblyTime
	}
	return &Reassembler{cfg: cfg, partial: make(map[fragmentKey]*partial), sources: make(map[netip.Addr]*source)}
}

// Take takes a packet. It returns it at once unless it is a fragment of ICMP or ICMPv6; the last missing fragment of
// such a packet returns the whole. Otherwise it reports false, and has copied what it needs: packet is the caller's.
func (r *Reassembler) Take(packet []byte, now time.Time) (w Whole, ok bool) {
	r.Expire(now)
	f, ok := icmpFragment(packet)
	if !ok {
		return Whole{Packet: packet}, true
	}
	r.counters.Fragments++
	if len(f.data) == 0 || f.mf && len(f.data)%8 != 0 {
		r.counters.Malformed++
		return Whole{}, false
	}
	p := r.partial[f.key]
	if p == nil {
		p = r.begin(f.key, now)
	}
	switch p.add(f) {
	case pieceKnown:
		return Whole{}, false
	case pieceOverlaps:
		r.counters.Overlap++
		r.drop(p)
		return Whole{}, false
	case pieceTooMuch:
		r.counters.Malformed++
		r.drop(p)
		return Whole{}, false
	}
	p.largest = max(p.largest, f.length)
	if p.total == p.have && p.head != nil {
		r.drop(p)
		r.counters.Whole++
		return Whole{Packet: p.whole(), Largest: p.largest}, true
	}
	r.charge(p, len(f.data)+fragmentCost)
	r.evict(f.key.src)
	return Whole{}, false
}

// Expire drops the packets whose time is over by now. It returns how many.
func (r *Reassembler) Expire(now time.Time) (n int) {
	for r.first != nil && !r.first.until.After(now) {
		r.drop(r.first)
		r.counters.Expired++
		n++
	}
	return n
}

// Next is when Expire will have something to do: the zero Time if nothing is held.
func (r *Reassembler) Next() time.Time {
	if r.first == nil {
		return time.Time{}
	}
	return r.first.until
}

// Held is how many incomplete packets are held, and what they cost in bytes.
func (r *Reassembler) Held() (packets, bytes int) { return len(r.partial), r.bytes }

// Counters returns what was counted.
func (r *Reassembler) Counters() ReassemblerCounters { return r.counters }

// begin makes a packet without fragments.
func (r *Reassembler) begin(key fragmentKey, now time.Time) *partial {
	p := &partial{key: key, until: now.Add(r.cfg.Time), total: -1, before: r.last}
	if r.last == nil {
		r.first = p
	} else {
		r.last.after = p
	}
	r.last = p
	r.partial[key] = p
	s := r.sources[key.src]
	if s == nil {
		s = new(source)
		r.sources[key.src] = s
	}
	s.partial = append(s.partial, p)
	r.charge(p, packetCost)
	return p
}

func (r *Reassembler) charge(p *partial, n int) {
	p.cost += n
	r.bytes += n
	r.sources[p.key.src].bytes += n
}

// drop forgets a packet.
func (r *Reassembler) drop(p *partial) {
	if p.before == nil {
		r.first = p.after
	} else {
		p.before.after = p.after
	}
	if p.after == nil {
		r.last = p.before
	} else {
		p.after.before = p.before
	}
	delete(r.partial, p.key)
	s := r.sources[p.key.src]
	r.bytes -= p.cost
	s.bytes -= p.cost
	s.partial = slices.DeleteFunc(s.partial, func(o *partial) bool { return o == p })
	if len(s.partial) == 0 {
		delete(r.sources, p.key.src)
	}
}

// evict makes room: a source that has more than its part loses its own oldest, and if all is full the oldest goes.
func (r *Reassembler) evict(src netip.Addr) {
	for s := r.sources[src]; s.bytes > r.cfg.SourceBytes && len(s.partial) > 0; {
		r.drop(s.partial[0])
		r.counters.Evicted++
	}
	for r.bytes > r.cfg.Bytes {
		r.drop(r.first)
		r.counters.Evicted++
	}
}

// icmpPiece is a fragment of ICMP or ICMPv6.
type icmpPiece struct {
	key    fragmentKey
	offset int
	mf     bool
	head   []byte // headers of this fragment; in IPv6 with the Fragment Header
	data   []byte
	length int // of the fragment as a packet
}

// icmpFragment reads a fragment of ICMP or ICMPv6. It reports false for all else.
func icmpFragment(b []byte) (f icmpPiece, ok bool) {
	switch version(b) {
	case 4:
		h, ok := parse4(b)
		if !ok || !h.fragment() || h.proto != protoICMP {
			return f, false
		}
		return icmpPiece{
			key:    fragmentKey{netip.AddrFrom4(h.src), netip.AddrFrom4(h.dst), uint32(h.id)},
			offset: h.offset, mf: h.mf, head: b[:h.length], data: h.data, length: h.total,
		}, true
	case 6:
		h, ok := parse6(b)
		if !ok || !h.fragment() || h.proto != protoICMP6 {
			return f, false
		}
		return icmpPiece{
			key:    fragmentKey{netip.AddrFrom16(h.src), netip.AddrFrom16(h.dst), h.id},
			offset: h.offset, mf: h.mf, head: b[:h.upper], data: h.data, length: h.total,
		}, true
	}
	return f, false
}

// added is what became of a fragment.
type added uint8

const (
	pieceNew added = iota
	pieceKnown
	pieceOverlaps
	pieceTooMuch // beyond the end, or a second end
)

// add adds a fragment, in order.
func (p *partial) add(f icmpPiece) added {
	end := f.offset + len(f.data)
	i, _ := slices.BinarySearchFunc(p.pieces, f.offset, func(q piece, offset int) int { return q.offset - offset })
	if i < len(p.pieces) && p.pieces[i].offset == f.offset && len(p.pieces[i].data) == len(f.data) {
		return pieceKnown // the same fragment twice is no attack (RFC 8200 section 4.5)
	}
	if i < len(p.pieces) && p.pieces[i].offset < end || i > 0 && p.pieces[i-1].offset+len(p.pieces[i-1].data) > f.offset {
		return pieceOverlaps
	}
	if !f.mf {
		if p.total >= 0 || len(p.pieces) > i {
			return pieceTooMuch
		}
		p.total = end
	} else if p.total >= 0 && end > p.total {
		return pieceTooMuch
	}
	if f.offset == 0 {
		p.head = slices.Clone(f.head)
	}
	most := 0xffff
	if version(p.head) == 6 {
		most += header6Len // it is not part of the length
	}
	if len(p.head)+p.have+len(f.data) > most {
		return pieceTooMuch
	}
	p.pieces = slices.Insert(p.pieces, i, piece{f.offset, slices.Clone(f.data)})
	p.have += len(f.data)
	return pieceNew
}

// whole puts the fragments together.
func (p *partial) whole() []byte {
	b := make([]byte, len(p.head), len(p.head)+p.have)
	copy(b, p.head)
	for _, q := range p.pieces {
		b = append(b, q.data...)
	}
	if version(b) == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], 0)
		sumHeader4(b[:len(p.head)])
		return b
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-header6Len))
	binary.BigEndian.PutUint16(b[len(p.head)-fragmentLen+2:], 0)
	return b
}
