package lisp

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func service(outside, inside string, v Version) Mapping {
	return NewService(netip.MustParsePrefix(outside), netip.MustParsePrefix(inside), v)
}

// The records of services as they travel, field by field.
func TestServiceRecord(t *testing.T) {
	four := service("198.51.100.10/32", "2001:db8:e1d::a/128", 5)
	four.TTL, four.Authoritative = 1440, true
	checkGolden(t, reply(four), replyHead+`000005a0 01 20 1000 0005 0001 c633640a
		ff00 ff00 0000                           // priority 255, also for multicast, not reachable
		4003 00 00 0f 00 0018                    // key/value address pair
		0001 c633640a                            // key: the service address
		0002 20010db80e1d0000000000000000000a    // value: the EID`)
	prefix := service("203.0.113.16/28", "2001:db8:e1d::100/124", 4095)
	checkGolden(t, reply(prefix), replyHead+`ffffffff 01 1c 0000 0fff 0001 cb007110
		ff00ff00 0000 4003 0000 0f00 0018 0001 cb007110 0002 20010db80e1d00000000000000000100`)
	six := service("2001:db8:5e::/48", "2001:db8:e1d::/48", 1)
	six.TTL = TTLDelete
	checkGolden(t, reply(six), replyHead+`00000000 01 30 0000 0001 0002 20010db8005e00000000000000000000
		ff00ff00 0000 4003 0000 0f00 0024
		0002 20010db8005e00000000000000000000 0002 20010db80e1d00000000000000000000`)
	// Reserved fields and flags, the action, the bits of the locator and its weights do not matter.
	checkDecodes(t, reply(service("203.0.113.16/28", "2001:db8:e1d::100/124", 4095)), replyHead+
		`ffffffff 01 1c 8fff ffff 0001 cb007113
		ff64 0107 ffff 4003 ffff 0fff 0018 0001 cb007110 0002 20010db80e1d00000000000000000100`)
	// Nor does the form of the address.
	checkDecodes(t, reply(service("203.0.113.16/28", "2001:db8:e1d::100/124", 4095)), replyHead+
		`ffffffff 01 7c 0000 0fff 0002 00000000000000000000ffffcb007110
		ff00ff00 0000 4003 0000 0f00 0024 0002 00000000000000000000ffffcb007110 0002 20010db80e1d00000000000000000100`)
}

// A key/value pair that is no service stays what it is: an address that nobody here interprets. So does
// one in a record that says more.
func TestNoService(t *testing.T) {
	const good = "0001 c633640a 0002 20010db80e1d0000000000000000000a"
	record := func(mask, eid, priority, length, body string) string {
		return replyHead + "00000000 01 " + mask + " 0000 0000 0001 " + eid + priority + " 00ff00 0000 4003 0000 0f00 " + length + body
	}
	for what, c := range map[string]struct{ mask, eid, priority, length, body string }{
		"a priority that may be used":     {"20", "c633640a", "fe", "0018", good},
		"another key":                     {"20", "c633640b", "ff", "0018", good},
		"a key with host bits":            {"1c", "c633640a", "ff", "0018", good},
		"an EID with host bits":           {"1c", "c6336400", "ff", "0018", "0001 c6336400 0002 20010db80e1d0000000000000000000a"},
		"no body":                         {"20", "c633640a", "ff", "0000", ""},
		"half a key":                      {"20", "c633640a", "ff", "0004", "0001 c633"},
		"no value":                        {"20", "c633640a", "ff", "0006", "0001 c633640a"},
		"an empty value":                  {"20", "c633640a", "ff", "0008", "0001 c633640a 0000"},
		"half a value":                    {"20", "c633640a", "ff", "0010", "0001 c633640a 0002 20010db80e1d0000"},
		"more than a pair":                {"20", "c633640a", "ff", "0019", good + "00"},
		"an IPv4 value":                   {"20", "c633640a", "ff", "000c", "0001 c633640a 0001 0a000001"},
		"a mapped value":                  {"20", "c633640a", "ff", "0018", "0001 c633640a 0002 00000000000000000000ffff0a000001"},
		"a multicast value":               {"20", "c633640a", "ff", "0018", "0001 c633640a 0002 ff020000000000000000000000000001"},
		"a key of an AFI nobody knows":    {"20", "c633640a", "ff", "0018", "0006 c633640a 0002 20010db80e1d0000000000000000000a"},
		"a value of an AFI nobody knows":  {"20", "c633640a", "ff", "0018", "0001 c633640a 0006 20010db80e1d0000000000000000000a"},
		"an LCAF as the value":            {"20", "c633640a", "ff", "0014", "0001 c633640a 4003 0000 0200 0006 00000000 0000"},
		"a multicast address as outside":  {"20", "e0000001", "ff", "0018", "0001 e0000001 0002 20010db80e1d0000000000000000000a"},
		"all of IPv4 as service prefixes": {"00", "00000000", "ff", "0018", "0001 00000000 0002 20010db80e1d00000000000000000000"},
	} {
		t.Run(what, func(t *testing.T) {
			packet := record(c.mask, c.eid, c.priority, c.length, c.body)
			m, err := Decode(golden(t, packet))
			if err != nil {
				t.Fatal(err)
			}
			rec := m.(*MapReply).Records[0]
			if rec.IsService() || len(rec.Locators) != 1 || rec.Locators[0].LCAF.LCAFType() != 15 || rec.Locators[0].Usable() {
				t.Fatalf("is read as %+v", rec)
			}
			out, err := Append(nil, m)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode(out)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(m, again, cmpOpts); d != "" {
				t.Errorf("after a round trip (-want +got):\n%s", d)
			}
		})
	}
	pair := "ff00ff00 0000 4003 0000 0f00 0018" + good
	for what, packet := range map[string]string{
		"a second locator": replyHead + "00000000 02 20 0000 0000 0001 c633640a" + pair + "01640000 0001 0001 01010101",
		"an instance":      replyHead + "00000000 01 20 0000 0000 4003 0000 0200 000a 00000007 0001 c633640a" + pair,
	} {
		m, err := Decode(golden(t, packet))
		if err != nil {
			t.Fatal(err)
		}
		if rec := m.(*MapReply).Records[0]; rec.IsService() || rec.Negative() {
			t.Errorf("%s: is read as %+v", what, rec)
		}
	}
	checkRefused(t, "longer than the message", ErrTruncated, record("20", "c633640a", "ff", "0019", good))
}

