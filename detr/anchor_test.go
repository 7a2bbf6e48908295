package detr

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/sinktest"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// TestAnchorIsASink runs the conformance test, and compares what the anchor says with what the data plane
// does.
func TestAnchorIsASink(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Subject {
		cfg := ready(func(c *Config) {
			c.Aggregates = append(c.Aggregates, eid("[7]198.51.100.0/24"), eid("[16777215]2001:db8:e1d::/48"))
		})
		dp := newPlane()
		a := newAnchor(cfg, dp)
		if err := a.start(context.Background(), nil, nil); err != nil {
			t.Fatal(err)
		}
		return sinktest.Subject{Sink: a, Content: func(t *testing.T) (ms []lisp.Mapping) {
			want := make(map[lisp.EID]fib.Route)
			for _, e := range cfg.Aggregates {
				want[e] = fib.Route{EID: e, Do: fib.Drop}
			}
			for _, i := range a.all() {
				ms = append(ms, i.mapping)
				want[i.mapping.EID] = fib.Route{EID: i.mapping.EID, Do: fib.Encap, Locators: i.mapping.Locators, Transit: true}
				if i.at.IsZero() {
					t.Errorf("%v was never installed", i.mapping.EID)
				}
			}
			if d := cmp.Diff(want, dp.routes, equal); d != "" {
				t.Errorf("data plane (-want +got):\n%s", d)
			}
			return ms
		}}
	})
}

