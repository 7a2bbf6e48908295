package config

import (
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/detr/bgp"
)

// Controller is the configuration of the controller.
type Controller struct {
	Common
	API       API
	Addresses []netip.Addr // own addresses for control messages
	Core      controller.Config
}

type rawController struct {
	RawCommon  `yaml:",inline"`
	Listen     scalar[netip.AddrPort] `yaml:"listen" doc:"address and port of the HTTP API" req:"1" ex:"192.0.2.9:4381"`
	Token      scalar[string]         `yaml:"token" doc:"bearer token that callers must present" req:"1" ex:"change-me"`
	Addresses  []scalar[netip.Addr]   `yaml:"addresses" doc:"own addresses that Map-Registers are sent from" req:"1" ex:"192.0.2.9"`
	MapServers []rawServer            `yaml:"map_servers" doc:"all Map-Servers of the cloud, with the controller's own key" req:"1" example:"{address: 192.0.2.53, key: {id: 2, secret: change-me-controller}}"`
	Migrations rawMigrations          `yaml:"migrations" doc:"live migrations that the controller drives, through libvirt on the hypervisors"`
	KeepMoves  scalar[int]            `yaml:"keep_moves" doc:"how many moves that have ended are remembered" def:"10000"`
	Timing     rawTiming              `yaml:"timing" doc:"bounds of every wait; the defaults are right unless the network is very slow"`
}

type rawMigrations struct {
	PerLink scalar[int] `yaml:"per_link" doc:"how many use one link (two sites, or two hypervisors of one site) at a time; others wait" def:"1"`
	Keep    scalar[int] `yaml:"keep" doc:"how many that have ended are remembered" def:"10000"`
}

// rawTiming has the fields of [controller.Timing].
type rawTiming struct {
	Call           scalar[time.Duration] `yaml:"call" doc:"one request to an agent" def:"3s"`
	Prepare        scalar[time.Duration] `yaml:"prepare" doc:"both agents get ready for a move" def:"10s"`
	Prepared       scalar[time.Duration] `yaml:"prepared" doc:"a move that is prepared waits for its VM to be on its way" def:"1h"`
	Announced      scalar[time.Duration] `yaml:"announced" doc:"the same of a move that a hook announced" def:"30m"`
	Again          scalar[time.Duration] `yaml:"again" doc:"a prepared move is repeated to its agents" def:"1m"`
	Settle         scalar[time.Duration] `yaml:"settle" doc:"after a move an agent or a Map-Server may be silent, before it is recorded without" def:"3m"`
	Abort          scalar[time.Duration] `yaml:"abort" doc:"an agent undoes a move" def:"10s"`
	Forget         scalar[time.Duration] `yaml:"forget" doc:"the agents' last counts are waited for after an abort" def:"35s"`
	Retry          scalar[time.Duration] `yaml:"retry" doc:"first interval between two attempts at an agent; it doubles" def:"100ms"`
	RetryMax       scalar[time.Duration] `yaml:"retry_max" doc:"longest interval between two attempts at an agent" def:"5s"`
	Register       scalar[time.Duration] `yaml:"register" doc:"first interval of Map-Register retransmission (RFC 9301 section 5.7)" def:"1s"`
	Lookup         scalar[time.Duration] `yaml:"lookup" doc:"the Map-Servers say a version" def:"1s"`
	Poll           scalar[time.Duration] `yaml:"poll" doc:"an agent is asked while it takes part in a move" def:"500ms"`
	PollIdle       scalar[time.Duration] `yaml:"poll_idle" doc:"an agent is asked while it takes part in none" def:"15s"`
	Tell           scalar[time.Duration] `yaml:"tell" doc:"agents are told again what VMs there are" def:"5m"`
	List           scalar[time.Duration] `yaml:"list" doc:"a hypervisor's libvirt is asked for all its VMs" def:"1m"`
	ListSoon       scalar[time.Duration] `yaml:"list_soon" doc:"the same, after it told of a change" def:"200ms"`
	Driver         scalar[time.Duration] `yaml:"driver" doc:"one request to a hypervisor's libvirt, migrations aside" def:"20s"`
	DriverRetry    scalar[time.Duration] `yaml:"driver_retry" doc:"first interval between two attempts at a libvirt that is lost; it doubles" def:"1s"`
	DriverRetryMax scalar[time.Duration] `yaml:"driver_retry_max" doc:"longest interval between two attempts at a libvirt that is lost" def:"30s"`
	Vanish         scalar[time.Duration] `yaml:"vanish" doc:"a VM that nobody entered is on no hypervisor's list, before it is forgotten" def:"10m"`
	Relocate       scalar[time.Duration] `yaml:"relocate" doc:"a VM is on another hypervisor's list only, before that is believed" def:"1m"`
	Locate         scalar[time.Duration] `yaml:"locate" doc:"the hypervisors are asked where a VM runs whose migration nobody watched" def:"2s"`
	Finish         scalar[time.Duration] `yaml:"finish" doc:"a migration that has arrived waits for a Map-Server to confirm" def:"10s"`
	Stall          scalar[time.Duration] `yaml:"stall" doc:"a migration sends nothing, before it counts as slow" def:"1m"`
	Services       scalar[time.Duration] `yaml:"services" doc:"every service address is registered again at the Map-Servers" def:"5m"`
}

