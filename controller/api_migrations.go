package controller

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (c *Controller) postPreflight(r *http.Request) (int, any, error) {
	var in MigrationRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.check(); err != nil {
		return 0, nil, err
	}
	pf, _, err := c.inspect(r.Context(), in, "", "")
	switch {
	case err != nil && pf.From != "" && pf.To == "": // nobody takes it: that is an answer
		pf.Checks = []Check{{"policy", CheckFail, err.Error()}}
		return http.StatusOK, pf, nil
	case err != nil:
		return 0, nil, err
	}
	return http.StatusOK, pf, nil
}

func (c *Controller) postMigration(r *http.Request) (int, any, error) {
	var in MigrationRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	if err := in.check(); err != nil {
		return 0, nil, err
	}
	if in.VM == "" {
		return 0, nil, fail(http.StatusBadRequest, "vm is missing")
	}
	v, err := c.change(r.Context(), func(now time.Time) (any, error) {
		m, err := c.beginMigration(in, "", nil, now)
		if err != nil {
			return nil, err
		}
		c.schedule(now)
		return c.migStatus(m, c.places()), nil
	})
	return http.StatusAccepted, v, err
}

// Phases lists every MigrationPhase in order.
var Phases = []MigrationPhase{MigrationQueued, MigrationPreflight, MigrationPreparing, MigrationMigrating, MigrationLocating,
	MigrationFinishing, MigrationUndoing, MigrationDone, MigrationFailed, MigrationCancelled}

func (c *Controller) listMigrations(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	vm, drain, phase, limit := q.Get("vm"), q.Get("drain"), MigrationPhase(q.Get("phase")), defaultLimit
	if phase != "" && phase != "open" && !slices.Contains(Phases, phase) {
		return 0, nil, fail(http.StatusBadRequest, "phase=%q: want open, or one of %v", phase, Phases)
	}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, nil, fail(http.StatusBadRequest, "limit=%q: want a number, 0 = all", s)
		}
		limit = n
	}
	return c.read(r, func() (any, error) {
		out, places := []MigrationStatus{}, c.places()
		for _, m := range slices.Backward(c.migOrder) {
			if vm != "" && m.r.VM != vm || drain != "" && m.r.Drain != drain ||
				phase == "open" && m.r.Phase.Ended() || phase != "" && phase != "open" && m.r.Phase != phase {
				continue
			}
			if out = append(out, c.migStatus(m, places)); len(out) == limit {
				break
			}
		}
		return out, nil
	})
}

func (c *Controller) getMigration(r *http.Request) (int, any, error) {
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	until := func(m MigrationStatus) bool { return m.Phase.Ended() }
	if s := r.URL.Query().Get("after"); s != "" {
		after, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, nil, fail(http.StatusBadRequest, "after=%q: want the seq of the last answer", s)
		}
		until = func(m MigrationStatus) bool { return m.Seq > after || m.Phase.Ended() }
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	s, err := c.awaitMigration(ctx, r.PathValue("id"), until)
	return http.StatusOK, s, err
}

// steerMigration applies a caller's wish to a migration, and answers with what it is then.
func (c *Controller) steerMigration(r *http.Request, def time.Duration, wish func(m *migration, now time.Time) error) (int, any, error) {
	id := r.PathValue("id")
	wait, err := waitOf(r, def)
	if err != nil {
		return 0, nil, err
	}
	_, err = c.change(r.Context(), func(now time.Time) (any, error) {
		m := c.migs[id]
		if m == nil {
			return nil, fail(http.StatusNotFound, "no migration %q", id)
		}
		return nil, wish(m, now)
	})
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	s, err := c.awaitMigration(ctx, id, func(m MigrationStatus) bool { return m.Phase.Ended() })
	return http.StatusOK, s, err
}

func (c *Controller) cancelMigration(r *http.Request) (int, any, error) {
	return c.steerMigration(r, 10*time.Second, func(m *migration, now time.Time) error {
		if why := m.r.mayCancel(); why != "" {
			return fail(http.StatusConflict, "migration %s cannot be cancelled: %s", m.r.ID, why)
		}
		c.migEvent(m.r.ID, gCancel{"by the API"}, now)
		return nil
	})
}

