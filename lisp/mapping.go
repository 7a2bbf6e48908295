package lisp

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// TTL is a record's time to live in minutes, as it travels (RFC 9301 section 5.4).
type TTL uint32

const (
	// TTLDelete asks the receiver to remove the mapping at once.
	TTLDelete TTL = 0
	// TTLLocal leaves the lifetime to the receiver.
	TTLLocal TTL = 0xffffffff
	// maxTTL bounds what we believe of anybody's TTL: peers send up to 86400 minutes for "forever".
	maxTTL = 24 * time.Hour
)

// Duration is the lifetime, at most a day; TTLLocal counts as a day.
func (t TTL) Duration() time.Duration {
	if uint64(t) >= uint64(maxTTL/time.Minute) {
		return maxTTL
	}
	return time.Duration(t) * time.Minute
}

// Action says what to do with packets for a mapping without locators (RFC 9301 section 5.4).
type Action uint8

// The actions of RFC 9301 section 5.4.
const (
	ActNone             Action = 0
	ActNativelyForward  Action = 1
	ActSendMapRequest   Action = 2
	ActDrop             Action = 3 // Drop/No-Reason
	ActDropPolicyDenied Action = 4 // Drop/Policy-Denied
	ActDropAuthFailure  Action = 5 // Drop/Auth-Failure

	maxAction Action = 7 // three bits travel
)

var actionNames = [...]string{
	ActNone:             "no-action",
	ActNativelyForward:  "natively-forward",
	ActSendMapRequest:   "send-map-request",
	ActDrop:             "drop",
	ActDropPolicyDenied: "drop/policy-denied",
	ActDropAuthFailure:  "drop/auth-failure",
}

// String is the RFC's name; "reserved-6" and "reserved-7" have none.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return "reserved-" + strconv.Itoa(int(a))
}

// MarshalText is [Action.String].
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what [Action.MarshalText] writes.
func (a *Action) UnmarshalText(b []byte) error {
	for v := range maxAction + 1 {
		if v.String() == string(b) {
			*a = v
			return nil
		}
	}
	return fmt.Errorf("action %q is unknown", b)
}

// Mapping binds an EID to its RLOCs: the noun that every part of tabi tells the next. It is what a
// record on the wire says (RFC 9301 section 5.4) plus who registered it. A Mapping that was handed on
// is not changed any more: whoever wants another makes a copy.
type Mapping struct {
	EID           EID       `json:"eid"`
	TTL           TTL       `json:"ttl_minutes"`
	Version       Version   `json:"version"`
	Action        Action    `json:"action"` // meaningful when Locators is empty
	Authoritative bool      `json:"authoritative"`
	Locators      []Locator `json:"locators"` // sorted by CompareLocators
	XTRID         XTRID     `json:"xtr_id"`   // who registered it; zero if it was not said
	SiteID        SiteID    `json:"site_id"`

	// Inside is the EID prefix, always IPv6, that map646 translates the service address EID to; it is not
	// valid unless the mapping is a service. A service has no locators, and neither xTR-ID nor Site-ID.
	Inside netip.Prefix `json:"inside,omitzero"`
}

// Negative reports whether m names no locator, so that its Action decides.
func (m Mapping) Negative() bool { return len(m.Locators) == 0 }

// Equal compares everything, locators in order.
func (m Mapping) Equal(o Mapping) bool {
	return m.EID == o.EID && m.TTL == o.TTL && m.Version == o.Version && m.Action == o.Action &&
		m.Authoritative == o.Authoritative && m.XTRID == o.XTRID && m.SiteID == o.SiteID &&
		m.Inside == o.Inside && slices.Equal(m.Locators, o.Locators)
}

// Supersedes reports whether m is to be believed rather than o, which speaks of the same EID: the
// newer version; at equal versions of different xTRs the lower xTR-ID, everywhere alike. A mapping
// supersedes its own refresh (same version, same xTR-ID).
func (m Mapping) Supersedes(o Mapping) bool {
	if m.Version != o.Version {
		return m.Version.Newer(o.Version)
	}
	return m.XTRID.Compare(o.XTRID) <= 0
}
