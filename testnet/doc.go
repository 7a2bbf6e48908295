// Package testnet builds the federated cloud that tabi is shown and tested in, on one Linux machine: network
// namespaces joined by links, the daemons as separate processes each with its configuration file, namespace VMs
// behind a small VMM that can be paused and moved, and clients whose flows count what was lost.
//
// It needs root and a kernel, and for namespace VMs nothing installed: everything is done over netlink. Whatever it makes is written
// down first in a run directory (see [Run]), so that a run that was killed can be taken away completely by the next
// one, by a janitor process, or by [Clean].
//
//	netns.go link.go drop.go     namespaces, links, addresses, routes; partitions
//	run.go process.go host.go    the run directory, processes, a host = a namespace and what runs in it
//	tap.go vmm.go announce.go    the namespace VM: TAP to TAP, pause, move, announce
//	flow_*.go stream/            UDP, ping and TCP flows, counted in both directions
//	flow_guest.go guest/         the ends of flows that are in a real guest: the program there, and how it is asked
//	image_*.go                   what a real guest boots, and what a machine needs for that
//	capture.go                   packet captures
//	topology.go config.go        the demo's cloud and its configuration files
//	cloud.go move.go report.go   start, faults, moves, the report
//	libvirt.go                   a libvirt daemon in namespaces of its own
//	libvirt_cloud.go steady.go   the cloud's guests under such daemons, moved by virsh; real time for emulated CPUs
//	scenario_drain.go _fleet.go _trail.go _witness.go _usage.go   a hypervisor with hundreds of VMs is emptied
//	scenario_satellite.go _shape.go _heartbeat.go                a camp of real guests moves over a slow link
//	services.go frr.go power.go  VMs with IPv6 only and their service addresses; FRR as the Internet router; a node without power
//	scenario_koshien.go sockets.go crowd/ plot/                  a broadcast to thousands of viewers, and its drawing
//
// Non-test files import little of ours, and nothing of the daemons: those are reached the way an operator reaches them.
package testnet
