package vectors

import "slices"

func fourToSix() []Vector {
	const t = "translated-4to6"
	tcp4 := IP4{Src: client, Dst: a4, TOS: 0xb9, ID: 7, DF: true, Proto: TCP, Data: TCPSegment(client, a4, 100)}
	tcp6 := IP6{Src: pClient, Dst: a, Class: 0xb9, Next: TCP, Data: TCPSegment(pClient, a, 100)}
	udp := func(src, dst string, n int) []byte { return UDPDatagram(src, dst, n) }
	big := func(n int) (IP4, []byte) { // UDP of n bytes in all, and what it is in IPv6
		return IP4{Src: client, Dst: a4, ID: 0xabcd, Proto: UDP, Data: udp(client, a4, n-28)}, udp(pClient, a, n-28)
	}
	with := func(p IP4, f func(*IP4)) []byte { f(&p); return p.Bytes() }

	all := []Vector{
		{Name: "tcp", Shows: "7915 4.1", In: tcp4.Bytes(), Out: one(tcp6.Bytes()), Reason: t, Kernel: true},
		{Name: "udp", Shows: "7915 4.5",
			In:  IP4{Src: client, Dst: a4, Proto: UDP, Data: udp(client, a4, 33)}.Bytes(),
			Out: one(IP6{Src: pClient, Dst: a, Next: UDP, Data: udp(pClient, a, 33)}.Bytes()), Reason: t, Kernel: true},
		{Name: "udp-empty", Shows: "7915 4.5",
			In:  IP4{Src: client, Dst: a4, Proto: UDP, Data: udp(client, a4, 0)}.Bytes(),
			Out: one(IP6{Src: pClient, Dst: a, Next: UDP, Data: udp(pClient, a, 0)}.Bytes()), Reason: t, Kernel: true},
		{Name: "prefix", Shows: "7757 3.3.1",
			In:  IP4{Src: client, Dst: range4, Proto: UDP, Data: udp(client, range4, 8)}.Bytes(),
			Out: one(IP6{Src: pClient, Dst: range6, Next: UDP, Data: udp(pClient, range6, 8)}.Bytes()), Reason: t, Kernel: true},
		{Name: "wrong-checksum-stays-wrong", Shows: "7915 4.5",
			In:  spoiled(tcp4.Bytes(), 20+25),
			Out: one(spoiled(tcp6.Bytes(), 40+25)), Reason: t, Kernel: true},
		{Name: "not-a-service", Shows: "7915 4.6",
			In: IP4{Src: client, Dst: "198.51.100.99", Proto: UDP, Data: udp(client, "198.51.100.99", 8)}.Bytes(), Reason: "unmatched"},
		{Name: "padding-behind", Shows: "7915 4.1",
			In: append(tcp4.Bytes(), 1, 2, 3, 4, 5, 6), Out: one(tcp6.Bytes()), Reason: t},
		{Name: "header-checksum", Shows: "7915 4.1",
			In: spoiled(tcp4.Bytes(), 10), Reason: "malformed"},
		{Name: "longer-than-it-is", Shows: "7915 4.1",
			In: with(tcp4, func(p *IP4) { p.Total = 1000 }), Reason: "malformed"},

		// Options.
		{Name: "options", Shows: "7915 4.1",
			In:  with(tcp4, func(p *IP4) { p.Options = []byte{1, 7, 7, 4, 0, 0, 0, 0} }),
			Out: one(tcp6.Bytes()), Reason: t},
		{Name: "source-route-expired", Shows: "7915 4.1",
			In:  with(tcp4, func(p *IP4) { p.Options = []byte{131, 7, 8, 10, 0, 0, 1, 0} }),
			Out: one(tcp6.Bytes()), Reason: t},

		// Sources.
		{Name: "source-loopback", Shows: "7915 4.1", In: with(tcp4, func(p *IP4) { p.Src = "127.0.0.1" }), Reason: "illegal-source"},
		{Name: "source-zero", Shows: "7915 4.1", In: with(tcp4, func(p *IP4) { p.Src = "0.0.0.0" }), Reason: "illegal-source"},
		{Name: "source-multicast", Shows: "7915 4.1", In: with(tcp4, func(p *IP4) { p.Src = "224.0.0.1" }), Reason: "illegal-source"},
		{Name: "source-broadcast", Shows: "7915 4.1", In: with(tcp4, func(p *IP4) { p.Src = "255.255.255.255" }), Reason: "illegal-source"},
		{Name: "source-is-a-service", Shows: "7757 3.2", // each address for itself
			In:  IP4{Src: b4, Dst: a4, Proto: UDP, Data: udp(b4, a4, 8)}.Bytes(),
			Out: one(IP6{Src: b, Dst: a, Next: UDP, Data: udp(b, a, 8)}.Bytes()), Reason: t},
		{Name: "source-is-a-service-from-internet", Shows: "7757 4.2.1", Internet: true,
			In:  IP4{Src: b4, Dst: a4, Proto: UDP, Data: udp(b4, a4, 8)}.Bytes(),
			Out: one(IP6{Src: pb, Dst: a, Next: UDP, Data: udp(pb, a, 8)}.Bytes()), Reason: t, Kernel: true},
		{Name: "fragment-not-of-8", Shows: "7915 4.1", Reason: "malformed",
			In: IP4{Src: client, Dst: a4, ID: 3, MF: true, Proto: UDP, Data: udp(client, a4, 92)[:44]}.Bytes()},
		{Name: "fragment-beyond-64k", Shows: "7915 4.1", Reason: "malformed",
			In: IP4{Src: client, Dst: a4, ID: 3, Offset: 65528, Proto: UDP, Data: Pattern(16)}.Bytes()},

		// Transports.
		{Name: "igmp", Shows: "7915 4.2", In: IP4{Src: client, Dst: a4, Proto: IGMP, Data: Pattern(8)}.Bytes(), Reason: "igmp"},
		{Name: "udp-without-checksum", Shows: "7915 4.5",
			In:  IP4{Src: client, Dst: a4, Proto: UDP, Data: UDPWithoutSum(11)}.Bytes(),
			Out: one(IP6{Src: pClient, Dst: a, Next: UDP, Data: udp(pClient, a, 11)}.Bytes()), Reason: t},
		{Name: "dccp", Shows: "7915 4.5",
			In:  IP4{Src: client, Dst: a4, Proto: DCCP, Data: DCCPPacket(client, a4, 20)}.Bytes(),
			Out: one(IP6{Src: pClient, Dst: a, Next: DCCP, Data: DCCPPacket(pClient, a, 20)}.Bytes()), Reason: t},
		{Name: "tcp-header-cut", Shows: "7915 4.5",
			In: IP4{Src: client, Dst: a4, Proto: TCP, Data: TCPSegment(client, a4, 0)[:16]}.Bytes(), Reason: "transport-header"},
		{Name: "udp-length-wrong", Shows: "7915 4.5",
			In:     IP4{Src: client, Dst: a4, Proto: UDP, Data: UDPWithoutSum(40)[:30]}.Bytes(),
			Reason: "transport-header"},
	}
	for _, o := range []struct {
		name string
		opts []byte
	}{{"source-route-loose", []byte{131, 7, 4, 10, 0, 0, 1, 0}}, {"source-route-strict", []byte{1, 137, 7, 4, 10, 0, 0, 1}}} {
		in := with(tcp4, func(p *IP4) { p.Options = o.opts })
		all = append(all, Vector{Name: o.name, Shows: "7915 4.1", In: in, Reply: error4(client, 3, 5, 0, in), Reason: "source-route"})
	}
	for _, proto := range []byte{SCTP, ESP, AH, 47, 99} {
		all = append(all, Vector{Name: "protocol-" + number(int(proto)), Shows: "7915 4.5",
			In:     IP4{Src: client, Dst: a4, Proto: proto, Data: Pattern(24)}.Bytes(),
			Out:    one(IP6{Src: pClient, Dst: a, Next: proto, Data: Pattern(24)}.Bytes()),
			Reason: t})
	}
	for _, proto := range []byte{HopByHop, Routing, Fragment6, ICMP6, DestOpts} {
		in := IP4{Src: client, Dst: a4, Proto: proto, Data: Pattern(24)}.Bytes()
		all = append(all, Vector{Name: "foreign-protocol-" + number(int(proto)), Shows: "7915 4.4",
			In: in, Reply: error4(client, 3, 13, 0, in), Reason: "protocol"})
	}

	// Fragments, as they come: what they are parts of has 100 bytes.
	d4, d6 := udp(client, a4, 92), udp(pClient, a, 92)
	for _, df := range []bool{false, true} {
		name := ""
		if df {
			name = "-df"
		}
		all = append(all,
			Vector{Name: "fragment-first" + name, Shows: "7915 4.1", Reason: t, Kernel: !df,
				In:  IP4{Src: client, Dst: a4, TOS: 1, ID: 0xbeef, DF: df, MF: true, Proto: UDP, Data: d4[:48]}.Bytes(),
				Out: one(IP6{Src: pClient, Dst: a, Class: 1, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 0xbeef, d6[:48])}.Bytes())},
			Vector{Name: "fragment-later" + name, Shows: "7915 4.1", Reason: t, Kernel: !df,
				In:  IP4{Src: client, Dst: a4, TOS: 1, ID: 0xbeef, DF: df, Offset: 48, Proto: UDP, Data: d4[48:]}.Bytes(),
				Out: one(IP6{Src: pClient, Dst: a, Class: 1, Next: Fragment6, Data: FragmentHeader(UDP, 48, false, 0xbeef, d6[48:])}.Bytes())})
	}
	zero := IP4{Src: client, Dst: a4, ID: 5, MF: true, Proto: UDP, Data: UDPWithoutSum(92)[:48]}.Bytes()
	later := IP4{Src: client, Dst: a4, ID: 5, Offset: 48, Proto: UDP, Data: UDPWithoutSum(92)[48:]}
	all = append(all,
		Vector{Name: "udp-without-checksum-fragment", Shows: "7915 4.5", In: zero, Reply: error4(client, 3, 13, 0, zero), Reason: "udp-no-checksum-fragment"},
		Vector{Name: "udp-without-checksum-fragment-later", Shows: "7915 4.5", In: later.Bytes(), Reason: t,
			Out: one(IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 48, false, 5, later.Data)}.Bytes()), Kernel: true})

	// Sizes.
	fits, fits6 := big(1260)
	over, over6 := big(1261)
	df, df6 := big(1480)
	df.DF = true
	dfIn := df.Bytes()
	all = append(all,
		Vector{Name: "size-1260-no-df", Shows: "7915 4", In: fits.Bytes(), MTU: 1500, Reason: t, Kernel: true,
			Out: one(IP6{Src: pClient, Dst: a, Next: UDP, Data: fits6}.Bytes())},
		Vector{Name: "size-1261-no-df", Shows: "7915 4.1", In: over.Bytes(), MTU: 1500, Reason: t,
			Out: [][]byte{
				IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 0xabcd, over6[:1232])}.Bytes(),
				IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 1232, false, 0xabcd, over6[1232:])}.Bytes()}},
		Vector{Name: "size-fragment-no-df", Shows: "7915 4.1", MTU: 1500, Reason: t, // a fragment that must be cut again
			In: IP4{Src: client, Dst: a4, ID: 9, MF: true, Offset: 800, Proto: UDP, Data: Pattern(1240)}.Bytes(),
			Out: [][]byte{
				IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 800, true, 9, Pattern(1240)[:1232])}.Bytes(),
				IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 2032, true, 9, Pattern(1240)[1232:])}.Bytes()}},
		Vector{Name: "size-1480-df", Shows: "7915 4.1", In: dfIn, MTU: 1500, Reason: t, Kernel: true,
			Out: one(IP6{Src: pClient, Dst: a, Next: UDP, Data: df6}.Bytes())},
		Vector{Name: "size-1480-df-too-big", Shows: "7915 4.1", In: dfIn, MTU: 1499, Reason: "too-big",
			Reply: error4(client, 3, 4, 1479, dfIn)},
	)
	return all
}

