package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// Map646Options bound a run of [RunMap646].
type Map646Options struct {
	Rounds    int           // interleaved rounds, at least 1
	Each      time.Duration // time of one measurement
	Sizes     []int         // service addresses of tabi's translator, each size a way of its own; ascending
	Tayga     []int         // those of tayga; none: it is left out
	Original  string        // binary of the original map646; "": it is left out
	Originals []int         // its mappings
	Read      int           // service addresses of tabi when it is measured with and without a reader of its statistics; 0: left out
	Reads     int           // a second
	Reader    []string      // the command line, less the arguments that it is given, that runs a [Reader646]
	Progress  func(string)  // told what is being done
	Log       *slog.Logger
}

// Validate says what cannot be run.
func (o *Map646Options) Validate() error {
	if o.Rounds < 1 {
		return fmt.Errorf("bench: %d rounds: want at least 1", o.Rounds)
	}
	if len(o.Sizes) == 0 {
		return errors.New("bench: no number of service addresses")
	}
	for _, n := range slices.Concat(o.Sizes, o.Tayga, o.Originals) {
		if n < 1 || n > maxServices646 {
			return fmt.Errorf("bench: %d service addresses: want 1 to %d", n, maxServices646)
		}
	}
	if o.Read < 0 || o.Read > maxServices646 || o.Reads < 1 {
		return fmt.Errorf("bench: statistics of %d service addresses, read %d times a second: want 0 to %d, and at least once", o.Read, o.Reads, maxServices646)
	}
	if !slices.IsSorted(o.Sizes) {
		return fmt.Errorf("bench: service addresses %v: want them in ascending order", o.Sizes)
	}
	return nil
}

// maxServices646 is how many addresses the prefix of the service addresses has.
const maxServices646 = 1<<20 - 2

func (o *Map646Options) ways() []way646 {
	ways := []way646{{kind: wayPlain4}, {kind: wayPlain6}, {kind: wayLISP6}}
	for _, n := range o.Sizes {
		ways = append(ways, way646{kind: wayTabi, mappings: n})
	}
	for _, n := range o.Tayga {
		ways = append(ways, way646{kind: wayTayga, mappings: n})
	}
	if o.Original != "" {
		for _, n := range o.Originals {
			ways = append(ways, way646{kind: wayMap646, mappings: n})
		}
	}
	return ways
}

// Map646Way is the result for one way.
type Map646Way struct {
	Way      string             `json:"way"`
	Kind     string             `json:"kind"`
	Mappings int                `json:"mappings,omitempty"` // of the translator
	Samples  map[string]*Sample `json:"samples"`            // by metric
	// Ratios are medians over those of plain IPv4 routing.
	Ratios map[string]float64 `json:"ratios"`
}

// Map646 is the report of `tabi bench map646`.
type Map646 struct {
	Ways     []Map646Way          `json:"ways"`
	Readings []Reading646         `json:"readings,omitempty"`
	Programs []kernel.ProgramTime `json:"programs"`
	Targets  []Target             `json:"targets"`
}

// RunMap646 measures translation beside plain routing and other translators, in turn; it needs root. It makes and
// removes its own namespaces.
func RunMap646(ctx context.Context, o Map646Options) (m *Map646, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tabi-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	m = &Map646{}
	var chains []*chain646
	defer func() {
		for _, c := range chains {
			err = errors.Join(err, c.close())
		}
	}()
	for i, w := range o.ways() {
		o.Progress(w.name() + " is made")
		c, err := newChain646(ctx, w, filepath.Join(dir, fmt.Sprint(i)), o.Original, o.Log)
		if err != nil {
			return nil, err
		}
		chains = append(chains, c)
		if err := c.check(ctx); err != nil {
			return nil, err
		}
		m.Ways = append(m.Ways, Map646Way{Way: w.name(), Kind: w.kind, Mappings: w.mappings, Samples: newSamples(), Ratios: map[string]float64{}})
	}
	for round := range o.Rounds {
		for i, c := range chains {
			o.Progress(fmt.Sprintf("round %d of %d: %s", round+1, o.Rounds, c.way.name()))
			if err := c.pair().measure(ctx, o.Each, m.Ways[i].Samples); err != nil {
				return nil, fmt.Errorf("bench: %s: %w", c.way.name(), err)
			}
		}
	}
	for i := range m.Ways {
		for _, x := range metrics {
			m.Ways[i].Ratios[x.Name] = m.Ways[i].Samples[x.Name].Median / m.Ways[0].Samples[x.Name].Median
		}
	}
	if o.Read > 0 {
		if m.Readings, err = o.readings(ctx, filepath.Join(dir, "read")); err != nil {
			return nil, err
		}
	}
	o.Progress("cost of each program")
	if m.Programs, err = kernel.TranslationCost(ctx, o.Sizes...); err != nil {
		return nil, fmt.Errorf("bench: programs: %w", err)
	}
	m.Targets = m.targets()
	return m, nil
}

