package gateway

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/controller/qmp"
)

// QEMU holds one packet back when the VM has stopped, which it has read: the VM never gets it.
func TestDeliveredByQEMU(t *testing.T) {
	h := newHypervisor(t, testConfig())
	socket := filepath.Join(t.TempDir(), "qmp")
	var vmm *exec.Cmd
	h.do(func() error {
		vmm = exec.Command("qemu-system-x86_64", "-machine", "none", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-S",
			"-qmp", "unix:"+socket+",server=on,wait=off",
			"-netdev", "tap,id=t0,ifname=tap0,script=no,downscript=no", "-netdev", "hubport,id=h0,hubid=0,netdev=t0",
			"-netdev", "dgram,id=d0,local.type=unix,local.path="+socket+".d,remote.type=unix,remote.path="+socket+".e",
			"-netdev", "hubport,id=h1,hubid=0,netdev=d0")
		vmm.Stderr = os.Stderr
		return vmm.Start()
	})
	t.Cleanup(func() {
		_ = vmm.Process.Kill()
		_ = vmm.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var mon *qmp.Client
	eventually(t, func() (err error) {
		mon, err = qmp.Dial(ctx, socket)
		return err
	})
	defer mon.Close()
	command := func(name string) {
		t.Helper()
		if err := mon.Execute(ctx, name, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	command("cont")
	h.up("tap0")
	index := h.event().If
	h.count("announced", 2)
	h.settled("sent_router_advertisement")

	read := func() (n uint64) {
		h.do(func() (err error) {
			n, _, err = h.PortStats(index)
			return err
		})
		return n
	}
	send := func(n int) {
		h.do(func() error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for range n {
				if err := unix.Sendto(fd, arpFrame(1, "198.51.100.1", "198.51.100.10"), 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	delivered := func(want uint64, what string) {
		t.Helper()
		h.do(func() error {
			got, err := h.Delivered(index)
			if err == nil && got != want {
				err = fmt.Errorf("%s: delivered %d, want %d (read %d)", what, got, want, read())
			}
			return err
		})
	}

	before := read()
	send(5)
	eventually(t, func() error {
		if n := read(); n != before+5 {
			return fmt.Errorf("%d read, want %d", n, before+5)
		}
		return nil
	})
	command("stop")
	delivered(before+5, "nothing came after the stop")
	delivered(before+5, "asked again")

	command("cont") // what it held back, and what is in the TAP, goes to the guest
	eventually(t, func() error {
		if n := read(); n != before+7 { // two pokes
			return fmt.Errorf("%d read, want %d", n, before+7)
		}
		return nil
	})
	h.Arm(index)
	command("stop")
	send(3)
	delivered(before+7, "three came after the stop")
}
