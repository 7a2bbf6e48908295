package testnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LibvirtConfig describes a [Libvirtd].
type LibvirtConfig struct {
	NS   *Namespace
	Name string // the host name that it has; two daemons between which VMs move must have different ones
	// Dir is for its files: configuration, logs, sockets, what it remembers. Made if missing; below 70 bytes, since
	// the names of unix sockets in it are short.
	Dir string
	// Listen is where it serves TCP (port 16509), without asking who is there; zero = nowhere.
	Listen netip.Addr
	// Hosts are names that it can resolve, itself apart.
	Hosts map[string]netip.Addr
}

// Libvirtd is a libvirt daemon that believes to have a machine for itself: with network, mount, UTS and PID namespaces of
// its own, it sees none of the machine's libvirt, and the VMs that it starts end with it. If it dies it is started again,
// as on a machine with systemd, and finds its VMs.
type Libvirtd struct {
	conf LibvirtConfig
	proc *process
}

// libvirtCache keeps what daemons find out about QEMU, which takes 15 s when it is not known.
const libvirtCache = guestCache + "/libvirt"

// libvirtScript is the first process of a daemon's namespaces. $1 is its directory, $2 its name, $3 the cache.
const libvirtScript = `set -e
mkdir -p /etc/libvirt /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$3" /var/cache/libvirt
mount --bind "$1/hosts" /etc/hosts
hostname "$2"
trap 'exit 0' TERM
while :; do
	libvirtd --listen --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid" &
	wait $! || true
	sleep 0.1
done`

const libvirtdConf = `host_uuid = "%s"
listen_tls = 0
listen_tcp = %d
listen_addr = "%s"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
`

const libvirtQEMUConf = `user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
dynamic_ownership = 0
remember_owner = 0
`

// MissingLibvirt says in one line what is missing to run libvirt daemons here; "" = nothing.
func MissingLibvirt() string {
	for program, pkg := range map[string]string{"libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "qemu-system-x86_64": "qemu-system-x86"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Sprintf("there is no %s: apt-get install %s", program, pkg)
		}
	}
	return ""
}

