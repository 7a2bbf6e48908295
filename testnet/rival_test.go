package testnet

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// startLab starts a lab with a namespace VM.
func startLab(t *testing.T, w Way) *Lab {
	t.Helper()
	exe, err := tabi()
	must(t, err)
	l, err := StartLab(t.Context(), LabOptions{Way: w, Binary: exe, ID: fmt.Sprintf("tt%d-%d", os.Getpid(), runs.Add(1)), Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logTails(t, l.cloud)
		}
		must(t, l.Close())
	})
	return l
}

// A lab carries moves to and fro, and loses nothing while nothing moves. What is stretched loses what the old tap took
// after the stop; ours loses nothing. All ways are run by package bench.
func TestLab(t *testing.T) {
	for _, w := range []Way{WayFlood, WayTabi} {
		t.Run(string(w), func(t *testing.T) {
			l := startLab(t, w)
			trial := Trial{Rate: testRate, BitRate: 2e6}
			trial.Still = true
			still, err := l.Run(t.Context(), trial)
			must(t, err)
			t.Logf("still: %+v", still)
			if still.Lost() > 0 || still.Sent == 0 || !still.Intact || len(still.Flaws) > 0 {
				t.Errorf("without a move: %+v", still)
			}
			trial.Still = false
			for i, want := range []string{labHV2, labHV1} {
				r, err := l.Run(t.Context(), trial)
				must(t, err)
				t.Logf("moved: %+v", r)
				if l.Where() != want {
					t.Errorf("move %d: the VM is at %s", i, l.Where())
				}
				if r.BlackoutMS < 75 || r.GapMS < r.BlackoutMS-10 {
					t.Errorf("move %d: gap of %.1f ms in a blackout of %.1f", i, r.GapMS, r.BlackoutMS)
				}
				if !r.Intact || len(r.Flaws) > 0 || r.Duplicated > 0 {
					t.Errorf("move %d: %+v", i, r)
				}
				if lost := r.Lost() > 0; lost == (w == WayTabi) {
					t.Errorf("move %d: lost %d", i, r.Lost())
				}
			}
		})
	}
}

func TestEVPNConfig(t *testing.T) {
	got, err := evpnConfig("zebra", labHV1, true, "/x/zebra.log")
	must(t, err)
	if !strings.Contains(got, "\nzebra work-queue 0\n") {
		t.Errorf("tuned zebra:\n%s", got)
	}
	got, err = evpnConfig("zebra", labHV1, false, "/x/zebra.log")
	must(t, err)
	if strings.Contains(got, "work-queue") {
		t.Errorf("untuned zebra:\n%s", got)
	}
	got, err = evpnConfig("bgpd", labHV2, false, "/x/bgpd.log")
	must(t, err)
	want := `hostname hv2
log file /x/bgpd.log
router bgp 64512
 bgp router-id 100.64.2.2
 no bgp default ipv4-unicast
 neighbor 100.64.1.2 remote-as 64512
 neighbor 100.64.1.2 update-source 100.64.2.2
 neighbor 100.64.1.2 timers connect 1
 neighbor 100.64.3.2 remote-as 64512
 neighbor 100.64.3.2 update-source 100.64.2.2
 neighbor 100.64.3.2 timers connect 1
 address-family l2vpn evpn
  neighbor 100.64.1.2 activate
  neighbor 100.64.3.2 activate
  advertise-all-vni
 exit-address-family
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("bgpd of hv2 (-want +got):\n%s", d)
	}
}

func TestEVPNVTEPs(t *testing.T) {
	for _, c := range []struct {
		answer string
		want   int
		bad    bool
	}{
		{`{"vni":100,"type":"L2","numRemoteVteps":[{"ip":"100.64.1.2","flood":"HER"},{"ip":"100.64.3.2","flood":"HER"}]}`, 2, false},
		{`{"vni":100,"numRemoteVteps":1}`, 1, false},
		{`{"vni":100}`, 0, false},
		{`{}`, 0, false},
		{``, 0, false},
		{`% VNI 100 does not exist`, 0, true},
	} {
		got, err := evpnVTEPs([]byte(c.answer))
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: %d, %v", c.answer, got, err)
		}
	}
}

func TestTrialTake(t *testing.T) {
	no := false
	var r TrialResult
	r.take([]FlowReport{
		{Name: trialUDPTo, Sent: 10, Lost: 2, GapMaxMS: 7, Reordered: 1},
		{Name: trialUDPFrom, Sent: 11, Lost: 1, GapMaxMS: 9, TesterDrops: 4, Incomplete: "gone"},
		{Name: trialTCPFrom, Intact: &no, GapMaxMS: 12, LastError: "send: broken"},
	})
	want := TrialResult{Sent: 21, LostTo: 2, LostFrom: 1, Reordered: 1, GapMS: 9, StallMS: 12, Flaws: []string{
		"udp-from-vm: the tester's own socket dropped 4 packets", "udp-from-vm: not all counts are known: gone", "tcp-from-vm: nothing was sent send: broken"}}
	if d := cmp.Diff(want, r); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A way that is not there is said, with those that are.
func TestLabUnknownWay(t *testing.T) {
	_, err := StartLab(t.Context(), LabOptions{Way: "carrier-pigeon"})
	if err == nil || !strings.Contains(err.Error(), string(WayFlood)) {
		t.Errorf("%v", err)
	}
}
