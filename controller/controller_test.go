package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs f in virtual time with a cloud and a controller.
func bubble(t *testing.T, f func(t *testing.T, w *cloud, r *ctl)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		r := w.start()
		f(t, w, r)
		r.end()
		if r.err != nil {
			t.Errorf("Run: %v", r.err)
		}
	})
}

func TestMoveAnnounced(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		m := r.move(t, "m1")
		if m.State != Prepared || m.Version != 7 || m.Times.Prepared.IsZero() {
			t.Fatalf("after prepare: %+v", m)
		}
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=5s", "")
		m = r.move(t, "m1")
		if m.State != Pushed || m.Times.Pushed.Sub(m.Times.Committed) > 10*time.Millisecond {
			t.Fatalf("after commit: %+v", m)
		}
		time.Sleep(10 * latency) // the first Map-Server's word is enough for pushed; the other's is on its way
		w.checkAt(t, "hv2", 7)
		m = r.until(t, "m1", Settled)
		if m.Held != 23 || m.Redirected != 17 || m.Replayed != 2 || m.Times.Settled.Sub(m.Times.Run) < settleTime {
			t.Errorf("settled: %+v", m)
		}
		for _, s := range m.MapServers {
			if s.Accepted.IsZero() || s.Version != 7 {
				t.Errorf("Map-Server: %+v", s)
			}
		}
		if v := r.must(t, http.StatusOK, "GET", "/v1/vms/web", ""); !strings.Contains(v, `"hypervisor": "hv2"`) || !strings.Contains(v, `"version": 7`) {
			t.Error(v)
		}
		w.with(func() {
			if l := w.agents["hv2"].log; l[0] != "prepare target m1" || l[1] != "commit m1" {
				t.Errorf("hv2 was told %q", l)
			}
			for _, s := range w.servers() {
				if s.got != 2 {
					t.Errorf("%v got %d Map-Registers", s.addr, s.got)
				}
			}
		})
	})
}

// The source is told after the target has accepted: before, it might send packets to nobody.
func TestPrepareOrder(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		w.with(func() { w.agent("hv2").mode = "500" })
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1?wait=0s", `{"vm":"web","to":"hv2"}`)
		time.Sleep(3 * time.Second)
		w.with(func() {
			if l := w.agent("hv1").log; len(l) != 0 {
				t.Errorf("the source was told %q", l)
			}
			w.agent("hv2").mode = ""
		})
		r.until(t, "m1", Prepared)
	})
}

func TestMoveSeenByAgents(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		time.Sleep(90 * time.Second)
		w.migrate("m1", "hv1", "hv2", 200*time.Millisecond)
		m := r.until(t, "m1", Settled)
		if m.Times.Run.Sub(m.Times.Paused) != 200*time.Millisecond || !strings.Contains(m.Why, "saw the VM run") {
			t.Errorf("%+v", m)
		}
		w.checkAt(t, "hv2", 7)
	})
}

// Without anything registered, nobody knows a version: the Map-Server numbers, and both agree.
func TestMoveWithoutVersion(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 0)
		w.with(func() { w.servers()[1].claim(webEIDs[0], 41, xtrOf("hv1"), rlocOf("hv1")); w.servers()[1].down = true })
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		if m := r.move(t, "m1"); m.Version != 0 {
			t.Fatalf("version %d", m.Version)
		}
		w.with(func() { w.servers()[1].down = false })
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		r.until(t, "m1", Settled)
		w.checkAt(t, "hv2", 0)
		w.with(func() {
			for _, e := range webEIDs {
				if a, b := w.servers()[0].reg[e], w.servers()[1].reg[e]; a.Version != b.Version {
					t.Errorf("%v has versions %d and %d", e, a.Version, b.Version)
				}
			}
			if v := w.servers()[0].reg[webEIDs[0]].Version; v != 42 {
				t.Errorf("version %d, want 42", v)
			}
		})
	})
}

func TestMapServerAway(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		w.with(func() { w.servers()[0].down = true })
		start := time.Now()
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		if d := time.Since(start); d > time.Second/2 {
			t.Errorf("a Map-Server that is away made prepare take %v", d)
		}
		start = time.Now()
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=5s", "")
		if d := time.Since(start); d > 10*time.Millisecond {
			t.Errorf("a Map-Server that is away made commit take %v", d)
		}
		w.checkAt(t, "hv2", 7)
		time.Sleep(10 * time.Second)
		w.with(func() { w.servers()[0].down = false })
		time.Sleep(10 * time.Second)
		w.checkAt(t, "hv2", 7)
		r.until(t, "m1", Settled)
	})
}

