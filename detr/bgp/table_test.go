package bgp

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

var web = eid("198.51.100.10/32")

// teller feeds a table as peers would, and keeps what the table said.
type teller struct {
	t    *testing.T
	tab  *table
	now  time.Time
	have map[lisp.EID]lisp.Mapping
	puts int
}

func newTeller(t *testing.T) *teller {
	return &teller{t: t, tab: newTable(time.Second), now: time.Unix(1e9, 0), have: make(map[lisp.EID]lisp.Mapping)}
}

// says makes peer say m, path by path, and withdraws what it said before and no longer does: what a Pusher
// does.
func (r *teller) says(peer string, m lisp.Mapping) {
	ps := split(m)
	for _, p := range ps {
		r.path(peer, m.EID, p)
	}
	for id := len(ps) + 1; id < 8; id++ {
		r.unsays(peer, m.EID, uint32(id))
	}
}

func (r *teller) path(peer string, e lisp.EID, p path) {
	r.tab.update(e, addr(peer), p, false)
	r.settle()
}

func (r *teller) unsays(peer string, e lisp.EID, id uint32) {
	r.tab.withdraw(e, addr(peer), id, r.now)
	r.settle()
}

func (r *teller) settle() {
	r.t.Helper()
	d := r.tab.due(r.now)
	r.puts += len(d.Put)
	for _, m := range d.Put {
		if old, ok := r.have[m.EID]; ok && old.Equal(m) {
			r.t.Errorf("told of %v twice", m)
		}
		r.have[m.EID] = m
	}
	for _, e := range d.Del {
		if _, ok := r.have[e]; !ok {
			r.t.Errorf("told that %v, which was never there, is gone", e)
		}
		delete(r.have, e)
	}
}

func (r *teller) pass(d time.Duration) {
	r.now = r.now.Add(d)
	r.settle()
}

func (r *teller) want(what string, m lisp.Mapping) {
	r.t.Helper()
	got, ok := r.have[m.EID]
	if d := cmp.Diff(m, got, equal); !ok || d != "" {
		r.t.Fatalf("%s: (-want +got, present %v)\n%s", what, ok, d)
	}
}

func (r *teller) wantNone(what string) {
	r.t.Helper()
	if m, ok := r.have[web]; ok {
		r.t.Fatalf("%s: still there: %+v", what, m)
	}
}

const ms1, ms2 = "100.64.7.2", "100.64.8.2"

// at is web at an RLOC.
func at(v lisp.Version, xtr byte, rlocs ...string) lisp.Mapping {
	m := mapping(web.String(), v, xtr)
	for _, a := range rlocs {
		m.Locators = append(m.Locators, loc(a))
	}
	return m
}

func TestNewestWins(t *testing.T) {
	for _, c := range []struct {
		name     string
		one, two lisp.Mapping // said by ms1, ms2
		wins     int
	}{
		{"newer", at(1, 1, "100.64.1.2"), at(2, 2, "100.64.2.2"), 2},
		{"older", at(3, 1, "100.64.1.2"), at(2, 2, "100.64.2.2"), 1},
		{"serial arithmetic", at(4095, 1, "100.64.1.2"), at(1, 2, "100.64.2.2"), 2},
		{"half the circle", at(1, 1, "100.64.1.2"), at(2048, 2, "100.64.2.2"), 2},
		{"no version", at(0, 1, "100.64.1.2"), at(4000, 2, "100.64.2.2"), 2},
		{"lower xTR-ID", at(5, 9, "100.64.1.2"), at(5, 2, "100.64.2.2"), 2},
		{"lower xTR-ID, the other way", at(5, 1, "100.64.1.2"), at(5, 2, "100.64.2.2"), 1},
		{"gone at the newer version", at(5, 1, "100.64.1.2"),
			lisp.Mapping{EID: web, Version: 6, TTL: 1, Action: lisp.ActDrop, XTRID: lisp.XTRID{2}}, 2},
	} {
		for _, order := range []string{"ms1 first", "ms2 first"} {
			t.Run(c.name+", "+order, func(t *testing.T) {
				r := newTeller(t)
				want, other := c.one, ms2
				if c.wins == 2 {
					want, other = c.two, ms1
				}
				if order == "ms1 first" {
					r.says(ms1, c.one)
					r.says(ms2, c.two)
				} else {
					r.says(ms2, c.two)
					r.says(ms1, c.one)
				}
				r.want("both have spoken", want)
				before := r.puts
				for range 3 { // late refreshes of the other change nothing
					r.says(other, map[string]lisp.Mapping{ms1: c.one, ms2: c.two}[other])
				}
				if r.puts != before {
					t.Errorf("%d more puts after refreshes", r.puts-before)
				}
			})
		}
	}
}

