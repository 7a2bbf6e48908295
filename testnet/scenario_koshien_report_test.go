package testnet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tabi-lisp/tabi/testnet/crowd"
)

// goodBroadcast is a report of one at which nothing went wrong.
func goodBroadcast() *KoshienReport {
	r := &KoshienReport{Viewers: 100, Seconds: 10, Moves: []*MoveReport{{ID: "a", From: "nezu", To: "hokuriku", BlackoutMS: 200}, {ID: "b", From: "hokuriku", To: "nara"}},
		Load:   []KoshienLoad{{DETR: "detr1", Site: "Tokyo", Mbit: [][2]float64{{1, 10}, {6, 80}}}, {DETR: "detr2", Site: "Osaka", Mbit: [][2]float64{{1, 10}, {6, 0}}}},
		Events: []KoshienEvent{{5, "the Osaka D-ETR is killed"}},
		Reads:  []KoshienReads{{"detr2", "Osaka", 7}, {"detr1", "Tokyo", 9}}}
	r.take(crowd.Stats{Peak: 100, Came: 100, Requests: 1000, ByGroup: []uint64{400, 600}, MedianMS: 0.4, P99MS: 12, LongestMS: 1499, LongestAt: 6.12345,
		Seconds: []crowd.Second{{Open: 50, Requests: 100, LongestMS: 3}, {Open: 100, Requests: 900, LongestMS: 1499}}}, []crowd.Group{{Name: "IPv4"}, {Name: "IPv6"}})
	return r
}

func TestKoshienReport(t *testing.T) {
	r := goodBroadcast()
	r.judge()
	if !r.Passed() || r.Verdict != "PASS: 100 viewers asked 1000 times and none of them in vain; the longest wait of any was 1.5 s" {
		t.Errorf("%s %q", r.Verdict, r.Problems)
	}
	var b strings.Builder
	must(t, r.WriteText(&b))
	for _, want := range []string{"through the D-ETR, Mbit/s: Tokyo", "through the D-ETR, Mbit/s: Osaka", "A    5.0 s  the Osaka D-ETR is killed",
		"viewers        100, all connected at once: true", "requests       1000 (400 over IPv4, 600 over IPv6)", "failures       0",
		"median 0.4 ms, 99 % below 12 ms, longest 1.5 s (at 6.1 s)", "statistics     of the Tokyo D-ETR were read 9 times",
		"move           Tokyo -> Hokuriku: blackout 200 ms", "PASS"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if r.Reads[0].DETR != "detr1" || r.LongestAt != 6.123 {
		t.Errorf("%+v", r)
	}
	for line := range strings.Lines(b.String()) {
		if n := len([]rune(line)) - 1; n > koshienColumns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	js, err := json.Marshal(r)
	must(t, err)
	for _, key := range []string{`"pass":true`, `"failures":0`, `"wait_longest_ms":1499`, `"mbit_s":[[1,10],[6,80]]`, `"requests_by_family":{"IPv4":400,"IPv6":600}`} {
		if !strings.Contains(string(js), key) {
			t.Errorf("no %s in %s", key, js)
		}
	}
	if svg := string(r.Chart().SVG()); !strings.Contains(svg, "longest wait 1.5 s") || !strings.Contains(svg, "the Osaka D-ETR is killed") {
		t.Error(svg)
	}
}

// What went wrong is said, and fails the report.
func TestKoshienReportFails(t *testing.T) {
	for what, spoil := range map[string]func(*KoshienReport){
		"1 times in vain":                func(r *KoshienReport) { r.Failures = 1 },
		"only 99 of 100 viewers":         func(r *KoshienReport) { r.Peak = 99 },
		"the statistics of detr1":        func(r *KoshienReport) { r.Reads[0].Reads = 0 },
		"moved 1 times of 2":             func(r *KoshienReport) { r.Moves = r.Moves[:1] },
		"a: the controller said no":      func(r *KoshienReport) { r.Moves[0].Problems = []string{"the controller said no"} },
		"100 viewers asked 0 times, 0 t": func(r *KoshienReport) { r.Requests = 0 },
	} {
		r := goodBroadcast()
		spoil(r)
		r.judge()
		if said := r.Verdict + strings.Join(r.Problems, "; "); r.Passed() || !strings.Contains(said, what) {
			t.Errorf("%s: %v %s", what, r.Passed(), said)
		}
	}
}
