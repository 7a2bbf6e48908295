package slowpath

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// Config bounds a slow path. The zero value of each field stands for its default.
type Config struct {
	MaxHoldBytes  int           // memory of one hold in bytes, default 16 MiB; the oldest goes first
	MaxHoldTime   time.Duration // that a packet waits in a hold, default 30 s
	MaxHoldsBytes int           // memory of all holds in bytes, default 256 MiB

	// A VM that has just arrived sends all that it had queued at once, to destinations that this host has
	// not asked for yet: so the bounds are wide for one destination, and narrow for all together.
	MissPackets      int           // packets that wait for one destination, default 4096
	MissBytes        int           // memory of the packets that wait for one destination, default 4 MiB
	MissesBytes      int           // memory of the packets that wait for all destinations, default 64 MiB
	MissTime         time.Duration // that packets wait for an answer, default 5 s
	MissDestinations int           // destinations that are waited for, default 4096
	RefusedTime      time.Duration // that packets are dropped after there was no answer, default 1 s

	// As many as the queue of a VM interface holds, which is what the VM may not have read.
	CopyPackets int // copies that are kept per port, default 20480
	CopyBytes   int // memory of the copies that are kept per port, default 64 MiB

	// GatewayAddr4 and GatewayAddr6 are the sources of ICMP errors. Without one, no errors are sent in
	// that family; with a link-local one, none to senders behind the underlay.
	GatewayAddr4, GatewayAddr6 netip.Addr
	// Known tells whether the data plane has a route to an EID, so that an ICMP error to it is
	// forwarded like any packet to it; errors to others are given to the host's stack. It is asked only
	// about senders that are neither VMs of ours nor behind the underlay, and must not wait. Nil: all
	// are forwarded.
	Known func(lisp.EID) bool
	// MTU is the largest inner packet in bytes, for frames that do not say; default 1444.
	MTU int

	// Translator is map646, on a D-ETR. Nil: what the kernel hands up for it is dropped. With one, ICMP errors
	// to senders whose packets were translated are translated, too.
	Translator Translator
	// Reassembly bounds what is held of fragmented ICMP until it can be translated.
	Reassembly map646.ReassemblerConfig

	FlushPatience time.Duration // without progress, after which diverted packets are lost, default 200 ms
	Linger        time.Duration // that a flushed hold passes on what still comes, default 250 ms
}

func (c Config) withDefaults() Config {
	c.MaxHoldBytes = cmp.Or(c.MaxHoldBytes, 16<<20)
	c.MaxHoldTime = cmp.Or(c.MaxHoldTime, 30*time.Second)
	c.MaxHoldsBytes = cmp.Or(c.MaxHoldsBytes, 256<<20)
	c.MissPackets = cmp.Or(c.MissPackets, 4096)
	c.MissBytes = cmp.Or(c.MissBytes, 4<<20)
	c.MissesBytes = cmp.Or(c.MissesBytes, 64<<20)
	c.MissTime = cmp.Or(c.MissTime, 5*time.Second)
	c.MissDestinations = cmp.Or(c.MissDestinations, 4096)
	c.RefusedTime = cmp.Or(c.RefusedTime, time.Second)
	c.CopyPackets = cmp.Or(c.CopyPackets, 20480)
	c.CopyBytes = cmp.Or(c.CopyBytes, 64<<20)
	c.MTU = cmp.Or(c.MTU, 1444)
	c.FlushPatience = cmp.Or(c.FlushPatience, 200*time.Millisecond)
	c.Linger = cmp.Or(c.Linger, 250*time.Millisecond)
	return c
}

// SlowPath is described at the package.
type SlowPath struct {
	cfg    Config
	door   Door
	log    *slog.Logger
	queues []*queue
	counts counts

	in     chan *batch
	calls  chan func(now time.Time)
	ended  chan struct{} // closed when Run returns
	misses chan Miss

	// What the goroutine of Run owns.
	miss    missTable
	holds   map[uint32]*hold
	active  []*hold // those that are flushed or were a moment ago
	held    int     // memory of all holds in bytes
	ports   map[uint16]*copies
	replays []*replay
	icmp    limits
	xlate   translation
	ident   uint16 // of the last IPv4 packet of ours
	tick    time.Time
}

