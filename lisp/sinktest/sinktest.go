// Package sinktest holds the conformance test that every [lisp.Sink] passes.
package sinktest

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
)

// Subject is a Sink under test.
type Subject struct {
	Sink lisp.Sink

	// Content reads back what the Sink holds, in any order. If the Sink works behind Apply's back, Content
	// waits until it is done.
	Content func(t *testing.T) []lisp.Mapping

	// Keep is what the Sink keeps of a mapping; nil means all of it. A Sink that has no place for, say, the
	// Site-ID sets it to zero here.
	Keep func(lisp.Mapping) lisp.Mapping

	// Services says that Content reads back services, too: mappings of a service address to an EID. A Sink that
	// takes them must then pass with them as with other mappings.
	Services bool
}

// Test runs the conformance test. start makes an empty Sink; it is called once for each subtest.
func Test(t *testing.T, start func(t *testing.T) Subject) {
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			s := start(t)
			if c.services && !s.Services {
				return
			}
			s.check(t, "at the start", nil)
			for _, step := range c.steps {
				for _, again := range []string{"", ", applied twice"} {
					before := clone(step.d)
					if err := s.Sink.Apply(t.Context(), step.d); err != nil {
						t.Fatalf("Apply, %s%s: %v", step.what, again, err)
					}
					if d := cmp.Diff(before, step.d, opts); d != "" {
						t.Fatalf("%s%s: the Sink changed the Delta (-before +after):\n%s", step.what, again, d)
					}
					s.check(t, step.what+again, step.want)
				}
			}
		})
	}
	t.Run("order of Put does not matter", func(t *testing.T) {
		ms := everything()
		forth, back := start(t), start(t)
		apply(t, forth.Sink, lisp.Delta{Put: ms})
		slices.Reverse(ms)
		apply(t, back.Sink, lisp.Delta{Put: ms})
		forth.check(t, "forth", ms)
		back.check(t, "back", ms)
	})
	t.Run("a context that has ended", func(t *testing.T) {
		s := start(t)
		apply(t, s.Sink, lisp.Delta{Put: []lisp.Mapping{web(1)}})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		// "takes d whole or, with an error, not at all".
		if err := s.Sink.Apply(ctx, lisp.Delta{Full: true, Put: []lisp.Mapping{web(2), peer()}}); err != nil {
			s.check(t, "after an error", []lisp.Mapping{web(1)})
		} else {
			s.check(t, "after success", []lisp.Mapping{web(2), peer()})
		}
	})
}

var opts = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(lisp.EID{}, lisp.Locator{})}

