package testnet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// qemuMaker makes VMs that are real guests under QEMU. A hypervisor needs nothing for them.
type qemuMaker struct {
	image Image
	disk  int // MiB of each VM's local disk, 0 = none
}

// agent: each QEMU has a monitor for the agent, and the pattern of their sockets is all that the agent knows.
func (*qemuMaker) agent(_ node, dir string) string {
	return fmt.Sprintf("{qmp: %q}", agentMonitors(dir))
}

func (*qemuMaker) drivers(node, string) (_, _ string) { return "", "" }
func (*qemuMaker) close() error                       { return nil }

func (m *qemuMaker) start(ctx context.Context, c *Cloud) (err error) {
	if missing := MissingQEMU(); missing != "" {
		return errors.New("testnet: " + missing)
	}
	m.disk = c.opts.DiskMiB
	m.image, err = GuestImage(ctx, c.opts.Progress)
	return err
}

func (m *qemuMaker) vm(ctx context.Context, s VMSpec) (CloudVM, error) {
	if m.image.Kernel == "" { // the cloud's other VMs are of another kind
		var err error
		if m.image, err = GuestImage(ctx, nil); err != nil {
			return nil, err
		}
	}
	id := sha256.Sum256([]byte(s.Name))
	return &qemuVM{spec: s, image: m.image, disk: m.disk, uuid: formatUUID(id[:16]), at: make(map[*Host]*QEMU)}, nil
}

// qemuVM is a real guest as a [CloudVM]: it moves by QMP, from the QEMU of one hypervisor to that of another.
type qemuVM struct {
	spec  VMSpec
	image Image
	disk  int
	uuid  string

	mu     sync.Mutex
	at     map[*Host]*QEMU // the one that it runs in, and one that it has left or is about to reach
	runs   *Host
	moves  int
	broken []string
}

func (v *qemuVM) Interface() string { return v.spec.Device }

// FirstPacket is not known: nobody looks into the guest.
func (v *qemuVM) FirstPacket() time.Time { return time.Time{} }

// QEMU is the process that the VM runs in.
func (v *qemuVM) QEMU() *QEMU {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at[v.runs]
}

// launch starts a QEMU for the VM on a hypervisor.
func (v *qemuVM) launch(ctx context.Context, h *Host, incoming bool) (*QEMU, error) {
	v.mu.Lock()
	there := v.at[h]
	v.mu.Unlock()
	if there != nil {
		return nil, fmt.Errorf("testnet: there is a QEMU of %s at %s already", v.spec.Name, h.Name)
	}
	c := QEMUConfig{Host: h, Name: v.spec.Name, UUID: v.uuid, MAC: v.spec.MAC, Tap: v.spec.Device, Image: v.image, Incoming: incoming,
		Params: GuestParams{Name: v.spec.Name, NICs: []GuestNIC{{Addrs: v.spec.Addrs, Gateway4: v.spec.Gateway4, Gateway6: v.spec.Gateway6}}}}
	if v.disk > 0 {
		d, err := makeDisk(v.diskFile(h), int64(v.disk)<<20)
		if err != nil {
			return nil, err
		}
		c.Disks = append(c.Disks, d)
	}
	q, err := NewQEMU(ctx, c)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at[h] = q
	return q, nil
}

func (v *qemuVM) diskFile(h *Host) string { return filepath.Join(vmDir(h.dir), v.spec.Name+".img") }

// diskNode is the block node of a VM's local disk.
const diskNode = "disk0"

// makeDisk makes an empty raw image, unless it is there.
func makeDisk(file string, size int64) (QEMUDisk, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return QEMUDisk{}, fmt.Errorf("testnet: %w", err)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return QEMUDisk{}, fmt.Errorf("testnet: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return QEMUDisk{}, fmt.Errorf("testnet: %w", err)
	}
	return QEMUDisk{Node: diskNode, File: file}, nil
}

func (v *qemuVM) Boot(ctx context.Context, at *Host) error {
	q, err := v.launch(ctx, at, false)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.runs = at
	v.mu.Unlock()
	return q.WaitUp(ctx)
}

// Defaults of a migration.
const (
	// QEMU's own 300 ms make a blackout of 80 ms; this, one of 5 to 10.
	defaultDowntime = 10 * time.Millisecond
	// As fast as can be: with few rounds of copying there are few moments at which the emulation can lose a write.
	defaultBandwidth = 1 << 30
	migrationTimeout = 2 * time.Minute
)

// Why a migration is given up here.
var (
	errMadeToFail = errors.New("the migration was made to fail")
	errCancelled  = errors.New("the migration was cancelled")
)

