package xtr

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// handover is one VM's move, seen from the source or from the target: a state machine. Its methods take an
// event and return what is to be done, in order; route says what is to become of packets meanwhile. Every
// event may come twice, late or never.
//
//	source:  armed -stop-> paused -1 ms, replay-> redirecting -quiet-> settled
//	                                  \-resume, abort, frames of the VM-> taking-back -> aborted
//	target:  incoming -run-> running -flushed and claimed-> settled
//	                 \-abort-> giving-back -> aborted
//
// A handover that nobody prepared begins in the middle: a source as paused (the VM stopped, and nobody has
// said where it goes) or redirecting (the mapping system says that it runs elsewhere), a target as running. A source
// that the hypervisor tells of a migration is armed, and does not know the target before the mapping system does: what
// the VM has not read goes to the hold while it is paused, and all of it to the target when that has claimed.
type handover struct {
	Handover
	MACs      []string       `json:"macs,omitempty"`
	Interface string         `json:"interface,omitempty"`
	PeerXTRID lisp.XTRID     `json:"peer_xtr_id,omitzero"`
	Prepared  bool           `json:"was_prepared"`
	Hold      uint32         `json:"hold"` // hold queue; 0: none
	Flushing  bool           `json:"flushing"`
	To        []lisp.Locator `json:"to,omitempty"`    // where packets are redirected or given back to
	Told      bool           `json:"told"`            // source: the mapping system says that the VM runs elsewhere
	Heard     time.Time      `json:"heard"`           // when anybody last spoke of it
	Moved     time.Time      `json:"moved"`           // source: when somebody was last seen to send here still
	Copying   bool           `json:"copying"`         // source: copies are kept of what the VM was given
	Copied    bool           `json:"copied"`          // source: those that it has not read are in the hold
	Left      time.Time      `json:"left,omitzero"`   // source: when the hypervisor said that it does not have the VM any more
	Third     bool           `json:"third,omitempty"` // target: the VM went to neither of the two, where nobody has what it had not read
	Announced bool           `json:"was_announced"`   // target: to be prepared without being told where the VM is

	timing
	gone      time.Time      // source: when the interface went
	deadline  time.Time      // of the present step; zero: none but what the state says
	replaying bool           // source: the answer to opReplay is awaited
	away      []lisp.EID     // source: which EIDs the mapping system says are elsewhere
	waited    bool           // source: the others have been waited for
	under     *handover      // the superseded one whose flush is still going on
	last      State          // before it was superseded
	announced bool           // the claim: the hypervisor or the controller told of the move
	seenIf    int            // interface at which the VM was seen; 0: none
	baseAt    time.Time      // armed: when to look again at what the interface has dropped
	looks     []look         // armed: what was seen then, if it had changed
	read      map[int]uint64 // armed: packets that had been read from the interfaces at the last look
	counting  bool           // redirecting: counted is set
	counted   uint64         // redirecting: packets that the routes had taken when nothing was held any more
}

// look is what the interfaces of a source's VM had dropped at a time, packets by interface index. It was not later.
type look struct {
	at      time.Time
	dropped map[int]uint64
}

// timing is how long a handover waits.
type timing struct {
	settle  time.Duration
	prepare time.Duration
	grace   time.Duration
}

const (
	// quiesce is how long packets may be on their way to an interface after its VM has stopped.
	quiesce = time.Millisecond
	// straggle is how long a source that nobody prepared waits for the target to claim the rest of the EIDs. A target
	// that does not know them claims them as it sees them, and takes no packets for the others.
	straggle = 30 * time.Millisecond
	// settleQuiet is for how long nobody may have sent here before a source settles.
	settleQuiet = 10 * time.Second
	// settleMost is how many times the settle time a source waits for that silence.
	settleMost = 20
	// baseEvery is how often an armed source looks at what its interface drops because the VM is slow: those packets
	// were given to it, and the VM will never have read them. What it drops because the VM has stopped is replayed.
	baseEvery = 250 * time.Millisecond
)

// op is something that a handover wants done.
type op uint8

const (
	opRoutes   op = iota + 1 // make the routes of the EIDs what route says
	opReplay                 // put what the VM never read into the hold; then call replayed
	opFlush                  // send on what is held; then call flushed
	opGiveBack               // as opFlush, without replays
	opDiscard                // drop what is held
	opNewHold                // take another hold queue
	opLocal                  // the EIDs live here
	opClaim                  // claim the EIDs
	opRelease                // stop registering the EIDs
	opWithdraw               // deregister the EIDs
	opForget                 // the EIDs do not live here any more
	opNoCopies               // drop the copies of the packets that the VM was given
	opBase                   // look at what the interface has dropped
	opEnd                    // the handover has ended
)

