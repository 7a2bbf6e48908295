package lisp

import "context"

// Delta is a change to a set of mappings: the one currency in which the parts tell each other where
// EIDs live. Applying the same Delta twice is the same as applying it once.
type Delta struct {
	Full bool      // Put is the whole truth: whatever is absent is gone
	Put  []Mapping // added or replaced, keyed by EID
	Del  []EID     // removed; an unknown EID is not an error
}

// Empty reports whether d changes nothing.
func (d Delta) Empty() bool { return !d.Full && len(d.Put) == 0 && len(d.Del) == 0 }

// Sink accepts changes to a set of mappings. A data plane, a store and a BGP pusher are Sinks.
// Package sinktest holds the conformance test that every Sink passes.
type Sink interface {
	// Apply takes d whole or, with an error, not at all. It may be called from one goroutine at a
	// time. The Sink does not change d and may keep its Mappings.
	Apply(ctx context.Context, d Delta) error
}
