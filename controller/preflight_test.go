package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// sound are the facts of a migration that nothing speaks against.
func sound() *facts {
	g := guestFor()
	sites := map[string]Site{"a": {Name: "a", SharedStorage: []string{"nfs=/srv"}}, "b": {Name: "b", SharedStorage: []string{"nfs=/srv", "/loc"}}}
	from := Hypervisor{Name: "h1", Site: "a", Driver: "qemu+tcp://h1/system"}
	to := Hypervisor{Name: "h2", Site: "b", Driver: "qemu+tcp://h2/system"}
	return &facts{
		vm: VM{Name: "web", Hypervisor: "h1", EIDs: webEIDs, MACs: []string{"52:54:00:00:00:10"}}, need: Capacity{CPUs: 2, Memory: guestMemory},
		from: from, to: to, sites: [2]Site{sites["a"], sites["b"]},
		w: &world{sites: sites, lent: map[string]Capacity{}, hosts: map[string]*host{
			"h1": {Hypervisor: from, has: Capacity{Memory: 8 << 30, CPUs: 8}}, "h2": {Hypervisor: to, has: Capacity{Memory: 8 << 30, CPUs: 8}}}},
		guest: g, srcNode: &Node{CPUModel: "EPYC"}, tgtNode: &Node{CPUModel: "EPYC", Machines: []string{"q35"}},
		srcAgent: &agentNode{MTU: 1400}, tgtAgent: &agentNode{MTU: 1400, EIDPrefixes: []lisp.EID{mustEID("198.51.100.0/24"), mustEID("2001:db8::/32")}},
		told: true, link: LinkMemory{Link: "a-b", Bandwidth: 100 << 20, Count: 3},
	}
}

