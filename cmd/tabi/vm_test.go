package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/controller/libvirt"
)

const vmJSON = `{"name":"web","hypervisor":"nezu-hv1","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10/32"],"owner":"alice","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8",
"version":7,"placed":"2026-03-01T10:00:00Z","state":"running","seen":"2026-03-01T10:00:09Z","storage":"shared","site":"nezu","services":["192.0.2.10","203.0.113.16/28"],"migration":"g1","move":"g1",
"guest":{"name":"web","uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","state":"running","vcpus":2,"memory":1073741824,"machine":"pc-q35-7.2","persistent":true,
 "disks":[{"target":"vda","source":"/srv/vms/web.qcow2","backing":"/srv/base.qcow2","format":"qcow2","capacity":5368709120}]}}`

func TestVMListAndShow(t *testing.T) {
	canned(t, map[string]string{
		"GET /v1/vms": "200 [" + vmJSON + `,{"name":"db","hypervisor":"hv9","macs":[],"eids":[],"state":"unknown","cpus":4,"memory":6442450944,"problem":"no EIDs"},
{"name":"off","hypervisor":"hv9","macs":[],"eids":["2001:db8::1/128"],"state":"hibernated"}]`,
		"GET /v1/vms/web": "200 " + vmJSON,
	})
	prints(t, `
NAME  STATE           OWNER  HYPERVISOR  CPUS  MEMORY  STORAGE  EIDS
web   running,moving  alice  nezu-hv1    2     1GiB    shared   198.51.100.10/32
db    -               -      hv9         4     6GiB    -        -
off   hibernated      -      hv9         -     -       -        2001:db8::1/128
`, "vm", "list")
	prints(t, `
vm          web
state       running,moving
owner       alice
hypervisor  nezu-hv1 (nezu)
since       2026-03-01T10:00:00Z
eids        198.51.100.10/32
services    192.0.2.10,203.0.113.16/28
macs        52:54:00:00:00:10
version     7
uuid        6ba7b810-9dad-11d1-80b4-00c04fd430c8
cpus        2
memory      1 GiB
storage     shared
machine     pc-q35-7.2
disk vda    /srv/vms/web.qcow2 (qcow2), 5 GiB, the difference to /srv/base.qcow2
migration   g1
move        g1
seen        2026-03-01T10:00:09Z
`, "vm", "show", "web")
}

func TestVMActions(t *testing.T) {
	c := canned(t, map[string]string{
		"POST /v1/vms/web/start?hypervisor=nara-hv1": `200 {"name":"web","macs":[],"eids":[],"state":"running"}`,
		"POST /v1/vms/web/stop":                      `200 {"name":"web","macs":[],"eids":[],"state":"unknown"}`,
		"POST /v1/vms/web/kill":                      `200 {"name":"web","macs":[],"eids":[],"state":"off"}`,
		"POST /v1/vms/db/kill":                       `200 {"name":"db","macs":[],"eids":[],"state":"off"}`,
		"POST /v1/vms/web/hibernate":                 `502 {"error":"vm web: hibernate on nezu-hv1: no space left"}`,
		"POST /v1/vms/web/resume":                    `200 {"name":"web","macs":[],"eids":[],"state":"running"}`,
		"POST /v1/vms/web/pause":                     `200 {"name":"web","macs":[],"eids":[],"state":"paused"}`,
		"PUT /v1/vms/web/owner":                      `200 {"name":"web","macs":[],"eids":[],"owner":"bob"}`,
	})
	prints(t, "vm web: running\n", "vm", "start", "web", "--hypervisor", "nara-hv1")
	prints(t, "vm web: stop asked for\n", "vm", "stop", "web")
	prints(t, "vm web: off\nvm db: off\n", "vm", "stop", "--force", "web", "db")
	fails(t, "no space left", "vm", "hibernate", "web")
	prints(t, "vm web: running\n", "vm", "resume", "web")
	prints(t, "vm web: paused\n", "vm", "pause", "web")
	prints(t, "vm web belongs to bob\n", "vm", "chown", "web", "bob")
	prints(t, "vm web belongs to nobody\n", "vm", "chown", "web", "")
	c.wasAsked(t, "POST /v1/vms/web/start?hypervisor=nara-hv1", "POST /v1/vms/web/stop", "POST /v1/vms/web/kill", "POST /v1/vms/db/kill",
		"POST /v1/vms/web/hibernate", "POST /v1/vms/web/resume", "POST /v1/vms/web/pause", `PUT /v1/vms/web/owner {"owner":"bob"}`, `PUT /v1/vms/web/owner {"owner":""}`)
	fails(t, "requires at least 1 arg(s)", "vm", "start")
	fails(t, "accepts 2 arg(s)", "vm", "chown", "web")
	fails(t, "unknown flag: --force", "vm", "start", "web", "--force")
}

