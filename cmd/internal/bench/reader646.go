package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet"
	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/kernel"
)

// Reader646 is what a process that reads statistics is told: it is a process of its own, as a D-ETR is, or its memory
// would be collected at the cost of those who make the load.
type Reader646 struct {
	Pins     string // of the data plane
	Mappings int    // service addresses that it has
	Reads    int    // a second
}

// args are the command line from which [ParseReader646] makes r again.
func (r Reader646) args() []string {
	return []string{r.Pins, strconv.Itoa(r.Mappings), strconv.Itoa(r.Reads)}
}

// ParseReader646 reads the command line of a process that reads statistics.
func ParseReader646(args []string) (r Reader646, err error) {
	if len(args) != 3 {
		return r, fmt.Errorf("bench: %d arguments, want DIR SERVICES READS", len(args))
	}
	var bad [2]error
	r.Pins = args[0]
	r.Mappings, bad[0] = strconv.Atoi(args[1])
	r.Reads, bad[1] = strconv.Atoi(args[2])
	if err := errors.Join(bad[:]...); err != nil || r.Reads < 1 {
		return r, fmt.Errorf("bench: statistics of %s services read %s times a second: %w", args[1], args[2], err)
	}
	return r, nil
}

// Answer is what a D-ETR does when it is asked for its statistics, given its services in order and what the data plane has
// counted.
type Answer func(context.Context) error

// Run asks for the statistics until there is nothing more to read from in. Having asked once it says so on out. It must be
// called on a thread in the namespace of the data plane.
func (r Reader646) Run(ctx context.Context, answer func([]fib.Service, func() ([]fib.ServiceCount, error)) Answer, in io.Reader, out io.Writer,
	log *slog.Logger) error {
	dp, err := kernel.Open(front646(r.Pins, r.Mappings), log)
	if err != nil {
		return err
	}
	defer dp.Close() // what is pinned goes on
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, in) // however it ends
	}()
	asked := answer(services646(r.Mappings), dp.ServiceCounters)
	if err := asked(ctx); err != nil {
		return fmt.Errorf("bench: statistics: %w", err)
	}
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return err
	}
	for tick := time.NewTicker(time.Second / time.Duration(r.Reads)); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := asked(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("bench: statistics: %w", err)
		}
	}
}

// reading is a process that reads statistics. It stands still at first.
type reading struct {
	cmd  *exec.Cmd
	in   io.Closer
	said bytes.Buffer // what it complained of
}

// startReading starts the process; command is its command line, without what r adds. It has read once when it is returned.
func startReading(ns *testnet.Namespace, command []string, r Reader646) (*reading, error) {
	p := &reading{cmd: exec.Command(command[0], slices.Concat(command[1:], r.args())...)}
	p.cmd.Stderr = &p.said
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in = in
	if err := ns.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("reader of the statistics: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("reader of the statistics said %q: %w", line, err), p.end())
	}
	if err := p.stand(true); err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

// stand has the process stand still, or go on.
func (p *reading) stand(still bool) error {
	if still {
		return p.cmd.Process.Signal(unix.SIGSTOP)
	}
	return p.cmd.Process.Signal(unix.SIGCONT)
}

// used is the processor time that the process has had, that of threads that have ended as well.
func (p *reading) used() (time.Duration, error) {
	const cpuClock = 2 // of a process by its pid, as clock_getcpuclockid(3) makes it
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|cpuClock), &t); err != nil {
		return 0, fmt.Errorf("processor time of the reader: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

func (p *reading) end() error {
	_ = p.stand(false) // it may have ended
	_ = p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("reader of the statistics: %w: %s", err, p.said.Bytes())
	}
	return nil
}

// Reading646 is what it costs that statistics are read.
type Reading646 struct {
	Mappings int     `json:"mappings"`
	Metric   string  `json:"metric"` // of the load
	Ratio    *Sample `json:"ratio"`  // of what passes while they are read, to what passes a second before or after
	// Processors is the part of the machine's processors, under load, that the reader has had.
	Processors *Sample `json:"processors"`
}

// readingSlice is how long one load is measured with the reader, and then without: not longer, or the machine is another
// one meanwhile, and not shorter than the age that statistics may have.
const readingSlice = time.Second

// readStatistics measures loads with and without a reader of the statistics, in turn, each time for a slice.
func (c *chain646) readStatistics(ctx context.Context, pairs int, slice time.Duration, r Reader646, command []string) (out []Reading646, err error) {
	reader, err := startReading(c.front, command, r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reader.end()) }()
	for _, m := range c.pair().loads() {
		x := Reading646{Mappings: r.Mappings, Metric: m.metric, Ratio: &Sample{}, Processors: &Sample{}}
		l, err := m.start()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.metric, err)
		}
		time.Sleep(warmUp)
		for i := 0; i < pairs && ctx.Err() == nil && err == nil; i++ {
			err = reader.pair(l, slice, i%2 == 0, &x)
		}
		l.stop()
		if err := errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("%s: %w", m.metric, err)
		}
		out = append(out, x)
	}
	return out, nil
}

// pair measures a load with the reader and without, in this order or the other.
func (p *reading) pair(l *load, slice time.Duration, first bool, into *Reading646) error {
	var with, without float64
	for _, read := range []bool{first, !first} {
		if !read {
			without = l.rate(slice)
			continue
		}
		before, err := p.used()
		if err != nil {
			return err
		}
		if err := p.stand(false); err != nil {
			return err
		}
		with = l.rate(slice)
		if err := p.stand(true); err != nil {
			return err
		}
		after, err := p.used()
		if err != nil {
			return err
		}
		into.Processors.add(float64(after-before) / float64(slice) / float64(runtime.NumCPU()))
	}
	into.Ratio.add(with / without)
	return nil
}
