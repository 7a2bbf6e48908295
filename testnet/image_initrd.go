package testnet

import (
	"bytes"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// guestInit is the guest's first process.
//
//go:embed image_init.sh
var guestInit []byte

// busyboxPaths are where the package busybox-static puts its program.
var busyboxPaths = []string{"/usr/bin/busybox", "/bin/busybox"}

// guestInitrd makes the initramfs. It is not compressed: an emulated CPU takes longer to unpack than to copy it.
func guestInitrd(kernel kernelDir, program []byte) ([]byte, error) {
	busybox, err := readBusybox(busyboxPaths)
	if err != nil {
		return nil, err
	}
	var c cpio
	for _, d := range []string{"bin", "dev", "etc", "lib", "lib/modules", "proc", "sys", "tmp"} {
		c.add(d, modeDir|0o755, nil)
	}
	c.device("dev/console", 0o600, 5, 1) // before devtmpfs is mounted init has no other output
	c.add("init", modeFile|0o755, guestInit)
	c.add("bin/busybox", modeFile|0o755, busybox)
	c.add("bin/guest", modeFile|0o755, program)
	var order bytes.Buffer
	for _, m := range kernel.modules() {
		b, err := os.ReadFile(m)
		if err != nil {
			return nil, err
		}
		c.add("lib/modules/"+filepath.Base(m), modeFile|0o644, b)
		fmt.Fprintln(&order, filepath.Base(m))
	}
	c.add("lib/modules/order", modeFile|0o644, order.Bytes())
	return c.end(), nil
}

// readBusybox reads the first busybox that is there. One that wants a dynamic linker is an error: the guest has none.
func readBusybox(paths []string) ([]byte, error) {
	i := slices.IndexFunc(paths, exists)
	if i < 0 {
		return nil, errors.New("no busybox: apt-get install busybox-static")
	}
	b, err := os.ReadFile(paths[i])
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", paths[i], err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is dynamically linked and runs in no guest: apt-get install busybox-static", paths[i])
		}
	}
	return b, nil
}

// The file types of a cpio entry's mode.
const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeChar = 0o020000
)

// cpio writes an archive in the format "newc", as the kernel reads it: Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	buf   bytes.Buffer
	inode uint32
}

func (c *cpio) add(name string, mode uint32, content []byte) { c.entry(name, mode, 0, 0, content) }

func (c *cpio) device(name string, perm, major, minor uint32) {
	c.entry(name, modeChar|perm, major, minor, nil)
}

func (c *cpio) entry(name string, mode, major, minor uint32, content []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0,
		len(content), 0, 0, major, minor, len(name)+1, 0)
	c.buf.WriteString(name)
	c.buf.WriteByte(0)
	c.pad()
	c.buf.Write(content)
	c.pad()
}

// pad fills up to a multiple of four bytes.
func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

func (c *cpio) end() []byte {
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.buf.Bytes()
}
