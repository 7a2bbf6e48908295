package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What the owner goroutine does for migrations: the queue, the drivers, and the tie to the moves.

// migration is a migration in memory.
type migration struct {
	r    MigrationRecord
	next time.Time               // when step wants to be called
	stop context.CancelCauseFunc // ends Driver.Migrate; nil = it is not under way

	last   atomic.Pointer[Progress] // what the driver told last
	posted atomic.Bool              // and whether the owner is about to take it
}

// openMigrations are those that have not ended, oldest first.
func (c *Controller) openMigrations() []*migration {
	return slices.SortedFunc(maps.Keys(c.migOpen), func(a, b *migration) int { return cmp.Compare(a.r.Order, b.r.Order) })
}

// migrating returns the VM's migration that has not ended.
func (c *Controller) migrating(vm string) *MigrationRecord {
	if m := c.migBy[vm]; m != nil {
		return &m.r
	}
	return nil
}

// linkOf is what a migration between two hypervisors uses.
func (c *Controller) linkOf(from, to string) string {
	a, b := c.inv.hvs[from], c.inv.hvs[to]
	if a.Site == b.Site {
		return a.Site + ":" + min(from, to) + "-" + max(from, to)
	}
	return min(a.Site, b.Site) + "-" + max(a.Site, b.Site)
}

// insertMigration takes a migration up.
func (c *Controller) insertMigration(m *migration) {
	c.migs[m.r.ID] = m
	c.migOrder = append(c.migOrder, m)
	c.migSeq = max(c.migSeq, m.r.Order)
	if !m.r.Phase.Ended() {
		c.migOpen[m] = true
		c.migBy[m.r.VM] = m
		c.reschedule = true
	}
}

// check brings a request to its full form.
func (in *MigrationRequest) check() error {
	switch in.Mode {
	case "", ModeLive, ModeOffline, ModePostCopy:
	default:
		return fail(http.StatusBadRequest, "mode %q: want live, offline or postcopy", in.Mode)
	}
	switch in.CopyStorage {
	case "":
		in.CopyStorage = CopyNone
	case CopyNone, CopyAll, CopyInc:
	default:
		return fail(http.StatusBadRequest, "copy_storage %q: want none, all or inc", in.CopyStorage)
	}
	switch in.OnSlow {
	case "":
		in.OnSlow = SlowAbort
	case SlowAbort, SlowPostCopy, SlowConverge, SlowWait:
	default:
		return fail(http.StatusBadRequest, "on_slow %q: want abort, postcopy, converge or wait", in.OnSlow)
	}
	switch {
	case in.Parallel < 0 || in.Parallel > 64:
		return fail(http.StatusBadRequest, "parallel is %d: want 0 to 64", in.Parallel)
	case in.Timeout < 0 || in.MaxDowntime < 0:
		return fail(http.StatusBadRequest, "timeout and max_downtime cannot be negative")
	case in.ID != "" && !idForm.MatchString(in.ID):
		return fail(http.StatusBadRequest, "migration id %q: want 1 to 128 of A-Z a-z 0-9 . _ : -, a letter or digit first", in.ID)
	case in.CopyStorage != CopyNone && (in.Mode == ModePostCopy || in.OnSlow == SlowPostCopy):
		return fail(http.StatusBadRequest, "post-copy does not go with copy_storage %s: disks cannot follow later", in.CopyStorage)
	case in.Mode == ModeOffline && in.OnSlow == SlowPostCopy:
		return fail(http.StatusBadRequest, "an offline migration cannot be switched to post-copy")
	}
	in.AutoConverge = in.AutoConverge || in.OnSlow == SlowConverge
	return nil
}

// undriven says why a hypervisor's VMs cannot be migrated by us; "" = they can.
func (c *Controller) undriven(hv string) string {
	switch {
	case c.inv.hvs[hv].Driver == "":
		return fmt.Sprintf("hypervisor %s has no driver (a libvirt URI, tabi hv set --driver): its VMs are moved by PUT /v1/moves/{id} and whatever runs them", hv)
	case c.watchers[hv] == nil:
		return "this controller has no drivers"
	}
	return ""
}

