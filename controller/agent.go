package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

// AgentTimes are the steps that an agent saw, by its clock; zero = not (yet). On a source, Run is when
// it was told that the VM runs on the target, and Claimed when the mapping system said so; Aborted is
// when an agent began to undo.
type AgentTimes struct {
	Prepared    time.Time `json:"prepared,omitzero"`
	Paused      time.Time `json:"paused,omitzero"`
	Redirecting time.Time `json:"redirecting,omitzero"`
	Run         time.Time `json:"run,omitzero"`
	Claimed     time.Time `json:"claimed,omitzero"`
	Flushed     time.Time `json:"flushed,omitzero"`
	Settled     time.Time `json:"settled,omitzero"`
	Aborted     time.Time `json:"aborted,omitzero"`
}

// AgentRecord is what an agent tells of a handover.
type AgentRecord struct {
	ID         string            `json:"id"`
	VM         string            `json:"vm"`
	Role       Role              `json:"role"`
	State      string            `json:"state"`
	EIDs       []lisp.EID        `json:"eids"`
	PeerRLOC   string            `json:"peer_rloc,omitempty"`
	Version    lisp.Version      `json:"version"` // newest that it knows of the mapping
	Times      AgentTimes        `json:"times"`
	Held       uint64            `json:"held"`
	Redirected uint64            `json:"redirected"`
	Replayed   uint64            `json:"replayed"`
	Dropped    map[string]uint64 `json:"dropped"`
	Why        string            `json:"why"`
}

// runs: the VM began to run on this target, and was not taken away again.
func (r *AgentRecord) runs() bool { return r.saw() && r.Times.Aborted.IsZero() }

// saw: the agent of this target has seen the VM run, or was told so.
func (r *AgentRecord) saw() bool { return r != nil && !r.Times.Run.IsZero() }

// told: this source was told by the mapping system that the VM runs at PeerRLOC.
func (r *AgentRecord) told() bool {
	return r != nil && r.Role == Source && !r.Times.Claimed.IsZero() && r.Times.Aborted.IsZero()
}

// replaced: the agent carries out another move of the VM by now.
func (r *AgentRecord) replaced() bool { return r != nil && r.State == "superseded" }

// final: the agent will add nothing to the record.
func (r *AgentRecord) final() bool {
	return r != nil && (r.State == "settled" || r.State == "aborted" || r.State == "superseded")
}

// agentVM is the body of PUT /v1/vms/{vm} at an agent.
type agentVM struct {
	Interface string     `json:"interface"`
	MACs      []string   `json:"macs"`
	EIDs      []lisp.EID `json:"eids"`
}

// agentHandover is the body of PUT /v1/handovers/{id} at an agent.
type agentHandover struct {
	Role      Role         `json:"role"`
	VM        string       `json:"vm"`
	Interface string       `json:"interface,omitempty"`
	MACs      []string     `json:"macs"`
	EIDs      []lisp.EID   `json:"eids"`
	PeerRLOC  netip.Addr   `json:"peer_rloc"`
	PeerXTRID lisp.XTRID   `json:"peer_xtr_id"`
	Version   lisp.Version `json:"version"` // of the mapping now, 0 = not known; the target claims one higher
}

// agents is how the controller reaches the agents. Every call may block until ctx ends, is idempotent,
// and may be made from any goroutine.
type agents interface {
	PutVM(ctx context.Context, h Hypervisor, name string, vm agentVM) error
	DeleteVM(ctx context.Context, h Hypervisor, name string) error
	Prepare(ctx context.Context, h Hypervisor, id string, body agentHandover) (*AgentRecord, error)
	Tell(ctx context.Context, h Hypervisor, id string, v Verb) (*AgentRecord, error)
	Handover(ctx context.Context, h Hypervisor, id string) (*AgentRecord, error)
	Handovers(ctx context.Context, h Hypervisor) ([]AgentRecord, error)
	// Node and Local ask for what an agent knows of itself, and of EIDs that are there. An agent that does not know the
	// question answers nil.
	Node(ctx context.Context, h Hypervisor) (*agentNode, error)
	Local(ctx context.Context, h Hypervisor) ([]agentLocal, error)
}

// StatusError is an agent's answer that is no success.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.Text, e.Code) }

