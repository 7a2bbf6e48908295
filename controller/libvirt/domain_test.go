package libvirt

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

func mustEID(t *testing.T, s string) lisp.EID {
	t.Helper()
	e, err := lisp.ParseEID(s)
	must(t, err)
	return e
}

var eidByString = cmp.Comparer(func(a, b lisp.EID) bool { return a == b })
