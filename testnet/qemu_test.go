package testnet

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestQEMU moves real guests by QMP in one cloud, in one way after the other, each with flows of its own. What may be
// lost where stands at each; nothing may ever be doubled, and what TCP carries is intact. Nobody but QEMU's monitors
// tells the agents what becomes of the VM.
func TestQEMU(t *testing.T) {
	if missing := MissingQEMU(); missing != "" {
		t.Fatal(missing)
	}
	// Two guests under emulation and the race detector in every daemon share two cores: rates are low, and what is slow
	// loses nothing either.
	start := func() *Cloud {
		c := startCloud(t, Options{VM: VMQEMU, PeerVM: VMQEMU, DiskMiB: 8, Rate: 200, BitRate: 1e6})
		t.Cleanup(func() { logConsoles(t, c) })
		return c
	}
	c, broken := start(), 0
	seed := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for _, s := range []struct {
		name string
		// may is for how long packets may be lost; 0 = none may be.
		may func() time.Duration
		do  func(t *testing.T) []*MoveReport
	}{
		{"planned", nil, func(t *testing.T) (moves []*MoveReport) {
			for range 10 {
				moves = append(moves, qemuMove(t, c, Planned(c.next(), 0), true))
				time.Sleep(100 * time.Millisecond)
			}
			return moves
		}},
		{"cancelled in the copy", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 0)
			o.CancelAt, o.Bandwidth = CancelInCopy, 8<<20
			return []*MoveReport{qemuMove(t, c, o, false)}
		}},
		{"cancelled at the switch", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 20*time.Millisecond)
			o.Abort = true
			return []*MoveReport{qemuMove(t, c, o, false)}
		}},
		{"cancelled too late", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 0)
			o.CancelAt = CancelAfterSwitch
			return []*MoveReport{qemuMove(t, c, o, true)}
		}},
		{"post-copy", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 0)
			o.Mode = "postcopy"
			return []*MoveReport{qemuMove(t, c, o, true)}
		}},
		{"offline", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 0)
			o.Mode = "offline"
			return []*MoveReport{qemuMove(t, c, o, true)}
		}},
		{"with its disk", nil, func(t *testing.T) []*MoveReport {
			must(t, c.Guest(hostWeb).DiskWrite(t.Context(), "/dev/vda", 64, 400))
			o := Planned(c.next(), 0)
			o.CopyDisks = true
			m := qemuMove(t, c, o, true)
			disk, err := c.Guest(hostWeb).DiskVerify(t.Context())
			must(t, err)
			if disk.Wrong != 0 || disk.Written == 0 || disk.Checked == 0 || disk.Error != "" {
				t.Errorf("the disk after the move: %+v", disk)
			}
			return []*MoveReport{m}
		}},
		{"two VMs swap places", nil, func(t *testing.T) []*MoveReport {
			web, peer := Planned(c.Where(hostPeer), 0), Planned(c.Where(hostWeb), 0)
			web.VM, peer.VM = hostWeb, hostPeer
			var out [2]*MoveReport
			var errs [2]error
			var wg sync.WaitGroup
			for i, o := range []MoveOptions{web, peer} {
				wg.Go(func() { out[i], errs[i] = c.Move(t.Context(), o) })
			}
			wg.Wait()
			must(t, errors.Join(errs[:]...))
			for _, m := range out {
				qemuLog(t, m, true)
			}
			return out[:]
		}},
		{"a Map-Server dies", nil, func(t *testing.T) []*MoveReport {
			o := Planned(c.next(), 0)
			o.AfterPrepare = func(context.Context) error { return c.Host("ms1").Kill("mapserver") }
			m := qemuMove(t, c, o, true)
			must(t, c.Host("ms1").Start(within(t, 30*time.Second), "mapserver"))
			must(t, c.WaitFeeds(within(t, 60*time.Second)))
			return []*MoveReport{m}
		}},
		// Killed at a random moment of the move and back within a second. Its kernel goes on; what only an agent can do, as
		// to redirect when its VM stops or to deliver what it holds, is not done meanwhile: for so long packets may be lost.
		agentDies(&c, "the source's agent dies", func() string { return c.Where(hostWeb) }, seed),
		agentDies(&c, "the target's agent dies", func() string { return c.next() }, seed),
		// The agents hear of the migration when QEMU begins it: the source keeps copies from then on.
		{"nobody prepares", nil, func(t *testing.T) []*MoveReport {
			var moves []*MoveReport
			for range 2 {
				moves = append(moves, qemuMove(t, c, MoveOptions{To: c.next()}, true))
				time.Sleep(300 * time.Millisecond)
			}
			return moves
		}},
		// To be the last: it stays dead. The agents know their VMs' addresses, and need nobody.
		{"the controller is dead from the start", nil, func(t *testing.T) []*MoveReport {
			must(t, c.Host("ctl").Kill("controller"))
			return []*MoveReport{qemuMove(t, c, MoveOptions{To: c.next()}, true), qemuMove(t, c, MoveOptions{To: c.next()}, true)}
		}},
	} {
		step := func(t *testing.T) (again bool) {
			must(t, c.Flows.Close()) // of one that has failed
			c.Flows = new(Flows)
			c.addFlows()
			must(t, c.Flows.Start(t.Context()))
			time.Sleep(200 * time.Millisecond)
			moves := s.do(t)
			time.Sleep(300 * time.Millisecond)
			if flaws := c.guestFaults(); len(flaws) > 0 {
				// The emulation has lost memory of the guest: nothing can be said of the network.
				t.Logf("once more, with another guest: %v", flaws)
				return true
			}
			reports := finish(t, c, moves...)
			may := time.Duration(0)
			if s.may != nil {
				may = s.may()
			}
			if may == 0 {
				wantNoLossOfOurs(t, reports, len(moves))
				return false
			}
			for _, r := range reports {
				// No flow of packets is faster than the Internet's, and pings.
				if most := uint64(may.Seconds()*200) + 2; r.Duplicated > 0 || r.Lost > most || r.Incomplete != "" || r.Intact != nil && !*r.Intact {
					t.Errorf("%s: lost %d of %d, at most %d may be: %+v", r.Name, r.Lost, r.Sent, most, r)
				}
			}
			return false
		}
		again := false
		t.Run(s.name, func(t *testing.T) { again = step(t) })
		for ; again; broken++ {
			if broken == 3 {
				t.Fatal("the emulation broke the guest four times: this machine cannot show anything")
			}
			must(t, c.Close())
			c = start()
			t.Run(s.name+" again", func(t *testing.T) { again = step(t) })
		}
	}
}

