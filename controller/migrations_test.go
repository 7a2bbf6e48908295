package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func (r *ctl) migration(t *testing.T, id string) MigrationStatus {
	t.Helper()
	var m MigrationStatus
	if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "GET", "/v1/migrations/"+id, "")), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// ended waits for a migration.
func (r *ctl) migrationEnded(t *testing.T, id string) MigrationStatus {
	t.Helper()
	for range 100 {
		var m MigrationStatus
		if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "GET", "/v1/migrations/"+id+"?wait=5m", "")), &m); err != nil {
			t.Fatal(err)
		}
		if m.Phase.Ended() {
			return m
		}
	}
	t.Fatalf("migration %s does not end: %+v", id, r.migration(t, id))
	return MigrationStatus{}
}

func (r *ctl) phase(t *testing.T, id string, p MigrationPhase) {
	t.Helper()
	for range 3000 {
		if r.migration(t, id).Phase == p {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("migration %s does not come to %s: %+v", id, p, r.migration(t, id))
}

// checkVM fails unless the VM web is at hv, in the inventory and in truth, and nothing is left elsewhere.
func (w *cloud) checkVM(t *testing.T, r *ctl, hv string) {
	t.Helper()
	var v VMStatus
	if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "GET", "/v1/vms/web", "")), &v); err != nil {
		t.Fatal(err)
	}
	if v.Hypervisor != hv || v.Migration != "" || v.Move != "" {
		t.Errorf("the inventory says %+v, want it on %s", v, hv)
	}
	w.with(func() {
		for name, h := range w.hyps {
			g := h.guests["web"]
			if name == hv && (g == nil || g.State != GuestRunning) || name != hv && g != nil {
				t.Errorf("%s has %+v", name, g)
			}
		}
	})
}

func has(notes []Note, text string) bool {
	return slices.ContainsFunc(notes, func(n Note) bool { return strings.Contains(n.Text, text) })
}

