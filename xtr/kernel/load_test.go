package kernel

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

func TestLoad(t *testing.T) {
	spec, err := loadTabi()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		t.Log(name, len(p.Instructions))
	}
	c, err := ebpf.NewCollection(spec)
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		t.Fatalf("%+v", ve)
	}
	if err != nil {
		t.Fatal(err)
	}
	for n, p := range c.Programs {
		i, _ := p.Info()
		js, _ := i.JitedSize()
		vi, _ := i.VerifiedInstructions()
		t.Log(n, i.Tag, js, vi)
	}
	c.Close()
}
