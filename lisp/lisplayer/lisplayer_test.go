package lisplayer

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
)

var byValue = cmp.Options{cmpopts.EquateComparable(lisp.EID{}, lisp.Locator{}, netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

// udp puts a payload into an Ethernet frame from and to LISP's hosts.
func udp(t *testing.T, src, dst netip.AddrPort, payload ...gopacket.SerializableLayer) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	network := ip(src.Addr(), dst.Addr(), layers.IPProtocolUDP)
	if src.Addr().Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	u := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := u.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	all := append([]gopacket.SerializableLayer{eth, network, u}, payload...)
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ip(src, dst netip.Addr, proto layers.IPProtocol) gopacket.SerializableLayer {
	if src.Is4() {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

var (
	rlocA  = netip.MustParseAddr("100.64.1.2")
	rlocB  = netip.MustParseAddr("100.64.4.2")
	rlocA6 = netip.MustParseAddr("2001:db8:100:1::2")
	rlocB6 = netip.MustParseAddr("2001:db8:100:3::2")
	web4   = netip.MustParseAddr("198.51.100.10")
	web6   = netip.MustParseAddr("2001:db8:e1d:1::10")
	peer4  = netip.MustParseAddr("198.51.100.20")
	peer6  = netip.MustParseAddr("2001:db8:e1d:1::20")
)

// layerTypes are the names of p's layers.
func layerTypes(p gopacket.Packet) (names []string) {
	for _, l := range p.Layers() {
		names = append(names, l.LayerType().String())
	}
	return names
}

func TestData(t *testing.T) {
	for _, inner := range []struct {
		src, dst netip.Addr
		name     string
	}{{peer4, web4, "IPv4"}, {peer6, web6, "IPv6"}} {
		want := lisp.Header{HasInstance: true, InstanceID: 0xabcdef}
		frame := udp(t, netip.AddrPortFrom(rlocA, 61000), netip.AddrPortFrom(rlocB, lisp.DataPort), &Data{Header: want},
			ip(inner.src, inner.dst, layers.IPProtocolNoNextHeader), gopacket.Payload("hello"))
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		types := layerTypes(p)
		if len(types) < 5 {
			t.Fatalf("layers %v", types)
		}
		if d := cmp.Diff([]string{"Ethernet", "IPv4", "UDP", "LISP", inner.name}, types[:5]); d != "" {
			t.Fatalf("layers (-want +got):\n%s", d)
		}
		if d := cmp.Diff(want, p.Layer(LayerTypeData).(*Data).Header); d != "" {
			t.Errorf("header (-want +got):\n%s", d)
		}
	}
}

// What is encrypted, cut off or no IP packet is not taken for one.
func TestDataOpaque(t *testing.T) {
	var df gopacket.DecodeFeedback = gopacket.NilDecodeFeedback
	for _, c := range []struct {
		h       lisp.Header
		payload string
		want    gopacket.LayerType
	}{
		{lisp.Header{Encrypted: 1}, "E", gopacket.LayerTypePayload},
		{lisp.Header{}, "E", layers.LayerTypeIPv4},
		{lisp.Header{}, "\x60", layers.LayerTypeIPv6},
		{lisp.Header{}, "\x00", gopacket.LayerTypePayload},
		{lisp.Header{}, "", gopacket.LayerTypePayload},
	} {
		b, err := lisp.AppendHeader(nil, c.h)
		if err != nil {
			t.Fatal(err)
		}
		var d Data
		if err := d.DecodeFromBytes(append(b, c.payload...), df); err != nil || d.NextLayerType() != c.want {
			t.Errorf("%+v, %q: %v, %v", c.h, c.payload, d.NextLayerType(), err)
		}
		if err := d.DecodeFromBytes(b[:7], df); err == nil {
			t.Error("seven bytes make a header")
		}
	}
}

func TestControl(t *testing.T) {
	request := &lisp.MapRequest{Nonce: 7, ITRRLOCs: []netip.Addr{rlocA}, Records: []lisp.RequestRecord{{EID: lisp.HostEID(0, web4)}}}
	inner, err := lisp.Append(nil, request)
	if err != nil {
		t.Fatal(err)
	}
	ecm := &lisp.ECM{Source: netip.AddrPortFrom(rlocA, lisp.ControlPort), Dest: netip.AddrPortFrom(web4, lisp.ControlPort), Inner: inner}
	for _, c := range []struct {
		m     lisp.Message
		types []string
	}{
		{request, []string{"Ethernet", "IPv6", "UDP", "LISPControl"}},
		{ecm, []string{"Ethernet", "IPv6", "UDP", "LISPControl", "IPv4", "UDP", "LISPControl"}},
	} {
		frame := udp(t, netip.AddrPortFrom(rlocA6, 50000), netip.AddrPortFrom(rlocB6, lisp.ControlPort), &Control{Message: c.m})
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Fatal(e.Error())
		}
		if d := cmp.Diff(c.types, layerTypes(p)); d != "" {
			t.Errorf("layers (-want +got):\n%s", d)
		}
		if d := cmp.Diff(c.m, p.Layer(LayerTypeControl).(*Control).Message, byValue); d != "" {
			t.Errorf("message (-want +got):\n%s", d)
		}
		last := p.Layers()[len(p.Layers())-1].(*Control)
		if d := cmp.Diff(lisp.Message(request), last.Message, byValue); d != "" {
			t.Errorf("innermost message (-want +got):\n%s", d)
		}
	}
}

func TestControlMalformed(t *testing.T) {
	frame := udp(t, netip.AddrPortFrom(rlocA, 50000), netip.AddrPortFrom(rlocB, lisp.ControlPort), gopacket.Payload("\x30"))
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() == nil || p.Layer(LayerTypeControl) != nil {
		t.Errorf("layers %v", layerTypes(p))
	}
}
