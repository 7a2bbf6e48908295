package testnet

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// checkStoppedQEMU shows what a source's count of read packets is worth. A QEMU that has stopped its guest reads one
// packet more from the tap as soon as its main loop runs, keeps it, and reads no other: the tap counts as read what the
// guest of a migration will never see. So a count must be taken before that, and what was given to the tap after the stop
// is unread whatever the count says.
func (g *bootedGuest) checkStoppedQEMU(t *testing.T, monitor string) {
	t.Helper()
	c, err := net.Dial("unix", monitor)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	in := bufio.NewScanner(c)
	command := func(name string) {
		t.Helper()
		fmt.Fprintf(c, "{\"execute\":%q}\n", name)
		for in.Scan() {
			var answer map[string]json.RawMessage
			must(t, json.Unmarshal(in.Bytes(), &answer))
			if answer["return"] != nil {
				return
			}
		}
		t.Fatalf("%s: no answer: %v", name, in.Err())
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
	command("qmp_capabilities")
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
