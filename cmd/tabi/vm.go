package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/libvirt"
	"github.com/tabi-lisp/tabi/lisp"
)

func newVMCommand() *cobra.Command {
	n := &noun{
		name: "vm", path: "/v1/vms",
		table: listed("NAME STATE OWNER HYPERVISOR CPUS MEMORY STORAGE EIDS", vmRow),
		show:  shown(vmFields),
	}
	c := n.command("VMs of the cloud: list, define, start, stop, hibernate, resume them",
		`The VMs of the cloud: where they run, whose they are, their addresses; and to define, start, stop, hibernate and resume
them at hypervisors with a driver (libvirt). "tabi migrate" moves them.`, "vms")
	c.AddCommand(newVMSetCommand(n), newVMDefineCommand(n), newVMChownCommand(n), newVMAddressesCommand(n))
	for _, a := range []struct{ verb, short, long string }{
		{"start", "Start a VM, or go on with one that is hibernated", "Start a VM, or go on with one that is hibernated."},
		{"stop", "Ask a VM to shut down; with --force, switch it off", "Ask a VM to shut down, as its power button does; with --force, switch it off at once."},
		{"hibernate", "Write a VM's memory to disk, and stop it", "Write a VM's memory to disk, and stop it; \"start\" or \"resume\" goes on."},
		{"pause", "Let a VM stand still", "Let a VM stand still; its memory stays where it is. \"resume\" goes on."},
		{"resume", "Go on with a VM that is paused or hibernated", "Go on with a VM that is paused or hibernated."},
	} {
		c.AddCommand(newVMActionCommand(n, a.verb, a.short, a.long))
	}
	return c
}

// stateText is what a VM does; "" = nobody knows.
func stateText(v controller.VMStatus) string {
	s := string(v.State)
	if v.State == controller.GuestUnknown {
		s = ""
	}
	if v.Migration != "" || v.Move != "" {
		s = strings.TrimPrefix(s+",moving", ",")
	}
	return s
}

func vmRow(v controller.VMStatus) []string {
	cpus, memory := vmSize(v)
	return []string{v.Name, stateText(v), v.Owner, v.Hypervisor, cpus, strings.ReplaceAll(memory, " ", ""), v.Storage, eidList(v.EIDs)}
}

// vmSize is what a VM has, or was said to need.
func vmSize(v controller.VMStatus) (cpus, memory string) {
	n, m := v.CPUs, v.Memory
	if v.Guest != nil {
		n, m = v.Guest.VCPUs, v.Guest.Memory
	}
	if n > 0 {
		cpus = fmt.Sprint(n)
	}
	if m > 0 {
		memory = memoryText(m)
	}
	return cpus, memory
}

func vmFields(v controller.VMStatus) []string {
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	cpus, memory := vmSize(v)
	where := v.Hypervisor
	if v.Site != "" && where != "" {
		where += " (" + v.Site + ")"
	}
	out := []string{"vm", v.Name, "state", stateText(v), "problem", v.Problem, "owner", v.Owner, "hypervisor", where, "since", stamp(v.Placed),
		"eids", eidList(v.EIDs), "services", strings.Join(v.Services, ","), "macs", strings.Join(v.MACs, ","), "interface", v.Interface, "version", versionText(v.Version),
		"uuid", v.UUID, "cpus", cpus, "memory", memory, "storage", v.Storage}
	if g := v.Guest; g != nil {
		out = append(out, "machine", g.Machine)
		for _, d := range g.Disks {
			text := d.Source
			if d.Format != "" {
				text += " (" + d.Format + ")"
			}
			if d.Capacity > 0 {
				text += ", " + memoryText(d.Capacity)
			}
			if d.Backing != "" {
				text += ", the difference to " + d.Backing
			}
			out = append(out, "disk "+d.Target, text)
		}
	}
	return append(out, "migration", v.Migration, "move", v.Move, "seen", stamp(v.Seen))
}

