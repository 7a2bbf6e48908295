package bgp

import (
	"errors"
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tabi-lisp/tabi/lisp"
)

// Family is an address family of BGP: what kind of EID a session carries.
type Family string

// The families that carry mappings.
const (
	IPv4  Family = "ipv4"  // IPv4 unicast
	IPv6  Family = "ipv6"  // IPv6 unicast
	VPNv4 Family = "vpnv4" // IPv4 EIDs of instances other than 0
	VPNv6 Family = "vpnv6" // IPv6 EIDs of instances other than 0
)

// AllFamilies carries every kind of EID.
func AllFamilies() []Family { return []Family{IPv4, IPv6, VPNv4, VPNv6} }

const (
	noExport     = 0xffffff01 // RFC 1997
	implicitNull = 3          // RFC 3032: the label of a VPN route that has no use for one
)

func (f Family) api() *api.Family {
	switch f {
	case IPv4:
		return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	case IPv6:
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	case VPNv4:
		return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_MPLS_VPN}
	case VPNv6:
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_MPLS_VPN}
	}
	return nil
}

func familyOf(f *api.Family) (Family, bool) {
	for _, g := range AllFamilies() {
		if a := g.api(); a.Afi == f.GetAfi() && a.Safi == f.GetSafi() {
			return g, true
		}
	}
	return "", false
}

// eidFamily is the family whose NLRI names e.
func eidFamily(e lisp.EID) Family {
	switch v4 := e.Prefix.Addr().Is4(); {
	case v4 && e.IID == 0:
		return IPv4
	case v4:
		return VPNv4
	case e.IID == 0:
		return IPv6
	}
	return VPNv6
}

// nlri is e as GoBGP wants it.
func nlri(e lisp.EID) proto.Message {
	addr, bits := e.Prefix.Addr().String(), uint32(e.Prefix.Bits())
	if e.IID == 0 {
		return &api.IPAddressPrefix{Prefix: addr, PrefixLen: bits}
	}
	return &api.LabeledVPNIPAddressPrefix{
		Labels: []uint32{implicitNull}, Rd: pack(&api.RouteDistinguisherTwoOctetASN{Assigned: e.IID}),
		Prefix: addr, PrefixLen: bits,
	}
}

// pack cannot fail: the messages are ours, of known types, and hold valid UTF-8 only.
func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(fmt.Sprintf("bgp: pack %T: %v", m, err))
	}
	return a
}

// route is a prefix with a next hop and attributes, on its way into GoBGP.
type route struct {
	eid       lisp.EID
	id        uint32
	nextHop   netip.Addr // invalid: the speaker's own address on each session
	localPref uint32     // 0 with no mapping: the default
	mapping   bool       // carries communities, NO_EXPORT and LOCAL_PREF
	large     []large
}

// mappingRoute is p, a path of a mapping for eid, as a route of the local AS as.
func mappingRoute(as uint32, eid lisp.EID, p path) route {
	return route{
		eid: eid, id: p.id, nextHop: p.loc.RLOC, localPref: p.localPref(), mapping: true, large: p.communities(as),
	}
}

// apiPath builds what AddPath takes.
func (r route) apiPath(as uint32) *api.Path {
	f := eidFamily(r.eid)
	n := pack(nlri(r.eid))
	nh := r.nextHop
	if !nh.IsValid() {
		nh = netip.IPv4Unspecified()
		if f == IPv6 || f == VPNv6 {
			nh = netip.IPv6Unspecified()
		}
	}
	attrs := []*anypb.Any{pack(&api.OriginAttribute{Origin: 0})}
	if f == IPv4 && nh.Is4() {
		attrs = append(attrs, pack(&api.NextHopAttribute{NextHop: nh.String()}))
	} else {
		attrs = append(attrs, pack(&api.MpReachNLRIAttribute{
			Family: f.api(), NextHops: []string{nh.String()}, Nlris: []*anypb.Any{n},
		}))
	}
	if r.mapping {
		attrs = append(attrs, pack(&api.LocalPrefAttribute{LocalPref: r.localPref}),
			pack(&api.CommunitiesAttribute{Communities: []uint32{noExport}}))
		if r.eid.IID != 0 {
			attrs = append(attrs, pack(&api.ExtendedCommunitiesAttribute{
				Communities: []*anypb.Any{pack(routeTarget(as, r.eid.IID))},
			}))
		}
		lc := make([]*api.LargeCommunity, len(r.large))
		for i, c := range r.large {
			lc[i] = &api.LargeCommunity{GlobalAdmin: c.admin, LocalData1: c.fn, LocalData2: c.value}
		}
		attrs = append(attrs, pack(&api.LargeCommunitiesAttribute{Communities: lc}))
	}
	return &api.Path{Nlri: n, Pattrs: attrs, Family: f.api(), Identifier: r.id}
}

