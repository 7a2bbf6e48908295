package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/controller"
)

// drainEvery is how often a drain is looked at.
const drainEvery = 500 * time.Millisecond

func newDrainCommand(n *noun) *cobra.Command {
	var o migrateOptions
	var site string
	var dryRun, detach bool
	c := &cobra.Command{
		Use: "drain HYPERVISOR", Short: "Move all VMs of a hypervisor elsewhere, and let none come", Args: cobra.ExactArgs(1),
		Long: `Move all VMs of a hypervisor elsewhere, and let none come any more until "tabi hv undrain". Where each goes is decided
by the sites' policies and free capacity; migrations over one link wait for each other. --dry-run prints the plan.

VMs of a hypervisor without a driver are not moved by tabi: they are listed with where they should go, for whoever moves
them. Ctrl-C calls off what has not begun, and waits for what has; Ctrl-C again stops looking on only.

Exit status: 0 nothing runs there any more; 2 refused; 3 some VMs have stayed; 4 called off; 5 stopped looking on, it goes on.`,
		Example: `  tabi hv drain nezu-hv1 --dry-run
  tabi hv drain nezu-hv1 --bandwidth 1G --on-slow postcopy
  tabi hv drain nezu-hv1 --detach --json`,
		ValidArgsFunction: completeNames(&n.api, n.path, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request()
			if err != nil {
				return err
			}
			req.Site = site
			var raw json.RawMessage
			if _, err := n.api.do(cmd.Context(), "POST", n.one(args[0])+"/drain", controller.DrainRequest{MigrationRequest: req, PlanOnly: dryRun}, &raw); err != nil {
				return refusedError(err)
			}
			if dryRun {
				return n.print(cmd, raw, listed("VM TO WHY", func(m controller.PlannedMove) []string {
					return []string{m.VM, firstOf(m.To, "nowhere"), firstOf(m.Error, m.Why)}
				}))
			}
			var d controller.DrainStatus
			if err := json.Unmarshal(raw, &d); err != nil {
				return err
			}
			if detach {
				return n.print(cmd, raw, func(w io.Writer, _ json.RawMessage) error {
					_, err := fmt.Fprintf(w, "%s. To look on: tabi hv drain %s   To call it off: tabi hv undrain %s\n", drainText(d), d.Hypervisor, d.Hypervisor)
					return err
				})
			}
			w := &drainWatcher{n: n, out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr()}
			if !n.api.json {
				w.width = terminalWidth(w.out)
			}
			return w.follow(d, raw)
		},
	}
	o.flags(c)
	c.Flags().StringVar(&site, "site", "", "move them to this site only")
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "print where each VM would go, and do nothing")
	c.Flags().BoolVar(&detach, "detach", false, "do not look on")
	c.MarkFlagsMutuallyExclusive("dry-run", "detach")
	must(c.RegisterFlagCompletionFunc("site", completeNames(&n.api, "/v1/sites", false)))
	return c
}

func newUndrainCommand(n *noun) *cobra.Command {
	return &cobra.Command{
		Use: "undrain HYPERVISOR...", Short: "Let VMs come again; call off what has not moved yet", Args: cobra.MinimumNArgs(1),
		Example:           "  tabi hv undrain nezu-hv1",
		ValidArgsFunction: completeNames(&n.api, n.path, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				var raw json.RawMessage
				if _, err := n.api.do(cmd.Context(), "POST", n.one(name)+"/undrain", nil, &raw); err != nil {
					return err
				}
				if n.api.json {
					if err := printJSON(cmd.OutOrStdout(), raw); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "hypervisor %s takes VMs again\n", name)
			}
			return nil
		},
	}
}

// drainText is how far a drain has come, on one line.
func drainText(d controller.DrainStatus) string {
	parts := []string{fmt.Sprintf("%s: %d of %s moved", d.Hypervisor, d.Done, count(d.Total, "VM"))}
	for _, c := range []struct {
		n    int
		text string
	}{{d.UnderWay, "%d under way"}, {d.Failed, "%d stayed"}, {d.External, "%d for others to move"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf(c.text, c.n))
		}
	}
	return strings.Join(parts, ", ")
}

// drawDrain draws a drain as one line of a terminal that is so many columns wide.
func drawDrain(d controller.DrainStatus, width int) string {
	part := 100
	if d.Total > 0 {
		part = d.Done * 100 / d.Total
	}
	text := []string{drainText(d)}
	if d.Bytes > 0 {
		text = append(text, bytesText(d.BytesDone)+" of "+bytesText(d.Bytes))
	}
	cells := max(min(maxBar, width-len(text[0])-len("[]  ")), minBar)
	return fit(append([]string{bar(part, cells)}, text...), "  ", width)
}

