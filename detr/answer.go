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
// cloud: for any EID inside an aggregate, that aggregate and the D-ETRs' RLOCs. It looks at nothing but
// the configuration, so there is nothing more-specific that it could say (RFC 9301 section 5.5 asks for all
// more-specifics). An EID prefix that covers aggregates is answered by those. For anything else the answer
// is negative, and speaks of exactly what was asked; an RLOC-probe for it is not answered (nil).
func answer(cfg *Config, m *lisp.MapRequest, self netip.Addr) *lisp.MapReply {
	r := &lisp.MapReply{Probe: m.Probe, Nonce: m.Nonce}
	told := make(map[lisp.EID]bool)
	add := func(rec lisp.Mapping) {
		if !told[rec.EID] {
			told[rec.EID] = true
			r.Records = append(r.Records, rec)
		}
	}
	for _, asked := range m.Records {
		if a, ok := cfg.own(asked.EID); ok {
			add(aggregate(cfg, a, m.Probe, self))
			continue
		}
		covers := false
		for _, a := range cfg.Aggregates {
			if asked.EID.Contains(a) {
				covers = true
				add(aggregate(cfg, a, m.Probe, self))
			}
		}
		if !covers && !m.Probe {
			add(lisp.Mapping{EID: asked.EID, TTL: negativeTTL, Action: lisp.ActNativelyForward})
		}
	}
	if len(r.Records) == 0 {
		return nil
	}
	return r
}

// aggregate is the record of the aggregate a.
func aggregate(cfg *Config, a lisp.EID, probe bool, self netip.Addr) lisp.Mapping {
	locs := slices.Clone(cfg.Anchors)
	for i := range locs {
		l := &locs[i]
		l.Local = slices.ContainsFunc(cfg.RLOCs, func(o lisp.Locator) bool { return o.RLOC == l.RLOC })
		l.Probed = probe && l.RLOC == self
	}
	return lisp.Mapping{EID: a, TTL: aggregateTTL, Authoritative: true, Locators: locs}
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
