package slowpath

import (
	"cmp"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// copies are the last packets that a port was given.
type copies struct {
	wait   deque[numbered]
	memory int
	newest uint64   // highest number
	left   *leaving // the VM has left
	seeded bool     // newest is known to its upper half
	split  uint32   // number on the frames of a super-packet that came up as segments
	run    uint64   // how many of them have come
}

// numbered is a copy with its number on the port. A super-packet that the VM is given as segments has
// as many numbers, of which n is the first.
type numbered struct {
	f    *frame
	n    uint64
	span uint64
}

// unread returns how many of v's numbers are above read.
func (v numbered) unread(read uint64) uint64 {
	if v.n > read {
		return v.span
	}
	return v.span - min(v.span, read-v.n+1)
}

func (c *copies) pop() numbered {
	v := c.wait.popFront()
	c.memory -= v.f.memory()
	return v
}

func (c *copies) clear() {
	for c.wait.len() > 0 {
		c.pop().f.free()
	}
}

// after returns how many numbers above read there are copies of.
func (c *copies) after(read uint64) (n uint64) {
	var last uint64
	for i := range c.wait.len() {
		if v := c.wait.at(i); v.n != last { // frames with one number are one packet
			n += v.unread(read)
			last = v.n
		}
	}
	return n
}

// widen makes 64 bits of the lower 32 of a number, given one that is not 2^31 away from it.
func widen(near uint64, n uint32) uint64 {
	return near + uint64(int64(int32(n-uint32(near))))
}

func (s *SlowPath) serveCopy(f *frame) {
	c := s.ports[f.up.Port]
	if c == nil {
		c = &copies{}
		s.ports[f.up.Port] = c
	}
	if !c.seeded {
		given, err := s.door.PortCounters(f.up.Port)
		if err != nil {
			s.counts.inc(doorErrors)
		}
		c.newest, c.seeded = given.Given, true
		c.newest = widen(c.newest, f.up.Seq)
	}
	v := numbered{f: f, n: widen(c.newest, f.up.Seq), span: 1}
	switch {
	case f.up.Flags&fib.UpSplit == 0:
	case f.segs > 1:
		v.span = uint64(f.segs)
	case c.run > 0 && c.split == f.up.Seq:
		v.n += c.run
		c.run++
	default:
		c.split, c.run = f.up.Seq, 1
	}
	c.newest = max(c.newest, v.n+v.span-1)
	if c.left != nil {
		if f.since.Before(c.left.until) {
			s.replayLate(c.left, v)
			return
		}
		c.left = nil
	}
	c.wait.pushBack(v)
	c.memory += f.memory()
	for c.wait.len() > s.cfg.CopyPackets || c.memory > s.cfg.CopyBytes {
		c.pop().f.free()
		s.counts.inc(copiesEvicted)
	}
}

// Forget drops the copies of a port.
func (s *SlowPath) Forget(port uint16) {
	s.do(func(time.Time) {
		if c := s.ports[port]; c != nil {
			c.clear()
			delete(s.ports, port)
		}
	})
}

// replayTime is how long a replay waits for copies that are on their way up. While copies wait for this process, which
// on a busy host has to wait for its turn itself, a replay waits longer, at most starvedTime.
const (
	replayTime  = 3 * time.Millisecond
	starvedTime = 500 * time.Millisecond
	starvedStep = time.Millisecond // between two looks at what waits
)

// replay is a call of Replay that waits for copies.
type replay struct {
	hold   uint32
	port   uint16
	read   uint64
	want   uint64    // numbers that there should be copies of
	until  time.Time // replayTime is over
	latest time.Time // starvedTime is over
	answer chan int
}

// Replay puts the packets that a port was given and the VM never read at the head of a hold, marked as
// replays, and returns how many frames that is. read is how many packets the VM has read or the
// interface has dropped: tx_packets plus tx_dropped. It waits up to 3 ms for copies that are still
// on their way, and up to 500 ms for those that are there and that this process could not read yet. It moves the copies: a second call finds only what came since.
func (s *SlowPath) Replay(hold uint32, port uint16, read uint64) int {
	r := &replay{hold: hold, port: port, read: read, answer: make(chan int, 1)}
	if !s.do(func(now time.Time) { s.startReplay(r, now) }) {
		return 0
	}
	select {
	case n := <-r.answer:
		return n
	case <-s.ended:
		return 0
	}
}

func (s *SlowPath) startReplay(r *replay, now time.Time) {
	s.reopen(r.hold, now)
	given, err := s.door.PortCounters(r.port)
	if err != nil {
		s.counts.inc(doorErrors)
	}
	if given.Given > r.read {
		r.want = min(given.Given-r.read, uint64(s.cfg.CopyPackets))
	}
	r.until, r.latest = now.Add(replayTime), now.Add(starvedTime)
	s.replays = append(s.replays, r)
}

// tryReplays answers the replays that have their copies or have waited long enough. It returns when
// the next one has, or zero.
func (s *SlowPath) tryReplays(now time.Time) (wake time.Time) {
	s.replays = slices.DeleteFunc(s.replays, func(r *replay) bool {
		c := s.ports[r.port]
		var have uint64
		if c != nil {
			have = c.after(r.read)
		}
		if again := s.retryAt(r, now); have < r.want && !again.IsZero() {
			if wake.IsZero() || again.Before(wake) {
				wake = again
			}
			return false
		}
		if have < r.want {
			s.counts.add(replayMissing, r.want-have)
		}
		r.answer <- s.putReplays(r, c, now)
		return true
	})
	return wake
}

// retryAt is when a replay that lacks copies is to look again; zero: there is nothing to wait for.
func (s *SlowPath) retryAt(r *replay, now time.Time) time.Time {
	switch {
	case now.Before(r.until):
		return r.until
	case now.Before(r.latest) && !s.quiet():
		return now.Add(starvedStep)
	}
	return time.Time{}
}

// quiet reports whether everything that came up lisp0 has been served.
func (s *SlowPath) quiet() bool {
	for _, q := range s.queues {
		if !q.quiet() {
			return false
		}
	}
	return len(s.in) == 0
}

// putReplays moves the copies to the head of the hold, in order.
func (s *SlowPath) putReplays(r *replay, c *copies, now time.Time) int {
	if c == nil {
		c = &copies{}
		s.ports[r.port] = c
	}
	var unread []numbered
	for n := c.wait.len(); n > 0; n-- {
		v := c.pop()
		switch left := v.unread(r.read); {
		case left == 0:
			v.f.free()
		case left == v.span:
			unread = append(unread, v)
		default:
			unread = append(unread, s.cutRead(v, r.read)...)
		}
	}
	// Copies came by several queues, so they are in order only within each flow.
	slices.SortStableFunc(unread, func(a, b numbered) int { return cmp.Compare(a.n, b.n) })
	h := s.hold(r.hold, now)
	for _, v := range slices.Backward(unread) {
		h.wait.pushFront(s.asReplay(h, v.f))
	}
	s.tell(h)
	s.counts.add(replayed, uint64(len(unread)))
	c.left = &leaving{hold: r.hold, read: r.read, until: now.Add(leavingTime)}
	return len(unread)
}

// asReplay makes a copy one of h's packets.
func (s *SlowPath) asReplay(h *hold, f *frame) *frame {
	f.up.Flags |= fib.UpReplay
	f.up.Hold = uint16(h.id)
	h.memory += f.memory()
	s.held += f.memory()
	h.stats.Bytes += uint64(len(f.packet()))
	h.stats.Replayed += uint64(f.segs)
	// It was never diverted. Saying that it will come keeps live packets behind it.
	h.dropped -= uint64(f.segs)
	return f
}

// leaving says what becomes of copies that come after a replay: a program that looked the route up just
// before it changed may have been kept from running for milliseconds.
type leaving struct {
	hold  uint32
	read  uint64
	until time.Time
}

// leavingTime is how long after a replay a copy may still come; within it no VM is prepared to leave again.
const leavingTime = 50 * time.Millisecond

// replayLate sends on what was given to an interface when its VM had stopped already.
func (s *SlowPath) replayLate(l *leaving, v numbered) {
	late := []numbered{v}
	switch left := v.unread(l.read); {
	case left == 0:
		v.f.free()
		return
	case left < v.span:
		late = s.cutRead(v, l.read)
	}
	h := s.hold(l.hold, v.f.since)
	for _, v := range late {
		if h.state == holdGone {
			s.drop(v.f, dropHoldDiscarded)
			continue
		}
		h.wait.pushBack(s.asReplay(h, v.f))
		s.counts.inc(replayed)
	}
	s.tell(h)
}

// cutRead cuts a super-packet of which the VM has read a part, and returns the rest. It frees v.
func (s *SlowPath) cutRead(v numbered, read uint64) (rest []numbered) {
	defer v.f.free()
	p, ok := parsePacket(v.f.packet(), true)
	if !ok {
		s.counts.inc(badPacket)
		return nil
	}
	n := v.n
	ok = s.segment(v.f, p, fib.Down{}, func(g *frame) bool {
		if n <= read {
			g.free()
		} else {
			g.up, g.since = v.f.up, v.f.since
			rest = append(rest, numbered{f: g, n: n, span: 1})
		}
		n++
		return true
	})
	if !ok {
		s.counts.inc(badOffload)
	}
	return rest
}
