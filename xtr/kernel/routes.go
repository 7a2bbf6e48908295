package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// table is the routes as the kernel has them. A route is a prefix in a trie that leads to a mapping,
// which many routes may share, and to a counter of its own, which stays as long as the route does.
type table struct {
	d        *DataPlane
	routes   map[lisp.EID]target
	mappings []mappingState // by number; 0 is "no route"
	byKey    map[mappingKey]uint32
	free     freeList // numbers of mappings
	nonce    uint32

	counters  counterTable
	byCounter []lisp.EID // whose counter it is; zero = nobody's

	gens [nGens + 1]uint32
}

// mappingKey says whether two mappings are the same.
type mappingKey struct {
	m    mapping // without Nonce and Slot
	locs string  // packed locs
	// lone is the nonce of a mapping with Watch: such are not shared, so that every new one is reported
	// anew.
	lone uint32
}

type mappingState struct {
	key  mappingKey
	m    mapping
	locs []loc
	refs int
}

// freeList hands out numbers, and those that were given back only when no program can still be at work
// with them.
type freeList struct {
	next, end uint32
	free      []uint32
	resting   []resting
}

type resting struct {
	n     uint32
	since time.Time
}

// restTime is far longer than any program runs.
const restTime = time.Second

func (f *freeList) put(n uint32) { f.resting = append(f.resting, resting{n, time.Now()}) }

func (f *freeList) get() (uint32, bool) {
	if len(f.free) == 0 {
		f.wake(time.Now().Add(-restTime))
	}
	if len(f.free) == 0 && f.next < f.end {
		f.next++
		return f.next - 1, true
	}
	if len(f.free) == 0 && len(f.resting) > 0 {
		grace()
		f.wake(time.Now())
	}
	if len(f.free) == 0 {
		return 0, false
	}
	n := f.free[len(f.free)-1]
	f.free = f.free[:len(f.free)-1]
	return n, true
}

func (f *freeList) wake(before time.Time) {
	i := 0
	for i < len(f.resting) && !f.resting[i].since.After(before) {
		f.free = append(f.free, f.resting[i].n)
		i++
	}
	f.resting = slices.Delete(f.resting, 0, i)
}

// took tells the list, before anything else is asked of it, which numbers are in use.
func (f *freeList) took(used map[uint32]bool) {
	for n := range used {
		f.next = max(f.next, n+1)
	}
	for n := f.next; n > 1; n-- {
		if !used[n-1] {
			f.free = append(f.free, n-1)
		}
	}
}

func newTable(d *DataPlane) table {
	return table{
		d:        d,
		routes:   make(map[lisp.EID]target),
		mappings: make([]mappingState, 1),
		byKey:    make(map[mappingKey]uint32),
		free:     freeList{next: 1, end: d.maps["mappings"].MaxEntries()},
		counters: newCounterTable(d.maps["counters"], "counters"),
	}
}

func (t *table) close() { t.counters.close() }

func checkEID(e lisp.EID) error {
	a := e.Prefix.Addr()
	if !e.IsValid() || e.Prefix != e.Prefix.Masked() || a.Is4In6() {
		return fmt.Errorf("EID %v: not a masked prefix in an instance", e)
	}
	return nil
}

// Set adds routes, or replaces those for the same EIDs. A packet meets either the old route or the new
// one, never none. Setting a route that is there already changes nothing. Invalid routes are an error
// before anything is done; when the kernel refuses one, those before it are set.
func (d *DataPlane) Set(ctx context.Context, routes ...fib.Route) error {
	if err := d.checkRoutes(routes); err != nil {
		return err
	}
	for len(routes) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		n, err := d.setSome(routes[:min(len(routes), batchLen)])
		if err != nil {
			return err
		}
		routes = routes[n:]
	}
	return nil
}

// batchLen is how many routes are set before others get their turn, who may be moving a VM.
const batchLen = 512

func (d *DataPlane) checkRoutes(routes []fib.Route) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	for i := range routes {
		if err := d.fib.check(&routes[i]); err != nil {
			return fmt.Errorf("kernel: route %v: %w", routes[i].EID, err)
		}
	}
	return nil
}

func (d *DataPlane) setSome(routes []fib.Route) (int, error) {
	if err := d.lock(); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	n, err := d.fib.set(routes)
	if err != nil {
		err = fmt.Errorf("kernel: set routes: %w", err)
	}
	return n, errors.Join(err, d.ports.settle())
}

// Del removes routes. An EID without one is no error.
func (d *DataPlane) Del(ctx context.Context, eids ...lisp.EID) error {
	for some := range slices.Chunk(eids, batchLen) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		if err := d.delSome(some); err != nil {
			return err
		}
	}
	return nil
}

