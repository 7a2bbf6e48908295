package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// DataplaneOptions bound a run of [Dataplane].
type DataplaneOptions struct {
	Rounds   int           // interleaved rounds, at least 1
	Each     time.Duration // time of one measurement
	Sizes    []int         // table sizes for the programs' own cost
	Progress func(string)  // told what is being done
	Log      *slog.Logger
}

// metrics are what is measured, in the order of the table. Of the last two less is better.
var metrics = []struct {
	Name, Unit string
	Scale      float64
	LessBetter bool
}{
	{"tcp1", "Gbit/s", 1e-9, false}, {"tcp4", "Gbit/s", 1e-9, false},
	{"udp64", "kpps", 1e-3, false}, {"udp1400", "kpps", 1e-3, false},
	{"rtt", "us", 1, true}, {"rtt_p99", "us", 1, true},
}

var ways = []string{"plain", "vxlan", "tabi"}

// Setup is the result for one kind of underlay.
type Setup struct {
	Name    string                        `json:"setup"`   // "offload" or "wire"
	Samples map[string]map[string]*Sample `json:"samples"` // way -> metric
	// Ratios are medians of tabi over those of the other way.
	Ratios map[string]map[string]float64 `json:"ratios"`
}

// Dataplane is the report of `tabi bench dataplane`.
type Dataplane struct {
	Setups   []Setup              `json:"setups"`
	Programs []kernel.ProgramTime `json:"programs"`
	Targets  []Target             `json:"targets"`
}

// Target is a figure that this project holds itself to.
type Target struct {
	Name   string  `json:"name"`
	Want   float64 `json:"want"`
	Got    float64 `json:"got"`
	AtMost bool    `json:"at_most"`
	Met    bool    `json:"met"`
}

