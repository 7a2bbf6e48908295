// Package kernel is the data plane in the kernel: it moves LISP packets (RFC 9300) by eBPF programs at the
// interfaces and is told where by routes ([fib.Route]).
//
// Everything is pinned below [Config.PinDir]. A process that ends, or that is killed, leaves the programs
// at work; the next [Open] with the same directory picks them up, together with the routes.
//
// A D-ETR's programs translate for services, too ([DataPlane.SetServices]; RFC 7915, 7757, 6052, 6296): TCP, UDP and
// ICMP echo, also in fragments as far as those need nothing of each other, in one pass with the look-up of the route.
// What else has to be translated is handed up for package map646.
//
// What the programs cannot do alone goes through lisp0, a TAP device, to Go and back: package fib
// describes the frames.
package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Config says what a data plane is for.
type Config struct {
	// PinDir is the directory that holds the pinned programs and maps. A bpffs is mounted on it where
	// it does not lie on one.
	PinDir string
	// LISP0 is the name of the TAP device, default "lisp0".
	LISP0 string
	// Self are our own RLOCs, at most 8 of a family; packets for others are not decapsulated. The first
	// of a family that fits is the source of what is encapsulated.
	Self []netip.Addr
	// AllowedRLOCs are the cloud's own: only they may send to an xTR, and only they may send what comes
	// from inside Own.
	AllowedRLOCs []netip.Prefix
	// Own are the cloud's aggregates of EIDs, and what else is the cloud's to be reached at: prefixes of service
	// addresses, and Pool. What is sent to one of them stays in the cloud: there a VM's source stays its EID, unless it
	// speaks to a service address.
	Own []lisp.EID
	// Anchor makes this a D-ETR: anybody may send for destinations inside Own from sources outside Own,
	// and what comes from the cloud may go anywhere.
	Anchor bool
	// MTU is the largest inner packet in bytes where a route does not say, and lisp0's MTU; default 1444:
	// 1500 less the longest outer headers.
	MTU int
	// Decap says where underlay packets are decapsulated: "xdp" before the kernel merges segments (best
	// on a wire), "tc" after (best where segments never existed, as on a veth), "auto" by the kind of the
	// interface. Default "auto".
	Decap string
	// Capacity is how many routes of each family fit, and with Anchor as many services, default 65536. Memory
	// for them is taken as they come, but for 32 bytes for each service that would fit.
	Capacity int

	// Pool is the prefix in which the rest of IPv4 is embedded for VMs that speak with it through services
	// (RFC 6052): 32, 40, 48, 56, 64 or 96 bits. Without it only services with IPv6 outside are translated.
	Pool netip.Prefix
	// LowestMTU6 is the least MTU in bytes that IPv6 paths in the cloud have (RFC 7915 section 4.1,
	// "lowest-ipv6-mtu"): IPv4 packets that may be fragmented are handed up when they would become larger.
	// At least 1280; default MTU.
	LowestMTU6 int
}

// Port says what an interface with a VM is.
type Port struct {
	IID uint32 // instance-ID of what the VM sends
	// Stack lets the host's stack forward the VM's packets, so that its filters see them; they are
	// encapsulated on their way out of lisp0. Only in instance 0.
	Stack bool
}

func (c Config) withDefaults() (Config, error) {
	c.LISP0 = cmp.Or(c.LISP0, "lisp0")
	c.MTU = cmp.Or(c.MTU, 1500-56)
	c.Decap = cmp.Or(c.Decap, "auto")
	c.Capacity = cmp.Or(c.Capacity, 1<<16)
	c.LowestMTU6 = cmp.Or(c.LowestMTU6, c.MTU)
	c.Self = slices.Clone(c.Self)
	n := map[bool]int{}
	for i, a := range c.Self {
		a = a.Unmap().WithZone("")
		if !a.IsValid() {
			return c, fmt.Errorf("own RLOC %d: not an address", i)
		}
		c.Self[i] = a
		n[a.Is4()]++
	}
	switch {
	case c.PinDir == "":
		return c, errors.New("no pin directory")
	case len(c.LISP0) > 15:
		return c, fmt.Errorf("device name %q: longer than 15 bytes", c.LISP0)
	case n[true] > nSelf || n[false] > nSelf:
		return c, fmt.Errorf("own RLOCs: more than %d of a family", nSelf)
	case c.MTU < 1280 || c.MTU > 65535-56:
		return c, fmt.Errorf("MTU %d: not in 1280..%d", c.MTU, 65535-56)
	case c.Capacity < 1 || c.Capacity > 1<<24:
		return c, fmt.Errorf("capacity %d: not in 1..%d", c.Capacity, 1<<24)
	case c.LowestMTU6 < 1280 || c.LowestMTU6 > 65535:
		return c, fmt.Errorf("lowest IPv6 MTU %d: not in 1280..65535", c.LowestMTU6)
	case c.Decap != "auto" && c.Decap != "xdp" && c.Decap != "tc":
		return c, fmt.Errorf("decapsulation %q: not auto, xdp or tc", c.Decap)
	}
	for _, p := range c.AllowedRLOCs {
		if !p.IsValid() {
			return c, fmt.Errorf("allowed RLOCs: %v is not a prefix", p)
		}
	}
	for _, e := range c.Own {
		if err := checkEID(e); err != nil {
			return c, fmt.Errorf("own EIDs: %w", err)
		}
	}
	return c, checkPool(c.Pool)
}