// StartLibvirtd starts a daemon and waits until it serves. It ends with the calling process.
func StartLibvirtd(ctx context.Context, conf LibvirtConfig) (*Libvirtd, error) {
	spec, err := libvirtdSpec(conf)
	if err != nil {
		return nil, err
	}
	p, err := startProcess(conf.NS, conf.Name, spec)
	if err != nil {
		return nil, err
	}
	l := &Libvirtd{conf, p}
	if err := l.Ready(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// libvirtdSpec writes a daemon's files and says how it is started.
func libvirtdSpec(conf LibvirtConfig) (Spec, error) {
	if missing := MissingLibvirt(); missing != "" {
		return Spec{}, errors.New("testnet: " + missing)
	}
	for _, dir := range []string{"etc", "etc/qemu", "run", "lib", "log"} {
		if err := os.MkdirAll(filepath.Join(conf.Dir, dir), 0o755); err != nil {
			return Spec{}, fmt.Errorf("testnet: %w", err)
		}
	}
	if err := os.MkdirAll(libvirtCache, 0o755); err != nil {
		return Spec{}, fmt.Errorf("testnet: %w", err)
	}
	tcp := 0
	if conf.Listen.IsValid() {
		tcp = 1
	}
	hosts := "127.0.0.1 localhost " + conf.Name + "\n::1 localhost\n"
	for name, a := range conf.Hosts {
		hosts += a.String() + " " + name + "\n"
	}
	id := sha256.Sum256([]byte(conf.Name))
	for file, text := range map[string]string{
		"libvirtd.conf": fmt.Sprintf(libvirtdConf, formatUUID(id[:16]), tcp, conf.Listen),
		"etc/qemu.conf": libvirtQEMUConf,
		"hosts":         hosts,
	} {
		if err := os.WriteFile(filepath.Join(conf.Dir, file), []byte(text), 0o644); err != nil {
			return Spec{}, fmt.Errorf("testnet: %w", err)
		}
	}
	return Spec{Name: "libvirtd", Log: filepath.Join(conf.Dir, "libvirtd.log"), Args: []string{
		"unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--propagation", "private",
		"sh", "-c", libvirtScript, "libvirtd", conf.Dir, conf.Name, libvirtCache}}, nil
}

// formatUUID writes 16 bytes as a UUID that names itself random.
func formatUUID(b []byte) string {
	b = bytes.Clone(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Socket is where the daemon serves on this machine.
func (l *Libvirtd) Socket() string { return filepath.Join(l.conf.Dir, "run", "libvirt-sock") }

// URI is the daemon's for who is on this machine, in whatever namespace.
func (l *Libvirtd) URI() string { return libvirtURI(l.conf.Dir) }

// RemoteURI is the daemon's for who reaches its address.
func (l *Libvirtd) RemoteURI() string { return libvirtRemoteURI(l.conf.Listen) }

func libvirtURI(dir string) string {
	return "qemu+unix:///system?socket=" + filepath.Join(dir, "run", "libvirt-sock")
}

func libvirtRemoteURI(a netip.Addr) string { return "qemu+tcp://" + urlHost(a) + "/system" }

func urlHost(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	return "[" + a.String() + "]"
}

// Virsh runs virsh with the daemon, and returns what it prints.
func (l *Libvirtd) Virsh(ctx context.Context, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", l.URI()}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // as Ctrl-C: a migration is cancelled
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("testnet: %s: virsh %s: %w: %s", l.conf.Name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Ready waits until the daemon answers.
func (l *Libvirtd) Ready(ctx context.Context) error {
	said := errors.New("nothing")
	for {
		_, err := l.Virsh(ctx, "list")
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			said = err
		}
		select {
		case <-l.proc.done:
			return fmt.Errorf("testnet: %s/libvirtd ended before it was ready: %w; its log ends:\n%s", l.conf.Name, l.proc.err, tail(l.proc.spec.Log))
		case <-ctx.Done():
			return fmt.Errorf("testnet: %s/libvirtd is not ready: %w; it said: %w; its log ends:\n%s", l.conf.Name, context.Cause(ctx), said, tail(l.proc.spec.Log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Restart kills the daemon, not its VMs, and waits until it is there again.
func (l *Libvirtd) Restart(ctx context.Context) error {
	if err := l.Kill(); err != nil {
		return err
	}
	return l.Ready(ctx)
}

// Kill kills the daemon, not its VMs; it comes back by itself.
func (l *Libvirtd) Kill() error {
	p, err := l.daemon()
	if err != nil {
		return err
	}
	return p.kill()
}

// Freeze stops the daemon in its tracks, not its VMs. Thaw lets it go on.
func (l *Libvirtd) Freeze() error { return l.signal(unix.SIGSTOP) }

// Thaw lets a frozen daemon go on.
func (l *Libvirtd) Thaw() error { return l.signal(unix.SIGCONT) }

func (l *Libvirtd) signal(sig unix.Signal) error {
	p, err := l.daemon()
	if err != nil {
		return err
	}
	return p.signal(sig)
}

// daemon is the process of libvirtd itself.
func (l *Libvirtd) daemon() (ProcessRef, error) {
	first, err := children(l.proc.ref.PID)
	if err != nil || len(first) == 0 {
		return ProcessRef{}, fmt.Errorf("testnet: %s/libvirtd does not run: %w", l.conf.Name, err)
	}
	all, err := children(first[0])
	if err != nil {
		return ProcessRef{}, fmt.Errorf("testnet: %s/libvirtd: %w", l.conf.Name, err)
	}
	for _, pid := range all {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(name)) != "libvirtd" {
			continue
		}
		p, err := processRef(pid)
		p.Host, p.Name = l.conf.Name, "libvirtd"
		return p, err
	}
	return ProcessRef{}, fmt.Errorf("testnet: %s/libvirtd is just being started", l.conf.Name)
}

// vmPID is the process of a VM that runs there.
func (l *Libvirtd) vmPID(vm string) (int, error) {
	first, err := children(l.proc.ref.PID)
	if err != nil || len(first) == 0 {
		return 0, fmt.Errorf("testnet: %s/libvirtd does not run: %w", l.conf.Name, err)
	}
	all, err := children(first[0]) // libvirt leaves its VMs to the first process
	if err != nil {
		return 0, fmt.Errorf("testnet: %s/libvirtd: %w", l.conf.Name, err)
	}
	for _, pid := range all {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(b, []byte("\x00guest="+vm+",")) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("testnet: %s does not run at %s", vm, l.conf.Name)
}

// children are the ids of a process's children, oldest first.
func children(pid int) (out []int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// Close ends the daemon and its VMs, and waits until they are gone.
func (l *Libvirtd) Close() error {
	first, _ := children(l.proc.ref.PID)
	for _, pid := range first {
		if p, err := processRef(pid); err == nil {
			_ = p.signal(unix.SIGTERM)
		}
	}
	select {
	case <-l.proc.done:
		return nil
	case <-time.After(10 * time.Second):
	}
	l.proc.end(unix.SIGKILL, 10*time.Second)
	return fmt.Errorf("testnet: %s/libvirtd had to be killed; its log ends:\n%s", l.conf.Name, tail(l.proc.spec.Log))
}
