package detr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/sinktest"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func bind(out, in string) fib.Service { return fib.Service{Outside: prefix(out), Inside: prefix(in)} }

func told(out, in string, v lisp.Version) lisp.Mapping {
	return lisp.NewService(prefix(out), prefix(in), v)
}

// withServices is a change of config: service prefixes inside and outside of the aggregates, and a pool.
func withServices(c *Config) {
	c.Services = Services{
		Prefixes: []netip.Prefix{prefix("203.0.113.0/26"), prefix("198.51.100.64/26"), prefix("2001:db8:5e::/48")},
		Pool:     prefix("2001:db8:64::/96"), MapServers: []Server{internal1, internal2},
	}
}

var (
	internal1 = Server{Addr: addr("100.64.9.1"), Key: lisp.Key{ID: 3, Algorithm: lisp.AlgHMACSHA256_128, Secret: "inside"}}
	internal2 = Server{Addr: addr("100.64.9.2"), Key: internal1.Key}
)

// translator translates, and complains of whatever the real ones might.
type translator struct {
	has    map[netip.Prefix]fib.Service
	strict bool // two with one EID are an error
	broken int  // calls that fail
	log    []string
	calls  int
}

func newTranslator(known ...fib.Service) *translator {
	t := &translator{has: make(map[netip.Prefix]fib.Service)}
	for _, k := range known {
		t.has[k.Outside] = k
	}
	return t
}

func (t *translator) SetServices(_ context.Context, ss ...fib.Service) error {
	if t.calls++; t.broken > 0 {
		t.broken--
		return errors.New("broken")
	}
	for _, s := range ss {
		if err := s.Valid(); err != nil {
			return err
		}
		for _, o := range t.has {
			if t.strict && o.Outside != s.Outside && o.Outside.Addr().Is4() == s.Outside.Addr().Is4() &&
				(o.Outside.Overlaps(s.Outside) || o.Inside.Overlaps(s.Inside)) {
				return fmt.Errorf("%v is in the way of %v", o, s)
			}
		}
		t.log = append(t.log, "set "+s.String())
		t.has[s.Outside] = s
	}
	return nil
}

func (t *translator) DelServices(_ context.Context, out ...netip.Prefix) error {
	if t.calls++; t.broken > 0 {
		t.broken--
		return errors.New("broken")
	}
	for _, p := range out {
		t.log = append(t.log, "del "+p.String())
		delete(t.has, p)
	}
	return nil
}

func (t *translator) took() []string {
	l := t.log
	t.log = nil
	return l
}

func (t *translator) list() []string {
	var out []string
	for _, p := range slices.SortedFunc(maps.Keys(t.has), netip.Prefix.Compare) {
		out = append(out, t.has[p].String())
	}
	return out
}

// kept is a translator that knows what it translated before a restart.
type kept struct{ *translator }

func (k kept) Services() []fib.Service {
	return slices.SortedFunc(maps.Values(k.has), func(a, b fib.Service) int { return a.Outside.Compare(b.Outside) })
}

// TestAnchorIsASinkWithServices runs the conformance test where services may be told, too.
func TestAnchorIsASinkWithServices(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Subject {
		cfg := ready(withServices, func(c *Config) {
			c.Aggregates = append(c.Aggregates, eid("[7]198.51.100.0/24"), eid("[16777215]2001:db8:e1d::/48"))
		})
		dp, tr := newPlane(), newTranslator()
		a := newAnchor(cfg, dp, tr)
		if err := a.start(context.Background(), nil, nil); err != nil {
			t.Fatal(err)
		}
		return sinktest.Subject{Sink: a, Content: func(t *testing.T) (ms []lisp.Mapping) {
			for _, i := range a.all() {
				ms = append(ms, i.mapping)
			}
			for _, s := range a.services.told {
				m := lisp.NewService(s.Outside, s.Inside, s.version)
				ms = append(ms, m)
				if _, there := tr.has[s.Outside]; there != (s.why == "") {
					t.Errorf("%v is translated: %t; ignored because %q", s.Service, there, s.why)
				}
			}
			return ms
		}}
	})
}

