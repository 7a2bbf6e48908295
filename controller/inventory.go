package controller

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Site is a place with hypervisors; sites share no L2 network.
type Site struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Owners are at home here: their VMs may always come. Lend is for everybody else's. A site with neither is
	// open; see the package's documentation, "Policy".
	Owners []string `json:"owners,omitempty"`
	Lend   *Lend    `json:"lend,omitempty"`
	// SharedStorage are directories, and all below them, that every hypervisor of the site mounts from one file
	// system. "nfs1=/srv/vms" names the file system: sites that have the same name have the same.
	SharedStorage []string `json:"shared_storage,omitempty"`
}

// same reports whether s and o are equal.
func (s Site) same(o Site) bool { return reflect.DeepEqual(s, o) }

// Hypervisor is a host that VMs run on, and its xTR's agent.
type Hypervisor struct {
	Name   string      `json:"name"`
	Site   string      `json:"site"`
	RLOC   netip.Addr  `json:"rloc"`
	XTRID  lisp.XTRID  `json:"xtr_id"`
	SiteID lisp.SiteID `json:"site_id,omitempty"` // LISP Site-ID of its xTR
	Agent  string      `json:"agent"`             // base URL of the agent's API
	Token  string      `json:"token,omitempty"`   // bearer token of the agent's API; never shown

	// Locators are what its xTR registers, when that is not just RLOC with priority 1 and weight 100: the
	// controller registers the same on its behalf. RLOC, where other xTRs redirect to, is one of them.
	Locators []Locator `json:"locators,omitempty"`

	// Driver is the URI by which the controller reaches what runs its VMs ("qemu+tcp://hv1/system"); "" = it only
	// has an agent, and others migrate its VMs.
	Driver string `json:"driver,omitempty"`
	// DriverPeer is the same as the other hypervisors reach it; "" = Driver.
	DriverPeer string `json:"driver_peer,omitempty"`
	// MigrateURI is where it wants the memory of VMs that come ("tcp://10.0.0.1"); "" = it says itself.
	MigrateURI string `json:"migrate_uri,omitempty"`
	// Drained hypervisors get no VM but by name. Set by drain and undrain; a PUT without it leaves it.
	Drained      bool      `json:"drained,omitempty"`
	DrainedSince time.Time `json:"drained_since,omitzero"`
	// CPUs and Memory (bytes) are what it has for VMs; 0 = what the driver says, and without one it is not bounded.
	CPUs   int    `json:"cpus,omitempty"`
	Memory uint64 `json:"memory,omitempty"`
}

// Locator is one RLOC of an xTR.
type Locator struct {
	RLOC     netip.Addr `json:"rloc"`
	Priority uint8      `json:"priority"`
	Weight   uint8      `json:"weight"`
}

// same reports whether h and o are equal.
func (h Hypervisor) same(o Hypervisor) bool {
	ls, os := h.Locators, o.Locators
	h.Locators, o.Locators = nil, nil
	return slices.Equal(ls, os) && reflect.DeepEqual(h, o)
}

// samePeer reports whether h and o are one xTR to other xTRs and to Map-Servers.
func (h Hypervisor) samePeer(o Hypervisor) bool {
	return h.RLOC == o.RLOC && h.XTRID == o.XTRID && h.SiteID == o.SiteID && slices.Equal(h.Locators, o.Locators)
}

// side is h's part in a move.
func (h Hypervisor) side() Side {
	return Side{Hypervisor: h.Name, RLOC: h.RLOC, XTRID: h.XTRID, SiteID: h.SiteID, Locators: h.Locators}
}

// VM is a virtual machine and its addresses.
type VM struct {
	Name       string     `json:"name"`
	Hypervisor string     `json:"hypervisor,omitempty"` // where it runs; "" = nobody knows
	MACs       []string   `json:"macs"`
	EIDs       []lisp.EID `json:"eids"`
	Interface  string     `json:"interface,omitempty"` // name of its interface on every hypervisor, if it has one

	// Owner is who it belongs to: a person or an organisation, as in the sites' policies; "" = nobody said. UUID is its
	// domain's. A PUT without them leaves them. CPUs and Memory (bytes) are what it needs, for VMs whose hypervisors
	// have no driver.
	Owner  string `json:"owner,omitempty"`
	UUID   string `json:"uuid,omitempty"`
	CPUs   int    `json:"cpus,omitempty"`
	Memory uint64 `json:"memory,omitempty"`
	// Discovered VMs were found at a hypervisor, and nobody entered them: they vanish with their domain. Those whose
	// domain does not say EIDs are shown only.
	Discovered bool `json:"discovered,omitempty"`

	// Version is the newest version of the mappings of its EIDs that the controller has heard of, Placed
	// when it learned where the VM runs. Both are kept by the controller and ignored in requests.
	Version lisp.Version `json:"version,omitempty"`
	Placed  time.Time    `json:"placed,omitzero"`
}

