package xtr

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
)

// resolver keeps the map-cache: what the mapping system says of EIDs that do not live here. It asks in
// Map-Requests (RFC 9301 section 5.2) that travel in ECMs. For EIDs of the own cloud it asks all Map-Servers
// and subscribes with each, so that each tells us of moves (RFC 9437); for others it asks one Map-Resolver
// after the other.
//
// An answer must bear the nonce of a request. Between answers [lisp.Mapping.Supersedes] decides. That there
// is no mapping is believed for a whole prefix only when all who were asked say so: a Map-Server that has
// just lost its memory must not hide the cloud.
type resolver struct {
	resolverConfig
	cache   mapcache.Table[*cacheEntry]
	queries map[lisp.EID]*query
	asks    map[uint64]*ask          // requests that may be answered, by nonce
	scan    time.Time                // when the map-cache is looked through for what is due; zero: it is empty
	swept   time.Time                // when old asks were forgotten last
	full    uint64                   // entries that were evicted because the map-cache was full
	knows   map[netip.Addr]time.Time // since when a Map-Server has known us, by a registration that it confirmed
	out     resolverOut
}

type resolverConfig struct {
	id        lisp.XTRID
	site      lisp.SiteID
	rlocs     []netip.Addr // own RLOCs: where answers go
	servers   []netip.Addr
	resolvers []netip.Addr
	own       func(lisp.EID) bool // an EID of the own cloud
	nonce     func(now time.Time) uint64
	random    func() uint64
	used      func(lisp.EID) bool // whether packets took the entry since the last call
	limit     int                 // entries of the map-cache
}

// How requests are repeated (RFC 9301 section 5.3: at most one a second for an EID, and after 10 that stay
// without an answer a pause). The first repetitions are quicker: packets wait.
const (
	queryTries  = 10
	queryPause  = 30 * time.Second
	queryQuick  = 200 * time.Millisecond
	queryRetry  = time.Second
	lateRetries = 6 // more requests to who has not answered when another has
	// plainAfter requests to subscribe that stay without an answer, every other one does not subscribe: not
	// every Map-Server knows of RFC 9437.
	plainAfter = 3
	// unsureTTL is how long we believe that there is no mapping if not all who were asked have said so.
	unsureTTL = time.Minute
	// doubtTime is how long a mapping that a Map-Server has withdrawn may be confirmed by another.
	doubtTime = 2 * time.Second
	// maxQueries bounds the EIDs that are asked for at a time.
	maxQueries = 4096
)

// cacheEntry is one entry of the map-cache.
type cacheEntry struct {
	Mapping   lisp.Mapping `json:"mapping"`
	Expires   time.Time    `json:"expires"`
	Installed time.Time    `json:"installed"`
	Via       string       `json:"via"` // who said so

	refresh time.Time             // when to ask again, if it is used; zero: not any more
	always  bool                  // ask again even if it is not used
	doubt   time.Time             // removed then unless confirmed; zero: no doubt
	nonces  map[netip.Addr]uint64 // of the last publication, by Map-Server
}

// query is one EID that we ask for.
type query struct {
	eid       lisp.EID
	src       lisp.EID // source EID for the request; zero: none
	why       string
	smr       bool
	targets   []netip.Addr
	subscribe bool
	refused   map[netip.Addr]bool // who does not let us subscribe
	answered  map[netip.Addr]bool
	tries     int
	late      int // requests that were sent after the first answer
	next      time.Time
	started   time.Time
	decided   bool          // the map-cache has an answer
	nothing   *lisp.Mapping // the narrowest prefix for which somebody said that there is no mapping
	nothingBy string
	gaveUp    bool
}

// ask is one request that may be answered.
type ask struct {
	q         *query
	to        netip.Addr
	subscribe bool
	at        time.Time
}

// resolverOut is what the resolver wants done.
type resolverOut struct {
	sends   []requestSend
	changed []lisp.EID   // entries of the map-cache that were set or removed
	release []lisp.EID   // packets for these may go on
	reject  []lisp.EID   // packets for these have waited in vain
	answers []eidMapping // what was decided for an EID that was asked for
}

// requestSend is a Map-Request for a Map-Server or Map-Resolver, to be put into an ECM.
type requestSend struct {
	to  netip.Addr
	msg *lisp.MapRequest
}

// eidMapping is the answer to the question for eid.
type eidMapping struct {
	eid     lisp.EID
	mapping lisp.Mapping
}

