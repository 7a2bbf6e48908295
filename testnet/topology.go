package testnet

import (
	"fmt"
	"net/netip"
	"strings"
)

// The demo's cloud, as the issue and README draw it. Every host hangs on the Internet router by a link of its own:
// host N has 100.64.N.2/24 and 2001:db8:100:N::2/64 at eth0, the router .1 and ::1.
//
//	nezu      nezu-hv1 nezu-hv2 detr1 ms1        client4 192.0.2.10
//	hokuriku  hokuriku-hv1                inet   client6 2001:db8:c::10
//	nara      nara-hv1 ms2                       xsite: xsite-xtr xsite-ms xhost
//	osaka     detr2
//	          ctl
//
// Nezu is in Tokyo. With service addresses there are three more VMs, see services.go.

// Families of RLOCs.
const (
	rloc4 = 1 << iota
	rloc6
)

// node is one host on the router.
type node struct {
	name, site, role string
	n                int
	rlocs            int // families of its RLOCs: rloc4, rloc6 or both
	about            string
}

var nodes = []node{
	{"nezu-hv1", "nezu", "xtr", 1, rloc4, "hypervisor at Nezu, RLOC over IPv4"},
	{"nezu-hv2", "nezu", "xtr", 2, rloc4, "hypervisor at Nezu, RLOC over IPv4; VM peer lives here"},
	{"hokuriku-hv1", "hokuriku", "xtr", 3, rloc6, "hypervisor at Hokuriku, RLOC over IPv6"},
	{"nara-hv1", "nara", "xtr", 4, rloc4, "hypervisor at Nara, RLOC over IPv4"},
	{"detr1", "nezu", "detr", 5, rloc4 | rloc6, "representative ETR at Nezu"},
	{"detr2", "osaka", "detr", 6, rloc4 | rloc6, "representative ETR at Osaka"},
	{"ms1", "nezu", "mapserver", 7, 0, "Map-Server and Map-Resolver at Nezu"},
	{"ms2", "nara", "mapserver", 8, 0, "Map-Server and Map-Resolver at Nara"},
	{"ctl", "nezu", "controller", 9, 0, "the cloud's controller"},
	{"xsite-xtr", "xsite", "xtr", 10, rloc4 | rloc6, "xTR of the other LISP network"},
	{"xsite-ms", "xsite", "mapserver", 11, 0, "Map-Server of the other LISP network"},
}

// Names of the hosts that are no nodes.
const (
	hostInet    = "inet"
	hostClient4 = "client4"
	hostClient6 = "client6"
	hostXhost   = "xhost"
	hostWeb     = "web"
	hostPeer    = "peer"
)

// Hypervisors that the demo's VM visits, in order.
var tour = []string{"nezu-hv1", "hokuriku-hv1", "nara-hv1"}

// homes are where the VMs run first.
var homes = map[string]string{hostWeb: tour[0], hostPeer: peerHome}

// peerHome is where the VM peer lives.
const peerHome = "nezu-hv2"

// Where the data planes' inner and outer worlds end.
const (
	underlayMTU = 1500 // bytes
	cloudAS     = 64512
	inetAS      = 64500
)

func nodeOf(name string) (node, bool) {
	for _, n := range nodes {
		if n.name == name {
			return n, true
		}
	}
	return node{}, false
}

func mustNode(name string) node {
	n, ok := nodeOf(name)
	if !ok {
		panic("testnet: no node " + name)
	}
	return n
}

func nodesOf(role string, site func(string) bool) []node {
	var out []node
	for _, n := range nodes {
		if n.role == role && site(n.site) {
			out = append(out, n)
		}
	}
	return out
}

func inCloud(site string) bool    { return site != "xsite" }
func outOfCloud(site string) bool { return site == "xsite" }

// v4, v6 are a node's addresses at eth0.
func (n node) v4() netip.Addr { return netip.AddrFrom4([4]byte{100, 64, byte(n.n), 2}) }
func (n node) v6() netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:100:%d::2", n.n)) }

