package slowpath

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// HoldStats is what became of the packets of a hold.
type HoldStats struct {
	Held     uint64            `json:"held"`     // packets that waited
	Passed   uint64            `json:"passed"`   // packets that were still diverted while it was flushed
	Replayed uint64            `json:"replayed"` // copies that were put at the head
	Bytes    uint64            `json:"bytes"`    // of all of them
	Dropped  map[string]uint64 `json:"dropped"`  // packets, by reason
}

type holdState uint8

const (
	holdHolding  holdState = iota // packets wait
	holdFlushing                  // they leave, and new ones after them
	holdDone                      // all have left; what comes late leaves at once
	holdGone                      // all were dropped; what comes late is dropped
)

func (s holdState) String() string {
	return [...]string{"holding", "flushing", "flushed", "discarded"}[s]
}

// hold is one hold queue.
type hold struct {
	id      uint32
	state   holdState
	leave   bool // packets that came as replays are left out
	wait    deque[*frame]
	memory  int
	since   time.Time
	stats   HoldStats
	done    []func(HoldStats)
	dropped uint64 // that the door has not been told of; wraps

	// Of the flush.
	poll     time.Time // when to ask for the counters again
	polls    int
	window   time.Time // when the present window without progress ends
	low      int64     // fewest packets that were missing in this window
	lingerTo time.Time // of holdDone and holdGone: when it is forgotten
}

// finish calls the done functions.
func (h *hold) finish() {
	done := h.done
	h.done = nil
	for _, f := range done {
		f(h.snapshot())
	}
}

func (h *hold) snapshot() HoldStats {
	st := h.stats
	st.Dropped = maps.Clone(st.Dropped)
	if st.Dropped == nil {
		st.Dropped = map[string]uint64{}
	}
	return st
}

// lose counts n packets that will not come back.
func (s *SlowPath) lose(h *hold, n uint64, why counter) {
	s.counts.add(why, n)
	if h.stats.Dropped == nil {
		h.stats.Dropped = make(map[string]uint64)
	}
	h.stats.Dropped[counterNames[why]] += n
}

// dropFrame drops a packet of h.
func (s *SlowPath) dropFrame(h *hold, f *frame, why counter) {
	s.lose(h, uint64(f.segs), why)
	h.dropped += uint64(f.segs)
	f.free()
}

// pop takes the first packet from h.
func (s *SlowPath) pop(h *hold) *frame {
	f := h.wait.popFront()
	h.memory -= f.memory()
	s.held -= f.memory()
	return f
}

func (s *SlowPath) dropHeld(h *hold, why counter) {
	for h.wait.len() > 0 {
		s.dropFrame(h, s.pop(h), why)
	}
}

func (s *SlowPath) hold(id uint32, now time.Time) *hold {
	h := s.holds[id]
	if h == nil {
		h = &hold{id: id, since: now}
		s.holds[id] = h
	}
	return h
}

func (s *SlowPath) serveHold(f *frame) {
	h := s.hold(uint32(f.up.Hold), f.since)
	if h.state == holdGone {
		s.drop(f, dropHoldDiscarded)
		return
	}
	h.stats.Bytes += uint64(len(f.packet()))
	if h.state == holdHolding {
		h.stats.Held += uint64(f.segs)
	} else {
		h.stats.Passed += uint64(f.segs)
	}
	h.wait.pushBack(f)
	h.memory += f.memory()
	s.held += f.memory()
	for h.wait.len() > 0 && (h.memory > s.cfg.MaxHoldBytes || s.held > s.cfg.MaxHoldsBytes) {
		s.dropFrame(h, s.pop(h), dropHoldBytes)
	}
}

// Open says that hold begins anew: whatever comes for it waits, also when it was flushed a moment ago.
// It needs to be called only when a hold queue is used again within Config.Linger of its flush.
func (s *SlowPath) Open(hold uint32) {
	s.do(func(now time.Time) { s.reopen(hold, now) })
}

func (s *SlowPath) reopen(id uint32, now time.Time) *hold {
	h := s.hold(id, now)
	if h.state == holdDone || h.state == holdGone {
		s.rest(h)
		h.state, h.leave, h.since, h.stats = holdHolding, false, now, HoldStats{}
	}
	return h
}

// rest takes h from those that are flushed.
func (s *SlowPath) rest(h *hold) {
	s.active = slices.DeleteFunc(s.active, func(o *hold) bool { return o == h })
}

func (s *SlowPath) forgetHold(h *hold) {
	s.dropHeld(h, dropHoldDiscarded)
	s.tell(h)
	delete(s.holds, h.id)
	s.rest(h)
}

// Flush reinjects what waits in hold, in order, and goes on with what is still diverted to it, until
// the data plane says that nothing is missing. Packets that do not come up for FlushPatience are
// lost. Then it calls done, which must not wait for anything, once.
func (s *SlowPath) Flush(hold uint32, done func(HoldStats)) { s.startFlush(hold, false, done) }

// GiveBack is Flush, but leaves out the packets that came as replays: their source has them still, in
// the queue of the interface that the VM never left.
func (s *SlowPath) GiveBack(hold uint32, done func(HoldStats)) { s.startFlush(hold, true, done) }

func (s *SlowPath) startFlush(id uint32, leave bool, done func(HoldStats)) {
	s.do(func(now time.Time) {
		h := s.hold(id, now)
		h.leave = leave
		if done != nil {
			h.done = append(h.done, done)
		}
		s.activate(h)
		h.state = holdFlushing
		h.poll, h.polls = now, 0
		h.window, h.low = now.Add(s.cfg.FlushPatience), math.MaxInt64
	})
}

// activate puts h among those that flushSome looks at.
func (s *SlowPath) activate(h *hold) {
	if !slices.Contains(s.active, h) {
		s.active = append(s.active, h)
	}
}

