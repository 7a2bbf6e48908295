package lisp

import (
	"bytes"
	"fmt"
)

// Bits of the first word of a Map-Reply (RFC 9301 section 5.4).
const (
	replyBitP = 0x08000000
	replyBitE = 0x04000000
	replyBitS = 0x02000000
)

func (m *MapReply) append(b []byte) ([]byte, error) {
	if err := m.checkProbe(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnencodable, err)
	}
	flags := bit(m.Probe, replyBitP) | bit(m.EchoNonce, replyBitE) | bit(m.Security, replyBitS)
	b, err := appendHead(b, TypeMapReply, flags, len(m.Records), m.Nonce)
	if err != nil {
		return nil, err
	}
	if b, err = appendRecords(b, m.Records, false); err != nil {
		return nil, err
	}
	if m.Security {
		b = append(b, m.AuthData...)
	}
	return b, nil
}

func decodeMapReply(r *reader) *MapReply {
	w := r.u32()
	m := MapReply{
		Probe:     w&replyBitP != 0,
		EchoNonce: w&replyBitE != 0,
		Security:  w&replyBitS != 0,
		Nonce:     r.u64(),
		Records:   r.records(uint8(w), false),
	}
	if m.Security {
		m.AuthData = bytes.Clone(r.bytes(r.left()))
	}
	if err := m.checkProbe(); err != nil {
		r.fail(fmt.Errorf("%w: %w", ErrMalformed, err))
	}
	if r.err != nil {
		return nil
	}
	return &m
}

// checkProbe: "When the probe-bit is set to 1 in a Map-Reply message, the A-bit in each EID-Record
// included in the message MUST be set to 1; otherwise, it MUST be silently discarded" (RFC 9301
// section 5.4).
func (m *MapReply) checkProbe() error {
	for _, rec := range m.Records {
		if m.Probe && !rec.Authoritative {
			return fmt.Errorf("probe reply with record %v that is not authoritative", rec.EID)
		}
	}
	return nil
}
