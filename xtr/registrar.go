package xtr

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// registrar tells Map-Servers which EIDs live here, and hears from them which do not (RFC 9301 sections 5.6
// and 5.7). Who is right is decided by the mapping version:
//
//   - A refresh carries the version that we were told, a claim the newest that we know plus one, or 0 if we
//     know none: then the Map-Server numbers it.
//   - The highest version that any Map-Server tells us is registered again with all of them.
//   - A Map-Notify with a mapping of another xTR that supersedes ours ends our registration. Only evidence
//     that is newer than what we learned then, that the VM runs here, lets us claim again, one higher: a
//     host that does not run the VM has none, so of two that are wrong about each other one gives up.
//   - Two hosts that really run the same VM both have evidence for ever. After maxClaims claims in
//     claimWindow we leave the EID where it is, for longer each time, and report it.
//
// Each Map-Server is told independently, with its own retransmissions.
type registrar struct {
	registrarConfig
	regs     map[lisp.EID]*registration
	sent     map[uint64]*sentRegister // Map-Registers that may still be answered, by nonce
	history  map[lisp.EID]*history
	conceded map[lisp.EID]*concession
}

// concession is the word for an EID that was lost because its VM has left.
type concession struct {
	version lisp.Version
	next    time.Time
	tries   int
}

type registrarConfig struct {
	id       lisp.XTRID
	site     lisp.SiteID
	rlocs    []lisp.Locator
	servers  int
	interval time.Duration // between refreshes
	ttl      lisp.TTL
	nonce    func(now time.Time) uint64
}

// How registrations are repeated.
const (
	claimRetry   = 50 * time.Millisecond // doubled each time: a claim is urgent
	refreshRetry = time.Second           // doubled each time (RFC 9301 section 5.6: 1 s to 60 s)
	// concedeAfter is how long after an EID is lost that is conceded, doubled for the repetition: every Map-Server
	// must have heard of the claim that it speaks of.
	concedeAfter = 250 * time.Millisecond
	concedeTries = 2
	deleteTime   = 10 * time.Second // then a deregistration is given up: the mapping expires
	bundleSize   = 1200             // bytes of a Map-Register that we put together of many records
	answerTime   = time.Minute      // how long a Map-Register may be answered
)

// When the same EID is claimed to and fro (RFC 7432 section 15.1 has the rule for MAC addresses).
const (
	maxClaims   = 5
	claimWindow = 180 * time.Second
	maxFreeze   = time.Hour
	// A claim that is refused because its version was too old is made again with a newer one, as long as
	// its evidence is bumpTime old at most, maxBumps times.
	bumpTime = time.Second
	maxBumps = 3
	// evidenceGuard is how much newer than a loss a frame has to be to count: it may have waited in a
	// queue while the VM was already gone.
	evidenceGuard = 200 * time.Millisecond
	// historyTime is how long it is remembered whose an EID was.
	historyTime = 2 * time.Hour
)

// told is what a Map-Server knows of a registration.
type told uint8

const (
	toldNothing told = iota // it has to be told
	toldSent                // a message is on the way
	toldHeard               // it has confirmed what we say
)

func (t told) String() string { return [...]string{"to be sent", "sent", "registered"}[t] }

// registration is one EID that we register.
type registration struct {
	eid     lisp.EID
	version lisp.Version // 0: to be numbered by a Map-Server
	claim   bool         // no Map-Server has confirmed it yet
	seen    time.Time    // the evidence for an unconfirmed claim; zero: the VM has stopped since
	bumps   int          // how often an unconfirmed claim was too old
	claimed time.Time    // when we claimed; zero: adopted from before a restart
	delete  bool         // deregister
	until   time.Time    // when a deregistration is given up
	peers   []peerState  // by Map-Server
}

// peerState is what one Map-Server knows of one registration.
type peerState struct {
	told    told
	version lisp.Version // that it confirmed
	tries   int          // messages sent since it last confirmed
	next    time.Time    // when to send
	heard   time.Time    // when it last confirmed
}

