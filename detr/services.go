package detr

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Translator puts services into effect: the kernel's data plane does, and the translator in Go. It is told what
// should be; telling it the same twice changes nothing, and removing what is not there is not an error.
type Translator interface {
	SetServices(ctx context.Context, s ...fib.Service) error
	DelServices(ctx context.Context, outside ...netip.Prefix) error
}

// translated is what a Translator may know besides: the services of before a restart.
type translated interface {
	Services() []fib.Service
}

// services are the services that the feed tells of, and which of them are in effect. The anchor's lock guards
// them.
//
// A service that is in no service prefix here, or whose EID is in no aggregate, is ignored. So is one that
// overlaps another, on either side: the mapping system lets that happen in passing only. Which of them then
// counts does not depend on the order in which they came, so that all D-ETRs agree: the one with the shorter
// prefix, or of equal ones the lower address.
type services struct {
	cfg *Config
	to  []Translator

	told   map[netip.Prefix]*service
	inside map[sided][]netip.Prefix // service addresses by what they are translated to
	// lengths are how many of told have a prefix of that length outside; so many host bits it has inside, too.
	lengths map[bool]*[129]int // by family outside: IPv4 or not
	applied map[netip.Prefix]fib.Service
	unsure  bool   // a Translator failed: nobody knows what it has
	warm    int    // of told
	ignored int    // of told
	changes uint64 // of told
}

// sided is an EID prefix, and the family of the service addresses that are translated to it: it may have one of
// each.
type sided struct {
	v4     bool
	prefix netip.Prefix
}

// service is one service. It is replaced, not changed.
type service struct {
	fib.Service
	version lisp.Version
	warm    bool      // of before a restart; the feed has not spoken of it
	why     string    // it is ignored; "": it is in effect
	at      time.Time // since when it is in effect, as it is; wall clock; zero: it is not
}

// Why a service is ignored, in the words of a counter.
const (
	whyNoPrefix  = "in no service prefix"
	whyNoEID     = "EID in no aggregate"
	whyChained   = "EID in a service prefix"
	whyMalformed = "malformed"
	whyOverlaps  = "overlaps another"
)

func newServices(cfg *Config, to []Translator) *services {
	return &services{
		cfg: cfg, to: to, told: make(map[netip.Prefix]*service), inside: make(map[sided][]netip.Prefix),
		lengths: map[bool]*[129]int{true: {}, false: {}}, applied: make(map[netip.Prefix]fib.Service),
	}
}

// start takes over what is translated from before a restart.
func (s *services) start(ctx context.Context, known []fib.Service, now time.Time) error {
	var stale []netip.Prefix
	for _, k := range known {
		s.applied[k.Outside] = k
		n := &service{Service: k, warm: true}
		switch {
		case s.alone(k) != "":
			stale = append(stale, k.Outside)
		case s.told[k.Outside] != nil: // the feed was quicker than we
		case s.overlapping(n):
			stale = append(stale, k.Outside)
		default:
			s.put(n)
		}
	}
	s.unsure = len(s.told) > 0 // not every Translator has what one of them kept
	return s.change(ctx, slices.Collect(maps.Keys(s.told)), stale, now)
}

// apply makes d, which has services only, what is translated.
func (s *services) apply(ctx context.Context, d lisp.Delta, now time.Time) error {
	touched := slices.Collect(func(yield func(netip.Prefix) bool) {
		for _, e := range d.Del {
			if e.IID == 0 && s.told[e.Prefix] != nil && !yield(e.Prefix) {
				return
			}
		}
	})
	if d.Full {
		named := make(map[netip.Prefix]bool, len(d.Put))
		for _, m := range d.Put {
			named[m.EID.Prefix] = true
		}
		for p := range s.told {
			if !named[p] {
				touched = append(touched, p)
			}
		}
	}
	// Who loses a rival may come into effect, so the rivals of before count too.
	affected := s.affected(touched)
	for _, p := range touched {
		s.remove(p)
	}
	var put []netip.Prefix
	for _, m := range d.Put {
		n := &service{Service: fib.Service{Outside: m.EID.Prefix, Inside: m.Inside}, version: m.Version}
		if m.EID.IID != 0 {
			continue // services are of instance 0: no Map-Server takes another
		}
		if old := s.told[n.Outside]; old != nil {
			if old.Service == n.Service && old.version == n.version && !old.warm {
				continue
			}
			affected = append(affected, s.affected([]netip.Prefix{n.Outside})...)
		}
		if !d.Full {
			touched = append(touched, s.clear(n)...)
		}
		s.put(n)
		put = append(put, n.Outside)
	}
	affected = append(affected, s.affected(put)...)
	return s.change(ctx, affected, touched, now)
}

