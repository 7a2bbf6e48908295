package controller

import (
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// The registrations of services at the Map-Servers, as a state machine: what is registered, changed and answered goes
// in, with the time, and Map-Registers come out. It has no clock and does no I/O.
//
// A service is registered at every Map-Server at once, again until that has confirmed it, with growing intervals, and
// again every [Timing.Services]. A Map-Server that does not answer at all is sent little until it does; if it was silent
// for long it is told everything then, for it may have lost its store. One that does not answer of some services, for it
// is not configured for them, must not be taken for silent: it is asked of a witness, a service that it has confirmed.

const (
	// maxServiceRecords is how many records fit into a Map-Register of less than 1,232 bytes, what IPv6 promises to carry.
	maxServiceRecords = 14
	// serviceWindow is how many Map-Registers may be unanswered at one Map-Server.
	serviceWindow = 16
	// aloneAfter is after how many attempts a service does not share a message any more, and after how many messages to a
	// silent Map-Server there is one service in each: what it dislikes of one record may cost the others.
	aloneAfter = 2
	// lostAfter is after how many unanswered attempts a Map-Server that answers is told everything.
	lostAfter = 2
)

// svc is a service and how far its registrations have come. Its MapServers stand in the registrar's order.
type svc struct {
	Service
	regs   []*svcReg // by Map-Server
	seq    uint64    // of its last change
	bumped time.Time // when a Map-Server made us count the version up
}

// svcReg is a service's registration at one Map-Server.
type svcReg struct {
	s     *svc
	due   time.Time
	tries int       // since it was confirmed, or changed
	sent  time.Time // the last time
	place int       // in the queue; -1 = not there
	// behind is a service that has changed, too, and whose former EID, which the Map-Server still knows, is in the way.
	// Two may be in each other's: that one is withdrawn, this one registered, and that one again, in one message.
	behind *svc
}

// confirmed reports whether Map-Server i has confirmed s as it is.
func (s *svc) confirmed(i int) bool {
	return s.MapServers[i].Version == s.Version && !s.MapServers[i].At.IsZero()
}

// settled reports whether every Map-Server has confirmed s as it is.
func (s *svc) settled() bool {
	for i := range s.MapServers {
		if !s.confirmed(i) {
			return false
		}
	}
	return true
}

// svcQueue has registrations by when they are due.
type svcQueue []*svcReg

func (q svcQueue) Len() int { return len(q) }
func (q svcQueue) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].s.seq < q[j].s.seq
}
func (q svcQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *svcQueue) Push(x any) {
	r := x.(*svcReg)
	r.place = len(*q)
	*q = append(*q, r)
}
func (q *svcQueue) Pop() any {
	old := *q
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	r.place = -1
	return r
}

// svcServer is a Map-Server as the registrar sees it.
type svcServer struct {
	addr  netip.Addr
	queue svcQueue
	heard time.Time // when it answered last
	// silent Map-Servers have not answered since something was sent; tries are the messages since then, since when the
	// first of them was sent.
	silent  bool
	tries   int
	since   time.Time
	probed  time.Time          // when the last of them was sent
	fresh   bool               // something has changed since then
	witness *svc               // a service that it has confirmed; nil = none is known
	flights map[uint64]*flight // by nonce
	waiting []*flight          // oldest first: those that may still be answered
	late    []*flight          // oldest first: the others, as long as an answer is recognised
	open    int                // of those that wait, how many are not answered
}

// flight is a Map-Register that may be answered.
type flight struct {
	nonce    uint64
	services []*svc
	freed    *svc // was withdrawn and registered again by it
	sent     time.Time
	until    time.Time // when it counts as lost
	answered bool
	lost     bool // and forgotten some time later
}

// keepFlights is for how many retransmission intervals an answer is still recognised.
const keepFlights = 10

// svcRegistrar registers services.
type svcRegistrar struct {
	retry, refresh time.Duration
	servers        []*svcServer
	all            map[netip.Prefix]*svc
	seq            uint64
}

