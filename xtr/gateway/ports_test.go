package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (n *namespace) del(name string) {
	n.t.Helper()
	n.do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		return err
	})
}

// tap opens a TAP as a VMM does. Without persist it goes when the file is closed.
func (n *namespace) tap(name string, persist bool) (f *os.File, index int) {
	n.t.Helper()
	n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name) // not before: what is no device yet cannot be polled
		if persist {
			if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
				return err
			}
		}
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	})
	n.t.Cleanup(func() { _ = f.Close() })
	return f, index
}

func TestPortsComeAndGo(t *testing.T) {
	// One that is there before the gateway, and one that is none of its.
	var early int
	h := newHypervisor(t, testConfig(), func(g *Gateway) {
		subscribe := g.subscribe
		g.subscribe = func(ch chan<- netlink.LinkUpdate, done <-chan struct{}, o netlink.LinkSubscribeOptions) error {
			if early == 0 {
				v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vm-early"}, PeerName: "other"}
				if err := netlink.LinkAdd(v); err != nil {
					return err
				}
				l, err := netlink.LinkByName("vm-early")
				if err != nil {
					return err
				}
				early = l.Attrs().Index
			}
			return subscribe(ch, done, o)
		}
	})
	if e := h.event(); e != (PortEvent{Name: "vm-early", If: early, Up: true}) {
		t.Fatalf("%+v", e)
	}
	var last int
	for i := range 20 {
		f, index := h.tap("tap0", false)
		if index == last {
			t.Fatal("the same index again")
		}
		last = index
		if e := h.event(); e != (PortEvent{Name: "tap0", If: index, Up: true}) {
			t.Fatalf("round %d: %+v", i, e)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if e := h.event(); e != (PortEvent{Name: "tap0", If: index, Up: false}) {
			t.Fatalf("round %d: %+v", i, e)
		}
	}
	// A rename is a going and a coming.
	_, index := h.tap("tap0", false)
	h.event()
	rename := func(from, to string) {
		h.do(func() error {
			l, err := netlink.LinkByName(from)
			if err == nil {
				err = netlink.LinkSetName(l, to)
			}
			return err
		})
	}
	rename("tap0", "tap1")
	if a, b := h.event(), h.event(); a != (PortEvent{Name: "tap0", If: index}) || b != (PortEvent{Name: "tap1", If: index, Up: true}) {
		t.Fatalf("%+v %+v", a, b)
	}
	rename("tap1", "none-of-ours")
	if e := h.event(); e != (PortEvent{Name: "tap1", If: index}) {
		t.Fatalf("%+v", e)
	}
	// Setting one down and up is neither.
	h.do(func() error {
		l, err := netlink.LinkByName("vm-early")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetUp(l))
	})
	h.del("vm-early")
	if e := h.event(); e != (PortEvent{Name: "vm-early", If: early}) {
		t.Fatalf("%+v", e)
	}
}

