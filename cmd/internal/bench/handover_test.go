package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/testnet"
)

// fakeLab answers trials from a function.
type fakeLab struct {
	run    func(testnet.Trial) (testnet.TrialResult, error)
	closed *int
}

func (f *fakeLab) Run(_ context.Context, t testnet.Trial) (testnet.TrialResult, error) {
	return f.run(t)
}
func (f *fakeLab) Close() error { *f.closed++; return nil }

// fakes are labs that lose and stall as told.
type fakes struct {
	started, closed int
	order           []testnet.Way
	result          func(w testnet.Way, t testnet.Trial, nth int) (testnet.TrialResult, error)
	clock           time.Time
	said            []string
}

func (f *fakes) options() HandoverOptions {
	return HandoverOptions{Systems: testnet.Ways, VM: testnet.VMQEMU, Rates: []int{1000, 5000}, Downtimes: []time.Duration{0, 20 * time.Millisecond},
		Moves: 4, BitRate: 1e6, Progress: func(s string) { f.said = append(f.said, s) }}
}

func (f *fakes) measure(o HandoverOptions) (*Handover, error) {
	n := map[testnet.Way]int{}
	return runHandover(context.Background(), o, func(_ context.Context, w testnet.Way) (lab, error) {
		f.started++
		return &fakeLab{closed: &f.closed, run: func(t testnet.Trial) (testnet.TrialResult, error) {
			f.order = append(f.order, w)
			f.clock = f.clock.Add(3 * time.Second)
			n[w]++
			return f.result(w, t, n[w])
		}}, nil
	}, func() time.Time { return f.clock })
}

// good is what is published of these systems: what is stretched loses, ours does not.
func good(w testnet.Way, t testnet.Trial, nth int) (testnet.TrialResult, error) {
	r := testnet.TrialResult{Sent: 1000, Intact: true}
	if t.Still {
		return r, nil
	}
	r.GapMS, r.StallMS, r.BlackoutMS = 90, 50, 40
	if w != testnet.WayTabi {
		r.LostTo, r.StallMS = uint64(t.Rate/10+nth), 106
	}
	return r, nil
}

func TestHandoverHolds(t *testing.T) {
	f := &fakes{result: good}
	h, err := f.measure(f.options())
	if err != nil {
		t.Fatal(err)
	}
	if !h.Pass || !h.Valid || len(h.Claims) != 4*(1+3) {
		t.Errorf("pass %v, valid %v, %d claims", h.Pass, h.Valid, len(h.Claims))
	}
	if f.started != 4 || f.closed != 4 {
		t.Errorf("%d labs started, %d closed", f.started, f.closed)
	}
	// 4 systems, 4 settings, 4 moves and a control; 3 s each.
	if len(f.order) != 80 || h.Seconds != 240 {
		t.Errorf("%d trials in %v s", len(f.order), h.Seconds)
	}
	s := h.Settings[1]
	if s.Rate != 5000 || s.DowntimeMS != 0 || h.Settings[2].DowntimeMS != 20 {
		t.Errorf("settings: %+v", h.Settings)
	}
	flood := s.row(testnet.WayFlood)
	var lost []float64
	for _, m := range flood.Trials {
		lost = append(lost, float64(m.Lost()))
	}
	slices.Sort(lost)
	if want := (Spread{lost[2], lost[3], lost[3]}); len(lost) != 4 || flood.Lost != want || lost[0] < 500 {
		t.Errorf("%+v of %v", flood.Lost, lost)
	}
	if last := f.said[len(f.said)-1]; !strings.HasPrefix(last, "80/80, 0s left: 5000 packets/s, downtime limit 20ms, ") {
		t.Errorf("progress: %q", last)
	}
	if first := f.said[0]; !strings.HasPrefix(first, "1/80, 3m57s left: 1000 packets/s, default downtime limit, evpn: without a move") {
		t.Errorf("progress: %q", first)
	}
}

