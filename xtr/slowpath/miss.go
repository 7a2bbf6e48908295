package slowpath

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Miss says that packets wait because the data plane has no route to Dst. Each is answered by
// [SlowPath.Release] or [SlowPath.Reject]; without an answer the packets are dropped after a time.
type Miss struct {
	IID uint32
	Src netip.Addr // of the first packet
	Dst netip.Addr
}

// missState is what happens to packets for a destination that the data plane knows nothing about.
type missState uint8

const (
	missWaiting  missState = iota // they wait
	missReleased                  // they go down: these had come up before the route was there
	missRefused                   // they are dropped: there was no answer, or it was no
)

func (s missState) String() string {
	return [...]string{"waiting", "released", "refused"}[s]
}

type missKey struct {
	iid uint32
	dst netip.Addr
}

func (k missKey) eid() lisp.EID { return lisp.HostEID(k.iid, k.dst) }

// missQueue is what waits for one destination.
type missQueue struct {
	key    missKey
	src    netip.Addr
	state  missState
	until  time.Time // when the state ends
	since  time.Time
	wait   deque[*frame]
	bytes  int
	budget int // packets that may pass while released
}

// How long, and how many packets, pass for a destination that was just released: what was in the
// queues of lisp0 at that time. Bounded, because a destination without a route would go round for ever.
const (
	releasedTime    = 20 * time.Millisecond
	releasedPackets = 16384
)

// missTable holds the destinations that are waited for.
type missTable struct {
	queues map[missKey]*missQueue
	bytes  int            // of all queues
	report deque[missKey] // those that Misses has not told yet
	rate   bucket
}

func (t *missTable) init() {
	t.queues = make(map[missKey]*missQueue)
	t.rate = bucket{rate: 2000, burst: 1000, tokens: 1000}
}

func (t *missTable) len() int { return len(t.queues) }

// emptied notes that nothing waits in q any more.
func (t *missTable) emptied(q *missQueue) {
	t.bytes -= q.bytes
	q.bytes = 0
}

// next returns the next destination to tell the control plane of.
func (t *missTable) next(now time.Time) (Miss, bool) {
	for t.report.len() > 0 {
		q := t.queues[t.report.at(0)]
		if q != nil && q.state == missWaiting {
			return Miss{IID: q.key.iid, Src: q.src, Dst: q.key.dst}, t.rate.has(now)
		}
		t.report.popFront()
	}
	return Miss{}, false
}

// reported notes that what next returned was told.
func (t *missTable) reported(now time.Time) {
	t.report.popFront()
	t.rate.take(now)
}

func (s *SlowPath) serveMiss(f *frame, now time.Time) {
	p, ok := parsePacket(f.packet(), gsoType(f.vnet()) != gsoNone)
	if !ok {
		s.drop(f, badPacket)
		return
	}
	key := missKey{f.up.IID, p.dst}
	q := s.miss.queues[key]
	if q != nil && !now.Before(q.until) {
		s.endMiss(q, now)
		q = s.miss.queues[key]
	}
	if q == nil {
		if len(s.miss.queues) >= s.cfg.MissDestinations {
			s.drop(f, dropMissTable)
			return
		}
		q = &missQueue{key: key, src: p.src, since: now, until: now.Add(s.cfg.MissTime)}
		s.miss.queues[key] = q
		s.miss.report.pushBack(key)
	}
	switch {
	case q.state == missRefused:
		s.drop(f, dropMissRefused)
	case q.state == missReleased && q.budget > 0:
		q.budget--
		s.reinject(f, again(f))
	case q.state == missReleased:
		s.drop(f, dropMissRefused)
	case q.wait.len() >= s.cfg.MissPackets:
		// The newest goes: the first packets of a flow are worth more than the last.
		s.drop(f, dropMissPackets)
	case q.bytes+f.memory() > s.cfg.MissBytes || s.miss.bytes+f.memory() > s.cfg.MissesBytes:
		s.drop(f, dropMissBytes)
	default:
		q.bytes += f.memory()
		s.miss.bytes += f.memory()
		q.wait.pushBack(f)
	}
}

// Release sends everything on its way that waits for destinations inside e: the data plane knows now.
// Packets to one destination leave in the order in which they came.
func (s *SlowPath) Release(e lisp.EID) {
	s.do(func(now time.Time) { s.answerMiss(e, func(q *missQueue) { s.releaseMiss(q, now) }) })
}

// Reject drops everything that waits for destinations inside e, and what still comes for a moment.
func (s *SlowPath) Reject(e lisp.EID) {
	s.do(func(now time.Time) { s.answerMiss(e, func(q *missQueue) { s.refuseMiss(q, dropRejected, now) }) })
}

func (s *SlowPath) answerMiss(e lisp.EID, answer func(*missQueue)) {
	if e.IsHost() {
		if q := s.miss.queues[missKey{e.IID, e.Prefix.Addr()}]; q != nil {
			answer(q)
		}
		return
	}
	for k, q := range s.miss.queues {
		if e.IID == k.iid && e.Prefix.Contains(k.dst) {
			answer(q)
		}
	}
}

func (s *SlowPath) releaseMiss(q *missQueue, now time.Time) {
	for q.wait.len() > 0 {
		f := q.wait.popFront()
		s.reinject(f, again(f))
	}
	s.miss.emptied(q)
	q.state, q.until, q.budget = missReleased, now.Add(releasedTime), releasedPackets
}

func (s *SlowPath) refuseMiss(q *missQueue, why counter, now time.Time) {
	s.dropMiss(q, why)
	q.state, q.until = missRefused, now.Add(s.cfg.RefusedTime)
}

func (s *SlowPath) dropMiss(q *missQueue, why counter) {
	for q.wait.len() > 0 {
		s.drop(q.wait.popFront(), why)
	}
	s.miss.emptied(q)
}

// endMiss ends the state of q whose time is over.
func (s *SlowPath) endMiss(q *missQueue, now time.Time) {
	if q.state == missWaiting {
		s.refuseMiss(q, dropMissTime, now)
		return
	}
	delete(s.miss.queues, q.key)
}

func (s *SlowPath) expireMisses(now time.Time) {
	for _, q := range s.miss.queues {
		if !now.Before(q.until) {
			s.endMiss(q, now)
		}
	}
}

func (s *SlowPath) showMisses(now time.Time) []ShowMiss {
	rows := make([]ShowMiss, 0, len(s.miss.queues))
	for _, q := range s.miss.queues {
		rows = append(rows, ShowMiss{
			EID: q.key.eid(), State: q.state.String(), Packets: q.wait.len(),
			Age: now.Sub(q.since).Round(time.Millisecond).String(),
		})
	}
	slices.SortFunc(rows, func(a, b ShowMiss) int { return a.EID.Compare(b.EID) })
	return rows
}
