package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// Tester translates single packets with the program that the data plane consists of, without interfaces, routes or
// anything pinned (bpf(2), BPF_PROG_TEST_RUN). It is for one goroutine at a time.
type Tester struct {
	d    *DataPlane
	out  []byte
	opts ebpf.RunOptions
}

// Verdict is what became of a packet in a [Tester].
type Verdict uint8

const (
	// VerdictPass: no service speaks of the packet; it would be forwarded as it is.
	VerdictPass Verdict = iota
	// VerdictTranslated: it was translated.
	VerdictTranslated
	// VerdictUp: the kernel leaves it to Go, as it is.
	VerdictUp
	// VerdictDrop: the kernel would drop it.
	VerdictDrop
)

var verdictNames = [...]string{"pass", "translated", "up", "drop"}

// String is the verdict's name.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// MaxTestPacket is the length in bytes of the largest packet that a [Tester] takes.
const MaxTestPacket = 3000

// NewTester loads the program with a pool prefix, which may be the zero Prefix, and services. own are the cloud's
// aggregates: an IPv6 source is given its service address only in packets that leave them. It needs root.
func NewTester(pool netip.Prefix, services []fib.Service, own ...netip.Prefix) (_ *Tester, err error) {
	cfg := Config{PinDir: "none", Anchor: true, Pool: pool, Capacity: len(services) + 1, LowestMTU6: 1280}
	for _, p := range own {
		cfg.Own = append(cfg.Own, lisp.MakeEID(0, p))
	}
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("kernel: tester: %w", err)
	}
	d := &DataPlane{cfg: cfg, log: slog.New(slog.NewTextHandler(io.Discard, nil)), quit: make(chan struct{})}
	t := &Tester{d: d, out: make([]byte, 14+MaxTestPacket+256)}
	if err := t.open(services); err != nil {
		return nil, fmt.Errorf("kernel: tester: %w", errors.Join(err, d.close()))
	}
	return t, nil
}

func (t *Tester) open(services []fib.Service) error {
	d := t.d
	spec, err := loadTabi()
	if err != nil {
		return err
	}
	d.size(spec)
	spec.Programs = map[string]*ebpf.ProgramSpec{"translate": spec.Programs["translate"]}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	d.maps, d.progs = coll.Maps, coll.Programs
	d.door.index = 1 // what is redirected goes nowhere
	if err := d.readHZ(); err != nil {
		return err
	}
	if err := d.configure(); err != nil {
		return err
	}
	d.fib, d.services = newTable(d), newServiceTable(d)
	d.conf.TranslateRate, d.conf.TTLRate = 1<<30, 1<<30
	if err := t.SetMTU(65535, 1280); err != nil {
		return err
	}
	if err := d.SetServices(context.Background(), services...); err != nil {
		return err
	}
	head := make([]byte, 192) // struct __sk_buff
	t.opts = ebpf.RunOptions{Context: head}
	return nil
}

// SetMTU says what the way on takes: the largest packet in bytes, in the family that it is translated to, and
// [Config.LowestMTU6]. Until it is called they are 65535 and 1280.
func (t *Tester) SetMTU(mtu, lowest6 int) error {
	t.d.conf.MTU, t.d.conf.Lowest6 = uint32(mtu), uint32(lowest6)
	if err := t.d.maps["conf"].Put(uint32(0), t.d.conf); err != nil {
		return fmt.Errorf("kernel: tester: %w", err)
	}
	return nil
}

// Close frees the program.
func (t *Tester) Close() error { return t.d.Close() }

// Run translates an IP packet of at most [MaxTestPacket] bytes, which comes from inside the cloud or from outside as
// the addresses ask for. It does not change packet; out is a new slice. TTL or hop limit stay: one of at most 1 goes up.
func (t *Tester) Run(packet []byte) (out []byte, v Verdict, err error) {
	out, up, v, err := t.run(packet)
	if err == nil && v == VerdictUp && up.Reason != fib.UpTranslate && up.Reason != fib.UpTTL {
		err = fmt.Errorf("kernel: tester: handed up for reason %d", up.Reason)
	}
	return out, v, err
}

func (t *Tester) run(packet []byte) (out []byte, u fib.Up, v Verdict, err error) {
	if len(packet) < 20 || len(packet) > MaxTestPacket {
		return nil, u, 0, fmt.Errorf("kernel: tester: a packet of %d bytes: want 20 to %d", len(packet), MaxTestPacket)
	}
	if packet[0]>>4 == 6 && len(packet) < 40 {
		return nil, u, VerdictDrop, nil // the kernel would not even run the program
	}
	f := make([]byte, 14, 14+len(packet))
	f[12], f[13] = 0x08, 0x00
	if packet[0]>>4 == 6 {
		f[12], f[13] = 0x86, 0xdd
	}
	f = append(f, packet...)
	t.opts.Data, t.opts.DataOut = f, t.out
	rc, err := t.d.progs["translate"].Run(&t.opts)
	if err != nil {
		return nil, u, 0, fmt.Errorf("kernel: tester: a packet of %d bytes: %w", len(packet), err)
	}
	const unspec, ok, shot, redirect = -1, 0, 2, 7
	out = slices.Clone(t.opts.DataOut)
	switch int32(rc) {
	case unspec:
		return out[14:], u, VerdictPass, nil
	case ok:
		return trim(out[14:]), u, VerdictTranslated, nil
	case shot:
		return nil, u, VerdictDrop, nil
	case redirect:
		u, _ = fib.DecodeUp(out)
		return out[14:], u, VerdictUp, nil
	}
	return nil, u, 0, fmt.Errorf("kernel: tester: the program said %d", int32(rc))
}

// trim cuts off what is behind a sound IP packet.
func trim(b []byte) []byte {
	n := int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 == 6 {
		n = 40 + int(binary.BigEndian.Uint16(b[4:]))
	}
	return b[:min(n, len(b))]
}
