package kernel

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// read says how many packets the reader of the TAP has had, by the interface's own count.
func (s *space) readOf(name string) uint64 { return s.link(name).Attrs().Statistics.TxPackets }

func (l *lab) given() uint64 {
	l.t.Helper()
	c, err := l.d.PortCounters(l.port)
	l.must(err)
	return c.Given
}

// TestCopies: while a route asks for it, every packet that the VM is given goes up too, unchanged, with
// the number that the interface will have counted when it is read.
func TestCopies(t *testing.T) {
	l := newLab(t)
	// What was given before anybody looked counts too, and what the host itself gives.
	for range 3 {
		l.packet("tap0").send(udp(gatewayMAC, vmMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil))
		l.vm.want()
	}
	for _, v6 := range both {
		l.bothHome(false)
		send := func(payload string) []byte {
			f := udp(peerMAC, peerMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte(payload))[14:]
			l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, f))
			return hop(f)
		}
		send("not yet")
		l.vm.want()
		l.up.none()
		r := l.home(vmEID.of(v6))
		r.Copy = true
		l.set(r)
		for i := range 5 {
			want := send("copy")
			got := l.vm.want()
			if !bytes.Equal(got[14:], want) || !bytes.Equal(got[:6], vmMAC) || !bytes.Equal(got[6:12], gatewayMAC) {
				t.Fatalf("the VM got % x, want % x", got, want)
			}
			up := l.up.want()
			n := l.readOf("tap0")
			if u, ok := fib.DecodeUp(up); !ok || u != (fib.Up{Reason: fib.UpCopy, Port: l.port, Seq: uint32(n)}) {
				t.Fatalf("copy %d went up as %+v; the interface has counted %d", i, u, n)
			}
			if !bytes.Equal(up[12:14], etherType(v6)) || !bytes.Equal(up[14:], want) {
				t.Fatalf("the copy is % x, want % x", up, want)
			}
			if g := l.given(); g != n {
				t.Fatalf("%d given, %d read", g, n)
			}
		}
		// Not for another EID of the VM, but it is counted.
		other := l.home(vmEID.of(v6).Next())
		l.set(other)
		f := udp(peerMAC, peerMAC, header{src: farEID.of(v6), dst: vmEID.of(v6).Next()}, 1, 2, nil)[14:]
		l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, f))
		l.vm.want()
		l.up.none()
		r.Copy = false
		l.set(r)
		send("no more")
		l.vm.want()
		l.up.none()
		if g, n := l.given(), l.readOf("tap0"); g != n {
			t.Fatalf("%d given, %d read", g, n)
		}
	}
}

// TestCopyAfterTheRouteChanged: a packet whose route was looked up just before its VM stopped is given to the VM when the
// route leads elsewhere already. It is copied all the same, for a moment; then nothing is.
func TestCopyAfterTheRouteChanged(t *testing.T) {
	l := newLab(t)
	l.bothHome(false)
	s := l.packet("tap0") // comes to the interface without a look at the routes
	for _, v6 := range both {
		r := l.home(vmEID.of(v6))
		r.Copy = true
		for _, away := range []fib.Route{
			{EID: r.EID, Do: fib.Hold, Hold: 3},
			{EID: r.EID, Do: fib.Encap, Locators: []lisp.Locator{{RLOC: farRLOC.v4, Priority: 1, Weight: 100, Reachable: true}}},
		} {
			l.set(r)
			l.set(away)
			s.send(udp(gatewayMAC, vmMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte("late")))
			l.vm.want()
			up := l.up.want()
			if u, ok := fib.DecodeUp(up); !ok || u != (fib.Up{Reason: fib.UpCopy, Port: l.port, Seq: uint32(l.readOf("tap0"))}) {
				t.Fatalf("route %d: the copy went up as %+v", away.Do, u)
			}
			time.Sleep(copyLinger + 50*time.Millisecond)
			s.send(udp(gatewayMAC, vmMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte("too late")))
			l.vm.want()
			l.up.none()
		}
		// A VM that stays is copied no more at once.
		l.set(r)
		r.Copy = false
		l.set(r)
		s.send(udp(gatewayMAC, vmMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte("stays")))
		l.vm.want()
		l.up.none()
		// Prepared again within the moment, it is copied, and stays so.
		r.Copy = true
		l.set(r)
		time.Sleep(copyLinger + 50*time.Millisecond)
		s.send(udp(gatewayMAC, vmMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, []byte("again")))
		l.vm.want()
		l.up.want()
		r.Copy = false
		l.set(r)
	}
}

