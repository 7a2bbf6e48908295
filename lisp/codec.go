package lisp

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Reasons for which a message is refused. Errors of this package wrap one of them.
var (
	// ErrTruncated: the message ends before what it announces.
	ErrTruncated = errors.New("truncated")
	// ErrMalformed: a field has a value that the RFC forbids.
	ErrMalformed = errors.New("malformed")
	// ErrUnknownType: not a type of [Message].
	ErrUnknownType = errors.New("unknown message type")
	// ErrUnknownAFI: an address family whose length nobody knows (RFC 9301 section 5.1).
	ErrUnknownAFI = errors.New("unknown AFI")
	// ErrUnencodable: a value that the wire format cannot carry.
	ErrUnencodable = errors.New("cannot be encoded")
	// ErrAuth: the authentication data does not match the key.
	ErrAuth = errors.New("authentication failed")
)

// Append writes m behind b, with locators in the order that RFC 9301 section 5.5 demands. m does not
// change. A Map-Register, Map-Notify or Map-Notify-Ack bears the authentication data that it holds;
// [AppendSigned] computes it.
func Append(b []byte, m Message) ([]byte, error) {
	var out []byte
	var err error
	switch m := m.(type) {
	case *MapRequest:
		out, err = m.append(b)
	case *MapReply:
		out, err = m.append(b)
	case *MapRegister:
		out, err = m.append(b)
	case *MapNotify:
		out, err = m.append(b)
	case *MapNotifyAck:
		out, err = m.append(b)
	case *ECM:
		out, err = m.append(b)
	default:
		return b, fmt.Errorf("lisp: append %T: %w", m, ErrUnknownType)
	}
	if err != nil {
		return b, fmt.Errorf("lisp: append %v: %w", m.Type(), err)
	}
	return out, nil
}

// Decode reads the control message that a datagram holds. The message shares no memory with b. Bytes
// behind the message are ignored: peers append fields of their own.
//
// A record whose EID is an LCAF that this package does not interpret is left out; a locator of that
// kind is kept as [Locator.LCAF].
func Decode(b []byte) (Message, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("lisp: decode: %w", ErrTruncated)
	}
	r := &reader{b: b}
	typ := Type(b[0] >> 4)
	var m Message
	switch typ {
	case TypeMapRequest:
		m = decodeMapRequest(r)
	case TypeMapReply:
		m = decodeMapReply(r)
	case TypeMapRegister:
		m = decodeMapRegister(r)
	case TypeMapNotify:
		m = decodeMapNotify(r)
	case TypeMapNotifyAck:
		m = decodeMapNotifyAck(r)
	case TypeECM:
		m = decodeECM(r)
	default:
		return nil, fmt.Errorf("lisp: decode: %w %d", ErrUnknownType, uint8(typ))
	}
	if r.err != nil {
		return nil, fmt.Errorf("lisp: decode %v at byte %d: %w", typ, r.off, r.err)
	}
	return m, nil
}

// appendHead writes the first word, which every type but the ECM follows with a nonce.
func appendHead(b []byte, t Type, flags uint32, records int, nonce uint64) ([]byte, error) {
	if records > maxCount {
		return nil, fmt.Errorf("%w: %d records", ErrUnencodable, records)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(t)<<28|flags|uint32(records))
	return binary.BigEndian.AppendUint64(b, nonce), nil
}

// appendXTRID writes the trailing xTR-ID and Site-ID of RFC 9301 section 5.6.
func appendXTRID(b []byte, x XTRID, s SiteID) []byte {
	return binary.BigEndian.AppendUint64(append(b, x[:]...), uint64(s))
}

// bit is mask if on is set.
func bit(on bool, mask uint32) uint32 {
	if on {
		return mask
	}
	return 0
}
