package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
)

// playedAPI plays a migration: each look shows the next state of it. Before the state "hold" it waits until the
// migration is cancelled; without a cancel nothing comes after it.
type playedAPI struct {
	*httptest.Server
	states  []string // JSON of states, without id and seq
	hold    int      // index of the first state that needs a cancel; 0 = none does
	looking chan struct{}

	mu        sync.Mutex
	asked     []string
	cancelled chan struct{}
}

func played(t *testing.T, hold int, states ...string) *playedAPI {
	a := &playedAPI{states: states, hold: hold, looking: make(chan struct{}, 100), cancelled: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	t.Setenv("TABI_CONTROLLER", a.URL)
	t.Setenv("TABI_TOKEN", "")
	return a
}

func (a *playedAPI) state(i int) string {
	return fmt.Sprintf(`{"id":"g1","seq":%d,"vm":"web","from":"nezu-hv1","to":"nara-hv1","notes":[],`, i+1) + strings.TrimPrefix(a.states[i], "{")
}

func (a *playedAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	if r.Method != "GET" {
		a.asked = append(a.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(b)))
	}
	a.mu.Unlock()
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/migrations":
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, a.state(0))
	case "GET /v1/migrations/g1":
		after, _ := strconv.Atoi(r.URL.Query().Get("after"))
		next := min(after, len(a.states)-1)
		if a.hold > 0 && next >= a.hold {
			a.looking <- struct{}{}
			select {
			case <-a.cancelled:
			case <-r.Context().Done():
				return
			}
		}
		_, _ = io.WriteString(w, a.state(next))
	case "POST /v1/migrations/g1/cancel":
		a.mu.Lock()
		select {
		case <-a.cancelled:
		default:
			close(a.cancelled)
		}
		a.mu.Unlock()
		_, _ = io.WriteString(w, a.state(len(a.states)-1))
	case "POST /v1/migrations/g1/detach":
		_, _ = io.WriteString(w, a.state(0))
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"no such thing"}`)
	}
}

func (a *playedAPI) was(t *testing.T, want ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if d := cmp.Diff(want, a.asked); d != "" {
		t.Errorf("asked (-want +got)\n%s", d)
	}
}

// ends runs the command line and checks its exit status.
func ends(t *testing.T, code int, args ...string) (out string, err error) {
	t.Helper()
	out, err = tabi(t, args...)
	got := 0
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		got = exit.code
	case err != nil:
		got = 1
	}
	if got != code {
		t.Errorf("tabi %s: status %d, want %d: %v\n%s", strings.Join(args, " "), got, code, err, out)
	}
	return out, err
}

const (
	stateQueued  = `{"phase":"queued","link":"nara-nezu","queue":2}`
	stateReady   = `{"phase":"preparing"}`
	stateMemory1 = `{"phase":"migrating","progress":{"phase":"memory","elapsed":1500000000,"total":188000000,"done":50000000,"remaining":138000000,"rate":12500000,"iteration":1}}`
	stateMemory2 = `{"phase":"migrating","progress":{"phase":"memory","elapsed":3500000000,"total":188000000,"done":90000000,"remaining":98000000,"rate":12500000,"dirty_rate":13000000,"iteration":4,"downtime":900000000},
"times":{"asked":"2026-03-01T10:00:00Z","migrating":"2026-03-01T10:00:02Z"},
"notes":[{"at":"2026-03-01T10:00:05Z","text":"it does not converge: 13.0 MB/s are changed, 12.5 MB/s sent"},{"at":"2026-03-01T10:00:05.5Z","text":"switching to post-copy"}]}`
	stateSwitch = `{"phase":"migrating","progress":{"phase":"switch","elapsed":4000000000,"total":188000000,"done":188000000,"rate":12500000},
"notes":[{"at":"2026-03-01T10:00:05Z","text":"a"},{"at":"2026-03-01T10:00:05.5Z","text":"b"}]}`
	stateDone = `{"phase":"done","move":"g1","progress":{"phase":"done","sent":200000000,"iteration":4,"downtime":17000000},
"times":{"asked":"2026-03-01T10:00:00Z","migrating":"2026-03-01T10:00:02Z","ended":"2026-03-01T10:00:06.2Z"}}`
	stateFailed    = `{"phase":"failed","error":"the target has no machine type pc-q35-8.0","detail":"libvirt: migrate web: perform:\nunsupported machine type"}`
	stateCancelled = `{"phase":"cancelled","cancel":"by the API","error":"cancelled: by the API"}`
)

func TestMigrate(t *testing.T) {
	a := played(t, 0, stateQueued, stateReady, stateMemory1, stateMemory2, stateSwitch, stateDone)
	prints(t, `
    0 ms  waits for the link nara-nezu, place 2
    0 ms  preparing
   1.5 s  memory       26%  50.0 MB of 188 MB  12.5 MB/s  11.0 s left  iteration 1
   3.0 s  note: it does not converge: 13.0 MB/s are changed, 12.5 MB/s sent
   3.5 s  note: switching to post-copy
   4.0 s  switch      100%  188 MB of 188 MB  12.5 MB/s
