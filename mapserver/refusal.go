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
)

// refusalKey is whom and what a refusal concerns.
type refusalKey struct {
	xtr lisp.XTRID
	eid lisp.EID
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
	known   bool // the sender was authenticated
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
		if x.why != old.why {
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
	c.count("register/refused/" + string(why))
	x := c.refusals.add(refusal{refusalKey: refusalKey{r.XTRID, rec.EID}, why: why, at: now, from: r.from,
		version: rec.Version, known: known})
	if x.logged.IsZero() || now.Sub(x.logged) >= logAgain {
		x.logged = now
		c.report(now, slog.LevelWarn, "Map-Register refused", "reason", string(why), "eid", rec.EID, "xtr_id", r.XTRID,
			"source", r.from, "version", rec.Version, "times", x.times)
	}
}

// refused is refuse for a record that loses in the order of versions: the sender is told who has the EID.
func (c *core) refused(now time.Time, e *entry, r registering, rec lisp.Mapping, why reason) outcome {
	c.refuse(now, r, rec, why, true)
	return outcome{tell: e.mapping}
}
