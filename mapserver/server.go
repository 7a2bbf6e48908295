package mapserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// Endpoint is what a Server needs of the control-plane endpoint; a [control.Endpoint] is one.
type Endpoint interface {
	Run(ctx context.Context, handle func(control.Packet)) error
	Send(to netip.AddrPort, b []byte) error
	Counters() map[string]uint64
}

var _ Endpoint = (*control.Endpoint)(nil)

// Server is a Map-Server and Map-Resolver. One goroutine owns its state; what comes from elsewhere is
// sent to it.
type Server struct {
	policy *policy
	ep     Endpoint
	store  Store
	log    *slog.Logger
	state  State // as loaded; gone once Run has it

	urgent   chan control.Packet // Map-Registers and acknowledgements
	requests chan control.Packet
	asks     chan func(c *core, now time.Time)
	bulk     chan send
	done     chan struct{} // closed when Run returns
	ran      atomic.Bool

	sinks                                    []*sinkQueue
	requestsLost, bulkLost, unsent, unstored atomic.Uint64
	batches                                  atomic.Uint64
}

// How much may wait for the owner. Map-Registers beyond it wait in the socket, Map-Requests are dropped.
const (
	urgentQueue  = 4096
	requestQueue = 4096
	bulkQueue    = 1 << 16
	// maxUnanswered bounds the answers that wait for a store that fails: who is not answered asks again.
	maxUnanswered = 1 << 16
)

// New makes a Server and loads what store holds. It takes over ep, not store: whoever opened that closes
// it when Run has returned. Every mapping that is or becomes registered is told to the sinks, which are
// known by name; the first Delta to each is Full.
func New(cfg Config, ep Endpoint, store Store, sinks map[string]lisp.Sink, log *slog.Logger) (*Server, error) {
	p, err := newPolicy(cfg)
	if err != nil {
		return nil, err
	}
	st, err := store.Load()
	if err != nil {
		return nil, fmt.Errorf("mapserver: load the registrations: %w", err)
	}
	s := &Server{
		policy: p, ep: ep, store: store, log: log, state: st,
		urgent:   make(chan control.Packet, urgentQueue),
		requests: make(chan control.Packet, requestQueue),
		asks:     make(chan func(*core, time.Time)),
		bulk:     make(chan send, bulkQueue),
		done:     make(chan struct{}),
	}
	for name, sink := range sinks {
		s.sinks = append(s.sinks, newSinkQueue(name, sink, log))
	}
	return s, nil
}

