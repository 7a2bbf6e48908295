package xtr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/mapserver"
	"github.com/tabi-lisp/tabi/testnet/simnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// The lab is a cloud in memory and in virtual time: engines over real endpoints and real Map-Servers, a data
// plane and a slow path that keep the contract of package fib with packets that are numbers, VMs that read
// their interface or do not. Who sends is an anchor: it believes the newest mapping that the Map-Servers' sinks
// tell it, as a D-ETR does.
type lab struct {
	t       *testing.T
	ctx     context.Context
	net     *simnet.Network
	servers []*labServer
	hosts   []*labHost
	anchor  *labAnchor
	vms     []*labVM
	wg      sync.WaitGroup
	mu      sync.Mutex
	links   map[[2]netip.Addr]chan flight
	circles atomic.Int32 // packets that went round in circles
	circle  bool         // that may happen
}

var (
	labKey        = lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "site"}
	labController = lisp.Key{ID: 2, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: "controller"}
	labPrefixes   = []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8:e1d::/48")}
)

func mustEID(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

// inLab runs f with a lab of two Map-Servers and the hosts A, B and C, inside a bubble.
func inLab(t *testing.T, f func(l *lab)) {
	t.Helper()
	inLabThatDamps(t, 100, f)
}

// inLabThatDamps is inLab with Map-Servers that take so many unannounced moves for flapping.
func inLabThatDamps(t *testing.T, moves int, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &lab{t: t, ctx: ctx, net: simnet.New(1), links: map[[2]netip.Addr]chan flight{}}
		l.net.SetPath(simnet.Path{Delay: 500 * time.Microsecond})
		l.anchor = &labAnchor{l: l, mappings: map[lisp.EID]lisp.Mapping{}}
		for _, a := range []string{"100.64.7.2", "100.64.8.2"} {
			l.addServer(netip.MustParseAddr(a), moves)
		}
		for i, name := range []string{"A", "B", "C"} {
			l.addHost(name, i+1)
		}
		defer func() {
			for _, h := range l.hosts {
				h.stop()
			}
			cancel()
			l.wg.Wait()
		}()
		synctest.Wait()
		f(l)
		if n := l.circles.Load(); n > 0 && !l.circle {
			t.Errorf("%d packets went round in circles", n)
			for _, h := range l.hosts {
				for _, r := range table[ShowMove](h, "moves") {
					t.Logf("%s: %+v", h.name, r)
				}
			}
		}
	})
}

// labServer is a Map-Server that forgets everything when it is killed.
type labServer struct {
	addr   netip.Addr
	s      *mapserver.Server
	cancel context.CancelFunc
}

// memoryStore stores nothing.
type memoryStore struct{}

func (memoryStore) Load() (mapserver.State, error) { return mapserver.State{}, nil }
func (memoryStore) Save(mapserver.Batch) error     { return nil }

func (l *lab) addServer(a netip.Addr, flapMoves int) {
	conn, err := l.net.Listen(netip.AddrPortFrom(a, lisp.ControlPort))
	if err != nil {
		l.t.Fatal(err)
	}
	s, err := mapserver.New(mapserver.Config{Name: a.String(), ProxyReply: true, FlapMoves: flapMoves, Sites: []mapserver.Site{{
		Name: "site", Keys: []lisp.Key{labKey}, ControllerKeys: []lisp.Key{labController},
		Prefixes: labPrefixes, AcceptMoreSpecifics: true,
	}}, Subscribers: []mapserver.Subscriber{{Key: labKey}}}, control.New(discard(), conn), memoryStore{}, map[string]lisp.Sink{"anchor": l.anchor},
		discard())
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.ctx)
	l.servers = append(l.servers, &labServer{a, s, cancel})
	l.wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			l.t.Errorf("Map-Server: %v", err)
		}
	})
}

// labAnchor sends packets to VMs.
type labAnchor struct {
	l        *lab
	mu       sync.Mutex
	mappings map[lisp.EID]lisp.Mapping
}

func (a *labAnchor) Apply(_ context.Context, d lisp.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range d.Put {
		if old, ok := a.mappings[m.EID]; !ok || m.Supersedes(old) {
			a.mappings[m.EID] = m
		}
	}
	return nil
}

// at is where the anchor sends packets for e.
func (a *labAnchor) at(e lisp.EID) (netip.Addr, lisp.Version) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.mappings[e]
	if !ok || m.Negative() {
		return netip.Addr{}, 0
	}
	return m.Locators[0].RLOC, m.Version
}

