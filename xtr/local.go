package xtr

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// locals is what is known of interfaces, of VMs, and of the EIDs that live here. A VM that the controller
// told us of, or that a hypervisor lists, is known; its EIDs become local when there is evidence that it runs here.
type locals struct {
	ports  map[int]*port // by interface index
	names  map[string]*port
	specs  map[string]*vm    // as the controller says
	guests []*guest          // as the hypervisor says
	nics   map[string]string // names of the guests' interfaces, by MAC address
	vms    map[string]*vm    // both together
	byMAC  map[string]*vm    // by MAC address, as text
	owner  map[lisp.EID]*vm
	eids   map[lisp.EID]*localEID
	macs   map[string]seenMAC
}

// seenMAC is where and when a MAC address was last seen.
type seenMAC struct {
	index int // interface index
	at    time.Time
}

// port is a VM interface of this host.
type port struct {
	name   string
	index  int    // interface index
	number uint16 // the data plane's
}

// vm is a VM that the controller told us of, or that a hypervisor lists.
type vm struct {
	Name      string     `json:"name"`
	Interface string     `json:"interface"`
	MACs      []string   `json:"macs"`
	EIDs      []lisp.EID `json:"eids"`

	runs time.Time // the hypervisor said that it runs here, but its interface was not known; zero: no
	told time.Time // the time of the hypervisor's last event that was believed
}

// localEID is an EID whose VM runs here.
type localEID struct {
	EID       lisp.EID  `json:"eid"`
	VM        string    `json:"vm,omitempty"` // empty: nobody told us its name
	MAC       string    `json:"mac"`
	Interface string    `json:"interface"`
	Learned   bool      `json:"learned"` // seen: neither the controller nor the hypervisor says that the VM has it
	Since     time.Time `json:"since"`
	Seen      time.Time `json:"seen"` // the last evidence
	// Exact says, of a VM with several interfaces, that a frame from MAC named this address.
	Exact bool `json:"exact,omitempty"`

	index    int       // interface index; 0: the interface is not there
	gone     time.Time // since when; zero: it is there
	restored bool      // from before a restart: its interface has not been found again yet
	first    bool      // claimed without knowing a version
}

// maxMACs bounds how many MAC addresses are remembered.
const maxMACs = 1 << 14

func newLocals() *locals {
	return &locals{
		ports: map[int]*port{}, names: map[string]*port{},
		specs: map[string]*vm{}, nics: map[string]string{}, vms: map[string]*vm{}, byMAC: map[string]*vm{}, owner: map[lisp.EID]*vm{},
		eids: map[lisp.EID]*localEID{}, macs: map[string]seenMAC{},
	}
}

// hardwareAddr is the MAC address that s, from our own state, spells.
func hardwareAddr(s string) net.HardwareAddr {
	m, _ := net.ParseMAC(s)
	return m
}

// portUp notes an interface. It returns the one that it replaces, if any.
func (l *locals) portUp(p *port) (old *port) {
	if old = l.ports[p.index]; old == nil {
		old = l.names[p.name]
	}
	if old != nil {
		l.portGone(old)
	}
	l.ports[p.index], l.names[p.name] = p, p
	return old
}

func (l *locals) portGone(p *port) {
	delete(l.ports, p.index)
	if l.names[p.name] == p {
		delete(l.names, p.name)
	}
	maps.DeleteFunc(l.macs, func(_ string, s seenMAC) bool { return s.index == p.index })
}

// putVM sets what is known of a VM. It returns the EIDs that it does not have any more.
func (l *locals) putVM(v *vm) (removed []lisp.EID) {
	if old := l.vms[v.Name]; old != nil {
		v.runs, v.told = old.runs, old.told
		for _, e := range old.EIDs {
			if !slices.Contains(v.EIDs, e) {
				removed = append(removed, e)
			}
		}
		l.deleteVM(v.Name)
	}
	l.vms[v.Name] = v
	for _, m := range v.MACs {
		l.byMAC[m] = v
	}
	for _, e := range v.EIDs {
		l.owner[e] = v
	}
	return removed
}

func (l *locals) deleteVM(name string) {
	v := l.vms[name]
	if v == nil {
		return
	}
	delete(l.vms, name)
	maps.DeleteFunc(l.byMAC, func(_ string, o *vm) bool { return o == v })
	maps.DeleteFunc(l.owner, func(_ lisp.EID, o *vm) bool { return o == v })
}

// find returns the name under which a VM is known that an event calls name: that is its own, or its hypervisor's
// for it, its UUID, or that of its interface or MAC address.
func (l *locals) find(name string) (string, bool) {
	if _, ok := l.vms[name]; ok {
		return name, true
	}
	for _, g := range l.guests {
		if name != "" && (g.Name == name || g.UUID == name || slices.ContainsFunc(g.Interfaces, func(n GuestInterface) bool {
			return n.MAC == name || n.Device == name
		})) {
			return g.VM, true
		}
	}
	for _, v := range l.vms {
		if v.Interface == name && name != "" || slices.Contains(v.MACs, name) {
			return v.Name, true
		}
	}
	for _, e := range l.eids {
		if e.VM == name && name != "" {
			return name, true
		}
	}
	return "", false
}

// eidsOf lists the EIDs of a VM that live here.
func (l *locals) eidsOf(name string) (out []lisp.EID) {
	for e, le := range l.eids {
		if le.VM == name && name != "" {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, lisp.EID.Compare)
	return out
}

// rightPort reports whether frames of a VM whose interface is called name may come from p: it is the one, or
// the one is not here.
func (l *locals) rightPort(name string, p *port) bool {
	named := l.names[name]
	return name == "" || named == nil || named == p
}

// sawMAC notes where a MAC address was seen.
func (l *locals) sawMAC(mac string, index int, at time.Time) {
	if _, ok := l.macs[mac]; ok || len(l.macs) < maxMACs {
		l.macs[mac] = seenMAC{index, at}
	}
}

// learned counts the EIDs that were learned at an interface.
func (l *locals) learned(index int) (n int) {
	for _, e := range l.eids {
		if e.Learned && e.index == index {
			n++
		}
	}
	return n
}

// bind makes le live at p.
func (le *localEID) bind(p *port) {
	le.index, le.Interface, le.gone, le.restored = p.index, p.name, time.Time{}, false
}

// sorted lists the local EIDs in order.
func (l *locals) sorted() []*localEID {
	return slices.SortedFunc(maps.Values(l.eids), func(a, b *localEID) int { return a.EID.Compare(b.EID) })
}

// sortedVMs lists the known VMs in order.
func (l *locals) sortedVMs() []*vm {
	return slices.SortedFunc(maps.Values(l.vms), func(a, b *vm) int { return cmp.Compare(a.Name, b.Name) })
}

// eidOf is the EID that an address stands for, if the cloud has it.
func (c *Config) eidOf(a netip.Addr) (lisp.EID, bool) {
	if !a.IsValid() || a.IsUnspecified() {
		return lisp.EID{}, false
	}
	e := lisp.HostEID(c.IID, a)
	return e, c.own(e)
}
