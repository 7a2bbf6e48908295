package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
)

const serviceJSON = `{"outside":"198.51.100.100/32","inside":"2001:db8:e1d:1::10/128","vm":"web","version":3,"created":"2026-03-01T10:00:00Z","changed":"2026-03-01T11:00:00Z",
"kind":"ipv4","state":"confirmed","map_servers":[{"server":"192.0.2.7","version":3,"at":"2026-03-01T11:00:00.01Z","confirmed":true},{"server":"192.0.2.8","version":3,"at":"2026-03-01T11:00:00.02Z","confirmed":true}]}`

const pendingJSON = `{"outside":"203.0.113.16/28","inside":"2001:db8:e1d:40::10/124","version":1,"created":"2026-03-01T10:00:00Z","changed":"2026-03-01T10:00:00Z",
"kind":"ipv4","state":"pending","problem":"no VM has an EID in 2001:db8:e1d:40::10/124 any more",
"map_servers":[{"server":"192.0.2.7","version":1,"at":"2026-03-01T11:00:00.01Z","confirmed":true},{"server":"192.0.2.8","version":0,"error":"does not answer since 2026-03-01T10:00:00Z","confirmed":false}]}`

const unheardJSON = `{"outside":"2001:db8:5::10/128","inside":"2001:db8:e1d:1::10/128","vm":"web","version":1,"created":"2026-03-01T10:00:00Z","changed":"2026-03-01T10:00:00Z",
"kind":"one-to-one","state":"pending","map_servers":[{"server":"192.0.2.7","version":0,"confirmed":false}]}`

func TestServiceListAndShow(t *testing.T) {
	c := canned(t, map[string]string{
		"GET /v1/services":                 "200 [" + serviceJSON + "," + pendingJSON + "," + unheardJSON + "]",
		"GET /v1/services?vm=web":          "200 []",
		"GET /v1/services/198.51.100.100":  "200 " + serviceJSON,
		"GET /v1/services/203.0.113.16-28": "200 " + pendingJSON,
		"GET /v1/services/2001:db8:5::10":  "200 " + unheardJSON,
	})
	prints(t, `
SERVICE-ADDRESS  EID                      VM   KIND        STATE      MAP-SERVERS  PROBLEM
198.51.100.100   2001:db8:e1d:1::10       web  ipv4        confirmed  2/2          -
203.0.113.16/28  2001:db8:e1d:40::10/124  -    ipv4        pending    1/2          no VM has an EID in 2001:db8:e1d:40::10/124 any more; 192.0.2.8: does not answer since 2026-03-01T10:00:00Z
2001:db8:5::10   2001:db8:e1d:1::10       web  one-to-one  pending    0/1          -
`, "service", "list")
	prints(t, "(none)\n", "services", "ls", "--vm", "web")
	prints(t, `
service address  198.51.100.100
eid              2001:db8:e1d:1::10
vm               web
kind             IPv4 (RFC 7757)
state            confirmed
version          3
created          2026-03-01T10:00:00Z
changed          2026-03-01T11:00:00Z
Map-Server 192.0.2.7 confirmed version 3 at 2026-03-01T11:00:00Z
Map-Server 192.0.2.8 confirmed version 3 at 2026-03-01T11:00:00Z
`, "service", "show", "198.51.100.100")
	prints(t, `
service address  203.0.113.16/28
eid              2001:db8:e1d:40::10/124
kind             IPv4 (RFC 7757)
state            pending
problem          no VM has an EID in 2001:db8:e1d:40::10/124 any more
version          1
created          2026-03-01T10:00:00Z
changed          2026-03-01T10:00:00Z
Map-Server 192.0.2.7 confirmed version 1 at 2026-03-01T11:00:00Z
Map-Server 192.0.2.8 does not answer since 2026-03-01T10:00:00Z
`, "service", "show", "203.0.113.16/28")
	if out, err := tabi(t, "service", "show", "2001:db8:5::10", "--json"); err != nil || !strings.Contains(out, `"kind": "one-to-one"`) {
		t.Errorf("%v\n%s", err, out)
	}
	c.wasAsked(t, "GET /v1/services", "GET /v1/services?vm=web", "GET /v1/services/198.51.100.100", "GET /v1/services/203.0.113.16-28", "GET /v1/services/2001:db8:5::10")
	fails(t, `service address: "web" is no address or prefix`, "service", "show", "web")
	fails(t, "no such thing", "service", "show", "198.51.100.101")
}

