package qmp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// forks starts processes from a thread that lives as long as we do: the parent's death, which kills them, is that of
// the thread that started them.
var forks = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// qemu is a real QEMU with no guest but its firmware.
type qemu struct {
	*Client
	cmd   *exec.Cmd
	ended chan struct{}
	agent string // socket of its second monitor
}

// startQEMU starts a VM with monitors DIR/NAME.qmp and DIR/NAME.agent.qmp. It ends with the test.
func startQEMU(t *testing.T, dir, name string, args ...string) *qemu {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatalf("%v: apt-get install qemu-system-x86", err)
	}
	ours, agent := filepath.Join(dir, name+".qmp"), filepath.Join(dir, name+".agent.qmp")
	var said bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", append([]string{"-accel", "tcg,thread=single,tb-size=16", "-machine", "q35", "-m", "16", "-nodefaults",
		"-no-user-config", "-nographic", "-name", "vm", "-uuid", "11111111-2222-3333-4444-555555555555",
		"-qmp", "unix:" + ours + ",server=on,wait=off", "-qmp", "unix:" + agent + ",server=on,wait=off"}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	forks() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	q := &qemu{cmd: cmd, ended: make(chan struct{}), agent: agent}
	go func() {
		_ = cmd.Wait()
		close(q.ended)
	}()
	t.Cleanup(func() {
		q.kill()
		if t.Failed() && said.Len() > 0 {
			t.Logf("%s said: %s", name, &said)
		}
	})
	for {
		var err error
		if q.Client, err = Dial(within(t, 10*time.Second), ours); err == nil {
			return q
		}
		select {
		case <-q.ended:
			t.Fatalf("QEMU ended: %s", &said)
		case <-time.After(5 * time.Millisecond):
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// kill ends it at once.
func (q *qemu) kill() {
	_ = q.cmd.Process.Kill()
	<-q.ended
	if q.Client != nil {
		_ = q.Close()
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is a VM that runs and a QEMU that waits for it.
func pair(t *testing.T, args ...string) (src, dst *qemu, o Options) {
	t.Helper()
	dir := t.TempDir()
	src = startQEMU(t, dir, "a", args...)
	dst = startQEMU(t, dir, "b", append([]string{"-incoming", "defer"}, args...)...)
	return src, dst, Options{Listen: "unix:" + filepath.Join(dir, "m")}
}

func wantStatus(t *testing.T, c *qemu, want string) {
	t.Helper()
	s, err := c.Status(within(t, 10*time.Second))
	if err != nil || s.Status != want {
		t.Errorf("it is %q and not %q: %v", s.Status, want, err)
	}
}

func TestGuestOfQEMU(t *testing.T) {
	q := startQEMU(t, t.TempDir(), "a", "-S", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:AB,romfile=")
	g, err := q.Guest(t.Context())
	must(t, err)
	if g.Name != "vm" || g.UUID != "11111111-2222-3333-4444-555555555555" || g.Status.Status != "prelaunch" || g.Status.Running || g.Leaving {
		t.Errorf("%+v", g)
	}
	if len(g.Interfaces) != 1 || g.Interfaces[0] != (Interface{MAC: "52:54:00:00:00:ab"}) {
		t.Errorf("%+v", g.Interfaces)
	}
	if !strings.Contains(q.Version(), ".") {
		t.Errorf("version %q", q.Version())
	}
	var refused *Error
	if err := q.Execute(t.Context(), "no-such-thing", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("%v", err)
	}
	must(t, q.Execute(t.Context(), "cont", nil, nil))
	wantStatus(t, q, "running")
}

func TestMigrate(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*Options)
	}{
		{"live", func(o *Options) { o.MaxDowntime, o.Bandwidth = 20*time.Millisecond, 64<<20 }},
		{"compressed over four connections", func(o *Options) { o.Compress, o.Parallel = true, 4 }},
		{"auto-converge and post-copy allowed", func(o *Options) { o.AutoConverge, o.AllowPostCopy = true, true }},
		{"post-copy", func(o *Options) { o.Mode = PostCopy }},
		{"post-copy by somebody else", func(o *Options) { o.AllowPostCopy, o.Bandwidth = true, slow }},
		{"offline", func(o *Options) { o.Mode = Offline }},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst, o := pair(t)
			c.set(&o)
			var told []Progress
			r, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, func(p Progress) {
				told = append(told, p)
				if o.Bandwidth == slow && p.Status == "active" {
					go func() { _ = src.StartPostCopy(t.Context()) }()
				}
			})
			must(t, err)
			wantStatus(t, dst, "running")
			wantStatus(t, src, "postmigrate")
			if r.Stopped.IsZero() || r.Resumed.Before(r.Stopped) || r.Resumed.Sub(r.Stopped) > 10*time.Second || r.Total == 0 || r.Sent == 0 {
				t.Errorf("%+v", r)
			}
			if len(told) == 0 || told[len(told)-1].Status != "completed" || told[len(told)-1].Total == 0 {
				t.Errorf("%+v", told)
			}
		})
	}
}

