package xtr

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Guest is a VM as its hypervisor knows it.
type Guest struct {
	Name       string
	UUID       string
	Interfaces []GuestInterface
	// EIDs are the addresses that its metadata says it has. They count if the controller names none; without
	// either, those that its frames name are learned.
	EIDs    []lisp.EID
	Running bool // its CPUs run here
	Off     bool // it is only defined here: nothing of it is there to run
}

// GuestInterface is one network interface of a Guest.
type GuestInterface struct {
	MAC    string `json:"mac"`
	Device string `json:"device,omitempty"` // interface of this host; empty: not known, or not there now
}

// guest is what is kept of a Guest. A VM that two sources list is two of them, with one name for both.
type guest struct {
	Source     string           `json:"source"`
	Name       string           `json:"name"`
	UUID       string           `json:"uuid,omitempty"`
	Interfaces []GuestInterface `json:"interfaces,omitempty"`
	EIDs       []lisp.EID       `json:"eids,omitempty"`
	State      guestState       `json:"state"`
	Since      time.Time        `json:"since"` // when it came to its state, as far as we know
	VM         string           `json:"vm"`    // the name under which we know it
}

// guestState is what a guest does.
type guestState string

const (
	guestNew     guestState = "" // nothing was said yet
	guestRunning guestState = "running"
	guestStopped guestState = "stopped" // paused, or being sent here or away
	guestOff     guestState = "off"
)

// Guests takes the whole list of VMs that a source, which is libvirt or the QMP sockets of this host, knows of.
// asked is when it was asked: what an event says of a later moment outweighs the list. A VM that the source listed
// before and does not list now is gone. It returns when that has taken effect in the data plane. What makes no
// sense of a VM, like EIDs that are not the cloud's, is counted and left out.
func (x *XTR) Guests(ctx context.Context, source string, asked time.Time, all []Guest) error {
	_, err := call(ctx, x, true, func(now time.Time) (struct{}, error) {
		x.listed(source, asked, all, now)
		return struct{}{}, nil
	})
	return err
}

