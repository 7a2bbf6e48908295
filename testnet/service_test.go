package testnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/testnet/crowd"
)

// Service addresses end to end: one cloud, whose Internet router is FRR, with VMs that have IPv6 only. First what reaches
// what, then DNS64, then everything that may happen to VMs and D-ETRs, and at last a broadcast.
func TestServiceAddresses(t *testing.T) {
	c := startCloud(t, Options{Services: true, FRR: true})
	must(t, c.Flows.Close())
	must(t, c.waitUpstream(within(t, 30*time.Second), "detr1", "detr2"))
	t.Run("reach", func(t *testing.T) { serviceReach(t, c) })
	t.Run("another VM", func(t *testing.T) { serviceOfAnother(t, c) })
	t.Run("traceroute", func(t *testing.T) { serviceTraceroute(t, c) })
	t.Run("dns64", func(t *testing.T) { serviceDNS64(t, c) })
	t.Run("moves", func(t *testing.T) { serviceMoves(t, c) })
	t.Run("drain", func(t *testing.T) { serviceDrain(t, c) })
	t.Run("faults", func(t *testing.T) { serviceFaults(t, c) })
	t.Run("koshien", func(t *testing.T) { serviceKoshien(t, c) })
}

// upstreamPeer is a D-ETR as FRR knows it.
func upstreamPeer(anchor string) string { return mustNode(anchor).up4().String() }

// waitUpstream waits until FRR has the service prefixes from exactly these D-ETRs.
func (c *Cloud) waitUpstream(ctx context.Context, anchors ...string) error {
	var want []string
	for _, a := range anchors {
		want = append(want, upstreamPeer(a))
	}
	slices.Sort(want)
	for {
		routes, err := c.upstreamRoutes(ctx)
		ok := err == nil
		for _, p := range []netip.Prefix{services4, services6, aggregate4, aggregate6} {
			ok = ok && slices.Equal(slices.Sorted(slices.Values(routes[p.String()])), want)
		}
		if ok {
			return nil
		}
		if e := sleep(ctx, 100*time.Millisecond); e != nil {
			return fmt.Errorf("testnet: FRR has %v, want all by %v: %w", routes, want, errors.Join(err, e))
		}
	}
}

// serviceFlows are a pair of UDP streams between a client and a VM, by its service address, in each family; from the VM
// to a client through the pool; between two VMs by service addresses; and pings.
func serviceFlows(c *Cloud, rate, size int) *Flows {
	f := new(Flows)
	ns := func(host string) *Namespace { return c.hosts[host].ns }
	vm, other := endpoints[hostTokyo].v6, endpoints[hostHokuriku].v6
	s, so := services[hostTokyo], services[hostHokuriku]
	c4, c6 := endpoints[hostClient4].v4, endpoints[hostClient6].v6
	add := func(name, reverse, a, b string, addrA, addrB, toA, toB netip.Addr, port uint16) {
		f.AddUDP(UDPFlow{Name: name, Reverse: reverse, A: ns(a), B: ns(b), AddrA: addrA, AddrB: addrB, ToA: toA, ToB: toB, Port: port, Rate: rate, Size: size})
	}
	add("udp4-internet-to-service", "udp4-service-to-internet", hostClient4, hostTokyo, c4, vm, inPool(c4), s.v4, 7300)
	add("udp6-internet-to-service", "udp6-service-to-internet", hostClient6, hostTokyo, c6, vm, c6, s.v6, 7301)
	add("udp-vm-to-pool", "udp-pool-to-vm", hostTokyo, hostClient4, vm, c4, s.v4, inPool(c4), 7302)
	add("udp4-service-to-service", "udp4-service-from-service", hostTokyo, hostHokuriku, vm, other, inPool(s.v4), inPool(so.v4), 7303)
	f.AddPing(PingFlow{Name: "ping4-service", From: ns(hostClient4), Src: c4, Dst: s.v4, Rate: pingRate})
	f.AddPing(PingFlow{Name: "ping6-service", From: ns(hostClient6), Src: c6, Dst: s.v6, Rate: pingRate})
	f.AddPing(PingFlow{Name: "ping-pool", From: ns(hostTokyo), Src: vm, Dst: inPool(c4), Rate: pingRate})
	return f
}

// countFlows runs flows while something happens, and returns what they saw.
func countFlows(t *testing.T, c *Cloud, f *Flows, during func() []*MoveReport) []FlowReport {
	t.Helper()
	c.Flows = f
	must(t, f.Start(t.Context()))
	time.Sleep(300 * time.Millisecond)
	reports := finish(t, c, during()...)
	must(t, f.Close())
	return reports
}

