package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/libvirt"
	"github.com/tabi-lisp/tabi/controller/qmp"
	"github.com/tabi-lisp/tabi/xtr"
)

// The seams between the agent and what runs its VMs.
var (
	_ guestSource = (*libvirt.Driver)(nil)
	_ guestEngine = (*xtr.XTR)(nil)
)

// guestSource is what is asked of a hypervisor.
type guestSource interface {
	Guests(ctx context.Context) ([]controller.Guest, error)
	Watch(ctx context.Context, f func(controller.GuestEvent)) error
}

// guestEngine is who wants to know of VMs.
type guestEngine interface {
	Guests(ctx context.Context, source string, asked time.Time, all []xtr.Guest) error
	GuestEvent(ctx context.Context, source, vm, kind string, at time.Time) error
}

// Names of the sources, in tables and logs.
const (
	sourceLibvirt = "libvirt"
	sourceQMP     = "qmp"
)

// guestTimes says how a hypervisor is followed.
type guestTimes struct {
	again   time.Duration // between two lists, although nothing calls for one
	retry   time.Duration // after a failure, doubled each time
	most    time.Duration // that retry may become
	answers time.Duration // that a list may take
}

var defaultGuestTimes = guestTimes{again: 30 * time.Second, retry: 100 * time.Millisecond, most: 5 * time.Second, answers: 20 * time.Second}

// watchGuests follows the VMs of a hypervisor until ctx ends. A lost connection is made again, and all VMs are listed
// then: what was missed is put right.
func watchGuests(ctx context.Context, src guestSource, engine guestEngine, t guestTimes, log *slog.Logger) {
	pause, failed := t.retry, false
	for ctx.Err() == nil {
		f := &guestFollower{src: src, engine: engine, t: t, log: log, some: make(chan struct{}, 1), wanted: make(chan struct{}, 1)}
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.heard() {
			pause, failed = t.retry, false
		}
		if !failed {
			log.Warn("the VMs of this host are not watched: their frames are all that tells of them", "source", sourceLibvirt, "err", err)
			failed = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, t.most)
	}
}

// guestFollower is one connection's worth of following. Events are told in their order by one goroutine, lists are asked
// for by another: an answer takes long, and an event must not wait for it.
type guestFollower struct {
	src    guestSource
	engine guestEngine
	t      guestTimes
	log    *slog.Logger

	mu     sync.Mutex
	queue  []controller.GuestEvent
	any    bool          // something was heard
	some   chan struct{} // has a token when there may be something in the queue
	wanted chan struct{} // has a token when a list is wanted
}

// follow returns why the connection has ended.
func (f *guestFollower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { f.tell(ctx) })
	wg.Go(func() { f.list(ctx) })
	f.want()
	return f.src.Watch(ctx, f.hear)
}

// hear takes an event; it does not wait.
func (f *guestFollower) hear(e controller.GuestEvent) {
	f.mu.Lock()
	f.any = true
	f.queue = append(f.queue, e)
	f.mu.Unlock()
	token(f.some)
}

func (f *guestFollower) heard() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.any
}

func (f *guestFollower) take() (all []controller.GuestEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, f.queue = f.queue, nil
	return all
}

// want makes a list be asked for, after all that has happened up to now.
func (f *guestFollower) want() { token(f.wanted) }

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tell tells the engine of events.
func (f *guestFollower) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.some:
		}
		for _, e := range f.take() {
			if e.Kind == controller.GuestChanged {
				f.want()
				continue
			}
			err := f.engine.GuestEvent(ctx, sourceLibvirt, cmp.Or(e.UUID, e.VM), string(e.Kind), e.At)
			switch {
			case errors.Is(err, xtr.ErrNotFound):
				if e.Kind != controller.GuestGone {
					f.want() // a VM that is new
				}
			case err != nil && ctx.Err() == nil:
				f.log.Warn("an event of a VM was not taken", "source", sourceLibvirt, "vm", e.VM, "reason", string(e.Kind), "err", err)
			}
			if e.Kind == controller.GuestGone || e.Kind == controller.GuestResumed {
				f.want() // it may not be defined any more, or has interfaces now
			}
		}
	}
}

