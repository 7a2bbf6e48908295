package xtr

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// packet takes a control message from the wire. It runs on the endpoint's goroutine: digests are checked here,
// the rest is for the goroutine that owns the state.
func (x *XTR) packet(p control.Packet) {
	switch m := p.Msg.(type) {
	case *lisp.MapNotify:
		key, server, ok := x.verify(p.Raw, m, p.From.Addr())
		x.in.offer(func(now time.Time) {
			if !ok {
				x.count("notify-auth")
				x.warn(now, "a Map-Notify that no Map-Server's key fits", "peer", p.From.String())
				return
			}
			x.notified(m, p.From, key, server, now)
		})
	case *lisp.MapReply:
		x.in.offer(func(now time.Time) { x.replied(m, now) })
	case *lisp.MapRequest:
		x.in.offer(func(now time.Time) { x.requested(m, p, now) })
	default:
		x.in.offer(func(time.Time) { x.count("unexpected-message") })
	}
}

// verify finds the Map-Server whose key has signed m: the one that it came from, or another one of the same
// that we know by another address.
func (x *XTR) verify(raw []byte, m *lisp.MapNotify, from netip.Addr) (key lisp.Key, server netip.Addr, ok bool) {
	order := slices.Clone(x.cfg.MapServers)
	slices.SortStableFunc(order, func(a, b Server) int {
		switch {
		case a.Addr == from && b.Addr != from:
			return -1
		case b.Addr == from && a.Addr != from:
			return 1
		}
		return 0
	})
	for _, s := range order {
		if lisp.Verify(raw, m, s.Key) == nil {
			return s.Key, from, true
		}
	}
	return lisp.Key{}, netip.Addr{}, false
}

// notified takes a Map-Notify whose digest is right (RFC 9301 section 5.7): the answer to a Map-Register, the
// answer to a subscription, a publication, or word that an EID of ours has moved.
func (x *XTR) notified(m *lisp.MapNotify, from netip.AddrPort, key lisp.Key, server netip.Addr, now time.Time) {
	records := slices.Clone(m.Records)
	if m.HasXTRID && len(records) == 1 {
		records[0].XTRID, records[0].SiteID = m.XTRID, m.SiteID // of the holder
	}
	if _, ok := x.reg.answers(m.Nonce); ok {
		x.res.known(server, now)
		for _, rec := range records {
			x.outcome(x.reg.answered(m.Nonce, rec, now), now)
		}
		x.register(now)
		x.resolved(now)
		return
	}
	x.ack(m, from, key)
	if x.res.subscribed(m.Nonce, records, now) {
		x.resolved(now)
		for _, rec := range records {
			x.told(rec, now)
		}
		return
	}
	for _, rec := range records {
		wanted := x.res.published(server, m.Nonce, rec, now)
		if x.concerns(rec.EID) {
			x.told(rec, now)
		} else if !wanted {
			x.count("publication-unwanted")
		}
	}
	x.register(now)
	x.resolved(now)
}

// concerns reports whether e lives here, or is about to, or has just left.
func (x *XTR) concerns(e lisp.EID) bool {
	return x.loc.eids[e] != nil || x.active[e] != nil || x.reg.regs[e] != nil
}

// told takes an authenticated mapping of an EID that may concern us.
func (x *XTR) told(rec lisp.Mapping, now time.Time) {
	if !x.concerns(rec.EID) {
		return
	}
	out := x.reg.notified(rec, now)
	x.outcome(out, now)
	h := x.active[rec.EID]
	if h == nil || out.kind == regLost || rec.Negative() || rec.TTL == lisp.TTLDelete {
		return
	}
	switch {
	case !x.reg.ours(rec):
		if rec.Version.Newer(h.Version) && !x.reg.holds(rec.EID) {
			x.exec(h, h.elsewhere(rec, x.usable(rec.Locators), now), now)
		}
	case h.State == Incoming && rec.Version.Newer(h.Version):
		// The controller has registered in our name: the VM runs here.
		x.exec(h, h.seen(evidence{at: now, strong: true, why: "registered by the controller"}, now, x.portOf(h) != nil), now)
		x.outcome(x.reg.notified(rec, now), now)
	}
}

func (x *XTR) outcome(o regOutcome, now time.Time) {
	switch o.kind {
	case regAccepted:
		x.accepted(o.mapping, now)
	case regFrozen:
		x.count("claims-refused")
		x.warn(now, "a Map-Server refuses to move an EID once more: does its VM run twice?", "eid", o.mapping.EID.String())
		x.lost(o.mapping, now)
	case regLost:
		x.lost(o.mapping, now)
	}
}

// ack answers a Map-Notify that was not asked for by a Map-Register, so that it is not repeated.
func (x *XTR) ack(m *lisp.MapNotify, from netip.AddrPort, key lisp.Key) {
	b, err := lisp.AppendSigned(nil, m.Ack(), key)
	if err != nil {
		x.count("ack-failed")
		return
	}
	x.sendRaw(from, b)
}

// replied takes a Map-Reply (RFC 9301 section 5.4).
func (x *XTR) replied(m *lisp.MapReply, now time.Time) {
	if m.Probe {
		x.probeReply(m, now)
		return
	}
	if !x.res.reply(m.Nonce, m.Records, now) {
		x.count("reply-nonce")
		return
	}
	x.res.tick(now)
	x.resolved(now)
}

