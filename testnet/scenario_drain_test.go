package testnet

import (
	"strings"
	"testing"
	"time"
)

// A hypervisor with 100 VMs is drained onto two others: no packet is lost, and no EID is ever in two places. The demo's
// scenario has 200; the race detector makes of these a minute.
func TestDrain(t *testing.T) {
	c := startCloud(t, Options{Rate: 20, BitRate: 1e5})
	must(t, c.Flows.Close()) // the fleet has its own
	begin := time.Now()
	r, err := c.Drain(t.Context(), DrainOptions{VMs: 100, Rate: 5})
	must(t, err)
	t.Logf("the drain and what it needs took %v", time.Since(begin).Round(time.Second))
	var text strings.Builder
	must(t, r.WriteText(&text))
	t.Log(text.String())
	if !r.Pass {
		t.Error(r.Verdict)
	}
	if r.AtOnce < 2 {
		t.Errorf("at most %d moves were under way at once", r.AtOnce)
	}
	if r.WireFrames < r.Sent/2 {
		t.Errorf("%d packets were looked at on the wire, of %d sent", r.WireFrames, r.Sent)
	}
}
