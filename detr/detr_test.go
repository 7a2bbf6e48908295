package detr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/testnet/simnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

var (
	_ lisp.Sink = (*DETR)(nil)
	_ Endpoint  = (*control.Endpoint)(nil)
)

// world is a D-ETR in a network of its own, with an external Map-Server and Map-Resolver, in virtual time.
type world struct {
	t     *testing.T
	net   *simnet.Network
	d     *DETR
	dp    *plane
	sp    *waiting
	up    *upstream
	start time.Time
	stop  func()

	mu  sync.Mutex
	log []string // Map-Registers and Map-Requests that reached the outside
	// answers are what the Map-Resolver says of EIDs.
	answers map[lisp.EID]lisp.Mapping
	silent  bool // the Map-Server does not answer
}

func newWorld(t *testing.T, known []fib.Route, change ...func(*Config)) *world {
	t.Helper()
	w := &world{
		t: t, net: simnet.New(1), dp: newPlane(known...), sp: &waiting{}, start: time.Now(), answers: make(map[lisp.EID]lisp.Mapping),
	}
	w.up = &upstream{start: w.start}
	cfg := config()
	cfg.External, cfg.ExternalResolvers = []Server{external}, []netip.Addr{addr(mr1)}
	for _, f := range change {
		f(&cfg)
	}
	ep := control.New(slog.New(slog.DiscardHandler), w.listen("100.64.5.2"), w.listen("2001:db8:100:5::2"))
	d, err := New(cfg, ep, w.dp, w.sp, w.up, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.d = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.serve(external.Addr, w.mapServer)
	w.serve(addr(mr1), w.mapResolver)
	synctest.Wait()
	return w
}

func (w *world) listen(a string) net.PacketConn {
	w.t.Helper()
	c, err := w.net.Listen(netip.AddrPortFrom(addr(a), lisp.ControlPort))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// serve answers datagrams at an address until the bubble ends.
func (w *world) serve(at netip.Addr, answer func(from net.Addr, b []byte) []byte) {
	c := w.listen(at.String())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if out := answer(from, b[:n]); out != nil {
				if _, err := c.WriteTo(out, from); err != nil && !errors.Is(err, net.ErrClosed) {
					w.t.Error(err)
				}
			}
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf("%v ", time.Since(w.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (w *world) took() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log
	w.log = nil
	return l
}

func (w *world) mapServer(_ net.Addr, b []byte) []byte {
	m, err := lisp.Decode(b)
	if err != nil {
		w.t.Error(err)
		return nil
	}
	r, ok := m.(*lisp.MapRegister)
	if !ok {
		w.note("%T", m)
		return nil
	}
	if err := lisp.Verify(b, r, external.Key); err != nil {
		w.t.Error(err)
	}
	w.note("register ttl %d", r.Records[0].TTL)
	w.mu.Lock()
	silent := w.silent
	w.mu.Unlock()
	if silent {
		return nil
	}
	out, err := lisp.AppendSigned(nil, &lisp.MapNotify{Nonce: r.Nonce, Records: r.Records}, external.Key)
	if err != nil {
		w.t.Error(err)
	}
	return out
}

func (w *world) mapResolver(_ net.Addr, b []byte) []byte {
	m, err := lisp.Decode(b)
	if err != nil {
		w.t.Error(err)
		return nil
	}
	ecm, ok := m.(*lisp.ECM)
	if !ok {
		w.t.Errorf("%T outside an ECM", m)
		return nil
	}
	if m, err = ecm.Message(); err != nil {
		w.t.Error(err)
		return nil
	}
	r := m.(*lisp.MapRequest)
	w.note("request %v pitr %t smr %t", r.Records[0].EID, r.PITR, r.SMRInvoked)
	if r.SourceEID.IsValid() {
		w.t.Errorf("source EID %v", r.SourceEID)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.answers[r.Records[0].EID]
	if !ok {
		return nil
	}
	out, err := lisp.Append(nil, &lisp.MapReply{Nonce: r.Nonce, Records: []lisp.Mapping{a}})
	if err != nil {
		w.t.Error(err)
	}
	return out
}

func (w *world) apply(d lisp.Delta) {
	w.t.Helper()
	if err := w.d.Apply(context.Background(), d); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) wantServed(what string, want ...string) {
	w.t.Helper()
	synctest.Wait()
	if d := cmp.Diff(want, w.up.take(), equal); d != "" {
		w.t.Errorf("%s: upstream (-want +got):\n%s", what, d)
	}
}

// TestServing: the aggregates are announced and registered while the D-ETR can serve them, and only then.
func TestServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		sleep := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		w.d.DataPlaneUp(true)
		w.d.FeedAlive(true)
		w.apply(lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.10/32", 1, "100.64.1.2")}})
		sleep(10 * time.Second)
		w.wantServed("the feed has not said everything")
		w.apply(lisp.Delta{Full: true, Put: []lisp.Mapping{mapping("198.51.100.10/32", 1, "100.64.1.2")}})
		w.wantServed("all is well", "10s true")
		sleep(65 * time.Second)
		if d := cmp.Diff([]string{"10s register ttl 1440", "1m10s register ttl 1440"}, w.took()); d != "" {
			t.Errorf("registrations: %s", d)
		}

		w.d.FeedAlive(false)
		w.wantServed("the feed is lost", "1m15s false")
		sleep(time.Second)
		w.d.FeedAlive(true)
		w.wantServed("the feed is back", "1m16s true")
		w.d.DataPlaneUp(false)
		w.wantServed("an interface is gone", "1m16s false")
		sleep(time.Minute)
		w.up.mu.Lock()
		w.up.broken = 2
		w.up.mu.Unlock()
		w.d.DataPlaneUp(true)
		sleep(3 * time.Second)
		w.wantServed("the announcement fails twice", "2m18s true")
		w.took()

		w.stop()
		w.wantServed("the end", "2m19s false")
		if d := cmp.Diff([]string{"2m19s register ttl 0"}, w.took()); d != "" {
			t.Errorf("last words: %s", d)
		}
		if got := w.dp.does("198.51.100.10/32"); got != "encapsulate 100.64.1.2" {
			t.Errorf("after the end: %q", got)
		}
	})
}

// TestWarmStart: with routes of before a restart the D-ETR serves at once, but not for ever without a feed.
func TestWarmStart(t *testing.T) {
	known := []fib.Route{{EID: eid("198.51.100.10/32"), Do: fib.Encap, Locators: locs("100.64.1.2"), Transit: true}}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, known)
		w.d.DataPlaneUp(true)
		w.wantServed("at once", "0s true")
		time.Sleep(time.Hour)
		w.wantServed("nobody feeds it", "2m0s false")
		if got := w.dp.does("198.51.100.10/32"); got != "encapsulate 100.64.1.2" {
			t.Errorf("the route: %q", got)
		}
		w.d.FeedAlive(true)
		w.apply(lisp.Delta{Full: true})
		w.wantServed("at last", "1h0m0s true")
		if got := w.dp.does("198.51.100.10/32"); got != "" {
			t.Errorf("the route: %q", got)
		}
		w.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, known)
		w.d.DataPlaneUp(true)
		time.Sleep(time.Minute)
		w.d.FeedAlive(true)
		w.apply(lisp.Delta{Full: true, Put: []lisp.Mapping{mapping("198.51.100.10/32", 1, "100.64.1.2")}})
		time.Sleep(time.Hour)
		w.wantServed("without a break", "0s true")
		w.stop()
	})
}

