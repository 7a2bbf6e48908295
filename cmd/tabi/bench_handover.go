package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/bench"
	"github.com/tabi-lisp/tabi/testnet"
)

// errClaims is the end of a run whose report says it all.
var errClaims = errors.New("bench handover: not everything that is claimed holds: see the report")

func newBenchHandoverCommand() *cobra.Command {
	var o bench.HandoverOptions
	var systems []string
	var tcp float64
	var quick, asJSON bool
	about := make([]string, len(testnet.Ways))
	for i, w := range testnet.Ways {
		about[i] = fmt.Sprintf("  %-11s %s", w, w.About())
	}
	c := &cobra.Command{
		Use:   "handover",
		Short: "Moves of the same VM under tabi, FRR EVPN, and VXLAN that floods and learns: packets lost, gaps, TCP stalls",
		Long: `Move a real guest to and fro between two hypervisors, in the same way under each system, while a client in its
subnet exchanges UDP with it and downloads by TCP. The systems take turns, move by move:

` + strings.Join(about, "\n") + `

A trial without a move must lose nothing, else the run is invalid. The exit status is 0 if the run is valid, tabi
lost nothing, and stalled TCP for less than each of the others.

It needs root and the Debian packages frr and qemu-system-x86; "tabi demo setup" makes the guest.`,
		Example: `  sudo tabi bench handover
  sudo tabi bench handover --moves 50 --rates 5000 --downtime 20ms --json >report.json
  sudo tabi bench handover --quick --systems flood,tabi`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			for _, s := range systems {
				o.Systems = append(o.Systems, testnet.Way(strings.TrimSpace(s)))
			}
			if quick {
				quickly(cmd, &o)
			}
			if err := handoverNeeds(o); err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			o.Binary, o.Janitor, o.BitRate = exe, []string{exe, "demo", "janitor"}, int(tcp*1e6)
			o.Progress = progress(cmd)
			r, err := bench.RunHandover(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := printReport(cmd, r, asJSON); err != nil {
				return err
			}
			if !r.Pass {
				return errClaims
			}
			return nil
		},
	}
	c.Flags().IntVar(&o.Moves, "moves", 20, "moves of each system in each setting")
	c.Flags().StringSliceVar(&systems, "systems", names(testnet.Ways), "which are compared")
	c.Flags().IntSliceVar(&o.Rates, "rates", []int{1000, 5000}, "UDP packets a second, each way")
	c.Flags().DurationSliceVar(&o.Downtimes, "downtime", []time.Duration{0, 20 * time.Millisecond}, "the VMM's downtime limits; 0 is QEMU's default, 300ms")
	c.Flags().Float64Var(&tcp, "tcp", 4, "Mbit/s of the TCP download from the VM; 0 is as fast as it can")
	c.Flags().StringVar(&o.VM, "vm", testnet.VMQEMU, "what moves: qemu, a real guest; or namespace, which only looks like one and is there at once")
	c.Flags().BoolVar(&quick, "quick", false, "one move of each system at 1000 packets/s and a limit of 20ms, unless said otherwise")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = c.RegisterFlagCompletionFunc("systems", cobra.FixedCompletions(names(testnet.Ways), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("vm", cobra.FixedCompletions([]string{testnet.VMQEMU, testnet.VMNamespace}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// quickly makes a run short where nothing else was asked for.
func quickly(cmd *cobra.Command, o *bench.HandoverOptions) {
	if !cmd.Flags().Changed("moves") {
		o.Moves = 1
	}
	if !cmd.Flags().Changed("rates") {
		o.Rates = []int{1000}
	}
	if !cmd.Flags().Changed("downtime") {
		o.Downtimes = []time.Duration{20 * time.Millisecond}
	}
}

// handoverNeeds says what this machine lacks for a run.
func handoverNeeds(o bench.HandoverOptions) error {
	var missing []string
	if m := testnet.MissingPrivilege(); m != "" {
		missing = append(missing, m)
	}
	if o.VM == testnet.VMQEMU {
		if m := testnet.MissingQEMU(); m != "" {
			missing = append(missing, m)
		}
	}
	if slices.Contains(o.Systems, testnet.WayEVPN) || slices.Contains(o.Systems, testnet.WayEVPNTuned) {
		if m := testnet.MissingFRR(); m != "" {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("bench handover: %s", strings.Join(missing, "; "))
	}
	return nil
}

// names are the ways as they are written.
func names(ways []testnet.Way) (out []string) {
	for _, w := range ways {
		out = append(out, string(w))
	}
	return out
}
