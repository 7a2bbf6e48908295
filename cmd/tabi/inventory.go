package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

// The commands of the cloud's inventory; they and those of moves are clients of the controller's API.

const defaultController = "http://127.0.0.1:4381"

// controllerClient is a client of the controller's API, and its flags.
type controllerClient struct {
	url   string
	token string
	json  bool
}

func (c *controllerClient) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.url, "controller", "", "URL of the controller's API (default $TABI_CONTROLLER, else "+defaultController+")")
	f.StringVar(&c.token, "token", "", "bearer token of the controller's API (default $TABI_TOKEN)")
	f.BoolVar(&c.json, "json", false, "print JSON")
}

// do makes one request. in and out may be nil. created reports a status of 201.
func (c *controllerClient) do(ctx context.Context, method, path string, in, out any) (created bool, err error) {
	base := firstOf(c.url, os.Getenv("TABI_CONTROLLER"), defaultController)
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return false, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base, "/")+path, body)
	if err != nil {
		return false, fmt.Errorf("controller %q: %w", base, err)
	}
	if token := firstOf(c.token, os.Getenv("TABI_TOKEN")); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, fmt.Errorf("no controller answers: %w (--controller URL or TABI_CONTROLLER says where it is)", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("controller %s: %w", base, err)
	}
	if resp.StatusCode >= 300 {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = "answers " + resp.Status + " to " + method + " " + path + "; is this a tabi controller?"
		}
		if resp.StatusCode == http.StatusUnauthorized {
			e.Error += " (--token or TABI_TOKEN)"
		}
		return false, &apiError{resp.StatusCode, fmt.Sprintf("controller %s: %s", base, e.Error)}
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			return false, fmt.Errorf("controller %s: answer to %s %s: %w", base, method, path, err)
		}
	}
	return resp.StatusCode == http.StatusCreated, nil
}

// apiError is an answer of the controller that is no success.
type apiError struct {
	status int
	text   string
}

func (e *apiError) Error() string { return e.text }

func firstOf(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// noun is what the commands of one kind of thing have in common.
type noun struct {
	name  string // "site"
	path  string // "/v1/sites"
	api   controllerClient
	table func(w io.Writer, list json.RawMessage) error
	show  func(w io.Writer, one json.RawMessage) error
}

func (n *noun) command(short, long string, aliases ...string) *cobra.Command {
	c := &cobra.Command{
		Use: n.name, Aliases: aliases, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	n.api.flags(c)
	c.AddCommand(n.listCommand(), n.showCommand(), n.deleteCommand())
	return c
}

func (n *noun) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List every " + n.name, Args: cobra.NoArgs,
		Example: "  tabi " + n.name + " list\n  tabi " + n.name + " list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list json.RawMessage
			if _, err := n.api.do(cmd.Context(), "GET", n.path, nil, &list); err != nil {
				return err
			}
			return n.print(cmd, list, n.table)
		},
	}
}

func (n *noun) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one " + n.name, Args: cobra.ExactArgs(1),
		Example: "  tabi " + n.name + " show NAME\n  tabi " + n.name + " show NAME --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var one json.RawMessage
			if _, err := n.api.do(cmd.Context(), "GET", n.one(args[0]), nil, &one); err != nil {
				return err
			}
			return n.print(cmd, one, n.show)
		},
	}
}

func (n *noun) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove a " + n.name + " from the inventory", Args: cobra.MinimumNArgs(1),
		Example: "  tabi " + n.name + " delete NAME",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := n.api.do(cmd.Context(), "DELETE", n.one(name), nil, nil); err != nil {
					return err
				}
				if !n.api.json {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s removed\n", n.name, name)
				}
			}
			return nil
		},
	}
}

func (n *noun) one(name string) string { return n.path + "/" + url.PathEscape(name) }

// print writes what the controller answered, as it came or for people.
func (n *noun) print(cmd *cobra.Command, v json.RawMessage, human func(io.Writer, json.RawMessage) error) error {
	if n.api.json {
		return printJSON(cmd.OutOrStdout(), v)
	}
	return human(cmd.OutOrStdout(), v)
}

