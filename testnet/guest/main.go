// Command guest runs inside a real guest of the demo: it ends flows, and does what a program on a VM does to memory and
// disk. It is told over TCP, in band; see package stream, control.go. The clock in here stands still while the guest
// does: nothing measures time with it.
//
//	serve.go session.go   requests; what a session has open
//	pump.go socket.go     UDP and ping, for few cycles: an emulated CPU has no more
//	tcp.go                TCP
//	memory.go disk.go     what makes a migration hard
//	machine.go            what the kernel says of its drops
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

func main() {
	// Two: with one, the runtime takes it away from whoever waits in the kernel, and wakes a thread to give it back.
	runtime.GOMAXPROCS(2)
	debug.SetMemoryLimit(24 << 20)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	s := newServer()
	if v := parameter("tabi.dirty"); v != "" {
		rate, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return fmt.Errorf("kernel command line: tabi.dirty: %w", err)
		}
		if err := s.memory.set(rate); err != nil {
			return fmt.Errorf("kernel command line: tabi.dirty: %w", err)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(stream.ControlPort)))
	if err != nil {
		return err
	}
	fmt.Println("guest: serving")
	return s.serve(l)
}

// parameter is the last value of a key on the kernel command line.
func parameter(key string) (value string) {
	b, _ := os.ReadFile("/proc/cmdline")
	for _, word := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(word, key+"="); ok {
			value = v
		}
	}
	return value
}
