package kernel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// wantEvent reads the next event.
func (l *lab) wantEvent(want fib.Event) {
	l.t.Helper()
	select {
	case e := <-l.d.Events():
		if d := cmp.Diff(want, e, cmpopts.IgnoreFields(fib.Event{}, "At"), cmp.Comparer(func(a, b lisp.EID) bool { return a == b })); d != "" {
			l.t.Fatalf("event (-want +got):\n%s", d)
		}
		if ago := time.Since(e.At); ago < 0 || ago > soon {
			l.t.Fatalf("the event was at %v", e.At)
		}
	case <-time.After(soon):
		l.t.Fatalf("no event %+v", want)
	}
}

func (l *lab) noEvent() {
	l.t.Helper()
	select {
	case e := <-l.d.Events():
		l.t.Fatalf("event %+v", e)
	case <-time.After(30 * time.Millisecond):
	}
}

// TestSourceOfVM: a VM may send from its own EIDs only; what else it sends is dropped, counted, and
// reported once a second.
func TestSourceOfVM(t *testing.T) {
	l := newLab(t)
	for _, v6 := range both {
		l.bothHome(false)
		dropped := l.d.Drops()["unknown-source"]
		spoof := func(src netip.Addr) []byte {
			return udp(vmMAC, gatewayMAC, header{src: src, dst: farEID.of(v6)}, 1, 2, nil)
		}
		// An address that has no route, one that lives elsewhere.
		for _, src := range []netip.Addr{outEID.of(v6), farEID.of(v6)} {
			l.vm.send(spoof(src))
			l.wantEvent(fib.Event{Kind: fib.EventUnknownSource, EID: host(src), If: l.vmIf, MAC: vmMAC})
			l.vm.send(spoof(src))
			dropped += 2
			l.wantDrops("unknown-source", dropped)
			l.noEvent()
		}
		if c := l.d.DropCounts()["unknown-source"]; c.Packets != dropped || c.Bytes < 20*c.Packets {
			t.Errorf("dropped %+v, want %d packets and their bytes", c, dropped)
		}
		// One that is another VM's.
		other := l.tap("tap1", gatewayMAC.String(), tapPlain)
		index := l.index("tap1")
		var err error
		l.do(func() { _, err = l.d.AttachVM(index, Port{}) })
		l.must(err)
		other.send(spoof(vmEID.of(v6)))
		dropped++
		l.wantDrops("unknown-source", dropped)
		l.wantEvent(fib.Event{Kind: fib.EventUnknownSource, EID: host(vmEID.of(v6)), If: index, MAC: vmMAC})
		l.must(l.d.DetachVM(index))
		l.must(l.nl.LinkDel(l.link("tap1")))
		l.wire.none()
		// Neighbour Discovery from no address, and from a link-local one, is nobody's business.
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: netip.MustParseAddr("::"), dst: netip.MustParseAddr("ff02::1")}, 1, 2, nil))
		l.noEvent()
		l.vm.send(spoof(vmEID.of(v6)))
		l.wire.want()
	}
}

// TestWatch: the first packet of a VM that begins to run is reported at once, each time that it is
// watched for, and goes on its way.
func TestWatch(t *testing.T) {
	l := newLab(t)
	for _, v6 := range both {
		l.set(to(host(farEID.of(v6)), farRLOC.v4))
		for _, r := range []fib.Route{
			{Do: fib.Hold, Hold: 1, Watch: true},             // it may be behind any interface
			{Do: fib.Hold, Hold: 1, Watch: true, If: l.vmIf}, // behind this one
			{Do: fib.Deliver, Watch: true, If: l.vmIf, MAC: vmMAC},
		} {
			r.EID = host(vmEID.of(v6))
			for range 2 {
				l.del(r.EID)
				l.set(r)
				l.set(r) // is the same route: no new report
				for i := range 3 {
					l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
					l.wire.want()
					if i == 0 {
						l.wantEvent(fib.Event{Kind: fib.EventSource, EID: r.EID, If: l.vmIf, MAC: vmMAC})
					}
				}
				l.noEvent()
			}
		}
		// Not behind this one.
		l.set(fib.Route{EID: host(vmEID.of(v6)), Do: fib.Hold, Hold: 1, Watch: true, If: l.vmIf + 100})
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
		l.wantEvent(fib.Event{Kind: fib.EventUnknownSource, EID: host(vmEID.of(v6)), If: l.vmIf, MAC: vmMAC})
		l.wire.none()
	}
}

