package gateway

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// QEMU without vhost reads one packet more from its TAP when the VM has stopped, finds that nobody takes it, and reads
// on only when the VM runs again. That packet is counted as sent, and the VM never gets it. Whether it has been read
// already shows when the TAP is given one more frame: it is read, or it is not.

// pokeTime is how long a frame may lie in the TAP before a main loop that waits for its files is known not to wait for
// that; pokeMost bounds how long a main loop is waited for that has no time.
const (
	pokeStep = 250 * time.Microsecond
	pokeTime = time.Millisecond
	pokeMost = 50 * time.Millisecond
)

// pokeType is the EtherType of IEEE 802 for local experiments: nobody listens to it.
const (
	pokeType = 0x88b5
	pokeLen  = 46
)

// reader is the process that reads a TAP.
type reader struct {
	pid    int
	fdinfo string // of the TAP
	ahead  bool   // it reads a packet more when its VM has stopped
}

// Arm looks who reads an interface, so that [Gateway.Delivered] is quick. Any goroutine may call it; it may take
// milliseconds.
func (g *Gateway) Arm(ifindex int) {
	if p := g.portAt(ifindex); p != nil {
		p.readBy(p.name)
	}
}

// Delivered returns how many packets of an interface the VM has got, now that it has stopped: those that were read,
// but for one that QEMU may hold back. It takes a millisecond or two, and longer on a busy host. Any goroutine may call it.
func (g *Gateway) Delivered(ifindex int) (uint64, error) {
	read, _, err := g.PortStats(ifindex)
	p := g.portAt(ifindex)
	if err != nil || p == nil || read == 0 {
		return read, err
	}
	by := p.readBy(p.name)
	if !by.ahead {
		return read, nil
	}
	if err := p.poke(); err != nil {
		return read, fmt.Errorf("gateway: interface %s: %w", p.name, err)
	}
	idle := 0
	for begin := time.Now(); time.Since(begin) < pokeMost; time.Sleep(pokeStep) {
		now, _, err := g.PortStats(ifindex)
		if err != nil {
			return read, err
		}
		if now > read {
			return read, nil // what it reads now it holds back
		}
		if !polls(by.pid) {
			idle = 0
		} else if idle++; idle > 1 && time.Since(begin) >= pokeTime {
			break
		}
	}
	return read - 1, nil
}

func (g *Gateway) portAt(ifindex int) *port {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ports[ifindex]
}

// readBy returns who reads the TAP called name; the zero reader if that is nobody who reads ahead. A name says nothing of
// its network namespace: of two, it is who is in ours.
func (p *port) readBy(name string) reader {
	if by := p.reader.Load(); by != nil && holds(by.fdinfo, name) {
		return *by
	}
	var by reader
	ours, _ := os.Readlink("/proc/self/ns/net")
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if path, err := os.Readlink(exe); err != nil || !strings.Contains(filepath.Base(path), "qemu") {
			continue
		}
		dir := filepath.Dir(exe)
		netns, _ := os.Readlink(filepath.Join(dir, "ns", "net"))
		if by.pid != 0 && netns != ours {
			continue
		}
		if found := readerIn(dir, name); found.pid != 0 {
			by = found
			if netns == ours {
				break
			}
		}
	}
	if by.pid != 0 {
		p.reader.Store(&by)
	}
	return by
}

// readerIn looks for a TAP among the files of a process of QEMU, given its directory in /proc.
func readerIn(dir, name string) (by reader) {
	fds, _ := filepath.Glob(filepath.Join(dir, "fd", "*"))
	vhost := false
	for _, fd := range fds {
		switch path, _ := os.Readlink(fd); path {
		case "/dev/vhost-net":
			vhost = true
		case "/dev/net/tun":
			if info := filepath.Join(dir, "fdinfo", filepath.Base(fd)); holds(info, name) {
				_, _ = fmt.Sscan(filepath.Base(dir), &by.pid) // it is a number, or pid stays 0
				by.fdinfo = info
			}
		}
	}
	by.ahead = by.pid != 0 && !vhost // vhost puts what it reads where the VM finds it at the target
	return by
}

// holds reports whether an open file, by its entry in fdinfo, is the TAP called name.
func holds(fdinfo, name string) bool {
	b, err := os.ReadFile(fdinfo)
	return err == nil && bytes.Contains(b, []byte("iff:\t"+name+"\n"))
}

// polls reports whether the main thread of a process waits for its files; not for a lock, behind which it would not
// read what has come.
func polls(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, pid))
	if err != nil {
		return false
	}
	var call int
	_, err = fmt.Fscan(bytes.NewReader(b), &call) // "running" is no number
	return err == nil && call >= 0 && call != unix.SYS_FUTEX
}

// poke puts a frame into the TAP that no guest takes. It passes by the egress hook: it is none of the packets that the
// data plane numbers.
func (p *port) poke() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", err)
	}
	own := mac(p.g.cfg.MAC)
	f := ether(own, own, pokeType, pokeLen)
	return os.NewSyscallError("sendto", unix.Sendto(fd, f[:cap(f)], 0, &unix.SockaddrLinklayer{Ifindex: p.index, Halen: 6}))
}