web runs on nara-hv1: 4.2 s, 200 MB sent, 4 iterations, downtime 17 ms
`, "migrate", "web", "--to", "nara-hv1", "--bandwidth", "100M", "--max-downtime", "50ms", "--on-slow", "postcopy", "--timeout", "10m", "--parallel", "2", "--compress")
	a.was(t, `POST /v1/migrations {"vm":"web","to":"nara-hv1","mode":"live","copy_storage":"none","bandwidth":12500000,"max_downtime":"50ms","compress":true,"parallel":2,"timeout":"10m0s","on_slow":"postcopy"}`)

	a = played(t, 0, stateReady, stateDone)
	out, _ := ends(t, 0, "migrate", "web", "--site", "nara", "--offline", "--copy-storage", "inc", "--disk", "vda", "--auto-converge", "-v")
	if want := "    0 ms  preparing\nweb runs on nara-hv1: 4.2 s, 200 MB sent, 4 iterations, downtime 17 ms\nits move, with what was held, redirected and replayed: tabi move show g1\n"; out != want {
		t.Error(cmp.Diff(want, out))
	}
	a.was(t, `POST /v1/migrations {"vm":"web","site":"nara","mode":"offline","copy_storage":"inc","disks":["vda"],"auto_converge":true,"on_slow":"abort"}`)

	prints(t, "migration g1 of web from nezu-hv1 to nara-hv1. To look on: tabi migration watch g1\n", "migrate", "web", "--postcopy", "--detach")
	prints(t, "    0 ms  preparing\nweb runs on nara-hv1: 4.2 s, 200 MB sent, 4 iterations, downtime 17 ms\n", "migration", "watch", "g1")

	for want, args := range map[string][]string{
		`--bandwidth: "fast" is no bandwidth`: {"--bandwidth", "fast"},
		"none of the others can be":           {"--live", "--postcopy"},
		"in the group [to site]":              {"--to", "a", "--site", "b"},
		"accepts 1 arg(s)":                    {"db"},
	} {
		fails(t, want, append([]string{"migrate", "web"}, args...)...)
	}
}

func TestMigrateJSON(t *testing.T) {
	played(t, 0, stateQueued, stateMemory1, stateDone)
	out, _ := ends(t, 0, "migrate", "web", "--json")
	var phases []string
	for line := range strings.Lines(out) {
		var m controller.MigrationStatus
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		phases = append(phases, string(m.Phase))
	}
	if d := cmp.Diff([]string{"queued", "migrating", "done"}, phases); d != "" {
		t.Errorf("%s\n%s", d, out)
	}
}

func TestMigrateFails(t *testing.T) {
	played(t, 0, stateReady, stateFailed)
	if _, err := ends(t, exitFailed, "migrate", "web"); err.Error() != "web goes on at nezu-hv1: the target has no machine type pc-q35-8.0 (the whole story: tabi migration show -v g1)" {
		t.Error(err)
	}
	if _, err := ends(t, exitFailed, "migrate", "web", "-v"); err.Error() != "web goes on at nezu-hv1: the target has no machine type pc-q35-8.0\nlibvirt: migrate web: perform:\nunsupported machine type" {
		t.Error(err)
	}
	c := canned(t, map[string]string{
		"POST /v1/migrations": `409 {"error":"vm web runs on nara-hv1 already"}`,
		"POST /v1/preflight":  `404 {"error":"no vm \"wbe\""}`,
	})
	if _, err := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1"); err.Error() != "controller "+c.URL+": vm web runs on nara-hv1 already" {
		t.Error(err)
	}
	ends(t, 1, "migrate", "wbe", "--dry-run")
	c.Close()
	ends(t, 1, "migrate", "web")
}

// A controller that is away for a moment, and one that forgot.
func TestMigrateControllerAway(t *testing.T) {
	a := played(t, 0, stateReady, stateDone)
	var mu sync.Mutex
	n := 0
	inner := a.Config.Handler
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if r.Method == "GET" {
			n++
		}
		first := n == 1 && r.Method == "GET"
		mu.Unlock()
		if first {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":"the controller is stopping"}`)
			return
		}
		inner.ServeHTTP(w, r)
	})
	out, _ := ends(t, 0, "migrate", "web")
	if !strings.Contains(out, "the controller is away (") || !strings.Contains(out, "web runs on nara-hv1") {
		t.Error(out)
	}

	a = played(t, 0, stateReady)
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			a.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"no migration \"g1\""}`)
	})
	if _, err := ends(t, 1, "migrate", "web"); err == nil || !strings.Contains(err.Error(), `no migration "g1"`) {
		t.Error(err)
	}
}

func interrupt(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Error(err)
	}
}

// Ctrl-C cancels and waits; twice stops looking on; SIGTERM does that at once.
func TestMigrateInterrupted(t *testing.T) {
	a := played(t, 2, stateReady, stateMemory1, stateCancelled)
	go func() {
		<-a.looking
		interrupt(t, syscall.SIGINT)
	}()
	out, err := ends(t, exitCancelled, "migrate", "web")
	if !strings.Contains(out, "cancelling; the VM goes on at nezu-hv1. Again to stop looking on\n") || err.Error() != "web goes on at nezu-hv1: cancelled: by the API" {
		t.Errorf("%v\n%s", err, out)
	}
	if a.was(t, `POST /v1/migrations {"vm":"web","mode":"live","copy_storage":"none","on_slow":"abort"}`, "POST /v1/migrations/g1/cancel"); t.Failed() {
		return
	}

	a = played(t, 2, stateReady, stateMemory1, stateCancelled)
	a.cancelled = nil // nothing comes of the cancel
	inner := a.Config.Handler
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/cancel") {
			interrupt(t, syscall.SIGINT)
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	})
	go func() {
		<-a.looking
		interrupt(t, syscall.SIGINT)
	}()
	if _, err := ends(t, exitDetached, "migrate", "web", "--json"); !strings.Contains(err.Error(), "it is still being cancelled. To look on: tabi migration watch g1") {
		t.Error(err)
	}

	a = played(t, 2, stateReady, stateMemory1, stateCancelled)
	go func() {
		<-a.looking
		interrupt(t, syscall.SIGTERM)
	}()
	if _, err := ends(t, exitDetached, "migrate", "web"); !strings.HasPrefix(err.Error(), "stopped looking on. To look on: tabi migration watch g1   To end it: tabi migration cancel g1") {
		t.Error(err)
	}
	a.was(t, `POST /v1/migrations {"vm":"web","mode":"live","copy_storage":"none","on_slow":"abort"}`, "POST /v1/migrations/g1/detach")
}

func TestMigrateDryRun(t *testing.T) {
	c := canned(t, map[string]string{"POST /v1/preflight": `200 {"vm":"web","from":"nezu-hv1","to":"nara-hv1","to_site":"nara","why":"most of its memory is free","ok":true,
"checks":[{"name":"policy","status":"ok","text":"alice is at home at nara"},{"name":"cpu","status":"warn","text":"nobody could say"}],
"estimate":{"bytes":188000000,"bandwidth":12500000,"from":"measured","dirty_rate":4000000,"time":"22.1s","text":""},
"refused":[{"hypervisor":"hokuriku-hv1","site":"hokuriku","why":"drained"}]}`})
	prints(t, `
