package testnet

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoCommand starts `tabi demo`; lines are what it says of its progress.
func demoCommand(t *testing.T, args ...string) (cmd *exec.Cmd, out *bytes.Buffer, lines *bufio.Scanner) {
	t.Helper()
	exe, err := tabi()
	must(t, err)
	cmd = exec.Command(exe, append([]string{"demo"}, args...)...)
	out = new(bytes.Buffer)
	cmd.Stdout = out
	// Whatever happens to the test, the demo ends by itself then.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	})
	return cmd, out, bufio.NewScanner(stderr)
}

// until reads progress until a line contains what.
func until(t *testing.T, lines *bufio.Scanner, what string) {
	t.Helper()
	for lines.Scan() {
		if strings.Contains(lines.Text(), what) {
			return
		}
	}
	t.Fatalf("the demo ended before it said %q", what)
}

// runOf is the run that a process owns.
func runOf(t *testing.T, pid int) *Run {
	t.Helper()
	runs, err := Runs()
	must(t, err)
	for _, r := range runs {
		if r.Owner.PID == pid {
			return r
		}
	}
	t.Fatalf("process %d has no run", pid)
	return nil
}

// leftOf lists what is still there of a run.
func leftOf(r *Run) (left []string) {
	left = append(leftBehind("tabi-"+r.ID+"-"), leftBehind(r.ID)...)
	for _, p := range r.Processes {
		if p.alive() {
			left = append(left, fmt.Sprintf("%s/%s", p.Host, p.Name))
		}
	}
	return left
}

func TestDemoCommandReports(t *testing.T) {
	cmd, out, lines := demoCommand(t, "--json", "--moves", "1", "--blackout", "50ms", "--interval", "300ms", "--rate", "200", "--bit-rate", "1000000", "--seed", "3")
	until(t, lines, "flows run")
	r := runOf(t, cmd.Process.Pid)
	for lines.Scan() {
		t.Log(lines.Text())
	}
	err := cmd.Wait()
	var report Report
	must(t, json.Unmarshal(out.Bytes(), &report))
	t.Log(report.Verdict)
	if report.Pass != (err == nil) {
		t.Errorf("pass %v, and the command says %v", report.Pass, err)
	}
	if !report.Pass || len(report.Moves) != 1 || len(report.Flows) != 18 || report.Moves[0].BlackoutMS < 50 {
		t.Errorf("%s", out)
	}
	if left := leftOf(r); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDemoCommandInterrupted(t *testing.T) {
	for _, c := range []struct {
		when string
		sig  syscall.Signal
	}{
		{"links up", syscall.SIGINT}, // while the daemons start
		{"flows run", syscall.SIGTERM},
	} {
		cmd, _, lines := demoCommand(t, "--rate", "200")
		until(t, lines, c.when)
		r := runOf(t, cmd.Process.Pid)
		must(t, cmd.Process.Signal(c.sig))
		said, err := io.ReadAll(lineReader{lines})
		must(t, err)
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%v after %q: %v", c.sig, c.when, err)
		}
		if !strings.Contains(string(said), "interrupted") {
			t.Errorf("%v after %q: it said %q", c.sig, c.when, said)
		}
		if left := leftOf(r); len(left) > 0 {
			t.Errorf("%v after %q: left behind: %v", c.sig, c.when, left)
		}
	}
}

func TestDemoCommandKilled(t *testing.T) {
	cmd, _, lines := demoCommand(t, "--rate", "200")
	until(t, lines, "flows run")
	r := runOf(t, cmd.Process.Pid)
	if len(leftOf(r)) < 20 {
		t.Fatalf("the test is wrong: %v", leftOf(r))
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for deadline := time.Now().Add(20 * time.Second); len(leftOf(r)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nobody cleaned up: %v", leftOf(r))
		}
	}
}

// A kept demo stays, can be entered, and is taken down from elsewhere.
func TestDemoCommandKept(t *testing.T) {
	cmd, _, lines := demoCommand(t, "--keep", "--moves", "0", "--interval", "100ms", "--rate", "200")
	until(t, lines, "stays up")
	r := runOf(t, cmd.Process.Pid)
	exe, err := tabi()
	must(t, err)
	run := func(args ...string) string {
		out, err := exec.Command(exe, args...).CombinedOutput()
		if err != nil {
			t.Errorf("tabi %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if got := run("demo", "ls"); !strings.Contains(got, r.ID+": up") || !strings.Contains(got, "hokuriku-hv1") {
		t.Errorf("demo ls: %s", got)
	}
	if got := run("demo", "shell", "--run", r.ID, "nezu-hv1", "--", "tabi", "show", "local"); !strings.Contains(got, "198.51.100.10/32") {
		t.Errorf("local EIDs of nezu-hv1: %s", got)
	}
	if got := run("demo", "shell", "--run", r.ID, "client4", "--", "cat", "/proc/net/dev"); !strings.Contains(got, "eth0") || strings.Contains(got, "up-detr1") {
		t.Errorf("interfaces of client4: %s", got)
	}
	if got := run("demo", "down", "--run", r.ID); !strings.Contains(got, r.ID+" is down") {
		t.Errorf("demo down: %s", got)
	}
	if left := leftOf(r); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// lineReader gives what is left of the lines.
type lineReader struct{ s *bufio.Scanner }

func (r lineReader) Read(b []byte) (int, error) {
	if !r.s.Scan() {
		return 0, io.EOF
	}
	return copy(b, append(r.s.Bytes(), '\n')), nil
}