// evidence says that the VM runs here.
type evidence struct {
	at     time.Time
	strong bool // the hypervisor or the controller says so: no frame that may have waited somewhere
	why    string
	eid    lisp.EID // that a frame named; zero: none
}

// to sets the state.
func (h *handover) to(s State, why string) {
	h.State, h.Why, h.deadline = s, why, time.Time{}
}

// stop: the VM has stopped here.
func (h *handover) stop(at, now time.Time, why string) []op {
	h.Heard = now
	if h.Role != Source || h.State != Armed {
		return nil
	}
	h.to(Paused, why)
	h.Times.Paused = at
	if h.Flushing {
		return nil // what was held before still goes to the interface; what the VM has not read is replayed
	}
	h.deadline = now.Add(quiesce)
	return []op{opRoutes}
}

// resume: the hypervisor says that the VM runs here.
func (h *handover) resume(at, now time.Time, port bool) []op {
	return h.seen(evidence{at: at, strong: true, why: "the VM runs here"}, now, port)
}

// seen: there is evidence that the VM runs here. port says whether its interface is known.
func (h *handover) seen(ev evidence, now time.Time, port bool) []op {
	guard := evidenceGuard
	if ev.strong {
		guard = 0
	}
	switch h.State {
	case Armed:
		return nil
	case Incoming:
		if ev.at.Before(h.Times.Prepared) {
			return nil
		}
		return h.run(ev, now, port)
	case GivingBack:
		if !ev.at.After(h.Times.Aborted) { // the VM never ran here: there is no frame that is late
			return nil
		}
		h.Times.Aborted = time.Time{}
		return h.run(ev, now, port)
	case Paused, Redirecting:
		since := h.Times.Paused
		for _, t := range []time.Time{h.Times.Redirecting, h.Times.Claimed} {
			// The hypervisor says when it was: a resume that follows the stop counts, however late it is told.
			if t.After(since) && (!ev.strong || h.Times.Paused.IsZero()) {
				since = t
			}
		}
		if ev.at.Before(since.Add(guard)) {
			return nil
		}
		h.announced = ev.strong
		return h.takeBack(now, ev.why)
	}
	return nil
}

// commit: the controller says that the VM runs at the target.
func (h *handover) commit(now time.Time, port bool) []op {
	h.Heard = now
	if h.Role == Target {
		return h.seen(evidence{at: now, strong: true, why: "committed"}, now, port)
	}
	if h.Times.Run.IsZero() && !h.State.ended() {
		h.Times.Run = now
	}
	return h.stop(now, now, "committed")
}

// run: the VM begins to run on this target. The claim goes first: it takes longest, and what comes before the
// route is there is held.
func (h *handover) run(ev evidence, now time.Time, port bool) []op {
	h.to(Running, ev.why)
	h.Heard = now
	h.announced = h.Prepared || ev.strong
	h.Times.Run = ev.at
	ops := []op{opLocal, opClaim, opRoutes}
	if port && !h.Flushing {
		h.Flushing = true
		ops = append(ops, opFlush)
	}
	return ops
}

// portUp: the interface of the VM has appeared.
func (h *handover) portUp() []op {
	h.gone = time.Time{}
	if h.State == Running && !h.Flushing && h.Times.Flushed.IsZero() && h.Hold != 0 {
		h.Flushing = true
		return []op{opRoutes, opFlush}
	}
	return []op{opRoutes}
}

// portDown: the interface of the VM has gone.
func (h *handover) portDown(now time.Time) []op {
	h.gone = now
	if h.State == Armed {
		ops := h.stop(now, now, "the VM's interface is gone")
		return append(ops, opNoCopies)
	}
	return nil
}

// replayed: what the VM never read is in the hold.
func (h *handover) replayed(n int, now time.Time) []op {
	h.replaying, h.Copying, h.Copied = false, false, true
	h.Replayed += uint64(n)
	switch h.State {
	case Paused:
		if len(h.To) == 0 {
			return nil // they wait here until somebody says where it goes
		}
		return h.leave(now)
	case TakingBack:
		h.Flushing = true
		return []op{opNoCopies, opGiveBack}
	}
	return []op{opNoCopies}
}

