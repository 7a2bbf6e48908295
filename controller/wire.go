package controller

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// Endpoint is the controller's door to the LISP control plane; *control.Endpoint is one.
type Endpoint interface {
	// Run receives until ctx ends; handle is called from one goroutine at a time.
	Run(ctx context.Context, handle func(control.Packet)) error
	// Send sends one datagram, from any goroutine.
	Send(to netip.AddrPort, b []byte) error
	// Counters is a snapshot, by name.
	Counters() map[string]uint64
}

// wire speaks LISP for the controller: Map-Registers on behalf of xTRs, Map-Requests for versions.
type wire struct {
	cfg      Config
	ep       Endpoint
	keys     map[netip.Addr]lisp.Key
	counters *counters
	notified func(sent, notice) // a Map-Notify that answers one of ours
	// serviced is the same for Map-Registers of services.
	serviced func(server netip.Addr, nonce uint64, records []lisp.Mapping)

	mu    sync.Mutex
	regs  map[uint64]sent                  // by nonce
	asked map[uint64]chan<- []lisp.Mapping // by nonce
	swept time.Time
}

// sent is a Map-Register that may be answered.
type sent struct {
	move     string
	server   netip.Addr
	eid      lisp.EID
	services bool // it is of services: move and eid are not set
	at       time.Time
}

// notice is what a Map-Notify says of one EID.
type notice struct {
	mapping lisp.Mapping
	holder  lisp.XTRID
}

// keepSent is how long an answer to a Map-Register is recognised.
const keepSent = 2 * maxRegisterBackoff

func newWire(cfg Config, ep Endpoint, cs *counters) *wire {
	w := &wire{cfg: cfg, ep: ep, counters: cs, keys: map[netip.Addr]lisp.Key{},
		regs: map[uint64]sent{}, asked: map[uint64]chan<- []lisp.Mapping{}}
	for _, s := range cfg.MapServers {
		w.keys[s.Addr] = s.Key
	}
	return w
}

// registered are the locators that a target registers.
func (sd *Side) registered() []lisp.Locator {
	ls := sd.Locators
	if len(ls) == 0 {
		ls = []Locator{{sd.RLOC, 1, 100}}
	}
	var out []lisp.Locator
	for _, l := range ls {
		out = append(out, lisp.Locator{RLOC: l.RLOC, Priority: l.Priority, Weight: l.Weight, Local: true, Reachable: true})
	}
	slices.SortFunc(out, lisp.CompareLocators)
	return out
}

// register sends one Map-Register on behalf of the xTR at to: with its xTR-ID and its RLOC, but with
// our own key, whose nonces are counted apart from the xTR's own. Every transmission has a nonce of its
// own, because a Map-Server drops what is not above the last (RFC 9301 section 5.6).
func (w *wire) register(move string, to Side, r actRegister, nonce uint64, now time.Time) error {
	msg := &lisp.MapRegister{
		ProxyReply: true, HasXTRID: true, WantMapNotify: true, // and no merge bit: this RLOC replaces the others
		Nonce: nonce, XTRID: to.XTRID, SiteID: to.SiteID,
		Records: []lisp.Mapping{{
			EID: r.eid, TTL: w.cfg.RegisterTTL, Version: r.version, Authoritative: true,
			Locators: to.registered(), XTRID: to.XTRID, SiteID: to.SiteID,
		}},
	}
	b, err := lisp.AppendSigned(nil, msg, w.keys[r.server])
	if err != nil {
		return fmt.Errorf("controller: Map-Register of %s: %w", r.eid, err)
	}
	w.mu.Lock()
	w.sweep(now)
	w.regs[nonce] = sent{move: move, server: r.server, eid: r.eid, at: now}
	w.mu.Unlock()
	w.counters.add("map-registers sent", 1)
	if err := w.ep.Send(netip.AddrPortFrom(r.server, w.cfg.Port), b); err != nil {
		w.counters.add("map-registers not sent", 1)
		return fmt.Errorf("controller: Map-Register of %s: %w", r.eid, err)
	}
	return nil
}

// registerServices sends one Map-Register of services. They are the controller's own: there is no xTR-ID, and the
// Map-Server knows us by our address and key.
func (w *wire) registerServices(s svcSend, now time.Time) error {
	b, err := lisp.AppendSigned(nil, &lisp.MapRegister{WantMapNotify: true, Nonce: s.nonce, Records: s.records}, w.keys[s.server])
	if err != nil {
		return fmt.Errorf("controller: Map-Register of services: %w", err)
	}
	w.mu.Lock()
	w.sweep(now)
	w.regs[s.nonce] = sent{server: s.server, services: true, at: now}
	w.mu.Unlock()
	w.counters.add("map-registers sent", 1)
	if err := w.ep.Send(netip.AddrPortFrom(s.server, w.cfg.Port), b); err != nil {
		w.counters.add("map-registers not sent", 1)
		return fmt.Errorf("controller: Map-Register of services: %w", err)
	}
	return nil
}

// sweep forgets Map-Registers that nobody answers any more.
func (w *wire) sweep(now time.Time) {
	if now.Sub(w.swept) < keepSent/4 {
		return
	}
	w.swept = now
	for n, s := range w.regs {
		if now.Sub(s.at) > keepSent {
			delete(w.regs, n)
		}
	}
}

