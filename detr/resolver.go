package detr

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// A resolver is the PITR's map-cache: what the mapping systems of the outside say of EIDs that are not the
// cloud's (RFC 6832 section 5, RFC 9301 section 5.2). It asks for nothing inside an aggregate, a service prefix
// or the pool, and believes nothing about it.
//
// When nobody answers, packets are left to the kernel's own routing for a while: the Internet must not stop
// because a Map-Resolver has.
type resolver struct {
	cfg     *Config
	random  func() uint64
	used    func(lisp.EID) uint64 // packets that have taken the route, ever
	cache   mapcache.Table[*cacheEntry]
	queries map[lisp.EID]*query
	asks    map[uint64]*query // by nonce
	smrs    map[lisp.EID]time.Time
	scan    time.Time // when to look through the cache; zero: it is empty
	counts  map[string]uint64
	out     resolverOut
}

// cacheEntry is one entry of the map-cache.
type cacheEntry struct {
	mapping   lisp.Mapping
	via       string
	installed time.Time
	expires   time.Time
	refresh   time.Time // when to ask again if it was used; zero: not any more
	packets   uint64    // that had taken it when it was installed
}

// query is an EID that we ask for.
type query struct {
	eid   lisp.EID
	smr   bool
	tries int
	next  time.Time
}

// resolverOut is what the resolver wants done.
type resolverOut struct {
	sends   []requestSend
	set     []fib.Route
	del     []lisp.EID
	release []lisp.EID // packets for these may go
	reject  []lisp.EID // packets for these have waited in vain
}

// requestSend is a Map-Request for a Map-Resolver, to be put into an ECM.
type requestSend struct {
	to  netip.Addr
	msg *lisp.MapRequest
}

const (
	// queryTries Map-Requests are sent, queryRetry apart (RFC 9301 section 5.3: at most one a second for
	// an EID prefix), to one Map-Resolver after the other, before we do without.
	queryTries = 3
	queryRetry = time.Second
	// silentTTL is how long an EID counts as not LISP when nobody answered.
	silentTTL = lisp.TTL(1)
	// zeroTTL is how long an answer is believed that says it must not be cached.
	zeroTTL = 10 * time.Second
	// refreshPart of its lifetime before an entry expires it is asked for again, if packets took it.
	refreshPart = 10
	// adoptTime is how long a route of before a restart is believed while we ask again.
	adoptTime = 2 * time.Minute
	adoptPace = 10 * time.Millisecond
	// smrInterval is between two Map-Requests for an EID that SMRs cause (RFC 9301 section 6.1).
	smrInterval = 3 * time.Second
	maxQueries  = 4096
	maxSMRs     = 4096
	scanEvery   = 500 * time.Millisecond
)

// Where a cacheEntry comes from, if not from a Map-Reply.
const (
	viaBefore = "before the restart"
	viaNobody = "nobody answered"
)

func newResolver(cfg *Config, random func() uint64, used func(lisp.EID) uint64) *resolver {
	return &resolver{
		cfg: cfg, random: random, used: used, queries: make(map[lisp.EID]*query), asks: make(map[uint64]*query),
		smrs: make(map[lisp.EID]time.Time), counts: make(map[string]uint64),
	}
}

// take returns what is to be done, and forgets it.
func (r *resolver) take() resolverOut {
	o := r.out
	r.out = resolverOut{}
	return o
}

// start puts the routes in that hold without any answer, and adopts known, the routes of before a restart:
// they go on, and are asked for again.
func (r *resolver) start(known []fib.Route, now time.Time) {
	if len(r.cfg.ExternalResolvers) == 0 {
		for _, p := range []string{"0.0.0.0/0", "::/0"} {
			r.out.set = append(r.out.set, fib.Route{EID: lisp.EID{Prefix: netip.MustParsePrefix(p)}, Do: fib.Native})
		}
	}
	n := 0
	for _, k := range known {
		if r.cfg.home(k.EID) {
			continue
		}
		if k.EID.IID != 0 || len(r.cfg.ExternalResolvers) == 0 || k.Do != fib.Encap && k.Do != fib.Native && k.Do != fib.Drop {
			if k.EID.IID != 0 || k.EID.Prefix.Bits() > 0 {
				r.out.del = append(r.out.del, k.EID)
			}
			continue
		}
		m := lisp.Mapping{EID: k.EID, Locators: k.Locators, Action: lisp.ActNativelyForward}
		if k.Do == fib.Drop {
			m.Action = lisp.ActDrop
		}
		c := &cacheEntry{
			mapping: m, via: viaBefore, installed: now, expires: now.Add(adoptTime),
			refresh: now.Add(time.Duration(n) * adoptPace), packets: r.used(k.EID),
		}
		n++
		r.cache.Insert(k.EID, c)
		r.look(c, now)
	}
}

