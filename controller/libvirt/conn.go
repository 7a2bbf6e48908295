package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// conn is one connection to a daemon. It is ended by closing its transport only: go-libvirt's own ways to unsubscribe
// and to disconnect wait for answers, and may wait for ever when an event comes in between.
type conn struct {
	*golibvirt.Libvirt
	wire *wire
}

// connectTime is how long a daemon may take to let somebody in.
const connectTime = 30 * time.Second

// connect opens a connection.
func (u uri) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTime, fmt.Errorf("no answer within %v", connectTime))
	defer cancel()
	nc, err := u.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	w := &wire{Conn: nc, lost: make(chan struct{}), drained: make(chan struct{})}
	c := &conn{golibvirt.NewWithDialer(w), w}
	opened := make(chan error, 1)
	go func() { opened <- c.ConnectToURI(remote) }()
	select {
	case err = <-opened:
	case <-ctx.Done():
		_ = w.Close()
		<-opened
		return nil, fmt.Errorf("connect: %w", context.Cause(ctx))
	}
	if err != nil {
		_ = w.Close()
		<-w.drained // then it is known why
		return nil, fmt.Errorf("connect: %w", w.explain(err))
	}
	return c, nil
}

// close ends the connection; calls that wait are told that it is lost.
func (c *conn) close() { _ = c.wire.Close() }

// isLost reports whether the connection has ended.
func (c *conn) isLost() bool {
	select {
	case <-c.wire.lost:
		return true
	default:
		return false
	}
}

// abandoned is how long a call whose caller has left may go on before its connection counts as dead.
const abandoned = 30 * time.Second

// call makes a call, which libvirt's protocol cannot take back: when ctx ends first, its answer is thrown away.
func call[T any](ctx context.Context, c *conn, f func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		v, err := f()
		answered <- answer{v, err}
	}()
	select {
	case a := <-answered:
		return a.v, c.wire.explain(a.err)
	case <-ctx.Done():
		go func() {
			t := time.NewTimer(abandoned)
			defer t.Stop()
			select {
			case <-answered:
			case <-c.wire.lost:
			case <-t.C:
				c.close()
			}
		}()
		var none T
		return none, context.Cause(ctx)
	}
}

// do is call for calls that return nothing.
func do(ctx context.Context, c *conn, f func() error) error {
	_, err := call(ctx, c, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// wire is a transport that knows when it was lost, and that only libvirt's packets come through: go-libvirt believes
// every length that it is told.
type wire struct {
	net.Conn

	once    sync.Once
	lost    chan struct{}
	drained chan struct{} // closed when nothing more is read

	mu  sync.Mutex
	why error // what the transport said at its end

	// The reader's alone.
	head []byte // of a packet whose length is not known yet
	left int    // bytes of the current packet that are still to come
}

// Dial makes a wire a dialer that is asked once.
func (w *wire) Dial() (net.Conn, error) { return w, nil }

// The least length of a packet is that of its header; the most is libvirt's VIR_NET_MESSAGE_MAX and the length itself.
const minPacket, maxPacket = 28, 32<<20 + 4

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err == nil {
		err = w.follow(b[:n])
	}
	if err == nil {
		return n, nil
	}
	w.mu.Lock()
	if w.why == nil {
		w.why = err
		close(w.drained)
	}
	w.mu.Unlock()
	w.end()
	return 0, io.EOF // whatever it was: go-libvirt would try again for ever after some errors
}

var errNotLibvirt = errors.New("who answers there does not speak libvirt's protocol")

// follow counts packets, whose first four bytes are their length.
func (w *wire) follow(b []byte) error {
	for len(b) > 0 {
		if w.left == 0 {
			n := min(4-len(w.head), len(b))
			w.head, b = append(w.head, b[:n]...), b[n:]
			if len(w.head) < 4 {
				return nil
			}
			size := binary.BigEndian.Uint32(w.head)
			if size < minPacket || size > maxPacket {
				return errNotLibvirt
			}
			w.left, w.head = int(size)-4, w.head[:0]
		}
		n := min(w.left, len(b))
		w.left, b = w.left-n, b[n:]
	}
	return nil
}

func (w *wire) Close() error {
	w.end()
	return w.Conn.Close()
}

func (w *wire) end() { w.once.Do(func() { close(w.lost) }) }

// explain says what is known of an error that says only that the connection is not there.
func (w *wire) explain(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[golibvirt.Error](err); ok {
		if golibvirt.ErrorNumber(e.Code) == golibvirt.ErrAuthUnavailable || golibvirt.ErrorNumber(e.Code) == golibvirt.ErrAuthFailed {
			return fmt.Errorf("%w (a connection without SASL is needed: a unix socket, TLS certificates, or ssh)", err)
		}
		return err
	}
	select {
	case <-w.lost:
	default:
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil || errors.Is(w.why, io.EOF) {
		return errLost
	}
	return fmt.Errorf("%w: %w", errLost, w.why)
}

var errLost = errors.New("the connection is lost")