func (c *Controller) postCopyMigration(r *http.Request) (int, any, error) {
	return c.steerMigration(r, 0, func(m *migration, now time.Time) error {
		switch q := m.r.Request; {
		case m.r.Phase != MigrationMigrating:
			return fail(http.StatusConflict, "migration %s is %s: there is nothing to switch", m.r.ID, m.r.Phase)
		case q.Mode != ModePostCopy && q.OnSlow != SlowPostCopy:
			return fail(http.StatusConflict, "migration %s was not begun in a way that can be switched: on_slow=postcopy allows it", m.r.ID)
		}
		c.migEvent(m.r.ID, gPostCopy{}, now)
		return nil
	})
}

func (c *Controller) detachMigration(r *http.Request) (int, any, error) {
	return c.steerMigration(r, 0, func(m *migration, now time.Time) error {
		c.migEvent(m.r.ID, gNote{"whoever asked for it does not watch any more"}, now)
		return nil
	})
}

// Draining.

func (c *Controller) postDrain(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	var in DrainRequest
	if r.ContentLength != 0 {
		if err := body(r, &in); err != nil {
			return 0, nil, err
		}
	}
	q := in.MigrationRequest
	if q.VM != "" || q.To != "" || q.ID != "" {
		return 0, nil, fail(http.StatusBadRequest, "a drain takes no vm, to or id: it is about every VM of %s", name)
	}
	if err := q.check(); err != nil {
		return 0, nil, err
	}
	if in.PlanOnly {
		return c.read(r, func() (any, error) {
			if _, err := find("hypervisor", c.inv.hvs, name); err != nil {
				return nil, err
			}
			return c.plan(name, q), nil
		})
	}
	v, err := c.change(r.Context(), func(now time.Time) (any, error) {
		h, err := find("hypervisor", c.inv.hvs, name)
		if err != nil {
			return nil, err
		}
		if q.Site != "" {
			if _, err := find("site", c.inv.sites, q.Site); err != nil {
				return nil, err
			}
		}
		if !h.Drained {
			h.Drained, h.DrainedSince = true, now
			c.inv.hvs[name] = h
			c.dirty.putHV(h)
			c.log.Info("draining", "hypervisor", name)
		}
		w := c.world("")
		var stuck []PlannedMove
		for _, vm := range c.inv.on(name) {
			if c.migrating(vm) != nil || c.moving(vm) != nil || c.undriven(name) != "" {
				continue
			}
			one := q
			one.VM = vm
			if _, err := c.beginMigration(one, name, w, now); err != nil {
				stuck = append(stuck, PlannedMove{VM: vm, Error: err.Error()})
			}
		}
		c.stuck[name], c.drainAs[name] = stuck, q
		c.schedule(now)
		return c.drainStatus(h), nil
	})
	return http.StatusAccepted, v, err
}

// plan says where each VM of a hypervisor would go.
func (c *Controller) plan(hv string, in MigrationRequest) []PlannedMove {
	out := []PlannedMove{}
	w := c.world("")
	for _, name := range c.inv.on(hv) {
		if m := c.moving(name); m != nil {
			out = append(out, PlannedMove{VM: name, To: m.To, Why: "it is on its way: " + m.summary()})
			continue
		}
		if g := c.migrating(name); g != nil {
			out = append(out, PlannedMove{VM: name, To: g.To, Migration: g.ID, Phase: g.Phase})
			continue
		}
		v := c.inv.vms[name]
		need := c.needs(v)
		var fit func(*host) string
		if c.undriven(hv) == "" {
			fit = c.fits(v, hv, in)
		}
		to, why, _ := w.place(v, need, hv, in.Site, fit)
		if to != "" {
			w.take(v, need, to)
		}
		out = append(out, PlannedMove{VM: name, To: to, Why: why})
	}
	for _, s := range c.strangers {
		if s.hv == hv {
			out = append(out, PlannedMove{VM: s.name, Why: s.problem})
		}
	}
	return out
}

