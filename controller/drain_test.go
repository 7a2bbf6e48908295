package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func decode[V any](t *testing.T, text string) (v V) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// populate puts n guests with VMs on a hypervisor.
func (w *cloud) populate(t *testing.T, r *ctl, hv string, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("v%02d", i)
		w.with(func() {
			w.hyp(hv).guests[name] = &Guest{Name: name, State: GuestRunning, Memory: 1 << 30, VCPUs: 1, Machine: "q35",
				UUID: fmt.Sprintf("555555%02d-2222-4333-8444-555555555555", i)}
		})
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/"+name, fmt.Sprintf(`{"hypervisor":"%s","eids":["198.51.100.%d"]}`, hv, 100+i))
	}
	time.Sleep(2 * time.Minute) // listed
}

func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.populate(t, r, "hv1", 5)
		plan := decode[[]PlannedMove](t, r.must(t, http.StatusOK, "POST", "/v1/hypervisors/hv1/drain", `{"plan_only":true}`))
		to := map[string]int{}
		for _, p := range plan {
			to[p.To]++
		}
		if len(plan) != 6 || to["hv2"] != 3 || to["hv3"] != 3 {
			t.Errorf("%+v", plan)
		}
		if d := decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", "")); d.Drained || d.Total != 0 {
			t.Errorf("a plan has changed something: %+v", d)
		}
		w.with(func() { w.hyp("hv1").guests["v02"].State = GuestHibernated }) // it will not go
		d := decode[DrainStatus](t, r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", `{"on_slow":"wait"}`))
		if !d.Drained || d.Total != 6 || d.UnderWay != 6 || d.Complete {
			t.Errorf("%+v", d)
		}
		// Nothing is placed there now, and a PUT does not change that.
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/hv1", driverBody("hv1"))
		for range 100 {
			time.Sleep(10 * time.Second)
			if d = decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", "")); d.UnderWay == 0 {
				break
			}
		}
		if d.Done != 5 || d.Failed != 1 || d.Complete || d.Bytes == 0 || d.BytesDone < 5*guestMemory {
			t.Errorf("%+v", d)
		}
		for _, p := range d.Moves {
			if (p.VM == "v02") != (p.Phase == MigrationFailed) || p.VM == "v02" && !strings.Contains(p.Error, "hibernated") {
				t.Errorf("%+v", p)
			}
		}
		// What has failed is tried again when it is said again.
		w.with(func() { w.hyp("hv1").guests["v02"].State = GuestRunning })
		r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", ``)
		time.Sleep(time.Minute)
		if d = decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", "")); d.Done != 6 || !d.Complete || d.Total != 6 {
			t.Errorf("%+v", d)
		}
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"web","site":"s1"}`); !strings.Contains(text, "it is drained") {
			t.Error(text)
		}
		// By name it goes, with a warning.
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"back","vm":"web","to":"hv1"}`)
		if m := r.migrationEnded(t, "back"); m.Phase != MigrationDone || !has(m.Notes, "hv1 is drained") {
			t.Errorf("%+v", m)
		}
		if h := decode[HypervisorStatus](t, r.must(t, http.StatusOK, "POST", "/v1/hypervisors/hv1/undrain", "")); h.Drained {
			t.Errorf("%+v", h)
		}
		for path, want := range map[string]int{"/v1/hypervisors/x/drain": 404, "/v1/hypervisors/x/undrain": 404} {
			r.must(t, want, "POST", path, "")
		}
		r.must(t, http.StatusBadRequest, "POST", "/v1/hypervisors/hv1/drain", `{"vm":"web"}`)
		r.must(t, http.StatusBadRequest, "POST", "/v1/hypervisors/hv1/drain", `{"mode":"fast"}`)
		r.must(t, http.StatusNotFound, "POST", "/v1/hypervisors/hv1/drain", `{"site":"x"}`)
	})
}

func TestUndrainCancelsWhatWaits(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.populate(t, r, "hv1", 5)
		r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", `{}`)
		time.Sleep(time.Second)
		r.must(t, http.StatusOK, "POST", "/v1/hypervisors/hv1/undrain", "")
		time.Sleep(time.Minute)
		count := map[MigrationPhase]int{}
		for _, m := range decode[[]MigrationStatus](t, r.must(t, http.StatusOK, "GET", "/v1/migrations?drain=hv1", "")) {
			count[m.Phase]++
		}
		if count[MigrationDone] != 2 || count[MigrationCancelled] != 4 { // two links
			t.Errorf("%v", count)
		}
	})
}

