package slowpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// fakeTranslator notes what it is asked, and answers by a function; what that does not know is unmatched.
type fakeTranslator struct {
	mu     sync.Mutex
	asked  []asked
	answer func(packet []byte, o map646.Options) map646.Result
}

type asked struct {
	packet []byte
	o      map646.Options
}

func (f *fakeTranslator) Translate(packet []byte, o map646.Options) map646.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.Scratch = nil
	r := f.answer(packet, o)
	if r.Reason != map646.Unmatched {
		f.asked = append(f.asked, asked{bytes.Clone(packet), o})
	}
	return r
}

// instead answers a packet of one version with others.
func instead(version byte, out ...[]byte) func([]byte, map646.Options) map646.Result {
	return func(packet []byte, _ map646.Options) map646.Result {
		if packet[0]>>4 != version {
			return map646.Result{}
		}
		return map646.Result{Reason: map646.Translated46, Packets: out}
	}
}

// refuse answers a packet of one version with a reason and an ICMP error.
func refuse(version byte, why map646.Reason, reply []byte) func([]byte, map646.Options) map646.Result {
	return func(packet []byte, _ map646.Options) map646.Result {
		if packet[0]>>4 != version {
			return map646.Result{}
		}
		return map646.Result{Reason: why, Reply: reply}
	}
}

func translating(answer func([]byte, map646.Options) map646.Result) (Config, *fakeTranslator) {
	f := &fakeTranslator{answer: answer}
	cfg := bothGateways
	cfg.Translator = f
	return cfg, f
}

// What is translated goes to where its new destination is, as a packet of this host: not as transit, which might be
// taken for LISP.
func TestTranslatedGoesDown(t *testing.T) {
	for name, flags := range map[string]fib.UpFlags{"from upstream": 0, "from the underlay": fib.UpTransit | fib.UpReplay} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, two := udp6(t, 100), udp6(t, 200)
				cfg, f := translating(instead(4, one, two))
				in := udp(t, "203.0.113.5", "198.51.100.10", "hello")
				got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate, IID: 7, Flags: flags, Seq: 1444}, nil, append(bytes.Clone(in), 0, 0, 0))
				if len(got) != 2 || !bytes.Equal(got[0].packet, one) || !bytes.Equal(got[1].packet, two) {
					t.Fatalf("%+v", got)
				}
				for _, w := range got {
					if w.Down != (fib.Down{Do: fib.DownForward, IID: 7}) || w.ether != etherTypeIP6 || !bytes.Equal(w.vnet, make([]byte, vnetMinLen)) {
						t.Errorf("%+v", w)
					}
				}
				if c["up_translate"] != 1 || c["translated_sent"] != 2 || c["map646_translated_4to6"] != 1 || c["drop_translate"] != 0 {
					t.Error(c)
				}
				if !bytes.HasPrefix(f.asked[0].packet, in) {
					t.Errorf("asked about % x", f.asked[0].packet)
				}
			})
		})
	}
}

func TestWhatTheTranslatorIsTold(t *testing.T) {
	four, six := udp(t, "203.0.113.5", "198.51.100.10", "hello"), udp6(t, 100)
	for name, tc := range map[string]struct {
		up     fib.Up
		packet []byte
		want   map646.Options
	}{
		"from the Internet":               {fib.Up{Seq: 1400}, four, map646.Options{MTU: 1400, Internet: true}},
		"from the Internet, no MTU known": {fib.Up{}, four, map646.Options{MTU: 1444, Internet: true}},
		"IPv6 from the Internet":          {fib.Up{}, six, map646.Options{Internet: true}},
		"from the cloud":                  {fib.Up{Seq: 1500, Flags: fib.UpTransit}, six, map646.Options{MTU: 1500, BackMTU: 1444}},
		"from the cloud, no MTU known":    {fib.Up{Flags: fib.UpTransit}, six, map646.Options{BackMTU: 1444}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg, f := translating(refuse(tc.packet[0]>>4, map646.DropProtocol, nil))
				tc.up.Reason = fib.UpTranslate
				_, c := serveOne(t, cfg, tc.up, nil, tc.packet)
				if len(f.asked) != 1 {
					t.Fatalf("asked %d times", len(f.asked))
				}
				if d := cmp.Diff(tc.want, f.asked[0].o); d != "" {
					t.Error(d)
				}
				if c["map646_protocol"] != 1 || c["drop_translate"] != 1 {
					t.Error(c)
				}
			})
		})
	}
}

