package controller

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func record(phase MigrationPhase) MigrationRecord {
	return MigrationRecord{MigrationStatus: MigrationStatus{ID: "g1", VM: "web", From: "hv1", To: "hv2", Move: "g1", Phase: phase, Request: MigrationRequest{OnSlow: SlowAbort}}}
}

// What the two drivers say of a VM, and what follows.
func TestWhere(t *testing.T) {
	at := func(hv string, s GuestState) Sighting {
		return Sighting{Hypervisor: hv, Asked: true, Found: s != "", State: s}
	}
	gone := func(hv string) Sighting { return Sighting{Hypervisor: hv, Err: "no route"} }
	for _, tc := range []struct {
		name   string
		off    bool
		s, t   Sighting
		waited time.Duration
		phase  MigrationPhase
		text   string // of the error or the last note
	}{
		{"it arrived", false, at("hv1", ""), at("hv2", GuestRunning), 0, MigrationFinishing, "it runs on the target"},
		{"it arrived, and its old definition is left", false, at("hv1", GuestOff), at("hv2", GuestRunning), 0, MigrationFinishing, "it runs on the target"},
		{"it arrived, and the source is dead", false, gone("hv1"), at("hv2", GuestRunning), 0, MigrationFinishing, "it runs on the target"},
		{"it stayed", false, at("hv1", GuestRunning), at("hv2", ""), 0, MigrationUndoing, "it runs on the source"},
		{"it stayed, defined at the target", false, at("hv1", GuestRunning), at("hv2", GuestOff), 0, MigrationUndoing, "it runs on the source"},
		{"it is on its way", false, at("hv1", GuestRunning), at("hv2", GuestPaused), time.Hour, MigrationLocating, "running on the source, paused on the target"},
		{"it is at the switch", false, at("hv1", GuestPaused), at("hv2", GuestPaused), 0, MigrationLocating, "go on with it"},
		{"it stands at the source", false, at("hv1", GuestPaused), at("hv2", ""), 0, MigrationUndoing, "it is paused on the source"},
		{"it is nowhere", false, at("hv1", ""), at("hv2", ""), 0, MigrationUndoing, "neither hypervisor has it"},
		{"it runs twice", false, at("hv1", GuestRunning), at("hv2", GuestRunning), 0, MigrationLocating, "both hypervisors say"},
		{"nobody answers", false, gone("hv1"), gone("hv2"), time.Hour, MigrationLocating, "hv1 does not answer: no route; hv2 does not answer"},
		{"the target does not answer yet", false, at("hv1", GuestRunning), gone("hv2"), time.Second, MigrationLocating, "on hv1 it is running"},
		{"the target does not answer at all", false, at("hv1", GuestRunning), gone("hv2"), time.Hour, MigrationUndoing, "and the target does not answer"},
		{"off: it arrived", true, at("hv1", ""), at("hv2", GuestOff), 0, MigrationFinishing, "defined on the target"},
		{"off: it stayed", true, at("hv1", GuestOff), at("hv2", ""), 0, MigrationUndoing, "it is defined on the source"},
	} {
		r := record(MigrationLocating)
		r.Off, r.since = tc.off, time.Unix(1000, 0)
		r, _, _ = stepMigration(Timing{}.withDefaults(), r, gWhere{tc.s, tc.t}, time.Unix(1000, 0).Add(tc.waited))
		text := r.Error
		if text == "" && len(r.Notes) > 0 {
			text = r.Notes[len(r.Notes)-1].Text
		}
		if r.Phase != tc.phase || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %s %q, want %s %q", tc.name, r.Phase, text, tc.phase, tc.text)
		}
	}
}

// The agents insist that it runs at the target, the hypervisors that it does not: it ends all the same.
func TestContested(t *testing.T) {
	r := record(MigrationUndoing)
	now := time.Unix(1000, 0)
	tm := Timing{}.withDefaults()
	r, acts, _ := stepMigration(tm, r, gMove{Running, "seen"}, now)
	if _, ok := acts[0].(gActWhere); !ok || r.Phase != MigrationLocating {
		t.Fatalf("%s %v", r.Phase, acts)
	}
	r, _, _ = stepMigration(tm, r, gWhere{Sighting{Hypervisor: "hv1", Asked: true, Found: true, State: GuestRunning}, Sighting{Hypervisor: "hv2", Asked: true}}, now)
	r, _, _ = stepMigration(tm, r, gMove{Running, "seen"}, now)
	if r.Phase != MigrationFailed || !has(r.Notes, "the hypervisors that it does not") {
		t.Errorf("%+v", r)
	}
}

