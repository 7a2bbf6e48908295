package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/libvirt"
)

// A cloud of hypervisors that are not there, behind a real controller: agents that accept everything, drivers that move
// VMs in a map.

type fakeCloud struct {
	t  *testing.T
	mu sync.Mutex

	guests  map[string]map[string]controller.Guest // hypervisor -> VM
	watches map[string][]chan controller.GuestEvent
	records map[string]map[string]controller.AgentRecord // hypervisor -> handover
	asked   []controller.Migration
	steered []controller.Steering
	defined []string

	// migrate is what a migration does besides arriving; nil = nothing.
	migrate func(ctx context.Context, m controller.Migration, progress func(controller.Progress)) error
}

var errNoVM = errors.New("no such domain")

// newFakeCloud has a hypervisor at each of two sites; VM web runs at nezu-hv1.
func newFakeCloud(t *testing.T) *fakeCloud {
	w := emptyCloud(t, nil, func(hv string) []string { return []string{"--driver", "qemu+tcp://" + hv + "/system"} })
	w.add("nezu-hv1", "web", 10)
	prints(t, "vm web added\n", "vm", "set", "web", "--hypervisor", "nezu-hv1", "--mac", "52:54:00:00:00:0a", "--eid", "198.51.100.10/32", "--owner", "alice")
	w.eventually("web   running  alice", "vm", "list")
	return w
}

// emptyCloud has a hypervisor at each of two sites, which the controller reaches by drivers (nil = those that are not
// there); set says how.
func emptyCloud(t *testing.T, drivers func(uri string) (controller.Driver, error), set func(hv string) []string) *fakeCloud {
	w := &fakeCloud{t: t, guests: map[string]map[string]controller.Guest{}, watches: map[string][]chan controller.GuestEvent{},
		records: map[string]map[string]controller.AgentRecord{}}
	if drivers == nil {
		drivers = w.open
	}
	startController(t, controller.Config{Drivers: drivers, Timing: controller.Timing{Poll: 10 * time.Millisecond, Finish: 100 * time.Millisecond,
		List: 100 * time.Millisecond, ListSoon: time.Millisecond, Locate: 10 * time.Millisecond, Forget: 100 * time.Millisecond}})
	for i, hv := range []string{"nezu-hv1", "nara-hv1"} {
		w.mu.Lock()
		w.guests[hv], w.records[hv] = map[string]controller.Guest{}, map[string]controller.AgentRecord{}
		w.mu.Unlock()
		agent := httptest.NewServer(w.agent(hv))
		t.Cleanup(agent.Close)
		site := strings.TrimSuffix(hv, "-hv1")
		prints(t, "site "+site+" added\n", "site", "set", site, "--shared-storage", "nfs1=/srv/vms")
		prints(t, "hypervisor "+hv+" added\n", append([]string{"hv", "set", hv, "--site", site, "--rloc", fmt.Sprintf("192.0.2.%d", i+1),
			"--xtr-id", strings.Repeat(fmt.Sprint(i+1), 32), "--agent", agent.URL}, set(hv)...)...)
	}
	return w
}

func (w *fakeCloud) add(hv, vm string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guests[hv][vm] = controller.Guest{Name: vm, UUID: fmt.Sprintf("6ba7b810-9dad-11d1-80b4-%012x", n), State: controller.GuestRunning, VCPUs: 1,
		Memory: 96 << 20, Machine: "pc-q35-7.2", Persistent: true,
		Interfaces: []controller.GuestInterface{{MAC: fmt.Sprintf("52:54:00:00:00:%02x", n), Device: "tap" + fmt.Sprint(n)}},
		Disks:      []controller.GuestDisk{{Target: "vda", Source: "/srv/vms/" + vm + ".qcow2", Format: "qcow2", Capacity: 1 << 30}}}
	w.tell(hv, vm, controller.GuestChanged)
}

// tell needs the lock.
func (w *fakeCloud) tell(hv, vm string, kind controller.GuestEventKind) {
	for _, c := range w.watches[hv] {
		select {
		case c <- controller.GuestEvent{VM: vm, Kind: kind, At: time.Now()}:
		default:
		}
	}
}

// eventually runs a command until it prints want.
func (w *fakeCloud) eventually(want string, args ...string) string {
	w.t.Helper()
	var out string
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if out, err = tabi(w.t, args...); err == nil && strings.Contains(out, want) {
			return out
		}
	}
	w.t.Fatalf("tabi %s never prints %q: %v\n%s", strings.Join(args, " "), want, err, out)
	return ""
}