// leave redirects when the target takes packets for all EIDs, or seems not to want some.
func (h *handover) leave(now time.Time) []op {
	if !h.Prepared && len(h.away) > 0 && len(h.away) < len(h.EIDs) && !h.waited {
		h.waited, h.deadline = true, now.Add(straggle)
		return nil
	}
	return h.redirect(now)
}

// redirect sends on what is held and what still comes.
func (h *handover) redirect(now time.Time) []op {
	h.to(Redirecting, h.Why)
	h.Times.Redirecting = now
	if h.Hold == 0 {
		return []op{opRoutes}
	}
	h.Flushing = true
	return []op{opRoutes, opFlush}
}

// flushed: the last held packet is out.
func (h *handover) flushed(st HoldStats, now time.Time) []op {
	h.Flushing = false
	credit := h
	if h.under != nil {
		credit, h.under = h.under, nil
	}
	credit.credit(st)
	switch h.State {
	case Armed, Incoming:
		return []op{opNewHold, opRoutes}
	case Paused:
		h.deadline = now.Add(quiesce)
		return []op{opNewHold, opRoutes}
	case Redirecting:
		h.Times.Flushed = now
		return []op{opRoutes}
	case TakingBack:
		h.Times.Flushed = now
		h.to(Aborted, h.Why)
		return []op{opRoutes, opEnd}
	case GivingBack:
		h.Times.Flushed = now
		h.deadline = now.Add(h.settle)
		return []op{opRoutes}
	case Running:
		h.Times.Flushed = now
		return append([]op{opRoutes}, h.done(now)...)
	}
	return nil
}

// credit adds what became of held packets to the record.
func (h *handover) credit(st HoldStats) {
	h.Held += st.Held
	if h.Role == Source && h.State != TakingBack && h.State != Aborted {
		h.Redirected += st.Held + st.Passed
	}
	h.drop(st.Dropped)
}

func (h *handover) drop(reasons map[string]uint64) {
	if h.Dropped == nil {
		h.Dropped = map[string]uint64{}
	}
	for k, n := range reasons {
		if n > 0 {
			h.Dropped[k] += n
		}
	}
}

// claimed: a Map-Server holds the EIDs as ours, with version v.
func (h *handover) claimed(v lisp.Version, now time.Time) []op {
	if v.Newer(h.Version) {
		h.Version = v
	}
	if h.State == Running && h.Times.Claimed.IsZero() {
		h.Times.Claimed = now
		return h.done(now)
	}
	return nil
}

// done ends a target that has nothing left to do.
func (h *handover) done(now time.Time) []op {
	if h.State != Running || h.Flushing || h.Times.Claimed.IsZero() || h.Hold != 0 && h.Times.Flushed.IsZero() {
		return nil
	}
	h.Times.Settled = now
	h.to(Settled, h.Why)
	return []op{opEnd}
}

// looked: at a time, packets had been read from the VM's interfaces, and dropped there. While nothing is read nobody knows
// yet whether the VM has stopped: what is dropped then does not count.
func (h *handover) looked(at time.Time, read, dropped map[int]uint64) {
	if h.State != Armed {
		return // that may be what the VM missed because it had stopped
	}
	stands := h.read != nil && maps.Equal(h.read, read)
	h.read = read
	if n := len(h.looks); n > 0 && (stands || maps.Equal(h.looks[n-1].dropped, dropped)) {
		return
	}
	h.looks = append(h.looks, look{at, dropped})
	if len(h.looks) > maxLooks {
		h.looks = slices.Delete(h.looks, 0, 1)
	}
}

// droppedBy is what the VM's interfaces had dropped when it stopped, as far as that is known. The stop may be told late: what
// was seen after it was the stop's doing.
func (h *handover) droppedBy(stop time.Time) (dropped map[int]uint64) {
	for i, l := range h.looks {
		if i == 0 || !l.at.After(stop) {
			dropped = l.dropped
		}
	}
	return dropped
}

// maxLooks bounds how many looks are kept: a stop is not told later than so many times baseEvery.
const maxLooks = 40