// The translator gets whole packets: checksums that were left to a device are computed, super-packets cut.
func TestPacketsAreCompleteBeforeTheyAreTranslated(t *testing.T) {
	for name, tc := range map[string]struct {
		vnet, packet []byte
		want         int
	}{
		"incomplete":    {[]byte{1, 0, 0, 0, 0, 0, 34, 0, 6, 0}, incomplete(t, udp(t, "203.0.113.5", "198.51.100.10", string(pattern(500)))), 1},
		"super-packet":  {superHeader(gsoTCP4, 20, 1400), incomplete(t, tcp4(t, 20000, true)), 15},
		"datagrams":     {superHeader(gsoUDP, 20, 1000), incomplete(t, udp(t, "203.0.113.5", "198.51.100.10", string(pattern(3001)))), 4},
		"one datagrams": {superHeader(gsoUDP, 20, 1000), incomplete(t, udp(t, "203.0.113.5", "198.51.100.10", string(pattern(900)))), 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				cfg, f := translating(func(packet []byte, _ map646.Options) map646.Result {
					if packet[0]>>4 != 4 {
						return map646.Result{}
					}
					n++ // what goes down tells the order
					return map646.Result{Reason: map646.Translated46, Packets: [][]byte{udp6(t, 48+n)}}
				})
				got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate, Seq: 9000}, tc.vnet, tc.packet)
				if len(f.asked) != tc.want || len(got) != tc.want {
					t.Fatalf("asked %d times, %d went down, want %d: %v", len(f.asked), len(got), tc.want, c)
				}
				for i, a := range f.asked {
					verifyChecksums(t, a.packet)
					if len(got[i].packet) != 48+i+1 {
						t.Errorf("packet %d has %d bytes", i, len(got[i].packet))
					}
				}
			})
		})
	}
}

func TestOffloadsThatAreNoneAreNotTranslated(t *testing.T) {
	for name, tc := range map[string]struct {
		vnet, packet []byte
		want         string
	}{
		"checksum outside":     {[]byte{1, 0, 0, 0, 0, 0, 0xff, 0xff, 6, 0}, tcp4(t, 100, true), "bad_offload"},
		"TCP type, UDP packet": {superHeader(gsoTCP4, 20, 1000), udp(t, "203.0.113.5", "198.51.100.10", string(pattern(3000))), "bad_offload"},
		"no packet":            {superHeader(gsoTCP4, 20, 1000), []byte{0x99, 1, 2, 3}, "bad_packet"},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg, f := translating(instead(4, udp6(t, 100)))
			got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate}, tc.vnet, tc.packet)
			if len(got) != 0 || len(f.asked) != 0 || c[tc.want] != 1 {
				t.Errorf("%s: %v, asked %d times, %v", name, got, len(f.asked), c)
			}
		})
	}
}

func TestNothingIsTranslatedWithoutATranslator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, c := serveOne(t, bothGateways, fib.Up{Reason: fib.UpTranslate}, nil, udp6(t, 100))
		if len(got) != 0 || c["drop_no_translator"] != 1 {
			t.Errorf("%v %v", got, c)
		}
	})
}

// The device may refuse what became of a packet; it is counted, and the next is served.
func TestTranslatedWhenTheDeviceRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(instead(4, udp6(t, 100)))
		k := newFakeKernel(t, 1)
		k.fail = context.DeadlineExceeded
		s := k.start(cfg)
		k.feed(0, fib.Up{Reason: fib.UpTranslate}, nil, tcp4(t, 60, true))
		synctest.Wait()
		if c := s.Counters(); c["drop_write"] != 1 || c["translated_sent"] != 0 {
			t.Error(c)
		}
	})
}

