package detr

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

var external = Server{Addr: addr("192.0.2.7"), Key: lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "secret"}}

// notify is a Map-Notify as the Map-Server with key sends it.
func notify(t *testing.T, key lisp.Key, nonce uint64, records ...lisp.Mapping) ([]byte, *lisp.MapNotify) {
	t.Helper()
	raw, err := lisp.AppendSigned(nil, &lisp.MapNotify{Nonce: nonce, Records: records}, key)
	if err != nil {
		t.Fatal(err)
	}
	m, err := lisp.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return raw, m.(*lisp.MapNotify)
}

func TestRegistrar(t *testing.T) {
	var nonce uint64
	cfg := ready(func(c *Config) { c.External = []Server{external} })
	r := newRegistrar(cfg, cfg.external(), func(time.Time) uint64 { nonce++; return nonce })
	now := time.Unix(1e9, 0)
	start := now
	// sent lets time pass and returns when Map-Registers went, in seconds from the start.
	sent := func(until time.Duration) (at []float64, last *lisp.MapRegister) {
		for end := start.Add(until); !now.After(end); {
			for _, s := range r.tick(now) {
				at, last = append(at, now.Sub(start).Seconds()), s.msg
				if s.to != external {
					t.Fatalf("to %+v", s.to)
				}
			}
			n := r.next()
			if n.IsZero() || n.After(end) {
				now = end
				return at, last
			}
			now = n
		}
		return at, last
	}
	if at, _ := sent(time.Second); at != nil {
		t.Fatalf("registers at %v before it serves", at)
	}
	r.serve(true, now)
	r.serve(true, now)
	at, m := sent(100 * time.Second)
	if d := cmp.Diff([]float64{1, 2, 4, 8, 16, 32, 64}, at); d != "" {
		t.Errorf("unanswered: %s", d)
	}
	own := locs("100.64.5.2", "2001:db8:100:5::2")
	own[0].Local, own[1].Local = true, true
	rec := func(e string, ttl lisp.TTL) lisp.Mapping {
		return lisp.Mapping{EID: eid(e), TTL: ttl, Authoritative: true, Locators: own, XTRID: cfg.XTRID, SiteID: 9}
	}
	want := &lisp.MapRegister{
		ProxyReply: true, WantMapNotify: true, Merge: true, HasXTRID: true, XTRID: cfg.XTRID, SiteID: 9, Nonce: nonce,
		Records: []lisp.Mapping{rec("198.51.100.0/24", 1440), rec("2001:db8:e1d::/48", 1440)},
	}
	if d := cmp.Diff(want, m, equal); d != "" {
		t.Errorf("Map-Register (-want +got):\n%s", d)
	}

	notified := func(from Server, nonce uint64) (*lisp.MapNotifyAck, error) {
		raw, n := notify(t, from.Key, nonce, rec("198.51.100.0/24", 1440))
		ack, _, err := r.notified(from.Addr, raw, n, now)
		return ack, err
	}
	forger := external
	forger.Key.Secret = "guess"
	stranger := external
	stranger.Addr = addr("192.0.2.66")
	for what, from := range map[string]Server{"forger": forger, "stranger": stranger} {
		if _, err := notified(from, nonce); err == nil || r.servers[0].state != stateSent {
			t.Errorf("%s: %v, state %v", what, err, r.servers[0].state)
		}
	}
	if ack, err := notified(external, nonce); err != nil || ack != nil || r.servers[0].state != stateHeard {
		t.Fatalf("confirmed: %v, %v, state %v", ack, err, r.servers[0].state)
	}
	if at, _ := sent(300 * time.Second); !cmp.Equal(at, []float64{160, 161, 163, 167, 175, 191, 223, 283}) {
		t.Errorf("a refresh that nobody confirms: %v", at)
	}
	if _, err := notified(external, nonce); err != nil {
		t.Fatal(err)
	}
	// Another D-ETR has come: the Map-Server tells us, and wants to know that we have heard.
	ack, err := notified(external, 0xabcdef)
	if err != nil || ack == nil || ack.Nonce != 0xabcdef || len(ack.Records) != 1 {
		t.Errorf("unasked: %+v, %v", ack, err)
	}

	r.serve(false, now)
	at, m = sent(400 * time.Second)
	if d := cmp.Diff([]float64{300, 301, 303}, at); d != "" {
		t.Errorf("deregistration: %s", d)
	}
	for _, rec := range m.Records {
		if rec.TTL != lisp.TTLDelete {
			t.Errorf("TTL %d", rec.TTL)
		}
	}
	if !r.next().IsZero() || r.servers[0].state != stateNone || r.believing() != 1 {
		t.Errorf("state %v, next %v, %d that may believe us", r.servers[0].state, r.next(), r.believing())
	}
	if _, err := notified(external, 5); err == nil {
		t.Error("a late Map-Notify is acknowledged")
	}
	r.serve(true, now)
	if at, _ := sent(400 * time.Second); len(at) != 1 {
		t.Errorf("serves again: %v", at)
	}
	r.serve(false, now)
	n := nonce
	sent(401 * time.Second)
	if _, err := notified(external, nonce); err != nil || nonce == n || r.servers[0].state != stateNone || !r.next().IsZero() || r.believing() != 0 {
		t.Errorf("deregistration confirmed: %v, state %v", err, r.servers[0].state)
	}
}

// TestNonces: they increase over restarts, whatever the clock does, and a file that cannot be read is an
// error, not a fresh start.
func TestNonces(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(1e9, 0)
	var last uint64
	take := func(n *nonceSource, now time.Time) {
		t.Helper()
		v, err := n.next(now)
		if err != nil || v <= last {
			t.Fatalf("nonce %d after %d, %v", v, last, err)
		}
		last = v
	}
	n, err := openNonces(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		take(n, now)
	}
	take(n, now.Add(-time.Hour)) // the clock steps back
	take(n, now.Add(time.Hour))
	for range 3 {
		if n, err = openNonces(dir); err != nil {
			t.Fatal(err)
		}
		take(n, now.Add(-24*time.Hour)) // restarted with a wrong clock
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 {
		t.Errorf("files %v", es)
	}
	if err := os.WriteFile(filepath.Join(dir, "nonces.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openNonces(dir); err == nil {
		t.Error("a broken file is accepted")
	}
	if n, err = openNonces(""); err != nil {
		t.Fatal(err)
	}
	take(n, now.Add(48*time.Hour))
	if n, err = openNonces(filepath.Join(dir, "missing")); err != nil {
		t.Fatal(err)
	}
	if v, err := n.next(now.Add(72 * time.Hour)); err == nil || v <= last {
		t.Errorf("nonce %d, %v: want a nonce and an error", v, err)
	}
}
