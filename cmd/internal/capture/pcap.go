package capture

import (
	"encoding/binary"
	"fmt"
	"time"
)

// pcap is the older format (draft-ietf-opsawg-pcap): a head, then one record a packet.
type pcap struct {
	order binary.ByteOrder
	unit  time.Duration // of the fractions of a second
	link  LinkType
}

const (
	pcapHead   = 24
	pcapRecord = 16
)

// newPCAP reads what follows the magic number.
func newPCAP(c *Reader, order binary.ByteOrder, nanos bool) (*pcap, error) {
	var b [pcapHead - 4]byte
	if err := c.rest(b[:], "the head of the file"); err != nil {
		return nil, err
	}
	if major, minor := order.Uint16(b[0:]), order.Uint16(b[2:]); major != 2 {
		return nil, fmt.Errorf("pcap version %d.%d: want 2.4", major, minor)
	}
	p := &pcap{order: order, unit: time.Microsecond}
	if nanos {
		p.unit = time.Nanosecond
	}
	c.nanos = nanos
	// The upper bits say how long the frames' check sequences are, if anybody knows.
	p.link = LinkType(order.Uint32(b[16:]) & 0xffff)
	return p, nil
}

func (p *pcap) next(c *Reader) (Packet, error) {
	var b [pcapRecord]byte
	if err := c.full(b[:], "its record"); err != nil {
		return Packet{}, err
	}
	n, length := p.order.Uint32(b[8:]), p.order.Uint32(b[12:])
	if n > maxFrame {
		return Packet{}, fmt.Errorf("%d bytes captured: the file is broken", n)
	}
	data, err := c.frame(int(n), "its data")
	if err != nil {
		return Packet{}, err
	}
	at := time.Unix(int64(p.order.Uint32(b[0:])), int64(p.order.Uint32(b[4:]))*int64(p.unit)).UTC()
	return Packet{Time: at, Link: p.link, Data: data, Length: wireLength(n, length)}, nil
}

// wireLength is how long a frame was on the wire; some writers leave it at less than they captured.
func wireLength(captured, length uint32) int {
	return int(max(captured, min(length, 1<<30)))
}