func TestMigrate(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		var m MigrationStatus
		text := r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2","max_downtime":"50ms"}`)
		if err := json.Unmarshal([]byte(text), &m); err != nil || m.ID != "g1" || m.From != "hv1" || m.Link != "s1-s2" || m.Phase.Ended() {
			t.Fatalf("%v %+v", err, m)
		}
		// Long poll: every answer is news.
		var seen []MigrationPhase
		for !m.Phase.Ended() {
			before := m.Seq
			text := r.must(t, http.StatusOK, "GET", fmt.Sprintf("/v1/migrations/g1?wait=1m&after=%d", before), "")
			if err := json.Unmarshal([]byte(text), &m); err != nil {
				t.Fatal(err)
			}
			if m.Seq <= before {
				t.Fatalf("seq %d after %d", m.Seq, before)
			}
			if len(seen) == 0 || seen[len(seen)-1] != m.Phase {
				seen = append(seen, m.Phase)
			}
		}
		if want := []MigrationPhase{MigrationPreparing, MigrationMigrating, MigrationFinishing, MigrationDone}; !slices.Equal(seen, want) {
			t.Errorf("phases %v, want %v", seen, want)
		}
		if m.Error != "" || m.Detail != "" || m.Progress.Downtime != 20*time.Millisecond || m.Move != "g1" || len(m.Checks) < 10 || m.Times.Ended.IsZero() {
			t.Errorf("%+v", m)
		}
		for _, ch := range m.Checks {
			if ch.Status != CheckOK {
				t.Errorf("check %+v", ch)
			}
		}
		w.checkVM(t, r, "hv2")
		time.Sleep(10 * latency)
		w.checkAt(t, "hv2", 7)
		if rec := r.until(t, "g1", Settled); rec.Why == "" || rec.Held != 23 {
			t.Errorf("%+v", rec)
		}
		w.with(func() {
			got := w.hyp("hv1").took[0]
			want := Migration{VM: "web", Dest: "test+tcp://hv2/system", Via: "tcp://10.1.0.2", Mode: ModeLive, CopyStorage: CopyNone, MaxDowntime: 50 * time.Millisecond}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the driver was told %+v, want %+v", got, want)
			}
		})
		// The link is known now.
		var pf Preflight
		if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web","site":"s1"}`)), &pf); err != nil {
			t.Fatal(err)
		}
		if !pf.OK || pf.To != "hv1" || pf.Estimate == nil || pf.Estimate.Bandwidth == 0 || pf.Estimate.DirtyRate != 2<<20 || !strings.Contains(pf.Estimate.Text, "measured by 1") {
			t.Errorf("%+v %+v", pf, pf.Estimate)
		}
		// The same request again is the same migration.
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2","max_downtime":"50ms"}`)
		r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"id":"g1","vm":"db"}`)
		r.must(t, http.StatusConflict, "POST", "/v1/migrations/g1/cancel", "")
		if text := r.must(t, http.StatusOK, "GET", "/v1/migrations?vm=web&phase=done", ""); !strings.Contains(text, `"g1"`) {
			t.Error(text)
		}
		if text := r.must(t, http.StatusOK, "GET", "/v1/migrations?phase=open", ""); strings.Contains(text, `"g1"`) {
			t.Error(text)
		}
	})
}

// Whatever fails, the VM stays, its move is undone, and one line says why.
func TestMigrationFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		spoil  func(w *cloud, r *ctl, t *testing.T)
		body   string
		error  string
		detail string
		moved  bool // a move was begun, and is undone
	}{
		{"preflight: namesake", func(w *cloud, r *ctl, t *testing.T) {
			w.hyp("hv2").guests["web"] = &Guest{Name: "web", UUID: "22222222-2222-4333-8444-555555555555", State: GuestOff}
		}, "", "preflight: state: hv2 has another VM of the name web", "preflight, state: hv2 has another", false},
		{"preflight: no such machine", func(w *cloud, r *ctl, t *testing.T) { w.hyp("hv2").node.Machines = []string{"pc"} },
			"", "preflight: machine: hv2 has no machine type q35", "", false},
		{"preflight: no room", func(w *cloud, r *ctl, t *testing.T) { w.hyp("hv2").node.MemoryFree = 1 << 29 },
			"", "preflight: capacity: hv2 has room for 512.0 MiB of memory, the VM needs 1.0 GiB", "", false},
		{"preflight: prefix", func(w *cloud, r *ctl, t *testing.T) {
			w.agent("hv2").node.EIDPrefixes = w.agent("hv2").node.EIDPrefixes[:1]
		},
			"", "preflight: prefix: hv2 serves no prefix with 2001:db8:e1d:1::10", "", false},
		{"preflight: the target's agent is away", func(w *cloud, r *ctl, t *testing.T) { w.agent("hv2").mode = "down" },
			"", "preflight: agent: hv2: its agent does not answer: connection refused", "", false},
		{"preflight: the target's driver is away", func(w *cloud, r *ctl, t *testing.T) { w.hyp("hv2").die() },
			"", "preflight: driver: hv2: its driver does not answer", "", false},
		{"preflight: the target's driver hangs", func(w *cloud, r *ctl, t *testing.T) { w.hyp("hv2").hang = true },
			"", "preflight: driver: hv2: its driver does not answer", "", false},
		{"preflight: it is not there", func(w *cloud, r *ctl, t *testing.T) { delete(w.hyp("hv1").guests, "web") },
			"", "preflight: state: hv1 does not have VM web", "", false},
		{"preflight: local disk", func(w *cloud, r *ctl, t *testing.T) {
			w.hyp("hv1").guests["web"].Disks = []GuestDisk{{Target: "vda", Source: "/var/x.qcow2"}}
		}, `,"copy_storage":"inc"`, "preflight: storage: vda has no base image", "", false},
		{"prepare", func(w *cloud, r *ctl, t *testing.T) { w.agent("hv2").mode = "refuse" },
			"", "prepare: target hv2 does not accept the move: agent: unknown interface", "", true},
		{"driver", func(w *cloud, r *ctl, t *testing.T) {
			w.hyp("hv1").fail = errors.New("libvirt: migrate web: internal error: qemu unexpectedly closed the monitor\nthe log says more")
		}, "", "the hypervisor: libvirt: migrate web: internal error: qemu unexpectedly closed the monitor", "the log says more", true},
		{"unclear, and it runs at the source", func(w *cloud, r *ctl, t *testing.T) {
			w.hyp("hv1").lost = true
			w.wg.Go(func() {
				time.Sleep(15 * time.Second)
				w.with(func() { // the hypervisors find out by themselves
					w.hyp("hv1").guests["web"].State = GuestRunning
					delete(w.hyp("hv2").guests, "web")
				})
			})
		}, "", "where the VM runs is not known: the connection broke at the switch; it runs on the source", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *cloud, r *ctl) {
				w.equip(t, r)
				w.with(func() { tc.spoil(w, r, t) })
				r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"`+tc.body+`}`)
				m := r.migrationEnded(t, "g1")
				if m.Phase != MigrationFailed || !strings.HasPrefix(m.Error, tc.error) || strings.Contains(m.Error, "\n") || !strings.Contains(m.Detail, tc.detail) ||
					!strings.Contains(m.Detail, m.Error) {
					t.Errorf("%s: %q\n%s", m.Phase, m.Error, m.Detail)
				}
				w.with(func() { // whatever was spoiled is mended, to see what is left
					for _, hv := range hvNames {
						w.agent(hv).mode = ""
						w.hyp(hv).down, w.hyp(hv).hang = false, false
					}
				})
				code, text := r.request("GET", "/v1/moves/g1", "")
				if moved := code == http.StatusOK; moved != tc.moved || moved && !strings.Contains(text, `"aborted"`) {
					t.Errorf("the move: %d %s", code, text)
				}
				if tc.moved {
					w.checkVM(t, r, "hv1")
				}
				w.checkAt(t, "hv1", 0)
				if r.moving("web") != nil || r.migrating("web") != nil {
					t.Error("something is left")
				}
			})
		})
	}
}

