package mapserver

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// sinkQueue stands between the Map-Server and one Sink, so that a slow one delays nobody. What waits is
// one change per EID, the latest: a Sink that falls behind skips what is overtaken.
type sinkQueue struct {
	name string
	sink lisp.Sink
	log  *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	full    bool                       // what waits is the whole truth
	waiting map[lisp.EID]*lisp.Mapping // nil: gone

	applied, failed atomic.Uint64
}

func newSinkQueue(name string, sink lisp.Sink, log *slog.Logger) *sinkQueue {
	return &sinkQueue{name: name, sink: sink, log: log.With("sink", name), wake: make(chan struct{}, 1),
		waiting: map[lisp.EID]*lisp.Mapping{}}
}

// push adds d to what waits. It does not block.
func (q *sinkQueue) push(d lisp.Delta) {
	q.mu.Lock()
	if d.Full {
		q.full = true
		q.waiting = make(map[lisp.EID]*lisp.Mapping, len(d.Put))
	}
	for i := range d.Put {
		q.waiting[d.Put[i].EID] = &d.Put[i]
	}
	for _, e := range d.Del {
		q.waiting[e] = nil
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take hands out what waits.
func (q *sinkQueue) take() (d lisp.Delta, taken map[lisp.EID]*lisp.Mapping) {
	q.mu.Lock()
	d.Full, taken = q.full, q.waiting
	q.full, q.waiting = false, map[lisp.EID]*lisp.Mapping{}
	q.mu.Unlock()
	for e, m := range taken {
		switch {
		case m != nil:
			d.Put = append(d.Put, *m)
		case !d.Full:
			d.Del = append(d.Del, e)
		}
	}
	slices.SortFunc(d.Put, func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
	slices.SortFunc(d.Del, lisp.EID.Compare)
	return d, taken
}

// putBack returns what the sink did not take, under what has come since.
func (q *sinkQueue) putBack(full bool, taken map[lisp.EID]*lisp.Mapping) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.full {
		return // overtaken by a whole truth
	}
	q.full = full
	for e, m := range q.waiting {
		taken[e] = m
	}
	q.waiting = taken
}

// How long a Sink that fails is left alone before the next try.
const (
	sinkRetryMin = 50 * time.Millisecond
	sinkRetryMax = 10 * time.Second
)

// run hands what waits to the sink until ctx ends.
func (q *sinkQueue) run(ctx context.Context) {
	retry := sinkRetryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		d, taken := q.take()
		if d.Empty() {
			continue
		}
		err := q.sink.Apply(ctx, d)
		if err == nil {
			q.applied.Add(1)
			retry = sinkRetryMin
			continue
		}
		if ctx.Err() != nil {
			return
		}
		q.failed.Add(1)
		q.log.Warn("sink did not take a change", "err", err, "put", len(d.Put), "del", len(d.Del), "retry_in", retry)
		q.putBack(d.Full, taken)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, sinkRetryMax)
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}
