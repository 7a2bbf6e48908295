package mapserver

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// registering is a Map-Register whose sender is known.
type registering struct {
	*lisp.MapRegister
	from       netip.Addr
	site       *site
	key        *lisp.Key
	controller bool
}

// outcome is what became of one record.
type outcome struct {
	taken  bool         // the sender is what the mapping says it is
	silent bool         // refused for reasons that are no business of the mapping system's order
	tell   lisp.Mapping // what is to be answered
}

// mapRegister is for a Map-Register (RFC 9301 sections 5.6 and 8.2).
func (c *core) mapRegister(now time.Time, from netip.AddrPort, raw []byte, m *lisp.MapRegister) {
	r, ok := c.authenticate(now, from, raw, m)
	if !ok {
		return
	}
	c.register(now, r)
}

// authenticate finds the site and key of m and verifies it.
func (c *core) authenticate(now time.Time, from netip.AddrPort, raw []byte, m *lisp.MapRegister) (registering, bool) {
	r := registering{MapRegister: m, from: from.Addr().Unmap()}
	if len(m.Records) == 0 {
		c.count("register/dropped/no-records")
		return r, false
	}
	for _, rec := range m.Records {
		if s, _ := c.siteOf(rec.EID); s != nil {
			r.site = s
			break
		}
	}
	if r.site == nil {
		if c.ofNoSite(&r, raw) {
			return r, true
		}
		c.refuse(now, r, m.Records[0], reasonNotConfigured, false)
		return r, false
	}
	key, controller, ok := r.site.key(m.Auth.KeyID, m.Auth.Algorithm)
	if !ok {
		c.refuse(now, r, m.Records[0], reasonUnknownKey, false)
		return r, false
	}
	r.key, r.controller = key, controller
	if why := c.verify(r, raw, key); why != "" {
		c.refuse(now, r, m.Records[0], why, false)
		return r, false
	}
	return r, true
}

// verify says why r, which came as raw, is not authenticated by key.
func (c *core) verify(r registering, raw []byte, key *lisp.Key) reason {
	if lisp.Verify(raw, r.MapRegister, *key) != nil {
		return reasonAuth
	}
	// What we keep by xTR-ID would be at the mercy of whoever can replay a datagram if the digest
	// did not cover the xTR-ID.
	if r.HasXTRID && key.Format == lisp.FormatDeployed && lisp.VerifyWhole(raw, r.MapRegister, *key) != nil {
		return reasonAuthScope
	}
	return ""
}

// register does what an authenticated Map-Register asks for.
func (c *core) register(now time.Time, r registering) {
	nk := NonceKey{Site: r.site.Name, XTRID: r.XTRID, KeyID: r.key.ID}
	if r.XTRID.IsZero() {
		nk.Source = r.from.WithZone("")
	}
	if last, known := c.nonces[nk]; known && r.Nonce <= last && !r.site.AnyNonce {
		// "If a Map-Register is received with a nonce value that is not greater than the saved nonce, it
		// MUST drop the Map-Register message" (RFC 9301 section 5.6). But section 5.7 lets an xTR
		// retransmit "the original Map-Register" when our answer was lost: the very last one changes
		// nothing, and is answered once more to whom it was answered before.
		if r.Nonce == last && (c.peers[nk] == r.from || c.registeredFrom(r)) {
			c.count("register/retransmitted")
			c.answer(r, c.repeat(r))
			return
		}
		c.refuse(now, r, r.Records[0], reasonReplay, true)
		return
	}
	if len(c.nonces) >= c.MaxRegistrations {
		if _, known := c.nonces[nk]; !known {
			c.refuse(now, r, r.Records[0], reasonLimit, true)
			return
		}
	}
	c.storeNonce(nk, r.Nonce)
	c.peers[nk] = r.from
	if !r.controller && !r.XTRID.IsZero() {
		c.keys[r.XTRID] = keyRef{r.site.Name, r.key.ID}
	}
	outcomes := make([]outcome, len(r.Records))
	for i, rec := range r.Records {
		outcomes[i] = c.record(now, r, rec)
	}
	c.answer(r, outcomes)
}