// Senders are told why, where errors to them go anyway: strangers by the host's stack, ours as any packet to them.
func TestRepliesOfTheTranslator(t *testing.T) {
	reply4, reply6 := udp(t, "198.51.100.1", "203.0.113.5", "error"), udp6(t, 99)
	for name, tc := range map[string]struct {
		flags  fib.UpFlags
		packet []byte
		reply  []byte
		want   fib.DownDo
	}{
		"to a stranger":        {0, udp(t, "203.0.113.5", "198.51.100.10", "x"), reply4, fib.DownNative},
		"to one of ours":       {0, udp(t, "2001:db8:e1d::a", "2001:db8:64::1", "x"), reply6, fib.DownForward},
		"behind the underlay":  {fib.UpTransit, udp(t, "203.0.113.5", "198.51.100.10", "x"), reply4, fib.DownForward},
		"ours, in its own LAN": {fib.UpTransit, udp(t, "2001:db8:e1d::a", "2001:db8:64::1", "x"), reply6, fib.DownForward},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg, _ := translating(refuse(tc.packet[0]>>4, map646.DropUnmappedSource, tc.reply))
				cfg.Known = func(e lisp.EID) bool { return netip.MustParsePrefix("2001:db8:e1d::/48").Contains(e.Prefix.Addr()) }
				got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate, IID: 3, Flags: tc.flags}, nil, tc.packet)
				if len(got) != 1 || !bytes.Equal(got[0].packet, tc.reply) || got[0].Down != (fib.Down{Do: tc.want, IID: 3}) {
					t.Fatalf("%+v", got)
				}
				if c["icmp_translate"] != 1 || c["drop_translate"] != 1 || c["map646_unmapped_source"] != 1 {
					t.Error(c)
				}
			})
		})
	}
}

func TestNoReplyOfTheTranslatorAbout(t *testing.T) {
	later := ip4("203.0.113.5", "198.51.100.10", layers.IPProtocolUDP)
	later.FragOffset = 10
	for name, b := range map[string][]byte{
		"a later fragment":  pkt(t, later, gopacket.Payload(pattern(64))),
		"a multicast":       udp(t, "203.0.113.5", "224.0.0.9", "x"),
		"no source":         udp(t, "0.0.0.0", "198.51.100.10", "x"),
		"an ICMP error":     pkt(t, ip4("203.0.113.5", "198.51.100.10", layers.IPProtocolICMPv4), gopacket.Payload([]byte{3, 1, 0, 0, 0, 0, 0, 0})),
		"what is no packet": {0x45, 0, 0, 99, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg, _ := translating(refuse(4, map646.DropProtocol, udp6(t, 99)))
			got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate}, nil, b)
			if len(got) != 0 || c["icmp_ineligible"] != 1 || c["icmp_translate"] != 0 {
				t.Errorf("%s: %v %v", name, got, c)
			}
		})
	}
}

// One limit is for all ICMP errors together.
func TestRepliesOfTheTranslatorAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(func(packet []byte, _ map646.Options) map646.Result {
			if !bytes.Equal(packet[16:20], []byte{198, 51, 100, 10}) {
				return map646.Result{} // the errors themselves
			}
			return map646.Result{Reason: map646.DropTooBig, Reply: udp6(t, 99)}
		})
		k := newFakeKernel(t, 1)
		s := k.start(cfg)
		for i := range 100 {
			k.feed(0, fib.Up{Reason: fib.UpTTL, Port: 1}, nil, udp(t, "203.0.113.5", "198.51.100.10", fmt.Sprint(i)))
			k.feed(0, fib.Up{Reason: fib.UpTranslate}, nil, udp(t, "203.0.113.5", "198.51.100.10", fmt.Sprint(i)))
		}
		synctest.Wait()
		if n := len(k.take()); n != icmpHostBurst {
			t.Errorf("%d errors to one sender at once", n)
		}
		if n := s.Counters()["icmp_limited"]; n != 200-icmpHostBurst {
			t.Errorf("%d limited", n)
		}
	})
}

// The sender of a super-packet that does not fit is told once, not for each of its packets.
func TestOneReplyForASuperPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(refuse(4, map646.DropTooBig, udp6(t, 99)))
		got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate, Seq: 1300}, superHeader(gsoTCP4, 20, 1400), tcp4(t, 20000, true))
		if len(got) != 1 || c["icmp_translate"] != 1 || c["map646_too_big"] != 15 {
			t.Errorf("%d packets, %v", len(got), c)
		}
	})
}

