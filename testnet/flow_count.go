package testnet

import (
	"encoding/binary"
	"sync"
	"time"
)

// A stamp begins every payload: which stream, which packet of it, when it was sent.
//
//	magic 4 | stream 4 | sequence 8 | CLOCK_REALTIME ns 8
const (
	stampLen   = 24
	stampMagic = 0x74616269 // "tabi"
)

type stamp struct {
	stream uint32
	seq    uint64
	sentNS int64
}

// put writes the stamp to the beginning of b, which is at least stampLen bytes.
func (s stamp) put(b []byte) {
	binary.BigEndian.PutUint32(b, stampMagic)
	binary.BigEndian.PutUint32(b[4:], s.stream)
	binary.BigEndian.PutUint64(b[8:], s.seq)
	binary.BigEndian.PutUint64(b[16:], uint64(s.sentNS))
}

// parseStamp reads a stamp; ok is false for what is not ours.
func parseStamp(b []byte) (s stamp, ok bool) {
	if len(b) < stampLen || binary.BigEndian.Uint32(b) != stampMagic {
		return stamp{}, false
	}
	return stamp{binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), int64(binary.BigEndian.Uint64(b[16:]))}, true
}

// minGap is the shortest gap that is remembered: below it, a move cannot be told from the sender's pace.
const minGap = 2 * time.Millisecond

// gap is a time in which a stream brought nothing, in CLOCK_REALTIME ns.
type gap struct{ from, to int64 }

// counter counts what arrived of one stream, and remembers its gaps. Times are the kernel's receive time stamps, so
// that a late reader adds nothing to a gap.
type counter struct {
	mu         sync.Mutex
	seen       []uint64 // a bit per sequence number
	received   uint64   // different packets; bytes of a TCP stream
	duplicated uint64
	reordered  uint64 // arrived after one with a higher number
	foreign    uint64 // numbers that were never sent
	highest    uint64
	first      int64
	last       int64
	gaps       []gap
	delayMax   time.Duration // longest time from sending to receiving
}

// maxSeq bounds the bitmap: 2^32 packets are 24 days at 2,000 a second.
const maxSeq = 1 << 32

// packet counts packet seq, sent at sentNS, arrived at atNS.
func (c *counter) packet(seq uint64, sentNS, atNS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq >= maxSeq {
		c.foreign++
		return
	}
	word, bit := seq/64, uint64(1)<<(seq%64)
	for uint64(len(c.seen)) <= word {
		c.seen = append(c.seen, 0)
	}
	if c.seen[word]&bit != 0 {
		c.duplicated++
		return
	}
	c.seen[word] |= bit
	if c.received > 0 && seq < c.highest {
		c.reordered++
	}
	c.highest = max(c.highest, seq)
	c.delayMax = max(c.delayMax, time.Duration(atNS-sentNS))
	c.arrived(1, atNS)
}

// bytes counts n bytes of a TCP stream, read at atNS.
func (c *counter) bytes(n int, atNS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived(uint64(n), atNS)
}

func (c *counter) arrived(n uint64, atNS int64) {
	c.received += n
	if c.first == 0 {
		c.first, c.last = atNS, atNS
		return
	}
	if atNS-c.last >= int64(minGap) {
		c.gaps = append(c.gaps, gap{c.last, atNS})
	}
	c.last = max(c.last, atNS)
}

// end closes the last gap at the time when the sender stopped: a stream that dried up has a gap, too.
func (c *counter) end(stopped time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := stopped.UnixNano(); at-c.last >= int64(minGap) {
		c.gaps = append(c.gaps, gap{c.last, at})
	}
}

// longestGap is the longest gap that overlaps the window.
func (c *counter) longestGap(w Window) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, to := w.From.UnixNano(), w.To.UnixNano()
	var longest int64
	for _, g := range c.gaps {
		if g.to > from && g.from < to {
			longest = max(longest, g.to-g.from)
		}
	}
	return time.Duration(longest)
}

// missing lists up to limit ranges of sequence numbers below sent that did not arrive, for the report.
func (c *counter) missing(sent uint64, limit int) [][2]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out [][2]uint64
	for seq := uint64(0); seq < sent; seq++ {
		if w := seq / 64; w < uint64(len(c.seen)) && c.seen[w]&(1<<(seq%64)) != 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1][1]+1 == seq {
			out[n-1][1] = seq
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, [2]uint64{seq, seq})
	}
	return out
}