func newSvcRegistrar(servers []netip.Addr, retry, refresh time.Duration) *svcRegistrar {
	r := &svcRegistrar{retry: retry, refresh: refresh, all: map[netip.Prefix]*svc{}}
	for _, a := range servers {
		r.servers = append(r.servers, &svcServer{addr: a, silent: true, flights: map[uint64]*flight{}})
	}
	return r
}

// add begins to register a service, whatever Map-Servers it was registered at before.
func (r *svcRegistrar) add(s Service, now time.Time) *svc {
	x := &svc{Service: s, regs: make([]*svcReg, len(r.servers))}
	x.MapServers = make([]ServiceAt, len(r.servers))
	for i, sv := range r.servers {
		x.MapServers[i].Server = sv.addr
		if j := slices.IndexFunc(s.MapServers, func(o ServiceAt) bool { return o.Server == sv.addr }); j >= 0 {
			x.MapServers[i] = s.MapServers[j]
		}
		x.regs[i] = &svcReg{s: x, place: -1}
	}
	r.all[s.Outside] = x
	r.changed(x, now)
	return x
}

// changed: s has a new version, or is to be registered anew, at once and everywhere.
func (r *svcRegistrar) changed(s *svc, now time.Time) {
	r.seq++
	s.seq = r.seq
	for i := range r.servers {
		s.MapServers[i].Error = ""
		s.regs[i].tries, s.regs[i].behind = 0, nil
		r.soon(s, i, now)
	}
}

// soon makes s due at Map-Server i.
func (r *svcRegistrar) soon(s *svc, i int, at time.Time) {
	sv, g := r.servers[i], s.regs[i]
	sv.fresh = true
	r.schedule(sv, g, at)
}

func (r *svcRegistrar) schedule(sv *svcServer, g *svcReg, at time.Time) {
	g.due = at
	if g.place < 0 {
		heap.Push(&sv.queue, g)
		return
	}
	heap.Fix(&sv.queue, g.place)
}

func (sv *svcServer) unschedule(g *svcReg) {
	if g.place >= 0 {
		heap.Remove(&sv.queue, g.place)
	}
}

// remove forgets s.
func (r *svcRegistrar) remove(s *svc) {
	for i, sv := range r.servers {
		sv.unschedule(s.regs[i])
	}
	delete(r.all, s.Outside)
}

// svcSend is a Map-Register to be sent.
type svcSend struct {
	server  netip.Addr
	nonce   uint64
	records []lisp.Mapping
}

// backOff is the interval after n attempts without an answer.
func (r *svcRegistrar) backOff(n int) time.Duration {
	d := r.retry << min(max(n-1, 0), 20)
	if d <= 0 || d > maxRegisterBackoff {
		d = maxRegisterBackoff
	}
	return d
}

// tick returns what is due. nonce counts up.
func (r *svcRegistrar) tick(now time.Time, nonce func() uint64) (out []svcSend) {
	for i, sv := range r.servers {
		r.expire(i, now)
		for {
			g, ok := r.take(i, now)
			if !ok {
				break
			}
			if w := r.witnessOf(i); sv.silent && sv.tries > 1 && w != nil && !slices.Contains(g, w) {
				f := &flight{nonce: nonce(), services: []*svc{w}, sent: now, until: now.Add(r.retry)}
				sv.fly(f)
				out = append(out, svcSend{sv.addr, f.nonce, []lisp.Mapping{w.mapping()}})
			}
			send := svcSend{server: sv.addr, nonce: nonce()}
			f := &flight{nonce: send.nonce, services: g, sent: now, until: now.Add(r.retry)}
			if h := g[0].regs[i].behind; h != nil && !h.confirmed(i) && !h.Deleted && r.all[h.Outside] == h {
				m := h.mapping()
				m.TTL = lisp.TTLDelete
				send.records = append(send.records, m)
				f.freed, f.services = h, append(f.services, h)
			}
			// What frees an EID goes before what takes it.
			slices.SortStableFunc(g, func(a, b *svc) int { return boolOrder(b.Deleted) - boolOrder(a.Deleted) })
			for _, s := range f.services {
				send.records = append(send.records, s.mapping())
			}
			sv.fly(f)
			out = append(out, send)
		}
	}
	return out
}

