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

const (
	confAnchor = 1 << iota
	confPool
	confServices4
	confServices6
	confRanges
	confGlobal
)

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
	Pool, PoolMask      [16]byte
	PoolLen             uint32
	Lowest6             uint32
	TranslateRate       uint32
	_                   uint32
}

// Tags under which addresses are looked up: of EIDs together with the instance-ID.
const (
	tagEID4 = 0x04000000
	tagEID6 = 0x06000000
	tagOut4 = 0x44000000
	tagOut6 = 0x46000000
	tagIn4  = 0x86000000
	tagIn6  = 0xa6000000
)

// serviceEntry is a service as the programs know it. IPv4 is in the last four bytes.
type serviceEntry struct {
	Outside, Inside, Keep [16]byte
	Kind, Bits, Word      uint8
	_                     uint8
	In, Out               [2]byte // words of an address, as it has them
	_                     uint64
}

type serviceCount struct{ InPackets, InBytes, OutPackets, OutBytes uint64 }

type serviceKey struct {
	Tag  uint32
	Addr [16]byte // IPv4 in the last four bytes
}

type serviceRange struct {
	Plen, Tag uint32
	Addr      [16]byte // IPv4 in the first four bytes
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

// genOf is the generation of the destination cache that a host address belongs to.
func genOf(e lisp.EID) uint32 {
	if e.Prefix.Addr().Is4() {
		return genAt(e.Prefix.Addr(), tagEID4|e.IID)
	}
	return genAt(e.Prefix.Addr(), tagEID6|e.IID)
}

// genAt is the same for an address under a tag: hash_addr of bpf/lookup.h.
func genAt(a netip.Addr, tag uint32) uint32 {
	b := wordsOf(a)
	h := mix(tag, binary.LittleEndian.Uint32(b[12:]))
	if a.Is6() {
		for _, at := range [...]int{8, 4, 0} {
			h = mix(h, binary.LittleEndian.Uint32(b[at:]))
		}
	}
	return avalanche(h) & (nGens - 1)
}

// wordsOf is an address as the programs keep it: an IPv4 address in the last four bytes.
func wordsOf(a netip.Addr) (b [16]byte) {
	if a.Is4() {
		v4 := a.As4()
		copy(b[12:], v4[:])
		return b
	}
	return a.As16()
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