// fourToSixICMP are ICMP messages from IPv4.
func fourToSixICMP() []Vector {
	const t = "translated-4to6"
	echo := func(typ, typ6 byte) (in, out []byte) {
		return IP4{Src: client, Dst: a4, Proto: ICMP, Data: ICMPMessage(typ, 0, 0x12340001, Pattern(56))}.Bytes(),
			IP6{Src: pClient, Dst: a, Next: ICMP6, Data: ICMP6Message(pClient, a, typ6, 0, 0x12340001, Pattern(56))}.Bytes()
	}
	request, request6 := echo(8, 128)
	reply, reply6 := echo(0, 129)
	all := []Vector{
		{Name: "echo", Shows: "7915 4.2", In: request, Out: one(request6), Reason: t, Kernel: true},
		{Name: "echo-reply", Shows: "7915 4.2", In: reply, Out: one(reply6), Reason: t, Kernel: true},
		{Name: "echo-wrong-checksum-stays-wrong", Shows: "7915 4.2", In: spoiled(request, 40), Out: one(spoiled(request6, 60)), Reason: t, Kernel: true},
		{Name: "echo-fragment", Shows: "7915 1.2", Reason: "icmp-fragment",
			In: IP4{Src: client, Dst: a4, ID: 3, MF: true, Proto: ICMP, Data: request[20:44]}.Bytes()},
		{Name: "echo-fragment-later", Shows: "7915 1.2", Reason: "icmp-fragment",
			In: IP4{Src: client, Dst: a4, ID: 3, Offset: 24, Proto: ICMP, Data: request[44:]}.Bytes()},
		{Name: "timestamp", Shows: "7915 4.2", Reason: "icmp-type",
			In: IP4{Src: client, Dst: a4, Proto: ICMP, Data: ICMPMessage(13, 0, 1, Pattern(12))}.Bytes()},
	}

	// Errors: a sent something to the client, and a router answers.
	sent := IP4{Src: a4, Dst: client, TOS: 2, ID: 77, DF: true, TTL: 1, Proto: TCP, Data: TCPSegment(a4, client, 500)}
	sent6 := IP6{Src: a, Dst: pClient, Class: 2, Hop: 1, Next: TCP, Data: TCPSegment(a, pClient, 500)}
	err := func(name, shows string, typ, code byte, rest uint32, inner []byte, typ6, code6 byte, rest6 uint32, inner6 []byte) Vector {
		return Vector{Name: name, Shows: shows, Reason: t,
			In:  IP4{Src: router, Dst: a4, TOS: 0xc0, Proto: ICMP, Data: ICMPMessage(typ, code, rest, inner)}.Bytes(),
			Out: one(IP6{Src: pRouter, Dst: a, Class: 0xc0, Next: ICMP6, Data: ICMP6Message(pRouter, a, typ6, code6, rest6, inner6)}.Bytes())}
	}
	udp4 := IP4{Src: a4, Dst: client, TTL: 9, Proto: UDP, Data: UDPDatagram(a4, client, 20)}
	udp6 := IP6{Src: a, Dst: pClient, Hop: 9, Next: UDP, Data: UDPDatagram(a, pClient, 20)}
	ping4 := IP4{Src: a4, Dst: client, Proto: ICMP, Data: ICMPMessage(8, 0, 99, Pattern(30))}
	ping6 := IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, 128, 0, 99, Pattern(30))}
	first := IP4{Src: a4, Dst: client, ID: 4, MF: true, Proto: UDP, Data: UDPDatagram(a4, client, 92)[:48]}
	first6 := IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 4, UDPDatagram(a, pClient, 92)[:48])}
	later := IP4{Src: a4, Dst: client, ID: 4, Offset: 48, Proto: UDP, Data: Pattern(40)}
	later6 := IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(UDP, 48, false, 4, Pattern(40))}
	options := sent
	options.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0}
	all = append(all,
		err("error-unreachable", "7915 4.3", 3, 3, 0, udp4.Bytes(), 1, 4, 0, udp6.Bytes()),
		err("error-inner-truncated", "7915 4.3", 11, 0, 0, sent.Bytes()[:28], 3, 0, 0, sent6.Bytes()[:48]),
		err("error-inner-truncated-header-only", "7915 4.3", 11, 0, 0, sent.Bytes()[:20], 3, 0, 0, sent6.Bytes()[:40]),
		err("error-inner-truncated-behind-checksum", "7915 4.3", 11, 1, 0, sent.Bytes()[:20+30], 3, 1, 0, sent6.Bytes()[:40+30]),
		err("error-inner-options", "7915 4.3", 11, 0, 0, options.Bytes()[:60], 3, 0, 0, sent6.Bytes()[:72]),
		err("error-inner-echo", "7915 4.3", 3, 1, 0, ping4.Bytes(), 1, 0, 0, ping6.Bytes()),
		err("error-inner-fragment", "7915 4.3", 3, 3, 0, first.Bytes(), 1, 4, 0, first6.Bytes()),
		err("error-inner-fragment-later", "7915 4.3", 3, 1, 0, later.Bytes(), 1, 0, 0, later6.Bytes()),
		err("error-fragmentation-needed", "7915 4.2", 3, 4, 1400, sent.Bytes()[:28], 2, 0, 1420, sent6.Bytes()[:48]),
		err("error-fragmentation-needed-below-1280", "7915 4.2", 3, 4, 576, sent.Bytes()[:28], 2, 0, 1280, sent6.Bytes()[:48]),
		err("error-parameter", "7915 4.2", 12, 0, 8<<24, sent.Bytes()[:28], 4, 0, 7, sent6.Bytes()[:48]),
		err("error-protocol", "7915 4.2", 3, 2, 0, sent.Bytes()[:28], 4, 1, 6, sent6.Bytes()[:48]),
	)
	// The MTU of a router that does not say it (RFC 1191).
	large := IP4{Src: a4, Dst: client, Proto: UDP, Total: 1500, Data: UDPDatagram(a4, client, 100)[:8]}
	large6 := IP6{Src: a, Dst: pClient, Next: UDP, Length: 1480, Data: UDPDatagram(a, pClient, 100)[:8]}
	small := large
	small.Total = 1300
	small6 := large6
	small6.Length = 1280
	plateau := err("error-plateau", "7915 4.2", 3, 4, 0, large.Bytes(), 2, 0, 1492, large6.Bytes())
	below := err("error-plateau-none", "7915 4.2", 3, 4, 0, small.Bytes(), 2, 0, 1280, small6.Bytes())
	narrow := err("error-mtu-of-way-on", "7915 4.2", 3, 4, 1490, sent.Bytes()[:28], 2, 0, 1444, sent6.Bytes()[:48])
	narrow.MTU = 1444
	nested := IP4{Src: a4, Dst: client, Proto: ICMP, Data: ICMPMessage(3, 3, 0, udp4.Bytes())}
	illegal := IP4{Src: "127.0.0.1", Dst: a4, Proto: ICMP, Data: ICMPMessage(11, 0, 0, sent.Bytes()[:28])}
	all = append(all, plateau, below, narrow,
		Vector{Name: "error-in-error", Shows: "7915 4.3", Reason: "icmp-nested",
			In: IP4{Src: router, Dst: a4, Proto: ICMP, Data: ICMPMessage(11, 0, 0, nested.Bytes())}.Bytes()},
		Vector{Name: "error-wrong-checksum", Shows: "7915 4.2", Reason: "icmp-checksum",
			In: spoiled(IP4{Src: router, Dst: a4, Proto: ICMP, Data: ICMPMessage(11, 0, 0, sent.Bytes()[:28])}.Bytes(), 23)},
		Vector{Name: "error-inner-cut", Shows: "7915 4.3", Reason: "icmp-inner",
			In: IP4{Src: router, Dst: a4, Proto: ICMP, Data: ICMPMessage(11, 0, 0, sent.Bytes()[:19])}.Bytes()},
		Vector{Name: "error-illegal-source", Shows: "7915 4.1", Reason: t, In: illegal.Bytes(),
			Out: one(IP6{Src: "2001:db8:64::7f00:1", Dst: a, Next: ICMP6,
				Data: ICMP6Message("2001:db8:64::7f00:1", a, 3, 0, 0, sent6.Bytes()[:48])}.Bytes())},
	)

	// An extension structure (RFC 4884) behind 128 bytes; in IPv6 the packet inside is 20 longer, padded to 152.
	in := slices.Concat(sent.Bytes()[:128], extension)
	out := slices.Concat(sent6.Bytes()[:148], make([]byte, 4), extension)
	short := slices.Concat(udp4.Bytes(), make([]byte, 128-48), extension)
	short6 := slices.Concat(udp6.Bytes(), make([]byte, 128-68), extension)
	all = append(all,
		err("extension", "4884 4", 11, 0, 32<<16, in, 3, 0, 19<<24, out),
		err("extension-behind-padding", "4884 4", 3, 1, 32<<16, short, 1, 0, 16<<24, short6),
		err("extension-not-in-too-big", "4884 4.6", 3, 4, 32<<16|1400, in, 2, 0, 1420, sent6.Bytes()[:148]),
		err("extension-length-beyond-end", "4884 9", 11, 0, 255<<16, sent.Bytes()[:128], 3, 0, 0, sent6.Bytes()[:148]),
	)
	return all
}

// extension is an ICMP extension structure with an MPLS label stack (RFC 4950).
var extension = summed([]byte{0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 1}, 2, nil)

// spoiled is b with another byte somewhere.
func spoiled(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 0x40
	return b
}

func number(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return number(n/10) + number(n%10)
}

// error4 is the translator's ICMP error about a packet.
func error4(to string, typ, code byte, rest uint32, about []byte) []byte {
	return IP4{Src: Addr4.String(), Dst: to, TOS: 0xc0, TTL: 64, Proto: ICMP, Data: ICMPMessage(typ, code, rest, about[:min(len(about), 576-28)])}.Bytes()
}

// error6 is the same in IPv6.
func error6(to string, typ, code byte, rest uint32, about []byte) []byte {
	from := Addr6.String()
	return IP6{Src: from, Dst: to, Hop: 64, Next: ICMP6, Data: ICMP6Message(from, to, typ, code, rest, about[:min(len(about), 1280-48)])}.Bytes()
}
