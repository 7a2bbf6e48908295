package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

// told is a script of the registrar of services, event by event.
type told struct {
	t     *testing.T
	r     *svcRegistrar
	now   time.Time
	nonce uint64
	// by nonce
	sent map[uint64]svcSend
}

func tellServices(t *testing.T, servers ...netip.Addr) *told {
	return &told{t: t, r: newSvcRegistrar(servers, time.Second, 5*time.Minute), now: t0, sent: map[uint64]svcSend{}}
}

func pfx(s string) netip.Prefix {
	p, err := ParseServiceAddress(s)
	if err != nil {
		panic(err)
	}
	return p
}

func (s *told) add(outside, inside string) *svc {
	return s.r.add(Service{Outside: pfx(outside), Inside: pfx(inside), Version: 1, Created: s.now, Changed: s.now}, s.now)
}

// text is a Map-Register as a test compares it: SERVER [OUTSIDE>INSIDE vN ...].
func (s svcSend) text() string {
	var out []string
	for _, m := range s.records {
		what := fmt.Sprintf("%s>%s v%d", ServiceName(m.EID.Prefix), ServiceName(m.Inside), m.Version)
		if m.TTL == lisp.TTLDelete {
			what = "-" + what
		}
		out = append(out, what)
	}
	return s.server.String() + " [" + strings.Join(out, " ") + "]"
}

// tick compares what is sent now; it returns the nonces.
func (s *told) tick(want ...string) (nonces []uint64) {
	s.t.Helper()
	var got []string
	for _, o := range s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce }) {
		got = append(got, o.text())
		nonces = append(nonces, o.nonce)
		s.sent[o.nonce] = o
	}
	if d := cmp.Diff(want, got); d != "" {
		s.t.Errorf("at %v (-want +got):\n%s", s.now.Sub(t0), d)
	}
	return nonces
}

func (s *told) after(d time.Duration) { s.now = s.now.Add(d) }

// sleep lets the time pass until the registrar wants to be called, which must be after d.
func (s *told) sleep(d time.Duration) {
	s.t.Helper()
	if got := s.r.next().Sub(s.now); got != d {
		s.t.Errorf("at %v: wants to be called after %v, want %v", s.now.Sub(t0), got, d)
	}
	s.after(d)
}

// answer has the Map-Server take the whole message.
func (s *told) answer(nonce uint64) svcNews {
	return s.r.notified(s.sent[nonce].server, nonce, s.sent[nonce].records, s.now)
}

func TestServiceRegistered(t *testing.T) {
	s := tellServices(t, ms1, ms2)
	a := s.add("198.51.100.10", "2001:db8::a")
	n := s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]", "10.0.0.8 [198.51.100.10>2001:db8::a v1]")
	if a.settled() {
		t.Error("settled before anybody answered")
	}
	s.after(5 * time.Millisecond)
	if news := s.answer(n[0]); news.confirmed != 1 || len(news.touched) != 1 || !a.confirmed(0) || a.settled() {
		t.Errorf("%+v %+v", news, a)
	}
	// The other one is lost, again and again: intervals grow to a minute.
	s.sleep(995 * time.Millisecond)
	for _, d := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		s.tick("10.0.0.8 [198.51.100.10>2001:db8::a v1]")
		if d == 2 {
			s.sleep(time.Second) // when what was sent counts as lost
			s.tick()
			s.sleep(time.Second)
			continue
		}
		s.sleep(time.Second)
		s.tick()
		s.sleep((d - 1) * time.Second)
	}
	if why := s.r.silence(a, 1); !strings.HasPrefix(why, "does not answer since 2026-01-02T03:04:05Z") {
		t.Error(why)
	}
	n = s.tick("10.0.0.8 [198.51.100.10>2001:db8::a v1]")
	s.answer(n[0])
	if !a.settled() || s.r.silence(a, 1) != "" {
		t.Errorf("%+v", a)
	}
	// Both are refreshed, each at its time.
	first := t0.Add(5*time.Millisecond + 5*time.Minute)
	s.sleep(first.Sub(s.now))
	n = s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]")
	if news := s.answer(n[0]); news.confirmed != 1 || len(news.touched) != 0 {
		t.Errorf("a refresh changes something: %+v", news)
	}
}

