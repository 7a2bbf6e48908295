package controller

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"
)

// peer keeps one agent up to date: it tells it what VMs there are, and asks it for its records. It has
// two goroutines of its own, so that an agent that hangs delays nobody else.
type peer struct {
	h      Hypervisor
	agents agents
	timing Timing
	cancel context.CancelFunc
	report func(poll)    // hands a poll's result to the owner
	told   func(ok bool) // counts

	tellKick, pollKick chan struct{}

	mu    sync.Mutex
	want  map[string]*tell
	gone  []string // names in want that may be to tell: deleted VMs
	queue []string // the same, of all
	ids   []string // handovers of open moves
}

// tell is what an agent should know of a VM, and whether it does.
type tell struct {
	vm      agentVM
	gone    bool // the VM was deleted: the agent should forget it
	done    bool
	refused string // the agent's final no; tried again with everything else
}

// poll is one answer to "which handovers do you have?".
type poll struct {
	h       Hypervisor
	started time.Time
	only    []string // asked for these; nil = for all
	recs    []AgentRecord
	err     error
}

// fewHandovers is up to how many an agent is asked for one by one: its list of all is long.
const fewHandovers = 16

func newPeer(h Hypervisor, a agents, t Timing, report func(poll), told func(bool)) *peer {
	return &peer{h: h, agents: a, timing: t, report: report, told: told, want: map[string]*tell{},
		tellKick: make(chan struct{}, 1), pollKick: make(chan struct{}, 1)}
}

func (p *peer) start(ctx context.Context, wg *sync.WaitGroup) {
	ctx, p.cancel = context.WithCancel(ctx)
	wg.Go(func() { p.tellLoop(ctx) })
	wg.Go(func() { p.pollLoop(ctx) })
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// set says what the agent should know of a VM.
func (p *peer) set(name string, vm agentVM) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.want[name]; t != nil && !t.gone && reflect.DeepEqual(t.vm, vm) {
		return
	}
	p.want[name] = &tell{vm: vm}
	p.queue = append(p.queue, name)
	kick(p.tellKick)
}

// forget says that the agent should not know a VM any more.
func (p *peer) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.want[name] = &tell{gone: true}
	p.gone = append(p.gone, name)
	kick(p.tellKick)
}

// again makes the agent be told everything once more: it may have been restarted.
func (p *peer) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, t := range p.want {
		t.done, t.refused = false, ""
		p.queue = append(p.queue, name)
	}
	kick(p.tellKick)
}

// watch says which handovers belong to open moves. They are polled often.
func (p *peer) watch(ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(ids) > 0 && len(p.ids) == 0 {
		kick(p.pollKick)
	}
	p.ids = ids
}

func (p *peer) watched() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ids
}

// next returns a VM that the agent is to be told of, nil if there is none. What is to be forgotten comes
// first: others may have got its addresses.
func (p *peer) next() (string, *tell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range []*[]string{&p.gone, &p.queue} {
		for ; len(*q) > 0; *q = (*q)[1:] {
			if t := p.want[(*q)[0]]; t != nil && !t.done && t.refused == "" {
				return (*q)[0], t
			}
		}
	}
	return "", nil
}

// retry makes what was refused be told once more.
func (p *peer) retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, t := range p.want {
		if t.refused != "" {
			t.refused = ""
			p.queue = append(p.queue, name)
		}
	}
}

// waiting counts the VMs that the agent does not know of yet, and returns one of its refusals.
func (p *peer) waiting() (n int, refused string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := ""
	for name, t := range p.want {
		if !t.done {
			n++
		}
		if t.refused != "" && (first == "" || name < first) {
			first, refused = name, name+": "+t.refused
		}
	}
	return n, refused
}

// knows reports whether the agent knows a VM, or why it does not want to.
func (p *peer) knows(name string) (told bool, refused string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.want[name]
	if t == nil || t.gone {
		return false, ""
	}
	return t.done, t.refused
}

func (p *peer) tellLoop(ctx context.Context) {
	backoff := p.timing.Retry
	progress := false // something was accepted since the refusals
	for ctx.Err() == nil {
		name, t := p.next()
		if t == nil {
			backoff = p.timing.Retry
			if progress {
				progress = false
				p.retry() // what stood in the way may have been taken out of it
				continue
			}
			if !sleep(ctx, p.timing.Tell, p.tellKick) {
				p.again()
			}
			continue
		}
		err := p.tell(ctx, name, t)
		p.told(err == nil)
		var st *StatusError
		switch {
		case err == nil:
			backoff, progress = p.timing.Retry, true
		case errors.As(err, &st) && st.final() && st.Code != 401 && st.Code != 403:
			// About this VM there is nothing to repeat. The others go on.
		default:
			sleep(ctx, backoff, nil)
			backoff = min(2*backoff, max(p.timing.RetryMax, p.timing.Retry))
		}
	}
}

func (p *peer) tell(ctx context.Context, name string, t *tell) error {
	ctx, cancel := context.WithTimeout(ctx, p.timing.Call)
	defer cancel()
	var err error
	if t.gone {
		err = p.agents.DeleteVM(ctx, p.h, name)
	} else {
		err = p.agents.PutVM(ctx, p.h, name, t.vm)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var st *StatusError
	switch {
	case err == nil && t.gone && p.want[name] == t:
		delete(p.want, name)
	case err == nil:
		t.done = true
	case errors.As(err, &st) && st.final() && st.Code != 401 && st.Code != 403:
		t.refused = st.Text
	}
	return err
}

func (p *peer) pollLoop(ctx context.Context) {
	failed := false
	var full time.Time // when the agent was last asked for everything
	for ctx.Err() == nil {
		r := poll{h: p.h, started: time.Now()}
		ids := p.watched()
		if r.started.Before(full.Add(p.timing.PollIdle)) && len(ids) > 0 && len(ids) <= fewHandovers {
			r.only = ids
			r.recs, r.err = p.some(ctx, ids)
		}
		// What an agent has forgotten it may have under another name.
		if r.err == nil && len(r.recs) < max(len(r.only), 1) {
			r.only, r.started = nil, time.Now()
			full = r.started
			cctx, cancel := context.WithTimeout(ctx, p.timing.Call)
			r.recs, r.err = p.agents.Handovers(cctx, p.h)
			cancel()
		}
		if ctx.Err() != nil {
			return
		}
		if failed && r.err == nil {
			p.again()
		}
		failed = r.err != nil
		p.report(r)
		wait := time.Until(full.Add(p.timing.PollIdle))
		if len(p.watched()) > 0 {
			wait = p.timing.Poll
		}
		sleep(ctx, max(wait, p.timing.Poll), p.pollKick)
	}
}

// some asks for a few handovers. One that the agent does not know is left out.
func (p *peer) some(ctx context.Context, ids []string) ([]AgentRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timing.Call)
	defer cancel()
	var out []AgentRecord
	for _, id := range ids {
		rec, err := p.agents.Handover(ctx, p.h, id)
		var st *StatusError
		switch {
		case err == nil && rec != nil:
			out = append(out, *rec)
		case errors.As(err, &st) && st.Code == 404:
		case err != nil:
			return nil, err
		}
	}
	return out, nil
}

// sleep waits for d, the end of ctx or a kick; it reports whether there was a kick.
func sleep(ctx context.Context, d time.Duration, kick <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-kick:
		return true
	}
	return false
}
