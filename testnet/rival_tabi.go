package testnet

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// tabiNetwork is an xTR at each end, a Map-Server and the controller, configured as an operator would.
type tabiNetwork struct{ cloud *Cloud }

// labConfig is what the configuration files see.
type labConfig struct {
	Name, Role, Dir, Socket, Level string
	Self                           netip.Addr
	Number                         int
	VMs                            string // where the agent hears of its VMs
	Interface                      string
}

func (d labConfig) XTRID() string            { return node{n: d.Number}.xtrID() }
func (d labConfig) MTU() int                 { return labMTU }
func (d labConfig) Prefixes() []netip.Prefix { return []netip.Prefix{aggregate4, aggregate6} }
func (d labConfig) Underlay() []netip.Prefix { return []netip.Prefix{underlay4} }
func (d labConfig) MapServer() netip.Addr    { return labAddr(labMS) }
func (d labConfig) Nets() []gatewayNet       { return configData{}.Nets() }
func (d labConfig) GatewayMAC() string       { return gatewayMAC }
func (d labConfig) Secret() string           { return siteSecret }
func (d labConfig) ControlSecret() string    { return controlSecret }
func (d labConfig) AgentToken() string       { return agentToken }
func (d labConfig) ControllerToken() string  { return controllerToken }

var labConfigs = template.Must(template.Must(configs.Clone()).Parse(`
{{- define "xtr"}}{{template "common" .}}
xtr_id: "{{.XTRID}}"
rlocs: [{address: "{{.Self}}"}]
underlay: [eth0]
underlay_mtu: {{.MTU}}
vm_interfaces: ["{{.Interface}}"]
{{- if .VMs}}
vms: {{.VMs}}{{end}}
eid_prefixes: {{list .Prefixes}}
{{template "gateway" .}}
map_servers: [{address: "{{.MapServer}}", key: {id: 1, secret: {{.Secret}}}}]
allowed_rlocs: {{list .Underlay}}
pin_dir: {{.Dir}}/bpf
api: {listen: "{{.Self}}:4380", token: {{.AgentToken}}}
{{end}}

{{- define "mapserver"}}{{template "common" .}}
listen: ["{{.Self}}"]
sites:
  - name: cloud
    prefixes: {{list .Prefixes}}
    allowed_rlocs: {{list .Underlay}}
    keys:
      - {id: 1, secret: {{.Secret}}}
      - {id: 2, secret: {{.ControlSecret}}, controller: true}
{{end}}

{{- define "controller"}}{{template "common" .}}
listen: "{{.Self}}:4381"
token: {{.ControllerToken}}
addresses: ["{{.Self}}"]
map_servers: [{address: "{{.MapServer}}", key: {id: 2, secret: {{.ControlSecret}}}}]
{{end}}
`))

// role is the daemon of a host.
func (n *tabiNetwork) role(host string) string {
	switch host {
	case labMS:
		return "mapserver"
	case labCtl:
		return "controller"
	}
	return "xtr"
}

// config is the configuration file of a host's daemon. vms is what an agent's says under that name, "" = nothing.
func (n *tabiNetwork) config(host, dir, level, vms string) (string, error) {
	d := labConfig{Name: host, Role: n.role(host), Dir: dir, Socket: adminSocket(dir, n.role(host)), Level: level,
		Self: labAddr(host), Number: labNumbers[host], Interface: labDevice}
	if host == labSite {
		d.Interface = labPort
	} else {
		d.VMs = vms
	}
	var b strings.Builder
	if err := labConfigs.ExecuteTemplate(&b, d.Role, d); err != nil {
		return "", fmt.Errorf("testnet: configuration of %s: %w", host, err)
	}
	return b.String(), nil
}

