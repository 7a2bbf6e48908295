package testnet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// Endpoint is where a flow begins or ends: a [Namespace] of this machine, or a [Guest].
type Endpoint interface {
	Name() string
	// endpoint is which of the two it is: the other one is nil.
	endpoint() (*Namespace, *Guest)
}

func (n *Namespace) endpoint() (*Namespace, *Guest) { return n, nil }

// Window is a span of time, such as that of a move.
type Window struct{ From, To time.Time }

// FlowReport is what one stream's receiver saw, in one direction.
type FlowReport struct {
	Name       string `json:"name"`
	Unit       string `json:"unit"` // "packets" or "bytes"
	Sent       uint64 `json:"sent"`
	Received   uint64 `json:"received"` // different packets
	Lost       uint64 `json:"lost"`     // sent, not received, and not dropped by the tester's own socket
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	// Detoured are those of Reordered whose way had at least two routers more than that of the packet which overtook
	// them: they went over the VM's old host while others already went straight to the new one.
	Detoured uint64 `json:"detoured,omitempty"`
	// MaxGapMS is the median over the windows of the longest gap around each; over the whole run if there is none.
	MaxGapMS float64 `json:"max_gap_ms"`
	// Where a guest receives, whose clock stands still with it, gaps are those of its acknowledgements as they are heard
	// here; there are none for a stream that only guests see.
	//
	// GapMaxMS is the longest gap in any window.
	GapMaxMS   float64   `json:"gap_max_ms"`
	Gaps       []float64 `json:"gaps_ms"` // the longest of each window
	DelayMaxMS float64   `json:"delay_max_ms,omitempty"`
	// TesterDrops were lost in the receiver's own socket: the tester's fault, not the network's.
	TesterDrops uint64      `json:"tester_drops"`
	SendErrors  uint64      `json:"send_errors"` // counted as sent, and so as lost
	LastError   string      `json:"last_error,omitempty"`
	Missing     [][2]uint64 `json:"missing,omitempty"` // the first ranges of lost sequence numbers
	Intact      *bool       `json:"content_intact,omitempty"`
	// Incomplete says why the counts are not the last word: a guest did not answer. Such a stream is not OK.
	Incomplete string `json:"incomplete,omitempty"`
}

// OK reports whether nothing was lost, doubled or changed.
func (f FlowReport) OK() bool {
	return f.Incomplete == "" && f.Sent > 0 && f.Lost == 0 && f.Duplicated == 0 && f.TesterDrops == 0 && (f.Intact == nil || *f.Intact)
}

// flow is a pair of streams, or one: what runs between two endpoints.
type flow interface {
	// open opens the sockets and starts to count; ends in guests are opened through f.
	open(ctx context.Context, f *Flows) error
	start(ctx context.Context) error
	stopSending(ctx context.Context) // returns when nothing more is sent
	outstanding() uint64             // what was sent and has not arrived
	lanes() []*lane                  // its streams of packets
	close() error                    // ends the receivers
	report(windows []Window) []FlowReport
}

// Flows is a set of flows that start and stop together.
type Flows struct {
	mu      sync.Mutex
	flows   []flow
	guests  map[*Guest]*guestSession
	next    uint32 // stream number
	started bool
}

// number hands out stream numbers.
func (f *Flows) number() uint32 {
	f.next++
	return f.next
}

