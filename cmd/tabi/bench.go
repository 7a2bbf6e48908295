package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/bench"
)

func newBenchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the data plane, translation, the way of a mapping, and moves beside those of others, on this machine",
		Long:  "Measure on this machine, in network namespaces of its own. Needs root. What counts are the ratios within one run.",
	}
	c.AddCommand(newBenchDataplaneCommand(), newBenchPushCommand(), newBenchHandoverCommand(), newBenchMap646Command(),
		newReadStatisticsCommand())
	return c
}

// report is what a benchmark ends in.
type report interface{ Write(w io.Writer) error }

func printReport(cmd *cobra.Command, r report, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), r)
	}
	return r.Write(cmd.OutOrStdout())
}

// progress prints to standard error what is being done.
func progress(cmd *cobra.Command) func(string) {
	start := time.Now()
	return func(s string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%5.0fs  %s\n", time.Since(start).Seconds(), s)
	}
}

func quietLog(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("this needs root: it makes network namespaces (try: sudo %s)", os.Args[0])
	}
	return nil
}

func newBenchDataplaneCommand() *cobra.Command {
	var o bench.DataplaneOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "dataplane",
		Short: "Plain routing, kernel VXLAN and tabi, interleaved; and each program's cost by table size",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if o.Rounds < 1 {
				return fmt.Errorf("bench: --rounds %d: want at least 1", o.Rounds)
			}
			o.Progress, o.Log = progress(cmd), quietLog(cmd)
			r, err := bench.RunDataplane(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printReport(cmd, r, asJSON)
		},
	}
	c.Flags().IntVar(&o.Rounds, "rounds", 5, "interleaved rounds")
	c.Flags().DurationVar(&o.Each, "each", 1500*time.Millisecond, "time of one measurement")
	c.Flags().IntSliceVar(&o.Sizes, "mappings", []int{10, 10_000, 1_000_000}, "table sizes for the programs' own cost")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newBenchPushCommand() *cobra.Command {
	var o bench.PushOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "push",
		Short: "Map-Register sent to D-ETR's kernel updated, single moves into a large table; load time and memory",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if o.Mappings < o.Moves || o.Moves < 1 || o.Mappings > 1<<20 {
				return fmt.Errorf("bench: want 1 <= --moves <= --mappings <= %d", 1<<20)
			}
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			o.Progress, o.Log = progress(cmd), quietLog(cmd)
			r, err := bench.RunPush(cmd.Context(), o)
			if err != nil {
				return err
			}
			return printReport(cmd, r, asJSON)
		},
	}
	c.Flags().IntVar(&o.Mappings, "mappings", 100_000, "mappings in the table")
	c.Flags().IntVar(&o.Moves, "moves", 500, "single moves")
	c.Flags().DurationVar(&o.Every, "every", 20*time.Millisecond, "between two moves")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
