package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// MoveOptions script one move. Planned is what a cloud does when nothing goes wrong; a fault is scripted by leaving
// something out, or in a hook.
type MoveOptions struct {
	ID        string // "" = move-N
	VM        string // "" = web
	To        string // hypervisor
	Prepare   bool   // tell the controller beforehand
	StopEvent bool   // tell the source's agent that the VM stopped, as QEMU does
	Commit    bool   // tell the controller afterwards
	Abort     bool   // the migration fails: the VM goes on at the source
	Blackout  time.Duration
	// Mode, CopyDisks and MaxDowntime are a real VM's, see [Transfer].
	Mode        string
	CopyDisks   bool
	MaxDowntime time.Duration
	Bandwidth   uint64
	CancelAt    string
	// Hooks run between the steps, in the order in which they stand here. An error ends the move.
	BeforePrepare func(context.Context) error
	AfterPrepare  func(context.Context) error
	AfterPause    func(context.Context) error // in the blackout, which is longer if the hook takes longer
	AfterRun      func(context.Context) error
	// SettleWait bounds how long the new mapping is waited for, and the agents' records; 0 = 5 s.
	SettleWait time.Duration
}

// Planned is a move with every signal that a cloud gives.
func Planned(to string, blackout time.Duration) MoveOptions {
	return MoveOptions{To: to, Prepare: true, StopEvent: true, Commit: true, Blackout: blackout}
}

// MoveReport is what is known of one move. Times are relative to the pause of the VM, in milliseconds.
type MoveReport struct {
	ID             string   `json:"id"`
	VM             string   `json:"vm"`
	EIDs           []string `json:"eids"`
	From           string   `json:"from"` // sites
	To             string   `json:"to"`
	FromHypervisor string   `json:"from_hypervisor"`
	ToHypervisor   string   `json:"to_hypervisor"`
	Version        uint16   `json:"version"`
	State          string   `json:"state"`
	Aborted        bool     `json:"aborted,omitempty"`
	Why            string   `json:"why,omitempty"` // why it was aborted

	BlackoutMS float64 `json:"blackout_ms"` // as it was
	// TransferMS and TransferBytes are what the copy of a real VM's memory and disks took.
	TransferMS    float64 `json:"transfer_ms,omitempty"`
	TransferBytes uint64  `json:"transfer_bytes,omitempty"`

	PrepareMS    float64 `json:"prepare_ms"` // how long the controller took to prepare
	RunToClaimMS float64 `json:"run_to_claim_ms"`
	// RunToPushMS is until the last D-ETR had the new mapping of the last EID in its kernel.
	RunToPushMS float64            `json:"run_to_push_ms"`
	PushMS      map[string]float64 `json:"push_ms"` // the same, each D-ETR

	Held       uint64            `json:"held"`
	Redirected uint64            `json:"redirected"`
	Replayed   uint64            `json:"replayed"`
	Dropped    map[string]uint64 `json:"dropped"`

	Steps    []Step    `json:"timeline"`
	Paused   time.Time `json:"paused"`
	Window   Window    `json:"-"` // in which its gaps are looked for
	Problems []string  `json:"problems,omitempty"`
}

// Step is one line of a move's time line.
type Step struct {
	Name string  `json:"step"`
	MS   float64 `json:"ms"` // after the pause
	Note string  `json:"note,omitempty"`
}

// Words of a time line.
const (
	stepPrepare  = "prepare"
	stepPrepared = "prepared"
	stepPause    = "pause"
	stepRedirect = "redirect"
	stepRun      = "run"
	stepFirst    = "first packet"
	stepClaim    = "claim"
	stepFlushed  = "flushed"
	stepAborted  = "aborted"
)

// controllerRecord is what we read of the controller's record of a move.
type controllerRecord struct {
	State      string            `json:"state"`
	Version    uint16            `json:"version"`
	Times      stepTimes         `json:"times"`
	Held       uint64            `json:"held"`
	Redirected uint64            `json:"redirected"`
	Replayed   uint64            `json:"replayed"`
	Dropped    map[string]uint64 `json:"dropped"`
	Why        string            `json:"why"`
	Error      string            `json:"error"`
}

// agentRecord is what we read of an agent's record of a handover.
type agentRecord struct {
	ID   string   `json:"id"`
	EIDs []string `json:"eids"`
	controllerRecord
}

