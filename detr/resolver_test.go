package detr

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

const (
	mr1 = "192.0.2.53"
	mr2 = "2001:db8:53::1"
)

// harness drives a resolver and keeps what it did.
type harness struct {
	*resolver
	t      *testing.T
	now    time.Time
	routes map[lisp.EID]fib.Route
	nonce  uint64
	sent   []requestSend // since the last look
	last   *requestSend
	told   []string // release and reject, since the last look
	used   map[lisp.EID]uint64
}

func newHarness(t *testing.T, known ...fib.Route) *harness {
	h := &harness{t: t, now: time.Unix(1e9, 0), routes: make(map[lisp.EID]fib.Route), used: make(map[lisp.EID]uint64)}
	cfg := ready(func(c *Config) { c.ExternalResolvers = []netip.Addr{addr(mr1), addr(mr2)} })
	for _, r := range known {
		h.routes[r.EID] = r
	}
	h.resolver = newResolver(cfg, func() uint64 { h.nonce++; return h.nonce }, func(e lisp.EID) uint64 { return h.used[e] })
	h.resolver.start(known, h.now)
	h.settle()
	return h
}

func (h *harness) settle() {
	o := h.take()
	for _, e := range o.del {
		delete(h.routes, e)
	}
	for _, r := range o.set {
		h.routes[r.EID] = r
	}
	for _, e := range o.release {
		h.told = append(h.told, "release "+e.String())
	}
	for _, e := range o.reject {
		h.told = append(h.told, "reject "+e.String())
	}
	h.sent = append(h.sent, o.sends...)
	if n := len(o.sends); n > 0 {
		h.last = &o.sends[n-1]
	}
}

// pass lets time pass, as the loop does: tick at every deadline.
func (h *harness) pass(d time.Duration) {
	end := h.now.Add(d)
	for {
		h.tick(h.now)
		h.settle()
		n := h.next()
		if n.IsZero() || n.After(end) {
			break
		}
		if !n.After(h.now) {
			h.t.Fatalf("deadline %v does not move on", n)
		}
		h.now = n
	}
	h.now = end
	h.tick(end)
	h.settle()
}

func (h *harness) packet(dst string) { h.packetIn(0, dst) }

func (h *harness) packetIn(iid uint32, dst string) {
	h.miss(iid, addr(dst), h.now)
	h.pass(0)
}

// reply answers the last Map-Request.
func (h *harness) reply(recs ...lisp.Mapping) {
	h.t.Helper()
	s := h.last
	if s == nil {
		h.t.Fatal("nothing was asked")
	}
	if !h.replied(&lisp.MapReply{Nonce: s.msg.Nonce, Records: recs}, s.to, h.now) {
		h.t.Error("the answer is not taken")
	}
	h.pass(0)
}

// asked returns the requests since the last look: "EID@Map-Resolver".
func (h *harness) asked() (as []string) {
	for _, s := range h.sent {
		as = append(as, fmt.Sprintf("%v@%v", s.msg.Records[0].EID, s.to))
	}
	h.sent = nil
	return as
}

func (h *harness) said() []string {
	l := h.told
	h.told = nil
	return l
}

func (h *harness) want(e, does string) {
	h.t.Helper()
	r, ok := h.routes[eid(e)]
	got := ""
	if ok {
		got = doing(r.Do)
		for _, l := range r.Locators {
			got += " " + l.RLOC.String()
		}
	}
	if got != does {
		h.t.Errorf("%s: %q, want %q", e, got, does)
	}
}

func (h *harness) wantSaid(what string, want ...string) {
	h.t.Helper()
	if d := cmp.Diff(want, h.said(), equal); d != "" {
		h.t.Errorf("%s: packets (-want +got):\n%s", what, d)
	}
}

func (h *harness) wantAsked(what string, want ...string) {
	h.t.Helper()
	if d := cmp.Diff(want, h.asked(), equal); d != "" {
		h.t.Errorf("%s: Map-Requests (-want +got):\n%s", what, d)
	}
}