func TestServices(t *testing.T) {
	ctx := context.Background()
	dp, tr, second := newPlane(), newTranslator(), newTranslator()
	tr.strict = true
	a := newAnchor(ready(withServices), dp, tr, second)
	now := time.Unix(1e9, 0)
	a.now = func() time.Time { return now }
	if err := a.start(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	apply := func(d lisp.Delta) {
		t.Helper()
		now = now.Add(time.Second)
		if err := a.Apply(ctx, d); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tr.list(), second.list()); d != "" {
			t.Errorf("the translators differ:\n%s", d)
		}
	}
	want := func(what string, log ...string) {
		t.Helper()
		if d := cmp.Diff(log, tr.took()); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		second.took()
	}
	why := func(out string) string {
		s := a.services.told[prefix(out)]
		if s == nil {
			return "not told"
		}
		return s.why
	}
	apply(lisp.Delta{Put: []lisp.Mapping{
		told("203.0.113.10/32", "2001:db8:e1d::a/128", 1), told("198.51.100.70/32", "2001:db8:e1d::b/128", 1),
		told("2001:db8:5e::a/128", "2001:db8:e1d::a/128", 1), told("203.0.113.16/28", "2001:db8:e1d::10/124", 1),
		told("203.0.113.200/32", "2001:db8:e1d::c/128", 1),                             // in no service prefix
		told("198.51.100.10/32", "2001:db8:e1d::d/128", 1),                             // nor is an aggregate one
		told("203.0.113.11/32", "2001:db8:f00::1/128", 1),                              // its EID is not ours
		told("2001:db8:5e::c/128", "2001:db8:5e:1::1/128", 1),                          // nor is that
		{EID: eid("203.0.113.12/32"), Inside: prefix("2001:db8:e1d::/64"), Version: 1}, // nonsense
		mapping("198.51.100.10/32", 1, "100.64.1.2"),
		// What the D-ETRs registered comes back to them.
		mapping("203.0.113.0/26", 1, "100.64.5.2"), mapping("198.51.100.64/26", 1, "100.64.5.2"), mapping("2001:db8:64::/96", 1, "100.64.6.2"),
	}})
	want("at first", "set 203.0.113.16/28 <-> 2001:db8:e1d::10/124", "set 198.51.100.70 <-> 2001:db8:e1d::b",
		"set 203.0.113.10 <-> 2001:db8:e1d::a", "set 2001:db8:5e::a <-> 2001:db8:e1d::a")
	for out, says := range map[string]string{
		"203.0.113.10/32": "", "203.0.113.200/32": whyNoPrefix, "198.51.100.10/32": whyNoPrefix, "203.0.113.11/32": whyNoEID,
		"2001:db8:5e::c/128": whyNoEID, "203.0.113.12/32": whyMalformed,
	} {
		if got := why(out); got != says {
			t.Errorf("%s: %q, want %q", out, got, says)
		}
	}
	for e, does := range map[string]string{
		"203.0.113.0/26": "drop", "198.51.100.64/26": "drop", "2001:db8:64::/96": "drop", "2001:db8:5e::/48": "drop",
		"203.0.113.10/32": "", "198.51.100.10/32": "encapsulate 100.64.1.2",
	} {
		if got := dp.does(e); got != does {
			t.Errorf("route %s: %q, want %q", e, got, does)
		}
	}
	if got := a.counters(); got["feed/outside the aggregates"] != 0 || got["feed/locator of a D-ETR"] != 0 || got["services/in effect"] != 4 ||
		got["services/ignored: "+whyNoPrefix] != 2 || got["services/ignored: "+whyNoEID] != 2 {
		t.Errorf("counters %v", got)
	}
	since := a.services.told[prefix("203.0.113.10/32")].at

	apply(lisp.Delta{Put: []lisp.Mapping{told("203.0.113.10/32", "2001:db8:e1d::a/128", 2)}})
	want("a newer version that says the same")
	if s := a.services.told[prefix("203.0.113.10/32")]; s.version != 2 || !s.at.Equal(since) {
		t.Errorf("version %d, since %v, was %v", s.version, s.at, since)
	}
	apply(lisp.Delta{Put: []lisp.Mapping{told("203.0.113.10/32", "2001:db8:e1d::aa/128", 3)}})
	want("its VM is another", "set 203.0.113.10 <-> 2001:db8:e1d::aa")
	if s := a.services.told[prefix("203.0.113.10/32")]; !s.at.After(since) {
		t.Error("since then it is translated otherwise")
	}
	apply(lisp.Delta{Del: []lisp.EID{eid("203.0.113.10/32"), eid("203.0.113.99/32")}, Put: []lisp.Mapping{told("203.0.113.13/32", "2001:db8:e1d::aa/128", 1)}})
	want("another service address for the EID", "del 203.0.113.10/32", "set 203.0.113.13 <-> 2001:db8:e1d::aa")
	apply(lisp.Delta{Put: []lisp.Mapping{told("203.0.113.13/32", "2001:db8:e1d::b/128", 2), told("198.51.100.70/32", "2001:db8:e1d::aa/128", 2)}})
	want("two exchange their VMs", "del 198.51.100.70/32", "del 203.0.113.13/32",
		"set 198.51.100.70 <-> 2001:db8:e1d::aa", "set 203.0.113.13 <-> 2001:db8:e1d::b")

	// An EID that becomes a service address, and the other way round.
	apply(lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.80/32", 1, "100.64.1.2")}})
	apply(lisp.Delta{Put: []lisp.Mapping{told("198.51.100.80/32", "2001:db8:e1d::80/128", 1)}})
	if got := dp.does("198.51.100.80/32"); got != "" {
		t.Errorf("route of a service address: %q", got)
	}
	apply(lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.80/32", 2, "100.64.1.2")}})
	if got := dp.does("198.51.100.80/32"); got != "encapsulate 100.64.1.2" || why("198.51.100.80/32") != "not told" {
		t.Errorf("route of an EID: %q; as a service %s", got, why("198.51.100.80/32"))
	}
	tr.took()

	// A data plane that fails is told all again.
	tr.broken = 3
	if err := a.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{told("203.0.113.13/32", "2001:db8:e1d::bb/128", 3)}}); err == nil {
		t.Error("no error")
	}
	apply(lisp.Delta{})
	if got := tr.has[prefix("203.0.113.13/32")]; got != bind("203.0.113.13/32", "2001:db8:e1d::bb/128") || len(tr.has) != len(second.has) {
		t.Errorf("after the repair: %v", tr.list())
	}

	apply(lisp.Delta{Full: true, Put: []lisp.Mapping{told("203.0.113.13/32", "2001:db8:e1d::bb/128", 3)}})
	if got := tr.list(); !slices.Equal(got, []string{"203.0.113.13 <-> 2001:db8:e1d::bb"}) {
		t.Errorf("after a full Delta: %v", got)
	}
}

