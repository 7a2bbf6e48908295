package mapserver

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
)

// core is the state of a Map-Server and what it makes of events: (state, event, now) -> effects. It
// reads no clock, sends nothing and waits for nothing; one goroutine calls it. Every method that takes
// now adds to the effects, which take hands out.
type core struct {
	*policy
	entries map[lisp.EID]*entry     // every EID that is known, withdrawn ones too
	live    mapcache.Table[*entry]  // those that are registered
	nonces  map[NonceKey]uint64     // last Map-Register nonce
	peers   map[NonceKey]netip.Addr // where that Map-Register came from; not durable
	keys    map[lisp.XTRID]keyRef   // the key that an xTR itself registered with last

	services services

	subs     map[SubscriptionKey]*subscription
	subsAt   mapcache.Table[[]*subscription] // by EID prefix
	pending  map[pendingKey]*pending
	byNonce  map[uint64][]*pending
	refusals refusals
	alarms   alarms
	counters map[string]uint64
	reported map[string]reporting // by text

	nonce uint64 // of the last unsolicited Map-Notify to an xTR that hosts or hosted an EID
	seq   uint64 // of the batch that is being filled
	out   effects
}

type keyRef struct {
	site string
	id   uint8
}

// entry is a Registration with what need not outlive the process.
type entry struct {
	alarm    alarm
	mapping  lisp.Mapping
	site     *site
	regs     []registrant
	since    time.Time
	damping  damping
	announce *announcement // what remains to be told when the store has it
}

type registrant struct {
	Registrant
	expires time.Time
	seen    time.Time
}

// identity tells registrants apart: by xTR-ID, and without one by address.
type identity struct {
	xtr    lisp.XTRID
	source netip.Addr
}

func (r *Registrant) identity() identity {
	if r.XTRID.IsZero() {
		return identity{source: r.Source}
	}
	return identity{xtr: r.XTRID}
}

func (e *entry) registered() bool { return len(e.regs) > 0 }

// proxied reports whether this Map-Server answers for e (RFC 9301 section 8.3).
func (e *entry) proxied() bool {
	return slices.ContainsFunc(e.regs, func(r registrant) bool { return r.ProxyReply })
}

func (e *entry) merged() bool {
	return len(e.regs) > 0 && !slices.ContainsFunc(e.regs, func(r registrant) bool { return !r.Merge })
}

// effects is what is to be done about events.
type effects struct {
	sends   []send       // at once
	bulk    []send       // at once, but behind whatever is urgent: publications
	put     []lisp.EID   // mappings that changed, for the sinks
	batch   batch        // for the store
	reports []reportLine // for the log
}

// batch is what is to become durable, and what is to be done then.
type batch struct {
	Batch
	seq      uint64
	sends    []send     // the answers to those who registered
	announce []lisp.EID // EIDs whose version this Map-Server chose: nobody hears of a number before it is durable
}

// send is one message to one destination.
type send struct {
	to  []netip.AddrPort // the first one that can be sent to is taken
	msg lisp.Message
	key *lisp.Key // nil: the message bears no authentication data
}

// reportLine is a line for the log.
type reportLine struct {
	level slog.Level
	text  string
	attrs []any
}

