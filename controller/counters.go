package controller

import (
	"maps"
	"slices"
	"sync"
)

// counters count by name, from any goroutine.
type counters struct {
	mu sync.Mutex
	m  map[string]uint64
}

func newCounters() *counters { return &counters{m: map[string]uint64{}} }

func (c *counters) add(name string, n uint64) {
	c.mu.Lock()
	c.m[name] += n
	c.mu.Unlock()
}

func (c *counters) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.m)
}

// Counter is one row of `tabi show counters`.
type Counter struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

func rows(ms ...map[string]uint64) []Counter {
	out := []Counter{}
	for _, m := range ms {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out = append(out, Counter{k, m[k]})
		}
	}
	return out
}
