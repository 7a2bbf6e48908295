package slowpath

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// fakeQueue is a queue of lisp0 in memory. What is fed is read; what is written goes to sink.
type fakeQueue struct {
	up     chan []byte
	closed chan struct{}
	once   sync.Once
	sink   func([]byte) error
}

func newFakeQueue(sink func([]byte) error) *fakeQueue {
	return &fakeQueue{up: make(chan []byte, 1024), closed: make(chan struct{}), sink: sink}
}

func (q *fakeQueue) Read(b []byte) (int, error) {
	select {
	case f := <-q.up:
		return copy(b, f), nil
	case <-q.closed:
		return 0, io.EOF
	}
}

func (q *fakeQueue) Write(b []byte) (int, error) { return len(b), q.sink(b) }

func (q *fakeQueue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// fakeKernel is the data plane's part of the agreement about holds, ports and what comes down. It
// diverts exactly as the BPF programs do.
type fakeKernel struct {
	t      testing.TB
	queues []*fakeQueue

	mu      sync.Mutex
	holds   map[uint32]*fakeHold
	given   map[uint16]uint64
	down    []written
	fail    error // of the next writes
	onWrite func(written)
}

type fakeHold struct {
	holding                       bool
	diverted, reinjected, dropped uint64
	resets                        int
}

// written is a frame that came down.
type written struct {
	fib.Down
	queue  int
	vnet   []byte
	packet []byte
	ether  uint16
}

func newFakeKernel(t testing.TB, queues int) *fakeKernel {
	k := &fakeKernel{t: t, holds: make(map[uint32]*fakeHold), given: make(map[uint16]uint64)}
	for i := range queues {
		k.queues = append(k.queues, newFakeQueue(func(b []byte) error { return k.write(i, b) }))
	}
	return k
}

func (k *fakeKernel) write(queue int, b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	if len(b) < vnetMinLen+etherLen {
		return errors.New("short frame")
	}
	d, ok := fib.DecodeDown(b[vnetMinLen:])
	if !ok {
		return errors.New("no metadata")
	}
	w := written{Down: d, queue: queue,
		vnet:   append([]byte(nil), b[:vnetMinLen]...),
		packet: append([]byte(nil), b[vnetMinLen+etherLen:]...),
		ether:  uint16(b[vnetMinLen+12])<<8 | uint16(b[vnetMinLen+13]),
	}
	k.down = append(k.down, w)
	if d.Flags&fib.DownReinjected != 0 {
		k.hold(uint32(d.Hold)).reinjected += uint64(segments(w.vnet, w.packet))
	}
	if k.onWrite != nil {
		k.onWrite(w)
	}
	return nil
}

func (k *fakeKernel) hold(id uint32) *fakeHold {
	h := k.holds[id]
	if h == nil {
		h = &fakeHold{}
		k.holds[id] = h
	}
	return h
}

func (k *fakeKernel) HoldCounters(id uint32) (uint64, uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.hold(id)
	return h.diverted, h.reinjected + h.dropped, nil
}

func (k *fakeKernel) HoldReset(id uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.hold(id)
	*h = fakeHold{holding: h.holding, resets: h.resets + 1}
	return nil
}

func (k *fakeKernel) HoldDropped(id uint32, n uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hold(id).dropped += n
	return nil
}

func (k *fakeKernel) PortCounters(port uint16) (fib.PortCount, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fib.PortCount{Given: k.given[port]}, nil
}

// arrive is a packet for an EID whose route has the hold id. It goes up if the route is Hold or what was
// diverted is not all back, otherwise it is out at once, as if it had come down.
func (k *fakeKernel) arrive(queue int, id uint32, flags fib.UpFlags, vnet, packet []byte) {
	if vnet == nil {
		vnet = make([]byte, vnetMinLen)
	}
	k.mu.Lock()
	h := k.hold(id)
	if !h.holding && h.diverted == h.reinjected+h.dropped {
		w := written{queue: queue, vnet: vnet, packet: packet}
		k.down = append(k.down, w)
		k.mu.Unlock()
		return
	}
	h.diverted += uint64(segments(vnet, packet))
	k.mu.Unlock()
	k.feed(queue, fib.Up{Reason: fib.UpHold, Hold: uint16(id), Flags: flags}, vnet, packet)
}

// give is a packet that a port is given, with its copy.
func (k *fakeKernel) give(port uint16, packet []byte) {
	k.mu.Lock()
	k.given[port]++
	n := k.given[port]
	k.mu.Unlock()
	k.feed(0, fib.Up{Reason: fib.UpCopy, Port: port, Seq: uint32(n)}, nil, packet)
}

// feed hands a frame up. A nil vnet header asks for no offload.
func (k *fakeKernel) feed(queue int, up fib.Up, vnet, packet []byte) {
	k.queues[queue].up <- frameBytes(up, vnet, packet)
}

func frameBytes(up fib.Up, vnet, packet []byte) []byte {
	if vnet == nil {
		vnet = make([]byte, vnetMinLen)
	}
	b := append([]byte(nil), vnet...)
	b = up.Append(b)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		b = append(b, 0x86, 0xdd)
	} else {
		b = append(b, 0x08, 0x00)
	}
	return append(b, packet...)
}

func (k *fakeKernel) set(id uint32, holding bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hold(id).holding = holding
}

// take returns what came down since the last call.
func (k *fakeKernel) take() []written {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.down
	k.down = nil
	return d
}

func (k *fakeKernel) counters(id uint32) fakeHold {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *k.hold(id)
}

// start runs a slow path on the fake's queues until the test ends.
func (k *fakeKernel) start(cfg Config) *SlowPath {
	k.t.Helper()
	s, err := New(cfg, k.queues, k, slog.New(slog.DiscardHandler))
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	k.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			k.t.Errorf("Run: %v", err)
		}
	})
	return s
}

// pkt builds an IP packet from layers, lengths and checksums set.
func pkt(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	for _, l := range ls {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			for _, n := range ls {
				if n, ok := n.(gopacket.NetworkLayer); ok {
					if err := c.SetNetworkLayerForChecksum(n); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), b.Bytes()...)
}

func ip4(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, IHL: 5, TTL: 63, Id: 0x1234, Protocol: proto, SrcIP: parseIP(src), DstIP: parseIP(dst)}
}

func ip6(src, dst string, proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 63, NextHeader: proto, SrcIP: parseIP(src), DstIP: parseIP(dst)}
}
