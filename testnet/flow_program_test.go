package testnet

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// Addresses of pair.
var (
	pairA4 = netip.MustParseAddr("10.9.0.1")
	pairA6 = netip.MustParseAddr("2001:db8:9::1")
	pairB4 = netip.MustParseAddr("10.9.0.2")
	pairB6 = netip.MustParseAddr("2001:db8:9::2")
)

// programLab is the program of a real guest without the guest: it runs in a namespace.
type programLab struct {
	a, b    *Host
	program string // its file
	proc    *process
	guest   *Guest
}

func newProgramLab(t *testing.T) *programLab {
	t.Helper()
	l := new(programLab)
	_, l.a, l.b = pair(t)
	source, err := guestFiles()
	must(t, err)
	tool, err := findGo()
	must(t, err)
	program, err := buildGuest(t.Context(), tool, t.TempDir(), source)
	must(t, err)
	l.program = filepath.Join(t.TempDir(), "guest")
	must(t, os.WriteFile(l.program, program, 0o755))
	l.start(t)
	t.Cleanup(func() { l.proc.end(syscall.SIGKILL, time.Second) })
	l.guest = NewGuest("b", l.a.ns, pairB4)
	t.Cleanup(func() { must(t, l.guest.Close()) })
	must(t, l.guest.Wait(within(t, 10*time.Second)))
	return l
}

func (l *programLab) start(t *testing.T) {
	t.Helper()
	var err error
	l.proc, err = startProcess(l.b.ns, "b", Spec{Name: "guest", Args: []string{l.program}, Log: filepath.Join(l.b.dir, "guest.log")})
	must(t, err)
}

// flows are a UDP pair in each family, one begun at each side, pings both ways, and TCP both ways.
func (l *programLab) flows(t *testing.T, rate int) *Flows {
	t.Helper()
	f := new(Flows)
	t.Cleanup(func() { must(t, f.Close()) })
	f.AddUDP(UDPFlow{Name: "udp4-a-b", Reverse: "udp4-b-a", A: l.a.ns, B: l.guest, AddrA: pairA4, AddrB: pairB4, Port: 7000, Rate: rate})
	f.AddUDP(UDPFlow{Name: "udp6-b-a", Reverse: "udp6-a-b", A: l.guest, B: l.a.ns, AddrA: pairB6, AddrB: pairA6, Port: 7000, Rate: rate})
	f.AddUDP(UDPFlow{Name: "udp4-b-a-only", A: l.guest, B: l.a.ns, AddrA: pairB4, AddrB: pairA4, Port: 7001, Rate: rate, Size: 24})
	f.AddUDP(UDPFlow{Name: "udp4-a-b-only", A: l.a.ns, B: l.guest, AddrA: pairA4, AddrB: pairB4, Port: 7002, Rate: rate, Size: 1400})
	f.AddPing(PingFlow{Name: "ping4-b-a", From: l.guest, Src: pairB4, Dst: pairA4, Rate: 50})
	f.AddPing(PingFlow{Name: "ping6-b-a", From: l.guest, Src: pairB6, Dst: pairA6, Rate: 50})
	f.AddTCP(TCPFlow{Name: "tcp4-a-b", Reverse: "tcp4-b-a", Client: l.a.ns, Server: l.guest, Addr: pairB4, Port: 8000, BitRate: 4e6, Seed: 1})
	f.AddTCP(TCPFlow{Name: "tcp6-b-a", Reverse: "tcp6-a-b", Client: l.guest, Server: l.a.ns, ClientSrc: pairB6, Addr: pairA6, Port: 8000, BitRate: 4e6, Seed: 2})
	return f
}

