// Package mapcache holds the longest-prefix table over EIDs that map-caches, registrations and feeds are
// kept in: writers copy what they change, readers never wait.
package mapcache

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/tabi-lisp/tabi/lisp"
)

// Table maps EIDs to values of type V, with longest-prefix match within each instance. The zero value is
// an empty Table; it must not be copied.
//
// All methods may be called from any goroutine. Readers take no lock and see each write whole; an
// iteration sees the state of each instance at the moment it reaches it. A value that was inserted is
// shared with all readers: it is replaced, not changed. An Insert or Delete copies the values next to its
// own, so V had better be small: a pointer to what is large.
type Table[V any] struct {
	mu        sync.Mutex // serializes writers
	instances atomic.Pointer[map[uint32]*instance[V]]
	size      atomic.Int64
}

// instance is the table of one instance-ID.
type instance[V any] struct {
	table atomic.Pointer[bart.Table[V]]
}

// Insert adds v at e, or replaces what is there. It returns what was replaced. An EID that is not valid
// is ignored.
func (t *Table[V]) Insert(e lisp.EID, v V) (old V, replaced bool) {
	if !e.IsValid() {
		return old, false
	}
	p := lisp.MakeEID(e.IID, e.Prefix).Prefix
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.instance(e.IID)
	if in == nil {
		in = &instance[V]{}
		in.table.Store(&bart.Table[V]{})
		t.edit(func(m map[uint32]*instance[V]) { m[e.IID] = in })
	}
	table := in.table.Load()
	if old, replaced = table.Get(p); !replaced {
		t.size.Add(1)
	}
	in.table.Store(table.InsertPersist(p, v))
	return old, replaced
}

// Delete removes the entry at exactly e and returns what it was.
func (t *Table[V]) Delete(e lisp.EID) (old V, deleted bool) {
	if !e.IsValid() {
		return old, false
	}
	p := lisp.MakeEID(e.IID, e.Prefix).Prefix
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.instance(e.IID)
	if in == nil {
		return old, false
	}
	table := in.table.Load()
	if old, deleted = table.Get(p); !deleted {
		return old, false
	}
	t.size.Add(-1)
	if table.Size() == 1 {
		t.edit(func(m map[uint32]*instance[V]) { delete(m, e.IID) })
	}
	in.table.Store(table.DeletePersist(p))
	return old, true
}

// Replace makes entries the whole content. It is the way to load many: an Insert copies the nodes on its
// way, a Replace nothing.
func (t *Table[V]) Replace(entries iter.Seq2[lisp.EID, V]) {
	tables := make(map[uint32]*bart.Table[V])
	size := 0
	for e, v := range entries {
		if !e.IsValid() {
			continue
		}
		table := tables[e.IID]
		if table == nil {
			table = &bart.Table[V]{}
			tables[e.IID] = table
		}
		table.Insert(lisp.MakeEID(e.IID, e.Prefix).Prefix, v)
	}
	m := make(map[uint32]*instance[V], len(tables))
	for iid, table := range tables {
		in := &instance[V]{}
		in.table.Store(table)
		m[iid] = in
		size += table.Size()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.instances.Store(&m)
	t.size.Store(int64(size))
}

// Get returns the entry at exactly e.
func (t *Table[V]) Get(e lisp.EID) (v V, ok bool) {
	if table := t.table(e.IID); table != nil && e.IsValid() {
		return table.Get(lisp.MakeEID(e.IID, e.Prefix).Prefix)
	}
	return v, false
}

// Lookup returns the entry with the longest prefix that covers a.
func (t *Table[V]) Lookup(iid uint32, a netip.Addr) (e lisp.EID, v V, ok bool) {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return e, v, false
	}
	return t.LookupEID(lisp.HostEID(iid, a))
}

