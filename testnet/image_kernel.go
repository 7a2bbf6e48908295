package testnet

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernelMeta is Debian's package that depends on the newest cloud kernel.
const kernelMeta = "linux-image-cloud-amd64"

// guestModules are what a guest loads, in this order: each needs the ones before it. A kernel that has one built in
// does not bring it as a file.
var guestModules = []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_mmio",
	"failover", "net_failover", "virtio_net", "virtio_blk"}

// kernelDir is an unpacked kernel: the file vmlinuz, and the modules that it has not built in as NAME.ko.
type kernelDir string

func (k kernelDir) vmlinuz() string { return filepath.Join(string(k), "vmlinuz") }

// modules are the files of the guest's modules, in the order of loading.
func (k kernelDir) modules() (out []string) {
	for _, m := range guestModules {
		if p := filepath.Join(string(k), m+".ko"); exists(p) {
			out = append(out, p)
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// guestKernel is the newest kernel of the cache; without any, one is fetched.
func guestKernel(ctx context.Context, cache string, progress func(string)) (kernelDir, error) {
	have, err := filepath.Glob(filepath.Join(cache, "kernel-*", "vmlinuz"))
	if err != nil {
		return "", err
	}
	if len(have) > 0 {
		return kernelDir(filepath.Dir(slices.Max(have))), nil
	}
	for _, tool := range []string{"apt-cache", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("no guest kernel in %s, and no %s to get Debian's %s with: this needs Debian or one of its kin", cache, tool, kernelMeta)
		}
	}
	depends, err := output(exec.CommandContext(ctx, "apt-cache", "depends", kernelMeta))
	if err != nil {
		return "", fmt.Errorf("find the newest kernel: %w; try: apt-get update", err)
	}
	name, err := kernelPackage(string(depends))
	if err != nil {
		return "", err
	}
	progress("fetching the guest's kernel: Debian package " + name)
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	get := exec.CommandContext(ctx, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name)
	get.Dir = tmp
	if _, err := output(get); err != nil {
		return "", fmt.Errorf("fetch the guest's kernel: %w; is the network there, and the package list fresh (apt-get update)?", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d packages: %w", name, len(debs), err)
	}
	unpacked := filepath.Join(tmp, "kernel")
	if err := unpackKernel(ctx, debs[0], unpacked); err != nil {
		return "", fmt.Errorf("unpack %s: %w", filepath.Base(debs[0]), err)
	}
	to := kernelDir(filepath.Join(cache, "kernel-"+strings.TrimPrefix(name, "linux-image-")))
	return to, os.Rename(unpacked, string(to))
}

var kernelLine = regexp.MustCompile(`(?m)^\s*Depends:\s+(linux-image-\S+)$`)

// kernelPackage reads the name of the kernel's package from what apt-cache depends says.
func kernelPackage(depends string) (string, error) {
	m := kernelLine.FindStringSubmatch(depends)
	if m == nil {
		return "", fmt.Errorf("apt-cache depends %s names no kernel: %q; try: apt-get update", kernelMeta, depends)
	}
	return m[1], nil
}

// unpackKernel takes from a kernel's Debian package what a guest needs: a tenth of a tenth of its modules.
func unpackKernel(ctx context.Context, deb, dir string) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	found, err := pickKernel(ctx, pipe, dir)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	if e := cmd.Wait(); err == nil && e != nil {
		err = fmt.Errorf("dpkg-deb: %w: %s", e, strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return err
	}
	for _, want := range append([]string{"vmlinuz"}, guestModules...) {
		if !found[want] {
			return fmt.Errorf("it has no %s", want)
		}
	}
	return nil
}

// pickKernel copies the kernel and the guest's modules from a package's files, and says what was there, as a file or
// built in.
func pickKernel(ctx context.Context, files io.Reader, dir string) (found map[string]bool, err error) {
	found = make(map[string]bool)
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, files) // the padding: or else the writer sees a broken pipe
			return found, err
		}
		if err != nil {
			return nil, err
		}
		base := filepath.Base(h.Name)
		module, packed := strings.CutSuffix(base, ".xz")
		module, isModule := strings.CutSuffix(module, ".ko")
		switch {
		case h.Typeflag != tar.TypeReg:
		case strings.HasPrefix(base, "vmlinuz-"):
			found["vmlinuz"] = true
			err = writeFrom(filepath.Join(dir, "vmlinuz"), r)
		case base == "modules.builtin":
			var b []byte
			b, err = io.ReadAll(r)
			for line := range strings.Lines(string(b)) {
				found[strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko")] = true
			}
		case isModule && slices.Contains(guestModules, module):
			found[module] = true
			err = copyModule(ctx, filepath.Join(dir, module+".ko"), r, packed)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// copyModule writes a module as the guest wants it, uncompressed.
func copyModule(ctx context.Context, to string, from io.Reader, packed bool) error {
	if !packed {
		return writeFrom(to, from)
	}
	cmd := exec.CommandContext(ctx, "xz", "-dc")
	cmd.Stdin = from
	b, err := output(cmd)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

func writeFrom(to string, from io.Reader) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// output runs a command; an error has what it said.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
