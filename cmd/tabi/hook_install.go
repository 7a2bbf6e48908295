package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/tabi-lisp/tabi/cmd/internal/admin"
	"github.com/tabi-lisp/tabi/cmd/internal/config"
)

const (
	// libvirtHooks is where libvirt looks for hooks.
	libvirtHooks = "/etc/libvirt/hooks"
	// hookName sorts in the middle of a directory of hooks: libvirt calls them in alphabetical order.
	hookName = "50-tabi"
	// hookMark tells our file from others'.
	hookMark = `Installed by "tabi hook install libvirt"`
)

// hookScript is what libvirt calls. The shell keeps three promises whatever becomes of the binary: nothing on standard
// output, status 0, an end in bounded time; and it costs nothing where there is nothing to say.
var hookScript = template.Must(template.New("").Funcs(template.FuncMap{"sh": shellQuote}).Parse(`#!/bin/sh
# ` + hookMark + `; "tabi hook remove libvirt" removes it.
# Tells tabi of a VM that is about to arrive here. It prints nothing on standard output, which libvirt would take for
# another description of the VM, and ends with status 0, always.
case $2 in
migrate) ;;
prepare | start | started) [ -e {{sh .StateDir}}/pending-"$1" ] || exit 0 ;;
*) exit 0 ;;
esac
limit=
command -v timeout >/dev/null && limit="timeout -s KILL {{.Limit}}"
$limit {{sh .Binary}} hook libvirt --config {{sh .Config}} -- "$@" >/dev/null
exit 0
`))

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// hookFiles says where a hook for libvirt is installed.
type hookFiles struct {
	dir    string // libvirt's directory of hooks
	config string // hook.yaml
	// single is for libvirt before 6.5: the one script that it calls, instead of one in a directory.
	single bool
	json   bool // print JSON
}

// hookFile is a file and what became of it.
type hookFile struct {
	Path string `json:"path"`
	What string `json:"what"` // for people: "written", "right already", "removed", ...
}

// hookDone is what install and remove did.
type hookDone struct {
	Files      []hookFile `json:"files"`
	Controller string     `json:"controller,omitempty"`
	Hypervisor string     `json:"hypervisor,omitempty"`
	Agent      string     `json:"agent,omitempty"`
	Reload     bool       `json:"reload"` // libvirt has to be told to look for hooks

	notes []string // for people
}

func (d *hookDone) add(path, what string) { d.Files = append(d.Files, hookFile{path, what}) }

func (f *hookFiles) print(w io.Writer, d hookDone) error {
	if f.json {
		return printJSON(w, d)
	}
	for _, file := range d.Files {
		if _, err := fmt.Fprintf(w, "%s: %s\n", file.Path, file.What); err != nil {
			return err
		}
	}
	for _, n := range d.notes {
		if _, err := fmt.Fprintln(w, n); err != nil {
			return err
		}
	}
	return nil
}

func (f *hookFiles) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.dir, "dir", libvirtHooks, "libvirt's directory of hooks")
	c.Flags().StringVar(&f.config, "config", defaultHookConfig, "file that says whom to tell")
	c.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

func (f *hookFiles) inDir() string  { return filepath.Join(f.dir, "qemu.d", hookName) }
func (f *hookFiles) asFile() string { return filepath.Join(f.dir, "qemu") }

func (f *hookFiles) script() string {
	if f.single {
		return f.asFile()
	}
	return f.inDir()
}

// ours reports whether a file is our hook; one that is not there is not.
func ours(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && bytes.Contains(b, []byte(hookMark))
}

// others lists the hooks for QEMU that are not ours, and that libvirt calls.
func (f *hookFiles) others() []string {
	paths, _ := filepath.Glob(filepath.Join(f.dir, "qemu.d", "*")) // the pattern is good
	var out []string
	for _, p := range append([]string{f.asFile()}, paths...) {
		if i, err := os.Stat(p); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 && !ours(p) {
			out = append(out, p)
		}
	}
	return out
}

