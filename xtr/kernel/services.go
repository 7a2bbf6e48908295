package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// serviceTable is the services as the kernel has them. A service has a number, at which the programs find how
// to translate, and a counter, which stays as long as there is a service with that Outside. It is found by its
// Outside and by its Inside, unless another that was set later has the same Inside in its family.
type serviceTable struct {
	d        *DataPlane
	byOut    map[netip.Prefix]serviceState
	byIn     map[insideKey]netip.Prefix   // the Outside of the service that counts
	others   map[insideKey][]netip.Prefix // of those that do not, the last one set last
	entries  chunked                      // by number
	free     freeList                     // numbers
	counters counterTable
	owners   []fib.Service // whose counter it is; zero = nobody's
	version  uint64        // of owners
	n        struct{ v4, v6, ranges int }
}

type serviceState struct {
	inside netip.Prefix
	to     target // number and counter
}

type insideKey struct {
	inside netip.Prefix
	v4     bool // of a service with IPv4 outside
}

func newServiceTable(d *DataPlane) serviceTable {
	return serviceTable{
		d: d, byOut: make(map[netip.Prefix]serviceState), byIn: make(map[insideKey]netip.Prefix), others: make(map[insideKey][]netip.Prefix),
		entries:  newChunked(d.maps["services"], "services"),
		free:     freeList{next: 1, end: uint32(d.cfg.Capacity) + 1},
		counters: newCounterTable(d.maps["service_counters"], "service_counters"),
	}
}

func inKey(outside, inside netip.Prefix) insideKey { return insideKey{inside, outside.Addr().Is4()} }

// SetServices adds services, or replaces those with the same Outside. A packet meets either the old or the new
// one. Setting a service that is there already changes nothing. An invalid service is an error before anything
// is done. Should two services of a family have the same Inside, the one that was set last is what packets from
// there are translated by, until it is deleted. Only a D-ETR has services ([Config.Anchor]).
func (d *DataPlane) SetServices(ctx context.Context, services ...fib.Service) error {
	for _, s := range services {
		if err := s.Valid(); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
	}
	if len(services) > 0 && !d.cfg.Anchor {
		return errors.New("kernel: services: only a D-ETR translates")
	}
	for len(services) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		n, err := d.setSomeServices(services[:min(len(services), batchLen)])
		if err != nil {
			return fmt.Errorf("kernel: set services: %w", err)
		}
		services = services[n:]
	}
	return nil
}

func (d *DataPlane) setSomeServices(services []fib.Service) (int, error) {
	if err := d.lock(); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	return d.services.set(services)
}

// DelServices deletes the services with these Outside prefixes. One that is not there is no error.
func (d *DataPlane) DelServices(ctx context.Context, outside ...netip.Prefix) error {
	for some := range slices.Chunk(outside, batchLen) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("kernel: %w", err)
		}
		if err := d.delSomeServices(some); err != nil {
			return fmt.Errorf("kernel: delete services: %w", err)
		}
	}
	return nil
}

func (d *DataPlane) delSomeServices(outside []netip.Prefix) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	return d.services.del(outside)
}

// Services returns the services that the kernel has, in the order of Outside.
func (d *DataPlane) Services() []fib.Service {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]fib.Service, 0, len(d.services.byOut))
	for p, s := range d.services.byOut {
		out = append(out, fib.Service{Outside: p, Inside: s.inside})
	}
	slices.SortFunc(out, func(a, b fib.Service) int { return a.Outside.Compare(b.Outside) })
	return out
}

