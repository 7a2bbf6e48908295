package xtr

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// smr limits Solicit-Map-Requests (RFC 9301 section 6.1: "Both the SMR sender and the SMR responder MUST rate
// limit these messages"): those that we send to whoever still sends us packets for an EID that is not here, and
// the Map-Requests that those of others make us send.
type smr struct {
	sent     map[smrKey]time.Time
	answered map[lisp.EID]time.Time
	tokens   float64 // SMRs that may be sent at once, to all together
	filled   time.Time
}

type smrKey struct {
	rloc netip.Addr
	eid  lisp.EID
}

const (
	// smrInterval is between two SMRs to an RLOC for an EID, and between two SMR-invoked Map-Requests.
	smrInterval = 3 * time.Second
	// smrRate and smrBurst bound all SMRs: the addresses that they go to may be forged.
	smrRate  = 200 // per second
	smrBurst = 200
	// smrRemembered bounds what is remembered.
	smrRemembered = 1 << 14
)

func newSMR() *smr {
	return &smr{sent: map[smrKey]time.Time{}, answered: map[lisp.EID]time.Time{}, tokens: smrBurst}
}

// maySend reports whether an SMR for e may go to rloc now, and counts it.
func (s *smr) maySend(rloc netip.Addr, e lisp.EID, now time.Time) bool {
	k := smrKey{rloc, e}
	if t, ok := s.sent[k]; ok && now.Sub(t) < smrInterval {
		return false
	}
	if !s.filled.IsZero() {
		s.tokens = min(smrBurst, s.tokens+now.Sub(s.filled).Seconds()*smrRate)
	}
	s.filled = now
	if s.tokens < 1 {
		return false
	}
	if len(s.sent) >= smrRemembered {
		forgetOld(s.sent, now)
		if len(s.sent) >= smrRemembered {
			return false
		}
	}
	s.tokens--
	s.sent[k] = now
	return true
}

// mayAnswer reports whether an SMR for the EID prefix e may make us ask for it now, and counts it.
func (s *smr) mayAnswer(e lisp.EID, now time.Time) bool {
	if t, ok := s.answered[e]; ok && now.Sub(t) < smrInterval {
		return false
	}
	if len(s.answered) >= smrRemembered {
		forgetOld(s.answered, now)
		if len(s.answered) >= smrRemembered {
			return false
		}
	}
	s.answered[e] = now
	return true
}

// forgetOld removes what limits nothing any more.
func forgetOld[K comparable](m map[K]time.Time, now time.Time) {
	for k, t := range m {
		if now.Sub(t) >= smrInterval {
			delete(m, k)
		}
	}
}

// solicit is an SMR that says that the mapping of e has changed. Peers differ in where they look for the EID:
// it stands in both places.
func solicit(e lisp.EID, rlocs []netip.Addr, nonce uint64) *lisp.MapRequest {
	return &lisp.MapRequest{
		SMR: true, DontReply: true,
		Nonce:     nonce,
		SourceEID: e,
		ITRRLOCs:  rlocs,
		Records:   []lisp.RequestRecord{{EID: e}},
	}
}

// solicited lists the EIDs that the SMR m may speak of.
func solicited(m *lisp.MapRequest) []lisp.EID {
	var out []lisp.EID
	for _, r := range m.Records {
		out = append(out, r.EID)
	}
	if m.SourceEID.IsValid() && (len(out) == 0 || out[0] != m.SourceEID) {
		out = append(out, m.SourceEID)
	}
	return out
}
