package lisp

import (
	"net/netip"
	"testing"
)

// A record of an instance-ID LCAF with what follows its header, and its mask length.
func iidRecord(mask, body string) string {
	return replyHead + "00000000 00 " + mask + " 0000 0000 4003 " + body
}

func TestInstanceID(t *testing.T) {
	checkGolden(t, reply(Mapping{EID: mustEID("[16777215]10.0.0.0/8")}), iidRecord("08", "0000 0200 000a 00ffffff 0001 0a000000"))
	checkGolden(t, reply(Mapping{EID: mustEID("[1]2001:db8::/32")}),
		iidRecord("20", "0000 0200 0016 00000001 0002 20010db8000000000000000000000000"))
	// Instance-ID 0 may come in an LCAF; reserved fields, flags and the IID mask length do not matter.
	checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.0/8")}), iidRecord("08", "ffff 02ff 000a 00000000 0001 0a000000"))
	checkRefused(t, "too long", ErrMalformed, iidRecord("08", "0000 0200 000b 00000001 0001 0a000000 00"))
	checkRefused(t, "too short", ErrMalformed, iidRecord("08", "0000 0200 0009 00000001 0001 0a000000"))
	checkRefused(t, "longer than the message", ErrTruncated, iidRecord("08", "0000 0200 000b 00000001 0001 0a000000"))
	checkRefused(t, "AFI inside", ErrUnknownAFI, iidRecord("08", "0000 0200 000a 00000001 0006 0a000000"))
	checkRefused(t, "mask length", ErrMalformed, iidRecord("21", "0000 0200 000a 00000001 0001 0a000000"))
}

// A record whose EID nobody here can use is read over; the one behind it counts.
func TestUnusableEIDs(t *testing.T) {
	for what, eid := range map[string]string{
		"instance-ID of 25 bits":   "4003 0000 0200 000a 01000000 0001 0a000000",
		"instance-ID range":        "4003 0000 0210 0006 00010000 0000",
		"LCAF in an LCAF":          "4003 0000 0200 000c 00000001 4003 0000 0500 0000",
		"multicast":                "4003 0000 0900 0014 00000000 0000 0820 0001 0a000000 0001 e0000001",
		"null body":                "4003 0000 0000 0000",
		"type that nobody defined": "4003 0000 ff00 0003 010203",
		"none":                     "0000",
	} {
		t.Run(what, func(t *testing.T) {
			checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.1")}), "20000002 0000000000000000"+
				"00000000 01 20 0000 0000 "+eid+" 01640000 0001 0001 01010101"+
				"00000000 00 20 0000 0000 0001 0a000001")
		})
	}
}

// LCAF locators are kept as they came, the ones in an instance too: their RLOC is not in this instance.
func TestRawLocators(t *testing.T) {
	for what, raw := range map[string]string{
		"explicit locator path": "\x40\x03\x00\x00\x0a\x00\x00\x08\x00\x00\x00\x01\x01\x01\x01\x01",
		"null body":             "\x40\x03\x00\x00\x00\x00\x00\x00",
		"instance-ID":           "\x40\x03\x00\x00\x02\x20\x00\x0a\x00\x00\x00\x01\x00\x01\x01\x01\x01\x01",
		"flags":                 "\x40\x03\x12\x34\x0e\x56\x00\x02{}",
	} {
		m := reply(Mapping{EID: mustEID("10.0.0.1"), Locators: []Locator{{LCAF: RawLCAF(raw), Priority: 1, Reachable: true}}})
		b, err := Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		l := got.(*MapReply).Records[0].Locators[0]
		if l != m.Records[0].Locators[0] || l.Usable() || l.LCAF.LCAFType() != raw[4] {
			t.Errorf("%s: %+v", what, l)
		}
	}
	if got := RawLCAF("").LCAFType(); got != 0 {
		t.Errorf("type %d of nothing", got)
	}
}

func TestRawLCAFText(t *testing.T) {
	l := RawLCAF("\x40\x03\xff")
	b, err := l.MarshalText()
	if err != nil || string(b) != "4003ff" {
		t.Fatalf("%s, %v", b, err)
	}
	var got RawLCAF
	if err := got.UnmarshalText(b); err != nil || got != l {
		t.Errorf("%x, %v", string(got), err)
	}
	if err := got.UnmarshalText([]byte("4x")); err == nil || got != l {
		t.Errorf("of bad text: %x, %v", string(got), err)
	}
}

// A locator without an address travels as AFI 0 and is not usable.
func TestNoLocator(t *testing.T) {
	checkGolden(t, reply(Mapping{EID: mustEID("10.0.0.1"), Locators: []Locator{{RLOC: netip.Addr{}, Priority: 1, Reachable: true}}}),
		replyHead+"00000000 01 20 0000 0000 0001 0a000001 01000000 0001 0000")
}
