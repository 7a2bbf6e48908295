package lisplayer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/tabi-lisp/tabi/lisp"
)

// specimen is a packet and what tshark must show of it: "field=value" in order.
type specimen struct {
	name  string
	frame []byte
	shown []string
}

// tshark is an implementation of the wire formats that is not ours: it reads one of each of our messages
// without a complaint and shows what we put in.
func TestTshark(t *testing.T) {
	specimens := specimens(t)
	dissected := dissect(t, specimens)
	for i, s := range specimens {
		t.Run(s.name, func(t *testing.T) {
			relevant := map[string]bool{}
			for _, f := range s.shown {
				name, _, _ := strings.Cut(f, "=")
				relevant[name] = true
			}
			var got []string
			for _, f := range dissected[i] {
				if strings.HasPrefix(f.Name, "_ws.malformed") || strings.HasPrefix(f.Name, "_ws.expert") {
					t.Errorf("tshark complains: %s %s", f.Name, f.ShowName)
				}
				if strings.HasSuffix(f.Name, ".checksum.status") && f.Show != "1" {
					t.Errorf("tshark finds a bad checksum: %s is %s", f.Name, f.Show)
				}
				if relevant[f.Name] {
					got = append(got, f.Name+"="+f.Show)
				}
			}
			if d := cmp.Diff(s.shown, got); d != "" {
				t.Errorf("tshark shows (-want +got):\n%s", d)
			}
		})
	}
}

// The oracle does complain: a test that cannot fail says nothing.
func TestTsharkComplains(t *testing.T) {
	request, err := lisp.Append(nil, fullRequest())
	if err != nil {
		t.Fatal(err)
	}
	cut := control(t, "cut off", rlocA, rlocB, request[:len(request)-30], nil)
	checksum := control(t, "checksum", rlocA, rlocB, request, nil)
	checksum.frame[len(checksum.frame)-1]++
	for i, fields := range dissect(t, []specimen{cut, checksum}) {
		complaints := 0
		for _, f := range fields {
			if strings.HasPrefix(f.Name, "_ws.malformed") || strings.HasPrefix(f.Name, "_ws.expert") {
				complaints++
			}
		}
		if complaints == 0 {
			t.Errorf("specimen %d passes", i)
		}
	}
}

func fullLocators() []lisp.Locator {
	return []lisp.Locator{
		{RLOC: rlocA, Priority: 1, Weight: 50, MPriority: 255, Local: true, Reachable: true},
		{RLOC: rlocB, Priority: 1, Weight: 40, MPriority: 255},
		{RLOC: rlocB6, Priority: 2, Weight: 60, MPriority: 254, MWeight: 9, Probed: true, Reachable: true},
	}
}

func fullRecords() []lisp.Mapping {
	return []lisp.Mapping{
		{EID: lisp.HostEID(0, web4), TTL: 1440, Version: 0xabc, Authoritative: true, Locators: fullLocators()},
		{EID: lisp.HostEID(0xabcdef, web6), TTL: lisp.TTLLocal, Version: 1, Authoritative: true, Locators: fullLocators()[:1]},
		{EID: lisp.HostEID(7, web4), TTL: 3, Version: 0xfff, Authoritative: true, Locators: fullLocators()[1:2]},
		{EID: lisp.MakeEID(0, netip.MustParsePrefix("2001:db8:e1d::/48")), TTL: 60, Locators: fullLocators()[2:]},
	}
}

func serviceRecords() []lisp.Mapping {
	return []lisp.Mapping{
		lisp.NewService(netip.MustParsePrefix("198.51.100.10/32"), netip.PrefixFrom(web6, 128), 0xabc),
		lisp.NewService(netip.MustParsePrefix("2001:db8:5e::/48"), netip.MustParsePrefix("2001:db8:e1d::/48"), 1),
	}
}

func fullRequest() *lisp.MapRequest {
	reply := fullRecords()[1]
	return &lisp.MapRequest{
		Authoritative: true, PITR: true, SMRInvoked: true, LocalXTR: true,
		Nonce: 0x0102030405060708, SourceEID: lisp.HostEID(7, peer4), ITRRLOCs: []netip.Addr{rlocA, rlocA6},
		Records: []lisp.RequestRecord{{EID: lisp.HostEID(7, web6), Notify: true}, {EID: lisp.HostEID(0, web4)},
			{EID: lisp.MakeEID(0, netip.MustParsePrefix("2001:db8:e1d::/48"))}},
		Reply: &reply, HasXTRID: true, XTRID: xtrID, SiteID: siteID,
	}
}

