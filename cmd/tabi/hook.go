package main

import (
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Hooks: what announces a migration that the controller did not start.

func newHookCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hook",
		Short: "Announce migrations that others start: hooks for libvirt and for cloud controllers",
		Long: `Announce migrations that others start: hooks for libvirt and for cloud controllers.

A migration that "tabi migrate" did not start, by "virsh migrate" or by another cloud controller, loses nothing either;
announced, it is as quick as one that tabi started itself: the target holds what comes for the VM too early, and the
source knows where it goes. Without any hook the hypervisors find out by themselves, a little later.

On hypervisors with libvirt, install the hook once:   tabi hook install libvirt --controller URL --token TOKEN
A cloud controller announces by HTTP itself:           tabi hook example curl|nova|proxmox`,
		Example: "  tabi hook install libvirt --controller http://192.0.2.9:4381 --token s3cret\n  tabi hook status\n  tabi hook example nova",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newHookInstallCommand(), newHookRemoveCommand(), newHookStatusCommand(), newHookExampleCommand(), newHookLibvirtCommand())
	return c
}

//go:embed examples/announce.sh examples/nova-announce.py examples/proxmox-hookscript.sh
var exampleFiles embed.FS

// examples are what `tabi hook example` prints, and what each is.
var examples = map[string]struct{ file, what string }{
	"curl":    {"examples/announce.sh", "the announcement by itself: what any cloud controller has to send"},
	"nova":    {"examples/nova-announce.py", "OpenStack Nova: listens to its notifications (oslo.messaging)"},
	"proxmox": {"examples/proxmox-hookscript.sh", "Proxmox VE: a hookscript of its VMs"},
}

func newHookExampleCommand() *cobra.Command {
	var long strings.Builder
	long.WriteString("Print a script that announces migrations to the controller: to use as it is, or to start from.\n\n")
	for _, name := range slices.Sorted(maps.Keys(examples)) {
		fmt.Fprintf(&long, "  %-8s %s\n", name, examples[name].what)
	}
	long.WriteString(`
The announcement is one request, before the memory of the VM is copied; the answer comes at once, and the migration need
not wait for it:

  POST /v1/announcements {"vm" or "uuid" or "macs", "to": HYPERVISOR}

Nothing else is needed: that the VM runs at its target, or has stayed, the hypervisors see themselves. A cloud controller
that wants to wait until both sides are ready, or to say how it went, prepares a move instead:

  PUT  /v1/moves/ID {"vm","to"}      answers when both hypervisors are ready
  POST /v1/moves/ID/commit           the VM runs at the target
  POST /v1/moves/ID/abort            it has stayed`)
	return &cobra.Command{
		Use: "example curl|nova|proxmox", Short: "Print a hook for a cloud controller", Long: long.String(),
		Example:   "  tabi hook example curl\n  tabi hook example proxmox > /var/lib/vz/snippets/tabi.sh",
		Args:      cobra.ExactArgs(1),
		ValidArgs: slices.Sorted(maps.Keys(examples)),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, ok := examples[args[0]]
			if !ok {
				return fmt.Errorf("hook example: no example %q; there are: %s", args[0], strings.Join(slices.Sorted(maps.Keys(examples)), ", "))
			}
			b, err := exampleFiles.ReadFile(e.file)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

// onlyLibvirt is the argument of install and remove: what the hook is for.
func onlyLibvirt(_ *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] != "libvirt" {
		return errors.New(`say what for: "libvirt" (for others see "tabi hook example")`)
	}
	return nil
}
