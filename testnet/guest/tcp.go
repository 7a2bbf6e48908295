package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// dialTimeout is how long a connection may take.
const dialTimeout = 20 * time.Second

// tcpEnd is one end of a TCP connection that carries content both ways.
type tcpEnd struct {
	conf    stream.End
	in, out *stream.Transfer
	sending context.Context
	stopped context.CancelFunc
	listen  net.Listener // nil at the end that dials

	mu     sync.Mutex
	conn   *net.TCPConn // nil until there is one
	began  bool
	closed bool
}

// openTCP listens, or gets ready to dial at start.
func openTCP(c stream.End) (*tcpEnd, error) {
	e := &tcpEnd{conf: c, in: &stream.Transfer{Stream: c.In}, out: &stream.Transfer{Rate: c.Rate, Seed: c.Seed, Stream: c.Out}}
	if c.Kind == stream.EndListen {
		l, err := net.Listen("tcp", c.Local.String())
		if err != nil {
			return nil, err
		}
		e.listen = l
		go e.accept()
	}
	e.sending, e.stopped = context.WithCancel(context.Background())
	return e, nil
}

// accept takes one connection.
func (e *tcpEnd) accept() {
	c, err := e.listen.Accept()
	if err != nil {
		e.fail("accept", err)
		return
	}
	_ = e.listen.Close()
	e.connected(c.(*net.TCPConn))
}

func (e *tcpEnd) dial() {
	d := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: e.conf.Local.Addr().AsSlice()}}
	c, err := d.Dial("tcp", e.conf.Remote.String())
	if err != nil {
		e.fail("dial", err)
		return
	}
	e.connected(c.(*net.TCPConn))
}

func (e *tcpEnd) connected(c *net.TCPConn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = c.Close()
		return
	}
	e.conn = c
	go e.in.Receive(c)
	go e.out.Send(e.sending, c)
}

// fail notes why there is no connection, unless it was closed on purpose.
func (e *tcpEnd) fail(what string, err error) {
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if !closed {
		e.in.Fail(what, err)
		e.out.Fail(what, err)
	}
}

func (e *tcpEnd) start() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.began && e.listen == nil {
		go e.dial()
	}
	e.began = true
}

func (e *tcpEnd) stop() { e.stopped() }

func (e *tcpEnd) report(_ map[uint32]uint64, r *stream.Reply) {
	r.Transfers[e.conf.In], r.Transfers[e.conf.Out] = e.in.State(), e.out.State()
}

func (e *tcpEnd) close() {
	e.stopped()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.listen != nil {
		_ = e.listen.Close()
	}
	if e.conn != nil {
		_ = e.conn.Close()
	}
}
