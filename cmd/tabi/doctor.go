package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/cmd/internal/config"
	"github.com/tabi-lisp/tabi/cmd/internal/table"
	"github.com/tabi-lisp/tabi/controller/libvirt"
	"github.com/tabi-lisp/tabi/detr"
	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/kernel"
)

func newDoctorCommand() *cobra.Command {
	var file string
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine: kernel, capabilities, sysctls, MTU; what is wrong and what to do",
		Long: `Check whether this machine can run tabi's data plane. With --config FILE also what that file
needs: its interfaces, its MTU, its addresses. Exits with status 1 when something must be mended.`,
		Example: "  sudo tabi doctor\n  sudo tabi doctor --config /etc/tabi/xtr.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return doctor(cmd.Context(), cmd.OutOrStdout(), file, asJSON)
		},
	}
	c.Flags().StringVar(&file, "config", "", "configuration file of an xtr or a detr")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// check is one line of the doctor's report.
type check struct {
	Check  string `json:"check"`
	State  string `json:"state"` // good, warning or bad
	Found  string `json:"found"`
	Remedy string `json:"remedy"`
}

func good(name, found string) check { return check{name, "good", found, ""} }

func bad(name, found, remedy string) check { return check{name, "bad", found, remedy} }

func warning(name, found, remedy string) check { return check{name, "warning", found, remedy} }

func doctor(ctx context.Context, w io.Writer, file string, asJSON bool) error {
	list := []check{kernelRelease(), capabilities(), tunDevice(), bpfPrograms(), jit()}
	list = append(list, socketBuffers())
	if file != "" {
		c, err := config.Load(file)
		if err != nil {
			list = append(list, bad("configuration", err.Error(), "mend the file; tabi config reference ROLE prints every key"))
		} else {
			list = append(list, good("configuration", file))
			list = append(list, checkConfigured(c)...)
			switch x := c.(type) {
			case *config.XTR:
				list = append(list, checkVMs(ctx, x.VMs)...)
			case *config.DETR:
				list = append(list, checkDrained(x))
			}
		}
	}
	if asJSON {
		if err := printJSON(w, list); err != nil {
			return err
		}
	} else {
		b, err := json.Marshal(list)
		if err != nil {
			return err
		}
		if err := table.Write(w, b); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(list, func(c check) bool { return c.State == "bad" }) {
		return errSilent
	}
	return nil
}

func kernelRelease() check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad("kernel", err.Error(), "")
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 6 || major == 6 && minor < 6 {
		return bad("kernel", release, "the data plane needs Linux 6.6 or newer (tcx)")
	}
	return good("kernel", release)
}

func capabilities() check {
	need := map[string]uint{"net_admin": unix.CAP_NET_ADMIN, "net_raw": unix.CAP_NET_RAW, "bpf": unix.CAP_BPF, "sys_admin": unix.CAP_SYS_ADMIN}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return bad("capabilities", err.Error(), "")
	}
	var eff uint64
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			eff, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	var missing []string
	for name, bit := range need {
		if eff&(1<<bit) == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return bad("capabilities", "missing "+strings.Join(missing, ", "), "run as root, or give the service these capabilities")
	}
	return good("capabilities", "net_admin net_raw bpf sys_admin")
}

func tunDevice() check {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return bad("tun device", err.Error(), "modprobe tun")
	}
	f.Close()
	return good("tun device", "/dev/net/tun")
}

func bpfPrograms() check {
	if err := kernel.Probe(); err != nil {
		return bad("BPF programs", err.Error(), "the kernel needs CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_NET_XGRESS")
	}
	return good("BPF programs", "load and pass the verifier")
}

func jit() check {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) != "0" {
		return good("BPF JIT", "on")
	}
	return warning("BPF JIT", "off", "sysctl net.core.bpf_jit_enable=1; without it every packet costs several times as much")
}

func socketBuffers() check {
	b, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return good("socket buffers", "per namespace")
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	if n < 1<<20 {
		return warning("socket buffers", fmt.Sprintf("net.core.rmem_max=%d", n), "sysctl net.core.rmem_max=4194304; a Map-Server may drop a burst of registrations otherwise")
	}
	return good("socket buffers", fmt.Sprintf("net.core.rmem_max=%d", n))
}

