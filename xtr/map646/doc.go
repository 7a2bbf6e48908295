// Package map646 translates packets between the addresses that clients use and those of VMs: IPv4 and IPv6 (RFC 7915,
// with the addresses of RFC 6052 and RFC 7757), and IPv6 and IPv6 (one-to-one, and RFC 6296). It is stateless: what
// becomes of a packet follows from the packet and the configuration, so any number of translators share the work.
//
// The kernel's data plane does the common packets itself, by the same rules and the same test vectors (package
// vectors). This package does all of them: ICMP errors with the packet inside, fragments that do not fit, options and
// extension headers, and says of what is not translated why, and what the sender is told.
//
//	Translator   Translate: one packet in; packets, an ICMP error for the sender, and a Reason out
//	Reassembler  makes fragmented ICMP whole before it is translated
//
// CONFORMANCE.md names, for each clause of the RFCs, the test that shows it.
//
// Which RFC section is where:
//
//	RFC 7915 4, 4.1, 4.5   fourtosix.go      RFC 6052  embed.go
//	RFC 7915 5, 5.1, 5.5   sixtofour.go      RFC 7757  explicit.go, hairpin.go
//	RFC 7915 4.2, 5.2      icmp.go           RFC 6791  source.go
//	RFC 7915 4.3, 5.3      inner.go          RFC 6296  nptv6.go
//	RFC 7915 4.4, 5.4      reply.go          RFC 4884  extension.go
//	IPv6 to IPv6           sixtosix.go       fragmented ICMP  reassemble.go
package map646
