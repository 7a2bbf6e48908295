package kernel

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// counted waits for a snapshot that is younger than now.
func (l *lab) counted() map[netip.Prefix]fib.ServiceCount {
	l.t.Helper()
	if _, err := l.d.ServiceCounters(); err != nil { // which waits for the one that is being taken
		l.t.Fatal(err)
	}
	l.d.snaps.mu.Lock()
	l.d.snaps.last, l.d.snaps.next = nil, nil
	l.d.snaps.mu.Unlock()
	all, err := l.d.ServiceCounters()
	l.must(err)
	out := make(map[netip.Prefix]fib.ServiceCount)
	for _, c := range all {
		out[c.Service.Outside] = c
	}
	return out
}

// TestServiceCounters: packets and bytes in both directions, whoever translates them; they stay as long as there is a
// service with that Outside, also over a restart.
func TestServiceCounters(t *testing.T) {
	l := newAnchorLab(t)
	l.set(to(host(farEID.v6), farRLOC.v4), to(host(vmEID.v6), farRLOC.v4), fib.Route{EID: host(outEID.v4), Do: fib.Native}, fib.Route{EID: host(outEID.v6), Do: fib.Native})
	to4 := map646.Embed(labPool, outEID.v4)
	var want fib.ServiceCount // of the IPv4 service
	in := udp(peerMAC, peerMAC, header{src: outEID.v4, dst: service4}, 1, 2, make([]byte, 72))[14:]
	for range 3 {
		l.fromInternet(in)
		l.wire.want()
		want.In.Packets, want.In.Bytes = want.In.Packets+1, want.In.Bytes+100
	}
	l.fromFar(false, udp(peerMAC, peerMAC, header{src: farEID.v6, dst: to4}, 1, 2, make([]byte, 172))[14:])
	l.inet.want()
	l.fromFar(false, fragmentOf(udp(peerMAC, peerMAC, header{src: farEID.v6, dst: to4}, 1, 2, make([]byte, 172))[14:], true))
	l.inet.want()
	want.Out = fib.Count{Packets: 2, Bytes: 200 + 44}
	in[26], in[27] = 0, 0 // for Go
	l.fromInternet(in)
	l.up.want()
	want.In.Packets, want.In.Bytes = want.In.Packets+1, want.In.Bytes+100
	// From it to another, which counts for both.
	hair := to(host(vmEID.v6), farRLOC.v4)
	hair.Transit = true
	l.set(hair)
	l.fromFar(false, udp(peerMAC, peerMAC, header{src: farEID.v6, dst: map646.Embed(labPool, netip.MustParseAddr("198.51.100.78"))}, 1, 2, make([]byte, 72))[14:])
	l.wire.want()
	want.Out.Packets, want.Out.Bytes = want.Out.Packets+1, want.Out.Bytes+100
	// Its IPv6 service has counters of its own.
	l.fromInternet(udp(peerMAC, peerMAC, header{src: outEID.v6, dst: service6}, 1, 2, make([]byte, 52))[14:])
	l.wire.want()
	l.fromFar(false, udp(peerMAC, peerMAC, header{src: farEID.v6, dst: outEID.v6}, 1, 2, make([]byte, 12))[14:])
	l.inet.want()

	check := func(what string, others bool) {
		t.Helper()
		all := l.counted()
		got := all[netip.PrefixFrom(service4, 32)]
		if got.In != want.In || got.Out != want.Out {
			t.Errorf("%s: counted %+v, want %+v", what, got, want)
		}
		if !others {
			return
		}
		if c := all[netip.PrefixFrom(service6, 128)]; c.In != (fib.Count{Packets: 1, Bytes: 100}) || c.Out != (fib.Count{Packets: 1, Bytes: 60}) {
			t.Errorf("%s: IPv6: %+v", what, c)
		}
		if c := all[netip.MustParsePrefix("198.51.100.78/32")]; c.In != (fib.Count{Packets: 1, Bytes: 100}) || c.Out != (fib.Count{}) {
			t.Errorf("%s: the other's: %+v", what, c)
		}
	}
	check("at first", true)
	// Another VM behind the same address.
	l.setServices(service(service4.String(), "2001:db8:e1d:1::55"))
	check("after a move", true)
	l.close()
	l.open()
	check("after a restart", true)
	p := netip.PrefixFrom(service4, 32)
	l.must(l.d.DelServices(t.Context(), p))
	if c, ok := l.counted()[p]; ok {
		t.Errorf("a service that is gone has counted %+v", c)
	}
	want = fib.ServiceCount{}
	time.Sleep(restTime)
	l.setServices(service(service4.String(), farEID.v6.String()))
	check("set anew", true)
	if n := len(l.counted()); n != 3 {
		t.Errorf("%d counters", n)
	}
}

