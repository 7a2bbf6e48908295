package controller

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAPIErrors(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		for _, c := range []struct {
			want               int
			method, path, body string
			text               string
		}{
			{404, "GET", "/", "", "GET /v1 lists them"},
			{404, "GET", "/v2", "", "no such path"},
			{405, "POST", "/v1/sites/x", "", "use GET, PUT, DELETE"},
			{405, "DELETE", "/v1/moves/m1", "", "use GET, PUT"},
			{404, "GET", "/v1/sites/x", "", `no site \"x\"`},
			{404, "DELETE", "/v1/hypervisors/x", "", "no hypervisor"},
			{400, "PUT", "/v1/sites/x", "", "empty"},
			{400, "PUT", "/v1/sites/x", "[]", "body"},
			{400, "PUT", "/v1/sites/x", "{} {}", "more than one"},
			{400, "PUT", "/v1/sites/x", `{"nmae":"x"}`, "nmae"},
			{400, "PUT", "/v1/sites/x", `{"name":"y"}`, "another name"},
			{400, "PUT", "/v1/sites/.x", `{}`, "name"},
			{413, "PUT", "/v1/sites/x", `{"description":"` + strings.Repeat("x", maxBody) + `"}`, "bytes"},
			{409, "DELETE", "/v1/sites/s1", "", "hv1"},
			{400, "PUT", "/v1/hypervisors/x", `{}`, "site"},
			{400, "PUT", "/v1/hypervisors/x", strings.Replace(hvBody("hv4"), "10.1.0.4", "0.0.0.0", 1), "rloc"},
			{400, "PUT", "/v1/hypervisors/x", strings.Replace(hvBody("hv4"), "http://hv4:4380", "hv4:4380", 1), "URL"},
			{400, "PUT", "/v1/hypervisors/x", strings.Replace(hvBody("hv4"), "00000000000000000000000000000004", "4", 1), "32 hexadecimal"},
			{400, "PUT", "/v1/hypervisors/x", strings.Replace(hvBody("hv4"), `"rloc"`, `"locators":[{"rloc":"10.9.9.9"}],"rloc"`, 1), "not among"},
			{409, "PUT", "/v1/hypervisors/hv4", hvBody("hv4"), `no site \"s4\"`},
			{409, "PUT", "/v1/hypervisors/x", hvBody("hv1"), "hv1 has the same"},
			{409, "DELETE", "/v1/hypervisors/hv1", "", "web"},
			{400, "PUT", "/v1/vms/x", `{"macs":["zz"],"eids":["10.0.0.1"]}`, "mac"},
			{400, "PUT", "/v1/vms/x", `{}`, "eids"},
			{400, "PUT", "/v1/vms/x", `{"eids":["10.0.0.1/24"]}`, "bits set"},
			{400, "PUT", "/v1/vms/x", `{"eids":["ff02::1"]}`, "no EID that a VM can have"},
			{400, "PUT", "/v1/vms/x", `{"eids":["10.0.0.1"],"interface":"a/b"}`, "interface"},
			{409, "PUT", "/v1/vms/x", `{"eids":["10.0.0.1"],"hypervisor":"hv9"}`, "hv9"},
			{409, "PUT", "/v1/vms/x", `{"eids":["198.51.100.10"]}`, "web"},
			{409, "PUT", "/v1/vms/x", `{"eids":["198.51.100.0/28"]}`, "web"},
			{409, "PUT", "/v1/vms/x", `{"eids":["10.0.0.0/24","10.0.0.1/32"]}`, "10.0.0.0/24"},
			{409, "PUT", "/v1/vms/x", `{"eids":["10.0.0.1"],"macs":["52:54:00:00:00:10"]}`, "MAC"},
			{404, "PUT", "/v1/moves/m1", `{"vm":"x","to":"hv2"}`, "no vm"},
			{404, "PUT", "/v1/moves/m1", `{"vm":"web","to":"x"}`, "no hypervisor"},
			{409, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv1"}`, "already"},
			{400, "PUT", "/v1/moves/m%20", `{"vm":"web","to":"hv2"}`, "move id"},
			{400, "PUT", "/v1/moves/m1?wait=x", `{"vm":"web","to":"hv2"}`, "duration"},
			{404, "GET", "/v1/moves/m1", "", "no move"},
			{404, "POST", "/v1/moves/m1/commit", "", "no move"},
			{400, "GET", "/v1/moves?state=lost", "", "want one of"},
			{400, "GET", "/v1/moves?limit=-1", "", "limit"},
		} {
			code, text := r.request(c.method, c.path, c.body)
			var e struct {
				Error string `json:"error"`
			}
			if code != c.want || json.Unmarshal([]byte(text), &e) != nil || e.Error == "" || !strings.Contains(text, c.text) {
				t.Errorf("%s %s %.80s: %d %s; want %d with %q", c.method, c.path, c.body, code, text, c.want, c.text)
			}
		}
		if n := len(r.recent("", "", 0)); n != 0 {
			t.Errorf("%d moves", n)
		}
	})
}

