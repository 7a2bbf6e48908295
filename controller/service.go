package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Service binds a service address, or a prefix of them, to a VM's EID: clients use Outside, and every D-ETR translates
// it to Inside. It follows the EID, so the VM may move without the service knowing.
type Service struct {
	// Outside is what clients use, IPv4 or IPv6. It names the service.
	Outside netip.Prefix `json:"outside"`
	// Inside is the EID that it is translated to, always IPv6, of instance 0, with as many host bits as Outside.
	Inside netip.Prefix `json:"inside"`
	// VM has Inside, or had it when the service was last added or moved; "" = Inside is wider than any VM's EIDs, and
	// each address belongs to whoever has it.
	VM string `json:"vm,omitempty"`
	// Version is counted up whenever Inside changes, and when the service is deleted.
	Version lisp.Version `json:"version"`
	Created time.Time    `json:"created"`
	Changed time.Time    `json:"changed"` // when it got this version
	// Deleted services are kept until every Map-Server has confirmed that it has forgotten them.
	Deleted bool `json:"deleted,omitempty"`
	// MapServers is what they have said of it.
	MapServers []ServiceAt `json:"map_servers"`
}

// ServiceAt is what one Map-Server has said of a service.
type ServiceAt struct {
	Server  netip.Addr   `json:"server"`
	Version lisp.Version `json:"version"`         // the last one that it confirmed, 0 = none
	At      time.Time    `json:"at,omitzero"`     // when it did first
	Error   string       `json:"error,omitempty"` // why it has not confirmed the present one
}

// ServiceState is how far a service has come.
type ServiceState string

// The states of services.
const (
	ServicePending   ServiceState = "pending"   // some Map-Server has not confirmed it yet
	ServiceConfirmed ServiceState = "confirmed" // every Map-Server has
	ServiceDeleting  ServiceState = "deleting"  // some Map-Server has not confirmed yet that it has forgotten it
	ServiceDeleted   ServiceState = "deleted"   // it is gone everywhere; said once to whoever waited for it
)

// ServiceServer is ServiceAt as the API shows it.
type ServiceServer struct {
	ServiceAt
	Confirmed bool `json:"confirmed"` // the present version, or that the service is forgotten
}

// ServiceStatus is a service as the API shows it.
type ServiceStatus struct {
	Service
	Kind       string          `json:"kind"` // how it is translated: "ipv4" (RFC 7757), "one-to-one", "nptv6" (RFC 6296)
	State      ServiceState    `json:"state"`
	Problem    string          `json:"problem,omitempty"` // why nobody is reached by it
	MapServers []ServiceServer `json:"map_servers"`
}

// Confirmed is how many Map-Servers have confirmed s as it is.
func (s ServiceStatus) Confirmed() int {
	n := 0
	for _, m := range s.MapServers {
		if m.Confirmed {
			n++
		}
	}
	return n
}

// ServiceRequest is the body of PUT /v1/services/{outside} and of POST /v1/services/{outside}/move, and an element of
// that of POST /v1/services. VM or Inside is needed; both when the VM has several IPv6 EIDs.
type ServiceRequest struct {
	Outside string `json:"outside,omitempty"` // only in POST /v1/services: else it is in the path
	VM      string `json:"vm,omitempty"`
	Inside  string `json:"inside,omitempty"`
}

// ServicesRequest is the body of POST /v1/services: many at once, and all of them or none.
type ServicesRequest struct {
	Services []ServiceRequest `json:"services"`
	DryRun   bool             `json:"dry_run,omitempty"` // say what would become of each, and change nothing
	Partial  bool             `json:"partial,omitempty"` // add those that can be added, although others cannot
}

// ServicesResult answers POST /v1/services.
type ServicesResult struct {
	Results []ServiceResult `json:"results"` // in the order of the request
	Added   int             `json:"added"`   // how many were added; with dry_run, would be
	Refused int             `json:"refused"`
	Applied bool            `json:"applied"` // false: nothing has changed
}

// ServiceResult is what became of one element of a [ServicesRequest].
type ServiceResult struct {
	Outside string `json:"outside"`
	Inside  string `json:"inside,omitempty"`
	VM      string `json:"vm,omitempty"`
	Result  string `json:"result"` // "added", "exists", "refused"
	Error   string `json:"error,omitempty"`
}

// The values of [ServiceResult].Result.
const (
	ResultAdded   = "added"
	ResultExists  = "exists"
	ResultRefused = "refused"
)

// nptHostBits is from how many host bits on a prefix of IPv6 is translated so that no checksum changes (RFC 6296).
const nptHostBits = 16