// A VM that stands still moves as it stands.
func TestMigrateStopped(t *testing.T) {
	src, dst, o := pair(t)
	must(t, src.Execute(t.Context(), "stop", nil, nil))
	_, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, nil)
	must(t, err)
	wantStatus(t, dst, "paused")
}

// slow has a migration take seconds, although there is nothing in the memory.
const slow = 20000

func TestMigrateCancelled(t *testing.T) {
	for _, mode := range []Mode{Live, Offline} {
		t.Run(string(mode), func(t *testing.T) {
			src, dst, o := pair(t)
			o.Bandwidth, o.Mode = slow, mode
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("I changed my mind")
			_, err := Migrate(ctx, src.Client, dst.Client, o, func(p Progress) {
				if p.Status == "active" {
					cancel(why)
				}
			})
			if unclear := new(UnclearError); !errors.Is(err, why) || errors.As(err, &unclear) {
				t.Errorf("%v", err)
			}
			wantStatus(t, src, "running")
			// And a second time, now in earnest: the first target is of no use any more.
			again, o2 := startQEMU(t, t.TempDir(), "c", "-incoming", "defer"), o
			o2.Bandwidth, o2.Listen = 1<<30, o.Listen+"2"
			_, err = Migrate(within(t, 30*time.Second), src.Client, again.Client, o2, nil)
			must(t, err)
			wantStatus(t, again, "running")
		})
	}
}

// At the switch itself, while the VM runs nowhere.
func TestMigrateCancelledAtTheSwitch(t *testing.T) {
	src, dst, o := pair(t)
	why := errors.New("no")
	o.BeforeSwitch = func() error {
		wantStatus(t, src, "finish-migrate")
		return why
	}
	r, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, nil)
	if unclear := new(UnclearError); !errors.Is(err, why) || errors.As(err, &unclear) {
		t.Errorf("%v", err)
	}
	wantStatus(t, src, "running")
	if r.Stopped.IsZero() || r.Resumed.Before(r.Stopped) {
		t.Errorf("%+v", r)
	}
}

// Once it is decided it is too late.
func TestMigrateCancelledAfterTheSwitch(t *testing.T) {
	src, dst, o := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer dst.Hear(func(e MonitorEvent) {
		if e.Name == "RESUME" {
			cancel()
		}
	})()
	_, err := Migrate(ctx, src.Client, dst.Client, o, nil)
	must(t, err)
	wantStatus(t, dst, "running")
	wantStatus(t, src, "postmigrate")
}

func TestMigrateTargetDies(t *testing.T) {
	src, dst, o := pair(t)
	o.Bandwidth = slow
	_, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, func(p Progress) {
		if p.Status == "active" {
			_ = dst.cmd.Process.Kill()
		}
	})
	if unclear := new(UnclearError); err == nil || errors.As(err, &unclear) {
		t.Errorf("%v", err)
	}
	wantStatus(t, src, "running")
}

