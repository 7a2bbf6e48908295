// Package detr is the representative ETR (D-ETR): the one thing that the world outside knows of the cloud.
// To the Internet it is the origin of the aggregates, to other LISP networks the ETR of the aggregates; to
// both it is a PITR and a PETR (RFC 6832), and to the cloud's xTRs a re-encapsulating tunnel router. It
// keeps no state that another D-ETR would miss.
//
// Two address spaces, with nothing in common:
//
//   - The cloud's own EIDs, inside the aggregates (anchor.go). Their mappings come from the feed (a
//     [lisp.Sink]: package detr/bgp) and go straight into the data plane. There is no map-cache and no
//     Map-Request for them; an EID without a mapping is dropped and counted. From the same feed come the services
//     (services.go), which say what map646 translates, and go to the [Translator]s.
//   - Everything else (resolver.go). A packet without a route causes a Map-Request, with the PITR bit, to a
//     Map-Resolver of the outside; the answer becomes a route that encapsulates, or one that leaves the
//     packet to the kernel's own routing.
//
// Outward it says only this: the aggregates, and the prefixes that service addresses are taken from, by Map-Register
// to the external Map-Servers (registrar.go), by Map-Reply to whoever asks (answer.go), and by an [Upstream]: BGP,
// or routes for OSPF (package detr/route). The outward parts are never given the feed's table: what they can say is
// made of [Config] alone. Inside the cloud it registers the service prefixes and the pool, so that xTRs send it what is
// to be translated.
//
// It says so while it can serve. When it cannot, or is drained (drain.go), it withdraws everywhere, answers no probe
// and tells the xTRs to ask again (solicit.go); the data plane goes on with what still comes.
//
// One goroutine ([DETR.Run]) owns all state but the anchor's, which has a lock of its own: a move does not
// wait for anything else. The state machines take the time as an argument and return what to send.
package detr
