package testnet

import (
	"strings"
	"testing"
	"time"
)

func TestParseUse(t *testing.T) {
	stat := "4711 (ta bi) x) S 1 2 3 4 5 6 7 8 9 10 150 27 13 14 20 0 9 0 100 0 0"
	status := "Name:\ttabi\nVmPeak:\t  999 kB\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\nThreads:\t9\n"
	u, err := parseUse(stat, status)
	must(t, err)
	if want := (processUse{1770 * time.Millisecond, 10240, 20480}); u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
	for _, bad := range [][2]string{
		{"4711 (x) S 1", status},
		{strings.Replace(stat, "150", "x", 1), status},
		{stat, ""},
		{stat, strings.Replace(status, "10240", "many", 1)},
	} {
		if u, err := parseUse(bad[0], bad[1]); err == nil {
			t.Errorf("%q %q: %+v", bad[0], bad[1], u)
		}
	}
}
