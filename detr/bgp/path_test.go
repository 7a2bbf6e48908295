package bgp

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"

	"github.com/tabi-lisp/tabi/lisp"
)

var equal = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(lisp.EID{}, lisp.Locator{}, path{}, large{})}

func TestCommunities(t *testing.T) {
	m := lisp.Mapping{
		EID: eid("198.51.100.10/32"), TTL: 60, Version: 0xabc, Authoritative: true,
		Locators: []lisp.Locator{{RLOC: addr("100.64.1.2"), Priority: 3, Weight: 50}},
		XTRID:    lisp.XTRID{0: 0x01, 3: 0x04, 4: 0x80, 15: 0xff}, SiteID: 0x0000000500000006,
	}
	ps := split(m)
	if len(ps) != 1 {
		t.Fatalf("%d paths, want 1", len(ps))
	}
	got := ps[0].communities(64512)
	want := []large{
		{64512, 1, 0xabc},
		{64512, 2, uint32(ps[0].set)},
		{64512, 3, 3},
		{64512, 4, 50},
		{64512, 5, 60},
		{64512, 6, 3}, // authoritative, unreachable
		{64512, 8, 0x01000004}, {64512, 9, 0x80000000}, {64512, 10, 0}, {64512, 11, 0xff},
		{64512, 12, 5}, {64512, 13, 6},
	}
	if d := cmp.Diff(want, got, equal); d != "" {
		t.Errorf("communities (-want +got):\n%s", d)
	}
	ps = split(service("203.0.113.16/28", "2001:db8:e1d::100/124", 9))
	if len(ps) != 1 || ps[0].loc.RLOC.IsValid() {
		t.Fatalf("a service is %+v", ps)
	}
	want = []large{
		{64512, 1, 9}, {64512, 2, uint32(ps[0].set)}, {64512, 5, uint32(lisp.TTLLocal)}, {64512, 6, 0}, {64512, 7, 3},
		{64512, 14, 0x20010db8}, {64512, 15, 0x0e1d0000}, {64512, 16, 0}, {64512, 17, 0x100},
	}
	if d := cmp.Diff(want, ps[0].communities(64512), equal); d != "" || ps[0].set.count() != 0 {
		t.Errorf("a service's communities (-want +got):\n%s", d)
	}
	ps = split(m)
	if ps[0].set>>24 != 1 {
		t.Errorf("set %#x does not count 1 locator", uint32(ps[0].set))
	}
}

