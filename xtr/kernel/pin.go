package kernel

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// layout names the layout of the maps. Whoever changes bpf/maps.h so that an old map would be misread
// changes it: the new programs then start with empty maps.
const layout = "maps1"

func (d *DataPlane) mapDir() string  { return filepath.Join(d.cfg.PinDir, layout) }
func (d *DataPlane) linkDir() string { return filepath.Join(d.cfg.PinDir, "links") }

const bpfFSMagic = 0xcafe4a11

// mountBPF makes dir and mounts a bpffs on it unless it lies on one.
func mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("pin directory %s: %w", dir, err)
	}
	if st.Type == bpfFSMagic {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("pin directory %s: mount bpffs: %w", dir, err)
	}
	return nil
}

// removePins removes what is pinned below dir, and the bpffs if it is mounted on dir itself.
func removePins(dir string) error {
	errs := []error{os.RemoveAll(filepath.Join(dir, layout)), os.RemoveAll(filepath.Join(dir, "links"))}
	var here, above unix.Stat_t
	switch err := unix.Stat(dir, &here); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("pin directory %s: %w", dir, err)
	}
	errs = append(errs, unix.Stat(filepath.Dir(dir), &above))
	if here.Dev != above.Dev {
		errs = append(errs, unix.Unmount(dir, 0))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// load loads the programs with the maps that are pinned, and pins those that are new. Maps of another
// size are replaced and what they hold is copied, before any packet sees the new ones.
func (d *DataPlane) load() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("memory lock limit: %w", err)
	}
	spec, err := loadTabi()
	if err != nil {
		return err
	}
	d.size(spec)
	if err := os.MkdirAll(d.mapDir(), 0o700); err != nil {
		return err
	}
	reuse, resized := map[string]*ebpf.Map{}, map[string]*ebpf.Map{}
	defer func() {
		for _, m := range reuse {
			m.Close()
		}
		for _, m := range resized {
			m.Close()
		}
	}()
	for name, ms := range spec.Maps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.mapDir(), name), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("map %s: %w", name, err)
		case ms.Compatible(m) == nil:
			reuse[name] = m
		default:
			resized[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: reuse})
	if err != nil {
		if unix.Access("/sys/kernel/btf/vmlinux", unix.R_OK) != nil {
			return fmt.Errorf("load programs: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %w", err)
		}
		return fmt.Errorf("load programs: %w", err)
	}
	d.maps, d.progs = coll.Maps, coll.Programs
	for name, m := range d.maps {
		if reuse[name] != nil {
			continue
		}
		d.renewed = true
		path := filepath.Join(d.mapDir(), name)
		if old := resized[name]; old != nil {
			if err := d.copyMap(name, m, old); err != nil {
				return fmt.Errorf("map %s: copy to its new size: %w", name, err)
			}
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("map %s: %w", name, err)
			}
		}
		if err := m.Pin(path); err != nil {
			return fmt.Errorf("map %s: pin: %w", name, err)
		}
	}
	return nil
}

// size sets the sizes that depend on the configuration and the machine.
func (d *DataPlane) size(spec *ebpf.CollectionSpec) {
	n := uint32(d.cfg.Capacity)
	spec.Maps["eid4"].MaxEntries = n
	spec.Maps["eid6"].MaxEntries = n
	spec.Maps["mappings"].MaxEntries = max(16384, n/8)
	spec.Maps["backups"].MaxEntries = spec.Maps["mappings"].MaxEntries
	spec.Maps["dcache"].MaxEntries = cacheBuckets()
	spec.Maps["counters"].MaxEntries = 2*n/chunkLen + 2
	if !d.cfg.Anchor {
		n = 1
	}
	spec.Maps["services"].MaxEntries = n/chunkLen + 2
	spec.Maps["service_hosts"].MaxEntries = 2 * n
	spec.Maps["service_ranges"].MaxEntries = 2 * n
	spec.Maps["service_counters"].MaxEntries = n/chunkLen + 2
}

// copyMap copies what routes and services consist of. The other maps are about the moment.
func (d *DataPlane) copyMap(name string, to, from *ebpf.Map) error {
	if strings.HasPrefix(name, "service") && !d.cfg.Anchor {
		return nil // it has none
	}
	switch name {
	case "conf":
		return copySecret(to, from)
	case "service_hosts":
		return copyEntries[serviceKey, target](to, from)
	case "service_ranges":
		return copyEntries[serviceRange, target](to, from)
	case "eid4":
		return copyEntries[key4, target](to, from)
	case "eid6":
		return copyEntries[key6, target](to, from)
	case "mappings":
		return copyEntries[uint32, mapping](to, from)
	case "rlocs":
		return copyEntries[uint32, rlocEntry](to, from)
	case "backups":
		return copyEntries[uint32, locators](to, from)
	case "counters", "services", "service_counters":
		var k, id uint32
		it := from.Iterate()
		for it.Next(&k, &id) {
			m, err := ebpf.NewMapFromID(ebpf.MapID(id))
			if err != nil {
				return err
			}
			err = to.Put(k, m)
			m.Close()
			if err != nil {
				return err
			}
		}
		return it.Err()
	}
	return nil
}

// copySecret copies what marks the metadata of XDP, by which an older XDP program speaks to a newer TC program.
func copySecret(to, from *ebpf.Map) error {
	old, err := from.LookupBytes(uint32(0))
	if err != nil || len(old) < 8 {
		return err
	}
	return to.Put(uint32(0), confEntry{Secret: binary.NativeEndian.Uint64(old)})
}

