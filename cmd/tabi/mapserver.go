package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/detr/bgp"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/mapserver"
	"github.com/tabi-lisp/tabi/mapserver/boltstore"
)

var _ lisp.Sink = (*bgp.Pusher)(nil)

func newMapServerCommand() *cobra.Command {
	return daemonCommand("mapserver", "Run a Map-Server and Map-Resolver", runMapServer,
		func(c *config.MapServer) config.Common { return c.Common })
}

func runMapServer(ctx context.Context, c *config.MapServer, d *daemon) (err error) {
	store, err := boltstore.Open(filepath.Join(d.StateDir, "mapserver.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ep, err := d.endpoint(ctx, c.Listen...)
	if err != nil {
		return err
	}
	sinks := map[string]lisp.Sink{}
	var shown withBGP
	if c.BGP != nil {
		pusher, err := bgp.NewPusher(*c.BGP, d.log)
		if err != nil {
			return err
		}
		d.part("bgp", pusher.Run)
		sinks["bgp"], shown.status = pusher, pusher.Status
	}
	server, err := mapserver.New(c.Server, ep, store, sinks, d.log)
	if err != nil {
		return err
	}
	shown.Daemon = server
	d.part("mapserver", server.Run)
	d.serve(shown, nil)
	return d.run(ctx)
}
