package testnet

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// SatelliteReport sets a camp's move over a satellite link beside the published one of 2011.
type SatelliteReport struct {
	Pass    bool   `json:"pass"`
	Verdict string `json:"verdict"`
	From    string `json:"from"` // hypervisors
	To      string `json:"to"`
	BitRate uint64 `json:"bits_per_second"` // of the link between them
	// Seconds are from the beginning of the first VM's copy until the last VM runs at the target.
	Seconds float64 `json:"seconds"`
	// Chosen says how memory was copied, and why so.
	Chosen   string    `json:"chosen"`
	VMs      []*CampVM `json:"vms"`
	Machine  Machine   `json:"machine"`
	Problems []string  `json:"problems,omitempty"`
}

// CampVM is one VM's move. Times are in seconds after the beginning of the first VM's copy.
type CampVM struct {
	Name string `json:"name"`
	// CopyBegin is when its disks began to be copied, Stopped and Resumed are its hypervisors' own times.
	CopyBegin float64 `json:"copy_begin"`
	Stopped   float64 `json:"stopped"`
	Resumed   float64 `json:"resumed"`
	MemoryMiB float64 `json:"memory_mib"` // copied, before it was compressed
	DiskMiB   float64 `json:"disk_mib"`   // in its own image, which is the difference to the base
	// Out are the times in which a client on the Internet heard nothing of it, and OutSeconds their sum.
	Out        [][2]float64 `json:"out"`
	OutSeconds float64      `json:"out_seconds"`
	// OutMinutes is that in the time scale of 2011, where the whole move took 157 minutes.
	OutMinutes float64 `json:"out_minutes_scaled"`
	// PublishedMinutes are those of its like in 2011; 0 = not published.
	PublishedMinutes float64 `json:"published_minutes,omitempty"`
	DiskBlocks       uint64  `json:"disk_blocks_checked"`
	DiskWrong        uint64  `json:"disk_blocks_wrong"`
	Asked            uint64  `json:"asked"`
	Answered         uint64  `json:"answered"`
	Version          uint16  `json:"version"`
}

// Passed reports whether everything was as it should be.
func (r *SatelliteReport) Passed() bool { return r.Pass }

// The move of 2011. A mobile router moved first, and until each of the three VMs behind it had followed, it could not
// be reached: for so many of the minutes that the whole took.
const publishedTotal = 157

var publishedOut = [3]float64{53, 81, 101}

// judge fills the figures that follow from others, and the verdict.
func (r *SatelliteReport) judge() {
	worse := 0
	for i, v := range r.VMs {
		v.OutSeconds = 0
		for _, o := range v.Out {
			v.OutSeconds += o[1] - o[0]
		}
		if r.Seconds > 0 {
			v.OutMinutes = math.Round(v.OutSeconds/r.Seconds*publishedTotal*10) / 10
		}
		if i > 0 && len(r.VMs) == 1+len(publishedOut) { // a camp of another size is not that of 2011
			v.PublishedMinutes = publishedOut[i-1]
			if v.OutMinutes >= v.PublishedMinutes {
				worse++
			}
		}
		if v.DiskWrong > 0 || v.DiskBlocks == 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: of %d blocks of its disk %d are wrong", v.Name, v.DiskBlocks, v.DiskWrong))
		}
		if v.Resumed <= v.Stopped {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: it stopped at %.1f s and ran again at %.1f s", v.Name, v.Stopped, v.Resumed))
		}
	}
	if worse > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d VMs were out of service for longer than those of 2011", worse))
	}
	r.Pass = len(r.VMs) > 1 && len(r.Problems) == 0
	longest := 0.0
	for _, v := range r.VMs {
		longest = max(longest, v.OutMinutes)
	}
	if r.Pass {
		r.Verdict = fmt.Sprintf("PASS: %d VMs moved with their disks in %.1f s; in the time scale of 2011 none was out of service for more than %.0f minutes, where it was %.0f to %.0f",
			len(r.VMs), r.Seconds, longest, publishedOut[0], publishedOut[len(publishedOut)-1])
		return
	}
	r.Verdict = fmt.Sprintf("FAIL: %d VMs, %d problems", len(r.VMs), len(r.Problems))
}

// Marks of a bar.
const (
	markHere  = '─' // it runs where it was
	markCopy  = '═' // it runs where it was, and is being copied
	markOut   = '█' // out of service
	markThere = '━' // it runs at the target
)

const barWidth = 60

// bar draws a VM's time line, of so many columns: total is the length of the whole; the VM runs at the target from
// arrived on; copy is when its copy began, and out are its times out of service. What is out of service for a moment
// only is a column still.
func bar(width int, total, copyBegin, arrived float64, out [][2]float64) string {
	column := func(t float64) int { return min(max(int(t/total*float64(width)), 0), width) }
	b := make([]rune, width)
	for i := range b {
		switch {
		case i >= column(arrived):
			b[i] = markThere
		case i >= column(copyBegin):
			b[i] = markCopy
		default:
			b[i] = markHere
		}
	}
	for _, o := range out {
		from := min(column(o[0]), width-1)
		for i := from; i < max(column(o[1]), from+1); i++ {
			b[i] = markOut
		}
	}
	return string(b)
}

// WriteText writes the report for people.
func (r *SatelliteReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.f("\n2011: %d minutes in all; the mobile router moved first, and what was behind it waited for its own turn\n", publishedTotal)
	// The last of them came back at the end; before it was unreachable the router moved.
	moved := publishedTotal - publishedOut[len(publishedOut)-1]
	p.f("  %-8s %s  (not published)\n", "router", bar(barWidth, publishedTotal, 0, moved, nil))
	for i, out := range publishedOut {
		p.f("  %-8s %s  %3.0f minutes\n", fmt.Sprintf("VM %d", i+1), bar(barWidth, publishedTotal, moved, moved+out, [][2]float64{{moved, moved + out}}), out)
	}
	p.f("\nhere: %.1f s in all over %.1f Mbit/s, %s -> %s\n", r.Seconds, float64(r.BitRate)/1e6, r.From, r.To)
	for _, v := range r.VMs {
		p.f("  %-8s %s  %5.1f s\n", v.Name, bar(barWidth, r.Seconds, v.CopyBegin, v.Resumed, v.Out), v.OutSeconds)
	}
	p.f("  %c runs at %s   %c is copied meanwhile   %c out of service   %c runs at %s\n\n", markHere, r.From, markCopy, markOut, markThere, r.To)
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, err := fmt.Fprintf(t, "VM\tmemory MiB\tdisk MiB\tout s\tof the whole\tin minutes of %d\tpublished\tpings\tanswered\tblocks checked\twrong\t\n", publishedTotal)
	for _, v := range r.VMs {
		published := "-"
		if v.PublishedMinutes > 0 {
			published = fmt.Sprintf("%.0f", v.PublishedMinutes)
		}
		_, e := fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.0f %%\t%.1f\t%s\t%d\t%d\t%d\t%d\t\n", v.Name, v.MemoryMiB, v.DiskMiB, v.OutSeconds,
			100*v.OutSeconds/max(r.Seconds, 1e-9), v.OutMinutes, published, v.Asked, v.Answered, v.DiskBlocks, v.DiskWrong)
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, t.Flush()); p.err == nil {
		p.err = err
	}
	p.f("\n%s\n", strings.TrimSpace(r.Chosen))
	p.few("problem", r.Problems)
	p.f("\n%s\n", r.Verdict)
	return p.err
}
