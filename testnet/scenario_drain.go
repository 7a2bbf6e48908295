package testnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// DrainOptions say how a hypervisor is drained. The zero value is the demo's.
type DrainOptions struct {
	VMs      int           // on the hypervisor; 0 = 200
	Parallel int           // moves at the same time; 0 = 8
	Blackout time.Duration // how long a VM runs nowhere; 0 = 50 ms
	Rate     int           // packets a second of each of a VM's flows, in each direction; 0 = 10
}

func (o *DrainOptions) fill() {
	if o.VMs == 0 {
		o.VMs = 200
	}
	if o.Parallel == 0 {
		o.Parallel = 8
	}
	if o.Blackout == 0 {
		o.Blackout = 50 * time.Millisecond
	}
	if o.Rate == 0 {
		o.Rate = 10
	}
}

// The hypervisor that is drained, and those that its VMs may go to.
const drainFrom = "nara-hv1"

var drainTo = []string{"nezu-hv1", "hokuriku-hv1"}

// drainRest is how long the flows run before the first move and after the last.
const drainRest = time.Second

// Drain lets many VMs run on one hypervisor, empties it onto two others, and reports what the VMs' flows saw, where the
// tables and the wire had each EID, and what the daemons took. An error is one of the test's own steps; what the cloud
// did wrong is a report that does not pass.
func (c *Cloud) Drain(ctx context.Context, o DrainOptions) (*DrainReport, error) {
	o.fill()
	begin := time.Now()
	f, err := startFleet(ctx, c, drainFrom, o.VMs, o.Rate)
	if err != nil {
		return nil, err
	}
	c.opts.Progress(fmt.Sprintf("%d VMs run on %s (%.1f s)", o.VMs, drainFrom, time.Since(begin).Seconds()))
	d := &drain{c: c, o: o, f: f, report: &DrainReport{VMs: o.VMs, From: drainFrom, Parallel: o.Parallel, Machine: machine()},
		tables: newTableTrails(), moves: make([]*DrainMove, 0, o.VMs)}
	r, err := d.play(ctx)
	return r, errors.Join(err, f.close())
}

// drain is a Drain under way.
type drain struct {
	c      *Cloud
	o      DrainOptions
	f      *fleet
	report *DrainReport
	wire   *wireWitness
	tables *tableTrails // its own goroutine's until watching has ended

	mu    sync.Mutex
	moves []*DrainMove
	now   int // moves under way
}

func (d *drain) play(ctx context.Context) (*DrainReport, error) {
	drops := backlogDrops()
	if err := d.c.drops.reset(d.c.hosts); err != nil {
		return nil, err
	}
	meter, err := newUsageMeter(d.c, "xtr", "mapserver", "controller", "detr")
	if err != nil {
		return nil, err
	}
	var eids []netip.Addr
	for _, v := range d.f.vms {
		eids = append(eids, v.v4, v.v6)
	}
	if d.wire, err = watchWire(d.c, eids); err != nil {
		return nil, err
	}
	defer d.wire.stop()
	dropped, err := d.c.daemonDrops(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.f.flows.Start(ctx); err != nil {
		return nil, err
	}
	watching, enough := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { d.watchTables(watching) })
	err = d.drainAll(ctx)
	enough()
	watch.Wait()
	if err != nil {
		return nil, err
	}
	d.c.opts.Progress("the last packets arrive")
	if err := d.f.flows.Stop(ctx); err != nil {
		return nil, err
	}
	d.c.opts.Progress("counting")
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r := d.report
	now, err := d.c.daemonDrops(ctx)
	if err != nil {
		return nil, err
	}
	r.Dropped = grown(dropped, now)
	if r.Usage, err = meter.read(); err != nil {
		return nil, err
	}
	r.Machine.BacklogDrops = backlogDrops() - drops
	r.Machine.VMMLost = d.f.lost()
	if r.Machine.LinkDrops, err = d.c.drops.since(d.c.hosts); err != nil {
		return nil, err
	}
	frames, missed, err := d.wire.stop()
	if err != nil {
		return nil, err
	}
	r.WireFrames, r.WireMissed, r.TableLooks = frames, missed, d.tables.looks
	if err := d.pushTimes(ctx); err != nil {
		return nil, err
	}
	d.judgePlaces()
	r.Moves = d.moves
	r.judge(d.f.flows.Report(d.windows()))
	return r, nil
}