func (s Subject) check(t *testing.T, when string, want []lisp.Mapping) {
	t.Helper()
	got := slices.Clone(s.Content(t))
	want = slices.Clone(want)
	for _, ms := range [][]lisp.Mapping{got, want} {
		for i := range ms {
			ms[i].Locators = slices.SortedFunc(slices.Values(ms[i].Locators), lisp.CompareLocators)
			if s.Keep != nil {
				ms[i] = s.Keep(ms[i])
			}
		}
		slices.SortFunc(ms, func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
	}
	if d := cmp.Diff(want, got, opts); d != "" {
		t.Fatalf("%s: content (-want +got):\n%s", when, d)
	}
}

func apply(t *testing.T, s lisp.Sink, d lisp.Delta) {
	t.Helper()
	if err := s.Apply(t.Context(), d); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func clone(d lisp.Delta) lisp.Delta {
	d.Put, d.Del = slices.Clone(d.Put), slices.Clone(d.Del)
	for i := range d.Put {
		d.Put[i].Locators = slices.Clone(d.Put[i].Locators)
	}
	return d
}

type step struct {
	what string
	d    lisp.Delta
	want []lisp.Mapping
}

func cases() []struct {
	name     string
	services bool
	steps    []step
} {
	type list = []lisp.Mapping
	aggregate := web(1)
	aggregate.EID = eid("198.51.100.0/24")
	other := web(3)
	other.EID = eid("[7]198.51.100.10")
	two := web(4)
	two.Locators = append(slices.Clone(two.Locators), locator("100.64.4.2", 1))
	front, six, moved := service("203.0.113.10", "2001:db8:e1d:1::20/128", 1), service("2001:db8:5e::/48", "2001:db8:e1d::/48", 2),
		service("203.0.113.10", "2001:db8:e1d:1::21/128", 2)
	late := moved
	late.Inside = front.Inside // the same version with another EID
	return []struct {
		name     string
		services bool
		steps    []step
	}{
		{"Put", false, []step{
			{"add one", lisp.Delta{Put: list{web(1)}}, list{web(1)}},
			{"add another", lisp.Delta{Put: list{peer()}}, list{web(1), peer()}},
			{"replace one", lisp.Delta{Put: list{web(2)}}, list{web(2), peer()}},
			{"add a locator", lisp.Delta{Put: list{two}}, list{two, peer()}},
			{"take a locator away", lisp.Delta{Put: list{web(5)}}, list{web(5), peer()}},
		}},
		{"Del", false, []step{
			{"delete from nothing", lisp.Delta{Del: []lisp.EID{web(0).EID}}, nil},
			{"add", lisp.Delta{Put: list{web(1), peer()}}, list{web(1), peer()}},
			{"delete", lisp.Delta{Del: []lisp.EID{web(0).EID}}, list{peer()}},
			{"delete and add", lisp.Delta{Put: list{web(2)}, Del: []lisp.EID{peer().EID}}, list{web(2)}},
		}},
		{"Full", false, []step{
			{"add", lisp.Delta{Put: list{web(1), peer()}}, list{web(1), peer()}},
			{"the same", lisp.Delta{Full: true, Put: list{web(1), peer()}}, list{web(1), peer()}},
			{"one less, one more, one other", lisp.Delta{Full: true, Put: list{web(2), aggregate}}, list{web(2), aggregate}},
			{"nothing", lisp.Delta{Full: true}, nil},
			{"everything", lisp.Delta{Full: true, Put: everything()}, everything()},
		}},
		{"keys", false, []step{
			{"a prefix and a host in it", lisp.Delta{Put: list{web(1), aggregate}}, list{web(1), aggregate}},
			{"the same in another instance", lisp.Delta{Put: list{other}}, list{web(1), aggregate, other}},
			{"delete the prefix", lisp.Delta{Del: []lisp.EID{aggregate.EID}}, list{web(1), other}},
			{"the prefix again", lisp.Delta{Put: list{aggregate}}, list{web(1), aggregate, other}},
			{"delete the host", lisp.Delta{Del: []lisp.EID{web(0).EID}}, list{aggregate, other}},
		}},
		{"services", true, []step{
			{"add two beside a host", lisp.Delta{Put: list{front, six, web(1)}}, list{front, six, web(1)}},
			{"another EID", lisp.Delta{Put: list{moved}}, list{moved, six, web(1)}},
			{"another EID of the same version", lisp.Delta{Put: list{late}}, list{late, six, web(1)}},
			{"delete one", lisp.Delta{Del: []lisp.EID{six.EID}}, list{late, web(1)}},
			{"a host in place of a service, a service in place of a host",
				lisp.Delta{Put: list{at(front.EID, 9), service("198.51.100.10", "2001:db8:e1d:1::22/128", 9)}},
				list{at(front.EID, 9), service("198.51.100.10", "2001:db8:e1d:1::22/128", 9)}},
			{"only services", lisp.Delta{Full: true, Put: list{front, six}}, list{front, six}},
			{"no services", lisp.Delta{Full: true, Put: list{web(1)}}, list{web(1)}},
			{"nothing", lisp.Delta{Full: true}, nil},
		}},
		{"empty", false, []step{
			{"nothing", lisp.Delta{}, nil},
			{"add", lisp.Delta{Put: list{web(1)}}, list{web(1)}},
			{"nothing again", lisp.Delta{}, list{web(1)}},
		}},
	}
}

func eid(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func service(outside, inside string, v lisp.Version) lisp.Mapping {
	return lisp.NewService(eid(outside).Prefix, netip.MustParsePrefix(inside), v)
}

// at is a host mapping of e.
func at(e lisp.EID, v lisp.Version) lisp.Mapping {
	m := web(v)
	m.EID = e
	return m
}

func locator(a string, priority uint8) lisp.Locator {
	return lisp.Locator{RLOC: netip.MustParseAddr(a), Priority: priority, Weight: 100, MPriority: 255, Reachable: true}
}

// web is a host mapping that moves with its version: odd ones to IPv4, even ones to IPv6.
func web(v lisp.Version) lisp.Mapping {
	rloc, id := "100.64.1.2", lisp.XTRID{15: 1}
	if v%2 == 0 {
		rloc, id = "2001:db8:100:3::2", lisp.XTRID{15: 3}
	}
	return lisp.Mapping{EID: eid("198.51.100.10"), TTL: 1440, Version: v, Locators: []lisp.Locator{locator(rloc, 1)},
		XTRID: id, SiteID: 1}
}

// peer is an IPv6 host mapping.
func peer() lisp.Mapping {
	return lisp.Mapping{EID: eid("2001:db8:e1d:1::20"), TTL: 60, Version: 9,
		Locators: []lisp.Locator{locator("100.64.2.2", 1), locator("2001:db8:100:2::2", 2)}, XTRID: lisp.XTRID{0: 2}, SiteID: 2}
}

// everything is one of each kind.
func everything() []lisp.Mapping {
	instance := peer()
	instance.EID = eid("[16777215]2001:db8:e1d:1::20")
	newest := peer()
	newest.EID, newest.Version = eid("2001:db8:e1d::/48"), lisp.VersionMask
	return []lisp.Mapping{web(1), peer(), instance, newest}
}
