package testnet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Options say how a cloud is built. The zero value is the demo's.
type Options struct {
	// Binary is the tabi executable; "" = the calling process's own.
	Binary string
	// ID names the run, its directory and its namespaces; "" = four random hexadecimal digits.
	ID string
	// Pcap is a directory for a capture of each host; "" = none.
	Pcap string
	// Rate is that of the Internet flows in packets a second and direction; 0 = 2000. The other flows follow it.
	Rate int
	// BitRate is that of each TCP transfer in bits a second and direction; 0 = 20 Mbit/s.
	BitRate int
	// Seed is that of the content of the transfers and of the moments at which moves begin.
	Seed uint64
	// LogLevel is the daemons'; "" = info.
	LogLevel string
	// Janitor is a command that removes the run of a process that was killed: it is started with the run directory
	// as its last argument and a pipe as its standard input, see [Janitor]. Empty = none.
	Janitor []string
	// Progress is told what is done, one short line a step; nil = nobody.
	Progress func(string)
	// KeepFailed leaves the cloud up when it does not come up, to look at it: Start returns it beside the error.
	KeepFailed bool
	// VM is the kind of the VM web, which moves: [VMNamespace] (as ""), [VMQEMU] or [VMLibvirt].
	VM string
	// PeerVM is the kind of the VM peer: "" = namespace, else as VM.
	PeerVM string
	// DiskMiB is the size of a local disk that real VMs have, as vda; 0 = none.
	DiskMiB int
	// Services gives the cloud service addresses and a pool prefix, and three VMs with IPv6 only that have such
	// addresses: see services.go.
	Services bool
	// FRR makes zebra and bgpd of the Debian package frr the Internet router, instead of tabi's own.
	FRR bool
	// ReadyTimeout bounds how long daemons may take until they serve; 0 = 60 s.
	ReadyTimeout time.Duration
}

func (o *Options) fill() error {
	if o.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("testnet: own executable: %w", err)
		}
		o.Binary = exe
	}
	if o.ID == "" {
		b := make([]byte, 2)
		_, _ = rand.Read(b) // never fails
		o.ID = hex.EncodeToString(b)
	}
	if o.Rate == 0 {
		o.Rate = 2000
	}
	if o.BitRate == 0 {
		o.BitRate = 20e6
	}
	if o.LogLevel == "" {
		o.LogLevel = "info"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = 60 * time.Second
	}
	return nil
}

// Cloud is the demo's topology, up and running.
type Cloud struct {
	Flows *Flows // the demo's, see [Cloud.AddFlows]; not started

	opts  Options
	run   *Run
	hosts map[string]*Host
	order []string          // names of hosts as they were made
	maker maker             // of the VMs of kind Options.VM
	vms   map[string]*VM    // those that are namespaces
	where map[string]string // VM -> hypervisor

	guests   map[string]CloudVM // all VMs
	programs map[string]*Guest  // what runs in those that are real guests

	janitor  *exec.Cmd
	pipe     *os.File // whose end tells the janitor
	captures []*Capture
	drops    linkDrops

	mu       sync.Mutex
	moves    int
	removals map[string]*removal // VM/hypervisor -> the removal of its old tap
	closed   bool
}

// MissingPrivilege says in one line what is missing to run a cloud here; "" = nothing.
func MissingPrivilege() string {
	if os.Geteuid() != 0 {
		return "this needs root, to make network namespaces: run it with sudo"
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("this needs TAP interfaces: %v (modprobe tun)", err)
	}
	_ = f.Close()
	return ""
}

