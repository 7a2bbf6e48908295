package xtr

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// nonceSource hands out nonces that strictly increase, over restarts too: they follow the wall clock in
// nanoseconds, and never fall below what was reserved on disk (RFC 9301 section 5.6: the nonce of a
// Map-Register increases, and is kept in persistent storage). One source serves all Map-Servers: what
// increases for all increases for each.
type nonceSource struct {
	last     uint64
	reserved uint64 // nonces up to here are on disk as used
}

// nonceReserve is how far ahead of the last nonce the disk is kept: the wall clock may step back, and
// writes may be late.
const nonceReserve = uint64(10 * time.Minute)

// newNonceSource starts above what was reserved before.
func newNonceSource(reserved uint64) *nonceSource {
	return &nonceSource{last: reserved, reserved: reserved}
}

// next is a nonce above all before it.
func (n *nonceSource) next(now time.Time) uint64 {
	n.last = max(n.last+1, uint64(max(now.UnixNano(), 0)))
	return n.last
}

// reserve returns what the disk should hold, and whether that is due.
func (n *nonceSource) reserve() (ceiling uint64, due bool) {
	if n.last+nonceReserve/2 <= n.reserved {
		return n.reserved, false
	}
	return n.last + nonceReserve, true
}

// randomNonce is for requests whose answer is not authenticated: nobody off the path can guess it
// (RFC 9301 section 5.2).
func randomNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
