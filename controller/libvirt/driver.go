package libvirt

import (
	"context"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/tabi-lisp/tabi/controller"
)

// Driver speaks to one hypervisor's libvirt. Its methods may be called from any goroutine.
type Driver struct {
	uri uri
	log *slog.Logger

	dial chan struct{} // held by who connects for all

	mu     sync.Mutex
	shared *conn // for short questions; nil or lost = to be made
	open   map[*conn]struct{}
	closed bool
	warned map[string]string // VM -> what was wrong with its definition when it was last said
}

var _ controller.Driver = (*Driver)(nil)

// New returns a driver for a hypervisor. It checks the URI and connects when it is first used. log nil: nobody is told.
//
//	qemu:///system                              the machine itself
//	qemu+unix:///system?socket=PATH             the same, its socket elsewhere
//	qemu+tcp://HOST[:PORT]/system               not encrypted, and nobody is asked who they are: for closed networks
//	qemu+tls://HOST[:PORT]/system?pkipath=DIR   certificates in DIR, or where libvirt has them; no_verify=1
//	qemu+ssh://[USER@]HOST[:PORT]/system        through ssh, without questions; socket=PATH, keyfile=PATH, no_verify=1
func New(uri string, log *slog.Logger) (*Driver, error) {
	u, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{uri: u, log: log.With("libvirt", u.text), dial: make(chan struct{}, 1), open: make(map[*conn]struct{}),
		warned: make(map[string]string)}, nil
}

// URI is the one that New was given.
func (d *Driver) URI() string { return d.uri.text }

// Close ends all connections and what waits on them. The driver cannot be used any more.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	open := d.open
	d.open = make(map[*conn]struct{})
	d.mu.Unlock()
	for c := range open {
		c.close()
	}
	return nil
}

var errClosed = errors.New("the driver is closed")

// connect opens a connection of the caller's own; hangUp ends it.
func (d *Driver) connect(ctx context.Context) (*conn, error) {
	c, err := d.uri.connect(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.close()
		return nil, errClosed
	}
	d.open[c] = struct{}{}
	return c, nil
}

func (d *Driver) hangUp(c *conn) {
	d.mu.Lock()
	delete(d.open, c)
	d.mu.Unlock()
	c.close()
}

// session returns the shared connection, made again if it was lost.
func (d *Driver) session(ctx context.Context) (*conn, error) {
	select {
	case d.dial <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-d.dial }()
	d.mu.Lock()
	c, closed := d.shared, d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case c != nil && !c.isLost():
		return c, nil
	case c != nil:
		d.hangUp(c)
	}
	c, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shared = c
	return c, nil
}

// failed says where and at what something failed.
func (d *Driver) failed(what string, err error) error {
	return fmt.Errorf("libvirt: %s: %s: %w", d.uri.text, what, err)
}

// lookUp finds a VM by its name or UUID.
func lookUp(ctx context.Context, c *conn, vm string) (golibvirt.Domain, error) {
	return call(ctx, c, func() (golibvirt.Domain, error) {
		if id, ok := parseUUID(vm); ok {
			if dom, err := c.DomainLookupByUUID(id); err == nil || !golibvirt.IsNotFound(err) {
				return dom, err
			}
		}
		return c.DomainLookupByName(vm)
	})
}

