package detr

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// MappingRow is a line of "show mappings": a mapping of the cloud that the data plane forwards by.
type MappingRow struct {
	EID         lisp.EID     `json:"eid"`
	Version     lisp.Version `json:"version"`
	RLOCs       string       `json:"rlocs"` // "RLOC priority/weight", or the action
	TTL         lisp.TTL     `json:"ttl_minutes"`
	XTRID       lisp.XTRID   `json:"xtr_id"`
	InstalledAt time.Time    `json:"installed_at"` // when the data plane had it
	Packets     uint64       `json:"packets"`
}

// CacheRow is a line of "show map-cache": what is known of an EID outside.
type CacheRow struct {
	EID         lisp.EID  `json:"eid"`
	RLOCs       string    `json:"rlocs"`
	Do          string    `json:"does"` // encapsulate, native or drop
	Via         string    `json:"via"`  // who said so
	InstalledAt time.Time `json:"installed_at"`
	Expires     time.Time `json:"expires"`
	Packets     uint64    `json:"packets"`
}

// RegistrationRow is a line of "show registrations": what we stand for at a Map-Server.
type RegistrationRow struct {
	EID       lisp.EID  `json:"eid"`
	MapServer string    `json:"map_server"`
	Where     string    `json:"where"` // the Map-Server is: outside, or in the own cloud
	State     string    `json:"state"` // none, sent, registered or withdrawing
	Tries     int       `json:"tries"` // Map-Registers since the last confirmation
	Heard     time.Time `json:"heard"` // when it last confirmed
	RLOCs     string    `json:"rlocs"` // of all D-ETRs, as it says
}

// CounterRow is a line of "show counters".
type CounterRow struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Shows are the tables that a D-ETR has, by name. Each returns a slice of rows.
func (d *DETR) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"mappings":      func(context.Context) (any, error) { return d.mappingRows(), nil },
		"map-cache":     func(ctx context.Context) (any, error) { return rows(ctx, d, d.cacheRows) },
		"registrations": func(ctx context.Context) (any, error) { return rows(ctx, d, d.registrationRows) },
		"counters":      func(ctx context.Context) (any, error) { return rows(ctx, d, d.counterRows) },
	}
}

// rows runs f on the goroutine that owns what it reads.
func rows[T any](ctx context.Context, d *DETR, f func() []T) (any, error) {
	var out []T
	err := d.ask(ctx, func(time.Time) { out = f() })
	return out, err
}

func (d *DETR) mappingRows() []MappingRow {
	all := d.anchor.all()
	out := make([]MappingRow, 0, len(all))
	for _, i := range all {
		m := i.mapping
		out = append(out, MappingRow{
			EID: m.EID, Version: m.Version, RLOCs: locatorsString(m), TTL: m.TTL, XTRID: m.XTRID,
			InstalledAt: i.at, Packets: d.packets(m.EID),
		})
	}
	return out
}

func (d *DETR) cacheRows() []CacheRow {
	out := make([]CacheRow, 0, d.res.cache.Len())
	for e, c := range d.res.cache.All() {
		out = append(out, CacheRow{
			EID: e, RLOCs: locatorsString(c.mapping), Do: doing(d.res.route(c.mapping).Do), Via: c.via,
			InstalledAt: c.installed, Expires: c.expires, Packets: d.packets(e),
		})
	}
	return out
}

func doing(do fib.Do) string {
	switch do {
	case fib.Encap:
		return "encapsulate"
	case fib.Native:
		return "native"
	}
	return "drop"
}

func (d *DETR) registrationRows() []RegistrationRow {
	var out []RegistrationRow
	for _, reg := range d.registrars() {
		for _, s := range reg.servers {
			for _, r := range reg.records {
				out = append(out, RegistrationRow{
					EID: r.EID, MapServer: s.Addr.String(), Where: reg.where, State: s.state.String(), Tries: s.tries, Heard: s.heard,
					RLOCs: united(s.rlocs[r.EID]),
				})
			}
		}
	}
	return out
}

func united(ls []lisp.Locator) string {
	if len(ls) == 0 {
		return ""
	}
	return locatorsString(lisp.Mapping{Locators: ls})
}

func (d *DETR) counterRows() []CounterRow {
	all := maps.Clone(d.counts)
	maps.Copy(all, d.anchor.counters())
	for k, v := range d.res.counts {
		all["resolver/"+k] = v
	}
	all["serving"], all["drained"] = 0, 0
	if d.serving {
		all["serving"] = 1
	}
	if d.drain.on() {
		all["drained"] = 1
	}
	out := make([]CounterRow, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, CounterRow{k, all[k]})
	}
	return out
}

// ServiceState is a service as the feed tells of it, and what becomes of it here.
type ServiceState struct {
	fib.Service
	Version lisp.Version
	// Why it is ignored here; empty: it is translated.
	Why string
	// Before: it is of before the restart, and the feed has not spoken of it yet.
	Before bool
	// Since is when it was first translated as it is now; zero: it is not.
	Since time.Time
}

