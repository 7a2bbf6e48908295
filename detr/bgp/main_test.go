package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
)

// pusherEnv makes the test binary a Map-Server's BGP instead: a process that a test can kill.
const pusherEnv = "TABI_TEST_PUSHER"

// netnsEnv says that the test binary is already in a network namespace of its own.
const netnsEnv = "TABI_TEST_NETNS"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(pusherEnv) != "":
		if err := pusherMain(os.Getenv(pusherEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(netnsEnv) != "":
		if err := addresses("127.0.0.1", msOutside, msOutside2, detrOutside, frrOutside, msSix, detrSix); err != nil {
			fmt.Fprintln(os.Stderr, "main_test:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") }):
		os.Exit(m.Run()) // the fuzzer talks to its workers over file descriptors
	default:
		os.Exit(inNamespace())
	}
}

// Addresses that exist in the test's namespace, on lo, beside 127.0.0.0/8: FRR takes no next hop in that.
const (
	msOutside   = "100.64.7.2"
	msOutside2  = "100.64.8.2"
	detrOutside = "100.65.5.2"
	frrOutside  = "100.65.5.1"
	msSix       = "2001:db8:100:7::2"
	detrSix     = "2001:db8:100:5::2"
)

// inNamespace runs this test binary again, in a new network namespace that goes when it ends, and returns
// its exit code: ports and addresses are all ours, and nothing leaves.
func inNamespace() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), netnsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "main_test: run in a network namespace (this needs root):", err)
	return 1
}

// addresses brings lo up with the given addresses.
func addresses(as ...string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range as {
		ip := netip.MustParseAddr(a)
		na, err := netlink.ParseAddr(netip.PrefixFrom(ip, ip.BitLen()).String())
		if err != nil {
			return err
		}
		if ip.Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(lo, na); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// pusherMain reads its Config from arg and Deltas from standard input, and answers each with a line.
func pusherMain(arg string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return err
	}
	p, err := NewPusher(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		in := json.NewDecoder(os.Stdin)
		for {
			var d lisp.Delta
			if in.Decode(&d) != nil {
				return
			}
			if err := p.Apply(ctx, d); err != nil {
				fmt.Println("error:", err)
				continue
			}
			fmt.Println("ok")
		}
	}()
	return p.Run(ctx)
}

// A process is a Map-Server's BGP that can be killed.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *json.Encoder
	out *bufio.Scanner
	end func() // waits for the end, once
}

func startPusher(t *testing.T, cfg Config) *process {
	t.Helper()
	arg, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pusherEnv+"="+string(arg))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, in: json.NewEncoder(in), out: bufio.NewScanner(out)}
	p.end = sync.OnceFunc(func() { _ = cmd.Wait() }) // it was killed
	t.Cleanup(p.kill)
	return p
}

func (p *process) apply(d lisp.Delta) {
	p.t.Helper()
	if err := p.in.Encode(d); err != nil {
		p.t.Fatal(err)
	}
	if !p.out.Scan() || p.out.Text() != "ok" {
		p.t.Fatalf("pusher: %q, %v", p.out.Text(), p.out.Err())
	}
}

// kill ends the process as a crash does.
func (p *process) kill() { p.signal(syscall.SIGKILL) }

// terminate asks the process to end, as an operator does.
func (p *process) terminate() { p.signal(syscall.SIGTERM) }

func (p *process) signal(s os.Signal) {
	_ = p.cmd.Process.Signal(s) // it may have ended already
	p.end()
}
