package mapserver

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// announcement is what is to be told of a change of a mapping, besides what the sinks and the
// subscribers learn.
type announcement struct {
	left   []registrant // who had the EID before and has it no more
	target bool         // the xTR did not register by itself: it must learn the version
	seq    uint64       // the batch that holds a version which this Map-Server chose
}

// add puts another change on top of what is not told yet.
func (a *announcement) add(e *entry, left []registrant) {
	for _, o := range left {
		if !slices.ContainsFunc(a.left, func(l registrant) bool { return l.identity() == o.identity() }) {
			a.left = append(a.left, o)
		}
	}
	a.left = slices.DeleteFunc(a.left, func(l registrant) bool { return e.has(l.identity()) })
	a.target = false
	if len(e.regs) == 1 {
		r := e.regs[0].Registrant
		a.target = !r.XTRID.IsZero() && len(r.Locators) > 0 && !hasRLOC(r.Locators, r.Source)
	}
}

func hasRLOC(ls []lisp.Locator, a netip.Addr) bool {
	return slices.ContainsFunc(ls, func(l lisp.Locator) bool { return l.RLOC == a })
}

// tell announces what became of e: to the xTR that had it, to the one that has it if it cannot know,
// to the subscribers and to the sinks.
func (c *core) tell(now time.Time, e *entry) {
	a := e.announce
	e.announce = nil
	c.out.put = append(c.out.put, e.mapping.EID)
	for _, l := range a.left {
		c.inform(now, e, &l.Registrant)
	}
	if a.target && len(e.regs) == 1 {
		c.inform(now, e, &e.regs[0].Registrant)
	}
	c.publish(now, e)
}

// inform sends e's mapping unsolicited to an xTR that has or had it, until it acknowledges.
func (c *core) inform(now time.Time, e *entry, r *Registrant) {
	to := destinations(r)
	if len(to) == 0 || e.site == nil {
		return
	}
	c.nonce++
	c.notify(now, &pending{
		pendingKey: pendingKey{eid: e.mapping.EID, who: r.identity()},
		to:         to,
		key:        c.xtrKey(e.site, r.XTRID),
		msg: &lisp.MapNotify{Nonce: c.nonce, Records: []lisp.Mapping{e.mapping},
			HasXTRID: true, XTRID: e.mapping.XTRID, SiteID: e.mapping.SiteID},
	})
}

// destinations are the addresses at which an xTR hears Map-Notifies: the usable ones of its RLOCs, the
// best first, the one that it registered from before all.
func destinations(r *Registrant) []netip.AddrPort {
	ls := slices.DeleteFunc(slices.Clone(r.Locators), func(l lisp.Locator) bool { return !l.Usable() })
	slices.SortStableFunc(ls, func(a, b lisp.Locator) int { return int(a.Priority) - int(b.Priority) })
	var to []netip.AddrPort
	if r.Source.IsValid() && (len(ls) == 0 || hasRLOC(ls, r.Source)) {
		to = append(to, netip.AddrPortFrom(r.Source, lisp.ControlPort))
	}
	for _, l := range ls {
		if l.RLOC != r.Source {
			to = append(to, netip.AddrPortFrom(l.RLOC, lisp.ControlPort))
		}
	}
	return to
}

// xtrKey is the key that an xTR of s has: the one that it registered with last.
func (c *core) xtrKey(s *site, x lisp.XTRID) *lisp.Key {
	if k, ok := c.keys[x]; ok && k.site == s.Name {
		return s.keyByID(k.id)
	}
	return &s.Keys[0]
}

// pendingKey names what is told to whom. A newer message replaces the one that was not acknowledged.
type pendingKey struct {
	eid lisp.EID
	who identity
	sub SubscriptionKey // of a publication
}

// pending is a Map-Notify that waits for its Map-Notify-Ack (RFC 9301 section 5.7).
type pending struct {
	pendingKey
	alarm alarm
	to    []netip.AddrPort // tried in turn
	key   *lisp.Key
	msg   *lisp.MapNotify
	tries int
	bulk  bool
	// durable: the first transmission promises something, and so waits for the store.
	durable bool
}

