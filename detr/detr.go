package detr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
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

// DataPlane forwards packets by routes. It is told what should be; telling it the same twice changes
// nothing, and removing what is not there is not an error.
type DataPlane interface {
	Set(ctx context.Context, r ...fib.Route) error
	Del(ctx context.Context, e ...lisp.EID) error
}

// lister is what a DataPlane may know besides: what it forwards by, from before a restart.
type lister interface {
	Routes() []fib.Route
}

// usage is what a DataPlane may know besides: how many packets have taken the route for e, ever.
type usage interface {
	Packets(e lisp.EID) (packets uint64, ok bool)
}

// SlowPath keeps packets that wait for a route.
type SlowPath interface {
	Release(e lisp.EID) // packets that wait for destinations inside e may go
	Reject(e lisp.EID)  // they have waited in vain
}

// Upstream announces the aggregates and the service prefixes to the Internet, or withdraws them.
type Upstream interface {
	Serve(ctx context.Context, serving bool) error
}

// Upstreams are told all alike; one that fails does not keep the others from being told.
type Upstreams []Upstream

// Serve tells all of them.
func (us Upstreams) Serve(ctx context.Context, serving bool) error {
	errs := make([]error, len(us))
	for i, u := range us {
		errs[i] = u.Serve(ctx, serving)
	}
	return errors.Join(errs...)
}

// DETR is a representative ETR. All methods may be called from any goroutine.
type DETR struct {
	cfg    Config
	ep     Endpoint
	dp     DataPlane
	sp     SlowPath
	up     Upstream
	log    *slog.Logger
	anchor *anchor
	in     chan func(now time.Time) // for the goroutine of Run
	ended  chan struct{}            // closed when Run has ended

	// What the goroutine of Run owns.
	res     *resolver
	out     *registrar // at the external Map-Servers
	home    *registrar // at the cloud's own
	sol     solicitor
	drain   drainState
	feed    bool      // the feed is alive
	full    bool      // and has said everything, once
	warm    bool      // there were routes of before a restart
	plane   bool      // the data plane is attached
	started time.Time // of Run
	serving bool
	changed time.Time // when serving became what it is
	counts  map[string]uint64
	replies bucket    // Map-Replies for anybody
	probes  bucket    // answers to probes of the own cloud
	retry   time.Time // when to tell the upstream again
}

// Map-Replies are limited: the addresses that they go to may be forged. The cloud's own xTRs probe us a few times a
// second each, and must not be taken for dead because of what strangers ask.
const (
	replyRate  = 1000 // per second
	replyBurst = 1000
	probeRate  = 50000 // per second
	probeBurst = 10000
)

// bucket holds tokens for messages.
type bucket struct {
	rate, burst float64
	tokens      float64 // messages that may be sent at once
	filled      time.Time
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

// take takes a token, if there is one.
func (b *bucket) take(now time.Time) bool {
	if !b.filled.IsZero() {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.filled).Seconds()*b.rate)
	}
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// inputQueue bounds the inputs that wait; more misses are dropped and counted.
const inputQueue = 256

// upstreamRetry is when an Upstream that failed is told again.
const upstreamRetry = time.Second

