package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
)

// The commands of migrations that were begun.

func newMigrationCommand() *cobra.Command {
	var api controllerClient
	c := &cobra.Command{
		Use: "migration", Aliases: []string{"migrations"}, Short: "Look at migrations, watch, cancel and switch them",
		Long: `Look at migrations, watch, cancel and switch them. "tabi migrate" begins one; that of a hypervisor that is drained
are among them. "tabi move" shows what became of their packets.`,
		Example: "  tabi migration list\n  tabi migration watch web-20260301T100000-1\n  tabi migration cancel web-20260301T100000-1",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	api.flags(c)
	c.AddCommand(newMigrationListCommand(&api), newMigrationShowCommand(&api), newMigrationWatchCommand(&api),
		newMigrationSteerCommand(&api, "cancel", "Cancel a migration: the VM goes on where it was"),
		newMigrationSteerCommand(&api, "postcopy", "Switch a migration over at once: the VM runs at its target, its memory follows"))
	return c
}

// completeMigrations completes ids of migrations, of all or of those that have not ended.
func completeMigrations(api *controllerClient, open bool) cobra.CompletionFunc {
	path := "/v1/migrations?limit=100"
	if open {
		path += "&phase=open"
	}
	return completeFrom(api, path, func(m controller.MigrationStatus) string {
		return m.ID + "\t" + m.VM + " " + m.From + " -> " + m.To + ", " + string(m.Phase)
	}, false)
}

func newMigrationListCommand(api *controllerClient) *cobra.Command {
	var vm, phase, drain string
	var limit int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List migrations, newest first", Args: cobra.NoArgs,
		Example: "  tabi migration list\n  tabi migration list --vm web --phase failed --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {fmt.Sprint(limit)}}
			for k, v := range map[string]string{"vm": vm, "phase": phase, "drain": drain} {
				if v != "" {
					q.Set(k, v)
				}
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", "/v1/migrations?"+q.Encode(), nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			return listed("ID VM FROM TO PHASE PROGRESS STARTED TOOK DOWNTIME WHY", migrationRow)(cmd.OutOrStdout(), raw)
		},
	}
	c.Flags().StringVar(&vm, "vm", "", "only those of this VM")
	c.Flags().StringVar(&phase, "phase", "", "only those in this phase; \"open\" = that have not ended")
	c.Flags().StringVar(&drain, "drain", "", "only those that drain this hypervisor")
	c.Flags().IntVar(&limit, "limit", 100, "at most so many, 0 = all")
	return c
}

func migrationRow(m controller.MigrationStatus) []string {
	progress, started, took, downtime := "", "", "", ""
	if p := percent(m.Progress); p >= 0 && !m.Phase.Ended() {
		progress = fmt.Sprintf("%d%%", p)
	}
	if t := m.Times.Started; !t.IsZero() {
		started = t.UTC().Format("2006-01-02T15:04:05Z")
		if !m.Times.Ended.IsZero() {
			took = strings.ReplaceAll(spanText(m.Times.Ended.Sub(t)), " ", "")
		}
	}
	if m.Phase == controller.MigrationDone && m.Progress.Downtime > 0 {
		downtime = strings.ReplaceAll(spanText(m.Progress.Downtime), " ", "")
	}
	return []string{m.ID, m.VM, m.From, m.To, string(m.Phase), progress, started, took, downtime, firstOf(m.Error, m.Cancel)}
}

