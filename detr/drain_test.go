package detr

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

// inside plays a Map-Server of the own cloud, or an xTR: it answers Map-Registers and notes all.
func (w *world) inside(at netip.Addr) {
	w.serve(at, func(_ net.Addr, b []byte) []byte {
		m, err := lisp.Decode(b)
		if err != nil {
			w.t.Error(err)
			return nil
		}
		switch m := m.(type) {
		case *lisp.MapRegister:
			if err := lisp.Verify(b, m, internal1.Key); err != nil {
				w.t.Error(err)
			}
			var es []string
			for _, r := range m.Records {
				es = append(es, r.EID.String())
			}
			w.note("%v register %s ttl %d", at, strings.Join(es, " "), m.Records[0].TTL)
			if !m.Merge || !m.ProxyReply || !m.UseTTL {
				w.t.Errorf("Map-Register without a bit: %+v", m)
			}
			out, err := lisp.AppendSigned(nil, &lisp.MapNotify{Nonce: m.Nonce, Records: m.Records}, internal1.Key)
			if err != nil {
				w.t.Error(err)
			}
			return out
		case *lisp.MapRequest:
			var es []string
			for _, r := range m.Records {
				es = append(es, r.EID.String())
			}
			w.note("%v smr %t %s", at, m.SMR, strings.Join(es, " "))
		default:
			w.note("%v %T", at, m)
		}
		return nil
	})
}

// probe sends an RLOC-probe as an xTR does, and reports whether it is answered.
func (w *world) probe(c net.PacketConn, nonce uint64, e string) bool {
	w.t.Helper()
	b, err := lisp.Append(nil, &lisp.MapRequest{Probe: true, Nonce: nonce, ITRRLOCs: []netip.Addr{addr("100.64.1.2")}, Records: []lisp.RequestRecord{{EID: eid(e)}}})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.64.5.2:4342"))); err != nil {
		w.t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		w.t.Fatal(err)
	}
	in := make([]byte, 1<<12)
	n, _, err := c.ReadFrom(in)
	if err != nil {
		return false
	}
	m, err := lisp.Decode(in[:n])
	if r, ok := m.(*lisp.MapReply); !ok || err != nil || !r.Probe || r.Nonce != nonce || len(r.Records) != 1 || !r.Records[0].EID.Contains(eid(e)) {
		w.t.Errorf("%+v, %v", m, err)
		return false
	}
	return true
}

