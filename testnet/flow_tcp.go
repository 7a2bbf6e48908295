package testnet

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// TCPFlow describes one TCP connection that carries content in both directions at once, for as long as the flows
// run: pseudo-random bytes whose SHA-256 both ends compute.
type TCPFlow struct {
	Name      string // of the content client -> server
	Reverse   string // of the content server -> client
	Client    *Namespace
	Server    *Namespace
	Addr      netip.Addr // the server's
	Port      uint16
	BitRate   int    // bits a second in each direction
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
	f.flows = append(f.flows, &tcpFlow{conf: t,
		up:   &transfer{name: t.Name, rate: t.BitRate, seed: t.Seed, stream: uint64(f.stream())},
		down: &transfer{name: t.Reverse, rate: t.BitRate, seed: t.Seed, stream: uint64(f.stream())}})
}

// tcpFlow is a TCPFlow that runs.
type tcpFlow struct {
	conf     TCPFlow
	up, down *transfer
	listener net.Listener
	client   *net.TCPConn
	server   *net.TCPConn

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// dialTimeout is how long a connection may take: a first SYN may be lost, and the second goes out after a second.
const dialTimeout = 10 * time.Second

func (t *tcpFlow) start(ctx context.Context) error {
	addr := netip.AddrPortFrom(t.conf.Addr, t.conf.Port).String()
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	accepted := make(chan error, 1)
	err := t.conf.Server.Do(func() (err error) {
		t.listener, err = new(net.ListenConfig).Listen(dialing, "tcp", addr)
		return err
	})
	if err != nil {
		return fmt.Errorf("testnet: %s: %w", t.conf.Name, err)
	}
	go func() {
		c, err := t.listener.Accept()
		if err == nil {
			t.server = c.(*net.TCPConn)
		}
		accepted <- err
	}()
	err = t.conf.Client.Do(func() error {
		c, err := new(net.Dialer).DialContext(dialing, "tcp", addr)
		if err == nil {
			t.client = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("testnet: %s: %w", t.conf.Name, errors.Join(err, t.listener.Close()))
	}
	if err := <-accepted; err != nil {
		return fmt.Errorf("testnet: %s: accept: %w", t.conf.Name, err)
	}
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.cancel = stop
	t.wg.Go(func() { t.up.send(sending, t.client) })
	t.wg.Go(func() { t.up.receive(t.server) })
	t.wg.Go(func() { t.down.send(sending, t.server) })
	t.wg.Go(func() { t.down.receive(t.client) })
	return nil
}

// stopSending ends the content and waits until both ends have read all of it.
func (t *tcpFlow) stopSending(ctx context.Context) {
	if t.cancel == nil {
		return
	}
	t.cancel()
	done := make(chan struct{})
	go func() {
		t.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(t.conf.CloseWait):
	}
}

// outstanding is nothing: stopSending has waited for everything.
func (t *tcpFlow) outstanding() uint64 { return 0 }

func (t *tcpFlow) close() error {
	if t.cancel != nil {
		t.cancel()
	}
	var errs []error
	if t.listener != nil {
		errs = append(errs, t.listener.Close())
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
	return []FlowReport{t.up.report(windows), t.down.report(windows)}
}

// transfer is the content in one direction.
type transfer struct {
	name   string
	rate   int // bits a second
	seed   uint64
	stream uint64

	counter counter
	sent    atomic.Uint64
	errs    atomic.Uint64
	lastErr atomic.Pointer[string]

	mu      sync.Mutex
	sentSum []byte // set when all is sent
	gotSum  []byte // set when the end was read
}

// pieces is how many writes a second a transfer makes.
const pieces = 200

// send writes content at its rate until ctx ends, then closes its direction.
func (t *transfer) send(ctx context.Context, c *net.TCPConn) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], t.seed)
	binary.BigEndian.PutUint64(key[8:], t.stream)
	content, sum := rand.NewChaCha8(key), sha256.New()
	buf := make([]byte, max(1, t.rate/8/pieces))
	tick := time.NewTicker(time.Second / pieces)
	defer tick.Stop()
	for ctx.Err() == nil {
		_, _ = content.Read(buf) // never fails
		n, err := c.Write(buf)
		sum.Write(buf[:n])
		t.sent.Add(uint64(n))
		if err != nil {
			t.fail("send", err)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	t.counter.end(time.Now())
	if err := c.CloseWrite(); err != nil {
		t.fail("close", err)
		return
	}
	t.setSum(&t.sentSum, sum)
}

// receive reads to the end.
func (t *transfer) receive(c *net.TCPConn) {
	sum, buf := sha256.New(), make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			sum.Write(buf[:n])
			t.counter.bytes(n, time.Now().UnixNano())
		}
		if err == io.EOF {
			t.setSum(&t.gotSum, sum)
			return
		}
		if err != nil {
			t.fail("receive", err)
			return
		}
	}
}

func (t *transfer) setSum(to *[]byte, sum hash.Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*to = sum.Sum(nil)
}

func (t *transfer) fail(what string, err error) {
	t.errs.Add(1)
	text := fmt.Sprintf("%s: %v", what, err)
	t.lastErr.CompareAndSwap(nil, &text)
}

func (t *transfer) report(windows []Window) FlowReport {
	t.counter.mu.Lock()
	got := t.counter.received
	t.counter.mu.Unlock()
	t.mu.Lock()
	intact := t.sentSum != nil && string(t.sentSum) == string(t.gotSum)
	t.mu.Unlock()
	sent := t.sent.Load()
	r := FlowReport{Name: t.name, Unit: "bytes", Sent: sent, Received: got, Lost: sent - min(sent, got),
		SendErrors: t.errs.Load(), Intact: &intact}
	if e := t.lastErr.Load(); e != nil {
		r.LastError = *e
	}
	if windows != nil {
		r.gapsOf(&t.counter, windows)
	}
	return r
}
