package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHookRoundTrip(t *testing.T) {
	for _, h := range []Hook{
		DefaultHook(),
		{Hypervisor: "nezu-hv1", Controller: "https://[2001:db8::9]:4381", Token: `a: "b" #c`, AgentSocket: "/run/x y.sock", Timeout: time.Second, StateDir: "/s"},
		{Hypervisor: "1234", Controller: "http://c", Token: "true", AgentSocket: "/a", Timeout: time.Millisecond, StateDir: "/s"},
	} {
		b, err := h.YAML()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseHook("hook.yaml", b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if d := cmp.Diff(h, got); d != "" {
			t.Errorf("%s\n%s", d, b)
		}
	}
}

func TestHookDefaultsAndErrors(t *testing.T) {
	h, err := LoadHook(filepath.Join(t.TempDir(), "none.yaml"))
	if err != nil || h.Timeout != 700*time.Millisecond || h.AgentSocket != "/run/tabi/xtr.sock" || h.Hypervisor == "" {
		t.Errorf("%+v %v", h, err)
	}
	if h, err = ParseHook("h.yaml", nil); err != nil || h != DefaultHook() {
		t.Errorf("%+v %v", h, err)
	}
	for text, want := range map[string]string{
		"controler: x\n":            `h.yaml:1:1: unknown field "controler"`,
		"controller: ftp://x\n":     `h.yaml: controller "ftp://x": want a URL`,
		"timeout: 6s\n":             "timeout 6s: want more than 0 and at most 5s",
		"timeout: soon\n":           `h.yaml:1:10: "soon" is not a duration`,
		"agent_socket: xtr.sock\n":  `"xtr.sock" is not an absolute path`,
		"hypervisor: \"\"\n":        "hypervisor is missing",
		"hypervisor: [a]\n":         "want a single value",
		"state_dir: ../elsewhere\n": "is not an absolute path",
	} {
		if _, err := ParseHook("h.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseHook(f *testing.F) {
	b, err := DefaultHook().YAML()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("timeout: 1s\ncontroller: http://x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHook("fuzz.yaml", b)
		if err != nil {
			return
		}
		out, err := h.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseHook("again.yaml", out); err != nil || again != h {
			t.Errorf("%+v becomes %+v, %v\n%s", h, again, err, out)
		}
	})
}
