package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

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
