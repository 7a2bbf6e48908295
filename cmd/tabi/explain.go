package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/lisp"
)

func newExplainCommand() *cobra.Command {
	var o socketOptions
	c := &cobra.Command{
		Use:   "explain EID",
		Short: "Follow one EID through every daemon: where it lives, who believes what, and why",
		Example: `  tabi explain 198.51.100.10
  tabi explain '[7]2001:db8::10' --socket '/run/tabi/*.sock' --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := lisp.ParseEID(args[0])
			if err != nil {
				return fmt.Errorf("explain: %w", err)
			}
			return explain(cmd.Context(), cmd.OutOrStdout(), &o, e)
		},
	}
	o.flags(c)
	return c
}

type explanation struct {
	Name     string         `json:"name"`
	Role     string         `json:"role"`
	Findings []lisp.Finding `json:"findings"`
	Error    string         `json:"error,omitempty"`
}

// stages orders the daemons as a packet's question travels: who runs the VM, who knows it, who is told.
var stages = map[string]int{"controller": 0, "xtr": 1, "mapserver": 2, "detr": 3, "router": 4}

func explain(ctx context.Context, w io.Writer, o *socketOptions, e lisp.EID) error {
	clients, err := o.clients()
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	byStage := make([][]explanation, len(stages)+1)
	for _, c := range clients {
		x, stage := explainOne(ctx, c, e)
		byStage[stage] = append(byStage[stage], x)
	}
	var all []explanation
	for _, s := range byStage {
		all = append(all, s...)
	}
	if o.json {
		return printJSON(w, map[string]any{"eid": e, "daemons": all})
	}
	fmt.Fprintf(w, "%s\n", e)
	for _, x := range all {
		fmt.Fprintf(w, "\n%s (%s)\n", x.Name, x.Role)
		if x.Error != "" {
			fmt.Fprintf(w, "  cannot be asked: %s\n", x.Error)
		} else if len(x.Findings) == 0 {
			fmt.Fprintln(w, "  knows nothing of it")
		}
		for _, f := range x.Findings {
			fmt.Fprintf(w, "  %-14s %s\n", f.Part, f.Says)
			if f.Why != "" {
				fmt.Fprintf(w, "  %-14s   because %s\n", "", f.Why)
			}
		}
	}
	return nil
}

func explainOne(ctx context.Context, c *admin.Client, e lisp.EID) (explanation, int) {
	a, err := c.About(ctx)
	if err != nil {
		return explanation{Name: c.Path, Role: "?", Error: err.Error()}, len(stages)
	}
	x := explanation{Name: a.Name, Role: a.Role}
	b, err := c.Explain(ctx, e.String())
	if err == nil {
		err = json.Unmarshal(b, &x.Findings)
	}
	if err != nil {
		x.Error = err.Error()
	}
	stage, ok := stages[a.Role]
	if !ok {
		stage = len(stages)
	}
	return x, stage
}