// fromTo is a LISP packet as the underlay brings it.
func fromTo(rloc, self netip.Addr, src, dst netip.Addr) []byte {
	inner := udp(peerMAC, peerMAC, header{src: src, dst: dst}, 1, 2, []byte("data"))[14:]
	return lispFrame(header{src: rloc, dst: self}, 0xc001, 0, inner)
}

// TestForeignRLOC: an xTR takes packets from the cloud's RLOCs only, and for its own RLOCs only.
func TestForeignRLOC(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how))
		n := uint64(0)
		for _, outer6 := range both {
			for _, v6 := range both {
				l.set(l.home(vmEID.of(v6)))
				l.sendWire(fromTo(outRLOC.of(outer6), selfRLOC.of(outer6), farEID.of(v6), vmEID.of(v6)))
				n++
				l.wantDrops("unknown-rloc", n)
				l.sendWire(fromTo(farRLOC.of(outer6), farRLOC.of(outer6), farEID.of(v6), vmEID.of(v6)))
				l.vm.none() // not for us: the stack's
				l.sendWire(fromTo(farRLOC.of(outer6), selfRLOC.of(outer6), farEID.of(v6), vmEID.of(v6)))
				l.vm.want()
			}
		}
	}
}

// TestBareInner: a packet that arrives on the underlay without LISP headers is nobody's, also where XDP
// decapsulates, and whatever its bytes say.
func TestBareInner(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how))
		l.bothHome(false)
		for _, v6 := range both {
			l.sendWire(udp(peerMAC, peerMAC, header{src: farEID.of(v6), dst: vmEID.of(v6)}, 1, 2, nil))
		}
		// The host's stack may forward it if it is a router; it is not one here.
		l.vm.none()
		// Not even with metadata that another XDP program made up, all but the secret.
		var c confEntry
		l.must(l.d.maps["conf"].Lookup(uint32(0), &c))
		if c.Secret == 0 {
			t.Fatal("no secret")
		}
	}
}

// TestNotLocal: what is not here is dropped and reported, unless the route allows transit.
func TestNotLocal(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how))
		n := uint64(0)
		for _, outer6 := range both {
			for _, v6 := range both {
				away := host(farEID.of(v6))
				for _, r := range []fib.Route{
					to(away, farRLOC.v4), {EID: away, Do: fib.Native}, {EID: away, Do: fib.Miss}, {},
				} {
					l.del(away)
					if r.Do != 0 {
						l.set(r)
					}
					l.sendWire(fromTo(farRLOC.of(outer6), selfRLOC.of(outer6), vmEID.of(v6), farEID.of(v6)))
					n++
					l.wantDrops("not-local", n)
				}
				l.wantEvent(fib.Event{Kind: fib.EventNotLocal, EID: away, RLOC: farRLOC.of(outer6).String()})
				l.noEvent() // the others came within a second
				l.up.none()
				l.wire.none()
				moved := to(away, farRLOC.v4)
				moved.Transit, moved.Moved = true, true
				l.set(moved)
				for range 2 {
					l.sendWire(fromTo(farRLOC.of(outer6), selfRLOC.of(outer6), vmEID.of(v6), farEID.of(v6)))
					l.wire.want()
				}
				l.wantEvent(fib.Event{Kind: fib.EventMoved, EID: away, RLOC: farRLOC.of(outer6).String()})
				l.noEvent()
			}
		}
	}
}