func TestAnchorRoutes(t *testing.T) {
	ctx := context.Background()
	dp := newPlane()
	a := newAnchor(ready(), dp)
	if err := a.start(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	put := func(ms ...lisp.Mapping) {
		t.Helper()
		if err := a.Apply(ctx, lisp.Delta{Put: ms}); err != nil {
			t.Fatal(err)
		}
	}
	put(
		mapping("198.51.100.10/32", 1, "100.64.1.2", "2001:db8:100:3::2"),
		mapping("203.0.113.10/32", 1, "100.64.1.2"),                                             // not ours
		mapping("198.51.0.0/16", 1, "100.64.1.2"),                                               // more than ours
		mapping("[7]198.51.100.10/32", 1, "100.64.1.2"),                                         // another instance
		mapping("198.51.100.11/32", 1, "100.64.5.2"),                                            // would come back to us
		mapping("198.51.100.12/32", 1, "100.64.6.2", "100.64.1.2"),                              // or to another D-ETR
		mapping("198.51.100.13/32", 1, "198.51.100.10"),                                         // or is an EID
		lisp.Mapping{EID: eid("198.51.100.14/32"), Action: lisp.ActNativelyForward, Version: 1}, // never natively
		mapping("198.51.100.16/28", 1, "100.64.2.2"),
	)
	for e, want := range map[string]string{
		"198.51.100.0/24":     "drop",
		"2001:db8:e1d::/48":   "drop",
		"198.51.100.10/32":    "encapsulate 100.64.1.2 2001:db8:100:3::2",
		"203.0.113.10/32":     "",
		"198.51.0.0/16":       "",
		"[7]198.51.100.10/32": "",
		"198.51.100.11/32":    "drop",
		"198.51.100.12/32":    "encapsulate 100.64.1.2",
		"198.51.100.13/32":    "drop",
		"198.51.100.14/32":    "drop",
		"198.51.100.16/28":    "encapsulate 100.64.2.2",
	} {
		if got := dp.does(e); got != want {
			t.Errorf("%s: %q, want %q", e, got, want)
		}
	}
	for what, want := range map[string]uint64{"feed/outside the aggregates": 3, "feed/locator of a D-ETR": 3} {
		if got := a.counters()[what]; got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	for e, want := range map[string]string{"198.51.100.10/32": "198.51.100.10/32", "198.51.100.17/32": "198.51.100.16/28", "198.51.100.99/32": ""} {
		i, ok := a.covering(eid(e))
		if ok != (want != "") || ok && i.mapping.EID != eid(want) {
			t.Errorf("covering %s: %v, %v", e, i.mapping.EID, ok)
		}
	}

	// A mapping of a whole aggregate takes the place of the covering route, and gives it back.
	put(mapping("198.51.100.0/24", 2, "100.64.4.2"))
	if got := dp.does("198.51.100.0/24"); got != "encapsulate 100.64.4.2" {
		t.Errorf("aggregate: %q", got)
	}
	if err := a.Apply(ctx, lisp.Delta{Del: []lisp.EID{eid("198.51.100.0/24"), eid("203.0.113.0/24")}}); err != nil {
		t.Fatal(err)
	}
	if got := dp.does("198.51.100.0/24"); got != "drop" {
		t.Errorf("aggregate: %q", got)
	}

	// When the data plane fails, nothing is believed to be installed.
	dp.broken = true
	if err := a.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.10/32", 2, "100.64.9.2")}}); err == nil {
		t.Error("no error")
	}
	if i, _ := a.covering(eid("198.51.100.10/32")); i.mapping.Version != 1 {
		t.Errorf("version %d is believed", i.mapping.Version)
	}
	dp.broken = false
	put(mapping("198.51.100.10/32", 2, "100.64.9.2"))
	if got := dp.does("198.51.100.10/32"); got != "encapsulate 100.64.9.2" {
		t.Errorf("after the repair: %q", got)
	}
}

// TestAnchorWarm: after a restart the routes of before go on until the first full Delta.
func TestAnchorWarm(t *testing.T) {
	ctx := context.Background()
	encap := func(e, rloc string) fib.Route {
		return fib.Route{EID: eid(e), Do: fib.Encap, Locators: locs(rloc), Transit: true}
	}
	dp := newPlane(
		fib.Route{EID: eid("198.51.100.0/24"), Do: fib.Drop},
		encap("2001:db8:e1d::/48", "100.64.4.2"), // a mapping of the whole aggregate
		encap("198.51.100.10/32", "100.64.1.2"), encap("198.51.100.11/32", "100.64.1.2"), encap("198.51.100.12/32", "100.64.1.2"),
		encap("203.0.113.0/24", "192.0.2.1"), // not ours
	)
	a := newAnchor(ready(), dp)
	if err := a.start(ctx, dp.Routes(), nil); err != nil {
		t.Fatal(err)
	}
	if s := a.state(); s.warm != 4 || s.full {
		t.Errorf("state %+v, want 4 warm", s)
	}
	// The feed begins to speak.
	if err := a.Apply(ctx, lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.10/32", 2, "100.64.2.2")}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"198.51.100.0/24": "drop", "2001:db8:e1d::/48": "encapsulate 100.64.4.2", "198.51.100.10/32": "encapsulate 100.64.2.2",
		"198.51.100.11/32": "encapsulate 100.64.1.2", "198.51.100.12/32": "encapsulate 100.64.1.2", "203.0.113.0/24": "encapsulate 192.0.2.1",
	}
	check := func(when string) {
		t.Helper()
		for e, w := range want {
			if got := dp.does(e); got != w {
				t.Errorf("%s, %s: %q, want %q", when, e, got, w)
			}
		}
	}
	check("before the full Delta")
	dp.log = nil
	err := a.Apply(ctx, lisp.Delta{Full: true, Put: []lisp.Mapping{
		mapping("198.51.100.10/32", 2, "100.64.2.2"), mapping("198.51.100.11/32", 1, "100.64.1.2"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	want["2001:db8:e1d::/48"], want["198.51.100.12/32"] = "drop", ""
	check("after the full Delta")
	if s := a.state(); s.warm != 0 || !s.full || s.mappings != 2 {
		t.Errorf("state %+v", s)
	}
	// What was right was never touched.
	for _, l := range dp.log {
		if l == "del 198.51.100.11/32" || l == "del 198.51.100.10/32" || l == "set 198.51.100.10/32 encapsulate" {
			t.Errorf("%s", l)
		}
	}
}