// Both Map-Servers away: the registration is repeated, with growing intervals, until one is back.
func TestRetransmission(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			for _, s := range w.servers() {
				s.lose = 6 // two EIDs, three times
			}
		})
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		m := r.until(t, "m1", Settled)
		if d := m.MapServers[0].Accepted.Sub(m.Times.Committed).Round(10 * time.Millisecond); d != 7*time.Second {
			t.Errorf("accepted after %v, want 1+2+4 s", d)
		}
	})
}

func TestAbort(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/abort", "")
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/abort", "")
		m := r.move(t, "m1")
		if m.State != Aborted || m.Source.Times.Aborted.IsZero() || m.Target.Times.Aborted.IsZero() ||
			m.Target.Times.Aborted.Before(m.Source.Times.Aborted) {
			t.Errorf("%+v", m)
		}
		r.must(t, http.StatusConflict, "POST", "/v1/moves/m1/commit", "")
		r.must(t, http.StatusConflict, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.checkAt(t, "hv1", 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			for _, s := range w.servers() {
				if s.got != 0 {
					t.Errorf("%v got %d Map-Registers", s.addr, s.got)
				}
			}
		})
	})
}

// The VM resumed on the source: its agent knows, and the controller undoes the rest.
func TestSourceTakesBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			h := w.agent("hv1").hos["m1"]
			redirect(h)
			h.Times.Aborted, h.Why = time.Now(), "resumed"
		})
		m := r.until(t, "m1", Aborted)
		if m.Target.Times.Aborted.IsZero() || !strings.Contains(m.Why, "resumed") {
			t.Errorf("%+v", m)
		}
	})
}

// An abort that comes too late does not take the VM from where it runs.
func TestAbortTooLate(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		time.Sleep(time.Second + 10*time.Millisecond) // just after a poll
		w.migrate("m1", "hv1", "hv2", time.Millisecond)
		text := r.must(t, http.StatusConflict, "POST", "/v1/moves/m1/abort", "")
		if !strings.Contains(text, "runs on the target") {
			t.Error(text)
		}
		r.until(t, "m1", Settled)
		w.checkAt(t, "hv2", 7)
		w.with(func() {
			for _, l := range w.agents["hv1"].log {
				if strings.HasPrefix(l, "abort") {
					t.Errorf("the source was told to take back: %q", w.agents["hv1"].log)
				}
			}
		})
	})
}

func TestPrepareRefused(t *testing.T) {
	for _, who := range []string{"hv1", "hv2"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *cloud, r *ctl) {
				w.furnish(t, r, 6)
				w.with(func() { w.agent(who).mode = "refuse" })
				text := r.must(t, http.StatusBadGateway, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
				if !strings.Contains(text, who) || !strings.Contains(text, "unknown interface") {
					t.Error(text)
				}
				m := r.move(t, "m1")
				if m.State != Aborted {
					t.Errorf("%+v", m)
				}
				w.with(func() {
					if h := w.agent("hv2").hos["m1"]; h != nil && h.Times.Aborted.IsZero() {
						t.Errorf("the target was left prepared")
					}
				})
			})
		})
	}
}

func TestPrepareAgentFails(t *testing.T) {
	for _, mode := range []string{"down", "hang", "500"} {
		for _, who := range []string{"hv1", "hv2"} {
			t.Run(mode+" "+who, func(t *testing.T) {
				bubble(t, func(t *testing.T, w *cloud, r *ctl) {
					w.furnish(t, r, 6)
					w.with(func() { w.agent(who).mode = mode })
					text := r.must(t, http.StatusBadGateway, "PUT", "/v1/moves/m1?wait=60s", `{"vm":"web","to":"hv2"}`)
					if !strings.Contains(text, who) || !strings.Contains(text, "timed out") {
						t.Error(text)
					}
					w.with(func() {
						if h := w.agent("hv2").hos["m1"]; h != nil && h.Times.Aborted.IsZero() {
							t.Errorf("the target was left prepared")
						}
						w.agent(who).mode = ""
					})
					r.must(t, http.StatusCreated, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv2"}`)
				})
			})
		}
	}
}

// An agent that is killed and restarted without its memory is told again.
func TestAgentForgets(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		time.Sleep(time.Second)
		w.with(func() { w.agent("hv2").mode = "down" })
		time.Sleep(5 * time.Second)
		w.with(func() {
			a := w.agent("hv2")
			a.mode, a.hos, a.vms = "", map[string]*AgentRecord{}, map[string]agentVM{}
		})
		time.Sleep(10 * time.Second)
		w.with(func() {
			if w.agent("hv2").hos["m1"] == nil || len(w.agent("hv2").vms) != 1 {
				t.Errorf("the agent was not told again: %+v", w.agent("hv2"))
			}
		})
		w.migrate("m1", "hv1", "hv2", 200*time.Millisecond)
		r.until(t, "m1", Settled)
	})
}