// DataPlane is an open data plane. Its methods may be called from any goroutine; those that attach
// something, from a thread in the network namespace that Open was called in.
type DataPlane struct {
	cfg  Config
	log  *slog.Logger
	nl   *netlink.Handle
	door door

	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	hz    uint64
	// renewed: not all maps are those that the attached programs have.
	renewed bool

	snaps snapshots

	mu       sync.Mutex // guards what follows
	closed   bool
	conf     confEntry
	fib      table
	rlocs    rlocTable
	ports    portTable
	services serviceTable

	// live is held for reading by who asks the kernel and nothing else: the flush of a hold does not
	// wait for a large table.
	live sync.RWMutex
	lost sync.Mutex // guards the map of this name

	events chan fib.Event
	quit   chan struct{} // closed by stop
	stop   func()
	done   sync.WaitGroup
}

// Open loads the programs, or picks up those that are pinned, and brings lisp0 up. Routes, ports and
// RLOC states that were pinned stay as they are; whoever opened it compares [DataPlane.Routes] with what
// should be. It must be called on a thread in the network namespace that the data plane is for.
func Open(cfg Config, log *slog.Logger) (_ *DataPlane, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	d := &DataPlane{cfg: cfg, log: log, events: make(chan fib.Event, 1024)}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("kernel: %w", errors.Join(err, d.close()))
	}
	return d, nil
}

func (d *DataPlane) open() error {
	var err error
	if err = mountBPF(d.cfg.PinDir); err != nil {
		return err
	}
	if d.nl, err = netlink.NewHandle(); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if err = d.load(); err != nil {
		return err
	}
	if err = d.openDoor(); err != nil {
		return err
	}
	if err = d.readHZ(); err != nil {
		return err
	}
	if err = d.configure(); err != nil {
		return err
	}
	d.rlocs = newRLOCTable(d)
	d.ports = newPortTable(d)
	d.fib = newTable(d)
	d.services = newServiceTable(d)
	d.snaps.d = d
	if err = d.ports.read(); err != nil {
		return err
	}
	if err = d.rlocs.read(); err != nil {
		return err
	}
	if err = d.fib.read(); err != nil {
		return err
	}
	d.rlocs.taken()
	if err = d.services.read(); err != nil {
		return err
	}
	if err = d.reattach(); err != nil {
		return err
	}
	return d.watch()
}

// Close ends the process's part and leaves the programs at work.
func (d *DataPlane) Close() error {
	if err := d.close(); err != nil {
		return fmt.Errorf("kernel: close: %w", err)
	}
	return nil
}

func (d *DataPlane) close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
	d.done.Wait()
	var errs []error
	for _, f := range d.door.queues {
		errs = append(errs, f.Close())
	}
	d.door.queues = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live.Lock()
	defer d.live.Unlock()
	d.fib.close()
	d.services.close()
	for _, p := range d.progs {
		errs = append(errs, p.Close())
	}
	for _, m := range d.maps {
		errs = append(errs, m.Close())
	}
	d.progs, d.maps = nil, nil
	if d.nl != nil {
		d.nl.Close()
		d.nl = nil
	}
	return errors.Join(errs...)
}

var errClosed = errors.New("kernel: the data plane is closed")

// lock takes mu, unless the data plane is closed.
func (d *DataPlane) lock() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errClosed
	}
	return nil
}

