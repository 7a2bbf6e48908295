package main

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/controller/libvirt"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr"
	"github.com/tabi-lisp/tabi/xtr/gateway"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// The seams of the agent: what the engine asks for, and who gives it.
var (
	_ xtr.Endpoint  = (*control.Endpoint)(nil)
	_ xtr.DataPlane = (*kernel.DataPlane)(nil)
	_ xtr.SlowPath  = engineSlowPath{}
	_ xtr.Ports     = (*gateway.Gateway)(nil)
	_ slowpath.Door = (*kernel.DataPlane)(nil)
)

func newXTRCommand() *cobra.Command {
	return daemonCommand("xtr", "Run the agent of a hypervisor: the gateway of its VMs, which encapsulates and decapsulates", runXTR,
		func(c *config.XTR) config.Common { return c.Common })
}

func runXTR(ctx context.Context, c *config.XTR, d *daemon) error {
	p, err := openPlane(ctx, c.Kernel, c.SlowPath, c.Underlay, d)
	if err != nil {
		return err
	}
	defer p.kernel.Close()
	// Each of the two asks the other; neither does before it runs.
	var x *xtr.XTR
	gw, err := gateway.New(c.Gateway, func(a netip.Addr) (int, bool) { return x.Local(a) }, d.log)
	if err != nil {
		return err
	}
	if x, err = xtr.New(c.Engine, p.control, p.kernel, engineSlowPath{p.slow}, gw, d.log); err != nil {
		return err
	}
	d.part("xtr", x.Run)
	d.part("gateway", gw.Run)
	if c.VMs.Libvirt != "" {
		hv, err := libvirt.New(c.VMs.Libvirt, d.log)
		if err != nil {
			return err
		}
		d.part("libvirt", func(ctx context.Context) error {
			watchGuests(ctx, hv, x, defaultGuestTimes, d.log)
			return hv.Close()
		})
	}
	if c.VMs.QMP != "" {
		d.part("qmp", func(ctx context.Context) error { return watchMonitors(ctx, c.VMs.QMP, x, d.log) })
	}
	d.part("events", func(ctx context.Context) error {
		a := agent{x: x, dp: p.kernel, gw: gw, sp: p.slow, port: kernel.Port{IID: c.Engine.IID, Stack: c.Stack}, log: d.log}
		a.run(ctx)
		return nil
	})
	d.serve(withCounters{x, append(p.counted(), counted{"gateway", gw.Counters})}, x.Handler())
	if err := d.listen(ctx, c.API.Listen, admin.RequireToken(c.API.Token, x.Handler())); err != nil {
		return err
	}
	return d.run(ctx)
}

// agent passes on what the gateway, the slow path and the kernel notice.
type agent struct {
	x    *xtr.XTR
	dp   *kernel.DataPlane
	gw   *gateway.Gateway
	sp   *slowpath.SlowPath
	port kernel.Port
	log  *slog.Logger
}

func (a agent) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-a.gw.Ports():
			a.portChanged(p)
		case s := <-a.gw.Sightings():
			a.x.Sighting(xtr.Sighting{If: s.If, MAC: s.MAC, Addr: s.Addr, Kind: s.Kind, At: s.At})
		case m := <-a.sp.Misses():
			a.x.Miss(m.IID, m.Src, m.Dst)
		case ev := <-a.dp.Events():
			a.x.DataPlaneEvent(ev)
		}
	}
}

func (a agent) portChanged(p gateway.PortEvent) {
	if !p.Up {
		a.x.PortDown(p.If)
		if err := a.dp.DetachVM(p.If); err != nil {
			a.log.Warn("VM interface not detached", "if", p.Name, "err", err)
		}
		return
	}
	number, err := a.dp.AttachVM(p.If, a.port)
	if err != nil {
		a.log.Error("VM interface not attached", "if", p.Name, "err", err)
		return
	}
	a.x.PortUp(p.Name, p.If, number)
}

// engineSlowPath gives the engine its own names for what a hold ends in.
type engineSlowPath struct{ *slowpath.SlowPath }

func (s engineSlowPath) Flush(hold uint32, done func(xtr.HoldStats)) {
	s.SlowPath.Flush(hold, func(h slowpath.HoldStats) { done(xtr.HoldStats(h)) })
}

func (s engineSlowPath) GiveBack(hold uint32, done func(xtr.HoldStats)) {
	s.SlowPath.GiveBack(hold, func(h slowpath.HoldStats) { done(xtr.HoldStats(h)) })
}