// registeredFrom reports whether a record of r is registered from the same address: what remains of peers
// after a restart.
func (c *core) registeredFrom(r registering) bool {
	return slices.ContainsFunc(r.Records, func(rec lisp.Mapping) bool {
		if s := c.services.known[rec.EID]; s != nil && r.controller && s.Source == r.from {
			return true
		}
		e := c.entries[rec.EID]
		return e != nil && slices.ContainsFunc(e.regs, func(o registrant) bool {
			return o.identity() == identityOf(r) && o.Source == r.from
		})
	})
}

// repeat is what r would be answered if it had been processed before, and it has.
func (c *core) repeat(r registering) []outcome {
	outcomes := make([]outcome, len(r.Records))
	for i, rec := range r.Records {
		e := c.entries[rec.EID]
		switch {
		case r.controller && (rec.IsService() || e == nil && c.services.known[rec.EID] != nil):
			outcomes[i] = c.repeatService(r, rec)
		case e == nil && rec.TTL == lisp.TTLDelete:
			outcomes[i] = outcome{taken: true, tell: rec}
		case e == nil:
			outcomes[i] = outcome{silent: true}
		default:
			taken := e.mapping.XTRID == r.XTRID || e.has(identityOf(r))
			outcomes[i] = outcome{taken: taken, tell: e.mapping}
		}
	}
	return outcomes
}

// has reports whether who is one of e's registrants.
func (e *entry) has(who identity) bool {
	return slices.ContainsFunc(e.regs, func(o registrant) bool { return o.identity() == who })
}

// others are those of rs who are not who.
func others(rs []registrant, who identity) []registrant {
	return slices.DeleteFunc(slices.Clone(rs), func(o registrant) bool { return o.identity() == who })
}

// answer tells the sender what became of its records: in one Map-Notify, after the commit, those that
// are its own now; in one each, at once, those that somebody else has.
func (c *core) answer(r registering, outcomes []outcome) {
	to := netip.AddrPortFrom(r.from, lisp.ControlPort)
	var own []lisp.Mapping
	for i, o := range outcomes {
		switch {
		case o.silent:
		case o.taken:
			o.tell.Authoritative = r.Records[i].Authoritative
			own = append(own, o.tell)
		default:
			c.count("notify/refused")
			c.send(r.key, &lisp.MapNotify{Nonce: r.Nonce, Records: []lisp.Mapping{o.tell},
				HasXTRID: true, XTRID: o.tell.XTRID, SiteID: o.tell.SiteID}, to)
		}
	}
	if r.WantMapNotify && len(own) > 0 {
		c.count("notify/answered")
		m := &lisp.MapNotify{Nonce: r.Nonce, Records: own, HasXTRID: r.HasXTRID, XTRID: r.XTRID, SiteID: r.SiteID}
		c.out.batch.sends = append(c.out.batch.sends, send{to: []netip.AddrPort{to}, msg: m, key: r.key})
	}
}

