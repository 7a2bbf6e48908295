package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// fakeDaemon shows one table and knows one EID.
type fakeDaemon struct{ rows any }

func (f fakeDaemon) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){"local": func(context.Context) (any, error) { return f.rows, nil }}
}

func (f fakeDaemon) Explain(_ context.Context, e lisp.EID) ([]lisp.Finding, error) {
	if e != lisp.HostEID(0, netip.MustParseAddr("198.51.100.10")) {
		return nil, nil
	}
	return []lisp.Finding{{Part: "local", Says: "runs here", Why: "a frame was seen on tap0"}}, nil
}

// serveFake runs an admin socket and returns its path.
func serveFake(t *testing.T, dir, role, name string, rows any) string {
	t.Helper()
	path := filepath.Join(dir, name+".sock")
	s := admin.NewServer(path, admin.About{Role: role, Name: name}, fakeDaemon{rows}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if _, err := admin.Dial(path).About(t.Context()); err == nil {
			return path
		}
		if time.Now().After(end) {
			t.Fatal("the socket does not answer")
		}
	}
}

func TestShow(t *testing.T) {
	dir := t.TempDir()
	rows := []map[string]any{{"eid": "198.51.100.10/32", "version": 3}}
	one := serveFake(t, dir, "xtr", "hv1", rows)
	serveFake(t, dir, "xtr", "hv2", []map[string]any{})
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"one daemon":  {[]string{"show", "local", "-s", one}, "EID               VERSION\n198.51.100.10/32  3\n"},
		"as JSON":     {[]string{"show", "local", "-s", one, "--json"}, "[\n  {\n    \"eid\": \"198.51.100.10/32\",\n    \"version\": 3\n  }\n]\n"},
		"all of them": {[]string{"show", "local", "-s", filepath.Join(dir, "*.sock")}, "hv1 (xtr)\nEID               VERSION\n198.51.100.10/32  3\n\nhv2 (xtr)\n(none)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tabi(t, c.args...)
			if err != nil || got != c.want {
				t.Errorf("error %v, printed:\n%s\nwant:\n%s", err, got, c.want)
			}
		})
	}
	for args, want := range map[string]string{
		"show nonsense":                      `no table "nonsense"; there are: bgp, counters`,
		"show bgp -s " + one:                 "a xtr has no table",
		"show local -s " + dir + "/no*.sock": "is one running here?",
	} {
		if _, err := tabi(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one that says %q", args, err, want)
		}
	}
}

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	serveFake(t, dir, "detr", "a-detr", nil)
	serveFake(t, dir, "xtr", "b-xtr", nil)
	got, err := tabi(t, "explain", "198.51.100.10", "-s", filepath.Join(dir, "*.sock"))
	if err != nil {
		t.Fatal(err)
	}
	want := `198.51.100.10/32

b-xtr (xtr)
  local          runs here
                   because a frame was seen on tap0

a-detr (detr)
  local          runs here
                   because a frame was seen on tap0
`
	if got != want {
		t.Errorf("printed:\n%s\nwant (the host of the VM before the anchor):\n%s", got, want)
	}
	if got, err := tabi(t, "explain", "192.0.2.1", "-s", filepath.Join(dir, "b-*.sock")); err != nil || !strings.Contains(got, "knows nothing of it") {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
	if _, err := tabi(t, "explain", "198.51.100.0/33"); err == nil {
		t.Error("a bad EID was taken")
	}
}

// A Map-Resolver that first loses a request, then answers with another nonce, then rightly.
func TestLig(t *testing.T) {
	server := netip.MustParseAddr("127.66.0.1")
	conns, err := control.Listen(t.Context(), netip.AddrPortFrom(server, lisp.ControlPort))
	if err != nil {
		t.Fatal(err)
	}
	ep := control.New(nil, conns...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	requests := 0
	eid := lisp.HostEID(7, netip.MustParseAddr("2001:db8::10"))
	go func() {
		done <- ep.Run(ctx, func(p control.Packet) {
			r, ok := p.Msg.(*lisp.MapRequest)
			if requests++; requests == 1 || !ok || p.ECM == nil || r.Records[0].EID != eid {
				return
			}
			for _, nonce := range []uint64{r.Nonce + 1, r.Nonce} {
				version := lisp.Version(9)
				if nonce != r.Nonce {
					version = 1
				}
				b, err := lisp.Append(nil, &lisp.MapReply{Nonce: nonce, Records: []lisp.Mapping{{EID: eid, TTL: 1440, Version: version, Authoritative: true,
					Locators: []lisp.Locator{{RLOC: netip.MustParseAddr("192.0.2.1"), Priority: 1, Weight: 100, Reachable: true}}}}})
				if err != nil {
					t.Error(err)
				}
				ep.Send(netip.AddrPortFrom(r.ITRRLOCs[0], p.ECM.Source.Port()), b)
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	got, err := tabi(t, "lig", "[7]2001:db8::10", "-m", server.String(), "--timeout", "300ms", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Records []lisp.Mapping `json:"records"`
	}
	if err := json.Unmarshal([]byte(got), &a); err != nil || len(a.Records) != 1 || a.Records[0].Version != 9 {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
	if got, err = tabi(t, "lig", "[7]2001:db8::10", "-m", server.String()); err != nil || !strings.Contains(got, "192.0.2.1(1/100)") {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
	if _, err := tabi(t, "lig", "192.0.2.9", "-m", "127.66.0.2", "-c", "1", "--timeout", "50ms"); err == nil {
		t.Error("no error though nobody answers")
	}
}

func TestConfigCheck(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.yaml")
	text, err := tabi(t, "config", "reference", "detr")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(good, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := tabi(t, "config", "check", good); err != nil || got != good+": good\n" {
		t.Errorf("error %v, printed %q", err, got)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte(strings.Replace(text, "underlay:", "underlya:", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := tabi(t, "config", "check", good, bad)
	if err == nil || !strings.Contains(got, "bad.yaml:") || !strings.Contains(got, `unknown field "underlya"`) || !strings.Contains(got, "good.yaml: good") {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
}

// On a machine on which the tests run, the doctor finds nothing that stops the data plane.
func TestDoctor(t *testing.T) {
	got, err := tabi(t, "doctor", "--json")
	if err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	var list []check
	if err := json.Unmarshal([]byte(got), &list); err != nil || len(list) < 5 {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
	file := filepath.Join(t.TempDir(), "xtr.yaml")
	text, err := tabi(t, "config", "example", "xtr")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(text, "eth0", "nosuchif0", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = tabi(t, "doctor", "--config", file)
	if err == nil || !strings.Contains(got, "interface nosuchif0") || !strings.Contains(got, "no interface has it") {
		t.Errorf("error %v, printed:\n%s", err, got)
	}
}
