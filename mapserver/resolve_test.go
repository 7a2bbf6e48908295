package mapserver

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

const itr = "100.64.4.2"

// ask sends a Map-Request in an ECM from the ITR.
func (r *rig) ask(set func(*lisp.MapRequest), eids ...string) {
	r.t.Helper()
	m := &lisp.MapRequest{Nonce: 1000 + r.nonce, ITRRLOCs: []netip.Addr{netip.MustParseAddr(itr)}}
	r.nonce++
	for _, e := range eids {
		m.Records = append(m.Records, lisp.RequestRecord{EID: mustEID(e)})
	}
	if set != nil {
		set(m)
	}
	r.handle(r.encapsulated(m))
}

func (r *rig) encapsulated(m *lisp.MapRequest) control.Packet {
	r.t.Helper()
	inner, err := lisp.Append(nil, m)
	if err != nil {
		r.t.Fatal(err)
	}
	dest := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), 4342)
	raw, err := lisp.Append(nil, &lisp.ECM{Source: netip.MustParseAddrPort(itr + ":61000"), Dest: dest, Inner: inner})
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := lisp.Decode(raw)
	if err != nil {
		r.t.Fatal(err)
	}
	ecm := got.(*lisp.ECM)
	msg, err := ecm.Message()
	if err != nil {
		r.t.Fatal(err)
	}
	return control.Packet{Msg: msg, Raw: ecm.Inner, From: netip.MustParseAddrPort("192.0.2.200:4342"), ECM: ecm}
}

func TestAProxyReply(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{hv1, hv3 + " 2"}, ttl: 86400}, web)
	r.ask(nil, web)
	// To the ITR-RLOC, at the port that the ITR asked from; no longer than a day.
	r.want("answer", r.early, itr+":61000 Map-Reply "+web+" v1 ttl 1440 100.64.1.2 "+hv3)
	m := r.early[0].msg.(*lisp.MapReply)
	if m.Nonce != 1000+r.nonce-1 || m.Records[0].Authoritative || r.early[0].key != nil {
		t.Errorf("answered %+v", m)
	}
	for _, l := range m.Records[0].Locators {
		if l.Local {
			t.Errorf("locator %v has the L bit", l.RLOC)
		}
	}
}

// TestForwarding: without the P bit the ETR answers (RFC 9301 section 8.3).
func TestForwarding(t *testing.T) {
	cfg := cloud()
	noProxy := func(m *lisp.MapRegister) { m.ProxyReply = false }
	r := newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{hv1, "100.64.12.2 255"}, set: noProxy}, web)
	r.ask(nil, web, web)
	if len(r.early) != 1 {
		t.Fatalf("sent %v", lines(r.early))
	}
	r.want("forwarded once", r.early, "100.64.1.2:4342 ECM to 198.51.100.1:4342")
	if s := r.early[0].msg.(*lisp.ECM).Source.String(); s != itr+":61000" {
		t.Errorf("inner source became %s", s)
	}
	if len(r.early[0].to) != 1 {
		t.Errorf("would go to %v", r.early[0].to)
	}
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{"100.64.12.2 255"}, version: 1, set: noProxy}, web)
	r.ask(nil, web)
	r.want("its source is all that we have", r.early, "100.64.1.2:4342 ECM to 198.51.100.1:4342")

	cfg.ProxyReply = true
	r = newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1, set: noProxy}, web)
	r.ask(nil, web)
	r.want("configured to answer always", r.early, itr+":61000 Map-Reply "+web+" v1 ttl 10 100.64.1.2")
}

