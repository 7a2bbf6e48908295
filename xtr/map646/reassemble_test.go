package map646

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

var start = time.Unix(1000, 0)

// pieces cuts an ICMP message into fragments of at most size bytes of data.
func pieces(src, dst string, id uint32, message []byte, size int) (out [][]byte) {
	for at := 0; at < len(message); at += size {
		data := message[at:min(at+size, len(message))]
		more := at+size < len(message)
		if addr(src).Is4() {
			out = append(out, vectors.IP4{Src: src, Dst: dst, ID: uint16(id), MF: more, Offset: at, Proto: 1, Data: data}.Bytes())
		} else {
			out = append(out, vectors.IP6{Src: src, Dst: dst, Next: 44, Data: vectors.FragmentHeader(58, at, more, id, data)}.Bytes())
		}
	}
	return out
}

func ping4(n int) []byte { return vectors.ICMPMessage(8, 0, 77, vectors.Pattern(n)) }

func ping6(n int) []byte { return vectors.ICMP6Message(tVM, tClient6, 128, 0, 77, vectors.Pattern(n)) }

// Fragments in every order, with some of them twice, are made whole, and then translated (RFC 7915 section 1.2 gives up on
// them).
func TestReassemble(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{100, 1473, 3000, 65535 - 28} {
		for round := range 10 {
			r := NewReassembler(ReassemblerConfig{})
			for name, parts := range map[string][][]byte{
				"4": pieces(tClient, tService, 7, ping4(n), 64+8*(n/40)),
				"6": pieces(tVM, tClient6, 7, ping6(min(n, 65535-8-20-8)), 64+8*(n/40)),
			} {
				largest := 0
				for _, p := range parts {
					largest = max(largest, len(p))
				}
				if round > 0 {
					rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
					parts = slices.Insert(parts, 1, parts[0])
				}
				for i, p := range parts {
					buf := slices.Clone(p)
					w, ok := r.Take(buf, start)
					clear(buf) // the caller's again
					if ok != (i == len(parts)-1) {
						t.Fatalf("%s, %d bytes: whole after %d of %d", name, n, i+1, len(parts))
					}
					if !ok {
						continue
					}
					if w.Largest != largest {
						t.Errorf("largest %d, want %d", w.Largest, largest)
					}
					if right, known := checksumOf(w.Packet); !right || !known {
						t.Errorf("%s: checksum of the whole", name)
					}
					res := tr.Translate(w.Packet, Options{Largest: w.Largest})
					if !res.Reason.Translated() {
						t.Fatalf("%s, %d bytes: %v", name, n, res.Reason)
					}
					most := map[string]int{"4": largest + 28, "6": largest - 28}[name] // the headers differ by that
					for _, b := range res.Packets {
						if len(b) > most {
							t.Errorf("%s: a fragment of %d bytes, from %d", name, len(b), largest)
						}
					}
					if right, known := checksumOf(reassembled(t, res.Packets)); !right || !known {
						t.Errorf("%s, %d bytes: checksum", name, n)
					}
				}
			}
			if packets, held := r.Held(); packets != 0 || held != 0 || !r.Next().IsZero() {
				t.Errorf("holds %d packets and %d bytes", packets, held)
			}
		}
	}
}

// What is no fragment of ICMP comes back as it is.
func TestReassemblePassesOn(t *testing.T) {
	r := NewReassembler(ReassemblerConfig{})
	for _, v := range vectors.All() {
		if v.Reason == DropICMPFragment.String() {
			continue
		}
		if w, ok := r.Take(v.In, start); !ok || !bytes.Equal(w.Packet, v.In) || w.Largest != 0 {
			t.Errorf("%s: %v", v.Name, ok)
		}
	}
	if c := r.Counters(); c != (ReassemblerCounters{}) {
		t.Errorf("counted %+v", c)
	}
}

