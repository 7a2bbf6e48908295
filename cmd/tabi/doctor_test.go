package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
)

func TestDoctorLooksWhetherVMsWillBeHeardOf(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.qmp", "b.qmp"} {
		s, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "c.qmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		vms         config.VMs
		state, says string
	}{
		{config.VMs{}, "warning", "neither"},
		{config.VMs{QMP: dir + "/*.qmp"}, "good", "2 monitors"},
		{config.VMs{QMP: dir + "/*.sock"}, "warning", "no socket"},
		{config.VMs{QMP: dir + "/["}, "bad", "pattern"},
		{config.VMs{Libvirt: "qemu+unix:///system?socket=" + dir + "/nobody"}, "bad", "nobody"},
		{config.VMs{Libvirt: "what is this"}, "bad", ""},
	} {
		got := checkVMs(t.Context(), tc.vms)
		if len(got) != 1 || got[0].State != tc.state || !strings.Contains(got[0].Found, tc.says) || (got[0].State == "good") != (got[0].Remedy == "") {
			t.Errorf("%+v: %+v, want %s, %q", tc.vms, got, tc.state, tc.says)
		}
	}
}
