package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
)

// migrateOptions are the options of a migration, on the command line.
type migrateOptions struct {
	live, offline, postcopy bool
	copyStorage             string
	disks                   []string
	bandwidth               string
	maxDowntime             time.Duration
	autoConverge, compress  bool
	parallel                int
	timeout                 time.Duration
	onSlow                  string
	unsafe                  bool
}

func (o *migrateOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.live, "live", false, "the VM runs on while its memory is copied (the default)")
	f.BoolVar(&o.offline, "offline", false, "the VM stands still while its memory is copied; one that does not run is moved too")
	f.BoolVar(&o.postcopy, "postcopy", false, "the VM runs at its target at once, and its memory follows")
	f.StringVar(&o.copyStorage, "copy-storage", "none", "disks that the target does not share: none, all, or inc (the difference to a base image that it has)")
	f.StringSliceVar(&o.disks, "disk", nil, "copy these disks only (vda, ...; default: all that are neither shared nor read-only)")
	f.StringVar(&o.bandwidth, "bandwidth", "0", "at most so much: 100M or 100Mbit/s (bits a second), 12MB/s or 12MiB/s (bytes); 0 = as much as there is")
	f.DurationVar(&o.maxDowntime, "max-downtime", 0, "how long the VM may stand still at the switch (default: the hypervisor's, for QEMU 300ms)")
	f.BoolVar(&o.autoConverge, "auto-converge", false, "slow the VM down if it changes memory faster than it can be sent")
	f.BoolVar(&o.compress, "compress", false, "compress memory on its way")
	f.IntVar(&o.parallel, "parallel", 0, "send memory over so many connections")
	f.DurationVar(&o.timeout, "timeout", 0, "give up after this time, from the first byte on (default: never)")
	f.StringVar(&o.onSlow, "on-slow", "abort", "when it does not converge: abort, postcopy, converge (admit more and more downtime), or wait")
	f.BoolVar(&o.unsafe, "unsafe", false, "do not mind the hypervisor's doubts about caches and shared storage")
	c.MarkFlagsMutuallyExclusive("live", "offline", "postcopy")
	for flag, values := range map[string][]string{"copy-storage": {"none", "all", "inc"}, "on-slow": {"abort", "postcopy", "converge", "wait"}} {
		must(c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
}

// must is for what cannot fail in a program that is right.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// request is what the options ask for. What is wrong with them the controller says, bandwidth aside.
func (o *migrateOptions) request() (controller.MigrationRequest, error) {
	r := controller.MigrationRequest{
		Mode: controller.ModeLive, CopyStorage: controller.CopyStorage(o.copyStorage), Disks: o.disks, MaxDowntime: controller.Duration(o.maxDowntime),
		AutoConverge: o.autoConverge, Compress: o.compress, Parallel: o.parallel, Timeout: controller.Duration(o.timeout),
		OnSlow: controller.OnSlow(o.onSlow), Unsafe: o.unsafe,
	}
	switch {
	case o.offline:
		r.Mode = controller.ModeOffline
	case o.postcopy:
		r.Mode = controller.ModePostCopy
	}
	var err error
	if r.Bandwidth, err = parseBandwidth(o.bandwidth); err != nil {
		return r, fmt.Errorf("--bandwidth: %w", err)
	}
	return r, nil
}

func newMigrateCommand() *cobra.Command {
	var api controllerClient
	var o migrateOptions
	var to, site, id string
	var dryRun, detach, verbose bool
	c := &cobra.Command{
		Use: "migrate VM [--to HYPERVISOR | --site SITE]", Short: "Live-migrate a VM, and show how it gets on", Args: cobra.ExactArgs(1),
		Long: `Live-migrate a VM, and show how it gets on. The controller drives it, through libvirt on the source (peer to peer);
this command looks on. Without --to a hypervisor is chosen by the sites' policies and free capacity: at --site, if that is
given, else anywhere.

It is looked first whether it can go well: capacity, policy, CPU and machine type, storage, interface and prefix at the
target, MTU, and the time that it will take; --dry-run prints that and does nothing. Several migrations over one link
wait for each other.

Ctrl-C cancels: the VM goes on where it was, and no packet is lost. Ctrl-C again stops looking on only. What was begun
goes on without this command, and without the controller: "tabi migration watch ID" looks on again.

With --json each line is the migration as GET /v1/migrations/ID has it (durations in nanoseconds, sizes in bytes, rates in
bytes a second); the last line has the phase "done", "failed" or "cancelled".

` + exitHelp,
		Example: `  tabi migrate web --site hokuriku
  tabi migrate web --to hokuriku-hv1 --dry-run
  tabi migrate web --to hokuriku-hv1 --bandwidth 200M --max-downtime 50ms --on-slow postcopy
  tabi migrate db --site nara --copy-storage inc --compress --timeout 30m --on-slow wait`,
		ValidArgsFunction: completeNames(&api, "/v1/vms", true),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request()
			if err != nil {
				return err
			}
			req.VM, req.To, req.Site, req.ID = args[0], to, site, id
			if dryRun {
				return dryRunMigration(cmd, &api, req)
			}
			if !detach {
				f, done := newFollower(cmd, &api, verbose)
				defer done()
				return f.begin(cmd.Context(), "POST", "/v1/migrations", req)
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "POST", "/v1/migrations", req, &raw); err != nil {
				return refusedError(err)
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			var m controller.MigrationStatus
			if err := json.Unmarshal(raw, &m); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "migration %s of %s from %s to %s. To look on: tabi migration watch %s\n", m.ID, m.VM, m.From, firstOf(m.To, "where there is room"), m.ID)
			return err
		},
	}
	api.flags(c)
	o.flags(c)
	f := c.Flags()
	f.StringVar(&to, "to", "", "hypervisor that it moves to")
	f.StringVar(&site, "site", "", "site that it moves to; the hypervisor is chosen")
	f.StringVar(&id, "id", "", "name of the migration, so that asking twice is asking once (default: made up)")
	f.BoolVarP(&dryRun, "dry-run", "n", false, "print what would be checked and how long it would take, and do nothing")
	f.BoolVar(&detach, "detach", false, "do not look on")
	f.BoolVarP(&verbose, "verbose", "v", false, "say in full why it failed")
	c.MarkFlagsMutuallyExclusive("to", "site")
	c.MarkFlagsMutuallyExclusive("dry-run", "detach")
	must(c.RegisterFlagCompletionFunc("to", completeNames(&api, "/v1/hypervisors", false)))
	must(c.RegisterFlagCompletionFunc("site", completeNames(&api, "/v1/sites", false)))
	return c
}

