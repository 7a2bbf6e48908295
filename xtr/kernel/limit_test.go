package kernel

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// TestMissRate: a flood of packets without a route does not drown what else goes up; what is too much is
// dropped and counted, and after a while some more may pass.
func TestMissRate(t *testing.T) {
	l := newLab(t)
	l.set(l.home(vmEID.v4))
	const n = 30_000
	f := udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4}, 1, 2, nil)
	for range n {
		l.vm.send(f)
	}
	up, drops := l.d.Ups()["miss"], l.d.Drops()["miss-rate"]
	if up+drops != n {
		t.Fatalf("%d went up, %d were dropped, of %d", up, drops, n)
	}
	if up < 1000 || drops < 1000 {
		t.Fatalf("%d went up, %d were dropped", up, drops)
	}
	time.Sleep(50 * time.Millisecond)
	l.vm.send(f)
	if now := l.d.Ups()["miss"]; now != up+1 {
		t.Errorf("%d more went up, want 1", now-up)
	}
}

// TestEventRate: a flood of spoofed sources makes no flood of events, and each one is counted.
func TestEventRate(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	const n = 5000
	for i := range n {
		src := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 11<<24|uint32(i))))
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: src, dst: farEID.v4}, 1, 2, nil))
	}
	l.wantDrops("unknown-source", n)
	events := 0
	for {
		select {
		case <-l.d.Events():
			events++
			continue
		case <-time.After(50 * time.Millisecond):
		}
		break
	}
	if events == 0 || events > n/2 {
		t.Errorf("%d events of %d packets", events, n)
	}
}

// TestTTLRate: so with packets that have lived too long.
func TestTTLRate(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	const n = 30_000
	f := udp(vmMAC, gatewayMAC, header{src: vmEID.v4, dst: farEID.v4, ttl: 1}, 1, 2, nil)
	for range n {
		l.vm.send(f)
	}
	up, drops := l.d.Ups()["ttl"], l.d.Drops()["ttl-rate"]
	if up+drops != n || up < 300 || drops < 1000 {
		t.Fatalf("%d went up, %d were dropped, of %d", up, drops, n)
	}
}
