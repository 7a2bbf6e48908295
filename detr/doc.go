// Package detr is the representative ETR (D-ETR): the one thing that the world outside knows of the cloud.
// To the Internet it is the origin of the aggregates, to other LISP networks the ETR of the aggregates; to
// both it is a PITR and a PETR (RFC 6832), and to the cloud's xTRs a re-encapsulating tunnel router. It
// keeps no state that another D-ETR would miss.
//
// Two address spaces, with nothing in common:
//
//   - The cloud's own EIDs, inside the aggregates (anchor.go). Their mappings come from the feed (a
//     [lisp.Sink]: package detr/bgp) and go straight into the data plane. There is no map-cache and no
//     Map-Request for them; an EID without a mapping is dropped and counted.
//   - Everything else (resolver.go). A packet without a route causes a Map-Request, with the PITR bit, to a
//     Map-Resolver of the outside; the answer becomes a route that encapsulates, or one that leaves the
//     packet to the kernel's own routing.
//
// Outward it says only this: the aggregates, by Map-Register to the external Map-Servers (registrar.go), by
// Map-Reply to whoever asks (answer.go), and by BGP upstream (an [Upstream]). The outward parts are never
// given the feed's table: what they can say is made of [Config] alone.
//
// One goroutine ([DETR.Run]) owns all state but the anchor's, which has a lock of its own: a move does not
// wait for anything else. The state machines take the time as an argument and return what to send.
package detr