// Many go together, and no more are under way than a Map-Server can be expected to take.
func TestServicesShareMessages(t *testing.T) {
	s := tellServices(t, ms1)
	const n = maxServiceRecords * (serviceWindow + 5)
	for i := range n {
		s.add(fmt.Sprintf("10.0.%d.%d", i/250, i%250), fmt.Sprintf("2001:db8::%x", i+1))
	}
	tick := func(want int) (out []uint64) {
		t.Helper()
		for _, o := range s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce }) {
			if len(o.records) != maxServiceRecords {
				t.Errorf("%d records", len(o.records))
			}
			b, err := lisp.AppendSigned(nil, &lisp.MapRegister{WantMapNotify: true, Nonce: o.nonce, Records: o.records}, lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "x"})
			if err != nil || len(b) > 1232 {
				t.Errorf("%d bytes: %v", len(b), err)
			}
			s.sent[o.nonce] = o
			out = append(out, o.nonce)
		}
		if len(out) != want {
			t.Errorf("%d messages, want %d", len(out), want)
		}
		return out
	}
	// One, until it is known that somebody is there.
	out := tick(1)
	tick(0)
	s.answer(out[0])
	out = tick(serviceWindow)
	tick(0)
	s.answer(out[0])
	s.answer(out[7])
	tick(2)
	for nonce := range s.sent {
		s.answer(nonce)
	}
	out = tick(2)
	s.answer(out[0])
	s.answer(out[1])
	tick(0)
	for _, x := range s.r.all {
		if !x.settled() {
			t.Fatalf("%s is not registered", x.Outside)
		}
	}
	// All of them are refreshed in as few.
	s.after(5 * time.Minute)
	tick(serviceWindow)
}

// What is changed goes out at once to a Map-Server that is away, too, but not faster than once a second.
func TestServiceChangedInSilence(t *testing.T) {
	s := tellServices(t, ms1)
	a := s.add("198.51.100.10", "2001:db8::a")
	for range 6 {
		s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce })
		s.after(s.r.next().Sub(s.now))
	}
	s.after(time.Minute)
	s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]")
	s.after(3 * time.Second)
	a.Inside, a.Version = pfx("2001:db8::b"), 2
	s.r.changed(a, s.now)
	s.tick("10.0.0.7 [198.51.100.10>2001:db8::b v2]")
	s.add("198.51.100.11", "2001:db8::c")
	s.tick()
	s.after(time.Second)
	n := s.tick("10.0.0.7 [198.51.100.11>2001:db8::c v1]")
	// An answer to the first, which it has not forgotten.
	s.after(10 * time.Millisecond)
	s.answer(n[0])
	s.tick("10.0.0.7 [198.51.100.10>2001:db8::b v2]")
}

// After a silence, everything is said again at once: the Map-Server may have lost its store. It is silent if it does not
// even answer of what it has confirmed.
func TestServicesAfterSilence(t *testing.T) {
	s := tellServices(t, ms1)
	s.add("198.51.100.10", "2001:db8::a")
	s.add("198.51.100.11", "2001:db8::b")
	s.answer(s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1 198.51.100.11>2001:db8::b v1]")[0])
	s.after(time.Minute)
	s.add("198.51.100.12", "2001:db8::c")
	const b, c = "10.0.0.7 [198.51.100.11>2001:db8::b v1]", "10.0.0.7 [198.51.100.12>2001:db8::c v1]"
	s.tick(c)
	s.after(time.Second)
	s.tick(b, c)
	s.after(2 * time.Second)
	n := s.tick(b, c)
	s.after(time.Millisecond)
	s.answer(n[1])
	s.answer(s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1 198.51.100.11>2001:db8::b v1]")[0])
	// One answer that is lost is no silence.
	s.after(time.Minute)
	s.add("198.51.100.13", "2001:db8::d")
	const d = "10.0.0.7 [198.51.100.13>2001:db8::d v1]"
	s.tick(d)
	s.after(time.Second)
	s.answer(s.tick(b, d)[0])
	s.tick()
}

