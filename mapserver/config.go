package mapserver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
)

// Config says for whom a Map-Server works. The zero value of a field that has a default means the default.
type Config struct {
	Name        string // for logs
	Sites       []Site
	Subscribers []Subscriber

	// ProxyReply answers Map-Requests for every registration, also for those whose xTR did not set the
	// P bit (RFC 9301 section 5.6).
	ProxyReply bool

	// RegistrationTimeout is the life of a registration without the T bit (RFC 9301 section 8.2);
	// default 3 minutes.
	RegistrationTimeout time.Duration
	// NegativeTTL is the TTL, in minutes, of the answer for an EID that no site is configured for
	// (RFC 9301 section 8.3); default 15.
	NegativeTTL lisp.TTL
	// UnregisteredTTL is the TTL, in minutes, of the answer for an EID of a configured prefix that is
	// not registered (RFC 9301 section 8.3); default 1.
	UnregisteredTTL lisp.TTL
	// MaxMoreSpecifics is how many more-specifics an answer carries along with the best match (RFC 9301
	// section 5.5). With more of them the answer is the largest part of the best match that has no
	// more-specific in it. Default 16.
	MaxMoreSpecifics int
	// MaxRegistrations bounds the EIDs that are known, withdrawn ones included; default 1<<21.
	MaxRegistrations int
	// MaxSubscriptions bounds the subscriptions (RFC 9437 section 5); default 1<<18.
	MaxSubscriptions int
	// SubscriptionTTL is the life of a subscription to an EID that is not registered (RFC 9437
	// section 5); default 15 minutes.
	SubscriptionTTL time.Duration
	// NotifyRate bounds the publications to subscribers, in messages a second (RFC 9437 section 5);
	// default 20000.
	NotifyRate int
	// Remember is how long the version of a withdrawn or expired mapping is kept, so that a host that
	// comes back later cannot pass an old version off as a new one; default 30 days.
	Remember time.Duration
	// FlapMoves and FlapWindow: an EID that changed its xTR FlapMoves times within FlapWindow, none of
	// them announced by a controller, stays where it is (DESIGN.md section 3); default 5 in 180 s.
	FlapMoves  int
	FlapWindow time.Duration
}

// Site is a set of xTRs that may register a set of EID prefixes.
type Site struct {
	Name string
	// Keys are the keys of the site's xTRs. The first one signs what is sent to an xTR that has never
	// registered. The format of a key that several xTRs share should be lisp.FormatDeployed: then a
	// Map-Register with an xTR-ID is taken only if the digest covers the xTR-ID too. With
	// lisp.FormatRFC whoever replays a Map-Register may put another xTR-ID on it.
	Keys []lisp.Key
	// ControllerKeys are the keys of the site's controllers. A Map-Register signed with one of them
	// announces a move: it is never taken for flapping. Their IDs differ from those of Keys.
	ControllerKeys []lisp.Key
	// Prefixes may be registered. The longest configured prefix that covers an EID decides, over all
	// sites; each prefix belongs to one site.
	Prefixes []lisp.EID
	// AcceptMoreSpecifics allows EIDs inside the Prefixes; otherwise only the Prefixes themselves.
	AcceptMoreSpecifics bool
	// RLOCs are the allowed locators; empty allows any unicast address.
	RLOCs []netip.Prefix
	// AnyNonce takes Map-Registers whatever their nonce, for peers that send random ones. It gives up
	// the protection against replays (RFC 9301 section 5.6).
	AnyNonce bool
}

// Subscriber says which key signs the Map-Notifies to a subscribed xTR (the PubSubKey of RFC 9437
// section 7.1). An entry with the xTR's ID decides first; then the first entry without an ID that
// allows all its ITR-RLOCs; then the key with which that xTR-ID last registered. With none of them
// the xTR gets a plain Map-Reply and no subscription.
type Subscriber struct {
	XTRID lisp.XTRID     // zero: any
	RLOCs []netip.Prefix // allowed ITR-RLOCs; empty: any
	Key   lisp.Key
}

func (c Config) withDefaults() Config {
	c.RegistrationTimeout = cmp.Or(c.RegistrationTimeout, 3*time.Minute)
	c.NegativeTTL = cmp.Or(c.NegativeTTL, 15)
	c.UnregisteredTTL = cmp.Or(c.UnregisteredTTL, 1)
	c.MaxMoreSpecifics = cmp.Or(c.MaxMoreSpecifics, 16)
	c.MaxRegistrations = cmp.Or(c.MaxRegistrations, 1<<21)
	c.MaxSubscriptions = cmp.Or(c.MaxSubscriptions, 1<<18)
	c.SubscriptionTTL = cmp.Or(c.SubscriptionTTL, 15*time.Minute)
	c.NotifyRate = cmp.Or(c.NotifyRate, 20000)
	c.Remember = cmp.Or(c.Remember, 30*24*time.Hour)
	c.FlapMoves = cmp.Or(c.FlapMoves, 5)
	c.FlapWindow = cmp.Or(c.FlapWindow, 180*time.Second)
	return c
}

