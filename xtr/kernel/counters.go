package kernel

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// dropNames are the reasons why a program drops a packet: enum drop of bpf/maps.h.
var dropNames = [...]string{
	"malformed",           // not a sound packet
	"unknown-source",      // a VM sent from an address that is no EID of its interface
	"unknown-rloc",        // the outer source may not send to an xTR
	"spoofed-rloc",        // the outer source is the cloud's, but it came from upstream
	"spoofed-source",      // the inner source is the cloud's, the outer source is not
	"foreign-destination", // from outside the cloud for outside the cloud
	"not-local",           // decapsulated for an EID that is not here
	"ecn",                 // congestion was experienced by what cannot be told (RFC 6040 section 4.2)
	"route",               // the route says drop
	"rloc-down",           // all RLOCs are down
	"no-path",             // no way to the RLOC or the VM
	"miss-rate",           // too many packets without a route
	"ttl-rate",            // too many packets that died of age
	"encap",               // the kernel refused to make room
	"decap",               // the kernel refused to take the outer headers off
	"door",                // lisp0 is not there, or what Go wrote to it made no sense
	"translate",           // the kernel refused what a translation needs
	"pool",                // for the pool prefix, but not from the cloud
	"translate-rate",      // too many packets that Go would have to translate
}

var upNames = [...]string{"", "miss", "hold", "copy", "too-big", "ttl", "segment", "translate"}

// RouteCount is what a route has done.
type RouteCount struct {
	EID     lisp.EID  `json:"eid"`
	Packets uint64    `json:"packets"` // segments of super-packets count
	Bytes   uint64    `json:"bytes"`   // of inner packets
	Used    time.Time `json:"used"`    // by the last packet, to some 10 ms; zero = never
}