// Interfaces that come and go faster than anybody reads the events: every event is delivered, each Up
// before its Down, and what is there in the end is what was told.
func TestPortsChurn(t *testing.T) {
	h := newHypervisor(t, testConfig())
	before := openFiles(t)
	const rounds, at = 15, 4
	for range rounds {
		var files []*os.File
		for i := range at {
			f, _ := h.tap(fmt.Sprint("tap", i), false)
			files = append(files, f)
		}
		for _, f := range files {
			_ = f.Close()
		}
	}
	_, stays := h.tap("tap-stays", false)
	up := make(map[int]bool)
	for !up[stays] || len(up) > 1 {
		e := h.event()
		if up[e.If] == e.Up {
			t.Fatalf("%+v, but up: %v", e, up)
		}
		if e.Up {
			up[e.If] = true
		} else {
			delete(up, e.If)
		}
	}
	select {
	case e := <-h.Ports():
		t.Fatalf("%+v", e)
	case <-time.After(100 * time.Millisecond):
	}
	eventually(t, func() error {
		if n := openFiles(t); n > before+3 { // the TAP, its socket, and one of the statistics
			return fmt.Errorf("%d files are open, %d were", n, before)
		}
		return nil
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// When the subscription fails, nothing of what happened meanwhile is missed.
func TestResubscribe(t *testing.T) {
	fail := make(chan struct{})
	n := 0
	h := newHypervisor(t, testConfig(), func(g *Gateway) {
		subscribe := g.subscribe
		g.subscribe = func(ch chan<- netlink.LinkUpdate, done <-chan struct{}, o netlink.LinkSubscribeOptions) error {
			n++
			switch n {
			case 1: // one that tells nothing, and then that it has lost messages
				go func() {
					<-fail
					o.ErrorCallback(unix.ENOBUFS)
					close(ch)
				}()
				return nil
			case 2:
				return unix.EMFILE
			}
			return subscribe(ch, done, o)
		}
	})
	h.count("resubscribed", 0)
	gone, goneIndex := h.tap("tap-gone", false)
	// The first list may or may not have it.
	select {
	case <-h.Ports():
	case <-time.After(300 * time.Millisecond):
		goneIndex = 0
	}
	_, index := h.tap("tap-new", false)
	_ = gone.Close()
	close(fail)
	var got []PortEvent
	for !slices.Contains(got, PortEvent{Name: "tap-new", If: index, Up: true}) {
		got = append(got, h.event())
	}
	if goneIndex != 0 && !slices.Contains(got, PortEvent{Name: "tap-gone", If: goneIndex}) {
		t.Fatalf("%v", got)
	}
	h.count("resubscribed", 2)
}

func TestFirstSubscriptionMustWork(t *testing.T) {
	g, err := New(testConfig(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.subscribe = func(chan<- netlink.LinkUpdate, <-chan struct{}, netlink.LinkSubscribeOptions) error {
		return unix.EPERM
	}
	if err := g.Run(t.Context()); !errors.Is(err, unix.EPERM) {
		t.Fatalf("%v", err)
	}
}

// A TAP that no VMM has opened takes nothing. When one does, the first that it reads tells who the
// gateway is.
func TestAnnouncedWhenTheVMMComes(t *testing.T) {
	h := newHypervisor(t, testConfig())
	f, _ := h.tap("tap0", true)
	_ = f.Close()
	h.event()
	h.count("sent_router_advertisement", 0)
	time.Sleep(100 * time.Millisecond)
	f, _ = h.tap("tap0", true)
	want := map[string]bool{"ARP": true, "NA": true}
	if err := f.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for len(want) > 0 {
		k, err := f.Read(buf)
		if err != nil {
			t.Fatalf("no %v: %v", want, err)
		}
		b := buf[:k]
		switch {
		case k >= etherLen+arpLen && b[12] == 8 && b[13] == 6:
			if mac(b[6:12]) != mac(gatewayMAC) || mac(b[:6]) != broadcastMAC || netip.AddrFrom4([4]byte(b[etherLen+14:])) != router4 {
				t.Fatalf("% x", b)
			}
			delete(want, "ARP")
		case k > etherLen+ip6Len+24 && b[etherLen+6] == protoICMP6 && b[etherLen+ip6Len] == 136:
			if mac(b[6:12]) != mac(gatewayMAC) || netip.AddrFrom16([16]byte(b[etherLen+ip6Len+8:])) != routerLL {
				t.Fatalf("% x", b)
			}
			delete(want, "NA")
		}
	}
	_ = unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 0)
}

// The interface counts what the VMM has read, not what it was given.
func TestPortStats(t *testing.T) {
	h := newHypervisor(t, testConfig())
	f, index := h.tap("tap0", false)
	h.event()
	h.count("announced", 2)
	var read uint64
	buf := make([]byte, 2000)
	stats := func() (sent, dropped uint64) {
		h.do(func() (err error) {
			sent, dropped, err = h.PortStats(index)
			return err
		})
		return sent, dropped
	}
	if sent, dropped := stats(); sent != 0 || dropped != 0 {
		t.Fatalf("%d sent, %d dropped before anything was read", sent, dropped)
	}
	if err := f.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Read(buf); err != nil {
			break
		}
		read++
	}
	if sent, _ := stats(); sent != read || read == 0 {
		t.Fatalf("%d sent, %d read", sent, read)
	}
	// More than its queue takes.
	h.do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range queueLen + 1000 {
			if err := unix.Sendto(fd, arpFrame(1, "198.51.100.1", "198.51.100.10"), 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil && err != unix.ENOBUFS {
				return err
			}
		}
		return nil
	})
	if sent, dropped := stats(); sent != read || dropped < 900 || dropped > 1100 {
		t.Fatalf("%d sent, %d read, %d dropped", sent, read, dropped)
	}
	h.do(func() error {
		if _, _, err := h.PortStats(1 << 20); !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("of no interface: %w", err)
		}
		return nil
	})
}

// A guest that floods gets a bounded number of answers and costs a bounded number of sightings.
func TestFloodIsLimited(t *testing.T) {
	h := newHypervisor(t, testConfig())
	f, _ := h.tap("tap0", false)
	h.event()
	frames := [][]byte{
		arpFrame(1, "198.51.100.10", "198.51.100.1"),
		nd(t, "fe80::10", "ff02::2", ndpRS),
		rarpFrame(guestMAC),
		arpFrame(1, "198.51.100.1", "198.51.100.1"), // attacks the gateway's address
	}
	begin := time.Now()
	heard := func() uint64 {
		c := h.Counters()
		return c["heard_arp"] + c["heard_rarp"] + c["heard_router_solicitation"]
	}
	for heard() < 8000 { // faster than it listens, the socket drops
		if time.Since(begin) > 5*time.Second {
			t.Fatal(h.Counters())
		}
		for _, b := range frames {
			if _, err := f.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(50 * time.Millisecond)
	most := func(rate, burst int) uint64 {
		return uint64(burst + int(time.Since(begin).Seconds()*float64(rate)) + 1)
	}
	c := h.Counters()
	for name, limit := range map[string]uint64{
		"sent_arp":                  most(answerRate, answerBurst),
		"sighted":                   most(sightingRate, sightingBurst),
		"sent_router_advertisement": most(solicitRate, solicitBurst) + initialRAs,
		"announced":                 2 * most(announceRate, announceBurst),
	} {
		if c[name] > limit || c[name] == 0 {
			t.Errorf("%s = %d, limit %d", name, c[name], limit)
		}
	}
	if c["quiet_limited"] == 0 || c["sightings_lost"] == 0 {
		t.Errorf("%v", c)
	}
}

func BenchmarkPortStats(b *testing.B) {
	g, err := New(testConfig(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer g.stats.close()
	for b.Loop() {
		if _, _, err := g.PortStats(1); err != nil {
			b.Fatal(err)
		}
	}
}
