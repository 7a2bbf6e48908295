package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/qmp"
	"github.com/tabi-lisp/tabi/xtr"
)

// fakeHypervisor is a hypervisor whose connection comes and goes.
type fakeHypervisor struct {
	mu      sync.Mutex
	guests  []controller.Guest
	down    error // nobody can connect
	hear    func(controller.GuestEvent)
	cut     chan error
	answers time.Duration // that a list takes
	lists   int
	watches int
}

func (h *fakeHypervisor) Guests(ctx context.Context) ([]controller.Guest, error) {
	h.mu.Lock()
	h.lists++
	all, err, wait := slices.Clone(h.guests), h.down, h.answers
	h.mu.Unlock()
	select {
	case <-time.After(wait):
		return all, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *fakeHypervisor) Watch(ctx context.Context, f func(controller.GuestEvent)) error {
	h.mu.Lock()
	h.watches++
	if err := h.down; err != nil {
		h.mu.Unlock()
		return err
	}
	h.hear, h.cut = f, make(chan error, 1)
	cut := h.cut
	h.mu.Unlock()
	f(controller.GuestEvent{Kind: controller.GuestChanged, Why: "watching"})
	select {
	case err := <-cut:
		return err
	case <-ctx.Done():
		return nil
	}
}

// say has the hypervisor tell of an event.
func (h *fakeHypervisor) say(vm string, kind controller.GuestEventKind) {
	h.mu.Lock()
	f := h.hear
	h.mu.Unlock()
	f(controller.GuestEvent{VM: vm, Kind: kind, At: time.Now()})
}

// watched is how often it was asked to tell of events.
func (h *fakeHypervisor) watched() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watches
}

func (h *fakeHypervisor) set(guests []controller.Guest, down error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests, h.down = guests, down
}

// lose breaks the connection.
func (h *fakeHypervisor) lose(down error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
	h.cut <- errors.New("the connection is lost")
}

// fakeEngine writes down what it is told.
type fakeEngine struct {
	mu    sync.Mutex
	known []string
	told  []string
	lists []toldList
}

type toldList struct {
	source string
	age    time.Duration // of the question when the answer came
	guests []xtr.Guest
}

func (e *fakeEngine) Guests(_ context.Context, source string, asked time.Time, all []xtr.Guest) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known = nil
	for _, g := range all {
		e.known = append(e.known, g.Name)
	}
	e.lists = append(e.lists, toldList{source, time.Since(asked), all})
	return nil
}

func (e *fakeEngine) GuestEvent(_ context.Context, source, vm, kind string, _ time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, source+" "+vm+" "+kind)
	if !slices.Contains(e.known, vm) {
		return xtr.ErrNotFound
	}
	return nil
}

func (e *fakeEngine) take() (told []string, lists []toldList) {
	e.mu.Lock()
	defer e.mu.Unlock()
	told, lists = e.told, e.lists
	e.told, e.lists = nil, nil
	return told, lists
}

// followed runs f while a hypervisor's VMs are followed, in virtual time.
func followed(t *testing.T, h *fakeHypervisor, f func(e *fakeEngine)) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			watchGuests(ctx, h, e, defaultGuestTimes, slog.New(slog.DiscardHandler))
		}()
		time.Sleep(50 * time.Millisecond)
		f(e)
		cancel()
		<-done
	})
}