// Start starts the flows that were added. Packets that arrive before the first answer are waited for by nobody: the
// path must work.
func (f *Flows) Start(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.started {
		return errors.New("testnet: flows run already")
	}
	f.started = true
	for _, fl := range f.flows {
		if err := fl.open(ctx, f); err != nil {
			return err
		}
	}
	for _, s := range f.guests {
		if err := s.start(ctx); err != nil {
			return err
		}
	}
	for _, fl := range f.flows {
		if err := fl.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// session is what these flows have open in a guest; with mu held.
func (f *Flows) session(g *Guest) *guestSession {
	if f.guests == nil {
		f.guests = make(map[*Guest]*guestSession)
	}
	s := f.guests[g]
	if s == nil {
		s = newGuestSession(g)
		f.guests[g] = s
	}
	return s
}

// straggleQuiet and straggleMax say how long Stop waits for what is still under way: until nothing has come for so
// long, at most so long.
const (
	straggleQuiet = 1500 * time.Millisecond
	straggleMax   = 15 * time.Second
)

// Stop ends the senders, waits for stragglers, and ends the receivers. The report can be had after it.
func (f *Flows) Stop(ctx context.Context) error {
	return errors.Join(f.stop(ctx))
}

// stop stops, and tells what guests did not do from what was wrong here.
func (f *Flows) stop(ctx context.Context) (there, here error) {
	f.mu.Lock()
	flows, guests := f.flows, f.guests
	if !f.started {
		f.mu.Unlock()
		return nil, nil
	}
	f.started = false
	f.mu.Unlock() // the others may ask meanwhile
	var wg sync.WaitGroup
	for _, s := range guests {
		wg.Go(func() { s.stop(ctx) })
	}
	for _, fl := range flows {
		wg.Go(func() { fl.stopSending(ctx) })
	}
	wg.Wait()
	quietSince, last := time.Now(), uint64(0)
	for begin := time.Now(); time.Since(begin) < straggleMax && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		var out uint64
		for _, fl := range flows {
			out += fl.outstanding()
		}
		if out != last {
			quietSince, last = time.Now(), out
		}
		// A duplicate may still follow a packet: not at once, then, even if everything is here.
		if wait := straggleQuiet; time.Since(quietSince) > wait || out == 0 && time.Since(quietSince) > wait/5 {
			break
		}
	}
	for _, s := range guests {
		there = errors.Join(there, s.end(ctx, f.sent(flows)))
	}
	for _, fl := range flows {
		here = errors.Join(here, fl.close())
	}
	return there, here
}

// sent is how many packets of each stream were sent, by its number.
func (f *Flows) sent(flows []flow) map[uint32]uint64 {
	out := make(map[uint32]uint64)
	for _, fl := range flows {
		for _, l := range fl.lanes() {
			out[l.id] = l.sending().Packets
		}
	}
	return out
}

// Close ends everything at once, stopped or not. A guest that does not answer is left to find out by itself.
func (f *Flows) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := f.stop(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.guests {
		s.close()
	}
	for _, fl := range f.flows {
		err = errors.Join(err, fl.close())
	}
	return err
}

// Report says what the receivers saw; gaps are taken from the windows.
func (f *Flows) Report(windows []Window) []FlowReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []FlowReport
	for _, fl := range f.flows {
		out = append(out, fl.report(windows)...)
	}
	return out
}

// Line says in one line what the flows see while they run: sent, received and still missing.
func (f *Flows) Line() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sent, missing uint64
	for _, fl := range f.flows {
		for _, r := range fl.report(nil) {
			if r.Unit == "packets" {
				sent += r.Sent
				missing += r.Sent - min(r.Sent, r.Received)
			}
		}
	}
	return fmt.Sprintf("%d packets sent, %d under way", sent, missing)
}

// gapsOf fills the gap columns.
func (r *FlowReport) gapsOf(c *stream.Counter, windows []Window) {
	r.Gaps = []float64{}
	for _, w := range windows {
		r.Gaps = append(r.Gaps, ms(c.LongestGap(w.From, w.To)))
	}
	if len(windows) == 0 {
		far := Window{time.Unix(0, 0), time.Unix(1<<33, 0)}
		r.MaxGapMS = ms(c.LongestGap(far.From, far.To))
		r.GapMaxMS = r.MaxGapMS
		return
	}
	r.MaxGapMS, r.GapMaxMS = median(r.Gaps), slices.Max(r.Gaps)
}

// ms is d in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// median of the values, to a thousandth; 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return math.Round((s[(n-1)/2]+s[n/2])*500) / 1000
}
