// Package qmp speaks QEMU's monitor protocol: a client, the events of the VMs of a host that has no libvirt, and live
// migration.
package qmp
