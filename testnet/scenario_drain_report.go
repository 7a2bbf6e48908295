package testnet

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// DrainReport is what came of draining a hypervisor.
type DrainReport struct {
	Pass     bool   `json:"pass"`
	Verdict  string `json:"verdict"`
	VMs      int    `json:"vms"`
	From     string `json:"from"`
	Parallel int    `json:"parallel"` // moves at the same time, at most
	AtOnce   int    `json:"at_once"`  // as it was
	// Seconds are from the first move's beginning until the last VM runs on its new hypervisor.
	Seconds float64      `json:"seconds"`
	Moves   []*DrainMove `json:"moves"`

	Sent       uint64 `json:"sent"` // packets of all flows
	Received   uint64 `json:"received"`
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	// Broken are the flows that lost or doubled packets.
	Broken []FlowReport `json:"broken,omitempty"`

	Blackout   Spread   `json:"blackout_ms"`
	Prepare    Spread   `json:"prepare_ms"`
	RunToPush  Spread   `json:"run_to_push_ms"` // until the last D-ETR had both EIDs in its kernel
	TableLooks int      `json:"table_looks"`    // readings of the tables of Map-Servers and D-ETRs
	WireFrames uint64   `json:"wire_frames"`    // LISP data packets of these VMs that were looked at
	WireMissed uint64   `json:"wire_missed"`    // and those that passed unseen
	Misplaced  []string `json:"misplaced,omitempty"`
	Usage      []Usage  `json:"usage"`
	// Dropped is what the data planes dropped meanwhile, by host and reason. Not all of it is anybody's loss: a VM's own
	// probes on its link are among it.
	Dropped  map[string]uint64 `json:"dropped"`
	Machine  Machine           `json:"machine"`
	Problems []string          `json:"problems,omitempty"`
}

// DrainMove is one VM's move.
type DrainMove struct {
	ID          string   `json:"id"`
	VM          string   `json:"vm"`
	To          string   `json:"to"`
	PrepareMS   float64  `json:"prepare_ms"`
	BlackoutMS  float64  `json:"blackout_ms"`
	RunToPushMS float64  `json:"run_to_push_ms"`
	Problems    []string `json:"problems,omitempty"`

	ran    time.Time
	window Window
}

// Spread is how values are distributed.
type Spread struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
}

// spread of the values; the zero value of none.
func spread(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(v))
	return Spread{Median: median(s), P95: s[min(len(s)*95/100, len(s)-1)], Max: s[len(s)-1]}
}

func (s Spread) String() string { return fmt.Sprintf("%.1f / %.1f / %.1f ms", s.Median, s.P95, s.Max) }

// judge fills in what the flows saw, and the verdict.
func (r *DrainReport) judge(flows []FlowReport) {
	for _, f := range flows {
		r.Sent, r.Received, r.Lost = r.Sent+f.Sent, r.Received+f.Received, r.Lost+f.Lost
		r.Duplicated, r.Reordered = r.Duplicated+f.Duplicated, r.Reordered+f.Reordered
		if !f.OK() {
			f.Gaps = nil // one for each move of any VM
			r.Broken = append(r.Broken, f)
		}
		if f.TesterDrops > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: the tester's own socket dropped %d packets: this run proves nothing", f.Name, f.TesterDrops))
		}
	}
	var blackout, prepare, push []float64
	for _, m := range r.Moves {
		blackout, prepare, push = append(blackout, m.BlackoutMS), append(prepare, m.PrepareMS), append(push, m.RunToPushMS)
		for _, p := range m.Problems {
			r.Problems = append(r.Problems, m.ID+": "+p)
		}
	}
	r.Blackout, r.Prepare, r.RunToPush = spread(blackout), spread(prepare), spread(push)
	if len(r.Moves) != r.VMs {
		r.Problems = append(r.Problems, fmt.Sprintf("%d of %d VMs moved", len(r.Moves), r.VMs))
	}
	if r.Machine.VMMLost > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("the tester's own VMM lost %d frames: this run proves nothing", r.Machine.VMMLost))
	}
	if r.WireMissed > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d packets passed the router unseen: where EIDs were on the wire is not proved", r.WireMissed))
	}
	r.Pass = r.Sent > 0 && r.Lost == 0 && r.Duplicated == 0 && len(r.Broken) == 0 && len(r.Misplaced) == 0 && len(r.Problems) == 0
	if r.Pass {
		r.Verdict = fmt.Sprintf("PASS: %d VMs left %s in %.1f s; of %d packets none was lost and none came twice; no EID was ever in two places", r.VMs, r.From, r.Seconds, r.Sent)
		return
	}
	var why []string
	for _, w := range []struct {
		n    uint64
		text string
	}{{r.Lost, "%d packets lost"}, {r.Duplicated, "%d duplicated"}, {uint64(len(r.Misplaced)), "%d sightings of EIDs where they should not be"},
		{uint64(len(r.Problems)), "%d problems"}} {
		if w.n > 0 {
			why = append(why, fmt.Sprintf(w.text, w.n))
		}
	}
	r.Verdict = fmt.Sprintf("FAIL: %d of %d VMs left %s; of %d packets %d arrived: %s", len(r.Moves), r.VMs, r.From, r.Sent, r.Received, strings.Join(why, ", "))
}