// set puts one thing: as it is there, with what edit changes.
func (n *noun) set(cmd *cobra.Command, name string, v any, edit func() error) error {
	var status *apiError
	if _, err := n.api.do(cmd.Context(), "GET", n.one(name), nil, v); err != nil &&
		!(errors.As(err, &status) && status.status == http.StatusNotFound) {
		return err
	}
	if err := edit(); err != nil {
		return fmt.Errorf("%s set %s: %w", n.name, name, err)
	}
	var out json.RawMessage
	created, err := n.api.do(cmd.Context(), "PUT", n.one(name), v, &out)
	if err != nil {
		return err
	}
	if n.api.json {
		return printJSON(cmd.OutOrStdout(), out)
	}
	what := "set"
	if created {
		what = "added"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", n.name, name, what)
	return err
}

// columns prints rows of cells; empty cells become "-", no rows "(none)".
func columns(w io.Writer, head string, rows [][]string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "(none)")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = firstOf(r[i], "-")
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// fields prints one thing, a line a field; empty ones are left out.
func fields(w io.Writer, pairs ...string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", pairs[i], pairs[i+1])
		}
	}
	return tw.Flush()
}

// listed decodes a list and makes cells of it.
func listed[V any](head string, row func(V) []string) func(io.Writer, json.RawMessage) error {
	return func(w io.Writer, b json.RawMessage) error {
		var list []V
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		rows := make([][]string, len(list))
		for i, v := range list {
			rows[i] = row(v)
		}
		return columns(w, head, rows)
	}
}

// shown decodes one thing and prints its fields.
func shown[V any](pairs func(V) []string) func(io.Writer, json.RawMessage) error {
	return func(w io.Writer, b json.RawMessage) error {
		var v V
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		return fields(w, pairs(v)...)
	}
}

func newSiteCommand() *cobra.Command {
	n := &noun{
		name: "site", path: "/v1/sites",
		table: listed("NAME DESCRIPTION", func(s controller.Site) []string { return []string{s.Name, s.Description} }),
		show:  shown(func(s controller.Site) []string { return []string{"site", s.Name, "description", s.Description} }),
	}
	c := n.command("Sites of the cloud", "The sites of the cloud: places with hypervisors that share no L2 network.", "sites")
	var description string
	set := &cobra.Command{
		Use: "set NAME", Short: "Add a site, or change it", Args: cobra.ExactArgs(1),
		Example: `  tabi site set nezu --description "Nezu, Tokyo"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s := controller.Site{Name: args[0]}
			return n.set(cmd, args[0], &s, func() error {
				if cmd.Flags().Changed("description") {
					s.Description = description
				}
				return nil
			})
		},
	}
	set.Flags().StringVar(&description, "description", "", "a line for people")
	c.AddCommand(set)
	return c
}

func newHypervisorCommand() *cobra.Command {
	n := &noun{
		name: "hypervisor", path: "/v1/hypervisors",
		table: listed("NAME SITE RLOC VMS AGENT STATE", func(h controller.HypervisorStatus) []string {
			return []string{h.Name, h.Site, h.RLOC.String(), fmt.Sprint(len(h.VMs)), h.Agent, agentState(h)}
		}),
		show: shown(func(h controller.HypervisorStatus) []string {
			siteID := ""
			if h.SiteID != 0 {
				siteID = fmt.Sprint(h.SiteID)
			}
			return []string{"hypervisor", h.Name, "site", h.Site, "rloc", h.RLOC.String(), "xtr-id", h.XTRID.String(), "site-id", siteID,
				"agent", h.Agent, "state", agentState(h), "vms", strings.Join(h.VMs, " ")}
		}),
	}
	c := n.command("Hypervisors of the cloud", `The hypervisors of the cloud. Each runs an xTR ("tabi xtr"); the controller talks to its agent API.`, "hv", "hypervisors")
	var o struct {
		site, rloc, xtrID, agent, agentToken string
		siteID                               uint64
	}
	set := &cobra.Command{
		Use: "set NAME", Short: "Add a hypervisor, or change what is given", Args: cobra.ExactArgs(1),
		Example: `  tabi hv set nezu-hv1 --site nezu --rloc 192.0.2.1 --xtr-id 00000000000000000000000000000001 \
      --agent http://192.0.2.1:4380 --agent-token s3cret
  tabi hv set nezu-hv1 --agent http://192.0.2.99:4380`,
		RunE: func(cmd *cobra.Command, args []string) error {
			h := struct {
				controller.Hypervisor
				Token *string `json:"token,omitempty"`
			}{Hypervisor: controller.Hypervisor{Name: args[0]}}
			return n.set(cmd, args[0], &h, func() (err error) {
				f := cmd.Flags()
				if f.Changed("site") {
					h.Site = o.site
				}
				if f.Changed("rloc") {
					if h.RLOC, err = netip.ParseAddr(o.rloc); err != nil {
						return fmt.Errorf("--rloc %q is no address", o.rloc)
					}
				}
				if f.Changed("xtr-id") {
					if err := h.XTRID.UnmarshalText([]byte(o.xtrID)); err != nil {
						return fmt.Errorf("--xtr-id: %w", err)
					}
				}
				if f.Changed("site-id") {
					h.SiteID = lisp.SiteID(o.siteID)
				}
				if f.Changed("agent") {
					h.Agent = o.agent
				}
				if f.Changed("agent-token") {
					h.Token = &o.agentToken
				}
				return nil
			})
		},
	}
	f := set.Flags()
	f.StringVar(&o.site, "site", "", "its site")
	f.StringVar(&o.rloc, "rloc", "", "its RLOC")
	f.StringVar(&o.xtrID, "xtr-id", "", "xTR-ID of its xTR: 32 hexadecimal digits")
	f.Uint64Var(&o.siteID, "site-id", 0, "LISP Site-ID of its xTR")
	f.StringVar(&o.agent, "agent", "", "URL of its agent's API")
	f.StringVar(&o.agentToken, "agent-token", "", "bearer token of its agent's API")
	c.AddCommand(set)
	return c
}