// drainAll lets the flows run, moves every VM, and waits until everybody knows.
func (d *drain) drainAll(ctx context.Context) error {
	if err := sleep(ctx, drainRest); err != nil {
		return err
	}
	plan, err := d.plan(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	turns := make(chan struct{}, d.o.Parallel)
	var wg sync.WaitGroup
	for i, p := range plan {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := d.move(ctx, i, p); err != nil {
				fail(fmt.Errorf("testnet: move of %s to %s: %w", p.VM, p.To, err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d.report.Seconds = time.Since(began).Seconds()
	d.c.opts.Progress("the old interfaces go")
	if err := d.f.settle(); err != nil {
		return err
	}
	if err := d.f.waitKnown(ctx); err != nil {
		d.report.Problems = append(d.report.Problems, err.Error())
	}
	return sleep(ctx, drainRest)
}

// drainStep is one move of a plan.
type drainStep struct {
	VM string `json:"vm"`
	To string `json:"to"`
}

// plan is the controller's: which VM goes where, in which order.
func (d *drain) plan(ctx context.Context) ([]drainStep, error) {
	for _, n := range nodesOf("xtr", inCloud) {
		if n.name == drainFrom || slices.Contains(drainTo, n.name) {
			continue
		}
		// It takes nobody either, so that there are two that do.
		body := map[string]any{"site": n.site, "site_id": configData{node: n}.SiteNumber(), "rloc": n.rlocList()[0].String(), "xtr_id": n.xtrID(),
			"agent": "http://" + n.v4().String() + ":4380", "drained": true}
		if err := d.c.Controller(ctx, http.MethodPut, "/v1/hypervisors/"+n.name, body, nil); err != nil {
			return nil, err
		}
	}
	var planned []struct {
		drainStep
		Why string `json:"why"`
	}
	if err := d.c.Controller(ctx, http.MethodPost, "/v1/hypervisors/"+drainFrom+"/drain", map[string]bool{"plan_only": true}, &planned); err != nil {
		return nil, err
	}
	var out []drainStep
	for _, p := range planned {
		if p.To == "" {
			return nil, fmt.Errorf("testnet: the controller has no place for %s: %s", p.VM, p.Why)
		}
		out = append(out, p.drainStep)
	}
	if len(out) != len(d.f.vms) {
		return nil, fmt.Errorf("testnet: the controller has a place for %d of %d VMs", len(out), len(d.f.vms))
	}
	return out, nil
}

// move makes one move, with every signal that a cloud gives.
func (d *drain) move(ctx context.Context, i int, p drainStep) error {
	v, ok := d.f.find(p.VM)
	if !ok {
		return errors.New("the plan has a VM that is not of the fleet")
	}
	from, to := d.c.hosts[v.at], d.c.hosts[p.To]
	m := &DrainMove{ID: fmt.Sprintf("drain-%03d", i), VM: v.name, To: p.To, window: Window{From: time.Now()}}
	d.step(+1)
	defer d.step(-1)
	if err := d.prepare(ctx, m); err != nil {
		return err
	}
	m.PrepareMS = ms(time.Since(m.window.From))
	if err := v.vm.Open(to.ns); err != nil {
		return err
	}
	if err := awaitServed(ctx, to.ns, v.vm.Tap); err != nil {
		return err
	}
	paused := v.vm.Pause()
	if err := tellEvent(ctx, from, v.name, "stop", paused); err != nil {
		m.Problems = append(m.Problems, err.Error())
	}
	if err := sleep(ctx, time.Until(paused.Add(d.o.Blackout))); err != nil {
		return err
	}
	ran, err := v.vm.Resume(to.ns, true)
	if err != nil {
		return err
	}
	v.at, m.ran, m.BlackoutMS = p.To, ran, ms(ran.Sub(paused))
	if err := tellEvent(ctx, to, v.name, "resume", ran); err != nil {
		m.Problems = append(m.Problems, err.Error())
	}
	if err := d.c.Controller(ctx, http.MethodPost, "/v1/moves/"+m.ID+"/commit", nil, nil); err != nil {
		m.Problems = append(m.Problems, err.Error())
	}
	m.window.To = time.Now().Add(time.Second)
	d.f.removeLater(v, from)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.moves = append(d.moves, m)
	if n := len(d.moves); n%(max(d.o.VMs, 10)/10) == 0 || n == d.o.VMs {
		d.c.opts.Progress(fmt.Sprintf("%d of %d VMs moved", n, d.o.VMs))
	}
	return nil
}

// awaitServed waits until the agent has made an interface its own, which shows in its MAC address, and then as long as a
// VMM does at least: QEMU has the interface from when it starts until it has copied the VM's memory.
func awaitServed(ctx context.Context, n *Namespace, tap string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("the agent does not take %s within 10 s", tap))
	defer cancel()
	for {
		mac := ""
		err := n.Do(func() error {
			l, err := netlink.LinkByName(tap)
			if err == nil {
				mac = l.Attrs().HardwareAddr.String()
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("testnet: %s: %w", tap, err)
		}
		if mac == gatewayMAC {
			return sleep(ctx, qemuLead)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// qemuLead is how long before a guest runs its interface is up at the target, as measured with QEMU.
const qemuLead = 345 * time.Millisecond

// step counts moves that are under way.
func (d *drain) step(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now += n
	d.report.AtOnce = max(d.report.AtOnce, d.now)
}

// prepare asks the controller until it says that both agents are ready.
func (d *drain) prepare(ctx context.Context, m *DrainMove) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var rec controllerRecord
	err := d.c.Controller(ctx, http.MethodPut, "/v1/moves/"+m.ID, drainStep{m.VM, m.To}, &rec)
	for err == nil && rec.State == "preparing" {
		if err = sleep(ctx, 5*time.Millisecond); err == nil {
			err = d.c.Controller(ctx, http.MethodGet, "/v1/moves/"+m.ID, nil, &rec)
		}
	}
	if err == nil && rec.State != "prepared" {
		err = fmt.Errorf("the controller says %q: %s %s", rec.State, rec.Why, rec.Error)
	}
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	return nil
}

// tellEvent tells an agent what its hypervisor would.
func tellEvent(ctx context.Context, h *Host, vm, what string, at time.Time) error {
	type event struct {
		VM    string    `json:"vm"`
		Event string    `json:"event"`
		At    time.Time `json:"at"`
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := h.Admin(ctx, http.MethodPost, "/v1/events", event{vm, what, at}, nil); err != nil {
		return fmt.Errorf("%s event: %w", what, err)
	}
	return nil
}

// tableEvery is the time between two readings of all tables.
const tableEvery = 200 * time.Millisecond

// watchTables reads the tables of all Map-Servers and D-ETRs until ctx ends.
func (d *drain) watchTables(ctx context.Context) {
	var eids []string
	for _, v := range d.f.vms {
		eids = append(eids, v.eids()...)
	}
	var hypervisors []netip.Addr
	for _, n := range nodesOf("xtr", inCloud) {
		hypervisors = append(hypervisors, n.rlocList()...)
	}
	for sleep(ctx, tableEvery) == nil {
		for _, role := range []string{"mapserver", "detr"} {
			for _, n := range nodesOf(role, inCloud) {
				if rows, err := d.c.anchorMappings(ctx, n.name); err == nil {
					d.tables.look(n.name, rows, eids, hypervisors, time.Now())
				} else if ctx.Err() == nil {
					d.tables.problems[err.Error()]++
				}
			}
		}
	}
}

// judgePlaces says where EIDs were that they should not have been.
func (d *drain) judgePlaces() {
	r := d.report
	r.Misplaced = append(r.Misplaced, d.tables.seen()...)
	from := mustNode(d.f.home).rlocList()[0]
	for _, v := range d.f.vms {
		to := mustNode(v.at).rlocList()[0]
		for _, a := range []netip.Addr{v.v4, v.v6} {
			r.Misplaced = append(r.Misplaced, d.wire.trails.judge(a, from, to)...)
			r.Misplaced = append(r.Misplaced, d.tables.judge(netip.PrefixFrom(a, a.BitLen()).String(), from, to)...)
		}
	}
}

// pushTimes reads when each D-ETR had the new mappings in its kernel.
func (d *drain) pushTimes(ctx context.Context) error {
	for _, anchor := range d.c.anchors() {
		rows, err := d.c.anchorMappings(ctx, anchor)
		if err != nil {
			return err
		}
		for _, m := range d.moves {
			v, _ := d.f.find(m.VM)
			for _, eid := range v.eids() {
				if row, ok := rows[eid]; ok {
					m.RunToPushMS = max(m.RunToPushMS, ms(row.InstalledAt.Sub(m.ran)))
				}
			}
		}
	}
	return nil
}

func (d *drain) windows() (out []Window) {
	for _, m := range d.moves {
		out = append(out, m.window)
	}
	return out
}
