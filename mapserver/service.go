package mapserver

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
)

// service is a Service with what need not outlive the process.
type service struct {
	Service
	alarm alarm
	seen  time.Time // of the last Map-Register
}

// services are the service addresses that controllers have registered. They are no part of what Map-Requests
// are answered from: who asks for a service address is told of the prefix that covers it, which the D-ETRs
// have registered. They live until a controller withdraws them, for it may be dead for days.
type services struct {
	known    map[lisp.EID]*service    // by service address, withdrawn ones too
	outsides mapcache.Table[*service] // the registered ones by service address
	// insides are the registered ones by EID: those whose service address is IPv4, and IPv6. An EID has one
	// of each at most.
	insides [2]mapcache.Table[*service]
}

func (s *service) registered() bool { return s.Mapping.TTL != lisp.TTLDelete }

// insidesOf is the table of those whose service address is of the family of e.
func (t *services) insidesOf(e lisp.EID) *mapcache.Table[*service] {
	if e.Prefix.Addr().Is4() {
		return &t.insides[0]
	}
	return &t.insides[1]
}

// insert makes s one of those that are registered.
func (t *services) insert(s *service) {
	t.outsides.Insert(s.Mapping.EID, s)
	t.insidesOf(s.Mapping.EID).Insert(lisp.MakeEID(0, s.Mapping.Inside), s)
}

// remove is for a service that was registered with mapping m, and is not any more.
func (t *services) remove(m lisp.Mapping) {
	t.outsides.Delete(m.EID)
	t.insidesOf(m.EID).Delete(lisp.MakeEID(0, m.Inside))
}

// registered is the service at exactly eid, nil if there is none.
func (t *services) registered(eid lisp.EID) *service {
	if s := t.known[eid]; s != nil && s.registered() {
		return s
	}
	return nil
}

// overlapping is a service of table whose key overlaps e, other than that of the service address self.
func overlapping(table *mapcache.Table[*service], e, self lisp.EID) *service {
	if s, ok := table.Get(e); ok && s.Mapping.EID != self {
		return s
	}
	for _, s := range table.Supernets(e) {
		if s.Mapping.EID != self {
			return s
		}
	}
	for _, s := range table.Subnets(e) {
		if s.Mapping.EID != self {
			return s
		}
	}
	return nil
}