func TestServiceUnencodable(t *testing.T) {
	good := service("198.51.100.10/32", "2001:db8:e1d::a/128", 5)
	for what, change := range map[string]func(*Mapping){
		"locators":   func(m *Mapping) { m.Locators = []Locator{{RLOC: netip.MustParseAddr("192.0.2.1")}} },
		"host bits":  func(m *Mapping) { m.Inside = netip.MustParsePrefix("2001:db8:e1d::/64") },
		"instance":   func(m *Mapping) { m.EID.IID = 7 },
		"IPv4":       func(m *Mapping) { m.Inside = netip.MustParsePrefix("192.0.2.1/32") },
		"not masked": func(m *Mapping) { m.EID = mustEID("10.0.0.0/24"); m.Inside = netip.MustParsePrefix("2001:db8::1/120") },
	} {
		m := good
		change(&m)
		checkUnencodable(t, what, reply(m))
	}
}

func TestCheckService(t *testing.T) {
	for _, c := range []struct{ outside, inside, err string }{
		{"198.51.100.10", "2001:db8:e1d::a/128", ""},
		{"203.0.113.0/28", "2001:db8:e1d::/124", ""},
		{"10.0.0.0/8", "2001:db8::/104", ""},
		{"2001:db8:5e::a", "2001:db8:e1d::a/128", ""},
		{"2001:db8:5e::/48", "2001:db8:e1d::/48", ""},
		{"[7]198.51.100.10", "2001:db8:e1d::a/128", "instance 0"},
		{"198.51.100.10", "2001:db8:e1d::/64", "0 and 64 host bits"},
		{"203.0.113.0/28", "2001:db0::/28", "4 and 100 host bits"},
		{"2001:db8:5e::/48", "2001:db8:e1d::/49", "80 and 79 host bits"},
		{"198.51.100.10", "192.0.2.1/32", "is not IPv6"},
		{"198.51.100.10", "::ffff:192.0.2.1/128", "is not IPv6"},
		{"203.0.113.0/28", "2001:db8:e1d::1/124", "no masked prefix"},
		{"2001:db8:5e::a", "2001:db8:5e::a/128", "overlap"},
		{"2001:db8::/33", "2001:db8::/33", "overlap"},
		{"0.0.0.0/0", "2001:db8::/96", "0.0.0.0/8"},
		{"224.0.0.1", "2001:db8:e1d::a/128", "224.0.0.0/4"},
		{"255.255.255.255", "2001:db8:e1d::a/128", "255.255.255.255/32"},
		{"127.0.0.1", "2001:db8:e1d::a/128", "127.0.0.0/8"},
		{"169.254.1.1", "2001:db8:e1d::a/128", "169.254.0.0/16"},
		{"198.51.100.10", "::1/128", "::/127"},
		{"198.51.100.10", "ff02::1/128", "ff00::/8"},
		{"198.51.100.10", "fe80::1/128", "fe80::/10"},
		{"ff02::1", "2001:db8:e1d::a/128", "ff00::/8"},
	} {
		err := CheckService(mustEID(c.outside), netip.MustParsePrefix(c.inside))
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s, %s: %v, want %q", c.outside, c.inside, err, c.err)
		}
	}
	for what, err := range map[string]error{
		"no outside": CheckService(EID{}, netip.MustParsePrefix("2001:db8::1/128")),
		"no inside":  CheckService(mustEID("198.51.100.10"), netip.Prefix{}),
		"not masked": CheckService(EID{Prefix: netip.MustParsePrefix("198.51.100.10/28")}, netip.MustParsePrefix("2001:db8::/124")),
	} {
		if err == nil {
			t.Errorf("%s: nothing is wrong", what)
		}
	}
}

