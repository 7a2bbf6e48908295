package lisp

import "testing"

func TestVersionNewer(t *testing.T) {
	for _, c := range []struct {
		v, o  Version
		newer bool
	}{
		{1, 0, true}, {0, 1, false}, {0, 0, false}, {5, 5, false},
		// The example of RFC 9302 section 6.
		{70, 69, true}, {69 + 2048, 69, true}, {69 + 2049, 69, false}, {(69 + 4095) & VersionMask, 69, false},
		{69, 69 + 2048, false}, {69, 69 + 2049, true},
		{1, 4095, true}, {4095, 1, false},
	} {
		if got := c.v.Newer(c.o); got != c.newer {
			t.Errorf("%d.Newer(%d) = %v, want %v", c.v, c.o, got, c.newer)
		}
	}
}

// Of two different versions exactly one is newer: else two hosts could both be refused for ever.
func TestVersionOrderIsTotal(t *testing.T) {
	for v := range VersionMask + 1 {
		for o := range v {
			if v.Newer(o) == o.Newer(v) {
				t.Fatalf("of %d and %d, both or neither is newer", v, o)
			}
		}
	}
}

func TestVersionNext(t *testing.T) {
	for v := range VersionMask + 1 {
		n := v.Next()
		if n == 0 || n > VersionMask || !n.Newer(v) {
			t.Fatalf("%d.Next() = %d", v, n)
		}
	}
	if Version(4095).Next() != 1 || Version(0).Next() != 1 {
		t.Fatal("Next does not skip the null version")
	}
}