// TestSplitJoin takes mappings apart, through GoBGP's messages, and puts them together again.
func TestSplitJoin(t *testing.T) {
	four, six := loc("100.64.1.2"), loc("2001:db8:100:3::2")
	down := lisp.Locator{RLOC: addr("100.64.2.2"), Priority: 1, Weight: 1}
	unused := lisp.Locator{RLOC: addr("2001:db8:100:4::2"), Priority: 255, Reachable: true}
	for _, c := range []struct {
		name  string
		m     lisp.Mapping
		want  func(*lisp.Mapping) // what does not travel
		prefs []uint32
	}{
		{"IPv4 over IPv4", mapping("198.51.100.10/32", 1, 1, four), nil, []uint32{254}},
		{"IPv4 over IPv6", mapping("198.51.100.10/32", 1, 1, six), nil, []uint32{254}},
		{"IPv6 over IPv4", mapping("2001:db8:e1d::1/128", 1, 1, four), nil, []uint32{254}},
		{"IPv6 over IPv6", mapping("2001:db8:e1d::1/128", 1, 1, six), nil, []uint32{254}},
		{"several", mapping("2001:db8:e1d::1/128", 4095, 1, four, down, six, unused), nil, []uint32{254, 0, 254, 0}},
		{"instance, IPv4", mapping("[1]198.51.100.0/24", 1, 1, four, six), nil, []uint32{254, 254}},
		{"instance, IPv6", mapping("[16777215]2001:db8:e1d::/48", 1, 1, four, six), nil, []uint32{254, 254}},
		{"everything", mapping("0.0.0.0/0", 0, 0, four), nil, []uint32{254}},
		{"TTL local", lisp.Mapping{EID: eid("10.0.0.0/8"), TTL: lisp.TTLLocal, Locators: []lisp.Locator{four}}, nil, []uint32{254}},
		{"no locators", lisp.Mapping{EID: eid("10.0.0.0/8"), TTL: 1, Version: 2, Action: lisp.ActDropPolicyDenied, XTRID: lisp.XTRID{1}},
			nil, []uint32{0}},
		{"a service", service("198.51.100.10/32", "2001:db8:e1d::a/128", 5), nil, []uint32{0}},
		{"a service of a prefix", service("203.0.113.16/28", "2001:db8:e1d::100/124", 4095), nil, []uint32{0}},
		{"an IPv6 service", service("2001:db8:5e::a/128", "2001:db8:e1d::a/128", 1), nil, []uint32{0}},
		{"a service by NPTv6", service("2001:db8:5e::/48", "2001:db8:e1d::/48", 1), nil, []uint32{0}},
		{"a service has no locators", with(service("198.51.100.10/32", "2001:db8:e1d::a/128", 5), four),
			func(m *lisp.Mapping) { m.Locators = nil }, []uint32{0}},
		{"LCAF and multicast do not travel", lisp.Mapping{
			EID: eid("10.0.0.0/8"), TTL: 1, Version: 2,
			Locators: []lisp.Locator{
				{LCAF: "\x40\x03"},
				{RLOC: addr("100.64.1.2"), Priority: 1, Weight: 100, MPriority: 7, MWeight: 9, Local: true, Probed: true, Reachable: true},
			},
		}, func(m *lisp.Mapping) { m.Locators = []lisp.Locator{four} }, []uint32{254}},
		{"only an LCAF", lisp.Mapping{EID: eid("10.0.0.0/8"), TTL: 1, Locators: []lisp.Locator{{LCAF: "\x40\x03"}}},
			func(m *lisp.Mapping) { m.Locators = nil }, []uint32{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want != nil {
				defer func(m lisp.Mapping) { c.m = m }(c.m)
			}
			var got []path
			var prefs []uint32
			for _, p := range split(c.m) {
				r := mappingRoute(64512, c.m.EID, p)
				prefs = append(prefs, r.localPref)
				a := overTheWire(t, r.apiPath(64512))
				e, err := eidOf(a)
				if err != nil || e != c.m.EID {
					t.Fatalf("EID %v, %v; want %v", e, err, c.m.EID)
				}
				q, err := pathOf(64512, a)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, q)
			}
			rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
			want := c.m
			if c.want != nil {
				c.want(&want)
			}
			if d := cmp.Diff(want, join(c.m.EID, got), equal); d != "" {
				t.Errorf("-split +joined:\n%s", d)
			}
			if d := cmp.Diff(c.prefs, prefs); d != "" {
				t.Errorf("LOCAL_PREF (-want +got):\n%s", d)
			}
		})
	}
}

func service(outside, inside string, v lisp.Version) lisp.Mapping {
	return lisp.NewService(netip.MustParsePrefix(outside), netip.MustParsePrefix(inside), v)
}

func with(m lisp.Mapping, ls ...lisp.Locator) lisp.Mapping { m.Locators = ls; return m }

// overTheWire does to a path what a protocol buffer does.
func overTheWire(t testing.TB, p *api.Path) *api.Path {
	t.Helper()
	b, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q api.Path
	if err := proto.Unmarshal(b, &q); err != nil {
		t.Fatal(err)
	}
	return &q
}

