package stream

import (
	"sync"
	"time"
)

// minGap is the shortest gap that is remembered: below it, a move cannot be told from the sender's pace.
const minGap = 2 * time.Millisecond

// gap is a time in which a stream brought nothing, in CLOCK_REALTIME ns.
type gap struct{ from, to int64 }

// A Counter counts what arrived of one stream, and remembers its gaps. Its methods may be called from any goroutine.
// Times should be the kernel's receive time stamps, so that a late reader adds nothing to a gap.
type Counter struct {
	mu      sync.Mutex
	seen    []uint64 // a bit per sequence number
	counts  Counts
	highest uint64
	hops    uint8 // what was left of the TTL of the packet with the highest number, 0 = unknown
	first   int64
	last    int64
	gaps    []gap
}

// Counts is what a counter counted.
type Counts struct {
	Received   uint64 `json:"received"` // different packets; bytes of a TCP stream
	Duplicated uint64 `json:"duplicated,omitempty"`
	Reordered  uint64 `json:"reordered,omitempty"` // arrived after one with a higher number
	// Detoured are those of Reordered whose way was longer than that of the packet which overtook them, by two routers at
	// least: they went over a tunnel router more.
	Detoured uint64 `json:"detoured,omitempty"`
	Foreign  uint64 `json:"foreign,omitempty"` // numbers that were never sent
	// DelayMax is the longest time from sending to receiving; of use where both have the same clock.
	DelayMax time.Duration `json:"delay_max_ns,omitempty"`
}

// detour is how much of its TTL a packet loses in excess of others, at least, to count as one that took another way: a
// tunnel router, and the router between tunnel routers.
const detour = 2

// maxSeq bounds the bitmap: 2^32 packets are 24 days at 2,000 a second.
const maxSeq = 1 << 32

// Packet counts packet seq, sent at sentNS, arrived at atNS with hops left of its TTL or hop limit (0 = unknown).
func (c *Counter) Packet(seq uint64, sentNS, atNS int64, hops uint8) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq >= maxSeq {
		c.counts.Foreign++
		return
	}
	word, bit := seq/64, uint64(1)<<(seq%64)
	for uint64(len(c.seen)) <= word {
		c.seen = append(c.seen, 0)
	}
	if c.seen[word]&bit != 0 {
		c.counts.Duplicated++
		return
	}
	c.seen[word] |= bit
	switch {
	case c.counts.Received > 0 && seq < c.highest:
		c.counts.Reordered++
		if hops > 0 && int(hops)+detour <= int(c.hops) {
			c.counts.Detoured++
		}
	default:
		c.highest, c.hops = seq, hops
	}
	c.counts.DelayMax = max(c.counts.DelayMax, time.Duration(atNS-sentNS))
	c.arrived(1, atNS)
}

// Bytes counts n bytes of a TCP stream, read at atNS.
func (c *Counter) Bytes(n int, atNS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived(uint64(n), atNS)
}

// Total counts what is new in a total that somebody else counted, and who said so at atNS.
func (c *Counter) Total(total uint64, atNS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if total > c.counts.Received {
		c.arrived(total-c.counts.Received, atNS)
	}
}

func (c *Counter) arrived(n uint64, atNS int64) {
	c.counts.Received += n
	if c.first == 0 {
		c.first, c.last = atNS, atNS
		return
	}
	if atNS-c.last >= int64(minGap) {
		c.gaps = append(c.gaps, gap{c.last, atNS})
	}
	c.last = max(c.last, atNS)
}

// End closes the last gap at the time when the sender stopped: a stream that dried up has a gap, too.
func (c *Counter) End(stopped time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := stopped.UnixNano(); at-c.last >= int64(minGap) {
		c.gaps = append(c.gaps, gap{c.last, at})
	}
}

// Counts is what was counted so far.
func (c *Counter) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// LongestGap is the longest gap that overlaps a window of time.
func (c *Counter) LongestGap(begin, end time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, to := begin.UnixNano(), end.UnixNano()
	var longest int64
	for _, g := range c.gaps {
		if g.to > from && g.from < to {
			longest = max(longest, g.to-g.from)
		}
	}
	return time.Duration(longest)
}

// Missing lists up to limit ranges of sequence numbers below sent that did not arrive, for reports.
func (c *Counter) Missing(sent uint64, limit int) [][2]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out [][2]uint64
	for seq := uint64(0); seq < sent; seq++ {
		if w := seq / 64; w < uint64(len(c.seen)) {
			if c.seen[w] == ^uint64(0) {
				seq |= 63 // all of them are here
				continue
			}
			if c.seen[w]&(1<<(seq%64)) != 0 {
				continue
			}
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
