package testnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
)

// wire is what was seen on one of the Internet router's links.
type wire struct {
	mu       sync.Mutex
	messages map[lisp.Type]int // LISP control messages
	bgp      int               // segments of BGP sessions that carry something
	hosts    []string          // host mappings of the cloud, in either
	foreign  []string          // mappings of the cloud that name RLOCs other than the D-ETRs'
}

// hostRoutes are the VM's EIDs as BGP writes them: the length in bits, the address.
var hostRoutes = [][]byte{
	append([]byte{32}, endpoints[hostWeb].v4.AsSlice()...),
	append([]byte{128}, endpoints[hostWeb].v6.AsSlice()...),
}

func (w *wire) see(frame []byte) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	w.mu.Lock()
	defer w.mu.Unlock()
	if tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok && (tcp.SrcPort == 179 || tcp.DstPort == 179) && len(tcp.Payload) > 0 {
		w.bgp++
		for _, r := range hostRoutes {
			if bytes.Contains(tcp.Payload, r) {
				w.hosts = append(w.hosts, fmt.Sprintf("BGP to port %d: % x", tcp.DstPort, r))
			}
		}
	}
	udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ok || udp.SrcPort != lisp.ControlPort && udp.DstPort != lisp.ControlPort {
		return
	}
	m, err := lisp.Decode(udp.Payload)
	if err != nil {
		return
	}
	if ecm, ok := m.(*lisp.ECM); ok {
		if m, err = ecm.Message(); err != nil {
			return
		}
	}
	w.messages[m.Type()]++
	w.judge(m)
}

// judge looks at the mappings that a message carries.
func (w *wire) judge(m lisp.Message) {
	var records []lisp.Mapping
	switch m := m.(type) {
	case *lisp.MapReply:
		records = m.Records
	case *lisp.MapRegister:
		records = m.Records
	case *lisp.MapNotify:
		records = m.Records
	case *lisp.MapNotifyAck:
		records = m.Records
	case *lisp.MapRequest:
		if m.Reply != nil {
			records = []lisp.Mapping{*m.Reply}
		}
	}
	anchors := map[netip.Addr]bool{}
	for _, n := range nodesOf("detr", inCloud) {
		for _, a := range n.rlocList() {
			anchors[a] = true
		}
	}
	for _, r := range records {
		p := r.EID.Prefix
		for _, a := range []netip.Prefix{aggregate4, aggregate6} {
			if !a.Overlaps(p) || p.Bits() < a.Bits() {
				continue
			}
			if p.Bits() > a.Bits() {
				w.hosts = append(w.hosts, fmt.Sprintf("%v: %v", m.Type(), r.EID))
			}
			for _, l := range r.Locators {
				if !anchors[l.RLOC] {
					w.foreign = append(w.foreign, fmt.Sprintf("%v: %v at %v", m.Type(), r.EID, l.RLOC))
				}
			}
		}
	}
}

// No host mapping ever leaves the cloud: not by BGP to the upstreams, not by LISP to the other network, neither
// while the VM moves nor when somebody outside asks for it. On the Map-Server's own link they are seen: so the test
// would see them elsewhere.
func TestNoHostMappingLeaves(t *testing.T) {
	c := startCloud(t, Options{Rate: 100})
	inet := c.Host(hostInet).ns
	wires := map[string]*wire{}
	var stops []func() error
	for _, dev := range []string{"up-detr1", "up-detr2", "xsite-ms", "xsite-xtr", hostClient4, hostClient6, "ms1"} {
		w := &wire{messages: map[lisp.Type]int{}}
		wires[dev] = w
		stops = append(stops, sniff(t, inet, dev, w.see))
	}
	moved := moveTo(t, c, Planned("hokuriku-hv1", blackout))
	// BGP from the beginning, and the aggregate's registration: the D-ETR's sessions and registrar start anew.
	must(t, c.Host("detr1").Kill("detr"))
	must(t, c.Host("detr1").Start(within(t, 30*time.Second), "detr"))
	must(t, c.WaitFeeds(within(t, 60*time.Second)))
	for _, anchor := range []string{"detr1", "detr2"} {
		for _, eid := range endpoints[hostWeb].eids() {
			askOutside(t, c, anchor, eid)
		}
	}
	back := moveTo(t, c, Planned("nara-hv1", blackout))
	time.Sleep(500 * time.Millisecond)
	for _, stop := range stops {
		must(t, stop())
	}
	wantNoProblems(t, moved, back)
	for dev, w := range wires {
		w.mu.Lock()
		t.Logf("%s: %v, %d BGP segments, %d host mappings", dev, w.messages, w.bgp, len(w.hosts))
		if dev == "ms1" {
			if len(w.hosts) == 0 {
				t.Error("no host mapping is seen even at the Map-Server: the test is blind")
			}
		} else if len(w.hosts)+len(w.foreign) > 0 {
			t.Errorf("%s: host mappings left: %q %q", dev, w.hosts, w.foreign)
		}
		w.mu.Unlock()
	}
	if w := wires["up-detr1"]; w.bgp == 0 {
		t.Error("no BGP was seen towards the upstream")
	}
	if w := wires["xsite-ms"]; w.messages[lisp.TypeMapReply]+w.messages[lisp.TypeMapRegister] == 0 {
		t.Errorf("no LISP was seen at the other network's Map-Server: %v", w.messages)
	}
}

// askOutside asks a D-ETR from the other network where a host EID is, and wants the aggregate for an answer.
func askOutside(t *testing.T, c *Cloud, anchor, eid string) {
	t.Helper()
	asker, target := mustNode("xsite-xtr").v4(), mustNode(anchor).v4()
	e, err := lisp.ParseEID(eid)
	must(t, err)
	const port = 61234
	conn, err := listenUDP(c.Host("xsite-xtr").ns, asker, port)
	must(t, err)
	defer conn.Close()
	inner, err := lisp.Append(nil, &lisp.MapRequest{Nonce: 42, ITRRLOCs: []netip.Addr{asker}, Records: []lisp.RequestRecord{{EID: e}}})
	must(t, err)
	b, err := lisp.Append(nil, &lisp.ECM{Source: netip.AddrPortFrom(asker, port), Dest: netip.AddrPortFrom(e.Prefix.Addr(), lisp.ControlPort), Inner: inner})
	must(t, err)
	buf := make([]byte, 2048)
	for range 10 {
		_, err = conn.WriteToUDPAddrPort(b, netip.AddrPortFrom(target, lisp.ControlPort))
		must(t, err)
		must(t, conn.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		n, err := conn.Read(buf)
		if err != nil {
			continue
		}
		m, err := lisp.Decode(buf[:n])
		must(t, err)
		r, ok := m.(*lisp.MapReply)
		if !ok || r.Nonce != 42 || len(r.Records) != 1 {
			t.Fatalf("%s answers %s with %+v", anchor, eid, m)
		}
		if got := r.Records[0]; got.EID.IsHost() || !got.EID.Contains(e) || len(got.Locators) != 4 {
			t.Errorf("%s answers %s with %v at %v", anchor, eid, got.EID, got.Locators)
		}
		return
	}
	t.Errorf("%s does not answer for %s", anchor, eid)
}