func newResolver(cfg resolverConfig) *resolver {
	return &resolver{resolverConfig: cfg, queries: map[lisp.EID]*query{}, asks: map[uint64]*ask{}, knows: map[netip.Addr]time.Time{}}
}

// take returns what is to be done, and forgets it.
func (r *resolver) take() resolverOut {
	o := r.out
	r.out = resolverOut{}
	return o
}

// want asks for e unless that is under way. It reports false if e was asked for in vain a moment ago, or if
// there are too many questions.
func (r *resolver) want(e lisp.EID, src netip.Addr, why string, smr bool, now time.Time) bool {
	if q := r.queries[e]; q != nil {
		if q.gaveUp {
			return false
		}
		q.smr = q.smr || smr
		if _, _, covered := r.cache.LookupEID(e); !q.decided || covered && !smr && why != whyWithdrawn {
			return true
		}
		delete(r.queries, e) // ask afresh: the answer that we had is gone or in doubt
	}
	if len(r.queries) >= maxQueries {
		return false
	}
	q := &query{eid: e, why: why, smr: smr, next: now, started: now,
		answered: map[netip.Addr]bool{}, refused: map[netip.Addr]bool{}}
	if src.IsValid() {
		q.src = lisp.HostEID(e.IID, src)
	}
	q.targets = r.resolvers
	if r.own(e) && len(r.servers) > 0 {
		q.targets, q.subscribe = r.servers, true
	}
	if len(q.targets) == 0 {
		return false
	}
	r.queries[e] = q
	return true
}

// Why an EID is asked for.
const (
	whyMiss      = "miss"
	whyRefresh   = "refresh"
	whySMR       = "smr"
	whyWithdrawn = "withdrawn"
	whyOwn       = "own"
	whyPrepared  = "prepared"
	whyDead      = "all RLOCs dead"
	whyKnown     = "known to a Map-Server"
)

// next is when tick has something to do; zero: never.
func (r *resolver) next() time.Time {
	var t time.Time
	for _, q := range r.queries {
		t = earlier(t, q.next)
	}
	return earlier(t, r.scan)
}

// due is when something happens to c.
func (c *cacheEntry) due() time.Time {
	t := c.Expires
	if !c.refresh.IsZero() {
		t = earlier(t, c.refresh)
	}
	if !c.doubt.IsZero() {
		t = earlier(t, c.doubt)
	}
	return t
}

// tick sends what is due, and removes what has expired.
func (r *resolver) tick(now time.Time) {
	if !r.scan.IsZero() && !r.scan.After(now) {
		r.expire(now)
	}
	var due []*query
	for _, q := range r.queries {
		if !q.next.After(now) {
			due = append(due, q)
		}
	}
	slices.SortFunc(due, func(a, b *query) int { return a.eid.Compare(b.eid) })
	for _, q := range due {
		r.advance(q, now)
	}
	if now.Sub(r.swept) > queryPause {
		r.swept = now
		maps.DeleteFunc(r.asks, func(_ uint64, a *ask) bool { return now.Sub(a.at) > queryPause })
	}
}

// expire looks through the map-cache.
func (r *resolver) expire(now time.Time) {
	r.scan = time.Time{}
	for e, c := range r.cache.All() {
		if c.due().After(now) {
			r.look(c, now)
			continue
		}
		switch {
		case !c.Expires.After(now), !c.doubt.IsZero() && !c.doubt.After(now):
			r.remove(e)
		default:
			c.refresh = time.Time{}
			if r.used(e) || c.always {
				r.want(e, netip.Addr{}, whyRefresh, false, now)
			}
			r.look(c, now)
		}
	}
}

// scanEvery is how often the map-cache is looked through at most: it may be long, and lifetimes are minutes.
const scanEvery = 500 * time.Millisecond

// look makes the next scan come in time for c.
func (r *resolver) look(c *cacheEntry, now time.Time) {
	t := c.due()
	if soon := now.Add(scanEvery); t.Before(soon) {
		t = soon
	}
	r.scan = earlier(r.scan, t)
}

