package testnet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// Guest is the program in a real guest of [GuestImage]: an endpoint of flows. It is spoken to over the same network that
// is tested, so a request is repeated, over a new connection if need be, until it is answered or its context ends.
//
// Methods may be called from any goroutine.
type Guest struct {
	name string
	from *Namespace
	addr netip.AddrPort

	mu   sync.Mutex
	conn net.Conn // nil: none
	in   *bufio.Reader
	last uint64 // id of the last request
}

// NewGuest is the guest at addr, as reached from a namespace. Nothing is sent yet.
func NewGuest(name string, from *Namespace, addr netip.Addr) *Guest {
	return &Guest{name: name, from: from, addr: netip.AddrPortFrom(addr, stream.ControlPort)}
}

// Name is the guest's name.
func (g *Guest) Name() string { return g.name }

func (g *Guest) endpoint() (*Namespace, *Guest) { return nil, g }

// Wait waits until the guest's program answers, as after a boot; half a minute if ctx has no deadline.
func (g *Guest) Wait(ctx context.Context) error {
	_, err := g.Machine(ctx)
	return err
}

// Machine is what the guest says of itself, and of packets that it had to drop: those are the tester's own losses.
func (g *Guest) Machine(ctx context.Context) (stream.Machine, error) {
	r, err := g.ask(ctx, stream.Request{Op: stream.OpHello})
	if err != nil {
		return stream.Machine{}, err
	}
	if r.Machine == nil {
		return stream.Machine{}, fmt.Errorf("testnet: guest %s: it says nothing of itself", g.name)
	}
	return *r.Machine, nil
}

// Dirty has the guest write to its memory, over and over, so many MiB a second; 0 ends it.
func (g *Guest) Dirty(ctx context.Context, rate float64) error {
	_, err := g.ask(ctx, stream.Request{Op: stream.OpDirty, Rate: rate})
	return err
}

// DiskWrite has the guest write numbered blocks to the beginning of a disk, which loses what it held: blocks of 4 KiB,
// over and over, so many KiB a second. device is the guest's name of it: /dev/vda.
func (g *Guest) DiskWrite(ctx context.Context, device string, blocks int, rate float64) error {
	_, err := g.ask(ctx, stream.Request{Op: stream.OpDiskWrite, Disk: device, Blocks: blocks, Rate: rate})
	return err
}

// DiskVerify ends DiskWrite, reads all that was written from the disk itself, and compares.
func (g *Guest) DiskVerify(ctx context.Context) (stream.Disk, error) {
	if _, err := g.ask(ctx, stream.Request{Op: stream.OpDiskStop}); err != nil {
		return stream.Disk{}, err
	}
	r, err := g.ask(ctx, stream.Request{Op: stream.OpDiskCheck})
	if err != nil || r.Disk == nil {
		return stream.Disk{}, err
	}
	return *r.Disk, nil
}

// guestPatience bounds a request whose context has no deadline; guestTry is how long one attempt may take before the next.
const (
	guestPatience = 30 * time.Second
	guestTry      = 5 * time.Second
)

// errGuest is what a guest answers that did not do what it was asked.
type errGuest struct{ text string }

func (e errGuest) Error() string { return e.text }

// ask sends a request until it is answered. An answer that is an error ends it, too.
func (g *Guest) ask(ctx context.Context, q stream.Request) (*stream.Reply, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, guestPatience)
		defer cancel()
	}
	var last error
	for {
		r, err := g.try(ctx, q)
		if err == nil {
			return r, nil
		}
		if refused := (errGuest{}); errors.As(err, &refused) {
			return nil, fmt.Errorf("testnet: guest %s: %s: %w", g.name, q.Op, err)
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("testnet: guest %s: %s: no answer from %s: %w (%w)", g.name, q.Op, g.addr, last, err)
		}
	}
}

// try sends a request once, and gives up the connection if that fails.
func (g *Guest) try(ctx context.Context, q stream.Request) (_ *stream.Reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, guestTry)
	defer cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		err := g.from.Do(func() (err error) {
			g.conn, err = new(net.Dialer).DialContext(ctx, "tcp", g.addr.String())
			return err
		})
		if err != nil {
			g.conn = nil
			return nil, err
		}
		g.in = bufio.NewReader(g.conn)
	}
	defer func() {
		if refused := (errGuest{}); err != nil && !errors.As(err, &refused) {
			_ = g.conn.Close()
			g.conn = nil
		}
	}()
	conn := g.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			_ = conn.Close() // its deadline may pass at any moment now
			g.conn = nil
		}
	}()
	g.last++
	q.ID = g.last
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	if _, err := g.conn.Write(append(b, '\n')); err != nil {
		return nil, err
	}
	line, err := g.in.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	return parseReply(line, q.ID)
}

