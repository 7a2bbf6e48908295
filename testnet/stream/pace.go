package stream

import "time"

// catchUp bounds how far behind its schedule a sender may be and still send all that is due at once: a tester that
// was itself held up makes no burst of it.
const catchUp = 20 * time.Millisecond

// A Pacer says how many packets are due. It belongs to one goroutine.
type Pacer struct {
	step time.Duration
	next time.Time
}

// NewPacer is a pace of rate packets a second, the first at now.
func NewPacer(rate int, now time.Time) *Pacer {
	return &Pacer{step: time.Second / time.Duration(rate), next: now}
}

// Due is how many packets have to go out at now and have not been asked for; at most those of 20 ms and one.
func (p *Pacer) Due(now time.Time) (n int) {
	if now.Sub(p.next) > catchUp {
		p.next = now
	}
	if late := now.Sub(p.next); late >= 0 {
		n = int(late/p.step) + 1
		p.next = p.next.Add(time.Duration(n) * p.step)
	}
	return n
}

// Next is when the next packet is due.
func (p *Pacer) Next() time.Time { return p.next }
