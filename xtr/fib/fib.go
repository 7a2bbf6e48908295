// Package fib holds the plain values in which the control plane tells a data plane what to do with
// packets: the forwarding information base. No I/O, no goroutine: package kernel programs these values
// into the kernel, package slowpath serves what the kernel hands up, xtr and detr decide.
package fib

import (
	"net"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Do is what the data plane does with a packet whose inner destination matches a Route.
type Do uint8

const (
	// Encap encapsulates to one of Locators.
	Encap Do = iota + 1
	// Deliver hands the packet to a VM on this host: out of interface If, to MAC.
	Deliver
	// Hold hands the packet up; it waits in hold queue Hold until the route changes. With Locators only what
	// comes from the underlay waits: the VM still runs there, and what this host's VMs send goes there.
	Hold
	// Native hands the packet to the kernel's own routing (RFC 9301: Natively-Forward, no PETR).
	Native
	// Drop drops and counts (RFC 9301: the Drop actions).
	Drop
	// Miss asks the control plane (RFC 9301: Send-Map-Request); also what happens with no route.
	Miss
)

// Route says what happens to packets for one EID prefix. The longest prefix wins. Routes are replaced
// whole; setting the same Route twice is setting it once.
type Route struct {
	EID lisp.EID
	Do  Do

	// Locators, for Encap and Hold: only the usable ones of the best priority get traffic, by weight.
	Locators []lisp.Locator
	// MTU is the largest inner packet in bytes that fits the path to Locators; 0 = the tunnel's default.
	MTU uint16
	// Transit allows packets that came decapsulated from the underlay to be encapsulated again:
	// every route of a D-ETR, and on an xTR the EIDs whose VM has just left. Without it such packets
	// are dropped and counted, and reported as EventNotLocal.
	Transit bool
	// Moved reports (rate-limited) whoever still sends here for this EID, as EventMoved, so that a
	// Solicit-Map-Request goes out.
	Moved bool

	If  int              // interface index, for Deliver (and for Hold of an incoming VM, 0 if not there yet)
	MAC net.HardwareAddr // the VM's MAC, for Deliver
	// Copy, for Deliver: while armed, hand up a copy of every packet given to the interface.
	Copy bool
	// Watch reports the first packets whose source is this EID, as EventSource (a VM that begins to run).
	Watch bool

	// Hold is a hold queue, 1..MaxHold, 0 = none. With Do == Hold every packet goes there. With
	// another Do, packets go on being diverted there until those that were diverted have all been
	// reinjected: so the last held packet leaves before the first live one.
	Hold uint32
}

// MaxHold is the highest hold queue number.
const MaxHold = 4095

// Reason is why the kernel handed a frame up to the slow path, or dropped it.
type Reason uint8

// Reasons of frames that are handed up.
const (
	UpMiss      Reason = iota + 1 // no route, or Do == Miss
	UpHold                        // Route.Hold
	UpCopy                        // Route.Copy: a copy; the packet itself went to the VM
	UpTooBig                      // larger than the route's MTU
	UpTTL                         // TTL or hop limit exhausted
	UpSegment                     // a super-packet that this path cannot carry whole
	UpTranslate                   // for map646 in Go: decapsulated, but not translated yet
)

// Event is something that the data plane noticed and that the control plane may act on. Events are
// rate-limited per (kind, EID, peer) and may be lost: nothing may depend on one alone.
type Event struct {
	Kind EventKind
	At   time.Time
	EID  lisp.EID // the host EID that the packet spoke of
	RLOC string   // outer source, for EventMoved and EventNotLocal ("" otherwise)
	If   int      // interface index, for EventSource and EventUnknownSource
	MAC  net.HardwareAddr
}

// EventKind is the kind of an Event.
type EventKind uint8

const (
	// EventSource: a VM interface sent a packet from an EID whose route has Watch.
	EventSource EventKind = iota + 1
	// EventUnknownSource: a VM interface sent a packet from an address that is no local EID there. The
	// packet was dropped and counted.
	EventUnknownSource
	// EventMoved: RLOC still sends here for an EID whose route has Moved.
	EventMoved
	// EventNotLocal: RLOC sent us a packet for an EID that is not ours; it was dropped and counted.
	EventNotLocal
)
