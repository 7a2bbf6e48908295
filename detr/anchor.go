package detr

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// An anchor keeps the routes of the cloud's own EIDs as the feed says. It is a [lisp.Sink].
//
// Each aggregate has a route that drops: an EID of ours without a mapping never causes a Map-Request, and
// never leaves by the kernel's own routing, where it would come back. So have the service prefixes and the pool:
// what is not translated there goes nowhere.
//
// Services are in the same feed and make no routes: they go to who translates (services.go).
type anchor struct {
	cfg *Config
	dp  DataPlane
	now func() time.Time

	mu       sync.Mutex
	entries  map[lisp.EID]installed
	warm     map[lisp.EID]bool // routes of before a restart that the feed has not spoken of
	services *services
	full     bool   // a full Delta was applied
	ignored  uint64 // mappings outside the aggregates
	looped   uint64 // locators that would have come back to a D-ETR
}

// installed is a mapping that is in the data plane.
type installed struct {
	mapping lisp.Mapping
	at      time.Time // when the data plane had it; wall clock
}

func newAnchor(cfg *Config, dp DataPlane, translators ...Translator) *anchor {
	return &anchor{
		cfg: cfg, dp: dp, now: time.Now,
		entries: make(map[lisp.EID]installed), warm: make(map[lisp.EID]bool), services: newServices(cfg, translators),
	}
}

// covers are the EID prefixes that have a route which drops.
func (c *Config) covers() []lisp.EID {
	out := slices.Clone(c.outward)
	if c.Services.Pool.IsValid() {
		out = append(out, lisp.MakeEID(0, c.Services.Pool))
	}
	return out
}

// start puts the covering routes in. known are routes that the data plane has from before a restart: those
// inside the aggregates go on until the first full Delta says whether they are right. So do translated, which are
// services.
func (a *anchor) start(ctx context.Context, known []fib.Route, translated []fib.Service) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	covers := a.cfg.covers()
	cover := make([]fib.Route, 0, len(covers))
	for _, e := range covers {
		if _, fed := a.entries[e]; !fed {
			cover = append(cover, fib.Route{EID: e, Do: fib.Drop})
		}
	}
	var gone []lisp.EID
	for _, r := range known {
		if _, ok := a.cfg.own(r.EID); !ok || a.cfg.registers(r.EID) {
			if a.cfg.home(r.EID) && !slices.Contains(covers, r.EID) {
				gone = append(gone, r.EID) // of a time when that was no service prefix or pool
			}
			continue
		}
		if _, fed := a.entries[r.EID]; fed {
			continue // the feed was quicker than we
		}
		cover = slices.DeleteFunc(cover, func(c fib.Route) bool { return c.EID == r.EID })
		if r.Do == fib.Encap || !slices.Contains(a.cfg.Aggregates, r.EID) {
			a.warm[r.EID] = true
		}
	}
	if err := a.dp.Set(ctx, cover...); err != nil {
		return fmt.Errorf("detr: routes of the aggregates: %w", err)
	}
	if len(gone) > 0 {
		if err := a.dp.Del(ctx, gone...); err != nil {
			return fmt.Errorf("detr: remove %d routes of before: %w", len(gone), err)
		}
	}
	return a.services.start(ctx, translated, a.now())
}

