package config

import (
	"strings"
	"testing"
)

func TestVMs(t *testing.T) {
	good, err := Example("xtr")
	if err != nil {
		t.Fatal(err)
	}
	for vms, want := range map[string]VMs{
		"":                                {},
		"vms:\n  libvirt: qemu:///system": {Libvirt: "qemu:///system"},
		"vms:\n  qmp: /run/qemu/*.qmp":    {QMP: "/run/qemu/*.qmp"},
		"vms: {libvirt: \"qemu+unix:///system?socket=/run/x/libvirt-sock\", qmp: \"/run/[ab]/*.qmp\"}": {
			Libvirt: "qemu+unix:///system?socket=/run/x/libvirt-sock", QMP: "/run/[ab]/*.qmp"},
	} {
		c, err := Parse("xtr.yaml", []byte(good+"\n"+vms+"\n"))
		if err != nil {
			t.Errorf("%s: %v", vms, err)
		} else if got := c.(*XTR).VMs; got != want {
			t.Errorf("%s: %+v", vms, got)
		}
	}
	for vms, says := range map[string]string{
		"vms: {libvirt: \"xen:///system\"}":            "vms.libvirt",
		"vms: {libvirt: \"qemu+magic://host/system\"}": "vms.libvirt",
		"vms: {qmp: run/*.qmp}":                        "absolute path",
		"vms: {qmp: \"/run/[.qmp\"}":                   "pattern",
		"vms: {xen: yes}":                              "unknown field",
	} {
		if _, err := Parse("xtr.yaml", []byte(good+"\n"+vms+"\n")); err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "xtr.yaml:") {
			t.Errorf("%s: %v", vms, err)
		}
	}
}
