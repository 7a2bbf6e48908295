package libvirt

import (
	"context"
	"fmt"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/tabi-lisp/tabi/controller"
)

// heartbeat is how often a watched daemon is asked whether it is there, and how long it may take to answer.
const heartbeat = 10 * time.Second

// others are the events beside those of the life cycle that we ask for. A daemon that has not all of them serves too.
var others = []golibvirt.DomainEventID{golibvirt.DomainEventIDMigrationIteration, golibvirt.DomainEventIDDeviceAdded,
	golibvirt.DomainEventIDDeviceRemoved, golibvirt.DomainEventIDMetadataChange}

// Watch calls f for every change, one at a time, until ctx ends (nil) or the connection is lost (an error). The first
// call, of kind changed and with no VM, says that from now on every change is told: who lists then misses nothing.
// libvirt gives no times, so At is when we heard. f must not block.
func (d *Driver) Watch(ctx context.Context, f func(controller.GuestEvent)) error {
	c, err := d.connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return d.failed("watch", err)
	}
	events, err := d.subscribe(ctx, c)
	if err == nil {
		f(controller.GuestEvent{Kind: controller.GuestChanged, At: time.Now(), Why: "watching"})
		err = d.follow(ctx, c, events, f)
	}
	d.hangUp(c)
	for range events { // ends, since the connection has
	}
	if ctx.Err() != nil {
		return nil
	}
	return d.failed("watch", err)
}

// subscribe returns all events of a connection in one channel, in the order in which they came per kind. It is closed
// when the connection ends, and must be read until then.
func (d *Driver) subscribe(ctx context.Context, c *conn) (<-chan any, error) {
	out := make(chan any)
	var wg sync.WaitGroup
	defer func() {
		go func() {
			wg.Wait()
			close(out)
		}()
	}()
	// Never cancelled: see conn.
	life, err := call(ctx, c, func() (<-chan golibvirt.DomainEventLifecycleMsg, error) {
		return c.LifecycleEvents(context.Background())
	})
	if err != nil {
		return out, fmt.Errorf("subscribe: %w", err)
	}
	wg.Go(func() {
		for e := range life {
			out <- e
		}
	})
	for _, id := range others {
		events, err := call(ctx, c, func() (<-chan any, error) { return c.SubscribeEvents(context.Background(), id, nil) })
		if err != nil {
			if c.isLost() || ctx.Err() != nil {
				return out, fmt.Errorf("subscribe: %w", err)
			}
			d.log.Info("the daemon does not tell everything", "event", id.String(), "err", err)
			continue
		}
		wg.Go(func() {
			for e := range events {
				out <- e
			}
		})
	}
	return out, nil
}

// follow hands events on until ctx ends or the daemon is gone.
func (d *Driver) follow(ctx context.Context, c *conn, events <-chan any, f func(controller.GuestEvent)) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	answered := make(chan error, 1)
	asked := false
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return c.wire.explain(errLost)
			}
			if g, ok := guestEvent(e, time.Now()); ok {
				f(g)
			}
		case <-beat.C:
			if asked {
				return fmt.Errorf("the daemon has not answered for %v", heartbeat)
			}
			asked = true
			go func() {
				_, err := c.ConnectGetLibVersion()
				answered <- err
			}()
		case err := <-answered:
			if asked = false; err != nil && c.isLost() {
				return c.wire.explain(err)
			}
		case <-c.wire.lost:
			return c.wire.explain(errLost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// guestEvent says in our nouns what libvirt says; ok is false for what is of no interest.
func guestEvent(e any, now time.Time) (g controller.GuestEvent, ok bool) {
	var dom golibvirt.Domain
	g.At = now
	switch e := e.(type) {
	case golibvirt.DomainEventLifecycleMsg:
		dom = e.Dom
		g.Kind, g.Why = lifecycle(golibvirt.DomainEventType(e.Event), e.Detail)
	case *golibvirt.DomainEventCallbackMigrationIterationMsg:
		dom, g.Kind, g.Why = e.Dom, controller.GuestMigrating, fmt.Sprintf("iteration %d", e.Iteration)
	case *golibvirt.DomainEventCallbackDeviceAddedMsg:
		dom, g.Kind, g.Why = e.Dom, controller.GuestChanged, "device added"
	case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
		dom, g.Kind, g.Why = e.Msg.Dom, controller.GuestChanged, "device removed"
	case *golibvirt.DomainEventCallbackMetadataChangeMsg:
		dom, g.Kind, g.Why = e.Dom, controller.GuestChanged, "metadata"
	default:
		return g, false
	}
	g.VM, g.UUID = dom.Name, formatUUID(dom.UUID)
	return g, true
}

// lifecycle says what became of a VM. What is not a stop, a start or an end is a change: the list tells what it is.
func lifecycle(event golibvirt.DomainEventType, detail int32) (controller.GuestEventKind, string) {
	name := func(names ...string) string {
		if detail >= 0 && int(detail) < len(names) {
			return names[detail]
		}
		return ""
	}
	switch event {
	case golibvirt.DomainEventDefined:
		return controller.GuestChanged, "defined"
	case golibvirt.DomainEventUndefined:
		return controller.GuestChanged, "undefined"
	case golibvirt.DomainEventStarted:
		why := name("booted", "incoming migration", "restored", "snapshot", "woken")
		if d := golibvirt.DomainEventStartedDetailType(detail); d == golibvirt.DomainEventStartedBooted || d == golibvirt.DomainEventStartedWakeup {
			return controller.GuestResumed, why
		}
		return controller.GuestChanged, why // a resume follows if it runs
	case golibvirt.DomainEventSuspended:
		return controller.GuestStopped, name("paused", "migrated", "I/O error", "watchdog", "restored", "snapshot", "API error", "post-copy", "post-copy failed")
	case golibvirt.DomainEventResumed:
		return controller.GuestResumed, name("unpaused", "migrated", "restored", "post-copy", "post-copy failed")
	case golibvirt.DomainEventStopped:
		return controller.GuestGone, name("shut down", "killed", "crashed", "migrated", "saved", "failed", "snapshot", "recreated")
	case golibvirt.DomainEventPmsuspended:
		return controller.GuestStopped, "asleep"
	case golibvirt.DomainEventCrashed:
		return controller.GuestStopped, "crashed"
	case golibvirt.DomainEventShutdown:
		return controller.GuestChanged, "shutting down"
	}
	return controller.GuestChanged, ""
}