// Every way in which ours can fail is found, and said.
func TestHandoverDoesNotHold(t *testing.T) {
	for name, spoil := range map[string]struct {
		do   func(r *testnet.TrialResult)
		only testnet.Way
		say  string
	}{
		"loss":     {func(r *testnet.TrialResult) { r.LostFrom = 1 }, testnet.WayTabi, "of 4000 it lost 0 to the VM and 1 from it, in 1 moves"},
		"double":   {func(r *testnet.TrialResult) { r.Duplicated = 3 }, testnet.WayTabi, "3 packets came twice"},
		"broken":   {func(r *testnet.TrialResult) { r.Intact = false }, testnet.WayTabi, "1 TCP transfers broke"},
		"fast one": {func(r *testnet.TrialResult) { r.StallMS = 1 }, testnet.WayFlood, "50.0 ms against 1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakes{result: func(w testnet.Way, tr testnet.Trial, nth int) (testnet.TrialResult, error) {
				r, err := good(w, tr, nth)
				// Ours: in one move. Another's stall counts by its median.
				if w == spoil.only && !tr.Still && (nth == 7 || w != testnet.WayTabi) {
					spoil.do(&r)
				}
				return r, err
			}}
			h, err := f.measure(f.options())
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := h.Write(&out); err != nil {
				t.Fatal(err)
			}
			if h.Pass || !h.Valid || !strings.Contains(out.String(), "DOES NOT HOLD") || !strings.Contains(out.String(), spoil.say) || !strings.Contains(out.String(), "FAIL") {
				t.Errorf("pass %v, valid %v:\n%s", h.Pass, h.Valid, out.String())
			}
		})
	}
}

// What is lost where nothing moves makes the run invalid, whoever lost it.
func TestHandoverInvalid(t *testing.T) {
	f := &fakes{result: func(w testnet.Way, tr testnet.Trial, nth int) (testnet.TrialResult, error) {
		r, err := good(w, tr, nth)
		if tr.Still && w == testnet.WayEVPN && tr.Rate == 5000 && tr.MaxDowntime == 0 {
			r.LostTo = 2
		}
		return r, err
	}}
	h, err := f.measure(f.options())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"5000 packets/s, default downtime limit, evpn: without a move 2 of 1000 packets were lost, 0 doubled"}
	if d := cmp.Diff(want, h.Invalid); d != "" || h.Valid || h.Pass || !strings.HasPrefix(h.Verdict(), "INVALID") {
		t.Errorf("valid %v, pass %v, %s (-want +got):\n%s", h.Valid, h.Pass, h.Verdict(), d)
	}
}

// A trial in which the tester or the VMM was at fault is made again with a new lab, and shown; too many end the run.
func TestHandoverSetAside(t *testing.T) {
	f := &fakes{result: func(w testnet.Way, tr testnet.Trial, nth int) (testnet.TrialResult, error) {
		r, err := good(w, tr, nth)
		switch {
		case w == testnet.WayTabi && nth == 6:
			r.LostTo, r.Flaws = 17, []string{"output.0:id 0 is not a head!"}
		case w == testnet.WayFlood && nth == 9:
			err = errors.New("qmp: it broke")
		}
		return r, err
	}}
	h, err := f.measure(f.options())
	if err != nil {
		t.Fatal(err)
	}
	if !h.Pass || len(h.SetAside) != 2 || f.started != 6 || f.closed != 6 {
		t.Errorf("pass %v, aside %+v, %d started, %d closed", h.Pass, h.SetAside, f.started, f.closed)
	}
	var out bytes.Buffer
	if err := h.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`which lost 17: ["output.0:id 0 is not a head!"]`, `["qmp: it broke"]`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
	for _, s := range h.Settings {
		for _, r := range s.Rows {
			if len(r.Trials) != 4 {
				t.Errorf("%s %s: %d moves", s.Name(), r.System, len(r.Trials))
			}
		}
	}

	// What failed while nobody else is known to be at fault counts against ours.
	f = &fakes{result: func(w testnet.Way, tr testnet.Trial, nth int) (testnet.TrialResult, error) {
		r, err := good(w, tr, nth)
		if w == testnet.WayTabi && nth == 6 {
			err = errors.New("no answer")
		}
		return r, err
	}}
	if h, err = f.measure(f.options()); err != nil || h.Pass || !strings.Contains(fmt.Sprint(h.Claims), "1 more trials failed") {
		t.Errorf("%v, %+v", err, h)
	}

	f = &fakes{result: func(testnet.Way, testnet.Trial, int) (testnet.TrialResult, error) {
		return testnet.TrialResult{Flaws: []string{"no memory"}}, nil
	}}
	if _, err := f.measure(f.options()); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("always at fault: %v", err)
	}
	if f.started != f.closed {
		t.Errorf("%d started, %d closed", f.started, f.closed)
	}
}

