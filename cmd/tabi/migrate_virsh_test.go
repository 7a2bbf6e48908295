package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/libvirt"
)

// The commands, the controller and the driver with libvirt daemons and QEMU: a VM is defined, started, moved in every way,
// moved back by Ctrl-C, drained away. The agents are not there: packets are others' tests.
func TestMigrateUnderLibvirt(t *testing.T) {
	l := newVirshLab(t)
	l.configure(t, "", "300ms") // the hooks tell the agent's socket, which takes it
	w := emptyCloud(t, func(uri string) (controller.Driver, error) {
		d, err := libvirt.New(uri, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		return d, nil
	}, func(hv string) []string {
		i := map[string]int{"nezu-hv1": 0, "nara-hv1": 1}[hv]
		return []string{"--driver", l.hv[i].URI(), "--driver-peer", l.hv[i].RemoteURI(), "--migrate-uri", "tcp://" + l.ip[i].String()}
	})
	w.eventually("node         hv2, ", "hv", "show", "nara-hv1")

	file := filepath.Join(l.dir, "web.xml")
	writeFile(t, file, `<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/><memballoon model='none'/>
<interface type='ethernet'><mac address='52:54:00:00:00:10'/><model type='virtio'/></interface></devices></domain>`)
	prints(t, "vm web defined on nezu-hv1\n", "vm", "define", file, "--hypervisor", "nezu-hv1", "--eid", "198.51.100.10/32", "--owner", "alice")
	prints(t, "vm web: running\n", "vm", "start", "web")
	w.eventually("web   running  alice  nezu-hv1    1     64MiB   none     198.51.100.10/32", "vm", "list")

	there := map[bool]string{true: "nara-hv1", false: "nezu-hv1"}
	away := false
	for _, how := range [][]string{{}, {"--postcopy"}, {"--offline"}, {"--bandwidth", "1G", "--max-downtime", "50ms", "--auto-converge"}} {
		to := there[!away]
		out, err := ends(t, 0, append([]string{"migrate", "web", "--to", to, "-v"}, how...)...)
		if !strings.Contains(out, "web runs on "+to) {
			t.Fatalf("%v: %v\n%s", how, err, out)
		}
		away = !away
		w.eventually("hypervisor  "+to, "vm", "show", "web")
		if got := strings.TrimSpace(l.virsh(t, map[bool]int{true: 1}[away], "domstate", "web")); got != "running" {
			t.Errorf("%v: it is %q at %s", how, got, to)
		}
	}

	// Slow enough for somebody to lose patience.
	from := there[away]
	interrupted := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		api := controllerClient{}
		for {
			var list []controller.MigrationStatus
			if _, err := api.do(ctx, "GET", "/v1/migrations?phase=migrating", nil, &list); err != nil {
				interrupted <- err
				return
			}
			if len(list) == 1 && list[0].Progress.Phase == "memory" {
				interrupted <- syscall.Kill(syscall.Getpid(), syscall.SIGINT)
				return
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				interrupted <- fmt.Errorf("it never comes to its memory: %w", ctx.Err())
				return
			}
		}
	}()
	out, err := ends(t, exitCancelled, "migrate", "web", "--to", there[!away], "--bandwidth", "1MB/s")
	if e := <-interrupted; e != nil || err == nil || !strings.HasPrefix(err.Error(), "web goes on at "+from) {
		t.Errorf("%v %v\n%s", e, err, out)
	}
	w.eventually("web   running  alice  "+from, "vm", "list")

	out, _ = ends(t, 0, "hv", "drain", from)
	if !strings.HasSuffix(out, from+": 1 of 1 VM moved\n") {
		t.Error(out)
	}
	w.eventually("web   running  alice  "+there[!away], "vm", "list")
	prints(t, "vm web: off\n", "vm", "stop", "--force", "web")
}
