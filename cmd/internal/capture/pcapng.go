package capture

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// pcapng is the newer format (draft-ietf-opsawg-pcapng): sections of blocks, with interfaces that each have
// a link type and a unit of time.
type pcapng struct {
	order  binary.ByteOrder
	ifaces []ngInterface // of the section
}

type ngInterface struct {
	link    LinkType
	snaplen uint32
	units   uint64 // units of time in a second
	offset  int64  // seconds to add to time stamps
}

// Block types, and the options of interfaces that are looked at.
const (
	ngSection   = 0x0a0d0d0a
	ngIface     = 1
	ngPacket    = 2 // obsolete, still found
	ngSimple    = 3
	ngEnhanced  = 6
	ngByteOrder = 0x1a2b3c4d

	ngOptEnd        = 0
	ngOptResolution = 9
	ngOptOffset     = 14

	maxBlock      = maxFrame + 1<<16 // a packet's, with its options
	maxInterfaces = 1 << 16
)

// newPCAPNG reads what follows the type of the first section's block.
func newPCAPNG(c *Reader) (*pcapng, error) {
	p := &pcapng{}
	c.nanos = true
	return p, p.section(c)
}

// section reads a section's block behind its type. What was said of interfaces holds no more.
func (p *pcapng) section(c *Reader) error {
	var b [8]byte
	if err := c.rest(b[:], "the head of a section"); err != nil {
		return err
	}
	switch {
	case binary.LittleEndian.Uint32(b[4:]) == ngByteOrder:
		p.order = binary.LittleEndian
	case binary.BigEndian.Uint32(b[4:]) == ngByteOrder:
		p.order = binary.BigEndian
	default:
		return fmt.Errorf("% x is no byte order of a section", b[4:])
	}
	p.ifaces = p.ifaces[:0]
	body, err := p.body(c, p.order.Uint32(b[:]), 12)
	if err != nil {
		return err
	}
	if len(body) < 12 {
		return fmt.Errorf("the head of a section has %d bytes", len(body)+16)
	}
	if major, minor := p.order.Uint16(body[0:]), p.order.Uint16(body[2:]); major != 1 {
		return fmt.Errorf("pcapng version %d.%d: want 1.0", major, minor)
	}
	return nil
}

// body reads what a block of n bytes has behind the first head bytes, without the length at its end.
func (p *pcapng) body(c *Reader, n uint32, head int) ([]byte, error) {
	if n%4 != 0 || int64(n) < int64(head)+4 || n > maxBlock {
		return nil, fmt.Errorf("a block of %d bytes: the file is broken", n)
	}
	b, err := c.frame(int(n)-head, "a block")
	if err != nil {
		return nil, err
	}
	at := len(b) - 4
	if again := p.order.Uint32(b[at:]); again != n {
		return nil, fmt.Errorf("a block of %d bytes ends as one of %d: the file is broken", n, again)
	}
	return b[:at], nil
}

func (p *pcapng) next(c *Reader) (Packet, error) {
	for {
		var b [8]byte
		switch err := c.full(b[:4], "a block"); {
		case err != nil:
			return Packet{}, err
		case p.order.Uint32(b[:]) == ngSection:
			if err := p.section(c); err != nil {
				return Packet{}, err
			}
			continue
		}
		if err := c.rest(b[4:], "a block"); err != nil {
			return Packet{}, err
		}
		body, err := p.body(c, p.order.Uint32(b[4:]), 8)
		if err != nil {
			return Packet{}, err
		}
		switch p.order.Uint32(b[:]) {
		case ngIface:
			err = p.iface(body)
		case ngEnhanced:
			return p.packet(body, false)
		case ngPacket:
			return p.packet(body, true)
		case ngSimple:
			return p.simple(body)
		}
		if err != nil {
			return Packet{}, err
		}
	}
}

func (p *pcapng) iface(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("an interface in %d bytes: the file is broken", len(b))
	}
	if len(p.ifaces) == maxInterfaces {
		return fmt.Errorf("more than %d interfaces", maxInterfaces)
	}
	i := ngInterface{link: LinkType(p.order.Uint16(b)), snaplen: p.order.Uint32(b[4:]), units: 1e6}
	for b = b[8:]; len(b) >= 4; {
		code, n := p.order.Uint16(b), int(p.order.Uint16(b[2:]))
		padded := (n + 3) &^ 3
		if code == ngOptEnd {
			break
		}
		if 4+padded > len(b) {
			return fmt.Errorf("interface %d: an option of %d bytes, beyond its block", len(p.ifaces), n)
		}
		value := b[4 : 4+n]
		switch {
		case code == ngOptResolution && n == 1:
			units, ok := resolution(value[0])
			if !ok {
				return fmt.Errorf("interface %d: time stamps in units of %#x", len(p.ifaces), value[0])
			}
			i.units = units
		case code == ngOptOffset && n == 8:
			i.offset = int64(p.order.Uint64(value))
		}
		b = b[4+padded:]
	}
	p.ifaces = append(p.ifaces, i)
	return nil
}

// resolution reads the units in a second: a power of ten, or with the high bit one of two.
func resolution(v byte) (uint64, bool) {
	if v&0x80 != 0 {
		return 1 << (v & 0x3f), v&0x7f < 64
	}
	units := uint64(1)
	for range v {
		if units > 1e18 {
			return 0, false
		}
		units *= 10
	}
	return units, true
}

// packet reads an enhanced packet block, or the older one.
func (p *pcapng) packet(b []byte, old bool) (Packet, error) {
	if len(b) < 20 {
		return Packet{}, fmt.Errorf("a packet's block of %d bytes: the file is broken", len(b))
	}
	on := p.order.Uint32(b)
	if old {
		on = uint32(p.order.Uint16(b))
	}
	if uint64(on) >= uint64(len(p.ifaces)) {
		return Packet{}, fmt.Errorf("is of interface %d, of which nothing is said", on)
	}
	i := p.ifaces[on]
	n, length := p.order.Uint32(b[12:]), p.order.Uint32(b[16:])
	if uint64(n) > uint64(len(b)-20) {
		return Packet{}, fmt.Errorf("%d bytes captured, in a block of %d: the file is broken", n, len(b))
	}
	at := i.time(uint64(p.order.Uint32(b[4:]))<<32 | uint64(p.order.Uint32(b[8:])))
	return Packet{Time: at, Link: i.link, Data: b[20 : 20+n], Length: wireLength(n, length)}, nil
}

// simple reads a simple packet block, which has no time.
func (p *pcapng) simple(b []byte) (Packet, error) {
	if len(b) < 4 || len(p.ifaces) == 0 {
		return Packet{}, fmt.Errorf("a simple packet's block of %d bytes: the file is broken", len(b))
	}
	i, length := p.ifaces[0], p.order.Uint32(b)
	n := length
	if i.snaplen != 0 {
		n = min(n, i.snaplen)
	}
	if uint64(n) > uint64(len(b)-4) {
		return Packet{}, fmt.Errorf("%d bytes captured, in a block of %d: the file is broken", n, len(b))
	}
	return Packet{Time: time.Unix(0, 0).UTC(), Link: i.link, Data: b[4 : 4+n], Length: wireLength(n, length)}, nil
}

// time is the time of a time stamp.
func (i ngInterface) time(stamp uint64) time.Time {
	hi, lo := bits.Mul64(stamp%i.units, uint64(time.Second))
	nanos, _ := bits.Div64(hi, lo, i.units) // below a second, as stamp%units < units
	return time.Unix(int64(stamp/i.units)+i.offset, int64(nanos)).UTC()
}
