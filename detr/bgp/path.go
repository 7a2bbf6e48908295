package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/tabi-lisp/tabi/lisp"
)

// The functions of our large communities: see the package's documentation.
const (
	fnVersion  = 1
	fnSet      = 2
	fnPriority = 3
	fnWeight   = 4
	fnTTL      = 5
	fnFlags    = 6
	fnAction   = 7
	fnXTRID    = 8  // ..11
	fnSiteID   = 12 // ..13
	fnInside   = 14 // ..17

	fnEnd = 18
)

// Bits of function fnFlags.
const (
	flagAuthoritative = 1 << 0
	flagUnreachable   = 1 << 1
)

const (
	digestMask = 1<<24 - 1
	maxLocs    = 255 // RFC 9301 section 5.4: the locator count has 8 bits
	defaultTTL = lisp.TTL(1440)
)

// large is one large community (RFC 8092).
type large struct{ admin, fn, value uint32 }

// set identifies the locator set that a path belongs to: paths of one mapping have equal sets.
type set uint32

func (s set) count() int { return int(s >> 24) }

// A path is what one BGP path says: one locator of a mapping, with all that is common to the mapping; or a
// service.
type path struct {
	id        uint32       // path identifier (RFC 7911)
	loc       lisp.Locator // no RLOC: the mapping has no locators
	set       set
	version   lisp.Version
	ttl       lisp.TTL
	action    lisp.Action
	authority bool
	xtr       lisp.XTRID
	site      lisp.SiteID
	inside    netip.Addr // of a service: the first address of the EID prefix, whose length follows from the NLRI
}

// split takes m apart into its paths, in the order of m's locators and with identifiers from 1.
func split(m lisp.Mapping) []path {
	head := path{
		id: 1, version: m.Version & lisp.VersionMask, ttl: m.TTL, action: m.Action,
		authority: m.Authoritative, xtr: m.XTRID, site: m.SiteID,
	}
	if m.IsService() {
		head.inside, m.Locators = m.Inside.Addr(), nil
	}
	locs := make([]lisp.Locator, 0, len(m.Locators))
	for _, l := range m.Locators {
		if l.RLOC.IsValid() && len(locs) < maxLocs {
			locs = append(locs, lisp.Locator{
				RLOC: l.RLOC.Unmap().WithZone(""), Priority: l.Priority, Weight: l.Weight, Reachable: l.Reachable,
			})
		}
	}
	slices.SortFunc(locs, lisp.CompareLocators)
	locs = slices.CompactFunc(locs, func(a, b lisp.Locator) bool { return a.RLOC == b.RLOC })
	head.set = setOf(head, locs)
	if len(locs) == 0 {
		return []path{head}
	}
	ps := make([]path, len(locs))
	for i, l := range locs {
		ps[i] = head
		ps[i].id, ps[i].loc = uint32(i+1), l
	}
	return ps
}

// setOf is the set of a mapping with the given sorted locators: their number, and a digest of whatever
// may differ between two mappings of the same version and xTR-ID.
func setOf(head path, locs []lisp.Locator) set {
	h := fnv.New64a()
	var b [20]byte
	binary.BigEndian.PutUint32(b[:], uint32(head.ttl))
	binary.BigEndian.PutUint64(b[4:], uint64(head.site))
	if head.authority {
		b[12] = 1
	}
	if len(locs) == 0 {
		b[13] = byte(head.action)
	}
	h.Write(b[:])
	if head.inside.IsValid() {
		a := head.inside.As16()
		h.Write(a[:])
	}
	for _, l := range locs {
		a := l.RLOC.As16()
		copy(b[:], a[:])
		b[16], b[17], b[18], b[19] = l.Priority, l.Weight, 0, byte(l.RLOC.BitLen())
		if l.Reachable {
			b[18] = 1
		}
		h.Write(b[:])
	}
	v := h.Sum64()
	return set(len(locs)<<24) | set((v^v>>24^v>>48)&digestMask)
}

// join puts paths of one set together again. Paths must not be empty; locators come out sorted, each
// RLOC once.
func join(eid lisp.EID, paths []path) lisp.Mapping {
	p := paths[0]
	m := lisp.Mapping{
		EID: eid, TTL: p.ttl, Version: p.version, Authoritative: p.authority, XTRID: p.xtr, SiteID: p.site,
	}
	if p.set.count() == 0 {
		m.Action = p.action
		if in, err := lisp.ServiceInside(eid, p.inside); err == nil {
			m.Inside = in
		}
		return m
	}
	m.Locators = make([]lisp.Locator, 0, len(paths))
	for _, p := range paths {
		if !slices.ContainsFunc(m.Locators, func(l lisp.Locator) bool { return l.RLOC == p.loc.RLOC }) {
			m.Locators = append(m.Locators, p.loc)
		}
	}
	slices.SortFunc(m.Locators, lisp.CompareLocators)
	return m
}