// TestGivenBefore: a port whose interface has been in use for long counts on from there.
func TestGivenBefore(t *testing.T) {
	l := newLab(t)
	l.must(l.d.DetachVM(l.vmIf))
	s := l.packet("tap0")
	for range 7 {
		s.send(udp(gatewayMAC, vmMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil))
		l.vm.want()
	}
	l.must(l.attach(Port{}))
	if g, n := l.given(), l.readOf("tap0"); g != n || n < 7 {
		t.Fatalf("%d given, %d read", g, n)
	}
	s.send(udp(gatewayMAC, vmMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil))
	// Given, and not read yet.
	if g, n := l.given(), l.readOf("tap0"); g != n+1 {
		t.Fatalf("%d given, %d read", g, n)
	}
}

// TestGivenBeforeAnyoneReads: what the host has said to an interface before it was a port, and what it says afterwards,
// lies there until the VM runs, and counts; also where no queueing discipline has counted it, or there was no room for all.
func TestGivenBeforeAnyoneReads(t *testing.T) {
	for _, how := range []string{"with a queueing discipline", "without", "without room for all"} {
		t.Run(how, func(t *testing.T) {
			plain := how == "without"
			l := newLab(t)
			fresh := l.tap("tap1", gatewayMAC.String(), tapOffload)
			if plain {
				none := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.index("tap1"), Parent: netlink.HANDLE_ROOT}, QdiscType: "noqueue"}
				l.must(l.nl.QdiscReplace(none))
			}
			l.must(l.nl.LinkSetDown(l.link("tap1")))
			l.sysctl("ipv6/conf/tap1/addr_gen_mode", "0") // it tells its neighbors its multicast groups
			if how == "without room for all" {
				l.must(l.nl.LinkSetTxQLen(l.link("tap1"), 2))
			}
			l.must(l.nl.LinkSetUp(l.link("tap1")))
			s := l.packet("tap1")
			say := func() { s.send(udp(gatewayMAC, vmMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, nil)) }
			for range 4 {
				if !plain { // that would not count them
					say()
				}
			}
			time.Sleep(20 * time.Millisecond)
			var port uint16
			l.do(func() {
				var err error
				port, err = l.d.AttachVM(l.index("tap1"), Port{})
				l.must(err)
			})
			l.sysctl("ipv6/conf/tap1/disable_ipv6", "1")
			say()
			for fresh.recv(50*time.Millisecond) != nil {
			}
			given, err := l.d.PortCounters(port)
			l.must(err)
			st := l.link("tap1").Attrs().Statistics
			if (st.TxDropped > 0) != (how == "without room for all") {
				t.Errorf("%d dropped", st.TxDropped)
			}
			if n := st.TxPackets + st.TxDropped; n < 2 || given.Given != n {
				t.Fatalf("%d given, %d read or dropped", given.Given, n)
			}
		})
	}
}

// tapGuest shuttles frames between a TAP and a guest's TAP, as a VMM does.
func tapGuest(t *testing.T, a, b *conn) (stop func()) {
	quit := make(chan struct{})
	done := make(chan struct{}, 2)
	shuttle := func(from, to *conn) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 70000)
		for {
			select {
			case <-quit:
				return
			default:
			}
			from.f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := from.f.Read(buf)
			if err != nil {
				continue
			}
			to.f.Write(buf[:n])
		}
	}
	go shuttle(a, b)
	go shuttle(b, a)
	return func() {
		close(quit)
		<-done
		<-done
	}
}

