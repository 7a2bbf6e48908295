package controller

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// What is done with VMs besides moving them: their lives, owners and addresses.

func (c *Controller) putOwner(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	var in struct {
		Owner string `json:"owner"`
	}
	if err := body(r, &in); err != nil {
		return 0, nil, err
	}
	if in.Owner != "" {
		if err := checkName("owner", in.Owner); err != nil {
			return 0, nil, fail(http.StatusBadRequest, "%v", err)
		}
	}
	return c.write(r, func(time.Time) (any, error) {
		v, ok := c.inv.vms[name]
		if !ok {
			return nil, c.noVM(name)
		}
		v.Owner = in.Owner
		c.setVM(v)
		return put{false, c.vmStatus(v)}, nil
	})
}

// noVM says why there is no VM of a name that can be worked with.
func (c *Controller) noVM(name string) error {
	for _, s := range c.strangers {
		if s.name == name {
			return fail(http.StatusConflict, "vm %s on %s was not entered: %s", name, s.hv, s.problem)
		}
	}
	return fail(http.StatusNotFound, "no vm %q", name)
}

// actions are what can be done with a VM, by path.
var vmActions = map[string]Action{
	"start": ActionStart, "stop": ActionStop, "kill": ActionKill, "hibernate": ActionHibernate, "pause": ActionPause, "resume": "",
}

// controlled is what a lifecycle action works on.
type controlled struct {
	hv    string
	d     Driver
	guest string
	do    Action
	done  bool // it is as it should be already
}