// Start builds the cloud and waits until every daemon is ready and every path works. When it fails, or ctx ends,
// nothing is left behind, unless KeepFailed.
func Start(ctx context.Context, o Options) (*Cloud, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if _, err := CleanLeftovers(); err != nil {
		return nil, err
	}
	maker, err := newMaker(o.VM)
	if err != nil {
		return nil, err
	}
	prefix := "tabi-" + o.ID
	r, err := newRun(o.ID, prefix)
	if err != nil {
		return nil, err
	}
	c := &Cloud{Flows: new(Flows), opts: o, run: r, hosts: make(map[string]*Host), vms: make(map[string]*VM), maker: maker, guests: make(map[string]CloudVM), programs: make(map[string]*Guest),
		where: make(map[string]string), removals: make(map[string]*removal)}
	if err := c.up(ctx); err != nil {
		if o.KeepFailed && ctx.Err() == nil {
			return c, err
		}
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cloud) up(ctx context.Context) error {
	if err := c.startJanitor(); err != nil {
		return err
	}
	steps := []struct {
		says string
		do   func(context.Context) error
	}{
		{"namespaces and links", func(context.Context) error { return c.build() }},
		{"hypervisors", func(ctx context.Context) error { return c.maker.start(ctx, c) }},
		{"daemons", c.startDaemons},
		{"inventory", c.putInventory},
		{"VMs", c.startVMs},
		{"paths", c.waitPaths},
	}
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		begin := time.Now()
		if err := s.do(ctx); err != nil {
			return err
		}
		c.opts.Progress(fmt.Sprintf("%s up (%.1f s)", s.says, time.Since(begin).Seconds()))
	}
	c.addFlows()
	return nil
}

// startJanitor starts the process that cleans up should we be killed.
func (c *Cloud) startJanitor() error {
	if len(c.opts.Janitor) == 0 {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(c.opts.Janitor[0], append(slices.Clone(c.opts.Janitor[1:]), c.run.dir)...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends us must not end it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("testnet: janitor: %w", errors.Join(err, w.Close()))
	}
	c.janitor, c.pipe = cmd, w
	return nil
}

// build makes the namespaces and the links between them.
func (c *Cloud) build() error {
	inet, err := c.addHost(hostInet, inetNode.about)
	if err != nil {
		return err
	}
	if err := forwarding(inet.ns); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := c.buildNode(inet, n); err != nil {
			return err
		}
	}
	for _, name := range []string{hostClient4, hostClient6} {
		if err := c.buildClient(inet, name); err != nil {
			return err
		}
	}
	if err := c.buildXhost(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.homes())) {
		if _, err := c.addHost(name, "VM "+endpoints[name].about()); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cloud) addHost(name, about string) (*Host, error) {
	h, err := newHost(c.run, name, about)
	if err != nil {
		return nil, err
	}
	c.hosts[name] = h
	c.order = append(c.order, name)
	for _, k := range []string{"all", "default"} {
		if err := h.ns.Sysctl("net/ipv4/conf/"+k+"/rp_filter", "0"); err != nil {
			return nil, err
		}
	}
	if c.opts.Pcap != "" {
		capture, err := StartCapture(h.ns, c.opts.Pcap, name)
		if err != nil {
			return nil, err
		}
		c.captures = append(c.captures, capture)
	}
	return h, nil
}

// forwarding makes a namespace a router.
func forwarding(n *Namespace) error {
	return errors.Join(n.Sysctl("net/ipv4/ip_forward", "1"), n.Sysctl("net/ipv6/conf/all/forwarding", "1"))
}

func (c *Cloud) buildNode(inet *Host, n node) error {
	h, err := c.addHost(n.name, n.about)
	if err != nil {
		return err
	}
	gw4, gw6 := gateway4(n.v4()), gateway6(n.v6())
	err = Connect(End{NS: h.ns, Name: "eth0", Addrs: linkAddrs(n.v4(), n.v6())}, End{NS: inet.ns, Name: n.name, Addrs: linkAddrs(gw4, gw6)})
	if err != nil {
		return err
	}
	if n.role == "xtr" || n.role == "detr" {
		if err := forwarding(h.ns); err != nil {
			return err
		}
	}
	if n.role == "detr" {
		up4, up6 := gateway4(n.up4()), gateway6(n.up6())
		err = Connect(End{NS: h.ns, Name: "up0", Addrs: linkAddrs(n.up4(), n.up6())}, End{NS: inet.ns, Name: "up-" + n.name, Addrs: linkAddrs(up4, up6)})
	}
	return errors.Join(err, n.addRoutes(h.ns))
}

