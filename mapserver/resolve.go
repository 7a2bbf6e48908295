package mapserver

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// maxAnswer bounds the records of one Map-Reply: a request of a hundred bytes must not be answered with
// sixty thousand.
const maxAnswer = 64

// query is a Map-Request that is to be answered.
type query struct {
	*lisp.MapRequest
	ecm *lisp.ECM
	to  []netip.AddrPort // where a Map-Reply may go
}

// mapRequest is for a Map-Request in an ECM (RFC 9301 sections 8.3 and 8.4).
func (c *core) mapRequest(now time.Time, m *lisp.MapRequest, ecm *lisp.ECM) {
	switch {
	case m.Probe:
		// "RLOC-probes ... MUST be dropped" by Map-Servers and Map-Resolvers (RFC 9301 section 5.2).
		c.count("request/dropped/probe")
		return
	case ecm == nil:
		c.count("request/dropped/not-encapsulated")
		return
	case m.SMR:
		c.count("request/dropped/smr")
		return
	}
	q := query{MapRequest: m, ecm: ecm}
	for _, a := range m.ITRRLOCs {
		if a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() {
			q.to = append(q.to, netip.AddrPortFrom(a, ecm.Source.Port()))
		}
	}
	unsubscribe := len(m.ITRRLOCs) == 1 && !m.ITRRLOCs[0].IsValid()
	if len(q.to) == 0 && !unsubscribe {
		c.count("request/dropped/no-itr-rloc")
		return
	}
	var records []lisp.Mapping
	forwarded := false
	for _, r := range m.Records {
		if r.Notify && m.HasXTRID && c.subscribe(now, q, r.EID, unsubscribe) {
			continue
		}
		if len(q.to) == 0 {
			continue
		}
		e, ms := c.lookup(r.EID)
		switch {
		case e != nil && !e.proxied():
			if !forwarded {
				c.forward(q, e)
			}
			forwarded = true
		case len(records)+len(ms) <= maxAnswer:
			records = append(records, ms...)
		case len(records) < maxAnswer:
			records = append(records, ms[0])
		default:
			c.count("request/truncated")
		}
	}
	if len(records) > 0 {
		c.reply(q, records)
	}
}

func (c *core) reply(q query, records []lisp.Mapping) {
	switch {
	case slices.ContainsFunc(records, func(m lisp.Mapping) bool { return !m.Negative() }):
		c.count("request/answered")
	default:
		c.count("request/answered-negative")
	}
	c.send(nil, &lisp.MapReply{Nonce: q.Nonce, Records: records}, q.to...)
}

// forward hands a Map-Request to a registered ETR as it is, so that the reply goes straight to the ITR
// (RFC 9301 section 8.3).
func (c *core) forward(q query, e *entry) {
	// Any of the ETRs will do; the nonce is as good as random.
	r := &e.regs[q.Nonce%uint64(len(e.regs))]
	to := destinations(&r.Registrant)
	if len(to) == 0 {
		c.count("request/dropped/no-etr")
		return
	}
	c.count("request/forwarded")
	c.send(nil, q.ecm, to...)
}

// lookup finds what is to be answered for eid: the mappings, the best match first, if this Map-Server
// answers itself; the entry that matched, if any.
func (c *core) lookup(eid lisp.EID) (*entry, []lisp.Mapping) {
	_, e, ok := c.live.LookupEID(eid)
	if !ok {
		return nil, []lisp.Mapping{c.negative(eid)}
	}
	if !e.proxied() {
		return e, nil
	}
	ms := []lisp.Mapping{c.proxied(e)}
	complete := true
	for _, o := range c.live.Subnets(e.mapping.EID) {
		if complete = o.proxied() && len(ms) <= c.MaxMoreSpecifics; !complete {
			break
		}
		ms = append(ms, c.proxied(o))
	}
	if !complete {
		// Too many, or some for which others answer: then only the part of the best match that has no
		// more-specific in it, if that holds what was asked for.
		ms = ms[:1]
		ms[0].EID = c.solid(e.mapping.EID, eid)
	}
	// "When more than one EID-Prefix is returned, all SHOULD use the same TTL value so they can all
	// time out at the same time" (RFC 9301 section 5.5).
	for _, m := range ms {
		ms[0].TTL = min(ms[0].TTL, m.TTL)
	}
	for i := range ms {
		ms[i].TTL = ms[0].TTL
	}
	return e, ms
}

// solid is the largest part of match around eid in which nothing more specific is registered, or match
// itself if there is none.
func (c *core) solid(match, eid lisp.EID) lisp.EID {
	for bits := match.Prefix.Bits() + 1; bits <= eid.Prefix.Bits(); bits++ {
		part := lisp.EID{IID: eid.IID, Prefix: netip.PrefixFrom(eid.Prefix.Addr(), bits).Masked()}
		if !c.hasInside(part) {
			return part
		}
	}
	return match
}

func (c *core) hasInside(e lisp.EID) bool {
	for range c.live.Subnets(e) {
		return true
	}
	return false
}

// maxReplyTTL is a day, in minutes: some peers register for "forever".
const maxReplyTTL = 1440

// proxied is e's mapping as it is told on behalf of an ETR: not authoritative, and none of the locators
// is the sender's own (RFC 9301 section 5.4, the A and L bits; they are clear in what is kept).
func (c *core) proxied(e *entry) lisp.Mapping {
	m := e.mapping
	m.TTL = min(m.TTL, maxReplyTTL)
	return m
}

// negative is the answer for an EID that is not registered: the least-specific prefix around it in which
// nothing is, as far as the configured prefixes reach (RFC 9301 sections 8.3 and 8.4).
func (c *core) negative(eid lisp.EID) lisp.Mapping {
	a := eid.Prefix.Addr()
	m := lisp.Mapping{Action: lisp.ActNativelyForward, TTL: c.NegativeTTL}
	configured, _, ok := c.configured.LookupEID(lisp.HostEID(eid.IID, a))
	if !ok {
		m.EID = c.configured.Hole(eid.IID, a)
		return m
	}
	m.TTL = c.UnregisteredTTL
	m.EID = c.live.Hole(eid.IID, a)
	switch {
	case !m.EID.IsValid(): // what was asked for is wider than what is registered at its first address
		m.EID = eid
	case m.EID.Contains(configured):
		m.EID = configured
	}
	return m
}