// TestServicesWarm: after a restart, what was translated goes on until the feed has said everything; every translator
// translates it, also one that starts anew.
func TestServicesWarm(t *testing.T) {
	ctx := context.Background()
	old := newTranslator(
		bind("203.0.113.10/32", "2001:db8:e1d::a/128"), bind("203.0.113.11/32", "2001:db8:e1d::b/128"),
		bind("203.0.113.12/32", "2001:db8:e1d::c/128"), bind("203.0.113.16/28", "2001:db8:e1d::10/124"),
		bind("192.0.2.1/32", "2001:db8:e1d::d/128"), // in no service prefix any more
	)
	old.strict = true
	fresh := newTranslator()
	a := newAnchor(ready(withServices), newPlane(fib.Route{EID: eid("203.0.113.7/32"), Do: fib.Native}), old, fresh)
	if err := a.start(ctx, []fib.Route{{EID: eid("203.0.113.7/32"), Do: fib.Native}}, kept{old}.Services()); err != nil {
		t.Fatal(err)
	}
	want := func(what string, list ...string) {
		t.Helper()
		for i, tr := range []*translator{old, fresh} {
			if d := cmp.Diff(list, tr.list()); d != "" {
				t.Errorf("%s, translator %d (-want +got):\n%s", what, i, d)
			}
		}
	}
	want("at once", "203.0.113.10 <-> 2001:db8:e1d::a", "203.0.113.11 <-> 2001:db8:e1d::b", "203.0.113.12 <-> 2001:db8:e1d::c",
		"203.0.113.16/28 <-> 2001:db8:e1d::10/124")
	if got := a.dp.(*plane).does("203.0.113.7/32"); got != "" {
		t.Errorf("a route of the time when that was no service prefix: %q", got)
	}
	// While we were away .11 took over the EID of .10, and the prefix went to other EIDs.
	if err := a.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{told("203.0.113.11/32", "2001:db8:e1d::a/128", 2), told("203.0.113.17/32", "2001:db8:e1d::17/128", 1)}}); err != nil {
		t.Fatal(err)
	}
	want("the feed begins to speak", "203.0.113.11 <-> 2001:db8:e1d::a", "203.0.113.12 <-> 2001:db8:e1d::c", "203.0.113.17 <-> 2001:db8:e1d::17")
	if n := a.counters()["services/before the restart"]; n != 1 {
		t.Errorf("%d of before the restart", n)
	}
	if err := a.Apply(ctx, lisp.Delta{Full: true, Put: []lisp.Mapping{told("203.0.113.11/32", "2001:db8:e1d::a/128", 2)}}); err != nil {
		t.Fatal(err)
	}
	want("it has said everything", "203.0.113.11 <-> 2001:db8:e1d::a")
}

