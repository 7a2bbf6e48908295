package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// machine is what the kernel says of itself and of its drops.
func machine() (m stream.Machine, err error) {
	if m.Name, err = os.Hostname(); err != nil {
		return m, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return m, err
	}
	m.BootID = strings.TrimSpace(string(boot))
	for _, file := range []string{"/proc/net/snmp", "/proc/net/snmp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return m, err
		}
		m.UDPDrops += udpDrops(string(b))
	}
	for _, counter := range []string{"rx_dropped", "rx_missed_errors", "rx_over_errors", "rx_fifo_errors", "tx_dropped"} {
		files, _ := filepath.Glob("/sys/class/net/eth*/statistics/" + counter)
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return m, err
			}
			n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
			if err != nil {
				return m, fmt.Errorf("%s: %w", f, err)
			}
			m.NICDrops += n
		}
	}
	softnet, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return m, err
	}
	m.BacklogDrops = backlogDrops(string(softnet))
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return m, err
	}
	if f := strings.Fields(string(uptime)); len(f) == 2 {
		m.Idle, _ = strconv.ParseFloat(f[1], 64)
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return m, os.NewSyscallError("getrusage", err)
	}
	m.CPU = float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	return m, nil
}

// udpDrops sums the datagrams that did not fit a socket's buffer: of /proc/net/snmp, two lines per protocol, names and
// values, or of /proc/net/snmp6, a line a counter.
func udpDrops(text string) (sum uint64) {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Udp6RcvbufErrors":
			n, _ := strconv.ParseUint(f[1], 10, 64)
			sum += n
		case len(f) > 0 && f[0] == "Udp:" && names == nil:
			names = f
		case len(f) > 0 && f[0] == "Udp:" && len(f) == len(names):
			for i, name := range names {
				if name == "RcvbufErrors" {
					n, _ := strconv.ParseUint(f[i], 10, 64)
					sum += n
				}
			}
		}
	}
	return sum
}

// backlogDrops sums the second column of /proc/net/softnet_stat, a line a CPU, in hexadecimal.
func backlogDrops(text string) (sum uint64) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 {
			n, _ := strconv.ParseUint(f[1], 16, 64)
			sum += n
		}
	}
	return sum
}
