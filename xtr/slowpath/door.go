package slowpath

import "github.com/tabi-lisp/tabi/xtr/fib"

// Door is what the slow path asks of the data plane beside the frames of lisp0. Packets are counted
// after the split of super-packets. All calls return within microseconds.
type Door interface {
	// HoldCounters returns how many packets the data plane has diverted to a hold, and how many of
	// them came back or will never come back. Both wrap at 2^64 together.
	HoldCounters(hold uint32) (diverted, reinjected uint64, err error)
	// HoldReset makes the two counters of a hold equal.
	HoldReset(hold uint32) error
	// HoldDropped says that n diverted packets will not come back. It adds modulo 2^64: the negative
	// of n says that n packets that were never diverted will come.
	HoldDropped(hold uint32, n uint64) error
	// PortCounters returns the counters of a VM interface.
	PortCounters(port uint16) (fib.PortCount, error)
}