// speaksOf reports whether an agent's record is one of this move. Without prepare the agents give it an id of
// their own.
func (a *agentRecord) speaksOf(r *MoveReport) bool {
	if a.ID == r.ID {
		return true
	}
	about := slices.ContainsFunc(a.EIDs, func(e string) bool { return slices.Contains(r.EIDs, e) })
	return about && a.Times.last().After(r.Paused.Add(-time.Second))
}

// stepTimes are when the steps were reached, as controller and agents tell.
type stepTimes struct {
	Prepared    time.Time `json:"prepared"`
	Paused      time.Time `json:"paused"`
	Redirecting time.Time `json:"redirecting"`
	Run         time.Time `json:"run"`
	Claimed     time.Time `json:"claimed"`
	Flushed     time.Time `json:"flushed"`
	Settled     time.Time `json:"settled"`
	Aborted     time.Time `json:"aborted"`
}

// merge takes what o knows and t does not.
func (t *stepTimes) merge(o stepTimes) {
	for _, p := range [][2]*time.Time{{&t.Prepared, &o.Prepared}, {&t.Paused, &o.Paused}, {&t.Redirecting, &o.Redirecting},
		{&t.Run, &o.Run}, {&t.Claimed, &o.Claimed}, {&t.Flushed, &o.Flushed}, {&t.Settled, &o.Settled}, {&t.Aborted, &o.Aborted}} {
		if p[0].IsZero() {
			*p[0] = *p[1]
		}
	}
}

// last is the latest step at which the VM stopped or began to run.
func (t *stepTimes) last() time.Time {
	return slices.MaxFunc([]time.Time{t.Paused, t.Redirecting, t.Run}, time.Time.Compare)
}

// tapStays is how long the source's tap stays after the VM has left: libvirt's "release" comes 1.6 s after the switch.
const tapStays = 1600 * time.Millisecond

// move is a Move under way.
type move struct {
	c        *Cloud
	o        MoveOptions
	vm       CloudVM
	from, to *Host
	report   *MoveReport
	prepared [2]time.Time // called, answered
	ran      time.Time
}

// Move moves a VM and returns what became of it. An error is one of the test's own steps; what the cloud did not do
// stands in the report's Problems.
func (c *Cloud) Move(ctx context.Context, o MoveOptions) (*MoveReport, error) {
	if o.VM == "" {
		o.VM = hostWeb
	}
	if o.SettleWait == 0 {
		o.SettleWait = 5 * time.Second
	}
	c.mu.Lock()
	c.moves++
	if o.ID == "" {
		o.ID = fmt.Sprintf("move-%d", c.moves)
	}
	c.mu.Unlock()
	from, to := mustNode(c.Where(o.VM)), mustNode(o.To)
	if from.name == to.name {
		return nil, fmt.Errorf("testnet: %s: %s is on %s already", o.ID, o.VM, o.To)
	}
	m := &move{c: c, o: o, vm: c.guests[o.VM], from: c.hosts[from.name], to: c.hosts[to.name], report: &MoveReport{
		ID: o.ID, VM: o.VM, EIDs: endpoints[o.VM].eids(), From: from.site, To: to.site, FromHypervisor: from.name,
		ToHypervisor: to.name, Dropped: map[string]uint64{}, PushMS: map[string]float64{}}}
	m.report.Window.From = time.Now()
	for _, step := range []func(context.Context) error{m.prepare, m.migrate} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("testnet: %s of %s from %s to %s: %w", o.ID, o.VM, from.name, to.name, err)
		}
	}
	m.conclude(ctx)
	return m.report, nil
}

func hook(ctx context.Context, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	return f(ctx)
}

// prepare has the controller prepare the move, and the target's VMM open its tap.
func (m *move) prepare(ctx context.Context) error {
	if err := hook(ctx, m.o.BeforePrepare); err != nil {
		return err
	}
	if m.o.Prepare {
		m.c.opts.Progress(fmt.Sprintf("%s: prepare %s -> %s", m.o.ID, m.report.FromHypervisor, m.o.To))
		m.prepared[0] = time.Now()
		if err := m.waitPrepared(ctx); err != nil {
			return err
		}
		m.prepared[1] = time.Now()
		m.report.PrepareMS = ms(m.prepared[1].Sub(m.prepared[0]))
	}
	return m.c.awaitRemoval(m.o.VM, m.o.To)
}