// TestSnapshots: what is read often is read once a second, by a thread that is in nobody's way; and never older than that.
func TestSnapshots(t *testing.T) {
	l := newAnchorLab(t)
	const n = 5000
	var all []fib.Service
	for i := range n {
		out := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		b := farEID.v6.As16()
		binary.BigEndian.PutUint32(b[10:], uint32(i+1))
		all = append(all, service(out.String(), netip.AddrFrom16(b).String()))
	}
	l.setServices(all...)
	idle := func() (n int) {
		tasks, err := os.ReadDir("/proc/self/task")
		l.must(err)
		for _, task := range tasks {
			b, err := os.ReadFile(filepath.Join("/proc/self/task", task.Name(), "stat"))
			if err != nil {
				continue
			}
			// Behind the name: field 41 is the policy (proc(5)).
			fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
			if len(fields) > 38 && fields[38] == "5" {
				n++
			}
		}
		return n
	}
	before := idle()
	first, err := l.d.ServiceCounters()
	l.must(err)
	if len(first) != n+3 {
		t.Fatalf("%d services have counters", len(first))
	}
	if !slices.IsSortedFunc(first, func(a, b fib.ServiceCount) int { return a.Service.Outside.Compare(b.Service.Outside) }) {
		t.Error("not in order")
	}
	if now := idle(); now != before+1 {
		t.Errorf("%d threads are of the lowest class, %d were", now, before)
	}
	l.d.snaps.mu.Lock()
	at := l.d.snaps.next.at
	l.d.snaps.mu.Unlock()
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 1000 {
				got, err := l.d.ServiceCounters()
				if err != nil || len(got) == 0 || &got[0] != &first[0] && time.Since(at) < snapshotAge {
					t.Errorf("another snapshot after %v: %v", time.Since(at), err)
					return
				}
			}
		})
	}
	readers.Wait()
	l.set(to(mustEID("2001:db8:e1d::/48"), farRLOC.v4))
	p := udp(peerMAC, peerMAC, header{src: outEID.v4, dst: netip.MustParseAddr("198.18.19.1")}, 1, 2, nil)[14:]
	// It is not in our aggregates: no way in from upstream, but from LISP.
	r := to(mustEID("2001:db8:e1d::/48"), farRLOC.v4)
	r.Transit = true
	l.set(r)
	l.fromFar(false, p)
	l.wire.want()
	for start := time.Now(); ; {
		all, err := l.d.ServiceCounters()
		l.must(err)
		i := slices.IndexFunc(all, func(c fib.ServiceCount) bool { return c.Service.Outside.Addr().String() == "198.18.19.1" })
		if all[i].In.Packets == 1 {
			break
		}
		if time.Since(start) > snapshotAge+soon {
			t.Fatalf("not counted after %v", time.Since(start))
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.close()
	if _, err := l.d.ServiceCounters(); err == nil {
		t.Error("a data plane that is closed has counters")
	}
}

// TestServicesRestart: translation goes on, in order and without a loss, while the process is gone, while it comes back,
// and when it comes back with other sizes.
func TestServicesRestart(t *testing.T) {
	l := newAnchorLab(t)
	l.set(to(host(farEID.v6), farRLOC.v4))
	up := l.link("up0").Attrs().HardwareAddr
	packet := func(n uint32) []byte {
		f := udp(upstreamHop, up, header{src: outEID.v4, dst: service4}, 1, 2, binary.BigEndian.AppendUint32(nil, n))
		if f[40] == 0 && f[41] == 0 {
			f[40], f[41] = 0xff, 0xff // the zero that is a checksum (RFC 768)
		}
		return f
	}
	stop, end := make(chan struct{}), make(chan struct{})
	var sent, got uint32
	var sender, reader sync.WaitGroup
	sender.Go(func() { sent = stream(l.inet, packet, stop) })
	reader.Go(func() { got = inOrder(t, l.wire, 14+36+48, end) })
	for _, capacity := range []int{0, 70_000, 50_000, 0} {
		time.Sleep(20 * time.Millisecond)
		l.close()
		time.Sleep(20 * time.Millisecond)
		l.cfg.Capacity = capacity
		l.open()
		if n := len(l.d.Services()); n != 3 {
			t.Errorf("%d services after the restart", n)
		}
		// And it goes on working: a change takes effect.
		l.setServices(service("198.51.100.79", "2001:db8:e1d:1::79"))
		l.must(l.d.DelServices(t.Context(), netip.MustParsePrefix("198.51.100.79/32")))
	}
	time.Sleep(20 * time.Millisecond)
	close(stop)
	sender.Wait()
	close(end)
	reader.Wait()
	if sent != got {
		t.Fatalf("%d packets were sent, %d came; drops: %v, ups %v", sent, got, l.d.Drops(), l.d.Ups())
	}
	if c := l.counted()[netip.PrefixFrom(service4, 32)]; c.In.Packets != uint64(sent) {
		t.Errorf("counted %+v, want %d packets", c, sent)
	}
}

// TestServicesRefused: what makes no sense is refused before anything is done; what does not fit leaves what was there.
func TestServicesRefused(t *testing.T) {
	l := newAnchorLab(t, withCapacity(20))
	ctx := t.Context()
	if err := l.d.SetServices(ctx, service("198.51.100.1", "2001:db8:e1d::1"), fib.Service{}); err == nil {
		t.Error("set an empty service")
	}
	if n := len(l.d.Services()); n != 3 {
		t.Fatalf("%d services", n)
	}
	var many []fib.Service
	for i := range 18 {
		many = append(many, service(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 100)}).String(), netip.AddrFrom16([16]byte(append(farEID.v6.AsSlice()[:15:15], byte(i+100)))).String()))
	}
	if err := l.d.SetServices(ctx, many...); err == nil || !strings.Contains(err.Error(), "no more than 20 services") {
		t.Errorf("21 services fit where 20 do: %v", err)
	}
	if n := len(l.d.Services()); n != 20 {
		t.Errorf("%d services", n)
	}
	l.must(l.d.DelServices(ctx, many[0].Outside))
	l.setServices(many[17])
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.d.SetServices(done, many[0]); err == nil {
		t.Error("with a context that has ended")
	}
	x := newLab(t)
	if err := x.d.SetServices(ctx, many[0]); err == nil || !strings.Contains(err.Error(), "D-ETR") {
		t.Errorf("an xTR took a service: %v", err)
	}
	// A D-ETR that becomes an xTR forgets them.
	l.close()
	l.cfg.Anchor = false
	l.open()
	if n := len(l.d.Services()); n != 0 {
		t.Errorf("%d services", n)
	}
}