// What may be repeated says and does the same the second time; what was read can be put back.
func TestAPIIdempotent(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusOK, "PUT", "/v1/hypervisors/hv1", strings.Replace(hvBody("hv1"), `"site"`, `"token":"s3cret","site"`, 1))
		w.store.mu.Lock()
		saves := w.store.saves
		w.store.mu.Unlock()
		for _, path := range []string{"/v1/sites/s1", "/v1/hypervisors/hv1", "/v1/vms/web"} {
			was := r.must(t, http.StatusOK, "GET", path, "")
			if strings.Contains(was, "s3cret") {
				t.Errorf("%s shows the token", path)
			}
			r.must(t, http.StatusOK, "PUT", path, was)
			if d := cmp.Diff(was, r.must(t, http.StatusOK, "GET", path, "")); d != "" {
				t.Errorf("%s: %s", path, d)
			}
		}
		w.store.mu.Lock()
		if w.store.saves != saves {
			t.Errorf("PUTs of what is there were saved")
		}
		w.store.mu.Unlock()
		saved, err := w.store.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range saved.Hypervisors {
			if h.Name == "hv1" && h.Token != "s3cret" {
				t.Errorf("the token was lost: %+v", h)
			}
		}
		for want := http.StatusCreated; ; want = http.StatusOK {
			r.must(t, want, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			if want == http.StatusOK {
				break
			}
		}
		r.must(t, http.StatusConflict, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv3"}`)
		for range 2 {
			r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		}
		r.must(t, http.StatusOK, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.until(t, "m1", Settled)
		r.must(t, http.StatusOK, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		r.must(t, http.StatusConflict, "POST", "/v1/moves/m1/abort", "")
		// A VM whose inventory is put again without a place stays where it went.
		r.must(t, http.StatusOK, "PUT", "/v1/vms/web", strings.Replace(webBody, `"hypervisor":"hv1",`, "", 1))
		if v := r.must(t, http.StatusOK, "GET", "/v1/vms/web", ""); !strings.Contains(v, `"hv2"`) {
			t.Error(v)
		}
	})
}

func TestAPIToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		w.cfg.Token = "right"
		r := w.start()
		r.must(t, http.StatusOK, "GET", "/v1/sites", "")
		for _, given := range []string{"", "Bearer wrong", "Bearer ", "right", "bearer right"} {
			req := httptest.NewRequest("GET", "/v1", nil)
			req.Header.Set("Authorization", given)
			rec := httptest.NewRecorder()
			r.Handler().ServeHTTP(rec, req)
			if rec.Code != http.StatusUnauthorized || rec.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%q: %d", given, rec.Code)
			}
		}
		r.end()
		if code, text := r.request("GET", "/v1/sites", ""); code != http.StatusServiceUnavailable || !strings.Contains(text, "stopped") {
			t.Errorf("after the end: %d %s", code, text)
		}
	})
}

// GET /v1 lists what the mux serves, and every row of it is served.
func TestAPITable(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		req := httptest.NewRequest("GET", "/v1", nil)
		req.Header.Set("Accept", "application/json")
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, req)
		var table []route
		if err := json.Unmarshal(rec.Body.Bytes(), &table); err != nil || len(table) != 39 {
			t.Fatalf("%v: %d rows", err, len(table))
		}
		text := r.must(t, http.StatusOK, "GET", "/v1", "")
		for _, row := range table {
			if !strings.Contains(text, row.Path) || !strings.Contains(text, row.What) {
				t.Errorf("the text does not have %s %s", row.Method, row.Path)
			}
			path, _, _ := strings.Cut(row.Path, "?")
			path = strings.NewReplacer("{name}", "n", "{id}", "i", "{action}", "start").Replace(path)
			if code, body := r.request(row.Method, path, ""); code == http.StatusMethodNotAllowed || strings.Contains(body, "no such path") {
				t.Errorf("%s %s: %d %s", row.Method, path, code, body)
			}
		}
	})
}

