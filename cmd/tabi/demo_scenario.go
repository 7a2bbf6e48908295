package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/testnet"
)

// scenarioOptions name what the demo plays instead of its tour, and how.
type scenarioOptions struct {
	name     string
	vms      int
	parallel int
	link     uint64
	viewers  int
	duration time.Duration
	svg      string
}

// scenario is one that can be named.
type scenario struct {
	kind     string // of the cloud's VMs, "" = the demo's own
	services bool   // the cloud has service addresses
	about    string
	play     func(context.Context, *testnet.Cloud, scenarioOptions, time.Duration) (scenarioReport, error)
}

var scenarios = map[string]scenario{
	"drain": {"", false, "a hypervisor with many VMs is emptied", func(ctx context.Context, c *testnet.Cloud, o scenarioOptions, blackout time.Duration) (scenarioReport, error) {
		return c.Drain(ctx, testnet.DrainOptions{VMs: o.vms, Parallel: o.parallel, Blackout: blackout})
	}},
	"koshien": {"", true, "a broadcast to thousands of viewers, while a D-ETR is killed and a VM moves", koshien},
	"satellite": {testnet.VMCamp, false, "the camp of 2011: four real guests with local disks move over a slow link", func(ctx context.Context, c *testnet.Cloud, o scenarioOptions, _ time.Duration) (scenarioReport, error) {
		return c.Satellite(ctx, testnet.SatelliteOptions{BitRate: o.link})
	}},
}

// scenarioNames are the names in order.
func scenarioNames() []string { return slices.Sorted(maps.Keys(scenarios)) }

// and joins words as people do.
func and(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// scenarioReport is what comes of a scenario.
type scenarioReport interface {
	WriteText(w io.Writer) error
	Passed() bool
}

// flags adds the flags of scenarios to the demo's.
func (o *scenarioOptions) flags(c *cobra.Command) {
	f := c.Flags()
	var about []string
	for _, name := range scenarioNames() {
		about = append(about, fmt.Sprintf("%s (%s)", name, scenarios[name].about))
	}
	f.StringVar(&o.name, "scenario", "", "play this instead of the tour: "+strings.Join(about, ", "))
	f.IntVar(&o.vms, "vms", 200, "with --scenario drain: VMs on the hypervisor")
	f.IntVar(&o.parallel, "parallel", 8, "with --scenario drain: moves at the same time")
	f.IntVar(&o.viewers, "viewers", 5000, "with --scenario koshien: viewers, half of them with IPv4")
	f.DurationVar(&o.duration, "duration", time.Minute, "with --scenario koshien: of the broadcast")
	f.StringVar(&o.svg, "svg", "koshien.svg", "with --scenario koshien: file for the plot; empty: none")
	f.Uint64Var(&o.link, "link", 20e6, "with --scenario satellite: bits a second of the camp's link, in each direction")
}

// check says what is wrong with the flags.
func (o *scenarioOptions) check() error {
	if _, ok := scenarios[o.name]; o.name != "" && !ok {
		return fmt.Errorf("demo: no scenario %q: there are %s", o.name, and(scenarioNames()))
	}
	if o.link < minLink {
		return fmt.Errorf("demo: --link wants at least %d", uint64(minLink))
	}
	if o.vms < 1 || o.vms > testnet.FleetMax || o.parallel < 1 {
		return fmt.Errorf("demo: --vms wants 1 to %d, --parallel at least 1", testnet.FleetMax)
	}
	if o.viewers < 2 || o.viewers > maxViewers || o.duration < testnet.KoshienLeast {
		return fmt.Errorf("demo: --viewers wants 2 to %d, --duration at least %v", maxViewers, testnet.KoshienLeast)
	}
	return nil
}

// maxViewers is how many connections each of the two clients' addresses has ports for.
const maxViewers = 50000

// minLink is the least --link: the memory of one guest takes minutes there.
const minLink = 1e6

// apply makes the cloud one that the scenario can be played in.
func (o *scenarioOptions) apply(c *testnet.Options) {
	if kind := scenarios[o.name].kind; kind != "" {
		c.VM = kind
	}
	c.Services = scenarios[o.name].services
}

// play plays the named scenario and prints its report.
func (o *scenarioOptions) play(ctx context.Context, c *testnet.Cloud, out io.Writer, p *progressLine, blackout time.Duration, asJSON bool) error {
	r, err := scenarios[o.name].play(ctx, c, *o, blackout)
	if err != nil {
		return err
	}
	p.pause()
	if !asJSON {
		err = r.WriteText(out)
	} else {
		var b []byte
		if b, err = json.MarshalIndent(r, "", "  "); err == nil {
			_, err = fmt.Fprintf(out, "%s\n", b)
		}
	}
	if err == nil && !r.Passed() {
		err = errSilent
	}
	return err
}

// koshien shows the broadcast, and writes its plot to a file.
func koshien(ctx context.Context, c *testnet.Cloud, o scenarioOptions, blackout time.Duration) (scenarioReport, error) {
	r, err := c.Koshien(ctx, testnet.KoshienOptions{Viewers: o.viewers, Duration: o.duration, Blackout: blackout})
	if err != nil || o.svg == "" {
		return r, err
	}
	if err := os.WriteFile(o.svg, r.Chart().SVG(), 0o644); err != nil {
		return r, fmt.Errorf("plot: %w", err)
	}
	r.Pictures = o.svg
	return r, nil
}
