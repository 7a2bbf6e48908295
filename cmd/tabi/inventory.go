package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/lisp"
)

// The commands of the cloud's inventory; they and those of moves are clients of the controller's API.

const defaultController = "http://127.0.0.1:4381"

// controllerClient is a client of the controller's API, and its flags.
type controllerClient struct {
	url   string
	token string
	json  bool
}

func (c *controllerClient) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.url, "controller", "", "URL of the controller's API (default $TABI_CONTROLLER, else "+defaultController+")")
	f.StringVar(&c.token, "token", "", "bearer token of the controller's API (default $TABI_TOKEN)")
	f.BoolVar(&c.json, "json", false, "print JSON")
}

// xmlBody is a body of a request that is no JSON: a domain's definition.
type xmlBody string

// do makes one request. in and out may be nil. created reports a status of 201.
func (c *controllerClient) do(ctx context.Context, method, path string, in, out any) (created bool, err error) {
	base := firstOf(c.url, os.Getenv("TABI_CONTROLLER"), defaultController)
	var body io.Reader
	switch in := in.(type) {
	case nil:
	case xmlBody:
		body = strings.NewReader(string(in))
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return false, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(base, "/")+path, body)
	if err != nil {
		return false, fmt.Errorf("controller %q: %w", base, err)
	}
	if token := firstOf(c.token, os.Getenv("TABI_TOKEN")); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, fmt.Errorf("no controller answers: %w (--controller URL or TABI_CONTROLLER says where it is)", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("controller %s: %w", base, err)
	}
	if resp.StatusCode >= 300 {
		var e struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = "answers " + resp.Status + " to " + method + " " + path + "; is this a tabi controller?"
		}
		if resp.StatusCode == http.StatusUnauthorized {
			e.Error += " (--token or TABI_TOKEN)"
		}
		return false, &apiError{resp.StatusCode, fmt.Sprintf("controller %s: %s", base, e.Error)}
	}
	if out != nil && len(b) > 0 {
		if err := json.Unmarshal(b, out); err != nil {
			return false, fmt.Errorf("controller %s: answer to %s %s: %w", base, method, path, err)
		}
	}
	return resp.StatusCode == http.StatusCreated, nil
}

// apiError is an answer of the controller that is no success.
type apiError struct {
	status int
	text   string
}

func (e *apiError) Error() string { return e.text }

func firstOf(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// noun is what the commands of one kind of thing have in common.
type noun struct {
	name  string // "site"
	path  string // "/v1/sites"
	api   controllerClient
	table func(w io.Writer, list json.RawMessage) error
	show  func(w io.Writer, one json.RawMessage) error
}

func (n *noun) command(short, long string, aliases ...string) *cobra.Command {
	c := &cobra.Command{
		Use: n.name, Aliases: aliases, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	n.api.flags(c)
	c.AddCommand(n.listCommand(), n.showCommand(), n.deleteCommand())
	return c
}

func (n *noun) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List every " + n.name, Args: cobra.NoArgs,
		Example: "  tabi " + n.name + " list\n  tabi " + n.name + " list --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list json.RawMessage
			if _, err := n.api.do(cmd.Context(), "GET", n.path, nil, &list); err != nil {
				return err
			}
			return n.print(cmd, list, n.table)
		},
	}
}

func (n *noun) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one " + n.name, Args: cobra.ExactArgs(1),
		Example:           "  tabi " + n.name + " show NAME\n  tabi " + n.name + " show NAME --json",
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var one json.RawMessage
			if _, err := n.api.do(cmd.Context(), "GET", n.one(args[0]), nil, &one); err != nil {
				return err
			}
			return n.print(cmd, one, n.show)
		},
	}
}

func (n *noun) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove a " + n.name + " from the inventory", Args: cobra.MinimumNArgs(1),
		Example:           "  tabi " + n.name + " delete NAME",
		ValidArgsFunction: completeNames(&n.api, n.path, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := n.api.do(cmd.Context(), "DELETE", n.one(name), nil, nil); err != nil {
					return err
				}
				if !n.api.json {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s removed\n", n.name, name)
				}
			}
			return nil
		},
	}
}

func (n *noun) one(name string) string { return n.path + "/" + url.PathEscape(name) }

// print writes what the controller answered, as it came or for people.
func (n *noun) print(cmd *cobra.Command, v json.RawMessage, human func(io.Writer, json.RawMessage) error) error {
	if n.api.json {
		return printJSON(cmd.OutOrStdout(), v)
	}
	return human(cmd.OutOrStdout(), v)
}

// set puts one thing: as it is there, with what edit changes.
func (n *noun) set(cmd *cobra.Command, name string, v any, edit func() error) error {
	var status *apiError
	if _, err := n.api.do(cmd.Context(), "GET", n.one(name), nil, v); err != nil &&
		!(errors.As(err, &status) && status.status == http.StatusNotFound) {
		return err
	}
	if err := edit(); err != nil {
		return fmt.Errorf("%s set %s: %w", n.name, name, err)
	}
	var out json.RawMessage
	created, err := n.api.do(cmd.Context(), "PUT", n.one(name), v, &out)
	if err != nil {
		return err
	}
	if n.api.json {
		return printJSON(cmd.OutOrStdout(), out)
	}
	what := "set"
	if created {
		what = "added"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s\n", n.name, name, what)
	return err
}

// columns prints rows of cells; empty cells become "-", no rows "(none)".
func columns(w io.Writer, head string, rows [][]string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "(none)")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = firstOf(r[i], "-")
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// fields prints one thing, a line a field; empty ones are left out.
func fields(w io.Writer, pairs ...string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", pairs[i], pairs[i+1])
		}
	}
	return tw.Flush()
}

// listed decodes a list and makes cells of it.
func listed[V any](head string, row func(V) []string) func(io.Writer, json.RawMessage) error {
	return func(w io.Writer, b json.RawMessage) error {
		var list []V
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		rows := make([][]string, len(list))
		for i, v := range list {
			rows[i] = row(v)
		}
		return columns(w, head, rows)
	}
}

// shown decodes one thing and prints its fields.
func shown[V any](pairs func(V) []string) func(io.Writer, json.RawMessage) error {
	return func(w io.Writer, b json.RawMessage) error {
		var v V
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		return fields(w, pairs(v)...)
	}
}

func eidList(eids []lisp.EID) string {
	out := make([]string, len(eids))
	for i, e := range eids {
		out[i] = e.String()
	}
	return strings.Join(out, ",")
}

func versionText(v lisp.Version) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprint(uint16(v))
}
