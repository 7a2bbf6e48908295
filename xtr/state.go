package xtr

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/xtr/fib"
)

// What survives a restart: the EIDs that live here with the versions of their mappings, so that they are
// refreshed and not claimed; what the controller told us; the handovers that are open; how far nonces have been
// used. The map-cache is in a file of its own: it may be large, and to lose some of it costs little.
const (
	stateFile = "state.json"
	cacheFile = "map-cache.json"
	// stateFormat is the version of both formats.
	stateFormat = 1
	// keptRecords is how many records of handovers that have ended survive a restart.
	keptRecords = 100
)

// savedState is the content of the state file.
type savedState struct {
	Format    int          `json:"format"`
	Nonces    uint64       `json:"nonces"`    // no nonce above this one has been used
	LastHold  uint32       `json:"last_hold"` // hold queue that was taken last
	VMs       []vm         `json:"vms"`
	Guests    []guest      `json:"guests,omitempty"`
	Local     []savedLocal `json:"local"`
	Handovers []handover   `json:"handovers"`

	cache   []cacheEntry
	caching bool            // cache is to be written too
	waiting []chan struct{} // closed when it is written, or cannot be
}

// savedLocal is an EID that lives here.
type savedLocal struct {
	localEID
	Registered bool         `json:"registered"`
	Version    lisp.Version `json:"version"`
}

// savedCache is the content of the map-cache's file.
type savedCache struct {
	Format  int          `json:"format"`
	Entries []cacheEntry `json:"entries"`
}

// saver writes the state, away from the goroutine that owns it: one write at a time, always the newest state.
type saver struct {
	dir string
	log *slog.Logger
	due time.Time // when the owner should hand over the state; zero: nothing has changed

	cacheDue  time.Time
	cacheLast time.Time
	waiting   []chan struct{} // for what is handed over next

	mu     sync.Mutex
	cond   *sync.Cond
	next   *savedState
	busy   bool
	closed bool
}

const (
	// saveDelay is how long after a change the state is taken: what happens in between goes with it, and
	// whoever waits for a packet goes first.
	saveDelay = 5 * time.Millisecond
	// cacheEvery is how often the map-cache is written at most.
	cacheEvery = 10 * time.Second
)

func newSaver(dir string, log *slog.Logger) *saver {
	s := &saver{dir: dir, log: log}
	s.cond = sync.NewCond(&s.mu)
	return s
}

// mark says that the state has changed.
func (s *saver) mark(now time.Time) {
	if s.dir != "" && s.due.IsZero() {
		s.due = now.Add(saveDelay)
	}
}

// saved says that the state has changed, and closes the channel when it is on disk, or cannot be brought there:
// whoever is told that something is done may rely on it also if this process is killed the next moment.
func (s *saver) saved(now time.Time) <-chan struct{} {
	c := make(chan struct{})
	if s.dir == "" {
		close(c)
		return c
	}
	s.due = now
	s.waiting = append(s.waiting, c)
	return c
}

// markCache says that the map-cache has changed.
func (s *saver) markCache(now time.Time) {
	if s.dir == "" || !s.cacheDue.IsZero() {
		return
	}
	s.cacheDue = now.Add(saveDelay)
	if t := s.cacheLast.Add(cacheEvery); t.After(s.cacheDue) {
		s.cacheDue = t
	}
}

// next is when the owner should hand the state over; zero: never.
func (s *saver) nextDue() time.Time { return earlier(s.due, s.cacheDue) }

// wants reports whether the owner should hand the state over now, and with the map-cache.
func (s *saver) wants(now time.Time) (state, cache bool) {
	cache = !s.cacheDue.IsZero() && !s.cacheDue.After(now)
	return cache || !s.due.IsZero() && !s.due.After(now), cache
}

// put hands a state over. It does not wait.
func (s *saver) put(st *savedState, now time.Time) {
	s.due = time.Time{}
	if st.caching {
		s.cacheDue, s.cacheLast = time.Time{}, now
	}
	if s.dir == "" {
		return
	}
	st.waiting, s.waiting = s.waiting, nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		st.waiting = append(st.waiting, s.next.waiting...)
		if s.next.caching && !st.caching {
			st.cache, st.caching = s.next.cache, true
		}
	}
	s.next = st
	s.cond.Broadcast()
}

// close makes run return when all is written.
func (s *saver) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
}

// run writes until close.
func (s *saver) run() {
	for {
		s.mu.Lock()
		for s.next == nil && !s.closed {
			s.cond.Wait()
		}
		st := s.next
		s.next = nil
		s.mu.Unlock()
		if st == nil {
			return
		}
		if err := s.write(stateFile, st); err != nil {
			s.log.Error("the state could not be saved", "err", err)
		}
		for _, c := range st.waiting {
			close(c)
		}
		if st.caching {
			if err := s.write(cacheFile, savedCache{stateFormat, st.cache}); err != nil {
				s.log.Error("the map-cache could not be saved", "err", err)
			}
		}
	}
}

