package main

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// dirtySet is how many MiB are written over and over.
const dirtySet = 16

const (
	mebibyte = 1 << 20
	pageSize = 4096
)

// memory writes to memory at a rate, so that a migration has to copy it again and again.
type memory struct {
	mu    sync.Mutex
	rate  float64 // MiB/s
	pages atomic.Uint64
	stop  chan struct{}
}

// set changes the rate in MiB/s; 0 = nothing is written.
func (m *memory) set(rate float64) error {
	if rate < 0 || rate > 4096 {
		return errors.New("rate out of range: want 0 to 4096 MiB/s")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if rate == m.rate {
		return nil
	}
	if m.stop != nil {
		close(m.stop)
		m.stop = nil
	}
	m.rate = rate
	if rate == 0 {
		return nil
	}
	area, err := syscall.Mmap(-1, 0, dirtySet*mebibyte, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	m.stop = make(chan struct{})
	go m.write(area, rate, m.stop)
	return nil
}

// written is how many MiB were written so far.
func (m *memory) written() uint64 { return m.pages.Load() * pageSize / mebibyte }

// write fills page after page until stop is closed.
func (m *memory) write(area []byte, rate float64, stop <-chan struct{}) {
	defer func() { _ = syscall.Munmap(area) }()
	const every = 10 * time.Millisecond
	perTick := rate * mebibyte / pageSize * every.Seconds()
	t := time.NewTicker(every)
	defer t.Stop()
	var due float64
	for page, x := 0, uint64(1); ; {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		for due += perTick; due >= 1; due-- {
			p := area[page*pageSize:][:pageSize]
			for i := 0; i < pageSize; i += 8 { // every word other than before: nothing for a migration to compress
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
				*(*[8]byte)(p[i:]) = [8]byte{byte(x), byte(x >> 8), byte(x >> 16), byte(x >> 24), byte(x >> 32), byte(x >> 40), byte(x >> 48), byte(x >> 56)}
			}
			page = (page + 1) % (dirtySet * mebibyte / pageSize)
			m.pages.Add(1)
		}
	}
}
