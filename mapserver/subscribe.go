package mapserver

import (
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// subscription is a Subscription with what need not outlive the process.
type subscription struct {
	Subscription
	alarm alarm
	sent  uint64 // the nonce of the last Map-Notify
}

const (
	// nonceBlock is how many nonces are reserved in the store at once, so that a publication need not
	// wait for it: after a restart the nonces go on behind the reserved ones.
	nonceBlock = 1024
	// keepRemoved is how long the nonces of a removed subscription are kept (RFC 9437 section 5).
	keepRemoved = 24 * time.Hour
	// maxNonce leaves room for publications: they count upwards from the nonce of the Map-Request.
	maxNonce = math.MaxUint64 - 1<<32
	// maxExcept bounds the more-specifics that one subscription leaves out.
	maxExcept = 256
)

func (c *core) restoreSubscription(st Subscription, now time.Time) {
	s := &subscription{Subscription: st, sent: st.Reserved}
	c.addSubscription(s)
	if !s.Expires.IsZero() {
		c.alarms.set(&s.alarm, s, s.Expires)
	}
}

func (c *core) addSubscription(s *subscription) {
	c.subs[s.SubscriptionKey] = s
	at, _ := c.subsAt.Get(s.EID)
	c.subsAt.Insert(s.EID, append(slices.Clip(at), s))
}

// due is for the alarm: a temporary or removed subscription is forgotten.
func (s *subscription) due(c *core, _ time.Time) {
	delete(c.subs, s.SubscriptionKey)
	at, _ := c.subsAt.Get(s.EID)
	at = slices.DeleteFunc(slices.Clone(at), func(o *subscription) bool { return o == s })
	if len(at) == 0 {
		c.subsAt.Delete(s.EID)
	} else {
		c.subsAt.Insert(s.EID, at)
	}
	c.storeSubscription(s.SubscriptionKey, nil)
}

func (c *core) storeSubscription(k SubscriptionKey, s *subscription) {
	b := &c.out.batch
	if b.Subscriptions == nil {
		b.Subscriptions = map[SubscriptionKey]*Subscription{}
	}
	if s == nil {
		b.Subscriptions[k] = nil
		return
	}
	st := s.Subscription
	b.Subscriptions[k] = &st
}

// expire sets or, with the zero time, lifts the end of s.
func (c *core) expire(s *subscription, at time.Time) {
	if s.Expires.Equal(at) {
		return
	}
	s.Expires = at
	if at.IsZero() {
		c.alarms.stop(&s.alarm)
	} else {
		c.alarms.set(&s.alarm, s, at)
	}
	c.storeSubscription(s.SubscriptionKey, s)
}

// use takes a nonce for a publication.
func (c *core) use(s *subscription) uint64 {
	s.sent++
	c.reserve(s)
	return s.sent
}

// reserve keeps at least half a block of nonces ahead of what is durable: what a batch that was not
// written yet may use.
func (c *core) reserve(s *subscription) {
	if s.Reserved < s.sent+nonceBlock/2 {
		s.Reserved = s.sent + nonceBlock
		c.storeSubscription(s.SubscriptionKey, s)
	}
}

// subscriberKey is the key between this Map-Server and a subscribing xTR.
func (c *core) subscriberKey(x lisp.XTRID, rlocs []netip.Addr) (key *lisp.Key, denied bool) {
	if key, denied = c.subscriber(x, rlocs); key != nil {
		return key, denied
	}
	ref, ok := c.keys[x]
	if !ok {
		return nil, false
	}
	s := c.sites[ref.site]
	if s == nil || slices.ContainsFunc(rlocs, func(a netip.Addr) bool { return a.IsValid() && !s.allows(a) }) {
		return nil, false
	}
	return s.keyByID(ref.id), false
}

// subscribe is for a record with the N bit (RFC 9437 section 5). It reports whether the record is done
// with; otherwise it is to be answered like any other.
func (c *core) subscribe(now time.Time, q query, eid lisp.EID, remove bool) bool {
	source := q.ecm.Source.Addr()
	if q.XTRID.IsZero() {
		c.count("subscribe/refused/no-xtr-id")
		return false
	}
	asking := q.ITRRLOCs
	if remove {
		asking = []netip.Addr{source}
	}
	key, denied := c.subscriberKey(q.XTRID, asking)
	switch {
	case denied:
		c.count("subscribe/refused/policy")
		to := q.to
		if remove {
			to = []netip.AddrPort{q.ecm.Source}
		}
		c.send(nil, &lisp.MapReply{Nonce: q.Nonce, Records: []lisp.Mapping{
			{EID: eid, TTL: c.UnregisteredTTL, Action: lisp.ActDropPolicyDenied}}}, to...)
		return true
	case key == nil:
		c.count("subscribe/refused/no-key")
		return false
	case q.Nonce > maxNonce:
		c.count("subscribe/refused/nonce-too-large")
		return false
	}
	if remove {
		return c.unsubscribe(now, q, eid, key)
	}
	e, ms := c.lookup(eid)
	if e != nil && (!e.proxied() || ms[0].EID != e.mapping.EID) {
		c.count("subscribe/refused/not-proxied")
		return false // the ETR answers, or the answer is a part of a mapping, which nothing is published for
	}
	k := SubscriptionKey{ms[0].EID, q.XTRID}
	s := c.subs[k]
	if s != nil && q.Nonce <= s.Requested {
		// "the Map-Server MUST silently drop the Map-Request message and SHOULD log the event"
		// (RFC 9437 section 5). Only nonces of Map-Requests count here: an xTR that missed
		// publications does not know how far we have counted.
		c.count("subscribe/refused/nonce-not-greater")
		c.report(now, slog.LevelWarn, "subscription refused", "reason", string(reasonReplay), "eid", eid, "xtr_id", q.XTRID)
		return true
	}
	if s == nil {
		if len(c.subs) >= c.MaxSubscriptions {
			c.count("subscribe/refused/too-many")
			return false
		}
		s = &subscription{Subscription: Subscription{SubscriptionKey: k}}
		c.addSubscription(s)
	}
	s.SiteID, s.RLOCs, s.Requested = q.SiteID, validAddrs(q.ITRRLOCs), q.Nonce
	s.sent, s.Removed, s.Except = max(s.sent, q.Nonce), false, nil
	for _, less := range c.subsAt.Supernets(k.EID) {
		for _, o := range less {
			if o.XTRID == q.XTRID && slices.Contains(o.Except, k.EID) {
				o.Except = slices.DeleteFunc(slices.Clone(o.Except), func(x lisp.EID) bool { return x == k.EID })
				c.storeSubscription(o.SubscriptionKey, o)
			}
		}
	}
	c.reserve(s)
	if e == nil {
		c.expire(s, now.Add(c.SubscriptionTTL))
	} else {
		c.expire(s, time.Time{})
	}
	c.storeSubscription(k, s)
	c.count("subscribe/accepted")
	p := c.publication(s, key, ms[0], q.Nonce)
	p.bulk, p.durable = false, true
	c.notify(now, p)
	for _, m := range ms[1:] {
		c.notify(now, c.publication(s, key, m, c.use(s)))
	}
	return true
}

func validAddrs(as []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(as), func(a netip.Addr) bool {
		return !a.IsValid() || a.IsUnspecified() || a.IsMulticast()
	})
}

