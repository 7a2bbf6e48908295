package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/mapserver"
)

// Services with real Map-Servers, in memory and in virtual time. Agents are the fake ones.

var ctlAddr = netip.MustParseAddrPort("10.0.0.9:4342")

// pipe is an endpoint in memory.
type pipe struct {
	in   chan control.Packet
	from netip.AddrPort
	send func(from, to netip.AddrPort, b []byte)
}

func (p *pipe) Counters() map[string]uint64 { return nil }

func (p *pipe) Run(ctx context.Context, handle func(control.Packet)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-p.in:
			handle(c)
		}
	}
}

func (p *pipe) Send(to netip.AddrPort, b []byte) error {
	p.send(p.from, to, slices.Clone(b))
	return nil
}

// msStore is a Map-Server's store.
type msStore struct {
	mu       sync.Mutex
	services map[lisp.EID]mapserver.Service
	nonces   map[mapserver.NonceKey]uint64
}

func newMSStore() *msStore {
	return &msStore{services: map[lisp.EID]mapserver.Service{}, nonces: map[mapserver.NonceKey]uint64{}}
}

func (s *msStore) Load() (mapserver.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return mapserver.State{Services: slices.Collect(maps.Values(s.services)), Nonces: maps.Clone(s.nonces)}, nil
}

func (s *msStore) Save(b mapserver.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, v := range b.Services {
		if v == nil {
			delete(s.services, e)
		} else {
			s.services[e] = *v
		}
	}
	maps.Copy(s.nonces, b.Nonces)
	return nil
}

// cityMS is a real Map-Server.
type cityMS struct {
	addr  netip.AddrPort
	cfg   mapserver.Config
	store *msStore
	pipe  *pipe
	stop  func()
}

// city is a controller and two real Map-Servers.
type city struct {
	*ctl
	t    *testing.T
	w    *cloud
	ms   []*cityMS
	pipe *pipe
	mu   sync.Mutex
	lost func(from, to netip.AddrPort) bool // which datagrams are lost
	sent int                                // by the controller
	line []func()                           // datagrams on their way, in order
}

func (c *city) carry(from, to netip.AddrPort, b []byte) {
	c.mu.Lock()
	lost := c.lost != nil && c.lost(from, to)
	if from == ctlAddr {
		c.sent++
	}
	c.mu.Unlock()
	if lost {
		return
	}
	msg, err := lisp.Decode(b)
	if err != nil {
		c.t.Errorf("%v sent %x: %v", from, b, err)
		return
	}
	for _, p := range []*pipe{c.pipe, c.ms[0].pipe, c.ms[1].pipe} {
		if p.from == to {
			c.mu.Lock()
			c.line = append(c.line, func() {
				select {
				case p.in <- control.Packet{Msg: msg, Raw: b, From: from}:
				default: // nobody reads there
				}
			})
			c.mu.Unlock()
			time.AfterFunc(latency, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.line[0]()
				c.line = c.line[1:]
			})
		}
	}
}

