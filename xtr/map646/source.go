package map646

import (
	"encoding/binary"
	"math/rand/v2"
)

// icmpSource picks the source of an ICMP error whose sender has no IPv4 address, at random, so that two routers on a path
// seldom look like one (RFC 6791 section 5).
func (c *Config) icmpSource() addr4 {
	a := c.ICMPSource.Addr().As4()
	if host := 32 - c.ICMPSource.Bits(); host > 0 {
		n := rand.Uint32() & (1<<host - 1)
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|n)
	}
	return a
}