// elsewhere: the mapping system says that the VM runs somewhere else. to are the RLOCs of its mapping.
func (h *handover) elsewhere(m lisp.Mapping, to []lisp.Locator, now time.Time) []op {
	h.Heard = now
	if len(to) == 0 {
		return nil
	}
	changed := !slices.Equal(h.To, to)
	switch h.State {
	case Incoming, GivingBack:
		if !m.Version.Newer(h.Version) {
			return nil
		}
		// The source claims once more when it takes the VM back, with the version after the one that we would
		// have claimed with. Anything less is an old claim of its own that we did not know of.
		known := h.Version
		h.Version = m.Version
		if (m.XTRID == h.PeerXTRID && !m.XTRID.IsZero() || to[0].RLOC == h.PeerRLOC) &&
			(known == 0 || !m.Version.Newer(known.Next())) {
			return nil
		}
		h.To = to
		if h.State == GivingBack {
			return []op{opRoutes}
		}
		h.Third = to[0].RLOC != h.PeerRLOC
		return h.giveBack(now, fmt.Sprintf("the VM runs at %v, mapping version %d", to[0].RLOC, m.Version))
	case Armed, Paused, Redirecting:
		if m.Version.Newer(h.Version) {
			h.Version = m.Version
		}
		h.To, h.PeerRLOC, h.Told = to, to[0].RLOC, true
		if h.Times.Claimed.IsZero() {
			h.Times.Claimed = now
		}
		if slices.Contains(h.EIDs, m.EID) && !slices.Contains(h.away, m.EID) {
			h.away = append(h.away, m.EID)
		}
		why := fmt.Sprintf("the mapping system says that the VM runs at %v, version %d", to[0].RLOC, m.Version)
		switch {
		case h.State == Armed:
			return h.stop(now, now, why)
		case h.State == Paused && !h.replaying && !h.Flushing &&
			(h.deadline.IsZero() || h.waited && len(h.away) == len(h.EIDs)):
			h.deadline, h.Why = now, why
			return h.tick(now)
		case h.State == Redirecting && changed:
			return []op{opRoutes}
		}
	}
	return nil
}

// located: the mapping system says where the VM is that is to come, which nobody has said before.
func (h *handover) located(m lisp.Mapping, to []lisp.Locator) []op {
	if h.State != Incoming || len(h.To) > 0 || len(to) == 0 {
		return nil
	}
	h.To, h.PeerRLOC, h.PeerXTRID = to, to[0].RLOC, m.XTRID
	if m.Version.Newer(h.Version) {
		h.Version = m.Version
	}
	return []op{opRoutes}
}

// abort: the VM will stay where it was. It reports false if that is not possible any more.
func (h *handover) abort(now time.Time, why string) (ops []op, ok bool) {
	h.Heard = now
	switch h.State {
	case Armed:
		h.Times.Aborted = now
		h.to(Aborted, why)
		return []op{opRoutes, opNoCopies, opEnd}, true
	case Paused, Redirecting:
		h.announced = true
		return h.takeBack(now, why), true
	case Incoming:
		return h.giveBack(now, why), true
	case TakingBack, GivingBack, Aborted:
		return nil, true
	}
	return nil, false
}

// takeBack: the VM runs here again. If the target may have claimed the EIDs they are claimed once more, with
// a version that beats the target's.
func (h *handover) takeBack(now time.Time, why string) []op {
	was := h.State
	h.to(TakingBack, why)
	h.Times.Aborted = now
	var ops []op
	if was == Redirecting || h.Told || !h.Times.Run.IsZero() {
		if h.Prepared && !h.Told && h.Version != 0 {
			h.Version = h.Version.Next() // what the target claims with
		}
		ops = append(ops, opLocal, opRoutes, opClaim)
	} else {
		ops = append(ops, opRoutes)
	}
	switch {
	case h.replaying:
		return ops // the hold is given back when the copies are in it
	case h.Hold != 0 && was == Paused && !h.Flushing && h.Copied:
		h.Flushing = true
		return append(ops, opNoCopies, opGiveBack) // the VM has the replays in its interface
	case h.Hold != 0 && (was == Paused && !h.Flushing):
		h.Flushing = true
		return append(ops, opNoCopies, opFlush)
	case h.Flushing && was == Redirecting:
		return append(ops, opGiveBack)
	case h.Flushing: // what was held before the stop still goes to the VM
		return append(ops, opNoCopies)
	}
	h.to(Aborted, why)
	return append(ops, opEnd)
}

// giveBack: the VM will not come.
func (h *handover) giveBack(now time.Time, why string) []op {
	h.to(GivingBack, why)
	h.Times.Aborted = now
	if len(h.To) == 0 {
		return h.forget(why)
	}
	if h.Flushing {
		return []op{opRoutes}
	}
	h.Flushing = true
	if h.Third {
		return []op{opRoutes, opFlush}
	}
	return []op{opRoutes, opGiveBack}
}