// site is a Site as the core uses it.
type site struct {
	Site
}

// key finds the key that a message names, and whether it is a controller's.
func (s *site) key(id uint8, alg lisp.Algorithm) (k *lisp.Key, controller, ok bool) {
	for i := range s.Keys {
		if k := &s.Keys[i]; k.ID == id && k.Algorithm == alg {
			return k, false, true
		}
	}
	for i := range s.ControllerKeys {
		if k := &s.ControllerKeys[i]; k.ID == id && k.Algorithm == alg {
			return k, true, true
		}
	}
	return nil, false, false
}

// keyByID finds an xTR's key of the site, or its first key.
func (s *site) keyByID(id uint8) *lisp.Key {
	for i := range s.Keys {
		if s.Keys[i].ID == id {
			return &s.Keys[i]
		}
	}
	return &s.Keys[0]
}

func (s *site) allows(rloc netip.Addr) bool {
	return len(s.RLOCs) == 0 || slices.ContainsFunc(s.RLOCs, func(p netip.Prefix) bool { return p.Contains(rloc) })
}

// policy is what the configuration allows, ready for look-ups.
type policy struct {
	Config
	sites      map[string]*site
	configured mapcache.Table[*site]
}

func newPolicy(cfg Config) (*policy, error) {
	p := &policy{Config: cfg.withDefaults(), sites: map[string]*site{}}
	if len(cfg.Sites) == 0 {
		return nil, errors.New("mapserver: configuration: no sites")
	}
	for _, in := range cfg.Sites {
		s := &site{Site: in}
		where := fmt.Sprintf("mapserver: site %q", in.Name)
		switch {
		case in.Name == "":
			return nil, errors.New("mapserver: a site has no name")
		case p.sites[in.Name] != nil:
			return nil, fmt.Errorf("%s: configured twice", where)
		case len(in.Keys) == 0:
			return nil, fmt.Errorf("%s: no keys", where)
		case len(in.Prefixes) == 0:
			return nil, fmt.Errorf("%s: no EID prefixes", where)
		}
		seen := map[uint8]bool{}
		for _, k := range slices.Concat(in.Keys, in.ControllerKeys) {
			if err := checkKey(k); err != nil {
				return nil, fmt.Errorf("%s: %w", where, err)
			}
			if seen[k.ID] {
				return nil, fmt.Errorf("%s: key %d is configured twice", where, k.ID)
			}
			seen[k.ID] = true
		}
		for _, e := range in.Prefixes {
			if !e.IsValid() || e != lisp.MakeEID(e.IID, e.Prefix) {
				return nil, fmt.Errorf("%s: EID prefix %s is not valid", where, e)
			}
			if other, ok := p.configured.Get(e); ok {
				return nil, fmt.Errorf("%s: EID prefix %s belongs to site %q", where, e, other.Name)
			}
			p.configured.Insert(e, s)
		}
		p.sites[in.Name] = s
	}
	for i, s := range cfg.Subscribers {
		if err := checkKey(s.Key); err != nil {
			return nil, fmt.Errorf("mapserver: subscriber %d: %w", i+1, err)
		}
	}
	return p, nil
}

func checkKey(k lisp.Key) error {
	switch k.Algorithm {
	case lisp.AlgHMACSHA1_96, lisp.AlgHMACSHA256_128, lisp.AlgHMACSHA256_128_HKDF:
	default:
		return fmt.Errorf("key %d: algorithm %d is not one that is implemented", k.ID, k.Algorithm)
	}
	if k.Secret == "" {
		return fmt.Errorf("key %d: no secret", k.ID)
	}
	return nil
}

// siteOf finds the site that may register e, and if there is none, why.
func (p *policy) siteOf(e lisp.EID) (*site, reason) {
	covering, s, ok := p.configured.LookupEID(e)
	switch {
	case !ok:
		return nil, reasonNotConfigured
	case covering != e && !s.AcceptMoreSpecifics:
		return s, reasonMoreSpecific
	}
	return s, ""
}

// subscriber finds the entry that a subscribing xTR matches. denied reports that there is one with its
// xTR-ID, which does not allow its ITR-RLOCs.
func (p *policy) subscriber(x lisp.XTRID, rlocs []netip.Addr) (key *lisp.Key, denied bool) {
	allowed := func(s *Subscriber) bool {
		return len(s.RLOCs) == 0 || !slices.ContainsFunc(rlocs, func(a netip.Addr) bool {
			return a.IsValid() && !slices.ContainsFunc(s.RLOCs, func(p netip.Prefix) bool { return p.Contains(a) })
		})
	}
	for i := range p.Subscribers {
		if s := &p.Subscribers[i]; s.XTRID == x && !x.IsZero() {
			return &s.Key, !allowed(s)
		}
	}
	for i := range p.Subscribers {
		if s := &p.Subscribers[i]; s.XTRID.IsZero() && allowed(s) {
			return &s.Key, false
		}
	}
	return nil, false
}
