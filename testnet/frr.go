package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// startFRRDaemon writes a daemon's configuration, starts it on a host and waits until it answers. zebra must be first:
// the others look for it once, and then only now and again. more are further
// options of its command line.
func startFRRDaemon(ctx context.Context, h *Host, daemon, config string, more ...string) error {
	dir, err := frrOwn(h)
	if err != nil {
		return err
	}
	conf := filepath.Join(dir, daemon+".conf")
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	args := []string{filepath.Join(frrDir, daemon), "-f", conf, "-i", filepath.Join(dir, daemon+".pid"),
		"-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "-P", "0"}
	args = append(args, more...)
	if err := h.define(Spec{Name: daemon, Args: args, Log: filepath.Join(h.dir, daemon+".log")}); err != nil {
		return err
	}
	if err := h.launch(daemon); err != nil {
		return err
	}
	_, err = frrShow(ctx, h, daemon, "show version")
	return err
}

// frrShow asks a daemon, again until it answers.
func frrShow(ctx context.Context, h *Host, daemon, command string) ([]byte, error) {
	for {
		out, err := exec.CommandContext(ctx, "vtysh", "--vty_socket", frrRun(h), "-d", daemon, "-c", command).CombinedOutput()
		if err == nil {
			return out, nil
		}
		if !h.Running(daemon) {
			return nil, fmt.Errorf("testnet: %s/%s ended; it said:\n%s", h.Name, daemon, tail(filepath.Join(h.dir, daemon+".log")))
		}
		if e := sleep(ctx, 20*time.Millisecond); e != nil {
			return nil, fmt.Errorf("testnet: %s/%s does not answer %q: %w: %w: %s", h.Name, daemon, command, e, err, out)
		}
	}
}

// upstreamHold is after how many seconds of silence FRR takes a D-ETR for dead.
const upstreamHold = 3

// upstreamConfig is the Internet router as FRR: what the D-ETRs announce is shared among them.
var upstreamConfig = template.Must(template.New("").Parse(`hostname inet
log file {{.Log}}
router bgp {{.InetAS}}
 bgp router-id 192.0.2.1
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 bgp bestpath as-path multipath-relax
{{- range .UpstreamPeers}}
 neighbor {{.}} remote-as {{$.CloudAS}}
 neighbor {{.}} passive
 neighbor {{.}} timers 1 {{$.Hold}}
{{- end}}
{{- range .Families}}
 address-family {{.}} unicast
  maximum-paths 8
{{- range $.UpstreamPeers}}
  neighbor {{.}} activate
{{- end}}
 exit-address-family
{{- end}}
`))

// upstreamData is what its template sees.
type upstreamData struct {
	configData
	Log      string
	Hold     int
	Families []string
}

// startUpstreamFRR makes FRR the Internet router.
func (c *Cloud) startUpstreamFRR(ctx context.Context) error {
	if missing := MissingFRR(); missing != "" {
		return fmt.Errorf("testnet: %s", missing)
	}
	h := c.hosts[hostInet]
	var conf strings.Builder
	d := upstreamData{configData{node: inetNode}, filepath.Join(frrRun(h), "bgpd.log"), upstreamHold, []string{"ipv4", "ipv6"}}
	if err := upstreamConfig.Execute(&conf, d); err != nil {
		return fmt.Errorf("testnet: configuration of bgpd: %w", err)
	}
	zebra := "hostname inet\nlog file " + filepath.Join(frrRun(h), "zebra.log") + "\n"
	// Without it zebra takes an IPv6 route away before it puts the changed one in its place, and packets are lost.
	if err := startFRRDaemon(ctx, h, "zebra", zebra, "--v6-rr-semantics"); err != nil {
		return err
	}
	return startFRRDaemon(ctx, h, "bgpd", conf.String())
}

// upstreamRoutes are the next hops by which FRR has each prefix, in both families.
func (c *Cloud) upstreamRoutes(ctx context.Context) (map[string][]string, error) {
	out := make(map[string][]string)
	for _, family := range []string{"ipv4", "ipv6"} {
		answer, err := frrShow(ctx, c.hosts[hostInet], "bgpd", "show bgp "+family+" unicast json")
		if err != nil {
			return nil, err
		}
		var v struct {
			Routes map[string][]struct {
				Multipath bool `json:"multipath"`
				BestPath  bool `json:"bestpath"`
				PeerID    string
			} `json:"routes"`
		}
		if err := json.Unmarshal(answer, &v); err != nil {
			return nil, fmt.Errorf("testnet: bgpd: %w in %s", err, answer)
		}
		for prefix, paths := range v.Routes {
			for _, p := range paths {
				if p.Multipath || p.BestPath {
					out[prefix] = append(out[prefix], p.PeerID)
				}
			}
		}
	}
	return out, nil
}