// requested takes a Map-Request: an SMR, an RLOC-probe, or the question where an EID of ours lives.
func (x *XTR) requested(m *lisp.MapRequest, p control.Packet, now time.Time) {
	if m.SMR {
		if p.ECM != nil {
			x.count("smr-in-ecm")
			return
		}
		x.solicited(m, now)
		return
	}
	if m.Probe && p.ECM != nil {
		x.count("probe-in-ecm") // "probes ... MUST NOT be encapsulated" (RFC 9301 section 7.1)
		return
	}
	if p.ECM != nil && !x.trustedRequester(p.From.Addr()) {
		x.count("request-not-for")
		return
	}
	port := p.From.Port()
	if p.ECM != nil {
		port = p.ECM.Source.Port()
	}
	i := slices.IndexFunc(m.ITRRLOCs, func(a netip.Addr) bool {
		return a.IsValid() && x.cfg.mayKnow(a) &&
			slices.ContainsFunc(x.cfg.RLOCs, func(l lisp.Locator) bool { return l.RLOC.Is4() == a.Is4() })
	})
	if i < 0 {
		// Where an EID of the cloud lives is nobody else's business.
		x.count("request-not-for")
		return
	}
	to := m.ITRRLOCs[i]
	if m.Probe && x.cfg.mayKnow(p.From.Addr()) && p.From.Addr().Is4() == to.Is4() {
		to = p.From.Addr()
	}
	reply := &lisp.MapReply{Probe: m.Probe, Nonce: m.Nonce}
	for _, r := range m.Records {
		if len(reply.Records) == maxAnswers {
			break
		}
		if rec, ok := x.authoritative(r.EID); ok {
			reply.Records = append(reply.Records, x.probed(rec, m.Probe, to))
		}
	}
	if len(reply.Records) == 0 {
		x.count("request-not-here")
		return
	}
	x.count("replies")
	x.send(netip.AddrPortFrom(to, port), reply)
}

// maxAnswers bounds the records of a Map-Reply of ours.
const maxAnswers = 20

// trustedRequester reports whether a is a Map-Server or Map-Resolver of ours, or an RLOC of the cloud.
func (x *XTR) trustedRequester(a netip.Addr) bool {
	return slices.Contains(x.servers(), a) || slices.Contains(x.cfg.MapResolvers, a) || x.cfg.mayKnow(a)
}

// authoritative is our mapping of the local EID that e is, or lies in.
func (x *XTR) authoritative(e lisp.EID) (lisp.Mapping, bool) {
	reg := x.reg.regs[e]
	if reg == nil || reg.delete || x.loc.eids[e] == nil {
		return lisp.Mapping{}, false
	}
	return x.reg.mapping(reg), true
}

// probed marks the locator that was probed (RFC 9301 section 5.4: the p-bit).
func (x *XTR) probed(m lisp.Mapping, probe bool, to netip.Addr) lisp.Mapping {
	if !probe {
		return m
	}
	mine := x.cfg.rlocFor(to)
	m.Locators = slices.Clone(m.Locators)
	for i := range m.Locators {
		m.Locators[i].Probed = m.Locators[i].RLOC == mine
	}
	return m
}

// solicited takes an SMR: what we have of those EIDs may be old. "When an ITR receives an SMR message for which
// it does not have a cached mapping for the EID in the SMR message, it SHOULD NOT send an SMR-invoked
// Map-Request" (RFC 9301 section 6.1).
func (x *XTR) solicited(m *lisp.MapRequest, now time.Time) {
	for _, e := range solicited(m) {
		if x.loc.eids[e] != nil || x.active[e] != nil {
			continue
		}
		found, _, ok := x.res.cache.LookupEID(e)
		if !ok {
			x.count("smr-uncached")
			continue
		}
		if !x.smr.mayAnswer(found, now) {
			x.count("smr-limited")
			continue
		}
		x.count("smr-taken")
		x.res.want(e, netip.Addr{}, whySMR, true, now)
	}
	x.res.tick(now)
	x.resolved(now)
}

// register sends the Map-Registers that are due.
func (x *XTR) register(now time.Time) {
	for _, s := range x.reg.tick(now) {
		srv := x.cfg.MapServers[s.server]
		b, err := lisp.AppendSigned(nil, s.msg, srv.Key)
		if err != nil {
			x.count("register-failed")
			x.warn(now, "a Map-Register cannot be made", "peer", srv.Addr.String(), "err", err)
			continue
		}
		x.sendRaw(netip.AddrPortFrom(srv.Addr, lisp.ControlPort), b)
	}
}

// sendRequest sends a Map-Request through the mapping system: in an ECM (RFC 9301 section 5.8).
func (x *XTR) sendRequest(s requestSend) {
	inner, err := lisp.Append(nil, s.msg)
	if err != nil {
		x.count("request-failed")
		return
	}
	dst := s.msg.Records[0].EID.Prefix.Addr()
	x.send(netip.AddrPortFrom(s.to, lisp.ControlPort), &lisp.ECM{
		Source: netip.AddrPortFrom(x.cfg.rlocFor(dst), lisp.ControlPort),
		Dest:   netip.AddrPortFrom(dst, lisp.ControlPort),
		Inner:  inner,
	})
}

func (x *XTR) send(to netip.AddrPort, m lisp.Message) {
	b, err := lisp.Append(nil, m)
	if err != nil {
		x.count("unencodable")
		return
	}
	x.sendRaw(to, b)
}

func (x *XTR) sendRaw(to netip.AddrPort, b []byte) {
	if err := x.ep.Send(to, b); err != nil {
		x.count("send-errors")
	}
}