// fits returns what else speaks against placing v, which is on from, somewhere: what the preflight would find, as far as
// it is known without asking anybody.
func (c *Controller) fits(v VM, from string, in MigrationRequest) func(*host) string {
	s, known := c.sight(v)
	return func(h *host) string {
		if c.undriven(h.Name) != "" {
			return "it has no driver"
		}
		o, src := c.seen[h.Name], c.seen[from]
		if !known || o == nil || o.node == nil || src == nil {
			return ""
		}
		f := facts{vm: v, req: in, guest: &s.guest, from: c.inv.hvs[from], to: h.Hypervisor, srcNode: src.node, tgtNode: o.node,
			sites: [2]Site{c.inv.sites[c.inv.hvs[from].Site], c.inv.sites[h.Site]}}
		why := ""
		fatal := func(_ string, status CheckStatus, format string, args ...any) {
			if status == CheckFail {
				why = or(why, fmt.Sprintf(format, args...))
			}
		}
		f.checkMachine(fatal)
		f.checkCPU(fatal)
		f.checkStorage(fatal)
		return why
	}
}

// subject finds the VM of a request and where it is, and says what is in the way of any migration.
func (c *Controller) subject(in MigrationRequest) (v VM, from Hypervisor, err error) {
	v, ok := c.inv.vms[in.VM]
	if !ok {
		for _, s := range c.strangers {
			if s.name == in.VM {
				return v, from, fail(http.StatusConflict, "vm %s on %s cannot be moved: %s", in.VM, s.hv, s.problem)
			}
		}
		return v, from, fail(http.StatusNotFound, "no vm %q", in.VM)
	}
	if from, ok = c.inv.hvs[v.Hypervisor]; !ok {
		return v, from, fail(http.StatusConflict, "nobody has said where vm %s runs: put its hypervisor first", v.Name)
	}
	if why := c.undriven(from.Name); why != "" {
		return v, from, fail(http.StatusConflict, "vm %s: %s", v.Name, why)
	}
	if in.To != "" {
		to, ok := c.inv.hvs[in.To]
		if !ok {
			return v, from, fail(http.StatusNotFound, "no hypervisor %q", in.To)
		}
		if in.Site != "" && in.Site != to.Site {
			return v, from, fail(http.StatusBadRequest, "hypervisor %s is at site %s, not at %s", in.To, to.Site, in.Site)
		}
		if in.To == from.Name {
			return v, from, fail(http.StatusConflict, "vm %s runs on %s already", v.Name, in.To)
		}
		if why := c.undriven(in.To); why != "" {
			return v, from, fail(http.StatusConflict, "vm %s: %s", v.Name, why)
		}
	}
	if in.Site != "" {
		if _, ok := c.inv.sites[in.Site]; !ok {
			return v, from, fail(http.StatusNotFound, "no site %q", in.Site)
		}
	}
	return v, from, nil
}

// target chooses where a VM goes: where it was asked to, else where it was placed before if that still takes it, else the
// best place.
func (c *Controller) target(w *world, v VM, in MigrationRequest, before string) (to, why string, refused []Refusal) {
	if in.To != "" {
		return in.To, "asked for", nil
	}
	need := c.needs(v)
	if h := w.hosts[before]; h != nil && w.refuses(v, need, v.Hypervisor, h) == "" && c.undriven(before) == "" {
		return before, "", nil
	}
	return w.place(v, need, v.Hypervisor, in.Site, c.fits(v, v.Hypervisor, in))
}

