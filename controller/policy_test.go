package controller

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAdmits(t *testing.T) {
	open := Site{Name: "s"}
	strict := Site{Name: "s", Owners: []string{"wide", "sfc"}}
	lends := Site{Name: "s", Owners: []string{"wide"}, Lend: &Lend{Owners: []string{"alice"}, VMs: []string{"camp-*", "web"}, FromSites: []string{"camp", "lab"}}}
	all := Site{Name: "s", Lend: &Lend{Owners: []string{"*"}}}
	for _, tc := range []struct {
		name string
		s    Site
		v    VM
		from string
		want string
	}{
		{"an open site takes all", open, VM{Name: "a"}, "x", ""},
		{"a strict site takes its own", strict, VM{Name: "a", Owner: "sfc"}, "x", ""},
		{"and nobody else's", strict, VM{Name: "a", Owner: "alice"}, "x", "site s lends nothing"},
		{"nor nobody's", strict, VM{Name: "a"}, "x", "site s lends nothing"},
		{"within a site everything moves", strict, VM{Name: "a"}, "s", ""},
		{"an empty lend is nothing", Site{Name: "s", Lend: &Lend{}}, VM{Name: "a", Owner: "alice"}, "x", "site s lends nothing to alice"},
		{"lent to its owner", lends, VM{Name: "a", Owner: "alice"}, "camp", ""},
		{"not from there", lends, VM{Name: "a", Owner: "alice"}, "x", "site s takes no VMs from site x"},
		{"at home from anywhere", lends, VM{Name: "a", Owner: "wide"}, "x", ""},
		{"lent by name", lends, VM{Name: "web", Owner: "bob"}, "lab", ""},
		{"lent by pattern, without an owner", lends, VM{Name: "camp-3"}, "camp", ""},
		{"another's", lends, VM{Name: "a", Owner: "bob"}, "camp", "site s lends nothing to bob"},
		{"without an owner", lends, VM{Name: "a"}, "camp", "site s lends to named owners, and VM a has none (tabi vm chown)"},
		{"lent to everybody", all, VM{Name: "a", Owner: "bob"}, "x", ""},
		{"but not to nobody", all, VM{Name: "a"}, "x", "site s lends to named owners, and VM a has none (tabi vm chown)"},
	} {
		if got := tc.s.admits(tc.v, tc.from); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestPool(t *testing.T) {
	s := Site{Name: "s", SharedStorage: []string{"/srv", "nfs1=/srv/vms", "nfs2=/images"}}
	for file, want := range map[string]string{
		"/srv/x": "@s", "/srv": "@s", "/srv/vms/a.qcow2": "nfs1", "/srv/vms2/a": "@s", "/images/b": "nfs2", "/images2/b": "", "/var/x": "", "": "",
	} {
		if got := s.pool(file); got != want {
			t.Errorf("%q: %q, want %q", file, got, want)
		}
	}
}

func TestPlace(t *testing.T) {
	const gib = 1 << 30
	h := func(name, site string, mem, used uint64, vms int) *host {
		return &host{Hypervisor: Hypervisor{Name: name, Site: site}, has: Capacity{Memory: mem}, used: Capacity{VMs: vms, Memory: used}}
	}
	w := func(hs ...*host) *world {
		out := &world{sites: map[string]Site{"a": {Name: "a"}, "b": {Name: "b"}, "c": {Name: "c", Owners: []string{"carol"}}}, hosts: map[string]*host{}, lent: map[string]Capacity{}}
		for _, x := range hs {
			out.hosts[x.Name] = x
		}
		return out
	}
	v := VM{Name: "web", Hypervisor: "a1"}
	need := Capacity{CPUs: 2, Memory: 4 * gib}
	a1 := h("a1", "a", 64*gib, 8*gib, 2)
	full := h("b1", "b", 16*gib, 13*gib, 3)
	drained := h("b2", "b", 64*gib, 0, 0)
	drained.Drained = true
	silent := h("b3", "b", 64*gib, 0, 0)
	silent.silent = "its agent does not answer: no route to host"
	measured := h("b4", "b", 64*gib, 0, 0)
	measured.free = 3 * gib
	cpus := h("b5", "b", 64*gib, 0, 0)
	cpus.CPUs, cpus.used.CPUs = 4, 3
	lender := w(a1, h("c1", "c", 64*gib, 0, 0))
	lender.sites["c"] = Site{Name: "c", Lend: &Lend{CPUs: 3, Memory: 6 * gib, Owners: []string{"*"}}}
	lender.lent["c"] = Capacity{CPUs: 2, Memory: gib}
	ofBob := v
	ofBob.Owner = "bob"
	for _, tc := range []struct {
		name string
		w    *world
		v    VM
		site string
		fit  func(*host) string
		best string
		why  string
		no   []string
	}{
		{"the most free, in parts", w(a1, h("b1", "b", 32*gib, 8*gib, 1), h("b2", "b", 256*gib, 128*gib, 0)), v, "", nil, "b1",
			"it has the most memory free (24.0 GiB of 32.0 GiB)", []string{"a1: it is there", "b2: it would take it, but b1 is better: it has the most memory free (24.0 GiB of 32.0 GiB)"}},
		{"equal: the fewest VMs", w(a1, h("b1", "b", 32*gib, 8*gib, 3), h("b2", "b", 32*gib, 8*gib, 1)), v, "", nil, "b2", "it has the most memory free (24.0 GiB of 32.0 GiB)",
			[]string{"a1: it is there", "b1: it would take it, but b2 is better: it has the most memory free (24.0 GiB of 32.0 GiB)"}},
		{"all equal: the first by name", w(h("z", "b", 0, 0, 1), h("y", "b", 0, 0, 1)), v, "", nil, "y", "it has the fewest VMs (1)", []string{"z: it would take it, but y is better: it has the fewest VMs (1)"}},
		{"nobody knows: the fewest VMs", w(h("b1", "b", 0, 0, 7), h("b2", "b", 0, 0, 5)), v, "", nil, "b2", "it has the fewest VMs (5)", []string{"b1: it would take it, but b2 is better: it has the fewest VMs (5)"}},
		{"who knows comes first", w(h("b1", "b", 0, 0, 0), h("b2", "b", 16*gib, 10*gib, 9)), v, "", nil, "b2", "it has the most memory free (6.0 GiB of 16.0 GiB)",
			[]string{"b1: it would take it, but b2 is better: it has the most memory free (6.0 GiB of 16.0 GiB)"}},
		{"nobody", w(a1, full, drained, silent, measured, cpus, h("c1", "c", 64*gib, 0, 0)), v, "", nil, "",
			"no hypervisor takes it: a1: it is there; b1: b1 has room for 3.0 GiB of memory, the VM needs 4.0 GiB; b2: it is drained; b3: its agent does not answer: no route to host; " +
				"b4: b4 has room for 3.0 GiB of memory, the VM needs 4.0 GiB; b5: b5 has room for 1 virtual CPUs, the VM needs 2; c1: site c lends nothing", nil},
		{"at a site", w(a1, h("b1", "b", 64*gib, 60*gib, 1), h("c1", "c", 0, 0, 0), h("a2", "a", 0, 0, 0)), v, "b", nil, "b1", "it is the only one that takes it", nil},
		{"at a site where nobody takes it", w(a1, h("c1", "c", 0, 0, 0)), v, "c", nil, "", "no hypervisor of site c takes it: c1: site c lends nothing", nil},
		{"what else speaks against it", w(a1, h("b1", "b", 0, 0, 0)), v, "", func(*host) string { return "it has no driver" }, "", "no hypervisor takes it: a1: it is there; b1: it has no driver", nil},
		{"lent, but too much is taken", lender, ofBob, "c", nil, "", "no hypervisor of site c takes it: c1: site c lends 3 virtual CPUs, 2 of them are taken, the VM needs 2", nil},
	} {
		for range 5 { // maps have no order, the answer has
			best, why, refused := tc.w.place(tc.v, need, "a1", tc.site, tc.fit)
			var no []string
			for _, r := range refused {
				no = append(no, r.Hypervisor+": "+r.Why)
			}
			if best != tc.best || why != tc.why || tc.no != nil && cmp.Diff(tc.no, no) != "" {
				t.Errorf("%s: %q %q %s", tc.name, best, why, cmp.Diff(tc.no, no))
				break
			}
		}
	}
	// What is booked counts.
	x := w(a1, h("b1", "b", 0, 0, 0), h("b2", "b", 0, 0, 0))
	count := map[string]int{}
	for range 10 {
		to, _, _ := x.place(v, need, "a1", "", nil)
		x.take(v, need, to)
		count[to]++
	}
	if count["b1"] != 5 || count["b2"] != 5 || x.lent["b"].VMs != 10 {
		t.Errorf("%v %+v", count, x.lent)
	}
	lender.lent["c"] = Capacity{}
	lender.take(ofBob, need, "c1")
	if no := lender.lends(ofBob, need, "a", "c"); !strings.Contains(no, "lends 3 virtual CPUs") {
		t.Errorf("%q", no)
	}
	lender.sites["c"].Lend.CPUs = 0
	if no := lender.lends(ofBob, need, "a", "c"); !strings.Contains(no, "lends 6.0 GiB of memory, 4.0 GiB of it are taken") {
		t.Errorf("%q", no)
	}
}

// The policy of a site is obeyed by whatever the controller begins, and not asked about what others have begun.
func TestPolicyInTheAPI(t *testing.T) {
	bubble(t, func(t *testing.T, w *cloud, r *ctl) {
		w.equip(t, r)
		for body, text := range map[string]string{
			`{"lend":{"cpus":-1}}`: "cpus", `{"lend":{"owners":["a b"]}}`: "owner", `{"lend":{"vms":["["]}}`: "pattern", `{"lend":{"from_sites":["/"]}}`: "from_sites",
			`{"owners":[""]}`: "owner", `{"shared_storage":["srv"]}`: "absolute", `{"shared_storage":["a b=/srv"]}`: "shared_storage", `{"shared_storage":["/srv/"]}`: "absolute",
			`{"lend":{"vms":[""]}}`: "pattern",
		} {
			if got := r.must(t, http.StatusBadRequest, "PUT", "/v1/sites/s2", body); !strings.Contains(got, text) {
				t.Errorf("%s: %s", body, got)
			}
		}
		const policy = `{"owners":["bob"],"lend":{"cpus":8,"owners":["alice"],"from_sites":["s1"]},"shared_storage":["nfs1=/srv/vms"]}`
		r.must(t, http.StatusOK, "PUT", "/v1/sites/s2", policy)
		was := r.must(t, http.StatusOK, "GET", "/v1/sites/s2", "")
		if r.must(t, http.StatusOK, "PUT", "/v1/sites/s2", was) != was || !strings.Contains(was, `"nfs1=/srv/vms"`) {
			t.Error(was)
		}
		for _, path := range []string{"/v1/moves/m1", "/v1/migrations"} {
			method := map[bool]string{true: "POST", false: "PUT"}[path == "/v1/migrations"]
			if got := r.must(t, http.StatusForbidden, method, path, `{"vm":"web","to":"hv2"}`); !strings.Contains(got, "has none (tabi vm chown)") {
				t.Error(got)
			}
		}
		var text string
		if text = r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web","to":"hv2"}`); !strings.Contains(text, `"ok": false`) || !strings.Contains(text, "has none") {
			t.Error(text)
		}
		if text = r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web","site":"s2"}`); !strings.Contains(text, `"ok": false`) || !strings.Contains(text, "no hypervisor of site s2") {
			t.Error(text)
		}
		r.must(t, http.StatusBadRequest, "PUT", "/v1/vms/web/owner", `{"owner":"a b"}`)
		r.must(t, http.StatusNotFound, "PUT", "/v1/vms/x/owner", `{"owner":"a"}`)
		r.must(t, http.StatusOK, "PUT", "/v1/vms/web/owner", `{"owner":"alice"}`)
		r.must(t, http.StatusOK, "PUT", "/v1/vms/web", webBody) // an owner is not lost by the way
		if text = r.must(t, http.StatusOK, "POST", "/v1/preflight", `{"vm":"web","to":"hv2"}`); !strings.Contains(text, `"ok": true`) || !strings.Contains(text, "site s2 lends to it (owner alice)") {
			t.Error(text)
		}
		r.must(t, http.StatusOK, "PUT", "/v1/vms/web/owner", `{"owner":"eve"}`)
		r.must(t, http.StatusForbidden, "PUT", "/v1/moves/m1", `{"vm":"web","to":"hv2"}`)
		if text = r.must(t, http.StatusCreated, "POST", "/v1/announcements", `{"vm":"web","to":"hv2"}`); !strings.Contains(text, "announced-") {
			t.Error(text)
		}
	})
}
