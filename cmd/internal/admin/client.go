package admin

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"
)

// DefaultSockets is where daemons put their sockets unless told otherwise.
const DefaultSockets = "/run/tabi/*.sock"

func sameToken(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// Client talks to one daemon's socket.
type Client struct {
	Path string
	http http.Client
}

// Dial makes a client; nothing is sent yet.
func Dial(path string) *Client {
	return &Client{Path: path, http: http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}}
}

// Get fetches one path as JSON text. An error that the daemon answers with is the error.
func (c *Client) Get(ctx context.Context, path string) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tabi"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: no daemon answers: %w", c.Path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error string }
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = resp.Status
		}
		return nil, fmt.Errorf("%s: %s", c.Path, e.Error)
	}
	return b, nil
}

// About asks who answers.
func (c *Client) About(ctx context.Context) (About, error) {
	var a About
	b, err := c.Get(ctx, "/v1/about")
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// Show fetches one table.
func (c *Client) Show(ctx context.Context, table string) (json.RawMessage, error) {
	return c.Get(ctx, "/v1/show/"+url.PathEscape(table))
}

// Explain asks what the daemon knows of an EID.
func (c *Client) Explain(ctx context.Context, eid string) (json.RawMessage, error) {
	return c.Get(ctx, "/v1/explain?eid="+url.QueryEscape(eid))
}

// Sockets expands patterns (paths or globs) to the sockets that exist; with none, the default ones.
func Sockets(patterns []string) ([]string, error) {
	if len(patterns) == 0 {
		patterns = []string{DefaultSockets}
	}
	var out []string
	for _, p := range patterns {
		m, err := filepath.Glob(p)
		if err != nil {
			return nil, fmt.Errorf("socket pattern %q: %w", p, err)
		}
		out = append(out, m...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no daemon's socket at %v: is one running here? (--socket, or the environment's TABI_SOCKET)", patterns)
	}
	return out, nil
}
