package mapserver

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// FuzzHandle gives the core whatever decodes, as it comes from the network, unauthenticated.
func FuzzHandle(f *testing.F) {
	reg := &lisp.MapRegister{HasXTRID: true, XTRID: lisp.XTRID{1}, Nonce: 5, WantMapNotify: true, Records: []lisp.Mapping{
		{EID: mustEID(web), TTL: 10, Locators: []lisp.Locator{loc(hv1)}}}}
	signed, err := lisp.AppendSigned(nil, reg, propKey)
	if err != nil {
		f.Fatal(err)
	}
	request, err := lisp.Append(nil, &lisp.MapRequest{HasXTRID: true, XTRID: lisp.XTRID{1}, ITRRLOCs: []netip.Addr{netip.MustParseAddr(itr)},
		Records: []lisp.RequestRecord{{EID: mustEID("198.51.100.0/25"), Notify: true}}})
	if err != nil {
		f.Fatal(err)
	}
	ecm, err := lisp.Append(nil, &lisp.ECM{Source: netip.MustParseAddrPort(itr + ":61000"),
		Dest: netip.MustParseAddrPort("198.51.100.1:4342"), Inner: request})
	if err != nil {
		f.Fatal(err)
	}
	ack, err := lisp.AppendSigned(nil, &lisp.MapNotifyAck{Nonce: 5, Records: reg.Records}, propKey)
	if err != nil {
		f.Fatal(err)
	}
	service, err := lisp.AppendSigned(nil, &lisp.MapRegister{Nonce: 6, WantMapNotify: true, Records: []lisp.Mapping{
		lisp.NewService(mustEID(web).Prefix, mustEID("2001:db8:e1d::a").Prefix, 3)}}, ctlKey)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{signed, request, ecm, ack, service} {
		f.Add(b)
	}
	p, err := newPolicy(withSubscribers())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCore(p, State{}, epoch)
		m, err := lisp.Decode(b)
		if err != nil {
			return
		}
		k := control.Packet{Msg: m, Raw: b, From: netip.MustParseAddrPort(hv1 + ":4342")}
		if e, ok := m.(*lisp.ECM); ok {
			if k.Msg, err = e.Message(); err != nil {
				return
			}
			k.Raw, k.ECM = e.Inner, e
		}
		for range 2 {
			handle(c, epoch, k)
			out := c.take()
			for _, s := range slices.Concat(out.sends, out.bulk, c.takeBatch().sends) {
				encodable(t, s)
			}
		}
		checkCore(t, c, epoch)
	})
}

func encodable(t *testing.T, s send) {
	t.Helper()
	var err error
	if s.key != nil {
		_, err = lisp.AppendSigned(nil, s.msg, *s.key)
	} else {
		_, err = lisp.Append(nil, s.msg)
	}
	if err != nil || len(s.to) == 0 {
		t.Fatalf("cannot send %s to %v: %v", line(s.msg), s.to, err)
	}
}

// script reads a fuzzer's bytes as a sequence of small numbers.
type script struct{ b []byte }

func (s *script) more() bool { return len(s.b) > 0 }

