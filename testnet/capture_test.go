package testnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

func TestCaptureHoldsWhatPassed(t *testing.T) {
	_, a, b := pair(t)
	dir := filepath.Join(t.TempDir(), "pcap")
	c, err := StartCapture(a.ns, dir, "a")
	must(t, err)
	f := new(Flows)
	src, dst := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	f.AddUDP(UDPFlow{Name: "there", Reverse: "back", A: a.ns, B: b.ns, AddrA: src, AddrB: dst, Port: 7000, Rate: 200})
	begin := time.Now()
	must(t, f.Start(t.Context()))
	time.Sleep(300 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	reports := f.Report(nil)
	wantNothingLost(t, reports)
	if _, err := Ping(within(t, time.Second), a.ns, src, src); err != nil { // over the loopback
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	frames, dropped, err := c.Stop()
	must(t, err)

	file, err := os.Open(filepath.Join(dir, "a.pcapng"))
	must(t, err)
	defer file.Close()
	r, err := pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions)
	must(t, err)
	type key struct{ dev, src string }
	udp := map[key]uint64{}
	var total uint64
	for {
		data, ci, err := r.ReadPacketData()
		if err != nil {
			break
		}
		total++
		if ci.Timestamp.Before(begin.Add(-time.Second)) || ci.Timestamp.After(time.Now()) {
			t.Fatalf("a frame of %v", ci.Timestamp)
		}
		intf, err := r.Interface(ci.InterfaceIndex)
		must(t, err)
		p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		if !ok {
			continue
		}
		if p.Layer(layers.LayerTypeUDP) != nil {
			udp[key{intf.Name, ip.SrcIP.String()}]++
		} else if p.Layer(layers.LayerTypeICMPv4) != nil {
			udp[key{intf.Name, "icmp"}]++
		}
	}
	if total != frames || dropped != 0 {
		t.Errorf("%d frames in the file, counted %d, dropped %d", total, frames, dropped)
	}
	for i, k := range []key{{"eth0", "10.9.0.1"}, {"eth0", "10.9.0.2"}} {
		if udp[k] != reports[i].Sent {
			t.Errorf("%v: %d packets in the file, %d were sent", k, udp[k], reports[i].Sent)
		}
	}
	if udp[key{"lo", "icmp"}] == 0 || udp[key{"eth0", "icmp"}] != 0 {
		t.Errorf("loopback: %v", udp)
	}
}
