package lisp

// Algorithm is an authentication algorithm of RFC 9301 section 5.6.
type Algorithm uint8

// The algorithms of RFC 9301 section 12.5 that this package signs and verifies.
const (
	AlgNone           Algorithm = 0
	AlgHMACSHA1_96    Algorithm = 1
	AlgHMACSHA256_128 Algorithm = 2
)

// Format says which of two incompatible forms of the authentication data a peer wants.
type Format uint8

const (
	// FormatRFC is RFC 9301's: the digest truncated to 96 or 128 bits, over the message up to the
	// last record.
	FormatRFC Format = iota
	// FormatDeployed is what every known open-source peer sends and expects: the full digest (20 or
	// 32 bytes) over the whole message, xTR-ID and Site-ID included.
	FormatDeployed
)

// Key is a shared secret with its identifier on the wire.
type Key struct {
	ID        uint8
	Algorithm Algorithm
	Format    Format // how we sign; Verify takes either form
	Secret    string
}

// Auth is the authentication part of a message as it travels.
type Auth struct {
	KeyID     uint8
	Algorithm Algorithm
	Data      []byte
}