// routeTarget is AS:IID (RFC 4360; RFC 5668 for an AS above 65535, which leaves 16 bits for the IID).
func routeTarget(as, iid uint32) proto.Message {
	const routeTargetSubType = 2
	if as > 0xffff {
		return &api.FourOctetAsSpecificExtended{
			IsTransitive: true, SubType: routeTargetSubType, Asn: as, LocalAdmin: iid & 0xffff,
		}
	}
	return &api.TwoOctetAsSpecificExtended{
		IsTransitive: true, SubType: routeTargetSubType, Asn: as, LocalAdmin: iid,
	}
}

// withdrawal is the api.Path that takes path id of e back.
func withdrawal(e lisp.EID, id uint32) *api.Path {
	f := eidFamily(e)
	n := pack(nlri(e))
	// GoBGP wants a next hop even here, and for all but IPv4 in this attribute.
	reach := &api.MpReachNLRIAttribute{Family: f.api(), NextHops: []string{"::"}, Nlris: []*anypb.Any{n}}
	return &api.Path{Nlri: n, Pattrs: []*anypb.Any{pack(reach)}, Family: f.api(), Identifier: id, IsWithdraw: true}
}

var errForeignNLRI = errors.New("NLRI is no EID prefix")

// eidOf reads the EID from the NLRI of p.
func eidOf(p *api.Path) (lisp.EID, error) {
	m, err := p.GetNlri().UnmarshalNew()
	if err != nil {
		return lisp.EID{}, errForeignNLRI
	}
	var iid uint32
	var addr string
	var bits uint32
	switch n := m.(type) {
	case *api.IPAddressPrefix:
		addr, bits = n.Prefix, n.PrefixLen
	case *api.LabeledVPNIPAddressPrefix:
		rd, err := n.GetRd().UnmarshalNew()
		if err != nil {
			return lisp.EID{}, errForeignNLRI
		}
		two, ok := rd.(*api.RouteDistinguisherTwoOctetASN)
		if !ok || two.Admin != 0 || two.Assigned == 0 || two.Assigned > lisp.MaxInstanceID {
			return lisp.EID{}, errForeignNLRI
		}
		iid, addr, bits = two.Assigned, n.Prefix, n.PrefixLen
	default:
		return lisp.EID{}, errForeignNLRI
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || bits > uint32(a.BitLen()) {
		return lisp.EID{}, errForeignNLRI
	}
	// An IPv4-mapped prefix in the IPv6 family is nobody's EID (GoBGP prints it as IPv4): one family must
	// not speak for the other.
	if a.Is4In6() || a.Zone() != "" {
		return lisp.EID{}, errForeignNLRI
	}
	e := lisp.MakeEID(iid, netip.PrefixFrom(a, int(bits)))
	if f, ok := familyOf(p.GetFamily()); !ok || f != eidFamily(e) {
		return lisp.EID{}, errForeignNLRI
	}
	return e, nil
}

// attrsOf reads what we use of p's attributes.
func attrsOf(p *api.Path) (nextHop netip.Addr, cs []large) {
	for _, a := range p.GetPattrs() {
		switch {
		case a.MessageIs((*api.NextHopAttribute)(nil)):
			var n api.NextHopAttribute
			if a.UnmarshalTo(&n) == nil {
				nextHop, _ = netip.ParseAddr(n.NextHop)
			}
		case a.MessageIs((*api.MpReachNLRIAttribute)(nil)):
			var n api.MpReachNLRIAttribute
			if a.UnmarshalTo(&n) == nil && len(n.NextHops) > 0 {
				nextHop, _ = netip.ParseAddr(n.NextHops[0])
			}
		case a.MessageIs((*api.LargeCommunitiesAttribute)(nil)):
			var n api.LargeCommunitiesAttribute
			if a.UnmarshalTo(&n) == nil {
				for _, c := range n.Communities {
					cs = append(cs, large{c.GlobalAdmin, c.LocalData1, c.LocalData2})
				}
			}
		}
	}
	return nextHop.Unmap(), cs
}

// pathOf reads the mapping path that p says.
func pathOf(as uint32, p *api.Path) (path, error) {
	nh, cs := attrsOf(p)
	return parsePath(as, p.GetIdentifier(), nh, cs)
}
