package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cannedAPI is a controller that answers from a table: "METHOD PATH?QUERY" to "STATUS BODY". It keeps what it
// was asked.
type cannedAPI struct {
	*httptest.Server
	answers map[string]string
	asked   []string
}

func canned(t *testing.T, answers map[string]string) *cannedAPI {
	c := &cannedAPI{answers: answers}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		what := r.Method + " " + r.URL.RequestURI()
		ask := strings.TrimSpace(what + " " + string(b))
		if a := r.Header.Get("Authorization"); a != "" {
			ask += " (" + a + ")"
		}
		c.asked = append(c.asked, ask)
		status, body := 404, `{"error":"no such thing"}`
		if a, ok := c.answers[what]; ok {
			if _, err := fmt.Sscanf(a, "%d", &status); err != nil {
				t.Error(err)
			}
			_, body, _ = strings.Cut(a, " ")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(c.Close)
	t.Setenv("TABI_CONTROLLER", c.URL)
	t.Setenv("TABI_TOKEN", "")
	return c
}

// tabi runs the command line through the root command.
func tabi(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// prints fails unless the command line prints want.
func prints(t *testing.T, want string, args ...string) {
	t.Helper()
	got, err := tabi(t, args...)
	if err != nil {
		t.Errorf("tabi %s: %v", strings.Join(args, " "), err)
	}
	if d := cmp.Diff(strings.TrimPrefix(want, "\n"), got); d != "" {
		t.Errorf("tabi %s: (-want +got)\n%s", strings.Join(args, " "), d)
	}
}

// fails fails unless the command line fails with a text that has want in it.
func fails(t *testing.T, want string, args ...string) {
	t.Helper()
	if out, err := tabi(t, args...); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("tabi %s: %v, want %q; printed %q", strings.Join(args, " "), err, want, out)
	}
}

func (c *cannedAPI) wasAsked(t *testing.T, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, c.asked); d != "" {
		t.Errorf("requests (-want +got)\n%s", d)
	}
	c.asked = nil
}

const moveJSON = `{"id":"m1","vm":"web","eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"],
"from":"nezu-hv1","to":"hokuriku-hv1","from_site":"nezu","to_site":"hokuriku","state":"settled","version":7,
"times":{"prepare_started":"2026-03-01T10:00:00Z","prepared":"2026-03-01T10:00:00.0123Z","paused":"2026-03-01T10:00:01.5Z",
"redirecting":"2026-03-01T10:00:01.5012Z","run":"2026-03-01T10:00:01.7003Z","committed":"2026-03-01T10:00:01.75Z","claimed":"2026-03-01T10:00:01.7021Z",
"pushed":"2026-03-01T10:00:01.7533Z","flushed":"2026-03-01T10:00:01.702Z","settled":"2026-03-01T10:00:32Z"},
"held":412,"redirected":411,"replayed":3,"dropped":{"hold full":2,"expired":1},"why":"the target's agent saw the VM run",
"map_servers":[{"server":"192.0.2.7","accepted":"2026-03-01T10:00:01.7533Z","version":7},{"server":"192.0.2.8","error":"refused: xTR 3 holds it"}]}`

const abortedJSON = `{"id":"m0","vm":"web","eids":["198.51.100.10/32"],"from":"nezu-hv1","to":"nara-hv1","state":"aborted","version":0,
"times":{"prepare_started":"2026-03-01T09:00:00Z","aborted":"2026-03-01T09:00:10Z"},"held":0,"redirected":0,"replayed":0,"dropped":{},
"why":"prepare timed out","error":"prepare timed out: target nara-hv1: no answer"}`