// readingPairs is how often each load is measured with and without a reader, for each round of the rest.
const readingPairs = 4

func (o *Map646Options) readings(ctx context.Context, dir string) (out []Reading646, err error) {
	w := way646{kind: wayTabi, mappings: o.Read}
	o.Progress(fmt.Sprintf("%s, statistics read %d times a second", w.name(), o.Reads))
	c, err := newChain646(ctx, w, dir, "", o.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	if out, err = c.readStatistics(ctx, readingPairs*o.Rounds, readingSlice, Reader646{c.pins, o.Read, o.Reads}, o.Reader); err != nil {
		return nil, fmt.Errorf("bench: %s: statistics: %w", w.name(), err)
	}
	return out, nil
}

// of are the ways of a kind.
func (m *Map646) of(kind string) (ways []Map646Way) {
	for _, w := range m.Ways {
		if w.Kind == kind {
			ways = append(ways, w)
		}
	}
	return ways
}

func (m *Map646) targets() []Target {
	var list []Target
	ours := m.of(wayTabi)
	first, last := ours[0], ours[len(ours)-1]
	for _, x := range metrics[:4] {
		list = append(list, Target{Name: first.Way + ": " + x.Name + " over plain IPv4 routing", Want: 0.95, Got: first.Ratios[x.Name]})
	}
	list = append(list, Target{Name: first.Way + ": median latency over plain IPv4 routing", Want: 1.05, Got: first.Ratios["rtt"], AtMost: true})
	if others := m.of(wayTayga); len(others) > 0 {
		for _, x := range metrics[:2] {
			list = append(list, Target{Name: first.Way + ": " + x.Name + " over " + others[0].Way, Want: 15,
				Got: first.Samples[x.Name].Median / others[0].Samples[x.Name].Median})
		}
	}
	if len(ours) > 1 {
		list = append(list, Target{Name: "packets/s: " + first.Way + " over " + last.Way, Want: 1.2,
			Got: first.Samples["udp64"].Median / last.Samples["udp64"].Median, AtMost: true})
	}
	for _, r := range m.Readings {
		// What passes differs by more than this from second to second.
		list = append(list, Target{Name: r.Metric + ": part of the processors that reading statistics takes", Want: 0.02, Got: r.Processors.Median, AtMost: true})
	}
	for _, p := range m.Programs {
		if n := len(p.Cost); n > 1 {
			list = append(list, Target{Name: fmt.Sprintf("%s: ns per packet, %d over %d", p.Program, p.Cost[n-1].Mappings, p.Cost[0].Mappings),
				Want: 1.2, Got: p.Cost[n-1].Nanoseconds / p.Cost[0].Nanoseconds, AtMost: true})
		}
	}
	return judged(list)
}

// Write prints the report for people.
func (m *Map646) Write(w io.Writer) error {
	fmt.Fprintln(w, "From an IPv4 client to an IPv6 server: client - translator - router - server. Medians, with the least and the most;")
	fmt.Fprintln(w, "in brackets the ratio to plain IPv4 routing. tabi encapsulates as well: lisp6 is tabi without the translation.")
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\t")
	for _, x := range metrics {
		fmt.Fprintf(tw, "%s %s\t", x.Name, x.Unit)
	}
	fmt.Fprintln(tw)
	for _, way := range m.Ways {
		fmt.Fprintf(tw, "%s\t", way.Way)
		for _, x := range metrics {
			v := way.Samples[x.Name]
			fmt.Fprintf(tw, "%.4g (%.3g..%.3g) [%.2f]\t", v.Median*x.Scale, v.Min*x.Scale, v.Max*x.Scale, way.Ratios[x.Name])
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := writeReadings(w, m.Readings); err != nil {
		return err
	}
	if err := writePrograms(w, "service addresses", m.Programs); err != nil {
		return err
	}
	return writeTargets(w, m.Targets)
}

func writeReadings(w io.Writer, rs []Reading646) error {
	if len(rs) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nWhile the statistics of %d service addresses are read, over a second before or after; median, with the least and the most\n", rs[0].Mappings)
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\twhat passes\tprocessors that the reader takes\t")
	for _, r := range rs {
		fmt.Fprintf(tw, "%s\t%.3f (%.2f..%.2f)\t%.4f (%.4f..%.4f)\t\n", r.Metric, r.Ratio.Median, r.Ratio.Min, r.Ratio.Max,
			r.Processors.Median, r.Processors.Min, r.Processors.Max)
	}
	return tw.Flush()
}