// LookupEID returns the entry with the longest prefix that covers all of e: e itself or a less-specific.
func (t *Table[V]) LookupEID(e lisp.EID) (match lisp.EID, v V, ok bool) {
	table := t.table(e.IID)
	if table == nil || !e.IsValid() {
		return match, v, false
	}
	p, v, ok := table.LookupPrefixLPM(lisp.MakeEID(e.IID, e.Prefix).Prefix)
	if !ok {
		return match, v, false
	}
	return lisp.EID{IID: e.IID, Prefix: p}, v, true
}

// Len is the number of entries.
func (t *Table[V]) Len() int { return int(t.size.Load()) }

// All yields every entry, in the order of instance-ID, IPv4 before IPv6, address, prefix length.
func (t *Table[V]) All() iter.Seq2[lisp.EID, V] {
	return func(yield func(lisp.EID, V) bool) {
		m := t.load()
		for _, iid := range slices.Sorted(maps.Keys(m)) {
			for p, v := range m[iid].table.Load().AllSorted() {
				if !yield(lisp.EID{IID: iid, Prefix: p}, v) {
					return
				}
			}
		}
	}
}

// Subnets yields the more-specifics of e, which itself is not among them, in ascending order.
func (t *Table[V]) Subnets(e lisp.EID) iter.Seq2[lisp.EID, V] {
	return func(yield func(lisp.EID, V) bool) {
		table := t.table(e.IID)
		if table == nil || !e.IsValid() {
			return
		}
		self := lisp.MakeEID(e.IID, e.Prefix).Prefix
		for p, v := range table.Subnets(self) {
			if p != self && !yield(lisp.EID{IID: e.IID, Prefix: p}, v) {
				return
			}
		}
	}
}

// Supernets yields the less-specifics of e, which itself is not among them, the longest first.
func (t *Table[V]) Supernets(e lisp.EID) iter.Seq2[lisp.EID, V] {
	return func(yield func(lisp.EID, V) bool) {
		table := t.table(e.IID)
		if table == nil || !e.IsValid() {
			return
		}
		self := lisp.MakeEID(e.IID, e.Prefix).Prefix
		for p, v := range table.Supernets(self) {
			if p != self && !yield(lisp.EID{IID: e.IID, Prefix: p}, v) {
				return
			}
		}
	}
}

// Hole returns the least-specific prefix that covers a and overlaps no entry: what a negative Map-Reply
// speaks of (RFC 9301 section 8.4). If an entry covers a there is none, and the EID is not valid.
func (t *Table[V]) Hole(iid uint32, a netip.Addr) lisp.EID {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return lisp.EID{}
	}
	at := func(bits int) netip.Prefix { return netip.PrefixFrom(a, bits).Masked() }
	table := t.table(iid)
	if table == nil {
		return lisp.EID{IID: iid, Prefix: at(0)}
	}
	// A prefix that overlaps nothing contains only such: so the shortest is found by bisection.
	low, high := 0, a.BitLen()+1
	for low < high {
		if mid := (low + high) / 2; table.OverlapsPrefix(at(mid)) {
			low = mid + 1
		} else {
			high = mid
		}
		if low > a.BitLen() {
			return lisp.EID{}
		}
	}
	return lisp.EID{IID: iid, Prefix: at(low)}
}

func (t *Table[V]) load() map[uint32]*instance[V] {
	if m := t.instances.Load(); m != nil {
		return *m
	}
	return nil
}

func (t *Table[V]) instance(iid uint32) *instance[V] { return t.load()[iid] }

func (t *Table[V]) table(iid uint32) *bart.Table[V] {
	if in := t.instance(iid); in != nil {
		return in.table.Load()
	}
	return nil
}

// edit replaces the set of instances by a copy that f has changed. The caller holds t.mu.
func (t *Table[V]) edit(f func(map[uint32]*instance[V])) {
	m := maps.Clone(t.load())
	if m == nil {
		m = make(map[uint32]*instance[V])
	}
	f(m)
	t.instances.Store(&m)
}