// sentRegister is a Map-Register that may be answered.
type sentRegister struct {
	server   int
	at       time.Time
	versions map[lisp.EID]lisp.Version
}

// history is what is remembered of an EID that was claimed or lost.
type history struct {
	elsewhere lisp.Mapping // newest mapping of another xTR that we were told
	learned   time.Time    // when we were told; zero: never
	claims    []time.Time  // unannounced claims in the last claimWindow
	frozen    time.Time    // no unannounced claim before
	freezes   int
	touched   time.Time
}

// registerSend is a Map-Register for a Map-Server, to be signed.
type registerSend struct {
	server int
	msg    *lisp.MapRegister
}

// regOutcome is what a Map-Notify did to a registration.
type regOutcome struct {
	kind    regOutcomeKind
	mapping lisp.Mapping // the record, with the xTR-ID of its holder
}

type regOutcomeKind uint8

const (
	regNothing  regOutcomeKind = iota
	regAccepted                // a Map-Server holds our mapping, in this version
	regLost                    // the EID is another xTR's now: the registration has ended
	regFrozen                  // as regLost, because too many claims were made
)

func newRegistrar(cfg registrarConfig) *registrar {
	return &registrar{
		registrarConfig: cfg,
		regs:            map[lisp.EID]*registration{},
		sent:            map[uint64]*sentRegister{},
		history:         map[lisp.EID]*history{},
		conceded:        map[lisp.EID]*concession{},
	}
}

func (r *registrar) past(e lisp.EID, now time.Time) *history {
	h := r.history[e]
	if h == nil {
		h = &history{}
		r.history[e] = h
	}
	h.touched = now
	return h
}

// known is the newest version that we know of e; 0 if none.
func (r *registrar) known(e lisp.EID) lisp.Version {
	var v lisp.Version
	if reg := r.regs[e]; reg != nil {
		v = reg.version
	}
	if h := r.history[e]; h != nil && h.elsewhere.Version.Newer(v) {
		v = h.elsewhere.Version
	}
	return v
}

// mayClaim reports whether evidence of the moment at lets us claim e. strong evidence is what the
// hypervisor or the controller says, not a frame that may have waited somewhere.
func (r *registrar) mayClaim(e lisp.EID, at time.Time, strong bool, now time.Time) bool {
	h := r.history[e]
	if h == nil {
		return true
	}
	if !strong && now.Before(h.frozen) {
		return false
	}
	guard := evidenceGuard
	if strong {
		guard = 0
	}
	return h.learned.IsZero() || at.After(h.learned.Add(guard))
}

// claim registers e as ours with a version newer than all that we know and than known. announced says that
// the controller or the hypervisor told of the move: such claims may be as frequent as they like.
func (r *registrar) claim(e lisp.EID, known lisp.Version, announced bool, now time.Time) lisp.Version {
	v := newest(known, r.known(e))
	if v != 0 {
		v = v.Next()
	}
	return r.claimAs(e, v, announced, now)
}

// claimAs claims e with version v.
func (r *registrar) claimAs(e lisp.EID, v lisp.Version, announced bool, now time.Time) lisp.Version {
	h := r.past(e, now)
	if announced {
		h.claims, h.frozen, h.freezes = nil, time.Time{}, 0
	} else if !h.learned.IsZero() {
		r.countClaim(h, now)
	}
	r.regs[e] = &registration{eid: e, version: v, claim: true, seen: now, claimed: now, peers: r.fresh(now)}
	return v
}

// countClaim counts an unannounced claim for an EID that was another's.
func (r *registrar) countClaim(h *history, now time.Time) {
	h.claims = slices.DeleteFunc(h.claims, func(t time.Time) bool { return now.Sub(t) > claimWindow })
	h.claims = append(h.claims, now)
	if len(h.claims) > maxClaims {
		r.freeze(h, now)
	}
}

