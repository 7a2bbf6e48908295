package testnet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

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
	// MaxGapMS is the median over the windows of the longest gap around each; over the whole run if there is none.
	MaxGapMS float64 `json:"max_gap_ms"`
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
}

// OK reports whether nothing was lost, doubled or changed.
func (f FlowReport) OK() bool {
	return f.Sent > 0 && f.Lost == 0 && f.Duplicated == 0 && f.TesterDrops == 0 && (f.Intact == nil || *f.Intact)
}

// flow is a pair of streams, or one: what runs between two endpoints.
type flow interface {
	start(ctx context.Context) error
	stopSending(ctx context.Context) // returns when nothing more is sent
	outstanding() uint64             // what was sent and has not arrived
	close() error                    // ends the receivers
	report(windows []Window) []FlowReport
}

// Flows is a set of flows that start and stop together.
type Flows struct {
	mu      sync.Mutex
	flows   []flow
	next    uint32 // stream number
	started bool
}

// stream hands out stream numbers.
func (f *Flows) stream() uint32 {
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
		if err := fl.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// straggleQuiet and straggleMax say how long Stop waits for what is still under way: until nothing has come for so
// long, at most so long.
const (
	straggleQuiet = 1500 * time.Millisecond
	straggleMax   = 15 * time.Second
)

// Stop ends the senders, waits for stragglers, and ends the receivers. The report can be had after it.
func (f *Flows) Stop(ctx context.Context) error {
	f.mu.Lock()
	flows := f.flows
	if !f.started {
		f.mu.Unlock()
		return nil
	}
	f.started = false
	f.mu.Unlock() // the others may ask meanwhile
	var wg sync.WaitGroup
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
	var errs []error
	for _, fl := range flows {
		errs = append(errs, fl.close())
	}
	return errors.Join(errs...)
}

// Close ends everything at once, stopped or not.
func (f *Flows) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := f.Stop(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
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
func (r *FlowReport) gapsOf(c *counter, windows []Window) {
	r.Gaps = []float64{}
	for _, w := range windows {
		r.Gaps = append(r.Gaps, ms(c.longestGap(w)))
	}
	if len(windows) == 0 {
		far := Window{time.Unix(0, 0), time.Unix(1<<33, 0)}
		r.MaxGapMS = ms(c.longestGap(far))
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
