// Package bgp carries the mapping table from Map-Servers to D-ETRs over plain BGP, and the aggregates
// from a D-ETR to its upstream routers. GoBGP runs inside, without its gRPC listener; nothing else in
// tabi imports it.
//
// There are four roles, each with a BGP server of its own:
//
//   - [Pusher] (Map-Server): a [lisp.Sink] whose mappings become paths.
//   - [Feed] (D-ETR): hears the paths of all Map-Servers, believes the newest mapping of each EID,
//     and tells a [lisp.Sink].
//   - [Upstream] (D-ETR): announces the aggregates and nothing else.
//   - [Router] (the demo's Internet router): hears routes and hands them out.
//
// # How a mapping looks as BGP
//
// One path per locator (ADD-PATH, RFC 7911), path identifiers 1, 2, ... in the order of the locators:
//
//   - NLRI: the EID prefix, IPv4 or IPv6 unicast; with an instance-ID other than 0, VPNv4 or VPNv6 with
//     route distinguisher 0:IID (type 0), label 3, and route target AS:IID.
//
//   - Next hop: the RLOC. An IPv4 EID may have an IPv6 RLOC (RFC 8950); an IPv4 RLOC of an IPv6 EID
//     travels as an IPv4-mapped IPv6 address.
//
//   - ORIGIN IGP; LOCAL_PREF 255 minus the locator's priority (0 if the locator is unusable), so that
//     a reader that knows nothing of LISP prefers what LISP prefers; the community NO_EXPORT.
//
//   - Large communities (RFC 8092), global administrator = the local AS:
//
//     function  value
//     1         Map-Version number, 0..4095 (RFC 9302)
//     2         the set: number of locators in bits 31..24, digest of all locators in bits 23..0
//     3         priority of this locator, 0..255
//     4         weight of this locator, 0..255
//     5         TTL of the mapping in minutes
//     6         flags: 1 = the mapping is authoritative, 2 = this locator is not reachable (R bit clear)
//     7         action of a mapping without locators (RFC 9301 section 5.4)
//     8..11     xTR-ID, most significant 32 bits first; all absent if there is none
//     12..13    Site-ID, most significant 32 bits first; both absent if it is 0
//     14..17    Inside: what map646 translates the service address to, most significant 32 bits first;
//     all absent unless the mapping is a service
//
// Unknown functions and other administrators' communities are ignored, as is the order. An absent
// function 1 means version 0, 2 a set of one, 3 and 4 priority 0 and weight 0, 5 one day. So a route that
// another BGP speaker originates by hand is a mapping too: of version 0, older than any other.
//
// The xTR-ID travels whole and big-endian, so the D-ETR breaks ties between equal versions exactly as
// the Map-Servers do: the lower xTR-ID wins.
//
// A mapping without locators is one path with function 2 = 0 and an unspecified next hop, which the
// sending speaker replaces by its own address. Locators whose address is an LCAF that we do not
// interpret do not travel.
//
// # Services
//
// A service ([lisp.Mapping.Inside]) is a mapping without locators whose NLRI is the service address, or a
// prefix of them, and whose functions 14..17 are the first address of the EID prefix that it is translated
// to. That prefix has as many host bits as the NLRI, so its length does not travel. A path that has some of
// the four functions only, or locators too, or that makes no service with its NLRI (of an instance, an EID
// that is no unicast IPv6 prefix of that length), is as good as withdrawn. A service has no xTR-ID. Should
// Map-Servers disagree whether an address is a service or a VM's EID, the newer version counts, and at
// equal versions the service, whose xTR-ID is the lowest. But where the other is what D-ETRs have registered
// for a service prefix ([FeedConfig]), the service counts: it has all of the prefix.
//
// # When a mapping is complete
//
// The paths of one mapping arrive one by one. Paths with equal version, xTR-ID and set belong together,
// from whichever peer they come; the mapping is complete when as many different RLOCs are there as the
// set says. Until then the previous mapping stands, for at most 100 ms: a peer without ADD-PATH sends
// only one of several locators, and one is better than none.
//
// # Graceful restart
//
// On between Map-Servers and D-ETRs (RFC 4724, with RFC 8538 notifications). A D-ETR keeps the paths of
// a Map-Server that restarts until it says End-of-RIB, or the restart time that the Map-Server announced
// is over. For this a Pusher does not speak to anybody before its first full Delta: it would declare an
// empty table complete. Upstream sessions have no graceful restart: a D-ETR that is gone shall be routed
// around at once.
//
// One end of each session should be passive (by custom the Map-Server): GoBGP resolves connection
// collisions by closing both.
package bgp
