package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
)

func newConfigCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Check a configuration file, or print one to start from",
	}
	roles := strings.Join(config.Roles, "|")
	c.AddCommand(
		&cobra.Command{
			Use:     "check FILE...",
			Short:   "Say what is wrong with configuration files, with line and column",
			Example: "  tabi config check /etc/tabi/xtr.yaml",
			Args:    cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				bad := 0
				for _, f := range args {
					if _, err := config.Load(f); err != nil {
						bad++
						fmt.Fprintln(cmd.OutOrStdout(), err)
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", f)
				}
				if bad > 0 {
					return errSilent
				}
				return nil
			},
		},
		&cobra.Command{
			Use:       "reference ROLE",
			Short:     "Print the file of a role (" + roles + ") with every key, its meaning and its default",
			Args:      cobra.ExactArgs(1),
			ValidArgs: config.Roles,
			RunE:      printConfig(config.Reference),
		},
		&cobra.Command{
			Use:       "example ROLE",
			Short:     "Print the smallest useful file of a role (" + roles + ")",
			Args:      cobra.ExactArgs(1),
			ValidArgs: config.Roles,
			RunE:      printConfig(config.Example),
		})
	return c
}

func printConfig(text func(role string) (string, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		s, err := text(args[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), s)
		return err
	}
}
