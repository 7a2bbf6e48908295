package detr

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

var equal = cmp.Options{
	cmpopts.EquateEmpty(), cmpopts.EquateComparable(lisp.EID{}, lisp.Locator{}, netip.Addr{}, netip.AddrPort{}),
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func eid(s string) lisp.EID {
	e, err := lisp.ParseEID(s)
	if err != nil {
		panic(err)
	}
	return e
}

func loc(rloc string) lisp.Locator {
	return lisp.Locator{RLOC: addr(rloc), Priority: 1, Weight: 100, Reachable: true}
}

func locs(rlocs ...string) (ls []lisp.Locator) {
	for _, r := range rlocs {
		ls = append(ls, loc(r))
	}
	return ls
}

func mapping(e string, v lisp.Version, rlocs ...string) lisp.Mapping {
	return lisp.Mapping{EID: eid(e), TTL: 1440, Version: v, XTRID: lisp.XTRID{15: byte(v)}, Locators: locs(rlocs...)}
}

// config is a D-ETR's.
func config() Config {
	return Config{
		XTRID: lisp.XTRID{15: 0xd1}, SiteID: 9, RLOCs: locs("100.64.5.2", "2001:db8:100:5::2"),
		Aggregates: []lisp.EID{eid("198.51.100.0/24"), eid("2001:db8:e1d::/48")},
		Anchors:    locs("100.64.5.2", "2001:db8:100:5::2", "100.64.6.2", "2001:db8:100:6::2"),
	}
}

// ready is config as a DETR uses it.
func ready(change ...func(*Config)) *Config {
	c := config()
	for _, f := range change {
		f(&c)
	}
	c, err := c.withDefaults()
	if err != nil {
		panic(err)
	}
	return &c
}

// plane is a data plane.
type plane struct {
	mu      sync.Mutex
	routes  map[lisp.EID]fib.Route
	packets map[lisp.EID]uint64
	log     []string
	broken  bool
}

func newPlane(rs ...fib.Route) *plane {
	p := &plane{routes: make(map[lisp.EID]fib.Route), packets: make(map[lisp.EID]uint64)}
	for _, r := range rs {
		p.routes[r.EID] = r
	}
	return p
}

func (p *plane) Set(_ context.Context, rs ...fib.Route) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return errors.New("broken")
	}
	for _, r := range rs {
		p.routes[r.EID] = r
		p.log = append(p.log, fmt.Sprintf("set %v %s", r.EID, doing(r.Do)))
	}
	return nil
}

func (p *plane) Del(_ context.Context, es ...lisp.EID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return errors.New("broken")
	}
	for _, e := range es {
		delete(p.routes, e)
		p.log = append(p.log, fmt.Sprintf("del %v", e))
	}
	return nil
}

func (p *plane) Routes() []fib.Route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.routes), func(a, b fib.Route) int { return a.EID.Compare(b.EID) })
}

func (p *plane) Packets(e lisp.EID) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.packets[e]
	return n, ok
}

func (p *plane) get(e string) (fib.Route, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.routes[eid(e)]
	return r, ok
}

// does says in a word what happens to packets for exactly this route; "" without one.
func (p *plane) does(e string) string {
	r, ok := p.get(e)
	if !ok {
		return ""
	}
	s := doing(r.Do)
	for _, l := range r.Locators {
		s += " " + l.RLOC.String()
	}
	return s
}

func (p *plane) use(e string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.packets[eid(e)]++
}

// waiting is a slow path that writes down what it is told.
type waiting struct {
	mu  sync.Mutex
	log []string
}

func (w *waiting) note(s string, e lisp.EID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, s+" "+e.String())
}

func (w *waiting) Release(e lisp.EID) { w.note("release", e) }
func (w *waiting) Reject(e lisp.EID)  { w.note("reject", e) }

func (w *waiting) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.log
	w.log = nil
	return l
}

// upstream writes down when the aggregates were announced and withdrawn.
type upstream struct {
	mu     sync.Mutex
	start  time.Time
	log    []string
	broken int // calls that fail
}

func (u *upstream) Serve(_ context.Context, on bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.broken > 0 {
		u.broken--
		return errors.New("broken")
	}
	u.log = append(u.log, fmt.Sprintf("%v %t", time.Since(u.start).Round(time.Millisecond), on))
	return nil
}

func (u *upstream) take() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.log
	u.log = nil
	return l
}
