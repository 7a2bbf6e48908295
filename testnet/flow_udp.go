package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketBuffer is the receive buffer in bytes of every flow's socket: a held second of the fastest flow fits.
const socketBuffer = 64 << 20

// UDPFlow describes a pair of UDP streams between two endpoints, one in each direction and counted by itself.
type UDPFlow struct {
	Name    string // of the stream A -> B
	Reverse string // of the stream B -> A; "" = none
	A, B    *Namespace
	AddrA   netip.Addr
	AddrB   netip.Addr
	Port    uint16 // at both ends
	Rate    int    // packets a second in each direction
	Size    int    // bytes of payload, at least 24; 0 = 128
}

// AddUDP adds a pair of UDP streams.
func (f *Flows) AddUDP(u UDPFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u.Size = max(u.Size, stampLen)
	if u.Size == stampLen {
		u.Size = 128
	}
	p := &udpPair{conf: u, ab: newStream(u.Name, f.stream(), u.Rate)}
	if u.Reverse != "" {
		p.ba = newStream(u.Reverse, f.stream(), u.Rate)
	}
	f.flows = append(f.flows, p)
}

// stream is one direction: a paced sender here, a counter there.
type stream struct {
	name string
	id   uint32
	rate int

	counter counter
	sent    atomic.Uint64
	errs    atomic.Uint64
	lastErr atomic.Pointer[string]
	drops   atomic.Uint32 // by the receiving socket
	stopped time.Time     // when the sender ended
}

func newStream(name string, id uint32, rate int) *stream {
	return &stream{name: name, id: id, rate: rate}
}

// catchUp bounds how far behind its schedule a sender may be and still send all that is due at once: a tester that
// was itself held up makes no burst of it.
const catchUp = 20 * time.Millisecond

// pace calls send for each packet at its time until ctx ends.
func (s *stream) pace(ctx context.Context, send func(stamp) error) {
	step := time.Second / time.Duration(s.rate)
	next := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(next) > catchUp {
			next = now
		}
		for ; !next.After(now); next = next.Add(step) {
			seq := s.sent.Add(1) - 1
			if err := send(stamp{s.id, seq, time.Now().UnixNano()}); err != nil {
				s.errs.Add(1)
				text := err.Error()
				s.lastErr.Store(&text)
			}
		}
		// Not a timer per packet: a scheduler tick is about a millisecond, and what is due goes out together.
		time.Sleep(max(time.Until(next), 500*time.Microsecond))
	}
	s.stopped = time.Now()
}

func (s *stream) outstanding() uint64 {
	s.counter.mu.Lock()
	defer s.counter.mu.Unlock()
	sent := s.sent.Load()
	return sent - min(sent, s.counter.received)
}

func (s *stream) report(windows []Window) FlowReport {
	sent := s.sent.Load()
	s.counter.mu.Lock()
	r := FlowReport{Name: s.name, Unit: "packets", Sent: sent, Received: s.counter.received,
		Duplicated: s.counter.duplicated + s.counter.foreign, Reordered: s.counter.reordered,
		DelayMaxMS: ms(s.counter.delayMax), TesterDrops: uint64(s.drops.Load()), SendErrors: s.errs.Load()}
	s.counter.mu.Unlock()
	missing := sent - min(sent, r.Received)
	r.Lost = missing - min(missing, r.TesterDrops)
	if e := s.lastErr.Load(); e != nil {
		r.LastError = *e
	}
	if windows != nil {
		r.gapsOf(&s.counter, windows)
		r.Missing = s.counter.missing(sent, 20)
	}
	return r
}

// udpPair is a UDPFlow that runs.
type udpPair struct {
	conf UDPFlow
	ab   *stream
	ba   *stream // nil if there is no reverse
	a, b *net.UDPConn

	cancel    context.CancelFunc
	senders   sync.WaitGroup
	receivers sync.WaitGroup
}