// advance sends the next requests of q, or ends it.
func (r *resolver) advance(q *query, now time.Time) {
	switch {
	case q.gaveUp:
		delete(r.queries, q.eid)
		return
	case q.decided && (q.late >= lateRetries || !q.subscribe || r.complete(q)):
		delete(r.queries, q.eid)
		return
	case !q.decided && q.nothing != nil && now.Sub(q.started) >= queryQuick:
		r.decideNothing(q, now)
		return
	case !q.decided && q.tries >= queryTries:
		q.gaveUp, q.next = true, now.Add(queryPause)
		r.out.reject = append(r.out.reject, q.eid)
		return
	}
	if q.subscribe {
		for _, to := range q.targets {
			if !q.answered[to] {
				r.send(q, to, now)
			}
		}
	} else {
		r.send(q, q.targets[q.tries%len(q.targets)], now)
	}
	q.tries++
	switch {
	case q.decided:
		q.next = now.Add(queryRetry << q.late)
		q.late++
	case q.tries < plainAfter:
		q.next = now.Add(queryQuick * time.Duration(q.tries))
	default:
		q.next = now.Add(queryRetry)
	}
}

// complete reports whether all who were asked have answered.
func (r *resolver) complete(q *query) bool {
	return !slices.ContainsFunc(q.targets, func(a netip.Addr) bool { return !q.answered[a] })
}

func (r *resolver) send(q *query, to netip.Addr, now time.Time) {
	subscribe := q.subscribe && !q.refused[to] && (q.tries < plainAfter || q.tries%2 == 0)
	m := &lisp.MapRequest{
		SMRInvoked: q.smr,
		SourceEID:  q.src,
		ITRRLOCs:   r.rlocs,
		Records:    []lisp.RequestRecord{{EID: q.eid, Notify: subscribe}},
	}
	if subscribe {
		m.HasXTRID, m.XTRID, m.SiteID = true, r.id, r.site
		m.Nonce = r.nonce(now)
	} else {
		m.Nonce = r.random()
	}
	r.asks[m.Nonce] = &ask{q: q, to: to, subscribe: subscribe, at: now}
	r.out.sends = append(r.out.sends, requestSend{to, m})
}

// reply takes the records of a Map-Reply. It reports whether its nonce is that of a request.
func (r *resolver) reply(nonce uint64, records []lisp.Mapping, now time.Time) bool {
	a := r.asks[nonce]
	if a == nil {
		return false
	}
	delete(r.asks, nonce)
	if r.queries[a.q.eid] != a.q {
		return true // answered long ago
	}
	if a.subscribe && len(records) == 1 && records[0].Negative() &&
		(records[0].Action == lisp.ActDropPolicyDenied || records[0].Action == lisp.ActDropAuthFailure) {
		// It is the subscription that was denied (RFC 9437 section 5): ask without.
		a.q.refused[a.to] = true
		a.q.next = now
		return true
	}
	if a.subscribe && a.at.Before(r.knows[a.to]) && slices.ContainsFunc(records, lisp.Mapping.Negative) {
		a.q.next = now // it did not know us yet, and does by now: see known
		return true
	}
	r.answer(a, records, viaReply+a.to.String(), now)
	return true
}

// viaReply begins what cacheEntry.Via says of a Map-Reply: nobody tells us when that changes.
const viaReply = "map-reply "

// known notes that a Map-Server has confirmed a registration of ours. Whom it does not know it lets subscribe to nothing
// (RFC 9437 section 5): what it said of the own cloud before, nobody would correct. That there is no mapping may have
// been so for a moment only, and for a whole prefix.
func (r *resolver) known(server netip.Addr, now time.Time) {
	if _, ok := r.knows[server]; ok {
		return
	}
	r.knows[server] = now
	for e, c := range r.cache.All() {
		switch {
		case !strings.HasPrefix(c.Via, viaReply) || !r.own(e):
		case c.Mapping.Negative():
			r.remove(e)
		default:
			r.want(e, netip.Addr{}, whyKnown, false, now)
		}
	}
}

// subscribed takes the records of a Map-Notify from a Map-Server that answers a request to subscribe. It
// reports whether its nonce is that of one.
func (r *resolver) subscribed(nonce uint64, records []lisp.Mapping, now time.Time) bool {
	a := r.asks[nonce]
	if a == nil || !a.subscribe {
		return false
	}
	delete(r.asks, nonce)
	if r.queries[a.q.eid] == a.q {
		r.answer(a, records, fmt.Sprintf("map-notify %v", a.to), now)
	} else {
		for _, m := range records {
			r.install(m, fmt.Sprintf("map-notify %v", a.to), now)
		}
	}
	for _, m := range records {
		if c, ok := r.cache.Get(m.EID); ok {
			c.noteNonce(a.to, nonce)
		}
	}
	return true
}

func (c *cacheEntry) noteNonce(server netip.Addr, nonce uint64) {
	if c.nonces == nil {
		c.nonces = map[netip.Addr]uint64{}
	}
	c.nonces[server] = max(c.nonces[server], nonce)
}