func TestNegativeAnswers(t *testing.T) {
	for _, c := range []struct {
		name       string
		registered []string
		ask        string
		want       string
	}{
		{"nobody's: as wide as no configured prefix is met", nil, "8.8.8.8", "0.0.0.0/1 v0 ttl 15 natively-forward"},
		{"nobody's, near", nil, "198.51.101.1", "198.51.101.0/24 v0 ttl 15 natively-forward"},
		{"nobody's IPv6", nil, "2001:db8:e1c::1", "2001:db8:e1c::/48 v0 ttl 15 natively-forward"},
		{"an instance of which nothing is known", nil, "[9]10.0.0.1", "[9]0.0.0.0/0 v0 ttl 15 natively-forward"},
		{"configured, nothing registered", nil, "198.51.100.10", "198.51.100.0/24 v0 ttl 1 natively-forward"},
		{"configured, something else registered", []string{"198.51.100.10"}, "198.51.100.9", "198.51.100.8/31 v0 ttl 1 natively-forward"},
		{"next to it", []string{"198.51.100.10"}, "198.51.100.11", "198.51.100.11/32 v0 ttl 1 natively-forward"},
		{"the same address in another instance", []string{"[7]10.0.0.1"}, "10.0.0.1", "0.0.0.0/1 v0 ttl 15 natively-forward"},
		{"a wider prefix than what is registered in it", []string{"198.51.100.0/32"}, "198.51.100.0/24", "198.51.100.0/24 v0 ttl 1 natively-forward"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, cloud())
			for _, e := range c.registered {
				r.register(xtr{id: 1, addr: hv1}, e)
			}
			r.ask(nil, c.ask)
			r.want("answer", r.early, itr+":61000 Map-Reply "+c.want)
			r.count("request/answered-negative", 1)
		})
	}
	// Withdrawn is not registered.
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.register(xtr{id: 1, addr: hv1, ttl: withdrawn}, web)
	r.ask(nil, web)
	r.want("withdrawn", r.early, itr+":61000 Map-Reply 198.51.100.0/24 v0 ttl 1 natively-forward")
}

func TestADropRegistration(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1, rlocs: []string{}, set: func(m *lisp.MapRegister) { m.Records[0].Action = lisp.ActDrop }}, web)
	r.ask(nil, web)
	r.want("answer", r.early, itr+":61000 Map-Reply "+web+" v1 ttl 10 drop")
}

// TestMoreSpecificsComeAlong is the example of RFC 9301 section 5.5, and its limit.
func TestMoreSpecificsComeAlong(t *testing.T) {
	cfg := cloud()
	cfg.MaxMoreSpecifics = 4
	r := newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1, ttl: 60}, "2001:db8:e1d::/48")
	r.register(xtr{id: 2, addr: hv2, ttl: 5}, "2001:db8:e1d:1::/64")
	r.register(xtr{id: 2, addr: hv2}, "2001:db8:e1d:2::/64")
	r.ask(nil, "2001:db8:e1d:1::1")
	r.want("the best match has no more-specific", r.early, itr+":61000 Map-Reply 2001:db8:e1d:1::/64 v1 ttl 5 100.64.2.2")
	r.ask(nil, "2001:db8:e1d:5::5")
	r.want("filled out, with one TTL", r.early, itr+":61000 Map-Reply 2001:db8:e1d::/48 v1 ttl 5 100.64.1.2; "+
		"2001:db8:e1d:1::/64 v1 ttl 5 100.64.2.2; 2001:db8:e1d:2::/64 v1 ttl 5 100.64.2.2")
	r.ask(nil, "2001:db8:e1d::/48")
	if n := len(r.early[0].msg.(*lisp.MapReply).Records); n != 3 {
		t.Errorf("asked for the /48 itself, %d records", n)
	}
	for i := range 3 {
		r.register(xtr{id: 2, addr: hv2}, fmt.Sprintf("2001:db8:e1d:%x::/64", 8+i))
	}
	r.ask(nil, "2001:db8:e1d:5::5")
	r.want("too many: the part without any", r.early, itr+":61000 Map-Reply 2001:db8:e1d:4::/62 v1 ttl 60 100.64.1.2")
	r.ask(nil, "2001:db8:e1d::/48")
	r.want("too many, asked for all: the exact match", r.early, itr+":61000 Map-Reply 2001:db8:e1d::/48 v1 ttl 60 100.64.1.2")
}

