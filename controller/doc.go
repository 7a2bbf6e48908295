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
// # Real VMs: drivers
//
// A hypervisor with "driver" (a libvirt URI: "qemu+tcp://hv1/system", "qemu+unix:///system?socket=PATH", "qemu+ssh://..",
// "qemu+tls://..") is watched: what VMs are there, what they do, what they need. "driver_peer" is how the other
// hypervisors' libvirt reaches it, if that is another URI, and "migrate_uri" where it wants the memory of VMs that come.
//
//	curl -X PUT $C/v1/hypervisors/nezu-hv1 -d '{..., "driver":"qemu+tcp://192.0.2.1/system","migrate_uri":"tcp://192.0.2.1"}'
//
// A VM is its domain of the same UUID, name or MAC address. VMs that nobody entered are listed as "discovered", with the
// EIDs and the owner that stand in their domain's metadata; without EIDs they are listed, and tabi does not move them.
// An owner in the metadata is believed if that owner is at home at the site, or the site has no owners: a site cannot
// say that a VM is a stranger's. A VM that was entered, or chowned, has its owner from there.
//
//	curl $C/v1/vms/web                    # VMStatus: state, guest, storage, owner, migration
//	curl $C/v1/vms/web/addresses          # assigned and seen
//	curl -X PUT $C/v1/vms/web/owner -d '{"owner":"alice"}'
//	curl -X PUT "$C/v1/vms/web/definition?hypervisor=nezu-hv1" --data-binary @web.xml
//	curl -X POST $C/v1/vms/web/start      # stop, kill, hibernate, resume, pause; ?hypervisor= starts it elsewhere
//
// Storage: network disks are shared by nature. A file is shared if it lies below one of the site's "shared_storage"
// directories, and the target's site has the same file at the same path: a directory with a name ("nfs1=/srv/vms") is
// the same file system wherever the name is the same, one without is the site's own. Every other file is local, and
// travels with "copy_storage". A path alone cannot tell.
//
// # Policy
//
// A site that says neither "owners" nor "lend" is open: every VM may come, as far as it has room. It is how a cloud of one
// organisation works, and nothing needs to be configured for it. A site that says either is strict, and what it does not
// allow is refused:
//
//   - VMs of its "owners" are at home: they may always come.
//   - Others are guests. Without "lend" no guest may come; {"lend":{}} says the same.
//   - A guest may come if its owner is in lend.owners ("*": anybody whose VM has an owner), or its name is in
//     lend.vms ("web", "web-*"); and, if lend.from_sites is not empty, only from one of these.
//   - All guests together have at most lend.cpus virtual CPUs and lend.memory bytes (0: not limited beyond the room).
//   - A VM may always move within its site, and a site never keeps a VM from leaving.
//
// Every move that the controller begins obeys: PUT /v1/moves, migrations, drains, by name or placed. Moves that are
// announced, or that nobody announced, have been decided by somebody else: they are carried out.
//
//	curl -X PUT $C/v1/sites/nezu -d '{"owners":["wide"],"lend":{"cpus":8,"memory":17179869184,"owners":["alice"],
//	    "vms":["camp-*"],"from_sites":["camp"]},"shared_storage":["nfs1=/srv/vms"]}'
//
// Placement, when no hypervisor is named: of those that admit the VM, have its room, and are neither drained nor silent, the
// one with the most of its memory free, in parts of the whole; between equals, or when nobody knows what is free, the one
// with the fewest VMs, then the first by name. Room is kept for VMs that are on their way.
//
// # Migrations
//
// A migration is a move that the controller drives itself, by the driver of the source (peer to peer). Without a driver
// on both sides POST /v1/migrations is refused: prepare a move then, and migrate yourself.
//
//	curl -X POST $C/v1/preflight  -d '{"vm":"web","site":"nezu"}'          # checks, target, estimate; changes nothing
//	curl -X POST $C/v1/migrations -d '{"vm":"web","to":"nezu-hv1","mode":"live","max_downtime":"50ms","on_slow":"postcopy"}'
//	curl "$C/v1/migrations/ID?wait=10s&after=SEQ"                          # answers as soon as seq > SEQ, or it has ended
//	curl -X POST $C/v1/migrations/ID/cancel                                # and /postcopy; /detach says that nobody watches
//	curl "$C/v1/migrations?vm=web&phase=done&drain=nezu-hv1&limit=10"
//
//	queued -> preflight -> preparing -> migrating -> finishing -> done
//	   |          |            |         |      |       ^
//	   |          |            |         |      v       |   (nobody said how it went: the hypervisors are asked)
//	   |          |            |         |   locating --+
//	   |          |            v         v      |
//	   |          |           undoing <---------+
//	   v          v            |
//	cancelled or failed <------+
//
// One migration at a time uses a link: the pair of sites, or, within a site, the pair of hypervisors ([Config.PerLink]).
// It ends done when the VM runs at the target, and failed or cancelled when it has stayed; then "error" is one line and
// "detail" the whole story. locating asks both hypervisors where the VM runs: after a restart of the controller, or when
// the driver cannot say. What is said of the end is what they answered.
//
// on_slow is what is done about a migration that gets nowhere: the guest changes its memory faster than the line carries it,
// or what remains has not shrunk for some iterations, or nothing is sent at all. It is noted with figures, and then: abort
// (the default), postcopy, converge (admit longer and longer downtimes; begins with auto_converge), wait. A guest is
// never stopped to make it converge.
//
// # Draining a hypervisor
//
//	curl -X POST $C/v1/hypervisors/hv1/drain -d '{"plan_only":true}'       # [{"vm","to","why"}]; changes nothing
//	curl -X POST $C/v1/hypervisors/hv1/drain -d '{"on_slow":"wait"}'       # from now on nothing is placed there
//	curl $C/v1/hypervisors/hv1/drain                                       # how far it has come
//	curl -X POST $C/v1/hypervisors/hv1/undrain                             # cancels what is still queued
//
// VMs on hypervisors without a driver stand in the plan without a migration: an external mover takes them there by
// PUT /v1/moves/{id}.
//
// # Announcements
//
// POST /v1/announcements {"vm" or "uuid" or "macs", "to"}: somebody else, "virsh migrate" or another cloud controller, is about
// to migrate a VM. A move is prepared, under an id that follows from the VM and where it was, so that saying it twice is
// saying it once; the answer does not wait for it. If no migration follows, the move is undone when its time is up
// (Timing.Announced), or as soon as the source's agent says that the VM stays.
//
// # Service addresses
//
// A service address, IPv4 or IPv6, is what clients use and the D-ETRs translate to a VM's EID, wherever the VM is. The
// controller decides who has which: a service binds Outside, one address or a prefix, to Inside, an IPv6 EID with as
// many host bits. A VM's address has one of each family at most, and no two services overlap.
//
//	curl -X PUT "$C/v1/services/198.51.100.10?wait=5s" -d '{"vm":"web"}'     # its IPv6 EID, if there is just one
//	curl -X PUT $C/v1/services/198.51.100.11 -d '{"inside":"2001:db8:e1d:1::11"}'
//	curl -X PUT $C/v1/services/203.0.113.0-28 -d '{"inside":"2001:db8:e1d:1::40/124"}'   # 203.0.113.0/28
//	curl $C/v1/services/198.51.100.10                                        # and what each Map-Server has said of it
//	curl -X POST $C/v1/services/198.51.100.10/move -d '{"vm":"web2"}'
//	curl -X DELETE $C/v1/services/198.51.100.10                              # 202, and 204 once it is forgotten everywhere
//	curl -X POST $C/v1/services -d '{"services":[{"outside":"198.51.100.10","vm":"web"}],"dry_run":true}'
//
// A 409 names who has the address already. The Inside of a service is a VM's EID, or part of one; one that is wider must
// have some VM's EID in it, and then each address is of whoever has it. A VM that has services is not deleted, nor are
// the EIDs taken away that they are translated to: move or delete the services first. If a VM that nobody entered
// vanishes with its domain, its services wait for a VM with their EIDs, and say so under "problem".
//
// Services are registered at every Map-Server with the controller's key, each change at once and all of them every
// [Timing.Services], so that a Map-Server that lost its store gets them back; after a Map-Server's silence it gets them
// at once. A service is "confirmed" when every Map-Server has confirmed it, "pending" until then. What was deleted is
// "deleting" until every Map-Server has confirmed that, however long it is away. If a Map-Server knows a newer version
// than the controller, after the controller's store was lost, the controller counts on from there. What only a Map-Server
// knows is taken away with DELETE and "?force=true".
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
