package lisp

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHeaderGolden(t *testing.T) {
	for packet, h := range map[string]Header{
		"0000000000000000": {},
		"0800000000000700": {HasInstance: true, InstanceID: 7},
		"08000000ffffff00": {HasInstance: true, InstanceID: MaxInstanceID},
		"4000000080000001": {StatusPresent: true, StatusBits: 0x80000001},
		"48000000000007a5": {StatusPresent: true, StatusBits: 0xa5, HasInstance: true, InstanceID: 7},
		"a0abcdef00000000": {NoncePresent: true, EchoNonce: true, Nonce: 0xabcdef},
		"10abc12300000000": {VersionPresent: true, SourceVersion: 0xabc, DestVersion: 0x123},
		"0300000000000000": {Encrypted: 3},
	} {
		want := golden(t, packet)
		b, err := AppendHeader(nil, h)
		if err != nil || string(b) != string(want) || len(b) != HeaderLen {
			t.Errorf("%+v: %x, %v; want %s", h, b, err, packet)
		}
		got, err := DecodeHeader(append(want, "inner packet"...))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(h, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", packet, d)
		}
	}
}

func TestHeaderDecode(t *testing.T) {
	for packet, want := range map[string]Header{
		"04abcdef89abcdef": {},                                    // fields without their bit, the R-bit
		"08abcdef000007ff": {HasInstance: true, InstanceID: 7},    // no L-bit: "transmitted as zero and ignored"
		"90abcdef00000000": {NoncePresent: true, Nonce: 0xabcdef}, // N and V: a nonce
		"20abcdef00000000": {EchoNonce: true},                     // E means nothing without N
		"58abc1230000077f": {StatusPresent: true, VersionPresent: true, SourceVersion: 0xabc, DestVersion: 0x123, HasInstance: true, InstanceID: 7, StatusBits: 0x7f},
	} {
		got, err := DecodeHeader(golden(t, packet))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", packet, d)
		}
	}
	for n := range HeaderLen {
		if _, err := DecodeHeader(make([]byte, n)); !errors.Is(err, ErrTruncated) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestHeaderUnencodable(t *testing.T) {
	for _, h := range []Header{
		{NoncePresent: true, VersionPresent: true}, {Encrypted: 4}, {NoncePresent: true, Nonce: 1 << 24},
		{HasInstance: true, InstanceID: 1 << 24}, {VersionPresent: true, SourceVersion: 4096}, {VersionPresent: true, DestVersion: 4096},
		{HasInstance: true, StatusPresent: true, StatusBits: 256},
	} {
		if b, err := AppendHeader([]byte("x"), h); !errors.Is(err, ErrUnencodable) || string(b) != "x" {
			t.Errorf("%+v: %x, %v", h, b, err)
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add([]byte{0x48, 0, 0, 0, 0, 0, 7, 0xa5})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		out, err := AppendHeader(nil, h)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v\n%+v", err, h)
		}
		if again, err := DecodeHeader(out); err != nil || again != h {
			t.Fatalf("after a round trip: %+v, %v; want %+v", again, err, h)
		}
	})
}
