package testnet

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"text/template"
)

// Secrets of the demo: nothing outside of its namespaces can reach what they protect.
const (
	agentToken      = "demo-agent-token"
	controllerToken = "demo-controller-token"
	siteSecret      = "demo-site-secret"
	controlSecret   = "demo-controller-secret"
	xsiteSecret     = "demo-xsite-secret"
	externalSecret  = "demo-external-secret"
)

// configFile is the configuration file of the daemon of a host. It is what an operator would write: nothing in it
// is for the demo only.
func configFile(n node, dir string, level string, by maker, services bool) (string, error) {
	d := configData{node: n, Services: services, Name: n.name, Role: n.role, Dir: dir, Socket: adminSocket(dir, n.role), Level: level}
	if n.role == "xtr" && inCloud(n.site) {
		d.VMs = by.agent(n, dir)
	}
	var b strings.Builder
	if err := configs.ExecuteTemplate(&b, n.role, d); err != nil {
		return "", fmt.Errorf("testnet: configuration of %s: %w", n.name, err)
	}
	return b.String(), nil
}

// ConfigFiles are the configuration files of all daemons of the demo, by host, as they would be for a run in dir, with or
// without service addresses.
func ConfigFiles(dir string, services bool) (map[string]string, error) {
	out := make(map[string]string)
	for _, n := range append([]node{inetNode}, nodes...) {
		text, err := configFile(n, filepath.Join(dir, n.name), "info", namespaceMaker{}, services)
		if err != nil {
			return nil, err
		}
		out[n.name] = text
	}
	return out, nil
}

func adminSocket(dir, role string) string { return filepath.Join(dir, role+".sock") }

// inetNode is the Internet router, which hangs on nothing.
var inetNode = node{name: hostInet, role: "router", about: "the Internet router, AS 64500"}

// configData is what the templates see.
type configData struct {
	node
	Name, Role, Dir, Socket, Level string
	VMs                            string // where the agent hears of its VMs
	Services                       bool   // the cloud has service addresses
}

func (d configData) XTRID() string       { return d.xtrID() }
func (d configData) RLOCs() []netip.Addr { return d.rlocList() }
func (d configData) V4() netip.Addr      { return d.v4() }
func (d configData) V6() netip.Addr      { return d.v6() }
func (d configData) Outside() bool       { return outOfCloud(d.site) }
func (d configData) SiteNumber() int {
	return map[string]int{"nezu": 1, "hokuriku": 2, "nara": 3, "osaka": 4, "xsite": 9}[d.site]
}
func (d configData) Upstreams() []netip.Addr { return []netip.Addr{gateway4(d.up4())} }

// MapServers are those of the host's own cloud, by the address family that it speaks.
func (d configData) MapServers() (out []netip.Addr) {
	where := inCloud
	if d.Outside() {
		where = outOfCloud
	}
	for _, m := range nodesOf("mapserver", where) {
		out = append(out, m.control(d.rlocs))
	}
	return out
}

// External are the Map-Servers of the other network.
func (d configData) External() (out []netip.Addr) {
	for _, m := range nodesOf("mapserver", outOfCloud) {
		out = append(out, m.v4())
	}
	return out
}

// Anchors are the RLOCs of all D-ETRs.
func (d configData) Anchors() (out []netip.Addr) {
	for _, a := range nodesOf("detr", inCloud) {
		out = append(out, a.rlocList()...)
	}
	return out
}

