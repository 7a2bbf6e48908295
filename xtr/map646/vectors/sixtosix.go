package vectors

import "slices"

// hairpin are packets from a VM to the IPv4 service address of another: intrinsic hairpinning, RFC 7757 section 4.2.2.
func hairpin() []Vector {
	const t = "translated-hairpin"
	in := IP6{Src: a, Dst: pb, Class: 3, Next: TCP, Data: TCPSegment(a, pb, 100)}
	out := IP6{Src: pa, Dst: b, Class: 3, Next: TCP, Data: TCPSegment(pa, b, 100)}
	back := IP6{Src: b, Dst: pa, Next: UDP, Data: UDPDatagram(b, pa, 100)}
	backOut := IP6{Src: pb, Dst: a, Next: UDP, Data: UDPDatagram(pb, a, 100)}
	self := IP6{Src: a, Dst: pa, Next: UDP, Data: UDPDatagram(a, pa, 10)}
	selfOut := IP6{Src: pa, Dst: a, Next: UDP, Data: UDPDatagram(pa, a, 10)}
	ping := IP6{Src: a, Dst: pb, Next: ICMP6, Data: ICMP6Message(a, pb, 128, 0, 7, Pattern(20))}
	pingOut := IP6{Src: pa, Dst: b, Next: ICMP6, Data: ICMP6Message(pa, b, 128, 0, 7, Pattern(20))}
	large := IP6{Src: a, Dst: pb, Next: UDP, Data: UDPDatagram(a, pb, 1352)}.Bytes() // 1400 bytes
	largeOut := IP6{Src: pa, Dst: b, Next: UDP, Data: UDPDatagram(pa, b, 1352)}.Bytes()
	d, dOut := UDPDatagram(a, pb, 92), UDPDatagram(pa, b, 92)
	// b answers with an error what a sent; a router of the cloud does (RFC 7757 appendix B.1).
	fromB := IP6{Src: b, Dst: pa, Next: ICMP6, Data: ICMP6Message(b, pa, 1, 4, 0, out.Bytes()[:80])}
	toA := IP6{Src: pb, Dst: a, Next: ICMP6, Data: ICMP6Message(pb, a, 1, 4, 0, in.Bytes()[:80])}
	all := []Vector{
		{Name: "hairpin", Shows: "7757 4.2.2", In: in.Bytes(), Out: one(out.Bytes()), Reason: t, Kernel: true},
		{Name: "hairpin-back", Shows: "7757 4.2.2", In: back.Bytes(), Out: one(backOut.Bytes()), Reason: t, Kernel: true},
		{Name: "hairpin-to-itself", Shows: "7757 4.2.2", In: self.Bytes(), Out: one(selfOut.Bytes()), Reason: t, Kernel: true},
		{Name: "hairpin-echo", Shows: "7757 4.2.2", In: ping.Bytes(), Out: one(pingOut.Bytes()), Reason: t, Kernel: true},
		{Name: "hairpin-fits", Shows: "7757 4.2.2", In: large, MTU: 1400, Out: one(largeOut), Reason: t, Kernel: true},
		{Name: "hairpin-too-big", Shows: "7757 4.2.2", In: large, MTU: 1399, Reason: "too-big", Reply: error6(a, 2, 0, 1399, large)},
		{Name: "hairpin-fragment", Shows: "7757 4.2.2", Reason: t,
			In:  IP6{Src: a, Dst: pb, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 0x9999beef, d[:48])}.Bytes(),
			Out: one(IP6{Src: pa, Dst: b, Next: Fragment6, Data: FragmentHeader(UDP, 0, true, 0xbeef, dOut[:48])}.Bytes())},
		{Name: "hairpin-fragment-large", Shows: "7757 4.2.2", Reason: t, MTU: 1444, // it is IPv6 on both sides: 1280 bytes are no limit
			In:  IP6{Src: a, Dst: pb, Next: Fragment6, Data: FragmentHeader(ESP, 0, true, 7, Pattern(1352))}.Bytes(),
			Out: one(IP6{Src: pa, Dst: b, Next: Fragment6, Data: FragmentHeader(ESP, 0, true, 7, Pattern(1352))}.Bytes())},
		{Name: "hairpin-error-of-host", Shows: "7757 B.1", In: fromB.Bytes(), Out: one(toA.Bytes()), Reason: t},
	}
	p := "2001:db8:64::c633:6402" // ICMPSource in the pool
	object := summed(slices.Concat([]byte{0x20, 0, 0, 0, 0, 24, 2, 4, 0, 2, 0, 0}, addr(cloudHop)), 2, nil)
	fromRouter := IP6{Src: cloudHop, Dst: pa, Next: ICMP6, Data: ICMP6Message(cloudHop, pa, 3, 0, 0, out.Bytes()[:80])}
	// In the middle its packet inside had 60 bytes, and was padded to 128; so it has 80+68 now, padded to 152.
	inner := slices.Concat(in.Bytes()[:80], make([]byte, 68+4), object)
	all = append(all, Vector{Name: "hairpin-error-of-router", Shows: "7757 B.1", Reason: t, In: fromRouter.Bytes(),
		Out: one(IP6{Src: p, Dst: a, Next: ICMP6, Data: ICMP6Message(p, a, 3, 0, 19<<24, inner)}.Bytes())})
	return all
}

