package xtr

import "time"

// Limits of what is kept of interfaces that are not served yet.
const (
	earlyFrames = 8                // of one interface
	earlyTotal  = 1 << 12          // of all
	earlyFor    = 10 * time.Second // an older frame says nothing of now
)

// early keeps the frames of interfaces that the data plane has not taken yet. A host that starts hundreds of VMs at
// once hears each of them before it can serve it, and a VM announces itself in its first second only.
type early struct {
	byIf map[int][]Sighting
	n    int
}

// keep keeps a frame; it reports false when there is no room.
func (e *early) keep(s Sighting, now time.Time) bool {
	if s.At.IsZero() {
		s.At = now
	}
	if e.n >= earlyTotal {
		e.prune(now)
	}
	if e.n >= earlyTotal || len(e.byIf[s.If]) >= earlyFrames {
		return false
	}
	if e.byIf == nil {
		e.byIf = make(map[int][]Sighting)
	}
	e.byIf[s.If] = append(e.byIf[s.If], s)
	e.n++
	return true
}

// take gives back the frames of an interface that are not too old, in the order in which they came.
func (e *early) take(index int, now time.Time) (out []Sighting) {
	all := e.byIf[index]
	delete(e.byIf, index)
	e.n -= len(all)
	for _, s := range all {
		if now.Sub(s.At) <= earlyFor {
			out = append(out, s)
		}
	}
	return out
}

// prune forgets interfaces that never came.
func (e *early) prune(now time.Time) {
	for index, all := range e.byIf {
		if now.Sub(all[len(all)-1].At) > earlyFor {
			_ = e.take(index, now)
		}
	}
}
