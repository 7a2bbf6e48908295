package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

// exitUnconfirmed is the exit status when the controller has done what was asked, and Map-Servers have not confirmed it.
const exitUnconfirmed = 3

func newServiceCommand() *cobra.Command {
	var api controllerClient
	c := &cobra.Command{
		Use: "service", Aliases: []string{"services"}, Short: "Service addresses: addresses that clients use, translated to VMs",
		Long: `Service addresses: IPv4 or IPv6 addresses that clients use, and that the D-ETRs translate to a VM's IPv6 EID. A service
address follows its VM: nothing is to be done when the VM moves, or on any node when a service address is added.

A VM's EID has one IPv4 and one IPv6 service address at most. The D-ETRs must serve the address ("services" in detr.yaml),
and the Map-Servers must have a site that covers it, with the controller's key.`,
		Example: `  tabi service add 198.51.100.10 web
  tabi service list
  tabi service move 198.51.100.10 web2
  tabi service del 198.51.100.10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	api.flags(c)
	c.AddCommand(newServiceAddCommand(&api), newServiceDelCommand(&api), newServiceListCommand(&api), newServiceShowCommand(&api), newServiceMoveCommand(&api))
	return c
}

func servicePath(p netip.Prefix) string {
	return "/v1/services/" + url.PathEscape(controller.ServicePath(p))
}

// waitFlag is how long a command waits for the Map-Servers.
type waitFlag struct{ d time.Duration }

func (w *waitFlag) add(c *cobra.Command) {
	c.Flags().DurationVar(&w.d, "wait", 5*time.Second, "how long to wait until every Map-Server has confirmed, 0 = not at all")
}

const waitHelp = `

The command waits until every Map-Server has confirmed. If not all have when --wait is over, it says which; the controller
goes on until they have. The exit status is 3 if none has, or if --wait was given and not all have.`

// check is the error for a service whose Map-Servers have not all confirmed, if that is one: none has, or all were asked for.
func (w *waitFlag) check(cmd *cobra.Command, done, of int, what string) error {
	asked := cmd.Flags().Changed("wait")
	if w.d == 0 || of == 0 || done == of || done > 0 && !asked {
		return nil
	}
	return &exitError{exitUnconfirmed, fmt.Errorf("%s: %d of %d Map-Servers have confirmed it in %s; the controller goes on until all have", what, done, of, w.d)}
}

// eidText is a service's EID, and whose it is.
func eidText(s controller.ServiceStatus) string {
	text := controller.ServiceName(s.Inside)
	if s.VM != "" {
		text += " (vm " + s.VM + ")"
	}
	return text
}

// confirmedText says which Map-Servers have confirmed.
func confirmedText(s controller.ServiceStatus) string {
	var b strings.Builder
	switch n := s.Confirmed(); {
	case len(s.MapServers) == 0:
		return "the controller has no Map-Servers: no D-ETR hears of it\n"
	case n == len(s.MapServers):
		return fmt.Sprintf("confirmed by %s\n", allOf(n))
	default:
		fmt.Fprintf(&b, "confirmed by %d of %d Map-Servers\n", n, len(s.MapServers))
	}
	for _, m := range s.MapServers {
		if !m.Confirmed {
			fmt.Fprintf(&b, "Map-Server %s %s\n", m.Server, firstOf(m.Error, "has not confirmed it yet"))
		}
	}
	return b.String()
}

func allOf(n int) string {
	if n == 1 {
		return "the only Map-Server"
	}
	return fmt.Sprintf("all %d Map-Servers", n)
}

// serviceDone prints what became of a service.
func serviceDone(cmd *cobra.Command, api *controllerClient, raw json.RawMessage, what string, w *waitFlag) error {
	var s controller.ServiceStatus
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	name := "service address " + controller.ServiceName(s.Outside)
	if api.json {
		if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n%s", name, what, eidText(s), confirmedText(s))
	}
	return w.check(cmd, s.Confirmed(), len(s.MapServers), name)
}

// serviceTarget is what a service address is given to: a VM, an EID, or both; and how long that is waited for.
type serviceTarget struct {
	eid  string
	wait waitFlag
}

func (t *serviceTarget) flags(c *cobra.Command, api *controllerClient) {
	c.Flags().StringVar(&t.eid, "eid", "", "the EID that it is translated to (default: the VM's IPv6 EID, if it has one only)")
	t.wait.add(c)
	must(c.RegisterFlagCompletionFunc("eid", completeServiceEID(api)))
}

// of is the service address and the request of ADDRESS [VM].
func (t *serviceTarget) of(args []string) (netip.Prefix, controller.ServiceRequest, error) {
	req := controller.ServiceRequest{Inside: t.eid}
	p, err := serviceAddress(args[0])
	if err != nil {
		return p, req, err
	}
	if len(args) > 1 {
		req.VM = args[1]
	}
	if req.VM == "" && t.eid == "" {
		return p, req, fmt.Errorf("service address %s: for which VM, or --eid?", args[0])
	}
	if t.eid != "" {
		if _, err := controller.ParseServiceAddress(t.eid); err != nil {
			return p, req, fmt.Errorf("--eid: %w", err)
		}
	}
	return p, req, nil
}

func serviceAddress(s string) (netip.Prefix, error) {
	p, err := controller.ParseServiceAddress(s)
	if err != nil {
		return p, fmt.Errorf("service address: %w", err)
	}
	return p, nil
}

func newServiceAddCommand(api *controllerClient) *cobra.Command {
	var to serviceTarget
	c := &cobra.Command{
		Use: "add ADDRESS VM", Short: "Give a VM a service address", Args: cobra.RangeArgs(1, 2),
		Long: `Give a VM a service address, or a prefix of them. If the VM has several IPv6 EIDs, --eid says which is meant; --eid alone
will do, too. A prefix needs an EID prefix with as many host bits: it may be part of a VM's, or have several VMs' EIDs in it.` + waitHelp,
		Example: `  tabi service add 198.51.100.10 web
  tabi service add 2001:db8:5::10 web --eid 2001:db8:e1d:1::10
  tabi service add 203.0.113.0/28 --eid 2001:db8:e1d:1::40/124`,
		ValidArgsFunction: completeServiceArgs(api, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, req, err := to.of(args)
			if err != nil {
				return err
			}
			var raw json.RawMessage
			created, err := api.do(cmd.Context(), "PUT", servicePath(p)+"?wait="+to.wait.d.String(), req, &raw)
			if err != nil {
				return err
			}
			what := "was there already"
			if created {
				what = "added"
			}
			return serviceDone(cmd, api, raw, what, &to.wait)
		},
	}
	to.flags(c, api)
	return c
}

func newServiceMoveCommand(api *controllerClient) *cobra.Command {
	var to serviceTarget
	c := &cobra.Command{
		Use: "move ADDRESS VM", Short: "Give a service address to another VM", Args: cobra.RangeArgs(1, 2),
		Long: `Give a service address to another VM, or with --eid to another EID. Connections that clients have with the old VM end:
it is not moved along. (A VM that is migrated keeps its service addresses; there is nothing to do.)` + waitHelp,
		Example: `  tabi service move 198.51.100.10 web2
  tabi service move 198.51.100.10 web --eid 2001:db8:e1d:1::11`,
		ValidArgsFunction: completeServiceArgs(api, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, req, err := to.of(args)
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "POST", servicePath(p)+"/move?wait="+to.wait.d.String(), req, &raw); err != nil {
				return err
			}
			return serviceDone(cmd, api, raw, "moved", &to.wait)
		},
	}
	to.flags(c, api)
	return c
}

func newServiceDelCommand(api *controllerClient) *cobra.Command {
	var wait waitFlag
	var force bool
	c := &cobra.Command{
		Use: "del ADDRESS...", Aliases: []string{"delete", "rm"}, Short: "Take service addresses away", Args: cobra.MinimumNArgs(1),
		Long: `Take service addresses away. The controller goes on until every Map-Server has confirmed that it has forgotten them;
"tabi service list" shows those that are "deleting". With --force an address is taken away, too, that only a Map-Server
knows: after the controller's store was lost.` + waitHelp,
		Example:           "  tabi service del 198.51.100.10",
		ValidArgsFunction: completeServices(api, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []netip.Prefix
			for _, a := range args {
				p, err := serviceAddress(a)
				if err != nil {
					return err
				}
				list = append(list, p)
			}
			query := url.Values{"wait": {wait.d.String()}}
			if force {
				query.Set("force", "true")
			}
			var last error
			for _, p := range list {
				name := "service address " + controller.ServiceName(p)
				var raw json.RawMessage
				if _, err := api.do(cmd.Context(), "DELETE", servicePath(p)+"?"+query.Encode(), nil, &raw); err != nil {
					return err
				}
				if len(raw) == 0 {
					if !api.json {
						fmt.Fprintln(cmd.OutOrStdout(), name, "deleted")
					}
					continue
				}
				var s controller.ServiceStatus
				if err := json.Unmarshal(raw, &s); err != nil {
					return err
				}
				if api.json {
					if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
						return err
					}
				} else {
					fmt.Fprintf(cmd.OutOrStdout(), "%s is being deleted: %s", name, confirmedText(s))
				}
				if err := wait.check(cmd, s.Confirmed(), len(s.MapServers), name); err != nil {
					last = err
				}
			}
			return last
		},
	}
	wait.add(c)
	c.Flags().BoolVar(&force, "force", false, "also one that the controller does not know")
	return c
}