// putFile makes path have this content and mode, atomically, and reports whether it had not. The file comes to be in
// tmpDir, of the same file system: libvirt would call what it finds in its own directory.
func putFile(path, tmpDir string, content []byte, mode fs.FileMode) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		if i, err := os.Stat(path); err == nil && i.Mode().Perm() == mode {
			return false, nil
		}
	}
	for _, d := range []string{tmpDir, filepath.Dir(path)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return false, err
		}
	}
	tmp, err := os.CreateTemp(tmpDir, ".tabi-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(tmp.Name()) // it has another name then, if all went well
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}

func newHookInstallCommand() *cobra.Command {
	var f hookFiles
	var o struct {
		controller, token, tokenFile, hypervisor, agentSocket, binary string
		timeout                                                       time.Duration
	}
	c := &cobra.Command{
		Use:   "install libvirt",
		Short: "Install the hook for libvirt, beside hooks that are there already",
		Long: `Install the hook for libvirt, beside hooks that are there already: a file in /etc/libvirt/hooks/qemu.d, which libvirt
calls in alphabetical order (version 6.5 and newer). An older libvirt calls one file only, /etc/libvirt/hooks/qemu: that
is made if there is none, and never changed.

What is given about whom to tell is kept in /etc/tabi/hook.yaml, readable by root only; what is not given stays as it is
there. Installing again changes nothing that is right already.`,
		Example: `  tabi hook install libvirt --controller http://192.0.2.9:4381 --token-file /etc/tabi/token
  tabi hook install libvirt --hypervisor nezu-hv1     # only the agent here is told
  tabi hook install libvirt                           # again, after an upgrade`,
		Args: onlyLibvirt,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadHook(f.config)
			if err != nil {
				return fmt.Errorf("hook install: %w", err)
			}
			set := cmd.Flags().Changed
			if set("controller") {
				cfg.Controller = strings.TrimSuffix(o.controller, "/")
			}
			if set("token") {
				cfg.Token = o.token
			}
			if set("token-file") {
				b, err := os.ReadFile(o.tokenFile)
				if err != nil {
					return fmt.Errorf("hook install: --token-file: %w", err)
				}
				cfg.Token = strings.TrimSpace(string(b))
			}
			if set("hypervisor") {
				cfg.Hypervisor = o.hypervisor
			}
			if set("agent-socket") {
				cfg.AgentSocket = o.agentSocket
			}
			if set("timeout") {
				cfg.Timeout = o.timeout
			}
			if err := cfg.Validate(); err != nil {
				return fmt.Errorf("hook install: %w", err)
			}
			if o.binary == "" {
				if o.binary, err = os.Executable(); err != nil {
					return fmt.Errorf("hook install: where is this program? Say it with --binary: %w", err)
				}
			}
			f.single = oldLibvirt(cmd.Context())
			return f.install(cmd, cfg, o.binary)
		},
	}
	f.flags(c)
	c.Flags().StringVar(&o.controller, "controller", "", "URL of the controller's API")
	c.Flags().StringVar(&o.token, "token", "", "bearer token of the controller's API")
	c.Flags().StringVar(&o.tokenFile, "token-file", "", "the same, from a file")
	c.Flags().StringVar(&o.hypervisor, "hypervisor", "", "name of this hypervisor at the controller (default: the host's name)")
	c.Flags().StringVar(&o.agentSocket, "agent-socket", "", "admin socket of the agent here (default /run/tabi/xtr.sock)")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "how long a migration may wait for tabi (default 700ms)")
	c.Flags().StringVar(&o.binary, "binary", "", "path of tabi, as libvirt is to call it (default: this program)")
	c.MarkFlagsMutuallyExclusive("token", "token-file")
	return c
}

