package gateway

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
)

// filter returns the socket filter of a VM interface: ARP, RARP, Neighbor Discovery, and echo requests
// to the gateway's own addresses. Whatever is shorter than what is looked at does not match.
func filter(own []netip.Addr) ([]bpf.RawInstruction, error) {
	const (
		nextHeader, dst6, type6 = etherLen + 6, etherLen + 24, etherLen + 40
		frag4, proto4, dst4     = etherLen + 6, etherLen + 9, etherLen + 16
	)
	accept, reject := bpf.RetConstant{Val: 0xffff}, bpf.RetConstant{Val: 0}

	v6 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: nextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMP6, SkipTrue: 1},
		reject,
		bpf.LoadAbsolute{Off: type6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: icmp6RS, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: icmp6NA, SkipTrue: 1},
		accept,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp6Echo, SkipTrue: 1},
		reject,
	}
	v4 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: proto4, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMP, SkipTrue: 1},
		reject,
		bpf.LoadAbsolute{Off: frag4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x3fff, SkipTrue: 1},
		reject,
		bpf.LoadMemShift{Off: etherLen},
		bpf.LoadIndirect{Off: etherLen, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpEcho, SkipTrue: 1},
		reject,
		bpf.LoadAbsolute{Off: dst4, Size: 4},
	}
	for _, a := range own {
		b := a.AsSlice()
		if a.Is4() {
			v4 = append(v4, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b), SkipFalse: 1}, accept)
			continue
		}
		for i := uint32(0); i < 16; i += 4 {
			v6 = append(v6, bpf.LoadAbsolute{Off: dst6 + i, Size: 4},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[i:]), SkipTrue: uint8(7 - i/2)})
		}
		v6 = append(v6, accept)
	}
	v6, v4 = append(v6, reject), append(v4, reject)

	all := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP, SkipFalse: 1},
		accept,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherRARP, SkipFalse: 1},
		accept,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIP4, SkipFalse: 1},
		bpf.Jump{Skip: uint32(2 + len(v6))},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIP6, SkipTrue: 1},
		reject,
	}
	raw, err := bpf.Assemble(append(append(all, v6...), v4...))
	if err != nil {
		return nil, fmt.Errorf("gateway: filter: %w", err)
	}
	return raw, nil
}