// unsubscribe removes a subscription, or leaves eid out of one to a less-specific, and confirms it to
// the source of the Map-Request.
func (c *core) unsubscribe(now time.Time, q query, eid lisp.EID, key *lisp.Key) bool {
	var s *subscription
	if s = c.subs[SubscriptionKey{eid, q.XTRID}]; s == nil || s.Removed {
		s = c.nearest(eid, q.XTRID)
	}
	if s == nil {
		c.count("unsubscribe/unknown")
		return true
	}
	if q.Nonce <= s.Requested {
		c.count("subscribe/refused/nonce-not-greater")
		return true
	}
	s.Requested = q.Nonce
	if s.EID == eid {
		c.drop(now, s)
	} else if len(s.Except) < maxExcept && !slices.Contains(s.Except, eid) {
		s.Except = append(slices.Clip(s.Except), eid)
	}
	c.storeSubscription(s.SubscriptionKey, s)
	c.count("unsubscribe/accepted")
	_, ms := c.lookup(eid)
	if len(ms) == 0 {
		ms = []lisp.Mapping{{EID: eid, Action: lisp.ActSendMapRequest}}
	}
	c.send(key, &lisp.MapNotify{Nonce: q.Nonce, Records: ms[:1], HasXTRID: true, XTRID: ms[0].XTRID,
		SiteID: ms[0].SiteID}, netip.AddrPortFrom(q.ecm.Source.Addr(), lisp.ControlPort))
	return true
}

// nearest is x's most specific subscription that covers eid.
func (c *core) nearest(eid lisp.EID, x lisp.XTRID) *subscription {
	for s := range c.covering(eid) {
		if s.XTRID == x {
			return s
		}
	}
	return nil
}

