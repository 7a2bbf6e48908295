package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/bench"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

func newBenchMap646Command() *cobra.Command {
	var o bench.Map646Options
	var asJSON bool
	c := &cobra.Command{
		Use:   "map646",
		Short: "Translation between IPv4 and IPv6: plain routing, tabi, tayga and the original map646, interleaved",
		Long: `Measure an IPv4 client of an IPv6 server: plain IPv4 routing, plain IPv6 routing, tabi without a translation, tabi
with service addresses, and other translators, in turn. TCP with one stream and four, UDP with 64 and 1,400 bytes,
the round trip of one packet; then what a packet costs in the BPF programs alone.

It needs root, and tayga (Debian package) unless --tayga is 0.`,
		Example: `  sudo tabi bench map646
  sudo tabi bench map646 --map646 ./map646 --rounds 7 --json >report.json
  sudo tabi bench map646 --rounds 1 --mappings 1 --statistics 0 --tayga 0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if slices.Equal(o.Tayga, []int{0}) {
				o.Tayga = nil
			}
			if err := o.Validate(); err != nil {
				return err
			}
			if o.Original != "" {
				path, err := exec.LookPath(o.Original)
				if err != nil {
					return fmt.Errorf("bench: --map646: %w", err)
				}
				o.Original = path
			}
			if _, err := exec.LookPath("tayga"); len(o.Tayga) > 0 && err != nil {
				return fmt.Errorf(`bench: %w (apt-get install tayga, or leave it out: --tayga 0)`, err)
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			o.Reader = []string{exe, "bench", readStatistics}
			o.Progress, o.Log = progress(cmd), quietLog(cmd)
			r, err := bench.RunMap646(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printReport(cmd, r, asJSON)
		},
	}
	c.Flags().IntVar(&o.Rounds, "rounds", 5, "interleaved rounds")
	c.Flags().DurationVar(&o.Each, "each", 1500*time.Millisecond, "time of one measurement")
	c.Flags().IntSliceVar(&o.Sizes, "mappings", []int{1, 30, 10_000, 1_000_000}, "service addresses of tabi")
	c.Flags().IntVar(&o.Read, "statistics", 100_000, "service addresses of tabi when it is measured with and without a reader of its statistics; 0 leaves it out")
	c.Flags().IntVar(&o.Reads, "reads", 100, "how often they are read, a second")
	c.Flags().IntSliceVar(&o.Tayga, "tayga", []int{1, 30, 10_000}, "static mappings of tayga, which takes long to read many; 0 leaves it out")
	c.Flags().StringVar(&o.Original, "map646", "", "binary of the original map646")
	c.Flags().IntSliceVar(&o.Originals, "map646-mappings", []int{1, 30, 10_000}, "static mappings of the original map646")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

const readStatistics = "read-statistics"

// newReadStatisticsCommand is the process that `tabi bench map646` starts to read its translator's statistics.
func newReadStatisticsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    readStatistics + " DIR SERVICES READS",
		Short:  "Read the statistics of tabi bench map646 in a process of its own",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := bench.ParseReader646(args)
			if err != nil {
				return err
			}
			return r.Run(cmd.Context(), tableOfServices, cmd.InOrStdin(), cmd.OutOrStdout(), quietLog(cmd))
		},
	}
}

// tableOfServices answers as `tabi detr` does.
func tableOfServices(services []fib.Service, counts func() ([]fib.ServiceCount, error)) bench.Answer {
	states := make([]detr.ServiceState, len(services))
	for i, s := range services {
		states[i].Service = s
	}
	s := &serviceStatistics{counts: counts, list: func(uint64) (uint64, []detr.ServiceState) { return 1, states }}
	return func(ctx context.Context) error {
		_, err := s.Table(ctx)
		return err
	}
}
