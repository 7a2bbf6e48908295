// Package libvirt is the controller's driver for hypervisors with libvirt, and where an agent hears of its VMs.
package libvirt
