package testnet

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Drop makes an interface lose every packet in both directions, or stop doing so. Nobody sees its carrier go: it
// is a partition as WANs have them, which only silence tells.
func (n *Namespace) Drop(dev string, drop bool) error {
	err := n.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		if !drop {
			return netlink.QdiscDel(clsact) // and its filters with it
		}
		if err := netlink.QdiscReplace(clsact); err != nil {
			return fmt.Errorf("clsact: %w", err)
		}
		prog, err := dropProgram()
		if err != nil {
			return fmt.Errorf("load program: %w", err)
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			f := &netlink.BpfFilter{Fd: prog, Name: "drop", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
				LinkIndex: l.Attrs().Index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL}}
			if err := netlink.FilterReplace(f); err != nil {
				return fmt.Errorf("filter: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("testnet: %s/%s: drop=%v: %w", n.name, dev, drop, err)
	}
	return nil
}

// dropProgram loads "return TC_ACT_SHOT" once for the process. Two instructions are not worth a loader.
var dropProgram = sync.OnceValues(func() (int, error) {
	const tcActShot = 2
	insns := [...]struct {
		code byte
		regs byte
		off  int16
		imm  int32
	}{
		{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, imm: tcActShot}, // r0 = 2
		{code: unix.BPF_JMP | unix.BPF_EXIT},
	}
	license := [...]byte{'A', 'p', 'a', 'c', 'h', 'e', 0}
	attr := struct {
		progType, insnCnt uint32
		insns, license    uint64
		_                 [96]byte
	}{unix.BPF_PROG_TYPE_SCHED_CLS, uint32(len(insns)), uint64(uintptr(unsafe.Pointer(&insns))),
		uint64(uintptr(unsafe.Pointer(&license))), [96]byte{}}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&insns)
	runtime.KeepAlive(&license)
	if errno != 0 {
		return 0, errno
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
})
