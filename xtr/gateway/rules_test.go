package gateway

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"

	"github.com/tabi-lisp/tabi/xtr/checksum"
)

const port1, port2 = 11, 12

// testRules are the rules of testConfig, with the guest on port1 and a neighbor of it on port2.
func testRules() *rules {
	at := map[netip.Addr]int{guest4: port1, guest6: port1, peer4: port2, peer6: port2}
	return newRules(testConfig(), func(a netip.Addr) (int, bool) { i, ok := at[a]; return i, ok })
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func arpFrame(op uint16, src, dst string) []byte {
	return buildARP(broadcastMAC, op, mac(guestMAC), addr(src), mac{}, addr(dst))
}

// nd builds a Neighbor Discovery message from the guest.
func nd(t testing.TB, src, dst string, m ndp.Message) []byte {
	t.Helper()
	b, err := buildND(allNodesMAC, mac(guestMAC), addr(src), addr(dst), m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func solicit(target string, opts ...ndp.Option) *ndp.NeighborSolicitation {
	return &ndp.NeighborSolicitation{TargetAddress: addr(target), Options: opts}
}

func group(target string) string {
	g, err := ndp.SolicitedNodeMulticast(addr(target))
	if err != nil {
		panic(err)
	}
	return g.String()
}

func lla(d ndp.Direction, m net.HardwareAddr) ndp.Option {
	return &ndp.LinkLayerAddress{Direction: d, Addr: m}
}

var sourceLLA = lla(ndp.Source, guestMAC)

func echo4Frame(dst string) []byte {
	b := buildEcho4(mac(gatewayMAC), mac(guestMAC), guest4, addr(dst), append([]byte{icmpEcho, 0, 0, 0, 0, 7, 0, 1}, "hello"...))
	m := b[etherLen+20:]
	m[0], m[2], m[3] = icmpEcho, 0, 0
	binary.BigEndian.PutUint16(m[2:], checksum.Of(0, m))
	return b
}

func echo6Frame(dst string) []byte {
	b := buildEcho6(mac(gatewayMAC), mac(guestMAC), guest6, addr(dst), append([]byte{icmp6Echo, 0, 0, 0, 0, 7, 0, 1}, "hello"...))
	m := b[etherLen+ip6Len:]
	m[0], m[2], m[3] = icmp6Echo, 0, 0
	binary.BigEndian.PutUint16(m[2:], checksum.Of(checksum.Pseudo(guest6, addr(dst), protoICMP6, len(m)), m))
	return b
}

// outcome is what a message leads to, for comparison.
type outcome struct {
	Answer   string // what the answer says, or why there is none
	Sighting string
	Addr     string
	RA       bool
	Announce bool
}

func TestAnswers(t *testing.T) {
	fromPeer := buildARP(broadcastMAC, 1, mac(gatewayMAC), peer4, mac{}, guest4)
	for name, tc := range map[string]struct {
		frame []byte
		want  outcome
	}{
		"ARP for the gateway": {arpFrame(1, "198.51.100.10", "198.51.100.1"),
			outcome{Answer: "198.51.100.1 is at gateway", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP for a VM elsewhere": {arpFrame(1, "198.51.100.10", "198.51.100.99"),
			outcome{Answer: "198.51.100.99 is at gateway", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP for a VM on another interface": {arpFrame(1, "198.51.100.10", "198.51.100.20"),
			outcome{Answer: "198.51.100.20 is at gateway", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP for an address of the same interface": {arpFrame(1, "198.51.100.11", "198.51.100.10"),
			outcome{Answer: "quiet_own_address", Sighting: "arp", Addr: "198.51.100.11"}},
		"ARP off the link": {arpFrame(1, "198.51.100.10", "203.0.113.1"),
			outcome{Answer: "quiet_off_link", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP for the broadcast address": {arpFrame(1, "198.51.100.10", "198.51.100.255"),
			outcome{Answer: "quiet_off_link", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP for the network": {arpFrame(1, "198.51.100.10", "198.51.100.0"),
			outcome{Answer: "quiet_off_link", Sighting: "arp", Addr: "198.51.100.10"}},
		"ARP from an address off the link": {arpFrame(1, "203.0.113.9", "198.51.100.1"),
			outcome{Answer: "198.51.100.1 is at gateway", Sighting: "arp"}},
		"ARP from a multicast address": {arpFrame(1, "224.0.0.1", "198.51.100.1"),
			outcome{Answer: "198.51.100.1 is at gateway", Sighting: "arp"}},
		"ARP probe": {arpFrame(1, "0.0.0.0", "198.51.100.10"),
			outcome{Answer: "quiet_probe", Sighting: "probe", Addr: "198.51.100.10"}},
		"ARP probe for a VM elsewhere": {arpFrame(1, "0.0.0.0", "198.51.100.20"),
			outcome{Answer: "quiet_probe", Sighting: "probe", Addr: "198.51.100.20"}},
		"ARP probe for the gateway": {arpFrame(1, "0.0.0.0", "198.51.100.1"),
			outcome{Answer: "198.51.100.1 is at gateway", Sighting: "probe"}},
		"gratuitous ARP request": {arpFrame(1, "198.51.100.10", "198.51.100.10"),
			outcome{Sighting: "garp", Addr: "198.51.100.10"}},
		"gratuitous ARP reply": {arpFrame(2, "198.51.100.10", "198.51.100.10"),
			outcome{Sighting: "garp", Addr: "198.51.100.10"}},
		"ARP reply": {arpFrame(2, "198.51.100.10", "198.51.100.1"),
			outcome{Sighting: "arp", Addr: "198.51.100.10"}},
		"a claim of the gateway's address": {arpFrame(1, "198.51.100.1", "198.51.100.1"),
			outcome{Answer: "gateway_claimed", Announce: true}},
		"a question from the gateway's address": {arpFrame(1, "198.51.100.1", "198.51.100.20"),
			outcome{Answer: "gateway_claimed", Announce: true}},
		"our own MAC": {fromPeer, outcome{Answer: "bad_mac"}},
		"RARP":        {rarpFrame(guestMAC), outcome{Sighting: "rarp", Announce: true}},

		"NS for the gateway": {nd(t, "2001:db8:e1d:1::10", group("fe80::1"), solicit("fe80::1", sourceLLA)),
			outcome{Answer: "fe80::1 is at gateway, router solicited override, to 2001:db8:e1d:1::10", Sighting: "ns", Addr: "2001:db8:e1d:1::10"}},
		"unicast NS without option": {nd(t, "fe80::10", "fe80::1", solicit("fe80::1")),
			outcome{Answer: "fe80::1 is at gateway, router solicited override, to fe80::10", Sighting: "ns"}},
		"NS for a VM elsewhere": {nd(t, "2001:db8:e1d:1::10", group("2001:db8:e1d:1::20"), solicit("2001:db8:e1d:1::20", sourceLLA)),
			outcome{Answer: "2001:db8:e1d:1::20 is at gateway, solicited override, to 2001:db8:e1d:1::10", Sighting: "ns", Addr: "2001:db8:e1d:1::10"}},
		"NS for an address of the same interface": {nd(t, "fe80::10", group("2001:db8:e1d:1::10"), solicit("2001:db8:e1d:1::10", sourceLLA)),
			outcome{Answer: "quiet_own_address", Sighting: "ns"}},
		"NS for a link-local address of another": {nd(t, "fe80::10", group("fe80::20"), solicit("fe80::20", sourceLLA)),
			outcome{Answer: "quiet_off_link", Sighting: "ns"}},
		"NS off the link": {nd(t, "fe80::10", group("2001:db8:f::1"), solicit("2001:db8:f::1", sourceLLA)),
			outcome{Answer: "quiet_off_link", Sighting: "ns"}},
		"NS for the subnet-router anycast address": {nd(t, "fe80::10", group("2001:db8:e1d:1::"), solicit("2001:db8:e1d:1::", sourceLLA)),
			outcome{Answer: "quiet_off_link", Sighting: "ns"}},
		"DAD": {nd(t, "::", group("2001:db8:e1d:1::10"), solicit("2001:db8:e1d:1::10")),
			outcome{Answer: "quiet_probe", Sighting: "dad", Addr: "2001:db8:e1d:1::10"}},
		"DAD with a nonce (RFC 7527)": {nd(t, "::", group("2001:db8:e1d:1::10"), solicit("2001:db8:e1d:1::10", ndp.NewNonce())),
			outcome{Answer: "quiet_probe", Sighting: "dad", Addr: "2001:db8:e1d:1::10"}},
		"DAD of a link-local address": {nd(t, "::", group("fe80::10"), solicit("fe80::10")),
			outcome{Answer: "quiet_probe", Sighting: "dad"}},
		"DAD of the gateway": {nd(t, "::", group("fe80::1"), solicit("fe80::1")),
			outcome{Answer: "fe80::1 is at gateway, router override, to ff02::1", Sighting: "dad"}},
		"unsolicited NA": {nd(t, "2001:db8:e1d:1::10", "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: guest6, Options: []ndp.Option{lla(ndp.Target, guestMAC)}}),
			outcome{Sighting: "na", Addr: "2001:db8:e1d:1::10"}},
		"NA for the gateway": {nd(t, "fe80::10", "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: routerLL}),
			outcome{Answer: "gateway_claimed", Announce: true}},
		"NS from the gateway's address": {nd(t, "fe80::1", group("2001:db8:e1d:1::20"), solicit("2001:db8:e1d:1::20")),
			outcome{Answer: "gateway_claimed", Announce: true}},
		"RS": {nd(t, "fe80::10", "ff02::2", &ndp.RouterSolicitation{Options: []ndp.Option{sourceLLA}}),
			outcome{Sighting: "rs", RA: true}},
		"RS without an address": {nd(t, "::", "ff02::2", &ndp.RouterSolicitation{}),
			outcome{Sighting: "rs", RA: true}},
		"RS from a global address": {nd(t, "2001:db8:e1d:1::10", "ff02::2", &ndp.RouterSolicitation{}),
			outcome{Sighting: "rs", Addr: "2001:db8:e1d:1::10", RA: true}},
		"RA of a guest": {nd(t, "fe80::10", "ff02::1", &ndp.RouterAdvertisement{}), outcome{}},

		"ping":             {echo4Frame("198.51.100.1"), outcome{Answer: "echo 198.51.100.1 hello"}},
		"ping IPv6":        {echo6Frame("fe80::1"), outcome{Answer: "echo fe80::1 hello"}},
		"ping of a friend": {echo4Frame("198.51.100.20"), outcome{Answer: "quiet_own_address"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, bad, ok := classify(tc.frame)
			if !ok {
				t.Fatalf("refused: %s", counterNames[bad])
			}
			v, err := testRules().answer(h, port1)
			if err != nil {
				t.Fatal(err)
			}
			got := outcome{Answer: describe(t, v.frame), Sighting: v.kind, RA: v.solicited, Announce: v.announce}
			if v.addr.IsValid() {
				got.Addr = v.addr.String()
			}
			if v.isQuiet {
				if got.Answer != "" {
					t.Errorf("quiet, but answers %s", got.Answer)
				}
				got.Answer = counterNames[v.quiet]
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// describe decodes an answer with gopacket and says what is in it, after checking addresses and
// checksums.
func describe(t testing.TB, b []byte) string {
	t.Helper()
	if b == nil {
		return ""
	}
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v", e.Error())
	}
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if eth.SrcMAC.String() != gatewayMAC.String() {
		t.Errorf("from %v", eth.SrcMAC)
	}
	toGuest := eth.DstMAC.String() == guestMAC.String()
	if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		if !toGuest || a.Operation != 2 || net.HardwareAddr(a.SourceHwAddress).String() != gatewayMAC.String() ||
			net.HardwareAddr(a.DstHwAddress).String() != guestMAC.String() {
			t.Errorf("ARP %+v", a)
		}
		return net.IP(a.SourceProtAddress).String() + " is at gateway"
	}
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
		m := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if !toGuest || m.TypeCode != layers.CreateICMPv4TypeCode(0, 0) || m.Id != 7 || m.Seq != 1 || checksum.Of(0, b[etherLen:etherLen+20]) != 0 || checksum.Of(0, b[etherLen+20:]) != 0 {
			t.Errorf("%+v", m)
		}
		return "echo " + ip.SrcIP.String() + " " + string(m.Payload)
	}
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	src, _ := netip.AddrFromSlice(ip.SrcIP)
	dst, _ := netip.AddrFromSlice(ip.DstIP)
	m := b[etherLen+ip6Len:]
	if checksum.Of(checksum.Pseudo(src, dst, protoICMP6, len(m)), m) != 0 {
		t.Error("checksum")
	}
	if m[0] == icmp6EchoRepl {
		return "echo " + src.String() + " " + string(m[8:])
	}
	msg, err := ndp.ParseMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	na := msg.(*ndp.NeighborAdvertisement)
	if src != na.TargetAddress || ip.HopLimit != 255 || (toGuest == dst.IsMulticast()) {
		t.Errorf("%+v to %v", ip, eth.DstMAC)
	}
	if d := cmp.Diff([]ndp.Option{lla(ndp.Target, gatewayMAC)}, na.Options); d != "" {
		t.Error(d)
	}
	s := na.TargetAddress.String() + " is at gateway,"
	for _, f := range []struct {
		set  bool
		name string
	}{{na.Router, " router"}, {na.Solicited, " solicited"}, {na.Override, " override"}} {
		if f.set {
			s += f.name
		}
	}
	return s + ", to " + dst.String()
}

func TestBadFrames(t *testing.T) {
	change := func(b []byte, f func([]byte)) []byte {
		b = append([]byte(nil), b...)
		f(b)
		return b
	}
	// sum repairs the ICMPv6 checksum after a change.
	sum := func(b []byte) {
		m := b[etherLen+ip6Len:]
		m[2], m[3] = 0, 0
		src, dst := netip.AddrFrom16([16]byte(b[etherLen+8:])), netip.AddrFrom16([16]byte(b[etherLen+24:]))
		binary.BigEndian.PutUint16(m[2:], checksum.Of(checksum.Pseudo(src, dst, protoICMP6, len(m)), m))
	}
	arp := arpFrame(1, "198.51.100.10", "198.51.100.1")
	ns := nd(t, "2001:db8:e1d:1::10", group("fe80::1"), solicit("fe80::1", sourceLLA))
	na := nd(t, "2001:db8:e1d:1::10", "ff02::1", &ndp.NeighborAdvertisement{TargetAddress: guest6})
	for name, tc := range map[string]struct {
		frame []byte
		want  counter
	}{
		"nothing":                   {nil, badShort},
		"half an Ethernet header":   {arp[:13], badShort},
		"from a group":              {change(arp, func(b []byte) { b[6] |= 1 }), badMAC},
		"from nobody":               {change(arp, func(b []byte) { copy(b[6:], make([]byte, 6)) }), badMAC},
		"another EtherType":         {change(arp, func(b []byte) { b[12] = 0x88 }), badEther},
		"ARP cut off":               {arp[:len(arp)-1], badShort},
		"ARP of Token Ring":         {change(arp, func(b []byte) { b[15] = 6 }), badARP},
		"ARP of IPX":                {change(arp, func(b []byte) { b[16] = 0x81 }), badARP},
		"ARP address length":        {change(arp, func(b []byte) { b[18] = 8 }), badARP},
		"ARP protocol length":       {change(arp, func(b []byte) { b[19] = 16 }), badARP},
		"ARP operation 3":           {change(arp, func(b []byte) { b[21] = 3 }), badARP},
		"RARP operation 4":          {change(rarpFrame(guestMAC), func(b []byte) { b[21] = 4 }), badARP},
		"ARP sender is another":     {change(arp, func(b []byte) { b[27] ^= 1 }), badMAC},
		"IPv6 cut off":              {ns[:len(ns)-1], badShort},
		"IPv6 header cut off":       {ns[:etherLen+ip6Len], badShort},
		"IPv6 says 4":               {change(ns, func(b []byte) { b[14] = 0x45 }), badShort},
		"TCP":                       {change(ns, func(b []byte) { b[20] = 6 }), badEther},
		"checksum":                  {change(ns, func(b []byte) { b[len(b)-1] ^= 1 }), badChecksum},
		"hop limit 254":             {change(ns, func(b []byte) { b[21] = 254 }), badHopLimit},
		"code 1":                    {change(ns, func(b []byte) { b[etherLen+ip6Len+1] = 1; sum(b) }), badND},
		"MLD":                       {change(ns, func(b []byte) { b[etherLen+ip6Len] = 143; sum(b) }), badEther},
		"option of length 0":        {change(ns, func(b []byte) { b[etherLen+ip6Len+25] = 0; sum(b) }), badND},
		"option beyond the end":     {change(ns, func(b []byte) { b[etherLen+ip6Len+25] = 9; sum(b) }), badND},
		"target is a group":         {change(ns, func(b []byte) { b[etherLen+ip6Len+8] = 0xff; sum(b) }), badND},
		"option says another MAC":   {nd(t, "2001:db8:e1d:1::10", group("fe80::1"), solicit("fe80::1", lla(ndp.Source, net.HardwareAddr{2, 0, 0, 0, 0, 9}))), badMAC},
		"DAD with a MAC option":     {nd(t, "::", group("fe80::10"), solicit("fe80::10", sourceLLA)), badND},
		"DAD to one":                {nd(t, "::", "fe80::1", solicit("fe80::1")), badND},
		"DAD to another group":      {nd(t, "::", group("fe80::77"), solicit("fe80::1")), badND},
		"NS from a group":           {nd(t, "ff02::1", group("fe80::1"), solicit("fe80::1")), badND},
		"RS from nobody with a MAC": {nd(t, "::", "ff02::2", &ndp.RouterSolicitation{Options: []ndp.Option{sourceLLA}}), badND},
		"NA from nobody":            {nd(t, "::", "ff02::1", &ndp.NeighborAdvertisement{TargetAddress: guest6}), badSource},
		"RA from nobody":            {nd(t, "::", "ff02::1", &ndp.RouterAdvertisement{}), badSource},
		"solicited NA to all":       {change(na, func(b []byte) { b[etherLen+ip6Len+4] = 0x40; sum(b) }), badND},
		"NA with another MAC":       {nd(t, "fe80::10", "ff02::1", &ndp.NeighborAdvertisement{TargetAddress: guest6, Options: []ndp.Option{lla(ndp.Target, net.HardwareAddr{2, 0, 0, 0, 0, 9})}}), badMAC},
		"ping checksum":             {change(echo4Frame("198.51.100.1"), func(b []byte) { b[len(b)-1] ^= 1 }), badChecksum},
		"ping header checksum":      {change(echo4Frame("198.51.100.1"), func(b []byte) { b[etherLen+8]-- }), badChecksum},
		"ping fragment":             {change(echo4Frame("198.51.100.1"), func(b []byte) { b[etherLen+6] |= 0x20 }), badEther},
		"ping cut off":              {echo4Frame("198.51.100.1")[:etherLen+30], badShort},
		"ping6 cut off":             {change(echo6Frame("fe80::1"), func(b []byte) { b[etherLen+5] = 4; sum(b[:etherLen+ip6Len+4]) })[:etherLen+ip6Len+4], badShort},
	} {
		t.Run(name, func(t *testing.T) {
			h, bad, ok := classify(tc.frame)
			if ok {
				t.Fatalf("accepted: %+v", h)
			}
			if bad != tc.want {
				t.Errorf("counted as %s, want %s", counterNames[bad], counterNames[tc.want])
			}
		})
	}
}

func TestAdvertisement(t *testing.T) {
	cfg := testConfig()
	cfg.Nets = append(cfg.Nets, Net{Prefix: netip.MustParsePrefix("2001:db8:e1d:2::/64"), Gateway: addr("2001:db8:e1d:2::1"), Autonomous: true})
	cfg.RAInterval = time.Hour
	b, err := newRules(cfg, nil).advertisement(allNodesMAC, allNodes)
	if err != nil {
		t.Fatal(err)
	}
	if src := netip.AddrFrom16([16]byte(b[etherLen+8:])); src != routerLL {
		t.Errorf("from %v", src)
	}
	msg, err := ndp.ParseMessage(b[etherLen+ip6Len:])
	if err != nil {
		t.Fatal(err)
	}
	want := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, RouterLifetime: 9000 * time.Second,
		Options: []ndp.Option{
			lla(ndp.Source, gatewayMAC), ndp.NewMTU(1444),
			&ndp.PrefixInformation{PrefixLength: 64, Prefix: addr("2001:db8:e1d:1::"), OnLink: true, ValidLifetime: 30 * 24 * time.Hour, PreferredLifetime: 7 * 24 * time.Hour},
			&ndp.PrefixInformation{PrefixLength: 64, Prefix: addr("2001:db8:e1d:2::"), OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: 30 * 24 * time.Hour, PreferredLifetime: 7 * 24 * time.Hour},
		},
	}
	if d := cmp.Diff(want, msg, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	// Without a link-local gateway in the configuration there is one all the same: it must be answered for.
	cfg.Nets = []Net{{Prefix: netip.MustParsePrefix("2001:db8:e1d:2::/64"), Gateway: addr("2001:db8:e1d:2::1")}}
	if r := newRules(cfg, nil); r.router != defaultRouter || !r.isOwn(defaultRouter) || !r.isOwn(addr("2001:db8:e1d:2::1")) {
		t.Errorf("%+v", r)
	}
}

func TestFilter(t *testing.T) {
	cfg := testConfig()
	cfg.Nets = append(cfg.Nets,
		Net{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1")},
		Net{Prefix: netip.MustParsePrefix("2001:db8:e1d:2::/64"), Gateway: addr("2001:db8:e1d:2::1")})
	raw, err := filter(newRules(cfg, nil).own)
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("disassemble")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	tcp := echo4Frame("198.51.100.1")
	tcp[etherLen+9] = 6
	reply := echo4Frame("198.51.100.1")
	reply[etherLen+20] = 0
	fragment := echo4Frame("198.51.100.1")
	fragment[etherLen+7] = 1
	udp6 := echo6Frame("fe80::1")
	udp6[etherLen+6] = 17
	mld := echo6Frame("fe80::1")
	mld[etherLen+ip6Len] = 143
	redirect := echo6Frame("fe80::1")
	redirect[etherLen+ip6Len] = 137
	options := append(append([]byte(nil), echo4Frame("198.51.100.1")[:etherLen+20]...), 1, 1, 1, 1)
	options = append(options, echo4Frame("198.51.100.1")[etherLen+20:]...)
	options[etherLen] = 0x46
	for name, tc := range map[string]struct {
		frame []byte
		want  bool
	}{
		"ARP":                         {arpFrame(1, "198.51.100.10", "198.51.100.1"), true},
		"RARP":                        {rarpFrame(guestMAC), true},
		"NS":                          {nd(t, "::", group("fe80::1"), solicit("fe80::1")), true},
		"NA":                          {nd(t, "fe80::10", "ff02::1", &ndp.NeighborAdvertisement{TargetAddress: guest6}), true},
		"RS":                          {nd(t, "::", "ff02::2", &ndp.RouterSolicitation{}), true},
		"RA":                          {nd(t, "fe80::10", "ff02::1", &ndp.RouterAdvertisement{}), true},
		"ping gateway":                {echo4Frame("198.51.100.1"), true},
		"ping the second gateway":     {echo4Frame("192.0.2.1"), true},
		"ping IPv6 gateway":           {echo6Frame("fe80::1"), true},
		"ping the second IPv6 one":    {echo6Frame("2001:db8:e1d:2::1"), true},
		"ping with options":           {options, true},
		"ping another":                {echo4Frame("198.51.100.2"), false},
		"ping IPv6 another":           {echo6Frame("2001:db8:e1d:2::2"), false},
		"ping IPv6, first word alike": {echo6Frame("fe80::2"), false},
		"TCP":                         {tcp, false},
		"echo reply":                  {reply, false},
		"fragment":                    {fragment, false},
		"UDP IPv6":                    {udp6, false},
		"MLD":                         {mld, false},
		"redirect":                    {redirect, false},
		"nothing":                     {nil, false},
		"IPv6 cut off":                {echo6Frame("fe80::1")[:50], false},
	} {
		n, err := vm.Run(tc.frame)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (n > 0) != tc.want {
			t.Errorf("%s: %d bytes pass", name, n)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"pattern":             func(c *Config) { c.Patterns = []string{"[a"} },
		"no MAC":              func(c *Config) { c.MAC = nil },
		"group MAC":           func(c *Config) { c.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 0} },
		"MTU too small":       func(c *Config) { c.MTU = 1279 },
		"MTU too large":       func(c *Config) { c.MTU = 65536 },
		"interval":            func(c *Config) { c.RAInterval = time.Second },
		"gateway's family":    func(c *Config) { c.Nets[0].Gateway = routerLL },
		"gateway outside":     func(c *Config) { c.Nets[0].Gateway = addr("192.0.2.1") },
		"no gateway":          func(c *Config) { c.Nets[1].Gateway = netip.Addr{} },
		"multicast gateway":   func(c *Config) { c.Nets[1].Gateway = allNodes },
		"gateway with a zone": func(c *Config) { c.Nets[1].Gateway = addr("fe80::1%eth0") },
		"no prefix":           func(c *Config) { c.Nets[1].Prefix = netip.Prefix{} },
	} {
		cfg := testConfig()
		spoil(&cfg)
		if _, err := New(cfg, nil, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	cfg := testConfig()
	cfg.RAInterval = 0
	if g, err := New(cfg, nil, nil); err != nil || g.cfg.RAInterval != 30*time.Second {
		t.Errorf("default: %v %v", g, err)
	}
}

func TestEdge(t *testing.T) {
	for _, tc := range []struct {
		prefix, addr string
		want         bool
	}{
		{"198.51.100.0/24", "198.51.100.0", true},
		{"198.51.100.0/24", "198.51.100.255", true},
		{"198.51.100.0/24", "198.51.100.254", false},
		{"198.51.100.0/31", "198.51.100.0", false},
		{"198.51.100.0/31", "198.51.100.1", false},
		{"198.51.100.7/32", "198.51.100.7", false},
		{"255.255.255.0/24", "255.255.255.255", true},
		{"2001:db8::/64", "2001:db8::", true},
		{"2001:db8::/64", "2001:db8::ffff:ffff:ffff:ffff", false},
		{"2001:db8::/127", "2001:db8::", false},
	} {
		if got := edge(netip.MustParsePrefix(tc.prefix), addr(tc.addr)); got != tc.want {
			t.Errorf("%s %s: %v", tc.prefix, tc.addr, got)
		}
	}
}

func TestBucket(t *testing.T) {
	b := bucket{rate: 10, burst: 5}
	now := time.Unix(1000, 0)
	take := func() (n int) {
		for b.take(now) {
			n++
		}
		return n
	}
	if n := take(); n != 5 {
		t.Errorf("%d at once", n)
	}
	now = now.Add(200 * time.Millisecond)
	if n := take(); n != 2 {
		t.Errorf("%d after 200 ms", n)
	}
	now = now.Add(time.Hour)
	if n := take(); n != 5 {
		t.Errorf("%d after an hour", n)
	}
}
