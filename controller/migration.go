package controller

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Duration is a time.Duration that JSON spells "30s"; a number is nanoseconds.
type Duration time.Duration

// MarshalJSON spells d.
func (d Duration) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, time.Duration(d).String()), nil
}

// UnmarshalJSON reads "30s", or nanoseconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		var n int64
		if err := json.Unmarshal(b, &n); err != nil {
			return fmt.Errorf("%s is no duration such as \"30s\"", b)
		}
		*d = Duration(n)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration such as \"30s\"", s)
	}
	*d = Duration(v)
	return nil
}

// OnSlow says what is done about a migration that does not come to an end by itself: less and less does not remain.
type OnSlow string

// The ways.
const (
	SlowAbort    OnSlow = "abort"    // give up; the VM stays where it is. The default
	SlowPostCopy OnSlow = "postcopy" // switch over at once, memory follows
	SlowConverge OnSlow = "converge" // longer and longer downtimes are admitted, and the VM is slowed down from the start (auto_converge)
	SlowWait     OnSlow = "wait"     // say so, and go on until the timeout
)

// MigrationRequest is the body of POST /v1/migrations and of POST /v1/preflight, and, without vm, to and site, of
// POST /v1/hypervisors/{name}/drain. Only vm is needed.
type MigrationRequest struct {
	// ID makes the request repeatable; "" = the controller makes one up.
	ID string `json:"id,omitempty"`
	VM string `json:"vm,omitempty"`
	// To is a hypervisor. Without it one is chosen, at Site if that is not "", else anywhere but here.
	To   string `json:"to,omitempty"`
	Site string `json:"site,omitempty"`

	Mode        Mode        `json:"mode,omitempty"`         // "" = live
	CopyStorage CopyStorage `json:"copy_storage,omitempty"` // "" = none
	Disks       []string    `json:"disks,omitempty"`        // to copy; empty = all that are not shared or read-only
	// Bandwidth is in bytes a second, 0 = not limited.
	Bandwidth    uint64   `json:"bandwidth,omitempty"`
	MaxDowntime  Duration `json:"max_downtime,omitempty"` // 0 = the hypervisor's default
	AutoConverge bool     `json:"auto_converge,omitempty"`
	Compress     bool     `json:"compress,omitempty"`
	Parallel     int      `json:"parallel,omitempty"` // connections, 0 = 1; at most 64
	// Timeout is how long the migration itself may take, from its first byte; 0 = not limited.
	Timeout Duration `json:"timeout,omitempty"`
	OnSlow  OnSlow   `json:"on_slow,omitempty"` // "" = abort
	Unsafe  bool     `json:"unsafe,omitempty"`  // the hypervisor's doubts about shared storage and caches are ignored
}

// MigrationPhase is how far a migration has come.
type MigrationPhase string

// The phases. A migration goes through the first six in order, and may end from each.
const (
	MigrationQueued    MigrationPhase = "queued"    // others are before it on its link
	MigrationPreflight MigrationPhase = "preflight" // it is being looked whether it can go well
	MigrationPreparing MigrationPhase = "preparing" // the agents are being told: a move is being prepared
	MigrationMigrating MigrationPhase = "migrating" // the hypervisors are at it
	// MigrationLocating: nobody has said how it went; the hypervisors are being asked where the VM runs.
	MigrationLocating  MigrationPhase = "locating"
	MigrationFinishing MigrationPhase = "finishing" // it runs at the target; the Map-Servers are being told
	MigrationUndoing   MigrationPhase = "undoing"   // it did not go; the move is being undone
	MigrationDone      MigrationPhase = "done"      // the end: it runs at the target
	MigrationFailed    MigrationPhase = "failed"    // the end: it stayed, and "error" says why
	MigrationCancelled MigrationPhase = "cancelled" // the end: it stayed, because somebody wished so
)

// Ended reports whether nothing follows p.
func (p MigrationPhase) Ended() bool {
	return p == MigrationDone || p == MigrationFailed || p == MigrationCancelled
}

// Note is something worth knowing about a migration, with figures, in the order in which it came up.
type Note struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// MigrationTimes says when each phase was entered; zero = not (yet).
type MigrationTimes struct {
	Asked     time.Time `json:"asked"`
	Started   time.Time `json:"started,omitzero"`   // it left the queue
	Migrating time.Time `json:"migrating,omitzero"` // the hypervisor was told
	Ended     time.Time `json:"ended,omitzero"`
}