// miss is told that a packet to dst waits for a route.
func (r *resolver) miss(iid uint32, dst netip.Addr, now time.Time) {
	e := lisp.HostEID(iid, dst)
	if r.cfg.home(e) {
		r.counts["miss/own EID"]++
		r.out.reject = append(r.out.reject, e)
		return
	}
	// The outside is instance 0: what is in another one must not get out, however its packets came here.
	if iid != 0 || len(r.cfg.ExternalResolvers) == 0 {
		r.counts["miss/nobody to ask"]++
		r.out.reject = append(r.out.reject, e)
		return
	}
	if _, c, ok := r.cache.LookupEID(e); ok && c.expires.After(now) {
		r.out.release = append(r.out.release, e) // the route came while the packet was on its way up
		return
	}
	if !r.ask(e, false, now) {
		r.counts["miss/too many"]++
		r.out.reject = append(r.out.reject, e)
	}
}

// ask begins to ask for e unless that is under way. It reports false if there are too many questions.
func (r *resolver) ask(e lisp.EID, smr bool, now time.Time) bool {
	if q := r.queries[e]; q != nil {
		q.smr = q.smr || smr
		return true
	}
	if len(r.queries) >= maxQueries {
		return false
	}
	r.queries[e] = &query{eid: e, smr: smr, next: now}
	return true
}

// solicited takes a Solicit-Map-Request (RFC 9301 section 6.1): the mapping of what it names has changed.
func (r *resolver) solicited(m *lisp.MapRequest, now time.Time) {
	named := make([]lisp.EID, 0, len(m.Records)+1)
	for _, rec := range m.Records {
		named = append(named, rec.EID)
	}
	if m.SourceEID.IsValid() {
		named = append(named, m.SourceEID)
	}
	for _, e := range named {
		if r.cfg.home(e) {
			r.counts["smr/own EID"]++ // the feed tells us of those
			continue
		}
		// "ignored if no cache entry": the exact entry, or the one that covers a host.
		at, c, ok := r.cache.LookupEID(e)
		if !ok || c.mapping.Negative() {
			r.counts["smr/unknown EID"]++
			continue
		}
		if t, ok := r.smrs[at]; ok && now.Sub(t) < smrInterval || len(r.smrs) >= maxSMRs {
			r.counts["smr/rate"]++
			continue
		}
		r.smrs[at] = now
		r.counts["smr"]++
		if !e.IsHost() {
			e = lisp.HostEID(e.IID, e.Prefix.Addr())
		}
		r.ask(e, true, now)
	}
}

// next is when tick has something to do; zero: never.
func (r *resolver) next() time.Time {
	t := r.scan
	for _, q := range r.queries {
		t = earlier(t, q.next)
	}
	return t
}

// tick sends what is due and removes what has expired.
func (r *resolver) tick(now time.Time) {
	if !r.scan.IsZero() && !r.scan.After(now) {
		r.lookThrough(now)
	}
	for _, e := range slices.SortedFunc(maps.Keys(r.queries), lisp.EID.Compare) {
		if q := r.queries[e]; !q.next.After(now) {
			r.advance(q, now)
		}
	}
}

// lookThrough removes what has expired from the map-cache, and asks again for what is in use.
func (r *resolver) lookThrough(now time.Time) {
	r.scan = time.Time{}
	maps.DeleteFunc(r.smrs, func(_ lisp.EID, t time.Time) bool { return now.Sub(t) >= smrInterval })
	for e, c := range r.cache.All() {
		switch {
		case !c.expires.After(now):
			r.remove(e)
			continue
		case !c.refresh.IsZero() && !c.refresh.After(now):
			c.refresh = time.Time{}
			if r.used(e) != c.packets || c.via == viaBefore {
				r.ask(lisp.HostEID(e.IID, e.Prefix.Addr()), false, now)
			}
		}
		r.look(c, now)
	}
}

// look makes the next scan come in time for c.
func (r *resolver) look(c *cacheEntry, now time.Time) {
	t := c.expires
	if !c.refresh.IsZero() {
		t = earlier(t, c.refresh)
	}
	if soon := now.Add(scanEvery); t.Before(soon) {
		t = soon
	}
	r.scan = earlier(r.scan, t)
}

// advance sends the next Map-Request of q, or does without an answer.
func (r *resolver) advance(q *query, now time.Time) {
	if q.tries >= queryTries {
		r.counts["unanswered"]++
		if _, c, ok := r.cache.LookupEID(q.eid); ok && c.expires.After(now) {
			r.finish(q) // what we had stands until it expires
			return
		}
		r.install(lisp.Mapping{EID: q.eid, TTL: silentTTL, Action: lisp.ActNativelyForward}, viaNobody, now)
		r.finish(q)
		return
	}
	m := &lisp.MapRequest{
		PITR: true, SMRInvoked: q.smr, Nonce: r.random(), Records: []lisp.RequestRecord{{EID: q.eid}},
	}
	for _, l := range r.cfg.RLOCs {
		m.ITRRLOCs = append(m.ITRRLOCs, l.RLOC)
	}
	r.asks[m.Nonce] = q
	to := r.cfg.ExternalResolvers[q.tries%len(r.cfg.ExternalResolvers)]
	r.out.sends = append(r.out.sends, requestSend{to, m})
	q.tries++
	q.next = now.Add(queryRetry)
}