func TestMoveShow(t *testing.T) {
	c := canned(t, map[string]string{"GET /v1/moves/m1": "200 " + moveJSON, "GET /v1/moves/m0": "200 " + abortedJSON})
	prints(t, `
move     m1
vm       web  198.51.100.10/32,2001:db8:e1d:1::10/128
way      nezu-hv1 (nezu) -> hokuriku-hv1 (hokuriku)
state    settled: the target's agent saw the VM run
version  7
packets  held 412, redirected 411, replayed 3, dropped expired=1,hold full=2
Map-Server 192.0.2.7 confirmed version 7
Map-Server 192.0.2.8 refused: xTR 3 holds it

time line, in seconds from 2026-03-01 10:00:00.000Z
   0.000  o  prepare      asked for
   0.012  o  prepared     both agents are ready
          |    1.488 s
   1.500  #  paused       the VM stopped on nezu-hv1
   1.501  #  redirecting  nezu-hv1 sends packets on to hokuriku-hv1
          #    0.199 s
   1.700  o  run          the VM runs on hokuriku-hv1
   1.702  o  flushed      what was held is delivered
   1.702  o  claimed      hokuriku-hv1 has the EIDs, says a Map-Server to it
   1.750  o  committed    the controller knew
   1.753  o  pushed       hokuriku-hv1 has the EIDs, says a Map-Server to the controller
          |    30.247 s
  32.000  o  settled      nezu-hv1 has forgotten the VM
blackout 0.200 s, run to pushed 0.002 s
`, "move", "show", "m1")
	prints(t, `
move     m0
vm       web  198.51.100.10/32
way      nezu-hv1 -> nara-hv1
state    aborted: prepare timed out
error    prepare timed out: target nara-hv1: no answer
packets  held 0, redirected 0, replayed 0, dropped none

time line, in seconds from 2026-03-01 09:00:00.000Z
   0.000  o  prepare      asked for
          |    10.000 s
  10.000  o  aborted      the VM is on nezu-hv1
`, "move", "show", "m0")
	c.wasAsked(t, "GET /v1/moves/m1", "GET /v1/moves/m0")

	out, err := tabi(t, "move", "show", "m1", "--json")
	var got, want any
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || json.Unmarshal([]byte(moveJSON), &want) != nil || !cmp.Equal(got, want) {
		t.Errorf("--json: %v\n%s", err, out)
	}
	fails(t, c.URL+": no such thing", "move", "show", "m2")
}

func TestMoveList(t *testing.T) {
	c := canned(t, map[string]string{
		"GET /v1/moves?limit=100":                    "200 [" + moveJSON + "," + abortedJSON + "]",
		"GET /v1/moves?limit=3&state=settled&vm=web": "200 []",
	})
	prints(t, `
ID  VM   FROM      TO            STATE    VERSION  STARTED               BLACKOUT  HELD  REDIRECTED  REPLAYED  DROPPED
m1  web  nezu-hv1  hokuriku-hv1  settled  7        2026-03-01T10:00:00Z  0.200s    412   411         3         expired=1,hold full=2
m0  web  nezu-hv1  nara-hv1      aborted  -        2026-03-01T09:00:00Z  -         0     0           0         0
`, "move", "list")
	prints(t, "(none)\n", "move", "ls", "--vm", "web", "--state", "settled", "--limit", "3")
	prints(t, "[]\n", "moves", "list", "--vm", "web", "--state", "settled", "--limit", "3", "--json")
	fails(t, "unknown command", "move", "list", "x")
	_ = c
}

func TestMovePrepareCommitAbort(t *testing.T) {
	c := canned(t, map[string]string{
		"PUT /v1/moves/m1?wait=30s":         `201 {"id":"m1","vm":"web","from":"nezu-hv1","to":"nara-hv1","state":"prepared"}`,
		"POST /v1/moves/m1/commit?wait=10s": `200 {"id":"m1","vm":"web","from":"nezu-hv1","to":"nara-hv1","state":"pushed"}`,
		"POST /v1/moves/m1/abort?wait=1s":   `409 {"error":"move m1 cannot be aborted: it is pushed"}`,
	})
	prints(t, `
move m1 of web from nezu-hv1 to nara-hv1: prepared
Now migrate the VM. Then: tabi move commit m1   (or: tabi move abort m1)
`, "move", "prepare", "web", "--to", "nara-hv1", "--id", "m1", "--token", "t0")
	prints(t, "move m1 of web from nezu-hv1 to nara-hv1: pushed\n", "move", "commit", "m1")
	fails(t, "cannot be aborted: it is pushed", "move", "abort", "m1", "--wait", "1s")
	c.wasAsked(t, `PUT /v1/moves/m1?wait=30s {"vm":"web","to":"nara-hv1"} (Bearer t0)`, "POST /v1/moves/m1/commit?wait=10s", "POST /v1/moves/m1/abort?wait=1s")

	// Without an id one is made up, another each time.
	fails(t, "no such thing", "move", "prepare", "web", "--to", "nara-hv1")
	fails(t, "no such thing", "move", "prepare", "web", "--to", "nara-hv1")
	if len(c.asked) != 2 || c.asked[0] == c.asked[1] || !strings.HasPrefix(c.asked[0], "PUT /v1/moves/web-2") {
		t.Errorf("%q", c.asked)
	}
	fails(t, `required flag(s) "to" not set`, "move", "prepare", "web")
	fails(t, "accepts 1 arg(s)", "move", "commit")
}

func TestMoveNoController(t *testing.T) {
	c := canned(t, nil)
	c.Close()
	fails(t, "no controller answers", "move", "list")
	fails(t, "TABI_CONTROLLER", "vm", "list", "--controller", c.URL)
	fails(t, "unsupported protocol scheme", "vm", "list", "--controller", "localhost:4381")
	page := httptest.NewServer(http.NotFoundHandler())
	defer page.Close()
	fails(t, "is this a tabi controller?", "vm", "list", "--controller", page.URL)
}
