package libvirt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/tabi-lisp/tabi/controller"
)

// job is a migration under way, as its source sees it.
type job struct {
	d        *Driver
	m        controller.Migration
	c        *conn // to follow and to steer it
	dom      golibvirt.Domain
	before   golibvirt.DomainState
	progress func(controller.Progress)

	last       controller.Progress // as it was told last
	set        bool                // the longest downtime is set for this job
	postCopied bool                // post-copy has begun
	aborted    bool                // the end of ctx was passed on
}

// Migrate moves a VM to the daemon at m.Dest, peer to peer: the source's daemon drives it, and goes on should we die. The
// definition goes with the VM. With ErrDetached as the cause of ctx's end, we leave it alone. A bandwidth is rounded up to MiB/s, a downtime to milliseconds: libvirt's units. When ctx
// ends it is cancelled; a migration that is past that point (the switch, post-copy) goes on to its end, which is what
// Migrate returns.
func (d *Driver) Migrate(ctx context.Context, m controller.Migration, progress func(controller.Progress)) error {
	what := fmt.Sprintf("migrate %s to %s", m.VM, m.Dest)
	if progress == nil {
		progress = func(controller.Progress) {}
	}
	if err := checkMigration(m); err != nil {
		return d.failed(what, err)
	}
	// The job's own two connections: the first one says nothing until the migration is over.
	perform, err := d.connect(ctx)
	if err != nil {
		return d.failed(what, err)
	}
	defer d.hangUp(perform)
	c, err := d.connect(ctx)
	if err != nil {
		return d.failed(what, err)
	}
	defer d.hangUp(c)
	j := &job{d: d, m: m, c: c, progress: progress}
	flags, list, err := j.plan(ctx)
	if err != nil {
		return d.failed(what, err)
	}
	j.tell(controller.Progress{Phase: "setup"})
	begun := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := perform.DomainMigratePerform3Params(j.dom, golibvirt.OptString{m.Dest}, list, nil, flags)
		done <- perform.wire.explain(err)
	}()
	err = j.follow(ctx, perform, done)
	if errors.Is(err, controller.ErrDetached) {
		return d.failed(what, &controller.ErrMigrationUnclear{Err: err}) // the source's daemon goes on
	}
	if err != nil {
		err = j.settle(ctx, err)
	}
	j.last.Elapsed = time.Since(begun)
	if err != nil {
		j.last.Phase = "failed"
		j.tell(j.last)
		if j.aborted && !errors.As(err, new(*controller.ErrMigrationUnclear)) {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return d.failed(what, err)
	}
	j.last.Phase, j.last.Done, j.last.Remaining = "done", j.last.Total, 0
	j.last.Downtime = j.measured(ctx, j.last.Downtime)
	j.tell(j.last)
	return nil
}

func checkMigration(m controller.Migration) error {
	switch {
	case m.Dest == "":
		return errors.New("no destination is given")
	case m.Mode != "" && m.Mode != controller.ModeLive && m.Mode != controller.ModeOffline && m.Mode != controller.ModePostCopy:
		return fmt.Errorf("there is no mode %q", m.Mode)
	case m.CopyStorage != "" && m.CopyStorage != controller.CopyNone && m.CopyStorage != controller.CopyAll && m.CopyStorage != controller.CopyInc:
		return fmt.Errorf("there is no way %q to copy storage", m.CopyStorage)
	case m.Parallel < 0 || m.Parallel > 255:
		return fmt.Errorf("%d connections: from 0 to 255 are possible", m.Parallel)
	case m.MaxDowntime < 0:
		return fmt.Errorf("a downtime of %v", m.MaxDowntime)
	case m.Mode == controller.ModePostCopy && m.CopyStorage != "" && m.CopyStorage != controller.CopyNone:
		return errors.New("post-copy does not copy disks")
	}
	return nil
}

