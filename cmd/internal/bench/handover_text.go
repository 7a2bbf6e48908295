package bench

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/tabi-lisp/tabi/testnet"
)

// Write writes the report for people.
func (h *Handover) Write(w io.Writer) error {
	p := &handoverPrinter{w: w}
	speed := "as fast as the VM can"
	if h.BitRate > 0 {
		speed = fmt.Sprintf("%g Mbit/s", float64(h.BitRate)/1e6)
	}
	p.f("The same VM (%s) moved in the same way under each system, %d times each, in turn, while one client exchanged UDP with it and downloaded by TCP (%s).\n",
		h.VM, h.Moves, speed)
	p.f("Of each move: UDP packets lost, both ways together; the longest time without a UDP packet, and without a byte of the TCP download.\n")
	for i := range h.Settings {
		p.setting(&h.Settings[i])
	}
	for _, a := range h.SetAside {
		p.f("set aside and made again: %s\n", a.line())
	}
	for _, why := range h.Invalid {
		p.f("INVALID: %s\n", why)
	}
	for _, c := range h.Claims {
		if c.Holds {
			p.f("holds: %s\n", c.Text)
		} else {
			p.f("DOES NOT HOLD: %s: %s\n", c.Text, c.But)
		}
	}
	if h.VM != testnet.VMQEMU {
		p.f("TCP stalls are not compared: the programs in a %s VM run on while it is dark.\n", h.VM)
	}
	p.f("\n%s\n", h.Verdict())
	return p.err
}

// Verdict is the report in one line.
func (h *Handover) Verdict() string {
	failed := 0
	for _, c := range h.Claims {
		if !c.Holds {
			failed++
		}
	}
	switch {
	case !h.Valid:
		return "INVALID: packets were lost where nothing moved: this run says nothing"
	case failed > 0:
		return fmt.Sprintf("FAIL: %d of %d claims do not hold", failed, len(h.Claims))
	}
	return fmt.Sprintf("PASS: all %d claims hold", len(h.Claims))
}

// handoverPrinter keeps the first error.
type handoverPrinter struct {
	w   io.Writer
	err error
}

func (p *handoverPrinter) f(format string, a ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, a...)
	}
}

func (p *handoverPrinter) setting(s *HandoverSetting) {
	p.f("\n%s\n", s.Name())
	t := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, err := fmt.Fprintln(t, "\tlost\tp95\tmax\tgap ms\tp95\tmax\tTCP stall ms\tp95\tmax\tstopped ms\tp95\tmax\twithout a move\t")
	for _, r := range s.Rows {
		_, e := fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\tlost %d\t\n", r.System,
			r.Lost.Median, r.Lost.P95, r.Lost.Max, r.Gap.Median, r.Gap.P95, r.Gap.Max, r.Stall.Median, r.Stall.P95, r.Stall.Max,
			r.Blackout.Median, r.Blackout.P95, r.Blackout.Max, r.Control.Lost())
		err = errors.Join(err, e)
	}
	if err := errors.Join(err, t.Flush()); p.err == nil {
		p.err = err
	}
	for _, r := range s.Rows {
		if r.Duplicated > 0 || r.Reordered > 0 || r.Broken > 0 {
			p.f("  %s: of %d packets %d came twice, %d out of order; %d TCP transfers broke\n", r.System, r.Sent, r.Duplicated, r.Reordered, r.Broken)
		}
	}
}