var anchorRLOC = netip.MustParseAddr("100.64.5.2")

// flow is a stream of packets from the anchor to an EID.
type flow struct {
	eid  lisp.EID
	sent int
	upTo atomic.Int64 // sent, for who looks while it goes on
	stop chan struct{}
	done chan struct{}
}

// flow sends a packet every 250 microseconds until end.
func (l *lab) flow(e lisp.EID) *flow {
	f := &flow{eid: e, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for {
			select {
			case <-f.stop:
				return
			case <-time.After(250 * time.Microsecond):
			}
			if to, _ := l.anchor.at(e); to.IsValid() {
				l.carry(anchorRLOC, to, packet{eid: e, seq: f.sent})
				f.sent++
				f.upTo.Store(int64(f.sent))
			}
		}
	}()
	return f
}

func (f *flow) end() {
	close(f.stop)
	<-f.done
	time.Sleep(500 * time.Millisecond)
}

// packet is a packet.
type packet struct {
	eid    lisp.EID
	seq    int
	replay bool
	hops   int
}

// carry takes a packet over the underlay.
func (l *lab) carry(from, to netip.Addr, p packet) {
	if p.hops++; p.hops > 16 {
		l.circles.Add(1)
		return
	}
	l.link(from, to) <- flight{time.Now().Add(500 * time.Microsecond), p}
}

// flight is a packet under way.
type flight struct {
	due time.Time
	p   packet
}

// link is the way from one RLOC to another: packets do not overtake each other on it.
func (l *lab) link(from, to netip.Addr) chan flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := [2]netip.Addr{from, to}
	ch := l.links[k]
	if ch != nil {
		return ch
	}
	ch = make(chan flight, 1<<16)
	l.links[k] = ch
	l.wg.Go(func() {
		for {
			select {
			case <-l.ctx.Done():
				return
			case f := <-ch:
				time.Sleep(time.Until(f.due))
				for _, h := range l.hosts {
					if h.rloc == to {
						h.plane.arrive(f.p, from)
					}
				}
			}
		}
	})
	return ch
}

// labHost is a hypervisor.
type labHost struct {
	l      *lab
	name   string
	n      int
	rloc   netip.Addr
	plane  *labPlane
	dir    string
	x      *XTR
	cancel context.CancelFunc
	ended  chan struct{}
	tune   func(*Config)
}

func (l *lab) addHost(name string, n int) *labHost {
	h := &labHost{l: l, name: name, n: n, rloc: netip.AddrFrom4([4]byte{100, 64, byte(n), 2}), dir: l.t.TempDir()}
	h.plane = newLabPlane(h)
	l.hosts = append(l.hosts, h)
	h.start()
	return h
}

func (h *labHost) id() lisp.XTRID { return lisp.XTRID{15: byte(h.n)} }

// start starts the agent; what the data plane does is what it did before.
func (h *labHost) start() {
	conn, err := h.l.net.Listen(netip.AddrPortFrom(h.rloc, lisp.ControlPort))
	if err != nil {
		h.l.t.Fatal(err)
	}
	cfg := Config{Name: h.name, XTRID: h.id(), RLOCs: []lisp.Locator{{RLOC: h.rloc, Priority: 1, Weight: 100}},
		EIDPrefixes: labPrefixes, StateDir: h.dir}
	for _, s := range h.l.servers {
		cfg.MapServers = append(cfg.MapServers, Server{s.addr, labKey})
	}
	if h.tune != nil {
		h.tune(&cfg)
	}
	x, err := New(cfg, control.New(discard(), conn), h.plane, h.plane, h.plane, nil)
	if err != nil {
		h.l.t.Fatal(err)
	}
	h.x = x
	h.plane.setEngine(x)
	ctx, cancel := context.WithCancel(h.l.ctx)
	h.cancel, h.ended = cancel, make(chan struct{})
	go func() {
		defer close(h.ended)
		if err := x.Run(ctx); err != nil {
			h.l.t.Errorf("host %s: %v", h.name, err)
		}
	}()
	h.plane.announcePorts()
}

// stop ends the agent in good order.
func (h *labHost) stop() {
	if h.cancel != nil {
		h.cancel()
		<-h.ended
		h.cancel = nil
	}
}