// TestSetTellsMappingsApart: what differs without a new version must differ in the set.
func TestSetTellsMappingsApart(t *testing.T) {
	base := mapping("198.51.100.10/32", 1, 1, loc("100.64.1.2"), loc("100.64.2.2"))
	seen := map[set]string{split(base)[0].set: "base"}
	for name, change := range map[string]func(*lisp.Mapping){
		"locator":       func(m *lisp.Mapping) { m.Locators[1] = loc("100.64.3.2") },
		"family":        func(m *lisp.Mapping) { m.Locators[1] = loc("::100.64.3.2") },
		"fewer":         func(m *lisp.Mapping) { m.Locators = m.Locators[:1] },
		"priority":      func(m *lisp.Mapping) { m.Locators[0].Priority = 2 },
		"weight":        func(m *lisp.Mapping) { m.Locators[0].Weight = 2 },
		"reachable":     func(m *lisp.Mapping) { m.Locators[0].Reachable = false },
		"TTL":           func(m *lisp.Mapping) { m.TTL = 2 },
		"site":          func(m *lisp.Mapping) { m.SiteID = 1 },
		"authoritative": func(m *lisp.Mapping) { m.Authoritative = false },
		"negative":      func(m *lisp.Mapping) { m.Locators, m.Action = nil, lisp.ActDrop },
		"other action":  func(m *lisp.Mapping) { m.Locators, m.Action = nil, lisp.ActNativelyForward },
		"service":       func(m *lisp.Mapping) { *m = service("198.51.100.10/32", "2001:db8:e1d::a/128", 1) },
		"other service": func(m *lisp.Mapping) { *m = service("198.51.100.10/32", "2001:db8:e1d::b/128", 1) },
	} {
		m := base
		m.Locators = slices.Clone(base.Locators)
		change(&m)
		s := split(m)[0].set
		if other, ok := seen[s]; ok {
			t.Errorf("%s and %s have the same set %#x", name, other, uint32(s))
		}
		seen[s] = name
	}
}

