package detr

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

func TestAnswer(t *testing.T) {
	local := func(ls []lisp.Locator, own ...string) []lisp.Locator {
		for i := range ls {
			for _, o := range own {
				ls[i].Local = ls[i].Local || ls[i].RLOC == addr(o)
			}
		}
		return ls
	}
	anchors := func() []lisp.Locator {
		return local(locs("100.64.5.2", "100.64.6.2", "2001:db8:100:5::2", "2001:db8:100:6::2"), "100.64.5.2", "2001:db8:100:5::2")
	}
	probed := anchors()
	probed[0].Probed = true
	agg := func(e string, ls []lisp.Locator) lisp.Mapping {
		return lisp.Mapping{EID: eid(e), TTL: 1440, Authoritative: true, Locators: ls}
	}
	neg := func(e string) lisp.Mapping {
		return lisp.Mapping{EID: eid(e), TTL: 15, Action: lisp.ActNativelyForward}
	}
	ask := func(es ...string) *lisp.MapRequest {
		m := &lisp.MapRequest{Nonce: 77, SourceEID: eid("203.0.113.10/32"), ITRRLOCs: []netip.Addr{addr("192.0.2.9")}}
		for _, e := range es {
			m.Records = append(m.Records, lisp.RequestRecord{EID: eid(e)})
		}
		return m
	}
	with := func(m *lisp.MapRequest, change func(*lisp.MapRequest)) *lisp.MapRequest { change(m); return m }
	for _, c := range []struct {
		name string
		m    *lisp.MapRequest
		want []lisp.Mapping
	}{
		{"a host", ask("198.51.100.10/32"), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"an IPv6 host", ask("2001:db8:e1d:1::10/128"), []lisp.Mapping{agg("2001:db8:e1d::/48", anchors())}},
		{"a part", ask("198.51.100.0/30"), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"the aggregate", ask("198.51.100.0/24"), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"more than the aggregate", ask("198.51.0.0/16"), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"everything", ask("0.0.0.0/0", "::/0"), []lisp.Mapping{agg("198.51.100.0/24", anchors()), agg("2001:db8:e1d::/48", anchors())}},
		{"two hosts, one aggregate", ask("198.51.100.10/32", "198.51.100.20/32"), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"another's", ask("203.0.113.10/32"), []lisp.Mapping{neg("203.0.113.10/32")}},
		{"another instance", ask("[7]198.51.100.10/32"), []lisp.Mapping{neg("[7]198.51.100.10/32")}},
		{"both", ask("203.0.113.10/32", "198.51.100.10/32"), []lisp.Mapping{neg("203.0.113.10/32"), agg("198.51.100.0/24", anchors())}},
		{"SMR-invoked", with(ask("198.51.100.10/32"), func(m *lisp.MapRequest) { m.SMRInvoked = true }),
			[]lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"from a PITR", with(ask("198.51.100.10/32"), func(m *lisp.MapRequest) { m.PITR = true }),
			[]lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"to subscribe", with(ask("198.51.100.10/32"), func(m *lisp.MapRequest) {
			m.Records[0].Notify, m.HasXTRID, m.XTRID = true, true, lisp.XTRID{1}
		}), []lisp.Mapping{agg("198.51.100.0/24", anchors())}},
		{"a probe", with(ask("198.51.100.10/32"), func(m *lisp.MapRequest) { m.Probe = true }),
			[]lisp.Mapping{agg("198.51.100.0/24", probed)}},
		{"a probe of another's", with(ask("203.0.113.10/32"), func(m *lisp.MapRequest) { m.Probe = true }), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := answer(ready(), c.m, addr("100.64.5.2"), true)
			if c.want == nil {
				if got != nil {
					t.Errorf("answered %+v", got)
				}
				return
			}
			want := &lisp.MapReply{Probe: c.m.Probe, Nonce: 77, Records: c.want}
			if d := cmp.Diff(want, got, equal); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestAnswerServices: service prefixes are what aggregates are; the pool is known to who probes it, and nobody else.
func TestAnswerServices(t *testing.T) {
	cfg := ready(withServices)
	say := func(probe, serving bool, asked string) string {
		m := &lisp.MapRequest{Nonce: 7, Probe: probe, ITRRLOCs: []netip.Addr{addr("192.0.2.9")}, Records: []lisp.RequestRecord{{EID: eid(asked)}}}
		r := answer(cfg, m, addr("100.64.5.2"), serving)
		if r == nil {
			return ""
		}
		var s string
		for _, rec := range r.Records {
			s += rec.EID.String()
			if len(rec.Locators) != 4 && len(rec.Locators) != 0 {
				t.Errorf("%s: %+v", asked, rec)
			}
			for _, l := range rec.Locators {
				own := slices.ContainsFunc(cfg.RLOCs, func(o lisp.Locator) bool { return o.RLOC == l.RLOC })
				if l.Local != own || l.Usable() != (serving || !own) || l.Probed != (probe && l.RLOC == addr("100.64.5.2")) {
					t.Errorf("%s: %+v", asked, l)
				}
			}
			if len(rec.Locators) > 0 {
				s += "+"
			}
			s += " "
		}
		return strings.TrimSpace(s)
	}
	for asked, want := range map[string]string{
		"203.0.113.10/32":           "203.0.113.0/26+",
		"198.51.100.70/32":          "198.51.100.64/26+",
		"198.51.100.10/32":          "198.51.100.0/24+ 198.51.100.64/26+", // "all more-specifics"
		"203.0.113.0/24":            "203.0.113.0/26+",
		"203.0.113.64/32":           "203.0.113.64/32",
		"2001:db8:5e::1/128":        "2001:db8:5e::/48+",
		"2001:db8:64::c000:201/128": "2001:db8:64::c000:201/128",
		"2001:db8:64::/96":          "2001:db8:64::/96",
		"[7]203.0.113.10/32":        "[7]203.0.113.10/32",
	} {
		for _, serving := range []bool{true, false} {
			if got := say(false, serving, asked); got != want {
				t.Errorf("%s, serving %t: %q, want %q", asked, serving, got, want)
			}
		}
	}
	for asked, want := range map[string]string{
		"203.0.113.10/32": "203.0.113.0/26+", "203.0.113.0/26": "203.0.113.0/26+", "198.51.100.10/32": "198.51.100.0/24+",
		"2001:db8:64::c000:201/128": "2001:db8:64::/96+", "2001:db8:64::/96": "2001:db8:64::/96+", "203.0.113.64/32": "",
	} {
		if got := say(true, true, asked); got != want {
			t.Errorf("a probe for %s: %q, want %q", asked, got, want)
		}
		if got := say(true, false, asked); got != "" {
			t.Errorf("a probe for %s while we do not serve: %q", asked, got)
		}
	}
}

func TestReplyTo(t *testing.T) {
	from := netip.MustParseAddrPort("192.0.2.9:40000")
	inner := &lisp.ECM{Source: netip.MustParseAddrPort("192.0.2.9:50000")}
	itr := func(as ...string) (m *lisp.MapRequest) {
		m = &lisp.MapRequest{}
		for _, a := range as {
			ip, _ := netip.ParseAddr(a)
			m.ITRRLOCs = append(m.ITRRLOCs, ip)
		}
		return m
	}
	only4 := func(c *Config) { c.RLOCs = locs("100.64.5.2") }
	for _, c := range []struct {
		name string
		p    control.Packet
		m    *lisp.MapRequest
		cfg  *Config
		want string // "": nobody
	}{
		{"straight", control.Packet{From: from}, itr("192.0.2.20"), ready(), "192.0.2.20:40000"},
		{"in an ECM", control.Packet{From: from, ECM: inner}, itr("192.0.2.20"), ready(), "192.0.2.20:50000"},
		{"IPv6", control.Packet{From: from, ECM: inner}, itr("2001:db8:9::1"), ready(), "[2001:db8:9::1]:50000"},
		{"of our family", control.Packet{From: from, ECM: inner}, itr("2001:db8:9::1", "192.0.2.20"), ready(only4), "192.0.2.20:50000"},
		{"not of our family", control.Packet{From: from, ECM: inner}, itr("2001:db8:9::1"), ready(only4), ""},
		{"none", control.Packet{From: from}, itr(), ready(), ""},
		{"no address", control.Packet{From: from}, itr("", "224.0.0.1", "0.0.0.0"), ready(), ""},
		{"a probe goes back to its sender", control.Packet{From: from}, &lisp.MapRequest{Probe: true, ITRRLOCs: []netip.Addr{addr("192.0.2.20")}},
			ready(), "192.0.2.9:40000"},
	} {
		got, ok := replyTo(c.cfg, c.p, c.m)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s: %v, %v; want %q", c.name, got, ok, c.want)
		}
	}
}
