package qmp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"
)

// EventKind says what [Watch] tells.
type EventKind string

// The kinds.
const (
	Listed    EventKind = "listed"    // All is every VM that is there now
	Stopped   EventKind = "stopped"   // its CPUs stand still: a pause, or the switch of a migration
	Resumed   EventKind = "resumed"   // its CPUs run here; also: its migration is over, and it has stayed
	Migrating EventKind = "migrating" // it is being sent away; its CPUs still run here
	Gone      EventKind = "gone"      // its QEMU has ended
	Failed    EventKind = "failed"    // a monitor cannot be spoken to: Guest.Socket, Why
)

// Event is what [Watch] tells.
type Event struct {
	Kind  EventKind
	Guest Guest     // which VM, as it is after the event; of Listed none
	All   []Guest   // of Listed: by socket
	At    time.Time // QEMU's clock if it told us, else when we found out
	Why   string    // for people
}

// Times of a watch.
const (
	scanEvery   = 50 * time.Millisecond // a QEMU that waits for a migration must be followed before the VM runs there
	askAgain    = 10 * time.Second      // for what no event tells, as a plugged interface
	firstList   = 5 * time.Second       // how long the first list waits for a monitor that does not answer
	answerTime  = 5 * time.Second       // that a monitor may take for one answer
	redialFirst = 20 * time.Millisecond
	redialMost  = time.Second
)

// Watch follows the VMs behind all monitors whose sockets match a pattern of [filepath.Glob], also those that appear
// later, until ctx ends; then it returns nil. Only a pattern that is malformed is an error.
//
// f is called for each event, one at a time, from one goroutine; while it blocks, nothing is followed. The first call is
// a Listed with all VMs that are there, unless one of them takes more than five seconds to answer; there is one more
// after whatever changes the list or what is in it, before or after the event that says so. The events of one VM come
// in their order. Where a connection was lost for a while, what has changed meanwhile is told as if it happened when
// that was found out.
func Watch(ctx context.Context, glob string, f func(Event)) error {
	if _, err := filepath.Match(glob, ""); err != nil {
		return fmt.Errorf("qmp: pattern %q: %w", glob, err)
	}
	w := &watch{f: f, told: make(chan told), followed: make(map[socketID]*followed), wait: time.Now().Add(firstList)}
	ctx, cancel := context.WithCancel(ctx)
	defer w.wg.Wait()
	defer cancel()
	tick := time.NewTicker(scanEvery)
	defer tick.Stop()
	w.scan(ctx, glob)
	for {
		w.list(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			w.scan(ctx, glob)
		case t := <-w.told:
			w.hear(t, time.Now())
		}
	}
}

// socketID is a socket for good: one that was made anew under the same name is another one.
type socketID struct {
	path    string
	ino     uint64
	changed time.Time
}

// followed is what the watch knows of a socket.
type followed struct {
	cancel  context.CancelFunc
	settled bool // it was listed once, or cannot be
	guest   *Guest
	failed  string
}

// watch is the state of a Watch; its goroutine owns it.
type watch struct {
	f        func(Event)
	told     chan told
	followed map[socketID]*followed
	wg       sync.WaitGroup
	wait     time.Time // until when the first list is waited for
	listed   bool
	dirty    bool // the list has changed since it was told
}

// told is what a follower says: one of its fields is set.
type told struct {
	socket socketID
	guest  *Guest        // who is there now
	event  *MonitorEvent // what happened to him
	lost   bool          // nobody is there
	failed error         // it cannot be known
}

// scan looks for sockets that are new, and forgets those that are no more.
func (w *watch) scan(ctx context.Context, glob string) {
	paths, _ := filepath.Glob(glob) // the pattern is well-formed
	seen := make(map[socketID]bool, len(paths))
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeSocket == 0 {
			continue
		}
		id := socketID{path: path}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			id.ino, id.changed = st.Ino, time.Unix(st.Ctim.Unix())
		}
		seen[id] = true
		if w.followed[id] != nil {
			continue
		}
		follow, cancel := context.WithCancel(ctx)
		w.followed[id] = &followed{cancel: cancel}
		w.wg.Go(func() { w.follow(follow, id) })
	}
	for id, s := range w.followed {
		// As long as somebody answers, a name that was removed is no news.
		if !seen[id] && s.guest == nil {
			s.cancel()
			delete(w.followed, id)
		}
	}
}

// list tells the whole list if it is due.
func (w *watch) list(now time.Time) {
	if !w.listed && now.Before(w.wait) {
		for _, s := range w.followed {
			if !s.settled {
				return
			}
		}
	}
	if w.listed && !w.dirty {
		return
	}
	first := !w.listed
	w.listed, w.dirty = true, false
	all := []Guest{}
	for _, s := range w.followed {
		if s.guest != nil {
			all = append(all, *s.guest)
		}
	}
	slices.SortFunc(all, func(a, b Guest) int {
		if a.Socket < b.Socket {
			return -1
		}
		return 1
	})
	w.f(Event{Kind: Listed, All: all, At: now})
	for _, g := range all {
		if first && g.Leaving && g.Status.Running {
			w.f(Event{Kind: Migrating, Guest: g, At: now, Why: foundLeaving})
		}
	}
}

// foundLeaving is why, where no event said it.
const foundLeaving = "found migrating"