// New makes a DETR of opened things. sp and up may be nil: then no packet waits, and nobody upstream is told. All
// translators translate the same services; the first that can say what it translates from before a restart is
// believed.
func New(cfg Config, ep Endpoint, dp DataPlane, sp SlowPath, up Upstream, log *slog.Logger, translators ...Translator) (*DETR, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("detr: configuration: %w", err)
	}
	nonces, err := openNonces(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	drain, err := openDrain(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &DETR{
		cfg: cfg, ep: ep, dp: dp, sp: sp, up: up, log: log,
		in: make(chan func(time.Time), inputQueue), ended: make(chan struct{}),
		counts: make(map[string]uint64), drain: drain,
		replies: newBucket(replyRate, replyBurst), probes: newBucket(probeRate, probeBurst),
	}
	d.anchor = newAnchor(&d.cfg, dp, translators...)
	d.res = newResolver(&d.cfg, randomNonce, d.packets)
	nonce := func(now time.Time) uint64 {
		n, err := nonces.next(now)
		if err != nil {
			d.log.Error("nonces are not kept", "err", err)
		}
		return n
	}
	d.out = newRegistrar(&d.cfg, d.cfg.external(), nonce)
	d.home = newRegistrar(&d.cfg, d.cfg.internal(), nonce)
	d.sol = newSolicitor(&d.cfg)
	return d, nil
}

// registrars are those of both sides.
func (d *DETR) registrars() [2]*registrar { return [2]*registrar{d.out, d.home} }

// packets is how many packets have taken the route for e; 0 if the data plane does not count.
func (d *DETR) packets(e lisp.EID) uint64 {
	u, ok := d.dp.(usage)
	if !ok {
		return 0
	}
	n, _ := u.Packets(e)
	return n
}

// Apply takes mappings of the cloud's own EIDs from the feed: DETR is a [lisp.Sink].
func (d *DETR) Apply(ctx context.Context, delta lisp.Delta) error {
	if err := d.anchor.Apply(ctx, delta); err != nil {
		return err
	}
	if delta.Full {
		// Only a feed that is alive says everything. What decides whether we serve changes in one step.
		d.tell(func(time.Time) { d.feed, d.full = true, true })
	}
	return nil
}

// FeedAlive says whether the feed has a Map-Server, or keeps the mappings of one that is coming back.
func (d *DETR) FeedAlive(alive bool) { d.tell(func(time.Time) { d.feed = alive }) }

// DataPlaneUp says whether the data plane is attached to all interfaces that it needs.
func (d *DETR) DataPlaneUp(up bool) { d.tell(func(time.Time) { d.plane = up }) }

// Miss is told that a packet waits for a route to dst. It never blocks: when too much waits the miss is
// forgotten, and the packet's successors cause another.
func (d *DETR) Miss(iid uint32, _, dst netip.Addr) {
	select {
	case d.in <- func(now time.Time) { d.res.miss(iid, dst, now) }:
	default:
	}
}

// tell hands f to the goroutine of Run.
func (d *DETR) tell(f func(now time.Time)) {
	select {
	case d.in <- f:
	case <-d.ended:
	}
}

// ask runs f on the goroutine of Run and waits for it.
func (d *DETR) ask(ctx context.Context, f func(now time.Time)) error {
	done := make(chan struct{})
	select {
	case d.in <- func(now time.Time) { f(now); close(done) }:
	case <-d.ended:
		return errors.New("detr: not running")
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-d.ended:
		return errors.New("detr: not running")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run works until ctx ends. Then it withdraws all that it stands for, upstream and at all Map-Servers; the data
// plane goes on as it is.
func (d *DETR) Run(ctx context.Context) error {
	defer close(d.ended)
	if err := d.begin(ctx, time.Now()); err != nil {
		return err
	}
	// The endpoint outlives ctx, for the last words.
	recv, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	lost := make(chan error, 1)
	go func() {
		lost <- d.ep.Run(recv, func(p control.Packet) {
			select {
			case d.in <- func(now time.Time) { d.packet(p, now) }:
			case <-recv.Done():
			}
		})
	}()
	err := d.loop(ctx, lost)
	d.setServing(context.WithoutCancel(ctx), false, time.Now())
	d.act(context.WithoutCancel(ctx), time.Now())
	for _, s := range d.sol.rest() {
		d.solicit(s)
	}
	stop()
	if err == nil {
		err = <-lost
	}
	return err
}

// begin takes over what the data plane does already.
func (d *DETR) begin(ctx context.Context, now time.Time) error {
	d.started = now
	var known []fib.Route
	if l, ok := d.dp.(lister); ok {
		known = l.Routes()
	}
	var translates []fib.Service
	for _, t := range d.anchor.services.to {
		if l, ok := t.(translated); ok {
			translates = l.Services()
			break
		}
	}
	if err := d.anchor.start(ctx, known, translates); err != nil {
		return err
	}
	if d.drain.on() {
		d.log.Warn("drained: nothing is announced", "since", d.drain.since)
		for _, r := range d.registrars() {
			r.leave(now)
		}
	}
	d.warm = d.anchor.state().warm > 0
	d.res.start(known, now)
	return nil
}

// loop runs the state machines; nobody else does.
func (d *DETR) loop(ctx context.Context, lost <-chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		d.judge(ctx, now)
		d.res.tick(now)
		d.act(ctx, now)
		next := earlier(earlier(d.res.next(), d.sol.next()), earlier(d.retry, d.warmUntil(now)))
		for _, r := range d.registrars() {
			next = earlier(next, r.next())
		}
		if next.IsZero() {
			next = now.Add(time.Hour)
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case f := <-d.in:
			f(time.Now())
		case <-timer.C:
		}
	}
}

// warmUntil is until when routes of before a restart count as service; zero if they do not.
func (d *DETR) warmUntil(now time.Time) time.Time {
	if t := d.started.Add(d.cfg.WarmTime); d.warm && !d.full && t.After(now) {
		return t
	}
	return time.Time{}
}

// judge decides whether we serve the aggregates and the service prefixes: nobody has drained us, packets reach
// the data plane, and it knows where the EIDs are and what is translated, because a feed has said everything, or
// because it still knows from before a restart.
func (d *DETR) judge(ctx context.Context, now time.Time) {
	on := !d.drain.on() && d.plane && (d.feed && d.full || !d.warmUntil(now).IsZero())
	if on != d.serving || !d.retry.IsZero() && !d.retry.After(now) {
		d.setServing(ctx, on, now)
	}
}

// setServing announces or withdraws everywhere what we stand for.
func (d *DETR) setServing(ctx context.Context, on bool, now time.Time) {
	if on != d.serving {
		d.log.Info("aggregates", "served", on, "feed", d.feed, "data_plane", d.plane, "drained", d.drain.on())
		d.changed = now
		d.sol.stop()
		if !on {
			d.sol.begin(d.anchor.rlocs(), now)
		}
	}
	d.serving, d.retry = on, time.Time{}
	for _, r := range d.registrars() {
		r.serve(on, now)
	}
	if d.up == nil {
		return
	}
	if err := d.up.Serve(ctx, on); err != nil {
		d.log.Error("upstream", "served", on, "err", err)
		d.retry = now.Add(upstreamRetry)
	}
}

// act does what the state machines want done.
func (d *DETR) act(ctx context.Context, now time.Time) {
	o := d.res.take()
	ok := true
	if len(o.del) > 0 {
		if err := d.dp.Del(ctx, o.del...); err != nil {
			d.failed("data-plane", err)
		}
	}
	if len(o.set) > 0 {
		if err := d.dp.Set(ctx, o.set...); err != nil {
			ok = false
			d.failed("data-plane", err)
		}
	}
	if d.sp != nil {
		for _, e := range o.release {
			if ok {
				d.sp.Release(e)
			} else {
				d.sp.Reject(e) // it would only come back
			}
		}
		for _, e := range o.reject {
			d.sp.Reject(e)
		}
	}
	for _, s := range o.sends {
		d.request(s)
	}
	for _, r := range d.registrars() {
		for _, s := range r.tick(now) {
			b, err := lisp.AppendSigned(nil, s.msg, s.to.Key)
			d.send(netip.AddrPortFrom(s.to.Addr, lisp.ControlPort), b, err)
		}
	}
	for _, a := range d.sol.tick(now) {
		d.solicit(a)
	}
}

// solicit asks the xTR at a to ask where the service prefixes and the pool are, now.
func (d *DETR) solicit(a netip.Addr) {
	d.counts["smr/sent"]++
	b, err := lisp.Append(nil, d.sol.message(randomNonce()))
	d.send(netip.AddrPortFrom(a, lisp.ControlPort), b, err)
}

// request sends a Map-Request in an ECM (RFC 9301 section 5.8). It names no source EID: that would be one of
// the cloud's hosts.
func (d *DETR) request(s requestSend) {
	inner, err := lisp.Append(nil, s.msg)
	if err != nil {
		d.failed("encode", err)
		return
	}
	asked := s.msg.Records[0].EID.Prefix.Addr()
	b, err := lisp.Append(nil, &lisp.ECM{
		Source: netip.AddrPortFrom(d.rlocFor(asked), lisp.ControlPort),
		Dest:   netip.AddrPortFrom(asked, lisp.ControlPort),
		Inner:  inner,
	})
	d.send(netip.AddrPortFrom(s.to, lisp.ControlPort), b, err)
}

// rlocFor is the own RLOC of the family of peer; the first one if there is none of that family.
func (d *DETR) rlocFor(peer netip.Addr) netip.Addr {
	for _, l := range d.cfg.RLOCs {
		if l.RLOC.Is4() == peer.Is4() {
			return l.RLOC
		}
	}
	return d.cfg.RLOCs[0].RLOC
}

// send sends what was encoded; err is that of the encoding.
func (d *DETR) send(to netip.AddrPort, b []byte, err error) {
	if err != nil {
		d.failed("encode", err)
		return
	}
	if err := d.ep.Send(to, b); err != nil {
		d.failed("send", err)
	}
}

// failed counts an error, and logs the first few and then every thousandth.
func (d *DETR) failed(what string, err error) {
	d.counts["error/"+what]++
	if n := d.counts["error/"+what]; n <= 3 || n%1000 == 0 {
		d.log.Warn(what, "err", err, "n", n)
	}
}

// packet takes a control message from anybody.
func (d *DETR) packet(p control.Packet, now time.Time) {
	switch m := p.Msg.(type) {
	case *lisp.MapRequest:
		d.asked(p, m, now)
	case *lisp.MapReply:
		if !d.res.replied(m, p.From.Addr(), now) {
			d.counts["map-reply/not asked for"]++
		}
	case *lisp.MapNotify:
		d.notified(p, m, now)
	default:
		d.counts["message/not for a D-ETR"]++
	}
}

// asked takes a Map-Request.
func (d *DETR) asked(p control.Packet, m *lisp.MapRequest, now time.Time) {
	switch {
	case m.SMR:
		d.res.solicited(m, now)
		return
	case m.Probe && p.ECM != nil:
		d.counts["map-request/probe in an ECM"]++ // RFC 9301 section 7.1: never
		return
	case m.DontReply:
		return
	}
	r := answer(&d.cfg, m, d.rlocFor(p.From.Addr()), d.serving)
	to, ok := replyTo(&d.cfg, p, m)
	switch {
	case r == nil && !d.serving:
		d.counts["map-request/probe while not serving"]++
		return
	case r == nil:
		d.counts["map-request/probe for another's EID"]++
		return
	case !ok:
		d.counts["map-request/no ITR-RLOC for us"]++
		return
	case !d.allow(m, p.From.Addr(), now):
		d.counts["map-request/rate"]++
		return
	}
	d.counts["map-request/answered"]++
	b, err := lisp.Append(nil, r)
	d.send(to, b, err)
}

// allow reports whether the answer to m, which came from there, may be sent.
func (d *DETR) allow(m *lisp.MapRequest, from netip.Addr, now time.Time) bool {
	if m.Probe && slices.ContainsFunc(d.cfg.CloudRLOCs, func(p netip.Prefix) bool { return p.Contains(from) }) {
		return d.probes.take(now)
	}
	return d.replies.take(now)
}

// notified takes a Map-Notify.
func (d *DETR) notified(p control.Packet, m *lisp.MapNotify, now time.Time) {
	// A Map-Server may be outside and the cloud's own at once, with a key for each.
	ack, key, err := d.out.notified(p.From.Addr(), p.Raw, m, now)
	if err != nil {
		var err2 error
		if ack, key, err2 = d.home.notified(p.From.Addr(), p.Raw, m, now); err2 == nil || errors.Is(err, errNotAServer) {
			err = err2
		}
	}
	switch {
	case errors.Is(err, errNotAServer):
		d.counts["map-notify/stranger"]++
	case errors.Is(err, errNonce):
		d.counts["map-notify/nonce"]++
	case err != nil:
		d.counts["map-notify/authentication"]++
	case ack == nil:
		d.counts["map-notify/confirmed"]++
	default:
		d.counts["map-notify/acknowledged"]++
		b, err := lisp.AppendSigned(nil, ack, key)
		d.send(p.From, b, err)
	}
}