func TestAMoreSpecificThatAnotherAnswersFor(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, "198.51.100.0/24")
	r.register(xtr{id: 2, addr: hv2, set: func(m *lisp.MapRegister) { m.ProxyReply = false }}, web)
	r.ask(nil, "198.51.100.200")
	r.want("not ours to tell", r.early, itr+":61000 Map-Reply 198.51.100.128/25 v1 ttl 10 100.64.1.2")
}

func TestSeveralRecordsInARequest(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	r.ask(nil, web, "8.8.8.8")
	r.want("one answer", r.early, itr+":61000 Map-Reply "+web+" v1 ttl 10 100.64.1.2; 0.0.0.0/1 v0 ttl 15 natively-forward")
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("198.51.100.%d", i))
	}
	r.ask(nil, many...)
	if n := len(r.early[0].msg.(*lisp.MapReply).Records); n != maxAnswer {
		t.Errorf("%d records", n)
	}
}

func TestRequestsThatAreDropped(t *testing.T) {
	r := newRig(t, cloud())
	r.register(xtr{id: 1, addr: hv1}, web)
	for _, c := range []struct {
		name string
		set  func(*lisp.MapRequest)
	}{
		{"probe", func(m *lisp.MapRequest) { m.Probe = true }},
		{"smr", func(m *lisp.MapRequest) { m.SMR = true }},
		{"no-itr-rloc", func(m *lisp.MapRequest) { m.ITRRLOCs = []netip.Addr{netip.MustParseAddr("0.0.0.0")} }},
	} {
		r.ask(c.set, web)
		r.want(c.name, r.early)
		r.count("request/dropped/"+c.name, 1)
	}
	r.handle(r.packet(itr, &lisp.MapRequest{ITRRLOCs: []netip.Addr{netip.MustParseAddr(itr)},
		Records: []lisp.RequestRecord{{EID: mustEID(web)}}}, nil))
	r.want("bare", r.early)
	r.count("request/dropped/not-encapsulated", 1)
	// An SMR-invoked one is a request like any other; so is one with an unusable first ITR-RLOC.
	r.ask(func(m *lisp.MapRequest) {
		m.SMRInvoked = true
		m.ITRRLOCs = []netip.Addr{{}, netip.MustParseAddr(itr)}
	}, web)
	r.want("answer", r.early, itr+":61000 Map-Reply "+web+" v1 ttl 10 100.64.1.2")
}

// TestAllITRRLOCsAreTried: the Map-Server may have no address of the family of the first.
func TestAllITRRLOCsAreTried(t *testing.T) {
	r := newRig(t, cloud())
	r.ask(func(m *lisp.MapRequest) {
		m.ITRRLOCs = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr(itr)}
	}, web)
	if to := fmt.Sprint(r.early[0].to); to != "[[2001:db8::1]:61000 100.64.4.2:61000]" {
		t.Errorf("would go to %s", to)
	}
}

func TestWhatIsNotForAMapServer(t *testing.T) {
	r := newRig(t, cloud())
	r.handle(r.packet(itr, &lisp.MapReply{Nonce: 1}, nil))
	r.handle(r.packet(itr, &lisp.MapNotify{Nonce: 1}, &propKey))
	r.count("dropped/not-for-a-map-server", 2)
	p := r.message(xtr{id: 1, addr: hv1}, web)
	p.ECM = &lisp.ECM{}
	r.handle(p)
	r.count("register/dropped/encapsulated", 1)
	r.handle(r.packet(itr, &lisp.MapRegister{Nonce: 1}, &propKey))
	r.count("register/dropped/no-records", 1)
	r.wait(time.Second)
	r.want("nothing is sent", append(r.early, r.late...))
}
