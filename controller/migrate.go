package controller

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The life of one migration, as a pure function, like that of a move in machine.go: step takes the record, what
// happened and the time, and returns the record after it, what is to be done, and when to come back. The caller makes
// the record durable before it does anything. slow.go notices that a migration gets nowhere.

// gEvent is something that happened to a migration.
type gEvent interface{ isGEvent() }

type (
	// gTick: time passed.
	gTick struct{}
	// gRestart: the controller has just started; nothing that it began is under way, as far as it knows.
	gRestart struct{}
	// gAdmit: it is its turn on its link.
	gAdmit struct{}
	// gPreflight answers gActPreflight.
	gPreflight struct {
		pf    Preflight
		guest string // its name at the source's driver
		off   bool   // it does not run: nothing of it is reachable, and there is nothing to hold packets for
		dest  string
		via   string
		err   string // one line; "" = go on
	}
	// gMove: the migration's move is in this state now.
	gMove struct {
		state State
		why   string
	}
	// gNoMove: the move could not even begin.
	gNoMove struct{ err error }
	// gProgress is what the driver tells meanwhile.
	gProgress struct{ p Progress }
	// gDriver answers gActMigrate: how it went.
	gDriver struct {
		err error
		p   *Progress // the last; nil = there was none
	}
	// gSteered answers gActSteer.
	gSteered struct {
		s   Steering
		err error
	}
	// gWhere answers gActWhere: what the source's and the target's driver say.
	gWhere struct{ source, target Sighting }
	// gCancel: somebody wishes it to end.
	gCancel struct{ why string }
	// gPostCopy: somebody wishes it to switch over.
	gPostCopy struct{}
	// gNote: somebody has something to say.
	gNote struct{ text string }
)

func (gTick) isGEvent()      {}
func (gRestart) isGEvent()   {}
func (gAdmit) isGEvent()     {}
func (gPreflight) isGEvent() {}
func (gMove) isGEvent()      {}
func (gNoMove) isGEvent()    {}
func (gProgress) isGEvent()  {}
func (gDriver) isGEvent()    {}
func (gSteered) isGEvent()   {}
func (gWhere) isGEvent()     {}
func (gCancel) isGEvent()    {}
func (gPostCopy) isGEvent()  {}
func (gNote) isGEvent()      {}

// gAction is something to do for a migration.
type gAction interface{ isGAction() }

type (
	gActPreflight struct{}                // answered by gPreflight
	gActPrepare   struct{}                // begins the move; gMove or gNoMove follow
	gActMigrate   struct{}                // answered by gDriver
	gActStop      struct{ why string }    // ends the driver's Migrate; gDriver follows
	gActSteer     struct{ s Steering }    // answered by gSteered
	gActWhere     struct{}                // answered by gWhere
	gActCommit    struct{ why string }    // the move: gMove follows
	gActAbort     struct{ why string }    // the move: gMove follows
	gActPlaced    struct{}                // the VM is at the target now
	gActLearn     struct{ memory uint64 } // the link carried so many bytes a second
)

func (gActPreflight) isGAction() {}
func (gActPrepare) isGAction()   {}
func (gActMigrate) isGAction()   {}
func (gActStop) isGAction()      {}
func (gActSteer) isGAction()     {}
func (gActWhere) isGAction()     {}
func (gActCommit) isGAction()    {}
func (gActAbort) isGAction()     {}
func (gActPlaced) isGAction()    {}
func (gActLearn) isGAction()     {}

// migrator is one call of step.
type migrator struct {
	timing Timing
	r      *MigrationRecord
	now    time.Time
	acts   []gAction
	next   time.Time
}

func stepMigration(t Timing, old MigrationRecord, ev gEvent, now time.Time) (r MigrationRecord, acts []gAction, next time.Time) {
	r = old.clone()
	g := migrator{timing: t, r: &r, now: now}
	if !r.Phase.Ended() {
		g.apply(ev)
		g.wait()
	}
	return r, g.acts, g.next
}

func (g *migrator) do(a gAction) { g.acts = append(g.acts, a) }

func (g *migrator) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if n := len(g.r.Notes); n > 0 && g.r.Notes[n-1].Text == text {
		return
	}
	if len(g.r.Notes) >= maxNotes {
		g.r.Notes = append(g.r.Notes[:1], g.r.Notes[2:]...)
	}
	g.r.Notes = append(g.r.Notes, Note{g.now, text})
}

// maxNotes bounds the notes of a migration: the first and the latest are kept.
const maxNotes = 200

