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

// RegistrationRow is a line of "show registrations": an aggregate at an external Map-Server.
type RegistrationRow struct {
	EID       lisp.EID  `json:"eid"`
	MapServer string    `json:"map_server"`
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
	for _, s := range d.reg.servers {
		for _, r := range d.reg.records {
			out = append(out, RegistrationRow{
				EID: r.EID, MapServer: s.Addr.String(), State: s.state.String(), Tries: s.tries, Heard: s.heard,
				RLOCs: united(s.rlocs[r.EID]),
			})
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
	all["serving"] = 0
	if d.serving {
		all["serving"] = 1
	}
	out := make([]CounterRow, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, CounterRow{k, all[k]})
	}
	return out
}

// Explain says what this D-ETR does with packets for e, and why.
func (d *DETR) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	aggregate, own := d.cfg.own(e)
	if !own {
		var out []lisp.Finding
		err := d.ask(ctx, func(now time.Time) { out = d.explainOutside(e, now) })
		return out, err
	}
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
			Why: fmt.Sprintf("feed alive: %t, data plane up: %t", d.feed, d.plane),
		})
		for _, s := range d.reg.servers {
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