// TestServices: one peer that has heard of a service and one that has not.
func TestServices(t *testing.T) {
	five, six := service(web.String(), "2001:db8:e1d::a/128", 5), service(web.String(), "2001:db8:e1d::b/128", 6)
	for _, c := range []struct {
		name       string
		home       bool
		one, two   lisp.Mapping
		wins, then lisp.Mapping // then: when ms2 has withdrawn
	}{
		{"newer", false, five, six, six, five},
		{"newer, of a whole prefix", true, five, six, six, five},
		{"one of a VM is newer", false, five, at(6, 1, "100.64.1.2"), at(6, 1, "100.64.1.2"), five},
		{"a service as new as one of a VM", false, five, at(5, 1, "100.64.1.2"), five, five},
		{"a registration of D-ETRs is newer", true, five, at(6, 1, "100.64.5.2", "100.64.6.2"), five, five},
		{"two services and a registration", true, at(9, 1, "100.64.5.2", "100.64.6.2"), six, six, at(9, 1, "100.64.5.2", "100.64.6.2")},
	} {
		for _, first := range []string{ms1, ms2} {
			t.Run(c.name+", "+first+" first", func(t *testing.T) {
				r := newTeller(t)
				if c.home {
					r.tab = newTable(time.Second, web)
				}
				says := []func(){func() { r.says(ms1, c.one) }, func() { r.says(ms2, c.two) }}
				if first == ms2 {
					slices.Reverse(says)
				}
				for _, f := range says {
					f()
				}
				r.want("both have spoken", c.wins)
				for id := range uint32(8) {
					r.unsays(ms2, web, id)
				}
				r.pass(time.Second)
				r.want("one has withdrawn", c.then)
				for id := range uint32(8) {
					r.unsays(ms1, web, id)
				}
				r.pass(time.Second)
				r.wantNone("both have withdrawn")
			})
		}
	}
}

