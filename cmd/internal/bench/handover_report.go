package bench

import (
	"fmt"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/testnet"
)

// Handover is the report of `tabi bench handover`.
type Handover struct {
	VM      string  `json:"vm"`
	Moves   int     `json:"moves"`               // of each system in each setting
	BitRate int     `json:"tcp_bits_per_second"` // 0 = as fast as the VM could
	Seconds float64 `json:"seconds"`
	// Valid is false if something was lost where nothing moved: then the figures say nothing, and Invalid why.
	Valid   bool     `json:"valid"`
	Invalid []string `json:"invalid,omitempty"`
	// Pass: the run is valid, and all claims hold.
	Pass     bool              `json:"pass"`
	Claims   []Claim           `json:"claims"`
	Settings []HandoverSetting `json:"settings"`
	SetAside []SetAside        `json:"set_aside,omitempty"`
}

// Claim is something that this project says of itself.
type Claim struct {
	Text  string `json:"text"`
	Holds bool   `json:"holds"`
	// But is what did not hold, "" if it holds.
	But string `json:"but,omitempty"`
}

// HandoverSetting is one setting, in which every system moved its VM equally often.
type HandoverSetting struct {
	Rate       int           `json:"rate"`              // UDP packets a second each way
	DowntimeMS float64       `json:"downtime_limit_ms"` // 0 = QEMU's default
	Rows       []HandoverRow `json:"systems"`

	limit time.Duration
}

// Name is a setting in a few words.
func (s *HandoverSetting) Name() string {
	if s.limit == 0 {
		return fmt.Sprintf("%d packets/s, default downtime limit", s.Rate)
	}
	return fmt.Sprintf("%d packets/s, downtime limit %s", s.Rate, s.limit)
}

// row is a system's; nil if it was not measured.
func (s *HandoverSetting) row(w testnet.Way) *HandoverRow {
	i := slices.IndexFunc(s.Rows, func(r HandoverRow) bool { return r.System == w })
	if i < 0 {
		return nil
	}
	return &s.Rows[i]
}

// HandoverRow is what one system's client and VM saw in one setting.
type HandoverRow struct {
	System testnet.Way `json:"system"`
	About  string      `json:"about"`
	// Of each move: UDP packets lost both ways together, and of the times, in ms, the longest.
	Lost     Spread `json:"lost"`
	Gap      Spread `json:"gap_ms"`
	Stall    Spread `json:"tcp_stall_ms"`
	Blackout Spread `json:"blackout_ms"` // STOP to RESUME, by the VMM
	// Over all moves.
	Sent       uint64 `json:"sent"`
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	Broken     int    `json:"tcp_broken"` // moves in which the content of a TCP transfer did not arrive as it was sent
	// Unexplained trials failed with nobody known to be at fault but the system. They were made again.
	Unexplained int `json:"unexplained,omitempty"`
	// Control is what was seen without a move, Trials each move, in their order.
	Control testnet.TrialResult   `json:"control"`
	Trials  []testnet.TrialResult `json:"trials"`

	aside int
}

// Spread is a figure of several moves.
type Spread struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
}

// spread is that of one figure of the moves, of which there are some.
func spread(moves []testnet.TrialResult, figure func(testnet.TrialResult) float64) Spread {
	var v []float64
	for _, m := range moves {
		v = append(v, figure(m))
	}
	slices.Sort(v)
	return Spread{quantile(v, 0.5), quantile(v, 0.95), v[len(v)-1]}
}

// SetAside is a trial that does not count: the tester or the VMM was at fault, or it failed for reasons unknown, which
// counts against the system. It was made again.
type SetAside struct {
	System     testnet.Way         `json:"system"`
	Rate       int                 `json:"rate"`
	DowntimeMS float64             `json:"downtime_limit_ms"`
	Result     testnet.TrialResult `json:"result"` // Flaws says what was at fault
	Error      string              `json:"error,omitempty"`
}

func (s SetAside) line() string {
	why := slices.Clone(s.Result.Flaws)
	if s.Error != "" {
		why = append(why, s.Error)
	}
	return fmt.Sprintf("%s at %d packets/s, which lost %d: %q", s.System, s.Rate, s.Result.Lost(), why)
}

