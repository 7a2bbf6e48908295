package map646

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// cloudConfig is the configuration of the vectors.
func cloudConfig() Config {
	return Config{Pool: vectors.Pool, Own: vectors.Own, ICMPSource: vectors.ICMPSource, Addr4: vectors.Addr4, Addr6: vectors.Addr6}
}

func cloudServices() (out []fib.Service) {
	for _, s := range vectors.Services {
		out = append(out, fib.Service{Outside: netip.MustParsePrefix(s.Outside), Inside: netip.MustParsePrefix(s.Inside)})
	}
	return out
}

func newTranslator(t testing.TB, cfg Config, services ...fib.Service) *Translator {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.SetServices(context.Background(), services...); err != nil {
		t.Fatal(err)
	}
	return tr
}

// withoutID is an IPv4 packet with identification 0.
func withoutID(b []byte) []byte {
	if version(b) != 4 || len(b) < header4Len {
		return b
	}
	b = slices.Clone(b)
	b[4], b[5] = 0, 0
	sumHeader4(b[:int(b[0]&15)*4])
	return b
}

// dump is a packet for people: in lines of words.
func dump(b []byte) []string {
	var out []string
	for c := range slices.Chunk(b, 16) {
		out = append(out, fmt.Sprintf("% x", c))
	}
	return out
}

func dumps(all [][]byte) (out [][]string) {
	for _, b := range all {
		out = append(out, dump(b))
	}
	return out
}

func TestVectors(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	scratch := new(Scratch)
	names := map[string]bool{}
	for _, v := range vectors.All() {
		t.Run(v.Name, func(t *testing.T) {
			if names[v.Name] {
				t.Fatal("two vectors of this name")
			}
			names[v.Name] = true
			for _, s := range []*Scratch{nil, scratch} {
				in := slices.Clone(v.In)
				r := tr.Translate(in, Options{MTU: v.MTU, Internet: v.Internet, Scratch: s})
				if r.Reason.String() != v.Reason {
					t.Errorf("reason %v, want %s", r.Reason, v.Reason)
				}
				got := slices.Clone(r.Packets)
				if v.AnyID {
					ids := map[uint16]bool{}
					for i, b := range got {
						ids[binary.BigEndian.Uint16(b[4:])] = true
						got[i] = withoutID(b)
					}
					if len(ids) > 1 {
						t.Errorf("fragments of one packet have the identifications %v", ids)
					}
				}
				if d := cmp.Diff(dumps(v.Out), dumps(got)); d != "" {
					t.Errorf("packets (-want +got):\n%s", d)
				}
				if d := cmp.Diff(dump(withoutID(v.Reply)), dump(withoutID(r.Reply))); d != "" {
					t.Errorf("reply (-want +got):\n%s", d)
				}
				if !slices.Equal(in, v.In) {
					t.Error("the packet was changed")
				}
			}
		})
	}
}

// What is translated matches no rule again, so that a packet may pass both data planes.
func TestTranslatedIsLeftAlone(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	n := 0
	for _, v := range vectors.All() {
		for _, b := range v.Out {
			if v.Name == "source-is-a-service" {
				continue // both sides are VMs: it never leaves
			}
			n++
			if r := tr.Translate(b, Options{}); r.Reason != Unmatched || r.Packets != nil || r.Reply != nil {
				t.Errorf("%s: translated again: %v", v.Name, r.Reason)
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d packets", n)
	}
}
