package capture

import (
	"bytes"
	"testing"
)

var (
	macs = []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	four = []byte{0x45, 0, 0, 20}
	six  = []byte{0x60, 0, 0, 0}
)

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestFramesArePartedAndJoined(t *testing.T) {
	sll := make([]byte, 14)
	sll2 := make([]byte, 18)
	for name, tc := range map[string]struct {
		link  LinkType
		frame []byte
		head  int
		other []byte // the same frame with a packet of the other family in it
	}{
		"Ethernet":       {LinkEthernet, cat(macs, []byte{8, 0}, four), 14, cat(macs, []byte{0x86, 0xdd}, six)},
		"VLAN":           {LinkEthernet, cat(macs, []byte{0x81, 0, 0, 7, 0x86, 0xdd}, six), 18, cat(macs, []byte{0x81, 0, 0, 7, 8, 0}, four)},
		"VLAN in VLAN":   {LinkEthernet, cat(macs, []byte{0x88, 0xa8, 0, 1, 0x81, 0, 0, 7, 8, 0}, four), 22, cat(macs, []byte{0x88, 0xa8, 0, 1, 0x81, 0, 0, 7, 0x86, 0xdd}, six)},
		"Linux cooked":   {LinkLinuxSLL, cat(sll, []byte{8, 0}, four), 16, cat(sll, []byte{0x86, 0xdd}, six)},
		"Linux cooked 2": {LinkLinuxSLL2, cat([]byte{0x86, 0xdd}, sll2, six), 20, cat([]byte{8, 0}, sll2, four)},
		"raw":            {LinkRaw, four, 0, six},
		"raw, by number": {LinkRawBSD, six, 0, four},
		"IPv4":           {LinkIPv4, four, 0, six},
	} {
		t.Run(name, func(t *testing.T) {
			head, ip, ok := tc.link.Split(tc.frame)
			if !ok || len(head) != tc.head || !bytes.Equal(cat(head, ip), tc.frame) {
				t.Fatalf("% x: % x, % x, %v", tc.frame, head, ip, ok)
			}
			if got := tc.link.Join([]byte("before"), head, ip); !bytes.Equal(got, cat([]byte("before"), tc.frame)) {
				t.Errorf("joined again: % x", got)
			}
			_, ip, ok = tc.link.Split(tc.other)
			if !ok {
				t.Fatalf("% x is not parted", tc.other)
			}
			if got := tc.link.Join(nil, head, ip); !bytes.Equal(got, tc.other) {
				t.Errorf("joined with the other family: % x, want % x", got, tc.other)
			}
		})
	}
}

func TestFramesWithoutAnIPPacket(t *testing.T) {
	for name, tc := range map[string]struct {
		link  LinkType
		frame []byte
	}{
		"nothing":              {LinkRaw, nil},
		"ARP":                  {LinkEthernet, cat(macs, []byte{8, 6}, make([]byte, 28))},
		"cut in the MACs":      {LinkEthernet, macs},
		"nothing behind":       {LinkEthernet, cat(macs, []byte{8, 0})},
		"cut in the tag":       {LinkEthernet, cat(macs, []byte{0x81, 0, 0})},
		"tags without end":     {LinkEthernet, cat(macs, bytes.Repeat([]byte{0x81, 0, 0, 7}, 9), []byte{8, 0}, four)},
		"version 6 in IPv4":    {LinkEthernet, cat(macs, []byte{8, 0}, six)},
		"version 4 in IPv6":    {LinkLinuxSLL2, cat([]byte{0x86, 0xdd}, make([]byte, 18), four)},
		"version 5":            {LinkRaw, []byte{0x55}},
		"a link type of no IP": {LinkType(105), four},
	} {
		if _, _, ok := tc.link.Split(tc.frame); ok {
			t.Errorf("%s: % x is parted", name, tc.frame)
		}
	}
}

func TestLinkTypes(t *testing.T) {
	for l, want := range map[LinkType]struct {
		name  string
		known bool
		out   LinkType
	}{
		LinkEthernet:  {"ethernet", true, LinkEthernet},
		LinkRawOld:    {"raw", true, LinkRaw},
		LinkIPv6:      {"ipv6", true, LinkRaw},
		LinkIPv4:      {"ipv4", true, LinkRaw},
		LinkLinuxSLL:  {"linux-sll", true, LinkLinuxSLL},
		LinkLinuxSLL2: {"linux-sll2", true, LinkLinuxSLL2},
		105:           {"link-type-105", false, LinkRaw},
	} {
		if l.String() != want.name || l.Known() != want.known || l.Out() != want.out {
			t.Errorf("%d: %s, %v, %v", l, l, l.Known(), l.Out())
		}
	}
}
