package detr

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Config is what a DETR is told once. Zero durations mean the default that stands behind them.
type Config struct {
	Name       string // for logs
	XTRID      lisp.XTRID
	SiteID     lisp.SiteID
	RLOCs      []lisp.Locator // own RLOCs, at least one
	Aggregates []lisp.EID     // the cloud's EIDs, all of them
	// Anchors are the RLOCs of all D-ETRs: what outsiders are told to send to. Default: RLOCs.
	Anchors []lisp.Locator

	// CloudRLOCs are the cloud's own RLOCs: who probes us from there is answered whatever strangers ask.
	CloudRLOCs []netip.Prefix

	External          []Server     // Map-Servers of the outside, where the aggregates are registered
	ExternalResolvers []netip.Addr // Map-Resolvers of the outside; without any, nothing outside is LISP

	RegisterInterval time.Duration // between refreshes (60 s)
	// WarmTime is how long routes of before a restart count as service while no feed is alive (2 min).
	WarmTime    time.Duration
	MaxMapCache int // entries of the map-cache of outside EIDs (131072)

	// Services are what map646 translates; the zero value is none.
	Services Services

	// StateDir is where nonces are kept, and whether we are drained; empty: nonces follow the clock alone, and
	// a restart ends a drain.
	StateDir string
	MTU      int // largest inner packet in bytes that fits the tunnel; 0: the data plane's default

	outward []lisp.EID // all that anybody outside is told of: aggregates and service prefixes, sorted
}

// Services are the prefixes of map646, and where the cloud's own xTRs learn that they are ours.
type Services struct {
	// Prefixes are what service addresses are taken from, IPv4 and IPv6: each inside an aggregate, or outside
	// of all. To the outside they are what aggregates are.
	Prefixes []netip.Prefix
	// Pool is the prefix under which VMs see IPv4 (RFC 6052); needed for IPv4 service addresses.
	Pool netip.Prefix
	// MapServers are the cloud's own, at which Prefixes and Pool are registered.
	MapServers []Server
}

// Server is a Map-Server with the secret that we share with it.
type Server struct {
	Addr netip.Addr
	Key  lisp.Key
}

// aggregateTTL is the lifetime of what outsiders are told: moves inside need no update outside.
const aggregateTTL = lisp.TTL(1440)

// withDefaults checks c and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	if len(c.RLOCs) == 0 {
		return c, errors.New("no RLOC of our own")
	}
	if c.XTRID.IsZero() {
		return c, errors.New("no xTR-ID")
	}
	if len(c.Aggregates) == 0 {
		return c, errors.New("no aggregate")
	}
	for i, e := range c.Aggregates {
		if !e.IsValid() {
			return c, fmt.Errorf("aggregate %v is not valid", e)
		}
		for _, o := range c.Aggregates[:i] {
			if o.Contains(e) || e.Contains(o) {
				return c, fmt.Errorf("aggregates %v and %v overlap", o, e)
			}
		}
	}
	c.Aggregates = slices.Clone(c.Aggregates)
	slices.SortFunc(c.Aggregates, lisp.EID.Compare)
	c.Services.Prefixes = slices.Clone(c.Services.Prefixes)
	slices.SortFunc(c.Services.Prefixes, netip.Prefix.Compare)
	if err := c.Services.check(c.Aggregates); err != nil {
		return c, err
	}
	c.outward = slices.Clone(c.Aggregates)
	for _, p := range c.Services.Prefixes {
		c.outward = append(c.outward, lisp.MakeEID(0, p))
	}
	slices.SortFunc(c.outward, lisp.EID.Compare)
	if len(c.Anchors) == 0 {
		c.Anchors = c.RLOCs
	}
	for _, ls := range []*[]lisp.Locator{&c.RLOCs, &c.Anchors} {
		*ls = slices.Clone(*ls)
		for i := range *ls {
			l := &(*ls)[i]
			if !l.RLOC.IsValid() {
				return c, errors.New("an RLOC is no address")
			}
			l.RLOC = l.RLOC.Unmap().WithZone("")
			if c.inside(l.RLOC) {
				return c, fmt.Errorf("RLOC %v is inside an aggregate, a service prefix or the pool", l.RLOC)
			}
			l.Reachable = true
		}
		slices.SortFunc(*ls, lisp.CompareLocators)
	}
	for _, set := range []struct {
		what string
		s    *[]Server
	}{{"an external Map-Server", &c.External}, {"a Map-Server for the services", &c.Services.MapServers}} {
		*set.s = slices.Clone(*set.s)
		for i := range *set.s {
			if !(*set.s)[i].Addr.IsValid() {
				return c, fmt.Errorf("%s has no address", set.what)
			}
			(*set.s)[i].Addr = (*set.s)[i].Addr.Unmap()
		}
	}
	c.ExternalResolvers = slices.Clone(c.ExternalResolvers)
	for i, a := range c.ExternalResolvers {
		if !a.IsValid() {
			return c, errors.New("an external Map-Resolver has no address")
		}
		c.ExternalResolvers[i] = a.Unmap()
	}
	if c.MTU < 0 || c.MTU > 1<<16-1 {
		return c, fmt.Errorf("MTU %d is not in 0..65535", c.MTU)
	}
	if c.RegisterInterval == 0 {
		c.RegisterInterval = time.Minute
	}
	if c.WarmTime == 0 {
		c.WarmTime = 2 * time.Minute
	}
	if c.MaxMapCache == 0 {
		c.MaxMapCache = 1 << 17
	}
	return c, nil
}

