package testnet

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// namespaceMaker makes namespace VMs, which need nothing of a hypervisor.
type namespaceMaker struct{}

func (namespaceMaker) agent(node, string) string           { return "" }
func (namespaceMaker) drivers(node, string) (_, _ string)  { return "", "" }
func (namespaceMaker) start(context.Context, *Cloud) error { return nil }
func (namespaceMaker) close() error                        { return nil }
func (namespaceMaker) vm(_ context.Context, s VMSpec) (CloudVM, error) {
	vm, err := NewVM(s.Guest.ns, VMConfig{Name: s.Name, MAC: s.MAC, Gateway4: s.Gateway4, Gateway6: s.Gateway6, Addrs: s.Addrs})
	if err != nil {
		return nil, err
	}
	return namespaceVM{vm}, nil
}

// tapLead is how long before the VM stops its tap is there at the target: QEMU opens it when it starts, a third of
// a second before at the very least.
const tapLead = 150 * time.Millisecond

// namespaceVM is a [VM] as a [CloudVM]: it also plays the part of the one who migrates it.
type namespaceVM struct{ vm *VM }

func (m namespaceVM) Interface() string      { return m.vm.Tap }
func (m namespaceVM) Leave(h *Host) error    { return m.vm.Remove(h.ns) }
func (m namespaceVM) FirstPacket() time.Time { return m.vm.FirstPacket() }
func (m namespaceVM) Close() error           { return m.vm.Close() }

func (m namespaceVM) Flaws() []string {
	if n := m.vm.Lost(); n > 0 {
		return []string{fmt.Sprintf("the tester's own VMM lost %d frames of %s", n, m.vm.Name)}
	}
	return nil
}

func (m namespaceVM) Boot(_ context.Context, at *Host) error {
	if err := m.vm.Open(at.ns); err != nil {
		return err
	}
	_, err := m.vm.Resume(at.ns, true)
	return err
}

func (m namespaceVM) Migrate(ctx context.Context, t Transfer) (Switch, error) {
	var s Switch
	if err := m.vm.Open(t.To.ns); err != nil {
		return s, err
	}
	if t.Placed != nil {
		if err := t.Placed(ctx); err != nil {
			return s, err
		}
	}
	if err := sleep(ctx, tapLead); err != nil {
		return s, err
	}
	s.Stopped = m.vm.Pause()
	if !t.Silent {
		s.Problems = append(s.Problems, m.tell(ctx, t.From, "stop", s.Stopped)...)
	}
	if t.Stopped != nil {
		if err := t.Stopped(ctx, s.Stopped); err != nil {
			return s, err
		}
	}
	if err := sleep(ctx, time.Until(s.Stopped.Add(t.Blackout))); err != nil {
		return s, err
	}
	s.At = t.To
	if t.Fail {
		s.At, s.Why = t.From, "the migration was made to fail"
	}
	var err error
	if s.Resumed, err = m.vm.Resume(s.At.ns, !t.Fail); err != nil {
		return s, err
	}
	if t.Resumed != nil {
		t.Resumed(s.Resumed, s.At)
	}
	s.Problems = append(s.Problems, m.tell(ctx, s.At, "resume", s.Resumed)...)
	return s, nil
}

// tell tells an agent what its hypervisor would. An agent that is not there hears nothing: that is the fault which
// is being tested, or shows in the report.
func (m namespaceVM) tell(ctx context.Context, h *Host, what string, at time.Time) []string {
	type event struct {
		VM    string    `json:"vm"`
		Event string    `json:"event"`
		At    time.Time `json:"at"`
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := h.Admin(ctx, http.MethodPost, "/v1/events", event{m.vm.Name, what, at}, nil); err != nil {
		return []string{fmt.Sprintf("%s event: %v", what, err)}
	}
	return nil
}