func (m *cityMS) start(t *testing.T) {
	srv, err := mapserver.New(m.cfg, m.pipe, m.store, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for len(m.pipe.in) > 0 { // what came while it was away
		<-m.pipe.in
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Run(ctx); err != nil {
			t.Errorf("Map-Server: %v", err)
		}
	}()
	m.stop = func() {
		cancel()
		<-done
	}
}

// has is what it would tell a D-ETR: OUTSIDE>INSIDE.
func (m *cityMS) has() []string {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	out := []string{}
	for _, s := range m.store.services {
		if s.Mapping.TTL != lisp.TTLDelete {
			out = append(out, ServiceName(s.Mapping.EID.Prefix)+">"+ServiceName(s.Mapping.Inside))
		}
	}
	slices.Sort(out)
	return out
}

func (c *city) startController() {
	c.t.Helper()
	x, err := newController(c.w.cfg, c.pipe, c.w.store, c.w, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &ctl{Controller: x, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = x.Run(ctx)
	}()
	c.ctl = r
}

// inCity runs f with a controller, two Map-Servers, and VMs: web, with an IPv4 and an IPv6 EID, db with two IPv6 ones,
// old with IPv4 only, net with a prefix.
func inCity(t *testing.T, f func(t *testing.T, c *city)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &city{t: t, w: newCloud(t)}
		c.pipe = &pipe{make(chan control.Packet, 4096), ctlAddr, c.carry}
		for _, s := range c.w.cfg.MapServers {
			at := netip.AddrPortFrom(s.Addr, lisp.ControlPort)
			c.ms = append(c.ms, &cityMS{addr: at, store: newMSStore(), pipe: &pipe{make(chan control.Packet, 4096), at, c.carry},
				cfg: mapserver.Config{Name: "ms", Sites: []mapserver.Site{
					{Name: "cloud", Keys: []lisp.Key{{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "xtr"}}, ControllerKeys: []lisp.Key{s.Key}, AcceptMoreSpecifics: true,
						Prefixes: []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8:e1d::/48"), mustEID("203.0.113.0/24"), mustEID("2001:db8:5::/48")}},
					{Name: "another's", Keys: []lisp.Key{{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "other"}}, AcceptMoreSpecifics: true, Prefixes: []lisp.EID{mustEID("192.0.2.0/24")}},
				}}})
		}
		for _, m := range c.ms {
			m.start(t)
		}
		c.startController()
		c.must(t, http.StatusCreated, "PUT", "/v1/sites/s1", `{}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/hypervisors/hv1", hvBody("hv1"))
		for name, eids := range map[string]string{
			"web": `"198.51.100.10","2001:db8:e1d:1::10"`, "db": `"2001:db8:e1d:1::20","2001:db8:e1d:1::21"`, "old": `"198.51.100.30"`,
			"net": `"2001:db8:e1d:40::/64"`, "web2": `"2001:db8:e1d:1::11"`, "elsewhere": `"[7]2001:db8:e1d:1::50"`,
		} {
			c.must(t, http.StatusCreated, "PUT", "/v1/vms/"+name, `{"hypervisor":"hv1","eids":[`+eids+`]}`)
		}
		f(t, c)
		c.end()
		if c.err != nil {
			t.Errorf("Run: %v", c.err)
		}
		for _, m := range c.ms {
			m.stop()
		}
	})
}

func (c *city) service(outside string) ServiceStatus {
	c.t.Helper()
	var s ServiceStatus
	if err := json.Unmarshal([]byte(c.must(c.t, http.StatusOK, "GET", "/v1/services/"+outside, "")), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *city) have(want ...string) {
	c.t.Helper()
	time.Sleep(10 * latency)
	for _, m := range c.ms {
		if d := cmp.Diff(append([]string{}, want...), m.has()); d != "" {
			c.t.Errorf("%v has (-want +got):\n%s", m.addr, d)
		}
	}
}

func TestServiceLife(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		begin := time.Now()
		text := c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100?wait=10s", `{"vm":"web"}`)
		if d := time.Since(begin); d > 20*time.Millisecond {
			t.Errorf("waited %v", d)
		}
		if s := c.service("198.51.100.100"); s.State != ServiceConfirmed || s.VM != "web" || s.Kind != "ipv4" || s.Confirmed() != 2 || s.Version != 1 || s.Inside != pfx("2001:db8:e1d:1::10") {
			t.Errorf("%+v", s)
		}
		c.have("198.51.100.100>2001:db8:e1d:1::10")
		// Again, and what was read put back: the same.
		if again := c.must(t, http.StatusOK, "PUT", "/v1/services/198.51.100.100", `{"vm":"web"}`); again != text {
			t.Errorf("%s", cmp.Diff(text, again))
		}
		c.must(t, http.StatusOK, "PUT", "/v1/services/198.51.100.100-32", text)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/2001:db8:5::10", `{"vm":"web"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.101", `{"vm":"db","inside":"2001:db8:e1d:1::20"}`)
		c.must(t, http.StatusOK, "PUT", "/v1/services/198.51.100.101", `{"vm":"db"}`)
		if text := c.must(t, http.StatusOK, "POST", "/v1/services", `{"services":[{"outside":"198.51.100.101","vm":"db"}]}`); !strings.Contains(text, `"result": "exists"`) {
			t.Error(text)
		}
		c.must(t, http.StatusAccepted, "DELETE", "/v1/services/198.51.100.101", "")
		c.must(t, http.StatusCreated, "PUT", "/v1/services/203.0.113.16%2F28", `{"inside":"2001:db8:e1d:40::10/124"}`)
		c.have("198.51.100.100>2001:db8:e1d:1::10", "2001:db8:5::10>2001:db8:e1d:1::10", "203.0.113.16/28>2001:db8:e1d:40::10/124")
		if s := c.service("203.0.113.16-28"); s.VM != "net" {
			t.Errorf("%+v", s)
		}
		if text := c.must(t, http.StatusOK, "GET", "/v1/services?vm=web", ""); strings.Count(text, `"kind"`) != 2 {
			t.Error(text)
		}
		for vm, want := range map[string][]string{"web": {"198.51.100.100", "2001:db8:5::10"}, "net": {"203.0.113.16/28"}, "db": nil} {
			if got := decode[VMStatus](t, c.must(t, http.StatusOK, "GET", "/v1/vms/"+vm, "")).Services; !slices.Equal(got, want) {
				t.Errorf("vm %s has services %v, want %v", vm, got, want)
			}
		}
		// Moved, twice alike.
		for range 2 {
			c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.100/move?wait=5s", `{"vm":"web2"}`)
		}
		if s := c.service("198.51.100.100"); s.VM != "web2" || s.Version != 2 || s.State != ServiceConfirmed {
			t.Errorf("%+v", s)
		}
		c.have("198.51.100.100>2001:db8:e1d:1::11", "2001:db8:5::10>2001:db8:e1d:1::10", "203.0.113.16/28>2001:db8:e1d:40::10/124")
		// Deleted, and its EID is free for the next one at once.
		c.must(t, http.StatusNoContent, "DELETE", "/v1/services/198.51.100.100?wait=5s", "")
		c.must(t, http.StatusNotFound, "DELETE", "/v1/services/198.51.100.100", "")
		c.must(t, http.StatusAccepted, "DELETE", "/v1/services/2001:db8:5::10", "")
		c.must(t, http.StatusAccepted, "DELETE", "/v1/services/2001:db8:5::10", "")
		c.must(t, http.StatusCreated, "PUT", "/v1/services/2001:db8:5::11?wait=5s", `{"vm":"web"}`)
		c.have("2001:db8:5::11>2001:db8:e1d:1::10", "203.0.113.16/28>2001:db8:e1d:40::10/124")
		// Its address, too: the Map-Servers know what was there.
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100?wait=5s", `{"vm":"web"}`)
		if s := c.service("198.51.100.100"); s.State != ServiceConfirmed || s.Version != 4 {
			t.Errorf("%+v", s)
		}
	})
}

func TestServiceAPIErrors(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100", `{"vm":"web"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/203.0.113.16-28", `{"vm":"net","inside":"2001:db8:e1d:40::10/124"}`)
		const p = "/v1/services/"
		for _, x := range []struct {
			want               int
			method, path, body string
			text               string
		}{
			{400, "PUT", p + "web", `{"vm":"web"}`, "no address or prefix"},
			{400, "PUT", p + "203.0.113.17-28", `{"vm":"web"}`, "bits set beyond the prefix length: want 203.0.113.16/28"},
			{400, "PUT", p + "203.0.113.16-33", `{"vm":"web"}`, "is 1 to 32"},
			{400, "PUT", p + "203.0.113.0-028", `{"vm":"web"}`, "is 1 to 32"},
			{400, "PUT", p + "0.0.0.0-0", `{"vm":"web"}`, "is 1 to 32"},
			{400, "PUT", p + "224.0.0.1", `{"vm":"web2"}`, "no host is reached"},
			{400, "PUT", p + "198.51.100.101", `{}`, "vm or inside"},
			{400, "PUT", p + "198.51.100.101", `{"inside":"web"}`, "no address or prefix"},
			{400, "PUT", p + "198.51.100.101?wait=1h", `{"vm":"web2"}`, "wait"},
			{400, "PUT", p + "198.51.100.101", `{"vm":"web2","outside":"198.51.100.102/32"}`, "another one"},
			{400, "PUT", p + "198.51.100.101", `{"inside":"2001:db8:e1d:40::/64"}`, "host bits"},
			{404, "PUT", p + "198.51.100.101", `{"vm":"nobody"}`, `no vm \"nobody\"`},
			{409, "PUT", p + "198.51.100.101", `{"vm":"db"}`, "several IPv6 EIDs: say which (\\\"inside\\\", --eid): 2001:db8:e1d:1::20/128 2001:db8:e1d:1::21/128"},
			{409, "PUT", p + "198.51.100.101", `{"vm":"old"}`, "IPv4 EIDs only (198.51.100.30/32)"},
			{409, "PUT", p + "2001:db8:5::1", `{"vm":"old"}`, "no IPv6 EID"},
			{409, "PUT", p + "198.51.100.101", `{"vm":"elsewhere"}`, "no IPv6 EID in instance 0"},
			{409, "PUT", p + "198.51.100.101", `{"vm":"net"}`, "no IPv6 EID of length /128: say which part of 2001:db8:e1d:40::/64"},
			{409, "PUT", p + "198.51.100.101", `{"vm":"db","inside":"2001:db8:e1d:1::22"}`, "no EID of vm db"},
			{409, "PUT", p + "198.51.100.101", `{"inside":"2001:db8:e1d:1::22"}`, "no VM has the EID 2001:db8:e1d:1::22"},
			{409, "PUT", p + "203.0.113.32-28", `{"inside":"2001:db8:e1d:7::/124"}`, "no VM has the EID"},
			// Who has it.
			{409, "PUT", p + "198.51.100.100", `{"vm":"web2"}`, "198.51.100.100 is taken: service address 198.51.100.100 is translated to 2001:db8:e1d:1::10, which is vm web's"},
			{409, "PUT", p + "198.51.100.100", `{"vm":"db"}`, "198.51.100.100 is taken"},
			{404, "PUT", p + "198.51.100.100", `{"vm":"nobody"}`, "no vm"},
			{409, "PUT", p + "198.51.100.101", `{"vm":"web"}`, "has an IPv4 service address already: service address 198.51.100.100"},
			{409, "PUT", p + "203.0.113.17", `{"vm":"web2"}`, "203.0.113.16/28 is translated to 2001:db8:e1d:40::10/124, which is vm net's"},
			{409, "PUT", p + "203.0.113.0-24", `{"inside":"2001:db8:e1d:40::100/120"}`, "is taken: service address 203.0.113.16/28"},
			{409, "PUT", p + "198.51.100.101", `{"inside":"2001:db8:e1d:40::1f"}`, "203.0.113.16/28"},
			{409, "PUT", p + "198.51.100.30", `{"vm":"web2"}`, "vm old has the EID 198.51.100.30/32"},
			{409, "PUT", p + "198.51.100.0-27", `{"inside":"2001:db8:e1d:40::100/123"}`, "vm web has the EID 198.51.100.10/32"},
			{409, "PUT", p + "2001:db8:e1d:1::20", `{"vm":"web2"}`, "vm db has the EID"},
			{404, "GET", p + "198.51.100.101", ``, "no service address 198.51.100.101"},
			{404, "POST", p + "198.51.100.101/move", `{"vm":"web"}`, "no service address"},
			{409, "POST", p + "198.51.100.100/move", `{"inside":"2001:db8:e1d:40::10"}`, "203.0.113.16/28"},
			{400, "POST", p + "198.51.100.100/move", `{"vm":"web","outside":"198.51.100.101"}`, "in the path"},
			{409, "DELETE", p + "198.51.100.30?force=true", ``, "vm old has the EID"},
			{405, "PATCH", p + "198.51.100.100", ``, "use GET, PUT, DELETE"},
			// VMs with services.
			{409, "DELETE", "/v1/vms/web", ``, "has service addresses: 198.51.100.100; move or delete them first"},
			{409, "PUT", "/v1/vms/web", `{"eids":["198.51.100.10"]}`, "198.51.100.100"},
			{409, "PUT", "/v1/vms/web2", `{"eids":["2001:db8:e1d:1::11","203.0.113.20"]}`, "it is the service address 203.0.113.16/28"},
		} {
			code, text := c.request(x.method, x.path, x.body)
			var e struct {
				Error string `json:"error"`
			}
			if code != x.want || json.Unmarshal([]byte(text), &e) != nil || e.Error == "" || !strings.Contains(text, x.text) {
				t.Errorf("%s %s %s: %d %s; want %d with %q", x.method, x.path, x.body, code, text, x.want, x.text)
			}
		}
		c.have("198.51.100.100>2001:db8:e1d:1::10", "203.0.113.16/28>2001:db8:e1d:40::10/124")
		// What does not touch its services may change.
		c.must(t, http.StatusOK, "PUT", "/v1/vms/web", `{"eids":["2001:db8:e1d:1::10","2001:db8:e1d:1::12"]}`)
		c.must(t, http.StatusAccepted, "DELETE", "/v1/services/198.51.100.100", "")
		c.must(t, http.StatusNoContent, "DELETE", "/v1/vms/web", "")
	})
}

