package fib

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDoorUp(t *testing.T) {
	for _, c := range []struct {
		name string
		up   Up
		want []byte
	}{
		{"miss", Up{Reason: UpMiss, IID: 0x010203, Port: 7}, []byte{6, 1, 1, 2, 3, 0, 0, 7, 0, 0, 0, 0}},
		{"hold", Up{Reason: UpHold, Flags: UpTransit | UpReplay, Hold: MaxHold}, []byte{6, 2, 0, 0, 0, 3, 0x0f, 0xff, 0, 0, 0, 0}},
		{"copy", Up{Reason: UpCopy, Port: 0x0102, Seq: 0xdeadbeef}, []byte{6, 3, 0, 0, 0, 0, 1, 2, 0xde, 0xad, 0xbe, 0xef}},
		{"too big", Up{Reason: UpTooBig, IID: 0xffffff, Seq: 1444}, []byte{6, 4, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 5, 0xa4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.up.Append(nil)
			if !bytes.Equal(got, c.want) {
				t.Fatalf("appended % x, want % x", got, c.want)
			}
			back, ok := DecodeUp(got)
			if d := cmp.Diff(c.up, back); !ok || d != "" {
				t.Fatalf("decoded %v (-want +got):\n%s", ok, d)
			}
			for n := range got {
				if _, ok := DecodeUp(got[:n]); ok {
					t.Fatalf("decoded from only %d bytes", n)
				}
			}
		})
	}
	if _, ok := DecodeUp([]byte{2, 1, 1, 2, 3, 0, 0, 7, 0, 0, 0, 0}); ok {
		t.Fatal("took a frame of the host's stack for one of the data plane")
	}
}

func TestDoorDown(t *testing.T) {
	d := Down{Do: DownForward, IID: 0x0a0b0c, Flags: DownReinjected | DownReplay | DownTransit, Hold: 0x0e0f}
	got := d.Append([]byte{0xaa})
	want := []byte{0xaa, 6, 1, 0x0a, 0x0b, 0x0c, 7, 0x0e, 0x0f, 0, 0, 0, 0}
	if !bytes.Equal(got, want) {
		t.Fatalf("appended % x, want % x", got, want)
	}
	if back, ok := DecodeDown(got[1:]); !ok || back != d {
		t.Fatalf("decoded %+v %v, want %+v", back, ok, d)
	}
	for n := range DoorLen {
		if _, ok := DecodeDown(got[1 : 1+n]); ok {
			t.Fatalf("decoded from only %d bytes", n)
		}
	}
}

func FuzzDoor(f *testing.F) {
	f.Add(Up{Reason: UpHold, IID: 5, Hold: 9, Seq: 1}.Append(nil))
	f.Add(Down{Do: DownNative, IID: 1 << 20}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, ok := DecodeUp(b); ok && !bytes.Equal(u.Append(nil), b[:DoorLen]) {
			t.Fatalf("% x decodes to %+v, which appends as % x", b, u, u.Append(nil))
		}
		if d, ok := DecodeDown(b); ok && !bytes.Equal(d.Append(nil)[:8], b[:8]) {
			t.Fatalf("% x decodes to %+v, which appends as % x", b, d, d.Append(nil))
		}
	})
}
