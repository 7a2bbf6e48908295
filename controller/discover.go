package controller

import (
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// What the drivers tell, made into what the controller knows. The owner goroutine runs all of it.

// overseen is what is known of a hypervisor by its driver.
type overseen struct {
	at     time.Time // of the last list
	err    string    // why there is none now
	node   *Node
	guests []Guest
	byUUID map[string]int
	byName map[string]int
	byMAC  map[string]int
}

// spotted is a guest at a hypervisor.
type spotted struct {
	hv    string
	at    time.Time
	guest Guest
	stale bool // its driver does not answer any more
}

// stranger is a guest that is no VM of the inventory, and cannot be made one.
type stranger struct {
	spotted
	name    string // that it is listed under
	problem string
}

func (c *Controller) startWatcher(h Hypervisor) {
	if h.Driver == "" || c.cfg.Drivers == nil {
		return
	}
	w := newHVWatcher(h, c.cfg.Drivers, c.cfg.Timing, func(s sighted) {
		c.post(func(now time.Time) { c.sighted(s, now) })
	})
	c.watchers[h.Name] = w
	w.start(c.ctx, &c.wg)
}

func (c *Controller) stopWatcher(name string) {
	if w := c.watchers[name]; w != nil {
		w.cancel()
		delete(c.watchers, name)
	}
	delete(c.seen, name)
	c.strangers = slices.DeleteFunc(c.strangers, func(s stranger) bool { return s.hv == name })
}

// sighted takes what a driver said.
func (c *Controller) sighted(s sighted, now time.Time) {
	if h, ok := c.inv.hvs[s.hv]; !ok || h.Driver != s.uri || c.watchers[s.hv] == nil {
		return // it was asked where it is not any more
	}
	o := c.seen[s.hv]
	if o == nil {
		o = &overseen{}
		c.seen[s.hv] = o
	}
	if s.err != nil {
		if o.err == "" {
			c.log.Warn("driver lost", "hypervisor", s.hv, "err", s.err)
		}
		c.counters.add("driver lists failed", 1)
		o.err = s.err.Error()
		return
	}
	if o.err != "" || o.at.IsZero() {
		c.log.Info("driver answers", "hypervisor", s.hv, "vms", len(s.guests))
	}
	c.counters.add("driver lists", 1)
	if s.node == nil {
		s.node = o.node
	}
	*o = overseen{at: s.at, node: s.node, guests: s.guests, byUUID: map[string]int{}, byName: map[string]int{}, byMAC: map[string]int{}}
	for i := range o.guests {
		g := &o.guests[i]
		g.UUID = strings.ToLower(g.UUID)
		if g.UUID != "" {
			o.byUUID[g.UUID] = i
		}
		o.byName[g.Name] = i
		for j, n := range g.Interfaces {
			if hw, err := net.ParseMAC(n.MAC); err == nil {
				g.Interfaces[j].MAC = hw.String()
				o.byMAC[hw.String()] = i
			}
		}
	}
	c.discover(s.hv, o, now)
	c.reconcile(now)
}

// rediscover looks through the last lists once more: what was entered may be what was found there.
func (c *Controller) rediscover(now time.Time) {
	for _, hv := range slices.Sorted(maps.Keys(c.seen)) {
		if o := c.seen[hv]; !o.at.IsZero() {
			c.discover(hv, o, now)
		}
	}
}

// find returns v's guest.
func (o *overseen) find(v VM) (Guest, bool) {
	if v.UUID != "" {
		if i, ok := o.byUUID[v.UUID]; ok {
			return o.guests[i], true
		}
	}
	try := func(i int, ok bool) bool { // a domain with another UUID is another VM
		return ok && (v.UUID == "" || o.guests[i].UUID == "" || o.guests[i].UUID == v.UUID)
	}
	if i, ok := o.byName[v.Name]; try(i, ok) {
		return o.guests[i], true
	}
	for _, m := range v.MACs {
		if i, ok := o.byMAC[m]; try(i, ok) {
			return o.guests[i], true
		}
	}
	return Guest{}, false
}

// standing orders what two hypervisors say of one VM: the higher is to be believed.
func standing(s GuestState) int {
	switch s {
	case GuestRunning:
		return 3
	case GuestPaused:
		return 2
	case GuestHibernated, GuestCrashed, GuestUnknown:
		return 1
	}
	return 0
}

// sights returns what every hypervisor says of a VM, what is to be believed first: where it runs, then where it is
// said to be.
func (c *Controller) sights(v VM) []spotted {
	var out []spotted
	for _, name := range slices.Sorted(maps.Keys(c.seen)) {
		o := c.seen[name]
		if g, ok := o.find(v); ok {
			out = append(out, spotted{name, o.at, g, o.err != ""})
		}
	}
	slices.SortStableFunc(out, func(a, b spotted) int {
		if d := standing(b.guest.State) - standing(a.guest.State); d != 0 {
			return d
		}
		switch {
		case !a.stale && b.stale:
			return -1
		case a.stale && !b.stale:
			return 1
		}
		switch v.Hypervisor {
		case a.hv:
			return -1
		case b.hv:
			return 1
		}
		return 0
	})
	return out
}

func (c *Controller) sight(v VM) (spotted, bool) {
	if s := c.sights(v); len(s) > 0 {
		return s[0], true
	}
	return spotted{}, false
}

// vmOf finds the VM that a guest is; "" = none.
func (c *Controller) vmOf(g Guest) string {
	if v, ok := c.inv.vms[c.inv.uuids[g.UUID]]; ok && g.UUID != "" {
		return v.Name
	}
	same := func(v VM, ok bool) bool { return ok && (v.UUID == "" || g.UUID == "" || v.UUID == g.UUID) }
	if v, ok := c.inv.vms[g.Name]; same(v, ok) {
		return v.Name
	}
	for _, n := range g.Interfaces {
		if v, ok := c.inv.vms[c.inv.macs[n.MAC]]; same(v, ok) {
			return v.Name
		}
	}
	return ""
}

// discover takes the guests of one hypervisor.
func (c *Controller) discover(hv string, o *overseen, now time.Time) {
	c.strangers = slices.DeleteFunc(c.strangers, func(s stranger) bool { return s.hv == hv })
	for _, g := range o.guests {
		if name := c.vmOf(g); name != "" {
			c.recognise(hv, c.inv.vms[name], g)
			continue
		}
		if v, ok := c.inv.vms[g.Name]; ok && v.Hypervisor == hv && !c.uuidSeen(v.UUID) {
			v.UUID = g.UUID // it was made anew
			c.recognise(hv, v, g)
			c.tellVM(v)
			continue
		}
		v, problem := c.newcomer(hv, g)
		if problem != "" {
			c.strangers = append(c.strangers, stranger{spotted{hv: hv, at: o.at, guest: g}, v.Name, problem})
			continue
		}
		v.Placed = now
		c.log.Info("found a VM that nobody entered", "vm", v.Name, "hypervisor", hv, "eids", join(v.EIDs))
		c.counters.add("vms discovered", 1)
		c.tellVM(v)
	}
}

// recognise brings what the controller knows of v up to date by what one of its hypervisors says.
func (c *Controller) recognise(hv string, v VM, g Guest) {
	old := v
	if v.UUID == "" {
		v.UUID = g.UUID
	}
	if v.Owner == "" {
		v.Owner = c.believed(hv, g.Owner)
	}
	if v.Discovered && len(g.EIDs) > 0 && c.moving(v.Name) == nil {
		n := v
		n.EIDs, n.MACs = g.EIDs, macsOf(g)
		if n, err := n.normal(); err == nil {
			o, _ := c.inv.conflict(n)
			if _, service := c.serviceOutside(n.EIDs); o == "" && service == "" {
				c.warnServices(v.Name, v.EIDs, n.EIDs)
				v = n
			}
		}
	}
	if !v.same(old) {
		c.tellVM(v)
	}
}

// uuidSeen reports whether any driver lists a domain with this UUID.
func (c *Controller) uuidSeen(uuid string) bool {
	for _, o := range c.seen {
		if _, ok := o.byUUID[uuid]; ok {
			return true
		}
	}
	return false
}

// tellVM keeps a VM, and has the agents told of it.
func (c *Controller) tellVM(v VM) {
	c.inv.putVM(v)
	c.dirty.putVM(v)
	for _, p := range c.peers {
		p.set(v.Name, agentVM{v.Interface, v.MACs, v.EIDs})
	}
}

// believed is the owner that a domain's metadata names, if its site may say so: one that has owners may not say that a
// VM is a stranger's.
func (c *Controller) believed(hv, owner string) string {
	s := c.inv.sites[c.inv.hvs[hv].Site]
	if owner == "" || checkName("owner", owner) != nil || len(s.Owners) > 0 && !slices.Contains(s.Owners, owner) {
		return ""
	}
	return owner
}

// newcomer makes a VM of a guest that nobody entered, or says why that cannot be done.
func (c *Controller) newcomer(hv string, g Guest) (VM, string) {
	v := VM{Name: vmNameOf(g.Name), Hypervisor: hv, MACs: macsOf(g), EIDs: g.EIDs, UUID: g.UUID, Discovered: true, Owner: c.believed(hv, g.Owner)}
	if _, taken := c.inv.vms[v.Name]; taken || c.strangeName(v.Name, hv, g.UUID) {
		v.Name = vmNameOf(v.Name + "." + hv)
		if _, taken := c.inv.vms[v.Name]; taken {
			return v, "another VM has its name"
		}
	}
	if len(v.EIDs) == 0 {
		return v, "its domain says no EIDs: enter them (tabi vm set), or write them into the domain's metadata"
	}
	n, err := v.normal()
	if err != nil {
		return v, "its domain's metadata: " + err.Error()
	}
	if o, what := c.inv.conflict(n); o != "" {
		return v, "vm " + o + " has " + what + " already"
	}
	if e, o := c.serviceOutside(n.EIDs); o != "" {
		return v, e.String() + " is the service address " + o
	}
	return n, ""
}

// strangeName reports whether another stranger, elsewhere, is listed under a name.
func (c *Controller) strangeName(name, hv, uuid string) bool {
	return slices.ContainsFunc(c.strangers, func(s stranger) bool { return s.name == name && s.hv != hv && s.guest.UUID != uuid })
}

// vmNameOf makes the name of a domain one of a VM.
func vmNameOf(s string) string {
	b := []byte(s)
	for i, ch := range b {
		if !(ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || ch == '.' || ch == '_' || ch == '-') {
			b[i] = '-'
		}
	}
	s = strings.TrimLeft(string(b), "._-")
	if s == "" {
		s = "vm"
	}
	return s[:min(len(s), 63)]
}

func macsOf(g Guest) []string {
	out := []string{}
	for _, n := range g.Interfaces {
		if n.MAC != "" {
			out = append(out, n.MAC)
		}
	}
	return out
}

// reconcile believes the drivers where they have disagreed with the inventory for long enough: the agents' records say it
// sooner, and more, when packets were involved.
func (c *Controller) reconcile(now time.Time) {
	c.reconcileAt = time.Time{}
	later := func(t time.Time) {
		if c.reconcileAt.IsZero() || t.Before(c.reconcileAt) {
			c.reconcileAt = t
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.inv.vms)) {
		v := c.inv.vms[name]
		o := c.seen[v.Hypervisor]
		if !v.Discovered && v.UUID == "" && o == nil && v.Hypervisor != "" {
			continue // no driver has ever had to do with it
		}
		if c.moving(name) != nil || c.migrating(name) != nil {
			delete(c.missing, name)
			continue
		}
		ss := c.sights(v)
		switch {
		case len(ss) > 0 && v.Hypervisor == "":
			v.Hypervisor, v.Placed = ss[0].hv, now
			c.setVM(v)
			continue
		case len(ss) > 0 && ss[0].hv != v.Hypervisor && (o != nil && o.err == "" || standing(ss[0].guest.State) == 3):
			// It is elsewhere, and where it should be it is not, or does not run.
		case len(ss) == 0 && v.Discovered:
		default:
			delete(c.missing, name)
			continue
		}
		since, ok := c.missing[name]
		if !ok {
			since = now
			c.missing[name] = now
		}
		wait := c.cfg.Timing.Relocate
		if len(ss) == 0 {
			wait = c.cfg.Timing.Vanish
		}
		switch {
		case now.Before(since.Add(wait)):
			later(since.Add(wait))
		case len(ss) > 0:
			c.log.Info("a VM is elsewhere, say the drivers", "vm", name, "was", v.Hypervisor, "is", ss[0].hv)
			v.Hypervisor, v.Placed = ss[0].hv, now
			c.setVM(v)
			delete(c.missing, name)
		case o != nil && o.err != "" || o == nil && c.inv.hvs[v.Hypervisor].Driver != "":
			later(now.Add(wait)) // its hypervisor cannot be asked: it may be there
		default:
			c.log.Info("a VM that was discovered is gone", "vm", name, "hypervisor", v.Hypervisor)
			c.forgetVM(name)
		}
	}
}

// forgetVM removes a VM.
func (c *Controller) forgetVM(name string) {
	c.warnServices(name, c.inv.vms[name].EIDs, nil)
	c.inv.delVM(name)
	c.dirty.delVM(name)
	delete(c.missing, name)
	for _, p := range c.peers {
		p.forget(name)
	}
}

// vmStatus is what is shown of a VM.
func (c *Controller) vmStatus(v VM) VMStatus {
	out := VMStatus{VM: v, State: GuestUnknown, Site: c.inv.hvs[v.Hypervisor].Site, Services: serviceNames(c.svc.index.of(v.EIDs))}
	if m := c.moving(v.Name); m != nil {
		out.Move = m.ID
	}
	if m := c.migrating(v.Name); m != nil {
		out.Migration = m.ID
	}
	ss := c.sights(v)
	if len(ss) > 0 {
		s := ss[0]
		g := s.guest
		out.State, out.Seen, out.Guest = g.State, s.at, &g
		out.Storage = storage(c.inv.sites[c.inv.hvs[s.hv].Site], g)
		if s.hv != v.Hypervisor && out.Move == "" && out.Migration == "" {
			out.Problem = "it is said to be on " + or(v.Hypervisor, "no hypervisor") + ", and is seen on " + s.hv
		}
		if len(ss) > 1 && ss[1].guest.State == GuestRunning && !ss[1].stale {
			out.Problem = "it runs twice: on " + s.hv + " and on " + ss[1].hv
		}
		if g.Owner != "" && g.Owner != v.Owner && out.Problem == "" {
			out.Problem = "its domain says that it is " + g.Owner + "'s, which is not believed"
		}
		return out
	}
	switch o := c.seen[v.Hypervisor]; {
	case o != nil && o.err != "":
		out.Problem = "the driver of " + v.Hypervisor + " does not answer: " + o.err
	case o != nil && !o.at.IsZero():
		out.Problem = v.Hypervisor + " does not have it"
		out.State = GuestOff
	}
	return out
}

func (s stranger) status(site string) VMStatus {
	g := s.guest
	return VMStatus{
		VM:    VM{Name: s.name, Hypervisor: s.hv, MACs: macsOf(g), EIDs: []lisp.EID{}, UUID: g.UUID, Discovered: true},
		State: g.State, Seen: s.at, Guest: &g, Site: site, Problem: s.problem,
	}
}

// storage says in a word where a guest's disks are.
func storage(s Site, g Guest) string {
	out := "none"
	for _, d := range g.Disks {
		switch {
		case d.ReadOnly || d.Source == "":
		case d.Network || s.pool(d.Source) != "":
			if out == "none" {
				out = "shared"
			}
		default:
			return "local"
		}
	}
	return out
}
