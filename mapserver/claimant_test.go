package mapserver

import (
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// claimant is the xTR's side of DESIGN.md section 3 for one EID, as the property test needs it: a state
// machine that is told what happens and gives out what it sends.
type claimant interface {
	// Runs: the VM is seen to run here. It is evidence, good until Gone or Restart.
	Runs(now time.Time)
	// Gone: the VM is known not to run here any more (it was paused for its migration, or stopped).
	Gone(now time.Time)
	// Removed: after Gone, the VM will not come back (its interface is removed), and nobody said where it
	// is. An EID that is still ours is withdrawn.
	Removed(now time.Time)
	// Learn: the controller says, with its prepare, which version the EID has.
	Learn(v lisp.Version)
	// Notified: a Map-Notify came from Map-Server ms.
	Notified(now time.Time, ms int, m *lisp.MapNotify)
	// Tick does what is due; Deadline is when it wants to be called, zero if never.
	Tick(now time.Time)
	Deadline() time.Time
	// Restart: the process was not there for a while and has only what it had stored.
	Restart(now time.Time)
	// Hosts reports whether it believes that the EID is local.
	Hosts() bool
	// Take hands out what is to be sent.
	Take() []outgoing
}

// outgoing is a message to a Map-Server.
type outgoing struct {
	ms  int
	msg lisp.Message
}

// modelXTR is the smallest claimant that keeps the rules.
type modelXTR struct {
	id      lisp.XTRID
	eid     lisp.EID
	locator lisp.Locator

	// stored
	nonce     uint64
	hosts     bool
	leaving   bool         // withdraws
	version   lisp.Version // of our mapping; 0: claimed, not told yet
	confirmed bool         // a Map-Server told us version
	known     lisp.Version // the highest that we ever heard of

	// not stored
	evidence  bool
	lastClaim time.Time
	claimAt   time.Time // a claim that waits for the limit of one a second
	servers   []modelServer
	out       []outgoing
}

type modelServer struct {
	told  lisp.Version // it told us that it has our mapping with this version
	at    time.Time    // next Map-Register; zero: none
	retry time.Duration
	sent  uint64 // nonce of the last Map-Register
}

const (
	refreshInterval = 60 * time.Second
	claimInterval   = time.Second
)

func newModelXTR(id lisp.XTRID, eid lisp.EID, l lisp.Locator, servers int) *modelXTR {
	return &modelXTR{id: id, eid: eid, locator: l, servers: make([]modelServer, servers)}
}

func (x *modelXTR) Hosts() bool { return x.hosts && !x.leaving }

func (x *modelXTR) Take() []outgoing {
	out := x.out
	x.out = nil
	return out
}

func (x *modelXTR) Learn(v lisp.Version) {
	if v.Newer(x.known) {
		x.known = v
	}
}

func (x *modelXTR) Runs(now time.Time) {
	if x.evidence {
		return
	}
	x.evidence = true
	if !x.hosts || x.leaving {
		x.claim(now)
	}
}

// claim takes the EID: with the version that we know plus one, or 0.
func (x *modelXTR) claim(now time.Time) {
	if !x.lastClaim.IsZero() && now.Sub(x.lastClaim) < claimInterval {
		x.claimAt = x.lastClaim.Add(claimInterval)
		return
	}
	x.claimAt, x.lastClaim = time.Time{}, now
	x.hosts, x.leaving, x.confirmed, x.version = true, false, false, 0
	if x.known != 0 {
		x.version = x.known.Next()
	}
	x.registerEverywhere(now)
}

func (x *modelXTR) registerEverywhere(now time.Time) {
	if x.leaving {
		for i := range x.servers {
			x.servers[i].told = 0
		}
	}
	for i := range x.servers {
		if s := &x.servers[i]; x.version == 0 || s.told != x.version {
			s.told, s.retry = 0, time.Second
			x.register(now, i)
		}
	}
}

func (x *modelXTR) register(now time.Time, ms int) {
	s := &x.servers[ms]
	// A claim needs evidence, also when it is said again.
	if !x.hosts || (!x.confirmed && !x.evidence) {
		s.at = time.Time{}
		return
	}
	x.nonce++
	ttl := lisp.TTL(10)
	if x.leaving {
		ttl = lisp.TTLDelete
	}
	x.out = append(x.out, outgoing{ms, &lisp.MapRegister{ProxyReply: true, WantMapNotify: true, HasXTRID: true,
		XTRID: x.id, Nonce: x.nonce, Records: []lisp.Mapping{{EID: x.eid, TTL: ttl, Version: x.version,
			Locators: []lisp.Locator{x.locator}}}}})
	s.sent = x.nonce
	s.at = now.Add(s.retry)
	s.retry = min(2*s.retry, refreshInterval)
}

func (x *modelXTR) Gone(now time.Time) {
	x.evidence, x.claimAt = false, time.Time{}
	if x.hosts && !x.confirmed {
		x.lose()
	}
}

func (x *modelXTR) Removed(now time.Time) {
	if x.evidence || !x.hosts || x.leaving {
		return
	}
	x.leaving = true
	for i := range x.servers {
		x.servers[i] = modelServer{retry: time.Second}
		x.register(now, i)
	}
}

func (x *modelXTR) lose() {
	x.hosts, x.leaving, x.confirmed, x.version = false, false, false, 0
	for i := range x.servers {
		x.servers[i] = modelServer{}
	}
}

func (x *modelXTR) Notified(now time.Time, ms int, m *lisp.MapNotify) {
	for _, r := range m.Records {
		x.told(now, ms, r, m.XTRID, m.Nonce == x.servers[ms].sent)
	}
	ack := lisp.MapNotifyAck(*m)
	x.out = append(x.out, outgoing{ms, &ack})
}

func (x *modelXTR) told(now time.Time, ms int, r lisp.Mapping, holder lisp.XTRID, answer bool) {
	v := r.Version
	if v.Newer(x.known) {
		x.known = v
	}
	if !x.hosts {
		return
	}
	s := &x.servers[ms]
	if x.leaving && (holder != x.id || r.TTL == lisp.TTLDelete) {
		// This one has nothing of ours any more.
		s.at = time.Time{}
		for _, s := range x.servers {
			if !s.at.IsZero() {
				return
			}
		}
		x.lose()
		return
	}
	switch {
	case holder == x.id && (x.version == 0 || v.Newer(x.version)):
		// Take the highest that we are told, and say it everywhere.
		x.version, x.confirmed = v, true
		if r.TTL != lisp.TTLDelete {
			x.answered(now, s, v)
		} // otherwise it remembers the version, and that is all
		x.registerEverywhere(now)
	case holder == x.id && v == x.version:
		x.confirmed = true
		x.answered(now, s, v)
	case holder != x.id && (v.Newer(x.version) || (v == x.version && holder.Compare(x.id) < 0)):
		if x.evidence {
			x.claim(now)
			return
		}
		x.lose()
	case answer:
		// An older mapping, ours or not, in answer to ours: the EID is frozen there. Ask again later.
		s.retry = time.Second
		s.at = now.Add(refreshInterval)
	}
}

func (x *modelXTR) answered(now time.Time, s *modelServer, v lisp.Version) {
	s.told, s.retry = v, refreshInterval
	s.at = now.Add(refreshInterval)
}

func (x *modelXTR) Tick(now time.Time) {
	if !x.claimAt.IsZero() && !now.Before(x.claimAt) {
		x.claimAt = time.Time{}
		x.claim(now)
	}
	for i := range x.servers {
		if s := &x.servers[i]; !s.at.IsZero() && !now.Before(s.at) {
			if s.told == x.version && x.version != 0 && !x.leaving {
				s.told, s.retry = 0, time.Second // a refresh, said again until it is answered
			}
			x.register(now, i)
		}
	}
}

func (x *modelXTR) Deadline() time.Time {
	d := x.claimAt
	for _, s := range x.servers {
		if !s.at.IsZero() && (d.IsZero() || s.at.Before(d)) {
			d = s.at
		}
	}
	return d
}

func (x *modelXTR) Restart(now time.Time) {
	x.evidence, x.claimAt, x.lastClaim = false, time.Time{}, time.Time{}
	x.out = nil
	for i := range x.servers {
		x.servers[i] = modelServer{}
	}
	if x.hosts && !x.confirmed {
		x.lose() // without evidence it is nothing
		return
	}
	if x.hosts {
		x.registerEverywhere(now)
	}
}
