package controller

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What agents are asked besides moves. Those of before these questions answer 404, and that is no error.
func TestAgentQuestions(t *testing.T) {
	answers := map[string]string{
		"/v1/node":  `{"name":"hv1","rlocs":["192.0.2.1"],"eid_prefixes":["198.51.100.0/24"],"interfaces":["tap0"],"mtu":1444,"local_eids":1,"more":true}`,
		"/v1/local": `[{"eid":"198.51.100.10/32","vm":"web","interface":"tap0","mac":"52:54:00:00:00:10","state":"here","version":3,"learned":false,"since":"2026-01-02T03:04:05Z","seen":"2026-01-02T03:04:06Z"}]`,
	}
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			t.Errorf("%s without a token", r.URL.Path)
		}
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		_, _ = w.Write([]byte(answers[r.URL.Path]))
	}))
	defer srv.Close()
	a := newHTTPAgents()
	defer a.client.CloseIdleConnections()
	h := Hypervisor{Name: "hv1", Agent: srv.URL, Token: "s3cret"}
	n, err := a.Node(t.Context(), h)
	if err != nil || n.MTU != 1444 || len(n.EIDPrefixes) != 1 || n.Interfaces[0] != "tap0" {
		t.Errorf("%+v %v", n, err)
	}
	ls, err := a.Local(t.Context(), h)
	if err != nil || len(ls) != 1 || ls[0].EID != webEIDs[0] || ls[0].Seen.IsZero() {
		t.Errorf("%+v %v", ls, err)
	}
	for _, code := range []int{http.StatusNotFound, http.StatusMethodNotAllowed} {
		status = code
		if n, err := a.Node(t.Context(), h); n != nil || err != nil {
			t.Errorf("%d: %+v %v", code, n, err)
		}
		if ls, err := a.Local(t.Context(), h); ls != nil || err != nil {
			t.Errorf("%d: %+v %v", code, ls, err)
		}
	}
	status = http.StatusInternalServerError
	if _, err := a.Node(t.Context(), h); err == nil || !strings.Contains(err.Error(), "hv1") {
		t.Errorf("%v", err)
	}
	if _, err := a.Local(t.Context(), h); err == nil {
		t.Error("no error")
	}
}

func TestRemoving(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		list := decode[[]VMStatus](t, r.must(t, http.StatusOK, "GET", "/v1/vms", ""))
		if len(list) != 1 || list[0].State != GuestRunning || list[0].Site != "s1" {
			t.Errorf("%+v", list)
		}
		r.must(t, http.StatusAccepted, "POST", "/v1/migrations", `{"id":"g1","vm":"web","to":"hv2"}`)
		for _, hv := range []string{"hv1", "hv2"} {
			if text := r.must(t, http.StatusConflict, "DELETE", "/v1/hypervisors/"+hv, ""); !strings.Contains(text, "g1") && !strings.Contains(text, "web") {
				t.Error(text)
			}
		}
		if m := r.migrationEnded(t, "g1"); m.Phase != MigrationDone {
			t.Errorf("%+v", m)
		}
		r.until(t, "g1", Settled)
		r.must(t, http.StatusNoContent, "DELETE", "/v1/hypervisors/hv1", "")
		r.must(t, http.StatusNoContent, "DELETE", "/v1/sites/s1", "")
		r.must(t, http.StatusNotFound, "DELETE", "/v1/hypervisors/hv1", "")
		// What is removed is found again, as nobody's; without EIDs in its metadata it is only listed.
		r.must(t, http.StatusNoContent, "DELETE", "/v1/vms/web", "")
		w.with(func() { w.hyp("hv2").tell("web", GuestChanged) })
		time.Sleep(time.Second)
		if v := r.vm(t, "web"); !v.Discovered || v.Hypervisor != "hv2" || !strings.Contains(v.Problem, "says no EIDs") {
			t.Errorf("%+v", v)
		}
	})
}