// exits fails unless the command line ends with a status, an error that has want in it, and this output.
func exits(t *testing.T, code int, want, output string, args ...string) {
	t.Helper()
	out, err := tabi(t, args...)
	var e *exitError
	if !errors.As(err, &e) || e.code != code || !strings.Contains(err.Error(), want) {
		t.Errorf("tabi %s: %v, want status %d and %q", strings.Join(args, " "), err, code, want)
	}
	if d := cmp.Diff(strings.TrimPrefix(output, "\n"), out); d != "" {
		t.Errorf("tabi %s: (-want +got)\n%s", strings.Join(args, " "), d)
	}
}

func TestServiceAddMoveDel(t *testing.T) {
	c := canned(t, map[string]string{
		"PUT /v1/services/198.51.100.100?wait=5s":                "201 " + serviceJSON,
		"PUT /v1/services/203.0.113.16-28?wait=5s":               "200 " + pendingJSON,
		"PUT /v1/services/203.0.113.16-28?wait=1s":               "200 " + pendingJSON,
		"PUT /v1/services/2001:db8:5::10?wait=5s":                "201 " + unheardJSON,
		"PUT /v1/services/2001:db8:5::10?wait=0s":                "201 " + unheardJSON,
		"PUT /v1/services/198.51.100.101?wait=5s":                `409 {"error":"vm db has several IPv6 EIDs: say which (\"inside\", --eid): 2001:db8::1/128 2001:db8::2/128"}`,
		"POST /v1/services/198.51.100.100/move?wait=5s":          "200 " + serviceJSON,
		"DELETE /v1/services/198.51.100.100?wait=5s":             "204 ",
		"DELETE /v1/services/198.51.100.102?wait=5s":             "204 ",
		"DELETE /v1/services/203.0.113.16-28?force=true&wait=1s": "202 " + strings.Replace(pendingJSON, "pending", "deleting", 1),
	})
	prints(t, "service address 198.51.100.100 added: 2001:db8:e1d:1::10 (vm web)\nconfirmed by all 2 Map-Servers\n", "service", "add", "198.51.100.100", "web")
	const some = `
service address 203.0.113.16/28 was there already: 2001:db8:e1d:40::10/124
confirmed by 1 of 2 Map-Servers
Map-Server 192.0.2.8 does not answer since 2026-03-01T10:00:00Z
`
	prints(t, some, "service", "add", "203.0.113.16/28", "--eid", "2001:db8:e1d:40::10/124")
	exits(t, 3, "service address 203.0.113.16/28: 1 of 2 Map-Servers have confirmed it in 1s; the controller goes on", some,
		"service", "add", "203.0.113.16/28", "--eid", "2001:db8:e1d:40::10/124", "--wait", "1s")
	const none = `
service address 2001:db8:5::10 added: 2001:db8:e1d:1::10 (vm web)
confirmed by 0 of 1 Map-Servers
Map-Server 192.0.2.7 has not confirmed it yet
`
	exits(t, 3, "0 of 1", none, "service", "add", "2001:db8:5::10", "web", "--eid", "2001:db8:e1d:1::10")
	prints(t, none, "service", "add", "2001:db8:5::10", "web", "--wait", "0")
	c.wasAsked(t, `PUT /v1/services/198.51.100.100?wait=5s {"vm":"web"}`, `PUT /v1/services/203.0.113.16-28?wait=5s {"inside":"2001:db8:e1d:40::10/124"}`,
		`PUT /v1/services/203.0.113.16-28?wait=1s {"inside":"2001:db8:e1d:40::10/124"}`,
		`PUT /v1/services/2001:db8:5::10?wait=5s {"vm":"web","inside":"2001:db8:e1d:1::10"}`, `PUT /v1/services/2001:db8:5::10?wait=0s {"vm":"web"}`)

	fails(t, "say which", "service", "add", "198.51.100.101", "db")
	fails(t, "for which VM, or --eid?", "service", "add", "198.51.100.101")
	fails(t, `--eid: "x" is no address`, "service", "add", "198.51.100.101", "db", "--eid", "x")
	fails(t, "has bits set beyond the prefix length: want 203.0.113.16/28", "service", "add", "203.0.113.17/28", "db")
	fails(t, "accepts between 1 and 2 arg(s)", "service", "add")

	c.asked = nil
	prints(t, "service address 198.51.100.100 moved: 2001:db8:e1d:1::10 (vm web)\nconfirmed by all 2 Map-Servers\n", "service", "move", "198.51.100.100", "web")
	prints(t, "service address 198.51.100.100 deleted\nservice address 198.51.100.102 deleted\n", "service", "del", "198.51.100.100", "198.51.100.102")
	exits(t, 3, "1 of 2", `
service address 203.0.113.16/28 is being deleted: confirmed by 1 of 2 Map-Servers
Map-Server 192.0.2.8 does not answer since 2026-03-01T10:00:00Z
`, "service", "del", "203.0.113.16/28", "--force", "--wait", "1s")
	c.wasAsked(t, `POST /v1/services/198.51.100.100/move?wait=5s {"vm":"web"}`, "DELETE /v1/services/198.51.100.100?wait=5s", "DELETE /v1/services/198.51.100.102?wait=5s",
		"DELETE /v1/services/203.0.113.16-28?force=true&wait=1s")
	fails(t, "no such thing", "service", "del", "198.51.100.109")
	// What cannot be read is said before anything is done.
	c.asked = nil
	fails(t, "no address", "service", "del", "198.51.100.100", "x")
	c.wasAsked(t)
}