func (f *hookFiles) install(cmd *cobra.Command, cfg config.Hook, binary string) error {
	others := f.others()
	done := hookDone{Controller: cfg.Controller, Hypervisor: cfg.Hypervisor, Agent: cfg.AgentSocket}
	if f.single {
		for _, o := range others {
			if o == f.asFile() {
				return fmt.Errorf("hook install: this libvirt calls one hook only, and %s is somebody else's; add to it, where it does not exit before:\n    %s hook libvirt --config %s -- \"$@\" >/dev/null",
					o, shellQuote(binary), shellQuote(f.config))
			}
		}
	}
	text, err := cfg.YAML()
	if err != nil {
		return fmt.Errorf("hook install: %w", err)
	}
	var script bytes.Buffer
	if err := hookScript.Execute(&script, struct {
		Binary, Config, StateDir string
		Limit                    int
	}{binary, f.config, cfg.StateDir, int(cfg.Timeout/time.Second) + 2}); err != nil {
		return fmt.Errorf("hook install: %w", err)
	}
	fresh := !ours(f.script())
	for _, p := range []struct {
		path, tmp string
		content   []byte
		mode      fs.FileMode
	}{
		{f.config, filepath.Dir(f.config), text, 0o600},
		{f.script(), f.dir, script.Bytes(), 0o755},
	} {
		changed, err := putFile(p.path, p.tmp, p.content, p.mode)
		if err != nil {
			return fmt.Errorf("hook install: %w", err)
		}
		done.add(p.path, map[bool]string{true: "written", false: "right already"}[changed])
	}
	for _, o := range others {
		done.add(o, "not ours, not touched")
	}
	if cfg.Controller == "" {
		done.notes = append(done.notes, fmt.Sprintf("No controller is given: VMs that arrive are announced to the agent here only (%s).", cfg.AgentSocket))
	} else {
		done.notes = append(done.notes, fmt.Sprintf("VMs that arrive are announced to %s as coming to %s, and to the agent here if that does not answer.", cfg.Controller, cfg.Hypervisor))
	}
	// libvirt remembers whether it has found any hook; which ones there are it looks up each time.
	if done.Reload = fresh && len(others) == 0; done.Reload {
		done.notes = append(done.notes, `libvirt looks for hooks when it starts or reloads: "systemctl reload libvirtd" (or virtqemud) once. VMs go on.`)
	}
	return f.print(cmd.OutOrStdout(), done)
}

func newHookRemoveCommand() *cobra.Command {
	var f hookFiles
	var purge bool
	c := &cobra.Command{
		Use: "remove libvirt", Aliases: []string{"uninstall"}, Short: "Remove the hook for libvirt, and nothing else",
		Example: "  tabi hook remove libvirt\n  tabi hook remove libvirt --purge",
		Args:    onlyLibvirt,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done hookDone
			for _, p := range []string{f.inDir(), f.asFile()} {
				if !ours(p) {
					continue
				}
				if err := os.Remove(p); err != nil {
					return fmt.Errorf("hook remove: %w", err)
				}
				done.add(p, "removed")
			}
			if len(done.Files) == 0 {
				done.add(f.dir, "no hook of ours")
			}
			switch _, err := os.Stat(f.config); {
			case err != nil:
			case !purge:
				done.add(f.config, "kept (--purge removes it too)")
			default:
				if err := os.Remove(f.config); err != nil {
					return fmt.Errorf("hook remove: %w", err)
				}
				done.add(f.config, "removed")
			}
			return f.print(cmd.OutOrStdout(), done)
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&purge, "purge", false, "remove what is known of whom to tell, too")
	return c
}

// hookStatus is what `tabi hook status` tells.
type hookStatus struct {
	Installed  string   `json:"installed,omitempty"` // path of our hook
	Problems   []string `json:"problems"`
	Others     []string `json:"others"` // hooks that are not ours
	Config     string   `json:"config"`
	Hypervisor string   `json:"hypervisor"`
	Controller string   `json:"controller,omitempty"`
	Agent      string   `json:"agent"`
}

