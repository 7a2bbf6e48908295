#!/bin/sh
# A hookscript for VMs of Proxmox VE: tells tabi of a VM that is about to arrive by live migration.
#
# On every node:   tabi hook example proxmox > /var/lib/vz/snippets/tabi.sh && chmod +x /var/lib/vz/snippets/tabi.sh
# For every VM:    qm set VMID --hookscript local:snippets/tabi.sh
# and /etc/tabi/hook.env, readable by root only, with
#     TABI_CONTROLLER=http://192.0.2.9:4381
#     TABI_TOKEN=s3cret
#     TABI_HYPERVISOR=nezu-hv1     # name of this node at the controller, if that is not its host name
#
# Proxmox calls it with the VM's number and a phase. "pre-start" on the target of a migration comes before memory is
# copied, and PVE_MIGRATED_FROM names the source then. The other phases need nothing: the agents see that the VM runs,
# stops or stays.
#
# It waits for a second at most and ends with status 0, always: "pre-start" with another status would end the migration.
vmid=$1 phase=$2
[ "$phase" = pre-start ] && [ -n "${PVE_MIGRATED_FROM-}" ] || exit 0

[ -r "${TABI_ENV:=/etc/tabi/hook.env}" ] && . "$TABI_ENV"

# While it migrates, the VM's configuration is the source's. What follows the first empty line are snapshots.
conf=${PVE_NODES:-/etc/pve/nodes}/$PVE_MIGRATED_FROM/qemu-server/$vmid.conf
macs=$(sed -n '/^$/q; s/^net[0-9]*: *[a-z0-9-]*=\([0-9A-Fa-f:]\{17\}\).*/"\1"/p' "$conf" | paste -s -d , -)
if [ -z "$macs" ]; then
	echo "tabi was not told of VM $vmid: no MAC address in $conf" >&2
	exit 0
fi

curl --silent --show-error --fail --output /dev/null --max-time 1 \
	--header "Authorization: Bearer ${TABI_TOKEN-}" \
	--header "Content-Type: application/json" \
	--data "{\"macs\":[$macs],\"to\":\"${TABI_HYPERVISOR:-$(hostname)}\"}" \
	"${TABI_CONTROLLER:-http://127.0.0.1:4381}/v1/announcements" || echo "tabi was not told of VM $vmid" >&2
exit 0
