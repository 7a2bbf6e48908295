package mapserver

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Store keeps what must outlive a Map-Server's process. Package boltstore is one.
type Store interface {
	// Load reads everything that was saved.
	Load() (State, error)
	// Save makes b durable, whole or, with an error, not at all. It is called by one goroutine at a
	// time; b and what it points to do not change any more.
	Save(b Batch) error
}

// State is everything that a Store holds.
type State struct {
	Registrations []Registration
	Services      []Service
	Nonces        map[NonceKey]uint64
	Subscriptions []Subscription
}

// Batch is a set of changes that become durable together. A nil value removes the key.
type Batch struct {
	Registrations map[lisp.EID]*Registration
	Services      map[lisp.EID]*Service
	Nonces        map[NonceKey]uint64
	Subscriptions map[SubscriptionKey]*Subscription
}

// Empty reports whether b changes nothing.
func (b Batch) Empty() bool {
	return len(b.Registrations) == 0 && len(b.Services) == 0 && len(b.Nonces) == 0 && len(b.Subscriptions) == 0
}

// Registration is what is known of one EID. Without Registrants it is withdrawn (or expired): only its
// version and its last holder count then.
type Registration struct {
	Mapping     lisp.Mapping // as it is told; its XTRID is the holder's
	Site        string
	Registrants []Registrant // more than one only when merged
	Since       time.Time    // of the last change of the mapping
}

// Registrant is one xTR's part of a Registration.
type Registrant struct {
	XTRID      lisp.XTRID
	SiteID     lisp.SiteID
	Source     netip.Addr  // where its Map-Registers come from; invalid if only a controller registered for it
	KeyID      uint8       // which key signed
	OnBehalf   bool        // a controller registered, the xTR itself not yet
	ProxyReply bool        // P bit
	UseTTL     bool        // T bit
	Merge      bool        // a bit
	TTL        lisp.TTL    // as registered
	Action     lisp.Action // when there are no locators
	Locators   []lisp.Locator
}

// Service is what is known of one service address, or prefix of them. With a TTL of 0 it is withdrawn: only
// its version counts then.
type Service struct {
	Mapping lisp.Mapping
	Site    string
	Source  netip.Addr // where the Map-Registers of the controller come from
	KeyID   uint8      // which of the controllers' keys signed
	Since   time.Time  // of the last change of the mapping
}

// NonceKey names one sequence of Map-Register nonces (RFC 9301 section 5.6).
type NonceKey struct {
	Site   string
	XTRID  lisp.XTRID
	Source netip.Addr // tells xTRs without an xTR-ID apart; invalid otherwise
	KeyID  uint8
}

// SubscriptionKey names a subscription: RFC 9437 keeps one per xTR and EID prefix.
type SubscriptionKey struct {
	EID   lisp.EID
	XTRID lisp.XTRID
}

// Subscription is an xTR's wish to be told of changes (RFC 9437 section 5).
type Subscription struct {
	SubscriptionKey
	SiteID lisp.SiteID
	RLOCs  []netip.Addr
	// Requested is the nonce of the last Map-Request; one that is not greater is a replay.
	Requested uint64
	// Reserved is a nonce that no Map-Notify was sent with yet: where to go on after a restart.
	Reserved uint64
	// Removed keeps the nonces of a subscription that is no more (RFC 9437 section 5).
	Removed bool
	// Expires is set for a subscription to an EID that is not registered and for a removed one.
	Expires time.Time
	// Except are more-specifics that the xTR does not want to hear of.
	Except []lisp.EID
}