func (c *Controller) getDrain(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		h, err := find("hypervisor", c.inv.hvs, r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return c.drainStatus(h), nil
	})
}

// drainStatus says how far the draining of h has come.
func (c *Controller) drainStatus(h Hypervisor) DrainStatus {
	out := DrainStatus{Hypervisor: h.Name, Drained: h.Drained, Since: h.DrainedSince, Moves: []PlannedMove{}}
	if !h.Drained {
		return out
	}
	latest := map[string]int{}
	for _, m := range c.migOrder {
		r := &m.r
		if r.Drain != h.Name || r.Times.Asked.Before(h.DrainedSince) {
			continue
		}
		p := PlannedMove{VM: r.VM, To: r.To, Why: r.Why, Migration: r.ID, Phase: r.Phase, Error: r.Error}
		if i, ok := latest[r.VM]; ok {
			out.Moves[i] = p
		} else {
			latest[r.VM] = len(out.Moves)
			out.Moves = append(out.Moves, p)
		}
		out.Bytes += r.Progress.Total
		if out.BytesDone += r.Progress.Done; r.Phase == MigrationDone {
			out.BytesDone += r.Progress.Total - min(r.Progress.Total, r.Progress.Done)
		}
	}
	for _, e := range c.order { // what others have moved
		if m := &e.m; m.From == h.Name && m.State.arrived() && !m.Driven && !m.Times.Committed.Before(h.DrainedSince) {
			if _, ok := latest[m.VM]; !ok && c.inv.vms[m.VM].Hypervisor != h.Name {
				latest[m.VM] = len(out.Moves)
				out.Moves = append(out.Moves, PlannedMove{VM: m.VM, To: m.To, Why: m.Why, Phase: MigrationDone})
			}
		}
	}
	stuck := map[string]string{}
	for _, p := range c.stuck[h.Name] {
		stuck[p.VM] = p.Error
	}
	there := 0
	for _, p := range c.plan(h.Name, c.drainAs[h.Name]) {
		there++
		i, ok := latest[p.VM]
		if !ok {
			p.Error = or(p.Error, stuck[p.VM])
			if p.To == "" {
				p.Error = or(p.Error, p.Why)
			}
			out.Moves = append(out.Moves, p)
		} else if out.Moves[i].Phase == MigrationDone { // it has come back, or somebody entered it here again
			out.Moves[i] = p
		}
	}
	slices.SortFunc(out.Moves, func(a, b PlannedMove) int { return strings.Compare(a.VM, b.VM) })
	for _, p := range out.Moves {
		switch {
		case p.Phase == MigrationDone:
			out.Done++
		case p.Phase == MigrationFailed, p.Phase == MigrationCancelled, p.Migration == "" && p.Error != "":
			out.Failed++
		case p.Migration != "":
			out.UnderWay++
		default:
			out.External++
		}
	}
	out.Total = len(out.Moves)
	out.Complete = there == 0 && out.UnderWay == 0
	for _, m := range c.openMigrations() {
		out.Complete = out.Complete && m.r.To != h.Name
	}
	return out
}

func (c *Controller) postUndrain(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	v, err := c.change(r.Context(), func(now time.Time) (any, error) {
		h, err := find("hypervisor", c.inv.hvs, name)
		if err != nil {
			return nil, err
		}
		if h.Drained {
			h.Drained, h.DrainedSince = false, time.Time{}
			c.inv.hvs[name] = h
			c.dirty.putHV(h)
			c.log.Info("not draining any more", "hypervisor", name)
		}
		delete(c.stuck, name)
		delete(c.drainAs, name)
		n := 0
		for _, m := range c.openMigrations() {
			if m.r.Drain == name && m.r.Phase == MigrationQueued {
				c.migEvent(m.r.ID, gCancel{"hypervisor " + name + " is not drained any more"}, now)
				n++
			}
		}
		if n > 0 {
			c.counters.add("migrations cancelled by undrain", uint64(n))
		}
		return c.hvStatus(h), nil
	})
	return http.StatusOK, v, err
}
