package mapserver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// MappingRow is a line of "show mappings": what this Map-Server would answer.
type MappingRow struct {
	EID      lisp.EID     `json:"eid"`
	Version  lisp.Version `json:"version"`
	RLOCs    string       `json:"rlocs"` // "RLOC priority/weight", or the action
	TTL      lisp.TTL     `json:"ttl_minutes"`
	XTRID    lisp.XTRID   `json:"xtr_id"`
	Answered string       `json:"answered"` // "here" or "by the ETR"
}

// RegistrationRow is a line of "show registrations": one xTR's registration of an EID, a version that is
// remembered, or a refusal.
type RegistrationRow struct {
	EID     lisp.EID     `json:"eid"`
	State   string       `json:"state"` // registered, merged, frozen, withdrawn, refused
	Site    string       `json:"site"`
	XTRID   lisp.XTRID   `json:"xtr_id"`
	Version lisp.Version `json:"version"`
	RLOCs   string       `json:"rlocs"`
	Source  string       `json:"source"` // where Map-Registers come from
	Key     string       `json:"key_id"`
	Flags   string       `json:"flags"`   // P proxy reply, T use TTL, a merge, C only a controller registered
	Since   time.Time    `json:"since"`   // of the last change of the mapping, or of the refusal
	Expires string       `json:"expires"` // without a refresh, in so much time
	Refused string       `json:"refused"` // why, and how often in a row
}

// ServiceRow is a line of "show services": a service address that a controller registered, one whose version is
// remembered, or a refusal.
type ServiceRow struct {
	Service lisp.EID     `json:"service_address"`
	Inside  netip.Prefix `json:"inside,omitzero"` // the EID that map646 translates it to
	State   string       `json:"state"`           // registered, withdrawn, refused
	Site    string       `json:"site"`
	Version lisp.Version `json:"version"`
	Source  string       `json:"source"` // where the controller's Map-Registers come from
	Key     string       `json:"key_id"`
	Since   time.Time    `json:"since"`   // of the last change, or of the refusal
	Refused string       `json:"refused"` // why, who stands in the way, and how often in a row
}

// SubscriberRow is a line of "show subscribers".
type SubscriberRow struct {
	EID     lisp.EID   `json:"eid"`
	XTRID   lisp.XTRID `json:"xtr_id"`
	RLOCs   string     `json:"itr_rlocs"`
	Nonce   string     `json:"nonce"`   // of the last Map-Notify, hexadecimal
	Waiting int        `json:"waiting"` // Map-Notifies that are not acknowledged
	Expires string     `json:"expires"` // of a subscription to an EID that is not registered, or a removed one
	State   string     `json:"state"`   // subscribed, temporary, removed
}

// CounterRow is a line of "show counters".
type CounterRow struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Shows are the tables that a Map-Server has, by name. Each returns a slice of rows.
func (s *Server) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"mappings":      show(s, (*core).mappingRows),
		"registrations": show(s, (*core).registrationRows),
		"services":      show(s, (*core).serviceRows),
		"subscribers":   show(s, (*core).subscriberRows),
		"counters": func(ctx context.Context) (any, error) {
			m, err := s.Counters(ctx)
			if err != nil {
				return nil, err
			}
			rows := make([]CounterRow, 0, len(m))
			for _, name := range slices.Sorted(maps.Keys(m)) {
				rows = append(rows, CounterRow{name, m[name]})
			}
			return rows, nil
		},
	}
}

func show[R any](s *Server, rows func(*core, time.Time) []R) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) {
		var out []R
		err := s.ask(ctx, func(c *core, now time.Time) { out = rows(c, now) })
		return out, err
	}
}

