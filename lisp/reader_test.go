package lisp

import (
	"errors"
	"testing"
)

func TestReader(t *testing.T) {
	r := &reader{b: []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}
	if a, b, c, d := r.u8(), r.u16(), r.u32(), r.u64(); a != 1 || b != 0x0203 || c != 0x04050607 || d != 0x08090a0b0c0d0e0f {
		t.Errorf("%x %x %x %x", a, b, c, d)
	}
	if r.left() != 1 || r.err != nil {
		t.Errorf("%d left, %v", r.left(), r.err)
	}
	if p := r.bytes(0); len(p) != 0 || r.err != nil {
		t.Errorf("no bytes: %v, %v", p, r.err)
	}
	if v := r.u16(); v != 0 || !errors.Is(r.err, ErrTruncated) || r.left() != 0 {
		t.Errorf("beyond the end: %d, %v, %d left", v, r.err, r.left())
	}
	r.fail(ErrMalformed)
	if v := r.u8(); v != 0 || !errors.Is(r.err, ErrTruncated) {
		t.Errorf("after a failure: %d, %v", v, r.err)
	}
	r = &reader{b: []byte{1}}
	if p := r.bytes(-1); p != nil || !errors.Is(r.err, ErrMalformed) {
		t.Errorf("a negative length: %v, %v", p, r.err)
	}
	r = &reader{b: []byte{1, 2}}
	p := r.bytes(1)
	if p = append(p, 9); r.b[1] != 2 || len(p) != 2 {
		t.Error("what was read can be extended over what follows")
	}
}
