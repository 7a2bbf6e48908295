package xtr

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

// probeLab is a prober over RLOCs of which some answer.
type probeLab struct {
	p      *prober
	now    time.Time
	silent map[netip.Addr]bool
	down   map[netip.Addr]bool
	last   uint64
	sent   int
}

func newProbeLab(now time.Time, groups ...*probeGroup) *probeLab {
	l := &probeLab{now: now, silent: map[netip.Addr]bool{}, down: map[netip.Addr]bool{}}
	l.p = newProber(func() uint64 { l.last++; return l.last })
	l.p.set(groups, now)
	return l
}

func (l *probeLab) note(changes []probeChange) {
	for _, c := range changes {
		if delete(l.down, c.rloc); !c.up {
			l.down[c.rloc] = true
		}
	}
}

// run lets so much time pass.
func (l *probeLab) run(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); l.now = l.now.Add(100 * time.Millisecond) {
		sends, changes := l.p.tick(l.now)
		l.note(changes)
		l.sent += len(sends)
		for _, s := range sends {
			if !l.silent[s.to] {
				changes, ok := l.p.reply(s.nonce, l.now)
				if !ok {
					panic("an answer is not taken")
				}
				l.note(changes)
			}
		}
	}
}

func TestProber(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	l := newProbeLab(epoch, &probeGroup{eid: testEID, rlocs: []netip.Addr{a, b, c}})
	l.silent[c] = true
	l.run(10 * time.Second)
	if len(l.down) > 0 || l.sent < 57 || l.sent > 63 {
		t.Fatalf("down %v, %d probes: two answer twice a second, one never, and that is no news", l.down, l.sent)
	}
	// A dies: soon, and not at once.
	l.silent[a] = true
	l.run(500 * time.Millisecond)
	if l.down[a] {
		t.Error("one missing answer is no death")
	}
	l.run(time.Second)
	if diff := cmp.Diff(map[netip.Addr]bool{a: true}, l.down); diff != "" {
		t.Error(diff)
	}
	// It is still asked, and comes back.
	l.silent[a] = false
	l.run(1500 * time.Millisecond)
	if len(l.down) > 0 {
		t.Errorf("down: %v", l.down)
	}
	// Everybody is silent: that may be our own fault. C, which never answered, does not count as alive... nor as dead.
	l.p.set([]*probeGroup{{eid: testEID, rlocs: []netip.Addr{a, b}}, {eid: testEID6, rlocs: []netip.Addr{a}, mapped: true}}, l.now)
	l.silent[a], l.silent[b] = true, true
	l.run(5 * time.Second)
	if len(l.down) > 0 {
		t.Errorf("down: %v", l.down)
	}
	// A mapping that leads nowhere is asked for again, now and then.
	asked := 0
	for range 30 {
		l.run(100 * time.Millisecond)
		for _, e := range l.p.ask(l.now) {
			if asked++; e != testEID6 {
				t.Errorf("%v is asked for", e)
			}
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times in 3 s", asked)
	}
	// One of them answers again: now the other one is dead, though for one mapping it is the only one.
	l.silent[b] = false
	l.run(2 * time.Second)
	if diff := cmp.Diff(map[netip.Addr]bool{a: true}, l.down); diff != "" {
		t.Error(diff)
	}
	// Nobody names it any more: it is given back.
	l.note(l.p.set(nil, l.now))
	if len(l.down) > 0 || len(l.p.targets) > 0 || !l.p.next().IsZero() {
		t.Errorf("down %v, %d targets, next %v", l.down, len(l.p.targets), l.p.next())
	}
	if _, ok := l.p.reply(99, l.now); ok {
		t.Error("an answer that nobody asked for is taken")
	}
}

// An RLOC that answers for the first time is put up: the data plane may have it down from before a restart.
func TestProberAfterRestart(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	l := newProbeLab(epoch, &probeGroup{eid: testEID, rlocs: []netip.Addr{a, b}})
	l.down[a] = true
	l.run(200 * time.Millisecond)
	if len(l.down) > 0 {
		t.Errorf("down: %v", l.down)
	}
}

// What the engine has probed: its PETRs and what the map-cache has with several locators or a PETR, never its own RLOCs.
func TestProbeGroups(t *testing.T) {
	inLab(t, func(l *lab) {
		x := l.hosts[0].x
		loc := func(a string) lisp.Locator {
			return lisp.Locator{RLOC: netip.MustParseAddr(a), Priority: 1, Weight: 1, Reachable: true}
		}
		done := make(chan struct{})
		x.in.put(func(time.Time) {
			defer close(done)
			x.cfg.PETRs = []lisp.Locator{loc("192.0.2.1"), loc("192.0.2.2")}
			many := lisp.Mapping{EID: mustEID("2001:db8:64::/96"), TTL: 10, Locators: []lisp.Locator{loc("192.0.2.1"), loc("192.0.2.3"), loc(l.hosts[0].rloc.String())}}
			one := lisp.Mapping{EID: mustEID("203.0.113.0/24"), TTL: 10, Locators: []lisp.Locator{loc("192.0.2.4")}}
			half := lisp.Mapping{EID: mustEID("2001:db8:5e::/48"), TTL: 10, Locators: []lisp.Locator{loc("192.0.2.2")}}
			for _, m := range []lisp.Mapping{many, one, half} {
				x.res.cache.Insert(m.EID, &cacheEntry{Mapping: m})
			}
			var got []string
			for _, g := range x.probeGroups() {
				line := g.eid.String()
				for _, a := range g.rlocs {
					line += " " + a.String()
				}
				got = append(got, line)
			}
			slices.Sort(got)
			want := []string{"198.51.100.0/24 192.0.2.1 192.0.2.2", "2001:db8:5e::/48 192.0.2.2", "2001:db8:64::/96 192.0.2.1 192.0.2.3"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for _, m := range []lisp.Mapping{many, one, half} {
				x.res.cache.Delete(m.EID)
			}
		})
		<-done
		if rows := table[ShowRLOC](l.hosts[0], "rlocs"); len(rows) > 0 {
			t.Errorf("a data plane that cannot be told has RLOCs probed: %+v", rows)
		}
	})
}

func TestShowRLOCs(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	l := newProbeLab(epoch, &probeGroup{eid: testEID, rlocs: []netip.Addr{a, b, c}})
	l.silent[c] = true
	l.run(time.Second)
	l.silent[b] = true
	l.run(2 * time.Second)
	x := &XTR{probe: l.p}
	got := map[string]string{}
	for _, r := range x.showRLOCs(l.now) {
		got[r.RLOC.String()] = r.State
		if heard := !r.Heard.IsZero(); heard != (r.RLOC != c) || r.EID != testEID {
			t.Errorf("%+v", r)
		}
	}
	if diff := cmp.Diff(map[string]string{"192.0.2.1": "up", "192.0.2.2": "down", "2001:db8::1": "never answered"}, got); diff != "" {
		t.Error(diff)
	}
}
