package control

import (
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// dropReason is why a message was not handed on or not sent.
type dropReason uint8

const (
	dropMalformed dropReason = iota
	dropTruncated
	dropType
	dropAFI
	dropSource
	dropReceive
	dropSend
	dropNoSocket
	dropReasons
)

var dropNames = [dropReasons]string{
	dropMalformed: "malformed",
	dropTruncated: "truncated",
	dropType:      "unknown-type",
	dropAFI:       "unknown-afi",
	dropSource:    "bad-source",
	dropReceive:   "receive-error",
	dropSend:      "send-error",
	dropNoSocket:  "no-rloc-of-family",
}

func (r dropReason) String() string {
	if r < dropReasons {
		return dropNames[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func reasonOf(err error) dropReason {
	switch {
	case errors.Is(err, lisp.ErrTruncated):
		return dropTruncated
	case errors.Is(err, lisp.ErrUnknownType):
		return dropType
	case errors.Is(err, lisp.ErrUnknownAFI):
		return dropAFI
	}
	return dropMalformed
}

// types is the number of message types: 4 bits travel.
const types = 16

// logEvery is how often at most one line is logged for each reason.
const logEvery = 30 * time.Second

type counters struct {
	received, sent [types]atomic.Uint64
	drops          [dropReasons]atomic.Uint64
	logged         [dropReasons]atomic.Int64 // when it was logged last, Unix nanoseconds; 0 = never
}

func (c *counters) drop(r dropReason) { c.drops[r].Add(1) }

// dropAt counts; log says whether it is time to log r again.
func (c *counters) dropAt(r dropReason, now time.Time) (n uint64, log bool) {
	last := c.logged[r].Load()
	log = (last == 0 || now.UnixNano()-last >= int64(logEvery)) &&
		c.logged[r].CompareAndSwap(last, now.UnixNano())
	return c.drops[r].Add(1), log
}

// Counters are the numbers of messages since the start: "received/TYPE", "sent/TYPE" and
// "dropped/REASON", those that are not 0. An inner message counts besides its ECM.
func (e *Endpoint) Counters() map[string]uint64 {
	m := make(map[string]uint64)
	put := func(name string, v *atomic.Uint64) {
		if n := v.Load(); n != 0 {
			m[name] = n
		}
	}
	for t := range types {
		put("received/"+lisp.Type(t).String(), &e.counters.received[t])
		put("sent/"+lisp.Type(t).String(), &e.counters.sent[t])
	}
	for r := range dropReasons {
		put("dropped/"+r.String(), &e.counters.drops[r])
	}
	return m
}