func copyEntries[K, V comparable](to, from *ebpf.Map) error {
	var k K
	var v, none V
	it := from.Iterate()
	for it.Next(&k, &v) {
		if v == none {
			continue
		}
		if err := to.Put(k, v); err != nil {
			return err
		}
	}
	return it.Err()
}

// attached is a pinned link: program prog at interface ifindex.
type attached struct {
	prog    string
	ifindex int
	path    string
}

func (d *DataPlane) linkPath(prog string, ifindex int) string {
	return filepath.Join(d.linkDir(), prog+"-"+strconv.Itoa(ifindex))
}

// pinnedLinks lists what the directory says is attached.
func (d *DataPlane) pinnedLinks() ([]attached, error) {
	entries, err := os.ReadDir(d.linkDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []attached
	for _, e := range entries {
		prog, at, ok := strings.Cut(e.Name(), "-")
		n, err := strconv.Atoi(at)
		if !ok || err != nil {
			continue
		}
		all = append(all, attached{prog, n, filepath.Join(d.linkDir(), e.Name())})
	}
	return all, nil
}

// attach attaches prog to ifindex and pins the link, or sees to it that what is attached there is this
// program.
func (d *DataPlane) attach(prog string, ifindex int) error {
	path := d.linkPath(prog, ifindex)
	if ok, err := d.pickUp(prog, path); ok || err != nil {
		return err
	}
	l, err := newLink(d.progs[prog], prog, ifindex)
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", prog, ifindex, err)
	}
	defer l.Close()
	if err := os.MkdirAll(d.linkDir(), 0o700); err != nil {
		return err
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

func newLink(p *ebpf.Program, prog string, ifindex int) (link.Link, error) {
	switch prog {
	case "under_xdp":
		return link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: link.XDPDriverMode})
	case "vm_out", "door_out":
		l, err := link.AttachTCX(link.TCXOptions{Program: p, Interface: ifindex, Attach: ebpf.AttachTCXEgress})
		return l, needTCX(err)
	case "under_in":
		// Before up_in where both are: what is LISP is judged as coming from the underlay.
		l, err := link.AttachTCX(link.TCXOptions{Program: p, Interface: ifindex, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return l, needTCX(err)
	default:
		l, err := link.AttachTCX(link.TCXOptions{Program: p, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
		return l, needTCX(err)
	}
}

func needTCX(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("Linux 6.6 or newer is needed: %w", err)
	}
	return err
}

// pickUp looks for a live link at path and gives it the program that is loaded, if that is another. It
// reports false when there is no link that lives.
func (d *DataPlane) pickUp(prog, path string) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("link %s: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("link %s: %w", path, err)
	}
	if linkIfindex(info) == 0 { // its interface is gone
		if err := os.Remove(path); err != nil {
			return false, fmt.Errorf("link %s: %w", path, err)
		}
		return false, nil
	}
	same, err := sameProgram(info.Program, d.progs[prog])
	if err != nil {
		return false, fmt.Errorf("link %s: %w", path, err)
	}
	if same && !d.renewed {
		return true, nil
	}
	if err := l.Update(d.progs[prog]); err != nil {
		return false, fmt.Errorf("link %s: replace the program: %w", path, err)
	}
	return true, nil
}

func linkIfindex(info *link.Info) uint32 {
	if x := info.TCX(); x != nil {
		return x.Ifindex
	}
	if x := info.XDP(); x != nil {
		return x.Ifindex
	}
	return 0
}

// sameProgram compares tags: hashes of the instructions.
func sameProgram(id ebpf.ProgramID, p *ebpf.Program) (bool, error) {
	old, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false, err
	}
	defer old.Close()
	was, err := old.Info()
	if err != nil {
		return false, err
	}
	is, err := p.Info()
	if err != nil {
		return false, err
	}
	return was.Tag == is.Tag, nil
}

// detach takes prog from ifindex. It is no error when it was not there.
func (d *DataPlane) detach(prog string, ifindex int) error {
	path := d.linkPath(prog, ifindex)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", path, err)
	}
	err = l.Unpin()
	return errors.Join(err, l.Close())
}

// reattach gives every pinned link the programs that were loaded, and forgets what is gone.
func (d *DataPlane) reattach() error {
	links, err := d.pinnedLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if d.progs[l.prog] == nil {
			if err := os.Remove(l.path); err != nil {
				return err
			}
			continue
		}
		ok, err := d.pickUp(l.prog, l.path)
		if err != nil {
			return err
		}
		if !ok && (l.prog == "vm_in" || l.prog == "vm_out") {
			d.ports.forget(l.ifindex)
		}
	}
	for _, prog := range []string{"door_in", "door_out"} {
		if err := d.attach(prog, d.door.index); err != nil {
			return err
		}
	}
	return nil
}

func (d *DataPlane) detachAll() error {
	links, err := d.pinnedLinks()
	errs := []error{err}
	for _, l := range links {
		errs = append(errs, d.detach(l.prog, l.ifindex))
	}
	return errors.Join(errs...)
}

func randomUint64() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint64(b[:])
}

// membarrier returns after a grace period of the kernel's RCU.
func membarrier() error {
	const cmdGlobal = 1
	_, _, e := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// readHZ learns how long a jiffy is: it is the resolution of the coarse clocks.
func (d *DataPlane) readHZ() error {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	d.hz = uint64((time.Second + time.Duration(ts.Nano())/2) / time.Duration(ts.Nano()))
	return nil
}

// jiffies returns the kernel's count.
func (d *DataPlane) jiffies() (uint64, error) {
	if _, _, err := d.progs["clock"].Test(make([]byte, 64)); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	var j uint64
	err := d.maps["jiffies"].Lookup(uint32(0), &j)
	return j, err
}
