package testnet

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func goodReport() *Report {
	intact := true
	at := time.Unix(1e9, 0)
	return &Report{Moves: []*MoveReport{
		{ID: "move-1", VM: "web", EIDs: []string{"198.51.100.10/32"}, From: "nezu", To: "hokuriku", Version: 2, BlackoutMS: 200.3, PrepareMS: 3,
			RunToClaimMS: 1, RunToPushMS: 4, Dropped: map[string]uint64{}, Window: Window{From: at}, Steps: []Step{
				{"prepare", -150, ""}, {"pause", 0, "the VM stops at nezu-hv1"}, {"run", 200.3, "813 packets wait for it"}, {"push detr1", 204.3, ""}}},
		{ID: "move-2", VM: "web", From: "hokuriku", To: "nara", Version: 3, BlackoutMS: 200.1, PrepareMS: 5, RunToClaimMS: 2, RunToPushMS: 2,
			Dropped: map[string]uint64{"hold-full": 3}, Window: Window{From: at.Add(time.Second)}},
	}, Flows: []FlowReport{
		{Name: "udp6-internet-to-vm", Unit: "packets", Sent: 1000, Received: 1000, Reordered: 2, MaxGapMS: 201.5, GapMaxMS: 203},
		{Name: "tcp6-internet-to-vm", Unit: "bytes", Sent: 5000, Received: 5000, Intact: &intact},
	}}
}

func TestVerdict(t *testing.T) {
	broken := false
	for _, c := range []struct {
		name   string
		change func(*Report)
		pass   bool
		says   string
	}{
		{"good", func(*Report) {}, true, "PASS: the VM moved 2 times; of 1000 packets in 2 flows none was lost"},
		{"lost", func(r *Report) { r.Flows[0].Lost, r.Flows[0].Received = 1, 999 }, false, "1 packets lost"},
		{"lost, maybe by QEMU", func(r *Report) { r.VM, r.Flows[0].Lost = VMQEMU, 2 }, false, "2 packets lost; QEMU without vhost may by itself"},
		{"lost by us", func(r *Report) { r.VM, r.Flows[0].Lost = VMQEMU, 3 }, false, "3 packets lost"},
		{"doubled", func(r *Report) { r.Flows[0].Duplicated = 2 }, false, "2 duplicated"},
		{"content", func(r *Report) { r.Flows[1].Intact = &broken }, false, "1 transfers broken"},
		{"bytes", func(r *Report) { r.Flows[1].Lost = 10 }, false, "1 transfers broken"},
		{"tester", func(r *Report) { r.Flows[0].TesterDrops = 5 }, false, "1 problems"},
		{"incomplete", func(r *Report) { r.Flows[0].Incomplete = "the guest is gone" }, false, "1 problems"},
		{"vmm", func(r *Report) { r.Machine.VMMLost = 1 }, false, "1 problems"},
		{"move", func(r *Report) { r.Moves[0].Problems = []string{"no D-ETR"} }, false, "1 problems"},
		{"late is not lost", func(r *Report) { r.Moves[0].RunToPushMS = 400 }, true, "PASS"},
		{"nothing sent", func(r *Report) { r.Flows = nil }, false, "FAIL"},
	} {
		r := goodReport()
		c.change(r)
		r.judge()
		if r.Pass != c.pass || !strings.Contains(r.Verdict, c.says) {
			t.Errorf("%s: pass %v: %s", c.name, r.Pass, r.Verdict)
		}
		if strings.Contains(r.Verdict, "\n") {
			t.Errorf("%s: the verdict is not one line", c.name)
		}
	}
}