func TestParsePath(t *testing.T) {
	const as = 64512
	ok := path{id: 5, set: 1 << 24, ttl: 1440, loc: lisp.Locator{RLOC: addr("192.0.2.1"), Reachable: true}}
	with := func(change func(*path)) path { p := ok; change(&p); return p }
	for _, c := range []struct {
		name string
		hop  string
		cs   []large
		want path
		err  string
	}{
		{"a route of another speaker", "192.0.2.1", nil, ok, ""},
		{"mapped next hop", "::ffff:192.0.2.1", nil, ok, ""},
		{"other administrator", "192.0.2.1", []large{{64513, 1, 9}, {0, 1, 9}}, ok, ""},
		{"unknown functions", "192.0.2.1", []large{{as, 0, 1}, {as, 18, 1}, {as, 1 << 31, 1}}, ok, ""},
		{"twice the same", "192.0.2.1", []large{{as, 1, 9}, {as, 1, 9}}, with(func(p *path) { p.version = 9 }), ""},
		{"any order", "192.0.2.1", []large{{as, 11, 1}, {as, 8, 2}, {as, 1, 9}}, with(func(p *path) {
			p.version, p.xtr = 9, lisp.XTRID{3: 2, 15: 1}
		}), ""},
		{"unknown flags", "192.0.2.1", []large{{as, 6, 0xfffffffd}}, with(func(p *path) { p.authority = true }), ""},
		{"no locators needs no next hop", "", []large{{as, 2, 0}, {as, 7, 3}}, path{id: 5, ttl: 1440, action: lisp.ActDrop}, ""},
		{"two versions", "192.0.2.1", []large{{as, 1, 9}, {as, 1, 8}}, path{}, "both 9 and 8"},
		{"version", "192.0.2.1", []large{{as, 1, 4096}}, path{}, "4096 is above 4095"},
		{"priority", "192.0.2.1", []large{{as, 3, 256}}, path{}, "256 is above 255"},
		{"weight", "192.0.2.1", []large{{as, 4, 256}}, path{}, "256 is above 255"},
		{"action", "192.0.2.1", []large{{as, 7, 8}}, path{}, "8 is above 7"},
		{"service", "192.0.2.1", []large{{as, 2, 0}, {as, 14, 0x20010db8}, {as, 15, 0x0e1d0000}, {as, 17, 0xa}, {as, 16, 0}, {as, 1, 9}},
			path{id: 5, version: 9, ttl: 1440, action: lisp.ActDrop, inside: addr("2001:db8:e1d::a")}, ""},
		{"service needs no next hop", "", []large{{as, 2, 7}, {as, 7, 1}, {as, 14, 1}, {as, 15, 2}, {as, 16, 3}, {as, 17, 4}},
			path{id: 5, set: 7, ttl: 1440, action: lisp.ActDrop, inside: addr("0:1:0:2:0:3:0:4")}, ""},
		{"half a service", "192.0.2.1", []large{{as, 2, 0}, {as, 14, 1}, {as, 15, 2}, {as, 16, 3}}, path{}, "all four"},
		{"service with a locator", "192.0.2.1", []large{{as, 2, 1 << 24}, {as, 14, 1}, {as, 15, 2}, {as, 16, 3}, {as, 17, 4}}, path{}, "no locators"},
		{"service without a set", "192.0.2.1", []large{{as, 14, 1}, {as, 15, 2}, {as, 16, 3}, {as, 17, 4}}, path{}, "no locators"},
		{"two services", "192.0.2.1", []large{{as, 2, 0}, {as, 14, 1}, {as, 15, 2}, {as, 16, 3}, {as, 17, 4}, {as, 17, 5}}, path{}, "both 4 and 5"},
		{"somebody else's service", "192.0.2.1", []large{{64513, 14, 1}, {64513, 15, 2}, {64513, 16, 3}, {64513, 17, 4}}, ok, ""},
		{"no next hop", "", nil, path{}, "next hop"},
		{"unspecified next hop", "::", nil, path{}, "next hop"},
		{"multicast next hop", "224.0.0.1", nil, path{}, "next hop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hop, _ := netip.ParseAddr(c.hop)
			got, err := parsePath(as, 5, hop, c.cs)
			if c.err == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if d := cmp.Diff(c.want, got, equal); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestFits: what is a service by its communities must be one by its NLRI, too.
func TestFits(t *testing.T) {
	for _, c := range []struct {
		eid, inside string
		ok          bool
	}{
		{"198.51.100.10/32", "2001:db8:e1d::a", true},
		{"203.0.113.16/28", "2001:db8:e1d::100", true},
		{"2001:db8:5e::/48", "2001:db8:e1d::", true},
		{"203.0.113.16/28", "2001:db8:e1d::a", false},
		{"2001:db8:5e::/48", "2001:db8:e1d:1::", false},
		{"[7]198.51.100.10/32", "2001:db8:e1d::a", false},
		{"198.51.100.10/32", "::ffff:192.0.2.1", false},
		{"198.51.100.10/32", "ff02::1", false},
		{"2001:db8:e1d::a/128", "2001:db8:e1d::a", false},
	} {
		p := path{inside: addr(c.inside), action: lisp.ActDrop}
		if err := p.fits(eid(c.eid)); (err == nil) != c.ok {
			t.Errorf("%s in %s: %v", c.inside, c.eid, err)
		}
		if m := join(eid(c.eid), []path{p}); m.IsService() != c.ok || !m.Negative() || m.Action != lisp.ActDrop {
			t.Errorf("%s in %s: joins to %+v", c.inside, c.eid, m)
		}
	}
	if err := (path{}).fits(eid("[7]198.51.100.10/32")); err != nil {
		t.Errorf("no service: %v", err)
	}
}

// TestForeignNLRI: what is no EID must not become one.
func TestForeignNLRI(t *testing.T) {
	rd := func(admin, n uint32) *api.RouteDistinguisherTwoOctetASN {
		return &api.RouteDistinguisherTwoOctetASN{Admin: admin, Assigned: n}
	}
	for name, p := range map[string]*api.Path{
		"nothing":        {},
		"mapped prefix":  {Family: IPv6.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "::ffff:198.51.100.10", PrefixLen: 128})},
		"mapped, dotted": {Family: IPv6.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "198.51.100.10", PrefixLen: 32})},
		"too long":       {Family: IPv4.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "198.51.100.10", PrefixLen: 33})},
		"no address":     {Family: IPv4.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "x", PrefixLen: 3})},
		"zone":           {Family: IPv6.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "fe80::1%eth0", PrefixLen: 128})},
		"RD of an AS":    {Family: VPNv4.api(), Nlri: pack(&api.LabeledVPNIPAddressPrefix{Rd: pack(rd(64512, 7)), Prefix: "10.0.0.0", PrefixLen: 8})},
		"RD 0:0":         {Family: VPNv4.api(), Nlri: pack(&api.LabeledVPNIPAddressPrefix{Rd: pack(rd(0, 0)), Prefix: "10.0.0.0", PrefixLen: 8})},
		"RD too large":   {Family: VPNv4.api(), Nlri: pack(&api.LabeledVPNIPAddressPrefix{Rd: pack(rd(0, 1<<24)), Prefix: "10.0.0.0", PrefixLen: 8})},
		"RD of an IP":    {Family: VPNv4.api(), Nlri: pack(&api.LabeledVPNIPAddressPrefix{Rd: pack(&api.RouteDistinguisherIPAddress{Admin: "10.0.0.1"}), Prefix: "10.0.0.0", PrefixLen: 8})},
		"EVPN":           {Family: IPv4.api(), Nlri: pack(&api.EVPNIPMSIRoute{})},
	} {
		if e, err := eidOf(p); err == nil {
			t.Errorf("%s became EID %v", name, e)
		}
	}
	// Bits beyond the length are nobody's.
	e, err := eidOf(&api.Path{Family: IPv4.api(), Nlri: pack(&api.IPAddressPrefix{Prefix: "198.51.100.10", PrefixLen: 24})})
	if err != nil || e != eid("198.51.100.0/24") {
		t.Errorf("unmasked prefix: %v, %v", e, err)
	}
}

