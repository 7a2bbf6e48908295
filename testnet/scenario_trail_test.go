package testnet

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	hereA  = netip.MustParseAddr("100.64.4.2")
	thereB = netip.MustParseAddr("2001:db8:100:3::2")
	vmX    = netip.MustParseAddr("198.51.100.30")
	far    = netip.MustParseAddr("192.0.2.10")
)

func atMS(n int) time.Time { return time.Unix(100, int64(n)*int64(time.Millisecond)) }

func TestTrailOverlap(t *testing.T) {
	type sighting struct {
		place netip.Addr
		ms    int
	}
	for _, test := range []struct {
		name  string
		seen  []sighting
		grace time.Duration
		want  time.Duration
		text  string
	}{
		{"nothing", nil, 0, 0, ""},
		{"one place", []sighting{{hereA, 1}, {hereA, 9}}, 0, 0, "100.64.4.2 (2)"},
		{"left for good", []sighting{{hereA, 1}, {hereA, 2}, {thereB, 3}, {thereB, 9}}, 0, 0, "100.64.4.2 (2) -> 2001:db8:100:3::2 (2)"},
		{"straggler", []sighting{{hereA, 1}, {thereB, 3}, {hereA, 4}, {thereB, 9}}, 0, time.Millisecond,
			"100.64.4.2 (1) -> 2001:db8:100:3::2 (1) -> 100.64.4.2 (1) -> 2001:db8:100:3::2 (1)"},
		{"came back", []sighting{{hereA, 1}, {thereB, 3}, {hereA, 400}}, 20 * time.Millisecond, 397 * time.Millisecond,
			"100.64.4.2 (1) -> 2001:db8:100:3::2 (1) -> 100.64.4.2 (1)"},
		{"pardoned", []sighting{{hereA, 1}, {thereB, 3}, {hereA, 4}}, 20 * time.Millisecond, 0,
			"100.64.4.2 (1) -> 2001:db8:100:3::2 (1) -> 100.64.4.2 (1)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tr trail
			for _, s := range test.seen {
				tr.see(s.place, atMS(s.ms))
			}
			if got := tr.overlap(test.grace); got != test.want {
				t.Errorf("overlap %v, want %v", got, test.want)
			}
			if got := tr.String(); got != test.text {
				t.Errorf("%q, want %q", got, test.text)
			}
		})
	}
}

// lispFrame is an Ethernet frame with a LISP data packet.
func lispFrame(from, to, innerFrom, innerTo netip.Addr) []byte {
	header := func(from, to netip.Addr, proto byte) []byte {
		if from.Is4() {
			b := make([]byte, 20)
			b[0], b[9] = 0x45, proto
			copy(b[12:], from.AsSlice())
			copy(b[16:], to.AsSlice())
			return b
		}
		b := make([]byte, 40)
		b[0], b[6] = 0x60, proto
		copy(b[8:], from.AsSlice())
		copy(b[24:], to.AsSlice())
		return b
	}
	b := make([]byte, 14)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	if from.Is6() {
		binary.BigEndian.PutUint16(b[12:], 0x86dd)
	}
	b = append(b, header(from, to, 17)...)
	b = binary.BigEndian.AppendUint16(b, 40000)
	b = binary.BigEndian.AppendUint16(b, 4341)
	b = append(b, make([]byte, 12)...)
	return append(b, header(innerFrom, innerTo, 17)...)
}

func TestParseLISPData(t *testing.T) {
	vm6, far6 := netip.MustParseAddr("2001:db8:e1d:1::1"), netip.MustParseAddr("2001:db8:c::10")
	for _, want := range []lispData{{hereA, far, vmX, far}, {thereB, vm6, vm6, far6}, {hereA, far, vm6, far6}, {thereB, vm6, far, vmX}} {
		frame := lispFrame(want.from, want.to, want.innerFrom, want.innerTo)
		got, ok := parseLISPData(frame)
		if !ok || got != want {
			t.Errorf("%+v, %v; want %+v", got, ok, want)
		}
		for n := range len(frame) {
			if got, ok := parseLISPData(frame[:n]); ok {
				t.Errorf("%d of %d bytes: %+v", n, len(frame), got)
			}
		}
		frame[13] ^= 0x55
		if _, ok := parseLISPData(frame); ok {
			t.Error("another protocol is taken for LISP")
		}
	}
}

// FuzzParseLISPData: whatever is on the wire, it does not trip, and what it says is in the frame.
func FuzzParseLISPData(f *testing.F) {
	f.Add(lispFrame(hereA, far, vmX, far))
	f.Add(lispFrame(thereB, thereB, thereB, thereB))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, ok := parseLISPData(b)
		if ok && (!d.from.IsValid() || !d.to.IsValid() || !d.innerFrom.IsValid() || !d.innerTo.IsValid()) {
			t.Errorf("%+v is taken for whole", d)
		}
	})
}

