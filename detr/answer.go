package detr

import (
	"net/netip"
	"slices"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// negativeTTL is how long an outsider may believe that we know nothing of an EID (RFC 9301 section 8.2).
const negativeTTL = lisp.TTL(15)

// answer is the Map-Reply to m, which came to the RLOC self, and is all that an outsider is ever told of the
// cloud: for any EID inside an aggregate or a service prefix, that prefix and the D-ETRs' RLOCs. It looks at
// nothing but the configuration, so there is nothing more-specific that it could say than the service prefixes of
// an aggregate (RFC 9301 section 5.5 asks for all more-specifics). An EID prefix that covers some is answered by
// those. For anything else the answer is negative, and speaks of exactly what was asked; an RLOC-probe for it is
// not answered (nil).
//
// RLOC-probes are the cloud's xTRs', too: they probe us for the pool. While we do not serve, none is answered: the
// RLOC counts as down then, and packets go to another D-ETR. To whoever asks we are not to be used.
func answer(cfg *Config, m *lisp.MapRequest, self netip.Addr, serving bool) *lisp.MapReply {
	if m.Probe && !serving {
		return nil
	}
	r := &lisp.MapReply{Probe: m.Probe, Nonce: m.Nonce}
	told := make(map[lisp.EID]bool)
	add := func(rec lisp.Mapping) {
		if !told[rec.EID] {
			told[rec.EID] = true
			r.Records = append(r.Records, rec)
		}
	}
	for _, asked := range m.Records {
		best, ok := cfg.outwardFor(asked.EID)
		if ok {
			add(aggregate(cfg, best, m.Probe, self, serving))
			if m.Probe {
				continue
			}
		}
		covers := false
		for _, e := range cfg.outward {
			if asked.EID.Contains(e) || ok && best.Contains(e) {
				covers = true
				add(aggregate(cfg, e, m.Probe, self, serving))
			}
		}
		switch pool := lisp.MakeEID(0, cfg.Services.Pool); {
		case covers:
		case m.Probe:
			if pool.IsValid() && pool.Contains(asked.EID) {
				add(aggregate(cfg, pool, true, self, serving))
			}
		default:
			add(lisp.Mapping{EID: asked.EID, TTL: negativeTTL, Action: lisp.ActNativelyForward})
		}
	}
	if len(r.Records) == 0 {
		return nil
	}
	return r
}

// outwardFor is the longest prefix that outsiders may know and that covers e.
func (c *Config) outwardFor(e lisp.EID) (best lisp.EID, ok bool) {
	for _, o := range c.outward {
		if o.Contains(e) && (!ok || o.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = o, true
		}
	}
	return best, ok
}

// aggregate is the record of an aggregate, or of what else we stand for.
func aggregate(cfg *Config, a lisp.EID, probe bool, self netip.Addr, serving bool) lisp.Mapping {
	m := lisp.Mapping{EID: a, TTL: aggregateTTL, Authoritative: true, Locators: slices.Clone(cfg.Anchors)}
	for i := range m.Locators {
		l := &m.Locators[i]
		l.Local = slices.ContainsFunc(cfg.RLOCs, func(o lisp.Locator) bool { return o.RLOC == l.RLOC })
		l.Probed = probe && l.RLOC == self
		if l.Local && !serving {
			l.Priority, l.Reachable = lisp.UnusablePriority, false
		}
	}
	if !serving {
		m.TTL = negativeTTL // we may be back soon
	}
	return m
}

// replyTo is where the Map-Reply to m goes. An RLOC-probe is answered to its sender (RFC 9301 section 7.1),
// anything else to an ITR-RLOC of a family that we have, at the port that the request itself came from: of
// one in an ECM, the inner one.
func replyTo(cfg *Config, p control.Packet, m *lisp.MapRequest) (netip.AddrPort, bool) {
	if m.Probe {
		return p.From, true
	}
	port := p.From.Port()
	if p.ECM != nil {
		port = p.ECM.Source.Port()
	}
	for _, a := range m.ITRRLOCs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || port == 0 {
			continue
		}
		if slices.ContainsFunc(cfg.RLOCs, func(l lisp.Locator) bool { return l.RLOC.Is4() == a.Is4() }) {
			return netip.AddrPortFrom(a, port), true
		}
	}
	return netip.AddrPort{}, false
}