// agentState says in a few words whether an agent answers and knows what it should.
func agentState(h controller.HypervisorStatus) string {
	switch {
	case h.AgentError != "":
		return h.AgentError
	case h.AgentSeen.IsZero():
		return "not seen yet"
	case h.VMsToTell > 0:
		return fmt.Sprintf("ok, %d VMs to tell", h.VMsToTell)
	}
	return "ok"
}

func newVMCommand() *cobra.Command {
	n := &noun{
		name: "vm", path: "/v1/vms",
		table: listed("NAME HYPERVISOR EIDS MACS VERSION", func(v controller.VM) []string {
			return []string{v.Name, v.Hypervisor, eidList(v.EIDs), strings.Join(v.MACs, ","), versionText(v.Version)}
		}),
		show: shown(func(v controller.VM) []string {
			placed := ""
			if !v.Placed.IsZero() {
				placed = v.Placed.UTC().Format(time.RFC3339)
			}
			return []string{"vm", v.Name, "hypervisor", v.Hypervisor, "since", placed, "eids", eidList(v.EIDs),
				"macs", strings.Join(v.MACs, ","), "interface", v.Interface, "version", versionText(v.Version)}
		}),
	}
	c := n.command("VMs of the cloud", "The VMs of the cloud: where they run, their MAC addresses and their EIDs.", "vms")
	var o struct {
		hypervisor, iface string
		macs, eids        []string
	}
	set := &cobra.Command{
		Use: "set NAME", Short: "Add a VM, or change what is given", Args: cobra.ExactArgs(1),
		Long: `Add a VM, or change what is given. This only says what is; to move a VM, use "tabi move".`,
		Example: `  tabi vm set web --hypervisor nezu-hv1 --mac 52:54:00:00:00:10 \
      --eid 198.51.100.10/32 --eid 2001:db8:e1d:1::10/128 --interface tap-web
  tabi vm set web --eid 198.51.100.10/32 --eid 198.51.100.11/32`,
		RunE: func(cmd *cobra.Command, args []string) error {
			v := controller.VM{Name: args[0], MACs: []string{}}
			return n.set(cmd, args[0], &v, func() error {
				f := cmd.Flags()
				if f.Changed("hypervisor") {
					v.Hypervisor = o.hypervisor
				}
				if f.Changed("interface") {
					v.Interface = o.iface
				}
				if f.Changed("mac") {
					v.MACs = o.macs
				}
				if f.Changed("eid") {
					v.EIDs = nil
					for _, s := range o.eids {
						e, err := lisp.ParseEID(s)
						if err != nil {
							return fmt.Errorf("--eid: %w", err)
						}
						v.EIDs = append(v.EIDs, e)
					}
				}
				return nil
			})
		},
	}
	f := set.Flags()
	f.StringVar(&o.hypervisor, "hypervisor", "", "where it runs")
	f.StringVar(&o.iface, "interface", "", "name of its interface, if it is the same on every hypervisor")
	f.StringSliceVar(&o.macs, "mac", nil, "its MAC addresses (replaces those that are there)")
	f.StringSliceVar(&o.eids, "eid", nil, "its EIDs (replaces those that are there)")
	c.AddCommand(set)
	return c
}

func eidList(eids []lisp.EID) string {
	out := make([]string, len(eids))
	for i, e := range eids {
		out[i] = e.String()
	}
	return strings.Join(out, ",")
}

func versionText(v lisp.Version) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprint(uint16(v))
}
