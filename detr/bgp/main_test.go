package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"

	"github.com/tabi-lisp/tabi/lisp"
)

// pusherEnv makes the test binary a Map-Server's BGP instead: a process that a test can kill.
const pusherEnv = "TABI_TEST_PUSHER"

func TestMain(m *testing.M) {
	if os.Getenv(pusherEnv) != "" {
		if err := pusherMain(os.Getenv(pusherEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
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
