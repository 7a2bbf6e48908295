package bgp

import (
	"context"
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
)

// renewLost gives each peer whose session has ended a new one, until ctx ends. GoBGP keeps the old one idle for five
// seconds in which it turns the peer away, and whom it has turned away is idle itself: a D-ETR that starts again would
// learn of no move for up to half a minute. A new session waits for the peer at once. It is for roles that have nothing
// to remember of a peer.
func (s *speaker) renewLost(ctx context.Context) error {
	idle := make(chan netip.Addr, len(s.cfg.Peers))
	was := make(map[netip.Addr]bool) // established; GoBGP calls from one goroutine
	err := s.srv.WatchEvent(ctx, &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}}, func(r *api.WatchEventResponse) {
		st := r.GetPeer().GetPeer().GetState()
		a, err := netip.ParseAddr(st.GetNeighborAddress())
		if err != nil {
			return
		}
		switch st.GetSessionState() {
		case api.PeerState_ESTABLISHED:
			was[a] = true
		case api.PeerState_IDLE:
			if was[a] {
				was[a] = false
				select {
				case idle <- a:
				default: // it is waited for already
				}
			}
		}
	})
	if err != nil {
		return fmt.Errorf("bgp: %s: watch: %w", s.role.name, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-idle:
			if err := s.renew(ctx, a); err != nil {
				s.log.Warn("bgp: session not renewed", "peer", a, "err", err)
			}
		}
	}
}

// renew makes GoBGP forget a peer and know it again.
func (s *speaker) renew(ctx context.Context, a netip.Addr) error {
	for _, p := range s.cfg.Peers {
		if p.Addr != a {
			continue
		}
		if err := s.srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: a.String()}); err != nil {
			return err
		}
		return s.srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(p)})
	}
	return nil
}
