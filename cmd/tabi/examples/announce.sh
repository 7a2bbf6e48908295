#!/bin/sh
# Tells tabi that a VM is about to be live-migrated: for any cloud controller that can run a program or make an HTTP
# request. Call it when the target is known, before memory is copied:
#
#     announce.sh VM HYPERVISOR
#
# VM is its name, its UUID (of the domain) or the MAC address of one of its interfaces; HYPERVISOR the target's name at
# the controller, its host name or its RLOC.
#
# TABI_CONTROLLER and TABI_TOKEN say where the controller's API is and what it wants to be shown.
#
# It waits for a second at most, says on standard error what went wrong, and ends with status 0 all the same: a
# migration never fails because tabi is down. Without an announcement the move works too, from the moment on in which the
# VM runs at its target.
#
# To wait until both hypervisors are ready, and to say how it went, take these three instead. ID is yours to make up:
#
#     curl -f -X PUT  "$TABI_CONTROLLER/v1/moves/ID?wait=10s" -H "Authorization: Bearer $TABI_TOKEN" -d '{"vm":"VM","to":"HYPERVISOR"}'
#     ... migrate ...
#     curl -f -X POST "$TABI_CONTROLLER/v1/moves/ID/commit" -H "Authorization: Bearer $TABI_TOKEN"     # it runs there
#     curl -f -X POST "$TABI_CONTROLLER/v1/moves/ID/abort"  -H "Authorization: Bearer $TABI_TOKEN"     # or: it has stayed
set -u
vm=${1:?usage: announce.sh VM HYPERVISOR} to=${2:?usage: announce.sh VM HYPERVISOR}

case $vm in
[0-9a-fA-F][0-9a-fA-F]:*:*:*:*:*) who="\"macs\":[\"$vm\"]" ;;
????????-????-????-????-????????????) who="\"uuid\":\"$vm\"" ;;
*) who="\"vm\":\"$vm\"" ;;
esac

curl --silent --show-error --fail --output /dev/null --max-time 1 \
	--header "Authorization: Bearer ${TABI_TOKEN-}" \
	--header "Content-Type: application/json" \
	--data "{$who,\"to\":\"$to\"}" \
	"${TABI_CONTROLLER:-http://127.0.0.1:4381}/v1/announcements" || echo "tabi was not told that $vm moves to $to" >&2
exit 0
