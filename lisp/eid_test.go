package lisp

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestParseEID(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.9":             "198.51.100.9/32",
		"198.51.100.0/24":          "198.51.100.0/24",
		"[7]2001:db8::/48":         "[7]2001:db8::/48",
		"[0]2001:db8::1":           "2001:db8::1/128",
		"[16777215]10.0.0.0/8":     "[16777215]10.0.0.0/8",
		"::ffff:198.51.100.9":      "198.51.100.9/32",
		"0.0.0.0/0":                "0.0.0.0/0",
		"[3]::/0":                  "[3]::/0",
		"":                         "",
		"host":                     "",
		"198.51.100.9/24":          "",
		"198.51.100.0/33":          "",
		"[16777216]10.0.0.0/8":     "",
		"[-1]10.0.0.0/8":           "",
		"[7 10.0.0.0/8":            "",
		"[7]":                      "",
		"fe80::1%eth0":             "",
		"[99999999999]10.0.0.0/8":  "",
		"2001:db8::1/64":           "",
		"[7][7]2001:db8::/48":      "",
		"198.51.100.0/24 ":         "",
		"[0x7]198.51.100.0/24":     "",
		"198.51.100.0/24/24":       "",
		"[18446744073709551617]::": "",
	} {
		e, err := ParseEID(in)
		switch {
		case want == "" && err == nil:
			t.Errorf("ParseEID(%q) = %v, want an error", in, e)
		case want != "" && (err != nil || e.String() != want || !e.IsValid()):
			t.Errorf("ParseEID(%q) = %v, %v; want %s", in, e, err, want)
		}
	}
}

func FuzzParseEID(f *testing.F) {
	for _, s := range []string{"[7]2001:db8::/48", "198.51.100.9", "::ffff:1.2.3.4/100", "[", "[1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEID(s)
		if err != nil {
			return
		}
		if !e.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6() {
			t.Fatalf("ParseEID(%q) = %#v is not canonical", s, e)
		}
		if again, err := ParseEID(e.String()); err != nil || again != e {
			t.Fatalf("ParseEID(%q) prints %q, which is %v, %v", s, e, again, err)
		}
	})
}

func TestMakeEID(t *testing.T) {
	got := MakeEID(7, netip.MustParsePrefix("::ffff:198.51.100.9/120"))
	if want := mustEID("[7]198.51.100.0/24"); got != want {
		t.Errorf("an IPv4-mapped prefix makes %v, want %v", got, want)
	}
	if got := HostEID(0, netip.MustParseAddr("fe80::1%eth0")); got != mustEID("fe80::1") {
		t.Errorf("an address with a zone makes %v", got)
	}
}

func TestEIDRelations(t *testing.T) {
	net24, host, other := mustEID("198.51.100.0/24"), mustEID("198.51.100.9"), mustEID("[7]198.51.100.9")
	if !net24.Contains(host) || !net24.Contains(net24) || host.Contains(net24) || net24.Contains(other) {
		t.Error("Contains is wrong")
	}
	if !host.IsHost() || net24.IsHost() || !mustEID("2001:db8::1").IsHost() {
		t.Error("IsHost is wrong")
	}
	for _, e := range []EID{{}, {IID: MaxInstanceID + 1, Prefix: host.Prefix}} {
		if e.IsValid() {
			t.Errorf("%v is valid", e)
		}
	}
	order := []EID{net24, host, mustEID("2001:db8::/48"), other}
	for i := range order {
		for j := range order {
			if got := order[i].Compare(order[j]); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%v.Compare(%v) = %d", order[i], order[j], got)
			}
		}
	}
}

func TestEIDText(t *testing.T) {
	want := mustEID("[7]2001:db8::/48")
	b, err := json.Marshal(want)
	if err != nil || string(b) != `"[7]2001:db8::/48"` {
		t.Fatalf("as JSON: %s, %v", b, err)
	}
	var got EID
	if err := json.Unmarshal(b, &got); err != nil || got != want {
		t.Fatalf("back from JSON: %v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`"2001:db8::1/48"`), &got); err == nil || got != want {
		t.Fatalf("of a bad one: %v, %v", got, err)
	}
}