// stopped: the VM of e executes nothing here any more. What is registered stays, but no claim is said again with
// a newer version.
func (r *registrar) stopped(e lisp.EID) {
	if reg := r.regs[e]; reg != nil {
		reg.seen = time.Time{}
	}
}

// bump makes an unconfirmed claim newer than m, which a Map-Server prefers: we did not know of m when the VM
// was seen here. It reports false if our evidence is not that fresh.
func (r *registrar) bump(reg *registration, m lisp.Mapping, now time.Time) bool {
	if !reg.claim || reg.seen.IsZero() || now.Sub(reg.seen) > bumpTime || reg.bumps >= maxBumps {
		return false
	}
	reg.bumps++
	h := r.past(m.EID, now)
	h.elsewhere, h.learned = m, reg.claimed
	r.countClaim(h, now)
	r.newer(reg, m.Version.Next(), now)
	return true
}

// freeze forbids unannounced claims for a time that doubles.
func (r *registrar) freeze(h *history, now time.Time) {
	d := min(claimWindow<<min(h.freezes, 10), maxFreeze)
	h.freezes++
	h.claims = nil
	h.frozen = now.Add(d)
}

// adopt goes on with a registration of before a restart: it refreshes, it does not claim. The version is
// not 0: with 0 a refresh would count as a claim.
func (r *registrar) adopt(e lisp.EID, v lisp.Version, now time.Time) {
	r.regs[e] = &registration{eid: e, version: v, peers: r.fresh(now)}
}

func (r *registrar) fresh(now time.Time) []peerState {
	ps := make([]peerState, r.servers)
	for i := range ps {
		ps[i].next = now
	}
	return ps
}

// release ends a registration without a word: the EID is another's, or expires.
func (r *registrar) release(e lisp.EID) { delete(r.regs, e) }

// withdraw deregisters e: its VM was stopped. A Map-Server whose mapping is newer refuses.
func (r *registrar) withdraw(e lisp.EID, now time.Time) {
	reg := r.regs[e]
	if reg == nil {
		return
	}
	if reg.version == 0 {
		delete(r.regs, e) // with version 0 it would be a claim
		return
	}
	reg.delete, reg.until = true, now.Add(deleteTime)
	reg.peers = r.fresh(now)
}

// again makes all Map-Servers be told of e at once.
func (r *registrar) again(e lisp.EID, now time.Time) {
	if reg := r.regs[e]; reg != nil && !reg.delete {
		for i := range reg.peers {
			p := &reg.peers[i]
			p.told, p.tries, p.next = toldNothing, 0, now
		}
	}
}

// holds reports whether e is registered, or being registered, as ours.
func (r *registrar) holds(e lisp.EID) bool {
	reg := r.regs[e]
	return reg != nil && !reg.delete
}

// ours reports whether m says that its EID lives here.
func (r *registrar) ours(m lisp.Mapping) bool {
	if !m.XTRID.IsZero() {
		return m.XTRID == r.id
	}
	return len(m.Locators) > 0 && !slices.ContainsFunc(m.Locators, func(l lisp.Locator) bool {
		return !slices.ContainsFunc(r.rlocs, func(o lisp.Locator) bool { return o.RLOC == l.RLOC })
	})
}

// answers reports whether nonce is of a Map-Register of ours, and to which Map-Server that went.
func (r *registrar) answers(nonce uint64) (server int, ok bool) {
	s := r.sent[nonce]
	if s == nil {
		return 0, false
	}
	return s.server, true
}

