package map646

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

// BenchmarkTranslate translates vectors of each kind with 10 and with 100,000 services.
func BenchmarkTranslate(b *testing.B) {
	in := map[string]vectors.Vector{}
	for _, v := range vectors.All() {
		in[v.Name] = v
	}
	for _, services := range []int{0, 100_000} {
		tr := newTranslator(b, cloudConfig(), append(manyServices(services), cloudServices()...)...)
		for _, name := range []string{"udp", "size-1480-df", "size-1261-no-df", "error-unreachable", "6-tcp", "6-error-of-router", "hairpin", "66-in", "npt-out"} {
			b.Run(fmt.Sprintf("%s/%d", name, services+len(vectors.Services)), func(b *testing.B) {
				v, s := in[name], new(Scratch)
				b.SetBytes(int64(len(v.In)))
				b.ReportAllocs()
				for b.Loop() {
					if r := tr.Translate(v.In, Options{Scratch: s}); !r.Reason.Translated() {
						b.Fatal(r.Reason)
					}
				}
			})
		}
	}
}

// BenchmarkSetServices loads services into an empty translator, and then moves one.
func BenchmarkSetServices(b *testing.B) {
	all := manyServices(100_000)
	b.Run("100000", func(b *testing.B) {
		for b.Loop() {
			newTranslator(b, cloudConfig(), all...)
		}
	})
	b.Run("one-of-100000", func(b *testing.B) {
		tr := newTranslator(b, cloudConfig(), all...)
		s := all[7]
		for i := 0; b.Loop(); i++ {
			s.Inside = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 15: byte(i)}), 128)
			if err := tr.SetServices(context.Background(), s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// manyServices are n services of hosts, one after the other.
func manyServices(n int) (out []fib.Service) {
	for i := range n {
		v4 := [4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)}
		v6 := [16]byte{0x20, 1, 0xd, 0xb8, 0xe, 0x1d, 0xaa, 13: v4[1], 14: v4[2], 15: v4[3]}
		out = append(out, fib.Service{Outside: netip.PrefixFrom(netip.AddrFrom4(v4), 32), Inside: netip.PrefixFrom(netip.AddrFrom16(v6), 128)})
	}
	return out
}