func (c *Controller) controlVM(r *http.Request) (int, any, error) {
	name, verb, elsewhere := r.PathValue("name"), r.PathValue("action"), r.URL.Query().Get("hypervisor")
	do, ok := vmActions[verb]
	if !ok {
		return 0, nil, fail(http.StatusNotFound, "no action %q: want start, stop, kill, hibernate, resume or pause", verb)
	}
	v, err := c.ask(r.Context(), func(time.Time) (any, error) { return c.controls(name, verb, do, elsewhere) })
	if err != nil {
		return 0, nil, err
	}
	x := v.(controlled)
	if !x.done {
		timeout := c.cfg.Timing.Driver
		if x.do == ActionHibernate || x.do == ActionStart {
			timeout = maxWait // its memory is written to disk, or read
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if err := x.d.Control(ctx, x.guest, x.do); err != nil {
			return 0, nil, fail(http.StatusBadGateway, "vm %s: %s on %s: %v", name, verb, x.hv, err)
		}
		c.counters.add("vm actions: "+verb, 1)
	}
	c.listNow(r.Context(), x.hv)
	v, err = c.change(r.Context(), func(now time.Time) (any, error) {
		v, ok := c.inv.vms[name]
		if !ok {
			return c.strangerStatus(name)
		}
		if x.do == ActionStart && v.Hypervisor != x.hv && c.moving(name) == nil {
			// Its agent will see it run, and claim; this is where it is from now on.
			v.Hypervisor, v.Placed = x.hv, now
			c.setVM(v)
		}
		return c.vmStatus(v), nil
	})
	return http.StatusOK, v, err
}

// controls finds what an action works on, and whether it may.
func (c *Controller) controls(name, verb string, do Action, elsewhere string) (x controlled, err error) {
	var at spotted
	v, known := c.inv.vms[name]
	if known {
		if g := c.migrating(name); g != nil {
			return x, fail(http.StatusConflict, "vm %s is being migrated: %s to %s (%s)", name, g.ID, g.To, g.Phase)
		}
		x.hv = v.Hypervisor
		for _, s := range c.sights(v) {
			if elsewhere != "" && s.hv != elsewhere && s.guest.State == GuestRunning && do == ActionStart && !c.dead(s.hv) {
				not := ""
				if s.stale {
					not = ", whose agent answers, though its driver does not"
				}
				return x, fail(http.StatusConflict, "vm %s runs on %s%s: it cannot be started on %s, too", name, s.hv, not, elsewhere)
			}
			if elsewhere == s.hv || elsewhere == "" && at.hv == "" {
				at = s
			}
		}
	} else if i := slices.IndexFunc(c.strangers, func(s stranger) bool { return s.name == name }); i >= 0 {
		at = c.strangers[i].spotted
	} else {
		return x, fail(http.StatusNotFound, "no vm %q", name)
	}
	if elsewhere != "" {
		if _, err := find("hypervisor", c.inv.hvs, elsewhere); err != nil {
			return x, err
		}
		x.hv = elsewhere
	} else {
		x.hv = or(at.hv, x.hv)
	}
	if x.hv == "" {
		return x, fail(http.StatusConflict, "nobody has said where vm %s is", name)
	}
	if why := c.undriven(x.hv); why != "" {
		return x, fail(http.StatusConflict, "vm %s: hypervisor %s has no driver by which it could be told to %s", name, x.hv, verb)
	}
	if at.hv == "" {
		if o := c.seen[x.hv]; o == nil || o.err != "" {
			why := "it has not answered yet"
			if o != nil && o.err != "" {
				why = o.err
			}
			return x, fail(http.StatusBadGateway, "vm %s: %s: %s", name, x.hv, why)
		}
		return x, fail(http.StatusNotFound, "%s does not have vm %s: define it there first", x.hv, name)
	}
	x.guest, x.do = at.guest.Name, do
	if verb == "resume" {
		x.do = ActionUnpause
		if at.guest.State == GuestHibernated || at.guest.State == GuestOff {
			x.do = ActionStart
		}
	}
	switch st := at.guest.State; {
	case x.do == ActionStart && st == GuestRunning, x.do == ActionUnpause && st == GuestRunning,
		(x.do == ActionStop || x.do == ActionKill) && st == GuestOff, x.do == ActionHibernate && st == GuestHibernated,
		x.do == ActionPause && st == GuestPaused:
		x.done = true
	case verb == "resume" && st == GuestOff:
		return x, fail(http.StatusConflict, "vm %s is off: start it", name)
	}
	if x.do == ActionStart && known && v.Hypervisor != "" && v.Hypervisor != x.hv {
		if o := c.seen[v.Hypervisor]; o != nil && o.err == "" {
			if g, ok := o.find(v); ok && (g.State == GuestRunning || g.State == GuestPaused) {
				return x, fail(http.StatusConflict, "vm %s is %s on %s", name, g.State, v.Hypervisor)
			}
		}
		if no := c.world("").policy(v, c.needs(v), v.Hypervisor, x.hv); no != "" {
			return x, fail(http.StatusForbidden, "vm %s: %s", name, no)
		}
	}
	x.d, err = c.driverOf(x.hv)
	if err != nil {
		return x, fail(http.StatusBadGateway, "%v", err)
	}
	return x, nil
}

// dead reports whether neither a hypervisor's driver nor its agent answers: then its VMs may be started elsewhere by whoever
// says where.
func (c *Controller) dead(hv string) bool {
	o := c.seen[hv]
	return (o == nil || o.err != "") && c.status[hv].err != ""
}

// listNow asks a hypervisor what VMs it has, so that what is answered is what is.
func (c *Controller) listNow(ctx context.Context, hv string) {
	v, err := c.ask(ctx, func(time.Time) (any, error) { return c.watchers[hv], nil })
	if err != nil {
		return
	}
	w, _ := v.(*hvWatcher)
	if w == nil {
		return
	}
	d, err := w.driver()
	if err != nil {
		return
	}
	s, err := w.list(ctx, d, false)
	if err != nil {
		return // the watcher finds out, too
	}
	c.post(func(now time.Time) { c.sighted(s, now) })
}

// maxDefinition bounds a domain's XML, in bytes.
const maxDefinition = 512 << 10

func (c *Controller) putDefinition(r *http.Request) (int, any, error) {
	name, hv := r.PathValue("name"), r.URL.Query().Get("hypervisor")
	b, err := io.ReadAll(io.LimitReader(r.Body, maxDefinition+1))
	switch {
	case err != nil:
		return 0, nil, fail(http.StatusBadRequest, "body: %v", err)
	case len(b) > maxDefinition:
		return 0, nil, fail(http.StatusRequestEntityTooLarge, "body: more than %d bytes", maxDefinition)
	}
	domain, err := domainName(b)
	if err != nil {
		return 0, nil, fail(http.StatusBadRequest, "body: %v", err)
	}
	if domain != name {
		return 0, nil, fail(http.StatusBadRequest, "vm %q: the domain has another name: %q", name, domain)
	}
	v, err := c.ask(r.Context(), func(time.Time) (any, error) {
		x := controlled{hv: hv}
		if v, ok := c.inv.vms[name]; ok {
			if g := c.migrating(name); g != nil {
				return nil, fail(http.StatusConflict, "vm %s is being migrated: %s to %s (%s)", name, g.ID, g.To, g.Phase)
			}
			x.hv = or(hv, v.Hypervisor)
			if x.hv != v.Hypervisor && x.hv != "" && v.Hypervisor != "" {
				if no := c.world("").policy(v, c.needs(v), v.Hypervisor, x.hv); no != "" {
					return nil, fail(http.StatusForbidden, "vm %s: %s", name, no)
				}
			}
		}
		if x.hv == "" {
			return nil, fail(http.StatusBadRequest, "vm %s is not known yet: say where with ?hypervisor=", name)
		}
		if _, err := find("hypervisor", c.inv.hvs, x.hv); err != nil {
			return nil, err
		}
		if c.undriven(x.hv) != "" {
			return nil, fail(http.StatusConflict, "hypervisor %s has no driver by which a VM could be defined", x.hv)
		}
		var err error
		x.d, err = c.driverOf(x.hv)
		return x, err
	})
	if err != nil {
		return 0, nil, err
	}
	x := v.(controlled)
	ctx, cancel := context.WithTimeout(r.Context(), c.cfg.Timing.Driver)
	defer cancel()
	if _, err := x.d.Define(ctx, string(b)); err != nil {
		return 0, nil, fail(http.StatusBadGateway, "vm %s: define on %s: %v", name, x.hv, err)
	}
	c.listNow(r.Context(), x.hv)
	v, err = c.ask(r.Context(), func(time.Time) (any, error) {
		if v, ok := c.inv.vms[name]; ok {
			return c.vmStatus(v), nil
		}
		return c.strangerStatus(name)
	})
	return http.StatusOK, v, err
}

func (c *Controller) strangerStatus(name string) (any, error) {
	for _, s := range c.strangers {
		if s.name == name {
			return s.status(c.inv.hvs[s.hv].Site), nil
		}
	}
	return nil, fail(http.StatusNotFound, "no vm %q", name)
}

// domainName reads the name out of a domain's XML.
func domainName(b []byte) (string, error) {
	var d struct {
		XMLName xml.Name
		Name    string `xml:"name"`
	}
	if err := xml.NewDecoder(bytes.NewReader(b)).Decode(&d); err != nil {
		return "", errors.New("want libvirt's domain XML: " + err.Error())
	}
	switch name := strings.TrimSpace(d.Name); {
	case d.XMLName.Local != "domain":
		return "", errors.New("want a <domain>, got a <" + d.XMLName.Local + ">")
	case name == "":
		return "", errors.New("the domain has no <name>")
	default:
		return name, nil
	}
}

func (c *Controller) getAddresses(r *http.Request) (int, any, error) {
	name := r.PathValue("name")
	var vm VM
	var hvs []Hypervisor
	if _, err := c.ask(r.Context(), func(time.Time) (any, error) {
		v, ok := c.inv.vms[name]
		if !ok {
			return nil, c.noVM(name)
		}
		vm = v
		// Where it is, and where it may be: on the way, an agent elsewhere sees it first.
		names := []string{v.Hypervisor}
		for _, e := range c.byVM[name] {
			if e.m.Open {
				names = append(names, e.m.From, e.m.To)
			}
		}
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			if h, ok := c.inv.hvs[n]; ok {
				hvs = append(hvs, h)
			}
		}
		return nil, nil
	}); err != nil {
		return 0, nil, err
	}
	out := Addresses{VM: vm.Name, Assigned: []string{}, MACs: vm.MACs, Seen: []SeenAddress{}}
	for _, e := range vm.EIDs {
		out.Assigned = append(out.Assigned, e.String())
	}
	ctx, cancel := context.WithTimeout(r.Context(), c.cfg.Timing.Call)
	defer cancel()
	answers := make([][]agentLocal, len(hvs))
	errs := make([]error, len(hvs))
	var wg sync.WaitGroup
	for i, h := range hvs {
		wg.Go(func() { answers[i], errs[i] = c.agents.Local(ctx, h) })
	}
	wg.Wait()
	for i, h := range hvs {
		if errs[i] != nil {
			out.Errors = append(out.Errors, errs[i].Error())
		}
		for _, l := range answers[i] {
			assigned := slices.Contains(vm.EIDs, l.EID)
			if !assigned && l.VM != vm.Name && !slices.Contains(vm.MACs, strings.ToLower(l.MAC)) {
				continue
			}
			out.Seen = append(out.Seen, SeenAddress{EID: l.EID.String(), MAC: l.MAC, Hypervisor: h.Name, Interface: l.Interface,
				State: l.State, Assigned: assigned, Learned: l.Learned, Since: l.Since, LastSeen: l.Seen})
		}
	}
	if len(hvs) == 0 {
		out.Errors = append(out.Errors, "nobody has said where it runs")
	}
	return http.StatusOK, out, nil
}
