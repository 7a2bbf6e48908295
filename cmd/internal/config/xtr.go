package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/tabi-lisp/tabi/controller/libvirt"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr"
	"github.com/tabi-lisp/tabi/xtr/gateway"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/slowpath"
)

// XTR is the configuration of one hypervisor's agent.
type XTR struct {
	Common
	Underlay    []string // interfaces that reach the other sites
	UnderlayMTU int
	Engine      xtr.Config
	Kernel      kernel.Config
	Gateway     gateway.Config
	SlowPath    slowpath.Config
	Stack       bool // VM packets cross the host's netfilter
	VMs         VMs
	API         API
}

// VMs says where the agent hears of this host's VMs, beside their frames. Both may be set: a VM that both tell of is
// one VM.
type VMs struct {
	Libvirt string // URI of the local libvirt, "" = it is not asked
	QMP     string // pattern of QEMU's monitor sockets, "" = none is followed
}

type rawXTR struct {
	RawCommon     `yaml:",inline"`
	XTRID         scalar[lisp.XTRID]     `yaml:"xtr_id" doc:"identifies this xTR to Map-Servers: 32 hexadecimal digits, unique" req:"1" ex:"00000000000000000000000000000001"`
	SiteID        scalar[uint64]         `yaml:"site_id" doc:"number of the site" def:"0"`
	RLOCs         []rawLocator           `yaml:"rlocs" doc:"own addresses that packets are encapsulated to" req:"1"`
	Underlay      []scalar[string]       `yaml:"underlay" doc:"interfaces that reach the other sites" req:"1" ex:"eth0"`
	UnderlayMTU   scalar[int]            `yaml:"underlay_mtu" doc:"largest packet that passes between the sites, in bytes" def:"1500"`
	VMInterfaces  []scalar[string]       `yaml:"vm_interfaces" doc:"names of VM interfaces, with * for anything" req:"1" ex:"tap* vnet*"`
	VMs           rawVMs                 `yaml:"vms" doc:"where the agent hears of this host's VMs, beside their frames: without it a migration that nobody prepares loses what the old interface swallows"`
	EIDPrefixes   []scalar[lisp.EID]     `yaml:"eid_prefixes" doc:"the cloud's EIDs: VMs may have addresses in these only" req:"1" ex:"198.51.100.0/24 2001:db8:e1d::/48"`
	Gateway       rawGateway             `yaml:"gateway" doc:"what every xTR answers for: the VMs' default gateway, the same everywhere" req:"1"`
	MapServers    []rawServer            `yaml:"map_servers" doc:"where EIDs are registered: all of them, always" req:"1"`
	MapResolvers  []scalar[netip.Addr]   `yaml:"map_resolvers" doc:"who is asked (default: the Map-Servers)"`
	PETRs         []rawLocator           `yaml:"petrs" doc:"where packets go whose destination is not LISP: the D-ETRs; without any, the host's own routing"`
	AllowedRLOCs  []scalar[netip.Prefix] `yaml:"allowed_rlocs" doc:"RLOCs of the own cloud, D-ETRs included: data from others is dropped" req:"1" ex:"192.0.2.0/24 2001:db8:100::/48"`
	Decap         scalar[string]         `yaml:"decap" doc:"where packets are decapsulated: xdp (native), tc, or auto by the driver" def:"auto"`
	Path          scalar[string]         `yaml:"path" doc:"fast: VM to underlay directly; stack: through the host's netfilter" def:"fast"`
	PinDir        scalar[string]         `yaml:"pin_dir" doc:"a BPF file system is mounted here: what the kernel runs stays when the agent ends" def:"/run/tabi/xtr.bpf"`
	Mappings      scalar[int]            `yaml:"mappings" doc:"capacity of the kernel's map-cache" def:"65536"`
	API           rawAPI                 `yaml:"api" doc:"HTTP API for the controller (always on the admin socket too)"`
	Hold          rawHold                `yaml:"hold" doc:"bounds of what is held for a VM that is on its way, per VM"`
	Settle        scalar[time.Duration]  `yaml:"settle" doc:"how long packets are sent on after a VM has left, at least" def:"30s"`
	RegisterEvery scalar[time.Duration]  `yaml:"register_interval" doc:"how often a registration is repeated" def:"60s"`
}

type rawVMs struct {
	Libvirt scalar[string] `yaml:"libvirt" doc:"URI of the local libvirt; unix, tcp, tls and ssh as libvirt has them" ex:"qemu:///system"`
	QMP     scalar[string] `yaml:"qmp" doc:"pattern of the sockets of QEMU's monitors, for VMs without libvirt; a monitor of each VM must be the agent's alone, since it serves one at a time" ex:"/run/qemu/*.qmp"`
}

func (r rawVMs) vms(p *problems) VMs {
	if r.Libvirt.Set {
		hv, err := libvirt.New(r.Libvirt.V, nil)
		if err != nil {
			p.at(r.Libvirt.tok, "vms.libvirt: %v", err)
		} else if err := hv.Close(); err != nil {
			p.at(r.Libvirt.tok, "vms.libvirt: %v", err)
		}
	}
	if r.QMP.Set {
		if _, err := filepath.Match(r.QMP.V, ""); err != nil || !filepath.IsAbs(r.QMP.V) {
			p.at(r.QMP.tok, "vms.qmp: %q is not the pattern of an absolute path", r.QMP.V)
		}
	}
	return VMs{Libvirt: r.Libvirt.V, QMP: r.QMP.V}
}

