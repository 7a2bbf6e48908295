package kernel

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// chunked is an array of chunks of entries, which are made when they are first needed.
type chunked struct {
	name   string    // of the map
	outer  *ebpf.Map // of chunks
	inner  *ebpf.MapSpec
	chunks []*ebpf.Map
}

func newChunked(outer *ebpf.Map, name string) chunked {
	return chunked{name: name, outer: outer, chunks: make([]*ebpf.Map, outer.MaxEntries())}
}

func (t *chunked) close() {
	for _, m := range t.chunks {
		if m != nil {
			m.Close()
		}
	}
	t.chunks = nil
}

// chunk returns the map that has entry n, and makes it if need be.
func (t *chunked) chunk(n uint32) (m *ebpf.Map, fresh bool, err error) {
	at := n / chunkLen
	if m := t.chunks[at]; m != nil {
		return m, false, nil
	}
	if t.inner == nil {
		spec, err := loadTabi()
		if err != nil {
			return nil, false, err
		}
		t.inner = spec.Maps[t.name].InnerMap
	}
	m, err = ebpf.NewMap(t.inner)
	if err != nil {
		return nil, false, err
	}
	if err := t.outer.Put(at, m); err != nil {
		m.Close()
		return nil, false, err
	}
	t.chunks[at] = m
	return m, true, nil
}

// read finds the chunks that the kernel has.
func (t *chunked) read() error {
	var k, id uint32
	it := t.outer.Iterate()
	for it.Next(&k, &id) {
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			return err
		}
		t.chunks[k] = m
	}
	return it.Err()
}

// counterTable hands out counters by number.
type counterTable struct {
	chunked
	free freeList
}

func newCounterTable(outer *ebpf.Map, name string) counterTable {
	return counterTable{chunked: newChunked(outer, name), free: freeList{next: 1, end: outer.MaxEntries() * chunkLen}}
}

// take returns the number of a counter that is zero.
func (t *counterTable) take() (uint32, error) {
	n, ok := t.free.get()
	if !ok {
		return 0, fmt.Errorf("no more than %d counters", t.free.end)
	}
	m, fresh, err := t.chunk(n)
	if err == nil && !fresh {
		zero := make([][]byte, ebpf.MustPossibleCPU())
		for i := range zero {
			zero[i] = make([]byte, m.ValueSize())
		}
		err = m.Put(n%chunkLen, zero)
	}
	if err != nil {
		t.free.free = append(t.free.free, n)
		return 0, fmt.Errorf("counter %d: %w", n, err)
	}
	return n, nil
}
