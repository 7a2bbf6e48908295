package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/tabi-lisp/tabi/controller"
)

// tell hands progress on, and keeps it.
func (j *job) tell(p controller.Progress) {
	j.last = p
	j.progress(p)
}

// look asks the daemon how far it is.
func (j *job) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	type stats struct {
		kind   int32
		list   []golibvirt.TypedParam
		state  int32
		reason int32
	}
	s, err := call(ctx, j.c, func() (s stats, err error) {
		if s.kind, s.list, err = j.c.DomainGetJobStats(j.dom, 0); err != nil {
			return s, err
		}
		s.state, s.reason, err = j.c.DomainGetState(j.dom, 0)
		return s, err
	})
	if err != nil {
		return err
	}
	if golibvirt.DomainJobType(s.kind) == golibvirt.DomainJobNone {
		return nil // not begun, or over already: what was told stands
	}
	p := progressOf(params(s.list))
	paused := golibvirt.DomainState(s.state) == golibvirt.DomainPaused
	switch golibvirt.DomainPausedReason(s.reason) {
	case golibvirt.DomainPausedPostcopy, golibvirt.DomainPausedPostcopyFailed:
		if paused {
			p.Phase = "post-copy"
		}
	case golibvirt.DomainPausedMigration:
		if paused && j.m.Mode != controller.ModeOffline && j.before != golibvirt.DomainPaused {
			p.Phase = "switch"
		}
	}
	if p.Total < j.last.Total { // libvirt counts disks and memory one after the other
		p.Total, p.Done = j.last.Total, max(p.Done, j.last.Done)
	}
	p.Iteration = max(p.Iteration, j.last.Iteration)
	j.tell(p)
	return nil
}

// progressOf reads a job's statistics.
func progressOf(s parameters) controller.Progress {
	p := controller.Progress{
		Elapsed:   time.Duration(s.number(golibvirt.DomainJobTimeElapsed)) * time.Millisecond,
		Total:     s.number(golibvirt.DomainJobDataTotal),
		Remaining: s.number(golibvirt.DomainJobDataRemaining),
		Sent:      s.number(golibvirt.DomainJobDataProcessed),
		Rate:      s.number(golibvirt.DomainJobMemoryBps) + s.number(golibvirt.DomainJobDiskBps),
		DirtyRate: s.number(golibvirt.DomainJobMemoryDirtyRate) * s.number(golibvirt.DomainJobMemoryPageSize),
		Iteration: int(s.number(golibvirt.DomainJobMemoryIteration)),
		Downtime:  time.Duration(s.number(golibvirt.DomainJobDowntime)) * time.Millisecond,
		Throttle:  int(s.number(golibvirt.DomainJobAutoConvergeThrottle)),
	}
	p.Done = p.Total - min(p.Remaining, p.Total)
	switch {
	case s.number(golibvirt.DomainJobMemoryTotal) > 0:
		p.Phase = "memory"
	case s.number(golibvirt.DomainJobDiskTotal) > 0:
		p.Phase = "storage"
	default:
		p.Phase = "setup"
	}
	return p
}

// measuredTime is how long the target's daemon may take to say what it measured: it need not be within our reach, and
// the migration is over.
const measuredTime = 300 * time.Millisecond

// measured is the downtime that the target's daemon measured, if it can be asked; else what is known.
func (j *job) measured(ctx context.Context, known time.Duration) time.Duration {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), measuredTime)
	defer cancel()
	var took time.Duration
	_, err := j.atTarget(ctx, func(c *conn, dom golibvirt.Domain) (golibvirt.DomainState, error) {
		s, err := call(ctx, c, func() (parameters, error) {
			_, list, err := c.DomainGetJobStats(dom, golibvirt.DomainJobStatsCompleted|golibvirt.DomainJobStatsKeepCompleted)
			return params(list), err
		})
		took = time.Duration(s.number(golibvirt.DomainJobDowntime)) * time.Millisecond
		return 0, err
	})
	if err != nil || took == 0 {
		return known
	}
	return took
}
