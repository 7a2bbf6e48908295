package mapserver

import (
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// damping notices that an EID is claimed to and fro: somebody runs the same VM twice (RFC 7432 section
// 15.1 has the same rule for MAC addresses). Such an EID is frozen: it stays where it is, with the
// version that it has, until a controller announces it, its holder is gone, or nobody else has claimed
// it for a whole window.
type damping struct {
	moves  []time.Time // accepted claims within the window that no controller announced, oldest first
	frozen bool
	// counted: the last move is among moves, and a controller may still say that it meant it.
	counted bool
	last    time.Time  // the last claim that was refused because of frozen
	from    lisp.XTRID // who had the EID before the last claim
}

// claim reports whether an unannounced claim may go through.
func (d *damping) claim(now time.Time, limit int, window time.Duration) bool {
	d.moves = slices.DeleteFunc(d.moves, func(t time.Time) bool { return now.Sub(t) >= window })
	if !d.frozen && len(d.moves) < limit {
		d.moves, d.counted = append(d.moves, now), true
		return true
	}
	d.frozen, d.last = true, now
	return false
}

// announced: a controller says that the EID is where it is now. If the xTR's own claim came first, that
// was no flapping either.
func (d *damping) announced() {
	if d.counted && len(d.moves) > 0 {
		d.moves = d.moves[:len(d.moves)-1]
	}
	d.frozen, d.counted = false, false
}

// conceded reports whether x is the one that lost the EID by the last claim: it says that its VM has left, so that the
// claim was no flapping. Of two that run the same VM neither says so.
func (d *damping) conceded(x lisp.XTRID) bool {
	if x.IsZero() || x != d.from {
		return false
	}
	if d.counted && len(d.moves) > 0 {
		d.moves = d.moves[:len(d.moves)-1]
	}
	d.counted = false
	return true
}

// settled forgets everything: the EID has no holder, or was left alone for long enough.
func (d *damping) settled() { *d = damping{} }
