package lisp

import (
	"net/netip"
	"testing"
)

func TestMapRequestGolden(t *testing.T) {
	checkGolden(t, &MapRequest{
		Authoritative: true, PITR: true, LocalXTR: true,
		Nonce:     0x0102030405060708,
		SourceEID: mustEID("198.51.100.20"),
		ITRRLOCs:  []netip.Addr{netip.MustParseAddr("100.64.1.2"), netip.MustParseAddr("2001:db8:100:3::2")},
		Records:   []RequestRecord{{EID: mustEID("[7]2001:db8:e1d:1::10"), Notify: true}, {EID: mustEID("192.0.2.0/24")}},
		HasXTRID:  true, XTRID: XTRID{0: 0xa1, 15: 0x1a}, SiteID: 0x77,
	}, `
		1 8 90 41 02 // type 1; A; p, I; L, IRC 1; 2 records
		0102030405060708
		0001 c6336414 // source EID
		0001 64400102
		0002 20010db8010000030000000000000002
		80 80 4003 00 00 02 00 0016 00000007 0002 20010db80e1d00010000000000000010
		00 18 0001 c0000200
		a100000000000000000000000000001a 0000000000000077
	`)
}

func TestMapRequestBits(t *testing.T) {
	rlocs := []netip.Addr{netip.AddrFrom4([4]byte{1, 2, 3, 4})}
	rest := " 0000000000000000 0000 0001 01020304"
	for word, m := range map[string]*MapRequest{
		"10000000": {}, "18000000": {Authoritative: true}, "12000000": {Probe: true}, "11000000": {SMR: true},
		"10800000": {PITR: true}, "10400000": {SMRInvoked: true}, "10004000": {LocalXTR: true}, "10002000": {DontReply: true},
	} {
		m.ITRRLOCs = rlocs
		checkGolden(t, m, word+rest)
	}
	checkDecodes(t, &MapRequest{ITRRLOCs: rlocs}, "10208000"+rest) // reserved bits are ignored
}

func TestMapRequestWithReply(t *testing.T) {
	checkGolden(t, &MapRequest{
		ITRRLOCs: []netip.Addr{netip.AddrFrom4([4]byte{1, 2, 3, 4})},
		Records:  []RequestRecord{{EID: mustEID("192.0.2.0/24")}},
		Reply: &Mapping{EID: mustEID("198.51.100.20"), TTL: 5,
			Locators: []Locator{{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 100, Reachable: true}}},
	}, `
		14000001 0000000000000000 0000 0001 01020304
		00 18 0001 c0000200
		00000005 01 20 0000 0000 0001 c6336414
		01 64 00 00 0001 0001 64400102
	`)
}

func TestMapRequestUnknownAddresses(t *testing.T) {
	geo := "4003 0000 0500 0002 abcd "
	rlocs := []netip.Addr{netip.AddrFrom4([4]byte{1, 2, 3, 4})}
	checkDecodes(t, &MapRequest{ITRRLOCs: rlocs, Records: []RequestRecord{{EID: mustEID("192.0.2.0/24")}}},
		"10000102 0000000000000000 "+geo+geo+"0001 01020304  00 00 "+geo+"00 18 0001 c0000200")
	checkRefused(t, "no ITR-RLOC is an IP address", ErrMalformed, "10000000 0000000000000000 0000 "+geo)
	checkRefused(t, "I and no xTR-ID", ErrTruncated, "10100000 0000000000000000 0000 0001 01020304")
	checkRefused(t, "AFI of the source", ErrUnknownAFI, "10000000 0000000000000000 0006 0001 01020304")
	checkRefused(t, "AFI of an ITR-RLOC", ErrUnknownAFI, "10000000 0000000000000000 0000 4004 01020304")
}

func TestMapRequestUnencodable(t *testing.T) {
	rlocs := make([]netip.Addr, 33)
	checkUnencodable(t, "no ITR-RLOC", &MapRequest{})
	checkUnencodable(t, "33 ITR-RLOCs", &MapRequest{ITRRLOCs: rlocs})
	checkUnencodable(t, "256 records", &MapRequest{ITRRLOCs: rlocs[:1], Records: make([]RequestRecord, 256)})
	checkUnencodable(t, "no EID", &MapRequest{ITRRLOCs: rlocs[:1], Records: make([]RequestRecord, 1)})
	checkUnencodable(t, "a bad source", &MapRequest{ITRRLOCs: rlocs[:1], SourceEID: EID{IID: 1}})
	checkUnencodable(t, "a bad mapping", &MapRequest{ITRRLOCs: rlocs[:1], Reply: &Mapping{}})
	if _, err := Append(nil, &MapRequest{ITRRLOCs: rlocs[:32]}); err != nil {
		t.Errorf("32 ITR-RLOCs: %v", err)
	}
}
