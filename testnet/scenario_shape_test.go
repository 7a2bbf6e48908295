package testnet

import (
	"testing"
	"time"
)

// What goes over a shaped link takes the time that its rate says, and one direction does not slow the other.
func TestShape(t *testing.T) {
	_, a, b := pair(t)
	const rate = 4e6
	must(t, a.ns.Shape("eth0", rate))
	var f Flows
	add := func(name string, from, to *Host, addrFrom, addrTo string, port uint16) {
		f.AddUDP(UDPFlow{Name: name, A: from.ns, B: to.ns, AddrA: addrs(addrFrom)[0].Addr(), AddrB: addrs(addrTo)[0].Addr(), Port: port, Rate: 1000, Size: 1000})
	}
	add("shaped", a, b, "10.9.0.1/24", "10.9.0.2/24", 7000) // 8 Mbit/s
	add("free", b, a, "10.9.0.2/24", "10.9.0.1/24", 7001)
	must(t, f.Start(t.Context()))
	begin := time.Now()
	time.Sleep(1500 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	took := time.Since(begin)
	for _, r := range f.Report(nil) {
		carried := float64(r.Received*(1000+42)*8) / took.Seconds()
		t.Logf("%s: sent %d, received %d: %.1f Mbit/s", r.Name, r.Sent, r.Received, carried/1e6)
		switch {
		case r.Name == "free" && r.Lost > 0:
			t.Errorf("%s: lost %d", r.Name, r.Lost)
		case r.Name == "shaped" && (r.Lost == 0 || float64(r.Received) > rate/8/1042*(1.5+shapeQueue.Seconds())*1.3):
			t.Errorf("%s: %d packets of %d came through", r.Name, r.Received, r.Sent)
		}
	}
	if err := a.ns.Shape("eth0", 100); err == nil {
		t.Error("a link of 100 bits a second")
	}
	if err := a.ns.Shape("eth7", rate); err == nil {
		t.Error("an interface that is not there is shaped")
	}
}