func newVMSetCommand(n *noun) *cobra.Command {
	var o struct {
		hypervisor, iface, owner, memory string
		macs, eids                       []string
		cpus                             int
	}
	c := &cobra.Command{
		Use: "set NAME", Short: "Add a VM to the inventory, or change what is given", Args: cobra.ExactArgs(1),
		Long: `Add a VM to the inventory, or change what is given. This only says what is; "tabi migrate" moves a VM, and "tabi vm
define" makes one. VMs of hypervisors with a driver need not be added if their domain's metadata name their EIDs.`,
		Example: `  tabi vm set web --hypervisor nezu-hv1 --mac 52:54:00:00:00:10 \
      --eid 198.51.100.10/32 --eid 2001:db8:e1d:1::10/128 --interface tap-web
  tabi vm set web --eid 198.51.100.10/32 --eid 198.51.100.11/32`,
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := controller.VM{Name: args[0], MACs: []string{}}
			return n.set(cmd, args[0], &v, func() (err error) {
				set := cmd.Flags().Changed
				if set("hypervisor") {
					v.Hypervisor = o.hypervisor
				}
				if set("interface") {
					v.Interface = o.iface
				}
				if set("mac") {
					v.MACs = o.macs
				}
				if set("eid") {
					if v.EIDs, err = parseEIDs(o.eids); err != nil {
						return err
					}
				}
				if set("owner") {
					v.Owner = o.owner
				}
				if set("cpus") {
					v.CPUs = o.cpus
				}
				if set("memory") {
					if v.Memory, err = parseMemory(o.memory); err != nil {
						return fmt.Errorf("--memory: %w", err)
					}
				}
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.hypervisor, "hypervisor", "", "where it runs")
	f.StringVar(&o.iface, "interface", "", "name of its interface, if it is the same on every hypervisor")
	f.StringSliceVar(&o.macs, "mac", nil, "its MAC addresses (replaces those that are there)")
	f.StringSliceVar(&o.eids, "eid", nil, "its EIDs (replaces those that are there)")
	f.StringVar(&o.owner, "owner", "", "whose it is, as in the sites' policies")
	f.IntVar(&o.cpus, "cpus", 0, "virtual CPUs that it needs, where no driver knows")
	f.StringVar(&o.memory, "memory", "0", "memory that it needs, where no driver knows: 4G (powers of 1024) or 4GB")
	must(c.RegisterFlagCompletionFunc("hypervisor", completeNames(&n.api, "/v1/hypervisors", false)))
	return c
}

func parseEIDs(texts []string) ([]lisp.EID, error) {
	var out []lisp.EID
	for _, s := range texts {
		e, err := lisp.ParseEID(s)
		if err != nil {
			return nil, fmt.Errorf("--eid: %w", err)
		}
		out = append(out, e)
	}
	return out, nil
}

// maxDefinition bounds a domain's definition, in bytes.
const maxDefinition = 512 << 10

func newVMDefineCommand(n *noun) *cobra.Command {
	var hypervisor, owner string
	var eids []string
	c := &cobra.Command{
		Use: "define FILE [--hypervisor HYPERVISOR]", Short: "Define a VM by libvirt's domain XML", Args: cobra.ExactArgs(1),
		Long: `Define a VM at a hypervisor by libvirt's domain XML ("-" = standard input), or replace its definition. With --eid or
--owner these are written into the domain's metadata first, in place of what it says there; so the VM brings them along
wherever it goes.`,
		Example: `  tabi vm define web.xml --hypervisor nezu-hv1 --eid 198.51.100.10/32 --owner alice
  virsh dumpxml web | tabi vm define - --hypervisor nezu-hv1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("vm define: %w", err)
				}
				defer f.Close()
				in = f
			}
			b, err := io.ReadAll(io.LimitReader(in, maxDefinition+1))
			switch {
			case err != nil:
				return fmt.Errorf("vm define: %s: %w", args[0], err)
			case len(b) > maxDefinition:
				return fmt.Errorf("vm define: %s: more than %s", args[0], memoryText(maxDefinition))
			}
			doc := string(b)
			if set := cmd.Flags().Changed; set("eid") || set("owner") {
				g, _ := libvirt.ParseDomain(b) // WithMetadata says what is wrong
				list, who := g.EIDs, g.Owner
				if set("eid") {
					if list, err = parseEIDs(eids); err != nil {
						return err
					}
				}
				if set("owner") {
					who = owner
				}
				if doc, err = libvirt.WithMetadata(doc, who, list); err != nil {
					return fmt.Errorf("vm define: %s: %w", args[0], err)
				}
			}
			g, err := libvirt.ParseDomain([]byte(doc))
			if err != nil {
				return fmt.Errorf("vm define: %s: %w", args[0], err)
			}
			var raw json.RawMessage
			path := n.one(g.Name) + "/definition"
			if hypervisor != "" {
				path += "?hypervisor=" + url.QueryEscape(hypervisor)
			}
			if _, err := n.api.do(cmd.Context(), "PUT", path, xmlBody(doc), &raw); err != nil {
				return err
			}
			if n.api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			var v controller.VMStatus
			if err := json.Unmarshal(raw, &v); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "vm %s defined on %s\n", g.Name, firstOf(v.Hypervisor, hypervisor))
			return err
		},
	}
	c.Flags().StringVar(&hypervisor, "hypervisor", "", "where (default: where it is, if the VM is known)")
	c.Flags().StringSliceVar(&eids, "eid", nil, "its EIDs, into its metadata")
	c.Flags().StringVar(&owner, "owner", "", "whose it is, into its metadata")
	must(c.RegisterFlagCompletionFunc("hypervisor", completeNames(&n.api, "/v1/hypervisors", false)))
	return c
}

func newVMChownCommand(n *noun) *cobra.Command {
	return &cobra.Command{
		Use: "chown VM OWNER", Short: "Say whose a VM is", Args: cobra.ExactArgs(2),
		Long: `Say whose a VM is: a person or an organisation, as in the sites' policies ("tabi site set --owner, --lend-owners"). ""
takes the owner away.`,
		Example:           "  tabi vm chown web alice",
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := n.api.do(cmd.Context(), "PUT", n.one(args[0])+"/owner", map[string]string{"owner": args[1]}, &raw); err != nil {
				return err
			}
			if n.api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "vm %s belongs to %s\n", args[0], firstOf(args[1], "nobody"))
			return err
		},
	}
}

func newVMAddressesCommand(n *noun) *cobra.Command {
	return &cobra.Command{
		Use: "addresses VM", Aliases: []string{"addr"}, Short: "Show a VM's addresses: assigned, and seen by agents", Args: cobra.ExactArgs(1),
		Example:           "  tabi vm addresses web",
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := n.api.do(cmd.Context(), "GET", n.one(args[0])+"/addresses", nil, &raw); err != nil {
				return err
			}
			if n.api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			var a controller.Addresses
			if err := json.Unmarshal(raw, &a); err != nil {
				return err
			}
			if err := columns(cmd.OutOrStdout(), "EID ASSIGNED SEEN-AT STATE MAC INTERFACE LAST-SEEN", addressRows(a)); err != nil {
				return err
			}
			for _, e := range a.Errors {
				fmt.Fprintln(cmd.OutOrStdout(), "not asked:", e)
			}
			return nil
		},
	}
}

// addressRows has a row for each time an address was seen, and one for each that was assigned and not seen.
func addressRows(a controller.Addresses) [][]string {
	var rows [][]string
	seen := map[string]bool{}
	for _, s := range a.Seen {
		seen[s.EID] = true
		assigned, state, last := "yes", s.State, ""
		if !s.Assigned {
			assigned = "no"
		}
		if s.Learned {
			state = strings.TrimPrefix(state+",learned", ",")
		}
		if !s.LastSeen.IsZero() {
			last = s.LastSeen.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{s.EID, assigned, s.Hypervisor, state, s.MAC, s.Interface, last})
	}
	for _, e := range a.Assigned {
		if !seen[e] {
			rows = append(rows, []string{e, "yes", "", "", "", "", ""})
		}
	}
	return rows
}

func newVMActionCommand(n *noun, verb, short, long string) *cobra.Command {
	var hypervisor string
	var force bool
	c := &cobra.Command{
		Use: verb + " VM...", Short: short, Long: long, Args: cobra.MinimumNArgs(1), Example: "  tabi vm " + verb + " web",
		ValidArgsFunction: completeNames(&n.api, n.path, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			do := verb
			if force {
				do = "kill"
			}
			query := ""
			if hypervisor != "" {
				query = "?hypervisor=" + url.QueryEscape(hypervisor)
			}
			for _, vm := range args {
				var raw json.RawMessage
				if _, err := n.api.do(cmd.Context(), "POST", n.one(vm)+"/"+do+query, nil, &raw); err != nil {
					return err
				}
				if n.api.json {
					if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
						return err
					}
					continue
				}
				var v controller.VMStatus
				if err := json.Unmarshal(raw, &v); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "vm %s: %s\n", vm, firstOf(stateText(v), do+" asked for"))
			}
			return nil
		},
	}
	switch verb {
	case "start":
		c.Flags().StringVar(&hypervisor, "hypervisor", "", "start it there: for a VM whose hypervisor is dead and whose storage is shared")
		must(c.RegisterFlagCompletionFunc("hypervisor", completeNames(&n.api, "/v1/hypervisors", false)))
	case "stop":
		c.Flags().BoolVar(&force, "force", false, "switch it off")
	}
	return c
}