// The driver cannot say where the VM runs, and it runs at the target.
func TestMigrationUnclearButArrived(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() { w.hyp("hv1").lost = true })
		w.wg.Go(func() {
			time.Sleep(15 * time.Second)
			w.with(func() {
				delete(w.hyp("hv1").guests, "web")
				w.hyp("hv2").guests["web"].State = GuestRunning
				w.run(w.agent("hv2"), w.agent("hv2").hos["g1"])
			})
		})
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		r.phase(t, "g1", MigrationLocating)
		r.must(t, http.StatusConflict, "POST", "/v1/migrations/g1/cancel", "")
		m := r.migrationEnded(t, "g1")
		if m.Phase != MigrationDone || m.Error != "" || !has(m.Notes, "the connection broke") {
			t.Errorf("%+v", m)
		}
		time.Sleep(10 * latency)
		w.checkVM(t, r, "hv2")
		w.checkAt(t, "hv2", 7)
	})
}

// A migration that gets nowhere, and what on_slow says about it.
func TestMigrationSlow(t *testing.T) {
	step := func(i int, remaining uint64) Progress {
		return Progress{Phase: "memory", Total: guestMemory, Done: guestMemory - remaining, Remaining: remaining, Sent: uint64(i) * 200 << 20,
			Rate: 10 << 20, DirtyRate: 12 << 20, Iteration: i, Elapsed: time.Duration(i) * time.Second}
	}
	hopeless := []Progress{step(1, 800<<20), step(2, 100<<20), step(3, 99<<20), step(4, 101<<20), step(5, 100<<20), step(6, 102<<20), step(7, 100<<20), step(8, 100<<20)}
	const figures = "does not converge: the guest changes 12.0 MiB/s of its memory, the line carries 10.0 MiB/s; 101.0 MiB remain after 4 iterations"
	for _, tc := range []struct {
		name, body string
		set        func(w *cloud, h *fakeHyp)
		phase      MigrationPhase
		error      string
		note       string
		check      func(t *testing.T, h *fakeHyp)
	}{
		{"abort", `,"on_slow":"abort"`, nil, MigrationFailed, "it " + figures, figures, nil},
		{"abort is the default", ``, nil, MigrationFailed, "it " + figures, figures, nil},
		{"wait, to the timeout", `,"on_slow":"wait","timeout":"30s"`, nil, MigrationFailed, "timeout: not done in 30s: 100.0 MiB of 1.0 GiB remain", figures, nil},
		{"wait, and it comes to an end", `,"on_slow":"wait"`, func(w *cloud, h *fakeHyp) {
			w.wg.Go(func() { time.Sleep(time.Minute); h.finish <- struct{}{} })
		}, MigrationDone, "", figures, nil},
		{"postcopy", `,"on_slow":"postcopy"`, func(w *cloud, h *fakeHyp) {
			h.steer = func(s Steering) {
				if s.PostCopy {
					h.finish <- struct{}{}
				}
			}
		}, MigrationDone, "", "switching to post-copy", func(t *testing.T, h *fakeHyp) {
			if len(h.steered) != 1 || !h.steered[0].PostCopy || !h.took[0].AllowPostCopy {
				t.Errorf("%+v %+v", h.steered, h.took)
			}
		}},
		{"postcopy is refused", `,"on_slow":"postcopy"`, func(w *cloud, h *fakeHyp) { h.steerNo = errors.New("capability is missing") },
			MigrationFailed, "it is too slow, and cannot be switched to post-copy: capability is missing", figures, nil},
		{"converge", `,"on_slow":"converge"`, func(w *cloud, h *fakeHyp) {
			h.steer = func(s Steering) {
				if s.MaxDowntime >= 600*time.Millisecond {
					h.finish <- struct{}{}
				}
			}
		}, MigrationDone, "", "a downtime of 600ms is admitted", func(t *testing.T, h *fakeHyp) {
			if !h.took[0].AutoConverge {
				t.Errorf("%+v", h.took)
			}
		}},
		{"nothing is sent", ``, func(w *cloud, h *fakeHyp) { h.steps = []Progress{step(1, 800<<20)} },
			MigrationFailed, "it stands still: nothing was sent for 1m0s", "stands still", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *cloud, r *ctl) {
				w.equip(t, r)
				h := w.hyp("hv1")
				w.with(func() {
					h.steps, h.endless = hopeless, true
					if tc.set != nil {
						tc.set(w, h)
					}
				})
				r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"`+tc.body+`}`)
				m := r.migrationEnded(t, "g1")
				if m.Phase != tc.phase || !strings.HasPrefix(m.Error, tc.error) || !has(m.Notes, tc.note) {
					t.Errorf("%s: %q %+v\n%s", m.Phase, m.Error, m.Notes, m.Detail)
				}
				if tc.phase == MigrationDone {
					w.checkVM(t, r, "hv2")
				} else {
					w.checkVM(t, r, "hv1")
					if rec := r.until(t, "g1", Aborted); rec.Source == nil {
						t.Errorf("%+v", rec)
					}
				}
				if tc.check != nil {
					w.with(func() { tc.check(t, h) })
				}
			})
		})
	}
}