func TestChecks(t *testing.T) {
	disk := func(source string) []GuestDisk {
		return []GuestDisk{{Target: "vda", Source: source, Capacity: 10 << 30, Allocated: 1 << 30}}
	}
	for _, tc := range []struct {
		name   string
		change func(f *facts)
		check  string
		status CheckStatus
		text   string
	}{
		{"", func(f *facts) {}, "driver", CheckOK, "h1 and h2 answer"},
		{"", func(f *facts) { f.tgtErr = "away" }, "driver", CheckFail, "h2: away"},
		{"", func(f *facts) { f.srcErr, f.guest = "away", nil }, "driver", CheckFail, "h1: away"},
		{"", func(f *facts) { f.srcErr, f.guest = "away", nil }, "state", CheckWarn, "not known"},
		{"", func(f *facts) { f.to.Driver = "qemu:///system" }, "driver", CheckFail, "qemu:///system would mean h1 itself when h1 uses it: set driver_peer of h2"},
		{"", func(f *facts) { f.to.Driver, f.to.DriverPeer = "qemu:///system", "qemu+tls://h2/system" }, "driver", CheckOK, ""},
		{"", func(f *facts) { f.to.Driver = "qemu+unix:///system?socket=/run/x" }, "driver", CheckWarn, "local socket"},
		{"", func(f *facts) { f.guest = nil }, "state", CheckFail, "h1 does not have VM web"},
		{"", func(f *facts) { f.guest.State = GuestHibernated }, "state", CheckFail, "hibernated"},
		{"", func(f *facts) { f.guest.State = GuestCrashed }, "state", CheckFail, "crashed"},
		{"", func(f *facts) { f.guest.State = GuestPaused }, "state", CheckOK, "it is paused"},
		{"", func(f *facts) { f.guest.State, f.req.Mode = GuestOff, ModeLive }, "state", CheckFail, "only an offline migration"},
		{"", func(f *facts) { f.guest.State = GuestOff }, "state", CheckOK, "it is off"},
		{"", func(f *facts) { f.guest.State, f.guest.Persistent = GuestOff, false }, "state", CheckFail, "it is off"},
		{"", func(f *facts) { f.namesake = &Guest{Name: "web", UUID: webUUID, State: GuestRunning} }, "state", CheckFail, "h2 has a VM web (running) already"},
		{"its old definition is no obstacle", func(f *facts) { f.namesake = &Guest{Name: "web", UUID: webUUID, State: GuestOff} }, "state", CheckOK, ""},
		{"", func(f *facts) { f.w.sites["b"] = Site{Name: "b", Owners: []string{"bob"}} }, "policy", CheckFail, "site b lends nothing"},
		{"", func(f *facts) { f.sites[1].Owners, f.vm.Owner = []string{"bob"}, "bob" }, "policy", CheckOK, "bob is at home at site b"},
		{"", func(f *facts) { f.to.Site = "a" }, "policy", CheckOK, "it stays at site"},
		{"", func(f *facts) { f.need.Memory = 9 << 30 }, "capacity", CheckFail, "h2 has room for 8.0 GiB of memory, the VM needs 9.0 GiB"},
		{"", func(f *facts) { f.need.CPUs = 9 }, "capacity", CheckWarn, "9 virtual CPUs, h2 has 8 CPUs"},
		{"", func(f *facts) { f.w.hosts["h2"].has.Memory = 0 }, "capacity", CheckWarn, "nobody says"},
		{"", func(f *facts) { f.to.Drained = true }, "capacity", CheckWarn, "drained"},
		{"", func(f *facts) { f.guest.Machine = "" }, "machine", CheckWarn, "not known"},
		{"", func(f *facts) { f.tgtNode.Machines = nil }, "machine", CheckWarn, "does not say"},
		{"", func(f *facts) { f.guest.Machine = "isapc" }, "machine", CheckFail, "no machine type isapc"},
		{"", func(f *facts) {}, "storage", CheckOK, "no disks"},
		{"", func(f *facts) { f.guest.Disks = disk("/srv/vms/web") }, "storage", CheckOK, "vda is on nfs, which both have"},
		{"", func(f *facts) { f.guest.Disks = disk("/loc/web") }, "storage", CheckFail, "vda is at /loc/web, which h2 does not share"},
		{"", func(f *facts) {
			f.guest.Disks, f.sites[0].SharedStorage, f.sites[1].SharedStorage = disk("/loc/web"), nil, nil
		}, "storage", CheckWarn, "nobody said whether"},
		{"", func(f *facts) {
			f.guest.Disks, f.sites[0].SharedStorage, f.sites[1].SharedStorage, f.req.Unsafe = disk("/loc/web"), nil, nil, true
		}, "storage", CheckFail, "does not share"},
		{"", func(f *facts) { f.guest.Disks, f.req.CopyStorage = disk("/loc/web"), CopyAll }, "storage", CheckOK, "vda is copied (10.0 GiB)"},
		{"", func(f *facts) { f.guest.Disks, f.req.CopyStorage = disk("/loc/web"), CopyInc }, "storage", CheckFail, "no base image"},
		{"", func(f *facts) {
			f.guest.Disks, f.req.CopyStorage = disk("/loc/web"), CopyInc
			f.guest.Disks[0].Backing = "/loc/base"
		}, "storage", CheckOK, "the difference to /loc/base (1.0 GiB), which h2 must have"},
		{"", func(f *facts) {
			f.guest.Disks, f.req.CopyStorage, f.req.Disks = disk("/loc/web"), CopyAll, []string{"vdb"}
		}, "storage", CheckFail, "does not share"},
		{"", func(f *facts) {
			f.guest.Disks = disk("/cd.iso")
			f.guest.Disks[0].ReadOnly = true
		}, "storage", CheckWarn, "must have the same file"},
		{"", func(f *facts) {
			f.guest.Disks = disk("rbd:vms/web")
			f.guest.Disks[0].Network = true
		}, "storage", CheckOK, "over the network"},
		{"", func(f *facts) { f.guest.State, f.req.CopyStorage = GuestOff, CopyAll }, "storage", CheckFail, "while a VM is off"},
		{"", func(f *facts) { f.srcAgentErr = "away" }, "agent", CheckFail, "h1: away"},
		{"", func(f *facts) { f.vm.Interface = "tap-x" }, "interface", CheckOK, "has to appear on h2"},
		{"", func(f *facts) { f.vm.Interface, f.tgtAgent.Interfaces = "tap-x", []string{"tap-x"} }, "interface", CheckOK, "h2 has tap-x"},
		{"", func(f *facts) { f.tgtAgent.EIDPrefixes = f.tgtAgent.EIDPrefixes[:1] }, "prefix", CheckFail, "no prefix with 2001:db8:e1d:1::10/128"},
		{"", func(f *facts) { f.refused = "is of db" }, "prefix", CheckFail, "does not take it: is of db"},
		{"an agent that says nothing of itself", func(f *facts) { f.tgtAgent = nil }, "prefix", CheckOK, "serves its EIDs"},
		{"", func(f *facts) { f.tgtAgent, f.told = nil, false }, "prefix", CheckWarn, "has not been told"},
		{"", func(f *facts) { f.tgtAgent.MTU = 0 }, "mtu", CheckWarn, "does not say"},
		{"", func(f *facts) { f.tgtAgent.MTU = 1300 }, "mtu", CheckWarn, "takes 1300 bytes, that of h1 1400"},
		{"", func(f *facts) { f.guest.Interfaces[0].MTU = 1500 }, "mtu", CheckWarn, "MTU of 1500"},
		{"", func(f *facts) {}, "time", CheckOK, "1.0 GiB to copy at 100.0 MiB/s (measured by 3 earlier migrations over a-b): about 10.2s"},
		{"", func(f *facts) { f.dirty = 50 << 20 }, "time", CheckOK, "about 20.5s"},
		{"", func(f *facts) { f.dirty = 200 << 20 }, "time", CheckWarn, "it changed 200.0 MiB/s of its memory when it was moved last, the link carries 100.0 MiB/s"},
		{"", func(f *facts) { f.dirty, f.req.OnSlow = 200<<20, SlowPostCopy }, "time", CheckOK, "will not come to an end by itself"},
		{"", func(f *facts) { f.dirty, f.req.Mode = 200<<20, ModeOffline }, "time", CheckOK, "about 10.2s"},
		{"", func(f *facts) { f.req.Timeout = Duration(time.Second) }, "time", CheckWarn, "about 10.2s"},
		{"", func(f *facts) { f.req.Bandwidth = 10 << 20 }, "time", CheckOK, "(the limit that was asked for): about 1m42.4s"},
		{"", func(f *facts) { f.link = LinkMemory{} }, "time", CheckOK, "how long is not known"},
		{"", func(f *facts) { f.guest.Disks, f.req.CopyStorage = disk("/loc/web"), CopyAll }, "time", CheckOK, "11.0 GiB to copy"},
		{"", func(f *facts) { f.guest.Disks, f.req.CopyStorage = disk("/srv/web"), CopyAll }, "time", CheckOK, "1.0 GiB to copy"},
		{"", func(f *facts) { f.guest.Disks, f.req.CopyStorage = disk("/loc/web"), CopyInc }, "time", CheckOK, "2.0 GiB to copy"},
	} {
		f := sound()
		tc.change(f)
		checks, _ := f.checks()
		found := false
		seen := map[string]bool{}
		for _, c := range checks {
			if seen[c.Name] {
				t.Errorf("%s: %s is there twice", tc.name, c.Name)
			}
			seen[c.Name] = true
			if c.Name != tc.check {
				continue
			}
			found = true
			if c.Status != tc.status || !strings.Contains(c.Text, tc.text) {
				t.Errorf("%s %s: %s %q, want %s %q", tc.name, c.Name, c.Status, c.Text, tc.status, tc.text)
			}
		}
		if !found {
			t.Errorf("%s: no check %s: %+v", tc.name, tc.check, checks)
		}
	}
}

