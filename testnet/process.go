package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says how to start a process on a host.
type Spec struct {
	Name   string   // e.g. "xtr"
	Args   []string // the command line, Args[0] is the file to execute
	Env    []string // added to the environment
	Log    string   // file that output is appended to
	Socket string   // admin socket on which readiness is asked; "" = none
}

// process is a Spec that runs.
type process struct {
	spec Spec
	ref  ProcessRef
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
	err  error         // how it ended; valid after done
}

// startProcess starts a process in a namespace. It dies with the caller's process, and with the namespace.
func startProcess(n *Namespace, host string, s Spec) (*process, error) {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("testnet: %s/%s: log: %w", host, s.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // a terminal's Ctrl-C is for us: we end the daemons in order
	}
	if err := n.onThread(cmd.Start); err != nil {
		return nil, fmt.Errorf("testnet: start %s/%s: %w", host, s.Name, err)
	}
	p := &process{spec: s, cmd: cmd, done: make(chan struct{})}
	p.ref, err = processRef(cmd.Process.Pid)
	p.ref.Host, p.ref.Name = host, s.Name
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: start %s/%s: %w", host, s.Name, err), cmd.Process.Kill())
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// end sends a signal and waits until the process is gone, at most grace; then it is killed.
func (p *process) end(sig syscall.Signal, grace time.Duration) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(grace):
		_ = p.cmd.Process.Signal(unix.SIGKILL)
		<-p.done
	}
}

// ready waits until the process answers on its admin socket that it is ready.
func (p *process) ready(ctx context.Context) error {
	if p.spec.Socket == "" {
		return nil
	}
	client := adminClient(p.spec.Socket)
	defer client.CloseIdleConnections()
	said := errors.New("nothing")
	for {
		err := get(ctx, client, "http://unix/v1/ready", nil)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			said = err
		}
		select {
		case <-p.done:
			return fmt.Errorf("testnet: %s/%s ended before it was ready: %w; its log ends:\n%s", p.ref.Host, p.spec.Name, p.err, tail(p.spec.Log))
		case <-ctx.Done():
			return fmt.Errorf("testnet: %s/%s is not ready: %w; it said: %w; its log ends:\n%s", p.ref.Host, p.spec.Name, context.Cause(ctx), said, tail(p.spec.Log))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// adminClient talks to a daemon through its unix socket.
func adminClient(socket string) *http.Client {
	var d net.Dialer
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", socket)
	}}}
}

// tail is the end of a log for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}
