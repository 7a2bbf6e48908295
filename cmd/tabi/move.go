package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
)

func newMoveCommand() *cobra.Command {
	var api controllerClient
	c := &cobra.Command{
		Use: "move", Aliases: []string{"moves"}, Short: "Prepare, commit, abort and list moves of VMs",
		Long: `Prepare, commit, abort and list moves of VMs.

"prepare" readies both hypervisors; then the VM is migrated, by whatever migrates it here. That the VM
runs on the target is seen by the hypervisors themselves, so "commit" is not needed; it says so sooner.
"abort" undoes a prepared move when the migration has failed.`,
		Example: `  tabi move prepare web --to hokuriku-hv1 --id m1
  tabi move commit m1
  tabi move show m1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	api.flags(c)
	c.AddCommand(newMovePrepareCommand(&api), newMoveCommitCommand(&api), newMoveAbortCommand(&api),
		newMoveListCommand(&api), newMoveShowCommand(&api))
	return c
}

// moveDone prints what became of a move.
func moveDone(cmd *cobra.Command, api *controllerClient, raw json.RawMessage, hint string) error {
	if api.json {
		return printJSON(cmd.OutOrStdout(), raw)
	}
	var r controller.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "move %s of %s from %s to %s: %s\n%s", r.ID, r.VM, r.From, r.To, r.State, hint)
	return err
}

func movePath(id, verb string, wait time.Duration) string {
	return "/v1/moves/" + url.PathEscape(id) + verb + "?wait=" + wait.String()
}

func newMovePrepareCommand(api *controllerClient) *cobra.Command {
	var to, id string
	var wait time.Duration
	c := &cobra.Command{
		Use: "prepare VM --to HYPERVISOR", Short: "Ready both hypervisors for a move", Args: cobra.ExactArgs(1),
		Long: `Ready both hypervisors for a move. When it returns without an error, the migration may begin: the target
holds what comes for the VM too early, the source sends on what comes too late. The same id may be
prepared twice.`,
		Example: `  tabi move prepare web --to hokuriku-hv1
  tabi move prepare web --to hokuriku-hv1 --id m1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if id == "" {
				var b [4]byte
				_, _ = rand.Read(b[:]) // never fails
				id = args[0] + "-" + time.Now().UTC().Format("20060102T150405") + "-" + hex.EncodeToString(b[:])
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "PUT", movePath(id, "", wait), controller.MoveRequest{VM: args[0], To: to}, &raw); err != nil {
				return err
			}
			return moveDone(cmd, api, raw, "Now migrate the VM. Then: tabi move commit "+id+"   (or: tabi move abort "+id+")\n")
		},
	}
	c.Flags().StringVar(&to, "to", "", "hypervisor that the VM moves to (required)")
	c.Flags().StringVar(&id, "id", "", "name of the move (default: made of the VM and the time)")
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the hypervisors")
	if err := c.MarkFlagRequired("to"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func newMoveCommitCommand(api *controllerClient) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "commit ID", Short: "Say that the VM runs on the target", Args: cobra.ExactArgs(1),
		Example: "  tabi move commit m1",
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "POST", movePath(args[0], "/commit", wait), nil, &raw); err != nil {
				return err
			}
			return moveDone(cmd, api, raw, "")
		},
	}
	c.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait until a Map-Server has the new mapping")
	return c
}

func newMoveAbortCommand(api *controllerClient) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "abort ID", Short: "Undo a prepared move: the VM goes on at the source", Args: cobra.ExactArgs(1),
		Example: "  tabi move abort m1",
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "POST", movePath(args[0], "/abort", wait), nil, &raw); err != nil {
				return err
			}
			return moveDone(cmd, api, raw, "")
		},
	}
	c.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the hypervisors")
	return c
}

func newMoveListCommand(api *controllerClient) *cobra.Command {
	var vm, state string
	var limit int
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List moves, newest first", Args: cobra.NoArgs,
		Example: "  tabi move list\n  tabi move list --vm web --state settled --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {fmt.Sprint(limit)}}
			if vm != "" {
				q.Set("vm", vm)
			}
			if state != "" {
				q.Set("state", state)
			}
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", "/v1/moves?"+q.Encode(), nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			return listed("ID VM FROM TO STATE VERSION STARTED BLACKOUT HELD REDIRECTED REPLAYED DROPPED", moveRow)(cmd.OutOrStdout(), raw)
		},
	}
	c.Flags().StringVar(&vm, "vm", "", "only moves of this VM")
	c.Flags().StringVar(&state, "state", "", "only moves in this state")
	c.Flags().IntVar(&limit, "limit", 100, "at most so many, 0 = all")
	return c
}

func moveRow(r controller.Record) []string {
	started, blackout := "", ""
	if t := begin(r); !t.IsZero() {
		started = t.UTC().Format("2006-01-02T15:04:05Z")
	}
	if !r.Times.Paused.IsZero() && !r.Times.Run.IsZero() {
		blackout = seconds(r.Times.Run.Sub(r.Times.Paused)) + "s"
	}
	return []string{r.ID, r.VM, r.From, r.To, string(r.State), versionText(r.Version), started, blackout,
		fmt.Sprint(r.Held), fmt.Sprint(r.Redirected), fmt.Sprint(r.Replayed), dropText(r.Dropped, "0")}
}