// TestSequences: what is believed after each step.
func TestSequences(t *testing.T) {
	a, b := at(1, 1, "100.64.1.2"), at(2, 2, "100.64.2.2")
	two := at(3, 3, "100.64.3.2", "2001:db8:100:3::2")

	t.Run("a change of the set is whole", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, a)
		ps := split(two)
		r.path(ms1, web, ps[0]) // replaces a's path
		r.want("half of it", a)
		r.path(ms1, web, ps[1])
		r.want("all of it", two)
		one := at(4, 1, "100.64.1.2")
		r.path(ms1, web, split(one)[0])
		r.want("back to one", one)
		r.unsays(ms1, web, 2)
		r.pass(time.Minute)
		r.want("much later", one)
		if r.puts != 3 {
			t.Errorf("%d puts, want 3", r.puts)
		}
	})
	t.Run("a change of the set without a new version is whole", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, two)
		other := at(3, 3, "100.64.3.2", "2001:db8:100:4::2")
		ps := split(other)
		r.path(ms1, web, ps[0])
		r.want("half of it", two)
		r.path(ms1, web, ps[1])
		r.want("all of it", other)
		fewer := at(3, 3, "2001:db8:100:4::2")
		r.path(ms1, web, split(fewer)[0])
		r.want("fewer", fewer)
	})
	t.Run("an incomplete set is used after a while", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, a)
		r.path(ms1, web, split(two)[0])
		r.pass(incompleteWait - time.Millisecond)
		r.want("not yet", a)
		r.pass(time.Millisecond)
		r.want("now", at(3, 3, "100.64.3.2"))
		if !r.tab.next().IsZero() {
			t.Errorf("still waits until %v", r.tab.next())
		}
	})
	t.Run("halves from two peers are a whole", func(t *testing.T) {
		r := newTeller(t)
		r.path(ms1, web, split(two)[0])
		r.path(ms2, web, split(two)[1])
		r.want("both", two)
	})
	t.Run("the newest is withdrawn", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, a)
		r.says(ms2, b)
		r.unsays(ms2, web, 1)
		r.want("it lingers", b)
		r.pass(time.Second)
		r.want("the older is what is left", a)
		r.unsays(ms1, web, 1)
		r.want("it lingers", a)
		r.pass(time.Second)
		r.wantNone("nobody says it")
		if len(r.tab.entries) != 0 || len(r.tab.waiting) != 0 || !r.tab.next().IsZero() {
			t.Errorf("left behind: %v, %v", r.tab.entries, r.tab.waiting)
		}
	})
	t.Run("withdrawn and said again", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, a)
		r.unsays(ms1, web, 1)
		r.pass(time.Second / 2)
		r.says(ms1, a)
		r.pass(time.Minute)
		r.want("it never went", a)
		if r.puts != 1 {
			t.Errorf("%d puts, want 1", r.puts)
		}
	})
	t.Run("withdrawn and registered anew", func(t *testing.T) {
		r := newTeller(t)
		r.says(ms1, at(9, 1, "100.64.1.2"))
		r.unsays(ms1, web, 1)
		r.says(ms1, b) // an older number, but nobody says the other any more
		r.want("at once", b)
	})
	t.Run("a route reflector says what two Map-Servers say", func(t *testing.T) {
		r := newTeller(t)
		pa, pb := split(a)[0], split(b)[0]
		pa.id, pb.id = 1, 2
		r.path(ms1, web, pa)
		r.path(ms1, web, pb)
		r.want("the newer", b)
		pc := split(two)
		pc[0].id, pc[1].id = 1, 3
		r.path(ms1, web, pc[0])
		r.path(ms1, web, pc[1])
		r.want("two locators of one, one of the other", two)
	})
	t.Run("the same version with other locators", func(t *testing.T) {
		// An xTR changed its locators without a new version, and one Map-Server has heard of it.
		r := newTeller(t)
		changed := at(1, 1, "100.64.9.2")
		r.says(ms1, a)
		r.says(ms2, a)
		r.says(ms2, changed)
		r.want("what came last", changed)
		r.says(ms1, a)
		r.want("a refresh is no news", changed)
		r.says(ms1, changed)
		r.want("both", changed)
	})
	t.Run("ECMP of a speaker that knows nothing of LISP", func(t *testing.T) {
		r := newTeller(t)
		for i, hop := range []string{"192.0.2.1", "192.0.2.2"} {
			p, err := parsePath(64512, uint32(i), addr(hop), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.path(ms1, web, p)
		}
		m := r.have[web]
		if m.Version != 0 || len(m.Locators) != 2 {
			t.Errorf("got %+v", m)
		}
		r.says(ms2, a)
		r.want("a version is newer than none", a)
	})
}

// TestStale: what a lost peer said stays until it is said again or taken back, and is counted.
func TestStale(t *testing.T) {
	r := newTeller(t)
	a := at(1, 1, "100.64.1.2")
	r.says(ms1, a)
	r.tab.update(web, addr(ms1), split(a)[0], true)
	r.settle()
	if c := r.tab.peer(addr(ms1)); c.total != 1 || c.stale != 1 {
		t.Errorf("counts %+v", c)
	}
	r.want("stale", a)
	r.says(ms1, a)
	if c := r.tab.peer(addr(ms1)); c.total != 1 || c.stale != 0 {
		t.Errorf("counts %+v", c)
	}
	r.tab.update(web, addr(ms1), split(a)[0], true)
	r.unsays(ms1, web, 1)
	r.pass(time.Second)
	r.wantNone("restart time over")
	if c := r.tab.peer(addr(ms1)); c.total != 0 || c.stale != 0 {
		t.Errorf("counts %+v", c)
	}
	if r.puts != 1 {
		t.Errorf("%d puts, want 1", r.puts)
	}
}

