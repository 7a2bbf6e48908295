package lisp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const ecmInner = "10000001 0000000000000003 0000 0001 64400102 00 20 0001 c633640a" // a Map-Request

func sampleECM(t *testing.T, src, dst string) *ECM {
	return &ECM{Source: netip.MustParseAddrPort(src), Dest: netip.MustParseAddrPort(dst), Inner: golden(t, ecmInner)}
}

func TestECMGolden(t *testing.T) {
	m := sampleECM(t, "100.64.1.2:50000", "198.51.100.10:4342")
	checkGolden(t, m, `
		80000000
		45 00 0038 0000 4000 40 11 ab35 64400102 c633640a
		c350 10f6 0024 fc38
	`+ecmInner)
	m.DDT = true
	checkDecodes(t, m, `
		84000000
		45 00 0038 0000 4000 40 11 ab35 64400102 c633640a
		c350 10f6 0024 fc38
	`+ecmInner)
}

func TestECMMessage(t *testing.T) {
	m := sampleECM(t, "[2001:db8:100:3::2]:4342", "[2001:db8:e1d:1::10]:4342")
	got, err := m.Message()
	if err != nil {
		t.Fatal(err)
	}
	want := &MapRequest{Nonce: 3, ITRRLOCs: []netip.Addr{netip.MustParseAddr("100.64.1.2")}, Records: []RequestRecord{{EID: mustEID("198.51.100.10")}}}
	if d := cmp.Diff(Message(want), got, cmpOpts); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if m.Inner, err = Append(nil, m); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Message(); err == nil {
		t.Errorf("an ECM in an ECM: %v", got)
	}
	m.Inner = nil
	if got, err := m.Message(); err == nil {
		t.Errorf("nothing in an ECM: %v", got)
	}
}

// The inner header of an xTR that has no RLOC of the EID's family.
func TestECMMixedFamilies(t *testing.T) {
	for _, m := range []*ECM{
		sampleECM(t, "[2001:db8:100:3::2]:4342", "198.51.100.10:4342"),
		sampleECM(t, "100.64.1.2:50000", "[2001:db8:e1d:1::10]:4342"),
	} {
		b, err := Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if b[4]>>4 != 6 {
			t.Errorf("%v to %v: inner IP version %d", m.Source, m.Dest, b[4]>>4)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Message(m), got, cmpOpts); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// "The checksum field MUST be non-zero" (RFC 9301 section 5.8), also when the sum is.
func TestECMChecksum(t *testing.T) {
	for _, src := range []string{"100.64.1.2:1", "[2001:db8::1]:1"} {
		m := sampleECM(t, src, "198.51.100.10:4342")
		m.Inner = []byte{0, 0}
		seen := false
		for v := range 1 << 16 {
			binary.BigEndian.PutUint16(m.Inner, uint16(v))
			b, err := Append(nil, m)
			if err != nil {
				t.Fatal(err)
			}
			sum := binary.BigEndian.Uint16(b[len(b)-4:])
			if sum == 0 {
				t.Fatalf("checksum 0 for %#x", v)
			}
			seen = seen || sum == 0xffff
			if v%251 == 0 || sum == 0xffff {
				if _, err := Decode(b); err != nil {
					t.Fatalf("%#x: %v", v, err)
				}
			}
		}
		if !seen {
			t.Error("no payload made the sum zero")
		}
	}
}

func TestECMRefused(t *testing.T) {
	v4 := func(edit func(b []byte)) string { return editedECM(t, "100.64.1.2:50000", edit) }
	v6 := func(edit func(b []byte)) string { return editedECM(t, "[2001:db8::1]:50000", edit) }
	reheader := func(b []byte) {
		b[4+10], b[4+11] = 0, 0
		binary.BigEndian.PutUint16(b[4+10:], checksum(0, b[4:24]))
	}
	for what, packet := range map[string]string{
		"inner version":           v4(func(b []byte) { b[4] = 0x55 }),
		"header length":           v4(func(b []byte) { b[4] = 0x44; reheader(b) }),
		"header checksum":         v4(func(b []byte) { b[4+8]++ }),
		"UDP checksum":            v4(func(b []byte) { b[len(b)-1]++ }),
		"fragment":                v4(func(b []byte) { b[4+6] = 0x20; reheader(b) }),
		"fragment offset":         v4(func(b []byte) { b[4+7] = 1; reheader(b) }),
		"protocol":                v4(func(b []byte) { b[4+9] = 6; reheader(b) }),
		"total length":            v4(func(b []byte) { b[4+3] = 19; reheader(b) }),
		"UDP length 7":            v4(func(b []byte) { b[24+5] = 7 }),
		"UDP length too long":     v4(func(b []byte) { b[24+5]++ }),
		"source port":             v4(func(b []byte) { binary.BigEndian.PutUint16(b[24:], DataPort); b[24+6], b[24+7] = 0, 0 }),
		"destination port":        v4(func(b []byte) { binary.BigEndian.PutUint16(b[24+2:], DataPort); b[24+6], b[24+7] = 0, 0 }),
		"IPv6 next header":        v6(func(b []byte) { b[4+6] = 6 }),
		"IPv6 UDP checksum":       v6(func(b []byte) { b[len(b)-1]++ }),
		"IPv6 no UDP checksum":    v6(func(b []byte) { b[44+6], b[44+7] = 0, 0 }),
		"authentication data":     v4(func(b []byte) { b[0] |= 0x08 }),
		"authentication, EID-AD1": "88000000 01000000 0000 0000 0001" + v4(func([]byte) {})[8:],
	} {
		checkRefused(t, what, ErrMalformed, packet)
	}
	checkRefused(t, "IPv6 length", ErrTruncated, v6(func(b []byte) { b[4+5]++ }))
	checkRefused(t, "IPv4 length", ErrTruncated, v4(func(b []byte) { b[4+3]++; reheader(b) }))
}

func TestECMTolerated(t *testing.T) {
	want := sampleECM(t, "100.64.1.2:50000", "198.51.100.10:4342")
	noChecksum := editedECM(t, "100.64.1.2:50000", func(b []byte) { b[24+6], b[24+7] = 0, 0 })
	checkDecodes(t, want, noChecksum)
	checkDecodes(t, want, noChecksum+"00000000")
	options := noChecksum[:8] + "46 00 003c 0000 0000 40 11 e82f 64400102 c633640a 01010101" + noChecksum[48:]
	checkDecodes(t, want, options)
}

func editedECM(t *testing.T, src string, edit func([]byte)) string {
	t.Helper()
	dst := "198.51.100.10:4342"
	if netip.MustParseAddrPort(src).Addr().Is6() {
		dst = "[2001:db8:e1d:1::10]:4342"
	}
	b, err := Append(nil, sampleECM(t, src, dst))
	if err != nil {
		t.Fatal(err)
	}
	edit(b)
	return hexOf(b)
}

func TestECMUnencodable(t *testing.T) {
	checkUnencodable(t, "no addresses", &ECM{})
	checkUnencodable(t, "data port", sampleECM(t, "100.64.1.2:4341", "198.51.100.10:4342"))
	checkUnencodable(t, "to the data port", sampleECM(t, "100.64.1.2:1", "198.51.100.10:4341"))
	m := sampleECM(t, "100.64.1.2:1", "198.51.100.10:4342")
	m.Inner = make([]byte, 1<<16)
	checkUnencodable(t, "too long", m)
}
