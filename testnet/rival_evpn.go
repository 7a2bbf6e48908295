package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// frrDir is where the Debian package frr has its daemons.
const frrDir = "/usr/lib/frr"

// MissingFRR says in one line what is missing to run FRR here; "" = nothing.
func MissingFRR() string {
	for _, f := range []string{frrDir + "/zebra", frrDir + "/bgpd", "/usr/bin/vtysh"} {
		if _, err := os.Stat(f); err != nil {
			return f + " is not there: install the package frr"
		}
	}
	return ""
}

// evpnNetwork is VXLAN whose tables FRR writes, by what BGP tells it (RFC 8365).
type evpnNetwork struct {
	vxlanNetwork
	tuned bool // `zebra work-queue 0`
}

// evpnData is what the configuration files see.
type evpnData struct {
	Host  string
	Self  string
	Peers []string
	Tuned bool
	Log   string
}

var evpnConfigs = template.Must(template.New("").Parse(`
{{- define "zebra" -}}
hostname {{.Host}}
log file {{.Log}}
{{- if .Tuned}}
zebra work-queue 0
{{- end}}
{{end}}

{{- define "bgpd" -}}
hostname {{.Host}}
log file {{.Log}}
router bgp 64512
 bgp router-id {{.Self}}
 no bgp default ipv4-unicast
{{- range .Peers}}
 neighbor {{.}} remote-as 64512
 neighbor {{.}} update-source {{$.Self}}
 neighbor {{.}} timers connect 1
{{- end}}
 address-family l2vpn evpn
{{- range .Peers}}
  neighbor {{.}} activate
{{- end}}
  advertise-all-vni
 exit-address-family
{{end}}
`))

// evpnConfig is a daemon's configuration file at one end.
func evpnConfig(daemon, end string, tuned bool, log string) (string, error) {
	d := evpnData{Host: end, Self: labAddr(end).String(), Tuned: tuned, Log: log}
	for _, other := range labEnds {
		if other != end {
			d.Peers = append(d.Peers, labAddr(other).String())
		}
	}
	var b bytes.Buffer
	if err := evpnConfigs.ExecuteTemplate(&b, daemon, d); err != nil {
		return "", fmt.Errorf("testnet: configuration of %s: %w", daemon, err)
	}
	return b.String(), nil
}

// start makes the bridges, starts zebra and bgpd at each end and waits until all have heard of all.
func (n *evpnNetwork) start(ctx context.Context) error {
	if missing := MissingFRR(); missing != "" {
		return errors.New(missing)
	}
	if err := n.vxlanNetwork.start(ctx); err != nil {
		return err
	}
	for _, end := range labEnds {
		if err := n.startFRR(ctx, n.cloud.hosts[end]); err != nil {
			return err
		}
	}
	for _, end := range labEnds {
		if err := n.waitMesh(ctx, n.cloud.hosts[end]); err != nil {
			return err
		}
	}
	return nil
}

func (n *evpnNetwork) startFRR(ctx context.Context, h *Host) error {
	for _, daemon := range []string{"zebra", "bgpd"} {
		text, err := evpnConfig(daemon, h.Name, n.tuned, filepath.Join(frrRun(h), daemon+".log"))
		if err != nil {
			return err
		}
		if err := startFRRDaemon(ctx, h, daemon, text); err != nil {
			return err
		}
	}
	return nil
}

// frrRun is the directory of a host's FRR daemons.
func frrRun(h *Host) string { return filepath.Join(h.dir, "frr") }

// frrOwn makes that directory. The daemons give up root for a user of their own, and must still write there.
func frrOwn(h *Host) (string, error) {
	u, err := user.Lookup("frr")
	if err != nil {
		return "", fmt.Errorf("testnet: the package frr makes this user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	dir := frrRun(h)
	if err := errors.Join(err1, err2, os.MkdirAll(dir, 0o755), os.Chown(dir, uid, gid)); err != nil {
		return "", fmt.Errorf("testnet: directory of FRR: %w", err)
	}
	return dir, nil
}

// waitMesh waits until zebra has the other ends' VTEPs of our network, which it has from BGP.
func (n *evpnNetwork) waitMesh(ctx context.Context, h *Host) error {
	for {
		out, err := frrShow(ctx, h, "zebra", fmt.Sprintf("show evpn vni %d json", labVNI))
		if err != nil {
			return err
		}
		known, err := evpnVTEPs(out)
		if err != nil {
			return fmt.Errorf("testnet: %s/zebra: %w", h.Name, err)
		}
		if known == len(labEnds)-1 {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("testnet: %s: zebra knows %d of %d other ends: %w", h.Name, known, len(labEnds)-1, err)
		}
	}
}

// evpnVTEPs counts the remote VTEPs in zebra's answer to "show evpn vni N json".
func evpnVTEPs(answer []byte) (int, error) {
	if len(strings.TrimSpace(string(answer))) == 0 {
		return 0, nil
	}
	var v struct {
		// A list of objects, or "n/a".
		VTEPs json.RawMessage `json:"numRemoteVteps"`
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return 0, fmt.Errorf("show evpn vni: %w in %q", err, answer)
	}
	var list []json.RawMessage
	if json.Unmarshal(v.VTEPs, &list) == nil {
		return len(list), nil
	}
	var n int
	_ = json.Unmarshal(v.VTEPs, &n) // other words than a number: none
	return n, nil
}
