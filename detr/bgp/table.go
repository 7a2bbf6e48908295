package bgp

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// incompleteWait is how long the paths of a mapping may take to arrive before those that are there count.
const incompleteWait = 100 * time.Millisecond

// A table holds the paths of all peers and says which mapping of each EID is to be believed. It reads no
// clock and is owned by one goroutine.
type table struct {
	linger  time.Duration
	home    map[lisp.EID]bool // what the D-ETRs register themselves: see FeedConfig
	entries map[lisp.EID]*entry
	dirty   map[lisp.EID]bool      // to be looked at now
	waiting map[lisp.EID]time.Time // to be looked at then: something is incomplete, or lingers
	wakeAt  time.Time              // the earliest of waiting, or earlier; zero if none waits
	seq     uint64
	paths   map[netip.Addr]*peerPaths
}

// peerPaths counts what one peer says.
type peerPaths struct{ total, stale uint64 }

// An entry is all that is said about one EID.
type entry struct {
	told    []heard
	current lisp.Mapping // what was last emitted, if known
	known   bool
	since   time.Time // when the best mapping began to be incomplete; zero if it is not
}

// heard is a path with who says it.
type heard struct {
	path
	peer  netip.Addr
	seq   uint64 // order of arrival
	stale bool   // the peer is gone and may come back (RFC 4724)
}

func newTable(linger time.Duration, home ...lisp.EID) *table {
	t := &table{
		linger: linger, home: make(map[lisp.EID]bool, len(home)), entries: make(map[lisp.EID]*entry), dirty: make(map[lisp.EID]bool),
		waiting: make(map[lisp.EID]time.Time), paths: make(map[netip.Addr]*peerPaths),
	}
	for _, e := range home {
		t.home[e] = true
	}
	return t
}

func (t *table) peer(a netip.Addr) *peerPaths {
	p := t.paths[a]
	if p == nil {
		p = &peerPaths{}
		t.paths[a] = p
	}
	return p
}

// update takes a path in, in place of an earlier one of the same peer and identifier.
func (t *table) update(eid lisp.EID, peer netip.Addr, p path, stale bool) {
	e := t.entries[eid]
	if e == nil {
		e = &entry{}
		t.entries[eid] = e
	}
	t.seq++
	h := heard{path: p, peer: peer, seq: t.seq, stale: stale}
	count := t.peer(peer)
	if i := e.find(peer, p.id); i >= 0 {
		old := e.told[i]
		if old.stale {
			count.stale--
		}
		if old.path == p {
			h.seq = old.seq // a refresh says nothing new
		}
		e.told[i] = h
	} else {
		e.told = append(e.told, h)
		count.total++
	}
	if stale {
		count.stale++
	}
	t.dirty[eid] = true
}

// withdraw takes a path out. What the EID had stays believed for the linger time unless somebody says
// something new: a withdrawal is never urgent, and often the first half of a change.
func (t *table) withdraw(eid lisp.EID, peer netip.Addr, id uint32, now time.Time) {
	e := t.entries[eid]
	if e == nil {
		return
	}
	i := e.find(peer, id)
	if i < 0 {
		return
	}
	count := t.peer(peer)
	count.total--
	if e.told[i].stale {
		count.stale--
	}
	e.told = slices.Delete(e.told, i, i+1)
	if t.dirty[eid] {
		return
	}
	if _, ok := t.waiting[eid]; !ok {
		t.wait(eid, now.Add(t.linger))
	}
}

func (t *table) wait(eid lisp.EID, until time.Time) {
	t.waiting[eid] = until
	if t.wakeAt.IsZero() || until.Before(t.wakeAt) {
		t.wakeAt = until
	}
}

func (e *entry) find(peer netip.Addr, id uint32) int {
	return slices.IndexFunc(e.told, func(h heard) bool { return h.peer == peer && h.id == id })
}

// next is when due has something to say; zero if nothing waits.
func (t *table) next() time.Time { return t.wakeAt }

