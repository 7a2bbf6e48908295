package map646

import (
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Valid says what is wrong with a rule.
func (r Rule) Valid() error {
	if !r.V4.IsValid() || !r.V4.Addr().Is4() || r.V4 != r.V4.Masked() {
		return fmt.Errorf("explicit mapping %v: %v is not a masked IPv4 prefix", r, r.V4)
	}
	if !r.V6.IsValid() || !r.V6.Addr().Is6() || r.V6.Addr().Is4In6() || r.V6 != r.V6.Masked() {
		return fmt.Errorf("explicit mapping %v: %v is not a masked IPv6 prefix", r, r.V6)
	}
	// RFC 7757 section 3.2: as many suffix bits or fewer.
	if 32-r.V4.Bits() > 128-r.V6.Bits() {
		return fmt.Errorf("explicit mapping %v: more bits behind the IPv4 prefix than behind the IPv6 prefix", r)
	}
	return nil
}

// String is "V4 <-> V6".
func (r Rule) String() string { return r.V4.String() + " <-> " + r.V6.String() }

// entry is a mapping as packets need it: of a service, or of a rule.
type entry struct {
	outside, inside netip.Prefix
	kind            fib.ServiceKind
	remote          bool   // Rule.Remote
	npt             npt    // of kind ServiceNPTv6
	under           *entry // the service with the same Inside, if any, that was set before it; writers only
}

// to6 translates an IPv4 address that outside contains (RFC 7757 section 3.3.1, steps 3 to 6).
func (e *entry) to6(a addr4) addr6 {
	suffix := uint64(binary.BigEndian.Uint32(a[:])) & (1<<(32-e.outside.Bits()) - 1)
	out := e.inside.Addr().As16()
	hi, lo := shiftLeft(suffix, 128-e.inside.Bits()-(32-e.outside.Bits()))
	binary.BigEndian.PutUint64(out[:8], binary.BigEndian.Uint64(out[:8])|hi)
	binary.BigEndian.PutUint64(out[8:], binary.BigEndian.Uint64(out[8:])|lo)
	return out
}

// to4 translates an IPv6 address that inside contains (RFC 7757 section 3.3.2, steps 3 to 6).
func (e *entry) to4(a addr6) addr4 {
	bits := 32 - e.outside.Bits()
	n := 128 - e.inside.Bits() - bits // behind the suffix, ignored
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	suffix := lo
	switch {
	case n >= 64:
		suffix = hi >> (n - 64)
	case n > 0:
		suffix = hi<<(64-n) | lo>>n
	}
	out := e.outside.Addr().As4()
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(out[:])|uint32(suffix&(1<<bits-1)))
	return out
}

// shiftLeft shifts a number of at most 32 bits into 128 bits.
func shiftLeft(v uint64, n int) (hi, lo uint64) {
	switch {
	case n >= 64:
		return v << (n - 64), 0
	case n == 0:
		return 0, v
	}
	return v >> (64 - n), v << n
}

// The instances of a mapcache.Table stand for the four directions in which addresses are looked up.
const (
	outside4 = iota // IPv4 outside -> mapping
	inside4         // IPv6 inside of an IPv4 mapping -> mapping
	outside6        // IPv6 outside -> service
	inside6         // IPv6 inside of an IPv6 service -> service
)

// tables are the explicit mappings. Readers take no lock; writers are serialized by their owner.
type tables struct {
	lookup mapcache.Table[*entry]
	rules  []*entry
	remote bool                    // a rule is Remote
	byOut  map[netip.Prefix]*entry // the services
	byIn   map[lisp.EID]*entry     // and by their key of the inside: the one that was set last
}

func (t *tables) init(rules []Rule) {
	t.byOut = make(map[netip.Prefix]*entry)
	t.byIn = make(map[lisp.EID]*entry)
	for _, r := range rules {
		t.rules = append(t.rules, &entry{outside: r.V4, inside: r.V6, kind: fib.ServiceIPv4, remote: r.Remote})
		t.remote = t.remote || r.Remote
	}
	t.lookup.Replace(t.all())
}