// checkConfigured looks at what a file says about this machine.
func checkConfigured(c any) []check {
	var ifs []string
	var mtu int
	var rlocs []lisp.Locator
	forwards := false
	switch c := c.(type) {
	case *config.XTR:
		ifs, mtu, rlocs = c.Underlay, c.UnderlayMTU, c.Engine.RLOCs
	case *config.DETR:
		ifs, mtu, rlocs, forwards = append(slices.Clone(c.Underlay), c.Upstream...), c.UnderlayMTU, c.Anchor.RLOCs, true
	}
	var out []check
	for _, name := range ifs {
		i, err := net.InterfaceByName(name)
		switch {
		case err != nil:
			out = append(out, bad("interface "+name, "not there", "name the interface that reaches the other sites"))
		case i.Flags&net.FlagUp == 0:
			out = append(out, bad("interface "+name, "down", "ip link set "+name+" up"))
		case i.MTU < mtu:
			out = append(out, bad("interface "+name, fmt.Sprintf("MTU %d, underlay_mtu says %d", i.MTU, mtu), fmt.Sprintf("set underlay_mtu: %d, or raise the interface's", i.MTU)))
		default:
			out = append(out, good("interface "+name, fmt.Sprintf("up, MTU %d", i.MTU)))
		}
	}
	out = append(out, ownAddresses(rlocs)...)
	if forwards {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			b, err := os.ReadFile("/proc/sys/" + key)
			name := strings.ReplaceAll(key, "/", ".")
			if err != nil || strings.TrimSpace(string(b)) != "1" {
				out = append(out, warning(name, strings.TrimSpace(string(b)), "sysctl "+name+"=1; the D-ETR sets it when it starts"))
			} else {
				out = append(out, good(name, "1"))
			}
		}
	}
	return out
}

func ownAddresses(rlocs []lisp.Locator) []check {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return []check{bad("RLOCs", err.Error(), "")}
	}
	var out []check
	for _, l := range rlocs {
		if !l.Local {
			continue
		}
		here := slices.ContainsFunc(addrs, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(l.RLOC.AsSlice())
		})
		if here {
			out = append(out, good("RLOC "+l.RLOC.String(), "an address of this machine"))
		} else {
			out = append(out, bad("RLOC "+l.RLOC.String(), "no interface has it", "configure the address, or name another RLOC"))
		}
	}
	return out
}

// checkDrained tells of a D-ETR that somebody has drained and forgotten; it stays so when it is restarted.
func checkDrained(c *config.DETR) check {
	const name = "drain"
	since, err := detr.Drained(c.StateDir)
	switch {
	case err != nil:
		return bad(name, err.Error(), "remove the file, or let tabi detr drain write it")
	case since.IsZero():
		return good(name, "not drained")
	}
	return warning(name, "drained since "+since.Local().Format("2006-01-02 15:04:05")+": it announces nothing", "tabi detr undrain, when it is to serve again")
}

// checkVMs looks whether the agent will hear of VMs.
func checkVMs(ctx context.Context, vms config.VMs) (out []check) {
	if vms.Libvirt == "" && vms.QMP == "" {
		return []check{warning("vms", "neither libvirt nor QMP", "set vms: in the file; without it, and without a prepare, a migration loses what the old interface swallows")}
	}
	if vms.Libvirt != "" {
		out = append(out, checkLibvirt(ctx, vms.Libvirt))
	}
	if vms.QMP != "" {
		out = append(out, checkMonitors(vms.QMP))
	}
	return out
}

func checkLibvirt(ctx context.Context, uri string) check {
	const name = "vms.libvirt"
	hv, err := libvirt.New(uri, nil)
	if err != nil {
		return bad(name, err.Error(), "mend the URI")
	}
	defer hv.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := hv.Guests(ctx)
	if err != nil {
		return bad(name, err.Error(), "is libvirtd (or virtqemud) running, and may this user use its socket?")
	}
	return good(name, fmt.Sprintf("%s answers, %d VMs", uri, len(all)))
}

// checkMonitors looks at sockets and does not connect: a monitor serves one at a time, and that is the agent.
func checkMonitors(pattern string) check {
	const name = "vms.qmp"
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return bad(name, err.Error(), "mend the pattern")
	}
	sockets := 0
	for _, p := range paths {
		info, err := os.Stat(p)
		switch {
		case err != nil || info.Mode()&os.ModeSocket == 0:
		case unix.Access(p, unix.R_OK|unix.W_OK) != nil:
			return bad(name, p+" may not be used by this user", "run the agent as root, or give it the socket")
		default:
			sockets++
		}
	}
	if sockets == 0 {
		return warning(name, "no socket matches "+pattern, "start each VM with -qmp unix:PATH,server=on,wait=off, for the agent alone")
	}
	return good(name, fmt.Sprintf("%d monitors match %s", sockets, pattern))
}