// drainWatcher looks on while a hypervisor is drained.
type drainWatcher struct {
	n         *noun
	out, errs io.Writer
	width     int // of the terminal that out is; 0 = it is none
	drawn     bool
	last      string
}

// say prints something that happened.
func (w *drainWatcher) say(text string) {
	if w.n.api.json {
		fmt.Fprintln(w.errs, "tabi:", text)
		return
	}
	w.clear()
	fmt.Fprintln(w.out, text)
}

func (w *drainWatcher) clear() {
	if w.drawn {
		fmt.Fprint(w.out, "\r\x1b[K")
		w.drawn = false
	}
}

// tell prints how far it is: JSON lines, a bar, or a line when something changed.
func (w *drainWatcher) tell(d controller.DrainStatus, raw json.RawMessage) {
	switch {
	case w.n.api.json:
		if s := string(raw); s != w.last {
			w.last = s
			var line strings.Builder
			if json.NewEncoder(&line).Encode(raw) == nil {
				fmt.Fprint(w.out, line.String())
			}
		}
	case w.width > 0:
		w.clear()
		fmt.Fprint(w.out, drawDrain(d, w.width-1))
		w.drawn = true
	default:
		if s := drainText(d); s != w.last {
			w.last = s
			fmt.Fprintln(w.out, s)
		}
	}
}

// follow looks on until nothing is under way any more.
func (w *drainWatcher) follow(d controller.DrainStatus, raw json.RawMessage) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	clock := time.NewTicker(drainEvery)
	defer clock.Stop()
	var away time.Time
	calledOff := false
	w.tell(d, raw)
	for d.UnderWay > 0 {
		select {
		case <-clock.C:
			next, nextRaw, err := w.look(d.Hypervisor)
			var status *apiError
			switch {
			case err == nil:
				d, raw, away = next, nextRaw, time.Time{}
				w.tell(d, raw)
			case errors.As(err, &status) && status.status < 500:
				w.clear()
				return err
			case away.IsZero():
				away = time.Now()
				w.say(fmt.Sprintf("the controller is away (%v); looking again", err))
			case time.Since(away) > awayFor:
				w.clear()
				return &exitError{exitDetached, fmt.Errorf("the controller is away since %s; what was begun goes on", spanText(awayFor))}
			}
		case s := <-signals:
			if s != os.Interrupt || calledOff {
				w.clear()
				return &exitError{exitDetached, fmt.Errorf("stopped looking on; it goes on. To look on again: tabi hv drain %s   To call it off: tabi hv undrain %s", d.Hypervisor, d.Hypervisor)}
			}
			calledOff = true
			w.say("calling off what has not begun, and waiting for what has. Again to stop looking on")
			ctx, cancel := context.WithTimeout(context.Background(), lookEvery)
			_, err := w.n.api.do(ctx, "POST", w.n.one(d.Hypervisor)+"/undrain", nil, nil)
			cancel()
			if err != nil {
				w.say(fmt.Sprintf("not called off: %v", err))
			}
		}
	}
	w.clear()
	return w.ended(d, calledOff)
}

func (w *drainWatcher) look(hv string) (d controller.DrainStatus, raw json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookEvery)
	defer cancel()
	if _, err = w.n.api.do(ctx, "GET", w.n.one(hv)+"/drain", nil, &raw); err == nil {
		err = json.Unmarshal(raw, &d)
	}
	return d, raw, err
}

// ended says how it went, and which VMs are still there.
func (w *drainWatcher) ended(d controller.DrainStatus, calledOff bool) error {
	if !w.n.api.json {
		if w.last != drainText(d) {
			fmt.Fprintln(w.out, drainText(d))
		}
		var rows [][]string
		for _, m := range d.Moves {
			if m.Phase != controller.MigrationDone {
				rows = append(rows, []string{m.VM, m.To, string(m.Phase), firstOf(m.Error, m.Why)})
			}
		}
		if len(rows) > 0 {
			if err := columns(w.out, "VM TO PHASE WHY", rows); err != nil {
				return err
			}
		}
	}
	switch {
	case d.Complete:
		return nil
	case calledOff:
		return &exitError{exitCancelled, fmt.Errorf("%s: called off; VMs may come again", d.Hypervisor)}
	case d.Failed > 0:
		return &exitError{exitFailed, fmt.Errorf("%s: %s stayed. To try again: tabi hv drain %s", d.Hypervisor, count(d.Failed, "VM"), d.Hypervisor)}
	}
	return &exitError{exitFailed, fmt.Errorf("%s: %s for others to move: it has no driver", d.Hypervisor, count(d.External, "VM"))}
}
