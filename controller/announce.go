package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxAnnounce bounds an announcement: whoever migrates the VM waits for the answer.
const maxAnnounce = 900 * time.Millisecond

func (c *Controller) postAnnouncement(r *http.Request) (int, any, error) {
	var in Announcement
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxAnnounce)
	defer cancel()
	v, err := c.change(ctx, func(now time.Time) (any, error) { return c.announce(in, now) })
	if err != nil {
		return 0, nil, err
	}
	if a := v.(Announced); !a.New {
		return http.StatusOK, a, nil
	}
	return http.StatusCreated, v, nil
}

// announce prepares the move of a migration that somebody else begins.
func (c *Controller) announce(in Announcement, now time.Time) (any, error) {
	v, err := c.announcedVM(in)
	if err != nil {
		return nil, err
	}
	to, ok := c.hypervisorCalled(in.To)
	if !ok {
		return nil, fail(http.StatusNotFound, "no hypervisor %q: neither a name, nor an RLOC, nor a hostname", in.To)
	}
	if m := c.moving(v.Name); m != nil {
		if m.To == to.Name {
			return Announced{v.Name, m.ID, m.State, false}, nil // by us, or it was said before
		}
		rec := *m
		return nil, &Error{http.StatusConflict, fmt.Sprintf("vm %s is being moved elsewhere already: %s", v.Name, m.summary()), &rec}
	}
	if g := c.migrating(v.Name); g != nil && g.To == to.Name {
		return Announced{v.Name, or(g.Move, g.ID), Preparing, false}, nil
	}
	// The same VM, from the same place, where it has been since then: the same migration, unless that has ended.
	base := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d", v.Name, v.Hypervisor, to.Name, v.Placed.UnixNano()))
	id := "announced-" + hex.EncodeToString(base[:6])
	for n := 2; c.moves[id] != nil || c.migs[id] != nil; n++ {
		if e := c.moves[id]; e != nil && !e.m.State.Ended() {
			return Announced{v.Name, id, e.m.State, false}, nil
		}
		id = fmt.Sprintf("announced-%s-%d", hex.EncodeToString(base[:6]), n)
	}
	if _, err := c.prepare(id, MoveRequest{VM: v.Name, To: to.Name}, moveAnnounced, now); err != nil {
		return nil, err
	}
	return Announced{v.Name, id, c.moves[id].m.State, true}, nil
}

// announcedVM finds the VM that is meant.
func (c *Controller) announcedVM(in Announcement) (VM, error) {
	switch {
	case in.VM != "":
		if v, ok := c.inv.vms[in.VM]; ok {
			return v, nil
		}
		// A domain may have another name than its VM.
		for _, o := range c.seen {
			if i, ok := o.byName[in.VM]; ok {
				if v, ok := c.inv.vms[c.vmOf(o.guests[i])]; ok {
					return v, nil
				}
			}
		}
	case in.UUID == "" && len(in.MACs) == 0:
		return VM{}, fail(http.StatusBadRequest, "vm, uuid or macs: which VM is announced?")
	}
	if v, ok := c.inv.vms[c.inv.uuids[strings.ToLower(in.UUID)]]; ok && in.UUID != "" {
		return v, nil
	}
	for _, s := range in.MACs {
		m, err := net.ParseMAC(s)
		if err != nil {
			return VM{}, fail(http.StatusBadRequest, "mac %q: want six bytes such as 52:54:00:00:00:10", s)
		}
		if v, ok := c.inv.vms[c.inv.macs[m.String()]]; ok {
			return v, nil
		}
	}
	return VM{}, fail(http.StatusNotFound, "no vm %q (uuid %q, macs %q)", in.VM, in.UUID, in.MACs)
}

// hypervisorCalled finds a hypervisor by its name, an RLOC, or the hostname that its driver tells.
func (c *Controller) hypervisorCalled(s string) (Hypervisor, bool) {
	if h, ok := c.inv.hvs[s]; ok {
		return h, true
	}
	a, err := netip.ParseAddr(s)
	short, _, _ := strings.Cut(s, ".")
	var found []Hypervisor
	for _, h := range sorted(c.inv.hvs) {
		o := c.seen[h.Name]
		switch {
		case err == nil:
			if h.RLOC == a.Unmap() || slices.ContainsFunc(h.Locators, func(l Locator) bool { return l.RLOC == a.Unmap() }) {
				found = append(found, h)
			}
		case s == "":
		case o != nil && o.node != nil && (strings.EqualFold(o.node.Hostname, s) || strings.EqualFold(o.node.Hostname, short)):
			found = append(found, h)
		}
	}
	if len(found) != 1 { // a name that two have says nothing
		return Hypervisor{}, false
	}
	return found[0], true
}
