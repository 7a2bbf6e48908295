package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/tabi-lisp/tabi/lisp"
)

// FeedConfig is a [Feed]'s speaker and its patience.
type FeedConfig struct {
	Config
	// SyncWait is how long the first full Delta waits for the other peers once one has sent all its
	// mappings, and how long a peer that cannot say End-of-RIB is given; 0 means 5 s.
	SyncWait time.Duration
	// Linger is how long a withdrawn mapping stays believed when nothing replaces it: so a route
	// reflector that loses and finds a Map-Server again loses no packets. 0 means 1 s.
	Linger time.Duration
	// Home are the service prefixes, which the D-ETRs register themselves. A service may have all of one; then
	// it is believed, whatever its version: a Map-Server that has not heard of it tells of the registration.
	Home []lisp.EID
}

// A Feed hears the mappings of all Map-Servers by BGP and tells a [lisp.Sink] which to believe.
type Feed struct {
	s    *speaker
	cfg  FeedConfig
	sink lisp.Sink
	log  *slog.Logger

	wake    chan struct{} // something is in queue
	changed chan struct{}

	unsettled bool // used by loop only

	mu    sync.Mutex
	queue []event
	table *table
	state FeedState
	peers map[netip.Addr]*feedPeer
	bad   uint64 // paths that made no sense
}

// FeedState is how far a Feed is.
type FeedState struct {
	Full   bool // the Sink has had a full Delta
	Peers  int  // configured
	Synced int  // peers that are up and have sent all their mappings
	Paths  int
	Stale  int // paths of peers that are gone and may come back
}

// Alive reports whether the feed knows anything: a peer has sent all its mappings, or there are paths, if
// only of peers that are coming back.
func (s FeedState) Alive() bool { return s.Synced > 0 || s.Paths > 0 }

type feedPeer struct {
	up     bool
	since  time.Time       // established
	says   []Family        // families that it will end with End-of-RIB
	ended  map[Family]bool // families that it has ended
	synced bool
}

// event is what happened at GoBGP, in order.
type event struct {
	kind  eventKind
	peer  netip.Addr
	eid   lisp.EID
	path  path
	stale bool   // eventUpdate
	up    bool   // eventSession: established
	of    Family // eventEndOfRIB
}

type eventKind uint8

const (
	eventUpdate eventKind = iota + 1
	eventWithdraw
	eventSession  // a session came or went
	eventEndOfRIB // of one family: the peer has said everything
)

const (
	defaultSyncWait = 5 * time.Second
	defaultLinger   = time.Second
	sinkRetry       = time.Second
)

// NewFeed makes a Feed for sink; [Feed.Run] starts it.
func NewFeed(cfg FeedConfig, sink lisp.Sink, log *slog.Logger) (*Feed, error) {
	if cfg.SyncWait == 0 {
		cfg.SyncWait = defaultSyncWait
	}
	if cfg.Linger == 0 {
		cfg.Linger = defaultLinger
	}
	s, err := newSpeaker(role{name: "feed", graceful: true, receive: true, families: AllFamilies()}, cfg.Config, log)
	if err != nil {
		return nil, err
	}
	// A feed passes nothing on.
	if err := s.policy(context.Background(), api.PolicyDirection_EXPORT, &api.Policy{Name: "nothing"}); err != nil {
		return nil, err
	}
	f := &Feed{
		s: s, cfg: cfg, sink: sink, log: s.log, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		table: newTable(cfg.Linger, cfg.Home...), peers: make(map[netip.Addr]*feedPeer),
	}
	for _, p := range cfg.Peers {
		f.peers[p.Addr] = &feedPeer{}
	}
	f.state.Peers = len(f.peers)
	return f, nil
}

// Run brings the sessions up and feeds the Sink until ctx ends. First come the mappings as they are
// heard; when all peers have sent everything (or SyncWait after the first) one full Delta with all of
// them; then the changes.
func (f *Feed) Run(ctx context.Context) error {
	// GoBGP's adj-RIB-in events come in two kinds. Those after import policy (there is none here)
	// include the withdrawals that GoBGP makes up itself when a peer is lost or has restarted, in order.
	err := f.s.srv.WatchEvent(ctx, &api.WatchEventRequest{
		Peer: &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
			{Type: api.WatchEventRequest_Table_Filter_POST_POLICY},
			{Type: api.WatchEventRequest_Table_Filter_EOR},
		}},
	}, f.take)
	if err != nil {
		return fmt.Errorf("bgp: feed: watch: %w", err)
	}
	if err := f.s.start(ctx); err != nil {
		return err
	}
	f.loop(ctx)
	return f.s.stop()
}