// TestAnchorChecks: what a D-ETR takes from whom.
func TestAnchorChecks(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how), asAnchor)
		for _, v6 := range both {
			r := to(host(farEID.of(v6)), farRLOC.v4)
			r.Transit = true
			out := to(host(outEID.of(v6)), outRLOC.v4)
			out.Transit = true
			l.set(r, out)
			for _, outer6 := range both {
				cloud, foreign, self := farRLOC.of(outer6), outRLOC.of(outer6), selfRLOC.of(outer6)
				was := l.d.Drops()
				for _, c := range []struct {
					what     string
					rloc     netip.Addr
					src, dst netip.Addr
					drop     string
				}{
					{"from outside to a VM", foreign, outEID.of(v6), farEID.of(v6), ""},
					{"from a VM to another", cloud, vmEID.of(v6), farEID.of(v6), ""},
					{"from a VM to another LISP site", cloud, vmEID.of(v6), outEID.of(v6), ""},
					{"from outside to outside", foreign, outEID.of(v6), outEID.of(v6), "foreign-destination"},
					{"from outside, as if from a VM", foreign, vmEID.of(v6), farEID.of(v6), "spoofed-source"},
				} {
					l.sendWire(fromTo(c.rloc, self, c.src, c.dst))
					if c.drop != "" {
						l.wantDrops(c.drop, was[c.drop]+1)
						continue
					}
					if f := l.wire.recv(soon); f == nil {
						t.Errorf("%s, %s: %s: nothing came", how, name(v6, outer6), c.what)
					}
				}
				// What is not known yet is asked for: to the outside for a VM, and to a VM for anybody.
				for _, c := range []struct{ rloc, dst netip.Addr }{{cloud, netip.MustParseAddr("203.0.113.77")}, {foreign, netip.MustParseAddr("198.51.100.77")}} {
					src := vmEID.v4
					if c.rloc == foreign {
						src = outEID.v4
					}
					l.sendWire(fromTo(c.rloc, self, src, c.dst))
					if u, ok := fib.DecodeUp(l.up.want()); !ok || u != (fib.Up{Reason: fib.UpMiss, Flags: fib.UpTransit}) {
						t.Errorf("went up as %+v", u)
					}
				}
			}
		}
		l.wire.none()
	}
}

// TestReencapsulated compares every byte of what a D-ETR makes of a LISP packet.
func TestReencapsulated(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how), asAnchor)
		for _, in6 := range both {
			for _, out6 := range both {
				for _, inner6 := range both {
					r := to(host(farEID.of(inner6)), farRLOC.of(out6))
					r.Transit = true
					l.set(r)
					inner := udp(peerMAC, peerMAC, header{vmEID.of(inner6), farEID.of(inner6), 33, 0xb9}, 1000, 2000, []byte("hello"))[14:]
					// One hop was lost on the way.
					l.sendWire(lispFrame(header{selfRLOC.of(in6).Next(), selfRLOC.of(in6), 33, 0xb9}, 4000, 0, inner))
					got := l.wire.recv(soon)
					if got == nil {
						t.Fatalf("%s: %s, then %s: nothing came; drops: %v", how, name(inner6, in6), name(inner6, out6), l.d.Drops())
					}
					checkEncapsulated(t, got, inner, 0, out6)
				}
			}
		}
	}
}

