// Package simnet is a network in memory: sockets for datagrams between addresses, with delay, loss,
// duplication and partitions. It tells the time by package time, so that in a bubble of testing/synctest
// it runs in virtual time.
package simnet

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// Path says what happens to datagrams from one address to another. The zero Path delivers at once.
type Path struct {
	Delay     time.Duration // one way
	Jitter    time.Duration // up to that much more, at random: datagrams may overtake each other
	Loss      float64       // probability that a datagram is lost, 0..1
	Duplicate float64       // probability that a datagram arrives twice, 0..1
}

// Fate is what became of a datagram.
type Fate string

// The fates of a datagram.
const (
	Delivered   Fate = "delivered"
	Lost        Fate = "lost"        // by [Path.Loss]
	Partitioned Fate = "partitioned" // by [Network.Partition]
	Unreachable Fate = "unreachable" // nobody listens there
	Overflowed  Fate = "overflowed"  // the receiver did not read
)

// Datagram is what [Network.Watch] shows.
type Datagram struct {
	At       time.Time // of its fate
	From, To netip.AddrPort
	Payload  []byte // not to be changed or kept
	Fate     Fate
}

// Network joins the sockets that [Network.Listen] opens. Its methods may be called from any goroutine.
type Network struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	conns   map[netip.AddrPort]*Conn
	paths   map[[2]netip.Addr]Path
	path    Path
	group   map[netip.Addr]int // of a partition; absent = 0
	watch   func(Datagram)
	port    uint16 // last that was given to a Listen at port 0
	ordinal uint64
}

// New makes a Network whose loss and jitter are drawn from seed.
func New(seed uint64) *Network {
	return &Network{
		rnd:   rand.New(rand.NewPCG(seed, 0x7461_6269)),
		conns: make(map[netip.AddrPort]*Conn),
		paths: make(map[[2]netip.Addr]Path),
		port:  firstPort,
	}
}

// firstPort is the first of the dynamic ports.
const firstPort = 49152

// SetPath sets the path between all addresses that [Network.SetPathBetween] does not speak of.
func (n *Network) SetPath(p Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.path = p
}

// SetPathBetween sets the path between two addresses, in both directions.
func (n *Network) SetPathBetween(a, b netip.Addr, p Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paths[[2]netip.Addr{a, b}] = p
	n.paths[[2]netip.Addr{b, a}] = p
}

// Partition lets addresses reach only those of their own group; those in none form one more group. It
// replaces the last partition. A datagram that is under way when it would arrive in another group is lost.
func (n *Network) Partition(groups ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group = make(map[netip.Addr]int)
	for i, g := range groups {
		for _, a := range g {
			n.group[a] = i + 1
		}
	}
}

// Heal ends the partition.
func (n *Network) Heal() { n.Partition() }

// Watch calls f with every datagram and its fate, one at a time; nil ends it. f calls nothing of this
// Network.
func (n *Network) Watch(f func(Datagram)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watch = f
}

// Listen opens a socket. Port 0 is replaced by a free one.
func (n *Network) Listen(a netip.AddrPort) (*Conn, error) {
	a = unmap(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !a.Addr().IsValid() {
		return nil, fmt.Errorf("simnet: listen: no address")
	}
	for try := 0; a.Port() == 0; try++ {
		if n.port = max(n.port+1, firstPort); n.conns[netip.AddrPortFrom(a.Addr(), n.port)] == nil {
			a = netip.AddrPortFrom(a.Addr(), n.port)
		} else if try > 1<<16 {
			return nil, fmt.Errorf("simnet: listen at %v: no free port", a)
		}
	}
	if n.conns[a] != nil {
		return nil, fmt.Errorf("simnet: listen at %v: address in use", a)
	}
	c := &Conn{net: n, local: a, wake: make(chan struct{}, 1), closed: make(chan struct{}), redo: make(chan struct{})}
	n.conns[a] = c
	return c, nil
}

// send decides the fate of a datagram. The payload is the network's.
func (n *Network) send(d Datagram) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.paths[[2]netip.Addr{d.From.Addr(), d.To.Addr()}]
	if !ok {
		p = n.path
	}
	if n.rnd.Float64() < p.Loss {
		n.fate(d, Lost)
		return
	}
	copies := 1
	if n.rnd.Float64() < p.Duplicate {
		copies = 2
	}
	for range copies {
		delay := p.Delay
		if p.Jitter > 0 {
			delay += time.Duration(n.rnd.Int64N(int64(p.Jitter) + 1))
		}
		if delay <= 0 {
			n.arrive(d)
			continue
		}
		c := n.conns[d.To]
		if c == nil {
			n.fate(d, Unreachable)
			continue
		}
		n.ordinal++
		heap.Push(&c.flying, flight{at: time.Now().Add(delay), ordinal: n.ordinal, d: d})
		time.AfterFunc(delay, c.land)
	}
}