// final reports whether asking again would give the same answer.
func (e *StatusError) final() bool {
	return e.Code >= 400 && e.Code < 500 && e.Code != http.StatusRequestTimeout && e.Code != http.StatusTooManyRequests
}

// maxAgentAnswer bounds what is read of an agent's answer, in bytes.
const maxAgentAnswer = 64 << 20

// httpAgents reaches agents by HTTP.
type httpAgents struct{ client *http.Client }

func newHTTPAgents() *httpAgents {
	return &httpAgents{&http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 8,
		MaxConnsPerHost:     32, // a hung agent holds no more than these
		IdleConnTimeout:     90 * time.Second,
	}}}
}

func (a *httpAgents) PutVM(ctx context.Context, h Hypervisor, name string, vm agentVM) error {
	return a.do(ctx, h, "PUT", "/v1/vms/"+url.PathEscape(name), vm, nil)
}

func (a *httpAgents) DeleteVM(ctx context.Context, h Hypervisor, name string) error {
	err := a.do(ctx, h, "DELETE", "/v1/vms/"+url.PathEscape(name), nil, nil)
	var st *StatusError
	if errors.As(err, &st) && (st.Code == http.StatusNotFound || st.Code == http.StatusMethodNotAllowed) {
		return nil
	}
	return err
}

func (a *httpAgents) Prepare(ctx context.Context, h Hypervisor, id string, body agentHandover) (*AgentRecord, error) {
	return a.record(ctx, h, "PUT", id, "", body)
}

func (a *httpAgents) Tell(ctx context.Context, h Hypervisor, id string, v Verb) (*AgentRecord, error) {
	return a.record(ctx, h, "POST", id, "/"+string(v), nil)
}

func (a *httpAgents) Handover(ctx context.Context, h Hypervisor, id string) (*AgentRecord, error) {
	return a.record(ctx, h, "GET", id, "", nil)
}

func (a *httpAgents) Handovers(ctx context.Context, h Hypervisor) ([]AgentRecord, error) {
	var out []AgentRecord
	err := a.do(ctx, h, "GET", "/v1/handovers", nil, &out)
	return out, err
}

func (a *httpAgents) Node(ctx context.Context, h Hypervisor) (*agentNode, error) {
	var out agentNode
	switch err := a.do(ctx, h, "GET", "/v1/node", nil, &out); {
	case unknownQuestion(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &out, nil
}

func (a *httpAgents) Local(ctx context.Context, h Hypervisor) ([]agentLocal, error) {
	var out []agentLocal
	err := a.do(ctx, h, "GET", "/v1/local", nil, &out)
	if unknownQuestion(err) {
		return nil, nil
	}
	return out, err
}

// unknownQuestion reports whether an agent has no such path.
func unknownQuestion(err error) bool {
	var st *StatusError
	return errors.As(err, &st) && (st.Code == http.StatusNotFound || st.Code == http.StatusMethodNotAllowed)
}

func (a *httpAgents) record(ctx context.Context, h Hypervisor, method, id, verb string, body any) (*AgentRecord, error) {
	var rec AgentRecord
	if err := a.do(ctx, h, method, "/v1/handovers/"+url.PathEscape(id)+verb, body, &rec); err != nil {
		return nil, err
	}
	if rec.ID == "" {
		return nil, nil // an answer without a record
	}
	return &rec, nil
}

func (a *httpAgents) do(ctx context.Context, h Hypervisor, method, path string, body, answer any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("agent %s: %w", h.Name, err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(h.Agent, "/")+path, rd)
	if err != nil {
		return fmt.Errorf("agent %s: %w", h.Name, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if h.Token != "" {
		req.Header.Set("Authorization", "Bearer "+h.Token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("agent %s: %w", h.Name, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAgentAnswer))
	if err != nil {
		return fmt.Errorf("agent %s: %w", h.Name, err)
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("agent %s: %w", h.Name, &StatusError{resp.StatusCode, errorText(b, resp.Status)})
	}
	if answer == nil || len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("agent %s: answer to %s %s: %w", h.Name, method, path, err)
	}
	return nil
}

// errorText is the {"error": ...} of an answer, or its first line.
func errorText(b []byte, status string) string {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &e) == nil && e.Error != "" {
		return e.Error
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if line == "" || len(line) > 200 {
		return status
	}
	return line
}
