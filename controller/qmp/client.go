package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrClosed says that the connection to a monitor is closed, by either side.
var ErrClosed = errors.New("connection closed")

// Client is a connection to one monitor. Its methods may be called from any goroutine.
type Client struct {
	path    string
	version string
	conn    net.Conn
	done    chan struct{} // closed when nothing more is read

	wmu sync.Mutex // one line at a time

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan<- reply
	hear    map[uint64]func(MonitorEvent)
	err     error // why it ended
}

// Dial connects to the monitor at a unix socket. A monitor that serves somebody else answers once it is free: ctx
// bounds how long that is waited for. The socket's name may have at most 107 bytes, as the kernel wants it.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: %w", err)
	}
	c, err := newClient(ctx, conn, path)
	if err != nil {
		return nil, fmt.Errorf("qmp: %s: %w", path, errors.Join(err, conn.Close()))
	}
	return c, nil
}

// newClient takes an open connection. It is closed by [Client.Close], or by the caller after an error.
func newClient(ctx context.Context, conn net.Conn, path string) (*Client, error) {
	c := &Client{path: path, conn: conn, done: make(chan struct{}), waiting: make(map[uint64]chan<- reply),
		hear: make(map[uint64]func(MonitorEvent))}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 4096), maxLine)
	// Nothing but the end of the connection ends a read.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	err := c.greet(lines)
	if !stop() || err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	go c.read(lines)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Client) greet(lines *bufio.Scanner) error {
	for lines.Scan() {
		m, err := decode(lines.Bytes())
		if err != nil {
			return err
		}
		if m.greeting != nil {
			c.version = m.greeting.version
			return nil
		}
		// What the one before us had asked may still be answered.
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return ErrClosed
}

// read serves what the monitor says until it says no more.
func (c *Client) read(lines *bufio.Scanner) {
	var err error
	for err == nil && lines.Scan() {
		var m message
		if m, err = decode(lines.Bytes()); err != nil {
			break
		}
		switch {
		case m.event != nil:
			c.tell(*m.event)
		case m.reply != nil:
			c.answer(*m.reply)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		err = ErrClosed
	}
	_ = c.conn.Close() // it may be what ended us
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.done)
}

func (c *Client) tell(e MonitorEvent) {
	c.mu.Lock()
	hear := make([]func(MonitorEvent), 0, len(c.hear))
	for _, f := range c.hear {
		hear = append(hear, f)
	}
	c.mu.Unlock()
	for _, f := range hear {
		f(e)
	}
}

func (c *Client) answer(r reply) {
	c.mu.Lock()
	ch := c.waiting[r.id]
	delete(c.waiting, r.id)
	c.mu.Unlock()
	if ch != nil {
		ch <- r // has room for it
	}
}

// Execute runs a command and waits for its answer. args is an object, nil = none; the answer goes to out, nil = not
// wanted. A refusal is an [*Error]. When ctx ends the command may still be carried out.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	ch := make(chan reply, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("qmp: %s: %w", command, c.err)
	}
	c.next++
	id := c.next
	c.waiting[id] = ch
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}
	defer forget()
	if err := c.send(ctx, command, args, id); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	var r reply
	select {
	case r = <-ch:
	case <-c.done:
		select {
		case r = <-ch: // it was the last that was said
		default:
			return fmt.Errorf("qmp: %s: %w", command, c.err)
		}
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: no answer: %w", command, context.Cause(ctx))
	}
	if r.err != nil {
		r.err.Command = command
		return r.err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.value, out); err != nil {
		return fmt.Errorf("qmp: answer to %s: %w", command, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, command string, args any, id uint64) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	deadline, _ := ctx.Deadline() // zero: none
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err = c.conn.Write(append(line, '\n'))
	return err
}

// Hear has f called with every event from now on, until cancel is called. f is called by one goroutine, in the order
// in which QEMU tells; it must not block, and must not wait for an answer of this client, or close it.
func (c *Client) Hear(f func(MonitorEvent)) (cancel func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	id := c.next
	c.hear[id] = f
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.hear, id)
	}
}

// Done is closed when the connection has ended; Err says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the connection stands.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Version is QEMU's, "7.2.22".
func (c *Client) Version() string { return c.version }

// Path is the socket's.
func (c *Client) Path() string { return c.path }

// Close ends the connection and waits until no event is told any more. The VM goes on.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
