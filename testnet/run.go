package testnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// runPrefix begins the name of every run directory.
const runPrefix = "tabi-demo-"

// runRoot is where run directories are: not on disk, and gone after a reboot as what they speak of.
const runRoot = "/run"

// Run is what a run has made on this machine. It is on disk before the thing is made, so that whoever comes after a
// crash can take it all away.
type Run struct {
	ID         string       `json:"id"`
	Owner      ProcessRef   `json:"owner"`
	Started    time.Time    `json:"started"`
	Kept       bool         `json:"kept"` // it is meant to stay up after its moves
	Namespaces []string     `json:"namespaces"`
	Processes  []ProcessRef `json:"processes"`
	Hosts      []HostRef    `json:"hosts"`

	dir    string
	prefix string // of its namespaces' names
	mu     sync.Mutex
}

// ProcessRef names a process for good: a pid alone may be another process's by now.
type ProcessRef struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, field 22 of /proc/PID/stat
	Host  string `json:"host,omitempty"`
	Name  string `json:"name,omitempty"`
}

// HostRef is a host as `tabi demo shell` needs it.
type HostRef struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Socket    string `json:"socket,omitempty"` // its daemon's admin socket
	About     string `json:"about"`
}

// newRun makes the run directory /run/tabi-demo-ID. It fails when that exists. Namespaces will be named PREFIX-HOST.
func newRun(id, prefix string) (*Run, error) {
	self, err := processRef(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	r := &Run{ID: id, Owner: self, Started: time.Now(), dir: filepath.Join(runRoot, runPrefix+id), prefix: prefix}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return nil, fmt.Errorf("testnet: run directory: %w", err)
	}
	return r, r.update(func() {})
}

// Dir is the run directory.
func (r *Run) Dir() string { return r.dir }

// Alive reports whether the process that owns the run still lives.
func (r *Run) Alive() bool { return r.Owner.alive() }

// Host is the host of that name.
func (r *Run) Host(name string) (HostRef, bool) {
	i := slices.IndexFunc(r.Hosts, func(h HostRef) bool { return h.Name == name })
	if i < 0 {
		return HostRef{}, false
	}
	return r.Hosts[i], true
}

// update changes the record and makes it durable.
func (r *Run) update(change func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("testnet: run record: %w", err)
	}
	tmp := filepath.Join(r.dir, ".run.json")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return fmt.Errorf("testnet: run record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(r.dir, "run.json")); err != nil {
		return fmt.Errorf("testnet: run record: %w", err)
	}
	return nil
}

// Runs lists the runs of this machine, oldest first: those that are up, and what crashed ones left.
func Runs() ([]*Run, error) {
	dirs, err := filepath.Glob(filepath.Join(runRoot, runPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	var runs []*Run
	for _, d := range dirs {
		r, err := openRun(d)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // not made yet, or just removed
			}
			return nil, err
		}
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b *Run) int { return a.Started.Compare(b.Started) })
	return runs, nil
}

func openRun(dir string) (*Run, error) {
	b, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	r := &Run{dir: dir}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("testnet: %s/run.json: %w", dir, err)
	}
	return r, nil
}

// CleanLeftovers removes what runs whose owner is dead have left, and returns their ids.
func CleanLeftovers() ([]string, error) {
	runs, err := Runs()
	if err != nil {
		return nil, err
	}
	var ids []string
	var errs []error
	for _, r := range runs {
		if r.Alive() {
			continue
		}
		ids = append(ids, r.ID)
		errs = append(errs, Clean(r))
	}
	return ids, errors.Join(errs...)
}

// Clean takes away everything that a run has made: processes, namespaces, mounts, the run directory. It goes on
// after an error and may be repeated. The owner must be dead, or be the caller.
func Clean(r *Run) error {
	var errs []error
	for _, p := range r.Processes {
		errs = append(errs, p.kill())
	}
	for _, p := range r.shells() {
		_ = p.signal(unix.SIGHUP) // a person's shell: told to go, not made to
	}
	for _, n := range r.Namespaces {
		errs = append(errs, RemoveNamespace(n))
	}
	errs = append(errs, unmountBelow(r.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("testnet: clean up run %s: %w", r.ID, err) // the record stays for the next attempt
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("testnet: clean up run %s: %w", r.ID, err)
	}
	return nil
}

// Stop takes a run down: it asks the process that owns it to end and waits until that has cleaned up, at most
// patience; a run whose owner is dead is cleaned up here.
func (r *Run) Stop(ctx context.Context, patience time.Duration) error {
	if err := r.Owner.signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("testnet: run %s: end process %d: %w", r.ID, r.Owner.PID, err)
	}
	for deadline := time.Now().Add(patience); r.Alive(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("testnet: run %s: process %d does not end", r.ID, r.Owner.PID)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	if left, err := openRun(r.dir); err == nil {
		return Clean(left)
	}
	return nil
}

// Janitor waits until in ends, which is when the process at the other end of the pipe is gone, however it went, and
// then removes what it left in dir. When that process has cleaned up by itself there is nothing left to do.
func Janitor(dir string, in io.Reader) error {
	_, _ = io.Copy(io.Discard, in)
	r, err := openRun(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); r.Alive(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("testnet: janitor: run %s: its owner %d closed the pipe and lives", r.ID, r.Owner.PID)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return Clean(r)
}

// AddShell records the calling process as a person's shell in the run, so that taking the run down tells it.
func (r *Run) AddShell() error {
	p, err := processRef(os.Getpid())
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	dir := filepath.Join(r.dir, "shells")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, strconv.Itoa(p.PID)), []byte(strconv.FormatUint(p.Start, 10)), 0o644)
}

func (r *Run) shells() []ProcessRef {
	files, _ := filepath.Glob(filepath.Join(r.dir, "shells", "*"))
	var out []ProcessRef
	for _, f := range files {
		pid, err1 := strconv.Atoi(filepath.Base(f))
		b, err2 := os.ReadFile(f)
		start, err3 := strconv.ParseUint(string(b), 10, 64)
		if errors.Join(err1, err2, err3) == nil {
			out = append(out, ProcessRef{PID: pid, Start: start})
		}
	}
	return out
}

// processRef names a living process.
func processRef(pid int) (ProcessRef, error) {
	start, _, err := procStat(pid)
	return ProcessRef{PID: pid, Start: start}, err
}

// procStat reads when a process started, and its state letter.
func procStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the command in parentheses and may hold anything: count from its end.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err
}

// alive: it is the same process and not a zombie.
func (p ProcessRef) alive() bool {
	start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

func (p ProcessRef) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !p.alive() { // asked after the pidfd was opened: it cannot become another process's any more
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// kill kills and waits until the process is gone; a dead one is not an error.
func (p ProcessRef) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill %s/%s (pid %d): %w", p.Host, p.Name, p.PID, err)
	}
	for deadline := time.Now().Add(5 * time.Second); p.alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("kill %s/%s (pid %d): it does not end", p.Host, p.Name, p.PID)
		}
	}
	return nil
}

// unmountBelow unmounts everything that is mounted below dir: the daemons mount bpffs there.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points) // later mounts first: they may be on top of earlier ones
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}