// waitPrepared asks the controller until it says that both agents are ready.
func (m *move) waitPrepared(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	type request struct {
		VM string `json:"vm"`
		To string `json:"to"`
	}
	var rec controllerRecord
	err := m.c.Controller(ctx, http.MethodPut, "/v1/moves/"+m.o.ID, request{m.o.VM, m.o.To}, &rec)
	for err == nil && rec.State == "preparing" {
		if err = sleep(ctx, 2*time.Millisecond); err == nil {
			err = m.c.Controller(ctx, http.MethodGet, "/v1/moves/"+m.o.ID, nil, &rec)
		}
	}
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if rec.State != "prepared" {
		return fmt.Errorf("prepare: the controller says %q: %s %s", rec.State, rec.Why, rec.Error)
	}
	return nil
}

// migrate has the VM moved by whoever runs it, and tells the controller how that ended.
func (m *move) migrate(ctx context.Context) error {
	r := m.report
	told := make(chan error, 1)
	var telling sync.Once
	tell := func(verb string) {
		telling.Do(func() { go func() { told <- m.tellController(ctx, verb) }() })
	}
	s, err := m.vm.Migrate(ctx, Transfer{From: m.from, To: m.to, Mode: m.o.Mode, CopyDisks: m.o.CopyDisks, Blackout: m.o.Blackout,
		MaxDowntime: m.o.MaxDowntime, Bandwidth: m.o.Bandwidth, CancelAt: m.o.CancelAt, Fail: m.o.Abort, Silent: !m.o.StopEvent,
		Placed: func(ctx context.Context) error { return hook(ctx, m.o.AfterPrepare) },
		Stopped: func(ctx context.Context, _ time.Time) error {
			m.c.opts.Progress(fmt.Sprintf("%s: the VM stops at %s", m.o.ID, r.FromHypervisor))
			return hook(ctx, m.o.AfterPause)
		},
		Resumed: func(_ time.Time, at *Host) {
			if at == m.to {
				m.c.setWhere(m.o.VM, at.Name)
			}
			tell(verbFor(at == m.to))
			m.c.opts.Progress(fmt.Sprintf("%s: the VM runs at %s", m.o.ID, at.Name))
		}})
	if err != nil {
		return err
	}
	if s.At == nil {
		return errors.New("nobody knows where it runs")
	}
	tell(verbFor(s.At == m.to)) // unless it was told already
	m.c.setWhere(m.o.VM, s.At.Name)
	r.Aborted = s.At != m.to
	r.Paused, m.ran = s.Stopped, s.Resumed
	if !s.Stopped.IsZero() && !s.Resumed.IsZero() {
		r.BlackoutMS = ms(s.Resumed.Sub(s.Stopped))
	}
	r.TransferMS, r.TransferBytes, r.Why = ms(s.Total), s.Bytes, s.Why
	r.Problems = append(r.Problems, s.Problems...)
	if err := <-told; err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	left := m.from
	if r.Aborted {
		left = m.to
	}
	m.c.removeLater(m.o.VM, left)
	return hook(ctx, m.o.AfterRun)
}

func verbFor(moved bool) string {
	if moved {
		return "commit"
	}
	return "abort"
}

func (m *move) tellController(ctx context.Context, verb string) error {
	if !m.o.Commit && verb == "commit" || !m.o.Prepare && verb == "abort" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := m.c.Controller(ctx, http.MethodPost, "/v1/moves/"+m.o.ID+"/"+verb, nil, nil); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return nil
}

// conclude waits for the new mapping at the D-ETRs and collects the records.
func (m *move) conclude(ctx context.Context) {
	r := m.report
	ctx, cancel := context.WithTimeoutCause(ctx, m.o.SettleWait, fmt.Errorf("not within %v", m.o.SettleWait))
	defer cancel()
	_ = sleep(ctx, 50*time.Millisecond) // our own questions must not be in the way of what they measure
	if !r.Aborted {
		pushed, err := m.c.anchorsAt(ctx, m.o.VM)
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		for anchor, at := range pushed {
			r.PushMS[anchor] = ms(at.Sub(m.ran))
			r.RunToPushMS = max(r.RunToPushMS, r.PushMS[anchor])
		}
	}
	if _, ok := m.vm.(namespaceVM); ok { // the only one that is looked into
		for m.vm.FirstPacket().IsZero() && sleep(ctx, 5*time.Millisecond) == nil {
		}
	}
	rec := m.records(ctx)
	r.State, r.Version = rec.State, rec.Version
	r.Held, r.Redirected, r.Replayed = rec.Held, rec.Redirected, rec.Replayed
	for reason, n := range rec.Dropped {
		if n > 0 {
			r.Dropped[reason] = n
		}
	}
	if !rec.Times.Claimed.IsZero() {
		r.RunToClaimMS = ms(rec.Times.Claimed.Sub(m.ran))
	}
	m.timeline(rec)
}