func TestMigrationCancelled(t *testing.T) {
	for _, tc := range []struct {
		phase MigrationPhase
		set   func(w *cloud)
	}{
		{MigrationQueued, nil},
		{MigrationPreflight, func(w *cloud) { w.hyp("hv2").hang = true }},
		{MigrationPreparing, func(w *cloud) { w.agent("hv2").mode = "500" }},
		{MigrationMigrating, nil},
	} {
		t.Run(string(tc.phase), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *cloud, r *ctl) {
				w.equip(t, r)
				if tc.phase == MigrationQueued {
					w.with(func() {
						w.hyp("hv1").guests["other"] = &Guest{Name: "other", State: GuestRunning, Memory: 1 << 20, VCPUs: 1, Machine: "q35", UUID: "33333333-2222-4333-8444-555555555555"}
					})
					r.must(t, http.StatusCreated, "PUT", "/v1/vms/other", `{"hypervisor":"hv1","eids":["198.51.100.11"]}`)
					r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g0","vm":"other","to":"hv2"}`)
				}
				if tc.phase == MigrationPreparing {
					// It answers the preflight, and then only errors.
					w.wg.Go(func() {
						for {
							time.Sleep(latency / 2)
							if r.migrationPhase("g1") == MigrationPreparing {
								w.with(func() { tc.set(w) })
								return
							}
						}
					})
				} else if tc.set != nil {
					w.with(func() { tc.set(w) })
				}
				r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
				r.phase(t, "g1", tc.phase)
				r.must(t, http.StatusOK, "POST", "/v1/migrations/g1/detach", "")
				r.must(t, http.StatusOK, "POST", "/v1/migrations/g1/cancel", "")
				m := r.migrationEnded(t, "g1")
				if m.Phase != MigrationCancelled || m.Error != "cancelled: by the API" || !has(m.Notes, "does not watch") {
					t.Errorf("%+v", m)
				}
				r.must(t, http.StatusOK, "POST", "/v1/migrations/g1/cancel", "") // twice is once
				w.with(func() { w.hyp("hv2").hang = false; w.agent("hv2").mode = "" })
				if tc.phase == MigrationQueued {
					r.migrationEnded(t, "g0")
				}
				w.checkVM(t, r, "hv1")
				w.checkAt(t, "hv1", 6)
				// And it can go again.
				r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g2","vm":"web","to":"hv2"}`)
				if m := r.migrationEnded(t, "g2"); m.Phase != MigrationDone {
					t.Errorf("%+v", m)
				}
			})
		})
	}
}

