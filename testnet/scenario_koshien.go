package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tabi-lisp/tabi/testnet/crowd"
)

// KoshienOptions say how the broadcast goes. The zero value is the demo's.
type KoshienOptions struct {
	Viewers  int           // in all, half of them with IPv4; 0 = 5000
	Duration time.Duration // from the first viewer to the last; 0 = 60 s
	Every    time.Duration // between a viewer's requests, on average; 0 = 4 s
	Blackout time.Duration // how long the VM that moves runs nowhere; 0 = 200 ms
	Seed     uint64
}

func (o *KoshienOptions) fill() {
	if o.Viewers == 0 {
		o.Viewers = 5000
	}
	if o.Duration == 0 {
		o.Duration = time.Minute
	}
	if o.Every == 0 {
		o.Every = 4 * time.Second
	}
	if o.Blackout == 0 {
		o.Blackout = 200 * time.Millisecond
	}
}

// KoshienLeast is the shortest broadcast: its parts would run into one another in a shorter one.
const KoshienLeast = 8 * time.Second

// Parts of the broadcast's duration: until when viewers come, when the D-ETR is killed and the VM moves, when it moves
// again.
const (
	koshienRise  = 0.45
	koshienKill  = 0.55
	koshienAgain = 0.75
)

// koshienVictim is the D-ETR that is switched off, and koshienMover the VM that moves, and where to, one after the other.
const (
	koshienVictim = "detr2"
	koshienMover  = hostTokyo
)

var koshienTour = []string{"hokuriku-hv1", "nara-hv1"}

// town is what people call a site's place.
var town = map[string]string{"nezu": "Tokyo", "hokuriku": "Hokuriku", "nara": "Nara", "osaka": "Osaka"}

// koshienPort is that of the web servers.
const koshienPort = 80

// koshienPatience is how long a viewer waits before he has been let down.
const koshienPatience = 30 * time.Second

// loadEvery is the time between two looks at what passes a D-ETR.
const loadEvery = 250 * time.Millisecond

// koshien is a Koshien under way.
type koshien struct {
	c       *Cloud
	o       KoshienOptions
	crowd   *crowd.Crowd
	began   time.Time
	closers []func() error
	report  *KoshienReport

	mu sync.Mutex // of report while the parts run
}

// Koshien shows a broadcast: web servers on the three VMs with service addresses, viewers who come at a rising rate and
// stay, and at the peak the D-ETR at Osaka is switched off while a VM moves, and somebody reads statistics as fast as
// they can be had. The cloud must be one with Options.Services. An error is one of the test's own steps; that a viewer
// did not get what he asked for is a report that does not pass.
func (c *Cloud) Koshien(ctx context.Context, o KoshienOptions) (*KoshienReport, error) {
	o.fill()
	if !c.opts.Services {
		return nil, errors.New("testnet: the broadcast wants a cloud with service addresses")
	}
	if o.Duration < KoshienLeast || o.Viewers < 2 {
		return nil, fmt.Errorf("testnet: a broadcast of %v to %d viewers: at least %v and 2", o.Duration, o.Viewers, KoshienLeast)
	}
	if err := roomForFiles(2 * o.Viewers); err != nil {
		return nil, err
	}
	k := &koshien{c: c, o: o, report: &KoshienReport{Viewers: o.Viewers, Moves: []*MoveReport{}, Machine: machine()}}
	err := k.play(ctx)
	for i := len(k.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, k.closers[i]())
	}
	return k.report, err
}

func (k *koshien) play(ctx context.Context) error {
	groups, err := k.groups()
	if err != nil {
		return err
	}
	if err := k.serve(); err != nil {
		return err
	}
	if err := k.c.drops.reset(k.c.hosts); err != nil {
		return err
	}
	backlog := backlogDrops()
	k.crowd = crowd.New(crowd.Config{Groups: groups, Viewers: k.o.Viewers, Rise: k.part(koshienRise), Every: k.o.Every, Seed: k.o.Seed,
		Patience: koshienPatience})
	watching, end := context.WithTimeout(ctx, k.o.Duration)
	defer end()
	k.began = time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { k.crowd.Watch(watching) })
	wg.Go(func() { k.watchLoad(watching) })
	for _, n := range nodesOf("detr", inCloud) {
		wg.Go(func() { k.readStatistics(watching, n.name) })
	}
	wg.Go(func() { k.announce(watching) })
	err = k.direct(watching)
	if err != nil {
		end()
	}
	wg.Wait()
	if err := errors.Join(err, context.Cause(ctx)); err != nil {
		return err
	}
	r := k.report
	r.Machine.BacklogDrops = backlogDrops() - backlog
	if r.Machine.LinkDrops, err = k.c.drops.since(k.c.hosts); err != nil {
		return err
	}
	r.Seconds = time.Since(k.began).Seconds()
	r.take(k.crowd.Stats(), groups)
	r.judge()
	return nil
}

// part is a part of the duration.
func (k *koshien) part(f float64) time.Duration { return time.Duration(f * float64(k.o.Duration)) }

// groups are viewers with IPv4 and with IPv6, who ask for service addresses.
func (k *koshien) groups() ([]crowd.Group, error) {
	var out []crowd.Group
	for _, g := range []struct {
		name, client string
		addr         func(endpoint) netip.Addr
	}{
		{"IPv4", hostClient4, func(e endpoint) netip.Addr { return e.v4 }},
		{"IPv6", hostClient6, func(e endpoint) netip.Addr { return e.v6 }},
	} {
		s, err := openSockets(k.c.hosts[g.client].ns)
		if err != nil {
			return nil, err
		}
		k.closers = append(k.closers, func() error { s.close(); return nil })
		group := crowd.Group{Name: g.name, Open: func(to netip.AddrPort) (crowd.Conn, error) { return s.dial(to) }}
		for _, vm := range serviceVMs() {
			group.Sites = append(group.Sites, netip.AddrPortFrom(g.addr(services[vm]), koshienPort))
		}
		out = append(out, group)
	}
	return out, nil
}

