// Command tabi is every part of tabi in one binary: the daemons, the operator's commands, the demo.
// This package only wires; what things do is in the packages of the roles.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSilent) {
			fmt.Fprintln(os.Stderr, "tabi:", err)
		}
		stop()
		code := 1
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		os.Exit(code)
	}
}

// errSilent ends a command with status 1 whose output has said already what is wrong.
var errSilent = errors.New("failed")

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "tabi",
		Short: "Keep a VM's addresses working while it moves between sites",
		Long: `tabi keeps a virtual machine's IP addresses working while the machine is live-migrated between
sites that share no L2 network. It is a LISP suite (RFC 9300, RFC 9301): one binary with every part.

See it work, on this machine, in its own network namespaces:   sudo tabi demo`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "try", Title: "Try it:"},
		&cobra.Group{ID: "look", Title: "Look into running daemons:"},
		&cobra.Group{ID: "move", Title: "Move VMs (talks to the controller):"},
		&cobra.Group{ID: "hook", Title: "Tell tabi of migrations that others start:"},
		&cobra.Group{ID: "daemon", Title: "Daemons:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("try", newDemoCommand(), newBenchCommand())
	add("look", newShowCommand(), newExplainCommand(), newLigCommand(), newDoctorCommand(), newConfigCommand(), newMap646Command())
	add("move", newMigrateCommand(), newMigrationCommand(), newMoveCommand(), newSiteCommand(), newHypervisorCommand(), newVMCommand(), newServiceCommand())
	add("hook", newHookCommand())
	add("daemon", newXTRCommand(), newMapServerCommand(), newDETRCommand(), newControllerCommand(), newRouterCommand())
	return root
}

// version is the module's version, or the commit that the binary was built from.
func version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := bi.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return "devel"
}