// set sets the first services, at least one, and returns how many.
func (t *serviceTable) set(services []fib.Service) (n int, err error) {
	type change struct {
		s   fib.Service
		to  target
		old serviceState
		had bool
	}
	var changes []change
	seen := make(map[netip.Prefix]bool, len(services))
	for n < len(services) && !seen[services[n].Outside] { // of two with one Outside, the later comes in the next batch
		s := services[n]
		seen[s.Outside] = true
		old, had := t.byOut[s.Outside]
		if had && old.inside == s.Inside {
			n++
			continue
		}
		c := change{s: s, old: old, had: had, to: target{Counter: old.to.Counter}}
		var ok bool
		if c.to.Mapping, ok = t.free.get(); !ok {
			err = fmt.Errorf("no more than %d services", t.free.end-1)
			break
		}
		if !had {
			if c.to.Counter, err = t.counters.take(); err != nil {
				t.free.free = append(t.free.free, c.to.Mapping)
				break
			}
		}
		changes = append(changes, c)
		n++
	}
	if len(changes) == 0 {
		return n, err
	}
	var numbers []uint32
	var entries []serviceEntry
	var w serviceWrites
	for _, c := range changes {
		numbers, entries = append(numbers, c.to.Mapping), append(entries, makeServiceEntry(c.s))
		w.put(tagIn(c.s.Outside), c.s.Inside, c.to)
	}
	errs := t.putEntries(numbers, entries)
	// The Inside first: no answer of a VM is without its service.
	if errs == nil {
		errs = w.flush(t.d)
	}
	for _, c := range changes {
		w.put(tagOut(c.s.Outside), c.s.Outside, c.to)
	}
	if errs == nil {
		errs = w.flush(t.d)
	}
	if errs != nil {
		// There is no memory for it. What was there before stays; what is half there goes.
		for _, c := range changes {
			if !c.had {
				t.counters.free.put(c.to.Counter)
			}
			t.free.put(c.to.Mapping)
			errs = errors.Join(errs, t.write(tagOut(c.s.Outside), c.s.Outside, c.s.Outside), t.writeIn(inKey(c.s.Outside, c.s.Inside)))
		}
		t.bump(&w)
		return n, errors.Join(err, errs)
	}
	for _, c := range changes {
		t.byOut[c.s.Outside] = serviceState{c.s.Inside, c.to}
		t.owns(c.to.Counter, c.s)
		t.hold(inKey(c.s.Outside, c.s.Inside), c.s.Outside)
		if c.had {
			t.leave(inKey(c.s.Outside, c.old.inside), c.s.Outside)
			t.free.put(c.old.to.Mapping)
		} else {
			t.count(c.s.Outside, 1)
		}
	}
	for _, c := range changes {
		if c.had {
			w.touch(tagIn(c.s.Outside), c.old.inside)
			err = errors.Join(err, t.writeIn(inKey(c.s.Outside, c.old.inside)))
		}
	}
	t.bump(&w)
	return n, errors.Join(err, t.tell())
}

func (t *serviceTable) close() {
	t.entries.close()
	t.counters.close()
}

// putEntries writes entries, those of a chunk that follow one another at once.
func (t *serviceTable) putEntries(numbers []uint32, entries []serviceEntry) error {
	for i := 0; i < len(numbers); {
		m, _, err := t.entries.chunk(numbers[i])
		if err != nil {
			return fmt.Errorf("service %d: %w", numbers[i], err)
		}
		j, at := i, make([]uint32, 0, len(numbers)-i)
		for ; j < len(numbers) && numbers[j]/chunkLen == numbers[i]/chunkLen; j++ {
			at = append(at, numbers[j]%chunkLen)
		}
		if _, err := putAll(m, at, entries[i:j]); err != nil {
			return fmt.Errorf("service %d: %w", numbers[i], err)
		}
		i = j
	}
	return nil
}

func (t *serviceTable) del(outside []netip.Prefix) error {
	var errs []error
	var w serviceWrites
	for _, p := range outside {
		s, ok := t.byOut[p]
		if !ok {
			continue
		}
		delete(t.byOut, p)
		t.leave(inKey(p, s.inside), p)
		t.count(p, -1)
		errs = append(errs, t.write(tagOut(p), p, p), t.writeIn(inKey(p, s.inside)))
		w.touch(tagOut(p), p)
		w.touch(tagIn(p), s.inside)
		t.owns(s.to.Counter, fib.Service{})
		t.counters.free.put(s.to.Counter)
		t.free.put(s.to.Mapping)
	}
	t.bump(&w)
	return errors.Join(append(errs, t.tell())...)
}