func (d *DataPlane) delSome(eids []lisp.EID) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	err := d.fib.del(eids)
	if err != nil {
		err = fmt.Errorf("kernel: delete routes: %w", err)
	}
	return errors.Join(err, d.ports.settle())
}

// Routes returns the routes that the kernel has. Of Locators it knows those in use and their shares of
// the traffic, not what their priorities and weights were called.
func (d *DataPlane) Routes() []fib.Route {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]fib.Route, 0, len(d.fib.routes))
	for e, to := range d.fib.routes {
		out = append(out, d.fib.mappings[to.Mapping].route(e))
	}
	slices.SortFunc(out, func(a, b fib.Route) int { return a.EID.Compare(b.EID) })
	return out
}

func (t *table) check(r *fib.Route) error {
	if err := checkEID(r.EID); err != nil {
		return err
	}
	switch r.Do {
	case fib.Encap, fib.Native, fib.Drop, fib.Miss:
	case fib.Deliver:
		if len(r.MAC) != 6 {
			return fmt.Errorf("deliver to MAC address %v", r.MAC)
		}
		if t.d.ports.number(r.If) == 0 {
			return fmt.Errorf("deliver to interface %d, which is not attached", r.If)
		}
	case fib.Hold:
		if r.Hold == 0 {
			return errors.New("hold without a number")
		}
	default:
		return fmt.Errorf("unknown action %d", r.Do)
	}
	if r.Hold > fib.MaxHold {
		return fmt.Errorf("hold %d: more than %d", r.Hold, fib.MaxHold)
	}
	return nil
}

// compile says what r is in the kernel, but for slots.
func (t *table) compile(r *fib.Route) (mapping, []loc) {
	m := mapping{Act: uint8(r.Do), MTU: r.MTU, Hold: r.Hold}
	for flag, on := range map[uint8]bool{
		flagTransit: r.Transit, flagMoved: r.Moved, flagCopy: r.Copy && r.Do == fib.Deliver, flagWatch: r.Watch,
	} {
		if on {
			m.Flags |= flag
		}
	}
	var locs []loc
	switch r.Do {
	case fib.Encap:
		locs = rankLocators(r.Locators)
	case fib.Hold:
		if locs = rankLocators(r.Locators); len(locs) > 0 {
			m.Flags |= flagArriving
		}
	case fib.Deliver:
		m.MAC = [6]byte(r.MAC)
		m.Port = t.d.ports.number(r.If)
	}
	if r.If > 0 && (r.Do == fib.Deliver || r.Watch) {
		m.Ifindex = uint32(r.If)
	}
	return m, locs
}

// set sets the first routes, at least one, and returns how many.
func (t *table) set(routes []fib.Route) (n int, err error) {
	type change struct {
		eid     lisp.EID
		to, old target
		had     bool
	}
	var changes []change
	seen := make(map[lisp.EID]bool, len(routes))
	for n < len(routes) && !seen[routes[n].EID] { // of two for one EID, the later comes in the next batch
		r := &routes[n]
		seen[r.EID] = true
		m, locs := t.compile(r)
		old, had := t.routes[r.EID]
		if had && t.mappings[old.Mapping].is(m, locs) {
			n++
			continue
		}
		if m.Flags&flagCopy != 0 {
			t.d.ports.aboutToCopy(m.Port)
		}
		c := change{eid: r.EID, to: old, old: old, had: had}
		if c.to.Mapping, err = t.acquire(m, locs); err != nil {
			break
		}
		if !had {
			if c.to.Counter, err = t.counters.take(); err != nil {
				t.release(c.to.Mapping)
				break
			}
		}
		changes = append(changes, c)
		n++
	}
	// What was prepared is published even when a later route failed.
	var k4 []key4
	var k6 []key6
	var v4, v6 []target
	for _, c := range changes {
		if c.eid.Prefix.Addr().Is4() {
			k4, v4 = append(k4, makeKey4(c.eid)), append(v4, c.to)
		} else {
			k6, v6 = append(k6, makeKey6(c.eid)), append(v6, c.to)
		}
	}
	n4, err4 := putAll(t.d.maps["eid4"], k4, v4)
	n6, err6 := putAll(t.d.maps["eid6"], k6, v6)
	t.flushCache(len(changes), func(yield func(lisp.EID) bool) {
		for _, c := range changes {
			if !yield(c.eid) {
				return
			}
		}
	})
	for _, c := range changes {
		done := &n4
		if !c.eid.Prefix.Addr().Is4() {
			done = &n6
		}
		if *done == 0 { // the kernel did not take this one
			t.release(c.to.Mapping)
			if !c.had {
				t.counters.free.put(c.to.Counter)
			}
			continue
		}
		*done--
		t.routes[c.eid] = c.to
		t.owns(c.to.Counter, c.eid)
		t.d.ports.routeChanged(c.eid, t.portOf(c.old, c.had), t.portOf(c.to, true))
		if c.had {
			t.release(c.old.Mapping)
		}
	}
	return n, errors.Join(err, err4, err6)
}

