package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is what a gateway is told.
type Config struct {
	Patterns []string         // names of VM interfaces, as of path.Match: "tap*", "vnet*"
	Nets     []Net            // prefixes that the VMs are in
	MAC      net.HardwareAddr // of the gateway, the same on every hypervisor; 6 bytes, unicast
	MTU      int              // of the tunnel, in bytes, for Router Advertisements; 1280..65535
	// RAInterval is the longest time between two Router Advertisements; default 30 s, at least 3 s.
	RAInterval time.Duration
}

// Net is a prefix that is on-link for the VMs.
type Net struct {
	Prefix     netip.Prefix
	Gateway    netip.Addr // of the prefix's family; IPv6: also a link-local one
	IID        uint32     // instance-ID of the addresses
	Autonomous bool       // guests may make addresses of their own (RFC 4862)
}

func (c Config) check() error {
	for _, p := range c.Patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("gateway: pattern %q: %w", p, err)
		}
	}
	if len(c.MAC) != 6 || !mac(c.MAC).unicast() {
		return fmt.Errorf("gateway: MAC address %q: not a unicast Ethernet address", c.MAC)
	}
	if c.MTU < 1280 || c.MTU > 65535 {
		return fmt.Errorf("gateway: MTU %d: not in 1280..65535", c.MTU)
	}
	if c.RAInterval < 3*time.Second {
		return fmt.Errorf("gateway: router advertisement interval %v: less than 3s", c.RAInterval)
	}
	for _, n := range c.Nets {
		if !n.Prefix.IsValid() || !unicast(n.Gateway) || n.Gateway.Is4() != n.Prefix.Addr().Is4() || n.Gateway.Zone() != "" {
			return fmt.Errorf("gateway: net %v: gateway %v: not a unicast address of the same family", n.Prefix, n.Gateway)
		}
		if !n.Prefix.Contains(n.Gateway) && !n.Gateway.IsLinkLocalUnicast() {
			return fmt.Errorf("gateway: net %v: gateway %v: neither inside it nor link-local", n.Prefix, n.Gateway)
		}
	}
	return nil
}

// PortEvent says that a VM interface is there and set up, or gone.
type PortEvent struct {
	Name string
	If   int // interface index
	Up   bool
}

// Sighting says that a MAC address, and an address if Addr is valid, spoke on an interface: a frame of
// a VM that runs.
type Sighting struct {
	If   int
	Name string
	MAC  net.HardwareAddr
	// Addr is a unicast address inside one of the Nets. It is invalid for RARP, which names only the
	// MAC, and for messages from other addresses.
	Addr netip.Addr
	// Kind is "arp", "garp", "probe", "rarp", "ns", "na", "dad" or "rs". With "probe" and "dad" Addr is
	// what the VM is about to use.
	Kind string
	At   time.Time
}

// Gateway is described at the package.
type Gateway struct {
	cfg    Config
	rules  *rules
	log    *slog.Logger
	counts counts

	events    chan PortEvent
	sightings chan Sighting
	stats     stats

	mu    sync.Mutex
	ports map[int]*port // by interface index; changed by Run only

	pending []PortEvent // of Run: not yet read by anybody

	subscribe func(chan<- netlink.LinkUpdate, <-chan struct{}, netlink.LinkSubscribeOptions) error
}

// New returns a gateway. local tells on which interface of this host an address lives; it is called
// from any goroutine and must not wait.
func New(cfg Config, local func(addr netip.Addr) (ifindex int, ok bool), log *slog.Logger) (*Gateway, error) {
	cfg.RAInterval = cmp.Or(cfg.RAInterval, 30*time.Second)
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Gateway{
		cfg: cfg, rules: newRules(cfg, local), log: log,
		events: make(chan PortEvent), sightings: make(chan Sighting, 1024),
		ports: make(map[int]*port), subscribe: netlink.LinkSubscribeWithOptions,
	}, nil
}

// Ports returns the channel of interfaces that come and go. Every event is delivered, in order.
func (g *Gateway) Ports() <-chan PortEvent { return g.events }

// Sightings returns the channel of what is seen on the interfaces. What nobody reads in time is lost
// and counted.
func (g *Gateway) Sightings() <-chan Sighting { return g.sightings }

// Counters returns all counters by name. Any goroutine may call it at any time.
func (g *Gateway) Counters() map[string]uint64 { return g.counts.snapshot() }

// Announce tells the VM on an interface again which MAC address the gateway has. Any goroutine may
// call it; it does not wait.
func (g *Gateway) Announce(ifindex int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.ports[ifindex]; p != nil {
		p.announce()
	}
}

// retryAfter is how long to wait when links cannot be watched or an interface cannot be opened.
const retryAfter = 200 * time.Millisecond

