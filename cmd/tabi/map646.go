package main

import "github.com/spf13/cobra"

func newMap646Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "map646",
		Short: "Translate captures between IPv4 and IPv6 offline; take over the original map646's table",
	}
	c.AddCommand(newMap646TranslateCommand(), newMap646ImportCommand())
	return c
}