// communities are the large communities of p under the administrator as.
func (p path) communities(as uint32) []large {
	cs := make([]large, 0, fnEnd-1)
	add := func(fn, v uint32) { cs = append(cs, large{as, fn, v}) }
	add(fnVersion, uint32(p.version))
	add(fnSet, uint32(p.set))
	if p.set.count() > 0 {
		add(fnPriority, uint32(p.loc.Priority))
		add(fnWeight, uint32(p.loc.Weight))
	}
	add(fnTTL, uint32(p.ttl))
	var flags uint32
	if p.authority {
		flags |= flagAuthoritative
	}
	if p.set.count() > 0 && !p.loc.Reachable {
		flags |= flagUnreachable
	}
	add(fnFlags, flags)
	if p.set.count() == 0 {
		add(fnAction, uint32(p.action))
	}
	if !p.xtr.IsZero() {
		for i := range 4 {
			add(fnXTRID+uint32(i), binary.BigEndian.Uint32(p.xtr[4*i:]))
		}
	}
	if p.inside.IsValid() {
		a := p.inside.As16()
		for i := range 4 {
			add(fnInside+uint32(i), binary.BigEndian.Uint32(a[4*i:]))
		}
	}
	if p.site != 0 {
		add(fnSiteID, uint32(p.site>>32))
		add(fnSiteID+1, uint32(p.site))
	}
	return cs
}

// valueLimits are the largest values of the functions that do not use all 32 bits.
var valueLimits = [...]uint32{
	fnVersion: uint32(lisp.VersionMask), fnPriority: 255, fnWeight: 255, fnAction: 7,
}

var (
	errNoNextHop = errors.New("no usable next hop")
	errNoService = errors.New("functions 14..17 are not those of a service: all four, and no locators")
)

// parsePath reads what a path with this next hop and these large communities says. It fails on a value
// that is out of range, on a function that appears twice with different values, on a service that has
// locators or half an EID, and on a next hop that is no unicast address.
func parsePath(as, id uint32, nextHop netip.Addr, cs []large) (path, error) {
	p := path{id: id, set: 1 << 24, ttl: defaultTTL}
	p.loc.Reachable = true
	var seen [fnEnd]bool
	var values [fnEnd]uint32
	for _, c := range cs {
		if c.admin != as || c.fn == 0 || c.fn >= uint32(len(values)) {
			continue
		}
		if seen[c.fn] && values[c.fn] != c.value {
			return path{}, fmt.Errorf("large community %d:%d: both %d and %d", as, c.fn, values[c.fn], c.value)
		}
		seen[c.fn], values[c.fn] = true, c.value
	}
	for fn, limit := range valueLimits {
		if limit != 0 && values[fn] > limit {
			return path{}, fmt.Errorf("large community %d:%d: %d is above %d", as, fn, values[fn], limit)
		}
	}
	p.version = lisp.Version(values[fnVersion])
	if seen[fnSet] {
		p.set = set(values[fnSet])
	}
	if seen[fnTTL] {
		p.ttl = lisp.TTL(values[fnTTL])
	}
	p.authority = values[fnFlags]&flagAuthoritative != 0
	for i := range 4 {
		binary.BigEndian.PutUint32(p.xtr[4*i:], values[fnXTRID+i])
	}
	p.site = lisp.SiteID(uint64(values[fnSiteID])<<32 | uint64(values[fnSiteID+1]))
	if slices.Contains(seen[fnInside:], true) {
		if p.set.count() > 0 || slices.Contains(seen[fnInside:], false) {
			return path{}, errNoService
		}
		var a [16]byte
		for i := range 4 {
			binary.BigEndian.PutUint32(a[4*i:], values[fnInside+i])
		}
		p.loc, p.inside, p.action = lisp.Locator{}, netip.AddrFrom16(a), lisp.ActDrop
		return p, nil
	}
	if p.set.count() == 0 {
		p.loc = lisp.Locator{}
		p.action = lisp.Action(values[fnAction])
		return p, nil
	}
	nextHop = nextHop.Unmap().WithZone("")
	if !nextHop.IsValid() || nextHop.IsUnspecified() || nextHop.IsMulticast() {
		return path{}, errNoNextHop
	}
	p.loc.RLOC = nextHop
	p.loc.Priority, p.loc.Weight = uint8(values[fnPriority]), uint8(values[fnWeight])
	p.loc.Reachable = values[fnFlags]&flagUnreachable == 0
	return p, nil
}

// fits says what is wrong with p as a path of eid.
func (p path) fits(eid lisp.EID) error {
	if !p.inside.IsValid() {
		return nil
	}
	_, err := lisp.ServiceInside(eid, p.inside)
	return err
}

// localPref makes a reader that knows only BGP prefer what LISP prefers.
func (p path) localPref() uint32 {
	if !p.loc.Usable() {
		return 0
	}
	return lisp.UnusablePriority - uint32(p.loc.Priority)
}
