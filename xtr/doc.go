// Package xtr is the control plane of one hypervisor's tunnel router (xTR): it knows which VMs run here,
// registers their EIDs, resolves the EIDs that they talk to, and carries a VM's traffic over a move without
// losing a packet.
//
// One goroutine ([XTR.Run]) owns all state; everything else hands it inputs. What to do is decided by plain
// state machines of the form (state, event, now) -> (what to send or do, next deadline), one to a file:
//
//	registrar.go  who is right about an EID; claims, refreshes, deregistrations (RFC 9301 sections 5.6, 5.7)
//	resolver.go   the map-cache: Map-Requests, subscriptions, publications (RFC 9301 section 5.2, RFC 9437)
//	smr.go        Solicit-Map-Requests out and in (RFC 9301 section 6.1)
//	handover.go   one VM's move, seen from the source or from the target
//
// and local.go keeps what is known of ports, VMs and the EIDs that live here. The engine turns their state
// into one [fib.Route] for each EID and tells the data plane what should be, whole. xtr.go has the loop,
// events.go what interfaces, VMs and the data plane report, moves.go what handovers want done, route.go the
// routes, packet.go what comes from the wire, api.go what comes from the controller, state.go what survives a
// restart, show.go what an operator sees.
package xtr
