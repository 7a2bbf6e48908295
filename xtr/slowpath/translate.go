package slowpath

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

// Translator is map646, as far as the slow path asks of it. Translate is pure and does not wait; it is
// called from the goroutine of Run only, always with the same Scratch.
type Translator interface {
	Translate(packet []byte, o map646.Options) map646.Result
}

// translation is what the goroutine of Run has for map646; the counters are everybody's to read.
type translation struct {
	scratch     map646.Scratch // of the packet that is served
	again       map646.Scratch // of what is looked at while the other is in use
	reassembler *map646.Reassembler
	reasons     [map646.NumReasons]atomic.Uint64
	reassembly  atomic.Pointer[map646.ReassemblerCounters]
	noSum       uint64    // datagrams without a checksum that were dropped and not told of
	noSumNext   time.Time // when somebody may be told
}

func (x *translation) init(cfg map646.ReassemblerConfig) {
	x.reassembler = map646.NewReassembler(cfg)
	x.publish()
}

// publish shows what the reassembler has counted.
func (x *translation) publish() {
	c := x.reassembler.Counters()
	x.reassembly.Store(&c)
}

// expire lets go of packets whose fragments have not all come in time.
func (x *translation) expire(now time.Time) {
	if x.reassembler.Expire(now) > 0 {
		x.publish()
	}
}

// waits reports whether there is something to expire.
func (x *translation) waits() bool { return !x.reassembler.Next().IsZero() }

// counters adds what was counted to m: what became of packets by map646's reasons, and the reassembly.
func (x *translation) counters(m map[string]uint64) {
	for r := range map646.NumReasons {
		m["map646_"+strings.ReplaceAll(r.String(), "-", "_")] = x.reasons[r].Load()
	}
	c := x.reassembly.Load()
	m["reassembly_fragments"] = c.Fragments
	m["reassembly_whole"] = c.Whole
	m["reassembly_expired"] = c.Expired
	m["reassembly_evicted"] = c.Evicted
	m["reassembly_overlap"] = c.Overlap
	m["reassembly_malformed"] = c.Malformed
}

// serveTranslate translates what the kernel leaves to Go (RFC 7915). What it becomes goes down to be
// forwarded by its new destination, where TTL or hop limit is decremented.
//
// It goes down as what this host sends, not as transit: that it may be for its destination was judged
// before it came up, and a packet that was translated to one of our own RLOCs must not be taken for LISP
// and decapsulated unjudged.
func (s *SlowPath) serveTranslate(f *frame, now time.Time) {
	if s.cfg.Translator == nil {
		s.drop(f, dropNoTranslator)
		return
	}
	if gsoType(f.vnet()) != gsoNone {
		s.translateSegments(f, now)
		return
	}
	if !complete(f) {
		s.drop(f, badOffload)
		return
	}
	s.translate(f, f.packet(), true, now)
	f.free()
}

// translateSegments translates the packets of a super-packet, in order, and frees it. Its sender, whose
// stack made one packet of many, is told about the first that does not pass, as by [SlowPath.answerError].
func (s *SlowPath) translateSegments(f *frame, now time.Time) {
	p, ok := parsePacket(f.packet(), true)
	if !ok {
		s.drop(f, badPacket)
		return
	}
	told := false
	ok = s.segment(f, p, fib.Down{}, func(g *frame) bool {
		if s.translate(f, g.packet(), !told, now) {
			told = true
		}
		g.free()
		return true
	})
	if !ok {
		s.drop(f, badOffload)
		return
	}
	f.free()
}

// translate translates b, which is what f is, or one of its segments, and sends what it becomes. With
// tell the sender is told why it cannot be; it reports whether there was something to tell.
func (s *SlowPath) translate(f *frame, b []byte, tell bool, now time.Time) (replied bool) {
	o := s.options(f, b)
	r := s.cfg.Translator.Translate(b, o)
	if r.Reason == map646.DropICMPFragment {
		w, ok := s.xlate.reassembler.Take(b, now)
		s.xlate.publish()
		if !ok {
			return false
		}
		b, o.Largest = w.Packet, w.Largest
		r = s.cfg.Translator.Translate(b, o)
	}
	s.xlate.reasons[r.Reason].Add(1)
	switch r.Reason {
	case map646.DropZeroUDP, map646.DropZeroUDPFragment:
		s.tellNoChecksum(r.Reason, b, now)
	}
	if !r.Reason.Translated() {
		s.counts.inc(dropTranslate)
	}
	for _, t := range r.Packets {
		s.sendTranslated(f, t)
	}
	if r.Reply != nil && tell {
		s.sendReply(f, b, r.Reply, now)
	}
	return r.Reply != nil
}

// noSumEvery is how often an operator is told of datagrams without a checksum, at most.
const noSumEvery = time.Minute

// tellNoChecksum tells the operator who sends UDP without a checksum that is dropped for it (RFC 7915 section
// 4.5): the one event of the packet path that is logged, since only that sender's operator can mend it.
func (s *SlowPath) tellNoChecksum(why map646.Reason, b []byte, now time.Time) {
	x := &s.xlate
	x.noSum++
	if now.Before(x.noSumNext) {
		return
	}
	f, _ := map646.FlowOf(b)
	s.log.Warn("UDP without a checksum is not translated", "reason", why.String(), "peer", f.Src.String(), "for", f.Dst.String(), "n", x.noSum)
	x.noSum, x.noSumNext = 0, now.Add(noSumEvery)
}

