package bgp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

// frr is a FRR bgpd (Debian package "frr") at an address.
type frr struct {
	t   *testing.T
	dir string
}

// startFRR runs bgpd, without zebra, with a configuration.
func startFRR(t *testing.T, at, config string) *frr {
	t.Helper()
	// Sockets in t.TempDir have longer names than a Unix socket may have.
	dir, err := os.MkdirTemp("", "ttfrr")
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "bgpd.conf")
	logfile := filepath.Join(dir, "bgpd.log")
	if err := os.WriteFile(conf, []byte("hostname frr\nlog file "+logfile+"\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("/usr/lib/frr/bgpd", "--no_kernel", "--no_zebra", "--skip_runas", "-f", conf,
		"-i", filepath.Join(dir, "pid"), "--vty_socket", dir, "-l", at, "-p", "179")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("bgpd of the Debian package frr: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			l, _ := os.ReadFile(logfile)
			t.Logf("bgpd said: %s\n%s", out.String(), l)
		}
		os.RemoveAll(dir)
	})
	f := &frr{t: t, dir: dir}
	eventually(t, 10*time.Second, "bgpd answers", func() bool {
		return exec.Command("vtysh", "--vty_socket", dir, "-d", "bgpd", "-c", "show version").Run() == nil
	})
	return f
}

func (f *frr) show(command string) []byte {
	f.t.Helper()
	out, err := exec.Command("vtysh", "--vty_socket", f.dir, "-d", "bgpd", "-c", command).Output()
	if err != nil {
		f.t.Fatalf("vtysh %q: %v", command, err)
	}
	return out
}

