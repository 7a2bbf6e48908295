package kernel

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// keeper is the part of the slow path that keeps the packets of a hold and gives them back.
type keeper struct {
	t    *testing.T
	d    *DataPlane
	hold uint32

	mu    sync.Mutex
	held  [][]byte
	flush bool
	count int // frames that went through it
	stop  chan struct{}
	done  sync.WaitGroup
}

func keep(t *testing.T, d *DataPlane, hold uint32) *keeper {
	k := &keeper{t: t, d: d, hold: hold, stop: make(chan struct{})}
	k.done.Go(k.run)
	t.Cleanup(k.end)
	return k
}

func (k *keeper) end() {
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	k.done.Wait()
}

func (k *keeper) run() {
	q := k.d.Queues()[0]
	b := make([]byte, 70000)
	for {
		select {
		case <-k.stop:
			return
		default:
		}
		k.mu.Lock()
		k.out(q)
		k.mu.Unlock()
		q.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := q.Read(b)
		if err != nil {
			continue
		}
		up, ok := fib.DecodeUp(b[10:n])
		if !ok || up.Reason != fib.UpHold || uint32(up.Hold) != k.hold {
			continue
		}
		k.mu.Lock()
		k.count++
		k.held = append(k.held, append([]byte(nil), b[:n]...))
		k.out(q)
		k.mu.Unlock()
	}
}

// out gives back what is held, if it is time.
func (k *keeper) out(q *os.File) {
	if !k.flush {
		return
	}
	for _, f := range k.held {
		k.reinject(q, f)
	}
	k.held = nil
}

func (k *keeper) reinject(q *os.File, f []byte) {
	up, _ := fib.DecodeUp(f[10:])
	down := fib.Down{Do: fib.DownForward, IID: up.IID, Flags: fib.DownReinjected, Hold: up.Hold}
	if up.Flags&fib.UpTransit != 0 {
		down.Flags |= fib.DownTransit
	}
	down.Append(f[10:10])
	if _, err := q.Write(f); err != nil {
		k.t.Error(err)
	}
}

func (k *keeper) setFlush(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flush = on
}

// caughtUp waits until nothing is missing.
func (k *keeper) caughtUp() {
	k.t.Helper()
	for range 2000 {
		out, in, err := k.d.HoldCounters(k.hold)
		if err != nil {
			k.t.Fatal(err)
		}
		if out == in {
			return
		}
		time.Sleep(time.Millisecond)
	}
	out, in, _ := k.d.HoldCounters(k.hold)
	k.t.Fatalf("%d packets were diverted, %d came back", out, in)
}

// stream writes numbered packets at some 20,000 a second until stop; it says how many.
func stream(c *conn, make func(n uint32) []byte, stop chan struct{}) (sent uint32) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return sent
		case <-tick.C:
			for range 20 {
				c.send(make(sent))
				sent++
			}
		}
	}
}

// inOrder reads numbered packets until there is none for a while after the end, and wants them to be
// 0, 1, 2, ...
func inOrder(t *testing.T, c *conn, at int, end chan struct{}) (got uint32) {
	for {
		f := c.recv(200 * time.Millisecond)
		if f == nil {
			select {
			case <-end:
				return got
			default:
				continue
			}
		}
		if len(f) < at+4 {
			continue
		}
		if n := binary.BigEndian.Uint32(f[at:]); n != got {
			t.Errorf("packet %d came as number %d", n, got)
			return got
		}
		got++
	}
}

// TestHoldInOrder: while packets flow, an EID goes into a hold and out again, to the VM or to another xTR,
// time and again. Every packet comes, once, and in order.
func TestHoldInOrder(t *testing.T) {
	const hold = 5
	for _, v6 := range both {
		for _, where := range []string{"to the VM", "to another xTR"} {
			t.Run(name(v6, false)+" "+where, func(t *testing.T) {
				l := newLab(t)
				eid := vmEID.of(v6)
				through := l.home(eid)
				out, at := l.vm, 14+28
				if where != "to the VM" {
					through = to(host(eid), farRLOC.v4)
					through.Transit = true
					out, at = l.wire, 14+36+28
				}
				if v6 {
					at += 20
				}
				through.Hold = hold
				held := fib.Route{EID: host(eid), Do: fib.Hold, Hold: hold}
				l.set(held)
				k := keep(t, l.d, hold)
				dst := l.link("u0").Attrs().HardwareAddr
				packet := func(n uint32) []byte {
					inner := udp(peerMAC, peerMAC, header{src: farEID.of(v6), dst: eid}, 1, 2, binary.BigEndian.AppendUint32(nil, n))[14:]
					f := lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, inner)
					copy(f, dst)
					return f
				}
				stop, end := make(chan struct{}), make(chan struct{})
				var sent, got uint32
				var sender, reader sync.WaitGroup
				sender.Go(func() { sent = stream(l.wire, packet, stop) })
				reader.Go(func() { got = inOrder(t, out, at, end) })
				for range 15 {
					time.Sleep(10 * time.Millisecond)
					l.set(through)
					k.setFlush(true)
					time.Sleep(10 * time.Millisecond)
					k.caughtUp()
					k.setFlush(false)
					l.set(held)
				}
				l.set(through)
				k.setFlush(true)
				time.Sleep(20 * time.Millisecond)
				close(stop)
				sender.Wait()
				k.caughtUp()
				close(end)
				reader.Wait()
				if sent != got {
					t.Fatalf("%d packets were sent, %d came; drops: %v", sent, got, l.d.Drops())
				}
				if k.count == 0 || k.count >= int(sent) {
					t.Fatalf("%d of %d packets went through the hold", k.count, sent)
				}
				t.Logf("%d of %d packets went through the hold", k.count, sent)
			})
		}
	}
}