func TestServicesTogether(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		post := func(body string) ServicesResult {
			t.Helper()
			var r ServicesResult
			if err := json.Unmarshal([]byte(c.must(t, http.StatusOK, "POST", "/v1/services", body)), &r); err != nil {
				t.Fatal(err)
			}
			return r
		}
		text := func(r ServicesResult) string {
			var out []string
			for _, x := range r.Results {
				out = append(out, fmt.Sprintf("%s>%s %s %s %.60s", x.Outside, x.Inside, x.VM, x.Result, x.Error))
			}
			return fmt.Sprintf("%s\n%d added, %d refused, %v", strings.Join(out, "\n"), r.Added, r.Refused, r.Applied)
		}
		const good = `{"outside":"198.51.100.100","vm":"web"},{"outside":"198.51.100.101","inside":"2001:db8:e1d:1::11"}`
		const bad = `{"outside":"198.51.100.102","inside":"2001:db8:e1d:1::11"},{"outside":"x","vm":"web"},{"outside":"198.51.100.100","vm":"web"}`
		want := `198.51.100.100>2001:db8:e1d:1::10 web added 
198.51.100.101>2001:db8:e1d:1::11 web2 added 
198.51.100.102>2001:db8:e1d:1::11  refused 2001:db8:e1d:1::11 has an IPv4 service address already: serv
x> web refused "x" is no address or prefix: want one such as 198.51.100.10 
198.51.100.100>  web refused service address 198.51.100.100 is taken: service address 198
2 added, 3 refused, false`
		want = strings.Replace(want, "198.51.100.100>  web", "198.51.100.100> web", 1)
		for _, opt := range []string{``, `,"dry_run":true`, `,"dry_run":true,"partial":true`} {
			if d := cmp.Diff(want, text(post(`{"services":[`+good+`,`+bad+`]`+opt+`}`))); d != "" {
				t.Errorf("%s: %s", opt, d)
			}
			c.have()
			if l := c.must(t, http.StatusOK, "GET", "/v1/services", ""); l != "[]\n" {
				t.Errorf("%s: %s", opt, l)
			}
		}
		if r := post(`{"services":[` + good + `],"dry_run":true}`); r.Added != 2 || r.Refused != 0 || r.Applied {
			t.Errorf("%+v", r)
		}
		if r := post(`{"services":[` + good + `,` + bad + `],"partial":true}`); r.Added != 2 || r.Refused != 3 || !r.Applied {
			t.Errorf("%+v", r)
		}
		c.have("198.51.100.100>2001:db8:e1d:1::10", "198.51.100.101>2001:db8:e1d:1::11")
		if r := post(`{"services":[` + good + `]}`); r.Added != 0 || r.Refused != 0 || !r.Applied || r.Results[0].Result != ResultExists {
			t.Errorf("%+v", r)
		}
	})
}

