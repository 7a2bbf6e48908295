package slowpath

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

const (
	etherLen     = 14    // an Ethernet header; its two addresses are the metadata of package fib
	maxFrame     = 67584 // bytes of the largest frame that lisp0 hands up, with everything around it
	frameMemory  = 128   // bytes that a frame costs beside its buffer, about
	etherTypeIP4 = 0x0800
	etherTypeIP6 = 0x86dd
)

// frame is one frame of lisp0 in a buffer from the pool: vnet header, Ethernet header, packet. Whoever
// holds it either passes it on or frees it.
type frame struct {
	buf   []byte
	q     *queue // where it came from and goes back to, which keeps a flow on one queue, so in order
	up    fib.Up
	since time.Time // when it was read
	segs  uint32    // how many packets the data plane counts it as
	class int8
}

// Buffers come in a few sizes, so that a small packet that waits does not cost what a large one does.
var (
	classSizes = [...]int{256, 2048, 16384, maxFrame}
	classPools [len(classSizes)]sync.Pool
)

// newFrame returns a frame whose buffer has n bytes, 0 <= n <= maxFrame, with anything in them.
func newFrame(q *queue, n int) *frame {
	c := 0
	for classSizes[c] < n {
		c++
	}
	f, _ := classPools[c].Get().(*frame)
	if f == nil {
		f = &frame{buf: make([]byte, classSizes[c]), class: int8(c)}
	}
	f.buf, f.q, f.up, f.segs = f.buf[:n], q, fib.Up{}, 1
	return f
}

// free gives f back to the pool. Nobody may use it any more.
func (f *frame) free() {
	f.q = nil
	classPools[f.class].Put(f)
}

// memory is what f costs, in bytes: what the bounds are about.
func (f *frame) memory() int { return cap(f.buf) + frameMemory }

// vnet, ether and packet are the three parts of a frame that is long enough to have them.
func (f *frame) vnet() []byte   { return f.buf[:f.q.vnetLen] }
func (f *frame) ether() []byte  { return f.buf[f.q.vnetLen : f.q.vnetLen+etherLen] }
func (f *frame) packet() []byte { return f.buf[f.q.vnetLen+etherLen:] }

// open reads the metadata and what of the headers everybody needs. It reports the counter of what is
// wrong with a frame that is no good.
func (f *frame) open() (bad counter, ok bool) {
	if len(f.buf) < f.q.vnetLen+etherLen+1 {
		return badShort, false
	}
	up, ok := fib.DecodeUp(f.ether())
	if !ok {
		return badNoMetadata, false
	}
	f.up = up
	f.segs = segments(f.vnet(), f.packet())
	return 0, true
}

// newPacketFrame returns a frame for an IP packet of n bytes with no offload asked for, to go down with
// metadata d by the queue of f.
func newPacketFrame(q *queue, d fib.Down, v6 bool, n int) *frame {
	g := newFrame(q, q.vnetLen+etherLen+n)
	clear(g.vnet())
	setDown(g.ether(), d)
	et := uint16(etherTypeIP4)
	if v6 {
		et = etherTypeIP6
	}
	binary.BigEndian.PutUint16(g.ether()[12:], et)
	return g
}

// setDown writes d over the metadata of a frame.
func setDown(ether []byte, d fib.Down) { d.Append(ether[:0]) }
