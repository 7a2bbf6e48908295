package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

func (c *Controller) listMoves(r *http.Request) (int, any, error) {
	q := r.URL.Query()
	vm, state, limit := q.Get("vm"), State(q.Get("state")), defaultLimit
	if state != "" && !slices.Contains(States, state) {
		return 0, nil, fail(http.StatusBadRequest, "state=%q: want one of %v", state, States)
	}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return 0, nil, fail(http.StatusBadRequest, "limit=%q: want a number, 0 = all", s)
		}
		limit = n
	}
	return c.read(r, func() (any, error) { return c.recent(vm, state, limit), nil })
}

// recent lists moves, newest first. 0 = no limit.
func (c *Controller) recent(vm string, state State, limit int) []Record {
	out := []Record{}
	for _, e := range slices.Backward(c.order) {
		if vm != "" && e.m.VM != vm || state != "" && e.m.State != state {
			continue
		}
		if out = append(out, e.m.Record); len(out) == limit {
			break
		}
	}
	return out
}

func (c *Controller) getMove(r *http.Request) (int, any, error) {
	wait, err := waitOf(r, 0)
	if err != nil {
		return 0, nil, err
	}
	rec, err := c.waitFor(r, wait, r.PathValue("id"), func(m Record) bool { return m.State.Ended() })
	return http.StatusOK, rec, err
}

func (c *Controller) waitFor(r *http.Request, wait time.Duration, id string, until func(Record) bool) (Record, error) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	return c.await(ctx, id, until)
}

// MoveRequest is the body of PUT /v1/moves/{id}.
type MoveRequest struct {
	VM string `json:"vm"`
	To string `json:"to"` // hypervisor
}

func (c *Controller) putMove(r *http.Request) (int, any, error) {
	id := r.PathValue("id")
	wait, err := waitOf(r, 30*time.Second)
	if err != nil {
		return 0, nil, err
	}
	var in MoveRequest
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	begin := func(now time.Time) (any, error) { return c.prepare(id, in, moveAsked, now) }
	v, err := c.change(r.Context(), begin)
	var e *Error
	if errors.As(err, &e) && e.Move != nil && e.Move.State == Prepared {
		// The VM may run on the target of that move already, and we do not know yet.
		c.look(r.Context(), e.Move.ID)
		v, err = c.change(r.Context(), begin)
	}
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	if v.(put).created {
		status = http.StatusCreated
	}
	rec, err := c.waitFor(r, wait, id, func(m Record) bool { return m.State != Preparing && m.State != Aborting })
	if err != nil {
		return 0, nil, err
	}
	switch {
	case rec.State != Aborting && rec.State != Aborted:
		return status, rec, nil
	case v.(put).created:
		return 0, nil, &Error{http.StatusBadGateway, "move " + id + " was not prepared: " + or(rec.Error, rec.Why), &rec}
	}
	return 0, nil, &Error{http.StatusConflict, "move " + id + " is " + string(rec.State) + ": " + or(rec.Error, rec.Why) + "; take another id", &rec}
}

// moveKind is why a move is prepared.
type moveKind string

const (
	moveAsked     moveKind = "asked for"                  // by a caller, who moves the VM
	moveDriven    moveKind = "migration"                  // by a migration of ours
	moveAnnounced moveKind = "announced by somebody else" // who has decided it: policy is not asked
)