// sixToSix are service addresses of IPv6: one-to-one, and NPTv6 (RFC 6296).
func sixToSix() []Vector {
	const t = "translated-6to6"
	udp := func(src, dst string) IP6 {
		return IP6{Src: src, Dst: dst, Class: 3, Flow: 0x54321, Next: UDP, Data: UDPDatagram(src, dst, 25)}
	}
	tcp := func(src, dst string) IP6 {
		return IP6{Src: src, Dst: dst, Class: 3, Flow: 0x54321, Next: TCP, Data: TCPSegment(src, dst, 25)}
	}
	ping := func(src, dst string) IP6 {
		return IP6{Src: src, Dst: dst, Next: ICMP6, Data: ICMP6Message(src, dst, 128, 0, 1, Pattern(9))}
	}
	vector := func(name, shows string, in, out IP6) Vector {
		return Vector{Name: name, Shows: shows, In: in.Bytes(), Out: one(out.Bytes()), Reason: t, Kernel: true}
	}
	kept := func(name, shows string, in IP6) Vector {
		return Vector{Name: name, Shows: shows, In: in.Bytes(), Reason: "unmatched"}
	}
	const aOut, clientOwn = a66, "2001:db8:e1d:9::9"
	all := []Vector{
		vector("66-in", "map66", udp(client6, a66), udp(client6, a)),
		vector("66-out", "map66", udp(a, client6), udp(aOut, client6)),
		vector("66-tcp-in", "map66", tcp(client6, a66), tcp(client6, a)),
		vector("66-tcp-out", "map66", tcp(a, client6), tcp(aOut, client6)),
		vector("66-echo-in", "map66", ping(client6, a66), ping(client6, a)),
		vector("66-echo-out", "map66", ping(a, client6), ping(aOut, client6)),
		vector("66-prefix-in", "map66", udp(client6, range66), udp(client6, rangeIn)),
		vector("66-prefix-out", "map66", udp(rangeIn, client6), udp(range66, client6)),
		vector("66-hairpin", "6296 4.3", udp(a, b66), udp(a66, b)),
		vector("66-hairpin-stranger", "6296 4.3", udp(stranger, b66), udp(stranger, b)),
		vector("npt-in", "6296 3.3", udp(client6, nptOut), udp(client6, npt)),
		vector("npt-out", "6296 3.2", udp(npt, client6), udp(nptOut, client6)),
		vector("npt-tcp-out", "6296 3.2", tcp(npt, client6), tcp(nptOut, client6)),
		vector("npt-112-in", "6296 3.5", udp(client6, nptOut12), udp(client6, npt112)),
		vector("npt-112-out", "6296 3.5", udp(npt112, client6), udp(nptOut12, client6)),
		vector("npt-hairpin", "6296 4.3", udp(npt, b66), udp(nptOut, b)),
		kept("66-within-the-cloud", "map66", udp(a, clientOwn)),
		kept("66-translated-in", "map66", udp(client6, a)),
		kept("66-translated-out", "map66", udp(a66, client6)),
		kept("66-multicast", "map66", udp(a, "ff0e::1")),
	}
	options := udp(client6, a66)
	options.Next, options.Data = DestOpts, slices.Concat([]byte{UDP, 0, 1, 4, 0, 0, 0, 0}, options.Data)
	optionsOut := udp(client6, a)
	optionsOut.Next, optionsOut.Data = DestOpts, slices.Concat([]byte{UDP, 0, 1, 4, 0, 0, 0, 0}, optionsOut.Data)
	all = append(all, Vector{Name: "66-options", Shows: "map66", In: options.Bytes(), Out: one(optionsOut.Bytes()), Reason: t})

	fragment := func(src, dst string, from, to int, more bool) IP6 {
		return IP6{Src: src, Dst: dst, Next: Fragment6, Data: FragmentHeader(UDP, from, more, 0x12345678, UDPDatagram(src, dst, 92)[from:to])}
	}
	all = append(all,
		vector("66-fragment-first", "map66", fragment(client6, a66, 0, 48, true), fragment(client6, a, 0, 48, true)),
		vector("66-fragment-later", "map66", fragment(client6, a66, 48, 100, false), fragment(client6, a, 48, 100, false)),
	)

	cut := func(dst string) IP6 {
		return IP6{Src: client6, Dst: dst, Next: Fragment6, Data: FragmentHeader(DestOpts, 0, true, 5,
			slices.Concat([]byte{UDP, 0, 1, 4, 0, 0, 0, 0}, UDPDatagram(client6, dst, 92)[:40]))}
	}
	all = append(all,
		Vector{Name: "66-fragment-options", Shows: "map66", In: cut(a66).Bytes(), Out: one(cut(a).Bytes()), Reason: t},
		Vector{Name: "66-from-internet", Shows: "map66", Internet: true, In: udp(a, client6).Bytes(), Reason: "unmatched"},
		Vector{Name: "66-in-from-internet", Shows: "map66", Internet: true, In: udp(client6, b66).Bytes(), Out: one(udp(client6, b).Bytes()), Reason: t, Kernel: true},
	)

	// ICMP errors: the packet inside went the other way.
	err := func(name, src, dst string, inner []byte, srcOut, dstOut string, innerOut []byte) Vector {
		return Vector{Name: name, Shows: "6296 inner", Reason: t,
			In:  IP6{Src: src, Dst: dst, Next: ICMP6, Data: ICMP6Message(src, dst, 3, 0, 0, inner)}.Bytes(),
			Out: one(IP6{Src: srcOut, Dst: dstOut, Next: ICMP6, Data: ICMP6Message(srcOut, dstOut, 3, 0, 0, innerOut)}.Bytes())}
	}
	all = append(all,
		err("66-error-in", router6, a66, udp(a66, client6).Bytes(), router6, a, udp(a, client6).Bytes()),
		err("66-error-in-truncated", router6, a66, tcp(a66, client6).Bytes()[:48], router6, a, tcp(a, client6).Bytes()[:48]),
		err("66-error-out", a, client6, udp(client6, a).Bytes(), a66, client6, udp(client6, a66).Bytes()),
		err("66-error-of-router-out", cloudHop, client6, udp(client6, a).Bytes(), cloudHop, client6, udp(client6, a66).Bytes()),
		err("66-error-hairpin", b, a66, udp(a66, b).Bytes(), b66, a, udp(a, b66).Bytes()),
		err("npt-error-in", router6, nptOut, udp(nptOut, client6).Bytes(), router6, npt, udp(npt, client6).Bytes()),
		err("npt-error-out", npt, client6, udp(client6, npt).Bytes(), nptOut, client6, udp(client6, nptOut).Bytes()),
	)

	// Addresses that cannot be mapped, and sizes.
	zero := udp("2001:db8:e1d:100::", client6).Bytes()
	zeroIn := udp(client6, "2001:db8:5e:100::").Bytes()
	ones := udp("2001:db8:e1d:100:ffff:ffff:ffff:ffff", client6).Bytes()
	onesIn := udp(client6, "2001:db8:5e:100:ffff:ffff:ffff:ffff").Bytes()
	big := IP6{Src: client6, Dst: a66, Next: UDP, Data: UDPDatagram(client6, a66, 1252)}
	bigOut := IP6{Src: client6, Dst: a, Next: UDP, Data: UDPDatagram(client6, a, 1252)}
	all = append(all,
		Vector{Name: "npt-interface-zero", Shows: "6296 3.7", In: zero, Reason: "npt-interface-id", Reply: error6("2001:db8:e1d:100::", 4, 0, 8, zero)},
		Vector{Name: "npt-interface-zero-in", Shows: "6296 3.7", In: zeroIn, Reason: "npt-interface-id", Reply: error6(client6, 4, 0, 24, zeroIn)},
		Vector{Name: "npt-interface-ones", Shows: "6296 3.5", In: ones, Reason: "npt-unmappable", Reply: error6("2001:db8:e1d:100:ffff:ffff:ffff:ffff", 1, 5, 0, ones)},
		Vector{Name: "npt-interface-ones-in", Shows: "6296 3.5", In: onesIn, Reason: "npt-unmappable", Reply: error6(client6, 1, 3, 0, onesIn)},
		Vector{Name: "66-size", Shows: "7915 1.4", In: big.Bytes(), MTU: 1300, Out: one(bigOut.Bytes()), Reason: t, Kernel: true},
		Vector{Name: "66-too-big", Shows: "7915 1.4", In: big.Bytes(), MTU: 1299, Reason: "too-big", Reply: error6(client6, 2, 0, 1299, big.Bytes())},
	)
	return all
}
