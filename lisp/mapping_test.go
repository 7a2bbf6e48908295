package lisp

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMappingJSON(t *testing.T) {
	var want []Mapping
	for _, m := range samples() {
		if r, ok := m.(*MapReply); ok {
			want = append(want, r.Records...)
		}
	}
	want[0].XTRID, want[0].SiteID = XTRID{1, 2, 3}, 1<<64-1
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got []Mapping
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpOpts); d != "" {
		t.Fatalf("through JSON (-want +got):\n%s\n%s", d, b)
	}
}

func TestAction(t *testing.T) {
	for a := range maxAction + 1 {
		b, err := a.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		got := Action(99)
		if err := got.UnmarshalText(b); err != nil || got != a {
			t.Errorf("action %d is %q, which is %d, %v", a, b, got, err)
		}
	}
	a := ActDrop
	if err := a.UnmarshalText([]byte("fly")); err == nil || a != ActDrop {
		t.Errorf("an unknown action is %v, %v", a, err)
	}
}

func TestTTL(t *testing.T) {
	for ttl, want := range map[TTL]time.Duration{
		TTLDelete: 0, 1: time.Minute, 1439: 1439 * time.Minute, 1440: 24 * time.Hour, 86400: 24 * time.Hour,
		TTLLocal: 24 * time.Hour, TTLLocal - 1: 24 * time.Hour,
	} {
		if got := ttl.Duration(); got != want {
			t.Errorf("TTL %d lasts %v, want %v", ttl, got, want)
		}
	}
}

func TestEqual(t *testing.T) {
	base := samples()["map-reply"].(*MapReply).Records[0]
	if !base.Equal(base) || base.Negative() {
		t.Error("a mapping is not equal to itself, or is negative")
	}
	for i, change := range []func(*Mapping){
		func(m *Mapping) { m.EID = mustEID("10.0.0.1") }, func(m *Mapping) { m.TTL++ }, func(m *Mapping) { m.Version++ },
		func(m *Mapping) { m.Action++ }, func(m *Mapping) { m.Authoritative = false }, func(m *Mapping) { m.XTRID[3]++ },
		func(m *Mapping) { m.SiteID++ }, func(m *Mapping) { m.Locators = m.Locators[1:] },
		func(m *Mapping) { m.Inside = netip.MustParsePrefix("2001:db8::1/128") },
	} {
		m := base
		if change(&m); m.Equal(base) {
			t.Errorf("change %d makes no difference", i)
		}
	}
}

func TestSupersedes(t *testing.T) {
	at := func(v Version, id byte) Mapping { return Mapping{Version: v, XTRID: XTRID{15: id}} }
	for _, c := range []struct {
		m, o Mapping
		want bool
	}{
		{at(2, 9), at(1, 1), true}, {at(1, 1), at(2, 9), false}, // the newer one
		{at(2, 1), at(2, 9), true}, {at(2, 9), at(2, 1), false}, // the lower xTR-ID
		{at(2, 1), at(2, 1), true}, // a refresh
		{at(1, 9), at(4095, 1), true}, {at(0, 1), at(1, 9), false},
	} {
		if got := c.m.Supersedes(c.o); got != c.want {
			t.Errorf("version %d of %v supersedes version %d of %v: %v", c.m.Version, c.m.XTRID, c.o.Version, c.o.XTRID, got)
		}
	}
}

func TestDeltaEmpty(t *testing.T) {
	if !(Delta{}).Empty() || (Delta{Full: true}).Empty() || (Delta{Put: make([]Mapping, 1)}).Empty() || (Delta{Del: make([]EID, 1)}).Empty() {
		t.Error("Empty is wrong")
	}
}