// TestServicesAgree: whatever the order in which services come and go, and however often a translator fails, what is
// translated in the end depends on what there is in the end alone; and no two that are translated overlap.
func TestServicesAgree(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 646))
		random := func() lisp.Mapping {
			bits := 4 * r.IntN(3) / 2 // 0, 2 or 4 host bits
			if r.IntN(2) == 0 {
				bits = 0
			}
			in := netip.PrefixFrom(addr(fmt.Sprintf("2001:db8:e1d::%x", r.IntN(24))), 128-bits).Masked()
			if r.IntN(3) == 0 {
				return lisp.NewService(netip.PrefixFrom(addr(fmt.Sprintf("2001:db8:5e::%x", r.IntN(24))), 128-bits).Masked(), in, 1)
			}
			return lisp.NewService(netip.PrefixFrom(addr(fmt.Sprintf("203.0.113.%d", r.IntN(24))), 32-bits).Masked(), in, 1)
		}
		tr := newTranslator()
		var known []fib.Service
		if seed%2 == 0 {
			k := random()
			known = []fib.Service{{Outside: k.EID.Prefix, Inside: k.Inside}}
			tr = newTranslator(known...)
		}
		a := newAnchor(ready(withServices), newPlane(), tr)
		if err := a.start(ctx, nil, known); err != nil {
			t.Fatal(err)
		}
		now := make(map[lisp.EID]lisp.Mapping)
		full := false
		for range 30 {
			var d lisp.Delta
			if r.IntN(10) == 0 {
				d.Full, full = true, true
				clear(now)
			}
			for range r.IntN(4) {
				m := random()
				now[m.EID] = m
			}
			for e := range now {
				if r.IntN(6) == 0 {
					delete(now, e)
					d.Del = append(d.Del, e)
				}
			}
			d.Put = slices.Collect(maps.Values(now)) // some again
			if d.Full {
				d.Del = nil
			}
			if r.IntN(5) == 0 {
				tr.broken = 1 + r.IntN(4)
			}
			for a.Apply(ctx, d) != nil {
			}
			tr.broken = 0
		}
		if !full {
			if err := a.Apply(ctx, lisp.Delta{Full: true, Put: slices.Collect(maps.Values(now))}); err != nil {
				t.Fatal(err)
			}
		}
		// The obvious way: one after the other.
		var want []string
		var taken []fib.Service
		for _, e := range slices.SortedFunc(maps.Keys(now), func(a, b lisp.EID) int { return before(a.Prefix, b.Prefix) }) {
			s := fib.Service{Outside: e.Prefix, Inside: now[e].Inside}
			if !slices.ContainsFunc(taken, func(o fib.Service) bool {
				return o.Outside.Addr().Is4() == s.Outside.Addr().Is4() && (o.Outside.Overlaps(s.Outside) || o.Inside.Overlaps(s.Inside))
			}) {
				taken = append(taken, s)
			}
		}
		slices.SortFunc(taken, func(a, b fib.Service) int { return a.Outside.Compare(b.Outside) })
		for _, s := range taken {
			want = append(want, s.String())
		}
		if d := cmp.Diff(want, tr.list()); d != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, d)
		}
		if n, ignored := a.translated(); n != len(want) || n+ignored != len(now) {
			t.Fatalf("seed %d: %d translated and %d ignored, want %d of %d", seed, n, ignored, len(want), len(now))
		}
		for p, s := range a.services.told {
			if (s.why == "") != (tr.has[p] == s.Service) || (s.why != "") != s.at.IsZero() || s.why != "" && !strings.HasPrefix(s.why, whyOverlaps) {
				t.Fatalf("seed %d: %v: why %q, since %v", seed, s.Service, s.why, s.at)
			}
		}
	}
}

