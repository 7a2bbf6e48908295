package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// FleetMax is how many VMs a hypervisor that is drained can have: their IPv4 addresses are those of the aggregate that nobody else has.
const FleetMax = 220

// fleet is many namespace VMs that begin on one hypervisor, each in a network namespace of its own, with a MAC, an IPv4
// and an IPv6 EID, and a counted UDP flow in each family to a client on the Internet.
type fleet struct {
	c     *Cloud
	home  string
	vms   []*fleetVM
	flows *Flows

	mu       sync.Mutex
	removals []*time.Timer
	errs     []error // of the removals
	removing sync.WaitGroup
}

// fleetVM is one of them. What changes in it is changed by who moves it.
type fleetVM struct {
	name   string
	v4, v6 netip.Addr
	vm     *VM
	host   *Host
	at     string // hypervisor
}

// eids are the VM's addresses as EIDs.
func (v *fleetVM) eids() []string { return endpoint{v.v4, v.v6}.eids() }

// fleetAddrs are the addresses of a fleet's VM number i.
func fleetAddrs(i int) (v4, v6 netip.Addr, mac net.HardwareAddr) {
	a := aggregate4.Addr().As4()
	a[3] = byte(30 + i)
	b := onLink6.Addr().As16()
	b[14], b[15] = 0x10, byte(30+i)
	return netip.AddrFrom4(a), netip.AddrFrom16(b), net.HardwareAddr{0x52, 0x54, 0, 1, 0, byte(30 + i)}
}

// startFleet makes n VMs, tells the controller of them, lets them run on a hypervisor, and waits until every D-ETR knows
// where all of their EIDs are. rate is in packets a second, of each flow in each direction.
func startFleet(ctx context.Context, c *Cloud, home string, n, rate int) (*fleet, error) {
	if n < 1 || n > FleetMax {
		return nil, fmt.Errorf("testnet: %d VMs: 1 to %d can be had", n, FleetMax)
	}
	f := &fleet{c: c, home: home, flows: new(Flows)}
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(context.Cause(ctx), f.close())
		}
		if err := f.add(i); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	for _, step := range []func(context.Context) error{f.putInventory, f.run, f.waitKnown} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	f.addFlows(rate)
	return f, nil
}

// add makes VM number i; it runs nowhere yet.
func (f *fleet) add(i int) error {
	v := &fleetVM{name: fmt.Sprintf("d%03d", i), at: f.home}
	var mac net.HardwareAddr
	v.v4, v.v6, mac = fleetAddrs(i)
	h, err := f.c.addHost(v.name, "VM "+v.v4.String()+" "+v.v6.String())
	if err != nil {
		return err
	}
	v.host = h
	v.vm, err = NewVM(h.ns, VMConfig{Name: v.name, MAC: mac, Addrs: linkAddrs(v.v4, v.v6), Gateway4: vmGateway4, Gateway6: vmGateway6})
	if err != nil {
		return err
	}
	f.vms = append(f.vms, v)
	return nil
}

// putInventory tells the controller of the VMs.
func (f *fleet) putInventory(ctx context.Context) error {
	type vm struct {
		Name       string   `json:"name"`
		Hypervisor string   `json:"hypervisor"`
		MACs       []string `json:"macs"`
		EIDs       []string `json:"eids"`
		Interface  string   `json:"interface"`
	}
	for _, v := range f.vms {
		body := vm{v.name, f.home, []string{v.vm.MAC.String()}, v.eids(), v.vm.Tap}
		if err := f.c.Controller(ctx, http.MethodPut, "/v1/vms/"+v.name, body, nil); err != nil {
			return err
		}
	}
	return nil
}

// run lets the VMs run at home. Each speaks to the clients until they answer, as a guest's programs do: what a VM says of
// itself in its first second an agent with hundreds of new interfaces may not hear yet.
func (f *fleet) run(ctx context.Context) error {
	home := f.c.hosts[f.home].ns
	for _, v := range f.vms {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := v.vm.Open(home); err != nil {
			return err
		}
	}
	for _, v := range f.vms {
		if _, err := v.vm.Resume(home, true); err != nil {
			return err
		}
	}
	return f.each(ctx, func(ctx context.Context, v *fleetVM) error {
		_, err4 := Ping(ctx, v.host.ns, v.v4, endpoints[hostClient4].v4)
		_, err6 := Ping(ctx, v.host.ns, v.v6, endpoints[hostClient6].v6)
		return errors.Join(err4, err6)
	})
}

