package lisp

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func signedSample(t Type) Message {
	records := []Mapping{{EID: mustEID("198.51.100.10"), TTL: 3, Version: 9, Locators: []Locator{
		{RLOC: netip.MustParseAddr("100.64.1.2"), Priority: 1, Weight: 100, Reachable: true}}}}
	id, site := XTRID{0: 0xa1}, SiteID(0x77)
	switch t {
	case TypeMapRegister:
		return &MapRegister{Nonce: 5, Records: records, HasXTRID: true, XTRID: id, SiteID: site}
	case TypeMapNotify:
		return &MapNotify{Nonce: 5, Records: records, HasXTRID: true, XTRID: id, SiteID: site}
	}
	return &MapNotifyAck{Nonce: 5, Records: records, HasXTRID: true, XTRID: id, SiteID: site}
}

func authOf(m Message) Auth {
	switch m := m.(type) {
	case *MapRegister:
		return m.Auth
	case *MapNotify:
		return m.Auth
	case *MapNotifyAck:
		return m.Auth
	}
	return Auth{}
}

func sign(t *testing.T, m Message, k Key) (raw []byte, decoded Message) {
	t.Helper()
	raw, err := AppendSigned(nil, m, k)
	if err != nil {
		t.Fatal(err)
	}
	if decoded, err = Decode(raw); err != nil {
		t.Fatal(err)
	}
	return raw, decoded
}

// The digests were computed by Python's hmac module over messages put together by hand.
func TestAppendSignedGolden(t *testing.T) {
	for _, c := range []struct {
		typ    Type
		alg    Algorithm
		format Format
		digest string
	}{
		{TypeMapRegister, 1, FormatRFC, "941867cadb0c9f62950cbcdc"},
		{TypeMapRegister, 1, FormatDeployed, "3912996a096ee90cdf178d81230780231768200c"},
		{TypeMapRegister, 2, FormatRFC, "587d492483ef85ac3846a132ab11c9cc"},
		{TypeMapRegister, 2, FormatDeployed, "29edcee26b2e1b0f120cf82acbfed8b19ac0156702d01eab5a36556cec2e3599"},
		{TypeMapRegister, 3, FormatRFC, "b72495ed3748e892b80360740f90055b"},
		{TypeMapRegister, 3, FormatDeployed, "bac57beee53875b037521821000cf3b0f9c7af184c11388fae34154f0ff35932"},
		{TypeMapNotify, 1, FormatRFC, "a80f22141d1df608fae65e9a"},
		{TypeMapNotify, 1, FormatDeployed, "50a419787f09a1f6669df49db53642248f93e785"},
		{TypeMapNotify, 2, FormatRFC, "a2f3445fe162765ffdba8fca237cb861"},
		{TypeMapNotify, 2, FormatDeployed, "c80ebe523568654a7235bbc8083fef83aa837d09b504162ff44aed49c07a5662"},
		{TypeMapNotify, 3, FormatRFC, "afe71ad806d4eea0dca5d5e25c8dbe1f"},
		{TypeMapNotify, 3, FormatDeployed, "1cb88a2f4fd82169638ae3311e27a4d27e06ebd211da4a5454678ecb20d5e80f"},
		{TypeMapNotifyAck, 1, FormatRFC, "5533a11fbbb0a097a8000ac5"},
		{TypeMapNotifyAck, 1, FormatDeployed, "cd57113300b4e039b065042f941b522c1144548e"},
		{TypeMapNotifyAck, 2, FormatRFC, "12a868cb7d44171e1c245c4a95f1b0cc"},
		{TypeMapNotifyAck, 2, FormatDeployed, "11b8e6c8814bbb93964617436dcd74e92b030dc1e0251307fabea00620450beb"},
		{TypeMapNotifyAck, 3, FormatRFC, "cb377c4eb3f48adef17ee4ea710767f3"},
		{TypeMapNotifyAck, 3, FormatDeployed, "b9a32a3d761b91ea4271d13c256a6b5e7892d603483ba6a467b5161e82ea2a8e"},
	} {
		t.Run(fmt.Sprintf("%v algorithm %d format %d", c.typ, c.alg, c.format), func(t *testing.T) {
			k := Key{ID: 3, Algorithm: c.alg, Format: c.format, Secret: "secret"}
			m := signedSample(c.typ)
			raw, err := AppendSigned([]byte("before"), m, k)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(signedSample(c.typ), m, cmpOpts); d != "" {
				t.Errorf("the message was changed:\n%s", d)
			}
			raw, ok := bytes.CutPrefix(raw, []byte("before"))
			got, err := Decode(raw)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			auth := authOf(got)
			if hex.EncodeToString(auth.Data) != c.digest || auth.KeyID != 3 || auth.Algorithm != c.alg {
				t.Errorf("key %d, algorithm %d, digest %x; want 3, %d, %s", auth.KeyID, auth.Algorithm, auth.Data, c.alg, c.digest)
			}
			if err := Verify(raw, got, k); err != nil {
				t.Error(err)
			}
		})
	}
}

