package testnet

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestLibvirt moves a real guest between real libvirt daemons, by virsh, in one cloud in one way after the other: as planned,
// cancelled, by post-copy, standing still, with its disk, with nobody told of it, and with the controller dead. All the
// while its flows run. In none of these may a packet be lost, but for what QEMU loses itself, or doubled.
func TestLibvirt(t *testing.T) {
	for range 3 {
		if libvirtSteps(t) {
			return
		}
		t.Log("its emulation broke the guest: once more, with another one")
	}
	t.Fatal("the emulation broke the guest three times: this machine cannot show anything")
}

// guestBroke is what a step panics with when the guest's emulation has broken it: nothing can be said of the network.
type guestBroke struct{ flaws []string }

// libvirtSteps reports whether the guest lived to the end.
func libvirtSteps(t *testing.T) (whole bool) {
	c := startCloud(t, Options{VM: VMLibvirt})
	var moves []*MoveReport
	move := func(t *testing.T, o MoveOptions) *MoveReport {
		t.Helper()
		r := moveTo(t, c, o)
		moves = append(moves, r)
		wantNoProblems(t, r)
		wantAlive(t, c)
		return r
	}
	// plain is what a user does who has never heard of us: virsh migrate, and nothing else.
	plain := func() MoveOptions { return MoveOptions{To: c.next(), StopEvent: true} }
	steps := []struct {
		name string
		do   func(t *testing.T)
	}{
		{"planned", func(t *testing.T) {
			for range 10 {
				wantMoved(t, move(t, Planned(c.next(), 0)))
			}
		}},
		{"cancelled in the copy", func(t *testing.T) {
			o := Planned(c.next(), 0)
			o.CancelAt, o.Bandwidth = CancelInCopy, 4<<20
			wantStayed(t, move(t, o))
		}},
		{"cancelled at the switch", func(t *testing.T) {
			o := Planned(c.next(), 0)
			o.Abort = true
			wantStayed(t, move(t, o))
		}},
		{"cancelled too late", func(t *testing.T) {
			o := Planned(c.next(), 0)
			o.CancelAt = CancelAfterSwitch
			wantMoved(t, move(t, o))
		}},
		{"post-copy", func(t *testing.T) {
			o := Planned(c.next(), 0)
			o.Mode = "postcopy"
			wantMoved(t, move(t, o))
		}},
		{"standing still", func(t *testing.T) {
			o := Planned(c.next(), 0)
			o.Mode = "offline"
			wantMoved(t, move(t, o))
		}},
		{"with its disk", func(t *testing.T) { moveWithDisk(t, c, move) }},
		{"nobody prepares", func(t *testing.T) {
			for range 2 {
				wantMoved(t, move(t, plain()))
			}
		}},
		{"the controller is dead", func(t *testing.T) {
			must(t, c.Host("ctl").Kill("controller"))
			for range 2 {
				wantMoved(t, move(t, plain()))
			}
		}},
	}
	for _, s := range steps {
		broke := false
		ok := t.Run(s.name, func(t *testing.T) {
			defer func() {
				r := recover()
				if b, is := r.(guestBroke); is {
					broke = true
					t.Log(b.flaws)
				} else if r != nil {
					panic(r)
				}
			}()
			s.do(t)
		})
		if broke {
			must(t, errors.Join(c.Flows.Close(), c.Close()))
			return false
		}
		if !ok {
			break // what comes after would fail for this
		}
	}
	if len(c.guestFaults()) > 0 {
		must(t, errors.Join(c.Flows.Close(), c.Close()))
		return false
	}
	wantNoLossOfOurs(t, finish(t, c, moves...), len(moves))
	return true
}

// moveWithDisk plugs a disk that only this hypervisor has, has the guest write to it, and moves both.
func moveWithDisk(t *testing.T, c *Cloud, move func(*testing.T, MoveOptions) *MoveReport) {
	const mib = 8
	vm, at := c.guests[hostWeb].(*libvirtVM), c.Where(hostWeb)
	must(t, vm.makeDisks(mib))
	_, err := vm.maker.daemons[at].Virsh(t.Context(), "attach-disk", hostWeb, libvirtDisk(hostWeb), "vda", "--live", "--config", "--driver", "qemu", "--subdriver", "raw")
	must(t, err)
	guest := c.Guest(hostWeb)
	for ctx := within(t, 10*time.Second); ; { // the guest takes a moment to find it
		err := guest.DiskWrite(ctx, "/dev/vda", 64, 400)
		if err == nil {
			break
		}
		must(t, ctx.Err())
		time.Sleep(100 * time.Millisecond)
	}
	o := Planned(c.next(), 0)
	o.CopyDisks = true
	wantMoved(t, move(t, o))
	disk, err := guest.DiskVerify(t.Context())
	must(t, err)
	if disk.Wrong != 0 || disk.Written == 0 || disk.Checked == 0 || disk.Error != "" {
		t.Errorf("the disk after the move: %+v", disk)
	}
	_, err = vm.maker.daemons[c.Where(hostWeb)].Virsh(t.Context(), "detach-disk", hostWeb, "vda", "--live", "--config")
	must(t, err)
}