// Remove takes everything away: programs, routes, lisp0. Packets are no longer ours. It closes d.
func (d *DataPlane) Remove() error {
	if err := d.lock(); err != nil {
		return err
	}
	errs := []error{d.detachAll(), d.removeDoor(), d.mergeNoMore()}
	d.mu.Unlock()
	errs = append(errs, d.Close(), removePins(d.cfg.PinDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kernel: remove: %w", err)
	}
	return nil
}

// configure writes what the programs need to know of cfg.
func (d *DataPlane) configure() error {
	rate := func(perSecond uint64) uint32 { return uint32(perSecond * 1024 / d.hz) }
	c := confEntry{
		Door: uint32(d.door.index), MTU: uint32(d.cfg.MTU), CacheMask: d.maps["dcache"].MaxEntries() - 1, HZ: uint32(d.hz),
		MissRate: rate(20000), EventRate: rate(1000), TTLRate: rate(2000), TranslateRate: rate(20000),
		Lowest6: uint32(d.cfg.LowestMTU6),
	}
	poolConf(&c, d.cfg.Pool)
	if d.cfg.Anchor {
		c.Flags |= confAnchor
	}
	for _, a := range d.cfg.Self {
		if a.Is4() {
			c.Self4[c.N4] = a.As4()
			c.N4++
		} else {
			c.Self6[c.N6] = a.As16()
			c.N6++
		}
	}
	var old confEntry
	if err := d.maps["conf"].Lookup(uint32(0), &old); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	c.Secret = old.Secret
	for c.Secret == 0 {
		c.Secret = randomUint64()
	}
	// What there is to translate is translated while it is read.
	c.Flags |= old.Flags & (confServices4 | confServices6 | confRanges)
	if err := d.maps["conf"].Put(uint32(0), c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	d.conf = c
	if err := d.maps["mappings"].Put(uint32(0), mapping{Act: actMiss}); err != nil {
		return fmt.Errorf("mapping of what has no route: %w", err)
	}
	allowed := make([]lisp.EID, 0, len(d.cfg.AllowedRLOCs))
	for _, p := range d.cfg.AllowedRLOCs {
		allowed = append(allowed, lisp.MakeEID(0, p))
	}
	if err := d.writeSet("allow4", "allow6", allowed); err != nil {
		return fmt.Errorf("allowed RLOCs: %w", err)
	}
	if err := d.writeSet("own4", "own6", d.cfg.Own); err != nil {
		return fmt.Errorf("own EIDs: %w", err)
	}
	return nil
}

// writeSet makes a pair of tries hold exactly the prefixes given: first what is new, then away with what
// is not in it any more.
func (d *DataPlane) writeSet(name4, name6 string, set []lisp.EID) error {
	want4, want6 := map[key4]bool{}, map[key6]bool{}
	for _, e := range set {
		if e.Prefix.Addr().Is4() {
			want4[makeKey4(e)] = true
		} else {
			want6[makeKey6(e)] = true
		}
	}
	if err := syncSet(d.maps[name4], want4); err != nil {
		return err
	}
	return syncSet(d.maps[name6], want6)
}

func syncSet[K comparable](m *ebpf.Map, want map[K]bool) error {
	for k := range want {
		if err := m.Put(k, uint32(1)); err != nil {
			return err
		}
	}
	var k K
	var v uint32
	var gone []K
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !want[k] {
			gone = append(gone, k)
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	for _, k := range gone {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// cacheBuckets sizes the destination cache of each CPU: at most 16 MiB for all of them.
func cacheBuckets() uint32 {
	n := uint32(8192)
	for n > 1024 && uint64(n)*64*uint64(ebpf.MustPossibleCPU()) > 16<<20 {
		n /= 2
	}
	return n
}

// grace waits until no program works with what it read before: the kernel's RCU grace period.
func grace() error {
	if err := membarrier(); err != nil {
		// Where the call is not to be had, time does it: programs run for microseconds.
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// Queues returns the opened queues of lisp0. There is one: more would let packets of a hold pass each
// other. They are closed by Close.
func (d *DataPlane) Queues() []*os.File { return d.door.queues }

// LISP0Index is the interface index of lisp0.
func (d *DataPlane) LISP0Index() int { return d.door.index }

// LISP0Name is the name of lisp0.
func (d *DataPlane) LISP0Name() string { return d.cfg.LISP0 }

// Events returns what the programs noticed. Events are lost while nobody reads.
func (d *DataPlane) Events() <-chan fib.Event { return d.events }
