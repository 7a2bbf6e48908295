package detr

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// A registrar registers prefixes that D-ETRs stand for with a set of Map-Servers (RFC 9301 section 5.6): all of
// them in one Map-Register to each, with our own RLOCs only and the merge bit, so that the Map-Server unites the
// RLOCs of all D-ETRs. There is nothing to disagree about: the version is always 0, which leaves it to the
// Map-Server.
//
// There are two: one tells the external Map-Servers of the aggregates and the service prefixes, the other the
// cloud's own of the service prefixes and the pool.
type registrar struct {
	registered
	records []lisp.Mapping
	xtr     lisp.XTRID
	site    lisp.SiteID
	nonce   func(now time.Time) uint64
	servers []registration
	serving bool
}

// registered is what a registrar registers, where and for how long.
type registered struct {
	where    string // for people
	eids     []lisp.EID
	at       []Server
	ttl      lisp.TTL
	useTTL   bool // the registration lives as long as the records do, not as long as the Map-Server likes
	interval time.Duration
}

// external is what is registered outside: moves inside need no update there.
func (c *Config) external() registered {
	return registered{where: "outside", eids: c.outward, at: c.External, ttl: aggregateTTL, interval: c.RegisterInterval}
}

// An xTR that is not subscribed to the pool asks again when its answer expires, and a Map-Server forgets a D-ETR
// that is gone without a word when its registration does: both are as short as a record can say.
const (
	homeTTL      = lisp.TTL(1)
	homeInterval = 20 * time.Second
)

// internal is what is registered with the cloud's own Map-Servers.
func (c *Config) internal() registered {
	r := registered{
		where: "cloud", at: c.Services.MapServers, ttl: homeTTL, useTTL: true, interval: min(c.RegisterInterval, homeInterval),
	}
	for _, p := range c.Services.Prefixes {
		r.eids = append(r.eids, lisp.MakeEID(0, p))
	}
	if c.Services.Pool.IsValid() {
		r.eids = append(r.eids, lisp.MakeEID(0, c.Services.Pool))
	}
	return r
}

// registration is what one Map-Server knows of us.
type registration struct {
	Server
	state state
	nonce uint64                      // of the last Map-Register
	tries int                         // sent since it last confirmed
	next  time.Time                   // when to send; zero: never
	heard time.Time                   // when it last confirmed
	quit  bool                        // it has not confirmed that we left, and is not told any more
	rlocs map[lisp.EID][]lisp.Locator // of all D-ETRs, as it says
}

// state is how far a registration is.
type state uint8

const (
	stateNone    state = iota // it knows nothing of us, as far as we know
	stateSent                 // a Map-Register is on the way
	stateHeard                // it has confirmed
	stateLeaving              // it is told that we do not serve
)

func (s state) String() string {
	return [...]string{"none", "sent", "registered", "withdrawing"}[s]
}

const (
	registerRetry = time.Second // doubles up to the interval (RFC 9301 section 5.6)
	leaveTries    = 3           // Map-Registers with TTL 0; the rest is the Map-Server's timeout
)

func newRegistrar(cfg *Config, what registered, nonce func(time.Time) uint64) *registrar {
	r := &registrar{registered: what, xtr: cfg.XTRID, site: cfg.SiteID, nonce: nonce}
	locs := slices.Clone(cfg.RLOCs)
	for i := range locs {
		locs[i].Local = true
	}
	for _, e := range what.eids {
		r.records = append(r.records, lisp.Mapping{
			EID: e, TTL: what.ttl, Authoritative: true, Locators: locs, XTRID: cfg.XTRID, SiteID: cfg.SiteID,
		})
	}
	if len(r.records) == 0 {
		return r // a Map-Register without a record says nothing
	}
	for _, s := range what.at {
		r.servers = append(r.servers, registration{Server: s, rlocs: make(map[lisp.EID][]lisp.Locator)})
	}
	return r
}