// New returns a slow path on the opened queues of lisp0, each of which reads and writes one frame at a
// time with a vnet header in front. An *os.File must be in non-blocking mode. Run closes no queue that
// has read deadlines.
func New[Q io.ReadWriteCloser](cfg Config, queues []Q, door Door, log *slog.Logger) (*SlowPath, error) {
	s := &SlowPath{
		cfg:    cfg.withDefaults(),
		door:   door,
		log:    log,
		in:     make(chan *batch, 16),
		calls:  make(chan func(time.Time), 64),
		ended:  make(chan struct{}),
		misses: make(chan Miss, 256),
		holds:  make(map[uint32]*hold),
		ports:  make(map[uint16]*copies),
	}
	s.miss.init()
	s.icmp.init()
	s.xlate.init(cfg.Reassembly)
	for _, rw := range queues {
		q, err := newQueue(rw)
		if err != nil {
			return nil, err
		}
		s.queues = append(s.queues, q)
	}
	return s, nil
}

// Run serves until ctx ends, then it returns nil, or until a queue is gone. It may be called once.
// When it ends, the done functions of flushes that have not finished are called, and what still waits
// is dropped and counted.
func (s *SlowPath) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var readers sync.WaitGroup
	for _, q := range s.queues {
		readers.Go(func() {
			if err := q.run(ctx, s.in, &s.counts); err != nil {
				cancel(err)
			}
		})
	}
	s.loop(ctx)
	err := context.Cause(ctx)
	cancel(nil)
	readers.Wait()
	s.stop()
	close(s.ended)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// tickEvery is how often what waits is looked over for what has waited too long.
const tickEvery = 100 * time.Millisecond

// loop is the only place that reads the clock.
func (s *SlowPath) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(s.tick) {
			s.expire(now)
			s.tick = now.Add(tickEvery)
		}
		busy, wake := s.flushSome(now)
		if t := s.tryReplays(now); !t.IsZero() && t.Before(wake) {
			wake = t
		}
		s.tellDoor()
		if busy {
			select {
			case b := <-s.in:
				s.take(b, now)
			case call := <-s.calls:
				call(now)
			default:
			}
			continue
		}
		var out chan<- Miss
		var next Miss
		if m, ok := s.miss.next(now); ok {
			out, next = s.misses, m
		}
		if s.idle() {
			wake = now.Add(time.Hour)
		}
		timer.Reset(wake.Sub(now))
		select {
		case <-ctx.Done():
		case b := <-s.in:
			s.take(b, time.Now())
		case call := <-s.calls:
			call(time.Now())
		case out <- next:
			s.miss.reported(time.Now())
			s.counts.inc(missesReported)
		case <-timer.C:
		}
	}
}

// idle reports whether nothing waits for a time to come.
func (s *SlowPath) idle() bool {
	return s.miss.len() == 0 && len(s.holds) == 0 && len(s.replays) == 0 && !s.xlate.waits()
}

// expire lets go of what has waited too long.
func (s *SlowPath) expire(now time.Time) {
	s.expireMisses(now)
	s.expireHolds(now)
	s.icmp.expire(now)
	s.xlate.expire(now)
}

// stop drops what waits.
func (s *SlowPath) stop() {
	for _, r := range s.replays {
		r.answer <- 0
	}
	for _, m := range s.miss.queues {
		s.dropMiss(m, dropStopped)
	}
	for _, h := range s.holds {
		s.dropHeld(h, dropStopped)
		h.finish()
	}
	s.tellDoor()
	incomplete, _ := s.xlate.reassembler.Held()
	s.counts.add(dropStopped, uint64(incomplete))
	for _, c := range s.ports {
		c.clear()
	}
	for {
		select {
		case b := <-s.in:
			b.free()
		case call := <-s.calls:
			call(time.Now())
		default:
			return
		}
	}
}

// do runs f on the goroutine of Run, soon. It reports false when that has ended.
func (s *SlowPath) do(f func(now time.Time)) bool {
	select {
	case s.calls <- f:
		return true
	case <-s.ended:
		return false
	}
}

// take serves the frames of b.
func (s *SlowPath) take(b *batch, now time.Time) {
	for _, f := range b.frames[:b.n] {
		f.since = now
		s.serve(f, now)
	}
	b.done()
}

