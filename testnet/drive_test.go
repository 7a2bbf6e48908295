package testnet

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// driven is what these tests read of a migration in the controller's API.
type driven struct {
	ID, Phase, Error, Detail, To string
	Seq                          uint64
	Notes                        []struct{ Text string }
	Progress                     struct {
		Phase    string
		Downtime time.Duration
		Elapsed  time.Duration
		Sent     uint64
	}
	Times struct{ Asked, Migrating, Ended time.Time }
}

// equip tells the controller how to reach what runs the VMs.
func equip(t *testing.T, c *Cloud) {
	t.Helper()
	for _, n := range nodesOf("xtr", inCloud) {
		var h map[string]any
		must(t, c.Controller(t.Context(), http.MethodGet, "/v1/hypervisors/"+n.name, nil, &h))
		h["driver"], h["migrate_uri"] = c.maker.drivers(n, c.hosts[n.name].dir)
		must(t, c.Controller(t.Context(), http.MethodPut, "/v1/hypervisors/"+n.name, h, nil))
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		var v struct{ State, Problem string }
		must(t, c.Controller(t.Context(), http.MethodGet, "/v1/vms/"+hostWeb, nil, &v))
		if v.State == "running" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the controller does not see the VM run: %+v", v)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// drive has the controller migrate the VM, and returns how that ended. meanwhile, if not nil, is called with every answer.
func drive(t *testing.T, c *Cloud, request map[string]any, meanwhile func(driven)) driven {
	t.Helper()
	request["vm"] = hostWeb
	var m driven
	must(t, c.Controller(t.Context(), http.MethodPost, "/v1/migrations", request, &m))
	for m.Phase != "done" && m.Phase != "failed" && m.Phase != "cancelled" {
		must(t, c.Controller(t.Context(), http.MethodGet, fmt.Sprintf("/v1/migrations/%s?wait=5s&after=%d", m.ID, m.Seq), nil, &m))
		if meanwhile != nil {
			meanwhile(m)
		}
	}
	t.Logf("%v: %s to %s in %v, %v sent, downtime %v: %s\n%s", request, m.Phase, m.To, m.Times.Ended.Sub(m.Times.Asked), m.Progress.Sent, m.Progress.Downtime, m.Error, m.Detail)
	if m.Phase == "done" {
		c.setWhere(hostWeb, m.To)
	}
	var rec struct {
		State                      string
		Held, Redirected, Replayed uint64
		Dropped                    map[string]uint64
		Times                      map[string]time.Time
	}
	must(t, c.Controller(t.Context(), http.MethodGet, "/v1/moves/"+m.ID, nil, &rec))
	t.Logf("its move: %+v", rec)
	return m
}

// The controller drives real libvirt daemons: a VM goes and comes back, in every way, and no packet is lost.
func TestControllerMigrates(t *testing.T) {
	c := startCloud(t, Options{VM: VMLibvirt, Rate: 500, BitRate: 5e6})
	equip(t, c)
	home := c.Where(hostWeb)
	var pf struct {
		OK     bool
		To     string
		Checks []struct{ Name, Status, Text string }
	}
	must(t, c.Controller(t.Context(), http.MethodPost, "/v1/preflight", map[string]any{"vm": hostWeb}, &pf))
	for _, ch := range pf.Checks {
		t.Logf("%-10s %-5s %s", ch.Name, ch.Status, ch.Text)
	}
	if !pf.OK || pf.To == "" || pf.To == home {
		t.Errorf("preflight: %+v", pf)
	}
	away := pf.To
	if m := drive(t, c, map[string]any{"to": away, "max_downtime": "100ms"}, nil); m.Phase != "done" || m.Error != "" {
		t.Fatalf("%+v", m)
	}
	// On a line that is too slow by request: whoever asked loses patience.
	cancelled := false
	m := drive(t, c, map[string]any{"to": home, "bandwidth": 1 << 20, "on_slow": "wait"}, func(m driven) {
		if m.Phase == "migrating" && m.Progress.Phase == "memory" && !cancelled {
			cancelled = true
			must(t, c.Controller(t.Context(), http.MethodPost, "/v1/migrations/"+m.ID+"/cancel", nil, nil))
		}
	})
	if m.Phase != "cancelled" || !strings.Contains(m.Error, "by the API") {
		t.Errorf("%+v", m)
	}
	if m = drive(t, c, map[string]any{"to": home, "bandwidth": 1 << 20, "timeout": "3s", "on_slow": "wait"}, nil); m.Phase != "failed" || !strings.HasPrefix(m.Error, "timeout: not done in 3s: ") {
		t.Errorf("%+v", m)
	}
	if m = drive(t, c, map[string]any{"to": home, "mode": "postcopy"}, nil); m.Phase != "done" {
		t.Errorf("%+v", m)
	}
	wantNoLossOfOurs(t, finish(t, c), 2)

	// The controller is killed in the middle. The hypervisors go on; when it is back it asks them, and says what is. No
	// packets are counted here: software emulation may lose a page of a guest that is sent slowly.
	var slow driven
	must(t, c.Controller(t.Context(), http.MethodPost, "/v1/migrations", map[string]any{"vm": hostWeb, "to": away, "bandwidth": 8 << 20, "on_slow": "wait"}, &slow))
	for slow.Progress.Phase != "memory" && slow.Phase != "failed" {
		must(t, c.Controller(t.Context(), http.MethodGet, fmt.Sprintf("/v1/migrations/%s?wait=5s&after=%d", slow.ID, slow.Seq), nil, &slow))
	}
	must(t, c.Host("ctl").Kill("controller"))
	must(t, c.Host("ctl").Start(within(t, 30*time.Second), "controller"))
	for slow.Phase != "done" && slow.Phase != "failed" {
		must(t, c.Controller(t.Context(), http.MethodGet, "/v1/migrations/"+slow.ID+"?wait=1m", nil, &slow))
	}
	where := map[string]string{}
	for _, hv := range []string{home, away} {
		where[hv], _ = c.Libvirtd(hv).Virsh(t.Context(), "domstate", hostWeb)
		where[hv] = strings.TrimSpace(where[hv])
	}
	if slow.Phase != "done" || where[away] != "running" || where[home] == "running" {
		t.Errorf("%+v, and it is %v", slow, where)
	}
	t.Logf("killed in the middle: %s: %v", slow.Phase, slow.Notes)
}