// start starts the daemons, tells the controller what there is, and makes the client known.
func (n *tabiNetwork) start(ctx context.Context) error {
	for _, host := range []string{labMS, labCtl, labHV1, labHV2, labSite} {
		h := n.cloud.hosts[host]
		text, err := n.config(host, h.dir, n.cloud.opts.LogLevel, n.cloud.maker.agent(node{name: host, role: "xtr", n: labNumbers[host]}, h.dir))
		if err != nil {
			return err
		}
		role := n.role(host)
		file := filepath.Join(h.dir, role+".yaml")
		if err := os.MkdirAll(filepath.Join(h.dir, "state"), 0o755); err != nil {
			return fmt.Errorf("testnet: %w", err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return fmt.Errorf("testnet: %w", err)
		}
		if err := h.define(Spec{Name: role, Args: []string{n.cloud.opts.Binary, role, "--config", file},
			Log: filepath.Join(h.dir, role+".log"), Socket: adminSocket(h.dir, role)}); err != nil {
			return err
		}
		if err := h.Start(ctx, role); err != nil {
			return err
		}
	}
	if err := n.inventory(ctx); err != nil {
		return err
	}
	return n.showClient(ctx)
}

// inventory tells the controller of the hypervisors and of the VM.
func (n *tabiNetwork) inventory(ctx context.Context) error {
	for _, host := range []string{labHV1, labHV2} {
		hv := map[string]any{"name": host, "site": host, "rloc": labAddr(host).String(), "xtr_id": node{n: labNumbers[host]}.xtrID(),
			"agent": "http://" + labAddr(host).String() + ":4380", "token": agentToken}
		if err := n.controller(ctx, http.MethodPut, "/v1/sites/"+host, map[string]any{"name": host}, nil); err != nil {
			return err
		}
		if err := n.controller(ctx, http.MethodPut, "/v1/hypervisors/"+host, hv, nil); err != nil {
			return err
		}
	}
	return n.controller(ctx, http.MethodPut, "/v1/vms/"+hostWeb, map[string]any{"name": hostWeb, "hypervisor": labHV1,
		"macs": []string{vmMACs[hostWeb]}, "eids": endpoints[hostWeb].eids(), "interface": labDevice}, nil)
}

// showClient waits until the Map-Server knows the client, which shows itself to its xTR by asking for a neighbour.
func (n *tabiNetwork) showClient(ctx context.Context) error {
	eid := netip.PrefixFrom(labClientAddr, 32).String()
	for {
		if err := n.cloud.hosts[labClient].ns.Do(func() error { return nudge(labClientAddr.Next()) }); err != nil {
			return fmt.Errorf("testnet: %s: %w", labClient, err)
		}
		var rows []mappingRow
		if err := n.cloud.hosts[labMS].Admin(ctx, http.MethodGet, "/v1/show/mappings", nil, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			if r.EID == eid {
				return nil
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("testnet: the Map-Server does not know %s: %w", eid, err)
		}
	}
}

// plug does nothing: the agents find interfaces by their names.
func (n *tabiNetwork) plug(*Host, string) error { return nil }

// prepare has the controller prepare the move, and returns when both agents are ready.
func (n *tabiNetwork) prepare(ctx context.Context, id, to string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var rec controllerRecord
	err := n.controller(ctx, http.MethodPut, "/v1/moves/"+id, map[string]any{"vm": hostWeb, "to": to}, &rec)
	for err == nil && rec.State == "preparing" {
		if err = sleep(ctx, 2*time.Millisecond); err == nil {
			err = n.controller(ctx, http.MethodGet, "/v1/moves/"+id, nil, &rec)
		}
	}
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if rec.State != "prepared" {
		return fmt.Errorf("prepare: the controller says %q: %s %s", rec.State, rec.Why, rec.Error)
	}
	return nil
}

// committed tells the controller that the VM runs at the target.
func (n *tabiNetwork) committed(ctx context.Context, id string) error {
	return n.controller(ctx, http.MethodPost, "/v1/moves/"+id+"/commit", nil, nil)
}

// controller makes a request to the controller's API, from its own host.
func (n *tabiNetwork) controller(ctx context.Context, method, path string, in, out any) error {
	client := n.cloud.hosts[labCtl].client()
	defer client.CloseIdleConnections()
	return call(ctx, client, method, "http://"+labAddr(labCtl).String()+":4381"+path, controllerToken, in, out)
}
