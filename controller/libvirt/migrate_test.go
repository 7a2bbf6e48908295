package libvirt

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/controller"
)

// steps collects what a migration tells.
type steps struct {
	mu  sync.Mutex
	all []controller.Progress
	on  func(controller.Progress)
}

func (s *steps) add(p controller.Progress) {
	s.mu.Lock()
	s.all = append(s.all, p)
	s.mu.Unlock()
	if s.on != nil {
		s.on(p)
	}
}

func (s *steps) phases() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		out = append(out, p.Phase)
	}
	return slices.Compact(out)
}

func (s *steps) last() controller.Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[len(s.all)-1]
}

func TestMigrate(t *testing.T) {
	for name, m := range map[string]controller.Migration{
		"live":     {Mode: controller.ModeLive, MaxDowntime: 20 * time.Millisecond},
		"default":  {},
		"many":     {Mode: controller.ModeLive, Parallel: 2, AutoConverge: true, Bandwidth: 100 << 20},
		"small":    {Mode: controller.ModeLive, Compress: true},
		"postcopy": {Mode: controller.ModePostCopy, Bandwidth: 1 << 20}, // so slow that post-copy comes first
		"still":    {Mode: controller.ModeOffline},
	} {
		t.Run(name, func(t *testing.T) {
			l, a, b := open(t)
			vm := "moves-" + name
			here, there := watch(t, a), watch(t, b)
			var o vmOptions
			if m.Mode == controller.ModePostCopy {
				o.memory = 1024
			}
			boot(t, a, b, vm, o)
			m.VM, m.Dest, m.Via = vm, l.hv[1].RemoteURI(), "tcp://"+l.ip[1].String()
			var s steps
			must(t, a.Migrate(t.Context(), m, s.add))
			wantState(t, a, vm, "")
			wantState(t, b, vm, controller.GuestRunning)
			stopped, resumed := "stopped migrated", "resumed migrated"
			switch m.Mode {
			case controller.ModePostCopy:
				stopped, resumed = "stopped post-copy", "resumed post-copy"
			case controller.ModeOffline:
				stopped = "stopped migrated" // before the first byte
			}
			here.until(t, vm, stopped, "gone migrated")
			there.until(t, vm, "changed incoming migration", resumed)
			if m.Mode != controller.ModeOffline {
				here.until(t, vm, "migrating iteration 1", stopped)
			}
			if p := s.phases(); p[0] != "setup" || p[len(p)-1] != "done" {
				t.Errorf("phases: %q", p)
			}
			if p := s.last(); p.Done != p.Total || p.Elapsed <= 0 || p.Downtime < 0 || p.Downtime > 5*time.Second {
				t.Errorf("in the end: %+v", p)
			}
			// And back, as the other side sees it.
			must(t, b.Migrate(t.Context(), controller.Migration{VM: vm, Dest: l.hv[0].RemoteURI(), Mode: controller.ModeLive}, nil))
			wantState(t, a, vm, controller.GuestRunning)
			wantState(t, b, vm, "")
		})
	}
}

func TestMigrateWhatDoesNotRun(t *testing.T) {
	l, a, b := open(t)
	boot(t, a, b, "off", vmOptions{})
	must(t, a.Control(t.Context(), "off", controller.ActionKill))
	m := controller.Migration{VM: "off", Dest: l.hv[1].RemoteURI()}
	if err := a.Migrate(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), "offline only") {
		t.Errorf("live: %v", err)
	}
	m.Mode = controller.ModeOffline
	must(t, a.Migrate(t.Context(), m, nil))
	wantState(t, a, "off", "")
	wantState(t, b, "off", controller.GuestOff)
}

func TestMigrateAVMThatIsPaused(t *testing.T) {
	l, a, b := open(t)
	boot(t, a, b, "stands", vmOptions{})
	must(t, a.Control(t.Context(), "stands", controller.ActionPause))
	must(t, a.Migrate(t.Context(), controller.Migration{VM: "stands", Dest: l.hv[1].RemoteURI(), Mode: controller.ModeLive}, nil))
	wantState(t, b, "stands", controller.GuestPaused)
}

// TestMigrateWithItsDisk also sees the disk's content arrive, and the progress of its copy.
func TestMigrateWithItsDisk(t *testing.T) {
	l, a, b := open(t)
	// The daemons share this file system: a path that is one file at one and another at the other is in what is private
	// to each.
	image := "/var/lib/libvirt/disk.img"
	content := make([]byte, 24<<20)
	_, _ = rand.Read(content)
	at := func(hv string) string { return filepath.Join(l.dir, hv, "lib", "disk.img") }
	must(t, os.WriteFile(at("hv1"), content, 0o600))
	must(t, os.WriteFile(at("hv2"), make([]byte, len(content)), 0o600))
	boot(t, a, b, "disk", vmOptions{disk: image})
	m := controller.Migration{VM: "disk", Dest: l.hv[1].RemoteURI(), Mode: controller.ModeLive}
	if err := a.Migrate(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), "nsafe") {
		t.Errorf("a disk that is not shared: %v", err)
	}
	wantState(t, a, "disk", controller.GuestRunning)
	m.CopyStorage, m.Disks = controller.CopyAll, []string{"vdz"}
	if err := a.Migrate(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), `no disk "vdz"`) {
		t.Errorf("a disk that is not there: %v", err)
	}
	m.Disks, m.Bandwidth = nil, 16<<20
	var s steps
	must(t, a.Migrate(t.Context(), m, s.add))
	wantState(t, b, "disk", controller.GuestRunning)
	if p := s.phases(); !slices.Contains(p, "storage") {
		t.Errorf("phases: %q", p)
	}
	if p := s.last(); p.Total < uint64(len(content)) {
		t.Errorf("in the end: %+v", p)
	}
	got, err := os.ReadFile(at("hv2"))
	must(t, err)
	if !slices.Equal(got, content) {
		t.Error("the copy is not what was copied")
	}
}