// A Map-Server that does not take some services takes the others all the same.
func TestServiceThatIsNotTaken(t *testing.T) {
	s := tellServices(t, ms1)
	bad := s.add("198.51.100.10", "2001:db8::a")
	good := s.add("198.51.100.11", "2001:db8::b")
	s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1 198.51.100.11>2001:db8::b v1]") // the first one costs the message
	for !good.settled() {
		if s.now.Sub(t0) > 10*time.Second {
			t.Fatal("the good one is never taken")
		}
		s.after(s.r.next().Sub(s.now))
		for _, o := range s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce }) {
			s.sent[o.nonce] = o
			if o.records[0].EID.Prefix == good.Outside {
				s.after(time.Millisecond)
				s.answer(o.nonce)
			}
		}
	}
	s.after(time.Second)
	s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]")
	s.after(time.Second)
	s.r.hear(ms1, s.now) // it lives
	for range 3 {
		s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]")
		s.r.hear(ms1, s.now.Add(time.Millisecond))
		s.after(20 * time.Second)
	}
	if why := s.r.silence(bad, 0); why != "answers, but not of this: is 198.51.100.10 in a site of its configuration, with the controller's key?" {
		t.Error(why)
	}
}

func TestServiceVersions(t *testing.T) {
	held := func(outside, inside string, v lisp.Version) lisp.Mapping {
		return lisp.NewService(pfx(outside), pfx(inside), v)
	}
	gone := held("198.51.100.10", "2001:db8::a", 7)
	gone.TTL = lisp.TTLDelete
	for name, c := range map[string]struct {
		deleted   bool
		held      lisp.Mapping
		version   lisp.Version
		confirmed bool
		error     string
		again     []string // what is registered at once
	}{
		"as it is":              {held: held("198.51.100.10", "2001:db8::a", 1), version: 1, confirmed: true},
		"newer, the same":       {held: held("198.51.100.10", "2001:db8::a", 7), version: 7, confirmed: true, again: []string{"10.0.0.8 [198.51.100.10>2001:db8::a v7]"}},
		"newer, another EID":    {held: held("198.51.100.10", "2001:db8::b", 7), version: 8, again: []string{"10.0.0.7 [198.51.100.10>2001:db8::a v8]", "10.0.0.8 [198.51.100.10>2001:db8::a v8]"}},
		"newer, about to wrap":  {held: held("198.51.100.10", "2001:db8::b", 4095), version: 1, again: nil},
		"as new, another EID":   {held: held("198.51.100.10", "2001:db8::b", 1), version: 2, again: []string{"10.0.0.7 [198.51.100.10>2001:db8::a v2]", "10.0.0.8 [198.51.100.10>2001:db8::a v2]"}},
		"withdrawn, newer":      {held: gone, version: 8, again: []string{"10.0.0.7 [198.51.100.10>2001:db8::a v8]", "10.0.0.8 [198.51.100.10>2001:db8::a v8]"}},
		"older":                 {held: held("198.51.100.10", "2001:db8::b", 4000), version: 1},
		"a VM's EID":            {held: lisp.Mapping{EID: mustEID("198.51.100.10/32"), TTL: 1440, Version: 9, Locators: []lisp.Locator{{RLOC: rlocOf("hv1")}}}, version: 1, error: "has it as an EID at 10.1.0.1, not"},
		"an EID without RLOC":   {held: lisp.Mapping{EID: mustEID("198.51.100.10/32"), TTL: 1440, Version: 9}, version: 1, error: "has it as an EID, not"},
		"not configured":        {held: lisp.Mapping{EID: mustEID("198.51.100.10/32"), TTL: 1, Version: 1, Action: lisp.ActDropPolicyDenied}, version: 1, error: "is not configured for it: 198.51.100.10 and 2001:db8::a must be in sites"},
		"held by another":       {held: held("198.51.100.99", "2001:db8::a", 3), version: 1, error: "refuses it: service address 198.51.100.99 is translated to 2001:db8::a there; nobody here knows that one: \"tabi service del --force 198.51.100.99\""},
		"overlaps":              {held: held("198.51.100.0/28", "2001:db8:9::/124", 3), version: 1, error: "refuses it: service address 198.51.100.0/28"},
		"nothing to do with it": {held: held("198.51.100.99", "2001:db8::99", 3), version: 1},
		"the other family's":    {held: held("2001:db8:5::1", "2001:db8::a", 3), version: 1},
		"deleted: as it is":     {deleted: true, held: func() lisp.Mapping { m := gone; m.Version = 1; return m }(), version: 1, confirmed: true},
		"deleted: newer":        {deleted: true, held: gone, version: 7, confirmed: true, again: []string{"10.0.0.8 [-198.51.100.10>2001:db8::a v7]"}},
		"deleted: held newer":   {deleted: true, held: held("198.51.100.10", "2001:db8::a", 7), version: 8, again: []string{"10.0.0.7 [-198.51.100.10>2001:db8::a v8]", "10.0.0.8 [-198.51.100.10>2001:db8::a v8]"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := tellServices(t, ms1, ms2)
			s.r.hear(ms1, s.now)
			s.r.hear(ms2, s.now)
			inside := "2001:db8::a"
			x := s.add("198.51.100.10", inside)
			x.Deleted = c.deleted
			if name == "overlaps" { // the Map-Server names the wider one
				c.held = held("198.51.100.0/28", "2001:db8:9::/124", 3)
			}
			out := s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce })
			s.after(time.Millisecond)
			news := s.r.notified(ms1, out[0].nonce, []lisp.Mapping{c.held}, s.now)
			if x.Version != c.version || x.confirmed(0) != c.confirmed || !strings.Contains(x.MapServers[0].Error, c.error) || (c.error == "") != (x.MapServers[0].Error == "") {
				t.Errorf("version %d, %+v; %+v", x.Version, x.MapServers[0], news)
			}
			if (len(news.versions) > 0) != (c.version != 1) {
				t.Errorf("versions: %+v", news)
			}
			s.tick(c.again...)
		})
	}
}

