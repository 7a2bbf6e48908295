package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/controller"
)

// Ways in which a migration ends for who looks on: exit statuses of `tabi migrate` and `tabi migration watch`.
const (
	exitRefused   = 2 // the preflight said no; nothing was begun
	exitFailed    = 3 // it failed; the VM goes on where it was
	exitCancelled = 4 // it was cancelled; the VM goes on where it was
	exitDetached  = 5 // it goes on, and nobody looks on any more
)

const exitHelp = `Exit status: 0 the VM runs at its target; 2 refused before anything was begun; 3 failed, 4 cancelled: the VM goes on
where it was; 5 detached: the migration goes on; 1 anything else (no controller, no such VM).`

// exitError ends the program with another status than 1. Without an error the output has said already what is wrong.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return errSilent.Error()
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error {
	if e.err == nil {
		return errSilent
	}
	return e.err
}

const (
	// askWithin bounds the request that begins a migration.
	askWithin = 30 * time.Second
	// lookEvery bounds one request that waits for news.
	lookEvery = 10 * time.Second
	// lineEvery is how often a line is printed where there is no terminal.
	lineEvery = 5 * time.Second
	// awayFor is how long a controller may be away before the watcher gives up; the migration goes on without both.
	awayFor = time.Minute
)

// follower looks on while a migration is under way.
type follower struct {
	api     *controllerClient
	out     io.Writer
	errs    io.Writer // what is no answer, while out is JSON
	width   int       // of the terminal that out is; 0 = it is none
	verbose bool

	signals chan os.Signal

	drawn   bool // two lines of a bar are on the terminal
	noted   int  // notes that were printed
	last    time.Time
	lastWas string
}

// newFollower is to be made before the migration is begun, so that an interrupt finds somebody who knows what to do
// about it. close lets interrupts end the program again.
func newFollower(cmd *cobra.Command, api *controllerClient, verbose bool) (f *follower, close func()) {
	f = &follower{api: api, out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), verbose: verbose, signals: make(chan os.Signal, 4)}
	if !api.json {
		f.width = terminalWidth(f.out)
	}
	signal.Notify(f.signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return f, func() { signal.Stop(f.signals) }
}

// begin asks for a migration, or for one that is there, and looks on. An interrupt in the meantime is heard afterwards.
func (f *follower) begin(ctx context.Context, method, path string, in any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askWithin)
	defer cancel()
	var raw json.RawMessage
	if _, err := f.api.do(ctx, method, path, in, &raw); err != nil {
		return refusedError(err)
	}
	var m controller.MigrationStatus
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	return f.follow(m, raw)
}

// terminalWidth is how wide the terminal is that w writes to; 0 = it is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	s, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if s.Col == 0 {
		return 80
	}
	return int(s.Col)
}

func migrationPath(id, verb string) string { return "/v1/migrations/" + url.PathEscape(id) + verb }

// look waits for news of a migration, or until wait is over.
func (f *follower) look(ctx context.Context, id string, after uint64) (controller.MigrationStatus, json.RawMessage, error) {
	var raw json.RawMessage
	var m controller.MigrationStatus
	_, err := f.api.do(ctx, "GET", migrationPath(id, fmt.Sprintf("?wait=%v&after=%d", lookEvery, after)), nil, &raw)
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	return m, raw, err
}

// follow looks on until the migration has ended. The first interrupt cancels it and waits on, the second ends the
// looking on; SIGTERM and SIGHUP end only that.
func (f *follower) follow(m controller.MigrationStatus, raw json.RawMessage) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type news struct {
		m   controller.MigrationStatus
		raw json.RawMessage
		err error
	}
	heard := make(chan news)
	id, after := m.ID, m.Seq
	go func() {
		for {
			n := news{}
			n.m, n.raw, n.err = f.look(ctx, id, after)
			if n.err == nil {
				after = n.m.Seq
			}
			select {
			case heard <- n:
			case <-ctx.Done():
				return
			}
			if n.err != nil {
				select { // it restarts
				case <-time.After(500 * time.Millisecond):
				case <-ctx.Done():
					return
				}
			}
		}
	}()

	f.tell(m, raw, true)
	interrupts := 0
	var away time.Time
	clock := time.NewTicker(250 * time.Millisecond)
	defer clock.Stop()
	for !m.Phase.Ended() {
		select {
		case n := <-heard:
			if n.err == nil {
				fresh := n.m.Seq != m.Seq
				m, raw, away = n.m, n.raw, time.Time{}
				f.tell(m, raw, fresh)
				continue
			}
			var status *apiError
			if errors.As(n.err, &status) && status.status < 500 {
				f.clear()
				return n.err
			}
			if away.IsZero() {
				away = time.Now()
				f.say(fmt.Sprintf("the controller is away (%v); looking again", n.err))
			} else if time.Since(away) > awayFor {
				f.clear()
				return f.detached(m, fmt.Sprintf("the controller is away since %s", spanText(awayFor)))
			}
		case <-clock.C:
			if f.width > 0 {
				f.draw(m)
			}
		case s := <-f.signals:
			if s != os.Interrupt {
				f.clear()
				return f.detached(m, "stopped looking on")
			}
			if interrupts++; interrupts > 1 {
				f.clear()
				return f.detached(m, "stopped looking on; it is still being cancelled")
			}
			f.say("cancelling; the VM goes on at " + m.From + ". Again to stop looking on")
			go func() {
				if _, err := f.api.do(ctx, "POST", migrationPath(id, "/cancel"), nil, nil); err != nil && ctx.Err() == nil {
					select {
					case heard <- news{err: fmt.Errorf("cancel: %w", err)}:
					case <-ctx.Done():
					}
				}
			}()
		}
	}
	return f.ended(m)
}

