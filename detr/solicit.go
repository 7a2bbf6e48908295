package detr

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// A solicitor tells the cloud's xTRs, by Solicit-Map-Requests (RFC 9301 section 6.1), that we serve no more: so
// they ask again at once where the service prefixes and the pool are, and not when what they know expires.
type solicitor struct {
	eids  []lisp.EID
	rlocs []netip.Addr // own ones
	all   []netip.Addr // whom to tell
	queue []netip.Addr // who has not been told
	round int
	at    time.Time // when to go on; zero: never
}

const (
	// solicitAfter is how long the Map-Servers are given to learn it first: what they answer is what counts.
	solicitAfter = 500 * time.Millisecond
	// solicitRounds times everybody is told, solicitAgain apart: an SMR may be lost, and xTRs heed one in 3 s.
	solicitRounds = 2
	solicitAgain  = 4 * time.Second
	// solicitBatch are told at once, solicitPace apart.
	solicitBatch = 100
	solicitPace  = 100 * time.Millisecond
)

func newSolicitor(cfg *Config) solicitor {
	s := solicitor{eids: cfg.internal().eids}
	for _, l := range cfg.RLOCs {
		s.rlocs = append(s.rlocs, l.RLOC)
	}
	return s
}

// begin tells the xTRs at those addresses, soon. Those of a family that we do not have are left out.
func (s *solicitor) begin(xtrs []netip.Addr, now time.Time) {
	if len(s.eids) == 0 {
		return
	}
	s.all = slices.DeleteFunc(xtrs, func(a netip.Addr) bool {
		return !slices.ContainsFunc(s.rlocs, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
	})
	s.queue, s.round, s.at = s.all, 1, now.Add(solicitAfter)
}

// stop tells nobody any more.
func (s *solicitor) stop() { s.all, s.queue, s.at = nil, nil, time.Time{} }

// next is when tick has something to do; zero: never.
func (s *solicitor) next() time.Time { return s.at }

// tick returns whom to tell now.
func (s *solicitor) tick(now time.Time) []netip.Addr {
	if s.at.IsZero() || s.at.After(now) {
		return nil
	}
	n := min(len(s.queue), solicitBatch)
	out := s.queue[:n]
	switch s.queue = s.queue[n:]; {
	case len(s.queue) > 0:
		s.at = now.Add(solicitPace)
	case s.round < solicitRounds:
		s.round++
		s.queue, s.at = s.all, now.Add(solicitAgain)
	default:
		s.stop()
	}
	return out
}

// rest returns who has not been told at all, because there is no time to wait.
func (s *solicitor) rest() []netip.Addr {
	defer s.stop()
	if s.round > 1 {
		return nil
	}
	return s.queue
}

// message is the SMR. Peers differ in where they look for the EID: it stands in both places.
func (s *solicitor) message(nonce uint64) *lisp.MapRequest {
	m := &lisp.MapRequest{SMR: true, DontReply: true, Nonce: nonce, SourceEID: s.eids[0], ITRRLOCs: s.rlocs}
	for _, e := range s.eids {
		m.Records = append(m.Records, lisp.RequestRecord{EID: e})
	}
	return m
}
