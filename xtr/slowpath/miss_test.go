package slowpath

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// udp builds a UDP packet whose payload says which one it is.
func udp(t testing.TB, src, dst, says string) []byte {
	t.Helper()
	u := &layers.UDP{SrcPort: 1000, DstPort: 2000}
	if strings.Contains(dst, ":") {
		return pkt(t, ip6(src, dst, layers.IPProtocolUDP), u, gopacket.Payload(says))
	}
	return pkt(t, ip4(src, dst, layers.IPProtocolUDP), u, gopacket.Payload(says))
}

// says returns the payload of what udp built.
func says(b []byte) string {
	p, ok := parsePacket(b, false)
	if !ok || p.proto != protoUDP {
		return fmt.Sprintf("not UDP: % x", b)
	}
	return string(b[p.upper+8 : p.length])
}

func allSay(ws []written) []string {
	var out []string
	for _, w := range ws {
		out = append(out, says(w.packet))
	}
	return out
}

func eid(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func miss(k *fakeKernel, iid uint32, dst, what string) {
	src := "192.0.2.1"
	if strings.Contains(dst, ":") {
		src = "2001:db8::1"
	}
	k.feed(0, fib.Up{Reason: fib.UpMiss, IID: iid, Port: 3}, nil, udp(k.t, src, dst, what))
}

// missed returns the misses that are told now.
func missed(s *SlowPath) []Miss {
	var all []Miss
	for {
		synctest.Wait()
		select {
		case m := <-s.Misses():
			all = append(all, m)
		default:
			return all
		}
	}
}

func TestMissIsToldOnceAndReleasedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		for i := range 3 {
			miss(k, 7, "198.51.100.9", fmt.Sprint("a", i))
			miss(k, 7, "2001:db8:f::1", fmt.Sprint("b", i))
			miss(k, 8, "198.51.100.9", fmt.Sprint("c", i))
		}
		want := []Miss{
			{7, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.9")},
			{7, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:f::1")},
			{8, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.9")},
		}
		if d := cmp.Diff(want, missed(s), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Fatal(d)
		}
		if w := k.take(); len(w) != 0 {
			t.Fatalf("sent without an answer: %v", w)
		}
		s.Release(eid("[7]198.51.100.0/24"))
		synctest.Wait()
		got := k.take()
		if d := cmp.Diff([]string{"a0", "a1", "a2"}, allSay(got)); d != "" {
			t.Fatal(d)
		}
		for _, w := range got {
			if w.Down != (fib.Down{Do: fib.DownForward, IID: 7}) {
				t.Fatalf("metadata %+v", w.Down)
			}
		}
		s.Release(eid("[7]2001:db8:f::1"))
		s.Reject(eid("[8]0.0.0.0/0"))
		synctest.Wait()
		if d := cmp.Diff([]string{"b0", "b1", "b2"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
		if n := s.Counters()["drop_rejected"]; n != 3 {
			t.Fatalf("%d rejected", n)
		}
	})
}

func TestMissKeepsTransitAndReplayMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		k.feed(0, fib.Up{Reason: fib.UpMiss, Flags: fib.UpTransit | fib.UpReplay}, nil, udp(t, "192.0.2.1", "192.0.2.2", "x"))
		vnet := []byte{1, 0, 0, 0, 0, 0, 34, 0, 6, 0} // the checksum is left to the device
		k.feed(0, fib.Up{Reason: fib.UpMiss}, vnet, udp(t, "192.0.2.1", "192.0.2.2", "y"))
		missed(s)
		s.Release(eid("192.0.2.2"))
		synctest.Wait()
		got := k.take()
		if len(got) != 2 || got[0].Flags != fib.DownTransit|fib.DownReplay || got[1].Flags != 0 {
			t.Fatalf("%+v", got)
		}
		if d := cmp.Diff(vnet, got[1].vnet); d != "" {
			t.Fatalf("vnet header changed: %s", d)
		}
	})
}

