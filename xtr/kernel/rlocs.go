package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
)

// loc is a usable locator of a mapping: rank 0 gets the traffic while one of that rank is up, shared by
// weight.
type loc struct {
	addr   netip.Addr
	rank   uint8
	weight uint8
}

// rankLocators takes what is usable, in order of priority, and brings equal sets into equal form.
func rankLocators(all []lisp.Locator) []loc {
	var use []lisp.Locator
	for _, l := range all {
		if l.Usable() {
			l.RLOC = l.RLOC.Unmap().WithZone("")
			use = append(use, l)
		}
	}
	slices.SortStableFunc(use, func(a, b lisp.Locator) int {
		if a.Priority != b.Priority {
			return int(a.Priority) - int(b.Priority)
		}
		return lisp.CompareLocators(a, b)
	})
	use = slices.CompactFunc(use, func(a, b lisp.Locator) bool { return a.Priority == b.Priority && a.RLOC == b.RLOC })
	var out []loc
	for i := 0; i < len(use); {
		j, common := i, 0
		for ; j < len(use) && use[j].Priority == use[i].Priority; j++ {
			common = gcd(common, int(use[j].Weight))
		}
		rank := uint8(0)
		if len(out) > 0 {
			rank = out[len(out)-1].rank + 1
		}
		for ; i < j; i++ {
			w := uint8(1) // all weights 0: equal shares (RFC 9301 section 5.4)
			if common > 0 {
				w = use[i].Weight / uint8(common)
			}
			out = append(out, loc{use[i].RLOC, rank, w})
		}
	}
	return out[:min(len(out), nSlots)] // more could not share the slots
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// rlocTable is the RLOCs that mappings speak of, by number.
type rlocTable struct {
	d      *DataPlane
	byAddr map[netip.Addr]uint32
	states []rlocState
	down   map[netip.Addr]bool
	free   freeList
	links  map[int]int // MTU of the interfaces, while paths are looked up
	found  map[uint32]rlocEntry
}

type rlocState struct {
	addr  netip.Addr
	refs  int
	entry rlocEntry
}

func newRLOCTable(d *DataPlane) rlocTable {
	return rlocTable{
		d:      d,
		byAddr: make(map[netip.Addr]uint32),
		states: make([]rlocState, 1),
		down:   make(map[netip.Addr]bool),
		free:   freeList{next: 1, end: nRLOCs},
	}
}

func (t *rlocTable) number(a netip.Addr) uint32 { return t.byAddr[a] }

// hold takes a reference to every RLOC of locs.
func (t *rlocTable) hold(locs []loc) error {
	for i, l := range locs {
		if err := t.holdOne(l.addr); err != nil {
			t.release(locs[:i])
			return err
		}
	}
	return nil
}

func (t *rlocTable) holdOne(a netip.Addr) error {
	if n, ok := t.byAddr[a]; ok {
		t.states[n].refs++
		return nil
	}
	n, ok := t.free.get()
	if !ok {
		return fmt.Errorf("RLOC %v: no more than %d RLOCs", a, nRLOCs-1)
	}
	for int(n) >= len(t.states) {
		t.states = append(t.states, rlocState{})
	}
	s := rlocState{addr: a, refs: 1}
	t.links = nil
	s.entry = t.template(a)
	if err := t.d.maps["rlocs"].Put(n, s.entry); err != nil {
		t.free.free = append(t.free.free, n)
		return fmt.Errorf("RLOC %v: %w", a, err)
	}
	t.states[n] = s
	t.byAddr[a] = n
	return nil
}

// release gives references back. What an RLOC's entry says stays until another takes its number: a
// packet may be on its way there.
func (t *rlocTable) release(locs []loc) {
	for _, l := range locs {
		n := t.byAddr[l.addr]
		s := &t.states[n]
		if s.refs--; s.refs > 0 {
			continue
		}
		delete(t.byAddr, l.addr)
		*s = rlocState{}
		t.free.put(n)
	}
}

// template is the outer header towards a and the way there.
func (t *rlocTable) template(a netip.Addr) rlocEntry {
	e := rlocEntry{}
	if !t.down[a] {
		e.Up = 1
	}
	src, ok := t.source(a)
	if !ok {
		return e // no RLOC of this family: no path
	}
	t.path(&e, src, a)
	if slices.ContainsFunc(t.d.cfg.AllowedRLOCs, func(p netip.Prefix) bool { return p.Contains(a) }) {
		e.GPE = 1
	}
	if a.Is4() {
		s, d := src.As4(), a.As4()
		copy(e.Src[:], s[:])
		copy(e.Dst[:], d[:])
		for i := 0; i < 4; i += 2 {
			e.Csum += uint32(e.Src[i]) | uint32(e.Src[i+1])<<8
			e.Csum += uint32(e.Dst[i]) | uint32(e.Dst[i+1])<<8
		}
	} else {
		e.V6 = 1
		e.Src, e.Dst = src.As16(), a.As16()
	}
	return e
}

// source is the first of our RLOCs in the family of a.
func (t *rlocTable) source(a netip.Addr) (netip.Addr, bool) {
	for _, s := range t.d.cfg.Self {
		if s.Is4() == a.Is4() {
			return s, true
		}
	}
	return netip.Addr{}, false
}

// path asks the kernel's routes for the interface and the next hop towards a, and for the largest inner
// packet that fits.
func (t *rlocTable) path(e *rlocEntry, src, a netip.Addr) {
	routes, err := t.d.nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{SrcAddr: src.AsSlice()})
	if err != nil {
		// The kernel refuses a source that is not (yet) an address of ours.
		routes, err = t.d.nl.RouteGet(a.AsSlice())
	}
	if err != nil || len(routes) == 0 {
		return
	}
	r := routes[0]
	if r.Type != unix.RTN_UNICAST || r.LinkIndex == t.d.door.index {
		return
	}
	size, ok := t.links[r.LinkIndex]
	if !ok {
		link, err := t.d.nl.LinkByIndex(r.LinkIndex)
		if err != nil {
			return
		}
		size = link.Attrs().MTU
		if t.links != nil {
			t.links[r.LinkIndex] = size
		}
	}
	if r.MTU > 0 && r.MTU < size {
		size = r.MTU
	}
	outer := 36
	if a.Is6() {
		outer = 56
	}
	if size <= outer {
		return
	}
	e.Ifindex, e.MTU = uint32(r.LinkIndex), uint16(min(size-outer, 65535))
	// A packet is spared the look-up that was made here. The neighbour stays the kernel's to know.
	hop := a
	if r.Gw != nil {
		hop, _ = netip.AddrFromSlice(r.Gw)
	}
	if via, ok := r.Via.(*netlink.Via); ok {
		hop, _ = netip.AddrFromSlice(via.Addr)
	}
	switch hop = hop.Unmap(); {
	case hop.Is4():
		e.Family = unix.AF_INET
		copy(e.Hop[:], hop.AsSlice())
	case hop.Is6():
		e.Family = unix.AF_INET6
		e.Hop = hop.As16()
	}
}

