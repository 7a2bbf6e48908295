package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

const translateConfig = `role: map646
pool: "2001:db8:64::/96"
aggregates: ["2001:db8:e1d::/48"]
services:
  - {outside: 198.51.100.10, inside: "2001:db8:e1d::a"}
  - {outside: 198.51.100.11, inside: "2001:db8:e1d::b"}
  - {outside: "2001:db8:5e::a", inside: "2001:db8:e1d::a"}
icmp_from: {ipv4: 192.0.2.1, ipv6: "2001:db8:e1d::1"}
`

var captured = time.Date(2011, 8, 6, 13, 37, 42, 123456789, time.UTC)

// capturedAt is when the i-th packet of a test's capture was captured.
func capturedAt(i int) time.Time { return captured.Add(time.Duration(i) * 1234567 * time.Nanosecond) }

// runTranslate runs the command on a capture, and returns what it writes and what it says.
func runTranslate(t *testing.T, conf string, in []byte, args ...string) (out, said string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "map646.yaml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	root := newRootCommand()
	root.SetArgs(append([]string{"map646", "translate", "--config", path}, args...))
	root.SetIn(bytes.NewReader(in))
	root.SetOut(&o)
	root.SetErr(&e)
	err = root.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

// pcapOf is a capture with the frames.
func pcapOf(t *testing.T, link layers.LinkType, frames ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(262144, link); err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: capturedAt(i), CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// framesOf are the frames of a capture, and when they were captured.
func framesOf(t *testing.T, file string) (link layers.LinkType, frames [][]byte, times []time.Time) {
	t.Helper()
	r, err := pcapgo.NewReader(strings.NewReader(file))
	if err != nil {
		t.Fatalf("what was written: %v", err)
	}
	for {
		data, ci, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return r.LinkType(), frames, times
		}
		if err != nil {
			t.Fatal(err)
		}
		frames, times = append(frames, data), append(times, ci.Timestamp)
	}
}

// flows are the flows of IP packets, with their lengths.
func flows(packets [][]byte) (out []string) {
	for _, b := range packets {
		f, ok := map646.FlowOf(b)
		if !ok {
			out = append(out, fmt.Sprintf("% x", b))
			continue
		}
		out = append(out, fmt.Sprintf("%v, %d bytes", f, len(b)))
	}
	return out
}

// packetOf builds a packet from layers; the first is the IP header.
func packetOf(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	ip := ls[0].(gopacket.NetworkLayer)
	if e, ok := ls[0].(*layers.Ethernet); ok {
		t.Fatalf("%v is no IP header", e)
	}
	for _, l := range ls {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(ip); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

func ipHeader(src, dst string, proto layers.IPProtocol) gopacket.SerializableLayer {
	s, d := net.ParseIP(src), net.ParseIP(dst)
	if s.To4() != nil {
		return &layers.IPv4{Version: 4, TTL: 60, Id: 0x1234, Protocol: proto, SrcIP: s, DstIP: d, Flags: layers.IPv4DontFragment}
	}
	return &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: proto, SrcIP: s, DstIP: d}
}

func udpPacket(t *testing.T, src, dst string, n int) []byte {
	return packetOf(t, ipHeader(src, dst, layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 4001}, gopacket.Payload(bytes.Repeat([]byte("tabi"), n/4)))
}

func tcpPacket(t *testing.T, src, dst string) []byte {
	return packetOf(t, ipHeader(src, dst, layers.IPProtocolTCP), &layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true, Window: 1000, Seq: 9}, gopacket.Payload("GET /"))
}

func pingPacket(t *testing.T, src, dst string, n int) []byte {
	data := gopacket.Payload(bytes.Repeat([]byte{'p'}, n))
	if strings.Contains(src, ":") {
		return packetOf(t, ipHeader(src, dst, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)},
			&layers.ICMPv6Echo{Identifier: 1, SeqNumber: 2}, data)
	}
	return packetOf(t, ipHeader(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1, Seq: 2}, data)
}