// forget ends a target to which the VM did not come.
func (h *handover) forget(why string) []op {
	h.to(Aborted, why)
	h.Flushing = false
	return []op{opRelease, opForget, opRoutes, opDiscard, opEnd}
}

// sentHere: somebody still sends packets here that belong to the VM that has moved.
func (h *handover) sentHere(now time.Time) {
	if h.State == Redirecting {
		h.Moved = now
	}
}

// next is when tick has something to do; zero: never.
func (h *handover) next() time.Time {
	t := h.deadline
	switch h.State {
	case Armed:
		t = earlier(h.baseAt, h.Heard.Add(h.prepare))
	case Incoming:
		t = earlier(t, h.Heard.Add(h.prepare))
	case Paused:
		if t.IsZero() && !h.replaying {
			t = h.Heard.Add(h.prepare)
			if at := h.given(); !at.IsZero() {
				t = earlier(t, at)
			}
		}
	case Redirecting:
		t = h.settles()
	}
	return t
}

// given is when a VM that has stopped, and is not here any more, counts as shut down; zero: it is here. One that was
// about to be sent away gets more time: whoever has it now may not have been able to say so.
func (h *handover) given() time.Time {
	grace := h.grace
	if h.Copied || h.Prepared {
		grace = max(grace, h.settle)
	}
	var t time.Time
	if !h.gone.IsZero() {
		t = h.gone.Add(h.grace)
	}
	if !h.Left.IsZero() {
		t = h.Left.Add(grace)
	}
	return t
}

// settles is when a source may forget the VM, if nothing more happens.
func (h *handover) settles() time.Time {
	begin := h.Times.Redirecting
	if !h.Told && h.Times.Run.IsZero() {
		return begin.Add(max(h.prepare, h.settle)) // nobody has said yet that it runs
	}
	t := begin.Add(h.settle)
	if quiet := h.Moved.Add(settleQuiet); !h.Moved.IsZero() && quiet.After(t) {
		t = quiet
	}
	if most := begin.Add(settleMost * h.settle); t.After(most) {
		t = most
	}
	return t
}

// tick does what is due.
func (h *handover) tick(now time.Time) []op {
	if n := h.next(); n.IsZero() || n.After(now) {
		return nil
	}
	switch h.State {
	case Armed:
		if h.Heard.Add(h.prepare).After(now) {
			h.baseAt = now.Add(baseEvery)
			return []op{opBase}
		}
		h.Times.Aborted = now
		h.to(Aborted, fmt.Sprintf("timeout: nothing heard for %v", h.prepare))
		return []op{opRoutes, opNoCopies, opEnd}
	case Incoming:
		// Nothing is sent back: the source may send it here again.
		h.Times.Aborted = now
		return h.forget(fmt.Sprintf("timeout: nothing heard for %v", h.prepare))
	case Paused:
		return h.pausedTick(now)
	case Redirecting:
		h.Times.Settled = now
		why := h.Why
		if !h.Told && h.Times.Run.IsZero() {
			why += "; nobody has said that it runs"
		}
		flushing := h.Flushing
		h.to(Settled, why)
		ops := []op{opRelease, opForget, opRoutes, opNoCopies}
		if flushing {
			h.Flushing = false
			ops = append(ops, opDiscard)
		}
		return append(ops, opEnd)
	case GivingBack:
		return h.forget(h.Why)
	}
	return nil
}

func (h *handover) pausedTick(now time.Time) []op {
	switch {
	case !h.deadline.IsZero():
		h.deadline = time.Time{}
		if h.Copying && h.gone.IsZero() {
			h.replaying = true
			return []op{opReplay}
		}
		if len(h.To) == 0 {
			return nil // nobody has said where it goes
		}
		return h.leave(now)
	case !h.given().IsZero() && !h.given().After(now):
		h.Times.Settled = now
		h.to(Settled, "the VM was stopped: it is not here any more")
		return []op{opWithdraw, opForget, opRoutes, opDiscard, opEnd}
	}
	return h.takeBack(now, "timeout: the VM stays paused here")
}