func TestServiceCompletion(t *testing.T) {
	c := canned(t, map[string]string{
		"GET /v1/services": "200 [" + serviceJSON + "," + pendingJSON + "]",
		"GET /v1/vms":      `200 [{"name":"web","eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"]},{"name":"db","eids":["2001:db8:e1d:1::20/128","[7]2001:db8::1/128"]}]`,
	})
	complete := func(want string, args ...string) {
		t.Helper()
		out, err := tabi(t, append([]string{"__complete"}, args...)...)
		if err != nil || !strings.HasPrefix(out, want+":4\n") {
			t.Errorf("%v: %v %q, want %q", args, err, out, want)
		}
	}
	const services = "198.51.100.100\tweb\n203.0.113.16/28\n"
	complete(services, "service", "show", "")
	complete(services, "service", "del", "198.51.100.100", "")
	complete("203.0.113.16/28\n", "service", "move", "2")
	complete("web\ndb\n", "service", "move", "203.0.113.16/28", "")
	complete("", "service", "add", "")
	complete("db\n", "service", "add", "198.51.100.101", "d")
	complete("web\ndb\n", "service", "list", "--vm", "")
	complete("2001:db8:e1d:1::10\tweb\n2001:db8:e1d:1::20\tdb\n", "service", "add", "198.51.100.101", "--eid", "")
	complete("2001:db8:e1d:1::20\tdb\n", "service", "add", "198.51.100.101", "db", "--eid", "2001")
	c.Close()
	complete("", "service", "show", "")
	complete("", "service", "add", "198.51.100.101", "--eid", "")
}

func TestServiceHelp(t *testing.T) {
	for _, c := range [][]string{{"service"}, {"service", "add"}, {"service", "del"}, {"service", "list"}, {"service", "show"}, {"service", "move"}, {"map646", "import"}} {
		out, err := tabi(t, append(c, "--help")...)
		if err != nil || !strings.Contains(out, "--controller") || !strings.Contains(out, "Examples:\n  tabi ") || !strings.Contains(out, "--json") {
			t.Errorf("%v: %v\n%s", c, err, out)
		}
	}
}

