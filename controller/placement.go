package controller

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// world is the cloud as placement and preflight see it: values, nothing that changes.
type world struct {
	sites map[string]Site
	hosts map[string]*host
	lent  map[string]Capacity // by site: what its guests (VMs that are not at home there) have, those on their way included
}

// host is a hypervisor in a world.
type host struct {
	Hypervisor
	silent string   // why it takes nothing now: nobody there answers; "" = it answers
	has    Capacity // 0 = not known, not bounded
	free   uint64   // bytes of memory that are free by measurement, running VMs counted; 0 = not known
	used   Capacity // by the VMs there, and those on their way there
	coming Capacity // the latter alone
}

// room is what is left on h for VMs; ok is false if nobody knows. CPUs may be shared, so that only a bound that
// somebody has set counts.
func (h *host) room() (memory uint64, ok bool) {
	if h.has.Memory == 0 {
		return 0, false
	}
	memory = h.has.Memory - min(h.has.Memory, h.used.Memory)
	if h.free > 0 {
		memory = min(memory, h.free-min(h.free, h.coming.Memory))
	}
	return memory, true
}

// short says what h lacks to take a VM with such needs; "" = nothing.
func (h *host) short(need Capacity) string {
	if m, ok := h.room(); ok && need.Memory > m {
		return fmt.Sprintf("%s has room for %s of memory, the VM needs %s", h.Name, size(m), size(need.Memory))
	}
	if h.CPUs > 0 && h.used.CPUs+need.CPUs > h.CPUs {
		return fmt.Sprintf("%s has room for %d virtual CPUs, the VM needs %d", h.Name, max(h.CPUs-h.used.CPUs, 0), need.CPUs)
	}
	return ""
}

// lends says what is lacking in what a site lends to take one more guest; "" = nothing. VMs at home are none.
func (w *world) lends(v VM, need Capacity, from, to string) string {
	s := w.sites[to]
	if from == to || s.Lend == nil || s.home(v) {
		return ""
	}
	lent := w.lent[to]
	if l := s.Lend.CPUs; l > 0 && lent.CPUs+need.CPUs > l {
		return fmt.Sprintf("site %s lends %d virtual CPUs, %d of them are taken, the VM needs %d", to, l, lent.CPUs, need.CPUs)
	}
	if l := s.Lend.Memory; l > 0 && lent.Memory+need.Memory > l {
		return fmt.Sprintf("site %s lends %s of memory, %s of it are taken, the VM needs %s", to, size(l), size(lent.Memory), size(need.Memory))
	}
	return ""
}

// policy says why the policy of to's site keeps v, which is on from, away; "" = it does not.
func (w *world) policy(v VM, need Capacity, from, to string) string {
	f, t := w.siteOf(from), w.siteOf(to)
	return or(w.sites[t].admits(v, f), w.lends(v, need, f, t))
}

func (w *world) siteOf(hv string) string {
	if h := w.hosts[hv]; h != nil {
		return h.Site
	}
	return ""
}

// refuses says why a VM is not placed on to; "" = it may be.
func (w *world) refuses(v VM, need Capacity, from string, to *host) string {
	switch {
	case to.Name == from:
		return "it is there"
	case to.Drained:
		return "it is drained"
	case to.silent != "":
		return to.silent
	}
	return or(w.policy(v, need, from, to.Name), to.short(need))
}

// place chooses a hypervisor for a VM that is on from ("" = nowhere): at a site if that is not "", else anywhere. fit, if
// not nil, says what else speaks against a hypervisor. It returns "" if there is none; why says what decided, and
// refused why not the others, sorted by name.
func (w *world) place(v VM, need Capacity, from, site string, fit func(*host) string) (best, why string, refused []Refusal) {
	var good []*host
	for _, h := range sorted(w.hosts) {
		if site != "" && h.Site != site {
			continue
		}
		no := w.refuses(v, need, from, h)
		if no == "" && fit != nil {
			no = fit(h)
		}
		if no != "" {
			refused = append(refused, Refusal{h.Name, h.Site, no})
			continue
		}
		good = append(good, h)
	}
	if len(good) == 0 {
		where := "no hypervisor takes it"
		if site != "" {
			where = "no hypervisor of site " + site + " takes it"
		}
		for i, r := range refused {
			sep := "; "
			if i == 0 {
				sep = ": "
			}
			where += sep + r.Hypervisor + ": " + r.Why
		}
		return "", where, refused
	}
	best0 := slices.MinFunc(good, (*host).better)
	why = fmt.Sprintf("it has the fewest VMs (%d)", best0.used.VMs)
	if m, ok := best0.room(); ok {
		why = fmt.Sprintf("it has the most memory free (%s of %s)", size(m), size(best0.has.Memory))
	}
	if len(good) == 1 {
		why = "it is the only one that takes it"
	}
	for _, h := range good {
		if h != best0 {
			refused = append(refused, Refusal{h.Name, h.Site, "it would take it, but " + best0.Name + " is better: " + why})
		}
	}
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Compare(a.Hypervisor, b.Hypervisor) })
	return best0.Name, why, refused
}