func TestReassembleExpires(t *testing.T) {
	r := NewReassembler(ReassemblerConfig{Time: 5 * time.Second})
	parts := pieces(tClient, tService, 7, ping4(100), 56)
	r.Take(parts[0], start)
	r.Take(pieces(tClient, tService, 8, ping4(100), 56)[0], start.Add(time.Second))
	if next := r.Next(); !next.Equal(start.Add(5 * time.Second)) {
		t.Errorf("next at %v", next)
	}
	if n := r.Expire(start.Add(5*time.Second - 1)); n != 0 {
		t.Errorf("%d expired early", n)
	}
	if n := r.Expire(start.Add(5 * time.Second)); n != 1 {
		t.Errorf("%d expired", n)
	}
	if next := r.Next(); !next.Equal(start.Add(6 * time.Second)) {
		t.Errorf("next at %v", next)
	}
	// What is late is the beginning of another packet.
	if _, ok := r.Take(parts[1], start.Add(6*time.Second)); ok {
		t.Error("half a packet is whole")
	}
	if d := cmp.Diff(ReassemblerCounters{Fragments: 3, Expired: 2}, r.Counters()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Fragments that overlap end their packet (RFC 8200 section 4.5, RFC 5722), and so do those that cannot be.
func TestReassembleContradictions(t *testing.T) {
	fragment := func(offset, n int, more bool) []byte {
		return vectors.IP4{Src: tClient, Dst: tService, ID: 7, MF: more, Offset: offset, Proto: 1, Data: vectors.Pattern(n)}.Bytes()
	}
	for _, c := range []struct {
		name string
		in   [][]byte
		want ReassemblerCounters
	}{
		{"overlap", [][]byte{fragment(0, 48, true), fragment(40, 16, true)}, ReassemblerCounters{Fragments: 2, Overlap: 1}},
		{"overlap before", [][]byte{fragment(40, 48, true), fragment(0, 48, true)}, ReassemblerCounters{Fragments: 2, Overlap: 1}},
		{"within", [][]byte{fragment(0, 48, true), fragment(8, 8, true)}, ReassemblerCounters{Fragments: 2, Overlap: 1}},
		{"same place, other length", [][]byte{fragment(0, 48, true), fragment(0, 40, true)}, ReassemblerCounters{Fragments: 2, Overlap: 1}},
		{"the same twice", [][]byte{fragment(0, 48, true), fragment(0, 48, true)}, ReassemblerCounters{Fragments: 2}},
		{"behind the end", [][]byte{fragment(48, 8, false), fragment(56, 8, true)}, ReassemblerCounters{Fragments: 2, Malformed: 1}},
		{"end before others", [][]byte{fragment(80, 8, true), fragment(48, 8, false)}, ReassemblerCounters{Fragments: 2, Malformed: 1}},
		{"two ends", [][]byte{fragment(48, 8, false), fragment(80, 8, false)}, ReassemblerCounters{Fragments: 2, Malformed: 1}},
		{"empty", [][]byte{fragment(48, 0, true)}, ReassemblerCounters{Fragments: 1, Malformed: 1}},
		{"too long together", [][]byte{fragment(0, 32768, true), fragment(32768, 32767, false)}, ReassemblerCounters{Fragments: 2, Malformed: 1}},
	} {
		r := NewReassembler(ReassemblerConfig{})
		for _, b := range c.in {
			if _, ok := r.Take(b, start); ok {
				t.Errorf("%s: whole", c.name)
			}
		}
		if d := cmp.Diff(c.want, r.Counters()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if packets, held := r.Held(); (packets == 0) != (c.want.Overlap+c.want.Malformed > 0) || (packets == 0) != (held == 0) {
			t.Errorf("%s: holds %d packets, %d bytes", c.name, packets, held)
		}
	}
}

// Whatever comes, no more is held than the configuration says; one source cannot push out another's.
func TestReassembleBounds(t *testing.T) {
	cfg := ReassemblerConfig{Bytes: 64 << 10, SourceBytes: 8 << 10}
	r := NewReassembler(cfg)
	victim := pieces("203.0.113.200", tService, 1, ping4(600), 304)
	r.Take(victim[0], start)
	for id := range uint32(1000) {
		r.Take(pieces(tClient, tService, id, ping4(600), 304)[0], start)
		if _, held := r.Held(); held > cfg.SourceBytes+1024 {
			t.Fatalf("%d bytes for two sources", held)
		}
	}
	if _, ok := r.Take(victim[1], start); !ok {
		t.Error("a source pushed another out")
	}
	for i := range 1000 {
		r.Take(pieces(fmt.Sprintf("203.0.%d.%d", i/250, 1+i%250), tService, 1, ping4(600), 304)[0], start)
		if _, held := r.Held(); held > cfg.Bytes {
			t.Fatalf("%d bytes", held)
		}
	}
	c := r.Counters()
	packets, _ := r.Held()
	if c.Evicted == 0 || c.Evicted+c.Whole+uint64(packets) != 2001 {
		t.Errorf("%+v, and %d are held", c, packets)
	}
	// Many small fragments cost more than their data.
	r = NewReassembler(cfg)
	for i := range 8000 {
		r.Take(vectors.IP4{Src: tClient, Dst: tService, ID: 9, MF: true, Offset: 16 * (i % 4000), Proto: 1, Data: make([]byte, 8)}.Bytes(), start)
		if _, held := r.Held(); held > cfg.SourceBytes {
			t.Fatalf("%d bytes", held)
		}
	}
	// The defaults hold two of the largest packets.
	r = NewReassembler(ReassemblerConfig{})
	a, b := pieces(tClient, tService, 1, ping4(65000), 1400), pieces(tClient, tService, 2, ping4(65000), 1400)
	for i := range a {
		_, first := r.Take(a[i], start)
		_, second := r.Take(b[i], start)
		if last := i == len(a)-1; first != last || second != last {
			t.Fatalf("fragment %d of %d: %v %v", i, len(a), first, second)
		}
	}
}
