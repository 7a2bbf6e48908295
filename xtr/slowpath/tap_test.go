package slowpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/google/gopacket/layers"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// inNamespace runs f in a network namespace of its own, on a thread that ends with it.
func inNamespace(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread, and with it the namespace, goes
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		f()
	}()
	<-done
}

// openTAP makes a TAP like lisp0: several queues, vnet headers, super-packets whole.
func openTAP(t testing.TB, name string, queues int) (files []*os.File) {
	t.Helper()
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			t.Fatal(err)
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			t.Fatal(err)
		}
		const uso4, uso6 = 0x20, 0x40
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN|uso4|uso6); err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	return files
}

// tapDoor is a TAP whose MAC address and neighbor entry are the metadata that the data plane would
// write, so that the kernel's own packets come up with it; and a packet socket that sees what comes
// down.
type tapDoor struct {
	t      testing.TB
	files  []*os.File
	kernel *fakeKernel // counts only
	raw    int
	conn   *net.UDPConn
}

func newTAPDoor(t testing.TB, up fib.Up, queues, gso int) *tapDoor {
	t.Helper()
	d := &tapDoor{t: t, kernel: newFakeKernel(t, 0), files: openTAP(t, "lisp0", queues)}
	link, err := netlink.LinkByName("lisp0")
	if err != nil {
		t.Fatal(err)
	}
	door := up.Append(nil)
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: net.CIDRMask(24, 32)}}
	for _, err := range []error{
		os.WriteFile("/proc/sys/net/ipv6/conf/lisp0/disable_ipv6", []byte("1"), 0),
		netlink.LinkSetHardwareAddr(link, door[6:12]),
		netlink.LinkSetMTU(link, 9000),
		netlink.LinkSetTxQLen(link, 10000),
		netlink.LinkSetUp(link),
		netlink.AddrAdd(link, addr),
		netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.IPv4(10, 9, 0, 2), HardwareAddr: door[:6], State: netlink.NUD_PERMANENT}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(d.raw) })
	for _, o := range [][2]int{{unix.PACKET_VNET_HDR, 1}, {unix.PACKET_IGNORE_OUTGOING, 1}} {
		if err := unix.SetsockoptInt(d.raw, unix.SOL_PACKET, o[0], o[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptInt(d.raw, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(d.raw, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
	if err := unix.Bind(d.raw, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if gso > 0 {
				failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, gso)
			}
		})
		if failed != nil {
			return failed
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", "10.9.0.1:4000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d.conn = conn.(*net.UDPConn)
	return d
}

func (d *tapDoor) start(cfg Config) *SlowPath {
	d.t.Helper()
	s, err := New(cfg, d.files, d.kernel, slog.New(slog.DiscardHandler))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	})
	return s
}

func (d *tapDoor) send(b []byte) {
	d.t.Helper()
	if _, err := d.conn.WriteTo(b, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 4001}); err != nil {
		d.t.Fatal(err)
	}
}

// down reads a frame that came down.
func (d *tapDoor) down() written {
	d.t.Helper()
	b := make([]byte, 1<<17)
	n, err := unix.Read(d.raw, b)
	if err != nil {
		d.t.Fatalf("nothing came down: %v", err)
	}
	b = b[:n]
	down, ok := fib.DecodeDown(b[vnetMinLen:])
	if !ok {
		d.t.Fatalf("no metadata: % x", b[:min(n, 40)])
	}
	return written{Down: down, vnet: b[:vnetMinLen], packet: b[vnetMinLen+etherLen:], ether: binary.BigEndian.Uint16(b[vnetMinLen+12:])}
}

// The kernel's super-packet of datagrams comes down as datagrams with right checksums.
func TestTAPSegments(t *testing.T) {
	inNamespace(t, func() {
		d := newTAPDoor(t, fib.Up{Reason: fib.UpSegment, IID: 7, Port: 2, Flags: fib.UpTransit}, 2, 1000)
		s := d.start(Config{})
		data := pattern(5500)
		d.send(data)
		var got []byte
		for range 6 {
			w := d.down()
			if w.Down != (fib.Down{Do: fib.DownForward, IID: 7, Flags: fib.DownTransit}) || gsoType(w.vnet) != gsoNone || w.vnet[0]&vnetNeedsChecksum != 0 {
				t.Fatalf("%+v", w)
			}
			got = append(got, decode(t, w.packet).Layer(layers.LayerTypeUDP).(*layers.UDP).Payload...)
		}
		if !bytes.Equal(got, data) {
			t.Fatal("data differ")
		}
		if n := s.Counters()["up_segment"]; n != 1 {
			t.Fatalf("%d frames came up", n)
		}
	})
}

