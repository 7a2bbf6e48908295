package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/control"
	"github.com/tabi-lisp/tabi/testnet/simnet"
)

var (
	rlocA  = netip.MustParseAddrPort("100.64.1.2:4342")
	rlocA6 = netip.MustParseAddrPort("[2001:db8:100:1::2]:4342")
	rlocB  = netip.MustParseAddrPort("100.64.2.2:4342")
	rlocB6 = netip.MustParseAddrPort("[2001:db8:100:2::2]:4342")
	web    = lisp.HostEID(0, netip.MustParseAddr("198.51.100.10"))
)

var byValue = cmp.Options{cmpopts.EquateComparable(lisp.EID{}, netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

func listen(t *testing.T, n *simnet.Network, addrs ...netip.AddrPort) (conns []net.PacketConn) {
	t.Helper()
	for _, a := range addrs {
		c, err := n.Listen(a)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	return conns
}

// run starts e; the packets come out of the channel. stop ends it and returns what Run returned.
func run(e *control.Endpoint) (packets chan control.Packet, stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	packets = make(chan control.Packet, 100)
	done := make(chan error)
	go func() { done <- e.Run(ctx, func(p control.Packet) { packets <- p }) }()
	return packets, func() error { cancel(); return <-done }
}

func encode(t *testing.T, m lisp.Message) []byte {
	t.Helper()
	b, err := lisp.Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestSendReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		n.SetPath(simnet.Path{Delay: time.Millisecond})
		a := control.New(quiet(), listen(t, n, rlocA, rlocA6)...)
		b := control.New(quiet(), listen(t, n, rlocB, rlocB6)...)
		_, stopA := run(a)
		packets, stopB := run(b)

		request := &lisp.MapRequest{Nonce: 7, ITRRLOCs: []netip.Addr{rlocA.Addr()}, Records: []lisp.RequestRecord{{EID: web}}}
		inner := encode(t, request)
		ecm := &lisp.ECM{Source: rlocA, Dest: netip.AddrPortFrom(web.Prefix.Addr(), lisp.ControlPort), Inner: inner}
		reply := &lisp.MapReply{Nonce: 7, Records: []lisp.Mapping{{EID: web, Action: lisp.ActNativelyForward}}}
		mapped := netip.AddrPortFrom(netip.AddrFrom16(rlocB.Addr().As16()), rlocB.Port())
		for _, s := range []struct {
			to   netip.AddrPort
			b    []byte
			want control.Packet
		}{
			{rlocB, inner, control.Packet{Msg: request, Raw: inner, From: rlocA}},
			{rlocB6, inner, control.Packet{Msg: request, Raw: inner, From: rlocA6}},
			{mapped, encode(t, reply), control.Packet{Msg: reply, Raw: encode(t, reply), From: rlocA}},
			{rlocB6, encode(t, ecm), control.Packet{Msg: request, Raw: inner, From: rlocA6, ECM: ecm}},
		} {
			if err := a.Send(s.to, s.b); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.want, <-packets, byValue); d != "" {
				t.Fatalf("sent to %v (-want +got):\n%s", s.to, d)
			}
		}
		want := map[string]uint64{"sent/map-request": 2, "sent/map-reply": 1, "sent/ecm": 1}
		if d := cmp.Diff(want, a.Counters()); d != "" {
			t.Errorf("sender's counters (-want +got):\n%s", d)
		}
		want = map[string]uint64{"received/map-request": 3, "received/map-reply": 1, "received/ecm": 1}
		if d := cmp.Diff(want, b.Counters()); d != "" {
			t.Errorf("receiver's counters (-want +got):\n%s", d)
		}
		for _, stop := range []func() error{stopA, stopB} {
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		if err := a.Send(rlocB, inner); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after the end: %v", err)
		}
	})
}

func TestDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		var log bytes.Buffer
		e := control.New(slog.New(slog.NewTextHandler(&log, nil)), listen(t, n, rlocA)...)
		packets, stop := run(e)
		peer := listen(t, n, rlocB)[0]
		good := encode(t, &lisp.MapReply{Nonce: 1, Records: []lisp.Mapping{{EID: web}}})
		afi := bytes.Clone(good)
		afi[12+10+1] = 99 // the EID's address family
		inECM := func(m []byte) []byte {
			return encode(t, &lisp.ECM{Source: rlocB, Dest: rlocA, Inner: m})
		}
		checksum := inECM(good)
		checksum[len(checksum)-1]++
		for range 1000 {
			for _, b := range [][]byte{nil, good[:20], {0xf0}, afi, checksum, inECM(inECM(good)), inECM(good[:5])} {
				if _, err := peer.WriteTo(b, net.UDPAddrFromAddrPort(rlocA)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		want := map[string]uint64{
			"dropped/truncated": 3000, "dropped/unknown-type": 1000, "dropped/unknown-afi": 1000, "dropped/malformed": 2000,
		}
		if d := cmp.Diff(want, e.Counters()); d != "" {
			t.Errorf("counters (-want +got):\n%s", d)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 4 {
			t.Errorf("%d log lines for 4 reasons at one moment:\n%s", lines, log.String())
		}
		time.Sleep(31 * time.Second)
		for range 10 {
			if _, err := peer.WriteTo(afi, net.UDPAddrFromAddrPort(rlocA)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if lines := strings.Count(log.String(), "\n"); lines != 5 || !strings.Contains(log.String(), "unknown-afi") {
			t.Errorf("%d log lines after half a minute:\n%s", lines, log.String())
		}
		if err := e.Send(rlocB6, good); err == nil {
			t.Error("sent from no RLOC")
		}
		if err := e.Send(rlocB, nil); err == nil {
			t.Error("sent nothing")
		}
		if got := e.Counters()["dropped/no-rloc-of-family"]; got != 1 {
			t.Errorf("%d counted as without an RLOC", got)
		}
		if len(packets) != 0 {
			t.Errorf("%d messages were handed on", len(packets))
		}
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// While the handler is busy the messages wait, and the end of the context still ends Run.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		e := control.New(quiet(), listen(t, n, rlocA, rlocA6)...)
		peer := control.New(quiet(), listen(t, n, rlocB, rlocB6)...)
		busy, most, handled := 0, 0, 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- e.Run(ctx, func(control.Packet) {
				busy++
				most = max(most, busy)
				time.Sleep(time.Second)
				busy--
				handled++
			})
		}()
		b := encode(t, &lisp.MapReply{})
		for range 10 {
			for _, to := range []netip.AddrPort{rlocA, rlocA6} {
				if err := peer.Send(to, b); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(15*time.Second + time.Millisecond)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if most != 1 || handled < 15 || handled > 17 {
			t.Errorf("%d at a time, %d handled in 15 s of 1 s each", most, handled)
		}
		_, stop := run(peer)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// brokenConn fails to read as a socket does whose interface is gone.
type brokenConn struct {
	net.PacketConn
	reads int
}

func (c *brokenConn) ReadFrom([]byte) (int, net.Addr, error) {
	c.reads++
	return 0, nil, errors.New("network is down")
}

func TestBrokenSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		broken := &brokenConn{PacketConn: listen(t, n, rlocA)[0]}
		e := control.New(quiet(), broken)
		start := time.Now()
		err := e.Run(t.Context(), nil)
		if err == nil || !strings.Contains(err.Error(), "network is down") {
			t.Errorf("Run: %v", err)
		}
		if d := time.Since(start); d < 4*time.Second || broken.reads > 60 {
			t.Errorf("given up after %d reads in %v", broken.reads, d)
		}
		if _, err := n.Listen(rlocA); err != nil {
			t.Errorf("the socket was not closed: %v", err)
		}
	})
}

func TestClosedSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		conns := listen(t, n, rlocA, rlocA6)
		_, stop := run(control.New(quiet(), conns...))
		synctest.Wait()
		if err := conns[1].Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := stop(); err == nil || !strings.Contains(err.Error(), "was closed") {
			t.Errorf("Run: %v", err)
		}
		if _, err := n.Listen(rlocA); err != nil {
			t.Errorf("the other socket was not closed: %v", err)
		}
	})
}

// The same over the host's own UDP.
func TestLoopback(t *testing.T) {
	open := func() *control.Endpoint {
		conns, err := control.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0"))
		if err != nil {
			t.Fatal(err)
		}
		return control.New(quiet(), conns...)
	}
	a, b := open(), open()
	_, stopA := run(a)
	packets, stopB := run(b)
	key := lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Secret: "secret"}
	for i, to := range b.LocalAddrs() {
		raw, err := lisp.AppendSigned(nil, &lisp.MapRegister{Nonce: uint64(i), Records: []lisp.Mapping{{EID: web}}}, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Send(to, raw); err != nil {
			t.Fatal(err)
		}
		p := <-packets
		if got := fmt.Sprint(p.From); got != fmt.Sprint(a.LocalAddrs()[i]) {
			t.Errorf("from %s, want %v", got, a.LocalAddrs()[i])
		}
		if err := lisp.Verify(p.Raw, p.Msg, key); err != nil {
			t.Error(err)
		}
	}
	for _, stop := range []func() error{stopA, stopB} {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestListenFails(t *testing.T) {
	conns, err := control.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer conns[0].Close()
	taken := conns[0].LocalAddr().(*net.UDPAddr).AddrPort()
	free := netip.MustParseAddrPort("127.0.0.2:0")
	if _, err := control.Listen(t.Context(), free, taken); err == nil || !strings.Contains(err.Error(), taken.String()) {
		t.Fatalf("Listen: %v", err)
	}
}