// resign replaces the digest of raw by one that is n bytes long and covers the message without the last
// unprotected bytes.
func resign(raw []byte, n, unprotected int, digest func([]byte) []byte) []byte {
	old := int(raw[authLengthOffset])<<8 | int(raw[authLengthOffset+1])
	b := append(bytes.Clone(raw[:authDataOffset]), make([]byte, n)...)
	b = append(b, raw[authDataOffset+old:]...)
	b[authLengthOffset], b[authLengthOffset+1] = byte(n>>8), byte(n)
	copy(b[authDataOffset:authDataOffset+n], digest(b[:len(b)-unprotected]))
	return b
}

// Both scopes with both lengths are taken, whatever the key says about sending.
func TestVerifyTakesEveryForm(t *testing.T) {
	for _, typ := range []Type{TypeMapRegister, TypeMapNotify, TypeMapNotifyAck} {
		for _, alg := range []Algorithm{AlgHMACSHA1_96, AlgHMACSHA256_128, AlgHMACSHA256_128_HKDF} {
			for _, format := range []Format{FormatRFC, FormatDeployed} {
				k := Key{ID: 3, Algorithm: alg, Format: format, Secret: "secret"}
				raw, _ := sign(t, signedSample(typ), k)
				newHash, truncated, err := alg.hash()
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range []int{truncated, newHash().Size()} {
					for _, unprotected := range []int{0, lenXTRIDSiteID} {
						what := fmt.Sprintf("%v, algorithm %d, %d bytes, %d unprotected", typ, alg, n, unprotected)
						b := resign(raw, n, unprotected, func(covered []byte) []byte {
							sum, err := k.digest(covered, saltSalt, covered)
							if err != nil {
								t.Fatal(err)
							}
							return sum
						})
						m, err := Decode(b)
						if err != nil {
							t.Fatalf("%s: %v", what, err)
						}
						if err := Verify(b, m, k); err != nil {
							t.Errorf("%s: %v", what, err)
						}
						if err := VerifyWhole(b, m, k); (err == nil) != (unprotected == 0) {
							t.Errorf("%s, whole: %v", what, err)
						}
					}
				}
				for _, n := range []int{0, 1, 11, truncated - 1, truncated + 1, newHash().Size() + 1} {
					b := resign(raw, n, 0, func(covered []byte) []byte {
						sum, _ := k.digest(covered, saltSalt, covered)
						return sum
					})
					m, err := Decode(b)
					if err != nil {
						t.Fatal(err)
					}
					if err := Verify(b, m, k); !errors.Is(err, ErrAuth) {
						t.Errorf("%v, algorithm %d, %d bytes are taken: %v", typ, alg, n, err)
					}
				}
			}
		}
	}
}

// A peer that reads RFC 9301's salt as HKDF's info is understood too.
func TestVerifyTakesInfo(t *testing.T) {
	k := Key{ID: 3, Algorithm: AlgHMACSHA256_128_HKDF, Secret: "secret"}
	raw, _ := sign(t, signedSample(TypeMapRegister), k)
	b := resign(raw, 16, 0, func(covered []byte) []byte {
		key, err := hkdf.Key(sha256.New, append(bytes.Clone(raw[4:12]), "secret"...), nil, "Map-Register Authentication", 32)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(covered)
		return mac.Sum(nil)
	})
	m, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(b, m, k); err != nil {
		t.Error(err)
	}
}

