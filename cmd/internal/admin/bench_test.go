package admin

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
)

type fixed struct {
	fake
	e Encoded
}

func (f fixed) Shows() map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){"services": func(context.Context) (any, error) { return f.e, nil }}
}

// What a table of a hundred thousand services costs who asks for it again and again: the first time, and as long as it
// has not changed.
func BenchmarkLargeTable(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x.sock")
	body := append(append([]byte("["), bytes.Repeat([]byte(" "), 22<<20)...), ']')
	s := NewServer(path, About{}, fixed{e: Encoded{Body: body, Tag: "1"}}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for c := Dial(path); ; {
		if _, err := c.About(ctx); err == nil {
			break
		}
	}
	read := func(b *testing.B, client func() *Client) {
		for b.Loop() {
			if rows, err := client().Show(ctx, "services"); err != nil || len(rows) != len(body) {
				b.Fatal(err)
			}
		}
	}
	b.Run("anew", func(b *testing.B) { read(b, func() *Client { return Dial(path) }) })
	same := Dial(path)
	b.Run("again", func(b *testing.B) { read(b, func() *Client { return same }) })
}
