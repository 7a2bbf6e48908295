package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// socketBuffer is the receive buffer in bytes of every flow's socket: a held second of the fastest flow fits.
const socketBuffer = 64 << 20

// UDPFlow describes a pair of UDP streams between two endpoints, one in each direction and counted by itself.
type UDPFlow struct {
	Name    string // of the stream A -> B
	Reverse string // of the stream B -> A; "" = none
	A, B    Endpoint
	AddrA   netip.Addr
	AddrB   netip.Addr
	// ToA and ToB are by what address the other end reaches A and B; zero = by AddrA and AddrB. They differ where a
	// translator stands between.
	ToA, ToB netip.Addr
	Port     uint16 // at both ends
	Rate     int    // packets a second in each direction
	Size     int    // bytes of payload, at least 24; 0 = 128
}

// AddUDP adds a pair of UDP streams.
func (f *Flows) AddUDP(u UDPFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !u.ToA.IsValid() {
		u.ToA = u.AddrA
	}
	if !u.ToB.IsValid() {
		u.ToB = u.AddrB
	}
	u.Size = max(u.Size, stream.StampLen)
	if u.Size == stream.StampLen {
		u.Size = 128
	}
	p := &udpPair{conf: u, ab: newLane(u.Name, f.number(), u.Rate)}
	if u.Reverse != "" {
		p.ba = newLane(u.Reverse, f.number(), u.Rate)
	}
	f.flows = append(f.flows, p)
}

// udpPair is a UDPFlow that runs.
type udpPair struct {
	conf UDPFlow
	ab   *lane
	ba   *lane        // nil if there is no reverse
	a, b *net.UDPConn // nil where the end is in a guest

	cancel    context.CancelFunc
	senders   sync.WaitGroup
	receivers sync.WaitGroup
}

func (p *udpPair) open(ctx context.Context, f *Flows) (err error) {
	if p.a, err = p.openEnd(ctx, f, p.conf.A, p.conf.AddrA, p.conf.ToB, p.ba, p.ab); err != nil {
		return err
	}
	if p.b, err = p.openEnd(ctx, f, p.conf.B, p.conf.AddrB, p.conf.ToA, p.ab, p.ba); err != nil {
		return err
	}
	if p.b != nil {
		p.receivers.Go(func() { receiveUDP(p.b, p.ab, p.ba) })
	}
	if p.a != nil {
		p.receivers.Go(func() { receiveUDP(p.a, p.ba, p.ab) })
	}
	return nil
}

// openEnd opens the end at e, where in arrives and out begins, either of which may be nil: a socket, or none if the end
// is in a guest.
func (p *udpPair) openEnd(ctx context.Context, f *Flows, e Endpoint, addr, peer netip.Addr, in, out *lane) (*net.UDPConn, error) {
	if e == nil {
		return nil, fmt.Errorf("testnet: flow %s: an end is missing", p.conf.Name)
	}
	ns, guest := e.endpoint()
	if guest == nil {
		return listenUDP(ns, addr, p.conf.Port)
	}
	s := f.session(guest)
	conf := stream.End{Kind: stream.EndUDP, Local: netip.AddrPortFrom(addr, p.conf.Port), Remote: netip.AddrPortFrom(peer, p.conf.Port),
		Rate: p.conf.Rate, Size: p.conf.Size}
	if in != nil {
		in.receiver, conf.In = s, in.id
	}
	if out != nil {
		out.sender, conf.Out = s, out.id
	}
	return nil, s.open(ctx, conf)
}

func (p *udpPair) start(ctx context.Context) error {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.send(sending, p.ab, p.a, p.conf.ToB)
	p.send(sending, p.ba, p.b, p.conf.ToA)
	return nil
}

// send starts to send; a guest sends by itself.
func (p *udpPair) send(ctx context.Context, l *lane, from *net.UDPConn, to netip.Addr) {
	if l == nil || from == nil {
		return
	}
	dst := netip.AddrPortFrom(to, p.conf.Port)
	buf := make([]byte, p.conf.Size)
	p.senders.Go(func() {
		l.pace(ctx, func(s stream.Stamp) error {
			s.Put(buf)
			_, err := from.WriteToUDPAddrPort(buf, dst)
			return err
		})
	})
}

func (p *udpPair) lanes() []*lane {
	if p.ba == nil {
		return []*lane{p.ab}
	}
	return []*lane{p.ab, p.ba}
}

func (p *udpPair) stopSending(context.Context) {
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.senders.Wait()
	for _, l := range p.lanes() {
		l.ended(time.Now())
	}
}

func (p *udpPair) outstanding() (n uint64) {
	for _, l := range p.lanes() {
		n += l.outstanding()
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
	for _, l := range p.lanes() {
		out = append(out, l.report(windows))
	}
	return out
}

// receiveUDP counts what arrives until the socket is closed: packets of in, which may be nil, and what a guest at the
// other end acknowledges in them of out.
func receiveUDP(c *net.UDPConn, in, out *lane) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	acked := out != nil && out.receiver != nil
	for {
		n, oobn, _, _, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || in == nil {
			continue // an ICMP error of an earlier packet: it will be missing
		}
		got := ancillary(oob[:oobn])
		in.drops.Store(max(in.drops.Load(), got.drops))
		if s, ok := stream.ParseStamp(buf[:n]); ok && s.Stream == in.id {
			in.arrived(s, got.atNS, got.hops)
			if acked {
				out.counter.Total(stream.ParseAck(buf[:n]), got.atNS)
			}
		}
	}
}

// listenUDP opens a socket in a namespace, with kernel time stamps and the count of what it had to drop.
func listenUDP(n *Namespace, addr netip.Addr, port uint16) (c *net.UDPConn, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return errors.Join(tuneSocket(raw), wantHops(raw, addr.Is4()))
	}}
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

// wantHops has a UDP socket tell what was left of each packet's TTL or hop limit.
func wantHops(raw syscall.RawConn, v4 bool) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT
	if v4 {
		level, option = unix.IPPROTO_IP, unix.IP_RECVTTL
	}
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, 1))
	})
	return errors.Join(ctlErr, err)
}

// aside is what the kernel says of a packet beside its payload.
type aside struct {
	atNS  int64  // when it came, CLOCK_REALTIME ns
	drops uint32 // packets that the socket had no room for, so far
	hops  uint8  // what was left of its TTL or hop limit, 0 = not asked for
}

// ancillary reads control messages. They are laid out by hand: the parser of package unix allocates per packet.
func ancillary(oob []byte) (a aside) {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		l := int(h.Len)
		if l < unix.SizeofCmsghdr || l > len(oob) {
			break
		}
		data := oob[unix.CmsgLen(0):l]
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			a.atNS = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			a.drops = *(*uint32)(unsafe.Pointer(&data[0]))
		case (h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT) && len(data) >= 4:
			a.hops = uint8(*(*uint32)(unsafe.Pointer(&data[0])))
		}
		oob = oob[min(unix.CmsgSpace(l-unix.CmsgLen(0)), len(oob)):]
	}
	if a.atNS == 0 {
		a.atNS = time.Now().UnixNano()
	}
	return a
}