// enter goes to a phase and does what it begins with.
func (g *migrator) enter(p MigrationPhase) {
	r := g.r
	r.Phase, r.since, r.busy = p, g.now, false
	switch p {
	case MigrationPreflight:
		r.Times.Started = g.now
		g.do(gActPreflight{})
	case MigrationPreparing:
		g.do(gActPrepare{})
	case MigrationMigrating:
		r.Times.Migrating, r.running = g.now, true
		g.do(gActMigrate{})
	case MigrationLocating:
		g.look()
	case MigrationFinishing:
		r.Error, r.Detail = "", "" // what went wrong on the way is in the notes
		if r.Move == "" {
			g.do(gActPlaced{})
			g.done()
			return
		}
		g.do(gActCommit{"the hypervisors say that it runs on the target"})
	case MigrationUndoing:
		if r.Move == "" {
			g.stayed()
			return
		}
		g.do(gActAbort{or(r.Cancel, r.Error)})
	}
}

func (g *migrator) done() {
	r := g.r
	r.Cancel = ""
	r.Progress.Phase = "done"
	r.Phase, r.Times.Ended = MigrationDone, g.now
	if d := r.Progress.Elapsed; d > 0 && r.Progress.Sent >= learnFrom && (r.Request.Bandwidth == 0) {
		g.do(gActLearn{uint64(float64(r.Progress.Sent) / d.Seconds())})
	}
}

// learnFrom is how many bytes must have been sent to say something about a link's bandwidth.
const learnFrom = 8 << 20

// stayed ends a migration whose VM stays where it was.
func (g *migrator) stayed() {
	r := g.r
	r.Phase, r.Times.Ended = MigrationFailed, g.now
	if r.Cancel != "" && r.Error == "" {
		r.Phase = MigrationCancelled
		r.Error = "cancelled: " + r.Cancel
	}
	r.Detail = g.story()
}