func (f *follower) detached(m controller.MigrationStatus, why string) error {
	// Whether the controller hears it changes nothing.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = f.api.do(ctx, "POST", migrationPath(m.ID, "/detach"), nil, nil)
	return &exitError{exitDetached, fmt.Errorf("%s. To look on: tabi migration watch %s   To end it: tabi migration cancel %s", why, m.ID, m.ID)}
}

// say prints something that happened, above the bar.
func (f *follower) say(text string) {
	if f.api.json {
		fmt.Fprintln(f.errs, "tabi:", text)
		return
	}
	f.clear()
	fmt.Fprintln(f.out, text)
}

// tell prints news. With JSON each is a line: the migration as the API has it; the last one has ended.
func (f *follower) tell(m controller.MigrationStatus, raw json.RawMessage, fresh bool) {
	if f.api.json {
		if !fresh {
			return
		}
		var line bytes.Buffer
		if json.Compact(&line, raw) == nil {
			line.WriteByte('\n')
			_, _ = line.WriteTo(f.out) // a pipe that is closed ends us by SIGPIPE
		}
		return
	}
	for ; f.noted < len(m.Notes); f.noted++ {
		n := m.Notes[f.noted]
		f.clear()
		fmt.Fprintf(f.out, "%8s  note: %s\n", spanText(elapsedAt(m, n.At)), n.Text)
	}
	if f.width > 0 {
		f.draw(m)
		return
	}
	was := string(m.Phase) + m.Progress.Phase
	if was != f.lastWas && !m.Phase.Ended() || m.Phase == controller.MigrationMigrating && time.Since(f.last) >= lineEvery {
		fmt.Fprintln(f.out, lineMigration(m, time.Now()))
		f.last, f.lastWas = time.Now(), was
	}
}

// elapsedAt is when in a migration something happened.
func elapsedAt(m controller.MigrationStatus, at time.Time) time.Duration {
	for _, t := range []time.Time{m.Times.Migrating, m.Times.Started, m.Times.Asked} {
		if !t.IsZero() && !at.Before(t) {
			return at.Sub(t)
		}
	}
	return 0
}

// clear takes the bar off the terminal.
func (f *follower) clear() {
	if f.drawn {
		fmt.Fprint(f.out, "\x1b[1A\r\x1b[J")
		f.drawn = false
	}
}

// draw puts the bar where it was.
func (f *follower) draw(m controller.MigrationStatus) {
	if m.Phase.Ended() {
		return
	}
	if w := terminalWidth(f.out); w > 0 {
		f.width = w
	}
	lines := drawMigration(m, f.width-1, time.Now())
	f.clear()
	fmt.Fprintf(f.out, "%s\n%s", lines[0], lines[1])
	f.drawn = true
}

// ended prints how it went, and says it with the exit status.
func (f *follower) ended(m controller.MigrationStatus) error {
	f.clear()
	code := exitFailed
	switch m.Phase {
	case controller.MigrationDone:
		if f.api.json {
			return nil
		}
		_, err := fmt.Fprintln(f.out, doneText(m))
		if err == nil && f.verbose && m.Move != "" {
			_, err = fmt.Fprintf(f.out, "its move, with what was held, redirected and replayed: tabi move show %s\n", m.Move)
		}
		return err
	case controller.MigrationCancelled:
		code = exitCancelled
	}
	return &exitError{code, errors.New(failedText(m, f.verbose))}
}

// failedText says in one line why a VM stayed; with all, everything that is known.
func failedText(m controller.MigrationStatus, all bool) string {
	s := fmt.Sprintf("%s goes on at %s: %s", m.VM, m.From, firstOf(m.Error, m.Cancel, string(m.Phase)))
	switch {
	case m.Detail == "" || m.Detail == m.Error:
	case all:
		s += "\n" + strings.TrimSpace(m.Detail)
	default:
		s += " (the whole story: tabi migration show -v " + m.ID + ")"
	}
	return s
}