// GuestEvent takes what a source says of a VM, which is called by its name, UUID or MAC address. kind is one of
// EventStopped, EventResumed, EventMigrating and EventGone; at is when it happened, zero: now. It returns when
// that has taken effect in the data plane. It fails with ErrNotFound if nobody knows the VM: list again, then. It
// fails with ErrInvalid if kind is none.
func (x *XTR) GuestEvent(ctx context.Context, source, vm, kind string, at time.Time) error {
	_, err := call(ctx, x, true, func(now time.Time) (struct{}, error) {
		return struct{}{}, x.vmEvent(VMEvent{VM: vm, Event: kind, At: at}, now)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return nil
}

// listed takes a source's list.
func (x *XTR) listed(source string, asked time.Time, all []Guest, now time.Time) {
	if asked.IsZero() || asked.After(now) {
		asked = now
	}
	var here []*guest
	states := map[*guest]guestState{}
	names := map[string]bool{} // of VMs of which something has changed
	for _, in := range all {
		g := x.guestOf(source, in, names)
		if g == nil || slices.Contains(here, g) {
			x.count("guests-refused")
			continue
		}
		here = append(here, g)
		switch {
		case in.Running:
			states[g] = guestRunning
		case in.Off:
			states[g] = guestOff
		default:
			states[g] = guestStopped
		}
	}
	for _, g := range slices.Clone(x.loc.guests) {
		if v := x.loc.vms[g.VM]; g.Source == source && !slices.Contains(here, g) && (v == nil || !asked.Before(v.told)) {
			x.guestChanged(g, guestOff, asked, now)
			x.loc.guests = slices.DeleteFunc(x.loc.guests, func(o *guest) bool { return o == g })
			names[g.VM] = true
		}
	}
	x.knowGuests(names, now)
	for _, g := range here {
		x.guestChanged(g, states[g], asked, now)
	}
	x.saver.mark(now)
}

// guestOf finds what is kept of a VM, or keeps it from now on, and writes down what the source says. It returns nil
// if that names no VM. If anything has changed it puts the VM's name into changed.
func (x *XTR) guestOf(source string, in Guest, changed map[string]bool) *guest {
	if in.Name == "" && in.UUID == "" {
		return nil
	}
	i := slices.IndexFunc(x.loc.guests, func(g *guest) bool {
		return g.Source == source && (in.UUID != "" && g.UUID == in.UUID || (in.UUID == "" || g.UUID == "") && g.Name == in.Name)
	})
	g := &guest{Source: source}
	if i >= 0 {
		g = x.loc.guests[i]
	} else {
		x.loc.guests = append(x.loc.guests, g)
	}
	before := *g
	g.Name, g.UUID, g.Interfaces, g.EIDs = cmp.Or(in.Name, in.UUID), in.UUID, nil, nil
	for _, n := range in.Interfaces {
		ms, err := macs([]string{n.MAC})
		if err != nil {
			x.count("guest-macs-refused")
			continue
		}
		if n.Device == "" { // QEMU does not always say; the interface did not get another name
			if j := slices.IndexFunc(before.Interfaces, func(o GuestInterface) bool { return o.MAC == ms[0] }); j >= 0 && !in.Off {
				n.Device = before.Interfaces[j].Device
			}
		}
		g.Interfaces = append(g.Interfaces, GuestInterface{MAC: ms[0], Device: n.Device})
	}
	for _, e := range in.EIDs {
		if es, err := x.vmEIDs([]lisp.EID{e}); err != nil {
			x.count("guest-eids-refused")
		} else {
			g.EIDs = append(g.EIDs, es...)
		}
	}
	if i < 0 || g.Name != before.Name || g.UUID != before.UUID || !slices.Equal(g.Interfaces, before.Interfaces) || !slices.Equal(g.EIDs, before.EIDs) {
		changed[g.VM], changed[x.nameOf(g)] = true, true
	}
	return g
}

// knowGuests finds out whose the guests are, and makes what is known of the VMs called names, and of those that
// have got other guests, what the controller and the hypervisors say together.
func (x *XTR) knowGuests(names map[string]bool, now time.Time) {
	clear(x.loc.nics)
	for _, g := range x.loc.guests {
		name := x.nameOf(g)
		if g.VM != name {
			names[g.VM], names[name] = true, true
			if g.VM != "" {
				x.rename(g.VM, name)
			}
		}
		g.VM = name
		for _, n := range g.Interfaces {
			if x.loc.nics[n.MAC] == "" {
				x.loc.nics[n.MAC] = n.Device
			}
		}
	}
	delete(names, "")
	for _, g := range x.loc.guests { // of two that have the same EID, the one that was known first keeps it
		if names[g.VM] {
			delete(names, g.VM)
			x.know(g.VM, now)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		x.know(name, now)
	}
}

// nameOf is the name under which a guest is known: the controller's for a VM with one of its MAC addresses, or
// with its name or UUID; that of a guest of another source with one of its MAC addresses; else its own.
func (x *XTR) nameOf(g *guest) string {
	for _, v := range x.loc.specs {
		if slices.ContainsFunc(g.Interfaces, func(n GuestInterface) bool { return slices.Contains(v.MACs, n.MAC) }) {
			return v.Name
		}
	}
	for _, name := range []string{g.Name, g.UUID} {
		if name != "" && x.loc.specs[name] != nil {
			return name
		}
	}
	for _, o := range x.loc.guests {
		if o == g {
			break // those before it have their names
		}
		if g.UUID != "" && g.UUID == o.UUID || slices.ContainsFunc(g.Interfaces, func(n GuestInterface) bool {
			return slices.ContainsFunc(o.Interfaces, func(m GuestInterface) bool { return n.MAC == m.MAC })
		}) {
			return o.VM
		}
	}
	return g.Name
}

// rename makes what is kept of a VM called old that of name.
func (x *XTR) rename(old, name string) {
	if x.loc.specs[old] != nil {
		return // that one is another VM, by now
	}
	for _, le := range x.loc.eids {
		if le.VM == old {
			le.VM = name
		}
	}
	for _, h := range x.open {
		if h.VM == old {
			h.VM = name
		}
	}
	if v := x.loc.vms[old]; v != nil {
		x.loc.deleteVM(old)
		if x.loc.vms[name] == nil {
			x.loc.vms[name] = &vm{Name: name, EIDs: v.EIDs, runs: v.runs, told: v.told}
		}
	}
}

// know makes what is known of one VM what the controller and the hypervisors say together: the controller's word
// counts, they fill in what it leaves open.
func (x *XTR) know(name string, now time.Time) {
	v := &vm{Name: name}
	spec := x.loc.specs[name]
	if spec != nil {
		v.Interface, v.MACs, v.EIDs = spec.Interface, slices.Clone(spec.MACs), slices.Clone(spec.EIDs)
	}
	known := spec != nil
	for _, g := range x.loc.guests {
		if g.VM != name {
			continue
		}
		known = true
		for _, n := range g.Interfaces {
			if o := x.loc.byMAC[n.MAC]; !slices.Contains(v.MACs, n.MAC) && (o == nil || o.Name == name || x.loc.specs[o.Name] == nil) {
				v.MACs = append(v.MACs, n.MAC)
			}
		}
		if spec != nil && len(spec.EIDs) > 0 {
			continue
		}
		for _, e := range g.EIDs {
			if o := x.loc.owner[e]; o != nil && o.Name != name {
				x.count("guest-eids-refused")
				x.warn(now, "the metadata of a VM names an EID that is another VM's", "vm", name, "eid", e.String())
			} else if !slices.Contains(v.EIDs, e) {
				v.EIDs = append(v.EIDs, e)
			}
		}
	}
	if !known {
		x.loc.deleteVM(name)
		return
	}
	slices.SortFunc(v.EIDs, lisp.EID.Compare)
	for _, e := range x.loc.putVM(v) {
		if le := x.loc.eids[e]; le != nil && le.VM == name && x.active[e] == nil {
			x.reg.withdraw(e, now)
			x.notLocal(e)
			x.program(now, e)
		}
	}
	for _, e := range v.EIDs {
		if le := x.loc.eids[e]; le != nil {
			le.VM, le.Learned = name, false
		}
	}
	for _, le := range x.loc.eids {
		if le.VM == "" && slices.Contains(v.MACs, le.MAC) && x.loc.owner[le.EID] == nil {
			le.VM = name // it was learned before anybody said whose it is
		}
	}
}

// guestChanged takes a state of a guest that a list has told.
func (x *XTR) guestChanged(g *guest, s guestState, asked, now time.Time) {
	if v := x.loc.vms[g.VM]; v != nil && asked.Before(v.told) {
		return // an event said something of a later moment
	}
	was := g.State
	ran := was == guestRunning || was == guestNew && len(x.loc.eidsOf(g.VM)) > 0
	if s != guestRunning && ran && x.seenSince(g.VM, asked) {
		return
	}
	if was != s {
		g.State, g.Since = s, asked
	}
	if s != guestRunning && slices.ContainsFunc(x.loc.guests, func(o *guest) bool {
		return o != g && o.VM == g.VM && o.State == guestRunning
	}) {
		return // another source knows better
	}
	hs := x.handoversOf(g.VM, "")
	switch {
	case s == guestRunning && was == guestRunning:
		// No news. If the mapping system says that it runs elsewhere, this is no more than a frame would be.
		x.goesOn(hs, g.VM, evidence{at: asked, why: "the hypervisor says that the VM runs here"}, now)
	case s == guestRunning:
		x.log.Info("a VM runs here", "vm", g.VM, "source", g.Source)
		x.resumed(hs, g.VM, asked, now)
	case s == guestStopped && !ran && was != guestStopped:
		x.arriving(g, now)
	case s == guestStopped && was == guestStopped:
		for _, h := range hs {
			if h.State == Incoming {
				h.Heard = now // it is waited for still
			}
		}
	case s == guestStopped && ran:
		x.log.Info("a VM has stopped", "vm", g.VM, "source", g.Source)
		x.stopped(hs, g.VM, asked, now)
	case s == guestOff && (ran || was == guestStopped):
		x.log.Info("a VM is gone", "vm", g.VM, "source", g.Source)
		x.gone(hs, g.VM, asked, now)
	}
}

// arriving: the hypervisor has a VM that does not run here and did not run here before: it is to come. What it sends
// first must be let through, and what comes for it from then on must wait for it.
func (x *XTR) arriving(g *guest, now time.Time) {
	if !slices.ContainsFunc(g.Interfaces, func(n GuestInterface) bool { return n.Device != "" }) {
		return
	}
	if _, err := x.announce(Announcement{VM: g.VM}, now); err != nil {
		x.log.Info("a VM may be about to arrive", "vm", g.VM, "source", g.Source, "err", err)
	}
}

// goesOn: there is evidence that a VM of which nothing new is known runs here.
func (x *XTR) goesOn(hs []*handover, name string, ev evidence, now time.Time) {
	for _, h := range hs {
		if h.State == Paused || h.State == Redirecting && x.reg.mayClaim(h.EIDs[0], ev.at, ev.strong, now) {
			x.exec(h, h.seen(ev, now, x.portOf(h) != nil), now)
		}
	}
	x.runs(name, ev, now)
}

// seenSince reports whether there is evidence that a VM ran here after t.
func (x *XTR) seenSince(name string, t time.Time) bool {
	return slices.ContainsFunc(x.loc.eidsOf(name), func(e lisp.EID) bool { return x.loc.eids[e].Seen.After(t) })
}

// noteGuests writes down what an event says of a VM.
func (x *XTR) noteGuests(name string, s guestState, at time.Time) {
	for _, g := range x.loc.guests {
		if g.VM == name && g.State != s {
			g.State, g.Since = s, at
		}
	}
}

// portOfMAC is the interface of the VM's interface with this MAC address: as the hypervisor says, else where it was
// seen; nil if neither is there.
func (l *locals) portOfMAC(mac string) *port {
	if p := l.names[l.nics[mac]]; p != nil {
		return p
	}
	return l.ports[l.macs[mac].index]
}

// macAt is which of these MAC addresses belongs to p; empty: none, as far as we know.
func (l *locals) macAt(ms []string, p *port) string {
	for _, m := range ms {
		if l.portOfMAC(m) == p {
			return m
		}
	}
	return ""
}

// rightNIC reports whether a frame from mac, of a VM that the controller says has the interface called name, may come
// from p.
func (l *locals) rightNIC(mac, name string, p *port) bool {
	if own := l.names[l.nics[mac]]; own != nil {
		return own == p
	}
	return l.rightPort(name, p)
}

// macsOf lists the MAC addresses of a VM, those of a handover before those that are known otherwise.
func (x *XTR) macsOf(name string, h *handover) (out []string) {
	if h != nil {
		out = slices.Clone(h.MACs)
	}
	if v := x.loc.vms[name]; v != nil && name != "" {
		for _, m := range v.MACs {
			if !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out
}

// ShowGuest is one row of "guests".
type ShowGuest struct {
	Name       string    `json:"name"`
	UUID       string    `json:"uuid"`
	VM         string    `json:"vm"` // as the controller calls it
	Source     string    `json:"source"`
	State      string    `json:"state"`
	Since      time.Time `json:"since"`
	Interfaces string    `json:"interfaces"` // device/MAC address
	EIDs       string    `json:"eids"`
	EIDsFrom   string    `json:"eids_from"` // controller, metadata or learned
}

func (x *XTR) showGuests(time.Time) []ShowGuest {
	rows := []ShowGuest{}
	for _, g := range x.loc.guests {
		row := ShowGuest{Name: g.Name, UUID: g.UUID, VM: g.VM, Source: g.Source, State: string(g.State), Since: g.Since}
		var nics, eids []string
		for _, n := range g.Interfaces {
			nics = append(nics, cmp.Or(n.Device, "-")+"/"+n.MAC)
		}
		all := map[lisp.EID]bool{}
		for _, e := range x.loc.eidsOf(g.VM) {
			all[e] = true
		}
		row.EIDsFrom = "learned"
		if v := x.loc.vms[g.VM]; v != nil && len(v.EIDs) > 0 {
			row.EIDsFrom = "metadata"
			if s := x.loc.specs[g.VM]; s != nil && len(s.EIDs) > 0 {
				row.EIDsFrom = "controller"
			}
			for _, e := range v.EIDs {
				all[e] = true
			}
		}
		for _, e := range slices.SortedFunc(maps.Keys(all), lisp.EID.Compare) {
			eids = append(eids, e.String())
		}
		if len(eids) == 0 {
			row.EIDsFrom = ""
		}
		row.Interfaces, row.EIDs = strings.Join(nics, " "), strings.Join(eids, " ")
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b ShowGuest) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Source, b.Source)) })
	return rows
}