// ServiceKind says how a service of outside is translated, in a word.
func ServiceKind(outside netip.Prefix) string {
	switch {
	case outside.Addr().Is4():
		return "ipv4"
	case outside.Addr().BitLen()-outside.Bits() >= nptHostBits:
		return "nptv6"
	}
	return "one-to-one"
}

// ServiceName is how people write a service address: without its length if it is one address.
func ServiceName(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return ""
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// ServicePath is [ServiceName] as it stands in the API's paths: 203.0.113.0-28.
func ServicePath(p netip.Prefix) string { return strings.Replace(ServiceName(p), "/", "-", 1) }

// ParseServiceAddress reads what [ServiceName] and [ServicePath] write.
func ParseServiceAddress(s string) (netip.Prefix, error) {
	addr, length, ok := strings.Cut(s, "/")
	if !ok {
		addr, length, ok = strings.Cut(s, "-")
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no address or prefix: want one such as 198.51.100.10 or 203.0.113.0/28", s)
	}
	a = a.Unmap()
	bits := a.BitLen()
	if ok {
		if bits, err = strconv.Atoi(length); err != nil || bits < 1 || bits > a.BitLen() || strconv.Itoa(bits) != length {
			return netip.Prefix{}, fmt.Errorf("%q: the length of a prefix of %s is 1 to %d", s, a, a.BitLen())
		}
	}
	p := netip.PrefixFrom(a, bits)
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set beyond the prefix length: want %s", s, p.Masked())
	}
	return p, nil
}

func serviceName(s Service) string { return s.Outside.String() }

// mapping is what is registered of s.
func (s *Service) mapping() lisp.Mapping {
	m := lisp.NewService(s.Outside, s.Inside, s.Version)
	if s.Deleted {
		m.TTL = lisp.TTLDelete
	}
	return m
}

// says reports whether m, which a Map-Server holds, is what s says, versions aside.
func (s *Service) says(m lisp.Mapping) bool {
	if s.Deleted || m.TTL == lisp.TTLDelete {
		return s.Deleted && m.TTL == lisp.TTLDelete
	}
	return m.Inside == s.Inside
}

// clone copies what a later change could share.
func (s Service) clone() Service {
	s.MapServers = slices.Clone(s.MapServers)
	return s
}

// prefixIndex finds the service that has a prefix, or one that overlaps it. Its prefixes do not overlap.
type prefixIndex map[netip.Prefix]netip.Prefix // to the service's Outside

// overlapping returns the service with a prefix that overlaps p.
func (x prefixIndex) overlapping(p netip.Prefix) (outside netip.Prefix, ok bool) {
	for bits := p.Bits(); bits > 0; bits-- {
		if o, ok := x[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return o, true
		}
	}
	if p.IsSingleIP() {
		return netip.Prefix{}, false
	}
	for q, o := range x {
		if p.Contains(q.Addr()) && (!ok || o.Addr().Less(outside.Addr())) {
			outside, ok = o, true
		}
	}
	return outside, ok
}

// serviceIndex finds services that are in each other's way. Deleted ones are in nobody's.
type serviceIndex struct {
	outside, inside4, inside6 prefixIndex // inside, of services whose outside is IPv4 or IPv6
}

func newServiceIndex() serviceIndex {
	return serviceIndex{prefixIndex{}, prefixIndex{}, prefixIndex{}}
}

// inside is the index of the insides of services of outside's family.
func (x serviceIndex) inside(outside netip.Prefix) prefixIndex {
	if outside.Addr().Is4() {
		return x.inside4
	}
	return x.inside6
}

func (x serviceIndex) put(outside, inside netip.Prefix) {
	x.outside[outside] = outside
	x.inside(outside)[inside] = outside
}

func (x serviceIndex) del(outside, inside netip.Prefix) {
	delete(x.outside, outside)
	delete(x.inside(outside), inside)
}

// of returns the outsides of the services that lead to EIDs, or to parts of them, in order.
func (x serviceIndex) of(eids []lisp.EID) (outsides []netip.Prefix) {
	for _, index := range []prefixIndex{x.inside4, x.inside6} {
		for _, e := range eids {
			switch {
			case e.IID != 0: // there are no services in instances
			case e.IsHost():
				if o, ok := index[e.Prefix]; ok {
					outsides = append(outsides, o)
				}
			default:
				for inside, o := range index {
					if e.Contains(lisp.MakeEID(0, inside)) {
						outsides = append(outsides, o)
					}
				}
			}
		}
	}
	slices.SortFunc(outsides, comparePrefixes)
	return slices.Compact(outsides)
}
