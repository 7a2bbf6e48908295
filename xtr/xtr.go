package xtr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Endpoint sends and receives control messages.
type Endpoint interface {
	// Run receives until ctx ends, and calls handle from one goroutine at a time.
	Run(ctx context.Context, handle func(control.Packet)) error
	// Send sends one message, as it travels. It may be called from any goroutine and does not keep b.
	Send(to netip.AddrPort, b []byte) error
}

// DataPlane forwards packets by routes. It is told what should be; telling it the same twice changes nothing.
type DataPlane interface {
	Set(ctx context.Context, r ...fib.Route) error
	Del(ctx context.Context, e ...lisp.EID) error
}

// usage is what a DataPlane may know besides: how many packets have taken the route for e, ever.
type usage interface {
	Packets(e lisp.EID) (packets uint64, ok bool)
}

// lister is what a DataPlane may know besides: what it forwards by. After a restart it holds routes that
// nobody knows of any more.
type lister interface {
	Routes() []fib.Route
}

// SlowPath keeps packets that cannot be forwarded yet. No method waits for packets to be sent, but Replay may
// take milliseconds. The done functions are called once each, from any goroutine.
type SlowPath interface {
	Release(e lisp.EID) // packets that wait for destinations inside e may go
	Reject(e lisp.EID)  // they have waited in vain
	// Flush sends on what is held, in order, until the data plane diverts nothing more to the hold.
	Flush(hold uint32, done func(HoldStats))
	// GiveBack is Flush without the packets that are replays. It may follow a Flush that is not done.
	GiveBack(hold uint32, done func(HoldStats))
	Discard(hold uint32) // drops what is held
	// Replay puts the packets that port was given beyond the first read ones at the head of hold, and
	// returns how many.
	Replay(hold uint32, port uint16, read uint64) int
	Forget(port uint16) // drops the copies of what port was given
}

// Ports reads what interfaces have counted: packets that the VM has read, and packets that were dropped
// because it did not read them in time.
type Ports interface {
	PortStats(ifindex int) (read, dropped uint64, err error)
	// Arm is told of an interface whose VM may stop soon.
	Arm(ifindex int)
	// Delivered is how many packets a VM that has stopped has got of those that were read.
	Delivered(ifindex int) (uint64, error)
}

// XTR is the control plane of one xTR. All methods may be called from any goroutine.
type XTR struct {
	cfg   Config
	ep    Endpoint
	dp    DataPlane
	sp    SlowPath
	ports Ports
	log   *slog.Logger
	in    *inbox
	ended chan struct{} // closed when Run has ended
	local sync.Map      // netip.Addr -> int: interface index; for the gateway

	// What the goroutine of Run owns.
	ctx       context.Context
	nonces    *nonceSource
	reg       *registrar
	res       *resolver
	smr       *smr
	probe     *prober
	loc       *locals
	early     early                  // frames of interfaces that are not served yet
	active    map[lisp.EID]*handover // those that have not ended, by EID
	handovers map[string]*handover   // all, by id
	order     []*handover            // all, as they began
	open      []*handover            // those that have not ended
	holds     map[uint32]*handover
	lastHold  uint32
	flushes   map[uint32]uint64 // the last flush of a hold
	flushSeq  uint64
	routes    map[lisp.EID]fib.Route // as the data plane has them
	dirty     map[lisp.EID]bool      // routes that could not be set
	retry     time.Time              // when to try them again
	retries   int
	asking    map[lisp.EID]bool // local EIDs whose version we do not know and that are not registered yet
	used      map[lisp.EID]uint64
	counts    map[string]uint64
	saver     *saver
	restored  []cacheEntry // the map-cache of before a restart, until start
	lastLog   map[string]time.Time
}