// Services lists what the feed tells of, sorted by service address. The number changes with the list, and is never
// 0: if it is still have, there is no list.
func (d *DETR) Services(have uint64) (number uint64, all []ServiceState) {
	d.anchor.mu.Lock()
	s := d.anchor.services
	number = s.changes + 1
	if number == have {
		d.anchor.mu.Unlock()
		return number, nil
	}
	list := make([]*service, 0, len(s.told))
	for _, t := range s.told {
		list = append(list, t)
	}
	d.anchor.mu.Unlock()
	slices.SortFunc(list, func(a, b *service) int { return a.Outside.Compare(b.Outside) })
	all = make([]ServiceState, len(list))
	for i, t := range list {
		all[i] = ServiceState{Service: t.Service, Version: t.version, Why: t.why, Before: t.warm, Since: t.at}
	}
	return number, all
}

// Explain says what this D-ETR does with packets for e, and why.
func (d *DETR) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	if pool := d.cfg.Services.Pool; pool.IsValid() && lisp.MakeEID(0, pool).Contains(e) {
		return []lisp.Finding{{
			Part: "pool", Says: "packets from VMs with an IPv4 service address are translated to IPv4, others are dropped",
			Why: fmt.Sprintf("%v stands for IPv4 here (RFC 6052)", pool),
		}}, nil
	}
	if t, ok := d.anchor.serviceOf(e); ok {
		says, why := fmt.Sprintf("translated to %v (%v)", t.Inside, t.Kind()), fmt.Sprintf("version %d, since %s", t.version, t.at.Format(time.RFC3339Nano))
		switch {
		case t.why != "":
			says, why = "ignored: "+t.why, fmt.Sprintf("the feed has %v, version %d", t.Service, t.version)
		case t.warm:
			why = "so it was before the restart, and no Map-Server has sent everything yet"
		}
		out := []lisp.Finding{{Part: "services", Says: t.Outside.String() + " is " + says, Why: why}}
		if t.why != "" {
			return out, nil
		}
		// Where its packets go is the EID's matter.
		more, err := d.explainOwn(ctx, lisp.MakeEID(0, t.Inside))
		return append(out, more...), err
	}
	if _, own := d.cfg.own(e); own {
		return d.explainOwn(ctx, e)
	}
	if d.cfg.home(e) {
		return []lisp.Finding{{Part: "services", Says: "packets are dropped", Why: "it is in a service prefix, and no Map-Server tells of a service"}}, nil
	}
	var out []lisp.Finding
	err := d.ask(ctx, func(now time.Time) { out = d.explainOutside(e, now) })
	return out, err
}

// explainOwn is for an EID in an aggregate.
func (d *DETR) explainOwn(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	aggregate, _ := d.cfg.own(e)
	var out []lisp.Finding
	if i, ok := d.anchor.covering(e); ok {
		m := i.mapping
		out = append(out, lisp.Finding{
			Part: "mappings",
			Says: fmt.Sprintf("%v is at %s, version %d of xTR %v", m.EID, locatorsString(m), m.Version, m.XTRID),
			Why:  fmt.Sprintf("the newest that the feed has; in the data plane since %s", i.at.Format(time.RFC3339Nano)),
		})
	} else {
		why := "no Map-Server tells of a mapping"
		if s := d.anchor.state(); !s.full {
			why = fmt.Sprintf("no Map-Server has sent everything yet; %d routes of before the restart are in use", s.warm)
		}
		out = append(out, lisp.Finding{Part: "mappings", Says: "packets are dropped", Why: why})
	}
	err := d.ask(ctx, func(time.Time) {
		says := "not announced"
		if d.serving {
			says = "announced"
		}
		out = append(out, lisp.Finding{
			Part: "aggregate", Says: fmt.Sprintf("%v is %s to the outside", aggregate, says),
			Why: fmt.Sprintf("feed alive: %t, data plane up: %t, drained: %t", d.feed, d.plane, d.drain.on()),
		})
		for _, s := range d.out.servers {
			out = append(out, lisp.Finding{
				Part: "registrations", Says: fmt.Sprintf("%v at %v: %v", aggregate, s.Addr, s.state),
				Why: "last confirmed " + since(s.heard),
			})
		}
	})
	return out, err
}

func (d *DETR) explainOutside(e lisp.EID, now time.Time) []lisp.Finding {
	at, c, ok := d.res.cache.LookupEID(e)
	if ok {
		return []lisp.Finding{{
			Part: "map-cache",
			Says: fmt.Sprintf("%v: %s (%s)", at, doing(d.res.route(c.mapping).Do), locatorsString(c.mapping)),
			Why:  fmt.Sprintf("%s, for another %v", c.via, c.expires.Sub(now).Round(time.Second)),
		}}
	}
	if q := d.res.queries[e]; q != nil {
		return []lisp.Finding{{Part: "map-cache", Says: "being asked for", Why: fmt.Sprintf("%d Map-Requests sent", q.tries)}}
	}
	if len(d.cfg.ExternalResolvers) == 0 {
		return []lisp.Finding{{Part: "map-cache", Says: "left to the kernel's routing", Why: "no external Map-Resolver is configured"}}
	}
	return []lisp.Finding{{Part: "map-cache", Says: "nothing is known", Why: "no packet has asked for it; it is outside the aggregates"}}
}

func since(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// locatorsString is m's locators for people: "rloc priority/weight, ...", or the action.
func locatorsString(m lisp.Mapping) string {
	if m.Negative() {
		return m.Action.String()
	}
	ss := make([]string, len(m.Locators))
	for i, l := range m.Locators {
		ss[i] = fmt.Sprintf("%v %d/%d", l.RLOC, l.Priority, l.Weight)
		if !l.Reachable {
			ss[i] += " down"
		}
	}
	return strings.Join(ss, ", ")
}
