package map646

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// fuzzTranslators are translators of several configurations, all with the services of the vectors.
func fuzzTranslators(t testing.TB) []*Translator {
	simple, global, strict := cloudConfig(), cloudConfig(), cloudConfig()
	simple.Hairpin, simple.ZeroUDP, simple.LowestMTU6 = HairpinSimple, ZeroUDPForward, 1400
	simple.IgnoreTOS, simple.IgnoreTrafficClass, simple.TOS = true, true, 4
	global.Pool, global.Embed, global.Hairpin = prefix("2001:db8:6400::/40"), EmbedGlobal, HairpinOff
	global.Explicit = append([]Rule{{V4: prefix("0.0.0.0/0"), V6: prefix("2001:db8:ff00::/40"), Remote: true}}, exampleRules[:5]...)
	strict.Translatable = []netip.Prefix{prefix("192.0.2.0/24")}
	strict.ZeroUDP, strict.NoICMPExtension = ZeroUDPDrop, true
	var out []*Translator
	for _, cfg := range []Config{cloudConfig(), simple, global, strict} {
		out = append(out, newTranslator(t, cfg, cloudServices()...))
	}
	return out
}

// FuzzTranslate gives any packet to translators of several configurations. What they make of it must be IP packets that
// fit the way on, with a right checksum if that of the packet was right, and a wrong one if it was wrong; and who is told
// must be somebody who may be.
func FuzzTranslate(f *testing.F) {
	for i, v := range vectors.All() {
		f.Add(v.In, uint16(v.MTU), uint8(i))
		f.Add(v.In, uint16(v.MTU), uint8(128))
	}
	trs := fuzzTranslators(f)
	scratch := new(Scratch)
	f.Fuzz(func(t *testing.T, in []byte, mtu uint16, how uint8) {
		tr := trs[how%4]
		o := Options{MTU: int(mtu), BackMTU: int(mtu), Internet: how&16 != 0, Hop: how&32 != 0}
		if how&64 != 0 {
			o.Largest = 600
		}
		if how&128 != 0 {
			in = corrected(in)
		}
		before := slices.Clone(in)
		r := tr.Translate(in, o)
		if !bytes.Equal(in, before) {
			t.Fatal("the packet was changed")
		}
		o.Scratch = scratch
		if s := tr.Translate(in, o); s.Reason != r.Reason || len(s.Packets) != len(r.Packets) || len(s.Reply) != len(r.Reply) {
			t.Fatalf("with scratch memory %v and %d packets, without %v and %d", s.Reason, len(s.Packets), r.Reason, len(r.Packets))
		}
		if r.Reason.Translated() != (len(r.Packets) > 0) || r.Reply != nil && !r.Reason.Dropped() || r.Reason >= NumReasons {
			t.Fatalf("%v with %d packets and a reply of %d bytes", r.Reason, len(r.Packets), len(r.Reply))
		}
		_, flow := FlowOf(in)
		if flow != (r.Reason != DropMalformed) && r.Reason != Unmatched && r.Reason != DropMalformed {
			t.Fatalf("%v of a packet without flow", r.Reason)
		}
		for _, b := range r.Packets {
			if why := invalid(b); why != "" {
				t.Fatalf("%v: invalid: %s\n% x", r.Reason, why, b)
			}
			if least := map[byte]int{4: 576, 6: 1280}[version(b)]; int(mtu) >= least && len(b) > int(mtu) {
				t.Fatalf("%v: %d bytes, and the way takes %d", r.Reason, len(b), mtu)
			}
		}
		if r.Reply != nil {
			checkReply(t, in, r)
		}
		if len(r.Packets) > 0 {
			checkSums(t, in, r)
			// Once is enough: what is translated is left alone by the cloud's translators. Only an ICMP error to a service
			// about what that did not send goes round by IPv4 (RFC 7757 section 4.2.2, condition B3).
			h, _ := parse6(in)
			round := r.Reason == Translated64 && h.proto == protoICMP6 && isError6(h.data)
			if again := tr.Translate(r.Packets[0], Options{}); how%4 == 0 && again.Reason.Translated() && !round {
				t.Fatalf("%v -> %v: %v, and then %v", endsOf(in), endsOf(r.Packets[0]), r.Reason, again.Reason)
			}
		}
	})
}