// keys are under what a mapping is found: by its outside, and by its inside.
func (e *entry) keys() (out, in lisp.EID) {
	if e.kind == fib.ServiceIPv4 {
		return lisp.EID{IID: outside4, Prefix: e.outside}, lisp.EID{IID: inside4, Prefix: e.inside}
	}
	return lisp.EID{IID: outside6, Prefix: e.outside}, lisp.EID{IID: inside6, Prefix: e.inside}
}

// all yields what the look-up consists of; of equal keys the last one counts, which is a service's.
func (t *tables) all() iter.Seq2[lisp.EID, *entry] {
	return func(yield func(lisp.EID, *entry) bool) {
		for _, e := range t.rules {
			out, in := e.keys()
			if !yield(out, e) || !yield(in, e) {
				return
			}
		}
		for _, e := range t.byOut {
			if out, _ := e.keys(); !yield(out, e) {
				return
			}
		}
		for in, e := range t.byIn {
			if !yield(in, e) {
				return
			}
		}
	}
}

// many is from how many services on it is cheaper to build the table again than to insert one by one.
const many = 1024

func (t *tables) set(services []fib.Service) {
	whole := len(services) >= many && len(services) >= len(t.byOut)/8
	for _, s := range services {
		old := t.byOut[s.Outside]
		if old != nil && old.inside == s.Inside {
			continue
		}
		e := &entry{outside: s.Outside, inside: s.Inside, kind: s.Kind()}
		if e.kind == fib.ServiceNPTv6 {
			e.npt = makeNPT(s.Inside, s.Outside)
		}
		t.byOut[s.Outside] = e
		out, in := e.keys()
		e.under = t.byIn[in]
		t.byIn[in] = e
		if !whole {
			// The new Inside first: an answer of the VM is never without its service.
			t.lookup.Insert(in, e)
			t.lookup.Insert(out, e)
		}
		if old != nil {
			t.release(old, !whole)
		}
	}
	if whole {
		t.lookup.Replace(t.all())
	}
}

func (t *tables) del(outside netip.Prefix) {
	e := t.byOut[outside]
	if e == nil {
		return
	}
	delete(t.byOut, outside)
	out, _ := e.keys()
	t.restore(out)
	t.release(e, true)
}

// release takes the Inside from a service that no longer has it, and with now from the look-up too.
func (t *tables) release(e *entry, now bool) {
	_, in := e.keys()
	top := t.byIn[in]
	switch {
	case top == e && e.under == nil:
		delete(t.byIn, in)
	case top == e:
		t.byIn[in] = e.under
	default:
		for o := top; o != nil; o = o.under {
			if o.under == e {
				o.under = e.under
			}
		}
	}
	if now {
		t.restore(in)
	}
}

// restore makes the look-up of a key what is left for it: another service with that Inside, or a rule.
func (t *tables) restore(key lisp.EID) {
	if e := t.byIn[key]; e != nil {
		t.lookup.Insert(key, e)
		return
	}
	for _, e := range t.rules {
		if out, in := e.keys(); out == key || in == key {
			t.lookup.Insert(key, e)
			return
		}
	}
	t.lookup.Delete(key)
}

func (t *tables) services() []fib.Service {
	out := make([]fib.Service, 0, len(t.byOut))
	for _, p := range slices.SortedFunc(maps.Keys(t.byOut), netip.Prefix.Compare) {
		out = append(out, fib.Service{Outside: p, Inside: t.byOut[p].inside})
	}
	return out
}

// find4 looks up an IPv4 address; nil = no explicit mapping.
func (t *tables) find4(a addr4) *entry {
	_, e, _ := t.lookup.Lookup(outside4, netip.AddrFrom4(a))
	return e
}

// find6 looks up an IPv6 address in one of the three directions.
func (t *tables) find6(direction uint32, a addr6) *entry {
	addr := netip.AddrFrom16(a)
	if addr.Is4In6() {
		return nil
	}
	_, e, _ := t.lookup.Lookup(direction, addr)
	return e
}