vm         web
way        nezu-hv1 -> nara-hv1 (nara)
why there  most of its memory is free

CHECK   RESULT  WHAT
policy  ok      alice is at home at nara
cpu     warn    nobody could say

estimate: 188 MB at 12.5 MB/s (measured), dirty 4.00 MB/s: 22.1 s

NOT-TO        SITE      WHY
hokuriku-hv1  hokuriku  drained
`, "migrate", "web", "--site", "nara", "-n")
	c.wasAsked(t, `POST /v1/preflight {"vm":"web","site":"nara","mode":"live","copy_storage":"none","on_slow":"abort"}`)

	canned(t, map[string]string{"POST /v1/preflight": `200 {"vm":"web","from":"nezu-hv1","to":"nara-hv1","why":"it was named","ok":false,
"checks":[{"name":"storage","status":"fail","text":"vda is local: --copy-storage all or inc"}]}`})
	out, err := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1", "--dry-run")
	if !errors.Is(err, errSilent) || !strings.HasSuffix(out, "storage  FAIL    vda is local: --copy-storage all or inc\n\nit would be refused\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _ := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1", "--dry-run", "--json"); !json.Valid([]byte(out)) {
		t.Error(out)
	}
}

const migrationList = `[
{"id":"g3","vm":"db","from":"nezu-hv1","to":"","phase":"queued","link":"nara-nezu","queue":1,"seq":1,"notes":[]},
{"id":"g2","vm":"web","from":"nezu-hv1","to":"nara-hv1","phase":"migrating","seq":9,"times":{"asked":"2026-03-01T10:00:00Z","started":"2026-03-01T10:00:01Z"},
 "progress":{"phase":"memory","total":200,"done":101},"notes":[]},
{"id":"g1","vm":"web","from":"nara-hv1","to":"nezu-hv1","phase":"done","seq":9,"times":{"asked":"2026-03-01T09:00:00Z","started":"2026-03-01T09:00:01Z","ended":"2026-03-01T09:00:03.5Z"},
 "progress":{"downtime":17000000},"notes":[]},
{"id":"g0","vm":"web","from":"nara-hv1","to":"nezu-hv1","phase":"failed","seq":9,"times":{"asked":"2026-03-01T08:00:00Z"},"error":"no room","notes":[]}]`

func TestMigrationList(t *testing.T) {
	canned(t, map[string]string{
		"GET /v1/migrations?limit=100":                                  "200 " + migrationList,
		"GET /v1/migrations?drain=nezu-hv1&limit=1&phase=failed&vm=web": "200 []",
		"GET /v1/migrations?limit=100&phase=open":                       "200 " + migrationList,
	})
	prints(t, `
