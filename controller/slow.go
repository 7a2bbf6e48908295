package controller

import (
	"fmt"
	"strings"
	"time"
)

// What makes a live migration endless: the guest changes its memory faster than the line carries it. QEMU goes on for
// ever then; here it is noticed.

const (
	// slowIterations is how many iterations in a row may end with no less to send than one before them.
	slowIterations = 3
	// slowMargin: what remains must shrink by more than 1/slowMargin to count.
	slowMargin = 20
	// maxConvergeDowntime bounds the downtime that on_slow=converge admits.
	maxConvergeDowntime = 5 * time.Second
	// defaultDowntime is QEMU's own limit.
	defaultDowntime = 300 * time.Millisecond
)

// figures says how far p has come.
func (p Progress) figures() string {
	out := []string{fmt.Sprintf("%s of %s remain", size(p.Remaining), size(p.Total))}
	if p.Sent > 0 {
		out = append(out, size(p.Sent)+" sent")
	}
	if p.Rate > 0 {
		out = append(out, "the line carries "+size(p.Rate)+"/s")
	}
	if p.DirtyRate > 0 {
		out = append(out, "the guest changes "+size(p.DirtyRate)+"/s")
	}
	if p.Iteration > 0 {
		out = append(out, fmt.Sprintf("iteration %d", p.Iteration))
	}
	if p.Downtime > 0 {
		out = append(out, "expected downtime "+p.Downtime.Round(time.Millisecond).String())
	}
	if p.Throttle > 0 {
		out = append(out, fmt.Sprintf("CPUs slowed down by %d %%", p.Throttle))
	}
	return strings.Join(out, ", ")
}

// size spells bytes for people.
func size(n uint64) string {
	f, unit := float64(n), 0
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGT"[unit-1])
}

// then is p after n was told: at the end a hypervisor may have forgotten how much it was.
func (p Progress) then(n Progress) Progress {
	if n.Phase == "failed" && n.Sent == 0 {
		p.Phase, p.Elapsed = n.Phase, max(p.Elapsed, n.Elapsed)
		return p
	}
	if n.Phase == "done" && n.Sent == 0 {
		n.Sent, n.DirtyRate = p.Sent, max(n.DirtyRate, p.DirtyRate)
	}
	return n
}

// progress takes what the driver tells.
func (g *migrator) progress(p Progress) {
	r := g.r
	if p.Phase != r.Progress.Phase && p.Phase == "post-copy" {
		r.Slow.PostCopy = true
		g.note("post-copy: it runs on the target, its memory follows (%s)", p.figures())
	}
	r.Progress = r.Progress.then(p)
	if r.stopping || r.postCopied() {
		return
	}
	w := &r.Slow
	if p.Sent != w.Sent || w.SentAt.IsZero() {
		w.Sent, w.SentAt = p.Sent, g.now
		w.Stalled = false
	}
	if p.Phase != "memory" || r.Request.Mode == ModeOffline || r.Request.Mode == ModePostCopy || p.Iteration == 0 || p.Iteration == w.Iteration {
		return
	}
	// A new iteration has begun: what remains now is what the guest has changed during the last one.
	w.Iteration = p.Iteration
	switch {
	case p.Iteration == 1:
		return // all of it remains
	case w.Least == 0 || p.Remaining < w.Least-w.Least/slowMargin:
		w.Least, w.Worse = max(p.Remaining, 1), 0
	default:
		w.Worse++
	}
	switch {
	case p.DirtyRate >= p.Rate && p.Rate > 0 && w.Worse >= slowIterations-1:
		g.slow(fmt.Sprintf("does not converge: the guest changes %s/s of its memory, the line carries %s/s; %s remain after %d iterations",
			size(p.DirtyRate), size(p.Rate), size(p.Remaining), p.Iteration))
	case w.Worse >= slowIterations:
		g.slow(fmt.Sprintf("does not converge: %s remain after %d iterations, and it was %s %d iterations ago (%s)",
			size(p.Remaining), p.Iteration, size(w.Least), w.Worse, p.figures()))
	}
}

// stalled looks whether anything is sent at all.
func (g *migrator) stalled() {
	r := g.r
	w := &r.Slow
	from := w.SentAt
	if from.IsZero() {
		from = r.Times.Migrating
	}
	if r.postCopied() || w.Stalled || !g.due(from.Add(g.timing.Stall)) {
		return
	}
	w.Stalled = true
	g.slow(fmt.Sprintf("stands still: nothing was sent for %v; %s", g.timing.Stall, r.Progress.figures()))
}

// slow does what on_slow says.
func (g *migrator) slow(why string) {
	r := g.r
	w := &r.Slow
	g.note("it %s", why)
	if w.At.IsZero() {
		w.At = g.now
	}
	switch r.Request.OnSlow {
	case SlowWait:
	case SlowPostCopy:
		if !r.steering && !w.Steered {
			w.Steered = true
			g.note("switching to post-copy")
			g.steer(Steering{PostCopy: true})
		}
	case SlowConverge:
		d := max(w.Downtime, time.Duration(r.Request.MaxDowntime))
		if d == 0 {
			d = defaultDowntime
		}
		if d >= maxConvergeDowntime || r.steering {
			return
		}
		w.Downtime, w.Worse = min(2*d, maxConvergeDowntime), 0
		g.note("a downtime of %v is admitted", w.Downtime)
		g.steer(Steering{MaxDowntime: w.Downtime})
	default:
		g.stop("it " + why)
	}
}

func (g *migrator) steer(s Steering) {
	g.r.steering = true
	g.do(gActSteer{s})
}

func (g *migrator) steered(ev gSteered) {
	r := g.r
	r.steering = false
	if r.Phase != MigrationMigrating {
		return
	}
	switch {
	case ev.err == nil:
		r.Slow.PostCopy = r.Slow.PostCopy || ev.s.PostCopy
	case ev.s.PostCopy && r.Request.OnSlow == SlowPostCopy && r.Slow.Steered:
		g.stop("it is too slow, and cannot be switched to post-copy: " + line(ev.err.Error()))
	default:
		g.note("the hypervisor does not do that: %s", line(ev.err.Error()))
	}
}