// agentDies is a move in which an agent is killed.
func agentDies(cloud **Cloud, name string, victim func() string, seed *rand.Rand) struct {
	name string
	may  func() time.Duration
	do   func(t *testing.T) []*MoveReport
} {
	var dead time.Duration
	return struct {
		name string
		may  func() time.Duration
		do   func(t *testing.T) []*MoveReport
	}{name, func() time.Duration { return dead }, func(t *testing.T) []*MoveReport {
		c, at := *cloud, victim()
		after := time.Duration(seed.Int64N(int64(500 * time.Millisecond)))
		o := Planned(c.next(), 0)
		killed := make(chan error, 1)
		o.AfterPrepare = func(ctx context.Context) error {
			go func() {
				time.Sleep(after)
				died := time.Now()
				err := c.Host(at).Kill("xtr")
				if err == nil {
					err = c.Host(at).Start(ctx, "xtr")
				}
				dead = time.Since(died)
				killed <- err
			}()
			return nil
		}
		m := qemuMove(t, c, o, true)
		must(t, <-killed)
		t.Logf("%s was killed %v after the target was there, and dead for %v", at, after, dead)
		return []*MoveReport{m}
	}}
}

// qemuMove makes a move and says whether it ended where it should have.
func qemuMove(t *testing.T, c *Cloud, o MoveOptions, moves bool) *MoveReport {
	t.Helper()
	m, err := c.Move(t.Context(), o)
	must(t, err)
	qemuLog(t, m, moves)
	return m
}

func qemuLog(t *testing.T, m *MoveReport, moves bool) {
	t.Helper()
	t.Log(m.line())
	for _, s := range m.Steps {
		t.Logf("  %+9.1f ms %s %s", s.MS, s.Name, s.Note)
	}
	if m.Aborted == moves {
		t.Errorf("%s: moved %v, want %v: %s", m.ID, !m.Aborted, moves, m.Why)
	}
	for _, p := range m.Problems {
		t.Errorf("%s: %s", m.ID, p)
	}
}

// logConsoles shows what real guests said, when the test has failed.
func logConsoles(t *testing.T, c *Cloud) {
	for name, vm := range c.guests {
		v, ok := vm.(*qemuVM)
		if !ok || !t.Failed() {
			continue
		}
		if q := v.QEMU(); q != nil {
			t.Logf("%s at %s: its console: %s; QEMU: %s", name, c.Where(name), tail(q.console), tail(q.proc.spec.Log))
		}
	}
}
