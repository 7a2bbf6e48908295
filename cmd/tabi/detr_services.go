package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// serviceStatistics encode what a D-ETR has translated, for `tabi show services` and for Prometheus: at most once in
// statisticsAge, whoever asks how often. There may be a hundred thousand services, and somebody who asks a hundred times
// a second: that must cost the packets nothing. What does not change between two snapshots is encoded once for both.
type serviceStatistics struct {
	// list is [detr.DETR.Services].
	list func(have uint64) (number uint64, all []detr.ServiceState)
	// counts are the data plane's, sorted by service address or not; nil without a data plane that counts.
	counts func() ([]fib.ServiceCount, error)
	// gauges are the figures beside the services, for Prometheus: by family, then by labels.
	gauges func() []family

	mu      sync.Mutex
	number  uint64
	rows    []statisticsRow
	taken   time.Time // when reading the counts began
	snap    uint64    // number of the snapshot; 0: there is none
	err     error     // of the last reading
	reading chan struct{}
	tables  [2]encodedTable
}

// encodedTable is a form of the snapshot of that number.
type encodedTable struct {
	snap uint64
	body []byte
}

const (
	formJSON = iota
	formText
)

const (
	// statisticsAge is how old figures may be before they are read again. They are the data plane's, which are up to
	// a second old themselves.
	statisticsAge = time.Second
	// statisticsPatience is how long newer figures are waited for where there are older ones: the data plane reads
	// them when the processor has nothing better to do.
	statisticsPatience = time.Second
)

// statisticsRow is a service, and what of it does not change from one snapshot to the next.
type statisticsRow struct {
	outside netip.Prefix
	json    string // up to the figures
	labels  string
	counted bool // it is translated here
	in, out fib.Count
}

func newServiceStatistics(x *detr.DETR, counts func() ([]fib.ServiceCount, error), gauges func() []family) *serviceStatistics {
	return &serviceStatistics{list: x.Services, counts: counts, gauges: gauges}
}

// Table is the table "services".
func (s *serviceStatistics) Table(ctx context.Context) (any, error) { return s.form(ctx, formJSON) }

// ServeHTTP answers Prometheus, in its text format (version 0.0.4).
func (s *serviceStatistics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e, err := s.form(r.Context(), formText)
	if err != nil {
		admin.Fail(w, http.StatusInternalServerError, err)
		return
	}
	e.ServeHTTP(w, r)
}