// records asks the controller for its record until it has the end of the story, and the agents for what the
// controller does not know or cannot tell.
func (m *move) records(ctx context.Context) controllerRecord {
	var rec controllerRecord
	for {
		rec = controllerRecord{Dropped: map[string]uint64{}}
		err := m.c.Controller(ctx, http.MethodGet, "/v1/moves/"+m.o.ID, nil, &rec)
		told := err == nil
		for _, h := range []*Host{m.from, m.to} {
			a, ok := m.handover(ctx, h)
			if !ok {
				continue
			}
			rec.Times.merge(a.Times)
			if !told {
				rec.State = a.State
				rec.Version = max(rec.Version, a.Version)
				for reason, n := range a.Dropped {
					rec.Dropped[reason] += n
				}
			}
			// The controller's copy may be older than what the agents count.
			rec.Held, rec.Redirected, rec.Replayed = max(rec.Held, a.Held), max(rec.Redirected, a.Redirected), max(rec.Replayed, a.Replayed)
		}
		if m.report.Aborted || !rec.Times.Flushed.IsZero() && !rec.Times.Claimed.IsZero() {
			return rec
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return rec
		}
	}
}

// handover is an agent's record of this move: the one of its id, else the latest that speaks of it.
func (m *move) handover(ctx context.Context, h *Host) (agentRecord, bool) {
	var all []agentRecord
	if h.Admin(ctx, http.MethodGet, "/v1/handovers", nil, &all) != nil {
		return agentRecord{}, false
	}
	if i := slices.IndexFunc(all, func(a agentRecord) bool { return a.ID == m.o.ID }); i >= 0 {
		return all[i], true
	}
	var found agentRecord
	for _, a := range all {
		if a.speaksOf(m.report) && (found.ID == "" || a.Times.last().After(found.Times.last())) {
			found = a
		}
	}
	return found, found.ID != ""
}

// timeline writes the steps in the order in which they came.
func (m *move) timeline(rec controllerRecord) {
	r := m.report
	add := func(name string, at time.Time, note string) {
		if !at.IsZero() {
			r.Steps = append(r.Steps, Step{name, ms(at.Sub(r.Paused)), note})
		}
	}
	add(stepPrepare, m.prepared[0], "")
	add(stepPrepared, m.prepared[1], fmt.Sprintf("%s holds, %s is armed", r.ToHypervisor, r.FromHypervisor))
	add(stepPause, r.Paused, "the VM stops at "+r.FromHypervisor)
	add(stepRedirect, rec.Times.Redirecting, fmt.Sprintf("%d packets replayed, %d redirected", r.Replayed, r.Redirected))
	if r.Aborted {
		add(stepRun, m.ran, "the migration failed: the VM goes on at "+r.FromHypervisor)
		add(stepAborted, rec.Times.Aborted, "")
	} else {
		add(stepRun, m.ran, fmt.Sprintf("the VM runs at %s, %d packets wait for it", r.ToHypervisor, r.Held))
	}
	add(stepFirst, m.vm.FirstPacket(), "")
	add(stepClaim, rec.Times.Claimed, fmt.Sprintf("version %d", r.Version))
	for anchor, after := range r.PushMS {
		add("push "+anchor, m.ran.Add(time.Duration(after*float64(time.Millisecond))), "in its kernel")
	}
	add(stepFlushed, rec.Times.Flushed, "the last held packet is out")
	slices.SortStableFunc(r.Steps, func(a, b Step) int {
		switch {
		case a.MS < b.MS:
			return -1
		case a.MS > b.MS:
			return 1
		}
		return 0
	})
}

// removal is an old tap that is about to go.
type removal struct {
	timer *time.Timer
	done  chan struct{}
	err   error
}

// removeLater takes the VM's tap on a host away some time after the VM has left.
func (c *Cloud) removeLater(vm string, h *Host) {
	r := &removal{done: make(chan struct{})}
	r.timer = time.AfterFunc(tapStays, func() {
		c.drops.leaving(h, c.guests[vm].Interface())
		r.err = c.guests[vm].Leave(h)
		close(r.done)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removals[vm+"/"+h.Name] = r
}

// awaitRemoval waits until the VM's old tap on a host is gone.
func (c *Cloud) awaitRemoval(vm, host string) error {
	c.mu.Lock()
	r := c.removals[vm+"/"+host]
	delete(c.removals, vm+"/"+host)
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	<-r.done
	return r.err
}

// sleep waits; it returns early, and why, when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), context.Cause(ctx))
	}
}