// prepare begins a move, or finds it begun.
func (c *Controller) prepare(id string, in MoveRequest, kind moveKind, now time.Time) (any, error) {
	if !idForm.MatchString(id) {
		return nil, fail(http.StatusBadRequest, "move id %q: want 1 to 128 of A-Z a-z 0-9 . _ : -, a letter or digit first", id)
	}
	if e := c.moves[id]; e != nil {
		if e.m.VM != in.VM || e.m.To != in.To {
			return nil, fail(http.StatusConflict, "move %s is another one: of %s to %s", id, e.m.VM, e.m.To)
		}
		return put{false, nil}, nil
	}
	v, ok := c.inv.vms[in.VM]
	if !ok {
		return nil, fail(http.StatusNotFound, "no vm %q", in.VM)
	}
	to, ok := c.inv.hvs[in.To]
	if !ok {
		return nil, fail(http.StatusNotFound, "no hypervisor %q", in.To)
	}
	from, ok := c.inv.hvs[v.Hypervisor]
	if !ok {
		return nil, fail(http.StatusConflict, "nobody has said where vm %s runs: put its hypervisor first", v.Name)
	}
	if m := c.moving(v.Name); m != nil {
		rec := *m
		return nil, &Error{http.StatusConflict, fmt.Sprintf("vm %s is being moved already: %s; commit or abort that first", v.Name, m.summary()), &rec}
	}
	if from.Name == to.Name {
		return nil, fail(http.StatusConflict, "vm %s runs on %s already", v.Name, to.Name)
	}
	if kind == moveAsked {
		if g := c.migrating(v.Name); g != nil {
			return nil, fail(http.StatusConflict, "vm %s is being migrated already: %s to %s (%s)", v.Name, g.ID, g.To, g.Phase)
		}
		if !c.inv.sites[to.Site].open() {
			if no := c.world(id).policy(v, c.needs(v), from.Name, to.Name); no != "" {
				return nil, fail(http.StatusForbidden, "vm %s: %s", v.Name, no)
			}
		}
	}
	c.seq++
	e := &entry{m: Move{
		Record: Record{
			ID: id, VM: v.Name, EIDs: v.EIDs, From: from.Name, FromSite: from.Site, To: to.Name, ToSite: to.Site,
			State: Preparing, Times: Times{PrepareStarted: now}, Dropped: map[string]uint64{}, Why: string(kind),
		},
		Seq: c.seq, MACs: v.MACs, Interface: v.Interface, Open: true, Since: now, Known: c.versionOf(v),
		Src: from.side(), Tgt: to.side(), Driven: kind == moveDriven,
	}}
	if kind == moveAnnounced {
		e.m.Patience = c.cfg.Timing.Announced
	}
	c.insert(e)
	c.counters.add("moves "+string(kind), 1)
	c.log.Info("move", "move", id, "vm", v.Name, "from", from.Name, "to", to.Name, "state", string(Preparing))
	c.event(id, evTick{}, now)
	return put{true, nil}, nil
}

// steer applies a caller's wish to a move; ok says from which states on it is done or being done.
func (c *Controller) steer(r *http.Request, def time.Duration, ev event, done func(State) bool, until func(Record) bool, what string) (int, any, error) {
	id := r.PathValue("id")
	wait, err := waitOf(r, def)
	if err != nil {
		return 0, nil, err
	}
	_, err = c.change(r.Context(), func(now time.Time) (any, error) {
		e := c.moves[id]
		if e == nil {
			return nil, fail(http.StatusNotFound, "no move %q", id)
		}
		c.event(id, ev, now)
		if !done(e.m.State) {
			rec := e.m.Record
			return nil, &Error{http.StatusConflict, fmt.Sprintf("move %s cannot be %s: it is %s: %s", id, what, rec.State, or(rec.Error, rec.Why)), &rec}
		}
		return nil, nil
	})
	if err != nil {
		return 0, nil, err
	}
	rec, err := c.waitFor(r, wait, id, until)
	if err != nil {
		return 0, nil, err
	}
	if !done(rec.State) {
		return 0, nil, &Error{http.StatusConflict, fmt.Sprintf("move %s was not %s: %s", id, what, or(rec.Error, rec.Why)), &rec}
	}
	return http.StatusOK, rec, nil
}

func (c *Controller) commitMove(r *http.Request) (int, any, error) {
	return c.steer(r, 0, evCommit{"committed by the API"}, State.arrived,
		func(m Record) bool { return m.State != Running }, "committed")
}

func (c *Controller) abortMove(r *http.Request) (int, any, error) {
	undone := func(s State) bool { return s == Aborting || s == Aborted }
	return c.steer(r, 30*time.Second, evAbort{"aborted by the API"}, undone,
		func(m Record) bool { return m.State != Aborting }, "aborted")
}
