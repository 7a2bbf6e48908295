package controller

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

func (r *ctl) vm(t *testing.T, name string) VMStatus {
	t.Helper()
	return decode[VMStatus](t, r.must(t, http.StatusOK, "GET", "/v1/vms/"+name, ""))
}

func TestDiscover(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s2", `{"owners":["bob"],"lend":{"owners":["*"]}}`)
		db := &Guest{Name: "db", UUID: "AAAAAAAA-2222-4333-8444-555555555555", State: GuestRunning, VCPUs: 4, Memory: 8 << 30, Machine: "q35", Owner: "alice",
			EIDs: []lisp.EID{mustEID("198.51.100.40")}, Interfaces: []GuestInterface{{MAC: "52:54:00:00:00:4A"}}, Disks: []GuestDisk{{Target: "vda", Source: "/srv/vms/db"}}}
		w.with(func() {
			w.hyp("hv1").guests["db"] = db
			w.hyp("hv1").guests["no eids"] = &Guest{Name: "no eids", UUID: "bbbbbbbb-2222-4333-8444-555555555555", State: GuestPaused}
			w.hyp("hv2").guests["thief"] = &Guest{Name: "thief", UUID: "cccccccc-2222-4333-8444-555555555555", State: GuestRunning, EIDs: []lisp.EID{mustEID("198.51.100.10")}}
			w.hyp("hv2").guests["claims"] = &Guest{Name: "claims", UUID: "dddddddd-2222-4333-8444-555555555555", State: GuestRunning, Owner: "alice", EIDs: []lisp.EID{mustEID("198.51.100.41")}}
			w.hyp("hv2").guests["bobs"] = &Guest{Name: "bobs", UUID: "eeeeeeee-2222-4333-8444-555555555555", State: GuestRunning, Owner: "bob", EIDs: []lisp.EID{mustEID("198.51.100.42")}}
			w.hyp("hv3").guests["web"] = &Guest{Name: "web", UUID: "ffffffff-2222-4333-8444-555555555555", State: GuestRunning}
			for _, hv := range hvNames {
				w.hyp(hv).tell("", GuestChanged)
			}
		})
		time.Sleep(time.Second)
		v := r.vm(t, "db")
		if !v.Discovered || v.Hypervisor != "hv1" || v.Owner != "alice" || v.State != GuestRunning || len(v.EIDs) != 1 || v.MACs[0] != "52:54:00:00:00:4a" ||
			v.UUID != strings.ToLower(db.UUID) || v.Storage != "local" || v.Site != "s1" || v.Problem != "" {
			t.Errorf("%+v", v)
		}
		for name, want := range map[string]string{
			"no-eids": "says no EIDs", "thief": "vm web has EID 198.51.100.10/32 already", "claims": "which is not believed", "web.hv3": "says no EIDs",
		} {
			if v := r.vm(t, name); !strings.Contains(v.Problem, want) || !v.Discovered {
				t.Errorf("%s: %+v", name, v)
			}
		}
		if v := r.vm(t, "claims"); v.Owner != "" {
			t.Errorf("a site may not say that a VM is a stranger's: %+v", v)
		}
		if v := r.vm(t, "bobs"); v.Owner != "bob" {
			t.Errorf("%+v", v)
		}
		if v := r.vm(t, "web"); v.UUID != webUUID || v.Discovered || v.Hypervisor != "hv1" || v.State != GuestRunning {
			t.Errorf("%+v", v)
		}
		if text := r.must(t, http.StatusConflict, "POST", "/v1/migrations", `{"vm":"thief"}`); !strings.Contains(text, "has EID") {
			t.Error(text)
		}
		time.Sleep(time.Second)
		w.with(func() {
			for _, hv := range hvNames { // every agent is told of what was found
				if _, ok := w.agent(hv).vms["db"]; !ok {
					t.Errorf("%s does not know db", hv)
				}
			}
		})
		// It moves like any other.
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"db","to":"hv3"}`)
		if m := r.migrationEnded(t, "g1"); m.Phase != MigrationDone || !has(m.Notes, "nobody said whether hv3 shares that") {
			t.Errorf("%+v", m)
		}
		// Its metadata change, and it is entered at last.
		w.with(func() {
			w.hyp("hv3").guests["db"].EIDs = append(w.hyp("hv3").guests["db"].EIDs, mustEID("198.51.100.43"))
		})
		time.Sleep(2 * time.Minute)
		if v := r.vm(t, "db"); len(v.EIDs) != 2 || v.Hypervisor != "hv3" {
			t.Errorf("%+v", v)
		}
		r.must(t, http.StatusOK, "PUT", "/v1/vms/db", `{"eids":["198.51.100.40"]}`)
		if v := r.vm(t, "db"); v.Discovered || v.Owner != "alice" || len(v.EIDs) != 1 {
			t.Errorf("%+v", v)
		}
		// What was listed under a name of its own is entered under another: it is the same by its UUID.
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/spare", `{"hypervisor":"hv1","eids":["198.51.100.44"],"uuid":"BBBBBBBB-2222-4333-8444-555555555555"}`)
		if v := r.vm(t, "spare"); v.State != GuestPaused {
			t.Errorf("%+v", v)
		}
		r.must(t, http.StatusNotFound, "GET", "/v1/vms/no-eids", "")
		// One that was found and is gone is forgotten, one that was entered is not.
		w.with(func() {
			delete(w.hyp("hv2").guests, "bobs")
			delete(w.hyp("hv3").guests, "db")
		})
		time.Sleep(5 * time.Minute)
		if v := r.vm(t, "bobs"); !strings.Contains(v.Problem, "does not have it") {
			t.Errorf("%+v", v)
		}
		time.Sleep(10 * time.Minute)
		r.must(t, http.StatusNotFound, "GET", "/v1/vms/bobs", "")
		if v := r.vm(t, "db"); v.State != GuestOff || v.Problem == "" {
			t.Errorf("%+v", v)
		}
		h := decode[HypervisorStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1", ""))
		if h.Node == nil || h.Node.Memory != 64<<30 || h.Free == nil || h.Used.VMs != 2 || h.DriverError != "" || h.DriverSeen.IsZero() {
			t.Errorf("%+v", h)
		}
	})
}

// A domain that is made anew has another UUID, and is the same VM where it was.
func TestRemadeDomain(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() { w.hyp("hv1").guests["web"].UUID = "12345678-2222-4333-8444-555555555555" })
		time.Sleep(2 * time.Minute)
		if v := r.vm(t, "web"); v.UUID != "12345678-2222-4333-8444-555555555555" || v.State != GuestRunning {
			t.Errorf("%+v", v)
		}
	})
}

// Somebody has moved a VM and no agent has seen a packet of it: the drivers are believed, after a while.
func TestRelocate(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			w.hyp("hv2").guests["web"] = w.hyp("hv1").guests["web"]
			delete(w.hyp("hv1").guests, "web")
			w.hyp("hv1").tell("web", GuestGone)
			w.hyp("hv2").tell("web", GuestResumed)
		})
		time.Sleep(10 * time.Second)
		if v := r.vm(t, "web"); v.Hypervisor != "hv1" || !strings.Contains(v.Problem, "is seen on hv2") || v.State != GuestRunning {
			t.Errorf("%+v", v)
		}
		time.Sleep(time.Minute)
		if v := r.vm(t, "web"); v.Hypervisor != "hv2" || v.Problem != "" {
			t.Errorf("%+v", v)
		}
		// Twice is said, and nothing is believed.
		w.with(func() { w.hyp("hv3").guests["web"] = guestFor() })
		time.Sleep(5 * time.Minute)
		if v := r.vm(t, "web"); v.Hypervisor != "hv2" || !strings.Contains(v.Problem, "it runs twice: on hv2 and on hv3") {
			t.Errorf("%+v", v)
		}
	})
}

// A hypervisor that is away is asked again, ever more slowly, and listed anew when it is back.
func TestDriverLost(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() { w.hyp("hv1").die() })
		time.Sleep(10 * time.Second)
		h := decode[HypervisorStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1", ""))
		if !strings.Contains(h.DriverError, "connection refused") || h.DriverSeen.IsZero() {
			t.Errorf("%+v", h)
		}
		if v := r.vm(t, "web"); v.Hypervisor != "hv1" || v.State != GuestRunning {
			t.Errorf("what was seen last is not kept: %+v", v) // it may well go on
		}
		w.with(func() {
			w.hyp("hv1").down = false
			w.hyp("hv1").guests["web"].State = GuestPaused
		})
		time.Sleep(31 * time.Second)
		h = decode[HypervisorStatus](t, r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1", ""))
		if h.DriverError != "" || r.vm(t, "web").State != GuestPaused {
			t.Errorf("%+v %+v", h, r.vm(t, "web"))
		}
		w.with(func() { // an event is enough
			w.hyp("hv1").guests["web"].State = GuestRunning
			w.hyp("hv1").tell("web", GuestResumed)
		})
		time.Sleep(time.Second)
		if v := r.vm(t, "web"); v.State != GuestRunning {
			t.Errorf("%+v", v)
		}
		// Another URI is another connection; a wrong one says so; none is none.
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/hv1", strings.Replace(driverBody("hv1"), "test+tcp", "wrong", 1))
		time.Sleep(time.Second)
		if text := r.must(t, http.StatusOK, "GET", "/v1/hypervisors/hv1", ""); !strings.Contains(text, "is no URI of a test") {
			t.Error(text)
		}
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/hv1", hvBody("hv1"))
		if v := r.vm(t, "web"); v.State != GuestUnknown || v.Guest != nil {
			t.Errorf("%+v", v)
		}
		for _, bad := range []string{`"driver":"here"`, `"migrate_uri":"10.0.0.1"`, `"driver_peer":"::"`, `"cpus":-1`} {
			r.must(t, http.StatusBadRequest, "PUT", "/v1/hypervisors/hv1", strings.Replace(hvBody("hv1"), `"site"`, bad+`,"site"`, 1))
		}
	})
}

func TestLifecycle(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		for _, tc := range []struct {
			verb string
			want GuestState
			told string
		}{
			{"start", GuestRunning, ""}, {"pause", GuestPaused, "pause web"}, {"resume", GuestRunning, "unpause web"}, {"hibernate", GuestHibernated, "hibernate web"},
			{"resume", GuestRunning, "start web"}, {"stop", GuestOff, "stop web"}, {"stop", GuestOff, ""}, {"start", GuestRunning, "start web"}, {"kill", GuestOff, "kill web"},
		} {
			w.with(func() { w.hyp("hv1").log = nil })
			v := decode[VMStatus](t, r.must(t, http.StatusOK, "POST", "/v1/vms/web/"+tc.verb, ""))
			w.with(func() {
				if told := strings.Join(w.hyp("hv1").log, ","); v.State != tc.want || told != tc.told {
					t.Errorf("%s: it is %s, the driver was told %q", tc.verb, v.State, told)
				}
			})
		}
		if text := r.must(t, http.StatusConflict, "POST", "/v1/vms/web/resume", ""); !strings.Contains(text, "is off: start it") {
			t.Error(text)
		}
		r.must(t, http.StatusNotFound, "POST", "/v1/vms/web/dance", "")
		r.must(t, http.StatusNotFound, "POST", "/v1/vms/x/start", "")
		r.must(t, http.StatusNotFound, "POST", "/v1/vms/web/start?hypervisor=x", "")
		if text := r.must(t, http.StatusNotFound, "POST", "/v1/vms/web/start?hypervisor=hv2", ""); !strings.Contains(text, "define it there first") {
			t.Error(text)
		}
		// Its hypervisor dies, and it is started from shared storage elsewhere.
		const def = `<domain type='qemu'><name>web</name><memory>1</memory></domain>`
		r.must(t, http.StatusOK, "POST", "/v1/vms/web/start", "")
		w.with(func() {
			w.hyp("hv2").guests["web"] = &Guest{Name: "web", UUID: webUUID, State: GuestOff, Memory: 1 << 30}
		})
		time.Sleep(2 * time.Minute)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/vms/web/start?hypervisor=hv2", ""); !strings.Contains(text, "runs on hv1") {
			t.Error(text)
		}
		w.with(func() { w.hyp("hv1").die() })
		time.Sleep(2 * time.Minute)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/vms/web/start?hypervisor=hv2", ""); !strings.Contains(text, "whose agent answers") {
			t.Error(text)
		}
		w.with(func() { w.agent("hv1").mode = "down" })
		time.Sleep(2 * time.Minute)
		if v := decode[VMStatus](t, r.must(t, http.StatusOK, "POST", "/v1/vms/web/start?hypervisor=hv2", "")); v.Hypervisor != "hv2" || v.State != GuestRunning || v.Problem != "" {
			t.Errorf("%+v", v)
		}
		time.Sleep(10 * time.Minute) // the dead host is still away, and changes nothing
		if v := r.vm(t, "web"); v.Hypervisor != "hv2" {
			t.Errorf("%+v", v)
		}
		// Definitions.
		for _, tc := range []struct {
			want       int
			path, body string
			text       string
		}{
			{400, "/v1/vms/web/definition", "hello", "domain XML"},
			{400, "/v1/vms/web/definition", "<network><name>web</name></network>", "got a"},
			{400, "/v1/vms/web/definition", "<domain/>", "the domain has no"},
			{400, "/v1/vms/db/definition", def, "another name"},
			{400, "/v1/vms/new/definition", strings.Replace(def, "web", "new", 1), "?hypervisor="},
			{404, "/v1/vms/new/definition?hypervisor=x", strings.Replace(def, "web", "new", 1), "no hypervisor"},
			{413, "/v1/vms/new/definition?hypervisor=hv3", def + strings.Repeat(" ", maxDefinition), "bytes"},
			{200, "/v1/vms/new/definition?hypervisor=hv3", strings.Replace(def, "web", "new", 1), "says no EIDs"},
		} {
			if text := r.must(t, tc.want, "PUT", tc.path, tc.body); !strings.Contains(text, tc.text) {
				t.Errorf("%s %.40s: %s", tc.path, tc.body, text)
			}
		}
		// What nobody entered can be started all the same.
		if v := decode[VMStatus](t, r.must(t, http.StatusOK, "POST", "/v1/vms/new/start", "")); v.State != GuestRunning || v.Hypervisor != "hv3" {
			t.Errorf("%+v", v)
		}
		w.with(func() { w.hyp("hv3").controlled = &StatusError{1, "qemu: no"} })
		if text := r.must(t, http.StatusBadGateway, "POST", "/v1/vms/new/stop", ""); !strings.Contains(text, "stop on hv3: qemu: no") {
			t.Error(text)
		}
		if text := r.must(t, http.StatusBadGateway, "PUT", "/v1/vms/new/definition?hypervisor=hv3", strings.Replace(def, "web", "new", 1)); !strings.Contains(text, "define on hv3: qemu: no") {
			t.Error(text)
		}
		r.must(t, http.StatusCreated, "PUT", "/v1/sites/s4", `{}`)
		r.must(t, http.StatusCreated, "PUT", "/v1/hypervisors/hv4", hvBody("hv4"))
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/ns", `{"hypervisor":"hv4","eids":["198.51.100.20"]}`)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/vms/ns/stop", ""); !strings.Contains(text, "hypervisor hv4 has no driver") {
			t.Error(text)
		}
	})
}

func TestAddresses(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		w.with(func() {
			w.agent("hv1").local = []agentLocal{
				{EID: webEIDs[0], VM: "web", MAC: "52:54:00:00:00:10", Interface: "tap-web", State: "here", Seen: time.Now()},
				{EID: mustEID("198.51.100.77"), MAC: "52:54:00:00:00:10", Interface: "tap-web", State: "here", Learned: true},
				{EID: mustEID("198.51.100.78"), VM: "other", MAC: "52:54:00:00:00:99", Interface: "tap-o"},
			}
		})
		a := decode[Addresses](t, r.must(t, http.StatusOK, "GET", "/v1/vms/web/addresses", ""))
		if len(a.Assigned) != 2 || len(a.Seen) != 2 || !a.Seen[0].Assigned || a.Seen[1].Assigned || !a.Seen[1].Learned || a.Seen[1].EID != "198.51.100.77/32" || len(a.Errors) != 0 {
			t.Errorf("%+v", a)
		}
		w.with(func() { w.agent("hv1").mode = "down" })
		if a = decode[Addresses](t, r.must(t, http.StatusOK, "GET", "/v1/vms/web/addresses", "")); len(a.Errors) != 1 || len(a.Seen) != 0 {
			t.Errorf("%+v", a)
		}
		r.must(t, http.StatusNotFound, "GET", "/v1/vms/x/addresses", "")
	})
}

func TestAnnouncements(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		var first Announced
		for i, body := range []string{
			`{"vm":"web","to":"hv2"}`, `{"vm":"web","to":"hv2"}`, `{"uuid":"` + strings.ToUpper(webUUID) + `","to":"10.1.0.2"}`,
			`{"vm":"instance-7","macs":["52-54-00-00-00-10"],"to":"hv2.example.net"}`,
		} {
			want := http.StatusOK
			if i == 0 {
				want = http.StatusCreated
			}
			start := time.Now()
			a := decode[Announced](t, r.must(t, want, "POST", "/v1/announcements", body))
			if time.Since(start) > time.Second {
				t.Errorf("it took %v", time.Since(start))
			}
			if i == 0 {
				first = a
			}
			if a.VM != "web" || a.Move != first.Move || a.New != (i == 0) {
				t.Errorf("%s: %+v", body, a)
			}
		}
		for body, want := range map[string]int{
			`{}`: 400, `{"to":"hv2"}`: 400, `{"vm":"x","to":"hv2"}`: 404, `{"vm":"web","to":"x"}`: 404, `{"vm":"web"}`: 404, `{"macs":["x"],"to":"hv2"}`: 400,
			`{"macs":["52:54:00:00:00:11"],"to":"hv2"}`: 404, `{"vm":"web","to":"hv3"}`: 409, `{"vm":"web","to":"hv2","x":1}`: 400,
		} {
			r.must(t, want, "POST", "/v1/announcements", body)
		}
		rec := r.until(t, first.Move, Prepared)
		if rec.Why == "" || rec.From != "hv1" || rec.To != "hv2" {
			t.Errorf("%+v", rec)
		}
		// Somebody migrates, and the agents see it.
		w.migrate(first.Move, "hv1", "hv2", 50*time.Millisecond)
		r.until(t, first.Move, Settled)
		w.checkAt(t, "hv2", 7)
		if text := r.must(t, http.StatusConflict, "POST", "/v1/announcements", `{"vm":"web","to":"hv2"}`); !strings.Contains(text, "already") {
			t.Error(text)
		}
		// The next one is another; nothing follows, and it ends by itself. After that it can be announced again.
		var ids []string
		for range 2 {
			a := decode[Announced](t, r.must(t, http.StatusCreated, "POST", "/v1/announcements", `{"vm":"web","to":"hv1"}`))
			ids = append(ids, a.Move)
			time.Sleep(20 * time.Minute)
			if rec := r.move(t, a.Move); rec.State != Prepared {
				t.Errorf("%+v", rec)
			}
			time.Sleep(11 * time.Minute)
			if rec := r.move(t, a.Move); rec.State != Aborted || !strings.Contains(rec.Error, "did not move in 30m") {
				t.Errorf("%+v", rec)
			}
		}
		if ids[0] == ids[1] || ids[0] == first.Move {
			t.Errorf("%v", ids)
		}
		// Our own migration makes the hypervisor's hook announce it: that is the move that there is.
		w.with(func() {
			w.hyp("hv2").guests["web"] = w.hyp("hv1").guests["web"]
			delete(w.hyp("hv1").guests, "web")
		})
		time.Sleep(2 * time.Minute)
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv1"}`)
		r.phase(t, "g1", MigrationMigrating)
		if a := decode[Announced](t, r.must(t, http.StatusOK, "POST", "/v1/announcements", `{"vm":"web","to":"hv1"}`)); a.Move != "g1" || a.New {
			t.Errorf("%+v", a)
		}
		r.migrationEnded(t, "g1")
	})
}

