package bench

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/testnet"
)

// PushOptions bound a run of [RunPush].
type PushOptions struct {
	Binary   string        // tabi itself
	Mappings int           // size of the table, at most 1<<20
	Moves    int           // single moves into it
	Every    time.Duration // between two of them
	Progress func(string)
	Log      *slog.Logger
}

// Push is the report of `tabi bench push`.
type Push struct {
	Mappings int `json:"mappings"`
	Moves    int `json:"moves"`
	// From the Map-Register leaving the sender to the mapping in the D-ETR's kernel.
	MedianMS float64 `json:"register_to_kernel_median_ms"`
	P99MS    float64 `json:"register_to_kernel_p99_ms"`
	MaxMS    float64 `json:"register_to_kernel_max_ms"`
	// From the first Map-Register to the last mapping in the D-ETR's kernel, and to the last Map-Notify.
	LoadSeconds    float64 `json:"load_seconds"`
	NotifiedAfter  float64 `json:"load_notified_seconds"`
	Retransmitted  int     `json:"retransmitted"`
	MapServerBytes float64 `json:"mapserver_bytes_per_mapping"` // resident memory
	DETRBytes      float64 `json:"detr_bytes_per_mapping"`
}

const pushKey = "bench"

var (
	pushServer = netip.MustParseAddr("172.16.1.2")
	pushDETR   = netip.MustParseAddr("172.16.2.2")
	pushSelf   = netip.MustParseAddr("172.16.3.2")
)

// RunPush measures; it needs root. It makes and removes its own namespaces.
func RunPush(ctx context.Context, o PushOptions) (p *Push, err error) {
	b := &pushBench{PushOptions: o, installed: map[string]time.Time{}}
	if b.dir, err = os.MkdirTemp("", "tabi-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.build(ctx); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	return b.measure(ctx)
}

type pushBench struct {
	PushOptions
	dir       string
	hub       *testnet.Namespace
	hosts     []*testnet.Namespace
	server    *exec.Cmd
	detr      *exec.Cmd
	conn      *net.UDPConn
	nonce     uint64
	installed map[string]time.Time
}

func (b *pushBench) build(ctx context.Context) error {
	var err error
	name := func(s string) string { return fmt.Sprintf("tabi-bench-%d-%s", os.Getpid(), s) }
	if b.hub, err = testnet.NewNamespace(name("hub")); err != nil {
		return err
	}
	if err := b.hub.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	for i, a := range []netip.Addr{pushServer, pushDETR, pushSelf} {
		ns, err := testnet.NewNamespace(name([]string{"ms", "detr", "reg"}[i]))
		if err != nil {
			return err
		}
		b.hosts = append(b.hosts, ns)
		gw := a.Prev()
		if err := testnet.Connect(testnet.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{net24(a)}},
			testnet.End{NS: b.hub, Name: fmt.Sprintf("h%d", i), Addrs: []netip.Prefix{net24(gw)}}); err != nil {
			return err
		}
		if err := ns.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gw, "eth0"); err != nil {
			return err
		}
	}
	if b.server, err = b.daemon(ctx, b.hosts[0], "mapserver", fmt.Sprintf(`role: mapserver
listen: [%s]
sites: [{name: bench, keys: [{id: 1, secret: %s, format: deployed}], prefixes: [10.0.0.0/8]}]
bgp: {as: 64512, peers: [{address: %s}]}
`, pushServer, pushKey, pushDETR)); err != nil {
		return err
	}
	if b.detr, err = b.daemon(ctx, b.hosts[1], "detr", fmt.Sprintf(`role: detr
xtr_id: 000000000000000000000000000000d1
rlocs: [{address: %s}]
underlay: [eth0]
upstream: [lo]
aggregates: [10.0.0.0/8]
allowed_rlocs: [172.16.0.0/16]
mappings: %d
bgp: {as: 64512, map_servers: [{address: %s, passive: true}]}
pin_dir: %s
`, pushDETR, b.Mappings+1024, pushServer, filepath.Join(b.dir, "bpf"))); err != nil {
		return err
	}
	return b.hosts[2].Do(func() (err error) {
		b.conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pushSelf, lisp.ControlPort)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(pushServer, lisp.ControlPort)))
		return err
	})
}

