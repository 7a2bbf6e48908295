package mapserver

import (
	"container/heap"
	"time"
)

// timed is what an alarm wakes.
type timed interface{ due(c *core, now time.Time) }

// alarm is one deadline of one thing; setting it again moves it.
type alarm struct {
	at    time.Time
	owner timed
	pos   int // position in the heap plus one; 0: not set
}

// alarms is a heap of deadlines, the nearest first.
type alarms []*alarm

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarms) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i+1, j+1
}

// Push is for package heap.
func (h *alarms) Push(x any) {
	a := x.(*alarm)
	*h = append(*h, a)
	a.pos = len(*h)
}

// Pop is for package heap.
func (h *alarms) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.pos = 0
	return a
}

func (h *alarms) set(a *alarm, owner timed, at time.Time) {
	a.at, a.owner = at, owner
	if a.pos == 0 {
		heap.Push(h, a)
		return
	}
	heap.Fix(h, a.pos-1)
}

func (h *alarms) stop(a *alarm) {
	if a.pos != 0 {
		heap.Remove(h, a.pos-1)
	}
}

// next is the nearest deadline, or the zero time.
func (h alarms) next() time.Time {
	if len(h) == 0 {
		return time.Time{}
	}
	return h[0].at
}
