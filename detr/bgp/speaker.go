package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
)

// Config is one BGP speaker: who it is and whom it speaks with.
type Config struct {
	LocalAS  uint32
	RouterID netip.Addr // IPv4; unique in the AS
	// Listen are the addresses to accept sessions at, on Port; none means all. Port 0 means 179, and
	// NoListener that this speaker only connects.
	Listen []netip.Addr
	Port   int

	HoldTime     time.Duration // 3 s or more; 0 means 90 s
	ConnectRetry time.Duration // between attempts, whole seconds; 0 means 1 s
	// RestartTime is how long peers are asked to keep our paths while we restart (RFC 4724), up to
	// 4095 s; 0 means 10 minutes. Pusher and Feed use it; see the package's documentation.
	RestartTime time.Duration

	Peers []Peer
}

// NoListener as a Config's Port accepts no sessions.
const NoListener = -1

// Peer is a BGP neighbour.
type Peer struct {
	Addr      netip.Addr
	AS        uint32
	Port      uint16     // the peer's TCP port; 0 means 179
	LocalAddr netip.Addr // ours for this session; invalid means whatever the routing says
	Password  string     // TCP MD5 (RFC 2385); "" means none
	Passive   bool       // wait for the peer to connect; see the package's documentation
	// Multihop is how many hops away an eBGP peer may be; 0 means directly connected.
	Multihop uint8
	// TTLSecurity drops packets from farther away than so many hops (RFC 5082); 0 means off. It
	// excludes Multihop.
	TTLSecurity uint8
	Families    []Family // none means what the role uses
}

const (
	defaultHoldTime    = 90 * time.Second
	defaultRestartTime = 10 * time.Minute
	maxRestartTime     = 4095 * time.Second // RFC 4724 section 3: 12 bits
	// addPathMax bounds the locators of a mapping on a session: GoBGP counts them in 8 bits.
	addPathMax = 64
)

func (c *Config) check() error {
	switch {
	case c.LocalAS == 0:
		return errors.New("no local AS")
	case !c.RouterID.Is4():
		return fmt.Errorf("router ID %v is no IPv4 address", c.RouterID)
	case c.HoldTime != 0 && c.HoldTime < 3*time.Second:
		return fmt.Errorf("hold time %v is below 3s", c.HoldTime)
	case c.RestartTime < 0 || c.RestartTime > maxRestartTime:
		return fmt.Errorf("restart time %v is not in 0..%v", c.RestartTime, maxRestartTime)
	}
	seen := make(map[netip.Addr]bool)
	for _, p := range c.Peers {
		switch {
		case !p.Addr.IsValid() || p.Addr.IsUnspecified():
			return errors.New("a peer has no address")
		case p.AS == 0:
			return fmt.Errorf("peer %v has no AS", p.Addr)
		case seen[p.Addr]:
			return fmt.Errorf("peer %v appears twice", p.Addr)
		case p.Multihop != 0 && p.TTLSecurity != 0:
			return fmt.Errorf("peer %v: multihop and TTL security exclude each other", p.Addr)
		}
		seen[p.Addr] = true
		for _, f := range p.Families {
			if f.api() == nil {
				return fmt.Errorf("peer %v: unknown family %q", p.Addr, f)
			}
		}
	}
	return nil
}

// A role is what a speaker does, as far as its sessions are concerned.
type role struct {
	name     string
	graceful bool // graceful restart
	send     bool // ADD-PATH: send several paths of a prefix
	receive  bool // ADD-PATH: take several paths of a prefix
	families []Family
}

// A speaker is one GoBGP server in one role.
type speaker struct {
	role role
	cfg  Config
	log  *slog.Logger
	srv  *server.BgpServer

	mu      sync.Mutex
	started bool
	sent    map[Family]uint64 // routes of ours in GoBGP's table
}

