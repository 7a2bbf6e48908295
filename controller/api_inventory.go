package controller

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Sites.

func (c *Controller) listSites(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return sorted(c.inv.sites), nil })
}

func (c *Controller) getSite(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) { return find("site", c.inv.sites, r.PathValue("name")) })
}

func (c *Controller) putSite(r *http.Request) (int, any, error) {
	var s Site
	if err := body(r, &s); err != nil {
		return 0, nil, err
	}
	if err := named("site", r.PathValue("name"), &s.Name); err != nil {
		return 0, nil, err
	}
	if err := s.validate(); err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(time.Time) (any, error) {
		old, ok := c.inv.sites[s.Name]
		if !ok || !old.same(s) {
			c.inv.sites[s.Name] = s
			c.dirty.putSite(s)
		}
		return put{!ok, s}, nil
	})
}

func (c *Controller) deleteSite(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("site", c.inv.sites, name); err != nil {
			return nil, err
		}
		for _, h := range sorted(c.inv.hvs) {
			if h.Site == name {
				return nil, fail(http.StatusConflict, "site %s has hypervisor %s", name, h.Name)
			}
		}
		delete(c.inv.sites, name)
		c.dirty.delSite(name)
		return nil, nil
	})
}

// Hypervisors.

// HypervisorStatus is a hypervisor as the API shows it: without its token, with the state of its agent.
type HypervisorStatus struct {
	Hypervisor
	AgentSeen  time.Time `json:"agent_seen,omitzero"`
	AgentError string    `json:"agent_error,omitempty"` // why it cannot be reached now
	VMsToTell  int       `json:"vms_to_tell"`           // VMs that the agent does not know of yet
	VMs        []string  `json:"vms"`                   // which run there

	// What its driver says; nothing without one.
	DriverSeen  time.Time `json:"driver_seen,omitzero"`
	DriverError string    `json:"driver_error,omitempty"` // why it cannot be reached now
	Node        *Node     `json:"node,omitempty"`
	Used        Capacity  `json:"used"`           // by the VMs there, and those on their way there
	Free        *Capacity `json:"free,omitempty"` // nil = not known, or not bounded
}

// VMStatus is a VM as the API shows it.
type VMStatus struct {
	VM
	State   GuestState `json:"state"`             // as its hypervisor's driver says; "unknown" without one
	Seen    time.Time  `json:"seen,omitzero"`     // when it said so
	Guest   *Guest     `json:"guest,omitempty"`   // as it was seen last
	Storage string     `json:"storage,omitempty"` // "shared", "local", "none"; "" = not known
	Site    string     `json:"site,omitempty"`
	// Services are the service addresses of its EIDs, addresses or prefixes.
	Services []string `json:"services,omitempty"`
	// Migration is the id of the migration that it is in, Move that of the move.
	Migration string `json:"migration,omitempty"`
	Move      string `json:"move,omitempty"`
	Problem   string `json:"problem,omitempty"` // why it cannot be moved by us, or what is wrong
}

// Capacity is an amount of what VMs need.
type Capacity struct {
	VMs    int    `json:"vms,omitempty"`
	CPUs   int    `json:"cpus"`
	Memory uint64 `json:"memory"` // bytes
}

func (c *Controller) hvStatus(h Hypervisor) HypervisorStatus { return c.hvStatusIn(h, c.world("")) }

func (c *Controller) hvStatusIn(h Hypervisor, w *world) HypervisorStatus {
	st := c.status[h.Name]
	out := HypervisorStatus{Hypervisor: h, AgentSeen: st.seen, AgentError: st.err, VMs: c.inv.on(h.Name)}
	out.Token = ""
	if o := c.seen[h.Name]; o != nil {
		out.DriverSeen, out.DriverError, out.Node = o.at, o.err, o.node
	} else if h.Driver != "" && c.cfg.Drivers == nil {
		out.DriverError = "this controller has no drivers"
	}
	if x := w.hosts[h.Name]; x != nil {
		out.Used = x.used
		if m, ok := x.room(); ok {
			out.Free = &Capacity{CPUs: max(x.has.CPUs-x.used.CPUs, 0), Memory: m}
		}
	}
	if out.VMs == nil {
		out.VMs = []string{}
	}
	if p := c.peers[h.Name]; p != nil {
		var refused string
		if out.VMsToTell, refused = p.waiting(); refused != "" {
			out.AgentError = or(out.AgentError, "refuses "+refused)
		}
	}
	return out
}

