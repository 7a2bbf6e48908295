package testnet

import (
	"strings"
	"testing"
)

// A camp of two VMs with local disks moves over a slow link: each is out of service for its own copy only.
func TestSatellite(t *testing.T) {
	c := startCloud(t, Options{VM: VMCamp, Rate: 20, BitRate: 1e5})
	must(t, c.Flows.Close())
	r, err := c.Satellite(t.Context(), SatelliteOptions{VMs: 2, DiskKiB: 256})
	must(t, err)
	var b strings.Builder
	must(t, r.WriteText(&b))
	t.Log(b.String())
	if !r.Pass {
		t.Error(r.Verdict)
	}
	for _, v := range r.VMs {
		if v.OutSeconds == 0 || len(v.Out) != 1 {
			t.Errorf("%s was out of service %v", v.Name, v.Out)
		}
		if v.Version < 2 {
			t.Errorf("%s: version %d", v.Name, v.Version)
		}
	}
}
