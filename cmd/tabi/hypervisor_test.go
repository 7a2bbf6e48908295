package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
)

func TestHypervisorShow(t *testing.T) {
	canned(t, map[string]string{"GET /v1/hypervisors/hv1": `200 {"name":"hv1","site":"a","rloc":"192.0.2.1","xtr_id":"00000000000000000000000000000001","agent":"http://h1",
"driver":"qemu+tcp://h1/system","migrate_uri":"tcp://10.0.0.1","drained":true,"drained_since":"2026-03-01T10:00:00Z","agent_seen":"2026-01-01T00:00:00Z","driver_seen":"2026-01-01T00:00:00Z",
"node":{"hostname":"h1","version":"libvirt 9.0.0, QEMU 7.2","cpus":8,"memory":17179869184,"memory_free":1},"used":{"cpus":3,"memory":5368709120},"free":{"cpus":5,"memory":8589934592},"vms":["v","w"]}`})
	prints(t, `
hypervisor   hv1
site         a
rloc         192.0.2.1
xtr-id       00000000000000000000000000000001
agent        http://h1
driver       qemu+tcp://h1/system
migrate-uri  tcp://10.0.0.1
state        drained; ok
drained      since 2026-03-01T10:00:00Z
node         h1, libvirt 9.0.0, QEMU 7.2, 8 CPUs, 16 GiB of memory
used         3 CPUs, 5 GiB
free         5 CPUs, 8 GiB
vms          v w
`, "hv", "show", "hv1")
}

// drainAPI plays a drain: each look shows the next state; from hold on only after an undrain.
type drainAPI struct {
	states    []string
	hold      int
	undrained chan struct{}

	mu    sync.Mutex
	looks int
	asked []string
}

func drained(t *testing.T, hold int, states ...string) *drainAPI {
	a := &drainAPI{states: states, hold: hold, undrained: make(chan struct{})}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	t.Setenv("TABI_CONTROLLER", s.URL)
	t.Setenv("TABI_TOKEN", "")
	return a
}

func (a *drainAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	if r.Method != "GET" {
		a.asked = append(a.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(b)))
	} else {
		a.looks++
	}
	n := a.looks
	if a.hold > 0 && n >= a.hold {
		select {
		case <-a.undrained:
		default:
			n = a.hold - 1
		}
	}
	a.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "/undrain"):
		close(a.undrained)
		_, _ = io.WriteString(w, `{"hypervisor":"hv1","drained":false}`)
	case strings.Contains(string(b), `"plan_only":true`):
		_, _ = io.WriteString(w, `[{"vm":"web","to":"hv2","why":"most of its memory is free"},{"vm":"db","to":"","error":"nobody has 64 GiB"}]`)
	default:
		_, _ = io.WriteString(w, a.states[min(n, len(a.states)-1)])
	}
}

func drainState(complete bool, total, done, underWay, failed, external int, moves string) string {
	return fmt.Sprintf(`{"hypervisor":"hv1","drained":true,"complete":%v,"total":%d,"done":%d,"under_way":%d,"failed":%d,"external":%d,"moves":[%s]}`,
		complete, total, done, underWay, failed, external, moves)
}

const (
	webMoved = `{"vm":"web","to":"hv2","phase":"done"}`
	dbStayed = `{"vm":"db","to":"hv2","phase":"failed","error":"it did not converge"}`
)

