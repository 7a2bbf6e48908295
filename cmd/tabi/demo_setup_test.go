package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/testnet"
)

func TestDemoSetupText(t *testing.T) {
	s := testnet.Setup{Packages: []testnet.Need{{Package: "qemu-system-x86", Why: "runs the guests", Present: true}, {Package: "qemu-utils", Why: "makes disks"}},
		Program: "/cache/guest-1", Missing: []string{"package qemu-utils: apt-get install qemu-utils", "the guest's kernel"}}
	var b strings.Builder
	if err := printSetup(&b, s, false); err != nil {
		t.Fatal(err)
	}
	want := `there    qemu-system-x86  runs the guests
missing  qemu-utils       makes disks
missing  kernel           Debian's cloud kernel, which guests boot
there    program          ends flows inside guests: /cache/guest-1

Missing; sudo tabi demo setup installs what it can:
  package qemu-utils: apt-get install qemu-utils
  the guest's kernel
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	s.Missing = nil
	b.Reset()
	if err := printSetup(&b, s, false); err != nil || !strings.HasSuffix(b.String(), "\nReady: sudo tabi demo --vm qemu\n") {
		t.Error(err, b.String())
	}
}

// What is there differs from machine to machine; that it is told, and told by the status, does not.
func TestDemoSetupCheck(t *testing.T) {
	out, err := tabi(t, "demo", "setup", "--check", "--json", "--vm", "qemu")
	var s testnet.Setup
	if e := json.Unmarshal([]byte(out), &s); e != nil {
		t.Fatalf("%v: %s", e, out)
	}
	if (err == nil) != s.Ready() || err != nil && !errors.Is(err, errSilent) {
		t.Errorf("%v with %q missing", err, s.Missing)
	}
	var names []string
	for _, p := range s.Packages {
		names = append(names, p.Package)
		if p.Why == "" {
			t.Errorf("%s: no reason", p.Package)
		}
	}
	if diff := cmp.Diff([]string{"qemu-system-x86", "qemu-utils", "busybox-static"}, names); diff != "" {
		t.Error(diff)
	}
	if _, err := tabi(t, "demo", "setup", "--check", "--vm", "xen"); err == nil || !strings.Contains(err.Error(), `"xen"`) {
		t.Error(err)
	}
}
