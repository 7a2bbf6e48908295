package vectors

import "slices"

func sixToFour() []Vector {
	const t = "translated-6to4"
	tcp6 := IP6{Src: a, Dst: pClient, Class: 0xb9, Flow: 0x12345, Next: TCP, Data: TCPSegment(a, pClient, 100)}
	tcp4 := IP4{Src: a4, Dst: client, TOS: 0xb9, Proto: TCP, Data: TCPSegment(a4, client, 100)}
	with := func(p IP6, f func(*IP6)) []byte { f(&p); return p.Bytes() }
	udp := UDPDatagram
	all := []Vector{
		{Name: "6-tcp", Shows: "7915 5.1", In: tcp6.Bytes(), Out: one(tcp4.Bytes()), AnyID: true, Reason: t, Kernel: true},
		{Name: "6-udp", Shows: "7915 5.5", AnyID: true, Reason: t, Kernel: true,
			In:  IP6{Src: a, Dst: pClient, Next: UDP, Data: udp(a, pClient, 33)}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, Proto: UDP, Data: udp(a4, client, 33)}.Bytes())},
		{Name: "6-prefix", Shows: "7757 3.3.2", AnyID: true, Reason: t, Kernel: true,
			In:  IP6{Src: range6, Dst: pClient, Next: UDP, Data: udp(range6, pClient, 8)}.Bytes(),
			Out: one(IP4{Src: range4, Dst: client, Proto: UDP, Data: udp(range4, client, 8)}.Bytes())},
		{Name: "6-wrong-checksum-stays-wrong", Shows: "7915 5.5", AnyID: true, Reason: t, Kernel: true,
			In: spoiled(tcp6.Bytes(), 40+25), Out: one(spoiled(tcp4.Bytes(), 20+25))},
		{Name: "6-elsewhere", Shows: "7915 5.6", Reason: "unmatched",
			In: IP6{Src: stranger, Dst: client6, Next: UDP, Data: udp(stranger, client6, 8)}.Bytes()},
		{Name: "6-from-internet", Shows: "6052 5.1", In: tcp6.Bytes(), Internet: true, Reason: "relay"},
		{Name: "6-padding-behind", Shows: "7915 5.1", In: append(tcp6.Bytes(), 9, 9, 9), Out: one(tcp4.Bytes()), AnyID: true, Reason: t},
		{Name: "6-dccp", Shows: "7915 5.5", AnyID: true, Reason: t,
			In:  IP6{Src: a, Dst: pClient, Next: DCCP, Data: DCCPPacket(a, pClient, 20)}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, Proto: DCCP, Data: DCCPPacket(a4, client, 20)}.Bytes())},

		// Addresses.
		{Name: "6-source-loopback", Shows: "7915 5.1", In: with(tcp6, func(p *IP6) { p.Src = "::1" }), Reason: "illegal-source"},
		{Name: "6-source-unspecified", Shows: "7915 5.1", In: with(tcp6, func(p *IP6) { p.Src = "::" }), Reason: "illegal-source"},
		{Name: "6-source-multicast", Shows: "7915 5.1", In: with(tcp6, func(p *IP6) { p.Src = "ff02::1" }), Reason: "illegal-source"},
		{Name: "6-source-in-pool", Shows: "6052 5.1", Reason: "unmapped-source",
			In:    with(tcp6, func(p *IP6) { p.Src = pClient }),
			Reply: error6(pClient, 1, 1, 0, with(tcp6, func(p *IP6) { p.Src = pClient }))},

		// Extension headers.
		{Name: "6-hop-by-hop", Shows: "7915 5.1", AnyID: true, Reason: t, Out: one(tcp4.Bytes()),
			In: with(tcp6, func(p *IP6) {
				p.Next, p.Data = HopByHop, slices.Concat([]byte{DestOpts, 0, 1, 4, 0, 0, 0, 0, TCP, 1, 1, 12}, make([]byte, 12), p.Data)
			})},
		{Name: "6-routing-done", Shows: "7915 5.1", AnyID: true, Reason: t, Out: one(tcp4.Bytes()),
			In: with(tcp6, func(p *IP6) { p.Next, p.Data = Routing, slices.Concat([]byte{TCP, 0, 4, 0, 0, 0, 0, 0}, p.Data) })},
		{Name: "6-header-cut", Shows: "7915 5.1", Reason: "malformed",
			In: with(tcp6, func(p *IP6) { p.Next, p.Data = HopByHop, []byte{TCP, 200, 1, 4, 0, 0, 0, 0} })},
	}
	routing := with(tcp6, func(p *IP6) {
		p.Next, p.Data = HopByHop, slices.Concat([]byte{Routing, 0, 1, 4, 0, 0, 0, 0, TCP, 0, 4, 1, 0, 0, 0, 0}, p.Data)
	})
	icmp4 := with(tcp6, func(p *IP6) { p.Next = ICMP })
	unmapped := IP6{Src: stranger, Dst: pClient, Next: UDP, Data: udp(stranger, pClient, 8)}.Bytes()
	nowhere := IP6{Src: a, Dst: "2001:db8:64::7f00:1", Next: UDP, Data: udp(a, "2001:db8:64::7f00:1", 8)}.Bytes()
	all = append(all,
		Vector{Name: "6-routing-not-done", Shows: "7915 5.1", In: routing, Reason: "routing-header", Reply: error6(a, 4, 0, 40+8+3, routing)},
		Vector{Name: "6-icmpv4", Shows: "7915 5.4", In: icmp4, Reason: "protocol", Reply: error6(a, 1, 1, 0, icmp4)},
		Vector{Name: "6-source-unmapped", Shows: "7915 5.4", In: unmapped, Reason: "unmapped-source", Reply: error6(stranger, 1, 1, 0, unmapped)},
		Vector{Name: "6-destination-loopback", Shows: "7915 8", In: nowhere, Reason: "illegal-destination", Reply: error6(a, 1, 1, 0, nowhere)},
	)
	for _, proto := range []byte{SCTP, ESP, AH, 47, 59, 99, 135} {
		all = append(all, Vector{Name: "6-protocol-" + number(int(proto)), Shows: "7915 5.1",
			In:    IP6{Src: a, Dst: pClient, Next: proto, Data: Pattern(24)}.Bytes(),
			Out:   one(IP4{Src: a4, Dst: client, Proto: proto, Data: Pattern(24)}.Bytes()),
			AnyID: true, Reason: t})
	}

	// Fragments.
	d6, d4 := udp(a, pClient, 92), udp(a4, client, 92)
	fragment := func(name string, next byte, from, to int, more, kernel bool) Vector {
		return Vector{Name: name, Shows: "7915 5.1.1", Reason: t, Kernel: kernel,
			In:  IP6{Src: a, Dst: pClient, Class: 1, Next: Fragment6, Data: FragmentHeader(next, from, more, 0x5678beef, d6[from:to])}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, TOS: 1, ID: 0xbeef, MF: more, Offset: from, Proto: next, Data: d4[from:to]}.Bytes())}
	}
	dropped := IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(DestOpts, 0, true, 1, Pattern(48))}.Bytes()
	ah := IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(AH, 0, true, 1, Pattern(48))}.Bytes()
	large6, large4 := udp(a, pClient, 1392), udp(a4, client, 1392) // 1400 bytes of UDP
	all = append(all,
		fragment("6-fragment-first", UDP, 0, 48, true, true),
		fragment("6-fragment-later", UDP, 48, 100, false, true),
		fragment("6-fragment-atomic", UDP, 0, 100, false, false),
		Vector{Name: "6-fragment-esp", Shows: "7915 5.1.1", Reason: t,
			In:  IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(ESP, 0, true, 1, Pattern(48))}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, ID: 1, MF: true, Proto: ESP, Data: Pattern(48)}.Bytes())},
		Vector{Name: "6-fragment-not-of-8", Shows: "7915 5.1.1", Reason: "malformed",
			In: IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 1, d6[:44])}.Bytes()},
		Vector{Name: "6-fragment-extension", Shows: "7915 5.1.1", In: dropped, Reason: "fragment-extension-header", Reply: error6(a, 1, 1, 0, dropped)},
		Vector{Name: "6-fragment-ah", Shows: "7915 5.1.1", In: ah, Reason: "fragment-extension-header", Reply: error6(a, 1, 1, 0, ah)},
		Vector{Name: "6-fragment-behind-options", Shows: "7915 5.1.1", Reason: t,
			In: IP6{Src: a, Dst: pClient, Next: HopByHop, Data: slices.Concat([]byte{Fragment6, 0, 1, 4, 0, 0, 0, 0},
				FragmentHeader(UDP, 0, true, 0x5678beef, d6[:48]))}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, ID: 0xbeef, MF: true, Proto: UDP, Data: d4[:48]}.Bytes())},
		Vector{Name: "6-fragment-too-big", Shows: "7915 5.1.1", MTU: 1000, Reason: t, // DF is clear: whoever comes next may cut it
			In: IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 0xbeef, large6)}.Bytes(),
			Out: [][]byte{
				IP4{Src: a4, Dst: client, ID: 0xbeef, MF: true, Proto: UDP, Data: large4[:976]}.Bytes(),
				IP4{Src: a4, Dst: client, ID: 0xbeef, MF: true, Offset: 976, Proto: UDP, Data: large4[976:]}.Bytes()}},
	)

	// Sizes. Up to 1260 bytes in IPv4 without DF, beyond that with it.
	size := func(n int) (in []byte, out IP4) {
		return IP6{Src: a, Dst: pClient, Next: UDP, Data: udp(a, pClient, n-48)}.Bytes(),
			IP4{Src: a4, Dst: client, Proto: UDP, Data: udp(a4, client, n-48)}
	}
	in1280, out1280 := size(1280)
	in1281, out1281 := size(1281)
	out1281.DF = true
	cut := out1280
	cut.Data, cut.MF = out1280.Data[:976], true
	rest := out1280
	rest.Data, rest.Offset = out1280.Data[976:], 976
	all = append(all,
		Vector{Name: "6-size-1280", Shows: "7915 5.1", In: in1280, MTU: 1500, Out: one(out1280.Bytes()), AnyID: true, Reason: t, Kernel: true},
		Vector{Name: "6-size-1281", Shows: "7915 5.1", In: in1281, MTU: 1500, Out: one(out1281.Bytes()), AnyID: true, Reason: t, Kernel: true},
		Vector{Name: "6-size-1280-too-big", Shows: "7915 5.1.1", In: in1280, MTU: 1000, Out: [][]byte{cut.Bytes(), rest.Bytes()}, AnyID: true, Reason: t},
		Vector{Name: "6-size-1281-too-big", Shows: "7915 1.4", In: in1281, MTU: 1260, Reason: "too-big", Reply: error6(a, 2, 0, 1280, in1281)},
	)
	return all
}

