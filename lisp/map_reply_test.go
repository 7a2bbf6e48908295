package lisp

import (
	"net/netip"
	"testing"
)

func TestMapReplyGolden(t *testing.T) {
	checkGolden(t, &MapReply{
		EchoNonce: true,
		Nonce:     0xfffefdfcfbfaf9f8,
		Records: []Mapping{
			{EID: mustEID("198.51.100.10"), TTL: 1440, Version: 0xabc, Authoritative: true, Locators: []Locator{
				{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 50, MPriority: 255, MWeight: 7, Local: true, Reachable: true},
				{RLOC: netip.MustParseAddr("2001:db8:100:3::2"), Priority: 255, Probed: true},
			}},
			{EID: mustEID("198.51.96.0/22"), TTL: 15, Action: ActNativelyForward},
		},
	}, `
		2 4 0000 02 fffefdfcfbfaf9f8
		000005a0 02 20 1000 0abc 0001 c633640a
		01 32 ff 07 0005 0001 64400102
		ff 00 00 00 0002 0002 20010db8010000030000000000000002
		0000000f 00 16 2000 0000 0001 c6336000
	`)
}

func TestMapReplySecurity(t *testing.T) {
	checkGolden(t, &MapReply{Security: true, AuthData: []byte{1, 0, 0, 0, 9}}, "22000000 0000000000000000 0100000009")
	checkGolden(t, &MapReply{Security: true}, "22000000 0000000000000000")
	checkDecodes(t, &MapReply{}, "20000000 0000000000000000 0100000009")
}

// "the A-bit in each EID-Record included in the message MUST be set to 1; otherwise, it MUST be silently
// discarded" (RFC 9301 section 5.4).
func TestMapReplyProbe(t *testing.T) {
	good := Mapping{EID: mustEID("10.0.0.1"), Authoritative: true}
	bad := Mapping{EID: mustEID("10.0.0.2")}
	checkGolden(t, &MapReply{Probe: true, Records: []Mapping{good}}, "28000001 0000000000000000 00000000 0020 1000 0000 0001 0a000001")
	checkUnencodable(t, "not authoritative", &MapReply{Probe: true, Records: []Mapping{good, bad}})
	checkRefused(t, "not authoritative", ErrMalformed, "28000001 0000000000000000 00000000 0020 0000 0000 0001 0a000001")
}
