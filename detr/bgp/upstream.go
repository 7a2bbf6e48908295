package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/tabi-lisp/tabi/lisp"
)

// UpstreamConfig is an [Upstream]'s speaker and what it may announce.
type UpstreamConfig struct {
	Config
	Aggregates []netip.Prefix // all that ever leaves
	// NextHops are the next hops to announce, one per family at most. A family without one is announced
	// with our address on the session, on sessions of that family only, unless the peer's Families say
	// otherwise.
	NextHops []netip.Addr
}

// An Upstream announces the aggregates to upstream routers while it is told that we can serve them.
//
// Nothing else can leave: no host mapping is ever in this GoBGP server (the [Feed] has another one), its
// table takes routes from nobody but us, and its export policy lets nothing but the aggregates pass.
type Upstream struct {
	s   *speaker
	cfg UpstreamConfig

	mu      sync.Mutex
	serving bool
}

// NewUpstream makes an Upstream that announces nothing yet; [Upstream.Run] brings the sessions up.
func NewUpstream(cfg UpstreamConfig, log *slog.Logger) (*Upstream, error) {
	for _, p := range cfg.Aggregates {
		if !p.IsValid() || p != p.Masked() {
			return nil, fmt.Errorf("bgp: upstream: aggregate %v is not a masked prefix", p)
		}
	}
	cfg.Peers = slices.Clone(cfg.Peers)
	for i := range cfg.Peers {
		if p := &cfg.Peers[i]; len(p.Families) == 0 {
			p.Families = cfg.families(p.Addr)
		}
	}
	s, err := newSpeaker(role{name: "upstream"}, cfg.Config, log)
	if err != nil {
		return nil, err
	}
	u := &Upstream{s: s, cfg: cfg}
	ctx := context.Background()
	if err := errors.Join(s.importOnlyOwn(ctx), u.exportOnly(ctx)); err != nil {
		return nil, err
	}
	return u, nil
}

// families are those that a session with peer can carry with a next hop that routers can use.
func (c *UpstreamConfig) families(peer netip.Addr) (fs []Family) {
	for _, f := range []Family{IPv4, IPv6} {
		is := func(a netip.Addr) bool { return a.Is4() == (f == IPv4) }
		if is(peer) || slices.ContainsFunc(c.NextHops, is) {
			fs = append(fs, f)
		}
	}
	return fs
}

// exportOnly lets the aggregates leave, with exactly their length.
func (u *Upstream) exportOnly(ctx context.Context) error {
	p := &api.Policy{Name: "aggregates"}
	// A prefix set holds one family.
	for _, f := range []Family{IPv4, IPv6} {
		name := "aggregates-" + string(f)
		set := &api.DefinedSet{DefinedType: api.DefinedType_PREFIX, Name: name}
		for _, a := range u.cfg.Aggregates {
			if a.Addr().Is4() == (f == IPv4) {
				set.Prefixes = append(set.Prefixes, &api.Prefix{
					IpPrefix: a.String(), MaskLengthMin: uint32(a.Bits()), MaskLengthMax: uint32(a.Bits()),
				})
			}
		}
		if len(set.Prefixes) == 0 {
			continue
		}
		if err := u.s.srv.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: set}); err != nil {
			return fmt.Errorf("bgp: upstream: prefix set: %w", err)
		}
		p.Statements = append(p.Statements, &api.Statement{
			Name:       name,
			Conditions: &api.Conditions{PrefixSet: &api.MatchSet{Type: api.MatchSet_ANY, Name: name}},
			Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
		})
	}
	return u.s.policy(ctx, api.PolicyDirection_EXPORT, p)
}

// Run brings the sessions up; when ctx ends it withdraws the aggregates and closes the sessions.
func (u *Upstream) Run(ctx context.Context) error {
	if err := u.s.start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	err := u.Serve(context.WithoutCancel(ctx), false)
	// The withdrawals are queued, not yet sent; closing the session at once would do the same less kindly.
	time.Sleep(withdrawGrace)
	return errors.Join(err, u.s.stop())
}

// withdrawGrace is how long withdrawals may take to leave before the sessions are closed.
const withdrawGrace = 50 * time.Millisecond

// Serve announces the aggregates, or withdraws them. Telling it what it does already is free.
func (u *Upstream) Serve(ctx context.Context, serving bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.serving == serving {
		return nil
	}
	for _, a := range u.cfg.Aggregates {
		e := lisp.MakeEID(0, a)
		var err error
		if serving {
			err = u.s.add(ctx, route{eid: e, id: 0, nextHop: u.nextHop(a)})
			u.s.count(eidFamily(e), 1)
		} else {
			err = u.s.del(ctx, withdrawal(e, 0))
			u.s.count(eidFamily(e), -1)
		}
		if err != nil {
			return fmt.Errorf("bgp: upstream: %v: %w", a, err)
		}
	}
	u.serving = serving
	u.s.log.Info("bgp: aggregates", "announced", serving, "prefixes", len(u.cfg.Aggregates))
	return nil
}

func (u *Upstream) nextHop(p netip.Prefix) netip.Addr {
	for _, n := range u.cfg.NextHops {
		if n.Is4() == p.Addr().Is4() {
			return n
		}
	}
	return netip.Addr{}
}

// Serving reports whether the aggregates are announced.
func (u *Upstream) Serving() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.serving
}

// Status is the state of the sessions, for "show bgp".
func (u *Upstream) Status(ctx context.Context) ([]PeerStatus, error) { return u.s.status(ctx) }