// kill ends the agent as SIGKILL does: what it has not saved yet is lost, and so are packets in its hands.
func (h *labHost) kill() {
	h.l.t.Helper()
	saved := map[string][]byte{}
	for _, name := range []string{stateFile, cacheFile} {
		if b, err := os.ReadFile(filepath.Join(h.dir, name)); err == nil {
			saved[name] = b
		}
	}
	h.plane.setEngine(nil)
	h.stop()
	for _, name := range []string{stateFile, cacheFile} {
		path := filepath.Join(h.dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.l.t.Fatal(err)
		}
		if b, ok := saved[name]; ok {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				h.l.t.Fatal(err)
			}
		}
	}
	h.plane.crash()
}

// api calls the agent's API.
func (h *labHost) api(method, path string, body any) (int, Handover) {
	h.l.t.Helper()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			h.l.t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	h.x.Handler().ServeHTTP(w, httptest.NewRequestWithContext(h.l.ctx, method, path, bytes.NewReader(b)))
	var rec Handover
	if w.Code == 200 && len(w.Body.Bytes()) > 0 && w.Body.Bytes()[0] == '{' {
		if err := json.Unmarshal(w.Body.Bytes(), &rec); err != nil {
			h.l.t.Fatal(err)
		}
	}
	return w.Code, rec
}

func (h *labHost) must(method, path string, body any) Handover {
	h.l.t.Helper()
	code, rec := h.api(method, path, body)
	if code >= 300 {
		h.l.t.Fatalf("host %s: %s %s: status %d", h.name, method, path, code)
	}
	return rec
}

func (h *labHost) record(id string) Handover {
	h.l.t.Helper()
	return h.must("GET", "/v1/handovers/"+id, nil)
}

// records lists the handovers of which id does not say that they were prepared.
func (h *labHost) unprepared() (out []Handover) {
	recs, err := call(h.l.ctx, h.x, false, func(time.Time) ([]Handover, error) { return h.x.records(""), nil })
	if err != nil {
		h.l.t.Fatal(err)
	}
	for _, r := range recs {
		if len(r.ID) > 10 && r.ID[:10] == "unprepared" {
			out = append(out, r)
		}
	}
	return out
}

func (h *labHost) event(vm, event string) {
	h.l.t.Helper()
	h.must("POST", "/v1/events", VMEvent{VM: vm, Event: event, At: time.Now()})
}

// counter reads one counter.
func (h *labHost) counter(name string) uint64 {
	v, err := call(h.l.ctx, h.x, false, func(time.Time) (uint64, error) { return h.x.counts[name], nil })
	if err != nil {
		h.l.t.Fatal(err)
	}
	return v
}

// labVM is a VM.
type labVM struct {
	l    *lab
	name string
	mac  string
	eids []lisp.EID
	mu   sync.Mutex
	got  map[lisp.EID][]int
	host *labHost // where it runs; nil while it does not
	last *labHost // where it ran last
}

func (l *lab) newVM(name string, n int) *labVM {
	vm := &labVM{l: l, name: name, mac: fmt.Sprintf("52:54:00:00:00:%02d", n), got: map[lisp.EID][]int{},
		eids: []lisp.EID{mustEID(fmt.Sprintf("198.51.100.%d", n)), mustEID(fmt.Sprintf("2001:db8:e1d:1::%d", n))}}
	l.vms = append(l.vms, vm)
	return vm
}

func (vm *labVM) spec() VMSpec {
	return VMSpec{Interface: "tap-" + vm.name, MACs: []string{vm.mac}, EIDs: vm.eids}
}

// boot starts the VM on h: its interface appears, the controller tells, it announces itself.
func (vm *labVM) boot(h *labHost) {
	h.plane.addTap("tap-" + vm.name)
	h.must("PUT", "/v1/vms/"+vm.name, vm.spec())
	vm.resume(h)
	vm.announce()
	time.Sleep(10 * time.Millisecond)
}

// resume makes the VM run on h. What waits at its interface it reads.
func (vm *labVM) resume(h *labHost) {
	vm.mu.Lock()
	vm.host, vm.last = h, h
	vm.mu.Unlock()
	h.plane.readTap("tap-"+vm.name, vm)
}

// pause stops the VM.
func (vm *labVM) pause() {
	vm.mu.Lock()
	h := vm.host
	vm.host = nil
	vm.mu.Unlock()
	h.plane.readTap("tap-"+vm.name, nil)
}