func newWireTrails(eids ...netip.Addr) *wireTrails {
	w := &wireTrails{speaks: map[netip.Addr]*trail{}, sent: map[sentTo]*trail{}, which: map[netip.Addr]bool{},
		gates: map[netip.Addr]string{netip.MustParseAddr("100.64.5.2"): "detr1", netip.MustParseAddr("2001:db8:100:5::2"): "detr1"}}
	for _, e := range eids {
		w.which[e] = true
	}
	return w
}

func TestWireTrailsJudge(t *testing.T) {
	gate4, gate6 := netip.MustParseAddr("100.64.5.2"), netip.MustParseAddr("2001:db8:100:5::2")
	out := func(ms int, rloc netip.Addr) (lispData, time.Time) { return lispData{rloc, gate4, vmX, far}, atMS(ms) }
	in := func(ms int, gate, rloc netip.Addr) (lispData, time.Time) {
		return lispData{gate, rloc, far, vmX}, atMS(ms)
	}
	good := func(w *wireTrails) {
		w.packet(out(1, hereA))
		w.packet(in(2, gate4, hereA))
		w.packet(lispData{hereA, thereB, far, vmX}, atMS(3)) // redirected: the old hypervisor is no D-ETR
		w.packet(lispData{gate4, far, vmX, far}, atMS(3))    // passed on to another network
		w.packet(in(4, gate6, thereB))
		w.packet(in(5, gate4, hereA)) // it was on its way
		w.packet(in(6, gate6, thereB))
		w.packet(out(7, thereB))
	}
	for _, test := range []struct {
		name string
		then func(*wireTrails)
		want []string // in the problems
	}{
		{"as it should be", func(*wireTrails) {}, nil},
		{"speaks from the old place again", func(w *wireTrails) { w.packet(out(8, hereA)) }, []string{"packets of 198.51.100.30 came from"}},
		{"speaks from a third place", func(w *wireTrails) { w.packet(out(8, far)) }, []string{"packets of 198.51.100.30 came from"}},
		{"sent to the old place much later", func(w *wireTrails) { w.packet(in(500, gate4, hereA)) }, []string{"detr1 sent packets for 198.51.100.30"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWireTrails(vmX)
			good(w)
			test.then(w)
			got := w.judge(vmX, hereA, thereB)
			if len(got) != len(test.want) {
				t.Fatalf("%q, want %q", got, test.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("%q, want %q", got[i], test.want[i])
				}
			}
		})
	}
	if got := newWireTrails(vmX).judge(vmX, hereA, thereB); len(got) != 2 {
		t.Errorf("of what was never seen: %q", got)
	}
}

func TestTableTrails(t *testing.T) {
	const eid = "198.51.100.30/32"
	row := func(version uint16, at ...netip.Addr) map[string]mappingRow {
		m := mappingRow{EID: eid, Version: version, rlocs: map[netip.Addr]bool{}}
		for _, a := range at {
			m.rlocs[a] = true
		}
		return map[string]mappingRow{eid: m}
	}
	for _, test := range []struct {
		name    string
		reads   []map[string]mappingRow
		seen    []string
		misgone int
	}{
		{"moves", []map[string]mappingRow{row(3, hereA), row(3, hereA), row(4, thereB)}, nil, 0},
		{"never moves", []map[string]mappingRow{row(3, hereA)}, nil, 1},
		{"in two places", []map[string]mappingRow{row(3, hereA), row(3, hereA, thereB), row(4, thereB)}, []string{"ms1: 198.51.100.30/32 is at [100.64.4.2 2001:db8:100:3::2]"}, 0},
		{"nowhere", []map[string]mappingRow{row(3, hereA), {}, {}, row(4, thereB)}, []string{"ms1: 198.51.100.30/32 is nowhere (2 times)"}, 0},
		{"comes back", []map[string]mappingRow{row(3, hereA), row(4, thereB), row(5, hereA), row(6, thereB)}, nil, 1},
		{"an older version", []map[string]mappingRow{row(3, hereA), row(2, thereB)}, []string{"ms1: 198.51.100.30/32 went from version 3 back to 2"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := newTableTrails()
			for i, r := range test.reads {
				tt.look("ms1", r, []string{eid}, []netip.Addr{hereA, thereB}, atMS(i))
			}
			if diff := cmp.Diff(test.seen, tt.seen()); diff != "" {
				t.Error(diff)
			}
			if got := tt.judge(eid, hereA, thereB); len(got) != test.misgone {
				t.Errorf("%q", got)
			}
		})
	}
}