// hold records that the service at outside is the one that counts for an Inside.
func (t *serviceTable) hold(in insideKey, outside netip.Prefix) {
	if cur, ok := t.byIn[in]; ok && cur != outside {
		t.others[in] = append(t.others[in], cur)
	}
	t.byIn[in] = outside
}

// leave takes that back.
func (t *serviceTable) leave(in insideKey, outside netip.Prefix) {
	rest := slices.DeleteFunc(t.others[in], func(p netip.Prefix) bool { return p == outside })
	if t.byIn[in] == outside {
		delete(t.byIn, in)
		if n := len(rest); n > 0 {
			t.byIn[in], rest = rest[n-1], rest[:n-1]
		}
	}
	if len(rest) == 0 {
		delete(t.others, in)
	} else {
		t.others[in] = rest
	}
}

// count keeps account of what kinds there are.
func (t *serviceTable) count(outside netip.Prefix, n int) {
	if outside.Addr().Is4() {
		t.n.v4 += n
	} else {
		t.n.v6 += n
	}
	if !outside.IsSingleIP() {
		t.n.ranges += n
	}
}

// owns says whose counter n is.
func (t *serviceTable) owns(n uint32, s fib.Service) {
	for int(n) >= len(t.owners) {
		t.owners = append(t.owners, fib.Service{})
	}
	t.owners[n] = s
	t.version++
}

// write makes the kernel find at prefix what byOut says of the service at outside, or nothing.
func (t *serviceTable) write(tag uint32, prefix, outside netip.Prefix) error {
	s, ok := t.byOut[outside]
	var err error
	switch m, key := t.d.serviceKey(tag, prefix); {
	case ok:
		err = m.Put(key, s.to)
	default:
		if err = m.Delete(key); errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("service %v: %w", outside, err)
	}
	return nil
}

// writeIn makes the kernel find at an Inside what byIn says.
func (t *serviceTable) writeIn(in insideKey) error {
	tag := uint32(tagIn6)
	if in.v4 {
		tag = tagIn4
	}
	return t.write(tag, in.inside, t.byIn[in])
}

// bump makes what every CPU remembers of the prefixes void.
func (t *serviceTable) bump(w *serviceWrites) {
	if w.all || len(w.gens) > flushSome {
		w.gens = map[uint32]bool{nGens: true}
	}
	t.d.fib.bump(w.gens)
}