// Somebody else counts versions, too: there are no more Map-Registers than one a second.
func TestServiceContest(t *testing.T) {
	s := tellServices(t, ms1)
	x := s.add("198.51.100.10", "2001:db8::a")
	other := lisp.NewService(pfx("198.51.100.10"), pfx("2001:db8::b"), 1)
	sent := 0
	for s.now.Before(t0.Add(30 * time.Second)) {
		for _, o := range s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce }) {
			sent++
			other.Version = x.Version.Next()
			s.after(time.Millisecond)
			s.r.notified(ms1, o.nonce, []lisp.Mapping{other}, s.now)
		}
		s.after(max(s.r.next().Sub(s.now), 0))
	}
	if sent > 33 || sent < 20 {
		t.Errorf("%d Map-Registers in 30 s", sent)
	}
}

// What frees an EID goes before what takes it, and who holds it is told again.
func TestServiceTakesOver(t *testing.T) {
	s := tellServices(t, ms1)
	a := s.add("198.51.100.10", "2001:db8::a")
	s.answer(s.tick("10.0.0.7 [198.51.100.10>2001:db8::a v1]")[0])
	b := s.add("198.51.100.11", "2001:db8::a")
	a.Deleted, a.Version = true, 2
	s.r.changed(a, s.now)
	n := s.tick("10.0.0.7 [-198.51.100.10>2001:db8::a v2 198.51.100.11>2001:db8::a v1]")
	s.after(time.Millisecond)
	// It took neither yet: what it has is the old one.
	s.r.notified(ms1, n[0], []lisp.Mapping{lisp.NewService(a.Outside, a.Inside, 1)}, s.now)
	if a.confirmed(0) || b.confirmed(0) {
		t.Error("confirmed")
	}
	s.after(time.Second)
	n = s.tick("10.0.0.7 [-198.51.100.10>2001:db8::a v2 198.51.100.11>2001:db8::a v1]")
	news := s.answer(n[0])
	if len(news.gone) != 1 || s.r.all[a.Outside] != nil || !b.settled() {
		t.Errorf("%+v", news)
	}
}