// TestManyServices: many of them are set, found, read back and deleted.
func TestManyServices(t *testing.T) {
	l := newAnchorLab(t, withCapacity(30_000))
	const n = 20_000
	var all []fib.Service
	var gone []netip.Prefix
	for i := range n {
		s := nthService(false, i)
		all, gone = append(all, s), append(gone, s.Outside)
	}
	start := time.Now()
	l.setServices(all...)
	took := time.Since(start)
	start = time.Now()
	l.setServices(all...)
	t.Logf("%d services set in %v, set again in %v", n, took, time.Since(start))
	start = time.Now()
	if c := l.counted(); len(c) != n+3 {
		t.Errorf("%d counters", len(c))
	}
	t.Logf("counted in %v", time.Since(start))
	l.set(to(mustEID("2001:db8::/32"), farRLOC.v4))
	r := to(mustEID("2001:db8::/32"), farRLOC.v4)
	r.Transit = true
	l.set(r)
	for _, i := range []int{0, 1, 511, 512, 17_777, n - 1} {
		l.fromFar(true, udp(peerMAC, peerMAC, header{src: outEID.v4, dst: all[i].Outside.Addr()}, 1, 2, nil)[14:])
		if got := l.wire.want()[14+36:]; netip.AddrFrom16([16]byte(got[24:])) != all[i].Inside.Addr() {
			t.Errorf("service %d: to %x", i, got[24:40])
		}
	}
	l.close()
	start = time.Now()
	l.open()
	t.Logf("opened again in %v", time.Since(start))
	if got := len(l.d.Services()); got != n+3 {
		t.Errorf("%d services after the restart", got)
	}
	l.must(l.d.DelServices(t.Context(), gone...))
	if got := len(l.d.Services()); got != 3 {
		t.Errorf("%d services are left", got)
	}
}