// corrected is a packet with its length and its checksums made right, so that mutations get beyond them.
func corrected(in []byte) []byte {
	b := slices.Clone(in)
	switch {
	case version(b) == 4 && len(b) >= 20 && int(b[0]&15)*4 >= 20 && int(b[0]&15)*4 <= len(b) && len(b) <= 0xffff:
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		sumHeader4(b[:int(b[0]&15)*4])
	case version(b) == 6 && len(b) >= 40 && len(b) <= 0xffff:
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	default:
		return b
	}
	var upper []byte
	var proto byte
	if h, ok := parse4(b); ok {
		upper, proto = h.data, h.proto
	} else if h, ok := parse6(b); ok {
		upper, proto = h.data, h.proto
	}
	at, ok := checksumAt(proto)
	if version(b) == 4 && proto == protoICMP {
		at, ok = 2, true
	}
	if !ok || len(upper) < at+2 {
		return b
	}
	upper[at], upper[at+1] = 0, 0
	if proto == protoUDP {
		binary.BigEndian.PutUint16(upper[4:], uint16(len(upper)))
	}
	first, last := 8, 40
	if version(b) == 4 {
		first, last = 12, 20
	}
	pseudo := slices.Clone(b[first:last])
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(upper))), 0, 0, 0, proto)
	if version(b) == 4 && proto == protoICMP {
		pseudo = nil
	}
	c := ^vectors.Sum(append(pseudo, upper...))
	if c == 0 && proto == protoUDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(upper[at:], c)
	return b
}

func checkReply(t *testing.T, in []byte, r Result) {
	b := r.Reply
	if why := invalid(b); why != "" {
		t.Fatalf("invalid reply: %s\n% x", why, b)
	}
	if right, known := checksumOf(b); !right || !known {
		t.Fatal("reply with a wrong checksum")
	}
	if version(b) != version(in) || endsOf(b).dst != endsOf(in).src {
		t.Fatalf("a packet %v is answered by one %v", endsOf(in), endsOf(b))
	}
	src := addr(endsOf(in).src)
	if src.IsMulticast() || src.IsUnspecified() || src.IsLoopback() || len(b) > map[byte]int{4: 576, 6: 1280}[version(b)] {
		t.Fatalf("%d bytes to %v", len(b), src)
	}
	if version(in) == 4 && in[9] == 1 {
		switch in[int(in[0]&15)*4] {
		case 3, 4, 5, 11, 12:
			t.Fatal("an error about an error")
		}
	}
	if version(in) == 6 && in[6] == 58 && in[40] < 128 {
		t.Fatal("an error about an error")
	}
}

// checkSums compares what is known of the checksum of a packet and of what it became.
func checkSums(t *testing.T, in []byte, r Result) {
	right, known := checksumOf(in)
	if !known {
		return
	}
	whole := reassembled(t, r.Packets)
	got, gotKnown := checksumOf(whole)
	if !gotKnown || got != right {
		t.Fatalf("%v -> %v: checksum %v became %v (known %v)\n% x\n% x", endsOf(in), endsOf(whole), right, got, gotKnown, in, whole)
	}
}