// serve starts a web server on each VM.
func (k *koshien) serve() error {
	for _, vm := range serviceVMs() {
		at := netip.AddrPortFrom(endpoints[vm].v6, koshienPort)
		close, err := k.c.serveSite(vm, town[mustNode(serviceHomes[vm]).site], at)
		if err != nil {
			return err
		}
		k.closers = append(k.closers, close)
	}
	return nil
}

// serveSite starts a web server on a host.
func (c *Cloud) serveSite(host, name string, at netip.AddrPort) (close func() error, err error) {
	var l net.Listener
	err = c.hosts[host].ns.Do(func() (err error) {
		if err := writeSysctl("net/core/somaxconn", "65535"); err != nil {
			return err
		}
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("testnet: web server on %s: %w", host, err)
	}
	return crowd.Serve(l, name).Close, nil
}

// at waits for a moment of the broadcast.
func (k *koshien) at(ctx context.Context, part float64) error {
	return sleep(ctx, time.Until(k.began.Add(k.part(part))))
}

// happened writes an event down.
func (k *koshien) happened(format string, a ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Events = append(k.report.Events, KoshienEvent{time.Since(k.began).Seconds(), fmt.Sprintf(format, a...)})
}

// direct lets the things happen that the broadcast is about.
func (k *koshien) direct(ctx context.Context) error {
	if err := k.at(ctx, koshienRise); err != nil {
		return err
	}
	k.happened("all %d viewers have come", k.o.Viewers)
	if err := k.at(ctx, koshienKill); err != nil {
		return err
	}
	victim := mustNode(koshienVictim)
	k.happened("the %s D-ETR is killed", town[victim.site])
	dead := make(chan error, 1)
	go func() { dead <- k.c.SwitchOff(victim.name) }()
	err := k.move(ctx, koshienTour[0])
	if err := errors.Join(err, <-dead); err != nil {
		return err
	}
	if err := k.at(ctx, koshienAgain); err != nil {
		return err
	}
	return k.move(ctx, koshienTour[1])
}

// move moves the VM.
func (k *koshien) move(ctx context.Context, to string) error {
	o := Planned(to, k.o.Blackout)
	o.VM, o.ID = koshienMover, "koshien-"+to
	from := mustNode(k.c.Where(o.VM)).site
	o.AfterPause = func(context.Context) error {
		k.happened("a VM moves %s -> %s", town[from], town[mustNode(to).site])
		return nil
	}
	m, err := k.c.Move(ctx, o)
	if err == nil {
		k.report.Moves = append(k.report.Moves, m)
	}
	return err
}

// announce says now and then what the viewers see.
func (k *koshien) announce(ctx context.Context) {
	for sleep(ctx, 2*time.Second) == nil {
		s := k.crowd.Stats()
		k.c.opts.Progress(fmt.Sprintf("%d viewers, %d requests, %d failures, longest wait %.0f ms", s.Open, s.Requests, s.Failures, s.LongestMS))
	}
}

// readStatistics reads a D-ETR's statistics as fast as they can be had, as long as it is there.
func (k *koshien) readStatistics(ctx context.Context, anchor string) {
	client := adminClient(k.c.hosts[anchor].Socket())
	defer client.CloseIdleConnections()
	var read uint64
	var last error
	for ctx.Err() == nil && k.c.hosts[anchor].Running("detr") {
		var rows []serviceRow
		if last = get(ctx, client, "http://unix/v1/show/services", &rows); last == nil {
			read++
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Reads = append(k.report.Reads, KoshienReads{anchor, town[mustNode(anchor).site], read})
	if last != nil && ctx.Err() == nil && anchor != koshienVictim {
		k.report.Problems = append(k.report.Problems, fmt.Sprintf("%s: read statistics: %v", anchor, last))
	}
}

// watchLoad writes down what passes each D-ETR, to and from the Internet.
func (k *koshien) watchLoad(ctx context.Context) {
	anchors := nodesOf("detr", inCloud)
	loads := make([]KoshienLoad, len(anchors))
	for i, n := range anchors {
		loads[i] = KoshienLoad{DETR: n.name, Site: town[n.site]}
	}
	inet := k.c.hosts[hostInet].ns
	before, at, err := countLinks(inet, anchors)
	for err == nil && sleep(ctx, loadEvery) == nil {
		var now []uint64
		var then time.Time
		if now, then, err = countLinks(inet, anchors); err != nil {
			break
		}
		for i := range loads {
			mbit := float64(now[i]-before[i]) * 8 / 1e6 / then.Sub(at).Seconds()
			loads[i].Mbit = append(loads[i].Mbit, [2]float64{round3(then.Sub(k.began).Seconds()), round3(mbit)})
		}
		before, at = now, then
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Load = loads
	if err != nil {
		k.report.Problems = append(k.report.Problems, err.Error())
	}
}

// countLinks reads how many bytes have passed each D-ETR's upstream link, at the router's end.
func countLinks(inet *Namespace, anchors []node) (out []uint64, at time.Time, err error) {
	err = inet.Do(func() error {
		for _, n := range anchors {
			l, err := netlink.LinkByName("up-" + n.name)
			if err != nil {
				return fmt.Errorf("testnet: load of %s: %w", n.name, err)
			}
			s := l.Attrs().Statistics
			out = append(out, s.RxBytes+s.TxBytes)
		}
		at = time.Now()
		return nil
	})
	return out, at, err
}