// daemon starts one daemon and waits until it serves.
func (b *pushBench) daemon(ctx context.Context, ns *testnet.Namespace, role, yaml string) (*exec.Cmd, error) {
	file, sock := filepath.Join(b.dir, role+".yaml"), filepath.Join(b.dir, role+".sock")
	yaml += fmt.Sprintf("socket: %s\nstate_dir: %s\nlog: {level: warn}\n", sock, filepath.Join(b.dir, role))
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.dir, role+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(b.Binary, role, "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	if err := ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err = admin.Dial(sock).Get(ctx, "/v1/ready"); err == nil {
			return cmd, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			text, _ := os.ReadFile(log.Name())
			return cmd, fmt.Errorf("%s does not start: %w\n%s", role, err, text)
		}
	}
}

func (b *pushBench) eid(i int) lisp.EID {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 10<<24|1<<20+uint32(i))
	return lisp.HostEID(0, netip.AddrFrom4(a))
}

// register sends one Map-Register of some EIDs at one RLOC.
func (b *pushBench) register(rloc netip.Addr, version lisp.Version, eids ...lisp.EID) (uint64, error) {
	b.nonce++
	m := &lisp.MapRegister{ProxyReply: true, HasXTRID: true, UseTTL: true, WantMapNotify: true, Nonce: b.nonce, XTRID: lisp.XTRID{15: 1}}
	for _, e := range eids {
		m.Records = append(m.Records, lisp.Mapping{EID: e, TTL: 1440, Version: version, Authoritative: true,
			Locators: []lisp.Locator{{RLOC: rloc, Priority: 1, Weight: 100, Local: true, Reachable: true}}})
	}
	raw, err := lisp.AppendSigned(nil, m, lisp.Key{ID: 1, Algorithm: lisp.AlgHMACSHA256_128, Format: lisp.FormatDeployed, Secret: pushKey})
	if err != nil {
		return 0, err
	}
	_, err = b.conn.Write(raw)
	return b.nonce, err
}

// notified waits for the Map-Notify that bears a nonce.
func (b *pushBench) notified(nonce uint64, wait time.Duration) (bool, error) {
	buf := make([]byte, 65536)
	b.conn.SetReadDeadline(time.Now().Add(wait))
	for {
		n, err := b.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if m, err := lisp.Decode(buf[:n]); err == nil {
			if nt, ok := m.(*lisp.MapNotify); ok && nt.Nonce == nonce {
				return true, nil
			}
		}
	}
}

const perRegister = 32