// A Map-Server that is away is told when it comes back, whatever has happened meanwhile; one that lost its store gets
// everything back.
func TestServicesMapServerAway(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100?wait=1s", `{"vm":"web"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.101?wait=1s", `{"vm":"web2"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.102?wait=1s", `{"vm":"db","inside":"2001:db8:e1d:1::20"}`)
		c.ms[1].stop()
		// They change places, by way of a third EID.
		c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.100/move", `{"inside":"2001:db8:e1d:1::21"}`)
		c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.101/move", `{"vm":"web"}`)
		c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.100/move", `{"vm":"web2"}`)
		begin := time.Now()
		c.must(t, http.StatusAccepted, "DELETE", "/v1/services/198.51.100.102?wait=3s", "")
		if d := time.Since(begin); d < 3*time.Second || d > 3*time.Second+10*latency {
			t.Errorf("waited %v", d)
		}
		time.Sleep(5 * time.Minute)
		s := c.service("198.51.100.100")
		if s.State != ServicePending || s.Confirmed() != 1 || !strings.HasPrefix(s.MapServers[1].Error, "does not answer since ") {
			t.Errorf("%+v", s)
		}
		if s := c.service("198.51.100.102"); s.State != ServiceDeleting || !s.MapServers[0].Confirmed || s.MapServers[1].Confirmed {
			t.Errorf("%+v", s)
		}
		// The controller restarts: what was deleted is not forgotten.
		c.end()
		c.startController()
		time.Sleep(time.Minute)
		c.mu.Lock()
		before := c.sent
		c.mu.Unlock()
		time.Sleep(time.Hour)
		c.mu.Lock()
		if n := c.sent - before; n > 80+15 {
			t.Errorf("%d datagrams in an hour, with one Map-Server away", n)
		}
		c.mu.Unlock()
		c.ms[1].start(t)
		time.Sleep(time.Minute + 5*time.Second)
		c.have("198.51.100.100>2001:db8:e1d:1::11", "198.51.100.101>2001:db8:e1d:1::10")
		c.must(t, http.StatusNotFound, "GET", "/v1/services/198.51.100.102", "")
		for _, a := range []string{"198.51.100.100", "198.51.100.101"} {
			if s := c.service(a); s.State != ServiceConfirmed {
				t.Errorf("%+v", s)
			}
		}
		if saved, err := c.w.store.Load(); err != nil || len(saved.Services) != 2 {
			t.Errorf("%v %+v", err, saved.Services)
		}
		// It loses its store, and nobody notices: the next refresh repairs it.
		c.ms[0].stop()
		c.ms[0].store = newMSStore()
		c.ms[0].start(t)
		if h := c.ms[0].has(); len(h) != 0 {
			t.Fatal(h)
		}
		time.Sleep(5*time.Minute + time.Second)
		c.have("198.51.100.100>2001:db8:e1d:1::11", "198.51.100.101>2001:db8:e1d:1::10")
	})
}

// The controller loses its store: it learns the versions from the Map-Servers, and what it does not know can be taken
// away.
func TestServicesStoreLost(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100", `{"vm":"web"}`)
		for _, vm := range []string{"web2", "web", "web2", "web"} {
			c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.100/move?wait=1s", `{"vm":"`+vm+`"}`)
		}
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.101?wait=1s", `{"vm":"web2"}`)
		c.end()
		c.w.store.mu.Lock()
		c.w.store.kinds["service"] = map[string]json.RawMessage{}
		c.w.store.mu.Unlock()
		c.startController()
		// At another VM than it was: the Map-Servers' version is newer, and ours then is.
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100?wait=5s", `{"inside":"2001:db8:e1d:1::20"}`)
		if s := c.service("198.51.100.100"); s.State != ServiceConfirmed || s.Version != 6 {
			t.Errorf("%+v", s)
		}
		c.have("198.51.100.100>2001:db8:e1d:1::20", "198.51.100.101>2001:db8:e1d:1::11")
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.102?wait=1s", `{"vm":"web2"}`)
		s := c.service("198.51.100.102")
		want := `refuses it: service address 198.51.100.101 is translated to 2001:db8:e1d:1::11 there; nobody here knows that one: "tabi service del --force 198.51.100.101" has it forgotten`
		if s.State != ServicePending || s.MapServers[0].Error != want || s.MapServers[1].Error != want {
			t.Errorf("%+v", s)
		}
		c.must(t, http.StatusNotFound, "DELETE", "/v1/services/198.51.100.101", "")
		c.must(t, http.StatusNoContent, "DELETE", "/v1/services/198.51.100.101?force=true&wait=5s", "")
		c.must(t, http.StatusOK, "GET", "/v1/services/198.51.100.102?wait=30s", "")
		c.have("198.51.100.100>2001:db8:e1d:1::20", "198.51.100.102>2001:db8:e1d:1::11")
		// Deleting what is held with a newer version.
		c.end()
		c.w.store.mu.Lock()
		c.w.store.kinds["service"] = map[string]json.RawMessage{}
		c.w.store.mu.Unlock()
		c.startController()
		c.must(t, http.StatusNoContent, "DELETE", "/v1/services/198.51.100.100?force=true&wait=5s", "")
		c.have("198.51.100.102>2001:db8:e1d:1::11")
	})
}

// What a Map-Server is not configured for is said, and the rest goes on.
func TestServiceNotConfigured(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.must(t, http.StatusCreated, "PUT", "/v1/services/192.0.2.1", `{"vm":"web"}`) // another key's site
		c.must(t, http.StatusCreated, "PUT", "/v1/services/100.64.0.1", `{"vm":"web2"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.102", `{"inside":"2001:db8:e1d:1::20"}`)
		if st := c.must(t, http.StatusOK, "GET", "/v1/services/198.51.100.102?wait=30s", ""); !strings.Contains(st, `"state": "confirmed"`) {
			t.Error(st)
		}
		c.have("198.51.100.102>2001:db8:e1d:1::20")
		for range 20 { // something is answered in every interval
			time.Sleep(time.Minute)
		}
		for _, a := range []string{"192.0.2.1", "100.64.0.1"} {
			c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.102/move?wait=5s", `{"inside":"2001:db8:e1d:1::21"}`)
			time.Sleep(5 * time.Minute)
			c.must(t, http.StatusOK, "POST", "/v1/services/198.51.100.102/move?wait=5s", `{"inside":"2001:db8:e1d:1::20"}`)
			s := c.service(a)
			if s.State != ServicePending || !strings.Contains(s.MapServers[0].Error, "is not configured for it: "+a+" and ") {
				t.Errorf("%+v", s)
			}
		}
	})
}