// Run serves until ctx ends, and then returns nil; or until the endpoint is lost. It can be called once.
func (s *Server) Run(ctx context.Context) error {
	if !s.ran.CompareAndSwap(false, true) {
		return errors.New("mapserver: Run was called before")
	}
	defer close(s.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The endpoint outlives ctx by as much as the last answers need.
	network, closeNetwork := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	var lost error
	wg.Go(func() {
		if err := s.ep.Run(network, func(p control.Packet) { s.receive(ctx, p) }); err != nil {
			lost = fmt.Errorf("mapserver: %w", err)
		}
		cancel()
	})
	wg.Go(func() { s.publisher(ctx) })
	for _, q := range s.sinks {
		wg.Go(func() { q.run(ctx) })
	}
	s.loop(ctx)
	closeNetwork()
	wg.Wait()
	return lost
}

// receive is called by the endpoint's goroutine.
func (s *Server) receive(ctx context.Context, p control.Packet) {
	if _, ok := p.Msg.(*lisp.MapRequest); ok {
		select {
		case s.requests <- p:
		default:
			s.requestsLost.Add(1)
		}
		return
	}
	select {
	case s.urgent <- p:
	case <-ctx.Done():
	}
}

// handle is called by the owner.
func handle(c *core, now time.Time, p control.Packet) {
	switch m := p.Msg.(type) {
	case *lisp.MapRegister:
		if p.ECM != nil {
			c.count("register/dropped/encapsulated")
			return
		}
		c.mapRegister(now, p.From, p.Raw, m)
	case *lisp.MapNotifyAck:
		c.mapNotifyAck(p.From, m, func(k lisp.Key) bool { return lisp.Verify(p.Raw, m, k) == nil })
	case *lisp.MapRequest:
		c.mapRequest(now, m, p.ECM)
	default:
		c.count("dropped/not-for-a-map-server")
	}
}

// loop owns the core.
func (s *Server) loop(ctx context.Context) {
	now := time.Now()
	c := newCore(s.policy, s.state, now)
	s.state = State{}
	for _, q := range s.sinks {
		q.push(lisp.Delta{Full: true, Put: c.all()})
	}
	s.log.Info("serving", "name", s.policy.Name, "registered", c.live.Len(), "known", len(c.entries),
		"subscriptions", len(c.subs))

	toStore, stored := make(chan batch, 1), make(chan batch, 1)
	saving := make(chan struct{})
	go func() {
		defer close(saving)
		for b := range toStore {
			if !s.save(ctx, b.Batch) {
				b.sends, b.announce = nil, nil // promises that cannot be given
			}
			stored <- b
		}
	}()
	storing := false
	flush := func() {
		if !storing && !c.out.batch.empty() {
			storing = true
			toStore <- c.takeBatch()
		}
		if late := &c.out.batch.sends; len(*late) > maxUnanswered {
			*late = append([]send(nil), (*late)[len(*late)-maxUnanswered/2:]...)
		}
		s.emit(c)
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for running := true; running; {
		if at := c.deadline(); !at.IsZero() {
			timer.Reset(time.Until(at))
		}
		var packet *control.Packet
		var ask func(*core, time.Time)
		var durable *batch
		select {
		case <-ctx.Done():
			running = false
		case p := <-s.urgent:
			packet = &p
		case p := <-s.requests:
			packet = &p
		case ask = <-s.asks:
		case b := <-stored:
			durable = &b
		case <-timer.C:
		}
		now = time.Now()
		c.tick(now)
		switch {
		case packet != nil:
			handle(c, now, *packet)
		case ask != nil:
			ask(c, now)
		case durable != nil:
			storing = false
			s.release(c, now, *durable)
		}
		flush()
	}
	if storing {
		s.release(c, time.Now(), <-stored)
		storing = false
	}
	close(toStore)
	<-saving
	if b := c.takeBatch(); !b.empty() && s.save(ctx, b.Batch) {
		s.release(c, time.Now(), b)
	}
	s.emit(c)
}

// release does what waited until b was durable.
func (s *Server) release(c *core, now time.Time, b batch) {
	c.committed(now, b)
	for _, m := range b.sends {
		s.send(m)
	}
}

// save makes b durable. While the store fails it tries again: nobody is told that a registration is
// accepted before it is durable, but it is served. It gives up, and reports false, when ctx ends.
func (s *Server) save(ctx context.Context, b Batch) bool {
	if b.Empty() {
		return true
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := s.store.Save(b)
		if err == nil {
			s.batches.Add(1)
			return true
		}
		s.unstored.Add(1)
		s.log.Error("registrations are not durable", "err", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// emit hands out the effects of what happened.
func (s *Server) emit(c *core) {
	out := c.take()
	if len(out.put) > 0 {
		var d lisp.Delta
		for _, eid := range out.put {
			if m, ok := c.current(eid); ok {
				d.Put = append(d.Put, m)
			} else {
				d.Del = append(d.Del, eid)
			}
		}
		for _, q := range s.sinks {
			q.push(d)
		}
	}
	for _, m := range out.sends {
		s.send(m)
	}
	for _, m := range out.bulk {
		select {
		case s.bulk <- m:
		default:
			s.bulkLost.Add(1) // it is sent again, for it will not be acknowledged
		}
	}
	for _, r := range out.reports {
		s.log.Log(context.Background(), r.level, r.text, r.attrs...)
	}
}

// send writes m to the first of its destinations that can be sent to.
func (s *Server) send(m send) {
	var b []byte
	var err error
	if m.key != nil {
		b, err = lisp.AppendSigned(nil, m.msg, *m.key)
	} else {
		b, err = lisp.Append(nil, m.msg)
	}
	if err != nil {
		s.unsent.Add(1)
		s.log.Error("cannot encode a message", "type", m.msg.Type(), "err", err)
		return
	}
	for _, to := range m.to {
		if err = s.ep.Send(to, b); err == nil {
			return
		}
	}
	s.unsent.Add(1)
	s.log.Debug("cannot send a message", "type", m.msg.Type(), "err", err)
}

// publisher sends what is not urgent, no faster than configured (RFC 9437 section 5: "Map-Servers SHOULD
// be configured with policies to control ... the pace of Map-Notify messages").
func (s *Server) publisher(ctx context.Context) {
	const burst = 50 * time.Millisecond
	each := time.Second / time.Duration(s.policy.NotifyRate)
	var free time.Time // when the next message may go
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-s.bulk:
			now := time.Now()
			if earliest := now.Add(-burst); free.Before(earliest) {
				free = earliest
			}
			if wait := free.Sub(now); wait > time.Millisecond {
				select {
				case <-ctx.Done():
					return
				case <-time.After(wait):
				}
			}
			free = free.Add(each)
			s.send(m)
		}
	}
}

// ask runs f on the owner's goroutine.
func (s *Server) ask(ctx context.Context, f func(c *core, now time.Time)) error {
	answered := make(chan struct{})
	select {
	case s.asks <- func(c *core, now time.Time) { f(c, now); close(answered) }:
	case <-s.done:
		return errors.New("mapserver: not running")
	case <-ctx.Done():
		return fmt.Errorf("mapserver: %w", ctx.Err())
	}
	<-answered
	return nil
}
