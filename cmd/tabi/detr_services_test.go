package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// translating is a D-ETR's list of services and its data plane's counters.
type translating struct {
	number         uint64
	states         []detr.ServiceState
	counts         []fib.ServiceCount
	err            error
	slow           time.Duration // that reading the counts takes
	lists, counts_ atomic.Int32
}

func (s *translating) list(have uint64) (uint64, []detr.ServiceState) {
	if have == s.number {
		return have, nil
	}
	s.lists.Add(1)
	return s.number, s.states
}

func (s *translating) read() ([]fib.ServiceCount, error) {
	s.counts_.Add(1)
	time.Sleep(s.slow)
	return s.counts, s.err
}

func service(out, in string) fib.Service {
	return fib.Service{Outside: netip.MustParsePrefix(out), Inside: netip.MustParsePrefix(in)}
}

func tables646(s *translating) *serviceStatistics {
	return &serviceStatistics{list: s.list, counts: s.read, gauges: func() []family {
		return append(dropFamilies(map[string]fib.Count{"pool": {Packets: 3, Bytes: 120}, "ttl-rate": {}}),
			counterFamily([]counted{{"slow path", func() map[string]uint64 { return map[string]uint64{"map646_relay": 2} }}}),
			gauge("tabi_detr_serving", "1 while it serves.", 1))
	}}
}

func someServices() *translating {
	a, b, c := service("198.51.100.10/32", "2001:db8:e1d::a/128"), service("203.0.113.0/28", "2001:db8:e1d::30/124"), service("2001:db8:5e::a/128", "2001:db8:e1d::a/128")
	d := service("198.51.100.12/32", "2001:db8:e1d::c/128") // never used
	return &translating{
		number: 1,
		states: []detr.ServiceState{
			{Service: a, Version: 7, Since: time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)},
			{Service: d, Version: 1, Since: time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)},
			{Service: b, Version: 1, Why: "in no service prefix"},
			{Service: c, Before: true, Since: time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC)},
		},
		// Not in order, and one of a service that is gone.
		counts: []fib.ServiceCount{
			{Service: c, In: fib.Count{Packets: 5, Bytes: 500}},
			{Service: service("192.0.2.1/32", "2001:db8:e1d::1/128"), In: fib.Count{Packets: 9}},
			{Service: a, In: fib.Count{Packets: 1, Bytes: 60}, Out: fib.Count{Packets: 2, Bytes: 1500}},
		},
	}
}

