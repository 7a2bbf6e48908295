package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/controller"
	"github.com/tabi-lisp/tabi/controller/boltstore"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
)

// The controller with everything real but its peers: agents over HTTP, Map-Servers over UDP, bbolt.

// agent is an xTR's agent over HTTP.
type agent struct {
	*httptest.Server
	name string
	mu   sync.Mutex
	mode string // "" = well; "hang", "500", "die" (the connection ends), "garbage"
	vms  map[string]json.RawMessage
	hos  map[string]map[string]any
	stop chan struct{}
}

const agentToken = "agent's token"

func newAgent(t *testing.T, name string) *agent {
	a := &agent{name: name, vms: map[string]json.RawMessage{}, hos: map[string]map[string]any{}, stop: make(chan struct{})}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(func() {
		close(a.stop)
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

func (a *agent) set(mode string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mode = mode
}

func (a *agent) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.mode {
	case "hang":
		a.mu.Unlock()
		select {
		case <-a.stop:
		case <-r.Context().Done():
		}
		a.mu.Lock()
		return
	case "500":
		http.Error(w, "out of order\nstack trace", http.StatusInternalServerError)
		return
	case "die":
		panic(http.ErrAbortHandler)
	case "garbage":
		fmt.Fprint(w, "<html>")
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+agentToken {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"wrong token"}`)
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	now := time.Now().Format(time.RFC3339Nano)
	switch {
	case r.Method == "PUT" && parts[1] == "vms":
		a.vms[parts[2]] = b
	case r.Method == "GET" && len(parts) == 2:
		list := []map[string]any{}
		for _, h := range a.hos {
			list = append(list, h)
		}
		answer(w, list)
	case r.Method == "PUT":
		var body map[string]any
		if err := json.Unmarshal(b, &body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if a.hos[parts[2]] == nil {
			a.hos[parts[2]] = map[string]any{"id": parts[2], "vm": body["vm"], "role": body["role"], "state": "armed", "eids": body["eids"],
				"peer_rloc": body["peer_rloc"], "version": body["version"], "times": map[string]any{"prepared": now}}
		}
		answer(w, a.hos[parts[2]])
	case a.hos[parts[2]] == nil:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"error":"no such handover"}`)
	case r.Method == "POST" && parts[3] == "commit":
		h := a.hos[parts[2]]
		h["state"], h["times"] = "settled", map[string]any{"prepared": now, "run": now, "settled": now}
		answer(w, h)
	case r.Method == "POST":
		h := a.hos[parts[2]]
		h["state"], h["times"] = "aborted", map[string]any{"prepared": now, "aborted": now}
		answer(w, h)
	default:
		answer(w, a.hos[parts[2]])
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// mapServer answers over UDP until its socket is closed.
type mapServer struct {
	conn net.PacketConn
	key  lisp.Key
	mu   sync.Mutex
	reg  map[lisp.EID]lisp.Mapping
	last uint64
	deaf bool
}

func newMapServer(t *testing.T, addr netip.AddrPort, key lisp.Key) *mapServer {
	conn, err := net.ListenPacket("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	m := &mapServer{conn: conn, key: key, reg: map[lisp.EID]lisp.Mapping{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.serve(t)
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return m
}

func (s *mapServer) serve(t *testing.T) {
	buf := make([]byte, 65536)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		msg, err := lisp.Decode(buf[:n])
		if err != nil {
			t.Errorf("the controller sent %x: %v", buf[:n], err)
			continue
		}
		s.mu.Lock()
		var out []byte
		switch m := msg.(type) {
		case *lisp.MapRegister:
			if err := lisp.Verify(buf[:n], m, s.key); err != nil {
				t.Errorf("Map-Register: %v", err)
			}
			if m.Nonce > s.last && !s.deaf {
				s.last = m.Nonce
				rec := m.Records[0]
				rec.XTRID = m.XTRID
				if old, ok := s.reg[rec.EID]; !ok || rec.Supersedes(old) {
					s.reg[rec.EID] = rec
				}
				cur := s.reg[rec.EID]
				out, err = lisp.AppendSigned(nil, &lisp.MapNotify{Nonce: m.Nonce, Records: []lisp.Mapping{cur}, HasXTRID: true, XTRID: cur.XTRID}, s.key)
			}
		case *lisp.ECM:
			inner, ierr := m.Message()
			q, ok := inner.(*lisp.MapRequest)
			if ierr != nil || !ok || m.Source.Port() == 0 {
				t.Errorf("ECM: %v %T", ierr, inner)
				break
			}
			rep := &lisp.MapReply{Nonce: q.Nonce}
			if r, ok := s.reg[q.Records[0].EID]; ok {
				rep.Records = append(rep.Records, r)
			}
			from = net.UDPAddrFromAddrPort(netip.AddrPortFrom(q.ITRRLOCs[0], m.Source.Port()))
			if !s.deaf {
				out, err = lisp.Append(nil, rep)
			}
		}
		s.mu.Unlock()
		if err != nil {
			t.Errorf("answer: %v", err)
		} else if out != nil {
			if _, err := s.conn.WriteTo(out, from); err != nil {
				return
			}
		}
	}
}

// at returns who holds an EID, and the version.
func (s *mapServer) at(e lisp.EID) (lisp.XTRID, lisp.Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reg[e].XTRID, s.reg[e].Version
}

// site is a controller between two agents and two Map-Servers.
type site struct {
	t      *testing.T
	cfg    controller.Config
	agents []*agent
	ms     []*mapServer
	db     string
	url    string

	stop func()
}

var vm4, vm6 = lisp.HostEID(0, netip.MustParseAddr("198.51.100.10")), lisp.HostEID(0, netip.MustParseAddr("2001:db8:e1d:1::10"))

func newNetwork(t *testing.T) *site {
	s := &site{t: t, db: filepath.Join(t.TempDir(), "controller.db")}
	s.cfg = controller.Config{Name: "test", Token: "api's token", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.9")},
		Timing: controller.Timing{Call: 300 * time.Millisecond, Prepare: 2 * time.Second, Abort: time.Second, Poll: 50 * time.Millisecond,
			PollIdle: 200 * time.Millisecond, Register: 100 * time.Millisecond, Settle: 5 * time.Second}}
	for i := range 2 {
		a := netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)})
		k := lisp.Key{ID: 3, Algorithm: lisp.AlgHMACSHA256_128, Secret: fmt.Sprint("secret ", i)}
		s.cfg.MapServers = append(s.cfg.MapServers, controller.Server{Addr: a, Key: k})
		m := newMapServer(t, netip.AddrPortFrom(a, s.cfg.Port), k)
		s.cfg.Port = uint16(m.conn.LocalAddr().(*net.UDPAddr).Port) // the kernel chose the first one's
		for _, e := range []lisp.EID{vm4, vm6} {
			m.mu.Lock()
			m.reg[e] = lisp.Mapping{EID: e, Version: 4, XTRID: lisp.XTRID{15: 1}, TTL: 1, Locators: []lisp.Locator{{RLOC: a, Reachable: true}}}
			m.mu.Unlock()
		}
		s.ms = append(s.ms, m)
	}
	for i := range 2 {
		s.agents = append(s.agents, newAgent(t, fmt.Sprintf("hv%d", i+1)))
	}
	s.start()
	t.Cleanup(func() { s.stop() })
	for i, a := range s.agents {
		n := i + 1
		s.must("PUT", fmt.Sprintf("/v1/sites/s%d", n), `{}`)
		s.must("PUT", "/v1/hypervisors/"+a.name, fmt.Sprintf(`{"site":"s%d","rloc":"127.0.1.%d","xtr_id":"%032d","agent":"%s","token":"%s"}`, n, n, n, a.URL, agentToken))
	}
	s.must("PUT", "/v1/vms/web", `{"hypervisor":"hv1","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10","2001:db8:e1d:1::10"]}`)
	return s
}