// dropText lists drops by reason.
func dropText(d map[string]uint64, none string) string {
	if len(d) == 0 {
		return none
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(d)) {
		out = append(out, fmt.Sprintf("%s=%d", k, d[k]))
	}
	return strings.Join(out, ",")
}

func newMoveShowCommand(api *controllerClient) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one move and its time line", Args: cobra.ExactArgs(1),
		Example: "  tabi move show m1\n  tabi move show m1 --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var raw json.RawMessage
			if _, err := api.do(cmd.Context(), "GET", "/v1/moves/"+url.PathEscape(args[0]), nil, &raw); err != nil {
				return err
			}
			if api.json {
				return printJSON(cmd.OutOrStdout(), raw)
			}
			var r controller.Record
			if err := json.Unmarshal(raw, &r); err != nil {
				return err
			}
			return showMove(cmd.OutOrStdout(), r)
		},
	}
}

func showMove(w io.Writer, r controller.Record) error {
	at := func(hv, site string) string {
		if site == "" {
			return firstOf(hv, "?")
		}
		return hv + " (" + site + ")"
	}
	if err := fields(w,
		"move", r.ID,
		"vm", r.VM+"  "+eidList(r.EIDs),
		"way", at(r.From, r.FromSite)+" -> "+at(r.To, r.ToSite),
		"state", string(r.State)+": "+r.Why,
		"error", r.Error,
		"version", versionText(r.Version),
		"packets", fmt.Sprintf("held %d, redirected %d, replayed %d, dropped %s", r.Held, r.Redirected, r.Replayed, dropText(r.Dropped, "none")),
	); err != nil {
		return err
	}
	for _, s := range r.MapServers {
		says := firstOf(s.Error, "has not confirmed every EID")
		if !s.Accepted.IsZero() {
			says = fmt.Sprintf("confirmed version %d", s.Version)
		}
		fmt.Fprintf(w, "Map-Server %s %s\n", s.Server, says)
	}
	return timeLine(w, r)
}

// step is one point of a move's time line.
type step struct {
	at   time.Time
	name string
	what string
}

func steps(r controller.Record) []step {
	t := r.Times
	all := []step{
		{t.PrepareStarted, "prepare", "asked for"},
		{t.Prepared, "prepared", "both agents are ready"},
		{t.Paused, "paused", "the VM stopped on " + r.From},
		{t.Redirecting, "redirecting", r.From + " sends packets on to " + r.To},
		{t.Run, "run", "the VM runs on " + r.To},
		{t.Committed, "committed", "the controller knew"},
		{t.Claimed, "claimed", r.To + " has the EIDs, says a Map-Server to it"},
		{t.Pushed, "pushed", r.To + " has the EIDs, says a Map-Server to the controller"},
		{t.Flushed, "flushed", "what was held is delivered"},
		{t.Settled, "settled", r.From + " has forgotten the VM"},
		{t.Aborted, "aborted", "the VM is on " + r.From},
	}
	all = slices.DeleteFunc(all, func(s step) bool { return s.at.IsZero() })
	slices.SortStableFunc(all, func(a, b step) int { return a.at.Compare(b.at) })
	return all
}

// begin is the first time that is known of a move.
func begin(r controller.Record) time.Time {
	if s := steps(r); len(s) > 0 {
		return s[0].at
	}
	return time.Time{}
}

// gap is from which duration on the time line shows that time passed.
const gap = 50 * time.Millisecond

// timeLine draws a move from top to bottom: "#" while the VM ran nowhere. The clocks are the agents' and
// the controller's; they may differ.
func timeLine(w io.Writer, r controller.Record) error {
	list := steps(r)
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\ntime line, in seconds from %s\n", list[0].at.UTC().Format("2006-01-02 15:04:05.000Z"))
	tw := tabwriter.NewWriter(w, 8, 8, 2, ' ', tabwriter.AlignRight)
	dark := false
	for i, s := range list {
		if i > 0 {
			if d := s.at.Sub(list[i-1].at); d >= gap {
				fmt.Fprintf(tw, "\t  %s    %s\n", map[bool]string{true: "#", false: "|"}[dark], seconds(d)+" s")
			}
		}
		dark = dark && s.name != "run" && s.name != "aborted" || s.name == "paused"
		mark := "o"
		if dark {
			mark = "#"
		}
		fmt.Fprintf(tw, "%s\t  %s  %-12s %s\n", seconds(s.at.Sub(list[0].at)), mark, s.name, s.what)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if !r.Times.Paused.IsZero() && !r.Times.Run.IsZero() {
		_, err := fmt.Fprintf(w, "blackout %s s, run to pushed %s s\n", seconds(r.Times.Run.Sub(r.Times.Paused)), runToPushed(r.Times))
		return err
	}
	return nil
}

func runToPushed(t controller.Times) string {
	first := t.Pushed
	if first.IsZero() || !t.Claimed.IsZero() && t.Claimed.Before(first) {
		first = t.Claimed
	}
	if first.IsZero() {
		return "?"
	}
	return seconds(cmp.Or(first.Sub(t.Run), 0))
}

// seconds is d in seconds with milliseconds.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