// newHandover is an empty report.
func newHandover(o HandoverOptions) *Handover {
	h := &Handover{VM: o.VM, Moves: o.Moves, BitRate: o.BitRate, Claims: []Claim{}}
	for _, limit := range o.Downtimes {
		for _, rate := range o.Rates {
			s := HandoverSetting{Rate: rate, DowntimeMS: limit.Seconds() * 1000, limit: limit}
			for _, w := range o.Systems {
				s.Rows = append(s.Rows, HandoverRow{System: w, About: w.About()})
			}
			h.Settings = append(h.Settings, s)
		}
	}
	return h
}

// add counts one trial.
func (r *HandoverRow) add(t testnet.TrialResult, still bool) {
	if still {
		r.Control = t
		return
	}
	r.Trials = append(r.Trials, t)
	r.Lost = spread(r.Trials, func(t testnet.TrialResult) float64 { return float64(t.Lost()) })
	r.Gap = spread(r.Trials, func(t testnet.TrialResult) float64 { return t.GapMS })
	r.Stall = spread(r.Trials, func(t testnet.TrialResult) float64 { return t.StallMS })
	r.Blackout = spread(r.Trials, func(t testnet.TrialResult) float64 { return t.BlackoutMS })
	r.Sent += t.Sent
	r.Duplicated += t.Duplicated
	r.Reordered += t.Reordered
	if !t.Intact {
		r.Broken++
	}
}

// judge says whether the run is valid, and what holds.
func (h *Handover) judge() {
	h.Invalid, h.Claims = nil, []Claim{}
	for i := range h.Settings {
		s := &h.Settings[i]
		for _, r := range s.Rows {
			if c := r.Control; c.Lost() > 0 || c.Duplicated > 0 || !c.Intact || c.Sent == 0 {
				h.Invalid = append(h.Invalid, fmt.Sprintf("%s, %s: without a move %d of %d packets were lost, %d doubled", s.Name(), r.System, c.Lost(), c.Sent, c.Duplicated))
			}
		}
	}
	h.Valid = len(h.Invalid) == 0
	for i := range h.Settings {
		h.Claims = append(h.Claims, h.Settings[i].lossless())
		if h.VM == testnet.VMQEMU {
			h.Claims = append(h.Claims, h.Settings[i].shortest()...)
		}
	}
	h.Pass = h.Valid && !slices.ContainsFunc(h.Claims, func(c Claim) bool { return !c.Holds })
}

// lossless: ours loses nothing, doubles nothing and breaks nothing.
func (s *HandoverSetting) lossless() Claim {
	ours := s.row(testnet.WayTabi)
	c := Claim{Text: fmt.Sprintf("%s: %s loses no packet in %d moves", s.Name(), testnet.WayTabi, len(ours.Trials))}
	var lostTo, lostFrom uint64
	moves := 0
	for _, t := range ours.Trials {
		lostTo += t.LostTo
		lostFrom += t.LostFrom
		if t.Lost() > 0 {
			moves++
		}
	}
	switch {
	case len(ours.Trials) == 0:
		c.But = "it did not move"
	case moves > 0:
		c.But = fmt.Sprintf("of %d it lost %d to the VM and %d from it, in %d moves", ours.Sent, lostTo, lostFrom, moves)
	case ours.Duplicated > 0:
		c.But = fmt.Sprintf("%d packets came twice", ours.Duplicated)
	case ours.Unexplained > 0:
		c.But = fmt.Sprintf("%d more trials failed, and the VMM was not at fault: see what was set aside", ours.Unexplained)
	case ours.Broken > 0:
		c.But = fmt.Sprintf("%d TCP transfers broke", ours.Broken)
	}
	c.Holds = c.But == ""
	return c
}

// shortest: ours stalls TCP for less than each of the others.
func (s *HandoverSetting) shortest() (claims []Claim) {
	ours := s.row(testnet.WayTabi).Stall
	for _, r := range s.Rows {
		if r.System == testnet.WayTabi {
			continue
		}
		c := Claim{Text: fmt.Sprintf("%s: %s stalls TCP for less than %s (medians)", s.Name(), testnet.WayTabi, r.System), Holds: ours.Median < r.Stall.Median}
		if !c.Holds {
			c.But = fmt.Sprintf("%.1f ms against %.1f", ours.Median, r.Stall.Median)
		}
		claims = append(claims, c)
	}
	return claims
}