func (s *SlowPath) serve(f *frame, now time.Time) {
	if bad, ok := f.open(); !ok {
		s.drop(f, bad)
		return
	}
	switch f.up.Reason {
	case fib.UpMiss:
		s.counts.inc(upMiss)
		s.serveMiss(f, now)
	case fib.UpHold:
		s.counts.inc(upHold)
		s.serveHold(f)
	case fib.UpCopy:
		s.counts.inc(upCopy)
		s.serveCopy(f)
	case fib.UpTooBig:
		s.counts.inc(upTooBig)
		s.serveTooBig(f, now)
	case fib.UpTTL:
		s.counts.inc(upTTL)
		s.serveTTL(f, now)
	case fib.UpSegment:
		s.counts.inc(upSegment)
		s.serveSegment(f)
	case fib.UpTranslate:
		s.counts.inc(upTranslate)
		s.serveTranslate(f, now)
	default:
		s.drop(f, badReason)
	}
}

// drop counts and frees f.
func (s *SlowPath) drop(f *frame, why counter) {
	s.counts.inc(why)
	f.free()
}

// again is what to ask for when what came up as f goes down as it was.
func again(f *frame) fib.Down {
	d := fib.Down{Do: fib.DownForward, IID: f.up.IID}
	// Transit may be decapsulated on its way down, without being judged, as what came up for UpSegment has its
	// outer headers still. What has none any more must not be: whoever makes a VM's packet look like LISP to
	// one of our own RLOCs would speak for anybody.
	if f.up.Flags&fib.UpTransit != 0 && (f.up.Reason == fib.UpSegment || !looksLikeLISP(f.packet())) {
		d.Flags |= fib.DownTransit
	}
	if f.up.Flags&fib.UpReplay != 0 {
		d.Flags |= fib.DownReplay
	}
	return d
}

// looksLikeLISP reports whether b is a LISP data packet, by its port.
func looksLikeLISP(b []byte) bool {
	p, ok := parsePacket(b, true)
	return ok && p.proto == protoUDP && !p.later && len(b) >= p.upper+4 && binary.BigEndian.Uint16(b[p.upper+2:]) == lisp.DataPort
}

// reinject writes f with d as its metadata and frees it. It reports whether the device took it.
func (s *SlowPath) reinject(f *frame, d fib.Down) bool {
	setDown(f.ether(), d)
	return s.write(f)
}

// write writes f as it is and frees it. It reports whether the device took it.
func (s *SlowPath) write(f *frame) bool {
	err := f.q.write(f.buf)
	if err != nil {
		s.drop(f, dropWrite)
		return false
	}
	s.counts.inc(reinjected)
	s.counts.add(reinjectedBytes, uint64(len(f.packet())))
	f.free()
	return true
}

// Misses returns the channel of destinations that nobody has told the data plane about.
func (s *SlowPath) Misses() <-chan Miss { return s.misses }

// Counters returns all counters by name. Any goroutine may call it at any time.
func (s *SlowPath) Counters() map[string]uint64 {
	m := s.counts.snapshot()
	s.xlate.counters(m)
	return m
}

// ShowHold is a row of the "holds" table.
type ShowHold struct {
	Hold    uint32 `json:"hold"`
	State   string `json:"state"`
	Packets int    `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Age     string `json:"age"`
}

// ShowMiss is a row of the "misses" table.
type ShowMiss struct {
	EID     lisp.EID `json:"eid"`
	State   string   `json:"state"`
	Packets int      `json:"packets"`
	Age     string   `json:"age"`
}

// Shows returns what an operator may look at: "holds", "misses", "translations" and "counters".
func (s *SlowPath) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"counters":     func(context.Context) (any, error) { return s.Counters(), nil },
		"holds":        func(ctx context.Context) (any, error) { return ask(ctx, s, s.showHolds) },
		"misses":       func(ctx context.Context) (any, error) { return ask(ctx, s, s.showMisses) },
		"translations": func(ctx context.Context) (any, error) { return ask(ctx, s, s.showTranslations) },
	}
}

// ask runs f on the goroutine of Run and waits for what it returns.
func ask[T any](ctx context.Context, s *SlowPath, f func(now time.Time) T) (T, error) {
	var zero T
	answer := make(chan T, 1)
	if !s.do(func(now time.Time) { answer <- f(now) }) {
		return zero, fmt.Errorf("slowpath: has ended")
	}
	select {
	case v := <-answer:
		return v, nil
	case <-ctx.Done():
		return zero, fmt.Errorf("slowpath: %w", ctx.Err())
	case <-s.ended:
		return zero, fmt.Errorf("slowpath: has ended")
	}
}
