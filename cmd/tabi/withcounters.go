package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
)

// counted is a part of a daemon that counts by name.
type counted struct {
	part string
	read func() map[string]uint64
}

// withCounters adds the counters of the parts around a role to the role's own table "counters".
type withCounters struct {
	admin.Daemon
	parts []counted
}

type counterRow struct {
	Part    string `json:"part"`
	Counter string `json:"counter"`
	Value   uint64 `json:"value"`
}

func (w withCounters) Shows() map[string]func(context.Context) (any, error) {
	m := maps.Clone(w.Daemon.Shows())
	own := m["counters"]
	m["counters"] = func(ctx context.Context) (any, error) {
		var rows []any
		if own != nil {
			v, err := own(ctx)
			if err != nil {
				return nil, err
			}
			b, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			var list []json.RawMessage
			if err := json.Unmarshal(b, &list); err != nil {
				return nil, fmt.Errorf("counters: %w", err)
			}
			for _, r := range list {
				rows = append(rows, r)
			}
		}
		for _, p := range w.parts {
			c := p.read()
			for _, name := range slices.Sorted(maps.Keys(c)) {
				rows = append(rows, counterRow{p.part, name, c[name]})
			}
		}
		return rows, nil
	}
	return m
}