// restored goes on after a restart: what was held is gone, what the data plane does is not.
func (h *handover) restored(now time.Time) []op {
	h.Heard = now
	switch h.State {
	case Armed:
		h.baseAt, h.Copying = now, true
		return []op{opRoutes}
	case Paused:
		h.Flushing, h.deadline = false, now
		return []op{opRoutes}
	case Incoming:
		if h.Flushing {
			h.Flushing = false
			return []op{opNewHold, opRoutes}
		}
		return []op{opRoutes}
	case Redirecting:
		if h.Flushing {
			return []op{opRoutes, opFlush}
		}
		return []op{opRoutes}
	case TakingBack:
		h.Flushing = true
		return []op{opRoutes, opGiveBack}
	case Running:
		h.Flushing = false // until the interface is found again
		return nil
	case GivingBack:
		h.Flushing = true
		if h.Third {
			return []op{opRoutes, opFlush}
		}
		return []op{opRoutes, opGiveBack}
	}
	return nil
}

// takesOver makes h, which begins now, the successor of old for the same VM. While packets that old held are
// still flushed, routes stay as they were.
func (h *handover) takesOver(old *handover, now time.Time) {
	switch {
	case old.Hold == 0:
	case old.Announced && old.State == Incoming && h.Role == Target && !old.Flushing:
		h.Hold = old.Hold // it is the same arrival, of which somebody knows more
	case old.Flushing:
		h.Hold, h.Flushing, h.under = old.Hold, true, old
	case old.State == Paused:
		h.Hold, h.replaying = old.Hold, old.replaying
	}
	if h.Role == Source {
		h.Copying, h.Copied = h.Copying || old.Copying || h.Flushing, old.Copied
	}
	if old.State == Paused && h.Role == Source {
		h.State, h.Times.Paused, h.Left = Paused, old.Times.Paused, old.Left
		h.deadline = now
		if h.Flushing || h.replaying {
			h.deadline = time.Time{}
		}
	}
	for k := old.under; k != nil; k = k.under {
		h.under = k // the flush began under it
	}
	h.looks, h.read, h.seenIf = old.looks, old.read, old.seenIf
	old.last = old.State
	old.to(Superseded, "superseded by "+h.ID)
	if h.under != old {
		old.under = nil
	}
}

// route is what is to become of packets for e while the handover lasts; ok is false if that is not for the
// handover to say. A Deliver lacks the interface and MAC address: the caller knows them.
func (h *handover) route(e lisp.EID) (r fib.Route, ok bool) {
	r.EID = e
	if h.Flushing {
		r.Hold = h.Hold
	}
	switch h.State {
	case Armed:
		r.Do, r.Copy = fib.Deliver, true
	case Paused:
		if h.Flushing {
			r.Do, r.Copy = fib.Deliver, true
		} else {
			r.Do, r.Hold, r.Watch = fib.Hold, h.Hold, true
		}
	case Redirecting:
		// Watch: if the VM goes on here after all, and nobody says so, its packets do.
		r.Do, r.Locators, r.Transit, r.Moved, r.Watch = fib.Encap, h.To, true, true, true
	case TakingBack:
		r.Do, r.Hold = fib.Deliver, h.Hold
	case Incoming:
		if h.Flushing && h.under != nil {
			return h.under.before(e)
		}
		if len(h.To) == 0 {
			return fib.Route{}, false // nobody sends packets here yet
		}
		// The VM still runs at the source: what its neighbours here send to it must not wait till it comes.
		r.Do, r.Hold, r.Watch, r.Locators = fib.Hold, h.Hold, true, h.To
	case Running:
		r.Do = fib.Deliver
	case GivingBack:
		r.Do, r.Locators, r.Transit = fib.Encap, h.To, true
	default:
		return fib.Route{}, false
	}
	return r, true
}

// before is the route of a superseded handover while its flush goes on.
func (h *handover) before(e lisp.EID) (fib.Route, bool) {
	r := fib.Route{EID: e, Hold: h.Hold}
	if h.last == Redirecting || h.last == GivingBack {
		r.Do, r.Locators, r.Transit = fib.Encap, h.To, true
	} else {
		r.Do = fib.Deliver
	}
	return r, true
}

// snapshot is the record as it is served.
func (h *handover) snapshot() Handover {
	rec := h.Handover
	rec.EIDs = slices.Clone(rec.EIDs)
	rec.Dropped = maps.Clone(rec.Dropped)
	if rec.Dropped == nil {
		rec.Dropped = map[string]uint64{}
	}
	return rec
}

// locatorsTo are the locators of a single RLOC that somebody named.
func locatorsTo(a netip.Addr) []lisp.Locator {
	if !a.IsValid() {
		return nil
	}
	return []lisp.Locator{{RLOC: a.Unmap(), Priority: 1, Weight: 100, Reachable: true}}
}