func TestServiceTables(t *testing.T) {
	s := someServices()
	st := tables646(s)
	v, err := st.Table(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(v.(admin.Encoded).Body, &got); err != nil {
		t.Fatalf("%v in %s", err, v.(admin.Encoded).Body)
	}
	count := func(p, b float64) any { return map[string]any{"packets": p, "bytes": b} }
	want := []any{
		map[string]any{"outside": "198.51.100.10/32", "inside": "2001:db8:e1d::a/128", "kind": "ipv4", "version": 7., "state": "translated",
			"since": "2026-11-23T04:05:06Z", "in": count(1, 60), "out": count(2, 1500)},
		map[string]any{"outside": "198.51.100.12/32", "inside": "2001:db8:e1d::c/128", "kind": "ipv4", "version": 1., "state": "translated",
			"since": "2026-11-23T04:05:06Z", "in": count(0, 0), "out": count(0, 0)},
		map[string]any{"outside": "203.0.113.0/28", "inside": "2001:db8:e1d::30/124", "kind": "ipv4", "version": 1., "state": "ignored: in no service prefix",
			"since": "0001-01-01T00:00:00Z", "in": count(0, 0), "out": count(0, 0)},
		map[string]any{"outside": "2001:db8:5e::a/128", "inside": "2001:db8:e1d::a/128", "kind": "one-to-one", "version": 0., "state": "translated, as before the restart",
			"since": "2026-11-23T04:00:00Z", "in": count(5, 500), "out": count(0, 0)},
	}
	if d := cmp.Diff(any(want), got); d != "" {
		t.Errorf("table (-want +got):\n%s", d)
	}

	w := httptest.NewRecorder()
	st.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := `# HELP tabi_drops_packets_total Packets that the kernel's data plane has dropped, by reason.
# TYPE tabi_drops_packets_total counter
tabi_drops_packets_total{reason="pool"} 3
tabi_drops_packets_total{reason="ttl-rate"} 0
# HELP tabi_drops_bytes_total Bytes of those packets.
# TYPE tabi_drops_bytes_total counter
tabi_drops_bytes_total{reason="pool"} 120
tabi_drops_bytes_total{reason="ttl-rate"} 0
# HELP tabi_events_total What the parts of the daemon have counted, by name; see tabi show counters.
# TYPE tabi_events_total counter
tabi_events_total{part="slow path",counter="map646_relay"} 2
# HELP tabi_detr_serving 1 while it serves.
# TYPE tabi_detr_serving gauge
tabi_detr_serving 1
# HELP tabi_service_packets_total Packets translated for a service address that was ever used; in: from clients, out: to clients.
# TYPE tabi_service_packets_total counter
tabi_service_packets_total{service="198.51.100.10",inside="2001:db8:e1d::a",direction="in"} 1
tabi_service_packets_total{service="198.51.100.10",inside="2001:db8:e1d::a",direction="out"} 2
tabi_service_packets_total{service="2001:db8:5e::a",inside="2001:db8:e1d::a",direction="in"} 5
tabi_service_packets_total{service="2001:db8:5e::a",inside="2001:db8:e1d::a",direction="out"} 0
# HELP tabi_service_bytes_total Bytes of those packets, as they are outside.
# TYPE tabi_service_bytes_total counter
tabi_service_bytes_total{service="198.51.100.10",inside="2001:db8:e1d::a",direction="in"} 60
tabi_service_bytes_total{service="198.51.100.10",inside="2001:db8:e1d::a",direction="out"} 1500
tabi_service_bytes_total{service="2001:db8:5e::a",inside="2001:db8:e1d::a",direction="in"} 500
tabi_service_bytes_total{service="2001:db8:5e::a",inside="2001:db8:e1d::a",direction="out"} 0
`
	if d := cmp.Diff(text, w.Body.String()); d != "" {
		t.Errorf("/metrics (-want +got):\n%s", d)
	}
	if got := w.Header().Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
}

// However often somebody asks, the data plane is read and the table made once a second; and who asks is not kept waiting
// by a data plane that is slow to answer, nor told old figures as new ones.
func TestServiceTablesAreMadeOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := someServices()
		st := tables646(s)
		ask := func() admin.Encoded {
			t.Helper()
			v, err := st.Table(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return v.(admin.Encoded)
		}
		first := ask()
		for range 99 {
			time.Sleep(10 * time.Millisecond)
			if e := ask(); e.Tag != first.Tag || &e.Body[0] != &first.Body[0] {
				t.Fatal("made anew")
			}
		}
		if n := s.counts_.Load(); n != 1 {
			t.Errorf("the data plane was read %d times in a second", n)
		}
		time.Sleep(10 * time.Millisecond)
		s.counts[0].In.Packets++
		second := ask()
		if second.Tag == first.Tag || !strings.Contains(string(second.Body), `"packets":6,`) || !strings.Contains(string(first.Body), `"packets":5,`) {
			t.Errorf("after a second: tag %s and %s, %s", first.Tag, second.Tag, second.Body)
		}
		if n := s.lists.Load(); n != 1 {
			t.Errorf("the services were listed %d times, and never changed", n)
		}

		// A processor that has no time: the old figures, after a moment.
		s.slow = time.Minute
		time.Sleep(time.Second)
		began := time.Now()
		if e := ask(); e.Tag != second.Tag || time.Since(began) != statisticsPatience {
			t.Errorf("tag %s instead of %s, after %v", e.Tag, second.Tag, time.Since(began))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		s.slow = 0
		if e := ask(); e.Tag == second.Tag {
			t.Error("still the old figures")
		}
		if n := s.counts_.Load(); n != 4 {
			t.Errorf("the data plane was read %d times", n)
		}

		s.err = errors.New("the data plane is closed")
		time.Sleep(time.Minute)
		if _, err := st.Table(context.Background()); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDropRows(t *testing.T) {
	got := dropRows(map[string]fib.Count{"route": {}, "pool": {Packets: 2, Bytes: 100}, "ttl-rate": {Packets: 7, Bytes: 700}},
		map[string]uint64{"drop_translate": 4, "drop_bad_packet": 1, "up_miss": 9, "map646_relay": 4, "map646_translated_4to6": 8, "map646_no_pool": 0})
	want := []dropRow{{"kernel", "ttl-rate", 7, 700}, {"kernel", "pool", 2, 100}, {"map646", "relay", 4, 0}, {"slow path", "bad_packet", 1, 0}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What a hundred thousand services cost once a second, whoever asks how often.
func BenchmarkServiceTable(b *testing.B) {
	s := &translating{number: 1}
	for i := range 100_000 {
		out, in := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.MustParseAddr("2001:db8:e1d::").As16()
		in[13], in[14], in[15] = byte(i>>16), byte(i>>8), byte(i)
		k := fib.Service{Outside: netip.PrefixFrom(out, 32), Inside: netip.PrefixFrom(netip.AddrFrom16(in), 128)}
		s.states = append(s.states, detr.ServiceState{Service: k, Since: time.Now()})
		if i%100 == 0 {
			s.counts = append(s.counts, fib.ServiceCount{Service: k, In: fib.Count{Packets: uint64(i), Bytes: uint64(i) << 10}})
		}
	}
	st := tables646(s)
	for which, name := range map[int]string{formJSON: "json", formText: "text"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				st.taken = time.Time{}
				e, err := st.form(b.Context(), which)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(e.Body)))
			}
		})
	}
	if testing.Verbose() {
		fmt.Println(len(st.tables[formJSON].body), "bytes")
	}
}