// portUse is what the ports want to know of a route.
type portUse struct {
	port uint16
	mac  [6]byte
	copy bool
}

func (t *table) portOf(to target, ok bool) portUse {
	if m := t.mappings[to.Mapping].m; ok && m.Act == actDeliver {
		return portUse{m.Port, m.MAC, m.Flags&flagCopy != 0}
	}
	return portUse{}
}

func (t *table) del(eids []lisp.EID) error {
	var errs []error
	var gone []lisp.EID
	for _, e := range eids {
		to, ok := t.routes[e]
		if !ok {
			continue
		}
		var err error
		if e.Prefix.Addr().Is4() {
			err = t.d.maps["eid4"].Delete(makeKey4(e))
		} else {
			err = t.d.maps["eid6"].Delete(makeKey6(e))
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("%v: %w", e, err))
			continue
		}
		gone = append(gone, e)
		delete(t.routes, e)
		t.d.ports.routeChanged(e, t.portOf(to, true), portUse{})
		t.release(to.Mapping)
		t.owns(to.Counter, lisp.EID{})
		t.counters.free.put(to.Counter)
	}
	t.flushCache(len(gone), slices.Values(gone))
	return errors.Join(errs...)
}

// putAll writes entries in order and says how many of the first were written.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) (int, error) {
	if len(keys) >= 16 {
		if n, err := m.BatchUpdate(keys, values, nil); err == nil {
			return n, nil
		}
	}
	for i := range keys {
		err := m.Put(keys[i], values[i])
		if errors.Is(err, unix.ENOSPC) {
			return i, fmt.Errorf("no more than %d routes of a family", m.MaxEntries())
		}
		if err != nil {
			return i, err
		}
	}
	return len(keys), nil
}

// flushCache makes what every CPU remembers of n EIDs void.
func (t *table) flushCache(n int, eids func(func(lisp.EID) bool)) {
	if n == 0 {
		return
	}
	changed := map[uint32]bool{}
	if n > flushSome {
		changed[nGens] = true
	} else {
		for e := range eids {
			if e.IsHost() {
				changed[genOf(e)] = true
			} else {
				changed = map[uint32]bool{nGens: true}
				break
			}
		}
	}
	t.bump(changed)
}

// flushSome is for how many hosts at once only their own generations are changed.
const flushSome = 64

// bump changes generations.
func (t *table) bump(changed map[uint32]bool) {
	for g := range changed {
		t.gens[g]++
		// It can not fail: the element exists.
		_ = t.d.maps["gens"].Put(g, t.gens[g])
	}
}

func (s *mappingState) is(m mapping, locs []loc) bool {
	return s.key.m == m && s.key.locs == packLocs(locs)
}

// acquire returns the number of a mapping like m, which the caller then has a reference to.
func (t *table) acquire(m mapping, locs []loc) (uint32, error) {
	k := mappingKey{m: m, locs: packLocs(locs)}
	if m.Flags&flagWatch != 0 {
		t.nonce++
		k.lone = t.nonce
	}
	if n, ok := t.byKey[k]; ok {
		t.mappings[n].refs++
		return n, nil
	}
	n, ok := t.free.get()
	if !ok {
		return 0, fmt.Errorf("no more than %d different mappings", t.free.end)
	}
	if err := t.d.rlocs.hold(locs); err != nil {
		t.free.free = append(t.free.free, n)
		return 0, err
	}
	s := mappingState{key: k, m: m, locs: locs, refs: 1}
	s.m.Nonce = k.lone
	s.m.Slot = t.d.rlocs.slots(locs)
	if err := t.d.maps["mappings"].Put(n, s.m); err != nil {
		t.free.free = append(t.free.free, n)
		t.d.rlocs.release(locs)
		return 0, fmt.Errorf("mapping %d: %w", n, err)
	}
	if err := t.d.rlocs.keep(n, locs); err != nil {
		t.free.free = append(t.free.free, n)
		t.d.rlocs.release(locs)
		return 0, fmt.Errorf("mapping %d: %w", n, err)
	}
	for int(n) >= len(t.mappings) {
		t.mappings = append(t.mappings, mappingState{})
	}
	t.mappings[n] = s
	t.byKey[k] = n
	return n, nil
}

func (t *table) release(n uint32) {
	s := &t.mappings[n]
	if s.refs--; s.refs > 0 {
		return
	}
	delete(t.byKey, s.key)
	t.d.rlocs.drop(n, s.locs)
	t.d.rlocs.release(s.locs)
	*s = mappingState{}
	t.free.put(n)
}

