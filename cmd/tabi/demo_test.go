package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/testnet"
)

// The demo writes its files by hand, as an operator would: they must be what the daemons read.
func TestDemoConfigurationsAreValid(t *testing.T) {
	for _, services := range []bool{false, true} {
		checkDemoConfigurations(t, services)
	}
}

// checkDemoConfigurations reads the files of the demo, with service addresses or without.
func checkDemoConfigurations(t *testing.T, services bool) {
	t.Helper()
	files, err := testnet.ConfigFiles("/run/tabi-demo-test", services)
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]int{}
	for host, text := range files {
		c, err := config.Parse(host+".yaml", []byte(text))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		switch c := c.(type) {
		case *config.XTR:
			roles["xtr"]++
			if c.Name != host {
				t.Errorf("%s is named %s", host, c.Name)
			}
		case *config.MapServer:
			roles["mapserver"]++
		case *config.DETR:
			roles["detr"]++
		case *config.Controller:
			roles["controller"]++
		case *config.Router:
			roles["router"]++
		}
	}
	want := map[string]int{"xtr": 5, "mapserver": 3, "detr": 2, "controller": 1, "router": 1}
	if diff := cmp.Diff(want, roles); diff != "" {
		t.Error(diff)
	}
}

func TestDemoLs(t *testing.T) {
	dead := &testnet.Run{ID: "ab12", Started: time.Unix(0, 0), Hosts: []testnet.HostRef{
		{Name: "nezu-hv1", Namespace: "tabi-ab12-nezu-hv1", About: "hypervisor at Nezu"},
		{Name: "web", Namespace: "tabi-ab12-web", About: "VM"},
	}, Processes: []testnet.ProcessRef{{PID: 7, Host: "nezu-hv1", Name: "xtr"}}}
	var b strings.Builder
	if err := listRuns(&b, []*testnet.Run{dead}); err != nil {
		t.Fatal(err)
	}
	want := `ab12: dead: tabi demo down removes what it left, 
  nezu-hv1  tabi-ab12-nezu-hv1  xtr (pid 7)  hypervisor at Nezu
  web       tabi-ab12-web                    VM
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestDemoRefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"--moves", "-1"}, {"--rate", "0"}, {"--bit-rate", "1"}, {"--blackout", "soon"}, {"extra"}} {
		c := newDemoCommand()
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetArgs(args)
		if err := c.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}