// own reports whether all of e lies in the cloud's EIDs, and in which aggregate.
func (c *Config) own(e lisp.EID) (aggregate lisp.EID, ok bool) {
	i := slices.IndexFunc(c.Aggregates, func(a lisp.EID) bool { return a.Contains(e) })
	if i < 0 {
		return lisp.EID{}, false
	}
	return c.Aggregates[i], true
}

// home reports whether all of e is the cloud's: inside an aggregate, a service prefix or the pool. Nobody
// outside is asked for it, or believed about it.
func (c *Config) home(e lisp.EID) bool {
	return slices.ContainsFunc(c.outward, func(o lisp.EID) bool { return o.Contains(e) }) ||
		c.Services.Pool.IsValid() && lisp.MakeEID(0, c.Services.Pool).Contains(e)
}

// registers reports whether e is a prefix that D-ETRs themselves register inside the cloud, so that the feed
// tells of it.
func (c *Config) registers(e lisp.EID) bool {
	return e.IID == 0 && (e.Prefix == c.Services.Pool || slices.Contains(c.Services.Prefixes, e.Prefix))
}

// inside reports whether a is an address of any aggregate, in whatever instance, of a service prefix or of the
// pool.
func (c *Config) inside(a netip.Addr) bool {
	return slices.ContainsFunc(c.outward, func(e lisp.EID) bool { return e.Prefix.Contains(a) }) ||
		c.Services.Pool.IsValid() && c.Services.Pool.Contains(a)
}

// usable reports whether packets may be sent to the RLOC a: they must not come back to a D-ETR, nor go to an
// address that is itself an EID.
func (c *Config) usable(a netip.Addr) bool {
	is := func(l lisp.Locator) bool { return l.RLOC == a }
	return !slices.ContainsFunc(c.RLOCs, is) && !slices.ContainsFunc(c.Anchors, is) && !c.inside(a)
}

// usableLocators are those of ls that packets may be sent to; see [Config.usable].
func (c *Config) usableLocators(ls []lisp.Locator) []lisp.Locator {
	if !slices.ContainsFunc(ls, func(l lisp.Locator) bool { return !c.usable(l.RLOC) }) {
		return ls
	}
	return slices.DeleteFunc(slices.Clone(ls), func(l lisp.Locator) bool { return !c.usable(l.RLOC) })
}
