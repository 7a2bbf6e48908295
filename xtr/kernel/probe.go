package kernel

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Probe says whether this kernel takes what the data plane is made of: a program at the TC hooks, the
// helpers that it cannot do without, and the kinds of maps. It leaves nothing behind.
func Probe() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("kernel: load a program: %w", err)
	}
	p.Close()
	for _, t := range []ebpf.MapType{ebpf.LPMTrie, ebpf.PerCPUArray, ebpf.LRUHash, ebpf.RingBuf} {
		if err := features.HaveMapType(t); err != nil {
			return fmt.Errorf("kernel: %s map: %w", t, err)
		}
	}
	for _, h := range []asm.BuiltinFunc{asm.FnSkbAdjustRoom, asm.FnRedirectNeigh, asm.FnCloneRedirect} {
		if err := features.HaveProgramHelper(ebpf.SchedCLS, h); err != nil {
			return fmt.Errorf("kernel: %s: %w", h, err)
		}
	}
	return nil
}
