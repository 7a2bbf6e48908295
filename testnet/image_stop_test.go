package testnet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// checkStoppedQEMU shows what a source's count of read packets is worth. A QEMU that has stopped its guest reads one
// packet more from the tap as soon as its main loop runs, keeps it, and reads no other: the tap counts as read what the
// guest of a migration will never see. So a count must be taken before that, and what was given to the tap after the stop
// is unread whatever the count says.
func (g *bootedGuest) checkStoppedQEMU(t *testing.T, monitor string) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	c, err := qmp.Dial(ctx, monitor)
	must(t, err)
	defer c.Close()
	command := func(name string) {
		t.Helper()
		must(t, c.Execute(ctx, name, nil, nil))
	}
	read := func() (n uint64) {
		t.Helper()
		must(t, g.host.ns.Do(func() error {
			l, err := netlink.LinkByName("tap0")
			if err == nil {
				n = l.Attrs().Statistics.TxPackets
			}
			return err
		}))
		return n
	}
	u, err := listenUDP(g.host.ns, guestGW4, 9999)
	must(t, err)
	defer u.Close()
	command("stop")
	before := read()
	const packets = 10
	for range packets {
		_, err := u.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(guest4, 9))
		must(t, err)
		time.Sleep(10 * time.Millisecond)
	}
	stopped := read()
	command("cont")
	if stopped != before+1 {
		t.Errorf("stopped, QEMU has read %d of %d packets: what is known of it does not hold for this version", stopped-before, packets)
	}
	for deadline := time.Now().Add(5 * time.Second); read() < before+packets; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("running again, QEMU has read %d of %d packets", read()-before, packets)
		}
	}
}
