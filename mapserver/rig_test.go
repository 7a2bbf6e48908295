package mapserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// rig drives a core by hand, with messages as they travel.
type rig struct {
	t     *testing.T
	c     *core
	now   time.Time
	nonce uint64

	// effects of the last event
	early, bulk, late []send
	put               []lisp.EID
	batch             batch
	reports           []string

	// what is durable
	regs   map[lisp.EID]Registration
	svcs   map[lisp.EID]Service
	nonces map[NonceKey]uint64
	subs   map[SubscriptionKey]Subscription
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	p, err := newPolicy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, c: newCore(p, State{}, epoch), now: epoch, regs: map[lisp.EID]Registration{},
		svcs: map[lisp.EID]Service{}, nonces: map[NonceKey]uint64{}, subs: map[SubscriptionKey]Subscription{}}
}

// restart begins anew with what is durable.
func (r *rig) restart() {
	r.t.Helper()
	st := State{Nonces: r.nonces, Registrations: slices.Collect(maps.Values(r.regs)),
		Services: slices.Collect(maps.Values(r.svcs)), Subscriptions: slices.Collect(maps.Values(r.subs))}
	r.c = newCore(r.c.policy, st, r.now)
	r.took()
}

func apply[K comparable, V any](to map[K]V, changes map[K]*V) {
	for k, v := range changes {
		if v == nil {
			delete(to, k)
		} else {
			to[k] = *v
		}
	}
}