// The systems take turns, and none is always the first.
func TestHandoverPlan(t *testing.T) {
	const systems, settings, moves = 3, 2, 6
	plan := handoverPlan(systems, settings, moves)
	if len(plan) != systems*settings*(moves+1) {
		t.Fatalf("%d steps", len(plan))
	}
	seen := map[handoverStep]int{}
	first := map[int]int{}
	for i, s := range plan {
		seen[s]++
		if i%systems == 0 {
			first[s.system]++
		}
		if s.still != (i < systems*settings) {
			t.Errorf("step %d: %+v", i, s)
		}
		if i%systems > 0 && (plan[i-1].setting != s.setting || plan[i-1].system == s.system) {
			t.Errorf("step %d: %+v after %+v", i, s, plan[i-1])
		}
	}
	for s, n := range seen {
		if want := map[bool]int{true: 1, false: moves}[s.still]; n != want {
			t.Errorf("%+v: %d times", s, n)
		}
	}
	if first[0] < 4 || first[1] < 4 || first[2] < 4 {
		t.Errorf("who began: %v", first)
	}
}

func TestHandoverOptions(t *testing.T) {
	ok := (&fakes{}).options()
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*HandoverOptions){
		"at least 1":   func(o *HandoverOptions) { o.Moves = 0 },
		"rates":        func(o *HandoverOptions) { o.Rates = []int{0} },
		"downtime":     func(o *HandoverOptions) { o.Downtimes = nil },
		"tabi must be": func(o *HandoverOptions) { o.Systems = []testnet.Way{testnet.WayFlood} },
		`"pigeon"`:     func(o *HandoverOptions) { o.Systems = []testnet.Way{testnet.WayTabi, "pigeon"} },
		"twice":        func(o *HandoverOptions) { o.Systems = []testnet.Way{testnet.WayTabi, testnet.WayTabi} },
		"bit/s":        func(o *HandoverOptions) { o.BitRate = -1 },
	} {
		o := (&fakes{}).options()
		change(&o)
		if _, err := runHandover(t.Context(), o, nil, time.Now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// The table has every system of every setting, and JSON reads back as what was written.
func TestHandoverWrite(t *testing.T) {
	f := &fakes{result: good}
	o := f.options()
	o.Rates, o.Downtimes, o.Systems = []int{1000}, []time.Duration{20 * time.Millisecond}, []testnet.Way{testnet.WayFlood, testnet.WayTabi}
	h, err := f.measure(o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := h.Write(&out); err != nil {
		t.Fatal(err)
	}
	want := `The same VM (qemu) moved in the same way under each system, 4 times each, in turn, while one client exchanged UDP with it and downloaded by TCP (1 Mbit/s).
Of each move: UDP packets lost, both ways together; the longest time without a UDP packet, and without a byte of the TCP download.

1000 packets/s, downtime limit 20ms
         lost  p95  max  gap ms   p95   max  TCP stall ms    p95    max  stopped ms   p95   max  without a move
  flood   104  105  105    90.0  90.0  90.0         106.0  106.0  106.0        40.0  40.0  40.0          lost 0
   tabi     0    0    0    90.0  90.0  90.0          50.0   50.0   50.0        40.0  40.0  40.0          lost 0
holds: 1000 packets/s, downtime limit 20ms: tabi loses no packet in 4 moves
holds: 1000 packets/s, downtime limit 20ms: tabi stalls TCP for less than flood (medians)

PASS: all 2 claims hold
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Pass     bool
		Settings []struct {
			Rate    int
			Systems []struct {
				System string
				Lost   Spread
			}
		}
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !back.Pass || back.Settings[0].Systems[0].System != "flood" || back.Settings[0].Systems[0].Lost.Median != 104 {
		t.Errorf("%s", b)
	}
}

// A namespace VM's programs run on while it is dark: nothing is claimed of TCP.
func TestHandoverNamespaceClaims(t *testing.T) {
	f := &fakes{result: good}
	o := f.options()
	o.VM = testnet.VMNamespace
	h, err := f.measure(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Claims) != 4 {
		t.Errorf("%d claims: %+v", len(h.Claims), h.Claims)
	}
}
