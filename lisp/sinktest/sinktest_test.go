package sinktest

import (
	"context"
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
		return Subject{Sink: m, Content: m.content}
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
