package qmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Mode is how a VM's memory travels.
type Mode string

// The modes.
const (
	Live     Mode = "live"     // pre-copy: it runs meanwhile
	PostCopy Mode = "postcopy" // it runs at the target at once, and fetches its memory
	Offline  Mode = "offline"  // it stands still meanwhile
)

// Words of QEMU's for what a VM does.
const (
	statusRunning  = "running"
	statusIncoming = "inmigrate"
)

// underWay reports whether a migration whose status is s goes on.
func underWay(s string) bool {
	switch s {
	case "setup", "active", "pre-switchover", "device", "wait-unplug", "postcopy-active", "postcopy-paused", "postcopy-recover", "cancelling":
		return true
	}
	return false
}

// Options say how a VM is migrated. The zero value of a field is what QEMU does by itself.
type Options struct {
	// Listen is where the target takes the stream, Connect where the source sends it: "tcp:0.0.0.0:4444",
	// "tcp:100.64.3.2:4444", "unix:/run/x.sock". Connect "" = the same.
	Listen, Connect string
	Mode            Mode          // "" = Live
	Bandwidth       uint64        // bytes a second; 0 = as QEMU is set, 128 MiB/s by default
	MaxDowntime     time.Duration // in milliseconds; 0 = as QEMU is set, 300 ms by default
	AutoConverge    bool          // slow the guest down until it converges
	Compress        bool          // zstd
	Parallel        int           // connections, at most 255; 0 or 1 = one
	// AllowPostCopy lets a live migration be switched to post-copy later, see [Client.StartPostCopy].
	AllowPostCopy bool
	// BeforeSwitch, if not nil, is called when the VM has stopped for the switch and nothing is decided. An error ends
	// the migration, and the VM goes on at the source. The VM stands still as long as it takes.
	BeforeSwitch func() error
	// Disks are copied while the guest writes to them.
	Disks []Disk
	// NBD is where the target serves its disks meanwhile; wanted if there are Disks.
	NBD NBD
}

// Progress is how far a migration has come.
type Progress struct {
	Status           string        `json:"status"` // QEMU's: "setup", "active", ...; "storage" while disks are copied before
	Elapsed          time.Duration `json:"elapsed"`
	Total            uint64        `json:"total"`     // bytes of memory
	Remaining        uint64        `json:"remaining"` // bytes of Total
	Sent             uint64        `json:"sent"`      // bytes, repeated ones too
	Rate             uint64        `json:"rate"`      // bytes a second
	DirtyRate        uint64        `json:"dirty_rate"`
	Iteration        int           `json:"iteration"`
	ExpectedDowntime time.Duration `json:"expected_downtime"`
	Throttle         int           `json:"throttle"` // percent of the guest's CPU time that auto-converge takes
	DiskTotal        uint64        `json:"disk_total"`
	DiskDone         uint64        `json:"disk_done"`
}

// Result is what became of a migration that was decided.
type Result struct {
	Stopped  time.Time     // the source's STOP, by its clock
	Resumed  time.Time     // RESUME: the target's, or the source's if the VM stayed
	Downtime time.Duration // as QEMU counts it
	Total    time.Duration
	Sent     uint64 // bytes of memory
}

// UnclearError says that nobody knows where the VM runs: post-copy broke off, or a monitor was lost in mid-migration.
type UnclearError struct{ Err error }

func (e *UnclearError) Error() string {
	return "qmp: where the VM runs is not known: " + e.Err.Error()
}
func (e *UnclearError) Unwrap() error { return e.Err }

// capabilities of a migration.
type capabilities []struct {
	name string
	on   bool
}

func (c capabilities) args() any {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	var list []capability
	for _, x := range c {
		list = append(list, capability{x.name, x.on})
	}
	return map[string]any{"capabilities": list}
}

// Times of a migration.
const (
	pollEvery     = 50 * time.Millisecond
	progressEvery = 500 * time.Millisecond
	// undoTime bounds each command that is given after the caller's context has ended.
	undoTime = 10 * time.Second
	// settleTime is how long the VM may take to run after a migration has ended.
	settleTime = 30 * time.Second
)

