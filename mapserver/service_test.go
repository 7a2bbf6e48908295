package mapserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tabi-lisp/tabi/lisp"
)

const (
	front  = "198.51.100.50/32" // a service address
	vm, vn = "2001:db8:e1d::a/128", "2001:db8:e1d::b/128"
	poolOf = "2001:db8:64::/96"
)

// withServices is a cloud with a service prefix of its own beside the ones in its aggregates, and a pool prefix.
func withServices() Config {
	c := withSubscribers()
	c.Sites[0].Prefixes = append(c.Sites[0].Prefixes, mustEID("192.0.2.0/24"), mustEID("2001:db8:5e::/48"), mustEID(poolOf))
	return c
}

// service sends a Map-Register of a controller for one service and commits it. Version and TTL are the record's.
func (r *rig) service(outside, inside string, v lisp.Version, set ...func(*lisp.Mapping)) {
	r.t.Helper()
	r.register(r.ofController(outside, inside, v, set...))
}

func (r *rig) ofController(outside, inside string, v lisp.Version, set ...func(*lisp.Mapping)) xtr {
	r.t.Helper()
	rec := lisp.NewService(netip.MustParsePrefix(outside), netip.MustParsePrefix(inside), v)
	for _, f := range set {
		f(&rec)
	}
	return xtr{addr: ctl, key: &ctlKey, set: func(m *lisp.MapRegister) { m.Records = []lisp.Mapping{rec} }}
}

func gone(m *lisp.Mapping) { m.TTL = lisp.TTLDelete }

// merging is what a D-ETR registers with.
func merging(m *lisp.MapRegister) { m.Merge = true }

// serviceAt is "v5 is 2001:db8::/128" of a service address.
func (r *rig) serviceAt(outside string) string {
	m, ok := r.c.current(mustEID(outside))
	switch {
	case !ok:
		return "none"
	case !m.IsService():
		return "no service"
	}
	return fmt.Sprintf("v%d is %s", m.Version, m.Inside)
}

func (r *rig) wantService(outside, want string) {
	r.t.Helper()
	if got := r.serviceAt(outside); got != want {
		r.t.Errorf("%s is %s, want %s", outside, got, want)
	}
}

// wantRefused requires that the last Map-Register was refused for why, which names holder, in table and log.
func (r *rig) wantRefused(outside string, why reason, holder string) {
	r.t.Helper()
	refused := ""
	for _, row := range r.c.serviceRows(r.now) {
		if row.Service == mustEID(outside) {
			refused = row.Refused
		}
	}
	if !strings.HasPrefix(refused, string(why)) || !strings.Contains(refused, holder) {
		r.t.Errorf("the table says %q, want %q and %q", refused, why, holder)
	}
	if len(r.reports) != 1 || !strings.Contains(r.reports[0], string(why)) || !strings.Contains(r.reports[0], holder) {
		r.t.Errorf("the log says %q", r.reports)
	}
	for _, row := range r.c.registrationRows(r.now) {
		if row.Refused != "" {
			r.t.Errorf("is in the table of registrations: %+v", row)
		}
	}
}