// agent answers as an xTR's agent does, as far as the controller asks.
func (w *fakeCloud) agent(hv string) http.Handler {
	mux := http.NewServeMux()
	answer := func(rw http.ResponseWriter, v any) { _ = json.NewEncoder(rw).Encode(v) }
	mux.HandleFunc("PUT /v1/vms/{vm}", func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /v1/handovers", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		answer(rw, slices.Collect(maps.Values(w.records[hv])))
	})
	handover := func(change func(*controller.AgentRecord, time.Time)) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			w.mu.Lock()
			defer w.mu.Unlock()
			rec, ok := w.records[hv][r.PathValue("id")]
			if !ok && r.Method == "PUT" {
				if err := json.NewDecoder(r.Body).Decode(&struct {
					VM   *string          `json:"vm"`
					Role *controller.Role `json:"role"`
				}{&rec.VM, &rec.Role}); err != nil {
					w.t.Error(err)
				}
				rec.ID, rec.State, rec.Times.Prepared = r.PathValue("id"), "armed", time.Now()
			} else if !ok {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			if change != nil {
				change(&rec, time.Now())
			}
			w.records[hv][rec.ID] = rec
			answer(rw, rec)
		}
	}
	mux.HandleFunc("GET /v1/handovers/{id}", handover(nil))
	mux.HandleFunc("PUT /v1/handovers/{id}", handover(nil))
	mux.HandleFunc("POST /v1/handovers/{id}/commit", handover(func(r *controller.AgentRecord, now time.Time) {
		if r.Role == controller.Target {
			r.Times.Run, r.State = now, "running"
		} else {
			r.Times.Redirecting, r.State = now, "redirecting"
		}
	}))
	mux.HandleFunc("POST /v1/handovers/{id}/abort", handover(func(r *controller.AgentRecord, now time.Time) { r.Times.Aborted, r.State = now, "aborted" }))
	return mux
}

type fakeDriver struct {
	w  *fakeCloud
	hv string
}

func (w *fakeCloud) open(uri string) (controller.Driver, error) {
	return &fakeDriver{w, strings.TrimSuffix(strings.TrimPrefix(uri, "qemu+tcp://"), "/system")}, nil
}

func (d *fakeDriver) Node(context.Context) (controller.Node, error) {
	return controller.Node{Hostname: d.hv + ".example.org", Version: "fake 1.0", CPUs: 8, Memory: 16 << 30, MemoryFree: 8 << 30, Machines: []string{"pc-q35-7.2"}}, nil
}

func (d *fakeDriver) Guests(context.Context) ([]controller.Guest, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	var out []controller.Guest
	for _, g := range d.w.guests[d.hv] {
		g.Interfaces, g.Disks = slices.Clone(g.Interfaces), slices.Clone(g.Disks)
		out = append(out, g)
	}
	return out, nil
}

func (d *fakeDriver) Watch(ctx context.Context, f func(controller.GuestEvent)) error {
	c := make(chan controller.GuestEvent, 64)
	d.w.mu.Lock()
	d.w.watches[d.hv] = append(d.w.watches[d.hv], c)
	d.w.mu.Unlock()
	for {
		select {
		case ev := <-c:
			f(ev)
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *fakeDriver) Define(_ context.Context, xml string) (controller.Guest, error) {
	g, err := libvirt.ParseDomain([]byte(xml))
	if err != nil {
		return g, err
	}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	g.State, g.Persistent = controller.GuestOff, true
	d.w.guests[d.hv][g.Name] = g
	d.w.tell(d.hv, g.Name, controller.GuestChanged)
	return g, nil
}

func (d *fakeDriver) Undefine(context.Context, string) error { return errors.ErrUnsupported }

func (d *fakeDriver) Control(_ context.Context, vm string, do controller.Action) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	g, ok := d.w.guests[d.hv][vm]
	if !ok {
		return errNoVM
	}
	g.State = map[controller.Action]controller.GuestState{
		controller.ActionStart: controller.GuestRunning, controller.ActionUnpause: controller.GuestRunning, controller.ActionPause: controller.GuestPaused,
		controller.ActionStop: controller.GuestOff, controller.ActionKill: controller.GuestOff, controller.ActionHibernate: controller.GuestHibernated,
	}[do]
	d.w.guests[d.hv][vm] = g
	d.w.tell(d.hv, vm, controller.GuestChanged)
	return nil
}

func (d *fakeDriver) Migrate(ctx context.Context, m controller.Migration, progress func(controller.Progress)) error {
	d.w.mu.Lock()
	d.w.asked = append(d.w.asked, m)
	migrate := d.w.migrate
	d.w.mu.Unlock()
	if migrate != nil {
		if err := migrate(ctx, m, progress); err != nil {
			return err
		}
	}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	g, ok := d.w.guests[d.hv][m.VM]
	if !ok {
		return errNoVM
	}
	to := strings.TrimSuffix(strings.TrimPrefix(m.Dest, "qemu+tcp://"), "/system")
	delete(d.w.guests[d.hv], m.VM)
	d.w.guests[to][m.VM] = g
	d.w.tell(d.hv, m.VM, controller.GuestGone)
	d.w.tell(to, m.VM, controller.GuestResumed)
	return nil
}

func (d *fakeDriver) Steer(_ context.Context, _ string, s controller.Steering) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.steered = append(d.w.steered, s)
	return nil
}

