package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
)

// portTable is the VM interfaces. A port's number is its place in the map + 1; the programs look for the
// place of an interface at its index modulo the size, and at the next few.
type portTable struct {
	d     *DataPlane
	byIf  map[int]uint16
	ports map[uint16]*portState
	dirty map[uint16]bool
	hosts []hostRoute
}

type portState struct {
	entry   portEntry
	copies  int
	facts   linkFacts // not written yet; zero: nothing has changed
	watched bool      // its count is compared with its interface's as long as it is a port
	linger  bool      // copies are still made, though no route asks for them: see copyLinger
}

// hostRoute is a change to the host's own routes, for a port that its stack forwards to.
type hostRoute struct {
	eid     lisp.EID
	ifindex int
	mac     [6]byte
	gone    bool
}

func newPortTable(d *DataPlane) portTable {
	return portTable{d: d, byIf: make(map[int]uint16), ports: make(map[uint16]*portState), dirty: make(map[uint16]bool)}
}

func (t *portTable) number(ifindex int) uint16 { return t.byIf[ifindex] }

// read learns from the kernel what ports it has.
func (t *portTable) read() error {
	err := readAll(t.d.maps["ports"], func(at uint32, e portEntry) {
		if e.Ifindex == 0 {
			return
		}
		n := uint16(at + 1)
		t.byIf[int(e.Ifindex)] = n
		t.ports[n] = &portState{entry: e}
	})
	if err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	return nil
}

// AttachVM takes an interface that a VM is behind. It returns the port's number, 1..4096, which the
// frames of lisp0 and the counters bear. Attaching it again changes what is different.
func (d *DataPlane) AttachVM(ifindex int, o Port) (uint16, error) {
	if err := d.lock(); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	n, err := d.ports.attach(ifindex, o)
	if err != nil {
		return 0, fmt.Errorf("kernel: attach VM interface %d: %w", ifindex, err)
	}
	return n, nil
}

func (t *portTable) attach(ifindex int, o Port) (uint16, error) {
	if o.IID > lisp.MaxInstanceID {
		return 0, fmt.Errorf("instance-ID %d: more than %d", o.IID, lisp.MaxInstanceID)
	}
	if o.Stack && o.IID != 0 {
		return 0, errors.New("the host's stack knows no instances")
	}
	link, err := t.d.nl.LinkByIndex(ifindex)
	if err != nil {
		return 0, err
	}
	mac := link.Attrs().HardwareAddr
	if len(mac) != 6 {
		return 0, errors.New("not an Ethernet interface")
	}
	n, known := t.byIf[ifindex]
	if !known {
		if n, err = t.place(ifindex); err != nil {
			return 0, err
		}
	}
	e := portEntry{Ifindex: uint32(ifindex), IID: o.IID, MAC: [6]byte(mac), MTU: uint32(link.Attrs().MTU)}
	if o.Stack {
		e.Flags |= portStack
	}
	s := t.ports[n]
	if !known {
		s = &portState{}
		if err := t.d.maps["given"].Put(uint32(n-1), uint64(0)); err != nil {
			return 0, err
		}
	}
	e.Base, e.Copies = s.entry.Base, s.entry.Copies
	if e != s.entry {
		if err := t.d.maps["ports"].Put(uint32(n-1), e); err != nil {
			return 0, err
		}
		s.entry = e
	}
	t.byIf[ifindex], t.ports[n] = n, s
	// Outwards first: what is given is counted before anything can be.
	for _, prog := range []string{"vm_out", "vm_in"} {
		if err := t.d.attach(prog, ifindex); err != nil {
			return 0, errors.Join(err, t.detach(ifindex))
		}
	}
	if !known {
		sent, err := t.d.sent(ifindex)
		if st := link.Attrs().Statistics; err == nil && st != nil && st.TxPackets == 0 {
			var said uint64
			said, err = t.d.waiting(link)
			sent = max(sent, said) // sent has only what was dropped
		}
		if err == nil {
			err = t.rebase(n, sent)
		}
		if err != nil {
			return 0, errors.Join(err, t.detach(ifindex))
		}
	}
	if !s.watched {
		s.watched = true
		t.d.done.Go(func() { t.d.compare(n, s, ifindex, watchEvery, math.MaxInt) })
	}
	return n, nil
}

