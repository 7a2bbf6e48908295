package testnet

import (
	"testing"
	"time"
)

// guestFlows are flows of every kind between a booted guest and its host, rate packets a second on each UDP stream.
func guestFlows(t *testing.T, g *bootedGuest, rate, bitRate int) (*Flows, *Guest) {
	t.Helper()
	guest := NewGuest("web", g.host.ns, guest4)
	t.Cleanup(func() { must(t, guest.Close()) })
	f := new(Flows)
	t.Cleanup(func() { must(t, f.Close()) })
	f.AddUDP(UDPFlow{Name: "udp4-host-to-guest", Reverse: "udp4-guest-to-host", A: g.host.ns, B: guest, AddrA: guestGW4, AddrB: guest4, Port: 7000, Rate: rate})
	f.AddUDP(UDPFlow{Name: "udp6-guest-to-host", Reverse: "udp6-host-to-guest", A: guest, B: g.host.ns, AddrA: guest6, AddrB: guestGW6, Port: 7000, Rate: rate})
	f.AddPing(PingFlow{Name: "ping4-to-guest", From: g.host.ns, Src: guestGW4, Dst: guest4, Rate: 50})
	f.AddPing(PingFlow{Name: "ping6-to-guest", From: g.host.ns, Src: guestGW6, Dst: guest6, Rate: 50})
	f.AddPing(PingFlow{Name: "ping4-from-guest", From: guest, Src: guest4, Dst: guestGW4, Rate: 50})
	f.AddPing(PingFlow{Name: "ping6-from-guest", From: guest, Src: guest6, Dst: guestGW6, Rate: 50})
	f.AddTCP(TCPFlow{Name: "tcp4-host-to-guest", Reverse: "tcp4-guest-to-host", Client: g.host.ns, Server: guest, Addr: guest4, Port: 8000, BitRate: bitRate, Seed: 1})
	f.AddTCP(TCPFlow{Name: "tcp6-guest-to-host", Reverse: "tcp6-host-to-guest", Client: guest, Server: g.host.ns, Addr: guestGW6, Port: 8000, BitRate: bitRate, Seed: 2})
	return f, guest
}

// Flows of every kind begin and end in a real guest, and every packet and byte is accounted for: 5,000 packets a second
// each way, half of them IPv6, take a third of an emulated CPU.
func TestFlowsThatEndInAGuest(t *testing.T) {
	g := bootGuest(t, GuestParams{Name: "web"})
	f, guest := guestFlows(t, g, 2500, 2e6)
	must(t, guest.Wait(within(t, time.Minute)))
	before, err := guest.Machine(t.Context())
	must(t, err)
	if before.Name != "web" || before.BootID == "" {
		t.Errorf("%+v", before)
	}
	must(t, f.Start(t.Context()))
	begin := time.Now()
	time.Sleep(3 * time.Second)
	must(t, f.Stop(t.Context()))
	took := time.Since(begin)
	after, err := guest.Machine(t.Context())
	must(t, err)
	reports := f.Report([]Window{{begin, time.Now()}})
	wantNothingLost(t, reports)
	for _, r := range reports {
		t.Logf("%-20s sent %7d received %7d reordered %d gap %v", r.Name, r.Sent, r.Received, r.Reordered, r.Gaps)
		if r.Received != r.Sent {
			t.Errorf("%s: %d sent, %d received", r.Name, r.Sent, r.Received)
		}
		if want := map[string]uint64{"packets": 50, "bytes": 2e6 / 8}[r.Unit] * 3 / 2; r.Sent < want {
			t.Errorf("%s: %d sent in 3 s", r.Name, r.Sent)
		}
	}
	if after.UDPDrops != before.UDPDrops || after.BacklogDrops != before.BacklogDrops {
		t.Errorf("the guest dropped packets: before %+v, after %+v", before, after)
	}
	t.Logf("%v; guest's program worked %.2f s, guest idle %.2f s", took, after.CPU-before.CPU, after.Idle-before.Idle)
}
