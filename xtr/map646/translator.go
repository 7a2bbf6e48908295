package map646

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Translator translates packets. Its methods may be called from any goroutine; Translate never waits for the others.
type Translator struct {
	cfg   Config
	ident identifications

	mu     sync.Mutex // serializes writers of tables
	tables tables
}

// New makes a Translator without services.
func New(cfg Config) (*Translator, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("map646: %w", err)
	}
	t := &Translator{cfg: cfg.complete()}
	t.ident.init()
	t.tables.init(t.cfg.Explicit)
	return t, nil
}

// SetServices adds services, or replaces those with the same Outside. Setting a service that is there already changes
// nothing. An invalid service is an error before anything is done. Should two services have the same Inside, the one
// that was set last is what packets from there are translated by, until it is deleted.
func (t *Translator) SetServices(_ context.Context, services ...fib.Service) error {
	for _, s := range services {
		if err := s.Valid(); err != nil {
			return fmt.Errorf("map646: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tables.set(services)
	return nil
}

// DelServices deletes the services with these Outside prefixes. One that is not there is not an error.
func (t *Translator) DelServices(_ context.Context, outside ...netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range outside {
		t.tables.del(p)
	}
	return nil
}

// Services returns the services, in the order of Outside.
func (t *Translator) Services() []fib.Service {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tables.services()
}

// Options are what the caller knows of one packet and its way on.
type Options struct {
	// MTU is the largest packet in bytes, in the family that it is translated to, that the way on takes. 0 = not known:
	// nothing is too big.
	MTU int
	// BackMTU is the same for the way back, in the family that the packet comes in: it bounds the MTU that a translated
	// ICMP error speaks of. 0 = not known.
	BackMTU int
	// Largest is, for a packet that a Reassembler made whole, its largest fragment in bytes: no fragment that it is cut
	// into again is larger than that becomes. 0 = it was whole.
	Largest int
	// Hop decrements TTL or hop limit, once, and drops what has none left. Without it that is whose forwarding follows.
	Hop bool
	// Internet says that the packet came from outside of the cloud: it is not translated to IPv4, and its source is no VM's
	// even if that is a service address.
	Internet bool
	// Scratch is where the Result is built, for a caller that is done with it before its next packet: with it, no
	// memory is allocated. nil = new memory.
	Scratch *Scratch
}

// Result is what became of a packet.
type Result struct {
	// Packets is what to forward, in this order: none, one, or the fragments. IP packets without anything before them.
	Packets [][]byte
	// Reply is an ICMP error for the sender, in the family that the packet came in, or nil.
	Reply []byte
	// Reason says what was done, or why not.
	Reason Reason
	// In is the Outside of the service, or the V4 of the rule, by which the destination was translated; Out that for the
	// source. In what was not translated, and in pool addresses, they are the zero Prefix.
	In, Out netip.Prefix
}

// Scratch is memory that is used for one Result after the other: a Result is overwritten by the next Translate with
// the same Scratch. The zero value is ready. It must not be used by two calls at the same time.
type Scratch struct {
	buf     []byte   // packets and the reply
	middle  []byte   // the IPv4 packet in the middle of a hairpin
	packets [][]byte // backs Result.Packets
}

// maxGrowth is more than what a packet that is not fragmented grows by.
const maxGrowth = 256

// Translate translates an IP packet: whole, one of a super-packet's segments, checksums complete. What follows its
// length on the wire is ignored. It does not keep packet, and does not change it.
func (t *Translator) Translate(packet []byte, o Options) Result {
	s := o.Scratch
	if s == nil {
		s = new(Scratch)
	}
	s.buf, s.packets = slices.Grow(s.buf[:0], len(packet)+maxGrowth), s.packets[:0]
	c := call{t: t, o: o, s: s, packet: packet}
	return c.run()
}
