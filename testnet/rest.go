package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// get, put and post speak HTTP+JSON as the daemons' APIs do. in and out may be nil.
func get(ctx context.Context, c *http.Client, url string, out any) error {
	return call(ctx, c, http.MethodGet, url, "", nil, out)
}

// call makes one request; a status outside 2xx is an error of type *statusError.
func call(ctx context.Context, c *http.Client, method, url, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("testnet: %s %s: %w", method, url, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("testnet: %s %s: %w", method, url, err)
	}
	if resp.StatusCode/100 != 2 {
		return &statusError{method, url, resp.StatusCode, strings.TrimSpace(string(b))}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("testnet: %s %s: answer: %w", method, url, err)
	}
	return nil
}

// statusError is an answer that says no.
type statusError struct {
	method, url string
	status      int
	body        string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("testnet: %s %s: %d %s: %s", e.method, e.url, e.status, http.StatusText(e.status), e.body)
}

// isStatus reports whether err is an answer with that status.
func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}