// watchers are viewers of every kind: over both families, through the pool, and VMs that watch VMs by service addresses.
// Each has one connection, and asks again and again.
func watchers(t *testing.T, c *Cloud, viewers int, every time.Duration, path string) (stop func() crowd.Stats) {
	t.Helper()
	const port = 8080
	sites := map[string]netip.Addr{hostTokyo: endpoints[hostTokyo].v6, hostHokuriku: endpoints[hostHokuriku].v6, hostClient4: endpoints[hostClient4].v4}
	var closers []func() error
	for host, a := range sites {
		close, err := c.serveSite(host, host, netip.AddrPortFrom(a, port))
		must(t, err)
		closers = append(closers, close)
	}
	conf := crowd.Config{Viewers: viewers, Rise: 500 * time.Millisecond, Every: every, Path: path, Patience: 30 * time.Second}
	for _, g := range []struct {
		name, from string
		to         []netip.Addr
	}{
		{"IPv4", hostClient4, []netip.Addr{services[hostTokyo].v4, services[hostHokuriku].v4}},
		{"IPv6", hostClient6, []netip.Addr{services[hostTokyo].v6, services[hostHokuriku].v6}},
		{"pool", hostTokyo, []netip.Addr{inPool(endpoints[hostClient4].v4)}},
		{"VM to VM, IPv4", hostNara, []netip.Addr{inPool(services[hostTokyo].v4)}},
		{"VM to VM, IPv6", hostNara, []netip.Addr{services[hostTokyo].v6}},
	} {
		s, err := openSockets(c.hosts[g.from].ns)
		must(t, err)
		closers = append(closers, func() error { s.close(); return nil })
		group := crowd.Group{Name: g.name, Open: func(to netip.AddrPort) (crowd.Conn, error) { return s.dial(to) }}
		for _, a := range g.to {
			group.Sites = append(group.Sites, netip.AddrPortFrom(a, port))
		}
		conf.Groups = append(conf.Groups, group)
	}
	w := crowd.New(conf)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Watch(ctx); close(done) }()
	stopped := false
	stop = func() crowd.Stats {
		if !stopped {
			stopped = true
			cancel()
			<-done
			for i := len(closers) - 1; i >= 0; i-- {
				must(t, closers[i]())
			}
		}
		return w.Stats()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// wantNobodyLetDown: every viewer came once and got everything.
func wantNobodyLetDown(t *testing.T, what string, viewers int, s crowd.Stats) {
	t.Helper()
	t.Logf("%s: %d connections, %d requests %v, %.1f MB, median %.1f ms, longest wait %.0f ms at %.1f s", what, s.Came, s.Requests, s.ByGroup,
		float64(s.Bytes)/1e6, s.MedianMS, s.LongestMS, s.LongestAt)
	if s.Failures > 0 || s.Came != viewers || len(s.ByGroup) != 5 || slices.Min(s.ByGroup) == 0 {
		t.Errorf("%s: %d failures, %d of %d connections, %v requests: %q", what, s.Failures, s.Came, viewers, s.ByGroup, s.Errors)
	}
}

// What reaches what: TCP, UDP, pings and fragments, by service address in both families, out through the pool, and from
// VM to VM inside the cloud.
func serviceReach(t *testing.T, c *Cloud) {
	const viewers = 20
	stop := watchers(t, c, viewers, 100*time.Millisecond, crowd.PathFilm)
	reports := countFlows(t, c, serviceFlows(c, 100, 128), func() []*MoveReport { time.Sleep(500 * time.Millisecond); return nil })
	wantNoLoss(t, reports)
	wantNobodyLetDown(t, "films", viewers, stop())
	// Fragments, of UDP and of ping.
	some := func() []*MoveReport { time.Sleep(300 * time.Millisecond); return nil }
	countFlows(t, c, serviceFlows(c, 20, 3000), some) // the first tell both ends what fits the way
	wantNoLoss(t, countFlows(t, c, serviceFlows(c, 20, 3000), some))
	for _, p := range []struct {
		from string
		to   netip.Addr
	}{{hostClient4, services[hostTokyo].v4}, {hostClient6, services[hostTokyo].v6}, {hostTokyo, inPool(endpoints[hostClient4].v4)}, {hostNara, inPool(services[hostTokyo].v4)}} {
		ping := func() string {
			return inside(t, c, p.from, "busybox", "ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", "3000", p.to.String())
		}
		ping() // as above
		if out := ping(); !strings.Contains(out, "3 packets received") {
			t.Errorf("%s pings %v with 3000 bytes:\n%s", p.from, p.to, out)
		}
	}
	// The Internet has heard of prefixes only: of no VM, and of no single service address.
	routes, err := c.upstreamRoutes(t.Context())
	must(t, err)
	if len(routes) != 4 {
		t.Errorf("FRR has %v", routes)
	}
	// Both D-ETRs have had a part in it, and say so.
	for _, anchor := range c.anchors() {
		rows, err := c.serviceRows(t.Context(), anchor)
		must(t, err)
		var sum serviceCount
		for _, r := range rows {
			sum.Packets += r.In.Packets + r.Out.Packets
		}
		if len(rows) != 6 || sum.Packets == 0 {
			t.Errorf("%s: %d services, %d packets: %+v", anchor, len(rows), sum.Packets, rows)
		}
	}
}

// A service address that somebody has is nobody else's; it is given to another VM in one step, and taken back.
func serviceOfAnother(t *testing.T, c *Cloud) {
	taken := services[hostNara].v4
	path := "/v1/services/" + taken.String()
	err := c.Controller(t.Context(), http.MethodPut, path, map[string]string{"vm": hostWeb}, nil)
	if !isStatus(err, http.StatusConflict) || !strings.Contains(err.Error(), hostNara) {
		t.Errorf("what %s has is given to another: %v", hostNara, err)
	}
	for _, vm := range []string{hostWeb, hostNara} {
		must(t, c.Controller(t.Context(), http.MethodPost, path+"/move", map[string]string{"vm": vm}, nil))
		want := serviceRow{Outside: netip.PrefixFrom(taken, 32), Inside: netip.PrefixFrom(endpoints[vm].v6, 128)}
		for _, anchor := range c.anchors() {
			for ctx := within(t, 10*time.Second); ; {
				rows, err := c.serviceRows(ctx, anchor)
				must(t, err)
				if slices.ContainsFunc(rows, func(r serviceRow) bool { return r.Outside == want.Outside && r.Inside == want.Inside }) {
					break
				}
				must(t, sleep(ctx, 20*time.Millisecond))
			}
		}
		if out := inside(t, c, hostClient4, "busybox", "ping", "-c", "2", "-i", "0.2", "-W", "2", taken.String()); !strings.Contains(out, "2 packets received") {
			t.Errorf("at %s:\n%s", vm, out)
		}
	}
}

// inside runs a command on a host and returns what it says.
func inside(t *testing.T, c *Cloud, host string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, 30*time.Second), args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, c.hosts[host].ns.onThread(cmd.Start))
	_ = cmd.Wait() // what it says is looked at
	return out.String()
}