// arrive gives d to its receiver. The caller holds n.mu.
func (n *Network) arrive(d Datagram) {
	c := n.conns[d.To]
	switch {
	case n.group[d.From.Addr()] != n.group[d.To.Addr()]:
		n.fate(d, Partitioned)
	case c == nil:
		n.fate(d, Unreachable)
	case len(c.queue) >= queueLen:
		n.fate(d, Overflowed)
	default:
		c.queue = append(c.queue, d)
		c.signal()
		n.fate(d, Delivered)
	}
}

// queueLen is how many datagrams a socket holds for its reader.
const queueLen = 4096

func (n *Network) fate(d Datagram, f Fate) {
	if n.watch != nil {
		d.At, d.Fate = time.Now(), f
		n.watch(d)
	}
}

// flight is a datagram under way.
type flight struct {
	at      time.Time
	ordinal uint64
	d       Datagram
}

// flights is a heap, the next to arrive first; those of one moment in the order they were sent.
type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return cmp.Or(f[i].at.Compare(f[j].at), cmp.Compare(f[i].ordinal, f[j].ordinal)) < 0
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := len(*f) - 1
	x := (*f)[last]
	*f = slices.Delete(*f, last, last+1)
	return x
}

// Conn is one socket, a [net.PacketConn]. Addresses are of type *[net.UDPAddr].
type Conn struct {
	net    *Network
	local  netip.AddrPort
	wake   chan struct{} // holds a token when queue may not be empty
	closed chan struct{}

	// Guarded by net.mu.
	queue    []Datagram
	flying   flights
	deadline time.Time
	redo     chan struct{} // closed when deadline changes
}

var _ net.PacketConn = (*Conn)(nil)

// land receives what is due.
func (c *Conn) land() {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	now := time.Now()
	for len(c.flying) > 0 && !c.flying[0].at.After(now) {
		c.net.arrive(heap.Pop(&c.flying).(flight).d)
	}
}

func (c *Conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ReadFrom waits for a datagram. What does not fit into b is lost, as with UDP.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		d, ok, deadline, redo, err := c.next()
		if err != nil {
			return 0, nil, c.opError("read", err)
		}
		if ok {
			return copy(b, d.Payload), net.UDPAddrFromAddrPort(d.From), nil
		}
		if err := c.wait(deadline, redo); err != nil {
			return 0, nil, c.opError("read", err)
		}
	}
}

// next takes a datagram from the queue, if one is there.
func (c *Conn) next() (d Datagram, ok bool, deadline time.Time, redo chan struct{}, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	select {
	case <-c.closed:
		return d, false, deadline, nil, net.ErrClosed
	default:
	}
	if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		return d, false, deadline, nil, os.ErrDeadlineExceeded
	}
	if len(c.queue) == 0 {
		return d, false, c.deadline, c.redo, nil
	}
	d = c.queue[0]
	c.queue = slices.Delete(c.queue, 0, 1)
	if len(c.queue) > 0 {
		c.signal() // another reader may wait
	}
	return d, true, deadline, nil, nil
}

// wait returns when it is worth looking again.
func (c *Conn) wait(deadline time.Time, redo chan struct{}) error {
	var expired <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-c.wake:
	case <-redo:
	case <-expired:
	case <-c.closed:
		return net.ErrClosed
	}
	return nil
}

// WriteTo sends a datagram. It does not wait, and what becomes of the datagram is no error.
func (c *Conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	u, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, c.opError("write", fmt.Errorf("address %v is not of UDP", addr))
	}
	select {
	case <-c.closed:
		return 0, c.opError("write", net.ErrClosed)
	default:
	}
	c.net.send(Datagram{From: c.local, To: unmap(u.AddrPort()), Payload: slices.Clone(b)})
	return len(b), nil
}

// Close ends the socket and everybody who waits for it.
func (c *Conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	select {
	case <-c.closed:
		return c.opError("close", net.ErrClosed)
	default:
	}
	close(c.closed)
	c.queue, c.flying = nil, nil
	delete(c.net.conns, c.local)
	return nil
}

// LocalAddr is the address that was listened at.
func (c *Conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline sets the read deadline: writing never waits.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline ends waiting reads at t; the zero time never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.deadline = t
	close(c.redo)
	c.redo = make(chan struct{})
	return nil
}

// SetWriteDeadline does nothing: writing never waits.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "simnet", Addr: c.LocalAddr(), Err: err}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
