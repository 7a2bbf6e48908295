package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// nothing is a data plane and an endpoint that do nothing.
type nothing struct{}

func (nothing) Set(context.Context, ...fib.Route) error { return nil }
func (nothing) Del(context.Context, ...lisp.EID) error  { return nil }
func (nothing) Send(netip.AddrPort, []byte) error       { return nil }
func (nothing) Run(ctx context.Context, _ func(control.Packet)) error {
	<-ctx.Done()
	return nil
}

// liveDETR runs a D-ETR that serves, and its admin socket.
func liveDETR(t *testing.T, dir string) (socket string) {
	t.Helper()
	x, err := detr.New(detr.Config{
		XTRID: lisp.XTRID{1}, RLOCs: []lisp.Locator{{RLOC: netip.MustParseAddr("192.0.2.1"), Priority: 1, Weight: 1}},
		Aggregates: []lisp.EID{lisp.MakeEID(0, netip.MustParsePrefix("198.51.100.0/24"))}, StateDir: dir,
	}, nothing{}, nothing{}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "detr.sock")
	s := admin.NewServer(socket, admin.About{Role: "detr", Name: "d1"}, x, detrDrain(x))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- x.Run(ctx) }()
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	x.DataPlaneUp(true)
	x.FeedAlive(true)
	if err := x.Apply(t.Context(), lisp.Delta{Full: true}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		if time.Now().After(end) {
			t.Fatal("the socket does not answer")
		}
	}
}

func TestDETRDrain(t *testing.T) {
	dir := t.TempDir()
	socket := liveDETR(t, dir)
	serveFake(t, dir, "xtr", "hv1", nil) // another daemon of this host
	all := filepath.Join(dir, "*.sock")
	const tail = "feed complete, data plane attached, registered at 0 of 0 Map-Servers, 0 services translated, 0 ignored\n"
	says := func(want []string, args ...string) {
		t.Helper()
		got, err := tabi(t, append([]string{"detr"}, args...)...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, got)
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%v: printed:\n%s\nwant %q", args, got, w)
			}
		}
	}
	says([]string{"serving since ", tail}, "status", "-s", all)
	says([]string{"drained since ", ": an operator said so\nwithdrawn everywhere; what still comes is forwarded\n", tail}, "drain", "-s", all)
	says([]string{"drained since "}, "drain", "-s", all)
	says([]string{"drained since "}, "status", "-s", socket)
	out, err := tabi(t, "detr", "status", "-s", socket, "--json")
	var s detr.Status
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.State != "drained" || !s.Withdrawn || time.Since(s.Since) > time.Minute {
		t.Errorf("%v: %s", err, out)
	}

	// The doctor knows it, whether the daemon runs or not.
	if c := checkDrained(&config.DETR{Common: config.Common{StateDir: dir}}); c.State != "warning" || !strings.Contains(c.Found, "drained since ") || !strings.Contains(c.Remedy, "tabi detr undrain") {
		t.Errorf("doctor: %+v", c)
	}
	says([]string{"serving since ", tail}, "undrain", "-s", all)
	if c := checkDrained(&config.DETR{Common: config.Common{StateDir: dir}}); c.State != "good" {
		t.Errorf("doctor: %+v", c)
	}
	if _, err := os.Stat(filepath.Join(dir, detr.DrainFile)); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}

	if _, err := tabi(t, "detr", "drain", "-s", filepath.Join(dir, "hv1.sock")); err == nil || !strings.Contains(err.Error(), "hv1.sock: a xtr") {
		t.Errorf("a socket of another role: %v", err)
	}
	second := t.TempDir()
	liveDETR(t, second)
	if _, err := tabi(t, "detr", "drain", "-s", all+","+filepath.Join(second, "*.sock")); err == nil || !strings.Contains(err.Error(), "2 D-ETRs answer") {
		t.Errorf("two D-ETRs: %v", err)
	}
}