// beginMigration puts a migration into the queue, or finds it begun. w is nil unless many are begun together.
func (c *Controller) beginMigration(in MigrationRequest, drain string, w *world, now time.Time) (*migration, error) {
	if m := c.migs[in.ID]; m != nil && in.ID != "" {
		if !reflect.DeepEqual(m.r.Request, in) && m.r.Request.VM != in.VM {
			return nil, fail(http.StatusConflict, "migration %s is another one: of %s", in.ID, m.r.VM)
		}
		return m, nil
	}
	v, from, err := c.subject(in)
	if err != nil {
		return nil, err
	}
	if r := c.migrating(v.Name); r != nil {
		return nil, fail(http.StatusConflict, "vm %s is being migrated already: %s to %s (%s)", v.Name, r.ID, r.To, r.Phase)
	}
	if m := c.moving(v.Name); m != nil {
		rec := *m
		return nil, &Error{http.StatusConflict, fmt.Sprintf("vm %s is being moved already: %s; commit or abort that first", v.Name, m.summary()), &rec}
	}
	if w == nil {
		w = c.world("")
	}
	to, why, _ := c.target(w, v, in, "")
	if to == "" {
		return nil, fail(http.StatusConflict, "vm %s: %s", v.Name, why)
	}
	if no := w.policy(v, c.needs(v), from.Name, to); no != "" {
		return nil, fail(http.StatusForbidden, "vm %s: %s", v.Name, no)
	}
	id := in.ID
	for id == "" || c.migs[id] != nil || c.moves[id] != nil {
		if in.ID != "" {
			return nil, fail(http.StatusConflict, "there is a move %s: take another id", in.ID)
		}
		id = "g-" + randomHex(6)
	}
	w.take(v, c.needs(v), to)
	c.migSeq++
	m := &migration{r: MigrationRecord{
		MigrationStatus: MigrationStatus{
			ID: id, VM: v.Name, From: from.Name, FromSite: from.Site, To: to, ToSite: c.inv.hvs[to].Site, Link: c.linkOf(from.Name, to),
			Phase: MigrationQueued, Seq: 1, Drain: drain, Why: why, Request: in, Notes: []Note{}, Times: MigrationTimes{Asked: now},
		},
		Order: c.migSeq,
	}}
	m.r.Request.ID = id
	c.insertMigration(m)
	c.migChanged[id] = true
	c.urgent = true
	c.counters.add("migrations asked for", 1)
	c.log.Info("migration", "migration", id, "vm", v.Name, "from", from.Name, "to", to, "phase", string(MigrationQueued))
	return m, nil
}

// schedule admits as many migrations to each link as may use it.
func (c *Controller) schedule(now time.Time) {
	if !c.reschedule {
		return
	}
	c.reschedule = false
	busy := map[string]int{}
	open := c.openMigrations()
	for _, m := range open {
		if m.r.Phase != MigrationQueued {
			busy[m.r.Link]++
		}
	}
	for _, m := range open {
		if m.r.Phase == MigrationQueued && busy[m.r.Link] < c.cfg.PerLink {
			busy[m.r.Link]++
			c.migEvent(m.r.ID, gAdmit{}, now)
		}
	}
}

// migEvent steps one migration.
func (c *Controller) migEvent(id string, ev gEvent, now time.Time) {
	m := c.migs[id]
	if m == nil || !c.migOpen[m] {
		return
	}
	before := m.r
	r, acts, next := stepMigration(c.cfg.Timing, m.r, ev, now)
	m.r, m.next = r, next
	if !reflect.DeepEqual(before.MigrationStatus, r.MigrationStatus) {
		m.r.Seq++
		c.migTouched[id] = true
	}
	c.migChanged[id] = true
	if before.Phase != r.Phase {
		c.urgent = true
		c.counters.add("migrations "+string(r.Phase), 1)
		attrs := []any{"migration", id, "vm", r.VM, "from", r.From, "to", r.To, "phase", string(r.Phase)}
		if r.Error != "" {
			c.log.Warn("migration", append(attrs, "err", r.Error)...)
		} else {
			c.log.Info("migration", attrs...)
		}
	}
	if r.Phase.Ended() {
		delete(c.migOpen, m)
		delete(c.migBy, r.VM)
		m.next = time.Time{}
		c.reschedule = true
	}
	for _, a := range acts {
		c.urgent = true
		if !c.migInside(m, a, now) {
			c.acts = append(c.acts, pending{id: id, mig: a})
		}
	}
}

// migInside does what changes the owner's own state alone: it becomes durable together with what caused it.
func (c *Controller) migInside(m *migration, a gAction, now time.Time) bool {
	r := &m.r
	id := r.ID
	switch a := a.(type) {
	case gActPrepare:
		if _, err := c.prepare(r.Move, MoveRequest{VM: r.VM, To: r.To}, moveDriven, now); err != nil {
			c.migEvent(id, gNoMove{err}, now)
			return true
		}
		c.tellMigration(id, now)
	case gActCommit:
		c.event(r.Move, evCommit{a.why}, now)
		c.tellMigration(id, now)
	case gActAbort:
		c.event(r.Move, evAbort{a.why}, now)
		c.tellMigration(id, now)
	case gActPlaced:
		if v, ok := c.inv.vms[r.VM]; ok && v.Hypervisor != r.To {
			v.Hypervisor, v.Placed = r.To, now
			c.setVM(v)
		}
	case gActLearn:
		l := c.links[r.Link]
		l.Link, l.At = r.Link, now
		if l.Count++; l.Count == 1 {
			l.Bandwidth = a.memory
		} else {
			l.Bandwidth = (l.Bandwidth + a.memory) / 2
		}
		c.links[r.Link] = l
		c.dirty.putLink(l)
	default:
		return false
	}
	return true
}

