package testnet

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// heartbeat is a ping whose answers are remembered one by one: how long the far end was out of service is read from
// the times of the answers, not from how many are missing, since a cloud that holds packets for a VM that is on its way
// loses none of them.
type heartbeat struct {
	sock   *icmpSocket
	stop   chan struct{}
	ended  sync.WaitGroup
	asked  atomic.Uint64
	mu     sync.Mutex
	heard  []time.Time // by the kernel's clock
	failed error       // the last of sending
}

// heartbeatEvery is the time between two requests.
const heartbeatEvery = 50 * time.Millisecond

// heartbeats numbers them: every socket hears the answers to all of a host's pings.
var heartbeats atomic.Uint32

// startHeartbeat begins to ask dst.
func startHeartbeat(from *Namespace, src, dst netip.Addr) (*heartbeat, error) {
	sock, err := openICMP(from, src)
	if err != nil {
		return nil, err
	}
	h := &heartbeat{sock: sock, stop: make(chan struct{})}
	id := 1<<31 | heartbeats.Add(1)
	h.ended.Go(func() {
		_ = sock.receive(func(st stream.Stamp, got aside) {
			if st.Stream != id {
				return
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.heard = append(h.heard, time.Unix(0, got.atNS))
		})
	})
	h.ended.Go(func() {
		tick := time.NewTicker(heartbeatEvery)
		defer tick.Stop()
		for seq := uint64(0); ; seq++ {
			select {
			case <-h.stop:
				return
			case <-tick.C:
			}
			h.asked.Add(1)
			if err := sock.echo(dst, stream.Stamp{Stream: id, Seq: seq, SentNS: time.Now().UnixNano()}); err != nil {
				h.mu.Lock()
				h.failed = err
				h.mu.Unlock()
			}
		}
	})
	return h, nil
}

// end stops asking and returns when answers came, how many times was asked, and how sending failed.
func (h *heartbeat) end() (heard []time.Time, asked uint64, err error) {
	close(h.stop)
	err = h.sock.close()
	h.ended.Wait()
	return h.heard, h.asked.Load(), errors.Join(err, h.failed)
}

// span is a time from one moment to another.
type span struct{ from, to time.Time }

func (s span) length() time.Duration { return s.to.Sub(s.from) }

// silences are the times of at least least in which nothing was heard, between begin and end.
func silences(heard []time.Time, begin, end time.Time, least time.Duration) (out []span) {
	all := slices.Clone(heard)
	slices.SortFunc(all, time.Time.Compare)
	last := begin
	for _, at := range append(all, end) {
		if at.Before(begin) || at.After(end) {
			continue
		}
		if at.Sub(last) >= least {
			out = append(out, span{last, at})
		}
		last = at
	}
	return out
}