func negative(e string, ttl lisp.TTL, act lisp.Action) lisp.Mapping {
	return lisp.Mapping{EID: eid(e), TTL: ttl, Action: act}
}

func TestResolveLISP(t *testing.T) {
	h := newHarness(t)
	h.packet("203.0.113.10")
	m := h.sent[0].msg
	want := &lisp.MapRequest{
		PITR: true, Nonce: 1, Records: []lisp.RequestRecord{{EID: eid("203.0.113.10/32")}},
		ITRRLOCs: []netip.Addr{addr("100.64.5.2"), addr("2001:db8:100:5::2")},
	}
	if d := cmp.Diff(want, m, equal); d != "" {
		t.Errorf("Map-Request (-want +got):\n%s", d)
	}
	h.packet("203.0.113.10") // the same again: no second question
	h.wantSaid("while it is asked for")
	h.reply(mapping("203.0.113.0/24", 1, "192.0.2.10"))
	h.want("203.0.113.0/24", "encapsulate 192.0.2.10")
	if r := h.routes[eid("203.0.113.0/24")]; !r.Transit {
		t.Error("packets that came encapsulated may not go out")
	}
	h.wantSaid("answered", "release 203.0.113.10/32")
	h.packet("203.0.113.77") // was on its way up
	h.wantSaid("covered", "release 203.0.113.77/32")
	h.wantAsked("all in all", "203.0.113.10/32@"+mr1)
}

// TestNeverAsksForOwn: no packet, no Solicit-Map-Request and no answer makes us ask for, or believe, anything
// about an EID of the cloud.
func TestNeverAsksForOwn(t *testing.T) {
	h := newHarness(t)
	h.packet("198.51.100.99")
	h.packet("2001:db8:e1d::99")
	h.packetIn(7, "203.0.113.10") // another instance must not get out
	h.wantSaid("own", "reject 198.51.100.99/32", "reject 2001:db8:e1d::99/128", "reject [7]203.0.113.10/32")
	h.solicited(&lisp.MapRequest{SMR: true, SourceEID: eid("198.51.100.10/32"), Records: []lisp.RequestRecord{{EID: eid("198.51.100.0/24")}}}, h.now)
	h.pass(time.Minute)
	h.wantAsked("own")

	h.packet("203.0.113.10")
	h.reply(
		mapping("203.0.113.0/24", 1, "192.0.2.10"),
		mapping("198.51.100.10/32", 9, "192.0.2.66"),  // beside the question
		mapping("[7]203.0.113.0/24", 9, "192.0.2.66"), // another instance
	)
	h.want("198.51.100.10/32", "")
	h.want("[7]203.0.113.0/24", "")
	h.wantAsked("first", "203.0.113.10/32@"+mr1)

	// A prefix that covers ours is fine (ours is more specific); a more-specific inside ours is not.
	h.packet("198.51.99.1")
	h.reply(mapping("198.51.0.0/16", 1, "192.0.2.10"), mapping("198.51.100.10/32", 9, "192.0.2.66"), mapping("198.51.100.0/24", 9, "192.0.2.66"))
	h.want("198.51.0.0/16", "encapsulate 192.0.2.10")
	h.want("198.51.100.10/32", "")
	h.want("198.51.100.0/24", "")
	if n := h.counts["reply/own EID"]; n != 2 {
		t.Errorf("%d records about own EIDs were counted, want 2", n)
	}
}

// TestLoops: locators that would bring packets back are not used.
func TestLoops(t *testing.T) {
	for _, c := range []struct {
		rlocs []string
		want  string
	}{
		{[]string{"100.64.5.2"}, "drop"},
		{[]string{"100.64.6.2", "192.0.2.10"}, "encapsulate 192.0.2.10"},
		{[]string{"198.51.100.10"}, "drop"},
	} {
		h := newHarness(t)
		h.packet("203.0.113.10")
		h.reply(mapping("203.0.113.0/24", 1, c.rlocs...))
		h.want("203.0.113.0/24", c.want)
	}
}

