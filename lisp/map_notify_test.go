package lisp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// notifyPacket is a Map-Notify up to its last record, with the type left out.
const notifyPacket = `
	0000001 0000000000000005
	03 02 0010 000102030405060708090a0b0c0d0e0f
	00000003 01 80 0000 0009 0002 20010db80e1d00010000000000000010
	01 64 00 00 0001 0001 64400102
`

func sampleNotify() *MapNotify {
	return &MapNotify{
		Nonce: 5,
		Auth:  Auth{KeyID: 3, Algorithm: AlgHMACSHA256_128, Data: []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
		Records: []Mapping{{EID: mustEID("2001:db8:e1d:1::10"), TTL: 3, Version: 9, Locators: []Locator{
			{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 100, Reachable: true}}}},
	}
}

func TestMapNotifyGolden(t *testing.T) {
	m := sampleNotify()
	checkGolden(t, m, "4"+notifyPacket)
	checkGolden(t, m.Ack(), "5"+notifyPacket)
	m.HasXTRID, m.XTRID, m.SiteID = true, XTRID{0: 0xa1}, 0x77
	tail := "a1000000000000000000000000000000 0000000000000077"
	checkGolden(t, m, "4"+notifyPacket+tail)
	checkGolden(t, m.Ack(), "5"+notifyPacket+tail)
}

// Nothing in the first word says whether an xTR-ID follows; peers send it with and without Site-ID.
func TestMapNotifyTail(t *testing.T) {
	m := sampleNotify()
	checkDecodes(t, m, "4"+notifyPacket+"00000000")
	checkDecodes(t, m, "4"+notifyPacket+"a1000000000000000000000000000000 00000000000000")
	checkDecodes(t, m, "4"+notifyPacket+"a1000000000000000000000000000000 0000000000000000 00")
	m.HasXTRID, m.XTRID = true, XTRID{0: 0xa1}
	checkDecodes(t, m, "4"+notifyPacket+"a1000000000000000000000000000000")
	checkDecodes(t, m, "4"+notifyPacket+"a1000000000000000000000000000000 0000000000000000")
}

func TestAck(t *testing.T) {
	m := sampleNotify()
	ack := m.Ack()
	ack.Nonce++
	if d := cmp.Diff(sampleNotify(), m, cmpOpts); d != "" {
		t.Errorf("a change of the Ack changes the Map-Notify:\n%s", d)
	}
}