// covering yields the subscriptions to eid and to its less-specifics, the most specific first.
func (c *core) covering(eid lisp.EID) func(func(*subscription) bool) {
	return func(yield func(*subscription) bool) {
		each := func(ss []*subscription) bool {
			for _, s := range ss {
				if !s.Removed && !yield(s) {
					return false
				}
			}
			return true
		}
		if at, ok := c.subsAt.Get(eid); ok && !each(at) {
			return
		}
		for _, at := range c.subsAt.Supernets(eid) {
			if !each(at) {
				return
			}
		}
	}
}

// drop ends a subscription and keeps its nonces.
func (c *core) drop(now time.Time, s *subscription) {
	s.Removed, s.RLOCs, s.Except = true, nil, nil
	c.expire(s, now.Add(keepRemoved))
	c.storeSubscription(s.SubscriptionKey, s)
}

// publication is a Map-Notify of m to a subscriber (RFC 9437 section 6).
func (c *core) publication(s *subscription, key *lisp.Key, m lisp.Mapping, nonce uint64) *pending {
	p := &pending{
		pendingKey: pendingKey{eid: m.EID, sub: s.SubscriptionKey},
		key:        key,
		bulk:       true,
		msg: &lisp.MapNotify{Nonce: nonce, Records: []lisp.Mapping{m},
			HasXTRID: true, XTRID: m.XTRID, SiteID: m.SiteID},
	}
	for _, a := range s.RLOCs {
		p.to = append(p.to, netip.AddrPortFrom(a, lisp.ControlPort))
	}
	return p
}

// publish tells the subscribers of e's EID and of its less-specifics what became of it.
func (c *core) publish(now time.Time, e *entry) {
	eid := e.mapping.EID
	record := e.mapping // withdrawn: TTL 0
	if e.registered() {
		record = c.proxied(e)
	}
	told := map[lisp.XTRID]bool{}
	var wider []*subscription
	for s := range c.covering(eid) {
		if told[s.XTRID] {
			continue
		}
		told[s.XTRID] = true
		if s.EID == eid {
			if e.registered() {
				c.expire(s, time.Time{})
			} else {
				c.expire(s, now.Add(c.SubscriptionTTL))
			}
		} else if slices.ContainsFunc(s.Except, func(x lisp.EID) bool { return x.Contains(eid) }) {
			continue
		} else if e.registered() && !s.Expires.IsZero() {
			wider = append(wider, s)
			continue
		}
		c.publishTo(now, s, record)
	}
	// A subscription to a hole that is filled goes on as one to what fills it: the hole is no more.
	for _, s := range wider {
		k := SubscriptionKey{eid, s.XTRID}
		n := c.subs[k]
		if n == nil && len(c.subs) < c.MaxSubscriptions {
			n = &subscription{Subscription: Subscription{SubscriptionKey: k}}
			c.addSubscription(n)
		}
		if n == nil {
			c.publishTo(now, s, record)
			continue
		}
		n.SiteID, n.RLOCs, n.Removed = s.SiteID, s.RLOCs, false
		n.sent = max(n.sent, s.sent)
		n.Requested = max(n.Requested, s.Requested)
		c.expire(n, time.Time{})
		c.reserve(n)
		c.storeSubscription(k, n)
		c.publishTo(now, n, record)
	}
	if !e.registered() {
		return
	}
	// A hole may be filled by something wider than itself, too.
	for _, at := range c.subsAt.Subnets(eid) {
		for _, s := range at {
			if !s.Removed && !s.Expires.IsZero() && !told[s.XTRID] {
				told[s.XTRID] = true
				c.publishTo(now, s, record)
			}
		}
	}
}

func (c *core) publishTo(now time.Time, s *subscription, m lisp.Mapping) {
	key, denied := c.subscriberKey(s.XTRID, s.RLOCs)
	if key == nil || denied || len(s.RLOCs) == 0 { // the configuration changed
		c.drop(now, s)
		return
	}
	c.count("publish/sent")
	c.notify(now, c.publication(s, key, m, c.use(s)))
}

// lost is for a publication that no retransmission brought an acknowledgement for: the subscription
// ends, and the xTR is told so once (RFC 9437 section 5).
func (c *core) lost(now time.Time, p *pending) {
	s := c.subs[p.sub]
	if s == nil || s.Removed {
		return
	}
	c.count("subscribe/lost")
	c.report(now, slog.LevelWarn, "subscriber is silent", "eid", s.EID, "xtr_id", s.XTRID, "to", p.to[0].Addr())
	c.drop(now, s)
	m := lisp.Mapping{EID: s.EID, TTL: c.UnregisteredTTL, Action: lisp.ActDropAuthFailure}
	c.send(p.key, &lisp.MapNotify{Nonce: p.msg.Nonce, Records: []lisp.Mapping{m}, HasXTRID: true}, p.to...)
}
