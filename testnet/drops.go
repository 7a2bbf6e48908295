package testnet

import (
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
)

// linkDrops finds packets that a kernel dropped at an interface, which no daemon can count: full queues, above all.
// An interface that goes away takes its counters with it, so a tap is looked at before.
type linkDrops struct {
	mu   sync.Mutex
	gone map[string]uint64 // host/interface/counter -> what interfaces had when they went
	base map[string]uint64 // what there was when it was last reset
}

// look adds the counters of a host's interfaces to into; only "" = all.
func look(h *Host, only string, into map[string]uint64) error {
	return h.ns.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("testnet: %s: %w", h.Name, err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Statistics == nil || only != "" && a.Name != only {
				continue
			}
			s := a.Statistics
			for name, n := range map[string]uint64{"rx_dropped": s.RxDropped, "tx_dropped": s.TxDropped, "rx_errors": s.RxErrors,
				"tx_errors": s.TxErrors, "rx_missed": s.RxMissedErrors, "rx_over": s.RxOverErrors} {
				// What nobody listens to counts as dropped on a tap: RARP.
				if tap := l.Type() == "tuntap"; n > 0 && (!tap || name != "rx_dropped") {
					into[h.Name+"/"+a.Name+" "+name] += n
				}
			}
		}
		return nil
	})
}

// leaving remembers the counters of an interface that is about to go.
func (d *linkDrops) leaving(h *Host, dev string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone == nil {
		d.gone = make(map[string]uint64)
	}
	_ = look(h, dev, d.gone) // it may be gone already
}

// total is every counter that is not zero, of interfaces that are there and that were.
func (d *linkDrops) total(hosts map[string]*Host) (map[string]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[string]uint64)
	for k, n := range d.gone {
		all[k] = n
	}
	for _, h := range hosts {
		if err := look(h, "", all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// reset makes now the beginning.
func (d *linkDrops) reset(hosts map[string]*Host) error {
	all, err := d.total(hosts)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base = all
	return nil
}

// since is what was dropped since the reset.
func (d *linkDrops) since(hosts map[string]*Host) (map[string]uint64, error) {
	all, err := d.total(hosts)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, n := range d.base {
		if all[k] -= min(n, all[k]); all[k] == 0 {
			delete(all, k)
		}
	}
	return all, nil
}