// slowVM boots a VM that takes seconds to move: its pages are many, and its line is thin.
func slowVM(t *testing.T, name string) (a, b *Driver, m controller.Migration) {
	t.Helper()
	l, a, b := open(t)
	boot(t, a, b, name, vmOptions{memory: 1024})
	return a, b, controller.Migration{VM: name, Dest: l.hv[1].RemoteURI(), Mode: controller.ModeLive, Bandwidth: 1 << 20}
}

// onMemory is a progress function that acts once, when memory travels.
func onMemory(f func()) func(controller.Progress) {
	var once sync.Once
	return func(p controller.Progress) {
		if p.Phase == "memory" {
			once.Do(f)
		}
	}
}

func TestMigrateIsCancelled(t *testing.T) {
	a, b, m := slowVM(t, "cancelled")
	w := watch(t, a)
	ctx, cancel := context.WithCancelCause(t.Context())
	s := steps{on: onMemory(func() { cancel(errors.New("the user said so")) })}
	err := a.Migrate(ctx, m, s.add)
	if err == nil || !strings.Contains(err.Error(), "the user said so") || errors.As(err, new(*controller.ErrMigrationUnclear)) {
		t.Errorf("migrate: %v", err)
	}
	wantState(t, a, "cancelled", controller.GuestRunning)
	wantState(t, b, "cancelled", "")
	if s.last().Phase != "failed" {
		t.Errorf("phases: %q", s.phases())
	}
	w.until(t, "cancelled", "migrating iteration 1")
	if got := w.told("cancelled"); slices.Contains(got, "stopped migrated") {
		t.Errorf("it was stopped: %q", got)
	}
}

func TestSteer(t *testing.T) {
	for name, steering := range map[string]controller.Steering{
		"faster":   {Bandwidth: 1 << 30, MaxDowntime: 100 * time.Millisecond},
		"postcopy": {PostCopy: true, Bandwidth: 1 << 30},
		"pause":    {Pause: true, Bandwidth: 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, m := slowVM(t, "steered-"+name)
			m.AllowPostCopy = true
			steered := make(chan error, 1)
			s := steps{on: onMemory(func() { go func() { steered <- a.Steer(context.Background(), m.VM, steering) }() })}
			begun := time.Now()
			must(t, a.Migrate(t.Context(), m, s.add))
			must(t, <-steered)
			if took := time.Since(begun); took > 4*time.Second {
				t.Errorf("it took %v: it was not steered", took)
			}
			wantState(t, b, m.VM, controller.GuestRunning)
		})
	}
	_, a, _ := open(t)
	if err := a.Steer(t.Context(), "nobody", controller.Steering{Pause: true}); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("steer: %v", err)
	}
}

// TestMigrateWhenTheSourcesDaemonDies: it comes back, and undoes what it had begun.
func TestMigrateWhenTheSourcesDaemonDies(t *testing.T) {
	a, b, m := slowVM(t, "orphan")
	l, _, _ := open(t)
	s := steps{on: onMemory(func() { go func() { _ = l.hv[0].Kill() }() })}
	err := a.Migrate(t.Context(), m, s.add)
	if err == nil || errors.As(err, new(*controller.ErrMigrationUnclear)) {
		t.Errorf("migrate: %v", err)
	}
	wantState(t, a, "orphan", controller.GuestRunning)
	wantState(t, b, "orphan", "")
}

func TestMigrateWhenTheTargetsDaemonDies(t *testing.T) {
	a, b, m := slowVM(t, "refused")
	l, _, _ := open(t)
	s := steps{on: onMemory(func() { go func() { _ = l.hv[1].Kill() }() })}
	err := a.Migrate(t.Context(), m, s.add)
	if err == nil || errors.As(err, new(*controller.ErrMigrationUnclear)) {
		t.Errorf("migrate: %v", err)
	}
	wantState(t, a, "refused", controller.GuestRunning)
	must(t, l.hv[1].Ready(t.Context()))
	wantState(t, b, "refused", "")
}

// TestPostCopyThatBreaksOff: half of the VM's memory is at the source and half was at the target, so it runs nowhere.
func TestPostCopyThatBreaksOff(t *testing.T) {
	a, b, m := slowVM(t, "torn")
	l, _, _ := open(t)
	_, err := l.hv[0].Virsh(t.Context(), "qemu-monitor-command", "torn", `{"execute":"migrate-set-parameters","arguments":{"max-postcopy-bandwidth":100000}}`)
	must(t, err)
	m.Mode = controller.ModePostCopy
	killed := make(chan error, 1)
	var once sync.Once
	s := steps{on: func(p controller.Progress) {
		if p.Phase == "post-copy" {
			once.Do(func() { go func() { killed <- b.Control(context.Background(), "torn", controller.ActionKill) }() })
		}
	}}
	if err = a.Migrate(t.Context(), m, s.add); !errors.As(err, new(*controller.ErrMigrationUnclear)) {
		t.Errorf("migrate: %v, phases %q", err, s.phases())
	}
	must(t, <-killed)
	wantState(t, a, "torn", controller.GuestPaused)
}

func TestMigrateToNowhere(t *testing.T) {
	_, a, b := open(t)
	boot(t, a, b, "homely", vmOptions{})
	for dest, want := range map[string]string{
		"":                           "no destination",
		"qemu+tcp://10.9.0.7/system": "10.9.0.7",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := a.Migrate(ctx, controller.Migration{VM: "homely", Dest: dest}, nil)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %q: %v", dest, err)
		}
	}
	wantState(t, a, "homely", controller.GuestRunning)
}
