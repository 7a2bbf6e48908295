package controller

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// facts are what a preflight judges: values that were gathered, and why what is missing is missing.
type facts struct {
	vm       VM
	need     Capacity
	req      MigrationRequest
	from, to Hypervisor
	w        *world
	sites    [2]Site // source's and target's

	guest              *Guest // at the source; nil with srcErr, or it is not there
	srcNode, tgtNode   *Node
	srcErr, tgtErr     string // why a driver says nothing
	namesake           *Guest // a domain of its name or UUID at the target
	srcAgent, tgtAgent *agentNode
	srcAgentErr        string
	tgtAgentErr        string
	told               bool   // the target's agent knows the VM
	refused            string // or why not
	link               LinkMemory
	dirty              uint64 // bytes a second, when it was moved last
}

// agentNode is what an agent says of itself. Agents that do not know the question say nothing.
type agentNode struct {
	EIDPrefixes []lisp.EID `json:"eid_prefixes"`
	Interfaces  []string   `json:"interfaces"` // VM interfaces that are there
	MTU         int        `json:"mtu"`        // largest inner packet; 0 = not known
}

// agentLocal is an EID that an agent has at one of its interfaces.
type agentLocal struct {
	EID       lisp.EID  `json:"eid"`
	VM        string    `json:"vm"`
	Interface string    `json:"interface"`
	MAC       string    `json:"mac"`
	State     string    `json:"state"`
	Learned   bool      `json:"learned"`
	Since     time.Time `json:"since"`
	Seen      time.Time `json:"seen"`
}

// checks judges; it changes nothing, and is in the order in which things go wrong.
func (f *facts) checks() (out []Check, est *Estimate) {
	add := func(name string, status CheckStatus, format string, args ...any) {
		out = append(out, Check{name, status, fmt.Sprintf(format, args...)})
	}
	switch {
	case f.srcErr != "":
		add("driver", CheckFail, "%s: %s", f.from.Name, f.srcErr)
	case f.tgtErr != "":
		add("driver", CheckFail, "%s: %s", f.to.Name, f.tgtErr)
	default:
		f.checkPeer(add)
	}
	f.checkState(add)
	if no := f.w.policy(f.vm, f.need, f.from.Name, f.to.Name); no != "" {
		add("policy", CheckFail, "%s", no)
	} else {
		add("policy", CheckOK, "%s", f.allowed())
	}
	f.checkCapacity(add)
	if f.guest != nil && f.tgtNode != nil {
		f.checkCPU(add)
		f.checkMachine(add)
	}
	if f.guest != nil {
		f.checkStorage(add)
	}
	f.checkAgents(add)
	f.checkMTU(add)
	if f.guest != nil {
		est = f.estimate()
		status := CheckOK
		switch {
		case est.Endless && !f.req.AutoConverge && f.req.OnSlow != SlowPostCopy && f.req.Mode != ModePostCopy:
			status = CheckWarn
		case est.Time > 0 && f.req.Timeout > 0 && est.Time > f.req.Timeout:
			status = CheckWarn
		}
		add("time", status, "%s", est.Text)
	}
	return out, est
}

type adder func(name string, status CheckStatus, format string, args ...any)

func (f *facts) checkPeer(add adder) {
	uri := f.dest()
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Scheme == "":
		add("driver", CheckFail, "%s has no URI by which other hypervisors reach it: %q", f.to.Name, uri)
	case !strings.Contains(u.Scheme, "+") && u.Host == "" && !u.Query().Has("socket"):
		add("driver", CheckFail, "%s would mean %s itself when %s uses it: set driver_peer of %s", uri, f.from.Name, f.from.Name, f.to.Name)
	case strings.HasSuffix(u.Scheme, "+unix"):
		add("driver", CheckWarn, "%s is a local socket: it works only if %s has it too (driver_peer of %s says another)", uri, f.from.Name, f.to.Name)
	default:
		add("driver", CheckOK, "%s and %s answer", f.from.Name, f.to.Name)
	}
}

// dest is the URI by which the source reaches the target.
func (f *facts) dest() string { return or(f.to.DriverPeer, f.to.Driver) }