func cloud() Config {
	return Config{Name: "test", Sites: []Site{
		{Name: "cloud", Keys: []lisp.Key{propKey}, ControllerKeys: []lisp.Key{ctlKey}, AcceptMoreSpecifics: true,
			Prefixes: []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8:e1d::/48"), mustEID("[7]10.0.0.0/8")}},
		{Name: "exact", Keys: []lisp.Key{{ID: 5, Algorithm: lisp.AlgHMACSHA1_96, Secret: "old"}}, AnyNonce: true,
			Prefixes: []lisp.EID{mustEID("203.0.113.0/24")}, RLOCs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
	}}
}

func mustEID(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

// took hands out the effects of an event as the loop would.
func (r *rig) took() {
	out := r.c.take()
	r.early, r.bulk, r.put, r.reports = out.sends, out.bulk, out.put, nil
	for _, l := range out.reports {
		r.reports = append(r.reports, l.text+" "+fmt.Sprint(l.attrs...))
	}
	r.batch = r.c.takeBatch()
	r.late = r.batch.sends
}

// commit makes the last batch durable; what that sets free comes on top of the effects.
func (r *rig) commit() {
	early, bulk, put, reports := r.early, r.bulk, r.put, r.reports
	b := r.batch
	apply(r.regs, b.Registrations)
	apply(r.svcs, b.Services)
	apply(r.subs, b.Subscriptions)
	maps.Copy(r.nonces, b.Nonces)
	r.c.committed(r.now, b)
	r.took()
	r.early, r.bulk, r.put, r.late = append(early, r.early...), append(bulk, r.bulk...), append(put, r.put...), b.sends
	r.reports = append(reports, r.reports...)
}

func (r *rig) wait(d time.Duration) {
	r.now = r.now.Add(d)
	r.c.tick(r.now)
	r.took()
}

// packet is m as the endpoint hands it over.
func (r *rig) packet(from string, m lisp.Message, k *lisp.Key) control.Packet {
	r.t.Helper()
	var raw []byte
	var err error
	if k != nil {
		raw, err = lisp.AppendSigned(nil, m, *k)
	} else {
		raw, err = lisp.Append(nil, m)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := lisp.Decode(raw)
	if err != nil {
		r.t.Fatal(err)
	}
	return control.Packet{Msg: got, Raw: raw, From: netip.AddrPortFrom(netip.MustParseAddr(from), 4342)}
}

func (r *rig) handle(p control.Packet) {
	handle(r.c, r.now, p)
	r.took()
}

// xtr is a registering xTR; its fields are what differs from test to test.
type xtr struct {
	id      byte // 0: none
	addr    string
	rlocs   []string // empty: addr
	key     *lisp.Key
	version lisp.Version
	ttl     lisp.TTL
	set     func(*lisp.MapRegister)
}

func loc(s string) lisp.Locator {
	l := lisp.Locator{Priority: 1, Weight: 100, Reachable: true, Local: true}
	a, prio, ok := strings.Cut(s, " ")
	if ok {
		fmt.Sscan(prio, &l.Priority)
	}
	l.RLOC = netip.MustParseAddr(a)
	return l
}

// register sends a Map-Register for eids and commits it.
func (r *rig) register(x xtr, eids ...string) control.Packet {
	r.t.Helper()
	p := r.message(x, eids...)
	r.handle(p)
	r.commit()
	return p
}

func (r *rig) message(x xtr, eids ...string) control.Packet {
	r.t.Helper()
	r.nonce++
	m := &lisp.MapRegister{ProxyReply: true, WantMapNotify: true, HasXTRID: x.id != 0, XTRID: lisp.XTRID{15: x.id},
		Nonce: r.nonce}
	if x.id != 0 {
		m.SiteID = 77
	}
	rlocs := x.rlocs
	if rlocs == nil {
		rlocs = []string{x.addr}
	}
	ttl := x.ttl
	if ttl == 0 {
		ttl = 10
	}
	if ttl == withdrawn {
		ttl = 0
	}
	for _, e := range eids {
		rec := lisp.Mapping{EID: mustEID(e), TTL: ttl, Version: x.version}
		for _, l := range rlocs {
			rec.Locators = append(rec.Locators, loc(l))
		}
		m.Records = append(m.Records, rec)
	}
	if x.set != nil {
		x.set(m)
	}
	k := x.key
	if k == nil {
		k = &propKey
	}
	return r.packet(x.addr, m, k)
}

// withdrawn as a TTL of an xtr means TTL 0.
const withdrawn lisp.TTL = 1<<31 - 1

// lines prints sends, one a line: "to message".
func lines(ss []send) []string {
	var out []string
	for _, s := range ss {
		out = append(out, s.to[0].String()+" "+line(s.msg))
	}
	return out
}

func line(m lisp.Message) string {
	switch m := m.(type) {
	case *lisp.MapNotify:
		return fmt.Sprintf("Map-Notify %s of %d", records(m.Records), m.XTRID[15])
	case *lisp.MapReply:
		return "Map-Reply " + records(m.Records)
	case *lisp.ECM:
		return "ECM to " + m.Dest.String()
	}
	return fmt.Sprintf("%T", m)
}

func records(ms []lisp.Mapping) string {
	var out []string
	for _, m := range ms {
		s := fmt.Sprintf("%s v%d ttl %d", m.EID, m.Version, m.TTL)
		for _, l := range m.Locators {
			s += " " + l.RLOC.String()
		}
		switch {
		case m.IsService():
			s += " is " + m.Inside.String()
		case m.Negative() && m.TTL != 0:
			s += " " + m.Action.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

// want compares what was sent with lines in their order.
func (r *rig) want(what string, got []send, want ...string) {
	r.t.Helper()
	if g, w := strings.Join(lines(got), "\n"), strings.Join(want, "\n"); g != w {
		r.t.Errorf("%s:\n got: %s\nwant: %s", what, g, w)
	}
}

func (r *rig) count(name string, want uint64) {
	r.t.Helper()
	if got := r.c.counters[name]; got != want {
		r.t.Errorf("counter %s is %d, want %d; all: %v", name, got, want, r.c.counters)
	}
}

// mapping is "v1 of 2 at RLOCs" of an EID that is registered.
func (r *rig) mapping(eid string) string {
	m, ok := r.c.current(mustEID(eid))
	if !ok {
		return "none"
	}
	s := fmt.Sprintf("v%d of %d at", m.Version, m.XTRID[15])
	for _, l := range m.Locators {
		s += " " + l.RLOC.String()
	}
	return s
}

func (r *rig) wantMapping(eid, want string) {
	r.t.Helper()
	if got := r.mapping(eid); got != want {
		r.t.Errorf("%s is %s, want %s", eid, got, want)
	}
}

// ack acknowledges a Map-Notify as the xTR at from.
func (r *rig) ack(from string, s send, k *lisp.Key) {
	r.t.Helper()
	r.handle(r.packet(from, s.msg.(*lisp.MapNotify).Ack(), k))
}