// record does what one record of an authenticated Map-Register asks for.
func (c *core) record(now time.Time, r registering, rec lisp.Mapping) outcome {
	if c.ofService(r, rec) {
		return c.service(now, r, rec)
	}
	if why := c.admit(r, &rec); why != "" {
		c.refuse(now, r, rec, why, true)
		return outcome{silent: true}
	}
	if s := c.serviceAt(r, rec); s != nil {
		// No answer: the xTR whose VM has the address would take it for a word of where the VM is.
		c.refuseHeld(now, r, rec, reasonService, true, holderOf(s.Mapping))
		return outcome{silent: true}
	}
	e := c.entries[rec.EID]
	if e == nil {
		if rec.TTL == lisp.TTLDelete {
			c.count("register/withdrawn")
			return outcome{taken: true, tell: rec}
		}
		if len(c.entries)+len(c.services.known) >= c.MaxRegistrations {
			c.refuse(now, r, rec, reasonLimit, true)
			return outcome{silent: true}
		}
		e = &entry{mapping: lisp.Mapping{EID: rec.EID}, site: r.site}
		c.entries[rec.EID] = e
		c.accept(now, e, r, rec, firstVersion(rec.Version), rec.Version == 0)
		c.took(r, rec, "register/accepted")
		return outcome{taken: true, tell: e.mapping}
	}
	if rec.TTL == lisp.TTLDelete {
		return c.withdraw(now, e, r, rec)
	}
	if r.Merge && e.merged() {
		c.merge(now, e, r, rec)
		c.took(r, rec, "register/merged")
		return outcome{taken: true, tell: e.mapping}
	}
	v, version, invented := order(e.mapping, rec.Version, r.XTRID)
	switch v {
	case older:
		// The holder itself, which was not told yet what a controller registered for it: it lives.
		for i := range e.regs {
			if o := &e.regs[i]; !r.XTRID.IsZero() && o.XTRID == r.XTRID {
				o.seen, o.expires = now, now.Add(c.lifetime(&o.Registrant))
				c.schedule(e, now)
			}
		}
		return c.refused(now, e, r, rec, reasonOlder)
	case tieLost:
		return c.refused(now, e, r, rec, reasonTie)
	case claim:
		// A mapping that nobody registers any more has no side to flap to.
		plain := r.XTRID.IsZero() && e.mapping.XTRID.IsZero()
		switch {
		case r.controller:
			e.damping.counted = false // what is announced now is another move
			e.damping.announced()
		case e.registered() && !plain && !e.damping.claim(now, c.FlapMoves, c.FlapWindow):
			c.schedule(e, now)
			return c.refused(now, e, r, rec, reasonFlapping)
		}
		e.damping.from = e.mapping.XTRID
		c.report(now, slog.LevelInfo, "mapping moved", "eid", rec.EID, "from", e.mapping.XTRID, "to", r.XTRID,
			"version", version, "announced", r.controller)
		c.accept(now, e, r, rec, version, invented)
		c.took(r, rec, "register/claimed")
		return outcome{taken: true, tell: e.mapping}
	case update:
		if e.damping.frozen && !r.controller {
			version = e.mapping.Version // stays as it is, also in the order of the other Map-Servers
		}
	}
	if r.controller {
		// The xTR's own claim came first; the controller says that it was no flapping.
		e.damping.announced()
	}
	if version == e.mapping.Version && rec.Version == 0 && e.registered() && !same(e.mapping, rec) {
		version, invented = version.Next(), true // RFC 9302 section 6: a changed mapping has a new version
	}
	c.accept(now, e, r, rec, version, invented)
	c.took(r, rec, "register/refreshed")
	return outcome{taken: true, tell: e.mapping}
}

// firstVersion is the first version of a mapping that nothing is known of.
func firstVersion(v lisp.Version) lisp.Version {
	if v == 0 {
		return v.Next()
	}
	return v
}

// took counts, and forgets what the sender was refused before.
func (c *core) took(r registering, rec lisp.Mapping, counter string) {
	c.count(counter)
	c.refusals.clear(refusedOf(r, rec, false))
}

// admit checks a record against the configuration and brings it into the form in which it is kept.
func (c *core) admit(r registering, rec *lisp.Mapping) reason {
	s, why := c.siteOf(rec.EID)
	switch {
	case why != "":
		return why
	case s != r.site && !s.sharesKey(r.key, r.controller):
		return reasonForeignKey
	}
	locators := make([]lisp.Locator, 0, len(rec.Locators))
	for _, l := range rec.Locators {
		if l.LCAF.LCAFType() == lisp.LCAFKeyValue {
			return reasonBadService // it was meant for a service: nobody could send to it
		}
		if l.LCAF == "" {
			switch {
			case !l.RLOC.IsValid() || l.RLOC.IsUnspecified() || l.RLOC.IsMulticast():
				return reasonBadLocator
			case !s.allows(l.RLOC):
				return reasonLocator
			}
		}
		// Whether the locator is local to the sender, or answered a probe of it, means nothing to
		// whoever hears of it from us (RFC 9301 section 5.4).
		l.Local, l.Probed = false, false
		locators = append(locators, l)
	}
	slices.SortStableFunc(locators, lisp.CompareLocators)
	rec.Locators = slices.CompactFunc(locators, func(a, b lisp.Locator) bool { return lisp.CompareLocators(a, b) == 0 })
	return ""
}