// reslot gives the mappings that use RLOC n the slots that fit its new state.
func (t *table) reslot(n uint32) error {
	for i := range t.mappings {
		s := &t.mappings[i]
		if s.refs == 0 || !slices.ContainsFunc(s.locs, func(l loc) bool { return t.d.rlocs.number(l.addr) == n }) {
			continue
		}
		slot := t.d.rlocs.slots(s.locs)
		if slot == s.m.Slot {
			continue
		}
		s.m.Slot = slot
		if err := t.d.maps["mappings"].Put(uint32(i), s.m); err != nil {
			return fmt.Errorf("mapping %d: %w", i, err)
		}
	}
	return nil
}

// owns says whose counter n is.
func (t *table) owns(n uint32, e lisp.EID) {
	for int(n) >= len(t.byCounter) {
		t.byCounter = append(t.byCounter, lisp.EID{})
	}
	t.byCounter[n] = e
}

// read learns from the kernel what routes it has.
func (t *table) read() error {
	if err := t.readGens(); err != nil {
		return fmt.Errorf("generations: %w", err)
	}
	if err := t.counters.read(); err != nil {
		return fmt.Errorf("counters: %w", err)
	}
	err := readAll(t.d.maps["eid4"], func(k key4, v target) { t.routes[k.eid()] = v })
	if err == nil {
		err = readAll(t.d.maps["eid6"], func(k key6, v target) { t.routes[k.eid()] = v })
	}
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	mappings, counters := map[uint32]bool{}, map[uint32]bool{}
	for e, to := range t.routes {
		counters[to.Counter] = true
		t.owns(to.Counter, e)
		if !mappings[to.Mapping] {
			mappings[to.Mapping] = true
			if err := t.readMapping(to.Mapping); err != nil {
				return fmt.Errorf("mapping %d: %w", to.Mapping, err)
			}
		}
		t.mappings[to.Mapping].refs++
		t.d.ports.routeChanged(e, portUse{}, t.portOf(to, true))
	}
	t.free.took(mappings)
	t.counters.free.took(counters)
	return nil
}

func (t *table) readMapping(n uint32) error {
	for int(n) >= len(t.mappings) {
		t.mappings = append(t.mappings, mappingState{})
	}
	s := mappingState{}
	if err := t.d.maps["mappings"].Lookup(n, &s.m); err != nil {
		return err
	}
	if s.m.Act == actEncap || s.m.Flags&flagArriving != 0 {
		var err error
		if s.locs, err = t.d.rlocs.kept(n, s.m.Slot); err != nil {
			return err
		}
	}
	if err := t.d.rlocs.hold(s.locs); err != nil {
		return err
	}
	s.key = mappingKey{m: s.m, locs: packLocs(s.locs), lone: s.m.Nonce}
	s.key.m.Nonce, s.key.m.Slot = 0, [nSlots]uint16{}
	t.nonce = max(t.nonce, s.m.Nonce)
	t.byKey[s.key] = n
	t.mappings[n] = s
	return nil
}

func (t *table) readGens() error {
	var k, v uint32
	it := t.d.maps["gens"].Iterate()
	for it.Next(&k, &v) {
		t.gens[k] = v
	}
	return it.Err()
}

// readAll calls f for every entry.
func readAll[K, V any](m *ebpf.Map, f func(K, V)) error {
	const n = 4096
	keys, values := make([]K, n), make([]V, n)
	var cursor ebpf.MapBatchCursor
	for {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range got {
			f(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// route is what a mapping means for EID e.
func (s *mappingState) route(e lisp.EID) fib.Route {
	r := fib.Route{
		EID: e, Do: fib.Do(s.m.Act), MTU: s.m.MTU, Hold: s.m.Hold, If: int(s.m.Ifindex),
		Transit: s.m.Flags&flagTransit != 0, Moved: s.m.Flags&flagMoved != 0,
		Copy: s.m.Flags&flagCopy != 0, Watch: s.m.Flags&flagWatch != 0,
	}
	if r.Do == fib.Deliver {
		r.MAC = s.m.MAC[:]
	}
	for _, l := range s.locs {
		r.Locators = append(r.Locators, lisp.Locator{RLOC: l.addr, Priority: l.rank, Weight: l.weight, Reachable: true})
	}
	return r
}

// packLocs is locs as something comparable.
func packLocs(locs []loc) string {
	var b []byte
	for _, l := range locs {
		a := l.addr.As16()
		b = append(b, a[:]...)
		b = append(b, l.rank, l.weight)
		if l.addr.Is4() {
			b = append(b, 4)
		} else {
			b = append(b, 6)
		}
		b = binary.BigEndian.AppendUint16(b, 0)
	}
	return string(b)
}
