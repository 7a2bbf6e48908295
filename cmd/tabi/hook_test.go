package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const hookXML = `<domain type='qemu' id='3'>
  <name>web</name><uuid>6ba7b810-9dad-11d1-80b4-00c04fd430c8</uuid>
  <metadata><tabi:vm xmlns:tabi="https://github.com/tabi-lisp/tabi/vm/1"><tabi:owner>alice</tabi:owner><tabi:eid>198.51.100.10/32</tabi:eid><tabi:eid>2001:db8:e1d:1::10/128</tabi:eid></tabi:vm></metadata>
  <memory unit='KiB'>98304</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <interface type='ethernet'><mac address='52:54:00:00:00:10'/><target dev='tap1' managed='no'/></interface>
    <interface type='ethernet'><mac address='52:54:00:00:00:11'/></interface>
  </devices>
</domain>`

// listener stands for the controller or the agent: it keeps what is announced, and answers what it is told to.
type listener struct {
	mu     sync.Mutex
	heard  []string
	status int           // 0 = 200
	hang   chan struct{} // if not nil, no answer before it is closed
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	l.mu.Lock()
	l.heard = append(l.heard, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(b)))
	status, hang := l.status, l.hang
	l.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	if status != 0 {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"error":"no vm \"web\""}`)
		return
	}
	_, _ = io.WriteString(w, `{"vm":"web","move":"m1","state":"preparing","new":true}`)
}

func (l *listener) was(t *testing.T, want ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := cmp.Diff(want, l.heard); d != "" {
		t.Errorf("announced (-want +got)\n%s", d)
	}
	l.heard = nil
}

// hookLab is a controller, an agent and the hook's configuration.
type hookLab struct {
	controller, agent *listener
	dir, config       string
}

func newHookLab(t *testing.T, timeout string) *hookLab {
	l := &hookLab{controller: &listener{}, agent: &listener{}, dir: t.TempDir()}
	c := httptest.NewServer(l.controller)
	t.Cleanup(c.Close)
	unix, err := net.Listen("unix", filepath.Join(l.dir, "xtr.sock"))
	if err != nil {
		t.Fatal(err)
	}
	a := httptest.NewUnstartedServer(l.agent)
	a.Listener = unix
	a.Start()
	t.Cleanup(a.Close)
	l.config = filepath.Join(l.dir, "hook.yaml")
	l.configure(t, "controller: "+c.URL+"\ntoken: s3cret", timeout)
	return l
}

func (l *hookLab) configure(t *testing.T, extra, timeout string) {
	t.Helper()
	text := "hypervisor: nara-hv1\nagent_socket: " + l.dir + "/xtr.sock\nstate_dir: " + l.dir + "/state\ntimeout: " + timeout + "\n" + extra + "\n"
	if err := os.WriteFile(l.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// call is libvirt calling the hook: nothing on standard output, status 0. It returns standard error.
func (l *hookLab) call(t *testing.T, in io.Reader, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRootCommand()
	root.SetArgs(append([]string{"hook", "libvirt", "--config", l.config, "--"}, args...))
	root.SetIn(in)
	root.SetOut(&out)
	root.SetErr(&errs)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Errorf("%v: %v: it must not fail", args, err)
	}
	if out.Len() > 0 {
		t.Errorf("%v: printed %q: libvirt takes that for a domain", args, out.String())
	}
	return errs.String()
}

func (l *hookLab) xml() io.Reader { return strings.NewReader(hookXML) }

const (
	toldController = `POST /v1/announcements Bearer s3cret {"vm":"web","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","macs":["52:54:00:00:00:10","52:54:00:00:00:11"],"to":"nara-hv1"}`
	toldAgent      = `POST /v1/announcements  {"vm":"web","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","macs":["52:54:00:00:00:10","52:54:00:00:00:11"],"eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"]}`
)

func TestHookTellsTheController(t *testing.T) {
	l := newHookLab(t, "5s")
	if errs := l.call(t, l.xml(), "web", "migrate", "begin", "-"); errs != "" {
		t.Errorf("complains: %s", errs)
	}
	l.controller.was(t, toldController)
	l.agent.was(t)

	// What comes next says nothing new; what has nothing to do with an arrival even less.
	for _, op := range []string{"prepare", "start", "started", "stopped", "release", "reconnect", "attach", "restore", "no such thing"} {
		if errs := l.call(t, l.xml(), "web", op, "begin", "-"); errs != "" {
			t.Errorf("%s: complains: %s", op, errs)
		}
	}
	l.controller.was(t)
	l.agent.was(t)
}

// A controller that refuses, is silent or is away: the agent is told, within the time that there is.
func TestHookFallsBackToTheAgent(t *testing.T) {
	l := newHookLab(t, "1s")
	l.controller.status = 404
	if errs := l.call(t, l.xml(), "web", "migrate", "begin", "-"); errs != "" {
		t.Errorf("complains: %s", errs)
	}
	l.controller.was(t, toldController)
	l.agent.was(t, toldAgent)

	l.controller.hang = make(chan struct{})
	if errs := l.call(t, l.xml(), "web", "migrate", "begin", "-"); errs != "" {
		t.Errorf("complains: %s", errs)
	}
	l.agent.was(t, toldAgent)

	l.configure(t, "controller: http://127.0.0.1:1", "1s")
	l.call(t, l.xml(), "web", "migrate", "begin", "-")
	l.agent.was(t, toldAgent)

	l.configure(t, "", "1s")
	l.call(t, l.xml(), "web", "migrate", "begin", "-")
	l.agent.was(t, toldAgent)

	// A configuration that is wrong keeps nobody from telling whom it can; here that is nobody.
	l.configure(t, "controler: x", "1s")
	if errs := l.call(t, l.xml(), "web", "stopped", "end", "-"); errs != "" {
		t.Errorf("complains where there is nothing to do: %s", errs)
	}
}

// Nobody answers: one line of complaint, status 0, soon; and the phases that follow try again.
func TestHookNobodyAnswers(t *testing.T) {
	l := newHookLab(t, "300ms")
	hang := make(chan struct{})
	l.controller.hang, l.agent.hang = hang, hang
	start := time.Now()
	errs := l.call(t, l.xml(), "web", "migrate", "begin", "-")
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "controller: no answer in time; agent ") {
		t.Errorf("complains %q", errs)
	}
	close(hang)
	l.controller.was(t, toldController)
	l.agent.was(t, toldAgent)

	if errs := l.call(t, l.xml(), "other", "prepare", "begin", "-"); errs != "" {
		t.Errorf("complains of another VM: %s", errs)
	}
	l.controller.was(t)
	l.configure(t, "controller: "+"http://127.0.0.1:1", "2s")
	if errs := l.call(t, l.xml(), "web", "prepare", "begin", "-"); errs != "" {
		t.Errorf("complains: %s", errs)
	}
	l.agent.was(t, toldAgent)
	l.call(t, l.xml(), "web", "started", "begin", "-")
	l.agent.was(t)

	// An old mark is no reason to announce what may have failed long ago.
	mark := filepath.Join(l.dir, "state", "pending-web")
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(mark, old, old); err != nil {
		t.Fatal(err)
	}
	l.call(t, l.xml(), "web", "prepare", "begin", "-")
	l.agent.was(t)
}

func controllerURL() string { return os.Getenv("TABI_CONTROLLER") }

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

type endless struct{}

func (endless) Read([]byte) (int, error) { select {} }

func TestHookNonsense(t *testing.T) {
	l := newHookLab(t, "50ms")
	for name, c := range map[string]struct {
		in   io.Reader
		args []string
		want string
	}{
		"no arguments":   {l.xml(), nil, "0 arguments, want the VM and the operation"},
		"no XML":         {strings.NewReader(""), []string{"web", "migrate", "begin", "-"}, "hook libvirt web migrate begin -: "},
		"not XML":        {strings.NewReader("<domain><name>web"), []string{"web", "migrate"}, "hook libvirt web migrate: "},
		"endless XML":    {endless{}, []string{"web", "migrate", "begin", "-"}, "the domain's XML: does not end in time"},
		"a name to fear": {endless{}, []string{"../../../../etc/x", "migrate", "begin", "-"}, "does not end in time"},
	} {
		t.Run(name, func(t *testing.T) {
			if errs := l.call(t, c.in, c.args...); !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 {
				t.Errorf("complains %q, want one line with %q", errs, c.want)
			}
		})
	}
	l.controller.was(t)
	marks, err := filepath.Glob(filepath.Join(l.dir, "state", "*"))
	if d := cmp.Diff([]string{l.dir + "/state/pending-web", l.dir + "/state/pending-x"}, marks); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	if out, err := tabi(t, "hook", "libvirt", "--nonsense"); err != nil || !strings.Contains(out, "unknown flag") {
		t.Errorf("%v %q", err, out)
	}
}

// runScript runs an installed hook as libvirt does.
func runScript(t *testing.T, path string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(hookXML)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Errorf("%s %v: %v: it must not fail\n%s", path, args, err, errs.String())
	}
	return out.String(), errs.String()
}

func TestHookInstall(t *testing.T) {
	dir := t.TempDir()
	hooks, conf := filepath.Join(dir, "hooks"), filepath.Join(dir, "etc", "hook.yaml")
	binary := filepath.Join(dir, "it's tabi")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(binary, "#!/bin/sh\necho noise; cat > \"$0.in\"; printf '%s|' \"$@\" > \"$0.args\"; exit 7\n", 0o755)
	script, config := filepath.Join(hooks, "qemu.d", "50-tabi"), conf
	install := func(args ...string) string {
		t.Helper()
		out, err := tabi(t, append([]string{"hook", "install", "libvirt", "--dir", hooks, "--config", conf, "--binary", binary}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	want := config + ": written\n" + script + ": written\n" +
		"No controller is given: VMs that arrive are announced to the agent here only (/run/tabi/xtr.sock).\n" +
		"libvirt looks for hooks when it starts or reloads: \"systemctl reload libvirtd\" (or virtqemud) once. VMs go on.\n"
	if d := cmp.Diff(want, install("--hypervisor", "nara-hv1")); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}

	// Others were there before: they stay as they are, and libvirt calls hooks already.
	other := filepath.Join(hooks, "qemu")
	write(other, "#!/bin/sh\nexit 0\n", 0o755)
	write(filepath.Join(hooks, "qemu.d", "README"), "not a hook", 0o644)
	want = config + ": written\n" + script + ": right already\n" + other + ": not ours, not touched\n" +
		"VMs that arrive are announced to http://192.0.2.9:4381 as coming to nara-hv1, and to the agent here if that does not answer.\n"
	if d := cmp.Diff(want, install("--controller", "http://192.0.2.9:4381/", "--token", "s3cret")); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if got := install(); !strings.HasPrefix(got, config+": right already\n"+script+": right already\n") {
		t.Errorf("installing again: %s", got)
	}
	var done hookDone
	if err := json.Unmarshal([]byte(install("--json")), &done); err != nil || done.Reload || done.Hypervisor != "nara-hv1" ||
		!cmp.Equal(done.Files, []hookFile{{config, "right already"}, {script, "right already"}, {other, "not ours, not touched"}}) {
		t.Errorf("%+v %v", done, err)
	}
	for path, mode := range map[string]os.FileMode{script: 0o755, config: 0o600} {
		if i, err := os.Stat(path); err != nil || i.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", path, i.Mode(), err, mode)
		}
	}
	if left, err := filepath.Glob(filepath.Join(hooks, "*", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if b, err := exec.CommandContext(t.Context(), "sh", "-n", script).CombinedOutput(); err != nil {
		t.Errorf("sh -n: %v\n%s", err, b)
	}

	// libvirt calls it: the binary gets what libvirt says; what it prints and how it ends does not matter.
	if out, _ := runScript(t, script, "web", "migrate", "begin", "-"); out != "" {
		t.Errorf("printed %q", out)
	}
	args, err := os.ReadFile(binary + ".args")
	if err != nil || string(args) != "hook|libvirt|--config|"+conf+"|--|web|migrate|begin|-|" {
		t.Errorf("%v %q", err, args)
	}
	if in, err := os.ReadFile(binary + ".in"); err != nil || string(in) != hookXML {
		t.Errorf("%v %q", err, in)
	}
	if err := errors.Join(os.Remove(binary+".args"), os.Remove(binary)); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"prepare", "started", "stopped", "release"} {
		if out, errs := runScript(t, script, "web", op, "begin", "-"); out+errs != "" {
			t.Errorf("%s: %q %q", op, out, errs)
		}
	}
	if out, errs := runScript(t, script, "web", "migrate", "begin", "-"); out != "" || errs == "" {
		t.Errorf("without a binary: %q %q", out, errs)
	}

	out, err := tabi(t, "hook", "status", "--dir", hooks, "--config", conf)
	if err == nil || !strings.Contains(out, "hook           "+script) || !strings.Contains(out, "calls a program that is not there") {
		t.Errorf("%v\n%s", err, out)
	}
	prints(t, script+": removed\n"+config+": kept (--purge removes it too)\n", "hook", "remove", "libvirt", "--dir", hooks, "--config", conf)
	prints(t, hooks+": no hook of ours\n"+config+": removed\n", "hook", "remove", "libvirt", "--dir", hooks, "--config", conf, "--purge")
	if b, err := os.ReadFile(other); err != nil || string(b) != "#!/bin/sh\nexit 0\n" {
		t.Errorf("the other hook: %v %q", err, b)
	}
	fails(t, "say what for", "hook", "install")
	fails(t, "say what for", "hook", "remove", "xen")
	fails(t, `controller "x": want a URL`, "hook", "install", "libvirt", "--dir", hooks, "--config", conf, "--controller", "x")
	fails(t, "timeout 1m0s: want more than 0", "hook", "install", "libvirt", "--dir", hooks, "--config", conf, "--timeout", "1m")
}

// A libvirt that calls one file only.
func TestHookInstallOldLibvirt(t *testing.T) {
	for v, old := range map[string]bool{"libvirtd (libvirt) 9.0.0": false, "libvirtd (libvirt) 6.5.0\n": false, "libvirtd (libvirt) 6.4.0": true, "libvirtd (libvirt) 4.5.0": true, "?": false} {
		if beforeDirectories(v) != old {
			t.Errorf("%q", v)
		}
	}
	bin, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "libvirtd"), []byte("#!/bin/sh\necho 'libvirtd (libvirt) 4.5.0'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	hooks, conf := filepath.Join(dir, "hooks"), filepath.Join(dir, "hook.yaml")
	out, err := tabi(t, "hook", "install", "libvirt", "--dir", hooks, "--config", conf, "--binary", "/usr/bin/tabi")
	if err != nil || !strings.Contains(out, hooks+"/qemu: written\n") {
		t.Errorf("%v\n%s", err, out)
	}
	prints(t, hooks+"/qemu: removed\n"+conf+": kept (--purge removes it too)\n", "hook", "remove", "libvirt", "--dir", hooks, "--config", conf)
	if err := os.WriteFile(filepath.Join(hooks, "qemu"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	fails(t, "this libvirt calls one hook only", "hook", "install", "libvirt", "--dir", hooks, "--config", conf, "--binary", "/usr/bin/tabi")
}

func TestHookStatus(t *testing.T) {
	canned := canned(t, map[string]string{"GET /v1/hypervisors/nara-hv1": `200 {"name":"nara-hv1"}`})
	dir := t.TempDir()
	socket := serveFake(t, dir, "xtr", "xtr", nil)
	args := []string{"--dir", dir + "/hooks", "--config", dir + "/hook.yaml"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tabi(t, append([]string{"hook", "install", "libvirt", "--binary", self, "--controller", canned.URL, "--hypervisor", "nara-hv1",
		"--agent-socket", socket}, args...)...); err != nil {
		t.Fatal(err)
	}
	out, err := tabi(t, append([]string{"hook", "status", "--json"}, args...)...)
	var st hookStatus
	if err != nil || json.Unmarshal([]byte(out), &st) != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := cmp.Diff(hookStatus{Installed: dir + "/hooks/qemu.d/50-tabi", Problems: []string{}, Others: []string{}, Config: dir + "/hook.yaml",
		Hypervisor: "nara-hv1", Controller: canned.URL, Agent: socket}, st); d != "" {
		t.Error(d)
	}
	delete(canned.answers, "GET /v1/hypervisors/nara-hv1")
	if out, err := tabi(t, append([]string{"hook", "status"}, args...)...); err == nil || !strings.Contains(out, `the controller knows no hypervisor "nara-hv1"`) {
		t.Errorf("%v\n%s", err, out)
	}
}

// The examples are run as an operator would.
func TestHookExamples(t *testing.T) {
	l := &listener{}
	api := httptest.NewServer(l)
	t.Cleanup(api.Close)
	dir := t.TempDir()
	example := func(name string) string {
		t.Helper()
		out, err := tabi(t, "hook", "example", name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(out), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(in string, env []string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(), append([]string{"TABI_CONTROLLER=" + api.URL, "TABI_TOKEN=s3cret", "NO_PROXY=*"}, env...)...)
		cmd.Stdin = strings.NewReader(in)
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	const announced = "POST /v1/announcements Bearer s3cret "

	curl := example("curl")
	for _, vm := range []string{"web", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "52:54:00:00:00:10"} {
		if out, err := run("", nil, curl, vm, "nara-hv1"); err != nil || out != "" {
			t.Errorf("%v\n%s", err, out)
		}
	}
	l.was(t, announced+`{"vm":"web","to":"nara-hv1"}`, announced+`{"uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","to":"nara-hv1"}`,
		announced+`{"macs":["52:54:00:00:00:10"],"to":"nara-hv1"}`)
	if out, err := run("", []string{"TABI_CONTROLLER=http://127.0.0.1:1"}, curl, "web", "nara-hv1"); err != nil || !strings.Contains(out, "tabi was not told that web moves to nara-hv1") {
		t.Errorf("%v\n%s", err, out)
	}

	proxmox := example("proxmox")
	conf := filepath.Join(dir, "nodes", "pve1", "qemu-server", "100.conf")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("cores: 1\nname: web\nnet0: virtio=52:54:00:00:00:10,bridge=vmbr0,firewall=1\nnet1: e1000=52:54:00:00:00:11,bridge=vmbr1\n\n[before]\nnet0: virtio=52:54:00:00:00:99,bridge=vmbr0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"PVE_NODES=" + dir + "/nodes", "TABI_ENV=/dev/null", "TABI_HYPERVISOR=nara-hv1"}
	if out, err := run("", env, proxmox, "100", "pre-start"); err != nil || out != "" {
		t.Errorf("an ordinary start: %v\n%s", err, out)
	}
	l.was(t)
	env = append(env, "PVE_MIGRATED_FROM=pve1")
	if out, err := run("", env, proxmox, "100", "pre-start"); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	l.was(t, announced+`{"macs":["52:54:00:00:00:10","52:54:00:00:00:11"],"to":"nara-hv1"}`)
	if out, err := run("", env, proxmox, "101", "pre-start"); err != nil || !strings.Contains(out, "no MAC address") {
		t.Errorf("%v\n%s", err, out)
	}
	l.was(t)

	for _, path := range []string{curl, proxmox} {
		if b, err := exec.CommandContext(t.Context(), "sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("sh -n: %v\n%s", err, b)
		}
	}

	nova := example("nova")
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Log("no python3 here: the example for Nova is not run")
		return
	}
	if b, err := exec.CommandContext(t.Context(), python, "-m", "py_compile", nova).CombinedOutput(); err != nil {
		t.Errorf("py_compile: %v\n%s", err, b)
	}
	// As in Nova's own samples of notifications.
	notification := func(event string) string {
		return `{"event_type":"` + event + `","priority":"INFO","publisher_id":"nova-compute:host2","payload":{"nova_object.name":"InstanceActionPayload",
"nova_object.data":{"uuid":"178b0921-8f85-4257-88b6-2e743b5a975c","host":"compute","task_state":"migrating","ip_addresses":[]}}}`
	}
	if out, err := run(notification("instance.live_migration_pre.start"), []string{"TABI_HOSTS=host1=nezu-hv1 host2=nara-hv1"}, python, nova, "--stdin"); err != nil || !strings.HasPrefix(out, "announced ") {
		t.Errorf("%v\n%s", err, out)
	}
	l.was(t, announced+`{"uuid": "178b0921-8f85-4257-88b6-2e743b5a975c", "to": "nara-hv1"}`)
	if out, err := run(notification("instance.live_migration_post.end"), nil, python, nova, "--stdin"); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
	l.was(t)
	if out, err := run(notification("instance.live_migration_pre.start"), []string{"TABI_CONTROLLER=http://127.0.0.1:1"}, python, nova, "--stdin"); err != nil || !strings.Contains(out, "tabi was not told") {
		t.Errorf("%v\n%s", err, out)
	}
	fails(t, `no example "vmware"; there are: curl, nova, proxmox`, "hook", "example", "vmware")
}
