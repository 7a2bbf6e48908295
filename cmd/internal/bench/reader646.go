package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

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

// Run reads what every service has translated and writes what is new as JSON, until there is nothing more to read from
// in. Having read once it says so on out. It must be called on a thread in the namespace of the data plane.
func (r Reader646) Run(ctx context.Context, in io.Reader, out io.Writer, log *slog.Logger) error {
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
	// As the daemon does: on a thread that runs when nobody else wants to. It ends with the goroutine.
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		failed <- r.read(ctx, dp, out)
	}()
	return <-failed
}

func (r Reader646) read(ctx context.Context, dp *kernel.DataPlane, out io.Writer) error {
	tick := time.NewTicker(time.Second / time.Duration(r.Reads))
	defer tick.Stop()
	var last *fib.ServiceCount
	for {
		all, err := dp.ServiceCounters()
		if err != nil {
			return fmt.Errorf("bench: statistics: %w", err)
		}
		if len(all) != r.Mappings {
			return fmt.Errorf("bench: statistics of %d services, want %d", len(all), r.Mappings)
		}
		if &all[0] != last {
			if err := json.NewEncoder(io.Discard).Encode(all); err != nil {
				return fmt.Errorf("bench: statistics: %w", err)
			}
			if last == nil {
				if _, err := fmt.Fprintln(out, "ready"); err != nil {
					return err
				}
			}
			last = &all[0]
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readStatistics has another process read the statistics, as often as the way says, until the function that it returns
// is called. reader is its command line, without what a [Reader646] adds.
func (c *chain646) readStatistics(reader []string) (stop func() error, err error) {
	if c.way.reads == 0 {
		return func() error { return nil }, nil
	}
	args := append(reader[1:len(reader):len(reader)], Reader646{c.pins, c.way.mappings, c.way.reads}.args()...)
	cmd := exec.Command(reader[0], args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := c.front.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("reader of the statistics: %w", err)
	}
	stop = func() error {
		_ = in.Close() // it may have ended
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("reader of the statistics: %w: %s", err, said.Bytes())
		}
		return nil
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("reader of the statistics said %q: %w", line, err), stop())
	}
	return stop, nil
}