// options are what is known of the way of f, whose packet is b.
func (s *SlowPath) options(f *frame, b []byte) map646.Options {
	o := map646.Options{MTU: int(f.up.Seq), Scratch: &s.xlate.scratch}
	if f.up.Flags&fib.UpTransit != 0 {
		o.BackMTU = s.cfg.MTU
	} else {
		o.Internet = true
	}
	if o.MTU == 0 && len(b) > 0 && b[0]>>4 == 4 {
		o.MTU = s.cfg.MTU // IPv6 goes to the VMs, through the tunnel
	}
	return o
}

// sendTranslated sends b, which is what f became, to where its destination is.
func (s *SlowPath) sendTranslated(f *frame, b []byte) {
	if s.goesRound(b) {
		s.counts.inc(dropTranslateLoop)
		return
	}
	if s.sendPacket(f, fib.Down{Do: fib.DownForward, IID: f.up.IID}, b) {
		s.counts.inc(translatedSent)
	}
}

// maxTranslations is how often a packet may be translated on its way through this host: a simple hairpin is
// twice.
const maxTranslations = 4

// goesRound reports whether b would be translated again and again, as by services that are one another's
// insides. Each time it would come up and go down, and no TTL ends that.
func (s *SlowPath) goesRound(b []byte) bool {
	o := map646.Options{Scratch: &s.xlate.again}
	for range maxTranslations {
		r := s.cfg.Translator.Translate(b, o)
		if len(r.Packets) == 0 {
			return false
		}
		b, o.Scratch = r.Packets[0], nil // b lies in the memory of the one before
	}
	return true
}

// sendReply sends the translator's ICMP error about b to its sender.
func (s *SlowPath) sendReply(f *frame, b, reply []byte, now time.Time) {
	p, ok := parsePacket(b, false)
	if !ok {
		// RFC 7915 sections 4.4 and 5.4 have errors about what is well formed and is not translated.
		s.counts.inc(icmpIneligible)
		return
	}
	switch {
	case !eligible(b, p):
		s.counts.inc(icmpIneligible)
	case !s.icmp.take(p.src, now):
		s.counts.inc(icmpLimited)
	default:
		if s.sendPacket(f, s.toSender(f, p.src), reply) {
			s.counts.inc(icmpTranslate)
		}
	}
}

// sendPacket writes a copy of b by the queue of f. It reports whether the device took it.
func (s *SlowPath) sendPacket(f *frame, d fib.Down, b []byte) bool {
	if len(b) == 0 || f.q.vnetLen+etherLen+len(b) > maxFrame {
		s.counts.inc(dropTooBig)
		return false
	}
	g := newPacketFrame(f.q, d, b[0]>>4 == 6, len(b))
	copy(g.packet(), b)
	return s.write(g)
}

// sendOwn sends g, an ICMP error of ours about f, and frees it. An error about a packet that was
// translated before it came up is for an address that is translated, too: the sender's, in the family in
// which it sent.
func (s *SlowPath) sendOwn(f, g *frame, sent counter) {
	if s.cfg.Translator != nil {
		r := s.cfg.Translator.Translate(g.packet(), map646.Options{Scratch: &s.xlate.scratch})
		if r.Reason != map646.Unmatched {
			g.free()
			s.xlate.reasons[r.Reason].Add(1)
			if !r.Reason.Translated() {
				s.counts.inc(icmpUntranslated)
			}
			for _, b := range r.Packets {
				p, ok := parsePacket(b, false)
				if ok && s.sendPacket(f, s.toSender(f, p.dst), b) {
					s.counts.inc(sent)
				}
			}
			return
		}
	}
	if s.write(g) {
		s.counts.inc(sent)
	}
}

// ShowTranslation is a row of the "translations" table: what became of the packets that the kernel left to
// Go, and what of fragmented ICMP waits for the rest.
type ShowTranslation struct {
	What    string `json:"what"` // a reason of map646, or "reassembly ..."
	Packets uint64 `json:"packets"`
	Bytes   int    `json:"bytes,omitempty"` // of memory, of what waits
}

func (s *SlowPath) showTranslations(time.Time) []ShowTranslation {
	var rows []ShowTranslation
	for r := range map646.NumReasons {
		if n := s.xlate.reasons[r].Load(); n > 0 {
			rows = append(rows, ShowTranslation{What: r.String(), Packets: n})
		}
	}
	c := s.xlate.reassembler.Counters()
	packets, bytes := s.xlate.reassembler.Held()
	for _, row := range []ShowTranslation{
		{"reassembly: waiting", uint64(packets), bytes},
		{"reassembly: whole", c.Whole, 0},
		{"reassembly: not complete in time", c.Expired, 0},
		{"reassembly: made room", c.Evicted, 0},
		{"reassembly: overlapping", c.Overlap, 0},
		{"reassembly: malformed fragments", c.Malformed, 0},
	} {
		if row.Packets > 0 {
			rows = append(rows, row)
		}
	}
	return rows
}
