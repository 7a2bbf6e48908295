package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/testnet"
)

// HandoverOptions bound a run of [RunHandover].
type HandoverOptions struct {
	Systems   []testnet.Way   // which are compared; ours must be among them
	VM        string          // what moves: testnet.VMQEMU, or testnet.VMNamespace for a quick look
	Rates     []int           // UDP packets a second each way
	Downtimes []time.Duration // the VMM's limits; 0 = QEMU's default
	Moves     int             // of each system in each setting, at least 1
	BitRate   int             // of the TCP download from the VM, in bits a second; 0 = as fast as the VM can
	Binary    string          // tabi itself
	Janitor   []string        // see testnet.LabOptions
	Progress  func(string)    // told what is being done, and how long it will still take
}

// validate says what cannot be run.
func (o *HandoverOptions) validate() error {
	switch {
	case o.Moves < 1:
		return fmt.Errorf("bench: %d moves: want at least 1", o.Moves)
	case len(o.Rates) == 0 || slices.Min(o.Rates) < 1:
		return fmt.Errorf("bench: rates %v: want one or more, in packets a second", o.Rates)
	case len(o.Downtimes) == 0 || slices.Min(o.Downtimes) < 0:
		return fmt.Errorf("bench: downtime limits %v: want one or more; 0 is QEMU's default", o.Downtimes)
	case !slices.Contains(o.Systems, testnet.WayTabi):
		return fmt.Errorf("bench: systems %v: %s must be among them", o.Systems, testnet.WayTabi)
	case o.BitRate < 0:
		return fmt.Errorf("bench: TCP at %d bit/s", o.BitRate)
	}
	for i, w := range o.Systems {
		if !slices.Contains(testnet.Ways, w) {
			return fmt.Errorf("bench: system %q: want some of %v", w, testnet.Ways)
		}
		if slices.Contains(o.Systems[:i], w) {
			return fmt.Errorf("bench: system %q is named twice", w)
		}
	}
	return nil
}

// lab is a network with one system and one VM.
type lab interface {
	Run(ctx context.Context, t testnet.Trial) (testnet.TrialResult, error)
	Close() error
}

// RunHandover moves the same VM in the same way under each system, and compares what its client saw. All systems are up
// at once, and take turns move by move, so that whatever else the machine does hits all alike. It needs root, and makes
// and removes its own namespaces. That a system loses packets is the report's matter, not an error.
func RunHandover(ctx context.Context, o HandoverOptions) (*Handover, error) {
	return runHandover(ctx, o, func(ctx context.Context, w testnet.Way) (lab, error) {
		return testnet.StartLab(ctx, testnet.LabOptions{Way: w, VM: o.VM, Binary: o.Binary, Janitor: o.Janitor, Progress: o.Progress})
	}, time.Now)
}

func runHandover(ctx context.Context, o HandoverOptions, start func(context.Context, testnet.Way) (lab, error), now func() time.Time) (h *Handover, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	b := &handoverBench{HandoverOptions: o, start: start, now: now, labs: make(map[testnet.Way]lab), report: newHandover(o)}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, w := range o.Systems {
		if err := b.renew(ctx, w); err != nil {
			return nil, err
		}
	}
	b.began = now()
	for _, step := range handoverPlan(len(o.Systems), len(b.report.Settings), o.Moves) {
		if err := b.step(ctx, step); err != nil {
			return nil, err
		}
	}
	b.report.Seconds = now().Sub(b.began).Seconds()
	b.report.judge()
	return b.report, nil
}

// handoverStep is one trial of the plan, by index of setting and system.
type handoverStep struct {
	setting, system int
	still           bool
}

// handoverPlan is the order of trials: a round of controls, then round after round of one move each. The systems take
// turns within each setting, and another one begins each time.
func handoverPlan(systems, settings, moves int) (plan []handoverStep) {
	for round := range moves + 1 {
		for s := range settings {
			for i := range systems {
				plan = append(plan, handoverStep{s, (i + s + round) % systems, round == 0})
			}
		}
	}
	return plan
}

// handoverBench is a run under way.
type handoverBench struct {
	HandoverOptions
	start  func(context.Context, testnet.Way) (lab, error)
	now    func() time.Time
	labs   map[testnet.Way]lab
	report *Handover
	began  time.Time
	done   int // trials
}

// setAsideLimit is how many trials of one system in one setting may be set aside, and made again, because the tester or
// the VMM was at fault, or for reasons unknown. More, and the run is given up: it is not to be believed in the rest.
func setAsideLimit(moves int) int { return max(3, moves/4) }

// step makes one trial, again if it does not count.
func (b *handoverBench) step(ctx context.Context, s handoverStep) error {
	setting := &b.report.Settings[s.setting]
	row := &setting.Rows[s.system]
	t := testnet.Trial{Still: s.still, Rate: setting.Rate, BitRate: b.BitRate, MaxDowntime: setting.limit}
	for {
		r, err := b.labs[row.System].Run(ctx, t)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && len(r.Flaws) == 0 {
			row.add(r, s.still)
			b.done++
			b.say(setting, row, s, r)
			return nil
		}
		aside := SetAside{System: row.System, Rate: setting.Rate, DowntimeMS: setting.DowntimeMS, Result: r}
		if err != nil {
			aside.Error = err.Error()
			row.Unexplained++
		}
		b.report.SetAside = append(b.report.SetAside, aside)
		b.Progress("set aside: " + aside.line())
		if row.aside++; row.aside > setAsideLimit(b.Moves) {
			return fmt.Errorf("bench: %d trials of %s had to be set aside, the last one: %s", row.aside, row.System, aside.line())
		}
		if err := b.renew(ctx, row.System); err != nil {
			return err
		}
	}
}

// renew starts a system's lab, in the place of one that may be broken.
func (b *handoverBench) renew(ctx context.Context, w testnet.Way) error {
	if old := b.labs[w]; old != nil {
		delete(b.labs, w)
		if err := old.Close(); err != nil {
			b.Progress(fmt.Sprintf("%s did not end well: %v", w, err)) // it was broken: a new one will do
		}
	}
	l, err := b.start(ctx, w)
	if err != nil {
		return err
	}
	b.labs[w] = l
	return nil
}

// say tells of a trial, and when the last one will be over.
func (b *handoverBench) say(setting *HandoverSetting, row *HandoverRow, s handoverStep, r testnet.TrialResult) {
	total := len(b.report.Settings) * len(b.Systems) * (b.Moves + 1)
	left := b.now().Sub(b.began) / time.Duration(b.done) * time.Duration(total-b.done)
	what := fmt.Sprintf("lost %d, gap %.0f ms, TCP stall %.0f ms, stopped for %.0f ms", r.Lost(), r.GapMS, r.StallMS, r.BlackoutMS)
	if s.still {
		what = fmt.Sprintf("without a move: lost %d", r.Lost())
	}
	b.Progress(fmt.Sprintf("%d/%d, %s left: %s, %s: %s", b.done, total, left.Round(time.Second), setting.Name(), row.System, what))
}

func (b *handoverBench) close() error {
	var errs []error
	for _, l := range b.labs {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