func (b *pushBench) measure(ctx context.Context) (*Push, error) {
	p := &Push{Mappings: b.Mappings, Moves: b.Moves}
	b.nonce = uint64(time.Now().UnixNano())
	emptyServer, emptyDETR := resident(b.server), resident(b.detr)
	b.Progress(fmt.Sprintf("loading %d mappings", b.Mappings))
	start := time.Now()
	for i := 0; i < b.Mappings; i += perRegister {
		var eids []lisp.EID
		for j := i; j < min(i+perRegister, b.Mappings); j++ {
			eids = append(eids, b.eid(j))
		}
		for tries := 0; ; tries++ {
			nonce, err := b.register(netip.AddrFrom4([4]byte{172, 16, 9, 1}), 1, eids...)
			if err != nil {
				return nil, err
			}
			ok, err := b.notified(nonce, time.Second)
			if err != nil {
				return nil, err
			}
			if ok {
				break
			}
			if p.Retransmitted++; tries > 10 || ctx.Err() != nil {
				return nil, errors.Join(errors.New("bench: the Map-Server does not answer"), ctx.Err())
			}
		}
	}
	p.NotifiedAfter = time.Since(start).Seconds()
	last, err := b.wait(ctx, b.eid(b.Mappings-1), 1)
	if err != nil {
		return nil, err
	}
	p.LoadSeconds = last.Sub(start).Seconds()
	time.Sleep(2 * time.Second) // what is freed after the load is not part of a mapping's memory
	p.MapServerBytes = float64(resident(b.server)-emptyServer) / float64(b.Mappings)
	p.DETRBytes = float64(resident(b.detr)-emptyDETR) / float64(b.Mappings)

	b.Progress(fmt.Sprintf("%d single moves", b.Moves))
	sent := map[lisp.EID]time.Time{}
	var lastEID lisp.EID
	for i := range b.Moves {
		lastEID = b.eid(i * (b.Mappings / b.Moves))
		sent[lastEID] = time.Now()
		if _, err := b.register(netip.AddrFrom4([4]byte{172, 16, 9, 2}), 2, lastEID); err != nil {
			return nil, err
		}
		time.Sleep(b.Every)
	}
	if _, err := b.wait(ctx, lastEID, 2); err != nil {
		return nil, err
	}
	rows, err := b.rows(ctx)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for _, r := range rows {
		if at, ok := sent[r.EID]; ok && r.Version == 2 {
			took = append(took, r.InstalledAt.Sub(at))
		}
	}
	if len(took) != b.Moves {
		return nil, fmt.Errorf("bench: %d of %d moves arrived", len(took), b.Moves)
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	p.MedianMS, p.P99MS, p.MaxMS = ms(quantile(took, 0.5)), ms(quantile(took, 0.99)), ms(took[len(took)-1])
	return p, nil
}

type installedRow struct {
	EID         lisp.EID     `json:"eid"`
	Version     lisp.Version `json:"version"`
	InstalledAt time.Time    `json:"installed_at"`
}

func (b *pushBench) rows(ctx context.Context) ([]installedRow, error) {
	raw, err := admin.Dial(filepath.Join(b.dir, "detr.sock")).Show(ctx, "mappings")
	if err != nil {
		return nil, err
	}
	var rows []installedRow
	return rows, json.Unmarshal(raw, &rows)
}

// wait returns when the whole table is in the D-ETR's kernel and e has a version; the time is the newest
// entry's.
func (b *pushBench) wait(ctx context.Context, e lisp.EID, version lisp.Version) (time.Time, error) {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(250 * time.Millisecond) {
		rows, err := b.rows(ctx)
		if err != nil {
			return time.Time{}, err
		}
		var newest time.Time
		found, hosts := false, 0
		for _, r := range rows {
			if r.EID.IsHost() {
				hosts++
			}
			found = found || r.EID == e && r.Version == version
			if r.InstalledAt.After(newest) {
				newest = r.InstalledAt
			}
		}
		if found && hosts == b.Mappings {
			return newest, nil
		}
	}
	return time.Time{}, errors.Join(errors.New("bench: the table does not arrive at the D-ETR"), ctx.Err())
}

// resident is the resident memory of a process in bytes.
func resident(c *exec.Cmd) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.Process.Pid))
	if err != nil {
		return 0
	}
	var size, rss int64
	fmt.Sscan(string(b), &size, &rss)
	return rss * int64(os.Getpagesize())
}

func (b *pushBench) close() error {
	var errs []error
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
	}
	for _, c := range []*exec.Cmd{b.detr, b.server} {
		if c == nil {
			continue
		}
		c.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { c.Process.Kill() })
		c.Wait()
		kill.Stop()
	}
	for _, ns := range append(b.hosts, b.hub) {
		errs = append(errs, remove(ns))
	}
	// What the D-ETR pinned goes with its file system; its namespace is gone already.
	if err := syscall.Unmount(filepath.Join(b.dir, "bpf"), syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// Write prints the report for people.
func (p *Push) Write(w io.Writer) error {
	_, err := fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf(`
%d single moves into a table of %d mappings
  Map-Register sent -> mapping in the D-ETR's kernel: median %.2f ms, 99th percentile %.2f ms, longest %.2f ms
Full table, %d mappings in each Map-Register
  first Map-Register sent -> last mapping in the D-ETR's kernel: %.2f s; all acknowledged after %.2f s
  resident memory: Map-Server %.0f bytes a mapping, D-ETR %.0f bytes a mapping (its kernel tables not counted)`,
		p.Moves, p.Mappings, p.MedianMS, p.P99MS, p.MaxMS, perRegister, p.LoadSeconds, p.NotifiedAfter, p.MapServerBytes, p.DETRBytes)))
	return err
}
