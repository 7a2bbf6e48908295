package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// afterFrame is within what a VM that was started again elsewhere must be reachable, from its first frame on.
const afterFrame = time.Second

// A hypervisor dies with its VM, which is started again elsewhere from shared storage. It is reachable within a second
// of its first frame, from everywhere; and when the dead host comes back with what it remembers, nothing changes.
func TestSourceDies(t *testing.T) {
	for _, test := range []struct {
		name string
		// reboot: its kernel forgets everything, and its link goes down; else its agent dies and its link swallows what it
		// is given, and its kernel still believes that the VM is there when it comes back.
		reboot bool
		to     string
	}{
		{"cut off", false, "nara-hv1"},
		{"rebooted", true, "hokuriku-hv1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startCloud(t, Options{})
			must(t, c.Flows.Close()) // the guest's programs die with it
			home, web := c.Where(hostWeb), c.vms[hostWeb]
			before := anchorVersions(t, c)

			web.Pause()
			must(t, c.Host(home).Kill("xtr"))
			if test.reboot {
				must(t, c.linkDown(home))
			} else {
				must(t, c.Partition(home))
			}
			must(t, web.Remove(c.Host(home).ns))
			time.Sleep(time.Second)

			restartElsewhere(t, c, test.to)
			after := anchorVersions(t, c)
			t.Logf("before: %s", before)
			t.Logf("after: %s", after)

			// The dead come back.
			wire, err := watchWire(c, []netip.Addr{endpoints[hostWeb].v4, endpoints[hostWeb].v6})
			must(t, err)
			defer wire.stop()
			freshFlows(t, c)
			if test.reboot {
				must(t, unmountBelow(c.Host(home).dir))
				must(t, os.RemoveAll(filepath.Join(c.Host(home).dir, "bpf")))
				must(t, c.linkUp(home))
			} else {
				must(t, c.Heal(home))
			}
			must(t, c.Host(home).Start(within(t, 30*time.Second), "xtr"))
			for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
				if now := anchorVersions(t, c); now != after {
					t.Fatalf("versions were %s and are %s: somebody claimed", after, now)
				}
				for _, anchor := range c.anchors() {
					if _, wrong, err := c.anchorAt(t.Context(), anchor, []string{hostWeb}); err != nil || wrong != "" {
						t.Fatalf("%s: %s %v", anchor, wrong, err)
					}
				}
			}
			wantNoLoss(t, finish(t, c))
			frames, missed, err := wire.stop()
			must(t, err)
			if frames == 0 || missed > 0 {
				t.Errorf("%d packets looked at on the wire, %d missed", frames, missed)
			}
			dead := []netip.Addr{mustNode(home).v4(), mustNode(home).v6()}
			astray := func(tr *trail) bool {
				return slices.ContainsFunc(tr.visited(), func(a netip.Addr) bool { return slices.Contains(dead, a) })
			}
			for eid, tr := range wire.trails.speaks {
				if astray(tr) {
					t.Errorf("packets of %s came from %s", eid, tr)
				}
			}
			for k, tr := range wire.trails.sent {
				if astray(tr) {
					t.Errorf("%s sent packets for %s to %s", k.sender, k.eid, tr)
				}
			}
			if len(wire.trails.speaks) != 2 || len(wire.trails.sent) == 0 {
				t.Errorf("on the wire: %v, %v", wire.trails.speaks, wire.trails.sent)
			}
		})
	}
}

