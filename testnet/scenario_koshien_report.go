package testnet

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/tabi-lisp/tabi/testnet/crowd"
	"github.com/tabi-lisp/tabi/testnet/plot"
)

// KoshienReport is what came of a broadcast. Times are in seconds after the first viewer came.
type KoshienReport struct {
	Pass     bool     `json:"pass"`
	Verdict  string   `json:"verdict"`
	Problems []string `json:"problems,omitempty"`

	Viewers   int               `json:"viewers"`
	Peak      int               `json:"peak"` // connections open at once
	Seconds   float64           `json:"seconds"`
	Requests  uint64            `json:"requests"`
	Failures  uint64            `json:"failures"`
	Bytes     uint64            `json:"bytes"`
	ByFamily  map[string]uint64 `json:"requests_by_family"`
	MedianMS  float64           `json:"wait_median_ms"`
	P99MS     float64           `json:"wait_p99_ms"`
	LongestMS float64           `json:"wait_longest_ms"`
	LongestAt float64           `json:"wait_longest_at"`

	Load     []KoshienLoad  `json:"load"`
	Timeline []crowd.Second `json:"timeline"`
	Events   []KoshienEvent `json:"events"`
	Reads    []KoshienReads `json:"statistics"`
	Moves    []*MoveReport  `json:"moves"`
	Machine  Machine        `json:"machine"`
	Pictures string         `json:"svg,omitempty"` // file that the plot was written to
}

// KoshienLoad is what passed a D-ETR over time: pairs of time and Mbit/s, both directions together.
type KoshienLoad struct {
	DETR string       `json:"detr"`
	Site string       `json:"site"`
	Mbit [][2]float64 `json:"mbit_s"`
}

// KoshienEvent is something that happened.
type KoshienEvent struct {
	At   float64 `json:"at"`
	What string  `json:"what"`
}

// KoshienReads is how often a D-ETR's statistics were read.
type KoshienReads struct {
	DETR  string `json:"detr"`
	Site  string `json:"site"`
	Reads uint64 `json:"reads"`
}

// Passed reports whether every viewer got everything.
func (r *KoshienReport) Passed() bool { return r.Pass }

// round3 is v to a thousandth.
func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// take takes what the viewers saw.
func (r *KoshienReport) take(s crowd.Stats, groups []crowd.Group) {
	r.Peak, r.Requests, r.Failures, r.Bytes = s.Peak, s.Requests, s.Failures, s.Bytes
	r.MedianMS, r.P99MS, r.LongestMS, r.LongestAt = s.MedianMS, s.P99MS, s.LongestMS, round3(s.LongestAt)
	r.Timeline, r.ByFamily = s.Seconds, make(map[string]uint64)
	for i, n := range s.ByGroup {
		r.ByFamily[groups[i].Name] = n
	}
	for _, e := range s.Errors {
		r.Problems = append(r.Problems, "failure: "+e)
	}
	slices.SortFunc(r.Reads, func(a, b KoshienReads) int { return strings.Compare(a.DETR, b.DETR) })
}

// judge fills the verdict.
func (r *KoshienReport) judge() {
	for _, m := range r.Moves {
		for _, p := range m.Problems {
			r.Problems = append(r.Problems, m.ID+": "+p)
		}
	}
	if r.Peak < r.Viewers {
		r.Problems = append(r.Problems, fmt.Sprintf("only %d of %d viewers were there at once", r.Peak, r.Viewers))
	}
	for _, s := range r.Reads {
		if s.Reads == 0 {
			r.Problems = append(r.Problems, "nobody could read the statistics of "+s.DETR)
		}
	}
	if len(r.Moves) < len(koshienTour) {
		r.Problems = append(r.Problems, fmt.Sprintf("the VM moved %d times of %d", len(r.Moves), len(koshienTour)))
	}
	r.Pass = r.Requests > 0 && r.Failures == 0 && len(r.Problems) == 0
	if r.Pass {
		r.Verdict = fmt.Sprintf("PASS: %d viewers asked %d times and none of them in vain; the longest wait of any was %s", r.Viewers, r.Requests, wait(r.LongestMS))
		return
	}
	r.Verdict = fmt.Sprintf("FAIL: %d viewers asked %d times, %d times in vain; %d problems", r.Viewers, r.Requests+r.Failures, r.Failures, len(r.Problems))
}

// wait writes a time for people.
func wait(ms float64) string {
	switch {
	case ms >= 1000:
		return fmt.Sprintf("%.1f s", ms/1000)
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// Chart is the broadcast as a drawing.
func (r *KoshienReport) Chart() *plot.Chart {
	c := &plot.Chart{Title: "Koshien: what passed each D-ETR", Seconds: r.Seconds,
		Subtitle: fmt.Sprintf("%d viewers, %d requests, %d failures, longest wait %s", r.Viewers, r.Requests, r.Failures, wait(r.LongestMS)),
		Panels: []plot.Panel{{Label: "through the D-ETR", Unit: "Mbit/s"},
			{Label: "longest wait", Unit: "ms", Peaks: true}}}
	for _, l := range r.Load {
		s := plot.Series{Name: l.Site}
		for _, p := range l.Mbit {
			s.Points = append(s.Points, plot.Point{At: p[0], Value: p[1]})
		}
		c.Panels[0].Series = append(c.Panels[0].Series, s)
	}
	s := plot.Series{Name: "of any viewer, in each second"}
	for i, sec := range r.Timeline {
		if at := float64(i) + 0.5; at < r.Seconds {
			s.Points = append(s.Points, plot.Point{At: at, Value: sec.LongestMS})
		}
	}
	c.Panels[1].Series = []plot.Series{s}
	for _, e := range r.Events {
		c.Events = append(c.Events, plot.Event{At: e.At, Label: e.What})
	}
	return c
}

// koshienColumns is how wide the plot is in a terminal.
const koshienColumns = 96

// WriteText writes the report for people.
func (r *KoshienReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.f("\n%s\n", r.Chart().Text(koshienColumns))
	p.f("viewers        %d, all connected at once: %v\n", r.Viewers, r.Peak >= r.Viewers)
	var families []string
	for _, f := range slices.Sorted(maps.Keys(r.ByFamily)) {
		families = append(families, fmt.Sprintf("%d over %s", r.ByFamily[f], f))
	}
	p.f("requests       %d (%s), %.1f MB\n", r.Requests, strings.Join(families, ", "), float64(r.Bytes)/1e6)
	p.f("failures       %d\n", r.Failures)
	p.f("waits          median %s, 99 %% below %s, longest %s (at %.1f s)\n", wait(r.MedianMS), wait(r.P99MS), wait(r.LongestMS), r.LongestAt)
	for _, s := range r.Reads {
		p.f("statistics     of the %s D-ETR were read %d times\n", s.Site, s.Reads)
	}
	for _, m := range r.Moves {
		p.f("move           %s -> %s: blackout %.0f ms, %d packets held, D-ETRs knew %.1f ms later\n", town[m.From], town[m.To], m.BlackoutMS, m.Held, m.RunToPushMS)
	}
	if r.Machine.BacklogDrops > 0 {
		p.f("this machine's kernel dropped %d packets because a CPU's input queue was full\n", r.Machine.BacklogDrops)
	}
	for _, where := range slices.Sorted(maps.Keys(r.Machine.LinkDrops)) {
		p.f("the kernel dropped at %s: %d\n", where, r.Machine.LinkDrops[where])
	}
	if r.Pictures != "" {
		p.f("plot           %s\n", r.Pictures)
	}
	p.few("problem", r.Problems)
	p.f("\n%s\n", r.Verdict)
	return p.err
}