func TestResolveNegative(t *testing.T) {
	for _, c := range []struct {
		name string
		rec  lisp.Mapping
		want string // for the route of the record
		said string
	}{
		{"natively", negative("203.0.112.0/20", 15, lisp.ActNativelyForward), "native", "release 203.0.113.10/32"},
		{"no action", negative("203.0.113.10/32", 15, lisp.ActNone), "native", "release 203.0.113.10/32"},
		{"a hole around everything of ours", negative("0.0.0.0/0", 15, lisp.ActNativelyForward), "native", "release 203.0.113.10/32"},
		{"drop", negative("203.0.113.0/24", 15, lisp.ActDrop), "drop", "release 203.0.113.10/32"},
		{"policy", negative("203.0.113.0/24", 15, lisp.ActDropPolicyDenied), "drop", "release 203.0.113.10/32"},
		{"authentication", negative("203.0.113.0/24", 15, lisp.ActDropAuthFailure), "drop", "release 203.0.113.10/32"},
		{"reserved", negative("203.0.113.0/24", 15, 7), "drop", "release 203.0.113.10/32"},
		{"ask each time", negative("203.0.113.0/24", 15, lisp.ActSendMapRequest), "", "reject 203.0.113.10/32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.packet("203.0.113.10")
			h.reply(c.rec)
			h.want(c.rec.EID.String(), c.want)
			h.wantSaid("answered", c.said)
			h.asked()
			h.pass(time.Second)
			h.wantAsked("nothing more")
		})
	}
}

// TestNobodyAnswers: after a few tries, one Map-Resolver after the other, packets go natively for a while;
// what was known before stands.
func TestNobodyAnswers(t *testing.T) {
	h := newHarness(t)
	h.packet("203.0.113.10")
	h.pass(2500 * time.Millisecond)
	h.wantSaid("still asking")
	h.wantAsked("one a second, in turn", "203.0.113.10/32@"+mr1, "203.0.113.10/32@"+mr2, "203.0.113.10/32@"+mr1)
	h.pass(500 * time.Millisecond)
	h.want("203.0.113.10/32", "native")
	h.wantSaid("given up", "release 203.0.113.10/32")
	h.pass(time.Minute)
	h.want("203.0.113.10/32", "")
	h.packet("203.0.113.10")
	h.wantAsked("again", "203.0.113.10/32@"+mr1)
	h.reply(mapping("203.0.113.0/24", 1, "192.0.2.10"))
	h.said()

	// The entry is used, and due for a refresh; nobody answers.
	h.pass(time.Hour)
	h.used[eid("203.0.113.0/24")]++
	h.pass(21*time.Hour + 30*time.Minute)
	if n := len(h.asked()); n != 3 {
		t.Errorf("%d Map-Requests for the refresh, want 3", n)
	}
	h.want("203.0.113.0/24", "encapsulate 192.0.2.10")
	h.pass(2 * time.Hour)
	h.want("203.0.113.0/24", "")
}

// TestLifetime: entries expire by their TTL; those that are used are asked for again before.
func TestLifetime(t *testing.T) {
	h := newHarness(t)
	for _, e := range []string{"203.0.113.10", "203.0.112.10"} {
		h.packet(e)
		h.reply(lisp.Mapping{EID: lisp.MakeEID(0, netip.PrefixFrom(addr(e), 24)), TTL: 10, Version: 1, Locators: locs("192.0.2.10")})
	}
	h.asked()
	h.used[eid("203.0.113.0/24")] = 5
	h.pass(9*time.Minute + 5*time.Second)
	h.wantAsked("the used one", "203.0.113.0/32@"+mr1, "203.0.113.0/32@"+mr2, "203.0.113.0/32@"+mr1)
	h.packet("203.0.113.9") // asks nobody: it is covered
	h.wantAsked("covered")
	h.pass(time.Minute)
	h.want("203.0.112.0/24", "")
	h.want("203.0.113.0/24", "") // nobody answered
	h.packet("203.0.113.10")
	h.reply(negative("203.0.113.0/24", lisp.TTLDelete, lisp.ActNativelyForward))
	h.want("203.0.113.0/24", "native")
	h.pass(zeroTTL + time.Second)
	h.want("203.0.113.0/24", "")
	if h.cache.Len() != 0 || len(h.queries) != 0 || len(h.asks) != 0 || !h.next().IsZero() {
		t.Errorf("left behind: %d entries, %d queries, %d asks, %v", h.cache.Len(), len(h.queries), len(h.asks), h.next())
	}
}

