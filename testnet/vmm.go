package testnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// guestQueue is how many packets a paused guest's interface holds: its programs go on while it is dark, where a
// real guest's would stand still, and must not overflow it.
const guestQueue = 50000

// VM is a namespace that stands in for a guest, and the small VMM that carries its frames: a TAP in the guest's
// namespace, a TAP in the hypervisor's, and two goroutines that copy between them. As with QEMU, what the
// hypervisor gave to its tap and the VMM has not read is what the guest never saw; the tap's tx_packets counts
// what was read.
//
// Methods may be called from any goroutine.
type VM struct {
	Name  string
	MAC   net.HardwareAddr
	Addrs []netip.Prefix // with the length of the on-link prefix
	Tap   string         // the interface's name on hypervisors

	guest *Namespace
	nic   *tap // the guest's end

	// up and down are held while frames are read from the guest, and from the hypervisor, and passed on: see Pause.
	up, down sync.Mutex
	mu       sync.Mutex
	changed  sync.Cond // running, closed or a port's removed changed
	running  *port     // where it runs, nil while it is paused; changes with mu, up and down held
	closed   bool

	ports map[*Namespace]*port
	wg    sync.WaitGroup

	firstAt atomic.Int64  // UnixNano of the first IP packet that the guest got since the last Resume, 0 = none yet
	lost    atomic.Uint64 // frames read and not passed on
}

// port is the VM's tap on one hypervisor.
type port struct {
	tap     *tap
	done    chan struct{} // closed when nothing reads it any more
	removed bool          // with VM.mu
}

// VMConfig describes a namespace VM.
type VMConfig struct {
	Name     string
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix
	Gateway4 netip.Addr
	Gateway6 netip.Addr // link-local
}

// NewVM makes the guest's interface eth0, with MTU 1500, in its namespace. The VM runs nowhere yet.
func NewVM(guest *Namespace, c VMConfig) (*VM, error) {
	v := &VM{Name: c.Name, MAC: c.MAC, Addrs: c.Addrs, Tap: "tap-" + c.Name, guest: guest,
		ports: make(map[*Namespace]*port)}
	v.changed.L = &v.mu
	for _, s := range [][2]string{
		{"net/ipv6/conf/default/accept_ra", "1"}, // the tunnel's MTU comes by it
		{"net/ipv6/conf/default/autoconf", "0"},  // addresses are set below
		{"net/ipv6/conf/default/accept_dad", "0"},
	} {
		if err := guest.Sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	nic, err := openTap(guest, "eth0", c.MAC, guestQueue)
	if err != nil {
		return nil, err
	}
	v.nic = nic
	for _, p := range c.Addrs {
		if err := guest.AddAddr("eth0", p); err != nil {
			return nil, errors.Join(err, nic.close())
		}
	}
	for _, g := range []netip.Addr{c.Gateway4, c.Gateway6} {
		if !g.IsValid() {
			continue
		}
		if err := guest.AddRoute(netip.PrefixFrom(unspecified(g), 0), g, "eth0"); err != nil {
			return nil, errors.Join(err, nic.close())
		}
	}
	v.wg.Go(v.copyUp)
	return v, nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Open makes the VM's tap on a hypervisor, as a VMM does long before the VM runs there. Opening it twice is an error.
func (v *VM) Open(hv *Namespace) error {
	if v.IsOpen(hv) {
		return fmt.Errorf("testnet: vm %s: its tap is open on %s already", v.Name, hv.name)
	}
	t, err := openTap(hv, v.Tap, nil, 0)
	if err != nil {
		return err
	}
	p := &port{tap: t, done: make(chan struct{})}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return errors.Join(fmt.Errorf("testnet: vm %s is closed", v.Name), t.close())
	}
	v.ports[hv] = p
	v.wg.Go(func() { defer close(p.done); v.copyDown(p) })
	return nil
}

// IsOpen reports whether the VM has its tap on a hypervisor.
func (v *VM) IsOpen(hv *Namespace) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ports[hv] != nil
}

// Remove takes the VM's tap on a hypervisor away. It must not run there.
func (v *VM) Remove(hv *Namespace) error {
	v.mu.Lock()
	p := v.ports[hv]
	if p == nil {
		v.mu.Unlock()
		return nil
	}
	if v.running == p {
		v.mu.Unlock()
		return fmt.Errorf("testnet: vm %s runs on %s: its tap stays", v.Name, hv.name)
	}
	p.removed = true
	v.changed.Broadcast()
	delete(v.ports, hv)
	v.mu.Unlock()
	err := p.tap.close()
	<-p.done
	return err
}

// Pause stops the VM. When it returns, nothing more is read from any tap, and every frame that was read has been
// passed on: the hypervisor's tx_packets says to a packet what the guest got.
func (v *VM) Pause() time.Time {
	v.stand()
	defer v.walk()
	v.running = nil
	return time.Now()
}