// migrationPhase asks without a request, for goroutines that are no test's.
func (r *ctl) migrationPhase(id string) MigrationPhase {
	v, err := r.ask(r.ctx, func(time.Time) (any, error) {
		if m := r.migs[id]; m != nil {
			return m.r.Phase, nil
		}
		return MigrationPhase(""), nil
	})
	if err != nil {
		return ""
	}
	return v.(MigrationPhase)
}

// Past the switch of post-copy there is no way back.
func TestPostCopyCannotBeCancelled(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			h := w.hyp("hv1")
			h.steps, h.endless = []Progress{{Phase: "post-copy", Total: 100, Remaining: 50}}, true
		})
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2","mode":"postcopy","timeout":"5s"}`)
		time.Sleep(10 * time.Second)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations/g1/cancel", ""); !strings.Contains(text, "past the switch") {
			t.Error(text)
		}
		w.hyp("hv1").finish <- struct{}{}
		m := r.migrationEnded(t, "g1")
		if m.Phase != MigrationDone || !has(m.Notes, "the timeout of 5s is over") {
			t.Errorf("%+v", m)
		}
		w.checkVM(t, r, "hv2")
	})
}

func TestSwitchToPostCopyByHand(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			h := w.hyp("hv1")
			h.endless = true
			h.steer = func(s Steering) { h.finish <- struct{}{} }
		})
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2","on_slow":"postcopy"}`)
		r.phase(t, "g1", MigrationMigrating)
		r.must(t, http.StatusOK, "POST", "/v1/migrations/g1/postcopy", "")
		if m := r.migrationEnded(t, "g1"); m.Phase != MigrationDone || !has(m.Notes, "as asked for") {
			t.Errorf("%+v", m)
		}
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations/g1/postcopy", ""); !strings.Contains(text, "nothing to switch") {
			t.Error(text)
		}
		w.with(func() { w.hyp("hv2").endless = true })
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g2","vm":"web","to":"hv1"}`)
		r.phase(t, "g2", MigrationMigrating)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations/g2/postcopy", ""); !strings.Contains(text, "on_slow=postcopy") {
			t.Error(text)
		}
		r.must(t, http.StatusOK, "POST", "/v1/migrations/g2/cancel", "")
	})
}