// VMs without a driver are moved by somebody else, who follows the plan.
func TestDrainByOthers(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		for i := range 9 {
			r.must(t, http.StatusCreated, "PUT", fmt.Sprintf("/v1/vms/n%d", i), fmt.Sprintf(`{"hypervisor":"hv1","eids":["198.51.100.%d"]}`, 50+i))
		}
		d := decode[DrainStatus](t, r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", ``))
		if d.External != 10 || d.UnderWay != 0 || d.Complete {
			t.Errorf("%+v", d)
		}
		plan := decode[[]PlannedMove](t, r.must(t, http.StatusOK, "POST", "/v1/hypervisors/hv1/drain", `{"plan_only":true}`))
		to := map[string]int{}
		for _, p := range plan {
			to[p.To]++
			r.must(t, http.StatusCreated, "PUT", "/v1/moves/d-"+p.VM, fmt.Sprintf(`{"vm":"%s","to":"%s"}`, p.VM, p.To))
			r.must(t, http.StatusOK, "POST", "/v1/moves/d-"+p.VM+"/commit", "")
		}
		if to["hv2"] != 5 || to["hv3"] != 5 {
			t.Errorf("%v", to)
		}
		d = decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", ""))
		if !d.Complete || d.Done != 10 || d.Total != 10 {
			t.Errorf("%+v", d)
		}
	})
}

// A VM that nobody takes is said to stay, and why.
func TestDrainNowhereToGo(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			w.hyp("hv1").guests["ghost"] = &Guest{Name: "ghost", UUID: "77777777-2222-4333-8444-555555555555", State: GuestRunning}
			w.hyp("hv2").die()
		})
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s3", `{"lend":{}}`)
		time.Sleep(2 * time.Minute)
		d := decode[DrainStatus](t, r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", `{}`))
		if d.Failed != 2 || d.Total != 2 || d.Complete {
			t.Errorf("%+v", d)
		}
		text := fmt.Sprint(d.Moves)
		for _, want := range []string{"site s3 lends to named owners", "its driver does not answer", "says no EIDs"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
	})
}

// Placement looks at what the preflight would refuse: what cannot go to one hypervisor goes to another.
func TestPlacedWhereItFits(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			w.hyp("hv2").node.Machines = []string{"pc"}
			w.hyp("hv1").guests["web"].Disks = []GuestDisk{{Target: "vda", Source: "/srv/vms/web"}}
		})
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s1", `{"shared_storage":["nfs=/srv"]}`)
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s3", `{"shared_storage":["nfs=/srv"]}`)
		time.Sleep(2 * time.Minute)
		pf := decode[Preflight](t, r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web"}`))
		if pf.To != "hv3" || !pf.OK || !strings.Contains(fmt.Sprint(pf.Refused), "hv2 has no machine type q35") {
			t.Errorf("%+v", pf)
		}
		if v := r.vm(t, "web"); v.Storage != "shared" {
			t.Errorf("%+v", v)
		}
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s3", `{}`)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"web"}`); !strings.Contains(text, "hv3: vda is at /srv/vms/web, which hv3 does not share") {
			t.Error(text)
		}
	})
}

// A migration of a drain that fails on its way does not stop the others.
func TestDrainPartly(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.populate(t, r, "hv1", 2)
		w.with(func() { w.hyp("hv1").fail = errors.New("no") })
		r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", `{"site":"s2"}`)
		time.Sleep(1200 * time.Millisecond)
		w.with(func() { w.hyp("hv1").fail = nil })
		time.Sleep(time.Minute)
		d := decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", ""))
		if d.Done != 2 || d.Failed != 1 || d.Complete {
			t.Errorf("%+v", d)
		}
	})
}

// Two hundred VMs: every one is moved once, never more at a time than the links admit, and the others share them evenly.
func TestDrainMany(t *testing.T) {
	const many = 200
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		for i := range many {
			name := fmt.Sprintf("m%03d", i)
			w.with(func() {
				w.hyp("hv1").guests[name] = &Guest{Name: name, State: GuestRunning, Memory: 64 << 20, VCPUs: 1, Machine: "q35",
					UUID: fmt.Sprintf("66666%03d-2222-4333-8444-555555555555", i)}
			})
			r.must(t, http.StatusCreated, "PUT", "/v1/vms/"+name, fmt.Sprintf(`{"hypervisor":"hv1","eids":["198.51.100.%d"]}`, i+40))
		}
		time.Sleep(2 * time.Minute)
		w.store.mu.Lock()
		saves := w.store.saves
		w.store.mu.Unlock()
		d := decode[DrainStatus](t, r.must(t, http.StatusAccepted, "POST", "/v1/hypervisors/hv1/drain", ``))
		most := 0
		for d.UnderWay > 0 {
			time.Sleep(2 * time.Second)
			under := 0
			for _, m := range d.Moves {
				if m.Phase != MigrationQueued && m.Migration != "" && !m.Phase.Ended() {
					under++
				}
			}
			most = max(most, under)
			d = decode[DrainStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1/drain", ""))
		}
		if d.Done != many+1 || !d.Complete || most > 2 {
			t.Errorf("done %d of %d, failed %d, at most %d at a time", d.Done, d.Total, d.Failed, most)
		}
		w.with(func() {
			if a, b := len(w.hyp("hv2").guests), len(w.hyp("hv3").guests); a+b != many+1 || a-b > 20 || b-a > 20 {
				t.Errorf("%d and %d", a, b)
			}
		})
		w.store.mu.Lock()
		t.Logf("%d transactions of the store for %d migrations", w.store.saves-saves, many+1)
		w.store.mu.Unlock()
	})
}
