package detr

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// A registrar registers the aggregates with the external Map-Servers (RFC 9301 section 5.6): all aggregates
// in one Map-Register to each, with our own RLOCs only and the merge bit, so that the Map-Server unites the
// RLOCs of all D-ETRs. There is nothing to disagree about: the version is always 0, which leaves it to the
// Map-Server.
type registrar struct {
	records  []lisp.Mapping
	xtr      lisp.XTRID
	site     lisp.SiteID
	interval time.Duration
	nonce    func(now time.Time) uint64
	servers  []registration
	serving  bool
}

// registration is what one Map-Server knows of us.
type registration struct {
	Server
	state state
	nonce uint64                      // of the last Map-Register
	tries int                         // sent since it last confirmed
	next  time.Time                   // when to send; zero: never
	heard time.Time                   // when it last confirmed
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

func newRegistrar(cfg *Config, nonce func(time.Time) uint64) *registrar {
	r := &registrar{xtr: cfg.XTRID, site: cfg.SiteID, interval: cfg.RegisterInterval, nonce: nonce}
	locs := slices.Clone(cfg.RLOCs)
	for i := range locs {
		locs[i].Local = true
	}
	for _, e := range cfg.Aggregates {
		r.records = append(r.records, lisp.Mapping{
			EID: e, TTL: aggregateTTL, Authoritative: true, Locators: locs, XTRID: cfg.XTRID, SiteID: cfg.SiteID,
		})
	}
	for _, s := range cfg.External {
		r.servers = append(r.servers, registration{Server: s, rlocs: make(map[lisp.EID][]lisp.Locator)})
	}
	return r
}

// serve says whether the aggregates are to be registered.
func (r *registrar) serve(on bool, now time.Time) {
	if r.serving == on {
		return
	}
	r.serving = on
	for i := range r.servers {
		s := &r.servers[i]
		s.tries, s.next = 0, now
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
			ProxyReply: true, WantMapNotify: true, Merge: true, HasXTRID: true, XTRID: r.xtr, SiteID: r.site,
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
			s.state, s.next = stateNone, time.Time{}
		}
	}
	return out
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
	errNotAServer = errors.New("not from an external Map-Server")
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
	s.heard, s.tries = now, 0
	switch s.state {
	case stateLeaving:
		s.state, s.next = stateNone, time.Time{}
	case stateSent, stateHeard:
		s.state, s.next = stateHeard, now.Add(r.interval)
	}
	return nil, lisp.Key{}, nil
}
