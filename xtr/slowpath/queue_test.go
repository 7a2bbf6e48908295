package slowpath

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tabi-lisp/tabi/xtr/fib"
)

// On a busy host this process waits for its turn: copies that are there are waited for, however long they have been.
func TestReplayWaitsForAStarvedReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(t, 1)
		s := k.start(Config{})
		q := s.queues[0]
		k.mu.Lock()
		k.given[5] = 1
		k.mu.Unlock()
		q.busy.Store(true)
		const late = 120 * time.Millisecond
		handedOn := make(chan struct{})
		go func() {
			defer close(handedOn)
			time.Sleep(late)
			k.feed(0, fib.Up{Reason: fib.UpCopy, Port: 5, Seq: 1}, nil, udp(t, "192.0.2.1", "192.0.2.2", "a"))
			synctest.Wait() // until it is handed on
			q.busy.Store(false)
		}()
		begin := time.Now()
		if n := s.Replay(9, 5, 0); n != 1 || time.Since(begin) < late || time.Since(begin) > late+2*starvedStep {
			t.Errorf("replayed %d after %v", n, time.Since(begin))
		}
		<-handedOn
		// Not for ever.
		k.mu.Lock()
		k.given[5] = 2
		k.mu.Unlock()
		q.busy.Store(true)
		begin = time.Now()
		if n := s.Replay(9, 5, 1); n != 0 || time.Since(begin) != starvedTime {
			t.Errorf("replayed %d after %v", n, time.Since(begin))
		}
		q.busy.Store(false)
	})
}

func TestQueueQuiet(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, kernel := os.NewFile(uintptr(fds[0]), "queue"), os.NewFile(uintptr(fds[1]), "kernel")
	defer kernel.Close()
	q, err := newQueue(ours)
	if err != nil {
		t.Fatal(err)
	}
	if !q.quiet() {
		t.Error("busy before anything came")
	}
	frame := make([]byte, 100)
	if _, err := kernel.Write(frame); err != nil {
		t.Fatal(err)
	}
	if q.quiet() {
		t.Error("quiet with a frame that nobody has read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := make(chan *batch), make(chan error, 1)
	var c counts
	go func() { ended <- q.run(ctx, out, &c) }()
	time.Sleep(20 * time.Millisecond)
	if q.quiet() {
		t.Error("quiet with a frame in the reader's hands")
	}
	(<-out).free()
	for deadline := time.Now().Add(5 * time.Second); !q.quiet(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("busy with nothing to do")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	_ = ours.Close()
	if !q.quiet() {
		t.Error("busy though it is closed")
	}
}