func (s *script) n(limit int) int {
	if len(s.b) == 0 {
		return 0
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	return v % limit
}

// FuzzCore plays arbitrary authenticated messages, acknowledgements, waits and restarts, and checks after each
// that the state fits together and that no EID goes back to an older version.
func FuzzCore(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 2, 1, 0, 2, 0, 0, 3, 5, 4, 1, 2, 3, 5})
	f.Add([]byte{2, 1, 0, 0, 0, 1, 1, 1, 0, 1, 2, 0, 0, 2, 2, 2, 1, 0, 3, 250, 4})
	f.Add([]byte{6, 0, 0, 0, 1, 1, 6, 0, 0, 1, 2, 1, 6, 1, 2, 2, 1, 1, 0, 1, 0, 0, 1, 0, 2, 1, 0, 2, 5, 6, 0, 0, 0, 4, 0, 3, 6})
	f.Add([]byte("claims to and fro, merges, withdrawals, subscriptions, and then a restart"))
	p, err := newPolicy(withSubscribers())
	if err != nil {
		f.Fatal(err)
	}
	eids := []lisp.EID{mustEID(web), mustEID("198.51.100.11"), mustEID("198.51.100.0/24"), mustEID("198.51.100.0/28"),
		mustEID("2001:db8:e1d::/48"), mustEID("8.8.8.8"), mustEID("203.0.113.0/24"), mustEID("[7]10.0.0.0/9")}
	addrs := []netip.Addr{netip.MustParseAddr(hv1), netip.MustParseAddr(hv2), netip.MustParseAddr(hv3), netip.MustParseAddr(itr)}
	outsides := []netip.Prefix{mustEID(web).Prefix, mustEID("198.51.100.11").Prefix, mustEID("198.51.100.0/28").Prefix,
		mustEID("2001:db8:e1d:5e::a").Prefix, mustEID("2001:db8:e1d:5e::/64").Prefix}
	insides := []netip.Prefix{mustEID("2001:db8:e1d::a").Prefix, mustEID("2001:db8:e1d::b").Prefix, mustEID("2001:db8:e1d::/124").Prefix,
		mustEID("2001:db8:e1d::/64").Prefix, mustEID("2001:db8:e1d:5e::a").Prefix}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 400 {
			return
		}
		s := &script{b}
		now, c := epoch, newCore(p, State{}, epoch)
		regs, nonces, subs := map[lisp.EID]Registration{}, map[NonceKey]uint64{}, map[SubscriptionKey]Subscription{}
		svcs := map[lisp.EID]Service{}
		last := map[lisp.EID]lisp.Mapping{}
		var sent []send
		nonce := uint64(0)
		for s.more() {
			nonce++
			switch op := s.n(7); op {
			case 0, 1:
				x, a := byte(s.n(4)), addrs[s.n(len(addrs))]
				m := &lisp.MapRegister{Nonce: nonce, HasXTRID: x != 0, XTRID: lisp.XTRID{15: x}, WantMapNotify: true}
				flags := s.n(256)
				m.ProxyReply, m.UseTTL, m.Merge = flags&1 != 0, flags&2 != 0, flags&12 == 12
				if flags&48 == 48 {
					m.Nonce = 1
				}
				for range 1 + s.n(3) {
					m.Records = append(m.Records, lisp.Mapping{EID: eids[s.n(len(eids))], TTL: lisp.TTL(s.n(4)),
						Version:  []lisp.Version{0, 0, 1, 2, 3, 4, 5, 4090, 4093, 4094, 4095}[s.n(11)],
						Locators: []lisp.Locator{{RLOC: a, Priority: byte(s.n(3)), Reachable: s.n(3) > 0}}[:1-s.n(5)/4]})
				}
				r := registering{MapRegister: m, from: a, site: p.sites["cloud"], key: &p.sites["cloud"].Keys[0]}
				if flags&192 == 192 {
					r.key, r.controller = &p.sites["cloud"].ControllerKeys[0], true
				}
				c.register(now, r)
			case 2:
				m := &lisp.MapRequest{Nonce: uint64(s.n(256)), HasXTRID: true, XTRID: lisp.XTRID{15: byte(s.n(4))}, ITRRLOCs: addrs[s.n(4):]}
				if s.n(4) == 0 {
					m.ITRRLOCs = []netip.Addr{{}}
				}
				for range 1 + s.n(2) {
					m.Records = append(m.Records, lisp.RequestRecord{EID: eids[s.n(len(eids))], Notify: s.n(3) > 0})
				}
				c.mapRequest(now, m, &lisp.ECM{Source: netip.AddrPortFrom(addrs[0], 5000), Dest: netip.AddrPortFrom(addrs[1], 4342)})
			case 3:
				now = now.Add([]time.Duration{time.Millisecond, time.Second, 10 * time.Second, time.Minute, 200 * time.Second, 20 * time.Minute,
					40 * 24 * time.Hour}[s.n(7)])
				c.tick(now)
			case 4:
				if len(sent) > 0 {
					if m, ok := sent[s.n(len(sent))].msg.(*lisp.MapNotify); ok {
						c.mapNotifyAck(netip.AddrPortFrom(addrs[s.n(4)], 4342), m.Ack(), func(lisp.Key) bool { return true })
					}
				}
			case 6:
				m := &lisp.MapRegister{Nonce: nonce, WantMapNotify: true}
				for range 1 + s.n(3) {
					k := outsides[s.n(len(outsides))]
					rec := lisp.NewService(k, insides[s.n(len(insides))], []lisp.Version{0, 1, 2, 3, 4094, 4095}[s.n(6)])
					if lisp.CheckService(rec.EID, rec.Inside) != nil {
						continue // does not come from a decoder
					}
					if s.n(3) == 0 {
						rec.TTL = lisp.TTLDelete
					}
					m.Records = append(m.Records, rec)
				}
				r := registering{MapRegister: m, from: addrs[0], site: p.sites["cloud"], key: &p.sites["cloud"].ControllerKeys[0], controller: true}
				if len(m.Records) > 0 {
					c.register(now, r)
				}
			case 5:
				st := State{Nonces: nonces}
				for _, v := range svcs {
					st.Services = append(st.Services, v)
				}
				for _, r := range regs {
					st.Registrations = append(st.Registrations, r)
				}
				for _, v := range subs {
					st.Subscriptions = append(st.Subscriptions, v)
				}
				c = newCore(p, st, now)
				c.tick(now)
			}
			checkCore(t, c, now)
			for eid, e := range c.entries {
				if old, ok := last[eid]; ok && !e.merged() && old.XTRID == e.mapping.XTRID && old.Version.Newer(e.mapping.Version) {
					t.Fatalf("%s went back from version %d to %d of the same xTR", eid, old.Version, e.mapping.Version)
				}
				if old, ok := last[eid]; ok && precedes(e.mapping, old) && e.mapping.Version != old.Version {
					t.Fatalf("%s went back from version %d to %d", eid, old.Version, e.mapping.Version)
				}
				last[eid] = e.mapping
			}
			for eid := range last {
				if c.entries[eid] == nil {
					delete(last, eid) // forgotten, after a month
				}
			}
			for range 2 {
				batch := c.takeBatch()
				apply(regs, batch.Registrations)
				apply(svcs, batch.Services)
				apply(subs, batch.Subscriptions)
				for k, n := range batch.Nonces {
					nonces[k] = n
				}
				c.committed(now, batch)
				out := c.take()
				sent = slices.Concat(out.sends, out.bulk, batch.sends)
				for _, s := range sent {
					encodable(t, s)
				}
			}
			// What is stored is what is served.
			for eid, e := range c.entries {
				if r, ok := regs[eid]; !ok || !r.Mapping.Equal(e.mapping) || len(r.Registrants) != len(e.regs) {
					t.Fatalf("%s: stored %+v, served %+v", eid, r, e.mapping)
				}
			}
			for eid, v := range c.services.known {
				if st, ok := svcs[eid]; !ok || !st.Mapping.Equal(v.Mapping) {
					t.Fatalf("%s: stored %+v, served %+v", eid, st, v.Mapping)
				}
			}
			if len(svcs) != len(c.services.known) {
				t.Fatalf("stored %d services, served %d", len(svcs), len(c.services.known))
			}
			if len(regs) != len(c.entries) || len(subs) != len(c.subs) {
				t.Fatalf("stored %d EIDs and %d subscriptions, served %d and %d", len(regs), len(subs), len(c.entries), len(c.subs))
			}
		}
	})
}

