package lisp

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"
)

func TestCompareLocators(t *testing.T) {
	want := []Locator{
		{RLOC: netip.MustParseAddr("9.0.0.1")}, {RLOC: netip.MustParseAddr("100.64.1.2")},
		{RLOC: netip.MustParseAddr("1::")}, {RLOC: netip.MustParseAddr("2001:db8::1")},
		{}, {LCAF: "\x40\x03\x00\x00\x00\x00\x00\x00"}, {LCAF: "\x40\x03\x00\x00\x0c\x00\x00\x00"},
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, CompareLocators)
	if !slices.Equal(got, want) {
		t.Fatalf("sorted: %v", got)
	}
}

func TestUsable(t *testing.T) {
	a := netip.MustParseAddr("100.64.1.2")
	for l, want := range map[Locator]bool{
		{RLOC: a, Reachable: true}:                             true,
		{RLOC: a, Reachable: true, Priority: UnusablePriority}: false,
		{RLOC: a}: false, {Reachable: true}: false,
	} {
		if l.Usable() != want {
			t.Errorf("%v is usable: %v", l, !want)
		}
	}
}

func TestXTRID(t *testing.T) {
	x := XTRID{0: 0xa1, 15: 0x1a}
	if got := x.String(); got != "a100000000000000000000000000001a" {
		t.Errorf("prints %q", got)
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var got XTRID
	if err := json.Unmarshal(b, &got); err != nil || got != x {
		t.Errorf("back from JSON %s: %v, %v", b, got, err)
	}
	for _, s := range []string{"", "a1", "g100000000000000000000000000001a", "a100000000000000000000000000001a00"} {
		if err := got.UnmarshalText([]byte(s)); err == nil || got != x {
			t.Errorf("%q is taken as %v", s, got)
		}
	}
	if x.IsZero() || !(XTRID{}).IsZero() || x.Compare(x) != 0 || x.Compare(XTRID{0: 0xa2}) >= 0 || x.Compare(XTRID{0: 0xa1}) <= 0 {
		t.Error("IsZero or Compare is wrong")
	}
}
