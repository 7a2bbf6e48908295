package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/testnet"
)

func newDemoSetupCommand() *cobra.Command {
	var vm string
	var check, asJSON bool
	c := &cobra.Command{
		Use:   "setup",
		Short: "Install what demos with real guests need on this machine",
		Long: `Install what tabi demo --vm qemu and --vm libvirt need and this machine lacks: Debian packages, each with its
reason, and the image that guests boot. The guest's kernel is Debian's own, fetched by apt and unpacked into
/var/cache/tabi, not installed; the program inside the guest is built by Go, from source that tabi carries.

The demo with namespace VMs needs none of this. Status 1 if something is missing afterwards.`,
		Example: `  sudo tabi demo setup
  tabi demo setup --check
  sudo tabi demo setup --vm qemu --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demoSetup(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), vm, check, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&vm, "vm", "", `only what VMs of this kind need: "qemu" or "libvirt"; empty: both`)
	f.BoolVar(&check, "check", false, "only tell what is there and what is missing")
	f.BoolVar(&asJSON, "json", false, "print what is there and what is missing as JSON")
	return c
}

func demoSetup(ctx context.Context, out, progress io.Writer, vm string, check, asJSON bool) error {
	var s testnet.Setup
	var err error
	if check {
		s, err = testnet.CheckSetup(vm)
	} else {
		s, err = testnet.InstallSetup(ctx, vm, func(text string) { fmt.Fprintln(progress, text) })
	}
	if err == nil || len(s.Packages) > 0 {
		if e := printSetup(out, s, asJSON); e != nil {
			return fmt.Errorf("demo setup: %w", e)
		}
	}
	if err != nil {
		return fmt.Errorf("demo setup: %w", err)
	}
	if !s.Ready() {
		return errSilent
	}
	return nil
}

func printSetup(out io.Writer, s testnet.Setup, asJSON bool) error {
	if asJSON {
		b, err := json.MarshalIndent(s, "", "  ")
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", b)
		}
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := func(there bool) string {
		if there {
			return "there"
		}
		return "missing"
	}
	for _, n := range s.Packages {
		fmt.Fprintf(t, "%s\t%s\t%s\n", state(n.Present), n.Package, n.Why)
	}
	row := func(name, what, where string) {
		if where != "" {
			what += ": " + where
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", state(where != ""), name, what)
	}
	row("kernel", "Debian's cloud kernel, which guests boot", s.Kernel)
	row("program", "ends flows inside guests", s.Program)
	if err := t.Flush(); err != nil {
		return err
	}
	if s.Ready() {
		_, err := fmt.Fprintln(out, "\nReady: sudo tabi demo --vm qemu")
		return err
	}
	fmt.Fprintln(out, "\nMissing; sudo tabi demo setup installs what it can:")
	for _, m := range s.Missing {
		fmt.Fprintf(out, "  %s\n", m)
	}
	return nil
}
