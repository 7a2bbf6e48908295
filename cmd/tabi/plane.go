package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// plane is what an xTR and a D-ETR have in common: packets in the kernel, packets that the kernel hands
// up, and the control plane's socket.
type plane struct {
	kernel  *kernel.DataPlane
	slow    *slowpath.SlowPath
	control *control.Endpoint
}

// openPlane opens the kernel's data plane, or picks up what a daemon before left running, attaches it to
// the underlay, and adds the slow path to what d runs.
func openPlane(ctx context.Context, k kernel.Config, s slowpath.Config, underlay []string, d *daemon) (*plane, error) {
	var err error
	if k.Self, err = withSources(k.Self, underlay); err != nil {
		return nil, err
	}
	p := &plane{}
	if p.kernel, err = kernel.Open(k, d.log); err != nil {
		return nil, err
	}
	if err = attach(underlay, p.kernel.AttachUnderlay); err == nil {
		p.slow, err = slowpath.New(s, p.kernel.Queues(), p.kernel, d.log)
	}
	if err == nil {
		p.control, err = d.endpoint(ctx, k.Self...)
	}
	if err != nil {
		p.kernel.Close()
		return nil, err
	}
	d.part("slow path", p.slow.Run)
	return p, nil
}

func (p *plane) counted() []counted {
	return []counted{{"kernel", p.kernel.Drops}, {"slow path", p.slow.Counters}, {"control", p.control.Counters}}
}

func attach(names []string, to func(ifindex int) error) error {
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
		if err := to(l.Attrs().Index); err != nil {
			return err
		}
	}
	return nil
}

// withSources adds the underlay's addresses of a family of which there is no own RLOC: whoever registers
// RLOCs of one family still sends to peers that have only the other one, and hears from them.
func withSources(self []netip.Addr, underlay []string) ([]netip.Addr, error) {
	sources, err := globalAddresses(underlay)
	if err != nil {
		return nil, err
	}
	for _, a := range sources {
		if !slices.ContainsFunc(self, func(s netip.Addr) bool { return s.Is4() == a.Is4() }) {
			self = append(slices.Clone(self), a)
		}
	}
	return self, nil
}

// globalAddresses are the first global address of each family on the named interfaces.
func globalAddresses(names []string) ([]netip.Addr, error) {
	found := map[bool]netip.Addr{}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, err)
		}
		for _, one := range list {
			a, ok := netip.AddrFromSlice(one.IP)
			if a = a.Unmap(); ok && a.IsGlobalUnicast() && !found[a.Is4()].IsValid() {
				found[a.Is4()] = a
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), netip.Addr.Compare), nil
}
