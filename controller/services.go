package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// The services of the cloud: what the controller knows of them, and what it admits. The owner goroutine runs all of it.

// services is the owner's.
type services struct {
	*svcRegistrar
	saved   []Service // from the store; nil once the controller runs
	index   serviceIndex
	dirty   map[netip.Prefix]bool // since the last Save: durable before anything is done about it
	changed map[netip.Prefix]bool // the same of what may wait: after a crash it is learned again
	touched map[netip.Prefix]bool // since the last flush
	watch   map[netip.Prefix][]svcWatcher
}

// svcWatcher waits for a service to come somewhere.
type svcWatcher struct {
	ctx   context.Context
	until func(ServiceStatus) bool
	to    chan<- ServiceStatus
}

func newServices(r *svcRegistrar) *services {
	return &services{svcRegistrar: r, index: newServiceIndex(), dirty: map[netip.Prefix]bool{}, changed: map[netip.Prefix]bool{},
		touched: map[netip.Prefix]bool{}, watch: map[netip.Prefix][]svcWatcher{}}
}

// begin registers what the store had: the Map-Servers may have forgotten it meanwhile.
func (x *services) begin(now time.Time) {
	for _, s := range x.saved {
		x.add(s, now)
		if !s.Deleted {
			x.index.put(s.Outside, s.Inside)
		}
	}
	x.saved = nil
}

// batch puts into b what has changed since the last Save.
func (x *services) batch(b *Batch) {
	maps.Copy(x.dirty, x.changed) // it is one Save
	clear(x.changed)
	for outside := range x.dirty {
		if s := x.all[outside]; s != nil {
			b.PutServices = append(b.PutServices, s.Service.clone())
		} else {
			b.DelServices = append(b.DelServices, outside.String())
		}
	}
}

// live returns a service that is not being deleted; nil if there is none.
func (x *services) live(outside netip.Prefix) *svc {
	if s := x.all[outside]; s != nil && !s.Deleted {
		return s
	}
	return nil
}

// sorted are all services, deleted ones too, by Outside.
func (x *services) sorted() []*svc {
	out := make([]*svc, 0, len(x.all))
	for _, s := range x.all {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *svc) int { return comparePrefixes(a.Outside, b.Outside) })
	return out
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// vmOf is the VM that has p among its EIDs, whole; "" if none.
func (c *Controller) vmOfEID(p netip.Prefix) string {
	name, _ := c.inv.covering(lisp.MakeEID(0, p))
	return name
}

// holds reports whether p is one of eids, or a part of one.
func holds(eids []lisp.EID, p netip.Prefix) bool {
	return slices.ContainsFunc(eids, func(e lisp.EID) bool { return e.Contains(lisp.MakeEID(0, p)) })
}

// servicesLost are the services of a VM's EIDs, old, that it would not have with other ones.
func (c *Controller) servicesLost(old, other []lisp.EID) []string {
	kept := c.svc.index.of(other)
	return serviceNames(slices.DeleteFunc(c.svc.index.of(old), func(p netip.Prefix) bool { return slices.Contains(kept, p) }))
}

func serviceNames(ps []netip.Prefix) (out []string) {
	for _, p := range ps {
		out = append(out, ServiceName(p))
	}
	return out
}

// warnServices says which services a VM has lost by what a driver tells: that is not asked, and the services wait for a
// VM that has their EIDs.
func (c *Controller) warnServices(vm string, old, other []lisp.EID) {
	if lost := c.servicesLost(old, other); len(lost) > 0 {
		c.log.Warn("service addresses lead nowhere: their VM has their EIDs no more", "vm", vm, "services", strings.Join(lost, " "))
	}
}

// serviceOutside returns a service whose Outside overlaps one of eids: clients would not reach both.
func (c *Controller) serviceOutside(eids []lisp.EID) (what lisp.EID, service string) {
	for _, e := range eids {
		if e.IID != 0 {
			continue
		}
		if o, ok := c.svc.index.outside.overlapping(e.Prefix); ok {
			return e, ServiceName(o)
		}
	}
	return lisp.EID{}, ""
}