func (f *facts) checkState(add adder) {
	switch g := f.guest; {
	case g == nil && f.srcErr == "":
		add("state", CheckFail, "%s does not have VM %s", f.from.Name, f.vm.Name)
	case g == nil:
		add("state", CheckWarn, "not known")
	case g.State == GuestHibernated:
		add("state", CheckFail, "it is hibernated: its memory is a file of %s; resume it first", f.from.Name)
	case g.State == GuestCrashed || g.State == GuestUnknown:
		add("state", CheckFail, "it is %s", g.State)
	case g.State == GuestOff && f.req.Mode != ModeOffline && f.req.Mode != "":
		add("state", CheckFail, "it is off: only an offline migration moves it (its definition)")
	case g.State == GuestOff && !g.Persistent:
		add("state", CheckFail, "it is off")
	case f.namesake != nil && f.namesake.State != GuestOff:
		add("state", CheckFail, "%s has a VM %s (%s) already", f.to.Name, f.namesake.Name, f.namesake.State)
	case f.namesake != nil && f.namesake.UUID != g.UUID:
		add("state", CheckFail, "%s has another VM of the name %s", f.to.Name, f.namesake.Name)
	default:
		add("state", CheckOK, "it is %s", g.State)
	}
}

// allowed says by which rule a VM may come.
func (f *facts) allowed() string {
	s := f.sites[1]
	switch {
	case f.from.Site == f.to.Site:
		return "it stays at site " + s.Name
	case s.open():
		return "site " + s.Name + " takes every VM"
	case s.home(f.vm):
		return fmt.Sprintf("%s is at home at site %s", f.vm.Owner, s.Name)
	}
	return fmt.Sprintf("site %s lends to it (owner %s)", s.Name, or(f.vm.Owner, "not said"))
}

func (f *facts) checkCapacity(add adder) {
	h := f.w.hosts[f.to.Name]
	m, known := h.room()
	switch short := h.short(f.need); {
	case short != "":
		add("capacity", CheckFail, "%s", short)
	case f.to.Drained:
		add("capacity", CheckWarn, "%s is drained; it takes the VM because it was named", f.to.Name)
	case !known:
		add("capacity", CheckWarn, "nobody says how much memory %s has", f.to.Name)
	case h.has.CPUs > 0 && f.need.CPUs > h.has.CPUs:
		add("capacity", CheckWarn, "it has %d virtual CPUs, %s has %d CPUs", f.need.CPUs, f.to.Name, h.has.CPUs)
	default:
		add("capacity", CheckOK, "it needs %s of memory and %d CPUs; %s has room for %s", size(f.need.Memory), f.need.CPUs, f.to.Name, size(m))
	}
}

func (f *facts) checkCPU(add adder) {
	status, text := cpuFits(f.guest.CPU, f.srcNode, f.tgtNode)
	add("cpu", status, "%s", text)
}

func (f *facts) checkMachine(add adder) {
	m, has := f.guest.Machine, f.tgtNode.Machines
	switch {
	case m == "":
		add("machine", CheckWarn, "its machine type is not known")
	case len(has) == 0:
		add("machine", CheckWarn, "%s does not say which machine types it has", f.to.Name)
	case !slices.Contains(has, m):
		add("machine", CheckFail, "%s has no machine type %s", f.to.Name, m)
	default:
		add("machine", CheckOK, "%s has %s", f.to.Name, m)
	}
}