// TestRegistersUntilHeard: a Map-Server that does not answer is told again, ever more slowly.
func TestRegistersUntilHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.silent = true
		w.d.DataPlaneUp(true)
		w.d.FeedAlive(true)
		w.apply(lisp.Delta{Full: true})
		time.Sleep(10 * time.Second)
		if n := len(w.took()); n != 4 { // 0, 1, 3, 7 s
			t.Errorf("%d Map-Registers in 10 s", n)
		}
		w.stop()
	})
}

// TestPITR: packets to the outside, over a network that loses messages.
func TestPITR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		w.net.SetPath(simnet.Path{Delay: 20 * time.Millisecond})
		w.answers[eid("203.0.113.10/32")] = mapping("203.0.113.0/24", 1, "192.0.2.10")
		w.answers[eid("2001:db8:f0f0:1::10/128")] = lisp.Mapping{EID: eid("2001:db8:f0f0::/48"), TTL: 1, Action: lisp.ActNativelyForward}
		vm := addr("198.51.100.10")

		w.d.Miss(0, vm, addr("203.0.113.10"))
		w.d.Miss(0, vm, addr("203.0.113.10"))
		w.d.Miss(0, vm, addr("2001:db8:f0f0:1::10"))
		w.d.Miss(0, vm, addr("198.51.100.99")) // nobody's, inside the aggregate
		time.Sleep(39 * time.Millisecond)
		synctest.Wait()
		if d := cmp.Diff([]string{"reject 198.51.100.99/32"}, w.sp.take()); d != "" {
			t.Errorf("before the answers: %s", d)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if d := cmp.Diff([]string{"release 203.0.113.10/32", "release 2001:db8:f0f0:1::10/128"}, w.sp.take()); d != "" {
			t.Errorf("after the answers: %s", d)
		}
		if got := w.dp.does("203.0.113.0/24"); got != "encapsulate 192.0.2.10" {
			t.Errorf("LISP: %q", got)
		}
		if got := w.dp.does("2001:db8:f0f0::/48"); got != "native" {
			t.Errorf("not LISP: %q", got)
		}
		if got := w.dp.does("198.51.100.0/24"); got != "drop" {
			t.Errorf("own: %q", got)
		}
		want := []string{"20ms request 203.0.113.10/32 pitr true smr false", "20ms request 2001:db8:f0f0:1::10/128 pitr true smr false"}
		if d := cmp.Diff(want, w.took()); d != "" {
			t.Errorf("Map-Requests: %s", d)
		}

		// The other network moves its EIDs, and says so.
		w.answers[eid("203.0.113.0/32")] = mapping("203.0.113.0/24", 2, "192.0.2.20")
		smr, err := lisp.Append(nil, &lisp.MapRequest{
			SMR: true, DontReply: true, Nonce: 5, SourceEID: eid("203.0.113.0/24"), ITRRLOCs: []netip.Addr{addr("192.0.2.10")},
			Records: []lisp.RequestRecord{{EID: eid("198.51.100.10/32")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.from("192.0.2.10", smr)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.dp.does("203.0.113.0/24"); got != "encapsulate 192.0.2.20" {
			t.Errorf("after the SMR: %q", got)
		}
		if d := cmp.Diff([]string{"81ms request 203.0.113.0/32 pitr true smr true"}, w.took()); d != "" {
			t.Errorf("Map-Requests: %s", d)
		}

		// The data plane fails: packets must not circle between it and us.
		w.dp.mu.Lock()
		w.dp.broken = true
		w.dp.mu.Unlock()
		w.answers[eid("203.0.114.1/32")] = mapping("203.0.114.0/24", 1, "192.0.2.10")
		w.sp.take()
		w.d.Miss(0, vm, addr("203.0.114.1"))
		time.Sleep(time.Second)
		synctest.Wait()
		if d := cmp.Diff([]string{"reject 203.0.114.1/32"}, w.sp.take()); d != "" {
			t.Errorf("data plane broken: %s", d)
		}
	})
}

// from sends a datagram to the D-ETR.
func (w *world) from(a string, b []byte) {
	w.t.Helper()
	c, err := w.net.Listen(netip.AddrPortFrom(addr(a), lisp.ControlPort))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.64.5.2:4342"))); err != nil {
		w.t.Fatal(err)
	}
}

// TestReplyRate: a flood of Map-Requests is answered at a limited rate.
func TestReplyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		var mu sync.Mutex
		replies := 0
		w.net.Watch(func(d simnet.Datagram) {
			if d.From.Addr() == addr("100.64.5.2") && d.Payload[0]>>4 == uint8(lisp.TypeMapReply) {
				mu.Lock()
				replies++
				mu.Unlock()
			}
		})
		b, err := lisp.Append(nil, &lisp.MapRequest{
			Nonce: 5, ITRRLOCs: []netip.Addr{addr("192.0.2.99")}, Records: []lisp.RequestRecord{{EID: eid("198.51.100.10/32")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			for range 100 {
				w.from("192.0.2.98", b)
			}
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		if replies < replyBurst || replies > replyBurst+310 {
			t.Errorf("%d replies to 3000 Map-Requests in 300 ms", replies)
		}
	})
}

// TestProbesOfTheCloud: a D-ETR that strangers flood is not dead for its own cloud.
func TestProbesOfTheCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, withServices, func(c *Config) { c.CloudRLOCs = []netip.Prefix{prefix("100.64.0.0/16")} })
		defer w.stop()
		for _, s := range []Server{internal1, internal2} {
			w.inside(s.Addr)
		}
		w.d.DataPlaneUp(true)
		w.d.FeedAlive(true)
		w.apply(lisp.Delta{Full: true})
		flood, err := lisp.Append(nil, &lisp.MapRequest{
			Probe: true, Nonce: 5, ITRRLOCs: []netip.Addr{addr("192.0.2.98")}, Records: []lisp.RequestRecord{{EID: eid("198.51.100.10/32")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		xtr := w.listen("100.64.1.9")
		defer xtr.Close()
		stranger := w.listen("192.0.2.97")
		defer stranger.Close()
		for i := range 20 {
			for range 100 {
				w.from("192.0.2.98", flood)
			}
			if !w.probe(xtr, uint64(i+1), "2001:db8:64::/96") {
				t.Fatalf("probe %d of the cloud is not answered", i)
			}
			if i > 10 && w.probe(stranger, uint64(i+1), "198.51.100.0/24") {
				t.Fatal("the flood was none")
			}
		}
	})
}

// TestShows: the tables have the columns that reports read, and "explain" says where an EID lives.
func TestShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.d.DataPlaneUp(true)
		w.d.FeedAlive(true)
		time.Sleep(1234567 * time.Nanosecond)
		w.apply(lisp.Delta{Full: true, Put: []lisp.Mapping{mapping("198.51.100.10/32", 3, "100.64.1.2", "2001:db8:100:3::2")}})
		w.dp.use("198.51.100.10/32")
		w.answers[eid("203.0.113.10/32")] = mapping("203.0.113.0/24", 1, "192.0.2.10")
		w.d.Miss(0, addr("198.51.100.10"), addr("203.0.113.10"))
		synctest.Wait()
		table := func(name string) (rows []map[string]any) {
			t.Helper()
			v, err := w.d.Shows()[name](context.Background())
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &rows); err != nil {
				t.Fatal(err)
			}
			return rows
		}
		at := w.start.Add(1234567 * time.Nanosecond).Format(time.RFC3339Nano)
		want := []map[string]any{{
			"eid": "198.51.100.10/32", "version": 3.0, "rlocs": "100.64.1.2 1/100, 2001:db8:100:3::2 1/100", "ttl_minutes": 1440.0,
			"xtr_id": "00000000000000000000000000000003", "installed_at": at, "packets": 1.0,
		}}
		if d := cmp.Diff(want, table("mappings")); d != "" {
			t.Errorf("mappings: %s", d)
		}
		rows := table("map-cache")
		if len(rows) != 1 || rows[0]["eid"] != "203.0.113.0/24" || rows[0]["does"] != "encapsulate" || rows[0]["via"] != "map-reply 192.0.2.53" {
			t.Errorf("map-cache: %v", rows)
		}
		rows = table("registrations")
		if len(rows) != 2 || rows[0]["eid"] != "198.51.100.0/24" || rows[0]["state"] != "registered" || rows[0]["map_server"] != "192.0.2.7" {
			t.Errorf("registrations: %v", rows)
		}
		counters := make(map[string]float64)
		for _, r := range table("counters") {
			counters[r["name"].(string)] = r["value"].(float64)
		}
		if counters["serving"] != 1 || counters["map-notify/confirmed"] != 1 {
			t.Errorf("counters: %v", counters)
		}
		for e, says := range map[string]string{
			"198.51.100.10/32": "198.51.100.10/32 is at 100.64.1.2 1/100, 2001:db8:100:3::2 1/100, version 3",
			"198.51.100.11/32": "packets are dropped",
			"203.0.113.77/32":  "203.0.113.0/24: encapsulate (192.0.2.10 1/100)",
			"203.0.114.77/32":  "nothing is known",
		} {
			fs, err := w.d.Explain(context.Background(), eid(e))
			if err != nil || len(fs) == 0 || !strings.Contains(fs[0].Says, says) {
				t.Errorf("explain %s: %+v, %v", e, fs, err)
			}
		}
		w.stop()
		if _, err := w.d.Shows()["counters"](context.Background()); err == nil {
			t.Error("counters of a D-ETR that has ended")
		}
	})
}

func TestConfigErrors(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"no RLOC":                    func(c *Config) { c.RLOCs = nil },
		"no xTR-ID":                  func(c *Config) { c.XTRID = lisp.XTRID{} },
		"no aggregate":               func(c *Config) { c.Aggregates = nil },
		"is not valid":               func(c *Config) { c.Aggregates = []lisp.EID{{}} },
		"overlap":                    func(c *Config) { c.Aggregates = append(c.Aggregates, eid("198.51.100.0/25")) },
		"is no address":              func(c *Config) { c.Anchors = []lisp.Locator{{}} },
		"is inside an aggregate":     func(c *Config) { c.RLOCs = locs("198.51.100.1") },
		"Map-Server has no address":  func(c *Config) { c.External = []Server{{}} },
		"Map-Resolver has no addres": func(c *Config) { c.ExternalResolvers = []netip.Addr{{}} },
		"MTU 65536":                  func(c *Config) { c.MTU = 65536 },
	} {
		c := config()
		change(&c)
		if _, err := New(c, nil, newPlane(), nil, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
