// Package qmp speaks QEMU's monitor protocol: a client, the events of the VMs of a host that has no libvirt, and live
// migration.
//
// A monitor serves one client at a time. Whoever follows a host's VMs with [Watch] wants a monitor of each VM for
// itself; QEMU takes several:
//
//	-qmp unix:/run/qemu/web.qmp,server=on,wait=off -qmp unix:/run/qemu/web.agent.qmp,server=on,wait=off
//
//	message.go   what a line of a monitor says: greeting, answer, error, event
//	client.go    one connection: commands and their answers, events
//	guest.go     which VM is behind a monitor, and what it has
//	watch.go     all VMs of a host: who is there, who stops, runs, leaves, goes
//	migrate.go   live migration, post-copy, offline; mirror.go: of disks too
//
// It is made for QEMU 7.2 and later, and imports the standard library only.
package qmp
