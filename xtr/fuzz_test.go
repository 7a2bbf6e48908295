package xtr

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// nothing is an endpoint, a data plane, a slow path and interfaces that do nothing.
type nothing struct{}

func (nothing) Run(ctx context.Context, _ func(control.Packet)) error { <-ctx.Done(); return nil }
func (nothing) Send(netip.AddrPort, []byte) error                     { return nil }
func (nothing) Set(context.Context, ...fib.Route) error               { return nil }
func (nothing) Del(context.Context, ...lisp.EID) error                { return nil }
func (nothing) Release(lisp.EID)                                      {}
func (nothing) Reject(lisp.EID)                                       {}
func (nothing) Flush(uint32, func(HoldStats))                         {}
func (nothing) GiveBack(uint32, func(HoldStats))                      {}
func (nothing) Discard(uint32)                                        {}
func (nothing) Replay(uint32, uint16, uint64) int                     { return 0 }
func (nothing) Forget(uint16)                                         {}
func (nothing) PortStats(int) (read, dropped uint64, err error)       { return 0, 0, nil }
func (nothing) Arm(int)                                               {}
func (nothing) Delivered(int) (uint64, error)                         { return 0, nil }

// idle is an engine whose owner is the test: it does not run.
func idle(t testing.TB) *XTR {
	t.Helper()
	x, err := New(Config{XTRID: testID, RLOCs: loc("100.64.1.2"), EIDPrefixes: labPrefixes,
		MapServers: []Server{{ms1, labKey}, {ms2, labKey}}}, nothing{}, nothing{}, nothing{}, nothing{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x.start(epoch)
	x.portUp(&port{name: "tap0", index: 1, number: 1}, epoch)
	x.frame(Sighting{If: 1, MAC: hardwareAddr("52:54:00:00:00:10"), Addr: vmAddr, At: epoch}, epoch)
	x.miss(peerEID, vmAddr, epoch)
	return x
}

// FuzzControl feeds an engine what may come from the wire, as if its digest were right.
func FuzzControl(f *testing.F) {
	for _, m := range []lisp.Message{
		&lisp.MapNotify{Nonce: 1, Records: []lisp.Mapping{others(testEID, 7, 9)}, HasXTRID: true, XTRID: lisp.XTRID{15: 9}},
		&lisp.MapNotify{Nonce: 1, Records: []lisp.Mapping{{EID: testEID, TTL: 0}, others(peerEID, 1, 9)}},
		&lisp.MapReply{Nonce: 1, Records: []lisp.Mapping{negative("198.51.100.0/25", 15)}},
		&lisp.MapRequest{Probe: true, Nonce: 1, ITRRLOCs: []netip.Addr{ms1}, Records: []lisp.RequestRecord{{EID: testEID}}},
		solicit(peerEID, []netip.Addr{ms1}, 1),
	} {
		b, err := lisp.Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, ours bool) {
		m, err := lisp.Decode(b)
		if err != nil {
			return
		}
		x, now := idle(t), epoch.Add(time.Second)
		// The nonce is one that was used, so that more than the nonce is looked at.
		nonce := uint64(0)
		for n := range x.res.asks {
			nonce = n
		}
		if ours {
			for n := range x.reg.sent {
				nonce = n
			}
		}
		from := netip.AddrPortFrom(ms1, lisp.ControlPort)
		switch m := m.(type) {
		case *lisp.MapNotify:
			m.Nonce = nonce
			x.notified(m, from, labKey, ms1, now)
			m.Nonce++
			x.notified(m, from, labKey, ms1, now.Add(time.Millisecond))
		case *lisp.MapReply:
			m.Nonce = nonce
			x.replied(m, now)
		case *lisp.MapRequest:
			x.requested(m, control.Packet{Msg: m, From: from}, now)
			x.requested(m, control.Packet{Msg: m, From: from, ECM: &lisp.ECM{Source: from}}, now)
		}
		for range 20 {
			if now = x.next(); now.IsZero() {
				break
			}
			x.turn(now)
		}
		for e, r := range x.routes {
			if r.EID != e || r.Do == fib.Encap && len(r.Locators) == 0 {
				t.Errorf("route %v: %+v", e, r)
			}
			for _, l := range r.Locators {
				if x.cfg.ownRLOC(l.RLOC) || !l.Usable() {
					t.Errorf("route %v goes to %+v", e, l)
				}
			}
		}
	})
}

// FuzzAPI feeds the API bodies.
func FuzzAPI(f *testing.F) {
	for path, body := range map[string]string{
		"/v1/vms/web":       `{"interface":"tap0","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10"]}`,
		"/v1/handovers/m1":  `{"role":"target","vm":"web","eids":["198.51.100.10"],"peer_rloc":"100.64.2.2","version":3}`,
		"/v1/handovers/m2":  `{"role":"source","vm":"web","interface":"tap0","eids":["198.51.100.10"],"peer_rloc":"100.64.2.2"}`,
		"/v1/events":        `{"vm":"tap0","event":"stop","at":"2026-03-01T12:00:00Z"}`,
		"/v1/events/":       `{"vm":"52-54-00-00-00-10","event":"migrating"}`,
		"/v1/announcements": `{"vm":"web","uuid":"u","macs":["52:54:00:00:00:11"],"eids":["198.51.100.11"]}`,
		"/guests":           `[{"Name":"web","UUID":"u","Running":true,"EIDs":["198.51.100.10"],"Interfaces":[{"mac":"52:54:00:00:00:10","device":"tap0"}]},{"Name":"db"}]`,
	} {
		f.Add(path, body)
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		x, now := idle(t), epoch.Add(time.Second)
		w := httptest.NewRecorder()
		r := httptest.NewRequest("PUT", "/", strings.NewReader(body))
		var err error
		switch {
		case strings.HasPrefix(path, "/v1/vms/"):
			var s VMSpec
			if decodeBody(w, r, &s) == nil {
				err = x.putVM("web", s, now)
			}
		case strings.HasPrefix(path, "/v1/handovers/"):
			var s HandoverSpec
			if decodeBody(w, r, &s) == nil {
				_, err = x.prepare("m", s, now)
			}
		case path == "/v1/announcements":
			var a Announcement
			if decodeBody(w, r, &a) == nil {
				_, err = x.announce(a, now)
			}
		case path == "/guests": // what a hypervisor lists, and then does not list any more
			var all []Guest
			if decodeBody(w, r, &all) == nil {
				x.listed("libvirt", now, all, now)
				for _, g := range all {
					for _, kind := range []string{EventMigrating, EventStopped, EventGone} {
						_ = x.vmEvent(VMEvent{VM: g.Name, Event: kind}, now)
						now = now.Add(time.Millisecond)
						x.turn(now)
					}
				}
				x.listed("libvirt", now, nil, now)
			}
		default:
			var ev VMEvent
			if decodeBody(w, r, &ev) == nil {
				err = x.vmEvent(ev, now)
			}
		}
		if err != nil && !strings.Contains(err.Error(), ": ") {
			t.Errorf("an error that says nothing: %v", err)
		}
		for range 20 {
			if now = x.next(); now.IsZero() {
				break
			}
			x.turn(now)
		}
	})
}

// FuzzState feeds a restart what may stand on the disk.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"format":1,"nonces":5,"vms":[{"name":"web","eids":["198.51.100.10"]}],"local":[{"eid":"198.51.100.10/32",`+
		`"mac":"52:54:00:00:00:10","interface":"tap0","registered":true,"version":3}],"handovers":[{"id":"m","role":"source",`+
		`"state":"redirecting","eids":["198.51.100.10/32"],"hold":3,"flushing":true,"to":[{"rloc":"100.64.2.2","priority":1,"reachable":true}]}]}`), []byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, state, cache []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{stateFile: state, cacheFile: cache} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		x, err := New(Config{XTRID: testID, RLOCs: loc("100.64.1.2"), EIDPrefixes: labPrefixes, StateDir: dir,
			MapServers: []Server{{ms1, labKey}}}, nothing{}, nothing{}, nothing{}, nothing{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		now := epoch
		x.start(now)
		x.portUp(&port{name: "tap0", index: 1, number: 1}, now)
		for range 20 {
			if now = x.next(); now.IsZero() {
				break
			}
			x.turn(now)
		}
	})
}