// The way is seen from both sides, each in its own family: the Internet's router, a D-ETR, and at its end the address that
// was asked for. Routers between the sites speak to the tunnel's ends only.
func serviceTraceroute(t *testing.T, c *Cloud) {
	hops := func(out string) (all []string) {
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[0] != "traceroute" {
				all = append(all, f[1])
			}
		}
		return all
	}
	router := endpoints[hostClient4].v4.As4()
	router[3] = 1
	in := inside(t, c, hostClient4, "busybox", "traceroute", "-n", "-q", "1", "-w", "1", "-m", "8", services[hostTokyo].v4.String())
	var anchors []string
	for _, n := range nodesOf("detr", inCloud) {
		for _, a := range []netip.Addr{n.v4(), n.up4(), n.v6(), n.up6()} {
			anchors = append(anchors, a.String())
		}
	}
	isAnchor := func(a string) bool { return slices.Contains(anchors, a) }
	if h := hops(in); len(h) < 3 || h[0] != netip.AddrFrom4(router).String() || h[len(h)-1] != services[hostTokyo].v4.String() || !slices.ContainsFunc(h, isAnchor) {
		t.Errorf("from the Internet: %v\n%s", h, in)
	}
	client := endpoints[hostClient4].v4
	out := inside(t, c, hostTokyo, "busybox", "traceroute6", "-n", "-q", "1", "-w", "1", "-m", "8", inPool(client).String())
	h := hops(out)
	var routers []string
	for _, n := range nodesOf("detr", inCloud) {
		routers = append(routers, inPool(gateway4(n.up4())).String())
	}
	if len(h) < 3 || h[len(h)-1] != inPool(client).String() || !slices.ContainsFunc(h, isAnchor) ||
		!slices.ContainsFunc(h, func(a string) bool { return slices.Contains(routers, a) }) {
		t.Errorf("from the VM: %v, one of %v is on the way\n%s", h, routers, out)
	}
	t.Logf("from the Internet %v, from the VM %v", hops(in), h)
}

