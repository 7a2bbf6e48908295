package xtr

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

// What the controller asks an agent before it sends a VM there, and when it is asked for a VM's addresses.
func TestNodeAndLocal(t *testing.T) {
	inLab(t, func(l *lab) {
		a := l.hosts[0]
		vm := l.newVM("web", 10)
		vm.boot(a)
		get := func(path string, out any) {
			t.Helper()
			w := httptest.NewRecorder()
			a.x.Handler().ServeHTTP(w, httptest.NewRequestWithContext(l.ctx, "GET", path, nil))
			if err := json.Unmarshal(w.Body.Bytes(), out); err != nil || w.Code != http.StatusOK {
				t.Errorf("%s: %d %s %v", path, w.Code, w.Body, err)
			}
		}
		var n NodeInfo
		get("/v1/node", &n)
		if len(n.EIDPrefixes) == 0 || !n.EIDPrefixes[0].Contains(vm.eids[0]) && !n.EIDPrefixes[len(n.EIDPrefixes)-1].Contains(vm.eids[0]) ||
			len(n.Interfaces) == 0 || len(n.RLOCs) == 0 || n.LocalEIDs == 0 {
			t.Errorf("%+v", n)
		}
		var rows []ShowLocal
		get("/v1/local", &rows)
		if len(rows) == 0 || rows[0].EID != vm.eids[0] || rows[0].VM != "web" || rows[0].State != "here" {
			t.Errorf("%+v", rows)
		}
	})
}
