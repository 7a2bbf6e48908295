package kernel

import (
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// rawEvent is what a program would write.
func rawEvent(kind byte, v6, hasRLOC, rloc6 bool) []byte {
	b := make([]byte, eventLen)
	b[0] = kind
	for i, on := range []bool{v6, hasRLOC, rloc6} {
		if on {
			b[1+i] = 1
		}
	}
	binary.LittleEndian.PutUint32(b[4:], 7)
	copy(b[20:], farEID.v4.AsSlice())
	copy(b[36:], farRLOC.v4.AsSlice())
	if v6 {
		copy(b[8:], farEID.v6.AsSlice())
	}
	if rloc6 {
		copy(b[24:], farRLOC.v6.AsSlice())
	}
	binary.LittleEndian.PutUint32(b[40:], 12)
	copy(b[44:], vmMAC)
	return b
}

func TestDecodeEvent(t *testing.T) {
	at := time.Unix(1, 2)
	in7 := func(v6 bool) fib.Event { e := host(farEID.of(v6)); e.IID = 7; return fib.Event{At: at, EID: e} }
	for _, c := range []struct {
		raw  []byte
		want func(*fib.Event)
		v6   bool
	}{
		{rawEvent(1, false, false, false), func(e *fib.Event) { e.Kind, e.If, e.MAC = fib.EventSource, 12, vmMAC }, false},
		{rawEvent(2, true, false, false), func(e *fib.Event) { e.Kind, e.If, e.MAC = fib.EventUnknownSource, 12, vmMAC }, true},
		{rawEvent(3, true, true, false), func(e *fib.Event) { e.Kind, e.RLOC = fib.EventMoved, farRLOC.v4.String() }, true},
		{rawEvent(4, false, true, true), func(e *fib.Event) { e.Kind, e.RLOC = fib.EventNotLocal, farRLOC.v6.String() }, false},
		{rawEvent(4, false, false, false), func(e *fib.Event) { e.Kind = fib.EventNotLocal }, false},
	} {
		want := in7(c.v6)
		c.want(&want)
		got, ok := decodeEvent(c.raw, at)
		if d := cmp.Diff(want, got, routeCmp); !ok || d != "" {
			t.Errorf("%v (-want +got):\n%s", ok, d)
		}
		for n := range eventLen {
			if _, ok := decodeEvent(c.raw[:n], at); ok {
				t.Fatalf("decoded from %d bytes", n)
			}
		}
	}
	for _, kind := range []byte{0, 5, 255} {
		if e, ok := decodeEvent(rawEvent(kind, false, false, false), at); ok {
			t.Errorf("kind %d decodes to %+v", kind, e)
		}
	}
}

func FuzzEvent(f *testing.F) {
	for kind := range byte(6) {
		f.Add(rawEvent(kind, kind&1 != 0, kind&2 != 0, kind&3 == 3))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := decodeEvent(b, time.Unix(0, 0))
		if !ok {
			return
		}
		if !e.EID.IsHost() || !e.EID.IsValid() || e.Kind < fib.EventSource || e.Kind > fib.EventNotLocal {
			t.Fatalf("% x decodes to %+v", b, e)
		}
		if e.MAC != nil && len(e.MAC) != len(net.HardwareAddr(vmMAC)) {
			t.Fatalf("MAC %v", e.MAC)
		}
	})
}