// refresh looks all paths up again, after the host's routes or interfaces have changed.
func (t *rlocTable) refresh() error {
	t.links = make(map[int]int)
	defer func() { t.links = nil }()
	var errs []error
	for n := range t.states {
		s := &t.states[n]
		if s.refs == 0 {
			continue
		}
		e := t.template(s.addr)
		if e == s.entry {
			continue
		}
		if err := t.d.maps["rlocs"].Put(uint32(n), e); err != nil {
			errs = append(errs, fmt.Errorf("RLOC %v: %w", s.addr, err))
			continue
		}
		s.entry = e
	}
	return errors.Join(errs...)
}

// RLOCState says whether packets may be sent to an RLOC. One write takes it out of all mappings: those
// with others of the same priority share them at once, the rest go over to the next priority. An RLOC
// that no route speaks of yet is remembered.
func (d *DataPlane) RLOCState(a netip.Addr, up bool) error {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return errors.New("kernel: RLOC state: not an address")
	}
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	t := &d.rlocs
	if up {
		delete(t.down, a)
	} else {
		t.down[a] = true
	}
	n, ok := t.byAddr[a]
	if !ok {
		return nil
	}
	s := &t.states[n]
	s.entry.Up = 0
	if up {
		s.entry.Up = 1
	}
	if err := d.maps["rlocs"].Put(n, s.entry); err != nil {
		return fmt.Errorf("kernel: RLOC %v: %w", a, err)
	}
	if err := d.fib.reslot(n); err != nil {
		return fmt.Errorf("kernel: RLOC %v: %w", a, err)
	}
	return nil
}

