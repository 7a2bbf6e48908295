package testnet

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeSpec starts this test binary as a daemon.
func fakeSpec(t *testing.T, h *Host) Spec {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	socket := filepath.Join(h.Dir(), "admin.sock")
	return Spec{Name: "daemon", Args: []string{exe}, Log: filepath.Join(h.Dir(), "daemon.log"), Socket: socket,
		Env: []string{"TESTNET_ROLE=daemon", "TESTNET_SOCKET=" + socket}}
}

func TestProcessLife(t *testing.T) {
	_, a, _ := pair(t)
	must(t, a.define(fakeSpec(t, a)))
	ctx := within(t, 20*time.Second)
	must(t, a.Start(ctx, "daemon"))
	if err := a.Start(ctx, "daemon"); err == nil {
		t.Error("started twice")
	}
	var links []string
	must(t, a.Admin(ctx, http.MethodGet, "/v1/show/links", nil, &links))
	if !slices.Contains(links, "eth0") || !slices.Contains(links, "lo") || len(links) != 2 {
		t.Errorf("the process sees %v: is it in its namespace?", links)
	}
	if err := a.Admin(ctx, http.MethodGet, "/v1/nothing", nil, nil); !isStatus(err, http.StatusNotFound) {
		t.Errorf("a path that is not there: %v", err)
	}
	first := a.PID("daemon")
	must(t, a.Kill("daemon"))
	if a.Running("daemon") || unix.Kill(first, 0) == nil {
		t.Error("killed, and lives")
	}
	must(t, os.Remove(a.Socket()))
	must(t, a.Start(ctx, "daemon"))
	if a.PID("daemon") == first || !a.Running("daemon") {
		t.Error("not restarted")
	}
	if log := readFile(t, filepath.Join(a.Dir(), "daemon.log")); strings.Count(log, "fake daemon is up") != 2 {
		t.Errorf("the log has not both lives: %q", log)
	}
	must(t, a.Freeze("daemon"))
	_, state, err := procStat(a.PID("daemon"))
	for range 100 { // the signal is on its way
		if state == 'T' || err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
		_, state, err = procStat(a.PID("daemon"))
	}
	if state != 'T' {
		t.Errorf("frozen: state %c, %v", state, err)
	}
	must(t, a.Thaw("daemon"))
	must(t, a.Stop("daemon"))
}

func TestProcessThatEndsBeforeItIsReady(t *testing.T) {
	_, a, _ := pair(t)
	s := fakeSpec(t, a)
	s.Env[1] = "TESTNET_SOCKET=/nonexistent/dir/socket"
	must(t, a.define(s))
	err := a.Start(within(t, 20*time.Second), "daemon")
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("the error does not show the log: %v", err)
	}
}

// victim builds something and waits to be killed.
func victim() {
	r, err := newRun(os.Getenv("TESTNET_RUN"), os.Getenv("TESTNET_RUN"))
	check(err)
	h, err := newHost(r, "x", "")
	check(err)
	other, err := newHost(r, "y", "")
	check(err)
	check(Connect(End{NS: h.ns, Name: "eth0"}, End{NS: other.ns, Name: "eth0"}))
	bpf := filepath.Join(h.Dir(), "bpf")
	check(os.Mkdir(bpf, 0o755))
	check(unix.Mount("bpf", bpf, "bpf", 0, ""))
	check(h.define(Spec{Name: "sleep", Args: []string{"/proc/self/exe"}, Log: filepath.Join(h.Dir(), "log"),
		Env: []string{"TESTNET_ROLE=daemon", "TESTNET_SOCKET=" + filepath.Join(h.Dir(), "s")}, Socket: filepath.Join(h.Dir(), "s")}))
	check(h.launch("sleep"))
	fmt.Println(h.PID("sleep"))
	select {}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// startVictim runs a victim until it has everything up, and returns its run's id and its child's pid.
func startVictim(t *testing.T) (cmd *exec.Cmd, id string, child int) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	id = fmt.Sprintf("tt%d-v%d", os.Getpid(), runs.Add(1))
	cmd = exec.Command(exe)
	cmd.Env = append(os.Environ(), "TESTNET_ROLE=victim", "TESTNET_RUN="+id)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := fmt.Fscan(out, &child); err != nil {
		t.Fatal("the victim did not come up:", err)
	}
	return cmd, id, child
}

func TestLeftoversOfAKilledRun(t *testing.T) {
	cmd, id, child := startVictim(t)
	if ids, err := CleanLeftovers(); err != nil || slices.Contains(ids, id) {
		t.Fatalf("a run that lives is no leftover: %v, %v", ids, err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if len(leftBehind(id)) != 3 {
		t.Fatalf("the test is wrong: it left %v", leftBehind(id))
	}
	ids, err := CleanLeftovers()
	must(t, err)
	if !slices.Contains(ids, id) {
		t.Errorf("leftovers of %s not found: %v", id, ids)
	}
	checkGone(t, id, child)
}

func TestJanitorTakesAKilledRunAway(t *testing.T) {
	cmd, id, child := startVictim(t)
	exe, err := os.Executable()
	must(t, err)
	janitor := exec.Command(exe, filepath.Join(runRoot, runPrefix+id))
	janitor.Env = append(os.Environ(), "TESTNET_ROLE=janitor")
	janitor.Stderr = os.Stderr
	pipe, err := janitor.StdinPipe()
	must(t, err)
	must(t, janitor.Start())
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	must(t, pipe.Close())
	must(t, janitor.Wait())
	checkGone(t, id, child)
}

func checkGone(t *testing.T, id string, child int) {
	t.Helper()
	if left := leftBehind(id); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
	if mounts := readFile(t, "/proc/self/mountinfo"); strings.Contains(mounts, id) {
		t.Error("something is still mounted")
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, state, err := procStat(child); errors.Is(err, os.ErrNotExist) || state == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives", child)
		}
	}
}

// A pid that has become another process's is not killed.
func TestProcessRefIsNotJustAPid(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "TESTNET_ROLE=janitor") // sits at its standard input
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	ref, err := processRef(cmd.Process.Pid)
	must(t, err)
	if !ref.alive() {
		t.Error("it lives")
	}
	other := ref
	other.Start++
	must(t, other.kill())
	if !ref.alive() {
		t.Error("killed by a reference to another process")
	}
	must(t, ref.kill())
	_ = cmd.Wait()
	_ = in.(io.Closer).Close()
}

func TestWithoutRootOneLineSaysWhatIsMissing(t *testing.T) {
	// The test's own directory is closed to others: they get a copy.
	dir, err := os.MkdirTemp("", "testnet")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	exe := filepath.Join(dir, "test")
	b, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(exe, b, 0o755))
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "TESTNET_ROLE=unprivileged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	must(t, err)
	if !strings.Contains(string(out), "sudo") || strings.Contains(string(out), "\n") {
		t.Errorf("%q", out)
	}
	if missing := MissingPrivilege(); missing != "" {
		t.Errorf("as root: %s", missing)
	}
}