// finish ends q; packets that waited may go.
func (r *resolver) finish(q *query) {
	r.forget(q)
	r.out.release = append(r.out.release, q.eid)
}

func (r *resolver) forget(q *query) {
	delete(r.queries, q.eid)
	maps.DeleteFunc(r.asks, func(_ uint64, o *query) bool { return o == q })
}

// replied takes a Map-Reply. It reports false if we did not ask for it.
func (r *resolver) replied(m *lisp.MapReply, via netip.Addr, now time.Time) bool {
	q := r.asks[m.Nonce]
	if q == nil {
		return false
	}
	best := -1
	for i, rec := range m.Records {
		if rec.EID.Contains(q.eid) && (best < 0 || rec.EID.Prefix.Bits() > m.Records[best].EID.Prefix.Bits()) {
			best = i
		}
	}
	if best < 0 {
		r.counts["reply/other EID"]++
		return true // another of our requests may be answered better
	}
	answer := m.Records[best]
	if answer.Negative() && answer.Action == lisp.ActSendMapRequest {
		// "The packet invokes sending a Map-Request": every packet does, so there is nothing to keep, and
		// nowhere to send this one.
		r.forget(q)
		r.out.reject = append(r.out.reject, q.eid)
		return true
	}
	if old, _, ok := r.cache.LookupEID(q.eid); ok && old != answer.EID && answer.EID.Contains(old) {
		r.remove(old) // it would have been among the more-specifics if it still existed
	}
	for _, rec := range m.Records {
		// The answer "plus all more-specifics" (RFC 9301 section 5.5), but nothing beside the question.
		if !answer.EID.Contains(rec.EID) {
			r.counts["reply/other EID"]++
			continue
		}
		r.install(rec, "map-reply "+via.String(), now)
	}
	r.finish(q)
	return true
}

// install puts m into the map-cache and the data plane.
func (r *resolver) install(m lisp.Mapping, via string, now time.Time) {
	if r.cfg.home(m.EID) || m.EID.IID != 0 {
		r.counts["reply/own EID"]++
		return
	}
	ttl := m.TTL.Duration()
	if m.TTL == lisp.TTLDelete {
		// "MUST be removed from the cache immediately": but a packet waits, and would ask again at once.
		ttl = zeroTTL
	}
	if locs := r.cfg.usableLocators(m.Locators); len(locs) < len(m.Locators) {
		r.counts["reply/locator of ours"]++
		if m.Locators = locs; len(locs) == 0 {
			m.Action = lisp.ActDrop
		}
	}
	old, known := r.cache.Get(m.EID)
	if !known && r.cache.Len() >= r.cfg.MaxMapCache {
		r.evict()
	}
	c := &cacheEntry{
		mapping: m, via: via, installed: now, expires: now.Add(ttl), refresh: now.Add(ttl - ttl/refreshPart),
		packets: r.used(m.EID),
	}
	if known && old.mapping.Equal(m) {
		c.installed = old.installed
	}
	r.cache.Insert(m.EID, c)
	r.look(c, now)
	r.out.set = append(r.out.set, r.route(m))
}

// route is what the data plane does for m.
func (r *resolver) route(m lisp.Mapping) fib.Route {
	rt := fib.Route{EID: m.EID, Do: fib.Drop}
	if len(m.Locators) > 0 {
		rt.Do, rt.Locators, rt.Transit, rt.MTU = fib.Encap, m.Locators, true, uint16(r.cfg.MTU)
		return rt
	}
	switch m.Action {
	case lisp.ActNone, lisp.ActNativelyForward: // "no encapsulation occurs"
		rt.Do = fib.Native
	}
	return rt
}

// evict makes room: of the first few entries it removes the one that would expire first.
func (r *resolver) evict() {
	var victim lisp.EID
	var when time.Time
	n := 0
	for e, c := range r.cache.All() {
		if when.IsZero() || c.expires.Before(when) {
			victim, when = e, c.expires
		}
		if n++; n == 64 {
			break
		}
	}
	if n > 0 {
		r.counts["evicted"]++
		r.remove(victim)
	}
}

func (r *resolver) remove(e lisp.EID) {
	if _, ok := r.cache.Delete(e); ok {
		r.out.del = append(r.out.del, e)
	}
}