func TestWatchGuests(t *testing.T) {
	web := controller.Guest{Name: "web", UUID: "u", State: controller.GuestRunning, Interfaces: []controller.GuestInterface{{MAC: "52:54:00:00:00:10", Device: "vnet3"}}}
	h := &fakeHypervisor{guests: []controller.Guest{web, {Name: "old", State: controller.GuestOff}, {Name: "next", State: controller.GuestPaused}}, answers: time.Millisecond}
	followed(t, h, func(e *fakeEngine) {
		_, lists := e.take()
		want := []xtr.Guest{{Name: "web", UUID: "u", Running: true, Interfaces: []xtr.GuestInterface{{MAC: "52:54:00:00:00:10", Device: "vnet3"}}},
			{Name: "old", Off: true}, {Name: "next"}}
		if len(lists) == 0 || len(lists) > 2 {
			t.Fatalf("in the beginning: %d lists", len(lists))
		}
		if d := cmp.Diff(want, lists[len(lists)-1].guests); d != "" || lists[0].age != time.Millisecond || lists[0].source != "libvirt" {
			t.Errorf("the first list (-want +got), asked for %v before:\n%s", lists[0].age, d)
		}
		// Events in their order, and no list for those that need none.
		for _, k := range []controller.GuestEventKind{controller.GuestMigrating, controller.GuestStopped} {
			h.say("web", k)
		}
		time.Sleep(10 * time.Millisecond)
		told, lists := e.take()
		if d := cmp.Diff([]string{"libvirt web migrating", "libvirt web stopped"}, told); d != "" || len(lists) != 0 {
			t.Errorf("events (-want +got), %d lists:\n%s", len(lists), d)
		}
		// One that nobody knows yet: the list is asked for at once.
		h.set([]controller.Guest{{Name: "new", State: controller.GuestRunning}}, nil)
		h.say("new", controller.GuestResumed)
		time.Sleep(5 * time.Millisecond)
		if _, lists := e.take(); len(lists) == 0 || lists[0].guests[0].Name != "new" {
			t.Errorf("after an event of a VM that is new: %+v", lists)
		}
		// Many changes are one list or two.
		for range 100 {
			h.say("new", controller.GuestChanged)
		}
		time.Sleep(10 * time.Millisecond)
		if _, lists := e.take(); len(lists) == 0 || len(lists) > 3 {
			t.Errorf("after a hundred changes: %d lists", len(lists))
		}
		// Nothing happens, and yet it is looked now and then.
		time.Sleep(time.Minute)
		if _, lists := e.take(); len(lists) != 2 {
			t.Errorf("in a minute: %d lists", len(lists))
		}
	})
}

// The daemon restarts: nobody hammers it, and when it is back all VMs are listed again.
func TestWatchGuestsAfterALostConnection(t *testing.T) {
	h := &fakeHypervisor{guests: []controller.Guest{{Name: "web", State: controller.GuestRunning}}}
	followed(t, h, func(e *fakeEngine) {
		e.take()
		h.lose(errors.New("connection refused"))
		before := h.watched()
		time.Sleep(time.Minute)
		if n := h.watched() - before; n < 5 || n > 25 {
			t.Errorf("in a minute it tried %d times", n)
		}
		if told, lists := e.take(); len(told)+len(lists) > 0 {
			t.Errorf("while it was gone: %v %v", told, lists)
		}
		h.set(nil, nil) // the VM is gone meanwhile
		time.Sleep(6 * time.Second)
		if _, lists := e.take(); len(lists) == 0 || len(lists[len(lists)-1].guests) != 0 {
			t.Errorf("when it is back: %+v", lists)
		}
		// A short break is mended at once.
		h.lose(nil)
		time.Sleep(200 * time.Millisecond)
		if _, lists := e.take(); len(lists) == 0 {
			t.Error("after a short break nothing was listed")
		}
	})
}

func TestMonitorEvents(t *testing.T) {
	e := &fakeEngine{known: []string{"web"}}
	at := time.Unix(1000, 0)
	log := slog.New(slog.DiscardHandler)
	guests := []qmp.Guest{
		{Socket: "/run/a.qmp", Name: "web", UUID: "u", Status: qmp.Status{Status: "running", Running: true}, Interfaces: []qmp.Interface{{MAC: "52:54:00:00:00:10", Device: "tap0"}}},
		{Socket: "/run/b.qmp", UUID: noUUID, Status: qmp.Status{Status: "inmigrate"}},
	}
	monitorEvent(t.Context(), qmp.Event{Kind: qmp.Listed, All: guests, At: at}, e, log)
	for _, k := range []qmp.EventKind{qmp.Migrating, qmp.Stopped, qmp.Failed, qmp.Resumed, qmp.Gone} {
		monitorEvent(t.Context(), qmp.Event{Kind: k, Guest: guests[0], At: at}, e, log)
	}
	told, lists := e.take()
	want := []xtr.Guest{{Name: "web", UUID: "u", Running: true, Interfaces: []xtr.GuestInterface{{MAC: "52:54:00:00:00:10", Device: "tap0"}}}, {Name: "/run/b.qmp"}}
	if len(lists) != 1 || lists[0].source != "qmp" || !cmp.Equal(want, lists[0].guests) {
		t.Errorf("list: %+v", lists)
	}
	if d := cmp.Diff([]string{"qmp web migrating", "qmp web stopped", "qmp web resumed", "qmp web gone"}, told); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}