func (s *site) sharesKey(k *lisp.Key, controller bool) bool {
	own, ctl, ok := s.key(k.ID, k.Algorithm)
	return ok && ctl == controller && own.Secret == k.Secret
}

func (s *site) isXTRKey(id uint8) bool {
	return slices.ContainsFunc(s.Keys, func(k lisp.Key) bool { return k.ID == id })
}

// same reports whether a and b send packets to the same places.
func same(a, b lisp.Mapping) bool {
	return slices.Equal(a.Locators, b.Locators) && (len(a.Locators) > 0 || a.Action == b.Action)
}

// accept makes r's record the mapping of e, with version.
func (c *core) accept(now time.Time, e *entry, r registering, rec lisp.Mapping, version lisp.Version, invented bool) {
	before := e.durable()
	old := e.regs
	reg := c.registrant(now, r, rec)
	// What a controller says of a mapping that the xTR itself registered tells nothing new of the xTR.
	if len(old) == 1 && old[0].identity() == reg.identity() && reg.OnBehalf && !old[0].OnBehalf {
		reg.Source, reg.KeyID, reg.OnBehalf = old[0].Source, old[0].KeyID, false
	}
	e.regs = []registrant{reg}
	e.mapping = lisp.Mapping{EID: rec.EID, TTL: rec.TTL, Version: version, Action: rec.Action,
		Locators: rec.Locators, XTRID: r.XTRID, SiteID: r.SiteID}
	if len(rec.Locators) > 0 {
		e.mapping.Action = lisp.ActNone
	}
	var left []registrant
	if !same(before.Mapping, e.mapping) || before.Mapping.XTRID != e.mapping.XTRID {
		left = others(old, reg.identity())
	}
	c.changed(now, e, before, left, invented)
}

func (c *core) registrant(now time.Time, r registering, rec lisp.Mapping) registrant {
	reg := registrant{seen: now, Registrant: Registrant{
		XTRID: r.XTRID, SiteID: r.SiteID, Source: r.from, KeyID: r.key.ID, OnBehalf: r.controller,
		ProxyReply: r.ProxyReply || c.ProxyReply, UseTTL: r.UseTTL, Merge: r.Merge,
		TTL: rec.TTL, Action: rec.Action, Locators: rec.Locators,
	}}
	if r.controller && !r.XTRID.IsZero() {
		reg.Source = netip.Addr{} // that is the controller's
	}
	reg.expires = now.Add(c.lifetime(&reg.Registrant))
	return reg
}

// changed does what follows from a change of e, which was before: what is to be stored, and who is to be
// told; left are the xTRs that have the EID no more and do not know.
func (c *core) changed(now time.Time, e *entry, before Registration, left []registrant, invented bool) {
	was := len(before.Registrants) > 0
	news := was != e.registered() || !before.Mapping.Equal(e.mapping)
	if news {
		e.since = now
	}
	if news || !sameRegistrants(before.Registrants, e.regs) {
		c.storeRegistration(e.mapping.EID, e)
	}
	switch {
	case e.registered() && !was:
		c.live.Insert(e.mapping.EID, e)
	case !e.registered() && was:
		c.live.Delete(e.mapping.EID)
	}
	if !e.registered() {
		e.damping.settled()
	}
	c.schedule(e, now)
	if !news {
		return
	}
	if e.announce == nil {
		e.announce = &announcement{}
	}
	e.announce.add(e, left)
	if !invented {
		c.tell(now, e)
		return
	}
	e.announce.seq = c.seq
	c.out.batch.announce = append(c.out.batch.announce, e.mapping.EID)
}

func sameRegistrants(a []Registrant, b []registrant) bool {
	return slices.EqualFunc(a, b, func(a Registrant, b registrant) bool {
		return a.XTRID == b.XTRID && a.SiteID == b.SiteID && a.Source == b.Source && a.KeyID == b.KeyID &&
			a.OnBehalf == b.OnBehalf && a.ProxyReply == b.ProxyReply && a.UseTTL == b.UseTTL &&
			a.Merge == b.Merge && a.TTL == b.TTL && a.Action == b.Action && slices.Equal(a.Locators, b.Locators)
	})
}