// timing takes what is set; the rest stays 0, which the controller has defaults for.
func (r rawTiming) timing(p *problems) controller.Timing {
	var t controller.Timing
	for _, k := range []struct {
		to   *time.Duration
		from scalar[time.Duration]
	}{
		{&t.Call, r.Call}, {&t.Prepare, r.Prepare}, {&t.Prepared, r.Prepared}, {&t.Announced, r.Announced}, {&t.Again, r.Again},
		{&t.Settle, r.Settle}, {&t.Abort, r.Abort}, {&t.Forget, r.Forget}, {&t.Retry, r.Retry}, {&t.RetryMax, r.RetryMax},
		{&t.Register, r.Register}, {&t.Lookup, r.Lookup}, {&t.Poll, r.Poll}, {&t.PollIdle, r.PollIdle}, {&t.Tell, r.Tell},
		{&t.List, r.List}, {&t.ListSoon, r.ListSoon}, {&t.Driver, r.Driver}, {&t.DriverRetry, r.DriverRetry}, {&t.DriverRetryMax, r.DriverRetryMax},
		{&t.Vanish, r.Vanish}, {&t.Relocate, r.Relocate}, {&t.Locate, r.Locate}, {&t.Finish, r.Finish}, {&t.Stall, r.Stall},
		{&t.Services, r.Services},
	} {
		if k.from.Set && k.from.V <= 0 {
			p.at(k.from.tok, "%v: want more than 0", k.from.V)
		}
		*k.to = k.from.V
	}
	return t
}

// positive complains of a number that is set, and less than 1.
func positive(p *problems, s scalar[int]) int {
	if s.Set && s.V < 1 {
		p.at(s.tok, "%d: want at least 1", s.V)
	}
	return s.V
}

// Router is the configuration of the demonstration's Internet router.
type Router struct {
	Common
	BGP bgp.Config
}

type rawRouter struct {
	RawCommon `yaml:",inline"`
	AS        scalar[uint32]       `yaml:"as" doc:"own autonomous system" req:"1" ex:"64500"`
	RouterID  scalar[netip.Addr]   `yaml:"router_id" doc:"an IPv4 address, unique" req:"1" ex:"192.0.2.254"`
	Listen    []scalar[netip.Addr] `yaml:"listen" doc:"own addresses (default: all)" ex:"192.0.2.254"`
	Peers     []rawBGPPeer         `yaml:"peers" doc:"who may announce routes to us" req:"1"`
}

func (r *rawController) build(p *problems) any {
	c := &Controller{Common: r.common(p), API: API{Listen: r.Listen.V, Token: r.Token.V}, Addresses: values(r.Addresses)}
	require(p, r.Listen, "listen", r.Role.tok)
	require(p, r.Token, "token", r.Role.tok)
	if len(r.Addresses) == 0 {
		p.at(r.Role.tok, "addresses is required: at least one")
	}
	if len(r.MapServers) == 0 {
		p.at(r.Role.tok, "map_servers is required: at least one")
	}
	c.Core = controller.Config{
		Name: c.Name, Addresses: c.Addresses, Token: r.Token.V, KeepMoves: positive(p, r.KeepMoves), Timing: r.Timing.timing(p),
		PerLink: positive(p, r.Migrations.PerLink), KeepMigrations: positive(p, r.Migrations.Keep),
	}
	for _, s := range servers(p, r.MapServers, "map_servers") {
		c.Core.MapServers = append(c.Core.MapServers, controller.Server(s))
	}
	return c
}

func (r *rawRouter) build(p *problems) any {
	c := &Router{Common: r.common(p)}
	require(p, r.AS, "as", r.Role.tok)
	require(p, r.RouterID, "router_id", r.Role.tok)
	c.BGP = bgp.Config{LocalAS: r.AS.V, RouterID: r.RouterID.V, Listen: values(r.Listen), HoldTime: defaultHold,
		Peers: peers(p, r.Peers, r.AS.V)}
	if len(c.BGP.Peers) == 0 {
		p.at(r.Role.tok, "peers is required: at least one")
	}
	return c
}
