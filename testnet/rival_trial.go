package testnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// Trial is one look at a lab: flows between the client and the VM, and one move in the midst of them.
type Trial struct {
	// Still is the control: the flows run as long, and nothing moves.
	Still bool
	// Rate is that of a UDP stream each way, in packets a second.
	Rate int
	// BitRate is that of a TCP download from the VM, in bits a second; 0 = as fast as the VM can.
	BitRate int
	// MaxDowntime is the VMM's limit; 0 = QEMU's default, 300 ms.
	MaxDowntime time.Duration
}

// TrialResult is what the client and the VM saw of one trial. Times are in milliseconds.
type TrialResult struct {
	Sent       uint64 `json:"sent"`      // UDP packets, both ways
	LostTo     uint64 `json:"lost_to"`   // UDP packets to the VM
	LostFrom   uint64 `json:"lost_from"` // UDP packets from the VM
	Duplicated uint64 `json:"duplicated"`
	Reordered  uint64 `json:"reordered"`
	// GapMS is the longest time in which one of the UDP streams brought nothing.
	GapMS float64 `json:"gap_ms"`
	// StallMS is the longest time in which the TCP download from the VM brought nothing.
	StallMS float64 `json:"stall_ms"`
	// BlackoutMS is how long the VM ran nowhere, as its VMM says.
	BlackoutMS float64 `json:"blackout_ms"`
	// Intact says whether the content of the TCP download arrived as it was sent.
	Intact bool `json:"intact"`
	// Flaws are what went wrong in the tester or in the VMM: a trial with flaws says nothing of the network.
	Flaws []string `json:"flaws,omitempty"`
}

// Lost is what was lost either way.
func (r TrialResult) Lost() uint64 { return r.LostTo + r.LostFrom }

// qemuDowntime is what QEMU's downtime-limit is by itself.
const qemuDowntime = 300 * time.Millisecond

// Times of a trial: the flows run for trialLead before the move, and for trialTail after the VM runs again, by when QEMU
// has announced it for the last time. A control lasts as if a move took stillMove.
const (
	trialLead = 400 * time.Millisecond
	trialTail = 1100 * time.Millisecond
	stillMove = 500 * time.Millisecond
)

// Names of a trial's streams.
const (
	trialUDPTo   = "udp-to-vm"
	trialUDPFrom = "udp-from-vm"
	trialTCPFrom = "tcp-from-vm"
)

// Run makes one trial. An error leaves the lab in an unknown state, as flaws do: close it. When the VMM has broken its
// guest, what could not be done for that is a flaw, too, and no error.
func (l *Lab) Run(ctx context.Context, t Trial) (TrialResult, error) {
	r, err := l.trial(ctx, t)
	if err == nil {
		return r, nil
	}
	err = fmt.Errorf("testnet: lab of %s: %w", l.way, err)
	if flaws := l.vm.Flaws(); len(flaws) > 0 && ctx.Err() == nil {
		r.Flaws = append(flaws, err.Error())
		return r, nil
	}
	return r, err
}

func (l *Lab) trial(ctx context.Context, t Trial) (r TrialResult, err error) {
	l.moves++
	flows := l.flows(t)
	defer func() { err = errors.Join(err, flows.Close()) }()
	if err := flows.Start(ctx); err != nil {
		return r, err
	}
	if err := sleep(ctx, trialLead); err != nil {
		return r, err
	}
	w, from := Window{From: time.Now()}, l.where
	if t.Still {
		err = sleep(ctx, stillMove)
	} else {
		err = l.move(ctx, t, &r)
	}
	if err := errors.Join(err, sleep(ctx, trialTail)); err != nil {
		return r, err
	}
	w.To = time.Now()
	if err := flows.Stop(ctx); err != nil {
		return r, err
	}
	r.take(flows.Report([]Window{w}))
	r.Flaws = append(r.Flaws, l.vm.Flaws()...)
	if from == l.where {
		return r, nil
	}
	return r, l.vm.Leave(l.cloud.hosts[from])
}

// flows are those of one trial, on ports of their own: what comes late from another trial is not counted here.
func (l *Lab) flows(t Trial) *Flows {
	f := new(Flows)
	client := l.cloud.hosts[labClient].ns
	var vm Endpoint = l.cloud.hosts[hostWeb].ns
	if l.guest != nil {
		vm = l.guest
	}
	port := uint16(l.moves % 1000)
	f.AddUDP(UDPFlow{Name: trialUDPTo, Reverse: trialUDPFrom, A: client, B: vm, AddrA: labClientAddr, AddrB: labVMAddr, Port: 7000 + port, Rate: t.Rate})
	f.AddTCP(TCPFlow{Reverse: trialTCPFrom, Client: client, Server: vm, Addr: labVMAddr, Port: 8000 + port, Download: true,
		BitRate: cmp.Or(t.BitRate, stream.Greedy), Seed: uint64(l.moves)})
	return f
}

// move moves the VM to the other hypervisor.
func (l *Lab) move(ctx context.Context, t Trial, r *TrialResult) error {
	id, to := fmt.Sprintf("move-%d", l.moves), labHV2
	if l.where == to {
		to = labHV1
	}
	if err := l.net.prepare(ctx, id, to); err != nil {
		return err
	}
	limit := t.MaxDowntime
	if limit == 0 {
		limit = qemuDowntime
	}
	target := l.cloud.hosts[to]
	told := make(chan error, 1)
	s, err := l.vm.Migrate(ctx, Transfer{From: l.cloud.hosts[l.where], To: target, MaxDowntime: limit, Blackout: l.blackout(limit),
		Placed:  func(context.Context) error { return l.net.plug(target, labDevice) },
		Resumed: func(time.Time, *Host) { go func() { told <- l.net.committed(ctx, id) }() }})
	if err != nil {
		return err
	}
	if s.At != target {
		return fmt.Errorf("the VM stayed at %s: %s", l.where, s.Why)
	}
	if err := <-told; err != nil {
		return err
	}
	l.where = to
	r.BlackoutMS = ms(s.Resumed.Sub(s.Stopped))
	if l.way == WayTabi || l.guest != nil { // a namespace VM tells agents, and the others have none
		r.Flaws = append(r.Flaws, s.Problems...)
	}
	return nil
}

// blackout is how long a namespace VM runs nowhere, which knows no limit: about what QEMU makes of it under load.
func (l *Lab) blackout(limit time.Duration) time.Duration { return limit / 4 }

// take sums up what the streams saw.
func (r *TrialResult) take(streams []FlowReport) {
	r.Intact = true
	for _, f := range streams {
		if f.TesterDrops > 0 {
			r.Flaws = append(r.Flaws, fmt.Sprintf("%s: the tester's own socket dropped %d packets", f.Name, f.TesterDrops))
		}
		if f.Incomplete != "" {
			r.Flaws = append(r.Flaws, fmt.Sprintf("%s: not all counts are known: %s", f.Name, f.Incomplete))
		}
		if f.Sent == 0 {
			r.Flaws = append(r.Flaws, f.Name+": nothing was sent "+f.LastError)
		}
		switch f.Name {
		case trialUDPTo:
			r.LostTo = f.Lost
		case trialUDPFrom:
			r.LostFrom = f.Lost
		}
		if strings.HasPrefix(f.Name, "udp") {
			r.Sent += f.Sent
			r.Duplicated += f.Duplicated
			r.Reordered += f.Reordered
			r.GapMS = max(r.GapMS, f.GapMaxMS)
		} else {
			r.Intact = r.Intact && f.Intact != nil && *f.Intact
			r.StallMS = f.GapMaxMS
		}
	}
}