// form returns the snapshot in one of its forms. Whoever comes while it is made waits for the same.
func (s *serviceStatistics) form(ctx context.Context, which int) (admin.Encoded, error) {
	if err := s.refresh(ctx); err != nil {
		return admin.Encoded{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.tables[which]
	e := admin.Encoded{Tag: fmt.Sprintf("%x-%d-%d", s.taken.UnixNano(), s.snap, which)}
	if which == formText {
		e.Type = "text/plain; version=0.0.4; charset=utf-8"
	}
	if t.snap != s.snap {
		atOrdinaryPriority(func() {
			// A new slice each time: somebody may still be sending the old one.
			b := make([]byte, 0, len(t.body)+len(t.body)/16+1<<10)
			if which == formText {
				b = s.appendText(b)
			} else {
				b = s.appendJSON(b)
			}
			*t = encodedTable{s.snap, b}
		})
	}
	e.Body = t.body
	return e, nil
}

// atOrdinaryPriority runs f on a thread without the daemon's priority, and waits for it. Not below that of ordinary
// processes: a thread that does not get the processor would keep a garbage collection waiting, and with it the daemon.
func atOrdinaryPriority(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		// Where that is refused, f runs as everything else does.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0)
		f()
	}()
	<-done
}

// refresh reads the figures again if they are old.
func (s *serviceStatistics) refresh(ctx context.Context) error {
	s.mu.Lock()
	if s.snap > 0 && time.Since(s.taken) < statisticsAge {
		s.mu.Unlock()
		return nil
	}
	if s.reading == nil {
		s.reading = make(chan struct{})
		go s.read(time.Now())
	}
	reading := s.reading
	var patience <-chan time.Time
	if s.snap > 0 {
		patience = time.After(statisticsPatience)
	}
	s.mu.Unlock()
	select {
	case <-reading:
	case <-patience:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// read makes a new snapshot.
func (s *serviceStatistics) read(now time.Time) {
	var counts []fib.ServiceCount
	var err error
	if s.counts != nil {
		counts, err = s.counts()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err == nil {
		if number, all := s.list(s.number); number != s.number {
			s.number = number
			s.rows = make([]statisticsRow, len(all))
			for i, t := range all {
				s.rows[i] = newStatisticsRow(t)
			}
		}
		s.count(counts)
		s.taken = now
		s.snap++
	} else {
		s.err = fmt.Errorf("services: %w", err)
	}
	close(s.reading)
	s.reading = nil
}

// count gives the rows, which are sorted, their counts.
func (s *serviceStatistics) count(counts []fib.ServiceCount) {
	byAddress := func(a, b fib.ServiceCount) int { return a.Service.Outside.Compare(b.Service.Outside) }
	if !slices.IsSortedFunc(counts, byAddress) {
		counts = slices.SortedFunc(slices.Values(counts), byAddress)
	}
	at := 0
	for i := range s.rows {
		r := &s.rows[i]
		for at < len(counts) && counts[at].Service.Outside.Compare(r.outside) < 0 {
			at++
		}
		if at < len(counts) && counts[at].Service.Outside == r.outside {
			r.in, r.out = counts[at].In, counts[at].Out
		} else {
			r.in, r.out = fib.Count{}, fib.Count{}
		}
	}
}

// idle reports whether nothing was ever translated for it.
func (r *statisticsRow) idle() bool { return r.in == fib.Count{} && r.out == fib.Count{} }

func newStatisticsRow(t detr.ServiceState) statisticsRow {
	state, since := "translated", t.Since
	switch {
	case t.Why != "":
		state = "ignored: " + t.Why
	case t.Before:
		state = "translated, as before the restart"
	}
	kind := ""
	if t.Valid() == nil {
		kind = t.Kind().String()
	}
	b := append([]byte(`{"outside":"`), t.Outside.String()...)
	b = append(append(b, `","inside":"`...), t.Inside.String()...)
	b = append(append(b, `","kind":"`...), kind...)
	b = strconv.AppendUint(append(b, `","version":`...), uint64(t.Version), 10)
	b = append(append(b, `,"state":"`...), state...)
	b = append(append(b, `","since":"`...), since.Format(time.RFC3339Nano)...)
	b = append(b, `","in":{"packets":`...)
	return statisticsRow{
		outside: t.Outside, json: string(b), counted: t.Why == "",
		labels: `{service="` + hostOr(t.Outside) + `",inside="` + hostOr(t.Inside) + `",direction="`,
	}
}

// hostOr is a prefix as people write it: a host without its length.
func hostOr(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (s *serviceStatistics) appendJSON(b []byte) []byte {
	b = append(b, '[')
	for i := range s.rows {
		r := &s.rows[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, r.json...)
		if r.idle() {
			b = append(b, `0,"bytes":0},"out":{"packets":0,"bytes":0}}`...)
			continue
		}
		b = strconv.AppendUint(b, r.in.Packets, 10)
		b = strconv.AppendUint(append(b, `,"bytes":`...), r.in.Bytes, 10)
		b = strconv.AppendUint(append(b, `},"out":{"packets":`...), r.out.Packets, 10)
		b = strconv.AppendUint(append(b, `,"bytes":`...), r.out.Bytes, 10)
		b = append(b, `}}`...)
	}
	return append(b, ']', '\n')
}

// family is a family of figures for Prometheus.
type family struct {
	name, help, kind string // kind: counter or gauge
	labels           []string
	values           []sample
}

// sample is one figure; labels stand in the order of its family's.
type sample struct {
	labels []string
	value  uint64
}

func (s *serviceStatistics) appendText(b []byte) []byte {
	if s.gauges != nil {
		for _, f := range s.gauges() {
			b = f.append(b)
		}
	}
	for _, f := range []struct {
		name, help string
		of         func(fib.Count) uint64
	}{
		{"tabi_service_packets_total", "Packets translated for a service address that was ever used; in: from clients, out: to clients.", func(c fib.Count) uint64 { return c.Packets }},
		{"tabi_service_bytes_total", "Bytes of those packets, as they are outside.", func(c fib.Count) uint64 { return c.Bytes }},
	} {
		b = appendHead(b, f.name, f.help, "counter")
		for i := range s.rows {
			r := &s.rows[i]
			if !r.counted || r.idle() { // of many services few are in use, and Prometheus keeps what it is told
				continue
			}
			b = append(append(append(b, f.name...), r.labels...), `in"} `...)
			b = append(strconv.AppendUint(b, f.of(r.in), 10), '\n')
			b = append(append(append(b, f.name...), r.labels...), `out"} `...)
			b = append(strconv.AppendUint(b, f.of(r.out), 10), '\n')
		}
	}
	return b
}

func appendHead(b []byte, name, help, kind string) []byte {
	return fmt.Appendf(b, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
}

func (f family) append(b []byte) []byte {
	b = appendHead(b, f.name, f.help, f.kind)
	for _, v := range f.values {
		b = append(b, f.name...)
		for i, l := range v.labels {
			b = append(b, ",{"[btoi(i == 0)])
			b = append(append(b, f.labels[i]...), '=')
			b = strconv.AppendQuote(b, l) // names of counters: no character that the two quote differently
		}
		if len(v.labels) > 0 {
			b = append(b, '}')
		}
		b = append(strconv.AppendUint(append(b, ' '), v.value, 10), '\n')
	}
	return b
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// counterFamily are the counters of the parts around a D-ETR.
func counterFamily(parts []counted) family {
	f := family{name: "tabi_events_total", help: "What the parts of the daemon have counted, by name; see tabi show counters.", kind: "counter", labels: []string{"part", "counter"}}
	for _, p := range parts {
		c := p.read()
		for _, name := range slices.Sorted(maps.Keys(c)) {
			f.values = append(f.values, sample{[]string{p.part, name}, c[name]})
		}
	}
	return f
}

// dropFamilies are the packets that the kernel's data plane has dropped.
func dropFamilies(drops map[string]fib.Count) []family {
	packets := family{name: "tabi_drops_packets_total", help: "Packets that the kernel's data plane has dropped, by reason.", kind: "counter", labels: []string{"reason"}}
	bytes := family{name: "tabi_drops_bytes_total", help: "Bytes of those packets.", kind: "counter", labels: packets.labels}
	for _, name := range slices.Sorted(maps.Keys(drops)) {
		packets.values = append(packets.values, sample{[]string{name}, drops[name].Packets})
		bytes.values = append(bytes.values, sample{[]string{name}, drops[name].Bytes})
	}
	return []family{packets, bytes}
}

// dropRow is a line of "show drops".
type dropRow struct {
	Part    string `json:"part"`
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes,omitempty"` // where they are counted
}

// dropRows are the reasons for which packets were dropped, those that there were.
func dropRows(drops map[string]fib.Count, inGo map[string]uint64) []dropRow {
	out := []dropRow{}
	for name, c := range drops {
		if c.Packets > 0 {
			out = append(out, dropRow{"kernel", name, c.Packets, c.Bytes})
		}
	}
	for name, n := range inGo {
		if reason, ok := strings.CutPrefix(name, "drop_"); ok && n > 0 && reason != "translate" {
			out = append(out, dropRow{"slow path", reason, n, 0})
		}
	}
	// What the slow path counts as "translate" in sum, by reason.
	for r := range map646.NumReasons {
		if n := inGo["map646_"+strings.ReplaceAll(r.String(), "-", "_")]; n > 0 && !r.Translated() {
			out = append(out, dropRow{"map646", r.String(), n, 0})
		}
	}
	slices.SortFunc(out, func(a, b dropRow) int {
		return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// gauge is one figure without labels.
func gauge(name, help string, v uint64) family {
	return family{name: name, help: help, kind: "gauge", values: []sample{{value: v}}}
}