// serve says whether the prefixes are to be registered.
func (r *registrar) serve(on bool, now time.Time) {
	if r.serving == on {
		return
	}
	r.serving = on
	for i := range r.servers {
		s := &r.servers[i]
		s.tries, s.next, s.quit = 0, now, false
		if on {
			s.state = stateNone
			continue
		}
		if s.state == stateNone {
			s.next = time.Time{}
			continue
		}
		s.state = stateLeaving
	}
}

// leave tells all Map-Servers that we do not serve, whatever they know: those of before a restart may not have heard.
func (r *registrar) leave(now time.Time) {
	for i := range r.servers {
		s := &r.servers[i]
		s.state, s.tries, s.next = stateLeaving, 0, now
	}
}

// registerSend is a Map-Register for a Map-Server, to be signed.
type registerSend struct {
	to  Server
	msg *lisp.MapRegister
}

// tick returns what is to be sent.
func (r *registrar) tick(now time.Time) []registerSend {
	var out []registerSend
	for i := range r.servers {
		s := &r.servers[i]
		if s.next.IsZero() || s.next.After(now) {
			continue
		}
		s.nonce = r.nonce(now)
		m := &lisp.MapRegister{
			ProxyReply: true, WantMapNotify: true, Merge: true, UseTTL: r.useTTL, HasXTRID: true, XTRID: r.xtr, SiteID: r.site,
			Nonce: s.nonce, Records: slices.Clone(r.records),
		}
		if s.state == stateLeaving {
			for i := range m.Records {
				m.Records[i].TTL = lisp.TTLDelete
			}
		} else if s.state == stateNone {
			s.state = stateSent
		}
		out = append(out, registerSend{s.Server, m})
		s.tries++
		s.next = now.Add(min(registerRetry<<min(s.tries-1, 20), r.interval))
		if s.state == stateLeaving && s.tries >= leaveTries {
			s.state, s.next, s.quit = stateNone, time.Time{}, true
		}
	}
	return out
}

// believing are how many Map-Servers may believe that we serve: until they have confirmed otherwise.
func (r *registrar) believing() (n int) {
	for _, s := range r.servers {
		if s.state != stateNone || s.quit {
			n++
		}
	}
	return n
}

// next is when tick has something to do; zero: never.
func (r *registrar) next() time.Time {
	var t time.Time
	for i := range r.servers {
		t = earlier(t, r.servers[i].next)
	}
	return t
}

// earlier is the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

var (
	errNotAServer = errors.New("not from a Map-Server")
	errNonce      = errors.New("not the nonce of the last Map-Register")
)

// notified takes a Map-Notify. ack is what to answer if it was not asked for (RFC 9301 section 5.7): the
// Map-Server tells every D-ETR when another one comes or goes.
func (r *registrar) notified(from netip.Addr, raw []byte, m *lisp.MapNotify, now time.Time) (ack *lisp.MapNotifyAck, key lisp.Key, err error) {
	i := slices.IndexFunc(r.servers, func(s registration) bool { return s.Addr == from })
	if i < 0 {
		return nil, lisp.Key{}, errNotAServer
	}
	s := &r.servers[i]
	if err := lisp.Verify(raw, m, s.Key); err != nil {
		return nil, lisp.Key{}, err
	}
	for _, rec := range m.Records {
		if slices.ContainsFunc(r.records, func(o lisp.Mapping) bool { return o.EID == rec.EID }) {
			s.rlocs[rec.EID] = rec.Locators
		}
	}
	if m.Nonce != s.nonce {
		if s.state == stateNone {
			return nil, lisp.Key{}, errNonce
		}
		return &lisp.MapNotifyAck{
			Nonce: m.Nonce, Records: m.Records, HasXTRID: m.HasXTRID, XTRID: m.XTRID, SiteID: m.SiteID,
		}, s.Key, nil
	}
	s.heard, s.tries, s.quit = now, 0, false
	switch s.state {
	case stateLeaving:
		s.state, s.next = stateNone, time.Time{}
	case stateSent, stateHeard:
		s.state, s.next = stateHeard, now.Add(r.interval)
	}
	return nil, lisp.Key{}, nil
}
