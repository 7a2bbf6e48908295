package gateway

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
)

// rules are what the gateway answers: plain values and no state.
type rules struct {
	mac      mac
	mtu      int
	nets     []Net
	own      []netip.Addr // addresses of the gateway
	router   netip.Addr   // link-local one of them, from which Router Advertisements come
	lifetime time.Duration
	local    func(netip.Addr) (ifindex int, ok bool)
}

// defaultRouter is the link-local address of a gateway whose configured addresses are all global.
var defaultRouter = netip.MustParseAddr("fe80::1")

func newRules(cfg Config, local func(netip.Addr) (int, bool)) *rules {
	r := &rules{mac: mac(cfg.MAC), mtu: cfg.MTU, nets: cfg.Nets, local: local, router: defaultRouter}
	// The RFC's default of three intervals is short for a guest that stands still while it is moved
	// over a slow link. The maximum is that of RFC 4861 section 6.2.1.
	r.lifetime = min(max(3*cfg.RAInterval, 30*time.Minute), 9000*time.Second)
	for _, n := range cfg.Nets {
		r.own = append(r.own, n.Gateway)
		if n.Gateway.IsLinkLocalUnicast() && n.Gateway.Is6() {
			r.router = n.Gateway
		}
	}
	r.own = append(r.own, r.router)
	slices.SortFunc(r.own, netip.Addr.Compare)
	r.own = slices.Compact(r.own)
	return r
}

// verdict is what follows from a message.
type verdict struct {
	frame []byte  // to send, or nil
	sent  counter // of the frame

	solicited bool // send a Router Advertisement
	announce  bool // send announcements

	kind string     // of the sighting, or ""
	addr netip.Addr // of the sighting, may be invalid

	quiet   counter // why there is no frame
	isQuiet bool
}

func (v *verdict) keepQuiet(why counter) { v.quiet, v.isQuiet = why, true }

// see notes a sighting of a: of the MAC only where a is not an address that a VM on this link may have.
func (v *verdict) see(r *rules, kind string, a netip.Addr) {
	switch {
	case r.isOwn(a):
		// A guest that claims the gateway's address would take its neighbors' traffic.
		v.announce = true
		v.keepQuiet(gatewayClaimed)
	case r.onLink(a):
		v.kind, v.addr = kind, a
	default:
		v.kind = kind
	}
}

// answer decides what follows from a message that was heard on an interface.
func (r *rules) answer(h heard, ifindex int) (v verdict, err error) {
	if h.mac == r.mac {
		v.keepQuiet(badMAC) // what we sent ourselves, looped, or a guest that plays the gateway
		return v, nil
	}
	switch h.what {
	case arpRequest:
		r.answerARP(h, ifindex, &v)
	case arpReply:
		v.see(r, arpKind(h), h.src)
	case rarp:
		v.kind, v.announce = "rarp", true
	case neighborSolicitation:
		err = r.answerNS(h, ifindex, &v)
	case neighborAdvertisement:
		v.see(r, "na", h.target)
	case routerSolicitation:
		v.see(r, "rs", h.src)
		v.solicited = !v.isQuiet
	case echo4, echo6:
		switch {
		case !r.isOwn(h.dst):
			v.keepQuiet(quietOwn)
		case h.what == echo4:
			v.frame, v.sent = buildEcho4(h.mac, r.mac, h.dst, h.src, h.echo), sentEcho
		default:
			v.frame, v.sent = buildEcho6(h.mac, r.mac, h.dst, h.src, h.echo), sentEcho
		}
	}
	return v, err
}

func (r *rules) answerARP(h heard, ifindex int, v *verdict) {
	probe := h.src.IsUnspecified()
	switch {
	case probe && r.isOwn(h.dst):
		v.kind = "probe"
	case probe:
		v.see(r, "probe", h.dst)
		v.keepQuiet(quietProbe)
		return
	default:
		v.see(r, arpKind(h), h.src)
		if h.src == h.dst {
			return
		}
		if v.isQuiet {
			return
		}
	}
	if why, ok := r.mayAnswer(h.dst, ifindex); !ok {
		v.keepQuiet(why)
		return
	}
	v.frame, v.sent = buildARP(h.mac, 2, r.mac, h.dst, h.mac, h.src), sentARP
}

