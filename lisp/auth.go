package lisp

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Algorithm is an authentication algorithm of RFC 9301 section 5.6.
type Algorithm uint8

// The algorithms of RFC 9301 section 12.5.
const (
	AlgNone                Algorithm = 0
	AlgHMACSHA1_96         Algorithm = 1
	AlgHMACSHA256_128      Algorithm = 2
	AlgHMACSHA256_128_HKDF Algorithm = 3 // HMAC-SHA256-128 with a key of its own for every message
)

// Format says which of two incompatible forms of the authentication data a peer wants.
type Format uint8

const (
	// FormatRFC is RFC 9301's: the digest truncated to 96 or 128 bits, over the message up to the
	// last record. The xTR-ID and Site-ID behind it are not protected.
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

// Where the authentication part stands in a Map-Register, Map-Notify and Map-Notify-Ack.
const (
	authNonceOffset  = 4
	authKeyIDOffset  = 12
	authLengthOffset = 14
	authDataOffset   = 16
)

func (a Auth) append(b []byte) ([]byte, error) {
	if len(a.Data) > 1<<16-1 {
		return nil, fmt.Errorf("%w: %d bytes of authentication data", ErrUnencodable, len(a.Data))
	}
	b = append(b, a.KeyID, uint8(a.Algorithm))
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Data)))
	return append(b, a.Data...), nil
}

func (r *reader) auth() Auth {
	a := Auth{KeyID: r.u8(), Algorithm: Algorithm(r.u8())}
	if p := r.bytes(int(r.u16())); len(p) > 0 {
		a.Data = bytes.Clone(p)
	}
	return a
}

// hash is the hash function of a's HMAC and the length of the truncated digest in bytes.
func (a Algorithm) hash() (h func() hash.Hash, truncated int, err error) {
	switch a {
	case AlgHMACSHA1_96:
		return sha1.New, 12, nil
	case AlgHMACSHA256_128, AlgHMACSHA256_128_HKDF:
		return sha256.New, 16, nil
	}
	return nil, 0, fmt.Errorf("authentication algorithm %d is not supported", a)
}

// AppendSigned writes m, a Map-Register, Map-Notify or Map-Notify-Ack, behind b as [Append] does, with
// authentication data by k in the place of what m holds. m does not change.
func AppendSigned(b []byte, m Message, k Key) ([]byte, error) {
	out, err := appendSigned(b, m, k)
	if err != nil {
		return b, fmt.Errorf("lisp: sign %T: %w", m, err)
	}
	return out, nil
}

func appendSigned(b []byte, m Message, k Key) ([]byte, error) {
	if k.Secret == "" {
		return nil, errors.New("the key has no secret")
	}
	newHash, n, err := k.Algorithm.hash()
	if err != nil {
		return nil, err
	}
	if k.Format == FormatDeployed {
		n = newHash().Size()
	}
	auth := Auth{KeyID: k.ID, Algorithm: k.Algorithm, Data: make([]byte, n)}
	var unprotected int // bytes at the end that the digest does not cover
	switch v := m.(type) {
	case *MapRegister:
		c := *v
		c.Auth, m = auth, &c
		unprotected = int(bit(c.HasXTRID, lenXTRIDSiteID))
	case *MapNotify:
		c := *v
		c.Auth, m = auth, &c
		unprotected = int(bit(c.HasXTRID, lenXTRIDSiteID))
	case *MapNotifyAck:
		c := *v
		c.Auth, m = auth, &c
		unprotected = int(bit(c.HasXTRID, lenXTRIDSiteID))
	default:
		return nil, errors.New("this type of message bears no authentication data")
	}
	out, err := Append(b, m)
	if err != nil {
		return nil, err
	}
	msg := out[len(b):]
	covered := msg
	if k.Format == FormatRFC {
		covered = msg[:len(msg)-unprotected]
	}
	sum, err := k.digest(msg, saltSalt, covered)
	if err != nil {
		return nil, err
	}
	copy(msg[authDataOffset:authDataOffset+n], sum)
	return out, nil
}

// Verify checks the authentication data of m, a Map-Register, Map-Notify or Map-Notify-Ack, that was
// decoded from the datagram raw. It takes RFC 9301's form and the deployed one, whatever k.Format is: the
// digest may cover the whole message or end with the last record, and be truncated or not. A failure is
// an [ErrAuth].
//
// In the form that ends with the last record nothing protects the xTR-ID and Site-ID. A receiver that
// relies on them requires that the key is known to one xTR only, or that raw was signed in the deployed
// form: [VerifyWhole].
func Verify(raw []byte, m Message, k Key) error {
	if err := verify(raw, m, k, false); err != nil {
		return fmt.Errorf("lisp: verify %T: %w", m, err)
	}
	return nil
}