// TestDrain: a drained D-ETR is withdrawn everywhere, inside the cloud too, and stays so over a restart; it goes on
// forwarding, and nobody who probes it hears from it.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	const inHouse = "198.51.100.64/26 203.0.113.0/26 2001:db8:5e::/48 2001:db8:64::/96"
	synctest.Test(t, func(t *testing.T) {
		drained := func(w *world) Status {
			t.Helper()
			s, err := w.d.Status(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		// inOrder are the notes without those that make no difference.
		began := func() *world {
			w := newWorld(t, nil, withServices, func(c *Config) { c.StateDir = dir })
			for _, a := range []string{"100.64.9.1", "100.64.9.2", "100.64.1.2", "2001:db8:100:2::2"} {
				w.inside(addr(a))
			}
			w.d.DataPlaneUp(true)
			w.d.FeedAlive(true)
			w.apply(lisp.Delta{Full: true, Put: []lisp.Mapping{
				mapping("198.51.100.10/32", 1, "100.64.1.2", "2001:db8:100:2::2"), mapping("198.51.100.11/32", 2, "100.64.1.2"),
				told("203.0.113.10/32", "2001:db8:e1d::a/128", 1), told("192.0.2.1/32", "2001:db8:e1d::b/128", 1),
			}})
			return w
		}
		w := began()
		w.wantServed("at first", "0s true")
		xtr := w.listen("100.64.1.9")
		defer xtr.Close()
		for i, e := range []string{"203.0.113.0/26", "203.0.113.10/32", "2001:db8:64::/96", "2001:db8:64::c000:201/128", "198.51.100.0/24"} {
			if !w.probe(xtr, uint64(i+1), e) {
				t.Errorf("a probe for %s is not answered", e)
			}
		}
		if s := drained(w); s.State != "serving" || s.Withdrawn || s.Registered != 3 || s.Servers != 3 || s.Services != 1 || s.Ignored != 1 {
			t.Errorf("status %+v", s)
		}
		time.Sleep(25 * time.Second)
		got := w.took()
		slices.Sort(got)
		want := []string{
			"0s 100.64.9.1 register " + inHouse + " ttl 1", "0s 100.64.9.2 register " + inHouse + " ttl 1", "0s register ttl 1440",
			"20s 100.64.9.1 register " + inHouse + " ttl 1", "20s 100.64.9.2 register " + inHouse + " ttl 1",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("registrations (-want +got):\n%s", d)
		}

		for range 2 {
			if err := w.d.Drain(context.Background(), true); err != nil {
				t.Fatal(err)
			}
		}
		at := time.Since(w.start).Round(time.Millisecond)
		w.wantServed("drained", fmt.Sprintf("%v false", at))
		if s := drained(w); s.State != "drained" || !s.Withdrawn || s.Since.Sub(w.start).Round(time.Second) != at.Round(time.Second) {
			t.Errorf("status %+v", s)
		}
		if w.probe(xtr, 99, "2001:db8:64::/96") || w.probe(xtr, 100, "198.51.100.10/32") {
			t.Error("a drained D-ETR answers probes")
		}
		time.Sleep(10 * time.Second)
		got = w.took()
		for i, l := range got {
			_, got[i], _ = strings.Cut(l, " ")
		}
		slices.Sort(got)
		want = []string{
			"100.64.1.2 smr true " + inHouse, "100.64.1.2 smr true " + inHouse,
			"100.64.9.1 register " + inHouse + " ttl 0", "100.64.9.2 register " + inHouse + " ttl 0",
			"2001:db8:100:2::2 smr true " + inHouse, "2001:db8:100:2::2 smr true " + inHouse, "register ttl 0",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("what is said (-want +got):\n%s", d)
		}
		// The feed is followed as ever.
		w.apply(lisp.Delta{Put: []lisp.Mapping{mapping("198.51.100.10/32", 2, "100.64.2.2")}})
		if got := w.dp.does("198.51.100.10/32"); got != "encapsulate 100.64.2.2" {
			t.Errorf("a VM that moves: %q", got)
		}
		time.Sleep(10 * time.Minute)
		w.stop()
		w.wantServed("the end", fmt.Sprintf("%v false", time.Since(w.start).Round(time.Millisecond)))
		if got := w.took(); got != nil {
			t.Errorf("later: %v", got)
		}

		w = began()
		time.Sleep(10 * time.Minute)
		w.wantServed("after a restart")
		if s := drained(w); s.State != "drained" || !s.Withdrawn {
			t.Errorf("status %+v", s)
		}
		// A Map-Server may not have heard of it before.
		got = w.took()
		for i, l := range got {
			_, got[i], _ = strings.Cut(l, " ")
		}
		slices.Sort(got)
		want = []string{"100.64.9.1 register " + inHouse + " ttl 0", "100.64.9.2 register " + inHouse + " ttl 0", "register ttl 0"}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("a restarted one that is drained (-want +got):\n%s", d)
		}
		if err := w.d.Drain(context.Background(), false); err != nil {
			t.Fatal(err)
		}
		w.wantServed("it serves again", "10m0s true")
		w.took()
		w.stop()
		w.wantServed("the end", "10m0s false")
		got = w.took()
		slices.Sort(got)
		want = []string{
			"10m0s 100.64.1.2 smr true " + inHouse, "10m0s 100.64.9.1 register " + inHouse + " ttl 0", "10m0s 100.64.9.2 register " + inHouse + " ttl 0",
			"10m0s 2001:db8:100:2::2 smr true " + inHouse, "10m0s register ttl 0",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("last words (-want +got):\n%s", d)
		}
		w = began()
		w.wantServed("the next start", "0s true")
		w.stop()
	})
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("files %v, %v", es, err)
	}
	if err := os.WriteFile(filepath.Join(dir, DrainFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDrain(dir); err == nil {
		t.Error("a file that says nothing is taken for not drained")
	}
}

// TestSolicitor: everybody is told twice, in portions, and nobody of a family that we do not have.
func TestSolicitor(t *testing.T) {
	s := newSolicitor(ready(withServices, func(c *Config) { c.RLOCs = locs("100.64.5.2") }))
	now := time.Unix(1e9, 0)
	var all []netip.Addr
	for i := range 250 {
		all = append(all, netip.AddrFrom4([4]byte{100, 64, 1, byte(i)}))
	}
	s.begin(append(slices.Clone(all), addr("2001:db8:100:1::2")), now)
	told := make(map[netip.Addr]int)
	var at []string
	for start := now; !s.next().IsZero(); {
		now = s.next()
		if n := len(s.tick(now.Add(-1))); n != 0 {
			t.Fatalf("%d too early", n)
		}
		sent := s.tick(now)
		at = append(at, fmt.Sprintf("%v %d", now.Sub(start), len(sent)))
		for _, a := range sent {
			told[a]++
		}
	}
	if d := cmp.Diff([]string{"500ms 100", "600ms 100", "700ms 50", "4.7s 100", "4.8s 100", "4.9s 50"}, at); d != "" {
		t.Error(d)
	}
	if len(told) != len(all) || slices.ContainsFunc(slices.Collect(maps.Values(told)), func(n int) bool { return n != 2 }) {
		t.Errorf("told %v", told)
	}
	s.begin(all, now)
	s.stop()
	if !s.next().IsZero() || s.rest() != nil {
		t.Error("it goes on")
	}
	s.begin(all, now)
	s.tick(s.next())
	if n := len(s.rest()); n != 150 || !s.next().IsZero() {
		t.Errorf("%d are left", n)
	}
	none := newSolicitor(ready())
	if none.begin(all, now); !none.next().IsZero() {
		t.Error("there is nothing to ask for without services")
	}
}

// TestUpstreams: one that fails does not keep the others from being told.
func TestUpstreams(t *testing.T) {
	a, b := &upstream{start: time.Now(), broken: 1}, &upstream{start: time.Now()}
	if err := (Upstreams{a, b}).Serve(context.Background(), true); err == nil || len(a.take()) != 0 || len(b.take()) != 1 {
		t.Errorf("error %v", err)
	}
	if err := (Upstreams{a, b}).Serve(context.Background(), true); err != nil || len(a.take()) != 1 {
		t.Errorf("error %v", err)
	}
}