type rawGateway struct {
	MAC  scalar[net.HardwareAddr] `yaml:"mac" doc:"the gateway's MAC address, the same on every xTR of the cloud" def:"02:00:5e:00:01:01"`
	Nets []rawGatewayNet          `yaml:"nets" doc:"on-link prefixes of the VMs" req:"1"`
}

type rawGatewayNet struct {
	Prefix  scalar[netip.Prefix] `yaml:"prefix" doc:"what VMs believe to be on their link" req:"1" ex:"198.51.100.0/24"`
	Address scalar[netip.Addr]   `yaml:"address" doc:"the gateway's address in it, or a link-local one" req:"1" ex:"198.51.100.1"`
	IID     scalar[uint32]       `yaml:"instance_id" doc:"instance-ID of the VMs there" def:"0"`
}

type rawHold struct {
	Bytes scalar[int]           `yaml:"bytes" doc:"the oldest packets are dropped beyond" def:"16777216"`
	Time  scalar[time.Duration] `yaml:"time" doc:"packets older than this are dropped" def:"30s"`
}

// build makes the parts' configurations agree with each other: one MTU, one set of EIDs, one set of RLOCs.
func (r *rawXTR) build(p *problems) any {
	c := &XTR{Common: r.common(p), Underlay: values(r.Underlay), UnderlayMTU: r.UnderlayMTU.or(1500), VMs: r.VMs.vms(p), API: r.API.api(p)}
	require(p, r.XTRID, "xtr_id", r.Role.tok)
	if len(c.Underlay) == 0 {
		p.at(r.Role.tok, "underlay is required: at least one interface")
	}
	if len(r.RLOCs) == 0 {
		p.at(r.Role.tok, "rlocs is required: at least one")
	}
	if len(r.MapServers) == 0 {
		p.at(r.Role.tok, "map_servers is required: at least one")
	}
	if len(r.VMInterfaces) == 0 {
		p.at(r.Role.tok, "vm_interfaces is required: at least one pattern")
	}
	if len(r.AllowedRLOCs) == 0 {
		p.at(r.Role.tok, "allowed_rlocs is required: at least one prefix")
	}
	mtu := innerMTU(p, r.UnderlayMTU)
	eidPrefixes := eids(p, r.EIDPrefixes, "eid_prefixes", r.Role.tok)
	rlocs := locators(p, r.RLOCs, "rlocs")
	c.Engine = xtr.Config{
		Name: c.Name, XTRID: r.XTRID.V, SiteID: lisp.SiteID(r.SiteID.V), RLOCs: rlocs, EIDPrefixes: eidPrefixes,
		MapResolvers: values(r.MapResolvers), PETRs: remote(locators(p, r.PETRs, "petrs")), AllowedRLOCs: values(r.AllowedRLOCs),
		RegisterInterval: r.RegisterEvery.V, SettleTime: r.Settle.V, StateDir: c.StateDir, MTU: mtu,
	}
	for _, s := range servers(p, r.MapServers, "map_servers") {
		c.Engine.MapServers = append(c.Engine.MapServers, xtr.Server(s))
	}
	c.Kernel = kernel.Config{PinDir: r.PinDir.or("/run/tabi/xtr.bpf"), Self: addresses(rlocs), AllowedRLOCs: values(r.AllowedRLOCs),
		Own: eidPrefixes, MTU: mtu, Decap: decap(p, r.Decap), Capacity: r.Mappings.or(65536)}
	switch r.Path.or("fast") {
	case "fast":
	case "stack":
		c.Stack = true
	default:
		p.at(r.Path.tok, "path %q: want fast or stack", r.Path.V)
	}
	c.SlowPath = slowpath.Config{MaxHoldBytes: r.Hold.Bytes.V, MaxHoldTime: r.Hold.Time.V, MTU: mtu}
	c.Gateway = gateway.Config{Patterns: values(r.VMInterfaces), MAC: r.Gateway.MAC.or(net.HardwareAddr{2, 0, 0x5e, 0, 1, 1}), MTU: mtu}
	r.nets(p, c)
	return c
}

func (r *rawXTR) nets(p *problems, c *XTR) {
	if len(r.Gateway.Nets) == 0 {
		p.at(r.Role.tok, "gateway.nets is required: at least one prefix")
	}
	for i, n := range r.Gateway.Nets {
		require(p, n.Prefix, "gateway.nets: prefix", n.Address.tok)
		require(p, n.Address, "gateway.nets: address", n.Prefix.tok)
		if !n.Prefix.Set || !n.Address.Set {
			continue
		}
		if n.Prefix.V.Addr().Is4() != n.Address.V.Is4() {
			p.at(n.Address.tok, "gateway %s is not of the family of %s", n.Address.V, n.Prefix.V)
		}
		if i == 0 {
			c.Engine.IID = n.IID.V
		} else if n.IID.V != c.Engine.IID {
			p.at(n.IID.tok, "instance_id %d: all VMs of one agent are of one instance, here %d", n.IID.V, c.Engine.IID)
		}
		c.Gateway.Nets = append(c.Gateway.Nets, gateway.Net{Prefix: n.Prefix.V.Masked(), Gateway: n.Address.V, IID: n.IID.V})
		// ICMP errors to a VM come from its gateway; a link-local one cannot be the source of an error that is
		// sent on to somebody else.
		if n.Address.V.Is4() {
			c.SlowPath.GatewayAddr4 = n.Address.V
		} else {
			c.SlowPath.GatewayAddr6 = n.Address.V
		}
	}
}
