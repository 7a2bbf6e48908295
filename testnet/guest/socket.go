package main

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// Constants of Linux that package syscall does not have.
const (
	sysSendmmsg = 307 // amd64

	soRxqOvfl      = 40
	ipv6RecvHopLim = 51
	ipv6HopLimit   = 52
	ipv6ICMPFilter = 1 // of level IPPROTO_ICMPV6: a bit set is a type blocked
	icmpFilter     = 1 // of level SOL_RAW: likewise
	solRaw         = 255
)

// socketBuffer is the receive buffer in bytes of a socket, as much as init allows: seconds of packets.
const socketBuffer = 16 << 20

// socket is a datagram socket that never blocks.
type socket struct{ fd int }

// openSocket opens a UDP socket, or a raw one for echo replies, from conf.Local to conf.Remote.
func openSocket(conf stream.End) (_ *socket, err error) {
	v4 := conf.Local.Addr().Is4()
	family, kind, proto := syscall.AF_INET6, syscall.SOCK_DGRAM, 0
	if v4 {
		family = syscall.AF_INET
	}
	if conf.Kind == stream.EndPing {
		kind, proto = syscall.SOCK_RAW, syscall.IPPROTO_ICMPV6
		if v4 {
			proto = syscall.IPPROTO_ICMP
		}
	}
	fd, err := syscall.Socket(family, kind|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &socket{fd}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	options := [][3]int{
		{syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, socketBuffer},
		{syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, socketBuffer},
		{syscall.SOL_SOCKET, soRxqOvfl, 1},
	}
	switch {
	case kind == syscall.SOCK_RAW && v4:
		options = append(options, [3]int{solRaw, icmpFilter, ^1})
	case kind == syscall.SOCK_RAW:
		filter := [8]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}
		filter[129/32] &^= 1 << (129 % 32)
		if err := setsockopt(fd, syscall.IPPROTO_ICMPV6, ipv6ICMPFilter, unsafe.Pointer(&filter), unsafe.Sizeof(filter)); err != nil {
			return nil, err
		}
	case v4:
		options = append(options, [3]int{syscall.IPPROTO_IP, syscall.IP_RECVTTL, 1})
	default:
		options = append(options, [3]int{syscall.IPPROTO_IPV6, ipv6RecvHopLim, 1})
	}
	for _, o := range options {
		if err := syscall.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	port := int(conf.Local.Port())
	remote := int(conf.Remote.Port())
	if kind == syscall.SOCK_RAW {
		port, remote = 0, 0
	}
	if err := syscall.Bind(fd, sockaddr(conf.Local.Addr().AsSlice(), port)); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	// Connected: the way is looked up once, and what others send is not ours to count.
	if err := syscall.Connect(fd, sockaddr(conf.Remote.Addr().AsSlice(), remote)); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return s, nil
}

func setsockopt(fd, level, name int, value unsafe.Pointer, length uintptr) error {
	if _, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(value), length, 0); errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

func sockaddr(ip []byte, port int) syscall.Sockaddr {
	if len(ip) == 4 {
		return &syscall.SockaddrInet4{Port: port, Addr: [4]byte(ip)}
	}
	return &syscall.SockaddrInet6{Port: port, Addr: [16]byte(ip)}
}

func (s *socket) close() { _ = syscall.Close(s.fd) }

// maxPacket is the longest payload in bytes.
const maxPacket = 9216

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr syscall.Msghdr
	n   uint32
	_   [4]byte
}

// batches are the buffers of recvmmsg and sendmmsg: one set, for one goroutine.
type batches struct {
	in, out   [batch]mmsghdr
	inVec     [batch]syscall.Iovec
	outVec    [batch]syscall.Iovec
	inBuf     [batch][2048]byte
	outBuf    [batch][maxPacket]byte
	ancillary [batch][128]byte
	used      int // of in, by the last call
}

func newBatches() *batches {
	b := &batches{used: batch}
	for i := range batch {
		b.inVec[i].Base = &b.inBuf[i][0]
		b.in[i].hdr.Iov, b.in[i].hdr.Iovlen = &b.inVec[i], 1
		b.outVec[i].Base = &b.outBuf[i][0]
		b.out[i].hdr.Iov, b.out[i].hdr.Iovlen = &b.outVec[i], 1
	}
	return b
}

// receive reads what the socket holds, up to a batch. Errors are of earlier packets, which will be missing.
func (b *batches) receive(s *socket) int {
	for i := range b.used { // the kernel has written to these only
		b.inVec[i].SetLen(len(b.inBuf[i]))
		b.in[i].hdr.Control = &b.ancillary[i][0]
		b.in[i].hdr.SetControllen(len(b.ancillary[i]))
	}
	b.used = 0
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&b.in[0])), batch, syscall.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.used = int(n)
			return b.used
		case syscall.EAGAIN:
			return 0
		case syscall.EBADF, syscall.EFAULT, syscall.EINVAL, syscall.ENOTSOCK:
			panic("recvmmsg: " + errno.Error())
		}
	}
}

// packet is the i-th packet that was received: its payload, what was left of its TTL (0 = unknown), the socket's drops.
func (b *batches) packet(i int) (payload []byte, hops uint8, drops uint32) {
	m := &b.in[i]
	hops, drops = ancillary(b.ancillary[i][:m.hdr.Controllen])
	return b.inBuf[i][:min(int(m.n), len(b.inBuf[i]))], hops, drops
}

// ancillary reads control messages.
func ancillary(oob []byte) (hops uint8, drops uint32) {
	for len(oob) >= syscall.SizeofCmsghdr {
		h := (*syscall.Cmsghdr)(unsafe.Pointer(&oob[0]))
		l := int(h.Len)
		if l < syscall.SizeofCmsghdr || l > len(oob) {
			break
		}
		if data := oob[syscall.CmsgLen(0):l]; len(data) >= 4 {
			v := *(*uint32)(unsafe.Pointer(&data[0]))
			switch {
			case h.Level == syscall.SOL_SOCKET && h.Type == soRxqOvfl:
				drops = v
			case h.Level == syscall.IPPROTO_IP && h.Type == syscall.IP_TTL, h.Level == syscall.IPPROTO_IPV6 && h.Type == ipv6HopLimit:
				hops = uint8(v)
			}
		}
		oob = oob[min(syscall.CmsgSpace(l-syscall.CmsgLen(0)), len(oob)):]
	}
	return hops, drops
}

// fill is the buffer of the i-th packet to send, of that length.
func (b *batches) fill(i, length int) []byte {
	length = min(length, maxPacket)
	b.outVec[i].SetLen(length)
	return b.outBuf[i][:length]
}

// send sends the first n packets, and says how many the kernel did not take, and why.
func (b *batches) send(s *socket, n int) (failed int, last error) {
	again := false
	for i := 0; i < n; {
		sent, _, errno := syscall.RawSyscall6(sysSendmmsg, uintptr(s.fd), uintptr(unsafe.Pointer(&b.out[i])), uintptr(n-i), syscall.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			i, again = i+int(sent), false
			continue
		}
		// A connected socket tells once of an ICMP error that an earlier packet met; this one was not tried.
		if !again && !errors.Is(errno, syscall.EAGAIN) {
			again = true
			continue
		}
		last, again = os.NewSyscallError("sendmmsg", errno), false
		failed++
		i++
	}
	runtime.KeepAlive(b)
	return failed, last
}
