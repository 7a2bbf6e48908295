// Package route puts prefixes into the kernel's routing table for the routing daemons of the host: OSPF and
// OSPFv3, or whatever else redistributes kernel routes, then announce them.
//
// The routes lead to a TUN device that the process holds open and that nobody reads. They are there to be seen, not
// to be used: their metric is worse than that of the routes by which the host itself reaches the same prefixes. When
// the process dies, however it does, the kernel removes the device and its routes in the same moment, and the routing
// daemons withdraw what they announced.
package route

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config says which routes there are to be. Zero means the default that stands behind a field.
type Config struct {
	Prefixes []netip.Prefix // masked; IPv4 and IPv6
	Device   string         // name of the TUN device ("tabi-routes")
	Table    int            // routing table, 1..2^32-1 (254: main)
	// Metric of the routes (8192). In the main table it must be above that of whatever forwards the prefixes.
	Metric int
	// Protocol is the routes' origin as `ip route` shows it, 5..255 (76). Those below 5 are the kernel's and the
	// administrator's.
	Protocol int
}

// Defaults of a [Config].
const (
	DefaultDevice   = "tabi-routes"
	DefaultTable    = unix.RT_TABLE_MAIN
	DefaultMetric   = 8192
	DefaultProtocol = 76
)

// Check says what is wrong with c.
func (c Config) Check() error {
	_, err := c.withDefaults()
	return err
}

func (c Config) withDefaults() (Config, error) {
	c.Device = cmp.Or(c.Device, DefaultDevice)
	c.Table = cmp.Or(c.Table, DefaultTable)
	c.Metric = cmp.Or(c.Metric, DefaultMetric)
	c.Protocol = cmp.Or(c.Protocol, DefaultProtocol)
	c.Prefixes = slices.Clone(c.Prefixes)
	for _, p := range c.Prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return c, fmt.Errorf("prefix %v is not a masked prefix", p)
		}
	}
	switch {
	case len(c.Device) >= unix.IFNAMSIZ:
		return c, fmt.Errorf("device name %q is longer than %d bytes", c.Device, unix.IFNAMSIZ-1)
	case c.Table < 1 || c.Table > 1<<32-1:
		return c, fmt.Errorf("table %d is not in 1..%d", c.Table, uint32(1<<32-1))
	case c.Metric < 1 || c.Metric > 1<<24-1: // FRR takes the uppermost 8 bits for an administrative distance
		return c, fmt.Errorf("metric %d is not in 1..%d", c.Metric, 1<<24-1)
	case c.Protocol <= unix.RTPROT_STATIC || c.Protocol > 255:
		return c, fmt.Errorf("protocol %d is not in %d..255", c.Protocol, unix.RTPROT_STATIC+1)
	}
	return c, nil
}

// Routes are the routes of one process. Its methods may be called from any goroutine.
type Routes struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	nl      *netlink.Handle
	tun     int // descriptor
	index   int
	serving bool
}

var errClosed = errors.New("kernel routes: closed")

// Open makes the device, in the network namespace of the calling thread, and no route yet. It is there until Close,
// or until the process ends.
func Open(cfg Config, log *slog.Logger) (*Routes, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("kernel routes: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Routes{cfg: cfg, log: log, tun: -1}
	if err := r.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("kernel routes: %w", err), r.Close())
	}
	return r, nil
}

func (r *Routes) open() (err error) {
	if r.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if r.tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(r.cfg.Device)
	if err != nil {
		return fmt.Errorf("device %s: %w", r.cfg.Device, err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(r.tun, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: another process has it", err)
		}
		return fmt.Errorf("device %s: %w", r.cfg.Device, err)
	}
	link, err := r.nl.LinkByName(r.cfg.Device)
	if err != nil {
		return fmt.Errorf("device %s: %w", r.cfg.Device, err)
	}
	r.index = link.Attrs().Index
	// No address, no Router Solicitation: nobody speaks there.
	path := filepath.Join("/proc/sys/net/ipv6/conf", r.cfg.Device, "addr_gen_mode")
	if err := os.WriteFile(path, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("setting not made", "path", path, "err", err)
	}
	if err := r.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("device %s: up: %w", r.cfg.Device, err)
	}
	return nil
}

// Serve puts the routes in, or takes them away. Telling it what it does already repairs what somebody else changed.
func (r *Routes) Serve(_ context.Context, serving bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nl == nil {
		return errClosed
	}
	for _, p := range r.cfg.Prefixes {
		route := r.route(p)
		var err error
		if serving {
			err = r.nl.RouteReplace(route)
		} else if err = r.nl.RouteDel(route); errors.Is(err, unix.ESRCH) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("kernel routes: %v: %w", p, err)
		}
	}
	if serving != r.serving {
		r.log.Info("kernel routes", "there", serving, "prefixes", len(r.cfg.Prefixes), "device", r.cfg.Device, "table", r.cfg.Table)
	}
	r.serving = serving
	return nil
}

func (r *Routes) route(p netip.Prefix) *netlink.Route {
	a := p.Addr()
	route := &netlink.Route{
		LinkIndex: r.index, Table: r.cfg.Table, Priority: r.cfg.Metric, Protocol: netlink.RouteProtocol(r.cfg.Protocol),
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())},
	}
	if a.Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

// Serving reports whether the routes are there, as far as we know.
func (r *Routes) Serving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.serving
}

// Close removes the device, and the routes with it.
func (r *Routes) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.tun >= 0 {
		err = unix.Close(r.tun)
		r.tun = -1
	}
	if r.nl != nil {
		r.nl.Close()
		r.nl = nil
	}
	r.serving = false
	return err
}