func newServiceListCommand(api *controllerClient) *cobra.Command {
	var vm string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List every service address", Args: cobra.NoArgs,
		Example: "  tabi service list\n  tabi service list --vm web --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/v1/services"
			if vm != "" {
				path += "?vm=" + url.QueryEscape(vm)
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", path, nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			return listed("SERVICE-ADDRESS EID VM KIND STATE MAP-SERVERS PROBLEM", serviceRow)(cmd.OutOrStdout(), raw)
		},
	}
	c.Flags().StringVar(&vm, "vm", "", "only those of this VM")
	must(c.RegisterFlagCompletionFunc("vm", completeNames(api, "/v1/vms", false)))
	return c
}

func serviceRow(s controller.ServiceStatus) []string {
	return []string{controller.ServiceName(s.Outside), controller.ServiceName(s.Inside), s.VM, s.Kind, string(s.State),
		fmt.Sprintf("%d/%d", s.Confirmed(), len(s.MapServers)), s.Trouble()}
}

func newServiceShowCommand(api *controllerClient) *cobra.Command {
	return &cobra.Command{
		Use: "show ADDRESS", Short: "Show a service address, and what each Map-Server has said of it", Args: cobra.ExactArgs(1),
		Example:           "  tabi service show 198.51.100.10\n  tabi service show 198.51.100.10 --json",
		ValidArgsFunction: completeServices(api, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := serviceAddress(args[0])
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", servicePath(p), nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			return showService(cmd.OutOrStdout(), raw)
		},
	}
}