// Agents dead at the commit: the Map-Servers learn all the same, from the controller.
func TestCommitAgentsDead(t *testing.T) {
	for _, dead := range [][]string{{"hv1"}, {"hv2"}, {"hv1", "hv2"}} {
		t.Run(strings.Join(dead, ","), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *cloud, r *ctl) {
				w.furnish(t, r, 6)
				r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
				w.with(func() {
					for _, d := range dead {
						w.agent(d).mode = "hang"
					}
				})
				r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=1s", "")
				time.Sleep(10 * latency) // the other Map-Server may be a moment later
				w.checkAt(t, "hv2", 7)
				m := r.until(t, "m1", Settled)
				if d := m.Times.Settled.Sub(m.Times.Committed); d < 2*time.Minute || d > 4*time.Minute {
					t.Errorf("settled after %v", d)
				}
			})
		})
	}
}

func TestSecondMove(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		text := r.must(t, http.StatusConflict, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv3"}`)
		if !strings.Contains(text, "m1") || !strings.Contains(text, "abort") {
			t.Error(text)
		}
		r.must(t, http.StatusConflict, "DELETE", "/v1/vms/web", "")
		r.must(t, http.StatusConflict, "PUT", "/v1/vms/web", strings.Replace(webBody, "hv1", "hv3", 1))
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=5s", "")
		r.must(t, http.StatusConflict, "POST", "/v1/moves/m1/abort", "")
		r.must(t, http.StatusConflict, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv3"}`)
		if m := r.move(t, "m1"); m.State != Pushed {
			t.Errorf("m1 is %s while m2 is only prepared", m.State)
		}
		w.migrate("m2", "hv2", "hv3", 100*time.Millisecond)
		m := r.until(t, "m2", Settled)
		if m.Version != 8 || m.From != "hv2" {
			t.Errorf("%+v", m)
		}
		if m := r.move(t, "m1"); m.State != Superseded || !strings.Contains(m.Why, "m2") {
			t.Errorf("%+v", m)
		}
		w.checkAt(t, "hv3", 8)
	})
}

// The next move of a VM is asked for at the moment at which it arrives, before any poll has told of that.
func TestNextMoveAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		for i := range 6 {
			from, to := hvNames[i%3], hvNames[(i+1)%3]
			id := fmt.Sprint("m", i)
			r.must(t, http.StatusCreated, "PUT", "/v1/moves/"+id, fmt.Sprintf(`{"vm":"web","to":"%s"}`, to))
			w.migrate(id, from, to, 50*time.Millisecond)
		}
		time.Sleep(time.Minute)
		w.checkAt(t, "hv1", 12)
		for i, m := range r.recent("", "", 0) {
			if want := map[bool]State{true: Settled, false: Superseded}[i == 0]; m.State != want || m.Held != 23 || m.Redirected != 17 {
				t.Errorf("%+v", m)
			}
		}
	})
}

// Hundreds of moves at once, one agent hanging and one Map-Server dead: the others do not notice.
func TestManyMoves(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 0)
		r.must(t, http.StatusCreated, "PUT", "/v1/hypervisors/hv4", strings.Replace(hvBody("hv4"), "s4", "s1", 1))
		const n = 300
		for i := range n {
			r.must(t, http.StatusCreated, "PUT", fmt.Sprintf("/v1/vms/vm%d", i), fmt.Sprintf(`{"hypervisor":"hv1","eids":["10.9.%d.%d/32"]}`, i/250, i%250+1))
		}
		w.with(func() { w.agent("hv4").mode = "hang"; w.servers()[1].down = true })
		for i := range n {
			to := "hv2"
			if i%10 == 0 {
				to = "hv4"
			}
			r.must(t, http.StatusCreated, "PUT", fmt.Sprintf("/v1/moves/m%d?wait=0s", i), fmt.Sprintf(`{"vm":"vm%d","to":"%s"}`, i, to))
		}
		start := time.Now()
		for i := range n {
			if i%10 != 0 {
				r.until(t, fmt.Sprintf("m%d", i), Prepared)
			}
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("prepared after %v", d)
		}
		start = time.Now()
		for i := range n {
			if i%10 != 0 {
				r.must(t, http.StatusOK, "POST", fmt.Sprintf("/v1/moves/m%d/commit?wait=1s", i), "")
			}
		}
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("pushed after %v", d)
		}
		for i := range n {
			m := r.until(t, fmt.Sprintf("m%d", i), Settled, Aborted)
			if want := map[bool]State{true: Aborted, false: Settled}[i%10 == 0]; m.State != want {
				t.Errorf("%+v", m)
			}
		}
	})
}

