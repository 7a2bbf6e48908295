package map646

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// structure is an extension structure (RFC 4884 section 7) with one object of n bytes of payload.
func structure(n int) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x20, 0, 0, 0}, uint16(4+n))
	b = append(append(b, 200, 1), vectors.Pattern(n)...)
	binary.BigEndian.PutUint16(b[2:], ^vectors.Sum(b))
	return b
}

// splitWant reads a translated ICMP error by the RFC: what is inside, and the structure behind.
func splitWant(t *testing.T, b []byte) (inner, extension []byte) {
	t.Helper()
	m, words, unit := b[20:], 0, 4
	if version(b) == 4 {
		words = int(m[5])
	} else {
		m, unit = b[40:], 8
		words = int(m[4])
	}
	if words == 0 {
		return m[8:], nil
	}
	n := words * unit
	if n < 128 || 8+n > len(m) {
		t.Fatalf("a length attribute of %d in a message of %d bytes", words, len(m))
	}
	return m[8 : 8+n], m[8+n:]
}

// Structures of every size behind packets of every size: the message stays within the limits, the packet inside keeps
// 128 bytes or more, and the structure is whole or gone.
func TestExtensionSizes(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	full4, full6 := udpPacket(tService, tClient, 1400), udpPacket(tClient6, tVM, 1400)
	for _, n := range []int{0, 4, 24, 100, 200, 396, 400, 404, 900, 1092, 1096, 1100} {
		ext := structure(n)
		for words := 32; words <= 255; words += 11 {
			in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, uint32(words)<<16, slices.Concat(full4[:4*words], ext))}.Bytes()
			out := only(t, tr, in, Options{})
			inner, got := splitWant(t, out)
			if len(out) > 1280 || got != nil && !bytes.Equal(got, ext) || got == nil && 48+128+len(ext) <= 1280 {
				t.Fatalf("4 to 6, %d words and %d bytes: %d bytes, structure of %d", words, n, len(out), len(got))
			}
			if len(inner) < 128 {
				t.Fatalf("4 to 6, %d words and %d bytes: %d bytes inside", words, n, len(inner))
			}
			if right, known := checksumOf(out); !right || !known {
				t.Fatal("checksum")
			}
			if 8*words > 1400 {
				continue
			}
			if words < 16 {
				continue
			}
			in = vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 1, 0, uint32(words)<<24, slices.Concat(full6[:8*words], ext))}.Bytes()
			out = only(t, tr, in, Options{})
			inner, got = splitWant(t, out)
			if len(out) > 576 || got != nil && !bytes.Equal(got, ext) || got == nil && 28+128+len(ext) <= 576 {
				t.Fatalf("6 to 4, %d words and %d bytes: %d bytes, structure of %d", words, n, len(out), len(got))
			}
			if len(inner) < 128 {
				t.Fatalf("6 to 4, %d words and %d bytes: %d bytes inside", words, n, len(inner))
			}
			if right, known := checksumOf(out); !right || !known {
				t.Fatal("checksum")
			}
		}
	}
}

// ICMP errors are no longer than what every host can reassemble (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4(c)).
func TestExtensionNone(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	for n := 28; n < 1400; n += 9 {
		in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(3, 1, 0, udpPacket(tService, tClient, 1400)[:n])}.Bytes()
		if out := only(t, tr, in, Options{}); len(out) != min(1280, 48+n+20) {
			t.Errorf("4 to 6, %d bytes inside: %d", n, len(out))
		}
		in = vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 1, 0, 0, udpPacket(tClient6, tVM, 1400)[:n+20])}.Bytes()
		if out := only(t, tr, in, Options{}); len(out) != min(576, 28+n) {
			t.Errorf("6 to 4, %d bytes inside: %d", n+20, len(out))
		}
	}
}

// What is behind the packet inside, with no length attribute to say what it is, is passed on as it is: structures from
// before RFC 4884 (section 5.5). With one, it is padding, which is made anew.
func TestExtensionOld(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	inner4, inner6 := udpPacket(tService, tClient, 20), udpPacket(tVM, tClient6, 20)
	tail := append(make([]byte, 128-len(inner4)), structure(8)...)
	in := vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, 0, slices.Concat(inner4, tail))}.Bytes()
	if out, want := only(t, tr, in, Options{}), slices.Concat(inner6, tail); !bytes.Equal(out[48:], want) {
		t.Errorf("4 to 6: % x, want % x", out[48:], want)
	}
	inner4, inner6 = udpPacket(tClient, tService, 20), udpPacket(tClient6, tVM, 20)
	in = vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, 3, 0, 0, slices.Concat(inner6, tail))}.Bytes()
	if out, want := only(t, tr, in, Options{}), slices.Concat(inner4, tail); !bytes.Equal(out[28:], want) {
		t.Errorf("6 to 4: % x, want % x", out[28:], want)
	}
	in = vectors.IP4{Src: tClient, Dst: tService, Proto: 1, Data: vectors.ICMPMessage(11, 0, 32<<16, append(udpPacket(tService, tClient, 20), vectors.Pattern(80)...))}.Bytes()
	if inner, ext := splitWant(t, only(t, tr, in, Options{})); len(ext) != 0 || len(inner) != 68 {
		t.Errorf("with a length attribute: %d bytes inside, %d behind", len(inner), len(ext))
	}
}

// Only the messages that have a length attribute are read for one (RFC 4884 section 4.6): in others these bytes mean
// something else.
func TestExtensionOnlyWhereDefined(t *testing.T) {
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	full6 := udpPacket(tClient6, tVM, 1400)
	for _, c := range []struct {
		typ  byte
		rest uint32
	}{{2, 20<<24 | 1400}, {4, 7}} {
		in := vectors.IP6{Src: tVM, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(tVM, tClient6, c.typ, 0, c.rest, slices.Concat(full6[:160], structure(4)))}.Bytes()
		out := only(t, tr, in, Options{})
		if inner, ext := splitWant(t, out); ext != nil || len(inner) != 140+12 {
			t.Errorf("type %d: %d bytes inside, structure % x", c.typ, len(inner), ext)
		}
	}
}

// A structure that cannot be read is passed on, and no object is added to it.
func TestExtensionUnknown(t *testing.T) {
	const hop = "2001:db8:e1d:ffff::1"
	tr := newTranslator(t, cloudConfig(), cloudServices()...)
	full6 := udpPacket(tClient6, tVM, 1400)
	for name, ext := range map[string][]byte{
		"version 3":     {0x30, 0, 1, 2, 0, 8, 1, 1, 9, 9, 9, 9},
		"not of words":  {0x20, 0, 1, 2, 0, 7, 1, 1, 9, 9, 9},
		"only a header": {0x20, 0},
	} {
		in := vectors.IP6{Src: hop, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(hop, tClient6, 3, 0, 20<<24, slices.Concat(full6[:160], ext))}.Bytes()
		if _, got := splitWant(t, only(t, tr, in, Options{})); !bytes.Equal(got, ext) {
			t.Errorf("%s: % x became % x", name, ext, got)
		}
	}
	// A structure without checksum gets none (RFC 4884 section 7).
	ext := structure(4)
	ext[2], ext[3] = 0, 0
	in := vectors.IP6{Src: hop, Dst: tClient6, Next: 58, Data: vectors.ICMP6Message(hop, tClient6, 3, 0, 20<<24, slices.Concat(full6[:160], ext))}.Bytes()
	if _, got := splitWant(t, only(t, tr, in, Options{})); len(got) != len(ext)+24 || !bytes.Equal(got[:len(ext)], ext) {
		t.Errorf("% x became % x", ext, got)
	}
}
