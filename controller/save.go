package controller

import (
	"net/http"
	"slices"
	"time"
)

// nonceLease is how far ahead nonces are made durable: they follow the clock in nanoseconds.
const nonceLease = uint64(20 * time.Minute)

// lazy is how long the agents' counts, and what they acknowledged, may wait for a transaction of the store:
// after a crash they are asked again.
const lazy = time.Second

// flush makes durable what has changed; only then it does what the moves want done and answers callers.
// When the store fails, nothing is done, callers hear of it, and it is tried again.
func (c *Controller) flush(now time.Time) {
	c.schedule(now)
	if err := c.save(now); err != nil {
		for _, a := range c.answers {
			if a.res.err == nil && a.write {
				a.res = result{err: fail(http.StatusServiceUnavailable, "not saved: %v", err)}
			}
			a.to <- a.res
		}
		c.answers = nil
		return
	}
	acts := c.acts
	c.acts = nil
	for _, p := range acts {
		if p.mig != nil {
			c.doMigration(p.id, p.mig)
			continue
		}
		c.do(p, now)
	}
	for _, a := range c.answers {
		a.to <- a.res
	}
	c.answers = nil
	for id := range c.touched {
		c.wakeWatchers(id)
	}
	clear(c.touched)
	for id := range c.migTouched {
		c.wakeMigrationWatchers(id)
	}
	clear(c.migTouched)
	for outside := range c.svc.touched {
		c.wakeServiceWatchers(outside, nil)
	}
	clear(c.svc.touched)
	c.registerServices(now)
	if c.rewatch {
		c.rewatch = false
		c.setWatches()
	}
}

// save makes durable what cannot wait, and all else with it.
func (c *Controller) save(now time.Time) error {
	c.prune()
	c.pruneMigrations()
	if n := c.nextNonce(now); n+nonceLease/2 > c.leased && len(c.env.servers) > 0 {
		c.dirty.Nonce = n + nonceLease
	}
	if len(c.changed)+len(c.migChanged)+len(c.svc.changed) > 0 && c.lazyAt.IsZero() {
		c.lazyAt = now.Add(lazy)
	}
	if !c.urgent && c.dirty.Empty() && len(c.svc.dirty) == 0 && (c.lazyAt.IsZero() || now.Before(c.lazyAt)) {
		return nil
	}
	if c.unsaved != nil && now.Before(c.saveAt) && !slices.ContainsFunc(c.answers, func(a answer) bool { return a.write }) {
		return c.unsaved
	}
	for id := range c.changed {
		if e := c.moves[id]; e != nil {
			c.dirty.putMove(e.m)
		}
	}
	for id := range c.migChanged {
		if m := c.migs[id]; m != nil {
			c.dirty.putMigration(m.r)
		}
	}
	batch := c.dirty
	c.svc.batch(&batch)
	if !batch.Empty() {
		if err := c.store.Save(batch); err != nil {
			c.counters.add("store: saves failed", 1)
			if c.unsaved == nil {
				c.log.Error("the store does not save: moves wait", "err", err)
			}
			c.unsaved, c.saveAt, c.urgent = err, now.Add(lazy), true
			return err
		}
		c.counters.add("store: saves", 1)
		if c.dirty.Nonce != 0 {
			c.leased = c.dirty.Nonce
		}
		c.dirty = Batch{}
	}
	if c.unsaved != nil {
		c.log.Info("the store saves again")
	}
	c.unsaved, c.saveAt, c.lazyAt, c.urgent = nil, time.Time{}, time.Time{}, false
	clear(c.changed)
	clear(c.migChanged)
	clear(c.svc.dirty)
	clear(c.svc.changed)
	return nil
}

// prune forgets the oldest moves that have ended.
func (c *Controller) prune() {
	closed := len(c.order) - len(c.open)
	if closed <= c.cfg.KeepMoves {
		return
	}
	c.order = slices.DeleteFunc(c.order, func(e *entry) bool {
		if e.m.Open || closed <= c.cfg.KeepMoves {
			return false
		}
		closed--
		id := e.m.ID
		delete(c.moves, id)
		delete(c.changed, id)
		for _, s := range []*Side{&e.m.Src, &e.m.Tgt} {
			delete(c.alias, alias{s.Hypervisor, s.AgentID})
		}
		c.byVM[e.m.VM] = slices.DeleteFunc(c.byVM[e.m.VM], func(o *entry) bool { return o == e })
		if len(c.byVM[e.m.VM]) == 0 {
			delete(c.byVM, e.m.VM)
		}
		c.dirty.delMove(id)
		return true
	})
}

// nextNonce is the nonce of the next Map-Register.
func (c *Controller) nextNonce(now time.Time) uint64 {
	return max(c.nonce+1, uint64(max(now.UnixNano(), 0)))
}