// Whatever is wrong with the controller, a hook has its answer within a second.
func TestAnnouncementIsPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		r := w.start()
		w.equip(t, r)
		w.with(func() { w.agent("hv1").mode, w.agent("hv2").mode = "hang", "hang" })
		r.must(t, http.StatusCreated, "PUT", "/v1/vms/db", `{"hypervisor":"hv1","eids":["198.51.100.20"]}`)
		start := time.Now()
		r.must(t, http.StatusCreated, "POST", "/v1/announcements", `{"vm":"web","to":"hv2"}`)
		w.store.mu.Lock()
		w.store.fail = &StatusError{0, "disk full"}
		w.store.mu.Unlock()
		r.must(t, http.StatusServiceUnavailable, "POST", "/v1/announcements", `{"vm":"db","to":"hv3"}`)
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v", d)
		}
		// The owner itself hangs.
		hang := make(chan struct{})
		r.post(func(time.Time) { <-hang })
		start = time.Now()
		if code, text := r.request("POST", "/v1/announcements", `{"vm":"web","to":"hv2"}`); code != http.StatusServiceUnavailable || time.Since(start) > time.Second {
			t.Errorf("%d %s after %v", code, text, time.Since(start))
		}
		close(hang)
		w.store.mu.Lock()
		w.store.fail = nil
		w.store.mu.Unlock()
		r.end()
	})
}