// withdraw is for a record with TTL 0 (RFC 9301 section 5.4). It obeys the order of versions like any
// other, so that a late one of a host that was left changes nothing.
func (c *core) withdraw(now time.Time, e *entry, r registering, rec lisp.Mapping) outcome {
	if e.merged() {
		kept := others(e.regs, identityOf(r))
		if len(kept) < len(e.regs) {
			c.leave(now, e, kept)
		}
		c.took(r, rec, "register/withdrawn")
		rec.Version = e.mapping.Version
		return outcome{taken: true, tell: rec}
	}
	v, version, invented := order(e.mapping, rec.Version, r.XTRID)
	switch {
	case v == older && e.damping.conceded(r.XTRID):
		c.count("register/conceded")
		return outcome{silent: true}
	case v == older:
		return c.refused(now, e, r, rec, reasonOlder)
	case v == tieLost:
		return c.refused(now, e, r, rec, reasonTie)
	case invented: // somebody else who knows no version: no claim, for nobody would hold the EID then
		return c.refused(now, e, r, rec, reasonNotHolder)
	}
	before, old := e.durable(), e.regs
	e.regs = nil
	e.mapping = lisp.Mapping{EID: rec.EID, TTL: lisp.TTLDelete, Version: version, XTRID: r.XTRID, SiteID: r.SiteID}
	c.changed(now, e, before, others(old, identityOf(r)), false)
	c.took(r, rec, "register/withdrawn")
	return outcome{taken: true, tell: e.mapping}
}

func identityOf(r registering) identity {
	if r.XTRID.IsZero() {
		return identity{source: r.from}
	}
	return identity{xtr: r.XTRID}
}

// leave takes registrants away from e, because they withdrew or expired: kept remain.
func (c *core) leave(now time.Time, e *entry, kept []registrant) {
	before := e.durable()
	e.regs = kept
	if len(kept) > 0 {
		c.unite(now, e, before, 0)
		return
	}
	e.mapping = lisp.Mapping{EID: e.mapping.EID, TTL: lisp.TTLDelete, Version: e.mapping.Version,
		XTRID: e.mapping.XTRID, SiteID: e.mapping.SiteID}
	c.changed(now, e, before, nil, false)
}

// merge adds r's locators to those of the other registrants (a bit of RFC 9301 section 5.6).
func (c *core) merge(now time.Time, e *entry, r registering, rec lisp.Mapping) {
	before := e.durable()
	e.regs = append(others(e.regs, identityOf(r)), c.registrant(now, r, rec))
	slices.SortStableFunc(e.regs, func(a, b registrant) int { return a.XTRID.Compare(b.XTRID) })
	c.unite(now, e, before, rec.Version)
}

// unite makes the mapping of merged registrants: the union of their locators, the lowest xTR-ID, the
// shortest TTL. A change of it gets a version of its own.
func (c *core) unite(now time.Time, e *entry, before Registration, version lisp.Version) {
	m := lisp.Mapping{EID: e.mapping.EID, TTL: lisp.TTLLocal, Version: e.mapping.Version,
		Action: e.regs[0].Action, XTRID: e.regs[0].XTRID, SiteID: e.regs[0].SiteID}
	// The last one to speak of an RLOC knows it best.
	bySeen := slices.SortedStableFunc(slices.Values(e.regs), func(a, b registrant) int { return b.seen.Compare(a.seen) })
	for _, r := range bySeen {
		m.TTL = min(m.TTL, r.TTL)
		m.Locators = append(m.Locators, r.Locators...)
	}
	slices.SortStableFunc(m.Locators, lisp.CompareLocators)
	m.Locators = slices.CompactFunc(m.Locators, func(a, b lisp.Locator) bool { return lisp.CompareLocators(a, b) == 0 })
	if len(m.Locators) > 0 {
		m.Action = lisp.ActNone
	}
	invented := false
	switch {
	case version.Newer(m.Version):
		m.Version = version
	case !same(m, e.mapping) || m.TTL != e.mapping.TTL || m.XTRID != e.mapping.XTRID:
		m.Version, invented = m.Version.Next(), true
	}
	e.mapping = m
	c.changed(now, e, before, nil, invented)
}