// answered takes a record of the Map-Notify that answers the Map-Register with this nonce.
func (r *registrar) answered(nonce uint64, m lisp.Mapping, now time.Time) regOutcome {
	s, reg := r.sent[nonce], r.regs[m.EID]
	if s == nil || reg == nil {
		return r.notified(m, now)
	}
	sent, asked := s.versions[m.EID]
	if !asked {
		return r.notified(m, now)
	}
	p := &reg.peers[s.server]
	if reg.delete {
		if m.TTL == lisp.TTLDelete || !r.ours(m) {
			p.told = toldHeard
			r.deleted(reg)
		}
		return regOutcome{}
	}
	switch {
	case m.TTL == lisp.TTLDelete || m.Negative():
		return r.vacant(reg, m, now)
	case !r.ours(m):
		mine := lisp.Mapping{Version: sent, XTRID: r.id}
		if sent == reg.version && (sent == 0 || !m.Supersedes(mine)) {
			// It keeps what is older than ours. Whoever is right, claiming again would go on for ever.
			r.freeze(r.past(m.EID, now), now)
			r.lose(m, now)
			return regOutcome{regFrozen, m}
		}
		if sent == reg.version && r.bump(reg, m, now) {
			return regOutcome{}
		}
		return r.notified(m, now)
	}
	r.newer(reg, m.Version, now)
	if m.Version != reg.version {
		return regOutcome{} // it has answered something older
	}
	p.told, p.version, p.tries, p.heard = toldHeard, m.Version, 0, now
	p.next = now.Add(r.interval)
	return r.accepted(reg, m, now)
}

// accepted: a Map-Server holds our mapping m. If a newer one became known while m had no number yet, it is
// lost already.
func (r *registrar) accepted(reg *registration, m lisp.Mapping, now time.Time) regOutcome {
	reg.claim = false
	if h := r.history[m.EID]; h != nil && h.learned.After(reg.claimed) && !reg.claimed.IsZero() &&
		h.elsewhere.Version.Newer(m.Version) {
		other := h.elsewhere
		r.lose(other, now)
		return regOutcome{regLost, other}
	}
	return regOutcome{regAccepted, m}
}

// vacant: a Map-Server says that nobody holds the EID of reg, and what its last version was. A claim that
// nobody has confirmed yet goes on with a version that is newer. What was confirmed before may be old: the VM
// went elsewhere and was stopped there, for all we know.
func (r *registrar) vacant(reg *registration, m lisp.Mapping, now time.Time) regOutcome {
	switch {
	case !m.Version.Newer(reg.version) || reg.delete:
		return regOutcome{} // it does not take ours now: say it again later
	case reg.claim:
		r.newer(reg, m.Version.Next(), now)
		return regOutcome{}
	}
	r.lose(m, now)
	return regOutcome{regLost, m}
}

// notified takes a mapping that a Map-Server told us without being asked by a Map-Register.
func (r *registrar) notified(m lisp.Mapping, now time.Time) regOutcome {
	reg := r.regs[m.EID]
	vacant := m.Negative() || m.TTL == lisp.TTLDelete
	switch {
	case reg == nil:
		if !r.ours(m) && !vacant {
			r.learn(m, now)
		}
		return regOutcome{}
	case reg.delete:
		if !r.ours(m) && m.Version.Newer(reg.version) {
			r.lose(m, now)
		}
		return regOutcome{}
	case r.ours(m) && vacant:
		if !m.Version.Newer(reg.version) {
			r.again(m.EID, now) // it let our mapping expire
		}
		return regOutcome{}
	case vacant:
		return r.vacant(reg, m, now)
	case r.ours(m):
		// The controller registered in our name, and this is the version that it was given.
		if !m.Version.Newer(reg.version) {
			return regOutcome{}
		}
		r.newer(reg, m.Version, now)
		return r.accepted(reg, m, now)
	case reg.version == 0:
		r.learn(m, now) // it may be what our claim is about to replace: the number will tell
		return regOutcome{}
	case !m.Supersedes(lisp.Mapping{Version: reg.version, XTRID: r.id}):
		return regOutcome{} // an old message
	}
	r.lose(m, now)
	return regOutcome{regLost, m}
}