// With a real controller, from the inventory to the import of a file.
func TestMap646Import(t *testing.T) {
	agent := liveAPI(t)
	prints(t, "site nezu added\n", "site", "set", "nezu")
	prints(t, "hypervisor nezu-hv1 added\n", "hv", "set", "nezu-hv1", "--site", "nezu", "--rloc", "192.0.2.1", "--xtr-id", strings.Repeat("1", 32), "--agent", agent)
	prints(t, "vm web added\n", "vm", "set", "web", "--hypervisor", "nezu-hv1", "--eid", "2001:db8:e1d::a")
	prints(t, "vm mail added\n", "vm", "set", "mail", "--hypervisor", "nezu-hv1", "--eid", "2001:db8:e1d::b")
	prints(t, `
service address 198.51.100.11 added: 2001:db8:e1d::b (vm mail)
the controller has no Map-Servers: no D-ETR hears of it
`, "service", "add", "198.51.100.11", "mail")

	dir := t.TempDir()
	file := filepath.Join(dir, "map646.conf")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("map646.conf", `# IPv4
mapping-prefix 2001:db8:64::
map-static 198.51.100.10 2001:db8:e1d::a
map-static 198.51.100.11 2001:db8:e1d::b
map-static 198.51.100.12 2001:db8:e1d::c
include ipv6.conf
`)
	write("ipv6.conf", "map66-static 2001:db8:5::a 2001:db8:e1d::a the picture\nmap66-static 2001:db8:5::a 2001:db8:e1d::a\nmap66 x\n")
	in := func(s string) string { return strings.ReplaceAll(strings.TrimPrefix(s, "\n"), "DIR", dir) }
	refused := in(`
DIR/map646.conf:2  mapping-prefix 2001:db8:64::                            pool prefix 2001:db8:64::/96
DIR/map646.conf:3  map-static 198.51.100.10 2001:db8:e1d::a                not added, because others are refused (vm web)
DIR/map646.conf:4  map-static 198.51.100.11 2001:db8:e1d::b                already there (vm mail)
DIR/map646.conf:5  map-static 198.51.100.12 2001:db8:e1d::c                refused because no VM has the EID 2001:db8:e1d::c: enter the VM first ("tabi vm set")
DIR/map646.conf:6  include ipv6.conf                                       read
DIR/ipv6.conf:1    map66-static 2001:db8:5::a 2001:db8:e1d::a the picture  not added, because others are refused (vm web); "the picture" is passed over
DIR/ipv6.conf:2    map66-static 2001:db8:5::a 2001:db8:e1d::a              already there; the same as DIR/ipv6.conf:1
DIR/ipv6.conf:3    map66 x                                                 refused because "map66" is no directive: want mapping-prefix, map-static, map66-static or include

service addresses: 0 added, 2 there already, 2 refused
In the detr.yaml of every D-ETR, under services:   pool: "2001:db8:64::/96"
`)
	exits(t, 2, "map646 import: "+file+": 2 lines refused; nothing was added", refused, "map646", "import", file)
	exits(t, 2, "nothing would be added", strings.Replace(refused, "0 added", "0 would be added", 1), "map646", "import", file, "--dry-run")
	if out, err := tabi(t, "service", "list"); err != nil || strings.Count(out, "\n") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	would := strings.NewReplacer("not added, because others are refused", "would be added", "0 added", "2 would be added").Replace(refused)
	exits(t, 2, "the others would be added", would, "map646", "import", file, "--dry-run", "--skip-refused")
	exits(t, 2, "the others were added", strings.NewReplacer("would be added", "added").Replace(would), "map646", "import", file, "--skip-refused")
	prints(t, `
SERVICE-ADDRESS  EID              VM    KIND        STATE      MAP-SERVERS  PROBLEM
198.51.100.10    2001:db8:e1d::a  web   ipv4        confirmed  0/0          -
198.51.100.11    2001:db8:e1d::b  mail  ipv4        confirmed  0/0          -
2001:db8:5::a    2001:db8:e1d::a  web   one-to-one  confirmed  0/0          -
`, "service", "list")

	// Now all is well, and what is there is there.
	prints(t, "vm more added\n", "vm", "set", "more", "--hypervisor", "nezu-hv1", "--eid", "2001:db8:e1d::c")
	write("ipv6.conf", "map66-static 2001:db8:5::a 2001:db8:e1d::a\n")
	out, err := tabi(t, "map646", "import", file)
	if err != nil || !strings.Contains(out, "\nservice addresses: 1 added, 3 there already, 0 refused\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = tabi(t, "map646", "import", file, "--json"); err != nil || !strings.Contains(out, `"added": 0`) || !strings.Contains(out, `"exists": 4`) || !strings.Contains(out, `"pool": "2001:db8:64::/96"`) {
		t.Errorf("%v\n%s", err, out)
	}
	fails(t, "has service addresses: 198.51.100.12", "vm", "delete", "more")
	prints(t, "service address 198.51.100.12 deleted\n", "service", "del", "198.51.100.12")
	prints(t, "vm more removed\n", "vm", "delete", "more")

	fails(t, "map646 configuration "+file+"x: no such file or directory", "map646", "import", file+"x")
	write("ipv6.conf", "include map646.conf\n")
	if out, err = tabi(t, "map646", "import", file); err == nil || !strings.Contains(out, in("ipv6.conf:1    include map646.conf                       refused because DIR/map646.conf includes itself: DIR/map646.conf -> DIR/ipv6.conf -> DIR/map646.conf\n")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// What the original's file says is compared with what the D-ETRs serve.
func TestMap646ImportBesideDETR(t *testing.T) {
	c := canned(t, map[string]string{"POST /v1/services": `200 {"results":[{"outside":"198.51.100.10","vm":"web","result":"added"},{"outside":"203.0.113.9","vm":"web","result":"added"}],"added":2,"applied":true}`})
	dir := t.TempDir()
	file, detr := filepath.Join(dir, "map646.conf"), filepath.Join(dir, "detr.yaml")
	base, err := config.Example("detr")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const services = "\nservices:\n  prefixes: [198.51.100.0/28]\n  pool: \"2001:db8:64::/96\"\n  map_servers: [{address: 192.0.2.7, key: {id: 1, secret: x}}]\n"
	write(detr, base+services)
	write(file, "mapping-prefix 2001:db8:64::\nmap-static 198.51.100.10 2001:db8:e1d::a\nmap-static 203.0.113.9 2001:db8:e1d::b\n")
	in := func(s string) string { return strings.ReplaceAll(strings.TrimPrefix(s, "\n"), "DIR", dir) }
	prints(t, in(`
DIR/map646.conf:1  mapping-prefix 2001:db8:64::              pool prefix 2001:db8:64::/96; as in DIR/detr.yaml
DIR/map646.conf:2  map-static 198.51.100.10 2001:db8:e1d::a  added (vm web)
DIR/map646.conf:3  map-static 203.0.113.9 2001:db8:e1d::b    added (vm web); in no service prefix of DIR/detr.yaml: D-ETRs pass over it until it is in one

service addresses: 2 added, 0 there already, 0 refused
`), "map646", "import", file, "--detr", detr)
	// What is wrong with the pool keeps the others from being added.
	write(file, "mapping-prefix 2001:db8:65::\nmap-static 198.51.100.10 2001:db8:e1d::a\nmap-static 203.0.113.9 2001:db8:e1d::b\n")
	c.answers["POST /v1/services"] = strings.Replace(c.answers["POST /v1/services"], `"applied":true`, `"applied":false`, 1)
	c.asked = nil
	out, err := tabi(t, "map646", "import", file, "--detr", detr)
	if err == nil || !strings.Contains(out, in("refused because DIR/detr.yaml has the pool prefix 2001:db8:64::/96\n")) || !strings.Contains(out, "0 added, 0 there already, 1 refused") {
		t.Errorf("%v\n%s", err, out)
	}
	c.wasAsked(t, `POST /v1/services {"services":[{"outside":"198.51.100.10","inside":"2001:db8:e1d::a"},{"outside":"203.0.113.9","inside":"2001:db8:e1d::b"}],"dry_run":true}`)
	write(detr, base)
	if out, err = tabi(t, "map646", "import", file, "--detr", detr); err == nil || !strings.Contains(out, `has no pool prefix: want services.pool "2001:db8:65::/96"`) {
		t.Errorf("%v\n%s", err, out)
	}
	fails(t, "controller.yaml: is not the configuration of a D-ETR", "map646", "import", file, "--detr", func() string {
		text, err := config.Example("controller")
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, "controller.yaml")
		write(p, text)
		return p
	}())
}
