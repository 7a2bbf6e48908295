// Package controller is the cloud's controller: it knows the sites, the hypervisors, the VMs and their
// EIDs, prepares the moves of VMs between hypervisors, and tells the Map-Servers where a VM runs as soon
// as it is known. Nothing depends on it: when it is dead, moves complete by what the xTRs see.
//
// # API
//
// HTTP with JSON. With a token in the configuration, every request bears "Authorization: Bearer TOKEN".
// GET /v1 prints the table of requests. Every PUT, POST and DELETE may be repeated. Errors are
// {"error": "..."} with a status of the 400s or 500s; errors about a move have it under "move".
//
// The inventory: sites first, then hypervisors, then VMs.
//
//	curl -X PUT $C/v1/sites/nezu -d '{"description":"Nezu, Tokyo"}'
//	curl -X PUT $C/v1/hypervisors/nezu-hv1 -d '{"site":"nezu","rloc":"192.0.2.1",
//	    "xtr_id":"00000000000000000000000000000001","agent":"http://192.0.2.1:4380","token":"s3cret"}'
//	curl -X PUT $C/v1/vms/web -d '{"hypervisor":"nezu-hv1","macs":["52:54:00:00:00:10"],
//	    "eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"],"interface":"tap-web"}'
//	curl $C/v1/hypervisors          # with the state of their agents
//	curl -X DELETE $C/v1/vms/web
//
// A hypervisor's token is never shown; a PUT without one keeps it. An xTR with several RLOCs has all of
// them in "locators" ([{"rloc","priority","weight"}]), so that the controller registers what the xTR
// registers. A PUT of a VM without a hypervisor leaves the VM where it is. Every agent is told of every
// VM, so that any of them can be a target.
//
// A move, under an id that the caller makes up:
//
//	curl -X PUT $C/v1/moves/m1 -d '{"vm":"web","to":"hokuriku-hv1"}'   # prepare: 201 when both agents are ready
//	... the hypervisors migrate the VM ...
//	curl -X POST $C/v1/moves/m1/commit        # it runs on the target
//	curl -X POST $C/v1/moves/m1/abort         # or: the migration failed, it goes on at the source
//	curl $C/v1/moves/m1                       # the record: times and counts, controller's and both agents'
//	curl "$C/v1/moves?vm=web&state=settled&limit=10"
//
// The commit is not needed: the agents see the VM run, and the controller sees it in their records. It
// is what a hypervisor's hook or an operator says who knows it sooner. "?wait=10s" makes a request wait
// until the move has come somewhere: prepared (PUT, default 30s), pushed (commit, default 0), aborted
// (abort, default 30s), ended (GET, default 0).
//
// A VM has one move at a time that is not yet decided: a second one is refused (409) while the first is
// preparing, prepared or aborting. Once the VM runs on the target the next move may begin; it supersedes
// the first if that has not settled when the VM moves on.
//
// # The states of a move
//
//	preparing -> prepared -> running -> pushed -> settled
//	     |          |           |          |
//	     +----+-----+           +----------+-> superseded
//	          |                 |          |
//	          v                 v          v   (the source took the VM back, and the target never saw it run)
//	       aborting <-----------+----------+
//	          |  |
//	          |  +-> running   (it runs on the target after all)
//	          v
//	       aborted
//
// preparing asks the Map-Servers for the version of the mapping, then the target's agent, then the
// source's: the target must be ready to hold packets before the source may send it any. running registers
// every EID at every Map-Server, for the target: with its xTR-ID, its RLOC, one version higher, and the
// controller's own key; and tells both agents; all in parallel. aborting asks the target whether the VM
// runs there after all, tells the source to take the VM back, then the target to give back what it holds.
//
// The state machine is a pure function (machine.go). Every change is durable before anything is done
// about it, everything done may be repeated, and after a restart all that was not acknowledged is.
//
// # Versions
//
// Agents are told the version that the mapping has ("version" in PUT /v1/handovers/{id}; 0 = not known),
// the newest of what the Map-Servers, the agents and the controller's own memory say; the target claims
// one higher, and so does the controller on its behalf. Without a version both claim with 0 and the
// Map-Server numbers. If a Map-Server answers that the source holds a newer one, the source's agent is
// asked: if it took the VM back the move is undone, if not the claim is made again, one higher, a few
// times. A third xTR's newer mapping is left alone and written into the record.
//
// # Moves that nobody announced
//
// The agents carry them out without the controller. It finds them among the agents' records, within
// Timing.PollIdle, writes them down as moves, and learns from them where the VM is.
package controller
