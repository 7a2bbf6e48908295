package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// pushKey names one registration: an EID at a Map-Server.
type pushKey struct {
	server netip.Addr
	eid    lisp.EID
}

// push is how far one registration has come.
type push struct {
	done   bool // confirmed, or refused for good
	tries  int
	nextAt time.Time
}

// maxReclaims bounds how often the controller contests a claim of the source for a VM that it was told
// has left it. The target contests by itself, with evidence, as long as it has it.
const maxReclaims = 3

func hasRLOC(ls []lisp.Locator, a netip.Addr) bool {
	return slices.ContainsFunc(ls, func(l lisp.Locator) bool { return l.RLOC == a })
}

// version makes v the version of e; whoever confirmed an older one is told again.
func (s *stepper) version(e lisp.EID, v lisp.Version) {
	m := s.m
	m.Versions[e] = v
	if v.Newer(m.Version) {
		m.Version = v
	}
	for k, p := range m.push {
		if k.eid == e {
			p.done, p.tries, p.nextAt = false, 0, time.Time{}
			m.push[k] = p
		}
	}
	for srv, eids := range m.Confirmed {
		m.Confirmed[srv] = without(eids, e)
	}
}

func without(eids []lisp.EID, e lisp.EID) []lisp.EID {
	return slices.DeleteFunc(slices.Clone(eids), func(f lisp.EID) bool { return f == e })
}

// accept: the mapping system holds e at the target with version v.
func (s *stepper) accept(e lisp.EID, v lisp.Version) {
	if v.Newer(s.m.Versions[e]) {
		s.version(e, v)
	}
}

// notified: DESIGN: the sender takes the highest version that it was told and registers again with it
// everywhere.
func (s *stepper) notified(ev evNotify) {
	m := s.m
	if m.State != Running && m.State != Pushed || !slices.Contains(m.EIDs, ev.eid) || !slices.Contains(s.servers, ev.server) {
		return
	}
	ours := ev.holder == m.Tgt.XTRID || ev.holder.IsZero() && hasRLOC(ev.locators, m.Tgt.RLOC)
	if !ours {
		if v := m.Versions[ev.eid]; v.Newer(ev.version) {
			return // an answer to something older
		}
		theirs := ev.holder == m.Src.XTRID || ev.holder.IsZero() && hasRLOC(ev.locators, m.Src.RLOC)
		if theirs && m.Reclaims < maxReclaims {
			// It registered while we were not looking, or took the VM back. What its agent sees decides.
			if ev.version.Newer(m.contest) {
				m.contest = ev.version
			}
			m.Src.looked = false
			return
		}
		s.result(ev.server, func(r *ServerResult) {
			r.Error = fmt.Sprintf("refused: xTR %s holds %s with version %d", ev.holder, ev.eid, ev.version)
		})
		k := pushKey{ev.server, ev.eid}
		p := m.push[k]
		p.done = true
		m.push[k] = p
		return
	}
	s.accept(ev.eid, ev.version)
	if ev.version != m.Versions[ev.eid] {
		return // older than what we registered since: that one is answered, too
	}
	k := pushKey{ev.server, ev.eid}
	p := m.push[k]
	p.done = true
	if m.push == nil {
		m.push = map[pushKey]push{}
	}
	m.push[k] = p
	if m.Confirmed == nil {
		m.Confirmed = map[netip.Addr][]lisp.EID{}
	}
	if !slices.Contains(m.Confirmed[ev.server], ev.eid) {
		m.Confirmed[ev.server] = append(slices.Clone(m.Confirmed[ev.server]), ev.eid)
	}
	s.result(ev.server, func(r *ServerResult) {
		r.Error = ""
		if ev.version.Newer(r.Version) {
			r.Version = ev.version
		}
		if r.Accepted.IsZero() && len(m.Confirmed[ev.server]) == len(m.EIDs) {
			r.Accepted = s.now
		}
	})
}

func (s *stepper) refused(e lisp.EID, v lisp.Version, who string) {
	s.m.Error = fmt.Sprintf("%s holds %s with version %d", who, e, v)
	for _, srv := range s.servers {
		if s.m.push == nil {
			s.m.push = map[pushKey]push{}
		}
		s.m.push[pushKey{srv, e}] = push{done: true}
	}
}

func (s *stepper) result(srv netip.Addr, change func(*ServerResult)) {
	m := s.m
	for i := range m.MapServers {
		if m.MapServers[i].Server == srv {
			change(&m.MapServers[i])
			return
		}
	}
	r := ServerResult{Server: srv}
	change(&r)
	m.MapServers = append(m.MapServers, r)
	slices.SortFunc(m.MapServers, func(a, b ServerResult) int { return a.Server.Compare(b.Server) })
}

// contested: the source registered a version that is not older than ours. Its own record tells whether
// it took the VM back; if it does not, or nobody answers there, the VM is at the target, and we claim
// again, one higher.
func (s *stepper) contested() {
	m := s.m
	if !m.Src.looked {
		s.call(Source, verbLook)
		return
	}
	v := m.contest.Next()
	m.contest = 0
	m.Reclaims++
	for _, e := range m.EIDs {
		s.version(e, v)
	}
}

// register sends what has not been confirmed and is due.
func (s *stepper) register() {
	m := s.m
	if m.push == nil {
		m.push = map[pushKey]push{}
		for srv, eids := range m.Confirmed {
			for _, e := range eids {
				m.push[pushKey{srv, e}] = push{done: true}
			}
		}
	}
	for _, srv := range s.servers {
		for _, e := range m.EIDs {
			k := pushKey{srv, e}
			p := m.push[k]
			if p.done || m.Versions[e] == 0 && !m.LookedUp || !s.due(p.nextAt) {
				continue
			}
			d := s.timing.Register << min(p.tries, 16)
			if d <= 0 || d > maxRegisterBackoff {
				d = maxRegisterBackoff
			}
			p.tries++
			p.nextAt = s.now.Add(d)
			s.wake(p.nextAt)
			m.push[k] = p
			s.do(actRegister{srv, e, m.Versions[e]})
		}
	}
}

// confirmed: some Map-Server holds every EID; all of them do, or have refused for good.
func (s *stepper) confirmed() (some, all bool) {
	m := s.m
	all = true
	for _, srv := range s.servers {
		if len(m.Confirmed[srv]) == len(m.EIDs) {
			some = true
			continue
		}
		for _, e := range m.EIDs {
			all = all && m.push[pushKey{srv, e}].done
		}
	}
	return some || len(s.servers) == 0, all
}

// held: the mapping system knows: by a Map-Notify to us, or by one to the target.
func (s *stepper) held() bool {
	some, _ := s.confirmed()
	return some && len(s.servers) > 0 || s.m.Target != nil && !s.m.Target.Times.Claimed.IsZero()
}