func (c *Controller) listHypervisors(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		out, w := []HypervisorStatus{}, c.world("")
		for _, h := range sorted(c.inv.hvs) {
			out = append(out, c.hvStatusIn(h, w))
		}
		return out, nil
	})
}

func (c *Controller) getHypervisor(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		h, err := find("hypervisor", c.inv.hvs, r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return c.hvStatus(h), nil
	})
}

func (c *Controller) putHypervisor(r *http.Request) (int, any, error) {
	var in struct {
		HypervisorStatus         // so that what was read can be put back; its own fields are ignored
		Token            *string `json:"token"`
		Drained          *bool   `json:"drained"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	h := in.Hypervisor
	if err := named("hypervisor", r.PathValue("name"), &h.Name); err != nil {
		return 0, nil, err
	}
	h, err := h.normal()
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(now time.Time) (any, error) {
		old, ok := c.inv.hvs[h.Name]
		h.Token = old.Token
		if in.Token != nil {
			h.Token = *in.Token
		}
		h.Drained, h.DrainedSince = old.Drained, old.DrainedSince
		if in.Drained != nil && *in.Drained != h.Drained {
			h.Drained, h.DrainedSince = *in.Drained, time.Time{}
			if h.Drained {
				h.DrainedSince = now
			}
		}
		if ok && old.same(h) {
			return put{false, c.hvStatus(h)}, nil
		}
		if _, ok := c.inv.sites[h.Site]; !ok {
			return nil, fail(http.StatusConflict, "hypervisor %s: no site %q: put it first", h.Name, h.Site)
		}
		for _, o := range sorted(c.inv.hvs) {
			if o.Name != h.Name && (o.XTRID == h.XTRID || o.RLOC == h.RLOC) {
				return nil, fail(http.StatusConflict, "hypervisor %s: %s has the same xtr_id or rloc", h.Name, o.Name)
			}
		}
		if ok && !old.samePeer(h) {
			if m := c.takesPart(h.Name); m != nil {
				return nil, fail(http.StatusConflict, "hypervisor %s takes part in %s: how others know it cannot change now", h.Name, m.summary())
			}
		}
		if m := c.migratesAt(h.Name); m != nil && (old.Driver != h.Driver || old.Site != h.Site) {
			return nil, fail(http.StatusConflict, "hypervisor %s takes part in migration %s (%s): its driver and its site cannot change now", h.Name, m.ID, m.Phase)
		}
		c.inv.hvs[h.Name] = h
		c.dirty.putHV(h)
		c.stopPeer(h.Name)
		c.startPeer(h)
		if old.Driver != h.Driver {
			c.stopWatcher(h.Name)
			c.startWatcher(h)
		}
		return put{!ok, c.hvStatus(h)}, nil
	})
}

// takesPart returns a move that is not over and that a hypervisor takes part in.
func (c *Controller) takesPart(hv string) *Record {
	for _, e := range c.openMoves() {
		if !e.m.State.Ended() && (e.m.From == hv || e.m.To == hv) {
			return &e.m.Record
		}
	}
	return nil
}

// migratesAt returns an open migration that a hypervisor takes part in.
func (c *Controller) migratesAt(hv string) *MigrationRecord {
	for _, m := range c.openMigrations() {
		if m.r.From == hv || m.r.To == hv {
			return &m.r
		}
	}
	return nil
}

func (c *Controller) deleteHypervisor(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("hypervisor", c.inv.hvs, name); err != nil {
			return nil, err
		}
		if vms := c.inv.on(name); len(vms) > 0 {
			return nil, fail(http.StatusConflict, "hypervisor %s has VMs: %s", name, strings.Join(vms, ", "))
		}
		if m := c.takesPart(name); m != nil {
			return nil, fail(http.StatusConflict, "hypervisor %s takes part in %s", name, m.summary())
		}
		if m := c.migratesAt(name); m != nil {
			return nil, fail(http.StatusConflict, "hypervisor %s takes part in migration %s (%s)", name, m.ID, m.Phase)
		}
		delete(c.inv.hvs, name)
		c.dirty.delHV(name)
		c.stopPeer(name)
		c.stopWatcher(name)
		return nil, nil
	})
}

// VMs.

func (c *Controller) listVMs(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		out := []VMStatus{}
		for _, v := range sorted(c.inv.vms) {
			out = append(out, c.vmStatus(v))
		}
		for _, s := range c.strangers {
			out = append(out, s.status(c.inv.hvs[s.hv].Site))
		}
		slices.SortStableFunc(out, func(a, b VMStatus) int { return strings.Compare(a.Name, b.Name) })
		return out, nil
	})
}

func (c *Controller) getVM(r *http.Request) (int, any, error) {
	return c.read(r, func() (any, error) {
		v, ok := c.inv.vms[r.PathValue("name")]
		if !ok {
			return c.strangerStatus(r.PathValue("name"))
		}
		return c.vmStatus(v), nil
	})
}

// moving returns the VM's move that keeps it from being changed or moved again.
func (c *Controller) moving(vm string) *Record {
	for _, e := range c.byVM[vm] {
		if e.m.State.binding() {
			return &e.m.Record
		}
	}
	return nil
}

func (c *Controller) putVM(r *http.Request) (int, any, error) {
	var in VMStatus // so that what was read can be put back; its own fields are ignored
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	v := in.VM
	v.Discovered = false
	if err := named("vm", r.PathValue("name"), &v.Name); err != nil {
		return 0, nil, err
	}
	v, err := v.normal()
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "%v", err)
	}
	return c.write(r, func(now time.Time) (any, error) {
		old, ok := c.inv.vms[v.Name]
		if v.Hypervisor == "" {
			v.Hypervisor = old.Hypervisor
		}
		v.Version, v.Placed = old.Version, old.Placed
		v.Owner, v.UUID = or(v.Owner, old.Owner), or(v.UUID, old.UUID)
		if ok && old.same(v) {
			return put{false, c.vmStatus(old)}, nil
		}
		if _, there := c.inv.hvs[v.Hypervisor]; v.Hypervisor != "" && !there {
			return nil, fail(http.StatusConflict, "vm %s: no hypervisor %q: put it first", v.Name, v.Hypervisor)
		}
		if o, what := c.inv.conflict(v); o != "" {
			return nil, fail(http.StatusConflict, "vm %s: vm %s has %s already", v.Name, o, what)
		}
		if m := c.moving(v.Name); m != nil {
			return nil, fail(http.StatusConflict, "vm %s cannot change now: %s", v.Name, m.summary())
		}
		if lost := c.servicesLost(old.EIDs, v.EIDs); len(lost) > 0 {
			return nil, fail(http.StatusConflict, "vm %s: service addresses are translated to EIDs that it would not have any more: %s; move or delete them first", v.Name, strings.Join(lost, ", "))
		}
		if e, o := c.serviceOutside(v.EIDs); o != "" {
			return nil, fail(http.StatusConflict, "vm %s: %s cannot be its EID: it is the service address %s", v.Name, e, o)
		}
		if v.Hypervisor != old.Hypervisor {
			v.Placed = now
		}
		c.setVM(v)
		for _, p := range c.peers {
			p.set(v.Name, agentVM{v.Interface, v.MACs, v.EIDs})
		}
		c.rediscover(now)
		return put{!ok, c.vmStatus(c.inv.vms[v.Name])}, nil
	})
}

func (c *Controller) deleteVM(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	return c.write(r, func(time.Time) (any, error) {
		if _, err := find("vm", c.inv.vms, name); err != nil {
			return nil, err
		}
		if m := c.moving(name); m != nil {
			return nil, fail(http.StatusConflict, "vm %s cannot be removed now: %s", name, m.summary())
		}
		if g := c.migrating(name); g != nil {
			return nil, fail(http.StatusConflict, "vm %s cannot be removed now: it is being migrated: %s to %s (%s)", name, g.ID, g.To, g.Phase)
		}
		if lost := c.servicesLost(c.inv.vms[name].EIDs, nil); len(lost) > 0 {
			return nil, fail(http.StatusConflict, "vm %s cannot be removed: it has service addresses: %s; move or delete them first", name, strings.Join(lost, ", "))
		}
		c.forgetVM(name)
		return nil, nil
	})
}
