package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// PingFlow describes ICMP echo requests to an address, and the replies: a packet is lost if either is.
type PingFlow struct {
	Name string
	From Endpoint
	Src  netip.Addr
	Dst  netip.Addr
	Rate int // requests a second
}

// AddPing adds a ping.
func (f *Flows) AddPing(p PingFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flows = append(f.flows, &ping{conf: p, lane: newLane(p.Name, f.number(), p.Rate)})
}

// ping is a PingFlow that runs.
type ping struct {
	conf PingFlow
	lane *lane
	sock *icmpSocket // nil where the pings come from a guest

	cancel            context.CancelFunc
	sender, receivers sync.WaitGroup
}

func (p *ping) open(ctx context.Context, f *Flows) (err error) {
	if p.conf.From == nil {
		return fmt.Errorf("testnet: flow %s: an end is missing", p.conf.Name)
	}
	ns, guest := p.conf.From.endpoint()
	if guest != nil {
		s := f.session(guest)
		p.lane.sender, p.lane.receiver = s, s
		return s.open(ctx, stream.End{Kind: stream.EndPing, Local: netip.AddrPortFrom(p.conf.Src, 0), Remote: netip.AddrPortFrom(p.conf.Dst, 0),
			In: p.lane.id, Out: p.lane.id, Rate: p.conf.Rate})
	}
	if p.sock, err = openICMP(ns, p.conf.Src); err != nil {
		return err
	}
	p.receivers.Go(func() {
		_ = p.sock.receive(func(s stream.Stamp, got aside) {
			p.lane.drops.Store(max(p.lane.drops.Load(), got.drops))
			if s.Stream == p.lane.id {
				p.lane.arrived(s, got.atNS, 0)
			}
		})
	})
	return nil
}

func (p *ping) start(ctx context.Context) error {
	if p.sock == nil {
		return nil
	}
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.sender.Go(func() {
		p.lane.pace(sending, func(s stream.Stamp) error { return p.sock.echo(p.conf.Dst, s) })
	})
	return nil
}

func (p *ping) stopSending(context.Context) {
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.sender.Wait()
	p.lane.ended(time.Now())
}

func (p *ping) lanes() []*lane { return []*lane{p.lane} }

func (p *ping) outstanding() uint64 { return p.lane.outstanding() }

func (p *ping) close() error {
	if p.sock == nil {
		return nil
	}
	err := p.sock.close()
	p.receivers.Wait()
	return err
}

func (p *ping) report(windows []Window) []FlowReport { return []FlowReport{p.lane.report(windows)} }

// Ping sends echo requests every 20 ms until one is answered, and says how long that took from the first.
func Ping(ctx context.Context, from *Namespace, src, dst netip.Addr) (time.Duration, error) {
	s, err := openICMP(from, src)
	if err != nil {
		return 0, err
	}
	answered := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.receive(func(st stream.Stamp, _ aside) {
			if st.Stream == 0 {
				once.Do(func() { close(answered) })
			}
		})
	})
	defer wg.Wait()
	defer s.close()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var sendErr error
	for seq := uint64(0); ; seq++ {
		sendErr = s.echo(dst, stream.Stamp{Seq: seq, SentNS: time.Now().UnixNano()})
		select {
		case <-answered:
			return time.Since(begin), nil
		case <-ctx.Done():
			return 0, fmt.Errorf("testnet: %s: no answer from %s to %s: %w", from.name, dst, src, errors.Join(context.Cause(ctx), sendErr))
		case <-tick.C:
		}
	}
}

// icmpSocket is a raw ICMP socket.
type icmpSocket struct {
	file *os.File
	conn syscall.RawConn
	v4   bool
}

func openICMP(n *Namespace, src netip.Addr) (*icmpSocket, error) {
	s := &icmpSocket{v4: src.Is4()}
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if s.v4 {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
	}
	err := n.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s.file = os.NewFile(uintptr(fd), "icmp")
		if s.conn, err = s.file.SyscallConn(); err != nil {
			return err
		}
		if err := tuneSocket(s.conn); err != nil {
			return err
		}
		if s.v4 {
			const icmpFilter = 1 // of level SOL_RAW: a mask of the types that are not wanted
			return os.NewSyscallError("setsockopt", errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^1),
				unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0)))))
		}
		var f unix.ICMPv6Filter // bit set = blocked: all but echo replies (129)
		for i := range f.Data {
			f.Data[i] = 0xffffffff
		}
		f.Data[129/32] &^= 1 << (129 % 32)
		return os.NewSyscallError("setsockopt", errors.Join(
			unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f),
			unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0)))))
	})
	if err != nil {
		if s.file != nil {
			_ = s.file.Close()
		}
		return nil, fmt.Errorf("testnet: %s: ICMP socket on %s: %w", n.name, src, err)
	}
	return s, nil
}

// echo sends one echo request.
func (s *icmpSocket) echo(dst netip.Addr, st stream.Stamp) error {
	b := make([]byte, stream.EchoLen)
	stream.PutEcho(b, s.v4, st)
	var err error
	ctlErr := s.conn.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, sockaddr(netip.AddrPortFrom(dst, 0)))
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(ctlErr, err)
}

// receive calls f for each echo reply of ours until the socket is closed.
func (s *icmpSocket) receive(f func(s stream.Stamp, got aside)) error {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		var n, oobn int
		var err error
		ctlErr := s.conn.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		if ctlErr != nil {
			return ctlErr
		}
		if err != nil {
			continue
		}
		if st, ok := stream.ParseEcho(buf[:n], s.v4); ok {
			f(st, ancillary(oob[:oobn]))
		}
	}
}

func (s *icmpSocket) close() error {
	if err := s.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