func (d *fakeDriver) Close() error { return nil }

func (w *fakeCloud) during(f func(ctx context.Context, m controller.Migration, progress func(controller.Progress)) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.migrate = f
}

func TestCloudMigrate(t *testing.T) {
	w := newFakeCloud(t)
	out, _ := ends(t, 0, "migrate", "web", "--site", "nara", "--dry-run")
	for _, want := range []string{"way        nezu-hv1 -> nara-hv1 (nara)\n", "policy ", "capacity ", "machine ", "storage ", "time "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}

	w.during(func(_ context.Context, _ controller.Migration, progress func(controller.Progress)) error {
		progress(controller.Progress{Phase: "memory", Elapsed: time.Second, Total: 96e6, Done: 48e6, Remaining: 48e6, Sent: 48e6, Rate: 48e6, Iteration: 1})
		time.Sleep(50 * time.Millisecond) // so that the watcher sees it
		progress(controller.Progress{Phase: "done", Elapsed: 2 * time.Second, Total: 96e6, Done: 96e6, Sent: 100e6, Iteration: 3, Downtime: 17 * time.Millisecond})
		return nil
	})
	out, _ = ends(t, 0, "migrate", "web", "--to", "nara-hv1", "--bandwidth", "800M", "--id", "g1")
	for _, want := range []string{"  memory       50%  48.0 MB of 96.0 MB  48.0 MB/s  1.0 s left  iteration 1\n", "\nweb runs on nara-hv1: ", ", 100 MB sent, 3 iterations, downtime 17 ms\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	w.mu.Lock()
	asked := w.asked
	w.mu.Unlock()
	if len(asked) != 1 || asked[0].VM != "web" || asked[0].Bandwidth != 100e6 || asked[0].Mode != controller.ModeLive {
		t.Errorf("the driver was asked %+v", asked)
	}
	out, _ = ends(t, 0, "migration", "list")
	row := strings.Fields(out)[len(strings.Fields("ID VM FROM TO PHASE PROGRESS STARTED TOOK DOWNTIME WHY")):]
	if d := cmp.Diff([]string{"g1", "web", "nezu-hv1", "nara-hv1", "done", "-"}, row[:6]); d != "" || len(row) != 10 || row[8] != "17ms" || row[9] != "-" {
		t.Errorf("%s\n%s", d, out)
	}
	if out, _ = ends(t, 0, "migration", "show", "g1", "-v"); !strings.Contains(out, "phase      done\n") || !strings.Contains(out, "bandwidth     100 MB/s\n") {
		t.Error(out)
	}
	w.eventually("nara-hv1", "vm", "show", "web")
	if _, err := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1"); !strings.Contains(err.Error(), "nara-hv1") {
		t.Error(err)
	}
	ends(t, 1, "migrate", "wbe")
}

func TestCloudMigrateFailsAndIsCancelled(t *testing.T) {
	w := newFakeCloud(t)
	w.during(func(context.Context, controller.Migration, func(controller.Progress)) error {
		return errors.New("libvirt: migrate web: internal error: unable to connect to server at 'nara-hv1:49152'\nConnection refused")
	})
	_, err := ends(t, exitFailed, "migrate", "web", "--to", "nara-hv1")
	if s := err.Error(); !strings.HasPrefix(s, "web goes on at nezu-hv1: ") || !strings.Contains(s, "unable to connect to server") || strings.Contains(s, "\n") {
		t.Error(err)
	}
	if _, err = ends(t, exitFailed, "migrate", "web", "--to", "nara-hv1", "-v"); !strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "Connection refused") {
		t.Error(err)
	}

	w.during(func(ctx context.Context, _ controller.Migration, progress func(controller.Progress)) error {
		progress(controller.Progress{Phase: "memory", Elapsed: time.Second, Total: 96e6, Done: 1e6, Remaining: 95e6, Sent: 1e6, Rate: 1e6, Iteration: 1})
		interrupt(t, syscall.SIGINT)
		<-ctx.Done()
		return ctx.Err()
	})
	out, err := ends(t, exitCancelled, "migrate", "web", "--site", "nara")
	if !strings.Contains(out, "cancelling; the VM goes on at nezu-hv1") || !strings.HasPrefix(err.Error(), "web goes on at nezu-hv1: ") {
		t.Errorf("%v\n%s", err, out)
	}
	w.eventually("web   running  alice  nezu-hv1", "vm", "list")
}

