package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Way is a way of keeping a VM's addresses while it moves between hypervisors that share no link.
type Way string

// The ways that a [Lab] can be built with. All but WayTabi stretch one Ethernet over VXLAN, with what Debian brings.
const (
	// WayFlood is the kernel alone: VXLAN that floods to every other end what it does not know, and learns.
	WayFlood Way = "flood"
	// WayEVPN is FRR: BGP EVPN (RFC 8365) in a full mesh, as it comes.
	WayEVPN Way = "evpn"
	// WayEVPNTuned is the same with `zebra work-queue 0`: zebra does not gather changes for 10 ms before it acts.
	WayEVPNTuned Way = "evpn-tuned"
	// WayTabi is ours: an xTR at each end, a Map-Server and the controller, which is told of a move beforehand.
	WayTabi Way = "tabi"
)

// Ways are all ways, ours last.
var Ways = []Way{WayEVPN, WayEVPNTuned, WayFlood, WayTabi}

// About says in a line what a way is.
func (w Way) About() string {
	switch w {
	case WayFlood:
		return "kernel VXLAN that floods and learns"
	case WayEVPN:
		return "FRR EVPN, full mesh"
	case WayEVPNTuned:
		return "FRR EVPN, full mesh, zebra work-queue 0"
	case WayTabi:
		return "tabi: xTRs, Map-Server, controller"
	}
	return "unknown"
}

// LabOptions say how a lab is built.
type LabOptions struct {
	Way Way
	// VM is the kind of VM that moves: [VMNamespace] (as "") or [VMQEMU].
	VM string
	// Binary is the tabi executable; "" = the calling process's own.
	Binary string
	// ID names the run, its directory and its namespaces; "" = four random hexadecimal digits.
	ID string
	// Janitor is a command that removes the run of a process that was killed, as in [Options]. Empty = none.
	Janitor []string
	// Progress is told what is done; nil = nobody.
	Progress func(string)
	// ReadyTimeout bounds how long daemons and paths may take; 0 = 60 s.
	ReadyTimeout time.Duration
}

// Lab is the smallest network in which a move can be watched, the same for every way: two hypervisors and a client's
// site on one router, one VM, one client that has an address of the VM's subnet.
//
//	client -- site ---- core ---- hv1 (VM)
//	                     | \
//	       (ms, ctl) ----+   --- hv2
//
// One goroutine may use a Lab at a time.
type Lab struct {
	way   Way
	net   network
	vm    CloudVM
	guest *Guest // what answers in a real guest; nil: the VM is a namespace
	where string // the hypervisor that the VM runs on
	moves int

	// cloud is the frame that hosts, processes and the VM hang in; it has nothing of the demo's topology.
	cloud *Cloud
}

// network is what makes a lab one of a certain way.
type network interface {
	// start brings it up on the hosts, which are linked. It returns when its ends have found each other.
	start(ctx context.Context) error
	// plug gives the VM's interface, or the client's, to it.
	plug(h *Host, dev string) error
	// prepare is told where the VM is about to move; committed, that it runs there.
	prepare(ctx context.Context, id, to string) error
	committed(ctx context.Context, id string) error
}

// Hosts of every lab; labMS and labCtl are there if the way is tabi's.
const (
	labCore   = "core"
	labHV1    = "hv1"
	labHV2    = "hv2"
	labSite   = "site"
	labClient = "client"
	labMS     = "ms"
	labCtl    = "ctl"
)

// labNumbers are the numbers of the hosts that hang on the core: host N is 100.64.N.2 there.
var labNumbers = map[string]int{labHV1: 1, labHV2: 2, labSite: 3, labMS: 4, labCtl: 5}

// labEnds are the hosts at which the VM's subnet ends: VTEPs, or xTRs.
var labEnds = []string{labHV1, labHV2, labSite}

const (
	// labDevice is the name of the VM's interface on hypervisors.
	labDevice = "tap-" + hostWeb
	// labPort is the interface of the client's site that the client hangs on.
	labPort = "vm0"
	// labMTU is the underlay's, so that every tunnel carries a packet of 1500 bytes.
	labMTU = 1600
)

// The client has an address of the VM's subnet.
var (
	labVMAddr     = endpoints[hostWeb].v4
	labClientAddr = endpoints[hostPeer].v4
)

// labAddr is a host's address on the underlay.
func labAddr(host string) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 64, byte(labNumbers[host]), 2})
}

