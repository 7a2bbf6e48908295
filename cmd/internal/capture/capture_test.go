package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var when = time.Date(2011, 8, 6, 13, 37, 42, 123456789, time.UTC)

// frames are some frames with what is expected when they are read.
func frames() []Packet {
	var out []Packet
	for i, n := range []int{60, 1, 1514, 0, 65549} {
		data := make([]byte, n)
		for j := range data {
			data[j] = byte(i + j*7)
		}
		out = append(out, Packet{Number: i + 1, Time: when.Add(time.Duration(i) * 1001 * time.Microsecond), Link: LinkEthernet, Data: data, Length: n + i})
	}
	return out
}

func readAll(t testing.TB, b []byte) ([]Packet, error) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	var all []Packet
	for {
		p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		p.Data = bytes.Clone(p.Data)
		all = append(all, p)
	}
}

// written is the packets in a file that another implementation writes.
func written(t testing.TB, ps []Packet, how string) []byte {
	t.Helper()
	var b bytes.Buffer
	info := func(p Packet) gopacket.CaptureInfo {
		return gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Data), Length: p.Length}
	}
	switch how {
	case "pcap", "pcap in nanoseconds":
		w := pcapgo.NewWriter(&b)
		if how != "pcap" {
			w = pcapgo.NewWriterNanos(&b)
		}
		if err := w.WriteFileHeader(262144, layers.LinkTypeEthernet); err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			if err := w.WritePacket(info(p), p.Data); err != nil {
				t.Fatal(err)
			}
		}
	case "pcapng":
		w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			if err := w.WritePacket(info(p), p.Data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

var formats = []string{"pcap", "pcap in nanoseconds", "pcapng"}

func TestReadsWhatOthersWrite(t *testing.T) {
	for _, how := range formats {
		t.Run(how, func(t *testing.T) {
			want := frames()
			if how == "pcap" {
				for i := range want {
					want[i].Time = want[i].Time.Truncate(time.Microsecond)
				}
			}
			got, err := readAll(t, written(t, want, how))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestOthersReadWhatIsWritten(t *testing.T) {
	for _, nanos := range []bool{false, true} {
		var b bytes.Buffer
		w, err := NewWriter(&b, LinkRaw, nanos)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range frames() {
			if err := w.Write(p.Time, p.Data); err != nil {
				t.Fatal(err)
			}
		}
		r, err := pcapgo.NewReader(&b)
		if err != nil {
			t.Fatal(err)
		}
		if r.LinkType() != layers.LinkTypeRaw {
			t.Errorf("link type %d", r.LinkType())
		}
		for _, p := range frames() {
			data, ci, err := r.ReadPacketData()
			if err != nil {
				t.Fatal(err)
			}
			want := p.Time
			if !nanos {
				want = want.Truncate(time.Microsecond)
			}
			if !bytes.Equal(data, p.Data) || !ci.Timestamp.Equal(want) || ci.Length != len(p.Data) {
				t.Errorf("packet %d: %+v", p.Number, ci)
			}
		}
	}
}

// However a file is cut, what is whole is read, and the packet that is not is named.
func TestCutFiles(t *testing.T) {
	for _, how := range formats {
		t.Run(how, func(t *testing.T) {
			want := frames()[:3]
			whole := written(t, want, how)
			ends := 0 // cuts at which the file still ends like a whole one
			for n := range whole {
				got, err := readAll(t, whole[:n])
				if err == nil {
					ends++
					continue
				}
				if name := fmt.Sprintf("packet %d:", len(got)+1); len(got) > 0 && !strings.Contains(err.Error(), name) {
					t.Fatalf("cut to %d bytes: %v, want it to name %s", n, err, name)
				}
				if len(got) > len(want) {
					t.Fatalf("cut to %d bytes: %d packets", n, len(got))
				}
			}
			// Behind the head, behind each packet but the last; in pcapng behind the interface, too.
			if most := len(want) + 1; ends < len(want) || ends > most {
				t.Errorf("%d cuts pass for whole files, want %d to %d", ends, len(want), most)
			}
		})
	}
}

func TestBrokenFiles(t *testing.T) {
	good := written(t, frames()[:1], "pcap")
	ng := written(t, frames()[:1], "pcapng")
	change := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	packet := bytes.Index(ng, []byte{6, 0, 0, 0}) // of the enhanced packet block
	for name, tc := range map[string]struct {
		file []byte
		want string
	}{
		"empty":                   {nil, "the file is empty"},
		"no capture":              {[]byte("GIF89a"), "neither pcap nor pcapng"},
		"head cut":                {good[:10], "the file ends after 6 of 20 bytes of the head of the file"},
		"version":                 {change(good, 4, 3), "pcap version 3.4"},
		"length":                  {change(good, 24+8, 0, 0, 0, 1), "packet 1: 16777216 bytes captured"},
		"byte order":              {change(ng, 8, 0), "is no byte order"},
		"pcapng version":          {change(ng, 12, 9), "pcapng version 9.0"},
		"block length":            {change(ng, packet+4, 1), "packet 1: a block of"},
		"block length at the end": {change(ng, len(ng)-4, 4), "packet 1: a block of"},
		"interface":               {change(ng, packet+8, 7), "packet 1: is of interface 7"},
		"captured":                {change(ng, packet+20, 0xff), "bytes captured, in a block of"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(t, tc.file)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// ngFile builds a pcapng file by hand, in either byte order: what other implementations do not write.
type ngFile struct {
	order binary.AppendByteOrder
	b     []byte
}

func (f *ngFile) block(typ uint32, body ...byte) {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	f.b = f.order.AppendUint32(f.b, typ)
	f.b = f.order.AppendUint32(f.b, uint32(12+len(body)))
	f.b = append(f.b, body...)
	f.b = f.order.AppendUint32(f.b, uint32(12+len(body)))
}

func (f *ngFile) section() {
	body := f.order.AppendUint32(nil, ngByteOrder)
	body = f.order.AppendUint16(body, 1)
	body = append(body, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255)
	f.block(ngSection, body...)
}

func (f *ngFile) iface(link LinkType, snaplen uint32, resolution byte, offset int64) {
	body := f.order.AppendUint16(nil, uint16(link))
	body = append(body, 0, 0)
	body = f.order.AppendUint32(body, snaplen)
	body = f.order.AppendUint16(body, 2) // its name, which is not looked at
	body = f.order.AppendUint16(body, 3)
	body = append(body, 'a', 'n', 'y', 0)
	body = f.order.AppendUint16(body, ngOptResolution)
	body = f.order.AppendUint16(body, 1)
	body = append(body, resolution, 0, 0, 0)
	body = f.order.AppendUint16(body, ngOptOffset)
	body = f.order.AppendUint16(body, 8)
	body = f.order.AppendUint64(body, uint64(offset))
	f.block(ngIface, append(body, 0, 0, 0, 0)...)
}

func (f *ngFile) packet(iface uint32, stamp uint64, data string) {
	body := f.order.AppendUint32(nil, iface)
	body = f.order.AppendUint32(body, uint32(stamp>>32))
	body = f.order.AppendUint32(body, uint32(stamp))
	body = f.order.AppendUint32(body, uint32(len(data)))
	body = f.order.AppendUint32(body, uint32(len(data)))
	f.block(ngEnhanced, append(body, data...)...)
}

func TestPCAPNG(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		f := &ngFile{order: order}
		f.section()
		f.block(4, 1, 2, 3) // name resolution
		f.iface(LinkRaw, 0, 9, 0)
		f.iface(LinkLinuxSLL, 4, 0x80|10, 1000)
		f.packet(1, 5<<10|512, "five and a half")
		f.packet(0, 7_000_000_001, "nanosecond")
		f.block(ngSimple, append(order.AppendUint32(nil, 3), 'a', 'b', 'c')...)
		old := order.AppendUint16(nil, 1)
		old = append(old, 0, 0)
		old = order.AppendUint32(old, 0)
		old = order.AppendUint32(old, 1<<10)
		old = order.AppendUint32(old, 2)
		old = order.AppendUint32(old, 9)
		f.block(ngPacket, append(old, 'o', 'l')...)
		f.section()
		f.iface(LinkIPv6, 0, 6, 0)
		f.packet(0, 1, "section two")
		want := []Packet{
			{1, time.Unix(1005, 5e8).UTC(), LinkLinuxSLL, []byte("five and a half"), 15},
			{2, time.Unix(7, 1).UTC(), LinkRaw, []byte("nanosecond"), 10},
			{3, time.Unix(0, 0).UTC(), LinkRaw, []byte("abc"), 3},
			{4, time.Unix(1001, 0).UTC(), LinkLinuxSLL, []byte("ol"), 9},
			{5, time.Unix(0, 1000).UTC(), LinkIPv6, []byte("section two"), 11},
		}
		got, err := readAll(t, f.b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%v: %s", order, d)
		}
	}
}

// An interface of the section before is not known in the next one.
func TestSectionsHaveTheirOwnInterfaces(t *testing.T) {
	f := &ngFile{order: binary.LittleEndian}
	f.section()
	f.iface(LinkRaw, 0, 6, 0)
	f.section()
	f.packet(0, 1, "lost")
	if _, err := readAll(t, f.b); err == nil || !strings.Contains(err.Error(), "packet 1: is of interface 0, of which nothing is said") {
		t.Errorf("%v", err)
	}
}

func TestReadErrorIsToldFromTheEnd(t *testing.T) {
	broken := errors.New("the disk is gone")
	whole := written(t, frames()[:1], "pcap")
	r, err := NewReader(io.MultiReader(bytes.NewReader(whole[:30]), errorReader{broken}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "packet 1") {
		t.Errorf("%v", err)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzReader(f *testing.F) {
	for _, how := range formats {
		f.Add(written(f, frames()[:3], how))
	}
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		ng := &ngFile{order: order}
		ng.section()
		ng.iface(LinkRaw, 8, 9, -1)
		ng.packet(0, 1<<62, "abcdefghijkl")
		f.Add(ng.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := readAll(t, b)
		if err != nil {
			return
		}
		for i, p := range all {
			if p.Number != i+1 || len(p.Data) > maxBlock || p.Length < len(p.Data) {
				t.Fatalf("packet %d of %d: number %d, %d bytes of %d", i+1, len(all), p.Number, len(p.Data), p.Length)
			}
			if head, ip, ok := p.Link.Split(p.Data); ok && len(head)+len(ip) != len(p.Data) {
				t.Fatalf("packet %d: %d bytes are parted into %d and %d", i+1, len(p.Data), len(head), len(ip))
			}
		}
	})
}