// TestAgree: whatever two Map-Servers and a reflector say in whatever order, when all is said the table
// believes the newest of what they say last, and every table agrees.
func TestAgree(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		peers := []string{ms1, ms2, "2001:db8:100:7::2"}
		last := make(map[string]map[lisp.EID]lisp.Mapping)
		var script []func(*teller)
		for range 60 {
			peer := peers[rnd.IntN(len(peers))]
			e := eid(fmt.Sprintf("198.51.100.%d/32", rnd.IntN(3)))
			if last[peer] == nil {
				last[peer] = make(map[lisp.EID]lisp.Mapping)
			}
			if rnd.IntN(5) == 0 {
				n := len(split(last[peer][e]))
				delete(last[peer], e)
				script = append(script, func(r *teller) {
					for id := range n {
						r.unsays(peer, e, uint32(id+1))
					}
				})
				continue
			}
			// A version has one xTR and one set: what Map-Servers disagree on is which is the newest.
			v := lisp.Version(rnd.IntN(6) + 1)
			x := byte(rnd.IntN(3) + 1)
			m := mapping(e.String(), v, x)
			for i := range (int(v)+int(x))%3 + 1 {
				m.Locators = append(m.Locators, loc(fmt.Sprintf("100.64.%d.%d", x, i)))
			}
			last[peer][e] = m
			script = append(script, func(r *teller) { r.says(peer, m) })
		}
		r := newTeller(t)
		for _, s := range script {
			s(r)
			r.pass(time.Duration(rnd.IntN(200)) * time.Millisecond)
		}
		r.pass(time.Hour)
		want := make(map[lisp.EID]lisp.Mapping)
		for _, said := range last {
			for e, m := range said {
				if w, ok := want[e]; !ok || m.Supersedes(w) {
					want[e] = m
				}
			}
		}
		if d := cmp.Diff(want, r.have, equal); d != "" {
			t.Fatalf("seed %d (-newest +believed):\n%s", seed, d)
		}
		if n := len(r.tab.waiting); n != 0 {
			t.Fatalf("seed %d: %d still waiting", seed, n)
		}
		total := uint64(0)
		for _, said := range last {
			for _, m := range said {
				total += uint64(len(split(m)))
			}
		}
		var have uint64
		for c := range maps.Values(r.tab.paths) {
			have += c.total
		}
		if have != total {
			t.Fatalf("seed %d: counts %d paths, want %d", seed, have, total)
		}
	}
}

// TestSync: when the first full Delta is due.
func TestSync(t *testing.T) {
	start := time.Unix(1e9, 0)
	type tell struct {
		after time.Duration
		e     event
	}
	up := func(p string) event { return event{kind: eventSession, peer: addr(p), up: true} }
	down := func(p string) event { return event{kind: eventSession, peer: addr(p)} }
	eor := func(p string, f Family) event { return event{kind: eventEndOfRIB, peer: addr(p), of: f} }
	for _, c := range []struct {
		name  string
		tells []tell
		full  time.Duration // 0: never
	}{
		{"nobody comes", nil, 0},
		{"both say so", []tell{
			{0, up(ms1)}, {0, up(ms2)}, {1, eor(ms1, IPv4)}, {1, eor(ms1, IPv6)}, {2, eor(ms2, IPv4)}, {3, eor(ms2, IPv6)},
		}, 3},
		{"one says so, the other never comes", []tell{{0, up(ms1)}, {1, eor(ms1, IPv4)}, {1, eor(ms1, IPv6)}}, 5000},
		{"one says so, the other goes on sending", []tell{
			{0, up(ms1)}, {1, eor(ms1, IPv4)}, {1, eor(ms1, IPv6)}, {4000, up(ms2)},
		}, 5000},
		{"one family is missing", []tell{{0, up(ms1)}, {0, up(ms2)}, {1, eor(ms1, IPv4)}, {2, eor(ms2, IPv6)}}, 5000},
		{"one comes late and is not able to say so", []tell{{100, up(ms1)}}, 5100},
		{"one is lost before it has said so", []tell{{0, up(ms1)}, {1, eor(ms1, IPv4)}, {2, down(ms1)}, {3, eor(ms1, IPv6)}}, 0},
		{"one is lost and comes back", []tell{
			{0, up(ms1)}, {1, down(ms1)}, {6000, up(ms1)}, {6001, eor(ms1, IPv4)}, {6001, eor(ms1, IPv6)},
		}, 11000},
	} {
		t.Run(c.name, func(t *testing.T) {
			says := map[netip.Addr][]Family{addr(ms1): {IPv4, IPv6}, addr(ms2): {IPv4, IPv6}}
			f := &Feed{
				table: newTable(time.Second), cfg: FeedConfig{SyncWait: 5 * time.Second},
				peers: map[netip.Addr]*feedPeer{addr(ms1): {}, addr(ms2): {}},
			}
			var due time.Duration
			tells := slices.Clone(c.tells)
			wake := start
			for ms := time.Duration(0); ms < 20000 && due == 0; ms++ {
				now := start.Add(ms * time.Millisecond)
				for len(tells) > 0 && tells[0].after == ms {
					f.handle(tells[0].e, says, now)
					tells, wake = tells[1:], now
				}
				if wake.IsZero() || now.Before(wake) {
					continue // as the loop: it looks only when told to
				}
				full, next := f.sync(now)
				wake = next
				if full {
					due = ms
				}
			}
			if due != c.full {
				t.Errorf("full Delta after %d ms, want %d", due, c.full)
			}
		})
	}
}

