package main

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout is how long a shell waits for names when somebody presses Tab.
const completionTimeout = 400 * time.Millisecond

// completeFrom completes from a list of the controller's, one word (and, after a tab, what it is) an element. A
// controller that does not answer at once completes nothing. many = every argument is one of them, else the first only.
func completeFrom[V any](api *controllerClient, path string, word func(V) string, many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		var raw json.RawMessage
		var list []V
		if _, err := api.do(ctx, "GET", path, nil, &raw); err != nil || json.Unmarshal(raw, &list) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out := []cobra.Completion{}
		for _, v := range list {
			if w := word(v); w != "" && strings.HasPrefix(w, prefix) {
				out = append(out, w)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNames completes the names in a list. arg = it is an argument, of which there is one; else a flag's value.
func completeNames(api *controllerClient, path string, arg bool) cobra.CompletionFunc {
	return completeFrom(api, path, func(v struct {
		Name string `json:"name"`
	}) string {
		return v.Name
	}, !arg)
}