// put makes n what is told of its service address.
func (s *services) put(n *service) {
	old := s.told[n.Outside]
	s.remove(n.Outside)
	if old != nil && old.Service == n.Service {
		n.at = old.at
	}
	s.told[n.Outside] = n
	k := n.side()
	s.inside[k] = append(s.inside[k], n.Outside)
	s.lengths[k.v4][n.Outside.Bits()]++
	if n.warm {
		s.warm++
	}
}

// clear forgets what a restart left over and is in n's way, and returns it.
func (s *services) clear(n *service) (cleared []netip.Prefix) {
	if s.warm == 0 {
		return nil
	}
	for _, rivals := range []iter.Seq[netip.Prefix]{s.rivals(n), s.below(n)} {
		for _, r := range slices.Collect(rivals) {
			if s.told[r].warm {
				s.remove(r)
				cleared = append(cleared, r)
			}
		}
	}
	return cleared
}

// overlapping reports whether n overlaps anything that is told.
func (s *services) overlapping(n *service) bool {
	for range s.rivals(n) {
		return true
	}
	for range s.below(n) {
		return true
	}
	return false
}

func (s *services) remove(outside netip.Prefix) {
	old := s.told[outside]
	if old == nil {
		return
	}
	delete(s.told, outside)
	if old.warm {
		s.warm--
	}
	if old.why != "" {
		s.ignored--
	}
	k := old.side()
	s.lengths[k.v4][outside.Bits()]--
	if rest := slices.DeleteFunc(s.inside[k], func(p netip.Prefix) bool { return p == outside }); len(rest) > 0 {
		s.inside[k] = rest
	} else {
		delete(s.inside, k)
	}
}

func (n *service) side() sided { return sided{n.Outside.Addr().Is4(), n.Inside} }

// rivals are the service addresses that overlap n on either side and whose prefixes are no longer than n's.
func (s *services) rivals(n *service) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		k := n.side()
		for bits := n.Outside.Bits(); bits >= 0; bits-- {
			if s.lengths[k.v4][bits] == 0 {
				continue
			}
			out, err := n.Outside.Addr().Prefix(bits)
			if err == nil && out != n.Outside && s.told[out] != nil && !yield(out) {
				return
			}
			in, err := n.Inside.Addr().Prefix(n.Inside.Bits() - (n.Outside.Bits() - bits))
			if err != nil {
				continue // malformed
			}
			for _, o := range s.inside[sided{k.v4, in}] {
				if o != n.Outside && o != out && !yield(o) {
					return
				}
			}
		}
	}
}

// below are those that overlap n and have longer prefixes. Unless n is a host it looks through all.
func (s *services) below(n *service) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if n.Outside.IsSingleIP() {
			return
		}
		for o, t := range s.told {
			if o.Bits() > n.Outside.Bits() && t.side().v4 == n.side().v4 &&
				(n.Outside.Overlaps(o) || n.Inside.Overlaps(t.Inside)) && !yield(o) {
				return
			}
		}
	}
}

// affected are those for which it matters whether these are there, themselves included.
func (s *services) affected(outside []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range outside {
		t := s.told[p]
		if t == nil {
			continue
		}
		out = append(out, p)
		if !p.IsSingleIP() {
			return slices.Collect(maps.Keys(s.told))
		}
		if same := s.inside[t.side()]; len(same) > 1 {
			out = append(out, same...)
		}
	}
	return out
}

// before is the order of who counts.
func before(a, b netip.Prefix) int {
	return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
}