// Run serves until ctx ends, then it returns nil. It runs in the network namespace that the process
// is in.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.closeAll()
	for first := true; ; first = false {
		err := g.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if first && errors.Is(err, errSubscribe) {
			return err
		}
		// The kernel drops messages when they come faster than they are read; what was missed is in
		// the list that a new subscription begins with.
		g.counts.inc(resubscribed)
		g.log.Warn("subscribing to link changes again", "err", err)
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return nil
		}
	}
}

var (
	errSubscribe = errors.New("gateway: subscribe to link changes")
	errEnded     = errors.New("gateway: subscription ended")
)

// watch follows the links until ctx or the subscription ends.
func (g *Gateway) watch(ctx context.Context) error {
	updates := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	var failed error // written before updates is closed
	err := g.subscribe(updates, done, netlink.LinkSubscribeOptions{
		ErrorCallback:     func(err error) { failed = err },
		ReceiveBufferSize: 1 << 20,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errSubscribe, err)
	}
	defer func() {
		close(done)
		for range updates { // until its goroutine has seen that
		}
	}()
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("gateway: list links: %w", err)
	}
	retry := time.NewTimer(retryAfter)
	defer retry.Stop()
	if g.reconcile(links) {
		retry.Stop()
	}
	for {
		var out chan<- PortEvent
		var next PortEvent
		if len(g.pending) > 0 {
			out, next = g.events, g.pending[0]
		}
		select {
		case <-ctx.Done():
			return nil
		case out <- next:
			g.pending = g.pending[1:]
		case u, ok := <-updates:
			if !ok {
				return cmp.Or(failed, errEnded)
			}
			if u.IfInfomsg.Family != unix.AF_UNSPEC {
				continue // a bridge speaks of its ports, which are still there when they leave it
			}
			if u.Header.Type == unix.RTM_DELLINK {
				g.remove(u.Attrs().Index)
				continue
			}
			if !g.see(u.Link) {
				retry.Reset(retryAfter)
			}
			g.changed(u.Link)
		case <-retry.C:
			links, err := netlink.LinkList()
			if err != nil || !g.reconcile(links) {
				retry.Reset(retryAfter)
			}
		}
	}
}

// reconcile makes the ports what links says. It reports false when one could not be opened and should be
// tried again.
func (g *Gateway) reconcile(links []netlink.Link) bool {
	there := make(map[int]bool, len(links))
	for _, l := range links {
		there[l.Attrs().Index] = true
	}
	for _, index := range g.indexes() {
		if !there[index] {
			g.remove(index)
		}
	}
	all := true
	for _, l := range links {
		all = g.see(l) && all
	}
	return all
}

func (g *Gateway) indexes() []int {
	var all []int
	for i := range g.ports {
		all = append(all, i)
	}
	slices.Sort(all)
	return all
}

func (g *Gateway) matches(name string) bool {
	return slices.ContainsFunc(g.cfg.Patterns, func(p string) bool {
		ok, _ := path.Match(p, name) // checked by New
		return ok
	})
}

// see takes notice of a link as it is now. It reports false when the link could not be opened and
// should be tried again.
func (g *Gateway) see(link netlink.Link) bool {
	a := link.Attrs()
	if p := g.ports[a.Index]; p != nil {
		if p.name == a.Name {
			return true
		}
		g.remove(a.Index) // it was renamed
	}
	if !g.matches(a.Name) {
		return true
	}
	if err := setUp(link, g.rules.mac); err != nil {
		g.counts.inc(setupErrors)
		g.log.Warn("setting up a VM interface", "if", a.Name, "err", err)
	}
	p, err := g.openPort(&net.Interface{Index: a.Index, Name: a.Name, MTU: a.MTU, HardwareAddr: a.HardwareAddr})
	if err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			return true // gone again; or back under another index, which we will be told
		}
		g.counts.inc(setupErrors)
		g.log.Error("opening a VM interface", "if", a.Name, "err", err)
		return false
	}
	g.mu.Lock()
	g.ports[a.Index] = p
	g.mu.Unlock()
	p.announce()
	g.log.Info("VM interface up", "if", a.Name, "n", a.Index)
	g.pending = append(g.pending, PortEvent{Name: a.Name, If: a.Index, Up: true})
	return true
}

// changed announces the gateway on an interface of which the kernel has just told something: its
// carrier may have come, which it does not tell apart from having gone and come again.
func (g *Gateway) changed(link netlink.Link) {
	a := link.Attrs()
	if p := g.ports[a.Index]; p != nil && a.RawFlags&unix.IFF_LOWER_UP != 0 {
		p.announce()
	}
}

// remove forgets the interface with an index.
func (g *Gateway) remove(index int) {
	p := g.ports[index]
	if p == nil {
		return
	}
	g.mu.Lock()
	delete(g.ports, index)
	g.mu.Unlock()
	p.close()
	g.log.Info("VM interface gone", "if", p.name, "n", index)
	g.pending = append(g.pending, PortEvent{Name: p.name, If: index, Up: false})
}

func (g *Gateway) closeAll() {
	for _, i := range g.indexes() {
		g.remove(i)
	}
	g.stats.close()
}