func (t *portTable) place(ifindex int) (uint16, error) {
	for i := range portProbes {
		n := uint16((ifindex+i)%nPorts) + 1
		if t.ports[n] == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no place among %d ports", nPorts)
}

// sent is how many packets an interface has passed on or dropped, in its own count. It may have to wait for whoever
// changes interfaces: not with the data plane locked, where there is a choice.
func (d *DataPlane) sent(ifindex int) (n uint64, err error) {
	link, err := d.nl.LinkByIndex(ifindex)
	if err != nil || link.Attrs().Statistics == nil {
		return 0, err
	}
	return link.Attrs().Statistics.TxPackets + link.Attrs().Statistics.TxDropped, nil
}

// waiting is how many packets an interface was given, those included that it dropped, that nobody has read from yet: the host itself speaks to it as soon as
// it is up, before it is a port, and the VM gets that first when it runs. Its queueing discipline has counted them, unless
// it has none, as libvirt makes it; then what the host has said over IPv6 is what there is. It must be called on a thread
// in the namespace.
func (d *DataPlane) waiting(link netlink.Link) (uint64, error) {
	qdiscs, err := d.nl.QdiscList(link)
	if err != nil {
		return 0, err
	}
	said, err := said6(link.Attrs().Name)
	for _, q := range qdiscs {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Basic != nil {
			said = max(said, uint64(a.Statistics.Basic.Packets))
		}
	}
	return said, err
}

// said6 is how many IPv6 packets the host itself has sent by an interface.
func said6(name string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc/thread-self/net/dev_snmp6", name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // IPv6 is off
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Ip6OutRequests" {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, err
}

// rebase makes the port's count comparable with the interface's own, which may have begun before. sent is the latter;
// it was read before, and the interface counts what has been read of what it was given, so it can only be behind.
func (t *portTable) rebase(n uint16, sent uint64) error {
	s := t.ports[n]
	var given uint64
	if err := t.d.maps["given"].Lookup(uint32(n-1), &given); err != nil {
		return err
	}
	if behind := int64(sent - given - s.entry.Base); behind > 0 {
		s.entry.Base += uint64(behind)
		return t.d.maps["ports"].Put(uint32(n-1), s.entry)
	}
	return nil
}

// How often a port's count is compared with its interface's: after its VM was prepared to leave, and at other times.
const (
	comparisons  = 40
	compareEvery = 5 * time.Millisecond
	watchEvery   = 3 * time.Second
)

// aboutToCopy is called before a route begins to copy what goes to a port.
func (t *portTable) aboutToCopy(n uint16) {
	s := t.ports[n]
	if s == nil || s.copies > 0 {
		return
	}
	ifindex := int(s.entry.Ifindex)
	sent, err := t.d.sent(ifindex)
	if err == nil {
		err = t.rebase(n, sent)
	}
	if err != nil {
		t.d.log.Warn("packets given to a port not compared with its interface", "port", n, "error", err)
		return
	}
	t.d.done.Go(func() { t.d.compare(n, s, ifindex, compareEvery, comparisons) })
}

// compare looks many times: what an interface was given before it was ours shows only at a moment at
// which no more packets wait for the VM to read them.
func (d *DataPlane) compare(n uint16, s *portState, ifindex int, every time.Duration, times int) {
	for range times {
		select {
		case <-d.quit:
			return
		case <-time.After(every):
		}
		sent, err := d.sent(ifindex)
		if err != nil {
			return
		}
		d.mu.Lock()
		gone := d.ports.ports[n] != s
		if !gone {
			err = d.ports.rebase(n, sent)
		}
		d.mu.Unlock()
		if gone || err != nil {
			return
		}
	}
}

// routeChanged notes what the routes want of the ports, for settle.
func (t *portTable) routeChanged(e lisp.EID, old, now portUse) {
	if s := t.ports[old.port]; s != nil {
		if old.copy {
			s.copies--
		}
		t.dirty[old.port] = true
		if s.entry.Flags&portStack != 0 && (now.port != old.port || now.mac != old.mac) {
			t.hosts = append(t.hosts, hostRoute{eid: e, ifindex: int(s.entry.Ifindex), mac: old.mac, gone: true})
		}
	}
	if s := t.ports[now.port]; s != nil {
		if now.copy {
			s.copies++
		}
		t.dirty[now.port] = true
		if s.entry.Flags&portStack != 0 && (now.port != old.port || now.mac != old.mac) {
			t.hosts = append(t.hosts, hostRoute{eid: e, ifindex: int(s.entry.Ifindex), mac: now.mac})
		}
	}
}

// linkFacts is what of an interface the programs need to know.
type linkFacts struct {
	mac [6]byte
	mtu uint32
}

// linkFacts asks the kernel for all interfaces at once. It may take long on a host with many, and when they change:
// not with the data plane locked.
func (d *DataPlane) linkFacts() (map[uint32]linkFacts, error) {
	links, err := d.nl.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what changed meanwhile will be told again
		return nil, fmt.Errorf("kernel: list links: %w", err)
	}
	out := make(map[uint32]linkFacts, len(links))
	for _, l := range links {
		if a := l.Attrs(); len(a.HardwareAddr) == 6 {
			out[uint32(a.Index)] = linkFacts{[6]byte(a.HardwareAddr), uint32(a.MTU)}
		}
	}
	return out, nil
}

