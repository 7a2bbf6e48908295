package gateway

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// port is one VM interface. Its goroutine owns it; the fields before conn do not change.
type port struct {
	g     *Gateway
	name  string
	index int
	conn  *packet.Conn
	done  chan struct{} // closed when its goroutine has ended

	wanted atomic.Bool            // announcements are asked for
	reader atomic.Pointer[reader] // who was found to read it; see readBy

	answers   bucket // of messages
	sightings bucket
	solicited bucket // Router Advertisements on demand
	announces bucket
	nextRA    time.Time
	initialRA int // Router Advertisements still to come soon after the start
}

// Limits of what one VM can make the gateway do, per second.
const (
	answerRate, answerBurst     = 500, 500
	sightingRate, sightingBurst = 200, 500
	solicitRate, solicitBurst   = 2, 10
	announceRate, announceBurst = 5, 10
)

// RFC 4861 section 10: the first advertisements come sooner.
const (
	initialRAs        = 3
	initialRAInterval = 16 * time.Second
)

// openPort opens the socket of an interface and starts to serve it.
func (g *Gateway) openPort(ifi *net.Interface) (*port, error) {
	filter, err := filter(g.rules.own)
	if err != nil {
		return nil, err
	}
	// All protocols: a socket for one of them would be behind the data plane's hook, which may keep
	// the frames for itself.
	conn, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, err
	}
	if err := ignoreOutgoing(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	p := &port{
		g: g, name: ifi.Name, index: ifi.Index, conn: conn, done: make(chan struct{}),
		answers:   bucket{rate: answerRate, burst: answerBurst},
		sightings: bucket{rate: sightingRate, burst: sightingBurst},
		solicited: bucket{rate: solicitRate, burst: solicitBurst},
		announces: bucket{rate: announceRate, burst: announceBurst},
		initialRA: initialRAs,
	}
	go p.run()
	return p, nil
}

// ignoreOutgoing keeps what is sent to the VM away from the socket, which would cost a copy of every
// packet.
func ignoreOutgoing(conn *packet.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("setsockopt PACKET_IGNORE_OUTGOING",
			unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	})
	return errors.Join(err, failed)
}

// close ends the goroutine of p and waits for it.
func (p *port) close() {
	_ = p.conn.Close()
	<-p.done
}

// announce asks p to announce the gateway, soon. Any goroutine may call it.
func (p *port) announce() {
	p.wanted.Store(true)
	_ = p.conn.SetReadDeadline(time.Unix(1, 0))
}

func (p *port) run() {
	defer close(p.done)
	buf := make([]byte, 1<<16)
	for {
		// The deadline before the flag: one that announce sets after this is not overwritten.
		if err := p.conn.SetReadDeadline(p.nextRA); err != nil {
			return
		}
		now := time.Now()
		if p.wanted.Swap(false) {
			p.sendAnnouncements(now)
		}
		if !now.Before(p.nextRA) {
			p.sendRA(allNodesMAC, heard{dst: allNodes}, now)
			p.nextRA = now.Add(p.untilRA())
			continue
		}
		n, _, err := p.conn.ReadFrom(buf)
		switch {
		case err == nil:
			p.serve(buf[:n], time.Now())
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN): // told once each time that it goes down
		default:
			p.g.counts.inc(readErrors)
			time.Sleep(10 * time.Millisecond) // an error that stays must not spin
		}
	}
}

// untilRA returns when the next Router Advertisement is due (RFC 4861 section 6.2.4).
func (p *port) untilRA() time.Duration {
	most := p.g.cfg.RAInterval
	d := most/3 + rand.N(most-most/3)
	if p.initialRA > 0 {
		p.initialRA--
		d = min(d, initialRAInterval)
	}
	return d
}

var heardCounters = map[what]counter{
	arpRequest: heardARP, arpReply: heardARP, rarp: heardRARP,
	neighborSolicitation: heardNS, neighborAdvertisement: heardNA,
	routerSolicitation: heardRS, routerAdvertisement: heardRA,
	echo4: heardEcho, echo6: heardEcho,
}

// serve answers one frame.
func (p *port) serve(b []byte, now time.Time) {
	c := &p.g.counts
	h, bad, ok := classify(b)
	if !ok {
		c.inc(bad)
		return
	}
	c.inc(heardCounters[h.what])
	v, err := p.g.rules.answer(h, p.index)
	if err != nil {
		c.inc(sendErrors)
		return
	}
	// The evidence that a VM runs here comes before the answer to it.
	if v.kind != "" {
		p.sight(h, v, now)
	}
	if v.isQuiet {
		c.inc(v.quiet)
	}
	if v.frame != nil {
		if p.answers.take(now) {
			p.send(v.frame, v.sent)
		} else {
			c.inc(quietLimited)
		}
	}
	if v.solicited {
		// RFC 4861 section 6.2.6 has routers wait a random time so that they do not all speak at once.
		// There is one router on this link, and the guest cannot do anything before.
		if p.solicited.take(now) {
			p.sendRA(h.mac, h, now)
		} else {
			c.inc(quietLimited)
		}
	}
	if v.announce {
		p.sendAnnouncements(now)
	}
}

// sight reports a sighting.
func (p *port) sight(h heard, v verdict, now time.Time) {
	c := &p.g.counts
	if !p.sightings.take(now) {
		c.inc(sightingsLost)
		return
	}
	select {
	case p.g.sightings <- Sighting{If: p.index, Name: p.name, MAC: net.HardwareAddr(h.mac[:]), Addr: v.addr, Kind: v.kind, At: now}:
		c.inc(sighted)
	default:
		c.inc(sightingsLost)
	}
}

// sendRA sends a Router Advertisement to the sender of a solicitation, or to all nodes where it has
// no address yet.
func (p *port) sendRA(to mac, h heard, now time.Time) {
	dst := h.src
	if !unicast(dst) {
		to, dst = allNodesMAC, allNodes
	}
	f, err := p.g.rules.advertisement(to, dst)
	if err != nil {
		p.g.counts.inc(sendErrors)
		return
	}
	p.send(f, sentRA)
}

// sendAnnouncements corrects what the guest believes of the gateway.
func (p *port) sendAnnouncements(now time.Time) {
	if !p.announces.take(now) {
		p.g.counts.inc(quietLimited)
		return
	}
	frames, err := p.g.rules.announcements()
	if err != nil {
		p.g.counts.inc(sendErrors)
		return
	}
	for _, f := range frames {
		p.send(f, announced)
	}
}

// send sends a frame. It passes the interface's egress hook like every packet, so that the data plane
// counts it.
func (p *port) send(f []byte, sent counter) {
	if _, err := p.conn.WriteTo(f, &packet.Addr{HardwareAddr: f[:6]}); err != nil {
		p.g.counts.inc(sendErrors)
		return
	}
	p.g.counts.inc(sent)
}
