package testnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vnetHdrLen is the length in bytes of struct virtio_net_hdr before each frame.
const vnetHdrLen = 10

// maxFrame is the longest read from a tap: the header, Ethernet with a VLAN tag, a 64 KiB super-packet.
const maxFrame = vnetHdrLen + 18 + 65535

// tap is a TAP interface with its queue open: frames with a virtio_net_hdr, checksum and TCP segmentation
// offloads on, as QEMU opens it. The interface is gone when it is closed.
type tap struct {
	file *os.File
	conn syscall.RawConn
}

// openTap makes a TAP interface in a namespace and sets it up. mac nil: the kernel chooses. queue is the length
// in packets of what the interface holds while nobody reads, 0 = the kernel's default (1000; libvirt's as well).
func openTap(n *Namespace, name string, mac net.HardwareAddr, queue int) (*tap, error) {
	var t *tap
	err := n.Do(func() error {
		if err := writeSysctl("net/ipv6/conf/default/accept_dad", "0"); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		if err := configureTap(fd, name, mac, queue); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		// Only now: a queue that belongs to no interface yet cannot be polled.
		f := os.NewFile(uintptr(fd), name)
		conn, err := f.SyscallConn()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		t = &tap{file: f, conn: conn}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("testnet: tap %s/%s: %w", n.name, name, err)
	}
	return t, nil
}

func configureTap(fd int, name string, mac net.HardwareAddr, queue int) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	hdr := int32(vnetHdrLen)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETVNETHDRSZ, uintptr(unsafe.Pointer(&hdr))); errno != 0 {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", errno)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if mac != nil {
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("MAC: %w", err)
		}
	}
	if queue > 0 {
		if err := netlink.LinkSetTxQLen(l, queue); err != nil {
			return fmt.Errorf("queue: %w", err)
		}
	}
	return netlink.LinkSetUp(l)
}

// write gives a frame (with its header) to the host's stack. The kernel takes it whole or not at all.
func (t *tap) write(frame []byte) error {
	var err error
	ctlErr := t.conn.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), frame)
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(ctlErr, err)
}

func (t *tap) close() error { return t.file.Close() }
