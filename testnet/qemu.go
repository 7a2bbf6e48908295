package testnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// QEMUConfig describes a QEMU.
type QEMUConfig struct {
	Host  *Host  // the hypervisor in whose namespace it runs
	Name  string // the VM's; one QEMU of that name a hypervisor
	UUID  string // "" = none
	MAC   net.HardwareAddr
	Tap   string // the interface's name on the hypervisor; QEMU makes it, and it goes with QEMU
	Image Image
	// Params is what the guest is told; of a guest that comes from elsewhere it is not used.
	Params    GuestParams
	MemoryMiB int // 0 = GuestMemory
	Disks     []QEMUDisk
	Incoming  bool // it waits for a VM that is migrated to it
}

// QEMUDisk is a disk of a guest, in the order of vda, vdb.
type QEMUDisk struct {
	Node   string // the name of its block node, and of its device
	File   string // a raw image
	Format string // of File: "raw" (as "") or "qcow2"
}

// QEMU is a process that runs a real guest, without KVM, on a hypervisor of ours. It has two monitors: DIR/NAME.qmp is
// ours, DIR/NAME.agent.qmp is for the hypervisor's agent, where DIR is [VMDir] of the hypervisor.
type QEMU struct {
	conf    QEMUConfig
	monitor *qmp.Client
	process string // its name on the host
	console string // file with what the guest's console says
	proc    *process
}

// MissingQEMU says in one line what is missing to run real guests here; "" = nothing.
func MissingQEMU() string {
	if _, err := exec.LookPath(qemuProgram); err != nil {
		return fmt.Sprintf("there is no %s: apt-get install qemu-system-x86", qemuProgram)
	}
	return ""
}

const qemuProgram = "qemu-system-x86_64"

// vmDir is where the QEMUs of a hypervisor have their sockets, given the hypervisor's directory.
func vmDir(dir string) string { return filepath.Join(dir, "vms") }

// agentMonitors is the pattern of the sockets that the hypervisor's agent follows.
func agentMonitors(dir string) string { return filepath.Join(vmDir(dir), "*.agent.qmp") }

// NewQEMU starts a QEMU and waits until it can be spoken to and its interface is up. It ends with its host.
func NewQEMU(ctx context.Context, c QEMUConfig) (*QEMU, error) {
	if missing := MissingQEMU(); missing != "" {
		return nil, errors.New("testnet: " + missing)
	}
	dir := vmDir(c.Host.dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	q := &QEMU{conf: c, process: "qemu-" + c.Name, console: filepath.Join(dir, c.Name+".console")}
	if err := os.Remove(q.console); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("testnet: %w", err) // what an earlier guest said here is not what this one says
	}
	if err := c.Host.define(Spec{Name: q.process, Args: q.command(dir), Log: filepath.Join(dir, c.Name+".log")}); err != nil {
		return nil, err
	}
	if err := c.Host.launch(q.process); err != nil {
		return nil, err
	}
	var err error
	if q.proc, err = c.Host.process(q.process); err != nil {
		return nil, err
	}
	if err := q.ready(ctx, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: QEMU of %s at %s: %w", c.Name, c.Host.Name, err), q.Kill())
	}
	return q, nil
}

// command is the command line.
func (q *QEMU) command(dir string) []string {
	c := q.conf
	params := c.Params
	params.Name = cmp.Or(params.Name, c.Name)
	monitor := func(name string) string { return "unix:" + filepath.Join(dir, name) + ",server=on,wait=off" }
	args := []string{qemuProgram, "-accel", GuestAccel, "-machine", "q35", "-m", fmt.Sprint(cmp.Or(c.MemoryMiB, GuestMemory)),
		"-smp", GuestCPUs, "-nodefaults", "-no-user-config", "-display", "none", "-name", c.Name + ",debug-threads=on", "-serial", "file:" + q.console,
		"-qmp", monitor(c.Name + ".qmp"), "-qmp", monitor(c.Name + ".agent.qmp"),
		"-netdev", "tap,id=n0,ifname=" + c.Tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n0,romfile=," + GuestVirtio + ",mac=" + c.MAC.String(),
		"-kernel", c.Image.Kernel, "-initrd", c.Image.Initrd, "-append", GuestCmdline(params)}
	if c.UUID != "" {
		args = append(args, "-uuid", c.UUID)
	}
	for _, d := range c.Disks {
		args = append(args, "-blockdev", fmt.Sprintf("driver=%s,node-name=%s,file.driver=file,file.filename=%s", cmp.Or(d.Format, "raw"), d.Node, d.File),
			"-device", fmt.Sprintf("virtio-blk-pci,id=%s-dev,drive=%s,%s", d.Node, d.Node, GuestVirtio))
	}
	if c.Incoming {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// ready waits until the monitor answers, which is after the devices are made, and sets the interface up: QEMU itself
// leaves that to a script.
func (q *QEMU) ready(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("its monitor does not answer within 30 s"))
	defer cancel()
	for {
		var err error
		if q.monitor, err = qmp.Dial(ctx, filepath.Join(dir, q.conf.Name+".qmp")); err == nil {
			break
		}
		if !q.proc.running() {
			return fmt.Errorf("it ended: %w; it said:\n%s", q.proc.err, tail(q.proc.spec.Log))
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, qmp.ErrClosed) {
			return err
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return q.conf.Host.ns.Do(func() error {
		if err := writeSysctl("net/ipv6/conf/"+q.conf.Tap+"/accept_dad", "0"); err != nil {
			return err
		}
		l, err := netlink.LinkByName(q.conf.Tap)
		if err != nil {
			return fmt.Errorf("%s: %w", q.conf.Tap, err)
		}
		return netlink.LinkSetUp(l)
	})
}

// Monitor is the client of its first monitor.
func (q *QEMU) Monitor() *qmp.Client { return q.monitor }

// Console is what the guest's console has said since it came here.
func (q *QEMU) Console() string {
	b, err := os.ReadFile(q.console)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// guestUp is what the guest's console says when its addresses are set.
const guestUp = "guest: up"

// WaitUp waits until the guest has booted.
func (q *QEMU) WaitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	for !strings.Contains(q.Console(), guestUp) {
		if !q.proc.running() {
			return fmt.Errorf("testnet: QEMU of %s ended: %w; it said:\n%s", q.conf.Name, q.proc.err, tail(q.proc.spec.Log))
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("testnet: guest %s does not boot: %w; its console ends:\n%s", q.conf.Name, err, tail(q.console))
		}
	}
	return nil
}

// Trouble is what the guest's console says of a guest that broke down; ok is false while it says nothing.
func (q *QEMU) Trouble() (t Trouble, ok bool) {
	return GuestTrouble([]byte(q.Console()))
}

// Broken is the same for people; "" = nothing.
func (q *QEMU) Broken() string {
	if t, ok := q.Trouble(); ok {
		return t.String()
	}
	return ""
}

// Kill ends it at once, and its guest. Its interface is gone then.
func (q *QEMU) Kill() error {
	err := q.conf.Host.Kill(q.process)
	if q.monitor != nil {
		err = errors.Join(err, q.monitor.Close())
		q.monitor = nil
	}
	return err
}