// bind finds what a service of outside is to be bound to.
func (c *Controller) bind(outside netip.Prefix, in ServiceRequest) (inside netip.Prefix, vm string, err error) {
	if in.Inside != "" {
		if inside, err = ParseServiceAddress(in.Inside); err != nil {
			return inside, "", fail(http.StatusBadRequest, "inside: %v", err)
		}
	}
	bits := 128 - (outside.Addr().BitLen() - outside.Bits())
	switch {
	case in.VM != "":
		v, ok := c.inv.vms[in.VM]
		if !ok {
			return inside, "", c.noVM(in.VM)
		}
		if inside.IsValid() && !holds(v.EIDs, inside) {
			return inside, "", fail(http.StatusConflict, "%s is no EID of vm %s, nor part of one: it has %s", ServiceName(inside), v.Name, join(v.EIDs))
		}
		if !inside.IsValid() {
			if inside, err = onlyEID(v, outside, bits); err != nil {
				return inside, "", err
			}
		}
		vm = v.Name
	case !inside.IsValid():
		return inside, "", fail(http.StatusBadRequest, "vm or inside: what is %s to be translated to?", ServiceName(outside))
	default:
		if vm = c.vmOfEID(inside); vm == "" && !c.covers(inside) {
			return inside, "", fail(http.StatusConflict, `no VM has the EID %s: enter the VM first ("tabi vm set")`, ServiceName(inside))
		}
	}
	if err := lisp.CheckService(lisp.MakeEID(0, outside), inside); err != nil {
		return inside, "", fail(http.StatusBadRequest, "%v", err)
	}
	return inside, vm, nil
}

// there reports whether in, which names a VM only, asks for a service that is there; or who else has the service
// address. Which of the VM's EIDs is meant need not be said for either.
func (c *Controller) there(outside netip.Prefix, in ServiceRequest) (bool, error) {
	s := c.svc.live(outside)
	if s == nil || in.Inside != "" || in.VM == "" {
		return false, nil
	}
	if in.VM == or(c.vmOfEID(s.Inside), s.VM) {
		return true, nil
	}
	if _, ok := c.inv.vms[in.VM]; !ok {
		return false, c.noVM(in.VM)
	}
	return false, taken(outside, c.heldBy(outside))
}

func taken(outside netip.Prefix, by string) error {
	return fail(http.StatusConflict, "service address %s is taken: %s", ServiceName(outside), by)
}

// covers reports whether a VM has an EID within p.
func (c *Controller) covers(p netip.Prefix) bool {
	if p.IsSingleIP() {
		return false
	}
	for e := range c.inv.eids {
		if lisp.MakeEID(0, p).Contains(e) {
			return true
		}
	}
	return false
}

// onlyEID is v's IPv6 EID of the length that a service of outside needs, if there is just one.
func onlyEID(v VM, outside netip.Prefix, bits int) (netip.Prefix, error) {
	var six, fit []lisp.EID
	four := false
	for _, e := range v.EIDs {
		switch {
		case e.Prefix.Addr().Is4():
			four = true
		case e.IID == 0:
			six = append(six, e)
			if e.Prefix.Bits() == bits {
				fit = append(fit, e)
			}
		}
	}
	switch {
	case len(six) == 0 && four && outside.Addr().Is4():
		return netip.Prefix{}, fail(http.StatusConflict, "vm %s has IPv4 EIDs only (%s): IPv4 clients reach it without a service address; there is nothing to translate to",
			v.Name, join(v.EIDs))
	case len(six) == 0:
		return netip.Prefix{}, fail(http.StatusConflict, "vm %s has no IPv6 EID in instance 0: it has %s", v.Name, join(v.EIDs))
	case len(fit) == 1:
		return fit[0].Prefix, nil
	case len(fit) > 1:
		return netip.Prefix{}, fail(http.StatusConflict, `vm %s has several IPv6 EIDs: say which ("inside", --eid): %s`, v.Name, join(fit))
	}
	return netip.Prefix{}, fail(http.StatusConflict, `vm %s has no IPv6 EID of length /%d: say which part of %s is meant ("inside", --eid)`, v.Name, bits, join(six))
}

