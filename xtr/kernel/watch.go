package kernel

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

const (
	settleTime   = 20 * time.Millisecond // that changes of the host's routes are collected
	refreshEvery = 30 * time.Second      // for what no message tells of
)

// watch follows the events of the programs and the host's routes, addresses and interfaces until stop.
func (d *DataPlane) watch() error {
	events, err := ringbuf.NewReader(d.maps["events"])
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	ns, err := netns.Get()
	if err != nil {
		return errors.Join(fmt.Errorf("network namespace: %w", err), events.Close())
	}
	defer ns.Close()
	quit := make(chan struct{})
	d.quit = quit
	routes, addrs, links := make(chan netlink.RouteUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.LinkUpdate, 64)
	failed := func(err error) {
		select {
		case <-quit:
		default:
			d.log.Warn("changes of the host's routes are noticed late", "error", err)
		}
	}
	err = errors.Join(
		netlink.RouteSubscribeWithOptions(routes, quit, netlink.RouteSubscribeOptions{Namespace: &ns, ErrorCallback: failed}),
		netlink.AddrSubscribeWithOptions(addrs, quit, netlink.AddrSubscribeOptions{Namespace: &ns, ErrorCallback: failed}),
		netlink.LinkSubscribeWithOptions(links, quit, netlink.LinkSubscribeOptions{Namespace: &ns, ErrorCallback: failed}),
	)
	if err != nil {
		close(quit)
		return errors.Join(fmt.Errorf("watch the host's routes: %w", err), events.Close())
	}
	d.stop = func() {
		close(quit)
		events.Close()
	}
	d.done.Go(func() { d.readEvents(events) })
	d.done.Go(func() { d.follow(quit, routes, addrs, links) })
	return nil
}

// follow looks the paths to the RLOCs up again after changes.
func (d *DataPlane) follow(quit chan struct{}, routes chan netlink.RouteUpdate, addrs chan netlink.AddrUpdate, links chan netlink.LinkUpdate) {
	timer := time.NewTimer(refreshEvery)
	defer timer.Stop()
	waiting := false
	soon := func() {
		if !waiting {
			waiting = true
			timer.Reset(settleTime)
		}
	}
	for {
		select {
		case <-quit:
			// The subscriptions end by closing their channels, after what is on its way.
			for routes != nil || addrs != nil || links != nil {
				select {
				case _, ok := <-routes:
					if !ok {
						routes = nil
					}
				case _, ok := <-addrs:
					if !ok {
						addrs = nil
					}
				case _, ok := <-links:
					if !ok {
						links = nil
					}
				}
			}
			return
		case _, ok := <-routes:
			if !ok {
				routes = nil
				continue
			}
			soon()
		case _, ok := <-addrs:
			if !ok {
				addrs = nil
				continue
			}
			soon()
		case _, ok := <-links:
			if !ok {
				links = nil
				continue
			}
			soon()
		case <-timer.C:
			waiting = false
			d.refresh()
			timer.Reset(refreshEvery)
		}
	}
}

func (d *DataPlane) refresh() {
	facts, err := d.linkFacts()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ports.learn(facts)
	if err := errors.Join(err, d.rlocs.refresh(), d.ports.settle()); err != nil {
		d.log.Warn("paths not looked up", "error", err)
	}
}

var eventKinds = [...]fib.EventKind{0, fib.EventSource, fib.EventUnknownSource, fib.EventMoved, fib.EventNotLocal}

func (d *DataPlane) readEvents(r *ringbuf.Reader) {
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if !errors.Is(err, ringbuf.ErrClosed) {
				d.log.Error("events are no longer read", "error", err)
			}
			return
		}
		e, ok := decodeEvent(rec.RawSample, time.Now())
		if !ok {
			continue
		}
		select {
		case d.events <- e:
		default: // nobody reads; events may be lost
		}
	}
}

// eventLen is the length of struct event in bytes.
const eventLen = 56

// decodeEvent reads what a program wrote.
func decodeEvent(b []byte, at time.Time) (fib.Event, bool) {
	if len(b) < eventLen || int(b[0]) >= len(eventKinds) || b[0] == 0 {
		return fib.Event{}, false
	}
	iid := le32(b[4:])
	e := fib.Event{
		Kind: eventKinds[b[0]], At: at, If: int(le32(b[40:])),
		EID: lisp.HostEID(iid, wordAddr([16]byte(b[8:24]), b[1] != 0)),
	}
	if b[2] != 0 {
		e.RLOC = wordAddr([16]byte(b[24:40]), b[3] != 0).String()
	}
	if e.Kind == fib.EventSource || e.Kind == fib.EventUnknownSource {
		e.MAC = slices.Clone(net.HardwareAddr(b[44:50]))
	} else {
		e.If = 0
	}
	return e, e.EID.IsValid()
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
