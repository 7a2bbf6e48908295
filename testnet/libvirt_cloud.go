package testnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// libvirtMaker puts a libvirt daemon on each hypervisor of a cloud, and makes guests that these run.
type libvirtMaker struct {
	cloud   *Cloud
	image   Image
	daemons map[string]*Libvirtd // by hypervisor
	witness *libvirtWitness
}

func init() {
	makers[VMLibvirt] = func() maker { return &libvirtMaker{daemons: make(map[string]*Libvirtd)} }
}

func libvirtDir(hypervisor string) string { return filepath.Join(hypervisor, "libvirt") }

func (*libvirtMaker) agent(n node, dir string) string {
	if outOfCloud(n.site) {
		return ""
	}
	return `{libvirt: "` + libvirtURI(libvirtDir(dir)) + `"}`
}

func (*libvirtMaker) drivers(n node, _ string) (driver, migrate string) {
	return libvirtRemoteURI(n.v4()), "tcp://" + n.v4().String()
}

func (k *libvirtMaker) start(ctx context.Context, c *Cloud) (err error) {
	k.cloud = c
	if k.image, err = GuestImage(ctx, c.opts.Progress); err != nil {
		return err
	}
	all := nodesOf("xtr", inCloud)
	hosts := make(map[string]netip.Addr)
	for _, n := range all {
		hosts[n.name] = n.v4()
	}
	var globs []string
	for _, n := range all {
		conf := LibvirtConfig{NS: c.hosts[n.name].ns, Name: n.name, Dir: libvirtDir(c.hosts[n.name].dir), Listen: n.v4(), Hosts: maps.Clone(hosts)}
		delete(conf.Hosts, n.name)
		spec, err := libvirtdSpec(conf)
		if err != nil {
			return err
		}
		if err := errors.Join(c.hosts[n.name].define(spec), c.hosts[n.name].launch(spec.Name)); err != nil {
			return err
		}
		p, err := c.hosts[n.name].process(spec.Name)
		if err != nil {
			return err
		}
		k.daemons[n.name] = &Libvirtd{conf, p}
		globs = append(globs, libvirtMonitor(conf.Dir, "*"))
		if len(globs) == 1 { // what the first one finds out about QEMU, the others read
			if err := k.daemons[n.name].Ready(ctx); err != nil {
				return err
			}
		}
	}
	for _, l := range k.daemons {
		if err := l.Ready(ctx); err != nil {
			return err
		}
	}
	k.witness = watchMonitors(globs)
	return nil
}

func (k *libvirtMaker) close() error {
	if k.witness != nil {
		k.witness.close()
	}
	errs := make(chan error, len(k.daemons))
	for _, l := range k.daemons {
		go func() { errs <- l.Close() }()
	}
	var all error
	for range k.daemons {
		all = errors.Join(all, <-errs)
	}
	return all
}

// Libvirtd is the libvirt daemon of a hypervisor of the cloud; nil if there is none.
func (c *Cloud) Libvirtd(hypervisor string) *Libvirtd {
	k, ok := c.maker.(*libvirtMaker)
	if !ok {
		return nil
	}
	return k.daemons[hypervisor]
}

// libvirtMonitor is the socket of a monitor that QEMU has beside libvirt's own, from outside of the daemon's namespaces:
// libvirt does not tell when QEMU says that the VM stopped and ran.
func libvirtMonitor(dir, vm string) string { return filepath.Join(dir, "run", "tabi-"+vm+".qmp") }

// libvirtDisk is where the disk of a VM is, as each hypervisor sees it: its own.
func libvirtDisk(vm string) string { return "/var/lib/libvirt/" + vm + ".img" }

// libvirtVM is a guest that libvirt runs.
type libvirtVM struct {
	VMSpec
	maker *libvirtMaker
}

func (k *libvirtMaker) vm(_ context.Context, s VMSpec) (CloudVM, error) {
	return &libvirtVM{s, k}, nil
}

// libvirtDomain is the definition of a guest: its name, UUID, EIDs, RAM in MiB, kernel, initramfs, command line, disk,
// MAC, interface, monitor.
// See GuestAccel for why it might have a second CPU, and devices no event index.
const libvirtDomain = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>%[1]s</name>
  <metadata><tabi:vm xmlns:tabi="https://github.com/tabi-lisp/tabi/vm/1"><tabi:owner>demo</tabi:owner>%[2]s</tabi:vm></metadata>
  <memory unit='MiB'>%[3]d</memory>
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>%[4]s</kernel>
    <initrd>%[5]s</initrd>
    <cmdline>%[6]s</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>64</tb-cache></tcg></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>%[7]s
    <interface type='ethernet'>
      <mac address='%[8]s'/>
      <target dev='%[9]s'/>
      <model type='virtio'/>
      <driver name='qemu' event_idx='off'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='/var/log/libvirt/%[1]s.serial' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:/run/libvirt/tabi-%[1]s.qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
