package config

import (
	"net/netip"

	"github.com/goccy/go-yaml/token"

	"github.com/tabi-lisp/tabi/lisp"
)

// Parts that several roles' files share.

type rawLocator struct {
	Address  scalar[netip.Addr] `yaml:"address" doc:"the RLOC" req:"1" ex:"192.0.2.1"`
	Priority scalar[uint8]      `yaml:"priority" doc:"lower is preferred, 255 = do not use" def:"1"`
	Weight   scalar[uint8]      `yaml:"weight" doc:"share among RLOCs of equal priority" def:"100"`
}

func locators(p *problems, in []rawLocator, key string) []lisp.Locator {
	var out []lisp.Locator
	for _, r := range in {
		require(p, r.Address, key+".address", r.Priority.tok)
		a := r.Address.V.Unmap()
		for _, o := range out {
			if o.RLOC == a {
				p.at(r.Address.tok, "RLOC %s is listed twice", a)
			}
		}
		out = append(out, lisp.Locator{RLOC: a, Priority: r.Priority.or(1), Weight: r.Weight.or(100), Local: true, Reachable: true})
	}
	return out
}

type rawKey struct {
	ID         scalar[uint8]  `yaml:"id" doc:"key identifier on the wire" def:"1"`
	Algorithm  scalar[string] `yaml:"algorithm" doc:"hmac-sha-256-128 or hmac-sha-1-96" def:"hmac-sha-256-128"`
	Format     scalar[string] `yaml:"format" doc:"deployed: the digest covers the xTR-ID too and is sent whole, as open-source peers do; rfc: as RFC 9301 has it" def:"deployed"`
	Secret     scalar[string] `yaml:"secret" doc:"the shared secret" req:"1" ex:"change-me"`
	Controller scalar[bool]   `yaml:"controller" doc:"Map-Server only: the key of a cloud controller, which registers for other xTRs, and service addresses" def:"false"`
}

func (r rawKey) key(p *problems, parent *token.Token) lisp.Key {
	k := lisp.Key{ID: r.ID.or(1), Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: r.Secret.V}
	if r.Secret.V == "" {
		at := r.Secret.tok
		if at == nil {
			at = parent
		}
		p.at(at, "key: secret is required")
	}
	switch r.Algorithm.or("hmac-sha-256-128") {
	case "hmac-sha-256-128":
	case "hmac-sha-1-96":
		k.Algorithm = lisp.AlgHMACSHA1_96
	default:
		p.at(r.Algorithm.tok, "algorithm %q: want hmac-sha-256-128 or hmac-sha-1-96", r.Algorithm.V)
	}
	switch r.Format.or("deployed") {
	case "deployed":
	case "rfc":
		k.Format = lisp.FormatRFC
	default:
		p.at(r.Format.tok, "format %q: want rfc or deployed", r.Format.V)
	}
	return k
}

type rawServer struct {
	Address scalar[netip.Addr] `yaml:"address" doc:"address of the Map-Server; it is also asked as a Map-Resolver unless map_resolvers is set" req:"1" ex:"192.0.2.53"`
	Key     rawKey             `yaml:"key" doc:"the secret shared with it" req:"1"`
}

type server struct {
	Addr netip.Addr
	Key  lisp.Key
}

func servers(p *problems, in []rawServer, key string) []server {
	var out []server
	for _, r := range in {
		require(p, r.Address, key+".address", r.Key.Secret.tok)
		out = append(out, server{Addr: r.Address.V.Unmap(), Key: r.Key.key(p, r.Address.tok)})
	}
	return out
}

type rawAPI struct {
	Listen scalar[netip.AddrPort] `yaml:"listen" doc:"address and port of the HTTP API" ex:"192.0.2.1:4380"`
	Token  scalar[string]         `yaml:"token" doc:"bearer token that callers must present" ex:"change-me-too"`
}

// API is an HTTP listener; Listen is invalid when there is none.
type API struct {
	Listen netip.AddrPort
	Token  string
}

func (r rawAPI) api(p *problems) API {
	if r.Listen.Set && r.Token.V == "" {
		p.at(r.Listen.tok, "api: a listener needs a token")
	}
	return API{Listen: r.Listen.V, Token: r.Token.V}
}

// eids unwraps a list of EID prefixes and complains of an empty one.
func eids(p *problems, in []scalar[lisp.EID], key string, parent *token.Token) []lisp.EID {
	if len(in) == 0 {
		p.at(parent, "%s is required: at least one prefix", key)
	}
	return values(in)
}

// overhead is what the largest outer header costs: IPv6, UDP and LISP (RFC 9300 section 7.1).
const overhead = 40 + 8 + 8

// innerMTU is the largest packet that fits the tunnel whatever the family of the RLOCs.
func innerMTU(p *problems, underlay scalar[int]) int {
	mtu := underlay.or(1500) - overhead
	if mtu < 1280 || mtu > 65535 {
		p.at(underlay.tok, "underlay_mtu %d: want %d (so that IPv6 fits, RFC 8200 section 5) to %d", underlay.V, 1280+overhead, 65535)
	}
	return mtu
}

func addresses(in []lisp.Locator) []netip.Addr {
	var out []netip.Addr
	for _, l := range in {
		out = append(out, l.RLOC)
	}
	return out
}

// remote marks locators as somebody else's.
func remote(in []lisp.Locator) []lisp.Locator {
	for i := range in {
		in[i].Local = false
	}
	return in
}

func decap(p *problems, s scalar[string]) string {
	switch d := s.or("auto"); d {
	case "auto", "xdp", "tc":
		return d
	}
	p.at(s.tok, "decap %q: want auto, xdp or tc", s.V)
	return ""
}
