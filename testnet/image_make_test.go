package testnet

import (
	"archive/tar"
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKernelPackage(t *testing.T) {
	got, err := kernelPackage("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Breaks: <x>\n")
	if err != nil || got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "linux-image-cloud-amd64\n", "linux-image-cloud-amd64\n  Depends: other\n"} {
		if got, err := kernelPackage(bad); err == nil || !strings.Contains(err.Error(), "apt-get update") {
			t.Errorf("%q: %q %v", bad, got, err)
		}
	}
}

// kernelTar is the files of a kernel's package: name -> content.
func kernelTar(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}))
		_, err := w.Write([]byte(content))
		must(t, err)
	}
	must(t, w.Close())
	b.Write(make([]byte, 20000)) // dpkg pads
	return b.Bytes()
}

func TestPickKernelTakesWhatAGuestNeeds(t *testing.T) {
	xz := exec.Command("xz", "-c")
	xz.Stdin = strings.NewReader("a packed module")
	packed, err := output(xz)
	must(t, err)
	dir := t.TempDir()
	const base = "./lib/modules/6.1/kernel/drivers/"
	in := bytes.NewReader(kernelTar(t, map[string]string{"./boot/vmlinuz-6.1": "the kernel", "./boot/config-6.1": "x",
		base + "net/virtio_net.ko.xz": string(packed), base + "virtio/virtio.ko": "a module", base + "net/other.ko": "x",
		"./lib/modules/6.1/modules.builtin": "kernel/drivers/virtio/virtio_ring.ko\nkernel/fs/ext4/ext4.ko\n"}))
	found, err := pickKernel(t.Context(), in, dir)
	must(t, err)
	for _, want := range []string{"vmlinuz", "virtio_net", "virtio", "virtio_ring"} {
		if !found[want] {
			t.Errorf("%s was not found", want)
		}
	}
	if found["other"] || found["virtio_blk"] || in.Len() != 0 {
		t.Errorf("%v, %d bytes unread", found, in.Len())
	}
	got := map[string]string{}
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		got[f.Name()] = readFile(t, filepath.Join(dir, f.Name()))
	}
	if diff := cmp.Diff(map[string]string{"vmlinuz": "the kernel", "virtio_net.ko": "a packed module", "virtio.ko": "a module"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{dir + "/virtio.ko", dir + "/virtio_net.ko"}, kernelDir(dir).modules()); diff != "" {
		t.Error(diff)
	}
	if _, err := pickKernel(t.Context(), strings.NewReader("no archive at all"), t.TempDir()); err == nil {
		t.Error("no archive, and no error")
	}
}

