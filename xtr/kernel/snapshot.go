package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// snapshotAge is how old what ServiceCounters returns may be.
const snapshotAge = time.Second

// snapshots are what the services have counted, at a time. Whoever asks within snapshotAge gets the same one;
// to ask often costs nothing. The kernel is read by a thread that runs only when nothing else wants to.
type snapshots struct {
	d *DataPlane

	mu    sync.Mutex // guards what follows; never held while the kernel is read
	last  *snapshot
	next  *snapshot // is being taken
	start sync.Once
	asked chan *snapshot

	// As of version, for the snapshots: the services in order, and by counter the place
	// of its service in that order, from 1; 0 = it is nobody's.
	order   []fib.Service
	places  []uint32
	version uint64
}

type snapshot struct {
	at     time.Time // when it was begun
	order  []fib.Service
	places []uint32
	chunks []*ebpf.Map
	ready  chan struct{} // closed when what follows is there
	counts []fib.ServiceCount
	err    error
}

// ServiceCounters returns what every service has translated, in the order of Outside: in the kernel, or handed up for
// Go to do. It may be up to a second old. The slice is shared, and must not be changed.
func (d *DataPlane) ServiceCounters() ([]fib.ServiceCount, error) {
	if err := d.ask(func() error { return nil }); err != nil {
		return nil, err
	}
	s, err := d.snaps.get()
	if err != nil {
		return nil, err
	}
	select {
	case <-s.ready:
		return s.counts, s.err
	case <-d.quit:
		return nil, errClosed
	}
}

// get returns a snapshot that is young enough, or one that will be.
func (p *snapshots) get() (*snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next != nil {
		select {
		case <-p.next.ready:
			p.last, p.next = p.next, nil
		default:
			return p.next, nil
		}
	}
	if p.last != nil && p.last.err == nil && time.Since(p.last.at) < snapshotAge {
		return p.last, nil
	}
	if err := p.d.lock(); err != nil {
		return nil, err
	}
	var owners []fib.Service
	version := p.d.services.version
	if version != p.version || p.places == nil {
		owners = slices.Clone(p.d.services.owners)
	}
	s := &snapshot{at: time.Now(), chunks: slices.Clone(p.d.services.counters.chunks), ready: make(chan struct{})}
	p.start.Do(func() {
		p.asked = make(chan *snapshot, 1)
		p.d.done.Go(p.run)
	})
	p.d.mu.Unlock()
	if version != p.version || p.places == nil {
		p.sort(owners)
		p.version = version
	}
	s.order, s.places = p.order, p.places
	p.next = s
	p.asked <- s // there is only ever one
	return s, nil
}

// sort puts the owners of the counters in order.
func (p *snapshots) sort(owners []fib.Service) {
	counters := make([]uint32, 0, len(owners))
	for n, s := range owners {
		if s.Outside.IsValid() {
			counters = append(counters, uint32(n))
		}
	}
	slices.SortFunc(counters, func(a, b uint32) int { return owners[a].Outside.Compare(owners[b].Outside) })
	p.order, p.places = make([]fib.Service, len(counters)), make([]uint32, len(owners))
	for i, n := range counters {
		p.order[i], p.places[n] = owners[n], uint32(i+1)
	}
}

// run takes the snapshots that are asked for.
func (p *snapshots) run() {
	read := make(chan chunkCounts)
	want := make(chan *snapshot)
	p.d.done.Go(func() { p.d.readWhenIdle(want, read) })
	defer close(want)
	for {
		select {
		case <-p.d.quit:
			return
		case s := <-p.asked:
			want <- s
			s.take(read)
			close(s.ready)
		}
	}
}

// take makes s of what is read.
func (s *snapshot) take(read <-chan chunkCounts) {
	cpus := ebpf.MustPossibleCPU()
	s.counts = make([]fib.ServiceCount, len(s.order))
	for i, o := range s.order {
		s.counts[i].Service = o
	}
	for c := range read {
		if c.err != nil || c.last {
			s.err = c.err
			break
		}
		for i := range c.n {
			at := c.chunk*chunkLen + i
			if at >= len(s.places) || s.places[at] == 0 {
				continue
			}
			n := &s.counts[s.places[at]-1]
			for _, v := range c.values[i*cpus : (i+1)*cpus] {
				n.In.Packets += v.InPackets
				n.In.Bytes += v.InBytes
				n.Out.Packets += v.OutPackets
				n.Out.Bytes += v.OutBytes
			}
		}
	}
	s.order, s.places, s.chunks = nil, nil, nil
}

// chunkCounts are the first n counters of a chunk, each as often as there are CPUs.
type chunkCounts struct {
	chunk, n int
	values   []serviceCount
	last     bool // there are no more
	err      error
}

// readWhenIdle reads the counters on a thread of the lowest class. Of what it does nearly all is in the kernel:
// should the thread not run for long, the rest of the process need not wait for it.
func (d *DataPlane) readWhenIdle(want <-chan *snapshot, read chan<- chunkCounts) {
	runtime.LockOSThread() // and the thread ends with this goroutine
	idle := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if err := unix.SchedSetAttr(0, idle, 0); err != nil {
		d.log.Warn("counters are read at the same priority as all else", "error", err)
	}
	keys := make([]uint32, chunkLen)
	// One is added up while the next is read.
	var values [2][]serviceCount
	for i := range values {
		values[i] = make([]serviceCount, chunkLen*ebpf.MustPossibleCPU())
	}
	for s := range want {
		var err error
		turn := 0
		for at, m := range s.chunks {
			if m == nil {
				continue
			}
			select {
			case <-d.quit:
				err = errClosed
			default:
			}
			if err != nil {
				break
			}
			n := 0
			err = d.ask(func() (err error) {
				n, err = lookupBatch(m, keys, values[turn])
				return err
			})
			if err != nil {
				err = fmt.Errorf("kernel: counters of services: %w", err)
				break
			}
			read <- chunkCounts{chunk: at, n: n, values: values[turn]}
			turn = 1 - turn
		}
		read <- chunkCounts{last: true, err: err}
	}
}

// lookupBatch reads an array of counters from its beginning with one system call (bpf(2), BPF_MAP_LOOKUP_BATCH)
// and says how many it read: package ebpf would work through every value once more.
func lookupBatch(m *ebpf.Map, keys []uint32, values []serviceCount) (int, error) {
	const mapLookupBatch = 24
	var cursor uint32
	attr := struct {
		in, out, keys, values unsafe.Pointer
		count, fd             uint32
		elemFlags, flags      uint64
	}{
		out: unsafe.Pointer(&cursor), keys: unsafe.Pointer(&keys[0]), values: unsafe.Pointer(&values[0]),
		count: uint32(len(keys)), fd: uint32(m.FD()),
	}
	_, _, e := unix.Syscall(unix.SYS_BPF, mapLookupBatch, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 && !errors.Is(e, unix.ENOENT) { // ENOENT: that were all
		return 0, e
	}
	return int(attr.count), nil
}