func wantMoved(t *testing.T, r *MoveReport) {
	t.Helper()
	if r.Aborted {
		t.Errorf("%s: it stayed: %s", r.ID, r.Why)
	}
}

func wantStayed(t *testing.T, r *MoveReport) {
	t.Helper()
	if !r.Aborted {
		t.Errorf("%s: it moved", r.ID)
	}
}

// wantAlive ends the test when the guest is broken: what comes after would be said of the wrong one.
func wantAlive(t *testing.T, c *Cloud) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	e := endpoints[hostClient4]
	_, err := Ping(ctx, c.Host(hostClient4).ns, e.v4, endpoints[hostWeb].v4)
	if flaws := c.guestFaults(); len(flaws) > 0 {
		panic(guestBroke{flaws})
	}
	if err == nil {
		return
	}
	for name, vm := range c.guests {
		t.Logf("%s: %v", name, vm.Flaws())
		if v, ok := vm.(*libvirtVM); ok {
			t.Logf("its console:\n%s", tail(v.console(c.Where(name))))
		}
	}
	_ = c.Flows.Close()
	t.Fatalf("the guest does not answer after the move: %v", err)
}

// TestLibvirtDefinition: what the agent knows of a VM without a controller comes from the definition.
func TestLibvirtDefinition(t *testing.T) {
	k := &libvirtMaker{cloud: &Cloud{}, image: Image{"/k", "/i"}}
	v := &libvirtVM{VMSpec{Name: "web", Addrs: addrs("198.51.100.10/24", "2001:db8:e1d:1::10/64"), Device: "tap-web"}, k}
	for _, want := range []string{"<tabi:eid>198.51.100.10/32</tabi:eid><tabi:eid>2001:db8:e1d:1::10/128</tabi:eid>", "<target dev='tap-web'/>", "<kernel>/k</kernel>"} {
		if !strings.Contains(v.definition(), want) {
			t.Errorf("no %s in\n%s", want, v.definition())
		}
	}
	if strings.Contains(v.definition(), "<disk") {
		t.Error("it has a disk that nobody asked for")
	}
}

// TestLibvirtdLeavesNothing: neither the daemon nor its VMs outlive it, and the machine's own libvirt is not touched.
func TestLibvirtdLeavesNothing(t *testing.T) {
	before, _ := os.ReadDir("/etc/libvirt/qemu")
	r := startRun(t)
	h := startHost(t, r, "hv")
	l, err := StartLibvirtd(within(t, time.Minute), LibvirtConfig{NS: h.ns, Name: "hv", Dir: h.dir + "/libvirt"})
	must(t, err)
	file := h.dir + "/x.xml"
	must(t, os.WriteFile(file, []byte(`<domain type='qemu'><name>x</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>`), 0o600))
	for _, args := range [][]string{{"define", file}, {"start", "x"}} {
		_, err := l.Virsh(t.Context(), args...)
		must(t, err)
	}
	must(t, l.Restart(within(t, 20*time.Second)))
	if out, err := l.Virsh(t.Context(), "domstate", "x"); err != nil || strings.TrimSpace(out) != "running" {
		t.Errorf("after the daemon's death the VM is %q, %v", out, err)
	}
	first, err := children(l.proc.ref.PID)
	must(t, err)
	all, err := children(first[0])
	must(t, err)
	if len(all) < 2 {
		t.Errorf("processes of the daemon: %v", all)
	}
	must(t, l.Close())
	for _, pid := range all {
		if _, err := processRef(pid); err == nil {
			t.Errorf("process %d is left", pid)
		}
	}
	after, _ := os.ReadDir("/etc/libvirt/qemu")
	if len(before) != len(after) {
		t.Error("the machine's own libvirt has VMs of ours")
	}
}