// stand waits until no frame is on its way through the VMM, and keeps it so until walk.
func (v *VM) stand() {
	v.down.Lock() // first: what the hypervisor gives is what must be exact
	v.up.Lock()
	v.mu.Lock()
}

func (v *VM) walk() {
	v.changed.Broadcast()
	v.mu.Unlock()
	v.up.Unlock()
	v.down.Unlock()
}

// Resume lets the VM run on a hypervisor where its tap is open. With announce it says so on the tap: QEMU's RARPs
// at 0, 50, 200, 450 and 800 ms, and the guest's own gratuitous ARPs and unsolicited Neighbor Advertisements. A
// VM that resumes at the source after a failed migration does not announce itself.
func (v *VM) Resume(hv *Namespace, announce bool) (time.Time, error) {
	v.stand()
	defer v.walk()
	p := v.ports[hv]
	if p == nil {
		return time.Time{}, fmt.Errorf("testnet: vm %s: no tap on %s", v.Name, hv.name)
	}
	if v.running != nil || v.closed {
		return time.Time{}, fmt.Errorf("testnet: vm %s: not paused", v.Name)
	}
	v.firstAt.Store(0)
	v.running = p
	if announce {
		v.wg.Go(func() { v.announce(p) })
	}
	return time.Now(), nil
}

// Running reports whether the VM runs, and on which hypervisor.
func (v *VM) Running() (hv *Namespace, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for n, p := range v.ports {
		if p != nil && p == v.running {
			return n, true
		}
	}
	return nil, false
}

// FirstPacket is when the guest got its first IP packet after the last Resume; zero if none came yet.
func (v *VM) FirstPacket() time.Time {
	if ns := v.firstAt.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Lost counts frames that the VMM had read and could not pass on. It is the tester's own fault and must be 0.
func (v *VM) Lost() uint64 { return v.lost.Load() }

// Close ends the VM and removes its interfaces.
func (v *VM) Close() error {
	v.stand()
	if v.closed {
		v.walk()
		return nil
	}
	v.closed, v.running = true, nil
	ports := v.ports
	v.ports = nil
	v.walk()
	errs := []error{v.nic.close()}
	for _, p := range ports {
		errs = append(errs, p.tap.close())
	}
	v.wg.Wait()
	return errors.Join(errs...)
}

// copyUp carries frames from the guest to wherever it runs.
func (v *VM) copyUp() {
	buf := make([]byte, maxFrame)
	for v.waitRunning(nil) {
		var failed error
		err := v.nic.conn.Read(func(fd uintptr) (done bool) {
			v.up.Lock()
			defer v.up.Unlock()
			if v.running == nil {
				return true
			}
			done, failed = v.pass(int(fd), buf, v.running.tap)
			return done
		})
		if err != nil || failed != nil {
			return
		}
	}
}

// copyDown carries frames from one hypervisor's tap to the guest, while it runs there.
func (v *VM) copyDown(p *port) {
	buf := make([]byte, maxFrame)
	for v.waitRunning(p) {
		var failed error
		err := p.tap.conn.Read(func(fd uintptr) (done bool) {
			v.down.Lock()
			defer v.down.Unlock()
			if v.running != p {
				return true
			}
			done, failed = v.pass(int(fd), buf, v.nic)
			return done
		})
		if err != nil || failed != nil {
			return
		}
	}
}

// batch bounds how many frames pass before the lock is given back: Pause waits for one batch at most.
const batch = 64

// pass reads frames and passes them on, with v.up or v.down held. done is false when there is nothing to read. An error is
// the end of the interface that is read.
func (v *VM) pass(fd int, buf []byte, to *tap) (done bool, err error) {
	for i := range batch {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return i > 0, nil
		}
		if err != nil {
			return true, err
		}
		if err := to.write(buf[:n]); err != nil {
			v.lost.Add(1)
		}
		if to == v.nic && v.firstAt.Load() == 0 && isIP(buf[:n]) {
			v.firstAt.Store(time.Now().UnixNano())
		}
	}
	return true, nil
}

// isIP reports whether a frame with its virtio_net_hdr carries an IP packet that is no Neighbor Discovery.
func isIP(b []byte) bool {
	if len(b) < vnetHdrLen+14+40 {
		return false
	}
	b = b[vnetHdrLen+12:]
	switch binary.BigEndian.Uint16(b) {
	case unix.ETH_P_IP:
		return true
	case unix.ETH_P_IPV6: // Neighbor Discovery has hop limit 255 (RFC 4861 section 7.1)
		return b[2+6] != unix.IPPROTO_ICMPV6 || b[2+7] != 255
	}
	return false
}

// waitRunning waits until the VM runs on p (nil: anywhere). It reports false when the VM is closed, or p removed.
func (v *VM) waitRunning(p *port) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		switch {
		case v.closed || p != nil && p.removed:
			return false
		case v.running != nil && (p == nil || v.running == p):
			return true
		}
		v.changed.Wait()
	}
}
