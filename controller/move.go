package controller

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// State is how far a move has come.
type State string

// The states of a move, in the order in which they follow each other.
const (
	Preparing State = "preparing" // the agents are being told
	Prepared  State = "prepared"  // both agents are ready: the VM may go
	Running   State = "running"   // the VM runs on the target; Map-Servers are being told
	Pushed    State = "pushed"    // a Map-Server holds the new mapping; the source sends on what still comes
	Settled   State = "settled"   // the end: the source has forgotten the VM
	Aborting  State = "aborting"  // the agents are being told to undo
	Aborted   State = "aborted"   // the end: the VM is where it was
	// Superseded is the end, too: the VM moved on before this move was settled.
	Superseded State = "superseded"
)

// States lists every State in order.
var States = []State{Preparing, Prepared, Running, Pushed, Settled, Aborting, Aborted, Superseded}

// Ended reports whether nothing follows s.
func (s State) Ended() bool { return s == Settled || s == Aborted || s == Superseded }

// binding reports whether a move in state s keeps its VM from being moved or edited.
func (s State) binding() bool { return s == Preparing || s == Prepared || s == Aborting }

// arrived reports whether the VM has run on the target.
func (s State) arrived() bool { return s == Running || s == Pushed || s == Settled || s == Superseded }

// Times says when each step of a move was reached; zero = not (yet). PrepareStarted, Prepared,
// Committed, Pushed, Settled and Aborted are the controller's clock, the others the agents'.
type Times struct {
	PrepareStarted time.Time `json:"prepare_started,omitzero"`
	Prepared       time.Time `json:"prepared,omitzero"`
	Paused         time.Time `json:"paused,omitzero"`      // source: the VM stopped
	Redirecting    time.Time `json:"redirecting,omitzero"` // source: packets go to the target
	Run            time.Time `json:"run,omitzero"`         // target: the VM runs
	Claimed        time.Time `json:"claimed,omitzero"`     // target: a Map-Server accepted its claim
	Committed      time.Time `json:"committed,omitzero"`   // the controller knew that the VM runs on the target
	Pushed         time.Time `json:"pushed,omitzero"`      // a Map-Server holds the new mapping of every EID
	Flushed        time.Time `json:"flushed,omitzero"`     // target: the last held packet was delivered
	Settled        time.Time `json:"settled,omitzero"`
	Aborted        time.Time `json:"aborted,omitzero"`
}

// ServerResult is what one Map-Server said of a move.
type ServerResult struct {
	Server   netip.Addr   `json:"server"`
	Accepted time.Time    `json:"accepted,omitzero"` // when it had every EID at the target
	Version  lisp.Version `json:"version,omitempty"` // newest that it confirmed
	Error    string       `json:"error,omitempty"`
}

// Record is what is told of a move: what the controller did, merged with what both agents saw.
type Record struct {
	ID         string            `json:"id"`
	VM         string            `json:"vm"`
	EIDs       []lisp.EID        `json:"eids"`
	From       string            `json:"from"` // hypervisor; "" = not known
	To         string            `json:"to"`
	FromSite   string            `json:"from_site,omitempty"`
	ToSite     string            `json:"to_site,omitempty"`
	State      State             `json:"state"`
	Version    lisp.Version      `json:"version"` // of the mapping at the target; 0 = not known yet
	Times      Times             `json:"times"`
	Held       uint64            `json:"held"`       // packets that waited at the target
	Redirected uint64            `json:"redirected"` // packets that the source sent on
	Replayed   uint64            `json:"replayed"`   // packets of the source's interface that the VM had not read
	Dropped    map[string]uint64 `json:"dropped"`    // packets, by reason, both agents
	Why        string            `json:"why"`        // how it came to its state
	Error      string            `json:"error,omitempty"`
	MapServers []ServerResult    `json:"map_servers,omitempty"`
	Source     *AgentRecord      `json:"source,omitempty"` // as the agents told it last
	Target     *AgentRecord      `json:"target,omitempty"`
}

// Role is which side of a move an agent is on.
type Role string

// The two roles.
const (
	Source Role = "source"
	Target Role = "target"
)

// Verb is something that an agent is told about a move.
type Verb string

// What agents are told. Each is idempotent.
const (
	VerbPrepare Verb = "prepare"
	VerbCommit  Verb = "commit"
	VerbAbort   Verb = "abort"
	verbLook    Verb = "look" // only asks
)