// newSpeaker starts a GoBGP server that listens but knows no peers yet: it closes whatever connects.
//
// The server's goroutine cannot be ended: GoBGP has no way to.
func newSpeaker(r role, cfg Config, log *slog.Logger) (*speaker, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("bgp: %s: %w", r.name, err)
	}
	cfg.HoldTime = cmp.Or(cfg.HoldTime, defaultHoldTime)
	cfg.ConnectRetry = max(cfg.ConnectRetry, time.Second)
	cfg.RestartTime = cmp.Or(cfg.RestartTime, defaultRestartTime)
	if cfg.Port != NoListener && new(net.ListenConfig).MultipathTCP() {
		// Go listens with MPTCP unless told otherwise; such sockets know neither TCP MD5 nor TTL security.
		return nil, fmt.Errorf("bgp: %s: MPTCP is on: build with godebug multipathtcp=0", r.name)
	}
	log = log.With("role", r.name)
	s := &speaker{
		role: r, cfg: cfg, log: log, sent: make(map[Family]uint64),
		srv: server.NewBgpServer(server.LoggerOption(logger{log})),
	}
	go s.srv.Serve()
	g := &api.Global{Asn: cfg.LocalAS, RouterId: cfg.RouterID.String(), ListenPort: int32(cfg.Port)}
	for _, a := range cfg.Listen {
		g.ListenAddresses = append(g.ListenAddresses, a.String())
	}
	if err := s.srv.StartBgp(context.Background(), &api.StartBgpRequest{Global: g}); err != nil {
		return nil, fmt.Errorf("bgp: %s: start: %w", r.name, err)
	}
	return s, nil
}

// start brings the sessions up; more than once is as good as once.
func (s *speaker) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return nil
	}
	for _, p := range s.cfg.Peers {
		if err := s.srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(p)}); err != nil {
			return fmt.Errorf("bgp: %s: peer %v: %w", s.role.name, p.Addr, err)
		}
	}
	s.started = true
	return nil
}

func (s *speaker) families(p Peer) []Family {
	if len(p.Families) > 0 {
		return p.Families
	}
	return s.role.families
}

// peer is p as GoBGP wants it.
func (s *speaker) peer(p Peer) *api.Peer {
	n := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Addr.String(), PeerAsn: p.AS, LocalAsn: s.cfg.LocalAS, AuthPassword: p.Password,
		},
		// GoBGP takes the families only from a peer with a State.
		State: &api.PeerState{},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:           uint64(s.cfg.ConnectRetry / time.Second),
			HoldTime:               uint64(s.cfg.HoldTime / time.Second),
			KeepaliveInterval:      max(1, uint64(s.cfg.HoldTime/time.Second)/3),
			IdleHoldTimeAfterReset: 1,
		}},
		Transport: &api.Transport{PassiveMode: p.Passive, RemotePort: uint32(p.Port)},
	}
	if p.LocalAddr.IsValid() {
		n.Transport.LocalAddress = p.LocalAddr.String()
	}
	if p.Multihop != 0 {
		n.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)}
	}
	if p.TTLSecurity != 0 {
		n.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(p.TTLSecurity)}
	}
	if s.role.graceful {
		n.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(s.cfg.RestartTime / time.Second), NotificationEnabled: true,
		}
	}
	for _, f := range s.families(p) {
		a := &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: f.api(), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: s.role.graceful}},
			AddPaths:          &api.AddPaths{Config: &api.AddPathsConfig{Receive: s.role.receive}},
		}
		if s.role.send {
			a.AddPaths.Config.SendMax = addPathMax
		}
		n.AfiSafis = append(n.AfiSafis, a)
	}
	return n
}

// add announces r to all peers, now and later.
func (s *speaker) add(ctx context.Context, r route) error {
	_, err := s.srv.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: r.apiPath(s.cfg.LocalAS)})
	return err
}

// del withdraws what add announced.
func (s *speaker) del(ctx context.Context, w *api.Path) error {
	return s.srv.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: w})
}

// count notes how many routes of a family we announce.
func (s *speaker) count(f Family, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[f] = uint64(int64(s.sent[f]) + int64(n))
}

// stop ends all sessions. With graceful restart, peers that understand RFC 8538 keep our paths for the
// restart time; else everybody forgets them.
func (s *speaker) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	s.closeSessions(ctx)
	return s.srv.StopBgp(ctx, &api.StopBgpRequest{})
}

// stopTime is how long peers may take to hear that a session ends.
const stopTime = time.Second