func TestMigrateSourceDies(t *testing.T) {
	src, dst, o := pair(t)
	o.Bandwidth = slow
	_, err := Migrate(within(t, 60*time.Second), src.Client, dst.Client, o, func(p Progress) {
		if p.Status == "active" {
			_ = src.cmd.Process.Kill()
		}
	})
	if unclear := new(UnclearError); !errors.As(err, &unclear) {
		t.Errorf("%v", err)
	}
}

// What QEMU refuses leaves the VM as it was.
func TestMigrateRefused(t *testing.T) {
	dir := t.TempDir()
	src, busy := startQEMU(t, dir, "a"), startQEMU(t, dir, "b")
	for _, o := range []Options{
		{Listen: "unix:" + dir + "/m"},
		{Listen: "unix:" + dir + "/m", Mode: Offline},
		{},
		{Listen: "unix:" + dir + "/m", Parallel: 1000},
	} {
		if _, err := Migrate(within(t, 30*time.Second), src.Client, busy.Client, o, nil); err == nil {
			t.Errorf("%+v: it moved to a QEMU that runs a VM of its own", o)
		}
		wantStatus(t, src, "running")
		wantStatus(t, busy, "running")
	}
	waits := startQEMU(t, dir, "c", "-incoming", "defer")
	if _, err := Migrate(within(t, 30*time.Second), src.Client, waits.Client, Options{Listen: "unix:" + dir + "/m", Connect: "unix:" + dir + "/none"}, nil); err == nil {
		t.Error("it moved to nowhere")
	}
	wantStatus(t, src, "running")
}

// Disks go with the VM, whole or what is above a base image that the target has.
func TestMigrateDisks(t *testing.T) {
	const size = 8 << 20
	content := make([]byte, size)
	_, _ = rand.Read(content)
	for _, top := range []bool{false, true} {
		t.Run(fmt.Sprintf("top only %v", top), func(t *testing.T) {
			dir := t.TempDir()
			disk := func(name string, b []byte) []string {
				file := filepath.Join(dir, name)
				must(t, os.WriteFile(file, b, 0o600))
				return []string{"-blockdev", "driver=raw,node-name=disk0,file.driver=file,file.filename=" + file}
			}
			src := startQEMU(t, dir, "a", disk("a.img", content)...)
			dst := startQEMU(t, dir, "b", append([]string{"-incoming", "defer"}, disk("b.img", make([]byte, size))...)...)
			o := Options{Listen: "unix:" + filepath.Join(dir, "m"), Disks: []Disk{{Node: "disk0", TopOnly: top}}, NBD: NBD{Path: filepath.Join(dir, "nbd")}}
			r, err := Migrate(within(t, 60*time.Second), src.Client, dst.Client, o, nil)
			must(t, err)
			wantStatus(t, dst, "running")
			t.Logf("stood still for %v", r.Resumed.Sub(r.Stopped))
			src.kill()
			dst.kill()
			got, err := os.ReadFile(filepath.Join(dir, "b.img"))
			must(t, err)
			if !bytes.Equal(got, content) {
				t.Error("the copy is not the same")
			}
		})
	}
}

// A disk that cannot be copied keeps the VM where it is, and leaves no half copy at work.
func TestMigrateDisksRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.img")
	must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	small := filepath.Join(dir, "b.img")
	must(t, os.WriteFile(small, make([]byte, 1<<19), 0o600))
	disk := func(f string) string { return "driver=raw,node-name=disk0,file.driver=file,file.filename=" + f }
	src := startQEMU(t, dir, "a", "-blockdev", disk(file))
	dst := startQEMU(t, dir, "b", "-incoming", "defer", "-blockdev", disk(small))
	o := Options{Listen: "unix:" + dir + "/m", Disks: []Disk{{Node: "disk0"}}, NBD: NBD{Path: dir + "/nbd"}}
	_, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, nil)
	if err == nil {
		t.Error("half a disk was enough")
	}
	t.Log(err)
	wantStatus(t, src, "running")
	var jobs []struct{ Device string }
	must(t, src.Execute(t.Context(), "query-block-jobs", nil, &jobs))
	if len(jobs) > 0 {
		t.Errorf("%+v", jobs)
	}
}