// Services that are one another's insides would send a packet round between the kernel and Go for ever.
func TestWhatIsTranslatedForEverIsDropped(t *testing.T) {
	to := func(dst string) []byte { return udp(t, "2001:db8:f::5", dst, "x") }
	chain := func(dsts ...string) func([]byte, map646.Options) map646.Result {
		return func(packet []byte, _ map646.Options) map646.Result {
			at := slices.Index(dsts, netip.AddrFrom16([16]byte(packet[24:40])).String())
			if at < 0 || at+1 == len(dsts) {
				return map646.Result{}
			}
			return map646.Result{Reason: map646.Translated66, Packets: [][]byte{to(dsts[at+1])}}
		}
	}
	for name, tc := range map[string]struct {
		chain []string
		down  int
	}{
		"once":    {[]string{"2001:db8::a", "2001:db8::b"}, 1},
		"twice":   {[]string{"2001:db8::a", "2001:db8::b", "2001:db8::c"}, 1},
		"a ring":  {[]string{"2001:db8::a", "2001:db8::b", "2001:db8::a"}, 0},
		"to self": {[]string{"2001:db8::a", "2001:db8::a"}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg, _ := translating(chain(tc.chain...))
			got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTranslate}, nil, to("2001:db8::a"))
			if len(got) != tc.down || c["drop_translate_loop"] != uint64(1-tc.down) {
				t.Errorf("%s: %d went down, %v", name, len(got), c)
			}
		})
	}
}

// A packet that was translated and then found too big is answered in the family in which it was sent.
func TestOurErrorsAreTranslated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := udp(t, "198.51.100.1", "203.0.113.5", "too big, in IPv4")
		cfg, f := translating(func(packet []byte, _ map646.Options) map646.Result {
			if packet[0]>>4 != 6 || packet[6] != protoICMP6 {
				return map646.Result{}
			}
			return map646.Result{Reason: map646.Translated64, Packets: [][]byte{told}}
		})
		cfg.Known = func(e lisp.EID) bool { return !e.Prefix.Addr().Is4() }
		got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTooBig, Seq: 1400}, nil, udp6(t, 1500))
		if len(got) != 1 || !bytes.Equal(got[0].packet, told) || got[0].Down != (fib.Down{Do: fib.DownNative}) || got[0].ether != etherTypeIP4 {
			t.Fatalf("%+v", got)
		}
		if c["icmp_too_big"] != 1 || c["map646_translated_6to4"] != 1 {
			t.Error(c)
		}
		verifyChecksums(t, f.asked[0].packet)
		if f.asked[0].o != (map646.Options{}) {
			t.Errorf("%+v", f.asked[0].o)
		}
	})
}

func TestOurErrorsThatAreNotTranslated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(refuse(6, map646.DropUnmappedSource, udp6(t, 99)))
		got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTTL}, nil, udp6(t, 1500))
		if len(got) != 0 || c["icmp_untranslated"] != 1 || c["icmp_time_exceeded"] != 0 {
			t.Errorf("%v %v", got, c)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(func([]byte, map646.Options) map646.Result { return map646.Result{} })
		got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTTL}, nil, udp6(t, 1500))
		if len(got) != 1 || c["icmp_time_exceeded"] != 1 {
			t.Errorf("%v %v", got, c)
		}
	})
}

// pingFragments are the fragments of an echo request of n bytes of data, each of at most most bytes of it.
func pingFragments(t testing.TB, n, most int) (whole []byte, fragments [][]byte) {
	ip := ip4("203.0.113.5", "198.51.100.10", layers.IPProtocolICMPv4)
	whole = pkt(t, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1, Seq: 2}, gopacket.Payload(pattern(n)))
	for off := 0; off < len(whole)-20; off += most {
		piece := whole[20+off : min(20+off+most, len(whole))]
		f := append(bytes.Clone(whole[:20]), piece...)
		field := uint16(off / 8)
		if 20+off+most < len(whole) {
			field |= moreFragments
		}
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[6:], field)
		sumHeader4(f[:20])
		fragments = append(fragments, f)
	}
	return whole, fragments
}

// piecewise refuses fragments of ICMP, as the translator does, and translates the rest.
func piecewise(out []byte) func([]byte, map646.Options) map646.Result {
	return func(packet []byte, _ map646.Options) map646.Result {
		switch {
		case packet[0]>>4 != 4:
			return map646.Result{}
		case binary.BigEndian.Uint16(packet[6:])&0x3fff != 0:
			return map646.Result{Reason: map646.DropICMPFragment}
		}
		return map646.Result{Reason: map646.Translated46, Packets: [][]byte{out}}
	}
}

func TestFragmentedICMPIsTranslatedWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := udp6(t, 100)
		cfg, f := translating(piecewise(out))
		k := newFakeKernel(t, 1)
		s := k.start(cfg)
		whole, fragments := pingFragments(t, 4000, 1480)
		slices.Reverse(fragments)
		for i, b := range fragments {
			k.feed(0, fib.Up{Reason: fib.UpTranslate, Seq: 1444}, nil, b)
			synctest.Wait()
			rows, err := s.Shows()["translations"](t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(k.take()); n != i/(len(fragments)-1) {
				t.Fatalf("%d went down after %d fragments", n, i+1)
			}
			if i == 0 {
				if r := rows.([]ShowTranslation); len(r) != 1 || r[0].What != "reassembly: waiting" || r[0].Packets != 1 || r[0].Bytes < len(b) {
					t.Errorf("%+v", r)
				}
			}
		}
		last := f.asked[len(f.asked)-1]
		if !bytes.Equal(last.packet, whole) || last.o.Largest != 1500 || last.o.MTU != 1444 {
			t.Errorf("asked about %d bytes, %+v", len(last.packet), last.o)
		}
		c := s.Counters()
		if c["reassembly_fragments"] != 3 || c["reassembly_whole"] != 1 || c["drop_translate"] != 0 || c["map646_icmp_fragment"] != 0 || c["map646_translated_4to6"] != 1 {
			t.Error(c)
		}
		rows, err := s.Shows()["translations"](t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]ShowTranslation{{"translated-4to6", 1, 0}, {"reassembly: whole", 1, 0}}, rows); d != "" {
			t.Error(d)
		}
	})
}

// What is never complete goes when its time is over, though nothing else happens.
func TestFragmentedICMPIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(piecewise(udp6(t, 100)))
		cfg.Reassembly.Time = 3 * time.Second
		k := newFakeKernel(t, 1)
		s := k.start(cfg)
		_, fragments := pingFragments(t, 4000, 1480)
		k.feed(0, fib.Up{Reason: fib.UpTranslate}, nil, fragments[0])
		time.Sleep(2900 * time.Millisecond)
		synctest.Wait()
		if n := s.Counters()["reassembly_expired"]; n != 0 {
			t.Fatalf("%d expired too soon", n)
		}
		time.Sleep(100*time.Millisecond + tickEvery)
		synctest.Wait()
		if n := s.Counters()["reassembly_expired"]; n != 1 {
			t.Errorf("%d expired", n)
		}
	})
}

// RFC 7915 section 4.5: the operator is told of UDP without a checksum that is dropped, with addresses and ports; and not
// for every datagram.
func TestUDPWithoutChecksumIsToldTheOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(refuse(4, map646.DropZeroUDPFragment, nil))
		k := newFakeKernel(t, 1)
		var logged bytes.Buffer
		s, err := New(cfg, k.queues, k, slog.New(slog.NewTextHandler(&logged, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		for range 2 {
			for range 3 {
				k.feed(0, fib.Up{Reason: fib.UpTranslate}, nil, udp(t, "203.0.113.5", "198.51.100.10", "x"))
			}
			time.Sleep(noSumEvery)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		const who = `reason=udp-no-checksum-fragment peer=203.0.113.5:1000 for=198.51.100.10:2000`
		lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
		if len(lines) != 2 || !strings.HasSuffix(lines[0], who+" n=1") || !strings.HasSuffix(lines[1], who+" n=3") {
			t.Errorf("logged:\n%s", logged.String())
		}
	})
}

// What is not complete when the slow path ends is dropped, and counted.
func TestFragmentedICMPWhenItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, _ := translating(piecewise(udp6(t, 100)))
		k := newFakeKernel(t, 1)
		s, err := New(cfg, k.queues, k, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		_, fragments := pingFragments(t, 4000, 1480)
		k.feed(0, fib.Up{Reason: fib.UpTranslate}, nil, fragments[0])
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if n := s.Counters()["drop_stopped"]; n != 1 {
			t.Errorf("%d dropped", n)
		}
	})
}

