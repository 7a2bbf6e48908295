package lisp

import (
	"net/netip"
	"slices"
	"testing"
)

const replyHead = "20000001 0000000000000000 "

func reply(ms ...Mapping) *MapReply { return &MapReply{Records: ms} }

// "the list of Locators in a Locator-Set MUST be sorted in order of ascending IP address where an IPv4
// Routing Locator Address is considered numerically 'less than' an IPv6" (RFC 9301 section 5.5).
func TestLocatorsAreSorted(t *testing.T) {
	at := func(a string) Locator { return Locator{RLOC: netip.MustParseAddr(a)} }
	unsorted := []Locator{{LCAF: "\x40\x03\x00\x00\x05\x00\x00\x00"}, at("2001:db8::1"), at("100.64.1.2"), at("1::"), at("9.0.0.1")}
	kept := slices.Clone(unsorted)
	packet := `00000000 05 20 0000 0000 0001 0a000001
		00000000 0000 0001 09000001
		00000000 0000 0001 64400102
		00000000 0000 0002 00010000000000000000000000000000
		00000000 0000 0002 20010db8000000000000000000000001
		00000000 0000 4003 0000 0500 0000`
	b, err := Append(nil, reply(Mapping{EID: mustEID("10.0.0.1"), Locators: unsorted}))
	if err != nil {
		t.Fatal(err)
	}
	if want := golden(t, replyHead+packet); string(b) != string(want) {
		t.Errorf("Append:\n%x, want\n%x", b, want)
	}
	if !slices.Equal(unsorted, kept) {
		t.Error("Append changed the order in the message")
	}
	// A peer that did not sort is read as if it had.
	checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.1"), Locators: []Locator{at("9.0.0.1"), at("1::")}}), replyHead+
		`00000000 02 20 0000 0000 0001 0a000001
		00000000 0000 0002 00010000000000000000000000000000
		00000000 0000 0001 09000001`)
}

// "If an implementation sets more than one p-bit erroneously, the receiver of the Map-Reply MUST select
// the first set p-bit Locator" (RFC 9301 section 5.4).
func TestFirstProbeBit(t *testing.T) {
	checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.1"), Locators: []Locator{
		{RLOC: netip.MustParseAddr("1.1.1.1")}, {RLOC: netip.MustParseAddr("2.2.2.2"), Probed: true}}}),
		replyHead+`00000000 02 20 0000 0000 0001 0a000001
		00000000 0002 0001 02020202
		00000000 0002 0001 01010101`)
}

func TestRecordDecode(t *testing.T) {
	locator := "01640000 0001 0001 01010101 "
	one := []Locator{{RLOC: netip.MustParseAddr("1.1.1.1"), Priority: 1, Weight: 100, Reachable: true}}
	// The action counts only without locators; reserved bits are ignored; host bits of the EID are cleared.
	checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.0/8"), Version: 0xfff, Locators: one}),
		replyHead+"00000000 01 08 efff ffff 0001 0a010203"+locator)
	checkDecodes(t, reply(Mapping{EID: mustEID("10.0.0.0/8"), Action: 7}), replyHead+"00000000 00 08 efff 0000 0001 0a010203")
	// IPv4-mapped IPv6 addresses do not come in, neither as EID nor as RLOC.
	checkDecodes(t, reply(Mapping{EID: mustEID("10.1.0.0/16"), Locators: one}), replyHead+
		"00000000 01 70 0000 0000 0002 00000000000000000000ffff0a010203 01640000 0001 0002 00000000000000000000ffff01010101")
	checkRefused(t, "mask length 33", ErrMalformed, replyHead+"00000000 00 21 0000 0000 0001 0a010203")
	checkRefused(t, "mask length 129", ErrMalformed, replyHead+"00000000 00 81 0000 0000 0002 20010db8000000000000000000000001")
	checkRefused(t, "AFI of the EID", ErrUnknownAFI, replyHead+"00000000 00 20 0000 0000 0003 0a010203")
	checkRefused(t, "AFI of a locator", ErrUnknownAFI, replyHead+"00000000 01 20 0000 0000 0001 0a010203 01640000 0001 4005 01010101")
	checkRefused(t, "records that are not there", ErrTruncated, "200000ff 0000000000000000 00000000 00 20 0000 0000 0001 0a010203")
	checkRefused(t, "locators that are not there", ErrTruncated, replyHead+"00000000 ff 08 0000 0000 0001 0a010203"+locator)
}

func TestRecordUnencodable(t *testing.T) {
	good := mustEID("10.0.0.1")
	for what, m := range map[string]Mapping{
		"no EID": {}, "version": {EID: good, Version: 4096}, "action": {EID: good, Action: 8},
		"locators": {EID: good, Locators: make([]Locator, 256)}, "instance": {EID: EID{IID: 1 << 24, Prefix: good.Prefix}},
		"LCAF":    {EID: good, Locators: []Locator{{LCAF: "\x40\x03\x00\x00\x05\x00\x00\x01"}}},
		"no LCAF": {EID: good, Locators: []Locator{{LCAF: "\x00\x01\x00\x00\x05\x00\x00\x00"}}},
	} {
		checkUnencodable(t, what, reply(m))
	}
	checkUnencodable(t, "256 records", reply(make([]Mapping, 256)...))
}

// An EID that was put together by hand may have host bits, or be mapped: what travels is canonical.
func TestRecordCanonical(t *testing.T) {
	for _, p := range []string{"10.1.2.3/16", "::ffff:10.1.2.3/112"} {
		b, err := Append(nil, reply(Mapping{EID: EID{Prefix: netip.MustParsePrefix(p)}}))
		if err != nil {
			t.Fatal(err)
		}
		if want := golden(t, replyHead+"00000000 00 10 0000 0000 0001 0a010000"); string(b) != string(want) {
			t.Errorf("%s travels as %x", p, b)
		}
	}
}