func (f *facts) checkStorage(add adder) {
	var ok, bad []string
	status := CheckOK
	worse := func(s CheckStatus) {
		if status != CheckFail {
			status = s
		}
	}
	copied := f.req.CopyStorage == CopyAll || f.req.CopyStorage == CopyInc
	if copied && f.guest.State == GuestOff {
		add("storage", CheckFail, "disks are not copied while a VM is off: start it, or take them there by other means")
		return
	}
	for _, d := range f.guest.Disks {
		here := f.sites[0].pool(d.Source)
		named := len(f.req.Disks) == 0 || slices.Contains(f.req.Disks, d.Target)
		switch {
		case d.Source == "":
		case d.Network:
			ok = append(ok, d.Target+" is reached over the network")
		case here != "" && here == f.sites[1].pool(d.Source):
			ok = append(ok, fmt.Sprintf("%s is on %s, which both have", d.Target, strings.TrimPrefix(here, "@")))
		case d.ReadOnly:
			worse(CheckWarn)
			bad = append(bad, fmt.Sprintf("%s is read-only at %s: %s must have the same file", d.Target, d.Source, f.to.Name))
		case copied && named && f.req.CopyStorage == CopyInc && d.Backing != "":
			ok = append(ok, fmt.Sprintf("%s is copied, the difference to %s (%s), which %s must have", d.Target, d.Backing, size(d.Allocated), f.to.Name))
		case copied && named && f.req.CopyStorage == CopyInc:
			worse(CheckFail)
			bad = append(bad, fmt.Sprintf("%s has no base image that it is the difference to: copy_storage all copies it whole", d.Target))
		case copied && named:
			ok = append(ok, fmt.Sprintf("%s is copied (%s)", d.Target, size(d.Capacity)))
		case here != "" || len(f.sites[0].SharedStorage)+len(f.sites[1].SharedStorage) > 0 || f.req.Unsafe || copied:
			worse(CheckFail)
			bad = append(bad, fmt.Sprintf("%s is at %s, which %s does not share: copy_storage all or inc takes it along", d.Target, d.Source, f.to.Name))
		default:
			worse(CheckWarn)
			bad = append(bad, fmt.Sprintf("%s is at %s, and nobody said whether %s shares that (shared_storage of the sites); the hypervisor will refuse if not", d.Target, d.Source, f.to.Name))
		}
	}
	text := strings.Join(append(bad, ok...), "; ")
	add("storage", status, "%s", or(text, "it has no disks"))
}

func (f *facts) checkAgents(add adder) {
	switch {
	case f.tgtAgentErr != "":
		add("agent", CheckFail, "%s: %s", f.to.Name, f.tgtAgentErr)
	case f.srcAgentErr != "":
		add("agent", CheckFail, "%s: %s", f.from.Name, f.srcAgentErr)
	default:
		add("agent", CheckOK, "both answer")
	}
	a := f.tgtAgent
	switch i := f.vm.Interface; {
	case a == nil:
	case i == "":
		add("interface", CheckOK, "it will be known by its MAC address (%s)", strings.Join(f.vm.MACs, " "))
	case slices.Contains(a.Interfaces, i):
		add("interface", CheckOK, "%s has %s", f.to.Name, i)
	default:
		add("interface", CheckOK, "%s has to appear on %s with the VM", i, f.to.Name)
	}
	var out []string
	if a != nil {
		for _, e := range f.vm.EIDs {
			if !slices.ContainsFunc(a.EIDPrefixes, func(p lisp.EID) bool { return p.Contains(e) }) {
				out = append(out, e.String())
			}
		}
	}
	switch {
	case len(out) > 0 && len(a.EIDPrefixes) > 0:
		add("prefix", CheckFail, "%s serves no prefix with %s", f.to.Name, strings.Join(out, " "))
	case f.refused != "":
		add("prefix", CheckFail, "the agent of %s does not take it: %s", f.to.Name, f.refused)
	case f.told || a != nil && len(a.EIDPrefixes) > 0:
		add("prefix", CheckOK, "%s serves its EIDs", f.to.Name)
	default:
		add("prefix", CheckWarn, "the agent of %s has not been told of it yet", f.to.Name)
	}
}

func (f *facts) checkMTU(add adder) {
	var guest int
	if f.guest != nil {
		for _, i := range f.guest.Interfaces {
			guest = max(guest, i.MTU)
		}
	}
	s, t := f.srcAgent, f.tgtAgent
	switch {
	case t == nil || t.MTU == 0:
		add("mtu", CheckWarn, "%s does not say its tunnel's MTU", f.to.Name)
	case guest > 0 && guest > t.MTU:
		add("mtu", CheckWarn, "its interface has an MTU of %d, the tunnel of %s takes %d: larger packets are answered by ICMP", guest, f.to.Name, t.MTU)
	case s != nil && s.MTU > t.MTU:
		add("mtu", CheckWarn, "the tunnel of %s takes %d bytes, that of %s %d: connections will have to learn that", f.to.Name, t.MTU, f.from.Name, s.MTU)
	default:
		add("mtu", CheckOK, "the tunnel of %s takes %d bytes", f.to.Name, t.MTU)
	}
}

