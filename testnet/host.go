package testnet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a namespace, its directory in the run directory, and the processes in it.
type Host struct {
	Name  string
	About string // one line for people

	ns     *Namespace
	run    *Run
	dir    string
	socket string // the admin socket of its daemon, "" if it has none

	mu    sync.Mutex
	specs map[string]Spec
	procs map[string]*process
}

// newHost makes the namespace, recorded in the run before it is there.
func newHost(r *Run, name, about string) (*Host, error) {
	h := &Host{Name: name, About: about, run: r, dir: filepath.Join(r.dir, name),
		specs: make(map[string]Spec), procs: make(map[string]*process)}
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	nsName := r.prefix + "-" + name
	err := r.update(func() {
		r.Namespaces = append(r.Namespaces, nsName)
		r.Hosts = append(r.Hosts, HostRef{Name: name, Namespace: nsName, About: about})
	})
	if err != nil {
		return nil, err
	}
	h.ns, err = NewNamespace(nsName)
	return h, err
}

// NS is the host's namespace.
func (h *Host) NS() *Namespace { return h.ns }

// Dir holds the host's configuration, logs and state.
func (h *Host) Dir() string { return h.dir }

// Socket is the admin socket of the host's daemon; "" if it has none.
func (h *Host) Socket() string { return h.socket }

// Start starts a process that is not running: the one that was defined or started under that name before.
func (h *Host) Start(ctx context.Context, name string) error {
	if err := h.launch(name); err != nil {
		return err
	}
	return h.Ready(ctx, name)
}

// define says how a process is started, and what its admin socket is.
func (h *Host) define(s Spec) error {
	h.mu.Lock()
	h.specs[s.Name] = s
	h.mu.Unlock()
	if s.Socket == "" {
		return nil
	}
	h.socket = s.Socket
	return h.run.update(func() {
		i := slices.IndexFunc(h.run.Hosts, func(r HostRef) bool { return r.Name == h.Name })
		h.run.Hosts[i].Socket = s.Socket
	})
}

// launch starts without waiting until the process is ready.
func (h *Host) launch(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.specs[name]
	if !ok {
		return fmt.Errorf("testnet: host %s has no process %q", h.Name, name)
	}
	if p := h.procs[name]; p != nil && p.running() {
		return fmt.Errorf("testnet: %s/%s runs already", h.Name, name)
	}
	p, err := startProcess(h.ns, h.Name, s)
	if err != nil {
		return err
	}
	h.procs[name] = p
	return h.run.update(func() {
		h.run.Processes = slices.DeleteFunc(h.run.Processes, func(r ProcessRef) bool { return r.Host == h.Name && r.Name == name })
		h.run.Processes = append(h.run.Processes, p.ref)
	})
}

// Ready waits until a started process says that it is ready.
func (h *Host) Ready(ctx context.Context, name string) error {
	p, err := h.process(name)
	if err != nil {
		return err
	}
	return p.ready(ctx)
}

// Kill kills a process with SIGKILL and waits until it is gone.
func (h *Host) Kill(name string) error {
	p, err := h.process(name)
	if err != nil {
		return err
	}
	p.end(syscall.SIGKILL, 10*time.Second)
	return nil
}

// Stop asks a process to end with SIGTERM and waits until it is gone; after ten seconds it is killed.
func (h *Host) Stop(name string) error {
	p, err := h.process(name)
	if err != nil {
		return err
	}
	p.end(syscall.SIGTERM, 10*time.Second)
	return nil
}

// Freeze stops a process in its tracks (SIGSTOP): wedged, not dead. Thaw lets it go on.
func (h *Host) Freeze(name string) error { return h.signal(name, unix.SIGSTOP) }

// Thaw lets a frozen process go on.
func (h *Host) Thaw(name string) error { return h.signal(name, unix.SIGCONT) }

func (h *Host) signal(name string, sig unix.Signal) error {
	p, err := h.process(name)
	if err != nil {
		return err
	}
	return p.ref.signal(sig)
}

// Running reports whether a process runs.
func (h *Host) Running(name string) bool {
	p, err := h.process(name)
	return err == nil && p.running()
}

// PID is a process's id, 0 if it was never started.
func (h *Host) PID(name string) int {
	p, err := h.process(name)
	if err != nil {
		return 0
	}
	return p.ref.PID
}

func (h *Host) process(name string) (*process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.procs[name]
	if p == nil {
		return nil, fmt.Errorf("testnet: %s/%s was never started", h.Name, name)
	}
	return p, nil
}

// Admin makes a request on the admin socket of the host's daemon: Admin(ctx, "GET", "/v1/show/mappings", nil, &out).
func (h *Host) Admin(ctx context.Context, method, path string, in, out any) error {
	c := adminClient(h.socket)
	defer c.CloseIdleConnections()
	return call(ctx, c, method, "http://unix"+path, "", in, out)
}

// client is an HTTP client whose connections begin inside the host's namespace.
func (h *Host) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = h.ns.Do(func() error {
			var d net.Dialer
			// A literal address is dialled on this very thread; a name would be looked up outside.
			c, err = d.DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}}
}

// close ends the processes, at once with all others.
func (h *Host) close() error {
	h.mu.Lock()
	procs := h.procs
	h.mu.Unlock()
	for _, p := range procs {
		p.end(syscall.SIGKILL, time.Minute)
	}
	if h.ns == nil {
		return nil
	}
	return h.ns.Close()
}