// A VM that is off is only defined elsewhere: nothing is held, nothing claimed.
func TestMigrateWhatIsOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() { w.hyp("hv1").guests["web"].State = GuestOff })
		if text := r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web","to":"hv2","mode":"live"}`); !strings.Contains(text, "only an offline migration") {
			t.Error(text)
		}
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		m := r.migrationEnded(t, "g1")
		if m.Phase != MigrationDone || m.Move != "" {
			t.Errorf("%+v", m)
		}
		w.with(func() {
			if w.hyp("hv1").took[0].Mode != ModeOffline || w.hyp("hv2").guests["web"].State != GuestOff {
				t.Errorf("%+v", w.hyp("hv1").took)
			}
		})
		if text := r.must(t, http.StatusOK, "GET", "/v1/vms/web", ""); !strings.Contains(text, `"hypervisor": "hv2"`) {
			t.Error(text)
		}
		w.checkAt(t, "hv1", 6)
	})
}

func TestMigrationRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		r.must(t, http.StatusCreated, "PUT", "/v1/sites/s4", `{}`)
		r.must(t, http.StatusCreated, "PUT", "/v1/hypervisors/hv4", hvBody("hv4"))
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/ns", `{"hypervisor":"hv4","eids":["198.51.100.20"]}`)
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/nowhere", `{"eids":["198.51.100.21"]}`)
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s3", `{"owners":["carol"]}`)
		for _, tc := range []struct {
			want int
			body string
			text string
		}{
			{400, `{}`, "vm is missing"},
			{404, `{"vm":"x"}`, "no vm"},
			{404, `{"vm":"web","to":"x"}`, "no hypervisor"},
			{404, `{"vm":"web","site":"x"}`, "no site"},
			{400, `{"vm":"web","to":"hv2","site":"s3"}`, "not at s3"},
			{409, `{"vm":"web","to":"hv1"}`, "already"},
			{409, `{"vm":"ns","to":"hv2"}`, "hypervisor hv4 has no driver"},
			{409, `{"vm":"web","to":"hv4"}`, "hypervisor hv4 has no driver"},
			{409, `{"vm":"web","site":"s4"}`, "no hypervisor of site s4 takes it: hv4: it has no driver"},
			{409, `{"vm":"nowhere"}`, "nobody has said"},
			{403, `{"vm":"web","to":"hv3"}`, "site s3 lends nothing"},
			{400, `{"vm":"web","mode":"fast"}`, "mode"},
			{400, `{"vm":"web","copy_storage":"some"}`, "copy_storage"},
			{400, `{"vm":"web","on_slow":"cry"}`, "on_slow"},
			{400, `{"vm":"web","parallel":65}`, "parallel"},
			{400, `{"vm":"web","timeout":"-1s"}`, "negative"},
			{400, `{"vm":"web","timeout":"soon"}`, "duration"},
			{400, `{"vm":"web","id":"/"}`, "id"},
			{400, `{"vm":"web","mode":"postcopy","copy_storage":"all"}`, "post-copy"},
			{400, `{"vm":"web","mode":"offline","on_slow":"postcopy"}`, "post-copy"},
			{400, `{"vm":"web","colour":1}`, "colour"},
		} {
			if text := r.must(t, tc.want, "POST", "/v1/migrations", tc.body); !strings.Contains(text, tc.text) {
				t.Errorf("%s: %s", tc.body, text)
			}
		}
		for path, want := range map[string]int{"/v1/migrations/x": 404, "/v1/migrations?phase=lost": 400, "/v1/migrations?limit=x": 400, "/v1/migrations/x?after=y": 400} {
			r.must(t, want, "GET", path, "")
		}
		r.must(t, http.StatusNotFound, "POST", "/v1/migrations/x/cancel", "")
		// One at a time, of whichever kind.
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/abort", "")
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusConflict, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusConflict, "DELETE", "/v1/vms/web", "")
		r.must(t, http.StatusConflict, "PUT", "/v1/hypervisors/hv2", strings.Replace(driverBody("hv2"), "test+tcp://hv2/", "test+tcp://hv9/", 1))
		r.must(t, http.StatusConflict, "POST", "/v1/vms/web/stop", "")
		r.migrationEnded(t, "g1")
	})
}

