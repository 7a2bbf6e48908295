package route

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// frr are FRR daemons (Debian package "frr") of a namespace.
type frr struct {
	t   *testing.T
	ns  string
	dir string
}

// startFRR runs zebra, ospfd and ospf6d in ns.
func startFRR(t *testing.T, ns, zebra, ospf, ospf6 string) *frr {
	t.Helper()
	// Sockets in t.TempDir have longer names than a Unix socket may have.
	dir, err := os.MkdirTemp("", "trfrr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	own(t, dir)
	f := &frr{t, ns, dir}
	for _, d := range []struct{ name, conf string }{{"zebra", zebra}, {"ospfd", ospf}, {"ospf6d", ospf6}} {
		conf := filepath.Join(dir, d.name+".conf")
		if err := os.WriteFile(conf, []byte("hostname "+ns+"\nlog file "+filepath.Join(dir, d.name+".log")+"\n"+d.conf), 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, conf)
		cmd, said := in(t, ns, "/usr/lib/frr/"+d.name, "-f", conf, "-i", filepath.Join(dir, d.name+".pid"),
			"-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "-P", "0")
		if err := cmd.Start(); err != nil {
			t.Fatalf("%s of the Debian package frr: %v", d.name, err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			if t.Failed() {
				l, _ := os.ReadFile(filepath.Join(dir, d.name+".log"))
				t.Logf("%s in %s said: %s\n%s", d.name, ns, said, l)
			}
		})
		eventually(t, d.name+" answers", func() bool {
			return exec.Command("vtysh", "--vty_socket", dir, "-d", d.name, "-c", "show version").Run() == nil
		})
	}
	return f
}

// own gives a file to the user that the daemons run as.
func own(t *testing.T, path string) {
	t.Helper()
	u, err := user.Lookup("frr")
	if err != nil {
		t.Fatalf("the Debian package frr: %v", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2, os.Chown(path, uid, gid)); err != nil {
		t.Fatal(err)
	}
}

func (f *frr) show(daemon, command string) string {
	f.t.Helper()
	return run(f.t, "vtysh", "--vty_socket", f.dir, "-d", daemon, "-c", command)
}

// ospfConf is for interfaces that lead to one neighbour each; quick, as tests are.
func ospfConf(id string, redistribute bool, interfaces ...string) (zebra, ospf, ospf6 string) {
	timers := " timers throttle spf 0 20 100\n"
	for _, i := range interfaces {
		one := "interface " + i + "\n %[1]s area 0\n %[1]s network point-to-point\n %[1]s hello-interval 1\n %[1]s dead-interval 3\n"
		ospf += fmt.Sprintf(one, "ip ospf")
		ospf6 += fmt.Sprintf(one, "ipv6 ospf6")
	}
	ospf += "router ospf\n ospf router-id " + id + "\n" + timers + " timers throttle lsa all 0\n timers lsa min-arrival 0\n"
	ospf6 += "router ospf6\n ospf6 router-id " + id + "\n" + timers + " timers lsa min-arrival 0\n"
	if redistribute {
		ospf += " redistribute kernel\n"
		ospf6 += " redistribute kernel\n"
	}
	return "", ospf, ospf6
}

// hops are the interfaces by which the kernel of ns reaches p, as zebra has told it: equal costs share.
func hops(t *testing.T, ns string, p netip.Prefix) []string {
	t.Helper()
	family := "-6"
	if p.Addr().Is4() {
		family = "-4"
	}
	var list []struct {
		Dev      string
		Protocol string
		Nexthops []struct{ Dev string }
	}
	out := run(t, "ip", "-j", "-n", ns, family, "route", "show", p.String())
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var devs []string
	for _, r := range list {
		if r.Protocol != "ospf" {
			t.Errorf("%v in %s: protocol %s", p, ns, r.Protocol)
		}
		if r.Dev != "" {
			devs = append(devs, r.Dev)
		}
		for _, h := range r.Nexthops {
			devs = append(devs, h.Dev)
		}
	}
	slices.Sort(devs)
	return devs
}

// TestOSPF: two sites whose FRR redistributes kernel routes, and a router that hears OSPF and OSPFv3 from both. It has
// the prefixes at equal cost from both sites, loses those of a site that is drained or whose process is killed, and
// never hears of the routes by which the hosts themselves reach the prefixes.
func TestOSPF(t *testing.T) {
	router := namespace(t, "router")
	sites := []string{namespace(t, "osaka"), namespace(t, "tokyo")}
	for i, ns := range sites {
		up := fmt.Sprintf("site%d", i)
		run(t, "ip", "link", "add", up, "netns", router, "type", "veth", "peer", "name", "up0", "netns", ns)
		run(t, "ip", "-n", ns, "link", "add", "lisp0", "type", "veth", "peer", "name", "peer0")
		run(t, "ip", "-n", ns, "link", "set", "peer0", "up")
		for j, at := range [][2]string{{router, up}, {ns, "up0"}} {
			run(t, "ip", "netns", "exec", at[0], "sysctl", "-qw", "net.ipv6.conf."+at[1]+".accept_dad=0")
			run(t, "ip", "-n", at[0], "addr", "add", fmt.Sprintf("100.65.%d.%d/30", i, j+1), "dev", at[1])
			run(t, "ip", "-n", at[0], "link", "set", at[1], "up")
		}
		// As the data plane does: the host itself reaches the prefixes here, whether it announces them or not.
		run(t, "ip", "-n", ns, "link", "set", "lisp0", "up")
		for _, p := range prefixes {
			run(t, "ip", "-n", ns, "route", "add", p.String(), "dev", "lisp0", "proto", "kernel", "metric", "1")
		}
	}
	zebra, ospf, ospf6 := ospfConf("10.0.0.9", false, "site0", "site1")
	up := startFRR(t, router, zebra, ospf, ospf6)
	var holders []*holder
	for i, ns := range sites {
		zebra, ospf, ospf6 := ospfConf(fmt.Sprintf("10.0.0.%d", i+1), true, "up0")
		startFRR(t, ns, zebra, ospf, ospf6)
		holders = append(holders, startHolder(t, ns))
		holders[i].do("off")
	}
	is := func(want ...string) func() bool {
		return func() bool {
			return !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return !slices.Equal(hops(t, router, p), want) })
		}
	}
	eventually(t, "the routers are neighbours", func() bool {
		return strings.Count(up.show("ospfd", "show ip ospf neighbor"), "Full/") == 2 &&
			strings.Count(up.show("ospf6d", "show ipv6 ospf6 neighbor"), "Full/") == 2
	})
	took := func(what string, ok func() bool) {
		t.Logf("%s: after %v", what, eventually(t, what, ok).Round(time.Millisecond))
	}
	if !is()() {
		t.Error("the prefixes are announced before anybody serves them")
	}
	holders[0].do("on")
	took("one site serves", is("site0"))
	holders[1].do("on")
	took("both serve, at equal cost", is("site0", "site1"))
	holders[0].do("off")
	took("one is drained", is("site1"))
	holders[0].do("on")
	took("it is back", is("site0", "site1"))
	holders[1].kill()
	took("the other is killed", is("site0"))
	holders[0].do("off")
	took("nobody serves", is())
	for _, ns := range sites {
		if out := run(t, "ip", "-n", ns, "route", "get", "198.18.51.81"); !strings.Contains(out, "dev lisp0") {
			t.Errorf("%s reaches a service address by %s", ns, out)
		}
		if out := run(t, "ip", "-n", ns, "route", "get", "2001:db8:5e::81"); !strings.Contains(out, "dev lisp0") {
			t.Errorf("%s reaches a service address by %s", ns, out)
		}
	}
}
