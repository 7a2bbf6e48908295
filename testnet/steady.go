package testnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// steady keeps the virtual CPUs of a QEMU on the processor while its guest is migrated. QEMU's software emulation looks
// whether a page is watched for changes and writes to it in two steps: a virtual CPU that is put aside between the two
// while the page is copied has its write lost at the target, and the guest breaks down there, now or later. On a machine
// with more to do than processors that happens every few migrations; to a thread of real time it does not.
//
// What cannot be made steady is migrated all the same.
func steady(pid int) error {
	return schedule(pid, unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1})
}

// relax takes steady back, from a guest that has stayed.
func relax(pid int) error {
	return schedule(pid, unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL})
}

// schedule sets how the virtual CPUs of a QEMU are scheduled. Their threads have names if QEMU was told so.
func schedule(pid int, how unix.SchedAttr) error {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(b), "CPU ") {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		err = unix.SchedSetAttr(tid, &how, 0)
		// A thread may have ended; and not every root may ask for real time.
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EPERM) {
			errs = append(errs, fmt.Errorf("testnet: scheduling of a virtual CPU: %w", err))
		}
	}
	return errors.Join(errs...)
}