// TestHoldCounts: what Go drops, and what it puts in without its having been diverted, keeps the books
// even.
func TestHoldCounts(t *testing.T) {
	const hold = 9
	l := newLab(t)
	through := l.home(vmEID.v4)
	through.Hold = hold
	l.set(fib.Route{EID: host(vmEID.v4), Do: fib.Hold, Hold: hold})
	inner := udp(peerMAC, peerMAC, header{src: farEID.v4, dst: vmEID.v4}, 1, 2, []byte("x"))[14:]
	send := func() {
		l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, inner))
	}
	send()
	held := l.up.want()
	if up, ok := fib.DecodeUp(held); !ok || up != (fib.Up{Reason: fib.UpHold, Hold: hold, Flags: fib.UpTransit}) {
		t.Fatalf("went up as %+v", up)
	}
	l.set(through)
	send() // is diverted: the first one is not back
	if up, ok := fib.DecodeUp(l.up.want()); !ok || up.Reason != fib.UpHold {
		t.Fatalf("went up as %+v", up)
	}
	l.vm.none()
	l.must(l.d.HoldDropped(hold, 2))
	send()
	l.vm.want()
	// One more will come back than was diverted: live packets wait for it.
	l.must(l.d.HoldDropped(hold, ^uint64(0)))
	send()
	l.vm.none()
	l.up.want()
	l.must(l.d.HoldReset(hold))
	send()
	l.vm.want()
	if out, in, err := l.d.HoldCounters(hold); out != 0 || in != 0 || err != nil {
		t.Fatalf("after the reset: %d %d %v", out, in, err)
	}
	if _, _, err := l.d.HoldCounters(nHolds); err == nil {
		t.Fatal("there is no hold 4096")
	}
}

// TestHoldForAVMThatStillRunsElsewhere: with locators, what comes from the underlay waits, and what the VMs here send
// goes to where the VM still runs.
func TestHoldForAVMThatStillRunsElsewhere(t *testing.T) {
	const hold = 6
	for _, v6 := range both {
		t.Run(name(v6, false), func(t *testing.T) {
			l := newLab(t)
			arriving := to(host(farEID.of(v6)), farRLOC.v4)
			arriving.Do, arriving.Hold = fib.Hold, hold
			l.set(l.home(vmEID.of(v6)), arriving)
			outside := func() {
				inner := udp(peerMAC, peerMAC, header{src: outEID.of(v6), dst: farEID.of(v6)}, 1, 2, []byte("from outside"))[14:]
				l.sendWire(lispFrame(header{src: farRLOC.v4, dst: selfRLOC.v4}, 0xc001, 0, inner))
			}
			for range 2 {
				neighbour := udp(vmMAC, gatewayMAC, header{vmEID.of(v6), farEID.of(v6), 33, 0xb9}, 1000, 2000, []byte("hello"))
				l.vm.send(neighbour)
				checkEncapsulated(t, l.wire.want(), neighbour[14:], 0, false)
				outside()
				if up, ok := fib.DecodeUp(l.up.want()); !ok || up.Reason != fib.UpHold || up.Hold != hold || up.Flags != fib.UpTransit {
					t.Fatalf("went up as %+v", up)
				}
			}
			for _, r := range l.d.Routes() {
				if r.EID == arriving.EID && (r.Do != fib.Hold || len(r.Locators) != 1 || r.Locators[0].RLOC != farRLOC.v4 || r.Hold != hold) {
					t.Errorf("the route is told as %+v", r)
				}
			}
			// Without locators everything waits.
			arriving.Locators = nil
			l.set(arriving)
			l.vm.send(udp(vmMAC, gatewayMAC, header{vmEID.of(v6), farEID.of(v6), 33, 0xb9}, 1000, 2000, []byte("hello")))
			if up, ok := fib.DecodeUp(l.up.want()); !ok || up.Reason != fib.UpHold {
				t.Fatalf("went up as %+v", up)
			}
		})
	}
}
