package testnet

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Two VMs that talk to each other take each other's place at the same moment, there and back.
func TestVMsSwapPlaces(t *testing.T) {
	c := startCloud(t, Options{})
	var moves []*MoveReport
	for range 2 {
		to := map[string]string{hostWeb: c.Where(hostPeer), hostPeer: c.Where(hostWeb)}
		reports := make(chan *MoveReport, len(to))
		stopped := new(sync.WaitGroup) // both stand still before either runs
		stopped.Add(len(to))
		for vm, hv := range to {
			go func() {
				o := Planned(hv, blackout)
				o.VM = vm
				o.AfterPause = func(context.Context) error {
					stopped.Done()
					stopped.Wait()
					return nil
				}
				r, err := c.Move(t.Context(), o)
				if err != nil {
					t.Error(err)
				}
				reports <- r
			}()
		}
		for range to {
			if r := <-reports; r != nil {
				t.Log(r.line())
				moves = append(moves, r)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		must(t, c.waitAnchors(within(t, 10*time.Second), hostWeb, hostPeer))
		time.Sleep(300 * time.Millisecond)
	}
	wantNoLoss(t, finish(t, c, moves...))
	wantNoProblems(t, moves...)
}

// A migration is cancelled before its VM stops, and another when its VM runs at the target already, which is too late.
// TestAbortedMigration cancels one in the blackout.
func TestCancelledMigration(t *testing.T) {
	c := startCloud(t, Options{})
	home := c.Where(hostWeb)
	abort := func(ctx context.Context, id string) error {
		return c.Controller(ctx, http.MethodPost, "/v1/moves/"+id+"/abort?wait=0s", nil, nil)
	}

	before := anchorVersions(t, c)
	var rec controllerRecord
	must(t, c.Controller(t.Context(), http.MethodPut, "/v1/moves/cancelled-before", drainStep{hostWeb, "nara-hv1"}, &rec))
	time.Sleep(200 * time.Millisecond)
	must(t, abort(t.Context(), "cancelled-before"))
	for deadline := time.Now().Add(5 * time.Second); rec.State != "aborted"; time.Sleep(20 * time.Millisecond) {
		must(t, c.Controller(t.Context(), http.MethodGet, "/v1/moves/cancelled-before", nil, &rec))
		if time.Now().After(deadline) {
			t.Fatalf("it is %s: %s", rec.State, rec.Why)
		}
	}
	must(t, c.waitAnchors(within(t, 10*time.Second), hostWeb))
	t.Logf("cancelled before: %s; then %s", before, anchorVersions(t, c))
	if c.Where(hostWeb) != home {
		t.Fatalf("the VM is at %s", c.Where(hostWeb))
	}

	o := Planned("nara-hv1", blackout)
	o.ID, o.Commit = "cancelled-after", false
	o.AfterRun = func(ctx context.Context) error {
		time.Sleep(50 * time.Millisecond)
		return abort(ctx, o.ID)
	}
	late := moveTo(t, c, o)
	time.Sleep(time.Second)
	must(t, c.waitAnchors(within(t, 10*time.Second), hostWeb))
	if c.Where(hostWeb) != "nara-hv1" {
		t.Fatalf("the VM is at %s", c.Where(hostWeb))
	}
	back := moveTo(t, c, Planned(home, blackout))
	wantNoLoss(t, finish(t, c, late, back))
	wantNoProblems(t, back)
}

// The agent of the source or of the target is killed at a random moment of each of many moves, and started again at
// once. What is held or copied is the agent's, in its memory: packets may be lost for as long as it is dead while the VM
// is on its way, no more, and none comes twice.
func TestAgentKilledAtRandomMoments(t *testing.T) {
	const seed = 3
	random := rand.New(rand.NewPCG(seed, 0))
	c := startCloud(t, Options{})
	var moves []*MoveReport
	var dead time.Duration
	for range 8 {
		o := Planned(c.next(), blackout)
		victim, delay := o.To, time.Duration(random.Int64N(int64(500*time.Millisecond)))
		if random.IntN(2) == 0 {
			victim = c.Where(hostWeb)
		}
		killed := make(chan error, 1)
		o.AfterPrepare = func(ctx context.Context) error {
			go func() {
				time.Sleep(delay)
				died := time.Now()
				err := errors.Join(c.Host(victim).Kill("xtr"), c.Host(victim).Start(context.WithoutCancel(ctx), "xtr"))
				dead += time.Since(died)
				killed <- err
			}()
			return nil
		}
		m := moveTo(t, c, o)
		must(t, <-killed)
		t.Logf("%s: %s was killed %v after prepare", m.ID, victim, delay.Round(time.Millisecond))
		moves = append(moves, m)
		must(t, c.waitAnchors(within(t, 20*time.Second), hostWeb))
		time.Sleep(300 * time.Millisecond)
	}
	t.Logf("seed %d: agents were dead for %v in all", seed, dead.Round(time.Millisecond))
	for _, r := range finish(t, c, moves...) {
		if r.Unit == "bytes" {
			if !r.OK() {
				t.Errorf("%s: %+v", r.Name, r)
			}
			continue
		}
		rate := testRate
		switch {
		case strings.Contains(r.Name, "peer") || strings.Contains(r.Name, "lispsite"):
			rate /= 4
		case strings.HasPrefix(r.Name, "ping"):
			rate = pingRate
		}
		if may := uint64(dead.Seconds()*float64(rate)) + 2*uint64(len(moves)); r.Lost > may || r.Duplicated > 0 {
			t.Errorf("%s: lost %d of %d, at most %d may be; doubled %d; missing %v", r.Name, r.Lost, r.Sent, may, r.Duplicated, r.Missing)
		}
	}
}