// The controller is killed at every write, before it and after it, and finishes after a restart.
func TestRestartEverywhere(t *testing.T) {
	for _, scenario := range []struct {
		name  string
		drive func(t *testing.T, w *cloud, api func(want int, method, path, body string))
		end   State
		at    string
	}{
		{"commit", func(t *testing.T, w *cloud, api func(int, string, string, string)) {
			api(200, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			api(200, "POST", "/v1/moves/m1/commit", "")
		}, Settled, "hv2"},
		{"seen", func(t *testing.T, w *cloud, api func(int, string, string, string)) {
			api(200, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			w.migrate("m1", "hv1", "hv2", 200*time.Millisecond)
		}, Settled, "hv2"},
		{"abort", func(t *testing.T, w *cloud, api func(int, string, string, string)) {
			api(200, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			api(200, "POST", "/v1/moves/m1/abort", "")
		}, Aborted, "hv1"},
		{"no version", func(t *testing.T, w *cloud, api func(int, string, string, string)) {
			w.with(func() {
				for _, s := range w.servers() {
					clear(s.reg)
				}
			})
			api(200, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			api(200, "POST", "/v1/moves/m1/commit", "")
		}, Settled, "hv2"},
	} {
		for _, before := range []bool{false, true} {
			name := scenario.name + map[bool]string{true: ", before a write", false: ", after a write"}[before]
			t.Run(name, func(t *testing.T) {
				for k := 1; ; k++ {
					died := false
					synctest.Test(t, func(t *testing.T) {
						w := newCloud(t)
						r := w.start()
						w.furnish(t, r, 6)
						w.store.mu.Lock()
						w.store.dieAt, w.store.before = w.store.saves+k, before
						w.store.mu.Unlock()
						// api repeats a request until it succeeds, over restarts of the controller.
						api := func(want int, method, path, body string) {
							for range 1000 {
								code, text := r.request(method, path, body)
								if code == want || code == http.StatusCreated {
									return
								}
								if code != http.StatusServiceUnavailable {
									t.Fatalf("kill %d: %s %s: %d %s", k, method, path, code, text)
								}
								<-r.done // killed
								r.end()
								time.Sleep(2 * time.Second)
								r = w.start()
							}
							t.Fatalf("kill %d: %s %s never succeeds", k, method, path)
						}
						scenario.drive(t, w, api)
						var m Record
						for range 1000 {
							api(200, "GET", "/v1/moves/m1", "")
							if _, text := r.request("GET", "/v1/moves/m1", ""); json.Unmarshal([]byte(text), &m) == nil && m.State.Ended() {
								break
							}
							time.Sleep(2 * time.Second)
						}
						if m.State != scenario.end {
							t.Errorf("kill %d: %+v", k, m)
						}
						time.Sleep(10 * time.Second)
						w.checkAt(t, scenario.at, 0)
						var v VM
						_, text := r.request("GET", "/v1/vms/web", "")
						if err := json.Unmarshal([]byte(text), &v); err != nil || v.Hypervisor != scenario.at {
							t.Errorf("kill %d: vm: %s", k, text)
						}
						r.end()
						w.store.mu.Lock()
						died = w.store.died
						w.store.mu.Unlock()
					})
					if t.Failed() {
						return
					}
					if !died {
						if k < 6 {
							t.Errorf("only %d writes", k-1)
						}
						return
					}
				}
			})
		}
	}
}

// A store that does not save: nothing is done that is not durable, and callers hear of it.
func TestStoreFails(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		w.store.mu.Lock()
		w.store.fail = errors.New("disk full")
		w.store.mu.Unlock()
		text := r.must(t, http.StatusServiceUnavailable, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		if !strings.Contains(text, "disk full") {
			t.Error(text)
		}
		time.Sleep(5 * time.Second)
		w.with(func() {
			if l := w.agent("hv2").log; len(l) != 0 {
				t.Errorf("told %q before anything was durable", l)
			}
		})
		w.store.mu.Lock()
		w.store.fail = nil
		w.store.mu.Unlock()
		r.must(t, http.StatusOK, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.until(t, "m1", Prepared)
	})
}

// The demonstration of DESIGN.md section 7: the controller is dead while the VM moves.
func TestDeadDuringTheMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		r := w.start()
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.end()
		w.migrate("m1", "hv1", "hv2", 200*time.Millisecond)
		time.Sleep(10 * time.Minute)
		r = w.start()
		m := r.until(t, "m1", Settled)
		if m.Version != 7 || m.Held != 23 || m.Redirected != 17 {
			t.Errorf("%+v", m)
		}
		w.checkAt(t, "hv2", 7)
		r.end()
	})
}

// A controller that slept takes nothing back from where the VM went meanwhile.
func TestOldNewsDoNotSteal(t *testing.T) {
	for _, version := range []int{0, 6} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCloud(t)
				r := w.start()
				w.furnish(t, r, 0)
				if version != 0 {
					w.with(func() {
						for _, s := range w.servers() {
							for _, e := range webEIDs {
								s.claim(e, 6, xtrOf("hv1"), rlocOf("hv1"))
							}
						}
					})
				}
				w.with(func() { w.agent("hv2").mode, w.agent("hv1").mode = "", "" })
				r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
				w.with(func() {
					for _, s := range w.servers() {
						s.down = true
					}
					w.agent("hv1").mode, w.agent("hv2").mode = "hang", "hang"
				})
				r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
				time.Sleep(10 * latency) // what was sent is lost
				r.end()
				w.with(func() {
					for _, s := range w.servers() {
						s.down = false
						for _, e := range webEIDs {
							s.claim(e, 9, xtrOf("hv3"), rlocOf("hv3"))
						}
					}
				})
				time.Sleep(time.Hour)
				r = w.start()
				m := r.until(t, "m1", Settled)
				if m.Error == "" && (len(m.MapServers) == 0 || m.MapServers[0].Error == "") {
					t.Errorf("nothing is said of the refusal: %+v", m)
				}
				w.checkAt(t, "hv3", 9)
				r.end()
			})
		})
	}
}

