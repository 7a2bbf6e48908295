package route

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

var prefixes = []netip.Prefix{netip.MustParsePrefix("198.18.51.0/24"), netip.MustParsePrefix("2001:db8:5e::/48")}

// TestMain is also the process that holds routes, in the namespace that it was started in: it reads "on" and "off"
// from standard input and says when that is done.
func TestMain(m *testing.M) {
	if os.Getenv("ROUTE_TEST_HOLDER") == "" {
		os.Exit(m.Run())
	}
	if err := hold(os.Stdin, os.Stdout); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func hold(in io.Reader, out io.Writer) error {
	r, err := Open(Config{Prefixes: prefixes}, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	for lines := bufio.NewScanner(in); lines.Scan(); fmt.Fprintln(out, lines.Text()) {
		switch lines.Text() {
		case "on", "off":
			if err := r.Serve(context.Background(), lines.Text() == "on"); err != nil {
				return err
			}
		case "close":
			if err := r.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// namespace makes a network namespace.
func namespace(t *testing.T, name string) string {
	t.Helper()
	name = fmt.Sprintf("rt%d-%s", os.Getpid(), name)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// in starts a process in a namespace; it ends with the test at the latest.
func in(t *testing.T, ns string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = os.Environ()
	return cmd, &said
}

// holder is a process that holds routes.
type holder struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startHolder(t *testing.T, ns string) *holder {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd, _ := in(t, ns, self)
	cmd.Env = append(cmd.Env, "ROUTE_TEST_HOLDER=1")
	cmd.Stdout = nil
	h := &holder{t: t, cmd: cmd}
	if h.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.kill)
	return h
}

// do says what is to be done and waits until it is.
func (h *holder) do(what string) {
	h.t.Helper()
	fmt.Fprintln(h.in, what)
	if got, err := h.out.ReadString('\n'); err != nil || strings.TrimSpace(got) != what {
		h.t.Fatalf("%s: the holder says %q, %v", what, got, err)
	}
}

// kill is SIGKILL.
func (h *holder) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait() // killed
}