func newMigrationShowCommand(api *controllerClient) *cobra.Command {
	var verbose bool
	c := &cobra.Command{
		Use: "show ID", Short: "Show one migration: how far it is, and how it came to that", Args: cobra.ExactArgs(1),
		Example:           "  tabi migration show m1\n  tabi migration show m1 -v\n  tabi migration show m1 --json",
		ValidArgsFunction: completeMigrations(api, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", migrationPath(args[0], ""), nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			var m controller.MigrationStatus
			if err := json.Unmarshal(raw, &m); err != nil {
				return err
			}
			return showMigration(cmd.OutOrStdout(), m, verbose)
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "with its preflight, its options, and in full why it failed")
	return c
}

func showMigration(w io.Writer, m controller.MigrationStatus, verbose bool) error {
	at := func(hv, site string) string {
		if site == "" {
			return firstOf(hv, "?")
		}
		return firstOf(hv, "?") + " (" + site + ")"
	}
	figures := facts(m.Progress)
	if len(figures) > 0 {
		figures[0] = strings.TrimSpace(figures[0])
	}
	state := string(m.Phase)
	if text := phaseText(m); text != state {
		state += ": " + text
	}
	if err := fields(w, "migration", m.ID, "vm", m.VM, "way", at(m.From, m.FromSite)+" -> "+at(m.To, m.ToSite), "why there", m.Why, "phase", state,
		"progress", strings.Join(append(figures, marks(m.Progress)...), ", "), "move", m.Move, "drains", m.Drain, "cancelled", m.Cancel, "error", m.Error); err != nil {
		return err
	}
	for _, n := range m.Notes {
		fmt.Fprintf(w, "%s  %s\n", n.At.UTC().Format("15:04:05.000"), n.Text)
	}
	if !verbose {
		return nil
	}
	if m.Detail != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(m.Detail))
	}
	if len(m.Checks) > 0 {
		fmt.Fprintln(w)
		if err := columns(w, "CHECK RESULT WHAT", checkRows(m.Checks)); err != nil {
			return err
		}
	}
	if e := m.Estimate; e != nil && !slices.ContainsFunc(m.Checks, func(c controller.Check) bool { return c.Text == e.Text }) {
		fmt.Fprintf(w, "\nestimate: %s\n", firstOf(e.Text, estimateText(*e)))
	}
	fmt.Fprintln(w)
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05.000Z")
	}
	r := m.Request
	bandwidth := ""
	if r.Bandwidth > 0 {
		bandwidth = bytesText(r.Bandwidth) + "/s"
	}
	return fields(w, "asked", stamp(m.Times.Asked), "started", stamp(m.Times.Started), "migrating", stamp(m.Times.Migrating), "ended", stamp(m.Times.Ended),
		"mode", string(r.Mode), "copy-storage", string(r.CopyStorage), "bandwidth", bandwidth, "on-slow", string(r.OnSlow), "timeout", durationText(r.Timeout),
		"max-downtime", durationText(r.MaxDowntime))
}

func durationText(d controller.Duration) string {
	if d == 0 {
		return ""
	}
	return spanText(time.Duration(d))
}

func newMigrationWatchCommand(api *controllerClient) *cobra.Command {
	var verbose bool
	c := &cobra.Command{
		Use: "watch ID", Aliases: []string{"attach"}, Short: "Look on until a migration has ended; Ctrl-C cancels it", Args: cobra.ExactArgs(1),
		Long:              "Look on until a migration has ended, as \"tabi migrate\" does. Ctrl-C cancels it; twice stops looking on.\n\n" + exitHelp,
		Example:           "  tabi migration watch m1",
		ValidArgsFunction: completeMigrations(api, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, done := newFollower(cmd, api, verbose)
			defer done()
			return f.begin(cmd.Context(), "GET", migrationPath(args[0], ""), nil)
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "say in full why it failed")
	return c
}

func newMigrationSteerCommand(api *controllerClient, verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID...", Short: short, Args: cobra.MinimumNArgs(1), Example: "  tabi migration " + verb + " m1",
		ValidArgsFunction: completeMigrations(api, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				var raw json.RawMessage
				if _, err := api.do(cmd.Context(), "POST", migrationPath(id, "/"+verb), nil, &raw); err != nil {
					return err
				}
				if api.json {
					if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
						return err
					}
					continue
				}
				var m controller.MigrationStatus
				if err := json.Unmarshal(raw, &m); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "migration %s of %s: %s\n", m.ID, m.VM, phaseText(m))
			}
			return nil
		},
	}
}
