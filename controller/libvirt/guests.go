package libvirt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/tabi-lisp/tabi/controller"
)

// Guests lists every VM that is defined or runs there, by name. A VM whose metadata cannot be read is listed without
// what is wrong; the log says so once.
func (d *Driver) Guests(ctx context.Context) ([]controller.Guest, error) {
	c, err := d.session(ctx)
	if err != nil {
		return nil, d.failed("list", err)
	}
	guests, err := d.guests(ctx, c)
	if err != nil {
		return nil, d.failed("list", err)
	}
	return guests, nil
}

func (d *Driver) guests(ctx context.Context, c *conn) ([]controller.Guest, error) {
	list := func(f golibvirt.ConnectListAllDomainsFlags) ([]golibvirt.Domain, error) {
		return call(ctx, c, func() ([]golibvirt.Domain, error) {
			all, _, err := c.ConnectListAllDomains(1, f)
			return all, err
		})
	}
	all, err := list(0)
	if err != nil {
		return nil, err
	}
	sizes := diskSizes(ctx, c)
	guests := []controller.Guest{}
	for _, dom := range all {
		g, _, err := d.guest(ctx, c, dom)
		if golibvirt.IsNotFound(err) {
			continue // it went while we asked
		}
		if err != nil {
			return nil, err
		}
		for i, disk := range g.Disks {
			if s, ok := sizes[g.UUID+"/"+disk.Target]; ok {
				g.Disks[i].Capacity, g.Disks[i].Allocated = s.capacity, s.allocated
			}
		}
		guests = append(guests, g)
	}
	slices.SortFunc(guests, func(a, b controller.Guest) int { return strings.Compare(a.Name, b.Name) })
	return guests, nil
}

// guest asks for all that is known of one VM, except for the sizes of its disks. local are the disks that a copy has to
// take along.
func (d *Driver) guest(ctx context.Context, c *conn, dom golibvirt.Domain) (g controller.Guest, local []string, err error) {
	type raw struct {
		xml               string
		state, persistent int32
		saved             int32
	}
	r, err := call(ctx, c, func() (r raw, err error) {
		if r.xml, err = c.DomainGetXMLDesc(dom, 0); err != nil {
			return r, err
		}
		if r.state, _, err = c.DomainGetState(dom, 0); err != nil {
			return r, err
		}
		if r.persistent, err = c.DomainIsPersistent(dom); err != nil {
			return r, err
		}
		if r.persistent != 0 {
			r.saved, err = c.DomainHasManagedSaveImage(dom, 0)
		}
		return r, err
	})
	if err != nil {
		return g, nil, err
	}
	g, local, err = parseDomain([]byte(r.xml))
	d.warn(dom.Name, err)
	if err != nil && g.Name == "" {
		g = controller.Guest{Name: dom.Name}
	}
	g.UUID, g.State, g.Persistent = formatUUID(dom.UUID), guestState(golibvirt.DomainState(r.state)), r.persistent != 0
	if g.State == controller.GuestOff && r.saved != 0 {
		g.State = controller.GuestHibernated
	}
	if g.State != controller.GuestRunning && g.State != controller.GuestPaused {
		for i := range g.Interfaces {
			g.Interfaces[i].Device = ""
		}
	}
	return g, local, nil
}

// warn says what is wrong with a definition, once.
func (d *Driver) warn(vm string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		delete(d.warned, vm)
		return
	}
	if d.warned[vm] != err.Error() {
		d.warned[vm] = err.Error()
		d.log.Warn("a VM's definition cannot be read in full", "vm", vm, "err", err)
	}
}

func guestState(s golibvirt.DomainState) controller.GuestState {
	switch s {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked, golibvirt.DomainShutdown:
		return controller.GuestRunning
	case golibvirt.DomainPaused, golibvirt.DomainPmsuspended:
		return controller.GuestPaused
	case golibvirt.DomainShutoff:
		return controller.GuestOff
	case golibvirt.DomainCrashed:
		return controller.GuestCrashed
	}
	return controller.GuestUnknown
}

func domainState(ctx context.Context, c *conn, dom golibvirt.Domain) (golibvirt.DomainState, int32, error) {
	type state struct{ state, reason int32 }
	s, err := call(ctx, c, func() (s state, err error) {
		s.state, s.reason, err = c.DomainGetState(dom, 0)
		return s, err
	})
	return golibvirt.DomainState(s.state), s.reason, err
}

type diskSize struct{ capacity, allocated uint64 }

// diskSizes asks for the sizes of all disks at once: UUID/target -> size. What libvirt does not tell, or not without
// waiting for a VM that is busy, is not there.
func diskSizes(ctx context.Context, c *conn) map[string]diskSize {
	records, err := call(ctx, c, func() ([]golibvirt.DomainStatsRecord, error) {
		return c.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsBlock), uint32(golibvirt.ConnectGetAllDomainsStatsNowait))
	})
	sizes := make(map[string]diskSize)
	if err != nil {
		return sizes // an old libvirt
	}
	for _, r := range records {
		p := params(r.Params)
		for i := range p.number("block.count") {
			at := fmt.Sprintf("block.%d.", i)
			target := formatUUID(r.Dom.UUID) + "/" + p.text(at+"name")
			// libvirt's own "allocation" of a VM that runs is how far it has written since it was started.
			sizes[target] = diskSize{p.number(at + "capacity"), p.number(at + "physical")}
		}
	}
	return sizes
}

// parameters are libvirt's typed parameters by name.
type parameters map[string]any

func params(list []golibvirt.TypedParam) parameters {
	p := make(parameters, len(list))
	for _, x := range list {
		p[x.Field] = x.Value.I
	}
	return p
}

// number is 0 for what is absent, negative or no number.
func (p parameters) number(name string) uint64 {
	switch v := p[name].(type) {
	case int32:
		return uint64(max(v, 0))
	case uint32:
		return uint64(v)
	case int64:
		return uint64(max(v, 0))
	case uint64:
		return v
	}
	return 0
}

func (p parameters) text(name string) string {
	s, _ := p[name].(string)
	return s
}