// TestExplain: who says what, and whom we believe.
func TestExplain(t *testing.T) {
	f := &Feed{table: newTable(time.Second), changed: make(chan struct{}, 1), peers: map[netip.Addr]*feedPeer{}}
	f.queue = []event{
		{kind: eventUpdate, peer: addr(ms1), eid: web, path: split(at(4, 1, "100.64.1.2"))[0]},
		{kind: eventUpdate, peer: addr(ms2), eid: web, path: split(at(5, 2, "100.64.2.2"))[0], stale: true},
		{kind: eventUpdate, peer: addr("2001:db8::1"), eid: web, path: split(at(5, 2, "100.64.2.2"))[0]},
	}
	f.step(t.Context(), time.Unix(1e9, 0))
	got, err := f.Explain(t.Context(), web)
	want := []lisp.Finding{
		{Part: "bgp", Says: "100.64.8.2 says: at 100.64.2.2, version 5 of xTR 00000000000000000000000000000002",
			Why: "believed, though the peer is gone: it may come back (graceful restart)"},
		{Part: "bgp", Says: "2001:db8::1 says: at 100.64.2.2, version 5 of xTR 00000000000000000000000000000002",
			Why: "believed: no peer has a newer version"},
		{Part: "bgp", Says: "100.64.7.2 says: at 100.64.1.2, version 4 of xTR 00000000000000000000000000000001",
			Why: "not believed: another version is newer, or of a lower xTR-ID"},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("-want +got, %v:\n%s", err, d)
	}
}

// TestNothingIsGoneBeforeTheFullDelta: what is withdrawn before all peers have spoken may be said by another.
func TestNothingIsGoneBeforeTheFullDelta(t *testing.T) {
	f := &Feed{
		table: newTable(time.Second), cfg: FeedConfig{SyncWait: 5 * time.Second}, changed: make(chan struct{}, 1),
		peers: map[netip.Addr]*feedPeer{addr(ms1): {}, addr(ms2): {}},
	}
	now := time.Unix(1e9, 0)
	step := func(es ...event) lisp.Delta {
		t.Helper()
		f.queue = es
		d, _ := f.step(t.Context(), now)
		return d
	}
	for _, p := range f.peers {
		*p = feedPeer{up: true, since: now, says: []Family{IPv4}, ended: make(map[Family]bool)}
	}
	a := at(1, 1, "100.64.1.2")
	if d := step(event{kind: eventUpdate, peer: addr(ms1), eid: web, path: split(a)[0]}); d.Full || len(d.Put) != 1 {
		t.Fatalf("an update became %+v", d)
	}
	step(event{kind: eventWithdraw, peer: addr(ms1), eid: web, path: path{id: 1}})
	now = now.Add(2 * time.Second)
	if d := step(); !d.Empty() {
		t.Errorf("a withdrawal became %+v", d)
	}
	step(event{kind: eventEndOfRIB, peer: addr(ms1), of: IPv4})
	if d := step(event{kind: eventEndOfRIB, peer: addr(ms2), of: IPv4}); !d.Full || len(d.Put) != 0 {
		t.Errorf("in sync: %+v", d)
	}
	if fs, err := f.Explain(t.Context(), web); err != nil || len(fs) != 0 {
		t.Errorf("explain nothing: %v, %v", fs, err)
	}
	if s := f.State(); s != (FeedState{Full: true, Synced: 2}) || !s.Alive() {
		t.Errorf("state %+v", s)
	}
	step(event{kind: eventUpdate, peer: addr(ms1), eid: web, path: split(a)[0]})
	step(event{kind: eventWithdraw, peer: addr(ms1), eid: web, path: path{id: 1}})
	now = now.Add(2 * time.Second)
	if d := step(); len(d.Del) != 1 {
		t.Errorf("a withdrawal later: %+v", d)
	}
	step(event{kind: eventSession, peer: addr(ms1)}, event{kind: eventSession, peer: addr(ms2)})
	if s := f.State(); s.Alive() {
		t.Errorf("alive without anybody: %+v", s)
	}
}
