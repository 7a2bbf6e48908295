package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// stats asks the kernel for the counters of interfaces, over one socket that stays open.
type stats struct {
	mu     sync.Mutex
	socket *nl.SocketHandle
}

// Of linux/if_link.h: struct if_stats_msg, and struct rtnl_link_stats64 up to what is read of it.
const (
	ifStatsLen     = 12
	ifStatsLink64  = 1 // IFLA_STATS_LINK_64, also its bit in the filter
	stats64Packets = 1 * 8
	stats64Dropped = 7 * 8
	stats64Len     = 8 * 8
)

// statsRequest is struct if_stats_msg.
type statsRequest [ifStatsLen]byte

func (s *statsRequest) Len() int          { return ifStatsLen }
func (s *statsRequest) Serialize() []byte { return s[:] }

// PortStats returns how many packets an interface has sent and how many it has dropped instead. A TAP
// counts a packet as sent when the VMM reads it. Any goroutine may call it.
func (g *Gateway) PortStats(ifindex int) (read, dropped uint64, err error) {
	read, dropped, err = g.stats.get(ifindex)
	if err != nil {
		return 0, 0, fmt.Errorf("gateway: statistics of interface %d: %w", ifindex, err)
	}
	return read, dropped, nil
}

func (s *stats) get(ifindex int) (sent, dropped uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket == nil {
		socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
		if err != nil {
			return 0, 0, err
		}
		// The kernel answers before the request returns; this is against waiting for ever.
		if err := socket.SetReceiveTimeout(&unix.Timeval{Sec: 1}); err != nil {
			socket.Close()
			return 0, 0, err
		}
		s.socket = &nl.SocketHandle{Socket: socket}
	}
	var msg statsRequest
	binary.NativeEndian.PutUint32(msg[4:], uint32(ifindex))
	binary.NativeEndian.PutUint32(msg[8:], 1<<(ifStatsLink64-1))
	req := nl.NewNetlinkRequest(unix.RTM_GETSTATS, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.socket}
	req.AddData(&msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWSTATS)
	if err != nil {
		if e := syscall.Errno(0); !errors.As(err, &e) || e == unix.EAGAIN {
			s.closeLocked() // a socket in an unknown state
		}
		return 0, 0, err
	}
	for _, m := range answers {
		if len(m) < ifStatsLen {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[ifStatsLen:])
		if err != nil {
			return 0, 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == ifStatsLink64 && len(a.Value) >= stats64Len {
				return binary.NativeEndian.Uint64(a.Value[stats64Packets:]), binary.NativeEndian.Uint64(a.Value[stats64Dropped:]), nil
			}
		}
	}
	return 0, 0, fmt.Errorf("no statistics in the answer")
}

func (s *stats) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked()
}

func (s *stats) closeLocked() {
	if s.socket != nil {
		s.socket.Close()
		s.socket = nil
	}
}