// Counters are the numbers of what happened since the start, by name, and some gauges ("now/...").
func (s *Server) Counters(ctx context.Context) (map[string]uint64, error) {
	var m map[string]uint64
	err := s.ask(ctx, func(c *core, _ time.Time) {
		m = maps.Clone(c.counters)
		m["now/registered"] = uint64(c.live.Len())
		m["now/known-eids"] = uint64(len(c.entries))
		m["now/services"] = uint64(c.services.outsides.Len())
		m["now/known-services"] = uint64(len(c.services.known))
		m["now/subscriptions"] = uint64(len(c.subs))
		m["now/unacknowledged"] = uint64(len(c.pending))
	})
	if err != nil {
		return nil, err
	}
	for name, n := range s.ep.Counters() {
		m["control/"+name] = n
	}
	m["request/dropped/queue-full"] = s.requestsLost.Load()
	m["publish/dropped/queue-full"] = s.bulkLost.Load()
	m["send/failed"] = s.unsent.Load()
	m["store/batches"] = s.batches.Load()
	m["store/failed"] = s.unstored.Load()
	for _, q := range s.sinks {
		m["sink/"+q.name+"/applied"] = q.applied.Load()
		m["sink/"+q.name+"/failed"] = q.failed.Load()
	}
	return m, nil
}

func (c *core) mappingRows(time.Time) []MappingRow {
	rows := make([]MappingRow, 0, c.live.Len())
	for eid, e := range c.live.All() {
		r := MappingRow{EID: eid, Version: e.mapping.Version, RLOCs: rlocs(e.mapping), TTL: e.mapping.TTL,
			XTRID: e.mapping.XTRID, Answered: "by the ETR"}
		if e.proxied() {
			r.Answered = "here"
		}
		rows = append(rows, r)
	}
	return rows
}

// rlocs prints the locators of m.
func rlocs(m lisp.Mapping) string {
	if m.Negative() {
		return m.Action.String()
	}
	s := make([]string, len(m.Locators))
	for i, l := range m.Locators {
		s[i] = fmt.Sprintf("%s %d/%d", l.RLOC, l.Priority, l.Weight)
		if !l.Usable() {
			s[i] += " unusable"
		}
	}
	return strings.Join(s, ", ")
}

func (e *entry) state() string {
	switch {
	case !e.registered():
		return "withdrawn"
	case e.damping.frozen:
		return "frozen"
	case e.merged():
		return "merged"
	}
	return "registered"
}

func (c *core) registrationRows(now time.Time) []RegistrationRow {
	byKey := map[refusalKey]refusal{}
	for _, x := range c.refusals.all() {
		if !x.service {
			byKey[x.refusalKey] = x
		}
	}
	var rows []RegistrationRow
	for eid, e := range c.entries {
		row := RegistrationRow{EID: eid, State: e.state(), Version: e.mapping.Version, XTRID: e.mapping.XTRID, Since: e.since}
		if e.site != nil {
			row.Site = e.site.Name
		}
		if !e.registered() {
			row.Expires = left(e.since.Add(c.Remember), now)
			rows = append(rows, row)
		}
		for i := range e.regs {
			r, row := &e.regs[i], row
			row.XTRID, row.Key, row.Flags = r.XTRID, fmt.Sprint(r.KeyID), r.flags()
			row.RLOCs = rlocs(lisp.Mapping{Locators: r.Locators, Action: r.Action})
			row.Expires = left(r.expires, now)
			if r.Source.IsValid() {
				row.Source = r.Source.String()
			}
			k := refusalKey{xtr: r.XTRID, eid: eid}
			if x, ok := byKey[k]; ok && x.known {
				row.Refused = x.String()
				delete(byKey, k)
			}
			rows = append(rows, row)
		}
	}
	for k, x := range byKey {
		row := RegistrationRow{EID: k.eid, State: "refused", XTRID: k.xtr, Version: x.version, Since: x.at, Refused: x.String()}
		if x.from.IsValid() {
			row.Source = x.from.String()
		}
		if s, _ := c.siteOf(k.eid); s != nil {
			row.Site = s.Name
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b RegistrationRow) int {
		return cmp.Or(a.EID.Compare(b.EID), cmp.Compare(a.State, b.State), a.XTRID.Compare(b.XTRID))
	})
	return rows
}