// VerifyWhole is [Verify] for a receiver that believes what stands behind the last record: it takes only
// digests that cover the whole message.
func VerifyWhole(raw []byte, m Message, k Key) error {
	if err := verify(raw, m, k, true); err != nil {
		return fmt.Errorf("lisp: verify %T: %w", m, err)
	}
	return nil
}

func verify(raw []byte, m Message, k Key, whole bool) error {
	var auth Auth
	switch m := m.(type) {
	case *MapRegister:
		auth = m.Auth
	case *MapNotify:
		auth = m.Auth
	case *MapNotifyAck:
		auth = m.Auth
	default:
		return fmt.Errorf("%w: this type of message bears no authentication data", ErrAuth)
	}
	if k.Secret == "" {
		return fmt.Errorf("%w: the key has no secret", ErrAuth)
	}
	if auth.KeyID != k.ID || auth.Algorithm != k.Algorithm {
		return fmt.Errorf("%w: key %d, algorithm %d instead of key %d, algorithm %d", ErrAuth,
			auth.KeyID, auth.Algorithm, k.ID, k.Algorithm)
	}
	newHash, truncated, err := k.Algorithm.hash()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuth, err)
	}
	n := len(auth.Data)
	if n != truncated && n != newHash().Size() {
		return fmt.Errorf("%w: %d bytes of authentication data", ErrAuth, n)
	}
	records, err := recordsEnd(raw)
	if err != nil || len(raw) < authDataOffset+n {
		return fmt.Errorf("%w: not the datagram of this message", ErrAuth)
	}
	msg := bytes.Clone(raw)
	clear(msg[authDataOffset : authDataOffset+n])
	scopes := [][]byte{msg, msg[:records]}
	if whole || records == len(msg) {
		scopes = scopes[:1]
	}
	for _, covered := range scopes {
		for _, role := range k.saltRoles() {
			sum, err := k.digest(msg, role, covered)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrAuth, err)
			}
			if subtle.ConstantTimeCompare(sum[:n], auth.Data) == 1 {
				return nil
			}
		}
	}
	return ErrAuth
}

// recordsEnd is the length of a message up to the end of its last record.
func recordsEnd(raw []byte) (int, error) {
	r := &reader{b: raw}
	w := r.u32()
	r.bytes(authDataOffset - 4 - 2)
	r.bytes(int(r.u16()))
	r.records(uint8(w), true)
	return r.off, r.err
}

// saltRole says how RFC 9301 section 5.6 is read where it calls the string s of KDF(nonce+PSK, s) "the
// salt": HKDF (RFC 5869) has a salt and a string "info" that serves the same purpose. No second
// implementation is known; we send the literal reading and take both.
type saltRole uint8

const (
	saltSalt saltRole = iota // s is HKDF's salt
	saltInfo                 // s is HKDF's info
)

func (k Key) saltRoles() []saltRole {
	if k.Algorithm == AlgHMACSHA256_128_HKDF {
		return []saltRole{saltSalt, saltInfo}
	}
	return []saltRole{saltSalt}
}

var authSalts = map[Type]string{
	TypeMapRegister:  "Map-Register Authentication",
	TypeMapNotify:    "Map-Notify Authentication",
	TypeMapNotifyAck: "Map-Notify-Ack Authentication",
}

// digest is the untruncated HMAC over covered, a part of msg, whose authentication data is zero.
func (k Key) digest(msg []byte, role saltRole, covered []byte) ([]byte, error) {
	newHash, _, err := k.Algorithm.hash()
	if err != nil {
		return nil, err
	}
	key := []byte(k.Secret)
	if k.Algorithm == AlgHMACSHA256_128_HKDF {
		// "per-msg-key=KDF(nonce+PSK[Key ID],s)" (RFC 9301 section 5.6).
		ikm := append(bytes.Clone(msg[authNonceOffset:authKeyIDOffset]), key...)
		salt, info := []byte(authSalts[Type(msg[0]>>4)]), ""
		if role == saltInfo {
			salt, info = nil, string(salt)
		}
		if key, err = hkdf.Key(sha256.New, ikm, salt, info, sha256.Size); err != nil {
			return nil, fmt.Errorf("derive the message's key: %w", err)
		}
	}
	mac := hmac.New(newHash, key)
	mac.Write(covered)
	return mac.Sum(nil), nil
}