// checkCore checks that the parts of the state fit together.
func checkCore(t *testing.T, c *core, now time.Time) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf(format, args...)
	}
	live := 0
	for eid, e := range c.entries {
		got, ok := c.live.Get(eid)
		switch {
		case e.mapping.EID != eid:
			fail("%s is kept as %s", e.mapping.EID, eid)
		case ok != e.registered() || ok && got != e:
			fail("%s: registered %v, in the table %v", eid, e.registered(), ok)
		case e.mapping.Version == 0:
			fail("%s has no version", eid)
		case !e.registered() && (len(e.mapping.Locators) > 0 || e.mapping.TTL != 0):
			fail("%s is withdrawn and has %+v", eid, e.mapping)
		case e.alarm.pos == 0:
			fail("%s has no deadline", eid)
		case len(e.regs) > 1 && !e.merged():
			fail("%s has %d registrants that do not merge", eid, len(e.regs))
		case !slices.IsSortedFunc(e.mapping.Locators, lisp.CompareLocators):
			fail("%s has unsorted locators", eid)
		}
		if ok {
			live++
		}
	}
	if live != c.live.Len() {
		fail("%d are registered, the table has %d", live, c.live.Len())
	}
	checkServices(t, c)
	for i, a := range c.alarms {
		if a.pos != i+1 {
			fail("alarm %d believes that it is %d", i, a.pos)
		}
		if a.at.Before(now) {
			fail("an alarm of %v ago was not heard", now.Sub(a.at))
		}
	}
	for k, p := range c.pending {
		if p.pendingKey != k || p.alarm.pos == 0 || !slices.Contains(c.byNonce[p.msg.Nonce], p) {
			fail("pending %+v does not fit", k)
		}
	}
	n := 0
	for _, ps := range c.byNonce {
		n += len(ps)
	}
	if n != len(c.pending) {
		fail("%d pending by nonce, %d by key", n, len(c.pending))
	}
	n = 0
	for eid, at := range c.subsAt.All() {
		for _, s := range at {
			if n++; s.EID != eid || c.subs[s.SubscriptionKey] != s {
				fail("subscription %+v does not fit", s.SubscriptionKey)
			}
			if s.Reserved < s.sent {
				fail("nonce %d of %+v is not reserved", s.sent, s.SubscriptionKey)
			}
		}
	}
	if n != len(c.subs) {
		fail("%d subscriptions by prefix, %d by key", n, len(c.subs))
	}
	_ = fmt.Sprint(c.mappingRows(now), c.registrationRows(now), c.serviceRows(now), c.subscriberRows(now), c.explain(now, mustEID(web)))
}