// plan looks at the VM and says in libvirt's words what is to be done.
func (j *job) plan(ctx context.Context) (flags golibvirt.DomainMigrateFlags, list []golibvirt.TypedParam, err error) {
	if j.dom, err = lookUp(ctx, j.c, j.m.VM); err != nil {
		return 0, nil, err
	}
	if j.before, _, err = domainState(ctx, j.c, j.dom); err != nil {
		return 0, nil, err
	}
	g, local, err := j.d.guest(ctx, j.c, j.dom)
	if err != nil && g.Name == "" {
		return 0, nil, err
	}
	flags = golibvirt.MigratePeer2peer
	if g.Persistent {
		flags |= golibvirt.MigratePersistDest | golibvirt.MigrateUndefineSource
	}
	add := func(name string, v *golibvirt.TypedParamValue) {
		list = append(list, golibvirt.TypedParam{Field: name, Value: *v})
	}
	if j.m.Via != "" {
		add(golibvirt.MigrateParamURI, golibvirt.NewTypedParamValueString(j.m.Via))
	}
	runs := j.before == golibvirt.DomainRunning || j.before == golibvirt.DomainBlocked || j.before == golibvirt.DomainPaused
	if !runs {
		if j.m.Mode != controller.ModeOffline {
			return 0, nil, errors.New("the VM does not run: it can be moved offline only")
		}
		if g.State == controller.GuestHibernated {
			return 0, nil, errors.New("the VM is hibernated: its memory would stay behind")
		}
		if j.m.CopyStorage != "" && j.m.CopyStorage != controller.CopyNone {
			return 0, nil, errors.New("libvirt does not copy the disks of a VM that does not run")
		}
		return flags | golibvirt.MigrateOffline, list, nil
	}
	if j.m.Mode != controller.ModeOffline {
		flags |= golibvirt.MigrateLive
	}
	if j.m.Mode == controller.ModePostCopy || j.m.AllowPostCopy && j.m.Mode != controller.ModeOffline {
		flags |= golibvirt.MigratePostcopy
	}
	if j.m.AutoConverge {
		flags |= golibvirt.MigrateAutoConverge
	}
	if j.m.Unsafe {
		flags |= golibvirt.MigrateUnsafe
	}
	if j.m.Parallel > 1 {
		flags |= golibvirt.MigrateParallel
		add(golibvirt.MigrateParamParallelConnections, golibvirt.NewTypedParamValueInt(int32(j.m.Parallel)))
	}
	if j.m.Compress {
		flags |= golibvirt.MigrateCompressed
		if method := compression(j.c, j.m.Parallel > 1); method != "" {
			add(golibvirt.MigrateParamCompression, golibvirt.NewTypedParamValueString(method))
		}
	}
	if j.m.Bandwidth > 0 {
		add(golibvirt.MigrateParamBandwidth, golibvirt.NewTypedParamValueUllong(mebibytes(j.m.Bandwidth)))
	}
	if j.m.CopyStorage == controller.CopyAll || j.m.CopyStorage == controller.CopyInc {
		disks := local
		if len(j.m.Disks) > 0 {
			disks = j.m.Disks
		}
		if i := slices.IndexFunc(disks, func(t string) bool {
			return !slices.ContainsFunc(g.Disks, func(d controller.GuestDisk) bool { return d.Target == t })
		}); i >= 0 {
			return 0, nil, fmt.Errorf("the VM has no disk %q", disks[i])
		}
		for _, t := range disks {
			add(golibvirt.MigrateParamMigrateDisks, golibvirt.NewTypedParamValueString(t))
		}
		switch {
		case len(disks) == 0: // there is nothing that the target does not have
		case j.m.CopyStorage == controller.CopyAll:
			flags |= golibvirt.MigrateNonSharedDisk
		default:
			flags |= golibvirt.MigrateNonSharedInc
		}
	}
	return flags, list, nil
}

// compression is the method to ask for; "" = libvirt's default, which parallel streams do not know since they can have
// a better one.
func compression(c *conn, parallel bool) string {
	const zstd = 9004000 // libvirt 9.4
	if v, err := c.ConnectGetLibVersion(); parallel && err == nil && v >= zstd {
		return "zstd"
	}
	return ""
}

// mebibytes rounds up.
func mebibytes(bytes uint64) uint64 { return bytes>>20 + min(bytes&(1<<20-1), 1) }

// milliseconds rounds up.
func milliseconds(d time.Duration) uint64 {
	return uint64(math.Ceil(float64(d) / float64(time.Millisecond)))
}

const (
	progressPeriod = 500 * time.Millisecond
	steerPeriod    = 20 * time.Millisecond // while there is something to be set that libvirt does not take yet
)

// follow tells how far the migration is, steers it as it was asked for, and passes the end of ctx on, until it is over.
func (j *job) follow(ctx context.Context, perform *conn, done <-chan error) error {
	stop := ctx.Done()
	ask := context.WithoutCancel(ctx)
	if j.m.MaxDowntime > 0 {
		// Newer daemons take it before the job begins, older ones only then.
		_ = do(ask, j.c, func() error { return j.c.DomainMigrateSetMaxDowntime(j.dom, milliseconds(j.m.MaxDowntime), 0) })
	}
	var told, silent time.Time
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-stop:
			if errors.Is(context.Cause(ctx), controller.ErrDetached) {
				return controller.ErrDetached
			}
			stop = nil
			j.aborted = true
			tick.Reset(0)
		case now := <-tick.C:
			j.steer(ask)
			if now.Sub(told) >= progressPeriod {
				told = now
				if err := j.look(ask); err == nil {
					silent = time.Time{}
				} else if silent.IsZero() {
					silent = now
				} else if now.Sub(silent) > abandoned { // neither connection will tell any more
					perform.close()
				}
			}
			next := progressPeriod
			if j.aborted || j.m.Mode == controller.ModePostCopy && !j.postCopied || j.m.MaxDowntime > 0 && !j.set {
				next = steerPeriod
			}
			tick.Reset(next)
		}
	}
}

