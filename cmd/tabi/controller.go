package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/boltstore"
	"github.com/tabi-lisp/tabi/controller/libvirt"
)

func newControllerCommand() *cobra.Command {
	return daemonCommand("controller", "Run the controller: the inventory, and the moves", runController,
		func(c *config.Controller) config.Common { return c.Common })
}

func runController(ctx context.Context, c *config.Controller, d *daemon) (err error) {
	store, err := boltstore.Open(filepath.Join(d.StateDir, "controller.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	ep, err := d.endpoint(ctx, c.Addresses...)
	if err != nil {
		return err
	}
	c.Core.Drivers = func(uri string) (controller.Driver, error) {
		drv, err := libvirt.New(uri, d.log)
		if err != nil {
			return nil, err
		}
		return drv, nil
	}
	ctl, err := controller.New(c.Core, ep, store, d.log)
	if err != nil {
		return err
	}
	d.part("controller", ctl.Run)
	d.serve(ctl, nil)
	if err := d.listen(ctx, c.API.Listen, ctl.Handler()); err != nil {
		return err
	}
	return d.run(ctx)
}