// TestRefreshReplaces: an answer with a less-specific prefix removes a more-specific that is not in it.
func TestRefreshReplaces(t *testing.T) {
	h := newHarness(t)
	h.packet("203.0.113.10")
	h.reply(mapping("203.0.113.0/24", 1, "192.0.2.10"), mapping("203.0.113.10/32", 1, "192.0.2.11"))
	h.want("203.0.113.10/32", "encapsulate 192.0.2.11")
	h.solicited(&lisp.MapRequest{SMR: true, Records: []lisp.RequestRecord{{EID: eid("203.0.113.10/32")}}}, h.now)
	h.pass(0)
	h.reply(mapping("203.0.113.0/24", 2, "192.0.2.12"))
	h.want("203.0.113.0/24", "encapsulate 192.0.2.12")
	h.want("203.0.113.10/32", "")
}

// TestBadReplies: what does not answer the question changes nothing.
func TestBadReplies(t *testing.T) {
	h := newHarness(t)
	h.packet("203.0.113.10")
	nonce := h.sent[0].msg.Nonce
	if h.replied(&lisp.MapReply{Nonce: nonce + 1, Records: []lisp.Mapping{mapping("203.0.113.0/24", 1, "192.0.2.66")}}, addr(mr1), h.now) {
		t.Error("an answer with another nonce is taken")
	}
	h.replied(&lisp.MapReply{Nonce: nonce, Records: []lisp.Mapping{mapping("203.0.114.0/24", 1, "192.0.2.66")}}, addr(mr1), h.now)
	h.replied(&lisp.MapReply{Nonce: nonce}, addr(mr1), h.now)
	h.pass(0)
	if len(h.routes) != 0 {
		t.Errorf("routes %v", h.routes)
	}
	h.wantSaid("nothing")
	h.reply(mapping("203.0.113.0/24", 1, "192.0.2.10"))
	h.want("203.0.113.0/24", "encapsulate 192.0.2.10")
	if h.replied(&lisp.MapReply{Nonce: nonce, Records: []lisp.Mapping{mapping("203.0.113.0/24", 1, "192.0.2.66")}}, addr(mr1), h.now) {
		t.Error("a second answer is taken")
	}
}

func TestSolicited(t *testing.T) {
	h := newHarness(t)
	h.packet("203.0.113.10")
	h.reply(mapping("203.0.113.0/24", 1, "192.0.2.10"))
	h.packet("192.88.99.1")
	h.reply(negative("192.88.99.0/24", 15, lisp.ActNativelyForward))
	h.asked()
	smr := func(e string) {
		h.solicited(&lisp.MapRequest{SMR: true, Records: []lisp.RequestRecord{{EID: eid(e)}}}, h.now)
		h.pass(0)
	}
	smr("203.0.115.1/32") // unknown
	smr("192.88.99.1/32") // negative
	h.wantAsked("no entry")
	smr("203.0.113.0/24")
	if len(h.sent) != 1 || !h.sent[0].msg.SMRInvoked || !h.sent[0].msg.PITR {
		t.Fatalf("sent %+v", h.sent)
	}
	h.reply(mapping("203.0.113.0/24", 2, "192.0.2.20"))
	h.want("203.0.113.0/24", "encapsulate 192.0.2.20")
	h.asked()
	for range 10 {
		smr("203.0.113.0/24")
	}
	h.wantAsked("limited")
	h.pass(smrInterval)
	smr("203.0.113.7/32")
	h.wantAsked("later", "203.0.113.7/32@"+mr1)
}