// A super-packet that was held goes down whole, with the offloads that it came up with.
func TestTAPKeepsOffloads(t *testing.T) {
	inNamespace(t, func() {
		d := newTAPDoor(t, fib.Up{Reason: fib.UpHold, Hold: 9, Seq: 5}, 1, 1000)
		s := d.start(Config{})
		data := pattern(5500)
		d.kernel.mu.Lock()
		d.kernel.hold(9).diverted = 6
		d.kernel.mu.Unlock()
		d.send(data)
		deadline := time.Now().Add(2 * time.Second)
		for s.Counters()["up_hold"] == 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		done := make(chan HoldStats, 1)
		s.Flush(9, func(st HoldStats) { done <- st })
		w := d.down()
		if w.Down != (fib.Down{Do: fib.DownForward, Flags: fib.DownReinjected, Hold: 9}) {
			t.Fatalf("metadata %+v", w.Down)
		}
		if gsoType(w.vnet) != gsoUDP || gsoSize(w.vnet) != 1000 || w.vnet[0]&vnetNeedsChecksum == 0 || !bytes.Equal(w.packet[28:], data) {
			t.Fatalf("vnet header % x, %d bytes", w.vnet, len(w.packet))
		}
		// The TAP does not count for us; this many segments is what the data plane would count.
		if err := d.kernel.HoldDropped(9, uint64(segments(w.vnet, w.packet))); err != nil {
			t.Fatal(err)
		}
		if st := <-done; st.Held+st.Passed != 6 || len(st.Dropped) != 0 {
			t.Fatalf("%+v", st)
		}
	})
}

// A packet whose checksum the kernel left to the device, too big and with DF: the quote in the ICMP error
// is what the sender would have sent.
func TestTAPTooBig(t *testing.T) {
	inNamespace(t, func() {
		d := newTAPDoor(t, fib.Up{Reason: fib.UpTooBig, Port: 2, Seq: 1000}, 1, 0)
		d.start(bothGateways)
		d.send(pattern(1200))
		w := d.down()
		p := decode(t, w.packet)
		m := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if m.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || m.Seq != 1000 {
			t.Fatalf("%+v", m)
		}
		quote := append(bytes.Clone(w.packet[28:56]), pattern(1200)...)
		verifyChecksums(t, quote)
	})
}

func TestBlockingQueueIsRefused(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	_ = r.Fd() // makes it blocking
	if _, err := New(Config{}, []*os.File{r}, newFakeKernel(t, 0), slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("no error")
	}
}

// Order through a real device with several queues and flows: hold, flush, live.
func TestTAPKeepsOrder(t *testing.T) {
	inNamespace(t, func() {
		const each = 2000
		d := newTAPDoor(t, fib.Up{Reason: fib.UpHold, Hold: 9}, 2, 0)
		s := d.start(Config{})
		d.kernel.mu.Lock()
		d.kernel.hold(9).diverted = 2 * each
		d.kernel.mu.Unlock()
		to := [2]*net.UDPAddr{{IP: net.IPv4(10, 9, 0, 2), Port: 4001}, {IP: net.IPv4(10, 9, 0, 2), Port: 4002}}
		for i := range each {
			if i == each/2 {
				s.Flush(9, nil)
			}
			for flow := range to {
				if _, err := d.conn.WriteTo(fmt.Appendf(nil, "%d %d", flow, i), to[flow]); err != nil {
					t.Fatal(err)
				}
			}
		}
		var next [2]int
		for range 2 * each {
			var flow, i int
			if _, err := fmt.Sscan(string(d.down().packet[28:]), &flow, &i); err != nil {
				t.Fatal(err)
			}
			if i != next[flow] {
				t.Fatalf("flow %d: packet %d came when %d was due", flow, i, next[flow])
			}
			next[flow]++
		}
		if err := d.kernel.HoldReset(9); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkFlush measures how long a hold of 10,000 packets takes to leave through a real TAP.
func BenchmarkFlush(b *testing.B) {
	inNamespace(b, func() {
		const packets = 10000
		d := newTAPDoor(b, fib.Up{Reason: fib.UpHold, Hold: 9}, 1, 0)
		_ = unix.Close(d.raw)
		s := d.start(Config{Linger: time.Nanosecond})
		payload := pattern(200)
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			before := s.Counters()["up_hold"]
			d.kernel.mu.Lock()
			d.kernel.hold(9).diverted += packets
			d.kernel.mu.Unlock()
			s.Open(9)
			for i := range packets {
				d.send(payload)
				if i%100 == 0 {
					for s.Counters()["up_hold"] < before+uint64(i)-500*min(1, uint64(i)/500) {
						time.Sleep(50 * time.Microsecond)
					}
				}
			}
			for s.Counters()["up_hold"] < before+packets {
				time.Sleep(time.Millisecond)
			}
			sent := s.Counters()["reinjected"]
			done := make(chan struct{})
			b.StartTimer()
			s.Flush(9, func(HoldStats) { close(done) })
			for s.Counters()["reinjected"] < sent+packets {
				time.Sleep(100 * time.Microsecond)
			}
			b.StopTimer()
			if err := d.kernel.HoldDropped(9, packets); err != nil {
				b.Fatal(err)
			}
			<-done
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packets, "ns/packet")
	})
}

// BenchmarkLive measures how long a packet that is still diverted during a flush takes from its sender
// through lisp0, the slow path and lisp0 to a packet socket.
func BenchmarkLive(b *testing.B) {
	inNamespace(b, func() {
		d := newTAPDoor(b, fib.Up{Reason: fib.UpHold, Hold: 9}, 1, 0)
		s := d.start(Config{FlushPatience: time.Hour})
		d.kernel.mu.Lock()
		d.kernel.hold(9).diverted = 1 << 40
		d.kernel.mu.Unlock()
		s.Flush(9, nil)
		payload := pattern(200)
		b.ReportAllocs()
		for b.Loop() {
			d.send(payload)
			d.down()
		}
	})
}
