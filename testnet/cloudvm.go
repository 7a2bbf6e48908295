package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Kinds of VMs, for [Options].VM.
const (
	VMNamespace = "namespace" // a network namespace and a VMM of ours: boots at once, moves as scripted
	VMQEMU      = "qemu"      // a real guest, migrated by QMP
	VMLibvirt   = "libvirt"   // a real guest, migrated by libvirt daemons, one a hypervisor
)

// A CloudVM is a VM of the cloud, whatever runs it. [Cloud.Move] moves all of them alike.
//
// Whoever runs the VM also tells the agents, as it would outside of a test: a namespace VM posts events, the
// agents follow a real one's VMM by themselves. Methods are called by one goroutine at a time.
type CloudVM interface {
	// Interface is the name that its interface has on hypervisors: "tap-web".
	Interface() string
	// Boot lets it run on its first hypervisor, and returns once its network works as far as the guest can tell.
	Boot(ctx context.Context, at *Host) error
	// Migrate moves it and returns when that is decided. An error is the test's own; that the VM stayed where it was,
	// by wish or not, is a Switch whose At is the source.
	Migrate(ctx context.Context, t Transfer) (Switch, error)
	// Leave takes away what the VM, which does not run there, has left on a hypervisor: an interface, a process. It is
	// called some time after a Migrate, and when nothing is left it does nothing.
	Leave(h *Host) error
	// FirstPacket is when the guest got its first packet after the last switch, zero if not known (yet).
	FirstPacket() time.Time
	// Flaws are what its VMM itself got wrong since the start, for people; a run with flaws proves nothing.
	Flaws() []string
	// Close ends it.
	Close() error
}

// Transfer is one migration as its VM is asked for it.
type Transfer struct {
	From, To *Host
	// Mode is how the memory travels: "live" (as ""), "postcopy" or "offline" (stopped first). Namespace VMs have none
	// and ignore it.
	Mode string
	// CopyDisks has local disks copied while the guest writes to them; for guests that have any.
	CopyDisks bool
	// Blackout is how long a namespace VM runs nowhere, at least. A real one takes the time that it takes.
	Blackout time.Duration
	// MaxDowntime is what a real VM's VMM is told, 0 = one that makes it short.
	MaxDowntime time.Duration
	// Bandwidth bounds the copy of a real VM, in bytes a second; 0 = as fast as can be.
	Bandwidth uint64
	// Fail has the migration fail once the VM has stopped, after Blackout, so that it goes on at the source.
	Fail bool
	// CancelAt has somebody cancel the migration of a real VM: see the Cancel constants; "" = nobody.
	CancelAt string
	// Silent keeps the stop from the agents where we are the ones to tell it.
	Silent bool
	// Placed is called when the target has the interface and the VM has not stopped: a migration "begins" there. An
	// error of it, as of Stopped, ends Migrate.
	Placed func(context.Context) error
	// Stopped is called as soon as the VM is known to have stopped at the source. A namespace VM waits for it, a real
	// one does not.
	Stopped func(context.Context, time.Time) error
	// Resumed is called as soon as the VM is known to run again, at host. It must not block.
	Resumed func(at time.Time, host *Host)
}

// When a migration is cancelled. At the switch itself it is by Fail, which does not depend on luck.
const (
	CancelInCopy      = "copy"  // while the memory is copied
	CancelAfterSwitch = "after" // when the VM runs at the target: too late, it stays there
)

// Switch is what became of a migration. Times are the VMM's own.
type Switch struct {
	Stopped time.Time
	Resumed time.Time
	At      *Host         // where the VM runs now
	Total   time.Duration // from the beginning of the copy to its end; 0 = there was none
	Bytes   uint64        // copied
	// Problems are what the VM's side did wrong: an event that could not be told, a guest that the VMM broke.
	Problems []string
	Why      string // why it stayed, if it did
}

// VMSpec describes a VM of the cloud to those who make one.
type VMSpec struct {
	Name     string
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix // with the length of the on-link prefix
	Gateway4 netip.Addr
	Gateway6 netip.Addr // link-local
	Device   string     // its interface's name on hypervisors
	Guest    *Host      // the namespace that is the guest of a namespace VM, and stands for a real one
}

// A maker makes the VMs of one kind, and what hypervisors need for that. One belongs to one cloud.
type maker interface {
	// agent is what the configuration of the agent whose files are in dir says under "vms", as a YAML flow mapping;
	// "" = nothing.
	agent(n node, dir string) string
	// drivers are the URIs under which the controller reaches the hypervisor: its driver, and the stream of memory.
	drivers(n node, dir string) (driver, migrate string)
	// start readies the hypervisors, after their namespaces are made and before the daemons start.
	start(ctx context.Context, c *Cloud) error
	// vm makes a VM that does not run yet.
	vm(ctx context.Context, s VMSpec) (CloudVM, error)
	// close takes everything away that start made; the VMs are closed before.
	close() error
}

// makers by kind of VM.
var makers = map[string]func() maker{
	VMNamespace: func() maker { return namespaceMaker{} },
	VMQEMU:      func() maker { return new(qemuMaker) },
}

// newMaker is the maker of a kind; "" = namespace.
func newMaker(kind string) (maker, error) {
	if kind == "" {
		kind = VMNamespace
	}
	m := makers[kind]
	if m == nil {
		var known []string
		for k := range makers {
			known = append(known, k)
		}
		slices.Sort(known)
		return nil, fmt.Errorf("testnet: VMs of kind %q: there are %s", kind, strings.Join(known, ", "))
	}
	return m(), nil
}