// refusedError gives a controller's refusal its exit status: what is not there, or not allowed, was not begun.
func refusedError(err error) error {
	var e *apiError
	if errors.As(err, &e) && (e.status == http.StatusForbidden || e.status == http.StatusConflict) {
		return &exitError{exitRefused, err}
	}
	return err
}

func dryRunMigration(cmd *cobra.Command, api *controllerClient, req controller.MigrationRequest) error {
	req.ID = ""
	var raw json.RawMessage
	if _, err := api.do(cmd.Context(), "POST", "/v1/preflight", req, &raw); err != nil {
		return refusedError(err)
	}
	var p controller.Preflight
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	if api.json {
		if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
			return err
		}
	} else if err := showPreflight(cmd.OutOrStdout(), p); err != nil {
		return err
	}
	if !p.OK {
		return &exitError{code: exitRefused}
	}
	return nil
}

// showPreflight prints what was checked; a check that fails stands out.
func showPreflight(w io.Writer, p controller.Preflight) error {
	to := firstOf(p.To, "nowhere")
	if p.ToSite != "" {
		to += " (" + p.ToSite + ")"
	}
	if err := fields(w, "vm", p.VM, "way", firstOf(p.From, "?")+" -> "+to, "why there", p.Why); err != nil {
		return err
	}
	if len(p.Checks) > 0 {
		fmt.Fprintln(w)
		if err := columns(w, "CHECK RESULT WHAT", checkRows(p.Checks)); err != nil {
			return err
		}
	}
	if e := p.Estimate; e != nil && !slices.ContainsFunc(p.Checks, func(c controller.Check) bool { return c.Text == e.Text }) {
		fmt.Fprintf(w, "\nestimate: %s\n", firstOf(e.Text, estimateText(*e)))
	}
	if len(p.Refused) > 0 {
		fmt.Fprintln(w)
		rows := make([][]string, len(p.Refused))
		for i, r := range p.Refused {
			rows[i] = []string{r.Hypervisor, r.Site, r.Why}
		}
		if err := columns(w, "NOT-TO SITE WHY", rows); err != nil {
			return err
		}
	}
	if p.OK {
		return nil
	}
	_, err := fmt.Fprintln(w, "\nit would be refused")
	return err
}

func checkRows(checks []controller.Check) [][]string {
	rows := make([][]string, len(checks))
	for i, c := range checks {
		status := string(c.Status)
		if c.Status == controller.CheckFail {
			status = "FAIL"
		}
		rows[i] = []string{c.Name, status, c.Text}
	}
	return rows
}

func estimateText(e controller.Estimate) string {
	s := bytesText(e.Bytes)
	if e.Bandwidth > 0 {
		s += " at " + bytesText(e.Bandwidth) + "/s"
		if e.From != "" {
			s += " (" + e.From + ")"
		}
	}
	if e.DirtyRate > 0 {
		s += ", dirty " + bytesText(e.DirtyRate) + "/s"
	}
	switch {
	case e.Endless:
		s += ": it would not converge"
	case e.Time > 0:
		s += ": " + spanText(time.Duration(e.Time))
	}
	return s
}
