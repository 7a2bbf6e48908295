package testnet

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNamespaceIsNamedSeparateAndGone(t *testing.T) {
	r := startRun(t)
	h := startHost(t, r, "one")
	path := filepath.Join(netnsDir, h.ns.Name())
	if _, err := os.Stat(path); err != nil {
		t.Fatal("no name:", err)
	}
	var inside []string
	must(t, h.ns.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			inside = append(inside, l.Attrs().Name)
			if l.Attrs().Flags&unix.IFF_UP == 0 {
				t.Errorf("%s is down", l.Attrs().Name)
			}
		}
		return err
	}))
	if !slices.Equal(inside, []string{"lo"}) {
		t.Errorf("a fresh namespace has %v", inside)
	}
	must(t, h.ns.Sysctl("net/ipv4/ip_forward", "1"))
	again, err := OpenNamespace(h.ns.Name())
	must(t, err)
	must(t, again.Do(func() error {
		if got := readFile(t, "/proc/sys/net/ipv4/ip_forward"); got != "1" {
			t.Errorf("ip_forward seen from a second handle: %s", got)
		}
		return nil
	}))
	must(t, again.Close())
	must(t, h.ns.Close())
	if err := h.ns.onThread(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed namespace takes work: %v", err)
	}
	must(t, RemoveNamespace(h.ns.Name()))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name is still there: %v", err)
	}
	must(t, RemoveNamespace(h.ns.Name())) // twice is once
}

func TestDoLeavesTheCallerWhereItWas(t *testing.T) {
	r := startRun(t)
	h := startHost(t, r, "one")
	here, err := os.Readlink("/proc/thread-self/ns/net")
	must(t, err)
	var there string
	must(t, h.ns.Do(func() (err error) {
		there, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	if here == there {
		t.Error("Do ran outside of its namespace")
	}
	for range 100 { // whichever thread runs us, it is none of the namespace's
		if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != here {
			t.Fatalf("caller is in %s, was in %s", now, here)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNamespaceNameTaken(t *testing.T) {
	r := startRun(t)
	h := startHost(t, r, "one")
	if _, err := NewNamespace(h.ns.Name()); !errors.Is(err, os.ErrExist) {
		t.Errorf("second namespace of one name: %v", err)
	}
}

func TestLinkPingsAtOnceAndDropIsSilent(t *testing.T) {
	_, a, b := pair(t)
	for _, c := range [][2]string{{"10.9.0.1", "10.9.0.2"}, {"2001:db8:9::1", "2001:db8:9::2"}} {
		// No duplicate address detection: an answer comes well within its second.
		if _, err := Ping(within(t, 500*time.Millisecond), a.ns, netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])); err != nil {
			t.Error(err)
		}
	}
	src, dst := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	for _, side := range []*Host{a, b} { // either end can be cut
		must(t, side.ns.Drop("eth0", true))
		if _, err := Ping(within(t, 200*time.Millisecond), a.ns, src, dst); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping over a link that drops: %v", err)
		}
		must(t, side.ns.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil && l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
				t.Error("the carrier went")
			}
			return err
		}))
		must(t, side.ns.Drop("eth0", false))
		if _, err := Ping(within(t, time.Second), a.ns, src, dst); err != nil {
			t.Error("after the drop:", err)
		}
	}
}

func TestLinkErrorSaysWhere(t *testing.T) {
	_, a, b := pair(t)
	err := Connect(End{NS: a.ns, Name: "eth0"}, End{NS: b.ns, Name: "eth1"})
	if err == nil || !strings.Contains(err.Error(), a.ns.Name()+"/eth0") {
		t.Errorf("a second eth0: %v", err)
	}
}
