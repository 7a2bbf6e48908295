// Package admin is the unix socket through which an operator looks into a running daemon: the server
// that every daemon runs, and the client that the commands use.
//
//	GET  /v1/ready          200 once the daemon serves
//	GET  /v1/about          who answers: {"role","name","pid","started","version"}
//	GET  /v1/show           names of the tables that this daemon has
//	GET  /v1/show/TABLE     one table: a JSON array of flat objects
//	GET  /v1/explain?eid=E  what this daemon knows of an EID: [{"part","says","why"}]
//
// A table that is large has an ETag: who says what it has (If-None-Match) is not sent the same again.
//
// Whatever else a role offers locally is served under the same socket: the agent's API; of a D-ETR /metrics, and
// /v1/drain (GET: its state, PUT: drain, DELETE: undrain).
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// Daemon is what the socket shows of a role.
type Daemon interface {
	Shows() map[string]func(context.Context) (any, error)
	Explain(ctx context.Context, e lisp.EID) ([]lisp.Finding, error)
}

// About says who answers on a socket.
type About struct {
	Role    string    `json:"role"`
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Version string    `json:"version"`
}

// Server is one daemon's socket. Ready may be called from any goroutine.
type Server struct {
	path  string
	about About
	ready atomic.Bool
	mux   *http.ServeMux
}

// NewServer prepares the socket at path; extra, if not nil, serves every path that is not ours.
func NewServer(path string, about About, d Daemon, extra http.Handler) *Server {
	s := &Server{path: path, about: about, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			fail(w, http.StatusServiceUnavailable, errors.New("starting"))
			return
		}
		reply(w, map[string]bool{"ready": true})
	})
	s.mux.HandleFunc("GET /v1/about", func(w http.ResponseWriter, _ *http.Request) { reply(w, about) })
	s.mux.HandleFunc("GET /v1/show", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, slices.Sorted(maps.Keys(d.Shows())))
	})
	s.mux.HandleFunc("GET /v1/show/{table}", func(w http.ResponseWriter, r *http.Request) {
		shows := d.Shows()
		f := shows[r.PathValue("table")]
		if f == nil {
			fail(w, http.StatusNotFound, fmt.Errorf("a %s has no table %q; it has %v", about.Role, r.PathValue("table"), slices.Sorted(maps.Keys(shows))))
			return
		}
		v, err := f(r.Context())
		if err != nil {
			fail(w, http.StatusInternalServerError, err)
			return
		}
		if e, ok := v.(Encoded); ok {
			e.ServeHTTP(w, r)
			return
		}
		reply(w, v)
	})
	s.mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		e, err := lisp.ParseEID(r.URL.Query().Get("eid"))
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		f, err := d.Explain(r.Context(), e)
		if err != nil {
			fail(w, http.StatusInternalServerError, err)
			return
		}
		if f == nil {
			f = []lisp.Finding{}
		}
		reply(w, f)
	})
	if extra != nil {
		s.mux.Handle("/", extra)
	}
	return s
}

// Ready tells whoever waits that the daemon serves.
func (s *Server) Ready() { s.ready.Store(true) }

// Run serves until ctx ends. A socket that a dead daemon left behind is replaced; one that answers is
// an error.
func (s *Server) Run(ctx context.Context) error {
	if c, err := net.DialTimeout("unix", s.path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("admin socket %s: another daemon answers there", s.path)
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("admin socket: %w", err)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(s.path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("admin socket: %w", err)
	}
	return Serve(ctx, l, s.mux)
}

// Serve answers HTTP on l until ctx ends; it returns nil then.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// RequireToken lets only requests with "Authorization: Bearer token" pass.
func RequireToken(token string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !sameToken(r.Header.Get("Authorization"), "Bearer "+token) {
			fail(w, http.StatusUnauthorized, errors.New("missing or wrong bearer token"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Reply answers with v as JSON; Fail with an error, as a [Client] understands it.
func Reply(w http.ResponseWriter, v any) { reply(w, v) }

// Fail is described at [Reply].
func Fail(w http.ResponseWriter, status int, err error) { fail(w, status, err) }

func reply(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}

func fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}