// routes are the prefixes of a table ("ipv4 unicast", ...), sorted.
func (f *frr) routes(table string) []string {
	f.t.Helper()
	var v struct {
		Routes map[string]any `json:"routes"`
	}
	if err := json.Unmarshal(f.show("show bgp "+table+" json"), &v); err != nil {
		f.t.Fatal(err)
	}
	ps := make([]string, 0, len(v.Routes))
	for p := range v.Routes {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

// frrPath is what FRR says of one path.
type frrPath struct {
	NextHop   string
	LocalPref int
	Community string
	Large     []string
	Extended  string
}

// paths are the paths of a prefix, in the order of their next hops.
func (f *frr) paths(table, prefix string) []frrPath {
	f.t.Helper()
	var v struct {
		Paths []struct {
			LocPrf    int `json:"locPrf"`
			Community struct {
				String string `json:"string"`
			} `json:"community"`
			LargeCommunity struct {
				List []string `json:"list"`
			} `json:"largeCommunity"`
			ExtendedCommunity struct {
				String string `json:"string"`
			} `json:"extendedCommunity"`
			Nexthops []struct {
				IP string `json:"ip"`
			} `json:"nexthops"`
		} `json:"paths"`
	}
	b := f.show("show bgp " + table + " " + prefix + " json")
	if err := json.Unmarshal(b, &v); err != nil {
		f.t.Fatalf("%v in %s", err, b)
	}
	var ps []frrPath
	for _, p := range v.Paths {
		fp := frrPath{
			LocalPref: p.LocPrf, Community: p.Community.String, Large: p.LargeCommunity.List, Extended: p.ExtendedCommunity.String,
		}
		if len(p.Nexthops) > 0 {
			fp.NextHop = p.Nexthops[0].IP
		}
		ps = append(ps, fp)
	}
	slices.SortFunc(ps, func(a, b frrPath) int { return strings.Compare(a.NextHop, b.NextHop) })
	return ps
}

// TestFRRReadsMappings: a FRR bgpd at the Map-Server's session shows the host mappings, with next hops of
// both families and our large communities.
func TestFRRReadsMappings(t *testing.T) {
	cfg := Config{
		LocalAS: 64512, RouterID: addr(msOutside), Listen: []netip.Addr{addr(msOutside)}, HoldTime: 9 * time.Second,
		Peers: []Peer{{Addr: addr(frrOutside), AS: 64512, LocalAddr: addr(msOutside), Passive: true}},
	}
	p := must(NewPusher(cfg, quiet()))(t)
	run(t, p.Run)
	single := mapping("198.51.100.10/32", 2, 1, loc("100.64.1.2"))
	six := mapping("198.51.100.20/32", 7, 2, loc("2001:db8:100:3::2"))
	multi := mapping("2001:db8:e1d:1::10/128", 4095, 3, loc("100.64.1.2"), loc("2001:db8:100:3::2"))
	inst := mapping("[7]198.51.100.10/32", 1, 4, loc("2001:db8:100:3::2"))
	multi.Locators[1].Priority, multi.SiteID = 2, 5
	apply(t, p, full(single, six, multi, inst))

	families := ""
	for _, f := range []string{"ipv4 unicast", "ipv6 unicast", "ipv4 vpn", "ipv6 vpn"} {
		families += fmt.Sprintf(" address-family %s\n  neighbor %s activate\n", f, msOutside)
		if strings.HasSuffix(f, "unicast") {
			families += fmt.Sprintf("  neighbor %s addpath-tx-all-paths\n", msOutside)
		}
		families += " exit-address-family\n"
	}
	f := startFRR(t, frrOutside, fmt.Sprintf(`router bgp 64512
 bgp router-id %[2]s
 no bgp default ipv4-unicast
 neighbor %[1]s remote-as 64512
 neighbor %[1]s update-source %[2]s
 neighbor %[1]s timers connect 1
 neighbor %[1]s capability extended-nexthop
%[3]s`, msOutside, frrOutside, families))
	eventually(t, 15*time.Second, "FRR has the routes", func() bool {
		return len(f.routes("ipv4 unicast")) == 2 && len(f.routes("ipv6 unicast")) == 1
	})
	set := func(m lisp.Mapping) string { return fmt.Sprintf("64512:2:%d", uint32(split(m)[0].set)) }
	for _, c := range []struct {
		table, prefix string
		want          []frrPath
	}{
		{"ipv4 unicast", "198.51.100.10/32", []frrPath{{"100.64.1.2", 254, "no-export", []string{
			"64512:1:2", set(single), "64512:3:1", "64512:4:100", "64512:5:1440", "64512:6:1",
			"64512:8:0", "64512:9:0", "64512:10:0", "64512:11:1",
		}, ""}}},
		{"ipv4 unicast", "198.51.100.20/32", []frrPath{{"2001:db8:100:3::2", 254, "no-export", []string{
			"64512:1:7", set(six), "64512:3:1", "64512:4:100", "64512:5:1440", "64512:6:1",
			"64512:8:0", "64512:9:0", "64512:10:0", "64512:11:2",
		}, ""}}},
		{"ipv6 unicast", "2001:db8:e1d:1::10/128", []frrPath{
			{"2001:db8:100:3::2", 253, "no-export", []string{
				"64512:1:4095", set(multi), "64512:3:2", "64512:4:100", "64512:5:1440", "64512:6:1",
				"64512:8:0", "64512:9:0", "64512:10:0", "64512:11:3", "64512:12:0", "64512:13:5",
			}, ""},
			{"::ffff:6440:102", 254, "no-export", []string{
				"64512:1:4095", set(multi), "64512:3:1", "64512:4:100", "64512:5:1440", "64512:6:1",
				"64512:8:0", "64512:9:0", "64512:10:0", "64512:11:3", "64512:12:0", "64512:13:5",
			}, ""},
		}},
	} {
		if d := cmp.Diff(c.want, f.paths(c.table, c.prefix)); d != "" {
			t.Errorf("%s %s (-want +FRR):\n%s\n%s", c.table, c.prefix, d, f.show("show bgp "+c.table+" "+c.prefix))
		}
	}
	if out := string(f.show("show bgp ipv4 vpn")); !strings.Contains(out, "Route Distinguisher: 0:7") ||
		!strings.Contains(out, "198.51.100.10/32") || !strings.Contains(out, "EC{64512:7}") {
		t.Errorf("FRR shows no VPN route with RD 0:7:\n%s", out)
	}

	moved := mapping("198.51.100.10/32", 3, 2, loc("100.64.2.2"))
	apply(t, p, lisp.Delta{Put: []lisp.Mapping{moved}, Del: []lisp.EID{six.EID}})
	eventually(t, 10*time.Second, "FRR has seen the move", func() bool {
		ps := f.paths("ipv4 unicast", "198.51.100.10/32")
		return len(ps) == 1 && ps[0].NextHop == "100.64.2.2" && len(f.routes("ipv4 unicast")) == 1
	})
}

// TestFRRReflectsServices: services of two Map-Servers come through a FRR bgpd as route reflector, which
// knows nothing of them, to a D-ETR that believes the newest; they stay when a Map-Server goes, and go when they
// are withdrawn. Host mappings come along.
func TestFRRReflectsServices(t *testing.T) {
	side := func(self string, passive bool) Config {
		return Config{
			LocalAS: 64512, RouterID: addr(self), Listen: []netip.Addr{addr(self)}, HoldTime: 9 * time.Second, RestartTime: 30 * time.Second,
			Peers: []Peer{{Addr: addr(frrOutside), AS: 64512, LocalAddr: addr(self), Passive: passive}},
		}
	}
	one := must(NewPusher(side(msOutside, true), quiet()))(t)
	two := must(NewPusher(side(msOutside2, true), quiet()))(t)
	got := newRecorder()
	f := must(NewFeed(FeedConfig{Config: side(detrOutside, true), Linger: 100 * time.Millisecond, SyncWait: 3 * time.Second}, got, quiet()))(t)
	for _, r := range []func(context.Context) error{two.Run, f.Run} {
		run(t, r)
	}
	stopOne := run(t, one.Run)

	config, families := "", ""
	for _, peer := range []string{msOutside, msOutside2, detrOutside} {
		config += fmt.Sprintf(" neighbor %[1]s remote-as 64512\n neighbor %[1]s update-source %[2]s\n neighbor %[1]s timers connect 1\n"+
			" neighbor %[1]s capability extended-nexthop\n", peer, frrOutside)
	}
	for _, af := range []string{"ipv4 unicast", "ipv6 unicast"} {
		families += fmt.Sprintf(" address-family %s\n", af)
		for _, peer := range []string{msOutside, msOutside2, detrOutside} {
			families += fmt.Sprintf("  neighbor %[1]s activate\n  neighbor %[1]s route-reflector-client\n  neighbor %[1]s addpath-tx-all-paths\n", peer)
		}
		families += " exit-address-family\n"
	}
	router := startFRR(t, frrOutside, fmt.Sprintf("router bgp 64512\n bgp router-id %s\n bgp graceful-restart\n no bgp default ipv4-unicast\n%s%s",
		frrOutside, config, families))

	four, prefix := service("203.0.113.10/32", "2001:db8:e1d:1::10/128", 5), service("203.0.113.16/28", "2001:db8:e1d::100/124", 4095)
	six, whole := service("2001:db8:5e::a/128", "2001:db8:e1d:1::10/128", 1), service("2001:db8:5f::/48", "2001:db8:e1d::/48", 7)
	vm := mapping("2001:db8:e1d:1::10/128", 2, 1, loc("100.64.1.2"))
	apply(t, one, full(four, prefix, six, whole, vm))
	apply(t, two, full(service("203.0.113.10/32", "2001:db8:e1d:1::99/128", 4), prefix, vm))
	for _, m := range []lisp.Mapping{four, prefix, six, whole, vm} {
		eventually(t, 20*time.Second, fmt.Sprintf("%v came through", m.EID), got.believes(m))
	}
	ps := router.paths("ipv4 unicast", "203.0.113.10/32")
	want := []string{"64512:1:5", fmt.Sprintf("64512:2:%d", uint32(split(four)[0].set)), "64512:5:4294967295", "64512:6:0", "64512:7:3",
		"64512:14:536939960", "64512:15:236781569", "64512:16:0", "64512:17:16"}
	if len(ps) != 2 || ps[0].Community != "no-export" || ps[0].LocalPref != 0 || !slices.ContainsFunc(ps, func(p frrPath) bool { return slices.Equal(p.Large, want) }) {
		t.Errorf("FRR shows %+v, want the large communities %v", ps, want)
	}

	// The VM gets another EID; only the other Map-Server has heard of it.
	moved := service("203.0.113.10/32", "2001:db8:e1d:1::11/128", 6)
	apply(t, two, put(moved))
	eventually(t, 10*time.Second, "the newest", got.believes(moved))
	// The same Map-Server says the same version again, of another EID: the later counts.
	moved.Inside = four.Inside
	apply(t, two, put(moved))
	eventually(t, 10*time.Second, "the latest", got.believes(moved))
	for _, p := range []*Pusher{two, one} {
		apply(t, p, lisp.Delta{Del: []lisp.EID{prefix.EID}})
	}
	eventually(t, 10*time.Second, "a service that is withdrawn", func() bool { _, ok := got.get(prefix.EID); return !ok })
	// One goes, and may come back: FRR keeps what only that one had (RFC 4724).
	stopOne()
	stays(t, time.Second, "everything is there", func() bool {
		return got.believes(moved)() && got.believes(six)() && got.believes(whole)() && got.believes(vm)()
	})
	if n := f.Counters()["bad-path"]; n != 0 {
		t.Errorf("%d paths made no sense", n)
	}
}

// TestFRRUpstream: a FRR bgpd as the D-ETR's upstream router has the aggregates and no host route, while
// host mappings are in the feed of the same process; it loses the aggregates when they are withdrawn, and
// when the D-ETR ends.
func TestFRRUpstream(t *testing.T) {
	c := newCloud(t)
	f, got := c.feed(1, msAddr(1))
	p := must(NewPusher(c.config(msAddr(1), true, detrAddr(1)), quiet()))(t)
	up := must(NewUpstream(upstreamConfig(), quiet()))(t)
	run(t, f.Run)
	run(t, p.Run)
	stop := run(t, up.Run)
	web4, web6 := mapping("198.51.100.10/32", 2, 1, loc("100.64.1.2")), mapping("2001:db8:e1d:1::10/128", 2, 1, loc("100.64.1.2"))
	apply(t, p, full(web4, web6))

	router := startFRR(t, frrOutside, upstreamFRR)
	eventually(t, 10*time.Second, "the feed has the host mappings", func() bool { return got.len() == 2 })
	eventually(t, 10*time.Second, "the session is up", func() bool {
		st, err := up.Status(context.Background())
		return err == nil && st[0].State == "established"
	})
	none := func() bool { return len(router.routes("ipv4 unicast"))+len(router.routes("ipv6 unicast")) == 0 }
	stays(t, 500*time.Millisecond, "nothing is announced before we serve", none)

	serve := func(on bool) {
		t.Helper()
		if err := up.Serve(context.Background(), on); err != nil {
			t.Fatal(err)
		}
	}
	aggregates := func() bool {
		return slices.Equal(router.routes("ipv4 unicast"), []string{"198.51.100.0/24"}) &&
			slices.Equal(router.routes("ipv6 unicast"), []string{"2001:db8:e1d::/48"})
	}
	for range 2 {
		serve(true)
		eventually(t, 10*time.Second, "FRR has the aggregates", aggregates)
		if ps := router.paths("ipv4 unicast", "198.51.100.0/24"); len(ps) != 1 || ps[0].NextHop != detrOutside || ps[0].Large != nil || ps[0].Community != "" {
			t.Errorf("the aggregate: %+v", ps)
		}
		if ps := router.paths("ipv6 unicast", "2001:db8:e1d::/48"); len(ps) != 1 || ps[0].NextHop != "2001:db8:165:5::2" {
			t.Errorf("the IPv6 aggregate: %+v", ps)
		}
		// Moves and new mappings stay inside.
		apply(t, p, put(mapping("198.51.100.10/32", 3, 2, loc("100.64.2.2")), mapping("198.51.100.77/32", 1, 2, loc("100.64.2.2"))))
		eventually(t, 10*time.Second, "the feed has the new one", func() bool { return got.len() == 3 })
		stays(t, 300*time.Millisecond, "FRR has the aggregates only", aggregates)
		serve(false)
		eventually(t, 10*time.Second, "FRR has lost the aggregates", none)
	}
	serve(true)
	eventually(t, 10*time.Second, "FRR has the aggregates", aggregates)
	stop()
	eventually(t, 10*time.Second, "FRR has lost the aggregates", none)
}

// upstreamConfig is a D-ETR's session to FRR.
func upstreamConfig() UpstreamConfig {
	return UpstreamConfig{
		Config: Config{
			LocalAS: 64512, RouterID: addr(detrOutside), Port: NoListener, HoldTime: 9 * time.Second,
			Peers: []Peer{{Addr: addr(frrOutside), AS: 64500, LocalAddr: addr(detrOutside)}},
		},
		Aggregates: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:e1d::/48")},
		NextHops:   []netip.Addr{addr("2001:db8:165:5::2")},
	}
}

const upstreamFRR = `router bgp 64500
 bgp router-id 100.65.5.1
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 neighbor 100.65.5.2 remote-as 64512
 neighbor 100.65.5.2 update-source 100.65.5.1
 neighbor 100.65.5.2 passive
 address-family ipv4 unicast
  neighbor 100.65.5.2 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor 100.65.5.2 activate
 exit-address-family
`
