package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/testnet/stream"
)

// maxLine bounds a request in bytes.
const maxLine = 1 << 20

// server answers requests.
type server struct {
	pump   *pump
	memory *memory
	disk   *disk

	mu       sync.Mutex
	sessions map[uint64]*session
}

func newServer() *server {
	return &server{pump: newPump(), memory: new(memory), disk: new(disk), sessions: make(map[uint64]*session)}
}

// serve accepts connections until the listener fails.
func (s *server) serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.talk(c)
	}
}

// talk answers what comes over one connection, in turn, until it ends.
func (s *server) talk(c net.Conn) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	lines.Buffer(make([]byte, 4096), maxLine)
	for lines.Scan() {
		var q stream.Request
		var r *stream.Reply
		err := json.Unmarshal(lines.Bytes(), &q)
		if err == nil {
			r, err = s.do(&q)
		}
		if r == nil {
			r = new(stream.Reply)
		}
		r.ID = q.ID
		if err != nil {
			r.Error = err.Error()
		}
		b, err := json.Marshal(r)
		if err != nil {
			return
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

// do does what a request asks for.
func (s *server) do(q *stream.Request) (*stream.Reply, error) {
	switch q.Op {
	case stream.OpHello:
		m, err := machine()
		m.Dirty = s.memory.written()
		return &stream.Reply{Machine: &m}, err
	case stream.OpDirty:
		return nil, s.memory.set(q.Rate)
	case stream.OpDiskWrite:
		return nil, s.disk.write(q.Disk, q.Blocks, q.Rate)
	case stream.OpDiskStop:
		d := s.disk.stop()
		return &stream.Reply{Disk: &d}, nil
	case stream.OpDiskCheck:
		d, err := s.disk.verify()
		return &stream.Reply{Disk: &d}, err
	}
	s.forgetIdle(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.Session == 0 {
		return nil, fmt.Errorf("no such operation without a session: %q", q.Op)
	}
	e := s.sessions[q.Session]
	switch {
	case e == nil && q.Op == stream.OpEnd:
		return nil, nil // ended already
	case e == nil && q.Op != stream.OpOpen:
		return nil, errors.New("no such session: the guest has booted since, or heard nothing of it for long")
	case e == nil:
		e = newSession(s.pump)
		s.sessions[q.Session] = e
	}
	e.heard = time.Now()
	switch q.Op {
	case stream.OpOpen:
		return nil, e.open(q.Open)
	case stream.OpStart:
		e.start()
	case stream.OpStop:
		e.stop()
	case stream.OpReport:
	case stream.OpEnd:
		delete(s.sessions, q.Session)
		defer e.close()
	default:
		return nil, fmt.Errorf("no such operation: %q", q.Op)
	}
	return e.report(q.Sent), nil
}

// forgetIdle ends sessions whose owner has gone.
func (s *server) forgetIdle(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.sessions {
		if now.Sub(e.heard) > stream.SessionIdle {
			e.close()
			delete(s.sessions, id)
		}
	}
}
