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
	"sync"
	"time"
)

// DefaultSockets is where daemons put their sockets unless told otherwise.
const DefaultSockets = "/run/tabi/*.sock"

func sameToken(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// Client talks to one daemon's socket. Its methods may be called from any goroutine.
type Client struct {
	Path string
	http http.Client

	mu   sync.Mutex
	seen map[string]answered // by path: what an unchanged answer is
}

// answered is an answer that a daemon gave a tag.
type answered struct {
	tag  string
	body json.RawMessage
}

// Dial makes a client; nothing is sent yet.
func Dial(path string) *Client {
	return &Client{Path: path, seen: map[string]answered{}, http: http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}}
}

// Get fetches one path as JSON text. An error that the daemon answers with is the error. What has not changed since
// the last Get is not sent again.
func (c *Client) Get(ctx context.Context, path string) (json.RawMessage, error) {
	return c.Do(ctx, http.MethodGet, path)
}

// Do is a request without a body.
func (c *Client) Do(ctx context.Context, method, path string) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://tabi"+path, nil)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	before, asked := c.seen[path]
	c.mu.Unlock()
	if asked && method == http.MethodGet {
		req.Header.Set("If-None-Match", before.tag)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: no daemon answers: %w", c.Path, err)
	}
	defer resp.Body.Close()
	b, err := readAll(resp)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	if resp.StatusCode == http.StatusNotModified {
		return before.body, nil
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error string }
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = resp.Status
		}
		return nil, fmt.Errorf("%s: %s", c.Path, e.Error)
	}
	if tag := resp.Header.Get("ETag"); tag != "" && method == http.MethodGet {
		c.mu.Lock()
		c.seen[path] = answered{tag, b}
		c.mu.Unlock()
	}
	return b, nil
}

// readAll reads a body; a large one says how long it is, and is not read into ever larger memory.
func readAll(resp *http.Response) ([]byte, error) {
	if n := resp.ContentLength; n > largeAnswer && n < 1<<30 {
		b := make([]byte, n)
		_, err := io.ReadFull(resp.Body, b)
		return b, err
	}
	return io.ReadAll(resp.Body)
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