func (x refusal) String() string {
	if x.holder != "" {
		return fmt.Sprintf("%s: %s (%d times)", x.why, x.holder, x.times)
	}
	return fmt.Sprintf("%s (%d times)", x.why, x.times)
}

func (c *core) serviceRows(time.Time) []ServiceRow {
	refused := map[lisp.EID]refusal{}
	for _, x := range c.refusals.all() {
		if x.service {
			refused[x.eid] = x
		}
	}
	rows := make([]ServiceRow, 0, len(c.services.known))
	for eid, s := range c.services.known {
		row := ServiceRow{Service: eid, Inside: s.Mapping.Inside, State: "registered", Site: s.Site, Version: s.Mapping.Version,
			Source: s.Source.String(), Key: fmt.Sprint(s.KeyID), Since: s.Since}
		if !s.registered() {
			row.State = "withdrawn"
		}
		if x, ok := refused[eid]; ok && x.known {
			row.Refused = x.String()
			delete(refused, eid)
		}
		rows = append(rows, row)
	}
	for eid, x := range refused {
		row := ServiceRow{Service: eid, State: "refused", Version: x.version, Source: x.from.String(), Since: x.at, Refused: x.String()}
		if s, _ := c.siteOf(eid); s != nil {
			row.Site = s.Name
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b ServiceRow) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.State, b.State))
	})
	return rows
}

func (r *registrant) flags() string {
	var s strings.Builder
	for _, f := range []struct {
		on   bool
		name string
	}{{r.ProxyReply, "P"}, {r.UseTTL, "T"}, {r.Merge, "a"}, {r.OnBehalf, "C"}} {
		if f.on {
			s.WriteString(f.name)
		}
	}
	return s.String()
}

// left prints the time from now until at.
func left(at, now time.Time) string { return at.Sub(now).Round(time.Second).String() }

func (c *core) subscriberRows(now time.Time) []SubscriberRow {
	waiting := map[SubscriptionKey]int{}
	for k := range c.pending {
		waiting[k.sub]++
	}
	rows := make([]SubscriberRow, 0, len(c.subs))
	for k, s := range c.subs {
		row := SubscriberRow{EID: k.EID, XTRID: k.XTRID, RLOCs: addrs(s.RLOCs), Nonce: fmt.Sprintf("%016x", s.sent),
			Waiting: waiting[k], State: "subscribed"}
		if !s.Expires.IsZero() {
			row.State, row.Expires = "temporary", left(s.Expires, now)
		}
		if s.Removed {
			row.State = "removed"
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b SubscriberRow) int { return cmp.Or(a.EID.Compare(b.EID), a.XTRID.Compare(b.XTRID)) })
	return rows
}

func addrs(as []netip.Addr) string {
	s := make([]string, len(as))
	for i, a := range as {
		s[i] = a.String()
	}
	return strings.Join(s, ", ")
}

// Explain says what this Map-Server believes of e, and why.
func (s *Server) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	var out []lisp.Finding
	err := s.ask(ctx, func(c *core, now time.Time) { out = c.explain(now, e) })
	return out, err
}

