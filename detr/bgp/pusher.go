package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/tabi-lisp/tabi/lisp"
)

// A Pusher announces mappings to D-ETRs (or route reflectors, or anybody who reads BGP). It is a
// [lisp.Sink]. It speaks to nobody before its first full Delta, so that no peer takes the emptiness
// after a restart for the truth.
type Pusher struct {
	s *speaker

	mu   sync.Mutex
	have map[lisp.EID]announced
}

type announced struct {
	mapping lisp.Mapping
	paths   int // path identifiers 1..paths are announced
}

var _ lisp.Sink = (*Pusher)(nil)

// NewPusher listens. Sessions come up with the first full Delta.
func NewPusher(cfg Config, log *slog.Logger) (*Pusher, error) {
	s, err := newSpeaker(role{name: "pusher", graceful: true, send: true, families: AllFamilies()}, cfg, log)
	if err != nil {
		return nil, err
	}
	// What peers say is of no interest here, and must not be passed on.
	if err := s.importOnlyOwn(context.Background()); err != nil {
		return nil, err
	}
	return &Pusher{s: s, have: make(map[lisp.EID]announced)}, nil
}

// Run waits until ctx ends, then closes the sessions in a way that makes peers keep the paths for the
// restart time.
func (p *Pusher) Run(ctx context.Context) error {
	return errors.Join(p.s.renewLost(ctx), p.s.stop())
}

// Apply announces and withdraws. A mapping that is already announced in the same form costs nothing.
func (p *Pusher) Apply(ctx context.Context, d lisp.Delta) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range d.Put {
		if err := p.put(ctx, m); err != nil {
			return err
		}
	}
	for _, e := range d.Del {
		if err := p.del(ctx, e); err != nil {
			return err
		}
	}
	if d.Full {
		if err := p.keepOnly(ctx, d.Put); err != nil {
			return err
		}
		return p.s.start(ctx)
	}
	return nil
}

func (p *Pusher) put(ctx context.Context, m lisp.Mapping) error {
	old, known := p.have[m.EID]
	if known && old.mapping.Equal(m) {
		return nil
	}
	paths := split(m)
	for i, path := range paths {
		if err := p.s.add(ctx, mappingRoute(p.s.cfg.LocalAS, m.EID, path)); err != nil {
			return fmt.Errorf("bgp: announce %v path %d: %w", m.EID, i+1, err)
		}
	}
	// The new paths first: at no time is the EID without any.
	for id := len(paths) + 1; id <= old.paths; id++ {
		if err := p.s.del(ctx, withdrawal(m.EID, uint32(id))); err != nil {
			return fmt.Errorf("bgp: withdraw %v path %d: %w", m.EID, id, err)
		}
	}
	p.have[m.EID] = announced{mapping: m, paths: len(paths)}
	p.s.count(eidFamily(m.EID), len(paths)-old.paths)
	return nil
}

func (p *Pusher) del(ctx context.Context, e lisp.EID) error {
	old := p.have[e]
	for id := 1; id <= old.paths; id++ {
		if err := p.s.del(ctx, withdrawal(e, uint32(id))); err != nil {
			return fmt.Errorf("bgp: withdraw %v path %d: %w", e, id, err)
		}
	}
	delete(p.have, e)
	p.s.count(eidFamily(e), -old.paths)
	return nil
}

func (p *Pusher) keepOnly(ctx context.Context, put []lisp.Mapping) error {
	keep := make(map[lisp.EID]bool, len(put))
	for _, m := range put {
		keep[m.EID] = true
	}
	for e := range p.have {
		if !keep[e] {
			if err := p.del(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Mappings is what is announced, sorted by EID.
func (p *Pusher) Mappings() []lisp.Mapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	ms := make([]lisp.Mapping, 0, len(p.have))
	for _, a := range p.have {
		ms = append(ms, a.mapping)
	}
	slices.SortFunc(ms, func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
	return ms
}

// Status is the state of the sessions, for "show bgp".
func (p *Pusher) Status(ctx context.Context) ([]PeerStatus, error) { return p.s.status(ctx) }

// importOnlyOwn keeps routes of peers out of the table that is announced.
func (s *speaker) importOnlyOwn(ctx context.Context) error {
	return s.policy(ctx, api.PolicyDirection_IMPORT, &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ACCEPT},
	}}})
}

// policy lets pass in one direction what p accepts, and nothing else.
func (s *speaker) policy(ctx context.Context, dir api.PolicyDirection, p *api.Policy) error {
	if err := s.srv.AddPolicy(ctx, &api.AddPolicyRequest{Policy: p}); err != nil {
		return fmt.Errorf("bgp: %s: policy %s: %w", s.role.name, p.Name, err)
	}
	err := s.srv.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: dir, Policies: []*api.Policy{p}, DefaultAction: api.RouteAction_REJECT,
	}})
	if err != nil {
		return fmt.Errorf("bgp: %s: policy %s: %w", s.role.name, p.Name, err)
	}
	return nil
}