// Apply makes d what is forwarded by.
func (a *anchor) Apply(ctx context.Context, d lisp.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	routes := make([]fib.Route, 0, len(d.Put))
	put := make([]lisp.Mapping, 0, len(d.Put))
	named := make(map[lisp.EID]bool)
	gone := slices.Clone(d.Del)
	var translate []lisp.Mapping
	for _, m := range d.Put {
		if m.IsService() {
			translate = append(translate, m)
			if _, ok := a.entries[m.EID]; (ok || a.warm[m.EID]) && !d.Full {
				gone = append(gone, m.EID) // it was an EID with a place before
			}
			continue
		}
		if a.cfg.registers(m.EID) {
			continue // what we, and the other D-ETRs, have registered
		}
		if _, ok := a.cfg.own(m.EID); !ok {
			a.ignored++
			continue
		}
		if d.Full {
			named[m.EID] = true
		}
		if old, ok := a.entries[m.EID]; ok && old.mapping.Equal(m) {
			continue
		}
		routes = append(routes, a.route(m))
		put = append(put, m)
	}
	if d.Full {
		for _, known := range []([]lisp.EID){slices.Collect(maps.Keys(a.entries)), slices.Collect(maps.Keys(a.warm))} {
			gone = append(gone, slices.DeleteFunc(known, func(e lisp.EID) bool { return named[e] })...)
		}
	}
	var dels []lisp.EID
	for _, e := range gone {
		if _, ok := a.cfg.own(e); !ok || a.cfg.registers(e) {
			continue
		}
		if slices.Contains(a.cfg.Aggregates, e) {
			routes = append(routes, fib.Route{EID: e, Do: fib.Drop})
		} else {
			dels = append(dels, e)
		}
	}
	// What is new first: a packet rather goes to where the EID was than nowhere.
	if len(routes) > 0 {
		if err := a.dp.Set(ctx, routes...); err != nil {
			return fmt.Errorf("detr: set %d routes: %w", len(routes), err)
		}
	}
	at := a.now()
	for _, m := range put {
		since := at
		// The same version at the same place has been forwarded by already, whatever else is said anew.
		if old, ok := a.entries[m.EID]; ok && old.mapping.Version == m.Version && slices.Equal(old.mapping.Locators, m.Locators) {
			since = old.at
		}
		a.entries[m.EID] = installed{m, since}
		delete(a.warm, m.EID)
	}
	if len(dels) > 0 {
		if err := a.dp.Del(ctx, dels...); err != nil {
			return fmt.Errorf("detr: remove %d routes: %w", len(dels), err)
		}
	}
	for _, e := range gone {
		delete(a.entries, e)
		delete(a.warm, e)
	}
	if err := a.services.apply(ctx, lisp.Delta{Full: d.Full, Put: translate, Del: unserved(d, translate)}, at); err != nil {
		return err
	}
	if d.Full {
		clear(a.warm)
		a.full = true
	}
	return nil
}

// unserved are the EIDs that d says are no services, any more: removed, or mapped to a place. translate are the
// services that it puts.
func unserved(d lisp.Delta, translate []lisp.Mapping) []lisp.EID {
	if d.Full || len(d.Put) == len(translate) {
		return d.Del
	}
	out := slices.Clone(d.Del)
	for _, m := range d.Put {
		if !m.IsService() {
			out = append(out, m.EID)
		}
	}
	return out
}

// route is what the data plane does for m.
func (a *anchor) route(m lisp.Mapping) fib.Route {
	locs := a.cfg.usableLocators(m.Locators)
	a.looped += uint64(len(m.Locators) - len(locs))
	if len(locs) == 0 {
		return fib.Route{EID: m.EID, Do: fib.Drop}
	}
	return fib.Route{EID: m.EID, Do: fib.Encap, Locators: locs, Transit: true, MTU: uint16(a.cfg.MTU)}
}

// anchorState is what the rest of the D-ETR needs to know of the anchor.
type anchorState struct {
	full     bool
	mappings int
	warm     int
}

func (a *anchor) state() anchorState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return anchorState{a.full, len(a.entries), len(a.warm)}
}

// rlocs are where EIDs are, each once and sorted: the xTRs that have any.
func (a *anchor) rlocs() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := make(map[netip.Addr]bool)
	for _, i := range a.entries {
		for _, l := range i.mapping.Locators {
			if l.RLOC.IsValid() && a.cfg.usable(l.RLOC) {
				found[l.RLOC] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
}

// serviceOf is the service that e is an address of.
func (a *anchor) serviceOf(e lisp.EID) (*service, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.IID != 0 {
		return nil, false
	}
	for bits := e.Prefix.Bits(); bits >= 0; bits-- {
		if p, err := e.Prefix.Addr().Prefix(bits); err == nil && a.services.told[p] != nil {
			return a.services.told[p], true
		}
	}
	return nil, false
}

// translated says how many services are in effect, and how many ignored.
func (a *anchor) translated() (inEffect, ignored int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.services.told) - a.services.ignored, a.services.ignored
}

// all lists the mappings, sorted by EID.
func (a *anchor) all() []installed {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.entries), func(x, y installed) int { return x.mapping.EID.Compare(y.mapping.EID) })
}

// covering is the longest prefix with a mapping that covers e.
func (a *anchor) covering(e lisp.EID) (best installed, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for bits := e.Prefix.Bits(); bits >= 0; bits-- {
		p, err := e.Prefix.Addr().Prefix(bits)
		if err != nil {
			return installed{}, false
		}
		if i, ok := a.entries[lisp.EID{IID: e.IID, Prefix: p}]; ok {
			return i, true
		}
	}
	return installed{}, false
}

func (a *anchor) counters() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]uint64{"feed/outside the aggregates": a.ignored, "feed/locator of a D-ETR": a.looped}
	maps.Copy(out, a.services.counters())
	return out
}
