package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/tabi-lisp/tabi/lisp"
)

// RouterConfig is a [Router]'s speaker and what it originates.
type RouterConfig struct {
	Config
	Originate []netip.Prefix // announced to all peers, with our session address as next hop
}

// A Router hears routes from its peers and hands them out: the Internet router of the demo. It passes
// nothing on from one peer to another.
type Router struct {
	s     *speaker
	cfg   RouterConfig
	route func(netip.Prefix, []netip.Addr)

	wake  chan struct{}
	mu    sync.Mutex
	paths map[netip.Prefix][]routerPath
	dirty map[netip.Prefix]bool
}

type routerPath struct {
	peer    netip.Addr
	id      uint32
	nextHop netip.Addr
	length  int // of the AS path
}

// NewRouter makes a Router. route is called with the next hops of a prefix whenever they change, all
// those of equally short AS paths, sorted; with none when the prefix is gone. It is called from one
// goroutine.
func NewRouter(cfg RouterConfig, route func(p netip.Prefix, nextHops []netip.Addr), log *slog.Logger) (*Router, error) {
	s, err := newSpeaker(role{name: "router", families: []Family{IPv4, IPv6}}, cfg.Config, log)
	if err != nil {
		return nil, err
	}
	own := &api.Policy{Name: "own-out", Statements: []*api.Statement{{
		Name:       "own-out",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	}}}
	if err := s.policy(context.Background(), api.PolicyDirection_EXPORT, own); err != nil {
		return nil, err
	}
	return &Router{
		s: s, cfg: cfg, route: route, wake: make(chan struct{}, 1),
		paths: make(map[netip.Prefix][]routerPath), dirty: make(map[netip.Prefix]bool),
	}, nil
}

// Run brings the sessions up and hands routes out until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	err := r.s.srv.WatchEvent(ctx, &api.WatchEventRequest{Table: &api.WatchEventRequest_Table{
		Filters: []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_POST_POLICY}},
	}}, r.take)
	if err != nil {
		return fmt.Errorf("bgp: router: watch: %w", err)
	}
	for _, p := range r.cfg.Originate {
		if err := r.s.add(ctx, route{eid: lisp.MakeEID(0, p)}); err != nil {
			return fmt.Errorf("bgp: router: originate %v: %w", p, err)
		}
		r.s.count(eidFamily(lisp.MakeEID(0, p)), 1)
	}
	if err := r.s.start(ctx); err != nil {
		return err
	}
	told := make(map[netip.Prefix][]netip.Addr)
	for {
		select {
		case <-ctx.Done():
			return r.s.stop()
		case <-r.wake:
			r.tell(told)
		}
	}
}

// tell hands out what differs from told, and updates it.
func (r *Router) tell(told map[netip.Prefix][]netip.Addr) {
	r.mu.Lock()
	changed := make(map[netip.Prefix][]netip.Addr)
	for p := range r.dirty {
		if hops := nextHops(r.paths[p]); !slices.Equal(hops, told[p]) {
			changed[p] = hops
		}
	}
	clear(r.dirty)
	r.mu.Unlock()
	for p, hops := range changed {
		if len(hops) == 0 {
			delete(told, p)
		} else {
			told[p] = hops
		}
		r.route(p, hops)
	}
}

// nextHops are those of the shortest AS paths.
func nextHops(ps []routerPath) []netip.Addr {
	var hops []netip.Addr
	for _, p := range ps {
		if !slices.ContainsFunc(ps, func(o routerPath) bool { return o.length < p.length }) {
			hops = append(hops, p.nextHop)
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return slices.Compact(hops)
}

// take is called by GoBGP, one event at a time.
func (r *Router) take(ev *api.WatchEventResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ev.GetTable().GetPaths() {
		peer, err := netip.ParseAddr(p.GetNeighborIp())
		if err != nil {
			continue // our own
		}
		e, err := eidOf(p)
		if err != nil || e.IID != 0 {
			continue
		}
		ps := slices.DeleteFunc(r.paths[e.Prefix], func(o routerPath) bool {
			return o.peer == peer && o.id == p.GetIdentifier()
		})
		if nh, _ := attrsOf(p); !p.GetIsWithdraw() && nh.IsValid() {
			ps = append(ps, routerPath{peer: peer, id: p.GetIdentifier(), nextHop: nh, length: asPathLength(p)})
		}
		if len(ps) == 0 {
			delete(r.paths, e.Prefix)
		} else {
			r.paths[e.Prefix] = ps
		}
		r.dirty[e.Prefix] = true
	}
	if len(r.dirty) > 0 {
		poke(r.wake)
	}
}

// asPathLength counts as RFC 4271 section 9.1.2.2 does: an AS_SET is one.
func asPathLength(p *api.Path) int {
	n := 0
	for _, a := range p.GetPattrs() {
		if !a.MessageIs((*api.AsPathAttribute)(nil)) {
			continue
		}
		var as api.AsPathAttribute
		if a.UnmarshalTo(&as) != nil {
			continue
		}
		for _, s := range as.Segments {
			if s.Type == api.AsSegment_AS_SET {
				n++
			} else {
				n += len(s.Numbers)
			}
		}
	}
	return n
}

// Status is the state of the sessions, for "show bgp".
func (r *Router) Status(ctx context.Context) ([]PeerStatus, error) { return r.s.status(ctx) }