func (c *core) explain(now time.Time, eid lisp.EID) []lisp.Finding {
	var out []lisp.Finding
	add := func(part, says, why string) { out = append(out, lisp.Finding{Part: part, Says: says, Why: why}) }
	if prefix, site, ok := c.configured.LookupEID(eid); ok {
		add("sites", fmt.Sprintf("%s may be registered by site %q", eid, site.Name), "configured prefix "+prefix.String())
	} else {
		add("sites", fmt.Sprintf("%s may not be registered", eid), "no configured prefix covers it")
	}
	c.explainServices(now, eid, add)
	e, known := c.entries[eid]
	if match, live, ok := c.live.LookupEID(eid); ok && !known {
		e, known = live, true
		add("registrations", fmt.Sprintf("%s itself is not registered, %s is", eid, match), "longest-prefix match")
	}
	switch {
	case !known:
		add("registrations", "not registered", "no Map-Register was accepted for it")
	case !e.registered():
		add("registrations", fmt.Sprintf("%s is withdrawn at version %d", e.mapping.EID, e.mapping.Version),
			fmt.Sprintf("xTR %s withdrew it or did not refresh it, at %s", e.mapping.XTRID, e.since.Format(time.RFC3339)))
	}
	if known {
		for i := range e.regs {
			r := &e.regs[i]
			from := "a controller on its behalf"
			if !r.OnBehalf {
				from = r.Source.String()
			}
			add("registrations", fmt.Sprintf("%s -> %s, version %d", e.mapping.EID,
				rlocs(lisp.Mapping{Locators: r.Locators, Action: r.Action}), e.mapping.Version),
				fmt.Sprintf("registered by xTR %s from %s %s ago, changed at %s, expires in %s", r.XTRID, from,
					now.Sub(r.seen).Round(time.Second), e.since.Format(time.RFC3339), left(r.expires, now)))
		}
		if e.damping.frozen {
			add("registrations", "stays where it is: several xTRs claim it to and fro",
				fmt.Sprintf("%d moves within %s without a controller; last claim refused %s ago",
					len(e.damping.moves), c.FlapWindow, now.Sub(e.damping.last).Round(time.Second)))
		}
	}
	for _, x := range c.refusals.all() {
		if x.eid.Contains(eid) || eid.Contains(x.eid) {
			part, who := "registrations", "xTR "+x.xtr.String()
			if x.service {
				part, who = "services", "a controller"
			}
			add(part, fmt.Sprintf("%s was refused %s with version %d", who, x.eid, x.version),
				fmt.Sprintf("%s, last at %s from %s", x, x.at.Format(time.RFC3339), x.from))
		}
	}
	switch e, ms := c.lookup(eid); {
	case e != nil && len(ms) == 0:
		add("answers", "a Map-Request is forwarded to the ETR", "no registration has the P bit")
	case e == nil:
		add("answers", fmt.Sprintf("%s: %s for %d min", ms[0].EID, ms[0].Action, ms[0].TTL), "no registration covers it")
	default:
		for _, m := range ms {
			add("answers", fmt.Sprintf("%s -> %s, version %d", m.EID, rlocs(m), m.Version), "registered with the P bit")
		}
	}
	for s := range c.covering(eid) {
		add("subscribers", fmt.Sprintf("xTR %s at %s is told of changes", s.XTRID, addrs(s.RLOCs)), "subscribed to "+s.EID.String())
	}
	return out
}

// explainServices says what is known of eid as a service address, and as what services translate to.
func (c *core) explainServices(now time.Time, eid lisp.EID, add func(part, says, why string)) {
	why := func(s *service) string {
		return fmt.Sprintf("registered by a controller from %s, version %d, %s ago, changed at %s; it stays until a controller withdraws it",
			s.Source, s.Mapping.Version, now.Sub(s.seen).Round(time.Second), s.Since.Format(time.RFC3339))
	}
	if match, s, ok := c.services.outsides.LookupEID(eid); ok {
		add("services", fmt.Sprintf("service address %s is translated to %s by the D-ETRs", match, s.Mapping.Inside), why(s))
		if e, _ := c.lookup(eid); e == nil || !e.merged() {
			add("services", "no D-ETR has registered a prefix that covers it",
				"xTRs learn from the prefix where to send what is for a service address")
		}
	} else if s := c.services.known[eid]; s != nil {
		add("services", fmt.Sprintf("service address %s is withdrawn at version %d", eid, s.Mapping.Version),
			fmt.Sprintf("a controller withdrew it, at %s", s.Since.Format(time.RFC3339)))
	}
	for i := range c.services.insides {
		if match, s, ok := c.services.insides[i].LookupEID(eid); ok {
			add("services", fmt.Sprintf("%s has service address %s", match, s.Mapping.EID), why(s))
		}
	}
}
