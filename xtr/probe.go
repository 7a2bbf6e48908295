package xtr

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// rlocStater is what a DataPlane may do besides: take an RLOC out of all mappings, or put it back. Without it RLOCs are
// not probed.
type rlocStater interface {
	RLOCState(a netip.Addr, up bool) error
}

// How RLOCs are probed.
const (
	probeInterval = 500 * time.Millisecond
	// probeAgain is after how long a probe counts as unanswered, and is made again; after probeMisses in a row the RLOC is
	// taken for dead: 1.25 s after it died, at most, before TCP has waited for longer than a second and a half.
	probeAgain  = 250 * time.Millisecond
	probeMisses = 3
	// probeCollect is the time between two looks for RLOCs that are worth a probe, and probeCollectSoon that to the next
	// when there are new ones.
	probeCollect     = 10 * time.Second
	probeCollectSoon = time.Second
	// probeAskAgain is the time between two questions for a mapping that leads nowhere.
	probeAskAgain = 2 * time.Second
	// probeMax bounds how many are probed.
	probeMax = 256
)

// prober finds out by RLOC-probing (RFC 9301 section 7.1) which of several RLOCs of one mapping are dead: the D-ETRs,
// above all, to which VMs send what goes to the Internet. Where there is only one there is no choice, and nothing to
// find out.
//
// One that never answered is left alone: not everybody answers probes. Nor is one taken away
// when none answers of those that might stand in for it: it may well be us. But a mapping of which none answers is asked
// for again: while D-ETRs start again one after the other it may have been the wrong moment that it is of.
type prober struct {
	nonce   func() uint64
	collect time.Time // when to look for targets again
	news    bool      // there are new ones
	groups  []*probeGroup
	targets map[netip.Addr]*probed
}

// probed is an RLOC that is probed.
type probed struct {
	eid      lisp.EID // that is asked for
	nonce    uint64   // of the probe that is out, 0 = none
	due      time.Time
	misses   int       // probes in a row without answer
	answered bool      // it has answered once
	heard    time.Time // when it did last
	down     bool
}

// probeGroup is locators among which there is a choice, and an EID that who is there knows.
type probeGroup struct {
	eid    lisp.EID
	rlocs  []netip.Addr
	mapped bool      // they are what the mapping system says of eid
	again  time.Time // when it may be asked for again
}

// probeSend is a probe to send; probeChange an RLOC that is up or down from now on.
type probeSend struct {
	to    netip.Addr
	nonce uint64
	eid   lisp.EID
}

type probeChange struct {
	rloc netip.Addr
	up   bool
}

func newProber(nonce func() uint64) *prober {
	return &prober{nonce: nonce, targets: map[netip.Addr]*probed{}}
}

// set says what there is to probe. What is not named any more is forgotten; if it was down it is up again, for whoever
// names it next.
func (p *prober) set(groups []*probeGroup, now time.Time) (changes []probeChange) {
	p.groups = groups
	keep := map[netip.Addr]bool{}
	for _, g := range groups {
		for _, a := range g.rlocs {
			keep[a] = true
			if p.targets[a] == nil && len(p.targets) < probeMax {
				p.targets[a] = &probed{eid: g.eid, due: now}
			}
		}
	}
	for a, t := range p.targets {
		if !keep[a] {
			delete(p.targets, a)
			if t.down {
				changes = append(changes, probeChange{a, true})
			}
		}
	}
	return changes
}

// next is when tick has something to do; zero: never.
func (p *prober) next() (t time.Time) {
	for _, target := range p.targets {
		t = earlier(t, target.due)
	}
	return t
}

// tick returns the probes that are due, and which RLOCs are dead now.
func (p *prober) tick(now time.Time) (sends []probeSend, changes []probeChange) {
	for a, t := range p.targets {
		if t.due.After(now) {
			continue
		}
		if t.nonce != 0 {
			t.misses++
		}
		t.nonce = p.nonce()
		if t.due = now.Add(probeAgain); t.misses > probeMisses || !t.answered {
			t.due = now.Add(probeInterval)
		}
		sends = append(sends, probeSend{a, t.nonce, t.eid})
	}
	return sends, p.judge()
}

// reply takes the answer to a probe, whatever address of its sender it comes from: nobody else knows the nonce. It
// reports false if that was not asked for.
func (p *prober) reply(nonce uint64, now time.Time) (changes []probeChange, ok bool) {
	for a, t := range p.targets {
		if t.nonce == 0 || t.nonce != nonce {
			continue
		}
		first := !t.answered
		t.nonce, t.misses, t.answered, t.heard, t.due = 0, 0, true, now, now.Add(probeInterval)
		if first && !t.down {
			changes = append(changes, probeChange{a, true}) // it may be down from before a restart
		}
		return append(changes, p.judge()...), true
	}
	return nil, false
}

// dead reports whether an RLOC that used to answer does so no more.
func (p *prober) dead(a netip.Addr) bool {
	t := p.targets[a]
	return t != nil && t.answered && t.misses >= probeMisses
}

// lost reports whether nobody of a group is there.
func (p *prober) lost(g *probeGroup) bool {
	return !slices.ContainsFunc(g.rlocs, func(a netip.Addr) bool { return !p.dead(a) })
}

