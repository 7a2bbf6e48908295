package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/table"
)

// tables are what `tabi show` can ask for; which daemon has which is the daemon's own matter.
var tables = map[string]string{
	"mappings":      "where EIDs live, as this daemon believes (Map-Server, D-ETR)",
	"map-cache":     "mappings that were asked for, and their lifetimes (xTR, D-ETR)",
	"local":         "EIDs whose VM runs here (xTR)",
	"registrations": "who registered what, and what was refused and why (Map-Server); what we registered (xTR, D-ETR)",
	"subscribers":   "who is told of changes (Map-Server)",
	"bgp":           "BGP sessions (Map-Server, D-ETR, router)",
	"moves":         "handovers, running and past (xTR, controller)",
	"migrations":    "live migrations that the controller drives, running and past (controller)",
	"links":         "what migrations have taught of the lines between sites (controller)",
	"counters":      "everything that is counted, drops by reason",
	"drops":         "packets that were dropped, by reason (D-ETR)",
	"sites":         "sites of the cloud (controller)",
	"hypervisors":   "hypervisors of the cloud (controller)",
	"vms":           "VMs of the cloud (controller)",
	"ports":         "VM interfaces (xTR)",
	"rlocs":         "RLOCs that are probed, and whether they answer (xTR)",
	"services":      "service addresses: the EIDs that they are translated to, and who knows of them (controller, Map-Server); what was translated (D-ETR)",
	"translations":  "what became of the packets that the kernel left to map646 in Go, and fragments that wait (D-ETR)",
	"guests":        "VMs as this host's hypervisor tells of them: state, interfaces, EIDs and who named those (xTR)",
}

type socketOptions struct {
	sockets []string
	json    bool
}

func (o *socketOptions) flags(c *cobra.Command) {
	c.Flags().StringSliceVarP(&o.sockets, "socket", "s", nil,
		"admin socket of a daemon, or a pattern of several (default: $TABI_SOCKET, else "+admin.DefaultSockets+")")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
}

func (o *socketOptions) clients() ([]*admin.Client, error) {
	patterns := o.sockets
	if len(patterns) == 0 {
		if env := os.Getenv("TABI_SOCKET"); env != "" {
			patterns = strings.Split(env, ",")
		}
	}
	paths, err := admin.Sockets(patterns)
	if err != nil {
		return nil, err
	}
	var out []*admin.Client
	for _, p := range paths {
		out = append(out, admin.Dial(p))
	}
	return out, nil
}

func newShowCommand() *cobra.Command {
	var o socketOptions
	var long strings.Builder
	long.WriteString("Print a table of a running daemon (of every daemon whose socket is found here).\n\nTables:\n")
	for _, t := range slices.Sorted(maps.Keys(tables)) {
		fmt.Fprintf(&long, "  %-14s %s\n", t, tables[t])
	}
	c := &cobra.Command{
		Use:       "show TABLE",
		Short:     "Print a table of a running daemon",
		Long:      long.String(),
		Example:   "  tabi show mappings\n  tabi show counters --socket /run/tabi/xtr.sock --json",
		Args:      cobra.ExactArgs(1),
		ValidArgs: slices.Sorted(maps.Keys(tables)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd.Context(), cmd.OutOrStdout(), &o, args[0])
		},
	}
	o.flags(c)
	return c
}

// show asks every daemon; those that do not have the table are passed over as long as one has it.
func show(ctx context.Context, w io.Writer, o *socketOptions, what string) error {
	if tables[what] == "" {
		return fmt.Errorf("show: no table %q; there are: %s", what, strings.Join(slices.Sorted(maps.Keys(tables)), ", "))
	}
	clients, err := o.clients()
	if err != nil {
		return fmt.Errorf("show: %w", err)
	}
	type answer struct {
		Name string          `json:"name"`
		Role string          `json:"role"`
		Rows json.RawMessage `json:"rows"`
	}
	var answers []answer
	var errs []error
	for _, c := range clients {
		rows, err := c.Show(ctx, what)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a, err := c.About(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		answers = append(answers, answer{a.Name, a.Role, rows})
	}
	if len(answers) == 0 {
		return fmt.Errorf("show %s: %w", what, errors.Join(errs...))
	}
	if o.json {
		if len(answers) == 1 {
			return printJSON(w, answers[0].Rows)
		}
		return printJSON(w, answers)
	}
	for i, a := range answers {
		if len(answers) > 1 {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s (%s)\n", a.Name, a.Role)
		}
		if err := table.Write(w, a.Rows); err != nil {
			return err
		}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err = out.WriteTo(w)
	return err
}