// arpKind tells ARP that asks or answers somebody from ARP that tells everybody.
func arpKind(h heard) string {
	if h.src == h.dst {
		return "garp"
	}
	return "arp"
}

func (r *rules) answerNS(h heard, ifindex int, v *verdict) (err error) {
	probe := h.src.IsUnspecified() // duplicate address detection
	switch {
	case probe && r.isOwn(h.target):
		v.kind, v.sent = "dad", sentNA
		v.frame, err = buildAdvertisement(allNodesMAC, r.mac, allNodes, h.target, true, false)
		return err
	case probe:
		v.see(r, "dad", h.target)
		v.keepQuiet(quietProbe)
		return nil
	}
	v.see(r, "ns", h.src)
	if v.isQuiet {
		return nil
	}
	if why, ok := r.mayAnswer(h.target, ifindex); !ok {
		v.keepQuiet(why)
		return nil
	}
	v.sent = sentNA
	v.frame, err = buildAdvertisement(h.mac, r.mac, h.src, h.target, r.isOwn(h.target), true)
	return err
}

// mayAnswer reports whether the gateway answers for a on an interface: for its own addresses, and for
// those that belong on the link but are somewhere else.
func (r *rules) mayAnswer(a netip.Addr, ifindex int) (why counter, ok bool) {
	if r.isOwn(a) {
		return 0, true
	}
	if !r.onLink(a) {
		return quietOffLink, false
	}
	if at, ok := r.local(a); ok && at == ifindex {
		return quietOwn, false
	}
	return 0, true
}

func (r *rules) isOwn(a netip.Addr) bool { return slices.Contains(r.own, a) }

// onLink reports whether a is a unicast address inside one of the prefixes that is not the gateway's.
func (r *rules) onLink(a netip.Addr) bool {
	if !unicast(a) || r.isOwn(a) {
		return false
	}
	for _, n := range r.nets {
		if n.Prefix.Contains(a) {
			return !edge(n.Prefix, a)
		}
	}
	return false
}

// edge reports whether a is the network's own or the broadcast address of an IPv4 prefix (RFC 3021:
// a /31 has none), or the subnet-router anycast address of an IPv6 one (RFC 4291 section 2.6.1).
func edge(p netip.Prefix, a netip.Addr) bool {
	host := a.BitLen() - p.Bits()
	if host < 2 {
		return false
	}
	if a == p.Masked().Addr() {
		return true
	}
	return a.Is4() && !p.Contains(a.Next())
}

// advertisement returns a Router Advertisement to one or to all nodes.
func (r *rules) advertisement(to mac, dst netip.Addr) ([]byte, error) {
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64,
		RouterLifetime:  r.lifetime,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: net.HardwareAddr(r.mac[:])},
			ndp.NewMTU(uint32(r.mtu)),
		},
	}
	for _, n := range r.nets {
		if !n.Prefix.Addr().Is6() {
			continue
		}
		ra.Options = append(ra.Options, &ndp.PrefixInformation{
			PrefixLength: uint8(n.Prefix.Bits()), Prefix: n.Prefix.Masked().Addr(),
			OnLink: true, AutonomousAddressConfiguration: n.Autonomous,
			// The defaults of RFC 4861 section 6.2.1.
			ValidLifetime: 30 * 24 * time.Hour, PreferredLifetime: 7 * 24 * time.Hour,
		})
	}
	return buildND(to, r.mac, r.router, dst, ra)
}

// announcements returns what corrects the neighbor entries that a guest has for the gateway: a
// gratuitous ARP request (RFC 5227 section 3) or an unsolicited Neighbor Advertisement (RFC 4861
// section 7.2.6) for each of its addresses.
func (r *rules) announcements() ([][]byte, error) {
	var frames [][]byte
	for _, a := range r.own {
		if a.Is4() {
			frames = append(frames, buildARP(broadcastMAC, 1, r.mac, a, mac{}, a))
			continue
		}
		f, err := buildAdvertisement(allNodesMAC, r.mac, allNodes, a, true, false)
		if err != nil {
			return nil, err
		}
		frames = append(frames, f)
	}
	return frames, nil
}