// announce sends what QEMU sends: a reverse ARP; and what the guest sends: gratuitous ARPs.
func (vm *labVM) announce() {
	vm.frame("rarp", netip.Addr{})
	for _, e := range vm.eids {
		vm.frame("gratuitous", e.Prefix.Addr())
	}
}

func (vm *labVM) frame(kind string, a netip.Addr) {
	mac, err := net.ParseMAC(vm.mac)
	if err != nil {
		vm.l.t.Fatal(err)
	}
	vm.mu.Lock()
	h := vm.host
	vm.mu.Unlock()
	if h == nil || h.plane.engine() == nil {
		return // it has stopped this moment, or nobody is there to see it
	}
	h.plane.engine().Sighting(Sighting{If: h.plane.tapIndex("tap-" + vm.name), MAC: mac, Addr: a, Kind: kind, At: time.Now()})
}

// read takes packets; it is called with the plane locked.
func (vm *labVM) read(p packet) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.got[p.eid] = append(vm.got[p.eid], p.seq)
}

// has lists the packets for e that the VM has read.
func (vm *labVM) has(e lisp.EID) []int {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return slices.Clone(vm.got[e])
}

// forget makes the VM begin to count anew.
func (vm *labVM) forget() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.got = map[lisp.EID][]int{}
}

// check compares what a VM has read with what was sent. It returns how many were lost.
func (f *flow) check(vm *labVM, mayLose bool) (lost int) {
	vm.l.t.Helper()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	times := map[int]int{}
	for _, s := range vm.got[f.eid] {
		times[s]++
	}
	first, second, twice := -1, -1, 0
	for s := range f.sent {
		switch times[s] {
		case 0:
			lost++
			if first < 0 {
				first = s
			}
		case 1:
		default:
			if twice == 0 {
				second = s
			}
			twice++
		}
	}
	if twice > 0 {
		vm.l.t.Errorf("%v: %d of %d packets came more than once, the first is %d", f.eid, twice, f.sent, second)
	}
	if lost > 0 && !mayLose {
		vm.l.t.Errorf("%v: %d of %d packets are lost, the first is %d", f.eid, lost, f.sent, first)
	}
	if f.sent < 10 {
		vm.l.t.Errorf("%v: only %d packets were sent", f.eid, f.sent)
	}
	return lost
}

// labPlane is the data plane, the slow path and the interfaces of a host.
type labPlane struct {
	h       *labHost
	mu      sync.Mutex
	x       *XTR
	routes  map[lisp.EID]fib.Route
	holds   map[uint32]*labHold
	taps    map[string]*labTap
	index   int
	misses  map[lisp.EID][]packet
	dropped map[string]int
	fail    error // of Set and Del
	sets    []labSet
}

// labSet is a route as it was set.
type labSet struct {
	at time.Time
	r  fib.Route
}

type labHold struct {
	wait                 []packet
	diverted, reinjected int
	flushing, leave      bool
	done                 []func(HoldStats)
	stats                HoldStats
}

type labTap struct {
	name    string
	index   int
	port    uint16
	given   uint64
	read    uint64
	dropped uint64
	room    int
	queue   []packet
	copies  []labCopy
	vm      *labVM
}

type labCopy struct {
	p packet
	n uint64
}

func newLabPlane(h *labHost) *labPlane {
	return &labPlane{h: h, routes: map[lisp.EID]fib.Route{}, holds: map[uint32]*labHold{}, taps: map[string]*labTap{},
		misses: map[lisp.EID][]packet{}, dropped: map[string]int{}, index: 100 * h.n}
}

func (p *labPlane) setEngine(x *XTR) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.x = x
}

func (p *labPlane) engine() *XTR {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.x
}

// crash is what happens to the slow path's memory when the process dies.
func (p *labPlane) crash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.holds {
		h.wait, h.flushing, h.leave, h.done = nil, false, false, nil
	}
	for _, t := range p.taps {
		t.copies = nil
	}
	clear(p.misses)
}

func (p *labPlane) addTap(name string) {
	p.mu.Lock()
	p.index++
	t := &labTap{name: name, index: p.index, port: uint16(p.index), room: 1000}
	p.taps[name] = t
	x := p.x
	p.mu.Unlock()
	if x != nil {
		x.PortUp(name, t.index, t.port)
	}
}