func TestAServiceIsStoredAndTold(t *testing.T) {
	r := newRig(t, withServices())
	r.handle(r.message(r.ofController(front, vm, 5)))
	// The version is the controller's own: the sinks hear of it while the disk still works.
	if !slices.Equal(r.put, []lisp.EID{mustEID(front)}) {
		t.Errorf("sinks are told of %v", r.put)
	}
	r.commit()
	r.want("answer, once it is durable", r.late, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")
	if r.late[0].key.ID != ctlKey.ID {
		t.Errorf("signed with key %d", r.late[0].key.ID)
	}
	r.want("nobody gained or lost anything", append(r.early, r.bulk...))
	want := Service{Mapping: lisp.NewService(netip.MustParsePrefix(front), netip.MustParsePrefix(vm), 5), Site: "cloud",
		Source: netip.MustParseAddr(ctl), KeyID: ctlKey.ID, Since: r.now}
	if d := cmp.Diff(want, r.svcs[mustEID(front)], compareMappings, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("stored (-want +got):\n%s", d)
	}

	// A refresh is no news; it is answered.
	r.wait(5 * time.Minute)
	r.service(front, vm, 5)
	if len(r.put) != 0 || len(r.batch.Services) != 0 {
		t.Errorf("a refresh is news: %v, %v", r.put, r.batch.Services)
	}
	r.want("answer", r.late, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")

	// It follows its VM's EID, and the old one is free.
	r.service(front, vn, 6)
	r.wantService(front, "v6 is "+vn)
	r.service("198.51.100.51/32", vm, 1)
	r.wantService("198.51.100.51/32", "v1 is "+vm)
	// The controller speaks for nobody, whatever xTR-ID its Map-Register bears.
	x := r.ofController(front, vn, 7)
	x.id = 3
	r.register(x)
	r.want("answered as it asked", r.late, ctl+":4342 Map-Notify "+front+" v7 ttl 4294967295 is "+vn+" of 3")
	if m, _ := r.c.current(mustEID(front)); !m.XTRID.IsZero() || m.Version != 7 {
		t.Errorf("is %+v", m)
	}
	r.count("service/accepted", 5)
}

func TestServicesDoNotExpire(t *testing.T) {
	r := newRig(t, withServices())
	r.service(front, vm, 5, func(m *lisp.Mapping) { m.TTL = 1 })
	r.wait(100 * 24 * time.Hour)
	r.wantService(front, "v5 is "+vm)
	r.restart()
	r.wait(100 * 24 * time.Hour)
	r.wantService(front, "v5 is "+vm)
	if len(r.put) != 0 {
		t.Errorf("sinks are told of %v", r.put)
	}
	if all := r.c.all(); len(all) != 1 || all[0].Inside.String() != vm {
		t.Errorf("after a restart the sinks are told of %+v", all)
	}
}

func TestTheOrderOfServices(t *testing.T) {
	r := newRig(t, withServices())
	r.service(front, vm, 5)
	// What is older is refused, and the controller told what counts.
	r.service(front, vn, 4)
	r.want("told", r.early, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")
	r.want("not acknowledged", r.late)
	r.wantRefused(front, reasonOlder, "")
	r.service(front, vm, 3, gone)
	r.want("told", r.early, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")
	r.service(front, vn, 4095) // serial arithmetic: older, too
	r.wantService(front, "v5 is "+vm)

	r.service(front, vm, 6, gone)
	r.wantService(front, "none")
	r.want("answer", r.late, ctl+":4342 Map-Notify "+front+" v6 ttl 0 is "+vm+" of 0")
	if !slices.Equal(r.put, []lisp.EID{mustEID(front)}) || len(r.c.all()) != 0 {
		t.Errorf("sinks are told of %v, and have %v", r.put, r.c.all())
	}
	r.service(front, vm, 6, gone)
	r.want("again", r.late, ctl+":4342 Map-Notify "+front+" v6 ttl 0 is "+vm+" of 0")
	if len(r.put) != 0 {
		t.Errorf("sinks are told of %v", r.put)
	}
	// The version is remembered, also by the store.
	r.restart()
	r.service(front, vm, 5)
	r.want("told", r.early, ctl+":4342 Map-Notify "+front+" v6 ttl 0 is "+vm+" of 0")
	r.wantService(front, "none")
	if rows := r.c.serviceRows(r.now); len(rows) != 1 || rows[0].State != "withdrawn" {
		t.Errorf("the table says %+v", rows)
	}
	r.service(front, vm, 7)
	r.wantService(front, "v7 is "+vm)
	if rows := r.c.serviceRows(r.now); len(rows) != 1 || rows[0].State != "registered" || rows[0].Refused != "" {
		t.Errorf("the table says %+v", rows)
	}
	// Not for ever, though.
	r.service(front, vm, 8, gone)
	r.wait(31 * 24 * time.Hour)
	r.commit()
	if len(r.c.services.known)+len(r.svcs)+len(r.c.alarms) != 0 {
		t.Errorf("still known: %v, stored: %v", r.c.services.known, r.svcs)
	}
}

func TestAWithdrawalNeedNotSayWhatItWas(t *testing.T) {
	r := newRig(t, withServices())
	r.service(front, vm, 5)
	plain := func(m *lisp.Mapping) { gone(m); m.Inside, m.Version = netip.Prefix{}, 0 }
	r.service(front, vm, 0, plain)
	r.want("answer", r.late, ctl+":4342 Map-Notify "+front+" v5 ttl 0 is "+vm+" of 0")
	r.wantService(front, "none")
	// Of what was never known, as for other mappings.
	r.service("198.51.100.99/32", vm, 2, gone)
	r.want("answer", r.late, ctl+":4342 Map-Notify 198.51.100.99/32 v2 ttl 0 is "+vm+" of 0")
	if len(r.c.services.known) != 1 || len(r.put) != 0 {
		t.Errorf("known %v, told %v", r.c.services.known, r.put)
	}
}

func TestOneToOne(t *testing.T) {
	const six = "2001:db8:5e::a/128"
	r := newRig(t, withServices())
	r.service(front, vm, 5)
	r.service("192.0.2.16/28", "2001:db8:e1d::100/124", 1)
	r.service(six, vm, 2) // one of each family is allowed
	r.service("2001:db8:5e:1::/64", "2001:db8:e1d:1::/64", 3)
	for _, c := range []struct {
		outside, inside string
		why             reason
		holder          string // what the controller is told, too
	}{
		{"198.51.100.51/32", vm, reasonInsideTaken, front + " v5 ttl 4294967295 is " + vm},
		{"198.51.100.52/32", "2001:db8:e1d::104/128", reasonInsideTaken, "192.0.2.16/28 v1 ttl 4294967295 is 2001:db8:e1d::100/124"},
		{"192.0.2.0/28", "2001:db8:e1d::/124", reasonInsideTaken, front + " v5 ttl 4294967295 is " + vm},
		{"2001:db8:5e::b/128", vm, reasonInsideTaken, six + " v2 ttl 4294967295 is " + vm},
		{"2001:db8:5e:2::/64", "2001:db8:e1d:1::/64", reasonInsideTaken, "2001:db8:5e:1::/64 v3 ttl 4294967295 is 2001:db8:e1d:1::/64"},
		{"192.0.2.17/32", vn, reasonOverlap, "192.0.2.16/28 v1 ttl 4294967295 is 2001:db8:e1d::100/124"},
		{"198.51.100.48/28", "2001:db8:e1d::1f0/124", reasonOverlap, front + " v5 ttl 4294967295 is " + vm},
		{"2001:db8:5e:1::7/128", vn, reasonOverlap, "2001:db8:5e:1::/64 v3 ttl 4294967295 is 2001:db8:e1d:1::/64"},
		{"198.51.100.53/32", six, reasonTwice, six + " v2 ttl 4294967295 is " + vm},
		{vm, "2001:db8:e1d::c/128", reasonTwice, front + " v5 ttl 4294967295 is " + vm},
		{"2001:db8:e1d::101/128", vn, reasonTwice, "192.0.2.16/28 v1 ttl 4294967295 is 2001:db8:e1d::100/124"},
	} {
		t.Run(c.outside+" "+c.inside, func(t *testing.T) {
			r.t = t
			r.wait(10 * time.Minute) // the log is not full
			r.service(c.outside, c.inside, 9)
			r.want("the holder is named", r.early, ctl+":4342 Map-Notify "+c.holder+" of 0")
			r.want("not acknowledged", r.late)
			r.wantService(c.outside, "none")
			name, _, _ := strings.Cut(c.holder, " ")
			r.wantRefused(c.outside, c.why, "service address "+name)
			if len(r.put) != 0 {
				t.Errorf("sinks are told of %v", r.put)
			}
		})
	}
	r.t = t
	// A service that changes its EID to one that is taken keeps its own.
	r.service(front, vn, 6)
	r.service("198.51.100.51/32", vm, 1)
	r.service(front, vm, 7)
	r.want("the holder is named", r.early, ctl+":4342 Map-Notify 198.51.100.51/32 v1 ttl 4294967295 is "+vm+" of 0")
	r.wantService(front, "v6 is "+vn)
	// Withdrawn, it is in nobody's way.
	r.service("198.51.100.51/32", vm, 1, gone)
	r.service(front, vm, 7)
	r.wantService(front, "v7 is "+vm)
}

func TestWhoMayRegisterAService(t *testing.T) {
	forged := ctlKey
	forged.Secret = "guessed"
	other := lisp.Key{ID: 6, Algorithm: lisp.AlgHMACSHA256_128, Secret: "other controller"}
	for _, c := range []struct {
		name            string
		outside, inside string
		version         lisp.Version
		key             *lisp.Key
		why             reason
	}{
		{"an xTR", front, vm, 1, &propKey, reasonNoController},
		{"nobody", front, vm, 1, &forged, reasonAuth},
		{"no version", front, vm, 0, &ctlKey, reasonNoVersion},
		{"of no site", "8.8.8.8/32", vm, 1, &ctlKey, reasonNotConfigured},
		{"EID of no site", front, "2001:db8:ffff::1/128", 1, &ctlKey, reasonInsideSite},
		{"EID of another site", front, "2001:db8:07e::1/128", 1, &ctlKey, reasonForeignKey},
		{"of a site that takes its prefixes only", "203.0.113.1/32", vm, 1, &ctlKey, reasonUnknownKey},
		{"EID of another site, the other way", "192.0.2.200/32", vm, 1, &other, reasonUnknownKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := withServices()
			cfg.Sites = append(cfg.Sites, Site{Name: "other", Keys: []lisp.Key{{ID: 5, Algorithm: lisp.AlgHMACSHA256_128, Secret: "o"}},
				ControllerKeys: []lisp.Key{other}, Prefixes: []lisp.EID{mustEID("2001:db8:7e::/48")}, AcceptMoreSpecifics: true})
			r := newRig(t, cfg)
			x := r.ofController(c.outside, c.inside, c.version)
			x.key = c.key
			r.register(x)
			r.wantService(c.outside, "none")
			r.wantRefused(c.outside, c.why, "")
			r.want("not acknowledged", r.late)
			if c.key == &ctlKey && c.why != reasonUnknownKey { // the controller has to know
				r.want("denied", r.early, fmt.Sprintf("%s:4342 Map-Notify %s v%d ttl 1 drop/policy-denied of 0", ctl, c.outside, c.version))
			} else {
				r.want("no answer", r.early)
			}
			if len(r.svcs) != 0 || len(r.put) != 0 {
				t.Errorf("stored %v, told %v", r.svcs, r.put)
			}
		})
	}
	// What is of no site may be withdrawn: it is not told to anybody, and may be in the store.
	old := newRig(t, withServices())
	for range 2 {
		old.service("8.8.8.8/32", vm, 4, gone)
		old.want("answer", old.late, ctl+":4342 Map-Notify 8.8.8.8/32 v4 ttl 0 is "+vm+" of 0")
	}
	if len(old.svcs) != 0 || len(old.put) != 0 {
		t.Errorf("stored %v, told %v", old.svcs, old.put)
	}
	// Not even a withdrawal.
	r := newRig(t, withServices())
	r.service(front, vm, 1)
	x := r.ofController(front, vm, 2, gone)
	x.key = &propKey
	r.register(x)
	r.wantRefused(front, reasonNoController, "")
	r.wantService(front, "v1 is "+vm)
	// In a message with what is the sender's own, that counts.
	x.set = func(m *lisp.MapRegister) {
		m.Records = append(m.Records, lisp.NewService(mustEID(front).Prefix, mustEID(vn).Prefix, 2))
	}
	x.id, x.addr = 1, hv1
	r.register(x, web)
	r.want("answer", r.late, "100.64.1.2:4342 Map-Notify "+web+" v1 ttl 10 100.64.1.2 of 1")
	r.wantService(front, "v1 is "+vm)
}

// A key/value pair that is no service is refused: as a mapping it would only swallow packets.
func TestABrokenServiceIsRefused(t *testing.T) {
	r := newRig(t, withServices())
	lcaf := lisp.RawLCAF("\x40\x03\x00\x00\x0f\x00\x00\x04\x00\x00\x00\x00")
	for _, k := range []*lisp.Key{&ctlKey, &propKey} {
		r.register(xtr{addr: ctl, key: k, set: func(m *lisp.MapRegister) {
			m.Records[0].Locators = []lisp.Locator{{LCAF: lcaf, Priority: 255}}
		}}, front)
		r.want("no answer", append(r.early, r.late...))
		r.wantMapping(front, "none")
	}
	r.count("register/refused/"+string(reasonBadService), 2)
}

// A VM that runs keeps its address; a service address is not claimed by a VM.
func TestServicesAndVMs(t *testing.T) {
	r := newRig(t, withServices())
	vmAt := xtr{id: 1, addr: hv1}
	r.register(vmAt, front, "2001:db8:e1d:1::7/128")
	r.service(front, vm, 1)
	r.want("the controller is told who has it", r.early, ctl+":4342 Map-Notify "+front+" v1 ttl 10 100.64.1.2 of 1")
	r.wantRefused(front, reasonVM, "100.64.1.2 1/100 of xTR 00000000000000000000000000000001")
	r.wantMapping(front, "v1 of 1 at 100.64.1.2")
	r.service("198.51.100.48/28", "2001:db8:e1d::100/124", 1)
	r.wantRefused("198.51.100.48/28", reasonVM, front)
	r.service("2001:db8:e1d:1::/64", "2001:db8:e1d:2::/64", 1)
	r.wantRefused("2001:db8:e1d:1::/64", reasonVM, "2001:db8:e1d:1::7/128")
	// The EID inside is what the VM has: of course.
	r.service("198.51.100.60/32", "2001:db8:e1d:1::7/128", 1)
	r.wantService("198.51.100.60/32", "v1 is 2001:db8:e1d:1::7/128")

	// When the VM is gone the address is free.
	vmAt.ttl, vmAt.version = withdrawn, 1
	r.register(vmAt, front)
	r.service(front, vm, 2)
	r.wantService(front, "v2 is "+vm)
	r.service("192.0.2.16/28", "2001:db8:e1d::100/124", 1)

	for _, x := range []xtr{
		{id: 1, addr: hv1}, {id: 1, addr: hv1, version: 9}, {id: 2, addr: hv2},
		{id: 2, addr: ctl, rlocs: []string{hv2}, key: &ctlKey, version: 9}, // a controller announces a move of a VM
	} {
		for eid, holder := range map[string]string{front: front, "192.0.2.20/32": "192.0.2.16/28", "192.0.2.16/29": "192.0.2.16/28"} {
			r.wait(10 * time.Minute)
			r.register(x, eid)
			r.want("no answer", append(r.early, r.late...))
			rows := r.c.registrationRows(r.now)
			i := slices.IndexFunc(rows, func(row RegistrationRow) bool {
				return row.EID == mustEID(eid) && row.State == "refused" && row.XTRID[15] == x.id
			})
			if i < 0 || !strings.HasPrefix(rows[i].Refused, string(reasonService)+": service address "+holder+" of ") {
				t.Errorf("the table says %+v", rows)
			}
			if len(r.reports) != 1 || !strings.Contains(r.reports[0], "service address "+holder) {
				t.Errorf("the log says %q", r.reports)
			}
		}
	}
	r.wantService(front, "v2 is "+vm)
	r.wantService("192.0.2.16/28", "v1 is 2001:db8:e1d::100/124")
	// What is wider than a service address is no claim to it.
	r.register(xtr{id: 1, addr: hv1}, "192.0.2.0/24")
	r.wantMapping("192.0.2.0/24", "v1 of 1 at 100.64.1.2")
	// Withdrawn, it is free again.
	r.service(front, vm, 2, gone)
	r.register(xtr{id: 2, addr: hv2, version: 9}, front)
	r.wantMapping(front, "v9 of 2 at 100.64.2.2")
	for _, row := range r.c.registrationRows(r.now) {
		if row.EID == mustEID(front) && row.XTRID[15] == 2 && row.Refused != "" {
			t.Errorf("still refused: %+v", row)
		}
	}
}

// The D-ETRs register the service prefixes and the pool prefix, each with its own RLOC: that is what is
// answered for every address in them, whether it is a service or not.
func TestWhoAsksForAServiceAddressIsToldOfTheDETRs(t *testing.T) {
	const inside, own, six = "198.51.100.48/28", "192.0.2.0/24", "2001:db8:5e::/48"
	detr1 := xtr{id: 11, addr: "100.64.5.2", set: merging}
	detr2 := xtr{id: 12, addr: "100.64.6.2", set: merging}
	both, left := " ttl 10 100.64.5.2 100.64.6.2", " v3 ttl 0 100.64.5.2; "
	r := newRig(t, withServices())
	r.register(xtr{id: 1, addr: hv1}, web, "198.51.100.49/32", vm) // VMs, one of them between service addresses
	r.service(front, vm, 1)
	r.service("192.0.2.7/32", vn, 1)
	r.service("2001:db8:5e::7/128", vm, 1)
	r.ask(nil, front)
	r.want("no D-ETR yet", r.early, itr+":61000 Map-Reply 198.51.100.50/31 v0 ttl 1 natively-forward")

	for _, x := range []xtr{detr1, detr2} {
		r.register(x, inside, own, six, poolOf)
		r.want("nobody lost anything", r.early)
	}
	ask := func(what, eid, want string) {
		t.Helper()
		r.ask(nil, eid)
		r.want(what, r.early, itr+":61000 Map-Reply "+want)
	}
	ask("a service address in an aggregate", front, inside+" v2"+both+"; 198.51.100.49/32 v1 ttl 10 100.64.1.2")
	ask("an address beside it", "198.51.100.55/32", inside+" v2"+both+"; 198.51.100.49/32 v1 ttl 10 100.64.1.2")
	ask("a VM in the prefix", "198.51.100.49/32", "198.51.100.49/32 v1 ttl 10 100.64.1.2")
	ask("a VM outside", web, web+" v1 ttl 10 100.64.1.2")
	ask("a service address elsewhere", "192.0.2.7/32", own+" v2"+both)
	ask("an IPv6 service address", "2001:db8:5e::7/128", six+" v2"+both)
	ask("a host of the Internet in the pool", "2001:db8:64::808:808/128", poolOf+" v2"+both)
	ask("a service address in the pool, for hairpin", "2001:db8:64::c633:6432/128", poolOf+" v2"+both)
	ask("all of it", poolOf, poolOf+" v2"+both)

	// Who has asked to be told is told of the D-ETRs' coming and going, not of services.
	r.subscribe(7000, nil, "192.0.2.7/32")
	r.want("confirmed", r.late, itr+":4342 Map-Notify "+own+" v2"+both+" of 11")
	r.service("192.0.2.8/32", "2001:db8:e1d::c/128", 1)
	r.service("192.0.2.7/32", vn, 1, gone)
	r.want("services are no news to xTRs", append(r.early, r.bulk...))

	// One leaves in order: by shutdown or drain.
	detr1.ttl = withdrawn
	r.register(detr1, inside, own, six, poolOf)
	r.want("acknowledged", r.late, "100.64.5.2:4342 Map-Notify "+inside+left+own+left+six+left+poolOf+" v3 ttl 0 100.64.5.2 of 11")
	r.want("the subscriber is told", r.bulk, itr+":4342 Map-Notify "+own+" v3 ttl 10 100.64.6.2 of 12")
	ask("one D-ETR less", "192.0.2.7/32", own+" v3 ttl 10 100.64.6.2")
	ask("one D-ETR less", "2001:db8:64::808:808/128", poolOf+" v3 ttl 10 100.64.6.2")
	// It comes back; the other dies.
	detr1.ttl = 0
	r.register(detr1, inside, own, six, poolOf)
	ask("back", "2001:db8:64::808:808/128", poolOf+" v4"+both)
	for range 3 {
		r.wait(time.Minute)
		r.register(detr1, inside, own, six, poolOf)
	}
	ask("the other one has expired", "2001:db8:64::808:808/128", poolOf+" v5 ttl 10 100.64.5.2")
	// And the last.
	r.wait(3 * time.Minute)
	ask("none", "2001:db8:64::808:808/128", poolOf+" v0 ttl 1 natively-forward")
	r.wantService("192.0.2.8/32", "v1 is 2001:db8:e1d::c/128")
}

// A service may have all of a service prefix. Then two speak of one EID: xTRs are answered what the D-ETRs
// registered, the sinks are told of the service.
func TestAServiceOfAWholeServicePrefix(t *testing.T) {
	const whole = "2001:db8:5e::/48"
	for _, first := range []string{"D-ETRs first", "service first"} {
		t.Run(first, func(t *testing.T) {
			r := newRig(t, withServices())
			steps := []func(){
				func() { r.register(xtr{id: 11, addr: "100.64.5.2", set: merging}, whole) },
				func() { r.service(whole, "2001:db8:e1d::/48", 3) },
			}
			if first == "service first" {
				slices.Reverse(steps)
			}
			for _, f := range steps {
				f()
			}
			r.wantService(whole, "v3 is 2001:db8:e1d::/48")
			if all := r.c.all(); len(all) != 1 || !all[0].IsService() {
				t.Errorf("sinks have %+v", all)
			}
			r.ask(nil, "2001:db8:5e::1/128")
			r.want("answer", r.early, itr+":61000 Map-Reply "+whole+" v1 ttl 10 100.64.5.2")
			r.restart()
			r.wantService(whole, "v3 is 2001:db8:e1d::/48")
			r.ask(nil, "2001:db8:5e::1/128")
			r.want("answer", r.early, itr+":61000 Map-Reply "+whole+" v1 ttl 10 100.64.5.2")
			// A claim to all of it by an xTR is another matter.
			r.register(xtr{id: 1, addr: hv1}, whole)
			r.count("register/refused/"+string(reasonService), 1)
			r.service(whole, "2001:db8:e1d::/48", 3, gone)
			r.wantMapping(whole, "v1 of 11 at 100.64.5.2")
			if !slices.Equal(r.put, []lisp.EID{mustEID(whole)}) {
				t.Errorf("sinks are told of %v", r.put)
			}
		})
	}
}

func TestServicesAfterARestart(t *testing.T) {
	r := newRig(t, withServices())
	r.service(front, vm, 5)
	r.service("192.0.2.16/28", "2001:db8:e1d::100/124", 1)
	p := r.message(r.ofController("2001:db8:5e::7/128", vm, 2))
	r.handle(p)
	r.commit()
	r.service("192.0.2.99/32", "2001:db8:e1d::c/128", 3)
	last := r.message(r.ofController("192.0.2.99/32", "2001:db8:e1d::c/128", 4, gone))
	r.handle(last)
	r.commit()
	r.restart()
	r.wantService(front, "v5 is "+vm)
	r.wantService("192.0.2.16/28", "v1 is 2001:db8:e1d::100/124")
	r.wantService("2001:db8:5e::7/128", "v2 is "+vm)
	r.wantService("192.0.2.99/32", "none")
	checkCore(t, r.c, r.now)
	// One-to-one holds on.
	r.service("198.51.100.51/32", vm, 1)
	r.want("the holder is named", r.early, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")

	// What is not configured any more is not told, and comes back with the configuration.
	cfg := withServices()
	cfg.Sites[0].Prefixes = slices.DeleteFunc(cfg.Sites[0].Prefixes, func(e lisp.EID) bool { return e == mustEID("192.0.2.0/24") })
	with, without := r.c.policy, must(newPolicy(cfg))
	r.c.policy = without
	r.restart()
	r.wantService("192.0.2.16/28", "none")
	r.wantService(front, "v5 is "+vm)
	if len(r.reports) != 2 || r.svcs[mustEID("192.0.2.16/28")].Mapping.Version != 1 {
		t.Errorf("reports %q, stored %v", r.reports, slices.Collect(maps.Keys(r.svcs)))
	}
	r.c.policy = with
	r.restart()
	r.wantService("192.0.2.16/28", "v1 is 2001:db8:e1d::100/124")
	// Unless it was withdrawn meanwhile.
	r.c.policy = without
	r.restart()
	r.service("192.0.2.16/28", "2001:db8:e1d::100/124", 2, gone)
	r.want("answer", r.late, ctl+":4342 Map-Notify 192.0.2.16/28 v2 ttl 0 is 2001:db8:e1d::100/124 of 0")
	r.c.policy = with
	r.restart()
	r.wantService("192.0.2.16/28", "none")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// The very last Map-Register is answered once more (RFC 9301 section 5.7), what was said before is a replay.
func TestAServiceRetransmitted(t *testing.T) {
	for _, c := range []struct {
		name, outside, inside string
		version               lisp.Version
		set                   []func(*lisp.Mapping)
		early, late           string
	}{
		{"accepted", "198.51.100.51/32", vn, 1, nil, "", "198.51.100.51/32 v1 ttl 4294967295 is " + vn},
		{"refreshed", front, vm, 5, nil, "", front + " v5 ttl 4294967295 is " + vm},
		{"withdrawn", front, vm, 5, []func(*lisp.Mapping){gone}, "", front + " v5 ttl 0 is " + vm},
		{"never known", "198.51.100.51/32", vn, 1, []func(*lisp.Mapping){gone}, "", "198.51.100.51/32 v1 ttl 0 is " + vn},
		{"older", front, vn, 4, nil, front + " v5 ttl 4294967295 is " + vm, ""},
		{"taken", "198.51.100.51/32", vm, 1, nil, front + " v5 ttl 4294967295 is " + vm, ""},
		{"of no version", "198.51.100.51/32", vn, 0, nil, "198.51.100.51/32 v0 ttl 1 drop/policy-denied", ""},
		{"of no site", "8.8.8.8/32", vn, 1, nil, "8.8.8.8/32 v1 ttl 1 drop/policy-denied", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, withServices())
			r.service(front, vm, 5)
			p := r.register(r.ofController(c.outside, c.inside, c.version, c.set...))
			notify := func(what string) []string {
				if what == "" {
					return nil
				}
				return []string{ctl + ":4342 Map-Notify " + what + " of 0"}
			}
			for range 2 {
				r.want("answer", r.early, notify(c.early)...)
				r.want("acknowledgement", r.late, notify(c.late)...)
				r.handle(p)
				r.commit()
				if len(r.put) != 0 {
					t.Errorf("sinks are told of %v", r.put)
				}
			}
			r.count("register/retransmitted", 2)
		})
	}
	r := newRig(t, withServices())
	p := r.register(r.ofController(front, vm, 5))
	r.restart() // who sent it is known by the service
	r.handle(p)
	r.commit()
	r.want("answer", r.late, ctl+":4342 Map-Notify "+front+" v5 ttl 4294967295 is "+vm+" of 0")
	r.service(front, vn, 6)
	r.handle(p)
	r.count("register/refused/"+string(reasonReplay), 1)
	r.wantService(front, "v6 is "+vn)
}

// Two Map-Servers that hear the same in different order agree, as far as the controller says it.
func TestTwoMapServersAgreeOnServices(t *testing.T) {
	one, two := newRig(t, withServices()), newRig(t, withServices())
	one.service(front, vm, 1)
	two.service(front, vn, 2)
	one.service(front, vn, 2)
	two.service(front, vm, 1)
	for _, r := range []*rig{one, two} {
		r.wantService(front, "v2 is "+vn)
	}
	// One that has lost everything is told again.
	lost := newRig(t, withServices())
	lost.service(front, vn, 2)
	if !lost.c.all()[0].Equal(one.c.all()[0]) {
		t.Errorf("%+v and %+v", lost.c.all()[0], one.c.all()[0])
	}
}

func TestLimitOfServices(t *testing.T) {
	cfg := withServices()
	cfg.MaxRegistrations = 2
	r := newRig(t, cfg)
	r.register(xtr{id: 1, addr: hv1}, web)
	r.service(front, vm, 1)
	r.service("198.51.100.51/32", vn, 1)
	r.count("register/refused/"+string(reasonLimit), 1)
	r.register(xtr{id: 1, addr: hv1}, "198.51.100.12/32")
	r.count("register/refused/"+string(reasonLimit), 2)
}

func TestServiceTableAndExplanation(t *testing.T) {
	r := newRig(t, withServices())
	r.register(xtr{id: 1, addr: hv1}, vm)
	r.service(front, vm, 5)
	r.service("198.51.100.51/32", vm, 1)
	r.service("2001:db8:5e::7/128", vm, 2)
	r.service("198.51.100.52/32", vn, 2)
	r.service("198.51.100.52/32", vn, 3, gone)
	var got []string
	for _, row := range r.c.serviceRows(r.now) {
		got = append(got, fmt.Sprintf("%s %s %v v%d from %s key %s of %s: %s", row.Service, row.State, row.Inside, row.Version, row.Source, row.Key,
			row.Site, row.Refused))
	}
	want := []string{
		front + " registered " + vm + " v5 from " + ctl + " key 2 of cloud: ",
		"198.51.100.51/32 refused invalid Prefix v1 from " + ctl + " key  of cloud: eid-has-a-service-address: service address " + front +
			" of " + vm + ", version 5 (1 times)",
		"198.51.100.52/32 withdrawn " + vn + " v3 from " + ctl + " key 2 of cloud: ",
		"2001:db8:5e::7/128 registered " + vm + " v2 from " + ctl + " key 2 of cloud: ",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("services (-want +got):\n%s", d)
	}
	if rows := r.c.registrationRows(r.now); len(rows) != 1 || rows[0].EID != mustEID(vm) {
		t.Errorf("registrations %+v", rows)
	}
	if rows := r.c.mappingRows(r.now); len(rows) != 1 {
		t.Errorf("mappings %+v", rows)
	}

	explain := func(eid string, want ...string) {
		t.Helper()
		var got []string
		for _, f := range r.c.explain(r.now, mustEID(eid)) {
			if f.Part != "sites" {
				got = append(got, f.Part+" "+f.Says)
			}
			if f.Why == "" {
				t.Errorf("%s: says %q and not why", eid, f.Says)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("explanation of %s (-want +got):\n%s", eid, d)
		}
	}
	explain(front, "services service address "+front+" is translated to "+vm+" by the D-ETRs",
		"services no D-ETR has registered a prefix that covers it",
		"registrations not registered", "answers 198.51.100.0/24: natively-forward for 1 min")
	r.register(xtr{id: 11, addr: "100.64.5.2", set: merging}, "198.51.100.48/28")
	explain(front, "services service address "+front+" is translated to "+vm+" by the D-ETRs",
		"registrations "+front+" itself is not registered, 198.51.100.48/28 is",
		"registrations 198.51.100.48/28 -> 100.64.5.2 1/100, version 1",
		"answers 198.51.100.48/28 -> 100.64.5.2 1/100, version 1")
	explain(vm, "services "+vm+" has service address "+front, "services "+vm+" has service address 2001:db8:5e::7/128",
		"registrations "+vm+" -> 100.64.1.2 1/100, version 1", "answers "+vm+" -> 100.64.1.2 1/100, version 1")
	explain("198.51.100.52/32", "services service address 198.51.100.52/32 is withdrawn at version 3",
		"registrations 198.51.100.52/32 itself is not registered, 198.51.100.48/28 is",
		"registrations 198.51.100.48/28 -> 100.64.5.2 1/100, version 1",
		"answers 198.51.100.48/28 -> 100.64.5.2 1/100, version 1")
}
