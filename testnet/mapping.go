package testnet

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// mappingRow is what we read of a row of a D-ETR's "mappings" table.
type mappingRow struct {
	EID         string    `json:"eid"`
	Version     uint16    `json:"version"`
	Locators    any       `json:"locators"`
	RLOCs       any       `json:"rlocs"`
	InstalledAt time.Time `json:"installed_at"`
}

// at reports whether the row's locators name the RLOC.
func (m mappingRow) at(rloc string) bool {
	return slices.ContainsFunc([]any{m.Locators, m.RLOCs}, func(v any) bool {
		return v != nil && strings.Contains(fmt.Sprint(v), rloc)
	})
}

// anchorMappings asks a D-ETR for its mappings, by EID.
func (c *Cloud) anchorMappings(ctx context.Context, anchor string) (map[string]mappingRow, error) {
	var rows []mappingRow
	if err := c.hosts[anchor].Admin(ctx, http.MethodGet, "/v1/show/mappings", nil, &rows); err != nil {
		return nil, err
	}
	out := make(map[string]mappingRow, len(rows))
	for _, r := range rows {
		out[r.EID] = r
	}
	return out, nil
}

// anchors are the D-ETRs that run.
func (c *Cloud) anchors() (out []string) {
	for _, n := range nodesOf("detr", inCloud) {
		if c.hosts[n.name].Running(n.role) {
			out = append(out, n.name)
		}
	}
	return out
}

// waitAnchors waits until every D-ETR that runs has the EIDs of the VMs where the VMs are, and returns when each
// D-ETR had the last of them in its kernel.
func (c *Cloud) waitAnchors(ctx context.Context, vms ...string) error {
	_, err := c.anchorsAt(ctx, vms...)
	return err
}

func (c *Cloud) anchorsAt(ctx context.Context, vms ...string) (map[string]time.Time, error) {
	out := make(map[string]time.Time)
	for _, anchor := range c.anchors() {
		for {
			at, missing, err := c.anchorAt(ctx, anchor, vms)
			if err == nil && missing == "" {
				out[anchor] = at
				break
			}
			select {
			case <-ctx.Done():
				if err == nil {
					err = fmt.Errorf("has not %s", missing)
				}
				return out, fmt.Errorf("testnet: %s: %w (%w)", anchor, err, context.Cause(ctx))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return out, nil
}

// anchorAt looks once. missing names an EID that is not (yet) where its VM is.
func (c *Cloud) anchorAt(ctx context.Context, anchor string, vms []string) (last time.Time, missing string, err error) {
	rows, err := c.anchorMappings(ctx, anchor)
	if err != nil {
		return last, "", err
	}
	for _, vm := range vms {
		rloc := mustNode(c.Where(vm)).rlocList()[0].String()
		for _, eid := range endpoints[vm].eids() {
			row, ok := rows[eid]
			if !ok || !row.at(rloc) {
				return last, fmt.Sprintf("%s at %s, but %+v", eid, rloc, row), nil
			}
			if row.InstalledAt.After(last) {
				last = row.InstalledAt
			}
		}
	}
	return last, "", nil
}