// steer does what has to be done while the job runs, and is refused before and after.
func (j *job) steer(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	if j.aborted {
		_ = do(ctx, j.c, func() error { return j.c.DomainAbortJob(j.dom) })
		return
	}
	if j.m.MaxDowntime > 0 && !j.set {
		j.set = do(ctx, j.c, func() error {
			if err := runsJob(j.c, j.dom); err != nil {
				return err
			}
			return j.c.DomainMigrateSetMaxDowntime(j.dom, milliseconds(j.m.MaxDowntime), 0)
		}) == nil
	}
	if j.m.Mode == controller.ModePostCopy && !j.postCopied {
		j.postCopied = do(ctx, j.c, func() error { return j.c.DomainMigrateStartPostCopy(j.dom, 0) }) == nil
	}
}

var errNoJob = errors.New("no job")

// runsJob is nil while a job of the VM counts.
func runsJob(c *conn, dom golibvirt.Domain) error {
	kind, _, err := c.DomainGetJobStats(dom, 0)
	if err == nil && golibvirt.DomainJobType(kind) == golibvirt.DomainJobNone {
		err = errNoJob
	}
	return err
}

// settle finds out where the VM is after an error. nil: it runs at the target nevertheless.
func (j *job) settle(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	for {
		here, err := j.isHere(ctx)
		switch {
		case err == nil && here:
			return cause
		case err == nil:
			if j.isThere(ctx) {
				return nil
			}
			return &controller.ErrMigrationUnclear{Err: cause}
		case ctx.Err() != nil:
			return &controller.ErrMigrationUnclear{Err: errors.Join(cause, err)}
		}
		t := time.NewTimer(250 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// settleTime is how long a daemon that is restarted, or that undoes a migration, may take.
const settleTime = time.Minute

var errBusy = errors.New("the VM is still migrating")

// isHere reports whether the VM is at the source, in the state that it was in. An error: it is too early to tell.
func (j *job) isHere(ctx context.Context) (bool, error) {
	c, err := j.d.session(ctx)
	if err != nil {
		return false, err
	}
	dom, err := lookUp(ctx, c, j.m.VM)
	if golibvirt.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	state, reason, err := domainState(ctx, c, dom)
	if err != nil {
		return false, err
	}
	switch state {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked, golibvirt.DomainPmsuspended:
		return true, nil
	case golibvirt.DomainPaused:
		switch golibvirt.DomainPausedReason(reason) {
		case golibvirt.DomainPausedPostcopy:
			if runsJob(c, dom) == nil {
				return false, errBusy
			}
			return false, nil
		case golibvirt.DomainPausedPostcopyFailed: // libvirt goes on calling that a job
			return false, nil
		case golibvirt.DomainPausedMigration:
			return false, errBusy // it is let go on, or ended, when the daemon knows
		}
		// Paused before, or as it stands with libvirt when it could not be let go on: it is here.
		return true, nil
	case golibvirt.DomainShutoff, golibvirt.DomainCrashed:
		// It ended here during the migration, or it has gone.
		gone := golibvirt.DomainShutoffReason(reason) == golibvirt.DomainShutoffMigrated
		return !gone, nil
	}
	return true, nil
}

// isThere asks the target's daemon, if it can be reached from here, whether the VM runs there.
func (j *job) isThere(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	state, err := j.atTarget(ctx, func(c *conn, dom golibvirt.Domain) (golibvirt.DomainState, error) {
		s, _, err := domainState(ctx, c, dom)
		return s, err
	})
	return err == nil && (state == golibvirt.DomainRunning || state == golibvirt.DomainBlocked || state == j.before)
}

func (j *job) atTarget(ctx context.Context, f func(*conn, golibvirt.Domain) (golibvirt.DomainState, error)) (golibvirt.DomainState, error) {
	u, err := parseURI(j.m.Dest)
	if err != nil {
		return 0, err
	}
	c, err := u.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer c.close()
	dom, err := lookUp(ctx, c, j.m.VM)
	if err != nil {
		return 0, err
	}
	return f(c, dom)
}

// Steer changes a migration that is under way, whoever started it.
func (d *Driver) Steer(ctx context.Context, vm string, s controller.Steering) error {
	return d.withVM(ctx, "steer the migration of "+vm, vm, func(c *conn, dom golibvirt.Domain) error {
		steps := []struct {
			what string
			on   bool
			do   func() error
		}{
			{"bandwidth", s.Bandwidth > 0, func() error { return c.DomainMigrateSetMaxSpeed(dom, mebibytes(s.Bandwidth), 0) }},
			{"longest downtime", s.MaxDowntime > 0, func() error {
				return c.DomainMigrateSetMaxDowntime(dom, milliseconds(s.MaxDowntime), 0)
			}},
			{"post-copy", s.PostCopy, func() error { return c.DomainMigrateStartPostCopy(dom, 0) }},
			{"pause", s.Pause, func() error { return c.DomainSuspend(dom) }},
		}
		for _, x := range steps {
			if !x.on {
				continue
			}
			if err := do(ctx, c, x.do); err != nil {
				return fmt.Errorf("%s: %w", x.what, err)
			}
		}
		return nil
	})
}