// The names of issue 2's report are a contract.
func TestReportJSON(t *testing.T) {
	r := goodReport()
	r.judge()
	b, err := json.Marshal(r)
	must(t, err)
	var got struct {
		Pass  bool
		Moves []map[string]any
		Flows []map[string]any
	}
	must(t, json.Unmarshal(b, &got))
	for _, k := range []string{"id", "vm", "eids", "from", "to", "version", "blackout_ms", "prepare_ms", "run_to_claim_ms", "run_to_push_ms", "held", "redirected", "replayed", "dropped"} {
		if _, ok := got.Moves[0][k]; !ok {
			t.Errorf("a move has no %q", k)
		}
	}
	for _, k := range []string{"name", "sent", "received", "lost", "duplicated", "reordered", "max_gap_ms"} {
		if _, ok := got.Flows[0][k]; !ok {
			t.Errorf("a flow has no %q", k)
		}
	}
	if !got.Pass || got.Moves[0]["blackout_ms"] != 200.3 || got.Moves[0]["to"] != "hokuriku" {
		t.Errorf("%v", got)
	}
	if want := (Medians{200.2, 4, 1.5, 3}); r.Medians != want {
		t.Errorf("medians %+v, want %+v", r.Medians, want)
	}
}

func TestReportText(t *testing.T) {
	r := goodReport()
	r.Flows[0].Lost, r.Flows[0].Received, r.Flows[0].Detoured = 1, 999, 1
	r.Moves[1].Problems = []string{"stop event: no agent"}
	r.judge()
	var b strings.Builder
	must(t, r.WriteText(&b))
	want := `
move-1  web  nezu -> hokuriku  version 2  blackout 200.3 ms
     -150.0 ms ●                              prepare
       +0.0 ms ────────────●                  pause          the VM stops at nezu-hv1
     +200.3 ms ────────────────────────────●  run            813 packets wait for it
     +204.3 ms ─────────────────────────────● push detr1

move-2  web  hokuriku -> nara  version 3  blackout 200.1 ms
  dropped: map[hold-full:3]

                 flow  sent  received  lost  double  reordered  gap, median ms  gap, max ms
  udp6-internet-to-vm  1000       999     1       0          2           201.5        203.0 1 of the reordered went over the VM's old host
  tcp6-internet-to-vm  5000      5000     0       0          0             0.0          0.0 bytes, content intact

medians of 2 moves: blackout 200.2 ms, prepare 4.0 ms, run to claim 1.5 ms, run to the D-ETRs' kernels 3.0 ms
target: longest gap of any flow, median over the moves: 201.5 ms of at most 220.2: met
target: from run to the D-ETRs' kernels, median over the moves: 3.0 ms of at most 5.0: met
problem: move-2: stop event: no agent

FAIL: the VM moved 2 times; of 1000 packets in 2 flows 999 arrived: 1 packets lost, 1 problems
`
	var got strings.Builder
	for line := range strings.Lines(b.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWindowsReachToTheNextMove(t *testing.T) {
	r := goodReport()
	w := Windows(r.Moves)
	if !w[0].To.Equal(r.Moves[1].Window.From) || w[1].To.Before(w[1].From) {
		t.Errorf("%v", w)
	}
}

func TestAgentRecordOfAnUnpreparedMove(t *testing.T) {
	at := time.Unix(1e9, 0)
	r := &MoveReport{ID: "move-1", EIDs: []string{"198.51.100.10/32", "2001:db8::1/128"}, Paused: at}
	rec := func(id string, run time.Duration, eids ...string) *agentRecord {
		return &agentRecord{ID: id, EIDs: eids, controllerRecord: controllerRecord{Times: stepTimes{Run: at.Add(run)}}}
	}
	for _, c := range []struct {
		name string
		rec  *agentRecord
		want bool
	}{
		{"its id", rec("move-1", -time.Hour), true},
		{"unprepared, now", rec("unprepared-7", 200*time.Millisecond, "2001:db8::1/128"), true},
		{"unprepared, before", rec("unprepared-6", -10*time.Second, "2001:db8::1/128"), false},
		{"another VM", rec("unprepared-8", 200*time.Millisecond, "198.51.100.20/32"), false},
	} {
		if got := c.rec.speaksOf(r); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestTimelineIsInOrder(t *testing.T) {
	at := time.Unix(1e9, 0)
	m := &move{vm: namespaceVM{&VM{}}, ran: at.Add(200 * time.Millisecond), prepared: [2]time.Time{at.Add(-160 * time.Millisecond), at.Add(-155 * time.Millisecond)},
		report: &MoveReport{Paused: at, PushMS: map[string]float64{"detr1": 3.5, "detr2": 2.5}, FromHypervisor: "a", ToHypervisor: "b"}}
	m.timeline(controllerRecord{Times: stepTimes{Redirecting: at.Add(time.Millisecond), Claimed: at.Add(202 * time.Millisecond)}})
	var names []string
	for _, s := range m.report.Steps {
		names = append(names, s.Name)
	}
	want := []string{"prepare", "prepared", "pause", "redirect", "run", "claim", "push detr2", "push detr1"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if last := m.report.Steps[7]; last.MS != 203.5 {
		t.Errorf("%+v", last)
	}
}

func TestMappingRowNamesItsRLOC(t *testing.T) {
	for _, c := range []struct {
		json string
		want bool
	}{
		{`{"eid":"198.51.100.10/32","locators":[{"rloc":"100.64.1.2"}]}`, true},
		{`{"eid":"198.51.100.10/32","locators":"100.64.1.2 1/100"}`, true},
		{`{"eid":"198.51.100.10/32","rlocs":["100.64.1.2"]}`, true},
		{`{"eid":"198.51.100.10/32","rloc":"100.64.1.2"}`, true},
		{`{"eid":"198.51.100.10/32","locators":"100.64.1.25"}`, false},
		{`{"eid":"198.51.100.10/32","locators":"10.100.64.1.2"}`, false},
		{`{"eid":"198.51.100.10/32"}`, false},
	} {
		var row mappingRow
		must(t, json.Unmarshal([]byte(c.json), &row))
		if row.at(netip.MustParseAddr("100.64.1.2")) != c.want {
			t.Errorf("%s: want %v", c.json, c.want)
		}
	}
}

func TestConfigFilesName(t *testing.T) {
	all, err := ConfigFiles("/run/x", false)
	must(t, err)
	if len(all) != len(nodes)+1 {
		t.Fatalf("%d files", len(all))
	}
	for host, text := range all {
		if !strings.Contains(text, "name: "+host+"\n") || strings.Contains(text, "<no value>") {
			t.Errorf("%s:\n%s", host, text)
		}
	}
	if x := all["hokuriku-hv1"]; strings.Contains(x, "api: {listen: \"2001") || !strings.Contains(x, `- {address: "2001:db8:100:7::2", key`) {
		t.Errorf("a host with an IPv6 RLOC registers over IPv6:\n%s", x)
	}
	if x := all["xsite-xtr"]; strings.Contains(x, "petrs") || strings.Contains(x, siteSecret) || strings.Contains(x, "100.64.7.2\", key") {
		t.Errorf("the other network knows the cloud's insides:\n%s", x)
	}
}

func TestBeyondTheBlackout(t *testing.T) {
	moves := make([]*MoveReport, 20)
	gaps := make([]float64, 20)
	for i := range moves {
		moves[i], gaps[i] = &MoveReport{BlackoutMS: 100}, 100+float64(20-i)
	}
	got := beyond(moves, []FlowReport{{Name: "udp", Gaps: gaps, Lost: 1, Duplicated: 2, Reordered: 3, Detoured: 4}, {Name: "has no gaps"}})
	want := []Beyond{{Flow: "udp", MedianMS: 10.5, P95MS: 19, MaxMS: 20, Lost: 1, Duplicated: 2, Reordered: 3, Detoured: 4}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r := &Report{Moves: moves[:2], GuestFaults: []string{"web: broken"}}
	if r.judge(); r.Pass || !strings.HasPrefix(r.Verdict, "VOID: after 2 moves") {
		t.Errorf("%+v", r)
	}
}