// ask returns the EIDs of mappings that lead nowhere, each now and again.
func (p *prober) ask(now time.Time) (out []lisp.EID) {
	for _, g := range p.groups {
		if g.mapped && !g.again.After(now) && p.lost(g) {
			g.again = now.Add(probeAskAgain)
			out = append(out, g.eid)
		}
	}
	return out
}

// judge compares what RLOCs are with what they should be.
func (p *prober) judge() (changes []probeChange) {
	for a, t := range p.targets {
		down := p.dead(a) && slices.ContainsFunc(p.groups, func(g *probeGroup) bool { return slices.Contains(g.rlocs, a) && !p.lost(g) })
		if down != t.down {
			t.down = down
			changes = append(changes, probeChange{a, !down})
		}
	}
	return changes
}

// tickProbes does what is due of probing.
func (x *XTR) tickProbes(now time.Time) {
	dp, ok := x.dp.(rlocStater)
	if !ok {
		return
	}
	if x.probe.news {
		x.probe.news = false
		if soon := now.Add(probeCollectSoon); soon.Before(x.probe.collect) {
			x.probe.collect = soon
		}
	}
	if !x.probe.collect.After(now) {
		x.probe.collect = now.Add(probeCollect)
		x.probedNow(dp, x.probe.set(x.probeGroups(), now), now)
	}
	sends, changes := x.probe.tick(now)
	for _, s := range sends {
		x.count("probes")
		x.send(netip.AddrPortFrom(s.to, lisp.ControlPort), &lisp.MapRequest{
			Probe: true, Nonce: s.nonce, ITRRLOCs: x.rlocs(), Records: []lisp.RequestRecord{{EID: s.eid}}})
	}
	x.probedNow(dp, changes, now)
	asked := x.probe.ask(now)
	for _, e := range asked {
		x.count("mappings-dead")
		x.res.want(e, netip.Addr{}, whyDead, false, now)
	}
	if len(asked) > 0 {
		x.res.tick(now)
		x.resolved(now)
	}
}

// nextProbe is when tickProbes has something to do; zero: never.
func (x *XTR) nextProbe() time.Time {
	if _, ok := x.dp.(rlocStater); !ok {
		return time.Time{}
	}
	return earlier(x.probe.next(), x.probe.collect)
}

// probeReply takes the answer to a probe.
func (x *XTR) probeReply(m *lisp.MapReply, now time.Time) {
	changes, ok := x.probe.reply(m.Nonce, now)
	if !ok {
		x.count("probe-reply-unasked")
		return
	}
	x.count("probe-replies")
	x.probedNow(x.dp.(rlocStater), changes, now) // who asked can be told
}

// probedNow tells the data plane which RLOCs are up and down.
func (x *XTR) probedNow(dp rlocStater, changes []probeChange, now time.Time) {
	for _, c := range changes {
		if err := dp.RLOCState(c.rloc, c.up); err != nil {
			x.count("dataplane-errors")
			x.warn(now, "data plane: state of an RLOC", "rloc", c.rloc.String(), "err", err)
		}
		if !c.up {
			x.count("rlocs-down")
			x.log.Warn("an RLOC does not answer probes: what goes to it takes others", "rloc", c.rloc.String())
		} else {
			x.log.Debug("an RLOC answers probes", "rloc", c.rloc.String())
		}
	}
}

// probeGroups are the RLOCs among which there is a choice, or might be: our PETRs, and those of mappings with several, or
// with a PETR.
func (x *XTR) probeGroups() (out []*probeGroup) {
	petr := func(a netip.Addr) bool {
		return slices.ContainsFunc(x.cfg.PETRs, func(l lisp.Locator) bool { return l.RLOC == a })
	}
	add := func(e lisp.EID, ls []lisp.Locator, mapped bool) {
		g := &probeGroup{eid: e, mapped: mapped}
		for _, l := range x.usable(ls) {
			g.rlocs = append(g.rlocs, l.RLOC)
		}
		if len(g.rlocs) > 1 || slices.ContainsFunc(g.rlocs, petr) {
			out = append(out, g)
		}
	}
	if len(x.cfg.EIDPrefixes) > 0 { // D-ETRs answer for the cloud's EIDs
		add(x.cfg.EIDPrefixes[0], x.cfg.PETRs, false)
	}
	for e, c := range x.res.cache.All() {
		if len(out) == probeMax {
			break
		}
		if n := len(c.Mapping.Locators); n > 1 || n == 1 && petr(c.Mapping.Locators[0].RLOC) {
			add(e, c.Mapping.Locators, true)
		}
	}
	return out
}

// ShowRLOC is one row of "rlocs": an RLOC that is probed.
type ShowRLOC struct {
	RLOC  netip.Addr `json:"rloc"`
	State string     `json:"state"` // up, down, or never answered: which counts as up
	Heard time.Time  `json:"heard,omitzero"`
	Tries int        `json:"tries"` // probes since
	EID   lisp.EID   `json:"eid"`   // that it is asked for
}

func (x *XTR) showRLOCs(time.Time) []ShowRLOC {
	rows := []ShowRLOC{}
	for a, t := range x.probe.targets {
		row := ShowRLOC{RLOC: a, State: "up", Heard: t.heard, Tries: t.misses, EID: t.eid}
		switch {
		case t.down:
			row.State = "down"
		case !t.answered:
			row.State = "never answered"
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b ShowRLOC) int { return a.RLOC.Compare(b.RLOC) })
	return rows
}