// take is called by GoBGP, one event at a time.
func (f *Feed) take(r *api.WatchEventResponse) {
	var es []event
	if p := r.GetPeer(); p != nil {
		if a, err := netip.ParseAddr(p.GetPeer().GetState().GetNeighborAddress()); err == nil {
			up := p.GetPeer().GetState().GetSessionState() == api.PeerState_ESTABLISHED
			es = append(es, event{kind: eventSession, peer: a, up: up})
		}
	}
	var bad uint64
	for _, p := range r.GetTable().GetPaths() {
		e, ok := f.eventOf(p)
		if !ok {
			bad++
		}
		if e.kind != 0 {
			es = append(es, e)
		}
	}
	f.mu.Lock()
	f.bad += bad
	f.queue = append(f.queue, es...)
	f.mu.Unlock()
	if len(es) > 0 {
		poke(f.wake)
	}
}

// eventOf is what p means. A path that makes no sense is as good as withdrawn (RFC 7606); ok is then
// false.
func (f *Feed) eventOf(p *api.Path) (e event, ok bool) {
	peer, err := netip.ParseAddr(p.GetNeighborIp())
	if err != nil {
		return event{}, false
	}
	if p.GetNlri() == nil {
		of, ok := familyOf(p.GetFamily())
		return event{kind: eventEndOfRIB, peer: peer, of: of}, ok
	}
	eid, err := eidOf(p)
	if err != nil {
		return event{}, false
	}
	e = event{kind: eventWithdraw, peer: peer, eid: eid, path: path{id: p.GetIdentifier()}}
	if p.GetIsWithdraw() {
		return e, true
	}
	what, err := pathOf(f.s.cfg.LocalAS, p)
	if err != nil || what.fits(eid) != nil {
		return e, false
	}
	e.kind, e.path, e.stale = eventUpdate, what, p.GetStale()
	return e, true
}

// poke makes c readable; many pokes may become one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// loop owns the order of what the Sink is told. A burst that arrives while the Sink works becomes one
// Delta; a single change goes through at once.
func (f *Feed) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var retry time.Time
	for {
		now := time.Now()
		d, next := f.step(ctx, now)
		if !retry.IsZero() {
			d, next = lisp.Delta{}, retry
			if !now.Before(retry) {
				d, retry = lisp.Delta{Full: f.State().Full, Put: f.Mappings()}, time.Time{}
			}
		}
		if !d.Empty() {
			if err := f.sink.Apply(ctx, d); err != nil && ctx.Err() == nil {
				f.log.Error("bgp: feed: sink", "err", err)
				retry = time.Now().Add(sinkRetry)
			}
			continue // more may have come meanwhile
		}
		f.settle(ctx)
		if next.IsZero() {
			next = now.Add(time.Hour)
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-timer.C:
		}
	}
}

// settle waits for GoBGP's own goroutine once after events. GoBGP marks paths stale without a lock, and what
// hands us events reads that mark: so the reading has happened before any writing that comes later.
func (f *Feed) settle(ctx context.Context) {
	if !f.unsettled {
		return
	}
	f.unsettled = false
	if _, err := f.s.srv.GetBgp(ctx, &api.GetBgpRequest{}); err != nil {
		f.log.Debug("bgp: feed: settle", "err", err)
	}
}

// step takes in what has come and says what to tell the Sink, and when to look again.
func (f *Feed) step(ctx context.Context, now time.Time) (d lisp.Delta, next time.Time) {
	f.mu.Lock()
	events := f.queue
	f.queue = nil
	f.mu.Unlock()
	f.unsettled = f.unsettled || len(events) > 0

	// What a new session has agreed on is to be had from GoBGP only by asking.
	var says map[netip.Addr][]Family
	if slices.ContainsFunc(events, func(e event) bool { return e.kind == eventSession && e.up }) {
		says = f.endOfRIBFamilies(ctx)
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.handle(e, says, now)
	}
	d = f.table.due(now)
	next = f.table.next()
	before := f.state
	full, at := f.sync(now)
	if full && !f.state.Full {
		f.state.Full = true
		d = lisp.Delta{Full: true, Put: f.table.all()}
	}
	if !f.state.Full {
		// Until everything has been heard, what has not been heard is not known to be gone.
		d.Del = nil
	}
	if !at.IsZero() && (next.IsZero() || at.Before(next)) {
		next = at
	}
	f.state.Paths, f.state.Stale = 0, 0
	for _, c := range f.table.paths {
		f.state.Paths += int(c.total)
		f.state.Stale += int(c.stale)
	}
	if f.state != before {
		poke(f.changed)
	}
	return d, next
}

// handle takes one event in.
func (f *Feed) handle(e event, says map[netip.Addr][]Family, now time.Time) {
	switch e.kind {
	case eventUpdate:
		f.table.update(e.eid, e.peer, e.path, e.stale)
	case eventWithdraw:
		f.table.withdraw(e.eid, e.peer, e.path.id, now)
	case eventSession:
		p := f.peers[e.peer]
		switch {
		case p == nil:
		case e.up && !p.up:
			*p = feedPeer{up: true, since: now, says: says[e.peer], ended: make(map[Family]bool)}
		case !e.up:
			*p = feedPeer{}
		}
	case eventEndOfRIB:
		if p := f.peers[e.peer]; p != nil && p.up {
			p.ended[e.of] = true
			if !slices.ContainsFunc(p.says, func(g Family) bool { return !p.ended[g] }) {
				p.synced = true
			}
		}
	}
}

