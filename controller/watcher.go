package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// watcher keeps the controller informed of one hypervisor's VMs, by its driver. It has a goroutine of its own, so that a
// driver that hangs delays nobody else; a lost connection is made again, and everything listed anew.
type hvWatcher struct {
	h      Hypervisor
	open   func(uri string) (Driver, error)
	timing Timing
	cancel context.CancelFunc
	report func(sighted)
	kicked chan struct{}

	mu  sync.Mutex
	drv Driver
	err error // why there is none
}

// sighted is what a driver said of a whole hypervisor, or why it said nothing.
type sighted struct {
	hv     string
	uri    string
	at     time.Time // when it was asked
	node   *Node     // nil = it was not asked this time
	guests []Guest
	err    error
}

func newHVWatcher(h Hypervisor, open func(string) (Driver, error), t Timing, report func(sighted)) *hvWatcher {
	return &hvWatcher{h: h, open: open, timing: t, report: report, kicked: make(chan struct{}, 1)}
}

func (w *hvWatcher) start(ctx context.Context, wg *sync.WaitGroup) {
	ctx, w.cancel = context.WithCancel(ctx)
	wg.Go(func() { w.run(ctx) })
}

// driver returns the driver, opening it if need be. The URI may be wrong; a hypervisor that is away shows only when
// something is asked of it.
func (w *hvWatcher) driver() (Driver, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.drv == nil {
		if w.drv, w.err = w.open(w.h.Driver); w.err != nil {
			w.drv = nil
			return nil, fmt.Errorf("driver %s: %w", w.h.Driver, w.err)
		}
	}
	return w.drv, nil
}

func (w *hvWatcher) run(ctx context.Context) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.drv != nil {
			_ = w.drv.Close() // nobody is left who could use it
			w.drv = nil
		}
	}()
	backoff := w.timing.DriverRetry
	for ctx.Err() == nil {
		d, err := w.driver()
		if err == nil {
			began := time.Now()
			err = w.follow(ctx, d)
			if time.Since(began) > w.timing.DriverRetryMax {
				backoff = w.timing.DriverRetry
			}
		}
		if ctx.Err() != nil {
			return
		}
		w.report(sighted{hv: w.h.Name, uri: w.h.Driver, at: time.Now(), err: err})
		sleep(ctx, backoff, nil)
		backoff = min(2*backoff, max(w.timing.DriverRetryMax, w.timing.DriverRetry))
	}
}

// errWatchEnded: a driver stopped telling without saying why.
var errWatchEnded = errors.New("it stopped telling of its VMs")

// follow lists and watches until something fails.
func (w *hvWatcher) follow(ctx context.Context, d Driver) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	// Watched first and listed then, so that nothing between the two is missed.
	go func() {
		err := d.Watch(ctx, func(ev GuestEvent) { kick(w.kicked) })
		if err == nil {
			err = errWatchEnded
		}
		ended <- err
	}()
	watching := true
	defer func() {
		cancel()
		if watching {
			<-ended
		}
	}()
	var noded time.Time
	for {
		s, err := w.list(ctx, d, time.Since(noded) >= w.timing.List)
		if err != nil {
			return err
		}
		if s.node != nil {
			noded = s.at
		}
		w.report(s)
		timer := time.NewTimer(w.timing.List)
		select {
		case <-ctx.Done():
		case err := <-ended:
			watching = false
			timer.Stop()
			return err
		case <-timer.C:
		case <-w.kicked:
			// Events come in swarms: one list is enough for all of them.
			sleep(ctx, w.timing.ListSoon, nil)
			select {
			case <-w.kicked:
			default:
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (w *hvWatcher) list(ctx context.Context, d Driver, node bool) (sighted, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timing.Driver)
	defer cancel()
	s := sighted{hv: w.h.Name, uri: w.h.Driver, at: time.Now()}
	if node {
		n, err := d.Node(ctx)
		if err != nil {
			return s, fmt.Errorf("ask what it has: %w", err)
		}
		s.node = &n
	}
	var err error
	if s.guests, err = d.Guests(ctx); err != nil {
		return s, fmt.Errorf("list its VMs: %w", err)
	}
	return s, nil
}

// look makes the watcher list again soon.
func (w *hvWatcher) look() { kick(w.kicked) }