ID  VM   FROM      TO        PHASE      PROGRESS  STARTED               TOOK  DOWNTIME  WHY
g3  db   nezu-hv1  -         queued     -         -                     -     -         -
g2  web  nezu-hv1  nara-hv1  migrating  50%       2026-03-01T10:00:01Z  -     -         -
g1  web  nara-hv1  nezu-hv1  done       -         2026-03-01T09:00:01Z  2.5s  17ms      -
g0  web  nara-hv1  nezu-hv1  failed     -         -                     -     -         no room
`, "migration", "list")
	prints(t, "(none)\n", "migrations", "ls", "--vm", "web", "--phase", "failed", "--drain", "nezu-hv1", "--limit", "1")
	out, err := tabi(t, "__complete", "migration", "cancel", "g2")
	if err != nil || !strings.HasPrefix(out, "g2\tweb nezu-hv1 -> nara-hv1, migrating\n:4\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMigrationShow(t *testing.T) {
	one := `{"id":"g2","vm":"web","from":"nezu-hv1","to":"nara-hv1","from_site":"nezu","to_site":"nara","phase":"migrating","seq":9,"why":"it was named","move":"g2",
"times":{"asked":"2026-03-01T10:00:00Z","started":"2026-03-01T10:00:01Z"},"request":{"mode":"live","copy_storage":"none","bandwidth":12500000,"max_downtime":"50ms","on_slow":"abort","timeout":"0s"},
"progress":{"phase":"memory","total":200000000,"done":101000000,"rate":12500000,"iteration":2},"notes":[{"at":"2026-03-01T10:00:05.25Z","text":"it is slow"}],
"checks":[{"name":"agent","status":"ok","text":"both answer"}],"detail":"the whole story"}`
	canned(t, map[string]string{"GET /v1/migrations/g2": "200 " + one})
	short := `
