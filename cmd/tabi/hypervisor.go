package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/lisp"
)

func newHypervisorCommand() *cobra.Command {
	n := &noun{
		name: "hypervisor", path: "/v1/hypervisors",
		table: listed("NAME SITE RLOC VMS CPUS MEMORY STATE", hypervisorRow),
		show:  shown(hypervisorFields),
	}
	c := n.command("Hypervisors of the cloud: list and drain them", `The hypervisors of the cloud. Each runs an xTR ("tabi xtr"); the controller talks to its agent API, and by its driver to
what runs its VMs (libvirt), if it is given one.`, "hv", "hypervisors")
	c.AddCommand(newHypervisorSetCommand(n), newDrainCommand(n), newUndrainCommand(n))
	return c
}

func hypervisorRow(h controller.HypervisorStatus) []string {
	cpus, memory := "", ""
	if c := totalCPUs(h); c > 0 {
		cpus = fmt.Sprintf("%d/%d", h.Used.CPUs, c)
	}
	if m := totalMemory(h); m > 0 {
		memory = strings.ReplaceAll(memoryText(h.Used.Memory)+"/"+memoryText(m), " ", "")
	}
	return []string{h.Name, h.Site, h.RLOC.String(), fmt.Sprint(len(h.VMs)), cpus, memory, hypervisorState(h)}
}

func totalCPUs(h controller.HypervisorStatus) int {
	if h.CPUs == 0 && h.Node != nil {
		return h.Node.CPUs
	}
	return h.CPUs
}

func totalMemory(h controller.HypervisorStatus) uint64 {
	if h.Memory == 0 && h.Node != nil {
		return h.Node.Memory
	}
	return h.Memory
}

// hypervisorState says in a few words whether agent and driver answer, and whether it takes VMs.
func hypervisorState(h controller.HypervisorStatus) string {
	var out []string
	if h.Drained {
		out = append(out, "drained")
	}
	out = append(out, agentState(h))
	if h.Driver != "" {
		switch {
		case h.DriverError != "":
			out = append(out, "driver: "+h.DriverError)
		case h.DriverSeen.IsZero():
			out = append(out, "driver: not seen yet")
		}
	}
	return strings.Join(out, "; ")
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

func hypervisorFields(h controller.HypervisorStatus) []string {
	siteID, node, used, free, drained := "", "", "", "", ""
	if h.SiteID != 0 {
		siteID = fmt.Sprint(h.SiteID)
	}
	if n := h.Node; n != nil {
		node = fmt.Sprintf("%s, %s, %d CPUs, %s of memory", n.Hostname, n.Version, n.CPUs, memoryText(n.Memory))
	}
	if h.Used != (controller.Capacity{}) {
		used = capacityText(h.Used)
	}
	if h.Free != nil {
		free = capacityText(*h.Free)
	}
	if h.Drained {
		drained = "yes"
		if !h.DrainedSince.IsZero() {
			drained = "since " + h.DrainedSince.UTC().Format(time.RFC3339)
		}
	}
	return []string{"hypervisor", h.Name, "site", h.Site, "rloc", h.RLOC.String(), "xtr-id", h.XTRID.String(), "site-id", siteID,
		"agent", h.Agent, "driver", h.Driver, "driver-peer", h.DriverPeer, "migrate-uri", h.MigrateURI, "state", hypervisorState(h),
		"drained", drained, "node", node, "used", used, "free", free, "vms", strings.Join(h.VMs, " ")}
}

func capacityText(c controller.Capacity) string {
	return fmt.Sprintf("%d CPUs, %s", c.CPUs, memoryText(c.Memory))
}

func newHypervisorSetCommand(n *noun) *cobra.Command {
	var o struct {
		site, rloc, xtrID, agent, agentToken, driver, driverPeer, migrateURI, memory string
		siteID                                                                       uint64
		cpus                                                                         int
	}
	c := &cobra.Command{
		Use: "set NAME", Short: "Add a hypervisor, or change what is given", Args: cobra.ExactArgs(1),
		Long: `Add a hypervisor, or change what is given.

--driver is how the controller reaches its libvirt: qemu+tcp://HOST/system, qemu+tls://HOST/system,
qemu+ssh://USER@HOST/system, or qemu+unix:///system?socket=PATH on the same host. For migrations the hypervisors' libvirt
reach each other by the same URI, unless --driver-peer says another; --migrate-uri says where the memory of VMs that come
is sent to, if that is not what libvirt chooses. Without a driver others migrate its VMs, and tabi keeps their packets.`,
		Example: `  tabi hv set nezu-hv1 --site nezu --rloc 192.0.2.1 --xtr-id 00000000000000000000000000000001 \
      --agent http://192.0.2.1:4380 --agent-token s3cret --driver qemu+tcp://192.0.2.1/system
  tabi hv set nezu-hv1 --agent http://192.0.2.99:4380`,
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			h := struct {
				controller.Hypervisor
				Token *string `json:"token,omitempty"`
			}{Hypervisor: controller.Hypervisor{Name: args[0]}}
			return n.set(cmd, args[0], &h, func() (err error) {
				set := cmd.Flags().Changed
				for flag, v := range map[string]struct{ to, from *string }{
					"site": {&h.Site, &o.site}, "agent": {&h.Agent, &o.agent}, "driver": {&h.Driver, &o.driver},
					"driver-peer": {&h.DriverPeer, &o.driverPeer}, "migrate-uri": {&h.MigrateURI, &o.migrateURI},
				} {
					if set(flag) {
						*v.to = *v.from
					}
				}
				if set("rloc") {
					if h.RLOC, err = netip.ParseAddr(o.rloc); err != nil {
						return fmt.Errorf("--rloc %q is no address", o.rloc)
					}
				}
				if set("xtr-id") {
					if err := h.XTRID.UnmarshalText([]byte(o.xtrID)); err != nil {
						return fmt.Errorf("--xtr-id: %w", err)
					}
				}
				if set("site-id") {
					h.SiteID = lisp.SiteID(o.siteID)
				}
				if set("agent-token") {
					h.Token = &o.agentToken
				}
				if set("cpus") {
					h.CPUs = o.cpus
				}
				if set("memory") {
					if h.Memory, err = parseMemory(o.memory); err != nil {
						return fmt.Errorf("--memory: %w", err)
					}
				}
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&o.site, "site", "", "its site")
	f.StringVar(&o.rloc, "rloc", "", "its RLOC")
	f.StringVar(&o.xtrID, "xtr-id", "", "xTR-ID of its xTR: 32 hexadecimal digits")
	f.Uint64Var(&o.siteID, "site-id", 0, "LISP Site-ID of its xTR")
	f.StringVar(&o.agent, "agent", "", "URL of its agent's API")
	f.StringVar(&o.agentToken, "agent-token", "", "bearer token of its agent's API")
	f.StringVar(&o.driver, "driver", "", "libvirt URI by which the controller reaches what runs its VMs; \"\" = none")
	f.StringVar(&o.driverPeer, "driver-peer", "", "the same as other hypervisors reach it (default: --driver)")
	f.StringVar(&o.migrateURI, "migrate-uri", "", "where it wants the memory of VMs that come, such as tcp://10.0.0.1 (default: it says itself)")
	f.IntVar(&o.cpus, "cpus", 0, "virtual CPUs that it has for VMs (default: what the driver says)")
	f.StringVar(&o.memory, "memory", "0", "memory that it has for VMs, such as 64G (powers of 1024) or 64GB (default: what the driver says)")
	must(c.RegisterFlagCompletionFunc("site", completeNames(&n.api, "/v1/sites", false)))
	return c
}
