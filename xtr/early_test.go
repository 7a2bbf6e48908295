package xtr

import (
	"net"
	"testing"
	"time"
)

// A host that starts many VMs at once hears them before the data plane serves their interfaces: what they said then
// counts as soon as it does.
func TestFrameBeforeItsInterface(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		a.must("PUT", "/v1/vms/web", vm.spec())
		mac, err := net.ParseMAC(vm.mac)
		if err != nil {
			t.Fatal(err)
		}
		a.x.Sighting(Sighting{If: 4711, MAC: mac, Kind: "rarp"})
		time.Sleep(3 * time.Second)
		if _, ok := a.x.Local(vm.eids[0].Prefix.Addr()); ok {
			t.Fatal("the VM is local at an interface that is not there")
		}
		a.x.PortUp("tap-web", 4711, 7)
		time.Sleep(10 * time.Millisecond)
		if i, ok := a.x.Local(vm.eids[0].Prefix.Addr()); !ok || i != 4711 {
			t.Errorf("Local: %d, %v", i, ok)
		}
		if n := a.counter("sightings-nowhere"); n != 0 {
			t.Errorf("%d sightings came to nothing", n)
		}
	})
}

func TestEarlyIsBounded(t *testing.T) {
	var e early
	t0 := time.Unix(1000, 0)
	for range earlyFrames {
		if !e.keep(Sighting{If: 1}, t0) {
			t.Fatal("no room in the beginning")
		}
	}
	if e.keep(Sighting{If: 1}, t0) {
		t.Error("one interface has more than its share")
	}
	for i := 2; e.n < earlyTotal; i++ {
		if !e.keep(Sighting{If: i}, t0) {
			t.Fatalf("no room for interface %d, with %d frames kept", i, e.n)
		}
	}
	if e.keep(Sighting{If: 1 << 20}, t0) {
		t.Error("more than there is room for")
	}
	later := t0.Add(earlyFor + time.Second)
	if !e.keep(Sighting{If: 1 << 20}, later) {
		t.Error("what is old makes no room")
	}
	if got := e.take(1<<20, later); len(got) != 1 || !got[0].At.Equal(later) {
		t.Errorf("taken: %v", got)
	}
	if got := e.take(1<<20, later); len(got) != 0 || e.n != 0 {
		t.Errorf("taken again: %v, %d left", got, e.n)
	}
	if !e.keep(Sighting{If: 1}, t0) || len(e.take(1, later)) != 0 {
		t.Error("what is old is given back")
	}
}