// closeSessions tells peers why, and waits until their sessions are down. StopBgp would close them too, but
// with "peer deconfigured", which ends graceful restart (a hard reset, RFC 8538 section 3.1), and while
// GoBGP's goroutines still read the configuration that it clears.
func (s *speaker) closeSessions(ctx context.Context) {
	open := func() (addrs []string) {
		_ = s.srv.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
			if p.State.SessionState == api.PeerState_ESTABLISHED {
				addrs = append(addrs, p.State.NeighborAddress)
			}
		})
		return addrs
	}
	for _, a := range open() {
		var err error
		if s.role.graceful {
			err = s.srv.ResetPeer(ctx, &api.ResetPeerRequest{Address: a, Communication: "restarting"})
		} else {
			err = s.srv.ShutdownPeer(ctx, &api.ShutdownPeerRequest{Address: a, Communication: "shutting down"})
		}
		if err != nil {
			s.log.Warn("bgp: close", "peer", a, "err", err)
		}
	}
	for len(open()) > 0 && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
}

// PeerStatus is one line of "show bgp".
type PeerStatus struct {
	Peer       netip.Addr    `json:"peer"`
	AS         uint32        `json:"as"`
	Role       string        `json:"role"`       // pusher, feed, upstream or router
	State      string        `json:"state"`      // established, active, ...
	Since      time.Time     `json:"since"`      // of the session, or of its loss; whole seconds
	Up         time.Duration `json:"-"`          // how long established; 0 if not
	Synced     bool          `json:"synced"`     // a feed: the peer has sent all its mappings; else: established
	Received   uint64        `json:"received"`   // paths in the adj-RIB-in
	Stale      uint64        `json:"stale"`      // of which kept for graceful restart
	Advertised uint64        `json:"advertised"` // paths
	Families   string        `json:"families"`   // negotiated
	RouterID   string        `json:"router_id"`
	UpdatesIn  uint64        `json:"updates_in"`
	UpdatesOut uint64        `json:"updates_out"`
}

// status asks GoBGP for the state of all sessions, sorted by peer.
func (s *speaker) status(ctx context.Context) ([]PeerStatus, error) {
	var out []PeerStatus
	now := time.Now()
	err := s.srv.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
		st := PeerStatus{Role: s.role.name, AS: p.Conf.PeerAsn, RouterID: p.State.RouterId}
		st.Peer, _ = netip.ParseAddr(p.State.NeighborAddress)
		st.State = strings.ToLower(p.State.SessionState.String())
		if m := p.State.Messages; m != nil {
			st.UpdatesIn, st.UpdatesOut = m.Received.GetUpdate(), m.Sent.GetUpdate()
		}
		up := p.State.SessionState == api.PeerState_ESTABLISHED
		st.Synced = up
		if t := p.Timers.GetState(); up && t.GetUptime() != nil {
			st.Since = t.Uptime.AsTime()
			st.Up = now.Sub(st.Since)
		} else if t.GetDowntime() != nil {
			st.Since = t.Downtime.AsTime()
		}
		remote := remoteFamilies(p)
		var names []string
		for _, a := range p.AfiSafis {
			f, ok := familyOf(a.GetConfig().GetFamily())
			if !ok {
				continue
			}
			st.Received += a.GetState().GetReceived()
			if up && remote[f] {
				names = append(names, string(f))
				s.mu.Lock()
				st.Advertised += s.sent[f]
				s.mu.Unlock()
			}
		}
		st.Families = strings.Join(names, " ")
		out = append(out, st)
	})
	if err != nil {
		return nil, fmt.Errorf("bgp: %s: list peers: %w", s.role.name, err)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Peer.Compare(b.Peer) })
	return out, nil
}

// remoteFamilies are the families that the peer's OPEN offered.
func remoteFamilies(p *api.Peer) map[Family]bool {
	fs := make(map[Family]bool)
	for _, c := range p.GetState().GetRemoteCap() {
		if c.MessageIs((*api.MultiProtocolCapability)(nil)) {
			var mp api.MultiProtocolCapability
			if c.UnmarshalTo(&mp) == nil {
				if f, ok := familyOf(mp.Family); ok {
					fs[f] = true
				}
			}
		}
	}
	return fs
}
