// Package slowpath serves what the kernel's data plane hands up through lisp0, and writes back what it
// makes of it:
//
//   - packets to destinations with no route wait, per destination, until the control plane knows
//     where they go or that they go nowhere (RFC 9301 section 7);
//   - packets of a hold queue wait while a VM is on its way, and leave in order when it runs;
//   - copies of the packets that a VM was given wait in a ring, so that those which the VM never read
//     can be sent again to where it runs now;
//   - packets that are too big or have lived too long are fragmented (RFC 9300 section 7.1) or
//     answered by ICMP (RFC 1191, RFC 4443);
//   - super-packets that a path cannot carry whole are cut into single packets;
//   - packets for map646 that the kernel does not translate are translated (RFC 7915), fragmented ICMP
//     when all of it is there.
//
// One goroutine, [SlowPath.Run], owns all of this. Everything else talks to it by messages and none
// of it waits for the network. Everything is bounded, and whatever is dropped is counted by reason.
package slowpath
