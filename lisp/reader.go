package lisp

import "encoding/binary"

// A reader is a cursor over a received message. The first failure sticks: what is read after it is zero,
// so that a decoder checks for errors once per record and not once per field.
type reader struct {
	b   []byte
	off int
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// left is the number of bytes not read yet, 0 after a failure.
func (r *reader) left() int {
	if r.err != nil {
		return 0
	}
	return len(r.b) - r.off
}

// bytes reads n bytes. The result aliases the message: whoever keeps it makes a copy. After a failure,
// or if fewer are left, it is nil.
func (r *reader) bytes(n int) []byte {
	if n < 0 { // a length that does not even cover what precedes it
		r.fail(ErrMalformed)
	}
	if r.err != nil || n > len(r.b)-r.off {
		r.fail(ErrTruncated)
		return nil
	}
	p := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return p
}

func (r *reader) u8() uint8 {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// xtrID reads the trailing xTR-ID and Site-ID of RFC 9301 section 5.6.
func (r *reader) xtrID() (x XTRID, s SiteID) {
	copy(x[:], r.bytes(len(x)))
	return x, SiteID(r.u64())
}