// Every counter has a name of its own.
func TestCountersOfTheTranslator(t *testing.T) {
	s, err := New(Config{}, newFakeKernel(t, 1).queues, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := s.Counters()
	if want := int(counters) + int(map646.NumReasons) + 6; len(c) != want {
		t.Errorf("%d counters, want %d", len(c), want)
	}
	for name := range c {
		if name == "" || name == "map646_" {
			t.Errorf("counter %q", name)
		}
	}
}

// With map646 itself: what comes out is right to the last byte, whichever way the packet takes.
func TestTranslatedByMap646(t *testing.T) {
	var x *map646.Translator
	serve := func(t *testing.T, up fib.Up, vnet, packet []byte) ([]written, map[string]uint64) {
		cfg := bothGateways
		cfg.Translator = x
		up.Reason = fib.UpTranslate
		return serveOne(t, cfg, up, vnet, packet)
	}
	for name, run := range map[string]func(*testing.T){
		"a super-packet to IPv6": func(t *testing.T) {
			got, c := serve(t, fib.Up{Seq: 1444}, superHeader(gsoTCP4, 20, 1300), incomplete(t, tcp4(t, 40+13000, true)))
			if len(got) != 10 || c["map646_translated_4to6"] != 10 {
				t.Fatalf("%d packets, %v", len(got), c)
			}
			var data []byte
			for _, w := range got {
				tcp := decode(t, w.packet).Layer(layers.LayerTypeTCP).(*layers.TCP)
				data = append(data, tcp.Payload...)
			}
			if !bytes.Equal(data, pattern(13000)) {
				t.Error("data differ")
			}
		},
		"a super-packet to IPv4": func(t *testing.T) {
			b := pkt(t, ip6("2001:db8:e1d:1::10", "2001:db8:64::cb00:7109", layers.IPProtocolTCP), &layers.TCP{SrcPort: 5, DstPort: 6, ACK: true}, gopacket.Payload(pattern(5000)))
			got, c := serve(t, fib.Up{Flags: fib.UpTransit}, superHeader(gsoTCP6, 40, 1000), incomplete(t, b))
			if len(got) != 5 || c["map646_translated_6to4"] != 5 {
				t.Fatalf("%d packets, %v", len(got), c)
			}
			for _, w := range got {
				decode(t, w.packet)
				if w.Flags != 0 || w.ether != etherTypeIP4 {
					t.Errorf("%+v", w.Down)
				}
			}
		},
		"a super-packet that does not fit": func(t *testing.T) {
			got, c := serve(t, fib.Up{Seq: 1300}, superHeader(gsoTCP4, 20, 1400), incomplete(t, tcp4(t, 20000, true)))
			if len(got) != 2 || c["icmp_translate"] != 1 || c["translated_sent"] != 1 { // the last of them is small
				t.Fatalf("%d packets, %v", len(got), c)
			}
			m := decode(t, got[0].packet).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if m.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || m.Seq != 1280 {
				t.Errorf("%+v", m)
			}
		},
		"without DF": func(t *testing.T) {
			got, c := serve(t, fib.Up{Seq: 1444}, nil, udp(t, "192.0.2.9", "203.0.113.5", string(pattern(4000))))
			if len(got) != 4 || c["map646_translated_4to6"] != 1 || c["translated_sent"] != 4 {
				t.Fatalf("%d packets, %v", len(got), c)
			}
			for _, w := range got {
				if len(w.packet) > 1280 || w.packet[6] != protoFragment {
					t.Errorf("%d bytes, next header %d", len(w.packet), w.packet[6])
				}
			}
		},
		"from nobody": func(t *testing.T) {
			got, c := serve(t, fib.Up{Flags: fib.UpTransit}, nil, udp(t, "2001:db8:e1d:1::99", "2001:db8:64::cb00:7109", "x"))
			if len(got) != 1 || c["map646_unmapped_source"] != 1 || c["icmp_translate"] != 1 {
				t.Fatalf("%d packets, %v", len(got), c)
			}
			decode(t, got[0].packet)
		},
		"from the Internet to IPv4": func(t *testing.T) {
			got, c := serve(t, fib.Up{}, nil, udp(t, "2001:db8:e1d:1::10", "2001:db8:64::cb00:7109", "x"))
			if len(got) != 0 && c["icmp_translate"] == 0 || c["map646_relay"] != 1 || c["translated_sent"] != 0 {
				t.Fatalf("%d packets, %v", len(got), c)
			}
		},
		"a fragmented ping to IPv4": func(t *testing.T) {
			k := newFakeKernel(t, 1)
			cfg := bothGateways
			cfg.Translator = x
			k.start(cfg)
			whole := pkt(t, ip6("2001:db8:e1d:1::10", "2001:db8:64::cb00:7109", layers.IPProtocolICMPv6),
				&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, gopacket.Payload(pattern(3004)))
			for off := 40; off < len(whole); off += 1232 {
				end := min(off+1232, len(whole))
				b := append(bytes.Clone(whole[:40]), protoICMP6, 0, 0, 0, 0, 0, 0, 7)
				b[6] = protoFragment
				field := uint16(off - 40)
				if end < len(whole) {
					field |= 1
				}
				binary.BigEndian.PutUint16(b[42:], field)
				b = append(b, whole[off:end]...)
				binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
				k.feed(0, fib.Up{Reason: fib.UpTranslate, Flags: fib.UpTransit, Seq: 1500}, nil, b)
			}
			synctest.Wait()
			got := k.take()
			if len(got) != 3 {
				t.Fatalf("%d packets", len(got))
			}
			b := reassemble(t, got, 1280)
			verifyChecksums(t, b)
			if !bytes.Equal(b[24:], whole[44:]) {
				t.Error("data differ")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			x = fuzzTranslator(t)
			synctest.Test(t, run)
		})
	}
}

// What was translated and then found too big ends in an error that its sender understands.
func TestTooBigAfterTranslation(t *testing.T) {
	x := fuzzTranslator(t)
	for name, tc := range map[string]struct {
		packet   []byte
		from, to string
		mtu      uint32
	}{
		"to IPv6": {udp(t, "2001:db8:64::c000:209", "2001:db8:e1d:1::10", string(pattern(1400))), "192.0.2.254", "192.0.2.9", 1280},
		"to IPv4": {tcp4(t, 1500, true), "2001:db8:64::c633:6401", "2001:db8:e1d:1::a", 1320},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := bothGateways
				cfg.Translator = x
				cfg.Known = func(e lisp.EID) bool { return e.Prefix.Addr().Is6() }
				got, c := serveOne(t, cfg, fib.Up{Reason: fib.UpTooBig, Seq: 1300}, nil, tc.packet)
				if len(got) != 1 || c["icmp_too_big"] != 1 {
					t.Fatalf("%d packets, %v", len(got), c)
				}
				p := decode(t, got[0].packet)
				flow := p.NetworkLayer().NetworkFlow()
				if flow.Src().String() != tc.from || flow.Dst().String() != tc.to {
					t.Errorf("%v", flow)
				}
				want, mtu := fib.DownNative, uint32(binary.BigEndian.Uint16(got[0].packet[26:]))
				if got[0].packet[0]>>4 == 6 {
					want, mtu = fib.DownForward, binary.BigEndian.Uint32(got[0].packet[44:])
				}
				if got[0].Do != want || mtu != tc.mtu {
					t.Errorf("%+v, MTU %d", got[0].Down, mtu)
				}
			})
		})
	}
}

