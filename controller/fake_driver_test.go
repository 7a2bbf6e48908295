package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Hypervisors with drivers, in memory. They outlive the controller, and go on with what it left them at.

const webUUID = "11111111-2222-4333-8444-555555555555"

// fakeHyp is a hypervisor's libvirt.
type fakeHyp struct {
	name   string
	down   bool
	hang   bool // every question waits for the end of its context
	node   Node
	guests map[string]*Guest
	kicks  map[chan GuestEvent]bool
	log    []string
	opened int

	// How the next migrations from here go.
	fail    error          // after a second of memory
	lost    bool           // where it runs is not known then: the driver says so
	steps   []Progress     // that are told, one a second; nil = the usual ones
	endless bool           // the last one is repeated until it is ended or steered
	steerNo error          // Steer is refused
	steered []Steering     // what was asked for
	steer   func(Steering) // what comes of it
	took    []Migration
	finish  chan struct{} // an endless one comes to its end

	controlled error // of Control and Define
}

func (w *cloud) hyp(hv string) *fakeHyp {
	h := w.hyps[hv]
	if h == nil {
		h = &fakeHyp{name: hv, guests: map[string]*Guest{}, kicks: map[chan GuestEvent]bool{}, finish: make(chan struct{}, 8),
			node: Node{Hostname: hv + ".example.net", CPUs: 8, Memory: 64 << 30, MemoryFree: 60 << 30, CPUModel: "EPYC", Machines: []string{"q35", "pc-q35-7.2"}}}
		w.hyps[hv] = h
	}
	return h
}