// endOfRIBFamilies are the families that each peer has promised to end with End-of-RIB.
func (f *Feed) endOfRIBFamilies(ctx context.Context) map[netip.Addr][]Family {
	says := make(map[netip.Addr][]Family)
	err := f.s.srv.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		a, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if err != nil {
			return
		}
		remote := remoteFamilies(p)
		for _, af := range p.GetAfiSafis() {
			g, ok := familyOf(af.GetConfig().GetFamily())
			if ok && remote[g] && af.GetMpGracefulRestart().GetState().GetReceived() {
				says[a] = append(says[a], g)
			}
		}
	})
	if err != nil {
		f.log.Error("bgp: feed: list peers", "err", err)
	}
	return says
}

// sync reports whether the first full Delta is due, and when to look again if not.
func (f *Feed) sync(now time.Time) (full bool, next time.Time) {
	synced := 0
	var first time.Time // when the earliest of the synced peers came up
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, p := range f.peers {
		if !p.up {
			continue
		}
		if !p.synced {
			if at := p.since.Add(f.cfg.SyncWait); at.After(now) {
				sooner(at)
				continue
			}
			p.synced = true // it never says End-of-RIB
		}
		synced++
		if first.IsZero() || p.since.Before(first) {
			first = p.since
		}
	}
	f.state.Synced = synced
	if f.state.Full || synced == 0 {
		return false, next
	}
	if synced == len(f.peers) {
		return true, time.Time{}
	}
	if at := first.Add(f.cfg.SyncWait); at.After(now) {
		sooner(at)
		return false, next
	}
	return true, next
}

// State is how far the feed is.
func (f *Feed) State() FeedState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Changed gets a value when State has changed; several changes may become one.
func (f *Feed) Changed() <-chan struct{} { return f.changed }

// Mappings is what the Feed believes, sorted by EID.
func (f *Feed) Mappings() []lisp.Mapping {
	f.mu.Lock()
	defer f.mu.Unlock()
	ms := f.table.all()
	slices.SortFunc(ms, func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
	return ms
}

// Said is what one peer says about an EID.
type Said struct {
	Peer     netip.Addr
	Version  lisp.Version
	XTRID    lisp.XTRID
	Locator  lisp.Locator
	Inside   netip.Addr // of a service: what is translated to, from this address on; otherwise not valid
	Stale    bool
	Believed bool
}

// Heard is everything that any peer says about e, for "explain".
func (f *Feed) Heard(e lisp.EID) []Said {
	f.mu.Lock()
	defer f.mu.Unlock()
	en := f.table.entries[e]
	if en == nil {
		return nil
	}
	said := make([]Said, 0, len(en.told))
	for _, h := range en.told {
		said = append(said, Said{
			Peer: h.peer, Version: h.version, XTRID: h.xtr, Locator: h.loc, Inside: h.inside, Stale: h.stale,
			Believed: en.known && en.current.Version == h.version && en.current.XTRID == h.xtr,
		})
	}
	return said
}

// Explain says what each peer tells of e, the believed first.
func (f *Feed) Explain(_ context.Context, e lisp.EID) ([]lisp.Finding, error) {
	var out []lisp.Finding
	for _, believed := range []bool{true, false} {
		for _, h := range f.Heard(e) {
			if h.Believed != believed {
				continue
			}
			why := "believed: no peer has a newer version"
			switch {
			case !h.Believed:
				why = "not believed: another version is newer, or of a lower xTR-ID"
			case h.Stale:
				why = "believed, though the peer is gone: it may come back (graceful restart)"
			}
			says := fmt.Sprintf("nowhere, version %d of xTR %v", h.Version, h.XTRID)
			switch {
			case h.Inside.IsValid():
				says = fmt.Sprintf("a service address, of %v, version %d", h.Inside, h.Version)
			case h.Locator.RLOC.IsValid():
				says = fmt.Sprintf("at %s, version %d of xTR %v", h.Locator.RLOC, h.Version, h.XTRID)
			}
			out = append(out, lisp.Finding{Part: "bgp", Says: fmt.Sprintf("%v says: %s", h.Peer, says), Why: why})
		}
	}
	return out, nil
}

// Status is the state of the sessions, for "show bgp".
func (f *Feed) Status(ctx context.Context) ([]PeerStatus, error) {
	sts, err := f.s.status(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range sts {
		if p := f.peers[sts[i].Peer]; p != nil {
			sts[i].Synced = p.synced
		}
		if c := f.table.paths[sts[i].Peer]; c != nil {
			sts[i].Stale = c.stale
		}
	}
	return sts, err
}

// Counters counts what went wrong, by reason.
func (f *Feed) Counters() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return map[string]uint64{"bad-path": f.bad}
}