// New makes an XTR of opened things, with the state that Config.StateDir holds.
func New(cfg Config, ep Endpoint, dp DataPlane, sp SlowPath, ports Ports, log *slog.Logger) (*XTR, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("xtr: configuration: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	x := &XTR{
		cfg: cfg, ep: ep, dp: dp, sp: sp, ports: ports, log: log,
		in:        newInbox(),
		ended:     make(chan struct{}),
		ctx:       context.Background(),
		smr:       newSMR(),
		probe:     newProber(randomNonce),
		loc:       newLocals(),
		active:    map[lisp.EID]*handover{},
		handovers: map[string]*handover{},
		holds:     map[uint32]*handover{},
		flushes:   map[uint32]uint64{},
		routes:    map[lisp.EID]fib.Route{},
		dirty:     map[lisp.EID]bool{},
		asking:    map[lisp.EID]bool{},
		used:      map[lisp.EID]uint64{},
		counts:    map[string]uint64{},
		lastLog:   map[string]time.Time{},
	}
	x.saver = newSaver(cfg.StateDir, log)
	st, err := x.saver.load()
	if err != nil {
		return nil, fmt.Errorf("xtr: state: %w", err)
	}
	x.nonces = newNonceSource(st.Nonces)
	x.reg = newRegistrar(registrarConfig{
		id: cfg.XTRID, site: cfg.SiteID, rlocs: cfg.RLOCs, servers: len(cfg.MapServers),
		interval: cfg.RegisterInterval, ttl: cfg.RegisterTTL, nonce: x.nonces.next,
	})
	x.res = newResolver(resolverConfig{
		id: cfg.XTRID, site: cfg.SiteID, rlocs: x.rlocs(), servers: x.servers(), resolvers: cfg.MapResolvers,
		own: cfg.own, nonce: x.nonces.next, random: randomNonce, used: x.usedSince, limit: cfg.MaxMapCache,
	})
	x.restore(st)
	return x, nil
}

func (x *XTR) rlocs() (out []netip.Addr) {
	for _, l := range x.cfg.RLOCs {
		out = append(out, l.RLOC)
	}
	return out
}

func (x *XTR) servers() (out []netip.Addr) {
	for _, s := range x.cfg.MapServers {
		out = append(out, s.Addr)
	}
	return out
}

// Run serves until ctx ends, then it returns nil. It may be called once. What the data plane does goes on
// after it: nothing is deregistered, no route is removed.
func (x *XTR) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x.ctx = ctx
	var others sync.WaitGroup
	others.Go(func() {
		if err := x.ep.Run(ctx, x.packet); err != nil {
			cancel(fmt.Errorf("xtr: control plane: %w", err))
		}
	})
	others.Go(x.saver.run)
	x.loop(ctx)
	x.in.close()
	close(x.ended)
	now := time.Now()
	x.saver.put(x.snapshot(now, true), now)
	x.saver.close()
	others.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// loop owns the state. It is the only place that reads the clock.
func (x *XTR) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	x.start(time.Now())
	for {
		x.turn(time.Now())
		f := x.in.take()
		if f == nil {
			wait := time.Hour
			if t := x.next(); !t.IsZero() {
				wait = time.Until(t)
			}
			timer.Reset(max(wait, 0))
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			case <-x.in.ready:
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		f(time.Now())
	}
}

// next is when turn has something to do; zero: never.
func (x *XTR) next() time.Time {
	t := earlier(x.reg.next(), x.res.next())
	t = earlier(t, x.retry)
	t = earlier(t, x.saver.nextDue())
	t = earlier(t, x.nextProbe())
	for _, h := range x.open {
		t = earlier(t, h.next())
	}
	for _, e := range x.loc.eids {
		t = earlier(t, x.goneAt(e))
	}
	return t
}

// turn does what is due, and what the last input has left to do.
func (x *XTR) turn(now time.Time) {
	x.tickHandovers(now)
	if t := x.reg.next(); !t.IsZero() && !t.After(now) {
		x.register(now)
	}
	if t := x.res.next(); !t.IsZero() && !t.After(now) {
		x.res.tick(now)
	}
	x.resolved(now)
	x.tickLocals(now)
	x.tickProbes(now)
	if !x.retry.IsZero() && !x.retry.After(now) {
		x.retry = time.Time{}
		var eids []lisp.EID
		for e := range x.dirty {
			eids = append(eids, e)
		}
		x.program(now, eids...)
	}
	if ceiling, due := x.nonces.reserve(); due {
		x.nonces.reserved = ceiling
		x.saver.mark(now)
	}
	if state, cache := x.saver.wants(now); state {
		x.saver.put(x.snapshot(now, cache), now)
	}
}