// admit says who has outside or inside already; but is a service that may have inside, being the one that is moved.
func (c *Controller) admit(outside, inside, but netip.Prefix) error {
	x := c.svc.index
	if o, ok := x.outside.overlapping(outside); ok && o != but {
		return taken(outside, c.heldBy(o))
	}
	if name, e := c.overlappingEID(outside); name != "" {
		return fail(http.StatusConflict, "service address %s is no free address: vm %s has the EID %s", ServiceName(outside), name, e)
	}
	for _, i := range []prefixIndex{x.inside4, x.inside6} {
		if o, ok := i.overlapping(outside); ok {
			return fail(http.StatusConflict, "service address %s is what %s is translated to", ServiceName(outside), ServiceName(o))
		}
	}
	if o, ok := x.outside.overlapping(inside); ok {
		return fail(http.StatusConflict, "%s is a service address itself: %s", ServiceName(inside), c.heldBy(o))
	}
	if o, ok := x.inside(outside).overlapping(inside); ok && o != but {
		family := "IPv6"
		if outside.Addr().Is4() {
			family = "IPv4"
		}
		return fail(http.StatusConflict, "%s has an %s service address already: %s", ServiceName(inside), family, c.heldBy(o))
	}
	return nil
}

// overlappingEID returns a VM with an EID that overlaps p.
func (c *Controller) overlappingEID(p netip.Prefix) (string, lisp.EID) {
	e := lisp.MakeEID(0, p)
	if name, f := c.inv.covering(e); name != "" || e.IsHost() {
		return name, f
	}
	var first lisp.EID
	for f := range c.inv.eids {
		if e.Contains(f) && (!first.IsValid() || f.Compare(first) < 0) {
			first = f
		}
	}
	return c.inv.eids[first], first
}

// heldBy says whose a service is, in a few words.
func (c *Controller) heldBy(outside netip.Prefix) string {
	s := c.svc.live(outside)
	if s == nil { // of the same request, which is not carried out yet
		return fmt.Sprintf("service address %s", ServiceName(outside))
	}
	text := fmt.Sprintf("service address %s is translated to %s", ServiceName(outside), ServiceName(s.Inside))
	if vm := or(c.vmOfEID(s.Inside), s.VM); vm != "" {
		text += ", which is vm " + vm + "'s"
	}
	return text
}

// addService makes a service that was admitted.
func (c *Controller) addService(outside, inside netip.Prefix, vm string, now time.Time) *svc {
	c.svc.index.put(outside, inside)
	s := c.svc.all[outside]
	if s == nil {
		s = c.svc.add(Service{Outside: outside, Inside: inside, VM: vm, Version: 1, Created: now, Changed: now}, now)
	} else { // it was being deleted
		s.Inside, s.VM, s.Deleted, s.Created = inside, vm, false, now
		c.anew(s, now)
	}
	c.savedAs(s, "added")
	return s
}

// rebind moves a service to another EID.
func (c *Controller) rebind(s *svc, inside netip.Prefix, vm string, now time.Time) {
	c.svc.index.del(s.Outside, s.Inside)
	c.svc.index.put(s.Outside, inside)
	same := s.Inside == inside
	s.Inside, s.VM = inside, vm
	if !same {
		c.anew(s, now)
	}
	c.savedAs(s, "moved")
}

// deleteService begins to have a service forgotten.
func (c *Controller) deleteService(s *svc, now time.Time) {
	c.svc.index.del(s.Outside, s.Inside)
	s.Deleted = true
	c.anew(s, now)
	c.savedAs(s, "deleted")
	if len(c.env.servers) == 0 {
		c.svc.remove(s)
		c.gone(s)
	}
}

// anew counts the version of a service up.
func (c *Controller) anew(s *svc, now time.Time) {
	s.Version, s.Changed = s.Version.Next(), now
	c.svc.svcRegistrar.changed(s, now)
}

