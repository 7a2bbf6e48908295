package controller

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Controller keeps the inventory and carries out moves. One goroutine, in [Controller.Run], owns all
// of its state; everything else sends it functions to run.
type Controller struct {
	cfg      Config
	env      env
	log      *slog.Logger
	ep       Endpoint
	store    Store
	agents   agents
	counters *counters
	wire     *wire
	handler  http.Handler

	inbox chan func(now time.Time)
	ended chan struct{} // closed when Run has returned

	// The owner's.
	inv    *inventory
	moves  map[string]*entry
	byVM   map[string][]*entry // a VM's moves, oldest first
	order  []*entry            // all, oldest first
	open   map[*entry]bool     // those with work to do
	seq    uint64
	status map[string]agentStatus
	peers  map[string]*peer
	alias  map[alias]string // an agent's name for a move that the agents began by themselves
	// Hypervisors with a driver.
	watchers    map[string]*hvWatcher
	seen        map[string]*overseen
	strangers   []stranger           // guests that are no VMs, by hypervisor
	missing     map[string]time.Time // VMs that are not where they should be, and since when
	reconcileAt time.Time            // when to look again

	// Migrations.
	migs       map[string]*migration
	migOrder   []*migration // oldest first
	migOpen    map[*migration]bool
	migBy      map[string]*migration // the open one, by VM
	migSeq     uint64
	migChanged map[string]bool // since the last Save
	migTouched map[string]bool // since the last flush
	migWatch   map[string][]gwatcher
	links      map[string]LinkMemory
	drainAs    map[string]MigrationRequest // how a hypervisor was drained, to plan for what is left
	stuck      map[string][]PlannedMove    // VMs that a drain could not begin to migrate, by hypervisor
	reschedule bool                        // the queues may have moved on

	svc *services

	nonce   uint64 // last used
	leased  uint64 // nonces below are ours, durably
	dirty   Batch
	changed map[string]bool // moves that changed since the last Save
	touched map[string]bool // moves that changed since the last flush
	rewatch bool            // which moves are open, or where, has changed
	urgent  bool            // a change that must be durable before anything is done about it
	lazyAt  time.Time       // when other changes are saved; zero = there are none
	acts    []pending
	answers []answer
	watch   map[string][]watcher
	unsaved error     // why the last Save failed; nil = it did not
	saveAt  time.Time // when it is tried again
	ctx     context.Context
	wg      sync.WaitGroup
}

// entry is a move in memory.
type entry struct {
	m     Move
	next  time.Time // when step wants to be called
	image []byte    // what is durable, or about to be
}

type alias struct{ hv, id string }

// agentStatus is how an agent was found last.
type agentStatus struct {
	seen time.Time
	err  string
}

// pending is an action that waits for its move to be durable.
type pending struct {
	id  string
	act action
	mig gAction // if not nil, id is a migration's
}

// answer is what a caller waits for until what it asked for is durable.
type answer struct {
	to    chan<- result
	res   result
	write bool // it changed something
}

type result struct {
	v   any
	err error
}

// watcher waits for a move to come somewhere.
type watcher struct {
	ctx   context.Context
	until func(Record) bool
	to    chan<- Record
}

// New loads what was saved and makes a Controller; nothing happens before [Controller.Run].
func New(cfg Config, ep Endpoint, store Store, log *slog.Logger) (*Controller, error) {
	return newController(cfg, ep, store, newHTTPAgents(), log)
}