// A D-ETR without an IPv6 address speaks to the VMs from the one under which they see its IPv4 address.
func TestErrorsFromTheAddressInThePool(t *testing.T) {
	pool := netip.MustParsePrefix("2001:db8:64::/96")
	x, err := map646.New(map646.Config{Pool: pool, Translatable: []netip.Prefix{netip.PrefixFrom(gateway4, 32)}})
	if err == nil {
		err = x.SetServices(t.Context(), fib.Service{Outside: netip.MustParsePrefix("203.0.113.5/32"), Inside: netip.MustParsePrefix("2001:db8:e1d:1::10/128")})
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{GatewayAddr4: gateway4, GatewayAddr6: map646.Embed(pool, gateway4), Translator: x}
	for name, tc := range map[string]struct {
		up       fib.Up
		packet   []byte
		from, to string
	}{
		"about a packet that was translated": {fib.Up{Reason: fib.UpTooBig, Seq: 1300}, udp(t, "2001:db8:64::c000:209", "2001:db8:e1d:1::10", string(pattern(1400))), "198.51.100.1", "192.0.2.9"},
		"to a VM":                            {fib.Up{Reason: fib.UpTTL, Flags: fib.UpTransit}, udp(t, "2001:db8:e1d:1::10", "2001:db8:64::c000:209", "x"), "2001:db8:64::c633:6401", "2001:db8:e1d:1::10"},
	} {
		synctest.Test(t, func(t *testing.T) {
			got, c := serveOne(t, cfg, tc.up, nil, tc.packet)
			if len(got) != 1 {
				t.Fatalf("%s: %d packets, %v", name, len(got), c)
			}
			flow := decode(t, got[0].packet).NetworkLayer().NetworkFlow()
			if flow.Src().String() != tc.from || flow.Dst().String() != tc.to {
				t.Errorf("%s: %v", name, flow)
			}
		})
	}
}