// estimate reckons how long it takes: what is known of the link from earlier migrations, and of the guest from its last.
func (f *facts) estimate() *Estimate {
	e := &Estimate{Bytes: f.guest.Memory, DirtyRate: f.dirty}
	if f.guest.State == GuestOff {
		e.Bytes = 0
	}
	if f.req.CopyStorage == CopyAll || f.req.CopyStorage == CopyInc {
		for _, d := range f.guest.Disks {
			switch here := f.sites[0].pool(d.Source); {
			case d.ReadOnly || d.Network || d.Source == "", len(f.req.Disks) > 0 && !slices.Contains(f.req.Disks, d.Target),
				len(f.req.Disks) == 0 && here != "" && here == f.sites[1].pool(d.Source):
			case f.req.CopyStorage == CopyInc || d.Capacity == 0:
				e.Bytes += d.Allocated
			default:
				e.Bytes += d.Capacity
			}
		}
	}
	switch {
	case f.link.Bandwidth > 0 && (f.req.Bandwidth == 0 || f.link.Bandwidth < f.req.Bandwidth):
		e.Bandwidth, e.From = f.link.Bandwidth, fmt.Sprintf("measured by %d earlier migrations over %s", f.link.Count, f.link.Link)
	case f.req.Bandwidth > 0:
		e.Bandwidth, e.From = f.req.Bandwidth, "the limit that was asked for"
	default:
		e.From = "not known: nothing was migrated over this link yet"
		e.Text = size(e.Bytes) + " to copy; how long is not known: nothing was migrated over this link yet"
		return e
	}
	live := f.req.Mode == "" || f.req.Mode == ModeLive
	if live && e.DirtyRate >= e.Bandwidth {
		e.Endless = true
		e.Text = fmt.Sprintf("it will not come to an end by itself: it changed %s/s of its memory when it was moved last, the link carries %s/s (%s)",
			size(e.DirtyRate), size(e.Bandwidth), e.From)
		return e
	}
	rate := float64(e.Bandwidth)
	if live {
		rate -= float64(e.DirtyRate)
	}
	e.Time = Duration(time.Duration(float64(e.Bytes) / rate * float64(time.Second)).Round(100 * time.Millisecond))
	e.Text = fmt.Sprintf("%s to copy at %s/s (%s): about %v", size(e.Bytes), size(e.Bandwidth), e.From, time.Duration(e.Time))
	return e
}

// examine gathers the facts of a migration and judges them. before is where it was placed earlier, id the migration, ""
// if it is none yet. It is not to be called by the owner.
func (c *Controller) examine(ctx context.Context, in MigrationRequest, before, id string) gPreflight {
	pf, ev, err := c.inspect(ctx, in, before, id)
	if err != nil {
		ev.err = err.Error()
	}
	ev.pf = pf
	for _, ch := range pf.Checks {
		if ch.Status == CheckFail && ev.err == "" {
			ev.err = ch.Name + ": " + ch.Text
		}
	}
	return ev
}

