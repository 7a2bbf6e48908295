package map646

import (
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// hairpinStep is a packet on its way in RFC 7757 appendix B.1: outer addresses, and those of the packet inside.
type hairpinStep struct{ outer, inner ends }

var hairpinExamples = []struct {
	name                         string
	initial, intermediate, final hairpinStep
}{
	{"figure 8, a packet",
		hairpinStep{outer: ends{"2001:db8:aaaa::", "64:ff9b::c000:202"}},
		hairpinStep{outer: ends{"192.0.2.1", "192.0.2.2"}},
		hairpinStep{outer: ends{"64:ff9b::c000:201", "2001:db8:bbbb::b"}}},
	{"figure 9, an error of a router",
		hairpinStep{ends{"2001:db8::1234", "64:ff9b::c000:201"}, ends{"64:ff9b::c000:201", "2001:db8:bbbb::b"}},
		hairpinStep{ends{"198.51.100.1", "192.0.2.1"}, ends{"192.0.2.1", "192.0.2.2"}},
		hairpinStep{ends{"64:ff9b::c633:6401", "2001:db8:aaaa::"}, ends{"2001:db8:aaaa::", "64:ff9b::c000:202"}}},
	{"figure 10, an error of the host",
		hairpinStep{ends{"2001:db8:bbbb::b", "64:ff9b::c000:201"}, ends{"64:ff9b::c000:201", "2001:db8:bbbb::b"}},
		hairpinStep{ends{"192.0.2.2", "192.0.2.1"}, ends{"192.0.2.1", "192.0.2.2"}},
		hairpinStep{ends{"64:ff9b::c000:202", "2001:db8:aaaa::"}, ends{"2001:db8:aaaa::", "64:ff9b::c000:202"}}},
	{"figure 11, the answer",
		hairpinStep{outer: ends{"2001:db8:bbbb::b", "64:ff9b::c000:201"}},
		hairpinStep{outer: ends{"192.0.2.2", "192.0.2.1"}},
		hairpinStep{outer: ends{"64:ff9b::c000:202", "2001:db8:aaaa::"}}},
}

// packet is the IPv6 packet of a step.
func (s hairpinStep) packet() []byte {
	if s.inner == (ends{}) {
		return udpPacket(s.outer.src, s.outer.dst, 30)
	}
	return vectors.IP6{Src: s.outer.src, Dst: s.outer.dst, Next: vectors.ICMP6,
		Data: vectors.ICMP6Message(s.outer.src, s.outer.dst, 3, 0, 0, udpPacket(s.inner.src, s.inner.dst, 30))}.Bytes()
}

func stepOf(b []byte, inside bool) hairpinStep {
	s := hairpinStep{outer: endsOf(b)}
	if inside && version(b) == 4 {
		s.inner = endsOf(b[28:])
	} else if inside {
		s.inner = endsOf(b[48:])
	}
	return s
}

func hairpinConfig(h Hairpin) Config {
	return Config{Pool: WellKnownPrefix, Embed: EmbedAny, Explicit: exampleRules, ICMPSource: prefix("198.51.100.1"), Hairpin: h}
}

func TestHairpinIntrinsic(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinIntrinsic))
	for _, c := range hairpinExamples {
		out := only(t, tr, c.initial.packet(), Options{})
		if got := stepOf(out, c.initial.inner != ends{}); got != c.final {
			t.Errorf("%s: %v, want %v", c.name, got, c.final)
		}
		if right, known := checksumOf(out); !right || !known {
			t.Errorf("%s: checksum", c.name)
		}
	}
	// What is no service's goes out, and so does an error about a packet that came from outside (condition set B).
	out := only(t, tr, udpPacket("2001:db8:aaaa::", "64:ff9b::808:808", 1), Options{})
	if version(out) != 4 {
		t.Errorf("to the world: %v", endsOf(out))
	}
	out = only(t, tr, hairpinStep{ends{"2001:db8:bbbb::b", "64:ff9b::808:808"}, ends{"64:ff9b::808:808", "2001:db8:bbbb::b"}}.packet(), Options{})
	if version(out) != 4 {
		t.Errorf("an error to the world: %v", endsOf(out))
	}
}

func TestHairpinSimple(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinSimple))
	for _, c := range hairpinExamples {
		inside := c.initial.inner != ends{}
		middle := only(t, tr, c.initial.packet(), Options{})
		if got := stepOf(middle, inside); got != c.intermediate {
			t.Errorf("%s: %v, want %v", c.name, got, c.intermediate)
		}
		out := only(t, tr, middle, Options{})
		if got := stepOf(out, inside); got != c.final {
			t.Errorf("%s: %v, want %v", c.name, got, c.final)
		}
	}
}

// Rule 3 needs no more of the packet inside than its header.
func TestHairpinSimpleTruncated(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinSimple))
	inner := udpPacket("192.0.2.1", "192.0.2.2", 30)
	in := vectors.IP4{Src: "192.0.2.2", Dst: "192.0.2.1", Proto: 1, Data: vectors.ICMPMessage(3, 3, 0, inner[:20])}.Bytes()
	if got, want := stepOf(only(t, tr, in, Options{}), true), hairpinExamples[2].final; got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// Without hairpinning each address is translated for itself, and the answer goes past the translator.
func TestHairpinOff(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinOff))
	c := hairpinExamples[0]
	middle := only(t, tr, c.initial.packet(), Options{})
	if got := endsOf(middle); got != c.intermediate.outer {
		t.Errorf("%v, want %v", got, c.intermediate.outer)
	}
	if got, want := endsOf(only(t, tr, middle, Options{})), (ends{"2001:db8:aaaa::", "2001:db8:bbbb::b"}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// Its hop limit is decremented once (RFC 7757 section 4.2.2).
func TestHairpinHopLimit(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinIntrinsic))
	in := hairpinExamples[0].initial.packet()
	if out := only(t, tr, in, Options{Hop: true}); out[7] != in[7]-1 {
		t.Errorf("hop limit %d became %d", in[7], out[7])
	}
	if out := only(t, tr, in, Options{}); out[7] != in[7] {
		t.Errorf("hop limit %d became %d", in[7], out[7])
	}
}

// A packet that was made whole is cut again, into pieces of the size that it had, with its identification.
func TestHairpinLarge(t *testing.T) {
	tr := newTranslator(t, hairpinConfig(HairpinIntrinsic))
	src, dst := hairpinExamples[0].initial.outer.src, hairpinExamples[0].initial.outer.dst
	whole := vectors.IP6{Src: src, Dst: dst, Next: 44,
		Data: vectors.FragmentHeader(58, 0, false, 0x1234abcd, vectors.ICMP6Message(src, dst, 128, 0, 1, vectors.Pattern(3000)))}.Bytes()
	r := tr.Translate(whole, Options{Largest: 1200, MTU: 1444})
	if r.Reason != Hairpinned || len(r.Packets) < 3 {
		t.Fatalf("%v, %d packets", r.Reason, len(r.Packets))
	}
	for _, b := range r.Packets {
		if len(b) > 1200 || b[6] != 44 || [4]byte(b[44:48]) != [4]byte{0, 0, 0xab, 0xcd} {
			t.Errorf("a fragment of %d bytes, % x", len(b), b[40:48])
		}
	}
	back := reassembled(t, r.Packets)
	if right, known := checksumOf(back); !right || !known {
		t.Error("checksum of the whole")
	}
}