// HoldCounters says how many packets were diverted to a hold and how many of them are out again or
// will never be; segments of super-packets count.
func (d *DataPlane) HoldCounters(hold uint32) (diverted, reinjected uint64, err error) {
	err = d.ask(func() error {
		var h [2]uint64
		var lost uint64
		err := errors.Join(d.maps["holds"].Lookup(hold, &h), d.maps["lost"].Lookup(hold, &lost))
		diverted, reinjected = h[0], h[1]+lost
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("kernel: hold %d: %w", hold, err)
	}
	return diverted, reinjected, nil
}

// HoldReset makes the counters of a hold equal. Nothing may be on its way.
func (d *DataPlane) HoldReset(hold uint32) error {
	err := d.ask(func() error {
		d.lost.Lock()
		defer d.lost.Unlock()
		return errors.Join(d.maps["holds"].Put(hold, [2]uint64{}), d.maps["lost"].Put(hold, uint64(0)))
	})
	if err != nil {
		return fmt.Errorf("kernel: hold %d: %w", hold, err)
	}
	return nil
}

// HoldDropped says that n packets of a hold will not come back. What will come though it was never
// diverted counts below zero, in two's complement.
func (d *DataPlane) HoldDropped(hold uint32, n uint64) error {
	err := d.ask(func() error {
		d.lost.Lock()
		defer d.lost.Unlock()
		var lost uint64
		if err := d.maps["lost"].Lookup(hold, &lost); err != nil {
			return err
		}
		return d.maps["lost"].Put(hold, lost+n)
	})
	if err != nil {
		return fmt.Errorf("kernel: hold %d: %w", hold, err)
	}
	return nil
}

// ask runs f, which asks the kernel, unless the data plane is closed.
func (d *DataPlane) ask(f func() error) error {
	d.live.RLock()
	defer d.live.RUnlock()
	if d.maps == nil {
		return errClosed
	}
	return f()
}

// PortCounters returns what a port was given.
func (d *DataPlane) PortCounters(port uint16) (fib.PortCount, error) {
	var e portEntry
	var given uint64
	err := d.ask(func() error {
		at := uint32(port) - 1
		return errors.Join(d.maps["ports"].Lookup(at, &e), d.maps["given"].Lookup(at, &given))
	})
	if err == nil && e.Ifindex == 0 {
		err = errors.New("no such port")
	}
	if err != nil {
		return fib.PortCount{}, fmt.Errorf("kernel: port %d: %w", port, err)
	}
	return fib.PortCount{Given: e.Base + given}, nil
}

// Drops returns how many packets were dropped, by reason.
func (d *DataPlane) Drops() map[string]uint64 { return d.byName("drops", dropNames[:], 0) }

// DropCounts returns the packets and bytes that were dropped, by reason.
func (d *DataPlane) DropCounts() map[string]fib.Count {
	return d.countsByName("drops", dropNames[:], 0)
}

// Ups returns how many packets were handed up, by reason.
func (d *DataPlane) Ups() map[string]uint64 { return d.byName("ups", upNames[:], int(fib.UpMiss)) }

func (d *DataPlane) byName(name string, names []string, first int) map[string]uint64 {
	out := make(map[string]uint64, len(names))
	for n, c := range d.countsByName(name, names, first) {
		out[n] = c.Packets
	}
	return out
}

func (d *DataPlane) countsByName(name string, names []string, first int) map[string]fib.Count {
	out := make(map[string]fib.Count, len(names))
	// Of a data plane that is closed nothing is known.
	_ = d.ask(func() error {
		for i := first; i < len(names); i++ {
			var perCPU []count
			if err := d.maps[name].Lookup(uint32(i), &perCPU); err != nil {
				return err
			}
			var sum fib.Count
			for _, c := range perCPU {
				sum.Packets += c.Packets
				sum.Bytes += c.Bytes
			}
			out[names[i]] = sum
		}
		return nil
	})
	return out
}

// RouteCounters returns what the route for exactly this EID has done; false without such a route.
func (d *DataPlane) RouteCounters(e lisp.EID) (RouteCount, bool, error) {
	now, err := d.readClock()
	if err != nil {
		return RouteCount{}, false, fmt.Errorf("kernel: counters: %w", err)
	}
	if err := d.lock(); err != nil {
		return RouteCount{}, false, err
	}
	defer d.mu.Unlock()
	to, ok := d.fib.routes[e]
	if !ok {
		return RouteCount{}, false, nil
	}
	var perCPU []routeCount
	if err := d.fib.counters.chunks[to.Counter/chunkLen].Lookup(to.Counter%chunkLen, &perCPU); err != nil {
		return RouteCount{}, false, fmt.Errorf("kernel: counters: %v: %w", e, err)
	}
	return now.sum(e, perCPU), true, nil
}

// AllCounters returns what every route has done, sorted by EID.
func (d *DataPlane) AllCounters() ([]RouteCount, error) {
	now, err := d.readClock()
	if err != nil {
		return nil, fmt.Errorf("kernel: counters: %w", err)
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	owners, chunks, n := slices.Clone(d.fib.byCounter), slices.Clone(d.fib.counters.chunks), len(d.fib.routes)
	d.mu.Unlock()
	out := make([]RouteCount, 0, n)
	err = d.ask(func() error {
		for i, m := range chunks {
			if m == nil {
				continue
			}
			if err := readChunk(m, func(in uint32, perCPU []routeCount) {
				if at := i*chunkLen + int(in); at < len(owners) && owners[at].Prefix.IsValid() {
					out = append(out, now.sum(owners[at], perCPU))
				}
			}); err != nil {
				return fmt.Errorf("kernel: counters: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b RouteCount) int { return a.EID.Compare(b.EID) })
	return out, nil
}

func readChunk(m *ebpf.Map, f func(uint32, []routeCount)) error {
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, chunkLen), make([]routeCount, chunkLen*cpus)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(keys[i], values[i*cpus:(i+1)*cpus])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// clock relates the kernel's jiffies to the time.
type clock struct {
	jiffies, hz uint64
	now         time.Time
}

func (d *DataPlane) readClock() (c clock, err error) {
	err = d.ask(func() error {
		j, err := d.jiffies()
		c = clock{j, d.hz, time.Now()}
		return err
	})
	return c, err
}

func (c clock) sum(e lisp.EID, perCPU []routeCount) RouteCount {
	r := RouteCount{EID: e}
	var last uint64
	for _, n := range perCPU {
		r.Packets += n.Packets
		r.Bytes += n.Bytes
		last = max(last, n.Used)
	}
	if last > 0 {
		ago := time.Duration(int64(c.jiffies-last)) * time.Second / time.Duration(c.hz)
		r.Used = c.now.Add(-max(ago, 0))
	}
	return r
}

// Packets returns how many packets have taken the route for e; false if there is no route.
func (d *DataPlane) Packets(e lisp.EID) (uint64, bool) {
	c, ok, err := d.RouteCounters(e)
	return c.Packets, ok && err == nil
}