// AnchorPrefixes are the same as prefixes: what the D-ETRs may register at the other network's Map-Server.
func (d configData) AnchorPrefixes() (out []netip.Prefix) {
	for _, a := range d.Anchors() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// PETRs are the D-ETRs' RLOCs of the families that the host speaks.
func (d configData) PETRs() (out []netip.Addr) {
	for _, a := range d.Anchors() {
		if a.Is4() && d.rlocs&rloc4 != 0 || a.Is6() && d.rlocs&rloc6 != 0 {
			out = append(out, a)
		}
	}
	return out
}

// Allowed are the addresses that data may come from. Those of the cloud are listed one by one: the other network's
// xTR has an address of the same range here, and is a stranger.
func (d configData) Allowed() (out []netip.Prefix) {
	if d.Outside() {
		return []netip.Prefix{underlay4, underlay6}
	}
	for _, role := range []string{"xtr", "detr"} {
		for _, n := range nodesOf(role, inCloud) {
			out = append(out, netip.PrefixFrom(n.v4(), 32), netip.PrefixFrom(n.v6(), 128))
		}
	}
	return out
}

// DETRs are the IPv4 addresses of the D-ETRs, MapServers4 those of the cloud's Map-Servers: BGP's.
func (d configData) DETRs() (out []netip.Addr) {
	for _, n := range nodesOf("detr", inCloud) {
		out = append(out, n.v4())
	}
	return out
}

func (d configData) MapServers4() (out []netip.Addr) {
	for _, n := range nodesOf("mapserver", inCloud) {
		out = append(out, n.v4())
	}
	return out
}

// UpstreamPeers are the D-ETRs as the Internet router sees them.
func (d configData) UpstreamPeers() (out []netip.Addr) {
	for _, n := range nodesOf("detr", inCloud) {
		out = append(out, n.up4())
	}
	return out
}

func (d configData) Aggregates() []netip.Prefix { return []netip.Prefix{aggregate4, aggregate6} }

func (d configData) Prefixes() []netip.Prefix {
	if d.Outside() {
		return []netip.Prefix{xsite4, xsite6}
	}
	return d.Aggregates()
}

// Registered are what is registered at the cloud's Map-Servers: the EIDs, and what the D-ETRs take for the VMs.
func (d configData) Registered() []netip.Prefix {
	all := d.Aggregates()
	if d.Services {
		all = append(append(all, d.ServicePrefixes()...), pool)
	}
	return all
}

func (d configData) ServicePrefixes() []netip.Prefix { return []netip.Prefix{services4, services6} }
func (d configData) Pool() netip.Prefix              { return pool }

func (d configData) XsitePrefixes() []netip.Prefix { return []netip.Prefix{xsite4, xsite6} }

func (d configData) VMInterface() string {
	if d.Outside() {
		return "vm0"
	}
	return "tap-*"
}

type gatewayNet struct {
	Prefix  netip.Prefix
	Address netip.Addr
}

func (d configData) Nets() []gatewayNet {
	if d.Outside() {
		return []gatewayNet{{xsite4, xsiteGateway4}, {xsiteOnLink6, vmGateway6}}
	}
	return []gatewayNet{{aggregate4, vmGateway4}, {onLink6, vmGateway6}}
}

func (d configData) GatewayMAC() string { return gatewayMAC }

func (d configData) Secret() string {
	if d.Outside() {
		return xsiteSecret
	}
	return siteSecret
}

func (d configData) ControlSecret() string   { return controlSecret }
func (d configData) ExternalSecret() string  { return externalSecret }
func (d configData) AgentToken() string      { return agentToken }
func (d configData) ControllerToken() string { return controllerToken }
func (d configData) MTU() int                { return underlayMTU }
func (d configData) CloudAS() int            { return cloudAS }
func (d configData) InetAS() int             { return inetAS }

// list writes a YAML flow sequence.
func list(v any) string {
	switch v := v.(type) {
	case []netip.Addr:
		return join(v)
	case []netip.Prefix:
		return join(v)
	}
	panic(fmt.Sprintf("testnet: list of %T", v))
}

func join[T fmt.Stringer](v []T) string {
	s := make([]string, len(v))
	for i, x := range v {
		s[i] = `"` + x.String() + `"`
	}
	return "[" + strings.Join(s, ", ") + "]"
}

var configs = template.Must(template.New("").Funcs(template.FuncMap{"list": list}).Parse(`
{{- define "common" -}}
role: {{.Role}}
name: {{.Name}}
socket: {{.Socket}}
state_dir: {{.Dir}}/state
log: {level: {{.Level}}}
{{end}}

{{- define "gateway" -}}
gateway:
  mac: "{{.GatewayMAC}}"
  nets:{{range .Nets}}
    - {prefix: "{{.Prefix}}", address: "{{.Address}}"}{{end}}{{end}}

{{- define "locators"}}{{range .}}
  - {address: "{{.}}", priority: 1, weight: 100}{{end}}{{end}}

{{- define "xtr"}}{{template "common" .}}
xtr_id: "{{.XTRID}}"
site_id: {{.SiteNumber}}
rlocs:{{template "locators" .RLOCs}}
underlay: [eth0]
underlay_mtu: {{.MTU}}
vm_interfaces: ["{{.VMInterface}}"]
{{- if .VMs}}
vms: {{.VMs}}{{end}}
eid_prefixes: {{list .Prefixes}}
{{template "gateway" .}}
map_servers:{{$s := .Secret}}{{range .MapServers}}
  - {address: "{{.}}", key: {id: 1, secret: {{$s}}}}{{end}}
{{- if not .Outside}}
petrs:{{template "locators" .PETRs}}{{end}}
allowed_rlocs: {{list .Allowed}}
pin_dir: {{.Dir}}/bpf
{{- if not .Outside}}
api: {listen: "{{.V4}}:4380", token: {{.AgentToken}}}{{end}}
{{end}}

{{- define "mapserver"}}{{template "common" .}}
listen: ["{{.V4}}", "{{.V6}}"]
sites:
{{- if .Outside}}
  - name: xsite
    prefixes: {{list .XsitePrefixes}}
    keys:
      - {id: 1, secret: {{.Secret}}}
  - name: tabi
    prefixes: {{list .Aggregates}}
    accept_more_specifics: false
    allowed_rlocs: {{list .AnchorPrefixes}}
    keys:
      - {id: 1, secret: {{.ExternalSecret}}}
{{- else}}
  - name: cloud
    prefixes: {{list .Registered}}
    allowed_rlocs: {{list .Allowed}}
    keys:
      - {id: 1, secret: {{.Secret}}}
      - {id: 2, secret: {{.ControlSecret}}, controller: true}
bgp:
  as: {{.CloudAS}}
  peers:{{range .DETRs}}
    - {address: "{{.}}", passive: true}{{end}}{{end}}
{{end}}

{{- define "detr"}}{{template "common" .}}
xtr_id: "{{.XTRID}}"
site_id: {{.SiteNumber}}
rlocs:{{template "locators" .RLOCs}}
underlay: [eth0]
upstream: [up0]
underlay_mtu: {{.MTU}}
aggregates: {{list .Aggregates}}
anchors:{{template "locators" .Anchors}}
allowed_rlocs: {{list .Allowed}}
pin_dir: {{.Dir}}/bpf
bgp:
  as: {{.CloudAS}}
  hold_time: 9
  map_servers:{{range .MapServers4}}
    - {address: "{{.}}"}{{end}}
  upstreams:{{$as := .InetAS}}{{range .Upstreams}}
    - {address: "{{.}}", as: {{$as}}}{{end}}
external:
  map_servers:{{$s := .ExternalSecret}}{{range .External}}
    - {address: "{{.}}", key: {id: 1, secret: {{$s}}}}{{end}}
{{- if .Services}}
services:
  prefixes: {{list .ServicePrefixes}}
  pool: "{{.Pool}}"
  map_servers:{{$s := .Secret}}{{range .MapServers4}}
    - {address: "{{.}}", key: {id: 1, secret: {{$s}}}}{{end}}{{end}}
{{end}}

{{- define "controller"}}{{template "common" .}}
listen: "{{.V4}}:4381"
token: {{.ControllerToken}}
addresses: ["{{.V4}}", "{{.V6}}"]
map_servers:{{$s := .ControlSecret}}{{range .MapServers4}}
  - {address: "{{.}}", key: {id: 2, secret: {{$s}}}}{{end}}
{{end}}

{{- define "router"}}{{template "common" .}}
as: {{.InetAS}}
router_id: 192.0.2.1
peers:{{$as := .CloudAS}}{{range .UpstreamPeers}}
  - {address: "{{.}}", as: {{$as}}, passive: true}{{end}}
{{end}}
`))
