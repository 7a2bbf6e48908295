package testnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockets opens TCP connections that begin in a namespace, many and fast: one thread in the namespace makes each socket
// and has it connect, and waits for nobody. A connection that cannot be made shows in its first write.
type sockets struct {
	asks chan socketAsk
	done chan struct{}
}

type socketAsk struct {
	to    netip.AddrPort
	reply chan socketReply
}

type socketReply struct {
	conn *os.File
	err  error
}

// openSockets starts the thread.
func openSockets(n *Namespace) (*sockets, error) {
	s := &sockets{asks: make(chan socketAsk), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := unix.Setns(n.fd, unix.CLONE_NEWNET)
		if ready <- err; err != nil {
			return
		}
		for a := range s.asks {
			conn, err := connectTCP(a.to)
			a.reply <- socketReply{conn, err}
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("testnet: enter namespace %s: %w", n.name, err)
	}
	return s, nil
}

// dial begins to connect. The connection's methods may be used at once, and wait until it is there.
func (s *sockets) dial(to netip.AddrPort) (*os.File, error) {
	a := socketAsk{to, make(chan socketReply, 1)}
	s.asks <- a
	r := <-a.reply
	return r.conn, r.err
}

// close ends the thread; connections stay. Nobody may dial any more.
func (s *sockets) close() {
	close(s.asks)
	<-s.done
}

// connectTCP makes a socket in the calling thread's namespace and begins to connect.
func connectTCP(to netip.AddrPort) (*os.File, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(fmt.Errorf("connect to %v: %w", to, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tcp "+to.String()), nil
}

// roomForFiles lets this process have so many files open besides what it has, as far as it is allowed to.
func roomForFiles(more int) error {
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("testnet: open files: %w", err)
	}
	want := uint64(more) + 4096
	if have.Cur >= want {
		return nil
	}
	have.Cur, have.Max = want, max(have.Max, want)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("testnet: %d open files: %w", want, err)
	}
	return nil
}