// A service follows its VM: it moves and moves back, and no packet is lost, of whatever kind.
func serviceMoves(t *testing.T, c *Cloud) {
	var moves []*MoveReport
	reports := countFlows(t, c, serviceFlows(c, testRate, 128), func() []*MoveReport {
		for _, to := range []string{"hokuriku-hv1", "nara-hv1", "nezu-hv1"} {
			o := Planned(to, blackout)
			o.VM = hostTokyo
			moves = append(moves, moveTo(t, c, o))
			time.Sleep(300 * time.Millisecond)
		}
		return moves
	})
	wantNoLoss(t, reports)
	wantNoProblems(t, moves...)
}

// A D-ETR is drained: nobody loses anything, nothing passes it any more, and it stops without anybody noticing.
func serviceDrain(t *testing.T, c *Cloud) {
	const drained = "detr1"
	tabi := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), c.opts.Binary, append(args, "--socket", c.hosts[drained].Socket())...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tabi %v: %v\n%s", args, err, out)
		}
	}
	reports := countFlows(t, c, serviceFlows(c, testRate, 128), func() []*MoveReport {
		tabi("detr", "drain")
		must(t, c.waitUpstream(within(t, 10*time.Second), "detr2"))
		time.Sleep(time.Second)
		before, _, err := countLinks(c.hosts[hostInet].ns, nodesOf("detr", inCloud))
		must(t, err)
		time.Sleep(time.Second)
		after, _, err := countLinks(c.hosts[hostInet].ns, nodesOf("detr", inCloud))
		must(t, err)
		t.Logf("bytes a second: through %s %d, through the other %d", drained, after[0]-before[0], after[1]-before[1])
		if idle, busy := after[0]-before[0], after[1]-before[1]; idle > 2000 || busy < 100_000 {
			t.Errorf("%d bytes still pass %s", idle, drained)
		}
		must(t, c.hosts[drained].Stop("detr"))
		must(t, c.hosts[drained].Start(within(t, 30*time.Second), "detr"))
		tabi("detr", "undrain")
		must(t, c.waitUpstream(within(t, 30*time.Second), "detr1", "detr2"))
		time.Sleep(300 * time.Millisecond)
		return nil
	})
	wantNoLoss(t, reports)
}

// Whatever happens to one D-ETR, and to a VM at the same time, no connection is lost: an ordinary restart of both in
// turn; either process is killed; one node falls silent, and the other loses its power, while the VM moves.
func serviceFaults(t *testing.T, c *Cloud) {
	const viewers = 100
	stopViewers := watchers(t, c, viewers, 200*time.Millisecond, crowd.PathPicture)
	time.Sleep(600 * time.Millisecond)
	both := func() {
		t.Helper()
		must(t, c.waitUpstream(within(t, 40*time.Second), "detr1", "detr2"))
		must(t, c.WaitFeeds(within(t, 30*time.Second)))
		must(t, c.waitServices(within(t, 30*time.Second)))
	}
	move := func(to string) *MoveReport {
		t.Helper()
		o := Planned(to, blackout)
		o.VM = hostTokyo
		return moveTo(t, c, o)
	}
	begin := time.Now()
	said := func(what string) { t.Logf("%5.1f s: %s", time.Since(begin).Seconds(), what) }
	for _, anchor := range []string{"detr1", "detr2"} {
		said("restart of " + anchor)
		must(t, c.hosts[anchor].Stop("detr"))
		must(t, c.hosts[anchor].Start(within(t, 30*time.Second), "detr"))
		both()
	}
	for i, anchor := range []string{"detr1", "detr2"} {
		said(anchor + " is killed, and a VM moves")
		must(t, c.hosts[anchor].Kill("detr"))
		moved := move([]string{"hokuriku-hv1", "nara-hv1"}[i])
		wantNoProblems(t, moved)
		must(t, c.hosts[anchor].Start(within(t, 30*time.Second), "detr"))
		both()
	}
	said("detr1 falls silent, and a VM moves")
	must(t, c.Partition("detr1"))
	move("nezu-hv1")
	must(t, c.waitUpstream(within(t, 10*time.Second), "detr2"))
	time.Sleep(2 * time.Second)
	must(t, c.Heal("detr1"))
	both()
	said("detr2 loses its power, and a VM moves")
	must(t, c.SwitchOff("detr2"))
	move("hokuriku-hv1")
	must(t, c.waitUpstream(within(t, 10*time.Second), "detr1"))
	time.Sleep(2 * time.Second)
	must(t, c.SwitchOn(within(t, 30*time.Second), "detr2"))
	both()
	said("all is well")
	wantNobodyLetDown(t, "viewers", viewers, stopViewers())
	move("nezu-hv1")
}

