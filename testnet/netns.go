package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces live: iproute2's place, so that `ip netns` shows them too.
const netnsDir = "/run/netns"

// Namespace is a named network namespace. It keeps one OS thread inside for as long as it is open: processes are
// forked from it, because the parent-death signal belongs to the forking thread.
type Namespace struct {
	name string
	fd   int

	mu     sync.Mutex
	closed bool
	work   chan func()
	gone   chan struct{}
}

// NewNamespace makes a network namespace, binds it to its name in /run/netns and sets its loopback up. A name that
// is taken is an error.
func NewNamespace(name string) (*Namespace, error) {
	if err := prepareNetnsDir(); err != nil {
		return nil, err
	}
	n := &Namespace{name: name, work: make(chan func()), gone: make(chan struct{})}
	ready := make(chan error)
	go n.thread(ready, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return n.bind()
	})
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("testnet: namespace %s: %w", name, err)
	}
	if err := n.Do(linkUp("lo")); err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: namespace %s: loopback: %w", name, err), n.Close(), RemoveNamespace(name))
	}
	return n, nil
}

// OpenNamespace opens a namespace that exists.
func OpenNamespace(name string) (*Namespace, error) {
	fd, err := unix.Open(filepath.Join(netnsDir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("testnet: namespace %s: %w", name, err)
	}
	n := &Namespace{name: name, fd: fd, work: make(chan func()), gone: make(chan struct{})}
	ready := make(chan error)
	go n.thread(ready, func() error { return unix.Setns(n.fd, unix.CLONE_NEWNET) })
	if err := <-ready; err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("testnet: namespace %s: enter: %w", name, err)
	}
	return n, nil
}

// thread is the life of the namespace's own OS thread. The thread is never unlocked: it ends with the goroutine,
// so no other goroutine ever runs in a foreign namespace.
func (n *Namespace) thread(ready chan<- error, enter func() error) {
	runtime.LockOSThread()
	defer close(n.gone)
	err := enter()
	ready <- err
	if err != nil {
		return
	}
	for f := range n.work {
		f()
	}
}

// bind gives the calling thread's namespace its name.
func (n *Namespace) bind() error {
	path := filepath.Join(netnsDir, n.name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("bind mount: %w", err)
	}
	n.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// Name is the name in /run/netns.
func (n *Namespace) Name() string { return n.name }

// Do runs f on an OS thread of its own inside the namespace. Sockets and devices that f opens stay in the
// namespace for their life and may be used from anywhere. Goroutines that f starts are NOT in the namespace.
func (n *Namespace) Do(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("testnet: enter namespace %s: %w", n.name, err)
			return
		}
		errc <- f()
	}()
	return <-errc
}

// onThread runs f on the namespace's lasting thread: for forks.
func (n *Namespace) onThread(f func() error) error {
	errc := make(chan error, 1)
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return fmt.Errorf("testnet: namespace %s: %w", n.name, os.ErrClosed)
	}
	n.work <- func() { errc <- f() }
	n.mu.Unlock()
	return <-errc
}

// Close lets go of the namespace; processes that were started through it die with its thread. The namespace itself
// stays until [RemoveNamespace], or until nothing is left in it.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	close(n.work)
	<-n.gone
	return unix.Close(n.fd)
}

// RemoveNamespace takes a name away from /run/netns. A name that is not there is not an error.
func RemoveNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	// EINVAL: the file is there but nothing is mounted on it, as after a crash between the two.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("testnet: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("testnet: remove namespace: %w", err)
	}
	return nil
}

var netnsDirMu sync.Mutex

// prepareNetnsDir makes /run/netns a shared mount of its own, as iproute2 does: otherwise the first `ip netns add`
// on this machine would bind-mount the directory over ours, and our names could no longer be unmounted.
func prepareNetnsDir() error {
	netnsDirMu.Lock()
	defer netnsDirMu.Unlock()
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("testnet: make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}
