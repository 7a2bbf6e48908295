package xtr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Config is what an XTR is told once. Zero durations and limits mean the default that stands behind them.
type Config struct {
	Name        string // of this hypervisor, for logs and records
	XTRID       lisp.XTRID
	SiteID      lisp.SiteID
	RLOCs       []lisp.Locator // own RLOCs, at least one
	EIDPrefixes []lisp.EID     // the cloud's EIDs: a VM may have addresses in these only
	IID         uint32         // instance-ID of the VMs here

	MapServers   []Server     // EIDs are registered with all of them, and all are subscribed to
	MapResolvers []netip.Addr // asked for EIDs that are not the cloud's own; default: the Map-Servers
	// PETRs take packets for what is not LISP (RFC 6832); without any the host's own routing does.
	PETRs []lisp.Locator
	// AllowedRLOCs are the cloud's own RLOCs: nobody else is told where an EID of the cloud lives. Empty
	// means that everybody may be told.
	AllowedRLOCs []netip.Prefix

	RegisterInterval time.Duration // between refreshes (60 s)
	RegisterTTL      lisp.TTL      // in the records that we register (1440 minutes)
	// SettleTime is how long a source sends packets on after its VM has left, at least (30 s).
	SettleTime time.Duration
	// PrepareTimeout is how long a prepared handover waits for something to happen (10 min).
	PrepareTimeout time.Duration
	// PortGrace is how long an interface may be gone before its VM counts as stopped (10 s).
	PortGrace time.Duration

	StateDir string // where state.json is kept; empty: nothing survives a restart
	MTU      int    // largest inner packet in bytes that fits the tunnel; 0: the data plane's default

	KnownOnly   bool // only EIDs that the controller announced may become local
	MaxLearned  int  // EIDs that may be learned at one interface (16)
	MaxMapCache int  // entries of the map-cache (131072)
}

// Server is a Map-Server with the secret that we share with it.
type Server struct {
	Addr netip.Addr
	Key  lisp.Key
}

// withDefaults checks c and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	if len(c.RLOCs) == 0 {
		return c, errors.New("no RLOC of our own")
	}
	if c.XTRID.IsZero() {
		return c, errors.New("no xTR-ID")
	}
	if c.IID > lisp.MaxInstanceID {
		return c, fmt.Errorf("instance-ID %d is not in 0..%d", c.IID, lisp.MaxInstanceID)
	}
	c.RLOCs = slices.Clone(c.RLOCs)
	for i := range c.RLOCs {
		l := &c.RLOCs[i]
		if !l.RLOC.IsValid() {
			return c, errors.New("an RLOC of our own is no address")
		}
		l.RLOC = l.RLOC.Unmap()
		l.Local, l.Reachable = true, true
	}
	slices.SortFunc(c.RLOCs, lisp.CompareLocators)
	c.PETRs = slices.Clone(c.PETRs)
	for i := range c.PETRs {
		c.PETRs[i].Reachable = true
	}
	for _, e := range c.EIDPrefixes {
		if !e.IsValid() {
			return c, fmt.Errorf("EID prefix %v is not valid", e)
		}
	}
	c.MapServers = slices.Clone(c.MapServers)
	for i := range c.MapServers {
		s := &c.MapServers[i]
		if !s.Addr.IsValid() {
			return c, errors.New("a Map-Server has no address")
		}
		s.Addr = s.Addr.Unmap()
	}
	if len(c.MapResolvers) == 0 {
		for _, s := range c.MapServers {
			c.MapResolvers = append(c.MapResolvers, s.Addr)
		}
	}
	def(&c.RegisterInterval, time.Minute)
	def(&c.RegisterTTL, 1440)
	def(&c.SettleTime, 30*time.Second)
	def(&c.PrepareTimeout, 10*time.Minute)
	def(&c.PortGrace, 10*time.Second)
	def(&c.MaxLearned, 16)
	def(&c.MaxMapCache, 1<<17)
	return c, nil
}

// def gives *v the default d if it is zero.
func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// own reports whether e lies in the cloud's EIDs.
func (c *Config) own(e lisp.EID) bool {
	return slices.ContainsFunc(c.EIDPrefixes, func(p lisp.EID) bool { return p.Contains(e) })
}

// ownRLOC reports whether a is an RLOC of this xTR.
func (c *Config) ownRLOC(a netip.Addr) bool {
	return slices.ContainsFunc(c.RLOCs, func(l lisp.Locator) bool { return l.RLOC == a })
}

// mayKnow reports whether the RLOC a may be told where an EID of the cloud lives.
func (c *Config) mayKnow(a netip.Addr) bool {
	return len(c.AllowedRLOCs) == 0 ||
		slices.ContainsFunc(c.AllowedRLOCs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// rlocFor is the own RLOC of the family of peer; the first one if there is none of that family.
func (c *Config) rlocFor(peer netip.Addr) netip.Addr {
	for _, l := range c.RLOCs {
		if l.RLOC.Is4() == peer.Is4() {
			return l.RLOC
		}
	}
	return c.RLOCs[0].RLOC
}
