package testnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Need is a Debian package that a demo with real guests needs.
type Need struct {
	Package string `json:"package"`
	Why     string `json:"why"`
	Present bool   `json:"present"`

	file string // that it brings
	vm   string // the kind of VM that alone needs it; "" = both
}

// guestNeeds are the packages of [VMQEMU] and [VMLibvirt]. None of them recommends what we need: they are installed alone.
var guestNeeds = []Need{
	{Package: "qemu-system-x86", file: "/usr/bin/qemu-system-x86_64", Why: "runs the guests; no KVM is needed"},
	{Package: "qemu-utils", file: "/usr/bin/qemu-img", Why: "makes the guests' local disks"},
	{Package: "busybox-static", file: "/var/lib/dpkg/info/busybox-static.list", Why: "is the guests' user space"},
	{Package: "libvirt-daemon-system", file: "/usr/sbin/libvirtd", vm: VMLibvirt, Why: "is the hypervisors' libvirt; the demo runs daemons of its own, in namespaces"},
	{Package: "libvirt-clients", file: "/usr/bin/virsh", vm: VMLibvirt, Why: "has virsh, to migrate guests by hand"},
}

// Setup is what this machine has of what a demo with real guests needs.
type Setup struct {
	Packages []Need `json:"packages"`
	Kernel   string `json:"kernel,omitempty"` // the guest's kernel, "" = not fetched yet
	// Program says where the program in the guest comes from: a file, if it is built already, or the Go that can build
	// it; "" = there is neither.
	Program string `json:"program,omitempty"`
	Image   *Image `json:"image,omitempty"` // once it is made
	// Missing says what is missing, and what will be done about it or has to be. Empty: all is there.
	Missing []string `json:"missing"`
}

// Ready reports whether nothing is missing.
func (s Setup) Ready() bool { return len(s.Missing) == 0 }

// CheckSetup says what this machine has, and changes nothing. kind is VMQEMU, VMLibvirt, or "" for both.
func CheckSetup(kind string) (Setup, error) {
	return checkSetup(kind, guestCache, guestNeeds)
}

func checkSetup(kind, cache string, needs []Need) (Setup, error) {
	s := Setup{Missing: []string{}}
	if kind != "" && kind != VMQEMU && kind != VMLibvirt {
		return s, fmt.Errorf("testnet: set-up for VMs of kind %q: want %q or %q", kind, VMQEMU, VMLibvirt)
	}
	for _, n := range needs {
		if n.vm != "" && kind != "" && n.vm != kind {
			continue
		}
		if n.Present = exists(n.file); !n.Present {
			s.Missing = append(s.Missing, "package "+n.Package+": apt-get install "+n.Package)
		}
		s.Packages = append(s.Packages, n)
	}
	if have, err := filepath.Glob(filepath.Join(cache, "kernel-*", "vmlinuz")); err == nil && len(have) > 0 {
		s.Kernel = slices.Max(have)
	} else {
		s.Missing = append(s.Missing, "the guest's kernel, from package "+kernelMeta+": unpacked into "+cache+", not installed")
	}
	source, err := guestFiles()
	if err != nil {
		return s, fmt.Errorf("testnet: %w", err)
	}
	if have, err := filepath.Glob(filepath.Join(cache, "guest-"+source.hash+"-*")); err == nil && len(have) > 0 {
		s.Program = have[0]
	} else if s.Program, err = findGo(); err != nil {
		s.Missing = append(s.Missing, err.Error())
	}
	return s, nil
}

// InstallSetup installs the Debian packages that are missing, fetches the guest's kernel and makes the image. It needs
// root. It says what it has come to even when it fails.
func InstallSetup(ctx context.Context, kind string, progress func(string)) (Setup, error) {
	s, err := CheckSetup(kind)
	if err != nil {
		return s, err
	}
	if os.Geteuid() != 0 {
		return s, errors.New("testnet: set-up: packages are root's to install: run it with sudo")
	}
	var install []string
	for _, n := range s.Packages {
		if !n.Present {
			progress(fmt.Sprintf("installing %s: it %s", n.Package, n.Why))
			install = append(install, n.Package)
		}
	}
	if len(install) > 0 || s.Kernel == "" {
		if err := apt(ctx, progress, install); err != nil {
			return s, fmt.Errorf("testnet: set-up: %w", err)
		}
	}
	img, imgErr := GuestImage(ctx, progress)
	if s, err = CheckSetup(kind); err != nil {
		return s, err
	}
	if imgErr != nil {
		return s, imgErr
	}
	s.Image = &img
	return s, nil
}

// apt refreshes the list of packages and installs some, asking nothing.
func apt(ctx context.Context, progress func(string), install []string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("no apt-get here: this needs Debian or one of its kin; elsewhere install what these packages have: %s", strings.Join(install, " "))
	}
	progress("reading the list of packages")
	commands := [][]string{{"apt-get", "update", "-qq"}}
	if len(install) > 0 {
		commands = append(commands, append([]string{"apt-get", "install", "-y", "-qq", "--no-install-recommends"}, install...))
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	return nil
}
