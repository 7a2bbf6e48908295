package controller

import (
	"context"
	"errors"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// A Driver is a connection to what runs the VMs of one hypervisor. Package controller/libvirt has one. Methods may be
// called from any goroutine; each may block until ctx ends. A lost connection is an error of the call that noticed; the
// next call connects again.
type Driver interface {
	// Node says what the hypervisor is and has.
	Node(ctx context.Context) (Node, error)
	// Guests lists every VM that is defined or runs there.
	Guests(ctx context.Context) ([]Guest, error)
	// Watch calls f for every change, one at a time, until ctx ends (nil) or the connection is lost (an error): then
	// the caller lists again and watches again. f must not block.
	Watch(ctx context.Context, f func(GuestEvent)) error

	// Define makes a VM known by libvirt's domain XML, or replaces what is known of it.
	Define(ctx context.Context, xml string) (Guest, error)
	// Undefine makes a VM that does not run unknown. Hibernated state goes with it.
	Undefine(ctx context.Context, vm string) error
	// Control starts a VM, shuts it down, hibernates it to disk, and so on.
	Control(ctx context.Context, vm string, do Action) error

	// Migrate moves a VM and returns when that is decided: nil = it runs at the target. Whatever the error, the VM
	// runs where it was, unless the error is an [ErrMigrationUnclear]. When ctx ends the migration is cancelled, unless
	// [context.Cause] says [ErrDetached]: then the hypervisors should be left at it, if that is possible.
	// progress, if not nil, is called about twice a second, and after each change of phase; it must not block.
	Migrate(ctx context.Context, m Migration, progress func(Progress)) error
	// Steer changes a migration that is under way.
	Steer(ctx context.Context, vm string, s Steering) error

	Close() error
}

// Action is what [Driver.Control] does.
type Action string

// The actions. Start also resumes a hibernated VM; Stop asks the guest, Kill does not.
const (
	ActionStart     Action = "start"
	ActionStop      Action = "stop"
	ActionKill      Action = "kill"
	ActionHibernate Action = "hibernate"
	ActionPause     Action = "pause"
	ActionUnpause   Action = "unpause"
)

// Node is a hypervisor as its driver sees it.
type Node struct {
	Hostname   string   `json:"hostname"`
	Version    string   `json:"version"` // of libvirt and QEMU, for people
	CPUs       int      `json:"cpus"`
	CPUModel   string   `json:"cpu_model,omitempty"`
	Memory     uint64   `json:"memory"`      // bytes
	MemoryFree uint64   `json:"memory_free"` // bytes, caches that can be given back included
	Machines   []string `json:"machines,omitempty"`
	// HostCPU is libvirt's description of the host's CPU, to compare with a guest's; "" = not known.
	HostCPU string `json:"host_cpu,omitempty"`
}

// GuestState is what a VM does.
type GuestState string

// The states.
const (
	GuestRunning    GuestState = "running"
	GuestPaused     GuestState = "paused" // its CPUs stand still, by wish or because it is migrating in or out
	GuestOff        GuestState = "off"    // defined, and not running
	GuestHibernated GuestState = "hibernated"
	GuestCrashed    GuestState = "crashed"
	GuestUnknown    GuestState = "unknown"
)

// Guest is a VM as its hypervisor knows it.
type Guest struct {
	Name       string           `json:"name"`
	UUID       string           `json:"uuid"`
	State      GuestState       `json:"state"`
	VCPUs      int              `json:"vcpus"`
	Memory     uint64           `json:"memory"` // bytes that it may use
	Machine    string           `json:"machine,omitempty"`
	CPU        string           `json:"cpu,omitempty"` // libvirt's <cpu> element
	Persistent bool             `json:"persistent"`
	Interfaces []GuestInterface `json:"interfaces,omitempty"`
	Disks      []GuestDisk      `json:"disks,omitempty"`
	// Owner and EIDs stand in the domain's metadata, see package controller/libvirt; empty = not said.
	Owner string     `json:"owner,omitempty"`
	EIDs  []lisp.EID `json:"eids,omitempty"`
}

// GuestInterface is one network interface of a VM.
type GuestInterface struct {
	MAC    string `json:"mac"`
	Device string `json:"device,omitempty"` // on the hypervisor; "" while the VM does not run
	MTU    int    `json:"mtu,omitempty"`    // 0 = not said
}

// GuestDisk is one disk of a VM.
type GuestDisk struct {
	Target    string `json:"target"`            // "vda"
	Source    string `json:"source"`            // path, or URL of a network disk
	Backing   string `json:"backing,omitempty"` // the image that Source is the difference to
	Format    string `json:"format,omitempty"`
	Capacity  uint64 `json:"capacity,omitempty"`  // bytes
	Allocated uint64 `json:"allocated,omitempty"` // bytes
	Network   bool   `json:"network,omitempty"`   // reached over the network: shared by nature
	ReadOnly  bool   `json:"read_only,omitempty"`
}

// GuestEventKind says what happened to a VM.
type GuestEventKind string

// The kinds.
const (
	GuestStopped   GuestEventKind = "stopped"   // its CPUs stand still here: a pause, or the switch of a migration
	GuestResumed   GuestEventKind = "resumed"   // its CPUs run here, from At on
	GuestMigrating GuestEventKind = "migrating" // it is being sent away; its CPUs still run here
	GuestGone      GuestEventKind = "gone"      // it does not run here any more
	GuestChanged   GuestEventKind = "changed"   // defined, undefined, plugged: list again
)

// GuestEvent is something that happened to a VM.
type GuestEvent struct {
	VM   string         `json:"vm"`
	UUID string         `json:"uuid,omitempty"`
	Kind GuestEventKind `json:"kind"`
	At   time.Time      `json:"at"` // the hypervisor's clock if it tells, else when we heard
	Why  string         `json:"why,omitempty"`
}

// Migration says how a VM is to be moved.
type Migration struct {
	VM string `json:"vm"`
	// Dest is the target's libvirt URI as the source's daemon reaches it (peer to peer); Via the URI of the stream
	// of memory ("tcp://host"), "" = the hypervisor chooses.
	Dest string `json:"dest"`
	Via  string `json:"via,omitempty"`

	Mode         Mode          `json:"mode"`
	CopyStorage  CopyStorage   `json:"copy_storage"`
	Disks        []string      `json:"disks,omitempty"`        // targets to copy; empty = all that are not shared or read-only
	Bandwidth    uint64        `json:"bandwidth,omitempty"`    // bytes a second; 0 = not limited
	MaxDowntime  time.Duration `json:"max_downtime,omitempty"` // 0 = the hypervisor's default
	AutoConverge bool          `json:"auto_converge,omitempty"`
	Compress     bool          `json:"compress,omitempty"`
	Parallel     int           `json:"parallel,omitempty"` // connections; 0 or 1 = one
	// AllowPostCopy lets a live migration be switched to post-copy later ([SteerPostCopy]).
	AllowPostCopy bool `json:"allow_post_copy,omitempty"`
	Unsafe        bool `json:"unsafe,omitempty"` // the hypervisor's doubts about caches and shared storage are ignored
}

// Mode is how a VM's memory travels.
type Mode string

// The modes.
const (
	ModeLive     Mode = "live"     // pre-copy: it runs meanwhile
	ModeOffline  Mode = "offline"  // it stands still meanwhile, or does not run at all
	ModePostCopy Mode = "postcopy" // it runs at the target at once, and fetches its memory
)

// CopyStorage says what is done about disks that the target does not share.
type CopyStorage string

// The ways.
const (
	CopyNone CopyStorage = "none"
	CopyAll  CopyStorage = "all"
	CopyInc  CopyStorage = "inc" // the difference to a base image that the target has
)

// Steering is a change of a migration that is under way.
type Steering struct {
	PostCopy    bool          `json:"post_copy,omitempty"`
	Bandwidth   uint64        `json:"bandwidth,omitempty"`    // bytes a second; 0 = as it is
	MaxDowntime time.Duration `json:"max_downtime,omitempty"` // 0 = as it is
	Pause       bool          `json:"pause,omitempty"`        // stop the VM, so that it must converge
}

// Progress is how far a migration has come, as the hypervisor says.
type Progress struct {
	Phase     string        `json:"phase"` // "setup", "storage", "memory", "post-copy", "switch", "done", "failed"
	Elapsed   time.Duration `json:"elapsed"`
	Total     uint64        `json:"total"`      // bytes: memory and disks
	Done      uint64        `json:"done"`       // bytes of Total that the target has
	Remaining uint64        `json:"remaining"`  // bytes
	Sent      uint64        `json:"sent"`       // bytes, repeated ones too
	Rate      uint64        `json:"rate"`       // bytes a second
	DirtyRate uint64        `json:"dirty_rate"` // bytes a second
	Iteration int           `json:"iteration"`
	Downtime  time.Duration `json:"downtime"`           // expected if it switched now; measured at the end
	Throttle  int           `json:"throttle,omitempty"` // percent of CPU time that auto-converge takes
}

// ErrDetached is the cause of the end of a context when nobody wishes to watch any longer: the controller is being stopped.
var ErrDetached = errors.New("the controller stops watching")

// ErrMigrationUnclear says that nobody knows where a VM runs after its migration: post-copy broke off, or the
// connection did at the switch.
type ErrMigrationUnclear struct{ Err error }

func (e *ErrMigrationUnclear) Error() string {
	return "where the VM runs is not known: " + e.Err.Error()
}
func (e *ErrMigrationUnclear) Unwrap() error { return e.Err }
