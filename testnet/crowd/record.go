package crowd

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Second is what a crowd saw in one second of its time.
type Second struct {
	Open      int     `json:"open"` // connections at its end
	Requests  int     `json:"requests"`
	Failures  int     `json:"failures"`
	LongestMS float64 `json:"longest_ms"` // wait of those that were answered in it
	Bytes     uint64  `json:"bytes"`
}

// Stats is what a crowd has seen.
type Stats struct {
	Open      int      `json:"open"`
	Peak      int      `json:"peak"` // connections that were open at once
	Came      int      `json:"came"` // connections that were made
	Requests  uint64   `json:"requests"`
	Failures  uint64   `json:"failures"`
	Errors    []string `json:"errors,omitempty"` // the first few
	Bytes     uint64   `json:"bytes"`
	MedianMS  float64  `json:"median_ms"` // of all waits, to a tenth of them
	P99MS     float64  `json:"p99_ms"`
	LongestMS float64  `json:"longest_ms"`
	LongestAt float64  `json:"longest_at"` // in seconds after the beginning, when that wait ended
	ByGroup   []uint64 `json:"by_group"`   // requests
	Seconds   []Second `json:"seconds"`
}

// errorsMax is how many errors are kept.
const errorsMax = 10

// waitBuckets count waits: bucket i is of waits up to 0.1 ms * 1.1^i.
const waitBuckets = 160

// record is written by all viewers.
type record struct {
	mu      sync.Mutex
	began   time.Time
	s       Stats
	buckets [waitBuckets]uint64
}

func newRecord() *record { return new(record) }

func (r *record) begin(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = at
}

// second is the one that at lies in; with mu held.
func (r *record) second(at time.Time) *Second {
	n := max(int(at.Sub(r.began)/time.Second), 0)
	for len(r.s.Seconds) <= n {
		r.s.Seconds = append(r.s.Seconds, Second{Open: r.s.Open})
	}
	return &r.s.Seconds[n]
}

// came counts a connection of a group; left one less.
func (r *record) came(group int, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s.Came++
	r.s.Open++
	r.s.Peak = max(r.s.Peak, r.s.Open)
	r.second(at).Open = r.s.Open
}

func (r *record) left() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s.Open--
}

func (r *record) answered(group int, at time.Time, wait time.Duration, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.s.ByGroup) <= group {
		r.s.ByGroup = append(r.s.ByGroup, 0)
	}
	r.s.ByGroup[group]++
	r.s.Requests++
	r.s.Bytes += uint64(bytes)
	r.buckets[bucketOf(wait)]++
	s, took := r.second(at), ms(wait)
	s.Open = r.s.Open
	s.Requests++
	s.Bytes += uint64(bytes)
	s.LongestMS = max(s.LongestMS, took)
	if took > r.s.LongestMS {
		r.s.LongestMS, r.s.LongestAt = took, at.Sub(r.began).Seconds()
	}
}

func (r *record) failed(at time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s.Failures++
	r.second(at).Failures++
	if len(r.s.Errors) < errorsMax {
		r.s.Errors = append(r.s.Errors, err.Error())
	}
}

// stats is a copy of what is known at a time.
func (r *record) stats(now time.Time) Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.began.IsZero() {
		r.second(now)
	}
	s := r.s
	s.Errors, s.ByGroup, s.Seconds = slices.Clone(s.Errors), slices.Clone(s.ByGroup), slices.Clone(s.Seconds)
	s.MedianMS, s.P99MS = r.quantile(0.5), r.quantile(0.99)
	return s
}

// ms is d in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func bucketOf(wait time.Duration) int {
	if wait <= 100*time.Microsecond {
		return 0
	}
	return min(int(math.Ceil(math.Log(float64(wait)/1e5)/math.Log(1.1))), waitBuckets-1)
}

// quantile is the upper end of the bucket in which the q-th part of all waits ends, in milliseconds, and not more than
// the longest.
func (r *record) quantile(q float64) float64 {
	want := uint64(math.Ceil(q * float64(r.s.Requests)))
	var n uint64
	for i, c := range r.buckets {
		if n += c; n >= want && want > 0 {
			return min(math.Round(math.Pow(1.1, float64(i))*10)/100, r.s.LongestMS)
		}
	}
	return 0
}