// tellMigration says how a migration's move does.
func (c *Controller) tellMigration(id string, now time.Time) {
	m := c.migs[id]
	if m == nil || m.r.Move == "" {
		return
	}
	e := c.moves[m.r.Move]
	if e == nil {
		c.migEvent(id, gMove{Aborted, "its move is not known any more"}, now)
		return
	}
	state := e.m.State
	if state == Running && len(c.env.servers) == 0 {
		state = Pushed // nobody will confirm
	}
	c.migEvent(id, gMove{state, or(e.m.Error, e.m.Why)}, now)
}

// doMigration starts an action whose migration is durable.
func (c *Controller) doMigration(id string, a gAction) {
	m := c.migs[id]
	if m == nil {
		return
	}
	r := m.r
	switch a := a.(type) {
	case gActPreflight:
		c.wg.Go(func() {
			ev := c.examine(c.ctx, r.Request, r.To, id)
			c.post(func(now time.Time) {
				if m := c.migs[id]; m != nil && m.r.Phase == MigrationPreflight && ev.pf.To != "" {
					m.r.Link = c.linkOf(m.r.From, ev.pf.To)
				}
				c.migEvent(id, ev, now)
			})
		})
	case gActMigrate:
		// A controller that ends leaves the hypervisors at it, if the driver knows how to.
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(c.ctx))
		detach := context.AfterFunc(c.ctx, func() { cancel(ErrDetached) })
		m.stop = cancel
		d, err := c.driverOf(r.From)
		c.wg.Go(func() {
			defer cancel(nil)
			defer detach()
			if err == nil {
				err = d.Migrate(ctx, r.migration(), func(p Progress) { c.progressed(id, m, p) })
			}
			if c.ctx.Err() != nil {
				return // after the restart the hypervisors will be asked
			}
			c.post(func(now time.Time) {
				m.stop = nil
				c.migEvent(id, gDriver{err, m.last.Load()}, now)
				c.lookAt(r.From, r.To)
			})
		})
	case gActStop:
		if m.stop != nil {
			m.stop(stopCause(a.why))
		}
	case gActSteer:
		d, err := c.driverOf(r.From)
		c.wg.Go(func() {
			if err == nil {
				ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timing.Driver)
				defer cancel()
				err = d.Steer(ctx, r.Guest, a.s)
			}
			c.post(func(now time.Time) { c.migEvent(id, gSteered{a.s, err}, now) })
		})
	case gActWhere:
		c.wg.Go(func() {
			var ev gWhere
			var wg sync.WaitGroup
			wg.Go(func() { ev.source = c.whereIs(r, r.From) })
			wg.Go(func() { ev.target = c.whereIs(r, r.To) })
			wg.Wait()
			c.post(func(now time.Time) { c.migEvent(id, ev, now) })
		})
	}
}

// migration is what the driver is told.
func (r *MigrationRecord) migration() Migration {
	q := r.Request
	mode := q.Mode
	if mode == "" {
		mode = ModeLive
	}
	return Migration{
		VM: r.Guest, Dest: r.Dest, Via: r.Via, Mode: mode, CopyStorage: q.CopyStorage, Disks: q.Disks, Bandwidth: q.Bandwidth,
		MaxDowntime: time.Duration(q.MaxDowntime), AutoConverge: q.AutoConverge, Compress: q.Compress, Parallel: q.Parallel,
		AllowPostCopy: mode == ModePostCopy || q.OnSlow == SlowPostCopy, Unsafe: q.Unsafe,
	}
}

// progressed hands the latest progress to the owner, whose m.r is, without waiting for it.
func (c *Controller) progressed(id string, m *migration, p Progress) {
	m.last.Store(&p)
	if m.posted.Swap(true) {
		return
	}
	select {
	case c.inbox <- func(now time.Time) {
		m.posted.Store(false)
		c.migEvent(id, gProgress{*m.last.Load()}, now)
	}:
	default:
		m.posted.Store(false) // the next one will do
	}
}

// driverOf returns a hypervisor's driver. The owner calls it: opening must not block.
func (c *Controller) driverOf(hv string) (Driver, error) {
	w := c.watchers[hv]
	if w == nil {
		return nil, errors.New(or(c.undriven(hv), "hypervisor "+hv+" has no driver"))
	}
	return w.driver()
}

