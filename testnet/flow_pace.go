package testnet

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// minPause is the least time that a sender sleeps: a scheduler tick is about a millisecond, and what is due goes out
// together.
const minPause = 500 * time.Microsecond

// pace calls send for each packet at its time until ctx ends. It blocks, and keeps an OS thread on one CPU meanwhile: a
// sender that the scheduler moved while packets wait in the old CPU's queue would overtake itself.
func (l *lane) pace(ctx context.Context, send func(stream.Stamp) error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with this goroutine, and its affinity with it
		stayOnOneCPU(int(l.id))
		due := stream.NewPacer(l.rate, time.Now())
		for ctx.Err() == nil {
			for range due.Due(time.Now()) {
				seq := l.sent.Add(1) - 1
				if err := send(stream.Stamp{Stream: l.id, Seq: seq, SentNS: time.Now().UnixNano()}); err != nil {
					l.errs.Add(1)
					text := err.Error()
					l.lastErr.Store(&text)
				}
			}
			// The runtime's sleep would hand a locked thread's turn to others and back, each time.
			t := unix.NsecToTimespec(int64(max(time.Until(due.Next()), minPause)))
			_ = unix.Nanosleep(&t, nil) // woken early by a signal: as good
		}
	}()
	<-done
}

// stayOnOneCPU binds the calling thread to the n-th of the CPUs that it may run on. Where that is not allowed nothing is
// lost but order, which is counted.
func stayOnOneCPU(n int) {
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() == 0 {
		return
	}
	n %= all.Count()
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if n--; n < 0 {
			one.Set(cpu)
			_ = unix.SchedSetaffinity(0, &one)
			return
		}
	}
}