// linkAddrs are the addresses of one end of a link: /24 and /64.
func linkAddrs(a ...netip.Addr) (out []netip.Prefix) {
	for _, a := range a {
		if a.Is4() {
			out = append(out, netip.PrefixFrom(a, 24))
		} else if a.IsValid() {
			out = append(out, netip.PrefixFrom(a, 64))
		}
	}
	return out
}

// anywhere is the default prefix of the family.
func anywhere(like netip.Addr) netip.Prefix { return netip.PrefixFrom(unspecified(like), 0) }

func (c *Cloud) buildClient(inet *Host, name string) error {
	h, err := c.addHost(name, "client on the Internet")
	if err != nil {
		return err
	}
	a, gw := endpoints[name].v4, netip.Addr{}
	if a.IsValid() {
		gw = gateway4(a)
	} else {
		a = endpoints[name].v6
		gw = gateway6(netip.PrefixFrom(a, 64).Masked().Addr())
	}
	err = Connect(End{NS: h.ns, Name: "eth0", Addrs: linkAddrs(a)}, End{NS: inet.ns, Name: name, Addrs: linkAddrs(gw)})
	return errors.Join(err, h.ns.AddRoute(anywhere(gw), gw, ""))
}

// buildXhost makes the host of the other LISP network, behind its xTR. It tells of itself when its interface comes
// up, as hosts do.
func (c *Cloud) buildXhost() error {
	h, err := c.addHost(hostXhost, "host of the other LISP network")
	if err != nil {
		return err
	}
	for _, s := range []string{"net/ipv4/conf/default/arp_notify", "net/ipv6/conf/default/ndisc_notify"} {
		if err := h.ns.Sysctl(s, "1"); err != nil {
			return err
		}
	}
	e := endpoints[hostXhost]
	err = Connect(End{NS: h.ns, Name: "eth0", Addrs: linkAddrs(e.v4, e.v6)}, End{NS: c.hosts["xsite-xtr"].ns, Name: "vm0"})
	return errors.Join(err,
		h.ns.AddRoute(anywhere(e.v4), xsiteGateway4, ""), h.ns.AddRoute(anywhere(e.v6), vmGateway6, "eth0"))
}

// startDaemons writes the configuration files, starts every daemon and waits until all are ready.
func (c *Cloud) startDaemons(ctx context.Context) error {
	all := append([]node{inetNode}, nodes...)
	if c.opts.FRR {
		all = nodes
	}
	for _, n := range all {
		if err := c.defineDaemon(n); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.ReadyTimeout, fmt.Errorf("not within %v", c.opts.ReadyTimeout))
	defer cancel()
	if c.opts.FRR {
		if err := c.startUpstreamFRR(ctx); err != nil {
			return err
		}
	}
	// Who is connected to first, then who connects: a BGP speaker that finds nobody tries again after seconds only.
	answers := func(n node) bool { return n.role == "mapserver" || n.role == "router" }
	for _, first := range []bool{true, false} {
		if err := c.startAll(ctx, slices.DeleteFunc(slices.Clone(all), func(n node) bool { return answers(n) != first })); err != nil {
			return err
		}
	}
	return nil
}

