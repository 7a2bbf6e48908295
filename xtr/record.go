package xtr

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Role is which side of a move this xTR is on.
type Role string

// The two roles.
const (
	Source Role = "source" // the VM leaves
	Target Role = "target" // the VM comes
)

// State is how far a handover has come.
type State string

// The states of a source, in order, and of a target. Settled, Aborted and Superseded are the ends of both.
const (
	Armed       State = "armed"       // prepared; the VM still runs here, copies of its packets are kept
	Paused      State = "paused"      // the VM has stopped; packets are held here
	Redirecting State = "redirecting" // packets are sent on to where the VM runs, or will
	TakingBack  State = "taking-back" // the VM goes on here after all; held packets go to it

	Incoming   State = "incoming"    // prepared; packets are held until the VM runs
	Running    State = "running"     // the VM runs here: held packets go to it, the EIDs are claimed
	GivingBack State = "giving-back" // the VM will not come; held packets go back to the source

	Settled    State = "settled"    // the source has forgotten the VM; the target has nothing left to do
	Aborted    State = "aborted"    // the VM is where it was
	Superseded State = "superseded" // another handover of the VM began before this one had ended
)

// ended reports whether nothing follows s.
func (s State) ended() bool { return s == Settled || s == Aborted || s == Superseded }

// Times says when each step of a handover was reached, by this xTR's clock; zero: not (yet). On a source,
// Run is when it was told that the VM runs at the target, Claimed when the mapping system said so.
type Times struct {
	Prepared    time.Time `json:"prepared,omitzero"`
	Paused      time.Time `json:"paused,omitzero"` // as the hypervisor says
	Redirecting time.Time `json:"redirecting,omitzero"`
	Run         time.Time `json:"run,omitzero"`     // as the hypervisor says, or when the first frame was seen
	Claimed     time.Time `json:"claimed,omitzero"` // when a Map-Server had accepted
	Flushed     time.Time `json:"flushed,omitzero"` // when the last held packet was out
	Settled     time.Time `json:"settled,omitzero"`
	Aborted     time.Time `json:"aborted,omitzero"`
}

// Handover is the record of one VM's move, as this xTR saw it.
type Handover struct {
	ID       string     `json:"id"`
	VM       string     `json:"vm"`
	Role     Role       `json:"role"`
	State    State      `json:"state"`
	EIDs     []lisp.EID `json:"eids"`
	PeerRLOC netip.Addr `json:"peer_rloc,omitzero"`
	// Version is the newest version that is known of the mapping; on a target that has claimed, the
	// claim's.
	Version    lisp.Version      `json:"version"`
	Times      Times             `json:"times"`
	Held       uint64            `json:"held"`       // packets that waited here
	Redirected uint64            `json:"redirected"` // packets that were sent on from the hold
	Replayed   uint64            `json:"replayed"`   // packets that the VM had been given and had not read
	Dropped    map[string]uint64 `json:"dropped"`    // packets, by reason
	Why        string            `json:"why"`        // how it came to its state
}

// HoldStats is what became of the packets of a hold queue.
type HoldStats struct {
	Held     uint64            // packets that waited
	Passed   uint64            // packets that were still diverted while it was flushed
	Replayed uint64            // copies that were put at the head
	Bytes    uint64            // of all of them
	Dropped  map[string]uint64 // packets, by reason
}
