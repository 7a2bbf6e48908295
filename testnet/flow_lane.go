package testnet

import (
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// lane is a stream of packets in one direction: a paced sender at one end, a counter at the other. An end may be in a
// guest; its counts are fetched.
type lane struct {
	name string
	id   uint32
	rate int

	// counter counts what is received here; for a receiver in a guest, what its acknowledgements said.
	counter  stream.Counter
	receiver *guestSession // nil: here
	drops    atomic.Uint32 // by the receiving socket here

	sender  *guestSession // nil: here
	sent    atomic.Uint64
	errs    atomic.Uint64
	lastErr atomic.Pointer[string]
}

func newLane(name string, id uint32, rate int) *lane { return &lane{name: name, id: id, rate: rate} }

// sending is what the sender has done, as far as is known here.
func (l *lane) sending() stream.Sent {
	if l.sender != nil {
		return l.sender.sent(l.id)
	}
	s := stream.Sent{Packets: l.sent.Load(), Errors: l.errs.Load()}
	if e := l.lastErr.Load(); e != nil {
		s.Error = *e
	}
	return s
}

// receiving is what the receiver has counted, as far as is known here.
func (l *lane) receiving() stream.Received {
	here := l.counter.Counts()
	if l.receiver == nil {
		return stream.Received{Counts: here, Drops: uint64(l.drops.Load())}
	}
	r := l.receiver.received(l.id)
	r.Received = max(r.Received, here.Received)
	return r
}

// arrived counts a packet that came here.
func (l *lane) arrived(s stream.Stamp, atNS int64, hops uint8) {
	sentNS := s.SentNS
	if l.sender != nil {
		sentNS = atNS // by a clock that is not ours
	}
	l.counter.Packet(s.Seq, sentNS, atNS, hops)
}

// ended is called when the sender has stopped.
func (l *lane) ended(at time.Time) {
	if l.counter.Counts().Received > 0 || l.receiver == nil {
		l.counter.End(at)
	}
}

func (l *lane) outstanding() uint64 {
	sent, got := l.sending().Packets, l.receiving().Received
	return sent - min(sent, got)
}

func (l *lane) report(windows []Window) FlowReport {
	sent, got := l.sending(), l.receiving()
	r := FlowReport{Name: l.name, Unit: "packets", Sent: sent.Packets, Received: got.Received,
		Duplicated: got.Duplicated + got.Foreign, Reordered: got.Reordered, Detoured: got.Detoured,
		DelayMaxMS: ms(l.counter.Counts().DelayMax), TesterDrops: got.Drops, SendErrors: sent.Errors, LastError: sent.Error}
	missing := sent.Packets - min(sent.Packets, got.Received)
	r.Lost = missing - min(missing, r.TesterDrops)
	for _, s := range []*guestSession{l.sender, l.receiver} {
		if s != nil && s.trouble() != "" {
			r.Incomplete = s.trouble()
		}
	}
	if windows != nil {
		r.gapsOf(&l.counter, windows)
		r.Missing = got.Missing
		if l.receiver == nil {
			r.Missing = l.counter.Missing(sent.Packets, 20)
		}
	}
	return r
}
