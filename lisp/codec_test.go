package lisp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// cmpOpts compare values of this package; an empty slice is a nil one.
var cmpOpts = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func mustEID(s string) EID {
	e, err := ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

// samples holds at least one of each message, with every field set in one of them.
func samples() map[string]Message {
	v4, v6 := netip.MustParseAddr("100.64.1.2"), netip.MustParseAddr("2001:db8:100:3::2")
	id := XTRID{0: 0xa1, 15: 0x1a}
	locators := []Locator{
		{RLOC: v4, Priority: 1, Weight: 50, MPriority: 255, MWeight: 7, Reachable: true},
		{RLOC: v6, Priority: 2, Weight: 60, MPriority: 254, Local: true, Reachable: true},
		{LCAF: "\x40\x03\x00\x00\x0c\x00\x00\x03abc", Priority: 255},
	}
	full := Mapping{EID: mustEID("198.51.100.10"), TTL: 1440, Version: 0xabc, Authoritative: true, Locators: locators}
	v6full := Mapping{EID: mustEID("[16777215]2001:db8:e1d:1::10"), TTL: TTLLocal, Version: 1, Locators: locators[:1]}
	negative := Mapping{EID: mustEID("198.51.96.0/22"), TTL: 15, Action: ActNativelyForward}
	auth := Auth{KeyID: 9, Algorithm: AlgHMACSHA256_128, Data: []byte("0123456789abcdef")}
	inner, err := Append(nil, &MapRequest{Nonce: 3, ITRRLOCs: []netip.Addr{v4}, Records: []RequestRecord{{EID: mustEID("198.51.100.10")}}})
	if err != nil {
		panic(err)
	}
	probed := full
	probed.Locators = []Locator{locators[0], locators[1]}
	probed.Locators[1].Probed = true
	return map[string]Message{
		"map-request": &MapRequest{Authoritative: true, PITR: true, SMRInvoked: true, LocalXTR: true,
			Nonce: 0x0102030405060708, SourceEID: mustEID("[7]198.51.100.20"), ITRRLOCs: []netip.Addr{v4, v6},
			Records: []RequestRecord{{EID: mustEID("[7]198.51.100.10"), Notify: true}, {EID: mustEID("2001:db8:e1d::/48")}},
			Reply:   &v6full, HasXTRID: true, XTRID: id, SiteID: 77},
		"map-request smr":         &MapRequest{SMR: true, DontReply: true, ITRRLOCs: []netip.Addr{v6}, Records: []RequestRecord{{EID: mustEID("0.0.0.0/0")}}},
		"map-request probe":       &MapRequest{Probe: true, ITRRLOCs: []netip.Addr{v6}, Records: []RequestRecord{{EID: mustEID("::/0")}}},
		"map-request unsubscribe": &MapRequest{ITRRLOCs: []netip.Addr{{}}, Records: []RequestRecord{{EID: full.EID, Notify: true}}, HasXTRID: true, XTRID: id},
		"map-reply":               &MapReply{EchoNonce: true, Security: true, Nonce: 1, Records: []Mapping{full, v6full, negative}, AuthData: []byte{1, 2, 3, 4}},
		"map-reply probe":         &MapReply{Probe: true, Nonce: 1 << 63, Records: []Mapping{probed}},
		"map-register": &MapRegister{ProxyReply: true, Security: true, HasXTRID: true, EIDNotify: true, UseTTL: true, Merge: true,
			Mobile: true, WantMapNotify: true, Nonce: 42, Auth: auth, Records: []Mapping{full, v6full}, XTRID: id, SiteID: 1 << 63},
		"map-register bare": &MapRegister{Nonce: 1, Auth: Auth{KeyID: 255, Algorithm: 200}},
		"map-notify":        &MapNotify{Nonce: 42, Auth: auth, Records: []Mapping{full, v6full}, HasXTRID: true, XTRID: id, SiteID: 5},
		"map-notify bare":   &MapNotify{Nonce: 42, Auth: auth, Records: []Mapping{negative}},
		"map-notify-ack":    &MapNotifyAck{Nonce: 42, Auth: auth, Records: []Mapping{full}, HasXTRID: true, XTRID: id, SiteID: 5},
		"ecm4": &ECM{DDT: true, Source: netip.MustParseAddrPort("100.64.1.2:50000"), Dest: netip.MustParseAddrPort("198.51.100.10:4342"),
			Inner: inner},
		"ecm6": &ECM{Security: true, AuthData: []byte{1, 0, 0, 2, 0, 2, 9, 1, 0xaa, 0xbb, 0, 4, 0, 2},
			Source: netip.MustParseAddrPort("[2001:db8::1]:4342"), Dest: netip.MustParseAddrPort("[2001:db8:e1d:1::10]:4342"), Inner: inner},
		"ecm4-6": &ECM{Source: netip.MustParseAddrPort("100.64.1.2:4342"), Dest: netip.MustParseAddrPort("[2001:db8:e1d:1::10]:4342"), Inner: inner},
		"ecm6-4": &ECM{Source: netip.MustParseAddrPort("[2001:db8::1]:4342"), Dest: netip.MustParseAddrPort("198.51.100.10:4342"), Inner: inner[:1]},
	}
}

func TestRoundTrip(t *testing.T) {
	for name, want := range samples() {
		t.Run(name, func(t *testing.T) {
			b, err := Append([]byte("before"), want)
			if err != nil {
				t.Fatal(err)
			}
			if string(b[:6]) != "before" {
				t.Fatalf("Append changed what was there: %q", b[:6])
			}
			got, err := Decode(b[6:])
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, cmpOpts); d != "" {
				t.Fatalf("after a round trip (-want +got):\n%s", d)
			}
		})
	}
}
