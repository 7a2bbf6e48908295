package mapcache

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
)

var byValue = cmp.Options{cmpopts.EquateComparable(lisp.EID{}), cmpopts.EquateEmpty()}

func eid(t *testing.T, s string) lisp.EID {
	t.Helper()
	e, err := lisp.ParseEID(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// slow is the obvious table: the oracle.
type slow map[lisp.EID]int

func (s slow) lookup(iid uint32, a netip.Addr) (best lisp.EID, ok bool) {
	for e := range s {
		if e.Contains(lisp.HostEID(iid, a)) && (!ok || e.Prefix.Bits() > best.Prefix.Bits()) {
			best, ok = e, true
		}
	}
	return best, ok
}

func (s slow) hole(iid uint32, a netip.Addr) lisp.EID {
	for bits := range a.BitLen() + 1 {
		h := lisp.MakeEID(iid, netip.PrefixFrom(a, bits))
		free := true
		for e := range s {
			if e.IID == iid && e.Prefix.Overlaps(h.Prefix) {
				free = false
			}
		}
		if free {
			return h
		}
	}
	return lisp.EID{}
}

func (s slow) within(e lisp.EID) (es []lisp.EID) {
	for o := range s {
		if e != o && e.Contains(o) {
			es = append(es, o)
		}
	}
	slices.SortFunc(es, lisp.EID.Compare)
	return es
}

func (s slow) above(e lisp.EID) (es []lisp.EID) {
	for o := range s {
		if e != o && o.Contains(e) {
			es = append(es, o)
		}
	}
	slices.SortFunc(es, func(a, b lisp.EID) int { return b.Prefix.Bits() - a.Prefix.Bits() })
	return es
}

func keys(seq func(func(lisp.EID, int) bool)) (es []lisp.EID) {
	for e := range seq {
		es = append(es, e)
	}
	return es
}

// randomEID draws from few bits, so that prefixes nest and repeat.
func randomEID(r *rand.Rand) lisp.EID {
	iid := uint32(r.IntN(3))
	if r.IntN(2) == 0 {
		a := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)) << 6, 0, byte(r.IntN(8))})
		return lisp.MakeEID(iid, netip.PrefixFrom(a, r.IntN(33)))
	}
	a := netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 6: byte(r.IntN(4)) << 6, 15: byte(r.IntN(8))})
	return lisp.MakeEID(iid, netip.PrefixFrom(a, r.IntN(129)))
}

func TestAgainstOracle(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 0))
		var table Table[int]
		oracle := slow{}
		for i := range 200 {
			e := randomEID(r)
			want, known := oracle[e]
			if r.IntN(3) == 0 {
				if got, ok := table.Delete(e); ok != known || got != want {
					t.Fatalf("seed %d: Delete(%v) = %d, %v; want %d, %v", seed, e, got, ok, want, known)
				}
				delete(oracle, e)
			} else {
				if got, ok := table.Insert(e, i); ok != known || got != want {
					t.Fatalf("seed %d: Insert(%v) = %d, %v; want %d, %v", seed, e, got, ok, want, known)
				}
				oracle[e] = i
			}
			if table.Len() != len(oracle) {
				t.Fatalf("seed %d: Len() = %d, want %d", seed, table.Len(), len(oracle))
			}
			q := randomEID(r)
			a := q.Prefix.Addr()
			want2, wantOK := oracle.lookup(q.IID, a)
			got, v, ok := table.Lookup(q.IID, a)
			if got != want2 || ok != wantOK || v != oracle[want2] {
				t.Fatalf("seed %d: Lookup(%d, %v) = %v, %d, %v; want %v", seed, q.IID, a, got, v, ok, want2)
			}
			if got, want := table.Hole(q.IID, a), oracle.hole(q.IID, a); got != want {
				t.Fatalf("seed %d: Hole(%d, %v) = %v, want %v in %v", seed, q.IID, a, got, want, oracle)
			}
			within := keys(table.Subnets(q))
			if !slices.IsSortedFunc(within, lisp.EID.Compare) {
				t.Fatalf("seed %d: Subnets(%v) = %v is not sorted", seed, q, within)
			}
			if d := cmp.Diff(oracle.within(q), within, byValue); d != "" {
				t.Fatalf("seed %d: Subnets(%v) (-want +got):\n%s", seed, q, d)
			}
			if d := cmp.Diff(oracle.above(q), keys(table.Supernets(q)), byValue); d != "" {
				t.Fatalf("seed %d: Supernets(%v) (-want +got):\n%s", seed, q, d)
			}
			wantV, known := oracle[q]
			if v, ok := table.Get(q); ok != known || v != wantV {
				t.Fatalf("seed %d: Get(%v) = %d, %v", seed, q, v, ok)
			}
		}
		all := keys(table.All())
		if len(all) != len(oracle) {
			t.Fatalf("seed %d: All yields %d entries, want %d", seed, len(all), len(oracle))
		}
		var copied Table[int]
		copied.Insert(eid(t, "[9]192.0.2.0/24"), 1)
		copied.Replace(table.All())
		if d := cmp.Diff(all, keys(copied.All()), byValue); d != "" || copied.Len() != len(all) {
			t.Fatalf("seed %d: after Replace, Len %d (-want +got):\n%s", seed, copied.Len(), d)
		}
	}
}

