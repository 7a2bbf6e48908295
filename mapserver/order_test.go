package mapserver

import (
	"testing"

	"github.com/tabi-lisp/tabi/lisp"
)

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		name     string
		stored   lisp.Version
		holder   byte
		version  lisp.Version
		from     byte
		want     verdict
		accepted lisp.Version
		invented bool
	}{
		{"refresh", 5, 1, 5, 1, refresh, 5, false},
		{"refresh of one that knows no version", 5, 1, 0, 1, refresh, 5, false},
		{"the holder goes on", 5, 1, 6, 1, update, 6, false},
		{"the holder is behind", 5, 1, 4, 1, older, 5, false},
		{"claim", 5, 1, 6, 2, claim, 6, false},
		{"claim of a far newer one", 5, 1, 2052, 2, claim, 2052, false},
		{"as far as numbers can be apart", 5, 1, 2053, 2, claim, 2053, false},
		{"farther", 5, 1, 2054, 2, older, 5, false},
		{"claim with no version", 5, 1, 0, 2, claim, 6, true},
		{"late refresh", 5, 1, 4, 2, older, 5, false},
		{"tie, lower xTR-ID", 5, 2, 5, 1, claim, 5, false},
		{"tie, higher xTR-ID", 5, 1, 5, 2, tieLost, 5, false},
		{"around the end of the numbers", 4095, 1, 1, 2, claim, 1, false},
		{"before the end of the numbers", 1, 1, 4095, 2, older, 1, false},
		{"0 is skipped", 4095, 1, 0, 2, claim, 1, true},
		{"nothing stored", 0, 0, 0, 0, refresh, 0, false},
		{"foreign xTRs", 7, 0, 0, 0, refresh, 7, false},
	} {
		v, accepted, invented := order(lisp.Mapping{Version: c.stored, XTRID: lisp.XTRID{15: c.holder}}, c.version, lisp.XTRID{15: c.from})
		if v != c.want || accepted != c.accepted || invented != c.invented {
			t.Errorf("%s: verdict %d, version %d, invented %v", c.name, v, accepted, invented)
		}
	}
}

// TestOrderIsOne: whatever two xTRs say, exactly one of them is right, and all Map-Servers find the same.
func TestOrderIsOne(t *testing.T) {
	for a := lisp.Version(1); a < 4096; a += 5 {
		for b := lisp.Version(1); b < 4096; b += 4 {
			wins := func(stored, version lisp.Version, holder, from byte) bool {
				v, _, _ := order(lisp.Mapping{Version: stored, XTRID: lisp.XTRID{15: holder}}, version, lisp.XTRID{15: from})
				return v == claim
			}
			if wins(a, b, 1, 2) == wins(b, a, 2, 1) {
				t.Fatalf("versions %d of 1 and %d of 2: it depends on which comes first", a, b)
			}
		}
	}
}
