package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/tabi-lisp/tabi/lisp"
)

// The values of the maps, byte for byte as bpf/maps.h has them. No implicit padding: they are copied as
// they are.

const (
	nSlots     = 16
	nPorts     = 4096
	portProbes = 8
	nGens      = 1024
	chunkBits  = 10
	chunkLen   = 1 << chunkBits
	nSelf      = 8
	nHolds     = 4096
	nRLOCs     = 4096
)

const (
	actEncap = iota + 1
	actDeliver
	actHold
	actNative
	actDrop
	actMiss
)

const (
	flagTransit = 1 << iota
	flagMoved
	flagCopy
	flagWatch
	flagArriving
)

type mapping struct {
	Act, Flags uint8
	MTU        uint16
	Hold       uint32
	Ifindex    uint32
	MAC        [6]byte
	Port       uint16
	Nonce      uint32
	Slot       [nSlots]uint16
	_          uint64
}

type locators [nSlots]struct {
	RLOC         uint16
	Rank, Weight uint8
}

type target struct{ Mapping, Counter uint32 }

type rlocEntry struct {
	V6, Up      uint8
	MTU         uint16
	Ifindex     uint32
	Csum        uint32
	GPE, Family uint8
	_           uint16
	Hop         [16]byte
	Src, Dst    [16]byte
}

type count struct{ Packets, Bytes uint64 }

type routeCount struct{ Packets, Bytes, Used uint64 }

type hold struct{ Diverted, Reinjected uint64 }

const portStack = 1

type portEntry struct {
	Ifindex uint32
	IID     uint32
	MAC     [6]byte
	Flags   uint8
	_       uint8
	Base    uint64
	Copies  uint32
	MTU     uint32
}

const confAnchor = 1

type confEntry struct {
	Secret              uint64
	Door                uint32
	Flags               uint32
	MTU                 uint32
	CacheMask           uint32
	N4, N6              uint32
	MissRate, EventRate uint32
	HZ, TTLRate         uint32
	Self4               [nSelf][4]byte
	Self6               [nSelf][16]byte
}

type key4 struct {
	Plen uint32
	IID  [4]byte
	Addr [4]byte
}

type key6 struct {
	Plen uint32
	IID  [4]byte
	Addr [16]byte
}

type eventEntry struct {
	Kind, V6, HasRLOC, RLOC6 uint8
	IID                      uint32
	EID, RLOC                [16]byte
	Ifindex                  uint32
	MAC                      [6]byte
	_                        [6]byte
}

func makeKey4(e lisp.EID) key4 {
	k := key4{Plen: 32 + uint32(e.Prefix.Bits()), Addr: e.Prefix.Addr().As4()}
	binary.BigEndian.PutUint32(k.IID[:], e.IID)
	return k
}

func makeKey6(e lisp.EID) key6 {
	k := key6{Plen: 32 + uint32(e.Prefix.Bits()), Addr: e.Prefix.Addr().As16()}
	binary.BigEndian.PutUint32(k.IID[:], e.IID)
	return k
}

func (k key4) eid() lisp.EID {
	return lisp.EID{IID: binary.BigEndian.Uint32(k.IID[:]), Prefix: netip.PrefixFrom(netip.AddrFrom4(k.Addr), int(k.Plen)-32)}
}

func (k key6) eid() lisp.EID {
	return lisp.EID{IID: binary.BigEndian.Uint32(k.IID[:]), Prefix: netip.PrefixFrom(netip.AddrFrom16(k.Addr), int(k.Plen)-32)}
}

// wordAddr reads an address as the programs keep it: an IPv4 address in the last four bytes.
func wordAddr(b [16]byte, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[12:]))
}

// genOf is the generation of the destination cache that a host address belongs to: hash_addr of
// bpf/lookup.h.
func genOf(e lisp.EID) uint32 {
	a := e.Prefix.Addr()
	var h uint32
	if a.Is4() {
		b := a.As4()
		h = mix(e.IID|4<<24, binary.LittleEndian.Uint32(b[:]))
	} else {
		b := a.As16()
		h = mix(e.IID|6<<24, binary.LittleEndian.Uint32(b[12:]))
		for _, at := range [...]int{8, 4, 0} {
			h = mix(h, binary.LittleEndian.Uint32(b[at:]))
		}
	}
	return avalanche(h) & (nGens - 1)
}

func mix(h, w uint32) uint32 {
	h = (h ^ w) * 0x9e3779b1
	return h ^ h>>15
}

func avalanche(h uint32) uint32 {
	h *= 0x85ebca6b
	h ^= h >> 13
	h *= 0xc2b2ae35
	return h ^ h>>16
}
