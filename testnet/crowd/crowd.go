package crowd

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Group is viewers of one kind, such as those with IPv4.
type Group struct {
	Name  string
	Sites []netip.AddrPort // what they watch, in turn
	// Open makes a connection; it may return before that is established. It is called by one goroutine at a time.
	Open func(netip.AddrPort) (Conn, error)
}

// Config describes a crowd.
type Config struct {
	Groups  []Group // viewers are of each in turn
	Viewers int     // in all
	// Rise is how long it takes until all are there; they come at a rate that rises from nothing.
	Rise time.Duration
	// Every is the time between a viewer's requests, on average; each waits for half to one and a half of it.
	Every time.Duration
	// Path is asked for again and again, after the page; "" = PathPicture.
	Path string
	// Patience is how long a viewer waits for an answer, or to be connected, before that is a failure; 0 = 60 s.
	Patience time.Duration
	Seed     uint64
}

// Crowd is viewers that watch.
type Crowd struct {
	conf   Config
	record *record
	open   []sync.Mutex // a group's Open
}

// New makes a crowd that is not there yet.
func New(conf Config) *Crowd {
	conf.Path = cmp.Or(conf.Path, PathPicture)
	conf.Patience = cmp.Or(conf.Patience, time.Minute)
	return &Crowd{conf: conf, record: newRecord(), open: make([]sync.Mutex, len(conf.Groups))}
}

// Watch has the viewers come and watch until ctx ends; then each still gets the answer that he waits for, and goes.
func (c *Crowd) Watch(ctx context.Context) {
	begin := time.Now()
	c.record.begin(begin)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range c.conf.Viewers {
		timer.Reset(time.Until(begin.Add(arrival(i, c.conf.Viewers, c.conf.Rise))))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wg.Go(func() { c.view(ctx, i) })
	}
}

// arrival is when viewer i of n comes: with the square of the time, so that the rate rises.
func arrival(i, n int, rise time.Duration) time.Duration {
	return time.Duration(float64(rise) * math.Sqrt(float64(i)/float64(n)))
}

// Stats is what the crowd has seen so far.
func (c *Crowd) Stats() Stats { return c.record.stats(time.Now()) }

// view is the life of viewer i. When something fails he comes again after a while, as people do: that it failed is
// written down.
func (c *Crowd) view(ctx context.Context, i int) {
	g := i % len(c.conf.Groups)
	group := c.conf.Groups[g]
	site := group.Sites[i/len(c.conf.Groups)%len(group.Sites)]
	random := rand.New(rand.NewPCG(c.conf.Seed, uint64(i)))
	timer := time.NewTimer(0)
	defer timer.Stop()
	pause := func() bool {
		timer.Reset(time.Duration((0.5 + random.Float64()) * float64(c.conf.Every)))
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		}
	}
	for ctx.Err() == nil {
		if err := c.visit(g, site, pause); err != nil {
			c.record.failed(time.Now(), fmt.Errorf("viewer %d (%s, %v): %w", i, group.Name, site, err))
			if !pause() {
				return
			}
			continue
		}
		return
	}
}

// visit is one connection: the page, then the picture until pause says that it is enough.
func (c *Crowd) visit(g int, site netip.AddrPort, pause func() bool) error {
	asked := time.Now()
	c.open[g].Lock()
	conn, err := c.conf.Groups[g].Open(site)
	c.open[g].Unlock()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close() // nothing is under way
	for path, first := PathPage, true; ; path, first = c.conf.Path, false {
		if err := conn.SetDeadline(asked.Add(c.conf.Patience)); err != nil {
			return err
		}
		n, err := fetch(conn, site, path)
		if err != nil {
			if !first {
				c.record.left()
			}
			return err
		}
		now := time.Now()
		if first {
			c.record.came(g, now)
		}
		c.record.answered(g, now, now.Sub(asked), n)
		if !pause() {
			c.record.left()
			return nil
		}
		asked = time.Now()
	}
}
