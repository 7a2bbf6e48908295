package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// A small cloud in memory: agents, Map-Servers and a store that outlive the controller. It runs in
// virtual time.

const latency = time.Millisecond

// memStore keeps JSON, so that nothing survives that a real store would lose.
type memStore struct {
	mu    sync.Mutex
	kinds map[string]map[string]json.RawMessage
	nonce uint64
	saves int
	fail  error // of Save, while set

	// dieAt kills the controller at that Save: in it, before anything is durable, or right after.
	dieAt  int
	before bool
	died   bool
}

func newMemStore() *memStore {
	s := &memStore{kinds: map[string]map[string]json.RawMessage{}}
	for _, k := range []string{"site", "hv", "vm", "move", "migration", "link", "service"} {
		s.kinds[k] = map[string]json.RawMessage{}
	}
	return s
}

func loadKind[V any](s *memStore, kind string) (out []V, err error) {
	for _, b := range s.kinds[kind] {
		var v V
		if err := json.Unmarshal(b, &v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (s *memStore) Load() (Saved, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out Saved
	var errs [7]error
	out.Sites, errs[0] = loadKind[Site](s, "site")
	out.Hypervisors, errs[1] = loadKind[Hypervisor](s, "hv")
	out.VMs, errs[2] = loadKind[VM](s, "vm")
	out.Moves, errs[3] = loadKind[Move](s, "move")
	out.Migrations, errs[4] = loadKind[MigrationRecord](s, "migration")
	out.Links, errs[5] = loadKind[LinkMemory](s, "link")
	out.Services, errs[6] = loadKind[Service](s, "service")
	out.Nonce = s.nonce
	return out, errors.Join(errs[:]...)
}

func saveKind[V any](s *memStore, kind string, put []V, del []string, name func(V) string) {
	for _, v := range put {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		if slices.Contains(del, name(v)) {
			panic(kind + " " + name(v) + " is both put and deleted")
		}
		s.kinds[kind][name(v)] = b
	}
	for _, d := range del {
		delete(s.kinds[kind], d)
	}
}

func (s *memStore) Save(b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.saves++
	if s.saves == s.dieAt && s.before {
		s.died = true
		runtime.Goexit()
	}
	saveKind(s, "site", b.PutSites, b.DelSites, siteName)
	saveKind(s, "hv", b.PutHypervisors, b.DelHypervisors, hvName)
	saveKind(s, "vm", b.PutVMs, b.DelVMs, vmName)
	saveKind(s, "move", b.PutMoves, b.DelMoves, moveID)
	saveKind(s, "migration", b.PutMigrations, b.DelMigrations, migID)
	saveKind(s, "link", b.PutLinks, nil, linkName)
	saveKind(s, "service", b.PutServices, b.DelServices, serviceName)
	if b.Nonce != 0 {
		s.nonce = b.Nonce
	}
	if s.saves == s.dieAt {
		s.died = true
		runtime.Goexit()
	}
	return nil
}

func (s *memStore) Close() error { return nil }

// fakeAgent behaves as an xTR's agent does, as far as the controller sees it.
type fakeAgent struct {
	name string
	mode string // "" = well; "down", "hang", "500", "refuse", "forget"
	vms  map[string]agentVM
	hos  map[string]*AgentRecord
	log  []string
	told int // PUTs of VMs

	node  *agentNode
	local []agentLocal
}

// cloud is the world of a test. Its lock is held for moments only, never while time passes.
type cloud struct {
	t      *testing.T
	mu     sync.Mutex
	agents map[string]*fakeAgent
	ms     map[netip.Addr]*fakeMS
	in     chan control.Packet
	store  *memStore
	cfg    Config
	line   []func() // datagrams on their way, in order

	hyps     map[string]*fakeHyp
	lastMove string         // that the hypervisors' migrations belong to
	wg       sync.WaitGroup // what they do on their own
}

func newCloud(t *testing.T) *cloud {
	w := &cloud{t: t, agents: map[string]*fakeAgent{}, ms: map[netip.Addr]*fakeMS{},
		in: make(chan control.Packet, 4096), store: newMemStore(), hyps: map[string]*fakeHyp{}}
	for i := range 2 {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(7 + i)})
		k := lisp.Key{ID: 9, Algorithm: lisp.AlgHMACSHA256_128, Secret: fmt.Sprintf("controller at %v", a)}
		w.ms[a] = &fakeMS{addr: a, key: k, reg: map[lisp.EID]lisp.Mapping{}, last: map[string]uint64{}}
		w.cfg.MapServers = append(w.cfg.MapServers, Server{a, k})
	}
	w.cfg.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.9")}
	w.cfg.Name = "ctl"
	w.cfg.Drivers = w.drivers
	for _, hv := range []string{"hv1", "hv2", "hv3", "hv4", "hv9"} {
		w.hyp(hv)
	}
	return w
}

func (w *cloud) servers() []*fakeMS {
	var out []*fakeMS
	for _, s := range w.cfg.MapServers {
		out = append(out, w.ms[s.Addr])
	}
	return out
}

func (w *cloud) agent(hv string) *fakeAgent {
	a := w.agents[hv]
	if a == nil {
		a = &fakeAgent{name: hv, vms: map[string]agentVM{}, hos: map[string]*AgentRecord{}}
		w.agents[hv] = a
	}
	return a
}

func (w *cloud) with(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// enter is the beginning of every call to an agent; it returns with the lock held, or an error.
func (w *cloud) enter(ctx context.Context, h Hypervisor, what string) (*fakeAgent, error) {
	time.Sleep(latency)
	w.mu.Lock()
	a := w.agent(h.Name)
	switch a.mode {
	case "down":
		w.mu.Unlock()
		return nil, errors.New("connection refused")
	case "hang":
		w.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	case "500":
		w.mu.Unlock()
		return nil, &StatusError{500, "out of order"}
	}
	if what != "" {
		a.log = append(a.log, what)
	}
	return a, nil
}

func (w *cloud) PutVM(ctx context.Context, h Hypervisor, name string, vm agentVM) error {
	a, err := w.enter(ctx, h, "")
	if err != nil {
		return err
	}
	defer w.mu.Unlock()
	a.told++
	for o, v := range a.vms {
		for _, e := range vm.EIDs {
			if o != name && slices.Contains(v.EIDs, e) {
				return fmt.Errorf("agent: %w", &StatusError{409, e.String() + " is of " + o})
			}
		}
	}
	a.vms[name] = vm
	return nil
}

func (w *cloud) DeleteVM(ctx context.Context, h Hypervisor, name string) error {
	a, err := w.enter(ctx, h, "")
	if err == nil {
		delete(a.vms, name)
		w.mu.Unlock()
	}
	return err
}

func (w *cloud) Prepare(ctx context.Context, h Hypervisor, id string, b agentHandover) (*AgentRecord, error) {
	a, err := w.enter(ctx, h, "prepare "+string(b.Role)+" "+id)
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	if a.mode == "refuse" {
		return nil, fmt.Errorf("agent: %w", &StatusError{422, "unknown interface"})
	}
	r := a.hos[id]
	if r == nil {
		r = &AgentRecord{ID: id, VM: b.VM, Role: b.Role, EIDs: b.EIDs, PeerRLOC: b.PeerRLOC.String(), State: "armed"}
		r.Times.Prepared = time.Now()
		a.hos[id] = r
		w.lastMove = id
	}
	if r.Times.Run.IsZero() {
		r.Version = b.Version
	}
	return a.see(r), nil
}

const settleTime = 30 * time.Second

// see is what the agent shows of r: it settles by itself.
func (a *fakeAgent) see(r *AgentRecord) *AgentRecord {
	from := r.Times.Run
	if r.Role == Source {
		from = r.Times.Redirecting
	}
	if !from.IsZero() && r.Times.Aborted.IsZero() && r.Times.Settled.IsZero() && time.Since(from) >= settleTime {
		r.Times.Settled, r.State = from.Add(settleTime), "settled"
	}
	out := *r
	return &out
}

func (w *cloud) Tell(ctx context.Context, h Hypervisor, id string, v Verb) (*AgentRecord, error) {
	a, err := w.enter(ctx, h, string(v)+" "+id)
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	r := a.hos[id]
	if r == nil {
		return nil, &StatusError{404, "no such handover"}
	}
	switch {
	case v == VerbCommit && r.Role == Target:
		w.run(a, r)
	case v == VerbCommit:
		if r.Times.Aborted.IsZero() {
			redirect(r)
		}
	case r.Role == Target && !r.Times.Run.IsZero():
		return nil, fmt.Errorf("agent: %w", &StatusError{409, "the VM runs here"})
	case r.Times.Aborted.IsZero():
		r.Times.Aborted, r.State, r.Why = time.Now(), "aborted", "told so"
	}
	return a.see(r), nil
}

func redirect(r *AgentRecord) {
	if r.Times.Redirecting.IsZero() {
		r.Times.Paused, r.Times.Redirecting = time.Now(), time.Now()
		r.State, r.Redirected, r.Replayed = "redirecting", 17, 2
	}
}

// run: the VM runs on this target, whose xTR claims the EIDs at every Map-Server that it reaches.
func (w *cloud) run(a *fakeAgent, r *AgentRecord) {
	if !r.Times.Run.IsZero() {
		return
	}
	r.Times.Run, r.State, r.Held = time.Now(), "running", 23
	r.Times.Flushed = time.Now()
	claim := claimed(r.Version)
	for _, s := range w.servers() {
		if s.down {
			continue
		}
		for _, e := range r.EIDs {
			v, ok := s.claim(e, claim, xtrOf(a.name), rlocOf(a.name))
			if ok {
				r.Version, r.Times.Claimed = v, time.Now()
			}
		}
	}
}

func (w *cloud) Handover(ctx context.Context, h Hypervisor, id string) (*AgentRecord, error) {
	a, err := w.enter(ctx, h, "")
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	r := a.hos[id]
	if r == nil {
		return nil, &StatusError{404, "no such handover"}
	}
	return a.see(r), nil
}

func (w *cloud) Handovers(ctx context.Context, h Hypervisor) ([]AgentRecord, error) {
	a, err := w.enter(ctx, h, "")
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	out := []AgentRecord{}
	for _, r := range a.hos {
		out = append(out, *a.see(r))
	}
	slices.SortFunc(out, func(a, b AgentRecord) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (w *cloud) Node(ctx context.Context, h Hypervisor) (*agentNode, error) {
	a, err := w.enter(ctx, h, "")
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	return a.node, nil
}

func (w *cloud) Local(ctx context.Context, h Hypervisor) ([]agentLocal, error) {
	a, err := w.enter(ctx, h, "")
	if err != nil {
		return nil, err
	}
	defer w.mu.Unlock()
	return a.local, nil
}

// migrate is the VM going from one hypervisor to another, as the agents see it.
func (w *cloud) migrate(id, from, to string, blackout time.Duration) {
	w.with(func() {
		if r := w.agent(from).hos[id]; r != nil {
			redirect(r)
		}
	})
	time.Sleep(blackout)
	w.with(func() {
		if r := w.agent(to).hos[id]; r != nil {
			w.run(w.agent(to), r)
		}
	})
}

// fakeMS is a Map-Server with the rules of DESIGN.md section 3.
type fakeMS struct {
	addr  netip.Addr
	key   lisp.Key
	down  bool
	lose  int  // the next answers are lost
	forge bool // answers are not what they seem
	reg   map[lisp.EID]lisp.Mapping
	last  map[string]uint64 // nonces
	got   int               // Map-Registers from the controller
	log   []string
}

// claim registers, and returns the version, or what is held instead.
func (s *fakeMS) claim(e lisp.EID, v lisp.Version, x lisp.XTRID, rloc netip.Addr) (lisp.Version, bool) {
	n := lisp.Mapping{EID: e, Version: v, XTRID: x, TTL: 1440, Locators: (&Side{RLOC: rloc}).registered()}
	old, ok := s.reg[e]
	switch {
	case !ok && v == 0:
		n.Version = 1
	case ok && v == 0 && old.XTRID != x:
		n.Version = old.Version.Next()
	case ok && v == 0:
		n.Version = old.Version
	case ok && !n.Supersedes(old):
		return old.Version, false
	}
	s.reg[e] = n
	return n.Version, true
}

// fakeEndpoint carries the controller's datagrams to the Map-Servers.
type fakeEndpoint struct{ w *cloud }

func (f fakeEndpoint) Counters() map[string]uint64 { return map[string]uint64{"sent": 0} }

func (f fakeEndpoint) Run(ctx context.Context, handle func(control.Packet)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-f.w.in:
			handle(p)
		}
	}
}

func (f fakeEndpoint) Send(to netip.AddrPort, b []byte) error {
	w := f.w
	m, err := lisp.Decode(b)
	if err != nil {
		w.t.Errorf("the controller sent %x: %v", b, err)
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(w.line, func() {
		s := w.ms[to.Addr()]
		if s == nil || s.down {
			return
		}
		if to.Port() != lisp.ControlPort {
			w.t.Errorf("sent to %v", to)
		}
		var raw []byte
		switch m := m.(type) {
		case *lisp.MapRegister:
			raw = s.register(w.t, b, m)
		case *lisp.ECM:
			raw = s.request(w.t, m)
		default:
			w.t.Errorf("the controller sent a %T", m)
		}
		if s.lose > 0 && raw != nil {
			s.lose--
			return
		}
		if raw != nil {
			msg, err := lisp.Decode(raw)
			if err != nil {
				w.t.Errorf("answer: %v", err)
				return
			}
			w.in <- control.Packet{Msg: msg, Raw: raw, From: to}
		}
	})
	time.AfterFunc(latency, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.line[0]()
		w.line = w.line[1:]
	})
	return nil
}

func (s *fakeMS) register(t *testing.T, raw []byte, m *lisp.MapRegister) []byte {
	if err := lisp.Verify(raw, m, s.key); err != nil {
		t.Errorf("Map-Register at %v: %v", s.addr, err)
		return nil
	}
	if !m.HasXTRID || m.XTRID.IsZero() || !m.WantMapNotify || m.Merge || len(m.Records) != 1 {
		t.Errorf("Map-Register: %+v", m)
	}
	s.got++
	k := fmt.Sprint(m.XTRID, m.Auth.KeyID)
	if m.Nonce <= s.last[k] {
		t.Errorf("nonce %d after %d", m.Nonce, s.last[k])
	}
	s.last[k] = m.Nonce
	r := m.Records[0]
	s.log = append(s.log, fmt.Sprintf("%v version %d at %v", r.EID, r.Version, r.Locators[0].RLOC))
	s.claim(r.EID, r.Version, m.XTRID, r.Locators[0].RLOC)
	cur := s.reg[r.EID]
	if s.forge {
		cur.Version += 5
		n := &lisp.MapNotify{Nonce: m.Nonce, Records: []lisp.Mapping{cur}, HasXTRID: true, XTRID: cur.XTRID}
		k := s.key
		if s.got%2 == 0 {
			n.Nonce++
		} else {
			k.Secret = "guessed"
		}
		b, err := lisp.AppendSigned(nil, n, k)
		if err != nil {
			t.Errorf("Map-Notify: %v", err)
		}
		return b
	}
	b, err := lisp.AppendSigned(nil, &lisp.MapNotify{Nonce: m.Nonce, Records: []lisp.Mapping{cur}, HasXTRID: true, XTRID: cur.XTRID}, s.key)
	if err != nil {
		t.Errorf("Map-Notify: %v", err)
	}
	return b
}

func (s *fakeMS) request(t *testing.T, e *lisp.ECM) []byte {
	m, err := e.Message()
	if err != nil {
		t.Errorf("ECM: %v", err)
		return nil
	}
	q := m.(*lisp.MapRequest)
	rep := &lisp.MapReply{Nonce: q.Nonce}
	eid := q.Records[0].EID
	if r, ok := s.reg[eid]; ok {
		rep.Records = []lisp.Mapping{r}
	} else {
		rep.Records = []lisp.Mapping{{EID: lisp.MakeEID(0, netip.PrefixFrom(eid.Prefix.Addr(), 16)), TTL: 1, Action: lisp.ActNativelyForward}}
	}
	b, err := lisp.Append(nil, rep)
	if err != nil {
		t.Errorf("Map-Reply: %v", err)
	}
	return b
}

// ctl is a running controller.
type ctl struct {
	*Controller
	stop context.CancelFunc
	done chan struct{}
	err  error
}

func (w *cloud) start() *ctl {
	w.t.Helper()
	c, err := newController(w.cfg, fakeEndpoint{w}, w.store, w, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &ctl{Controller: c, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = c.Run(ctx)
	}()
	return r
}

func (r *ctl) end() {
	r.stop()
	<-r.done
	r.wg.Wait()
}

// request makes one API request without a network.
func (r *ctl) request(method, path, body string) (int, string) {
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, path, rd)
	if r.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.cfg.Token)
	}
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

func (r *ctl) must(t *testing.T, want int, method, path, body string) string {
	t.Helper()
	code, text := r.request(method, path, body)
	if code != want {
		t.Fatalf("%s %s %s: %d %s", method, path, body, code, text)
	}
	return text
}

func (r *ctl) move(t *testing.T, id string) Record {
	t.Helper()
	var rec Record
	if err := json.Unmarshal([]byte(r.must(t, http.StatusOK, "GET", "/v1/moves/"+id, "")), &rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// until waits until the move is in one of the states.
func (r *ctl) until(t *testing.T, id string, states ...State) Record {
	t.Helper()
	for i := range 10_000 {
		rec := r.move(t, id)
		if slices.Contains(states, rec.State) {
			return rec
		}
		time.Sleep(time.Duration(min(i, 100)) * 10 * time.Millisecond)
	}
	t.Fatalf("move %s does not come to %v: %+v", id, states, r.move(t, id))
	return Record{}
}

var noAddr netip.Addr

var hvNames = []string{"hv1", "hv2", "hv3"}

func rlocOf(hv string) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, hv[2] - '0'}) }
func xtrOf(hv string) lisp.XTRID  { return lisp.XTRID{15: hv[2] - '0'} }