// Without drivers there are no migrations, and it is said.
func TestNoDrivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		w.cfg.Drivers = nil
		r := w.start()
		w.furnish(t, r, 6)
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/hv1", driverBody("hv1"))
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"web","to":"hv2"}`); !strings.Contains(text, "this controller has no drivers") {
			t.Error(text)
		}
		r.end()
	})
}

// One migration at a time uses a link; others wait in the order in which they came.
func TestQueue(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		for i := range 4 {
			name := fmt.Sprintf("v%d", i)
			w.with(func() {
				w.hyp("hv1").guests[name] = &Guest{Name: name, State: GuestRunning, Memory: 1 << 20, VCPUs: 1, Machine: "q35",
					UUID: fmt.Sprintf("4444444%d-2222-4333-8444-555555555555", i)}
			})
			r.must(t, http.StatusCreated, "PUT", "/v1/vms/"+name, fmt.Sprintf(`{"hypervisor":"hv1","eids":["198.51.100.3%d"]}`, i))
		}
		for i, to := range []string{"hv2", "hv2", "hv2", "hv3"} {
			r.must(t, http.StatusAccepted, "POST", "/v1/migrations", fmt.Sprintf(`{"id":"g%d","vm":"v%d","to":"%s"}`, i, i, to))
		}
		time.Sleep(500 * time.Millisecond)
		var got []string
		for i := range 4 {
			m := r.migration(t, fmt.Sprintf("g%d", i))
			got = append(got, fmt.Sprint(m.Phase, m.Queue))
		}
		if want := "[migrating0 queued1 queued2 migrating0]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
		r.must(t, http.StatusOK, "POST", "/v1/migrations/g1/cancel", "")
		if m := r.migration(t, "g2"); m.Queue != 1 {
			t.Errorf("%+v", m)
		}
		for _, id := range []string{"g0", "g2", "g3"} {
			if m := r.migrationEnded(t, id); m.Phase != MigrationDone {
				t.Errorf("%+v", m)
			}
		}
		if a, b := r.migration(t, "g0"), r.migration(t, "g2"); b.Times.Started.Before(a.Times.Ended) {
			t.Errorf("g2 began %v, g0 ended %v", b.Times.Started, a.Times.Ended)
		}
	})
}

// The controller is killed at every write of a migration. What it says in the end is where the VM is.
func TestMigrationKilled(t *testing.T) {
	for _, before := range []bool{false, true} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("before=%v fails=%v", before, fails), func(t *testing.T) {
				for k := 1; ; k++ {
					died := false
					synctest.Test(t, func(t *testing.T) {
						w := newCloud(t)
						r := w.start()
						w.equip(t, r)
						if fails {
							w.with(func() { w.hyp("hv1").fail = errors.New("no") })
						}
						w.store.mu.Lock()
						w.store.dieAt, w.store.before = w.store.saves+k, before
						w.store.mu.Unlock()
						again := func() {
							<-r.done
							r.end()
							time.Sleep(2 * time.Second)
							r = w.start()
							time.Sleep(100 * time.Millisecond)
						}
						api := func(method, path, body string) (int, string) {
							for {
								code, text := r.request(method, path, body)
								if code != http.StatusServiceUnavailable {
									return code, text
								}
								again()
							}
						}
						if code, text := api("POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`); code != http.StatusAccepted {
							t.Fatalf("kill %d: %d %s", k, code, text)
						}
						var m MigrationStatus
						for range 1000 {
							_, text := api("GET", "/v1/migrations/g1", "")
							if err := json.Unmarshal([]byte(text), &m); err != nil {
								t.Fatal(err)
							}
							if m.Phase.Ended() {
								break
							}
							time.Sleep(time.Second)
						}
						w.wg.Wait()
						time.Sleep(time.Minute)
						api("GET", "/v1/migrations/g1", "")
						at := "hv2"
						if m.Phase == MigrationFailed {
							at = "hv1"
						}
						// Killed after it was written that the driver is told, and before it was: it did not go.
						if !m.Phase.Ended() || fails && at != "hv1" || !fails && at == "hv1" && !strings.Contains(m.Error, "restarted in the middle; it runs on the source") {
							t.Errorf("kill %d: %+v", k, m)
						}
						w.checkVM(t, r, at)
						w.checkAt(t, at, 0)
						r.end()
						w.store.mu.Lock()
						died = w.store.died
						w.store.mu.Unlock()
					})
					if t.Failed() || !died {
						if k < 8 {
							t.Errorf("only %d writes", k-1)
						}
						return
					}
				}
			})
		}
	}
}

