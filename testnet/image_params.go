package testnet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// How QEMU has to emulate a guest under load. Guest and device write to memory that they share, and each reads what the
// other wrote to know whether to wake it. On one virtual CPU the emulator leaves out the barriers between the two, as
// if nobody else were there; but the devices are, in QEMU's main loop. Sooner or later both miss the other's write, nobody
// wakes anybody, and the card is dead: "NETDEV WATCHDOG: transmit queue 0 timed out" within seconds at 5,000 packets/s.
const (
	// GuestAccel and GuestCPUs, of -accel and -smp: that there might be a second CPU makes the emulator emit barriers.
	// libvirt: <vcpu current='1'>2</vcpu>.
	GuestAccel = "tcg,thread=multi,tb-size=64"
	GuestCPUs  = "1,maxcpus=2"
	// GuestVirtio, of every virtio device: a wake-up that is missed all the same is made up for by the next packet, and
	// not never. libvirt: <driver event_idx='off'/>.
	GuestVirtio = "event_idx=off"
)

// GuestNIC is how a guest configures one of its interfaces.
type GuestNIC struct {
	Addrs    []netip.Prefix // with the length of the on-link prefix
	Gateway4 netip.Addr     // zero: no default route
	Gateway6 netip.Addr     // may be link-local
}

// GuestParams is what a guest is told at boot.
type GuestParams struct {
	Name string     // its host name, without spaces
	NICs []GuestNIC // eth0, eth1...: in the order of the devices on the command line of QEMU
	// Dirty is how many MiB a second the guest writes to its memory, over and over, 0 = it does not. See also [Guest.Dirty].
	Dirty float64
	// Extra is added to the kernel command line.
	Extra []string
}

// GuestCmdline is the kernel command line for a guest of [GuestImage].
func GuestCmdline(p GuestParams) string {
	// init_on_free: what is free is zero, and not copied when the guest moves. tsc: an emulated one jumps; said
	// beforehand, the kernel does not measure it for a second.
	words := []string{"console=ttyS0", "quiet", "panic=-1", "tsc=unstable", "init_on_free=1", "net.ifnames=0"}
	if p.Name != "" {
		words = append(words, "tabi.name="+p.Name)
	}
	for i, n := range p.NICs {
		add := func(key, value string) { words = append(words, fmt.Sprintf("tabi.eth%d.%s=%s", i, key, value)) }
		var list []string
		for _, a := range n.Addrs {
			list = append(list, a.String())
		}
		if len(list) > 0 {
			add("addrs", strings.Join(list, ","))
		}
		if n.Gateway4.IsValid() {
			add("gw4", n.Gateway4.String())
		}
		if n.Gateway6.IsValid() {
			add("gw6", n.Gateway6.String())
		}
	}
	if p.Dirty > 0 {
		words = append(words, "tabi.dirty="+strconv.FormatFloat(p.Dirty, 'f', -1, 64))
	}
	return strings.Join(append(words, p.Extra...), " ")
}