// kinds say how a service is translated.
var kinds = map[string]string{
	"ipv4": "IPv4 (RFC 7757)", "one-to-one": "IPv6, one to one", "nptv6": "IPv6, checksum-neutral (NPTv6, RFC 6296)",
}

func showService(w io.Writer, raw json.RawMessage) error {
	var s controller.ServiceStatus
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	if err := fields(w, "service address", controller.ServiceName(s.Outside), "eid", controller.ServiceName(s.Inside), "vm", s.VM,
		"kind", firstOf(kinds[s.Kind], s.Kind), "state", string(s.State), "problem", s.Problem, "version", versionText(s.Version),
		"created", stamp(s.Created), "changed", stamp(s.Changed)); err != nil {
		return err
	}
	for _, m := range s.MapServers {
		says := firstOf(m.Error, "has not confirmed it yet")
		if m.Confirmed {
			says = fmt.Sprintf("confirmed version %d at %s", m.Version, stamp(m.At))
		}
		if _, err := fmt.Fprintf(w, "Map-Server %s %s\n", m.Server, says); err != nil {
			return err
		}
	}
	return nil
}

// completeServices completes service addresses.
func completeServices(api *controllerClient, many bool) cobra.CompletionFunc {
	return completeFrom(api, "/v1/services", func(s struct {
		Outside netip.Prefix `json:"outside"`
		VM      string       `json:"vm"`
	}) string {
		return strings.TrimSuffix(controller.ServiceName(s.Outside)+"\t"+s.VM, "\t")
	}, many)
}

// completeServiceArgs completes a service address, if they are there already, and a VM.
func completeServiceArgs(api *controllerClient, there bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0 && there:
			return completeServices(api, false)(cmd, args, prefix)
		case len(args) == 1:
			return completeNames(api, "/v1/vms", false)(cmd, nil, prefix)
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeServiceEID completes the IPv6 EIDs of the VM that is named, or of all.
func completeServiceEID(api *controllerClient) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		var vms []struct {
			Name string     `json:"name"`
			EIDs []lisp.EID `json:"eids"`
		}
		out := []cobra.Completion{}
		if _, err := api.do(ctx, "GET", "/v1/vms", nil, &vms); err != nil {
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		for _, v := range vms {
			for _, e := range v.EIDs {
				if name := controller.ServiceName(e.Prefix); e.IID == 0 && e.Prefix.Addr().Is6() && strings.HasPrefix(name, prefix) && (len(args) < 2 || args[1] == v.Name) {
					out = append(out, name+"\t"+v.Name)
				}
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