// greeters bounds how many VMs do something at once before the flows run and after.
const greeters = 16

// each does something for every VM, some at a time; the first error ends it.
func (f *fleet) each(ctx context.Context, do func(context.Context, *fleetVM) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.c.opts.ReadyTimeout, fmt.Errorf("not within %v", f.c.opts.ReadyTimeout))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	turns := make(chan struct{}, greeters)
	var wg sync.WaitGroup
	for _, v := range f.vms {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := do(ctx, v); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// waitKnown waits until every D-ETR has all EIDs of the fleet where their VMs are.
func (f *fleet) waitKnown(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.c.opts.ReadyTimeout, fmt.Errorf("not within %v", f.c.opts.ReadyTimeout))
	defer cancel()
	for _, anchor := range f.c.anchors() {
		for {
			rows, err := f.c.anchorMappings(ctx, anchor)
			missing, n := "", 0
			for _, v := range f.vms {
				rloc := mustNode(v.at).rlocList()[0]
				for _, eid := range v.eids() {
					if row := rows[eid]; !row.at(rloc) {
						missing, n = eid, n+1
					}
				}
			}
			if err == nil && n == 0 {
				break
			}
			if e := sleep(ctx, 100*time.Millisecond); e != nil {
				return fmt.Errorf("testnet: %s has %d EIDs of the fleet not where they are, such as %s: %w", anchor, n, missing, errors.Join(err, e))
			}
		}
	}
	return nil
}

// Ports of the fleet's flows begin here.
const (
	fleetPort4 = 7200
	fleetPort6 = 7500
)

// addFlows adds a flow in each family of each VM.
func (f *fleet) addFlows(rate int) {
	for i, v := range f.vms {
		for _, family := range []struct {
			digit, client string
			vm, far       netip.Addr
			port          int
		}{
			{"4", hostClient4, v.v4, endpoints[hostClient4].v4, fleetPort4},
			{"6", hostClient6, v.v6, endpoints[hostClient6].v6, fleetPort6},
		} {
			f.flows.AddUDP(UDPFlow{Name: "udp" + family.digit + "-internet-to-" + v.name, Reverse: "udp" + family.digit + "-" + v.name + "-to-internet",
				A: f.c.hosts[family.client].ns, B: v.host.ns, AddrA: family.far, AddrB: family.vm, Port: uint16(family.port + i), Rate: rate})
		}
	}
}

// find is the VM of that name.
func (f *fleet) find(name string) (*fleetVM, bool) {
	i := slices.IndexFunc(f.vms, func(v *fleetVM) bool { return v.name == name })
	if i < 0 {
		return nil, false
	}
	return f.vms[i], true
}

// removeLater takes the VM's tap on a hypervisor away some time after the VM has left.
func (f *fleet) removeLater(v *fleetVM, h *Host) {
	f.removing.Add(1)
	t := time.AfterFunc(tapStays, func() {
		defer f.removing.Done()
		f.c.drops.leaving(h, v.vm.Tap)
		err := v.vm.Remove(h.ns)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.errs = append(f.errs, err)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removals = append(f.removals, t)
}

// settle waits until the old taps of VMs that moved are gone.
func (f *fleet) settle() error {
	f.removing.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

// lost counts frames that the tester's own VMM lost.
func (f *fleet) lost() (n uint64) {
	for _, v := range f.vms {
		n += v.vm.Lost()
	}
	return n
}

// close ends the flows and the VMs; their namespaces end with the cloud.
func (f *fleet) close() error {
	f.mu.Lock()
	for _, t := range f.removals {
		if t.Stop() {
			f.removing.Done()
		}
	}
	f.mu.Unlock()
	f.removing.Wait()
	flows := f.flows.Close() // before its packets have nowhere to go
	errs := make([]error, len(f.vms))
	turns := make(chan struct{}, greeters)
	var wg sync.WaitGroup
	for i, v := range f.vms { // a kernel that takes an interface away waits most of the time
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			errs[i] = v.vm.Close()
		})
	}
	wg.Wait()
	return errors.Join(append(errs, flows)...)
}
