package main

import (
	"context"
	"maps"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/detr/bgp"
)

// withBGP adds the table "bgp" to those of a role; status is nil when no BGP is configured.
type withBGP struct {
	admin.Daemon
	status func(context.Context) ([]bgp.PeerStatus, error)
}

func (w withBGP) Shows() map[string]func(context.Context) (any, error) {
	m := maps.Clone(w.Daemon.Shows())
	m["bgp"] = func(ctx context.Context) (any, error) {
		if w.status == nil {
			return []bgp.PeerStatus{}, nil
		}
		return w.status(ctx)
	}
	return m
}