// TestGivenSuperPackets: a super-packet counts as the interface's own counter will count it: once where
// the VMM takes super-packets, as its segments where the kernel splits it; and so with the copies.
func TestGivenSuperPackets(t *testing.T) {
	for _, c := range []struct {
		what    string
		offload int
	}{
		{"a VMM that takes super-packets", tapOffload},
		{"a VMM that does not", unix.TUN_F_CSUM},
		{"a VMM with no vnet header", tapPlain},
	} {
		for _, how := range []string{"tc", "xdp"} {
			t.Run(c.what+", "+how, func(t *testing.T) {
				a := newSite(t, selfRLOC, vmEID, false)
				b := newSite(t, farRLOC, farEID, false)
				b.d.cfg.Decap = how
				// The guest of b is behind a TAP.
				tap := b.tap("tap0", gatewayMAC.String(), c.offload)
				inside := newSpace(t)
				eth := inside.tap("eth0", vmMAC.String(), c.offload)
				inside.addr("eth0", farEID.v4.String()+"/24")
				inside.addr("eth0", farEID.v6.String()+"/64")
				inside.neigh("eth0", vmEID.v4.String(), gatewayMAC)
				inside.neigh("eth0", vmEID.v6.String(), gatewayMAC)
				inside.must(inside.nl.LinkSetMTU(inside.link("eth0"), 1444))
				b.guest, b.vmIf = inside, b.index("tap0")
				var port uint16
				var err error
				b.do(func() { port, err = b.d.AttachVM(b.vmIf, Port{}) })
				b.must(err)
				join(a, "u0", b, "u0")
				if how == "xdp" {
					b.offload("u0", true, ethtoolGRO)
				}
				defer tapGuest(t, tap, eth)()
				for _, v6 := range both {
					a.set(a.home(a.eid.of(v6)), to(host(b.eid.of(v6)), b.rloc.v4))
					home := b.home(b.eid.of(v6))
					home.Copy = true
					b.set(home, to(host(a.eid.of(v6)), a.rloc.v4))
					before := b.readOf("tap0")
					copies := newCopyReader(b.d)
					transfer(t, a, b, v6, 4<<20)
					last := copies.end() // after there was none for a while
					given, err := b.d.PortCounters(port)
					b.must(err)
					read := b.readOf("tap0") + b.link("tap0").Attrs().Statistics.TxDropped
					t.Logf("IPv6 %v: %d packets, %d frames of copies", v6, read-before, copies.frames)
					if whole := c.offload == tapOffload && how == "xdp"; whole != (read-before < 1500) {
						t.Errorf("%d packets were read for 4 MiB", read-before)
					}
					if given.Given != read {
						t.Errorf("%d given, but the interface counted %d", given.Given, read)
					}
					if last != uint32(read) {
						t.Errorf("the last copy has number %d, the interface counted %d", last, read)
					}
				}
			})
		}
	}
}

// copyReader numbers the copies that go up as a slow path does.
type copyReader struct {
	d      *DataPlane
	stop   chan struct{}
	done   chan uint32
	frames int
}

func newCopyReader(d *DataPlane) *copyReader {
	r := &copyReader{d: d, stop: make(chan struct{}), done: make(chan uint32)}
	go r.run()
	return r
}

func (r *copyReader) end() uint32 {
	close(r.stop)
	return <-r.done
}

func (r *copyReader) run() {
	q := r.d.Queues()[0]
	b := make([]byte, 70000)
	var first, last, run uint32
	for {
		q.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := q.Read(b)
		if err != nil {
			select {
			case <-r.stop:
				r.done <- last
				return
			default:
				continue
			}
		}
		up, ok := fib.DecodeUp(b[10:n])
		if !ok || up.Reason != fib.UpCopy {
			continue
		}
		r.frames++
		segments := uint32(1)
		if b[1] != 0 && up.Flags&fib.UpSplit != 0 { // a whole super-packet whose segments count
			segments = segmentsOf(b[:n])
		}
		if up.Seq != first {
			first, run = up.Seq, 0
		}
		switch {
		case up.Flags&fib.UpSplit != 0:
			run += segments
		default:
			run = 1
		}
		last = max(last, first+run-1)
	}
}

// segmentsOf counts the segments of a TCP super-packet behind a vnet header.
func segmentsOf(b []byte) uint32 {
	gso := uint32(binary.NativeEndian.Uint16(b[4:]))
	ip := 10 + 14
	l4 := ip + 20
	if b[ip]>>4 == 6 {
		l4 = ip + 40
	}
	payload := uint32(len(b) - l4 - int(b[l4+12]>>4)*4)
	return (payload + gso - 1) / gso
}