// Discard drops everything in hold, what still comes for a moment, and makes the data plane's counters
// equal. The route must not divert to it any more.
func (s *SlowPath) Discard(hold uint32) {
	s.do(func(now time.Time) {
		h := s.hold(hold, now)
		s.dropHeld(h, dropHoldDiscarded)
		h.finish()
		s.activate(h)
		h.state, h.lingerTo, h.poll = holdGone, now.Add(s.cfg.Linger), now.Add(s.cfg.Linger)
		s.resetHold(h)
	})
}

// resetHold makes the counters of h equal, whatever they say.
func (s *SlowPath) resetHold(h *hold) {
	h.dropped = 0
	if err := s.door.HoldReset(h.id); err != nil {
		s.counts.inc(doorErrors)
	}
}

// flushStep is how many packets leave before anything else is looked at.
const flushStep = 64

// flushSome moves the flushes on. It reports whether there is more to do at once, and when to come
// again if not.
func (s *SlowPath) flushSome(now time.Time) (busy bool, wake time.Time) {
	wake = s.tick
	for i := 0; i < len(s.active); i++ {
		h := s.active[i]
		if h.state == holdGone {
			if !now.Before(h.lingerTo) {
				s.resetHold(h)
				s.forgetHold(h)
				i--
			} else if h.lingerTo.Before(wake) {
				wake = h.lingerTo
			}
			continue
		}
		for n := 0; h.wait.len() > 0 && n < flushStep; n++ {
			f := s.pop(h)
			if h.leave && f.up.Flags&fib.UpReplay != 0 {
				s.dropFrame(h, f, dropReplayLeftOut)
				continue
			}
			s.sendHeld(h, f)
			h.poll, h.polls = now, 0
		}
		switch {
		case h.wait.len() > 0:
			busy = true
		case !now.Before(h.poll):
			s.pollHold(h, now)
		}
		if h.state == holdDone && !now.Before(h.lingerTo) && h.wait.len() == 0 && h.low == math.MaxInt64 {
			s.forgetHold(h)
			i--
			continue
		}
		if h.poll.Before(wake) {
			wake = h.poll
		}
	}
	return busy, wake
}

// sendHeld reinjects one packet of h.
func (s *SlowPath) sendHeld(h *hold, f *frame) {
	d := again(f)
	d.Flags |= fib.DownReinjected
	d.Hold = uint16(h.id)
	segs := uint64(f.segs)
	if !s.reinject(f, d) {
		h.dropped += segs
		s.lose(h, segs, dropWrite)
		s.counts[dropWrite].Add(^uint64(0)) // which reinject has counted, too
	}
}

// tell tells the door of the packets of h that will not come back.
func (s *SlowPath) tell(h *hold) {
	if h.dropped == 0 {
		return
	}
	if err := s.door.HoldDropped(h.id, h.dropped); err != nil {
		s.counts.inc(doorErrors)
	}
	h.dropped = 0
}

func (s *SlowPath) tellDoor() {
	for _, h := range s.holds {
		s.tell(h)
	}
}

// pollHold asks whether the data plane misses nothing of h any more. When it misses the same packets
// for a long time they were lost on the way up, and it is told so that it does not divert for ever.
func (s *SlowPath) pollHold(h *hold, now time.Time) {
	s.tell(h)
	h.polls++
	h.poll = now.Add(pollAfter(h.polls))
	diverted, back, err := s.door.HoldCounters(h.id)
	if err != nil {
		s.counts.inc(doorErrors)
		diverted, back = 0, 0 // nothing that could be waited for
	}
	missing := int64(diverted - back)
	if missing <= 0 {
		if missing < 0 { // we had given up packets that came after all
			h.dropped += uint64(missing)
			s.tell(h)
		}
		h.window, h.low = now.Add(s.cfg.FlushPatience), math.MaxInt64
		if h.state == holdFlushing {
			h.state, h.lingerTo = holdDone, now.Add(s.cfg.Linger)
			h.finish()
		}
		if h.state == holdDone {
			h.poll = now.Add(tickEvery)
		}
		return
	}
	h.low = min(h.low, missing)
	if now.Before(h.window) {
		return
	}
	s.lose(h, uint64(h.low), dropHoldLost)
	h.dropped += uint64(h.low)
	s.tell(h)
	h.window, h.low = now.Add(s.cfg.FlushPatience), math.MaxInt64
	h.poll = now
}

// pollAfter is how long to wait after the n-th look at the counters that changed nothing.
func pollAfter(n int) time.Duration {
	return min(100*time.Microsecond<<min(n, 5), time.Millisecond)
}

func (s *SlowPath) expireHolds(now time.Time) {
	for _, h := range s.holds {
		for h.state == holdHolding && h.wait.len() > 0 && now.Sub(h.wait.at(0).since) > s.cfg.MaxHoldTime {
			s.dropFrame(h, s.pop(h), dropHoldTime)
		}
		if h.state == holdHolding && h.wait.len() == 0 && now.Sub(h.since) > s.cfg.MaxHoldTime && h.dropped == 0 && h.stats.Held == 0 {
			delete(s.holds, h.id)
		}
	}
}

func (s *SlowPath) showHolds(now time.Time) []ShowHold {
	rows := make([]ShowHold, 0, len(s.holds))
	for _, h := range s.holds {
		rows = append(rows, ShowHold{
			Hold: h.id, State: h.state.String(), Packets: h.wait.len(), Bytes: h.stats.Bytes,
			Age: now.Sub(h.since).Round(time.Millisecond).String(),
		})
	}
	slices.SortFunc(rows, func(a, b ShowHold) int { return cmp.Compare(a.Hold, b.Hold) })
	return rows
}