func TestServiceInside(t *testing.T) {
	for _, c := range []struct{ outside, addr, want string }{
		{"198.51.100.10", "2001:db8:e1d::a", "2001:db8:e1d::a/128"},
		{"203.0.113.16/28", "2001:db8:e1d::100", "2001:db8:e1d::100/124"},
		{"2001:db8:5e::/48", "2001:db8:e1d::", "2001:db8:e1d::/48"},
		{"203.0.113.16/28", "2001:db8:e1d::101", ""},
		{"198.51.100.10", "192.0.2.1", ""},
		{"198.51.100.10", "::ffff:192.0.2.1", ""},
	} {
		got, err := ServiceInside(mustEID(c.outside), netip.MustParseAddr(c.addr))
		if (err == nil) != (c.want != "") || err == nil && got.String() != c.want {
			t.Errorf("%s, %s: %v, %v; want %q", c.outside, c.addr, got, err, c.want)
		}
	}
	if _, err := ServiceInside(EID{}, netip.MustParseAddr("2001:db8::1")); err == nil {
		t.Error("of no EID: no error")
	}
}

// A service is of no xTR, whoever sends the message that it is in; other records are the sender's.
func TestServiceIsOfNobody(t *testing.T) {
	host := Mapping{EID: mustEID("10.0.0.1"), Action: ActDrop}
	m := MapNotify{Records: []Mapping{service("198.51.100.10/32", "2001:db8:e1d::a/128", 5), host}, HasXTRID: true,
		XTRID: XTRID{1}, SiteID: 2}
	if ms := m.Mappings(); !ms[0].XTRID.IsZero() || ms[0].SiteID != 0 || ms[1].XTRID != m.XTRID || ms[1].SiteID != 2 {
		t.Errorf("%+v", ms)
	}
	if !m.Records[0].IsService() || !m.Records[0].Negative() || host.IsService() {
		t.Error("IsService is wrong")
	}
}

func TestServiceJSON(t *testing.T) {
	b, err := json.Marshal(service("198.51.100.10/32", "2001:db8:e1d::a/128", 5))
	if err != nil || !strings.Contains(string(b), `"inside":"2001:db8:e1d::a/128"`) {
		t.Fatalf("%s, %v", b, err)
	}
	if b, err = json.Marshal(Mapping{EID: mustEID("10.0.0.1")}); err != nil || strings.Contains(string(b), "inside") {
		t.Errorf("of another mapping: %s, %v", b, err)
	}
}

// Whatever address a key/value pair has, either it is read as a service that [CheckService] accepts, or the
// locator is still there.
func FuzzService(f *testing.F) {
	for _, s := range []Mapping{service("198.51.100.10/32", "2001:db8:e1d::a/128", 5), service("203.0.113.16/28", "2001:db8:e1d::100/124", 1),
		service("2001:db8:5e::/48", "2001:db8:e1d::/48", 2)} {
		p := s.EID.Prefix
		f.Add(p.Addr().AsSlice(), uint8(p.Bits()), []byte(insideLocator(s.EID, s.Inside).LCAF[lcafHeaderLen:]), uint8(UnusablePriority))
	}
	f.Fuzz(func(t *testing.T, eid []byte, mask uint8, body []byte, priority uint8) {
		a, ok := netip.AddrFromSlice(eid)
		if !ok || int(mask) > a.BitLen() || len(body) > 0xffff {
			return
		}
		e := MakeEID(0, netip.PrefixFrom(a, int(mask)))
		if !e.IsValid() {
			return
		}
		l := Locator{Priority: priority, LCAF: RawLCAF("\x40\x03\x00\x00\x0f\x00" + string([]byte{byte(len(body) >> 8), byte(len(body))}) + string(body))}
		b, err := Append(nil, reply(Mapping{EID: e, Locators: []Locator{l}}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		m := got.(*MapReply).Records[0]
		if !m.IsService() {
			if len(m.Locators) != 1 || m.Locators[0] != l {
				t.Fatalf("%+v", m)
			}
			return
		}
		if err := CheckService(m.EID, m.Inside); err != nil || priority != UnusablePriority || len(m.Locators) != 0 || m.Action != ActDrop {
			t.Fatalf("%+v: %v", m, err)
		}
		again, err := Append(nil, got)
		if err != nil || errors.Is(err, ErrUnencodable) {
			t.Fatal(err)
		}
		if second, err := Decode(again); err != nil || !cmp.Equal(got, second, cmpOpts) {
			t.Fatalf("%+v became %+v, %v", got, second, err)
		}
	})
}