// TestReplay: a packet that bears UDP source port 4341 is a replay, if it comes from the cloud, and stays
// one when it is sent on.
func TestReplay(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, withDecap(how), asAnchor)
		held := fib.Route{EID: host(vmEID.v4), Do: fib.Hold, Hold: 3}
		on := to(host(farEID.v4), farRLOC.v4)
		on.Transit = true
		l.set(held, on)
		replay := func(rloc, src, dst netip.Addr) []byte {
			return lispFrame(header{src: rloc, dst: selfRLOC.v4}, 4341, 0, udp(peerMAC, peerMAC, header{src: src, dst: dst}, 1, 2, nil)[14:])
		}
		for _, c := range []struct {
			rloc, src netip.Addr
			flags     fib.UpFlags
			sport     bool
		}{
			{farRLOC.v4, farEID.v4, fib.UpTransit | fib.UpReplay, true},
			{outRLOC.v4, outEID.v4, fib.UpTransit, false},
		} {
			l.sendWire(replay(c.rloc, c.src, vmEID.v4))
			if u, ok := fib.DecodeUp(l.up.want()); !ok || u != (fib.Up{Reason: fib.UpHold, Flags: c.flags, Hold: 3}) {
				t.Errorf("from %v: went up as %+v", c.rloc, u)
			}
			l.sendWire(replay(c.rloc, c.src, farEID.v4))
			if sport := binary.BigEndian.Uint16(l.wire.want()[34:]); (sport == 4341) != c.sport {
				t.Errorf("from %v: sent on with source port %d", c.rloc, sport)
			}
		}
		// And Go makes one: it does not lose a hop for it.
		f := udp(peerMAC, peerMAC, header{src: vmEID.v4, dst: farEID.v4, ttl: 1}, 1, 2, nil)
		fib.Down{Do: fib.DownForward, Flags: fib.DownReplay | fib.DownTransit}.Append(f[:0])
		l.up.send(f)
		got := l.wire.want()
		if sport := binary.BigEndian.Uint16(got[34:]); sport != 4341 || !bytes.Equal(got[50:], f[14:]) {
			t.Errorf("replayed with source port %d: % x", sport, got)
		}
	}
}