// Migrate moves the VM behind src to the QEMU behind dst, which was started with -incoming defer and waits. It returns
// nil when the VM runs there, or stands still there as it stood still before. Whatever the error, the VM is where it was, unless the error is an
// [*UnclearError]. When ctx ends the migration is cancelled; once the switch is made that is too late, and Migrate
// returns nil. Processes are the caller's: the one that the VM does not run in is of no use any more.
//
// progress, if not nil, is called about twice a second and when the status changes; it must not block.
func Migrate(ctx context.Context, src, dst *Client, o Options, progress func(Progress)) (Result, error) {
	m := &migration{src: src, dst: dst, o: o, progress: progress, begin: time.Now(), wake: make(chan struct{}, 1)}
	if m.progress == nil {
		m.progress = func(Progress) {}
	}
	o.Connect = cmp.Or(o.Connect, o.Listen)
	m.o = o
	if o.Connect == "" {
		return Result{}, errors.New("qmp: migrate: no address for the stream")
	}
	if o.Parallel < 0 || o.Parallel > 255 {
		return Result{}, fmt.Errorf("qmp: migrate: %d parallel connections, at most 255 are possible", o.Parallel)
	}
	defer src.Hear(func(e MonitorEvent) { m.heard(e, &m.source) })()
	defer dst.Hear(func(e MonitorEvent) { m.heard(e, &m.target) })()
	err := m.run(ctx)
	return m.result(), err
}

// side is what the events of one QEMU have said since the migration began.
type side struct {
	stopped time.Time
	resumed time.Time
	jobs    map[string]string // block job -> the last event of it
}

// migration is a Migrate under way.
type migration struct {
	src, dst *Client
	o        Options
	progress func(Progress)
	begin    time.Time
	wake     chan struct{} // an event was heard

	wasRunning bool // the VM, before
	mirrors    []mirror
	serving    bool // dst serves its disks
	posted     bool // it was switched to post-copy

	mu             sync.Mutex
	source, target side
	last           migrateInfo
	said           time.Time // when progress was told
}

func (m *migration) heard(e MonitorEvent, s *side) {
	m.mu.Lock()
	switch e.Name {
	case "STOP":
		s.stopped = e.At
	case "RESUME":
		s.resumed = e.At
	case "BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR":
		var job struct {
			Device string
			Error  string
		}
		if e.Decode(&job) == nil {
			if s.jobs == nil {
				s.jobs = make(map[string]string)
			}
			if s.jobs[job.Device] = e.Name; job.Error != "" {
				s.jobs[job.Device] = e.Name + ": " + job.Error
			}
		}
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *migration) result() Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Result{Stopped: m.source.stopped, Resumed: m.target.resumed, Sent: m.last.RAM.Transferred,
		Downtime: time.Duration(m.last.Downtime) * time.Millisecond, Total: time.Duration(m.last.TotalTime) * time.Millisecond}
	if r.Resumed.IsZero() {
		r.Resumed = m.source.resumed
	}
	return r
}

// migrateInfo is what we read of query-migrate. Times are in milliseconds, rates in Mbit/s and pages/s.
type migrateInfo struct {
	Status           string
	ErrorDesc        string `json:"error-desc"`
	TotalTime        uint64 `json:"total-time"`
	Downtime         uint64
	ExpectedDowntime uint64 `json:"expected-downtime"`
	Throttle         int    `json:"cpu-throttle-percentage"`
	RAM              struct {
		Total, Remaining, Transferred uint64
		Mbps                          float64
		PageSize                      uint64 `json:"page-size"`
		DirtyPagesRate                uint64 `json:"dirty-pages-rate"`
		DirtySyncCount                int    `json:"dirty-sync-count"`
	}
}

// run does it all. Until the stream flows, an error leaves the VM alone.
func (m *migration) run(ctx context.Context) error {
	was, err := m.src.Status(ctx)
	if err != nil {
		return err
	}
	m.wasRunning = was.Running
	if there, err := m.dst.Status(ctx); err != nil {
		return err
	} else if there.Status != statusIncoming {
		return fmt.Errorf("qmp: migrate: the target waits for no VM: it is %s", there.Status)
	}
	if err := m.configure(ctx); err != nil {
		return err
	}
	defer m.unmirror()
	if err := m.mirror(ctx); err != nil {
		return err
	}
	if m.o.Mode == Offline && m.wasRunning {
		if err := m.src.Execute(ctx, "stop", nil, nil); err != nil {
			return m.stay(err)
		}
	}
	uri := func(s string) any { return map[string]string{"uri": s} }
	if err := m.dst.Execute(ctx, "migrate-incoming", uri(m.o.Listen), nil); err != nil {
		return m.stay(err)
	}
	if err := m.src.Execute(ctx, "migrate", uri(m.o.Connect), nil); err != nil {
		if refused := new(Error); errors.As(err, &refused) {
			return m.stay(err)
		}
		// It may have been accepted all the same: what QEMU says of it decides.
	}
	return m.follow(ctx)
}