// A controller that is stopped leaves the hypervisors at it, and finds out afterwards.
func TestMigrationOutlivesController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		r := w.start()
		w.equip(t, r)
		w.with(func() { w.hyp("hv1").endless = true })
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		r.phase(t, "g1", MigrationMigrating)
		time.Sleep(3 * time.Second)
		r.end()
		time.Sleep(2 * time.Hour) // longer than any prepared move waits
		r = w.start()
		time.Sleep(10 * time.Second)
		if m := r.migration(t, "g1"); m.Phase != MigrationLocating || !has(m.Notes, "go on with it") {
			t.Errorf("%+v", m)
		}
		w.hyp("hv1").finish <- struct{}{}
		if m := r.migrationEnded(t, "g1"); m.Phase != MigrationDone || !has(m.Notes, "was restarted in the middle") {
			t.Errorf("%+v", m)
		}
		time.Sleep(10 * latency)
		w.checkVM(t, r, "hv2")
		w.checkAt(t, "hv2", 7)
		w.wg.Wait()
		r.end()
	})
}

// An agent that is being restarted delays a migration, and does not refuse it.
func TestAgentRestartsInPreflight(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() { w.agent("hv2").mode = "down" })
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		time.Sleep(time.Second)
		w.with(func() { w.agent("hv2").mode = "" })
		if m := r.migrationEnded(t, "g1"); m.Phase != MigrationDone {
			t.Errorf("%+v", m)
		}
		for name, want := range map[string]string{"migrations": `"id":"g1","vm":"web","from":"hv1","to":"hv2","link":"s1-s2","phase":"done"`, "links": `"link":"s1-s2"`} {
			v, err := r.Shows()[name](t.Context())
			b, _ := json.Marshal(v)
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: %v %s", name, err, b)
			}
		}
	})
}

// Without Map-Servers nobody has to confirm anything; with one that is away it is done all the same, and said.
func TestFinishing(t *testing.T) {
	for _, without := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newCloud(t)
			if without {
				w.cfg.MapServers = nil
			}
			r := w.start()
			w.equip(t, r)
			w.with(func() {
				for _, s := range w.ms {
					s.down = true
				}
			})
			r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
			m := r.migrationEnded(t, "g1")
			if m.Phase != MigrationDone || has(m.Notes, "no Map-Server has confirmed") == without {
				t.Errorf("without=%v: %+v", without, m)
			}
			w.checkVM(t, r, "hv2")
			r.end()
		})
	}
}