// serviceKoshien is the broadcast, shorter and to fewer than in the demonstration.
func serviceKoshien(t *testing.T, c *Cloud) {
	r, err := c.Koshien(t.Context(), KoshienOptions{Viewers: 600, Duration: 14 * time.Second, Every: 2 * time.Second})
	must(t, err)
	var b strings.Builder
	must(t, r.WriteText(&b))
	t.Log(b.String())
	if !r.Pass {
		t.Error(r.Verdict)
	}
	if r.LongestMS > 5000 {
		t.Errorf("somebody waited for %.0f ms", r.LongestMS)
	}
	if svg := r.Chart().SVG(); !bytes.Contains(svg, []byte("the Osaka D-ETR is killed")) {
		t.Error("the plot does not tell what happened")
	}
}

// The resolver of the DNS64 test runs in a VM with both families, as the example for unbound says; the name that a VM
// with IPv6 only asks for has an IPv4 address only, and is served by a second unbound out on the Internet.
func serviceDNS64(t *testing.T, c *Cloud) {
	const name = "www.v4only.example"
	example, err := filepath.Abs("../cmd/tabi/examples/unbound-dns64.conf")
	must(t, err)
	server := endpoints[hostClient4].v4
	// What belongs to this machine and not to the example: no daemon, no chroot, and where the test's zone is.
	startUnbound(t, c.hosts[hostClient4], fmt.Sprintf(`server:
    interface: %[1]s
    access-control: 0.0.0.0/0 allow
    local-zone: "v4only.example." static
    local-data: "%[2]s. 60 IN A %[1]s"
`, server, name))
	startUnbound(t, c.hosts[hostPeer], fmt.Sprintf(`include: "%s"
server:
    domain-insecure: "v4only.example."
forward-zone:
    name: "v4only.example."
    forward-addr: %s
`, example, server))
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = c.hosts[hostTokyo].ns.Do(func() error {
			conn, err = new(net.Dialer).DialContext(ctx, "udp", netip.AddrPortFrom(endpoints[hostPeer].v6, 53).String())
			return err
		})
		return conn, err
	}}
	var addrs []netip.Addr
	for ctx := within(t, 20*time.Second); ; {
		if addrs, err = resolver.LookupNetIP(ctx, "ip6", name+"."); err == nil {
			break
		}
		if e := sleep(ctx, 100*time.Millisecond); e != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if want := inPool(server); len(addrs) != 1 || addrs[0] != want {
		t.Fatalf("%s is %v, want %v", name, addrs, want)
	}
	close, err := c.serveSite(hostClient4, "v4only", netip.AddrPortFrom(server, 80))
	must(t, err)
	defer close()
	client := c.hosts[hostTokyo].client()
	defer client.CloseIdleConnections()
	ctx := within(t, 10*time.Second)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(addrs[0], 80).String()+crowd.PathFilm, nil)
	must(t, err)
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	var film bytes.Buffer
	if _, err := film.ReadFrom(resp.Body); err != nil || film.Len() != crowd.FilmSize {
		t.Errorf("fetched %d bytes of %s: %v", film.Len(), name, err)
	}
}

// startUnbound runs unbound on a host until the test ends.
func startUnbound(t *testing.T, h *Host, config string) {
	t.Helper()
	dir := filepath.Join(h.dir, "unbound")
	must(t, os.MkdirAll(dir, 0o755))
	file := filepath.Join(dir, "unbound.conf")
	must(t, os.WriteFile(file, []byte(fmt.Sprintf(`server:
    chroot: ""
    directory: "%[1]s"
    username: ""
    pidfile: ""
    use-syslog: no
    logfile: ""
    do-daemonize: no
remote-control:
    control-enable: no
`, dir)+config), 0o644))
	must(t, h.define(Spec{Name: "unbound", Args: []string{"/usr/sbin/unbound", "-d", "-c", file}, Log: filepath.Join(h.dir, "unbound.log")}))
	must(t, h.launch("unbound"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s/unbound said:\n%s", h.Name, tail(filepath.Join(h.dir, "unbound.log")))
		}
		must(t, h.Kill("unbound"))
	})
}