// The same with a real guest, whose disk is on shared storage.
func TestSourceDiesWithGuest(t *testing.T) {
	c := startCloud(t, Options{VM: VMCamp, Rate: 20, BitRate: 1e5})
	must(t, c.Flows.Close())
	ctx := within(t, 90*time.Second)
	s := &satellite{c: c, o: SatelliteOptions{DiskKiB: 64}, from: c.Host(campFrom), to: c.Host(campTo)}
	t.Cleanup(func() { must(t, s.close()) })
	var err error
	s.image, err = GuestImage(ctx, c.opts.Progress)
	must(t, err)
	must(t, makeBase(baseImage(s.from)))
	v := newCampVM(c, 0)
	s.vms = append(s.vms, v)
	must(t, s.define(ctx, v))
	must(t, s.ready(ctx, v))

	must(t, c.Host(campFrom).Kill("xtr"))
	must(t, v.src.Kill())
	must(t, c.Partition(campFrom))
	time.Sleep(time.Second)
	for _, b := range v.beats {
		_, _, err := b.end()
		must(t, err)
	}
	v.beats = nil
	v.dst, err = s.run(ctx, v, s.to, v.overlay(s.from), false)
	must(t, err)
	first := watchFirstFrame(t, s.to.ns, v.tap)
	for _, p := range []struct {
		from     string
		src, dst netip.Addr
	}{{hostClient4, endpoints[hostClient4].v4, v.v4}, {hostClient6, endpoints[hostClient6].v6, v.v6}} {
		_, err := Ping(ctx, c.Host(p.from).ns, p.src, p.dst)
		must(t, err)
		took := time.Since(time.Unix(0, first.Load()))
		t.Logf("%s reaches the guest %.1f ms after its first frame", p.from, ms(took))
		if first.Load() == 0 || took > afterFrame {
			t.Errorf("%s reaches the guest %v after its first frame", p.from, took)
		}
	}
	known := func() string {
		rows, err := c.anchorMappings(ctx, "detr1")
		must(t, err)
		var out []string
		for _, eid := range (endpoint{v.v4, v.v6}).eids() {
			row := rows[eid]
			out = append(out, fmt.Sprintf("%s %d at %s: %v", eid, row.Version, campTo, row.at(mustNode(campTo).rlocList()[0])))
		}
		return strings.Join(out, ", ")
	}
	after := known()
	t.Log(after)
	if strings.Contains(after, "false") {
		t.Error("the D-ETR has it elsewhere")
	}
	must(t, c.Heal(campFrom))
	must(t, c.Host(campFrom).Start(ctx, "xtr"))
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if now := known(); now != after {
			t.Fatalf("it was %s and is %s", after, now)
		}
	}
	must(t, v.guest.Wait(ctx))
}

// restartElsewhere boots the VM web on another hypervisor, which nobody has told of it, and checks how soon it is
// reachable.
func restartElsewhere(t *testing.T, c *Cloud, hv string) {
	t.Helper()
	web, at := c.vms[hostWeb], c.Host(hv)
	must(t, flushNeighbours(c.Host(hostWeb).ns)) // it boots: it knows nobody
	must(t, web.Open(at.ns))
	first := watchFirstFrame(t, at.ns, web.Tap)

	type answer struct {
		from string
		at   time.Time
		err  error
	}
	answers := make(chan answer)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	asked := 0
	for _, p := range paths {
		for _, f := range families(p) {
			asked++
			go func() {
				_, err := Ping(ctx, c.Host(p.from).ns, f[0], f[1])
				answers <- answer{fmt.Sprintf("%s (%s)", p.from, f[0]), time.Now(), err}
			}()
		}
	}
	time.Sleep(300 * time.Millisecond) // they ask, and nobody answers: the old mapping leads nowhere
	_, err := web.Resume(at.ns, false)
	must(t, err)
	c.setWhere(hostWeb, hv)
	go func() { _, _ = Ping(ctx, c.Host(hostWeb).ns, endpoints[hostWeb].v4, vmGateway4) }() // as a guest's programs do
	for range asked {
		a := <-answers
		if a.err != nil {
			t.Fatalf("%s: %v", a.from, a.err)
		}
		spoke := time.Unix(0, first.Load())
		took := a.at.Sub(spoke)
		t.Logf("%s reaches the VM %.1f ms after its first frame", a.from, ms(took))
		if first.Load() == 0 || took > afterFrame {
			t.Errorf("%s reaches the VM %v after its first frame, at %v", a.from, took, spoke)
		}
		if took < 0 {
			t.Errorf("%s had an answer %v before the VM said anything: the VM was not dead", a.from, -took)
		}
	}
	must(t, c.waitAnchors(within(t, 10*time.Second), hostWeb))
}

// watchFirstFrame notes when the first frame comes from the VM behind an interface, in Unix nanoseconds.
func watchFirstFrame(t *testing.T, n *Namespace, dev string) *atomic.Int64 {
	t.Helper()
	first := new(atomic.Int64)
	s, err := openPacketSocket(n, dev)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.receive(func(_ []byte, from *unix.SockaddrLinklayer, at int64) {
			if from.Pkttype != unix.PACKET_OUTGOING {
				first.CompareAndSwap(0, at)
			}
		})
	}()
	t.Cleanup(func() {
		must(t, s.close())
		<-done
	})
	return first
}

// flushNeighbours makes a namespace forget whom it knows on its links.
func flushNeighbours(n *Namespace) error {
	return n.Do(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		var errs []error
		for _, nb := range all {
			if nb.State&netlink.NUD_NOARP == 0 {
				errs = append(errs, netlink.NeighDel(&nb))
			}
		}
		return errors.Join(errs...)
	})
}