// The agents undo a move because the migration has failed: the driver knows of what.
func TestUndoneByAgents(t *testing.T) {
	now := time.Unix(1000, 0)
	tm := Timing{}.withDefaults()
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("qemu died"), "the hypervisor: qemu died"},
		{stopCause("x"), "the move was undone: resumed"},
	} {
		r := record(MigrationMigrating)
		r, acts, _ := stepMigration(tm, r, gMove{Aborting, "resumed"}, now)
		if _, ok := acts[0].(gActStop); !ok {
			t.Fatalf("%v", acts)
		}
		r, _, _ = stepMigration(tm, r, gMove{Aborted, "resumed"}, now)
		r, _, _ = stepMigration(tm, r, gDriver{err: tc.err}, now)
		r, _, _ = stepMigration(tm, r, gMove{Aborted, "resumed"}, now)
		if r.Phase != MigrationFailed || r.Error != tc.want {
			t.Errorf("%s %q", r.Phase, r.Error)
		}
	}
}

// Notes are bounded, and do not repeat themselves.
func TestNotes(t *testing.T) {
	r := record(MigrationMigrating)
	for i := range 3 * maxNotes {
		r, _, _ = stepMigration(Timing{}.withDefaults(), r, gNote{strings.Repeat("x", i/2+1)}, time.Unix(int64(i), 0))
	}
	if len(r.Notes) != maxNotes || r.Notes[0].Text != "x" || len(r.Notes[maxNotes-1].Text) != 3*maxNotes/2 {
		t.Errorf("%d notes", len(r.Notes))
	}
}

// Whatever happens in whatever order: an ended migration stays as it is, says why, and asks for nothing.
func TestMigrationMonkey(t *testing.T) {
	tm := Timing{}.withDefaults()
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		pick := func(ss ...State) State { return ss[rnd.IntN(len(ss))] }
		sight := func(hv string) Sighting {
			states := []GuestState{GuestRunning, GuestPaused, GuestOff, GuestCrashed}
			return Sighting{Hypervisor: hv, Asked: rnd.IntN(4) > 0, Found: rnd.IntN(2) == 0, State: states[rnd.IntN(4)]}
		}
		r := record(MigrationQueued)
		r.Move = ""
		r.Request.OnSlow = []OnSlow{SlowAbort, SlowPostCopy, SlowConverge, SlowWait}[rnd.IntN(4)]
		r.Request.Timeout = Duration(rnd.IntN(2)) * Duration(time.Minute)
		now := time.Unix(1000, 0)
		migrates := 0
		for range 80 {
			now = now.Add(time.Duration(rnd.IntN(20_000)) * time.Millisecond)
			var ev gEvent
			switch rnd.IntN(13) {
			case 0:
				ev = gTick{}
			case 1:
				ev = gRestart{}
				migrates = 0
			case 2:
				ev = gAdmit{}
			case 3:
				ev = gPreflight{pf: Preflight{To: "hv2"}, guest: "web", off: rnd.IntN(5) == 0, err: []string{"", "", "no room"}[rnd.IntN(3)]}
			case 4:
				ev = gMove{pick(States...), "x"}
			case 5:
				ev = gNoMove{errors.New("no")}
			case 6:
				ev = gProgress{Progress{Phase: []string{"setup", "memory", "post-copy"}[rnd.IntN(3)], Iteration: rnd.IntN(9), Remaining: uint64(rnd.IntN(100)), Total: 100, Rate: 1, DirtyRate: uint64(rnd.IntN(3))}}
			case 7:
				ev = gDriver{err: []error{nil, errors.New("no"), &ErrMigrationUnclear{errors.New("x")}}[rnd.IntN(3)]}
			case 8:
				ev = gSteered{Steering{PostCopy: true}, []error{nil, errors.New("no")}[rnd.IntN(2)]}
			case 9:
				ev = gWhere{sight("hv1"), sight("hv2")}
			case 10:
				ev = gCancel{"x"}
			case 11:
				ev = gPostCopy{}
			case 12:
				ev = gNote{"n"}
			}
			was := r
			var acts []gAction
			r, acts, _ = stepMigration(tm, r, ev, now)
			for _, a := range acts {
				if _, ok := a.(gActMigrate); ok {
					if migrates++; migrates > 1 {
						t.Fatalf("seed %d: it was sent twice", seed)
					}
				}
			}
			if was.Phase.Ended() && (len(acts) > 0 || r.Phase != was.Phase || len(r.Notes) != len(was.Notes)) {
				t.Fatalf("seed %d: %T changed what had ended: %+v", seed, ev, r)
			}
			if r.Phase.Ended() && (r.Times.Ended.IsZero() || (r.Phase == MigrationDone) != (r.Error == "") || (r.Detail == "") != (r.Error == "") || strings.Contains(r.Error, "\n")) {
				t.Fatalf("seed %d: %T: %s %q %q", seed, ev, r.Phase, r.Error, r.Detail)
			}
		}
	}
}