// answer takes what one who was asked has to say.
func (r *resolver) answer(a *ask, records []lisp.Mapping, via string, now time.Time) {
	q := a.q
	// "The reply count can be larger than the requested count, for instance, when more-specific prefixes
	// are present" (RFC 9301 section 5.4): what has to do with the question is believed.
	records = slices.DeleteFunc(slices.Clone(records), func(m lisp.Mapping) bool {
		return !m.EID.Contains(q.eid) && !q.eid.Contains(m.EID) &&
			!(records[0].EID.Contains(q.eid) && records[0].EID.Contains(m.EID))
	})
	best := -1
	for i, m := range records {
		if m.EID.Contains(q.eid) && (best < 0 || m.EID.Prefix.Bits() > records[best].EID.Prefix.Bits()) {
			best = i
		}
	}
	if best < 0 {
		return // it does not answer the question
	}
	q.answered[a.to] = true
	m := records[best]
	if (m.Negative() || m.TTL == lisp.TTLDelete) && q.subscribe && !q.decided {
		if q.nothing == nil || m.EID.Prefix.Bits() > q.nothing.EID.Prefix.Bits() {
			q.nothing, q.nothingBy = &m, via
		}
		if r.complete(q) {
			r.decideNothing(q, now)
		}
		return
	}
	if m.Negative() && q.subscribe {
		r.ended(q)
		return // another has a mapping
	}
	r.replaceSpecifics(q.eid, m, now)
	for _, m := range records {
		r.install(m, via, now)
	}
	r.decided(q, m)
}

// replaceSpecifics removes an entry that covers e and is narrower than the answer m, which would have
// contained it if it still existed.
func (r *resolver) replaceSpecifics(e lisp.EID, m lisp.Mapping, now time.Time) {
	if old, _, ok := r.cache.LookupEID(e); ok && old != m.EID && m.EID.Contains(old) && !r.own(old) {
		r.remove(old)
	}
}

// decideNothing believes that there is no mapping: for the prefix that was told if all say so, else for the
// EID alone and a short while.
func (r *resolver) decideNothing(q *query, now time.Time) {
	m := *q.nothing
	if !r.complete(q) {
		m.EID = q.eid
		if m.TTL.Duration() > unsureTTL {
			m.TTL = lisp.TTL(unsureTTL / time.Minute)
		}
	}
	if m.TTL == lisp.TTLDelete {
		m.TTL = lisp.TTL(unsureTTL / time.Minute)
	}
	if old, _, ok := r.cache.LookupEID(q.eid); ok && m.EID.Contains(old) {
		r.remove(old)
	}
	m.Locators = nil
	r.set(m, q.nothingBy, now)
	r.decided(q, m)
}

// decided: the map-cache has an answer to q.
func (r *resolver) decided(q *query, m lisp.Mapping) {
	if !q.decided {
		q.decided = true
		r.out.release = append(r.out.release, q.eid)
		r.out.answers = append(r.out.answers, eidMapping{q.eid, m})
		q.next = q.started.Add(queryRetry) // who is silent is asked again
	}
	r.ended(q)
}

// ended forgets q when nobody is left who should be asked.
func (r *resolver) ended(q *query) {
	if q.decided && (!q.subscribe || r.complete(q)) && r.queries[q.eid] == q {
		delete(r.queries, q.eid)
	}
}

// install puts m into the map-cache unless what is there is to be believed rather.
func (r *resolver) install(m lisp.Mapping, via string, now time.Time) {
	old, ok := r.cache.Get(m.EID)
	if m.TTL == lisp.TTLDelete {
		// "If the TTL is 0, the entry MUST be removed from the cache immediately" (RFC 9301 section 5.4).
		if ok && !old.Mapping.Version.Newer(m.Version) {
			r.remove(m.EID)
		}
		return
	}
	if ok && old.Expires.After(now) {
		if !m.Supersedes(old.Mapping) {
			return
		}
		if m.XTRID.IsZero() && m.Version == old.Mapping.Version && slices.Equal(m.Locators, old.Mapping.Locators) {
			m.XTRID, m.SiteID = old.Mapping.XTRID, old.Mapping.SiteID // a Map-Reply does not say
		}
	}
	r.set(m, via, now)
}

// refreshPart of its lifetime before an entry expires it is asked for again, if it is used.
const refreshPart = 10