// A VM's packet that looks like LISP to one of our RLOCs must not be decapsulated on its way down, where nobody judges who
// sent it; what comes up with its outer headers must.
func TestOnlyWhatCameUpWithOuterHeadersMayBeDecapsulated(t *testing.T) {
	inner := udp(t, "198.51.100.99", "198.51.100.10", "forged")
	lispData := func(src, dst string) []byte {
		u, payload := &layers.UDP{SrcPort: 0xc001, DstPort: lisp.DataPort}, gopacket.Payload(append(make([]byte, 8), inner...))
		if strings.Contains(dst, ":") {
			return pkt(t, ip6(src, dst, layers.IPProtocolUDP), u, payload)
		}
		return pkt(t, ip4(src, dst, layers.IPProtocolUDP), u, payload)
	}
	for name, tc := range map[string]struct {
		reason fib.Reason
		packet []byte
		want   fib.DownFlags
	}{
		"IPv4":               {fib.UpMiss, lispData("192.0.2.1", "100.64.1.2"), 0},
		"IPv6":               {fib.UpMiss, lispData("2001:db8::1", "2001:db8:100::2"), 0},
		"another port":       {fib.UpMiss, udp(t, "192.0.2.1", "100.64.1.2", "x"), fib.DownTransit},
		"with outer headers": {fib.UpSegment, lispData("192.0.2.1", "100.64.1.2"), fib.DownTransit},
	} {
		synctest.Test(t, func(t *testing.T) {
			k := newFakeKernel(t, 1)
			s := k.start(Config{})
			k.feed(0, fib.Up{Reason: tc.reason, Flags: fib.UpTransit}, nil, tc.packet)
			synctest.Wait()
			s.Release(eid("0.0.0.0/0"))
			s.Release(eid("::/0"))
			synctest.Wait()
			if got := k.take(); len(got) != 1 || got[0].Flags != tc.want {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}

func TestMissQueueIsBounded(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		n    int
		want int
		why  string
	}{
		{"packets", Config{MissPackets: 5}, 20, 5, "drop_miss_packets"},
		{"bytes", Config{MissBytes: 3*(256+frameMemory) + 1}, 20, 3, "drop_miss_bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newFakeKernel(t, 1)
				s := k.start(tc.cfg)
				for i := range tc.n {
					miss(k, 0, "198.51.100.9", fmt.Sprint(i))
				}
				missed(s)
				s.Release(eid("198.51.100.9"))
				synctest.Wait()
				got := allSay(k.take())
				if len(got) != tc.want || got[0] != "0" || got[tc.want-1] != fmt.Sprint(tc.want-1) {
					t.Fatalf("released %v", got)
				}
				if n := s.Counters()[tc.why]; n != uint64(tc.n-tc.want) {
					t.Fatalf("%s = %d", tc.why, n)
				}
			})
		})
	}
}

func TestMissWithoutAnswerIsDroppedAndRefusedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{MissTime: 3 * time.Second, RefusedTime: time.Second})
		miss(k, 0, "198.51.100.9", "lost")
		if n := len(missed(s)); n != 1 {
			t.Fatalf("%d misses", n)
		}
		time.Sleep(2900 * time.Millisecond)
		if n := s.Counters()["drop_miss_time"]; n != 0 {
			t.Fatal("dropped too early")
		}
		time.Sleep(300 * time.Millisecond)
		if n := s.Counters()["drop_miss_time"]; n != 1 {
			t.Fatalf("dropped %d", n)
		}
		for range 10 {
			miss(k, 0, "198.51.100.9", "refused")
		}
		if m := missed(s); len(m) != 0 {
			t.Fatalf("asked again at once: %v", m)
		}
		if n := s.Counters()["drop_miss_refused"]; n != 10 {
			t.Fatalf("refused %d", n)
		}
		time.Sleep(1100 * time.Millisecond)
		miss(k, 0, "198.51.100.9", "again")
		if n := len(missed(s)); n != 1 {
			t.Fatalf("%d misses after the pause", n)
		}
		s.Release(eid("198.51.100.9"))
		synctest.Wait()
		if d := cmp.Diff([]string{"again"}, allSay(k.take())); d != "" {
			t.Fatal(d)
		}
	})
}