// MigrationStatus is a migration as the API shows it. Progress has durations in nanoseconds, sizes in bytes, rates in
// bytes a second.
type MigrationStatus struct {
	ID       string           `json:"id"`
	Move     string           `json:"move,omitempty"` // its move in /v1/moves; "" before preparing, and for a VM that is off
	VM       string           `json:"vm"`
	From     string           `json:"from"` // hypervisor
	To       string           `json:"to"`   // hypervisor; "" until one is chosen
	FromSite string           `json:"from_site,omitempty"`
	ToSite   string           `json:"to_site,omitempty"`
	Link     string           `json:"link,omitempty"` // what it waits for and uses, "SITE-SITE"
	Phase    MigrationPhase   `json:"phase"`
	Seq      uint64           `json:"seq"`             // grows with every change of this migration
	Queue    int              `json:"queue,omitempty"` // place in the queue of its link, 1 = the next
	Drain    string           `json:"drain,omitempty"` // the hypervisor whose draining it is part of
	Why      string           `json:"why,omitempty"`   // why this target
	Request  MigrationRequest `json:"request"`
	Times    MigrationTimes   `json:"times"`
	Progress Progress         `json:"progress"`
	Notes    []Note           `json:"notes"`
	Checks   []Check          `json:"checks,omitempty"` // of its preflight
	Estimate *Estimate        `json:"estimate,omitempty"`
	Cancel   string           `json:"cancel,omitempty"` // why it is being cancelled
	Error    string           `json:"error,omitempty"`  // one line
	Detail   string           `json:"detail,omitempty"` // the whole story of Error
}

// MigrationRecord is the durable state of a migration.
type MigrationRecord struct {
	MigrationStatus
	Order uint64 `json:"order"` // of creation
	Off   bool   `json:"off,omitempty"`
	Guest string `json:"guest,omitempty"` // its name at the hypervisors
	Dest  string `json:"dest,omitempty"`  // URIs that the source was given
	Via   string `json:"via,omitempty"`
	Slow  Slow   `json:"slow,omitzero"`

	since     time.Time // when the phase was entered, or the controller started
	busy      bool      // locating: the drivers are being asked
	running   bool      // Driver.Migrate is under way
	steering  bool      // Driver.Steer is under way
	stopping  bool      // Driver.Migrate was told to end
	contested bool      // the agents see it at the target, the hypervisors do not
	undone    string    // why the move was undone in the meantime
	unclear   time.Time // locating: when the drivers last answered
}

// Sighting is what one hypervisor's driver says of a VM.
type Sighting struct {
	Hypervisor string
	Asked      bool // it answered
	Found      bool // it has the VM
	State      GuestState
	Err        string
}

// Slow is what is remembered to notice that a migration gets nowhere.
type Slow struct {
	Iteration int           `json:"iteration,omitempty"`
	Least     uint64        `json:"least,omitempty"` // least bytes that remained at an iteration's end
	Worse     int           `json:"worse,omitempty"` // iterations since then
	Sent      uint64        `json:"sent,omitempty"`
	SentAt    time.Time     `json:"sent_at,omitzero"`    // when Sent last grew
	At        time.Time     `json:"at,omitzero"`         // when it was said that it is slow; zero = not
	Stalled   bool          `json:"stalled,omitempty"`   // it was said that nothing is sent
	Downtime  time.Duration `json:"downtime,omitempty"`  // that was admitted in the meantime
	Steered   bool          `json:"steered,omitempty"`   // the switch to post-copy was ordered, because it is slow
	PostCopy  bool          `json:"post_copy,omitempty"` // it was switched
}

// clone shares nothing with r that step changes.
func (r MigrationRecord) clone() MigrationRecord {
	r.Notes = slices.Clone(r.Notes)
	r.Checks = slices.Clone(r.Checks)
	return r
}

// CheckStatus is what came of a check.
type CheckStatus string

// The results.
const (
	CheckOK   CheckStatus = "ok"
	CheckWarn CheckStatus = "warn" // it may go wrong, or nobody could say
	CheckFail CheckStatus = "fail" // it will not go
)

// Check is one line of a preflight.
type Check struct {
	Name   string      `json:"name"` // "driver", "state", "policy", "capacity", "cpu", "machine", "storage", "interface", "prefix", "mtu", "agent", "time"
	Status CheckStatus `json:"status"`
	Text   string      `json:"text"`
}

// Estimate is what a migration is expected to take. Zero = not known.
type Estimate struct {
	Bytes     uint64   `json:"bytes"`                // memory and disks to copy, once
	Bandwidth uint64   `json:"bandwidth,omitempty"`  // bytes a second
	From      string   `json:"from"`                 // where Bandwidth comes from
	DirtyRate uint64   `json:"dirty_rate,omitempty"` // bytes a second, as it was when the VM was moved last
	Time      Duration `json:"time,omitempty"`
	// Endless: the VM changes its memory faster than it can be sent.
	Endless bool   `json:"endless,omitempty"`
	Text    string `json:"text"`
}

