package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// sshProgram is OpenSSH's client: so names, keys, agents, jump hosts and known hosts are those of the person's own
// configuration, as with virsh.
var sshProgram = "ssh"

// dialSSH runs ssh with a program at the other end that joins its input and output to the daemon's socket.
func (u uri) dialSSH(ctx context.Context) (net.Conn, error) {
	args := []string{"-T", "-e", "none", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4"}
	if u.port != "" {
		args = append(args, "-p", u.port)
	}
	if u.user != "" {
		args = append(args, "-l", u.user)
	}
	if u.keyFile != "" {
		args = append(args, "-i", u.keyFile)
	}
	if u.noVerify {
		args = append(args, "-o", "StrictHostKeyChecking=no")
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return startPipe(exec.Command(sshProgram, append(args, "--", u.host, u.sshCommand())...))
}

// sshCommand is what runs at the other end.
func (u uri) sshCommand() string {
	if u.socket != "" {
		return "nc -U " + shellQuote(u.socket)
	}
	return "if command -v virt-ssh-helper >/dev/null; then exec virt-ssh-helper " + remote + "; else exec nc -U " + sockets[0] + "; fi"
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// pipe is a net.Conn through a process's standard input and output.
type pipe struct {
	cmd *exec.Cmd
	in  *os.File // its input
	out *os.File // its output

	mu   sync.Mutex
	said bytes.Buffer // its standard error, bounded

	once sync.Once
	done chan struct{}
}

func startPipe(cmd *exec.Cmd) (net.Conn, error) {
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer childOut.Close()
	p := &pipe{cmd: cmd, in: in, out: out, done: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, (*pipeStderr)(p)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is not for it
	cmd.WaitDelay = time.Second                           // a grandchild may keep its standard error open
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

type pipeStderr pipe

func (p *pipeStderr) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said.Write(b[:min(len(b), 4096-p.said.Len())])
	return len(b), nil
}

// Read reads what the process writes. Its end is told with what it said last.
func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if err == nil {
		return n, nil
	}
	select {
	case <-p.done:
	case <-time.After(time.Second):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if said := strings.TrimSpace(p.said.String()); said != "" {
		return n, fmt.Errorf("%s: %s", p.cmd.Args[0], said)
	}
	return n, err
}

func (p *pipe) Write(b []byte) (int, error) { return p.in.Write(b) }

// Close ends the process.
func (p *pipe) Close() error {
	p.once.Do(func() {
		_ = p.in.Close()
		_ = p.cmd.Process.Kill()
		_ = p.out.Close()
		<-p.done
	})
	return nil
}

func (p *pipe) LocalAddr() net.Addr  { return pipeAddr{} }
func (p *pipe) RemoteAddr() net.Addr { return pipeAddr{} }
func (p *pipe) SetDeadline(t time.Time) error {
	return errors.Join(p.in.SetDeadline(t), p.out.SetDeadline(t))
}
func (p *pipe) SetReadDeadline(t time.Time) error  { return p.out.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(t time.Time) error { return p.in.SetWriteDeadline(t) }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "ssh" }
