package lisp

import (
	"net/netip"
	"strconv"
)

// Ports of LISP (RFC 9300 section 5, RFC 9301 section 5.1).
const (
	DataPort    = 4341
	ControlPort = 4342
)

// Type is the type of a control message (RFC 9301 section 5.1).
type Type uint8

// The types of RFC 9301 section 5.1.
const (
	TypeMapRequest   Type = 1
	TypeMapReply     Type = 2
	TypeMapRegister  Type = 3
	TypeMapNotify    Type = 4
	TypeMapNotifyAck Type = 5
	TypeMapReferral  Type = 6
	TypeECM          Type = 8
)

var typeNames = [16]string{
	TypeMapRequest:   "map-request",
	TypeMapReply:     "map-reply",
	TypeMapRegister:  "map-register",
	TypeMapNotify:    "map-notify",
	TypeMapNotifyAck: "map-notify-ack",
	TypeMapReferral:  "map-referral",
	TypeECM:          "ecm",
}

// String is the RFC's name in lower case with hyphens, for logs and counters; "type-7" if there is none.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return "type-" + strconv.Itoa(int(t))
}

// Message is a LISP control message: *MapRequest, *MapReply, *MapRegister, *MapNotify,
// *MapNotifyAck or *ECM.
type Message interface {
	Type() Type
	sealed()
}

// MapRequest asks for a mapping, probes an RLOC, or solicits a Map-Request (RFC 9301 section 5.2).
type MapRequest struct {
	Authoritative bool // A
	Probe         bool // P: RLOC-probe; goes straight to an RLOC, never in an ECM
	SMR           bool // S: Solicit-Map-Request (RFC 9301 section 6.1)
	PITR          bool // p: the sender is a PITR
	SMRInvoked    bool // s: sent because of an SMR
	LocalXTR      bool // L
	DontReply     bool // D: do not send a Map-Reply to this SMR
	Nonce         uint64
	SourceEID     EID          // zero: AFI 0, none
	ITRRLOCs      []netip.Addr // at least one; an invalid Addr travels as AFI 0 (RFC 9437 unsubscribe)
	Records       []RequestRecord
	Reply         *Mapping // the M bit: a mapping of the source EID
	HasXTRID      bool     // the I bit: XTRID and SiteID follow the records (RFC 9437 section 4)
	XTRID         XTRID
	SiteID        SiteID
}

// RequestRecord is one EID that a Map-Request asks for.
type RequestRecord struct {
	EID    EID
	Notify bool // the N bit: subscribe to changes (RFC 9437 section 4)
}

// MapReply answers a Map-Request (RFC 9301 section 5.4).
type MapReply struct {
	Probe     bool // P
	EchoNonce bool // E
	Security  bool // S: AuthData follows the records
	Nonce     uint64
	Records   []Mapping
	AuthData  []byte // of LISP-SEC (RFC 9303 section 6.2), not interpreted; travels if Security is set
}

// MapRegister registers mappings with a Map-Server (RFC 9301 section 5.6). Auth is what was received,
// checked by [Verify]; [AppendSigned] sends its own in its place.
type MapRegister struct {
	ProxyReply    bool // P: the Map-Server may answer in the ETR's place
	Security      bool // S
	HasXTRID      bool // I
	EIDNotify     bool // E
	UseTTL        bool // T: the Map-Server times the registration out by the records' TTL
	Merge         bool // a: RLOC sets of several xTRs are united
	Mobile        bool // R
	WantMapNotify bool // M
	Nonce         uint64
	Auth          Auth
	Records       []Mapping
	XTRID         XTRID
	SiteID        SiteID
}

// MapNotify acknowledges a Map-Register, tells a previous xTR of a move, or publishes a mapping to a
// subscriber (RFC 9301 section 5.7, RFC 9437 section 6).
type MapNotify struct {
	Nonce    uint64
	Auth     Auth
	Records  []Mapping
	HasXTRID bool // XTRID and SiteID follow the records
	XTRID    XTRID
	SiteID   SiteID
}

// MapNotifyAck acknowledges a Map-Notify (RFC 9301 section 5.7).
type MapNotifyAck struct {
	Nonce    uint64
	Auth     Auth
	Records  []Mapping
	HasXTRID bool
	XTRID    XTRID
	SiteID   SiteID
}

// ECM is an Encapsulated Control Message (RFC 9301 section 5.8): a control message that travels inside
// an IP and UDP header of its own.
type ECM struct {
	Security bool           // S: AuthData precedes the inner header
	DDT      bool           // D (RFC 8111)
	Source   netip.AddrPort // inner source: where a Map-Reply goes, with its port
	Dest     netip.AddrPort // inner destination: the EID asked for, port 4342
	Inner    []byte         // the inner control message
	AuthData []byte         // of LISP-SEC (RFC 9303 section 6.1), not interpreted; travels if Security is set
}

// Type is TypeMapRequest.
func (*MapRequest) Type() Type { return TypeMapRequest }

// Type is TypeMapReply.
func (*MapReply) Type() Type { return TypeMapReply }

// Type is TypeMapRegister.
func (*MapRegister) Type() Type { return TypeMapRegister }

// Type is TypeMapNotify.
func (*MapNotify) Type() Type { return TypeMapNotify }

// Type is TypeMapNotifyAck.
func (*MapNotifyAck) Type() Type { return TypeMapNotifyAck }

// Type is TypeECM.
func (*ECM) Type() Type { return TypeECM }

func (*MapRequest) sealed()   {}
func (*MapReply) sealed()     {}
func (*MapRegister) sealed()  {}
func (*MapNotify) sealed()    {}
func (*MapNotifyAck) sealed() {}
func (*ECM) sealed()          {}
