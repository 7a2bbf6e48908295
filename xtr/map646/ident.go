package map646

import (
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
)

// identifications generates IPv4 identifications (RFC 7915 section 5.1): a counter for each of many sets of address
// pairs, at a distance that nobody knows, so that an identification comes back to a pair only after 65536 packets and
// tells a receiver little of the others (RFC 7739 section 5.3).
type identifications struct {
	seed     maphash.Seed
	counters [1024]atomic.Uint32
}

func (g *identifications) init() {
	g.seed = maphash.MakeSeed()
	for i := range g.counters {
		g.counters[i].Store(rand.Uint32())
	}
}

func (g *identifications) next(src, dst addr4) uint16 {
	var pair [8]byte
	copy(pair[:4], src[:])
	copy(pair[4:], dst[:])
	h := maphash.Bytes(g.seed, pair[:])
	return uint16(g.counters[h%uint64(len(g.counters))].Add(1)) + uint16(h>>48)
}
