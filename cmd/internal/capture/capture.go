// Package capture reads packet captures, pcap and pcapng, and writes pcap. It knows the link types under
// which IP packets are captured on Linux, and takes the IP packet out of a frame and puts another one in.
//
// A file that ends in the middle of a packet is an error that names the packet, however much could be read.
package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Packet is one captured packet.
type Packet struct {
	Number int // in the file, from 1
	Time   time.Time
	Link   LinkType
	Data   []byte // the frame; valid until the next one is read
	Length int    // bytes that the frame had on the wire; more than len(Data) when the capture cut it short
}

// maxFrame is the largest frame that is read: a super-packet and what may stand around it. A length beyond
// it is taken for a file that is broken.
const maxFrame = 1 << 20

// The magic numbers at the head of a file, as read in little endian.
const (
	magicMicros        = 0xa1b2c3d4
	magicNanos         = 0xa1b23c4d
	magicMicrosSwapped = 0xd4c3b2a1
	magicNanosSwapped  = 0x4d3cb2a1
	magicNG            = 0x0a0d0d0a // the same in both byte orders
)

// Reader reads a capture from its beginning to its end. Not for several goroutines at once.
type Reader struct {
	r      io.Reader
	format format
	n      int // packets read
	buf    []byte
	nanos  bool
}

// format reads the next packet; of the packet, Number is set by the caller. It returns io.EOF, and nothing
// that wraps it, at the end of a file that is whole.
type format interface {
	next(r *Reader) (Packet, error)
}

// NewReader reads the head of a capture.
func NewReader(r io.Reader) (*Reader, error) {
	c := &Reader{r: r}
	var magic [4]byte
	if err := c.full(magic[:], "the head of the file"); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return nil, fmt.Errorf("capture: %w", err)
	}
	var err error
	switch m := binary.LittleEndian.Uint32(magic[:]); m {
	case magicMicros:
		c.format, err = newPCAP(c, binary.LittleEndian, false)
	case magicNanos:
		c.format, err = newPCAP(c, binary.LittleEndian, true)
	case magicMicrosSwapped:
		c.format, err = newPCAP(c, binary.BigEndian, false)
	case magicNanosSwapped:
		c.format, err = newPCAP(c, binary.BigEndian, true)
	case magicNG:
		c.format, err = newPCAPNG(c)
	default:
		err = fmt.Errorf("begins with % x: neither pcap nor pcapng", magic)
	}
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return c, nil
}

// Nanos reports whether time stamps may be finer than a microsecond.
func (c *Reader) Nanos() bool { return c.nanos }

// Next returns the next packet. At the end it returns io.EOF; any other error names the packet that could
// not be read, and nothing more can be read then.
func (c *Reader) Next() (Packet, error) {
	p, err := c.format.next(c)
	switch {
	case errors.Is(err, io.EOF):
		return Packet{}, io.EOF
	case err != nil:
		return Packet{}, fmt.Errorf("capture: packet %d: %w", c.n+1, err)
	}
	c.n++
	p.Number = c.n
	return p, nil
}

// full fills b. It returns io.EOF when there is nothing more at all, and an error that says how much of
// what is missing when there is something.
func (c *Reader) full(b []byte, what string) error {
	n, err := io.ReadFull(c.r, b)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the file ends after %d of %d bytes of %s", n, len(b), what)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// rest is full where the file may not end.
func (c *Reader) rest(b []byte, what string) error {
	err := c.full(b, what)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the file ends before %s", what)
	}
	return err
}

// frame reads n bytes into the buffer that the next call uses again.
func (c *Reader) frame(n int, what string) ([]byte, error) {
	if cap(c.buf) < n {
		c.buf = make([]byte, max(n, 2048))
	}
	b := c.buf[:n]
	if n == 0 {
		return b, nil
	}
	return b, c.rest(b, what)
}

// Writer writes a pcap file.
type Writer struct {
	w    io.Writer
	unit time.Duration
	buf  []byte
}

// NewWriter writes the head of a file of frames of one link type, with time stamps in nanoseconds or in
// microseconds.
func NewWriter(w io.Writer, link LinkType, nanos bool) (*Writer, error) {
	magic, unit := uint32(magicMicros), time.Microsecond
	if nanos {
		magic, unit = magicNanos, time.Nanosecond
	}
	le := binary.LittleEndian
	b := le.AppendUint32(nil, magic)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // time zone and accuracy, which nobody uses
	b = le.AppendUint32(b, 1<<18)     // as others write, who refuse more
	b = le.AppendUint32(b, uint32(link))
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("capture: write: %w", err)
	}
	return &Writer{w: w, unit: unit}, nil
}

// Write writes one frame, whole.
func (c *Writer) Write(at time.Time, frame []byte) error {
	le := binary.LittleEndian
	b := le.AppendUint32(c.buf[:0], uint32(at.Unix()))
	b = le.AppendUint32(b, uint32(time.Duration(at.Nanosecond())/c.unit))
	b = le.AppendUint32(b, uint32(len(frame)))
	b = le.AppendUint32(b, uint32(len(frame)))
	c.buf = append(b, frame...)
	if _, err := c.w.Write(c.buf); err != nil {
		return fmt.Errorf("capture: write: %w", err)
	}
	return nil
}