// watcher collects what Watch tells.
type watcher struct {
	mu     sync.Mutex
	events []Event
}

func startWatch(t *testing.T, glob string) *watcher {
	t.Helper()
	w := new(watcher)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- Watch(ctx, glob, func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.words())
		}
	})
	return w
}

// words are the kinds so far, with the state of the VM that they are about.
func (w *watcher) words() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		word := string(e.Kind)
		if e.Kind == Listed {
			for _, g := range e.All {
				word += " " + filepath.Base(g.Socket) + "=" + g.Status.Status
			}
		} else {
			word += " " + filepath.Base(e.Guest.Socket)
		}
		out = append(out, word)
	}
	return out
}

func (w *watcher) await(t *testing.T, word string) Event {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if i := slices.Index(w.words(), word); i >= 0 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.events[i]
		}
	}
	t.Fatalf("no %q in %q", word, w.words())
	return Event{}
}

// before fails the test unless the words come in that order.
func (w *watcher) inOrder(t *testing.T, words ...string) {
	t.Helper()
	all := w.words()
	for _, word := range words {
		i := slices.Index(all, word)
		if i < 0 {
			t.Fatalf("no %q where it should be, in %q", word, w.words())
		}
		all = all[i+1:]
	}
}

func TestWatchMigration(t *testing.T) {
	src, dst, o := pair(t)
	w := startWatch(t, filepath.Join(filepath.Dir(src.agent), "*.agent.qmp"))
	w.await(t, "listed a.agent.qmp=running b.agent.qmp=inmigrate")
	r, err := Migrate(within(t, 30*time.Second), src.Client, dst.Client, o, nil)
	must(t, err)
	if e := w.await(t, "stopped a.agent.qmp"); !e.At.Equal(r.Stopped) {
		t.Errorf("stopped at %v, %v by the other monitor", e.At, r.Stopped)
	}
	if e := w.await(t, "resumed b.agent.qmp"); !e.At.Equal(r.Resumed) || e.Guest.UUID != "11111111-2222-3333-4444-555555555555" {
		t.Errorf("resumed at %v, %v by the other monitor: %+v", e.At, r.Resumed, e.Guest)
	}
	w.inOrder(t, "migrating a.agent.qmp", "stopped a.agent.qmp")
	must(t, src.Execute(t.Context(), "quit", nil, nil))
	w.await(t, "gone a.agent.qmp")
	w.await(t, "listed b.agent.qmp=running")
	for _, word := range w.words() {
		if word == "migrating b.agent.qmp" || strings.HasPrefix(word, "failed") {
			t.Errorf("%q", w.words())
		}
	}
	dst.kill()
	w.await(t, "gone b.agent.qmp")
	w.await(t, "listed")
	// Under the same name again.
	startQEMU(t, filepath.Dir(src.agent), "a", "-S")
	w.await(t, "listed a.agent.qmp=prelaunch")
}

func TestWatchCancelledMigration(t *testing.T) {
	dir := t.TempDir()
	second := filepath.Join(dir, "second")
	src, dst := startQEMU(t, dir, "a", "-qmp", "unix:"+second+",server=on,wait=off"), startQEMU(t, dir, "b", "-incoming", "defer")
	o := Options{Listen: "unix:" + filepath.Join(dir, "m")}
	w := startWatch(t, src.agent)
	w.await(t, "listed a.agent.qmp=running")
	o.Bandwidth = slow
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Migrate(ctx, src.Client, dst.Client, o, func(p Progress) {
		if p.Status == "active" {
			// Somebody who comes now learns of it.
			late := startWatch(t, second)
			late.await(t, "listed second=running")
			late.await(t, "migrating second")
			cancel()
		}
	})
	if err == nil {
		t.Error("it moved")
	}
	w.await(t, "resumed a.agent.qmp")
	w.inOrder(t, "migrating a.agent.qmp", "resumed a.agent.qmp")
	if slices.Contains(w.words(), "stopped a.agent.qmp") {
		t.Errorf("%q", w.words())
	}
}