// Preflight is the answer to POST /v1/preflight.
type Preflight struct {
	VM       string    `json:"vm"`
	From     string    `json:"from"`
	To       string    `json:"to"` // "" = no hypervisor takes it
	ToSite   string    `json:"to_site,omitempty"`
	Why      string    `json:"why"` // why this target
	OK       bool      `json:"ok"`  // no check failed
	Checks   []Check   `json:"checks"`
	Estimate *Estimate `json:"estimate,omitempty"`
	Refused  []Refusal `json:"refused,omitempty"` // the other hypervisors, and why not
}

// Refusal says why a hypervisor does not take a VM.
type Refusal struct {
	Hypervisor string `json:"hypervisor"`
	Site       string `json:"site"`
	Why        string `json:"why"`
}

// LinkMemory is what earlier migrations over a link have taught.
type LinkMemory struct {
	Link      string    `json:"link"`
	Bandwidth uint64    `json:"bandwidth"` // bytes a second, a moving average
	Count     int       `json:"count"`
	At        time.Time `json:"at"`
}

// DrainRequest is the body of POST /v1/hypervisors/{name}/drain: the options of its migrations.
type DrainRequest struct {
	MigrationRequest
	// PlanOnly changes nothing: the answer is the plan, [PlannedMove].
	PlanOnly bool `json:"plan_only,omitempty"`
}

// PlannedMove is one VM of a hypervisor that is to be drained.
type PlannedMove struct {
	VM        string         `json:"vm"`
	To        string         `json:"to"` // "" = nobody takes it
	Why       string         `json:"why,omitempty"`
	Migration string         `json:"migration,omitempty"` // id; "" = it is somebody else's to move (no driver), by PUT /v1/moves/{id}
	Phase     MigrationPhase `json:"phase,omitempty"`
	Error     string         `json:"error,omitempty"`
}

// DrainStatus is how far the draining of a hypervisor has come.
type DrainStatus struct {
	Hypervisor string        `json:"hypervisor"`
	Drained    bool          `json:"drained"` // it takes no VM
	Since      time.Time     `json:"since,omitzero"`
	Complete   bool          `json:"complete"`  // nothing runs there, or is on its way there
	Total      int           `json:"total"`     // VMs there when it began, and those that have come since
	Done       int           `json:"done"`      // have left
	UnderWay   int           `json:"under_way"` // queued or being migrated
	Failed     int           `json:"failed"`    // have stayed
	External   int           `json:"external"`  // wait for an external mover
	Bytes      uint64        `json:"bytes"`     // of all migrations that have begun, total
	BytesDone  uint64        `json:"bytes_done"`
	Moves      []PlannedMove `json:"moves"`
}

// SeenAddress is an address that an agent has seen a VM use.
type SeenAddress struct {
	EID        string    `json:"eid"`
	MAC        string    `json:"mac,omitempty"`
	Hypervisor string    `json:"hypervisor"`
	Interface  string    `json:"interface,omitempty"`
	State      string    `json:"state,omitempty"`    // at the agent: "here", or that of its handover
	Assigned   bool      `json:"assigned"`           // it is one of the VM's EIDs
	Learned    bool      `json:"learned,omitempty"`  // the agent knows it from frames only
	Since      time.Time `json:"since,omitzero"`     // it is there
	LastSeen   time.Time `json:"last_seen,omitzero"` // the last evidence
}

// Addresses is the answer to GET /v1/vms/{name}/addresses.
type Addresses struct {
	VM       string        `json:"vm"`
	Assigned []string      `json:"assigned"` // EIDs
	MACs     []string      `json:"macs"`
	Seen     []SeenAddress `json:"seen"`
	Errors   []string      `json:"errors,omitempty"` // agents that could not be asked
}

// Announcement is the body of POST /v1/announcements: a VM is about to be migrated, and the controller did not start
// that. The VM is found by the first of these that is given.
type Announcement struct {
	VM   string   `json:"vm,omitempty"`
	UUID string   `json:"uuid,omitempty"`
	MACs []string `json:"macs,omitempty"`
	To   string   `json:"to"`             // hypervisor: its name, its RLOC or its own hostname
	From string   `json:"from,omitempty"` // the same; only for the record: the controller knows where the VM is
}

// Announced is the answer to it.
type Announced struct {
	VM    string `json:"vm"`
	Move  string `json:"move"` // its id in /v1/moves
	State State  `json:"state"`
	New   bool   `json:"new"` // it was not announced before
}
