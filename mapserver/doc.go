// Package mapserver is a Map-Server and Map-Resolver (RFC 9301 section 8) that several hosts may tell
// where an EID lives, and that decides by the version of the mapping which of them to believe (DESIGN.md
// section 3).
//
//	config.go                     sites, keys, subscribers: what is allowed
//	core.go                       the state; (state, event, now) -> effects
//	register.go order.go          Map-Register (RFC 9301 sections 5.6, 8.2), the order of versions
//	damping.go refusal.go         claims to and fro; who was refused what, and why
//	service.go                    service addresses, which controllers register for map646
//	notify.go                     Map-Notify to those who hosted or host an EID, retransmission (section 5.7)
//	resolve.go                    Map-Request: answer, forward, negative answer (sections 5.5, 8.3, 8.4)
//	subscribe.go                  subscriptions and publications (RFC 9437)
//	server.go sink.go state.go    the goroutines around the core; the sinks; what is durable
//	show.go                       tables and explanations for operators
//
// # What waits for the disk
//
// What a Map-Register changes goes to the store in a batch with whatever else came while the store was
// busy. The Map-Notify that acknowledges it to its sender leaves when the batch is durable: from then on
// the sender may rely on it. Everybody else (the xTR that had the EID before, subscribers, the sinks and
// so the D-ETRs) is told at once, while the disk still works.
//
// This is safe because a version that the sender chose is the sender's statement, not ours. If this
// process dies before the batch is durable, it comes back with the older mapping; the sender, never
// acknowledged, says the same again within a second, with the same version; and whoever heard the newer
// version keeps it, for everybody believes the newest. Telling it early makes nobody believe anything
// that is not, or is not about to be, true everywhere. It is different with a version that this
// Map-Server chose itself, for a claim with version 0: chosen and told, then lost, it could be given a
// second time to another xTR, and then two mappings would bear one version. So what has a number of our
// own making is told to others only when that number is durable.
//
// # Service addresses
//
// A controller registers, with a controller's key, which service address map646 translates to which EID
// ([lisp.Mapping.Inside]). This Map-Server keeps that until a controller withdraws it: it does not expire,
// for the controller may be dead for days. The sinks, and so the D-ETRs, are told of it like of any mapping,
// by the order of versions. xTRs are not: a Map-Request for a service address is answered with the prefix
// that covers it, which the D-ETRs registered, and no Map-Notify speaks of one.
//
// One-to-one holds here, too, within IPv4 and within IPv6 service addresses: no two overlap, neither do
// their EIDs, and no EID is a service address. What collides is refused, and the controller is answered
// with the mapping that stands in the way (with the action Drop/Policy-Denied if the configuration does). So it is with an address that a VM has as its EID now: a VM that
// runs is not cut off by a service. The other way round, what an xTR (or a controller on its behalf)
// registers inside a service address is refused: without an answer, for it says nothing of where the VM is;
// the table of registrations and the log name the service. Registrations to be merged are let pass: they
// are service prefixes of the D-ETRs, and a service may have all of one. Then the sinks are told of the
// service, and Map-Requests are answered with the D-ETRs.
//
// # Trust
//
// Map-Registers are authenticated, Map-Requests are not: a subscription is believed by its xTR-ID, its
// ITR-RLOCs are checked against what is configured, its Map-Notifies are signed with a key that only the
// real xTR has ([Subscriber]).
package mapserver
