package lisp

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the length of the data header in bytes (RFC 9300 section 5.3).
const HeaderLen = 8

// Header is the header between the UDP header (port 4341) and the inner packet (RFC 9300 section 5.3).
// On the public Internet only I and the instance-ID are used (RFC 9300 section 4.1).
type Header struct {
	NoncePresent   bool    // N
	EchoNonce      bool    // E: a request to echo Nonce
	VersionPresent bool    // V; never with N
	StatusPresent  bool    // L: StatusBits are in use
	HasInstance    bool    // I
	Encrypted      uint8   // KK, 0..3: key of an encrypted packet (RFC 8061), 0 = in clear
	Nonce          uint32  // 24 bits, with N
	SourceVersion  Version // with V
	DestVersion    Version // with V
	InstanceID     uint32  // 24 bits, with I
	StatusBits     uint32  // locator-status-bits: 32, or 8 of them with I
}

// Bits of the first word of the data header.
const (
	headerBitN    = 0x80000000
	headerBitL    = 0x40000000
	headerBitE    = 0x20000000
	headerBitV    = 0x10000000
	headerBitI    = 0x08000000
	headerKKShift = 24
	headerKKMask  = 0x3
	nonceMask     = 1<<24 - 1
)

// AppendHeader writes h behind b.
func AppendHeader(b []byte, h Header) ([]byte, error) {
	w0 := bit(h.NoncePresent, headerBitN) | bit(h.StatusPresent, headerBitL) | bit(h.EchoNonce, headerBitE) |
		bit(h.VersionPresent, headerBitV) | bit(h.HasInstance, headerBitI) | uint32(h.Encrypted)<<headerKKShift
	w1 := bit(h.StatusPresent, h.StatusBits)
	switch {
	// "Both N- and V-bits MUST NOT be set in the same packet" (RFC 9300 section 5.3).
	case h.NoncePresent && h.VersionPresent:
		return b, fmt.Errorf("lisp: append data header: %w: nonce and Map-Version", ErrUnencodable)
	case h.Encrypted > headerKKMask, h.Nonce > nonceMask, h.InstanceID > MaxInstanceID,
		h.SourceVersion > VersionMask, h.DestVersion > VersionMask, h.HasInstance && w1 > 0xff:
		return b, fmt.Errorf("lisp: append data header: %w: a field is out of range", ErrUnencodable)
	case h.NoncePresent:
		w0 |= h.Nonce
	case h.VersionPresent:
		w0 |= uint32(h.SourceVersion)<<12 | uint32(h.DestVersion)
	}
	if h.HasInstance {
		w1 |= h.InstanceID << 8
	}
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, w0), w1), nil
}

// DecodeHeader reads the header at the start of a UDP payload; the inner packet follows at [HeaderLen].
// Fields whose bit is not set are zero.
func DecodeHeader(b []byte) (Header, error) {
	r := reader{b: b}
	w0, w1 := r.u32(), r.u32()
	if r.err != nil {
		return Header{}, fmt.Errorf("lisp: decode data header: %w", r.err)
	}
	h := Header{
		NoncePresent:   w0&headerBitN != 0,
		StatusPresent:  w0&headerBitL != 0,
		EchoNonce:      w0&headerBitE != 0,
		VersionPresent: w0&headerBitV != 0,
		HasInstance:    w0&headerBitI != 0,
		Encrypted:      uint8(w0 >> headerKKShift & headerKKMask),
	}
	switch {
	case h.NoncePresent:
		// "If they are [both set], a decapsulating ETR MUST treat the 'Nonce/Map-Version' field as
		// having a nonce value present" (RFC 9300 section 5.3).
		h.VersionPresent = false
		h.Nonce = w0 & nonceMask
	case h.VersionPresent:
		h.SourceVersion, h.DestVersion = Version(w0>>12)&VersionMask, Version(w0)&VersionMask
	}
	if h.HasInstance {
		h.InstanceID = w1 >> 8
		w1 &= 0xff
	}
	if h.StatusPresent {
		h.StatusBits = w1
	}
	return h, nil
}