func TestCPUFits(t *testing.T) {
	epyc := &Node{CPUModel: "EPYC", HostCPU: `<cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor><feature name='avx2'/><feature name='svm'/></cpu>`}
	xeon := &Node{CPUModel: "Skylake-Server", HostCPU: `<cpu><model>Skylake-Server</model><feature name='avx512f'/></cpu>`}
	for _, tc := range []struct {
		cpu      string
		from, to *Node
		want     CheckStatus
		text     string
	}{
		{"", epyc, xeon, CheckOK, "plain CPU"},
		{"<cpu", epyc, xeon, CheckWarn, "not described"},
		{`<cpu mode='host-passthrough' check='none'/>`, epyc, epyc, CheckOK, "same CPU: EPYC"},
		{`<cpu mode='host-passthrough'/>`, epyc, xeon, CheckFail, "the target has another: Skylake-Server"},
		{`<cpu mode='host-passthrough'/>`, epyc, nil, CheckWarn, "not known"},
		{`<cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>`, epyc, xeon, CheckOK, "every host"},
		{`<cpu mode='custom'><model>EPYC</model><feature policy='require' name='avx2'/></cpu>`, xeon, epyc, CheckOK, "the target has EPYC"},
		{`<cpu mode='custom'><model>EPYC</model><feature policy='require' name='avx512f'/></cpu>`, xeon, epyc, CheckFail, "no avx512f"},
		{`<cpu mode='custom'><model>EPYC</model><feature policy='disable' name='avx512f'/></cpu>`, xeon, epyc, CheckOK, "the target has EPYC"},
		{`<cpu mode='custom'><model>Haswell</model></cpu>`, epyc, xeon, CheckWarn, "its hypervisor will say"},
		{`<cpu mode='host-model'/>`, epyc, epyc, CheckOK, "same CPU"},
		{`<cpu mode='host-model'/>`, epyc, xeon, CheckWarn, "the CPU of its host (EPYC)"},
	} {
		if got, text := cpuFits(tc.cpu, tc.from, tc.to); got != tc.want || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %s %q, want %s %q", tc.cpu, got, text, tc.want, tc.text)
		}
	}
}

func FuzzCPU(f *testing.F) {
	f.Add(`<cpu mode='host-passthrough'/>`)
	f.Add(`<cpu mode='custom'><model>EPYC</model><feature policy='require' name='avx2'/></cpu>`)
	f.Fuzz(func(t *testing.T, s string) {
		n := &Node{CPUModel: "EPYC", HostCPU: s}
		status, text := cpuFits(s, n, n)
		if text == "" || status != CheckOK && status != CheckWarn && status != CheckFail {
			t.Errorf("%q: %q %q", s, status, text)
		}
	})
}

func FuzzDomainName(f *testing.F) {
	f.Add([]byte(`<domain type='kvm'><name>web</name></domain>`))
	f.Add([]byte(`<domain><name> </name></domain>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, err := domainName(b); err == nil && (name == "" || strings.TrimSpace(name) != name) {
			t.Errorf("%q: %q", b, name)
		}
	})
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{`"30s"`, `5`, `"x"`, `null`, `{}`, `1e3`, `-1`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var d, e Duration
		if d.UnmarshalJSON(b) != nil {
			return
		}
		out, err := d.MarshalJSON()
		if err != nil || e.UnmarshalJSON(out) != nil || d != e {
			t.Errorf("%s: %v, %s, %v", b, d, out, e)
		}
	})
}
