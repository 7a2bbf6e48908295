package stream

import "encoding/binary"

// A Stamp begins every payload: which stream, which packet of it, when it was sent.
//
//	magic 4 | stream 4 | sequence 8 | CLOCK_REALTIME ns 8
type Stamp struct {
	Stream uint32
	Seq    uint64
	SentNS int64 // by the sender's clock, which in a guest stands still while the guest does
}

// StampLen is the length of a stamp in bytes, the least length of a payload.
const StampLen = 24

const stampMagic = 0x74616269 // "tabi"

// Put writes the stamp to the beginning of b, which is at least StampLen bytes.
func (s Stamp) Put(b []byte) {
	binary.BigEndian.PutUint32(b, stampMagic)
	binary.BigEndian.PutUint32(b[4:], s.Stream)
	binary.BigEndian.PutUint64(b[8:], s.Seq)
	binary.BigEndian.PutUint64(b[16:], uint64(s.SentNS))
}

// ParseStamp reads a stamp; ok is false for what is not ours.
func ParseStamp(b []byte) (s Stamp, ok bool) {
	if len(b) < StampLen || binary.BigEndian.Uint32(b) != stampMagic {
		return Stamp{}, false
	}
	return Stamp{binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), int64(binary.BigEndian.Uint64(b[16:]))}, true
}

// AckLen is the length in bytes of what may follow the stamp: how many packets of the opposite stream the sender of this
// packet had received. A guest's clock cannot tell how long nothing came to it: whoever hears its acknowledgements can.
const AckLen = 8

// PutAck writes an acknowledgement behind the stamp, if b has room for one.
func PutAck(b []byte, received uint64) {
	if len(b) >= StampLen+AckLen {
		binary.BigEndian.PutUint64(b[StampLen:], received)
	}
}

// ParseAck reads what PutAck wrote; 0 if there is none.
func ParseAck(b []byte) uint64 {
	if len(b) < StampLen+AckLen {
		return 0
	}
	return binary.BigEndian.Uint64(b[StampLen:])
}