// Nothing is registered that is not durable, and what a caller was not told of has not happened.
func TestServiceNotSaved(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.w.store.mu.Lock()
		c.w.store.fail = fmt.Errorf("disk full")
		c.w.store.mu.Unlock()
		code, text := c.request("PUT", "/v1/services/198.51.100.100", `{"vm":"web"}`)
		if code != http.StatusServiceUnavailable || !strings.Contains(text, "disk full") {
			t.Errorf("%d %s", code, text)
		}
		time.Sleep(10 * time.Second)
		c.have()
		c.w.store.mu.Lock()
		c.w.store.fail = nil
		c.w.store.mu.Unlock()
		time.Sleep(2 * time.Second)
		c.have("198.51.100.100>2001:db8:e1d:1::10")
	})
}

// A third of all datagrams are lost.
func TestServicesLossyNetwork(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		rnd := rand.New(rand.NewPCG(1, 2))
		c.mu.Lock()
		c.lost = func(netip.AddrPort, netip.AddrPort) bool { return rnd.IntN(3) == 0 }
		c.mu.Unlock()
		var all, want []string
		for i := range 100 {
			all = append(all, fmt.Sprintf(`{"outside":"203.0.113.%d","inside":"2001:db8:e1d:40::%x"}`, i, i))
			want = append(want, fmt.Sprintf("203.0.113.%d>2001:db8:e1d:40::%x", i, i))
		}
		want[0] = "203.0.113.0>2001:db8:e1d:40::"
		slices.Sort(want)
		c.must(t, http.StatusOK, "POST", "/v1/services", `{"services":[`+strings.Join(all, ",")+`]}`)
		time.Sleep(10 * time.Minute)
		c.have(want...)
		for i := range 50 {
			c.must(t, http.StatusAccepted, "DELETE", fmt.Sprintf("/v1/services/203.0.113.%d", 2*i), "")
		}
		time.Sleep(10 * time.Minute)
		want = nil
		for i := range 50 {
			want = append(want, fmt.Sprintf("203.0.113.%d>2001:db8:e1d:40::%x", 2*i+1, 2*i+1))
		}
		slices.Sort(want)
		c.have(want...)
		if saved, err := c.w.store.Load(); err != nil || len(saved.Services) != 50 {
			t.Errorf("%v, %d services", err, len(saved.Services))
		}
	})
}