// alone says what is wrong with k whatever others there are.
func (s *services) alone(k fib.Service) string {
	within := func(p netip.Prefix) bool {
		return slices.ContainsFunc(s.cfg.Services.Prefixes, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) })
	}
	if k.Valid() != nil {
		return whyMalformed
	}
	if !within(k.Outside) {
		return whyNoPrefix
	}
	if _, own := s.cfg.own(lisp.MakeEID(0, k.Inside)); !own {
		return whyNoEID
	}
	if slices.ContainsFunc(s.cfg.Services.Prefixes, k.Inside.Overlaps) {
		return whyChained
	}
	return ""
}

// change brings into effect what is told, where it may have changed: for the affected, and the removed.
func (s *services) change(ctx context.Context, affected, removed []netip.Prefix, now time.Time) error {
	slices.SortFunc(affected, before)
	affected = slices.Compact(affected)
	for _, p := range affected {
		t := s.told[p]
		if t == nil {
			removed = append(removed, p) // forgotten, because it was in the way
			continue
		}
		n := *t
		if n.why = s.alone(t.Service); n.why == "" {
			for r := range s.rivals(t) {
				if before(r, p) < 0 && s.told[r].why == "" {
					n.why = fmt.Sprintf("%s: %v", whyOverlaps, s.told[r].Service)
					break
				}
			}
		}
		switch {
		case n.why != "":
			n.at = time.Time{}
			s.ignored++
		case n.at.IsZero():
			n.at = now
		}
		if t.why != "" {
			s.ignored--
		}
		s.told[p] = &n
	}
	if len(affected)+len(removed) > 0 {
		s.changes++
	}
	if s.unsure {
		affected, removed = slices.Collect(maps.Keys(s.told)), slices.AppendSeq(removed, maps.Keys(s.applied))
	}
	return s.bring(ctx, affected, removed)
}

// bring makes the Translators translate what is told, as far as it may differ from what they have.
func (s *services) bring(ctx context.Context, affected, removed []netip.Prefix) error {
	var set []fib.Service
	var del []netip.Prefix
	for _, p := range affected {
		switch t := s.told[p]; {
		case t == nil:
		case t.why != "":
			removed = append(removed, p)
		case s.applied[p] != t.Service || s.unsure:
			set = append(set, t.Service)
		}
	}
	for _, p := range removed {
		if t := s.told[p]; t != nil && t.why == "" {
			continue
		}
		if _, ok := s.applied[p]; ok {
			del = append(del, p)
		}
	}
	if len(set)+len(del) == 0 {
		s.unsure = false
		return nil
	}
	slices.SortFunc(set, func(a, b fib.Service) int { return before(a.Outside, b.Outside) })
	slices.SortFunc(del, before)
	del = slices.Compact(del)
	s.unsure = true
	for _, t := range s.to {
		// What is gone first: what is new may have its EID.
		if len(del) > 0 {
			if err := t.DelServices(ctx, del...); err != nil {
				return fmt.Errorf("detr: remove %d services: %w", len(del), err)
			}
		}
		if len(set) == 0 {
			continue
		}
		if err := t.SetServices(ctx, set...); err != nil {
			// Two may have exchanged their EIDs, and each be in the other's way.
			out := make([]netip.Prefix, len(set))
			for i, n := range set {
				out[i] = n.Outside
			}
			if t.DelServices(ctx, out...) != nil || t.SetServices(ctx, set...) != nil {
				return fmt.Errorf("detr: set %d services: %w", len(set), err)
			}
		}
	}
	s.unsure = false
	for _, p := range del {
		delete(s.applied, p)
	}
	for _, n := range set {
		s.applied[n.Outside] = n
	}
	return nil
}

// counters are how many services there are, by what becomes of them.
func (s *services) counters() map[string]uint64 {
	out := map[string]uint64{
		"services/in effect": 0, "services/before the restart": 0,
		"services/ignored: " + whyNoPrefix: 0, "services/ignored: " + whyNoEID: 0,
	}
	for _, t := range s.told {
		switch {
		case t.why == "":
			out["services/in effect"]++
		default:
			out["services/ignored: "+t.reason()]++
		}
		if t.warm {
			out["services/before the restart"]++
		}
	}
	return out
}

// reason is why without its particulars.
func (n *service) reason() string {
	if len(n.why) > len(whyOverlaps) && n.why[:len(whyOverlaps)] == whyOverlaps {
		return whyOverlaps
	}
	return n.why
}