// start starts a controller on the same file.
func (s *site) start() {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	conns, err := control.Listen(s.t.Context(), netip.AddrPortFrom(s.cfg.Addresses[0], s.cfg.Port))
	if err != nil {
		s.t.Fatal(err)
	}
	store, err := boltstore.Open(s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := controller.New(s.cfg, control.New(log, conns...), store, log)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	web := httptest.NewServer(c.Handler())
	s.url = web.URL
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
		web.Close()
		if err := store.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *site) request(method, path, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (s *site) must(method, path, body string) string {
	s.t.Helper()
	code, text := s.request(method, path, body)
	if code >= 300 {
		s.t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
	return text
}

func (s *site) until(id string, state controller.State) controller.Record {
	s.t.Helper()
	var r controller.Record
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := json.Unmarshal([]byte(s.must("GET", "/v1/moves/"+id, "")), &r); err != nil {
			s.t.Fatal(err)
		}
		if r.State == state {
			return r
		}
	}
	s.t.Fatalf("move %s does not come to %s: %+v", id, state, r)
	return r
}

func (s *site) heldBy(hv byte, version lisp.Version, servers ...*mapServer) {
	s.t.Helper()
	for _, m := range servers {
		for _, e := range []lisp.EID{vm4, vm6} {
			var x lisp.XTRID
			var v lisp.Version
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if x, v = m.at(e); x == (lisp.XTRID{15: hv}) && v == version {
					break
				}
			}
			if x != (lisp.XTRID{15: hv}) || v != version {
				s.t.Errorf("%v holds %v at %v with version %d, want hv%d with %d", m.conn.LocalAddr(), e, x, v, hv, version)
			}
		}
	}
}

func TestNetworkMove(t *testing.T) {
	t.Parallel()
	s := newNetwork(t)
	s.must("PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
	s.must("POST", "/v1/moves/m1/commit?wait=5s", "")
	s.heldBy(2, 5, s.ms...)
	r := s.until("m1", controller.Settled)
	if r.Version != 5 || r.Source == nil || r.Target == nil || r.Times.Run.IsZero() {
		t.Errorf("%+v", r)
	}
	for _, a := range s.agents {
		a.mu.Lock()
		if got := string(a.vms["web"]); got != `{"interface":"","macs":["52:54:00:00:00:10"],"eids":["198.51.100.10/32","2001:db8:e1d:1::10/128"]}` {
			t.Errorf("%s was told %s", a.name, got)
		}
		a.mu.Unlock()
	}
	s.must("PUT", "/v1/moves/m2", `{"vm":"web","to":"hv1"}`)
	s.must("POST", "/v1/moves/m2/abort", "")
	s.heldBy(2, 5, s.ms...)
}

func TestNetworkFaults(t *testing.T) {
	for _, mode := range []string{"hang", "500", "die", "garbage"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newNetwork(t)
			for i, a := range s.agents {
				a.set(mode)
				code, text := s.request("PUT", fmt.Sprintf("/v1/moves/fails%d", i), `{"vm":"web","to":"hv2"}`)
				if code != http.StatusBadGateway || !strings.Contains(text, a.name) || strings.Contains(text, "stack trace") {
					t.Errorf("%d %s", code, text)
				}
				a.set("")
			}
			s.must("PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
			s.agents[0].set(mode)
			s.ms[0].mu.Lock()
			s.ms[0].deaf = true
			s.ms[0].mu.Unlock()
			s.must("POST", "/v1/moves/m1/commit?wait=5s", "")
			s.heldBy(2, 5, s.ms[1])
			// Killed and started again in mid-move.
			s.stop()
			s.start()
			s.agents[0].set("")
			s.ms[0].mu.Lock()
			s.ms[0].deaf = false
			s.ms[0].mu.Unlock()
			s.heldBy(2, 5, s.ms...)
			s.until("m1", controller.Settled)
		})
	}
}

func TestNetworkAgentToken(t *testing.T) {
	t.Parallel()
	s := newNetwork(t)
	hv2 := s.agents[1]
	s.must("PUT", "/v1/hypervisors/hv2", fmt.Sprintf(`{"site":"s2","rloc":"127.0.1.2","xtr_id":"%032d","agent":"%s","token":"old"}`, 2, hv2.URL))
	code, text := s.request("PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
	if code != http.StatusBadGateway || !strings.Contains(text, "wrong token") {
		t.Errorf("%d %s", code, text)
	}
	s.must("PUT", "/v1/hypervisors/hv2", fmt.Sprintf(`{"site":"s2","rloc":"127.0.1.2","xtr_id":"%032d","agent":"%s","token":"%s"}`, 2, hv2.URL, agentToken))
	s.must("PUT", "/v1/moves/m2", `{"vm":"web","to":"hv2"}`)
}

// Services over HTTP, UDP and bbolt: a Map-Server that is deaf is told after the restart of the controller.
func TestNetworkService(t *testing.T) {
	t.Parallel()
	s := newNetwork(t)
	held := func(m *mapServer, e lisp.EID) string {
		m.mu.Lock()
		defer m.mu.Unlock()
		return fmt.Sprintf("%v version %d ttl %d", m.reg[e].Inside, m.reg[e].Version, m.reg[e].TTL)
	}
	state := func(path string) controller.ServiceStatus {
		var st controller.ServiceStatus
		if err := json.Unmarshal([]byte(s.must("GET", path, "")), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	const path = "/v1/services/203.0.113.9"
	out := lisp.HostEID(0, netip.MustParseAddr("203.0.113.9"))
	s.must("PUT", path+"?wait=5s", `{"vm":"web"}`)
	if st := state(path); st.State != controller.ServiceConfirmed {
		t.Errorf("%+v", st)
	}
	deaf := func(is bool) {
		s.ms[0].mu.Lock()
		s.ms[0].deaf = is
		s.ms[0].mu.Unlock()
	}
	deaf(true)
	s.must("PUT", "/v1/vms/web2", `{"hypervisor":"hv1","eids":["2001:db8:e1d:1::11"]}`)
	s.must("POST", path+"/move?wait=300ms", `{"vm":"web2"}`)
	if st := state(path); st.State != controller.ServicePending || st.MapServers[0].Confirmed || !st.MapServers[1].Confirmed {
		t.Errorf("%+v", st)
	}
	s.stop()
	s.start()
	deaf(false)
	if st := state(path + "?wait=10s"); st.State != controller.ServiceConfirmed || st.VM != "web2" {
		t.Errorf("%+v", st)
	}
	for _, m := range s.ms {
		if h := held(m, out); h != "2001:db8:e1d:1::11/128 version 2 ttl 4294967295" {
			t.Error(h)
		}
	}
	code, text := s.request("DELETE", path+"?wait=10s", "")
	if code != http.StatusNoContent {
		t.Errorf("%d %s", code, text)
	}
	for _, m := range s.ms {
		if h := held(m, out); !strings.HasSuffix(h, "version 3 ttl 0") {
			t.Error(h)
		}
	}
}