// TestUpstream: a D-ETR brings into LISP what comes from the Internet for its EIDs, and nothing else.
func TestUpstream(t *testing.T) {
	l := newLab(t, asAnchor)
	inet := newSpace(t)
	veth(l.space, "up0", inet, "inet0")
	upIf := l.index("up0")
	var err error
	l.do(func() { err = l.d.AttachUpstream(upIf) })
	l.must(err)
	wire := inet.packet("inet0")
	send := func(f []byte) {
		copy(f, l.link("up0").Attrs().HardwareAddr)
		wire.send(f)
	}
	for _, v6 := range both {
		l.set(to(host(farEID.of(v6)), farRLOC.of(v6)))
		in := udp(peerMAC, peerMAC, header{src: outEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("hello"))
		send(in)
		got := l.wire.want()
		if n := map[bool]int{false: 36, true: 56}[v6]; !bytes.Equal(got[14+n:], hop(in[14:])) {
			t.Fatalf("got % x, want % x", got[14+n:], hop(in[14:]))
		}
		// Too large for the tunnel: up, for an ICMP error.
		send(udp(peerMAC, peerMAC, header{src: outEID.of(v6), dst: farEID.of(v6)}, 1, 2, make([]byte, 1440)))
		if u, ok := fib.DecodeUp(l.up.want()); !ok || u != (fib.Up{Reason: fib.UpTooBig, Seq: 1444}) {
			t.Errorf("went up as %+v", u)
		}
		was := l.d.Drops()
		send(udp(peerMAC, peerMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
		l.wantDrops("spoofed-source", was["spoofed-source"]+1)
		// Not for us.
		send(udp(peerMAC, peerMAC, header{src: outEID.of(v6), dst: outEID.of(v6).Next()}, 1, 2, nil))
		l.wire.none()
		// Another LISP site may come in here, one that says it is the cloud may not.
		r := to(host(farEID.of(v6)), farRLOC.of(v6))
		r.Transit = true
		l.set(r)
		send(fromTo(outRLOC.of(v6), selfRLOC.of(v6), outEID.of(v6), farEID.of(v6)))
		l.wire.want()
		send(fromTo(farRLOC.of(v6), selfRLOC.of(v6), vmEID.of(v6), farEID.of(v6)))
		l.wantDrops("spoofed-rloc", was["spoofed-rloc"]+1)
	}
}

// TestNative: a D-ETR forwards by the host's routes what is not LISP.
func TestNative(t *testing.T) {
	for _, how := range []string{"tc", "xdp"} {
		l := newLab(t, asAnchor, withDecap(how))
		inet := newSpace(t)
		veth(l.space, "up0", inet, "inet0")
		l.addr("up0", "100.65.1.2/24")
		l.addr("up0", "2001:db8:165::2/64")
		l.sysctl("ipv4/conf/all/forwarding", "1")
		l.sysctl("ipv6/conf/all/forwarding", "1")
		l.quiet("up0")
		hop1 := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
		wire := inet.packet("inet0")
		l.route("192.0.2.0/24", "100.65.1.1", "up0")
		l.route("2001:db8:c::/64", "2001:db8:165::1", "up0")
		l.neigh("up0", "100.65.1.1", hop1)
		l.neigh("up0", "2001:db8:165::1", hop1)
		for _, v6 := range both {
			r := fib.Route{EID: host(outEID.of(v6)), Do: fib.Native}
			l.set(r)
			for _, outer6 := range both {
				f := fromTo(farRLOC.of(outer6), selfRLOC.of(outer6), vmEID.of(v6), outEID.of(v6))
				inner := bytes.Clone(f[14+map[bool]int{false: 36, true: 56}[outer6]:])
				l.sendWire(f)
				got := wire.want()
				if !bytes.Equal(got[14:], hop(inner)) || !bytes.Equal(got[:6], hop1) {
					t.Fatalf("%s, %s: got % x, want % x", how, name(v6, outer6), got, hop(inner))
				}
			}
			// One that has lived too long gets an ICMP error from the host's stack, which finds its way
			// into the tunnel by the route to lisp0.
			l.set(to(host(vmEID.of(v6)), farRLOC.v4))
			p := udp(peerMAC, peerMAC, header{src: vmEID.of(v6), dst: outEID.of(v6), ttl: 1}, 1, 2, nil)[14:]
			l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4, ttl: 64}, 0xc001, 0, p))
			got := l.wire.want()[50:]
			proto, dst := got[9], got[16:20]
			if v6 {
				proto, dst = got[6], got[24:40]
			}
			if want := map[bool]byte{false: 1, true: 58}[v6]; proto != want || !bytes.Equal(dst, vmEID.of(v6).AsSlice()) {
				t.Fatalf("no ICMP error to the VM but % x", got)
			}
		}
		// One that is too large for the way out gets one too: IPv6's least MTU does not fit this.
		l.must(l.nl.LinkSetMTU(l.link("up0"), 1280))
		for _, v6 := range both {
			p := udp(peerMAC, peerMAC, header{src: vmEID.of(v6), dst: outEID.of(v6)}, 1, 2, make([]byte, 1300))[14:]
			l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, p))
			got := l.wire.want()[50:]
			kind, code, mtu := got[20], got[21], int(binary.BigEndian.Uint16(got[26:]))
			want := [3]int{3, 4, 1280} // fragmentation needed (RFC 1191)
			if v6 {
				kind, code, mtu = got[40], got[41], int(binary.BigEndian.Uint32(got[44:]))
				want = [3]int{2, 0, 1280} // packet too big (RFC 4443)
			}
			if have := [3]int{int(kind), int(code), mtu}; have != want {
				t.Fatalf("ICMP type, code, MTU %v, want %v", have, want)
			}
		}
	}
}