// write replaces a file as a whole: whoever reads it sees the old or the new, also after a power failure.
func (s *saver) write(name string, v any) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("xtr: encode %s: %w", name, err)
	}
	f, err := os.CreateTemp(s.dir, name+".tmp-*")
	if err != nil {
		return fmt.Errorf("xtr: write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("xtr: write %s: %w", name, err)
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// load reads what was saved. A file that cannot be understood is put aside: to start without memory is better
// than not to start.
func (s *saver) load() (*savedState, error) {
	st := &savedState{}
	if s.dir == "" {
		return st, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.tmp-*")); err == nil {
		for _, f := range left {
			_ = os.Remove(f) // of a write that a crash has interrupted
		}
	}
	ok, err := s.read(stateFile, st)
	if err != nil {
		return nil, err
	}
	if !ok || st.Format > stateFormat {
		st = &savedState{}
	}
	var c savedCache
	if ok, err = s.read(cacheFile, &c); err != nil {
		return nil, err
	}
	if ok && c.Format <= stateFormat {
		st.cache = c.Entries
	}
	return st, nil
}

func (s *saver) read(name string, v any) (ok bool, err error) {
	path := filepath.Join(s.dir, name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		s.log.Error("a state file cannot be understood: it is put aside", "file", path, "err", err)
		if err := os.Rename(path, path+".bad"); err != nil {
			return false, err
		}
		return false, nil
	}
	return true, nil
}

// snapshot copies what is to be saved.
func (x *XTR) snapshot(now time.Time, cache bool) *savedState {
	st := &savedState{Format: stateFormat, Nonces: x.nonces.reserved, LastHold: x.lastHold}
	st.VMs = x.listVMs() // their slices are replaced, not changed; so are a guest's
	for _, g := range x.loc.guests {
		st.Guests = append(st.Guests, *g)
	}
	for _, le := range x.loc.sorted() {
		sl := savedLocal{localEID: *le}
		if reg := x.reg.regs[le.EID]; reg != nil && !reg.delete {
			sl.Registered, sl.Version = true, reg.version
		} else if x.asking[le.EID] {
			sl.Registered = true
		}
		st.Local = append(st.Local, sl)
	}
	ended := 0
	for _, h := range x.order {
		if h.State.ended() {
			ended++
		}
	}
	for _, h := range x.order {
		if h.State.ended() {
			if ended--; ended >= keptRecords {
				continue
			}
		}
		c := *h
		c.Handover = h.snapshot()
		c.under = nil
		st.Handovers = append(st.Handovers, c)
	}
	if cache {
		st.cache, st.caching = x.res.entries(), true
		for i := range st.cache {
			st.cache[i].nonces = nil
		}
	}
	return st
}

// restore takes over what was saved. What needs the data plane or the network is left to start.
func (x *XTR) restore(st *savedState) {
	x.lastHold = st.LastHold
	names := map[string]bool{}
	for _, v := range st.VMs {
		x.loc.specs[v.Name], names[v.Name] = &v, true
	}
	for _, g := range st.Guests {
		if g.Source != "" && g.Name != "" && g.VM != "" {
			x.loc.guests, names[g.VM] = append(x.loc.guests, &g), true
		}
	}
	x.knowGuests(names, time.Time{})
	for _, sl := range st.Local {
		le := sl.localEID
		if !le.EID.IsValid() {
			continue
		}
		le.restored = true
		x.loc.eids[le.EID] = &le
		if !sl.Registered {
			continue
		}
		if sl.Version == 0 {
			x.asking[le.EID] = true
		} else {
			x.reg.adopt(le.EID, sl.Version, time.Time{})
		}
	}
	for _, saved := range st.Handovers {
		h := &saved
		if !h.sound() {
			x.log.Error("a handover in the state file makes no sense: it is left out", "move", h.ID)
			continue
		}
		h.timing = timing{settle: x.cfg.SettleTime, prepare: x.cfg.PrepareTimeout, grace: x.cfg.PortGrace}
		h.announced = h.Prepared
		x.addHandover(h)
		if h.State.ended() {
			continue
		}
		for _, e := range h.EIDs {
			x.active[e] = h
		}
		if h.Hold != 0 {
			x.holds[h.Hold] = h
		}
	}
	x.restored = st.cache
}

// sound reports whether what was saved of a handover can be gone on with.
func (h *handover) sound() bool {
	if h.ID == "" || len(h.EIDs) == 0 || h.Hold > fib.MaxHold ||
		slices.ContainsFunc(h.EIDs, func(e lisp.EID) bool { return !e.IsValid() }) {
		return false
	}
	switch h.State {
	case Armed, Paused, TakingBack:
		return h.Role == Source
	case Redirecting:
		return h.Role == Source && len(h.To) > 0
	case Incoming:
		return h.Role == Target && h.Hold != 0
	case Running, GivingBack:
		return h.Role == Target
	}
	return h.State.ended()
}

// start goes on with what was restored.
func (x *XTR) start(now time.Time) {
	x.res.restore(x.restored, now)
	x.restored = nil
	for _, le := range x.loc.eids {
		le.gone = now
	}
	x.forgetRoutes(now)
	x.resolved(now)
	for _, h := range slices.Clone(x.open) {
		x.exec(h, h.restored(now), now)
		if h.State == Incoming {
			for _, e := range h.EIDs {
				x.res.want(e, netip.Addr{}, whyPrepared, false, now)
			}
		}
	}
	for e := range x.asking {
		x.res.want(e, e.Prefix.Addr(), whyOwn, false, now)
	}
	x.register(now)
}

// forgetRoutes removes routes from the data plane that the last life has left and that nobody knows of any more.
func (x *XTR) forgetRoutes(now time.Time) {
	l, ok := x.dp.(lister)
	if !ok {
		return
	}
	var del []lisp.EID
	for _, r := range l.Routes() {
		if _, what := x.desired(r.EID); what == routeNone {
			del = append(del, r.EID)
		} else {
			x.routes[r.EID] = r
		}
	}
	if len(del) == 0 {
		return
	}
	if err := x.dp.Del(x.ctx, del...); err != nil {
		x.failed(now, "delete routes of before the restart", err)
	}
}
