package testnet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// packetSocket sees every frame of a namespace, or of one interface in it, in both directions.
type packetSocket struct {
	file *os.File
	conn syscall.RawConn
}

// openPacketSocket opens one; dev "" = all interfaces, also those that come later.
func openPacketSocket(n *Namespace, dev string) (*packetSocket, error) {
	s := new(packetSocket)
	err := n.Do(func() error {
		addr := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}
		if dev != "" {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			addr.Ifindex = l.Attrs().Index
		}
		// Protocol 0: nothing is queued before the socket is bound to what it is for.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		s.file = os.NewFile(uintptr(fd), "packet")
		if s.conn, err = s.file.SyscallConn(); err != nil {
			return err
		}
		if err := tuneSocket(s.conn); err != nil {
			return err
		}
		return os.NewSyscallError("bind", unix.Bind(fd, addr))
	})
	if err != nil {
		if s.file != nil {
			_ = s.file.Close()
		}
		return nil, fmt.Errorf("testnet: %s: packet socket: %w", n.name, err)
	}
	return s, nil
}

// receive calls f for each frame until the socket is closed; f must not keep the bytes.
func (s *packetSocket) receive(f func(frame []byte, from *unix.SockaddrLinklayer, atNS int64)) error {
	buf, oob := make([]byte, maxFrame), make([]byte, 128)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		ctlErr := s.conn.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		if ctlErr != nil {
			return ctlErr
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && err == nil {
			at := ancillary(oob[:oobn]).atNS
			f(buf[:n], ll, at)
		}
	}
}

// drops is how many frames the socket could not hold since it was asked last.
func (s *packetSocket) drops() (n uint64) {
	_ = s.conn.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			n = uint64(st.Drops)
		}
	})
	return n
}

func (s *packetSocket) close() error { return s.file.Close() }

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Capture writes every frame of a namespace to a pcapng file, an interface of the file for each of the namespace's.
type Capture struct {
	ns    *Namespace
	sock  *packetSocket
	file  *os.File
	buf   *bufio.Writer
	w     *pcapgo.NgWriter
	done  chan struct{}
	ids   map[int]int // ifindex -> interface of the file
	count atomic.Uint64
	err   error
}

// StartCapture begins a capture of a namespace into dir/NAME.pcapng.
func StartCapture(n *Namespace, dir, name string) (*Capture, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("testnet: capture: %w", err)
	}
	f, err := os.Create(filepath.Join(dir, name+".pcapng"))
	if err != nil {
		return nil, fmt.Errorf("testnet: capture: %w", err)
	}
	c := &Capture{ns: n, file: f, buf: bufio.NewWriterSize(f, 1<<20), done: make(chan struct{}), ids: make(map[int]int)}
	first := pcapgo.NgInterface{Name: "lo", LinkType: layers.LinkTypeEthernet, OS: runtime.GOOS, TimestampResolution: 9, SnapLength: maxFrame}
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{OS: runtime.GOOS, Application: "tabi", Comment: name}}
	if c.w, err = pcapgo.NewNgWriterInterface(c.buf, first, options); err == nil {
		c.ids[1] = 0 // the loopback of every namespace
		c.sock, err = openPacketSocket(n, "")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: capture: %w", err), f.Close())
	}
	go func() {
		defer close(c.done)
		_ = c.sock.receive(c.write)
	}()
	return c, nil
}

func (c *Capture) write(frame []byte, from *unix.SockaddrLinklayer, atNS int64) {
	if c.err != nil {
		return
	}
	id, ok := c.ids[from.Ifindex]
	if !ok {
		intf := pcapgo.NgInterface{Name: c.nameOf(from.Ifindex), LinkType: layers.LinkTypeEthernet, OS: runtime.GOOS, TimestampResolution: 9, SnapLength: maxFrame}
		if id, c.err = c.w.AddInterface(intf); c.err != nil {
			return
		}
		c.ids[from.Ifindex] = id
	}
	c.count.Add(1)
	c.err = c.w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(0, atNS), CaptureLength: len(frame),
		Length: len(frame), InterfaceIndex: id}, frame)
}

func (c *Capture) nameOf(ifindex int) (name string) {
	name = fmt.Sprintf("if%d", ifindex)
	_ = c.ns.Do(func() error {
		i, err := net.InterfaceByIndex(ifindex)
		if err == nil {
			name = i.Name
		}
		return err
	})
	return name
}

// Stop ends the capture and returns how many frames it has and how many it could not take.
func (c *Capture) Stop() (frames, dropped uint64, err error) {
	dropped = c.sock.drops()
	err = c.sock.close()
	<-c.done
	err = errors.Join(err, c.err, c.w.Flush(), c.buf.Flush(), c.file.Close())
	if err != nil {
		err = fmt.Errorf("testnet: capture: %w", err)
	}
	return c.count.Load(), dropped, err
}