func newCore(p *policy, st State, now time.Time) *core {
	c := &core{
		policy:   p,
		entries:  make(map[lisp.EID]*entry, len(st.Registrations)),
		nonces:   make(map[NonceKey]uint64, len(st.Nonces)),
		peers:    map[NonceKey]netip.Addr{},
		keys:     map[lisp.XTRID]keyRef{},
		subs:     make(map[SubscriptionKey]*subscription, len(st.Subscriptions)),
		pending:  map[pendingKey]*pending{},
		byNonce:  map[uint64][]*pending{},
		refusals: newRefusals(),
		counters: map[string]uint64{},
		reported: map[string]reporting{},
		nonce:    uint64(now.UnixNano()), // greater than any before a restart
	}
	latest := map[lisp.XTRID]uint64{}
	for k, n := range st.Nonces {
		c.nonces[k] = n
		if s := p.sites[k.Site]; s != nil && !k.XTRID.IsZero() && s.isXTRKey(k.KeyID) && n >= latest[k.XTRID] {
			latest[k.XTRID], c.keys[k.XTRID] = n, keyRef{k.Site, k.KeyID}
		}
	}
	live := make(map[lisp.EID]*entry, len(st.Registrations))
	for _, r := range st.Registrations {
		if e := c.restore(r, now); e.registered() {
			live[e.mapping.EID] = e
		}
	}
	c.live.Replace(func(yield func(lisp.EID, *entry) bool) {
		for eid, e := range live {
			if !yield(eid, e) {
				return
			}
		}
	})
	c.restoreServices(st.Services, now)
	for _, s := range st.Subscriptions {
		c.restoreSubscription(s, now)
	}
	return c
}

// restore brings back what was stored before a restart. The leases begin anew: while this process was
// not there, nobody could refresh. What the configuration no longer allows is forgotten at its next
// expiry, for nobody can refresh it.
func (c *core) restore(r Registration, now time.Time) *entry {
	e := &entry{mapping: r.Mapping, since: r.Since, site: c.sites[r.Site]}
	if e.site == nil {
		if _, s, ok := c.configured.LookupEID(r.Mapping.EID); ok {
			e.site = s
		}
	}
	for _, reg := range r.Registrants {
		if e.site == nil {
			break
		}
		e.regs = append(e.regs, registrant{Registrant: reg, expires: now.Add(c.lifetime(&reg)), seen: now})
	}
	c.entries[r.Mapping.EID] = e
	if !e.registered() {
		e.mapping.Locators, e.mapping.TTL = nil, lisp.TTLDelete
	}
	c.schedule(e, now)
	return e
}

// lifetime is how long a registration lasts without a refresh (RFC 9301 section 8.2; T bit).
func (c *core) lifetime(r *Registrant) time.Duration {
	if r.UseTTL {
		return r.TTL.Duration()
	}
	return c.RegistrationTimeout
}

// schedule sets e's alarm to the next thing that time does to it.
func (c *core) schedule(e *entry, now time.Time) {
	at := e.since.Add(c.Remember)
	if e.registered() {
		at = e.regs[0].expires
		for _, r := range e.regs[1:] {
			if r.expires.Before(at) {
				at = r.expires
			}
		}
		if thaw := e.damping.last.Add(c.FlapWindow); e.damping.frozen && thaw.Before(at) {
			at = thaw
		}
	}
	if at.Before(now) {
		at = now
	}
	c.alarms.set(&e.alarm, e, at)
}

// due is for the alarm: registrations expire, frozen EIDs thaw, withdrawn ones are forgotten.
func (e *entry) due(c *core, now time.Time) {
	if !e.registered() {
		delete(c.entries, e.mapping.EID)
		c.storeRegistration(e.mapping.EID, nil)
		return
	}
	if e.damping.frozen && now.Sub(e.damping.last) >= c.FlapWindow {
		e.damping.settled()
	}
	var gone []registrant
	kept := make([]registrant, 0, len(e.regs))
	for _, r := range e.regs {
		if now.Before(r.expires) {
			kept = append(kept, r)
		} else {
			gone = append(gone, r)
		}
	}
	if len(gone) > 0 {
		c.count("registration/expired")
		for _, r := range gone {
			c.report(now, slog.LevelWarn, "registration expired", "eid", e.mapping.EID, "xtr_id", r.XTRID,
				"version", e.mapping.Version, "last_seen", r.seen)
		}
		c.leave(now, e, kept)
		return
	}
	c.schedule(e, now)
}

// tick does what is due at now.
func (c *core) tick(now time.Time) {
	for len(c.alarms) > 0 && !c.alarms[0].at.After(now) {
		a := c.alarms[0]
		c.alarms.stop(a)
		a.owner.due(c, now)
	}
}