// hear takes what a follower says.
func (w *watch) hear(t told, now time.Time) {
	s := w.followed[t.socket]
	if s == nil {
		return // it was forgotten meanwhile
	}
	switch {
	case t.failed != nil:
		s.settled = true
		if s.failed != t.failed.Error() { // said once
			s.failed = t.failed.Error()
			w.f(Event{Kind: Failed, Guest: Guest{Socket: t.socket.path}, At: now, Why: s.failed})
		}
	case t.lost:
		s.settled = true
		if g := s.guest; g != nil {
			s.guest, w.dirty = nil, true
			g.Status, g.Leaving = Status{Status: "shutdown"}, false
			w.f(Event{Kind: Gone, Guest: *g, At: now, Why: "its monitor is gone"})
		}
	case t.guest != nil:
		s.failed = ""
		w.found(s, *t.guest, now)
	case t.event != nil && s.guest != nil:
		w.happened(s, *t.event, now)
	}
}

// found compares who is there with who was.
func (w *watch) found(s *followed, g Guest, now time.Time) {
	was := s.guest
	s.guest = &g
	first := !s.settled
	s.settled = true
	if was != nil && reflect.DeepEqual(*was, g) {
		return
	}
	w.dirty = true
	if !w.listed && first {
		return // the first list says it
	}
	w.list(now)
	if was == nil {
		if g.Leaving && g.Status.Running {
			w.f(Event{Kind: Migrating, Guest: g, At: now, Why: foundLeaving})
		}
		return
	}
	switch {
	case was.Status.Running && !g.Status.Running:
		w.f(Event{Kind: Stopped, Guest: g, At: now, Why: "found " + g.Status.Status})
	case !was.Status.Running && g.Status.Running:
		w.f(Event{Kind: Resumed, Guest: g, At: now, Why: "found running"})
	case !was.Leaving && g.Leaving && g.Status.Running:
		w.f(Event{Kind: Migrating, Guest: g, At: now, Why: foundLeaving})
	case was.Leaving && !g.Leaving && g.Status.Running:
		w.f(Event{Kind: Resumed, Guest: g, At: now, Why: "found not migrating any more"})
	}
}

// happened takes an event of QEMU's.
func (w *watch) happened(s *followed, e MonitorEvent, now time.Time) {
	g, at := s.guest, e.At
	if at.IsZero() {
		at = now
	}
	say := func(kind EventKind, why string) {
		w.dirty = true
		w.f(Event{Kind: kind, Guest: *g, At: at, Why: why})
	}
	switch e.Name {
	case "STOP":
		g.Status = Status{Status: "paused"}
		say(Stopped, "STOP")
	case "RESUME":
		g.Status, g.Leaving = Status{Status: statusRunning, Running: true}, false
		say(Resumed, "RESUME")
	case "MIGRATION":
		var m struct{ Status string }
		if e.Decode(&m) != nil || g.Status.Status == statusIncoming {
			return
		}
		was := g.Leaving
		g.Leaving = underWay(m.Status)
		switch {
		case !was && g.Leaving && g.Status.Running:
			say(Migrating, "MIGRATION "+m.Status)
		case was && !g.Leaving && g.Status.Running:
			say(Resumed, "MIGRATION "+m.Status)
		}
	}
}

// follow connects to a socket again and again.
func (w *watch) follow(ctx context.Context, id socketID) {
	say := func(t told) bool {
		t.socket = id
		select {
		case w.told <- t:
			return true
		case <-ctx.Done():
			return false
		}
	}
	pause, broke := redialFirst, 0
	for ctx.Err() == nil {
		c, err := Dial(ctx, id.path)
		if err == nil {
			pause, broke = redialFirst, 0
			err = w.serve(ctx, c, say)
			_ = c.Close()
			if err == nil {
				continue // it ended, and may be there again
			}
		}
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			say(told{lost: true})
		case broke < 5 && (errors.Is(err, ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
			broke++ // a QEMU that ends: what it leaves is seen at the next attempt
		default:
			say(told{failed: err})
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, redialMost)
	}
}

// serve tells who is behind a monitor and what happens to him, until the connection ends (nil), or cannot be used.
func (w *watch) serve(ctx context.Context, c *Client, say func(told) bool) error {
	// Heard before it is asked, told after the answer: nothing is missed between the two.
	events := make(chan MonitorEvent, 64)
	defer c.Hear(func(e MonitorEvent) {
		switch e.Name {
		case "STOP", "RESUME", "MIGRATION", "DEVICE_DELETED":
			select {
			case events <- e:
			case <-ctx.Done():
			}
		}
	})()
	ask := func() error {
		answer, cancel := context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("not within %v", answerTime))
		defer cancel()
		g, err := c.Guest(answer)
		if err == nil {
			say(told{guest: &g})
		}
		return err
	}
	// Whoever migrates wants the events as well; while one is under way QEMU refuses, and the events are on.
	refused := new(Error)
	if err := c.Execute(ctx, "migrate-set-capabilities", capabilities{{"events", true}}.args(), nil); err != nil && !errors.As(err, &refused) {
		return c.ended(err)
	}
	if err := ask(); err != nil {
		return c.ended(err)
	}
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-c.Done():
			return nil
		case e := <-events:
			if e.Name == "DEVICE_DELETED" {
				err = ask()
			} else {
				say(told{event: &e})
			}
		case <-again.C:
			err = ask()
		}
		if err != nil {
			return c.ended(err)
		}
	}
}

// ended is nil if the connection is closed, which explains err.
func (c *Client) ended(err error) error {
	if c.Err() != nil {
		return nil
	}
	return err
}