func (p *udpPair) start(ctx context.Context) (err error) {
	if p.a, err = listenUDP(p.conf.A, p.conf.AddrA, p.conf.Port); err != nil {
		return err
	}
	if p.b, err = listenUDP(p.conf.B, p.conf.AddrB, p.conf.Port); err != nil {
		return err
	}
	p.receivers.Go(func() { receiveUDP(p.b, p.ab) })
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.send(sending, p.ab, p.a, p.conf.AddrB)
	if p.ba != nil {
		p.receivers.Go(func() { receiveUDP(p.a, p.ba) })
		p.send(sending, p.ba, p.b, p.conf.AddrA)
	}
	return nil
}

func (p *udpPair) send(ctx context.Context, s *stream, from *net.UDPConn, to netip.Addr) {
	dst := netip.AddrPortFrom(to, p.conf.Port)
	buf := make([]byte, p.conf.Size)
	p.senders.Go(func() {
		s.pace(ctx, func(st stamp) error {
			st.put(buf)
			_, err := from.WriteToUDPAddrPort(buf, dst)
			return err
		})
	})
}

func (p *udpPair) streams() []*stream {
	if p.ba == nil {
		return []*stream{p.ab}
	}
	return []*stream{p.ab, p.ba}
}

func (p *udpPair) stopSending(context.Context) {
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.senders.Wait()
	for _, s := range p.streams() {
		s.counter.end(s.stopped)
	}
}

func (p *udpPair) outstanding() (n uint64) {
	for _, s := range p.streams() {
		n += s.outstanding()
	}
	return n
}

func (p *udpPair) close() error {
	var errs []error
	for _, c := range []*net.UDPConn{p.a, p.b} {
		if c == nil {
			continue
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.receivers.Wait()
	return errors.Join(errs...)
}

func (p *udpPair) report(windows []Window) (out []FlowReport) {
	for _, s := range p.streams() {
		out = append(out, s.report(windows))
	}
	return out
}

// receiveUDP counts what arrives until the socket is closed.
func receiveUDP(c *net.UDPConn, s *stream) {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		n, oobn, _, _, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier packet: it will be missing
		}
		at, drops := ancillary(oob[:oobn])
		s.drops.Store(max(s.drops.Load(), drops))
		if st, ok := parseStamp(buf[:n]); ok && st.stream == s.id {
			s.counter.packet(st.seq, st.sentNS, at)
		}
	}
}

// listenUDP opens a socket in a namespace, with kernel time stamps and the count of what it had to drop.
func listenUDP(n *Namespace, addr netip.Addr, port uint16) (c *net.UDPConn, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return tuneSocket(raw) }}
	err = n.Do(func() error {
		pc, err := lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(addr, port).String())
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("testnet: %s: %w", n.name, err)
	}
	return c, nil
}

func tuneSocket(raw syscall.RawConn) error {
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		for _, o := range [][2]int{
			{unix.SO_RCVBUFFORCE, socketBuffer}, {unix.SO_SNDBUFFORCE, 4 << 20}, {unix.SO_TIMESTAMPNS, 1}, {unix.SO_RXQ_OVFL, 1},
		} {
			if e := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o[0], o[1]); e != nil {
				err = errors.Join(err, os.NewSyscallError("setsockopt", e))
			}
		}
	})
	return errors.Join(ctlErr, err)
}

// ancillary reads the kernel's receive time (CLOCK_REALTIME ns) and the socket's drops so far. Control messages are
// laid out by hand: the parser of package unix allocates per packet.
func ancillary(oob []byte) (atNS int64, drops uint32) {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		l := int(h.Len)
		if l < unix.SizeofCmsghdr || l > len(oob) {
			break
		}
		data := oob[unix.CmsgLen(0):l]
		if h.Level == unix.SOL_SOCKET {
			switch h.Type {
			case unix.SCM_TIMESTAMPNS:
				if len(data) >= int(unsafe.Sizeof(unix.Timespec{})) {
					atNS = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
				}
			case unix.SO_RXQ_OVFL:
				if len(data) >= 4 {
					drops = *(*uint32)(unsafe.Pointer(&data[0]))
				}
			}
		}
		oob = oob[min(unix.CmsgSpace(l-unix.CmsgLen(0)), len(oob)):]
	}
	if atNS == 0 {
		atNS = time.Now().UnixNano()
	}
	return atNS, drops
}
