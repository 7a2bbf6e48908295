package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/controller"
)

var t0 = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func underWay(p controller.Progress) controller.MigrationStatus {
	return controller.MigrationStatus{
		ID: "g1", VM: "web", From: "nezu-hv1", To: "nara-hv1", Phase: controller.MigrationMigrating,
		Times: controller.MigrationTimes{Asked: t0, Started: t0.Add(time.Second), Migrating: t0.Add(2 * time.Second)}, Progress: p,
	}
}

func TestDrawMigration(t *testing.T) {
	memory := controller.Progress{Phase: "memory", Elapsed: 12345 * time.Millisecond, Total: 188_000_000, Done: 96_300_000, Remaining: 91_700_000,
		Sent: 150_000_000, Rate: 12_400_000, DirtyRate: 4_200_000, Iteration: 3, Downtime: 180 * time.Millisecond}
	slow := memory
	slow.DirtyRate, slow.Iteration, slow.Throttle = 12_400_000, 7, 40
	for name, c := range map[string]struct {
		m     controller.MigrationStatus
		width int
		want  string
	}{
		"queued": {controller.MigrationStatus{VM: "web", From: "nezu-hv1", Phase: controller.MigrationQueued, Link: "nara-nezu", Queue: 2,
			Times: controller.MigrationTimes{Asked: t0}}, 100, `
web  nezu-hv1 -> ?  waits for the link nara-nezu, place 2  1:02 min

`},
		"preparing": {controller.MigrationStatus{VM: "web", From: "nezu-hv1", To: "nara-hv1", Phase: controller.MigrationPreparing,
			Times: controller.MigrationTimes{Asked: t0, Started: t0.Add(61900 * time.Millisecond)}}, 100, `
web  nezu-hv1 -> nara-hv1  preparing  100 ms

`},
		"setup": {underWay(controller.Progress{Phase: "setup"}), 100, `
web  nezu-hv1 -> nara-hv1  setup  1:00 min

`},
		"memory": {underWay(memory), 120, `
web  nezu-hv1 -> nara-hv1  memory  12.3 s  iteration 3
[###############---------------]   51%  96.3 MB of 188 MB  12.4 MB/s  dirty 4.20 MB/s  11.2 s left  downtime 180 ms
`},
		"memory, 80 columns": {underWay(memory), 80, `
web  nezu-hv1 -> nara-hv1  memory  12.3 s  iteration 3
[####----]   51%  96.3 MB of 188 MB  12.4 MB/s  dirty 4.20 MB/s  11.2 s left
`},
		"memory, 30 columns": {underWay(memory), 30, `
web  nezu-hv1 -> nara-hv1
[####----]   51%
`},
		"diverging": {underWay(slow), 120, `
web  nezu-hv1 -> nara-hv1  memory  12.3 s  iteration 7  VM slowed by 40%  does not converge
[###############---------------]   51%  96.3 MB of 188 MB  12.4 MB/s  dirty 12.4 MB/s  downtime 180 ms
`},
		"nothing yet": {underWay(controller.Progress{Phase: "storage", Total: 5_000_000_000}), 80, `
web  nezu-hv1 -> nara-hv1  storage  1:00 min
[------------------------------]    0%  0 B of 5.00 GB  0 B/s
`},
		"more than all": {underWay(controller.Progress{Phase: "switch", Total: 10, Done: 11}), 80, `
web  nezu-hv1 -> nara-hv1  switch  1:00 min
[##############################]  100%  11 B of 10 B  0 B/s
`},
		"cancelled": {func() controller.MigrationStatus {
			m := underWay(controller.Progress{})
			m.Phase, m.Cancel = controller.MigrationUndoing, "asked for"
			return m
		}(), 80, `
web  nezu-hv1 -> nara-hv1  undoing  1:00 min  being cancelled

`},
		"no room": {underWay(memory), 5, "\nweb\n[####\n"},
		"none":    {underWay(memory), 0, "\n\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := drawMigration(c.m, c.width, t0.Add(62*time.Second))
			if d := cmp.Diff(strings.TrimPrefix(c.want, "\n"), got[0]+"\n"+got[1]+"\n"); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			for _, l := range got {
				if len(l) > c.width {
					t.Errorf("%q is wider than %d", l, c.width)
				}
			}
		})
	}

	if d := cmp.Diff("  12.3 s  memory       51%  96.3 MB of 188 MB  12.4 MB/s  dirty 12.4 MB/s  downtime 180 ms  iteration 7  VM slowed by 40%  does not converge",
		lineMigration(underWay(slow), t0)); d != "" {
		t.Error(d)
	}
}

func TestDoneText(t *testing.T) {
	m := underWay(controller.Progress{Phase: "done", Sent: 76_000_000, Iteration: 3, Downtime: 17 * time.Millisecond})
	m.Times.Ended = t0.Add(2518 * time.Millisecond)
	if got, want := doneText(m), "web runs on nara-hv1: 518 ms, 76.0 MB sent, 3 iterations, downtime 17 ms"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := doneText(controller.MigrationStatus{VM: "web", To: "nara-hv1"}), "web runs on nara-hv1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestQuantities(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "800": 100, "100M": 12_500_000, "100Mbit": 12_500_000, "100Mbit/s": 12_500_000, "100Mbps": 12_500_000, "1.5G": 187_500_000,
		"12MB": 12_000_000, "12MB/s": 12_000_000, "12MiB/s": 12 << 20, "1 GB/s": 1e9, "64kbit/s": 8000, "64Kbit": 8000, "1Tb": 125e9, "8Mib": 1 << 20,
	} {
		if got, err := parseBandwidth(s); err != nil || got != want {
			t.Errorf("bandwidth %q = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "fast", "-1M", "1e3", "10X", "1iB", "7", "M", "1..5M", "99999999999T", "10MB/h"} {
		if got, err := parseBandwidth(s); err == nil {
			t.Errorf("bandwidth %q = %d", s, got)
		}
	}
	for s, want := range map[string]uint64{"0": 0, "4096": 4096, "16G": 16 << 30, "16GiB": 16 << 30, "16GB": 16e9, "1.5M": 3 << 19, "512k": 512 << 10} {
		if got, err := parseMemory(s); err != nil || got != want {
			t.Errorf("memory %q = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "16Gbit", "16GB/s", "lots", "-1G"} {
		if got, err := parseMemory(s); err == nil {
			t.Errorf("memory %q = %d", s, got)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 99_949: "99.9 kB", 99_950: "100 kB", 999_499: "999 kB", 999_500: "1.00 MB", 1 << 63: "9223372 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytes %d: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 96 << 20: "96 MiB", 3 << 29: "1.5 GiB", 1 << 40: "1 TiB"} {
		if got := memoryText(n); got != want {
			t.Errorf("memory %d: %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 ms", 12 * time.Microsecond: "12 µs", 17400 * time.Microsecond: "17 ms", 1260 * time.Millisecond: "1.3 s",
		59 * time.Second: "59.0 s", 61 * time.Second: "1:01 min", 3599 * time.Second: "59:59 min", 90 * time.Minute: "1:30 h", -time.Second: "-1.0 s"} {
		if got := spanText(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func FuzzParseQuantity(f *testing.F) {
	f.Add("100Mbit/s")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseBandwidth(s); err == nil && n > 1<<63 {
			t.Errorf("%q is %d", s, n)
		}
		if n, err := parseMemory(s); err == nil && n > 1<<63 {
			t.Errorf("%q is %d", s, n)
		}
	})
}
