package bench

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/testnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// readerArg makes the test binary read statistics.
const readerArg = "read-statistics"

func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != readerArg {
		os.Exit(m.Run())
	}
	r, err := ParseReader646(os.Args[2:])
	if err == nil {
		err = r.Run(context.Background(), checkCounts, os.Stdin, os.Stdout, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// checkCounts checks that there is a count for every service.
func checkCounts(services []fib.Service, counts func() ([]fib.ServiceCount, error)) Answer {
	return func(context.Context) error {
		all, err := counts()
		if err == nil && len(all) != len(services) {
			err = fmt.Errorf("%d counts of %d services", len(all), len(services))
		}
		return err
	}
}

// A packet goes to the server by its service address and comes back, through the same chain that is measured, also
// while the statistics are read.
func TestMap646Chain(t *testing.T) {
	if m := testnet.MissingPrivilege(); m != "" {
		t.Fatal(m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := newChain646(ctx, way646{kind: wayTabi, mappings: 3}, t.TempDir(), "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := c.check(ctx); err != nil {
		t.Fatal(err)
	}
	read, err := c.readStatistics(ctx, 1, 100*time.Millisecond, Reader646{c.pins, 3, 100}, []string{os.Args[0], readerArg})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range read {
		if r.Ratio.Median <= 0 || r.Processors.Median <= 0 || r.Processors.Median > 1 {
			t.Errorf("%s: %+v, %+v", r.Metric, r.Ratio, r.Processors)
		}
	}
	for {
		all, err := c.planes[0].ServiceCounters()
		if err != nil {
			t.Fatal(err)
		}
		if all[0].In.Packets > 0 && all[0].Out.Packets > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("what passed was not translated: %+v", all)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestServices646(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for i, s := range services646(70_000) {
		if err := s.Valid(); err != nil || !c646Services.Contains(s.Outside.Addr()) || !c646Insides.Contains(s.Inside.Addr()) || seen[s.Outside] || seen[s.Inside] {
			t.Fatalf("service %d: %v: %v", i, s, err)
		}
		seen[s.Outside], seen[s.Inside] = true, true
	}
}

func TestMap646Options(t *testing.T) {
	good := Map646Options{Rounds: 1, Sizes: []int{1}, Reads: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Map646Options){
		"rounds":           func(o *Map646Options) { o.Rounds = 0 },
		"no number":        func(o *Map646Options) { o.Sizes = nil },
		"1048575 service":  func(o *Map646Options) { o.Sizes = []int{maxServices646 + 1} },
		"0 service":        func(o *Map646Options) { o.Tayga = []int{0} },
		"ascending":        func(o *Map646Options) { o.Sizes = []int{2, 1} },
		"0 times a second": func(o *Map646Options) { o.Reads = 0 },
	} {
		o := good
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// The report compares each way with plain IPv4 routing, and itself with its targets.
func TestMap646Report(t *testing.T) {
	way := func(name, kind string, mappings int, v float64) Map646Way {
		w := Map646Way{Way: name, Kind: kind, Mappings: mappings, Samples: newSamples(), Ratios: map[string]float64{}}
		for _, x := range metrics {
			w.Samples[x.Name].add(v)
			w.Ratios[x.Name] = v / 100
		}
		return w
	}
	m := &Map646{
		Ways:     []Map646Way{way("plain4", wayPlain4, 0, 100), way("tabi/1", wayTabi, 1, 96), way("tabi/30", wayTabi, 30, 90), way("tayga/1", wayTayga, 1, 6)},
		Readings: []Reading646{{Mappings: 9, Metric: "udp64", Ratio: &Sample{Median: 0.97}, Processors: &Sample{Median: 0.01}}},
		Programs: []kernel.ProgramTime{{Program: "4 to 6", Cost: []kernel.ProgramCostAt{{Mappings: 1, Nanoseconds: 100}, {Mappings: 30, Nanoseconds: 130}}}},
	}
	m.Targets = m.targets()
	met := map[string]bool{}
	for _, x := range m.Targets {
		met[x.Name] = x.Met
	}
	for name, want := range map[string]bool{
		"tabi/1: udp64 over plain IPv4 routing":                       true,
		"tabi/1: median latency over plain IPv4 routing":              true,
		"tabi/1: tcp1 over tayga/1":                                   true, // 16 times
		"packets/s: tabi/1 over tabi/30":                              true,
		"udp64: part of the processors that reading statistics takes": true,
		"4 to 6: ns per packet, 30 over 1":                            false,
	} {
		if got, ok := met[name]; !ok || got != want {
			t.Errorf("%s: met %v (%v), want %v", name, got, ok, want)
		}
	}
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tabi/30", "[0.96]", "by service addresses in the table", "statistics of 9", "missed"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, b.String())
		}
	}
}