// The source registered behind our back before the VM left it: the claim is made again, one higher.
func TestReclaim(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			for _, s := range w.servers() {
				for _, e := range webEIDs {
					s.claim(e, 11, xtrOf("hv1"), rlocOf("hv1"))
				}
			}
			w.agent("hv2").mode = "hang" // its own claim cannot help
		})
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=5s", "")
		time.Sleep(time.Second)
		w.checkAt(t, "hv2", 12)
	})
}

func TestAgentsAreTold(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.with(func() { w.agent("hv3").mode = "down" })
		w.furnish(t, r, 0)
		time.Sleep(time.Minute)
		w.with(func() {
			for _, h := range []string{"hv1", "hv2"} {
				if v, ok := w.agent(h).vms["web"]; !ok || v.Interface != "tap-web" || len(v.EIDs) != 2 {
					t.Errorf("%s knows %+v", h, w.agent(h).vms)
				}
			}
			w.agent("hv3").mode = ""
		})
		text := r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv3", "")
		if !strings.Contains(text, "connection refused") || !strings.Contains(text, `"vms_to_tell": 1`) {
			t.Error(text)
		}
		time.Sleep(10 * time.Second)
		w.with(func() {
			if len(w.agent("hv3").vms) != 1 {
				t.Errorf("hv3 was not told when it came back")
			}
		})
		r.must(t, http.StatusNoContent, "DELETE", "/v1/vms/web", "")
		r.must(t, http.StatusNotFound, "DELETE", "/v1/vms/web", "")
		time.Sleep(time.Second)
		w.with(func() {
			for _, h := range hvNames {
				if len(w.agent(h).vms) != 0 {
					t.Errorf("%s still knows %+v", h, w.agent(h).vms)
				}
			}
		})
	})
}