func newHookStatusCommand() *cobra.Command {
	var f hookFiles
	c := &cobra.Command{
		Use: "status", Short: "Say whether the hook for libvirt is installed, and whether those that it tells answer",
		Long: `Say whether the hook for libvirt is installed, and whether those that it tells answer. Status 1 if something is
wrong with it.`,
		Example: "  tabi hook status\n  tabi hook status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st := f.status(cmd.Context())
			if f.json {
				if err := printJSON(cmd.OutOrStdout(), st); err != nil {
					return err
				}
			} else if err := fields(cmd.OutOrStdout(), "hook", firstOf(st.Installed, "not installed"), "configuration", st.Config,
				"hypervisor", st.Hypervisor, "controller", firstOf(st.Controller, "none"), "agent", st.Agent,
				"others", strings.Join(st.Others, " "), "problems", strings.Join(st.Problems, "\n\t")); err != nil {
				return err
			}
			if len(st.Problems) > 0 {
				return errSilent
			}
			return nil
		},
	}
	f.flags(c)
	return c
}

// binaryIn finds the program that a hook script of ours calls.
var binaryIn = regexp.MustCompile(`(?m)^\$limit '((?:[^']|'\\'')*)' hook libvirt`)

func (f *hookFiles) status(ctx context.Context) hookStatus {
	st := hookStatus{Problems: []string{}, Others: f.others(), Config: f.config}
	wrong := func(format string, a ...any) { st.Problems = append(st.Problems, fmt.Sprintf(format, a...)) }
	if st.Others == nil {
		st.Others = []string{}
	}
	for _, p := range []string{f.asFile(), f.inDir()} {
		if ours(p) {
			st.Installed = p
		}
	}
	if st.Installed == "" {
		wrong("not installed: tabi hook install libvirt")
	} else if i, err := os.Stat(st.Installed); err != nil || i.Mode()&0o111 == 0 {
		wrong("%s is not executable: libvirt does not call it", st.Installed)
	} else if b, err := os.ReadFile(st.Installed); err == nil {
		m := binaryIn.FindSubmatch(b)
		if m == nil {
			wrong("%s has been changed: install it again", st.Installed)
		} else if _, err := exec.LookPath(strings.ReplaceAll(string(m[1]), `'\''`, "'")); err != nil {
			wrong("%s calls a program that is not there: %v", st.Installed, err)
		}
	}
	cfg, err := config.LoadHook(f.config)
	if err != nil {
		wrong("%v", err)
		return st
	}
	st.Hypervisor, st.Controller, st.Agent = cfg.Hypervisor, cfg.Controller, cfg.AgentSocket
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := admin.Dial(cfg.AgentSocket).About(ctx); err != nil {
		wrong("agent: %v", err)
	}
	if cfg.Controller == "" {
		return st
	}
	var hvs struct {
		Name string `json:"name"`
	}
	api := controllerClient{url: cfg.Controller, token: firstOf(cfg.Token, "-")}
	var status *apiError
	switch _, err := api.do(ctx, http.MethodGet, "/v1/hypervisors/"+cfg.Hypervisor, nil, &hvs); {
	case errors.As(err, &status) && status.status == http.StatusNotFound:
		wrong("the controller knows no hypervisor %q: its names are in \"tabi hv list\"; say the right one with --hypervisor", cfg.Hypervisor)
	case err != nil:
		wrong("%v", err)
	}
	return st
}

// oldLibvirt reports whether the libvirt here calls no hooks in directories. One that cannot be asked does.
func oldLibvirt(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, daemon := range []string{"libvirtd", "/usr/sbin/libvirtd", "virtqemud", "/usr/sbin/virtqemud"} {
		b, err := exec.CommandContext(ctx, daemon, "--version").Output()
		if err == nil {
			return beforeDirectories(string(b))
		}
	}
	return false
}

// beforeDirectories reads "libvirtd (libvirt) 9.0.0".
func beforeDirectories(version string) bool {
	m := regexp.MustCompile(`(\d+)\.(\d+)\.\d+`).FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1]) // digits
	minor, _ := strconv.Atoi(m[2])
	return major < 6 || major == 6 && minor < 5
}