func ethernet(packet []byte) []byte {
	t := []byte{8, 0}
	if packet[0]>>4 == 6 {
		t = []byte{0x86, 0xdd}
	}
	return bytes.Join([][]byte{{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, t, packet}, nil)
}

func TestMap646TranslateBothWays(t *testing.T) {
	arp := append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 2, 8, 6}, make([]byte, 28)...)
	in := pcapOf(t, layers.LinkTypeEthernet,
		append(ethernet(tcpPacket(t, "203.0.113.5", "198.51.100.10")), 0, 0, 0, 0), // padded by the wire
		ethernet(tcpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105")),
		arp,
		ethernet(udpPacket(t, "203.0.113.5", "203.0.113.6", 100)),
		ethernet(pingPacket(t, "2001:db8:e1d::a", "2001:db8:64::c633:640b", 8)), // to the VM next door by IPv4
		ethernet(udpPacket(t, "2001:db8:f::5", "2001:db8:5e::a", 40)),           // to the IPv6 service address
		ethernet(udpPacket(t, "2001:db8:e1d::c", "2001:db8:64::cb00:7105", 40)), // who has no IPv4 address
		ethernet(pingPacket(t, "203.0.113.5", "198.51.100.10", 8))[:40],         // a capture that is cut short
	)
	binary.LittleEndian.PutUint32(in[len(in)-40-4:], 200)
	out, said, err := runTranslate(t, translateConfig, in)
	if err != nil {
		t.Fatal(err)
	}
	link, frames, times := framesOf(t, out)
	if link != layers.LinkTypeRaw {
		t.Errorf("link type %v", link)
	}
	want := []string{
		"[2001:db8:64::cb00:7105]:4000 -> [2001:db8:e1d::a]:80, protocol 6, 65 bytes",
		"198.51.100.10:4000 -> 203.0.113.5:80, protocol 6, 45 bytes",
		"2001:db8:64::c633:640a -> 2001:db8:e1d::b, protocol 58, 56 bytes",
		"[2001:db8:f::5]:4000 -> [2001:db8:e1d::a]:4001, protocol 17, 88 bytes",
		"2001:db8:e1d::1 -> 2001:db8:e1d::c, protocol 58, 136 bytes",
	}
	if d := cmp.Diff(want, flows(frames)); d != "" {
		t.Errorf("what came out: (-want +got)\n%s", d)
	}
	var at []time.Time
	for _, i := range []int{0, 1, 4, 5, 6} {
		at = append(at, capturedAt(i))
	}
	if d := cmp.Diff(at, times); d != "" {
		t.Errorf("time stamps: %s", d)
	}
	for _, f := range frames {
		if ttl := map[byte]byte{4: f[8], 6: f[7]}[f[0]>>4]; ttl != 59 && ttl != 64 { // the ICMP error has not been forwarded yet
			t.Errorf("TTL %d", ttl)
		}
	}
	wantSaid := `8 packets read, 5 written, 1 of them ICMP errors for senders
  1  translated-4to6     from IPv4 to IPv6
  1  translated-6to4     from IPv6 to IPv4
  1  translated-6to6     IPv6 addresses for others
  1  translated-hairpin  from one VM to the IPv4 service address of another, and back to IPv6
  1  unmatched           no service, mapping or pool address is its destination, nor does its source have a service address outside
  1  not-ip              the frame holds no IP packet
  1  cut-short           the capture has not all of the packet: capture with a larger snapshot length (tcpdump -s 0)
  1  unmapped-source     its IPv6 source is the inside of no IPv4 service
`
	if d := cmp.Diff(wantSaid, said); d != "" {
		t.Errorf("what was said: (-want +got)\n%s", d)
	}
}

