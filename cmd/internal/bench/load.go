package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet"
)

// pair is a client and a server with the path under test between them.
type pair struct {
	client, server *testnet.Namespace
	listen         netip.Addr // the server's own address
	dial           netip.Addr // what the client calls it: another one with a translator between them
}

const (
	benchPort = 5201
	warmUp    = 300 * time.Millisecond
)

// pinned runs f on an OS thread of its own on one processor: the load must not wander, or the rounds
// differ by more than what is measured.
func pinned(cpu int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &old)
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to processor %d: %w", cpu, err)
	}
	return f()
}

// load is traffic between a pair, which goes on until it is stopped.
type load struct {
	got  atomic.Uint64 // what has arrived, bytes or packets
	stop func()
}

// rate is how much arrives a second, over d.
func (l *load) rate(d time.Duration) float64 {
	before, start := l.got.Load(), time.Now()
	time.Sleep(d)
	return float64(l.got.Load()-before) / time.Since(start).Seconds()
}

// kindOfLoad is a load that can be started.
type kindOfLoad struct {
	metric string
	factor float64
	start  func() (*load, error)
}

// loads are those whose rate is measured: by metric, with the factor from what arrives to the metric's unit.
func (p pair) loads() []kindOfLoad {
	return []kindOfLoad{
		{"tcp1", 8, func() (*load, error) { return p.loadTCP(1) }},
		{"tcp4", 8, func() (*load, error) { return p.loadTCP(4) }},
		{"udp64", 1, func() (*load, error) { return p.loadUDP(64) }},
		{"udp1400", 1, func() (*load, error) { return p.loadUDP(1400) }},
	}
}

// loadTCP is n streams, in bytes.
func (p pair) loadTCP(n int) (_ *load, err error) {
	var l *net.TCPListener
	err = p.server.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.listen, benchPort)))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var wg sync.WaitGroup
	var conns []*net.TCPConn
	out := &load{stop: func() {
		for _, c := range conns {
			c.Close()
		}
		wg.Wait()
	}}
	defer func() {
		if err != nil {
			out.stop()
		}
	}()
	for range n {
		var c *net.TCPConn
		err := p.client.Do(func() error {
			nc, err := net.DialTimeout("tcp", netip.AddrPortFrom(p.dial, benchPort).String(), 3*time.Second)
			if err == nil {
				c = nc.(*net.TCPConn)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
		s, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		conns = append(conns, s)
	}
	for i := 0; i < len(conns); i += 2 {
		from, to := conns[i], conns[i+1]
		wg.Go(func() { pinned(0, func() error { return stream(from, to, nil) }) })
		wg.Go(func() { pinned(1, func() error { return stream(nil, to, &out.got) }) })
	}
	return out, nil
}

// stream writes to out for ever, or reads from in and counts, until the connection is closed. It uses
// blocking system calls: the scheduler's poller would be measured as well otherwise.
func stream(out, in *net.TCPConn, got *atomic.Uint64) error {
	buf := make([]byte, 256<<10)
	for {
		if out != nil {
			if _, err := out.Write(buf); err != nil {
				return err
			}
			continue
		}
		n, err := in.Read(buf)
		got.Add(uint64(n))
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// loadUDP is a client that sends as fast as it can, in packets.
func (p pair) loadUDP(size int) (*load, error) {
	in, out, err := p.udp()
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	l := &load{stop: func() {
		out.Close()
		in.Close()
		wg.Wait()
	}}
	wg.Go(func() {
		pinned(1, func() error {
			pc := ipv4.NewPacketConn(in)
			ms := batch(128, 2048)
			for {
				n, err := pc.ReadBatch(ms, 0)
				if err != nil {
					return err
				}
				l.got.Add(uint64(n))
			}
		})
	})
	wg.Go(func() {
		pinned(0, func() error {
			pc := ipv4.NewPacketConn(out)
			ms := batch(64, size)
			for {
				if _, err := pc.WriteBatch(ms, 0); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
					return err
				}
			}
		})
	})
	return l, nil
}

func batch(n, size int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, size)}
	}
	return ms
}

func (p pair) udp() (in, out *net.UDPConn, err error) {
	err = p.server.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.listen, benchPort)))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	in.SetReadBuffer(4 << 20)
	err = p.client.Do(func() (err error) {
		out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.dial, benchPort)))
		return err
	})
	if err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

// pingPatience is how long an answer is waited for: one that does not come counts as that.
const pingPatience = time.Second

// pingsLost is how many answers in a row must not come for the path to be dead.
const pingsLost = 3

// latency measures the round trip of single datagrams: median and 99th percentile.
func (p pair) latency(d time.Duration) (median, p99 time.Duration, err error) {
	in, out, err := p.udp()
	if err != nil {
		return 0, 0, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer in.Close()
	defer out.Close()
	wg.Go(func() {
		pinned(1, func() error {
			buf := make([]byte, 64)
			for {
				n, from, err := in.ReadFromUDPAddrPort(buf)
				if err != nil {
					return err
				}
				in.WriteToUDPAddrPort(buf[:n], from)
			}
		})
	})
	var rtts []time.Duration
	err = pinned(0, func() error {
		lost := 0
		for end := time.Now().Add(d + warmUp); time.Now().Before(end) || lost > 0; {
			rtt, err := ping(out, uint64(len(rtts)))
			switch {
			case err == nil:
				lost = 0
				rtts = append(rtts, rtt)
			case !errors.Is(err, os.ErrDeadlineExceeded) || lost+1 == pingsLost:
				return fmt.Errorf("ping-pong: %w", err)
			default:
				lost++
				rtts = append(rtts, pingPatience)
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	slices.Sort(rtts)
	return quantile(rtts, 0.5), quantile(rtts, 0.99), nil
}

// measure adds one figure of each of the metrics to samples.
func (p pair) measure(ctx context.Context, each time.Duration, into map[string]*Sample) error {
	for _, m := range p.loads() {
		if err := ctx.Err(); err != nil {
			return err
		}
		l, err := m.start()
		if err != nil {
			return fmt.Errorf("%s: %w", m.metric, err)
		}
		time.Sleep(warmUp)
		into[m.metric].add(l.rate(each) * m.factor)
		l.stop()
	}
	median, p99, err := p.latency(each)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	into["rtt"].add(float64(median.Nanoseconds()) / 1000)
	into["rtt_p99"].add(float64(p99.Nanoseconds()) / 1000)
	return nil
}

// ping sends one datagram and waits for it to come back. What comes late of an earlier one is passed over.
func ping(c *net.UDPConn, number uint64) (time.Duration, error) {
	buf := make([]byte, 64)
	binary.BigEndian.PutUint64(buf, number)
	start := time.Now()
	c.SetReadDeadline(start.Add(pingPatience))
	if _, err := c.Write(buf); err != nil {
		return 0, err
	}
	for {
		if _, err := c.Read(buf); err != nil {
			return 0, err
		}
		if binary.BigEndian.Uint64(buf) == number {
			return time.Since(start), nil
		}
	}
}