`

// definition is the guest's domain XML.
func (v *libvirtVM) definition() string {
	eids, disk := "", ""
	for _, a := range v.Addrs {
		eids += "<tabi:eid>" + netip.PrefixFrom(a.Addr(), a.Addr().BitLen()).String() + "</tabi:eid>"
	}
	if v.maker.cloud.opts.DiskMiB > 0 {
		disk = "\n    <disk type='file' device='disk'><driver name='qemu' type='raw' event_idx='off'/><source file='" + libvirtDisk(v.Name) + "'/><target dev='vda' bus='virtio'/></disk>"
	}
	cmdline := GuestCmdline(GuestParams{Name: v.Name, NICs: []GuestNIC{{Addrs: v.Addrs, Gateway4: v.Gateway4, Gateway6: v.Gateway6}}})
	return fmt.Sprintf(libvirtDomain, v.Name, eids, GuestMemory, v.maker.image.Kernel, v.maker.image.Initrd, cmdline, disk, v.MAC, v.Device)
}

// Interface is the name that its interface has on hypervisors; libvirt makes it.
func (v *libvirtVM) Interface() string { return v.Device }

// Boot defines and starts the guest, and waits until its addresses are set.
func (v *libvirtVM) Boot(ctx context.Context, at *Host) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	file := filepath.Join(at.dir, v.Name+".xml")
	if err := os.WriteFile(file, []byte(v.definition()), 0o644); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	if size := v.maker.cloud.opts.DiskMiB; size > 0 {
		if err := v.makeDisks(size); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"define", file}, {"start", v.Name}} {
		if _, err := v.maker.daemons[at.Name].Virsh(ctx, args...); err != nil {
			return err
		}
	}
	for {
		if b, err := os.ReadFile(v.console(at.Name)); err == nil && strings.Contains(string(b), guestUp) {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("testnet: guest %s does not boot: %w; its console ends:\n%s", v.Name, err, tail(v.console(at.Name)))
		}
	}
}

// makeDisks makes the image of its disk on every hypervisor: libvirt copies into one that is there.
func (v *libvirtVM) makeDisks(mib int) error {
	for _, l := range v.maker.daemons {
		if _, err := makeDisk(filepath.Join(l.conf.Dir, "lib", filepath.Base(libvirtDisk(v.Name))), int64(mib)<<20); err != nil {
			return err
		}
	}
	return nil
}

func (v *libvirtVM) console(hypervisor string) string {
	return filepath.Join(v.maker.daemons[hypervisor].conf.Dir, "log", v.Name+".serial")
}

// Leave does nothing: libvirt takes everything away itself.
func (v *libvirtVM) Leave(*Host) error { return nil }

// FirstPacket is not known.
func (v *libvirtVM) FirstPacket() time.Time { return time.Time{} }

// Flaws tells of a guest that broke down.
func (v *libvirtVM) Flaws() (out []string) {
	for name := range v.maker.daemons {
		if t, ok, err := GuestTroubleIn(v.console(name)); err != nil {
			out = append(out, err.Error())
		} else if ok {
			out = append(out, fmt.Sprintf("%s at %s: %v", v.Name, name, t))
		}
	}
	return out
}

// Close ends it with its hypervisor's daemon.
func (v *libvirtVM) Close() error { return nil }

// Migrate moves the guest as a user would: by virsh, from daemon to daemon.
func (v *libvirtVM) Migrate(ctx context.Context, t Transfer) (Switch, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the migration took a minute"))
	defer cancel()
	from, to := v.maker.daemons[t.From.Name], v.maker.daemons[t.To.Name]
	pid, err := from.vmPID(v.Name)
	if err != nil {
		return Switch{}, err
	}
	if err := steady(pid); err != nil {
		return Switch{}, err
	}
	m := &virshMove{v: v, t: t, from: from, to: to, events: v.maker.witness.hear(v.Name)}
	defer m.events.close()
	begun := time.Now()
	ended := make(chan error, 1)
	// Before: virsh itself offers it for a migration that runs, which these are too short for.
	_, err = from.Virsh(ctx, "migrate-setmaxdowntime", v.Name, fmt.Sprint(max(1, cmp.Or(t.MaxDowntime, defaultDowntime).Milliseconds())))
	if err != nil {
		return Switch{}, err
	}
	go func() {
		_, err := from.Virsh(ctx, m.command()...)
		ended <- err
	}()
	err = m.follow(ctx, ended)
	if err != nil {
		return m.s, err
	}
	m.s.Total = time.Since(begun)
	if m.s.At == t.From {
		return m.s, relax(pid)
	}
	return m.s, nil
}

// virshMove is a migration under way.
type virshMove struct {
	v        *libvirtVM
	t        Transfer
	from, to *Libvirtd
	events   *hearing

	s       Switch
	placed  bool
	aborted bool
}

// command is what the user types after virsh.
func (m *virshMove) command() []string {
	args := []string{"migrate", "--p2p", "--persistent", "--undefinesource"}
	switch m.t.Mode {
	case "", "live":
		if !m.t.Fail {
			args = append(args, "--live")
		} // else it stands still while its memory is copied: long enough to be cancelled meanwhile
	case "postcopy":
		args = append(args, "--live", "--postcopy", "--postcopy-after-precopy")
	}
	if m.t.CopyDisks {
		args = append(args, "--copy-storage-all")
	}
	if m.t.Bandwidth > 0 {
		args = append(args, "--bandwidth", fmt.Sprint((m.t.Bandwidth+1<<20-1)>>20))
	}
	return append(args, m.v.Name, m.to.RemoteURI(), "tcp://"+urlHost(m.to.conf.Listen))
}

// follow waits until the migration is over, tells what is to be told, and cancels what is to be cancelled.
func (m *virshMove) follow(ctx context.Context, ended <-chan error) error {
	var failed error
	over := false
	for !over || !m.resumed() {
		select {
		case err := <-ended:
			over = true
			ended = nil
			if err != nil && !m.aborted {
				failed = err
			}
			if err != nil {
				m.s.Why = err.Error()
				if m.s.Stopped.IsZero() { // it never stopped
					m.s.At = m.t.From
				}
			}
		case e := <-m.events.c:
			if err := m.heard(ctx, e); err != nil {
				return err
			}
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), failed)
		}
	}
	if failed != nil && m.t.CancelAt == "" && !m.t.Fail {
		m.s.Problems = append(m.s.Problems, failed.Error())
	}
	return nil
}

// resumed reports whether it is known where the VM runs.
func (m *virshMove) resumed() bool { return m.s.At != nil }

func (m *virshMove) heard(ctx context.Context, e monitorEvent) error {
	here := e.dir == m.from.conf.Dir
	switch {
	case e.Kind == qmp.Listed && !here && !m.placed:
		m.placed = true
		if m.t.Placed != nil {
			return m.t.Placed(ctx)
		}
	case e.Kind == qmp.Migrating && here && m.t.CancelAt == CancelInCopy:
		return m.abort(ctx)
	case e.Kind == qmp.Stopped && here:
		m.s.Stopped = e.At
		if m.t.Stopped != nil {
			if err := m.t.Stopped(ctx, e.At); err != nil {
				return err
			}
		}
		if m.t.Fail {
			return m.abort(ctx)
		}
	case e.Kind == qmp.Resumed && !m.s.Stopped.IsZero() && !m.resumed():
		m.s.Resumed, m.s.At = e.At, m.t.To
		if here {
			m.s.At = m.t.From
		}
		if m.t.Resumed != nil {
			m.t.Resumed(e.At, m.s.At)
		}
		if m.t.CancelAt == CancelAfterSwitch && !here {
			return m.abort(ctx)
		}
	}
	return nil
}

// abort is the user's `virsh domjobabort`. That it may come too late is known.
func (m *virshMove) abort(ctx context.Context) error {
	m.aborted = true
	_, err := m.from.Virsh(ctx, "domjobabort", m.v.Name)
	if err != nil && m.t.CancelAt != CancelAfterSwitch {
		return err
	}
	return nil
}

// monitorEvent is what a monitor told, and the directory of the daemon whose VM it is of.
type monitorEvent struct {
	qmp.Event
	dir string
}

// libvirtWitness follows the monitors of all VMs of all daemons.
type libvirtWitness struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	hearings map[*hearing]struct{}
}

// hearing is what is told of one VM from a moment on. It must be read or closed.
type hearing struct {
	w    *libvirtWitness
	vm   string
	c    chan monitorEvent
	gone chan struct{}
}

func watchMonitors(globs []string) *libvirtWitness {
	ctx, cancel := context.WithCancel(context.Background())
	w := &libvirtWitness{cancel: cancel, hearings: make(map[*hearing]struct{})}
	for _, glob := range globs {
		dir := filepath.Dir(filepath.Dir(glob))
		w.wg.Go(func() {
			_ = qmp.Watch(ctx, glob, func(e qmp.Event) { w.tell(monitorEvent{e, dir}) }) // the pattern is ours
		})
	}
	return w
}

// tell hands an event on: of a list, one event a VM in it.
func (w *libvirtWitness) tell(e monitorEvent) {
	w.mu.Lock()
	all := slices.Collect(maps.Keys(w.hearings))
	w.mu.Unlock()
	for _, h := range all {
		named := e.Guest.Name == h.vm
		if e.Kind == qmp.Listed {
			named = slices.ContainsFunc(e.All, func(g qmp.Guest) bool { return g.Name == h.vm })
		}
		if !named {
			continue
		}
		select {
		case h.c <- e:
		case <-h.gone:
		}
	}
}

func (w *libvirtWitness) hear(vm string) *hearing {
	h := &hearing{w: w, vm: vm, c: make(chan monitorEvent, 64), gone: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hearings[h] = struct{}{}
	return h
}

func (h *hearing) close() {
	h.w.mu.Lock()
	delete(h.w.hearings, h)
	h.w.mu.Unlock()
	close(h.gone)
}

func (w *libvirtWitness) close() {
	w.cancel()
	w.wg.Wait()
}

var _ CloudVM = (*libvirtVM)(nil)
