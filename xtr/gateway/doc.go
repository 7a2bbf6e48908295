// Package gateway is the anycast gateway of the VM interfaces of one hypervisor. Every hypervisor
// answers for the same gateway addresses with the same MAC address, so a guest changes nothing when it
// moves. The gateway
//
//   - finds the VM interfaces by name as they come and go, and sets them up;
//   - answers ARP requests and Neighbor Solicitations for itself and for the on-link addresses that
//     live elsewhere (RFC 826, RFC 4861 section 7.2.8), never for an address of the same interface and,
//     for any but its own address, never a probe (RFC 5227, RFC 4862 section 5.4): a VM that has just
//     moved must not be told that its address is taken;
//   - sends Router Advertisements with the MTU that fits the tunnel (RFC 4861 section 6.2);
//   - announces itself when an interface comes up or a VM begins to run on it, so that a stale
//     neighbor entry in a guest is right at once;
//   - reports which MAC and IP addresses it sees on which interface;
//   - answers pings to its own addresses.
//
// Each interface has one goroutine and one packet socket whose filter lets nothing but these messages
// through: data packets never come here.
package gateway
