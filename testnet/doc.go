// Package testnet builds the federated cloud that tabi is shown and tested in, on one Linux machine: network
// namespaces joined by links, the daemons as separate processes each with its configuration file, namespace VMs
// behind a small VMM that can be paused and moved, and clients whose flows count what was lost.
//
// It needs root and a kernel, and nothing installed: everything is done over netlink. Whatever it makes is written
// down first in a run directory (see [Run]), so that a run that was killed can be taken away completely by the next
// one, by a janitor process, or by [Clean].
//
//	netns.go link.go drop.go     namespaces, links, addresses, routes; partitions
//	run.go process.go host.go    the run directory, processes, a host = a namespace and what runs in it
//	tap.go vmm.go announce.go    the namespace VM: TAP to TAP, pause, move, announce
//	flow_*.go                    UDP, ping and TCP flows, counted in both directions
//	capture.go                   packet captures
//	topology.go config.go        the demo's cloud and its configuration files
//	cloud.go move.go report.go   start, faults, moves, the report
//	libvirt.go                   a libvirt daemon in namespaces of its own
//	libvirt_cloud.go steady.go   the cloud's guests under such daemons, moved by virsh; real time for emulated CPUs
//	scenario_drain.go _fleet.go _trail.go _witness.go _usage.go   a hypervisor with hundreds of VMs is emptied
//	scenario_satellite.go _shape.go _heartbeat.go                a camp of real guests moves over a slow link
//
// Non-test files import nothing of ours but package lisp: the daemons are reached the way an operator reaches them.
package testnet
