package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCounter(t *testing.T) {
	var c Counter
	at := int64(1e18)
	for _, seq := range []uint64{0, 1, 2, 5, 4, 4, 70} {
		at += int64(time.Millisecond)
		c.Packet(seq, at-1000, at, 0)
	}
	at += int64(50 * time.Millisecond)
	c.Packet(71, at-int64(9*time.Millisecond), at, 0)
	c.Packet(1<<40, at, at, 0)
	want := Counts{Received: 7, Duplicated: 1, Reordered: 1, Foreign: 1, DelayMax: 9 * time.Millisecond}
	if diff := cmp.Diff(want, c.Counts()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][2]uint64{{3, 3}, {6, 69}, {72, 73}}, c.Missing(74, 10)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][2]uint64{{3, 3}, {6, 69}}, c.Missing(74, 2)); diff != "" {
		t.Error(diff)
	}
	on := func(from, to int) time.Duration {
		return c.LongestGap(time.Unix(1e9, int64(from)*1e6), time.Unix(1e9, int64(to)*1e6))
	}
	if got := on(0, 1000); got != 50*time.Millisecond {
		t.Errorf("longest gap %v", got)
	}
	if got := on(20, 30); got != 50*time.Millisecond { // it overlaps
		t.Errorf("longest gap around a window inside it: %v", got)
	}
	if got := on(58, 1000); got != 0 {
		t.Errorf("longest gap after it: %v", got)
	}
	c.End(time.Unix(0, at+int64(200*time.Millisecond)))
	if got := on(58, 1000); got != 200*time.Millisecond {
		t.Errorf("a stream that dried up: %v", got)
	}
}

// A whole word of the bitmap is skipped at once: that must not lose what comes after it.
func TestMissingAroundFullWords(t *testing.T) {
	var c Counter
	for seq := range uint64(200) {
		if seq != 63 && seq != 128 {
			c.Packet(seq, 0, int64(seq+1), 0)
		}
	}
	if diff := cmp.Diff([][2]uint64{{63, 63}, {128, 128}, {200, 202}}, c.Missing(203, 10)); diff != "" {
		t.Error(diff)
	}
}

// What came over two routers more than the packet that overtook it has taken another way; one more may be a path
// through the same tunnel routers, and is ours.
func TestDetoured(t *testing.T) {
	var c Counter
	for i, p := range []struct {
		seq  uint64
		hops uint8
	}{{0, 60}, {5, 60}, {1, 58}, {2, 57}, {3, 59}, {4, 0}, {6, 58}} {
		c.Packet(p.seq, 0, int64(i+1), p.hops)
	}
	want := Counts{Received: 7, Reordered: 4, Detoured: 2, DelayMax: 7}
	if diff := cmp.Diff(want, c.Counts()); diff != "" {
		t.Error(diff)
	}
}

func TestTotalOnlyGrows(t *testing.T) {
	var c Counter
	ms := int64(time.Millisecond)
	for _, a := range [][2]int64{{10, 1 * ms}, {12, 2 * ms}, {12, 50 * ms}, {11, 60 * ms}, {13, 100 * ms}} {
		c.Total(uint64(a[0]), a[1])
	}
	if got := c.Counts().Received; got != 13 {
		t.Errorf("received %d", got)
	}
	if got := c.LongestGap(time.Unix(0, 0), time.Unix(1, 0)); got != 98*time.Millisecond {
		t.Errorf("longest gap %v", got)
	}
}

func TestStampRoundTripAndForeignBytes(t *testing.T) {
	b := make([]byte, 40)
	want := Stamp{7, 1 << 33, -5}
	want.Put(b)
	PutAck(b, 99)
	if got, ok := ParseStamp(b); !ok || got != want {
		t.Errorf("%+v %v", got, ok)
	}
	if got := ParseAck(b); got != 99 {
		t.Errorf("acknowledged %d", got)
	}
	PutAck(b[:30], 1)
	if got := ParseAck(b[:30]); got != 0 {
		t.Errorf("no room, and acknowledged %d", got)
	}
	for n := range StampLen {
		if _, ok := ParseStamp(b[:n]); ok {
			t.Errorf("%d bytes are a stamp", n)
		}
	}
	b[0]++
	if _, ok := ParseStamp(b); ok {
		t.Error("a foreign payload is a stamp")
	}
}

func TestEcho(t *testing.T) {
	want := Stamp{3, 70000, 9}
	for _, v4 := range []bool{true, false} {
		b := make([]byte, EchoLen)
		PutEcho(b, v4, want)
		var in []byte
		if v4 {
			if checksum(b) != 0 {
				t.Errorf("checksum: %x", checksum(b))
			}
			b[0] = 0
			in = append([]byte{0x46, 23: 0}, b...) // an IP header with an option
		} else {
			b[0] = 129
			in = b
		}
		if got, ok := ParseEcho(in, v4); !ok || got != want {
			t.Errorf("%+v %v", got, ok)
		}
		for n := range len(in) - 24 {
			if _, ok := ParseEcho(in[:n], v4); ok {
				t.Errorf("%d bytes are an echo reply", n)
			}
		}
		in[len(in)-EchoLen] = 3 // unreachable
		if _, ok := ParseEcho(in, v4); ok {
			t.Error("an error message is an echo reply")
		}
	}
}