// savedAs makes a change of a service durable.
func (c *Controller) savedAs(s *svc, what string) {
	c.svc.dirty[s.Outside], c.svc.touched[s.Outside] = true, true
	c.counters.add("services "+what, 1)
}

// logService says what a caller has done with a service.
func (c *Controller) logService(s *svc, what string) {
	c.log.Info("service", "service", ServiceName(s.Outside), "inside", ServiceName(s.Inside), "vm", s.VM, "version", uint16(s.Version), "what", what)
}

// gone: every Map-Server has forgotten a deleted service.
func (c *Controller) gone(s *svc) {
	c.svc.dirty[s.Outside] = true
	if len(c.svc.watch[s.Outside]) > 0 {
		last := c.serviceStatus(s)
		last.State = ServiceDeleted
		c.wakeServiceWatchers(s.Outside, &last)
	}
}

// registerServices sends the Map-Registers that are due. What they say is durable.
func (c *Controller) registerServices(now time.Time) {
	for _, send := range c.svc.tick(now, func() uint64 { c.nonce = c.nextNonce(now); return c.nonce }) {
		if err := c.wire.registerServices(send, now); err != nil {
			c.log.Warn("Map-Register of services not sent", "server", send.server.String(), "services", len(send.records), "err", err)
		}
	}
}

// servicesNotified takes a Map-Server's answer to a Map-Register of services.
func (c *Controller) servicesNotified(server netip.Addr, nonce uint64, records []lisp.Mapping, now time.Time) {
	news := c.svc.notified(server, nonce, records, now)
	c.counters.add("service registrations confirmed", uint64(news.confirmed))
	c.counters.add("service registrations refused", uint64(news.refused))
	for _, s := range news.touched {
		c.svc.changed[s.Outside], c.svc.touched[s.Outside] = true, true
	}
	for _, s := range news.versions {
		c.log.Warn("a Map-Server knows a newer version of a service", "service", ServiceName(s.Outside), "server", server.String(), "version", uint16(s.Version))
		c.svc.dirty[s.Outside], c.svc.touched[s.Outside] = true, true
	}
	for _, s := range news.gone {
		c.log.Debug("service", "service", ServiceName(s.Outside), "what", "forgotten by every Map-Server")
		c.gone(s)
	}
}

// serviceStatus is what is shown of a service.
func (c *Controller) serviceStatus(s *svc) ServiceStatus {
	out := ServiceStatus{Service: s.Service.clone(), Kind: ServiceKind(s.Outside), State: ServicePending, MapServers: []ServiceServer{}}
	for i, at := range s.MapServers {
		at.Error = c.svc.silence(s, i)
		out.MapServers = append(out.MapServers, ServiceServer{at, s.confirmed(i)})
	}
	switch {
	case s.Deleted:
		out.State = ServiceDeleting
		return out
	case s.settled():
		out.State = ServiceConfirmed
	}
	switch vm := c.vmOfEID(s.Inside); {
	case vm != "":
		out.VM = vm
	case s.VM != "":
		out.Problem = fmt.Sprintf("no VM has %s any more: it was vm %s's", ServiceName(s.Inside), s.VM)
	case !c.covers(s.Inside):
		out.Problem = fmt.Sprintf("no VM has an EID in %s any more", ServiceName(s.Inside))
	}
	return out
}

// wakeServiceWatchers tells whoever waits for a service that has come where they want it; last is its status if it is
// gone for good.
func (c *Controller) wakeServiceWatchers(outside netip.Prefix, last *ServiceStatus) {
	waiting := c.svc.watch[outside]
	if len(waiting) == 0 {
		return
	}
	if last == nil {
		s := c.svc.all[outside]
		if s == nil {
			return
		}
		st := c.serviceStatus(s)
		last = &st
	}
	left := waiting[:0]
	for _, w := range waiting {
		switch {
		case w.ctx.Err() != nil:
		case w.until(*last) || last.State == ServiceDeleted:
			w.to <- *last
		default:
			left = append(left, w)
		}
	}
	if c.svc.watch[outside] = left; len(left) == 0 {
		delete(c.svc.watch, outside)
	}
}