func hvBody(hv string) string {
	return fmt.Sprintf(`{"site":"s%s","rloc":"%s","xtr_id":"%s","agent":"http://%s:4380"}`, hv[2:], rlocOf(hv), xtrOf(hv), hv)
}

const webBody = `{"hypervisor":"hv1","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"],"interface":"tap-web"}`

var webEIDs = []lisp.EID{mustEID("198.51.100.10/32"), mustEID("2001:db8:e1d:1::10/128")}

func mustEID(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

// furnish puts three sites with a hypervisor each and the VM web on hv1, with version at the Map-Servers.
func (w *cloud) furnish(t *testing.T, r *ctl, version lisp.Version) {
	t.Helper()
	for _, h := range hvNames {
		r.must(t, http.StatusCreated, "PUT", "/v1/sites/s"+h[2:], `{}`)
		r.must(t, http.StatusCreated, "PUT", "/v1/hypervisors/"+h, hvBody(h))
	}
	r.must(t, http.StatusCreated, "PUT", "/v1/vms/web", webBody)
	if version != 0 {
		w.with(func() {
			for _, s := range w.servers() {
				for _, e := range webEIDs {
					s.claim(e, version, xtrOf("hv1"), rlocOf("hv1"))
				}
			}
		})
	}
}

// checkAt fails unless every Map-Server that is up holds the VM at hv.
func (w *cloud) checkAt(t *testing.T, hv string, version lisp.Version) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.servers() {
		for _, e := range webEIDs {
			m := s.reg[e]
			if s.down {
				continue
			}
			if m.XTRID != xtrOf(hv) || version != 0 && m.Version != version {
				t.Errorf("%v holds %v at %v with version %d, want %s with %d\n%s", s.addr, e, m.XTRID, m.Version, hv, version, strings.Join(s.log, "\n"))
			}
		}
	}
}
