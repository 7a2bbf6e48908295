package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace that lives as long as the test, with a thread in it.
type namespace struct {
	t     testing.TB
	file  *os.File
	calls chan func()
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{t: t, calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread goes with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.calls); _ = n.file.Close() })
	return n
}

// do runs f in the namespace and waits for it.
func (n *namespace) do(f func() error) {
	n.t.Helper()
	done := make(chan error)
	n.calls <- func() { done <- f() }
	if err := <-done; err != nil {
		n.t.Helper()
		n.t.Fatal(err)
	}
}

// spawn runs f on a thread of its own in the namespace.
func (n *namespace) spawn(f func()) {
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			n.t.Errorf("setns: %v", err)
			return
		}
		f()
	}()
}

var (
	gatewayMAC = net.HardwareAddr{0x02, 0x1a, 0xb1, 0, 0, 1}
	guestMAC   = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x10}

	guest4   = netip.MustParseAddr("198.51.100.10")
	guest6   = netip.MustParseAddr("2001:db8:e1d:1::10")
	peer4    = netip.MustParseAddr("198.51.100.20")
	peer6    = netip.MustParseAddr("2001:db8:e1d:1::20")
	router4  = netip.MustParseAddr("198.51.100.1")
	routerLL = netip.MustParseAddr("fe80::1")
)

func testConfig() Config {
	return Config{
		Patterns: []string{"vm*", "tap*"},
		Nets: []Net{
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Gateway: router4},
			{Prefix: netip.MustParsePrefix("2001:db8:e1d:1::/64"), Gateway: routerLL},
		},
		MAC: gatewayMAC, MTU: 1444, RAInterval: 10 * time.Second,
	}
}

// locals is which address lives on which interface.
type locals struct {
	mu sync.Mutex
	at map[netip.Addr]int
}

func (l *locals) set(a netip.Addr, ifindex int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = make(map[netip.Addr]int)
	}
	l.at[a] = ifindex
}

func (l *locals) get(a netip.Addr) (int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.at[a]
	return i, ok
}

// hypervisor is a namespace with a gateway in it.
type hypervisor struct {
	*namespace
	*Gateway
	locals locals

	mu   sync.Mutex
	seen []Sighting
}

// newHypervisor starts a gateway. Its sightings are collected; its port events are for the test.
func newHypervisor(t testing.TB, cfg Config, change ...func(*Gateway)) *hypervisor {
	t.Helper()
	h := &hypervisor{namespace: newNamespace(t)}
	g, err := New(cfg, h.locals.get, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(g)
	}
	h.Gateway = g
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	h.spawn(func() { ended <- g.Run(ctx) })
	go func() {
		for {
			select {
			case s := <-g.Sightings():
				h.mu.Lock()
				h.seen = append(h.seen, s)
				h.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return h
}

// event waits for the next port event.
func (h *hypervisor) event() PortEvent {
	h.t.Helper()
	select {
	case e := <-h.Ports():
		return e
	case <-time.After(5 * time.Second):
		h.t.Fatal("no port event")
		return PortEvent{}
	}
}

// saw waits for a sighting of the kind, MAC and address.
func (h *hypervisor) saw(kind string, m net.HardwareAddr, a netip.Addr) {
	h.t.Helper()
	eventually(h.t, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, s := range h.seen {
			if s.Kind == kind && s.MAC.String() == m.String() && s.Addr == a {
				return nil
			}
		}
		return fmt.Errorf("no sighting %q of %v %v among %v", kind, m, a, h.seen)
	})
}

// count waits until a counter is at least n.
func (h *hypervisor) count(name string, n uint64) {
	h.t.Helper()
	eventually(h.t, func() error {
		if c := h.Counters(); c[name] < n {
			return fmt.Errorf("%s = %d, want %d; %v", name, c[name], n, c)
		}
		return nil
	})
}

// settled waits until the counter has stood still for longer than anything here takes to answer.
func (h *hypervisor) settled(name string) {
	h.t.Helper()
	const still = 300 * time.Millisecond
	last, since := h.Counters()[name], time.Now()
	eventually(h.t, func() error {
		if now := h.Counters()[name]; now != last {
			last, since = now, time.Now()
		}
		if d := time.Since(since); d < still {
			return fmt.Errorf("%s has been %d for %v only", name, last, d)
		}
		return nil
	})
}

// eventually waits until f is content.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// addVeth makes an interface of the hypervisor whose other end is eth0 of the guest, and returns its
// index.
func (h *hypervisor) addVeth(name string, guest *namespace) (index int) {
	h.t.Helper()
	h.do(func() error {
		v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(guest.file.Fd()),
			PeerHardwareAddr: guestMAC}
		v.Name = name
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	})
	return index
}

// sysctl writes a sysctl of the namespace.
func (n *namespace) sysctl(name, value string) {
	n.t.Helper()
	n.do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

// up sets an interface up and gives it addresses.
func (n *namespace) up(name string, addrs ...string) {
	n.t.Helper()
	n.do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
		}
		return nil
	})
}

// neighbor returns the neighbor entry that a namespace has for an address.
func (n *namespace) neighbor(a netip.Addr) (found netlink.Neigh) {
	n.t.Helper()
	n.do(func() error {
		family := unix.AF_INET
		if a.Is6() {
			family = unix.AF_INET6
		}
		list, err := netlink.NeighList(0, family)
		for _, e := range list {
			if ip, _ := netip.AddrFromSlice(e.IP); ip.Unmap() == a {
				found = e
			}
		}
		return err
	})
	return found
}