// FuzzRoundTrip makes an IPv4 packet, translates it to IPv6 and, by a translator for the way back, to IPv4 again. It must
// be what it was, but for what RFC 7915 says is lost: options, and the identification and DF of a packet that is whole.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint8(0), uint32(0xc0000221), uint8(0), uint16(1), uint16(0), false, false, uint8(9), []byte("hello"))
	f.Add(uint8(1), uint32(0x08080808), uint8(0xb9), uint16(7), uint16(8), true, false, uint8(255), vectors.Pattern(64))
	f.Add(uint8(2), uint32(0x0a000001), uint8(3), uint16(9), uint16(0), false, true, uint8(1), vectors.Pattern(1500))
	f.Add(uint8(3), uint32(0xc6336401), uint8(3), uint16(9), uint16(0), false, false, uint8(2), vectors.Pattern(700))
	f.Add(uint8(4), uint32(0x01020304), uint8(0), uint16(0xffff), uint16(185), true, true, uint8(64), vectors.Pattern(80))
	f.Add(uint8(5), uint32(0x64400001), uint8(0), uint16(0), uint16(0), false, false, uint8(64), []byte{})
	there := newTranslator(f, cloudConfig(), cloudServices()...)
	// From the other side the service is a host of the IPv4 world, and the clients are IPv4-translatable.
	back := newTranslator(f, Config{
		Pool:         vectors.Pool,
		Explicit:     []Rule{{V4: prefix(tService), V6: prefix(tVM), Remote: true}},
		Translatable: []netip.Prefix{prefix("0.0.0.0/0")},
	})
	f.Fuzz(func(t *testing.T, what uint8, from uint32, tos uint8, id, offset uint16, df, mf bool, ttl uint8, data []byte) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], from)
		src := netip.AddrFrom4(b).String()
		if illegal4(b) || len(data) > 60000 || ttl == 0 || there.tables.find4(b) != nil {
			return
		}
		p := vectors.IP4{Src: src, Dst: tService, TOS: tos, ID: id, DF: df, MF: mf, Offset: int(offset%0x2000) * 8, TTL: ttl}
		switch what % 6 {
		case 0:
			p.Proto, p.Data = vectors.UDP, append(vectors.UDPDatagram(src, tService, 0), data...)
			binary.BigEndian.PutUint16(p.Data[4:], uint16(len(p.Data)))
			sumTransport(p.Data, src, 6, vectors.UDP)
		case 1:
			p.Proto, p.Data = vectors.TCP, append(vectors.TCPSegment(src, tService, 0), data...)
			sumTransport(p.Data, src, 16, vectors.TCP)
		case 2:
			p.Proto, p.Data, p.MF, p.Offset = vectors.ICMP, vectors.ICMPMessage(8, 0, uint32(from), data), false, 0
		case 3: // an error about what the service sent
			inner := vectors.IP4{Src: tService, Dst: src, TOS: tos, TTL: ttl, Proto: vectors.TCP, Data: append(vectors.TCPSegment(tService, src, 0), data...)}
			inner.DF = len(inner.Data)+20 > 1260
			quote := inner.Bytes()
			p.Proto, p.MF, p.Offset = vectors.ICMP, false, 0
			p.Data = vectors.ICMPMessage(11, tos&1, 0, quote[:min(len(quote), 576-28)])
		case 4:
			p.Proto, p.Data = vectors.DCCP, append(vectors.DCCPPacket(src, tService, 0), data...)
			sumTransport(p.Data, src, 6, vectors.DCCP)
		default:
			p.Proto, p.Data = 132, data
		}
		if p.MF || p.Offset > 0 {
			p.Data = p.Data[:len(p.Data)&^7]
			if len(p.Data) == 0 || len(p.Data) < 24 && p.Offset == 0 || p.Offset+len(p.Data) > 65535-20 {
				return
			}
		}
		in := p.Bytes()
		r := there.Translate(in, Options{})
		if r.Reason != Translated46 {
			t.Fatalf("%+v: %v", p, r.Reason)
		}
		p.Options = nil
		if !p.MF && p.Offset == 0 {
			if len(r.Packets) == 1 && r.Packets[0][6] != 44 { // else it was fragmented here
				p.ID, p.DF = 0, len(in) > 1260
			} else {
				p.DF = false
			}
		} else {
			p.DF = false // of a fragment it is cleared (RFC 7915 section 5.1.1)
		}
		var got [][]byte
		for _, x := range r.Packets {
			s := back.Translate(x, Options{})
			if p.Proto == vectors.ICMP && s.Reason == DropICMPFragment {
				return // a large echo request became fragments
			}
			if s.Reason != Translated64 || len(s.Packets) != 1 {
				t.Fatalf("%+v: back it is %v", p, s.Reason)
			}
			got = append(got, s.Packets[0])
		}
		var whole []byte
		if p.MF || p.Offset > 0 {
			whole = joined(t, got)
		} else {
			whole = reassembled(t, got)
		}
		if p.ID == 0 {
			whole = withoutID(whole)
		}
		if want := p.Bytes(); !bytes.Equal(whole, want) {
			t.Fatalf("%d bytes came back as\n% x, want\n% x", len(in), whole, want)
		}
	})
}