// learn remembers whose e is. It reports whether that is news.
func (r *registrar) learn(m lisp.Mapping, now time.Time) bool {
	h := r.past(m.EID, now)
	if !h.learned.IsZero() && (h.elsewhere.Equal(m) || !m.Supersedes(h.elsewhere)) {
		return false
	}
	h.elsewhere, h.learned = m, now
	return true
}

// lose ends a registration because the EID is m's.
func (r *registrar) lose(m lisp.Mapping, now time.Time) {
	h := r.past(m.EID, now)
	h.elsewhere, h.learned = m, now
	delete(r.regs, m.EID)
}

// concede makes the Map-Servers be told that e was lost to m rightly: its VM has left, as the hypervisor says, and the
// claim is none of two that run the same VM. It is said as a deregistration of a version that is older than all that
// a Map-Server may hold, so that it never takes anything away.
func (r *registrar) concede(m lisp.Mapping, now time.Time) {
	v := m.Version
	for range 2 { // the one before it may be ours, still, somewhere
		if v = (v - 1) & lisp.VersionMask; v == 0 {
			v = lisp.VersionMask
		}
	}
	r.conceded[m.EID] = &concession{version: v, next: now.Add(concedeAfter)}
}

// concessions returns what is to be conceded now. An EID that we claimed again meanwhile is not.
func (r *registrar) concessions(now time.Time) (out []registerSend) {
	var due []lisp.Mapping
	for e, c := range r.conceded {
		switch {
		case r.holds(e) || c.tries >= concedeTries:
			delete(r.conceded, e)
		case !c.next.After(now):
			due = append(due, lisp.Mapping{EID: e, TTL: lisp.TTLDelete, Version: c.version, Authoritative: true,
				Locators: r.rlocs, XTRID: r.id, SiteID: r.site})
			c.tries++
			c.next = now.Add(concedeAfter << c.tries)
		}
	}
	slices.SortFunc(due, func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
	for part := range slices.Chunk(due, max(1, (bundleSize-registerOverhead)/r.recordSize(lisp.HostEID(1, netip.IPv6Loopback())))) {
		for s := range r.servers {
			out = append(out, registerSend{s, &lisp.MapRegister{HasXTRID: true, Nonce: r.nonce(now), XTRID: r.id, SiteID: r.site, Records: part}})
		}
	}
	return out
}

// newer takes a version that a Map-Server gave our mapping, if it is newer than what we registered: all are
// told again.
func (r *registrar) newer(reg *registration, v lisp.Version, now time.Time) {
	if !v.Newer(reg.version) {
		return
	}
	reg.version = v
	for i := range reg.peers {
		p := &reg.peers[i]
		p.told, p.tries, p.next = toldNothing, 0, now
	}
}

// deleted forgets a deregistration that every Map-Server has answered.
func (r *registrar) deleted(reg *registration) {
	if !slices.ContainsFunc(reg.peers, func(p peerState) bool { return p.told != toldHeard }) {
		delete(r.regs, reg.eid)
	}
}

// next is when tick has something to do; zero: never.
func (r *registrar) next() time.Time {
	var t time.Time
	for _, reg := range r.regs {
		t = earlier(t, reg.until)
		for s := range reg.peers {
			if !reg.done(s) {
				t = earlier(t, reg.peers[s].next)
			}
		}
	}
	for _, c := range r.conceded {
		t = earlier(t, c.next)
	}
	return t
}

// tick returns what is due. Claims come first, in messages of their own; a message of refreshes takes along
// what would be due soon.
func (r *registrar) tick(now time.Time) []registerSend {
	r.expire(now)
	var out []registerSend
	all := r.all()
	for s := range r.servers {
		var due []*registration
		for _, reg := range all {
			if reg.urgent(s) && !reg.done(s) && !reg.peers[s].next.After(now) {
				due = append(due, reg)
			}
		}
		out = r.bundle(out, s, due, now)
	}
	for s := range r.servers {
		var due []*registration
		late := false
		for _, reg := range all {
			p := &reg.peers[s]
			if reg.urgent(s) || p.next.After(now.Add(r.interval/10)) || p.told == toldSent && p.next.After(now) {
				continue
			}
			late = late || !p.next.After(now)
			due = append(due, reg)
		}
		if late {
			out = r.bundle(out, s, due, now)
		}
	}
	return append(out, r.concessions(now)...)
}

// urgent reports whether Map-Server s should hear of reg quickly.
func (reg *registration) urgent(s int) bool {
	return reg.delete || !reg.claimed.IsZero() && (reg.version == 0 || reg.peers[s].version != reg.version)
}

// done reports whether nothing more is to be sent of a deregistration.
func (reg *registration) done(s int) bool {
	return reg.delete && reg.peers[s].told == toldHeard
}

// bundle puts registrations into as few messages as fit.
func (r *registrar) bundle(out []registerSend, server int, due []*registration, now time.Time) []registerSend {
	var msg *lisp.MapRegister
	var sent *sentRegister
	size := 0
	for _, reg := range due {
		n := r.recordSize(reg.eid)
		if msg == nil || size+n > bundleSize {
			msg = &lisp.MapRegister{
				ProxyReply: true, HasXTRID: true, WantMapNotify: true,
				Nonce: r.nonce(now), XTRID: r.id, SiteID: r.site,
			}
			out = append(out, registerSend{server, msg})
			sent = &sentRegister{server, now, map[lisp.EID]lisp.Version{}}
			r.sent[msg.Nonce] = sent
			size = registerOverhead
		}
		size += n
		m := r.mapping(reg)
		msg.Records = append(msg.Records, m)
		sent.versions[reg.eid] = m.Version
		r.sending(reg, server, now)
	}
	return out
}

// Sizes in bytes of the parts of a Map-Register (RFC 9301 section 5.6): the head with the longest
// authentication data, xTR-ID and Site-ID; the fixed part of a record; of a locator; an instance-ID LCAF.
const (
	registerOverhead = 16 + 32 + 24
	recordOverhead   = 12
	locatorOverhead  = 8
	iidOverhead      = 16
)

func (r *registrar) recordSize(e lisp.EID) int {
	n := recordOverhead + e.Prefix.Addr().BitLen()/8
	if e.IID != 0 {
		n += iidOverhead
	}
	for _, l := range r.rlocs {
		n += locatorOverhead + l.RLOC.BitLen()/8
	}
	return n
}

// mapping is what we register of reg.
func (r *registrar) mapping(reg *registration) lisp.Mapping {
	m := lisp.Mapping{EID: reg.eid, TTL: r.ttl, Version: reg.version, Authoritative: true,
		Locators: r.rlocs, XTRID: r.id, SiteID: r.site}
	if reg.delete {
		m.TTL = lisp.TTLDelete
	}
	return m
}

// sending notes that a message is on its way, and when to repeat it.
func (r *registrar) sending(reg *registration, server int, now time.Time) {
	p := &reg.peers[server]
	p.told = toldSent
	retry := refreshRetry
	if reg.urgent(server) {
		retry = claimRetry
	}
	p.next = now.Add(min(retry<<min(p.tries, 20), r.interval))
	p.tries++
}

// expire forgets what is too old to matter.
func (r *registrar) expire(now time.Time) {
	for n, s := range r.sent {
		if now.Sub(s.at) > answerTime {
			delete(r.sent, n)
		}
	}
	for e, h := range r.history {
		if now.Sub(h.touched) > historyTime && r.regs[e] == nil {
			delete(r.history, e)
		}
	}
	for _, reg := range r.regs {
		if reg.delete && !now.Before(reg.until) {
			delete(r.regs, reg.eid)
		}
	}
}

// earlier is the earlier of two deadlines; zero means none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// all lists the registrations in the order of their EIDs.
func (r *registrar) all() []*registration {
	return slices.SortedFunc(maps.Values(r.regs), func(a, b *registration) int { return a.eid.Compare(b.eid) })
}