// Passed reports whether everything was as it should be.
func (r *DrainReport) Passed() bool { return r.Pass }

// listed bounds how many lines of one kind a report for people has.
const listed = 10

// WriteText writes the report for people.
func (r *DrainReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	to := map[string]int{}
	for _, m := range r.Moves {
		to[m.To]++
	}
	p.f("\n%s drained of %d VMs in %.1f s, %d moves at a time\n", r.From, r.VMs, r.Seconds, r.AtOnce)
	for _, hv := range slices.Sorted(maps.Keys(to)) {
		p.f("  -> %-14s %d VMs\n", hv, to[hv])
	}
	p.f("\nmedian / 95th percentile / maximum over the moves\n")
	p.f("  prepare                          %s\n  blackout                         %s\n  run to the D-ETRs' kernels       %s\n", r.Prepare, r.Blackout, r.RunToPush)
	p.f("\nflows: %d packets sent, %d received, %d lost, %d doubled, %d reordered\n", r.Sent, r.Received, r.Lost, r.Duplicated, r.Reordered)
	if len(r.Broken) > 0 {
		p.flows(r.Broken[:min(len(r.Broken), listed)])
		for _, f := range r.Broken[:min(len(r.Broken), listed)] {
			p.f("%s: missing are numbers %v; %d could not be sent %s\n", f.Name, f.Missing, f.SendErrors, f.LastError)
		}
	}
	p.f("places: %d readings of the tables of Map-Servers and D-ETRs, %d packets looked at on the wire\n", r.TableLooks, r.WireFrames)
	p.few("misplaced", r.Misplaced)
	p.usage(r.Usage)
	for _, what := range slices.Sorted(maps.Keys(r.Dropped)) {
		p.f("dropped at %s: %d\n", what, r.Dropped[what])
	}
	if r.Machine.BacklogDrops > 0 {
		p.f("this machine's kernel dropped %d packets because a CPU's input queue was full\n", r.Machine.BacklogDrops)
	}
	for _, where := range slices.Sorted(maps.Keys(r.Machine.LinkDrops)) {
		p.f("the kernel dropped at %s: %d\n", where, r.Machine.LinkDrops[where])
	}
	p.few("problem", r.Problems)
	p.f("\n%s\n", r.Verdict)
	return p.err
}

// few prints the first lines of a kind, and how many more there are.
func (p *printer) few(kind string, lines []string) {
	for _, l := range lines[:min(len(lines), listed)] {
		p.f("%s: %s\n", kind, l)
	}
	if more := len(lines) - listed; more > 0 {
		p.f("%s: and %d more\n", kind, more)
	}
}

// usage prints what the daemons took.
func (p *printer) usage(all []Usage) {
	p.f("\n")
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, err := fmt.Fprintln(t, "daemon\trole\tCPU s\tCPU %\tMiB before\tMiB at most\tMiB after\t")
	for _, u := range all {
		_, e := fmt.Fprintf(t, "%s\t%s\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", u.Host, u.Role, u.CPUSeconds, u.CPUPercent, u.MemoryBeginMiB, u.MemoryPeakMiB, u.MemoryEndMiB)
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, t.Flush()); p.err == nil {
		p.err = err
	}
}
