package gateway

import (
	"testing"

	"github.com/mdlayher/ndp"
)

var ndpRS = &ndp.RouterSolicitation{Options: []ndp.Option{sourceLLA}}

// seeds are frames of every kind.
func seeds(t testing.TB) [][]byte {
	return [][]byte{
		{}, make([]byte, 14), make([]byte, 60),
		arpFrame(1, "198.51.100.10", "198.51.100.1"),
		arpFrame(1, "0.0.0.0", "198.51.100.10"),
		arpFrame(2, "198.51.100.10", "198.51.100.10"),
		rarpFrame(guestMAC),
		nd(t, "2001:db8:e1d:1::10", group("fe80::1"), solicit("fe80::1", sourceLLA)),
		nd(t, "::", group("2001:db8:e1d:1::10"), solicit("2001:db8:e1d:1::10", ndp.NewNonce())),
		nd(t, "2001:db8:e1d:1::10", "ff02::1", &ndp.NeighborAdvertisement{Override: true, TargetAddress: guest6, Options: []ndp.Option{lla(ndp.Target, guestMAC)}}),
		nd(t, "fe80::10", "ff02::2", ndpRS),
		nd(t, "fe80::10", "ff02::1", &ndp.RouterAdvertisement{Options: []ndp.Option{ndp.NewMTU(1280)}}),
		echo4Frame("198.51.100.1"),
		echo6Frame("fe80::1"),
	}
}

// FuzzClassify hands frames to the classifier and the rules. Neither may crash, and whatever is answered
// must be a frame from the gateway to the one who asked, or to all for its own address.
func FuzzClassify(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	r := testRules()
	f.Fuzz(func(t *testing.T, b []byte) {
		h, bad, ok := classify(b)
		if !ok {
			if bad < badShort || bad > badMAC {
				t.Fatalf("refused as %s", counterNames[bad])
			}
			return
		}
		if !h.mac.unicast() || h.what == 0 {
			t.Fatalf("%+v", h)
		}
		v, err := r.answer(h, port1)
		if err != nil {
			t.Fatal(err)
		}
		if v.frame != nil {
			if mac(v.frame[6:12]) != r.mac || mac(v.frame[:6]) != h.mac && mac(v.frame[:6]) != allNodesMAC {
				t.Fatalf("answers % x", v.frame[:14])
			}
			if v.isQuiet {
				t.Fatalf("answers and counts it as %s", counterNames[v.quiet])
			}
		}
		if v.addr.IsValid() && (v.kind == "" || v.kind == "rarp" || !r.onLink(v.addr)) {
			t.Fatalf("sighting %q of %v", v.kind, v.addr)
		}
	})
}
