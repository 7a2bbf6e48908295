package testnet

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	var v []float64
	for i := range 100 {
		v = append(v, float64(100-i))
	}
	if diff := cmp.Diff(Spread{Median: 50.5, P95: 96, Max: 100}, spread(v)); diff != "" {
		t.Error(diff)
	}
	if got := spread(nil); got != (Spread{}) {
		t.Errorf("of nothing: %v", got)
	}
	if got := spread([]float64{7}); got != (Spread{7, 7, 7}) {
		t.Errorf("of one: %v", got)
	}
}

func TestDrainReportJudge(t *testing.T) {
	good := func() *DrainReport {
		return &DrainReport{VMs: 2, From: "a", Moves: []*DrainMove{{ID: "drain-000", To: "b", BlackoutMS: 50}, {ID: "drain-001", To: "c", BlackoutMS: 60}}}
	}
	flow := FlowReport{Name: "udp4", Unit: "packets", Sent: 10, Received: 10}
	for _, test := range []struct {
		name   string
		change func(*DrainReport, *FlowReport)
		want   string // in the text; "" = it passes
	}{
		{"good", func(*DrainReport, *FlowReport) {}, ""},
		{"lost", func(_ *DrainReport, f *FlowReport) { f.Received, f.Lost = 8, 2 }, "2 packets lost"},
		{"doubled", func(_ *DrainReport, f *FlowReport) { f.Duplicated = 1 }, "1 duplicated"},
		{"misplaced", func(r *DrainReport, _ *FlowReport) { r.Misplaced = make([]string, 12) }, "misplaced: and 2 more"},
		{"one did not move", func(r *DrainReport, _ *FlowReport) { r.Moves = r.Moves[:1] }, "problem: 1 of 2 VMs moved"},
		{"a move complains", func(r *DrainReport, _ *FlowReport) { r.Moves[1].Problems = []string{"stop event: no"} }, "problem: drain-001: stop event: no"},
		{"the tester's own VMM", func(r *DrainReport, _ *FlowReport) { r.Machine.VMMLost = 1 }, "this run proves nothing"},
		{"the tester's own socket", func(_ *DrainReport, f *FlowReport) { f.TesterDrops = 3 }, "this run proves nothing"},
		{"not all was looked at", func(r *DrainReport, _ *FlowReport) { r.WireMissed = 3 }, "3 packets passed the router unseen"},
		{"nothing was sent", func(_ *DrainReport, f *FlowReport) { f.Sent, f.Received = 0, 0 }, "FAIL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, f := good(), flow
			test.change(r, &f)
			r.judge([]FlowReport{f})
			var b strings.Builder
			must(t, r.WriteText(&b))
			if r.Pass != (test.want == "") || !strings.Contains(b.String(), test.want) {
				t.Errorf("pass %v:\n%s", r.Pass, b.String())
			}
			if test.want == "" && !strings.Contains(b.String(), "PASS: 2 VMs left a") {
				t.Error(b.String())
			}
		})
	}
}