// deadline is when tick wants to be called next; zero: never.
func (c *core) deadline() time.Time { return c.alarms.next() }

// take hands out the effects of the events since it was called last, but for the batch.
func (c *core) take() effects {
	out := c.out
	c.out = effects{batch: out.batch}
	out.batch = batch{}
	return out
}

// takeBatch hands out what is to be stored since it was called last.
func (c *core) takeBatch() batch {
	b := c.out.batch
	b.seq, c.out.batch = c.seq, batch{}
	c.seq++
	return b
}

func (b *batch) empty() bool { return b.Batch.Empty() && len(b.sends) == 0 && len(b.announce) == 0 }

// committed tells what had to wait until b was durable. The owner sends b's answers itself.
func (c *core) committed(now time.Time, b batch) {
	for _, eid := range b.announce {
		if e := c.entries[eid]; e != nil && e.announce != nil && e.announce.seq <= b.seq {
			c.tell(now, e)
		}
	}
}

func (c *core) count(name string) { c.counters[name]++ }

// How many lines of one kind are logged within how long: neither a host that dies with a thousand VMs nor
// somebody who forges Map-Registers fills the log.
const (
	reportBurst  = 20
	reportWindow = 10 * time.Second
)

// reporting is how much was logged of one kind lately.
type reporting struct {
	since      time.Time
	n          int
	suppressed int
}

// report makes a line for the log, unless there were many of the same kind.
func (c *core) report(now time.Time, level slog.Level, text string, attrs ...any) {
	r := c.reported[text]
	if now.Sub(r.since) >= reportWindow {
		if r.suppressed > 0 {
			attrs = append(attrs, "suppressed", r.suppressed)
		}
		r = reporting{since: now}
	}
	if r.n++; r.n > reportBurst {
		r.suppressed++
	} else {
		c.out.reports = append(c.out.reports, reportLine{level, text, attrs})
	}
	c.reported[text] = r
}

func (c *core) send(key *lisp.Key, m lisp.Message, to ...netip.AddrPort) {
	c.out.sends = append(c.out.sends, send{to: to, msg: m, key: key})
}

func (c *core) storeRegistration(eid lisp.EID, e *entry) {
	b := &c.out.batch
	if b.Registrations == nil {
		b.Registrations = map[lisp.EID]*Registration{}
	}
	if e == nil {
		b.Registrations[eid] = nil
		return
	}
	r := e.durable()
	b.Registrations[eid] = &r
}

// durable is e as the store keeps it.
func (e *entry) durable() Registration {
	r := Registration{Mapping: e.mapping, Since: e.since}
	if e.site != nil {
		r.Site = e.site.Name
	}
	for i := range e.regs {
		r.Registrants = append(r.Registrants, e.regs[i].Registrant)
	}
	return r
}

func (c *core) storeNonce(k NonceKey, n uint64) {
	if c.out.batch.Nonces == nil {
		c.out.batch.Nonces = map[NonceKey]uint64{}
	}
	c.nonces[k] = n
	c.out.batch.Nonces[k] = n
}

// current is what the sinks are told of eid: a mapping, or that there is none. A service that has all of a
// service prefix, which the D-ETRs registered, is what D-ETRs must know; the prefix is their own.
func (c *core) current(eid lisp.EID) (lisp.Mapping, bool) {
	if s := c.services.registered(eid); s != nil {
		return s.Mapping, true
	}
	if e := c.entries[eid]; e != nil && e.registered() {
		return e.mapping, true
	}
	return lisp.Mapping{}, false
}

// all is every mapping that is registered, as [core.current] tells it.
func (c *core) all() []lisp.Mapping {
	ms := make([]lisp.Mapping, 0, c.live.Len()+c.services.outsides.Len())
	for eid, e := range c.live.All() {
		if c.services.registered(eid) == nil {
			ms = append(ms, e.mapping)
		}
	}
	for _, s := range c.services.outsides.All() {
		ms = append(ms, s.Mapping)
	}
	return ms
}
