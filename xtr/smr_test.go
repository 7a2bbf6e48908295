package xtr

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

func TestSMRLimits(t *testing.T) {
	s, now := newSMR(), epoch
	r1, r2 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if !s.maySend(r1, testEID, now) || s.maySend(r1, testEID, now.Add(2999*time.Millisecond)) ||
		!s.maySend(r2, testEID, now) || !s.maySend(r1, testEID6, now) || !s.maySend(r1, testEID, now.Add(3*time.Second)) {
		t.Error("the limit for an RLOC and EID is wrong")
	}
	n := 0
	for i := range 1000 {
		if s.maySend(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), testEID, now.Add(3*time.Second)) {
			n++
		}
	}
	if n > smrBurst {
		t.Errorf("%d SMRs at once", n)
	}
	if !s.mayAnswer(testEID, now) || s.mayAnswer(testEID, now.Add(time.Second)) || !s.mayAnswer(testEID, now.Add(3*time.Second)) {
		t.Error("the limit for answers is wrong")
	}
	for i := range 3 * smrRemembered {
		now = now.Add(time.Millisecond)
		s.mayAnswer(lisp.HostEID(0, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})), now)
	}
	if len(s.answered) > smrRemembered {
		t.Errorf("%d EIDs are remembered", len(s.answered))
	}
}

func TestSolicited(t *testing.T) {
	m := solicit(testEID, []netip.Addr{ms1}, 5)
	if got := solicited(m); !slices.Equal(got, []lisp.EID{testEID}) {
		t.Errorf("it speaks of %v", got)
	}
	m.Records[0].EID = testEID6 // a peer that names its own EID there
	if got := solicited(m); !slices.Equal(got, []lisp.EID{testEID6, testEID}) {
		t.Errorf("it speaks of %v", got)
	}
}
