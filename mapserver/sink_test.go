package mapserver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/lisp/sinktest"
)

// memory is a Sink that keeps what it is told.
type memory struct {
	mu      sync.Mutex
	content map[lisp.EID]lisp.Mapping
	deltas  []lisp.Delta
	fail    int           // so many times yet
	slow    time.Duration // each time
}

func (m *memory) Apply(ctx context.Context, d lisp.Delta) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.slow > 0 {
		select {
		case <-time.After(m.slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if m.fail > 0 {
		m.fail--
		return errors.New("not now")
	}
	if m.content == nil || d.Full {
		m.content = map[lisp.EID]lisp.Mapping{}
	}
	for _, p := range d.Put {
		m.content[p.EID] = p
	}
	for _, e := range d.Del {
		delete(m.content, e)
	}
	m.deltas = append(m.deltas, d)
	return nil
}

func (m *memory) sorted() []lisp.Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.content), func(a, b lisp.Mapping) int { return a.EID.Compare(b.EID) })
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// pushed makes a Sink of the queue, to run the conformance test of Sinks through it.
type pushed struct {
	*sinkQueue
}

// Apply waits until the Sink behind the queue has taken d.
func (p pushed) Apply(_ context.Context, d lisp.Delta) error {
	before := p.applied.Load()
	p.push(d)
	for range 5000 {
		if d.Empty() || p.applied.Load() > before {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("nothing arrived")
}

func TestAQueueIsATransparentSink(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Subject {
		m := &memory{fail: 1}
		q := newSinkQueue("memory", m, quiet())
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { q.run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
		return sinktest.Subject{Sink: pushed{q}, Services: true, Content: func(*testing.T) []lisp.Mapping { return m.sorted() }}
	})
}

func host(n byte, v lisp.Version) lisp.Mapping {
	return lisp.Mapping{EID: mustEID("198.51.100." + itoa(int(n))), Version: v, Locators: []lisp.Locator{loc(hv1)}}
}

var compareMappings = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(lisp.EID{}, lisp.Locator{})}

func TestAFailingSinkGetsEverythingInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{fail: 5}
		q := newSinkQueue("memory", m, quiet())
		ctx, cancel := context.WithCancel(t.Context())
		go q.run(ctx)
		q.push(lisp.Delta{Full: true, Put: []lisp.Mapping{host(1, 1), host(2, 1)}})
		synctest.Wait()
		q.push(lisp.Delta{Put: []lisp.Mapping{host(3, 1)}, Del: []lisp.EID{host(1, 1).EID}})
		time.Sleep(60 * time.Millisecond)
		q.push(lisp.Delta{Put: []lisp.Mapping{host(3, 2)}})
		time.Sleep(time.Minute)
		want := []lisp.Mapping{host(2, 1), host(3, 2)}
		if diff := cmp.Diff(want, m.sorted(), compareMappings); diff != "" {
			t.Errorf("content (-want +got):\n%s", diff)
		}
		if len(m.deltas) != 1 || !m.deltas[0].Full {
			t.Errorf("deltas %+v", m.deltas)
		}
		// A failed change is overtaken by a whole truth, and by later changes.
		m.fail = 1
		q.push(lisp.Delta{Put: []lisp.Mapping{host(9, 1)}, Del: []lisp.EID{host(2, 1).EID}})
		synctest.Wait()
		q.push(lisp.Delta{Full: true, Put: []lisp.Mapping{host(4, 1)}})
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]lisp.Mapping{host(4, 1)}, m.sorted(), compareMappings); diff != "" {
			t.Errorf("content (-want +got):\n%s", diff)
		}
		m.fail = 1
		q.push(lisp.Delta{Del: []lisp.EID{host(4, 1).EID}, Put: []lisp.Mapping{host(5, 1)}})
		synctest.Wait()
		q.push(lisp.Delta{Put: []lisp.Mapping{host(4, 2)}})
		time.Sleep(time.Minute)
		if diff := cmp.Diff([]lisp.Mapping{host(4, 2), host(5, 1)}, m.sorted(), compareMappings); diff != "" {
			t.Errorf("content (-want +got):\n%s", diff)
		}
		cancel()
		synctest.Wait()
	})
}