// drivers is Config.Drivers.
func (w *cloud) drivers(uri string) (Driver, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "test+tcp" {
		return nil, fmt.Errorf("%q is no URI of a test", uri)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hyp(u.Host).opened++
	return &fakeDriver{w, u.Host}, nil
}

type fakeDriver struct {
	w  *cloud
	hv string
}

// enter returns with the lock held, or an error.
func (d *fakeDriver) enter(ctx context.Context) (*fakeHyp, error) {
	time.Sleep(latency)
	d.w.mu.Lock()
	h := d.w.hyp(d.hv)
	switch {
	case h.hang:
		d.w.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	case h.down:
		d.w.mu.Unlock()
		return nil, errors.New("libvirt: connect: connection refused")
	}
	return h, nil
}

func (d *fakeDriver) Node(ctx context.Context) (Node, error) {
	h, err := d.enter(ctx)
	if err != nil {
		return Node{}, err
	}
	defer d.w.mu.Unlock()
	return h.node, nil
}

func (d *fakeDriver) Guests(ctx context.Context) ([]Guest, error) {
	h, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer d.w.mu.Unlock()
	var out []Guest
	for _, n := range slices.Sorted(maps.Keys(h.guests)) {
		g := *h.guests[n]
		g.Interfaces = slices.Clone(g.Interfaces)
		out = append(out, g)
	}
	return out, nil
}

func (d *fakeDriver) Watch(ctx context.Context, f func(GuestEvent)) error {
	h, err := d.enter(ctx)
	if err != nil {
		return err
	}
	ch := make(chan GuestEvent, 64)
	h.kicks[ch] = true
	d.w.mu.Unlock()
	defer d.w.with(func() { delete(h.kicks, ch) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-ch:
			if !ok {
				return errors.New("libvirt: connection lost")
			}
			f(ev)
		}
	}
}

// tell says to all watchers that something has changed. The lock is held.
func (h *fakeHyp) tell(vm string, k GuestEventKind) {
	for ch := range h.kicks {
		select {
		case ch <- GuestEvent{VM: vm, Kind: k, At: time.Now()}:
		default:
		}
	}
}

// die breaks all connections. The lock is held.
func (h *fakeHyp) die() {
	h.down = true
	for ch := range h.kicks {
		close(ch)
		delete(h.kicks, ch)
	}
}

func (d *fakeDriver) Define(ctx context.Context, def string) (Guest, error) {
	h, err := d.enter(ctx)
	if err != nil {
		return Guest{}, err
	}
	defer d.w.mu.Unlock()
	if h.controlled != nil {
		return Guest{}, h.controlled
	}
	name, err := domainName([]byte(def))
	if err != nil {
		return Guest{}, err
	}
	g := &Guest{Name: name, UUID: "99999999-2222-4333-8444-555555555555", State: GuestOff, Persistent: true, VCPUs: 1, Memory: 1 << 30}
	h.guests[name] = g
	h.tell(name, GuestChanged)
	return *g, nil
}

func (d *fakeDriver) Undefine(ctx context.Context, vm string) error {
	h, err := d.enter(ctx)
	if err == nil {
		delete(h.guests, vm)
		d.w.mu.Unlock()
	}
	return err
}

func (d *fakeDriver) Control(ctx context.Context, vm string, do Action) error {
	h, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer d.w.mu.Unlock()
	h.log = append(h.log, string(do)+" "+vm)
	g := h.guests[vm]
	switch {
	case h.controlled != nil:
		return h.controlled
	case g == nil:
		return errors.New("no such domain")
	}
	g.State = map[Action]GuestState{ActionStart: GuestRunning, ActionStop: GuestOff, ActionKill: GuestOff,
		ActionHibernate: GuestHibernated, ActionPause: GuestPaused, ActionUnpause: GuestRunning}[do]
	h.tell(vm, GuestChanged)
	return nil
}

func (d *fakeDriver) Steer(ctx context.Context, vm string, s Steering) error {
	h, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer d.w.mu.Unlock()
	if h.steerNo != nil {
		return h.steerNo
	}
	h.steered = append(h.steered, s)
	if h.steer != nil {
		h.steer(s)
	}
	return nil
}

func (d *fakeDriver) Close() error { return nil }

const (
	guestMemory = 1 << 30
	lineRate    = 100 << 20
)

// usual are the steps of a migration that goes well.
var usual = []Progress{
	{Phase: "memory", Total: guestMemory, Done: guestMemory / 2, Remaining: guestMemory / 2, Sent: guestMemory / 2, Rate: lineRate, Iteration: 1, Elapsed: 5 * time.Second},
	{Phase: "memory", Total: guestMemory, Done: guestMemory - 20<<20, Remaining: 20 << 20, Sent: guestMemory, Rate: lineRate, DirtyRate: 2 << 20, Iteration: 2, Elapsed: 10 * time.Second},
	{Phase: "memory", Total: guestMemory, Done: guestMemory - 1<<20, Remaining: 1 << 20, Sent: guestMemory + 20<<20, Rate: lineRate, DirtyRate: 2 << 20, Iteration: 3, Elapsed: 11 * time.Second, Downtime: 12 * time.Millisecond},
}

// Migrate is a live migration: what it does goes on without the caller if it was left alone.
func (d *fakeDriver) Migrate(ctx context.Context, m Migration, progress func(Progress)) error {
	h, err := d.enter(ctx)
	if err != nil {
		return err
	}
	h.took = append(h.took, m)
	u, err := url.Parse(m.Dest)
	g := h.guests[m.VM]
	if err != nil || g == nil {
		d.w.mu.Unlock()
		return fmt.Errorf("libvirt: migrate %s to %s: no such domain", m.VM, m.Dest)
	}
	to := d.w.hyp(u.Host)
	if to.down {
		d.w.mu.Unlock()
		return fmt.Errorf("libvirt: migrate %s to %s: unable to connect to server: connection refused\nsecond line", m.VM, m.Dest)
	}
	d.w.mu.Unlock()
	detached := make(chan struct{})
	done := make(chan error, 1)
	stop := make(chan struct{})
	d.w.wg.Go(func() {
		done <- d.w.goOn(h, to, g.Name, m, stop, func(p Progress) {
			select {
			case <-detached:
			default:
				progress(p)
			}
		})
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrDetached) {
			close(detached)
			return &ErrMigrationUnclear{ErrDetached}
		}
		close(stop)
		if err := <-done; err != nil {
			return fmt.Errorf("libvirt: %w (%w)", context.Cause(ctx), err)
		}
		return nil
	}
}

// goOn is what two hypervisors do to migrate a VM.
func (w *cloud) goOn(h, to *fakeHyp, name string, m Migration, stop <-chan struct{}, progress func(Progress)) error {
	var g *Guest
	var off bool
	w.with(func() {
		g = h.guests[name]
		off = g.State == GuestOff
		in := *g
		if !off {
			in.State = GuestPaused
		}
		to.guests[name] = &in
		to.tell(name, GuestChanged)
	})
	back := func(err error) error {
		w.with(func() {
			g.State = GuestRunning
			delete(to.guests, name)
			to.tell(name, GuestGone)
			h.tell(name, GuestResumed)
		})
		return err
	}
	progress(Progress{Phase: "setup"})
	steps := usual
	if h.steps != nil {
		steps = h.steps
	}
	if off {
		steps = nil
	}
	for i := 0; i < len(steps); i++ {
		select {
		case <-stop:
			return back(errors.New("operation aborted: migration job: canceled by client"))
		case <-h.finish:
			i = len(steps)
			continue
		case <-time.After(time.Second):
		}
		progress(steps[i])
		if h.fail != nil && i == 0 {
			return back(h.fail)
		}
		if h.endless && i == len(steps)-1 {
			i--
		}
	}
	if m.Mode == ModePostCopy {
		progress(Progress{Phase: "post-copy", Total: guestMemory, Remaining: guestMemory})
	}
	// The switch.
	w.with(func() {
		if !off {
			g.State = GuestPaused
			if r := w.agent(h.name).hos[w.lastMove]; r != nil {
				redirect(r)
			}
		}
	})
	time.Sleep(20 * time.Millisecond)
	if h.lost {
		w.with(func() { h.tell(name, GuestStopped) })
		return &ErrMigrationUnclear{errors.New("the connection broke at the switch")}
	}
	w.with(func() {
		if !off {
			to.guests[name].State = GuestRunning
			if r := w.agent(to.name).hos[w.lastMove]; r != nil {
				w.run(w.agent(to.name), r)
			}
		}
		delete(h.guests, name)
		to.tell(name, GuestResumed)
		h.tell(name, GuestGone)
	})
	progress(Progress{Phase: "done", Total: guestMemory, Done: guestMemory, Sent: guestMemory + 21<<20, Elapsed: 12 * time.Second, Downtime: 20 * time.Millisecond, DirtyRate: 2 << 20})
	return nil
}

// guestFor is a guest that is the VM web.
func guestFor() *Guest {
	return &Guest{Name: "web", UUID: webUUID, State: GuestRunning, VCPUs: 2, Memory: guestMemory, Machine: "q35", Persistent: true,
		Interfaces: []GuestInterface{{MAC: "52:54:00:00:00:10", Device: "tap-web"}}}
}

func driverBody(hv string) string {
	return strings.Replace(hvBody(hv), `"site"`, `"driver":"test+tcp://`+hv+`/system","migrate_uri":"tcp://`+rlocOf(hv).String()+`","site"`, 1)
}

// equip puts three sites with a hypervisor each, all with drivers, and the VM web on hv1, which has version 6.
func (w *cloud) equip(t *testing.T, r *ctl) {
	t.Helper()
	w.with(func() {
		w.hyp("hv1").guests["web"] = guestFor()
		for _, hv := range hvNames {
			w.agent(hv).node = &agentNode{EIDPrefixes: []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8:e1d::/48")}, Interfaces: []string{"tap-web"}, MTU: 1400}
		}
	})
	w.furnish(t, r, 6)
	for _, h := range hvNames {
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/"+h, driverBody(h))
	}
	time.Sleep(time.Second) // the drivers are listed
}