func TestMap646TranslateSaysWhatBecameOfEach(t *testing.T) {
	in := pcapOf(t, layers.LinkTypeRaw,
		tcpPacket(t, "203.0.113.5", "198.51.100.10"),
		udpPacket(t, "2001:db8:e1d::c", "2001:db8:64::cb00:7105", 40))
	_, said, err := runTranslate(t, translateConfig, in, "-v", "--hops=false")
	if err != nil {
		t.Fatal(err)
	}
	want := `1  translated-4to6: 203.0.113.5:4000 -> 198.51.100.10:80, protocol 6; became [2001:db8:64::cb00:7105]:4000 -> [2001:db8:e1d::a]:80, protocol 6, 65 bytes (by 198.51.100.10)
2  unmapped-source: [2001:db8:e1d::c]:4000 -> [2001:db8:64::cb00:7105]:4001, protocol 17; its IPv6 source is the inside of no IPv4 service; the sender is told: 2001:db8:e1d::1 -> 2001:db8:e1d::c, protocol 58, ICMP type 1 code 1
`
	if got, _, _ := strings.Cut(said, "2 packets read"); got != want {
		t.Errorf("(-want +got)\n%s", cmp.Diff(want, got))
	}
	_, said, err = runTranslate(t, translateConfig, in, "-v", "--json", "--replies=false")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(said))
	var one, two offlinePacket
	var total offlineTotal
	for _, v := range []any{&one, &two, &total} {
		if err := d.Decode(v); err != nil {
			t.Fatalf("%v in\n%s", err, said)
		}
	}
	if one.Packet != 1 || !one.Time.Equal(capturedAt(0)) || one.Reason != "translated-4to6" || len(one.Became) != 1 || one.By[0] != "198.51.100.10" {
		t.Errorf("%+v", one)
	}
	if two.Packet != 2 || two.Reason != "unmapped-source" || two.Reply != "" || two.Why == "" {
		t.Errorf("%+v", two)
	}
	if total.Packets != 2 || total.Written != 1 || total.Replies != 0 || len(total.Reasons) != 2 {
		t.Errorf("%+v", total)
	}
}

// Frames may come out as they came in, whatever stands before the packets; and from other kinds of files.
func TestMap646TranslateFrames(t *testing.T) {
	packet := tcpPacket(t, "203.0.113.5", "198.51.100.10")
	vlan := func(typ ...byte) []byte {
		return append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 7}, typ...)
	}
	sll := func(typ ...byte) []byte { return append([]byte{0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0}, typ...) }
	for name, tc := range map[string]struct {
		link       layers.LinkType
		head, want []byte
	}{
		"Ethernet":     {layers.LinkTypeEthernet, ethernet(packet)[:14], ethernet([]byte{0x60})[:14]},
		"VLAN":         {layers.LinkTypeEthernet, vlan(8, 0), vlan(0x86, 0xdd)},
		"Linux cooked": {layers.LinkTypeLinuxSLL, sll(8, 0), sll(0x86, 0xdd)},
		"raw":          {layers.LinkTypeRaw, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			in := pcapOf(t, tc.link, append(bytes.Clone(tc.head), packet...))
			out, _, err := runTranslate(t, translateConfig, in, "--link", "input")
			if err != nil {
				t.Fatal(err)
			}
			link, frames, _ := framesOf(t, out)
			if link != tc.link || len(frames) != 1 || !bytes.HasPrefix(frames[0], append(bytes.Clone(tc.want), 0x60)) {
				t.Errorf("%v, %x", link, frames)
			}
		})
	}
}