// checkServices checks that the tables of services fit together, and that one-to-one holds.
func checkServices(t *testing.T, c *core) {
	t.Helper()
	live, insides := 0, [2][]lisp.EID{}
	for eid, s := range c.services.known {
		got, ok := c.services.outsides.Get(eid)
		switch {
		case s.Mapping.EID != eid || ok != s.registered() || ok && got != s:
			t.Fatalf("%s: %+v, in the table %v", eid, s.Mapping, ok)
		case s.Mapping.Version == 0 || !s.Mapping.IsService() || len(s.Mapping.Locators) > 0 || !s.Mapping.XTRID.IsZero():
			t.Fatalf("%s: %+v", eid, s.Mapping)
		case s.registered() != (s.alarm.pos == 0):
			t.Fatalf("%s: registered %v, and its alarm is at %d", eid, s.registered(), s.alarm.pos)
		case !ok:
			continue
		}
		live++
		for at, e := range c.live.All() {
			if eid.Contains(at) && !e.merged() {
				t.Fatalf("%s is a service address, and the EID of %+v", eid, e.mapping)
			}
		}
		family := 1
		if eid.Prefix.Addr().Is4() {
			family = 0
		}
		insides[family] = append(insides[family], lisp.MakeEID(0, s.Mapping.Inside))
		for other, o := range c.services.known {
			if !o.registered() {
				continue
			}
			same := other.Prefix.Addr().Is4() == eid.Prefix.Addr().Is4()
			if other != eid && (other.Prefix.Overlaps(eid.Prefix) || same && o.Mapping.Inside.Overlaps(s.Mapping.Inside)) ||
				other.Prefix.Overlaps(s.Mapping.Inside) {
				t.Fatalf("%+v and %+v overlap", s.Mapping, o.Mapping)
			}
		}
	}
	if live != c.services.outsides.Len() {
		t.Fatalf("%d services, the table has %d", live, c.services.outsides.Len())
	}
	for family, want := range insides {
		got := []lisp.EID{}
		for eid, s := range c.services.insides[family].All() {
			if lisp.MakeEID(0, s.Mapping.Inside) != eid {
				t.Fatalf("%+v is in the table of EIDs at %s", s.Mapping, eid)
			}
			got = append(got, eid)
		}
		slices.SortFunc(want, lisp.EID.Compare)
		if !slices.Equal(got, want) {
			t.Fatalf("the table of EIDs has %v, want %v", got, want)
		}
	}
}
