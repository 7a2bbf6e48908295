package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
)

// Hook is what the hooks of a hypervisor need to know: /etc/tabi/hook.yaml, which is no daemon's file. The zero
// value is not useful; see [DefaultHook].
type Hook struct {
	Hypervisor  string        // name of this hypervisor at the controller
	Controller  string        // base URL of the controller's API; "" = only the agent is told
	Token       string        // bearer token of the controller's API
	AgentSocket string        // admin socket of the local agent
	Timeout     time.Duration // what an announcement may cost a migration, in all
	StateDir    string        // a file for each VM whose announcement is to be tried again
}

// rawHook has its keys in the order in which [Hook.YAML] prints them.
type rawHook struct {
	Hypervisor  scalar[string]        `yaml:"hypervisor" doc:"name of this hypervisor at the controller" def:"the host's name"`
	Controller  scalar[string]        `yaml:"controller" doc:"URL of the controller's API; without one only the agent here is told"`
	Token       scalar[string]        `yaml:"token" doc:"bearer token of the controller's API"`
	AgentSocket scalar[string]        `yaml:"agent_socket" doc:"admin socket of the agent on this hypervisor, told when the controller does not answer" def:"/run/tabi/xtr.sock"`
	Timeout     scalar[time.Duration] `yaml:"timeout" doc:"how long a migration waits for tabi at most" def:"700ms"`
	StateDir    scalar[string]        `yaml:"state_dir" doc:"a file for each VM that could not be announced yet" def:"/run/tabi/hook"`
}

// maxHookTimeout bounds what a hook may cost a migration.
const maxHookTimeout = 5 * time.Second

// DefaultHook is what holds without a file.
func DefaultHook() Hook {
	h := Hook{AgentSocket: "/run/tabi/xtr.sock", Timeout: 700 * time.Millisecond, StateDir: "/run/tabi/hook"}
	h.Hypervisor, _ = os.Hostname()
	return h
}

// LoadHook reads and checks a hook's file. One that is not there says nothing: the defaults hold.
func LoadHook(path string) (Hook, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return DefaultHook(), nil
	case err != nil:
		return Hook{}, fmt.Errorf("read configuration: %w", err)
	}
	return ParseHook(path, b)
}

// ParseHook is [LoadHook] on bytes; name is used in errors.
func ParseHook(name string, b []byte) (Hook, error) {
	var r rawHook
	if err := yaml.UnmarshalWithOptions(b, &r, yaml.Strict()); err != nil && len(strings.TrimSpace(string(b))) > 0 {
		return Hook{}, located(name, err)
	}
	h, def := Hook{Controller: strings.TrimSuffix(r.Controller.V, "/"), Token: r.Token.V}, DefaultHook()
	h.Hypervisor = r.Hypervisor.or(def.Hypervisor)
	h.AgentSocket = r.AgentSocket.or(def.AgentSocket)
	h.Timeout = r.Timeout.or(def.Timeout)
	h.StateDir = r.StateDir.or(def.StateDir)
	if err := h.Validate(); err != nil {
		return Hook{}, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}

// Validate says what is wrong with h.
func (h Hook) Validate() error {
	if h.Controller != "" {
		u, err := url.Parse(h.Controller)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("controller %q: want a URL such as http://192.0.2.9:4381", h.Controller)
		}
	}
	for _, p := range []string{h.AgentSocket, h.StateDir} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("%q is not an absolute path", p)
		}
	}
	for _, v := range []string{h.Hypervisor, h.Controller, h.Token, h.AgentSocket, h.StateDir} {
		if strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
			return fmt.Errorf("%q has characters that nobody can see", v)
		}
	}
	switch {
	case h.Hypervisor == "":
		return errors.New("hypervisor is missing: its name at the controller")
	case h.Timeout <= 0 || h.Timeout > maxHookTimeout:
		return fmt.Errorf("timeout %v: want more than 0 and at most %v", h.Timeout, maxHookTimeout)
	}
	return nil
}

// YAML is the file that [ParseHook] reads h from.
func (h Hook) YAML() ([]byte, error) {
	var b strings.Builder
	b.WriteString("# What the hooks of this hypervisor need to know: written by \"tabi hook install\", which keeps what it is not told anew.\n")
	for i, val := range []string{h.Hypervisor, h.Controller, h.Token, h.AgentSocket, h.Timeout.String(), h.StateDir} {
		tag := reflect.TypeFor[rawHook]().Field(i).Tag
		if val == "" {
			fmt.Fprintf(&b, "# %s\n# %s:\n", tag.Get("doc"), tag.Get("yaml"))
			continue
		}
		text, err := yaml.Marshal(val)
		if err != nil {
			return nil, fmt.Errorf("hook configuration: %s: %w", tag.Get("yaml"), err)
		}
		fmt.Fprintf(&b, "# %s\n%s: %s", tag.Get("doc"), tag.Get("yaml"), text)
	}
	return []byte(b.String()), nil
}
