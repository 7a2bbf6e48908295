package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/cmd/internal/capture"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/cmd/internal/map646conf"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
)

type translateOptions struct {
	config  string
	link    string
	hops    bool
	replies bool
	kernel  bool
	verbose bool
	json    bool
}

func newMap646TranslateCommand() *cobra.Command {
	var o translateOptions
	c := &cobra.Command{
		Use:   "translate --config FILE < IN.pcap > OUT.pcap",
		Short: "Run the packets of a capture through map646",
		Long: `Reads a capture (pcap or pcapng, of Ethernet, Linux cooked or raw IP) from standard input, translates each
packet as a D-ETR would, and writes what comes out as pcap to standard output, with the same time stamps: the
translated packets, and the ICMP errors for the senders of those that are not translated. Frames without an IP
packet, and packets that no mapping speaks of, do not come out. Standard error says how many packets met which
end, and why. A checksum above IP that is wrong stays wrong, as in captures of what a host sends that leaves
checksums to its network card.

FILE says what is translated: "tabi config example map646" prints one to start from, "tabi config reference map646"
every key. The configuration file of the original map646 will do as well.

With --kernel the packets go through the eBPF program of the data plane first, which leaves to Go what it does not
do itself; it is said which packets those are. What the program translates is compared with what Go makes of it. That
needs root.`,
		Example: `  tabi config example map646 > map646.yaml
  tabi map646 translate --config map646.yaml < in.pcap > out.pcap
  sudo tabi map646 translate --config map646.yaml --kernel -v < in.pcap > out.pcap
  tcpdump -w - -c 100 | tabi map646 translate --config map646.yaml -v | tshark -r -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := translateCapture(o, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("map646 translate: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.config, "config", "", "what is translated (required)")
	f.StringVar(&o.link, "link", "raw", "what comes out: raw (IP packets), or input (frames like those that came in)")
	f.BoolVar(&o.hops, "hops", true, "decrement TTL or hop limit, as the D-ETR's forwarding does")
	f.BoolVar(&o.replies, "replies", true, "write the ICMP errors for senders, too")
	f.BoolVar(&o.kernel, "kernel", false, "through the data plane's program, and through Go what that leaves to it")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say of each packet what became of it, and why")
	f.BoolVar(&o.json, "json", false, "say it in JSON")
	c.MarkFlagRequired("config")
	c.MarkFlagFilename("config", "yaml", "conf")
	c.RegisterFlagCompletionFunc("link", cobra.FixedCompletions([]string{"raw", "input"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// translateCapture reads in, writes out, and says on say what became of what.
func translateCapture(o translateOptions, in io.Reader, out, say io.Writer) error {
	if o.link != "raw" && o.link != "input" {
		return fmt.Errorf("--link %q: want raw or input", o.link)
	}
	c, err := loadMap646(o.config)
	if err != nil {
		return err
	}
	if isTerminal(in) {
		return errors.New("standard input is a terminal: a capture is read from there")
	}
	if isTerminal(out) {
		return errors.New("standard output is a terminal: a capture is written there")
	}
	w, err := newOfflineRun(o, c)
	if err != nil {
		return err
	}
	defer w.close()
	w.say = bufio.NewWriter(say)
	buffered := bufio.NewWriter(out)
	err = w.run(in, buffered)
	return errors.Join(err, buffered.Flush(), w.say.Flush())
}

// loadMap646 reads what is translated: a file of ours, or one of the original map646.
func loadMap646(path string) (*config.Map646, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if isOriginalMap646(string(b)) {
		return loadOriginalMap646(path)
	}
	return config.LoadAs[config.Map646](path)
}

// isOriginalMap646 reports whether the first thing that a file says is a directive of the original map646.
func isOriginalMap646(text string) bool {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch map646conf.Kind(words[0]) {
		case map646conf.Prefix, map646conf.Static, map646conf.Static66, map646conf.Include:
			return true
		}
		return false
	}
	return false
}

// loadOriginalMap646 reads a file of the original map646 and what it includes. All that is wrong is said at once.
func loadOriginalMap646(path string) (*config.Map646, error) {
	lines, err := map646conf.Read(path)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, l := range map646conf.Bad(lines) {
		errs = append(errs, fmt.Errorf("%s: %w", l.At(), l.Error))
	}
	c := &config.Map646{}
	for _, l := range lines {
		if l.Error != nil || l.Same != nil {
			continue
		}
		switch l.Kind {
		case map646conf.Prefix:
			c.Translator.Pool = l.Pool
			if _, err := map646.New(c.Translator); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", l.At(), err))
			}
		case map646conf.Static, map646conf.Static66:
			s := fib.Service{Outside: netip.PrefixFrom(l.Outside, l.Outside.BitLen()), Inside: netip.PrefixFrom(l.Inside, l.Inside.BitLen())}
			if err := s.Valid(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", l.At(), err))
			}
			c.Services = append(c.Services, s)
		}
	}
	return c, errors.Join(errs...)
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// offlineRun is one capture on its way through map646.
type offlineRun struct {
	o      translateOptions
	mtu4   int
	mtu6   int
	t      *map646.Translator
	whole  *map646.Reassembler
	kernel *offlineKernel // nil: Go does all
	memory map646.Scratch // of what became of the packet at hand
	say    *bufio.Writer
	total  offlineTotal
	counts map[string]*offlineReason
}

// offlineTotal is the summary.
type offlineTotal struct {
	Packets    int             `json:"packets"`    // read
	Written    int             `json:"written"`    // replies included
	Replies    int             `json:"replies"`    // ICMP errors to senders that were written
	Incomplete int             `json:"incomplete"` // fragmented ICMP packets of which fragments are missing
	Differ     int             `json:"differ"`     // packets of which the kernel makes something else than Go
	Reasons    []offlineReason `json:"reasons"`
}

type offlineReason struct {
	Reason  string `json:"reason"`
	Packets int    `json:"packets"`
	Kernel  int    `json:"kernel,omitempty"` // of them were the kernel's, the rest Go's
	Why     string `json:"why"`
}

// offlinePacket is what became of one packet.
type offlinePacket struct {
	Packet int       `json:"packet"` // number in the capture, from 1
	Time   time.Time `json:"time"`
	Flow   string    `json:"flow,omitempty"`
	Reason string    `json:"reason"`
	Why    string    `json:"why"`
	Kernel string    `json:"kernel,omitempty"` // with --kernel: what the data plane's program does with it
	Differ string    `json:"differ,omitempty"` // what Go makes of it, when that is something else
	By     []string  `json:"by,omitempty"`     // services and mappings that it was translated by
	Became []string  `json:"became,omitempty"` // the flows of what came out
	Reply  string    `json:"reply,omitempty"`  // the flow of the ICMP error

	packets  [][]byte
	reply    []byte
	byKernel bool // it is done with the packet
}

func newOfflineRun(o translateOptions, c *config.Map646) (*offlineRun, error) {
	t, err := map646.New(c.Translator)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.config, err)
	}
	if err := t.SetServices(context.Background(), c.Services...); err != nil {
		return nil, fmt.Errorf("%s: %w", o.config, err)
	}
	w := &offlineRun{o: o, mtu4: c.MTU4, mtu6: c.MTU6, t: t, whole: map646.NewReassembler(map646.ReassemblerConfig{}), counts: make(map[string]*offlineReason)}
	if o.kernel {
		if w.kernel, err = newOfflineKernel(c, o.hops); err != nil {
			return nil, fmt.Errorf("--kernel: %w", err)
		}
	}
	return w, nil
}

func (w *offlineRun) close() {
	if w.kernel != nil {
		w.kernel.close()
	}
}

func (w *offlineRun) run(in io.Reader, out io.Writer) error {
	r, err := capture.NewReader(in)
	if err != nil {
		return err
	}
	var to *capture.Writer
	link := capture.LinkRaw
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(err, w.finish())
		}
		if !p.Link.Known() {
			return fmt.Errorf("packet %d: frames of link type %d are not known: want Ethernet, Linux cooked or raw IP", p.Number, uint16(p.Link))
		}
		if to == nil {
			if w.o.link == "input" {
				link = p.Link.Out()
			}
			if to, err = capture.NewWriter(out, link, r.Nanos()); err != nil {
				return err
			}
		}
		if w.o.link == "input" && p.Link.Out() != link {
			return fmt.Errorf("packet %d: is of link type %v, those before are of %v: one file holds one: use --link raw", p.Number, p.Link, link)
		}
		if err := w.packet(p, to); err != nil {
			return err
		}
	}
	if to == nil {
		if _, err := capture.NewWriter(out, link, r.Nanos()); err != nil {
			return err
		}
	}
	return w.finish()
}

// packet translates one packet of the capture and writes what comes out.
func (w *offlineRun) packet(p capture.Packet, to *capture.Writer) error {
	w.total.Packets++
	res := offlinePacket{Packet: p.Number, Time: p.Time}
	head, ip, ok := p.Link.Split(p.Data)
	switch {
	case !ok:
		res.Reason = reasonNotIP
	case len(p.Data) < p.Length && cutShort(ip):
		res.Reason = reasonCutShort
	default:
		if err := w.translate(ip, p.Time, &res); err != nil {
			return fmt.Errorf("packet %d: %w", p.Number, err)
		}
	}
	if f, is := map646.FlowOf(ip); ok && is {
		res.Flow = f.String()
	}
	if !w.o.replies {
		res.reply, res.Reply = nil, ""
	}
	res.Why = whyNot[res.Reason]
	w.count(&res)
	all := res.packets
	if res.reply != nil {
		all = append(all, res.reply)
		w.total.Replies++
	}
	for _, b := range all {
		if w.o.link == "input" {
			b = p.Link.Join(nil, head, b)
		}
		if err := to.Write(p.Time, b); err != nil {
			return err
		}
		w.total.Written++
	}
	if w.o.verbose {
		return w.tell(&res)
	}
	return nil
}

func (w *offlineRun) count(p *offlinePacket) {
	c := w.counts[p.Reason]
	if c == nil {
		c = &offlineReason{Reason: p.Reason, Why: p.Why}
		w.counts[p.Reason] = c
	}
	c.Packets++
	if p.byKernel {
		c.Kernel++
	}
	if p.Differ != "" {
		w.total.Differ++
	}
}

// cutShort reports whether the capture has less of an IP packet than its header says.
func cutShort(ip []byte) bool {
	switch {
	case ip[0]>>4 == 4 && len(ip) >= 20:
		return int(ip[2])<<8|int(ip[3]) > len(ip)
	case ip[0]>>4 == 6 && len(ip) >= 40:
		return 40+int(ip[4])<<8+int(ip[5]) > len(ip)
	}
	return true
}

// translate translates an IP packet that was captured at a time.
func (w *offlineRun) translate(ip []byte, at time.Time, res *offlinePacket) error {
	r, o := w.once(ip, 0)
	if r.Reason == map646.DropICMPFragment {
		whole, ok := w.whole.Take(ip, at)
		if !ok {
			res.Reason = reasonFragment
			return w.handUp(ip, o.MTU, res)
		}
		r, o = w.once(whole.Packet, whole.Largest)
	}
	res.Reason = r.Reason.String()
	res.packets, res.reply = r.Packets, r.Reply
	if err := w.handUp(ip, o.MTU, res); err != nil {
		return err
	}
	for _, by := range []netip.Prefix{r.In, r.Out} {
		if by.IsValid() {
			res.By = append(res.By, bareHost(by))
		}
	}
	res.Became = flowsOf(res.packets)
	if f, ok := map646.FlowOf(res.reply); ok {
		res.Reply = fmt.Sprintf("%v, ICMP type %d code %d", f, icmpByte(res.reply, 0), icmpByte(res.reply, 1))
	}
	return nil
}

// handUp lets the kernel have a packet first, with --kernel.
func (w *offlineRun) handUp(ip []byte, mtu int, res *offlinePacket) error {
	if w.kernel == nil {
		return nil
	}
	return w.kernel.run(ip, mtu, res)
}

func flowsOf(packets [][]byte) (out []string) {
	for _, b := range packets {
		if f, ok := map646.FlowOf(b); ok {
			out = append(out, fmt.Sprintf("%v, %d bytes", f, len(b)))
		}
	}
	return out
}

// once translates a packet with the MTU of the family that it is translated to, which is known only when it has been.
func (w *offlineRun) once(ip []byte, largest int) (map646.Result, map646.Options) {
	o := map646.Options{Hop: w.o.hops, Largest: largest, BackMTU: w.mtu4, Scratch: &w.memory}
	if ip[0]>>4 == 6 {
		o.BackMTU = w.mtu6
	}
	r := w.t.Translate(ip, o)
	switch r.Reason {
	case map646.Translated64:
		o.MTU = w.mtu4
	case map646.Translated46, map646.Translated66, map646.Hairpinned:
		o.MTU = w.mtu6
	}
	if o.MTU == 0 {
		return r, o
	}
	return w.t.Translate(ip, o), o
}

// icmpByte is a byte of an ICMP message of the translator's, which has no options or extension headers before it.
func icmpByte(b []byte, at int) byte {
	if b[0]>>4 == 4 {
		return b[20+at]
	}
	return b[40+at]
}

func bareHost(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// tell says what became of a packet.
func (w *offlineRun) tell(p *offlinePacket) error {
	if w.o.json {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.say, "%s\n", b)
		return err
	}
	line := fmt.Sprintf("%d  %s", p.Packet, p.Reason)
	if p.Flow != "" {
		line += ": " + p.Flow
	}
	for _, b := range p.Became {
		line += "; became " + b
	}
	if p.Kernel != "" {
		line += "; kernel: " + p.Kernel
	}
	if p.Differ != "" {
		line += "; Go: " + p.Differ
	}
	if len(p.By) > 0 {
		line += " (by " + strings.Join(p.By, ", ") + ")"
	}
	if len(p.Became) == 0 {
		line += "; " + p.Why
	}
	if p.Reply != "" {
		line += "; the sender is told: " + p.Reply
	}
	_, err := fmt.Fprintln(w.say, line)
	return err
}

// finish says how many packets met which end.
func (w *offlineRun) finish() error {
	w.total.Incomplete, _ = w.whole.Held()
	c := w.whole.Counters()
	w.total.Incomplete += int(c.Expired + c.Evicted)
	w.total.Reasons = []offlineReason{}
	for _, name := range reasonOrder() {
		if c := w.counts[name]; c != nil {
			w.total.Reasons = append(w.total.Reasons, *c)
		}
	}
	var differ error
	if w.total.Differ > 0 {
		differ = fmt.Errorf("of %d packets the kernel makes something else than Go", w.total.Differ)
	}
	if w.o.json {
		return errors.Join(printJSON(w.say, w.total), differ)
	}
	fmt.Fprintf(w.say, "%d packets read, %d written, %d of them ICMP errors for senders\n", w.total.Packets, w.total.Written, w.total.Replies)
	tw := tabwriter.NewWriter(w.say, 2, 8, 2, ' ', 0)
	for _, r := range w.total.Reasons {
		fmt.Fprintf(tw, "  %d\t%s\t", r.Packets, r.Reason)
		if w.kernel != nil {
			fmt.Fprintf(tw, "%d by the kernel, %d by Go\t", r.Kernel, r.Packets-r.Kernel)
		}
		fmt.Fprintln(tw, r.Why)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if w.total.Incomplete > 0 {
		fmt.Fprintf(w.say, "%d fragmented ICMP packets were never complete\n", w.total.Incomplete)
	}
	return differ
}