// story is the whole of what led to an error.
func (g *migrator) story() string {
	r := g.r
	var b strings.Builder
	fmt.Fprintf(&b, "migration %s of %s from %s to %s: %s\n", r.ID, r.VM, r.From, or(r.To, "?"), r.Error)
	if r.Detail != "" {
		fmt.Fprintf(&b, "%s\n", strings.TrimSpace(r.Detail))
	}
	for _, c := range r.Checks {
		if c.Status == CheckFail { // what was only doubtful is among the notes
			fmt.Fprintf(&b, "preflight, %s: %s\n", c.Name, c.Text)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s %s\n", n.At.UTC().Format("15:04:05.000Z"), n.Text)
	}
	if p := r.Progress; p.Total > 0 {
		fmt.Fprintf(&b, "it had come to: %s\n", p.figures())
	}
	return strings.TrimSpace(b.String())
}

// fail ends the attempt: what was begun is undone.
func (g *migrator) fail(err, detail string) {
	g.r.Error, g.r.Detail = line(err), detail
	g.enter(MigrationUndoing)
}

// stopCause is why a context of [Driver.Migrate] ended, if it was on purpose.
type stopCause string

func (s stopCause) Error() string { return string(s) }

// line is the first line of s, not too long.
func line(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}

// wait says when to come back, and does what is due.
func (g *migrator) wait() {
	r := g.r
	switch r.Phase {
	case MigrationMigrating:
		g.timeout()
		if r.Phase == MigrationMigrating && !r.stopping {
			g.stalled()
		}
	case MigrationLocating:
		if !r.busy && g.due(r.unclear.Add(g.timing.Locate)) {
			g.look()
		}
	case MigrationFinishing:
		if g.due(r.since.Add(g.timing.Finish)) {
			g.note("no Map-Server has confirmed the new mapping in %v; the agents and the move go on with that", g.timing.Finish)
			g.done()
		}
	}
}

// due reports whether t has come, and else wakes then.
func (g *migrator) due(t time.Time) bool {
	if t.After(g.now) {
		if g.next.IsZero() || t.Before(g.next) {
			g.next = t
		}
		return false
	}
	return true
}

// postCopied: it runs at the target already, so that there is nothing to cancel.
func (r *MigrationRecord) postCopied() bool {
	return r.Progress.Phase == "post-copy" || r.Slow.PostCopy
}

func (g *migrator) timeout() {
	r := g.r
	if r.Request.Timeout <= 0 || r.stopping || !g.due(r.Times.Migrating.Add(time.Duration(r.Request.Timeout))) {
		return
	}
	if r.postCopied() {
		g.note("the timeout of %v is over, but it is past the switch: it must go on", time.Duration(r.Request.Timeout))
		r.Request.Timeout = 0
		return
	}
	g.stop(fmt.Sprintf("timeout: not done in %v: %s", time.Duration(r.Request.Timeout), r.Progress.figures()))
}

// stop ends the driver's work; why is what the migration failed of.
func (g *migrator) stop(why string) {
	r := g.r
	if r.stopping {
		return
	}
	r.stopping = true
	r.Error = why
	g.note("giving up: %s", why)
	g.do(gActStop{why})
}

func (g *migrator) look() {
	g.r.busy = true
	g.do(gActWhere{})
}

func (g *migrator) apply(ev gEvent) {
	r := g.r
	switch ev := ev.(type) {
	case gRestart:
		g.restart()
	case gAdmit:
		if r.Phase == MigrationQueued {
			g.enter(MigrationPreflight)
		}
	case gPreflight:
		g.preflight(ev)
	case gMove:
		g.moved(ev)
	case gNoMove:
		if r.Phase == MigrationPreparing {
			r.Move = ""
			g.fail("prepare: "+ev.err.Error(), "")
		}
	case gProgress:
		if r.Phase == MigrationMigrating {
			g.progress(ev.p)
		}
	case gDriver:
		g.driver(ev)
	case gSteered:
		g.steered(ev)
	case gWhere:
		g.where(ev)
	case gCancel:
		g.cancel(ev.why)
	case gPostCopy:
		if r.Phase == MigrationMigrating && !r.postCopied() && !r.steering {
			g.note("switching to post-copy, as asked for")
			g.steer(Steering{PostCopy: true})
		}
	case gNote:
		g.note("%s", ev.text)
	}
}

func (g *migrator) restart() {
	r := g.r
	r.since = g.now
	switch r.Phase {
	case MigrationPreflight:
		g.do(gActPreflight{})
	case MigrationPreparing:
		g.do(gActPrepare{}) // idempotent
	case MigrationMigrating:
		g.note("the controller was restarted in the middle: the hypervisors are being asked")
		r.running = false
		g.enter(MigrationLocating)
	case MigrationLocating:
		g.look()
	case MigrationFinishing, MigrationUndoing:
		g.enter(r.Phase)
	}
}

func (g *migrator) preflight(ev gPreflight) {
	r := g.r
	if r.Phase != MigrationPreflight {
		return
	}
	r.Checks, r.Estimate, r.Guest, r.Off, r.Dest, r.Via = ev.pf.Checks, ev.pf.Estimate, ev.guest, ev.off, ev.dest, ev.via
	if ev.pf.To != "" {
		r.To, r.ToSite, r.Why = ev.pf.To, ev.pf.ToSite, ev.pf.Why
	}
	for _, c := range r.Checks {
		if c.Status == CheckWarn {
			g.note("preflight: %s: %s", c.Name, c.Text)
		}
	}
	switch {
	case ev.err != "":
		g.fail("preflight: "+ev.err, "")
	case r.Off:
		r.Request.Mode = ModeOffline
		g.enter(MigrationMigrating)
	default:
		r.Move = r.ID
		g.enter(MigrationPreparing)
	}
}

// moved: how the move does. Only what the drivers say decides where the VM is; the move follows.
func (g *migrator) moved(ev gMove) {
	r := g.r
	switch r.Phase {
	case MigrationPreparing:
		switch {
		case ev.state == Prepared:
			g.enter(MigrationMigrating)
		case ev.state.arrived():
			g.note("the agents saw it run on the target before it was sent: %s", ev.why)
			g.enter(MigrationLocating)
		case ev.state == Aborted:
			g.fail("prepare: "+ev.why, "")
		}
	case MigrationMigrating:
		switch {
		case (ev.state == Aborting || ev.state == Aborted) && r.stopping:
		case ev.state == Aborting && !r.postCopied():
			// Perhaps because it has failed, and the driver will say of what.
			r.undone, r.stopping = ev.why, true
			g.note("the move is being undone: %s", ev.why)
			g.do(gActStop{ev.why})
		case ev.state == Aborting:
			g.note("the move was undone, after the switch: %s", ev.why)
		}
	case MigrationFinishing:
		switch {
		case ev.state == Pushed || ev.state == Settled || ev.state == Superseded:
			g.done()
		case ev.state == Aborted:
			// The agents found out by themselves, and it was written down as another move.
			g.note("its move had been undone: %s", ev.why)
			g.do(gActPlaced{})
			g.done()
		}
	case MigrationUndoing:
		switch {
		case ev.state == Aborted:
			g.stayed()
		case ev.state.arrived() && r.contested:
			g.note("the agents say that it runs on the target, the hypervisors that it does not")
			g.stayed()
		case ev.state.arrived():
			r.contested = true
			g.note("the agents see it run on the target after all: %s", ev.why)
			g.enter(MigrationLocating)
		}
	}
}

func (g *migrator) driver(ev gDriver) {
	r := g.r
	r.running = false
	if ev.p != nil {
		r.Progress = r.Progress.then(*ev.p)
	}
	if r.Phase != MigrationMigrating {
		return
	}
	var unclear *ErrMigrationUnclear
	switch {
	case ev.err == nil:
		if r.stopping {
			g.note("it was too late to stop: it runs on the target")
		}
		g.enter(MigrationFinishing)
	case errors.As(ev.err, &unclear):
		g.note("%v", ev.err)
		r.Error, r.Detail = line(or(r.Error, ev.err.Error())), ev.err.Error()
		g.enter(MigrationLocating)
	default:
		if r.stopping && (r.Error != "" || r.Cancel != "") { // the cause is known: the driver's error is what came of it
			r.Detail = ev.err.Error()
			g.enter(MigrationUndoing)
			return
		}
		if errors.As(ev.err, new(stopCause)) && r.undone != "" {
			g.fail("the move was undone: "+r.undone, ev.err.Error())
			return
		}
		g.fail("the hypervisor: "+ev.err.Error(), ev.err.Error())
	}
}

// where decides by what the two drivers say.
func (g *migrator) where(ev gWhere) {
	r := g.r
	if r.Phase != MigrationLocating {
		return
	}
	r.busy, r.unclear = false, g.now
	s, t := ev.source, ev.target
	runs := func(x Sighting) bool { return x.Found && x.State == GuestRunning }
	lost := or(r.Error, "the controller was restarted in the middle")
	switch {
	case runs(t) && !runs(s), r.Off && t.Found && !s.Found:
		g.note("it runs on the target, says its hypervisor")
		if r.Off {
			r.Notes[len(r.Notes)-1].Text = "it is defined on the target, says its hypervisor"
		}
		g.enter(MigrationFinishing)
	case r.Off && s.Found && t.Asked && !t.Found:
		g.fail(lost+"; it is defined on the source", r.Detail)
	case runs(s) && t.Asked && (!t.Found || t.State == GuestOff || t.State == GuestCrashed):
		g.fail(lost+"; it runs on the source", r.Detail)
	case runs(s) && runs(t):
		g.note("both hypervisors say that it runs: %s and %s", s.Hypervisor, t.Hypervisor)
	case s.Found && t.Asked && !t.Found:
		g.fail(fmt.Sprintf("%s; it is %s on the source", lost, s.State), r.Detail)
	case s.Asked && t.Asked && !s.Found && !t.Found:
		g.fail(lost+"; neither hypervisor has it", r.Detail)
	case s.Found && t.Found:
		g.note("the hypervisors go on with it: %s on the source, %s on the target", s.State, t.State)
	default:
		g.note("not known where it runs: %s; %s", s.says(), t.says())
		if runs(s) && g.now.Sub(r.since) >= g.timing.Settle {
			g.fail(lost+"; it runs on the source, and the target does not answer", r.Detail)
		}
	}
}

func (x Sighting) says() string {
	switch {
	case !x.Asked:
		return x.Hypervisor + " does not answer: " + x.Err
	case !x.Found:
		return x.Hypervisor + " does not have it"
	}
	return fmt.Sprintf("on %s it is %s", x.Hypervisor, x.State)
}

// mayCancel says why it is too late; "" = it is not.
func (r *MigrationRecord) mayCancel() string {
	switch {
	case r.Phase == MigrationFinishing || r.Phase == MigrationDone:
		return "it runs on the target"
	case r.Phase == MigrationLocating:
		return "the hypervisors go on with it, and the controller waits for how it ends"
	case r.Phase == MigrationMigrating && r.postCopied():
		return "it is past the switch (post-copy): stopping it now would kill the VM"
	case r.Phase == MigrationFailed:
		return "it has failed: " + r.Error
	}
	return ""
}

func (g *migrator) cancel(why string) {
	r := g.r
	if r.mayCancel() != "" || r.Cancel != "" {
		return
	}
	r.Cancel = why
	g.note("cancelled: %s", why)
	switch r.Phase {
	case MigrationQueued, MigrationPreflight:
		g.stayed()
	case MigrationPreparing:
		g.enter(MigrationUndoing)
	case MigrationMigrating:
		if !r.stopping {
			r.stopping = true
			g.do(gActStop{why})
		}
	}
}