// StartLab builds a lab and waits until the client reaches the VM. When it fails, nothing is left behind.
func StartLab(ctx context.Context, o LabOptions) (*Lab, error) {
	if !slices.Contains(Ways, o.Way) {
		return nil, fmt.Errorf("testnet: no way %q: want one of %v", o.Way, Ways)
	}
	maker, err := newMaker(o.VM)
	if err != nil {
		return nil, err
	}
	opts := Options{VM: o.VM, Binary: o.Binary, ID: o.ID, Janitor: o.Janitor, Progress: o.Progress, ReadyTimeout: o.ReadyTimeout}
	if err := opts.fill(); err != nil {
		return nil, err
	}
	if _, err := CleanLeftovers(); err != nil {
		return nil, err
	}
	r, err := newRun(opts.ID, "tabi-"+opts.ID)
	if err != nil {
		return nil, err
	}
	l := &Lab{way: o.Way, where: labHV1, cloud: &Cloud{Flows: new(Flows), opts: opts, run: r, hosts: make(map[string]*Host),
		vms: make(map[string]*VM), maker: maker, guests: make(map[string]CloudVM), where: make(map[string]string), removals: make(map[string]*removal)}}
	switch o.Way {
	case WayTabi:
		l.net = &tabiNetwork{cloud: l.cloud}
	case WayFlood:
		l.net = &vxlanNetwork{cloud: l.cloud, learn: true}
	case WayEVPN, WayEVPNTuned:
		l.net = &evpnNetwork{vxlanNetwork: vxlanNetwork{cloud: l.cloud}, tuned: o.Way == WayEVPNTuned}
	}
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("testnet: lab of %s: %w", o.Way, err), l.Close())
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	begin := time.Now()
	c := l.cloud
	if err := errors.Join(c.startJanitor(), l.build(), c.maker.start(ctx, c)); err != nil {
		return err
	}
	mac, err := net.ParseMAC(vmMACs[hostWeb])
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	l.vm, err = c.maker.vm(ctx, VMSpec{Name: hostWeb, MAC: mac, Device: labDevice, Guest: c.hosts[hostWeb],
		Addrs: linkAddrs(labVMAddr, endpoints[hostWeb].v6), Gateway4: vmGateway4, Gateway6: vmGateway6})
	if err != nil {
		return err
	}
	c.guests[hostWeb] = l.vm
	if n, ok := l.vm.(namespaceVM); ok {
		c.vms[hostWeb] = n.vm
	} else {
		l.guest = NewGuest(hostWeb, c.hosts[labClient].ns, labVMAddr)
	}
	limited, cancel := context.WithTimeoutCause(ctx, c.opts.ReadyTimeout, fmt.Errorf("not within %v", c.opts.ReadyTimeout))
	defer cancel()
	if err := l.net.start(limited); err != nil {
		return err
	}
	if err := l.vm.Boot(limited, c.hosts[labHV1]); err != nil {
		return err
	}
	if err := errors.Join(l.net.plug(c.hosts[labHV1], labDevice), l.net.plug(c.hosts[labSite], labPort)); err != nil {
		return err
	}
	if _, err := Ping(limited, c.hosts[labClient].ns, labClientAddr, labVMAddr); err != nil {
		return err
	}
	if l.guest != nil {
		if err := l.guest.Wait(limited); err != nil {
			return err
		}
	}
	c.opts.Progress(fmt.Sprintf("%s is up (%.1f s)", l.way.About(), time.Since(begin).Seconds()))
	return nil
}

// build makes the namespaces and the links.
func (l *Lab) build() error {
	c := l.cloud
	core, err := c.addHost(labCore, "router between the sites")
	if err != nil {
		return err
	}
	if err := forwarding(core.ns); err != nil {
		return err
	}
	names := slices.Clone(labEnds)
	if l.way == WayTabi {
		names = append(names, labMS, labCtl)
	}
	for _, name := range names {
		h, err := c.addHost(name, l.way.About())
		if err != nil {
			return err
		}
		a := labAddr(name)
		err = Connect(End{NS: h.ns, Name: "eth0", Addrs: linkAddrs(a), MTU: labMTU}, End{NS: core.ns, Name: name, Addrs: linkAddrs(gateway4(a)), MTU: labMTU})
		if err := errors.Join(err, forwarding(h.ns), h.ns.AddRoute(underlay4, gateway4(a), "")); err != nil {
			return err
		}
	}
	client, err := c.addHost(labClient, "client in the VM's subnet")
	if err != nil {
		return err
	}
	if _, err := c.addHost(hostWeb, "VM "+labVMAddr.String()); err != nil {
		return err
	}
	return Connect(End{NS: client.ns, Name: "eth0", Addrs: linkAddrs(labClientAddr)}, End{NS: c.hosts[labSite].ns, Name: labPort})
}

// Way is what the lab was built with.
func (l *Lab) Way() Way { return l.way }

// Where is the hypervisor on which the VM runs.
func (l *Lab) Where() string { return l.where }

// Host is a host of the lab by its name; it panics on a name that is not there.
func (l *Lab) Host(name string) *Host { return l.cloud.Host(name) }

// Close takes everything away.
func (l *Lab) Close() error {
	var err error
	if l.guest != nil {
		err = l.guest.Close()
	}
	return errors.Join(err, l.cloud.Close())
}
