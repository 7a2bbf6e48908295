package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// The data plane's program and Go share the work, and nobody can tell from what comes out.
func TestMap646TranslateByTheKernel(t *testing.T) {
	noSum := udpPacket(t, "203.0.113.5", "198.51.100.10", 100)
	noSum[26], noSum[27] = 0, 0
	lastHop := ipHeader("203.0.113.5", "198.51.100.10", layers.IPProtocolUDP).(*layers.IPv4)
	lastHop.TTL = 1
	last := packetOf(t, lastHop, &layers.UDP{SrcPort: 4000, DstPort: 4001})
	packets := append(fragmentsOf(pingPacket(t, "203.0.113.5", "198.51.100.10", 2000), 1480),
		append(tcpPacket(t, "203.0.113.5", "198.51.100.10"), 0, 0, 0), // padded by the wire
		tcpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105"),
		udpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 1300), // becomes DF
		pingPacket(t, "2001:db8:e1d::a", "2001:db8:64::c633:640b", 8),
		udpPacket(t, "2001:db8:f::5", "2001:db8:5e::a", 40),
		udpPacket(t, "2001:db8:e1d::c", "2001:db8:64::cb00:7105", 40), // nobody's source
		udpPacket(t, "203.0.113.5", "203.0.113.6", 100),
		noSum, last,
		udpPacket(t, "203.0.113.5", "198.51.100.10", 5000)) // too large for a trial
	in := pcapOf(t, layers.LinkTypeRaw, packets...)
	byGo, _, err := runTranslate(t, translateConfig, in)
	if err != nil {
		t.Fatal(err)
	}
	byKernel, said, err := runTranslate(t, translateConfig, in, "--kernel", "-v")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	_, want, _ := framesOf(t, byGo)
	_, got, _ := framesOf(t, byKernel)
	if d := cmp.Diff(flows(want), flows(got)); d != "" {
		t.Errorf("(-Go +kernel)\n%s", d)
	}
	for i := range min(len(want), len(got)) {
		if !samePacket(want[i], got[i]) {
			t.Errorf("packet %d:\nGo     % x\nkernel % x", i, want[i], got[i])
		}
		p := gopacket.NewPacket(got[i], layers.LayerTypeIPv6, gopacket.Default)
		if got[i][0]>>4 == 4 {
			p = gopacket.NewPacket(got[i], layers.LayerTypeIPv4, gopacket.Default)
		}
		if e := p.ErrorLayer(); e != nil {
			t.Errorf("packet %d: %v", i, e.Error())
		}
	}
	for _, want := range []string{
		"1  icmp-fragment-kept: ", "kernel: hands it up to Go",
		"3  translated-4to6: 203.0.113.5:4000 -> 198.51.100.10:80, protocol 6; became [2001:db8:64::cb00:7105]:4000 -> [2001:db8:e1d::a]:80, protocol 6, 65 bytes; kernel: translates it",
		"  4  translated-4to6     1 by the kernel, 3 by Go", "  2  translated-6to4     2 by the kernel, 0 by Go",
		"  1  translated-hairpin  1 by the kernel, 0 by Go", "  1  unmatched           1 by the kernel, 0 by Go", "  1  unmapped-source     0 by the kernel, 1 by Go",
		"  1  hop-limit           0 by the kernel, 1 by Go", "the packet is too large for a trial",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("does not say %q:\n%s", want, said)
		}
	}
	_, _, err = runTranslate(t, translateConfig+"explicit: [{ipv4: 192.0.2.1, ipv6: \"2001:db8::1\"}]\n", in, "--kernel")
	if err == nil || !strings.Contains(err.Error(), "--kernel: the data plane knows a pool and services: not the keys explicit") {
		t.Errorf("%v", err)
	}
}

func TestMap646TranslateByTheKernelWithMTU(t *testing.T) {
	in := pcapOf(t, layers.LinkTypeRaw, udpPacket(t, "203.0.113.5", "198.51.100.10", 1440), udpPacket(t, "203.0.113.5", "198.51.100.10", 1380),
		udpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 1440), udpPacket(t, "2001:db8:e1d::a", "2001:db8:64::cb00:7105", 1360))
	_, said, err := runTranslate(t, translateConfig+"mtu: {ipv4: 1400, ipv6: 1444}\n", in, "--kernel")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1  translated-4to6  1 by the kernel", "1  translated-6to4  1 by the kernel", "2  too-big          0 by the kernel, 2 by Go"} {
		if !strings.Contains(said, want) {
			t.Errorf("does not say %q:\n%s", want, said)
		}
	}
}

func TestSamePacket(t *testing.T) {
	a := udpPacket(t, "203.0.113.5", "198.51.100.10", 8)
	otherID := append([]byte(nil), a...)
	otherID[4] ^= 1
	otherTTL := append([]byte(nil), a...)
	otherTTL[8]--
	fragment := append([]byte(nil), a...)
	fragment[6] |= 0x20
	otherFragment := append([]byte(nil), fragment...)
	otherFragment[4] ^= 1
	for name, tc := range map[string]struct {
		a, b []byte
		want bool
	}{
		"itself": {a, a, true}, "identification": {a, otherID, true}, "TTL": {a, otherTTL, false}, "length": {a, a[:30], false},
		"of a fragment": {fragment, otherFragment, false},
	} {
		if samePacket(tc.a, tc.b) != tc.want {
			t.Errorf("%s: %v", name, !tc.want)
		}
	}
}

func TestDecrement(t *testing.T) {
	four, six := udpPacket(t, "203.0.113.5", "198.51.100.10", 8), udpPacket(t, "2001:db8::1", "2001:db8::2", 8)
	decrement(four)
	decrement(six)
	if four[8] != 59 || six[7] != 59 {
		t.Errorf("TTL %d, hop limit %d", four[8], six[7])
	}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(four[i:]))
	}
	if sum>>16+sum&0xffff != 0xffff {
		t.Errorf("header checksum: sum %#x", sum)
	}
}

// Should the kernel make something else of a packet than Go, it is said, and the command fails.
func TestMap646TranslateWhenKernelAndGoDiffer(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "map646.yaml")
	if err := os.WriteFile(conf, []byte(translateConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadMap646(conf)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newOfflineRun(translateOptions{kernel: true, hops: true}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var said bytes.Buffer
	w.say = bufio.NewWriter(&said)
	translated, unmatched := udpPacket(t, "203.0.113.5", "198.51.100.10", 8), udpPacket(t, "203.0.113.5", "203.0.113.6", 8)
	for name, tc := range map[string]struct {
		packet []byte
		inGo   offlinePacket
		want   string
	}{
		"other bytes": {translated, offlinePacket{Reason: "translated-4to6", packets: [][]byte{unmatched}}, "45 00 "},
		"in two":      {translated, offlinePacket{Reason: "translated-4to6", packets: [][]byte{unmatched, unmatched}}, "translated-4to6, 2 packets"},
		"dropped":     {translated, offlinePacket{Reason: "protocol"}, "protocol, 0 packets"},
		"passed on":   {unmatched, offlinePacket{Reason: "translated-4to6", packets: [][]byte{translated}}, "translated-4to6"},
	} {
		if err := w.kernel.run(tc.packet, 0, &tc.inGo); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(tc.inGo.Differ, tc.want) {
			t.Errorf("%s: %q, want %q", name, tc.inGo.Differ, tc.want)
		}
		w.count(&tc.inGo)
	}
	if err := w.finish(); err == nil || !strings.Contains(err.Error(), "of 4 packets the kernel makes something else than Go") {
		t.Errorf("%v", err)
	}
}