// What the archive holds is read by somebody else's cpio.
func TestCpioIsReadable(t *testing.T) {
	var c cpio
	c.add("d", modeDir|0o755, nil)
	c.add("d/file", modeFile|0o640, []byte("hello"))
	c.device("console", 0o600, 5, 1)
	list := exec.Command("busybox", "cpio", "-tv")
	list.Stdin = bytes.NewReader(c.end())
	out, err := output(list)
	must(t, err)
	for _, want := range []string{"drwxr-xr-x", "-rw-r-----", "crw-------", "5", "d/file", "console"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	cat := exec.Command("busybox", "cpio", "-i", "--to-stdout", "d/file")
	cat.Stdin = bytes.NewReader(c.buf.Bytes())
	if out, err := output(cat); err != nil || string(out) != "hello" {
		t.Errorf("%q %v", out, err)
	}
}

func TestBusyboxMustBeStatic(t *testing.T) {
	if _, err := readBusybox([]string{"/nowhere/busybox"}); err == nil || !strings.Contains(err.Error(), "busybox-static") {
		t.Error(err)
	}
	if _, err := readBusybox([]string{"/bin/ls"}); err == nil || !strings.Contains(err.Error(), "dynamically linked") {
		t.Error(err)
	}
	if b, err := readBusybox(busyboxPaths); err != nil || len(b) < 1e6 {
		t.Error(len(b), err)
	}
}

// What the guest's program is built of is all that is there, and no test.
func TestGuestSourcesAreComplete(t *testing.T) {
	s, err := guestFiles()
	must(t, err)
	var want []string
	for _, dir := range []string{"stream", "guest"} {
		files, err := filepath.Glob(dir + "/*.go")
		must(t, err)
		for _, f := range files {
			if !strings.HasSuffix(f, "_test.go") {
				want = append(want, f)
			}
		}
	}
	slices.Sort(want)
	var got []string
	for f := range s.files {
		got = append(got, f)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list them at guestSource (image_program.go): %s", diff)
	}
}

// A program that does not compile is said to be so, and by what.
func TestBuildGuestSaysWhatIsWrong(t *testing.T) {
	tool, err := findGo()
	must(t, err)
	_, err = buildGuest(t.Context(), tool, t.TempDir(), sources{files: map[string][]byte{"guest/main.go": []byte("package main\n\nfunc main() { nonsense }\n")}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
}

func TestGuestCmdline(t *testing.T) {
	got := GuestCmdline(GuestParams{Name: "web", Dirty: 2.5, Extra: []string{"debug"}, NICs: []GuestNIC{
		{Addrs: addrs("198.51.100.10/24", "2001:db8::10/64"), Gateway4: netip.MustParseAddr("198.51.100.1"), Gateway6: netip.MustParseAddr("fe80::1")},
		{Addrs: addrs("10.0.0.1/8")}}})
	want := "console=ttyS0 quiet panic=-1 tsc=unstable init_on_free=1 net.ifnames=0 tabi.name=web " +
		"tabi.eth0.addrs=198.51.100.10/24,2001:db8::10/64 tabi.eth0.gw4=198.51.100.1 tabi.eth0.gw6=fe80::1 tabi.eth1.addrs=10.0.0.1/8 tabi.dirty=2.5 debug"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSetupSaysWhatIsMissing(t *testing.T) {
	cache := t.TempDir()
	there := filepath.Join(cache, "there")
	must(t, os.WriteFile(there, nil, 0o644))
	needs := []Need{{Package: "a", file: there}, {Package: "b", file: cache + "/absent"}, {Package: "c", file: cache + "/absent", vm: VMLibvirt}}
	for _, c := range []struct {
		kind    string
		missing int // packages, and the kernel
	}{{"", 3}, {VMQEMU, 2}, {VMLibvirt, 3}} {
		s, err := checkSetup(c.kind, cache, needs)
		must(t, err)
		if len(s.Missing) != c.missing || s.Ready() || s.Kernel != "" || !s.Packages[0].Present || s.Packages[1].Present {
			t.Errorf("%q: %+v", c.kind, s)
		}
	}
	must(t, os.Mkdir(filepath.Join(cache, "kernel-7"), 0o755))
	must(t, os.WriteFile(filepath.Join(cache, "kernel-7", "vmlinuz"), nil, 0o644))
	s, err := checkSetup(VMQEMU, cache, needs[:1])
	must(t, err)
	if !s.Ready() || s.Kernel == "" || s.Program == "" {
		t.Errorf("%+v", s)
	}
	if _, err := checkSetup("namespace", cache, needs); err == nil {
		t.Error("namespace VMs need a set-up")
	}
}

// Two processes do not make the same image at once, and one that waits can be told not to.
func TestImageCacheIsLocked(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "new", "cache")
	unlock, err := lockCache(t.Context(), cache)
	must(t, err)
	if _, err := lockCache(within(t, 1e8), cache); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	unlock()
	again, err := lockCache(within(t, 1e9), cache)
	must(t, err)
	again()
}

// The initramfs fits the guest's memory, and is made when it has changed.
func TestImageIsMadeOnce(t *testing.T) {
	first, err := GuestImage(t.Context(), nil)
	must(t, err)
	var said []string
	second, err := GuestImage(t.Context(), func(s string) { said = append(said, s) })
	must(t, err)
	if diff := cmp.Diff(first, second); diff != "" || len(said) > 0 {
		t.Errorf("%s %q", diff, said)
	}
	s, err := os.Stat(first.Initrd)
	must(t, err)
	if s.Size() > GuestMemory<<20/8 || s.Size() < 1<<20 {
		t.Errorf("%s has %s bytes", first.Initrd, strconv.FormatInt(s.Size(), 10))
	}
}