func TestDrain(t *testing.T) {
	a := drained(t, 0, drainState(false, 2, 0, 2, 0, 0, ""), drainState(false, 2, 1, 1, 0, 0, webMoved), drainState(true, 2, 2, 0, 0, 0, webMoved))
	prints(t, "VM   TO       WHY\nweb  hv2      most of its memory is free\ndb   nowhere  nobody has 64 GiB\n", "hv", "drain", "hv1", "--dry-run")
	prints(t, "hv1: 0 of 2 VMs moved, 2 under way. To look on: tabi hv drain hv1   To call it off: tabi hv undrain hv1\n", "hv", "drain", "hv1", "--detach", "--site", "a")
	prints(t, "hv1: 0 of 2 VMs moved, 2 under way\nhv1: 1 of 2 VMs moved, 1 under way\nhv1: 2 of 2 VMs moved\n", "hv", "drain", "hv1", "--on-slow", "wait", "--bandwidth", "1MB/s")
	if d := cmp.Diff([]string{
		`POST /v1/hypervisors/hv1/drain {"mode":"live","copy_storage":"none","on_slow":"abort","plan_only":true}`,
		`POST /v1/hypervisors/hv1/drain {"site":"a","mode":"live","copy_storage":"none","on_slow":"abort"}`,
		`POST /v1/hypervisors/hv1/drain {"mode":"live","copy_storage":"none","bandwidth":1000000,"on_slow":"wait"}`,
	}, a.asked); d != "" {
		t.Error(d)
	}

	drained(t, 0, drainState(false, 2, 0, 1, 0, 0, ""), drainState(false, 2, 1, 0, 1, 0, webMoved+","+dbStayed))
	out, err := ends(t, exitFailed, "hv", "drain", "hv1")
	if d := cmp.Diff("hv1: 0 of 2 VMs moved, 1 under way\nhv1: 1 of 2 VMs moved, 1 stayed\nVM  TO   PHASE   WHY\ndb  hv2  failed  it did not converge\n", out); d != "" ||
		err.Error() != "hv1: 1 VM stayed. To try again: tabi hv drain hv1" {
		t.Errorf("%v %s", err, d)
	}

	drained(t, 0, drainState(false, 1, 0, 0, 0, 1, `{"vm":"web","to":"hv2","why":"it has room"}`))
	if _, err := ends(t, exitFailed, "hv", "drain", "hv1", "--json"); !strings.Contains(err.Error(), "1 VM for others to move") {
		t.Error(err)
	}
	prints(t, "hypervisor hv1 takes VMs again\n", "hv", "undrain", "hv1")

	drained(t, 0, drainState(false, 1, 0, 1, 0, 0, ""), drainState(true, 1, 1, 0, 0, 0, webMoved))
	out, _ = ends(t, 0, "hv", "drain", "hv1", "--json")
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q", line)
		}
	}
	if strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
}

// Ctrl-C calls off what has not begun; twice, and SIGTERM, stop looking on.
func TestDrainInterrupted(t *testing.T) {
	// send sends signals, each when the drain has been looked at once more.
	send := func(a *drainAPI, signals ...syscall.Signal) <-chan struct{} {
		done := make(chan struct{})
		looks := func() int {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.looks
		}
		go func() {
			defer close(done)
			for _, s := range signals {
				for before := looks(); looks() == before; {
					time.Sleep(time.Millisecond)
				}
				interrupt(t, s)
			}
		}()
		return done
	}
	states := []string{drainState(false, 2, 0, 2, 0, 0, ""), drainState(false, 2, 1, 0, 1, 0, webMoved+`,{"vm":"db","phase":"cancelled","error":"undrained"}`)}
	a := drained(t, 1, states...)
	sent := send(a, syscall.SIGINT)
	out, err := ends(t, exitCancelled, "hv", "drain", "hv1")
	<-sent
	if !strings.Contains(out, "calling off what has not begun") || !strings.Contains(out, "undrained") || err.Error() != "hv1: called off; VMs may come again" {
		t.Errorf("%v\n%s", err, out)
	}

	a = drained(t, 1, states...)
	sent = send(a, syscall.SIGTERM)
	_, err = ends(t, exitDetached, "hv", "drain", "hv1")
	<-sent
	if !strings.HasPrefix(err.Error(), "stopped looking on; it goes on.") || len(a.asked) != 1 {
		t.Errorf("%v %v", err, a.asked)
	}

	a = drained(t, 1, states[0], states[0]) // nothing comes of the undrain
	sent = send(a, syscall.SIGINT, syscall.SIGINT)
	_, err = ends(t, exitDetached, "hv", "drain", "hv1", "--json")
	<-sent
	if len(a.asked) != 2 {
		t.Errorf("%v %v", err, a.asked)
	}
}

func TestDrawDrain(t *testing.T) {
	d := controller.DrainStatus{Hypervisor: "hv1", Total: 200, Done: 50, UnderWay: 4, Failed: 1, Bytes: 19e9, BytesDone: 12e8}
	for width, want := range map[int]string{
		120: "[#######-----------------------]  hv1: 50 of 200 VMs moved, 4 under way, 1 stayed  1.20 GB of 19.0 GB",
		70:  "[####---------------]  hv1: 50 of 200 VMs moved, 4 under way, 1 stayed",
		30:  "[##------]",
	} {
		if got := drawDrain(d, width); got != want {
			t.Errorf("%d: %q, want %q", width, got, want)
		}
	}
}
