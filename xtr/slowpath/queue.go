package slowpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// batchLen is how many frames travel together from a reader to the owner, at most.
const batchLen = 64

// batch is some frames in the order in which they were read.
type batch struct {
	frames [batchLen]*frame
	n      int
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

// queue is one queue of lisp0. The kernel keeps a flow on the queue on which it was last written, so
// every frame goes back on its own queue: then a flow never changes queues and stays in order, without
// anything being sorted.
type queue struct {
	rw      io.ReadWriteCloser
	raw     syscall.RawConn // nil if rw is no file
	vnetLen int             // length of the vnet header

	busy    atomic.Bool // the reader may have frames that are not handed on yet
	scratch []byte
}

// newQueue takes an opened queue: a pollable *os.File of a TAP, or anything that reads and writes one
// frame at a time.
func newQueue(rw io.ReadWriteCloser) (*queue, error) {
	q := &queue{rw: rw, vnetLen: vnetMinLen, scratch: make([]byte, maxFrame)}
	f, ok := rw.(*os.File)
	if !ok {
		return q, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("slowpath: queue %s: %w", f.Name(), err)
	}
	q.raw = raw
	var flags int
	err = raw.Control(func(fd uintptr) {
		if flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil {
			return
		}
		// Only a TAP knows; whatever else is opened has the header that a TAP has by default.
		if n, err := unix.IoctlGetInt(int(fd), unix.TUNGETVNETHDRSZ); err == nil {
			q.vnetLen = n
		}
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("slowpath: queue %s: %w", f.Name(), err)
	case flags&unix.O_NONBLOCK == 0:
		return nil, fmt.Errorf("slowpath: queue %s: is in blocking mode", f.Name())
	case q.vnetLen < vnetMinLen || q.vnetLen > 32:
		return nil, fmt.Errorf("slowpath: queue %s: vnet header of %d bytes", f.Name(), q.vnetLen)
	}
	return q, nil
}

// run reads frames and hands them to out until ctx ends (then it returns nil) or the queue is gone.
func (q *queue) run(ctx context.Context, out chan<- *batch, c *counts) error {
	stop := context.AfterFunc(ctx, func() {
		// Wakes a reader; a queue without deadlines has no other way than to be closed.
		if d, ok := q.rw.(interface{ SetReadDeadline(time.Time) error }); ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
			return
		}
		_ = q.rw.Close()
	})
	defer stop()

	read := q.readOne
	if q.raw != nil {
		read = q.readAll
	}
	for failures := 0; ; {
		b := batchPool.Get().(*batch)
		err := read(b)
		if b.n > 0 {
			failures = 0
			select {
			case out <- b:
			case <-ctx.Done():
				b.free()
			}
		} else {
			b.free()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			continue
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
			return fmt.Errorf("slowpath: read: %w", err)
		}
		// A device that is down gives errors until it is up again.
		c.inc(readErrors)
		if failures++; failures > 100 {
			return fmt.Errorf("slowpath: read: %w", err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// readAll reads what is there, at least one frame and at most a batch of them.
func (q *queue) readAll(b *batch) error {
	var failed error
	err := q.raw.Read(func(fd uintptr) bool {
		q.busy.Store(true)
		for b.n < batchLen {
			n, err := unix.Read(int(fd), q.scratch)
			switch {
			case err == nil && n > 0:
				q.keep(b, n)
			case err == nil:
				failed = io.EOF
				return true
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				q.busy.Store(b.n > 0)
				return b.n > 0
			default:
				failed = err
				return true
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

// quiet reports whether everything that the kernel has put into the queue has been handed on. Any goroutine may ask.
func (q *queue) quiet() bool {
	waits := false
	if q.raw != nil {
		_ = q.raw.Control(func(fd uintptr) { // it fails when the queue is closed: then nothing waits
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			waits = err == nil && n > 0 && p[0].Revents&unix.POLLIN != 0
		})
	}
	// In this order: what was read a moment before the kernel was asked is still in the reader's hands.
	return !waits && !q.busy.Load()
}

func (q *queue) readOne(b *batch) error {
	n, err := q.rw.Read(q.scratch)
	if n > 0 {
		q.keep(b, n)
	}
	return err
}

// keep copies the n bytes just read into a buffer of their size.
func (q *queue) keep(b *batch, n int) {
	f := newFrame(q, n)
	copy(f.buf, q.scratch)
	b.frames[b.n] = f
	b.n++
}

func (b *batch) free() {
	for _, f := range b.frames[:b.n] {
		f.free()
	}
	b.done()
}

// done gives back the batch, whose frames are somebody else's now.
func (b *batch) done() {
	clear(b.frames[:b.n])
	b.n = 0
	batchPool.Put(b)
}

// write writes one frame.
func (q *queue) write(b []byte) error {
	_, err := q.rw.Write(b)
	return err
}
