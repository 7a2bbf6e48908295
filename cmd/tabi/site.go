package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
)

func newSiteCommand() *cobra.Command {
	n := &noun{
		name: "site", path: "/v1/sites",
		table: listed("NAME OWNERS LENDS SHARED DESCRIPTION", func(s controller.Site) []string {
			return []string{s.Name, strings.Join(s.Owners, ","), lendText(s), strings.Join(s.SharedStorage, ","), s.Description}
		}),
		show: shown(siteFields),
	}
	c := n.command("Sites of the cloud, and what they lend", `The sites of the cloud: places with hypervisors that share no L2 network; and what each lends to VMs that are not at home
there. A site without owners and without anything about lending is open: every VM may come, as far as there is room. As
soon as either is said, what is not allowed is refused: VMs of its owners may always come, others as far as it lends.`, "sites")
	c.AddCommand(newSiteSetCommand(n))
	return c
}

// lendText is a site's policy in a word or two.
func lendText(s controller.Site) string {
	switch l := s.Lend; {
	case l == nil && len(s.Owners) == 0:
		return "open"
	case l == nil, len(l.Owners) == 0 && len(l.VMs) == 0:
		return "nothing"
	default:
		parts := []string{"to " + strings.Join(append(append([]string{}, l.Owners...), l.VMs...), ",")}
		if l.CPUs > 0 {
			parts = append(parts, fmt.Sprintf("%d CPUs", l.CPUs))
		}
		if l.Memory > 0 {
			parts = append(parts, memoryText(l.Memory))
		}
		if len(l.FromSites) > 0 {
			parts = append(parts, "from "+strings.Join(l.FromSites, ","))
		}
		return strings.Join(parts, "; ")
	}
}

func siteFields(s controller.Site) []string {
	out := []string{"site", s.Name, "description", s.Description, "owners", strings.Join(s.Owners, " "), "shared-storage", strings.Join(s.SharedStorage, " ")}
	if s.Lend == nil {
		return append(out, "lends", lendText(s))
	}
	limit := func(is bool, text string) string {
		if is {
			return text
		}
		return "as many as there are"
	}
	return append(out,
		"lends to owners", firstOf(strings.Join(s.Lend.Owners, " "), "nobody"),
		"lends to vms", strings.Join(s.Lend.VMs, " "),
		"from sites", firstOf(strings.Join(s.Lend.FromSites, " "), "any"),
		"cpus", limit(s.Lend.CPUs > 0, fmt.Sprint(s.Lend.CPUs)),
		"memory", strings.Replace(limit(s.Lend.Memory > 0, memoryText(s.Lend.Memory)), "as many as there are", "as much as there is", 1))
}

func newSiteSetCommand(n *noun) *cobra.Command {
	var o struct {
		description, memory               string
		owners, shared, lendTo, vms, from []string
		cpus                              int
		nothing, open                     bool
	}
	c := &cobra.Command{
		Use: "set NAME", Short: "Add a site, or change what is given", Args: cobra.ExactArgs(1),
		Long: `Add a site, or change what is given. A list replaces the one that is there; "" makes it empty.

Who may come: VMs of --owner, always. Others if their owner is among --lend-owners ("*": whoever has one) or their name
among --lend-vms ("web", "camp-*"), if they come from one of --from (default: anywhere), and as long as all guests together
have no more than --lend-cpus and --lend-memory.`,
		Example: `  tabi site set nezu --description "Nezu, Tokyo" --owner wide
  tabi site set nezu --lend-owners alice,bob --lend-vms "camp-*" --from camp --lend-cpus 8 --lend-memory 16G
  tabi site set nezu --lend-nothing
  tabi site set nezu --shared-storage nfs1=/srv/vms`,
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := controller.Site{Name: args[0]}
			return n.set(cmd, args[0], &s, func() error {
				set := cmd.Flags().Changed
				if set("description") {
					s.Description = o.description
				}
				if set("owner") {
					s.Owners = filled(o.owners)
				}
				if set("shared-storage") {
					s.SharedStorage = filled(o.shared)
				}
				if o.open {
					s.Owners, s.Lend = nil, nil
				}
				if o.nothing {
					s.Lend = &controller.Lend{}
				}
				lend := controller.Lend{}
				if s.Lend != nil {
					lend = *s.Lend
				}
				changed := false
				for flag, do := range map[string]func() error{
					"lend-cpus":   func() error { lend.CPUs = o.cpus; return nil },
					"lend-owners": func() error { lend.Owners = filled(o.lendTo); return nil },
					"lend-vms":    func() error { lend.VMs = filled(o.vms); return nil },
					"from":        func() error { lend.FromSites = filled(o.from); return nil },
					"lend-memory": func() (err error) {
						if lend.Memory, err = parseMemory(o.memory); err != nil {
							return fmt.Errorf("--lend-memory: %w", err)
						}
						return nil
					},
				} {
					if set(flag) {
						changed = true
						if err := do(); err != nil {
							return err
						}
					}
				}
				if changed {
					s.Lend = &lend
				}
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.description, "description", "", "a line for people")
	f.StringSliceVar(&o.owners, "owner", nil, "who is at home there: their VMs may always come")
	f.StringSliceVar(&o.shared, "shared-storage", nil, "directories that all its hypervisors mount from one file system; nfs1=/srv/vms names it, for other sites that have it too")
	f.IntVar(&o.cpus, "lend-cpus", 0, "virtual CPUs for all guests together, 0 = as many as there are")
	f.StringVar(&o.memory, "lend-memory", "0", "memory for all guests together, such as 16G (powers of 1024) or 16GB; 0 = as much as there is")
	f.StringSliceVar(&o.lendTo, "lend-owners", nil, `owners whose VMs may come as guests; "*" = everybody's`)
	f.StringSliceVar(&o.vms, "lend-vms", nil, `VMs that may come as guests, by name or pattern ("camp-*")`)
	f.StringSliceVar(&o.from, "from", nil, "sites that guests may come from (default: any)")
	f.BoolVar(&o.nothing, "lend-nothing", false, "no guest may come")
	f.BoolVar(&o.open, "open", false, "no owners and no policy: every VM may come")
	c.MarkFlagsMutuallyExclusive("lend-nothing", "open")
	for _, flag := range []string{"lend-cpus", "lend-memory", "lend-owners", "lend-vms", "from"} {
		c.MarkFlagsMutuallyExclusive("lend-nothing", flag)
		c.MarkFlagsMutuallyExclusive("open", flag)
	}
	must(c.RegisterFlagCompletionFunc("from", completeNames(&n.api, n.path, false)))
	return c
}

// filled drops empty strings, so that a flag with "" empties a list.
func filled(list []string) []string {
	var out []string
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