// What had come up before the route was there passes at once, but not for ever: without a route it
// comes up again.
func TestMissAfterReleasePassesForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		miss(k, 0, "198.51.100.9", "first")
		missed(s)
		k.mu.Lock()
		k.onWrite = func(w written) { k.feed(0, fib.Up{Reason: fib.UpMiss}, nil, w.packet) } // goes round
		k.mu.Unlock()
		s.Release(eid("198.51.100.9"))
		synctest.Wait()
		if n := len(k.take()); n != 1+releasedPackets {
			t.Fatalf("went round %d times", n)
		}
		time.Sleep(releasedTime)
		miss(k, 0, "198.51.100.9", "later")
		if n := len(missed(s)); n != 1 {
			t.Fatalf("%d misses after the moment", n)
		}
	})
}

func TestMissStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{MissDestinations: 3000})
		for i := range 10000 {
			miss(k, 0, fmt.Sprintf("10.%d.%d.1", i/250, i%250), "x")
		}
		synctest.Wait()
		c := s.Counters()
		if c["drop_miss_table"] != 7000 || c["up_miss"] != 10000 {
			t.Fatalf("%v", c)
		}
		// 1,000 at once, then 2,000 a second; a reader that comes late finds what the channel holds.
		if n := len(missed(s)); n != 1000 {
			t.Fatalf("%d misses at once", n)
		}
		time.Sleep(500 * time.Millisecond)
		if n := len(missed(s)); n < 900 || n > 1200 {
			t.Fatalf("%d misses in half a second", n)
		}
		s.Reject(eid("10.0.0.0/8"))
		synctest.Wait()
		if n := s.Counters()["drop_rejected"]; n != 3000 {
			t.Fatalf("%d rejected", n)
		}
		time.Sleep(2 * time.Second)
		if m := missed(s); len(m) != 0 {
			t.Fatalf("%d misses were told after they had been answered", len(m))
		}
	})
}

func TestMissShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		miss(k, 0, "198.51.100.9", "x")
		miss(k, 0, "198.51.100.8", "x")
		missed(s)
		s.Reject(eid("198.51.100.8"))
		time.Sleep(500 * time.Millisecond)
		got, err := s.Shows()["misses"](t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []ShowMiss{
			{EID: eid("198.51.100.8"), State: "refused", Packets: 0, Age: "500ms"},
			{EID: eid("198.51.100.9"), State: "waiting", Packets: 1, Age: "500ms"},
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b lisp.EID) bool { return a == b })); d != "" {
			t.Fatal(d)
		}
	})
}

func TestFramesThatAreNoGoodAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		good := udp(t, "192.0.2.1", "192.0.2.2", "x")
		k.queues[0].up <- []byte{1, 2, 3}
		k.queues[0].up <- frameBytes(fib.Up{Reason: fib.UpMiss}, nil, nil)
		hostRouted := frameBytes(fib.Up{Reason: fib.UpMiss}, nil, good)
		hostRouted[vnetMinLen] = 0x52
		k.queues[0].up <- hostRouted
		k.feed(0, fib.Up{Reason: 99}, nil, good)
		k.feed(0, fib.Up{Reason: fib.UpMiss}, nil, good[:19])
		k.feed(0, fib.Up{Reason: fib.UpTTL}, nil, []byte{0x60, 0, 0})
		k.feed(0, fib.Up{Reason: fib.UpTooBig}, nil, []byte{0x45})
		k.feed(0, fib.Up{Reason: fib.UpSegment}, superHeader(gsoUDP, 20, 1), []byte{0x45})
		k.feed(0, fib.Up{Reason: fib.UpSegment}, superHeader(gsoTCP4, 20, 1), good)
		synctest.Wait()
		c := s.Counters()
		want := map[string]uint64{"bad_short": 2, "bad_no_metadata": 1, "bad_reason": 1, "bad_packet": 4, "bad_offload": 1}
		for name, n := range want {
			if c[name] != n {
				t.Errorf("%s = %d, want %d", name, c[name], n)
			}
		}
		if w := k.take(); len(w) != 0 {
			t.Errorf("sent %v", w)
		}
	})
}
