package simnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var (
	addrA = netip.MustParseAddrPort("100.64.1.2:4342")
	addrB = netip.MustParseAddrPort("[2001:db8:100:3::2]:4342")
	addrC = netip.MustParseAddrPort("100.64.4.2:4342")
)

func listen(t *testing.T, n *Network, a netip.AddrPort) *Conn {
	t.Helper()
	c, err := n.Listen(a)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c *Conn, to netip.AddrPort, s string) {
	t.Helper()
	if _, err := c.WriteTo([]byte(s), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

// receive reads what arrives within d.
func receive(t *testing.T, c *Conn, d time.Duration) (got []string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s from %s", b[:n], from))
	}
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("received %q, want %q", got, want)
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetPath(Path{Delay: 30 * time.Millisecond})
		n.SetPathBetween(addrA.Addr(), addrC.Addr(), Path{Delay: 10 * time.Millisecond})
		a, b, c := listen(t, n, addrA), listen(t, n, addrB), listen(t, n, addrC)
		start := time.Now()
		var want []string
		for i := range 50 {
			send(t, a, addrB, fmt.Sprint(i))
			want = append(want, fmt.Sprintf("%d from %v", i, addrA))
		}
		send(t, a, addrC, "near")
		buf := make([]byte, 100)
		if _, _, err := c.ReadFrom(buf); err != nil || time.Since(start) != 10*time.Millisecond {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		expect(t, receive(t, b, 19*time.Millisecond))
		expect(t, receive(t, b, time.Millisecond+1), want...)
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetPath(Path{Delay: time.Millisecond})
		a, b, c := listen(t, n, addrA), listen(t, n, addrB), listen(t, n, addrC)
		fates := map[Fate]int{}
		n.Watch(func(d Datagram) { fates[d.Fate]++ })
		send(t, a, addrB, "under way")
		n.Partition([]netip.Addr{addrA.Addr()})
		send(t, a, addrB, "cut")
		send(t, c, addrB, "same side")
		expect(t, receive(t, b, time.Second), fmt.Sprintf("same side from %v", addrC))
		n.Heal()
		send(t, a, addrB, "healed")
		expect(t, receive(t, b, time.Second), fmt.Sprintf("healed from %v", addrA))
		if fates[Partitioned] != 2 || fates[Delivered] != 2 {
			t.Fatalf("fates: %v", fates)
		}
	})
}

func TestLossDuplicateJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(7)
		n.SetPath(Path{Delay: time.Millisecond, Jitter: time.Millisecond, Loss: 0.25, Duplicate: 0.5})
		a, b := listen(t, n, addrA), listen(t, n, addrB)
		fates := map[Fate]int{}
		n.Watch(func(d Datagram) { fates[d.Fate]++ })
		const sent = 2000
		for i := range sent {
			send(t, a, addrB, fmt.Sprintf("%04d", i))
		}
		got := receive(t, b, time.Second)
		if len(got) != fates[Delivered] || fates[Lost] < sent/5 || fates[Lost] > sent*3/10 {
			t.Fatalf("%d received, fates: %v", len(got), fates)
		}
		if arrived := sent - fates[Lost]; len(got) < arrived*14/10 || len(got) > arrived*16/10 {
			t.Fatalf("%d arrived as %d", arrived, len(got))
		}
		if slices.IsSorted(got) {
			t.Fatal("jitter reorders nothing")
		}
	})
}

func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := listen(t, n, addrA), listen(t, n, netip.AddrPortFrom(addrB.Addr(), 0))
		if b.LocalAddr().(*net.UDPAddr).Port < firstPort {
			t.Fatalf("port %v", b.LocalAddr())
		}
		if _, err := n.Listen(addrA); err == nil {
			t.Fatal("an address was given twice")
		}
		unreachable := 0
		n.Watch(func(d Datagram) {
			if d.Fate == Unreachable {
				unreachable++
			}
		})
		send(t, a, addrC, "to nobody")
		done := make(chan error)
		go func() {
			_, _, err := a.ReadFrom(make([]byte, 1))
			done <- err
		}()
		synctest.Wait()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a waiting read ended with %v", err)
		}
		if _, err := a.WriteTo(nil, b.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a write ended with %v", err)
		}
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("a second close ended with %v", err)
		}
		send(t, b, addrA, "to a closed one")
		if unreachable != 2 {
			t.Fatalf("%d datagrams were unreachable", unreachable)
		}
		if _, err := n.Listen(addrA); err != nil {
			t.Fatalf("the address was not given back: %v", err)
		}
	})
}

func TestOverflow(t *testing.T) {
	n := New(1)
	a := listen(t, n, addrA)
	listen(t, n, addrB)
	overflowed := 0
	n.Watch(func(d Datagram) {
		if d.Fate == Overflowed {
			overflowed++
		}
	})
	for range queueLen + 3 {
		send(t, a, addrB, "x")
	}
	if overflowed != 3 {
		t.Fatalf("%d overflowed, want 3", overflowed)
	}
}