// Retransmission of unsolicited Map-Notifies: "up to 3 times at 3-second retransmission intervals, after
// which time the retransmission interval is exponentially backed off (base of 2 ...) for another 3
// retransmission attempts" (RFC 9301 section 5.7).
const (
	notifyInterval = 3 * time.Second
	notifySteady   = 3
	notifyBackoff  = 3
)

// wait is the time after the n-th transmission, n from 1, until the next.
func wait(n int) time.Duration {
	if n <= notifySteady {
		return notifyInterval
	}
	return notifyInterval << (n - notifySteady)
}

// notify sends p, and again until it is acknowledged.
func (c *core) notify(now time.Time, p *pending) {
	if old := c.pending[p.pendingKey]; old != nil {
		c.forget(old)
	}
	c.pending[p.pendingKey] = p
	c.byNonce[p.msg.Nonce] = append(c.byNonce[p.msg.Nonce], p)
	c.transmit(now, p)
}

func (c *core) transmit(now time.Time, p *pending) {
	// Another RLOC each time: "it can try to send the Map-Notify to a different ITR-RLOC" (RFC 9437
	// section 6). One round of retransmissions so covers them all.
	n := p.tries % len(p.to)
	s := send{to: slices.Concat(p.to[n:], p.to[:n]), msg: p.msg, key: p.key}
	switch {
	case p.bulk:
		c.out.bulk = append(c.out.bulk, s)
	case p.durable && p.tries == 0:
		c.out.batch.sends = append(c.out.batch.sends, s)
	default:
		c.out.sends = append(c.out.sends, s)
	}
	if p.tries++; p.tries == 1 {
		c.count("notify/unsolicited")
	} else {
		c.count("notify/retransmitted")
	}
	c.alarms.set(&p.alarm, p, now.Add(wait(p.tries)))
}

// due is for the alarm.
func (p *pending) due(c *core, now time.Time) {
	if p.tries <= notifySteady+notifyBackoff {
		c.transmit(now, p)
		return
	}
	c.forget(p)
	c.count("notify/unacknowledged")
	if p.sub != (SubscriptionKey{}) {
		c.lost(now, p)
		return
	}
	c.report(now, slog.LevelWarn, "no Map-Notify-Ack", "eid", p.eid, "xtr_id", p.who.xtr, "to", p.to[0].Addr())
}

// forget stops the retransmission of p.
func (c *core) forget(p *pending) {
	c.alarms.stop(&p.alarm)
	delete(c.pending, p.pendingKey)
	ps := slices.DeleteFunc(c.byNonce[p.msg.Nonce], func(o *pending) bool { return o == p })
	if len(ps) == 0 {
		delete(c.byNonce, p.msg.Nonce)
		return
	}
	c.byNonce[p.msg.Nonce] = ps
}

// mapNotifyAck is for a Map-Notify-Ack (RFC 9301 section 5.7): it counts with the same nonce and, as
// valid finds out, validated authentication data.
func (c *core) mapNotifyAck(from netip.AddrPort, m *lisp.MapNotifyAck, valid func(lisp.Key) bool) {
	ps := slices.Clone(c.byNonce[m.Nonce])
	if len(m.Records) > 0 {
		ps = slices.DeleteFunc(ps, func(p *pending) bool { return p.msg.Records[0].EID != m.Records[0].EID })
	}
	// Nonces that xTRs choose can coincide. Then the address says who acknowledges.
	if i := slices.IndexFunc(ps, func(p *pending) bool {
		return slices.ContainsFunc(p.to, func(a netip.AddrPort) bool { return a.Addr() == from.Addr() })
	}); i >= 0 {
		ps = ps[i : i+1]
	}
	switch {
	case len(ps) != 1:
		c.count("ack/unexpected")
	case !valid(*ps[0].key):
		c.count("ack/authentication-failed")
	default:
		c.count("ack/accepted")
		c.forget(ps[0])
	}
}
