package testnet

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// shapeQueue is how long a packet waits at most in front of a shaped link; what does not fit is dropped.
const shapeQueue = 200 * time.Millisecond

// shapedTCP is how many bytes a TCP connection of a host behind a shaped link has under way: with the usual megabytes a
// copy of memory would fill the queue by itself, what is sent beside it would be lost there, and QEMU would take for
// sent what is in its own buffers.
const shapedTCP = "4096 16384 65536"

// Shape lets an interface send at most so many bits a second, with a token bucket. The other direction is the other
// end's.
func (n *Namespace) Shape(dev string, bitRate uint64) error {
	if bitRate < 8000 {
		return fmt.Errorf("testnet: %s/%s: %d bits a second are no link", n.name, dev, bitRate)
	}
	bytes := bitRate / 8
	err := n.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		index := l.Attrs().Index
		bucket := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate: bytes, Limit: uint32(float64(bytes) * shapeQueue.Seconds()), Buffer: shapeBurst(bytes)}
		// The queue that links come with has the same handle, and is of another kind.
		old := &netlink.GenericQdisc{QdiscType: "pfifo", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}}
		return errors.Join(netlink.QdiscDel(old), netlink.QdiscAdd(bucket))
	})
	if err != nil {
		return fmt.Errorf("testnet: shape %s/%s: %w", n.name, dev, err)
	}
	return nil
}

// shapeBurst is the time in ticks of the kernel's packet scheduler that the bucket takes to fill: 10 ms of the rate,
// and a super-packet at least.
func shapeBurst(bytesPerSecond uint64) uint32 {
	burst := max(bytesPerSecond/100, 1<<16)
	return netlink.Xmittime(bytesPerSecond, uint32(burst))
}