// due is what changed by now: the difference to what it returned before.
func (t *table) due(now time.Time) lisp.Delta {
	if !t.wakeAt.IsZero() && !t.wakeAt.After(now) {
		t.wakeAt = time.Time{}
		for eid, at := range t.waiting {
			if !at.After(now) {
				t.dirty[eid] = true
			} else if t.wakeAt.IsZero() || at.Before(t.wakeAt) {
				t.wakeAt = at
			}
		}
	}
	var d lisp.Delta
	for eid := range t.dirty {
		delete(t.waiting, eid)
		e := t.entries[eid]
		m, ok, wait := e.best(eid, t.home[eid], now)
		switch {
		case !wait.IsZero():
			t.wait(eid, wait)
		case ok && (!e.known || !m.Equal(e.current)):
			e.current, e.known = m, true
			d.Put = append(d.Put, m)
		case !ok:
			if e.known {
				d.Del = append(d.Del, eid)
			}
			delete(t.entries, eid)
		}
	}
	clear(t.dirty)
	return d
}

// all is what is believed now.
func (t *table) all() []lisp.Mapping {
	ms := make([]lisp.Mapping, 0, len(t.entries))
	for _, e := range t.entries {
		if e.known {
			ms = append(ms, e.current)
		}
	}
	return ms
}

// best is the mapping to believe: the newest, at equal versions that of the lower xTR-ID. When that one
// is not complete yet, best says until when to wait and changes nothing else. home says that D-ETRs register
// eid, so that a service of all of it is to be believed whatever the version of their registration.
func (e *entry) best(eid lisp.EID, home bool, now time.Time) (m lisp.Mapping, ok bool, wait time.Time) {
	if len(e.told) == 0 {
		return lisp.Mapping{}, false, time.Time{}
	}
	if s, ok := e.service(); home && ok {
		e.since = time.Time{}
		return join(eid, []path{s.path}), true, time.Time{}
	}
	if len(e.told) == 1 && e.told[0].set.count() <= 1 { // nearly always
		e.since = time.Time{}
		return join(eid, []path{e.told[0].path}), true, time.Time{}
	}
	lead := e.told[0]
	leadFull := e.complete(lead)
	for _, h := range e.told[1:] {
		if h.sameMapping(lead.path) {
			lead.seq = max(lead.seq, h.seq)
			continue
		}
		if full := e.complete(h); h.better(full, lead, leadFull) {
			lead, leadFull = h, full
		}
	}
	if !leadFull {
		if e.since.IsZero() {
			e.since = now
		}
		if until := e.since.Add(incompleteWait); until.After(now) {
			return lisp.Mapping{}, true, until
		}
	} else {
		e.since = time.Time{}
	}
	var ps []path
	for _, h := range e.told {
		if h.sameMapping(lead.path) {
			ps = append(ps, h.path)
		}
	}
	return join(eid, ps), true, time.Time{}
}

// service is the newest service that is told; ok is false if there is none.
func (e *entry) service() (s heard, ok bool) {
	for _, h := range e.told {
		if h.inside.IsValid() && (!ok || h.better(true, s, true)) {
			s, ok = h, true
		}
	}
	return s, ok
}

// sameMapping reports whether p and o are locators of the same mapping.
func (p path) sameMapping(o path) bool {
	return p.version == o.version && p.xtr == o.xtr && p.set == o.set
}

// complete reports whether all locators of h's mapping are there.
func (e *entry) complete(h heard) bool {
	want := h.set.count()
	if want <= 1 {
		return true
	}
	var have []netip.Addr
	for _, o := range e.told {
		if o.sameMapping(h.path) && !slices.Contains(have, o.loc.RLOC) {
			have = append(have, o.loc.RLOC)
		}
	}
	return len(have) >= want
}

// better reports whether h is to be believed rather than o. Of two sets of the same version and xTR-ID
// (it changed its locators without a new version) the complete one, and then the later one, counts.
func (h heard) better(hFull bool, o heard, oFull bool) bool {
	if h.version != o.version {
		return h.version.Newer(o.version)
	}
	if c := h.xtr.Compare(o.xtr); c != 0 {
		return c < 0
	}
	if hFull != oFull {
		return hFull
	}
	return h.seq > o.seq
}