func TestAPIWait(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		start := time.Now()
		r.must(t, http.StatusOK, "GET", "/v1/moves/m1?wait=7s", "")
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("waited %v for what does not happen", d)
		}
		go func() {
			time.Sleep(3 * time.Second)
			r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		}()
		start = time.Now()
		text := r.must(t, http.StatusOK, "GET", "/v1/moves/m1?wait=3m", "")
		if d := time.Since(start); d < 33*time.Second || d > 34*time.Second || !strings.Contains(text, `"settled"`) {
			t.Errorf("waited %v: %s", d, text)
		}
		// A caller who has gone leaves nothing behind.
		ctx, cancel := context.WithCancel(t.Context())
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m2", `{"vm":"web","to":"hv3"}`)
		go r.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/moves/m2?wait=5m", nil).WithContext(ctx))
		time.Sleep(time.Second)
		cancel()
		time.Sleep(time.Second)
		r.must(t, http.StatusOK, "POST", "/v1/moves/m2/abort", "")
		time.Sleep(time.Minute)
		if _, err := r.ask(t.Context(), func(time.Time) (any, error) {
			if len(r.watch) != 0 {
				t.Errorf("watchers are left: %v", r.watch)
			}
			return nil, nil
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestShowsAndExplain(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit", "")
		r.until(t, "m1", Settled)
		for name, want := range map[string]string{
			"moves":       `"id":"m1","vm":"web","from":"hv1","to":"hv2","state":"settled","version":7`,
			"sites":       `{"name":"s1"}`,
			"hypervisors": `"name":"hv1","site":"s1","rloc":"10.1.0.1"`,
			"vms":         `{"name":"web","hypervisor":"hv2","site":"s2","eids":"198.51.100.10/32 2001:db8:e1d:1::10/128","macs":"52:54:00:00:00:10","version":7}`,
			"counters":    `{"name":"map-registers sent","value":4}`,
		} {
			v, err := r.Shows()[name](t.Context())
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			b, err := json.Marshal(v)
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: %s does not have %s", name, b, want)
			}
		}
		find, err := r.Explain(t.Context(), webEIDs[0])
		if err != nil || len(find) != 4 {
			t.Fatalf("%+v %v", find, err)
		}
		if !strings.Contains(find[0].Says, "web on hv2") || !strings.Contains(find[1].Says, "settled") || !strings.Contains(find[2].Says, "10.0.0.7 holds version 7") {
			t.Errorf("%+v", find)
		}
		find, err = r.Explain(t.Context(), mustEID("10.0.0.1"))
		if err != nil || len(find) != 1 || !strings.Contains(find[0].Says, "no VM") {
			t.Errorf("%+v %v", find, err)
		}
	})
}

// Notifies that are forged, of others, or not asked for change nothing.
func TestForgedNotify(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.furnish(t, r, 6)
		r.must(t, http.StatusCreated, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		w.with(func() {
			for _, s := range w.servers() {
				s.forge = true
			}
			w.agent("hv2").mode = "hang"
		})
		r.must(t, http.StatusOK, "POST", "/v1/moves/m1/commit?wait=20s", "")
		if m := r.move(t, "m1"); m.State != Running || m.Version != 7 {
			t.Errorf("%+v", m)
		}
		cs := r.counters.snapshot()
		if cs["map-notifies dropped: authentication"] == 0 || cs["map-notifies dropped: not asked for"] == 0 {
			t.Errorf("%v", cs)
		}
	})
}

func TestConfigErrors(t *testing.T) {
	w := newCloud(t)
	for _, change := range []func(*Config){
		func(c *Config) { c.MapServers = append(c.MapServers, c.MapServers[0]) },
		func(c *Config) { c.MapServers = []Server{{}} },
		func(c *Config) { c.MapServers = []Server{{Addr: ms1}} },
		func(c *Config) { c.Addresses = append(c.Addresses, c.Addresses[0].Prev(), noAddr) },
	} {
		cfg := w.cfg
		change(&cfg)
		if _, err := New(cfg, fakeEndpoint{w}, w.store, nil); err == nil || !strings.HasPrefix(err.Error(), "controller: configuration: ") {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
