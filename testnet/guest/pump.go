package main

import (
	"sync"
	"syscall"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// tick is how often the pump looks at its sockets: what came is read at once, what is due goes out at once. Sockets
// hold far more than a tick's packets.
const tick = 2 * time.Millisecond

// batch is how many packets one call to the kernel takes or gives.
const batch = 64

// pump is the one goroutine that reads and writes all datagrams. It wakes by the clock and not by packets: on an
// emulated CPU every wake-up is dear.
type pump struct {
	mu   sync.Mutex
	ends map[*packetEnd]struct{}
	some sync.Cond // there are ends
}

func newPump() *pump {
	p := &pump{ends: make(map[*packetEnd]struct{})}
	p.some.L = &p.mu
	go p.run()
	return p
}

func (p *pump) run() {
	io := newBatches()
	for {
		p.mu.Lock()
		for len(p.ends) == 0 {
			p.some.Wait()
		}
		for e := range p.ends {
			e.receive(io)
			e.send(io, time.Now())
		}
		p.mu.Unlock()
		pause(tick)
	}
}

// pause sleeps. The runtime's own timers cost an emulated CPU several times as much.
func pause(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // woken early by a signal: as good
}

// packetEnd is one end of a UDP flow or of a ping. The pump's lock guards it.
type packetEnd struct {
	conf   stream.End
	pump   *pump
	socket *socket
	v4     bool
	pace   *stream.Pacer // nil: sends nothing now

	counter stream.Counter
	drops   uint32
	sent    stream.Sent
	began   bool
}

func (p *pump) open(c stream.End) (*packetEnd, error) {
	s, err := openSocket(c)
	if err != nil {
		return nil, err
	}
	e := &packetEnd{conf: c, pump: p, socket: s, v4: c.Local.Addr().Is4()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends[e] = struct{}{}
	p.some.Signal()
	return e, nil
}

// receive counts all that the socket holds.
func (e *packetEnd) receive(io *batches) {
	for {
		n := io.receive(e.socket)
		for i := range n {
			b, hops, drops := io.packet(i)
			e.drops = max(e.drops, drops)
			if e.conf.Kind == stream.EndPing {
				if s, ok := stream.ParseEcho(b, e.v4); ok && s.Stream == e.conf.In {
					e.counter.Packet(s.Seq, 0, 0, 0)
				}
				continue
			}
			if s, ok := stream.ParseStamp(b); ok && s.Stream == e.conf.In {
				e.counter.Packet(s.Seq, 0, 0, hops)
			}
		}
		if n < batch {
			return
		}
	}
}

// send sends all that is due.
func (e *packetEnd) send(io *batches, now time.Time) {
	if e.pace == nil {
		return
	}
	due := e.pace.Due(now)
	if due == 0 {
		return
	}
	received := e.counter.Counts().Received
	for due > 0 {
		n := min(due, batch)
		for i := range n {
			s := stream.Stamp{Stream: e.conf.Out, Seq: e.sent.Packets + uint64(i), SentNS: now.UnixNano()}
			if e.conf.Kind == stream.EndPing {
				stream.PutEcho(io.fill(i, stream.EchoLen), e.v4, s)
				continue
			}
			b := io.fill(i, e.conf.Size)
			s.Put(b)
			stream.PutAck(b, received)
		}
		failed, err := io.send(e.socket, n)
		e.sent.Packets += uint64(n)
		e.sent.Errors += uint64(failed)
		if err != nil {
			e.sent.Error = err.Error()
		}
		due -= n
	}
}

func (e *packetEnd) start() {
	e.pump.mu.Lock()
	defer e.pump.mu.Unlock()
	if !e.began && e.conf.Out != 0 {
		e.pace = stream.NewPacer(e.conf.Rate, time.Now())
	}
	e.began = true
}

func (e *packetEnd) stop() {
	e.pump.mu.Lock()
	defer e.pump.mu.Unlock()
	e.pace, e.began = nil, true
}

func (e *packetEnd) report(sent map[uint32]uint64, r *stream.Reply) {
	e.pump.mu.Lock()
	defer e.pump.mu.Unlock()
	if e.conf.Out != 0 {
		r.Sent[e.conf.Out] = e.sent
	}
	if e.conf.In != 0 {
		r.Received[e.conf.In] = stream.Received{Counts: e.counter.Counts(), Drops: uint64(e.drops),
			Missing: e.counter.Missing(sent[e.conf.In], missingRanges)}
	}
}

func (e *packetEnd) close() {
	e.pump.mu.Lock()
	defer e.pump.mu.Unlock()
	delete(e.pump.ends, e)
	e.socket.close()
}
