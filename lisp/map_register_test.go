package lisp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMapRegisterGolden(t *testing.T) {
	checkGolden(t, &MapRegister{
		ProxyReply: true, HasXTRID: true, UseTTL: true, WantMapNotify: true,
		Nonce: 5,
		Auth:  Auth{KeyID: 3, Algorithm: AlgHMACSHA1_96, Data: []byte("abcdefghijkl")},
		Records: []Mapping{{EID: mustEID("198.51.100.10"), TTL: 3, Version: 9, Locators: []Locator{
			{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 100, Reachable: true}}}},
		XTRID: XTRID{0: 0xa1}, SiteID: 0x0102030405060708,
	}, `
		3 a 00 09 01 0000000000000005 // type 3; P, I; T, M; 1 record
		03 01 000c 6162636465666768696a6b6c
		00000003 01 20 0000 0009 0001 c633640a
		01 64 00 00 0001 0001 64400102
		a1000000000000000000000000000000 0102030405060708
	`)
}

func TestMapRegisterBits(t *testing.T) {
	for word, m := range map[string]*MapRegister{
		"30000000": {}, "38000000": {ProxyReply: true}, "34000000": {Security: true}, "30001000": {EIDNotify: true},
		"30000800": {UseTTL: true}, "30000400": {Merge: true}, "30000200": {Mobile: true}, "30000100": {WantMapNotify: true},
	} {
		checkGolden(t, m, word+" 0000000000000000 00 00 0000")
	}
	checkDecodes(t, &MapRegister{}, "31ffe000 0000000000000000 00 00 0000") // reserved bits are ignored
	checkRefused(t, "I and no Site-ID", ErrTruncated, "32000000 0000000000000000 00 00 0000 00000000000000000000000000000000")
}

// "The p-bit MUST NOT be set for Locator-Set records sent in Map-Request and Map-Register messages"
// (RFC 9301 section 5.4).
func TestMapRegisterHasNoProbeBit(t *testing.T) {
	m := &MapRegister{Records: []Mapping{{EID: mustEID("10.0.0.1"), Locators: []Locator{
		{RLOC: netip.MustParseAddr("100.64.1.2"), Probed: true}}}}}
	b, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Records[0].Locators[0].Probed || got.(*MapRegister).Records[0].Locators[0].Probed {
		t.Error("the p-bit travels, or Append changed the message")
	}
}

func TestMappings(t *testing.T) {
	id := XTRID{7}
	records := []Mapping{{EID: mustEID("10.0.0.1")}, {EID: mustEID("10.0.0.2")}}
	want := []Mapping{{EID: records[0].EID, XTRID: id, SiteID: 3}, {EID: records[1].EID, XTRID: id, SiteID: 3}}
	register := &MapRegister{Records: records, XTRID: id, SiteID: 3}
	notify := &MapNotify{Records: records, XTRID: id, SiteID: 3}
	for _, got := range [][]Mapping{register.Mappings(), notify.Mappings()} {
		if d := cmp.Diff(want, got, cmpOpts); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	if !records[0].XTRID.IsZero() {
		t.Error("Mappings changed the message")
	}
}
