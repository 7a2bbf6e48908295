package testnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mappingRow is what we read of a row of a D-ETR's "mappings" table.
type mappingRow struct {
	EID         string
	Version     uint16
	InstalledAt time.Time
	rlocs       map[netip.Addr]bool // addresses that the row names beside its EID
}

// UnmarshalJSON takes the row as it is made for people: its locators are whatever addresses it names.
func (m *mappingRow) UnmarshalJSON(b []byte) error {
	var row map[string]json.RawMessage
	if err := json.Unmarshal(b, &row); err != nil {
		return err
	}
	*m = mappingRow{rlocs: make(map[netip.Addr]bool)}
	for key, raw := range row {
		var err error
		switch key {
		case "eid":
			err = json.Unmarshal(raw, &m.EID)
		case "version":
			err = json.Unmarshal(raw, &m.Version)
		case "installed_at":
			err = json.Unmarshal(raw, &m.InstalledAt)
		default:
			for _, word := range strings.FieldsFunc(string(raw), func(r rune) bool { return strings.ContainsRune("\"[]{}, /=()", r) }) {
				if a, e := netip.ParseAddr(word); e == nil {
					m.rlocs[a] = true
				}
			}
		}
		if err != nil {
			return fmt.Errorf("mappings: %s: %w", key, err)
		}
	}
	return nil
}

// at reports whether the row's locators name the RLOC.
func (m *mappingRow) at(rloc netip.Addr) bool { return m.rlocs[rloc] }

func (m *mappingRow) atAll(rlocs []netip.Addr) bool {
	return !slices.ContainsFunc(rlocs, func(a netip.Addr) bool { return !m.at(a) })
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

// WaitFeeds waits until every D-ETR that runs hears every Map-Server that runs.
func (c *Cloud) WaitFeeds(ctx context.Context) error {
	want := 0
	for _, n := range nodesOf("mapserver", inCloud) {
		if c.hosts[n.name].Running(n.role) {
			want++
		}
	}
	for _, anchor := range c.anchors() {
		for {
			var peers []struct{ Role, State string }
			err := c.hosts[anchor].Admin(ctx, http.MethodGet, "/v1/show/bgp", nil, &peers)
			up := 0
			for _, p := range peers {
				if p.Role == "feed" && p.State == "established" {
					up++
				}
			}
			if err == nil && up >= want {
				break
			}
			if e := sleep(ctx, 20*time.Millisecond); e != nil {
				return fmt.Errorf("testnet: %s hears %d of %d Map-Servers: %w", anchor, up, want, errors.Join(err, e))
			}
		}
	}
	return nil
}

// waitOutside waits until the other network's Map-Server knows our aggregates, and its own host. A question before
// that is answered by "not LISP" for a minute, and packets take the plain Internet for as long.
func (c *Cloud) waitOutside(ctx context.Context) error {
	x := endpoints[hostXhost]
	want := []string{aggregate4.String(), aggregate6.String(), netip.PrefixFrom(x.v4, 32).String(), netip.PrefixFrom(x.v6, 128).String()}
	for {
		// Asking for a neighbour shows the host to its xTR.
		for _, next := range []netip.Addr{x.v4.Next(), x.v6.Next()} {
			if err := c.hosts[hostXhost].ns.Do(func() error { return nudge(next) }); err != nil {
				return fmt.Errorf("testnet: %s: %w", hostXhost, err)
			}
		}
		missing := ""
		for _, n := range nodesOf("mapserver", outOfCloud) {
			var rows []mappingRow
			if err := c.hosts[n.name].Admin(ctx, http.MethodGet, "/v1/show/mappings", nil, &rows); err != nil {
				return err
			}
			for _, eid := range want {
				ours := eid == aggregate4.String() || eid == aggregate6.String()
				if !slices.ContainsFunc(rows, func(r mappingRow) bool { return r.EID == eid && (!ours || r.atAll(c.anchorRLOCs())) }) {
					missing = eid
				}
			}
		}
		if missing == "" {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("testnet: the other network does not know %s: %w", missing, err)
		}
	}
}

// anchorRLOCs are the RLOCs of the D-ETRs that run.
func (c *Cloud) anchorRLOCs() (out []netip.Addr) {
	for _, n := range nodesOf("detr", inCloud) {
		if c.hosts[n.name].Running(n.role) {
			out = append(out, n.rlocList()...)
		}
	}
	return out
}

// nudge sends one datagram that nobody waits for.
func nudge(to netip.Addr) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EHOSTUNREACH) {
		return err
	}
	return nil
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
		rloc := mustNode(c.Where(vm)).rlocList()[0]
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
