package testnet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSilences(t *testing.T) {
	at := func(ms ...int) (out []time.Time) {
		for _, m := range ms {
			out = append(out, atMS(m))
		}
		return out
	}
	for _, test := range []struct {
		name  string
		heard []time.Time
		want  [][2]int // in ms
	}{
		{"nothing at all", nil, [][2]int{{0, 1000}}},
		{"all the time", at(10, 100, 190, 280, 370, 460, 550, 640, 730, 820, 910), nil},
		{"once", at(50, 140, 600, 690, 780, 870, 960), [][2]int{{140, 600}}},
		{"late answers come in disorder", at(600, 50, 140, 690, 780, 870, 960), [][2]int{{140, 600}}},
		{"to the end", at(50, 140, 230), [][2]int{{230, 1000}}},
		{"what is before and after does not count", at(-500, 50, 140, 230, 320, 410, 500, 590, 680, 770, 860, 950, 3000), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got [][2]int
			for _, s := range silences(test.heard, atMS(0), atMS(1000), 100*time.Millisecond) {
				got = append(got, [2]int{int(s.from.Sub(atMS(0)).Milliseconds()), int(s.to.Sub(atMS(0)).Milliseconds())})
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHeartbeat(t *testing.T) {
	_, a, b := pair(t)
	h, err := startHeartbeat(a.ns, addrs("10.9.0.1/24")[0].Addr(), addrs("10.9.0.2/24")[0].Addr())
	must(t, err)
	other, err := startHeartbeat(a.ns, addrs("10.9.0.1/24")[0].Addr(), addrs("10.9.0.1/24")[0].Addr())
	must(t, err) // its answers are not ours
	begin := time.Now()
	time.Sleep(300 * time.Millisecond)
	must(t, b.ns.Drop("eth0", true))
	time.Sleep(500 * time.Millisecond)
	must(t, b.ns.Drop("eth0", false))
	time.Sleep(300 * time.Millisecond)
	heard, asked, err := h.end()
	must(t, err)
	_, _, err = other.end()
	must(t, err)
	out := silences(heard, begin, time.Now(), 400*time.Millisecond)
	if len(out) != 1 || out[0].length() > time.Second || uint64(len(heard)) >= asked {
		t.Errorf("asked %d times, heard %d, silences %v", asked, len(heard), out)
	}
}
