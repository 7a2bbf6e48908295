package qmp

import (
	"context"
	"strings"
)

// Status is what a VM does, in QEMU's words ("running", "paused", "inmigrate", "postmigrate", ...).
type Status struct {
	Status  string `json:"status"`
	Running bool   `json:"running"` // its CPUs run
}

// Guest is the VM behind a monitor.
type Guest struct {
	Socket     string      `json:"socket"`
	Name       string      `json:"name"` // of -name; "" if there was none
	UUID       string      `json:"uuid"` // all zeroes if there was none
	Status     Status      `json:"status"`
	Interfaces []Interface `json:"interfaces"`
	// Leaving: it is being migrated to somewhere else.
	Leaving bool `json:"leaving"`
}

// Interface is one of a VM's network interfaces.
type Interface struct {
	MAC    string `json:"mac"`    // in lower case
	Device string `json:"device"` // its tap on the host; "" where it has none, or QEMU was given it open
}

// Status asks what the VM does.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Guest asks who the VM is, what it has and what it does.
func (c *Client) Guest(ctx context.Context) (Guest, error) {
	g := Guest{Socket: c.path}
	var name struct{ Name string }
	if err := c.Execute(ctx, "query-name", nil, &name); err != nil {
		return g, err
	}
	var id struct{ UUID string }
	if err := c.Execute(ctx, "query-uuid", nil, &id); err != nil {
		return g, err
	}
	g.Name, g.UUID = name.Name, id.UUID
	// QMP itself tells of no network interface which tap it has.
	network, err := c.human(ctx, "info network")
	if err != nil {
		return g, err
	}
	g.Interfaces = parseNetwork(network)
	var m struct{ Status string }
	if err := c.Execute(ctx, "query-migrate", nil, &m); err != nil {
		return g, err
	}
	if g.Status, err = c.Status(ctx); err != nil {
		return g, err
	}
	g.Leaving = g.Status.Status != statusIncoming && underWay(m.Status)
	return g, nil
}

// human runs a command of the monitor for people.
func (c *Client) human(ctx context.Context, line string) (out string, err error) {
	err = c.Execute(ctx, "human-monitor-command", struct {
		Line string `json:"command-line"`
	}{line}, &out)
	return out, err
}

// parseNetwork reads what "info network" says: a line a network device, and under it, after a backslash, what it is
// connected to. Lines that it does not know it passes over.
//
//	virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:10
//	 \ n0: index=0,type=tap,ifname=tap-web,script=no,downscript=no
func parseNetwork(text string) (out []Interface) {
	below := false // the line before was a network device of the guest's
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		peer, isPeer := strings.CutPrefix(line, ` \ `)
		if isPeer {
			line = peer
		}
		_, list, _ := strings.Cut(line, ": ")
		fields := make(map[string]string)
		for field := range strings.SplitSeq(list, ",") {
			key, value, _ := strings.Cut(field, "=")
			if _, twice := fields[key]; !twice {
				fields[key] = value
			}
		}
		switch {
		case isPeer && below && fields["type"] == "tap":
			out[len(out)-1].Device = fields["ifname"]
			below = false
		case !isPeer:
			mac := strings.ToLower(fields["macaddr"])
			// A device with several queues is told once for each.
			if below = fields["type"] == "nic" && mac != "" && (len(out) == 0 || out[len(out)-1].MAC != mac); below {
				out = append(out, Interface{MAC: mac})
			}
		}
	}
	return out
}