// slots shares the slots among the locators of the best rank that has one up, by weight. What one that is
// down would have is shared among those that are up; the others keep theirs, and so their flows.
func (t *rlocTable) slots(locs []loc) (slot [nSlots]uint16) {
	group := bestGroup(locs, t.down)
	var up []loc
	for _, l := range group {
		if !t.down[l.addr] {
			up = append(up, l)
		}
	}
	if len(up) == 0 {
		up = group // the kernel will find that all are down
	}
	all, left := share(group), share(up)
	for i := range slot {
		l := all()
		if len(up) < len(group) && t.down[l.addr] {
			l = left()
		}
		slot[i] = uint16(t.byAddr[l.addr])
	}
	return slot
}

// share returns a function that deals out locators by weight, in turn.
func share(group []loc) func() loc {
	owing := make([]int, len(group))
	total := 0
	for _, l := range group {
		total += int(l.weight)
	}
	return func() loc {
		if len(group) == 0 {
			return loc{}
		}
		best := 0
		for i, l := range group {
			owing[i] += int(l.weight)
			if owing[i] > owing[best] {
				best = i
			}
		}
		owing[best] -= total
		return group[best]
	}
}

func bestGroup(locs []loc, down map[netip.Addr]bool) []loc {
	var first []loc
	for i := 0; i < len(locs); {
		j, up := i, false
		var group []loc
		for ; j < len(locs) && locs[j].rank == locs[i].rank; j++ {
			if locs[j].weight > 0 {
				group = append(group, locs[j])
				up = up || !down[locs[j].addr]
			}
		}
		if up {
			return group
		}
		if first == nil {
			first = group
		}
		i = j
	}
	return first // all are down: the kernel will say so
}

// keep writes down for the next process what the slots of mapping n do not say.
func (t *rlocTable) keep(n uint32, locs []loc) error {
	if len(locs) < 2 {
		return nil
	}
	var all locators
	for i, l := range locs {
		all[i].RLOC, all[i].Rank, all[i].Weight = uint16(t.byAddr[l.addr]), l.rank, l.weight
	}
	return t.d.maps["backups"].Put(n, all)
}

func (t *rlocTable) drop(n uint32, locs []loc) {
	if len(locs) < 2 {
		return
	}
	if err := t.d.maps["backups"].Delete(n); err != nil {
		t.d.log.Warn("locators of an old mapping are left", "mapping", n, "error", err)
	}
}

// kept reads the locators of mapping n, and takes up their numbers.
func (t *rlocTable) kept(n uint32, slot [nSlots]uint16) ([]loc, error) {
	var all locators
	err := t.d.maps["backups"].Lookup(n, &all)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		all[0].RLOC, all[0].Weight = slot[0], 1
	} else if err != nil {
		return nil, err
	}
	var locs []loc
	for _, l := range all {
		if l.RLOC == 0 {
			break
		}
		a, ok := t.adopt(uint32(l.RLOC))
		if !ok {
			return nil, fmt.Errorf("RLOC %d is not there", l.RLOC)
		}
		locs = append(locs, loc{a, l.Rank, l.Weight})
	}
	return locs, nil
}

// adopt takes up a number that a mapping in the kernel uses. Others may still say something, but to
// nobody.
func (t *rlocTable) adopt(n uint32) (netip.Addr, bool) {
	if int(n) < len(t.states) && t.states[n].addr.IsValid() {
		return t.states[n].addr, true
	}
	e, ok := t.found[n]
	if !ok {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom16(e.Dst)
	if e.V6 == 0 {
		a = netip.AddrFrom4([4]byte(e.Dst[:4]))
	}
	for int(n) >= len(t.states) {
		t.states = append(t.states, rlocState{})
	}
	t.states[n] = rlocState{addr: a, entry: e}
	t.byAddr[a] = n
	if e.Up == 0 {
		t.down[a] = true
	}
	return a, true
}

// read learns from the kernel what it has; the mappings then say which of it is in use.
func (t *rlocTable) read() error {
	t.found = make(map[uint32]rlocEntry)
	err := readAll(t.d.maps["rlocs"], func(n uint32, e rlocEntry) {
		if e.Dst != [16]byte{} {
			t.found[n] = e
		}
	})
	if err != nil {
		return fmt.Errorf("RLOCs: %w", err)
	}
	return nil
}

// taken ends the reading, when all mappings have been read.
func (t *rlocTable) taken() {
	t.found = nil
	used := map[uint32]bool{}
	for _, n := range t.byAddr {
		used[n] = true
	}
	t.free.took(used)
	if err := t.refresh(); err != nil {
		t.d.log.Warn("paths not looked up", "error", err)
	}
}
