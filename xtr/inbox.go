package xtr

import (
	"sync"
	"time"
)

// input is something for the goroutine that owns the state.
type input func(now time.Time)

// inbox queues inputs for the goroutine that owns the state. To put one in never waits, so that callbacks may
// do it from anywhere, that goroutine itself included. What is urgent, the stop of a VM before all, overtakes
// the rest.
type inbox struct {
	mu     sync.Mutex
	urgent []input
	plain  []input
	closed bool
	ready  chan struct{} // has a token when there may be something
}

// maxInputs is how many inputs may wait that are allowed to get lost: map-cache misses, sightings, packets.
const maxInputs = 8192

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

// put adds an input that must not be lost. It reports false if nobody will ever take it.
func (b *inbox) put(f input) bool { return b.add(&b.plain, f, 0) }

// rush adds an input that overtakes all that are not urgent.
func (b *inbox) rush(f input) bool { return b.add(&b.urgent, f, 0) }

// offer adds an input unless too many wait.
func (b *inbox) offer(f input) bool { return b.add(&b.plain, f, maxInputs) }

func (b *inbox) add(q *[]input, f input, limit int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || limit > 0 && len(*q) >= limit {
		return false
	}
	*q = append(*q, f)
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return true
}

// take returns the next input; nil if there is none.
func (b *inbox) take() input {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range []*[]input{&b.urgent, &b.plain} {
		if len(*q) > 0 {
			f := (*q)[0]
			(*q)[0] = nil
			*q = (*q)[1:]
			if len(*q) == 0 {
				*q = nil
			}
			return f
		}
	}
	return nil
}

// close refuses inputs from now on, and drops those that wait.
func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.urgent, b.plain = nil, nil
}