// sixToFourICMP are ICMPv6 messages to IPv4.
func sixToFourICMP() []Vector {
	const t = "translated-6to4"
	echo := func(typ6, typ byte) (in, out []byte) {
		return IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, typ6, 0, 0x12340001, Pattern(56))}.Bytes(),
			IP4{Src: a4, Dst: client, Proto: ICMP, Data: ICMPMessage(typ, 0, 0x12340001, Pattern(56))}.Bytes()
	}
	request, request4 := echo(128, 8)
	reply, reply4 := echo(129, 0)
	ping := IP6{Src: stranger, Dst: pClient, Next: ICMP6, Data: ICMP6Message(stranger, pClient, 128, 0, 1, Pattern(8))}.Bytes()
	all := []Vector{
		{Name: "6-echo", Shows: "7915 5.2", In: request, Out: one(request4), AnyID: true, Reason: t, Kernel: true},
		{Name: "6-echo-reply", Shows: "7915 5.2", In: reply, Out: one(reply4), AnyID: true, Reason: t, Kernel: true},
		{Name: "6-echo-fragment", Shows: "7915 1.2", Reason: "icmp-fragment",
			In: IP6{Src: a, Dst: pClient, Next: Fragment6, Data: FragmentHeader(ICMP6, 0, true, 3, request[40:64])}.Bytes()},
		{Name: "6-echo-unmapped", Shows: "7915 5.4", In: ping, Reason: "unmapped-source"}, // no error about any ICMPv6 message
		{Name: "6-neighbor", Shows: "7915 5.2", Reason: "icmp-type",
			In: IP6{Src: a, Dst: pClient, Hop: 255, Next: ICMP6, Data: ICMP6Message(a, pClient, 135, 0, 0, Pattern(16))}.Bytes()},
	}

	// Errors: the client sent something to a, and a answers.
	got := IP6{Src: pClient, Dst: a, Class: 2, Hop: 3, Next: TCP, Data: TCPSegment(pClient, a, 500)}
	got4 := IP4{Src: client, Dst: a4, TOS: 2, TTL: 3, Proto: TCP, Data: TCPSegment(client, a4, 500)}
	err := func(name, shows string, typ6, code6 byte, rest6 uint32, inner6 []byte, typ, code byte, rest uint32, inner []byte) Vector {
		return Vector{Name: name, Shows: shows, Reason: t, AnyID: true,
			In:  IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, typ6, code6, rest6, inner6)}.Bytes(),
			Out: one(IP4{Src: a4, Dst: client, Proto: ICMP, Data: ICMPMessage(typ, code, rest, inner)}.Bytes())}
	}
	first := IP6{Src: pClient, Dst: a, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 4, UDPDatagram(pClient, a, 92)[:48])}
	first4 := IP4{Src: client, Dst: a4, ID: 4, MF: true, Proto: UDP, Data: UDPDatagram(client, a4, 92)[:48]}
	ping6 := IP6{Src: pClient, Dst: a, Next: ICMP6, Data: ICMP6Message(pClient, a, 128, 0, 99, Pattern(30))}
	ping4 := IP4{Src: client, Dst: a4, Proto: ICMP, Data: ICMPMessage(8, 0, 99, Pattern(30))}
	large := IP6{Src: pClient, Dst: a, Next: TCP, Length: 1460, Data: TCPSegment(pClient, a, 1440)[:20]}
	large4 := IP4{Src: client, Dst: a4, DF: true, Proto: TCP, Total: 1480, Data: TCPSegment(client, a4, 1440)[:20]}
	all = append(all,
		err("6-error-unreachable", "7915 5.3", 1, 4, 0, got.Bytes()[:200], 3, 3, 0, got4.Bytes()[:180]),
		err("6-error-inner-truncated", "7915 5.3", 3, 0, 0, got.Bytes()[:48], 11, 0, 0, got4.Bytes()[:28]),
		err("6-error-inner-echo", "7915 5.3", 1, 3, 0, ping6.Bytes(), 3, 1, 0, ping4.Bytes()),
		err("6-error-inner-fragment", "7915 5.3", 3, 1, 0, first.Bytes(), 11, 1, 0, first4.Bytes()),
		err("6-error-too-big", "7915 5.2", 2, 0, 1400, large.Bytes(), 3, 4, 1380, large4.Bytes()),
		err("6-error-too-big-fragment", "7915 5.2", 2, 0, 1400, first.Bytes(), 3, 4, 1372, first4.Bytes()),
		err("6-error-parameter", "7915 5.2", 4, 0, 7, got.Bytes()[:48], 12, 0, 8<<24, got4.Bytes()[:28]),
		err("6-error-next-header", "7915 5.2", 4, 1, 6, got.Bytes()[:48], 3, 2, 0, got4.Bytes()[:28]),
		err("6-error-long", "7915 5.3", 1, 1, 0, got.Bytes(), 3, 10, 0, got4.Bytes()[:min(540, 576-28)]),
	)
	narrow := err("6-error-mtu-of-way-on", "7915 5.2", 2, 0, 1490, large.Bytes(), 3, 4, 1400, large4.Bytes())
	narrow.MTU = 1400
	nested := IP6{Src: pClient, Dst: a, Next: ICMP6, Data: ICMP6Message(pClient, a, 1, 4, 0, first.Bytes())}
	all = append(all, narrow,
		Vector{Name: "6-error-in-error", Shows: "7915 5.3", Reason: "icmp-nested",
			In: IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, 3, 0, 0, nested.Bytes())}.Bytes()},
		Vector{Name: "6-error-wrong-checksum", Shows: "7915 5", Reason: "icmp-checksum",
			In: spoiled(IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, 3, 0, 0, got.Bytes()[:48])}.Bytes(), 43)},
		Vector{Name: "6-error-inner-elsewhere", Shows: "7915 5.3", Reason: "icmp-inner",
			In: IP6{Src: a, Dst: pClient, Next: ICMP6, Data: ICMP6Message(a, pClient, 3, 0, 0,
				IP6{Src: client6, Dst: a, Next: UDP, Data: UDPDatagram(client6, a, 8)}.Bytes())}.Bytes()},
	)

	// Extension structures: 160 bytes inside become 140.
	in := slices.Concat(got.Bytes()[:160], extension)
	out := slices.Concat(got4.Bytes()[:140], extension)
	all = append(all, err("6-extension", "4884 4", 3, 0, 20<<24, in, 11, 0, 35<<16, out))

	// A router of the cloud has no IPv4 address: it is told in an extension (RFC 6791, RFC 5837).
	object := func(addr6 string) []byte { return slices.Concat([]byte{0, 24, 2, 4, 0, 2, 0, 0}, addr(addr6)) }
	told := slices.Concat(got4.Bytes()[:180], summed(slices.Concat([]byte{0x20, 0, 0, 0}, object(cloudHop)), 2, nil))
	both := slices.Concat(got4.Bytes()[:140], summed(slices.Concat(extension, object(cloudHop)), 2, nil))
	from := ICMPSource.Addr().String()
	all = append(all,
		Vector{Name: "6-error-of-router", Shows: "6791 4", Reason: t, AnyID: true,
			In:  IP6{Src: cloudHop, Dst: pClient, Next: ICMP6, Data: ICMP6Message(cloudHop, pClient, 3, 0, 0, got.Bytes()[:200])}.Bytes(),
			Out: one(IP4{Src: from, Dst: client, Proto: ICMP, Data: ICMPMessage(11, 0, 45<<16, told)}.Bytes())},
		Vector{Name: "6-error-of-router-extension", Shows: "6791 4", Reason: t, AnyID: true,
			In:  IP6{Src: cloudHop, Dst: pClient, Next: ICMP6, Data: ICMP6Message(cloudHop, pClient, 3, 0, 20<<24, in)}.Bytes(),
			Out: one(IP4{Src: from, Dst: client, Proto: ICMP, Data: ICMPMessage(11, 0, 35<<16, both)}.Bytes())},
	)
	return all
}