func (c *Controller) inspect(ctx context.Context, in MigrationRequest, before, id string) (pf Preflight, ev gPreflight, err error) {
	f := facts{req: in}
	var src, tgt Driver
	_, err = c.ask(ctx, func(time.Time) (any, error) {
		var err error
		if f.vm, f.from, err = c.subject(in); err != nil {
			return nil, err
		}
		pf.VM, pf.From = f.vm.Name, f.from.Name
		f.w, f.need = c.world(id), c.needs(f.vm)
		if pf.To, pf.Why, pf.Refused = c.target(f.w, f.vm, in, before); pf.To == "" {
			return nil, errors.New(pf.Why)
		}
		f.to = c.inv.hvs[pf.To]
		pf.ToSite = f.to.Site
		f.sites = [2]Site{c.inv.sites[f.from.Site], c.inv.sites[f.to.Site]}
		if src, err = c.driverOf(f.from.Name); err != nil {
			f.srcErr = err.Error()
		}
		if tgt, err = c.driverOf(f.to.Name); err != nil {
			f.tgtErr = err.Error()
		}
		if p := c.peers[pf.To]; p != nil {
			f.told, f.refused = p.knows(f.vm.Name)
		}
		f.link = c.links[c.linkOf(f.from.Name, f.to.Name)]
		for _, m := range slices.Backward(c.migOrder) {
			if m.r.VM == f.vm.Name && m.r.ID != id && m.r.Progress.DirtyRate > 0 {
				f.dirty = m.r.Progress.DirtyRate
				break
			}
		}
		return nil, nil
	})
	if err != nil {
		return pf, ev, err
	}
	dctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Driver)
	defer cancel()
	var srcGuests, tgtGuests []Guest
	var wg sync.WaitGroup
	asked := func(d Driver, node **Node, guests *[]Guest, out *string) {
		if d == nil {
			return
		}
		n, err := d.Node(dctx)
		if err == nil {
			*node = &n
			*guests, err = d.Guests(dctx)
		}
		if err != nil {
			*out = "its driver does not answer: " + err.Error()
		}
	}
	wg.Go(func() { asked(src, &f.srcNode, &srcGuests, &f.srcErr) })
	wg.Go(func() { asked(tgt, &f.tgtNode, &tgtGuests, &f.tgtErr) })
	agent := func(h Hypervisor, node **agentNode, out *string) {
		actx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Call)
		defer cancel()
		for {
			var err error
			if *node, err = c.agents.Node(actx, h); err == nil {
				*out = ""
				return
			}
			// Kept is what it said, not that time is up. It may be on its way up again.
			if *out == "" || actx.Err() == nil {
				*out = "its agent does not answer: " + err.Error()
			}
			var st *StatusError
			if errors.As(err, &st) && st.final() || actx.Err() != nil {
				return
			}
			sleep(actx, c.cfg.Timing.Retry, nil)
			if actx.Err() != nil {
				return
			}
		}
	}
	wg.Go(func() { agent(f.from, &f.srcAgent, &f.srcAgentErr) })
	wg.Go(func() { agent(f.to, &f.tgtAgent, &f.tgtAgentErr) })
	wg.Wait()
	if ctx.Err() != nil {
		return pf, ev, context.Cause(ctx)
	}
	f.guest, f.namesake = findGuest(srcGuests, f.vm), findGuest(tgtGuests, f.vm)
	if g := f.guest; g != nil {
		f.need = Capacity{CPUs: g.VCPUs, Memory: g.Memory}
		if f.namesake == nil {
			if i := slices.IndexFunc(tgtGuests, func(o Guest) bool { return o.Name == g.Name }); i >= 0 {
				f.namesake = &tgtGuests[i]
			}
		}
		ev.guest, ev.off = g.Name, g.State == GuestOff
	}
	if f.tgtNode != nil {
		h := f.w.hosts[f.to.Name]
		h.free = f.tgtNode.MemoryFree
		if h.Memory == 0 {
			h.has.Memory = f.tgtNode.Memory
		}
	}
	ev.dest, ev.via = f.dest(), f.to.MigrateURI
	pf.Checks, pf.Estimate = f.checks()
	pf.OK = !slices.ContainsFunc(pf.Checks, func(c Check) bool { return c.Status == CheckFail })
	return pf, ev, nil
}

// findGuest finds a VM among the guests of a hypervisor.
func findGuest(gs []Guest, v VM) *Guest {
	for i := range gs {
		if v.UUID != "" && strings.EqualFold(gs[i].UUID, v.UUID) {
			return &gs[i]
		}
	}
	for i, g := range gs {
		if v.UUID != "" && g.UUID != "" {
			continue
		}
		if g.Name == v.Name || slices.ContainsFunc(g.Interfaces, func(n GuestInterface) bool {
			return slices.ContainsFunc(v.MACs, func(m string) bool { return strings.EqualFold(m, n.MAC) })
		}) {
			return &gs[i]
		}
	}
	return nil
}