// Several link types in one pcapng file; time stamps stay what they were.
func TestMap646TranslatePCAPNG(t *testing.T) {
	packet := tcpPacket(t, "203.0.113.5", "198.51.100.10")
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{Name: "eth0", LinkType: layers.LinkTypeEthernet, SnapLength: 0}, pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.AddInterface(pcapgo.NgInterface{Name: "tun0", LinkType: layers.LinkTypeRaw, SnapLength: 0}); err != nil {
		t.Fatal(err)
	}
	for i, f := range [][]byte{ethernet(packet), packet} {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: capturedAt(i), CaptureLength: len(f), Length: len(f), InterfaceIndex: i}, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	out, _, err := runTranslate(t, translateConfig, b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	_, frames, times := framesOf(t, out)
	if len(frames) != 2 || !bytes.Equal(frames[0], frames[1]) || !times[0].Equal(capturedAt(0)) || !times[1].Equal(capturedAt(1)) {
		t.Errorf("%x %v", frames, times)
	}
	if _, _, err = runTranslate(t, translateConfig, b.Bytes(), "--link", "input"); err == nil ||
		!strings.Contains(err.Error(), "packet 2: is of link type raw, those before are of ethernet: one file holds one: use --link raw") {
		t.Errorf("%v", err)
	}
}

func TestMap646TranslateOriginalConfiguration(t *testing.T) {
	const conf = "# Interop 2011\n\nmapping-prefix 2001:db8:64::\nmap-static 198.51.100.10 2001:db8:e1d::a # www\nmap66-static 2001:db8:5e::a 2001:db8:e1d::a\n"
	in := pcapOf(t, layers.LinkTypeRaw, tcpPacket(t, "203.0.113.5", "198.51.100.10"), udpPacket(t, "2001:db8:f::5", "2001:db8:5e::a", 40))
	out, _, err := runTranslate(t, conf, in)
	if err != nil {
		t.Fatal(err)
	}
	_, frames, _ := framesOf(t, out)
	want := []string{
		"[2001:db8:64::cb00:7105]:4000 -> [2001:db8:e1d::a]:80, protocol 6, 65 bytes",
		"[2001:db8:f::5]:4000 -> [2001:db8:e1d::a]:4001, protocol 17, 88 bytes",
	}
	if d := cmp.Diff(want, flows(frames)); d != "" {
		t.Error(d)
	}
	_, _, err = runTranslate(t, "map-static 198.51.100.10 2001:db8:e1d::a\nmap-static 198.51.100.300 ::1\nmapping-prefix nonsense\n", in)
	if err == nil || !strings.Contains(err.Error(), "map646.yaml:2: ") || !strings.Contains(err.Error(), "map646.yaml:3: ") {
		t.Errorf("%v", err)
	}
}

// fragmentsOf cuts an IPv4 packet.
func fragmentsOf(b []byte, most int) (out [][]byte) {
	for off := 0; off < len(b)-20; off += most {
		end := min(20+off+most, len(b))
		f := append(bytes.Clone(b[:20]), b[20+off:end]...)
		field := uint16(off / 8)
		if end < len(b) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[6:], field)
		f[10], f[11] = 0, 0
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(f[i:]))
		}
		binary.BigEndian.PutUint16(f[10:], ^uint16(sum+sum>>16))
		out = append(out, f)
	}
	return out
}

func TestMap646TranslateFragmentedPing(t *testing.T) {
	whole := fragmentsOf(pingPacket(t, "203.0.113.5", "198.51.100.10", 3000), 1480)
	lost := fragmentsOf(pingPacket(t, "203.0.113.5", "198.51.100.11", 3000), 1480)
	out, said, err := runTranslate(t, translateConfig, pcapOf(t, layers.LinkTypeRaw, append(whole, lost[0])...))
	if err != nil {
		t.Fatal(err)
	}
	_, frames, times := framesOf(t, out)
	if len(frames) != 3 || !times[0].Equal(capturedAt(2)) {
		t.Fatalf("%d packets, at %v", len(frames), times)
	}
	for _, f := range frames {
		if len(f) > 1280 || f[6] != 44 {
			t.Errorf("%d bytes, next header %d", len(f), f[6])
		}
	}
	for _, want := range []string{"4 packets read, 3 written", "  3  icmp-fragment-kept ", "  1  translated-4to6 ", "1 fragmented ICMP packets were never complete"} {
		if !strings.Contains(said, want) {
			t.Errorf("does not say %q:\n%s", want, said)
		}
	}
}

func TestMap646TranslateMTU(t *testing.T) {
	in := pcapOf(t, layers.LinkTypeRaw, udpPacket(t, "203.0.113.5", "198.51.100.10", 1440), udpPacket(t, "2001:db8:f::5", "2001:db8:5e::a", 1440),
		udpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 1440))
	out, said, err := runTranslate(t, translateConfig+"mtu: {ipv4: 1400, ipv6: 1444}\n", in, "-v")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1  too-big: 203.0.113.5:4000 -> ", "; the sender is told: 192.0.2.1 -> 203.0.113.5, protocol 1, ICMP type 3 code 4",
		"2  too-big: [2001:db8:f::5]:4000 -> ", "3  too-big: "} {
		if !strings.Contains(said, want) {
			t.Errorf("does not say %q:\n%s", want, said)
		}
	}
	_, frames, _ := framesOf(t, out)
	if len(frames) != 3 {
		t.Fatalf("%d packets", len(frames))
	}
	if mtu := binary.BigEndian.Uint16(frames[0][26:]); mtu != 1424 {
		t.Errorf("the IPv4 sender is told an MTU of %d", mtu)
	}
	for i, want := range map[int]uint32{1: 1444, 2: 1420} {
		if mtu := binary.BigEndian.Uint32(frames[i][44:]); mtu != want {
			t.Errorf("the IPv6 sender of packet %d is told an MTU of %d, want %d", i+1, mtu, want)
		}
	}
}