// list asks for all VMs when that is wanted, and now and then.
func (f *guestFollower) list(ctx context.Context) {
	again := time.NewTicker(f.t.again)
	defer again.Stop()
	pause := f.t.retry
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wanted:
		case <-again.C:
		}
		if err := f.listOnce(ctx); err == nil || ctx.Err() != nil {
			pause = f.t.retry
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, f.t.most)
		f.want()
	}
}

func (f *guestFollower) listOnce(ctx context.Context) error {
	asked := time.Now()
	limited, cancel := context.WithTimeout(ctx, f.t.answers)
	defer cancel()
	all, err := f.src.Guests(limited)
	if err != nil {
		f.log.Debug("the VMs cannot be listed", "source", sourceLibvirt, "err", err)
		return err
	}
	f.mu.Lock()
	f.any = true
	f.mu.Unlock()
	return f.engine.Guests(ctx, sourceLibvirt, asked, engineGuests(all))
}

// engineGuests says in the engine's words what a driver knows of VMs.
func engineGuests(all []controller.Guest) []xtr.Guest {
	out := make([]xtr.Guest, 0, len(all))
	for _, g := range all {
		e := xtr.Guest{Name: g.Name, UUID: g.UUID, EIDs: g.EIDs}
		switch g.State {
		case controller.GuestRunning:
			e.Running = true
		case controller.GuestOff, controller.GuestHibernated, controller.GuestCrashed:
			e.Off = true
		}
		for _, i := range g.Interfaces {
			e.Interfaces = append(e.Interfaces, xtr.GuestInterface{MAC: i.MAC, Device: i.Device})
		}
		out = append(out, e)
	}
	return out
}

// watchMonitors follows the VMs behind QEMU's monitors until ctx ends.
func watchMonitors(ctx context.Context, pattern string, engine guestEngine, log *slog.Logger) error {
	return qmp.Watch(ctx, pattern, func(e qmp.Event) { monitorEvent(ctx, e, engine, log) })
}

// monitorEvent tells the engine what a monitor tells us.
func monitorEvent(ctx context.Context, e qmp.Event, engine guestEngine, log *slog.Logger) {
	var err error
	switch e.Kind {
	case qmp.Listed:
		all := make([]xtr.Guest, 0, len(e.All))
		for _, g := range e.All {
			all = append(all, monitorGuest(g))
		}
		err = engine.Guests(ctx, sourceQMP, e.At, all)
	case qmp.Failed:
		log.Warn("a VM is not watched: its monitor cannot be spoken to", "source", sourceQMP, "file", e.Guest.Socket, "err", e.Why)
	case qmp.Stopped, qmp.Resumed, qmp.Migrating, qmp.Gone:
		err = engine.GuestEvent(ctx, sourceQMP, monitorGuest(e.Guest).Name, string(e.Kind), e.At)
		if errors.Is(err, xtr.ErrNotFound) {
			err = nil // the list comes, if it is one that will be there
		}
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("what a monitor tells of a VM was not taken", "source", sourceQMP, "file", e.Guest.Socket, "reason", string(e.Kind), "err", err)
	}
}

// noUUID is the UUID of a QEMU that was given none.
const noUUID = "00000000-0000-0000-0000-000000000000"

// monitorGuest says in the engine's words what a monitor knows of its VM. One without a name is called by its UUID or
// its socket.
func monitorGuest(g qmp.Guest) xtr.Guest {
	out := xtr.Guest{Name: g.Name, UUID: g.UUID, Running: g.Status.Running}
	if out.UUID == noUUID {
		out.UUID = ""
	}
	out.Name = cmp.Or(out.Name, out.UUID, g.Socket)
	for _, i := range g.Interfaces {
		out.Interfaces = append(out.Interfaces, xtr.GuestInterface{MAC: i.MAC, Device: i.Device})
	}
	return out
}