// An EID that goes from one VM to another reaches the agents, in whatever order they are told.
func TestAgentsAreToldOfSwaps(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 0)
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/a", `{"eids":["10.0.0.1"]}`)
		time.Sleep(time.Second)
		r.must(t, http.StatusOK, "PUT", "/v1/vms/web", `{"eids":["10.0.0.2"]}`)
		r.must(t, http.StatusOK, "PUT", "/v1/vms/a", `{"eids":["10.0.0.1","198.51.100.10"]}`)
		r.must(t, http.StatusNoContent, "DELETE", "/v1/vms/web", "")
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/b", `{"eids":["10.0.0.2"]}`)
		time.Sleep(time.Second)
		var told int
		w.with(func() {
			for _, h := range hvNames {
				a := w.agent(h)
				if len(a.vms) != 2 || len(a.vms["a"].EIDs) != 2 || len(a.vms["b"].EIDs) != 1 {
					t.Errorf("%s knows %+v", h, a.vms)
				}
				a.vms["intruder"] = agentVM{EIDs: webEIDs[1:]}
				told = a.told
			}
		})
		r.must(t, http.StatusOK, "PUT", "/v1/vms/a", `{"eids":["10.0.0.1","`+webEIDs[1].String()+`"]}`)
		time.Sleep(time.Minute)
		if text := r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1", ""); !strings.Contains(text, "is of intruder") {
			t.Error(text)
		}
		w.with(func() {
			if n := w.agent("hv3").told - told; n > 3 {
				t.Errorf("a final no was asked for %d times", n)
			}
		})
	})
}

// A move that nobody announced is found and written down, from both agents.
func TestUnprepared(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		time.Sleep(time.Minute)
		w.with(func() {
			s := &AgentRecord{ID: "unprepared-a", VM: "web", Role: Source, EIDs: webEIDs, PeerRLOC: rlocOf("hv2").String()}
			redirect(s)
			d := &AgentRecord{ID: "unprepared-b", VM: "web", Role: Target, EIDs: webEIDs, PeerRLOC: rlocOf("hv1").String(), Version: 6}
			w.agent("hv1").hos[s.ID], w.agent("hv2").hos[d.ID] = s, d
			w.run(w.agent("hv2"), d)
		})
		time.Sleep(20 * time.Second)
		m := r.move(t, "unprepared-b")
		if m.From != "hv1" || m.To != "hv2" || m.State != Pushed || m.Redirected != 17 || m.Held != 23 {
			t.Errorf("%+v", m)
		}
		m = r.until(t, "unprepared-b", Settled)
		if m.Version != 7 {
			t.Errorf("%+v", m)
		}
		if v := r.must(t, http.StatusOK, "GET", "/v1/vms/web", ""); !strings.Contains(v, `"hv2"`) {
			t.Error(v)
		}
		w.with(func() {
			if n := w.servers()[0].got; n != 0 {
				t.Errorf("the controller sent %d Map-Registers", n)
			}
		})
		time.Sleep(time.Minute)
		if n := len(r.recent("", "", 0)); n != 1 {
			t.Errorf("%d moves", n)
		}
	})
}

// The target's agent forgot the move and saw the VM come all the same: it is the move that was prepared.
func TestForgottenByTheTarget(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			a := w.agent("hv2")
			a.hos = map[string]*AgentRecord{}
			d := &AgentRecord{ID: "unprepared-b", VM: "", Role: Target, EIDs: webEIDs[:1], Version: 6}
			a.hos[d.ID] = d
			w.run(a, d)
			redirect(w.agent("hv1").hos["m1"])
		})
		m := r.until(t, "m1", Settled)
		if m.Held != 23 || m.Redirected != 17 || m.Version != 7 {
			t.Errorf("%+v", m)
		}
		w.checkAt(t, "hv2", 7)
		time.Sleep(time.Minute)
		if n := len(r.recent("", "", 0)); n != 1 {
			t.Errorf("%d moves", n)
		}
	})
}

func TestKeepMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		w.cfg.KeepMoves = 3
		r := w.start()
		w.furnish(t, r, 6)
		for i := range 6 {
			r.must(t, http.StatusCreated, "PUT", fmt.Sprintf("/v1/moves/m%d", i), `{"vm":"web","to":"hv2"}`)
			r.must(t, http.StatusOK, "POST", fmt.Sprintf("/v1/moves/m%d/abort", i), "")
			time.Sleep(time.Minute)
		}
		r.must(t, http.StatusNotFound, "GET", "/v1/moves/m2", "")
		var list []Record
		if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "GET", "/v1/moves", "")), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != 3 || list[0].ID != "m5" || list[2].ID != "m3" {
			t.Errorf("%+v", list)
		}
		r.end()
		if saved, err := w.store.Load(); err != nil || len(saved.Moves) != 3 {
			t.Errorf("%d moves are saved: %v", len(saved.Moves), err)
		}
	})
}
