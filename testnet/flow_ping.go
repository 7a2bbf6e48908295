package testnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PingFlow describes ICMP echo requests to an address, and the replies: a packet is lost if either is.
type PingFlow struct {
	Name string
	From *Namespace
	Src  netip.Addr
	Dst  netip.Addr
	Rate int // requests a second
}

// AddPing adds a ping.
func (f *Flows) AddPing(p PingFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flows = append(f.flows, &ping{conf: p, stream: newStream(p.Name, f.stream(), p.Rate)})
}

// ping is a PingFlow that runs.
type ping struct {
	conf   PingFlow
	stream *stream
	sock   *icmpSocket

	cancel            context.CancelFunc
	sender, receivers sync.WaitGroup
}

func (p *ping) start(ctx context.Context) (err error) {
	if p.sock, err = openICMP(p.conf.From, p.conf.Src); err != nil {
		return err
	}
	p.receivers.Go(func() {
		_ = p.sock.receive(func(s stamp, at int64, drops uint32) {
			p.stream.drops.Store(max(p.stream.drops.Load(), drops))
			if s.stream == p.stream.id {
				p.stream.counter.packet(s.seq, s.sentNS, at)
			}
		})
	})
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	p.sender.Go(func() {
		p.stream.pace(sending, func(s stamp) error { return p.sock.echo(p.conf.Dst, s) })
	})
	return nil
}

func (p *ping) stopSending(context.Context) {
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.sender.Wait()
	p.stream.counter.end(p.stream.stopped)
}

func (p *ping) outstanding() uint64 { return p.stream.outstanding() }

func (p *ping) close() error {
	if p.sock == nil {
		return nil
	}
	err := p.sock.close()
	p.receivers.Wait()
	return err
}

func (p *ping) report(windows []Window) []FlowReport { return []FlowReport{p.stream.report(windows)} }

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
		_ = s.receive(func(st stamp, _ int64, _ uint32) {
			if st.stream == 0 {
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
		sendErr = s.echo(dst, stamp{0, seq, time.Now().UnixNano()})
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

// echoID marks our echo requests; the stamp inside tells flows apart.
const echoID = 0x7461

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
func (s *icmpSocket) echo(dst netip.Addr, st stamp) error {
	b := make([]byte, 8+stampLen+24)
	b[0] = 128 // the kernel computes ICMPv6's checksum
	binary.BigEndian.PutUint16(b[4:], echoID)
	binary.BigEndian.PutUint16(b[6:], uint16(st.seq))
	st.put(b[8:])
	if s.v4 {
		b[0] = 8
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	var err error
	ctlErr := s.conn.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, sockaddr(netip.AddrPortFrom(dst, 0)))
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(ctlErr, err)
}

// receive calls f for each echo reply of ours until the socket is closed.
func (s *icmpSocket) receive(f func(st stamp, atNS int64, drops uint32)) error {
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
		b := buf[:n]
		if s.v4 { // a raw IPv4 socket gives the IP header, too
			if n < 20 || n < int(b[0]&15)*4 {
				continue
			}
			b = b[int(b[0]&15)*4:]
		}
		if len(b) < 8 || binary.BigEndian.Uint16(b[4:]) != echoID {
			continue
		}
		if st, ok := parseStamp(b[8:]); ok {
			at, drops := ancillary(oob[:oobn])
			f(st, at, drops)
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