func (p *labPlane) removeTap(name string) {
	p.mu.Lock()
	t := p.taps[name]
	delete(p.taps, name)
	x := p.x
	p.mu.Unlock()
	if x != nil {
		x.PortDown(t.index)
	}
}

// announcePorts tells an agent that has just started of the interfaces that are there.
func (p *labPlane) announcePorts() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.taps {
		p.x.PortUp(t.name, t.index, t.port)
	}
}

func (p *labPlane) hasTap(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taps[name] != nil
}

// setRoom bounds what waits at an interface, in packets.
func (p *labPlane) setRoom(name string, packets int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taps[name].room = packets
}

// droppedAt is how many packets an interface had no room for.
func (p *labPlane) droppedAt(name string) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taps[name].dropped
}

func (p *labPlane) tapIndex(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taps[name].index
}

// readTap makes vm read an interface; nil: nobody does.
func (p *labPlane) readTap(name string, vm *labVM) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.taps[name]
	t.vm = vm
	t.drain()
}

func (t *labTap) drain() {
	if t.vm == nil {
		return
	}
	for _, q := range t.queue {
		t.read++
		t.vm.read(q)
	}
	t.queue = nil
}

func (p *labPlane) Set(_ context.Context, rs ...fib.Route) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	for _, r := range rs {
		p.routes[r.EID] = r
		p.sets = append(p.sets, labSet{time.Now(), r})
	}
	return nil
}

func (p *labPlane) Del(_ context.Context, es ...lisp.EID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	for _, e := range es {
		delete(p.routes, e)
	}
	return nil
}

func (p *labPlane) Routes() []fib.Route {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []fib.Route
	for _, r := range p.routes {
		out = append(out, r)
	}
	return out
}

// lookup finds the longest match.
func (p *labPlane) lookup(e lisp.EID) (r fib.Route, ok bool) {
	if r, ok = p.routes[e]; ok {
		return r, true
	}
	for _, c := range p.routes {
		if c.EID.Contains(e) && (!ok || c.EID.Prefix.Bits() > r.EID.Prefix.Bits()) {
			r, ok = c, true
		}
	}
	return r, ok
}

func (p *labPlane) route(e lisp.EID) (fib.Route, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.routes[e]
	return r, ok
}

// arrive takes a packet from the underlay.
func (p *labPlane) arrive(q packet, from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forward(q, from, false)
}

// send takes a packet from a VM of this host.
func (p *labPlane) send(q packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forward(q, netip.Addr{}, false)
}

// forward is what the kernel does. from is the outer source; not valid for packets of this host.
func (p *labPlane) forward(q packet, from netip.Addr, again bool) {
	r, ok := p.lookup(q.eid)
	if !ok {
		if from.IsValid() {
			p.notLocal(q, from, fib.EventNotLocal)
			return
		}
		p.misses[q.eid] = append(p.misses[q.eid], q)
		if p.x != nil {
			p.x.Miss(0, netip.MustParseAddr("198.51.100.99"), q.eid.Prefix.Addr())
		}
		return
	}
	if r.Do == fib.Hold && len(r.Locators) > 0 && !from.IsValid() {
		p.h.l.carry(p.h.rloc, r.Locators[0].RLOC, q)
		return
	}
	if r.Hold != 0 && !again {
		h := p.hold(r.Hold)
		if r.Do == fib.Hold || h.diverted != h.reinjected {
			h.diverted++
			if p.x == nil {
				p.dropped["no-agent"]++
				return
			}
			if h.flushing {
				h.stats.Passed++
			} else {
				h.stats.Held++
			}
			h.wait = append(h.wait, q)
			return
		}
	}
	switch r.Do {
	case fib.Deliver:
		p.give(r, q)
	case fib.Encap:
		if from.IsValid() && !r.Transit {
			p.notLocal(q, from, fib.EventNotLocal)
			return
		}
		if from.IsValid() && r.Moved && p.x != nil {
			p.x.DataPlaneEvent(fib.Event{Kind: fib.EventMoved, At: time.Now(), EID: q.eid, RLOC: from.String()})
		}
		p.h.l.carry(p.h.rloc, r.Locators[0].RLOC, q)
	default:
		p.dropped[fmt.Sprintf("do-%d", r.Do)]++
	}
}