// FuzzParsePath: whatever communities and next hops come, a path that parses says the same when it is sent
// on.
func FuzzParsePath(f *testing.F) {
	for _, m := range []lisp.Mapping{
		mapping("198.51.100.10/32", 1, 1, loc("100.64.1.2"), loc("2001:db8:100:3::2")),
		{EID: eid("2001:db8::/32"), TTL: 5, Action: lisp.ActNativelyForward, SiteID: 1 << 63},
		service("198.51.100.10/32", "2001:db8:e1d::a/128", 5),
	} {
		for _, p := range split(m) {
			f.Add(p.loc.RLOC.AsSlice(), communityBytes(p.communities(64512)))
		}
	}
	f.Add([]byte{127, 0, 0, 1}, []byte("short"))
	f.Fuzz(func(t *testing.T, hop, b []byte) {
		a, _ := netip.AddrFromSlice(hop)
		var cs []large
		for ; len(b) >= 12; b = b[12:] {
			cs = append(cs, large{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])})
		}
		p, err := parsePath(64512, 1, a, cs)
		if err != nil {
			return
		}
		again, err := parsePath(64512, 1, p.loc.RLOC, p.communities(64512))
		if err != nil {
			t.Fatalf("%+v does not parse again: %v", p, err)
		}
		if again != p {
			t.Fatalf("%+v became %+v", p, again)
		}
		for _, e := range []lisp.EID{eid("10.0.0.0/8"), eid("198.51.100.10/32"), eid("2001:db8:5e::/48")} {
			m := join(e, []path{p})
			if m.Negative() != (p.set.count() == 0) || p.fits(e) == nil && m.IsService() != p.inside.IsValid() {
				t.Fatalf("%+v joins to %+v", p, m)
			}
			if m.IsService() && lisp.CheckService(m.EID, m.Inside) != nil {
				t.Fatalf("%+v joins to %+v", p, m)
			}
		}
	})
}

// FuzzAPIPath: whatever GoBGP may hand us, decoding it does not panic, and an EID is always one that the
// rest of tabi understands.
func FuzzAPIPath(f *testing.F) {
	for _, m := range []lisp.Mapping{
		mapping("198.51.100.10/32", 1, 1, loc("100.64.1.2"), loc("2001:db8:100:3::2")),
		mapping("[7]2001:db8:e1d::/48", 1, 1, loc("100.64.1.2")),
		mapping("[7]198.51.100.10/32", 1, 1, loc("2001:db8:100:3::2")),
		service("2001:db8:5e::/48", "2001:db8:e1d::/48", 1),
	} {
		for _, p := range split(m) {
			b, err := proto.Marshal(mappingRoute(64512, m.EID, p).apiPath(64512))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p api.Path
		if proto.Unmarshal(b, &p) != nil {
			return
		}
		if e, err := eidOf(&p); err == nil {
			if !e.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6() {
				t.Fatalf("EID %v", e)
			}
			if f, ok := familyOf(p.GetFamily()); !ok || f != eidFamily(e) {
				t.Fatalf("EID %v in family %v", e, p.GetFamily())
			}
		}
		if q, err := pathOf(64512, &p); err == nil && q.set.count() > 0 && !q.loc.RLOC.IsValid() {
			t.Fatalf("path without RLOC: %+v", q)
		}
	})
}

func communityBytes(cs []large) (b []byte) {
	for _, c := range cs {
		b = binary.BigEndian.AppendUint32(b, c.admin)
		b = binary.BigEndian.AppendUint32(b, c.fn)
		b = binary.BigEndian.AppendUint32(b, c.value)
	}
	return b
}
