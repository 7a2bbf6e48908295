package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/xtr/kernel"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// offlineKernel runs packets through the data plane's program, and compares what comes out with what Go made.
type offlineKernel struct {
	t    *kernel.Tester
	hops bool
	low  int // lowest IPv6 MTU
	mtu  int // that the program was told last
}

// What the program does with a packet.
const (
	kernelPass       = "passes it on as it is"
	kernelTranslates = "translates it"
	kernelUp         = "hands it up to Go"
	kernelDrop       = "drops it"
	kernelLarge      = "cannot be asked: the packet is too large for a trial"
)

func newOfflineKernel(c *config.Map646, hops bool) (*offlineKernel, error) {
	t := c.Translator
	if len(t.Explicit) > 0 || len(t.Translatable) > 0 || t.Embed != map646.EmbedRFC || t.Hairpin != map646.HairpinIntrinsic {
		return nil, errors.New("the data plane knows a pool and services: not the keys explicit, translatable, embed and hairpin")
	}
	k := &offlineKernel{hops: hops, low: max(t.LowestMTU6, map646.MinMTU6)}
	var err error
	if k.t, err = kernel.NewTester(t.Pool, c.Services, t.Own...); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *offlineKernel) close() { _ = k.t.Close() }

// run runs a packet of which Go made res, and puts into res what the kernel makes of it, unless that leaves it to Go. mtu
// is what the way on takes; 0 = anything.
func (k *offlineKernel) run(ip []byte, mtu int, res *offlinePacket) error {
	ip = onlyPacket(ip)
	if len(ip) > kernel.MaxTestPacket || len(ip) < 20 {
		res.Kernel = kernelUp
		if len(ip) > kernel.MaxTestPacket {
			res.Kernel = kernelLarge
		}
		return nil
	}
	if mtu == 0 {
		mtu = 65535
	}
	if mtu != k.mtu {
		if err := k.t.SetMTU(mtu, k.low); err != nil {
			return err
		}
		k.mtu = mtu
	}
	out, verdict, err := k.t.Run(ip)
	if err != nil {
		return err
	}
	if verdict == kernel.VerdictUp {
		res.Kernel = kernelUp
		return nil
	}
	inGo := res.Reason
	res.byKernel = true
	switch verdict {
	case kernel.VerdictPass:
		res.Kernel = kernelPass
		if inGo != map646.Unmatched.String() {
			res.Differ = inGo
		}
		res.Reason, res.packets, res.reply = map646.Unmatched.String(), nil, nil
	case kernel.VerdictDrop:
		res.Kernel = kernelDrop
		if len(res.packets) > 0 || inGo == map646.Unmatched.String() {
			res.Differ = inGo
		}
		res.packets, res.reply = nil, nil
	case kernel.VerdictTranslated:
		res.Kernel = kernelTranslates
		if k.hops {
			decrement(out)
		}
		switch {
		case len(res.packets) != 1:
			res.Differ = fmt.Sprintf("%s, %d packets", inGo, len(res.packets))
		case !samePacket(out, res.packets[0]):
			res.Differ = fmt.Sprintf("% x, not % x", res.packets[0], out)
		}
		res.packets, res.reply = [][]byte{out}, nil
	}
	return nil
}

// onlyPacket is b without what follows the packet on the wire.
func onlyPacket(b []byte) []byte {
	n := len(b)
	switch {
	case n >= 20 && b[0]>>4 == 4:
		n = int(binary.BigEndian.Uint16(b[2:]))
	case n >= 40 && b[0]>>4 == 6:
		n = 40 + int(binary.BigEndian.Uint16(b[4:]))
	}
	return b[:min(n, len(b))]
}

// decrement is a router's hop.
func decrement(b []byte) {
	if b[0]>>4 == 6 {
		b[7]--
		return
	}
	b[8]--
	b[10], b[11] = 0, 0
	var sum uint32
	for h := b[:int(b[0]&15)*4]; len(h) > 0; h = h[2:] {
		sum += uint32(binary.BigEndian.Uint16(h))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
}

// samePacket compares packets, but for the identification of an IPv4 packet that is no fragment, which each chooses
// for itself (RFC 7915 section 5.1), and the checksum that covers it.
func samePacket(a, b []byte) bool {
	if len(a) != len(b) || a[0] != b[0] {
		return false
	}
	if a[0]>>4 == 4 && binary.BigEndian.Uint16(a[6:])&0x3fff == 0 {
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:10], b[6:10]) && bytes.Equal(a[12:], b[12:])
	}
	return bytes.Equal(a, b)
}