// sumTransport sets the checksum of a transport from src to the service.
func sumTransport(b []byte, src string, at int, proto byte) {
	pseudo := append(addr(src).AsSlice(), addr(tService).AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(b))), 0, 0, 0, proto)
	b[at], b[at+1] = 0, 0
	s := ^vectors.Sum(append(pseudo, b...))
	if s == 0 && proto == vectors.UDP {
		s = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], s)
}

// joined puts the parts of a fragment together, as the fragment.
func joined(t *testing.T, parts [][]byte) []byte {
	b := slices.Clone(parts[0])
	for i, p := range parts[1:] {
		field, was := binary.BigEndian.Uint16(p[6:]), binary.BigEndian.Uint16(b[6:])
		if int(field&0x1fff)*8 != int(was&0x1fff)*8+len(b)-20 || was&0x2000 == 0 {
			t.Fatalf("part %d is at %d", i+1, int(field&0x1fff)*8)
		}
		b = append(b, p[20:]...)
		binary.BigEndian.PutUint16(b[6:], was&^0x2000|field&0x2000)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	sumHeader4(b[:20])
	return b
}

// FuzzReassemble feeds a Reassembler a stream of fragments. It must not hold more than it may; what it makes whole must be
// the fragments' own bytes; and when all time is over it holds nothing.
func FuzzReassemble(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 1, 8, 0x80, 0, 2, 0x80, 1, 3, 0, 6, 1, 1, 2, 0})
	f.Add([]byte{0x40, 0, 1, 0x40, 1, 8, 0xc0, 0, 2, 0xc0, 1, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		cfg := ReassemblerConfig{Bytes: 4096, SourceBytes: 2048, Time: time.Second}
		r := NewReassembler(cfg)
		now := start
		for c := range slices.Chunk(steps, 3) {
			if len(c) < 3 {
				break
			}
			// The bytes of a packet are those of its place in it: so the whole is known.
			offset, n := int(c[1])*8, int(c[2]%64)*8
			more := c[0]&0x20 == 0
			data := vectors.Pattern(offset + n)[offset:]
			if !more && n > 0 {
				data = data[:n-int(c[2]>>6)]
			}
			id := uint32(c[0] & 7)
			src := map[bool][]string{false: {tClient, "192.0.2.34"}, true: {tVM, "2001:db8:e1d::b"}}[c[0]&0x40 != 0][c[0]>>3&1]
			var b []byte
			if c[0]&0x40 == 0 {
				b = vectors.IP4{Src: src, Dst: tService, ID: uint16(id), MF: more, Offset: offset, Proto: 1, Data: data}.Bytes()
			} else {
				b = vectors.IP6{Src: src, Dst: tClient6, Next: 44, Data: vectors.FragmentHeader(58, offset, more, id, data)}.Bytes()
			}
			w, ok := r.Take(b, now)
			if ok {
				if why := invalid(w.Packet); why != "" {
					t.Fatalf("whole, and invalid: %s\n% x", why, w.Packet)
				}
				head := 20
				if version(w.Packet) == 6 {
					head = 48
				}
				if w.Largest > 0 && !bytes.Equal(w.Packet[head:], vectors.Pattern(len(w.Packet)-head)) {
					t.Fatalf("other bytes:\n% x", w.Packet[head:])
				}
			}
			if packets, held := r.Held(); held > cfg.Bytes || (packets == 0) != (held == 0) || (packets == 0) != r.Next().IsZero() {
				t.Fatalf("holds %d packets, %d bytes, until %v", packets, held, r.Next())
			}
			now = now.Add(time.Duration(c[0]>>7) * 100 * time.Millisecond)
		}
		c := r.Counters()
		packets, _ := r.Held()
		r.Expire(now.Add(time.Hour))
		if n := r.Counters().Expired - c.Expired; n != uint64(packets) {
			t.Fatalf("%d packets expired, of %d", n, packets)
		}
		if packets, held := r.Held(); packets != 0 || held != 0 || len(r.sources) != 0 || r.first != nil || r.last != nil {
			t.Fatalf("holds %d packets, %d bytes, of %d sources", packets, held, len(r.sources))
		}
	})
}