// awaitService returns a service's status when until holds, or as it is when ctx ends. One that is deleted while it
// waits ends the wait, with [ServiceDeleted].
func (c *Controller) awaitService(ctx context.Context, outside netip.Prefix, until func(ServiceStatus) bool) (ServiceStatus, error) {
	to := make(chan ServiceStatus, 1)
	get := func(w *svcWatcher) (*ServiceStatus, error) {
		v, err := c.ask(context.WithoutCancel(ctx), func(time.Time) (any, error) {
			s := c.svc.all[outside]
			if s == nil {
				return nil, noService(outside)
			}
			st := c.serviceStatus(s)
			if w != nil && !until(st) {
				c.svc.watch[outside] = append(c.svc.watch[outside], *w)
				return (*ServiceStatus)(nil), nil
			}
			return &st, nil
		})
		if err != nil {
			return nil, err
		}
		return v.(*ServiceStatus), nil
	}
	st, err := get(&svcWatcher{ctx, until, to})
	if err != nil {
		return ServiceStatus{}, err
	}
	if st != nil {
		return *st, nil
	}
	select {
	case st := <-to:
		return st, nil
	case <-c.ended:
		return ServiceStatus{}, errStopped
	case <-ctx.Done():
		if st, err = get(nil); err != nil {
			return ServiceStatus{}, err
		}
		return *st, nil
	}
}

func noService(outside netip.Prefix) error {
	return fail(http.StatusNotFound, "no service address %s", ServiceName(outside))
}

// ServiceRow is a row of `tabi show services`.
type ServiceRow struct {
	Service   string       `json:"service"`
	Inside    string       `json:"inside"`
	VM        string       `json:"vm"`
	Kind      string       `json:"kind"`
	State     ServiceState `json:"state"`
	Version   lisp.Version `json:"version"`
	Confirmed string       `json:"confirmed"` // by how many Map-Servers
	Problem   string       `json:"problem,omitempty"`
}

func (c *Controller) serviceRows() []ServiceRow {
	out := []ServiceRow{}
	for _, s := range c.svc.sorted() {
		st := c.serviceStatus(s)
		out = append(out, ServiceRow{ServiceName(s.Outside), ServiceName(s.Inside), st.VM, st.Kind, st.State, st.Version,
			fmt.Sprintf("%d/%d", st.Confirmed(), len(st.MapServers)), st.Trouble()})
	}
	return out
}

// Trouble is all that is wrong with s, in one line; "" if nothing is.
func (s ServiceStatus) Trouble() string {
	var out []string
	if s.Problem != "" {
		out = append(out, s.Problem)
	}
	for i, m := range s.MapServers {
		if m.Error == "" || slices.ContainsFunc(s.MapServers[:i], func(o ServiceServer) bool { return o.Error == m.Error }) {
			continue
		}
		var who []string
		for _, o := range s.MapServers[i:] {
			if o.Error == m.Error {
				who = append(who, o.Server.String())
			}
		}
		out = append(out, strings.Join(who, ", ")+": "+m.Error)
	}
	return strings.Join(out, "; ")
}

// explainServices says what the controller knows of the services that e has to do with, from outside or inside.
func (c *Controller) explainServices(e lisp.EID) (out []lisp.Finding) {
	if e.IID != 0 {
		return nil
	}
	x, seen := c.svc.index, map[netip.Prefix]bool{}
	for _, i := range []prefixIndex{x.outside, x.inside4, x.inside6} {
		o, ok := i.overlapping(e.Prefix)
		if !ok || seen[o] {
			continue
		}
		seen[o] = true
		st := c.serviceStatus(c.svc.all[o])
		out = append(out, lisp.Finding{Part: "services", Says: c.heldBy(o),
			Why: fmt.Sprintf("version %d, %s: %d of %d Map-Servers have confirmed it", st.Version, st.State, st.Confirmed(), len(st.MapServers))})
		if t := st.Trouble(); t != "" {
			out = append(out, lisp.Finding{Part: "services", Says: ServiceName(o) + " has a problem", Why: t})
		}
	}
	return out
}
