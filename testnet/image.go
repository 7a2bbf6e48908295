package testnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Image is what a real guest boots: a stock kernel, and an initramfs that is its whole file system.
type Image struct {
	Kernel string `json:"kernel"` // path of the kernel
	Initrd string `json:"initrd"` // path of the initramfs
}

// guestCache is where images are made and kept. A kernel is fetched once; an initramfs is made again when what it is
// made of has changed.
const guestCache = "/var/cache/tabi"

// GuestMemory is the least RAM in MiB that a guest of the image runs well in, sockets' buffers included.
const GuestMemory = 96

// GuestImage makes the image of a guest in the cache directory, if it is not there yet: Debian's cloud kernel, fetched
// by apt and unpacked, never installed; busybox; ten kernel modules; and the program that ends flows (testnet/guest),
// built here from source that this binary carries. progress may be nil. It may be called at once from many processes.
//
// It needs root, Debian's apt and dpkg-deb when there is no kernel yet, the package busybox-static, and Go when the
// program is not built yet; errors say which one is missing and what to do.
func GuestImage(ctx context.Context, progress func(string)) (Image, error) {
	if progress == nil {
		progress = func(string) {}
	}
	img, err := guestImage(ctx, guestCache, progress)
	if err != nil {
		return Image{}, fmt.Errorf("testnet: guest image: %w", err)
	}
	return img, nil
}

func guestImage(ctx context.Context, cache string, progress func(string)) (Image, error) {
	unlock, err := lockCache(ctx, cache)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	kernel, err := guestKernel(ctx, cache, progress)
	if err != nil {
		return Image{}, err
	}
	program, err := guestProgram(ctx, cache, progress)
	if err != nil {
		return Image{}, err
	}
	initrd, err := guestInitrd(kernel, program)
	if err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256(initrd)
	path := filepath.Join(cache, fmt.Sprintf("initrd-%x.cpio", sum[:8]))
	if _, err := os.Stat(path); err == nil {
		now := time.Now()
		return Image{kernel.vmlinuz(), path}, os.Chtimes(path, now, now) // in use: see prune
	}
	progress("making the guest's initramfs")
	prune(cache, "initrd-*", time.Now().Add(-24*time.Hour))
	if err := writeWhole(path, initrd, 0o644); err != nil {
		return Image{}, err
	}
	return Image{kernel.vmlinuz(), path}, nil
}

// lockCache makes the cache directory and waits until nobody else works in it.
func lockCache(ctx context.Context, cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, errors.Join(fmt.Errorf("another process works in %s: %w", cache, err), f.Close())
		}
	}
}

// writeWhole writes a file that is there whole or not at all.
func writeWhole(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// prune removes files of the cache that nobody asked for since then. What cannot be removed stays.
func prune(cache, pattern string, since time.Time) {
	files, _ := filepath.Glob(filepath.Join(cache, pattern))
	for _, f := range files {
		if s, err := os.Stat(f); err == nil && s.ModTime().Before(since) && !strings.HasSuffix(f, ".new") {
			_ = os.Remove(f)
		}
	}
}