// learn notes what has become of the ports' interfaces, for settle.
func (t *portTable) learn(facts map[uint32]linkFacts) {
	for n, s := range t.ports {
		if f, ok := facts[s.entry.Ifindex]; ok && (f.mac != s.entry.MAC || f.mtu != s.entry.MTU) {
			s.facts = f
			t.dirty[n] = true
		}
	}
}

// settle writes what routeChanged and learn noted.
func (t *portTable) settle() error {
	var errs []error
	for n := range t.dirty {
		s := t.ports[n]
		if s == nil {
			continue
		}
		e := s.entry
		e.Copies = uint32(max(s.copies, 0))
		if e.Copies == 0 && e.Copies != s.entry.Copies || s.linger {
			e.Copies = max(e.Copies, 1)
			if !s.linger {
				s.linger = true
				t.d.done.Go(func() { t.d.endLinger(n, s) })
			}
		}
		if s.facts != (linkFacts{}) {
			e.MAC, e.MTU = s.facts.mac, s.facts.mtu
			s.facts = linkFacts{}
		}
		if e == s.entry {
			continue
		}
		s.entry = e
		errs = append(errs, t.d.maps["ports"].Put(uint32(n-1), e))
	}
	clear(t.dirty)
	for _, h := range t.hosts {
		errs = append(errs, t.setHostRoute(h))
	}
	t.hosts = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kernel: ports: %w", err)
	}
	return nil
}

// copyLinger is for how long a port's copies are made after the last route that asked for them has changed: a program
// that looked that route up before may have been kept from running. As long as the slow path takes them.
const copyLinger = 50 * time.Millisecond

// endLinger ends the copies of a port for which no route asks any more.
func (d *DataPlane) endLinger(n uint16, s *portState) {
	select {
	case <-d.quit:
		return
	case <-time.After(copyLinger):
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.linger = false
	if d.ports.ports[n] != s || s.copies > 0 {
		return
	}
	s.entry.Copies = 0
	if err := d.maps["ports"].Put(uint32(n-1), s.entry); err != nil {
		d.log.Warn("a port is still copied", "port", n, "error", err)
	}
}

// setHostRoute lets the host's stack find a VM that it is to forward to.
func (t *portTable) setHostRoute(h hostRoute) error {
	r := &netlink.Route{LinkIndex: h.ifindex, Dst: ipNet(h.eid), Protocol: routeProtocol}
	family := netlink.FAMILY_V6
	if h.eid.Prefix.Addr().Is4() {
		r.Scope, family = netlink.SCOPE_LINK, netlink.FAMILY_V4
	}
	nb := &netlink.Neigh{
		LinkIndex: h.ifindex, Family: family, State: netlink.NUD_PERMANENT,
		IP: h.eid.Prefix.Addr().AsSlice(), HardwareAddr: net.HardwareAddr(h.mac[:]),
	}
	if !h.gone {
		if h.eid.IsHost() {
			if err := t.d.nl.NeighSet(nb); err != nil {
				return fmt.Errorf("neighbour %v: %w", h.eid, err)
			}
		}
		if err := t.d.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("host route %v: %w", h.eid, err)
		}
		return nil
	}
	absent := func(err error) bool {
		return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
	}
	if err := t.d.nl.RouteDel(r); err != nil && !absent(err) {
		return fmt.Errorf("host route %v: %w", h.eid, err)
	}
	if h.eid.IsHost() {
		if err := t.d.nl.NeighDel(nb); err != nil && !absent(err) {
			return fmt.Errorf("neighbour %v: %w", h.eid, err)
		}
	}
	return nil
}