// TestOneLeg: a D-ETR whose one interface is both underlay and upstream, in whatever order it is told.
func TestOneLeg(t *testing.T) {
	for _, upstreamFirst := range both {
		l := newLab(t, asAnchor)
		var err error
		l.do(func() {
			if upstreamFirst {
				err = l.d.Detach(l.under)
			}
			if err == nil {
				err = l.d.AttachUpstream(l.under)
			}
			if err == nil {
				err = l.d.AttachUnderlay(l.under)
			}
		})
		l.must(err)
		for _, v6 := range both {
			r := to(host(farEID.of(v6)), farRLOC.of(v6))
			r.Transit = true
			l.set(r)
			l.sendWire(fromTo(farRLOC.of(v6), selfRLOC.of(v6), vmEID.of(v6), farEID.of(v6)))
			l.wire.want()
			l.sendWire(udp(peerMAC, peerMAC, header{src: outEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
			l.wire.want()
		}
		if n := l.d.Drops()["spoofed-rloc"]; n != 0 {
			t.Errorf("%d packets of the cloud were taken for spoofed", n)
		}
		l.do(func() { err = l.d.Detach(l.under) })
		l.must(err)
		l.sendWire(udp(peerMAC, peerMAC, header{src: outEID.v4, dst: farEID.v4}, 1, 2, nil))
		l.sendWire(fromTo(farRLOC.v4, selfRLOC.v4, vmEID.v4, farEID.v4))
		if f := l.wire.recv(50 * time.Millisecond); f != nil && f[23] == 17 {
			t.Errorf("still forwards:\n%s", show(f)) // the host may answer that it has no such port
		}
	}
}

// TestBetweenVMs: two VMs of one xTR reach each other without leaving it.
func TestBetweenVMs(t *testing.T) {
	l := newLab(t)
	other := l.tap("tap1", gatewayMAC.String(), tapOffload)
	index := l.index("tap1")
	var err error
	l.do(func() { _, err = l.d.AttachVM(index, Port{}) })
	l.must(err)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x20}
	for _, v6 := range both {
		l.set(l.home(vmEID.of(v6)), fib.Route{EID: host(farEID.of(v6)), Do: fib.Deliver, If: index, MAC: mac})
		sent := udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("hi"))
		l.vm.send(sent)
		got := other.want()
		want := append(append(append([]byte{}, mac...), gatewayMAC...), sent[12:14]...)
		want = append(want, hop(sent[14:])...)
		if !bytes.Equal(got, want) {
			t.Fatalf("got  % x\nwant % x", got, want)
		}
	}
	l.wire.none()
}

// TestStackPort: the host's stack, and so its filters, see the packets of such a port in both directions.
func TestStackPort(t *testing.T) {
	l := newLab(t, throughStack)
	l.sysctl("ipv4/conf/all/forwarding", "1")
	l.sysctl("ipv6/conf/all/forwarding", "1")
	l.sysctl("ipv4/conf/all/rp_filter", "0")
	l.sysctl("ipv4/conf/tap0/rp_filter", "0")
	l.sysctl("ipv4/conf/u0/rp_filter", "0")
	for _, v6 := range both {
		l.bothHome(v6)
		sent := udp(vmMAC, gatewayMAC, header{src: vmEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("hi"))
		l.vm.send(sent)
		got := l.wire.want()
		if !bytes.Equal(got[14+map[bool]int{false: 36, true: 56}[v6]:], hop(sent[14:])) {
			t.Fatalf("got % x, want % x", got, hop(sent[14:]))
		}
		f := fromTo(farRLOC.of(v6), selfRLOC.of(v6), farEID.of(v6), vmEID.of(v6))
		inner := bytes.Clone(f[14+map[bool]int{false: 36, true: 56}[v6]:])
		l.sendWire(f)
		want := append(append(append([]byte{}, vmMAC...), gatewayMAC...), etherType(v6)...)
		if got := l.vm.want(); !bytes.Equal(got, append(want, hop(inner)...)) {
			t.Fatalf("got  % x\nwant % x", got, append(want, hop(inner)...))
		}
		// A miss goes up like any other; what is spoofed does not get into the stack.
		l.del(host(farEID.of(v6)))
		l.vm.send(sent)
		if u, ok := fib.DecodeUp(l.up.want()); !ok || u != (fib.Up{Reason: fib.UpMiss}) {
			t.Errorf("went up as %+v", u)
		}
		was := l.d.Drops()["unknown-source"]
		l.vm.send(udp(vmMAC, gatewayMAC, header{src: outEID.of(v6), dst: farEID.of(v6)}, 1, 2, nil))
		l.wantDrops("unknown-source", was+1)
		// When the VM has left, packets of the stack find the way too.
		l.set(to(host(vmEID.of(v6)), farRLOC.v4))
		l.vm.none()
	}
}