func (p *labPlane) notLocal(q packet, from netip.Addr, kind fib.EventKind) {
	p.dropped["not-local"]++
	if p.x != nil {
		p.x.DataPlaneEvent(fib.Event{Kind: kind, At: time.Now(), EID: q.eid, RLOC: from.String()})
	}
}

func (p *labPlane) give(r fib.Route, q packet) {
	for _, t := range p.taps {
		if t.index != r.If {
			continue
		}
		t.given++
		if r.Copy && p.x != nil {
			t.copies = append(t.copies, labCopy{q, t.given})
		}
		if len(t.queue) >= t.room {
			t.dropped++
			return
		}
		t.queue = append(t.queue, q)
		t.drain()
		return
	}
	p.dropped["no-interface"]++
}

func (p *labPlane) hold(n uint32) *labHold {
	h := p.holds[n]
	if h == nil {
		h = &labHold{}
		p.holds[n] = h
	}
	return h
}

func (p *labPlane) Release(e lisp.EID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, qs := range p.misses {
		if e.Contains(d) {
			delete(p.misses, d)
			for _, q := range qs {
				p.forward(q, netip.Addr{}, false)
			}
		}
	}
}

func (p *labPlane) Reject(e lisp.EID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, qs := range p.misses {
		if e.Contains(d) {
			delete(p.misses, d)
			p.dropped["rejected"] += len(qs)
		}
	}
}

func (p *labPlane) Flush(n uint32, done func(HoldStats))    { p.flush(n, false, done) }
func (p *labPlane) GiveBack(n uint32, done func(HoldStats)) { p.flush(n, true, done) }

func (p *labPlane) flush(n uint32, leave bool, done func(HoldStats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hold(n)
	h.leave = leave
	h.done = append(h.done, done)
	if h.flushing {
		return
	}
	h.flushing = true
	go func() {
		idle := 0
		for {
			time.Sleep(20 * time.Microsecond)
			p.mu.Lock()
			switch {
			case !h.flushing: // the process has died
				p.mu.Unlock()
				return
			case len(h.wait) > 0:
				q := h.wait[0]
				h.wait = h.wait[1:]
				h.reinjected++
				if h.leave && q.replay {
					if h.stats.Dropped == nil {
						h.stats.Dropped = map[string]uint64{}
					}
					h.stats.Dropped["replay"]++
				} else {
					p.forward(q, netip.MustParseAddr("0.0.0.0"), true)
				}
			case h.diverted != h.reinjected && idle < 10000:
				idle++ // packets that a dead agent has never read
			default:
				h.diverted, h.reinjected = 0, 0
				h.flushing = false
				dones, st := h.done, h.stats
				h.done, h.stats = nil, HoldStats{}
				p.mu.Unlock()
				for _, f := range dones {
					f(st)
				}
				return
			}
			p.mu.Unlock()
		}
	}()
}

func (p *labPlane) Discard(n uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hold(n)
	p.dropped["discarded"] += len(h.wait)
	*h = labHold{}
}

func (p *labPlane) Replay(n uint32, port uint16, read uint64) int {
	time.Sleep(200 * time.Microsecond)
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hold(n)
	for _, t := range p.taps {
		if t.port != port {
			continue
		}
		var again []packet
		for _, c := range t.copies {
			if c.n > read {
				c.p.replay = true
				again = append(again, c.p)
			}
		}
		t.copies = nil
		h.wait = append(again, h.wait...)
		h.diverted += len(again)
		h.stats.Replayed += uint64(len(again))
		return len(again)
	}
	return 0
}

func (p *labPlane) Forget(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.taps {
		if t.port == port {
			t.copies = nil
		}
	}
}

func (p *labPlane) PortStats(index int) (read, dropped uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.taps {
		if t.index == index {
			return t.read, t.dropped, nil
		}
	}
	return 0, 0, errors.New("no such interface")
}

func (p *labPlane) Arm(int) {}

func (p *labPlane) Delivered(index int) (uint64, error) {
	read, _, err := p.PortStats(index)
	return read, err
}

// setAt is when the last route that fits was set; zero: never.
func (p *labPlane) setAt(e lisp.EID, fits func(fib.Route) bool) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range slices.Backward(p.sets) {
		if s.r.EID == e && fits(s.r) {
			return s.at
		}
	}
	return time.Time{}
}

// simnetPath is the lab's ordinary path with loss.
func simnetPath(loss float64) simnet.Path {
	return simnet.Path{Delay: 500 * time.Microsecond, Loss: loss}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