// DetachVM lets go of an interface, also of one that is gone. Routes that deliver there drop.
func (d *DataPlane) DetachVM(ifindex int) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if err := d.ports.detach(ifindex); err != nil {
		return fmt.Errorf("kernel: detach VM interface %d: %w", ifindex, err)
	}
	return nil
}

func (t *portTable) detach(ifindex int) error {
	errs := []error{t.d.detach("vm_in", ifindex), t.d.detach("vm_out", ifindex)}
	t.forget(ifindex)
	return errors.Join(errs...)
}

// forget frees the place of a port.
func (t *portTable) forget(ifindex int) {
	n, ok := t.byIf[ifindex]
	if !ok {
		return
	}
	delete(t.byIf, ifindex)
	delete(t.ports, n)
	// It can not fail: the element exists.
	_ = t.d.maps["ports"].Put(uint32(n-1), portEntry{})
}

// AttachUnderlay takes an interface over which other xTRs are reached.
func (d *DataPlane) AttachUnderlay(ifindex int) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if err := d.attachUnderlay(ifindex); err != nil {
		return fmt.Errorf("kernel: attach underlay interface %d: %w", ifindex, err)
	}
	return nil
}

func (d *DataPlane) attachUnderlay(ifindex int) error {
	link, err := d.nl.LinkByIndex(ifindex)
	if err != nil {
		return err
	}
	if err := d.attach("under_in", ifindex); err != nil {
		return err
	}
	if err := d.mergeSegments(); err != nil {
		d.log.Warn("segments are not merged before decapsulation", "error", err)
	}
	early := d.cfg.Decap == "xdp" || d.cfg.Decap == "auto" && isWire(link)
	if !early {
		return d.detach("under_xdp", ifindex)
	}
	err = d.attach("under_xdp", ifindex)
	if err != nil && d.cfg.Decap == "auto" {
		d.log.Warn("decapsulation after the merging of segments: native XDP is not to be had",
			"interface", link.Attrs().Name, "error", err)
		return nil
	}
	return err
}

// isWire tells a network card from what merely looks like an interface: those have a kind. XDP on a veth
// would switch segmentation offload off at its peer.
func isWire(l netlink.Link) bool {
	return l.Type() == "device" && l.Attrs().Flags&net.FlagLoopback == 0
}

// AttachUpstream takes an interface of a D-ETR towards the Internet: what comes in for Own is
// encapsulated.
func (d *DataPlane) AttachUpstream(ifindex int) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	if err := d.attach("up_in", ifindex); err != nil {
		return fmt.Errorf("kernel: attach upstream interface %d: %w", ifindex, err)
	}
	return nil
}

// Detach lets go of an underlay or upstream interface.
func (d *DataPlane) Detach(ifindex int) error {
	if err := d.lock(); err != nil {
		return err
	}
	defer d.mu.Unlock()
	err := errors.Join(d.detach("under_xdp", ifindex), d.detach("under_in", ifindex), d.detach("up_in", ifindex))
	if err != nil {
		return fmt.Errorf("kernel: detach interface %d: %w", ifindex, err)
	}
	return nil
}