// TestLimits: neither the map-cache nor the questions grow without bounds.
func TestLimits(t *testing.T) {
	h := newHarness(t)
	h.cfg.MaxMapCache = 100
	for i := range 300 {
		h.packet(fmt.Sprintf("203.0.%d.%d", i/256, i%256))
		h.reply(mapping(fmt.Sprintf("203.0.%d.%d/32", i/256, i%256), 1, "192.0.2.10"))
	}
	if n := h.cache.Len(); n != 100 || len(h.routes) != n {
		t.Errorf("%d entries, %d routes", n, len(h.routes))
	}
	h = newHarness(t)
	for i := range maxQueries + 10 {
		h.miss(0, netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), h.now)
	}
	h.settle()
	if n := len(h.said()); n != 10 {
		t.Errorf("%d packets rejected, want 10", n)
	}
}

// TestNoResolver: without external Map-Resolvers everything outside is native, and nothing is asked.
func TestNoResolver(t *testing.T) {
	h := &harness{t: t, now: time.Unix(1e9, 0), routes: make(map[lisp.EID]fib.Route)}
	h.resolver = newResolver(ready(), func() uint64 { return 1 }, func(lisp.EID) uint64 { return 0 })
	h.resolver.start([]fib.Route{{EID: eid("203.0.113.0/24"), Do: fib.Encap, Locators: locs("192.0.2.10")}}, h.now)
	h.routes[eid("203.0.113.0/24")] = fib.Route{}
	h.settle()
	h.want("0.0.0.0/0", "native")
	h.want("::/0", "native")
	h.want("203.0.113.0/24", "")
	h.packet("203.0.113.10")
	h.wantAsked("nothing")
}

// TestRestart: routes of before a restart go on, are asked for again at once, and go when nobody confirms
// them.
func TestRestart(t *testing.T) {
	h := newHarness(t,
		fib.Route{EID: eid("203.0.113.0/24"), Do: fib.Encap, Locators: locs("192.0.2.10"), Transit: true},
		fib.Route{EID: eid("203.0.114.0/24"), Do: fib.Native},
		fib.Route{EID: eid("[7]203.0.114.0/24"), Do: fib.Native},                                            // another instance
		fib.Route{EID: eid("0.0.0.0/0"), Do: fib.Native},                                                    // there was no Map-Resolver before
		fib.Route{EID: eid("198.51.100.10/32"), Do: fib.Encap, Locators: locs("100.64.1.2"), Transit: true}, // the anchor's
	)
	h.want("203.0.113.0/24", "encapsulate 192.0.2.10")
	h.want("[7]203.0.114.0/24", "")
	h.want("198.51.100.10/32", "encapsulate 100.64.1.2")
	h.pass(600 * time.Millisecond)
	for i, s := range h.sent {
		rec := mapping("203.0.113.0/24", 2, "192.0.2.20")
		if s.msg.Records[0].EID != eid("203.0.113.0/32") {
			continue
		}
		if !h.replied(&lisp.MapReply{Nonce: s.msg.Nonce, Records: []lisp.Mapping{rec}}, s.to, h.now) {
			t.Errorf("answer %d is not taken", i)
		}
	}
	got := h.asked()
	for _, want := range []string{"203.0.113.0/32@" + mr1, "203.0.114.0/32@" + mr1, "0.0.0.0/32@" + mr1} {
		if !slices.Contains(got, want) {
			t.Errorf("not asked: %s in %s", want, strings.Join(got, ", "))
		}
	}
	h.pass(0)
	h.want("203.0.113.0/24", "encapsulate 192.0.2.20")
	h.want("203.0.114.0/24", "native")
	h.pass(adoptTime)
	h.want("203.0.113.0/24", "encapsulate 192.0.2.20")
	h.want("203.0.114.0/24", "")
	h.want("198.51.100.10/32", "encapsulate 100.64.1.2")
}