func FuzzParseEcho(f *testing.F) {
	b := make([]byte, EchoLen)
	PutEcho(b, false, Stamp{1, 2, 3})
	b[0] = 129
	f.Add(b, false)
	f.Add(append(make([]byte, 20), b...), true)
	f.Fuzz(func(t *testing.T, b []byte, v4 bool) {
		s, ok := ParseEcho(b, v4)
		if !ok {
			return
		}
		again := make([]byte, EchoLen)
		PutEcho(again, false, s)
		again[0] = 129
		if got, ok := ParseEcho(again, false); !ok || got != s {
			t.Errorf("%+v became %+v", s, got)
		}
	})
}

func TestPacer(t *testing.T) {
	begin := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	p := NewPacer(1000, begin)
	for _, c := range []struct {
		after time.Duration
		due   int
	}{
		{0, 1}, {0, 0}, {999 * time.Microsecond, 0}, {time.Millisecond, 1}, {10 * time.Millisecond, 9},
		{30 * time.Millisecond, 20}, // late, and made up for
		{130 * time.Millisecond, 1}, // too late: no burst
		{131 * time.Millisecond, 1},
	} {
		if got := p.Due(at(c.after)); got != c.due {
			t.Errorf("after %v: %d due, want %d", c.after, got, c.due)
		}
	}
	if got := p.Next(); !got.Equal(at(132 * time.Millisecond)) {
		t.Errorf("next at %v", got.Sub(begin))
	}
}

// pipeEnd is one direction of a connection in memory.
type pipeEnd struct{ *io.PipeWriter }

func (p pipeEnd) CloseWrite() error { return p.Close() }

// transferOf sends for d of virtual time, through change, and returns both ends.
func transferOf(t *testing.T, d time.Duration, change func([]byte)) (tx, rx *Transfer) {
	t.Helper()
	tx, rx = &Transfer{Rate: 80000, Seed: 1, Stream: 2}, new(Transfer)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		r, w := io.Pipe()
		go tx.Send(ctx, pipeEnd{w})
		rx.Receive(readFunc(func(b []byte) (int, error) {
			n, err := r.Read(b)
			change(b[:n])
			return n, err
		}))
		synctest.Wait()
	})
	return tx, rx
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }

func TestTransfer(t *testing.T) {
	tx, rx := transferOf(t, 2*time.Second, func([]byte) {})
	sent, got := tx.State(), rx.State()
	if diff := cmp.Diff(sent, got); diff != "" || sent.Sum == "" || sent.Errors != 0 {
		t.Errorf("%+v %s", sent, diff)
	}
	if sent.Bytes < 19900 || sent.Bytes > 20100 { // 80,000 bit/s, 2 s
		t.Errorf("%d bytes", sent.Bytes)
	}
	if n := rx.Received().Counts().Received; n != got.Bytes {
		t.Errorf("counted %d of %d bytes", n, got.Bytes)
	}
}

func TestTransferSeesAChangedByte(t *testing.T) {
	once := false
	tx, rx := transferOf(t, time.Second, func(b []byte) {
		if len(b) > 0 && !once {
			b[0], once = b[0]^1, true
		}
	})
	if tx.State().Sum == rx.State().Sum || rx.State().Sum == "" {
		t.Errorf("sums %q, %q", tx.State().Sum, rx.State().Sum)
	}
}

func TestTransferThatBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		tx, rx := &Transfer{Rate: 8000, Stream: 1}, new(Transfer)
		go tx.Send(t.Context(), struct {
			io.Writer
			closer
		}{a, closer{}})
		go func() {
			time.Sleep(100 * time.Millisecond)
			_ = b.Close()
		}()
		rx.Receive(b)
		time.Sleep(time.Second) // the sender finds out with its next piece
		if s := tx.State(); s.Sum != "" || s.Errors != 1 || s.Error == "" {
			t.Errorf("sender: %+v", s)
		}
		if s := rx.State(); s.Sum != "" || s.Errors != 1 {
			t.Errorf("receiver: %+v", s)
		}
	})
}

type closer struct{}

func (closer) CloseWrite() error { return errors.New("not reached") }

func FuzzParseStamp(f *testing.F) {
	b := make([]byte, StampLen+AckLen)
	Stamp{1, 2, 3}.Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := ParseStamp(b)
		if !ok {
			return
		}
		again := make([]byte, len(b))
		s.Put(again)
		PutAck(again, ParseAck(b))
		if n := min(len(b), StampLen+AckLen); n >= StampLen && !bytes.Equal(again[:StampLen], b[:StampLen]) {
			t.Errorf("%x became %x", b, again)
		}
	})
}
