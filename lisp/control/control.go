// Package control is the endpoint of the LISP control plane: the sockets at UDP port 4342 (RFC 9301
// section 5.1). It reads and decodes, takes messages out of their ECM, counts, and hands them to one
// function, one at a time; what they mean is its users' business.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Packet is a control message as it was received. It is the receiver's: nothing else uses its memory.
type Packet struct {
	Msg  lisp.Message
	Raw  []byte         // what Msg was decoded from, for [lisp.Verify]
	From netip.AddrPort // who sent the datagram; never an IPv4-mapped IPv6 address

	// ECM is set when Msg came inside one (RFC 9301 section 5.8). Msg and Raw are then the inner
	// message, From is the outer source.
	ECM *lisp.ECM
}

// maxDatagram is the largest UDP payload in bytes.
const maxDatagram = 1<<16 - 1

// Endpoint sends and receives control messages over one socket for each own RLOC.
type Endpoint struct {
	log      *slog.Logger
	conns    []net.PacketConn
	counters counters
}

// New makes an Endpoint of sockets that are bound already, one for each own RLOC. They are the
// Endpoint's: [Endpoint.Run] closes them.
func New(log *slog.Logger, conns ...net.PacketConn) *Endpoint {
	return &Endpoint{log: log, conns: conns}
}

// Listen opens one UDP socket for each address. An address of port 0 gets a free port.
func Listen(ctx context.Context, addrs ...netip.AddrPort) ([]net.PacketConn, error) {
	var lc net.ListenConfig
	var conns []net.PacketConn
	for _, a := range addrs {
		network := "udp6"
		if a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port()); a.Addr().Is4() {
			network = "udp4"
		}
		c, err := lc.ListenPacket(ctx, network, a.String())
		if err != nil {
			for _, c := range conns {
				err = errors.Join(err, c.Close())
			}
			return nil, fmt.Errorf("control: listen at %v: %w", a, err)
		}
		conns = append(conns, c)
		if u, ok := c.(*net.UDPConn); ok {
			// A mass migration comes as a burst of Map-Registers. What the kernel grants is what we get.
			_ = u.SetReadBuffer(socketBuffer)
		}
	}
	return conns, nil
}

// socketBuffer is how many bytes of datagrams a socket may hold while the handler is busy.
const socketBuffer = 4 << 20

// Run receives until ctx ends or a socket is lost, and calls handle for every good message, from one
// goroutine. It closes the sockets when it returns: with nil when ctx has ended.
//
// While handle runs, datagrams wait in the sockets.
func (e *Endpoint) Run(ctx context.Context, handle func(Packet)) error {
	ctx, cancel := context.WithCancel(ctx)
	packets := make(chan Packet)
	lost := make(chan error, len(e.conns))
	var wg sync.WaitGroup
	for _, c := range e.conns {
		wg.Go(func() {
			if err := e.read(ctx, c, packets); err != nil {
				lost <- err
			}
		})
	}
	wg.Go(func() { // the one place that ends the reading
		<-ctx.Done()
		for _, c := range e.conns {
			if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				e.log.Warn("closing a control socket", "rloc", c.LocalAddr().String(), "err", err)
			}
		}
	})
	defer func() {
		cancel()
		wg.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case p := <-packets:
			handle(p)
		}
	}
}

// read receives from one socket until it is closed.
func (e *Endpoint) read(ctx context.Context, c net.PacketConn, packets chan<- Packet) error {
	buf := make([]byte, maxDatagram)
	failures := 0
	for {
		n, addr, err := c.ReadFrom(buf)
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("control: socket %v was closed", c.LocalAddr())
		default:
			// Errors of one peer must not end the reading, nor make it spin.
			e.counters.drop(dropReceive)
			if failures++; failures > maxReadFailures {
				return fmt.Errorf("control: receive at %v: %w", c.LocalAddr(), err)
			}
			sleep(ctx, readRetry)
			continue
		}
		from := addrPort(addr)
		p, reason, err := decode(buf[:n], from)
		if err != nil {
			e.dropped(reason, from, err)
			continue
		}
		if p.ECM != nil {
			e.counters.received[lisp.TypeECM].Add(1)
		}
		e.counters.received[p.Msg.Type()].Add(1)
		select {
		case packets <- p:
		case <-ctx.Done():
			return nil
		}
	}
}

// A socket whose reading fails maxReadFailures times in a row, readRetry apart, is lost.
const (
	maxReadFailures = 50
	readRetry       = 100 * time.Millisecond
)

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func decode(b []byte, from netip.AddrPort) (Packet, dropReason, error) {
	if !from.IsValid() || from.Port() == 0 {
		return Packet{}, dropSource, errors.New("nobody could answer to its source")
	}
	raw := append([]byte(nil), b...)
	m, err := lisp.Decode(raw)
	if err != nil {
		return Packet{}, reasonOf(err), err
	}
	ecm, ok := m.(*lisp.ECM)
	if !ok {
		return Packet{Msg: m, Raw: raw, From: from}, 0, nil
	}
	if m, err = ecm.Message(); err != nil {
		return Packet{}, reasonOf(err), err
	}
	return Packet{Msg: m, Raw: ecm.Inner, From: from, ECM: ecm}, 0, nil
}

// Send sends one message, as it travels, from the own RLOC of the family of to. It may be called from any
// goroutine and does not keep b. It fails when there is no own RLOC of that family, or as the socket does.
func (e *Endpoint) Send(to netip.AddrPort, b []byte) error {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if len(b) == 0 {
		return errors.New("control: send: the message is empty")
	}
	for _, c := range e.conns {
		local := addrPort(c.LocalAddr())
		if local.Addr().Is4() != to.Addr().Is4() {
			continue
		}
		if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
			e.counters.drop(dropSend)
			return fmt.Errorf("control: send to %v: %w", to, err)
		}
		e.counters.sent[b[0]>>4].Add(1)
		return nil
	}
	e.counters.drop(dropNoSocket)
	return fmt.Errorf("control: send to %v: no own RLOC of that family", to)
}

// LocalAddrs are the addresses of the sockets.
func (e *Endpoint) LocalAddrs() []netip.AddrPort {
	as := make([]netip.AddrPort, len(e.conns))
	for i, c := range e.conns {
		as[i] = addrPort(c.LocalAddr())
	}
	return as
}

// addrPort is a as a value; not valid if a is not of UDP.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok || u == nil {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// dropped counts, and now and then says so: "the event MUST be logged" (RFC 9301 section 5.1) must not
// let anybody fill the log.
func (e *Endpoint) dropped(reason dropReason, from netip.AddrPort, err error) {
	n, log := e.counters.dropAt(reason, time.Now())
	if log {
		e.log.Warn("dropped control messages", "reason", reason.String(), "peer", from.String(), "n", n, "err", err)
	}
}