// What the site lends decides; the command says why not.
func TestCloudPolicy(t *testing.T) {
	newFakeCloud(t)
	prints(t, "site nara set\n", "site", "set", "nara", "--owner", "wide", "--lend-owners", "bob")
	if _, err := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1"); err == nil || !strings.Contains(err.Error(), "alice") {
		t.Error(err)
	}
	out, _ := ends(t, exitRefused, "migrate", "web", "--to", "nara-hv1", "--dry-run")
	if !strings.Contains(out, "policy ") || !strings.Contains(out, "FAIL") {
		t.Error(out)
	}
	prints(t, "vm web belongs to bob\n", "vm", "chown", "web", "bob")
	if out, err := ends(t, 0, "migrate", "web", "--to", "nara-hv1"); !strings.Contains(out, "web runs on nara-hv1") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCloudLifeOfAVM(t *testing.T) {
	w := newFakeCloud(t)
	prints(t, "vm web: off\n", "vm", "stop", "web")
	prints(t, "vm web: running\n", "vm", "start", "web")
	prints(t, "vm web: paused\n", "vm", "pause", "web")
	prints(t, "vm web: running\n", "vm", "resume", "web")
	prints(t, "vm web: hibernated\n", "vm", "hibernate", "web")
	prints(t, "vm web: running\n", "vm", "resume", "web")
	prints(t, "vm web: off\n", "vm", "stop", "--force", "web")
	prints(t, "EID               ASSIGNED  SEEN-AT  STATE  MAC  INTERFACE  LAST-SEEN\n198.51.100.10/32  yes       -        -      -    -          -\n", "vm", "addresses", "web")

	file := filepath.Join(t.TempDir(), "db.xml")
	writeFile(t, file, strings.NewReplacer(">web<", ">db<", "198.51.100.10/32", "198.51.100.20/32", "2001:db8:e1d:1::10/128", "198.51.100.21/32",
		"52:54:00:00:00:10", "52:54:00:00:00:20", "52:54:00:00:00:11", "52:54:00:00:00:21").Replace(hookXML))
	prints(t, "vm db defined on nara-hv1\n", "vm", "define", file, "--hypervisor", "nara-hv1")
	w.eventually("db    off    alice  nara-hv1    1     96MiB", "vm", "list")
	prints(t, "vm db: running\n", "vm", "start", "db")
	fails(t, "no vm", "vm", "start", "nobody")
}

func TestCloudDrain(t *testing.T) {
	w := newFakeCloud(t)
	for n := 20; n < 24; n++ {
		vm := fmt.Sprintf("vm%d", n)
		w.add("nezu-hv1", vm, n)
		prints(t, "vm "+vm+" added\n", "vm", "set", vm, "--hypervisor", "nezu-hv1", "--mac", fmt.Sprintf("52:54:00:00:00:%02x", n), "--eid", fmt.Sprintf("198.51.100.%d/32", n))
		w.eventually(vm+"  running", "vm", "list")
	}
	out, _ := ends(t, 0, "hv", "drain", "nezu-hv1", "--dry-run")
	if strings.Count(out, " nara-hv1 ") != 5 {
		t.Errorf("plan:\n%s", out)
	}
	out, _ = ends(t, 0, "hv", "drain", "nezu-hv1")
	if !strings.HasSuffix(out, "nezu-hv1: 5 of 5 VMs moved\n") {
		t.Error(out)
	}
	if out = w.eventually("drained; ok", "hv", "list"); !strings.Contains(out, "nara-hv1  nara  192.0.2.2  5 ") {
		t.Error(out)
	}
	if _, err := ends(t, exitRefused, "migrate", "web", "--site", "nezu"); err == nil || !strings.Contains(err.Error(), "drained") {
		t.Error(err)
	}
	prints(t, "hypervisor nezu-hv1 takes VMs again\n", "hv", "undrain", "nezu-hv1")
	ends(t, 0, "migrate", "web", "--site", "nezu")
}

// The hook's announcement prepares a move at a real controller, by what libvirt says of the VM.
func TestCloudAnnouncement(t *testing.T) {
	w := newFakeCloud(t)
	l := newHookLab(t, "5s")
	l.configure(t, "controller: "+controllerURL()+"\ntoken: s3cret", "5s")
	xml := strings.NewReplacer("52:54:00:00:00:10", "52:54:00:00:00:0a", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00000000000a",
		">web<", ">instance-0000002a<").Replace(hookXML)
	for range 2 {
		if errs := l.call(t, strings.NewReader(xml), "instance-0000002a", "migrate", "begin", "-"); errs != "" {
			t.Errorf("complains: %s", errs)
		}
	}
	l.agent.was(t)
	out := w.eventually("prepared", "move", "list")
	if strings.Count(out, "web  nezu-hv1  nara-hv1") != 1 {
		t.Error(out)
	}
}