// rlocList are a node's RLOCs.
func (n node) rlocList() (out []netip.Addr) {
	if n.rlocs&rloc4 != 0 {
		out = append(out, n.v4())
	}
	if n.rlocs&rloc6 != 0 {
		out = append(out, n.v6())
	}
	return out
}

// control is the address at which a node is spoken to by peers of the given RLOC families.
func (n node) control(families int) netip.Addr {
	if families == rloc6 {
		return n.v6()
	}
	return n.v4()
}

func (n node) xtrID() string { return fmt.Sprintf("%032x", n.n) }

// The routers' ends of a node's links.
func gateway4(a netip.Addr) netip.Addr {
	b := a.As4()
	b[3] = 1
	return netip.AddrFrom4(b)
}

func gateway6(a netip.Addr) netip.Addr {
	b := a.As16()
	b[15] = 1
	return netip.AddrFrom16(b)
}

// up4, up6 are a D-ETR's addresses at up0.
func (n node) up4() netip.Addr { return netip.AddrFrom4([4]byte{100, 65, byte(n.n), 2}) }
func (n node) up6() netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:165:%d::2", n.n)) }

// Addresses of the demo.
var (
	aggregate4 = netip.MustParsePrefix("198.51.100.0/24")
	aggregate6 = netip.MustParsePrefix("2001:db8:e1d::/48")
	onLink6    = netip.MustParsePrefix("2001:db8:e1d:1::/64")
	vmGateway4 = netip.MustParseAddr("198.51.100.1")
	vmGateway6 = netip.MustParseAddr("fe80::1")

	xsite4        = netip.MustParsePrefix("203.0.113.0/24")
	xsite6        = netip.MustParsePrefix("2001:db8:f0f0::/48")
	xsiteOnLink6  = netip.MustParsePrefix("2001:db8:f0f0:1::/64")
	xsiteGateway4 = netip.MustParseAddr("203.0.113.1")

	underlay4 = netip.MustParsePrefix("100.64.0.0/16")
	underlay6 = netip.MustParsePrefix("2001:db8:100::/48")
)

// gatewayMAC is the anycast gateway's.
const gatewayMAC = "02:00:5e:00:01:01"

// endpoint is a host that flows begin or end at.
type endpoint struct{ v4, v6 netip.Addr }

var endpoints = map[string]endpoint{
	hostClient4: {v4: netip.MustParseAddr("192.0.2.10")},
	hostClient6: {v6: netip.MustParseAddr("2001:db8:c::10")},
	hostXhost:   {netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:f0f0:1::10")},
	hostWeb:     {netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:e1d:1::10")},
	hostPeer:    {netip.MustParseAddr("198.51.100.20"), netip.MustParseAddr("2001:db8:e1d:1::20")},
	// The VMs with service addresses have IPv6 only.
	hostTokyo:    {v6: netip.MustParseAddr("2001:db8:e1d:1::81")},
	hostHokuriku: {v6: netip.MustParseAddr("2001:db8:e1d:1::82")},
	hostNara:     {v6: netip.MustParseAddr("2001:db8:e1d:1::83")},
}

// eids are an endpoint's addresses as EIDs.
func (e endpoint) eids() (out []string) {
	for _, a := range e.all() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return out
}

// all are the addresses that it has.
func (e endpoint) all() (out []netip.Addr) {
	for _, a := range []netip.Addr{e.v4, e.v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// about says the addresses in one line for people.
func (e endpoint) about() string {
	var words []string
	for _, a := range e.all() {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// vms of the cloud, and the MAC of each.
var vmMACs = map[string]string{hostWeb: "52:54:00:00:00:10", hostPeer: "52:54:00:00:00:20",
	hostTokyo: "52:54:00:00:00:81", hostHokuriku: "52:54:00:00:00:82", hostNara: "52:54:00:00:00:83"}
