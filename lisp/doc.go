// Package lisp holds the nouns of the Locator/ID Separation Protocol and how they travel: values, and the
// codec of the control messages and of the data header. It imports the standard library only, and has no
// socket, goroutine, clock or log.
//
// # Words
//
// As in RFC 9300 section 3 and RFC 9301 section 3:
//
//   - [EID], Endpoint ID: the address of a host, wherever the host is; also a prefix of them.
//   - RLOC, Routing Locator: the address of the router behind which EIDs are today. In a mapping it is a
//     [Locator].
//   - instance-ID, IID: the number of the address space that an EID belongs to.
//   - [Mapping]: an EID and its locators. A Map-Reply, Map-Register or Map-Notify carries it as a record.
//     Without locators it is negative, and its [Action] says what to do.
//   - map-cache: the mappings that a sender has asked for and may use until their [TTL] is over.
//   - ITR, ETR: encapsulates packets to RLOCs; decapsulates them. xTR: both.
//   - PITR, PETR: the same for hosts that know nothing of LISP. RTR: decapsulates and encapsulates again.
//   - Map-Server: takes registrations. Map-Resolver: takes questions.
//   - [XTRID], [SiteID]: who registered, and to what group it belongs.
//   - [Version], Map-Version: which of two mappings of an EID is newer (RFC 9302).
//   - SMR, Solicit-Map-Request: "ask again, my mapping has changed".
//   - [ECM], Encapsulated Control Message: a message that travels as the payload of another.
//   - LCAF: an address that is more than an IP address (RFC 8060).
//
// And of this project:
//
//   - D-ETR: the representative ETR of a cloud, the only RLOC that outsiders know.
//   - local EID: an EID whose VM runs here.
//   - claim: a Map-Register that moves an EID to a new RLOC. Refresh: a Map-Register that repeats one.
//   - service address: an address that clients use and map646 translates to a VM's EID. [Mapping.Inside].
//   - [Delta], [Sink]: a change to a set of mappings, and who accepts it.
//
// # Where what is
//
//	RFC 9300  5.1, 5.3  data header                          header.go
//	RFC 9301  5.1       types, unknown AFIs                  message.go, codec.go, lcaf.go
//	          5.2, 5.3  Map-Request                          map_request.go
//	          5.4, 5.5  Map-Reply, EID-record, RLOC-record   map_reply.go, record.go
//	          5.6       Map-Register, authentication         map_register.go, auth.go
//	          5.7       Map-Notify, Map-Notify-Ack           map_notify.go
//	          5.8       Encapsulated Control Message         ecm.go
//	RFC 9302  6         Map-Version numbers                  version.go
//	RFC 9303  6.1, 6.2  LISP-SEC: kept as bytes              ecm.go, map_reply.go
//	RFC 9437  4         subscription: I-bit, N-bit           map_request.go
//	RFC 8060  3, 4.1    LCAF, instance-ID                    lcaf.go
//	          5.5       key/value address pair: services     service.go
//
// CONFORMANCE.md names, for each clause of them, the test that shows it.
//
// # Reading and writing
//
// [Decode] takes what the network delivers: it never panics, takes space only for what is there, copies
// what it keeps, and either returns a whole message or an error that wraps one of the Err values.
// [Append] and [AppendSigned] write; locators are put into the order that all xTRs agree on. What was
// decoded can be appended, and decodes to the same again.
package lisp
