package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/mapcache"
)

// memory is the plainest Sink.
type memory struct {
	table mapcache.Table[lisp.Mapping]
}

func (m *memory) Apply(_ context.Context, d lisp.Delta) error {
	if d.Full {
		m.table.Replace(func(func(lisp.EID, lisp.Mapping) bool) {})
	}
	for _, e := range d.Del {
		m.table.Delete(e)
	}
	for _, p := range d.Put {
		m.table.Insert(p.EID, p)
	}
	return nil
}

func (m *memory) content(*testing.T) (ms []lisp.Mapping) {
	for _, v := range m.table.All() {
		ms = append(ms, v)
	}
	return ms
}

func TestMemory(t *testing.T) {
	Test(t, func(*testing.T) Subject {
		m := &memory{}
		return Subject{Sink: m, Content: m.content, Services: true}
	})
}

func TestKeep(t *testing.T) {
	Test(t, func(*testing.T) Subject {
		m := &memory{}
		return Subject{
			Sink: m,
			Content: func(t *testing.T) []lisp.Mapping {
				ms := m.content(t)
				for i := range ms {
					ms[i].SiteID = 99
				}
				return ms
			},
			Keep: func(m lisp.Mapping) lisp.Mapping { m.SiteID = 0; return m },
		}
	})
}

// mutants are Sinks with one fault each.
var mutants = map[string]func(m *memory, d lisp.Delta) error{
	"full-adds": func(m *memory, d lisp.Delta) error {
		d.Full = false
		return m.Apply(context.Background(), d)
	},
	"no-delete": func(m *memory, d lisp.Delta) error {
		d.Del = nil
		return m.Apply(context.Background(), d)
	},
	"unknown-delete-fails": func(m *memory, d lisp.Delta) error {
		for _, e := range d.Del {
			if _, ok := m.table.Get(e); !ok {
				return fmt.Errorf("no such EID %v", e)
			}
		}
		return m.Apply(context.Background(), d)
	},
	"locators-pile-up": func(m *memory, d lisp.Delta) error {
		for i, p := range d.Put {
			if old, ok := m.table.Get(p.EID); ok && !d.Full {
				d.Put[i].Locators = append(slices.Clone(old.Locators), p.Locators...)
			}
		}
		return m.Apply(context.Background(), d)
	},
	"no-instances": func(m *memory, d lisp.Delta) error {
		d.Put = slices.Clone(d.Put)
		for i := range d.Put {
			d.Put[i].EID.IID = 0
		}
		return m.Apply(context.Background(), d)
	},
	"delete-takes-more-specifics": func(m *memory, d lisp.Delta) error {
		for _, e := range d.Del {
			for s := range m.table.Subnets(e) {
				m.table.Delete(s)
			}
		}
		return m.Apply(context.Background(), d)
	},
	"forgets-version": func(m *memory, d lisp.Delta) error {
		d.Put = slices.Clone(d.Put)
		for i := range d.Put {
			d.Put[i].Version = 1
		}
		return m.Apply(context.Background(), d)
	},
	"forgets-what-a-service-is": func(m *memory, d lisp.Delta) error {
		d.Put = slices.Clone(d.Put)
		for i, p := range d.Put {
			if old, ok := m.table.Get(p.EID); ok && old.IsService() && p.IsService() && old.Version == p.Version {
				d.Put[i] = old
			}
		}
		return m.Apply(context.Background(), d)
	},
	"half-with-an-error": func(m *memory, d lisp.Delta) error {
		if err := m.Apply(context.Background(), d); err != nil {
			return err
		}
		if len(d.Put) > 1 {
			return errors.New("too much")
		}
		return nil
	},
}

const mutantEnv = "TABI_SINKTEST_MUTANT"

type mutant struct {
	memory
	apply func(*memory, lisp.Delta) error
}

func (m *mutant) Apply(_ context.Context, d lisp.Delta) error { return m.apply(&m.memory, d) }

// The conformance test finds every fault: each mutant is tested in a process of its own, which must fail.
func TestMutants(t *testing.T) {
	if name := os.Getenv(mutantEnv); name != "" {
		Test(t, func(*testing.T) Subject {
			m := &mutant{apply: mutants[name]}
			return Subject{Sink: m, Content: m.content, Services: true}
		})
		return
	}
	for name := range mutants {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMutants$")
		cmd.Env = append(os.Environ(), mutantEnv+"="+name)
		out, err := cmd.CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("--- FAIL: TestMutants/")) {
			t.Errorf("%s: the conformance test passes it: %v\n%s", name, err, out)
		}
	}
}