// count counts by reason.
func (x *XTR) count(reason string) { x.counts[reason]++ }

// warn logs at most one message of a kind in logEvery.
func (x *XTR) warn(now time.Time, msg string, args ...any) {
	if t, ok := x.lastLog[msg]; ok && now.Sub(t) < logEvery {
		return
	}
	x.lastLog[msg] = now
	x.log.Warn(msg, args...)
}

const logEvery = 10 * time.Second

// call runs f on the goroutine that owns the state, and waits for it.
func call[T any](ctx context.Context, x *XTR, urgent bool, f func(now time.Time) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	put := x.in.put
	if urgent {
		put = x.in.rush
	}
	var zero T
	if !put(func(now time.Time) {
		v, err := f(now)
		done <- result{v, err}
	}) {
		return zero, errStopped
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-x.ended:
		return zero, errStopped
	case <-ctx.Done():
		return zero, fmt.Errorf("xtr: %w", ctx.Err())
	}
}

var errStopped = errors.New("xtr: it has ended")

// PortUp says that a VM interface is there: its name and interface index, and the number that the data plane
// has given it.
func (x *XTR) PortUp(name string, ifindex int, number uint16) {
	x.in.put(func(now time.Time) { x.portUp(&port{name: name, index: ifindex, number: number}, now) })
}

// PortDown says that a VM interface has gone.
func (x *XTR) PortDown(ifindex int) {
	x.in.put(func(now time.Time) { x.portDown(ifindex, now) })
}

// Sighting is a frame from a VM that says who it is: ARP, Neighbor Discovery, or a reverse ARP, which names
// no address.
type Sighting struct {
	If   int // interface index
	MAC  net.HardwareAddr
	Addr netip.Addr // not valid if the frame names none
	Kind string     // what kind of frame it was
	At   time.Time
}

// Sighting takes a Sighting.
func (x *XTR) Sighting(s Sighting) {
	x.in.offer(func(now time.Time) { x.frame(s, now) })
}

// Miss says that packets from src wait for dst, for which the data plane has no route.
func (x *XTR) Miss(iid uint32, src, dst netip.Addr) {
	x.in.offer(func(now time.Time) { x.miss(lisp.HostEID(iid, dst), src, now) })
}

// DataPlaneEvent takes what the data plane has noticed.
func (x *XTR) DataPlaneEvent(ev fib.Event) {
	x.in.offer(func(now time.Time) { x.dataPlaneEvent(ev, now) })
}

// VMEvent is what a hypervisor says of a VM.
type VMEvent struct {
	VM    string    `json:"vm"`    // its name, its UUID, or the name of its interface, or its MAC address
	Event string    `json:"event"` // one of those below
	At    time.Time `json:"at"`    // when it happened; zero: now
}

// The events of a VMEvent. EventStop and EventResume are other words for EventStopped and EventResumed.
const (
	EventStopped   = "stopped"   // the VM executes nothing any more, at least for now
	EventResumed   = "resumed"   // the VM runs here
	EventMigrating = "migrating" // it is being sent away, and still runs here; may be said again and again
	EventGone      = "gone"      // it is not here any more: it has left, or was shut down

	EventStop   = "stop"
	EventResume = "resume"
)

// VMEvent takes a VMEvent, and returns when it has taken effect in the data plane. It fails with ErrNotFound
// if nobody knows the VM, and with ErrInvalid if the event is none.
func (x *XTR) VMEvent(ctx context.Context, ev VMEvent) error {
	_, err := call(ctx, x, true, func(now time.Time) (struct{}, error) { return struct{}{}, x.vmEvent(ev, now) })
	return err
}

// Local returns the interface at which the VM with address a runs.
func (x *XTR) Local(a netip.Addr) (ifindex int, ok bool) {
	v, ok := x.local.Load(a.Unmap().WithZone(""))
	if !ok {
		return 0, false
	}
	return v.(int), true
}
