package testnet

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestBar(t *testing.T) {
	for _, test := range []struct {
		name               string
		total, copied, ran float64
		out                [][2]float64
		want               string
	}{
		{"moves at once", 100, 0, 50, nil, "═════━━━━━"},
		{"waits its turn", 100, 40, 70, [][2]float64{{60, 70}}, "────══█━━━"},
		{"out for a moment", 100, 40, 70, [][2]float64{{69, 69.1}}, "────══█━━━"},
		{"out twice", 100, 0, 70, [][2]float64{{10, 20}, {60, 80}}, "═█════██━━"},
		{"to the end and beyond", 100, 0, 100, [][2]float64{{90, 120}}, "═════════█"},
		{"after the end", 100, 0, 100, [][2]float64{{100, 120}}, "═════════█"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := bar(10, test.total, test.copied, test.ran, test.out)
			if got != test.want || utf8.RuneCountInString(got) != 10 {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func campReport() *SatelliteReport {
	vm := func(name string, begin, stopped, resumed float64) *CampVM {
		return &CampVM{Name: name, CopyBegin: begin, Stopped: stopped, Resumed: resumed, MemoryMiB: 13, DiskMiB: 1.2,
			Out: [][2]float64{{stopped, resumed + 0.02}}, DiskBlocks: 256, Asked: 900, Answered: 900}
	}
	return &SatelliteReport{From: "a", To: "b", BitRate: 20e6, Seconds: 40, Chosen: "Stopped.",
		VMs: []*CampVM{vm("camp1", 0, 3, 9), vm("camp2", 10, 13, 19), vm("camp3", 20, 23, 29), vm("camp4", 30, 34, 40)}}
}

func TestSatelliteReport(t *testing.T) {
	r := campReport()
	r.judge()
	var b strings.Builder
	must(t, r.WriteText(&b))
	want := `
2011: 157 minutes in all; the mobile router moved first, and what was behind it waited for its own turn
  router   ═════════════════════━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  (not published)
  VM 1     ─────────────────────████████████████████━━━━━━━━━━━━━━━━━━━   53 minutes
  VM 2     ─────────────────────███████████████████████████████━━━━━━━━   81 minutes
  VM 3     ─────────────────────███████████████████████████████████████  101 minutes

here: 40.0 s in all over 20.0 Mbit/s, a -> b
  camp1    ════█████████━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━    6.0 s
  camp2    ───────────────════█████████━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━    6.0 s
  camp3    ──────────────────────────────════█████████━━━━━━━━━━━━━━━━━    6.0 s
  camp4    ─────────────────────────────────────────────══════█████████    6.0 s
`
	head, _, _ := strings.Cut(b.String(), "  ─ runs at a")
	if diff := cmp.Diff(want, head); diff != "" {
		t.Errorf("%s\n%s", diff, b.String())
	}
	if !r.Pass || !strings.Contains(b.String(), "PASS: 4 VMs moved with their disks in 40.0 s; in the time scale of 2011 none was out of service for more than 24 minutes, where it was 53 to 101") {
		t.Error(b.String())
	}
	if r.VMs[0].PublishedMinutes != 0 || r.VMs[3].PublishedMinutes != 101 || r.VMs[1].OutMinutes != 23.6 {
		t.Errorf("%+v %+v", r.VMs[0], r.VMs[1])
	}
}

func TestSatelliteReportFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*SatelliteReport)
		want   string
	}{
		{"no better than 2011", func(r *SatelliteReport) { r.VMs[1].Out = [][2]float64{{10, 25}} }, "1 VMs were out of service for longer"},
		{"a disk is broken", func(r *SatelliteReport) { r.VMs[2].DiskWrong = 3 }, "camp3: of 256 blocks of its disk 3 are wrong"},
		{"a disk was not looked at", func(r *SatelliteReport) { r.VMs[2].DiskBlocks = 0 }, "camp3: of 0 blocks"},
		{"it never stopped", func(r *SatelliteReport) { r.VMs[3].Resumed = 0 }, "camp4: it stopped at 34.0 s"},
		{"something else", func(r *SatelliteReport) { r.Problems = []string{"the sky fell"} }, "problem: the sky fell"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := campReport()
			test.change(r)
			r.judge()
			var b strings.Builder
			must(t, r.WriteText(&b))
			if r.Pass || !strings.Contains(b.String(), test.want) || !strings.Contains(b.String(), "FAIL: 4 VMs") {
				t.Error(b.String())
			}
		})
	}
}