// Everything is counted to the packet and the byte, whichever end is in the guest, and though the control connection
// breaks now and then.
func TestGuestProgramCountsExactly(t *testing.T) {
	l := newProgramLab(t)
	f := l.flows(t, 500)
	must(t, f.Start(t.Context()))
	begin := time.Now()
	for range 5 {
		time.Sleep(200 * time.Millisecond)
		must(t, l.guest.Close()) // the next request dials
	}
	// What the guest does not acknowledge is a gap, though its own clock may say otherwise.
	must(t, l.proc.ref.signal(unix.SIGSTOP))
	time.Sleep(150 * time.Millisecond)
	must(t, l.proc.ref.signal(unix.SIGCONT))
	time.Sleep(300 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	reports := f.Report([]Window{{begin, time.Now()}})
	wantNothingLost(t, reports)
	if len(reports) != 12 {
		t.Errorf("%d reports", len(reports))
	}
	for _, r := range reports {
		if r.Received != r.Sent || r.Sent < 50 || r.Reordered != 0 || len(r.Missing) > 0 {
			t.Errorf("%+v", r)
		}
		switch r.Name {
		case "udp4-a-b", "udp4-b-a", "udp6-a-b", "udp6-b-a", "udp4-b-a-only", "tcp4-b-a":
			if r.MaxGapMS < 140 {
				t.Errorf("%s: the guest stood still for 150 ms: gap %v", r.Name, r.MaxGapMS)
			}
		}
	}
}

// A guest that cannot say what it has counted makes a report that is not OK.
func TestGuestThatIsGoneIsSaid(t *testing.T) {
	l := newProgramLab(t)
	f := l.flows(t, 100)
	must(t, f.Start(t.Context()))
	time.Sleep(200 * time.Millisecond)
	l.proc.end(syscall.SIGKILL, time.Second)
	if err := f.Stop(within(t, time.Second)); err == nil || !strings.Contains(err.Error(), "guest b") {
		t.Error(err)
	}
	for _, r := range f.Report(nil) {
		if r.OK() || r.Incomplete == "" {
			t.Errorf("%+v", r)
		}
	}
}

// A guest that has booted again does not answer for what was before.
func TestGuestThatHasBootedAgain(t *testing.T) {
	l := newProgramLab(t)
	f := l.flows(t, 100)
	must(t, f.Start(t.Context()))
	l.proc.end(syscall.SIGKILL, time.Second)
	l.start(t)
	if err := f.Stop(within(t, 10*time.Second)); err == nil || !strings.Contains(err.Error(), "no such session") {
		t.Error(err)
	}
	for _, r := range f.Report(nil) {
		if r.OK() || !strings.Contains(r.Incomplete, "booted") {
			t.Errorf("%+v", r)
		}
	}
}

// What is lost on the way is counted and named, in both directions.
func TestLossesToAndFromAGuest(t *testing.T) {
	l := newProgramLab(t)
	f := new(Flows)
	t.Cleanup(func() { must(t, f.Close()) })
	f.AddUDP(UDPFlow{Name: "there", Reverse: "back", A: l.a.ns, B: l.guest, AddrA: pairA4, AddrB: pairB4, Port: 7000, Rate: 1000})
	must(t, f.Start(t.Context()))
	time.Sleep(200 * time.Millisecond)
	must(t, l.a.ns.Drop("eth0", true))
	time.Sleep(100 * time.Millisecond)
	must(t, l.a.ns.Drop("eth0", false))
	time.Sleep(200 * time.Millisecond)
	must(t, f.Stop(t.Context()))
	for _, r := range f.Report([]Window{}) {
		var missing uint64
		for _, m := range r.Missing {
			missing += m[1] - m[0] + 1
		}
		if r.Lost < 50 || r.Lost != missing || r.Lost != r.Sent-r.Received || r.TesterDrops != 0 || r.Incomplete != "" {
			t.Errorf("%+v", r)
		}
	}
}

// A guest refuses what it does not understand, and says why.
func TestGuestRefuses(t *testing.T) {
	l := newProgramLab(t)
	for _, c := range []struct {
		q    stream.Request
		want string
	}{
		{stream.Request{Op: "dance"}, "no such operation"},
		{stream.Request{Op: stream.OpStart, Session: 7}, "no such session"},
		{stream.Request{Op: stream.OpOpen, Session: 8, Open: []stream.End{{Kind: "pigeon"}}}, "no such kind of end"},
		{stream.Request{Op: stream.OpOpen, Session: 8, Open: []stream.End{{Kind: stream.EndUDP, Out: 1}}}, "rate 0"},
		{stream.Request{Op: stream.OpOpen, Session: 8, Open: []stream.End{{Kind: stream.EndUDP, Local: netip.AddrPortFrom(pairA4, 1), Remote: netip.AddrPortFrom(pairA4, 1)}}}, "bind"},
		{stream.Request{Op: stream.OpDirty, Rate: -1}, "rate"},
		{stream.Request{Op: stream.OpDiskWrite, Disk: "/dev/none", Blocks: 1, Rate: 1}, "/dev/none"},
		{stream.Request{Op: stream.OpDiskWrite, Disk: "/dev/null"}, "positive rate"},
		{stream.Request{Op: stream.OpDiskCheck}, "nothing was written"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := l.guest.ask(ctx, c.q)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.q, err)
		}
	}
	if _, err := l.guest.ask(t.Context(), stream.Request{Op: stream.OpEnd, Session: 9}); err != nil {
		t.Errorf("to end what is not there: %v", err)
	}
}

// Two flows of one guest on one port: the second says so and leaves the first alone.
func TestFlowsInAGuestThatCollide(t *testing.T) {
	l := newProgramLab(t)
	f := new(Flows)
	t.Cleanup(func() { must(t, f.Close()) })
	for range 2 {
		f.AddUDP(UDPFlow{Name: "twin", A: l.guest, B: l.a.ns, AddrA: pairB4, AddrB: pairA4, Port: 7000, Rate: 10})
	}
	if err := f.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	// What did start is closed with it: the port is free again.
	must(t, f.Close())
	again := new(Flows)
	t.Cleanup(func() { must(t, again.Close()) })
	again.AddUDP(UDPFlow{Name: "alone", A: l.guest, B: l.a.ns, AddrA: pairB4, AddrB: pairA4, Port: 7000, Rate: 100})
	must(t, again.Start(t.Context()))
	time.Sleep(100 * time.Millisecond)
	must(t, again.Stop(t.Context()))
	wantNothingLost(t, again.Report(nil))
}

// The sockets here say what was left of a packet's TTL.
func TestUDPSocketTellsHops(t *testing.T) {
	_, a, b := pair(t)
	for _, c := range [][2]netip.Addr{{pairA4, pairB4}, {pairA6, pairB6}} {
		from, err := listenUDP(a.ns, c[0], 7000)
		must(t, err)
		to, err := listenUDP(b.ns, c[1], 7000)
		must(t, err)
		_, err = from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(c[1], 7000))
		must(t, err)
		oob := make([]byte, 256)
		must(t, to.SetReadDeadline(time.Now().Add(5*time.Second)))
		_, n, _, _, err := to.ReadMsgUDPAddrPort(make([]byte, 16), oob)
		must(t, err)
		if got := ancillary(oob[:n]); got.hops != 64 || time.Since(time.Unix(0, got.atNS)) > time.Minute {
			t.Errorf("%v: %+v", c, got)
		}
		must(t, from.Close())
		must(t, to.Close())
	}
}
