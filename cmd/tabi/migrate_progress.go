package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/controller"
)

// How a migration looks while it is under way: pure functions of what the controller says.

// phaseText is what a migration does, in a few words.
func phaseText(m controller.MigrationStatus) string {
	switch m.Phase {
	case controller.MigrationQueued:
		if m.Queue > 0 {
			return fmt.Sprintf("waits for the link %s, place %d", m.Link, m.Queue)
		}
		return "waits for the link " + m.Link
	case controller.MigrationMigrating:
		if m.Progress.Phase != "" {
			return m.Progress.Phase
		}
	case controller.MigrationLocating:
		return "asking where it runs"
	case controller.MigrationFinishing:
		return "telling the Map-Servers"
	}
	return string(m.Phase)
}

// elapsed is how long a migration has been at it: in the queue, or out of it.
func elapsed(m controller.MigrationStatus, now time.Time) time.Duration {
	since := m.Times.Asked
	for _, t := range []time.Time{m.Times.Started, m.Times.Migrating} {
		if !t.IsZero() {
			since = t
		}
	}
	if m.Phase == controller.MigrationMigrating && m.Progress.Elapsed > 0 {
		return m.Progress.Elapsed
	}
	if since.IsZero() || now.Before(since) {
		return 0
	}
	return now.Sub(since)
}

// diverges reports whether a guest changes its memory as fast as it is sent.
func diverges(p controller.Progress) bool {
	return p.Phase == "memory" && p.Iteration > 1 && p.Rate > 0 && p.DirtyRate >= p.Rate
}

// leftText is how long what remains will take at this rate; "" = nobody knows.
func leftText(p controller.Progress) string {
	if p.Remaining == 0 || p.Rate <= p.DirtyRate {
		return ""
	}
	s := float64(p.Remaining) / float64(p.Rate-p.DirtyRate)
	if s > 1e6 {
		return ""
	}
	return spanText(time.Duration(s*float64(time.Second))) + " left"
}

// percent is how much of all is there, 0 to 100; -1 = nobody knows what all is.
func percent(p controller.Progress) int {
	switch {
	case p.Total == 0:
		return -1
	case p.Done >= p.Total:
		return 100
	}
	return int(float64(p.Done) / float64(p.Total) * 100)
}

// facts are the figures of a migration's progress, the most important first.
func facts(p controller.Progress) []string {
	if p.Total == 0 {
		return nil
	}
	out := []string{
		fmt.Sprintf("%3d%%", percent(p)),
		bytesText(p.Done) + " of " + bytesText(p.Total),
		bytesText(p.Rate) + "/s",
	}
	if p.DirtyRate > 0 {
		out = append(out, "dirty "+bytesText(p.DirtyRate)+"/s")
	}
	if left := leftText(p); left != "" {
		out = append(out, left)
	}
	if p.Downtime > 0 {
		out = append(out, "downtime "+spanText(p.Downtime))
	}
	return out
}

// marks are what is special about a migration now.
func marks(p controller.Progress) []string {
	var out []string
	if p.Iteration > 0 {
		out = append(out, fmt.Sprintf("iteration %d", p.Iteration))
	}
	if p.Throttle > 0 {
		out = append(out, fmt.Sprintf("VM slowed by %d%%", p.Throttle))
	}
	if diverges(p) {
		out = append(out, "does not converge")
	}
	return out
}

const (
	minBar = 8
	maxBar = 30
)

// bar draws done of width cells.
func bar(percent, width int) string {
	full := min(max(percent, 0)*width/100, width)
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
}

// drawMigration draws a migration as two lines of a terminal that is so many columns wide: what it does, and how far it
// is. What does not fit is left out from the end.
func drawMigration(m controller.MigrationStatus, width int, now time.Time) [2]string {
	head := append([]string{m.VM, m.From + " -> " + firstOf(m.To, "?"), phaseText(m), spanText(elapsed(m, now))}, marks(m.Progress)...)
	if m.Cancel != "" {
		head = append(head, "being cancelled")
	}
	figures := facts(m.Progress)
	if len(figures) == 0 {
		return [2]string{fit(head, "  ", width), ""}
	}
	text := strings.Join(figures, "  ")
	cells := min(maxBar, width-len(text)-len("[]  "))
	if cells < minBar {
		cells = minBar
	}
	return [2]string{fit(head, "  ", width), fit(append([]string{bar(percent(m.Progress), cells)}, figures...), "  ", width)}
}

// fit joins as many of the parts as there is room for; the first one is cut if need be.
func fit(parts []string, sep string, width int) string {
	out := ""
	for i, p := range parts {
		if p == "" {
			continue
		}
		next := p
		if out != "" {
			next = out + sep + p
		}
		if len([]rune(next)) > width {
			if i == 0 {
				return string([]rune(next)[:max(width, 0)])
			}
			break
		}
		out = next
	}
	return out
}

// lineMigration is the same as one line, for what is no terminal.
func lineMigration(m controller.MigrationStatus, now time.Time) string {
	parts := append([]string{fmt.Sprintf("%8s", spanText(elapsed(m, now))), fmt.Sprintf("%-10s", phaseText(m))}, facts(m.Progress)...)
	parts = append(parts, marks(m.Progress)...)
	return strings.TrimRight(strings.Join(parts, "  "), " ")
}

// doneText says how a migration that has arrived went.
func doneText(m controller.MigrationStatus) string {
	s := fmt.Sprintf("%s runs on %s", m.VM, m.To)
	if !m.Times.Migrating.IsZero() && !m.Times.Ended.IsZero() {
		s += ": " + spanText(m.Times.Ended.Sub(m.Times.Migrating))
		if m.Progress.Sent > 0 {
			s += ", " + bytesText(m.Progress.Sent) + " sent"
		}
		if m.Progress.Iteration > 0 {
			s += ", " + count(m.Progress.Iteration, "iteration")
		}
		if m.Progress.Downtime > 0 {
			s += ", downtime " + spanText(m.Progress.Downtime)
		}
	}
	return s
}
