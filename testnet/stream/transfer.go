package stream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// A Transfer is content in one direction of a TCP connection: pseudo-random bytes whose SHA-256 both ends compute. Each
// end has its own. Its methods may be called from any goroutine.
type Transfer struct {
	Rate   int    // bits a second; 0 = nothing; Greedy = as fast as the connection takes it
	Seed   uint64 // of the content
	Stream uint32 // no two streams of a seed have the same content

	mu       sync.Mutex
	received Counter
	state    TransferState
}

// TransferState is how far one end of a transfer is.
type TransferState struct {
	Bytes  uint64 `json:"bytes"`         // sent or received so far
	Sum    string `json:"sum,omitempty"` // SHA-256 in hexadecimal, once all was sent, or the end was read
	Errors uint64 `json:"errors,omitempty"`
	Error  string `json:"error,omitempty"` // the last one
}

// Greedy is the rate of a transfer that nothing but its connection holds back.
const Greedy = math.MaxInt

// A transfer makes pieces writes a second; a greedy one writes greedyPiece bytes at a time.
const (
	pieces      = 200
	greedyPiece = 16 << 10
)

// State is how far this end is.
func (t *Transfer) State() TransferState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

// Received counts what Receive read: for the gaps.
func (t *Transfer) Received() *Counter { return &t.received }

// Send writes content at its rate until ctx ends, then closes its direction.
func (t *Transfer) Send(ctx context.Context, c interface {
	io.Writer
	CloseWrite() error
}) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], t.Seed)
	binary.BigEndian.PutUint64(key[8:], uint64(t.Stream))
	content, sum := rand.NewChaCha8(key), sha256.New()
	size := greedyPiece
	var due <-chan time.Time // nil: the next piece is always due
	if t.Rate != Greedy {
		size = max(1, t.Rate/8/pieces)
		tick := time.NewTicker(time.Second / pieces)
		defer tick.Stop()
		due = tick.C
	}
	if t.Rate == 0 {
		<-ctx.Done()
	}
	buf := make([]byte, size)
	for ctx.Err() == nil {
		_, _ = content.Read(buf) // never fails
		n, err := c.Write(buf)
		sum.Write(buf[:n])
		t.add(n)
		if err != nil {
			t.Fail("send", err)
			return
		}
		if due == nil {
			continue
		}
		select {
		case <-due:
		case <-ctx.Done():
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Fail("close", err)
		return
	}
	t.done(sum)
}

// Receive reads to the end.
func (t *Transfer) Receive(c io.Reader) {
	sum, buf := sha256.New(), make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			sum.Write(buf[:n])
			t.add(n)
			t.received.Bytes(n, time.Now().UnixNano())
		}
		if errors.Is(err, io.EOF) {
			t.done(sum)
			return
		}
		if err != nil {
			t.Fail("receive", err)
			return
		}
	}
}

func (t *Transfer) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Bytes += uint64(n)
}

func (t *Transfer) done(sum hash.Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Sum = fmt.Sprintf("%x", sum.Sum(nil))
}

// Fail notes that something went wrong at this end.
func (t *Transfer) Fail(what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Errors++
	t.state.Error = fmt.Sprintf("%s: %v", what, err)
}