// Side is one agent's part in a move: what it was told and what is known of it.
type Side struct {
	Hypervisor string       `json:"hypervisor"`
	RLOC       netip.Addr   `json:"rloc"`
	XTRID      lisp.XTRID   `json:"xtr_id"`
	SiteID     lisp.SiteID  `json:"site_id,omitempty"`
	Locators   []Locator    `json:"locators,omitempty"`
	AgentID    string       `json:"agent_id,omitempty"` // its name for the move, when it is not ours
	Asked      bool         `json:"asked,omitempty"`    // a prepare may have reached it
	Told       Verb         `json:"told,omitempty"`     // the last verb that it acknowledged
	ToldAt     time.Time    `json:"told_at,omitzero"`   // when
	Version    lisp.Version `json:"version,omitempty"`  // the current version, as it was told
	Gone       bool         `json:"gone,omitempty"`     // it forgot the move, or is given up
	Error      string       `json:"error,omitempty"`

	busy    bool // a call is under way
	looked  bool // aborting: it was asked what it sees
	fails   int
	retryAt time.Time
	since   time.Time // aborting: when its turn came
}

// Move is the durable state of one move: what a Store keeps.
type Move struct {
	Record
	Seq       uint64                    `json:"seq"` // order of creation
	MACs      []string                  `json:"macs"`
	Interface string                    `json:"interface,omitempty"`
	Versions  map[lisp.EID]lisp.Version `json:"versions,omitempty"` // what each EID is registered with
	LookedUp  bool                      `json:"looked_up,omitempty"`
	Known     lisp.Version              `json:"known,omitempty"` // newest version of the mapping at the source
	Reclaims  int                       `json:"reclaims,omitempty"`
	Src       Side                      `json:"source_side"`
	Tgt       Side                      `json:"target_side"`
	Observed  bool                      `json:"observed,omitempty"` // nobody announced it: the agents carry it out, we write down
	// Driven: a migration of ours is what it waits for, however long. Patience bounds the wait of others; 0 =
	// Timing.Prepared.
	Driven    bool                      `json:"driven,omitempty"`
	Patience  time.Duration             `json:"patience,omitempty"`
	Open      bool                      `json:"open,omitempty"` // work remains: registrations, agents' last counts
	Since     time.Time                 `json:"since,omitzero"` // when State was entered
	Confirmed map[netip.Addr][]lisp.EID `json:"confirmed,omitempty"`

	push    map[pushKey]push
	asking  bool // a look-up of versions is under way
	contest lisp.Version
}

func (m *Move) side(r Role) *Side {
	if r == Source {
		return &m.Src
	}
	return &m.Tgt
}

func (m *Move) record(r Role) *AgentRecord {
	if r == Source {
		return m.Source
	}
	return m.Target
}

// idAt is the name of the move at the agent of one side.
func (m *Move) idAt(sd *Side) string { return or(sd.AgentID, m.ID) }

// clone makes a Move that shares nothing with m that step changes.
func (m Move) clone() Move {
	m.MapServers = slices.Clone(m.MapServers)
	m.Dropped = maps.Clone(m.Dropped)
	m.Versions = maps.Clone(m.Versions)
	m.Confirmed = maps.Clone(m.Confirmed)
	m.push = maps.Clone(m.push)
	return m
}

// merge brings the agents' counts and times into the record.
func (m *Move) merge() {
	r := &m.Record
	r.Dropped = map[string]uint64{}
	for _, a := range []*AgentRecord{r.Source, r.Target} {
		if a == nil {
			continue
		}
		for reason, n := range a.Dropped {
			if n > 0 {
				r.Dropped[reason] += n
			}
		}
	}
	if s := r.Source; s != nil {
		r.Redirected, r.Replayed = s.Redirected, s.Replayed
		r.Times.Paused, r.Times.Redirecting = s.Times.Paused, s.Times.Redirecting
	}
	if t := r.Target; t != nil {
		r.Held = t.Held
		r.Times.Run, r.Times.Claimed, r.Times.Flushed = t.Times.Run, t.Times.Claimed, t.Times.Flushed
	}
}

// summary is one line for logs and errors.
func (r *Record) summary() string {
	return fmt.Sprintf("move %s of %s from %s to %s (%s)", r.ID, r.VM, r.From, r.To, r.State)
}