// RunDataplane measures; it needs root. It makes and removes its own namespaces.
func RunDataplane(ctx context.Context, o DataplaneOptions) (*Dataplane, error) {
	dir, err := os.MkdirTemp("", "tabi-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var d Dataplane
	for _, name := range []string{"offload", "wire"} {
		s, err := runSetup(ctx, name, filepath.Join(dir, name), o)
		if err != nil {
			return nil, err
		}
		d.Setups = append(d.Setups, s)
	}
	o.Progress("cost of each program")
	if d.Programs, err = kernel.ProgramCost(ctx, o.Sizes...); err != nil {
		return nil, fmt.Errorf("bench: programs: %w", err)
	}
	d.Targets = targets(&d)
	return &d, nil
}

func runSetup(ctx context.Context, name, dir string, o DataplaneOptions) (s Setup, err error) {
	s = Setup{Name: name, Samples: map[string]map[string]*Sample{}, Ratios: map[string]map[string]float64{}}
	var chains []*chain
	defer func() {
		for _, c := range chains {
			err = errors.Join(err, c.close())
		}
	}()
	for _, w := range ways {
		c, err := newChain(ctx, w, name == "wire", filepath.Join(dir, w), o.Log)
		if err != nil {
			return s, err
		}
		chains = append(chains, c)
		if err := c.check(); err != nil {
			return s, err
		}
		s.Samples[w] = newSamples()
	}
	for round := range o.Rounds {
		for _, c := range chains {
			o.Progress(fmt.Sprintf("%s: round %d of %d: %s", name, round+1, o.Rounds, c.way))
			if err := c.pair().measure(ctx, o.Each, s.Samples[c.way]); err != nil {
				return s, fmt.Errorf("bench: %s: %w", c.way, err)
			}
		}
	}
	for _, w := range ways[:2] {
		s.Ratios[w] = map[string]float64{}
		for _, m := range metrics {
			s.Ratios[w][m.Name] = s.Samples["tabi"][m.Name].Median / s.Samples[w][m.Name].Median
		}
	}
	return s, nil
}

func targets(d *Dataplane) []Target {
	off, wire := d.Setups[0], d.Setups[1]
	list := []Target{
		{Name: "offload: packets/s over vxlan", Want: 1.3, Got: off.Ratios["vxlan"]["udp64"]},
		{Name: "offload: packets/s over plain", Want: 0.95, Got: off.Ratios["plain"]["udp64"]},
		{Name: "offload: TCP, one stream, over vxlan", Want: 1.0, Got: off.Ratios["vxlan"]["tcp1"]},
		{Name: "offload: TCP, four streams, over vxlan", Want: 1.0, Got: off.Ratios["vxlan"]["tcp4"]},
		{Name: "offload: latency over vxlan", Want: 1.0, Got: off.Ratios["vxlan"]["rtt"], AtMost: true},
		{Name: "wire: TCP, one stream, over vxlan", Want: 0.9, Got: wire.Ratios["vxlan"]["tcp1"]},
		{Name: "wire: TCP, four streams, over vxlan", Want: 0.9, Got: wire.Ratios["vxlan"]["tcp4"]},
		{Name: "wire: packets/s over vxlan", Want: 1.2, Got: wire.Ratios["vxlan"]["udp64"]},
	}
	for _, p := range d.Programs {
		if n := len(p.Cost); n > 1 {
			list = append(list, Target{Name: fmt.Sprintf("%s: ns per packet, %d over %d mappings", p.Program, p.Cost[n-1].Mappings, p.Cost[0].Mappings),
				Want: 1.2, Got: p.Cost[n-1].Nanoseconds / p.Cost[0].Nanoseconds, AtMost: true})
		}
	}
	return judged(list)
}

// judged says which targets are met.
func judged(list []Target) []Target {
	for i, t := range list {
		list[i].Met = t.Got >= t.Want
		if t.AtMost {
			list[i].Met = t.Got <= t.Want
		}
	}
	return list
}

// newSamples has none yet of each metric.
func newSamples() map[string]*Sample {
	s := map[string]*Sample{}
	for _, m := range metrics {
		s[m.Name] = &Sample{}
	}
	return s
}

// Write prints the report for people.
func (d *Dataplane) Write(w io.Writer) error {
	for _, s := range d.Setups {
		fmt.Fprintf(w, "\n%s\n", map[string]string{
			"offload": "Offloads on: super-packets cross the underlay",
			"wire":    "Wire: cut to packets after the encapsulation, GRO at the receiver",
		}[s.Name])
		tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(tw, "\tplain\tvxlan\ttabi\t\ttabi/plain\ttabi/vxlan\t")
		for _, m := range metrics {
			fmt.Fprintf(tw, "%s %s\t", m.Name, m.Unit)
			for _, way := range ways {
				v := s.Samples[way][m.Name]
				fmt.Fprintf(tw, "%.4g (%.3g..%.3g)\t", v.Median*m.Scale, v.Min*m.Scale, v.Max*m.Scale)
			}
			fmt.Fprintf(tw, "\t%.2f\t%.2f\t\n", s.Ratios["plain"][m.Name], s.Ratios["vxlan"][m.Name])
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	if err := writePrograms(w, "mappings", d.Programs); err != nil {
		return err
	}
	return writeTargets(w, d.Targets)
}

// writePrograms is the table of what a packet costs in each program, by the size of a table.
func writePrograms(w io.Writer, of string, programs []kernel.ProgramTime) error {
	fmt.Fprintf(w, "\nEach program, ns per packet, by %s in the table\n", of)
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', tabwriter.AlignRight)
	for i, p := range programs {
		if i == 0 {
			fmt.Fprint(tw, "\t")
			for _, c := range p.Cost {
				fmt.Fprintf(tw, "%d\t", c.Mappings)
			}
			fmt.Fprintln(tw)
		}
		fmt.Fprintf(tw, "%s\t", p.Program)
		for _, c := range p.Cost {
			fmt.Fprintf(tw, "%.0f\t", c.Nanoseconds)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

func writeTargets(w io.Writer, targets []Target) error {
	fmt.Fprintln(w, "\nTargets (medians of one run)")
	tw := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	for _, t := range targets {
		word, sign := "missed", ">="
		if t.Met {
			word = "met"
		}
		if t.AtMost {
			sign = "<="
		}
		fmt.Fprintf(tw, "  %s\t%.2f\twant %s %.2f\t%s\n", t.Name, t.Got, sign, t.Want, word)
	}
	return tw.Flush()
}