// A service costs the feed the same whether there are ten or a million.
func BenchmarkServiceMoves(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			cfg := ready(withServices, func(c *Config) { c.Services.Prefixes = []netip.Prefix{prefix("10.0.0.0/8")} })
			a := newAnchor(cfg, newPlane())
			var put []lisp.Mapping
			in := func(i int) netip.Prefix {
				x := addr("2001:db8:e1d::").As16()
				x[12], x[13], x[14], x[15] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
				return netip.PrefixFrom(netip.AddrFrom16(x), 128)
			}
			for i := range n {
				put = append(put, lisp.NewService(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), in(i), 1))
			}
			if err := a.Apply(context.Background(), lisp.Delta{Full: true, Put: put}); err != nil {
				b.Fatal(err)
			}
			i := n
			for b.Loop() {
				i++
				if err := a.Apply(context.Background(), lisp.Delta{Put: []lisp.Mapping{lisp.NewService(put[i%n].EID.Prefix, in(i), 1)}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestExplainServices: what becomes of a service address, the EID behind it included.
func TestExplainServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, withServices)
		defer w.stop()
		for _, s := range []Server{internal1, internal2} {
			w.inside(s.Addr)
		}
		w.apply(lisp.Delta{Full: true, Put: []lisp.Mapping{
			told("203.0.113.10/32", "2001:db8:e1d::a/128", 4), told("203.0.113.16/28", "2001:db8:e1d::10/124", 1),
			told("192.0.2.1/32", "2001:db8:e1d::b/128", 1), mapping("2001:db8:e1d::a/128", 7, "100.64.1.2"),
		}})
		for e, want := range map[string][]string{
			"203.0.113.10/32":           {"203.0.113.10/32 is translated to 2001:db8:e1d::a/128 (ipv4)", "2001:db8:e1d::a/128 is at 100.64.1.2 1/100, version 7"},
			"203.0.113.17/32":           {"203.0.113.16/28 is translated to 2001:db8:e1d::10/124 (ipv4)", "packets are dropped"},
			"192.0.2.1/32":              {"192.0.2.1/32 is ignored: in no service prefix"},
			"203.0.113.40/32":           {"packets are dropped"},
			"2001:db8:64::c000:201/128": {"packets from VMs with an IPv4 service address are translated"},
			"2001:db8:e1d::a/128":       {"2001:db8:e1d::a/128 is at 100.64.1.2"},
			"192.0.2.2/32":              {"nothing is known"},
		} {
			found, err := w.d.Explain(context.Background(), eid(e))
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range want {
				if i >= len(found) || !strings.Contains(found[i].Says, s) {
					t.Errorf("%s: %+v, want %q", e, found, s)
				}
			}
		}
		var registered []string
		rows, err := w.d.Shows()["registrations"](context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows.([]RegistrationRow) {
			registered = append(registered, r.Where+" "+r.MapServer+" "+r.EID.String())
		}
		if len(registered) != 5+2*4 || registered[0] != "outside 192.0.2.7 198.51.100.0/24" || registered[5] != "cloud 100.64.9.1 198.51.100.64/26" {
			t.Errorf("registrations %q", registered)
		}
		number, all := w.d.Services(0)
		if len(all) != 3 || all[0].Outside != prefix("192.0.2.1/32") || all[0].Why != whyNoPrefix || all[1].Version != 4 || all[1].Since.IsZero() {
			t.Errorf("services %+v", all)
		}
		if again, all := w.d.Services(number); again != number || all != nil {
			t.Error("listed again, though nothing has changed")
		}
		w.apply(lisp.Delta{Del: []lisp.EID{eid("203.0.113.10/32")}})
		if again, all := w.d.Services(number); again == number || len(all) != 2 {
			t.Errorf("after a change: %d, %+v", again, all)
		}
	})
}
