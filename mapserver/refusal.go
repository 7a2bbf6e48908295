package mapserver

import (
	"container/list"
	"log/slog"
	"net/netip"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// reason is why a record or a message was refused: a word for counters and tables.
type reason string

const (
	reasonNotConfigured reason = "no-site-for-eid"
	reasonMoreSpecific  reason = "more-specific-not-accepted"
	reasonForeignKey    reason = "key-of-another-site"
	reasonUnknownKey    reason = "unknown-key"
	reasonAuth          reason = "authentication-failed"
	reasonAuthScope     reason = "xtr-id-not-authenticated"
	reasonReplay        reason = "nonce-not-greater"
	reasonBadLocator    reason = "bad-locator"
	reasonLocator       reason = "locator-not-allowed"
	reasonLimit         reason = "too-many-registrations"
	reasonOlder         reason = "older-version"
	reasonTie           reason = "same-version-lower-xtr-id-holds"
	reasonNotHolder     reason = "not-the-holder"
	reasonFlapping      reason = "claimed-to-and-fro"
	// Of services, and of what collides with them.
	reasonBadService   reason = "key-value-pair-is-no-service"
	reasonNoController reason = "not-a-controller-key"
	reasonNoVersion    reason = "service-without-version"
	reasonInsideSite   reason = "no-site-for-the-eid-of-the-service"
	reasonInsideTaken  reason = "eid-has-a-service-address"
	reasonOverlap      reason = "overlaps-a-service-address"
	reasonTwice        reason = "would-be-translated-twice"
	reasonVM           reason = "eid-of-a-vm"
	reasonService      reason = "is-a-service-address"
)

// refusalKey is whom and what a refusal concerns.
type refusalKey struct {
	xtr     lisp.XTRID // zero for a service: it is of no xTR
	eid     lisp.EID
	service bool
}

// refusedOf is the key of a refusal of rec, which speaks of a service or not.
func refusedOf(r registering, rec lisp.Mapping, service bool) refusalKey {
	if service {
		return refusalKey{eid: rec.EID, service: true}
	}
	return refusalKey{xtr: r.XTRID, eid: rec.EID}
}

// refusal is the last time that an xTR was refused an EID: a Map-Server that silently does not
// register is the complaint that operators have most.
type refusal struct {
	refusalKey
	why     reason
	at      time.Time
	logged  time.Time
	times   uint64
	from    netip.Addr
	version lisp.Version
	known   bool   // the sender was authenticated
	holder  string // what stands in the way, if it is another EID
}

// How many refusals are kept. Anybody can cause those of unauthenticated senders, so these have a
// share of their own.
const (
	maxRefusals        = 4096
	maxUnauthenticated = 256
	// logAgain is how long the same refusal is not logged again.
	logAgain = time.Minute
)

// refusals keeps the last ones.
type refusals struct {
	byKey map[bool]map[refusalKey]*list.Element
	age   map[bool]*list.List // the oldest first
}

func newRefusals() refusals {
	r := refusals{byKey: map[bool]map[refusalKey]*list.Element{}, age: map[bool]*list.List{}}
	for _, known := range []bool{false, true} {
		r.byKey[known], r.age[known] = map[refusalKey]*list.Element{}, list.New()
	}
	return r
}

// add records x and returns it, with what was known of the same before.
func (r *refusals) add(x refusal) *refusal {
	if el, ok := r.byKey[x.known][x.refusalKey]; ok {
		old := el.Value.(*refusal)
		x.times, x.logged = old.times, old.logged
		if x.why != old.why || x.holder != old.holder {
			x.times, x.logged = 0, time.Time{}
		}
		x.times++
		*old = x
		r.age[x.known].MoveToBack(el)
		return old
	}
	limit := maxRefusals
	if !x.known {
		limit = maxUnauthenticated
	}
	if age := r.age[x.known]; age.Len() >= limit {
		oldest := age.Remove(age.Front()).(*refusal)
		delete(r.byKey[x.known], oldest.refusalKey)
	}
	x.times = 1
	r.byKey[x.known][x.refusalKey] = r.age[x.known].PushBack(&x)
	return &x
}

// clear forgets what the sender was refused: it was accepted now.
func (r *refusals) clear(k refusalKey) {
	for known, m := range r.byKey {
		if el, ok := m[k]; ok {
			r.age[known].Remove(el)
			delete(m, k)
		}
	}
}

func (r *refusals) all() []refusal {
	var out []refusal
	for _, l := range r.age {
		for el := l.Front(); el != nil; el = el.Next() {
			out = append(out, *el.Value.(*refusal))
		}
	}
	return out
}

// refuse records, counts and now and then logs that rec was not accepted.
func (c *core) refuse(now time.Time, r registering, rec lisp.Mapping, why reason, known bool) {
	c.refuseHeld(now, r, rec, why, known, "")
}

// refuseHeld is refuse for what collides with another EID, which holder names.
func (c *core) refuseHeld(now time.Time, r registering, rec lisp.Mapping, why reason, known bool, holder string) {
	c.count("register/refused/" + string(why))
	x := c.refusals.add(refusal{refusalKey: refusedOf(r, rec, c.ofService(r, rec)), why: why, at: now, from: r.from,
		version: rec.Version, known: known, holder: holder})
	if x.logged.IsZero() || now.Sub(x.logged) >= logAgain {
		x.logged = now
		attrs := []any{"reason", string(why), "eid", rec.EID, "xtr_id", r.XTRID, "source", r.from, "version", rec.Version,
			"times", x.times}
		if rec.IsService() {
			attrs = append(attrs, "inside", rec.Inside)
		}
		if holder != "" {
			attrs = append(attrs, "holder", holder)
		}
		c.report(now, slog.LevelWarn, "Map-Register refused", attrs...)
	}
}

// refused is refuse for a record that loses in the order of versions: the sender is told who has the EID.
func (c *core) refused(now time.Time, e *entry, r registering, rec lisp.Mapping, why reason) outcome {
	c.refuse(now, r, rec, why, true)
	return outcome{tell: e.mapping}
}