func parseUUID(s string) (id golibvirt.UUID, ok bool) {
	if len(s) != 36 {
		return id, false
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return id, err == nil && copy(id[:], b) == len(id)
}

func formatUUID(id golibvirt.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// withVM does something short with a VM.
func (d *Driver) withVM(ctx context.Context, what, vm string, f func(*conn, golibvirt.Domain) error) error {
	c, err := d.session(ctx)
	if err != nil {
		return d.failed(what, err)
	}
	dom, err := lookUp(ctx, c, vm)
	if err == nil {
		err = f(c, dom)
	}
	if err != nil {
		return d.failed(what, err)
	}
	return nil
}

// Define makes a VM known, or replaces what is known of it: what runs is changed when it is started next.
func (d *Driver) Define(ctx context.Context, definition string) (controller.Guest, error) {
	g, err := ParseDomain([]byte(definition))
	if err != nil {
		return controller.Guest{}, err
	}
	what := "define " + g.Name
	c, err := d.session(ctx)
	if err != nil {
		return controller.Guest{}, d.failed(what, err)
	}
	dom, err := call(ctx, c, func() (golibvirt.Domain, error) { return c.DomainDefineXMLFlags(definition, 0) })
	if err != nil {
		return controller.Guest{}, d.failed(what, err)
	}
	g, _, err = d.guest(ctx, c, dom)
	if err != nil {
		return controller.Guest{}, d.failed(what, err)
	}
	return g, nil
}

// Undefine makes a VM that does not run unknown; its hibernated state, snapshots' descriptions and NVRAM go with it.
func (d *Driver) Undefine(ctx context.Context, vm string) error {
	return d.withVM(ctx, "undefine "+vm, vm, func(c *conn, dom golibvirt.Domain) error {
		state, _, err := domainState(ctx, c, dom)
		if err != nil {
			return err
		}
		if state != golibvirt.DomainShutoff && state != golibvirt.DomainCrashed {
			return errors.New("it runs")
		}
		return do(ctx, c, func() error {
			return c.DomainUndefineFlags(dom, golibvirt.DomainUndefineManagedSave|golibvirt.DomainUndefineSnapshotsMetadata|
				golibvirt.DomainUndefineNvram|golibvirt.DomainUndefineCheckpointsMetadata)
		})
	})
}

// Control changes what a VM does. Stop returns when the guest has been asked. When ctx ends while a VM is hibernated,
// it goes on running.
func (d *Driver) Control(ctx context.Context, vm string, action controller.Action) error {
	what := string(action) + " " + vm
	switch action {
	case controller.ActionStart, controller.ActionHibernate:
		return d.longControl(ctx, what, vm, action)
	}
	return d.withVM(ctx, what, vm, func(c *conn, dom golibvirt.Domain) error {
		return do(ctx, c, func() error {
			switch action {
			case controller.ActionStop:
				return c.DomainShutdownFlags(dom, 0)
			case controller.ActionKill:
				return c.DomainDestroyFlags(dom, 0)
			case controller.ActionPause:
				return c.DomainSuspend(dom)
			case controller.ActionUnpause:
				return c.DomainResume(dom)
			}
			return fmt.Errorf("there is no action %q", action)
		})
	})
}

// longControl does what reads or writes the VM's memory, on a connection of its own.
func (d *Driver) longControl(ctx context.Context, what, vm string, action controller.Action) error {
	c, err := d.connect(ctx)
	if err != nil {
		return d.failed(what, err)
	}
	defer d.hangUp(c)
	dom, err := lookUp(ctx, c, vm)
	if err != nil {
		return d.failed(what, err)
	}
	if action == controller.ActionStart {
		if _, err := call(ctx, c, func() (golibvirt.Domain, error) { return c.DomainCreateWithFlags(dom, 0) }); err != nil {
			return d.failed(what, err)
		}
		return nil
	}
	saved := make(chan error, 1)
	go func() { saved <- c.DomainManagedSave(dom, 0) }()
	select {
	case err = <-saved:
	case <-ctx.Done():
		err = d.abandon(ctx, c, dom, saved)
	}
	if err != nil {
		return d.failed(what, c.wire.explain(err))
	}
	return nil
}

// abandon cancels a job of the connection's, and returns what came of it.
func (d *Driver) abandon(ctx context.Context, c *conn, dom golibvirt.Domain, done <-chan error) error {
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandoned)
	defer cancel()
	if err := do(ask, c, func() error { return c.DomainAbortJob(dom) }); err != nil {
		d.log.Warn("a job could not be cancelled", "vm", dom.Name, "err", err)
	}
	select {
	case err := <-done:
		if err == nil {
			return nil // it was done already
		}
		return context.Cause(ctx)
	case <-ask.Done():
		return errors.Join(context.Cause(ctx), errors.New("it is not known whether it was cancelled"))
	}
}

// capabilitiesXML is what we read of what a host can do.
type capabilitiesXML struct {
	CPU struct {
		Arch  string `xml:"arch"`
		Model string `xml:"model"`
		Inner string `xml:",innerxml"`
	} `xml:"host>cpu"`
	Guests []struct {
		Type string `xml:"os_type"`
		Arch struct {
			Name     string    `xml:"name,attr"`
			Machines []machine `xml:"machine"`
		} `xml:"arch"`
	} `xml:"guest"`
}

type machine struct {
	Canonical string `xml:"canonical,attr"`
	Name      string `xml:",chardata"`
}

// Node says what the hypervisor is and has. Machines are those of guests of the host's own architecture.
func (d *Driver) Node(ctx context.Context) (controller.Node, error) {
	c, err := d.session(ctx)
	if err != nil {
		return controller.Node{}, d.failed("node", err)
	}
	n, err := call(ctx, c, func() (controller.Node, error) { return node(c) })
	if err != nil {
		return controller.Node{}, d.failed("node", err)
	}
	return n, nil
}

func node(c *conn) (n controller.Node, err error) {
	if n.Hostname, err = c.ConnectGetHostname(); err != nil {
		return n, err
	}
	lib, err := c.ConnectGetLibVersion()
	if err != nil {
		return n, err
	}
	hv, err := c.ConnectGetVersion()
	if err != nil {
		return n, err
	}
	n.Version = "libvirt " + version(lib) + ", QEMU " + version(hv)
	_, _, cpus, _, _, _, _, _, err := c.NodeGetInfo()
	if err != nil {
		return n, err
	}
	n.CPUs = int(cpus)
	if n.Memory, n.MemoryFree, err = memory(c); err != nil {
		return n, err
	}
	text, err := c.ConnectGetCapabilities()
	if err != nil {
		return n, err
	}
	var caps capabilitiesXML
	if err := xml.Unmarshal([]byte(text), &caps); err != nil {
		return n, fmt.Errorf("capabilities: %w", err)
	}
	n.CPUModel = caps.CPU.Model
	if caps.CPU.Inner != "" {
		n.HostCPU = "<cpu>" + caps.CPU.Inner + "</cpu>"
	}
	for _, g := range caps.Guests {
		if g.Type == "hvm" && (g.Arch.Name == caps.CPU.Arch || caps.CPU.Arch == "") {
			for _, m := range g.Arch.Machines {
				n.Machines = append(n.Machines, m.Name)
			}
		}
	}
	return n, nil
}

// version writes libvirt's form of a version.
func version(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1e6, v/1e3%1e3, v%1e3) }

// memory is in bytes: all, and what is free with what the kernel gives back when it is asked.
func memory(c *conn) (all, free uint64, err error) {
	const allCells = -1
	_, n, err := c.NodeGetMemoryStats(0, allCells, 0)
	if err != nil {
		return 0, 0, err
	}
	stats, _, err := c.NodeGetMemoryStats(n, allCells, 0)
	if err != nil {
		return 0, 0, err
	}
	for _, s := range stats {
		switch strings.TrimRight(s.Field, "\x00") { // in KiB
		case "total":
			all = s.Value << 10
		case "free", "buffers", "cached":
			free += s.Value << 10
		}
	}
	return all, min(free, all), nil
}
