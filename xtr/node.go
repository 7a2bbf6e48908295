package xtr

import (
	"slices"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// NodeInfo is what an xTR says of itself to whoever considers to move a VM here: the answer to GET /v1/node.
type NodeInfo struct {
	Name        string     `json:"name"`
	RLOCs       []string   `json:"rlocs"`
	EIDPrefixes []lisp.EID `json:"eid_prefixes"` // a VM may have addresses in these only
	Interfaces  []string   `json:"interfaces"`   // VM interfaces that are there
	MTU         int        `json:"mtu"`          // largest inner packet, in bytes; 0 = the data plane's default
	LocalEIDs   int        `json:"local_eids"`
}

func (x *XTR) nodeInfo(time.Time) (any, error) {
	out := NodeInfo{Name: x.cfg.Name, RLOCs: []string{}, EIDPrefixes: slices.Clone(x.cfg.EIDPrefixes), Interfaces: []string{},
		MTU: x.cfg.MTU, LocalEIDs: len(x.loc.eids)}
	for _, l := range x.cfg.RLOCs {
		out.RLOCs = append(out.RLOCs, l.RLOC.String())
	}
	for _, p := range x.loc.ports {
		out.Interfaces = append(out.Interfaces, p.name)
	}
	slices.Sort(out.Interfaces)
	return out, nil
}