var (
	xtrID  = lisp.XTRID{0: 0xa1, 7: 7, 15: 0x1a}
	siteID = lisp.SiteID(0x0102030405060708)
)

func specimens(t *testing.T) (ss []specimen) {
	plain := func(m lisp.Message) []byte {
		b, err := lisp.Append(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, outer := range []struct {
		name     string
		src, dst netip.Addr
	}{{"over IPv4", rlocA, rlocB}, {"over IPv6", rlocA6, rlocB6}} {
		add := func(name string, b []byte, shown []string) {
			ss = append(ss, control(t, name+" "+outer.name, outer.src, outer.dst, b, shown))
		}
		request := fullRequest()
		add("map-request", plain(request), showRequest(request))
		smr := &lisp.MapRequest{SMR: true, DontReply: true, Nonce: 1, SourceEID: lisp.HostEID(0, peer6), ITRRLOCs: []netip.Addr{rlocA6},
			Records: []lisp.RequestRecord{{EID: lisp.HostEID(0, web6)}}}
		add("solicit-map-request", plain(smr), showRequest(smr))
		probe := &lisp.MapRequest{Probe: true, Nonce: 1 << 63, ITRRLOCs: []netip.Addr{rlocB}, Records: []lisp.RequestRecord{{EID: lisp.HostEID(0, web4)}}}
		add("rloc probe", plain(probe), showRequest(probe))

		for i, reply := range []*lisp.MapReply{
			{EchoNonce: true, Nonce: 0xfffefdfcfbfaf9f8, Records: fullRecords()},
			{Probe: true, Nonce: 1 << 63, Records: fullRecords()[:1]},
			{Nonce: 2, Records: []lisp.Mapping{{EID: lisp.MakeEID(0, netip.MustParsePrefix("198.51.96.0/22")), TTL: 15, Action: lisp.ActNativelyForward},
				{EID: lisp.HostEID(3, web6), Action: lisp.ActDropAuthFailure}}},
		} {
			add(fmt.Sprintf("map-reply %d", i), plain(reply), showReply(reply))
		}

		// A service is an ordinary locator to it, whose address is a key/value address pair.
		services := &lisp.MapReply{Nonce: 3, Records: serviceRecords()}
		add("services", plain(services), showReply(services))

		for _, alg := range []lisp.Algorithm{lisp.AlgHMACSHA1_96, lisp.AlgHMACSHA256_128, lisp.AlgHMACSHA256_128_HKDF} {
			for _, format := range []lisp.Format{lisp.FormatRFC, lisp.FormatDeployed} {
				k := lisp.Key{ID: 0x5a, Algorithm: alg, Format: format, Secret: "secret"}
				addSigned := func(m lisp.Message, show func(lisp.Message, []byte) []string) {
					b, err := lisp.AppendSigned(nil, m, k)
					if err != nil {
						t.Fatal(err)
					}
					if m, err = lisp.Decode(b); err != nil {
						t.Fatal(err)
					}
					add(fmt.Sprintf("%v algorithm %d format %d", m.Type(), alg, format), b, show(m, b))
				}
				addSigned(&lisp.MapRegister{ProxyReply: true, HasXTRID: true, UseTTL: true, Merge: true, WantMapNotify: true,
					Nonce: 9, Records: fullRecords(), XTRID: xtrID, SiteID: siteID}, showRegister)
				addSigned(&lisp.MapRegister{Security: true, EIDNotify: true, Nonce: 10, Records: fullRecords()[:1]}, showRegister)
				addSigned(&lisp.MapNotify{Nonce: 9, Records: fullRecords(), HasXTRID: true, XTRID: xtrID, SiteID: siteID}, showNotify)
				addSigned(&lisp.MapNotify{Nonce: 9, Records: fullRecords()}, showNotify)
				addSigned(&lisp.MapNotifyAck{Nonce: 9, Records: fullRecords(), HasXTRID: true, XTRID: xtrID, SiteID: siteID}, showAck)
			}
		}
		// tshark 4.0 knows no Map-Notify-Ack; but for the type, it is a Map-Notify.
		notify := &lisp.MapNotify{Nonce: 9, Auth: lisp.Auth{Data: make([]byte, 16)}, Records: fullRecords(), HasXTRID: true, XTRID: xtrID, SiteID: siteID}
		ack := plain(notify.Ack())
		ack[0] = ack[0]&0x0f | uint8(lisp.TypeMapNotify)<<4
		add("map-notify-ack read as a map-notify", ack, showNotify(notify, nil))

		for _, addrs := range [][2]netip.Addr{{rlocA, web4}, {rlocA6, web6}, {rlocA6, web4}, {rlocA, web6}} {
			ecm := &lisp.ECM{DDT: addrs[0].Is4(), Source: netip.AddrPortFrom(addrs[0], 50000), Dest: netip.AddrPortFrom(addrs[1], lisp.ControlPort),
				Inner: plain(request)}
			add(fmt.Sprintf("ecm %v to %v", addrs[0], addrs[1]), plain(ecm), showECM(ecm, request))
		}
	}
	return append(ss, dataSpecimens(t)...)
}

// control is a message in UDP.
func control(t *testing.T, name string, src, dst netip.Addr, message []byte, shown []string) specimen {
	return specimen{name, udp(t, netip.AddrPortFrom(src, lisp.ControlPort), netip.AddrPortFrom(dst, lisp.ControlPort), gopacket.Payload(message)), shown}
}

func dataSpecimens(t *testing.T) (ss []specimen) {
	const etherLen = 14
	for _, inner := range [][2]netip.Addr{{peer4, web4}, {peer6, web6}} {
		packet := udp(t, netip.AddrPortFrom(inner[0], 7), netip.AddrPortFrom(inner[1], 9998), gopacket.Payload("a payload as long as it must be"))[etherLen:]
		for _, outer := range [][2]netip.Addr{{rlocA, rlocB}, {rlocA6, rlocB6}} {
			for _, h := range []lisp.Header{
				{},
				{HasInstance: true, InstanceID: 0xabcdef},
				{NoncePresent: true, EchoNonce: true, Nonce: 0x123456, StatusPresent: true, StatusBits: 0x80000001},
				{VersionPresent: true, SourceVersion: 0xabc, DestVersion: 0x123, HasInstance: true, InstanceID: 7, StatusPresent: true, StatusBits: 5},
			} {
				f := udp(t, netip.AddrPortFrom(outer[0], 61000), netip.AddrPortFrom(outer[1], lisp.DataPort), &Data{Header: h}, gopacket.Payload(packet))
				ss = append(ss, specimen{fmt.Sprintf("data %v in %v %+v", inner[0], outer[0], h), f, showData(h, outer, inner)})
			}
		}
	}
	return ss
}

// What tshark shows, in its order and format.

func field(name string, v any) string { return fmt.Sprintf("%s=%v", name, v) }

func flag(name string, on bool) string {
	if on {
		return name + "=1"
	}
	return name + "=0"
}

func octets(b []byte) string {
	var s []string
	for _, o := range b {
		s = append(s, hex.EncodeToString([]byte{o}))
	}
	return strings.Join(s, ":")
}

// ipField is name with tshark's suffix for the family.
func ipField(name string, a netip.Addr) string {
	if a.Is4() {
		return field(name+"ipv4", a)
	}
	return field(name+"ipv6", a)
}

// eidFields show an address that may be in an instance.
func eidFields(name string, e lisp.EID) []string {
	if e.IID == 0 {
		return []string{ipField(name, e.Prefix.Addr())}
	}
	return []string{field("lisp.lcaf.type", 2), field("lisp.lcaf.iid", e.IID), ipField("lisp.lcaf.iid.", e.Prefix.Addr())}
}

// xtrIDData is the xTR-ID and Site-ID where tshark 4.0 does not know them: as plain bytes.
func xtrIDData(has bool, x lisp.XTRID, s lisp.SiteID) []string {
	if !has {
		return nil
	}
	return []string{field("data.data", octets(binary.BigEndian.AppendUint64(x[:], uint64(s))))}
}

func showRequest(m *lisp.MapRequest) []string {
	reserved := 0
	for mask, on := range map[int]bool{0x2000 << 1: m.LocalXTR, 0x2000: m.DontReply, 0x100000: m.HasXTRID} {
		if on {
			reserved |= mask >> 13
		}
	}
	shown := []string{
		field("lisp.type", 1), flag("lisp.mreq.flags.auth", m.Authoritative), flag("lisp.mreq.flags.mrp", m.Reply != nil),
		flag("lisp.mreq.flags.probe", m.Probe), flag("lisp.mreq.flags.smr", m.SMR), flag("lisp.mreq.flags.pitr", m.PITR),
		flag("lisp.mreq.flags.smri", m.SMRInvoked), fmt.Sprintf("lisp.mreq.res=0x%06x", reserved),
		field("lisp.irc", len(m.ITRRLOCs)-1), field("lisp.records", len(m.Records)), fmt.Sprintf("lisp.nonce=0x%016x", m.Nonce),
	}
	if m.SourceEID.IsValid() {
		shown = append(shown, eidFields("lisp.mreq.srceid_", m.SourceEID)...)
	}
	for _, a := range m.ITRRLOCs {
		shown = append(shown, ipField("lisp.mreq.itr_rloc_", a))
	}
	for _, r := range m.Records {
		notify := "0x00"
		if r.Notify {
			notify = "0x80"
		}
		shown = append(shown, field("lisp.mreq.record.res", notify), field("lisp.mreq.record.prefix.length", r.EID.Prefix.Bits()))
		shown = append(shown, eidFields("lisp.mreq.record.prefix.", r.EID)...)
	}
	if m.Reply != nil {
		shown = append(shown, showRecords([]lisp.Mapping{*m.Reply}, false)...)
	}
	return append(shown, xtrIDData(m.HasXTRID, m.XTRID, m.SiteID)...)
}

func showRecords(ms []lisp.Mapping, probes bool) (shown []string) {
	for _, m := range ms {
		locators, action := len(m.Locators), m.Action
		if m.IsService() {
			locators, action = 1, lisp.ActNone
		}
		shown = append(shown, field("lisp.mapping.ttl", uint32(m.TTL)), field("lisp.mapping.loccnt", locators),
			field("lisp.mapping.eid.masklen", m.EID.Prefix.Bits()), field("lisp.mapping.act", uint8(action)),
			flag("lisp.mapping.auth", m.Authoritative), field("lisp.mapping.ver", uint16(m.Version)))
		shown = append(shown, eidFields("lisp.mapping.eid.", m.EID)...)
		for _, l := range m.Locators {
			shown = append(shown, field("lisp.loc.priority", l.Priority), field("lisp.loc.weight", l.Weight),
				field("lisp.loc.multicast_priority", l.MPriority), field("lisp.loc.multicast_weight", l.MWeight),
				flag("lisp.loc.flags.local", l.Local), flag("lisp.loc.flags.probe", l.Probed && probes),
				flag("lisp.loc.flags.reach", l.Reachable), field("lisp.loc.locator", l.RLOC))
		}
		if m.IsService() {
			shown = append(shown, field("lisp.loc.priority", 255), field("lisp.loc.weight", 0), field("lisp.loc.multicast_priority", 255),
				field("lisp.loc.multicast_weight", 0), flag("lisp.loc.flags.local", false), flag("lisp.loc.flags.probe", false),
				flag("lisp.loc.flags.reach", false), field("lisp.lcaf.type", 15),
				ipField("lisp.lcaf.kv_key.", m.EID.Prefix.Addr()), ipField("lisp.lcaf.kv_value.", m.Inside.Addr()))
		}
	}
	return shown
}

func showReply(m *lisp.MapReply) []string {
	return append([]string{
		field("lisp.type", 2), flag("lisp.mrep.flags.probe", m.Probe), flag("lisp.mrep.flags.enlr", m.EchoNonce),
		flag("lisp.mrep.flags.sec", false), field("lisp.records", len(m.Records)), fmt.Sprintf("lisp.nonce=0x%016x", m.Nonce),
	}, showRecords(m.Records, true)...)
}

// showAuth: tshark has the key ID of RFC 6830, 16 bits, of which RFC 9301 made key ID and algorithm.
func showAuth(a lisp.Auth) []string {
	return []string{fmt.Sprintf("lisp.keyid=0x%02x%02x", a.KeyID, uint8(a.Algorithm)), field("lisp.authlen", len(a.Data)),
		field("lisp.auth", octets(a.Data))}
}

func showRegister(msg lisp.Message, _ []byte) []string {
	m := msg.(*lisp.MapRegister)
	reserved := 0
	for mask, on := range map[int]bool{0x1000: m.EIDNotify, 0x800: m.UseTTL, 0x400: m.Merge} {
		if on {
			reserved |= mask >> 9
		}
	}
	shown := []string{
		field("lisp.type", 3), flag("lisp.mreg.flags.pmr", m.ProxyReply), flag("lisp.mreg.flags.sec", m.Security),
		flag("lisp.mreg.flags.xtrid", m.HasXTRID), fmt.Sprintf("lisp.mreg.res=0x%06x", reserved),
		flag("lisp.mreg.flags.wmn", m.WantMapNotify), field("lisp.records", len(m.Records)), fmt.Sprintf("lisp.nonce=0x%016x", m.Nonce),
	}
	shown = append(append(shown, showAuth(m.Auth)...), showRecords(m.Records, false)...)
	if m.HasXTRID {
		shown = append(shown, field("lisp.xtrid", octets(m.XTRID[:])), field("lisp.siteid", octets(binary.BigEndian.AppendUint64(nil, uint64(m.SiteID)))))
	}
	return shown
}

func showNotify(msg lisp.Message, _ []byte) []string {
	m := msg.(*lisp.MapNotify)
	shown := []string{field("lisp.type", 4), field("lisp.records", len(m.Records)), fmt.Sprintf("lisp.nonce=0x%016x", m.Nonce)}
	shown = append(append(shown, showAuth(m.Auth)...), showRecords(m.Records, true)...)
	return append(shown, xtrIDData(m.HasXTRID, m.XTRID, m.SiteID)...)
}

func showAck(_ lisp.Message, raw []byte) []string {
	return []string{field("lisp.type", 5), field("data.data", octets(raw))}
}

func showECM(m *lisp.ECM, inner *lisp.MapRequest) []string {
	shown := []string{field("lisp.type", 8), flag("lisp.ecm.flags.sec", false), flag("lisp.ecm.flags.ddt", m.DDT)}
	return append(shown, showRequest(inner)...)
}

func showData(h lisp.Header, outer, inner [2]netip.Addr) (shown []string) {
	for _, pair := range [][2]netip.Addr{outer, inner} {
		version := "ip"
		if pair[0].Is6() {
			version = "ipv6"
		}
		shown = append(shown, field(version+".src", pair[0]), field(version+".dst", pair[1]))
		if pair == outer {
			shown = append(shown, field("udp.dstport", lisp.DataPort),
				flag("lisp-data.flags.nonce", h.NoncePresent), flag("lisp-data.flags.lsb", h.StatusPresent), flag("lisp-data.flags.enr", h.EchoNonce),
				flag("lisp-data.flags.mv", h.VersionPresent), flag("lisp-data.flags.iid", h.HasInstance))
			if h.NoncePresent {
				shown = append(shown, fmt.Sprintf("lisp-data.nonce=%d", h.Nonce))
			}
			if h.VersionPresent {
				shown = append(shown, field("lisp-data.srcmapver", uint16(h.SourceVersion)), field("lisp-data.dstmapver", uint16(h.DestVersion)))
			}
			if h.HasInstance {
				shown = append(shown, field("lisp-data.iid", h.InstanceID))
			}
			switch {
			case h.StatusPresent && h.HasInstance:
				shown = append(shown, fmt.Sprintf("lisp-data.lsb8=0x%02x", h.StatusBits))
			case h.StatusPresent:
				shown = append(shown, fmt.Sprintf("lisp-data.lsb=0x%08x", h.StatusBits))
			}
		}
	}
	return append(shown, field("udp.dstport", 9998))
}

// pdmlField is an element of tshark's PDML, with those inside it.
type pdmlField struct {
	Name     string      `xml:"name,attr"`
	Show     string      `xml:"show,attr"`
	ShowName string      `xml:"showname,attr"`
	Protos   []pdmlField `xml:"proto"`
	Fields   []pdmlField `xml:"field"`
}

// flat is f and all fields inside it, in order.
func (f pdmlField) flat() []pdmlField {
	all := []pdmlField{f}
	for _, in := range [][]pdmlField{f.Protos, f.Fields} {
		for _, g := range in {
			all = append(all, g.flat()...)
		}
	}
	return all
}

// dissect runs tshark over the frames and returns the fields of each.
func dissect(t *testing.T, ss []specimen) [][]pdmlField {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "specimens.pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(1<<16-1, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i, s := range ss {
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(s.frame), Length: len(s.frame)}
		if err := w.WritePacket(ci, s.frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "tshark", "-n", "-r", path, "-T", "pdml",
		"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")
	cmd.Env = append(os.Environ(), "HOME="+dir) // nobody's preferences
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("tshark (Debian package tshark): %v\n%s", err, stderr.String())
	}
	var pdml struct {
		Packets []pdmlField `xml:"packet"`
	}
	if err := xml.Unmarshal(stdout.Bytes(), &pdml); err != nil {
		t.Fatalf("tshark's output: %v", err)
	}
	if len(pdml.Packets) != len(ss) {
		t.Fatalf("tshark shows %d packets of %d", len(pdml.Packets), len(ss))
	}
	all := make([][]pdmlField, len(ss))
	for i, p := range pdml.Packets {
		all[i] = p.flat()
	}
	return all
}
