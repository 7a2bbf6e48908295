package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/testnet"
)

// scenarioOptions name what the demo plays instead of its tour, and how.
type scenarioOptions struct {
	name     string
	vms      int
	parallel int
}

// scenarios are what can be named, with what they play.
var scenarios = map[string]func(context.Context, *testnet.Cloud, scenarioOptions, time.Duration) (scenarioReport, error){
	"drain": func(ctx context.Context, c *testnet.Cloud, o scenarioOptions, blackout time.Duration) (scenarioReport, error) {
		return c.Drain(ctx, testnet.DrainOptions{VMs: o.vms, Parallel: o.parallel, Blackout: blackout})
	},
}

// scenarioReport is what comes of a scenario.
type scenarioReport interface {
	WriteText(w io.Writer) error
	Passed() bool
}

// flags adds the flags of scenarios to the demo's.
func (o *scenarioOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.name, "scenario", "", "play this instead of the tour: drain (a hypervisor with many VMs is emptied)")
	f.IntVar(&o.vms, "vms", 200, "with --scenario drain: VMs on the hypervisor")
	f.IntVar(&o.parallel, "parallel", 8, "with --scenario drain: moves at the same time")
}

// check says what is wrong with the flags.
func (o *scenarioOptions) check() error {
	if o.name != "" && scenarios[o.name] == nil {
		return fmt.Errorf("demo: no scenario %q: there is drain", o.name)
	}
	if o.vms < 1 || o.vms > testnet.FleetMax || o.parallel < 1 {
		return fmt.Errorf("demo: --vms wants 1 to %d, --parallel at least 1", testnet.FleetMax)
	}
	return nil
}

// play plays the named scenario and prints its report.
func (o *scenarioOptions) play(ctx context.Context, c *testnet.Cloud, out io.Writer, p *progressLine, blackout time.Duration, asJSON bool) error {
	r, err := scenarios[o.name](ctx, c, *o, blackout)
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