// Any change of a single bit is noticed, but for what the RFC's form leaves unprotected.
func TestVerifyNoticesChanges(t *testing.T) {
	for _, format := range []Format{FormatRFC, FormatDeployed} {
		k := Key{ID: 3, Algorithm: AlgHMACSHA256_128, Format: format, Secret: "secret"}
		raw, _ := sign(t, signedSample(TypeMapRegister), k)
		for i := range len(raw) * 8 {
			b := bytes.Clone(raw)
			b[i/8] ^= 0x80 >> (i % 8)
			m, err := Decode(b)
			if err != nil || m.Type() != TypeMapRegister {
				continue
			}
			protected := format == FormatDeployed || i/8 < len(raw)-lenXTRIDSiteID
			if err := Verify(b, m, k); (err != nil) != protected || err != nil && !errors.Is(err, ErrAuth) {
				t.Errorf("format %d, bit %d of byte %d: %v", format, i%8, i/8, err)
			}
			if err := VerifyWhole(b, m, k); !errors.Is(err, ErrAuth) {
				t.Errorf("format %d, bit %d of byte %d, whole: %v", format, i%8, i/8, err)
			}
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	k := Key{ID: 3, Algorithm: AlgHMACSHA256_128, Secret: "secret"}
	raw, m := sign(t, signedSample(TypeMapRegister), k)
	for what, other := range map[string]Key{
		"secret":    {ID: 3, Algorithm: AlgHMACSHA256_128, Secret: "Secret"},
		"key ID":    {ID: 4, Algorithm: AlgHMACSHA256_128, Secret: "secret"},
		"algorithm": {ID: 3, Algorithm: AlgHMACSHA256_128_HKDF, Secret: "secret"},
		"nothing":   {},
	} {
		if err := Verify(raw, m, other); !errors.Is(err, ErrAuth) {
			t.Errorf("with another %s: %v", what, err)
		}
	}
	for _, short := range [][]byte{nil, raw[:10], raw[:20], raw[:40], {}} {
		if err := Verify(short, m, k); !errors.Is(err, ErrAuth) {
			t.Errorf("of %d bytes: %v", len(short), err)
		}
	}
	if err := Verify(raw, &MapReply{}, k); !errors.Is(err, ErrAuth) {
		t.Errorf("a Map-Reply: %v", err)
	}
	// Nothing is not authentication, neither in the message nor in the key.
	bare := &MapRegister{Nonce: 5}
	b, err := Append(nil, bare)
	if err != nil {
		t.Fatal(err)
	}
	for _, none := range []Key{{}, {Secret: "secret"}, {Algorithm: AlgHMACSHA1_96}, {Algorithm: 99, Secret: "secret"}} {
		if err := Verify(b, bare, none); !errors.Is(err, ErrAuth) {
			t.Errorf("with %+v: %v", none, err)
		}
		if out, err := AppendSigned([]byte("x"), bare, none); err == nil || string(out) != "x" {
			t.Errorf("signed with %+v: %x, %v", none, out, err)
		}
	}
	if out, err := AppendSigned([]byte("x"), &MapReply{}, k); err == nil || string(out) != "x" {
		t.Errorf("a signed Map-Reply: %x, %v", out, err)
	}
	if out, err := AppendSigned([]byte("x"), &MapRegister{Records: make([]Mapping, 1)}, k); !errors.Is(err, ErrUnencodable) || string(out) != "x" {
		t.Errorf("a signed message that has no EID: %x, %v", out, err)
	}
}

// RFC 6830 had a key ID of 16 bits that meant the algorithm: a peer of its time that uses "key 1", SHA-1,
// sends what we read as key 0, algorithm 1.
func TestOldKeyID(t *testing.T) {
	_, m := sign(t, signedSample(TypeMapRegister), Key{ID: 0, Algorithm: AlgHMACSHA1_96, Format: FormatDeployed, Secret: "x"})
	raw, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if got := raw[authKeyIDOffset : authKeyIDOffset+4]; !bytes.Equal(got, []byte{0, 1, 0, 20}) {
		t.Errorf("key ID and length: %x", got)
	}
}

func FuzzVerify(f *testing.F) {
	for _, typ := range []Type{TypeMapRegister, TypeMapNotify, TypeMapNotifyAck} {
		for _, alg := range []Algorithm{AlgHMACSHA1_96, AlgHMACSHA256_128, AlgHMACSHA256_128_HKDF} {
			b, err := AppendSigned(nil, signedSample(typ), Key{ID: 3, Algorithm: alg, Secret: "secret"})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		auth := authOf(m)
		k := Key{ID: auth.KeyID, Algorithm: auth.Algorithm, Secret: "not what the seeds were signed with"}
		if err := Verify(b, m, k); !errors.Is(err, ErrAuth) {
			t.Fatalf("verified with a secret that nobody signed with: %v", err)
		}
		for _, k.Format = range []Format{FormatRFC, FormatDeployed} {
			signed, err := AppendSigned(nil, m, k)
			if err != nil {
				continue // no type or algorithm to sign
			}
			again, err := Decode(signed)
			if err != nil {
				t.Fatal(err)
			}
			if err := Verify(signed, again, k); err != nil {
				t.Fatal(err)
			}
		}
	})
}