// lookAt has hypervisors listed soon.
func (c *Controller) lookAt(hvs ...string) {
	for _, hv := range hvs {
		if w := c.watchers[hv]; w != nil {
			w.look()
		}
	}
}

// whereIs asks one hypervisor about the VM of a migration.
func (c *Controller) whereIs(r MigrationRecord, hv string) Sighting {
	s := Sighting{Hypervisor: hv}
	vm := VM{Name: r.Guest}
	v, err := c.ask(c.ctx, func(time.Time) (any, error) {
		vm.UUID = c.inv.vms[r.VM].UUID
		return c.driverOf(hv)
	})
	if err != nil {
		s.Err = err.Error()
		return s
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.Timing.Driver)
	defer cancel()
	gs, err := v.(Driver).Guests(ctx)
	if err != nil {
		s.Err = err.Error()
		return s
	}
	s.Asked = true
	if g := findGuest(gs, vm); g != nil {
		s.Found, s.State = true, g.State
	}
	return s
}

// migStatus is a migration as it is shown; places are those in the queues.
func (c *Controller) migStatus(m *migration, places map[string]int) MigrationStatus {
	out := m.r.MigrationStatus
	out.Queue = places[out.ID]
	return out
}

// places are the places of the queued migrations in the queues of their links.
func (c *Controller) places() map[string]int {
	out, n := map[string]int{}, map[string]int{}
	for _, m := range c.openMigrations() {
		if m.r.Phase == MigrationQueued {
			n[m.r.Link]++
			out[m.r.ID] = n[m.r.Link]
		}
	}
	return out
}

// pruneMigrations forgets the oldest that have ended.
func (c *Controller) pruneMigrations() {
	closed := len(c.migOrder) - len(c.migOpen)
	if closed <= c.cfg.KeepMigrations {
		return
	}
	c.migOrder = slices.DeleteFunc(c.migOrder, func(m *migration) bool {
		if c.migOpen[m] || closed <= c.cfg.KeepMigrations {
			return false
		}
		closed--
		delete(c.migs, m.r.ID)
		delete(c.migChanged, m.r.ID)
		c.dirty.delMigration(m.r.ID)
		return true
	})
}

// gwatcher waits for a migration to come somewhere.
type gwatcher struct {
	ctx   context.Context
	until func(MigrationStatus) bool
	to    chan<- MigrationStatus
}

// wakeMigrationWatchers tells whoever waits for a migration that has changed.
func (c *Controller) wakeMigrationWatchers(id string) {
	ws := c.migWatch[id]
	if len(ws) == 0 {
		return
	}
	m := c.migs[id]
	left := ws[:0]
	for _, w := range ws {
		switch {
		case w.ctx.Err() != nil:
		case m != nil && w.until(m.r.MigrationStatus):
			w.to <- c.migStatus(m, c.places())
		default:
			left = append(left, w)
		}
	}
	if c.migWatch[id] = left; len(left) == 0 {
		delete(c.migWatch, id)
	}
}

// awaitMigration returns a migration when until holds, or as it is when ctx ends.
func (c *Controller) awaitMigration(ctx context.Context, id string, until func(MigrationStatus) bool) (MigrationStatus, error) {
	to := make(chan MigrationStatus, 1)
	get := func(wait bool) (*MigrationStatus, error) {
		v, err := c.ask(context.WithoutCancel(ctx), func(time.Time) (any, error) {
			m := c.migs[id]
			if m == nil {
				return nil, fail(http.StatusNotFound, "no migration %q", id)
			}
			if wait && !until(m.r.MigrationStatus) {
				c.migWatch[id] = append(c.migWatch[id], gwatcher{ctx, until, to})
				return (*MigrationStatus)(nil), nil
			}
			s := c.migStatus(m, c.places())
			return &s, nil
		})
		if err != nil {
			return nil, err
		}
		return v.(*MigrationStatus), nil
	}
	s, err := get(true)
	if err != nil {
		return MigrationStatus{}, err
	}
	if s != nil {
		return *s, nil
	}
	select {
	case s := <-to:
		return s, nil
	case <-c.ended:
		return MigrationStatus{}, errStopped
	case <-ctx.Done():
		s, err := get(false)
		if err != nil {
			return MigrationStatus{}, err
		}
		return *s, nil
	}
}
