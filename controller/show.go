package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// MoveRow is a row of `tabi show moves`.
type MoveRow struct {
	ID         string       `json:"id"`
	VM         string       `json:"vm"`
	From       string       `json:"from"`
	To         string       `json:"to"`
	State      State        `json:"state"`
	Version    lisp.Version `json:"version"`
	Started    time.Time    `json:"started,omitzero"`
	Run        time.Time    `json:"run,omitzero"`
	Settled    time.Time    `json:"settled,omitzero"`
	Held       uint64       `json:"held"`
	Redirected uint64       `json:"redirected"`
	Replayed   uint64       `json:"replayed"`
	Dropped    uint64       `json:"dropped"`
	Why        string       `json:"why"`
	Error      string       `json:"error,omitempty"`
}

// HypervisorRow is a row of `tabi show hypervisors`.
type HypervisorRow struct {
	Name      string     `json:"name"`
	Site      string     `json:"site"`
	RLOC      string     `json:"rloc"`
	XTRID     lisp.XTRID `json:"xtr_id"`
	Agent     string     `json:"agent"`
	VMs       int        `json:"vms"`
	VMsToTell int        `json:"vms_to_tell"`
	Seen      time.Time  `json:"seen,omitzero"`
	Error     string     `json:"error,omitempty"`
}

// VMRow is a row of `tabi show vms`.
type VMRow struct {
	Name       string       `json:"name"`
	Hypervisor string       `json:"hypervisor"`
	Site       string       `json:"site"`
	EIDs       string       `json:"eids"`
	MACs       string       `json:"macs"`
	Version    lisp.Version `json:"version"`
}

// MigrationRow is a row of `tabi show migrations`. Sizes are bytes, Rate bytes a second.
type MigrationRow struct {
	ID        string         `json:"id"`
	VM        string         `json:"vm"`
	From      string         `json:"from"`
	To        string         `json:"to"`
	Link      string         `json:"link"`
	Phase     MigrationPhase `json:"phase"`
	Queue     int            `json:"queue"`
	Total     uint64         `json:"total"`
	Remaining uint64         `json:"remaining"`
	Rate      uint64         `json:"rate"`
	Asked     time.Time      `json:"asked,omitzero"`
	Ended     time.Time      `json:"ended,omitzero"`
	Error     string         `json:"error,omitempty"`
}

// Shows are the tables that an operator can look at.
func (c *Controller) Shows() map[string]func(context.Context) (any, error) {
	owner := func(f func() any) func(context.Context) (any, error) {
		return func(ctx context.Context) (any, error) {
			return c.ask(ctx, func(time.Time) (any, error) { return f(), nil })
		}
	}
	return map[string]func(context.Context) (any, error){
		"counters": func(context.Context) (any, error) { return rows(c.counters.snapshot(), c.ep.Counters()), nil },
		"migrations": owner(func() any {
			out, places := []MigrationRow{}, c.places()
			for _, m := range slices.Backward(c.migOrder) {
				r, p := &m.r, &m.r.Progress
				out = append(out, MigrationRow{r.ID, r.VM, r.From, r.To, r.Link, r.Phase, places[r.ID], p.Total, p.Remaining, p.Rate, r.Times.Asked, r.Times.Ended, r.Error})
			}
			return out
		}),
		"links":    owner(func() any { return sorted(c.links) }),
		"moves":    owner(func() any { return c.moveRows() }),
		"services": owner(func() any { return c.serviceRows() }),
		"sites":    owner(func() any { return sorted(c.inv.sites) }),
		"hypervisors": owner(func() any {
			out := []HypervisorRow{}
			for _, h := range sorted(c.inv.hvs) {
				s := c.hvStatus(h)
				out = append(out, HypervisorRow{h.Name, h.Site, h.RLOC.String(), h.XTRID, h.Agent, len(s.VMs), s.VMsToTell, s.AgentSeen, s.AgentError})
			}
			return out
		}),
		"vms": owner(func() any {
			out := []VMRow{}
			for _, v := range sorted(c.inv.vms) {
				out = append(out, VMRow{v.Name, v.Hypervisor, c.inv.hvs[v.Hypervisor].Site, join(v.EIDs), strings.Join(v.MACs, " "), v.Version})
			}
			return out
		}),
	}
}

func (c *Controller) moveRows() []MoveRow {
	out := []MoveRow{}
	for _, r := range c.recent("", "", 0) {
		row := MoveRow{
			ID: r.ID, VM: r.VM, From: r.From, To: r.To, State: r.State, Version: r.Version,
			Started: r.Times.PrepareStarted, Run: r.Times.Run, Settled: r.Times.Settled,
			Held: r.Held, Redirected: r.Redirected, Replayed: r.Replayed, Why: r.Why, Error: r.Error,
		}
		for _, n := range r.Dropped {
			row.Dropped += n
		}
		out = append(out, row)
	}
	return out
}

func join(eids []lisp.EID) string {
	out := make([]string, len(eids))
	for i, e := range eids {
		out[i] = e.String()
	}
	return strings.Join(out, " ")
}

// Explain says what the controller knows of an EID: whose it is, where that VM runs and since when, and
// how its last move went.
func (c *Controller) Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error) {
	v, err := c.ask(ctx, func(time.Time) (any, error) { return c.explain(e), nil })
	if err != nil {
		return nil, fmt.Errorf("controller: explain %s: %w", e, err)
	}
	return v.([]lisp.Finding), nil
}

func (c *Controller) explain(e lisp.EID) []lisp.Finding {
	name, f := c.inv.covering(e)
	v, ok := c.inv.vms[name]
	services := c.explainServices(e)
	if !ok && len(services) > 0 {
		return services
	}
	if !ok {
		return []lisp.Finding{{Part: "inventory", Says: "belongs to no VM", Why: fmt.Sprintf("no VM has an EID that covers %s", e)}}
	}
	h := c.inv.hvs[v.Hypervisor]
	out := []lisp.Finding{{
		Part: "inventory",
		Says: fmt.Sprintf("VM %s on %s (site %s, RLOC %s)", v.Name, or(v.Hypervisor, "an unknown hypervisor"), or(h.Site, "unknown"), h.RLOC),
		Why:  fmt.Sprintf("%s is its EID; placed there %s", f, stamp(v.Placed)),
	}}
	if st, ok := c.status[h.Name]; ok && st.err != "" {
		out = append(out, lisp.Finding{Part: "agent", Says: h.Name + " cannot be reached", Why: st.err})
	}
	out = append(out, services...)
	moves := c.byVM[v.Name]
	if len(moves) == 0 {
		return out
	}
	r := moves[len(moves)-1].m.Record
	out = append(out, lisp.Finding{
		Part: "moves",
		Says: fmt.Sprintf("%s, version %d", r.summary(), r.Version),
		Why:  or(r.Error, r.Why),
	})
	for _, s := range r.MapServers {
		says, why := fmt.Sprintf("%s holds version %d", s.Server, s.Version), "Map-Notify of "+stamp(s.Accepted)
		if s.Accepted.IsZero() {
			says, why = fmt.Sprintf("%s has not confirmed every EID", s.Server), or(s.Error, "no Map-Notify yet")
		}
		out = append(out, lisp.Finding{Part: "Map-Server", Says: says, Why: why})
	}
	return slices.Clip(out)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "at an unknown time"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000Z")
}