// Whatever is lost, doubled, late or forgotten: in the end every Map-Server has what the registrar has.
func TestServicesProperty(t *testing.T) {
	changes := uint64(0)
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		s := tellServices(t, ms1, ms2)
		// A Map-Server takes what is not older, and says what it has.
		type state struct {
			has  map[netip.Prefix]lisp.Mapping
			last uint64
		}
		servers := map[netip.Addr]*state{ms1: {has: map[netip.Prefix]lisp.Mapping{}}, ms2: {has: map[netip.Prefix]lisp.Mapping{}}}
		take := func(o svcSend) (out [][]lisp.Mapping) {
			sv := servers[o.server]
			if o.nonce <= sv.last {
				return nil
			}
			sv.last = o.nonce
			var own []lisp.Mapping
		records:
			for _, m := range o.records {
				old, ok := sv.has[m.EID.Prefix]
				if ok && old.Version.Newer(m.Version) {
					out = append(out, []lisp.Mapping{old})
					continue
				}
				if m.TTL != lisp.TTLDelete {
					for _, h := range sv.has {
						if h.EID != m.EID && h.TTL != lisp.TTLDelete && h.Inside.Overlaps(m.Inside) && h.EID.Prefix.Addr().Is4() == m.EID.Prefix.Addr().Is4() {
							out = append(out, []lisp.Mapping{h})
							continue records
						}
					}
				}
				sv.has[m.EID.Prefix] = m
				own = append(own, m)
			}
			return append(out, own)
		}
		type packet struct {
			at     time.Time
			o      svcSend
			answer []lisp.Mapping // nil: it is on its way there
		}
		var net []packet
		free := map[string]bool{} // insides
		for i := range 6 {
			free[fmt.Sprintf("2001:db8::%d", i+1)] = true
		}
		pick := func() string {
			for _, in := range slices.Sorted(maps.Keys(free)) {
				if rnd.IntN(2) == 0 {
					delete(free, in)
					return in
				}
			}
			return ""
		}
		bad := t0.Add(2 * time.Minute) // until then things go wrong
		for end := t0.Add(20 * time.Minute); s.now.Before(end); {
			if s.now.Before(bad) && rnd.IntN(3) == 0 {
				out := pfx(fmt.Sprintf("198.51.100.%d", rnd.IntN(5)))
				x := s.r.all[out]
				switch in := pick(); {
				case x == nil && in != "":
					s.r.add(Service{Outside: out, Inside: pfx(in), Version: 1}, s.now)
				case x == nil:
				case rnd.IntN(3) == 0 && !x.Deleted:
					free[ServiceName(x.Inside)] = true
					x.Deleted, x.Version = true, x.Version.Next()
					s.r.changed(x, s.now)
					if in != "" {
						free[in] = true
					}
				case in != "":
					if !x.Deleted {
						free[ServiceName(x.Inside)] = true
					}
					x.Deleted, x.Inside, x.Version = false, pfx(in), x.Version.Next()
					s.r.changed(x, s.now)
				}
				if rnd.IntN(20) == 0 { // a Map-Server loses its store
					servers[ms2].has = map[netip.Prefix]lisp.Mapping{}
				}
				if rnd.IntN(30) == 0 && x != nil && !x.Deleted { // somebody else was there
					m := lisp.NewService(out, pfx("2001:db8:f::1"), lisp.Version(1+rnd.IntN(100)))
					servers[ms1].has[out] = m
				}
			}
			for _, o := range s.r.tick(s.now, func() uint64 { s.nonce++; return s.nonce }) {
				for range 1 + rnd.IntN(2) {
					if !s.now.Before(bad) || rnd.IntN(3) > 0 {
						net = append(net, packet{at: s.now.Add(time.Duration(1+rnd.IntN(50)) * time.Millisecond), o: o})
					}
				}
			}
			// What comes first, or some time.
			next := s.r.next()
			if next.IsZero() || s.now.Before(bad) && next.Sub(s.now) > 5*time.Second {
				next = s.now.Add(5 * time.Second)
			}
			i := -1
			for j, p := range net {
				if p.at.Before(next) {
					i, next = j, p.at
				}
			}
			if next.After(s.now) {
				s.now = next
			}
			if i < 0 {
				continue
			}
			p := net[i]
			net = slices.Delete(net, i, i+1)
			if p.answer != nil {
				s.r.notified(p.o.server, p.o.nonce, p.answer, s.now)
				continue
			}
			for _, a := range take(p.o) {
				if !s.now.Before(bad) || rnd.IntN(3) > 0 {
					net = append(net, packet{at: s.now.Add(time.Duration(1+rnd.IntN(50)) * time.Millisecond), o: p.o, answer: a})
				}
			}
		}
		for addr, sv := range servers {
			for out, x := range s.r.all {
				m := sv.has[out]
				if x.Deleted || !x.settled() || m.Inside != x.Inside || m.Version != x.Version || m.TTL == lisp.TTLDelete {
					t.Errorf("seed %d: %v has %+v, want %+v", seed, addr, m, x.Service)
				}
			}
			for out, m := range sv.has {
				if m.TTL != lisp.TTLDelete && s.r.all[out] == nil {
					t.Errorf("seed %d: %v still has %+v", seed, addr, m)
				}
			}
		}
		if t.Failed() {
			return
		}
		changes += s.r.seq
	}
	if changes < 10_000 {
		t.Errorf("only %d changes were tried", changes)
	}
}
