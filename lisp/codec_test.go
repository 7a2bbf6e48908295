package lisp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
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
		"map-reply services": &MapReply{Nonce: 2, Records: []Mapping{service("198.51.100.10/32", "2001:db8:e1d::a/128", 5),
			service("2001:db8:5e::/48", "2001:db8:e1d::/48", 4095)}},
		"map-register service": &MapRegister{WantMapNotify: true, Nonce: 42, Auth: auth,
			Records: []Mapping{service("203.0.113.16/28", "2001:db8:e1d::100/124", 9), full}},
		"map-reply probe": &MapReply{Probe: true, Nonce: 1 << 63, Records: []Mapping{probed}},
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

// golden reads a packet that is written as hexadecimal, a field or more a line, with comments.
func golden(t *testing.T, s string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "//")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// checkGolden requires that m is written as packet, and packet is read as m.
func checkGolden(t *testing.T, m Message, packet string) {
	t.Helper()
	want := golden(t, packet)
	b, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(hex.Dump(want), hex.Dump(b)); d != "" {
		t.Errorf("Append (-want +got):\n%s", d)
	}
	checkDecodes(t, m, packet)
}

// checkDecodes requires that packet is read as m.
func checkDecodes(t *testing.T, m Message, packet string) {
	t.Helper()
	got, err := Decode(golden(t, packet))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got, cmpOpts); d != "" {
		t.Errorf("Decode (-want +got):\n%s", d)
	}
}

// checkRefused requires that packet is refused for the reason want.
func checkRefused(t *testing.T, what string, want error, packet string) {
	t.Helper()
	if m, err := Decode(golden(t, packet)); !errors.Is(err, want) {
		t.Errorf("%s: %v, %v; want the error %q", what, m, err, want)
	}
}

// checkUnencodable requires that m cannot be written and that Append then gives back what it was given.
func checkUnencodable(t *testing.T, what string, m Message) {
	t.Helper()
	before := []byte("before")
	if b, err := Append(before, m); !errors.Is(err, ErrUnencodable) || !bytes.Equal(b, before) {
		t.Errorf("%s: %q, %v", what, b, err)
	}
}

// optional is how many bytes at the end may be missing without the rest becoming wrong.
func optional(m Message) int {
	switch m := m.(type) {
	case *MapReply:
		return len(m.AuthData)
	case *MapNotify:
		return int(bit(m.HasXTRID, lenXTRIDSiteID))
	case *MapNotifyAck:
		return int(bit(m.HasXTRID, lenXTRIDSiteID))
	}
	return 0
}

func TestTruncated(t *testing.T) {
	for name, m := range samples() {
		b, err := Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(b) - optional(m) {
			if got, err := Decode(b[:n:n]); !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, the first %d of %d bytes: %v, %v", name, n, len(b), got, err)
			}
		}
		for n := len(b) - optional(m); n <= len(b); n++ {
			if _, err := Decode(b[:n:n]); err != nil {
				t.Errorf("%s, the first %d of %d bytes: %v", name, n, len(b), err)
			}
		}
	}
}

// What a peer appends is not ours to refuse.
func TestTrailingBytes(t *testing.T) {
	for name, want := range samples() {
		if optional(want) > 0 {
			continue // they would be taken for the optional part
		}
		b, err := Append(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(append(b, 1, 2, 3, 4, 5))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got, cmpOpts); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// A message keeps nothing of the buffer that it was read from: the reader uses it again.
func TestDecodeCopies(t *testing.T) {
	for name, want := range samples() {
		b, err := Append(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] ^= 0xff
		}
		if d := cmp.Diff(want, got, cmpOpts); d != "" {
			t.Errorf("%s changes with the buffer (-want +got):\n%s", name, d)
		}
	}
}

// Counts are not trusted: a short message that announces much costs little.
func TestDecodeAllocatesWhatIsThere(t *testing.T) {
	b := golden(t, `
		2000 00ff  0000000000000000 // Map-Reply, 255 records
		00000000 ff20 0000 0000 0001 c6336400 // 255 locators
		00000000 0000 0001 c6336401 // one
	`)
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := Decode(b); !errors.Is(err, ErrTruncated) {
			t.Fatal(err)
		}
	})
	if allocs > 20 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestUnknownMessages(t *testing.T) {
	checkRefused(t, "nothing", ErrTruncated, "")
	for _, typ := range []string{"00", "60", "70", "90", "f0"} {
		checkRefused(t, "type "+typ[:1], ErrUnknownType, typ+"000000 0000000000000000")
	}
	if b, err := Append([]byte("x"), nil); !errors.Is(err, ErrUnknownType) || string(b) != "x" {
		t.Errorf("Append of nothing: %q, %v", b, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, err := Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if m != nil {
				t.Fatalf("%v with an error: %v", m, err)
			}
			return
		}
		out, err := Append(nil, m)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v\n%+v", err, m)
		}
		again, err := Decode(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%+v", err, m)
		}
		if d := cmp.Diff(m, again, cmpOpts); d != "" {
			t.Fatalf("after a round trip (-want +got):\n%s", d)
		}
		if e, ok := m.(*ECM); ok {
			if inner, err := e.Message(); err == nil && inner.Type() == TypeECM {
				t.Fatal("an ECM in an ECM")
			}
		}
	})
}