// undoing is a context for what must be done although the caller's has ended.
func undoing() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), undoTime, fmt.Errorf("not within %v", undoTime))
}

// configure sets capabilities and parameters on both sides: all that we ever set, for an earlier migration may have
// left its own.
func (m *migration) configure(ctx context.Context) error {
	multifd := m.o.Parallel > 1 || m.o.Compress
	caps := capabilities{
		{"events", true},
		{"return-path", true}, // the source gives the VM up only when the target has it all
		{"auto-converge", m.o.AutoConverge},
		{"multifd", multifd},
		{"postcopy-ram", m.o.Mode == PostCopy || m.o.AllowPostCopy},
		{"pause-before-switchover", true}, // see follow
	}
	params := map[string]any{"multifd-compression": "none"}
	if multifd {
		params["multifd-channels"] = max(m.o.Parallel, 1)
	}
	if m.o.Compress {
		params["multifd-compression"] = "zstd"
	}
	if m.o.Bandwidth > 0 {
		params["max-bandwidth"] = m.o.Bandwidth
	}
	if m.o.MaxDowntime > 0 {
		params["downtime-limit"] = max(m.o.MaxDowntime.Milliseconds(), 1)
	}
	for _, side := range []struct {
		c    *Client
		name string
	}{{m.src, "source"}, {m.dst, "target"}} {
		for _, set := range []struct {
			command string
			args    any
		}{{"migrate-set-capabilities", caps.args()}, {"migrate-set-parameters", params}} {
			if err := side.c.Execute(ctx, set.command, set.args, nil); err != nil {
				return fmt.Errorf("%w (at the %s)", err, side.name)
			}
		}
	}
	return nil
}

// follow waits for the end of a migration whose stream flows. Whatever we want, what the source says in the end is
// what has happened.
//
// The source stops before the switch and waits for our word: until then it can be cancelled, and after that it is not.
// For the target lets the VM run a moment before the source knows of it; a source that was cancelled then would run it,
// too.
func (m *migration) follow(ctx context.Context) error {
	var giveUp error              // why the migration is to end
	var cancelled, committed bool // it was told to end; it has to go on
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	done := ctx.Done()
	for {
		select {
		case <-m.wake:
		case <-tick.C:
		case <-done:
			done, giveUp = nil, context.Cause(ctx)
		case <-m.src.Done():
			return m.sourceLost()
		}
		info, err := m.ask()
		if err != nil {
			if m.src.Err() != nil {
				return m.sourceLost()
			}
			return &UnclearError{err}
		}
		switch info.Status {
		case "completed":
			return m.arrive()
		case "failed", "cancelled":
			return m.stay(fmt.Errorf("qmp: migrate: %w", cmp.Or(giveUp, errors.New(cmp.Or(info.ErrorDesc, "the migration has "+info.Status)))))
		case "postcopy-paused":
			return &UnclearError{fmt.Errorf("post-copy broke off: %s", info.ErrorDesc)}
		case "":
			if giveUp != nil {
				return m.stay(fmt.Errorf("qmp: migrate: not begun: %w", giveUp))
			}
		case "pre-switchover":
			if giveUp == nil && !committed {
				if giveUp = m.beforeSwitch(); giveUp == nil {
					committed = true
					giveUp = m.goOn()
				}
			}
		case "active":
			if m.o.Mode == PostCopy && !m.posted && giveUp == nil {
				m.posted = true
				giveUp = m.startPostCopy()
			}
		}
		// From post-copy there is no way back either: QEMU would give up a VM that has left.
		if giveUp != nil && !cancelled && !committed && !strings.HasPrefix(info.Status, "postcopy") {
			cancelled = true
			if err := m.cancel(); err != nil && m.src.Err() == nil {
				return &UnclearError{errors.Join(giveUp, err)}
			}
		}
	}
}

// beforeSwitch does what is to be done while the VM runs nowhere.
func (m *migration) beforeSwitch() error {
	if m.o.BeforeSwitch != nil {
		if err := m.o.BeforeSwitch(); err != nil {
			return err
		}
	}
	return m.switchDisks()
}

// goOn has the source make the switch.
func (m *migration) goOn() error {
	ctx, cancel := undoing()
	defer cancel()
	return m.src.Execute(ctx, "migrate-continue", map[string]any{"state": "pre-switchover"}, nil)
}

// startPostCopy is not for the caller's context: halfway it could not be told whether it was done.
func (m *migration) startPostCopy() error {
	ctx, cancel := undoing()
	defer cancel()
	return m.src.StartPostCopy(ctx)
}