// parseReply reads the answer to request id.
func parseReply(line []byte, id uint64) (*stream.Reply, error) {
	r := new(stream.Reply)
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("answer %d to request %d", r.ID, id)
	}
	if r.Error != "" {
		return nil, errGuest{r.Error}
	}
	return r, nil
}

// Close ends the connection. A later request makes a new one.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		return nil
	}
	err := g.conn.Close()
	g.conn = nil
	return err
}

// guestSession is what one set of flows has open in a guest, and what is known of it.
type guestSession struct {
	guest *Guest
	id    uint64

	ended    context.CancelFunc // of the polling, nil before start
	polling  sync.WaitGroup
	hurry    chan struct{} // closed when the counts are wanted soon
	stopOnce sync.Once

	mu     sync.Mutex
	known  stream.Reply
	failed string // why known is not the last word
	gone   bool   // the guest knows nothing of the session any more
	opened bool
}

func newGuestSession(g *Guest) *guestSession {
	return &guestSession{guest: g, id: rand.Uint64() | 1, hurry: make(chan struct{}),
		failed: "the guest was not asked for its last counts"}
}

// open opens an end in the guest.
func (s *guestSession) open(ctx context.Context, e stream.End) error {
	_, err := s.guest.ask(ctx, stream.Request{Op: stream.OpOpen, Session: s.id, Open: []stream.End{e}})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = s.opened || err == nil
	return err
}

// The counts are fetched so often: while the flows run, and when it is waited for the last ones.
const (
	pollLazy  = 2 * time.Second
	pollHurry = 50 * time.Millisecond
)

// start lets the guest send, and keeps the counts fresh from now on.
func (s *guestSession) start(ctx context.Context) error {
	if err := s.fetch(ctx, stream.Request{Op: stream.OpStart}); err != nil {
		return err
	}
	polling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.ended = cancel
	s.polling.Go(func() {
		every := pollLazy
		for hurry := s.hurry; ; {
			select {
			case <-polling.Done():
				return
			case <-hurry:
				every, hurry = pollHurry, nil
			case <-time.After(every):
			}
			_ = s.fetch(polling, stream.Request{Op: stream.OpReport}) // the last one counts
		}
	})
	return nil
}

// fetch makes a request that is answered with the counts.
func (s *guestSession) fetch(ctx context.Context, q stream.Request) error {
	q.Session = s.id
	r, err := s.guest.ask(ctx, q)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed, s.gone = err.Error(), errors.As(err, new(errGuest))
		return err
	}
	s.known = *r
	return nil
}

// stop ends the guest's senders.
func (s *guestSession) stop(ctx context.Context) {
	s.stopOnce.Do(func() { close(s.hurry) })
	_ = s.fetch(ctx, stream.Request{Op: stream.OpStop}) // if it cannot, end says so
}

// end fetches the last counts, given what was sent to the guest, and closes all ends in it.
func (s *guestSession) end(ctx context.Context, sent map[uint32]uint64) error {
	s.abandon()
	s.mu.Lock()
	opened := s.opened
	s.mu.Unlock()
	if !opened {
		return nil
	}
	if err := s.fetch(ctx, stream.Request{Op: stream.OpReport, Sent: sent}); err != nil {
		return err
	}
	s.mu.Lock()
	s.failed = ""
	s.mu.Unlock()
	return s.closeEnds(ctx)
}

// closeEnds has the guest close all ends.
func (s *guestSession) closeEnds(ctx context.Context) error {
	_, err := s.guest.ask(ctx, stream.Request{Op: stream.OpEnd, Session: s.id})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = s.opened && err != nil
	return err
}

// abandon fetches no more.
func (s *guestSession) abandon() {
	if s.ended != nil {
		s.ended()
		s.polling.Wait()
	}
}

// farewell is how long a guest may take to close its ends when nobody asks for its counts.
const farewell = 2 * time.Second

// close abandons the session. The guest is told, if it can be: else it forgets the session by itself.
func (s *guestSession) close() {
	s.abandon()
	s.mu.Lock()
	opened := s.opened
	s.mu.Unlock()
	if !opened {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	_ = s.closeEnds(ctx)
}

// trouble is why the counts are not the last word; "" if they are.
func (s *guestSession) trouble() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// lost reports whether the guest knows nothing of the session any more.
func (s *guestSession) lost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

func (s *guestSession) sent(id uint32) stream.Sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known.Sent[id]
}

func (s *guestSession) received(id uint32) stream.Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known.Received[id]
}

func (s *guestSession) transfer(id uint32) stream.TransferState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known.Transfers[id]
}