// startAll starts daemons at once and waits until all of them are ready.
func (c *Cloud) startAll(ctx context.Context, all []node) error {
	for _, n := range all {
		if err := c.hosts[n.name].launch(n.role); err != nil {
			return err
		}
	}
	// The first that fails ends the waiting: what the others then say is of no interest.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, n := range all {
		wg.Go(func() {
			if err := c.hosts[n.name].Ready(ctx, n.role); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (c *Cloud) defineDaemon(n node) error {
	h := c.hosts[n.name]
	text, err := configFile(n, h.dir, c.opts.LogLevel, c.maker, c.opts.Services)
	if err != nil {
		return err
	}
	file := filepath.Join(h.dir, n.role+".yaml")
	if err := os.MkdirAll(filepath.Join(h.dir, "state"), 0o755); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	return h.define(Spec{Name: n.role, Args: []string{c.opts.Binary, n.role, "--config", file},
		Log: filepath.Join(h.dir, n.role+".log"), Socket: adminSocket(h.dir, n.role)})
}

// putInventory tells the controller of the sites, the hypervisors and the VMs.
func (c *Cloud) putInventory(ctx context.Context) error {
	type site struct {
		Name        string `json:"name"`
		Description string `json:"description,omitempty"`
	}
	type hypervisor struct {
		Name   string `json:"name"`
		Site   string `json:"site"`
		SiteID int    `json:"site_id"`
		RLOC   string `json:"rloc"`
		XTRID  string `json:"xtr_id"`
		Agent  string `json:"agent"`
		Token  string `json:"token"`
		// Of a kind of VM that the controller can reach itself.
		Driver     string `json:"driver,omitempty"`
		MigrateURI string `json:"migrate_uri,omitempty"`
	}
	type vm struct {
		Name       string   `json:"name"`
		Hypervisor string   `json:"hypervisor"`
		MACs       []string `json:"macs"`
		EIDs       []string `json:"eids"`
		Interface  string   `json:"interface"`
	}
	put := func(kind, name string, v any) error {
		return c.Controller(ctx, http.MethodPut, "/v1/"+kind+"/"+name, v, nil)
	}
	for _, s := range []string{"nezu", "hokuriku", "nara"} {
		if err := put("sites", s, site{Name: s}); err != nil {
			return err
		}
	}
	for _, n := range nodesOf("xtr", inCloud) {
		driver, migrate := c.maker.drivers(n, c.hosts[n.name].dir)
		h := hypervisor{n.name, n.site, configData{node: n}.SiteNumber(), n.rlocList()[0].String(), n.xtrID(), "http://" + n.v4().String() + ":4380",
			agentToken, driver, migrate}
		if err := put("hypervisors", n.name, h); err != nil {
			return err
		}
	}
	for name, home := range c.homes() {
		v := vm{name, home, []string{vmMACs[name]}, endpoints[name].eids(), "tap-" + name}
		if err := put("vms", name, v); err != nil {
			return err
		}
	}
	return nil
}

// Controller makes a request to the controller's API, from the controller's own host.
func (c *Cloud) Controller(ctx context.Context, method, path string, in, out any) error {
	client := c.hosts["ctl"].client()
	defer client.CloseIdleConnections()
	url := "http://" + mustNode("ctl").v4().String() + ":4381" + path
	return call(ctx, client, method, url, controllerToken, in, out)
}

// startVMs brings up the VMs on their first hypervisors.
func (c *Cloud) startVMs(ctx context.Context) error {
	homes := c.homes()
	for name, home := range homes {
		mac, err := net.ParseMAC(vmMACs[name])
		if err != nil {
			return fmt.Errorf("testnet: %w", err)
		}
		by := c.maker
		if name == hostPeer && c.opts.PeerVM != c.opts.VM {
			if by, err = newMaker(c.opts.PeerVM); err != nil {
				return err
			}
		}
		spec := VMSpec{Name: name, MAC: mac, Gateway6: vmGateway6, Device: "tap-" + name,
			Addrs: linkAddrs(endpoints[name].all()...), Guest: c.hosts[name]}
		if endpoints[name].v4.IsValid() {
			spec.Gateway4 = vmGateway4
		} else {
			by = namespaceMaker{}
		}
		m, err := by.vm(ctx, spec)
		if err != nil {
			return err
		}
		c.guests[name], c.where[name] = m, home
		if n, ok := m.(namespaceVM); ok {
			c.vms[name] = n.vm
		} else {
			c.programs[name] = NewGuest(name, c.hosts[hostClient4].ns, endpoints[name].v4)
		}
	}
	// All at once: a real one takes seconds.
	errs := make(chan error, len(homes))
	for name, home := range homes {
		go func() { errs <- c.guests[name].Boot(ctx, c.hosts[home]) }()
	}
	var all error
	for range homes {
		all = errors.Join(all, <-errs)
	}
	return all
}

// path is a pair of endpoints that must reach each other.
type path struct{ from, to string }

var paths = []path{{hostClient4, hostWeb}, {hostClient6, hostWeb}, {hostXhost, hostWeb}, {hostPeer, hostWeb}}

// waitPaths waits until every path answers a ping, in each family that both its ends have.
func (c *Cloud) waitPaths(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.ReadyTimeout, fmt.Errorf("not within %v", c.opts.ReadyTimeout))
	defer cancel()
	if err := c.waitOutside(ctx); err != nil {
		return err
	}
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range paths {
		if c.programs[p.from] != nil {
			continue // nobody pings out of a guest
		}
		for _, f := range families(p) {
			wg.Go(func() {
				_, err := Ping(ctx, c.hosts[p.from].ns, f[0], f[1])
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, g := range c.programs {
		if err := g.Wait(ctx); err != nil {
			return err
		}
	}
	if err := c.WaitFeeds(ctx); err != nil {
		return err
	}
	if err := c.waitAnchors(ctx, slices.Collect(maps.Keys(c.homes()))...); err != nil {
		return err
	}
	return c.addServices(ctx)
}

// families are the pairs of addresses of a path's ends.
func families(p path) (out [][2]netip.Addr) {
	a, b := endpoints[p.from], endpoints[p.to]
	if a.v4.IsValid() && b.v4.IsValid() {
		out = append(out, [2]netip.Addr{a.v4, b.v4})
	}
	if a.v6.IsValid() && b.v6.IsValid() {
		out = append(out, [2]netip.Addr{a.v6, b.v6})
	}
	return out
}

// pingRate is in requests a second: a gap cannot be told to less than the time between two of them.
const pingRate = 200

// addFlows adds the demo's flows: the Internet clients, the host of the other LISP network, the neighbour VM.
func (c *Cloud) addFlows() {
	f, o := c.Flows, c.opts
	web := endpoints[hostWeb]
	other := max(o.Rate/4, 1)
	udp := func(name, reverse, from string, a, b netip.Addr, port uint16, rate int) {
		f.AddUDP(UDPFlow{Name: name, Reverse: reverse, A: c.Endpoint(from), B: c.Endpoint(hostWeb), AddrA: a, AddrB: b, Port: port, Rate: rate})
	}
	udp("udp6-internet-to-vm", "udp6-vm-to-internet", hostClient6, endpoints[hostClient6].v6, web.v6, 7001, o.Rate)
	udp("udp4-internet-to-vm", "udp4-vm-to-internet", hostClient4, endpoints[hostClient4].v4, web.v4, 7002, o.Rate)
	udp("udp6-lispsite-to-vm", "udp6-vm-to-lispsite", hostXhost, endpoints[hostXhost].v6, web.v6, 7003, other)
	udp("udp4-lispsite-to-vm", "udp4-vm-to-lispsite", hostXhost, endpoints[hostXhost].v4, web.v4, 7004, other)
	udp("udp6-peer-to-vm", "udp6-vm-to-peer", hostPeer, endpoints[hostPeer].v6, web.v6, 7005, other)
	udp("udp4-peer-to-vm", "udp4-vm-to-peer", hostPeer, endpoints[hostPeer].v4, web.v4, 7006, other)
	f.AddPing(PingFlow{Name: "ping6", From: c.hosts[hostClient6].ns, Src: endpoints[hostClient6].v6, Dst: web.v6, Rate: pingRate})
	f.AddPing(PingFlow{Name: "ping4", From: c.hosts[hostClient4].ns, Src: endpoints[hostClient4].v4, Dst: web.v4, Rate: pingRate})
	f.AddTCP(TCPFlow{Name: "tcp6-internet-to-vm", Reverse: "tcp6-vm-to-internet", Client: c.hosts[hostClient6].ns, Server: c.Endpoint(hostWeb),
		Addr: web.v6, Port: 8006, BitRate: o.BitRate, Seed: o.Seed})
	f.AddTCP(TCPFlow{Name: "tcp4-internet-to-vm", Reverse: "tcp4-vm-to-internet", Client: c.hosts[hostClient4].ns, Server: c.Endpoint(hostWeb),
		Addr: web.v4, Port: 8004, BitRate: o.BitRate, Seed: o.Seed + 1})
}

// Host is a host of the cloud by its name, as in the topology; it panics on a name that is not there.
func (c *Cloud) Host(name string) *Host {
	h := c.hosts[name]
	if h == nil {
		panic(fmt.Sprintf("testnet: no host %q", name))
	}
	return h
}

// Hosts are the names of all hosts, in the order in which they were made.
func (c *Cloud) Hosts() []string { return slices.Clone(c.order) }

// VM is a namespace VM of the cloud: "web" or "peer"; nil if there is none, or if it is a real one.
func (c *Cloud) VM(name string) *VM { return c.vms[name] }

// CloudVM is a VM of the cloud of whatever kind: "web" or "peer"; nil if there is none.
func (c *Cloud) CloudVM(name string) CloudVM { return c.guests[name] }

// Guest is the program in a real guest: "web" or "peer"; nil if the VM is a namespace.
func (c *Cloud) Guest(name string) *Guest { return c.programs[name] }

// Endpoint is where flows of a host or a VM begin and end.
func (c *Cloud) Endpoint(name string) Endpoint {
	if g := c.programs[name]; g != nil {
		return g
	}
	return c.hosts[name].ns
}

// Where is the hypervisor on which a VM runs, or ran when it was paused.
func (c *Cloud) Where(vm string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.where[vm]
}

func (c *Cloud) setWhere(vm, host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.where[vm] = host
}

// Run is the run's record.
func (c *Cloud) Run() *Run { return c.run }

// Keep marks the run as one that is meant to stay.
func (c *Cloud) Keep() error { return c.run.update(func() { c.run.Kept = true }) }

// Partition cuts hosts off: everything on their links is lost in silence, in both directions. Heal undoes it.
func (c *Cloud) Partition(hosts ...string) error { return c.drop(true, hosts) }

// Heal ends the partition of hosts.
func (c *Cloud) Heal(hosts ...string) error { return c.drop(false, hosts) }

func (c *Cloud) drop(drop bool, hosts []string) error {
	inet := c.hosts[hostInet].ns
	var errs []error
	for _, name := range hosts {
		errs = append(errs, inet.Drop(name, drop))
		if n, ok := nodeOf(name); ok && n.role == "detr" {
			errs = append(errs, inet.Drop("up-"+name, drop))
		}
	}
	return errors.Join(errs...)
}

// Close takes everything away.
func (c *Cloud) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	errs := []error{c.Flows.Close()}
	for _, r := range c.removals {
		r.timer.Stop()
	}
	for _, g := range c.programs {
		errs = append(errs, g.Close())
	}
	for _, m := range c.guests {
		errs = append(errs, m.Close())
	}
	errs = append(errs, c.maker.close())
	for _, capture := range c.captures {
		frames, dropped, err := capture.Stop()
		if dropped > 0 {
			err = errors.Join(err, fmt.Errorf("testnet: capture of %s: %d frames, and %d more that it could not take", capture.ns.name, frames, dropped))
		}
		errs = append(errs, err)
	}
	var wg sync.WaitGroup
	hostErrs := make([]error, len(c.order))
	for i, name := range c.order {
		wg.Go(func() { hostErrs[i] = c.hosts[name].close() })
	}
	wg.Wait()
	errs = append(errs, hostErrs...)
	errs = append(errs, Clean(c.run))
	if c.janitor != nil {
		errs = append(errs, c.pipe.Close(), c.janitor.Wait())
	}
	return errors.Join(errs...)
}
