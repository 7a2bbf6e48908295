package slowpath

import (
	"net/netip"
	"time"
)

// bucket is a token bucket.
type bucket struct {
	rate   float64 // tokens per second
	burst  float64
	tokens float64
	at     time.Time
}

// has reports whether there is a token to take.
func (b *bucket) has(now time.Time) bool {
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	return b.tokens >= 1
}

// take takes a token. It reports false when there is none.
func (b *bucket) take(now time.Time) bool {
	if !b.has(now) {
		return false
	}
	b.tokens--
	return true
}

// Limits on the ICMP errors that we send (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f)): all
// together, and to one receiver. Path MTU discovery of many flows at once must get through.
const (
	icmpRate, icmpBurst         = 2000, 500
	icmpHostRate, icmpHostBurst = 50, 50
	icmpHosts                   = 4096
)

// limits are the limits on ICMP errors.
type limits struct {
	all   bucket
	hosts map[netip.Addr]*bucket
}

func (l *limits) init() {
	l.all = bucket{rate: icmpRate, burst: icmpBurst, tokens: icmpBurst}
	l.hosts = make(map[netip.Addr]*bucket)
}

// take reports whether an ICMP error may go to a receiver.
func (l *limits) take(to netip.Addr, now time.Time) bool {
	h := l.hosts[to]
	if h == nil {
		if len(l.hosts) >= icmpHosts {
			return false
		}
		h = &bucket{rate: icmpHostRate, burst: icmpHostBurst, tokens: icmpHostBurst, at: now}
		l.hosts[to] = h
	}
	return h.take(now) && l.all.take(now)
}

// expire forgets receivers that could send a full burst again.
func (l *limits) expire(now time.Time) {
	for a, h := range l.hosts {
		if now.Sub(h.at) > 2*time.Second {
			delete(l.hosts, a)
		}
	}
}