// restoreServices brings back what was stored before a restart. What the configuration no longer allows is
// left in the store and not told to anybody: no controller could withdraw it.
func (c *core) restoreServices(stored []Service, now time.Time) {
	c.services.known = make(map[lisp.EID]*service, len(stored))
	live := make([]*service, 0, len(stored))
	for _, st := range stored {
		eid := st.Mapping.EID
		if _, why := c.siteOf(eid); why != "" {
			c.count("service/not-configured")
			c.report(now, slog.LevelWarn, "service address is not configured any more", "eid", eid, "reason", string(why))
			continue
		}
		s := &service{Service: st, seen: now}
		c.services.known[eid] = s
		if s.registered() {
			live = append(live, s)
		} else {
			c.alarms.set(&s.alarm, s, later(now, s.Since.Add(c.Remember)))
		}
	}
	c.services.outsides.Replace(func(yield func(lisp.EID, *service) bool) {
		for _, s := range live {
			if !yield(s.Mapping.EID, s) {
				return
			}
		}
	})
	for family := range c.services.insides {
		c.services.insides[family].Replace(func(yield func(lisp.EID, *service) bool) {
			for _, s := range live {
				if s.Mapping.EID.Prefix.Addr().Is4() == (family == 0) && !yield(lisp.MakeEID(0, s.Mapping.Inside), s) {
					return
				}
			}
		})
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// due is for the alarm: a withdrawn service is forgotten, its version with it.
func (s *service) due(c *core, _ time.Time) {
	delete(c.services.known, s.Mapping.EID)
	c.storeService(s.Mapping.EID, nil)
}

func (c *core) storeService(eid lisp.EID, s *service) {
	b := &c.out.batch
	if b.Services == nil {
		b.Services = map[lisp.EID]*Service{}
	}
	if s == nil {
		b.Services[eid] = nil
		return
	}
	st := s.Service
	b.Services[eid] = &st
}

// ofService reports whether rec speaks of a service: it says so, or a controller withdraws what is one.
func (c *core) ofService(r registering, rec lisp.Mapping) bool {
	return rec.IsService() || r.controller && rec.TTL == lisp.TTLDelete && rec.Negative() && c.services.registered(rec.EID) != nil
}

// service does what a record that speaks of a service asks for. The order of versions is that of other
// mappings, of an xTR that is always the same: the controllers are one.
func (c *core) service(now time.Time, r registering, rec lisp.Mapping) outcome {
	if why := c.admitService(r, rec); why != "" {
		c.refuse(now, r, rec, why, true)
		return c.denied(r, rec)
	}
	s, version := c.services.known[rec.EID], rec.Version
	switch {
	case s != nil:
		var v verdict
		if v, version, _ = order(s.Mapping, rec.Version, lisp.XTRID{}); v == older {
			c.refuse(now, r, rec, reasonOlder, true)
			return outcome{tell: s.Mapping}
		}
	case rec.TTL == lisp.TTLDelete:
		if _, why := c.siteOf(rec.EID); why != "" {
			c.storeService(rec.EID, nil) // it may be there from a time when it was configured
		}
		c.tookService(r, rec, "service/withdrawn")
		return outcome{taken: true, tell: rec}
	case len(c.entries)+len(c.services.known) >= c.MaxRegistrations:
		c.refuse(now, r, rec, reasonLimit, true)
		return outcome{silent: true}
	default:
		s = &service{}
	}
	if rec.TTL == lisp.TTLDelete {
		c.setService(now, s, r, lisp.Mapping{EID: rec.EID, TTL: lisp.TTLDelete, Version: version, Action: lisp.ActDrop,
			Inside: s.Mapping.Inside})
		c.tookService(r, rec, "service/withdrawn")
		return outcome{taken: true, tell: s.Mapping}
	}
	if why, holder := c.conflict(rec); why != "" {
		c.refuseHeld(now, r, rec, why, true, holderOf(holder))
		return outcome{tell: holder}
	}
	c.setService(now, s, r, lisp.Mapping{EID: rec.EID, TTL: rec.TTL, Version: version, Action: lisp.ActDrop, Inside: rec.Inside})
	c.tookService(r, rec, "service/accepted")
	return outcome{taken: true, tell: s.Mapping}
}

// admitService checks a record that speaks of a service against the configuration: both the service address
// and the EID are ones that the sender's site may register, with a controller's key.
func (c *core) admitService(r registering, rec lisp.Mapping) reason {
	if !r.controller {
		return reasonNoController
	}
	withdrawal := rec.TTL == lisp.TTLDelete
	s, why := c.siteOf(rec.EID)
	switch {
	case withdrawal && why != "":
		return "" // what is not configured is not told to anybody, and may as well be forgotten
	case why != "":
		return why
	case s != r.site && !s.sharesKey(r.key, true):
		return reasonForeignKey
	case withdrawal:
		return ""
	case rec.Version == 0:
		return reasonNoVersion // what we would number, another Map-Server would number otherwise
	}
	switch _, in, ok := c.configured.LookupEID(lisp.MakeEID(0, rec.Inside)); {
	case !ok:
		return reasonInsideSite
	case in != r.site && !in.sharesKey(r.key, true):
		return reasonForeignKey
	}
	return ""
}

// denied is for a service that is not admitted, whatever else is registered: a controller is answered so, for
// otherwise this Map-Server would be a silent one to it.
func (c *core) denied(r registering, rec lisp.Mapping) outcome {
	return outcome{silent: !r.controller, tell: lisp.Mapping{EID: rec.EID, TTL: c.UnregisteredTTL, Version: rec.Version,
		Action: lisp.ActDropPolicyDenied}}
}

// ofNoSite finds the controller of a message none of whose records is of a configured prefix, among them
// services: it is to hear of that.
func (c *core) ofNoSite(r *registering, raw []byte) bool {
	if !slices.ContainsFunc(r.Records, lisp.Mapping.IsService) {
		return false
	}
	for i := range c.Sites {
		s := c.sites[c.Sites[i].Name]
		key, controller, ok := s.key(r.Auth.KeyID, r.Auth.Algorithm)
		if ok && controller && c.verify(*r, raw, key) == "" {
			r.site, r.key, r.controller = s, key, true
			return true
		}
	}
	return false
}

// conflict finds what stands in the way of a service: another one (one-to-one holds within each family of
// service addresses, and nothing is translated twice), or a VM that has a service address as its EID. A
// VM that runs is not cut off by a service: the service has to wait, or to have another address.
func (c *core) conflict(m lisp.Mapping) (reason, lisp.Mapping) {
	inside := lisp.MakeEID(0, m.Inside)
	for _, k := range []struct {
		why   reason
		table *mapcache.Table[*service]
		at    lisp.EID
	}{
		{reasonOverlap, &c.services.outsides, m.EID},
		{reasonInsideTaken, c.services.insidesOf(m.EID), inside},
		{reasonTwice, &c.services.outsides, inside},
		{reasonTwice, &c.services.insides[0], m.EID},
		{reasonTwice, &c.services.insides[1], m.EID},
	} {
		if o := overlapping(k.table, k.at, m.EID); o != nil {
			return k.why, o.Mapping
		}
	}
	// What is registered to be merged is a prefix of the D-ETRs; what a VM has is not.
	if e, ok := c.live.Get(m.EID); ok && !e.merged() {
		return reasonVM, e.mapping
	}
	for _, e := range c.live.Subnets(m.EID) {
		if !e.merged() {
			return reasonVM, e.mapping
		}
	}
	return "", lisp.Mapping{}
}

// serviceAt is the service whose addresses include all of rec's EID, which rec claims for a VM; nil if there
// is none. D-ETRs register service prefixes, to be merged: these may be what a service has, too.
func (c *core) serviceAt(r registering, rec lisp.Mapping) *service {
	if r.Merge || rec.TTL == lisp.TTLDelete {
		return nil
	}
	_, s, _ := c.services.outsides.LookupEID(rec.EID)
	return s
}

// setService makes m the mapping of s. Sinks are told of a change; nobody else is, for no xTR gains or
// loses anything.
func (c *core) setService(now time.Time, s *service, r registering, m lisp.Mapping) {
	before, known := s.Service, c.services.known[m.EID] != nil
	s.Mapping, s.Site, s.Source, s.KeyID, s.seen = m, r.site.Name, r.from, r.key.ID, now
	if !before.Mapping.Equal(m) {
		s.Since = now
		was := known && before.Mapping.TTL != lisp.TTLDelete
		stays := was && s.registered() && before.Mapping.Inside == m.Inside
		if was && !stays {
			c.services.remove(before.Mapping)
		}
		c.services.known[m.EID] = s
		if s.registered() && !stays {
			c.services.insert(s)
			c.alarms.stop(&s.alarm)
		}
		if !s.registered() {
			c.alarms.set(&s.alarm, s, now.Add(c.Remember))
		}
		c.out.put = append(c.out.put, m.EID)
		c.report(now, slog.LevelInfo, "service address", "eid", m.EID, "inside", m.Inside, "version", m.Version,
			"registered", s.registered())
		c.storeService(m.EID, s)
		return
	}
	if before.Site != s.Site || before.Source != s.Source || before.KeyID != s.KeyID {
		c.storeService(m.EID, s)
	}
}

// repeatService is what a record of a service would be answered if it had been processed before, and it has.
func (c *core) repeatService(r registering, rec lisp.Mapping) outcome {
	if c.admitService(r, rec) != "" {
		return c.denied(r, rec)
	}
	s, withdrawal := c.services.known[rec.EID], rec.TTL == lisp.TTLDelete
	if s == nil && withdrawal {
		return outcome{taken: true, tell: rec}
	}
	if s != nil && (rec.Version == 0 || rec.Version == s.Mapping.Version) && withdrawal != s.registered() &&
		(withdrawal || rec.Inside == s.Mapping.Inside) {
		return outcome{taken: true, tell: s.Mapping}
	}
	if why, holder := c.conflict(rec); why != "" && !withdrawal {
		return outcome{tell: holder}
	}
	if s == nil {
		return outcome{silent: true}
	}
	return outcome{tell: s.Mapping}
}

// tookService counts, and forgets what a controller was refused before.
func (c *core) tookService(r registering, rec lisp.Mapping, counter string) {
	c.count(counter)
	c.refusals.clear(refusedOf(r, rec, true))
}

// holderOf prints whom a refused record collides with.
func holderOf(m lisp.Mapping) string {
	switch {
	case m.IsService():
		return fmt.Sprintf("service address %s of %s, version %d", m.EID, m.Inside, m.Version)
	case m.XTRID.IsZero():
		return fmt.Sprintf("%s at %s, version %d", m.EID, rlocs(m), m.Version)
	}
	return fmt.Sprintf("%s at %s of xTR %s, version %d", m.EID, rlocs(m), m.XTRID, m.Version)
}