// What operators look at.
func TestServiceShown(t *testing.T) {
	inCity(t, func(t *testing.T, c *city) {
		c.must(t, http.StatusCreated, "PUT", "/v1/services/198.51.100.100?wait=1s", `{"vm":"web"}`)
		c.must(t, http.StatusCreated, "PUT", "/v1/services/2001:db8:5::-64?wait=1s", `{"inside":"2001:db8:e1d:1::/64"}`)
		v, err := c.Shows()["services"](t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []ServiceRow{
			{Service: "198.51.100.100", Inside: "2001:db8:e1d:1::10", VM: "web", Kind: "ipv4", State: ServiceConfirmed, Version: 1, Confirmed: "2/2"},
			{Service: "2001:db8:5::/64", Inside: "2001:db8:e1d:1::/64", Kind: "nptv6", State: ServiceConfirmed, Version: 1, Confirmed: "2/2"},
		}
		if d := cmp.Diff(want, v); d != "" {
			t.Error(d)
		}
		for _, x := range []struct{ eid, says string }{
			{"198.51.100.100", "service address 198.51.100.100 is translated to 2001:db8:e1d:1::10, which is vm web's"},
			{"2001:db8:e1d:1::10", "VM web on hv1"},
			{"2001:db8:e1d:1::10", "service address 198.51.100.100 is translated"},
			{"2001:db8:5::9", "service address 2001:db8:5::/64 is translated to 2001:db8:e1d:1::/64"},
			{"198.51.100.99", "belongs to no VM"},
		} {
			f, err := c.Explain(t.Context(), mustEID(x.eid))
			if err != nil || !slices.ContainsFunc(f, func(f lisp.Finding) bool { return strings.HasPrefix(f.Says, x.says) && f.Why != "" }) {
				t.Errorf("%s: %v %+v, want %q", x.eid, err, f, x.says)
			}
		}
	})
}

// The controller is killed at every write, before and after it: what callers were told is so, everywhere, and nothing
// else is.
func TestServiceKilled(t *testing.T) {
	for _, before := range []bool{false, true} {
		for k := 1; ; k++ {
			died := false
			inCity(t, func(t *testing.T, c *city) {
				c.w.store.mu.Lock()
				c.w.store.dieAt, c.w.store.before = c.w.store.saves+k, before
				c.w.store.mu.Unlock()
				// api repeats a request until it succeeds, over restarts of the controller.
				api := func(method, path, body string) {
					t.Helper()
					for range 10 {
						code, text := c.request(method, path, body)
						if code/100 == 2 || code == http.StatusNotFound && method == "DELETE" {
							return
						}
						if code != http.StatusServiceUnavailable {
							t.Fatalf("kill %d: %s %s: %d %s", k, method, path, code, text)
						}
						<-c.done
						c.end()
						time.Sleep(2 * time.Second)
						c.startController()
					}
					t.Fatalf("kill %d: %s %s never succeeds", k, method, path)
				}
				api("PUT", "/v1/services/198.51.100.100?wait=5s", `{"vm":"web"}`)
				api("POST", "/v1/services", `{"services":[{"outside":"198.51.100.101","vm":"web2"},{"outside":"2001:db8:5::1","vm":"web2"}]}`)
				api("POST", "/v1/services/198.51.100.100/move", `{"inside":"2001:db8:e1d:1::20"}`)
				api("DELETE", "/v1/services/198.51.100.101", "")
				api("PUT", "/v1/services/198.51.100.102", `{"vm":"web2"}`)
				api("GET", "/v1/services/198.51.100.102?wait=30s", "")
				time.Sleep(time.Minute)
				api("GET", "/v1/services", "")
				c.have("198.51.100.100>2001:db8:e1d:1::20", "198.51.100.102>2001:db8:e1d:1::11", "2001:db8:5::1>2001:db8:e1d:1::11")
				if s := c.service("198.51.100.102"); s.State != ServiceConfirmed {
					t.Errorf("kill %d: %+v", k, s)
				}
				if saved, err := c.w.store.Load(); err != nil || len(saved.Services) != 3 {
					t.Errorf("kill %d: %v %+v", k, err, saved.Services)
				}
				c.w.store.mu.Lock()
				died = c.w.store.died
				c.w.store.mu.Unlock()
			})
			if t.Failed() {
				return
			}
			if !died {
				if k < 6 {
					t.Errorf("only %d writes", k-1)
				}
				break
			}
		}
	}
}

// A VM that nobody entered goes with its domain; its services wait for it, say so, and follow its EID.
func TestServiceOfVanishedVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloud(t)
		w.cfg.MapServers = nil
		r := w.start()
		w.equip(t, r)
		six := func(name, uuid, eid string) *Guest {
			return &Guest{Name: name, UUID: uuid + "-2222-4333-8444-555555555555", State: GuestRunning, EIDs: []lisp.EID{mustEID(eid)}}
		}
		set := func(hv string, gs ...*Guest) {
			w.with(func() {
				for _, g := range gs {
					w.hyp(hv).guests[g.Name] = g
				}
				w.hyp(hv).tell("", GuestChanged)
			})
			time.Sleep(2 * time.Minute)
		}
		status := func() ServiceStatus {
			return decode[ServiceStatus](t, r.must(t, http.StatusOK, "GET", "/v1/services/203.0.113.9", ""))
		}
		set("hv1", six("six", "aaaaaaaa", "2001:db8:e1d:6::6"))
		r.must(t, http.StatusCreated, "PUT", "/v1/services/203.0.113.9", `{"vm":"six"}`)
		if s := status(); s.VM != "six" || s.Problem != "" || s.State != ServiceConfirmed {
			t.Errorf("%+v", s)
		}
		// What a domain claims is not a service address.
		set("hv1", six("thief", "bbbbbbbb", "203.0.113.9"))
		if v := r.vm(t, "thief"); !strings.Contains(v.Problem, "203.0.113.9/32 is the service address 203.0.113.9") {
			t.Errorf("%+v", v)
		}
		// It vanishes.
		w.with(func() { delete(w.hyp("hv1").guests, "six") })
		time.Sleep(20 * time.Minute)
		r.must(t, http.StatusNotFound, "GET", "/v1/vms/six", "")
		if s := status(); s.Problem != "no VM has 2001:db8:e1d:6::6 any more: it was vm six's" || s.VM != "six" {
			t.Errorf("%+v", s)
		}
		r.must(t, http.StatusConflict, "PUT", "/v1/services/203.0.113.9", `{"vm":"web"}`)
		// It comes back under another name.
		set("hv2", six("seis", "cccccccc", "2001:db8:e1d:6::6"))
		if s := status(); s.Problem != "" || s.VM != "seis" {
			t.Errorf("%+v", s)
		}
		// Its metadata say another EID.
		set("hv2", six("seis", "cccccccc", "2001:db8:e1d:6::7"))
		if s := status(); s.Problem == "" {
			t.Errorf("%+v", s)
		}
		r.must(t, http.StatusOK, "POST", "/v1/services/203.0.113.9/move", `{"vm":"seis"}`)
		if s := status(); s.Problem != "" || s.Inside != pfx("2001:db8:e1d:6::7") {
			t.Errorf("%+v", s)
		}
		r.must(t, http.StatusNoContent, "DELETE", "/v1/services/203.0.113.9", "")
		r.end()
	})
}