func newController(cfg Config, ep Endpoint, store Store, ag agents, log *slog.Logger) (*Controller, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("controller: configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	c := &Controller{
		cfg: cfg, log: log, ep: ep, store: store, agents: ag, counters: newCounters(),
		inbox: make(chan func(time.Time), 1024), ended: make(chan struct{}),
		inv: newInventory(), moves: map[string]*entry{}, byVM: map[string][]*entry{}, open: map[*entry]bool{},
		status: map[string]agentStatus{}, peers: map[string]*peer{}, alias: map[alias]string{},
		changed: map[string]bool{}, touched: map[string]bool{}, watch: map[string][]watcher{},
		watchers: map[string]*hvWatcher{}, seen: map[string]*overseen{}, missing: map[string]time.Time{},
		migs: map[string]*migration{}, migOpen: map[*migration]bool{}, migBy: map[string]*migration{},
		migChanged: map[string]bool{}, migTouched: map[string]bool{}, migWatch: map[string][]gwatcher{}, links: map[string]LinkMemory{}, stuck: map[string][]PlannedMove{}, drainAs: map[string]MigrationRequest{},
	}
	c.env.timing = cfg.Timing
	for _, s := range cfg.MapServers {
		c.env.servers = append(c.env.servers, s.Addr)
	}
	c.svc = newServices(newSvcRegistrar(c.env.servers, cfg.Timing.Register, cfg.Timing.Services))
	c.wire = newWire(cfg, ep, c.counters)
	c.wire.serviced = func(server netip.Addr, nonce uint64, records []lisp.Mapping) {
		c.post(func(now time.Time) { c.servicesNotified(server, nonce, records, now) })
	}
	c.wire.notified = func(s sent, n notice) {
		c.post(func(now time.Time) {
			c.svc.hear(s.server, now)
			c.event(s.move, evNotify{server: s.server, eid: s.eid, version: n.mapping.Version,
				holder: n.holder, locators: n.mapping.Locators}, now)
		})
	}
	c.handler = c.newHandler()
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("controller: load: %w", err)
	}
	return c, nil
}

