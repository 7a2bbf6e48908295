package admin

import (
	"net/http"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Encoded is an answer that is encoded already: a table that is large, or asked for so often that encoding it for
// everybody who asks would cost too much. Who has it already, by its Tag, is told so and nothing more.
type Encoded struct {
	Body []byte // not changed any more
	Type string // MIME type; empty: JSON
	Tag  string // changes with Body; of letters and digits
}

// largeAnswer is from how many bytes on an answer is written in the background.
const largeAnswer = 256 << 10

// ServeHTTP answers a request for e.
func (e Encoded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tag := strconv.Quote(e.Tag)
	h := w.Header()
	h.Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if e.Type == "" {
		e.Type = "application/json"
	}
	h.Set("Content-Type", e.Type)
	h.Set("Content-Length", strconv.Itoa(len(e.Body)))
	if len(e.Body) < largeAnswer {
		w.Write(e.Body)
		return
	}
	inBackground(func() { w.Write(e.Body) })
}

// inBackground runs f on a thread that gets the processor when nobody else wants it, and waits for it. It is for
// copying what somebody reads, which must not keep packets waiting; f is in system calls nearly all the time, so that
// it keeps no garbage collection waiting either.
func inBackground(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Not unlocked: the thread ends with the goroutine, so that nothing else runs on it.
		runtime.LockOSThread()
		// Where that is refused, f runs as everything else does.
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		f()
	}()
	<-done
}
