package controller

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Config is what a [Controller] needs to know. It is validated by [New].
type Config struct {
	// Name appears in logs.
	Name string
	// Addresses are the controller's own addresses, as in the endpoint that [New] gets: Map-Replies
	// come to them. Without one of a Map-Server's family that server is not asked for versions.
	Addresses []netip.Addr
	// MapServers are all Map-Servers of the cloud, with the controller's own key at each. Without any,
	// only the xTRs register.
	MapServers []Server
	// Port is the UDP port of control messages, 0 = 4342 (RFC 9301 section 5.1).
	Port uint16
	// Token is the bearer token that callers of the HTTP API must present; "" lets everybody in.
	Token string
	// RegisterTTL is the lifetime in minutes of the mappings that are registered on behalf of a target
	// whose agent does not say what it registers itself; 0 = 1440.
	RegisterTTL lisp.TTL
	// Timing bounds every wait; zero fields get defaults.
	Timing Timing
	// KeepMoves is how many moves that have ended are remembered, 0 = 10,000.
	KeepMoves int
	// KeepMigrations is the same of migrations, 0 = 10,000.
	KeepMigrations int
	// Drivers opens a connection to a hypervisor by its URI; nil = there are no drivers. It must not block: a
	// [Driver] connects when it is used.
	Drivers func(uri string) (Driver, error)
	// PerLink is how many migrations use one link at a time, 0 = 1.
	PerLink int
}

// Server is a Map-Server and the key that it shares with the controller.
type Server struct {
	Addr netip.Addr
	Key  lisp.Key
}

// Timing bounds the waits of a move.
type Timing struct {
	// Call is how long one request to an agent may take (default 3 s).
	Call time.Duration
	// Prepare is how long both agents may take to accept a move (default 10 s).
	Prepare time.Duration
	// Prepared is how long a move may wait for the VM to be on its way (default 1 h).
	Prepared time.Duration
	// Again is how often a prepared move is repeated to its agents while the VM does not move
	// (default 1 min).
	Again time.Duration
	// Settle is how long after the VM runs on the target an agent may be silent before the move is
	// recorded without it, and Map-Servers before they are given up (default 3 min).
	Settle time.Duration
	// Abort is how long each agent may take to undo (default 10 s).
	Abort time.Duration
	// Forget is how long after an abort the agents' last counts are waited for (default 35 s).
	Forget time.Duration
	// Retry is the first interval between two attempts at an agent; it doubles up to RetryMax
	// (defaults 100 ms, 5 s).
	Retry, RetryMax time.Duration
	// Register is the first interval of Map-Register retransmission; it doubles up to 1 min
	// (default 1 s, RFC 9301 section 5.7).
	Register time.Duration
	// Lookup is how long the Map-Servers may take to say a version (default 1 s).
	Lookup time.Duration
	// Poll is how often an agent is asked for its records while it takes part in a move (default 500 ms).
	Poll time.Duration
	// PollIdle is the same while it does not: unprepared moves are found so (default 15 s).
	PollIdle time.Duration
	// Announced is how long an announced move waits for its VM to be on its way (default 30 min).
	Announced time.Duration
	// List is how often a driver is asked for all VMs, besides after events (default 1 min), ListSoon how long after
	// an event (default 200 ms).
	List, ListSoon time.Duration
	// Driver is how long one request to a driver may take, migrations aside (default 20 s); DriverRetry and
	// DriverRetryMax bound the interval between two attempts at one that is lost (defaults 1 s, 30 s).
	Driver, DriverRetry, DriverRetryMax time.Duration
	// Vanish is how long a discovered VM may be on no list before it is forgotten (default 10 min), and a VM on the
	// list of another hypervisor only than where it is said to be, before that is believed (default 1 min).
	Vanish, Relocate time.Duration
	// Locate is how often the hypervisors are asked where a VM runs whose migration nobody watched (default 2 s).
	Locate time.Duration
	// Finish is how long a migration that has arrived waits for a Map-Server to confirm (default 10 s).
	Finish time.Duration
	// Stall is how long a migration may send nothing before it counts as slow (default 1 min).
	Stall time.Duration
	// Tell is how often agents are told again what VMs there are (default 5 min).
	Tell time.Duration
	// Services is how often every service is registered again (default 5 min).
	Services time.Duration
}

// maxRegisterBackoff bounds the interval between two Map-Registers (RFC 9301 section 5.7).
const maxRegisterBackoff = time.Minute

func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&t.Call, 3 * time.Second},
		{&t.Prepare, 10 * time.Second},
		{&t.Prepared, time.Hour},
		{&t.Again, time.Minute},
		{&t.Settle, 3 * time.Minute},
		{&t.Abort, 10 * time.Second},
		{&t.Forget, 35 * time.Second},
		{&t.Retry, 100 * time.Millisecond},
		{&t.RetryMax, 5 * time.Second},
		{&t.Register, time.Second},
		{&t.Lookup, time.Second},
		{&t.Poll, 500 * time.Millisecond},
		{&t.PollIdle, 15 * time.Second},
		{&t.Tell, 5 * time.Minute},
		{&t.Announced, 30 * time.Minute},
		{&t.List, time.Minute},
		{&t.ListSoon, 200 * time.Millisecond},
		{&t.Driver, 20 * time.Second},
		{&t.DriverRetry, time.Second},
		{&t.DriverRetryMax, 30 * time.Second},
		{&t.Vanish, 10 * time.Minute},
		{&t.Relocate, time.Minute},
		{&t.Locate, 2 * time.Second},
		{&t.Finish, 10 * time.Second},
		{&t.Stall, time.Minute},
		{&t.Services, 5 * time.Minute},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return t
}

func (c Config) withDefaults() Config {
	c.Timing = c.Timing.withDefaults()
	if c.Port == 0 {
		c.Port = lisp.ControlPort
	}
	if c.RegisterTTL == 0 {
		c.RegisterTTL = 1440
	}
	if c.KeepMoves <= 0 {
		c.KeepMoves = 10_000
	}
	if c.KeepMigrations <= 0 {
		c.KeepMigrations = 10_000
	}
	if c.PerLink <= 0 {
		c.PerLink = 1
	}
	return c
}

func (c Config) validate() error {
	seen := map[netip.Addr]bool{}
	for _, s := range c.MapServers {
		switch {
		case !s.Addr.IsValid():
			return errors.New("a Map-Server has no address")
		case seen[s.Addr]:
			return fmt.Errorf("Map-Server %s is listed twice", s.Addr)
		case s.Key.Secret == "":
			return fmt.Errorf("Map-Server %s has no key", s.Addr)
		}
		seen[s.Addr] = true
	}
	for _, a := range c.Addresses {
		if !a.IsValid() {
			return errors.New("an own address is not valid")
		}
	}
	return nil
}
