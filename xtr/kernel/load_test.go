package kernel

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

// TestLoad: the kernel takes the programs as they are committed, and is far from its limit of a million
// instructions to look through.
func TestLoad(t *testing.T) {
	spec, err := loadTabi()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ebpf.NewCollection(spec)
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		t.Fatalf("%+v", refused)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, p := range c.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		looked, ok := info.VerifiedInstructions()
		t.Logf("%s: %d instructions, %d looked at", name, len(spec.Programs[name].Instructions), looked)
		if !ok || looked > 50_000 {
			t.Errorf("%s: the kernel looked at %d instructions", name, looked)
		}
	}
}