// set puts m into the map-cache.
func (r *resolver) set(m lisp.Mapping, via string, now time.Time) {
	old, ok := r.cache.Get(m.EID)
	if !ok && r.cache.Len() >= r.limit {
		r.evict()
	}
	ttl := m.TTL.Duration()
	c := &cacheEntry{Mapping: m, Expires: now.Add(ttl), Installed: now, Via: via, refresh: now.Add(ttl - ttl/refreshPart)}
	if ok {
		c.nonces = old.nonces
		if old.Mapping.Equal(m) {
			c.Installed = old.Installed
		}
	}
	r.cache.Insert(m.EID, c)
	r.look(c, now)
	r.out.changed = append(r.out.changed, m.EID)
}

// evict makes room: of the first few entries it removes the one that would expire first.
func (r *resolver) evict() {
	var victim lisp.EID
	var when time.Time
	n := 0
	for e, c := range r.cache.All() {
		if when.IsZero() || c.Expires.Before(when) {
			victim, when = e, c.Expires
		}
		if n++; n == 64 {
			break
		}
	}
	if n > 0 {
		r.full++
		r.remove(victim)
	}
}

// remove takes e out of the map-cache.
func (r *resolver) remove(e lisp.EID) {
	if _, ok := r.cache.Delete(e); ok {
		r.out.changed = append(r.out.changed, e)
	}
}

// published takes a mapping that a Map-Server tells us without being asked (RFC 9437 section 6). It reports
// false if we never wanted to know: the mapping is then not believed.
func (r *resolver) published(server netip.Addr, nonce uint64, m lisp.Mapping, now time.Time) bool {
	_, cover, ok := r.cache.LookupEID(m.EID)
	exact, isExact := r.cache.Get(m.EID)
	if !ok && !r.waits(m.EID) {
		return false
	}
	if isExact {
		cover = exact
	}
	if cover != nil {
		// "If a Map-Notify received as a publication has a nonce value that is not greater than the saved
		// nonce, the xTR drops the Map-Notify message" (RFC 9437 section 6). A version that is newer than
		// ours is no replay: it may come from a Map-Server that lost its nonces.
		last, seen := cover.nonces[server]
		if isExact && seen && nonce <= last && !m.Version.Newer(cover.Mapping.Version) {
			return true
		}
		if isExact {
			cover.noteNonce(server, nonce)
		}
	}
	switch {
	case m.Negative() && m.Action == lisp.ActDropAuthFailure:
		// It has given our subscription up (RFC 9437 section 5).
		r.want(m.EID, netip.Addr{}, whyWithdrawn, false, now)
	case m.TTL == lisp.TTLDelete || m.Negative():
		// One Map-Server does not know it any more; the others may.
		if isExact && !exact.Mapping.Negative() {
			exact.doubt = now.Add(doubtTime)
			r.look(exact, now)
			r.want(m.EID, netip.Addr{}, whyWithdrawn, false, now)
		}
	default:
		r.install(m, fmt.Sprintf("publication %v", server), now)
		if c, ok := r.cache.Get(m.EID); ok {
			c.noteNonce(server, nonce)
		}
		for _, q := range r.queries {
			if m.EID.Contains(q.eid) && !q.decided && !q.gaveUp {
				r.decided(q, m)
			}
		}
		r.out.release = append(r.out.release, m.EID)
	}
	return true
}

// waits reports whether e, or a part of it, is asked for.
func (r *resolver) waits(e lisp.EID) bool {
	for q := range r.queries {
		if e.Contains(q) {
			return true
		}
	}
	return false
}

// learn puts a mapping into the map-cache that we were told because the EID was ours.
func (r *resolver) learn(m lisp.Mapping, via string, now time.Time) { r.install(m, via, now) }

// restore puts back what was in the map-cache before a restart. We may have missed publications: what is
// used has to be asked for again, a few at a time.
func (r *resolver) restore(entries []cacheEntry, now time.Time) {
	for i, c := range entries {
		if !c.Expires.After(now) || !c.Mapping.EID.IsValid() {
			continue
		}
		c.refresh, c.always = now.Add(time.Duration(i)*restorePace), true
		r.cache.Insert(c.Mapping.EID, &c)
		r.look(&c, now)
		r.out.changed = append(r.out.changed, c.Mapping.EID)
	}
}

// restorePace is how far apart requests are that a restart makes necessary.
const restorePace = 10 * time.Millisecond

// entries lists the map-cache.
func (r *resolver) entries() []cacheEntry {
	out := make([]cacheEntry, 0, r.cache.Len())
	for _, c := range r.cache.All() {
		out = append(out, *c)
	}
	return out
}