migration  g2
vm         web
way        nezu-hv1 (nezu) -> nara-hv1 (nara)
why there  it was named
phase      migrating: memory
progress   50%, 101 MB of 200 MB, 12.5 MB/s, iteration 2
move       g2
10:00:05.250  it is slow
`
	prints(t, short, "migration", "show", "g2")
	prints(t, short+`
the whole story

CHECK  RESULT  WHAT
agent  ok      both answer

asked         2026-03-01 10:00:00.000Z
started       2026-03-01 10:00:01.000Z
mode          live
copy-storage  none
bandwidth     12.5 MB/s
on-slow       abort
max-downtime  50 ms
`, "migration", "show", "g2", "-v")
	fails(t, "no such thing", "migration", "show", "g9")
}

func TestMigrationSteer(t *testing.T) {
	c := canned(t, map[string]string{
		"POST /v1/migrations/g1/cancel":   `200 {"id":"g1","vm":"web","phase":"cancelled","seq":1,"notes":[]}`,
		"POST /v1/migrations/g2/cancel":   `200 {"id":"g2","vm":"db","phase":"undoing","seq":1,"notes":[]}`,
		"POST /v1/migrations/g1/postcopy": `409 {"error":"it was not begun in a way that can be switched"}`,
	})
	prints(t, "migration g1 of web: cancelled\nmigration g2 of db: undoing\n", "migration", "cancel", "g1", "g2")
	fails(t, "it was not begun in a way", "migration", "postcopy", "g1")
	c.wasAsked(t, "POST /v1/migrations/g1/cancel", "POST /v1/migrations/g2/cancel", "POST /v1/migrations/g1/postcopy")
}

// On a terminal the bar is drawn over, and what is to stay is printed above it.
func TestFollowerOnATerminal(t *testing.T) {
	var out bytes.Buffer
	f := &follower{api: &controllerClient{}, out: &out, width: 70}
	m := underWay(controller.Progress{Phase: "memory", Elapsed: 1e9, Total: 200, Done: 100})
	f.tell(m, nil, true)
	m.Notes = []controller.Note{{At: t0.Add(4e9), Text: "it is slow"}}
	f.tell(m, nil, true)
	m.Phase = controller.MigrationDone
	if err := f.ended(m); err != nil {
		t.Error(err)
	}
	const back = "\x1b[1A\r\x1b[J"
	two := "web  nezu-hv1 -> nara-hv1  memory  1.0 s\n[###############---------------]   50%  100 B of 200 B  0 B/s"
	if d := cmp.Diff(two+back+"   2.0 s  note: it is slow\n"+two+back+"web runs on nara-hv1\n", out.String()); d != "" {
		t.Error(d)
	}
	if w := terminalWidth(&out); w != 0 {
		t.Errorf("a buffer is a terminal of %d columns", w)
	}
}