// tell tells the programs what kinds of services there are, so that they look for no others.
func (t *serviceTable) tell() error {
	c := t.d.conf
	c.Flags &^= confServices4 | confServices6 | confRanges
	for flag, n := range map[uint32]int{confServices4: t.n.v4, confServices6: t.n.v6, confRanges: t.n.ranges} {
		if n > 0 {
			c.Flags |= flag
		}
	}
	if c == t.d.conf {
		return nil
	}
	if err := t.d.maps["conf"].Put(uint32(0), c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	t.d.conf = c
	return nil
}

func tagOut(outside netip.Prefix) uint32 {
	if outside.Addr().Is4() {
		return tagOut4
	}
	return tagOut6
}

func tagIn(outside netip.Prefix) uint32 {
	if outside.Addr().Is4() {
		return tagIn4
	}
	return tagIn6
}

// serviceKey is where the kernel looks for a prefix.
func (d *DataPlane) serviceKey(tag uint32, p netip.Prefix) (*ebpf.Map, any) {
	if p.IsSingleIP() {
		return d.maps["service_hosts"], hostKey(tag, p.Addr())
	}
	return d.maps["service_ranges"], rangeKey(tag, p)
}

func hostKey(tag uint32, a netip.Addr) serviceKey { return serviceKey{tag, wordsOf(a)} }

func rangeKey(tag uint32, p netip.Prefix) serviceRange {
	k := serviceRange{Plen: 32 + uint32(p.Bits()), Tag: tag}
	copy(k.Addr[:], p.Addr().AsSlice())
	return k
}

// serviceWrites collects what is to be found where, to be written at once, and whose generations change by it.
type serviceWrites struct {
	hosts    []serviceKey
	hostTo   []target
	ranges   []serviceRange
	rangesTo []target
	gens     map[uint32]bool
	all      bool
}

func (w *serviceWrites) put(tag uint32, p netip.Prefix, to target) {
	w.touch(tag, p)
	if p.IsSingleIP() {
		w.hosts, w.hostTo = append(w.hosts, hostKey(tag, p.Addr())), append(w.hostTo, to)
	} else {
		w.ranges, w.rangesTo = append(w.ranges, rangeKey(tag, p)), append(w.rangesTo, to)
	}
}

func (w *serviceWrites) touch(tag uint32, p netip.Prefix) {
	if w.gens == nil {
		w.gens = make(map[uint32]bool)
	}
	if p.IsSingleIP() {
		w.gens[genAt(p.Addr(), tag)] = true
	} else {
		w.all = true
	}
}

func (w *serviceWrites) flush(d *DataPlane) error {
	_, errHosts := putAll(d.maps["service_hosts"], w.hosts, w.hostTo)
	_, errRanges := putAll(d.maps["service_ranges"], w.ranges, w.rangesTo)
	w.hosts, w.hostTo, w.ranges, w.rangesTo = nil, nil, nil, nil
	return errors.Join(errHosts, errRanges)
}

// Kinds of services: enum of bpf/maps.h.
var serviceKinds = map[fib.ServiceKind]uint8{fib.ServiceIPv4: 1, fib.ServiceOneToOne: 2, fib.ServiceNPTv6: 3}

func makeServiceEntry(s fib.Service) serviceEntry {
	e := serviceEntry{
		Outside: wordsOf(s.Outside.Addr()), Inside: wordsOf(s.Inside.Addr()),
		Kind: serviceKinds[s.Kind()], Bits: uint8(s.HostBits()),
	}
	for i := range e.Keep {
		switch n := s.Inside.Bits() - 8*i; {
		case n <= 0:
			e.Keep[i] = 0xff
		case n < 8:
			e.Keep[i] = 0xff >> n
		}
	}
	if s.Kind() == fib.ServiceNPTv6 {
		e.Word = 3 // a prefix of at most 48 bits leaves the subnet (RFC 6296 section 3.4)
		if s.Inside.Bits() > 48 {
			e.Word = uint8(max(4, (s.Inside.Bits()+15)/16)) // a word of the interface ID (section 3.5)
		}
		out := onesSum(sumOf(e.Inside), ^sumOf(e.Outside))
		binary.BigEndian.PutUint16(e.Out[:], out)
		binary.BigEndian.PutUint16(e.In[:], ^out)
	}
	return e
}

// onesSum is a plus b in one's complement.
func onesSum(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s) + uint16(s>>16)
}

// sumOf is the sum of an address's words in one's complement.
func sumOf(a [16]byte) (sum uint16) {
	for i := 0; i < len(a); i += 2 {
		sum = onesSum(sum, binary.BigEndian.Uint16(a[i:]))
	}
	return sum
}

// service is what an entry says. ok is false for what no service looks like.
func (e serviceEntry) service() (s fib.Service, ok bool) {
	if e.Bits > 128 {
		return s, false
	}
	inside, outside := netip.AddrFrom16(e.Inside), netip.AddrFrom16(e.Outside)
	if e.Kind == serviceKinds[fib.ServiceIPv4] {
		outside = netip.AddrFrom4([4]byte(e.Outside[12:]))
	}
	s = fib.Service{
		Outside: netip.PrefixFrom(outside, outside.BitLen()-int(e.Bits)),
		Inside:  netip.PrefixFrom(inside, 128-int(e.Bits)),
	}
	return s, s.Valid() == nil
}