func TestVMAddresses(t *testing.T) {
	canned(t, map[string]string{"GET /v1/vms/web/addresses": `200 {"vm":"web","assigned":["198.51.100.10/32","2001:db8:e1d:1::10/128"],"macs":["52:54:00:00:00:10"],
"seen":[{"eid":"198.51.100.10/32","mac":"52:54:00:00:00:10","hypervisor":"nezu-hv1","interface":"tap1","state":"here","assigned":true,"last_seen":"2026-03-01T10:00:00Z"},
{"eid":"198.51.100.77/32","hypervisor":"nezu-hv1","assigned":false,"learned":true}],"errors":["nara-hv1: connection refused"]}`})
	prints(t, `
EID                     ASSIGNED  SEEN-AT   STATE    MAC                INTERFACE  LAST-SEEN
198.51.100.10/32        yes       nezu-hv1  here     52:54:00:00:00:10  tap1       2026-03-01T10:00:00Z
198.51.100.77/32        no        nezu-hv1  learned  -                  -          -
2001:db8:e1d:1::10/128  yes       -         -        -                  -          -
not asked: nara-hv1: connection refused
`, "vm", "addresses", "web")
}

func TestVMDefine(t *testing.T) {
	c := canned(t, map[string]string{"PUT /v1/vms/web/definition?hypervisor=nezu-hv1": `201 {"name":"web","macs":[],"eids":[]}`})
	file := filepath.Join(t.TempDir(), "web.xml")
	if err := os.WriteFile(file, []byte(hookXML), 0o600); err != nil {
		t.Fatal(err)
	}
	prints(t, "vm web defined on nezu-hv1\n", "vm", "define", file, "--hypervisor", "nezu-hv1")
	c.wasAsked(t, "PUT /v1/vms/web/definition?hypervisor=nezu-hv1 "+hookXML)

	// What is given replaces what the metadata say; what is not given stays.
	prints(t, "vm web defined on nezu-hv1\n", "vm", "define", file, "--hypervisor", "nezu-hv1", "--owner", "bob")
	_, doc, _ := strings.Cut(c.asked[0], "nezu-hv1 ")
	g, err := libvirt.ParseDomain([]byte(doc))
	if err != nil || g.Owner != "bob" || len(g.EIDs) != 2 || g.Name != "web" {
		t.Errorf("%+v %v\n%s", g, err, doc)
	}
	prints(t, "vm web defined on nezu-hv1\n", "vm", "define", file, "--hypervisor", "nezu-hv1", "--eid", "198.51.100.99/32")
	_, doc, _ = strings.Cut(c.asked[1], "nezu-hv1 ")
	if g, err = libvirt.ParseDomain([]byte(doc)); err != nil || g.Owner != "alice" || eidList(g.EIDs) != "198.51.100.99/32" {
		t.Errorf("%+v %v\n%s", g, err, doc)
	}

	fails(t, "no such thing", "vm", "define", file)
	fails(t, "no such file", "vm", "define", file+"x", "--hypervisor", "nezu-hv1")
	fails(t, `--eid: EID "x"`, "vm", "define", file, "--hypervisor", "nezu-hv1", "--eid", "x")
	if err := os.WriteFile(file, []byte("<network/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "vm define: "+file+": ", "vm", "define", file, "--hypervisor", "nezu-hv1")
}

// Names are completed while the controller answers; when it does not, the shell goes on without.
func TestCompletion(t *testing.T) {
	c := canned(t, map[string]string{
		"GET /v1/vms":         "200 [" + vmJSON + `,{"name":"db"}]`,
		"GET /v1/hypervisors": `200 [{"name":"nezu-hv1"},{"name":"nara-hv1"}]`,
		"GET /v1/sites":       `200 [{"name":"nezu"},{"name":"nara"}]`,
	})
	complete := func(want string, args ...string) {
		t.Helper()
		out, err := tabi(t, append([]string{"__complete"}, args...)...)
		if err != nil || !strings.HasPrefix(out, want+":4\n") {
			t.Errorf("%v: %v %q, want %q", args, err, out, want)
		}
	}
	complete("web\ndb\n", "migrate", "")
	complete("web\n", "migrate", "w")
	complete("", "migrate", "web", "")
	complete("nara-hv1\n", "migrate", "web", "--to", "na")
	complete("nezu\nnara\n", "migrate", "web", "--site", "")
	complete("web\ndb\n", "vm", "show", "")
	complete("db\n", "vm", "stop", "web", "d")
	complete("nezu-hv1\nnara-hv1\n", "hv", "drain", "")
	complete("nezu\nnara\n", "site", "set", "")
	complete("nezu\nnara\n", "site", "set", "x", "--from", "")
	complete("abort\npostcopy\nconverge\nwait\n", "migrate", "web", "--on-slow", "")
	c.Close()
	complete("", "migrate", "")
}
