package xtr

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Announcement says that a VM is about to arrive here, by whoever knows no more than that: the body of
// POST /v1/announcements. One of the fields is enough if the controller or the hypervisor has told the rest.
type Announcement struct {
	VM   string     `json:"vm,omitempty"`
	UUID string     `json:"uuid,omitempty"`
	MACs []string   `json:"macs,omitempty"`
	EIDs []lisp.EID `json:"eids,omitempty"`
}

// announce begins a handover as its target, or renews the one that is open. Where the VM is now, the mapping system
// says.
func (x *XTR) announce(a Announcement, now time.Time) (Handover, error) {
	ms, err := macs(a.MACs)
	if err != nil {
		return Handover{}, err
	}
	eids, err := x.vmEIDs(a.EIDs)
	if err != nil {
		return Handover{}, err
	}
	name := cmp.Or(a.VM, a.UUID)
	for _, ref := range append([]string{a.VM, a.UUID}, ms...) {
		if n, ok := x.loc.find(ref); ok && ref != "" {
			name = n
			break
		}
	}
	if v := x.loc.vms[name]; v != nil {
		for _, m := range v.MACs {
			if !slices.Contains(ms, m) {
				ms = append(ms, m)
			}
		}
		if len(eids) == 0 {
			eids = slices.Clone(v.EIDs)
		}
	}
	if len(eids) == 0 {
		return Handover{}, fmt.Errorf("%w: nobody has said which EIDs VM %q has", ErrNotFound, cmp.Or(name, fmt.Sprint(ms)))
	}
	if name == "" {
		name = eids[0].String()
	}
	if old := x.active[eids[0]]; old != nil && old.Role == Target && old.State == Incoming {
		old.Heard = now // it is announced twice, or was prepared by one who knows more
		return old.snapshot(), nil
	}
	for _, e := range eids {
		switch h := x.active[e]; {
		case h == nil && x.loc.eids[e] != nil && x.reg.holds(e), h != nil && (h.State == Running || h.State == Armed):
			return Handover{}, fmt.Errorf("%w: VM %q runs here: EID %v is registered as ours", ErrConflict, name, e)
		case h != nil && h.Role == Source && h.State == Paused && len(h.To) == 0:
			// It comes back to where it has just stopped, or is paused here by its operator: what is held stays so.
			return h.snapshot(), nil
		}
	}
	rec := Handover{ID: fmt.Sprintf("announced-%s-%d", idText(name), now.UnixMilli()), VM: name, Role: Target, EIDs: eids}
	if x.handovers[rec.ID] != nil {
		return Handover{}, fmt.Errorf("%w: handover %q", ErrConflict, rec.ID)
	}
	var to []lisp.Locator
	for _, e := range eids {
		rec.Version = newest(rec.Version, x.reg.known(e))
		if old := x.active[e]; old != nil && len(to) == 0 {
			to = old.To // it comes back from where it went
		}
	}
	h := x.begin(rec, ms, "", now)
	h.Prepared, h.Announced, h.To = true, true, to
	if len(to) > 0 {
		h.PeerRLOC = to[0].RLOC
	}
	h.Times.Prepared = now
	ops := x.prepared(h, now)
	h.Why = "announced"
	for _, e := range eids {
		x.locate(h, e, now)
	}
	x.exec(h, ops, now)
	x.res.tick(now)
	x.resolved(now)
	return h.snapshot(), nil
}

// locate tells a target that was announced where its VM is, if the map-cache knows.
func (x *XTR) locate(h *handover, e lisp.EID, now time.Time) {
	if h == nil || !h.Announced {
		return
	}
	if c, ok := x.res.cache.Get(e); ok && !c.Mapping.Negative() && !x.reg.ours(c.Mapping) {
		x.exec(h, h.located(c.Mapping, x.usable(c.Mapping.Locators)), now)
	}
}

// idText is s as a part of an id, which stands in URLs.
func idText(s string) string {
	if a, err := netip.ParsePrefix(s); err == nil {
		s = a.Addr().String()
	}
	b := []byte(s)
	for i, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			b[i] = '-'
		}
	}
	return string(b)
}
