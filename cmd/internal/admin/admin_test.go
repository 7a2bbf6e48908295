package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

type fake struct{}

func (fake) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"local":    func(context.Context) (any, error) { return []map[string]string{{"eid": "10.0.0.1/32"}}, nil },
		"counters": func(context.Context) (any, error) { return nil, errors.New("the owner is gone") },
		"large":    func(context.Context) (any, error) { return large.Load().(Encoded), nil },
	}
}

func (fake) Explain(_ context.Context, e lisp.EID) ([]lisp.Finding, error) {
	return []lisp.Finding{{Part: "local", Says: e.String() + " runs here", Why: "a frame was seen"}}, nil
}

// start runs a server in t's directory and returns a client of it.
func start(t *testing.T, path string) (*Server, *Client) {
	t.Helper()
	extra := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`"` + r.URL.Path + `"`)) })
	s := NewServer(path, About{Role: "xtr", Name: "hv1", PID: 7}, fake{}, extra)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := Dial(path)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := c.About(t.Context()); err == nil {
			return s, c
		}
	}
	t.Fatal("the socket does not answer")
	return nil, nil
}

func TestSocket(t *testing.T) {
	s, c := start(t, filepath.Join(t.TempDir(), "x.sock"))
	ctx := t.Context()
	if _, err := c.Get(ctx, "/v1/ready"); err == nil {
		t.Error("ready before Ready was called")
	}
	s.Ready()
	if _, err := c.Get(ctx, "/v1/ready"); err != nil {
		t.Error(err)
	}
	if b, err := c.Show(ctx, "local"); err != nil || !strings.Contains(string(b), "10.0.0.1/32") {
		t.Errorf("%s, %v", b, err)
	}
	if _, err := c.Show(ctx, "counters"); err == nil || !strings.Contains(err.Error(), "the owner is gone") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Show(ctx, "nonsense"); err == nil || !strings.Contains(err.Error(), "[counters large local]") {
		t.Errorf("an unknown table must list those that there are; got %v", err)
	}
	var f []lisp.Finding
	if b, err := c.Explain(ctx, "10.0.0.1"); err != nil || json.Unmarshal(b, &f) != nil || len(f) != 1 || f[0].Says != "10.0.0.1/32 runs here" {
		t.Errorf("%s, %v", b, err)
	}
	if _, err := c.Explain(ctx, "10.0.0.300"); err == nil {
		t.Error("a bad EID was accepted")
	}
	if b, err := c.Get(ctx, "/v1/handovers"); err != nil || string(b) != `"/v1/handovers"` {
		t.Errorf("what is not ours goes to the role: %s, %v", b, err)
	}
}

// A socket that a killed daemon left is taken over; one that is in use is not.
func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, path)
	err := NewServer(path, About{}, fake{}, nil).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("got %v", err)
	}
}

// large is what the table of that name is.
var large atomic.Value

// A table that is encoded already comes as it is, and to who has it not a second time.
func TestEncoded(t *testing.T) {
	_, c := start(t, filepath.Join(t.TempDir(), "x.sock"))
	for _, n := range []int{2, largeAnswer, 3 << 20} {
		rows := "[" + strings.Repeat(" ", n-2) + "]"
		large.Store(Encoded{Body: []byte(rows), Tag: "a" + strconv.Itoa(n)})
		b, err := c.Show(t.Context(), "large")
		if err != nil || string(b) != rows {
			t.Fatalf("%d bytes: %d bytes, %v", n, len(b), err)
		}
		// The same tag: the body is not looked at.
		large.Store(Encoded{Body: []byte("[1]"), Tag: "a" + strconv.Itoa(n)})
		if b, err := c.Show(t.Context(), "large"); err != nil || string(b) != rows {
			t.Errorf("unchanged: %d bytes, %v", len(b), err)
		}
		if b, err := Dial(c.Path).Show(t.Context(), "large"); err != nil || string(b) != "[1]" {
			t.Errorf("for another: %s, %v", b, err)
		}
	}
}

func TestRequireToken(t *testing.T) {
	h := RequireToken("s3cret", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	for header, want := range map[string]int{"": 401, "Bearer wrong": 401, "s3cret": 401, "Bearer s3cret": 200} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", header)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Authorization %q: status %d, want %d", header, w.Code, want)
		}
	}
}
