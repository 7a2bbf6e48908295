package testnet

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// wireWitness looks at the LISP data packets that the Internet router forwards.
type wireWitness struct {
	trails wireTrails // its own goroutine's until it has stopped
	sock   *packetSocket
	done   chan struct{}
	once   sync.Once

	frames, missed uint64
	err            error
}

// watchWire begins to look at the packets that come from some EIDs and go to them.
func watchWire(c *Cloud, eids []netip.Addr) (*wireWitness, error) {
	w := &wireWitness{done: make(chan struct{})}
	gates := map[netip.Addr]string{}
	for _, n := range nodesOf("detr", inCloud) {
		for _, a := range n.rlocList() {
			gates[a] = n.name
		}
	}
	which := map[netip.Addr]bool{}
	for _, e := range eids {
		which[e] = true
	}
	w.trails = wireTrails{speaks: map[netip.Addr]*trail{}, sent: map[sentTo]*trail{}, which: which, gates: gates}
	var err error
	if w.sock, err = openPacketSocket(c.hosts[hostInet].ns, ""); err != nil {
		return nil, err
	}
	if err := w.sock.onlyLISPData(); err != nil {
		return nil, errors.Join(err, w.sock.close())
	}
	go func() {
		defer close(w.done)
		_ = w.sock.receive(func(frame []byte, from *unix.SockaddrLinklayer, atNS int64) {
			if from.Pkttype == unix.PACKET_OUTGOING {
				return
			}
			if p, ok := parseLISPData(frame); ok {
				w.frames++
				w.trails.packet(p, time.Unix(0, atNS))
			}
		})
	}()
	return w, nil
}

// stop ends the looking, and says how many packets were seen and how many could not be looked at.
func (w *wireWitness) stop() (frames, missed uint64, err error) {
	w.once.Do(func() {
		w.missed = w.sock.drops()
		w.err = w.sock.close()
		<-w.done
	})
	return w.frames, w.missed, w.err
}

// onlyLISPData makes the socket give the first bytes of LISP data packets that come in, and nothing else.
func (s *packetSocket) onlyLISPData() error {
	const snap = 160 // bytes: Ethernet, IPv6, UDP, LISP, IPv6
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	const ldh, ldb = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	program := []unix.SockFilter{
		stmt(ldh, 12),
		jump(unix.ETH_P_IPV6, 5, 0),
		jump(unix.ETH_P_IP, 0, 9), // else: no
		stmt(ldb, 23),
		jump(unix.IPPROTO_UDP, 0, 7),
		stmt(ldh, 36),
		jump(lispDataPort, 4, 5),
		stmt(ldb, 20), // IPv6
		jump(unix.IPPROTO_UDP, 0, 3),
		stmt(ldh, 56),
		jump(lispDataPort, 0, 1),
		stmt(unix.BPF_RET|unix.BPF_K, snap),
		stmt(unix.BPF_RET|unix.BPF_K, 0),
	}
	var err error
	ctlErr := s.conn.Control(func(fd uintptr) {
		const ignoreOutgoing = 23 // PACKET_IGNORE_OUTGOING
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_PACKET, ignoreOutgoing, 1),
			unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
	})
	if err := errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("testnet: filter of LISP data: %w", err)
	}
	return nil
}