// better orders hosts for placement, the best first.
func (h *host) better(o *host) int {
	a, aok := h.room()
	b, bok := o.room()
	switch {
	case aok != bok && aok:
		return -1
	case aok != bok:
		return 1
	case aok:
		// In thousandths, so that a few bytes decide nothing.
		part := func(m uint64, h *host) uint64 { return uint64(float64(m) / float64(h.has.Memory) * 1000) }
		if c := cmp.Compare(part(b, o), part(a, h)); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(h.used.VMs, o.used.VMs), cmp.Compare(h.Name, o.Name))
}

// take books a VM on to: it is on its way there.
func (w *world) take(v VM, need Capacity, to string) {
	need.VMs = 1
	if h := w.hosts[to]; h != nil {
		h.used, h.coming = h.used.plus(need), h.coming.plus(need)
		if w.siteOf(v.Hypervisor) != h.Site && !w.sites[h.Site].home(v) {
			w.lent[h.Site] = w.lent[h.Site].plus(need)
		}
	}
}

// plus is the sum.
func (c Capacity) plus(o Capacity) Capacity {
	return Capacity{c.VMs + o.VMs, c.CPUs + o.CPUs, c.Memory + o.Memory}
}

// world takes a picture of the cloud. except is a migration that is not counted: its own.
func (c *Controller) world(except string) *world {
	w := &world{sites: maps.Clone(c.inv.sites), hosts: map[string]*host{}, lent: map[string]Capacity{}}
	for name, h := range c.inv.hvs {
		x := &host{Hypervisor: h, has: Capacity{CPUs: h.CPUs, Memory: h.Memory}}
		if st := c.status[name]; st.err != "" {
			x.silent = "its agent does not answer: " + st.err
		}
		if o := c.seen[name]; o != nil {
			if o.err != "" {
				x.silent = or(x.silent, "its driver does not answer: "+o.err)
			}
			if o.node != nil {
				if x.has.Memory == 0 {
					x.has.Memory = o.node.Memory
				}
				if x.has.CPUs == 0 {
					x.has.CPUs = o.node.CPUs
				}
				x.free = o.node.MemoryFree
			}
		}
		w.hosts[name] = x
	}
	for _, v := range c.inv.vms {
		need := c.needs(v)
		need.VMs = 1
		if h := w.hosts[v.Hypervisor]; h != nil {
			h.used = h.used.plus(need)
			if !w.sites[h.Site].home(v) {
				w.lent[h.Site] = w.lent[h.Site].plus(need)
			}
		}
	}
	// Whoever is on the way is counted at the target, too: it has to have room before the source gives it back.
	booked := map[string]string{}
	for _, m := range c.openMigrations() {
		if r := &m.r; r.ID != except && r.To != "" {
			booked[r.VM] = r.To
		}
	}
	for e := range c.open {
		if m := &e.m; m.State.binding() && m.ID != except && booked[m.VM] == "" {
			booked[m.VM] = m.To
		}
	}
	for name, to := range booked {
		if v, ok := c.inv.vms[name]; ok && v.Hypervisor != to {
			w.take(v, c.needs(v), to)
		}
	}
	for _, f := range c.strangers {
		if h := w.hosts[f.hv]; h != nil && f.guest.State != GuestOff {
			n := Capacity{1, f.guest.VCPUs, f.guest.Memory}
			h.used = h.used.plus(n)
			w.lent[h.Site] = w.lent[h.Site].plus(n)
		}
	}
	return w
}

// needs is what a VM needs, as its driver says, else as it was entered.
func (c *Controller) needs(v VM) Capacity {
	if s, ok := c.sight(v); ok && s.guest.Memory > 0 {
		return Capacity{CPUs: s.guest.VCPUs, Memory: s.guest.Memory}
	}
	return Capacity{CPUs: v.CPUs, Memory: v.Memory}
}
