package bench

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/testnet"
)

// tabiBinary builds the binary whose daemons the labs run.
func tabiBinary(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "tabi")
	if out, err := exec.Command("go", "build", "-o", exe, "../../tabi").CombinedOutput(); err != nil {
		t.Fatalf("build tabi: %v\n%s", err, out)
	}
	return exe
}

// What `tabi bench handover --quick` runs, with a VM that is there at once: every system carries a move, none loses
// anything without one, what is stretched loses what the old interface took, and ours loses nothing.
func TestHandoverLive(t *testing.T) {
	if m := testnet.MissingPrivilege() + testnet.MissingFRR(); m != "" {
		t.Fatal(m)
	}
	h, err := RunHandover(t.Context(), HandoverOptions{Systems: testnet.Ways, VM: testnet.VMNamespace, Rates: []int{1000}, Moves: 1,
		Downtimes: []time.Duration{300 * time.Millisecond}, BitRate: 4e6, Binary: tabiBinary(t), Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := h.Write(&out); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	if !h.Pass {
		t.Error(h.Verdict())
	}
	for _, r := range h.Settings[0].Rows {
		switch lost := r.Trials[0].Lost(); {
		case r.System != testnet.WayTabi && lost < 30:
			t.Errorf("%s lost %d in 75 ms at 1000 packets/s: its VM did not go dark", r.System, lost)
		case r.System == testnet.WayTabi && lost > 0:
			t.Errorf("%s lost %d", r.System, lost)
		}
	}
	runs, err := testnet.Runs()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if r.Owner.PID == os.Getpid() {
			t.Errorf("left behind: %s", r.Dir())
		}
	}
}