func TestMap646TranslateErrors(t *testing.T) {
	good := pcapOf(t, layers.LinkTypeRaw, tcpPacket(t, "203.0.113.5", "198.51.100.10"), tcpPacket(t, "203.0.113.5", "198.51.100.11"))
	// What is whole comes out even so.
	out, said, err := runTranslate(t, translateConfig, good[:len(good)-10])
	if err == nil || !strings.Contains(err.Error(), "map646 translate: capture: packet 2: the file ends after 35 of 45 bytes of its data") {
		t.Errorf("%v", err)
	}
	if _, frames, _ := framesOf(t, out); len(frames) != 1 || !strings.Contains(said, "1 packets read, 1 written") {
		t.Errorf("%d packets; %s", len(frames), said)
	}
	for name, tc := range map[string]struct {
		conf string
		in   []byte
		args []string
		want string
	}{
		"no capture":        {translateConfig, []byte("hello, world"), nil, "neither pcap nor pcapng"},
		"nothing":           {translateConfig, nil, nil, "the file is empty"},
		"link type":         {translateConfig, pcapOf(t, layers.LinkTypeIEEE802_11, []byte{1, 2, 3}), nil, "packet 1: frames of link type 105 are not known"},
		"--link":            {translateConfig, good, []string{"--link", "ethernet"}, `--link "ethernet": want raw or input`},
		"unknown key":       {translateConfig + "pools: x\n", good, nil, `map646.yaml:9:1: unknown field "pools"`},
		"length of a pool":  {strings.Replace(translateConfig, "/96", "/95", 1), good, nil, "map646.yaml:2:7: "},
		"inside taken":      {strings.Replace(translateConfig, "::b", "::a", 1), good, nil, "map646.yaml:6:38: service 198.51.100.11 <-> 2001:db8:e1d::a: inside is in 198.51.100.10 <-> 2001:db8:e1d::a"},
		"family of inside":  {strings.Replace(translateConfig, `"2001:db8:e1d::b"`, "192.0.2.9", 1), good, nil, "map646.yaml:6:15: service: inside 192.0.2.9/32: not IPv6"},
		"bits of a service": {strings.Replace(translateConfig, "198.51.100.11", "198.51.100.11/24", 1), good, nil, `map646.yaml:6:15: "198.51.100.11/24" has bits set beyond its length: want 198.51.100.0/24`},
		"no inside":         {"role: map646\nservices:\n  - outside: 192.0.2.1\n", good, nil, "map646.yaml:3:14: services.inside is required"},
		"hairpin":           {translateConfig + "hairpin: sometimes\n", good, nil, `map646.yaml:9:10: hairpin "sometimes": want one of intrinsic, off, simple`},
		"MTU":               {translateConfig + "mtu: {ipv6: 1279}\n", good, nil, "map646.yaml:9:13: mtu 1279: want 1280 (RFC 8200 section 5) to 65535, or 0"},
		"source of errors":  {strings.Replace(translateConfig, "192.0.2.1", `"::1:2"`, 1), good, nil, "map646.yaml:8:19: source of ICMPv4 errors ::1:2: not IPv4"},
		"explicit twice": {translateConfig + "explicit: [{ipv4: 192.0.2.1, ipv6: \"2001:db8::1\"}, {ipv4: 192.0.2.1, ipv6: \"2001:db8::2\"}]\n", good, nil,
			"192.0.2.1/32 is mapped twice"},
		"explicit sizes": {translateConfig + "explicit: [{ipv4: 192.0.2.0/24, ipv6: \"2001:db8::/124\"}]\n", good, nil, "map646.yaml:9:19: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := runTranslate(t, tc.conf, tc.in, tc.args...)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	router := filepath.Join(t.TempDir(), "router.yaml")
	text, err := config.Example("router")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(router, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "is the configuration of another role", "map646", "translate", "--config", router)
	fails(t, "no such file", "map646", "translate", "--config", filepath.Join(t.TempDir(), "none"))
	fails(t, `required flag(s) "config" not set`, "map646", "translate")
}

// An empty capture gives an empty capture.
func TestMap646TranslateNothing(t *testing.T) {
	out, said, err := runTranslate(t, translateConfig, pcapOf(t, layers.LinkTypeEthernet))
	if err != nil {
		t.Fatal(err)
	}
	if _, frames, _ := framesOf(t, out); len(frames) != 0 || !strings.Contains(said, "0 packets read, 0 written") {
		t.Errorf("%d packets; %s", len(frames), said)
	}
}

func TestEveryReasonIsExplained(t *testing.T) {
	order := map[string]bool{}
	for _, r := range reasonOrder() {
		if order[r] || whyNot[r] == "" {
			t.Errorf("%s: twice in the order, or not explained", r)
		}
		order[r] = true
	}
	for r := range whyNot {
		if !order[r] {
			t.Errorf("%s has no place in the order", r)
		}
	}
}

// Another dissector finds nothing malformed in what comes out, and every checksum right.
func TestMap646TranslateForTshark(t *testing.T) {
	inner := udpPacket(t, "198.51.100.10", "203.0.113.5", 100)
	icmpError := packetOf(t, ipHeader("192.0.2.77", "198.51.100.10", layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(inner))
	noSum := udpPacket(t, "203.0.113.5", "198.51.100.10", 100)
	noSum[26], noSum[27] = 0, 0
	packets := [][]byte{
		tcpPacket(t, "203.0.113.5", "198.51.100.10"), tcpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105"),
		udpPacket(t, "203.0.113.5", "198.51.100.10", 1200), udpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 1200),
		pingPacket(t, "203.0.113.5", "198.51.100.10", 56), pingPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 56),
		pingPacket(t, "2001:db8:e1d::a", "2001:db8:64::c633:640b", 56), udpPacket(t, "2001:db8:f::5", "2001:db8:5e::a", 40),
		tcpPacket(t, "2001:db8:e1d::a", "2001:db8:f::5"), udpPacket(t, "2001:db8:e1d::c", "2001:db8:64::cb00:7105", 40),
		icmpError, noSum,
	}
	packets = append(packets, fragmentsOf(pingPacket(t, "203.0.113.5", "198.51.100.10", 4000), 1480)...)
	out, said, err := runTranslate(t, translateConfig, pcapOf(t, layers.LinkTypeRaw, packets...))
	if err != nil {
		t.Fatal(err)
	}
	_, frames, _ := framesOf(t, out)
	if len(frames) < len(packets) {
		t.Fatalf("%d packets come out: %s", len(frames), said)
	}
	cmd := exec.CommandContext(t.Context(), "tshark", "-r", "-", "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-T", "fields", "-e", "frame.number", "-e", "_ws.malformed", "-e", "ip.checksum.status", "-e", "tcp.checksum.status", "-e", "udp.checksum.status",
		"-e", "icmp.checksum.status", "-e", "icmpv6.checksum.status", "-E", "separator=,", "-E", "occurrence=a", "-E", "aggregator=;")
	cmd.Stdin = strings.NewReader(out)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != len(frames) {
		t.Fatalf("tshark reads %d packets of %d:\n%s", len(lines), len(frames), b)
	}
	good := 0
	for i, line := range lines {
		f := strings.Split(line, ",")
		if f[1] != "" {
			t.Errorf("packet %s is malformed: % x", f[0], frames[i][:min(len(frames[i]), 80)])
		}
		for _, status := range strings.FieldsFunc(strings.Join(f[2:], ";"), func(r rune) bool { return r == ';' }) {
			switch status {
			case "0", "Bad":
				t.Errorf("packet %s has a bad checksum: %s", f[0], line)
			case "1", "Good":
				good++
			}
		}
	}
	if good < len(packets) {
		t.Errorf("tshark looked at %d checksums:\n%s", good, b)
	}
}
