package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// TCPFlow describes one TCP connection that carries content in both directions at once, or from its server only, for as
// long as the flows run: pseudo-random bytes whose SHA-256 both ends compute.
type TCPFlow struct {
	Name      string // of the content client -> server
	Reverse   string // of the content server -> client
	Client    Endpoint
	Server    Endpoint
	ClientSrc netip.Addr // that a client in a guest dials from; zero: as its routes have it
	Addr      netip.Addr // the server's
	Port      uint16
	BitRate   int    // bits a second in each direction; stream.Greedy = as fast as the connection takes it
	Download  bool   // the client sends nothing, and is here, in no guest
	Seed      uint64 // of the content
	CloseWait time.Duration
}

// AddTCP adds a TCP connection.
func (f *Flows) AddTCP(t TCPFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.CloseWait == 0 {
		t.CloseWait = 20 * time.Second
	}
	up := t.BitRate
	if t.Download {
		up = 0
	}
	f.flows = append(f.flows, &tcpFlow{conf: t,
		up:   newContent(t.Name, t, up, f.number()),
		down: newContent(t.Reverse, t, t.BitRate, f.number())})
}

// tcpFlow is a TCPFlow that runs.
type tcpFlow struct {
	conf     TCPFlow
	up, down *content
	listener net.Listener  // nil where the server is in a guest
	accepted chan struct{} // closed when server, or why there is none, is known; nil where the server is in a guest
	refused  error
	client   *net.TCPConn // nil where the client is in a guest
	server   *net.TCPConn

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// dialTimeout is how long a connection may take: a first SYN may be lost, and the second goes out after a second.
const dialTimeout = 10 * time.Second

func (t *tcpFlow) open(ctx context.Context, f *Flows) error {
	if t.conf.Client == nil || t.conf.Server == nil {
		return fmt.Errorf("testnet: flow %s: an end is missing", t.conf.Name)
	}
	addr := netip.AddrPortFrom(t.conf.Addr, t.conf.Port)
	ns, guest := t.conf.Server.endpoint()
	if guest != nil {
		s := f.session(guest)
		t.up.receiver, t.down.sender = s, s
		err := s.open(ctx, stream.End{Kind: stream.EndListen, Local: addr, Rate: t.conf.BitRate, Seed: t.conf.Seed, In: t.up.id, Out: t.down.id})
		if err != nil {
			return err
		}
	} else if err := t.listen(ns, addr); err != nil {
		return err
	}
	if _, guest = t.conf.Client.endpoint(); guest == nil {
		return nil
	}
	if t.conf.Download {
		return fmt.Errorf("testnet: flow %s: the client of a download is in guest %s", t.conf.Name, guest.name)
	}
	s := f.session(guest)
	if t.up.receiver == s {
		return fmt.Errorf("testnet: flow %s: both ends are in guest %s", t.conf.Name, guest.name)
	}
	t.up.sender, t.down.receiver = s, s
	src := t.conf.ClientSrc
	if !src.IsValid() {
		src = unspecified(t.conf.Addr)
	}
	return s.open(ctx, stream.End{Kind: stream.EndDial, Local: netip.AddrPortFrom(src, 0), Remote: addr, Rate: t.conf.BitRate,
		Seed: t.conf.Seed, In: t.down.id, Out: t.up.id})
}

// listen takes one connection.
func (t *tcpFlow) listen(ns *Namespace, addr netip.AddrPort) error {
	err := ns.Do(func() (err error) {
		t.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", addr.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("testnet: %s: %w", t.conf.Name, err)
	}
	t.accepted = make(chan struct{})
	go func() {
		defer close(t.accepted)
		c, err := t.listener.Accept()
		if err == nil {
			t.server = c.(*net.TCPConn)
		}
		t.refused = err
	}()
	return nil
}

func (t *tcpFlow) start(ctx context.Context) error {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if ns, _ := t.conf.Client.endpoint(); ns != nil {
		err := ns.Do(func() error {
			c, err := new(net.Dialer).DialContext(dialing, "tcp", netip.AddrPortFrom(t.conf.Addr, t.conf.Port).String())
			if err == nil {
				t.client = c.(*net.TCPConn)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("testnet: %s: %w", t.conf.Name, err)
		}
	}
	if t.accepted != nil {
		select {
		case <-t.accepted:
			if t.refused != nil {
				return fmt.Errorf("testnet: %s: accept: %w", t.conf.Name, t.refused)
			}
		case <-dialing.Done():
			return fmt.Errorf("testnet: %s: nobody connects: %w", t.conf.Name, context.Cause(dialing))
		}
	}
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.cancel = stop
	t.up.run(sending, &t.wg, t.client, t.server)
	t.down.run(sending, &t.wg, t.server, t.client)
	return nil
}

// stopSending ends the content and waits until both ends have read all of it.
func (t *tcpFlow) stopSending(ctx context.Context) {
	if t.cancel == nil {
		return
	}
	t.cancel()
	ended := time.Now()
	waiting, cancel := context.WithTimeout(ctx, t.conf.CloseWait)
	defer cancel()
	done := make(chan struct{})
	go func() {
		t.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-waiting.Done():
	}
	for _, c := range []*content{t.up, t.down} {
		for !c.finished() && waiting.Err() == nil {
			_ = sleep(waiting, pollHurry)
		}
		c.counter.End(ended)
	}
}

// outstanding is nothing: stopSending has waited for everything.
func (t *tcpFlow) outstanding() uint64 { return 0 }

// lanes are none: these are no packets.
func (t *tcpFlow) lanes() []*lane { return nil }

func (t *tcpFlow) close() error {
	if t.cancel != nil {
		t.cancel()
	}
	var errs []error
	if t.listener != nil {
		errs = append(errs, t.listener.Close())
		<-t.accepted
	}
	for _, c := range []*net.TCPConn{t.client, t.server} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	t.wg.Wait()
	for i, err := range errs {
		if errors.Is(err, net.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

func (t *tcpFlow) report(windows []Window) []FlowReport {
	if t.conf.Download {
		return []FlowReport{t.down.report(windows)}
	}
	return []FlowReport{t.up.report(windows), t.down.report(windows)}
}

// content is what goes in one direction of a connection. An end may be in a guest; its state is fetched.
type content struct {
	name     string
	id       uint32
	tx, rx   *stream.Transfer // unused where that end is in a guest
	sender   *guestSession    // nil: here
	receiver *guestSession    // nil: here
	counter  *stream.Counter  // of what arrived; for a receiver in a guest, of what its kernel acknowledged
}

func newContent(name string, t TCPFlow, rate int, id uint32) *content {
	c := &content{name: name, id: id, tx: &stream.Transfer{Rate: rate, Seed: t.Seed, Stream: id}, rx: new(stream.Transfer)}
	c.counter = c.rx.Received()
	return c
}

// run starts the ends that are here; from and to are nil where there is none.
func (c *content) run(ctx context.Context, wg *sync.WaitGroup, from, to *net.TCPConn) {
	if from != nil {
		sent := make(chan struct{})
		wg.Go(func() {
			defer close(sent)
			c.tx.Send(ctx, from)
		})
		if c.receiver != nil {
			wg.Go(func() { watchAcks(from, c.counter, sent) })
		}
	}
	if to != nil {
		wg.Go(func() { c.rx.Receive(to) })
	}
}

// ackTick is how often a sender's kernel is asked what was acknowledged.
const ackTick = 2 * time.Millisecond

// watchAcks counts what the far end's kernel acknowledges, until done is closed.
func watchAcks(conn *net.TCPConn, counter *stream.Counter, done <-chan struct{}) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(ackTick)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		var info *unix.TCPInfo
		err := raw.Control(func(fd uintptr) {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		})
		if err != nil || info == nil {
			return
		}
		counter.Total(info.Bytes_acked, time.Now().UnixNano())
	}
}

func (c *content) sent() stream.TransferState {
	if c.sender != nil {
		return c.sender.transfer(c.id)
	}
	return c.tx.State()
}

func (c *content) got() stream.TransferState {
	if c.receiver != nil {
		return c.receiver.transfer(c.id)
	}
	return c.rx.State()
}

// finished: both ends have come to an end, good or bad, as far as is known here, or nobody will ever know.
func (c *content) finished() bool {
	if c.sender != nil && c.sender.lost() || c.receiver != nil && c.receiver.lost() {
		return true
	}
	sent, got := c.sent(), c.got()
	return (sent.Sum != "" || sent.Errors > 0) && (got.Sum != "" || got.Errors > 0)
}

func (c *content) report(windows []Window) FlowReport {
	sent, got := c.sent(), c.got()
	intact := sent.Sum != "" && sent.Sum == got.Sum
	r := FlowReport{Name: c.name, Unit: "bytes", Sent: sent.Bytes, Received: got.Bytes, Lost: sent.Bytes - min(sent.Bytes, got.Bytes),
		SendErrors: sent.Errors + got.Errors, LastError: sent.Error, Intact: &intact}
	if got.Error != "" {
		r.LastError = got.Error
	}
	for _, s := range []*guestSession{c.sender, c.receiver} {
		if s != nil && s.trouble() != "" {
			r.Incomplete = s.trouble()
		}
	}
	if windows != nil {
		r.gapsOf(c.counter, windows)
	}
	return r
}
