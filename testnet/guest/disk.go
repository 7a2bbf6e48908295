package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// A block on the disk: its number and the how many-eth writing of it this is, and after that what follows from these.
//
//	number 8 | version 8 | words 8...
const blockSize = 4096

// disk writes numbered blocks to a device without a file system, and can say whether they are still there. It goes
// past the page cache, which would travel with the memory and say nothing of the disk.
type disk struct {
	mu       sync.Mutex
	file     *os.File
	path     string
	versions []uint64 // what the disk has confirmed, by block; 0 = never written
	next     int      // block
	written  uint64
	err      error
	quit     chan struct{}
	done     chan struct{} // closed when the writer has ended; nil when none was started
}

// write starts to write the first blocks blocks of a device in turn, rate KiB a second, unless it does so already.
func (d *disk) write(path string, blocks int, rate float64) error {
	if blocks < 1 || rate <= 0 {
		return errors.New("want at least one block, and a positive rate")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running() {
		return nil
	}
	if d.file == nil || d.path != path || len(d.versions) != blocks {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT|syscall.O_DSYNC, 0)
		if err != nil {
			return err
		}
		if d.file != nil {
			_ = d.file.Close()
		}
		d.file, d.path, d.versions, d.next = f, path, make([]uint64, blocks), 0
	}
	d.err = nil
	d.quit, d.done = make(chan struct{}), make(chan struct{})
	go d.run(time.Duration(blockSize/1024/rate*float64(time.Second)), d.quit, d.done)
	return nil
}

// running reports whether a writer is at work; with mu held.
func (d *disk) running() bool {
	if d.done == nil {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

func (d *disk) run(every time.Duration, quit <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	b, err := alignedBlock()
	if err != nil {
		d.fail(err)
		return
	}
	defer func() { _ = syscall.Munmap(b) }()
	t := time.NewTicker(max(every, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-quit:
			return
		case <-t.C:
		}
		n := d.next // this goroutine's own while it runs
		fillBlock(b, uint64(n), d.versions[n]+1)
		if _, err := d.file.WriteAt(b, int64(n)*blockSize); err != nil {
			d.fail(err)
			return
		}
		d.mu.Lock()
		d.versions[n]++
		d.written++
		d.next = (n + 1) % len(d.versions)
		d.mu.Unlock()
	}
}

func (d *disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// stop ends the writer after the block that it is at.
func (d *disk) stop() stream.Disk {
	d.mu.Lock()
	done := d.done
	if d.running() && d.quit != nil {
		close(d.quit)
		d.quit = nil
	}
	d.mu.Unlock()
	if done != nil {
		<-done
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats()
}

func (d *disk) stats() stream.Disk {
	s := stream.Disk{Written: d.written}
	if d.err != nil {
		s.Error = d.err.Error()
	}
	return s
}

// verify reads every block that was written, and compares. The writer must have been stopped.
func (d *disk) verify() (stream.Disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running() {
		return d.stats(), errors.New("the disk is being written: stop that first")
	}
	if d.file == nil {
		return d.stats(), errors.New("nothing was written to a disk")
	}
	got, err := alignedBlock()
	if err != nil {
		return d.stats(), err
	}
	defer func() { _ = syscall.Munmap(got) }()
	want := make([]byte, blockSize)
	s := d.stats()
	for n, version := range d.versions {
		if version == 0 {
			continue
		}
		if _, err := d.file.ReadAt(got, int64(n)*blockSize); err != nil {
			return s, err
		}
		s.Checked++
		fillBlock(want, uint64(n), version)
		if !bytes.Equal(want, got) {
			s.Wrong++
			if s.First == "" {
				s.First = fmt.Sprintf("block %d version %d: it is block %d version %d", n, version, binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(got[8:]))
			}
		}
	}
	return s, nil
}

// fillBlock makes version of block number in b.
func fillBlock(b []byte, number, version uint64) {
	binary.BigEndian.PutUint64(b, number)
	binary.BigEndian.PutUint64(b[8:], version)
	x := number<<32 ^ version ^ 0x9e3779b97f4a7c15
	for i := 16; i < blockSize; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.BigEndian.PutUint64(b[i:], x)
	}
}

// alignedBlock is memory for a block as O_DIRECT wants it.
func alignedBlock() ([]byte, error) {
	return syscall.Mmap(-1, 0, blockSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}
