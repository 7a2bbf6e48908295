package gateway

import "time"

// bucket is a token bucket that begins full.
type bucket struct {
	rate  float64 // tokens per second
	burst float64
	spent float64
	at    time.Time
}

// take takes a token. It reports false when there is none.
func (b *bucket) take(now time.Time) bool {
	b.spent = max(0, b.spent-b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.spent > b.burst-1 {
		return false
	}
	b.spent++
	return true
}