// handle takes a packet from the endpoint.
func (w *wire) handle(p control.Packet) {
	switch m := p.Msg.(type) {
	case *lisp.MapNotify:
		w.mapNotify(p, m)
	case *lisp.MapReply:
		w.mapReply(m)
	default:
		w.counters.add("control messages ignored", 1)
	}
}

func (w *wire) mapNotify(p control.Packet, m *lisp.MapNotify) {
	from := p.From.Addr().Unmap().WithZone("")
	w.mu.Lock()
	s, ok := w.regs[m.Nonce]
	w.mu.Unlock()
	switch {
	case !ok || s.server != from:
		w.counters.add("map-notifies dropped: not asked for", 1)
		return
	case lisp.Verify(p.Raw, m, w.keys[from]) != nil:
		w.counters.add("map-notifies dropped: authentication", 1)
		return
	}
	if s.services {
		w.counters.add("map-notifies received", 1)
		w.serviced(from, m.Nonce, m.Records)
		return
	}
	for _, r := range m.Records {
		if r.EID == s.eid {
			w.counters.add("map-notifies received", 1)
			w.notified(s, notice{mapping: r, holder: m.XTRID})
			return
		}
	}
	w.counters.add("map-notifies dropped: other EID", 1)
}

func (w *wire) mapReply(m *lisp.MapReply) {
	w.mu.Lock()
	ch, ok := w.asked[m.Nonce]
	delete(w.asked, m.Nonce)
	w.mu.Unlock()
	if !ok {
		w.counters.add("map-replies dropped: not asked for", 1)
		return
	}
	w.counters.add("map-replies received", 1)
	ch <- m.Records // has room: a nonce is answered once
}

// lookup asks every Map-Server for every EID, and returns the newest of what they say. It ends when all
// have answered, shortly after every EID was answered once, or after the time limit: a Map-Server that
// is away costs a moment, not the answer.
func (w *wire) lookup(ctx context.Context, eids []lisp.EID) map[lisp.EID]lookedUp {
	found := map[lisp.EID]lookedUp{}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timing.Lookup)
	defer cancel()
	type question struct {
		server netip.Addr
		self   netip.Addr
		eid    lisp.EID
	}
	var open []question
	for _, s := range w.cfg.MapServers {
		for _, self := range w.cfg.Addresses {
			if self.Is4() == s.Addr.Is4() {
				for _, e := range eids {
					open = append(open, question{s.Addr, self, e})
				}
				break
			}
		}
	}
	if len(open) == 0 {
		return found
	}
	type answered struct {
		question
		records []lisp.Mapping
	}
	answers := make(chan answered, 2*len(open))
	var nonces []uint64
	var wg sync.WaitGroup
	ask := func(q question) {
		nonce, ch := randomNonce(), make(chan []lisp.Mapping, 1)
		w.mu.Lock()
		w.asked[nonce] = ch
		w.mu.Unlock()
		nonces = append(nonces, nonce)
		wg.Go(func() {
			select {
			case recs := <-ch:
				answers <- answered{q, recs}
			case <-ctx.Done():
			}
		})
		if err := w.request(q.server, q.self, q.eid, nonce); err != nil {
			w.counters.add("map-requests not sent", 1)
		}
	}
	for _, q := range open {
		ask(q)
	}
	again := time.NewTimer(w.cfg.Timing.Lookup / 2)
	defer again.Stop()
	var enough <-chan time.Time
	missing := map[question]bool{}
	for _, q := range open {
		missing[q] = true
	}
	for len(missing) > 0 {
		select {
		case a := <-answers:
			delete(missing, a.question)
			// A record of something wider, a hole or an aggregate, says that the EID is not registered.
			var got lookedUp
			for _, r := range a.records {
				if r.EID == a.eid {
					got = lookedUp{version: r.Version, locators: r.Locators}
				}
			}
			if old, ok := found[a.eid]; !ok || got.version.Newer(old.version) {
				found[a.eid] = got
			}
			if len(found) == len(eids) && enough == nil {
				enough = time.After(w.cfg.Timing.Lookup / 4)
			}
			continue
		case <-again.C:
			for q := range missing {
				ask(q)
			}
			continue
		case <-enough:
		case <-ctx.Done():
		}
		break
	}
	cancel()
	wg.Wait()
	w.mu.Lock()
	for _, n := range nonces {
		delete(w.asked, n)
	}
	w.mu.Unlock()
	return found
}

// request sends one Map-Request in an ECM (RFC 9301 section 5.8).
func (w *wire) request(server, self netip.Addr, e lisp.EID, nonce uint64) error {
	inner, err := lisp.Append(nil, &lisp.MapRequest{
		Nonce: nonce, ITRRLOCs: []netip.Addr{self}, Records: []lisp.RequestRecord{{EID: e}},
	})
	if err != nil {
		return err
	}
	b, err := lisp.Append(nil, &lisp.ECM{
		Source: netip.AddrPortFrom(self, w.cfg.Port),
		Dest:   netip.AddrPortFrom(e.Prefix.Addr(), lisp.ControlPort),
		Inner:  inner,
	})
	if err != nil {
		return err
	}
	w.counters.add("map-requests sent", 1)
	return w.ep.Send(netip.AddrPortFrom(server, w.cfg.Port), b)
}

// randomNonce is for Map-Requests: their answers are not authenticated, so nobody may guess it.
func randomNonce() uint64 {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails
	}
	return binary.BigEndian.Uint64(b[:])
}