func TestLookupEID(t *testing.T) {
	var table Table[string]
	table.Insert(eid(t, "198.51.100.0/24"), "aggregate")
	table.Insert(eid(t, "198.51.100.10"), "host")
	for q, want := range map[string]string{
		"198.51.100.10": "198.51.100.10/32", "198.51.100.11": "198.51.100.0/24",
		"198.51.100.8/29": "198.51.100.0/24", "198.51.100.0/24": "198.51.100.0/24",
	} {
		if e, _, ok := table.LookupEID(eid(t, q)); !ok || e.String() != want {
			t.Errorf("LookupEID(%s) = %v, %v; want %s", q, e, ok, want)
		}
	}
	for _, q := range []string{"198.51.0.0/16", "[1]198.51.100.10", "2001:db8::1"} {
		if e, _, ok := table.LookupEID(eid(t, q)); ok {
			t.Errorf("LookupEID(%s) = %v, want nothing", q, e)
		}
	}
}

func TestHole(t *testing.T) {
	var table Table[int]
	table.Insert(eid(t, "198.51.100.0/24"), 1)
	table.Insert(eid(t, "2001:db8:e1d::/48"), 1)
	for a, want := range map[string]string{
		"198.51.101.1": "198.51.101.0/24", "192.0.2.1": "192.0.0.0/6", "10.0.0.1": "0.0.0.0/1",
		"2001:db8:e1e::1": "2001:db8:e1e::/47", "fe80::1": "8000::/1", "::ffff:192.0.2.1": "192.0.0.0/6",
	} {
		if got := table.Hole(0, netip.MustParseAddr(a)); got.String() != want {
			t.Errorf("Hole(%s) = %v, want %s", a, got, want)
		}
	}
	if got := table.Hole(5, netip.MustParseAddr("198.51.100.1")); got.String() != "[5]0.0.0.0/0" {
		t.Errorf("in an empty instance: %v", got)
	}
	if got := table.Hole(0, netip.MustParseAddr("198.51.100.1")); got.IsValid() {
		t.Errorf("where an entry is: %v", got)
	}
	if got := table.Hole(0, netip.Addr{}); got.IsValid() {
		t.Errorf("of no address: %v", got)
	}
}

func TestInvalid(t *testing.T) {
	var table Table[int]
	for _, e := range []lisp.EID{{}, {IID: 1 << 24, Prefix: netip.MustParsePrefix("10.0.0.0/8")}} {
		table.Insert(e, 1)
		if _, ok := table.Get(e); ok || table.Len() != 0 {
			t.Errorf("%v was inserted", e)
		}
		if _, ok := table.Delete(e); ok {
			t.Errorf("%v was deleted", e)
		}
		for range table.Subnets(e) {
			t.Errorf("%v has more-specifics", e)
		}
	}
	if _, _, ok := table.Lookup(0, netip.Addr{}); ok {
		t.Error("no address has an entry")
	}
}

// A reader that runs beside writers sees an entry that is always there, whatever happens around it.
func TestConcurrentReaders(t *testing.T) {
	var table Table[int]
	fixed := eid(t, "10.1.0.7")
	table.Insert(fixed, 7)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				if e, v, ok := table.Lookup(0, fixed.Prefix.Addr()); !ok || v != 7 || e != fixed {
					t.Errorf("Lookup = %v, %d, %v", e, v, ok)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		if e := randomEID(r); e != fixed && i%2 == 0 {
			table.Insert(e, i)
		} else if e != fixed {
			table.Delete(e)
		}
	}
	close(done)
	wg.Wait()
}