func (c *Controller) load() error {
	saved, err := c.store.Load()
	if err != nil {
		return err
	}
	for _, s := range saved.Sites {
		c.inv.sites[s.Name] = s
	}
	for _, h := range saved.Hypervisors {
		c.inv.hvs[h.Name] = h
	}
	for _, v := range saved.VMs {
		c.inv.putVM(v)
	}
	slices.SortFunc(saved.Moves, func(a, b Move) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, m := range saved.Moves {
		e := &entry{m: m}
		if m.Open {
			if e.image, err = json.Marshal(m); err != nil {
				return err
			}
		}
		c.insert(e)
	}
	slices.SortFunc(saved.Migrations, func(a, b MigrationRecord) int { return cmp.Compare(a.Order, b.Order) })
	for _, r := range saved.Migrations {
		if !r.Phase.Ended() {
			r.Seq += seqLeap
		}
		c.insertMigration(&migration{r: r})
	}
	for _, l := range saved.Links {
		c.links[l.Link] = l
	}
	slices.SortFunc(saved.Services, func(a, b Service) int { return a.Changed.Compare(b.Changed) })
	c.svc.saved = saved.Services
	c.nonce, c.leased = saved.Nonce, saved.Nonce
	return nil
}

// seqLeap is how far the seq of an open migration leaps at a restart: the last ones may not have been saved, and whoever
// waits for a later one must not wait for ever.
const seqLeap = 1000

func (c *Controller) insert(e *entry) {
	c.moves[e.m.ID] = e
	c.byVM[e.m.VM] = append(c.byVM[e.m.VM], e)
	c.order = append(c.order, e)
	c.seq = max(c.seq, e.m.Seq)
	if e.m.Open {
		c.open[e] = true
		c.rewatch = true
	}
	for _, s := range []*Side{&e.m.Src, &e.m.Tgt} {
		if s.AgentID != "" {
			c.alias[alias{s.Hypervisor, s.AgentID}] = e.m.ID
		}
	}
}

// Run works until ctx ends, and returns nil then; an error means that the endpoint is lost.
func (c *Controller) Run(ctx context.Context) error {
	defer close(c.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.ctx = ctx
	lost := make(chan error, 1)
	c.wg.Go(func() {
		if err := c.ep.Run(ctx, c.wire.handle); err != nil {
			lost <- err
		}
	})
	for _, h := range c.inv.hvs {
		c.startPeer(h)
		c.startWatcher(h)
	}
	now := time.Now()
	c.svc.begin(now)
	for _, e := range c.openMoves() {
		c.log.Info("going on with a move", "move", e.m.ID, "vm", e.m.VM, "state", string(e.m.State))
		if g := c.migrating(e.m.VM); g == nil || g.Move != e.m.ID {
			e.m.Driven = false // nobody is left who would end it
		}
		c.event(e.m.ID, evRestart{}, now)
	}
	for _, m := range c.openMigrations() {
		if m.r.Phase != MigrationQueued {
			c.log.Info("going on with a migration", "migration", m.r.ID, "vm", m.r.VM, "phase", string(m.r.Phase))
			c.migEvent(m.r.ID, gRestart{}, now)
		}
	}
	err := c.loop(ctx, lost)
	cancel()
	c.wg.Wait()
	if a, ok := c.agents.(*httpAgents); ok {
		a.client.CloseIdleConnections()
	}
	if err != nil {
		return fmt.Errorf("controller: endpoint: %w", err)
	}
	return nil
}

func (c *Controller) loop(ctx context.Context, lost <-chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		for e := range c.open {
			if !e.next.IsZero() && !e.next.After(now) {
				c.event(e.m.ID, evTick{}, now)
			}
		}
		for m := range c.migOpen {
			if !m.next.IsZero() && !m.next.After(now) {
				c.migEvent(m.r.ID, gTick{}, now)
			}
		}
		if !c.reconcileAt.IsZero() && !c.reconcileAt.After(now) {
			c.reconcile(now)
		}
		c.flush(now)
		timer.Reset(c.wait(now))
		select {
		case <-ctx.Done():
			c.urgent = true
			if err := c.save(now); err != nil {
				c.log.Error("the last counts are not saved", "err", err)
			}
			return nil
		case err := <-lost:
			return err
		case <-timer.C:
		case f := <-c.inbox:
			// Whatever waits already shares one transaction of the store.
			now = time.Now()
			f(now)
			for range len(c.inbox) {
				f = <-c.inbox
				f(now)
			}
		}
	}
}

// wait is how long nothing has to be done unless something happens.
func (c *Controller) wait(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	for e := range c.open {
		if !e.next.IsZero() && e.next.Before(next) {
			next = e.next
		}
	}
	for m := range c.migOpen {
		if !m.next.IsZero() && m.next.Before(next) {
			next = m.next
		}
	}
	if !c.reconcileAt.IsZero() && c.reconcileAt.Before(next) {
		next = c.reconcileAt
	}
	save := c.lazyAt
	if c.unsaved != nil {
		save = c.saveAt
	} else if at := c.svc.next(); !at.IsZero() && at.Before(next) { // what is not durable is not registered
		next = at
	}
	if !save.IsZero() && save.Before(next) {
		next = save
	}
	return max(next.Sub(now), 0)
}

// post hands f to the owner. It is dropped when the controller ends.
func (c *Controller) post(f func(now time.Time)) {
	select {
	case c.inbox <- f:
	case <-c.ended:
	}
}

// ask has the owner run f, which changes nothing, and returns what f returned.
func (c *Controller) ask(ctx context.Context, f func(now time.Time) (any, error)) (any, error) {
	return c.enter(ctx, f, false)
}

// change has the owner run f, and returns what f returned once what it changed is durable.
func (c *Controller) change(ctx context.Context, f func(now time.Time) (any, error)) (any, error) {
	return c.enter(ctx, f, true)
}

func (c *Controller) enter(ctx context.Context, f func(now time.Time) (any, error), write bool) (any, error) {
	to := make(chan result, 1)
	g := func(now time.Time) {
		v, err := f(now)
		c.answers = append(c.answers, answer{to, result{v, err}, write})
	}
	select {
	case c.inbox <- g:
	case <-c.ended:
		return nil, errStopped
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case r := <-to:
		return r.v, r.err
	case <-c.ended:
		return nil, errStopped
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errStopped = errors.New("the controller has stopped")

// event steps one move.
func (c *Controller) event(id string, ev event, now time.Time) {
	e := c.moves[id]
	if e == nil || !e.m.Open {
		return
	}
	before := e.m.State
	m, acts, next := c.env.step(e.m, ev, now)
	e.m, e.next = m, next
	for _, a := range acts {
		c.acts = append(c.acts, pending{id: id, act: a})
	}
	c.urgent = c.urgent || m.State != before || len(acts) > 0
	if m.State != before {
		c.entered(e, before, now)
	}
	c.touch(e)
}

// touch makes e durable with the next flush, if what is durable of it has changed.
func (c *Controller) touch(e *entry) {
	b, err := json.Marshal(e.m)
	if err != nil {
		c.log.Error("a move cannot be encoded", "move", e.m.ID, "err", err)
		return
	}
	if !bytes.Equal(b, e.image) {
		e.image = b
		c.changed[e.m.ID], c.touched[e.m.ID] = true, true
	}
	if !e.m.Open {
		e.next, e.image = time.Time{}, nil // nothing changes any more
		delete(c.open, e)
		c.rewatch = true
	}
}

// openMoves are the moves with work to do, oldest first.
func (c *Controller) openMoves() []*entry {
	return slices.SortedFunc(maps.Keys(c.open), func(a, b *entry) int { return cmp.Compare(a.m.Seq, b.m.Seq) })
}

// entered does what follows for the rest of the controller when a move has changed its state.
func (c *Controller) entered(e *entry, before State, now time.Time) {
	m := &e.m
	c.counters.add("moves "+string(m.State), 1)
	attrs := []any{"move", m.ID, "vm", m.VM, "from", m.From, "to", m.To, "state", string(m.State), "why", m.Why}
	if m.Error != "" {
		c.log.Warn("move", append(attrs, "err", m.Error)...)
	} else {
		c.log.Info("move", attrs...)
	}
	if g := c.migs[m.ID]; g != nil && g.r.Move == m.ID {
		defer c.tellMigration(m.ID, now)
	}
	v, ok := c.inv.vms[m.VM]
	if !ok {
		return
	}
	switch {
	case m.State.arrived() && !before.arrived():
		v.Hypervisor, v.Placed = m.To, now
		c.supersede(e, now)
	case !m.State.arrived() && before.arrived():
		v.Hypervisor, v.Placed = m.From, now
	}
	if m.State.arrived() && m.Version.Newer(v.Version) {
		v.Version = m.Version
	}
	c.setVM(v)
}

// supersede ends the earlier moves of e's VM, which runs at e's target now: they have nothing to say
// any more.
func (c *Controller) supersede(e *entry, now time.Time) {
	for _, o := range slices.Clone(c.byVM[e.m.VM]) {
		if o.m.Seq < e.m.Seq {
			c.event(o.m.ID, evSuperseded{e.m.ID}, now)
		}
	}
}

// setVM changes what is known of a VM that exists.
func (c *Controller) setVM(v VM) {
	if old, ok := c.inv.vms[v.Name]; ok && old.same(v) && old.Version == v.Version && old.Placed.Equal(v.Placed) {
		return
	}
	c.inv.putVM(v)
	c.dirty.putVM(v)
}

// wakeWatchers tells whoever waits for a move that has come where they want it, or has ended.
func (c *Controller) wakeWatchers(id string) {
	e := c.moves[id]
	left := c.watch[id][:0]
	for _, w := range c.watch[id] {
		switch {
		case w.ctx.Err() != nil:
		case e != nil && w.until(e.m.Record):
			w.to <- e.m.Record
		default:
			left = append(left, w)
		}
	}
	if c.watch[id] = left; len(left) == 0 {
		delete(c.watch, id)
	}
}

// await returns a move's record when until holds, or as it is when ctx ends.
func (c *Controller) await(ctx context.Context, id string, until func(Record) bool) (Record, error) {
	to := make(chan Record, 1)
	get := func(w *watcher) (Record, error) {
		v, err := c.ask(context.WithoutCancel(ctx), func(time.Time) (any, error) {
			e := c.moves[id]
			if e == nil {
				return nil, fail(http.StatusNotFound, "no move %q", id)
			}
			if w != nil && !until(e.m.Record) {
				c.watch[id] = append(c.watch[id], *w)
				return nil, nil
			}
			return e.m.Record, nil
		})
		if v == nil {
			return Record{}, err
		}
		return v.(Record), err
	}
	r, err := get(&watcher{ctx, until, to})
	if err != nil || r.ID != "" {
		return r, err
	}
	select {
	case r := <-to:
		return r, nil
	case <-c.ended:
		return Record{}, errStopped
	case <-ctx.Done():
		return get(nil)
	}
}

// versionOf is the newest version that is known of a VM's mappings without asking anybody.
func (c *Controller) versionOf(v VM) lisp.Version {
	known := v.Version
	for _, e := range c.byVM[v.Name] {
		if e.m.State.arrived() && e.m.Version.Newer(known) {
			known = e.m.Version
		}
	}
	return known
}
