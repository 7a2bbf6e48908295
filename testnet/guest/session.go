package main

import (
	"fmt"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// missingRanges is how many ranges of missing packets a report names, for each stream.
const missingRanges = 20

// session is what one set of flows has open here. The server's lock guards it.
type session struct {
	heard time.Time // when a request last named it
	pump  *pump
	ends  map[stream.End]end
}

// end is one end of a flow that is open.
type end interface {
	start()
	stop()
	report(sent map[uint32]uint64, r *stream.Reply)
	close()
}

func newSession(p *pump) *session { return &session{pump: p, ends: make(map[stream.End]end)} }

// open opens ends that are not open yet.
func (s *session) open(ends []stream.End) error {
	for _, e := range ends {
		if s.ends[e] != nil {
			continue
		}
		if (e.Out != 0 || e.Kind == stream.EndPing) && e.Rate < 1 {
			return fmt.Errorf("%s %s: rate %d: want a positive one", e.Kind, e.Local, e.Rate)
		}
		var err error
		var opened end
		switch e.Kind {
		case stream.EndUDP, stream.EndPing:
			opened, err = s.pump.open(e)
		case stream.EndListen, stream.EndDial:
			opened, err = openTCP(e)
		default:
			err = fmt.Errorf("no such kind of end: %q", e.Kind)
		}
		if err != nil {
			return fmt.Errorf("%s %s - %s: %w", e.Kind, e.Local, e.Remote, err)
		}
		s.ends[e] = opened
	}
	return nil
}

func (s *session) start() {
	for _, e := range s.ends {
		e.start()
	}
}

func (s *session) stop() {
	for _, e := range s.ends {
		e.stop()
	}
}

func (s *session) report(sent map[uint32]uint64) *stream.Reply {
	r := &stream.Reply{Sent: make(map[uint32]stream.Sent), Received: make(map[uint32]stream.Received), Transfers: make(map[uint32]stream.TransferState)}
	for _, e := range s.ends {
		e.report(sent, r)
	}
	return r
}

func (s *session) close() {
	for _, e := range s.ends {
		e.close()
	}
}