func (sv *svcServer) fly(f *flight) {
	sv.flights[f.nonce], sv.waiting = f, append(sv.waiting, f)
	sv.open++
}

// witnessOf is a service that Map-Server i has confirmed as it is; nil if there is none.
func (r *svcRegistrar) witnessOf(i int) *svc {
	sv := r.servers[i]
	well := func(s *svc) bool { return s != nil && !s.Deleted && r.all[s.Outside] == s && s.confirmed(i) }
	if !well(sv.witness) {
		sv.witness = nil
		if j := slices.IndexFunc(sv.queue, func(g *svcReg) bool { return well(g.s) }); j >= 0 {
			sv.witness = sv.queue[j].s
		}
	}
	return sv.witness
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// expire forgets what is not answered any more. A Map-Server that has not answered anything since is silent.
func (r *svcRegistrar) expire(i int, now time.Time) {
	sv := r.servers[i]
	for len(sv.waiting) > 0 {
		f := sv.waiting[0]
		if !f.answered && now.Before(f.until) {
			break
		}
		sv.waiting, sv.late = sv.waiting[1:], append(sv.late, f)
		if f.answered {
			continue
		}
		f.lost = true
		sv.open--
		if sv.silent || !sv.heard.Before(f.sent) {
			continue
		}
		// Of services that it has never answered of, its silence says little.
		if w := r.witnessOf(i); w != nil && !slices.ContainsFunc(f.services, func(s *svc) bool { return s.regs[i].tries <= aloneAfter }) {
			if w.regs[i].sent.Before(f.sent) {
				r.schedule(sv, w.regs[i], now)
			}
			continue
		}
		sv.silent, sv.tries, sv.since, sv.probed = true, 1, f.sent, f.sent
	}
	for len(sv.late) > 0 {
		f := sv.late[0]
		if now.Before(f.sent.Add(keepFlights * f.until.Sub(f.sent))) {
			break
		}
		sv.late = sv.late[1:]
		delete(sv.flights, f.nonce)
	}
}

// probeAt is when a silent Map-Server may be sent another message.
func (r *svcRegistrar) probeAt(sv *svcServer) time.Time {
	switch {
	case sv.tries == 0:
		return time.Time{}
	case sv.fresh:
		return sv.probed.Add(r.retry)
	}
	return sv.probed.Add(r.backOff(sv.tries))
}

// take takes the next message's services from the queue of Map-Server i; ok is false if nothing may be sent yet.
func (r *svcRegistrar) take(i int, now time.Time) (out []*svc, ok bool) {
	sv := r.servers[i]
	switch {
	case len(sv.queue) == 0, !sv.silent && sv.open >= serviceWindow, sv.silent && now.Before(r.probeAt(sv)):
		return nil, false
	case !sv.silent && sv.queue[0].due.After(now):
		return nil, false
	}
	// Refreshes that are near come along.
	near := now.Add(r.refresh / 10)
	var taken []*svcReg
	for len(sv.queue) > 0 && len(taken) < maxServiceRecords {
		g := sv.queue[0]
		alone := g.tries >= aloneAfter && !sv.silent || sv.silent && sv.tries >= aloneAfter || g.behind != nil
		if len(taken) > 0 && (alone || g.due.After(now) && (g.tries > 0 || g.due.After(near))) {
			break
		}
		heap.Pop(&sv.queue)
		taken = append(taken, g)
		if alone {
			break
		}
	}
	for _, g := range taken {
		g.tries++
		g.sent = now
		r.schedule(sv, g, now.Add(r.backOff(g.tries)))
		out = append(out, g.s)
	}
	if sv.silent {
		if sv.tries == 0 {
			sv.since = now
		}
		sv.tries++
		sv.probed, sv.fresh = now, false
	}
	return out, true
}

// next is when tick wants to be called; zero = not before something happens.
func (r *svcRegistrar) next() (next time.Time) {
	wake := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, sv := range r.servers {
		if i := slices.IndexFunc(sv.waiting, func(f *flight) bool { return !f.answered }); i >= 0 {
			wake(sv.waiting[i].until)
		}
		switch {
		case len(sv.queue) == 0, !sv.silent && sv.open >= serviceWindow:
		case sv.silent && sv.tries == 0:
			wake(sv.queue[0].due)
		case sv.silent:
			wake(r.probeAt(sv))
		default:
			wake(sv.queue[0].due)
		}
	}
	return next
}

// hear: a Map-Server has answered, whatever it was.
func (r *svcRegistrar) hear(server netip.Addr, now time.Time) {
	i := slices.IndexFunc(r.servers, func(sv *svcServer) bool { return sv.addr == server })
	if i < 0 {
		return
	}
	sv := r.servers[i]
	sv.heard = now
	if !sv.silent {
		return
	}
	lost := sv.tries > lostAfter
	sv.silent, sv.tries, sv.since, sv.probed, sv.fresh = false, 0, time.Time{}, time.Time{}, false
	if !lost {
		return
	}
	for _, g := range sv.queue {
		g.due, g.tries = now, 0
	}
	heap.Init(&sv.queue)
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// svcNews is what follows from an answer.
type svcNews struct {
	touched   []*svc // what is said of them has changed
	versions  []*svc // of them, those whose version was counted up: durable before it is registered
	gone      []*svc // deleted, and every Map-Server has confirmed it
	confirmed int    // how many registrations were
	refused   int
}

// notified takes a Map-Server's answer to the Map-Register with this nonce.
func (r *svcRegistrar) notified(server netip.Addr, nonce uint64, records []lisp.Mapping, now time.Time) (news svcNews) {
	i := slices.IndexFunc(r.servers, func(sv *svcServer) bool { return sv.addr == server })
	if i < 0 {
		return news
	}
	sv := r.servers[i]
	r.hear(server, now)
	f := sv.flights[nonce]
	if f == nil {
		return news // it has been answered in full, or is too old to tell anything of what is now
	}
	if !f.answered {
		f.answered = true
		if !f.lost {
			sv.open--
		}
	}
	for _, m := range records {
		if f.freed != nil && m.TTL == lisp.TTLDelete && m.EID.Prefix == f.freed.Outside && !f.freed.Deleted && m.Version == f.freed.Version {
			continue // for a moment
		}
		if s := r.all[m.EID.Prefix]; s != nil && m.EID.IID == 0 && slices.Contains(f.services, s) {
			r.answered(s, i, m, now, &news)
			continue
		}
		r.held(f, i, m, now, &news)
	}
	if !slices.ContainsFunc(f.services, func(s *svc) bool { return !s.confirmed(i) }) {
		delete(sv.flights, nonce)
	}
	return news
}

// answered: Map-Server i holds m for s.
func (r *svcRegistrar) answered(s *svc, i int, m lisp.Mapping, now time.Time, news *svcNews) {
	same := s.says(m)
	if s.Deleted && !s.Inside.IsValid() {
		s.Inside = m.Inside // it was unknown here
	}
	switch {
	case m.TTL != lisp.TTLDelete && !m.IsService() && m.Negative() && m.Action == lisp.ActDropPolicyDenied:
		r.refused(s, i, fmt.Sprintf("is not configured for it: %s and %s must be in sites of its configuration that have the controller's key", ServiceName(s.Outside), ServiceName(s.Inside)), news)
	case m.TTL != lisp.TTLDelete && !m.IsService():
		r.refused(s, i, "has it as an EID"+rlocText(m)+", not as a service address", news)
	case same && m.Version == s.Version:
		r.confirm(s, i, now, news)
	case same && m.Version.Newer(s.Version):
		// It knows us by more than we remember: that is the version everywhere.
		s.Version = m.Version
		r.changed(s, now)
		news.versions = append(news.versions, s)
		r.confirm(s, i, now, news)
	case m.Version == s.Version || m.Version.Newer(s.Version):
		// What it holds is not what we say, and not older: we say it again, one higher.
		s.Version = m.Version.Next()
		r.changed(s, now)
		// Somebody else may count, too: that is not to go as fast as the network can.
		if at := s.bumped.Add(r.retry); at.After(now) {
			for j := range r.servers {
				r.soon(s, j, at)
			}
			s.bumped = at
		} else {
			s.bumped = now
		}
		news.versions = append(news.versions, s)
		news.touched = append(news.touched, s)
	}
}

func rlocText(m lisp.Mapping) string {
	if len(m.Locators) == 0 {
		return ""
	}
	return " at " + m.Locators[0].RLOC.String()
}

func (r *svcRegistrar) confirm(s *svc, i int, now time.Time, news *svcNews) {
	news.confirmed++
	s.regs[i].tries, s.regs[i].behind = 0, nil
	if at := &s.MapServers[i]; !s.confirmed(i) || at.Error != "" {
		*at = ServiceAt{Server: at.Server, Version: s.Version, At: now}
		news.touched = append(news.touched, s)
	}
	if !s.Deleted {
		r.servers[i].witness = s
		r.schedule(r.servers[i], s.regs[i], now.Add(r.refresh))
		return
	}
	r.servers[i].unschedule(s.regs[i])
	if s.settled() && r.all[s.Outside] == s {
		r.remove(s)
		news.gone = append(news.gone, s)
	}
}

// held: Map-Server i did not take one of f's services, because of m, which it has.
func (r *svcRegistrar) held(f *flight, i int, m lisp.Mapping, now time.Time, news *svcNews) {
	for _, s := range f.services {
		if s.Deleted || r.all[s.Outside] != s || !inTheWay(m, s) {
			continue
		}
		if !m.IsService() {
			r.refused(s, i, fmt.Sprintf("refuses it: %s is an EID there%s", m.EID, rlocText(m)), news)
			continue
		}
		why := fmt.Sprintf("refuses it: service address %s is translated to %s there", ServiceName(m.EID.Prefix), ServiceName(m.Inside))
		holder := r.all[m.EID.Prefix]
		switch {
		case holder == nil:
			why += fmt.Sprintf(`; nobody here knows that one: "tabi service del --force %s" has it forgotten`, ServiceName(m.EID.Prefix))
		case !holder.confirmed(i):
			if !holder.Deleted {
				s.regs[i].behind = holder
			}
			r.soon(holder, i, minTime(holder.regs[i].due, now))
		}
		r.refused(s, i, why, news)
	}
}

// inTheWay reports whether a Map-Server that has m cannot take s.
func inTheWay(m lisp.Mapping, s *svc) bool {
	outside := m.EID.Prefix
	switch {
	case m.EID.IID != 0:
		return false
	case outside.Overlaps(s.Outside):
		return true
	case !m.IsService():
		return false
	}
	return outside.Addr().Is4() == s.Outside.Addr().Is4() && m.Inside.Overlaps(s.Inside) ||
		outside.Overlaps(s.Inside) || m.Inside.Overlaps(s.Outside)
}

func (r *svcRegistrar) refused(s *svc, i int, why string, news *svcNews) {
	news.refused++
	s.MapServers[i].Error = why
	news.touched = append(news.touched, s)
}

// silence says why Map-Server i has not confirmed s, as far as it is known; "" if there is nothing to say yet.
func (r *svcRegistrar) silence(s *svc, i int) string {
	sv, g := r.servers[i], s.regs[i]
	switch {
	case s.confirmed(i):
		return ""
	case s.MapServers[i].Error != "":
		return s.MapServers[i].Error
	case sv.silent && sv.tries > 1:
		return "does not answer since " + sv.since.UTC().Format(time.RFC3339)
	case g.tries > 1 && sv.heard.After(g.sent):
		return fmt.Sprintf("answers, but not of this: is %s in a site of its configuration, with the controller's key?", ServiceName(s.Outside))
	}
	return ""
}