// read learns from the kernel what services it has.
func (t *serviceTable) read() error {
	if err := errors.Join(t.entries.read(), t.counters.read()); err != nil {
		return fmt.Errorf("services: %w", err)
	}
	found := make(map[uint32]target) // by number
	held := make(map[uint32]bool)    // that packets from inside find
	note := func(tag uint32, to target) {
		if tag == tagIn4 || tag == tagIn6 {
			held[to.Mapping] = true
		} else {
			found[to.Mapping] = to
		}
	}
	err := readAll(t.d.maps["service_hosts"], func(k serviceKey, to target) { note(k.Tag, to) })
	if err == nil {
		err = readAll(t.d.maps["service_ranges"], func(k serviceRange, to target) { note(k.Tag, to) })
	}
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	numbers, counters := make(map[uint32]bool), make(map[uint32]bool)
	var late []fib.Service // no one of them is what packets from inside find, or a later one is
	err = t.readEntries(func(n uint32, e serviceEntry) {
		to, ok := found[n]
		if !ok {
			return
		}
		s, ok := e.service()
		if !ok {
			return
		}
		numbers[n], counters[to.Counter] = true, true
		t.byOut[s.Outside] = serviceState{s.Inside, to}
		t.owns(to.Counter, s)
		t.count(s.Outside, 1)
		if held[n] {
			t.byIn[inKey(s.Outside, s.Inside)] = s.Outside
		} else {
			late = append(late, s)
		}
	})
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	t.free.took(numbers)
	t.counters.free.took(counters)
	for _, s := range late {
		in := inKey(s.Outside, s.Inside)
		if _, ok := t.byIn[in]; ok {
			t.others[in] = append(t.others[in], s.Outside)
			continue
		}
		t.byIn[in] = s.Outside
		if err := t.writeIn(in); err != nil {
			return err
		}
	}
	return t.tell()
}

// readEntries calls f for every entry, also for those that are not in use.
func (t *serviceTable) readEntries(f func(uint32, serviceEntry)) error {
	for i, m := range t.entries.chunks {
		if m == nil {
			continue
		}
		if err := readAll(m, func(in uint32, e serviceEntry) { f(uint32(i)*chunkLen+in, e) }); err != nil {
			return err
		}
	}
	return nil
}

// poolConf is what the programs need to know of the pool prefix.
func poolConf(c *confEntry, pool netip.Prefix) {
	if !pool.IsValid() {
		return
	}
	c.Flags |= confPool
	if pool == wellKnownPrefix {
		c.Flags |= confGlobal
	}
	c.Pool, c.PoolLen = pool.Addr().As16(), uint32(pool.Bits())
	for i := range pool.Bits() / 8 {
		c.PoolMask[i] = 0xff
	}
}

// wellKnownPrefix is that of RFC 6052 section 2.1.
var wellKnownPrefix = netip.MustParsePrefix("64:ff9b::/96")

// checkPool says what keeps p from being a prefix that IPv4 addresses are embedded in (RFC 6052 section 2.2).
func checkPool(p netip.Prefix) error {
	a := p.Addr()
	if !p.IsValid() {
		return nil
	}
	if p != p.Masked() || !a.Is6() || a.Is4In6() {
		return fmt.Errorf("pool prefix %v: not a masked IPv6 prefix", p)
	}
	if !slices.Contains([]int{32, 40, 48, 56, 64, 96}, p.Bits()) {
		return fmt.Errorf("pool prefix %v: its length must be 32, 40, 48, 56, 64 or 96", p)
	}
	if a.As16()[8] != 0 {
		return fmt.Errorf("pool prefix %v: bits 64 to 71 must be zero", p)
	}
	return nil
}