// clone copies what a later change could share.
func (v VM) clone() VM {
	v.MACs, v.EIDs = slices.Clone(v.MACs), slices.Clone(v.EIDs)
	return v
}

// same reports whether a and b say the same, the controller's own fields aside.
func (v VM) same(o VM) bool {
	return v.Name == o.Name && v.Hypervisor == o.Hypervisor && v.Interface == o.Interface &&
		v.Owner == o.Owner && v.UUID == o.UUID && v.CPUs == o.CPUs && v.Memory == o.Memory &&
		v.Discovered == o.Discovered && slices.Equal(v.MACs, o.MACs) && slices.Equal(v.EIDs, o.EIDs)
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	idForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
)

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%s %q: a name is 1 to 63 of A-Z a-z 0-9 . _ - and begins with a letter or digit", what, name)
	}
	return nil
}

func (s Site) validate() error {
	if err := checkName("site", s.Name); err != nil {
		return err
	}
	for _, o := range s.Owners {
		if err := checkName("owner", o); err != nil {
			return fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	for _, p := range s.SharedStorage {
		if err := checkPool(p); err != nil {
			return fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	if err := s.Lend.check(); err != nil {
		return fmt.Errorf("site %s: %w", s.Name, err)
	}
	return nil
}

// normal brings h to the one form in which it is stored and compared, and validates it.
func (h Hypervisor) normal() (Hypervisor, error) {
	h.RLOC = h.RLOC.Unmap()
	h.Agent = strings.TrimSuffix(h.Agent, "/")
	h.Locators = slices.Clone(h.Locators)
	for i := range h.Locators {
		h.Locators[i].RLOC = h.Locators[i].RLOC.Unmap()
	}
	slices.SortFunc(h.Locators, func(a, b Locator) int { return a.RLOC.Compare(b.RLOC) })
	return h, h.validate()
}

func (h Hypervisor) validate() error {
	if err := checkName("hypervisor", h.Name); err != nil {
		return err
	}
	own := len(h.Locators) == 0
	for i, l := range h.Locators {
		if !l.RLOC.IsValid() || l.RLOC.Zone() != "" || i > 0 && l.RLOC == h.Locators[i-1].RLOC {
			return fmt.Errorf("hypervisor %s: locators: each needs an rloc of its own", h.Name)
		}
		own = own || l.RLOC == h.RLOC
	}
	switch {
	case h.Site == "":
		return fmt.Errorf("hypervisor %s: site is missing", h.Name)
	case !h.RLOC.IsValid() || h.RLOC.Zone() != "" || h.RLOC.IsUnspecified() || h.RLOC.IsMulticast():
		return fmt.Errorf("hypervisor %s: rloc must be an address", h.Name)
	case h.XTRID.IsZero():
		return fmt.Errorf("hypervisor %s: xtr_id must be 32 hexadecimal digits, not all 0", h.Name)
	}
	if !own {
		return fmt.Errorf("hypervisor %s: rloc %s is not among its locators", h.Name, h.RLOC)
	}
	for _, o := range []struct{ what, uri string }{{"driver", h.Driver}, {"driver_peer", h.DriverPeer}, {"migrate_uri", h.MigrateURI}} {
		if u, err := url.Parse(o.uri); o.uri != "" && (err != nil || u.Scheme == "") {
			return fmt.Errorf("hypervisor %s: %s %q: want a URI such as qemu+tcp://hv1/system (migrate_uri: tcp://192.0.2.1)", h.Name, o.what, o.uri)
		}
	}
	if h.CPUs < 0 {
		return fmt.Errorf("hypervisor %s: cpus is %d", h.Name, h.CPUs)
	}
	u, err := url.Parse(h.Agent)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("hypervisor %s: agent %q: want a URL such as http://192.0.2.1:4380", h.Name, h.Agent)
	}
	return nil
}

// normal brings v to the one form in which it is stored and compared, and validates it.
func (v VM) normal() (VM, error) {
	v = v.clone()
	if err := checkName("vm", v.Name); err != nil {
		return v, err
	}
	if len(v.EIDs) == 0 {
		return v, fmt.Errorf("vm %s: eids is empty: a VM has at least one", v.Name)
	}
	for i, m := range v.MACs {
		hw, err := net.ParseMAC(m)
		if err != nil || len(hw) != 6 {
			return v, fmt.Errorf("vm %s: mac %q: want six bytes such as 52:54:00:00:00:10", v.Name, m)
		}
		v.MACs[i] = hw.String()
	}
	for _, e := range v.EIDs {
		if !e.IsValid() || e.Prefix.Bits() == 0 || e.Prefix.Addr().IsMulticast() || e.Prefix.Addr().IsLinkLocalUnicast() {
			return v, fmt.Errorf("vm %s: %q is no EID that a VM can have", v.Name, e)
		}
	}
	slices.Sort(v.MACs)
	v.MACs = slices.Compact(v.MACs)
	slices.SortFunc(v.EIDs, lisp.EID.Compare)
	v.EIDs = slices.Compact(v.EIDs)
	if len(v.Interface) > 15 || strings.ContainsAny(v.Interface, "/ \t\n") {
		return v, fmt.Errorf("vm %s: interface %q is no name of an interface", v.Name, v.Interface)
	}
	if v.MACs == nil {
		v.MACs = []string{}
	}
	v.UUID = strings.ToLower(v.UUID)
	if v.UUID != "" && !uuidForm.MatchString(v.UUID) {
		return v, fmt.Errorf("vm %s: uuid %q: want 8-4-4-4-12 hexadecimal digits", v.Name, v.UUID)
	}
	if v.Owner != "" {
		if err := checkName("owner", v.Owner); err != nil {
			return v, fmt.Errorf("vm %s: %w", v.Name, err)
		}
	}
	if v.CPUs < 0 {
		return v, fmt.Errorf("vm %s: cpus is %d", v.Name, v.CPUs)
	}
	return v, nil
}

// inventory is what the controller knows of the cloud. The owner goroutine has it.
type inventory struct {
	sites map[string]Site
	hvs   map[string]Hypervisor
	vms   map[string]VM
	eids  map[lisp.EID]string // whose it is; overlaps are not admitted
	macs  map[string]string
	uuids map[string]string
}

func newInventory() *inventory {
	return &inventory{sites: map[string]Site{}, hvs: map[string]Hypervisor{}, vms: map[string]VM{},
		eids: map[lisp.EID]string{}, macs: map[string]string{}, uuids: map[string]string{}}
}

func (inv *inventory) putVM(v VM) {
	inv.delVM(v.Name)
	inv.vms[v.Name] = v
	for _, e := range v.EIDs {
		inv.eids[e] = v.Name
	}
	for _, m := range v.MACs {
		inv.macs[m] = v.Name
	}
	if v.UUID != "" {
		inv.uuids[v.UUID] = v.Name
	}
}

func (inv *inventory) delVM(name string) {
	old := inv.vms[name]
	for _, e := range old.EIDs {
		delete(inv.eids, e)
	}
	for _, m := range old.MACs {
		delete(inv.macs, m)
	}
	if inv.uuids[old.UUID] == name {
		delete(inv.uuids, old.UUID)
	}
	delete(inv.vms, name)
}

// conflict returns another VM that already has one of v's EIDs or MACs, and which; "" if none.
func (inv *inventory) conflict(v VM) (other, what string) {
	for _, m := range v.MACs {
		if o := inv.macs[m]; o != "" && o != v.Name {
			return o, "MAC " + m
		}
	}
	for i, e := range v.EIDs {
		for _, f := range v.EIDs[:i] {
			if e.Contains(f) || f.Contains(e) {
				return v.Name, "EID " + f.String()
			}
		}
		if o, f := inv.covering(e); o != "" && o != v.Name {
			return o, "EID " + f.String()
		}
		if e.IsHost() {
			continue
		}
		for f, o := range inv.eids {
			if o != v.Name && e.Contains(f) {
				return o, "EID " + f.String()
			}
		}
	}
	return "", ""
}

// covering returns the VM whose EID is e or contains it; "" if none.
func (inv *inventory) covering(e lisp.EID) (string, lisp.EID) {
	for bits := e.Prefix.Bits(); bits > 0; bits-- {
		f := lisp.MakeEID(e.IID, netip.PrefixFrom(e.Prefix.Addr(), bits))
		if o := inv.eids[f]; o != "" {
			return o, f
		}
	}
	return "", lisp.EID{}
}

// on lists the VMs that run on a hypervisor, sorted.
func (inv *inventory) on(hv string) []string {
	var out []string
	for _, v := range inv.vms {
		if v.Hypervisor == hv {
			out = append(out, v.Name)
		}
	}
	slices.Sort(out)
	return out
}