// Migrate starts a QEMU at the target and has the guest moved into it.
func (v *qemuVM) Migrate(ctx context.Context, t Transfer) (Switch, error) {
	var s Switch
	src := v.QEMU()
	if src == nil || src.conf.Host != t.From {
		return s, fmt.Errorf("testnet: vm %s does not run at %s", v.spec.Name, t.From.Name)
	}
	dst, err := v.launch(ctx, t.To, true)
	if err != nil {
		return s, err
	}
	if t.Placed != nil {
		if err := t.Placed(ctx); err != nil {
			return s, err
		}
	}
	if err := steady(src.proc.ref.PID); err != nil {
		return s, err
	}
	v.mu.Lock()
	v.moves++
	socket := filepath.Join(vmDir(t.From.dir), fmt.Sprintf("%s.m%d", v.spec.Name, v.moves))
	v.mu.Unlock()
	defer os.Remove(socket)

	ctx, cancel := context.WithTimeoutCause(ctx, migrationTimeout, fmt.Errorf("not within %v", migrationTimeout))
	defer cancel()
	moving, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	hooks := v.hear(moving, t, src, dst, func() { giveUp(errCancelled) })
	o := qmp.Options{Listen: "unix:" + socket, Mode: qmp.Mode(t.Mode), MaxDowntime: cmp.Or(t.MaxDowntime, defaultDowntime), Bandwidth: cmp.Or(t.Bandwidth, defaultBandwidth)}
	if t.CopyDisks {
		o.Disks, o.NBD = []qmp.Disk{{Node: diskNode}}, qmp.NBD{Path: socket + ".nbd"}
	}
	if t.Fail {
		o.BeforeSwitch = func() error {
			return cmp.Or(sleep(moving, t.Blackout), errMadeToFail)
		}
	}
	r, err := qmp.Migrate(moving, src.monitor, dst.monitor, o, func(p qmp.Progress) {
		if t.CancelAt == CancelInCopy && p.Status == "active" {
			giveUp(errCancelled)
		}
	})
	hookErr := hooks()
	if ctx.Err() != nil {
		return s, errors.Join(err, context.Cause(ctx))
	}
	if unclear := new(qmp.UnclearError); errors.As(err, &unclear) {
		return s, err
	}
	s = Switch{Stopped: r.Stopped, Resumed: r.Resumed, At: t.To, Total: r.Total, Bytes: r.Sent}
	if err != nil {
		s.At, s.Why = t.From, err.Error()
		hookErr = errors.Join(hookErr, relax(src.proc.ref.PID))
	}
	v.mu.Lock()
	v.runs = s.At
	v.mu.Unlock()
	return s, hookErr
}

// hear calls the transfer's hooks as QEMU tells of what they are for, and cancel when the VM runs at the target if that
// is asked for. What it returns ends that, and is what the hooks' errors are.
func (v *qemuVM) hear(ctx context.Context, t Transfer, src, dst *QEMU, cancel func()) (end func() error) {
	var wg sync.WaitGroup
	var once sync.Once
	var hookErr error
	atSource := src.monitor.Hear(func(e qmp.MonitorEvent) {
		switch e.Name {
		case "STOP":
			once.Do(func() {
				if t.Stopped != nil {
					wg.Go(func() { hookErr = t.Stopped(ctx, e.At) })
				}
			})
		case "RESUME":
			if t.Resumed != nil {
				t.Resumed(e.At, t.From)
			}
		}
	})
	atTarget := dst.monitor.Hear(func(e qmp.MonitorEvent) {
		if e.Name != "RESUME" {
			return
		}
		if t.Resumed != nil {
			t.Resumed(e.At, t.To)
		}
		if t.CancelAt == CancelAfterSwitch {
			cancel()
		}
	})
	return func() error {
		atSource()
		atTarget()
		wg.Wait()
		return hookErr
	}
}

// Leave ends the QEMU that the VM does not run in.
func (v *qemuVM) Leave(h *Host) error {
	v.mu.Lock()
	q := v.at[h]
	if q == nil {
		v.mu.Unlock()
		return nil
	}
	if v.runs == h {
		v.mu.Unlock()
		return fmt.Errorf("testnet: vm %s runs at %s: its QEMU stays", v.spec.Name, h.Name)
	}
	delete(v.at, h)
	v.mu.Unlock()
	if f := v.flaw(q); f != "" {
		v.mu.Lock()
		v.broken = append(v.broken, f)
		v.mu.Unlock()
	}
	return q.Kill()
}

// flaw is what a guest that broke down said, for people.
func (v *qemuVM) flaw(q *QEMU) string {
	if t, ok := q.Trouble(); ok {
		return fmt.Sprintf("%s at %s: %v", v.spec.Name, q.conf.Host.Name, t)
	}
	return ""
}

// Flaws are those of the QEMUs that it has left, and of the one that it runs in.
func (v *qemuVM) Flaws() []string {
	q := v.QEMU()
	v.mu.Lock()
	out := slices.Clone(v.broken)
	v.mu.Unlock()
	if q != nil {
		if f := v.flaw(q); f != "" {
			out = append(out, f)
		}
	}
	return out
}

func (v *qemuVM) Close() error {
	v.mu.Lock()
	all := v.at
	v.at, v.runs = map[*Host]*QEMU{}, nil
	v.mu.Unlock()
	var errs []error
	for _, q := range all {
		errs = append(errs, q.Kill())
	}
	return errors.Join(errs...)
}