// cancel asks the source to give up.
func (m *migration) cancel() error {
	ctx, cancel := undoing()
	defer cancel()
	return m.src.Execute(ctx, "migrate_cancel", nil, nil)
}

// StartPostCopy switches a migration that allows it to post-copy.
func (c *Client) StartPostCopy(ctx context.Context) error {
	return c.Execute(ctx, "migrate-start-postcopy", nil, nil)
}

// ask asks the source how far it is, and tells.
func (m *migration) ask() (migrateInfo, error) {
	answer, cancel := undoing()
	defer cancel()
	var info migrateInfo
	if err := m.src.Execute(answer, "query-migrate", nil, &info); err != nil {
		return info, err
	}
	m.mu.Lock()
	changed := info.Status != m.last.Status
	if info.Status != "" {
		m.last = info
	}
	m.mu.Unlock()
	if changed || time.Since(m.said) >= progressEvery {
		m.said = time.Now()
		m.progress(m.measured(info))
	}
	return info, nil
}

func (m *migration) measured(i migrateInfo) Progress {
	p := Progress{Status: i.Status, Elapsed: time.Since(m.begin), Total: i.RAM.Total, Remaining: i.RAM.Remaining,
		Sent: i.RAM.Transferred, Rate: uint64(max(i.RAM.Mbps, 0) * 1e6 / 8), DirtyRate: i.RAM.DirtyPagesRate * i.RAM.PageSize,
		Iteration: i.RAM.DirtySyncCount, ExpectedDowntime: time.Duration(i.ExpectedDowntime) * time.Millisecond, Throttle: i.Throttle}
	for _, d := range m.mirrors {
		p.DiskTotal += d.total
		p.DiskDone += d.done
	}
	return p
}

// sourceLost is what remains to be said when the source's monitor is gone: it may have been the last thing it did.
func (m *migration) sourceLost() error {
	err := fmt.Errorf("qmp: migrate: the source's monitor: %w", m.src.Err())
	ask, cancel := undoing()
	defer cancel()
	if s, e := m.dst.Status(ask); e == nil && s.Running {
		return nil
	}
	return &UnclearError{err}
}

// arrive waits until the VM runs at the target, whose memory is complete, and lets it run where that is ours to do.
func (m *migration) arrive() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), settleTime, fmt.Errorf("not within %v", settleTime))
	defer cancel()
	cont := false
	for {
		s, err := m.dst.Status(ctx)
		switch {
		case err != nil:
			return &UnclearError{fmt.Errorf("the target, after the switch: %w", err)}
		case s.Running:
			m.drain(ctx)
			_, _ = m.ask() // "completed" is said a moment before the numbers are there
			return nil
		case s.Status != statusIncoming && !m.wasRunning:
			return nil
		case s.Status != statusIncoming && !cont:
			cont = true
			if err := m.stopServing(ctx); err != nil {
				return &UnclearError{err}
			}
			if err := m.dst.Execute(ctx, "cont", nil, nil); err != nil {
				return &UnclearError{err}
			}
			continue
		}
		select {
		case <-m.wake:
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return &UnclearError{fmt.Errorf("the target is %s: %w", s.Status, context.Cause(ctx))}
		}
	}
}

// drain waits a moment for the RESUME of a VM that runs: its status may be told first.
func (m *migration) drain(ctx context.Context) {
	for range 50 {
		m.mu.Lock()
		heard := !m.target.resumed.IsZero()
		m.mu.Unlock()
		if heard || ctx.Err() != nil {
			return
		}
		select {
		case <-m.wake:
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stay waits until the VM goes on at the source, and makes it if that is ours to do. It returns why.
func (m *migration) stay(why error) error {
	if !m.wasRunning {
		return why
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), settleTime, fmt.Errorf("not within %v", settleTime))
	defer cancel()
	for {
		s, err := m.src.Status(ctx)
		switch {
		case err != nil:
			return &UnclearError{errors.Join(why, err)}
		case s.Running:
			return why
		case s.Status == "postmigrate":
			// It stopped here for the switch. The target gave up, or it would have been completed.
			fallthrough
		case s.Status == "paused":
			if err := m.src.Execute(ctx, "cont", nil, nil); err != nil {
				return &UnclearError{errors.Join(why, err)}
			}
		}
		select {
		case <-m.wake:
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return &UnclearError{fmt.Errorf("%w; and the source is %s: %w", why, s.Status, context.Cause(ctx))}
		}
	}
}
